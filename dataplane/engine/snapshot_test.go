package engine

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/dataplane/segment"
	"weft/domain"
)

func cutOf(t testing.TB, e *Engine, v *Volume, n int) *Volume {
	t.Helper()
	if err := e.Snapshot(background, Cut{Volume: v.ID(), Snapshot: snapID(n)}); err != nil {
		t.Fatal(err)
	}
	s, ok := e.OpenSnapshot(snapID(n))
	if !ok {
		t.Fatal("no snapshot")
	}
	return s
}

// TestSnapshot proves what a snapshot is: it holds what the volume held, takes no writes, is listed
// and described, outlives its volume and a restart; and each refusal by its kind.
func TestSnapshot(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 2)
	e := open(t, dev)
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(4) {
		if err := put(v, data(b*1024, 2, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	s := cutOf(t, e, v, 1)
	gen := s.Info().Generation
	if err := put(v, data(0, 1, 100)); err != nil {
		t.Fatal(err)
	}
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 1024, Count: 1024}); err != nil {
		t.Fatal(err)
	}
	if err := put(v, &Record{Kind: segment.KindZero, Block: 2048, Count: 1}); err != nil {
		t.Fatal(err)
	}
	look := func(e *Engine) {
		t.Helper()
		v, s := mustVolume(t, e), e.Snapshots(testVolume)[0]
		for b, want := range map[uint64][2]uint64{
			0: {100, 1}, 1: {1, 1}, 1024: {0, 2}, 1025: {0, 2}, 2048: {0, 3}, 2049: {3, 3}, 3072: {4, 4},
		} {
			check(t, v, b, want[0])
			check(t, s, b, want[1])
		}
		if got := s.Info(); got.Own != 8*segment.BlockSize || got.Shared != 0 || got.Generation != gen ||
			got.Snapshot != snapID(1) || got.ID != testVolume {
			t.Errorf("snapshot: %+v", got)
		}
		if got := v.Info(); got.Own != segment.BlockSize || got.Shared != 4*segment.BlockSize ||
			got.Mapped != 6*segment.BlockSize || got.Generation != gen+1 || !got.Snapshot.IsZero() {
			t.Errorf("volume: %+v", got)
		}
		recount(t, e)
	}
	look(e)
	kindOf(t, put(s, data(0, 1, 5)), domain.ReadOnly)
	for _, c := range []struct {
		cut  Cut
		kind domain.Kind
	}{
		{Cut{Volume: volID(9), Snapshot: snapID(2)}, domain.NotFound},
		{Cut{Volume: testVolume}, domain.Invalid},
		{Cut{Volume: testVolume, Snapshot: snapID(3), Generation: gen}, domain.Conflict},
	} {
		kindOf(t, e.Snapshot(background, c.cut), c.kind)
	}
	if err := e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}); err != nil {
		t.Errorf("again: %v", err)
	}
	other, err := e.Create(background, volID(5), 4*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	kindOf(t, e.Snapshot(background, Cut{Volume: other.ID(), Snapshot: snapID(1)}), domain.Exists)
	twice := Cut{Volume: testVolume, Snapshot: snapID(7)}
	kindOf(t, e.Snapshot(background, twice, twice), domain.Invalid)
	_, err = e.Clone(background, snapID(1), other.ID(), 1)
	kindOf(t, err, domain.Exists)
	_, err = e.Clone(background, snapID(8), volID(6), 1)
	kindOf(t, err, domain.NotFound)
	kindOf(t, e.Rollback(background, other.ID(), snapID(1)), domain.Invalid)
	kindOf(t, e.Rollback(background, testVolume, snapID(8)), domain.NotFound)
	kindOf(t, e.Rollback(background, volID(6), snapID(1)), domain.NotFound)
	if err := e.DeleteSnapshot(background, snapID(8)); err != nil {
		t.Errorf("deleting nothing: %v", err)
	}
	e.Abandon()
	e = open(t, dev)
	look(e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev)
	look(e)
	s = e.Snapshots(testVolume)[0]
	if err := e.Delete(background, testVolume); err != nil {
		t.Fatal(err)
	}
	check(t, s, 1024, 2)
	if err := e.DeleteSnapshot(background, snapID(1)); err != nil {
		t.Fatal(err)
	}
	kindOf(t, s.Read(0, 1, make([]byte, segment.BlockSize)), domain.NotFound)
	_, err = s.Allocated(0, 4096, 1)
	kindOf(t, err, domain.NotFound)
	if live := e.Stats().LiveBytes; live != 0 {
		t.Errorf("%d bytes live", live)
	}
	recount(t, e)
	e.Abandon()
}

