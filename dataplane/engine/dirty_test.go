package engine

import (
	"runtime"
	"slices"
	"testing"

	"weft/backends/faulty"
	"weft/dataplane/segment"
	"weft/domain"
)

// The tests of what a member that is away may lack (C11).

// dirtied gives the first blocks of the grains that are marked for a member.
func dirtied(t testing.TB, p *Replica, slice uint32, member domain.NodeNumber) []uint64 {
	t.Helper()
	grains, away := p.Dirty(slice, member)
	if !away {
		t.Fatalf("member %d is not away", member)
	}
	var list []uint64
	for g := range uint64(segment.SliceGrains) {
		if grains[g/64]>>(g%64)&1 != 0 {
			list = append(list, uint64(slice)*segment.SliceBlocks+g*segment.GrainBlocks)
		}
	}
	return list
}

func away(t testing.TB, p *Replica, slice uint32, member domain.NodeNumber) {
	t.Helper()
	if err := p.Away(background, slice, member); err != nil {
		t.Fatal(err)
	}
}

// TestC11EveryAppendMarks proves that whatever is accepted while a member is away marks its grains,
// whatever became of it: applied, superseded, mixed, a duplicate that is held or below the floor, a
// range, and copies of all kinds, those that change nothing among them; nothing else does, and no
// other slice minds; and that this is so behind crashes with and without a checkpoint.
func TestC11EveryAppendMarks(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		dev := crashDevice(t, 60, 2)
		e := open(t, dev, quiet)
		p := replicaOn(t, e)
		const far = 5 * segment.LeafBlocks
		giving(t, p, 0, 1, 10, Applied)
		giving(t, p, 32, 1, 50, Applied)
		giving(t, p, 64, 1, 51, Applied)
		p.SetFloor(0, at(60))
		e.Retire(3, 4, 40)
		if err := e.Checkpoint(); err != nil { // what comes before it is not in the log any more
			t.Fatal(err)
		}
		if err := p.Away(background, 0, 0); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("member 0: %v", err)
		}
		away(t, p, 0, 2)
		away(t, p, 0, 3)
		away(t, p, 0, 3)
		if n := len(dirtied(t, p, 0, 2)); n != 0 {
			t.Errorf("%d grains of settled records", n)
		}
		giving(t, p, far, 2, 70, Applied)
		giving(t, p, far+15, 2, 71, Applied) // over two grains
		giving(t, p, far, 1, 65, Superseded)
		giving(t, p, far+100, 1, 80, Applied)
		giving(t, p, far+99, 3, 79, Mixed, 1)
		giving(t, p, 0, 1, 10, Duplicate)  // not held
		giving(t, p, 32, 1, 50, Duplicate) // held
		zero := versioned(far+200, 1, 0, 5, 90)
		zero.Kind, zero.Data, zero.Count = segment.KindUnmap, nil, 40
		if _, err := give(p, zero, 9); err != nil {
			t.Fatal(err)
		}
		if _, err := give(p, versioned(segment.SliceBlocks, 1, 1, 5, 91), 9); err != nil {
			t.Fatal(err)
		}
		if _, err := give(p, versioned(900, 1, 1, 20, 91), 9); err == nil { // refused
			t.Fatal("taken")
		}
		want := []uint64{
			0, 32, far, far + 16, far + 96, far + 192, far + 208, far + 224,
		}
		began(t, p, 0, 6)
		imported(t, p, 6, 400, 60, copied(95), copied(96))
		imported(t, p, 6, 400, 60, copied(95)) // stays
		imported(t, p, 6, 500, 60, Copy{Kind: segment.KindUnmap}, copied(97))
		imported(t, p, 6, 600, 60, Copy{Kind: segment.KindUnmap}) // was there
		imported(t, p, 6, 600, 60, Copy{Kind: segment.KindUnmap})
		want = append(want, 400, 496, 592)
		slices.Sort(want)
		if err := p.Mark(800, 17); err != nil {
			t.Fatal(err)
		}
		want = append(want, 800, 816)
		slices.Sort(want)
		if checkpoint {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if list := p.Missing(0); !slices.Equal(list, []domain.NodeNumber{2, 3}) ||
				len(p.Missing(1)) != 0 {
				t.Errorf("away are %v and %v", list, p.Missing(1))
			}
			for _, member := range []domain.NodeNumber{2, 3} {
				if got := dirtied(t, p, 0, member); !slices.Equal(got, want) {
					t.Errorf("checkpoint %t, member %d: %v, not %v", checkpoint, member, got, want)
				}
			}
			e, p = again(t, e, dev, quiet)
		}
		for range 2 {
			if err := p.Back(background, 0, 2); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if _, ok := p.Dirty(0, 2); ok || !slices.Equal(p.Missing(0), []domain.NodeNumber{3}) {
				t.Errorf("away are %v", p.Missing(0))
			}
			e, p = again(t, e, dev, quiet)
		}
		tables := e.space.tables.Load()
		if err := p.Bury(background, 0); err != nil {
			t.Fatal(err)
		}
		if len(p.Missing(0)) != 0 || e.space.tables.Load() > tables-segment.DirtyMapBytes {
			t.Errorf("buried, and away are %v", p.Missing(0))
		}
		e.Abandon()
	}
}

