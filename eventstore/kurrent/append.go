package kurrent

import (
	"context"
	"errors"
	"fmt"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/domain"
	"weft/eventstore"
)

// head is the end of a stream: its last event, and the ids and places of the last idsMax. It never
// changes; a longer stream has another.
type head struct {
	revision domain.Revision // NoRevision: no stream
	hash     [32]byte
	last     []known // ending with that of revision
}

type known struct {
	id domain.EventID
	at domain.Position
}

// empty is the head of a stream without events.
func empty() *head { return &head{revision: domain.NoRevision} }

// first is the revision of the oldest event in last.
func (h *head) first() domain.Revision { return h.revision - domain.Revision(len(h.last)) + 1 }

// with gives the head after one more event.
func (h *head) with(r *eventstore.Recorded) *head {
	last := append(h.last[:len(h.last):len(h.last)], known{r.ID, r.Position})
	return &head{r.Revision, r.Hash, last[max(0, len(last)-idsMax):]}
}

// find looks for the ids of an append among the last of its stream (E5). ErrIDReused means that
// only some are there, or in another order.
func (h *head) find(
	s domain.StreamID, ev []eventstore.Proposed,
) (eventstore.Appended, bool, error) {
	at := map[domain.EventID]int{}
	for i := range h.last {
		at[h.last[i].id] = i
	}
	start, found := at[ev[0].ID]
	for i := range ev {
		k, met := at[ev[i].ID]
		if met != found || met && k != start+i {
			return eventstore.Appended{}, false, domain.Wrap(
				eventstore.ErrIDReused, "kurrent.Append", string(s),
			)
		}
	}
	if !found {
		return eventstore.Appended{}, false, nil
	}
	k := start + len(ev) - 1
	return eventstore.Appended{
		Last: h.first() + domain.Revision(k), Position: h.last[k].at, Duplicate: true,
	}, true, nil
}

// Append implements eventstore.Store. Durable means what the cluster's acknowledgement means: on a
// majority of it. The event is read back before a nil error is given. A call may outlast its
// context by one search for a node.
//
// An answer that did not arrive is resolved by sending the same ids again; ErrUnknownOutcome comes
// when no attempt was answered.
func (s *Store) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	if err := eventstore.Check(id, e, ev); err != nil {
		return eventstore.Appended{}, err
	}
	inner, leave, err := s.enter(ctx, "kurrent.Append")
	if err != nil {
		return eventstore.Appended{}, err
	}
	defer leave()
	a := appending{Store: s, outer: ctx, stream: id, expect: e, events: ev}
	s.config.Mark(a.mark[:])
	return a.run(inner)
}

// appending is one call of Append.
type appending struct {
	*Store
	outer  context.Context //nolint:containedctx // the caller's, to tell whose end it was
	stream domain.StreamID
	expect eventstore.Expect
	events []eventstore.Proposed
	mark   mark
	sent   bool // an attempt left whose outcome is not known
}

// run tries until there is an answer. Each round begins with what is known of the stream, and with
// what the server says once that was wrong (E6).
func (a *appending) run(ctx context.Context) (eventstore.Appended, error) {
	failed, moved := 0, 0
	h, fresh, err := a.recall(ctx)
	for {
		if err != nil {
			return eventstore.Appended{}, a.unanswered(err)
		}
		done, out, err2 := a.judge(ctx, h, fresh)
		if errors.Is(err2, eventstore.ErrIDReused) && !fresh { // by what is remembered alone
			h, fresh, err = a.reload(ctx)
			continue
		}
		if done || err2 != nil {
			return out, err2
		}
		if !a.expect.Holds(h.revision) { // it rests on memory alone
			h, fresh, err = a.reload(ctx)
			continue
		}
		out, err2 = a.attempt(ctx, h)
		switch {
		case err2 == nil:
			return out, nil
		case errors.Is(err2, errMoved):
			if moved++; moved > eventstore.TailRetryMax {
				return out, domain.Wrap(eventstore.ErrNoQuorum, "kurrent.Append", string(a.stream))
			}
			h, fresh, err = a.reload(ctx)
			continue
		case errors.Is(err2, errUnanswered):
		default:
			return out, err2
		}
		failed++
		a.config.Log.Warn("kurrent append failed", "stream", a.stream, "attempt", failed, "err", err2)
		if failed == a.config.Attempts || ctx.Err() != nil || a.config.Pause(ctx, failed) != nil {
			return out, a.unanswered(err2)
		}
	}
}

