package eventstore

import (
	"context"
	"sync"

	"weft/domain"
)

// follower is a Subscription over a mirror. It pulls: it holds a cursor and no events, so a slow
// reader costs nothing and the only bound it needs is that of being told.
type follower struct {
	mirror *Mirror
	filter domain.Filter
	at     domain.Position // everything up to here was delivered or hidden
	hash   [32]byte
	page   page // what was last read of what is not in memory
	hidden int  // events the filter hid since the last item
	live   bool // CaughtUp was told and no FellBehind since
	once   sync.Once
	closed chan struct{}
}

var _ Subscription = (*follower)(nil)

// Next implements Subscription.
func (f *follower) Next(ctx context.Context) (Item, error) {
	for {
		s, changed := f.mirror.watch()
		if err := f.over(ctx, s); err != nil {
			return Item{}, err
		}
		item, err := f.step(s)
		if err != nil || item.Kind != 0 {
			return item, err
		}
		if f.at.N() < s.count() {
			continue
		}
		if s.ended != nil {
			return Item{}, s.ended
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case <-f.closed:
		}
	}
}

func (f *follower) over(ctx context.Context, s span) error {
	select {
	case <-f.closed:
		return ErrClosed
	default:
	}
	if s.closed() {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return aborted(ctx, "eventstore.Next")
	}
	return nil
}

// step gives the next item of what the mirror holds; one without a kind means there is none yet.
func (f *follower) step(s span) (Item, error) {
	n, err := s.cursor(f.at)
	if err != nil {
		return Item{}, err
	}
	count := s.count()
	if f.live && n < count && count-n > LagMax {
		f.live = false
		return f.item(FellBehind), nil
	}
	for ; n < count; n++ {
		r, err := s.at(n+1, &f.page)
		if err != nil {
			return Item{}, err
		}
		f.at, f.hash = r.Position, r.Hash
		if f.filter.Match(r.Stream, r.Type) {
			f.hidden = 0
			item := f.item(Event)
			item.Event = r
			return item, nil
		}
		if f.hidden++; f.hidden >= CheckpointEvery {
			f.hidden = 0
			return f.item(Checkpoint), nil
		}
	}
	if f.live || s.ended != nil {
		return Item{}, nil
	}
	f.live, f.hidden = true, 0
	return f.item(CaughtUp), nil
}

func (f *follower) item(k ItemKind) Item { return Item{Kind: k, Position: f.at, Hash: f.hash} }

// Close implements Subscription.
func (f *follower) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}
