// Package duplicate copies a history from one engine of the event log to another and proves the
// copy: the same events with the same ids at the same revisions of the same streams, compared by
// content. Positions and the chain are the target's own.
//
//	source -> window -> by stream -> append, at most Flight streams at once -> read back -> compared
//
// Invariants, cited where the code keeps them and where a test breaks them:
//
//	P1  the events of a stream are appended in their order, and each is read back and compared
//	    before it is counted.
//	P2  a window is begun when all of the one before is there. So an event of the target stands at
//	    most a window away from where the order of the source would have it, and exactly there with
//	    one stream in flight.
//	P3  what is there already is compared and not written again, wherever a copy was cut short.
//
// What it never does: it changes nothing in the source, removes nothing from the target, and keeps
// no state of its own. A copy that was cut short is run again.
//
// Fencing tokens are copied as they were. A target that judges them, or whether it takes intents,
// takes them from one stream in flight, as long as the history begins with its coordination stream
// and never left timeline 0; one that is told not to (kurrent's Unfenced) always does.
package duplicate

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"weft/domain"
	"weft/eventstore"
)

const (
	// windowDefault is how many events a copy holds at once.
	windowDefault = 4096
	// windowBytes ends a window before, by the size of its records.
	windowBytes = 8 << 20
)

// Options changes what a copy does. The zero value copies everything, in the order of the source.
type Options struct {
	// StreamPrefix selects whole streams. A part of a stream would have other revisions.
	StreamPrefix []string
	// DryRun compares what is there and counts what is missing, and writes nothing.
	DryRun bool
	// Flight is how many streams are appended to at once. 0 and 1 keep the order of the source
	// between streams as well; more keep it within each stream and from one window to the next (P2).
	Flight int
	// Window is how many events are appended together when several streams are in flight; 0 is
	// 4,096. Bytes bound it too.
	Window int
	// Progress, when not nil, is told the counts after each window, from the copying goroutine.
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
	// Digest is SHA-256 over the names of the streams and the digest of each, in the order of the
	// names. That of a stream is SHA-256 over the digest before and the content of the event, from
	// 32 zeros on. So it is the same whatever order the streams have between them. It is made when a
	// round has come to its end, and zero before.
	Digest [32]byte
}

func (r *Report) add(e *eventstore.Recorded) {
	r.Events++
	r.Bytes += uint64(len(e.Data))
	r.Through = e.Position
}

// sums are the ends of streams, each with the digest of all its events.
type sums map[domain.StreamID]sum

type sum struct {
	last   domain.Revision
	digest [32]byte
}

func (s sums) add(e *eventstore.Recorded) {
	before, content := s[e.Stream], eventstore.Content(&e.Header, e.Data)
	s[e.Stream] = sum{e.Revision, sha256.Sum256(append(before.digest[:], content[:]...))}
}

// digest is Report.Digest.
func (s sums) digest() [32]byte {
	h := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(s)) {
		name, of := sha256.Sum256([]byte(id)), s[id].digest
		h.Write(name[:])
		h.Write(of[:])
	}
	return [32]byte(h.Sum(nil))
}

// Run copies from one log to another. It ends at the head that it meets. Nobody else may write to
// the target's copies meanwhile.
//
// An event of the target that differs from the source, or that the source does not have, ends it
// with kind Mismatch and names the place. Every event that was written is read back and compared.
// All other errors are those of the two stores, and the copy can be run again.
func Run(ctx context.Context, from, to eventstore.Store, o Options) (Report, error) {
	c := New(from, to, o)
	report, err := c.Round(ctx, Part{})
	if err != nil {
		return report, err
	}
	if o.DryRun && report.Copied > 0 {
		return report, c.c.nothingBeyond(ctx)
	}
	return report, c.Prove(ctx)
}

// Copy is a copy that goes on while its source grows. It belongs to one goroutine.
type Copy struct{ c copier }

// New begins a copy. Nothing is read yet.
func New(from, to eventstore.Store, o Options) *Copy {
	if o.Window == 0 {
		o.Window = windowDefault
	}
	return &Copy{copier{from: from, to: to, o: o, sums: sums{}}}
}

// Part is how much a round copies. Zero values set no bound.
type Part struct {
	Events  int             // so many
	Through domain.Position // nothing behind it
}

// Round copies what the source holds behind what was copied, up to the head that it meets or the
// bounds of the part, and gives the counts since the beginning. Its errors are those of Run; after
// one, the next round goes on behind what was compared.
func (c *Copy) Round(ctx context.Context, p Part) (Report, error) { return c.c.round(ctx, p) }

// Prove reads the whole target, in pages, and checks that it holds of each copied stream what was
// copied, to the digest, and nothing else. Its errors are those of Run.
func (c *Copy) Prove(ctx context.Context) error { return c.c.prove(ctx) }

