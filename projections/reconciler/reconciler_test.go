package reconciler

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/domain/tenancy"
	"weft/domain/volume"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/memory"
	"weft/projections"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is a control plane without a node: log, executor, views, loop, and an agent that is a
// model.
type house struct {
	t     *testing.T
	exec  *eventstore.Executor
	run   *projections.Runner
	topo  *topology.View
	want  *desired.View
	facts *catalog.View
	loop  *Reconciler
	now   time.Time

	orders []command.Order
	fail   func(command.Order) error
	obeyed func(command.Order) command.Outcome
	ask    func(command.Question) (command.Answer, error)
	store  eventstore.Store
	away   bool // the log takes nothing of tenants
}

func (h *house) Desired() policy.Desired { return h.want.Desired() }

func (h *house) Above(t domain.TenantID) []domain.TenantID { return h.want.Above(t) }

func (h *house) Observed() policy.Observed {
	o := policy.Observed{Position: h.run.Position()}
	h.topo.Observe(&o)
	h.facts.Observe(&o)
	return o
}

func (h *house) Changed() <-chan struct{} { return h.run.Changed() }

func (h *house) Wait(ctx context.Context, p domain.Position) error { return h.run.Wait(ctx, p) }

func (h *house) Obey(_ context.Context, o command.Order) command.Outcome {
	h.orders = append(h.orders, o)
	if h.fail != nil {
		return command.Outcome{ID: o.ID, Err: h.fail(o)}
	}
	if h.obeyed != nil {
		return h.obeyed(o)
	}
	return command.Outcome{ID: o.ID}
}

func (h *house) Ask(_ context.Context, q command.Question) (command.Answer, error) {
	if h.ask == nil {
		return command.Answer{}, nil
	}
	return h.ask(q)
}

var (
	node   = domain.NodeID{UUID: domain.UUID{7}}
	device = domain.DeviceID{UUID: domain.UUID{8}}
	tenant = domain.TenantID{UUID: domain.UUID{9}}
	app    = domain.AppID{UUID: domain.UUID{10}}
	vol2   = domain.VolumeID{UUID: domain.UUID{21}}
)

