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
	// FrozenMax bounds how long changes of intent are refused at a time.
	FrozenMax = 30 * time.Second
	// frozenEnd is when a last copy that will not end in time lets intents in again.
	frozenEnd = FrozenMax * 3 / 4
	// openFor is how long intents are let in between two such times, at most.
	openFor = 5 * time.Second

	// restNear is how many events are so few that intents are closed at once.
	restNear = 256
	// waitNear is how long the rest may take to copy once it does not become less by copying.
	waitNear = 5 * time.Second

	// A step is copied between two looks at the end of the log: about a second's events. Where time
	// is short it may be smaller than windows like it.
	stepMin   = 512
	stepShort = 32
	stepMax   = 16_384
)

// MoveConfig says what to move where. All but Flight and Progress are required.
type MoveConfig struct {
	Embedded, Other eventstore.Store
	// Flight is how many streams are copied at once, see duplicate.Options.
	Flight int
	// Clock gives the time, by which the pace of the copy is measured and closing is bounded.
	Clock func() time.Time
	// Close closes the embedded log to intents and gives the position of the event that does. Open
	// undoes it.
	Close func(ctx context.Context) (domain.Position, error)
	Open  func(ctx context.Context) error
	// Progress hears how far the copy is, from the moving goroutine.
	Progress func(Progress)
}

