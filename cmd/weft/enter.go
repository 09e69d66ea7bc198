package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"weft/adapters/cli"
	"weft/adapters/peer"
	"weft/domain"
)

// joinWait bounds the asking for admission.
const joinWait = 30 * time.Second

// tlsFiles says where this node's identity lives.
func (d *dataDir) tlsFiles() peer.Files {
	return peer.Files{Dir: d.file("tls"), Write: writeDurably, Now: time.Now}
}

// enter makes this folder a node's: one that goes on, one that joins a cluster, or the first of a
// new one. It fills the addresses that nobody chose, and begins the incarnation.
func enter(ctx context.Context, o *Options, d *dataDir) error {
	var err error
	switch {
	case !d.isNew() && o.Join != "":
		err = d.sameCluster(o.Join)
	case d.isNew() && o.Join != "":
		err = joinCluster(ctx, o, d)
	case d.isNew():
		err = newCluster(o, d)
	}
	if err != nil {
		return err
	}
	o.addresses(d)
	if err := vacant(*o); err != nil {
		return err
	}
	if !peer.HasIdentity(d.file("tls")) { // also of a node from before there were others
		if _, err := d.newIdentity(); err != nil {
			return err
		}
	}
	return d.begin()
}

// newIdentity makes the authority of a new cluster, and this node's certificate.
func (d *dataDir) newIdentity() (peer.Authority, error) {
	ca, err := peer.NewAuthority(d.id.Cluster, time.Now())
	if err == nil {
		err = peer.CreateIdentity(d.tlsFiles(), ca, d.id.Cluster, d.id.Node)
	}
	return ca, domain.Wrap(err, "serve", "identity")
}

// sameCluster lets a node be started with the token it joined by, as a service file would.
func (d *dataDir) sameCluster(token string) error {
	t, err := peer.ParseToken(token)
	if err == nil && t.Cluster != d.id.Cluster {
		err = &domain.Error{
			Op: "serve", Kind: domain.Exists, Ref: d.path,
			Msg:    "this folder holds a node of cluster " + d.id.Cluster.String(),
			Remedy: "join with an empty --data-dir",
		}
	}
	return err
}

// newCluster makes the identity of the first node. A cluster that others could reach must be meant:
// two machines that were started alike would be two clusters.
func newCluster(o *Options, d *dataDir) error {
	for _, addr := range []string{o.API, o.NBD, o.ISCSI, o.Peer, o.Events} {
		if !o.Init && addr != "" && addr != "off" && !loopback(addr) {
			return &domain.Error{
				Op: "serve", Kind: domain.Invalid, Ref: addr,
				Msg: "the data folder is empty and the address is not this machine's alone: " +
					"a new cluster, or one more node?",
				Remedy: "say weft serve --init for a new cluster, or weft serve --join TOKEN with what " +
					"weft node token prints on a node of the other",
			}
		}
	}
	d.id = nodeIdentity{
		Cluster: domain.ClusterID{UUID: randomUUID()}, Node: domain.NodeID{UUID: randomUUID()},
		Name: o.Name, Number: 1,
	}
	if d.id.Name == "" {
		d.id.Name = hostname()
	}
	return nil
}

// joinCluster asks a cluster to admit this machine and keeps who it is from then on. Cut short at
// any place, the next try is the same node, so a token that can be used once is enough.
func joinCluster(ctx context.Context, o *Options, d *dataDir) error {
	t, err := peer.ParseToken(o.Join)
	if err != nil {
		return err
	}
	id := nodeIdentity{Cluster: t.Cluster, Node: domain.NodeID{UUID: randomUUID()}, Name: o.Name}
	if id.Name == "" {
		id.Name = hostname()
	}
	b, err := os.ReadFile(d.file("joining.json"))
	var before nodeIdentity
	if err == nil && json.Unmarshal(b, &before) == nil && before.Cluster == t.Cluster {
		id.Node = before.Node
	} else if b, err = json.Marshal(id); err == nil {
		err = writeDurably(d.file("joining.json"), b)
	}
	if err != nil {
		return domain.Wrap(asDomain(err), "serve", "joining.json")
	}
	ctx, cancel := context.WithTimeout(ctx, joinWait)
	defer cancel()
	w, err := peer.Join(ctx, t, d.tlsFiles(), id.Node, id.Name)
	if err != nil {
		return domain.Wrap(err, "serve", "")
	}
	id.Name, id.Number, id.Members = w.Name, w.Number, w.Members
	// More than one node on a machine: what the first one listens on is taken.
	for _, a := range []struct {
		addr  *string
		usual string
	}{
		{&o.API, cli.DefaultAPI},
		{&o.NBD, cli.DefaultNBD},
		{&o.ISCSI, cli.DefaultISCSI},
		{&o.Peer, cli.DefaultPeer},
		{&o.Events, cli.DefaultEvents},
	} {
		if *a.addr == a.usual {
			*a.addr = ownAddr(a.usual)
		}
	}
	id.Listen = addresses{o.API, o.NBD, o.ISCSI, o.Peer, o.Events}
	d.id = id
	if err := d.save(); err != nil {
		return domain.Wrap(err, "serve", "node.json")
	}
	err = os.Remove(filepath.Join(d.path, "joining.json"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return asDomain(err)
}

// addresses takes what the node listened on when it joined, where the flags say nothing else.
func (o *Options) addresses(d *dataDir) {
	for _, a := range []struct {
		addr        *string
		usual, kept string
	}{
		{&o.API, cli.DefaultAPI, d.id.Listen.API},
		{&o.NBD, cli.DefaultNBD, d.id.Listen.NBD},
		{&o.ISCSI, cli.DefaultISCSI, d.id.Listen.ISCSI},
		{&o.Peer, cli.DefaultPeer, d.id.Listen.Peer},
		{&o.Events, cli.DefaultEvents, d.id.Listen.Events},
	} {
		if *a.addr == a.usual && a.kept != "" {
			*a.addr = a.kept
		}
	}
	// Two clusters on one machine need no word about ports that neither asked for.
	for _, a := range []struct {
		addr  *string
		usual string
		kept  *string
	}{
		{&o.Peer, cli.DefaultPeer, &d.id.Listen.Peer},
		{&o.Events, cli.DefaultEvents, &d.id.Listen.Events},
	} {
		if *a.addr == a.usual && *a.kept == "" && d.id.Incarnation == 0 {
			if *a.addr = ownAddr(a.usual); *a.addr != a.usual {
				*a.kept = *a.addr
			}
		}
	}
}

// Ports of which a node keeps one where its default is taken. They are below those that systems
// give to outgoing connections: one of those would be another's at the next start, now and then.
const (
	keptPortMin = 10_000
	keptPortMax = 32_000
	keptTries   = 100
)

// ownAddr gives a default address, or where that is taken a free one of this machine to keep. Port
// 0 is always taken.
func ownAddr(usual string) string {
	if _, port, _ := net.SplitHostPort(usual); port != "0" && unused(usual) {
		return usual
	}
	for range keptTries {
		port := keptPortMin + rand.IntN(keptPortMax-keptPortMin)
		if addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port)); unused(addr) {
			return addr
		}
	}
	return usual // and let the start say what is wrong
}

func unused(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	_ = l.Close() // it held nothing
	return true
}
