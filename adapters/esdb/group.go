package esdb

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"weft/domain"
	"weft/eventstore"
)

// Limits and defaults of persistent subscriptions.
const (
	groupsMax       = 1024
	consumersMax    = 256  // of one group, unless its settings say less
	bufferMax       = 4096 // events in the hands of one consumer
	parkedMax       = 10_000
	groupNameMax    = 200 // bytes
	retriesDefault  = 10
	timeoutDefault  = 30 * time.Second
	saveDefault     = 2 * time.Second
	saveManyDefault = 1000
	sweepTime       = 100 * time.Millisecond
)

// The strategies by which a group chooses a consumer.
const (
	roundRobin = "RoundRobin"
	single     = "DispatchToSingle"
	pinned     = "Pinned"
)

// settings is what a client chose for a group. Zero takes the default, a negative time never comes.
type settings struct {
	Retries   int           `json:"max_retry_count,omitempty"`
	Timeout   time.Duration `json:"message_timeout_ns,omitempty"`
	SaveAfter time.Duration `json:"checkpoint_after_ns,omitempty"`
	SaveMany  int           `json:"min_checkpoint_count,omitempty"`
	Consumers int           `json:"max_subscriber_count,omitempty"`
	Strategy  string        `json:"consumer_strategy,omitempty"`
}

// source says what a group follows.
type source struct {
	Stream     domain.StreamID `json:"stream,omitempty"` // empty: $all
	Least      domain.Revision `json:"after_revision"`   // of the stream
	Streams    []string        `json:"stream_prefixes,omitempty"`
	Types      []string        `json:"type_prefixes,omitempty"`
	StreamLike string          `json:"stream_pattern,omitempty"`
	TypeLike   string          `json:"type_pattern,omitempty"`
	Tenant     string          `json:"tenant,omitempty"` // of whoever made the group
}

// memo is the durable part of a group: everything up to At was acknowledged, but for what is parked
// or to be replayed.
type memo struct {
	Name     string            `json:"group"`
	Source   source            `json:"source"`
	Settings settings          `json:"settings"`
	Start    domain.Position   `json:"start"`
	At       domain.Position   `json:"at"`
	Parked   []domain.Position `json:"parked,omitempty"`
	Replay   []domain.Position `json:"replay,omitempty"`
}

// work is an event that a group has read and not finished.
type work struct {
	event   eventstore.Recorded
	before  domain.Position // where the group was before it
	owner   *consumer       // nil: it waits for one
	due     time.Time       // when the owner's time is up
	retries int
	replay  bool // it was parked once
}

// consumer is one connection that reads from a group.
type consumer struct {
	window int // events it holds at most
	from   string
	actor  string
	out    chan delivery // as roomy as the window, so it never blocks
	gone   chan struct{} // closed when the group lets go of it

	held  int // guarded by group.mu, as all below
	total int64
	why   error
	over  bool
}

// delivery is an event on its way to a consumer.
type delivery struct {
	event   *eventstore.Recorded
	retries int
}

// group is a persistent subscription that has consumers.
type group struct {
	key    string
	server *Server
	sel    selection
	cancel context.CancelFunc
	pumped chan struct{} // closed when pump has ended

	mu struct {
		sync.Mutex
		memo      memo
		pending   []*work // in the order of delivery
		byID      map[domain.UUID]*work
		read      domain.Position // how far the log was read
		acked     int             // since the last save
		changed   time.Time       // the first change that is not saved; zero: all is
		consumers []*consumer
		turn      int
		ended     bool
	}
	room *sync.Cond // on mu: the pump may read more
}

func newGroup(s *Server, key string, m memo, sel selection) *group {
	g := &group{key: key, server: s, sel: sel, pumped: make(chan struct{})}
	g.mu.memo, g.mu.read, g.mu.byID = m, m.At, map[domain.UUID]*work{}
	g.room = sync.NewCond(&g.mu.Mutex)
	return g
}

// start begins to read the log. The group lives until stop.
func (g *group) start(ctx context.Context) {
	ctx, g.cancel = context.WithCancel(ctx)
	go func() {
		defer close(g.pumped)
		if err := g.pump(ctx); ctx.Err() == nil {
			g.server.log.Warn("esdb persistent subscription ends", "group", g.key, "err", err)
			g.end(err)
		}
	}()
}

