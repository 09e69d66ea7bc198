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
// segment, and gives the sum of that. The index and the replica must agree about which copies show.
func recountHeld(t testing.TB, rep *replica, live []int64) (spare int64) {
	t.Helper()
	for _, l := range rep.e.lanes {
		l.mu.Lock()
		rl, tops, newest := &rep.lanes[l.no], 0, map[uint64]*heldRecord{}
		for k, h := range rl.held {
			lf := rep.br.fam.leaves[l.no][uint32(h.Block/segment.LeafBlocks)].of(rep.br)
			for i := range h.Count {
				b := h.Block + uint64(i)
				if o := newest[b]; o == nil || o.Version.Compare(h.Version) < 0 {
					newest[b] = h
				}
				if h.Kind != segment.KindData {
					continue
				}
				shows := lf != nil && lf.own.get(int(b%segment.LeafBlocks)).Kind() == segment.Flash &&
					lf.own.get(int(b%segment.LeafBlocks)).Off() == h.off(i)
				if top := rl.blocks[b].top == h; top != shows {
					t.Errorf("record %s block %d: on top %v, in the index %v", h.Version, b, top, shows)
				}
				if shows {
					tops++
					continue
				}
				live[(h.off(i)-rep.e.space.first)/rep.e.space.size] += segment.BlockSize
				spare += segment.BlockSize
			}
			if k != h.key() || !h.durable {
				t.Errorf("record %s stands under %v, durable %v", h.Version, k, h.durable)
			}
		}
		for b, hs := range rl.blocks {
			if hs.newest != nil && hs.newest != newest[b] || hs == (holders{}) {
				t.Errorf("block %d: newest %v, not %v", b, hs.newest, newest[b])
			}
			if hs.top != nil {
				tops--
			}
		}
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
	got := Meta{r.Kind, r.Block, r.Count, r.Version, r.Request, r.Gen, r.Outcome}
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
		expect(1, 1, 6) // of holes and zeros the highest is known
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
	recs  map[heldKey]*ramRecord
	order []*ramRecord // as they were accepted
	floor map[uint32]domain.Version
	seal  map[uint32]domain.Epoch
	below uint64 // of the one gateway's counters
}

type ramRecord struct {
	Meta
	n     uint64
	begun int
	acked int
}

func newRAM() *ramReplica {
	return &ramReplica{
		recs: map[heldKey]*ramRecord{}, floor: map[uint32]domain.Version{},
		seal: map[uint32]domain.Epoch{},
	}
}

// append gives the outcome and the mask.
func (m *ramReplica) append(r *Record, n uint64, msg domain.Epoch) (Outcome, segment.Mask, error) {
	var mask segment.Mask
	k := heldKey{uint32(r.Block / segment.SliceBlocks), r.Version}
	if msg < m.seal[k.slice] {
		return 0, mask, domain.Errorf(domain.Stale, "")
	}
	if m.recs[k] != nil || r.Version.Compare(m.floor[k.slice]) <= 0 {
		return Duplicate, mask, nil
	}
	kept := 0
	for i := range r.Count {
		for o, x := range m.recs {
			b := r.Block + uint64(i)
			if o.slice == k.slice && x.Block <= b && b < x.Block+uint64(x.Count) &&
				x.Version.Compare(r.Version) > 0 {
				mask.Set(i)
				kept++
				break
			}
		}
	}
	out := Mixed
	switch kept {
	case 0:
		out = Applied
	case r.Count:
		out = Superseded
	}
	x := &ramRecord{
		Meta: Meta{r.Kind, r.Block, r.Count, r.Version, r.Request, r.Gen, out}, n: n, acked: 1 << 62,
	}
	m.recs[k] = x
	m.order = append(m.order, x)
	return out, mask, nil
}

// versions gives, of the blocks of data, the version that wrote each, and of every extent the
// highest that was given there.
func (m *ramReplica) versions() (of map[uint64]domain.Version, most map[uint32]domain.Version) {
	of, most = map[uint64]domain.Version{}, map[uint32]domain.Version{}
	for _, x := range m.order {
		if ext := uint32(x.Block / segment.LeafBlocks); most[ext].Compare(x.Version) < 0 {
			most[ext] = x.Version
		}
	}
	for b, x := range m.winners(len(m.order)) {
		if x.Kind == segment.KindData {
			of[b] = x.Version
		}
	}
	return of, most
}

// winners gives of every block the record that it shows once the first k are in.
func (m *ramReplica) winners(k int) map[uint64]*ramRecord {
	best := map[uint64]*ramRecord{}
	for _, x := range m.order[:k] {
		for i := range x.Count {
			b := x.Block + uint64(i)
			if o := best[b]; o == nil || o.Version.Compare(x.Version) < 0 {
				best[b] = x
			}
		}
	}
	return best
}

// gens compares the generations that reads give with the model: never too low, and exact where a
// record of data is held.
func (c *contractRun) gens(p *Replica, k int) error {
	buf := backends.AlignedBuffer(segment.BlockSize)
	for b, x := range c.ram.winners(k) {
		gen, err := p.Read(b, 1, buf)
		if err != nil {
			return err
		}
		exact := x.Kind == segment.KindData && c.ram.holds(x)
		if gen < x.Gen || exact && gen != x.Gen {
			return fmt.Errorf("block %d is of generation %d, read as %d", b, x.Gen, gen)
		}
	}
	return nil
}

// holds tells whether a record must still be held.
func (m *ramReplica) holds(x *ramRecord) bool {
	return x.Version.Compare(m.floor[uint32(x.Block/segment.SliceBlocks)]) > 0 ||
		x.Request.Counter >= m.below
}

// content gives what every block spells once the first k records are in; 0 where that is nothing.
func (m *ramReplica) content(k int) map[uint64]uint64 {
	at, best := map[uint64]uint64{}, map[uint64]domain.Version{}
	for _, x := range m.order[:k] {
		for i := range x.Count {
			b := x.Block + uint64(i)
			if best[b].Compare(x.Version) > 0 {
				continue
			}
			best[b] = x.Version
			if at[b] = x.n; x.Kind != segment.KindData {
				at[b] = 0
			}
		}
	}
	return at
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
}

func (d *drawer) draw() *Record {
	d.seq++
	d.n++
	if d.rnd.IntN(60) == 0 {
		d.epoch++
	}
	r := versioned(d.spots[d.rnd.IntN(len(d.spots))], 1+d.rnd.IntN(4), d.n, d.epoch, d.seq)
	r.Version.Node = domain.NodeNumber(1 + d.rnd.IntN(2))
	r.Gen = 1 + uint32(d.n/25) - min(uint32(d.n/25), d.rnd.Uint32N(2))
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
}

func newContractRun(t *testing.T, dev backends.Device, seed uint64, tune ...func(*Config),
) *contractRun {
	t.Helper()
	c := &contractRun{t: t, dev: dev, ram: newRAM(), tune: append(tune, func(c *Config) {
		c.Report = func(f Fact) { t.Errorf("reported %+v", f) }
	})}
	c.d = &drawer{
		rnd: newRand(seed), epoch: 5, spell: map[domain.Version]uint64{}, spots: contractSpots(),
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
		k := heldKey{uint32(r.Block / segment.SliceBlocks), r.Version}
		want, mask, refused := c.ram.append(r, c.d.spell[r.Version], msg)
		x := c.ram.recs[k]
		fresh := refused == nil && want != Duplicate
		if fresh {
			x.begun = mark()
		}
		wg.Add(1)
		r.To = acker(func(err error) {
			defer wg.Done()
			switch {
			case (err != nil) != (refused != nil) || err != nil && !domain.IsKind(err, domain.Stale):
				c.t.Errorf("version %s: %v, not %v", r.Version, err, refused)
			case err == nil && (r.Outcome != want || want != Duplicate && r.Kept != mask):
				c.t.Errorf("version %s: %v %x, not %v %x", r.Version, r.Outcome, r.Kept, want, mask)
			case fresh:
				x.acked = mark()
			}
		})
		c.p.Append(r, msg)
	}
	wg.Wait()
}

// judge compares the engine with the model.
func (c *contractRun) judge() {
	c.t.Helper()
	for _, x := range c.ram.order {
		k := heldKey{uint32(x.Block / segment.SliceBlocks), x.Version}
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
	for s := range uint32(2) {
		if got := c.p.Sealed(s); got != c.ram.seal[s] {
			c.t.Fatalf("slice %d is sealed at %d, not %d", s, got, c.ram.seal[s])
		}
	}
	for b, n := range c.ram.content(len(c.ram.order)) {
		check(c.t, c.p.Volume(), b, n)
	}
	if err := c.gens(c.p, len(c.ram.order)); err != nil {
		c.t.Fatal(err)
	}
	of, most := c.ram.versions()
	for ext, ver := range most {
		if got := c.p.MaxVersion(ext); got != ver {
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
		for _, m := range metas(c.t, c.p, s) {
			if x := c.ram.recs[heldKey{s, m.Version}]; x == nil || x.Meta != m {
				c.t.Fatalf("slice %d holds %+v, given was %+v", s, m, x)
			}
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
}

// relieve settles all that it can where the device is filling up: what is still to be delivered is
// lost then, so that floors may rise above it.
func (c *contractRun) relieve() {
	if c.e.space.live.Load()*2 < c.e.space.usable.Load() {
		return
	}
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
	case d < 60:
		c.deliver(6, func() int { return 0 })
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
func TestContractCrash(t *testing.T) {
	total, seeds := 0, uint64(3)
	if raceOn {
		seeds = 1
	}
	for seed := range seeds {
		dev := crashDevice(t, 56, 1)
		c := newContractRun(t, dev, 300+seed, often)
		dev.StartHistory()
		type sealed struct {
			at    int
			slice uint32
			epoch domain.Epoch
		}
		var seals []sealed
		for i := range 60 {
			c.deliver(5, dev.Mark)
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
		if st := c.e.Stats(); st.Checkpoints < 3 {
			t.Errorf("the script is too small: %+v", st)
		}
		c.e.Abandon()
		n, stride := 0, max(1, 30*dev.Ops()/images())
		for en := dev.Enumerate(); en.Next() && !t.Failed(); {
			if n++; n%stride != 0 {
				continue
			}
			total++
			img := en.Image(mem.RandomGarbage(seed*1000 + uint64(n)))
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
	t.Logf("%d crash images", total)
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
// there.
func (c *contractRun) prefix(p *Replica, cut int) error {
	least, most := 0, 0
	for i, x := range c.ram.order {
		if x.acked <= cut {
			least = i + 1
		}
		if x.begun <= cut {
			most = i + 1
		}
	}
	found := map[heldKey]Meta{}
	floors := [2]domain.Version{}
	for s := range uint32(2) {
		if floors[s] = p.Floor(s); floors[s].Compare(c.ram.floor[s]) > 0 {
			return fmt.Errorf("floor of slice %d is %s, was %s at most", s, floors[s], c.ram.floor[s])
		}
		for _, m := range metas(c.t, p, s) {
			found[heldKey{s, m.Version}] = m
		}
	}
	var err error
	for k := least; k <= most; k++ {
		if err = c.is(p, k, maps.Clone(found), floors); err == nil {
			return nil
		}
	}
	return fmt.Errorf("no state of records %d to %d: %w", least, most, err)
}

// is tells in what a replica differs from the model after k records.
func (c *contractRun) is(p *Replica, k int, found map[heldKey]Meta, floors [2]domain.Version,
) error {
	for i, x := range c.ram.order[:k] {
		slice := uint32(x.Block / segment.SliceBlocks)
		key := heldKey{slice, x.Version}
		m, ok := found[key]
		delete(found, key)
		switch {
		case x.Version.Compare(floors[slice]) <= 0:
			continue
		case !ok || m != x.Meta:
			return fmt.Errorf("record %d: %+v, not %+v", i, m, x.Meta)
		}
		if err := sameRecord(p, &x.Meta, x.n); err != nil {
			return err
		}
		if v, ok := p.v.e.Known(x.Request); x.Request.Counter >= c.ram.below && (!ok || v != x.Version) {
			return fmt.Errorf("request %+v: %v %v", x.Request, v, ok)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("of later records: %+v", found)
	}
	if err := c.gens(p, k); err != nil {
		return err
	}
	buf := backends.AlignedBuffer(segment.BlockSize)
	at := c.ram.content(k)
	for _, b := range slices.SortedFunc(maps.Keys(at), cmp.Compare) {
		if err := p.Volume().Read(b, 1, buf); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint64(buf); got != at[b] {
			return fmt.Errorf("block %d spells %d, not %d", b, got, at[b])
		}
	}
	return nil
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
