package engine

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// inSlots counts the records of a replica that the journal holds.
func inSlots(p *Replica) (n int) {
	for _, l := range p.v.e.lanes {
		l.mu.Lock()
		for _, h := range p.rep.lanes[l.no].held {
			if h.slot != nil {
				n++
			}
		}
		l.mu.Unlock()
	}
	return n
}

// TestReplicaInJournal proves that the journal takes records of every outcome and kind, without a
// write to the device; that each is told and given as it was accepted, with versions and copies of
// its blocks, behind a crash, a clean stop, destaging, and a crash behind that; and that a scrub
// says nothing of a sound one.
func TestReplicaInJournal(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 1)
	nv := newMemory(t, dev, 12)
	e := open(t, dev, quiet, journaled(nv))
	p := replicaOn(t, e)
	writes := dev.Stats().Writes
	mustGive(t, p, versioned(0, 4, 10, 5, 10), Applied)
	mustGive(t, p, versioned(1, 2, 9, 5, 9), Superseded)
	mustGive(t, p, versioned(3, 3, 8, 5, 8), Mixed)
	mustGive(t, p, versioned(3, 3, 8, 5, 8), Duplicate)
	hole, zero := versioned(5, 600, 0, 5, 12), versioned(1, 1, 0, 5, 13)
	hole.Kind, zero.Kind = segment.KindUnmap, segment.KindZero
	mustGive(t, p, hole, Applied)
	mustGive(t, p, zero, Applied)
	late := versioned(1, 8, 0, 5, 11) // a range with a mask
	late.Kind = segment.KindUnmap
	mustGive(t, p, late, Mixed)
	mustGive(t, p, versioned(segment.SliceBlocks+1, 1, 7, 5, 10), Applied)
	mustGive(t, p, versioned(700, 2, 14, 5, 14), Applied)
	if n := dev.Stats().Writes - writes; n != 0 || inSlots(p) != 8 {
		t.Errorf("%d writes, %d records in the journal", n, inSlots(p))
	}
	before := [2][]Meta{metas(t, p, 0), metas(t, p, 1)}
	copies, _, err := p.Export(top(p), 0, 702)
	must(t, err)
	sum, err := p.Digest(0, segment.LeafBlocks)
	must(t, err)
	judge := func(when string, kept int) {
		t.Helper()
		for s := range before {
			if list := metas(t, p, uint32(s)); !slices.Equal(list, before[s]) {
				t.Errorf("%s: %+v, not %+v", when, list, before[s])
			}
			for _, m := range before[s] {
				n := m.Version.Seq
				if s == 1 {
					n = 7
				}
				if err := sameRecord(p, &m, n); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
		}
		for b, n := range map[uint64]uint64{0: 10, 1: 0, 3: 0, 4: 0, 5: 0, 700: 14, 701: 14} {
			check(t, p.v, b, n)
		}
		check(t, p.v, segment.SliceBlocks+1, 7)
		now, _, err := p.Export(top(p), 0, 702)
		must(t, err)
		for i := range now {
			if a, b := now[i], copies[i]; a.Version != b.Version || a.Kind != b.Kind ||
				!bytes.Equal(a.Data, b.Data) || i > 699 && !isNumber(a.Data, 14) {
				t.Errorf("%s: copy %d is %v of %s, not %v of %s", when, i, a.Kind, a.Version, b.Kind,
					b.Version)
			}
		}
		if got, err := p.Digest(0, segment.LeafBlocks); err != nil || got != sum {
			t.Errorf("%s: digest %x %v", when, got, err)
		}
		if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
			t.Errorf("%s: %+v", when, list)
		}
		if inSlots(p) != kept {
			t.Errorf("%s: %d records in the journal, not %d", when, inSlots(p), kept)
		}
		recount(t, e)
	}
	again := func() {
		e.Abandon()
		e = open(t, dev, quiet, journaled(nv))
		p = mustReplica(t, e)
	}
	judge("at first", 8)
	again()
	judge("behind a crash", 8)
	must(t, e.Checkpoint())
	must(t, e.Close())
	again()
	judge("behind a clean stop", 8)
	must(t, e.nv.drain(background))
	judge("destaged", 0)
	again()
	judge("destaged, behind a crash", 0)
	must(t, e.Close())
	again()
	judge("destaged, behind a clean stop", 0)
	must(t, e.Close())
}