func (c *copier) round(ctx context.Context, p Part) (Report, error) {
	c.window, c.size = nil, 0
	c.report.Digest = [32]byte{}
	began, after := c.report.Events, c.report.Through
	filter := domain.Filter{StreamPrefix: c.o.StreamPrefix}
	for r, err := range c.from.ReadAll(ctx, after, eventstore.Forward, filter, eventstore.NoLimit) {
		if err != nil {
			return c.report, domain.Wrap(err, "duplicate.Run", "source")
		}
		if p.Through > 0 && r.Position > p.Through {
			break
		}
		if !c.joins(&r) {
			if err := c.flush(ctx); err != nil {
				return c.report, err
			}
		}
		if n := c.report.Events - began + uint64(len(c.window)); p.Events > 0 && n >= uint64(p.Events) {
			err := c.flush(ctx)
			return c.report, err
		}
		c.window = append(c.window, r)
		c.size += sizeOf(&r)
	}
	err := c.flush(ctx)
	if err == nil {
		c.report.Digest = c.sums.digest()
	}
	return c.report, err
}

// Digest reads a log as Run would read its source, and counts it.
func Digest(ctx context.Context, s eventstore.Store, prefixes []string) (Report, error) {
	var out Report
	all := sums{}
	filter := domain.Filter{StreamPrefix: prefixes}
	for r, err := range s.ReadAll(ctx, 0, eventstore.Forward, filter, eventstore.NoLimit) {
		if err != nil {
			return out, domain.Wrap(err, "duplicate.Digest", "")
		}
		all.add(&r)
		out.add(&r)
	}
	out.Present, out.Streams, out.Digest = out.Events, len(all), all.digest()
	return out, nil
}

// Prover is a store whose Append has read back what it acknowledges and compared it with what was
// given, unless it says Duplicate. What it appended is not read a second time.
type Prover interface{ ReadsBack() bool }

func reads(s eventstore.Store) bool {
	p, ok := s.(Prover)
	return ok && p.ReadsBack()
}

// Put makes events of one stream, whose revisions follow each other, stand at the same revisions in
// another log: what is missing is appended and read back, what is there is compared. It tells how
// many it appended. The errors are those of Run.
func Put(ctx context.Context, to eventstore.Store, events ...eventstore.Recorded) (int, error) {
	return place(ctx, to, events, true)
}

// Join is Put into a log that takes copies of intents alone, see eventstore.Copied.
func Join(ctx context.Context, to eventstore.Store, events ...eventstore.Recorded) (int, error) {
	return put(ctx, to, eventstore.Copied, events)
}

// place is Put in appends that every target takes. Fresh says that nothing is believed to be there:
// then it is looked for only when an append meets it.
func place(
	ctx context.Context, to eventstore.Store, events []eventstore.Recorded, fresh bool,
) (copied int, err error) {
	if !fresh {
		present, err := compare(ctx, to, events)
		if err != nil {
			return 0, err
		}
		events = events[present:]
	}
	for len(events) > 0 {
		n := fits(events)
		done, err := write(ctx, to, eventstore.At, events[:n])
		if met(err) {
			done, err = put(ctx, to, eventstore.At, events[:n])
		}
		if copied += done; err != nil {
			return copied, err
		}
		events = events[n:]
	}
	return copied, nil
}

// met tells whether an append failed for what is at its place already.
func met(err error) bool {
	var conflict *eventstore.ConflictError
	return errors.As(err, &conflict) || errors.Is(err, eventstore.ErrIDReused)
}

// fits tells how many events, the first of some, go into one append. Half the limit leaves room for
// targets that store more about an event than a record does.
func fits(events []eventstore.Recorded) int {
	n, size := 1, sizeOf(&events[0])
	for n < len(events) && n < eventstore.EventsMax {
		if size += sizeOf(&events[n]); size > eventstore.AppendMax/2 {
			break
		}
		n++
	}
	return n
}

// put compares first and writes what is missing.
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
	return write(ctx, to, expect, events[present:])
}

// write appends events and makes sure that they are there, with their content (P1).
func write(
	ctx context.Context, to eventstore.Store, expect func(domain.Revision) eventstore.Expect,
	events []eventstore.Recorded,
) (copied int, err error) {
	id, first := events[0].Stream, events[0].Revision
	proposed := make([]eventstore.Proposed, len(events))
	for i := range events {
		proposed[i].Header, proposed[i].Data = events[i].Header, slices.Clone(events[i].Data)
		h := &proposed[i].Header
		h.Stream, h.Revision, h.Position = "", 0, 0
		h.Hash, h.Prev = [32]byte{}, [32]byte{}
	}
	a, err := to.Append(ctx, id, expect(first-1), proposed...)
	switch {
	case err != nil:
		return 0, domain.Wrap(err, "duplicate.Put", fmt.Sprintf("%s@%d", id, first))
	case !a.Duplicate && reads(to):
		return len(events), nil
	case !a.Duplicate:
		copied = len(events)
	}
	written, err := compare(ctx, to, events)
	if err == nil && written != len(events) {
		err = differs(&events[written], "is not there although it was acknowledged")
	}
	return copied, err
}

// copier is one run.
type copier struct {
	from   eventstore.Store
	to     eventstore.Store
	o      Options
	window []eventstore.Recorded
	size   int  // bytes of its records
	fresh  bool // the window before met nothing at its places
	sums   sums
	report Report
}

