package engine

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// barrier is a device that notes, of what a destager writes, what is durable by itself and what
// waits for a flush.
type barrier struct {
	*mem.Device
	mu      sync.Mutex
	large   int             // least bytes of a write that counts
	lazy    int             // writes without FUA
	fua     int             // writes with it
	flushes int             // of the device
	open    map[int64]bool  // offsets written and not flushed
	failing int             // flushes that are to fail, from the next one on
	broken  bool            // no write with FUA succeeds any more
	written func(n int)     // after each lazy write; may be nil
	before  func(off int64) // before each of those; may be nil
}

// WriteAt writes and notes.
func (d *barrier) WriteAt(p []byte, off int64, fua bool) error {
	d.mu.Lock()
	broken := d.broken && fua && len(p) >= d.large
	before := d.before
	d.mu.Unlock()
	if before != nil && !fua && len(p) >= d.large {
		before(off)
	}
	if broken {
		return backends.ErrMedia
	}
	err := d.Device.WriteAt(p, off, fua)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(p) < d.large:
	case fua:
		d.fua++
	default:
		d.lazy++
		d.open[off] = true
		if d.written != nil {
			d.written(d.lazy)
		}
	}
	return err
}

// Flush flushes or fails, and notes.
func (d *barrier) Flush(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	if d.failing > 0 {
		d.failing--
		return backends.ErrMedia
	}
	clear(d.open)
	return d.Device.Flush(ctx)
}

// filled fills a journal with so many blocks that stand apart, on a device with chunks of 16 KiB,
// and destages none of them yet.
func filled(t *testing.T, b *barrier, nv *mem.Memory, blocks uint64,
	tune ...func(*Config),
) *Engine {
	t.Helper()
	b.large, b.open = 12<<10, map[int64]bool{}
	e := open(t, b, append(tune, quiet, journaled(nv))...)
	v := create(t, e, 16*domain.MiB)
	for n := range blocks {
		if err := put(v, data(n*3, 1, n+1)); err != nil {
			t.Fatal(err)
		}
	}
	b.mu.Lock()
	b.fua, b.lazy, b.flushes = 0, 0, 0
	b.mu.Unlock()
	return e
}

// TestDestageFlushesOnce proves that the chunks of a batch are written without FUA and made durable
// by one flush for each group, and that nothing is left unflushed when the journal's room is free.
func TestDestageFlushesOnce(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	b, nv := &barrier{Device: inner}, newMemory(t, inner, 40)
	e := filled(t, b, nv, 64)
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	groups := (b.lazy + e.groupSize() - 1) / e.groupSize()
	if b.fua != 0 || b.lazy < 16 || b.flushes != groups || len(b.open) != 0 {
		t.Errorf("%d writes with FUA, %d without, %d unflushed; %d flushes for %d groups", b.fua, b.lazy,
			len(b.open), b.flushes, groups)
	}
	b.mu.Unlock()
	e.Abandon()
	e = open(t, inner.CrashImage(inner.Ops(), mem.None), journaled(nv))
	defer e.Abandon()
	for n := range uint64(64) {
		check(t, mustVolume(t, e), n*3, n+1)
	}
}

// TestDestageFlushFails proves that where the flush of a group fails, or another one while it was
// written, all of the group is written again, durably, before the journal's room is free (E11); and
// that a device that fails then too leaves everything in the journal.
func TestDestageFlushFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		flushes int  // that fail
		other   bool // somebody else's fails while the group is written
		dead    bool // what is written again fails too
	}{
		{"flush", 1, false, false}, {"another", 0, true, false}, {"for good", 1, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner := recorded(t, smallSize, 64<<10, 1)
			b, nv, told := &barrier{Device: inner}, newMemory(t, inner, 40), &facts{}
			var e *Engine
			if c.other {
				b.written = func(n int) {
					if n == 2 {
						e.faults.Add(1)
					}
				}
			}
			e = filled(t, b, nv, 32, told.into)
			b.mu.Lock()
			b.failing, b.broken = c.flushes, c.dead
			b.mu.Unlock()
			err := e.nv.drain(background)
			b.mu.Lock()
			if c.dead {
				kindOf(t, err, domain.Unavailable)
			} else if err != nil || b.fua < min(b.lazy, e.groupSize()) {
				t.Errorf("%d chunks, %d written again: %v", b.lazy, b.fua, err)
			}
			b.mu.Unlock()
			if c.flushes != told.count("write-error") || c.dead != (told.count("failed") == 1) {
				t.Errorf("told %+v", told.list)
			}
			e.Abandon()
			e = open(t, inner.CrashImage(inner.Ops(), mem.None), journaled(nv))
			defer e.Abandon()
			for n := range uint64(32) {
				check(t, mustVolume(t, e), n*3, n+1)
			}
		})
	}
}