// TestReplicaJournalSettled proves that of what is settled and overwritten in the journal nothing
// goes to the device, of what shows all, in order, with its version; that what is held goes whole;
// and that a floor that a crash may forget, or a member that is away, holds all of it.
func TestReplicaJournalSettled(t *testing.T) {
	for _, how := range []string{"settled", "restarted", "floor not logged", "not retired", "away"} {
		dev := newMem(t, 16<<20, 256<<10, 1)
		nv := newMemory(t, dev, 40)
		e := open(t, dev, quiet, journaled(nv))
		p := replicaOn(t, e)
		if how == "away" {
			must(t, p.Away(background, 0, 7))
		}
		const n = 40
		hole, old := versioned(0, 8, 0, 4, 1), versioned(0, 2, 3, 4, 2) // both go whole, and before
		hole.Kind, hole.Data, old.Request.Gateway = segment.KindUnmap, nil, 9
		mustGive(t, p, hole, Applied)
		mustGive(t, p, old, Applied)
		for seq := uint64(1); seq <= n; seq++ {
			mustGive(t, p, versioned(seq%4, 2, seq, 5, seq), Applied)
		}
		if how == "floor not logged" {
			e.floors.stop()
		}
		p.SetFloor(0, domain.Version{Epoch: 6})
		e.floors.done.Wait()
		if how != "not retired" {
			e.Retire(3, 4, 1<<40)
		}
		if how == "restarted" {
			must(t, e.Close())
			e = open(t, dev, quiet, journaled(nv))
			p = mustReplica(t, e)
		}
		must(t, e.nv.drain(background))
		want := int64(7 * segment.BlockSize)
		if how != "settled" && how != "restarted" {
			want = (2*n + 2) * segment.BlockSize
		}
		if st := e.Stats(); st.DestagedBytes != want {
			t.Errorf("%s: %d bytes destaged, not %d", how, st.DestagedBytes, want)
		}
		recount(t, e)
		for range 2 {
			got := map[uint64]uint64{}
			must(t, p.Versions(0, 8, func(b BlockVersion) error {
				got[b.Block] = b.Version.Seq
				check(t, p.v, b.Block, b.Version.Seq)
				return nil
			}))
			if want := map[uint64]uint64{0: 40, 1: 40, 2: 38, 3: 39, 4: 39}; !maps.Equal(got, want) {
				t.Errorf("%s: versions %v", how, got)
			}
			e.Abandon()
			e = open(t, dev, quiet, journaled(nv))
			p = mustReplica(t, e)
			recount(t, e)
		}
		if g, away := p.Dirty(0, 7); away && g[0]&1 == 0 {
			t.Errorf("%s: the grain is not marked", how)
		}
		if list := metas(t, p, 0); how == "settled" && len(list) > 0 ||
			how == "floor not logged" && len(list) != n+2 {
			t.Errorf("%s: %d records above the floor", how, len(list))
		}
		must(t, e.Close())
	}
}

// TestReplicaJournalHoles destages a hole that is settled and made once more by a later record,
// which is held: the block keeps version and generation of that one.
func TestReplicaJournalHoles(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 1)
	nv := newMemory(t, dev, 12)
	e := open(t, dev, quiet, journaled(nv))
	p, err := e.CreateReplicaAt(background, testVolume, 2<<30, 7, 9)
	must(t, err)
	for i, gen := range []uint32{2, 5} {
		r := versioned(0, 4, 0, 5, uint64(10+i))
		r.Kind, r.Gen = segment.KindUnmap, gen
		mustGive(t, p, r, Applied)
	}
	e.Retire(3, 4, 11)
	p.SetFloor(0, domain.Version{Epoch: 5, Seq: 10, Node: 9})
	e.floors.done.Wait()
	must(t, e.nv.drain(background))
	for range 2 {
		list, _, err := p.Export(top(p), 1, 1)
		must(t, err)
		gen, err := p.Read(1, 1, backends.AlignedBuffer(segment.BlockSize))
		must(t, err)
		if list[0].Version.Seq != 11 || list[0].Gen != 5 || gen != 5 {
			t.Errorf("%+v, read as of generation %d", list[0], gen)
		}
		e.Abandon()
		e = open(t, dev, quiet, journaled(nv))
		p = mustReplica(t, e)
	}
	e.Abandon()
}

