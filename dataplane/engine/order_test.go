package engine

import (
	"runtime"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// The tests of this file hold single writes of the device back, to stand between two steps of the
// engine whose order is a rule.

// later appends a record and gives its outcome when it comes.
func later(v *Volume, r *Record) <-chan error {
	done := make(signal, 1)
	r.To = done
	v.Append(r)
	return done
}

// TestOutcomesInOrder holds the write of a chunk back until the next one is durable: its record
// must be neither acknowledged nor visible before the first one is, since a crash now would lose
// both (E2).
func TestOutcomesInOrder(t *testing.T) {
	dev := faulty.New(newMem(t, 12<<20, 256<<10, 1), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	v := create(t, e, 16*domain.MiB)
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	first := later(v, data(1, 1, 1))
	<-stall.Stalled()
	writes := dev.Inner().Stats().Writes
	second := later(v, data(2, 1, 2))
	for dev.Inner().Stats().Writes == writes {
		runtime.Gosched()
	}
	// The second is on the device. A third one shows that its writer is through: there are two.
	third := later(v, data(3, 1, 3))
	for dev.Inner().Stats().Writes < writes+2 {
		runtime.Gosched()
	}
	select {
	case err := <-second:
		t.Errorf("acknowledged before the one before it: %v", err)
	default:
	}
	check(t, v, 2, 0)
	stall.Release()
	for _, done := range []<-chan error{first, second, third} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	check(t, v, 1, 1)
	check(t, v, 2, 2)
}

// TestAloneIsWrittenByItsCaller proves what Record.Now promises: on a lane that rests the outcome
// is there when Append returns, as a rule; behind a record in flight, or among others, Append does
// not wait.
func TestAloneIsWrittenByItsCaller(t *testing.T) {
	dev := faulty.New(newMem(t, 12<<20, 256<<10, 1), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	defer dev.Heal() // else a failed test waits for ever
	v := create(t, e, 16*domain.MiB)
	now := func(block, n uint64) <-chan error {
		r := data(block, 1, n)
		r.Now = true
		return later(v, r)
	}
	missed := 0
	for n := range uint64(100) {
		done := now(n, n+1)
		if len(done) == 0 {
			missed++ // a writer was just looking whether there is something to do
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		check(t, v, n, n+1)
	}
	if missed > 50 {
		t.Errorf("of 100 on a resting lane %d returned before the outcome", missed)
	}
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 2, Stall: true})
	first := later(v, data(1, 1, 500))
	<-stall.Stalled()
	second := now(2, 501) // whoever writes it is held back: a caller that did would hang here
	third := now(3, 502)
	stall.Release()
	for _, done := range []<-chan error{first, second, third} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for n := range uint64(3) {
		check(t, v, 1+n, 500+n)
	}
}

// TestFailedAlone proves that a chunk its caller writes is written again like any other, and that
// the second failure is the caller's answer, and the engine's end.
func TestFailedAlone(t *testing.T) {
	dev := faulty.New(newMem(t, 12<<20, 256<<10, 1), nil)
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	for i, times := range []int{1, 2} {
		dev.Add(faulty.Rule{On: faulty.Write, Times: times, Err: backends.ErrMedia})
		r := data(uint64(i), 1, 7)
		r.Now = true
		if err := <-later(v, r); (err == nil) != (times == 1) {
			t.Errorf("after %d failed writes: %v", times, err)
		}
	}
	check(t, v, 0, 7)
	if !e.failed.Load() {
		t.Error("the engine goes on")
	}
}

// TestFreedOnlyBehindAnchor holds the anchor of a checkpoint back, with segments that the
// checkpoint found empty and that the last anchor's log still needs, and lets writers take every
// segment they can get. A power cut then finds the log whole: none of them was given out (E7,
// R17).
func TestFreedOnlyBehindAnchor(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	dev := faulty.New(inner, nil)
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	for n := range uint64(60) {
		if err := put(v, data(n%6, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	stall := dev.Add(faulty.Rule{
		On: faulty.Write, Off: segment.AnchorOff, Len: segment.AnchorSlots * segment.Sector, Stall: true,
	})
	var round sync.WaitGroup
	round.Go(func() { _ = e.Checkpoint() })
	<-stall.Stalled()
	last := grab(e, v)
	img := inner.CrashImage(inner.Ops(), mem.None)
	e.failed.Store(true)
	stall.Release()
	round.Wait()
	e.Abandon()
	e = open(t, img, func(c *Config) { c.Report = func(f Fact) { t.Errorf("reported %+v", f) } })
	defer e.Abandon()
	v = mustVolume(t, e)
	for b := range uint64(6) {
		check(t, v, b, 54+b)
	}
	if got, err := holds(v, 100); err != nil || got < last {
		t.Errorf("holds %d, acknowledged %d: %v", got, last, err)
	}
}

// grab writes one block over and over until a writer finds no segment, and gives the last number
// that was acknowledged.
func grab(e *Engine, v *Volume) uint64 {
	last, n := uint64(0), uint64(0)
	for {
		n++
		done := later(v, data(100, 1, n))
		for {
			select {
			case err := <-done:
				if err != nil {
					return last
				}
				last = n
			default:
				if e.space.waiting.Load() > 0 {
					return last
				}
				runtime.Gosched()
				continue
			}
			break
		}
	}
}

// TestNothingFreedBehindMarks holds a checkpoint back after it has taken the lanes' marks, and
// lets a whole segment be filled, sealed and emptied meanwhile. The checkpoint must not free it:
// its records stand behind the marks, and a crash would replay them.
func TestNothingFreedBehindMarks(t *testing.T) {
	inner := newMem(t, smallSize, 64<<10, 1)
	dev := faulty.New(inner, nil)
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 1, 1)); err != nil {
		t.Fatal(err)
	}
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	var round sync.WaitGroup
	round.Go(func() {
		if err := e.Checkpoint(); err != nil {
			t.Error(err)
		}
	})
	<-stall.Stalled()
	for n := range uint64(40) {
		if err := put(v, data(n%3, 1, 10+n)); err != nil {
			t.Fatal(err)
		}
	}
	stall.Release()
	round.Wait()
	a, err := e.readAnchor()
	if err != nil {
		t.Fatal(err)
	}
	behind := 0
	chunks := logged(t, e, 0)
	e.space.mu.Lock()
	for _, p := range chunks {
		sg := e.space.at(p.off)
		if p.h.LSN > a.Lanes[0].LSN && sg.live.Load() == 0 {
			behind++
			if sg.state == segFree {
				t.Errorf("the segment of LSN %d is free, the mark is %d", p.h.LSN, a.Lanes[0].LSN)
			}
		}
	}
	e.space.mu.Unlock()
	if behind == 0 {
		t.Error("no segment was emptied meanwhile")
	}
	e.Abandon()
	e = open(t, inner, func(c *Config) { c.Report = func(f Fact) { t.Errorf("reported %+v", f) } })
	defer e.Abandon()
	v = mustVolume(t, e)
	for b := range uint64(3) {
		check(t, v, b, 10+39-(39-b)%3)
	}
}

// TestLeafKnowsWhatItHolds proves what the complete LSN of a leaf image is for. A checkpoint is
// held back after its marks, and two records change a block before its leaf is saved: the image
// holds the second, though the marks are below both. Then the second's chunk rots. A replay that
// did not ask the leaf would put the first one back.
func TestLeafKnowsWhatItHolds(t *testing.T) {
	inner := newMem(t, 12<<20, 256<<10, 1)
	dev := faulty.New(inner, nil)
	e := open(t, dev, quiet)
	v := create(t, e, 1*domain.GiB)
	for ext := range uint64(100) { // more leaves than one chunk takes
		if err := put(v, data(ext*1024, 1, 1+ext)); err != nil {
			t.Fatal(err)
		}
	}
	sealed(e) // the next write is the checkpoint's
	stall := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	var round sync.WaitGroup
	round.Go(func() {
		if err := e.Checkpoint(); err != nil {
			t.Error(err)
		}
	})
	<-stall.Stalled()
	for _, n := range []uint64{100, 200, 0} {
		block := uint64(99 * 1024)
		if n == 0 {
			block = scratch // proves the one before durable
		}
		if err := put(v, data(block, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	stall.Release()
	round.Wait()
	chunks := logged(t, e, 0)
	second := chunks[len(chunks)-2]
	e.Abandon()
	if err := inner.FlipBit(second.off+segment.ChunkHeader+3, 0); err != nil {
		t.Fatal(err)
	}
	e = open(t, inner)
	defer e.Abandon()
	check(t, mustVolume(t, e), 99*1024, 200)
}

// TestEntersAlone proves that while the first chunk of a lane enters the index, which lets the
// mutex go now and then, nobody else enters one: whoever enters it takes what has ended meanwhile,
// in its order.
func TestEntersAlone(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1), quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	l := e.lanes[0]
	enters := func(is bool) {
		l.mu.Lock()
		l.mu.entering = is
		l.mu.Unlock()
	}
	enters(true)
	first := later(v, data(1, 1, 1))
	for written := false; !written; runtime.Gosched() {
		select {
		case err := <-first:
			t.Fatalf("entered beside another: %v", err)
		default:
		}
		l.mu.Lock()
		written = l.mu.head != nil && l.mu.head.done
		l.mu.Unlock()
	}
	enters(false)
	for _, told := range []<-chan error{later(v, data(1, 1, 2)), first} {
		if err := <-told; err != nil {
			t.Fatal(err)
		}
	}
	check(t, v, 1, 2)
}

// TestMarkIsAboveWhatWasLeft proves that a checkpoint between two segments of a lane, one left and
// the next not open yet, marks the log above the first: what is left may be empty, and is free then
// for anybody's bytes, copies too. A start that looked there took them for a header that is
// damaged.
func TestMarkIsAboveWhatWasLeft(t *testing.T) {
	inner := newMem(t, 12<<20, 256<<10, 1)
	dev := faulty.New(inner, nil)
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	must(t, e.Checkpoint()) // its own segment is open
	l := e.lanes[0]
	for n := uint64(1); l.open == nil || l.open.used < 220<<10; n++ {
		must(t, put(v, data(0, 1, n)))
	}
	must(t, put(v, &Record{Kind: segment.KindUnmap, Block: 0, Count: 1}))
	left := l.open.id
	e.space.mu.Lock()
	var stalls []*faulty.Armed
	for _, id := range e.space.mu.free {
		stalls = append(stalls, dev.Add(faulty.Rule{
			On: faulty.Write, Off: e.space.off(id), Len: segment.Sector, Times: 1, Stall: true,
		}))
	}
	e.space.mu.Unlock()
	told := later(v, data(1, 12, 9))
	for sealed := false; !sealed; runtime.Gosched() { // now the next one is opened
		e.space.mu.Lock()
		sealed = e.space.mu.segs[left].state == segSealed
		e.space.mu.Unlock()
	}
	must(t, e.Checkpoint())
	e.space.mu.Lock()
	seq, state := e.space.mu.segs[left].seq, e.space.mu.segs[left].state
	e.space.mu.Unlock()
	a, err := e.readAnchor()
	must(t, err)
	if state != segFree || a.Lanes[0].Sequence <= seq {
		t.Errorf("the mark is %+v, segment %d of sequence %d is %v", a.Lanes[0], left, seq, state)
	}
	spoilAt(t, inner, e.space.off(left), segment.Sector, func(b []byte) { copy(b, fill(1, 3)) })
	img := inner.Clone()
	for _, s := range stalls {
		s.Release()
	}
	must(t, <-told)
	e.Abandon()
	e = open(t, img, func(c *Config) { c.Report = func(f Fact) { t.Errorf("reported %+v", f) } })
	defer e.Abandon()
	check(t, mustVolume(t, e), 0, 0)
}
