package agent

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/engine"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/command"
	"weft/domain/snapshot"
)

var (
	device2 = domain.DeviceID{UUID: domain.UUID{4}}
	vol2    = domain.VolumeID{UUID: domain.UUID{5}}
	snap1   = domain.SnapshotID{UUID: domain.UUID{31}}
	snap2   = domain.SnapshotID{UUID: domain.UUID{32}}
)

// must obeys an order that has to succeed.
func (f *fixture) must(t *testing.T, o command.Order) command.Outcome {
	t.Helper()
	out := f.agent.Obey(t.Context(), o)
	if out.Err != nil {
		t.Fatalf("%s: %v", o.Kind, out.Err)
	}
	return out
}

func cutOrder(n byte, cuts ...command.Cut) command.Order {
	return command.Order{
		ID: domain.CommandID{UUID: domain.UUID{n}}, Token: 1, Kind: command.CutSnapshots, Cuts: cuts,
	}
}

// fill writes one byte all over the first block of a served volume.
func (f *fixture) fill(t *testing.T, id domain.VolumeID, c byte) {
	t.Helper()
	s, ok := f.agent.Find(id)
	if !ok {
		t.Fatal("not served")
	}
	io := &domain.IO{Op: domain.OpWrite, Len: 4096, Buf: bytes.Repeat([]byte{c}, 4096)}
	if err := s.Disk.Do(io); err != nil {
		t.Fatal(err)
	}
}

