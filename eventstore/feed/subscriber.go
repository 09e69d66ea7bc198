package feed

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"weft/domain"
	"weft/eventstore"
)

const failuresDefault = 5

// Cursor is how far a consumer is: every event up to and with Position is done, and the next one
// for it has failed that often.
type Cursor struct {
	Position domain.Position
	Failures int
}

// Cursors keeps the cursors of consumers.
type Cursors interface {
	// Load gives a consumer's cursor, the zero Cursor when there is none.
	Load(ctx context.Context, consumer string) (Cursor, error)
	// Save replaces it; a nil error means that it is durable.
	Save(ctx context.Context, consumer string, c Cursor) error
}

// Policy says what happens behind an event that failed too often.
type Policy uint8

// The policies.
const (
	// Stop ends the consumer. It begins again at that event when it is subscribed again.
	Stop Policy = iota
	// Skip goes on with the next event.
	Skip
)

// Failure is an event that failed too often.
type Failure struct {
	Consumer string
	Event    eventstore.Recorded
	Failures int
	Reason   string // what the handler said last, empty if it said nothing or the process ended
	Policy   Policy
}

// Config says what a consumer gets. Store, Cursors, Consumer, Poisoned and Pause are needed.
type Config struct {
	Store   eventstore.Store
	Cursors Cursors
	// Consumer names the cursor.
	Consumer string
	// Filter and, when it is not empty, Tenant select the events.
	Filter domain.Filter
	Tenant string
	// FailuresMax is how often an event may fail; 0 is 5.
	FailuresMax int
	// Policy is for events that failed FailuresMax times.
	Policy Policy
	// Poisoned records such an event where it is seen, before the policy acts. An error stops the
	// consumer whatever the policy; it is asked again when the consumer is subscribed again.
	Poisoned func(ctx context.Context, f Failure) error
	// Pause waits before an event comes again that failed that often. An error ends the consumer.
	Pause func(ctx context.Context, failures int) error
	// Delivered, when not nil, hears of every event that Outlet or Mirror could not deliver, and of
	// the next one that they did, with nil.
	Delivered func(at domain.Position, err error)
	// Log takes what an operator may act on. Nil discards.
	Log *slog.Logger
}

// PoisonError says that a consumer stopped at an event. It is of kind Suspended.
type PoisonError struct{ Failure Failure }

// Error names consumer, event and reason.
func (e *PoisonError) Error() string {
	f := &e.Failure
	return fmt.Sprintf("consumer %s stopped at position %s (%s of %s) after %d failures: %s",
		f.Consumer, f.Event.Position, f.Event.Type, f.Event.Stream, f.Failures, f.Reason)
}

// Unwrap gives the kind.
func (*PoisonError) Unwrap() error { return &domain.Error{Kind: domain.Suspended} }

// Subscriber is one consumer of the log.
type Subscriber struct {
	config Config
	ended  context.Context //nolint:containedctx // it ends with the subscriber
	end    context.CancelFunc
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		running, closed bool
		err             error
	}
}

var _ message.Subscriber = (*Subscriber)(nil)

// New makes a consumer. The error is of kind Invalid.
func New(c Config) (*Subscriber, error) {
	if c.Store == nil || c.Cursors == nil || c.Consumer == "" || c.Poisoned == nil || c.Pause == nil {
		return nil, domain.Errorf(domain.Invalid,
			"feed: Store, Cursors, Consumer, Poisoned and Pause are needed")
	}
	if c.FailuresMax < 0 || c.Policy > Skip {
		return nil, domain.Errorf(domain.Invalid, "feed: FailuresMax or Policy out of bounds")
	}
	c.FailuresMax = cmp.Or(c.FailuresMax, failuresDefault)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	s := &Subscriber{config: c}
	s.ended, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Subscribe implements message.Subscriber. The topic is the caller's name for it and selects
// nothing. A message comes after the one before it was acknowledged; the channel closes when the
// context ends, after Close, and when the consumer stops, for which Err gives the reason. One
// subscription at a time: a second is of kind Busy.
func (s *Subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, eventstore.ErrClosed
	}
	if s.mu.running {
		return nil, domain.Errorf(domain.Busy, "consumer %s is subscribed already", s.config.Consumer)
	}
	at, err := s.config.Cursors.Load(ctx, s.config.Consumer)
	if err != nil {
		return nil, domain.Wrap(err, "feed.Subscribe", s.config.Consumer)
	}
	sub, err := s.config.Store.Subscribe(ctx, at.Position, s.config.Filter)
	if err != nil {
		return nil, domain.Wrap(err, "feed.Subscribe", s.config.Consumer)
	}
	s.mu.running, s.mu.err = true, nil
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ended, cancel)
	d := &delivery{Subscriber: s, sub: sub, at: at, out: make(chan *message.Message)}
	s.wg.Go(func() {
		defer close(d.out)
		err := d.run(ctx)
		stop()
		over := ctx.Err() != nil
		cancel()
		_ = sub.Close() // it has no error to give
		s.stopped(err, over)
	})
	return d.out, nil
}

