package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
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
	"weft/eventstore/vault"
)

// restore makes an empty data folder the first node of a cluster whose log goes on where a backup
// ends. The folder is a node's once node.json stands, which is last: a restore that was cut short
// is begun again.
func restore(ctx context.Context, o cli.RestoreOptions) (cli.Restored, error) {
	path, err := filepath.Abs(o.DataDir)
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
	folder := archive.Folder{Dir: o.From}
	o.Progress("checking every record of the backup")
	id, head, err := folder.Verify(ctx)
	if err != nil {
		return cli.Restored{}, err
	}
	for _, old := range []string{"log", "tls"} { // of a restore that was cut short
		if err := os.RemoveAll(d.file(old)); err != nil {
			return cli.Restored{}, asDomain(err)
		}
	}
	d.id = nodeIdentity{
		Cluster: domain.ClusterID{UUID: id}, Node: domain.NodeID{UUID: randomUUID()}, Name: o.Name,
		Alone: true,
	}
	if d.id.Name == "" {
		d.id.Name = hostname()
	}
	o.Progress("writing the event log")
	to := head.Position.Timeline() + 1
	done := cli.Restored{
		DataDir: path, Cluster: id.String(), Position: head.Position.String(),
		Hash: hex.EncodeToString(head.Hash[:]), Timeline: uint16(to), Node: d.id.Name,
	}
	err = d.restoreLog(ctx, folder, head, to, func(s *quorum.Store) (err error) {
		if o.KeysFile != "" {
			o.Progress("opening the keys")
			done.Keys, err = d.restoreKeys(ctx, s, o)
		}
		return err
	})
	if err != nil {
		return cli.Restored{}, err
	}
	return done, d.save()
}

// restoreKeys stores the keys of users' names, wrapped under the authority of the new cluster.
func (d *dataDir) restoreKeys(
	ctx context.Context, s *quorum.Store, o cli.RestoreOptions,
) (int, error) {
	f, err := os.Open(o.KeysFile)
	if err != nil {
		return 0, asDomain(err)
	}
	bundle, err := io.ReadAll(io.LimitReader(f, vault.BundleMax+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, asDomain(err)
	}
	ca, err := d.newIdentity()
	if err != nil {
		return 0, err
	}
	return vault.Unpack(ctx, s.Secrets(), ca.Key, d.id.Cluster, bundle, o.Passphrase)
}

// restoreLog writes the log, records what happened, and lets the new node in by a token that it
// makes itself. It keeps the node's number. With is called with the log as the backup has it.
func (d *dataDir) restoreLog(
	ctx context.Context, f archive.Folder, head eventstore.Head, to domain.Timeline,
	with func(*quorum.Store) error,
) (err error) {
	s, err := quorum.Open(ctx, quorum.Config{
		Dir: d.file("log"), ClusterID: d.id.Cluster, Name: d.id.Node.String(),
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}()
	if err := s.Import(ctx, f.Source(ctx), to); err != nil {
		return damaged(err)
	}
	if err := with(s); err != nil {
		return err
	}
	c, err := newCodec(nil)
	if err != nil {
		return err
	}
	x, err := newExecutor(s, c)
	if err != nil {
		return err
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
			return domain.Wrap(err, "restore", cmd.CommandType())
		}
		for _, ev := range res.Events {
			if used, ok := ev.(*cluster.JoinTokenUsed); ok {
				d.id.Number = used.Number
			}
		}
	}
	return nil
}
