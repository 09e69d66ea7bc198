package engine

import (
	"bytes"
	"runtime"
	"slices"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// The tests of join sessions (C8) and of filling one copy from another (C10). What a mutation of
// the design page says must be caught is named by its number there.

func at(seq uint64) domain.Version { return domain.Version{Epoch: 5, Seq: seq, Node: 1} }

// giving gives a record of epoch 5 and expects its outcome, and which blocks kept what they had.
func giving(t testing.TB, p *Replica, block uint64, count int, seq uint64, want Outcome,
	kept ...int,
) {
	t.Helper()
	r := versioned(block, count, seq, 5, seq)
	got, err := give(p, r, 9)
	var mask segment.Mask
	for _, i := range kept {
		mask.Set(i)
	}
	if err != nil || got != want || want == Mixed && r.Kept != mask {
		t.Fatalf("version %d: %v %v, kept %x, not %v %x", seq, got, err, r.Kept, want, mask)
	}
}

// copied gives the copy of a block that spells seq, which is its version, too.
func copied(seq uint64) Copy {
	b := fill(1, seq)
	return Copy{
		Kind: segment.KindData, Version: at(seq), Gen: 1, CRC: segment.Checksum(b), Data: b,
	}
}

// top names the head of a replica.
func top(p *Replica) Link {
	line := p.Line()
	return line[len(line)-1]
}

func began(t testing.TB, p *Replica, slice uint32, since domain.Epoch) {
	t.Helper()
	if err := p.BeginEra(background, slice, since); err != nil {
		t.Fatal(err)
	}
}

func imported(t testing.TB, p *Replica, since domain.Epoch, block, floor uint64, list ...Copy) {
	t.Helper()
	if err := p.Import(since, top(p), block, list, at(floor)); err != nil {
		t.Fatal(err)
	}
}

// synced lets the rest of a slice be trusted and ends its session.
func synced(t testing.TB, p *Replica, slice uint32, since domain.Epoch) {
	t.Helper()
	unchanged(t, p, slice, since)
	must(t, p.EndEra(background, slice, since))
}

// unchanged lets the rest of a slice, which the source has, too, be trusted, the oldest branch
// first.
func unchanged(t testing.TB, p *Replica, slice uint32, since domain.Epoch) {
	t.Helper()
	first := uint64(slice) * segment.SliceBlocks
	for _, at := range p.Line() {
		for b := first; b < min(first+segment.SliceBlocks, p.v.blocks()); b += segment.LeafBlocks {
			err := p.Unchanged(since, at, b, segment.LeafBlocks)
			for i := uint64(0); i < segment.LeafBlocks && domain.IsKind(err, domain.Conflict); i++ {
				if p.Unchanged(since, at, b+i, 1) == nil {
					continue
				}
				one, floor, err := p.Export(at, b+i, 1)
				must(t, err)
				must(t, p.Import(since, at, b+i, one, floor))
			}
			if !domain.IsKind(err, domain.Conflict) {
				must(t, err)
			}
		}
	}
}

func again(t testing.TB, e *Engine, dev backends.Device, tune ...func(*Config),
) (*Engine, *Replica) {
	t.Helper()
	recount(t, e)
	e.Abandon()
	e = open(t, dev, tune...)
	recount(t, e)
	return e, mustReplica(t, e)
}

// TestC8EraBeatsVersion proves that what came before a session loses to whatever comes in it, by
// record or by copy, whatever the versions; that it is not told, not held, and its request not
// known; and that all of this holds behind crashes, beside a slice that has no session.
func TestC8EraBeatsVersion(t *testing.T) {
	dev := crashDevice(t, 60, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	for b := range uint64(3) {
		giving(t, p, b, 1, 120+b, Applied)
		if _, err := give(p, versioned(segment.SliceBlocks+b, 1, 9, 5, 200+b), 9); err != nil {
			t.Fatal(err)
		}
	}
	full := e.space.tables.Load()
	began(t, p, 0, 6)
	began(t, p, 0, 6)
	if _, ok := e.Known(domain.RequestID{Gateway: 3, Incarnation: 4, Counter: 120}); ok ||
		len(metas(t, p, 0)) != 0 || len(metas(t, p, 1)) != 3 ||
		e.space.tables.Load() >= full+segment.DirtyMapBytes {
		t.Errorf("known %t, %d records in the slice", ok, len(metas(t, p, 0)))
	}
	giving(t, p, 0, 1, 80, Applied)
	giving(t, p, 0, 1, 79, Superseded)
	imported(t, p, 6, 1, 10, copied(90))
	giving(t, p, 1, 1, 89, Superseded)
	giving(t, p, 1, 1, 91, Applied)
	judge := func() {
		t.Helper()
		check(t, p.v, 0, 80)
		check(t, p.v, 1, 91)
		check(t, p.v, 2, 122) // nobody sent it anew: it is there, and not trusted
		check(t, p.v, segment.SliceBlocks, 9)
		if n := len(metas(t, p, 0)); n != 4 {
			t.Errorf("%d records", n)
		}
	}
	judge()
	for i := range 2 {
		e, p = again(t, e, dev, quiet)
		judge()
		if _, ok := p.Session(0); ok {
			t.Error("a session outlived a crash")
		}
		_, err := give(p, versioned(2, 1, 1, 5, 300), 9)
		if !domain.IsKind(err, domain.Stale) {
			t.Errorf("taken in a session that was cut short: %v", err)
		}
		if i == 0 {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	began(t, p, 0, 7)
	if n := len(metas(t, p, 0)); n != 0 {
		t.Errorf("%d records of another session", n)
	}
	for _, since := range []domain.Epoch{6, 8} {
		err := p.Import(since, top(p), 0, []Copy{copied(1)}, at(1))
		_, bad := p.Same(since, top(p), 0, 1)
		if !domain.IsKind(err, domain.Stale) || !domain.IsKind(bad, domain.Stale) ||
			!domain.IsKind(p.Unchanged(since, top(p), 9, 1), domain.Stale) ||
			!domain.IsKind(p.EndEra(background, 0, since), domain.Stale) {
			t.Errorf("session %d: %v, %v", since, err, bad)
		}
	}
	if err := p.BeginEra(background, 0, 6); !domain.IsKind(err, domain.Stale) {
		t.Errorf("an older session: %v", err)
	}
	giving(t, p, 2, 1, 3, Applied)
	check(t, p.v, 2, 3)
	recount(t, e)
	e.Abandon()
}

// TestC8BeginWaits holds the write of a record back: the session begins behind it, and the record
// is of the era before.
func TestC8BeginWaits(t *testing.T) {
	dev := faulty.New(newMem(t, 16<<20, 256<<10, 2), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	p := replicaOn(t, e)
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	r := versioned(0, 1, 90, 5, 90)
	taken, begun, late := make(signal, 1), make(signal, 1), make(signal, 1)
	r.To = taken
	p.Append(r, 5)
	<-stall.Stalled()
	go func() { begun <- p.BeginEra(background, 0, 6) }()
	for {
		if _, ss := p.rep.status(0); ss.turning {
			break
		}
		runtime.Gosched()
	}
	o := versioned(0, 1, 80, 5, 80)
	o.To = late
	go p.Append(o, 5)
	for range 1000 {
		runtime.Gosched()
	}
	if len(begun)+len(late) > 0 {
		t.Error("it did not wait")
	}
	stall.Release()
	for _, done := range []signal{taken, begun, late} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if o.Outcome != Applied {
		t.Errorf("%v", o.Outcome)
	}
	check(t, p.v, 0, 80)
	recount(t, e)
}

// TestC8EndIsWhole proves that a session ends only when every block is trusted, and that it has
// ended behind a crash, too, with the floor of its source.
func TestC8EndIsWhole(t *testing.T) {
	dev := crashDevice(t, 60, 2)
	e := open(t, dev, quiet)
	e.floors.stop() // the crash comes before they are logged
	p := replicaOn(t, e)
	giving(t, p, 5, 1, 120, Applied)
	began(t, p, 0, 6)
	err := p.Unchanged(6, top(p), 5, 1)
	if !domain.IsKind(err, domain.Conflict) {
		t.Errorf("a tail that the source may lack is trusted: %v", err)
	}
	for b := uint64(0); b < segment.SliceBlocks; b += segment.LeafBlocks {
		first, n := b, segment.LeafBlocks
		if b == 0 {
			first, n = segment.GrainBlocks, n-segment.GrainBlocks
		}
		if err := p.Unchanged(6, top(p), first, n); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []uint64{0, 7, 5} {
		if err := p.EndEra(background, 0, 6); !domain.IsKind(err, domain.Stale) {
			t.Fatalf("ended without block %d: %v", b, err)
		}
		switch b {
		case 0:
			imported(t, p, 6, 0, 1, Copy{Kind: segment.KindUnmap}, Copy{Kind: segment.KindZero},
				Copy{Kind: segment.KindUnmap, Parent: true}, copied(7), copied(8))
		case 7:
			imported(t, p, 6, 6, 1, slices.Repeat([]Copy{{Kind: segment.KindUnmap}}, 10)...)
		case 5:
			giving(t, p, 5, 1, 1, Applied) // of an older epoch: that is not enough
			if err := p.EndEra(background, 0, 6); !domain.IsKind(err, domain.Stale) {
				t.Fatalf("ended with an old record: %v", err)
			}
			r := versioned(5, 1, 2, 6, 2)
			if _, err := give(p, r, 9); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.EndEra(background, 0, 6); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		giving(t, p, 5, 1, 1, Duplicate) // the floor of the source
		check(t, p.v, 3, 7)
		check(t, p.v, 5, 2)
		check(t, p.v, 0, 0)
		e, p = again(t, e, dev, quiet)
		if p.Floor(0) != at(1) {
			t.Errorf("the floor is %s", p.Floor(0))
		}
		if list := metas(t, p, 0); len(list) != 3 || !list[0].Part || list[0].Version != at(7) {
			t.Errorf("%+v", list)
		}
	}
	e.Abandon()
}

// TestC8OldRecordsInASession proves that a record of an older epoch that comes in a session leaves
// its blocks untrusted, whatever the floor says: the source may have more. It is held until they
// are, and then forgotten as others are. One of the session's epoch is above all there was.
func TestC8OldRecordsInASession(t *testing.T) {
	e := open(t, newMem(t, 16<<20, 256<<10, 2), quiet)
	defer e.Abandon()
	p := replicaOn(t, e)
	giving(t, p, 0, 4, 90, Applied)
	began(t, p, 0, 6)
	giving(t, p, 0, 2, 50, Applied)
	r := versioned(2, 1, 7, 6, 1)
	if _, err := give(p, r, 9); err != nil {
		t.Fatal(err)
	}
	settle := func(want int) {
		t.Helper()
		p.SetFloor(0, domain.Version{Epoch: 6, Seq: 9})
		e.Retire(3, 4, 100)
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		if n := len(p.rep.lanes[p.v.lane(0).no].held); n != want {
			t.Fatalf("%d records are held, not %d", n, want)
		}
	}
	settle(1)
	for b, there := range []bool{false, false, true, false} {
		if err := p.Unchanged(6, top(p), uint64(b), 1); (err == nil) != there {
			t.Errorf("block %d: %v", b, err)
		}
	}
	imported(t, p, 6, 0, 60, copied(55), copied(45), copied(46))
	settle(0)
	imported(t, p, 6, 0, 60, copied(55), copied(45), copied(46))
	for b, n := range map[uint64]uint64{0: 55, 1: 50, 2: 7, 3: 90} {
		check(t, p.v, b, n)
	}
	synced(t, p, 0, 6)
	recount(t, e)
}

// TestC10HeldHole proves that a hole of which a record is held above the floor has its version,
// also behind a restart: a record below that, given late, changes nothing where it was imported.
func TestC10HeldHole(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	giving(t, p, 0, 2, 10, Applied)
	for i, kind := range []segment.Kind{segment.KindUnmap, segment.KindZero} {
		r := versioned(uint64(i), 1, 0, 5, 105)
		r.Version.Seq += uint64(i)
		r.Kind, r.Data = kind, nil
		if _, err := give(p, r, 9); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		list, floor, err := p.Export(top(p), 0, 3)
		if err != nil || floor != (domain.Version{}) || list[0].Version != at(105) ||
			list[1].Version != at(106) || list[1].Kind != segment.KindZero ||
			list[2].Version != (domain.Version{}) || !list[2].Parent {
			t.Fatalf("%+v %s %v", list, floor, err)
		}
		if i == 1 {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if i == 2 {
			began(t, p, 1, 6)
			if err := p.Import(6, top(p), segment.SliceBlocks, list, floor); err != nil {
				t.Fatal(err)
			}
		}
		e, p = again(t, e, dev, quiet)
	}
	began(t, p, 1, 7)
	imported(t, p, 7, segment.SliceBlocks, 1, Copy{Kind: segment.KindUnmap, Version: at(105)},
		Copy{Kind: segment.KindZero})
	giving(t, p, segment.SliceBlocks, 1, 102, Superseded)
	synced(t, p, 1, 7)
	e, p = again(t, e, dev, quiet)
	p.SetFloor(1, at(1))
	list := metas(t, p, 1)
	if len(list) != 2 || !list[1].Part || list[1].Kind != segment.KindUnmap {
		t.Errorf("%+v", list)
	}
	giving(t, p, segment.SliceBlocks, 1, 103, Superseded)
	check(t, p.v, segment.SliceBlocks, 0)
	e.Abandon()
}

// TestC10SameIsDurable is mutation R7: what a member was told to be the same as the source's keeps
// its version behind a crash: a late record below it changes nothing.
func TestC10SameIsDurable(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		dev := crashDevice(t, 60, 2)
		e := open(t, dev, quiet)
		p := replicaOn(t, e)
		giving(t, p, 0, 1, 100, Applied)
		began(t, p, 0, 6)
		if got, err := p.Same(6, top(p), 0, 3); got != 1 || err != nil { // block 1 is a hole
			t.Fatalf("trusted %b %v", got, err)
		}
		giving(t, p, 0, 2, 95, Mixed, 0)
		if got, err := p.Same(6, top(p), 0, 3); got != 1 || err != nil { // block 1 was written since
			t.Fatalf("trusted %b %v", got, err)
		}
		synced(t, p, 0, 6)
		if checkpoint {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			e, p = again(t, e, dev, quiet)
			list := metas(t, p, 0)
			if len(list) < 2 || !list[len(list)-1].Part || list[len(list)-1].Version != at(100) {
				t.Errorf("%+v", list)
			}
		}
		giving(t, p, 0, 2, 97, Mixed, 0)
		check(t, p.v, 0, 100)
		check(t, p.v, 1, 97)
		e.Abandon()
	}
}

// TestC10SameTwice is R7 over a session that was cut short: the version of an imported block is
// known in the next one still, which only says that it is the same.
func TestC10SameTwice(t *testing.T) {
	dev := crashDevice(t, 60, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	began(t, p, 0, 6)
	imported(t, p, 6, 0, 1, copied(100))
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	e, p = again(t, e, dev, quiet)
	began(t, p, 0, 7)
	if got, err := p.Same(7, top(p), 0, 1); got != 1 || err != nil {
		t.Fatalf("trusted %b %v", got, err)
	}
	giving(t, p, 0, 1, 97, Superseded)
	synced(t, p, 0, 7)
	e, p = again(t, e, dev, quiet)
	giving(t, p, 0, 1, 98, Superseded)
	giving(t, p, 0, 1, 101, Applied)
	e.Abandon()
}

// TestC10DuplicateNeedsTheEra is mutation R8: a record of a dead tail that is replayed in the
// session is stored anew, though it was held.
func TestC10DuplicateNeedsTheEra(t *testing.T) {
	dev := crashDevice(t, 60, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	giving(t, p, 0, 1, 120, Applied)
	began(t, p, 0, 6)
	imported(t, p, 6, 0, 50, copied(90))
	check(t, p.v, 0, 90)
	giving(t, p, 0, 1, 120, Applied)
	giving(t, p, 0, 1, 120, Duplicate)
	check(t, p.v, 0, 120)
	e, _ = again(t, e, dev, quiet)
	check(t, mustReplica(t, e).v, 0, 120)
	e.Abandon()
}

// TestC10NoFloorInASession is mutation R9: at or below the floor a record is no duplicate in a
// session, since its blocks may still be missing here; where they are not it changes nothing.
func TestC10NoFloorInASession(t *testing.T) {
	dev := crashDevice(t, 60, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	giving(t, p, 0, 1, 70, Applied)
	p.SetFloor(0, at(100))
	began(t, p, 0, 6)
	giving(t, p, 0, 2, 80, Applied)
	imported(t, p, 6, 0, 100, copied(90))
	check(t, p.v, 0, 90)
	check(t, p.v, 1, 80)
	giving(t, p, 0, 3, 85, Mixed, 0) // block 0 has all up to the floor
	imported(t, p, 6, 1, 100, copied(85), copied(85))
	synced(t, p, 0, 6)
	giving(t, p, 0, 3, 86, Duplicate)
	e, p = again(t, e, dev, quiet)
	check(t, p.v, 0, 90)
	check(t, p.v, 1, 85)
	e.Abandon()
}

// TestC10HoleHasTheFloor is mutation R31: a hole beats what came in the session at or below the
// floor that the source had, and nothing above; so does a block of zeros, and one that is as the
// parent.
func TestC10HoleHasTheFloor(t *testing.T) {
	dev := crashDevice(t, 60, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	began(t, p, 0, 6)
	hole := []Copy{
		{Kind: segment.KindUnmap}, {Kind: segment.KindZero}, {Kind: segment.KindUnmap, Parent: true},
	}
	giving(t, p, 0, 4, 5, Applied)
	giving(t, p, 4, 2, 6, Applied)
	imported(t, p, 6, 0, 9, hole...)
	giving(t, p, 3, 3, 10, Applied)
	imported(t, p, 6, 3, 9, hole...)
	giving(t, p, 0, 3, 7, Superseded) // resolved at the source
	giving(t, p, 3, 1, 11, Applied)
	for range 2 {
		for b := range uint64(3) {
			check(t, p.v, b, 0)
		}
		check(t, p.v, 3, 11)
		check(t, p.v, 4, 10)
		e, p = again(t, e, dev, quiet)
	}
	e.Abandon()
}

// TestC10Refuses proves what is refused of copies, and that nothing is left of it.
func TestC10Refuses(t *testing.T) {
	e := open(t, newMem(t, 16<<20, 256<<10, 2))
	defer e.Abandon()
	p := replicaOn(t, e)
	began(t, p, 0, 6)
	bad := copied(3)
	bad.CRC++
	if err := p.Import(
		6, top(p), 0, []Copy{copied(2), bad}, at(1),
	); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("%v", err)
	}
	bad = copied(3)
	bad.Version = domain.Version{}
	if err := p.Import(
		6, top(p), 0, []Copy{copied(2), bad}, at(1),
	); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("%v", err)
	}
	if _, err := p.Same(6, top(p), 3, 1); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("%v", err)
	}
	if err := p.Import(
		6, top(p), 1020, make([]Copy, 5), at(1),
	); !domain.IsKind(err, domain.OutOfRange) {
		t.Errorf("%v", err)
	}
	check(t, p.v, 0, 0)
	if p.Floor(0) != (domain.Version{}) {
		t.Error("the floor rose")
	}
	if err := p.BeginEra(background, 9, 1); !domain.IsKind(err, domain.OutOfRange) {
		t.Errorf("%v", err)
	}
}

// fillFrom fills a slice of a replica from another one as the protocol does: what is equal by
// version is confirmed, the rest imported. beside is called between the steps.
func fillFrom(t testing.TB, from, to *Replica, slice uint32, since domain.Epoch, beside func()) {
	t.Helper()
	for _, ext := range []uint64{0, 3, 256, 300} {
		if uint32(ext/sliceExtents) != slice {
			continue
		}
		for n := uint64(0); n < segment.LeafBlocks; n += segment.SameBlocks {
			b := ext*segment.LeafBlocks + n
			mine := map[uint64]domain.Version{}
			err := to.Versions(b, segment.SameBlocks, func(v BlockVersion) error {
				mine[v.Block] = v.Version
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			beside()
			list, floor, err := from.Export(top(from), b, segment.SameBlocks)
			if err != nil {
				t.Fatal(err)
			}
			beside()
			same := uint64(0)
			for i, c := range list {
				if c.Kind == segment.KindData && mine[b+uint64(i)] == c.Version {
					same |= 1 << i
				}
			}
			trusted, err := to.Same(since, top(to), b, same)
			if err != nil {
				t.Fatal(err)
			}
			for i := range list {
				if trusted>>i&1 == 0 {
					if err := to.Import(since, top(to), b+uint64(i), list[i:i+1], floor); err != nil {
						t.Fatal(err)
					}
				}
			}
			beside()
		}
	}
}

// TestC10Backfill runs two members by chance: both take records, one goes away, takes a tail of its
// own that nobody else gets, and comes back, while records go on to come, in any order, with
// restarts and cleaning. When the session has ended both have the same versions and bytes, block by
// block, also of what is held, and every later record has the same outcome at both.
func TestC10Backfill(t *testing.T) {
	rounds := 6
	if raceOn || testing.Short() {
		rounds = 2
	}
	for seed := range uint64(rounds) {
		backfill(t, seed)
	}
}

func backfill(t *testing.T, seed uint64) {
	t.Helper()
	d := &drawer{
		rnd: newRand(700 + seed), flat: true, epoch: 5,
		spell: map[domain.Version]uint64{}, spots: contractSpots(),
	}
	var dev [2]*mem.Device
	var e [2]*Engine
	var p [2]*Replica
	for i := range p {
		dev[i] = crashDevice(t, 80, 1+i)
		e[i] = open(t, dev[i], often)
		p[i] = replicaOn(t, e[i])
	}
	to := func(list []*Record, members ...int) {
		for _, i := range members {
			d.rnd.Shuffle(len(list), func(a, b int) { list[a], list[b] = list[b], list[a] })
			for _, r := range list {
				c := *r
				if _, err := give(p[i], &c, d.epoch); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	drawn := func(n int) (list []*Record) {
		for range n {
			list = append(list, d.draw())
		}
		return list
	}
	floor := func() {
		for i := range p {
			for s := range uint32(2) {
				p[i].SetFloor(s, domain.Version{Epoch: d.epoch, Seq: d.seq})
			}
			e[i].Retire(3, 4, d.seq)
		}
	}
	since := domain.Epoch(100)
	for round := range 3 {
		early := drawn(15)
		to(drawn(40), 0, 1)
		floor()
		to(drawn(15), 0, 1)
		to(drawn(10), 1) // of a coordinator that died
		d.epoch++
		to(drawn(20), 0)
		late := drawn(10)
		to(late, 0)
		d.epoch++
		if d.rnd.IntN(2) == 0 { // cut short in the middle
			since++
			for s := range uint32(2) {
				began(t, p[1], s, since)
			}
			fillFrom(t, p[0], p[1], 0, since, func() {
				if d.rnd.IntN(9) == 0 {
					to(drawn(1), 0, 1)
				}
			})
			e[1], p[1] = again(t, e[1], dev[1], often)
		}
		since++
		for s := range uint32(2) {
			began(t, p[1], s, since)
		}
		for s := range uint32(2) {
			fillFrom(t, p[0], p[1], s, since, func() {
				switch d.rnd.IntN(12) {
				case 0:
					to(drawn(1), 0, 1)
				case 1: // replayed
					to(late[d.rnd.IntN(len(late)):][:1], 0, 1)
				}
			})
		}
		for s := range uint32(2) {
			synced(t, p[1], s, since)
		}
		equal(t, p, "filled")
		for i := range p {
			e[i], p[i] = again(t, e[i], dev[i], often)
		}
		to(early, 0, 1) // mostly below the floor, or overtaken
		to(late, 0, 1)
		to(drawn(10), 0, 1)
		equal(t, p, "behind a restart")
		if round == 1 {
			floor()
		}
	}
	for i := range e {
		e[i].Abandon()
	}
}

// equal compares two members, block by block.
func equal(t *testing.T, p [2]*Replica, when string) {
	t.Helper()
	var buf [2][]byte
	for i := range buf {
		buf[i] = make([]byte, segment.LeafBlocks*segment.BlockSize)
	}
	for _, ext := range []uint64{0, 3, 256, 300} {
		var of [2]map[uint64]domain.Version
		for i := range p {
			of[i] = map[uint64]domain.Version{}
			err := p[i].Versions(ext*segment.LeafBlocks, segment.LeafBlocks, func(b BlockVersion) error {
				of[i][b.Block] = b.Version
				return nil
			})
			if err == nil {
				_, err = p[i].Read(ext*segment.LeafBlocks, segment.LeafBlocks, buf[i])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for b := ext * segment.LeafBlocks; b < (ext+1)*segment.LeafBlocks; b++ {
			if of[0][b] != of[1][b] {
				t.Errorf("%s, block %d: versions %s and %s", when, b, of[0][b], of[1][b])
			}
		}
		if !bytes.Equal(buf[0], buf[1]) {
			t.Errorf("%s, extent %d: bytes differ", when, ext)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}
