// Package reconciler is THE LOOP: it wakes when a view changed, asks the policy engine what to do,
// records the plan and its reasons, sends the orders, and records what became of them. It is level
// triggered: it looks at wishes and facts, never at the event that woke it, so a lost wake-up or a
// crash in the middle costs a repetition and nothing else. With nothing to do it does nothing.
//
//	L1 Every order carries the token of the leadership it was given under.
//	L2 A plan is recorded before its first order is sent; an outcome before the next plan is made.
//	L3 The loop converges: once wishes are facts it appends no event.
package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/policy"
	"weft/domain/tenancy"
	"weft/domain/volume"
	"weft/eventstore"
)

// Limits of the loop.
const (
	// RetryMin is how long a failed step rests before its next try; it doubles with each failure.
	RetryMin = 500 * time.Millisecond
	// RetryMax bounds that rest.
	RetryMax = 30 * time.Second
	// settle bounds how long the loop waits to see its own events in the views.
	settle = 5 * time.Second
)

// Commands runs commands; the executor of the event store does.
type Commands interface {
	Do(ctx context.Context, r domain.Request) (eventstore.Result, error)
}

// Dispatcher brings an order to a node's agent and its outcome back, and questions likewise.
type Dispatcher interface {
	Obey(ctx context.Context, o command.Order) command.Outcome
	Ask(ctx context.Context, q command.Question) (command.Answer, error)
}

// Views are what the loop looks at.
type Views interface {
	Desired() policy.Desired
	Observed() policy.Observed
	// Above gives the tenants above one, from the nearest to the top.
	Above(domain.TenantID) []domain.TenantID
	// Changed gives a channel that is closed at the next change after the call.
	Changed() <-chan struct{}
	// Wait returns once the views hold a position.
	Wait(ctx context.Context, p domain.Position) error
}

// Config is what New needs.
type Config struct {
	Node        domain.NodeID
	Incarnation uint64
	// Term tells the terms of one incarnation apart: each takes a token of its own.
	Term       uint64
	Commands   Commands
	Dispatcher Dispatcher
	Views      Views
	Logger     *slog.Logger
	Now        func() time.Time
	// After is time.After, or a double of it.
	After func(time.Duration) <-chan time.Time
	// Told, when not nil, hears how each round ended.
	Told func(err error)
}

// Reconciler runs the loop for one term of leadership.
type Reconciler struct {
	cfg    Config
	token  uint64
	rests  []rest
	rounds int64
	noted  domain.Position // the last fact about a group of snapshots that it recorded
}

// rest keeps a failed step from being tried again at once.
type rest struct {
	key   string
	delay time.Duration
	until time.Time
}

// New makes a loop that has not run yet.
func New(cfg Config) *Reconciler { return &Reconciler{cfg: cfg} }

// Run acquires the role and loops until the context ends. It gives a Stale error when another one
// has taken the role since.
func (r *Reconciler) Run(ctx context.Context) error {
	if err := r.acquire(ctx); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer end()
	beside.Go(func() { newSchedule(r).run(ctx) })
	for {
		changed := r.cfg.Views.Changed()
		again, err := r.Round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if domain.IsKind(err, domain.Stale) {
			return err
		}
		if r.cfg.Told != nil {
			r.cfg.Told(err)
		}
		if err != nil {
			r.cfg.Logger.Warn("reconcile", "err", err)
			again = RetryMin
		}
		var timer <-chan time.Time
		if again > 0 {
			timer = r.cfg.After(again)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer:
		}
	}
}

// acquire takes the reconciler's role; the place of the event is the fencing token.
func (r *Reconciler) acquire(ctx context.Context) error {
	if _, err := r.do(ctx, "role", cluster.OpenRole{}, 0); err != nil {
		return err
	}
	res, err := r.do(ctx, "acquire/"+strconv.FormatUint(r.cfg.Term, 10), cluster.Acquire{
		Node: r.cfg.Node, Incarnation: r.cfg.Incarnation,
	}, 0)
	if err != nil {
		return err
	}
	r.token = uint64(domain.PositionOf(res.Position.Timeline(), uint64(res.Revision)))
	return r.cfg.Views.Wait(ctx, res.Position)
}

// do runs a command of the loop's own. key makes it repeatable within this incarnation.
func (r *Reconciler) do(ctx context.Context, key string, c domain.Command,
	token uint64,
) (eventstore.Result, error) {
	return r.cfg.Commands.Do(ctx, domain.Request{
		Command: c,
		ID: domain.CommandID{UUID: domain.DeriveUUID(r.cfg.Node.UUID,
			strconv.FormatUint(r.cfg.Incarnation, 10), key)},
		Caller: domain.Caller{Actor: "reconciler/" + r.cfg.Node.String()},
		Token:  token,
	})
}

