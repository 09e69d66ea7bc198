package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"weft/adapters/cli"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/quorum"
)

// restore makes an empty data folder the first node of a cluster whose log goes on where a backup
// ends. The folder is a node's once node.json stands, which is last: a restore that was cut short
// is begun again.
func restore(
	ctx context.Context, from, dataDir, name string, progress func(string),
) (cli.Restored, error) {
	path, err := filepath.Abs(dataDir)
	if err != nil {
		return cli.Restored{}, asDomain(err)
	}
	d, unlock, err := openDataDir(path)
	if err != nil {
		return cli.Restored{}, err
	}
	defer unlock()
	if !d.isNew() {
		return cli.Restored{}, &domain.Error{
			Kind: domain.Exists, Ref: path, Msg: "this folder holds a node",
			Remedy: "restore into an empty --data-dir",
		}
	}
	folder := archive.Folder{Dir: from}
	progress("checking every record of the backup")
	id, head, err := folder.Verify(ctx)
	if err != nil {
		return cli.Restored{}, err
	}
	if err := os.RemoveAll(d.file("log")); err != nil { // of a restore that was cut short
		return cli.Restored{}, asDomain(err)
	}
	d.id = nodeIdentity{
		Cluster: domain.ClusterID{UUID: id}, Node: domain.NodeID{UUID: randomUUID()}, Name: name,
		Alone: true,
	}
	if d.id.Name == "" {
		d.id.Name = hostname()
	}
	progress("writing the event log")
	to := head.Position.Timeline() + 1
	if d.id.Number, err = restoreLog(ctx, folder, d, head, to); err != nil {
		return cli.Restored{}, err
	}
	return cli.Restored{
		DataDir: path, Cluster: id.String(), Position: head.Position.String(),
		Hash: hex.EncodeToString(head.Hash[:]), Timeline: uint16(to), Node: d.id.Name,
	}, d.save()
}

// restoreLog writes the log, records what happened, and lets the new node in by a token that it
// makes itself. It gives the node's number.
func restoreLog(
	ctx context.Context, f archive.Folder, d *dataDir, head eventstore.Head, to domain.Timeline,
) (number domain.NodeNumber, err error) {
	s, err := quorum.Open(ctx, quorum.Config{
		Dir: d.file("log"), ClusterID: d.id.Cluster, Name: d.id.Node.String(),
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}()
	if err := s.Import(ctx, f.Source(ctx), to); err != nil {
		return 0, damaged(err)
	}
	c, err := newCodec(nil)
	if err != nil {
		return 0, err
	}
	x, err := newExecutor(s, c)
	if err != nil {
		return 0, err
	}
	secret, token := randomUUID(), randomUUID()
	hash, now := sha256.Sum256(secret[:]), time.Now()
	for _, cmd := range []domain.Command{
		cluster.RecordRestore{
			Cluster: d.id.Cluster, To: to,
			LogRestored: cluster.LogRestored{From: head.Position, Hash: head.Hash[:]},
		},
		cluster.IssueToken{Cluster: d.id.Cluster, JoinTokenIssued: cluster.JoinTokenIssued{
			Token: token, Hash: hash[:], Uses: 1, Expires: now.Add(time.Hour).UTC().Truncate(time.Second),
		}},
		cluster.UseToken{
			Cluster: d.id.Cluster, Token: token, Hash: hash[:], Node: d.id.Node, Now: now,
		},
	} {
		res, err := x.Do(ctx, domain.Request{
			Command: cmd, Caller: domain.Caller{Actor: "node/" + d.id.Node.String()},
		})
		if err != nil {
			return 0, domain.Wrap(err, "restore", cmd.CommandType())
		}
		for _, ev := range res.Events {
			if used, ok := ev.(*cluster.JoinTokenUsed); ok {
				number = used.Number
			}
		}
	}
	return number, nil
}