func sizeOf(r *eventstore.Recorded) int {
	return eventstore.Size(r.Stream, &eventstore.Proposed{Header: r.Header, Data: r.Data})
}

// joins tells whether an event goes into the window. With one stream in flight a window is one
// append (P2).
func (c *copier) joins(r *eventstore.Recorded) bool {
	if len(c.window) == 0 {
		return true
	}
	events, size := c.o.Window, windowBytes
	if c.o.Flight <= 1 {
		if r.Stream != c.window[0].Stream {
			return false
		}
		events, size = eventstore.EventsMax, eventstore.AppendMax/2
	}
	return len(c.window) < events && c.size+sizeOf(r) <= size
}

// flush copies the window.
func (c *copier) flush(ctx context.Context) error {
	if len(c.window) == 0 {
		return nil
	}
	copied, err := c.settle(ctx)
	if err != nil {
		c.fresh = false
		return err
	}
	for i := range c.window {
		c.report.add(&c.window[i])
		c.sums.add(&c.window[i])
	}
	c.fresh = copied == len(c.window)
	c.report.Copied += uint64(copied)
	c.report.Present += uint64(len(c.window) - copied)
	c.report.Streams = len(c.sums)
	c.window, c.size = nil, 0
	if c.o.Progress != nil {
		c.o.Progress(c.report)
	}
	return nil
}

// settle copies the window and tells how many events it wrote or would write.
func (c *copier) settle(ctx context.Context) (copied int, err error) {
	return spread(ctx, c.window, c.o.Flight, c.stream)
}

// stream copies the events of one stream, or counts what it would copy.
func (c *copier) stream(ctx context.Context, events []eventstore.Recorded) (int, error) {
	if !c.o.DryRun {
		return place(ctx, c.to, events, c.fresh)
	}
	present, err := compare(ctx, c.to, events)
	return len(events) - present, err
}

// PutAll is Put for events of several streams, at most flight of them at once. Those of a stream
// stand in their order. Behind an error any of them may be there.
func PutAll(
	ctx context.Context, to eventstore.Store, flight int, events ...eventstore.Recorded,
) (int, error) {
	return spread(ctx, events, flight, func(
		ctx context.Context, events []eventstore.Recorded,
	) (int, error) {
		return place(ctx, to, events, true)
	})
}

// spread runs f for the events of each stream, several at once, and gives the sum of what it gave.
// The first failure ends it.
func spread(
	ctx context.Context, events []eventstore.Recorded, flight int,
	f func(ctx context.Context, events []eventstore.Recorded) (int, error),
) (sum int, err error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	work := make(chan []eventstore.Recorded)
	var (
		mu sync.Mutex // of sum and err
		wg sync.WaitGroup
	)
	for range max(flight, 1) {
		wg.Go(func() {
			for part := range work {
				n, failed := f(ctx, part)
				mu.Lock()
				sum += n
				if failed != nil && err == nil {
					err = failed
					end()
				}
				mu.Unlock()
			}
		})
	}
	for _, part := range byStream(events) {
		if ctx.Err() != nil {
			break
		}
		work <- part
	}
	close(work)
	wg.Wait()
	if err == nil && ctx.Err() != nil {
		err = &domain.Error{Op: "duplicate.Run", Kind: domain.Aborted, Err: ctx.Err()}
	}
	return sum, err
}

// byStream parts events, in their order, in the order in which their streams come first.
func byStream(window []eventstore.Recorded) [][]eventstore.Recorded {
	var out [][]eventstore.Recorded
	at := map[domain.StreamID]int{}
	for _, r := range window {
		i, ok := at[r.Stream]
		if !ok {
			i = len(out)
			at[r.Stream] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], r)
	}
	return out
}

// prove compares the streams of the target with those that were copied.
func (c *copier) prove(ctx context.Context) error {
	there := sums{}
	if err := c.target(ctx, there.add); err != nil {
		return err
	}
	for id, want := range c.sums {
		if got := there[id]; got != want {
			return &domain.Error{
				Op: "duplicate", Kind: domain.Mismatch, Ref: string(id), Msg: fmt.Sprintf(
					"the target does not hold what was copied there up to revision %d", want.last,
				),
			}
		}
	}
	return nil
}

// nothingBeyond checks that the target has no event in the copied streams that the source has not.
func (c *copier) nothingBeyond(ctx context.Context) error {
	return c.target(ctx, func(*eventstore.Recorded) {})
}

// target reads the target's part that the copy is of.
func (c *copier) target(ctx context.Context, hear func(r *eventstore.Recorded)) error {
	for r, err := range c.to.ReadAll(
		ctx, 0, eventstore.Forward, domain.Filter{StreamPrefix: c.o.StreamPrefix}, eventstore.NoLimit,
	) {
		if err != nil {
			return domain.Wrap(err, "duplicate.Run", "target")
		}
		if of, known := c.sums[r.Stream]; !known || r.Revision > of.last {
			return differs(&r, "is in the target alone")
		}
		hear(&r)
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