// TestReplicaJournalOrder holds the write of a record that goes past the journal back: one of the
// same slice that could go into the journal waits for it, and one of another slice does not.
func TestReplicaJournalOrder(t *testing.T) {
	dev := faulty.New(newMem(t, 64<<20, 256<<10, 1), nil)
	nv := newMemory(t, dev, 12)
	e := open(t, dev, quiet, journaled(nv))
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	p := replicaOn(t, e)
	mustGive(t, p, ofGen(0, 1, 1), Applied)
	must(t, p.Cut(background, 1))
	mustGive(t, p, ofGen(1, 2, 2), Applied)
	if inSlots(p) != 2 {
		t.Fatalf("%d records in the journal", inSlots(p))
	}
	must(t, e.nv.drain(background))
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	late, next, done := ofGen(5, 1, 9), ofGen(5, 2, 8), make(signal, 2)
	late.To, next.To = done, done
	p.Append(late, 7)
	<-stall.Stalled()
	delete(p.rep.lanes[0].late, 0) // as if the cut were sealed
	go p.Append(next, 7)
	other := ofGen(segment.SliceBlocks, 2, 3)
	mustGive(t, p, other, Applied)
	for range 1000 {
		runtime.Gosched()
	}
	if len(done) > 0 {
		t.Error("a record was acknowledged before what it was decided by")
	}
	stall.Release()
	for range 2 {
		must(t, <-done)
	}
	if next.Outcome != Superseded || inSlots(p) != 2 {
		t.Errorf("%v, %d records in the journal", next.Outcome, inSlots(p))
	}
	mustGive(t, p, ofGen(6, 1, 12), Applied) // empties the journal of the slice
	mustGive(t, p, ofGen(7, 2, 13), Applied)
	if kept := inSlots(p); kept != 0 {
		t.Errorf("behind a late record %d records in the journal", kept)
	}
	must(t, p.SealCut(background, 1))
	mustGive(t, p, ofGen(9, 2, 14), Applied)
	if inSlots(p) != 1 {
		t.Errorf("behind the seal %d records in the journal", inSlots(p))
	}
	recount(t, e)
}

// TestReplicaJournalSession proves that a session begins with nothing of its slice in the journal,
// that its records go past it, and that they come back to it behind its end.
func TestReplicaJournalSession(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 2)
	nv := newMemory(t, dev, 12)
	e := open(t, dev, quiet, journaled(nv))
	p := replicaOn(t, e)
	for i := range uint64(12) {
		mustGive(t, p, versioned(i*segment.LeafBlocks, 1, i+1, 5, i+1), Applied)
		mustGive(t, p, versioned(segment.SliceBlocks+i*segment.LeafBlocks, 1, i+1, 5, i+1), Applied)
	}
	e.Abandon()
	e = open(t, dev, quiet, journaled(nv)) // what was found in the journal counts as well
	p = mustReplica(t, e)
	must(t, p.BeginEra(background, 0, 9))
	for _, l := range e.lanes {
		for _, sl := range e.nv.mu.queue {
			e.nv.share.Each(&sl.Slot, func(en *segment.Entry, _ []byte, _ uint32) {
				if sliceOf(en.Block) == 0 {
					t.Errorf("record %s in the journal of lane %d", en.Version, l.no)
				}
			}, nil)
		}
	}
	mustGive(t, p, versioned(segment.SliceBlocks+9, 1, 50, 5, 50), Applied)
	kept := inSlots(p)
	r := versioned(0, 1, 77, 9, 77)
	if got, err := give(p, r, 9); got != Applied || err != nil || inSlots(p) != kept {
		t.Errorf("%v %v, %d records in the journal, not %d", got, err, inSlots(p), kept)
	}
	for ext := range uint64(segment.SliceBlocks / segment.LeafBlocks) {
		for at := ext * segment.LeafBlocks; at < (ext+1)*segment.LeafBlocks; at += 256 {
			must(t, p.Import(9, top(p), at, slices.Repeat([]Copy{{Kind: segment.KindUnmap}}, 256),
				domain.Version{Epoch: 6}))
		}
	}
	must(t, p.EndEra(background, 0, 9))
	if got, err := give(p, versioned(1, 1, 78, 9, 78), 9); got != Applied || err != nil ||
		inSlots(p) != kept+1 {
		t.Errorf("behind the session: %v %v, %d records in the journal", got, err, inSlots(p))
	}
	for range 2 {
		check(t, p.v, 0, 77)
		check(t, p.v, 1, 78)
		check(t, p.v, segment.LeafBlocks, 0)
		check(t, p.v, segment.SliceBlocks+segment.LeafBlocks, 2)
		recount(t, e)
		e.Abandon()
		e = open(t, dev, quiet, journaled(nv))
		p = mustReplica(t, e)
	}
	e.Abandon()
}

