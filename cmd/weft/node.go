package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"weft/dataplane/agent"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/intent"
	"weft/domain/policy"
	"weft/domain/tenancy"
	"weft/domain/volume"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/quorum"
	"weft/projections"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/reconciler"
	"weft/projections/topology"
)

// Options is what `weft serve` takes.
type Options struct {
	DataDir        string
	Devices        []string
	DeviceSize     domain.Bytes
	Media          string // "flash" or "hdd", whatever the kernel says
	Durability     string // "durable" or "process"
	API            string // "127.0.0.1:7780"
	NBD            string // "off" for none
	NBDSocket      string
	ISCSI          string
	AdvertiseISCSI string
	Logger         *slog.Logger
	// Progress hears what a long start is doing. Nil hears nothing.
	Progress func(string)
}

// DefaultTenant owns what nobody else does.
const DefaultTenant = "default"

// views are the read models of this node.
type views struct {
	topology *topology.View
	desired  *desired.View
	catalog  *catalog.View
	audit    *audit.View
}

func newViews() *views {
	return &views{topology.New(), desired.New(), catalog.New(), audit.New()}
}

func (v *views) list() []projections.View {
	return []projections.View{v.topology, v.desired, v.catalog, v.audit}
}

// openStore opens the event log.
func openStore(ctx context.Context, d *dataDir, log *slog.Logger) (*quorum.Store, func(), error) {
	s, err := quorum.Open(ctx, quorum.Config{
		Dir: d.file("log"), ClusterID: d.id.Cluster, Logger: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return s, func() {
		if err := s.Close(); err != nil {
			log.Error("closing the event log", "err", err)
		}
	}, nil
}

// newCodec knows every event of this build.
func newCodec() (*codec.Registry, error) {
	r := codec.Catalog()
	return r, r.Err()
}

// newExecutor knows every aggregate.
func newExecutor(s eventstore.Store, c *codec.Registry) (*eventstore.Executor, error) {
	x, err := eventstore.NewExecutor(eventstore.ExecutorConfig{Store: s, Codec: c, Clock: time.Now})
	if err != nil {
		return nil, err
	}
	eventstore.Register(x, cluster.Aggregate())
	eventstore.Register(x, cluster.RoleAggregate())
	eventstore.Register(x, cluster.NodeAggregate())
	eventstore.Register(x, cluster.DeviceAggregate())
	eventstore.Register(x, tenancy.Aggregate())
	eventstore.Register(x, intent.TemplateAggregate())
	eventstore.Register(x, intent.AppAggregate())
	eventstore.Register(x, volume.Aggregate())
	eventstore.Register(x, policy.PlanAggregate())
	eventstore.Register(x, policy.DecisionAggregate())
	return x, nil
}

// openRunner folds the whole log into the views before it returns.
func openRunner(ctx context.Context, s eventstore.Store, c *codec.Registry, v *views,
	log *slog.Logger,
) (*projections.Runner, func(), error) {
	r, err := projections.New(projections.Config{Store: s, Codec: c, Views: v.list()})
	if err != nil {
		return nil, nil, err
	}
	closeRunner := func() {
		if err := r.Close(); err != nil {
			log.Error("closing the views", "err", err)
		}
	}
	if err := r.Start(ctx); err != nil {
		closeRunner()
		return nil, nil, damaged(err)
	}
	if err := r.CaughtUp(ctx); err != nil {
		closeRunner()
		return nil, nil, damaged(err)
	}
	return r, closeRunner, nil
}

func newPool() (*vdisk.Pool, func()) {
	p := vdisk.NewPool(vdisk.PoolSize)
	return p, p.Close
}

// member is the node once the cluster knows it in this incarnation.
type member struct {
	tenant domain.TenantID
}

// join writes what must be in the log before the node serves: on the first start the cluster, its
// role and its tenant; on every start the node and its devices. All of it is idempotent.
func join(ctx context.Context, x *eventstore.Executor, r *projections.Runner, d *dataDir,
	ds *devices, v *views,
) (*member, error) {
	tenant := domain.TenantID{UUID: domain.DeriveUUID(d.id.Cluster.UUID, "tenant", DefaultTenant)}
	cmds := []domain.Command{
		cluster.Init{Cluster: d.id.Cluster, Name: d.id.Name}, cluster.OpenRole{},
	}
	if _, err := v.desired.Tenant(DefaultTenant); err != nil {
		cmds = append(cmds, tenancy.Create{Tenant: tenant, Name: DefaultTenant})
	}
	cmds = append(cmds, cluster.StartNode{Version: version(), NodeJoined: cluster.NodeJoined{
		Node: d.id.Node, Number: 1, Name: d.id.Name, Incarnation: d.id.Incarnation,
	}})
	for _, e := range ds.engines {
		id, geo := e.Info()
		class := "flash"
		if geo.Rotational {
			class = "hdd"
		}
		cmds = append(cmds, cluster.Admit{DeviceAdmitted: cluster.DeviceAdmitted{
			Device: id, Node: d.id.Node, Path: geo.Path, Class: class,
			Bytes: domain.Bytes(geo.Size), Usable: domain.Bytes(e.Stats().UsableBytes),
			Sector: int64(geo.LogicalBlock), Durability: geo.Durability.String(),
		}})
	}
	var last domain.Position
	for _, c := range cmds {
		res, err := x.Do(ctx, domain.Request{
			Command: c, Caller: domain.Caller{Actor: "node/" + d.id.Node.String()},
		})
		if err != nil {
			return nil, domain.Wrap(err, "serve", c.CommandType())
		}
		last = max(last, res.Position)
	}
	return &member{tenant}, r.Wait(ctx, last)
}

// newAgent makes the agent that exports nothing yet.
func newAgent(_ *member, d *dataDir, ds *devices, p *vdisk.Pool, f *front, log *slog.Logger) (
	*agent.Agent, func(), error,
) {
	a, err := agent.New(agent.Config{
		Node: d.id.Node, Number: 1, Incarnation: d.id.Incarnation, Engines: ds.engines, Pool: p,
		Tokens: d, Front: f,
	})
	if err != nil {
		return nil, nil, err
	}
	return a, func() {
		if err := a.Stop(); err != nil {
			log.Error("stopping the exports", "err", err)
		}
	}, nil
}

// loopViews are the views as the reconciler looks at them.
type loopViews struct {
	*projections.Runner
	v *views
}

// Desired implements reconciler.Views.
func (l loopViews) Desired() policy.Desired { return l.v.desired.Desired() }

// Observed implements reconciler.Views.
func (l loopViews) Observed() policy.Observed {
	o := policy.Observed{Position: l.Position()}
	l.v.topology.Observe(&o)
	l.v.catalog.Observe(&o)
	return o
}

// Wait implements reconciler.Views.
func (l loopViews) Wait(ctx context.Context, p domain.Position) error {
	return l.Runner.Wait(ctx, p)
}

// startLoop runs the reconciler until the node closes.
func startLoop(x *eventstore.Executor, r *projections.Runner, v *views, a *agent.Agent, d *dataDir,
	log *slog.Logger,
) (*reconciler.Reconciler, func()) {
	loop := reconciler.New(reconciler.Config{
		Node: d.id.Node, Incarnation: d.id.Incarnation, Commands: x, Dispatcher: a,
		Views: loopViews{r, v}, Logger: log, Now: time.Now, After: time.After,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := loop.Run(ctx); err != nil {
			log.Error("reconciler", "err", err)
		}
	})
	return loop, func() {
		cancel()
		wg.Wait()
	}
}

// Node is a running node.
type Node struct {
	dir     *dataDir
	backend *backend
	loop    *reconciler.Reconciler
	api     *api
}

// Start brings a node up: the folder locked, the devices recovered, the log folded, the exports on
// their way back. close takes it down; acknowledged data is safe with or without it.
func Start(ctx context.Context, o Options) (n *Node, closeNode func(), err error) {
	d, unlock, err := openDataDir(o.DataDir)
	if err != nil {
		return nil, nil, err
	}
	if err := vacant(o); err != nil {
		unlock()
		return nil, nil, err
	}
	n, down, err := assemble(ctx, o, d, o.Logger)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return n, func() {
		down()
		unlock()
	}, nil
}
