package quorum

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// Bounds of the sequencer.
const (
	queueMax   = 1024     // appends waiting for the sequencer; more wait in Append
	callsMax   = 256      // appends that are looked at for one batch
	batchBytes = 64 << 10 // a batch is closed here unless one append alone is larger
	// gatherTurns is how often the sequencer lets others run before it closes a batch: the callers
	// that it has just answered come back with their next appends. Without, they find that batch
	// gone, and writers that could share one transaction form two groups that take turns.
	gatherTurns = 4
	jitterMin   = time.Millisecond
	jitterMax   = 10 * time.Millisecond
)

// sequencer is the one goroutine that owns the tail (Q1). It takes what waited while the last
// transaction was in flight, judges it against the mirror, and commits it as one.
type sequencer struct {
	keys   keys
	loader loader
	mirror *eventstore.Mirror
	in     *intake
	per    uint64 // records of a segment of the archive
	queue  chan *call
	nudged chan struct{}
	life   context.Context // ends when Close is called
	end    context.CancelFunc
	began  sync.Once
	gone   chan struct{} // closed when the goroutine has ended
	// commit submits a transaction; tests put failures in its place.
	commit func(context.Context, *txn) (*clientv3.TxnResponse, error)
	// stirred gives a channel that closes when an answer under way is likely lost, as after a change
	// of the leader; it looks out until the context ends. Nil: never.
	stirred func(context.Context) <-chan struct{}
	// admit refuses a stream that the database has no room for. Nil: none.
	admit func(domain.StreamID) error
	// distrust tells whether the log goes on although the database that was read is damaged: others
	// are asked from now on. Nil: it does not.
	distrust func(error) bool
	// behind hears that a recovery gave up part of what the mirror holds, which has ended. Nil: none.
	behind func(error)
}

// The states of a call. A caller that leaves while it waits is sure that nothing happened.
const (
	callWaiting int32 = iota
	callTaken
	callLeft
)

// call is one append on its way.
type call struct {
	stream domain.StreamID
	expect eventstore.Expect
	events []eventstore.Proposed
	size   int
	tries  int // batches it was in that lost their tail
	state  atomic.Int32
	answer chan answer // room for one: the sequencer never waits for a caller

	placed eventstore.Appended // where the batch under way puts it
	doubt  error               // why the batch under way refuses it, if the mirror is current
}

type answer struct {
	done eventstore.Appended
	err  error
}

