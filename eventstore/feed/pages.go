package feed

import (
	"context"
	"errors"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
)

// Bounds of what a mirror copies at once.
const (
	pageEvents = 512
	pageBytes  = 4 << 20 // of payload
	pageFlight = 8       // streams that are appended to at once
)

// errOneByOne says that an event of a page does not go over, and which is not known.
var errOneByOne = errors.New("to be copied event by event")

// copyPages copies page by page as the log grows. It gives nil once the context has ended or the
// consumer is closed, errOneByOne where the target does not take a page, and else the error of the
// store or the cursors, which is the consumer's Err too.
func (s *Subscriber) copyPages(ctx context.Context, to eventstore.Store) error {
	s.mu.Lock()
	if s.mu.closed || s.mu.running {
		defer s.mu.Unlock()
		if s.mu.closed {
			return eventstore.ErrClosed
		}
		return domain.Errorf(domain.Busy, "consumer %s is subscribed already", s.config.Consumer)
	}
	s.mu.running, s.mu.err = true, nil
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ended, cancel)()
	at, err := s.config.Cursors.Load(ctx, s.config.Consumer)
	for err == nil {
		if at.Failures > 0 { // an event that was given up on and one that failed are told apart there
			err = errOneByOne
			break
		}
		at.Position, err = s.copyPage(ctx, to, at.Position)
	}
	over := ctx.Err() != nil
	if errors.Is(err, errOneByOne) && !over {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.running = false
		return err
	}
	s.stopped(err, over)
	return s.Err()
}

// copyPage copies what stands behind a position, up to a page, waiting where there is nothing, and
// gives the position up to which all is there and saved.
func (s *Subscriber) copyPage(
	ctx context.Context, to eventstore.Store, after domain.Position,
) (domain.Position, error) {
	page, err := s.page(ctx, after)
	if err != nil {
		return after, err
	}
	if len(page) == 0 {
		return s.await(ctx, after)
	}
	last := page[len(page)-1].Position
	for failed := 1; ; failed++ {
		_, err := duplicate.PutAll(ctx, to, pageFlight, page...)
		if ctx.Err() != nil {
			return after, ctx.Err()
		}
		if err == nil {
			break
		}
		if domain.KindOf(err) != domain.Unavailable {
			return after, errOneByOne
		}
		s.delivered(page[0].Position, err)
		s.config.Log.Warn("not delivered", "consumer", s.config.Consumer, "position", page[0].Position,
			"attempt", failed, "err", err)
		if err := s.config.Pause(ctx, failed); err != nil {
			return after, err
		}
	}
	s.delivered(last, nil)
	return last, s.saved(ctx, last)
}

// page reads what stands behind a position, up to the bounds of a page.
func (s *Subscriber) page(
	ctx context.Context, after domain.Position,
) (page []eventstore.Recorded, err error) {
	size := 0
	for r, err := range s.config.Store.ReadAll(
		ctx, after, eventstore.Forward, s.config.Filter, pageEvents,
	) {
		if err != nil {
			return nil, err
		}
		page = append(page, r)
		if size += len(r.Data); size >= pageBytes {
			break
		}
	}
	return page, nil
}

// await waits for an event behind a position, and saves how far there was none to wait for.
func (s *Subscriber) await(
	ctx context.Context, after domain.Position,
) (domain.Position, error) {
	sub, err := s.config.Store.Subscribe(ctx, after, s.config.Filter)
	if err != nil {
		return after, err
	}
	defer func() { _ = sub.Close() }() // it has no error to give
	for {
		item, err := sub.Next(ctx)
		if err != nil || item.Kind == eventstore.Event {
			return after, err
		}
		if item.Kind == eventstore.Checkpoint {
			after = item.Position
			if err := s.saved(ctx, after); err != nil {
				return after, err
			}
		}
	}
}

func (s *Subscriber) delivered(at domain.Position, err error) {
	if s.config.Delivered != nil {
		s.config.Delivered(at, err)
	}
}

func (s *Subscriber) saved(ctx context.Context, at domain.Position) error {
	err := s.config.Cursors.Save(ctx, s.config.Consumer, Cursor{Position: at})
	return domain.Wrap(err, "feed.save", s.config.Consumer)
}
