package kurrent

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/domain"
	"weft/eventstore"
)

// page is what one call gave. more tells that the server had not come to its end.
type page struct {
	events []*esdb.RecordedEvent
	more   bool
}

// fetch opens a read of count events and takes a page of it. A stream that is not there is empty.
func (s *Store) fetch(
	ctx context.Context, count int,
	open func(ctx context.Context, c *esdb.Client, count uint64) (*esdb.ReadStream, error),
) (page, error) {
	var p page
	err := s.retry(ctx, func(ctx context.Context, c *esdb.Client) error {
		p = page{}
		r, err := open(ctx, c, uint64(count))
		if err != nil {
			return err
		}
		defer r.Close()
		for size := 0; size < pageBytesMax; {
			e, err := r.Recv()
			if errors.Is(err, io.EOF) {
				p.more = len(p.events) == count
				return nil
			}
			if codeOf(err) == esdb.ErrorCodeResourceNotFound && err != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if e.Event != nil {
				p.events = append(p.events, e.Event)
				size += len(e.Event.Data) + len(e.Event.UserMetadata)
			}
		}
		p.more = true
		return nil
	})
	return p, err
}

// fetchStream takes a page of one stream.
func (s *Store) fetchStream(
	ctx context.Context, id domain.StreamID, from esdb.StreamPosition, d esdb.Direction, count int,
) (page, error) {
	return s.fetch(ctx, count, func(
		ctx context.Context, c *esdb.Client, count uint64,
	) (*esdb.ReadStream, error) {
		return c.ReadStream(ctx, s.config.Prefix+string(id), esdb.ReadStreamOptions{
			Direction: d, From: from, Deadline: &s.config.Deadline,
		}, count)
	})
}

// fetchAll takes a page of the whole log of the cluster, everybody's events in it.
func (s *Store) fetchAll(
	ctx context.Context, from esdb.AllPosition, d esdb.Direction, count int,
) (page, error) {
	return s.fetch(ctx, count, func(
		ctx context.Context, c *esdb.Client, count uint64,
	) (*esdb.ReadStream, error) {
		return c.ReadAll(ctx, esdb.ReadAllOptions{
			Direction: d, From: from, Deadline: &s.config.Deadline,
		}, count)
	})
}

func (s *Store) ours(e *esdb.RecordedEvent) bool {
	return strings.HasPrefix(e.StreamID, s.config.Prefix)
}

// place is a position as the client writes it.
func place(p domain.Position) esdb.Position {
	return esdb.Position{Commit: uint64(p), Prepare: uint64(p)}
}

// link is the last event of a stream that a reader has seen.
type link struct {
	revision domain.Revision
	position domain.Position
	hash     [32]byte
}

// links verifies that events follow their predecessors. It belongs to one reader.
type links struct {
	store *Store
	seen  map[domain.StreamID]link
	met   func(e *esdb.RecordedEvent) // if set, hears of every event that was verified
}

// next opens an event and verifies it against the event before it in its stream, which is read when
// this reader has not met it.
func (l *links) next(ctx context.Context, e *esdb.RecordedEvent) (eventstore.Recorded, error) {
	r, err := l.store.open(e)
	if err != nil {
		return r, err
	}
	bad := func(what string) (eventstore.Recorded, error) {
		return eventstore.Recorded{}, &eventstore.CorruptError{
			Position: r.Position, What: e.StreamID + ": " + what,
		}
	}
	before, known := l.seen[r.Stream]
	switch {
	case r.Revision == 0:
		before = link{revision: domain.NoRevision}
	case !known || before.revision != r.Revision-1:
		if known && before.revision >= r.Revision {
			return bad("comes after a later event of its stream")
		}
		p, err := l.store.fetchStream(ctx, r.Stream, esdb.Revision(uint64(r.Revision-1)),
			esdb.Forwards, 1)
		if err != nil {
			return eventstore.Recorded{}, err
		}
		if len(p.events) == 0 || p.events[0].EventNumber != uint64(r.Revision-1) {
			return bad("the event before it is gone")
		}
		older, err := l.store.open(p.events[0])
		if err != nil {
			return eventstore.Recorded{}, err
		}
		before = link{older.Revision, older.Position, older.Hash}
	}
	if r.Prev != before.hash || r.Position <= before.position {
		return bad("does not follow the event before it")
	}
	r.Before = before.position
	if l.met != nil {
		l.met(e)
	}
	if l.seen == nil || len(l.seen) >= linksMax {
		l.seen = map[domain.StreamID]link{}
	}
	l.seen[r.Stream] = link{r.Revision, r.Position, r.Hash}
	return r, nil
}

