package esdb

import (
	"context"
	"net"
	"strconv"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/gossip"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/serverfeatures"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
)

// serverVersion is that of the protocol we speak; clients look at its first three numbers.
const serverVersion = "23.10.0"

// features answers what is served. "batchappend" is not listed, so that the Node.js clients append
// by the plain call, and are refused by it in words.
type features struct {
	serverfeatures.UnimplementedServerFeaturesServer
}

// GetSupportedMethods implements serverfeatures.ServerFeaturesServer.
func (features) GetSupportedMethods(context.Context, *shared.Empty) (
	*serverfeatures.SupportedMethods, error,
) {
	const streams = "event_store.client.streams.streams"
	const groups = "event_store.client.persistent_subscriptions.persistentsubscriptions"
	out := &serverfeatures.SupportedMethods{EventStoreServerVersion: serverVersion}
	add := func(service, method string, features ...string) {
		out.Methods = append(out.Methods, &serverfeatures.SupportedMethod{
			ServiceName: service, MethodName: method, Features: features,
		})
	}
	add(streams, "append")
	add(streams, "read", "position", "events")
	for _, method := range []string{
		"create", "update", "read", "delete", "getinfo", "list", "replayparked",
	} {
		add(groups, method, "stream", "all")
	}
	return out, nil
}

// rumours answers who is in the cluster.
type rumours struct {
	gossip.UnimplementedGossipServer
	s *Server
}

// Read implements gossip.GossipServer.
func (r rumours) Read(context.Context, *shared.Empty) (*gossip.ClusterInfo, error) {
	out := &gossip.ClusterInfo{}
	for _, m := range r.s.members() {
		state := gossip.MemberInfo_Follower
		if m.Leader {
			state = gossip.MemberInfo_Leader
		}
		out.Members = append(out.Members, &gossip.MemberInfo{
			InstanceId: structured(m.ID), State: state, IsAlive: m.Alive,
			TimeStamp:    r.s.config.Now().UnixMilli(),
			HttpEndPoint: &gossip.EndPoint{Address: m.Address, Port: uint32(m.Port)},
		})
	}
	return out, nil
}

// members lists the cluster: this node alone when nobody else is known.
func (s *Server) members() []Member {
	if s.config.Members != nil {
		return s.config.Members()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := Member{ID: s.config.Self, Leader: true, Alive: true}
	if s.mu.portal != nil {
		host, port, err := net.SplitHostPort(s.mu.portal.String())
		if n, bad := strconv.ParseUint(port, 10, 16); err == nil && bad == nil {
			m.Address, m.Port = host, uint16(n)
		}
	}
	return []Member{m}
}

// leader gives the member that serves persistent subscriptions, and whether that is this node.
func (s *Server) leader() (m Member, self bool) {
	for _, m := range s.members() {
		if m.Leader {
			return m, s.config.Members == nil || m.ID == s.config.Self
		}
	}
	return Member{}, false
}