// TestReplicaJournalLost proves that a journal which is gone is told of a replica as it is of a
// volume: Open refuses, goes on by the operator's word, and names it; what a checkpoint knows to
// have stood there reads as corrupt.
func TestReplicaJournalLost(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 1)
	nv := newMemoryOf(t, dev, 12, backends.Volatile)
	e := open(t, dev, quiet, journaled(nv))
	p := replicaOn(t, e)
	if !e.Volatile() || e.Mode() != Process {
		t.Errorf("volatile %t, mode %s", e.Volatile(), e.Mode())
	}
	mustGive(t, p, versioned(9, 1, 9, 5, 9), Applied)
	must(t, e.Flush(background)) // on the device from here on
	if inSlots(p) != 0 {
		t.Errorf("%d records in the journal behind a flush", inSlots(p))
	}
	mustGive(t, p, versioned(0, 2, 10, 5, 10), Applied)
	mustGive(t, p, versioned(1, 2, 4, 5, 4), Mixed)
	must(t, e.Checkpoint())
	e.Abandon()
	cfg := Config{Device: dev, Cluster: testCluster, Node: 1, Journal: newMemory(t, dev, 12)}
	_, err := Open(background, cfg)
	if !errors.Is(err, ErrJournalLost) || !domain.IsKind(err, domain.Corrupt) {
		t.Fatalf("%v", err)
	}
	var told facts
	e = open(t, dev, quiet, told.into, journaled(newMemory(t, dev, 12)),
		func(c *Config) { c.AcceptLoss = true })
	p = mustReplica(t, e)
	if told.count("journal-lost") != 1 || told.list[0].Volume != testVolume {
		t.Errorf("%+v", told.list)
	}
	if _, err := holds(p.v, 1); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("what is lost reads: %v", err)
	}
	check(t, p.v, 9, 9)
	if list := metas(t, p, 0); len(list) != 1 || list[0].Version.Seq != 9 {
		t.Errorf("%+v", list)
	}
	mustGive(t, p, versioned(0, 2, 11, 5, 11), Applied)
	check(t, p.v, 1, 11)
	recount(t, e)
	e.Abandon()
}

// TestReplicaJournalRots spoils blocks in the journal: of a record that is seen, and of one that is
// outdone, a scrub tells it; when they are destaged the blocks that are sound are there, the others
// are told and read as corrupt, and nothing that came later is undone.
func TestReplicaJournalRots(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 1)
	nv := newMemory(t, dev, 12)
	var told facts
	e := open(t, dev, quiet, journaled(nv), told.into)
	defer func() { e.Abandon() }()
	p := replicaOn(t, e)
	mustGive(t, p, versioned(0, 4, 10, 5, 10), Applied)
	mustGive(t, p, versioned(2, 4, 9, 5, 9), Mixed) // keeps 4 and 5
	mustGive(t, p, versioned(0, 1, 11, 5, 11), Applied)
	spoil := func(seq uint64, i int) {
		t.Helper()
		h, err := p.find(heldKey{0, domain.Version{Epoch: 5, Seq: seq, Node: 1}})
		must(t, err)
		nv.Bytes()[int(e.nv.placeAt(h.Addr))*segment.BlockSize+i*segment.BlockSize+70] ^= 4
	}
	spoil(10, 1)
	spoil(9, 0) // hidden by 10
	list, _, _ := scrubbed(t, e, 0)
	if len(list) != 3 { // 10 is hidden in part, so all of it is checked once more
		t.Errorf("%+v", list)
	}
	for _, d := range list {
		if d.Part != "journal" || d.Volume != testVolume {
			t.Errorf("%+v", d)
		}
	}
	if _, err := p.Record(0, domain.Version{Epoch: 5, Seq: 9, Node: 1}); !domain.IsKind(err,
		domain.Corrupt) {
		t.Errorf("given all the same: %v", err)
	}
	before := told.count("corrupt")
	must(t, e.nv.drain(background))
	if told.count("corrupt") != before+2 {
		t.Errorf("%d facts", told.count("corrupt")-before)
	}
	for range 2 {
		for b, want := range []uint64{11, 0, 10, 10, 9, 9} {
			got, err := holds(p.v, uint64(b))
			if b == 1 != domain.IsKind(err, domain.Corrupt) || b != 1 && (err != nil || got != want) {
				t.Errorf("block %d: %d %v", b, got, err)
			}
		}
		recount(t, e)
		must(t, e.Checkpoint())
		e.Abandon()
		e = open(t, dev, quiet, journaled(nv), told.into)
		p = mustReplica(t, e)
	}
}

