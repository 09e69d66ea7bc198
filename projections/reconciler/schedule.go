package reconciler

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/domain/volume"
)

// schedule carries out the snapshot rules of the volumes. What is due is a pure function of the
// wishes, the facts, the cuts that the nodes list, and a time that is an argument; the clock is
// read here alone. A cut's id follows from volume, rule and tick, so a second leader, or one that
// starts anew, cuts no tick twice, and a tick that was missed is made up once.
//
// Nothing of it is an event but a rule's failure and its end. It belongs to one goroutine and runs
// beside the loop: a slow node delays the cuts of others, but no plan.
type schedule struct {
	r    *Reconciler
	next map[timedKey]time.Time // when a rule is looked at again
	fail map[timedKey]int       // failures in a row
	n    int64                  // orders and commands so far
}

type timedKey struct {
	app  domain.AppID
	node domain.NodeID
	rule snapshot.Rule
	part int
}

const (
	// scheduleRest is how long a rule rests whose cut failed.
	scheduleRest = 30 * time.Second
	// scheduleFails is after how many failures in a row the log hears of it: a node that restarts
	// makes one.
	scheduleFails = 2
)

func newSchedule(r *Reconciler) *schedule {
	return &schedule{r: r, next: map[timedKey]time.Time{}, fail: map[timedKey]int{}}
}

// run follows wishes and clock until the context ends.
func (s *schedule) run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := s.r.cfg.Views.Changed()
		var timer <-chan time.Time
		if again := s.round(ctx); again > 0 {
			timer = s.r.cfg.After(again)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer:
		}
	}
}

// round does what is due and gives how long until something may be due again; zero while there is
// no rule.
func (s *schedule) round(ctx context.Context) time.Duration {
	list := policy.Schedules(s.r.cfg.Views.Desired(), s.r.cfg.Views.Observed())
	known, least, parts := map[timedKey]bool{}, time.Time{}, map[timedKey]int{}
	for _, t := range list {
		k := timedKey{t.App, t.Node, t.Rule, 0}
		k.part = parts[k]
		parts[timedKey{t.App, t.Node, t.Rule, 0}]++
		known[k] = true
		if now := s.r.cfg.Now(); !now.Before(s.next[k]) {
			s.next[k] = s.one(ctx, t, k, now)
		}
		if least.IsZero() || s.next[k].Before(least) {
			least = s.next[k]
		}
		if ctx.Err() != nil {
			return 0
		}
	}
	for k := range s.next {
		if !known[k] {
			delete(s.next, k)
			delete(s.fail, k)
		}
	}
	if least.IsZero() {
		return 0
	}
	return max(least.Sub(s.r.cfg.Now()), time.Millisecond)
}

// one looks at one rule of one application instance on one node and gives when to look again.
func (s *schedule) one(
	ctx context.Context, t policy.Timed, k timedKey, now time.Time,
) time.Time {
	have, err := s.list(ctx, t)
	cuts, tick, next := t.Due(now, func(v domain.VolumeID) []snapshot.Scheduled { return have[v] })
	if err == nil && len(cuts) > 0 {
		err = s.obey(ctx, command.Order{Kind: command.CutSnapshots, Node: t.Node, Cuts: cuts})
		for _, c := range cuts {
			have[c.Volume] = append(have[c.Volume], tick)
		}
	}
	for i := 0; err == nil && i < len(t.Volumes); i++ {
		err = s.expire(ctx, t, t.Volumes[i], have[t.Volumes[i].Volume])
	}
	if ctx.Err() != nil {
		return now
	}
	if err == nil {
		delete(s.fail, k)
		s.tell(ctx, t, tick, nil)
		return next
	}
	s.r.cfg.Logger.Warn("scheduled snapshots", "app", t.Name, "every", t.Rule.Every, "err", err)
	if s.fail[k]++; s.fail[k] >= scheduleFails {
		s.tell(ctx, t, tick, err)
	}
	return now.Add(scheduleRest)
}

// expire deletes what a rule does not keep.
func (s *schedule) expire(
	ctx context.Context, t policy.Timed, v policy.Volume, have []snapshot.Scheduled,
) error {
	for _, c := range t.Rule.Expired(have) {
		err := s.obey(ctx, command.Order{
			Kind: command.DeleteSnapshot, Node: t.Node, Device: v.Device, Volume: v.Volume,
			Snapshot: c.ID(v.Volume),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// list asks the node which cuts of schedules its volumes have.
func (s *schedule) list(ctx context.Context, t policy.Timed) (
	map[domain.VolumeID][]snapshot.Scheduled, error,
) {
	have := map[domain.VolumeID][]snapshot.Scheduled{}
	q := command.Question{Ask: command.AskSnapshots, Node: t.Node}
	for _, v := range t.Volumes {
		q.Volumes = append(q.Volumes, v.Volume)
	}
	for {
		a, err := s.r.cfg.Dispatcher.Ask(ctx, q)
		if err != nil {
			return have, err
		}
		for _, x := range a.Spaces {
			if c, ok := snapshot.ScheduledOf(x.Volume, x.Snapshot); ok {
				have[x.Volume] = append(have[x.Volume], c)
			}
			q.After = x.Snapshot
		}
		if !a.More || len(a.Spaces) == 0 {
			return have, nil
		}
	}
}

func (s *schedule) obey(ctx context.Context, o command.Order) error {
	s.n++
	o.ID = domain.CommandID{UUID: domain.DeriveUUID(s.r.cfg.Node.UUID, "schedule",
		strconv.FormatUint(s.r.token, 10), strconv.FormatInt(s.n, 10))}
	o.Token = s.r.token
	return s.r.cfg.Dispatcher.Obey(ctx, o).Err
}

// tell records that a rule's cut failed, or that its cuts are taken again. What is known already is
// no event.
func (s *schedule) tell(
	ctx context.Context, t policy.Timed, tick snapshot.Scheduled, failed error,
) {
	every := int64(t.Rule.Every / time.Second)
	for _, v := range t.Volumes {
		var fact domain.Event
		switch missing := slices.Contains(v.Missing, every); {
		case failed != nil && !missing:
			fact = &volume.ScheduledSnapshotFailed{EveryS: every, Due: tick.Tick, Why: reason(failed)}
		case failed == nil && missing:
			fact = &volume.ScheduledSnapshotResumed{EveryS: every}
		default:
			continue
		}
		s.n++
		key := fmt.Sprintf("schedule/%d/%d", s.r.token, s.n)
		_, err := s.r.do(ctx, key, volume.Record{Volume: v.Volume, Fact: fact}, s.r.token)
		if err != nil {
			s.r.cfg.Logger.Warn("scheduled snapshots", "volume", v.Name, "err", err)
		}
	}
}
