package eventstore

import (
	"context"
	"errors"
	"slices"
	"sync"

	"weft/domain"
)

// Mirror is a verified copy of the log in memory: the encoded records and an index by stream. Every
// engine answers its reads and subscriptions from one, so all of them verify alike. The zero value
// is an empty log. Records are kept encoded and verified again on every read, because memory that
// holds history for months is not above suspicion either.
//
// One goroutine at a time extends it (the engine sees to that); any number reads.
type Mirror struct {
	mu struct {
		sync.RWMutex
		// records holds the record of n at n-1. Invariant: a slice once seen by a reader never
		// changes below its length; what would change it swaps the slice.
		records [][]byte
		streams map[domain.StreamID][]uint64 // n of each event, by revision
		ids     map[domain.EventID]uint64    // n of the last IDsMax events
		ring    []domain.EventID             // the same ids in order, oldest at next
		next    int
		raises  []raise // ascending; the timeline before the first is 0
		head    Head
		ended   error // why there is nothing beyond the head, if there is a reason
		changed chan struct{}
	}
}

// raise says that the records after n carry a timeline.
type raise struct {
	timeline domain.Timeline
	floor    uint64
}

// Entry is an encoded record and the position at which it was found.
type Entry struct {
	At     domain.Position
	Record []byte
}

// Extend verifies records and adds those before the first bad one. The slices belong to the mirror
// from then on. The error is a CorruptError, or of kind Unsupported for a newer format.
func (m *Mirror) Extend(entries ...Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	for i := range entries {
		if err = m.add(entries[i]); err != nil {
			break
		}
	}
	m.wake()
	return err
}

func (m *Mirror) add(e Entry) error {
	r, err := verify(e, m.nextPosition(), m.mu.head.Hash, m.streamHead)
	if err != nil {
		return err
	}
	if e.At.Timeline() > m.timeline() {
		m.mu.raises = append(slices.Clip(m.mu.raises), raise{e.At.Timeline(), e.At.N() - 1})
	}
	if m.mu.streams == nil {
		m.mu.streams = map[domain.StreamID][]uint64{}
		m.mu.ids = map[domain.EventID]uint64{}
	}
	m.mu.records = append(m.mu.records, e.Record)
	m.mu.streams[r.Stream] = append(m.mu.streams[r.Stream], e.At.N())
	m.remember(r.ID, e.At.N())
	m.mu.head = Head{Position: e.At, Hash: r.Hash}
	return nil
}

func (m *Mirror) remember(id domain.EventID, n uint64) {
	if len(m.mu.ring) < IDsMax {
		m.mu.ring = append(m.mu.ring, id)
	} else {
		delete(m.mu.ids, m.mu.ring[m.mu.next])
		m.mu.ring[m.mu.next] = id
		m.mu.next = (m.mu.next + 1) % IDsMax
	}
	m.mu.ids[id] = n
}

// End says why the log does not go on: reads deliver what is known and then this error. ErrClosed
// ends reads at once. The first reason stays, except that ErrClosed replaces any.
func (m *Mirror) End(reason error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.ended == nil || errors.Is(reason, ErrClosed) {
		m.mu.ended = reason
	}
	m.wake()
}

// Ended gives the reason, nil while the log goes on.
func (m *Mirror) Ended() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.ended
}

// Restore drops every record after n = keep and gives those to come a higher timeline. It stands
// for what restoring a backup does to a log. The error is of kind Invalid.
func (m *Mirror) Restore(keep uint64, t domain.Timeline) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t <= m.timeline() || keep > uint64(len(m.mu.records)) {
		return domain.Errorf(domain.Invalid, "timeline %d is not above %d, or n %d is beyond the head",
			t, m.timeline(), keep)
	}
	kept := m.mu.records[:keep]
	raises := append(slices.Clip(m.mu.raises), raise{t, keep})
	m.mu.records, m.mu.streams, m.mu.ids, m.mu.ring, m.mu.next = nil, nil, nil, nil, 0
	m.mu.raises, m.mu.head = nil, Head{}
	s := span{raises: raises}
	for i, b := range kept {
		if err := m.add(Entry{s.position(uint64(i + 1)), b}); err != nil {
			return err
		}
	}
	m.mu.raises = raises
	m.wake()
	return nil
}