// Round makes one plan and carries it out. It gives how long until a step that failed may be tried
// again; zero when there is none.
func (r *Reconciler) Round(ctx context.Context) (again time.Duration, err error) {
	plan := policy.Reconcile(r.cfg.Views.Desired(), r.cfg.Views.Observed())
	steps := slices.DeleteFunc(slices.Clone(plan.Steps), func(s policy.Step) bool {
		return r.resting(key(s))
	})
	r.rounds++
	id := domain.PlanID{UUID: domain.DeriveUUID(r.cfg.Node.UUID, "plan",
		strconv.FormatUint(r.token, 10), plan.Base.String(), strconv.FormatInt(r.rounds, 10))}
	last, err := r.decisions(ctx, id, plan)
	if err != nil {
		return 0, err
	}
	if len(steps) > 0 {
		if last, err = r.carryOut(ctx, id, plan.Base, steps); err != nil {
			return 0, err
		}
	}
	if last > 0 {
		wait, cancel := context.WithTimeout(ctx, settle)
		defer cancel()
		if err := r.cfg.Views.Wait(wait, last); err != nil {
			return 0, err
		}
	}
	return r.nextRest(), nil
}

func key(s policy.Step) string {
	switch {
	case s.Finish != nil:
		return "finish/" + s.Finish.App.String()
	case s.Fact != nil, s.Order.Kind == command.CutSnapshots:
		return "snapshot/" + s.Group.String() + "/" + s.Order.Snapshot.String()
	case s.Order.Kind == command.DeleteSnapshot:
		return "delete_snapshot/" + s.Order.Snapshot.String()
	}
	return s.Order.Kind.String() + "/" + s.Order.Volume.String()
}

// decisions records why each volume was placed where, or why nowhere.
func (r *Reconciler) decisions(ctx context.Context, id domain.PlanID,
	plan policy.Plan,
) (last domain.Position, err error) {
	for _, p := range plan.Placements {
		var fact domain.Event
		if p.Chosen == nil {
			fact = &policy.PlacementImpossible{
				Volume: p.Volume, Considered: int64(p.Considered), Rejects: p.Rejects,
				Remedies: p.Remedies,
			}
		} else if r.resting(command.CreateVolume.String() + "/" + p.Volume.String()) {
			continue
		} else {
			fact = &policy.PlacementDecided{
				Volume: p.Volume, Plan: id, Node: p.Chosen.Node, Device: p.Chosen.Device,
				Considered: int64(p.Considered), Rejects: p.Rejects, Candidates: p.Candidates,
			}
		}
		res, err := r.do(ctx, "decided/"+id.String()+"/"+p.Volume.String(),
			policy.Decided{Volume: p.Volume, Fact: fact}, r.token)
		if err != nil {
			return 0, err
		}
		if len(res.Events) > 0 {
			last = max(last, res.Position)
		}
	}
	return last, nil
}

// carryOut records the plan, sends its orders one by one and records every outcome.
func (r *Reconciler) carryOut(ctx context.Context, id domain.PlanID, base domain.Position,
	steps []policy.Step,
) (last domain.Position, err error) {
	proposed := &policy.PlanProposed{Plan: id, Base: base}
	for i := range steps {
		s := &steps[i]
		s.Order.ID = domain.CommandID{UUID: domain.DeriveUUID(id.UUID, "step", strconv.Itoa(i))}
		s.Order.Token = r.token
		kind := "finish"
		switch {
		case s.Fact != nil:
			kind = "note"
		case s.Finish == nil:
			kind = s.Order.Kind.String()
		}
		proposed.Steps = append(proposed.Steps, policy.PlanStep{
			Command: s.Order.ID, Kind: kind, Volume: s.Order.Volume, Name: s.Name,
			Node: s.Order.Node, Device: s.Order.Device, Size: s.Order.Size, Why: s.Why,
		})
	}
	if _, err := r.note(ctx, id, "proposed", proposed); err != nil {
		return 0, err
	}
	finished := &policy.PlanFinished{}
	for i := range steps {
		if err := r.step(ctx, &steps[i]); err != nil {
			if ctx.Err() != nil {
				return 0, err
			}
			finished.Failed++
			r.failed(key(steps[i]))
			r.cfg.Logger.Warn("step failed", "step", key(steps[i]), "name", steps[i].Name, "err", err)
			_, err = r.note(ctx, id, "failed/"+strconv.Itoa(i), &policy.PlanStepFailed{
				Command: steps[i].Order.ID, Kind: proposed.Steps[i].Kind, Why: err.Error(),
			})
			if err != nil {
				return 0, err
			}
			continue
		}
		finished.Completed++
		r.succeeded(key(steps[i]))
	}
	return r.note(ctx, id, "finished", finished)
}

func (r *Reconciler) note(ctx context.Context, id domain.PlanID, what string,
	fact domain.Event,
) (domain.Position, error) {
	res, err := r.do(ctx, "note/"+id.String()+"/"+what, policy.Note{Plan: id, Fact: fact}, r.token)
	return res.Position, err
}

