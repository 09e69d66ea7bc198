package main

import (
	"context"
	"log/slog"
	"sync"

	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
)

// troublesMax is how many facts wait for the log. A device fails once, and a node has few of them.
const troublesMax = 256

// told takes what a device's engine reports: all of it goes to the node's log, and what changes
// whether the device serves goes to the cluster's.
func (ds *devices) told(f engine.Fact, log *slog.Logger) {
	log.Error("device", "what", f.What, "device", f.Device.String(), "volume", f.Volume.String(),
		"block", f.Block, "detail", f.Detail)
	if f.What != "failed" {
		return
	}
	select {
	case ds.troubles <- f:
	default: // there is no room while the cluster's log is away; the next start tells it
	}
}

// telling brings the troubles of this node's devices to the cluster's log.
type telling struct{ work sync.WaitGroup }

// startTelling tells until the node closes. A fact waits until the log takes it.
func startTelling(_ *member, ds *devices, x *eventstore.Executor, d *dataDir, log *slog.Logger) (
	*telling, func(),
) {
	ctx, cancel := context.WithCancel(context.Background())
	t := &telling{}
	t.work.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case f := <-ds.troubles:
				tell(ctx, x, d.id.Node, f, log)
			}
		}
	})
	return t, func() {
		cancel()
		t.work.Wait()
	}
}

func tell(
	ctx context.Context, x *eventstore.Executor, node domain.NodeID, f engine.Fact, log *slog.Logger,
) {
	for ctx.Err() == nil {
		_, err := x.Do(ctx, domain.Request{
			Command: cluster.Fail{Device: f.Device, Why: f.Detail},
			Caller:  domain.Caller{Actor: "node/" + node.String()},
		})
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			log.Warn("a device failed and the cluster's log does not know yet", "err", err)
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
	for _, e := range ds.engines {
		id, _ := e.Info()
		here[id] = true
	}
	var cmds []domain.Command
	for _, dev := range v.topology.Devices() {
		if dev.Node == d.id.Node && !here[dev.Device] && !dev.Failed {
			cmds = append(cmds, cluster.Fail{
				Device: dev.Device, Why: "it was not there when the node started",
			})
		}
	}
	return cmds
}
