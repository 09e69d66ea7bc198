package engine

import (
	"runtime"
	"sync/atomic"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// newPlacedRun opens an engine with a journal over a device that fails as it is told.
func newPlacedRun(t *testing.T) (*mem.Device, *faulty.Device, *mem.Memory, *Engine, *Volume) {
	t.Helper()
	inner := recorded(t, 64<<20, 1<<20, 1)
	dev, nv := faulty.New(inner, nil), newMemory(t, inner, 40)
	e := open(t, dev, quiet, journaled(nv))
	return inner, dev, nv, e, create(t, e, 256*domain.MiB)
}

// TestFollowing proves that the segment behind the open one is opened before it is needed, when
// half of that one is full and not before, and that the lane goes on in it.
func TestFollowing(t *testing.T) {
	_, _, _, e, v := newPlacedRun(t)
	defer e.Abandon()
	l, n := e.lanes[0], uint64(0)
	state := func() (open *openSegment, used int64, asked bool) {
		l.seal.Lock()
		defer l.seal.Unlock()
		return l.open, l.open.used, l.asked
	}
	step := func() {
		n++
		destaged(t, v, data(n*40, 16, n))
	}
	step()
	first, used, asked := state()
	for used <= 1<<19 {
		if asked {
			t.Fatalf("a segment was opened ahead behind %d bytes", used)
		}
		step()
		_, used, asked = state()
	}
	if !asked {
		t.Fatalf("no segment was opened ahead behind %d bytes", used)
	}
	next := <-l.ahead
	if next == nil {
		t.Fatal("there was none to open ahead")
	}
	l.ahead <- next
	for open := first; open == first; open, _, _ = state() {
		step()
	}
	if open, _, _ := state(); open != next {
		t.Errorf("the lane went on in segment %d, not %d", open.id, next.id)
	}
	for i := range n {
		check(t, v, (i+1)*40, i+1)
	}
}

// TestHeaderFails proves that a header that cannot be made durable ahead of its segment is as good
// as a failed flush to all that is not flushed yet: what a group wrote before is written again.
func TestHeaderFails(t *testing.T) {
	inner, dev, nv, e, v := newPlacedRun(t)
	l, n, next := e.lanes[0], uint64(0), uint32(0)
	for e.faults.Load() == 0 && n < 100 {
		n++
		if err := put(v, data(n*40, 16, n)); err != nil {
			t.Fatal(err)
		}
		l.seal.Lock()
		if next == 0 && l.open != nil && l.open.used > 400<<10 {
			e.space.mu.Lock()
			next = e.space.mu.free[0]
			e.space.mu.Unlock()
			dev.Add(faulty.Rule{
				On: faulty.Write, Off: e.space.off(next), Len: segment.Sector, Times: 1,
				Err: backends.ErrMedia,
			})
		}
		l.seal.Unlock()
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
	}
	e.space.mu.Lock()
	state := e.space.mu.segs[next].state
	e.space.mu.Unlock()
	if state != segBad || e.faults.Load() != 1 {
		t.Errorf("segment %d is %d, %d faults are known", next, state, e.faults.Load())
	}
	for range 20 {
		n++
		destaged(t, v, data(n*40, 16, n))
	}
	e.Abandon()
	e = open(t, inner.CrashImage(inner.Ops(), mem.None), quiet, journaled(nv))
	defer e.Abandon()
	v = mustVolume(t, e)
	for i := range n {
		check(t, v, (i+1)*40, i+1)
	}
}

// TestCloseWaitsForFooters proves that nothing is written behind the end of an engine: footers of
// segments that the destager has filled are under way beside it.
func TestCloseWaitsForFooters(t *testing.T) {
	_, dev, _, e, v := newPlacedRun(t)
	l := e.lanes[0]
	n := uint64(0)
	var first *openSegment
	for {
		n++
		destaged(t, v, data(n*40, 16, n))
		l.seal.Lock()
		if first == nil {
			first = l.open
			dev.Add(faulty.Rule{ // its last sector
				On: faulty.Write, Off: e.space.off(first.id+1) - segment.Sector, Len: segment.Sector,
				Stall: true,
			})
		}
		over := l.open != first
		l.seal.Unlock()
		if over {
			break
		}
	}
	var healed atomic.Bool
	go func() {
		for {
			e.mu.Lock()
			closed := e.mu.closed
			e.mu.Unlock()
			if closed {
				break
			}
			runtime.Gosched()
		}
		for range 1000 { // Close has the time to go wrong
			runtime.Gosched()
		}
		healed.Store(true)
		dev.Heal()
	}()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if !healed.Load() || !e.space.sealed(first.sg) {
		t.Error("the engine was closed before the footer was written")
	}
}
