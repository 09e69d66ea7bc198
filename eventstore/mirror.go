package eventstore

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"

	"weft/domain"
)

// Mirror is a verified copy of the log: the newest records encoded in memory, the older ones, if it
// was told of a Cold, where that keeps them, and the end of every stream. Every engine answers its
// reads and subscriptions from one, so all of them verify alike. The zero value is an empty log all
// of which is in memory. Records are verified again on every read, because what holds history for
// months, memory or disk, is not above suspicion.
//
// One goroutine at a time extends it (the engine sees to that); any number reads.
type Mirror struct {
	mu struct {
		sync.RWMutex
		cold Cold   // holds the records up to base; nil: there are none
		base uint64 // n
		// records holds the record of n at n-base-1. Invariant: a slice once seen by a reader never
		// changes below its length; what would change it swaps the slice.
		records [][]byte
		streams map[domain.StreamID]lineage
		ids     map[domain.EventID]uint64 // n of the last IDsMax events
		ring    []domain.EventID          // the same ids in order, oldest at next
		next    int
		raises  []Raise // ascending; the timeline before the first is 0
		head    Head
		ended   error // why there is nothing beyond the head, if there is a reason
		changed chan struct{}
		mend    func(*CorruptError) bool // nil: nothing can be repaired
	}
}

// Mend says who repairs records of the Cold that a reader finds damaged: it is called without any
// lock of the mirror, by many goroutines, and tells whether the record is worth another look.
func (m *Mirror) Mend(repair func(*CorruptError) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.mend = repair
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
		m.mu.raises = append(slices.Clip(m.mu.raises), Raise{e.At.Timeline(), e.At.N() - 1})
	}
	if m.mu.streams == nil {
		m.mu.streams = map[domain.StreamID]lineage{}
		m.mu.ids = map[domain.EventID]uint64{}
	}
	m.mu.records = append(m.mu.records, e.Record)
	l := m.mu.streams[r.Stream]
	l.hot = append(l.hot, e.At.N())
	m.mu.streams[r.Stream] = l
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
	if t <= m.timeline() || keep > m.count() || keep < m.count() && m.mu.base > 0 {
		return domain.Errorf(domain.Invalid,
			"timeline %d is not above %d, or n %d is not the head and cannot be gone back to",
			t, m.timeline(), keep)
	}
	raises := append(slices.Clip(m.mu.raises), Raise{t, keep})
	if keep == m.count() {
		m.mu.raises = raises
		m.wake()
		return nil
	}
	kept := m.mu.records[:keep]
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
// found. It tells whether there is such a record in memory.
func (m *Mirror) Replace(p domain.Position, b []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.N() <= m.mu.base || p.N() > m.count() {
		return false
	}
	m.mu.records = slices.Clone(m.mu.records)
	m.mu.records[p.N()-m.mu.base-1] = b
	return true
}

// Has tells whether a record stands in memory at its place, to the byte.
func (m *Mirror) Has(e Entry) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := e.At.N()
	if n <= m.mu.base || n > m.count() || (span{raises: m.mu.raises}).position(n) != e.At {
		return false
	}
	return bytes.Equal(m.mu.records[n-m.mu.base-1], e.Record)
}

// Raw gives a copy of the stored bytes of a record, unverified; nil when there is none, or none
// that can be read.
func (m *Mirror) Raw(p domain.Position) []byte {
	s := m.snapshot()
	if p.N() == 0 || p.N() > s.count() {
		return nil
	}
	b, err := s.raw(p.N(), &page{})
	if err != nil {
		return nil
	}
	return slices.Clone(b)
}

func (m *Mirror) wake() {
	if m.mu.changed != nil {
		close(m.mu.changed)
		m.mu.changed = nil
	}
}

func (m *Mirror) timeline() domain.Timeline {
	if k := len(m.mu.raises); k > 0 {
		return m.mu.raises[k-1].Timeline
	}
	return 0
}

