package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"weft/backends/watched"
	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
)

// troublesMax is how many facts wait for the log. A device fails once and changes otherwise a few
// times an hour, and a node has few of them.
const troublesMax = 256

// told takes what a device's engine reports: all of it goes to the node's log, and what changes
// whether the device serves goes to the cluster's.
func (ds *devices) told(f engine.Fact, log *slog.Logger) {
	log.Error("device", "what", f.What, "device", f.Device.String(), "volume", f.Volume.String(),
		"block", f.Block, "detail", f.Detail)
	if f.What != "failed" {
		return
	}
	ds.send(cluster.Fail{Device: f.Device, Why: f.Detail})
}

// changed takes what the watch over a device says of it. The device's writers may wait for it.
func (ds *devices) changed(
	id domain.DeviceID, node domain.NodeID, c watched.Change, log *slog.Logger,
) {
	if c.State == watched.OK {
		log.Info("device is well again", "device", id.String())
		ds.send(cluster.Resume{Device: id, Node: node})
		return
	}
	log.Warn("device is suspect", "device", id.String(), "rule", c.Rule, "why", c.Why)
	ds.send(cluster.Observe{Device: id, Fact: &cluster.DeviceSuspended{Rule: c.Rule, Why: c.Why}})
}

// send puts a fact on its way, and does not wait.
func (ds *devices) send(c domain.Command) {
	select {
	case ds.troubles <- c:
	default: // there is no room while the cluster's log is away; the next start tells it
	}
}

// look looks for calls that hang and for devices that run full, until the context ends.
func (ds *devices) look(ctx context.Context, bg *background) {
	r := &rooms{bg: bg, told: map[string]int64{}}
	for ctx.Err() == nil {
		for _, u := range ds.all() {
			u.watched.Look()
			if u.disk != nil {
				u.disk.Look()
			}
		}
		r.look(ds.fills())
		pause(ctx, watched.LookEvery)
	}
}

// doubt lets devices begin as the log knows them.
func (ds *devices) doubt(v *views) {
	for _, u := range ds.all() {
		if d, ok := v.topology.Device(u.id); ok && d.Suspended != "" {
			u.watched.Doubt()
		}
	}
}

// telling brings the troubles of this node's devices to the cluster's log.
type telling struct{ work sync.WaitGroup }

// startTelling tells until the node closes. A fact waits until the log takes it.
func startTelling(
	_ *member, ds *devices, x *eventstore.Executor, v *views, d *dataDir, bg *background,
	log *slog.Logger,
) (*telling, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	t := &telling{}
	ds.doubt(v)
	t.work.Go(func() { ds.look(ctx, bg) })
	t.work.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-ds.troubles:
				tell(ctx, x, d.id.Node, c, bg, log)
			}
		}
	})
	return t, func() {
		cancel()
		t.work.Wait()
	}
}

func tell(
	ctx context.Context, x *eventstore.Executor, node domain.NodeID, c domain.Command,
	bg *background, log *slog.Logger,
) {
	const what = "telling the log of this node's devices"
	for ctx.Err() == nil {
		_, err := x.Do(ctx, domain.Request{
			Command: c, Caller: domain.Caller{Actor: "node/" + node.String()},
		})
		if ctx.Err() == nil {
			bg.note(what, 0, err)
		}
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			log.Warn("the cluster's log does not know of a device's trouble yet", "err", err)
		}
		pause(ctx, leadRest)
	}
}

// missing lists the devices that the log gives to this node and that did not open.
func missing(d *dataDir, ds *devices, v *views) []domain.Command {
	here := map[domain.DeviceID]bool{}
	if ds.nvram != nil {
		here[d.nvramID()] = true
	}
	for _, id := range ds.ids() {
		here[id] = true
	}
	var cmds []domain.Command
	for _, dev := range v.topology.Devices() {
		gone := dev.Leaving && slices.Contains(ds.kept.Removed, dev.Device)
		if dev.Node == d.id.Node && !here[dev.Device] && !dev.Failed && !gone {
			cmds = append(cmds, cluster.Fail{
				Device: dev.Device, Why: "it was not there when the node started",
			})
		}
	}
	return cmds
}
