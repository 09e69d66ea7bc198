package main

import (
	"context"
	"log/slog"
	"time"

	"weft/backends"
	"weft/dataplane/agent"
	"weft/dataplane/engine"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/identity"
	"weft/domain/intent"
	"weft/domain/outlet"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/domain/tenancy"
	"weft/domain/volume"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/intents"
	"weft/eventstore/quorum"
	"weft/eventstore/vault"
	"weft/projections"
	"weft/projections/access"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/outlets"
	"weft/projections/topology"
)

// Options is what `weft serve` takes.
type Options struct {
	DataDir    string
	Devices    []string
	DeviceSize domain.Bytes
	Media      string // "flash" or "hdd", whatever the kernel says, or "probe"; empty is flash
	Durability string // "durable" or "process"
	// NVRAM is PATH or PATH:SIZE of the node's NVRAM; empty is none.
	NVRAM string
	// DropNVRAM destages what it holds and gives it up; AcceptNVRAMLoss goes on where it is gone.
	DropNVRAM, AcceptNVRAMLoss bool
	// DiscardCopies throws copies of volumes away whose other device is not there.
	DiscardCopies   bool
	API             string // "127.0.0.1:7780"
	APITLS          string // "auto", "on", "off"
	APICert, APIKey string // files of the operator's own certificate; empty: the cluster's
	NBD             string // "off" for none
	NBDSocket       string
	ISCSI           string
	AdvertiseISCSI  string
	Peer            string // "127.0.0.1:7782"
	Events          string // "off" for none
	EventsJSON      bool   // show their payloads as JSON
	AdvertisePeer   string // where that is another address for other nodes
	Name            string // of the node; empty: the host's
	Join            string // a join token
	Init            bool   // a new cluster may listen beyond this machine
	VoterGrace      time.Duration
	Location        string        // failure domains; empty: as the log has it
	ScrubEvery      time.Duration // between two scrubs of a device; 0: only when asked for
	ScrubRate       int64         // bytes a second; 0: no limit
	MigrateRate     int64         // bytes a second; 0: no limit
	ReadCache       int64         // bytes; 0: none
	Calm            bool          // pace of the event log: for loaded hosts, or far apart
	// Wrap lets a test harm a device below everything that watches it; nil: nothing stands between.
	Wrap   func(path string, dev backends.Device) backends.Device
	Logger *slog.Logger
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
	access   *access.View
	outlets  *outlets.View
}

func newViews(v *vault.Vault) *views {
	var keys access.Keys
	if v != nil {
		keys = v
	}
	return &views{
		topology.New(), desired.New(), catalog.New(), audit.New(), access.New(keys), outlets.New(),
	}
}

func (v *views) list() []projections.View {
	return []projections.View{v.topology, v.desired, v.catalog, v.audit, v.access, v.outlets}
}

// openStore opens the event log. A node with a vote waits until enough others answer.
func openStore(ctx context.Context, o Options, d *dataDir, p *peerPort, log *slog.Logger) (
	*quorum.Store, func(), error,
) {
	if d.id.Number > 1 && len(d.id.Members) == 0 && !d.id.Alone {
		return nil, nil, domain.Errorf(domain.Corrupt,
			"node.json names no other node, so this one would be a cluster of its own")
	}
	if o.Progress != nil && len(d.id.Members) > 0 {
		o.Progress("looking for the cluster's event log")
	}
	cfg := quorum.Config{
		Dir: d.file("log"), ClusterID: d.id.Cluster, Name: d.id.Node.String(), Logger: log,
		Net: p.net(d.id.Members),
	}
	if o.Calm {
		cfg.Tick, cfg.Election = quorum.CalmTick, quorum.CalmElection
	}
	s, err := quorum.Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return s, func() {
		if err := s.Close(); err != nil {
			log.Error("closing the event log", "err", err)
		}
	}, nil
}

// openVault opens the keys of persons. They stand in the log's database, not in the log, wrapped
// under what every node holds and hands to those that join: the key of the cluster's authority.
func openVault(ctx context.Context, s *quorum.Store, p *peerPort) (*vault.Vault, error) {
	for {
		v, err := vault.Open(ctx, s.Secrets(), p.id.Authority().Key)
		if !domain.IsKind(err, domain.Unavailable) {
			return v, domain.Wrap(err, "serve", "keys")
		}
		if pause(ctx, leadRest); ctx.Err() != nil {
			return nil, domain.Wrap(err, "serve", "keys")
		}
	}
}

// newCodec knows every event of this build, and seals what is personal with the keys of a vault;
// without one it writes nothing personal.
func newCodec(v *vault.Vault) (*codec.Registry, error) {
	r := codec.Catalog()
	if v != nil {
		r.SealWith(v)
	}
	return r, r.Err()
}