// stop ends the group, tells its consumers why, and waits for the pump. The cursor is the caller's
// to save.
func (g *group) stop(why error) {
	g.end(why)
	g.cancel()
	<-g.pumped
}

func (g *group) end(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.ended = true
	for _, c := range g.mu.consumers {
		c.dismiss(why)
	}
	g.room.Broadcast()
}

// dismiss lets go of a consumer. The group's mu is held.
func (c *consumer) dismiss(why error) {
	if !c.over {
		c.over, c.why = true, why
		close(c.gone)
	}
}

// pump reads first what is to be replayed, then the log, as far as there is room.
func (g *group) pump(ctx context.Context) error {
	store := g.server.config.Store
	g.mu.Lock()
	replay, after := slices.Clone(g.mu.memo.Replay), g.mu.read
	g.mu.Unlock()
	for _, p := range replay {
		for r, err := range store.ReadAll(ctx, p, eventstore.Backward, domain.Filter{}, 1) {
			if err != nil {
				return err
			}
			if r.Position == p {
				g.add(&work{event: r, replay: true})
			}
		}
	}
	sub, err := store.Subscribe(ctx, after, g.sel.filter)
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // it ends here
	for {
		item, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		g.take(item)
	}
}

// take adds what the log gave, and then waits for room.
func (g *group) take(item eventstore.Item) {
	g.mu.Lock()
	before := g.mu.read
	g.mu.read = max(g.mu.read, item.Position)
	r := item.Event
	fits := item.Kind == eventstore.Event && g.sel.match(&r) &&
		(g.mu.memo.Source.Stream == "" || r.Revision > g.mu.memo.Source.Least)
	if !fits {
		g.advance(g.server.config.Now())
	}
	g.mu.Unlock()
	if fits {
		g.add(&work{event: r, before: before})
	}
}

func (g *group) add(w *work) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.pending = append(g.mu.pending, w)
	g.mu.byID[w.event.ID.UUID] = w
	g.hand(g.server.config.Now())
	for !g.mu.ended && len(g.mu.pending) >= g.capacity() {
		g.room.Wait()
	}
}

// capacity is how many unfinished events the group holds: twice what its consumers take, so that
// none of them waits for the log. mu is held.
func (g *group) capacity() int {
	n := 1
	for _, c := range g.mu.consumers {
		n += 2 * c.window
	}
	return n
}

// advance moves the cursor up to the first event that is not finished. mu is held.
func (g *group) advance(now time.Time) {
	at := g.mu.read
	for _, w := range g.mu.pending {
		if !w.replay {
			at = min(at, w.before)
		}
	}
	if at > g.mu.memo.At {
		g.mu.memo.At = at
		g.touch(now)
	}
}

// touch notes that there is something to save. mu is held.
func (g *group) touch(now time.Time) {
	if g.mu.changed.IsZero() {
		g.mu.changed = now
	}
}

// hand gives waiting events to consumers that have room. mu is held.
func (g *group) hand(now time.Time) {
	for _, w := range g.mu.pending {
		if w.owner != nil {
			continue
		}
		c := g.choose(w)
		if c == nil {
			return
		}
		c.held++
		c.total++
		w.owner = c
		timeout := cmp.Or(g.mu.memo.Settings.Timeout, timeoutDefault)
		w.due = time.Time{}
		if timeout > 0 {
			w.due = now.Add(timeout)
		}
		c.out <- delivery{&w.event, w.retries}
	}
}

// choose gives the consumer that is to have an event, nil when none has room. mu is held.
func (g *group) choose(w *work) *consumer {
	n := len(g.mu.consumers)
	if n == 0 {
		return nil
	}
	first := g.mu.turn
	switch g.mu.memo.Settings.Strategy {
	case single:
		first = 0
	case pinned:
		first = int(domain.DeriveUUID(domain.UUID{}, string(w.event.Stream))[0])
	default:
		g.mu.turn = (g.mu.turn + 1) % n
	}
	for i := range n {
		c := g.mu.consumers[(first+i)%n]
		if c.held < c.window && !c.over {
			return c
		}
	}
	return nil
}