// TestReplicaJournalEnds deletes a replica and buries a slice whose records are in the journal:
// destaging goes on, and nothing of them comes back.
func TestReplicaJournalEnds(t *testing.T) {
	for _, how := range []string{"delete", "bury", "delete, and sweep later"} {
		dev := newMem(t, 16<<20, 256<<10, 2)
		nv := newMemory(t, dev, 16)
		e := open(t, dev, quiet, journaled(nv))
		p := replicaOn(t, e)
		for i := range uint64(20) {
			r := versioned(i*700, 2, i+1, 5, 100-i)
			if i%5 == 4 {
				r.Kind = segment.KindUnmap
			}
			_, err := give(p, r, 5)
			must(t, err)
		}
		switch how {
		case "bury":
			must(t, p.Bury(background, 0))
		case "delete":
			must(t, e.Delete(background, testVolume))
		default:
			deleted := make(signal, 1)
			e.maint.ckpt.Lock()
			go func() { deleted <- e.Delete(background, testVolume) }()
			for !p.v.gone.Load() {
				runtime.Gosched()
			}
			must(t, e.nv.drain(background))
			e.maint.ckpt.Unlock()
			must(t, <-deleted)
		}
		for i := range 3 {
			if i > 0 {
				e.Abandon()
				e = open(t, dev, quiet, journaled(nv))
			}
			recount(t, e)
			if n := e.space.live.Load(); n != 0 {
				t.Errorf("%s: %d bytes live", how, n)
			}
			if i == 1 {
				must(t, e.nv.drain(background))
			}
		}
		must(t, e.Close())
	}
}

// clocks notes moments of a device and its journal at once, by number.
type clocks struct {
	mu  sync.Mutex
	dev *mem.Device
	nv  *mem.Memory
	all []point
}

// mark gives the number of the present moment.
func (c *clocks) mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, point{c.dev.Mark(), c.nv.Mark()})
	return len(c.all) - 1
}

// at gives the last moment that is wholly before a cut, and the last of which something may be left
// by it.
func (c *clocks) at(cut point) (past, begun int) {
	past, begun = -1, -1
	for i, p := range c.all {
		if p.before(cut) {
			past = i
		}
		if p.dev <= cut.dev || p.nv <= cut.nv {
			begun = i
		}
	}
	return past, begun
}

// upto gives the model once the first so many things of each slice that were logged are in; what
// marks and was not told to be there may be missing.
func (m *ramReplica) upto(k [2]int, past int) *ramReplica {
	o := newRAM()
	o.below = m.below
	for _, x := range m.order {
		s := sliceOf(x.Block)
		if k[s]--; k[s] >= 0 && (x.what != ramMark || x.acked <= past) {
			o.apply(x)
		}
	}
	return o
}

