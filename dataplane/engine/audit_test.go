package engine

import (
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
)

// audits lets every test end with a check of its devices by dataplane/fsck, the second and naive
// implementation: what an engine left must be sound in its eyes too, and, after a clean stop, hold
// as much as the engine said.
var audits struct {
	sync.Mutex
	of map[testing.TB]*audit
}

// audit is the devices of one test, the last opened last.
type audit struct {
	devices []backends.Device
	last    map[backends.Device]*Engine
}

// auditMax bounds how many devices of one test are checked: crash tests open thousands of images.
const auditMax = 12

// audited notes that an engine was opened over a device.
func audited(t testing.TB, dev backends.Device, e *Engine) {
	t.Helper()
	audits.Lock()
	defer audits.Unlock()
	a := audits.of[t]
	if a == nil {
		a = &audit{last: map[backends.Device]*Engine{}}
		if audits.of == nil {
			audits.of = map[testing.TB]*audit{}
		}
		audits.of[t] = a
		t.Cleanup(func() {
			audits.Lock()
			delete(audits.of, t)
			audits.Unlock()
			if !t.Failed() {
				a.run(t)
			}
		})
	}
	if a.last[dev] == nil {
		a.devices = append(a.devices, dev)
		if len(a.devices) > auditMax {
			delete(a.last, a.devices[0])
			a.devices = a.devices[1:]
		}
	}
	a.last[dev] = e
}

// run checks all but the devices that a test harmed, and those whose engine still runs.
func (a *audit) run(t testing.TB) {
	t.Helper()
	for _, dev := range a.devices {
		e := a.last[dev]
		e.mu.RLock()
		closed := e.mu.closed
		e.mu.RUnlock()
		if _, harm := dev.(*faulty.Device); harm || !closed || e.stats.corrupt.Load() > 0 {
			continue
		}
		r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{
			Data: true, Boundary: dev.Geometry().Boundary,
		})
		if err != nil {
			t.Errorf("the device cannot be checked: %v", err)
			continue
		}
		for i, p := range r.Problems {
			if i < 5 {
				t.Errorf("fsck: %+v", p)
			}
		}
		for i, sg := range e.space.mu.segs {
			sum := int64(0)
			for p := range e.space.partCount {
				sum += int64(e.space.alive(i*e.space.partCount+p)) * segment.Unit
			}
			// The entry of a compressed block claims room of its segment, but of no part.
			entries := sg.live.Load() - sum
			if entries < 0 || entries%segment.PackedEntry != 0 ||
				entries/segment.PackedEntry > sum/segment.Unit {
				t.Errorf("segment %d: %d bytes live, %d in its parts", i, sg.live.Load(), sum)
			}
		}
		got := r.Live + r.Journaled + hiddenInJournal(e)
		if live := e.space.live.Load(); r.Anchor.Clean && !e.failed.Load() && got != live {
			t.Errorf("fsck: %d bytes live, the engine said %d", got, live)
		}
		if n := e.space.saved.Load(); r.Anchor.Clean && !e.failed.Load() && r.Saved != n {
			t.Errorf("fsck: %d bytes saved, the engine said %d", r.Saved, n)
		}
	}
}

// hiddenInJournal gives the bytes in the journal that live for held records alone.
func hiddenInJournal(e *Engine) (n int64) {
	for _, rep := range e.mu.replicas {
		for _, l := range e.lanes {
			for _, h := range rep.lanes[l.no].held {
				for i := range h.Count {
					if h.slot != nil && h.Kind == segment.KindData && rep.lanes[l.no].seat(h, i).top != h {
						n += segment.BlockSize
					}
				}
			}
		}
	}
	return n
}
