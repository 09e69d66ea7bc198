package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// The tests of the contract with the replica protocol. Each rule has one named after it; a random
// run compares an engine with a second implementation in RAM, and power cuts are enumerated.

// recountHeld walks what a replica holds, adds what lives for its sake alone to live, segment by
// segment, and to kept, slot by slot, and gives the sum of that. The index and the replica must
// agree about which copies show.
func recountHeld(t testing.TB, rep *replica, live []int64, kept map[int]int64) (spare int64) {
	t.Helper()
	for _, l := range rep.e.lanes {
		l.mu.Lock()
		type spot struct {
			br    *branch
			block uint64
		}
		rl, tops, newest := &rep.lanes[l.no], 0, map[spot]*heldRecord{}
		for k, h := range rl.held {
			br := h.branchOf()
			lf := rep.fam.leaves[l.no][uint32(h.Block/segment.LeafBlocks)].of(br)
			for i := range h.Count {
				b := h.Block + uint64(i)
				if o := newest[spot{br, b}]; o == nil || o.Version.Compare(h.Version) < 0 {
					newest[spot{br, b}] = h
				}
				if h.Kind != segment.KindData {
					continue
				}
				shows := lf != nil && lf.own.get(int(b%segment.LeafBlocks)).Kind() == segment.Flash &&
					lf.own.get(int(b%segment.LeafBlocks)).Off() == h.off(i)
				if top := rl.of(br)[b].top == h; top != shows {
					t.Errorf("record %s block %d: on top %v, in the index %v", h.Version, b, top, shows)
				}
				if shows {
					tops++
					continue
				}
				if rep.e.nv.has(h.Addr) != (h.slot != nil) {
					t.Errorf("record %s stands at %d, in a slot %v", h.Version, h.Addr, h.slot != nil)
				}
				if h.slot != nil {
					kept[h.slot.No] += segment.BlockSize
				} else {
					live[(h.off(i)-rep.e.space.first)/rep.e.space.size] += segment.BlockSize
				}
				spare += segment.BlockSize
			}
			if k != h.key() || !h.durable {
				t.Errorf("record %s stands under %v, durable %v", h.Version, k, h.durable)
			}
		}
		rl.all(func(br *branch, blocks map[uint64]holders) {
			for b, hs := range blocks {
				want := newest[spot{br, b}]
				for o, h := range newest { // what an older one outdoes need not be noted
					if o.block == b && o.br.gen < br.gen && want != nil && h.Version.Compare(want.Version) > 0 {
						want = hs.newest
					}
				}
				rl.all(func(o *branch, blocks map[uint64]holders) { // nor what a copy does
					k := blocks[b].known
					if o.gen <= br.gen && want != nil && k != nil && k.ver.Compare(want.Version) > 0 {
						want = hs.newest
					}
				})
				old := hs.newest != nil && hs.newest != want && (want == nil ||
					want.Version.Compare(rep.slice(sliceOf(b)).Floor) > 0) // else it may be kept out
				if old || hs == (holders{}) {
					t.Errorf("block %d: newest %v, not %v", b, hs.newest, want)
				}
				if hs.top != nil && hs.top.Kind == segment.KindData {
					tops--
				}
			}
		})
		if tops != 0 {
			t.Errorf("lane %d: %d blocks show held copies and do not say so", l.no, tops)
		}
		l.mu.Unlock()
	}
	return spare
}

