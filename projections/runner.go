package projections

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"weft/domain"
	"weft/eventstore"
)

// Decoder turns a stored event into records; eventstore.Codec is one.
type Decoder interface {
	Decode(h domain.Header, data []byte) ([]domain.Record, error)
}

// Config is what a Runner works with. Store and Codec are required; names of views are unique.
type Config struct {
	Store eventstore.Store
	Codec Decoder
	Views []View
	// KeepEvery replaces the constant of that name in tests; 0 means the constant.
	KeepEvery uint64
}

// Runner feeds the views. One goroutine, begun by Start and ended by Close, owns the fold.
type Runner struct {
	cfg    Config
	builds chan struct{} // holds a token for every build under way
	life   context.Context
	end    context.CancelFunc
	done   sync.WaitGroup
	mu     struct {
		sync.Mutex // held while a record is applied, so a state is never read half-way
		views      []*running
		position   domain.Position // of the last record offered to every view
		caught     bool            // everything known at the start has been folded
		changed    chan struct{}   // closed at the next change, nil while nobody waits
		err        error           // why the fold as a whole has stopped
		started    bool
	}
}

// running is a view with its place. Its fields are guarded by the runner's mutex.
type running struct {
	view    View
	at      Checkpoint
	skipped uint64
	err     error
	kept    []keptState // in order of position
}

type keptState struct {
	at   Checkpoint
	view Keeper
}

// New makes a Runner that stands before the first event. An incomplete configuration is Invalid.
func New(cfg Config) (*Runner, error) {
	var c domain.Checker
	c.Check(cfg.Store != nil, "store", "missing")
	c.Check(cfg.Codec != nil, "codec", "missing")
	names := map[string]bool{}
	for i, v := range cfg.Views {
		c.Check(v != nil && !names[v.Name()], fmt.Sprintf("views[%d]", i), "missing or named twice")
		if v != nil {
			names[v.Name()] = true
		}
	}
	if err := c.Err("projections.New", ""); err != nil {
		return nil, err
	}
	if cfg.KeepEvery == 0 {
		cfg.KeepEvery = KeepEvery
	}
	r := &Runner{cfg: cfg, builds: make(chan struct{}, BuildsMax)}
	r.life, r.end = context.WithCancel(context.Background())
	for _, v := range cfg.Views {
		r.mu.views = append(r.mu.views, &running{view: v, at: Checkpoint{Version: v.Version()}})
	}
	return r, nil
}

// Start begins to fold from the first event and goes on with what comes. It does not wait; CaughtUp
// does. A second call, and one after Close, does nothing.
func (r *Runner) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.started || r.life.Err() != nil {
		return nil
	}
	sub, err := r.cfg.Store.Subscribe(ctx, 0, domain.Filter{})
	if err != nil {
		return domain.Wrap(err, "projections.Start", "")
	}
	r.mu.started = true
	r.done.Go(func() { r.run(sub) })
	return nil
}

// Close ends the fold and waits for it. The views keep the state they have.
func (r *Runner) Close() error {
	r.mu.Lock()
	r.end()
	r.mu.Unlock()
	r.done.Wait()
	return nil
}

func (r *Runner) run(sub eventstore.Subscription) {
	defer func() { _ = sub.Close() }()
	for {
		item, err := sub.Next(r.life)
		if err == nil {
			err = r.take(item)
		}
		if err != nil {
			r.stop(err)
			return
		}
	}
}

func (r *Runner) stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.life.Err() != nil {
		err = eventstore.ErrClosed
	}
	r.mu.err = domain.Wrap(err, "projections.Run", "")
	r.wake()
}

// take feeds one item. An error stops the fold as a whole: no view could go on past it.
func (r *Runner) take(item eventstore.Item) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch item.Kind {
	case eventstore.CaughtUp:
		r.mu.caught = true
		r.wake()
	case eventstore.Event:
		records, err := r.cfg.Codec.Decode(item.Event.Header, item.Event.Data)
		if err != nil {
			return err
		}
		for _, v := range r.mu.views {
			v.offer(records, Checkpoint{Position: item.Position, Hash: item.Hash}, r.cfg.KeepEvery)
		}
		r.mu.position = item.Position
		r.wake()
	case eventstore.Checkpoint, eventstore.FellBehind: // no filter, and order is kept either way
	}
	return nil
}

