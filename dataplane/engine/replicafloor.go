package engine

import (
	"cmp"
	"context"
	"sync"
	"time"

	"weft/dataplane/segment"
)

// floorDelay is how long a floor that was raised may stand in RAM alone.
const floorDelay = 100 * time.Millisecond

// floors logs what was raised, a moment later and all together: then silence, until somebody raises
// one again. An entry stands in every lane that took a record since the last one, because its chunk
// proves, by its flush mark, that the chunks before it were durable: a last chunk that rots behind
// it is damage that is told, and not the torn end of a log.
type floors struct {
	mu     sync.Mutex
	armed  bool
	ended  bool
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// raise lets the floors be logged a moment later.
func (e *Engine) raise() {
	f := &e.floors
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.armed || f.ended {
		return
	}
	f.armed = true
	ctx, cancel := context.WithTimeout(background, floorDelay)
	f.cancel = cancel
	f.done.Add(1)
	go func() {
		defer f.done.Done()
		<-ctx.Done()
		cancel()
		f.mu.Lock()
		f.armed = false
		ended := f.ended
		f.mu.Unlock()
		if !ended {
			e.logFloors()
		}
	}()
}

// stop ends it for good: what was not logged is in the next checkpoint, or is said again.
func (f *floors) stop() {
	f.mu.Lock()
	f.ended = true
	if f.cancel != nil {
		f.cancel()
	}
	f.mu.Unlock()
	f.done.Wait()
}

// logFloors logs every floor that was raised since it was logged last. What fails is the engine's
// to tell: a floor that is lost costs work and nothing else.
func (e *Engine) logFloors() {
	e.mu.RLock()
	var list []*replica
	for _, rep := range e.mu.replicas {
		list = append(list, rep)
	}
	e.mu.RUnlock()
	for _, rep := range list {
		notes := rep.raised()
		if len(notes) == 0 {
			continue
		}
		logged, failed := false, error(nil)
		for _, l := range e.lanes {
			l.mu.Lock()
			fresh := rep.lanes[l.no].fresh
			rep.lanes[l.no].fresh = false
			l.mu.Unlock()
			if fresh {
				logged = true
				failed = cmp.Or(failed, e.logNotes(background, l, notes))
			}
		}
		if !logged {
			failed = e.logNotes(background, e.lanes[0], notes)
		}
		if failed == nil {
			rep.lasts(notes)
		}
	}
}

// raised gives the entries of the floors that were raised, each once.
func (rep *replica) raised() []segment.Entry {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	var list []segment.Entry
	for no, floor := range rep.mu.raised {
		list = append(list, rep.note(no, segment.KindFloor, floor))
	}
	clear(rep.mu.raised)
	return list
}