func newSequencer(k keys, kv reader, m *eventstore.Mirror, per uint64) *sequencer {
	q := &sequencer{
		keys: k, loader: loader{keys: k, kv: kv}, mirror: m, in: &intake{mirror: m}, per: per,
		queue: make(chan *call, queueMax), nudged: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	q.life, q.end = context.WithCancel(context.Background())
	q.commit = func(ctx context.Context, t *txn) (*clientv3.TxnResponse, error) {
		return kv.Txn(ctx).If(t.compare...).Then(t.then...).Else(t.orElse...).Commit()
	}
	return q
}

func (q *sequencer) append(
	ctx context.Context, s domain.StreamID, e eventstore.Expect, ev []eventstore.Proposed,
) (eventstore.Appended, error) {
	c := &call{stream: s, expect: e, events: ev, answer: make(chan answer, 1)}
	for i := range ev {
		c.size += eventstore.Size(s, &ev[i])
	}
	if ctx.Err() != nil {
		return eventstore.Appended{}, aborted(ctx, "quorum.Append")
	}
	if err := q.mirror.Ended(); err != nil {
		return eventstore.Appended{}, err
	}
	select {
	case q.queue <- c:
	case <-ctx.Done():
		return eventstore.Appended{}, aborted(ctx, "quorum.Append")
	case <-q.life.Done():
		return eventstore.Appended{}, eventstore.ErrClosed
	}
	select {
	case a := <-c.answer:
		return a.done, a.err
	case <-ctx.Done():
		if c.state.CompareAndSwap(callWaiting, callLeft) {
			return eventstore.Appended{}, aborted(ctx, "quorum.Append")
		}
	case <-q.gone:
		if c.state.CompareAndSwap(callWaiting, callLeft) {
			return eventstore.Appended{}, eventstore.ErrClosed
		}
	}
	select { // an answer that came in the same moment is better than none
	case a := <-c.answer:
		return a.done, a.err
	default:
		return eventstore.Appended{}, eventstore.ErrUnknownOutcome
	}
}

// nudge makes the sequencer look for what other writers appended. It does not wait.
func (q *sequencer) nudge() {
	select {
	case q.nudged <- struct{}{}:
	default:
	}
}

// close ends the sequencer after the batch in flight. It may be called before run and twice.
func (q *sequencer) close() {
	q.end()
	q.began.Do(func() { close(q.gone) })
	<-q.gone
}

func (q *sequencer) run() {
	started := false
	q.began.Do(func() { started = true })
	if !started {
		return
	}
	defer close(q.gone)
	var waiting []*call
	answered := 0 // by the last batch
	for {
		if len(waiting) == 0 {
			select {
			case c := <-q.queue:
				waiting = append(waiting, c)
			case <-q.nudged:
				_ = q.catchUp() // who nudged waits with a bound; damage has ended the mirror
				continue
			case <-q.life.Done():
				return
			}
		}
		if answered+len(q.queue) > 1 { // a lone writer has nobody to wait for
			for range gatherTurns {
				runtime.Gosched()
			}
		}
		for more := true; more && len(waiting) < callsMax; {
			select {
			case c := <-q.queue:
				waiting = append(waiting, c)
			default:
				more = false
			}
		}
		if q.life.Err() != nil {
			for _, c := range waiting {
				c.reply(eventstore.Appended{}, eventstore.ErrClosed)
			}
			return
		}
		answered = len(waiting)
		waiting = q.batch(waiting)
		answered -= len(waiting)
	}
}

func (c *call) reply(a eventstore.Appended, err error) {
	if err != nil {
		a = eventstore.Appended{}
	}
	c.answer <- answer{a, err}
}

// take claims a call for the sequencer, unless its caller has left.
func (c *call) take() bool {
	return c.state.CompareAndSwap(callWaiting, callTaken) || c.state.Load() == callTaken
}

// fits tells whether a call may join a batch.
func (c *call) fits(d *eventstore.Draft) bool {
	switch {
	case len(d.Entries()) == 0:
		return true
	case d.Closed() || d.Holds(c.events): // its twin is under way: wait for what becomes of it
		return false
	}
	return d.Bytes()+c.size <= batchBytes
}

// batch commits one batch and gives the calls that are still to be done.
func (q *sequencer) batch(waiting []*call) []*call {
	d := eventstore.NewDraft(q.mirror)
	var judged []*call
	i := 0
	for ; i < len(waiting) && waiting[i].fits(d); i++ {
		c := waiting[i]
		if !c.take() {
			continue
		}
		c.placed, c.doubt = q.judge(d, c)
		switch {
		case c.doubt == nil && c.placed.Duplicate:
			c.reply(c.placed, nil)
		case c.doubt == nil, errors.Is(c.doubt, eventstore.ErrConflict),
			errors.Is(c.doubt, eventstore.ErrFenced), errors.Is(c.doubt, eventstore.ErrElsewhere):
			judged = append(judged, c)
		default:
			c.reply(eventstore.Appended{}, c.doubt)
		}
	}
	rest := waiting[i:]
	if len(judged) == 0 {
		return rest
	}
	out := q.settle(d)
	if out.stored {
		if err := q.in.takeAll(d.Entries()); err != nil {
			q.mirror.End(err) // Q4 is broken: what the database holds does not verify
		}
	}
	again := q.answer(judged, out)
	if len(again) > 0 {
		again = q.renew(again)
	}
	return append(again, rest...)
}

// judge takes a call into the batch. One that there is no room for is refused, unless it is there
// already: its repeat must hear so.
func (q *sequencer) judge(d *eventstore.Draft, c *call) (eventstore.Appended, error) {
	if q.admit != nil {
		if full := q.admit(c.stream); full != nil {
			a, found, err := q.mirror.Find(c.stream, c.expect, c.events)
			if found || err != nil {
				return a, err
			}
			return a, full
		}
	}
	return d.Add(c.stream, c.expect, c.events)
}

// answer tells every call of a batch what became of it, and gives those to be judged again. A doubt
// is told only when the outcome proves that the mirror was current (E6).
func (*sequencer) answer(judged []*call, out outcome) (again []*call) {
	for _, c := range judged {
		switch {
		case out.moved:
			again = append(again, c)
		case out.err != nil:
			c.reply(eventstore.Appended{}, out.err)
		default:
			c.reply(c.placed, c.doubt)
		}
	}
	return again
}

// renew brings the mirror up to date for calls whose batch lost the tail.
func (q *sequencer) renew(calls []*call) (again []*call) {
	wait, cancel := context.WithTimeout(q.life, jitterMin+rand.N(jitterMax-jitterMin))
	<-wait.Done() // writers that collided must not collide in step
	cancel()
	err := q.catchUp()
	for _, c := range calls {
		c.tries++
		switch {
		case err != nil:
			c.reply(eventstore.Appended{}, err)
		case c.tries > eventstore.TailRetryMax:
			c.reply(eventstore.Appended{}, &domain.Error{
				Op: "quorum.Append", Kind: domain.Unavailable, Ref: string(c.stream),
				Msg: "other writers moved the tail each time", Err: eventstore.ErrNoQuorum,
			})
		default:
			again = append(again, c)
		}
	}
	return again
}

// goesOn tells whether there is another database than the one that was found damaged.
func (q *sequencer) goesOn(err error) bool { return q.distrust != nil && q.distrust(err) }

// catchUp reads what others appended. An error means that nothing of ours was written.
func (q *sequencer) catchUp() error {
	ctx, cancel := context.WithTimeout(q.life, eventstore.LinearizableWait)
	defer cancel()
	_, err := q.loader.into(ctx, q.in)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, eventstore.ErrTimelineChanged):
		q.mirror.End(err)
		if q.behind != nil {
			q.behind(err)
		}
		return err
	case errors.Is(err, eventstore.ErrCorrupt):
		if !q.goesOn(err) {
			q.mirror.End(err)
			return err
		}
	case q.life.Err() != nil:
		return eventstore.ErrClosed
	}
	return &domain.Error{
		Op: "quorum.Append", Kind: domain.Unavailable, Err: errors.Join(eventstore.ErrNoQuorum, err),
	}
}
