// Package catalog is the view of what became of the wishes: volumes as they are, the snapshots that
// somebody asked for, the decisions about them, and the last plans.
package catalog

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/domain"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/domain/volume"
	"weft/projections"
)

// plansMax is how many plans are kept.
const plansMax = 1000

// Volume is a volume as it is.
type Volume struct {
	volume.State
	Revision domain.Revision
	Changed  domain.Position
	Born     time.Time // when it was created
}

// Group is snapshots that were asked for together.
type Group struct {
	snapshot.State
	Revision domain.Revision
	Changed  domain.Position
	Asked    time.Time
}

// Decision is the last decision about a volume's place: one of the two is set.
type Decision struct {
	At         domain.Position
	Decided    *policy.PlacementDecided
	Impossible *policy.PlacementImpossible
}

// Plan is a plan and what came of it.
type Plan struct {
	policy.PlanProposed
	At       domain.Position
	Failed   []policy.PlanStepFailed
	Finished *policy.PlanFinished
}

// View folds facts.
type View struct {
	mu struct {
		sync.RWMutex
		state
	}
}

type state struct {
	Volumes   map[string]Volume   // by stream, deleted ones left out
	Decisions map[string]Decision // by stream
	Plans     []Plan              // oldest first
	Groups    map[string]Group    // by stream, those that are over left out
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view.
func New() *View {
	v := &View{}
	v.mu.Volumes, v.mu.Decisions = map[string]Volume{}, map[string]Decision{}
	v.mu.Groups = map[string]Group{}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "catalog" }

// Version implements projections.View.
func (*View) Version() uint16 { return 3 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := string(r.Stream)
	switch r.Stream.Category() {
	case volume.Category:
		x := Volume{
			State: volume.Evolve(v.mu.Volumes[id].State, r.Event), Revision: r.Revision,
			Changed: r.Position, Born: v.mu.Volumes[id].Born,
		}
		if _, first := r.Event.(*volume.VolumeCreated); first {
			x.Born = r.Created
		}
		if x.Deleted {
			delete(v.mu.Volumes, id)
			delete(v.mu.Decisions, string(policy.DecisionStream(x.Volume.UUID)))
			return nil
		}
		v.mu.Volumes[id] = x
	case snapshot.Category:
		g := Group{
			State: snapshot.Evolve(v.mu.Groups[id].State, r.Event), Revision: r.Revision,
			Changed: r.Position, Asked: v.mu.Groups[id].Asked,
		}
		if _, first := r.Event.(*snapshot.SnapshotRequested); first {
			g.Asked = r.Created
		}
		if v.mu.Groups[id] = g; g.Over() {
			delete(v.mu.Groups, id)
		}
	case policy.DecisionCategory:
		d := Decision{At: r.Position}
		d.Decided, _ = r.Event.(*policy.PlacementDecided)
		d.Impossible, _ = r.Event.(*policy.PlacementImpossible)
		v.mu.Decisions[id] = d
	case policy.PlanCategory:
		v.plan(r)
	}
	return nil
}

func (v *View) plan(r domain.Record) {
	if ev, ok := r.Event.(*policy.PlanProposed); ok {
		list := append(v.mu.Plans[:len(v.mu.Plans):len(v.mu.Plans)], Plan{
			PlanProposed: *ev, At: r.Position,
		})
		v.mu.Plans = list[max(0, len(list)-plansMax):]
		return
	}
	v.mu.Plans = slices.Clone(v.mu.Plans)
	for i := len(v.mu.Plans) - 1; i >= 0; i-- {
		p := &v.mu.Plans[i]
		if policy.PlanStream(p.Plan) != r.Stream {
			continue
		}
		switch ev := r.Event.(type) {
		case *policy.PlanStepFailed:
			p.Failed = append(slices.Clip(p.Failed), *ev)
		case *policy.PlanFinished:
			p.Finished = ev
		}
		return
	}
}

// Digest implements projections.View.
func (v *View) Digest(w io.Writer) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return projections.WriteDigest(w, v.mu.state)
}

