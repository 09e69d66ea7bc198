package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"weft/adapters/cli"
	"weft/backends"
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
		Sound: r.Sound(), Problems: []cli.DeviceProblem{}, Held: r.Held,
		HeldOnly: domain.Bytes(r.HeldBytes), Journaled: domain.Bytes(r.Journaled),
	}
	if r.Anchor.Journal != 0 {
		d.Journal = fmt.Sprintf("%016x", r.Anchor.Journal)
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

// frozen is a file's bytes in memory of this process alone: what is stored there goes nowhere.
type frozen struct {
	path string
	mem  []byte
}

// Geometry implements backends.ByteDevice.
func (f frozen) Geometry() backends.Geometry {
	return backends.Geometry{Size: int64(len(f.mem)), Path: f.path}
}

// Bytes implements backends.ByteDevice.
func (f frozen) Bytes() []byte { return f.mem }

// Persist implements backends.ByteDevice.
func (frozen) Persist(int64, int64) {}

// Close implements backends.ByteDevice.
func (f frozen) Close() error { return unix.Munmap(f.mem) }

// inspectJournal is `weft inspect journal`.
func inspectJournal(path string) (cli.JournalCheck, error) {
	const op = "inspect"
	file, err := os.Open(path)
	if err != nil {
		return cli.JournalCheck{}, domain.Wrap(asDomain(err), op, path)
	}
	defer func() { _ = file.Close() }() // nothing was written
	if err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return cli.JournalCheck{}, &domain.Error{
			Op: op, Kind: domain.Locked, Ref: path, Msg: "another process uses the NVRAM",
			Remedy: "stop the node first",
		}
	}
	st, err := file.Stat()
	if err != nil {
		return cli.JournalCheck{}, domain.Wrap(asDomain(err), op, path)
	}
	if st.Size() == 0 || !st.Mode().IsRegular() {
		return cli.JournalCheck{}, domain.Errorf(domain.NotFound, "%s: no NVRAM of a node is there", path)
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE)
	if err != nil {
		return cli.JournalCheck{}, domain.Wrap(asDomain(err), op, path)
	}
	f := frozen{path, mem}
	defer func() { _ = f.Close() }() // it was a view
	c, err := journal.Inspect(f)
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
