package kurrent

import (
	"context"
	"iter"
	"slices"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/domain"
	"weft/eventstore"
)

// ReadAll implements eventstore.Store. The client has no filter for reads, so events of others are
// fetched and dropped. A cursor of a timeline above 0 was never given out by this engine.
func (s *Store) ReadAll(
	ctx context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	const op = "kurrent.ReadAll"
	return func(yield func(eventstore.Recorded, error) bool) {
		outer := ctx
		ctx, leave, err := s.enter(outer, op)
		if err == nil && from.Timeline() != 0 {
			leave()
			err = &eventstore.TimelineError{Cursor: from}
		}
		if err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		defer leave()
		w := walk{store: s, at: from, chain: links{store: s}}
		for limit != 0 && !w.done {
			batch, err := w.step(ctx, d)
			for i := range batch {
				if !f.Match(batch[i].Stream, batch[i].Type) {
					continue
				}
				if outer.Err() != nil || s.ended.Err() != nil {
					yield(eventstore.Recorded{}, s.failed(outer, outer.Err(), op, ""))
					return
				}
				if !yield(batch[i], nil) {
					return
				}
				if limit--; limit == 0 {
					return
				}
			}
			if err != nil {
				yield(eventstore.Recorded{}, s.failed(outer, err, op, ""))
				return
			}
		}
	}
}

// walk goes through the whole log page by page.
type walk struct {
	store *Store
	at    domain.Position // forward: read up to and with it. Backward: still to be read, 0 is the end
	begun bool
	done  bool
	chain links
}

// step gives the next verified events of ours; there may be none although it is not done. Events
// before a bad one come with the error.
func (w *walk) step(
	ctx context.Context, d eventstore.Direction,
) (out []eventstore.Recorded, err error) {
	var p page
	if d == eventstore.Forward {
		p, err = w.forward(ctx)
	} else {
		p, err = w.backward(ctx)
		slices.Reverse(p.events)
		w.chain.seen = nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range p.events {
		if !w.store.ours(e) {
			continue
		}
		r, err := w.chain.next(ctx, e)
		if err != nil && d == eventstore.Backward {
			return nil, err // those before it in time are not to come first
		}
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	if d == eventstore.Backward {
		slices.Reverse(out)
	}
	return out, nil
}

// forward fetches what lies above at. The server begins at the position given, so that one is
// fetched again.
func (w *walk) forward(ctx context.Context) (page, error) {
	var from esdb.AllPosition = esdb.Start{}
	if w.at > 0 {
		from = place(w.at)
	}
	p, err := w.store.fetchAll(ctx, from, esdb.Forwards, pageMax+1)
	if err != nil {
		return p, err
	}
	fresh := p.events[:0]
	for _, e := range p.events {
		if at := domain.Position(e.Position.Commit); at > w.at {
			fresh, w.at = append(fresh, e), at
		}
	}
	w.done = !p.more || len(fresh) == 0
	p.events = fresh
	return p, nil
}

// backward fetches what lies below at; the first time with it. Whether a server begins at or before
// the position given is not the same everywhere, so the event at it is fetched by itself and what
// comes twice is dropped.
func (w *walk) backward(ctx context.Context) (page, error) {
	var from esdb.AllPosition = esdb.End{}
	var first []*esdb.RecordedEvent
	if w.at > 0 {
		from = place(w.at)
		if !w.begun {
			p, err := w.store.fetchAll(ctx, from, esdb.Forwards, 1)
			if err != nil {
				return p, err
			}
			for _, e := range p.events {
				if domain.Position(e.Position.Commit) == w.at {
					first = append(first, e)
				}
			}
		}
	}
	w.begun = true
	p, err := w.store.fetchAll(ctx, from, esdb.Backwards, pageMax+1)
	if err != nil {
		return p, err
	}
	fresh := first
	for _, e := range p.events {
		if at := domain.Position(e.Position.Commit); w.at == 0 || at < w.at {
			fresh, w.at = append(fresh, e), at
		}
	}
	w.done = !p.more || len(fresh) == len(first)
	p.events = fresh
	return p, nil
}

// Head implements eventstore.Store. The hash is that of the last event in its stream's chain. It
// looks back from the end of the cluster's log over the events of others, however many they are.
func (s *Store) Head(ctx context.Context) (eventstore.Head, error) {
	const op = "kurrent.Head"
	outer := ctx
	ctx, leave, err := s.enter(outer, op)
	if err != nil {
		return eventstore.Head{}, err
	}
	defer leave()
	w := walk{store: s, chain: links{store: s}}
	for !w.done {
		p, err := w.backward(ctx)
		if err != nil {
			return eventstore.Head{}, s.failed(outer, err, op, "")
		}
		for _, e := range p.events {
			if !s.ours(e) {
				continue
			}
			r, err := s.open(e)
			if err != nil {
				return eventstore.Head{}, err
			}
			return eventstore.Head{Position: r.Position, Hash: r.Hash}, nil
		}
	}
	return eventstore.Head{}, nil
}