func build(t *testing.T) *house {
	t.Helper()
	h := &house{
		t: t, topo: topology.New(), want: desired.New(), facts: catalog.New(),
		now: time.Unix(1e9, 0),
	}
	h.store = memory.New(memory.WithFaults(
		func(s domain.StreamID, _ []eventstore.Proposed) memory.Fault {
			if h.away && s.Category() == tenancy.Category {
				return memory.UnknownLost
			}
			return memory.None
		},
	))
	reg := codec.Catalog()
	var err error
	h.exec, err = eventstore.NewExecutor(eventstore.ExecutorConfig{
		Store: h.store, Codec: reg, Clock: func() time.Time { return h.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	eventstore.Register(h.exec, cluster.Aggregate())
	eventstore.Register(h.exec, cluster.RoleAggregate())
	eventstore.Register(h.exec, cluster.NodeAggregate())
	eventstore.Register(h.exec, cluster.DeviceAggregate())
	eventstore.Register(h.exec, tenancy.Aggregate())
	eventstore.Register(h.exec, intent.TemplateAggregate())
	eventstore.Register(h.exec, intent.AppAggregate())
	eventstore.Register(h.exec, volume.Aggregate())
	eventstore.Register(h.exec, snapshot.Aggregate())
	eventstore.Register(h.exec, policy.PlanAggregate())
	eventstore.Register(h.exec, policy.DecisionAggregate())
	h.run, err = projections.New(projections.Config{
		Store: h.store, Codec: reg,
		Views: []projections.View{h.topo, h.want, h.facts, audit.New()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.run.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.run.Close(); err != nil {
			t.Error(err)
		}
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	h.loop = New(Config{
		Node: node, Incarnation: 1, Commands: h.exec, Dispatcher: h, Views: h,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Now:    func() time.Time { return h.now },
	})
	h.do(cluster.Init{Name: "c"})
	h.do(tenancy.Create{Tenant: tenant, Name: "acme"})
	h.do(cluster.StartNode{NodeJoined: cluster.NodeJoined{
		Node: node, Number: 1, Name: "n", Incarnation: 1,
	}})
	h.do(cluster.Admit{DeviceAdmitted: cluster.DeviceAdmitted{
		Device: device, Node: node, Class: "flash", Bytes: domain.TiB, Usable: domain.TiB,
	}})
	if err := h.loop.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) do(c domain.Command) {
	h.t.Helper()
	res, err := h.exec.Do(h.t.Context(), domain.Request{Command: c})
	if err != nil {
		h.t.Fatalf("%s: %v", c.CommandType(), err)
	}
	if err := h.run.Wait(h.t.Context(), res.Position); err != nil {
		h.t.Fatal(err)
	}
}

// settle runs rounds until one sends no order, and gives the kinds of those sent.
func (h *house) settle() []command.Kind {
	h.t.Helper()
	from := len(h.orders)
	for range 20 {
		before := len(h.orders)
		if _, err := h.loop.Round(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
		if len(h.orders) == before {
			var kinds []command.Kind
			for _, o := range h.orders[from:] {
				kinds = append(kinds, o.Kind)
			}
			return kinds
		}
	}
	h.t.Fatal("the loop does not settle")
	return nil
}

// held folds what a tenant holds.
func (h *house) held(t domain.TenantID) domain.Bytes {
	h.t.Helper()
	var s tenancy.State
	for r, err := range h.store.ReadStream(h.t.Context(), tenancy.Stream(t), 0,
		eventstore.Forward, 1000) {
		if err != nil {
			h.t.Fatal(err)
		}
		records, err := codec.Catalog().Decode(r.Header, r.Data)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, rec := range records {
			s = tenancy.Evolve(s, rec.Event)
		}
	}
	return s.Bytes
}

func shop(sizes ...domain.Bytes) intent.CreateApp {
	c := intent.CreateApp{AppInstanceCreated: intent.AppInstanceCreated{
		App: app, Tenant: tenant, TenantName: "acme", Name: "shop", Export: intent.Export{NBD: true},
	}}
	for i, s := range sizes {
		c.Volumes = append(c.Volumes, intent.VolumeSpec{
			Volume: domain.VolumeID{UUID: domain.UUID{20, byte(i)}}, Size: s,
			Name: string(rune('a' + i)),
		})
	}
	return c
}

// TestLoop walks a volume from wish to end: placed, created, exported; exported again after a
// restart; grown; and gone with its application, whose quota and name are free again.
func TestLoop(t *testing.T) {
	h := build(t)
	h.do(shop(domain.GiB))
	want := func(got []command.Kind, kinds ...command.Kind) {
		t.Helper()
		if !slices.Equal(got, kinds) {
			t.Fatalf("orders %v, want %v", got, kinds)
		}
	}
	want(h.settle(), command.CreateVolume, command.ExportVolume)
	vol := domain.VolumeID{UUID: domain.UUID{20, 0}}
	if d, ok := h.facts.Decision(vol); !ok || d.Decided == nil || d.Decided.Device != device {
		t.Errorf("decision %+v", d)
	}
	h.do(cluster.StartNode{NodeJoined: cluster.NodeJoined{Node: node, Incarnation: 2}})
	want(h.settle(), command.ExportVolume)
	h.do(intent.ResizeVolume{
		App: app, Tenant: tenant, Volume: vol, From: domain.GiB, Size: 2 * domain.GiB,
	})
	want(h.settle(), command.ResizeVolume)
	h.do(intent.DeleteApp{App: app})
	want(h.settle(), command.UnexportVolume, command.DeleteVolume)
	h.settle()
	if n := len(h.want.Apps(tenant)); n != 0 {
		t.Errorf("%d applications left", n)
	}
	for _, o := range h.orders {
		if o.Token == 0 {
			t.Errorf("order %s carries no token", o.Kind)
		}
	}
	again := shop(domain.GiB) // the name is free, and so is the volume's share
	again.App, again.Volumes[0].Volume = domain.AppID{UUID: domain.UUID{11}}, vol2
	h.do(again)
}

// TestShareIsFreedInTheEnd proves that a volume's share of the quota is given back although the log
// took nothing of tenants when the volume was deleted.
func TestShareIsFreedInTheEnd(t *testing.T) {
	h := build(t)
	h.do(shop(domain.GiB))
	h.settle()
	h.do(intent.DeleteApp{App: app})
	h.away = true
	h.settle()
	if h.held(tenant) == 0 {
		t.Fatal("the tenant holds nothing while the log takes nothing of it")
	}
	h.away = false
	for range 4 {
		h.now = h.now.Add(RetryMax)
		h.settle()
	}
	if n, apps := h.held(tenant), len(h.want.Apps(tenant)); n != 0 || apps != 0 {
		t.Errorf("the tenant holds %s and %d applications", n, apps)
	}
}

// TestLoopIsQuiet proves that a settled loop appends nothing (L3).
func TestLoopIsQuiet(t *testing.T) {
	h := build(t)
	h.do(shop(domain.GiB, domain.GiB))
	h.settle()
	before := h.run.Position()
	for range 5 {
		if _, err := h.loop.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := h.run.Position(); after != before {
		t.Errorf("nothing to do, and the log went from %s to %s", before, after)
	}
}

// TestFailedStepRests proves that a failed step is recorded, rests with growing delays, and is
// tried again; meanwhile other volumes go on.
func TestFailedStepRests(t *testing.T) {
	h := build(t)
	bad := domain.VolumeID{UUID: domain.UUID{20, 0}}
	h.fail = func(o command.Order) error {
		if o.Volume == bad {
			return domain.Errorf(domain.NoSpace, "full")
		}
		return nil
	}
	h.do(shop(domain.GiB, domain.GiB))
	h.settle()
	tries := func() int {
		n := 0
		for _, o := range h.orders {
			if o.Volume == bad {
				n++
			}
		}
		return n
	}
	if tries() != 1 || len(h.orders) != 3 {
		t.Fatalf("%d tries, %d orders", tries(), len(h.orders))
	}
	again, err := h.loop.Round(t.Context())
	if err != nil || again != RetryMin {
		t.Fatalf("again in %s, %v", again, err)
	}
	h.now = h.now.Add(again)
	h.settle()
	if again, _ = h.loop.Round(t.Context()); tries() != 2 || again != 2*RetryMin {
		t.Fatalf("%d tries, again in %s", tries(), again)
	}
	plans := h.facts.Plans()
	if p := plans[len(plans)-1]; len(p.Failed) != 1 || p.Finished == nil || p.Finished.Failed != 1 {
		t.Errorf("the failure is not recorded: %+v", p)
	}
	h.fail = nil
	h.now = h.now.Add(again)
	h.settle()
	if v, ok := h.facts.Volume(bad); !ok || v.Online.Node != node {
		t.Errorf("mended, and still %+v", v)
	}
}

// TestImpossiblePlacementSaysWhyOnce proves that a volume nobody can place is explained in the log
// once, not every round.
func TestImpossiblePlacementSaysWhyOnce(t *testing.T) {
	h := build(t)
	c := shop(domain.GiB)
	c.Overrides.Placement.Capacity = "hdd"
	h.do(c)
	h.settle()
	before := h.run.Position()
	h.settle()
	d, ok := h.facts.Decision(domain.VolumeID{UUID: domain.UUID{20, 0}})
	if !ok || d.Impossible == nil || len(d.Impossible.Remedies) == 0 {
		t.Fatalf("decision %+v", d)
	}
	if after := h.run.Position(); after != before {
		t.Errorf("said again: %s, then %s", before, after)
	}
}

// TestFencedLoopStops proves that a loop whose role another one took changes nothing any more (L1).
func TestFencedLoopStops(t *testing.T) {
	h := build(t)
	other := New(Config{
		Node: domain.NodeID{UUID: domain.UUID{77}}, Incarnation: 1, Commands: h.exec, Dispatcher: h,
		Views: h, Now: func() time.Time { return h.now },
	})
	if err := other.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.do(shop(domain.GiB))
	if _, err := h.loop.Round(t.Context()); !domain.IsKind(err, domain.Stale) {
		t.Errorf("a deposed loop got %v", err)
	}
	if len(h.orders) != 0 {
		t.Errorf("a deposed loop sent %d orders", len(h.orders))
	}
}

// TestRebuiltViewsEqualLive proves that every view folded anew from the first event has the state
// of the one that lived through them, and that a view of a past position is that of the past.
func TestRebuiltViewsEqualLive(t *testing.T) {
	h := build(t)
	h.do(shop(domain.GiB, domain.GiB, domain.GiB))
	h.settle()
	mid := h.run.Position()
	hashes := map[string][32]byte{}
	for _, s := range h.run.Status() {
		sum, _, err := h.run.Hash(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		hashes[s.Name] = sum
	}
	h.do(intent.DeleteApp{App: app})
	h.settle()
	at := func(v projections.View, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		sum, err := projections.StateHash(v)
		if err != nil || sum != hashes[v.Name()] {
			t.Errorf("%s at %s is not what it was (%v)", v.Name(), mid, err)
		}
	}
	topo, _, err := projections.At(t.Context(), h.run, mid, topology.New)
	at(topo, err)
	want, _, err := projections.At(t.Context(), h.run, mid, desired.New)
	at(want, err)
	facts, _, err := projections.At(t.Context(), h.run, mid, catalog.New)
	at(facts, err)
	log, _, err := projections.At(t.Context(), h.run, mid, audit.New)
	at(log, err)
	for _, f := range []func() projections.View{
		func() projections.View { return topology.New() },
		func() projections.View { return desired.New() },
		func() projections.View { return catalog.New() },
		func() projections.View { return audit.New() },
	} {
		again, _, err := projections.Rebuild(t.Context(), h.run, f)
		if err != nil {
			t.Fatal(err)
		}
		live, _, err := h.run.Hash(again.Name())
		if err != nil {
			t.Fatal(err)
		}
		if sum, _ := projections.StateHash(again); sum != live {
			t.Errorf("%s rebuilt differs from live", again.Name())
		}
	}
}