// stands compares a replica behind a cut of device and journal with the model after every number of
// records of each slice that may be there.
func (c *contractRun) stands(p *Replica, past, begun int) error {
	var least, most, n [2]int
	for _, x := range c.ram.order {
		s := sliceOf(x.Block)
		n[s]++
		if x.acked <= past {
			least[s] = n[s]
		}
		if x.begun <= begun {
			most[s] = n[s]
		}
	}
	found, floors := map[heldKey]Meta{}, [2]domain.Version{}
	var parts []Meta
	for s := range uint32(2) {
		if floors[s] = p.Floor(s); floors[s].Compare(c.ram.floor[s]) > 0 {
			return fmt.Errorf("floor of slice %d is %s, was %s at most", s, floors[s], c.ram.floor[s])
		}
		for _, m := range metas(c.t, p, s) {
			if m.Part {
				parts = append(parts, m)
				continue
			}
			found[heldKey{s, m.Version}] = m
		}
	}
	var err error
	for a := least[0]; a <= most[0]; a++ {
		for b := least[1]; b <= most[1]; b++ {
			m := c.ram.upto([2]int{a, b}, past)
			bad := m.is(p, maps.Clone(found), floors, c.ram.floor)
			if bad == nil {
				bad = m.parts(p, parts, floors)
			}
			if bad == nil {
				bad = m.lacks(p)
			}
			if bad == nil {
				return nil
			}
			err = bad
		}
	}
	return fmt.Errorf("no state of records %v to %v: %w", least, most, err)
}

// TestContractJournalCrash cuts the power of a device and of the journal beside it, at every write
// and at every Persist, and of some that were cut once more, under a replica with one lane: of each
// slice the records that are there are the first so many, all acknowledged ones among them, each
// with its outcome and its bytes; over sessions, which go past the journal, floors, requests
// retired, members that are away, destaging and checkpoints (C1, C3 to C8, C11, E1, E2, E2b, E14).
func TestContractJournalCrash(t *testing.T) { rounds(t, contractJournalCrash) }