// TestGenerations proves that every record carries the generation of its branch, that a cut raises
// it to above what was asked, and that generations rise along every line, rollbacks included.
func TestGenerations(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1), quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	var want []uint32
	write := func() {
		t.Helper()
		if err := put(v, data(1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		want = append(want, v.Info().Generation)
	}
	write()
	cutOf(t, e, v, 1)
	write()
	if err := e.Snapshot(background, Cut{testVolume, snapID(2), 40}); err != nil {
		t.Fatal(err)
	}
	write()
	if err := e.Rollback(background, testVolume, snapID(1)); err != nil {
		t.Fatal(err)
	}
	write()
	c, err := e.Clone(background, snapID(2), volID(1), 1)
	if err != nil || c.Info().Generation != 3 {
		t.Errorf("the clone of generation 2 has %d: %v", c.Info().Generation, err)
	}
	if fmt.Sprint(want) != "[1 2 41 42]" {
		t.Errorf("generations %v", want)
	}
	var got []uint32
	b := backends.AlignedBuffer(segment.Sector)
	for _, p := range logged(t, e, 0) {
		if err := e.dev.ReadAt(b, p.off); err != nil {
			t.Fatal(err)
		}
		h, entries, err := segment.DecodeChunk(b, e.super.Salt)
		if err != nil {
			t.Fatal(err)
		}
		var en segment.Entry
		if _, err := segment.DecodeEntry(entries, h.LSN, &en); err != nil {
			t.Fatal(err)
		}
		if en.Kind == segment.KindData {
			got = append(got, en.Gen)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the log has generations %v, not %v", got, want)
	}
}

// TestCutIsOneInstant writes to blocks of several lanes in turn, each record behind the outcome of
// the one before, while snapshots are cut. In no snapshot may a later record be without an earlier
// one, and what was acknowledged before the cut is there.
func TestCutIsOneInstant(t *testing.T) {
	const extents = 6
	cuts := 60
	if raceOn || testing.Short() {
		cuts = 20
	}
	e := open(t, newMem(t, 64<<20, 256<<10, 4))
	defer e.Abandon()
	v := create(t, e, 64*domain.MiB)
	var n atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(1); !stop.Load(); i++ {
			if err := put(v, data(i%extents*1024, 1, i)); err != nil {
				t.Error(err)
				return
			}
			n.Store(i)
		}
	})
	for c := range cuts {
		acked := n.Load()
		s := cutOf(t, e, v, c)
		last, held := uint64(0), map[uint64]bool{0: true}
		for x := range uint64(extents) {
			got, err := holds(s, x*1024)
			if err != nil {
				t.Fatal(err)
			}
			held[got] = true
			last = max(last, got)
		}
		for i := last; i > 0 && i+extents > last; i-- {
			if !held[i] {
				t.Fatalf("cut %d holds %d and not %d", c, last, i)
			}
		}
		if last < acked {
			t.Fatalf("cut %d holds %d, acknowledged was %d", c, last, acked)
		}
	}
	stop.Store(true)
	wg.Wait()
	recount(t, e)
}

