package identity

import (
	"slices"
	"time"

	"weft/domain"
)

// RefusalCategory of the streams that tell of refused attempts.
const RefusalCategory = "command"

// Limits of what refused attempts may write into the log, so that nobody fills it.
const (
	// RefusalWindow is how long attempts that are alike are gathered after the first.
	RefusalWindow = time.Minute
	// RefusalsPerSecond is the most events of one node.
	RefusalsPerSecond = 10
	// RefusalKindsMax is how many kinds of attempts are told apart at once; the rest count as one.
	RefusalKindsMax = 1024
)

// CommandRefused says that attempts were refused: one at once, then those like it within a window.
type CommandRefused struct {
	Who     string    `msgpack:"who,omitempty"`     // "user/ann", or the address of who is not known
	Kind    string    `msgpack:"kind,omitempty"`    // the operation
	Reason  string    `msgpack:"reason,omitempty"`  // such as "missing role"
	Tenant  string    `msgpack:"tenant,omitempty"`  // of the last one, as it was asked for
	Source  string    `msgpack:"source,omitempty"`  // of the last one
	Request string    `msgpack:"request,omitempty"` // id of the last one
	Count   int64     `msgpack:"count,omitempty"`
	First   time.Time `msgpack:"first,omitempty"`
	Last    time.Time `msgpack:"last,omitempty"`
}

// EventType implements domain.Event.
func (CommandRefused) EventType() string { return "CommandRefused" }

// RecordRefusal tells the log of refused attempts.
type RecordRefusal struct{ CommandRefused }

// CommandType implements domain.Command.
func (RecordRefusal) CommandType() string { return "RecordRefusal" }

// Stream implements domain.Command.
func (c RecordRefusal) Stream() domain.StreamID {
	return domain.StreamOf(RefusalCategory, domain.DeriveUUID(domain.UUID{}, "refused", c.Who))
}

// RefusalAggregate records whatever it is told: what bounds it stands before it.
func RefusalAggregate() domain.Aggregate[struct{}] {
	return domain.Aggregate[struct{}]{
		Category: RefusalCategory,
		Evolve:   func(s struct{}, _ domain.Event) struct{} { return s },
		Decide: func(_ struct{}, r domain.Request) ([]domain.Event, error) {
			c, ok := r.Command.(RecordRefusal)
			if !ok {
				return nil, domain.Errorf(domain.Internal, "refusal: unknown command %T", r.Command)
			}
			return []domain.Event{&c.CommandRefused}, nil
		},
	}
}

// Tally turns refused attempts into few events. It is one goroutine's, or under a lock. The zero
// value is ready.
//
// Invariants: no more than RefusalsPerSecond events in any second of the clock; no more than
// RefusalKindsMax windows and one; the counts of all events together are the attempts noted, once
// every window is closed.
type Tally struct {
	open   []window // the oldest first
	second int64    // of the clock, in which used counts
	used   int
}

// window gathers attempts that are alike. count is what no event has told yet.
type window struct {
	begun time.Time
	ev    CommandRefused
	count int64
	first time.Time
}

func (w *window) like(r CommandRefused) bool {
	return w.ev.Who == r.Who && w.ev.Kind == r.Kind && w.ev.Reason == r.Reason
}

// Note counts an attempt, and gives the event that tells of it at once if it is the first of its
// kind for a while.
func (t *Tally) Note(now time.Time, r CommandRefused) []CommandRefused {
	at := slices.IndexFunc(t.open, func(w window) bool { return w.like(r) })
	if at < 0 && len(t.open) >= RefusalKindsMax {
		r.Who, r.Kind, r.Reason = "many", "many", "too many kinds at once"
		at = slices.IndexFunc(t.open, func(w window) bool { return w.like(r) })
	}
	if at >= 0 {
		w := &t.open[at]
		if w.count == 0 {
			w.first = now
		}
		w.ev.Tenant, w.ev.Source, w.ev.Request, w.ev.Last = r.Tenant, r.Source, r.Request, now
		w.count++
		return nil
	}
	r.Last = now
	t.open = append(t.open, window{begun: now, ev: r, count: 1, first: now})
	if !t.allow(now) {
		return nil
	}
	return []CommandRefused{t.open[len(t.open)-1].tell()}
}

// tell gives what is not told yet.
func (w *window) tell() CommandRefused {
	ev := w.ev
	ev.Count, ev.First = w.count, w.first
	w.count = 0
	return ev
}

// Due closes the windows whose time is over and gives an event for each that counted more. What the
// limit holds back comes with a later call.
func (t *Tally) Due(now time.Time) []CommandRefused {
	var out []CommandRefused
	t.open = slices.DeleteFunc(t.open, func(w window) bool {
		switch {
		case now.Sub(w.begun) < RefusalWindow:
			return false
		case w.count == 0:
			return true
		case !t.allow(now):
			return false
		}
		out = append(out, w.tell())
		return true
	})
	return out
}

func (t *Tally) allow(now time.Time) bool {
	if s := now.Unix(); s != t.second {
		t.second, t.used = s, 0
	}
	if t.used >= RefusalsPerSecond {
		return false
	}
	t.used++
	return true
}
