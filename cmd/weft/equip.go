package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"weft/dataplane/agent"
	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/projections"
)

// keptDevices is what the data folder says of devices beside those that were named at the start.
type keptDevices struct {
	Added   []string          `json:"added,omitempty"`   // as they were asked for
	Removed []domain.DeviceID `json:"removed,omitempty"` // left alone although named
}

func (d *dataDir) keptDevices() (k keptDevices, err error) {
	b, err := os.ReadFile(d.file("devices.json"))
	if errors.Is(err, os.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	return k, domain.Wrap(asDomain(err), "serve", "devices.json")
}

// besides gives the devices that were added and that no name of the list means already, in whatever
// form.
func (k keptDevices) besides(named []string) (out []string) {
	for _, spec := range k.Added {
		if !slices.ContainsFunc(named, func(n string) bool { return placeOf(n) == placeOf(spec) }) {
			out = append(out, spec)
		}
	}
	return out
}

// placeOf gives the path by which a device, or the flash of a pair, is told from others.
func placeOf(spec string) string {
	d, err := parseDevice(spec)
	if err != nil {
		return spec
	}
	path, err := filepath.Abs(d.path)
	if err != nil {
		return d.path
	}
	return path
}

// with gives what is kept once a device is in use, or is not any more.
func (k keptDevices) with(spec string, id domain.DeviceID, used bool) keptDevices {
	k.Added = slices.DeleteFunc(slices.Clone(k.Added), func(s string) bool { return s == spec })
	k.Removed = slices.DeleteFunc(slices.Clone(k.Removed), func(x domain.DeviceID) bool {
		return x == id
	})
	if used {
		k.Added = append(k.Added, spec)
	} else {
		k.Removed = append(k.Removed, id)
	}
	return k
}

// keep makes what is kept durable. It belongs to whoever takes devices in and out.
func (ds *devices) keep(d *dataDir, k keptDevices) error {
	b, err := json.Marshal(k)
	if err == nil {
		err = writeDurably(d.file("devices.json"), b)
	}
	if err == nil {
		ds.kept = k
	}
	return err
}

// equipping takes devices into use and out of it, on the wishes in the cluster's log, while the
// node runs.
type equipping struct {
	o      Options
	dir    *dataDir
	ds     *devices
	agent  *agent.Agent
	scrubs *scrubbing
	exec   *eventstore.Executor
	run    *projections.Runner
	v      *views
	bg     *background
	log    *slog.Logger
	work   sync.WaitGroup
	poked  chan struct{} // of capacity 1: a device may have become empty
}

// startEquipping looks at the wishes until the node closes. What was cut short is finished at the
// next start: a wish stays until it is answered.
func startEquipping(
	_ *member, o Options, ds *devices, a *agent.Agent, s *scrubbing, x *eventstore.Executor,
	r *projections.Runner, v *views, d *dataDir, bg *background, log *slog.Logger,
) (*equipping, func()) {
	e := &equipping{
		poked: make(chan struct{}, 1),
		o:     o, dir: d, ds: ds, agent: a, scrubs: s, exec: x, run: r, v: v, bg: bg, log: log,
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.work.Go(func() {
		for ctx.Err() == nil {
			changed := e.run.Changed()
			err := e.round(ctx)
			if ctx.Err() == nil {
				e.bg.note("taking devices in and out", 0, err)
			}
			if err != nil && ctx.Err() == nil {
				log.Warn("taking devices in and out", "err", err)
				pause(ctx, leadRest)
				continue
			}
			select {
			case <-ctx.Done():
			case <-changed:
			case <-e.poked:
			}
		}
	})
	e.work.Go(func() { e.migrate(ctx) })
	return e, func() {
		cancel()
		e.work.Wait()
	}
}

// round answers every wish of now that can be answered.
func (e *equipping) round(ctx context.Context) error {
	me := e.dir.id.Node
	n, _ := e.v.topology.Node(me)
	for _, spec := range n.Wanted {
		if err := e.take(ctx, spec); err != nil {
			return err
		}
	}
	for _, dev := range e.v.topology.Devices() {
		if dev.Node == me && dev.Leaving {
			if err := e.remove(ctx, dev.Device); err != nil {
				return err
			}
		}
	}
	return nil
}

// take takes a device into use and says so, or why not. The error is only of saying it.
func (e *equipping) take(ctx context.Context, spec string) error {
	u, err := e.open(ctx, spec)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		e.log.Warn("device not taken into use", "path", spec, "err", err)
		no := cluster.DeviceAddRefused{Spec: spec, Why: err.Error()}
		var known *domain.Error
		if errors.As(err, &known) {
			no.Remedy = known.Remedy
		}
		return e.say(ctx, cluster.AnswerDevice{Node: e.dir.id.Node, Fact: &no})
	}
	e.log.Info("device in use", "path", spec, "device", u.id.String())
	if err := e.say(ctx, u.admit(e.dir.id.Node)); err != nil {
		return err
	}
	return e.say(ctx, cluster.AnswerDevice{
		Node: e.dir.id.Node, Fact: &cluster.DeviceAdded{Spec: spec, Device: u.id},
	})
}

// open brings a device up to where orders for it are obeyed. One that is up already is found.
func (e *equipping) open(ctx context.Context, spec string) (*unit, error) {
	parsed, err := parseDevice(spec)
	if err != nil {
		return nil, err
	}
	for _, p := range []string{parsed.path, parsed.disk} {
		if p != "" && !filepath.IsAbs(p) {
			return nil, &domain.Error{
				Kind: domain.Invalid, Ref: p, Msg: "the path is not absolute",
				Remedy: "write the device as the node finds it from the root: /dev/disk/by-id/...",
			}
		}
	}
	for _, u := range e.ds.all() {
		if placeOf(u.spec) != placeOf(spec) {
			continue
		}
		if dev, _ := e.v.topology.Device(u.id); dev.Leaving {
			return nil, &domain.Error{
				Kind: domain.Conflict, Ref: spec, Msg: "it is in use, and to leave once it is empty",
				Remedy: "weft node device keep keeps it",
			}
		}
		return u, nil
	}
	u, err := attach(ctx, e.o, e.dir, spec, e.log)
	if err != nil {
		return nil, err
	}
	if e.ds.region != nil {
		e.ds.region.Allot(append(e.ds.ids(), u.id), int64(shareLeast))
	}
	err = e.ds.begin(ctx, e.o, e.dir, u, e.log)
	if err == nil {
		err = engine.SettleMigrations(ctx, append(e.ds.engines(), u.engine), u.engine)
	}
	if err == nil {
		err = e.ds.keep(e.dir, e.ds.kept.with(spec, u.id, true))
	}
	if err != nil {
		u.close(e.log)
		return nil, err
	}
	e.ds.add(u)
	e.scrubs.begin(u)
	e.agent.Attach(u.engine)
	return u, nil
}

// remove puts a device out of use when nothing stands on it: of one that is here its engine tells
// that, of one that is not the log does.
func (e *equipping) remove(ctx context.Context, id domain.DeviceID) error {
	u := e.ds.find(id)
	switch {
	case u == nil && len(e.v.catalog.On(id)) > 0:
		return nil
	case u != nil:
		err := e.agent.Detach(id)
		if domain.IsKind(err, domain.Conflict) {
			return nil // the event that makes it empty brings us back, or who moves its volumes
		}
		if err != nil {
			return err
		}
		if err := e.ds.keep(e.dir, e.ds.kept.with(u.spec, id, false)); err != nil {
			e.agent.Attach(u.engine)
			return err
		}
		e.ds.drop(u)
		e.scrubs.end(id)
		e.close(ctx, u)
		e.log.Info("device out of use", "path", u.spec, "device", id.String())
	}
	return e.say(ctx, cluster.Retire{Device: id, Why: "it was empty, and asked to leave"})
}

// close closes a device without volumes. Its part of the NVRAM is given back once nothing in there
// is needed. Whoever found the device before may still ask its old engine.
func (e *equipping) close(ctx context.Context, was *unit) {
	if _, ok := was.engine.Journal(); !ok {
		was.close(e.log)
		return
	}
	u := &unit{spec: was.spec, device: was.device, id: was.id}
	err := was.engine.Close()
	if err == nil {
		o := e.o
		o.DropNVRAM = true
		err = e.ds.begin(ctx, o, e.dir, u, e.log)
	}
	if err != nil {
		e.log.Error("a device that leaves keeps its part of the NVRAM", "device", u.id.String(),
			"err", err)
	}
	u.close(e.log)
	if err == nil {
		e.ds.region.Release(u.id)
	}
}

// say records what became of a device, and waits until this node's views know it.
func (e *equipping) say(ctx context.Context, c domain.Command) error {
	res, err := e.exec.Do(ctx, domain.Request{
		Command: c, Caller: domain.Caller{Actor: "node/" + e.dir.id.Node.String()},
	})
	if err != nil {
		return err
	}
	return e.run.Wait(ctx, res.Position)
}

// admit tells the cluster of a device that serves.
func (u *unit) admit(node domain.NodeID) domain.Command {
	_, geo := u.engine.Info()
	return cluster.Admit{DeviceAdmitted: cluster.DeviceAdmitted{
		Device: u.id, Node: node, Path: geo.Path, Class: classOf(geo),
		Bytes: domain.Bytes(geo.Size), Usable: domain.Bytes(u.engine.Stats().UsableBytes),
		Sector: int64(geo.LogicalBlock), Durability: geo.Durability.String(),
	}}
}