// newCommands runs commands where their streams are decided.
func newCommands(s *intents.Store, c *codec.Registry) (*eventstore.Executor, error) {
	return newExecutor(s, c)
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
	eventstore.Register(x, cluster.MembershipAggregate())
	eventstore.Register(x, cluster.DeviceAggregate())
	eventstore.Register(x, cluster.EngineAggregate())
	eventstore.Register(x, tenancy.Aggregate())
	eventstore.Register(x, tenancy.DirectoryAggregate())
	eventstore.Register(x, identity.UserAggregate())
	eventstore.Register(x, identity.TokenAggregate())
	eventstore.Register(x, identity.ProviderAggregate())
	eventstore.Register(x, outlet.Aggregate())
	eventstore.Register(x, identity.RefusalAggregate())
	eventstore.Register(x, intent.TemplateAggregate())
	eventstore.Register(x, intent.AppAggregate())
	eventstore.Register(x, volume.Aggregate())
	eventstore.Register(x, snapshot.Aggregate())
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
func join(ctx context.Context, o Options, s *quorum.Store, x *eventstore.Executor,
	r *projections.Runner, d *dataDir, ds *devices, v *views,
) (*member, error) {
	tenant := domain.TenantID{UUID: domain.DeriveUUID(d.id.Cluster.UUID, "tenant", DefaultTenant)}
	var cmds []domain.Command
	if d.id.Number == 1 {
		cmds = append(cmds, cluster.Init{Cluster: d.id.Cluster, Name: d.id.Name}, cluster.OpenRole{})
	}
	if _, err := v.desired.Tenant(DefaultTenant); err != nil {
		cmds = append(cmds, tenancy.Create{Tenant: tenant, Name: DefaultTenant})
	}
	cmds = append(cmds, cluster.StartNode{Version: version(), NodeJoined: cluster.NodeJoined{
		Node: d.id.Node, Number: d.id.Number, Name: d.id.Name, Incarnation: d.id.Incarnation,
	}})
	if o.Location != "" {
		at, err := cluster.ParseLocation(o.Location)
		if err != nil {
			return nil, domain.Wrap(err, "serve", "--location")
		}
		cmds = append(cmds, cluster.SetLocation{Node: d.id.Node, Location: at})
	}
	vote, err := firstVote(ctx, s, d, v.topology)
	if err != nil {
		return nil, err
	}
	cmds = append(cmds, vote...)
	for _, u := range ds.all() {
		cmds = append(cmds, u.admit(d.id.Node))
	}
	cmds = append(cmds, ds.nvramCommands(d)...)
	cmds = append(cmds, missing(d, ds, v)...)
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

// firstVote records that the first node votes while it is alone; later the leader keeps the list.
// In a log that was restored here, nobody else votes.
func firstVote(ctx context.Context, s *quorum.Store, d *dataDir, t *topology.View) (
	[]domain.Command, error,
) {
	if d.id.Number > 1 && !d.id.Alone || len(d.id.Members) > 0 {
		return nil, nil
	}
	list, err := s.Members(ctx)
	if err != nil || len(list) != 1 {
		return nil, domain.Wrap(err, "serve", "members")
	}
	var cmds []domain.Command
	for _, n := range t.Nodes() {
		if n.Vote != "" && n.Node.Node != d.id.Node {
			cmds = append(cmds, cluster.Enroll{Cluster: d.id.Cluster, Fact: &cluster.VoterRemoved{
				Node: n.Node.Node, Member: n.Member, Why: "the log was restored on another node",
			}})
		}
	}
	return append(cmds, cluster.Enroll{Cluster: d.id.Cluster, Fact: &cluster.VoterPromoted{
		Node: d.id.Node, Member: list[0].ID,
	}}), nil
}

// newAgent makes the agent that exports nothing yet.
func newAgent(
	_ *member, d *dataDir, ds *devices, p *vdisk.Pool, f *front, bg *background, log *slog.Logger,
) (*agent.Agent, func(), error) {
	var engines []*engine.Engine
	for _, u := range ds.all() {
		engines = append(engines, u.engine)
	}
	a, err := agent.New(agent.Config{
		Node: d.id.Node, Number: d.id.Number, Incarnation: d.id.Incarnation, Engines: engines, Pool: p,
		Tokens: d, Front: f, Now: time.Now, Failing: bg.list,
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

func (l loopViews) Above(t domain.TenantID) []domain.TenantID { return l.v.desired.Above(t) }

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

// Node is a running node.
type Node struct {
	dir     *dataDir
	backend *backend
	peer    *peerPort
	lead    *leading
	api     *api
	log     *servedLog
	telling *telling
	scrubs  *scrubbing
	equip   *equipping
}

// Start brings a node up: the folder locked, the cluster made or joined, the devices recovered, the
// log folded, the exports on their way back. close takes it down; acknowledged data is safe with or
// without it.
func Start(ctx context.Context, o Options) (n *Node, closeNode func(), err error) {
	d, unlock, err := openDataDir(o.DataDir)
	if err != nil {
		return nil, nil, err
	}
	if err := enter(ctx, &o, d); err != nil {
		unlock()
		return nil, nil, err
	}
	n, down, err := assemble(ctx, o, d, o.Logger)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	if err := n.open(ctx); err != nil {
		down()
		unlock()
		return nil, nil, err
	}
	return n, func() {
		down()
		unlock()
	}, nil
}

// open says where the node is reached and lets other nodes in.
func (n *Node) open(ctx context.Context) error {
	f := n.backend.front
	_, err := n.backend.exec.Do(ctx, domain.Request{
		Command: cluster.Locate{Node: n.dir.id.Node, NodeEndpointChanged: cluster.NodeEndpointChanged{
			Peer: n.peer.url, API: n.api.url, NBD: f.nbdAddr, ISCSI: f.iscsiAddr,
			Log: n.log.addr,
		}},
		Caller: domain.Caller{Actor: "node/" + n.dir.id.Node.String()},
	})
	if err != nil {
		return domain.Wrap(err, "serve", "LocateNode")
	}
	n.peer.server.Open(n.backend.agent, &gate{n.backend, n.peer})
	return nil
}