// replicaOn makes a replica of 2 GiB: two slices.
func replicaOn(t testing.TB, e *Engine) *Replica {
	t.Helper()
	p, err := e.CreateReplica(background, testVolume, 2<<30, 7)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustReplica(t testing.TB, e *Engine) *Replica {
	t.Helper()
	p, ok := e.Replica(testVolume)
	if !ok {
		t.Fatal("the replica is gone")
	}
	return p
}

// outcome is told what became of a record.
type outcome struct {
	sync.WaitGroup
	err error
}

// Appended implements Appender.
func (o *outcome) Appended(_ *Record, err error) {
	o.err = err
	o.Done()
}

// give gives a record to a replica in a message of an epoch, and waits for its outcome.
func give(p *Replica, r *Record, msg domain.Epoch) (Outcome, error) {
	o := &outcome{}
	o.Add(1)
	r.To = o
	p.Append(r, msg)
	o.Wait()
	return r.Outcome, o.err
}

// versioned is a record of data with a version and a request, both of which follow from seq.
func versioned(block uint64, count int, n uint64, epoch domain.Epoch, seq uint64) *Record {
	r := data(block, count, n)
	r.Version, r.Gen = domain.Version{Epoch: epoch, Seq: seq, Node: 1}, 1
	r.Request = domain.RequestID{Gateway: 3, Incarnation: 4, Counter: seq, Attempt: 1}
	return r
}

func metas(t testing.TB, p *Replica, slice uint32) []Meta {
	t.Helper()
	var list []Meta
	if err := p.Unsettled(slice, func(m Meta) error {
		list = append(list, m)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestC1Outcomes proves what Append makes of a record by its version, block by block, at once and
// behind a restart: applied, superseded, mixed with its mask, duplicate; that a version which names
// another record takes the engine out of service; and that what is refused leaves nothing.
func TestC1Outcomes(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 2)
	e := open(t, dev)
	p := replicaOn(t, e)
	expect := func(r *Record, want Outcome, kept ...int) {
		t.Helper()
		got, err := give(p, r, 9)
		var mask segment.Mask
		for _, i := range kept {
			mask.Set(i)
		}
		if err != nil || got != want || want != Duplicate && r.Kept != mask {
			t.Fatalf("version %s: %v %v, mask %x, not %v %x", r.Version, got, err, r.Kept, want, mask)
		}
	}
	expect(versioned(0, 4, 10, 5, 10), Applied)
	expect(versioned(1, 2, 9, 5, 9), Superseded, 0, 1)
	expect(versioned(3, 3, 8, 5, 8), Mixed, 0)
	expect(versioned(3, 3, 8, 5, 8), Duplicate)
	expect(versioned(4, 1, 1, 6, 1), Applied) // epochs come before sequences
	expect(versioned(1, 2, 9, 5, 9), Duplicate)
	zero := versioned(0, 8, 0, 6, 2)
	zero.Kind = segment.KindUnmap
	expect(zero, Applied)
	late := versioned(2, 3, 7, 6, 0)
	late.Version.Epoch, late.Version.Seq = 5, 99
	expect(late, Superseded, 0, 1, 2)
	last := versioned(segment.SliceBlocks+1, 1, 4, 5, 10) // another slice, the same version
	expect(last, Applied)
	for _, bad := range []*Record{
		versioned(0, 1, 1, 10, 1), versioned(0, 1, 1, 5, 0), versioned(0, 1, 1, 5, 1<<48),
	} {
		if _, err := give(p, bad, 9); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("version %s: %v", bad.Version, err)
		}
	}
	check(t, p.Volume(), 5, 0)
	check(t, p.Volume(), segment.SliceBlocks+1, 4)
	before := [2][]Meta{metas(t, p, 0), metas(t, p, 1)}
	if len(before[0]) != 6 || len(before[1]) != 1 {
		t.Fatalf("%+v", before)
	}
	e.Abandon()
	e = open(t, dev)
	p = mustReplica(t, e)
	for i := range before {
		if after := metas(t, p, uint32(i)); !slices.Equal(after, before[i]) {
			t.Errorf("behind a restart %+v, not %+v", after, before[i])
		}
	}
	expect(versioned(3, 3, 8, 5, 8), Duplicate)
	expect(versioned(3, 3, 8, 5, 7), Superseded, 0, 1, 2)
	check(t, p.Volume(), 5, 0)
	recount(t, e)
	if err := put(p.Volume(), data(0, 1, 1)); !domain.IsKind(err, domain.Unsupported) {
		t.Errorf("a record without a version: %v", err)
	}
	_, err := give(p, versioned(3, 3, 77, 5, 8), 9)
	if !errors.Is(err, ErrConflict) || !domain.IsKind(err, domain.Conflict) {
		t.Errorf("another record of the same version: %v", err)
	}
	if _, err := give(p, versioned(9, 1, 1, 9, 9), 9); !domain.IsKind(err, domain.Unavailable) {
		t.Errorf("after a conflict: %v", err)
	}
	e.Abandon()
}

// TestC1Again holds the write of a record back and gives it again: nobody is told anything before
// it is durable, and then one of them that it was stored. Given again later it is a duplicate at
// once.
func TestC1Again(t *testing.T) {
	dev := faulty.New(newMem(t, 16<<20, 256<<10, 1), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	p := replicaOn(t, e)
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	const times = 4
	var list [times]*Record
	done := make(signal, times)
	for i := range list {
		list[i] = versioned(0, 2, 5, 3, 3)
		list[i].To = done
		p.Append(list[i], 3)
		if i == 0 {
			<-stall.Stalled()
		}
	}
	select {
	case err := <-done:
		t.Errorf("told before it was durable: %v", err)
	default:
	}
	check(t, p.Volume(), 1, 0)
	stall.Release()
	count := map[Outcome]int{}
	for range times {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, r := range list {
		count[r.Outcome]++
	}
	if count[Applied] != 1 || count[Duplicate] != times-1 {
		t.Errorf("%v", count)
	}
	check(t, p.Volume(), 1, 5)
	if got, err := give(p, versioned(0, 2, 5, 3, 3), 3); got != Duplicate || err != nil {
		t.Errorf("%v %v", got, err)
	}
}

// sameRecord compares what Record gives with what was accepted.
func sameRecord(p *Replica, m *Meta, n uint64) error {
	r, err := p.Record(uint32(m.Block/segment.SliceBlocks), m.Version)
	if err != nil {
		return err
	}
	got := Meta{r.Kind, r.Block, r.Count, r.Version, r.Request, r.Gen, r.Outcome, false}
	if got != *m {
		return fmt.Errorf("record %+v, not %+v", got, *m)
	}
	if m.Kind == segment.KindData && !bytes.Equal(r.Data, fill(m.Count, n)) {
		return fmt.Errorf("record %s spells %d, not %d", m.Version, binary.LittleEndian.Uint64(r.Data), n)
	}
	return nil
}

// TestC2MaxGen proves that a read gives the highest generation that one of its blocks was written
// in: exactly where records of data are held, whatever was accepted last, and none too low for what
// is settled, for zeros and for holes; of started reads as of others; and behind restarts.
func TestC2MaxGen(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 2)
	e := open(t, dev)
	p := replicaOn(t, e)
	add := func(block uint64, count int, seq uint64, gen uint32, kind segment.Kind) {
		t.Helper()
		r := versioned(block, count, seq, 5, seq)
		if r.Gen = gen; kind != segment.KindData {
			r.Kind, r.Data = kind, nil
		}
		if _, err := give(p, r, 5); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(block uint64, count int, want uint32) {
		t.Helper()
		dst := backends.AlignedBuffer(count * segment.BlockSize)
		got, err := p.Read(block, count, dst)
		if err != nil || got != want {
			t.Errorf("blocks %d on: generation %d %v, not %d", block, got, err, want)
		}
		arrived := make(arrivedChan, 1)
		r := &Reading{Block: block, Count: count, Dst: dst, To: arrived}
		if !p.v.Start(r, false) {
			return
		}
		<-arrived
		if ended, err := r.Check(); !ended || err != nil || r.Gen != want {
			t.Errorf("blocks %d on, started: generation %d %v, not %d", block, r.Gen, err, want)
		}
	}
	add(0, 2, 10, 3, segment.KindData)
	add(2, 2, 11, 4, segment.KindData)
	add(0, 3, 5, 9, segment.KindData) // superseded: nobody sees it
	for range 2 {
		expect(0, 2, 3)
		expect(2, 2, 4)
		expect(0, 4, 4)
		e.Abandon()
		e = open(t, dev)
		p = mustReplica(t, e)
	}
	add(1, 1, 20, 5, segment.KindUnmap)
	add(3, 1, 21, 6, segment.KindZero)
	expect(2, 1, 4)
	for range 2 {
		expect(1, 1, 5)
		expect(3, 1, 6)
		expect(0, 1, 3)
		e.Abandon()
		e = open(t, dev)
		p = mustReplica(t, e)
	}
	add(8, 1, 30, 7, segment.KindData)
	e.Retire(3, 4, 100)
	p.SetFloor(0, domain.Version{Epoch: 6})
	for range 2 {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, dev)
		p = mustReplica(t, e)
		if len(metas(t, p, 0)) != 0 {
			t.Error("records are held")
		}
		expect(8, 1, 9)
		expect(segment.SliceBlocks, 1, 0)
	}
	e.Abandon()
}

// TestC3HeldRecordsMoveWhole overwrites records, superseded and overtaken ones among them, and then
// lets another volume drive the cleaner over their segments many times: each is still given whole,
// with all that it was accepted with, also behind restarts, and the space comes back when they are
// settled.
func TestC3HeldRecordsMoveWhole(t *testing.T) {
	dev := crashDevice(t, 60, 1)
	e := open(t, dev, often)
	p := replicaOn(t, e)
	other, err := e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	var list []Meta
	spells := map[domain.Version]uint64{}
	place := map[domain.Version]uint64{}
	for i := range uint64(24) {
		seq := 100 + i
		if i%3 == 2 {
			seq = 50 + i // a late one
		}
		r := versioned(i%4, 1+int(i%4), seq, 5, seq)
		if i == 20 {
			r.Kind = segment.KindZero
		}
		if _, err := give(p, r, 5); err != nil {
			t.Fatal(err)
		}
		spells[r.Version] = seq
		for j := range uint64(6) { // between them, so that segments are worth cleaning
			if err := put(other, data(j, 1, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	list = metas(t, p, 0)
	for _, m := range list {
		h, err := p.find(heldKey{0, m.Version})
		if err != nil {
			t.Fatal(err)
		}
		place[m.Version] = h.Addr
	}
	churn := func() {
		rnd := newRand(3)
		for i := range uint64(700) {
			if err := put(other, data(rnd.Uint64N(200), 1+rnd.IntN(3), i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	judge := func(when string) {
		t.Helper()
		for i := range list {
			if err := sameRecord(p, &list[i], spells[list[i].Version]); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		recount(t, e)
	}
	judge("at first")
	churn()
	if e.Stats().Cleaned == 0 {
		t.Fatal("nothing was cleaned")
	}
	moved := 0
	for _, m := range list {
		if h, err := p.find(heldKey{0, m.Version}); err == nil && h.Addr != place[m.Version] {
			moved++
		}
	}
	if moved < 10 {
		t.Fatalf("%d records were moved", moved)
	}
	judge("cleaned")
	for range 2 {
		e.Abandon()
		e = open(t, dev, often)
		p = mustReplica(t, e)
		other, _ = e.Volume(domain.VolumeID{UUID: domain.UUID{8}})
		judge("behind a restart")
		churn()
		judge("cleaned again")
	}
	full := e.space.live.Load()
	e.Retire(3, 4, 1<<40)
	p.SetFloor(0, domain.Version{Epoch: 5, Seq: 1 << 40})
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Record(0, list[0].Version); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("settled, and held still: %v", err)
	}
	if e.space.live.Load() >= full {
		t.Errorf("%d bytes live, %d before anything was settled", e.space.live.Load(), full)
	}
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestScrubHeldRecords proves that a scrub says nothing of a sound replica, and finds a spoiled
// block that nobody sees but of which a record is held, by volume, block and version (E18); that
// the cleaner leaves such a record where it is; and that Record tells it.
func TestScrubHeldRecords(t *testing.T) {
	dev := crashDevice(t, 60, 1)
	e := open(t, dev, quiet)
	defer e.Abandon()
	p := replicaOn(t, e)
	for _, seq := range []uint64{9, 3, 5, 12} {
		if _, err := give(p, versioned(seq%2, 2, seq, 5, seq), 5); err != nil {
			t.Fatal(err)
		}
	}
	if list, _, _ := scrubbed(t, e, 0); len(list) != 0 {
		t.Fatalf("%+v", list)
	}
	ver := domain.Version{Epoch: 5, Seq: 3, Node: 1}
	h, err := p.find(heldKey{0, ver})
	if err != nil {
		t.Fatal(err)
	}
	at := int64(h.Addr) * segment.Unit
	spoilAt(t, dev, at+segment.BlockSize+77, 1, func(b []byte) { b[0] ^= 8 })
	list, _, _ := scrubbed(t, e, 0)
	if len(list) != 1 || list[0].Part != "record" || list[0].Version != ver || list[0].Block != 1 ||
		list[0].Volume != testVolume || list[0].Off != at {
		t.Errorf("%+v", list)
	}
	if _, err := p.Record(0, ver); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("given all the same: %v", err)
	}
	other, err := e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	rnd := newRand(3)
	for i := range uint64(900) {
		if err := put(other, data(rnd.Uint64N(200), 1+rnd.IntN(3), i)); err != nil {
			t.Fatal(err)
		}
	}
	still, err := p.find(heldKey{0, ver})
	if err != nil || still.Addr != h.Addr || e.Stats().Cleaned == 0 {
		t.Errorf("it was moved from %d to %d: %v", h.Addr, still.Addr, err)
	}
	sound, err := p.Record(0, domain.Version{Epoch: 5, Seq: 9, Node: 1})
	if err != nil || sound.Count != 2 {
		t.Errorf("its neighbour: %v", err)
	}
}

// TestC4RestartTellsTheTail proves that behind a crash and behind a clean stop exactly the records
// above the floor are told, by version, as they were accepted.
func TestC4RestartTellsTheTail(t *testing.T) {
	for _, stop := range []bool{false, true} {
		dev := newMem(t, 16<<20, 256<<10, 2)
		e := open(t, dev)
		p := replicaOn(t, e)
		for i := range uint64(40) {
			seq := i*7%40 + 1 // out of order
			if _, err := give(p, versioned(i*700%5000, 1+int(i%3), seq, 5, seq), 6); err != nil {
				t.Fatal(err)
			}
			if i == 25 {
				if err := e.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
		}
		floor := domain.Version{Epoch: 5, Seq: 12, Node: 1}
		p.SetFloor(0, floor)
		want := metas(t, p, 0)
		if stop {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		} else if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		e.Abandon()
		e = open(t, dev)
		p = mustReplica(t, e)
		if got := metas(t, p, 0); len(want) != 28 || !slices.Equal(got, want) || p.Floor(0) != floor {
			t.Errorf("%d records, floor %s: %+v", len(got), p.Floor(0), got)
		}
		e.Abandon()
	}
}

// TestC4BesideCheckpoint lets records come while a checkpoint is under way, behind its mark and
// before the leaf is saved, which therefore has them: they are in the table after a crash as well,
// one that is overtaken already among them, and what lives for their sake is counted.
func TestC4BesideCheckpoint(t *testing.T) {
	dev := faulty.New(crashDevice(t, 60, 1), nil)
	e := open(t, dev, quiet)
	defer dev.Heal() // else a failed test waits for ever
	p := replicaOn(t, e)
	const extents = 40 // more leaves than one chunk holds: the last are saved behind its write
	for i := range uint64(extents) {
		r := versioned(i*segment.LeafBlocks, 1, i+1, 5, i+1)
		if _, err := give(p, r, 5); err != nil {
			t.Fatal(err)
		}
	}
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	done := make(chan error, 1)
	go func() { done <- e.Checkpoint() }()
	<-stall.Stalled()
	for _, seq := range []uint64{107, 109, 103} {
		r := versioned((extents-1)*segment.LeafBlocks+seq%4, 2, seq, 5, seq)
		if _, err := give(p, r, 5); err != nil {
			t.Fatal(err)
		}
	}
	stall.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := metas(t, p, 0)
	e.Abandon()
	e = open(t, dev)
	defer e.Abandon()
	p = mustReplica(t, e)
	if got := metas(t, p, 0); len(got) != extents+3 || !slices.Equal(got, want) {
		t.Errorf("%+v, not %+v", got, want)
	}
	for i := range want {
		if err := sameRecord(p, &want[i], want[i].Version.Seq); err != nil {
			t.Error(err)
		}
	}
	recount(t, e)
}

// TestC5Floor proves that a floor only rises, that what is at or below it is a duplicate though it
// is not held any more, and that a floor which a crash forgets makes nothing old win: all that was
// above the one that is left is held again.
func TestC5Floor(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 1)
	e := open(t, dev, quiet)
	e.floors.stop() // the crash comes before they are logged
	p := replicaOn(t, e)
	at := func(seq uint64) domain.Version { return domain.Version{Epoch: 5, Seq: seq, Node: 1} }
	for _, seq := range []uint64{10, 20, 30} {
		if _, err := give(p, versioned(0, 1, seq, 5, seq), 5); err != nil {
			t.Fatal(err)
		}
		if seq == 10 {
			p.SetFloor(0, at(10))
			e.Retire(3, 4, 11)
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.SetFloor(0, at(30))
	p.SetFloor(0, at(20))
	if p.Floor(0) != at(30) {
		t.Errorf("the floor fell to %s", p.Floor(0))
	}
	e.Retire(3, 4, 100)
	for _, l := range e.lanes {
		l.mu.Lock()
		l.sweepHeld(p.rep)
		l.mu.Unlock()
	}
	if got, err := give(p, versioned(0, 1, 25, 5, 25), 6); got != Duplicate || err != nil {
		t.Errorf("below the floor: %v %v", got, err)
	}
	if _, err := p.Record(0, at(30)); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("settled: %v", err)
	}
	e.Abandon()
	e = open(t, dev, quiet)
	defer e.Abandon()
	p = mustReplica(t, e)
	if p.Floor(0) != at(10) || len(metas(t, p, 0)) != 2 {
		t.Fatalf("floor %s, %v", p.Floor(0), metas(t, p, 0))
	}
	if got, err := give(p, versioned(0, 1, 25, 5, 25), 6); got != Superseded || err != nil {
		t.Errorf("late, behind a crash: %v %v", got, err)
	}
	check(t, p.Volume(), 0, 30)
}

// TestC5FloorIsLogged proves that a floor is on the device a moment after it was raised, without a
// checkpoint, and that nothing is written behind that.
func TestC5FloorIsLogged(t *testing.T) {
	dev := recorded(t, 16<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	defer e.Abandon()
	p := replicaOn(t, e)
	for i := range uint64(8) {
		if _, err := give(p, versioned(i*1000, 1, 1, 5, i+1), 5); err != nil {
			t.Fatal(err)
		}
	}
	floor := domain.Version{Epoch: 5, Seq: 6}
	p.SetFloor(0, floor)
	e.floors.done.Wait()
	end := dev.Ops()
	img := open(t, copyOf(dev), quiet)
	defer img.Abandon()
	if got := mustReplica(t, img).Floor(0); got != floor {
		t.Errorf("floor %s", got)
	}
	p.SetFloor(0, floor)
	p.SetFloor(0, domain.Version{Epoch: 5, Seq: 2})
	e.floors.done.Wait()
	e.logFloors()
	if dev.Ops() != end {
		t.Errorf("%d operations at rest", dev.Ops()-end)
	}
}

// TestC5FloorProvesTheTail proves that the last record of every lane that took some is damage that
// is told when it rots behind a floor, and not the torn end of a log.
func TestC5FloorProvesTheTail(t *testing.T) {
	for _, floor := range []bool{true, false} {
		dev := newMem(t, 16<<20, 256<<10, 2)
		e := open(t, dev, quiet)
		p := replicaOn(t, e)
		taken := map[uint8]placed{}
		for i := range uint64(8) {
			if _, err := give(p, versioned(i*1024, 1, 1, 5, i+1), 5); err != nil {
				t.Fatal(err)
			}
			no := p.v.lane(i * 1024).no
			list := logged(t, e, no)
			taken[no] = list[len(list)-1]
		}
		if floor {
			p.SetFloor(0, domain.Version{Epoch: 5, Seq: 2})
			e.floors.done.Wait()
		}
		e.Abandon()
		for _, c := range taken {
			clearAt(t, dev, c.off, segment.Sector)
		}
		var told facts
		e = open(t, dev, quiet, told.into)
		if n := told.count("corrupt"); len(taken) != 2 || floor && n != 2 || !floor && n != 0 {
			t.Errorf("%d lanes, a floor behind them %t: told of %d", len(taken), floor, n)
		}
		e.Abandon()
	}
}

// TestC6Requests proves that a request is known from Append until it is retired, whatever its
// attempt, also when its record is far below the floor, superseded, or behind restarts; and that a
// bound once said outlives a checkpoint.
func TestC6Requests(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 2)
	e := open(t, dev)
	p := replicaOn(t, e)
	for seq := uint64(30); seq > 0; seq-- { // each below the one before
		if _, err := give(p, versioned(0, 1, seq, 5, seq), 5); err != nil {
			t.Fatal(err)
		}
	}
	p.SetFloor(0, domain.Version{Epoch: 6})
	known := func(e *Engine, from uint64) {
		t.Helper()
		for c := uint64(1); c <= 30; c++ {
			v, ok := e.Known(domain.RequestID{Gateway: 3, Incarnation: 4, Counter: c, Attempt: uint8(c)})
			if ok != (c >= from) || ok && v != (domain.Version{Epoch: 5, Seq: c, Node: 1}) {
				t.Errorf("request %d: %v %v", c, v, ok)
			}
		}
	}
	known(e, 1)
	if _, ok := e.Known(domain.RequestID{Gateway: 3, Incarnation: 5, Counter: 7}); ok {
		t.Error("a request of another incarnation is known")
	}
	e.Abandon()
	e = open(t, dev)
	known(e, 1)
	mustReplica(t, e).SetFloor(0, domain.Version{Epoch: 6}) // forgotten
	e.Retire(3, 4, 11)
	e.Retire(3, 4, 5) // older
	known(e, 11)
	above := versioned(9, 1, 1, 9, 1) // the floor: its record is held on
	above.Request = domain.RequestID{Gateway: 9, Incarnation: 1, Counter: 5}
	if _, err := give(mustReplica(t, e), above, 9); err != nil {
		t.Fatal(err)
	}
	e.Retire(9, 1, 6)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev)
	known(e, 11)
	if _, ok := e.Known(above.Request); ok {
		t.Error("a stop forgot that a request was retired")
	}
	n := 0
	for _, l := range e.lanes {
		n += len(mustReplica(t, e).rep.lanes[l.no].held)
	}
	if n != 21 {
		t.Errorf("%d records held for 20 requests and one above the floor", n)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestC6OneRequestOfSeveral gives several records under one request: the highest version answers
// for it, attempts make no difference, and whatever settles first, nothing is left in the end.
func TestC6OneRequestOfSeveral(t *testing.T) {
	e := open(t, newMem(t, 16<<20, 256<<10, 2))
	defer e.Abandon()
	p := replicaOn(t, e)
	id := domain.RequestID{Gateway: 2, Incarnation: 1, Counter: 5}
	for _, seq := range []uint64{3, 9, 1, 7, 5} {
		r := versioned(seq*1000, 1, seq, 5, seq)
		r.Request, r.Request.Attempt = id, uint8(seq)
		if _, err := give(p, r, 5); err != nil {
			t.Fatal(err)
		}
	}
	if v, ok := e.Known(id); !ok || v.Seq != 9 {
		t.Errorf("%v %v", v, ok)
	}
	e.Retire(2, 1, 6)
	for _, seq := range []uint64{4, 8, 20} {
		p.SetFloor(0, domain.Version{Epoch: 5, Seq: seq})
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		n, want := 0, map[uint64]int{4: 3, 8: 1, 20: 0}[seq]
		for h := e.requests.of[id]; h != nil; h = h.also {
			n++
		}
		if n != want || len(metas(t, p, 0)) != want {
			t.Errorf("floor %d: %d records of the request, not %d", seq, n, want)
		}
	}
	if len(e.requests.of) != 0 {
		t.Errorf("%d requests are left", len(e.requests.of))
	}
}

// TestC7Seal proves that a slice refuses every message below the epoch it was sealed at, in this
// life and in later ones, behind a crash and behind a clean stop; that it takes records of older
// epochs in messages of the new one; and that no other slice minds.
func TestC7Seal(t *testing.T) {
	for _, stop := range []bool{false, true} {
		dev := newMem(t, 16<<20, 256<<10, 2)
		e := open(t, dev)
		p := replicaOn(t, e)
		if err := p.Seal(background, 20, 0); err != nil {
			t.Fatal(err)
		}
		if err := p.Seal(background, 19, 0); !domain.IsKind(err, domain.Stale) {
			t.Errorf("sealed at a lower epoch: %v", err)
		}
		err := p.Seal(background, 30, 1, 2)
		if !domain.IsKind(err, domain.OutOfRange) || p.Sealed(1) != 0 {
			t.Errorf("one slice beyond the end: %v, %d", err, p.Sealed(1))
		}
		judge := func() {
			t.Helper()
			if p.Sealed(0) != 20 || p.Sealed(1) != 0 {
				t.Errorf("sealed at %d and %d", p.Sealed(0), p.Sealed(1))
			}
			if _, err := give(p, versioned(0, 1, 1, 5, 900), 19); !domain.IsKind(err, domain.Stale) {
				t.Errorf("a message of an older epoch: %v", err)
			}
		}
		judge()
		if got, err := give(p, versioned(0, 1, 1, 5, 1), 20); got != Applied || err != nil {
			t.Errorf("an older record in a new message: %v %v", got, err)
		}
		if _, err := give(p, versioned(segment.SliceBlocks, 1, 1, 5, 2), 5); err != nil {
			t.Errorf("another slice: %v", err)
		}
		for range 2 {
			if stop {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			e.Abandon()
			e = open(t, dev)
			p = mustReplica(t, e)
			judge()
		}
		e.Abandon()
	}
}

// TestC13Bury proves that nothing of a buried slice comes back, by a message or by a restart, with
// its records on their way, in the log or in a checkpoint; that its space is free; and that the id
// of a replica that was deleted is never used again.
func TestC13Bury(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	for i := range uint64(20) {
		for _, first := range []uint64{0, segment.SliceBlocks} {
			if _, err := give(p, versioned(first+i*1000, 2, i+1, 5, i+1), 5); err != nil {
				t.Fatal(err)
			}
		}
		if i == 10 {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var wg sync.WaitGroup
	for i := range uint64(20) { // on their way meanwhile
		r := versioned(i*1000, 2, 99, 6, i+1)
		r.To = acker(func(error) { wg.Done() })
		wg.Add(1)
		p.Append(r, 6)
	}
	for range 2 {
		if err := p.Bury(background, 0); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	judge := func() {
		t.Helper()
		for i := range uint64(20) {
			check(t, p.Volume(), i*1000, 0)
			check(t, p.Volume(), segment.SliceBlocks+i*1000, i+1)
		}
		_, err := give(p, versioned(3, 1, 1, 9, 9), 9)
		if !domain.IsKind(err, domain.NotFound) || len(metas(t, p, 0)) != 0 || len(metas(t, p, 1)) != 20 {
			t.Errorf("%v; %d and %d records", err, len(metas(t, p, 0)), len(metas(t, p, 1)))
		}
		if err := p.Seal(background, 9, 0); !domain.IsKind(err, domain.NotFound) {
			t.Errorf("sealed: %v", err)
		}
		if v := p.Volume().Info(); v.Own != 40*segment.BlockSize {
			t.Errorf("%s on the device", v.Own)
		}
		recount(t, e)
	}
	judge()
	for i := range 3 {
		if i == 1 {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		e.Abandon()
		e = open(t, dev, quiet)
		p = mustReplica(t, e)
		judge()
	}
	if err := e.Delete(background, testVolume); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, err := e.CreateReplica(background, testVolume, 2<<30, 9)
		if _, bad := e.Create(background, testVolume, 2<<30, 9); !domain.IsKind(err, domain.Exists) ||
			!domain.IsKind(bad, domain.Exists) {
			t.Errorf("made again: %v, %v", err, bad)
		}
		if n := e.space.live.Load(); n != 0 {
			t.Errorf("%d bytes live", n)
		}
		recount(t, e)
		if i == 1 {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		e.Abandon()
		e = open(t, dev, quiet)
	}
	e.Abandon()
}

// TestC13BuryWaits holds the write of a record back, in another lane than the one that logs the
// burial: the burial ends behind it, and nothing of it is left.
func TestC13BuryWaits(t *testing.T) {
	dev := faulty.New(newMem(t, 16<<20, 256<<10, 2), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	p := replicaOn(t, e)
	block := uint64(0)
	for p.v.lane(block).no == 0 {
		block += segment.LeafBlocks
	}
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	r, taken, buried := versioned(block, 1, 1, 5, 1), make(signal, 1), make(signal, 1)
	r.To = taken
	p.Append(r, 5)
	<-stall.Stalled()
	writes := dev.Inner().Stats().Writes
	go func() { buried <- p.Bury(background, 0) }()
	for dev.Inner().Stats().Writes == writes {
		runtime.Gosched()
	}
	for range 1000 {
		runtime.Gosched()
	}
	if len(buried) > 0 {
		t.Error("the burial did not wait")
	}
	stall.Release()
	for _, done := range []signal{taken, buried} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	check(t, p.Volume(), block, 0)
	recount(t, e)
}

// ramReplica is the contract once more, in RAM and naive: it never forgets a version and decides
// by comparing with all that it was ever given.
type ramReplica struct {
	recs  map[heldKey]*ramRecord // of the era that its slice is in
	order []*ramRecord           // all that was logged, as it was accepted
	floor map[uint32]domain.Version
	seal  map[uint32]domain.Epoch
	era   map[uint32]uint16
	since map[uint32]domain.Epoch // of sessions under way
	cut   map[uint32]bool         // sessions that a restart cut short
	at    map[uint64]ramBlock
	most  map[uint32]domain.Version  // that was accepted in each extent
	away  map[uint32]map[uint64]bool // grains that member 7 may lack, of slices that it is away from
	below uint64                     // of the one gateway's counters
}

// ramRecord is a record, or another thing that is logged.
type ramRecord struct {
	Meta
	n     uint64
	what  ramKind
	at    domain.Version // the floor, when it was accepted
	begun int
	acked int
	// mask is what was decided, if it was: once more it may come out otherwise, since which blocks are
	// trusted is not logged.
	mask *segment.Mask
}

type ramKind int

const (
	ramAppend ramKind = iota
	ramImport         // of one block
	ramSame           // of one block
	ramBegin
	ramEnd
	ramMark // by what is not logged itself
	ramAway // of member 7
	ramBack
)

// ramBlock is what a block shows. Its version is exact.
type ramBlock struct {
	ver     domain.Version
	era     uint16
	n       uint64
	kind    segment.Kind
	gen     uint32
	trusted bool       // by a copy, by word of the source, or by a record of the session's epoch
	rec     *ramRecord // that wrote it; nil for a copy
}

func (b ramBlock) spelling(n uint64) ramBlock {
	b.n = n
	return b
}

func newRAM() *ramReplica {
	return &ramReplica{
		recs: map[heldKey]*ramRecord{}, floor: map[uint32]domain.Version{},
		seal: map[uint32]domain.Epoch{}, era: map[uint32]uint16{}, since: map[uint32]domain.Epoch{},
		cut: map[uint32]bool{}, at: map[uint64]ramBlock{}, most: map[uint32]domain.Version{},
		away: map[uint32]map[uint64]bool{},
	}
}

// stays tells whether a block keeps what it has against a version.
func (m *ramReplica) stays(b uint64, ver, floor domain.Version, exact bool) bool {
	s, x := sliceOf(b), m.at[b]
	if x.era != m.era[s] || x.ver == (domain.Version{}) && !x.trusted {
		return false
	}
	resolved := m.since[s] != 0 && x.trusted && ver.Compare(floor) <= 0
	if resolved && exact && x.ver.Compare(ver) < 0 {
		panic("what a block has is below what the source had resolved")
	}
	return resolved || x.ver.Compare(ver) > 0
}

// mark notes what a member that is away may lack.
func (m *ramReplica) mark(x *ramRecord) {
	grains := m.away[sliceOf(x.Block)]
	for i := 0; grains != nil && i < x.Count; i++ {
		grains[(x.Block+uint64(i))/segment.GrainBlocks] = true
	}
}

// lacks compares the maps: none is too small.
func (m *ramReplica) lacks(p *Replica) error {
	for s := range uint32(2) {
		got, ok := p.Dirty(s, 7)
		if ok != (m.away[s] != nil) {
			return fmt.Errorf("member 7 is away from slice %d: %t", s, ok)
		}
		for g := range m.away[s] {
			if i := g % segment.SliceGrains; got[i/64]>>(i%64)&1 == 0 {
				return fmt.Errorf("slice %d: grain %d is not marked", s, i)
			}
		}
	}
	return nil
}

// apply lets something that was logged have its effect, and gives the mask of a record.
func (m *ramReplica) apply(x *ramRecord) (mask segment.Mask, kept int) {
	s := sliceOf(x.Block)
	if x.what == ramAppend || x.what == ramImport || x.what == ramMark {
		m.mark(x)
	}
	switch x.what {
	case ramMark:
	case ramAway:
		m.away[s] = map[uint64]bool{}
		for _, y := range m.recs {
			if sliceOf(y.Block) == s && y.Version.Compare(x.at) > 0 {
				m.mark(y)
			}
		}
	case ramBack:
		delete(m.away, s)
	case ramAppend:
		for i := range x.Count {
			b := x.Block + uint64(i)
			stays := x.mask == nil && m.stays(b, x.Version, x.at, true)
			if stays || x.mask != nil && x.mask.Kept(i) {
				mask.Set(i)
				kept++
				continue
			}
			was := m.at[b]
			m.at[b] = ramBlock{
				ver: x.Version, era: m.era[s], n: x.n, kind: x.Kind, gen: x.Gen, rec: x,
				trusted: was.trusted && was.era == m.era[s] ||
					m.since[s] != 0 && x.Version.Epoch >= m.since[s],
			}
			if x.Kind != segment.KindData {
				m.at[b] = m.at[b].spelling(0)
			}
		}
		m.recs[heldKey{s, x.Version}] = x
		m.accepted(x.Block, x.Version)
	case ramImport:
		if m.stays(x.Block, x.Version, x.at, x.Kind == segment.KindData) {
			was := m.at[x.Block]
			was.trusted = true
			m.at[x.Block] = was
			return mask, 1
		}
		if x.Kind != segment.KindUnmap { // else it may have been there
			m.accepted(x.Block, x.Version)
		}
		m.at[x.Block] = ramBlock{
			ver: x.Version, era: m.era[s], n: x.n, kind: x.Kind, gen: x.Gen, trusted: true,
		}
	case ramSame:
		was := m.at[x.Block]
		was.era, was.trusted, was.rec = m.era[s], true, nil
		m.at[x.Block] = was
	case ramBegin:
		m.era[s]++
		m.since[s] = x.Version.Epoch
		for k := range m.recs {
			if k.slice == s {
				delete(m.recs, k)
			}
		}
	case ramEnd:
		delete(m.since, s)
		for b, y := range m.at {
			if sliceOf(b) == s {
				y.trusted = false
				m.at[b] = y
			}
		}
	}
	return mask, kept
}

// append gives the outcome and the mask.
func (m *ramReplica) append(r *Record, n uint64, msg domain.Epoch) (Outcome, segment.Mask, error) {
	k := heldKey{sliceOf(r.Block), r.Version}
	if msg < m.seal[k.slice] || m.cut[k.slice] {
		return 0, segment.Mask{}, domain.Errorf(domain.Stale, "")
	}
	floor := m.floor[k.slice]
	if m.recs[k] != nil || m.since[k.slice] == 0 && r.Version.Compare(floor) <= 0 {
		if m.away[k.slice] != nil {
			m.log(&ramRecord{what: ramMark, Meta: Meta{Block: r.Block, Count: r.Count}})
		}
		return Duplicate, segment.Mask{}, nil
	}
	x := &ramRecord{
		Meta: Meta{r.Kind, r.Block, r.Count, r.Version, r.Request, r.Gen, Applied, false}, n: n,
		at: floor, acked: 1 << 62,
	}
	mask, kept := m.apply(x)
	x.mask = &mask
	switch kept {
	case 0:
	case r.Count:
		x.Outcome = Superseded
	default:
		x.Outcome = Mixed
	}
	m.order = append(m.order, x)
	return x.Outcome, mask, nil
}

// log lets something else have its effect, and is told whether it was logged.
func (m *ramReplica) log(x *ramRecord) bool {
	x.acked = 1 << 62
	if _, kept := m.apply(x); kept > 0 {
		return false
	}
	m.order = append(m.order, x)
	return true
}

// settle forgets, in sessions, the records that are settled: outside of them the floor tells that
// they are duplicates.
func (m *ramReplica) settle() {
	for k, x := range m.recs {
		gone := m.since[k.slice] != 0 && !m.holds(x)
		for i := range x.Count {
			y := m.at[x.Block+uint64(i)]
			gone = gone && y.trusted && y.era == m.era[k.slice]
		}
		if gone {
			delete(m.recs, k)
		}
	}
}

// after gives the model once the first k things that were logged are in.
func (m *ramReplica) after(k int) *ramReplica {
	o := newRAM()
	o.below = m.below
	for _, x := range m.order[:k] {
		o.apply(x)
	}
	return o
}

// versions gives, of the blocks of data, the version that wrote each, and of every extent the
// highest that was given there.
func (m *ramReplica) versions() (of map[uint64]domain.Version, most map[uint32]domain.Version) {
	of = map[uint64]domain.Version{}
	for b, x := range m.at {
		if x.kind == segment.KindData {
			of[b] = x.ver
		}
	}
	return of, m.most
}

// accepted notes that something of a version was accepted at a block.
func (m *ramReplica) accepted(b uint64, ver domain.Version) {
	if ext := uint32(b / segment.LeafBlocks); m.most[ext].Compare(ver) < 0 {
		m.most[ext] = ver
	}
}

// gens compares the generations that reads give with the model: never too low, and exact where a
// record of data is held.
func (m *ramReplica) gens(p *Replica) error {
	buf := backends.AlignedBuffer(segment.BlockSize)
	for b, x := range m.at {
		if m.since[sliceOf(b)] != 0 && x.kind == segment.KindUnmap {
			continue // it may have been there before: the end of the session tells
		}
		gen, err := p.Read(b, 1, buf)
		if err != nil {
			return err
		}
		exact := x.kind == segment.KindData && x.rec != nil && x.era == m.era[sliceOf(b)] &&
			m.holds(x.rec)
		if gen < x.gen || exact && gen != x.gen {
			return fmt.Errorf("block %d is of generation %d, read as %d: %+v", b, x.gen, gen, x)
		}
	}
	return nil
}

// holds tells whether a record must still be held.
func (m *ramReplica) holds(x *ramRecord) bool {
	return x.Version.Compare(m.floor[sliceOf(x.Block)]) > 0 || x.Request.Counter >= m.below
}

// parts compares what is told of blocks without a record with the model: all that is told is true,
// and all that is above the floor is told.
func (m *ramReplica) parts(p *Replica, list []Meta, floor [2]domain.Version) error {
	told := map[uint64]domain.Version{}
	for _, x := range list {
		for i := range x.Count {
			b := x.Block + uint64(i)
			if y := m.at[b]; y.ver != x.Version || y.era != m.era[sliceOf(b)] {
				return fmt.Errorf("block %d is told to be of %s, is of %s", b, x.Version, y.ver)
			}
			told[b] = x.Version
		}
	}
	for b, x := range m.at {
		s := sliceOf(b)
		if x.kind == segment.KindUnmap && m.since[s] != 0 {
			continue // it may have been there before: the end of the session tells
		}
		if x.rec == nil && x.era == m.era[s] && x.ver.Compare(floor[s]) > 0 && told[b] != x.ver {
			return fmt.Errorf("block %d is of %s, and told to be of %s", b, x.ver, told[b])
		}
	}
	return nil
}

// drawer draws records by chance: each has a version above those drawn before it, and they are
// delivered late, in any order, and again.
type drawer struct {
	rnd   *rand.Rand
	seq   uint64
	epoch domain.Epoch
	n     uint64
	late  []*Record // drawn and not delivered
	spell map[domain.Version]uint64
	spots []uint64
	flat  bool // all of one generation: a replica that joins takes no cuts
	// source is what a member has that got all of them
	source map[uint64]ramBlock
}

// blocks lists those of a slice that records may be of.
func (d *drawer) blocks(s uint32) []uint64 {
	var list []uint64
	for b := range d.source {
		if sliceOf(b) == s {
			list = append(list, b)
		}
	}
	slices.Sort(list)
	if len(list) == 0 {
		list = []uint64{uint64(s) * segment.SliceBlocks}
	}
	return list
}

func (d *drawer) draw() *Record {
	d.seq++
	d.n++
	if d.rnd.IntN(60) == 0 {
		d.epoch++
	}
	r := versioned(d.spots[d.rnd.IntN(len(d.spots))], 1+d.rnd.IntN(4), d.n, d.epoch, d.seq)
	r.Version.Node = domain.NodeNumber(1 + d.rnd.IntN(2))
	if !d.flat {
		r.Gen = 1 + uint32(d.n/25) - min(uint32(d.n/25), d.rnd.Uint32N(2))
	}
	switch d.rnd.IntN(12) {
	case 0:
		r.Kind, r.Data = segment.KindZero, nil
	case 1:
		r.Kind, r.Data, r.Count = segment.KindUnmap, nil, 1+d.rnd.IntN(40)
	}
	if over := int(r.Block%segment.LeafBlocks) + r.Count - segment.LeafBlocks; over > 0 {
		r.Count -= over
	}
	d.spell[r.Version] = d.n
	if d.source == nil {
		d.source = map[uint64]ramBlock{}
	}
	for i := range r.Count {
		x := ramBlock{ver: r.Version, n: d.n, kind: r.Kind, gen: r.Gen}
		if r.Kind != segment.KindData {
			x.n = 0
		}
		d.source[r.Block+uint64(i)] = x
	}
	return r
}

// next gives the record to be delivered next; again says that it stays to be delivered once more.
func (d *drawer) next() *Record {
	for len(d.late) < 1+d.rnd.IntN(12) {
		d.late = append(d.late, d.draw())
	}
	i := d.rnd.IntN(len(d.late))
	r := d.late[i]
	if d.rnd.IntN(6) > 0 {
		d.late = slices.Delete(d.late, i, i+1)
	}
	c := *r
	return &c
}

// floor gives the highest version of a slice below all of it that are to be delivered.
func (d *drawer) floor(slice uint32) domain.Version {
	low := domain.Version{Epoch: d.epoch, Seq: d.seq}
	for _, r := range d.late {
		if uint32(r.Block/segment.SliceBlocks) == slice && r.Version.Compare(low) <= 0 {
			low = r.Version
			low.Seq--
			low.Node = 9
		}
	}
	return low
}

// contractSpots are blocks in both slices, in a few extents, so that records overlap.
func contractSpots() []uint64 {
	var spots []uint64
	for _, ext := range []uint64{0, 3, 256, 300} {
		for i := range uint64(14) {
			spots = append(spots, ext*segment.LeafBlocks+i*2)
		}
	}
	return spots
}

// contractRun is an engine beside the model.
type contractRun struct {
	t     *testing.T
	dev   backends.Device
	e     *Engine
	p     *Replica
	other *Volume
	ram   *ramReplica
	d     *drawer
	tune  []func(*Config)
	since domain.Epoch
}

func newContractRun(t *testing.T, dev backends.Device, seed uint64, tune ...func(*Config),
) *contractRun {
	t.Helper()
	c := &contractRun{t: t, dev: dev, ram: newRAM(), tune: append(tune, func(c *Config) {
		c.Report = func(f Fact) { t.Errorf("reported %+v", f) }
	})}
	c.d = &drawer{
		rnd: newRand(seed), flat: true, epoch: 5, spell: map[domain.Version]uint64{},
		spots: contractSpots(),
	}
	c.e = open(t, dev, c.tune...)
	c.p = replicaOn(t, c.e)
	var err error
	c.other, err = c.e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// deliver gives a batch of records to both, in one order, and waits for all outcomes.
func (c *contractRun) deliver(width int, mark func() int) {
	var wg sync.WaitGroup
	for range 1 + c.d.rnd.IntN(width) {
		r := c.d.next()
		msg := r.Version.Epoch
		if c.d.rnd.IntN(3) > 0 {
			msg = c.d.epoch
		}
		c.give(r, msg, &wg, mark)
	}
	wg.Wait()
	c.settle()
}

// give gives a record to both.
func (c *contractRun) give(r *Record, msg domain.Epoch, wg *sync.WaitGroup, mark func() int) {
	k, logged := heldKey{sliceOf(r.Block), r.Version}, len(c.ram.order)
	was := c.ram.recs[k] // a checkpoint may let go of it at any time
	settled := was != nil && c.ram.since[k.slice] != 0 && !c.ram.holds(was)
	want, mask, refused := c.ram.append(r, c.d.spell[r.Version], msg)
	x := c.ram.recs[k]
	fresh := len(c.ram.order) > logged
	if fresh {
		x = c.ram.order[logged]
		x.begun = mark()
	}
	if refused != nil { // it has to come again
		o := *r
		c.d.late = append(c.d.late, &o)
	}
	wg.Add(1)
	r.To = acker(func(err error) {
		defer wg.Done()
		switch {
		case (err != nil) != (refused != nil) || err != nil && !domain.IsKind(err, domain.Stale):
			c.t.Errorf("version %s: %v, not %v", r.Version, err, refused)
		case err == nil && settled && r.Outcome == Superseded:
		case err == nil && (r.Outcome != want || want != Duplicate && r.Kept != mask):
			c.t.Errorf("version %s: %v %x, not %v %x", r.Version, r.Outcome, r.Kept, want, mask)
		case fresh:
			x.acked = mark()
		}
	})
	c.p.Append(r, msg)
}

// judge compares the engine with the model.
func (c *contractRun) judge() {
	c.t.Helper()
	for k, x := range c.ram.recs {
		if c.ram.holds(x) {
			if err := sameRecord(c.p, &x.Meta, x.n); err != nil {
				c.t.Fatalf("slice %d: %v", k.slice, err)
			}
		}
		v, ok := c.e.Known(x.Request)
		if ok != (x.Request.Counter >= c.ram.below) || ok && v != x.Version {
			c.t.Fatalf("request %+v: %v %v", x.Request, v, ok)
		}
	}
	var parts []Meta
	floors := [2]domain.Version{c.p.Floor(0), c.p.Floor(1)}
	for s := range uint32(2) {
		for _, m := range metas(c.t, c.p, s) {
			if x := c.ram.recs[heldKey{s, m.Version}]; m.Part {
				parts = append(parts, m)
			} else if x == nil || x.Meta != m {
				c.t.Fatalf("slice %d holds %+v, given was %+v", s, m, x)
			}
		}
	}
	if err := c.ram.parts(c.p, parts, floors); err != nil {
		c.t.Fatal(err)
	}
	for s := range uint32(2) {
		if got := c.p.Sealed(s); got != c.ram.seal[s] {
			c.t.Fatalf("slice %d is sealed at %d, not %d", s, got, c.ram.seal[s])
		}
	}
	for b, x := range c.ram.at {
		check(c.t, c.p.Volume(), b, x.n)
	}
	if err := c.ram.gens(c.p); err != nil {
		c.t.Fatal(err)
	}
	if err := c.ram.lacks(c.p); err != nil {
		c.t.Fatal(err)
	}
	of, most := c.ram.versions()
	for ext, ver := range most {
		if got := c.p.MaxVersion(ext); got.Compare(ver) < 0 || got != ver && len(c.ram.era) == 0 {
			c.t.Fatalf("extent %d: highest version %s, not %s", ext, got, ver)
		}
		first := uint64(ext) * segment.LeafBlocks
		err := c.p.Versions(first, segment.LeafBlocks, func(b BlockVersion) error {
			if of[b.Block] != b.Version {
				return fmt.Errorf("block %d is of %s, not %s", b.Block, b.Version, of[b.Block])
			}
			delete(of, b.Block)
			return nil
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	if len(of) > 0 {
		c.t.Fatalf("no versions of %v", of)
	}
	recount(c.t, c.e)
}

// restart opens the device again. A crash may lower floors and forget what was retired; the model
// says them again, as the protocol does.
func (c *contractRun) restart(clean bool) {
	if clean {
		if err := c.e.Close(); err != nil {
			c.t.Fatal(err)
		}
	}
	c.e.Abandon()
	c.e = open(c.t, c.dev, c.tune...)
	c.p = mustReplica(c.t, c.e)
	c.other, _ = c.e.Volume(c.other.ID())
	for s := range uint32(2) {
		floor := c.ram.floor[s]
		if got := c.p.Floor(s); got.Compare(floor) > 0 || clean && got != floor {
			c.t.Fatalf("floor of slice %d: %s, not %s", s, got, floor)
		}
		if c.ram.since[s] != 0 {
			c.ram.cut[s] = true
		}
	}
	c.repeat()
}

// repeat says floors and bounds once more.
func (c *contractRun) repeat() {
	for s, f := range c.ram.floor {
		c.p.SetFloor(s, f)
	}
	c.e.Retire(3, 4, c.ram.below)
	c.settle()
}

// settle lets go of what is settled at both.
func (c *contractRun) settle() {
	for _, l := range c.e.lanes {
		l.mu.Lock()
		l.sweepHeld(c.p.rep)
		l.mu.Unlock()
	}
	c.ram.settle()
}

// join goes on with what a member that joins does: it begins a session, imports blocks of what the
// source has, is told that others are the same, and ends it when all of its blocks are trusted. The
// source has all that was ever drawn.
func (c *contractRun) join(mark func() int) {
	s := c.d.rnd.Uint32N(2)
	first := uint64(s) * segment.SliceBlocks
	if c.ram.since[s] == 0 || c.ram.cut[s] || c.d.rnd.IntN(40) == 0 {
		c.d.epoch++
		c.since = c.d.epoch
		x := &ramRecord{what: ramBegin, Meta: Meta{Block: first}, begun: mark()}
		x.Version.Epoch = c.since
		c.ram.log(x)
		delete(c.ram.cut, s)
		if err := c.p.BeginEra(background, s, c.since); err != nil {
			c.t.Fatal(err)
		}
		x.acked = mark()
		return
	}
	for range 1 + c.d.rnd.IntN(6) {
		c.bring(s, c.spot(s), mark)
	}
	c.leave(s, mark)
	if c.d.rnd.IntN(12) > 0 {
		return
	}
	for _, b := range c.d.blocks(s) {
		c.bring(s, b, mark)
	}
	synced(c.t, c.p, s, c.ram.since[s])
	x := &ramRecord{what: ramEnd, Meta: Meta{Block: first}, begun: mark()}
	c.ram.log(x)
	x.acked = mark()
}

// leave lets member 7 go away from a slice, or come back.
func (c *contractRun) leave(s uint32, mark func() int) {
	x := &ramRecord{what: ramAway, at: c.p.Floor(s), begun: mark()}
	x.Block = uint64(s) * segment.SliceBlocks
	call := c.p.Away
	switch {
	case c.d.rnd.IntN(10) > 0:
		return
	case c.ram.away[s] != nil:
		x.what, call = ramBack, c.p.Back
	}
	c.ram.log(x)
	if err := call(background, s, 7); err != nil {
		c.t.Fatal(err)
	}
	x.acked = mark()
}

// spot gives some block of a slice that records are of.
func (c *contractRun) spot(s uint32) uint64 {
	list := c.d.blocks(s)
	return list[c.d.rnd.IntN(len(list))]
}

// bring makes one block that of the source.
func (c *contractRun) bring(s uint32, b uint64, mark func() int) {
	src, was := c.d.source[b], c.ram.at[b]
	floor := domain.Version{Epoch: c.d.epoch, Seq: c.d.seq}
	for _, r := range c.d.late { // what was written since the session began needs this member, too
		if r.Version.Epoch >= c.ram.since[s] && r.Version.Compare(floor) <= 0 {
			floor = r.Version
			floor.Seq--
		}
	}
	if c.d.rnd.IntN(2) == 0 { // the source's is behind
		floor = c.ram.floor[s]
	}
	x := &ramRecord{what: ramImport, n: src.n, begun: mark(), Meta: Meta{
		Kind: src.kind, Block: b, Count: 1, Version: src.ver, Gen: src.gen,
	}}
	fresh := was.era != c.ram.era[s]
	if fresh && src.kind == segment.KindData && was.kind == segment.KindData && was.ver == src.ver {
		x.what = ramSame
		c.ram.log(x)
		start := b / segment.SameBlocks * segment.SameBlocks
		got, err := c.p.Same(c.ram.since[s], top(c.p), start, 1<<(b-start))
		if err != nil || got != 1<<(b-start) {
			c.t.Fatalf("block %d: trusted %x %v", b, got, err)
		}
		x.acked = mark()
		c.settle()
		return
	}
	one := Copy{Kind: src.kind, Version: src.ver, Gen: src.gen}
	if src.kind == 0 {
		one.Kind, x.Kind = segment.KindUnmap, segment.KindUnmap
	}
	if src.kind == segment.KindData {
		one.Data = fill(1, src.n)
		one.CRC = segment.Checksum(one.Data)
	}
	if one.Kind != segment.KindData {
		if x.n = 0; c.d.rnd.IntN(2) == 0 && src.ver.Compare(floor) <= 0 {
			one.Version = domain.Version{} // settled there
		}
		if x.Version.Compare(floor) < 0 || one.Version == (domain.Version{}) {
			x.Version = floor
		}
	}
	if c.ram.floor[s].Compare(floor) < 0 {
		c.ram.floor[s] = floor
	}
	x.at = c.ram.floor[s]
	if one.Kind == segment.KindUnmap && was == (ramBlock{}) && x.Version.Compare(x.at) <= 0 {
		c.ram.at[b] = ramBlock{ver: x.Version, era: c.ram.era[s], kind: segment.KindUnmap, trusted: true}
	} else {
		c.ram.log(x)
	}
	if err := c.p.Import(c.ram.since[s], top(c.p), b, []Copy{one}, floor); err != nil {
		c.t.Fatal(err)
	}
	x.acked = mark()
	c.settle()
}

// relieve settles all that it can where the device is filling up: what is still to be delivered is
// lost then, so that floors may rise above it.
func (c *contractRun) relieve() {
	if c.e.space.live.Load()*2 < c.e.space.usable.Load() {
		return
	}
	var wg sync.WaitGroup
	for _, r := range c.d.late { // else a session would lack what the source has
		o := *r
		c.give(&o, c.d.epoch, &wg, func() int { return 0 })
	}
	wg.Wait()
	c.d.late = nil
	for s := range uint32(2) {
		if f := c.d.floor(s); f.Compare(c.ram.floor[s]) > 0 {
			c.ram.floor[s] = f
		}
	}
	c.ram.below = c.d.seq + 1
	c.repeat()
	if err := c.e.Checkpoint(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *contractRun) step(i int) {
	c.relieve()
	switch d := c.d.rnd.IntN(100); {
	case d < 50:
		c.deliver(6, func() int { return 0 })
	case d < 60:
		c.join(func() int { return 0 })
	case d < 80: // another volume, so that there is something to clean
		for range 8 {
			if err := put(c.other, data(c.d.rnd.Uint64N(60), 1+c.d.rnd.IntN(3), uint64(i))); err != nil {
				c.t.Fatal(err)
			}
		}
	case d < 90:
		s := c.d.rnd.Uint32N(2)
		if f := c.d.floor(s); f.Compare(c.ram.floor[s]) > 0 {
			c.ram.floor[s] = f
		}
		c.ram.below = max(c.ram.below, c.d.seq-min(c.d.seq, 30))
		c.repeat()
	case d < 92:
		s := c.d.rnd.Uint32N(2)
		if err := c.p.Seal(background, c.d.epoch, s); err != nil {
			c.t.Fatal(err)
		}
		c.ram.seal[s] = c.d.epoch
	case d < 96:
		if err := c.e.Checkpoint(); err != nil {
			c.t.Fatal(err)
		}
	default:
		c.restart(d < 98)
	}
}

// TestC9Digest gives the same records to two devices of different make, in different orders and
// again, with settling and cleaning on one and a restart: all versions and digests are equal, each
// block's one by one; a hole and a zero count for nothing; another version or another byte does.
func TestC9Digest(t *testing.T) {
	d := &drawer{
		rnd: newRand(9), epoch: 5, spell: map[domain.Version]uint64{}, spots: contractSpots(),
	}
	var list []*Record
	for range 150 {
		list = append(list, d.draw())
	}
	var sums [2][]Digest
	var versions [2][]BlockVersion
	var most [2][]domain.Version
	var last *Replica
	for i, lanes := range []int{1, 3} {
		dev := crashDevice(t, 80, lanes)
		e := open(t, dev, often)
		p := replicaOn(t, e)
		other, err := e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 16*domain.MiB, 1)
		if err != nil {
			t.Fatal(err)
		}
		d.rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for n, r := range append(list, list[:20]...) {
			c := *r
			if _, err := give(p, &c, d.epoch); err != nil {
				t.Fatal(err)
			}
			for range 3 * i {
				if err := put(other, data(d.rnd.Uint64N(90), 2, uint64(n))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i == 1 {
			e.Retire(3, 4, 1<<40)
			for s := range uint32(2) {
				p.SetFloor(s, domain.Version{Epoch: 1 << 30})
			}
			for n := range uint64(500) {
				if err := put(other, data(d.rnd.Uint64N(90), 2, n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			if e.Stats().Cleaned == 0 {
				t.Error("nothing was cleaned")
			}
			e = open(t, dev)
			p = mustReplica(t, e)
		}
		for ext := range uint64(512) {
			sum, err := p.Digest(ext*segment.LeafBlocks, segment.LeafBlocks)
			if err != nil {
				t.Fatal(err)
			}
			sums[i], most[i] = append(sums[i], sum), append(most[i], p.MaxVersion(uint32(ext)))
			_ = p.Versions(ext*segment.LeafBlocks, segment.LeafBlocks, func(b BlockVersion) error {
				versions[i] = append(versions[i], b)
				return nil
			})
		}
		defer e.Abandon()
		last = p
	}
	if !slices.Equal(most[0], most[1]) || most[0][0] == (domain.Version{}) {
		t.Errorf("highest versions %v, and settled %v", most[0][0], most[1][0])
	}
	if !slices.Equal(sums[0], sums[1]) || !slices.Equal(versions[0], versions[1]) ||
		len(versions[0]) < 60 || sums[0][0] == (Digest{}) || sums[0][1] != (Digest{}) {
		t.Fatalf("%d and %d blocks, digests equal: %v", len(versions[0]), len(versions[1]),
			slices.Equal(sums[0], sums[1]))
	}
	of := func() Digest {
		t.Helper()
		sum, err := last.Digest(0, segment.LeafBlocks)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	var sum Digest
	mid := int(versions[0][1].Block)
	for _, first := range []int{mid, 0} { // parts, in another order
		count := map[int]int{mid: segment.LeafBlocks - mid, 0: mid}[first]
		part, err := last.Digest(uint64(first), count)
		if err != nil || part == (Digest{}) {
			t.Fatalf("blocks %d on: %v %v", first, part, err)
		}
		sum.Add(part)
	}
	b := versions[0][0]
	other := b
	if other.CRC++; sum != of() || b.digest() == other.digest() {
		t.Errorf("parts make %x, not %x; bytes make no difference: %t", sum, of(),
			b.digest() == other.digest())
	}
	seen := map[Digest]bool{of(): true}
	for i, n := range []uint64{1, 1, 2, 0} { // again under another version, another byte, a zero
		r := versioned(1000, 1, n, 1<<31, uint64(i+1))
		if _, err := give(last, r, 1<<31); err != nil {
			t.Fatal(err)
		}
		if want := n > 0; seen[of()] == want {
			t.Errorf("step %d: the digest is new: %t", i, !want)
		}
		seen[of()] = true
	}
}

// TestContractModel runs an engine by chance beside the contract in RAM: records that come late, in
// any order and again, floors, requests retired, seals, checkpoints, restarts of both kinds, and
// another volume that keeps the cleaner busy (C1, C3 to C7, C9, E6, E12); on one lane and on three,
// beside a journal, and on a pair. Both must agree about every outcome, every record that is held,
// every version and every byte.
func TestContractModel(t *testing.T) {
	steps := 1500
	if raceOn || testing.Short() {
		steps = 300
	}
	cleaned := int64(0)
	for seed, kind := range []string{"one lane", "three lanes", "journal", "pair"} {
		var dev backends.Device = crashDevice(t, 60, 1+seed%2*2)
		tune := []func(*Config){often}
		switch kind {
		case "journal":
			tune = append(tune, journaled(newMemory(t, dev, 8)))
		case "pair":
			dev = newPair(t, 60, 80, 64<<10, 1)
			tune = append(tune, awake)
		}
		c := newContractRun(t, dev, 200+uint64(seed), tune...)
		for i := range steps {
			was := c.e
			c.step(i)
			if c.e != was {
				cleaned += was.Stats().Cleaned
			}
			if i%200 == 199 && kind == "pair" {
				cooled(t, c.e)
			}
			if i%25 == 0 {
				c.judge()
			}
			if t.Failed() {
				t.Fatalf("%s, step %d", kind, i)
			}
		}
		c.judge()
		c.restart(true)
		c.judge()
		if err := c.e.Close(); err != nil {
			t.Fatal(err)
		}
		cleaned += c.e.Stats().Cleaned
		t.Logf("%s: %d segments cleaned", kind, cleaned)
	}
	if cleaned == 0 && steps > 1000 {
		t.Error("nothing was cleaned")
	}
}

// TestContractCrash enumerates power cuts of a device under a replica with one lane: the records
// that are there are the first so many that were accepted, all acknowledged ones among them; each
// has its outcome and its bytes, every block spells what those records make of it, requests are
// known, seals hold, and floors are no higher than they were set (C1, C3 to C7, E1, E2, E2b).
func TestContractCrash(t *testing.T) { rounds(t, contractCrash) }

func contractCrash(r *crashes) {
	t, seeds := r.t, uint64(3)
	if raceOn {
		seeds = 1
	}
	for seed := range seeds {
		dev := crashDevice(t, 56, 1)
		c := newContractRun(t, dev, r.seed(300+seed), often)
		dev.StartHistory()
		type sealed struct {
			at    int
			slice uint32
			epoch domain.Epoch
		}
		var seals []sealed
		for i := range 60 {
			c.deliver(5, dev.Mark)
			c.join(dev.Mark)
			switch {
			case i%9 == 8:
				if err := c.p.Seal(background, c.d.epoch, uint32(i%2)); err != nil {
					t.Fatal(err)
				}
				c.ram.seal[uint32(i%2)] = c.d.epoch
				seals = append(seals, sealed{dev.Mark(), uint32(i % 2), c.d.epoch})
			case i%7 == 6:
				s := uint32(i % 2)
				if f := c.d.floor(s); f.Compare(c.ram.floor[s]) > 0 {
					c.ram.floor[s] = f
				}
				c.ram.below = c.d.seq - min(c.d.seq, 20)
				c.repeat()
			}
			for range 20 { // what has to be cleaned
				if err := put(c.other, data(c.d.rnd.Uint64N(150), 1+c.d.rnd.IntN(3), 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		st := c.e.Stats()
		r.need(st.Checkpoints > 2, "the script is too small: %+v", st)
		c.e.Abandon()
		n, stride := 0, max(1, 30*dev.Ops()/images())
		for en := dev.Enumerate(); en.Next() && !t.Failed(); {
			if n++; n%stride != 0 {
				continue
			}
			img := en.Image(mem.RandomGarbage(seed*1000 + uint64(n)))
			if !r.fresh(en.At(), img, nil, nil) {
				continue
			}
			e := opened(t, img, c.tune...)
			p := mustReplica(t, e)
			if err := c.prefix(p, en.At()); err != nil {
				t.Errorf("seed %d, cut %d of %d: %v", seed, en.At(), dev.Ops(), err)
			}
			for _, s := range seals {
				if s.at <= en.At() && p.Sealed(s.slice) < s.epoch {
					t.Errorf("cut %d: slice %d is sealed at %d, not %d", en.At(), s.slice, p.Sealed(s.slice),
						s.epoch)
				}
			}
			recount(t, e)
			e.Abandon()
			if n/stride%8 == 0 {
				soundCrash(t, img)
			}
		}
	}
}

// TestContractCrashMarkOnItsWay cuts the power when a record of which a duplicate came on its
// way is there, and one that came between the two is not: that is a state of the records, and
// what both mark is marked (C1, C11).
func TestContractCrashMarkOnItsWay(t *testing.T) {
	inner := crashDevice(t, 60, 1)
	dev := faulty.New(inner, nil)
	c := newContractRun(t, dev, 1, quiet)
	defer dev.Heal() // else a failed test waits for ever
	x := &ramRecord{what: ramAway}
	c.ram.log(x)
	must(t, c.p.Away(background, 0, 7))
	inner.StartHistory()
	x.acked = inner.Mark()
	var early, late sync.WaitGroup
	write := func(wg *sync.WaitGroup, block, seq uint64) {
		r := versioned(block, 1, seq, 5, seq)
		c.d.spell[r.Version] = seq
		c.give(r, 5, wg, inner.Mark)
	}
	first := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	write(&early, 0, 1)
	<-first.Stalled()
	second := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	write(&late, 500, 2)
	write(&early, 0, 1)
	first.Release()
	early.Wait()
	between := inner.Mark()
	<-second.Stalled()
	second.Release()
	late.Wait()
	c.e.Abandon()
	n := 0
	for en := inner.Enumerate(); en.Next(); {
		e := opened(t, en.Image(mem.RandomGarbage(uint64(en.At()))), quiet)
		if err := c.prefix(mustReplica(t, e), en.At()); err != nil {
			t.Errorf("cut %d: %v", en.At(), err)
		}
		if en.At() == between {
			n++
		}
		e.Abandon()
	}
	if n == 0 {
		t.Error("no cut between the two")
	}
}

// opened is open for a crash image.
func opened(t *testing.T, dev backends.Device, tune ...func(*Config)) *Engine {
	t.Helper()
	cfg := Config{Device: dev, Cluster: testCluster, Node: 1}
	for _, f := range tune {
		f(&cfg)
	}
	e, err := Open(background, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// soundCrash checks a device that was recovered from a cut. Of a chunk of the cleaner that no
// checkpoint took up a cut may leave the footer's word alone; nothing depends on it.
func soundCrash(t *testing.T, dev *mem.Device) {
	t.Helper()
	r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		if p.Part != "chunk" {
			t.Errorf("fsck: %+v", p)
		}
	}
}

// prefix compares a replica behind a cut with the model after every number of records that may be
// there. A mark says nothing of what was logged before it: that of a record which came again while
// its first was on its way is told with that one, before others that came between them.
func (c *contractRun) prefix(p *Replica, cut int) error {
	least, most := 0, 0
	for i, x := range c.ram.order {
		if x.acked <= cut && x.what != ramMark {
			least = i + 1
		}
		if x.begun <= cut {
			most = i + 1
		}
	}
	found := map[heldKey]Meta{}
	floors := [2]domain.Version{}
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
	for k := least; k <= most; k++ {
		m := c.ram.after(k)
		for _, x := range c.ram.order[k:] {
			if x.acked <= cut && x.what == ramMark {
				m.mark(x)
			}
		}
		if err = m.is(p, maps.Clone(found), floors, c.ram.floor); err == nil {
			err = m.parts(p, parts, floors)
		}
		if err == nil {
			err = m.lacks(p)
		}
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("no state of records %d to %d: %w", least, most, err)
}

// is tells in what a replica differs from the model.
func (m *ramReplica) is(p *Replica, found map[heldKey]Meta, floors [2]domain.Version,
	most map[uint32]domain.Version,
) error {
	for key, x := range m.recs {
		got, ok := found[key]
		delete(found, key)
		switch {
		case x.Version.Compare(floors[key.slice]) <= 0:
			continue
		case !ok || got != x.Meta:
			return fmt.Errorf("record %+v, not %+v", got, x.Meta)
		}
		if err := sameRecord(p, &x.Meta, x.n); err != nil {
			return err
		}
		if v, ok := p.v.e.Known(x.Request); x.Request.Counter >= m.below && (!ok || v != x.Version) {
			return fmt.Errorf("request %+v: %v %v", x.Request, v, ok)
		}
	}
	for k := range found { // or stored once more, in a session, behind being settled
		if k.ver.Compare(most[k.slice]) > 0 {
			return fmt.Errorf("of later records: %+v", found)
		}
	}
	m.floor = map[uint32]domain.Version{0: {Epoch: 1 << 40}, 1: {Epoch: 1 << 40}}
	if err := m.gens(p); err != nil {
		return err
	}
	buf := backends.AlignedBuffer(segment.BlockSize)
	for _, b := range slices.SortedFunc(maps.Keys(m.at), cmp.Compare) {
		if err := p.Volume().Read(b, 1, buf); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint64(buf); got != m.at[b].n {
			return fmt.Errorf("block %d spells %d, not %d", b, got, m.at[b].n)
		}
	}
	return nil
}

// BenchmarkReplicaBesideJournal appends blocks of 4 KiB, one at a time, on a device with NVRAM
// whose flash is a file driven past the page cache: to a volume and to a replica, in turns, so that
// both meet the same load.
func BenchmarkReplicaBesideJournal(b *testing.B) {
	dev := benchDevice(b, "direct")
	e := open(b, dev, journaled(newMemory(b, dev, 16)))
	defer e.Abandon()
	p, err := e.CreateReplica(background, testVolume, 64*domain.MiB, 7)
	if err != nil {
		b.Fatal(err)
	}
	v, err := e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 64*domain.MiB, 1)
	if err != nil {
		b.Fatal(err)
	}
	done, rnd := make(signal, 1), newRand(1)
	var took [2]time.Duration
	for i := range uint64(b.N) {
		for k := range took {
			r := versioned(rnd.Uint64N(16<<10), 1, i+1, 5, i+1)
			r.To, r.Now = done, true
			begun := time.Now()
			if k == 0 {
				v.Append(r)
			} else {
				p.Append(r, 5)
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			took[k] += time.Since(begun)
		}
		if i%64 == 63 {
			e.Retire(3, 4, i)
			p.SetFloor(0, domain.Version{Epoch: 5, Seq: i})
		}
	}
	b.ReportMetric(float64(took[0].Nanoseconds())/float64(b.N), "ns/volume")
	b.ReportMetric(float64(took[1].Nanoseconds())/float64(b.N), "ns/replica")
	b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
}

// BenchmarkReplicaAppend is BenchmarkAppend of records with versions, 32 at a time, each settled
// some hundred records later.
func BenchmarkReplicaAppend(b *testing.B) {
	e := open(b, benchDevice(b, "mem"))
	defer e.Abandon()
	p, err := e.CreateReplica(background, testVolume, 64*domain.MiB, 7)
	if err != nil {
		b.Fatal(err)
	}
	const width = 32
	b.ReportAllocs()
	b.SetBytes(segment.BlockSize)
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range uint64(width) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			done, rnd := make(signal, 1), newRand(w)
			r := versioned(0, 1, w+1, 5, 1)
			r.To = done
			for i := range uint64((b.N + width - 1) / width) {
				r.Block, r.Version.Seq = rnd.Uint64N(16<<10), i*width+w+1
				r.Request.Counter = r.Version.Seq
				p.Append(r, 5)
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
				if w == 0 && i%16 == 15 {
					e.Retire(3, 4, i*width-8*width)
					p.SetFloor(0, domain.Version{Epoch: 5, Seq: i*width - 8*width})
				}
			}
		}()
	}
	wg.Wait()
}
