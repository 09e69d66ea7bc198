package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/quorum"
	"weft/eventstore/vault"
	"weft/projections"
	"weft/projections/reconciler"
)

// Times of leading.
const (
	// leadRest is the pause after a failure and between looks at the cluster.
	leadRest = 500 * time.Millisecond
	// downAfter is how long a node's lease must be gone before the log says that it is down.
	downAfter = 3 * time.Second
	// memberStep bounds one change of the voters.
	memberStep = 60 * time.Second
)

// leading keeps this node's lease, follows the members of the log, and, while this node holds the
// role, runs the reconciler and what else one node does for all.
type leading struct {
	o     Options
	codec *codec.Registry
	vault *vault.Vault
	store *quorum.Store
	exec  *eventstore.Executor
	run   *projections.Runner
	views *views
	dir   *dataDir
	log   *slog.Logger
	peer  *peerPort
	to    *dispatcher
	bg    *background

	term  atomic.Uint64 // terms of this incarnation
	holds atomic.Bool   // this node has the role
}

// startLeading runs until the node closes.
func startLeading(
	o Options, s *quorum.Store, c *codec.Registry, k *vault.Vault, x *eventstore.Executor,
	r *projections.Runner, v *views, to *dispatcher, d *dataDir, p *peerPort, bg *background,
	log *slog.Logger,
) (*leading, func()) {
	l := &leading{
		o: o, codec: c, vault: k, store: s, exec: x, run: r, views: v, dir: d, log: log, peer: p, to: to,
		bg: bg,
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.repeat(ctx, "the members of the log", l.follow) })
	wg.Go(func() { l.repeat(ctx, "the node's lease", l.reign) })
	wg.Go(func() { l.repeat(ctx, "what is damaged of the log", l.report) })
	wg.Go(func() { l.repeatAt(ctx, "this node's archive of the log", l.archived) })
	wg.Go(func() { l.scrub(ctx) })
	return l, func() {
		cancel()
		wg.Wait()
	}
}

// repeat runs something again and again until the context ends. A failure is said once, until it
// is another one, and shown until it is over.
func (l *leading) repeat(ctx context.Context, what string, f func(context.Context) error) {
	l.repeatAt(ctx, what, func(ctx context.Context) (domain.Position, error) { return 0, f(ctx) })
}

// repeatAt is repeat for what stands at a position of the log.
func (l *leading) repeatAt(
	ctx context.Context, what string, f func(context.Context) (domain.Position, error),
) {
	defer l.bg.end(what)
	said := ""
	for ctx.Err() == nil {
		at, err := f(ctx)
		if ctx.Err() == nil {
			l.bg.reached(l.run.Position())
			l.bg.note(what, at, err)
		}
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			l.log.Warn(what, "err", err)
		}
		pause(ctx, leadRest)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// reconciling names the loop among the work of the node that leads.
const reconciling = "the reconciler"

// archived tells where this node's own archive of the log stands, and why it does not grow.
func (l *leading) archived(context.Context) (domain.Position, error) { return l.store.Archived() }

// follow makes of this node what the list of members says, and keeps where others are.
func (l *leading) follow(ctx context.Context) error {
	if err := l.store.Follow(ctx); err != nil {
		return err
	}
	now := urls(l.views.topology, l.dir.id.Node)
	l.store.Know(now)
	if slices.Equal(now, l.dir.id.Members) || len(now) == 0 {
		return nil
	}
	l.dir.id.Members = now
	return l.dir.save()
}

// reign holds a lease, waits for the role, and leads until the lease or the role is lost.
func (l *leading) reign(ctx context.Context) error {
	lease, err := l.store.NodeLease(ctx, l.dir.id.Node)
	if err != nil {
		return err
	}
	defer lease.Close()
	life, end := context.WithCancel(ctx)
	defer end()
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-lease.Lost():
			end()
		case <-life.Done():
		}
	})
	defer watch.Wait()
	defer end()
	for {
		if err := l.store.Campaign(life, lease, l.dir.id.Node); err != nil {
			return err
		}
		if err := l.lead(life); err != nil {
			return err
		}
	}
}