func (s *Subscriber) stopped(err error, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.running = false
	if over {
		return
	}
	s.mu.err = err
	s.config.Log.Error("consumer stopped", "consumer", s.config.Consumer, "err", err)
}

// Err tells why the consumer stopped by itself: a PoisonError, or an error of the store, of the
// cursors or of a hook. It is nil while it runs and after it was ended by others.
func (s *Subscriber) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

// Close implements message.Subscriber. It joins the consumer's goroutine; a message under way comes
// again.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.mu.closed = true
	s.mu.Unlock()
	s.end()
	s.wg.Wait()
	return nil
}

// delivery is one subscription. It belongs to its goroutine.
type delivery struct {
	*Subscriber
	sub    eventstore.Subscription
	at     Cursor
	hidden int // events of other tenants since the cursor was saved
	out    chan *message.Message
}

// run delivers until something fails. The error is never nil.
func (d *delivery) run(ctx context.Context) error {
	for {
		item, err := d.sub.Next(ctx)
		if err != nil {
			return err
		}
		switch item.Kind {
		case eventstore.Event:
			if t := d.config.Tenant; t == "" || item.Event.Tenant == t {
				err = d.deliver(ctx, &item.Event)
			} else if d.hidden++; d.hidden >= eventstore.CheckpointEvery {
				err = d.save(ctx, Cursor{Position: item.Position, Failures: d.at.Failures})
			}
		case eventstore.Checkpoint:
			err = d.save(ctx, Cursor{Position: item.Position, Failures: d.at.Failures})
		case eventstore.CaughtUp, eventstore.FellBehind:
		}
		if err != nil {
			return err
		}
	}
}

func (d *delivery) save(ctx context.Context, c Cursor) error {
	if err := d.config.Cursors.Save(ctx, d.config.Consumer, c); err != nil {
		return domain.Wrap(err, "feed.save", d.config.Consumer)
	}
	d.at, d.hidden = c, 0
	return nil
}

// deliver gives one event to the consumer until it is acknowledged or failed too often.
func (d *delivery) deliver(ctx context.Context, r *eventstore.Recorded) error {
	reason := ""
	for d.at.Failures < d.config.FailuresMax {
		acked, why, err := d.offer(ctx, r)
		if err != nil {
			return err
		}
		if acked {
			return d.save(ctx, Cursor{Position: r.Position})
		}
		reason = why
		c := Cursor{Position: d.at.Position, Failures: d.at.Failures + 1}
		if err := d.save(ctx, c); err != nil {
			return err
		}
		d.config.Log.Warn("event failed", "consumer", d.config.Consumer, "position", r.Position,
			"failures", c.Failures, "reason", reason)
		if c.Failures < d.config.FailuresMax {
			if err := d.config.Pause(ctx, c.Failures); err != nil {
				return err
			}
		}
	}
	return d.poisoned(ctx, Failure{
		Consumer: d.config.Consumer, Event: *r, Failures: d.at.Failures, Reason: reason,
		Policy: d.config.Policy,
	})
}

// offer sends one message and waits for its answer.
func (d *delivery) offer(ctx context.Context, r *eventstore.Recorded) (
	acked bool, reason string, err error,
) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	m := encode(inner, r)
	select {
	case d.out <- m:
	case <-ctx.Done():
		return false, "", ctx.Err()
	}
	select {
	case <-m.Acked():
		return true, "", nil
	case <-m.Nacked():
		if ctx.Err() != nil {
			return false, "", ctx.Err() // the end of the consumer is no failure of the event
		}
		return false, m.Metadata.Get(Reason), nil
	case <-ctx.Done():
		return false, "", ctx.Err()
	}
}

// poisoned records an event that failed too often, and then does as the policy says. A consumer
// that stops has all its tries again when it is subscribed again.
func (d *delivery) poisoned(ctx context.Context, f Failure) error {
	if err := d.config.Poisoned(ctx, f); err != nil {
		return domain.Wrap(err, "feed.Poisoned", f.Consumer)
	}
	if f.Policy == Skip {
		d.config.Log.Error("event skipped", "consumer", f.Consumer, "position", f.Event.Position,
			"failures", f.Failures, "reason", f.Reason)
		return d.save(ctx, Cursor{Position: f.Event.Position})
	}
	if err := d.save(ctx, Cursor{Position: d.at.Position}); err != nil {
		return err
	}
	return &PoisonError{Failure: f}
}
