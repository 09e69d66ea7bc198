// Package duplicate copies a history from one engine of the event log to another and proves the
// copy: the same events with the same ids at the same revisions of the same streams, compared by
// content. Positions and the chain are the target's own.
//
// What it never does: it changes nothing in the source, removes nothing from the target, and keeps
// no state of its own. A copy that was cut short is run again; what is there is compared and not
// written twice.
//
// Fencing tokens are copied as they were. A target that judges them takes them as long as the
// history begins with its coordination stream and never left timeline 0; one that is told not to
// (kurrent's Unfenced) always does.
package duplicate

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"weft/domain"
	"weft/eventstore"
)

// Options changes what a copy does. The zero value copies everything.
type Options struct {
	// StreamPrefix selects whole streams. A part of a stream would have other revisions.
	StreamPrefix []string
	// DryRun compares what is there and counts what is missing, and writes nothing.
	DryRun bool
	// Progress, when not nil, is told the counts after each append, from the copying goroutine.
	Progress func(Report)
}

// Report counts the events of the source that were looked at.
type Report struct {
	Events  uint64 // all
	Present uint64 // of them, those that the target had
	Copied  uint64 // of them, those written now; in a dry run, those that would be
	Bytes   uint64 // of payload, of all
	Streams int
	Through domain.Position // in the source
	// Digest is SHA-256 over the digest before and the content of the event, from 32 zeros on, in
	// the order of the log that was read.
	Digest [32]byte
}

func (r *Report) add(e *eventstore.Recorded, content [32]byte) {
	r.Events++
	r.Bytes += uint64(len(e.Data))
	r.Through = e.Position
	r.Digest = sha256.Sum256(append(r.Digest[:], content[:]...))
}

// Run copies from one log to another, in the order of the source. It ends at the head that it
// meets. Nobody else may write to the target's copies meanwhile.
//
// An event of the target that differs from the source, or that the source does not have, ends it
// with kind Mismatch and names the place. Every event that was written is read back and compared.
// All other errors are those of the two stores, and the copy can be run again.
func Run(ctx context.Context, from, to eventstore.Store, o Options) (Report, error) {
	c := New(from, to, o)
	report, err := c.Round(ctx)
	if err != nil {
		return report, err
	}
	return report, c.NothingBeyond(ctx)
}

// Copy is a copy that goes on while its source grows. It belongs to one goroutine.
type Copy struct{ c copier }

// New begins a copy. Nothing is read yet.
func New(from, to eventstore.Store, o Options) *Copy {
	return &Copy{copier{from: from, to: to, o: o, last: map[domain.StreamID]domain.Revision{}}}
}

// Round copies what the source holds behind what was copied, up to the head that it meets, and
// gives the counts since the beginning. Its errors are those of Run; after one, the next round goes
// on behind what was compared.
func (c *Copy) Round(ctx context.Context) (Report, error) { return c.c.round(ctx) }

// NothingBeyond reads the whole target and checks that the copied streams have no event there that
// was not copied. Its errors are those of Run.
func (c *Copy) NothingBeyond(ctx context.Context) error { return c.c.nothingBeyond(ctx) }

func (c *copier) round(ctx context.Context) (Report, error) {
	c.batch, c.size = nil, 0
	after, filter := c.report.Through, domain.Filter{StreamPrefix: c.o.StreamPrefix}
	for r, err := range c.from.ReadAll(ctx, after, eventstore.Forward, filter, eventstore.NoLimit) {
		if err != nil {
			return c.report, domain.Wrap(err, "duplicate.Run", "source")
		}
		if !c.joins(&r) {
			if err := c.flush(ctx); err != nil {
				return c.report, err
			}
		}
		c.batch = append(c.batch, r)
		c.size += sizeOf(&r)
	}
	return c.report, c.flush(ctx)
}

// Digest reads a log as Run would read its source, and counts it.
func Digest(ctx context.Context, s eventstore.Store, prefixes []string) (Report, error) {
	var out Report
	streams := map[domain.StreamID]bool{}
	filter := domain.Filter{StreamPrefix: prefixes}
	for r, err := range s.ReadAll(ctx, 0, eventstore.Forward, filter, eventstore.NoLimit) {
		if err != nil {
			return out, domain.Wrap(err, "duplicate.Digest", "")
		}
		streams[r.Stream] = true
		out.add(&r, eventstore.Content(&r.Header, r.Data))
	}
	out.Present, out.Streams = out.Events, len(streams)
	return out, nil
}

// Put makes events of one stream, whose revisions follow each other, stand at the same revisions in
// another log: what is there is compared, what is missing is appended and read back. It tells how
// many it appended. The errors are those of Run.
func Put(ctx context.Context, to eventstore.Store, events ...eventstore.Recorded) (int, error) {
	return put(ctx, to, eventstore.At, events)
}