// judge answers without the server where that is possible: a repeat, a conflict, a stale token.
func (a *appending) judge(
	ctx context.Context, h *head, fresh bool,
) (done bool, out eventstore.Appended, err error) {
	out, found, err := h.find(a.stream, a.events)
	if !found && err == nil {
		out, found, err = a.findAtPlace(ctx, h)
	}
	if err != nil {
		return true, out, err
	}
	if found {
		out.Duplicate, err = a.foreign(ctx, out.Last)
		return err == nil, out, err
	}
	if !a.expect.Holds(h.revision) && fresh {
		return true, out, &eventstore.ConflictError{
			Stream: a.stream, Want: a.expect, Current: h.revision,
		}
	}
	return false, out, a.fence(ctx)
}

// foreign tells whether the event at a place was appended by another call than this one.
func (a *appending) foreign(ctx context.Context, at domain.Revision) (bool, error) {
	if !a.sent {
		return true, nil
	}
	p, err := a.fetchStream(ctx, a.stream, esdb.Revision(uint64(at)), esdb.Forwards, 1)
	switch {
	case err != nil:
		return false, a.unanswered(err)
	case len(p.events) == 0:
		return false, &eventstore.CorruptError{What: string(a.stream) + ": events are gone"}
	}
	return !a.mark.has(p.events[0]), nil
}

// findAtPlace looks for a repeat at the place it expects when that lies before the known ids.
func (a *appending) findAtPlace(
	ctx context.Context, h *head,
) (out eventstore.Appended, found bool, err error) {
	rev, exact := a.expect.Exact()
	if first := rev + 1; !exact || first >= h.first() || first > h.revision {
		return out, false, nil
	}
	chain := links{store: a.Store}
	old := empty()
	batch, _, _, err := a.batch(ctx, &chain, a.stream, rev+1, eventstore.Forward)
	if err != nil {
		return out, false, a.unanswered(err)
	}
	for i := range batch {
		if i < len(a.events) {
			old = old.with(&batch[i])
		}
	}
	if len(old.last) < len(a.events) || old.last[0].id != a.events[0].ID {
		return out, false, nil
	}
	return old.find(a.stream, a.events)
}

// fence judges the tokens of the append by the last event of the coordination stream.
func (a *appending) fence(ctx context.Context) error {
	asks := false
	for i := range a.events {
		asks = asks || a.events[i].Token != 0
	}
	if a.config.Unfenced || !asks {
		return nil
	}
	rev, err := a.lastUpTo(ctx, eventstore.CoordinationStream, domain.NoRevision)
	if err != nil {
		return a.unanswered(err)
	}
	for i := range a.events {
		if t := a.events[i].Token; t != 0 && (rev < 0 || t != uint64(rev)) {
			return domain.Wrap(eventstore.ErrFenced, "kurrent.Append", string(a.stream))
		}
	}
	return nil
}

var (
	errMoved      = errors.New("the stream is not where it was believed to be")
	errUnanswered = errors.New("no answer")
)

// attempt sends the events once, behind a head, and reads the last one back. errMoved means that
// nothing was written; errUnanswered that nobody knows, or that nobody was reached.
func (a *appending) attempt(ctx context.Context, h *head) (eventstore.Appended, error) {
	var out eventstore.Appended
	data := make([]esdb.EventData, len(a.events))
	after := h
	for i := range a.events {
		r := eventstore.Recorded{Header: a.events[i].Header, Data: a.events[i].Data}
		r.Stream, r.Revision, r.Prev = a.stream, after.revision+1, after.hash
		var err error
		if data[i], err = seal(&r, a.mark); err != nil {
			return out, err
		}
		after = after.with(&r)
	}
	var expect esdb.ExpectedRevision = esdb.NoStream{}
	if h.revision >= 0 {
		expect = esdb.Revision(uint64(h.revision))
	}
	err := a.clients.call(ctx, func(ctx context.Context, c *esdb.Client) error {
		_, err := c.AppendToStream(ctx, a.config.Prefix+string(a.stream),
			esdb.AppendToStreamOptions{ExpectedRevision: expect, Deadline: &a.config.Deadline}, data...)
		return err
	})
	if codeOf(err) == esdb.ErrorCodeWrongExpectedVersion && err != nil {
		return out, errMoved
	}
	if err != nil {
		if answer := refused(err, "kurrent.Append", a.stream); answer != nil {
			return out, answer
		}
		a.sent = a.sent || !errors.Is(err, errNotSent) && codeOf(err) != esdb.ErrorCodeNotLeader
		return out, fmt.Errorf("%w: %w", errUnanswered, err)
	}
	a.sent = true
	return a.readBack(ctx, h, after)
}

