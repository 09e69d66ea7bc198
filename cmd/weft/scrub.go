package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/projections"
	"weft/projections/topology"
)

const (
	// scrubRest is the pause after a pass that failed.
	scrubRest = time.Minute
	// scrubNever is how long a device waits that is not to be scrubbed until something changes.
	scrubNever = 1000 * time.Hour
)

// scrubbing scrubs this node's devices: when somebody asks, and by itself from time to time.
type scrubbing struct {
	o    Options
	exec *eventstore.Executor
	run  *projections.Runner
	view *topology.View
	node domain.NodeID
	bg   *background
	log  *slog.Logger
	work sync.WaitGroup

	ctx context.Context //nolint:containedctx // of all passes; it ends with the node
	mu  struct {
		sync.Mutex
		ends map[domain.DeviceID]func() // each ends a device's passes and waits for that
	}
}

// startScrubbing runs until the node closes. A pass under way is cut short then, and goes on at the
// next start.
func startScrubbing(
	_ *member, o Options, ds *devices, x *eventstore.Executor, r *projections.Runner, v *views,
	d *dataDir, bg *background, log *slog.Logger,
) (*scrubbing, func()) {
	s := &scrubbing{o: o, exec: x, run: r, view: v.topology, node: d.id.Node, bg: bg, log: log}
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx, s.mu.ends = ctx, map[domain.DeviceID]func(){}
	for _, u := range ds.all() {
		s.begin(u)
	}
	return s, func() {
		cancel()
		s.work.Wait()
	}
}

// begin scrubs one more device from now on.
func (s *scrubbing) begin(u *unit) {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	s.mu.Lock()
	s.mu.ends[u.id] = func() {
		cancel()
		<-done
	}
	s.mu.Unlock()
	s.work.Go(func() {
		defer close(done)
		s.device(ctx, u.engine)
	})
}

// end scrubs a device no more; its engine may be closed then.
func (s *scrubbing) end(id domain.DeviceID) {
	s.mu.Lock()
	end := s.mu.ends[id]
	delete(s.mu.ends, id)
	s.mu.Unlock()
	if end != nil {
		end()
	}
	s.bg.end("the scrub of device " + id.String())
}

// device scrubs one device whenever that is due, until the context ends.
func (s *scrubbing) device(ctx context.Context, e *engine.Engine) {
	id, _ := e.Info()
	for ctx.Err() == nil {
		changed := s.run.Changed()
		wait, err := s.next(ctx, e, id)
		if ctx.Err() == nil {
			s.bg.note("the scrub of device "+id.String(), 0, err)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("scrub", "device", id.String(), "err", err)
			wait, changed = scrubRest, nil // whatever happens elsewhere, it rests
		}
		if wait <= 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// next does what is due for a device, and tells how long it rests then unless something changes.
func (s *scrubbing) next(ctx context.Context, e *engine.Engine, id domain.DeviceID) (
	time.Duration, error,
) {
	st, err := e.ScrubStatus()
	d, ok := s.view.Device(id)
	switch {
	case err != nil:
		return 0, err
	case ok && st.Stage == 0 && st.Pass > d.Scrubbed.Pass:
		return 0, s.ended(ctx, id, st) // also one whose end a crash kept from being told
	}
	if wait := scrubWait(st, d, time.Now(), s.o.ScrubEvery); wait > 0 {
		return wait, nil
	}
	return 0, s.pass(ctx, e, d)
}

// scrubWait tells how long a device rests before it is scrubbed; 0 is not at all. A device that is
// not in the log is not scrubbed.
func scrubWait(st engine.ScrubStatus, d topology.Device, now time.Time, every time.Duration,
) time.Duration {
	switch {
	case d.Device.IsZero(), d.Failed, d.Paused:
		return scrubNever
	case d.Asked > d.Ended, st.Stage != 0:
		return 0
	case every <= 0:
		return scrubNever
	}
	last := st.Finished
	if last.IsZero() {
		last = d.Since // a new device is not read at once
	}
	return max(0, last.Add(every).Sub(now))
}

// pass runs until the end of a pass, a pause, or the node's end. The places it finds are in the log
// when it returns, but for what is beyond DamagesMax, or the node's end.
func (s *scrubbing) pass(ctx context.Context, e *engine.Engine, d topology.Device) error {
	life, cut := context.WithCancel(ctx)
	found := make(chan domain.Command, cluster.DamagesMax)
	var beside sync.WaitGroup
	beside.Go(func() { s.untilPaused(life, cut, d.Device) })
	beside.Go(func() {
		for c := range found {
			tell(ctx, s.exec, s.node, c, s.bg, s.log)
		}
	})
	_, err := e.Scrub(life, engine.ScrubOptions{
		Rate: s.o.ScrubRate, Above: d.Scrubbed.Pass, Now: time.Now, After: time.After,
		Found: func(x engine.Damage) {
			select {
			case found <- cluster.Observe{Device: d.Device, Fact: damageOf(x)}:
			default: // so many wait that the log takes no more of this pass
			}
		},
	})
	close(found)
	cut()
	beside.Wait()
	if domain.IsKind(err, domain.Aborted) {
		return nil
	}
	return err
}

// untilPaused calls cut when somebody pauses the scrub of a device before life ends.
func (s *scrubbing) untilPaused(life context.Context, cut func(), id domain.DeviceID) {
	for life.Err() == nil {
		changed := s.run.Changed()
		if d, _ := s.view.Device(id); d.Paused {
			cut()
		}
		select {
		case <-life.Done():
		case <-changed:
		}
	}
}

// ended records the end of a pass and waits until this node's views know it.
func (s *scrubbing) ended(ctx context.Context, id domain.DeviceID, st engine.ScrubStatus) error {
	res, err := s.exec.Do(ctx, domain.Request{
		Command: cluster.Observe{Device: id, Fact: &cluster.ScrubFinished{
			Pass: st.Pass, Checked: domain.Bytes(st.Checked), Damaged: int64(st.Damaged),
		}},
		Caller: domain.Caller{Actor: "node/" + s.node.String()},
	})
	if err != nil {
		return err
	}
	return s.run.Wait(ctx, res.Position)
}

func damageOf(d engine.Damage) *cluster.DamageFound {
	f := &cluster.DamageFound{
		Pass: d.Pass, Part: d.Part, Volume: d.Volume, Snapshot: d.Snapshot, Block: int64(d.Block),
		Offset: domain.Bytes(d.Off), Detail: d.Detail, Mended: d.Mended,
	}
	if d.Version != (domain.Version{}) {
		f.Version = d.Version.String()
	}
	return f
}