// Replace puts other bytes in the place of a record, unverified. It exists to show that damage is
// found. It tells whether there is such a record.
func (m *Mirror) Replace(p domain.Position, b []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.N() == 0 || p.N() > uint64(len(m.mu.records)) {
		return false
	}
	m.mu.records = slices.Clone(m.mu.records)
	m.mu.records[p.N()-1] = b
	return true
}

// Raw gives a copy of the stored bytes of a record, unverified; nil when there is none.
func (m *Mirror) Raw(p domain.Position) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p.N() == 0 || p.N() > uint64(len(m.mu.records)) {
		return nil
	}
	return slices.Clone(m.mu.records[p.N()-1])
}

func (m *Mirror) wake() {
	if m.mu.changed != nil {
		close(m.mu.changed)
		m.mu.changed = nil
	}
}

func (m *Mirror) timeline() domain.Timeline {
	if k := len(m.mu.raises); k > 0 {
		return m.mu.raises[k-1].timeline
	}
	return 0
}

func (m *Mirror) nextPosition() domain.Position {
	return domain.PositionOf(m.timeline(), m.mu.head.Position.N()+1)
}

func (m *Mirror) streamHead(s domain.StreamID) StreamHead {
	ns := m.mu.streams[s]
	if len(ns) == 0 {
		return StreamHead{Revision: domain.NoRevision}
	}
	at := span{raises: m.mu.raises}.position(ns[len(ns)-1])
	return StreamHead{Revision: domain.Revision(len(ns) - 1), Position: at}
}

// Head gives the end of the log as far as the mirror knows it.
func (m *Mirror) Head() Head {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.head
}

// HeadAt gives the head the log had when n was its last record, as the record claims it; false when
// the mirror holds no such record. n = 0 is the empty log.
func (m *Mirror) HeadAt(n uint64) (Head, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n == 0 || n > uint64(len(m.mu.records)) {
		return Head{}, n == 0
	}
	return Head{m.span().position(n), storedHash(m.mu.records[n-1])}, true
}

// StreamHead gives the end of a stream as far as the mirror knows it.
func (m *Mirror) StreamHead(s domain.StreamID) StreamHead {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.streamHead(s)
}

// Find looks for an append whose event ids are stored already (E5): at the place it expects, and
// among the last IDsMax ids. ErrIDReused means that only some are there, or elsewhere.
func (m *Mirror) Find(s domain.StreamID, e Expect, events []Proposed) (Appended, bool, error) {
	m.mu.RLock()
	sp, ns := m.span(), m.mu.streams[s]
	first := uint64(0)
	if rev, exact := e.Exact(); exact && int(rev)+1 < len(ns) {
		first = ns[rev+1]
		if r, err := sp.at(first); err != nil || r.ID != events[0].ID {
			first = 0
		}
	}
	known := first
	for i := range events {
		if n, ok := m.mu.ids[events[i].ID]; ok && known == 0 {
			known = n
			if i == 0 {
				first = n
			}
		}
	}
	m.mu.RUnlock()
	if known == 0 {
		return Appended{}, false, nil
	}
	if first == 0 {
		return Appended{}, false, domain.Wrap(ErrIDReused, "eventstore.Append", string(s))
	}
	return sp.match(s, ns, first, events)
}

// match compares the ids of an append with those of its stream from n = first on.
func (s span) match(
	stream domain.StreamID, ns []uint64, first uint64, events []Proposed,
) (Appended, bool, error) {
	reused := domain.Wrap(ErrIDReused, "eventstore.Append", string(stream))
	rev, ok := slices.BinarySearch(ns, first)
	if !ok || rev+len(events) > len(ns) {
		return Appended{}, false, reused
	}
	var last Recorded
	for i := range events {
		r, err := s.at(ns[rev+i])
		if err != nil {
			return Appended{}, false, err
		}
		if r.ID != events[i].ID {
			return Appended{}, false, reused
		}
		last = r
	}
	return Appended{Last: last.Revision, Position: last.Position, Duplicate: true}, true, nil
}

// Wait returns once the mirror holds a position, or has ended, or the context has.
func (m *Mirror) Wait(ctx context.Context, p domain.Position) error {
	for {
		sp, changed := m.watch()
		switch {
		case uint64(len(sp.records)) >= p.N():
			return nil
		case sp.ended != nil:
			return sp.ended
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return aborted(ctx, "eventstore.Wait")
		}
	}
}

func aborted(ctx context.Context, op string) error {
	return &domain.Error{Op: op, Kind: domain.Aborted, Err: ctx.Err()}
}