// Clone implements projections.Keeper.
func (v *View) Clone() projections.View {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c := &View{}
	c.mu.state = state{
		maps.Clone(v.mu.Volumes), maps.Clone(v.mu.Decisions), v.mu.Plans, maps.Clone(v.mu.Groups),
	}
	return c
}

// Volumes lists the volumes by name.
func (v *View) Volumes() []Volume {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Volumes), func(a, b Volume) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Volume.String(), b.Volume.String()))
	})
}

// Volume gives one volume.
func (v *View) Volume(id domain.VolumeID) (Volume, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	x, ok := v.mu.Volumes[string(volume.Stream(id))]
	return x, ok
}

// Groups lists the snapshots that somebody asked for in a tenant, by name; the zero id lists all.
func (v *View) Groups(tenant domain.TenantID) []Group {
	v.mu.RLock()
	defer v.mu.RUnlock()
	list := slices.SortedFunc(maps.Values(v.mu.Groups), func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.FullName(), b.FullName()),
			cmp.Compare(a.Group.String(), b.Group.String()))
	})
	return slices.DeleteFunc(list, func(g Group) bool {
		return !tenant.IsZero() && g.Tenant != tenant
	})
}

// On names the volumes and snapshots that stand on a device, in order.
func (v *View) On(device domain.DeviceID) []string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []string
	for _, x := range v.mu.Volumes {
		if x.Device == device {
			list = append(list, "volume/"+x.Name)
		}
	}
	for _, g := range v.mu.Groups {
		if g.holds(device) {
			list = append(list, "snapshot/"+g.FullName())
		}
	}
	slices.Sort(list)
	return list
}

// holds tells whether a member of the group stands on a device.
func (g *Group) holds(device domain.DeviceID) bool {
	return g.Cut != nil && slices.ContainsFunc(g.Cut.Cuts, func(c snapshot.Cut) bool {
		return c.Device == device && !slices.Contains(g.Deleted, c.Snapshot)
	})
}

// Decision gives the last decision about a volume's place.
func (v *View) Decision(id domain.VolumeID) (Decision, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	d, ok := v.mu.Decisions[string(policy.DecisionStream(id.UUID))]
	return d, ok
}

// Plans lists the last plans, oldest first.
func (v *View) Plans() []Plan {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.Plans
}

// Observe adds the volumes to what the planner sees.
func (v *View) Observe(o *policy.Observed) {
	for _, x := range v.Volumes() {
		o.Volumes = append(o.Volumes, x.Fact())
	}
	for _, g := range v.Groups(domain.TenantID{}) {
		o.Groups = append(o.Groups, g.Fact())
	}
}

// Fact gives the group as the planner sees it.
func (g Group) Fact() policy.Group {
	f := policy.Group{
		Group: g.Group, App: g.App, Tenant: g.Tenant, Name: g.FullName(), Cut: g.Cut != nil,
		Failed: g.Failed != nil,
	}
	for _, m := range g.Members {
		if slices.Contains(g.Deleted, m.Snapshot) {
			continue
		}
		s := policy.Snapshot{
			Volume: m.Volume, Snapshot: m.Snapshot, Deleting: slices.Contains(g.Deleting, m.Snapshot),
		}
		if c, ok := g.CutOf(m.Snapshot); ok {
			s.Device = c.Device
		}
		f.Members = append(f.Members, s)
	}
	return f
}

// Fact gives the volume as the planner sees it.
func (x Volume) Fact() policy.Volume {
	f := policy.Volume{
		Volume: x.Volume, App: x.App, Tenant: x.Tenant, Name: x.Name, Size: x.Size,
		Node: x.Node, Device: x.Device, Epoch: x.Epoch, ServedBy: x.Online.Node,
		Incarnation: x.Online.Incarnation, Export: x.Online.Export, Born: x.Born, Restored: x.Restored,
		Encrypted: x.Encrypted,
	}
	for _, m := range x.Missing {
		f.Missing = append(f.Missing, m.EveryS)
	}
	return f
}
