package policy

import (
	"fmt"
	"slices"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/snapshot"
)

// Source is the snapshot that a wished volume begins as, and the volume that it is of.
type Source struct {
	Snapshot domain.SnapshotID
	Volume   domain.VolumeID
}

// Restore is a wish to roll a volume back.
type Restore struct {
	Restore  domain.UUID // tells this wish from the one before
	Snapshot domain.SnapshotID
	Force    bool // also while hosts use the volume
}

// Group is snapshots that were asked for together.
type Group struct {
	Group   domain.SnapshotGroupID
	App     domain.AppID
	Tenant  domain.TenantID
	Name    string // app@name
	Cut     bool
	Failed  bool
	Members []Snapshot // all that are not gone
}

// Snapshot is one volume's part of a group.
type Snapshot struct {
	Volume   domain.VolumeID
	Snapshot domain.SnapshotID
	Device   domain.DeviceID // where it stands once it is cut
	Deleting bool            // somebody asked for its end
}

// Reasons of a clone that cannot be placed.
const (
	leaving         = "device is being removed"
	sourceGone      = "the snapshot it is to be cloned from is gone"
	sourceElsewhere = "the snapshot it is to be cloned from stands elsewhere"
)

// home gives the device that a clone must stand on, zero for what is no clone; false when its
// source is nowhere. A scheduled cut is in no group: it stands where its volume does.
func (p *planner) home(w *Wish) (domain.DeviceID, bool) {
	if w.Source == nil {
		return domain.DeviceID{}, true
	}
	for _, g := range p.o.Groups {
		for _, m := range g.Members {
			if m.Snapshot == w.Source.Snapshot {
				return m.Device, g.Cut
			}
		}
	}
	if f := p.facts[w.Source.Volume]; f != nil {
		_, ok := snapshot.ScheduledOf(w.Source.Volume, w.Source.Snapshot)
		return f.Device, ok
	}
	return domain.DeviceID{}, false
}

// restore adds the next step towards a roll-back: first no host, so that nothing is written that
// would be lost although it was acknowledged, then the volume's past.
func (p *planner) restore(w *Wish, f *Volume, n *Node) {
	s := Step{
		Order: command.Order{Node: f.Node, Volume: f.Volume, Device: f.Device},
		Name:  w.Name, Wish: w.Restore.Restore,
	}
	if f.ServedBy == f.Node && f.Incarnation == n.Incarnation {
		s.Order.Kind, s.Order.Idle = command.UnexportVolume, !w.Restore.Force
		s.Why = "it is to be rolled back: no host may write meanwhile"
	} else {
		s.Order.Kind, s.Order.Snapshot = command.RollbackVolume, w.Restore.Snapshot
		if w.Shrink != nil {
			s.Order.Size = w.Size // at most: it would be cut off again
		}
		s.Why = "it is to be what it was at snapshot " + w.Restore.Snapshot.String()
	}
	p.add(s)
}

// groups adds the steps of the snapshots that were asked for. What an application leaves behind on
// devices keeps it from ending: left hears of it.
func (p *planner) groups(d *Desired, left map[domain.AppID]bool) {
	ending := map[domain.AppID]bool{}
	for _, e := range d.Endings {
		ending[e.App] = true
	}
	wished := map[domain.VolumeID]bool{}
	for _, w := range d.Volumes {
		wished[w.Volume] = true
	}
	for i := range p.o.Groups {
		g := &p.o.Groups[i]
		left[g.App] = left[g.App] || len(g.Members) > 0
		going := true
		for _, m := range g.Members {
			if m.Deleting || ending[g.App] {
				p.drop(g, m)
			} else {
				going = false
			}
		}
		if !g.Cut && !g.Failed && !going {
			p.cut(g, wished)
		}
	}
}

// drop adds the step by which a snapshot goes. One that was never cut may stand on its volume's
// device all the same: the answer to the order may have been lost.
func (p *planner) drop(g *Group, m Snapshot) {
	at := m.Device
	if f := p.facts[m.Volume]; at.IsZero() && f != nil {
		at = f.Device
	}
	s := Step{Group: g.Group, Tenant: g.Tenant, Name: g.Name}
	s.Why = "nobody wants the snapshot any more"
	s.Order = command.Order{
		Kind: command.DeleteSnapshot, Volume: m.Volume, Snapshot: m.Snapshot, Device: at,
	}
	i := slices.IndexFunc(p.o.Devices, func(d Device) bool { return d.Device == at })
	if at.IsZero() || i < 0 || g.Failed {
		s.Fact = &snapshot.SnapshotDeleted{Snapshot: m.Snapshot}
		p.add(s)
		return
	}
	s.Order.Node = p.o.Devices[i].Node
	if n := p.node(s.Order.Node); n == nil || n.Down {
		return
	}
	p.add(s)
}

