package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"weft/dataplane/engine"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/command"
)

// writer is a host that writes and reads back some blocks of a disk for as long as it is let.
type writer struct {
	disk  *vdisk.Disk
	first int64
	has   [16]uint64
	ops   atomic.Int64
	err   error
}

func (w *writer) run(stop *atomic.Bool) {
	rnd := rand.New(rand.NewPCG(uint64(w.first), 1))
	buf := make([]byte, 4096)
	for n := uint64(1); !stop.Load() && w.err == nil; n++ {
		i := rnd.IntN(len(w.has))
		w.check(i, buf)
		for at := 0; at < len(buf); at += 8 {
			binary.LittleEndian.PutUint64(buf[at:], n<<8|uint64(i))
		}
		io := &domain.IO{Op: domain.OpWrite, Off: (w.first + int64(i)) * 4096, Len: 4096, Buf: buf}
		if n%5 == 0 { // below a block: read, laid over, written
			io.Off, io.Len = io.Off+512, 512
			if err := w.disk.Do(io); err != nil {
				w.err = err
			}
			io.Off, io.Len = io.Off-512, 4096
		}
		if err := w.disk.Do(io); err != nil {
			w.err = err
			return
		}
		w.has[i] = n<<8 | uint64(i)
		w.ops.Add(1)
	}
}

func (w *writer) check(i int, buf []byte) {
	io := &domain.IO{Op: domain.OpRead, Off: (w.first + int64(i)) * 4096, Len: 4096, Buf: buf}
	if err := w.disk.Do(io); err != nil {
		w.err = err
		return
	}
	want := make([]byte, 4096)
	for at := 0; at < len(want); at += 8 {
		binary.LittleEndian.PutUint64(want[at:], w.has[i])
	}
	if !bytes.Equal(buf, want) {
		w.err = errors.New("a block is not what was written last")
	}
}

// TestMigrate takes a volume with a snapshot and a clone from device to device and back, with hosts
// that write and read all the while: no request fails, every byte is what was written last, the
// disks stay the same, and orders that name the device of before are obeyed.
func TestMigrate(t *testing.T) {
	f := build(t)
	e2 := f.twoDevices(t)
	f.fill(t, vol, 3)
	f.must(t, cutOrder(9, command.Cut{Volume: vol, Device: device, Snapshot: snap1}))
	clone := domain.VolumeID{UUID: domain.UUID{77}}
	o := order(10, 1, command.CloneVolume)
	o.Volume, o.Snapshot = clone, snap1
	f.must(t, o)
	o = order(11, 1, command.ExportVolume)
	o.Volume, o.Export.Name = clone, "z"
	f.must(t, o)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var hosts []*writer
	for i, id := range []domain.VolumeID{vol, clone, vol, clone} {
		s, _ := f.agent.Find(id)
		w := &writer{disk: s.Disk, first: int64(64 + 1024*(i/2))}
		hosts = append(hosts, w)
		wg.Go(func() { w.run(&stop) })
	}
	on := []*engine.Engine{f.engine, e2}
	ids := []domain.DeviceID{device, device2}
	for round := range 4 {
		for _, w := range hosts { // all of them are at work
			for had := w.ops.Load(); w.ops.Load() < had+20 && w.err == nil; {
				runtime.Gosched()
			}
		}
		from, to := on[round%2], on[1-round%2]
		for _, fam := range from.Families() {
			if len(fam.Volumes) < 2 {
				continue
			}
			n, moved, err := f.agent.Migrate(t.Context(), ids[round%2], ids[1-round%2], fam.ID, nil, nil)
			if err != nil || !moved || n == 0 {
				t.Fatalf("%v, moved: %t, %s", err, moved, n)
			}
		}
		if _, there := from.Volume(vol); there {
			t.Fatal("the source shows the volume")
		}
		if firstOf(t, to, snap1) != 3 {
			t.Fatal("the snapshot is another one")
		}
	}
	if s, _ := f.agent.Find(vol); s.Disk != hosts[0].disk {
		t.Error("the disk is another one")
	}
	_, _, err := f.agent.Migrate(t.Context(), device, device2, f.engine.Families()[0].ID, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop.Store(true)
	wg.Wait()
	for _, w := range hosts {
		if w.err != nil {
			t.Fatal(w.err)
		}
		for i := range w.has {
			w.check(i, make([]byte, 4096))
		}
		if w.err != nil {
			t.Fatal(w.err)
		}
	}
	// All stands on the second device now, and these name the first.
	out := f.must(t, cutOrder(20, command.Cut{Volume: vol, Device: device, Snapshot: snap2}))
	if out.Taken[0].Device != device2 {
		t.Errorf("cut on %s", out.Taken[0].Device)
	}
	f.must(t, order(21, 1, command.CreateVolume)) // it is there
	o = order(22, 1, command.DeleteSnapshot)
	o.Snapshot = snap1
	f.must(t, o)
	f.must(t, order(23, 1, command.DeleteVolume))
	if len(f.engine.Volumes()) > 0 || len(e2.Volumes()) != 2 || len(e2.AllSnapshots()) != 1 {
		t.Errorf("%d and %d volumes", len(f.engine.Volumes()), len(e2.Volumes()))
	}
	if err := f.agent.Detach(device); err != nil {
		t.Error(err)
	}
}

// TestMigrateGivenUp proves that a migration which fails, or is ended, leaves the volume where it
// is and in use, and the target as it was.
func TestMigrateGivenUp(t *testing.T) {
	f := build(t)
	e2 := f.twoDevices(t)
	f.fill(t, vol, 3)
	enough := errors.New("enough")
	fail := func(context.Context, int64) error { return enough }
	id := f.engine.Families()[0].ID
	_, moved, err := f.agent.Migrate(t.Context(), device, device2, id, fail, nil)
	if !errors.Is(err, enough) || moved || f.first(t, vol) != 3 || e2.Hidden() > 0 {
		t.Fatalf("%v, moved: %t", err, moved)
	}
	f.fill(t, vol, 4)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, moved, err = f.agent.Migrate(ended, device, device2, id, nil, nil)
	if !domain.IsKind(err, domain.Aborted) || moved || f.first(t, vol) != 4 || e2.Hidden() > 0 {
		t.Fatalf("%v, moved: %t", err, moved)
	}
}
