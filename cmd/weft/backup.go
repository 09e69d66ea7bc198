package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"iter"

	"weft/adapters/cli"
	"weft/adapters/client"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
)

// backup brings a folder up to a running node's log.
func backup(
	ctx context.Context, c *client.Client, dir string, progress func(domain.Position),
) (cli.Backup, error) {
	h, err := c.Health(ctx)
	if err != nil {
		return cli.Backup{}, err
	}
	cluster, err := domain.ParseUUID(h.Value.Cluster)
	if err != nil {
		return cli.Backup{}, err
	}
	w, err := archive.Folder{Dir: dir}.Write(ctx, cluster, exported(c), progress)
	if err != nil {
		return cli.Backup{}, err
	}
	return cli.Backup{
		Dir: dir, Cluster: cluster.String(), Position: w.Head.Position.String(),
		Hash: hex.EncodeToString(w.Head.Hash[:]), Events: w.Events, Written: w.Files, Kept: w.Kept,
	}, nil
}

// verifyBackup reads a whole folder of segments.
func verifyBackup(ctx context.Context, dir string) (cli.Backup, error) {
	n := 0
	var cluster domain.UUID
	at, err := archive.Folder{Dir: dir}.Read(ctx, func(c domain.UUID, _ eventstore.Recorded) error {
		cluster = c
		n++
		return nil
	})
	return cli.Backup{
		Dir: dir, Cluster: cluster.String(), Position: at.Position.String(),
		Hash: hex.EncodeToString(at.Hash[:]), Events: n,
	}, err
}

// exported reads a log through the API, and verifies each record.
func exported(c *client.Client) archive.Source {
	return func(ctx context.Context, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
		return func(yield func(eventstore.Recorded, error) bool) {
			body, err := c.Export(ctx, after)
			if err != nil {
				yield(eventstore.Recorded{}, err)
				return
			}
			defer func() { _ = body.Close() }()
			in := bufio.NewReaderSize(body, 256<<10)
			last := after
			for {
				r, end, err := nextExported(in, last)
				if err == nil && end {
					return
				}
				if !yield(r, err) || err != nil {
					return
				}
				last = r.Position
			}
		}
	}
}

// The frame of an export: every record, and the end, begin with a magic and their length.
const (
	frameHead = 8
	endMagic  = "WEND"
	endSize   = 16
)

// nextExported reads one record, or the end, which must name the last record.
func nextExported(in io.Reader, last domain.Position) (r eventstore.Recorded, end bool, err error) {
	cut := func(err error) error {
		return &domain.Error{
			Kind: domain.Unavailable, Msg: "the node ended the export before the end of its log",
			Err: err, Remedy: "try again; weft events verify tells whether the log is damaged",
		}
	}
	b := make([]byte, frameHead)
	if _, err := io.ReadFull(in, b); err != nil {
		return r, false, cut(err)
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n < frameHead || n > eventstore.AppendMax {
		return r, false, domain.Errorf(domain.Corrupt, "the export holds a record of %d bytes", n)
	}
	b = append(b, make([]byte, n-frameHead)...)
	if _, err := io.ReadFull(in, b[frameHead:]); err != nil {
		return r, false, cut(err)
	}
	at := domain.Position(0)
	if string(b[:4]) == endMagic && n == endSize {
		at = domain.Position(binary.LittleEndian.Uint64(b[frameHead:]))
		if at != last {
			return r, false, cut(errors.New("it says that it ends elsewhere"))
		}
		return r, true, nil
	}
	const position = 16 // where a record holds its own
	if len(b) >= position+8 {
		at = domain.Position(binary.LittleEndian.Uint64(b[position:]))
	}
	r, err = eventstore.DecodeRecord(at, b)
	return r, false, err
}
