package eventstore

import (
	"fmt"

	"weft/domain"
)

// Check judges an append by the limits alone, before any engine looks at its state. Engines call it
// first. Its errors are ErrTooLarge or of kind Invalid.
func Check(s domain.StreamID, e Expect, events []Proposed) error {
	var c domain.Checker
	c.Check(s.Valid(), "stream", "%q is not <category>-<id>", clip(string(s)))
	c.Check(e.kind != expectNothing, "expect", "nothing stated")
	if rev, exact := e.Exact(); exact {
		c.Check(rev >= domain.NoRevision, "expect", "revision %d is below -1", rev)
	}
	c.Check(len(events) > 0, "events", "none")
	seen := make(map[domain.EventID]bool, len(events))
	for i := range events {
		ev, path := &events[i], fmt.Sprintf("events[%d]", i)
		c.Check(!ev.ID.IsZero() && !seen[ev.ID], path+".id", "zero or twice in one append")
		c.Check(ev.Type != "", path+".type", "empty")
		ns := ev.Created.UnixNano()
		c.Check(ns > 0 && ns%int64(createdStep) == 0 && ev.Created.Year() < 2262,
			path+".created", "not a time from 1970 to 2261 cut to 100 ns")
		seen[ev.ID] = true
	}
	if err := c.Err("eventstore.Append", clip(string(s))); err != nil {
		return err
	}
	return checkSizes(s, events)
}

func checkSizes(s domain.StreamID, events []Proposed) error {
	if len(events) > EventsMax {
		return tooLarge(s, "%d events, the most are %d", len(events), EventsMax)
	}
	sum := 0
	for i := range events {
		ev := &events[i]
		if len(ev.Data) > DataMax {
			return tooLarge(s, "event %d has %d bytes, the most are %d", i, len(ev.Data), DataMax)
		}
		if len(ev.Type) > TypeMax {
			return tooLarge(s, "type of event %d has %d bytes, the most are %d", i, len(ev.Type),
				TypeMax)
		}
		for _, t := range []string{ev.Actor, ev.Tenant, ev.Source, ev.RequestID} {
			if len(t) > TextMax {
				return tooLarge(s, "a text of event %d has %d bytes, the most are %d", i, len(t), TextMax)
			}
		}
		sum += Size(s, ev)
	}
	if sum > AppendMax {
		return tooLarge(s, "%d bytes of records, the most are %d", sum, AppendMax)
	}
	return nil
}

// Size is how many bytes the record of a proposed event will have.
func Size(s domain.StreamID, ev *Proposed) int {
	return recordMin + len(s) + len(ev.Type) + len(ev.Actor) + len(ev.Tenant) + len(ev.Source) +
		len(ev.RequestID) + len(ev.Data)
}

// SizeOf is how many bytes a record has.
func SizeOf(r *Recorded) int {
	return Size(r.Stream, &Proposed{Header: r.Header, Data: r.Data})
}

func tooLarge(s domain.StreamID, format string, args ...any) error {
	return &domain.Error{
		Op: "eventstore.Append", Kind: domain.TooLarge, Ref: string(s),
		Msg: fmt.Sprintf(format, args...), Err: ErrTooLarge,
	}
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
