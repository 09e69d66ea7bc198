package kurrent

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/domain"
	"weft/eventstore"
)

// Subscribe implements eventstore.Store. One goroutine and one connection follow for each
// subscription; both end with it. The cursor is 0 or a position that was given out.
func (s *Store) Subscribe(
	ctx context.Context, after domain.Position, f domain.Filter,
) (eventstore.Subscription, error) {
	_, leave, err := s.enter(ctx, "kurrent.Subscribe")
	if err != nil {
		return nil, err
	}
	if after.Timeline() != 0 {
		leave()
		return nil, &eventstore.TimelineError{Cursor: after}
	}
	sub := &follower{
		store: s, at: after, resume: after, chain: links{store: s},
		items: make(chan eventstore.Item, bufferMax), done: make(chan struct{}),
		filter: domain.Filter{
			StreamPrefix: slices.Clone(f.StreamPrefix), TypePrefix: slices.Clone(f.TypePrefix),
		},
	}
	leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, eventstore.ErrClosed
	}
	sub.ended, sub.end = context.WithCancel(s.ended)
	s.follows.Add(1)
	go sub.run()
	return sub, nil
}

// follower is one subscription. Its goroutine owns everything up to items.
type follower struct {
	store  *Store
	filter domain.Filter
	chain  links
	at     domain.Position // everything of ours up to here was delivered or hidden
	hash   [32]byte
	resume domain.Position // where the cluster's log goes on; not below at
	hidden int             // events the filter hid since the last item
	live   bool            // CaughtUp was told and no FellBehind since

	items chan eventstore.Item
	done  chan struct{} // closed when run returns; failure is set by then
	fail  error
	ended context.Context //nolint:containedctx // it ends with the subscription
	end   context.CancelFunc
	once  sync.Once
}

var _ eventstore.Subscription = (*follower)(nil)

// Next implements eventstore.Subscription.
func (f *follower) Next(ctx context.Context) (eventstore.Item, error) {
	if f.ended.Err() != nil {
		return eventstore.Item{}, eventstore.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return eventstore.Item{}, &domain.Error{Op: "kurrent.Next", Kind: domain.Aborted, Err: err}
	}
	select {
	case item := <-f.items:
		return item, nil
	default:
	}
	select {
	case item := <-f.items:
		return item, nil
	case <-f.done:
		select {
		case item := <-f.items: // before the failure
			return item, nil
		default:
		}
		return eventstore.Item{}, f.fail
	case <-f.ended.Done():
		return eventstore.Item{}, eventstore.ErrClosed
	case <-ctx.Done():
		return eventstore.Item{}, &domain.Error{
			Op: "kurrent.Next", Kind: domain.Aborted, Err: ctx.Err(),
		}
	}
}

// Close implements eventstore.Subscription. It joins the subscription's goroutine.
func (f *follower) Close() error {
	f.once.Do(f.end)
	<-f.done
	return nil
}

// run subscribes, and subscribes again behind what it has seen whenever it was dropped.
func (f *follower) run() {
	defer f.store.follows.Done()
	defer close(f.done)
	for failed := 0; ; {
		from := f.resume
		err := f.session()
		switch {
		case f.ended.Err() != nil:
			f.fail = eventstore.ErrClosed
			return
		case errors.Is(err, eventstore.ErrCorrupt) || domain.IsKind(err, domain.Unsupported):
			f.fail = err
			return
		}
		if answer := refused(err, "kurrent.Subscribe", ""); answer != nil {
			f.fail = answer
			return
		}
		if failed++; f.resume > from {
			failed = 1
		}
		f.store.config.Log.Warn("kurrent subscription dropped", "at", f.resume, "err", err)
		if err := f.store.config.Pause(f.ended, failed); err != nil {
			f.fail = err
			return
		}
	}
}

// session is one subscription of the client, on a client of its own. It ends with an error.
func (f *follower) session() error {
	c, err := esdb.NewClient(f.store.client)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // it has no error to give
	if err := connect(c); err != nil {
		return err
	}
	return guarded(f.ended, c, func(ctx context.Context, c *esdb.Client) error {
		var from esdb.AllPosition = esdb.Start{}
		if f.resume > 0 {
			from = place(f.resume)
		}
		sub, err := c.SubscribeToAll(ctx, esdb.SubscribeToAllOptions{
			From: from, Filter: &esdb.SubscriptionFilter{
				Type: esdb.StreamFilterType, Prefixes: []string{f.store.config.Prefix},
			},
		})
		if err != nil {
			return err
		}
		defer sub.Close() //nolint:errcheck // it has no error to give
		for err == nil {
			err = f.take(sub.Recv())
		}
		return err
	})
}

// take handles what the client says.
func (f *follower) take(e *esdb.SubscriptionEvent) error {
	switch {
	case e.SubscriptionDropped != nil:
		return reason(e.SubscriptionDropped.Error)
	case e.EventAppeared != nil && e.EventAppeared.Event != nil:
		return f.event(e.EventAppeared.Event)
	case e.CheckPointReached != nil:
		f.resume = max(f.resume, domain.Position(e.CheckPointReached.Commit))
	case e.CaughtUp != nil && !f.live:
		f.live, f.hidden = true, 0
		return f.tell(eventstore.CaughtUp, nil)
	case e.FellBehind != nil && f.live:
		f.live = false
		return f.tell(eventstore.FellBehind, nil)
	}
	return nil
}

// reason makes sure that a drop has a reason.
func reason(err error) error {
	if err == nil {
		return errNotSent
	}
	return err
}

func (f *follower) event(e *esdb.RecordedEvent) error {
	if domain.Position(e.Position.Commit) <= f.at {
		return nil // seen before the connection was lost
	}
	r, err := f.chain.next(f.ended, e)
	if err != nil {
		return err
	}
	f.at, f.resume, f.hash = r.Position, max(f.resume, r.Position), r.Hash
	if f.filter.Match(r.Stream, r.Type) {
		f.hidden = 0
		return f.tell(eventstore.Event, &r)
	}
	if f.hidden++; f.hidden < eventstore.CheckpointEvery {
		return nil
	}
	f.hidden = 0
	return f.tell(eventstore.Checkpoint, nil)
}

// tell hands an item over; it waits for a slow reader.
func (f *follower) tell(k eventstore.ItemKind, r *eventstore.Recorded) error {
	item := eventstore.Item{Kind: k, Position: f.at, Hash: f.hash}
	if r != nil {
		item.Event = *r
	}
	select {
	case f.items <- item:
		return nil
	case <-f.ended.Done():
		return eventstore.ErrClosed
	}
}