// TestC11TheTailMarks proves that a member that goes may lack every record above the floor,
// superseded ones and blocks known by version among them, and none below; over crashes, and when
// a join session forgets the records.
func TestC11TheTailMarks(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		dev := crashDevice(t, 60, 2)
		e := open(t, dev, quiet)
		e.floors.stop()
		p := replicaOn(t, e)
		began(t, p, 0, 6)
		imported(t, p, 6, 600, 5, copied(40))
		synced(t, p, 0, 6)
		giving(t, p, 0, 1, 10, Applied)
		giving(t, p, 32, 1, 50, Applied)
		giving(t, p, 32, 3, 30, Mixed, 0)
		giving(t, p, 5*segment.LeafBlocks, 1, 51, Applied)
		giving(t, p, 5*segment.LeafBlocks, 1, 49, Superseded)
		p.SetFloor(0, at(20))
		e.Retire(3, 4, 100)
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		want := []uint64{32, 592, 5 * segment.LeafBlocks}
		away(t, p, 0, 7)
		if checkpoint {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		began(t, p, 0, 8)
		for range 3 {
			if got := dirtied(t, p, 0, 7); !slices.Equal(got, want) {
				t.Errorf("checkpoint %t: %v, not %v", checkpoint, got, want)
			}
			e, p = again(t, e, dev, quiet)
		}
		e.Abandon()
	}
}

// TestC11Merge proves that a member takes over what another one noted, durably, and nothing for who
// is not away.
func TestC11Merge(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		dev := crashDevice(t, 60, 2)
		e := open(t, dev, quiet)
		p := replicaOn(t, e)
		away(t, p, 1, 7)
		const first = segment.SliceBlocks
		if _, err := give(p, versioned(first+16, 1, 1, 5, 1), 9); err != nil {
			t.Fatal(err)
		}
		grains := make([]uint64, segment.SliceGrains/64)
		grains[0], grains[255] = 1|1<<63, 1<<2
		if err := p.Merge(background, 1, 7, grains[1:]); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%v", err)
		}
		if err := p.Merge(background, 1, 8, grains); !domain.IsKind(err, domain.NotFound) {
			t.Errorf("%v", err)
		}
		if err := p.Merge(background, 1, 7, grains); err != nil {
			t.Fatal(err)
		}
		if checkpoint {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		want := []uint64{first, first + 16, first + 63*16, first + 255*1024 + 32}
		for range 3 {
			if got := dirtied(t, p, 1, 7); !slices.Equal(got, want) {
				t.Errorf("%v, not %v", got, want)
			}
			e, p = again(t, e, dev, quiet)
		}
		e.Abandon()
	}
}

// TestC11DuplicateWaits holds back the write of what a duplicate marks: it is answered behind that,
// and not before; where nobody is away, at once.
func TestC11DuplicateWaits(t *testing.T) {
	dev := faulty.New(newMem(t, 16<<20, 256<<10, 1), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	p := replicaOn(t, e)
	giving(t, p, 0, 1, 10, Applied)
	away(t, p, 0, 2)
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	r, done := versioned(0, 1, 10, 5, 10), make(signal, 1)
	r.To = done
	p.Append(r, 5)
	select {
	case <-stall.Stalled():
	case <-done:
		t.Fatal("it was answered, and nothing written")
	}
	for range 1000 {
		runtime.Gosched()
	}
	if len(done) > 0 {
		t.Error("it did not wait")
	}
	stall.Release()
	if err := <-done; err != nil || r.Outcome != Duplicate {
		t.Errorf("%v %v", r.Outcome, err)
	}
	if err := p.Back(background, 0, 2); err != nil {
		t.Fatal(err)
	}
	writes := dev.Inner().Stats().Writes
	giving(t, p, 0, 1, 10, Duplicate)
	if dev.Inner().Stats().Writes != writes {
		t.Error("a duplicate wrote something though nobody is away")
	}
}