// readBack takes the place of what was just written from the stream: the server names that of one
// event only, and its "success" may be that of an older append with the same ids, whose content,
// and so whose hash, is another.
func (a *appending) readBack(
	ctx context.Context, before, after *head,
) (eventstore.Appended, error) {
	var out eventstore.Appended
	chain := links{store: a.Store, met: func(e *esdb.RecordedEvent) {
		if domain.Revision(e.EventNumber) == after.revision {
			out.Duplicate = !a.mark.has(e)
		}
	}}
	if before.revision >= 0 {
		l := link{revision: before.revision, hash: before.hash}
		if n := len(before.last); n > 0 {
			l.position = before.last[n-1].at
		}
		chain.seen = map[domain.StreamID]link{a.stream: l}
	}
	now, want := before, before.revision+1
	for want <= after.revision {
		batch, next, _, err := a.batch(ctx, &chain, a.stream, want, eventstore.Forward)
		if errors.Is(err, eventstore.ErrCorrupt) {
			return out, err
		}
		if err != nil || len(batch) == 0 {
			return out, fmt.Errorf("%w: %w", errUnanswered, err)
		}
		for i := range batch {
			if batch[i].Revision <= after.revision {
				now = now.with(&batch[i])
			}
		}
		want = next
	}
	if now.hash != after.hash {
		return out, errMoved // the ids are there already, and the next round finds them
	}
	a.remember(now)
	out.Last, out.Position = now.revision, now.last[len(now.last)-1].at
	return out, nil
}

// recall gives what is known of the stream, from memory where the expectation allows it. One that
// is expected not to be there is believed: the server judges that, and what is read back says
// whose events are there.
func (a *appending) recall(ctx context.Context) (h *head, fresh bool, err error) {
	a.mu.Lock()
	h = a.mu.heads[a.stream]
	a.mu.Unlock()
	if h != nil {
		return h, false, nil
	}
	if rev, exact := a.expect.Exact(); exact && rev == domain.NoRevision {
		return empty(), false, nil
	}
	return a.reload(ctx)
}

// reload reads the end of the stream.
func (a *appending) reload(ctx context.Context) (h *head, fresh bool, err error) {
	p, err := a.fetchStream(ctx, a.stream, esdb.End{}, esdb.Backwards, idsMax)
	if err != nil {
		return nil, false, err
	}
	chain := links{store: a.Store}
	h = empty()
	for i := len(p.events) - 1; i >= 0; i-- {
		r, err := chain.next(ctx, p.events[i])
		if err != nil {
			return nil, false, err
		}
		h = h.with(&r)
	}
	a.remember(h)
	return h, true, nil
}

func (a *appending) remember(h *head) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.mu.heads) >= headsMax {
		clear(a.mu.heads)
	}
	if old := a.mu.heads[a.stream]; old == nil || old.revision < h.revision {
		a.mu.heads[a.stream] = h
	}
}

// unanswered is the answer when the cluster gave none.
func (a *appending) unanswered(err error) error {
	if a.sent {
		return fmt.Errorf("%w: %w", eventstore.ErrUnknownOutcome, err)
	}
	err = a.failed(a.outer, err, "kurrent.Append", a.stream)
	if errors.Is(err, errNotSent) {
		return fmt.Errorf("%w: %w", eventstore.ErrNoQuorum, err)
	}
	return err
}