// Progress says how far a move is and how fast.
type Progress struct {
	duplicate.Report
	// Rest is how many events were behind Through when the log's end was last looked at.
	Rest uint64
	// Pace and Growth are the events a second that were copied and that the log grew by, of late.
	// Both are 0 until they are known.
	Pace, Growth uint64
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
// A log that grows as fast as it is copied is closed to intents for a part of the time, until the
// rest can be copied within FrozenMax: what it grows by without intents the copy must outrun.
//
// Errors: Mismatch when the other log holds something else in our streams; Unavailable when the log
// outruns the copy although intents are closed; those of the two logs. Behind an error intents are
// open, unless opening failed as well: then that error is joined.
func Move(ctx context.Context, c MoveConfig) (Moved, error) {
	m := &mover{MoveConfig: c}
	m.copy = duplicate.New(c.Embedded, c.Other, duplicate.Options{
		Flight: c.Flight, Progress: m.tell,
	})
	near, err := m.approach(ctx)
	if err == nil {
		err = m.copy.Prove(ctx)
	}
	if err == nil && near { // that took its time, in which the log has grown
		_, err = m.approach(ctx)
	}
	if err != nil {
		return Moved{Report: m.report}, err
	}
	for before := uint64(math.MaxUint64); ; {
		out, rest, err := m.last(ctx)
		if err == nil && out.Behind > 0 {
			return out, nil
		}
		if again := m.open(ctx); again != nil {
			return out, &domain.Error{
				Kind: domain.KindOf(first(err, again)), Err: first(err, again),
				Msg: "and the log stays closed to changes of intent: " + again.Error(),
			}
		}
		if err == nil && rest >= before {
			err = domain.Errorf(domain.Unavailable, "the log grows by %d events a second and is "+
				"copied at %d: closing it to changes of intent is not enough, %d are left",
				m.growth.rate(), m.pace.rate(), rest)
		}
		if err != nil {
			return out, err
		}
		before = rest
		if err := m.admit(ctx); err != nil {
			return Moved{Report: m.report}, err
		}
	}
}

func first(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// mover is one move. It belongs to one goroutine.
type mover struct {
	MoveConfig
	copy         *duplicate.Copy
	report       duplicate.Report
	pace, growth meter
	head         domain.Position // when it was last looked at
	looked       time.Time
}

// meter measures events a second of late.
type meter struct{ events, seconds float64 }

// meterSpan is how many seconds of the past count in full.
const meterSpan = 10

func (m *meter) add(events uint64, d time.Duration) {
	m.events += float64(events)
	m.seconds += d.Seconds()
	for m.seconds > 2*meterSpan {
		m.events, m.seconds = m.events/2, m.seconds/2
	}
}

// rate is 0 until something was measured.
func (m *meter) rate() uint64 {
	if m.seconds == 0 {
		return 0
	}
	return uint64(m.events / m.seconds)
}

// known tells whether enough was measured to be relied on.
func (m *meter) known() bool { return m.seconds >= meterSpan/2 }

func (m *mover) tell(r duplicate.Report) {
	m.report = r
	if m.Progress != nil {
		m.Progress(Progress{r, m.rest(), m.pace.rate(), m.growth.rate()})
	}
}

// rest is how many events are to be copied, as far as is known.
func (m *mover) rest() uint64 {
	if m.head <= m.report.Through {
		return 0
	}
	return m.head.N() - m.report.Through.N()
}

// look reads the end of the log.
func (m *mover) look(ctx context.Context) error {
	head, err := m.Embedded.Head(ctx)
	if err != nil {
		return err
	}
	now := m.Clock()
	if m.head > 0 && head.Position >= m.head {
		m.growth.add(head.Position.N()-m.head.N(), now.Sub(m.looked))
	}
	m.head, m.looked = head.Position, now
	return nil
}

// outrun tells whether the log grows as fast as it is copied.
func (m *mover) outrun() bool {
	return m.pace.known() && m.growth.known() && m.growth.rate() >= m.pace.rate()
}

// near tells whether so many events are copied in a moment.
func (m *mover) near(rest uint64) bool {
	return time.Duration(rest)*time.Second <= time.Duration(m.pace.rate())*waitNear
}

// approach copies until little is left, or until copying does not make it less: that gives false.
func (m *mover) approach(ctx context.Context) (near bool, err error) {
	for last := uint64(math.MaxUint64); ; {
		if err := m.look(ctx); err != nil {
			return false, err
		}
		rest, err := m.stretch(ctx, m.head, time.Time{})
		switch {
		case err != nil:
			return false, err
		case rest <= restNear, rest > last-last/4 && m.near(rest):
			return true, nil
		case m.outrun(), rest > last-last/16:
			return false, nil
		}
		last = rest
	}
}

// admit copies while intents are let in: for openFor, or until the log has taken half of what was
// won while they were not.
func (m *mover) admit(ctx context.Context) error {
	end := m.Clock().Add(openFor)
	won := m.pace.rate() * uint64(frozenEnd/time.Second)
	for most := m.rest() + won/2; ; {
		step := m.Clock().Add(time.Nanosecond)
		rest, err := m.stretch(ctx, math.MaxUint64, step)
		if err != nil || rest == 0 || rest >= most || !m.Clock().Before(end) {
			return err
		}
	}
}

// stretch copies, step by step, up to a position, an end in time when there is one, or until
// copying is seen not to help. It gives how many events are left.
func (m *mover) stretch(
	ctx context.Context, through domain.Position, end time.Time,
) (rest uint64, err error) {
	for {
		began, before := m.Clock(), m.report.Events
		step := min(max(m.pace.rate(), stepMin), stepMax)
		if !end.IsZero() && m.pace.known() {
			step = max(min(m.pace.rate(), step), stepShort)
		}
		m.report, err = m.copy.Round(ctx, duplicate.Part{Events: int(step), Through: through})
		if err != nil {
			return 0, err
		}
		m.pace.add(m.report.Events-before, m.Clock().Sub(began))
		if err := m.look(ctx); err != nil {
			return 0, err
		}
		switch {
		case m.report.Through >= min(through, m.head), m.report.Events == before,
			!end.IsZero() && !m.Clock().Before(end), end.IsZero() && m.outrun():
			return m.rest(), nil
		}
	}
}

// last copies what is left once nothing more can be added to it. Without an error and with no
// Behind it has not come to the end in time.
func (m *mover) last(ctx context.Context) (out Moved, rest uint64, err error) {
	inner, cancel := context.WithTimeout(ctx, FrozenMax)
	defer cancel()
	closed, err := m.Close(inner)
	if err != nil {
		return out, 0, err
	}
	_, err = m.stretch(inner, closed, m.Clock().Add(frozenEnd))
	out.Report = m.report
	switch {
	case err != nil && inner.Err() != nil && ctx.Err() == nil: // a step was slower than it looked
		return out, m.rest(), nil
	case err != nil:
		return out, 0, err
	case m.report.Through < closed && m.head < closed:
		return out, 0, domain.Errorf(domain.Unavailable,
			"this node's log ends at %s, before %s", m.report.Through, closed)
	case m.report.Through < closed:
		return out, m.rest(), nil
	}
	if out.Report, err = m.copy.Round(inner, duplicate.Part{Through: closed}); err != nil {
		return out, 0, err // it has nothing to copy: it makes the digest
	}
	head, err := m.Other.Head(inner)
	out.Behind = head.Position
	return out, 0, err
}

// open lets intents in again, also when the move is called off.
func (m *mover) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventstore.LinearizableWait)
	defer cancel()
	return m.Open(ctx)
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