// TestGroupCut cuts two volumes at once, whose blocks are written in turn: neither snapshot holds a
// record without the one before it in the other.
func TestGroupCut(t *testing.T) {
	e := open(t, newMem(t, 64<<20, 256<<10, 3))
	defer e.Abandon()
	var vols [2]*Volume
	for i := range vols {
		v, err := e.Create(background, volID(i), 16*domain.MiB, 1)
		if err != nil {
			t.Fatal(err)
		}
		vols[i] = v
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(1); !stop.Load(); i++ {
			if err := put(vols[i%2], data(7, 1, i)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for c := range 20 {
		err := e.Snapshot(background, Cut{Volume: volID(0), Snapshot: snapID(2 * c)},
			Cut{Volume: volID(1), Snapshot: snapID(2*c + 1)})
		if err != nil {
			t.Fatal(err)
		}
		var got [2]uint64
		for i := range got {
			s, _ := e.OpenSnapshot(snapID(2*c + i))
			if got[i], err = holds(s, 7); err != nil {
				t.Fatal(err)
			}
		}
		if d := int64(got[0]) - int64(got[1]); d != 1 && d != -1 && got[0]+got[1] > 0 {
			t.Errorf("cut %d holds %d and %d", c, got[0], got[1])
		}
	}
	stop.Store(true)
	wg.Wait()
	recount(t, e)
}

// TestLateRecord holds the write of a record back, cuts, and writes over the same block: the
// snapshot holds the first, the volume the second, in the order in which they were appended; the
// snapshot is not given out before its last record is in.
func TestLateRecord(t *testing.T) {
	inner := newMem(t, 12<<20, 256<<10, 3)
	dev := faulty.New(inner, nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal()
	v := create(t, e, 64*domain.MiB)
	ext := uint64(0)
	for v.lane(ext*1024) == e.lanes[0] {
		ext++
	}
	block, other := ext*1024, uint64(0)
	for v.lane(other) != e.lanes[0] {
		other += 1024
	}
	var released atomic.Bool
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	first := later(v, data(block, 1, 1))
	<-stall.Stalled()
	var cut sync.WaitGroup
	cut.Go(func() {
		if err := e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}); err != nil {
			t.Error(err)
		}
		if !released.Load() {
			t.Error("the snapshot was given out without its last record")
		}
	})
	for {
		if s, ok := e.snapshot(snapID(1)); ok {
			check(t, s, block, 0)
			break
		}
		runtime.Gosched()
	}
	second := later(v, data(block, 1, 2))
	for n := range uint64(50) { // enough for the call to return, if it did not wait
		if err := put(v, data(other, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	released.Store(true)
	stall.Release()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	cut.Wait()
	s, _ := e.OpenSnapshot(snapID(1))
	check(t, s, block, 1)
	check(t, v, block, 2)
	recount(t, e)
}

// TestWorkers lets everything run at once: writers, readers, who asks what is shared, cuts, clones,
// deletions, rollbacks, checkpoints and the cleaner. It proves what the race detector sees, that
// nobody waits for ever, and that the counts are right in the end.
func TestWorkers(t *testing.T) {
	rounds := 150
	if raceOn || testing.Short() {
		rounds = 40
	}
	e := open(t, newMem(t, segment.DataOff+90*(128<<10)+segment.Guard+segment.Sector, 128<<10, 3),
		often, func(c *Config) { c.Report = func(x Fact) { t.Errorf("reported %+v", x) } })
	for i := range 3 {
		if _, err := e.Create(background, volID(i), 8*domain.MiB, 1); err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	var writers, control sync.WaitGroup
	for i := range 3 {
		v, _ := e.Volume(volID(i))
		writers.Go(func() {
			rnd := newRand(uint64(i))
			for n := uint64(1); !stop.Load(); n++ {
				r := data(rnd.Uint64N(2)*1024+rnd.Uint64N(100), 1, n)
				if rnd.IntN(4) == 0 {
					r.Kind = segment.KindUnmap
				}
				if err := put(v, r); err != nil && !domain.IsKind(err, domain.NoSpace) {
					t.Error(err)
					return
				}
			}
		})
		writers.Go(func() {
			rnd := newRand(uint64(100 + i))
			for !stop.Load() {
				for _, s := range append(e.Snapshots(v.ID()), v) {
					_, err := holds(s, rnd.Uint64N(100))
					if err == nil {
						_, err = s.Sharing(background)
					}
					if err != nil && !domain.IsKind(err, domain.NotFound) {
						t.Error(err)
						return
					}
				}
			}
		})
		control.Go(func() { t.Log(shuffle(t, e, i, rounds)) })
	}
	control.Wait()
	stop.Store(true)
	writers.Wait()
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// shuffle does what changes branches to one volume, by chance.
func shuffle(t *testing.T, e *Engine, i, rounds int) string {
	rnd, n := newRand(uint64(200+i)), i*10_000
	var snaps []domain.SnapshotID
	for range rounds {
		var err error
		switch d := rnd.IntN(10); {
		case d < 4 || len(snaps) == 0:
			n++
			snaps = append(snaps, snapID(n))
			err = e.Snapshot(background, Cut{Volume: volID(i), Snapshot: snapID(n)})
		case d < 7:
			k := rnd.IntN(len(snaps))
			err = e.DeleteSnapshot(background, snaps[k])
			snaps = append(snaps[:k], snaps[k+1:]...)
		case d < 8:
			err = e.Rollback(background, volID(i), snaps[rnd.IntN(len(snaps))])
		case d < 9:
			n++
			if _, err = e.Clone(background, snaps[rnd.IntN(len(snaps))], volID(n), 1); err == nil {
				err = e.Delete(background, volID(n))
			}
		default:
			err = e.Checkpoint()
		}
		if err != nil {
			t.Error(err)
			return "failed"
		}
	}
	return fmt.Sprintf("%d ids, %d snapshots left", n-i*10_000, len(snaps))
}
