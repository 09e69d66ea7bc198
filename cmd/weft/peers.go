package main

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"weft/adapters/peer"
	"weft/adapters/rest"
	"weft/dataplane/agent"
	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/command"
	"weft/eventstore/quorum"
	"weft/projections/topology"
)

// peerPort is the node's door for other nodes, and its way to theirs.
type peerPort struct {
	id     *peer.Identity
	server *peer.Server
	client *peer.Client
	log    *quorum.Port
	url    string
}

// openPeer opens the door. What comes for the log waits until there is one.
func openPeer(o Options, d *dataDir, bg *background, log *slog.Logger) (*peerPort, func(), error) {
	id, err := peer.OpenIdentity(d.tlsFiles(), d.id.Cluster, d.id.Node)
	if err != nil {
		return nil, nil, domain.Wrap(err, "serve", "identity")
	}
	p := &peerPort{id: id, client: peer.NewClient(id), log: quorum.NewPort()}
	p.server, err = peer.Listen(peer.Config{
		Addr: o.Peer, Identity: id, Log: p.log, Logger: log,
		Kept: func(err error) { bg.note("renewing the node's certificate", 0, err) },
	})
	if err != nil {
		return nil, nil, &domain.Error{
			Op: "serve", Kind: domain.Unavailable, Ref: "--peer " + o.Peer, Err: cause(err),
			Remedy: "choose another address with --peer, or stop what uses this one",
		}
	}
	addr := o.AdvertisePeer
	if addr == "" {
		addr = reachable(p.server.Addr())
	}
	p.url = "https://" + addr
	return p, func() {
		p.client.Close()
		if err := p.server.Close(); err != nil {
			log.Error("closing the peer port", "err", err)
		}
	}, nil
}

// net is the log's way to other nodes.
func (p *peerPort) net(members []string) *quorum.Net {
	cert, key, ca := p.id.Paths()
	return &quorum.Net{
		URL: p.url, Seeds: members, Port: p.log,
		TLS: &quorum.TLSFiles{
			Cert: cert, Key: key, CA: ca, ServerName: peer.ServerName(p.id.Cluster),
		},
	}
}

// gate decides who belongs to the cluster.
type gate struct {
	b    *backend
	peer *peerPort
}

var _ peer.Gate = (*gate)(nil)

// Admitted implements peer.Gate. A node that is not in the view yet has just been signed.
func (g *gate) Admitted(id domain.NodeID) bool {
	n, ok := g.b.views.topology.Node(id)
	return !ok || !n.Removed
}

// Refused implements peer.Gate.
func (g *gate) Refused(r peer.Refusal) {
	a := rest.Attempt{Source: r.Source, Operation: "peer/" + r.Call, Reason: r.Reason}
	if !r.Node.IsZero() {
		a.Actor = "node/" + r.Node.String()
	}
	g.b.refused.attempt(a)
}

// Join implements peer.Gate. The same node may ask again: it gets the same answer.
func (g *gate) Join(ctx context.Context, r peer.JoinRequest) (peer.Welcome, error) {
	hash := sha256.Sum256(r.Secret)
	res, err := g.b.exec.Do(ctx, domain.Request{
		ID: domain.CommandID{UUID: domain.DeriveUUID(r.Token, "join", r.Node.String())},
		Command: cluster.UseToken{
			Cluster: g.b.dir.id.Cluster, Token: r.Token, Hash: hash[:], Node: r.Node, Now: time.Now(),
		},
		Caller: domain.Caller{Actor: "node/" + r.Node.String()},
	})
	if err != nil {
		return peer.Welcome{}, err
	}
	ca := g.peer.id.Authority()
	w := peer.Welcome{Name: r.Name, CA: ca.Cert, CAKey: ca.Key}
	for _, ev := range res.Events {
		if used, ok := ev.(*cluster.JoinTokenUsed); ok {
			w.Number = used.Number
		}
	}
	if w.Number == 0 {
		return peer.Welcome{}, domain.Errorf(domain.Mismatch,
			"the node used this token before; join with an empty folder and a new token")
	}
	for _, n := range g.b.views.topology.Nodes() {
		if n.Name == r.Name && n.Node.Node != r.Node {
			w.Name = r.Name + "-" + strconv.Itoa(int(w.Number))
		}
	}
	w.Members = urls(g.b.views.topology, r.Node)
	return w, nil
}

// urls lists where the nodes of the cluster are reached, but for one.
func urls(v *topology.View, but domain.NodeID) []string {
	var list []string
	for _, n := range v.Nodes() {
		if n.Node.Node != but && !n.Removed && n.Endpoint.Peer != "" {
			list = append(list, n.Endpoint.Peer)
		}
	}
	slices.Sort(list)
	return list
}

// JoinToken implements rest.Backend.
func (b *backend) JoinToken(ctx context.Context, r domain.Request, ttl time.Duration, uses int64) (
	string, rest.Result, error,
) {
	pin, err := b.peer.id.Authority().Pin()
	if err != nil {
		return "", rest.Result{}, err
	}
	t := peer.NewToken(b.dir.id.Cluster,
		append([]string{b.peer.url}, urls(b.views.topology, b.dir.id.Node)...), pin)
	r.Command = cluster.IssueToken{
		Cluster: b.dir.id.Cluster, JoinTokenIssued: cluster.JoinTokenIssued{
			Token: t.ID, Hash: t.Hash(), Uses: uses,
			Expires: time.Now().Add(ttl).UTC().Truncate(time.Second),
		},
	}
	res, err := b.Do(ctx, r)
	if err != nil {
		return "", res, err
	}
	return t.String(), res, nil
}

// dispatcher brings an order to the agent of the node it is for.
type dispatcher struct {
	self  domain.NodeID
	local *agent.Agent
	peer  *peerPort
	nodes *topology.View
}

func newDispatcher(d *dataDir, a *agent.Agent, p *peerPort, v *views) *dispatcher {
	return &dispatcher{self: d.id.Node, local: a, peer: p, nodes: v.topology}
}

// Obey implements reconciler.Dispatcher.
func (d *dispatcher) Obey(ctx context.Context, o command.Order) command.Outcome {
	if o.Node == d.self {
		return d.local.Obey(ctx, o)
	}
	url, err := d.url(o.Node)
	if err != nil {
		return command.Outcome{ID: o.ID, Err: err}
	}
	return d.peer.client.Obey(ctx, url, o)
}

// Ask implements reconciler.Dispatcher.
func (d *dispatcher) Ask(ctx context.Context, q command.Question) (command.Answer, error) {
	if q.Node == d.self {
		return d.local.Ask(ctx, q)
	}
	url, err := d.url(q.Node)
	if err != nil {
		return command.Answer{}, err
	}
	return d.peer.client.Ask(ctx, url, q)
}

// url tells where another node is reached.
func (d *dispatcher) url(id domain.NodeID) (string, error) {
	n, ok := d.nodes.Node(id)
	if !ok || n.Removed || n.Endpoint.Peer == "" {
		return "", domain.Errorf(domain.NotFound, "node %s is unknown or says not where it is", id)
	}
	return n.Endpoint.Peer, nil
}
