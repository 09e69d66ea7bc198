package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft/adapters/cli"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore/quorum"
	"weft/projections"
	"weft/projections/topology"
)

// answerWait is how long a voter that is said to be lost is given to answer.
const answerWait = 2 * time.Second

// recoverLog makes the node of a folder the only voter of its log, where most voters are lost, or
// tells what that would keep. Nothing is changed before the last step, which is one.
func recoverLog(ctx context.Context, o cli.RecoverOptions, progress func(string)) (
	res cli.Recovered, err error,
) {
	d, unlock, err := stoppedNode(o.DataDir)
	if err != nil {
		return res, err
	}
	defer unlock()
	progress("copying the database of the log")
	r, err := quorum.NewRecovery(ctx, quorum.Config{
		Dir: d.file("log"), ClusterID: d.id.Cluster, Name: d.id.Node.String(),
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return res, damaged(err)
	}
	defer func() {
		if derr := r.Discard(); err == nil {
			err = derr
		}
	}()
	progress("checking every record of it")
	if err := r.Force(ctx); err != nil {
		return res, damaged(err)
	}
	nodes, err := nodesOf(ctx, r)
	if err != nil {
		return res, err
	}
	token, err := d.Load() // of the last leader this node obeyed: it may be of a lost history
	if err != nil {
		return res, err
	}
	to := max(r.Kept.Position.Timeline(), domain.Position(token).Timeline()) + 1
	lost := lostMembers(r, nodes)
	res = cli.Recovered{
		DataDir: d.path, Cluster: d.id.Cluster.String(), Node: d.id.Name, Term: r.Term, Index: r.Index,
		Committed: r.Committed, Position: r.Kept.Position.String(),
		Hash: hex.EncodeToString(r.Kept.Hash[:]), Salvaged: r.Salvaged, Timeline: uint16(to),
	}
	for i, m := range r.Others {
		res.Lost = append(res.Lost, lostVoter(ctx, m, lost[i], nodes))
	}
	if !o.AcceptLoss {
		return res, nil
	}
	if err := allLost(res.Lost, o.Lost); err != nil {
		return res, err
	}
	progress("recording the recovery")
	if err := r.Raise(ctx, to); err != nil {
		return res, err
	}
	if err := recordRecovery(ctx, d, r, to, lost); err != nil {
		return res, err
	}
	res.Recovered = true
	return res, r.Commit()
}

// stoppedNode locks the folder of a node that does not run.
func stoppedNode(dir string) (*dataDir, func(), error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, asDomain(err)
	}
	if _, err := os.Stat(filepath.Join(path, "node.json")); err != nil {
		return nil, nil, &domain.Error{
			Kind: domain.NotFound, Ref: path, Msg: "this folder holds no node",
			Remedy: "name the node's folder with --data-dir",
		}
	}
	return openDataDir(path)
}

// nodesOf folds what the log says of the nodes.
func nodesOf(ctx context.Context, r *quorum.Recovery) (v *topology.View, err error) {
	c, err := newCodec(nil)
	if err != nil {
		return nil, err
	}
	v = topology.New()
	run, err := projections.New(projections.Config{
		Store: r.Log, Codec: c, Views: []projections.View{v},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := run.Close(); err == nil {
			err = cerr
		}
	}()
	if err := run.Start(ctx); err != nil {
		return nil, err
	}
	return v, run.CaughtUp(ctx)
}

// lostMembers says whose members are given up, in the order of Others.
func lostMembers(r *quorum.Recovery, nodes *topology.View) []cluster.LostMember {
	var list []cluster.LostMember
	for _, m := range r.Others {
		l := cluster.LostMember{Member: m.ID, Learner: m.Learner}
		for _, n := range nodes.Nodes() {
			if n.Node.Node.String() == m.Name || m.Name == "" && n.Endpoint.Peer == m.URL {
				l.Node = n.Node.Node
			}
		}
		list = append(list, l)
	}
	return list
}

// lostVoter describes a member to the operator, and tries whether it is there.
func lostVoter(
	ctx context.Context, m quorum.Member, l cluster.LostMember, nodes *topology.View,
) cli.LostVoter {
	v := cli.LostVoter{
		Node: m.Name, Member: fmt.Sprintf("%x", m.ID), URL: m.URL, Vote: "voter",
		Answers: answers(ctx, m),
	}
	if m.Learner {
		v.Vote = "learner"
	}
	if n, ok := nodes.Node(l.Node); ok {
		v.ID, v.Node = n.Node.Node.String(), n.Name
	}
	return v
}

// answers tells whether something listens at a member's address. It does not ask who: certificates
// may have run out while the cluster was down, and refusing once too often costs less.
func answers(ctx context.Context, m quorum.Member) bool {
	u, err := url.Parse(m.URL)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	_ = c.Close() // it said what was asked
	return true
}

// allLost refuses while a member answers, unless the operator says that it is lost all the same.
func allLost(list []cli.LostVoter, said []string) error {
	for _, name := range said {
		if !slices.ContainsFunc(list, func(v cli.LostVoter) bool { return v.Named(name) }) {
			return &domain.Error{
				Op: "recover", Kind: domain.NotFound, Ref: name, Msg: "the log has no such member",
				Remedy: "weft recover without --accept-loss lists them",
			}
		}
	}
	var there []string
	for _, v := range list {
		if v.Answers && !slices.ContainsFunc(said, v.Named) {
			there = append(there, v.Node)
		}
	}
	if len(there) == 0 {
		return nil
	}
	return &domain.Error{
		Op: "recover", Kind: domain.Conflict, Ref: strings.Join(there, ", "),
		Msg: "a voter that would be given up answers at its address",
		Remedy: "if it can be started, start a majority of the voters instead, and nothing is lost; " +
			"if it is lost and another program answers there, say --lost " + there[0],
	}
}

// recordRecovery writes the first events of the new timeline.
func recordRecovery(
	ctx context.Context, d *dataDir, r *quorum.Recovery, to domain.Timeline, lost []cluster.LostMember,
) error {
	c, err := newCodec(nil)
	if err != nil {
		return err
	}
	x, err := newExecutor(r.Log, c)
	if err != nil {
		return err
	}
	cmds := []domain.Command{cluster.RecordRecovery{
		Cluster: d.id.Cluster, To: to, LogRecovered: cluster.LogRecovered{
			By: d.id.Node, Kept: r.Kept.Position, Hash: r.Kept.Hash[:], Term: r.Term, Index: r.Index,
			Salvaged: r.Salvaged, Lost: lost,
		},
	}}
	for _, l := range lost {
		if !l.Node.IsZero() {
			cmds = append(cmds, cluster.Enroll{Cluster: d.id.Cluster, Fact: &cluster.VoterRemoved{
				Node: l.Node, Member: l.Member, Why: cluster.WhyLost,
			}})
		}
	}
	for _, cmd := range cmds {
		_, err := x.Do(ctx, domain.Request{
			Command: cmd, Caller: domain.Caller{Actor: "node/" + d.id.Node.String()},
		})
		if err != nil {
			return domain.Wrap(err, "recover", cmd.CommandType())
		}
	}
	return nil
}