// offer folds the events of one record into a view that still runs (P2, P3).
func (v *running) offer(records []domain.Record, at Checkpoint, keepEvery uint64) {
	if v.err != nil {
		return
	}
	for i := range records {
		if records[i].Event == nil {
			v.skipped++
		}
	}
	if v.err = apply(v.view, records); v.err != nil {
		return
	}
	at.Version = v.at.Version
	v.at = at
	if k, ok := v.view.(Keeper); ok && at.Position.N()%keepEvery == 0 {
		if c, ok := k.Clone().(Keeper); ok {
			v.kept = append(v.kept, keptState{at, c})
			v.kept = v.kept[max(0, len(v.kept)-KeptMax):]
		}
	}
}

// apply folds the events of one record into a view.
func apply(v View, records []domain.Record) error {
	for i := range records {
		if err := v.Apply(records[i]); err != nil {
			ref := fmt.Sprintf("%s at %s", v.Name(), records[i].Position)
			return domain.Wrap(err, "projections.Apply", ref)
		}
	}
	return nil
}

func (r *Runner) wake() {
	if r.mu.changed != nil {
		close(r.mu.changed)
		r.mu.changed = nil
	}
}

// Changed gives a channel that is closed once the views have moved on or one has stopped. A caller
// takes the channel first and looks second, so that nothing falls between.
func (r *Runner) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.channel()
}

func (r *Runner) channel() <-chan struct{} {
	if r.mu.changed == nil {
		r.mu.changed = make(chan struct{})
	}
	return r.mu.changed
}

// Position is that of the last record the views have seen.
func (r *Runner) Position() domain.Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.position
}

// Status tells of every view, in the order of the configuration.
func (r *Runner) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Status, len(r.mu.views))
	for i, v := range r.mu.views {
		out[i] = Status{v.view.Name(), v.at, v.skipped, v.err}
	}
	return out
}

// Hash gives the state hash of a live view and the checkpoint it stands at. An unknown name is
// NotFound.
func (r *Runner) Hash(name string) ([32]byte, Checkpoint, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.mu.views {
		if v.view.Name() == name {
			sum, err := StateHash(v.view)
			return sum, v.at, err
		}
	}
	return [32]byte{}, Checkpoint{}, domain.Errorf(domain.NotFound, "no view %q", name)
}

// Wait returns once the named views, or all when none is named, have seen a position: a reader that
// brings the position of its own write finds it. It waits at most eventstore.LinearizableWait and
// is then Unavailable. A view that stopped before the position, or a fold that did, is told at
// once.
func (r *Runner) Wait(ctx context.Context, p domain.Position, names ...string) error {
	within, cancel := context.WithTimeout(ctx, eventstore.LinearizableWait)
	defer cancel()
	err := r.until(within, func() (bool, error) { return r.reached(p, names) })
	if domain.IsKind(err, domain.Aborted) && ctx.Err() == nil {
		return &domain.Error{
			Op: "projections.Wait", Kind: domain.Unavailable, Ref: p.String(),
			Msg: "the views are not there yet", Remedy: "try again", Err: err,
		}
	}
	return err
}

// CaughtUp returns once everything that the log held at Start has been folded.
func (r *Runner) CaughtUp(ctx context.Context) error {
	return r.until(ctx, func() (bool, error) { return r.mu.caught, nil })
}

// reached runs under the mutex.
func (r *Runner) reached(p domain.Position, names []string) (bool, error) {
	all := true
	for _, v := range r.mu.views {
		if len(names) > 0 && !slices.Contains(names, v.view.Name()) {
			continue
		}
		if v.at.Position < p && v.err != nil {
			return false, v.err
		}
		all = all && v.at.Position >= p
	}
	return all && r.mu.position >= p, nil
}

func (r *Runner) until(ctx context.Context, done func() (bool, error)) error {
	for {
		r.mu.Lock()
		ok, err := done()
		if !ok && err == nil {
			err = r.mu.err
		}
		changed := r.channel()
		r.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &domain.Error{Op: "projections.Wait", Kind: domain.Aborted, Err: ctx.Err()}
		}
	}
}
