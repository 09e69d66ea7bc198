package intents

import (
	"context"
	"math"
	"time"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
)

const (
	// roundMost is how many events the last copy before the intents are closed may have had, so that
	// few are left for the one behind it.
	roundMost = 256
	// FrozenMax bounds how long changes of intent are refused for the last copy.
	FrozenMax = 30 * time.Second
)

// MoveConfig says what to move where. All but Flight and Progress are required.
type MoveConfig struct {
	Embedded, Other eventstore.Store
	// Flight is how many streams are copied at once, see duplicate.Options.
	Flight int
	// Close closes the embedded log to intents and gives the position of the event that does. Open
	// undoes it.
	Close func(ctx context.Context) (domain.Position, error)
	Open  func(ctx context.Context) error
	// Progress hears how far the copy is, from the moving goroutine.
	Progress func(duplicate.Report)
}

// Moved is a copy that is whole: both logs hold the same events up to Report.Through, each compared
// by id, revision and content.
type Moved struct {
	Report duplicate.Report
	// Behind is the other log's position behind which what it decides itself begins.
	Behind domain.Position
}

// Move copies the embedded log to the other one while it is used, closes it to intents, copies the
// rest, and leaves it closed: the caller makes the other log take them. It keeps no state: cut
// short, it is run again and compares what is there.
//
// Errors: Mismatch when the other log holds something else in our streams; those of the two logs.
// Behind an error intents are open, unless opening failed as well: then that error is joined.
func Move(ctx context.Context, m MoveConfig) (Moved, error) {
	c := duplicate.New(m.Embedded, m.Other, duplicate.Options{
		Flight: m.Flight, Progress: m.Progress,
	})
	r, err := approach(ctx, c)
	if err == nil {
		err = c.Prove(ctx)
	}
	if err == nil { // that took its time, in which the log has grown
		r, err = approach(ctx, c)
	}
	if err != nil {
		return Moved{Report: r}, err
	}
	out, err := m.last(ctx, c)
	if err == nil {
		return out, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventstore.LinearizableWait)
	defer cancel()
	if again := m.Open(ctx); again != nil {
		err = &domain.Error{
			Kind: domain.KindOf(err), Err: err,
			Msg: "and the log stays closed to changes of intent: " + again.Error(),
		}
	}
	return out, err
}

// approach copies until a round had few events, or hardly fewer than the one before: then the log
// grows as fast as it is copied, and only closing it helps.
func approach(ctx context.Context, c *duplicate.Copy) (duplicate.Report, error) {
	seen, last := uint64(0), uint64(math.MaxUint64)
	for {
		r, err := c.Round(ctx, duplicate.Part{})
		n := r.Events - seen
		if err != nil || n <= roundMost || n > last-last/4 {
			return r, err
		}
		seen, last = r.Events, n
	}
}

// last copies what is left once nothing more can be added to it.
func (m *MoveConfig) last(ctx context.Context, c *duplicate.Copy) (out Moved, err error) {
	ctx, cancel := context.WithTimeout(ctx, FrozenMax)
	defer cancel()
	closed, err := m.Close(ctx)
	if err != nil {
		return out, err
	}
	if out.Report, err = c.Round(ctx, duplicate.Part{}); err != nil {
		return out, err
	}
	if out.Report.Through < closed {
		return out, domain.Errorf(domain.Unavailable,
			"this node's log ends at %s, before %s", out.Report.Through, closed)
	}
	head, err := m.Other.Head(ctx)
	out.Behind = head.Position
	return out, err
}

// Drain copies what the other log decided before it was given up, as far as it can be had: up to
// the end that it has when the drain begins. What is left behind was never acknowledged (N1).
func Drain(ctx context.Context, c *Carrier) error {
	head, err := c.cfg.From.Head(ctx)
	if err != nil {
		return err
	}
	m, err := c.cfg.Marks.Load(ctx)
	if err != nil {
		return err
	}
	c.mark, c.unsaved, c.done = m, 0, map[domain.StreamID]domain.Revision{}
	for r, err := range c.cfg.From.ReadAll(
		ctx, m.Position, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			return err
		}
		item := eventstore.Item{Kind: eventstore.Event, Event: r, Position: r.Position}
		if err := c.take(ctx, &item); err != nil || r.Position >= head.Position {
			return err
		}
	}
	return nil
}