// TestDestageTwoGroups proves that a group is written while the one before it still is where
// somebody waits, that no room is free before the older one is durable, and that where the flush of
// the older one fails both are written again.
func TestDestageTwoGroups(t *testing.T) {
	for _, failing := range []int{0, 1} {
		inner := recorded(t, smallSize, 64<<10, 1)
		gate, stuck := make(chan struct{}), make(chan struct{})
		b, nv := &barrier{Device: inner}, newMemory(t, inner, 40)
		var e *Engine
		var size int
		enough := make(chan struct{})
		b.written = func(n int) {
			switch n {
			case 1: // and the lane's other writer goes on
				b.mu.Unlock()
				close(stuck)
				<-gate
				b.mu.Lock()
			case size + 2:
				close(enough)
			}
		}
		e = filled(t, b, nv, 64)
		size = e.groupSize()
		b.failing = failing
		used := e.nv.used.Load()
		done := make(chan error, 1)
		go func() { done <- e.nv.drain(background) }()
		<-stuck
		select {
		case <-enough:
		case <-time.After(time.Minute):
			t.Fatal("the second group is not written beside the first one")
		}
		b.mu.Lock()
		if b.flushes != 0 || e.nv.used.Load() < used {
			t.Errorf("%d flushes, %d of %d slots in use", b.flushes, e.nv.used.Load(), used)
		}
		b.mu.Unlock()
		crashed := inner.CrashImage(inner.Ops(), mem.None)
		mem := newMemory(t, inner, 40)
		copy(mem.Bytes(), nv.Bytes())
		close(gate)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		if again := failing * 2 * size; b.fua < min(again, b.lazy) || failing == 0 && b.fua > 0 {
			t.Errorf("%d chunks in groups of %d, %d written again", b.lazy, size, b.fua)
		}
		b.mu.Unlock()
		e.Abandon()
		e = open(t, crashed, journaled(mem))
		for n := range uint64(64) {
			check(t, mustVolume(t, e), n*3, n+1)
		}
		e.Abandon()
	}
}

// TestDestageGoesOn proves that also where nobody waits a group is written while the one before it
// still is, and that the next one follows as soon as one is durable, not when all are: else the
// device stands idle while a batch is prepared.
func TestDestageGoesOn(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	b, nv := &barrier{Device: inner}, newMemory(t, inner, 40)
	e := filled(t, b, nv, 64)
	defer e.Abandon()
	release := undestaged(e.nv)
	v := mustVolume(t, e)
	grow := func(first, blocks uint64) {
		for n := first; n < first+blocks; n++ {
			if err := put(v, data(n*3, 1, n+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	grow(64, 16)
	if fill, n := e.nv.fill(), e.groupSize(); fill != tier.FillStart || n != 2 {
		t.Fatalf("fill %d, groups of %d", fill, n)
	}
	started, gates, done := make(chan int64, 64), sync.Map{}, make(chan struct{})
	b.mu.Lock()
	b.before = func(off int64) { // each waits until it is let go on, or all are
		gate := make(chan struct{})
		gates.Store(off, gate)
		started <- off
		select {
		case <-gate:
		case <-done:
		}
	}
	b.mu.Unlock()
	end := sync.OnceFunc(func() { close(done) })
	defer end()
	next := func(what string) int64 {
		select {
		case off := <-started:
			return off
		case <-time.After(time.Minute):
			t.Fatal(what)
			return 0
		}
	}
	release()
	var offs []int64 // of two groups, of two chunks and of the last one of the batch
	for range 3 {
		offs = append(offs, next("the second group is not written beside the first one"))
	}
	slices.Sort(offs) // as they were given their places
	grow(80, 20)
	for _, off := range offs[:2] {
		gate, _ := gates.Load(off)
		close(gate.(chan struct{})) //nolint:forcetypeassert // it holds nothing else
	}
	next("the third group is not written beside the second one")
	end()
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(100) {
		check(t, v, n*3, n+1)
	}
}

// TestPick proves what is destaged of a journal of which a part is under way: a batch as long as
// the rest of it, and one batch more, are as full as that is to begin.
func TestPick(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	b, nv := &barrier{Device: inner}, newMemory(t, inner, 40)
	e := filled(t, b, nv, 64)
	defer e.Abandon()
	defer undestaged(e.nv)()
	v := mustVolume(t, e)
	for n := uint64(64); n < 88; n++ {
		if err := put(v, data(n*3, 1, n+1)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []int{3, 3, 0} {
		if got := e.nv.pick(); got != (want > 0) || len(e.nv.batch.slots) != want {
			t.Errorf("%d: %d slots, not %d, with %d of %d in use, %d under way", i,
				len(e.nv.batch.slots), want, e.nv.used.Load(), len(e.nv.slots), e.nv.mu.away)
		}
	}
	e.nv.mu.Lock()
	for _, sl := range e.nv.mu.queue {
		sl.away = false
	}
	e.nv.mu.away = 0
	e.nv.mu.Unlock()
}

// TestPaceAsks proves that writers together ask once for each paceStep bytes how long they have to
// wait, of a journal that is fuller than it is to be, and never below.
func TestPaceAsks(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	b, nv := &barrier{Device: inner}, newMemory(t, inner, 40)
	asked, blocks := int64(0), int64(0)
	e := filled(t, b, nv, 64)
	defer e.Abandon()
	defer undestaged(e.nv)()
	now := e.nv.clock.Now
	e.nv.clock.Now = func() time.Duration { asked++; return now() }
	v := mustVolume(t, e)
	for n := uint64(64); n < 140; n++ {
		if e.nv.fill() > tier.FillSlow {
			blocks++
		} else if asked > 0 {
			t.Fatalf("asked %d times at a fill of %d", asked, e.nv.fill())
		}
		if err := put(v, data(n*3, 1, n+1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := blocks * segment.BlockSize / paceStep; asked != n || n < 1 {
		t.Errorf("asked %d times for %d blocks, not %d", asked, blocks, n)
	}
}