func (m *Mirror) count() uint64 { return m.mu.base + uint64(len(m.mu.records)) }

func (m *Mirror) nextPosition() domain.Position {
	return domain.PositionOf(m.timeline(), m.mu.head.Position.N()+1)
}

func (m *Mirror) streamHead(s domain.StreamID) StreamHead {
	l := m.mu.streams[s]
	if l.count() == 0 {
		return StreamHead{Revision: domain.NoRevision}
	}
	at := span{raises: m.mu.raises}.position(l.end())
	return StreamHead{Revision: domain.Revision(l.count() - 1), Position: at}
}

// Head gives the end of the log as far as the mirror knows it.
func (m *Mirror) Head() Head {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.head
}

// HeadAt gives the head the log had when n was its last record, as the record claims it; false when
// the mirror holds no such record, or cannot read it. n = 0 is the empty log.
func (m *Mirror) HeadAt(n uint64) (Head, bool) {
	s := m.snapshot()
	if n == 0 || n > s.count() {
		return Head{}, n == 0
	}
	b, err := s.raw(n, &page{})
	return Head{s.position(n), storedHash(b)}, err == nil
}

// Proved is HeadAt with the record verified. NotFound when the log does not reach so far.
func (m *Mirror) Proved(n uint64) (Head, error) {
	s := m.snapshot()
	if n == 0 || n > s.count() {
		return Head{}, domain.Errorf(domain.NotFound, "the log has no record %d", n)
	}
	r, err := s.at(n, &page{})
	return Head{r.Position, r.Hash}, err
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
	w := &walker{span: m.span(), id: s, line: m.mu.streams[s]}
	known, first := uint64(0), uint64(0)
	for i := range events {
		if n, ok := m.mu.ids[events[i].ID]; ok && known == 0 {
			known = n
			if i == 0 {
				first = n
			}
		}
	}
	m.mu.RUnlock()
	var pg page
	if rev, exact := e.Exact(); exact && uint64(rev+1) < w.line.count() {
		n, err := w.n(uint64(rev + 1))
		if err == nil {
			var r Recorded
			if r, err = w.at(n, &pg); err == nil && r.ID == events[0].ID {
				return w.match(uint64(rev+1), events, &pg)
			}
		}
		if err != nil && known == 0 { // what stands there may be the append, and nobody can tell
			return Appended{}, false, err
		}
	}
	switch {
	case known == 0:
		return Appended{}, false, nil
	case first == 0:
		return Appended{}, false, domain.Wrap(ErrIDReused, "eventstore.Append", string(s))
	}
	r, err := w.at(first, &pg)
	if err != nil {
		return Appended{}, false, err
	}
	if r.Stream != s {
		return Appended{}, false, domain.Wrap(ErrIDReused, "eventstore.Append", string(s))
	}
	return w.match(uint64(r.Revision), events, &pg)
}

// match compares the ids of an append with those of its stream from a revision on.
func (w *walker) match(rev uint64, events []Proposed, pg *page) (Appended, bool, error) {
	reused := domain.Wrap(ErrIDReused, "eventstore.Append", string(w.id))
	if rev+uint64(len(events)) > w.line.count() {
		return Appended{}, false, reused
	}
	var last Recorded
	for i := range events {
		n, err := w.n(rev + uint64(i))
		if err != nil {
			return Appended{}, false, err
		}
		if last, err = w.at(n, pg); err != nil {
			return Appended{}, false, err
		}
		if last.ID != events[i].ID {
			return Appended{}, false, reused
		}
	}
	return Appended{Last: last.Revision, Position: last.Position, Duplicate: true}, true, nil
}

// Wait returns once the mirror holds a position, or has ended, or the context has.
func (m *Mirror) Wait(ctx context.Context, p domain.Position) error {
	for {
		sp, changed := m.watch()
		switch {
		case sp.count() >= p.N():
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
