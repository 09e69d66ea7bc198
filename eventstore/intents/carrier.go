package intents

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
)

const (
	// saveEvery is how many events a carrier handles before it notes how far it is. Behind a start it
	// compares at most so many again.
	saveEvery = 32
	// saveIdle is how long it waits for another event before it notes fewer.
	saveIdle = 500 * time.Millisecond
	// windowMax is how many events are copied outward together.
	windowMax = 1024
	// doneMax is how many streams a carrier remembers the last copy of.
	doneMax = 4096
)

// Mark is how far a carrier is in the log it reads.
type Mark struct {
	Position domain.Position `json:"position"`
	// Trouble says why it does not go on, empty while it does.
	Trouble string `json:"trouble,omitempty"`
}

// Marks keeps a carrier's mark.
type Marks interface {
	// Load gives the mark, the zero Mark when there is none.
	Load(ctx context.Context) (Mark, error)
	// Save replaces it; a nil error means that it is durable.
	Save(ctx context.Context, m Mark) error
}

// CarrierConfig says what a carrier works with. From, To, Marks and Pause are required.
type CarrierConfig struct {
	From, To eventstore.Store
	Marks    Marks
	// Flight is how many streams are copied outward at once. 0 and 1 keep the order between them.
	Flight int
	// Check refuses an event that must not be copied; nil refuses none.
	Check func(r *eventstore.Recorded) error
	// Pause waits behind so many failures in a row. An error ends the carrier.
	Pause func(ctx context.Context, failures int) error
	// Log takes what an operator may act on. Nil discards.
	Log *slog.Logger
}

// Carrier copies events from one log to the other for as long as it runs. It belongs to one
// goroutine. Two of them at once, on a node that leads and on one that did, copy once all the same.
type Carrier struct {
	cfg  CarrierConfig
	mine func(category string) bool
	copy func(ctx context.Context, r *eventstore.Recorded) error
	// window, if set, copies what there is behind the mark, and raises it.
	window func(ctx context.Context) error
	done   map[domain.StreamID]domain.Revision // what was copied or compared since the mark was loaded

	mark    Mark
	unsaved int
}

// Inward makes the carrier that copies intents from the log that takes them into the embedded one.
// The error is of kind Invalid.
func Inward(c CarrierConfig) (*Carrier, error) {
	k, err := newCarrier(c)
	if err != nil {
		return nil, err
	}
	k.mine, k.copy = domain.Intent, k.inward
	return k, nil
}

// Outward makes the carrier that copies everything else from the embedded log into the other one.
// The error is of kind Invalid.
func Outward(c CarrierConfig) (*Carrier, error) {
	k, err := newCarrier(c)
	if err != nil {
		return nil, err
	}
	k.mine = func(category string) bool { return !domain.Intent(category) }
	k.copy = k.outward
	if c.Flight > 1 {
		k.window = k.outwards
	}
	return k, nil
}

func newCarrier(c CarrierConfig) (*Carrier, error) {
	if c.From == nil || c.To == nil || c.Marks == nil || c.Pause == nil {
		return nil, domain.Errorf(domain.Invalid, "intents: From, To, Marks and Pause are needed")
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return &Carrier{cfg: c}, nil
}

// Run copies until the context ends, which is no error, or until the log it copies into takes no
// copies any more: then it gives ErrElsewhere. Whatever else goes wrong stands in the mark, and is
// tried again.
func (c *Carrier) Run(ctx context.Context) error {
	for failures := 0; ; {
		began := c.mark.Position
		err := c.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, eventstore.ErrElsewhere):
			return err
		}
		if failures++; c.mark.Position != began {
			failures = 1
		}
		c.trouble(ctx, err)
		if c.cfg.Pause(ctx, failures) != nil {
			return nil
		}
	}
}

// trouble notes why copying stopped.
func (c *Carrier) trouble(ctx context.Context, err error) {
	if err.Error() == c.mark.Trouble {
		return
	}
	c.mark.Trouble = err.Error()
	c.cfg.Log.Warn("copying between the event logs stopped", "at", c.mark.Position, "err", err)
	if err := c.save(ctx); err != nil {
		c.cfg.Log.Warn("noting how far the copy of the log is", "err", err)
	}
}

func (c *Carrier) save(ctx context.Context) error {
	if err := c.cfg.Marks.Save(ctx, c.mark); err != nil {
		return err
	}
	c.unsaved = 0
	return nil
}

// follow copies from the mark on until something goes wrong.
func (c *Carrier) follow(ctx context.Context) error {
	m, err := c.cfg.Marks.Load(ctx)
	if err != nil {
		return err
	}
	c.mark, c.unsaved, c.done = m, 0, map[domain.StreamID]domain.Revision{}
	sub, err := c.cfg.From.Subscribe(ctx, m.Position, domain.Filter{})
	var lost *eventstore.TimelineError
	if errors.As(err, &lost) { // the log was recovered: what follows the floor comes again
		c.mark.Position = lost.Floor
		sub, err = c.cfg.From.Subscribe(ctx, lost.Floor, domain.Filter{})
	}
	if err != nil {
		return err
	}
	defer func() { _ = sub.Close() }() // it has nothing left to tell
	for {
		item, idle, err := c.next(ctx, sub)
		switch {
		case idle:
			err = c.save(ctx)
		case err == nil:
			err = c.take(ctx, &item)
		}
		if err != nil {
			return err
		}
	}
}