func contractJournalCrash(r *crashes) {
	t, count, seeds := r.t, 0, uint64(4)
	if raceOn {
		seeds = 1
	}
	for seed := range seeds {
		dev := crashDevice(t, 56, 1)
		nv := newMemory(t, dev, 6+2*int(seed))
		c := newContractRun(t, dev, r.seed(700+seed), often, journaled(nv))
		time := &clocks{dev: dev, nv: nv}
		dev.StartHistory()
		nv.StartHistory(dev.Ops)
		for i := range 90 {
			c.deliver(5, time.mark)
			c.leave(uint32(i%2), time.mark)
			for n := 0; i%30 >= 20 && n < 2; n++ { // a copy may follow the session's begin at once
				c.join(time.mark)
			}
			if i%3 == 2 {
				c.raise(uint32(i%2), uint64(i%4)*5)
			}
			if i%6 == 5 {
				c.e.logFloors()
			}
			if i%8 == 7 {
				if err := c.e.nv.drain(background); err != nil {
					t.Fatal(err)
				}
			}
			for range 6 { // what has to be cleaned
				if err := put(c.other, data(c.d.rnd.Uint64N(150), 1+c.d.rnd.IntN(3), 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		st := c.e.Stats()
		r.need(st.Checkpoints > 1 && st.Destages >= 10, "the script is too small: %+v", st)
		c.e.Abandon()
		cuts(r, dev, nv, images()/16, func(img *mem.Device, nv *mem.Memory, at point) error {
			count++
			c.again(r, img, nv, time, at, count%60 == 0)
			if count%60 == 30 {
				soundCrash(t, img)
			}
			return nil
		})
	}
}

// again opens what a cut left, compares it, and cuts the power of that start, too, where so asked:
// at points of the recovery, and of what destages and takes a checkpoint behind it.
func (c *contractRun) again(r *crashes, img *mem.Device, nv *mem.Memory, time *clocks, at point,
	deep bool,
) {
	past, begun := time.at(at)
	if deep {
		img.StartHistory()
		nv.StartHistory(img.Ops)
	}
	e := opened(c.t, img, append(c.tune, journaled(nv))...)
	defer e.Abandon()
	if err := c.stands(mustReplica(c.t, e), past, begun); err != nil {
		c.t.Fatalf("at %+v: %v", at, err)
	}
	recount(c.t, e)
	if !deep {
		return
	}
	must(c.t, e.nv.drain(background))
	must(c.t, e.Checkpoint())
	if err := c.stands(mustReplica(c.t, e), past, begun); err != nil {
		c.t.Fatalf("destaged, at %+v: %v", at, err)
	}
	e.Abandon()
	cuts(r, img, nv, 60, func(again *mem.Device, nv *mem.Memory, _ point) error {
		c.again(r, again, nv, time, at, false)
		return nil
	})
}

// raise raises the floor of a slice as far as it may, and retires all requests but the last few.
func (c *contractRun) raise(s uint32, but uint64) {
	if f := c.d.floor(s); f.Compare(c.ram.floor[s]) > 0 {
		c.ram.floor[s] = f
	}
	c.ram.below = max(c.ram.below, c.d.seq-min(c.d.seq, but))
	c.repeat()
}

// TestContractJournalModel is TestContractModel where nearly all goes through the journal: sessions
// are rare, and much is settled by the time it is destaged, by floors that are logged and by some
// that are not (C1, C3 to C7, C9, C11, E6, E12, E14).
func TestContractJournalModel(t *testing.T) {
	steps := 1200
	if raceOn || testing.Short() {
		steps = 300
	}
	for seed, kind := range []string{"one lane", "three lanes", "pair"} {
		var dev backends.Device = crashDevice(t, 60, 1+seed%2*2)
		tune := []func(*Config){often}
		if kind == "pair" {
			dev = newPair(t, 60, 80, 64<<10, 1)
			tune = append(tune, awake)
		}
		tune = append(tune, journaled(newMemory(t, dev, 8+6*seed)))
		c := newContractRun(t, dev, 900+uint64(seed), tune...)
		now, destages := func() int { return 0 }, int64(0)
		for i := range steps {
			c.relieve()
			was := c.e
			switch d := c.d.rnd.IntN(100); {
			case d < 55:
				c.deliver(6, now)
			case d < 60 && i%200 >= 180:
				c.join(now)
			case d < 70:
				if err := put(c.other, data(c.d.rnd.Uint64N(60), 1+c.d.rnd.IntN(3), uint64(i))); err != nil {
					t.Fatal(err)
				}
			case d < 80:
				c.raise(c.d.rnd.Uint32N(2), c.d.rnd.Uint64N(20))
			case d < 83:
				c.e.logFloors()
			case d < 86:
				c.leave(c.d.rnd.Uint32N(2), now)
			case d < 90:
				must(t, c.e.nv.drain(background))
			case d < 94:
				must(t, c.e.Checkpoint())
			case d < 98:
				c.restart(d < 96)
			}
			if c.e != was {
				destages += was.Stats().Destages
			}
			if i%10 == 0 {
				c.judge()
			}
			if t.Failed() {
				t.Fatalf("%s, step %d", kind, i)
			}
		}
		c.judge()
		c.restart(true)
		c.judge()
		must(t, c.e.nv.drain(background))
		c.judge()
		must(t, c.e.Close())
		if destages < int64(steps/20) {
			t.Errorf("%s: %d batches were destaged", kind, destages)
		}
		if one, ok := dev.(*mem.Device); ok {
			soundCrash(t, one)
		}
	}
}

// TestC12JournalCrash is TestC12Crash beside a journal: late records go past it, and what they take
// out of later branches is there with them or not at all; the others are on top of that (C12).
func TestC12JournalCrash(t *testing.T) { rounds(t, c12JournalCrash) }

func c12JournalCrash(r *crashes) {
	t, total := r.t, 0
	for seed := range uint64(3) {
		dev := crashDevice(t, 90, 1)
		nv := newMemory(t, dev, 6+2*int(seed))
		c := newCutRun(t, dev, r.seed(800+seed), journaled(nv),
			func(c *Config) { c.CheckpointBytes = 128 << 10 })
		time := &clocks{dev: dev, nv: nv}
		dev.StartHistory()
		nv.StartHistory(dev.Ops)
		for i := range 60 {
			c.deliver(time.mark)
			c.turn(time.mark)
			c.wear(4, 150)
			if i%7 == 6 {
				c.settle()
			}
			if i%20 == 19 {
				must(t, c.e.Checkpoint())
			}
		}
		c.e.Abandon()
		cuts(r, dev, nv, images()/16, func(img *mem.Device, nv *mem.Memory, at point) error {
			e := opened(t, img, append(c.tune, journaled(nv))...)
			defer e.Abandon()
			past, begun := time.at(at)
			p := mustReplica(t, e)
			if err := c.between(p, past, begun); err != nil {
				return err
			}
			recount(t, e)
			if total++; total%60 == 0 {
				must(t, e.nv.drain(background))
				if err := c.between(p, past, begun); err != nil {
					return err
				}
				must(t, e.Checkpoint())
				e.Abandon()
				soundCrash(t, img)
			}
			return c.standBetween(p, past, begun)
		})
	}
}