// Join is Put into a log that takes copies of intents alone, see eventstore.Copied.
func Join(ctx context.Context, to eventstore.Store, events ...eventstore.Recorded) (int, error) {
	return put(ctx, to, eventstore.Copied, events)
}

func put(
	ctx context.Context, to eventstore.Store, expect func(domain.Revision) eventstore.Expect,
	events []eventstore.Recorded,
) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	present, err := compare(ctx, to, events)
	if err != nil || present == len(events) {
		return 0, err
	}
	missing := events[present:]
	id, first := missing[0].Stream, missing[0].Revision
	proposed := make([]eventstore.Proposed, len(missing))
	for i := range missing {
		proposed[i].Header, proposed[i].Data = missing[i].Header, slices.Clone(missing[i].Data)
		h := &proposed[i].Header
		h.Stream, h.Revision, h.Position = "", 0, 0
		h.Hash, h.Prev = [32]byte{}, [32]byte{}
	}
	if _, err := to.Append(ctx, id, expect(first-1), proposed...); err != nil {
		return 0, domain.Wrap(err, "duplicate.Put", fmt.Sprintf("%s@%d", id, first))
	}
	written, err := compare(ctx, to, missing)
	if err == nil && written != len(missing) {
		err = differs(&missing[written], "is not there although it was acknowledged")
	}
	return len(missing), err
}

// copier is one run.
type copier struct {
	from   eventstore.Store
	to     eventstore.Store
	o      Options
	batch  []eventstore.Recorded // of one stream, behind each other in the source
	size   int                   // bytes of their records
	last   map[domain.StreamID]domain.Revision
	report Report
}

func sizeOf(r *eventstore.Recorded) int {
	return eventstore.Size(r.Stream, &eventstore.Proposed{Header: r.Header, Data: r.Data})
}

// joins tells whether an event goes into the same append as those gathered. Half the limit leaves
// room for targets that store more about an event than a record does.
func (c *copier) joins(r *eventstore.Recorded) bool {
	return len(c.batch) == 0 || r.Stream == c.batch[0].Stream &&
		len(c.batch) < eventstore.EventsMax && c.size+sizeOf(r) <= eventstore.AppendMax/2
}

// flush copies what was gathered.
func (c *copier) flush(ctx context.Context) error {
	if len(c.batch) == 0 {
		return nil
	}
	copied, err := c.settle(ctx)
	if err != nil {
		return err
	}
	for i := range c.batch {
		r := &c.batch[i]
		c.report.add(r, eventstore.Content(&r.Header, r.Data))
		c.last[r.Stream] = r.Revision
	}
	c.report.Copied += uint64(copied)
	c.report.Present += uint64(len(c.batch) - copied)
	c.report.Streams = len(c.last)
	c.batch, c.size = nil, 0
	if c.o.Progress != nil {
		c.o.Progress(c.report)
	}
	return nil
}

// settle copies the batch, or counts what it would copy.
func (c *copier) settle(ctx context.Context) (copied int, err error) {
	if !c.o.DryRun {
		return Put(ctx, c.to, c.batch...)
	}
	present, err := compare(ctx, c.to, c.batch)
	return len(c.batch) - present, err
}

// nothingBeyond checks that the target has no event in the copied streams that the source has not.
func (c *copier) nothingBeyond(ctx context.Context) error {
	for r, err := range c.to.ReadAll(
		ctx, 0, eventstore.Backward, domain.Filter{StreamPrefix: c.o.StreamPrefix}, eventstore.NoLimit,
	) {
		if err != nil {
			return domain.Wrap(err, "duplicate.Run", "target")
		}
		last, known := c.last[r.Stream]
		if !known || r.Revision > last {
			return differs(&r, "is in the target alone")
		}
	}
	return nil
}

// compare tells how many of the events stand in a store, which are the first of them.
func compare(
	ctx context.Context, s eventstore.Store, events []eventstore.Recorded,
) (present int, err error) {
	id, from := events[0].Stream, events[0].Revision
	for r, err := range s.ReadStream(ctx, id, from, eventstore.Forward, len(events)) {
		if err != nil {
			return 0, domain.Wrap(err, "duplicate.compare", string(id))
		}
		want := &events[present]
		if r.Stream != want.Stream || r.Revision != want.Revision || r.ID != want.ID {
			return 0, differs(want, "is another event there: "+r.ID.String())
		}
		if eventstore.Content(&r.Header, r.Data) != eventstore.Content(&want.Header, want.Data) {
			return 0, differs(want, "has another content there")
		}
		present++
	}
	return present, nil
}

func differs(r *eventstore.Recorded, what string) error {
	return &domain.Error{
		Op: "duplicate", Kind: domain.Mismatch, Ref: fmt.Sprintf("%s@%d", r.Stream, r.Revision),
		Msg: fmt.Sprintf("event %s %s", r.ID, what),
	}
}