// ReadStream implements eventstore.Store. It fetches pages, so a slow reader holds no connection.
func (s *Store) ReadStream(
	ctx context.Context, id domain.StreamID, from domain.Revision, d eventstore.Direction, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	const op = "kurrent.ReadStream"
	return func(yield func(eventstore.Recorded, error) bool) {
		outer := ctx
		ctx, leave, err := s.enter(outer, op)
		if err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		defer leave()
		if d == eventstore.Backward && limit != 0 {
			from, err = s.lastUpTo(ctx, id, from)
		}
		chain := links{store: s}
		rev := max(from, 0)
		done := limit == 0 || from < 0 && d == eventstore.Backward
		for !done && err == nil {
			var batch []eventstore.Recorded
			if batch, rev, done, err = s.batch(ctx, &chain, id, rev, d); err != nil {
				break
			}
			for i := range batch {
				if outer.Err() != nil || s.ended.Err() != nil {
					yield(eventstore.Recorded{}, s.failed(outer, outer.Err(), op, id))
					return
				}
				if !yield(batch[i], nil) {
					return
				}
				if limit--; limit == 0 {
					return
				}
			}
		}
		if err != nil {
			yield(eventstore.Recorded{}, s.failed(outer, err, op, id))
		}
	}
}

// lastUpTo gives the last revision of a stream that is not above another; NoRevision when there is
// none.
func (s *Store) lastUpTo(
	ctx context.Context, id domain.StreamID, from domain.Revision,
) (domain.Revision, error) {
	p, err := s.fetchStream(ctx, id, esdb.End{}, esdb.Backwards, 1)
	if err != nil || len(p.events) == 0 {
		return domain.NoRevision, err
	}
	last := domain.Revision(p.events[0].EventNumber)
	if from < 0 || from > last {
		from = last
	}
	return from, nil
}

// batch reads and verifies the next events of a stream in a direction, and gives the revision to go
// on at. Backward it reads forward too, a page further back: the chain can only be followed so.
func (s *Store) batch(
	ctx context.Context, chain *links, id domain.StreamID, rev domain.Revision,
	d eventstore.Direction,
) (out []eventstore.Recorded, next domain.Revision, done bool, err error) {
	first, count := rev, pageMax
	if d == eventstore.Backward {
		first = max(rev-pageMax+1, 0)
		count = int(rev-first) + 1
		chain.seen = nil
	}
	for want := first; ; {
		p, err := s.fetchStream(ctx, id, esdb.Revision(uint64(want)), esdb.Forwards, count)
		if err != nil {
			return nil, 0, true, err
		}
		for _, e := range p.events {
			r, err := chain.next(ctx, e)
			if err == nil && (r.Revision != want || r.Stream != id) {
				err = &eventstore.CorruptError{
					Position: r.Position, What: e.StreamID + ": stands where another event should",
				}
			}
			if err != nil {
				if d == eventstore.Forward && len(out) > 0 {
					return out, want, false, nil // the error comes with the next page
				}
				return nil, 0, true, err
			}
			out = append(out, r)
			want++
		}
		if d == eventstore.Forward {
			return out, want, !p.more, nil
		}
		if count = int(rev-want) + 1; count <= 0 {
			slices.Reverse(out)
			return out, first - 1, first == 0, nil
		}
		if len(p.events) == 0 {
			return nil, 0, true, &eventstore.CorruptError{What: string(id) + ": events are gone"}
		}
	}
}
