package feed

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
)

// Outlet publishes what a consumer gets to a broker: at least once, each event after the one before
// it was taken, so in order per stream. The message's id is the event's, by which a broker that
// looks at ids drops what comes twice.
type Outlet struct {
	Publisher message.Publisher
	// Topic names where an event goes.
	Topic func(r *eventstore.Recorded) string
	// Shape changes the message of an event before it is published; nil: it has the event's id and
	// bytes.
	Shape func(m *message.Message, r *eventstore.Recorded) error
	// Permanent tells an error that no repeat will change, such as a message over the broker's
	// limit: it counts as a failure of the event. All others are tried again, however long the
	// broker is away. Nil knows none.
	Permanent func(err error) bool
}

// Run publishes until the context ends, the consumer is closed, or it stops; then it gives its Err.
// The publisher stays open.
func (o *Outlet) Run(ctx context.Context, s *Subscriber) error {
	return s.each(ctx, func(m *message.Message, r *eventstore.Recorded) error {
		out := m.Copy()
		if o.Shape != nil {
			if err := o.Shape(out, r); err != nil {
				return err
			}
		}
		return o.Publisher.Publish(o.Topic(r), out)
	}, o.Permanent)
}

// Mirror copies what a consumer gets into another event log, at the same revisions of the same
// streams, and reads it back: a stream must come whole, so the consumer may filter by stream alone.
// It ends like Outlet.Run. The consumer's own cursor is where it resumes.
//
// What is there is copied by the page, several streams at once, and the cursor is saved behind each
// page: between streams the target has the order of the log to within a page. A target that holds
// something else, or does not take an event, is then given one event after the other, which finds
// the event and poisons it; one that does not answer is waited for.
func Mirror(ctx context.Context, s *Subscriber, to eventstore.Store) error {
	if len(s.config.Filter.TypePrefix) > 0 || s.config.Tenant != "" {
		return domain.Errorf(domain.Invalid, "a mirror holds whole streams: filter by stream alone")
	}
	if err := s.copyPages(ctx, to); !errors.Is(err, errOneByOne) {
		return err
	}
	return s.each(ctx, func(m *message.Message, r *eventstore.Recorded) error {
		_, err := duplicate.Put(m.Context(), to, *r)
		return err
	}, func(err error) bool {
		return domain.KindOf(err) != domain.Unavailable
	})
}

// each hands every event to f until it is done. What is not permanent is tried again here, with the
// consumer's pauses, and does not count as a failure of the event.
func (s *Subscriber) each(
	ctx context.Context, f func(*message.Message, *eventstore.Recorded) error,
	permanent func(error) bool,
) error {
	messages, err := s.Subscribe(ctx, s.config.Consumer)
	if err != nil {
		return err
	}
	for m := range messages {
		r, _ := Event(m)
		for failed := 1; ; failed++ {
			err := f(m, &r)
			over := m.Context().Err() != nil
			if s.config.Delivered != nil && !over {
				s.config.Delivered(r.Position, err)
			}
			if err == nil {
				m.Ack()
				break
			}
			if over || permanent != nil && permanent(err) {
				Fail(m, err)
				break
			}
			s.config.Log.Warn("not delivered", "consumer", s.config.Consumer, "position", r.Position,
				"attempt", failed, "err", err)
			if s.config.Pause(m.Context(), failed) != nil {
				Fail(m, err)
				break
			}
		}
	}
	return s.Err()
}
