package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"weft/adapters/esdb"
	"weft/adapters/rest"
	"weft/domain"
	"weft/domain/identity"
	"weft/eventstore"
)

// servedLog is the event log as the clients of EventStoreDB reach it.
type servedLog struct {
	addr string // empty: not offered
	ca   string // file of the authority that clients are to trust
}

// serveLog opens the port of the event log.
func serveLog(o Options, b *backend, log *slog.Logger) (*servedLog, func(), error) {
	l, err := listen("tcp", o.Events, "--events")
	if l == nil || err != nil {
		return &servedLog{}, func() {}, err
	}
	addr := reachable(l.Addr().String())
	_, _, ca := b.peer.id.Paths()
	s, err := esdb.New(esdb.Config{
		Store: b.store, Cursors: b.store.Cursors(), Authenticate: b.auditor, Log: log,
		Self: b.dir.id.Node.UUID, Members: b.logMembers,
		TLS:    b.peer.id.Portal(namesOf(l.Addr().String())),
		Render: b.renderer(o.EventsJSON), Refused: b.deniedReader,
	})
	if err != nil {
		_ = l.Close() // nothing came over it
		return nil, nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(l); err != nil {
			log.Error("portal", "addr", addr, "err", err)
		}
	})
	return &servedLog{addr, ca}, func() {
		s.Close()
		wg.Wait()
	}, nil
}

// uri is how clients write the address; user auditor and the token go before it, and tlsCAFile
// after.
func (s *servedLog) uri() string {
	if s.addr == "" {
		return ""
	}
	return "esdb://" + s.addr
}

// hostsOf lists the names by which a port's clients may call it.
func hostsOf(addr string) []string {
	host, _, _ := net.SplitHostPort(addr)
	return []string{host, "localhost", "127.0.0.1", "::1", hostname()}
}

// auditor admits the bearer of any token of the API, as the password of any user. What they may not
// read in the API they do not see here either, at each event by the rights of that moment.
func (b *backend) auditor(ctx context.Context, _, secret string) (esdb.Principal, error) {
	p, err := b.Identify(ctx, secret)
	if err != nil {
		return esdb.Principal{}, err
	}
	out := esdb.Principal{Actor: p.Actor()}
	if p.User.IsZero() {
		return out, nil // the node's own administrator
	}
	out.Whole = p.Rights.May(identity.Read, nil)
	out.Sees = func(s domain.StreamID) bool {
		now, err := b.views.access.Again(p, time.Now())
		return err == nil && b.views.access.Sees(now, s)
	}
	return out, nil
}

// deniedReader keeps a call of the log's port that was refused.
func (b *backend) deniedReader(r esdb.Refusal) {
	b.refused.attempt(rest.Attempt{
		Actor: r.Actor, Source: r.Source, Operation: "events/" + r.Call, Reason: r.Reason,
	})
}

// logMembers lists the nodes that serve the log. The one that runs the reconciler runs persistent
// subscriptions too.
func (b *backend) logMembers() []esdb.Member {
	leader, _ := b.views.topology.Leader()
	var out []esdb.Member
	for _, n := range b.views.topology.Nodes() {
		host, port, err := net.SplitHostPort(n.Endpoint.Log)
		p, bad := strconv.ParseUint(port, 10, 16)
		if n.Removed || err != nil || bad != nil {
			continue
		}
		out = append(out, esdb.Member{
			ID: n.Node.Node.UUID, Address: host, Port: uint16(p), Leader: n.Node.Node == leader,
			Alive: !n.Down,
		})
	}
	return out
}

// renderer shows payloads as JSON where that is asked for.
func (b *backend) renderer(asked bool) func(*eventstore.Recorded) ([]byte, error) {
	if !asked {
		return nil
	}
	return func(r *eventstore.Recorded) ([]byte, error) {
		e, err := b.event(context.Background(), *r)
		if err != nil {
			return nil, err
		}
		return json.Marshal(e.Data)
	}
}
