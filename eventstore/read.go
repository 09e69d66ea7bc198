package eventstore

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sort"

	"weft/domain"
)

// span is what the mirror held at one moment. It never changes.
type span struct {
	cold    Cold
	base    uint64
	records [][]byte
	raises  []Raise
	ended   error
	mend    func(*CorruptError) bool
}

func (m *Mirror) span() span {
	return span{
		cold: m.mu.cold, base: m.mu.base, records: m.mu.records, raises: m.mu.raises, ended: m.mu.ended,
		mend: m.mu.mend,
	}
}

// count is the n of the last record.
func (s span) count() uint64 { return s.base + uint64(len(s.records)) }

// watch gives the span and a channel that closes at the next change.
func (m *Mirror) watch() (span, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.changed == nil {
		m.mu.changed = make(chan struct{})
	}
	return m.span(), m.mu.changed
}

func (m *Mirror) snapshot() span {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.span()
}

func (s span) closed() bool { return errors.Is(s.ended, ErrClosed) }

func (s span) position(n uint64) domain.Position {
	i := sort.Search(len(s.raises), func(i int) bool { return s.raises[i].Floor >= n })
	if i == 0 {
		return domain.PositionOf(0, n)
	}
	return domain.PositionOf(s.raises[i-1].Timeline, n)
}

func (s span) timeline() domain.Timeline {
	if k := len(s.raises); k > 0 {
		return s.raises[k-1].Timeline
	}
	return 0
}

// at gives the record of n with everything verified (E1, E2, E4): checksum, content, hash, and that
// it follows the record before it.
func (s span) at(n uint64, pg *page) (Recorded, error) {
	r, err := s.sound(n, pg)
	if err == nil {
		return r, nil
	}
	pg.records = nil // what was read may be repaired meanwhile
	var bad *CorruptError
	if s.mend != nil && errors.As(err, &bad) && bad.Position.N() <= s.base && s.mend(bad) {
		if r, err = s.sound(n, pg); err != nil {
			pg.records = nil
		}
	}
	return r, err
}

func (s span) sound(n uint64, pg *page) (Recorded, error) {
	b, err := s.raw(n, pg)
	if err != nil {
		return Recorded{}, err
	}
	p := s.position(n)
	r, err := DecodeRecord(p, b)
	if err != nil {
		return Recorded{}, err
	}
	prev, before := [32]byte{}, []byte(nil)
	switch {
	case n == 1:
	case pg.n == n-1: // verified a moment ago
		prev = pg.hash
	default:
		if before, err = s.raw(n-1, pg); err != nil {
			return Recorded{}, err
		}
		prev = storedHash(before)
	}
	if r.Prev == prev {
		pg.n, pg.hash = n, r.Hash
		return r, nil
	}
	if before != nil { // this record is sound in itself, so the one before may be the damaged one
		if _, err := DecodeRecord(s.position(n-1), before); err != nil {
			return Recorded{}, err
		}
	}
	return Recorded{}, &CorruptError{Position: p, What: "does not follow the record before it"}
}

// cursor gives the n of a position that a reader brings, or says that its history was given up.
func (s span) cursor(p domain.Position) (uint64, error) {
	n := p.N()
	switch {
	case p == 0:
		return 0, nil
	case n <= s.count() && n > 0 && s.position(n) == p:
		return n, nil
	case n > s.count() && p.Timeline() == s.timeline():
		return n, nil
	}
	for _, r := range s.raises {
		if r.Timeline > p.Timeline() && n > r.Floor {
			return 0, &TimelineError{Cursor: p, Floor: s.position(r.Floor)}
		}
	}
	return 0, &TimelineError{Cursor: p} // of a history that this log never had: start over
}

// ReadStream is Store.ReadStream over what the mirror holds at the call.
func (m *Mirror) ReadStream(
	ctx context.Context, id domain.StreamID, from domain.Revision, d Direction, limit int,
) iter.Seq2[Recorded, error] {
	m.mu.RLock()
	w := walker{span: m.span(), id: id, line: m.mu.streams[id]}
	m.mu.RUnlock()
	return func(yield func(Recorded, error) bool) {
		s, pg := w, page{}
		count, step, rev := domain.Revision(s.line.count()), domain.Revision(1), max(from, 0)
		if d == Backward {
			step, rev = -1, from
			if from < 0 || from >= count {
				rev = count - 1
			}
		}
		open := !s.closed()
		for ; open && rev >= 0 && rev < count && limit != 0; rev, limit = rev+step, limit-1 {
			r, err := s.event(rev, &pg)
			if err == nil && (r.Stream != id || r.Revision != rev) {
				err = &CorruptError{Position: r.Position, What: "stands in another stream"}
			}
			if ctx.Err() != nil {
				err = aborted(ctx, "eventstore.ReadStream")
			}
			if err != nil {
				yield(Recorded{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
		if s.ended != nil && (s.closed() || limit != 0 && d == Forward) {
			yield(Recorded{}, s.ended)
		}
	}
}

// event gives the event of a revision.
func (w *walker) event(rev domain.Revision, pg *page) (Recorded, error) {
	n, err := w.n(uint64(rev))
	if err != nil {
		return Recorded{}, err
	}
	return w.at(n, pg)
}

// ReadAll is Store.ReadAll over what the mirror holds at the call.
func (m *Mirror) ReadAll(
	ctx context.Context, from domain.Position, d Direction, f domain.Filter, limit int,
) iter.Seq2[Recorded, error] {
	s := m.snapshot()
	return func(yield func(Recorded, error) bool) {
		n, err := s.cursor(from)
		count, step, pg := s.count(), uint64(1), page{}
		if d == Backward {
			step = ^uint64(0) // minus one
			if from == 0 {
				n, err = count, s.ended
			}
			n = min(n, count)
		} else {
			n++
		}
		for ; err == nil && n >= 1 && n <= count && limit != 0 && !s.closed(); n += step {
			var r Recorded
			if r, err = s.at(n, &pg); err != nil {
				break
			}
			if err = ctx.Err(); err != nil {
				err = aborted(ctx, "eventstore.ReadAll")
				break
			}
			if !f.Match(r.Stream, r.Type) {
				continue
			}
			limit--
			if !yield(r, nil) {
				return
			}
		}
		if err == nil && s.ended != nil && (s.closed() || limit != 0 && d == Forward) {
			err = s.ended
		}
		if err != nil {
			yield(Recorded{}, err)
		}
	}
}

// Subscribe is Store.Subscribe over the mirror and what it will hold.
func (m *Mirror) Subscribe(
	ctx context.Context, after domain.Position, f domain.Filter,
) (Subscription, error) {
	s := m.snapshot()
	if ctx.Err() != nil {
		return nil, aborted(ctx, "eventstore.Subscribe")
	}
	n, err := s.cursor(after)
	if s.closed() {
		err = ErrClosed
	}
	if err != nil {
		return nil, err
	}
	sub := &follower{mirror: m, filter: f, at: after, closed: make(chan struct{})}
	sub.filter.StreamPrefix = slices.Clone(f.StreamPrefix)
	sub.filter.TypePrefix = slices.Clone(f.TypePrefix)
	if n > 0 && n <= s.count() {
		b, err := s.raw(n, &sub.page)
		if err != nil {
			return nil, err
		}
		sub.hash = storedHash(b)
	}
	return sub, nil
}