// step sends one order and records the fact that follows from it.
func (r *Reconciler) step(ctx context.Context, s *policy.Step) error {
	o := s.Order
	if f := s.Finish; f != nil {
		_, err := r.do(ctx, "finish/"+o.ID.String(),
			intent.FinishDeleteApp{App: f.App, Tenant: f.Tenant}, r.token)
		return err
	}
	if s.Fact != nil || o.Kind == command.CutSnapshots || o.Kind == command.DeleteSnapshot {
		return r.snapshot(ctx, s)
	}
	out := r.cfg.Dispatcher.Obey(ctx, o)
	if out.Err != nil {
		return r.refused(ctx, s, out.Err)
	}
	fact, err := r.fact(s, out)
	if err != nil {
		return err
	}
	if o.Kind == command.DeleteVolume {
		// Before the fact, behind which nobody would come back to it: the share is an intent's, and the
		// log that takes those may be away.
		if err := r.release(ctx, o); err != nil {
			return err
		}
	}
	_, err = r.do(ctx, "fact/"+o.ID.String(), volume.Record{Volume: o.Volume, Fact: fact}, r.token)
	return err
}

// fact gives what is so once an order was obeyed.
func (r *Reconciler) fact(s *policy.Step, out command.Outcome) (domain.Event, error) {
	o := s.Order
	switch o.Kind {
	case command.CreateVolume, command.CloneVolume:
		if o.Kind == command.CloneVolume {
			o.Size, o.Encrypted = out.Size, out.Encrypted
		}
		return r.created(o), nil
	case command.RollbackVolume:
		return &volume.VolumeRolledBack{Restore: s.Wish, Snapshot: o.Snapshot, Size: out.Size}, nil
	case command.ResizeVolume:
		return &volume.VolumeResized{To: o.Size}, nil
	case command.ExportVolume:
		for _, n := range r.cfg.Views.Observed().Nodes {
			if n.Node == o.Node {
				return &volume.VolumeOnlined{
					Node: o.Node, Incarnation: n.Incarnation, Export: o.Export.Digest(),
				}, nil
			}
		}
		return nil, domain.Errorf(domain.NotFound, "node %s is unknown", o.Node)
	case command.UnexportVolume:
		why := "not wanted"
		if !s.Wish.IsZero() {
			why = "it is rolled back"
		}
		return &volume.VolumeOfflined{Node: o.Node, Why: why}, nil
	case command.DeleteVolume:
		return &volume.VolumeDeleted{Volume: o.Volume}, nil
	case command.CutSnapshots, command.DeleteSnapshot:
	}
	return nil, domain.Errorf(domain.Unsupported, "order %s leaves no fact", o.Kind)
}

// created gives the fact of a volume that stands on a device now.
func (r *Reconciler) created(o command.Order) *volume.VolumeCreated {
	// Where the wish went while the order was on its way, the volume stands on the device all the
	// same; recorded without an owner, the next round removes it.
	ev := &volume.VolumeCreated{
		Volume: o.Volume, Size: o.Size, Node: o.Node, Device: o.Device, Epoch: o.Epoch,
		Source: o.Snapshot, Encrypted: o.Encrypted,
	}
	for _, w := range r.cfg.Views.Desired().Volumes {
		if w.Volume == o.Volume {
			ev.App, ev.Tenant, ev.Name = w.App, w.Tenant, w.Name
		}
	}
	return ev
}

// release gives the volume's share of the quotas back.
func (r *Reconciler) release(ctx context.Context, o command.Order) error {
	for _, v := range r.cfg.Views.Observed().Volumes {
		if v.Volume == o.Volume && !v.Tenant.IsZero() {
			_, err := r.do(ctx, "release/"+o.ID.String(), tenancy.Release{
				Tenant: v.Tenant, Above: r.cfg.Views.Above(v.Tenant), Object: v.Volume.UUID,
				Why: "volume deleted",
			}, r.token)
			return err
		}
	}
	return nil
}

// resting tells whether a step failed a moment ago.
func (r *Reconciler) resting(key string) bool {
	now := r.cfg.Now()
	for _, x := range r.rests {
		if x.key == key && now.Before(x.until) {
			return true
		}
	}
	return false
}

func (r *Reconciler) failed(key string) {
	now := r.cfg.Now()
	for i := range r.rests {
		if x := &r.rests[i]; x.key == key {
			x.delay = min(2*x.delay, RetryMax)
			x.until = now.Add(x.delay)
			return
		}
	}
	r.rests = append(r.rests, rest{key, RetryMin, now.Add(RetryMin)})
}

func (r *Reconciler) succeeded(key string) {
	r.rests = slices.DeleteFunc(r.rests, func(x rest) bool { return x.key == key })
}

// nextRest gives how long until the first resting step may be tried again.
func (r *Reconciler) nextRest() time.Duration {
	now, least := r.cfg.Now(), time.Duration(0)
	for _, x := range r.rests {
		if d := x.until.Sub(now); d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// Token gives the fencing token of the term, zero before Run has acquired the role.
func (r *Reconciler) Token() uint64 { return r.token }

// String tells what the loop is, for logs.
func (r *Reconciler) String() string { return fmt.Sprintf("reconciler(token %d)", r.token) }