// join adds a consumer. It fails when the group is over or full.
func (g *group) join(c *consumer) (full, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.ended {
		return false, false
	}
	if len(g.mu.consumers) >= cmp.Or(g.mu.memo.Settings.Consumers, consumersMax) {
		return true, false
	}
	g.mu.consumers = append(g.mu.consumers, c)
	g.hand(g.server.config.Now())
	g.room.Broadcast()
	return false, true
}

// leave takes a consumer out; what it held goes to the others. empty tells that it was the last.
func (g *group) leave(c *consumer) (empty bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.dismiss(nil)
	g.mu.consumers = slices.DeleteFunc(g.mu.consumers, func(x *consumer) bool { return x == c })
	g.mu.turn = 0
	for _, w := range g.mu.pending {
		if w.owner == c {
			w.owner = nil
			w.retries++
		}
	}
	g.hand(g.server.config.Now())
	return len(g.mu.consumers) == 0
}

// ack finishes events of a consumer. Those it does not hold are none of its business.
func (g *group) ack(c *consumer, ids []domain.UUID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range ids {
		if w := g.mu.byID[id]; w != nil && w.owner == c {
			g.done(w)
		}
	}
	g.settle()
}

// settle hands on and lets the pump go on, after events were finished or given back. mu is held.
func (g *group) settle() {
	now := g.server.config.Now()
	g.advance(now)
	g.hand(now)
	g.room.Broadcast()
}

// done takes an event out of the group's hands. mu is held.
func (g *group) done(w *work) {
	w.free()
	g.mu.acked++
	g.mu.pending = slices.DeleteFunc(g.mu.pending, func(x *work) bool { return x == w })
	delete(g.mu.byID, w.event.ID.UUID)
	if w.replay {
		p := w.event.Position
		g.mu.memo.Replay = slices.DeleteFunc(slices.Clone(g.mu.memo.Replay),
			func(x domain.Position) bool { return x == p })
		g.touch(g.server.config.Now())
	}
}

// free takes an event out of its owner's hands. The group's mu is held.
func (w *work) free() {
	if w.owner != nil {
		w.owner.held--
		w.owner = nil
	}
}

// park sets an event aside, for an operator to look at and replay. mu is held.
func (g *group) park(w *work, why string) {
	g.server.log.Warn("esdb event parked", "group", g.key, "position", w.event.Position.String(),
		"type", w.event.Type, "retries", w.retries, "why", why)
	g.done(w)
	if len(g.mu.memo.Parked) >= parkedMax {
		g.server.log.Error("esdb event skipped: too many are parked", "group", g.key,
			"position", w.event.Position.String())
		return
	}
	g.mu.memo.Parked = append(slices.Clone(g.mu.memo.Parked), w.event.Position)
	g.touch(g.server.config.Now())
}

// again gives an event back to be delivered once more, or parks it when that was often enough. mu
// is held.
func (g *group) again(w *work, why string) {
	w.free()
	w.retries++
	if w.retries > cmp.Or(g.mu.memo.Settings.Retries, retriesDefault) {
		g.park(w, why)
	}
}

// expire takes events back whose consumer's time is up.
func (g *group) expire(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	some := false
	for _, w := range slices.Clone(g.mu.pending) {
		if w.owner != nil && !w.due.IsZero() && now.After(w.due) {
			g.again(w, "not acknowledged in time")
			some = true
		}
	}
	if some {
		g.settle()
	}
}

// unsaved gives what is to be saved, if its time has come or it must be.
func (g *group) unsaved(now time.Time, must bool) (memo, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &g.mu.memo.Settings
	switch {
	case g.mu.changed.IsZero():
		return memo{}, false
	case must, g.mu.acked >= cmp.Or(s.SaveMany, saveManyDefault),
		now.Sub(g.mu.changed) >= cmp.Or(s.SaveAfter, saveDefault):
		g.mu.changed, g.mu.acked = time.Time{}, 0
		return g.mu.memo, true
	}
	return memo{}, false
}