// lead runs one term. It returns when the context ends or another term has begun.
func (l *leading) lead(ctx context.Context) error {
	loop := reconciler.New(reconciler.Config{
		Node: l.dir.id.Node, Incarnation: l.dir.id.Incarnation, Term: l.term.Add(1),
		Commands: l.exec, Dispatcher: l.to, Views: loopViews{l.run, l.views}, Logger: l.log,
		Now: time.Now, After: time.After,
		Told: func(err error) { l.bg.note(reconciling, 0, err) },
	})
	defer l.bg.end(reconciling)
	term, end := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer end()
	l.holds.Store(true)
	defer l.holds.Store(false)
	work.Go(func() {
		w := &watcher{leading: l, gone: map[domain.NodeID]time.Time{}}
		l.repeat(term, "the nodes of the cluster", w.look)
	})
	work.Go(func() {
		m := &electorate{leading: l, since: map[uint64]time.Time{}, down: map[domain.NodeID]time.Time{}}
		l.repeat(term, "the voters of the log", m.step)
	})
	work.Go(func() { // apart from the seats, which must not wait for a voter that reads all it has
		c := &comparison{leading: l, last: time.Now()}
		l.repeat(term, "the databases of the voters", c.step)
	})
	work.Go(func() {
		p := &publishing{leading: l, runs: map[domain.OutletID]*publication{}}
		p.run(term)
	})
	work.Go(func() {
		a := &archivist{leading: l}
		l.repeatAt(term, "the archive of the log", a.keepAt)
	})
	work.Go(func() {
		m := &engineer{leading: l}
		l.repeat(term, "the log that takes changes of intent", m.step)
	})
	work.Go(func() {
		e := &eraser{leading: l}
		l.repeat(term, "the keys of erased users", e.step)
	})
	err := loop.Run(term)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watcher tells the log which nodes are there. It belongs to one goroutine.
type watcher struct {
	*leading
	gone map[domain.NodeID]time.Time // since when a node holds no lease
}

// look compares leases with what the log says. A node is down when it has held no lease for
// downAfter, counted from the beginning of this term at the earliest.
func (w *watcher) look(ctx context.Context) error {
	alive, err := w.store.Alive(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, n := range w.views.topology.Nodes() {
		id := n.Node.Node
		if slices.Contains(alive, id) {
			delete(w.gone, id)
			if n.Down {
				back := &cluster.NodeReturned{Incarnation: n.Incarnation}
				failed = errors.Join(failed, w.notice(ctx, id, back))
			}
			continue
		}
		since, known := w.gone[id]
		if !known {
			since = time.Now()
			w.gone[id] = since
		}
		if !n.Down && !n.Removed && time.Since(since) >= downAfter {
			failed = errors.Join(failed, w.notice(ctx, id, &cluster.NodeDown{
				Incarnation: n.Incarnation, Seen: since.UTC().Truncate(time.Millisecond),
			}))
		}
	}
	return failed
}

func (w *watcher) notice(ctx context.Context, id domain.NodeID, fact domain.Event) error {
	_, token := w.views.topology.Leader()
	_, err := w.exec.Do(ctx, domain.Request{
		Command: cluster.Notice{Node: id, Fact: fact}, Token: token,
		Caller: domain.Caller{Actor: "reconciler/" + w.dir.id.Node.String()},
	})
	return err
}

// electorate keeps the number of voters right. It belongs to one goroutine.
type electorate struct {
	*leading
	since map[uint64]time.Time        // when a learner was first seen
	down  map[domain.NodeID]time.Time // since when the log says that a node is down
}

// step makes the one next change, if there is one, and records it.
func (e *electorate) step(ctx context.Context) error {
	members, err := e.store.Members(ctx)
	if err != nil {
		return err
	}
	nodes, byURL := e.candidates()
	seats := make([]cluster.Seat, 0, len(members))
	for _, m := range members {
		s := cluster.Seat{Member: m.ID, URL: m.URL, Learner: m.Learner}
		if id, err := domain.ParseUUID(m.Name); err == nil {
			s.Node.UUID = id
		}
		if m.Learner {
			if e.since[m.ID].IsZero() {
				e.since[m.ID] = time.Now()
			}
			s.Waiting = time.Since(e.since[m.ID])
			if s.CaughtUp, err = e.store.CaughtUp(ctx, m); err != nil {
				return err
			}
		}
		seats = append(seats, s)
	}
	if err := e.record(ctx, seats, byURL); err != nil {
		return err
	}
	c := cluster.PlanVoters(nodes, seats, e.store.Leader(), e.o.VoterGrace)
	ctx, cancel := context.WithTimeout(ctx, memberStep)
	defer cancel()
	for _, n := range c.Add {
		e.log.Info("a node begins to copy the log", "node", n.URL, "why", c.Why)
		if err := e.store.AddLearner(ctx, n.URL); err != nil {
			return err
		}
	}
	if len(c.Promote) > 0 {
		ids := make([]uint64, 0, len(c.Promote))
		for _, s := range c.Promote {
			e.log.Info("a node votes", "node", s.URL, "why", c.Why)
			ids = append(ids, s.Member)
		}
		return e.store.Promote(ctx, ids...)
	}
	if c.Remove == nil {
		return nil
	}
	e.log.Info("a node loses its vote", "node", c.Remove.URL, "why", c.Why)
	if err := e.store.Remove(ctx, c.Remove.Member); err != nil {
		return err
	}
	return e.enroll(ctx, &cluster.VoterRemoved{
		Node: nodeOf(*c.Remove, byURL), Member: c.Remove.Member, Why: c.Why,
	})
}

// nodeOf tells whose a seat is: as it said itself, or by its address; zero where nobody is known.
func nodeOf(s cluster.Seat, byURL map[string]domain.NodeID) domain.NodeID {
	if !s.Node.IsZero() {
		return s.Node
	}
	return byURL[s.URL]
}

// candidates gives the nodes as the choice of voters sees them.
func (e *electorate) candidates() ([]cluster.Candidate, map[string]domain.NodeID) {
	var list []cluster.Candidate
	byURL, damaged := map[string]domain.NodeID{}, e.views.topology.Damaged()
	for _, n := range e.views.topology.Nodes() {
		id := n.Node.Node
		if _, taken := byURL[n.Endpoint.Peer]; !taken || !n.Down && !n.Removed {
			byURL[n.Endpoint.Peer] = id // of two at one address, the one that is there
		}
		c := cluster.Candidate{
			Node: id, URL: n.Endpoint.Peer, Down: n.Down, Leaving: n.Drained || n.Removed,
			Place: n.Location,
		}
		for _, d := range damaged {
			if d.Node == id && d.Part == cluster.PartDatabase {
				c.Damaged = d.Member
			}
		}
		if !n.Down {
			delete(e.down, id)
		} else if e.down[id].IsZero() {
			e.down[id] = time.Now()
		}
		if n.Down {
			c.DownFor = time.Since(e.down[id])
		}
		if n.Lost { // the operator's word is enough
			c.Down, c.DownFor = true, max(c.DownFor, e.o.VoterGrace)
		}
		list = append(list, c)
	}
	return list, byURL
}

// record notes what etcd's list says, so that a change which was cut short is noted all the same.
func (e *electorate) record(
	ctx context.Context, seats []cluster.Seat, byURL map[string]domain.NodeID,
) error {
	for _, s := range seats {
		id := nodeOf(s, byURL)
		n, ok := e.views.topology.Node(id)
		if !ok {
			continue
		}
		var fact domain.Event
		switch {
		case s.Learner && n.Vote != "learner":
			fact = &cluster.LearnerAdded{Node: id, Member: s.Member}
		case !s.Learner && n.Vote != "voter":
			fact = &cluster.VoterPromoted{Node: id, Member: s.Member}
		default:
			continue
		}
		if err := e.enroll(ctx, fact); err != nil {
			return err
		}
	}
	return nil
}

func (l *leading) enroll(ctx context.Context, fact domain.Event) error {
	_, token := l.views.topology.Leader()
	_, err := l.exec.Do(ctx, domain.Request{
		Command: cluster.Enroll{Cluster: l.dir.id.Cluster, Fact: fact}, Token: token,
		Caller: domain.Caller{Actor: "reconciler/" + l.dir.id.Node.String()},
	})
	return err
}