// next waits for the next item. Idle says that none came for a while and something is to be noted.
func (c *Carrier) next(
	ctx context.Context, sub eventstore.Subscription,
) (item eventstore.Item, idle bool, err error) {
	if c.unsaved == 0 {
		item, err = sub.Next(ctx)
		return item, false, err
	}
	within, cancel := context.WithTimeout(ctx, saveIdle)
	defer cancel()
	item, err = sub.Next(within)
	return item, err != nil && within.Err() != nil && ctx.Err() == nil, err
}

// take handles one item and notes it once in a while, and at once when there was trouble.
func (c *Carrier) take(ctx context.Context, item *eventstore.Item) error {
	if item.Kind == eventstore.Event && item.Position <= c.mark.Position {
		return nil // it went with others
	}
	if item.Kind == eventstore.Event && c.window != nil {
		if err := c.window(ctx); err != nil {
			return err
		}
	} else if item.Kind == eventstore.Event {
		if r := &item.Event; c.mine(r.Stream.Category()) {
			if err := c.copy(ctx, r); err != nil {
				return err
			}
		}
		c.mark.Position = item.Position
		c.unsaved++
	}
	well := item.Kind == eventstore.Event || item.Kind == eventstore.CaughtUp
	if c.unsaved >= saveEvery || item.Kind == eventstore.CaughtUp && c.unsaved > 0 ||
		well && c.mark.Trouble != "" {
		c.mark.Trouble = ""
		return c.save(ctx)
	}
	return nil
}

// inward copies an intent, with the other events of its command (N3).
func (c *Carrier) inward(ctx context.Context, r *eventstore.Recorded) error {
	if last, known := c.done[r.Stream]; known && r.Revision <= last {
		return nil
	}
	events, err := c.command(ctx, r)
	if err != nil {
		return err
	}
	for i := range events {
		if c.cfg.Check != nil {
			if err := c.cfg.Check(&events[i]); err != nil {
				return domain.Wrap(err, "intents.Inward", place(&events[i]))
			}
		}
	}
	_, err = duplicate.Join(ctx, c.cfg.To, events...)
	var conflict *eventstore.ConflictError
	if errors.As(err, &conflict) && conflict.Current < r.Revision-1 {
		return apart(r.Stream, r.Revision, fmt.Sprintf(
			"events before it are in neither; the log ends at revision %d", conflict.Current,
		))
	}
	if err != nil {
		return err
	}
	c.note(&events[len(events)-1])
	return nil
}

func (c *Carrier) note(r *eventstore.Recorded) {
	if len(c.done) >= doneMax {
		clear(c.done)
	}
	c.done[r.Stream] = r.Revision
}

// command gives an event with those of the same command that stand behind it: one append wrote
// them, so they are all there.
func (c *Carrier) command(
	ctx context.Context, first *eventstore.Recorded,
) ([]eventstore.Recorded, error) {
	var out []eventstore.Recorded
	for r, err := range c.cfg.From.ReadStream(
		ctx, first.Stream, first.Revision, eventstore.Forward, eventstore.EventsMax,
	) {
		switch {
		case err != nil && len(out) == 0:
			return nil, err
		case err != nil || r.Command != first.Command:
			return out, nil // what is wrong behind it is met in its turn
		}
		out = append(out, r)
	}
	if len(out) == 0 || out[0].ID != first.ID {
		return nil, apart(first.Stream, first.Revision, "it is not where the store says")
	}
	return out, nil
}

// outward copies an event that only the embedded log decides.
func (c *Carrier) outward(ctx context.Context, r *eventstore.Recorded) error {
	_, err := duplicate.Put(ctx, c.cfg.To, *r)
	return err
}

// outwards copies the events that the log holds behind the mark, as far as they go into a window.
// When one of them is refused, they are copied one by one, up to that one.
func (c *Carrier) outwards(ctx context.Context) error {
	var mine []eventstore.Recorded
	end, seen := c.mark.Position, 0
	for r, err := range c.cfg.From.ReadAll(
		ctx, c.mark.Position, eventstore.Forward, domain.Filter{}, windowMax,
	) {
		if err != nil {
			return err
		}
		if c.mine(r.Stream.Category()) {
			mine = append(mine, r)
		}
		end = r.Position
		seen++
	}
	_, err := duplicate.PutAll(ctx, c.cfg.To, c.cfg.Flight, mine...)
	if err != nil && domain.KindOf(err) == domain.Unavailable {
		return err
	}
	if err != nil {
		for i := range mine {
			if err := c.copy(ctx, &mine[i]); err != nil {
				return err
			}
			c.mark.Position = mine[i].Position
			c.unsaved++
		}
	}
	c.mark.Position = end
	c.unsaved += seen
	return nil
}

func place(r *eventstore.Recorded) string { return fmt.Sprintf("%s@%d", r.Stream, r.Revision) }