// first gives the first byte of a volume on the first device.
func (f *fixture) first(t *testing.T, id domain.VolumeID) byte {
	t.Helper()
	v, ok := f.engine.Volume(id)
	if !ok {
		t.Fatal("no such volume")
	}
	b := make([]byte, 4096)
	if err := v.Read(0, 1, b); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// TestSnapshotOrders walks a volume through cut, clone, roll-back and deletions, each order given
// three times: with its id again, which is answered alike, and with another.
func TestSnapshotOrders(t *testing.T) {
	f := build(t)
	f.must(t, order(1, 1, command.CreateVolume))
	f.must(t, order(2, 1, command.ExportVolume))
	f.fill(t, vol, 7)
	for _, n := range []byte{3, 3, 4} {
		out := f.must(t, cutOrder(n, command.Cut{Volume: vol, Device: device, Snapshot: snap1}))
		want := command.Taken{Snapshot: snap1, Device: device, Generation: 1, Size: 8 * domain.MiB}
		if len(out.Taken) != 1 || out.Taken[0] != want || out.At.IsZero() {
			t.Fatalf("%+v", out)
		}
	}
	f.fill(t, vol, 8)
	for _, n := range []byte{5, 5, 6} {
		o := order(n, 1, command.CloneVolume)
		o.Volume, o.Snapshot, o.Size = vol2, snap1, 16*domain.MiB
		if out := f.must(t, o); out.Size != 16*domain.MiB || f.first(t, vol2) != 7 {
			t.Fatalf("%+v, %d", out, f.first(t, vol2))
		}
	}
	back := order(10, 1, command.RollbackVolume)
	back.Snapshot = snap1
	if err := f.obey(back); !domain.IsKind(err, domain.Conflict) || f.first(t, vol) != 8 {
		t.Fatalf("rolled back under its hosts: %v", err)
	}
	f.must(t, order(7, 1, command.UnexportVolume))
	for _, n := range []byte{11, 11, 12} {
		back.ID.UUID[0] = n
		if out := f.must(t, back); out.Size != 8*domain.MiB || f.first(t, vol) != 7 {
			t.Fatalf("%+v, %d", out, f.first(t, vol))
		}
	}
	f.must(t, order(13, 1, command.ExportVolume))
	f.fill(t, vol, 9)
	f.must(t, order(14, 1, command.UnexportVolume))
	f.must(t, back) // the answer to it was lost; it was obeyed long ago
	if f.first(t, vol) != 9 {
		t.Error("an order obeyed before took back what was written since")
	}
	for _, n := range []byte{15, 15, 16} {
		o := order(n, 1, command.DeleteSnapshot)
		o.Snapshot = snap1
		f.must(t, o)
	}
	if len(f.engine.AllSnapshots()) != 0 || f.first(t, vol2) != 7 {
		t.Error("the snapshot is there, or its clone is not what it was")
	}
}

// TestIdle proves that a volume which a host uses is taken from it only if the order does not ask
// for an idle one.
func TestIdle(t *testing.T) {
	f := build(t)
	f.must(t, order(1, 1, command.CreateVolume))
	f.must(t, order(2, 1, command.ExportVolume))
	f.front.hosts = 2
	o := order(3, 1, command.UnexportVolume)
	o.Idle = true
	if err := f.obey(o); !domain.IsKind(err, domain.Conflict) || len(f.front.list) != 1 {
		t.Errorf("%v, %d served", err, len(f.front.list))
	}
	a, err := f.agent.Ask(t.Context(), command.Question{Ask: command.AskVolume, Volume: vol})
	if err != nil || a.Hosts != 2 || a.Durability != "durable" || len(a.Spaces) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	f.must(t, order(4, 1, command.UnexportVolume))
	o.ID.UUID[0] = 5
	f.must(t, o)
}

// twoDevices adds a second device with a volume to a fixture.
func (f *fixture) twoDevices(t *testing.T) *engine.Engine {
	t.Helper()
	dev, err := mem.New(mem.Config{Size: 64 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	err = engine.Format(t.Context(), dev, engine.FormatOptions{
		Device: device2, SegmentSize: 256 << 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), engine.Config{Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	f.agent, err = New(Config{
		Engines: []*engine.Engine{f.engine, e}, Pool: f.pool, Tokens: f.tokens, Front: f.front,
		Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.must(t, order(1, 1, command.CreateVolume))
	f.must(t, order(2, 1, command.ExportVolume))
	for n, k := range []command.Kind{command.CreateVolume, command.ExportVolume} {
		o := order(byte(3+n), 1, k)
		o.Volume, o.Device, o.Export.Name = vol2, device2, "y"
		f.must(t, o)
	}
	return e
}

// TestCutOverDevices proves, with a host that writes to one device just after it was cut and, once
// that is acknowledged, to another before that is cut, that the second write is not in a cut
// without the first; that what an earlier try left on one device alone is taken anew; and that
// hosts go on.
func TestCutOverDevices(t *testing.T) {
	f := build(t)
	e2 := f.twoDevices(t)
	cuts := []command.Cut{ // the device that is written first is cut first: the dangerous order
		{Volume: vol, Device: device, Snapshot: snap1}, {Volume: vol2, Device: device2, Snapshot: snap2},
	}
	if err := e2.Snapshot(t.Context(), engine.Cut{Volume: vol2, Snapshot: snap2}); err != nil {
		t.Fatal(err)
	}
	f.fill(t, vol, 1)
	f.fill(t, vol2, 1)
	f.must(t, cutOrder(9, cuts...))
	if a, b := firstOf(t, f.engine, snap1), firstOf(t, e2, snap2); a != 1 || b != 1 {
		t.Fatalf("the cuts hold %d and %d: one is of an earlier try", a, b)
	}
	for n := range byte(20) {
		cuts[0].Snapshot = domain.SnapshotID{UUID: domain.UUID{100, n}}
		cuts[1].Snapshot = domain.SnapshotID{UUID: domain.UUID{101, n}}
		h := &host{Context: t.Context(), c: 2 + n}
		for _, id := range []domain.VolumeID{vol, vol2} {
			s, _ := f.agent.Find(id)
			h.disks = append(h.disks, s.Disk)
		}
		if out := f.agent.Obey(h, cutOrder(20+n, cuts...)); out.Err != nil {
			t.Fatal(out.Err)
		}
		a, b := firstOf(t, f.engine, cuts[0].Snapshot), firstOf(t, e2, cuts[1].Snapshot)
		if h.ended.Wait(); a != 1+n || b != 1+n || !h.wrote {
			t.Fatalf("the cuts hold %d and %d, the host wrote: %t", a, b, h.wrote)
		}
		if f.first(t, vol) != 2+n {
			t.Fatal("the host does not go on")
		}
	}
}

// host is a context of a cut, and a host that writes as soon as the first device is cut: to that
// one, and, once that is acknowledged, to the other.
type host struct {
	context.Context
	disks []*vdisk.Disk
	c     byte
	wrote bool
	both  atomic.Bool
	ended sync.WaitGroup
}

// Done is asked for when a cut stands in its device's log, and before the next device is cut.
func (h *host) Done() <-chan struct{} {
	if !h.wrote {
		h.wrote = true
		before := h.disks[0].Delayed()
		h.ended.Add(1)
		h.write(0)
		// A write that is let in ends before the other device is cut; one that is held back does not.
		for h.disks[0].Delayed() == before && !h.both.Load() {
			runtime.Gosched()
		}
	}
	return h.Context.Done()
}

func (h *host) write(i int) {
	h.disks[i].Submit(&domain.IO{
		Op: domain.OpWrite, Len: 4096, Buf: bytes.Repeat([]byte{h.c}, 4096), To: next{h, i},
	})
}

type next struct {
	h *host
	i int
}

// Complete writes to the next disk, on another goroutine, as a host would.
func (n next) Complete(*domain.IO) {
	if n.i+1 < len(n.h.disks) {
		go n.h.write(n.i + 1)
		return
	}
	n.h.both.Store(true)
	n.h.ended.Done()
}

func firstOf(t *testing.T, e *engine.Engine, id domain.SnapshotID) byte {
	t.Helper()
	s, ok := e.OpenSnapshot(id)
	if !ok {
		t.Fatal("no such snapshot")
	}
	b := make([]byte, 4096)
	if err := s.Read(0, 1, b); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// TestScheduledGoWithVolume proves that the cuts of schedules go with their volume, and what was
// asked for by name does not.
func TestScheduledGoWithVolume(t *testing.T) {
	f := build(t)
	f.must(t, order(1, 1, command.CreateVolume))
	timed := snapshot.Scheduled{Every: time.Hour, Tick: time.Unix(3600, 0)}.ID(vol)
	for n, id := range []domain.SnapshotID{timed, snap1} {
		f.must(t, cutOrder(byte(2+n), command.Cut{Volume: vol, Device: device, Snapshot: id}))
	}
	f.must(t, order(5, 1, command.DeleteVolume))
	list := f.engine.AllSnapshots()
	if len(list) != 1 || list[0].Snapshot() != snap1 {
		t.Errorf("%d snapshots are left", len(list))
	}
}

// TestAsk proves what a node tells of its snapshots, page by page, and of ranges; and the kinds of
// what it cannot tell.
func TestAsk(t *testing.T) {
	f := build(t)
	f.must(t, order(1, 1, command.CreateVolume))
	f.must(t, order(2, 1, command.ExportVolume))
	f.fill(t, vol, 1)
	f.must(t, cutOrder(3, command.Cut{Volume: vol, Device: device, Snapshot: snap1}))
	f.must(t, cutOrder(4, command.Cut{Volume: vol, Device: device, Snapshot: snap2}))
	ask := func(q command.Question) (command.Answer, error) { return f.agent.Ask(t.Context(), q) }
	all, err := ask(command.Question{Ask: command.AskSnapshots})
	if err != nil || len(all.Spaces) != 2 || all.Spaces[0].Snapshot != snap1 || all.More ||
		all.Spaces[0].Own != 4096 || all.Spaces[1].Shared != 4096 {
		t.Errorf("%+v, %v", all, err)
	}
	rest, err := ask(command.Question{Ask: command.AskSnapshots, After: snap1})
	if err != nil || len(rest.Spaces) != 1 || rest.Spaces[0].Snapshot != snap2 {
		t.Errorf("%+v, %v", rest, err)
	}
	none, err := ask(command.Question{Ask: command.AskSnapshots, Volumes: []domain.VolumeID{vol2}})
	if err != nil || len(none.Spaces) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
	there, err := ask(command.Question{Ask: command.AskAllocated, Snapshot: snap1})
	want := []domain.Extent{{Len: 4096}}
	if err != nil || !slices.Equal(there.Ranges, want) || there.Next != -1 ||
		there.Size != 8*domain.MiB {
		t.Errorf("%+v, %v", there, err)
	}
	f.fill(t, vol, 2)
	for snap, want := range map[domain.SnapshotID][2]domain.Bytes{
		snap1: {0, 4096}, {}: {4096, 0},
	} {
		got, err := ask(command.Question{Ask: command.AskSharing, Volume: vol, Snapshot: snap})
		if err != nil || [2]domain.Bytes{got.Exclusive, got.Common} != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	same, err := ask(command.Question{Ask: command.AskChanged, Snapshot: snap2, Since: snap1})
	if err != nil || len(same.Ranges) != 0 {
		t.Errorf("%+v, %v", same, err)
	}
	for _, c := range []struct {
		q    command.Question
		kind domain.Kind
	}{
		{command.Question{}, domain.Unsupported},
		{command.Question{Ask: command.AskVolume, Volume: vol2}, domain.NotFound},
		{command.Question{Ask: command.AskAllocated, Volume: vol2}, domain.NotFound},
		{command.Question{Ask: command.AskSharing, Volume: vol2}, domain.NotFound},
		{command.Question{Ask: command.AskChanged, Volume: vol, Since: snapOther}, domain.Invalid},
		{command.Question{Ask: command.AskAllocated, Volume: vol, From: 5}, domain.OutOfRange},
	} {
		if _, err := ask(c.q); !domain.IsKind(err, c.kind) {
			t.Errorf("%+v: %v, want %s", c.q, err, c.kind)
		}
	}
}

var snapOther = domain.SnapshotID{UUID: domain.UUID{99}}