// cut adds the step that cuts a group, or says why that will never be.
func (p *planner) cut(g *Group, wished map[domain.VolumeID]bool) {
	s := Step{Group: g.Group, Tenant: g.Tenant, Name: g.Name, Why: "it was asked for and is not taken"}
	s.Order.Kind = command.CutSnapshots
	for _, m := range g.Members {
		if m.Deleting {
			continue
		}
		f := p.facts[m.Volume]
		switch {
		case f == nil && wished[m.Volume]: // it is on its way
			return
		case f == nil:
			p.never(g, fmt.Sprintf("volume %s is gone", m.Volume))
			return
		case !s.Order.Node.IsZero() && s.Order.Node != f.Node:
			p.never(g, "its volumes stand on two nodes, and one cut is of one node: "+
				"take a snapshot of the volumes of each node by itself")
			return
		}
		s.Order.Node = f.Node
		s.Order.Cuts = append(s.Order.Cuts, command.Cut{
			Volume: m.Volume, Device: f.Device, Snapshot: m.Snapshot,
		})
	}
	if n := p.node(s.Order.Node); n == nil || n.Down {
		return
	}
	p.add(s)
}

func (p *planner) never(g *Group, why string) {
	p.add(Step{
		Group: g.Group, Tenant: g.Tenant, Name: g.Name, Why: why,
		Fact: &snapshot.SnapshotFailed{Why: why},
	})
}

// Never tells whether an order to cut that failed with this kind will always fail.
func Never(k domain.Kind) bool {
	switch k { //nolint:exhaustive // the others pass
	case domain.NotFound, domain.Exists, domain.Conflict, domain.TooLarge, domain.Unsupported,
		domain.Invalid:
		return true
	}
	return false
}

// Refusal tells whether an order that leads to a roll-back and failed with this kind ends the wish.
func Refusal(k domain.Kind) bool { return Never(k) }

// Timed is one application instance's volumes on one node that follow one rule: they are cut at one
// instant.
type Timed struct {
	App     domain.AppID
	Node    domain.NodeID
	Rule    snapshot.Rule
	Name    string // tenant/app
	Volumes []Volume
}

// Schedules lists what is cut by the clock: every volume that is there, wanted and whose node is
// up, by application, node and rule, in a fixed order.
func Schedules(d Desired, o Observed) []Timed {
	type key struct {
		app  domain.AppID
		node domain.NodeID
		rule snapshot.Rule
	}
	p, open := newPlanner(o), map[key]int{} // the last entry of out with room
	var out []Timed
	for i := range d.Volumes {
		w := &d.Volumes[i]
		f := p.facts[w.Volume]
		if f == nil {
			continue
		}
		if n := p.node(f.Node); n == nil || n.Down {
			continue
		}
		for _, r := range w.Set.Intent.Protection.Snapshots {
			rule := snapshot.Rule{Every: r.Every(), Keep: int(r.Keep)}
			k := key{w.App, f.Node, rule}
			at, ok := open[k]
			if !ok || len(out[at].Volumes) == snapshot.MembersMax {
				at = len(out)
				out, open[k] = append(out, Timed{App: w.App, Node: f.Node, Rule: rule, Name: w.Name}), at
			}
			out[at].Volumes = append(out[at].Volumes, *f)
		}
	}
	return out
}

// Due gives the cuts of a schedule that are to be taken now, given the cuts each of its volumes
// has, and when to ask again.
func (t Timed) Due(now time.Time, have func(domain.VolumeID) []snapshot.Scheduled) (
	cuts []command.Cut, tick snapshot.Scheduled, next time.Time,
) {
	for _, v := range t.Volumes {
		c, due, then := t.Rule.Due(v.Born, now, have(v.Volume))
		tick, next = c, then
		if due {
			cuts = append(cuts, command.Cut{Volume: v.Volume, Device: v.Device, Snapshot: c.ID(v.Volume)})
		}
	}
	return cuts, tick, next
}
