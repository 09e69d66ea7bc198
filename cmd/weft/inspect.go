package main

import (
	"context"
	"errors"
	"fmt"

	"weft/adapters/cli"
	"weft/backends"
	"weft/backends/nvram"
	"weft/dataplane/fsck"
	"weft/dataplane/journal"
	"weft/dataplane/segment"
	"weft/domain"
)

// checkDevice is `weft fsck` and `weft inspect`. The device is opened for reading alone, and held
// against other processes meanwhile.
func checkDevice(ctx context.Context, path string, data bool, say func(string)) (
	cli.DeviceCheck, error,
) {
	dev, err := openReading(ctx, path)
	if err != nil {
		return cli.DeviceCheck{}, domain.Wrap(err, "fsck", path)
	}
	defer func() { _ = dev.Close() }() // nothing was written
	g := dev.Geometry()
	r, err := fsck.Check(dev, g.Size, fsck.Options{
		Data: data, Boundary: g.Boundary, Progress: func(done, total int64) {
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
		Saved: domain.Bytes(r.Saved), Garbage: domain.Bytes(r.Garbage), Read: domain.Bytes(r.Read),
		Sound: r.Sound(), Problems: problemDocs(r.Problems), Held: r.Held,
		HeldOnly: domain.Bytes(r.HeldBytes), Journaled: domain.Bytes(r.Journaled),
	}
	if r.Anchor.Journal != 0 {
		d.Journal = fmt.Sprintf("%016x", r.Anchor.Journal)
	}
	for _, b := range r.Branches {
		x := cli.DeviceBranch{
			ID: b.ID, Parent: b.Parent, Family: b.Family, State: "kept", Generation: b.Gen,
			Size: domain.Bytes(b.Size), Own: domain.Bytes(b.Own), Sees: domain.Bytes(b.Sees),
			Volume: idText(b.Volume.UUID), Snapshot: idText(b.Snapshot.UUID),
		}
		switch {
		case b.Named && b.Replica:
			x.State = "replica"
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

func problemDocs(list []fsck.Problem) []cli.DeviceProblem {
	docs := []cli.DeviceProblem{}
	for _, p := range list {
		docs = append(docs, cli.DeviceProblem{
			Part: p.Part, Offset: p.Off, Segment: p.Segment, Volume: idText(p.Volume.UUID),
			Snapshot: idText(p.Snapshot.UUID), Block: p.Block, Version: p.Version, Detail: p.Detail,
		})
	}
	return docs
}

// idText is empty for no id.
func idText(u domain.UUID) string {
	if u.IsZero() {
		return ""
	}
	return u.String()
}

// inspectJournal is `weft inspect journal`.
func inspectJournal(path string) (cli.JournalCheck, error) {
	const op = "inspect"
	mapped, err := nvram.OpenReading(path)
	switch {
	case errors.Is(err, backends.ErrLocked):
		return cli.JournalCheck{}, &domain.Error{
			Op: op, Kind: domain.Locked, Ref: path, Msg: "another process uses the NVRAM",
			Remedy: "stop the node first",
		}
	case errors.Is(err, nvram.ErrKind):
		return cli.JournalCheck{}, &domain.Error{
			Op: op, Kind: domain.Invalid, Ref: path, Msg: "it is neither a file nor a device-dax",
			Remedy: "name what was given to weft serve --nvram, without the size; of a disk: weft inspect " +
				"device " + path,
		}
	case err != nil:
		return cli.JournalCheck{}, domain.Wrap(deviceError(err), op, path)
	}
	defer func() { _ = mapped.Close() }() // it was a view
	c, err := journal.Inspect(mapped)
	if err != nil {
		return cli.JournalCheck{}, domain.Wrap(err, op, path)
	}
	return journalDoc(path, c), nil
}

func journalDoc(path string, c journal.Contents) cli.JournalCheck {
	j := cli.JournalCheck{
		Path: path, Cluster: c.Cluster.String(), Node: c.Node.String(), Size: domain.Bytes(c.Size),
		Shares: []cli.JournalShare{},
	}
	for _, s := range c.Shares {
		d := cli.JournalShare{
			Device: s.Device.String(), Offset: s.Offset, Size: domain.Bytes(s.Size),
			Incarnation: s.Incarnation, Slots: s.Slots, Problems: []string{}, Used: []cli.JournalSlot{},
		}
		if s.ID != 0 {
			d.ID = fmt.Sprintf("%016x", s.ID)
		}
		if s.Problem != "" {
			d.Problems = append(d.Problems, s.Problem)
		}
		for _, x := range s.Used {
			data := domain.Bytes(x.Blocks) * segment.BlockSize
			d.Records += x.Records
			d.Data += data
			d.Problems = append(d.Problems, x.Damaged...)
			d.Used = append(d.Used, cli.JournalSlot{
				Slot: x.No, Lane: int(x.Lane), Sequence: x.Sequence, Sealed: x.Sealed, Records: x.Records,
				Data: data, Outdone: x.Outdone,
			})
		}
		j.Shares = append(j.Shares, d)
	}
	return j
}
