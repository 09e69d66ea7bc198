package intents_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/intents"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
)

// pacing is a log that grows while it is moved, in a time that passes by copying alone.
type pacing struct {
	t        testing.TB
	here     *memory.Store
	now      time.Time
	closedAt time.Time // zero while intents are let in
	longest  time.Duration
	closings int
	// Events a second: copied, and added by intents and by facts.
	pace, intents, facts float64
	copied               uint64
	owed                 map[string]float64
	next                 map[domain.StreamID]domain.Revision
}

func newPacing(t testing.TB, pace, intents, facts float64, events int) *pacing {
	p := &pacing{
		t: t, here: memory.New(), now: time.Unix(1_800_000_000, 0), pace: pace, intents: intents,
		facts: facts, owed: map[string]float64{}, next: map[domain.StreamID]domain.Revision{},
	}
	p.grow("tenant", float64(events))
	return p
}

// grow adds events to the streams of a category.
func (p *pacing) grow(category string, events float64) {
	p.owed[category] += events
	for ; p.owed[category] >= 1; p.owed[category]-- {
		id := domain.StreamID(fmt.Sprintf("%s-%d", category, int(p.owed[category])%17))
		_, err := p.here.Append(p.t.Context(), id, eventstore.At(p.next[id]-1),
			storetest.Propose(fmt.Sprint(id, "/", p.next[id]), 1)...)
		if err != nil {
			p.t.Fatal(err)
		}
		p.next[id]++
	}
}

// pass lets the time go by that the last window took.
func (p *pacing) pass(r intents.Progress) {
	d := float64(r.Events-p.copied) / p.pace
	p.copied = r.Events
	p.now = p.now.Add(time.Duration(d * float64(time.Second)))
	p.grow("node", p.facts*d)
	if p.closedAt.IsZero() {
		p.grow("tenant", p.intents*d)
	}
}

func (p *pacing) move(there eventstore.Store, hear func(intents.Progress)) (intents.Moved, error) {
	return intents.Move(limited(p.t), intents.MoveConfig{
		Embedded: p.here, Other: there, Clock: func() time.Time { return p.now },
		Close: func(context.Context) (domain.Position, error) {
			p.closedAt = p.now
			p.closings++
			return closeLog(p.t, p.here), nil
		},
		Open: func(context.Context) error {
			p.ended()
			closeLog(p.t, p.here)
			return nil
		},
		Progress: func(r intents.Progress) {
			p.pass(r)
			hear(r)
		},
	})
}

// ended notes for how long intents were closed.
func (p *pacing) ended() {
	p.longest = max(p.longest, p.now.Sub(p.closedAt))
	p.closedAt = time.Time{}
}

// TestMoveComesToAnEnd moves logs that grow: slower than the copy, as fast, faster, and faster by
// what no closing stops. All but the last end, with the logs equal up to the place that is told,
// and intents are never closed for longer than FrozenMax at a time; the last says what is wrong and
// leaves them open. One that grows slowly is closed once, for a moment.
func TestMoveComesToAnEnd(t *testing.T) {
	for name, c := range map[string]struct {
		pace, intents, facts float64
		events               int
		once, never          bool
	}{
		"at rest":             {pace: 5000, events: 1500, once: true},
		"slower":              {pace: 150, intents: 75, facts: 8, events: 1000, once: true},
		"nearly as fast":      {pace: 100, intents: 80, facts: 15, events: 1200},
		"faster":              {pace: 50, intents: 100, facts: 5, events: 800},
		"much faster":         {pace: 30, intents: 300, facts: 1, events: 400},
		"faster than closing": {pace: 50, facts: 125, events: 1500, never: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPacing(t, c.pace, c.intents, c.facts, c.events)
			there := memory.New()
			heard := intents.Progress{}
			moved, err := p.move(there, func(r intents.Progress) { heard = r })
			if c.never {
				if !domain.IsKind(err, domain.Unavailable) || !p.closedAt.IsZero() ||
					!strings.Contains(err.Error(), "is copied at ") {
					t.Errorf("%v; closed since %v", err, p.closedAt)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			frozen := p.now.Sub(p.closedAt)
			p.ended()
			t.Logf("%d events, %d closings of %v at most, the last of %v; %d/s, %d/s",
				moved.Report.Events, p.closings, p.longest, frozen, heard.Pace, heard.Growth)
			if p.longest > intents.FrozenMax || c.once && (p.closings != 1 || frozen > time.Second) {
				t.Errorf("%d closings, %v the longest", p.closings, p.longest)
			}
			if d := float64(heard.Pace) / c.pace; d < 0.9 || d > 1.1 {
				t.Errorf("the pace is told as %d, not %v", heard.Pace, c.pace)
			}
			p.compare(there, moved)
		})
	}
}

// compare takes the log up to the place that a move names for the whole, and the other log with it.
func (p *pacing) compare(there eventstore.Store, moved intents.Moved) {
	p.t.Helper()
	whole := memory.New()
	for r, err := range p.here.ReadAll(
		p.t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			p.t.Fatal(err)
		}
		if r.Position > moved.Report.Through {
			break
		}
		if _, err := duplicate.Put(p.t.Context(), whole, r); err != nil {
			p.t.Fatal(err)
		}
	}
	want, err := duplicate.Digest(p.t.Context(), whole, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	got, err := duplicate.Digest(p.t.Context(), there, nil)
	if err != nil || got.Digest != want.Digest || got.Events != want.Events ||
		moved.Report.Digest != want.Digest || moved.Report.Copied != want.Events {
		p.t.Errorf("moved %+v; there %+v, want %+v; %v", moved, got, want, err)
	}
}
