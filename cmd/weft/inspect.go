package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"weft/adapters/cli"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// reader is a device opened for reading alone. It ends being read when its user gives up.
type reader struct {
	file *os.File
	ctx  context.Context
}

// ReadAt implements fsck.Reader.
func (r reader) ReadAt(p []byte, off int64) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	_, err := r.file.ReadAt(p, off)
	return err
}

// checkDevice is `weft fsck` and `weft inspect`. The device is opened for reading alone, and held
// against other processes meanwhile.
func checkDevice(ctx context.Context, path string, data bool, say func(string)) (
	cli.DeviceCheck, error,
) {
	f, err := os.Open(path)
	if err != nil {
		return cli.DeviceCheck{}, domain.Wrap(asDomain(err), "fsck", path)
	}
	defer func() { _ = f.Close() }() // nothing was written
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return cli.DeviceCheck{}, &domain.Error{
			Op: "fsck", Kind: domain.Locked, Ref: path, Msg: "another process uses the device",
			Remedy: "stop the node first; while it runs: weft node scrub start",
		}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return cli.DeviceCheck{}, domain.Wrap(asDomain(err), "fsck", path)
	}
	r, err := fsck.Check(reader{f, ctx}, size, fsck.Options{
		Data: data, Progress: func(done, total int64) {
			say(fmt.Sprintf("%s of %s read", domain.Bytes(done), domain.Bytes(total)))
		},
	})
	if err != nil {
		return cli.DeviceCheck{}, domain.Wrap(err, "", path)
	}
	if ctx.Err() != nil {
		return cli.DeviceCheck{}, &domain.Error{Op: "fsck", Kind: domain.Aborted, Err: ctx.Err()}
	}
	return checkDoc(path, r), nil
}

func checkDoc(path string, r *fsck.Report) cli.DeviceCheck {
	d := cli.DeviceCheck{
		Path: path, Device: r.Super.Device.String(), Cluster: r.Super.Cluster.String(),
		Node: r.Super.Node.String(), Size: domain.Bytes(r.Super.Size),
		Segment: domain.Bytes(r.Super.SegmentSize), Lanes: int(r.Super.Lanes), Anchor: r.Anchor.Seq,
		Clean: r.Anchor.Clean, Replayed: r.Replayed, Live: domain.Bytes(r.Live),
		Garbage: domain.Bytes(r.Garbage), Read: domain.Bytes(r.Read), Sound: r.Sound(),
		Problems: []cli.DeviceProblem{},
	}
	id := func(u domain.UUID) string {
		if u.IsZero() {
			return ""
		}
		return u.String()
	}
	for _, p := range r.Problems {
		d.Problems = append(d.Problems, cli.DeviceProblem{
			Part: p.Part, Offset: p.Off, Segment: p.Segment, Volume: id(p.Volume.UUID),
			Snapshot: id(p.Snapshot.UUID), Block: p.Block, Version: p.Version, Detail: p.Detail,
		})
	}
	for _, b := range r.Branches {
		x := cli.DeviceBranch{
			ID: b.ID, Parent: b.Parent, Family: b.Family, State: "kept", Generation: b.Gen,
			Size: domain.Bytes(b.Size), Own: domain.Bytes(b.Own), Sees: domain.Bytes(b.Sees),
			Volume: id(b.Volume.UUID), Snapshot: id(b.Snapshot.UUID),
		}
		switch {
		case b.Named && b.State == segment.BranchLive:
			x.State = "volume"
		case b.Named:
			x.State = "snapshot"
		}
		d.Branches = append(d.Branches, x)
	}
	for _, s := range r.Segments {
		d.Segments = append(d.Segments, cli.DeviceSegment{
			ID: s.ID, Offset: s.Off, Sequence: s.Sequence, Stream: s.Stream, Lane: int(s.Lane),
			Footer: s.Footer, Chunks: s.Chunks, Live: domain.Bytes(s.Live),
			Metadata: domain.Bytes(s.Metadata),
		})
	}
	return d
}
