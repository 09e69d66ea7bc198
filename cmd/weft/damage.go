package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"weft/adapters/client"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/quorum"
)

// damaged names the position of a damaged record to whoever meets it. Other errors pass.
func damaged(err error) error {
	var bad *eventstore.CorruptError
	if !errors.As(err, &bad) {
		return err
	}
	return &domain.Error{
		Kind: domain.Corrupt, Ref: "event/" + bad.Position.String(),
		Msg:    "the event log is damaged at " + bad.Error(),
		Remedy: "weft events verify --offline tells how far it is sound; " + onlyCopy,
	}
}

// verifyLog checks the event log of a stopped node. It changes nothing and takes the folder's lock.
func verifyLog(ctx context.Context, dir string) (client.Verdict, error) {
	lock, err := os.Open(filepath.Join(dir, "LOCK"))
	if err != nil {
		return client.Verdict{}, &domain.Error{
			Kind: domain.NotFound, Ref: dir, Msg: "this folder holds no node",
			Remedy: "name the node's folder with --data-dir",
		}
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return client.Verdict{}, &domain.Error{
			Kind: domain.Locked, Ref: dir, Msg: "a node runs on this folder",
			Remedy: "weft events verify without --offline asks it",
		}
	}
	var id nodeIdentity
	b, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		return client.Verdict{}, domain.Errorf(domain.Corrupt, "node.json is damaged: %v", err)
	}
	if len(id.Members) > 0 {
		return client.Verdict{}, &domain.Error{
			Kind: domain.Unsupported, Ref: dir,
			Msg:    "the event log is kept by several nodes; one that is stopped cannot read it alone",
			Remedy: "start the node and use weft events verify without --offline",
		}
	}
	s, err := quorum.Open(ctx, quorum.Config{
		Dir: filepath.Join(dir, "log"), ClusterID: id.Cluster, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return client.Verdict{}, damaged(err)
	}
	defer func() { _ = s.Close() }()
	var checked domain.Position
	err = s.Verify(ctx, func(p domain.Position) { checked = p })
	v := client.Verdict{Sound: err == nil, Checked: checked.String()}
	var bad *eventstore.CorruptError
	if errors.As(err, &bad) {
		v.Bad, v.Why, v.Node = bad.Position.String(), bad.Error(), id.Name
		v.Remedy = onlyCopy
		var found *quorum.FoundError
		if errors.As(err, &found) {
			v.Part = string(found.Part)
		}
		err = nil
	}
	return v, err
}
