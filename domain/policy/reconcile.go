package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"weft/domain"
	"weft/domain/command"
)

// Limits of the planner.
const (
	// StepsMax is the most steps of one plan: the next plan goes on from there.
	StepsMax = 128
	// Overcommit is how many times its usable bytes a device may be promised to thin volumes.
	Overcommit = 10
	// candidatesMax is how many scored candidates a decision keeps.
	candidatesMax = 5
	// suspectScore takes a suspect device's score below that of the fullest one that is well.
	suspectScore = 1001
)

// Wish is one volume as operators want it.
type Wish struct {
	Volume       domain.VolumeID
	App          domain.AppID
	Tenant       domain.TenantID
	Name         string // tenant/app/volume
	Size         domain.Bytes
	LogicalBlock int
	Set          Set
	Export       command.Export
	Source       *Source  // it begins as a snapshot; nil: empty
	Restore      *Restore // the last wish to roll it back; nil: none
	Shrink       *Shrink  // its size was made smaller on purpose; nil: it was not
}

// Shrink is the wish that a volume gives up what it has beyond its size.
type Shrink struct {
	Force bool // also while hosts use the volume
}

// Ending is an application instance that shall go.
type Ending struct {
	App    domain.AppID
	Tenant domain.TenantID
	Name   string
}

// Desired is everything that operators want.
type Desired struct {
	Volumes []Wish
	Endings []Ending
}

// Node is a node as the log knows it.
type Node struct {
	Node        domain.NodeID
	Number      domain.NodeNumber
	Name        string
	Incarnation uint64
	Down        bool // it holds no lease: no order reaches it
	Drained     bool // it takes no new volumes
}

// Device is a device as the log knows it.
type Device struct {
	Device domain.DeviceID
	Node   domain.NodeID
	Path   string
	Class  string
	Usable domain.Bytes
	Failed bool
	// Suspect devices are slow or err: they serve on, and take new volumes only where no other can.
	Suspect bool
	// Leaving devices are put out of use once they are empty: they take no new volumes.
	Leaving bool
}

// Volume is what became of a volume.
type Volume struct {
	Volume      domain.VolumeID
	App         domain.AppID
	Tenant      domain.TenantID
	Name        string
	Size        domain.Bytes
	Node        domain.NodeID
	Device      domain.DeviceID
	Epoch       domain.Epoch
	ServedBy    domain.NodeID // zero: nobody
	Incarnation uint64        // of the node when it began to serve
	Export      []byte        // digest of the export it serves by
	Born        time.Time
	Restored    domain.UUID // the last wish to roll back that was fulfilled or refused
	Missing     []int64     // rules whose last cut was not taken: their seconds
	Encrypted   bool
}

// Observed is everything that is so, at one position of the log.
type Observed struct {
	Position domain.Position
	Nodes    []Node
	Devices  []Device
	Volumes  []Volume
	Groups   []Group // of snapshots that somebody asked for and that are not gone
}

// Step is one thing to do, and why.
type Step struct {
	Order  command.Order // ID and Token are the reconciler's to fill
	Finish *Ending       // instead of an order: nothing of the application is left
	Fact   domain.Event  // instead of an order: what is so of Group without one
	Group  domain.SnapshotGroupID
	Tenant domain.TenantID // of Group
	Wish   domain.UUID     // of RollbackVolume and what leads to it: the wish to restore
	Name   string
	Why    string
}

// Candidate is a device that was scored for a placement; higher is better.
type Candidate struct {
	Device domain.DeviceID `msgpack:"device,omitempty"`
	// Score is in thousandths; negative: suspect, or without room for the volume's minima.
	Score int64 `msgpack:"score,omitempty"`
	// Crowded devices have no room for the volume's minima.
	Crowded bool `msgpack:"crowded,omitempty"`
}

// Suspect tells whether the device was slow or erred.
func (c Candidate) Suspect() bool {
	if c.Crowded {
		return c.Score < -crowdedScore
	}
	return c.Score < 0
}

// Reject counts the devices that one constraint excluded.
type Reject struct {
	Why   string `msgpack:"why,omitempty"`
	Count int64  `msgpack:"count,omitempty"`
}

// Placement is the answer to "why is it there", or "why is it nowhere".
type Placement struct {
	Volume     domain.VolumeID
	Chosen     *Device
	Considered int
	Rejects    []Reject
	Candidates []Candidate
	Remedies   []string
}

// Plan is what to do next. Steps of one plan do not depend on each other.
type Plan struct {
	Base       domain.Position
	Steps      []Step
	Placements []Placement
}

// Reconcile compares wishes with facts. It is pure: the same input, the same plan. Where all wishes
// are facts the plan is empty.
func Reconcile(d Desired, o Observed) Plan {
	p := newPlanner(o)
	wanted := map[domain.VolumeID]bool{}
	for _, v := range o.Volumes {
		p.promised[v.Device] += v.Size
	}
	wishes := slices.Clone(d.Volumes)
	slices.SortFunc(wishes, func(a, b Wish) int { return cmp.Compare(a.Name, b.Name) })
	p.reserve(wishes)
	for i := range wishes {
		wanted[wishes[i].Volume] = true
		p.volume(&wishes[i])
	}
	left := map[domain.AppID]bool{}
	for _, v := range o.Volumes {
		left[v.App] = true
		if !wanted[v.Volume] {
			p.remove(v)
		}
	}
	p.groups(&d, left)
	for _, e := range d.Endings {
		if !left[e.App] {
			p.add(Step{Finish: &e, Name: e.Name, Why: "nothing of it is left"})
		}
	}
	return p.plan
}

// planner gathers the steps of one plan.
type planner struct {
	o        Observed
	facts    map[domain.VolumeID]*Volume // into o, so that a plan costs the sum of wishes and facts
	plan     Plan
	promised map[domain.DeviceID]domain.Bytes // to volumes, this plan's included
	reserved map[domain.DeviceID]minima       // for volumes, likewise
}

func (p *planner) add(s Step) {
	if len(p.plan.Steps) < StepsMax {
		p.plan.Steps = append(p.plan.Steps, s)
	}
}

func newPlanner(o Observed) *planner {
	p := &planner{
		o: o, plan: Plan{Base: o.Position}, promised: map[domain.DeviceID]domain.Bytes{},
		facts:    make(map[domain.VolumeID]*Volume, len(o.Volumes)),
		reserved: map[domain.DeviceID]minima{},
	}
	for i := range o.Volumes {
		p.facts[o.Volumes[i].Volume] = &o.Volumes[i]
	}
	return p
}

func (p *planner) node(id domain.NodeID) *Node {
	for i := range p.o.Nodes {
		if p.o.Nodes[i].Node == id {
			return &p.o.Nodes[i]
		}
	}
	return nil
}

// volume adds the next step towards one wish: place and create, then grow, then export.
func (p *planner) volume(w *Wish) {
	if len(p.plan.Steps) >= StepsMax {
		return
	}
	f := p.facts[w.Volume]
	if f == nil {
		p.place(w)
		return
	}
	ord := command.Order{Node: f.Node, Volume: f.Volume, Device: f.Device}
	n := p.node(f.Node)
	switch {
	case n == nil || n.Down: // what it serves goes on, or does not; an order would only fail
		return
	case w.Restore != nil && w.Restore.Restore != f.Restored:
		p.restore(w, f, n)
	case w.Size > f.Size:
		ord.Kind, ord.Size = command.ResizeVolume, w.Size
		p.add(Step{
			Order: ord, Name: w.Name,
			Why: fmt.Sprintf("%s is wanted, %s is there", w.Size, f.Size),
		})
	case w.Shrink != nil && w.Size < f.Size:
		p.shrink(w, f, n)
	case f.ServedBy != f.Node || f.Incarnation != n.Incarnation:
		ord.Kind, ord.Export = command.ExportVolume, w.Export
		p.add(Step{
			Order: ord, Name: w.Name,
			Why: p.because(w, f.Device,
				fmt.Sprintf("node %s does not serve it since its start", n.Name)),
		})
	case !bytes.Equal(f.Export, w.Export.Digest()):
		ord.Kind, ord.Export = command.ExportVolume, w.Export
		p.add(Step{
			Order: ord, Name: w.Name, Why: p.because(w, f.Device, "its export has changed"),
		})
	}
}

// shrink adds the next step towards a smaller volume: first no host, whose file system may still
// reach beyond the new end, then the size.
func (p *planner) shrink(w *Wish, f *Volume, n *Node) {
	s := Step{
		Order: command.Order{Node: f.Node, Volume: f.Volume, Device: f.Device}, Name: w.Name,
	}
	if f.ServedBy == f.Node && f.Incarnation == n.Incarnation {
		s.Order.Kind, s.Order.Idle = command.UnexportVolume, !w.Shrink.Force
		s.Why = "it is to become smaller: no host may use what goes"
	} else {
		s.Order.Kind, s.Order.Size = command.ResizeVolume, w.Size
		s.Why = fmt.Sprintf("%s is wanted, %s is there", w.Size, f.Size)
	}
	p.add(s)
}

// remove adds the next step to be rid of a volume: first no host, then no data.
func (p *planner) remove(v Volume) {
	ord := command.Order{Node: v.Node, Volume: v.Volume, Device: v.Device}
	if n := p.node(v.Node); n != nil && n.Down {
		return
	}
	if !v.ServedBy.IsZero() {
		ord.Kind = command.UnexportVolume
		p.add(Step{Order: ord, Name: v.Name, Why: "nobody wants it any more"})
		return
	}
	ord.Kind = command.DeleteVolume
	p.add(Step{Order: ord, Name: v.Name, Why: "nobody wants it and no host reaches it"})
}

// place chooses a device for a new volume and keeps why.
func (p *planner) place(w *Wish) {
	pl := Placement{Volume: w.Volume, Considered: len(p.o.Devices)}
	home, ok := p.home(w)
	if !ok {
		pl.Considered, pl.Rejects = 0, []Reject{{sourceGone, 1}}
		pl.Remedies = remedies(w, pl.Rejects)
		p.plan.Placements = append(p.plan.Placements, pl)
		return
	}
	var rejects []Reject
	reject := func(why string) {
		for i := range rejects {
			if rejects[i].Why == why {
				rejects[i].Count++
				return
			}
		}
		rejects = append(rejects, Reject{why, 1})
	}
	for i := range p.o.Devices {
		d := &p.o.Devices[i]
		n := p.node(d.Node)
		limit := d.Usable * Overcommit
		switch {
		case !home.IsZero() && d.Device != home:
			reject(sourceElsewhere)
		case d.Failed:
			reject("device failed")
		case n == nil:
			reject("node unknown")
		case n.Down:
			reject("node down")
		case n.Drained && home.IsZero():
			reject("node drained")
		case d.Leaving && home.IsZero():
			reject(leaving)
		case home.IsZero() && d.Class != w.Set.Intent.Placement.Capacity:
			reject("media is " + d.Class + ", not " + w.Set.Intent.Placement.Capacity)
		case p.promised[d.Device]+w.Size > limit:
			reject("promised more than " + fmt.Sprint(Overcommit) + " times its size")
		default:
			score := 1000 - int64((p.promised[d.Device]+w.Size)*1000/limit)
			if d.Suspect {
				score -= suspectScore
			}
			m := minimum(w)
			crowded := m != (minima{}) && p.reserved[d.Device].plus(m).crowded(d.Class) != ""
			if crowded {
				score -= crowdedScore
			}
			pl.Candidates = append(pl.Candidates, Candidate{d.Device, score, crowded})
		}
	}
	pl.Rejects = rejects
	slices.SortStableFunc(pl.Candidates, func(a, b Candidate) int {
		if a.Score != b.Score {
			return cmp.Compare(b.Score, a.Score)
		}
		return bytes.Compare(a.Device.UUID[:], b.Device.UUID[:])
	})
	if len(pl.Candidates) == 0 {
		pl.Remedies = remedies(w, rejects)
		p.plan.Placements = append(p.plan.Placements, pl)
		return
	}
	p.choose(w, pl)
}

// choose takes the best candidate and adds the step that creates the volume there.
func (p *planner) choose(w *Wish, pl Placement) {
	for i := range p.o.Devices {
		if p.o.Devices[i].Device == pl.Candidates[0].Device {
			pl.Chosen = &p.o.Devices[i]
		}
	}
	pl.Candidates = pl.Candidates[:min(len(pl.Candidates), candidatesMax)]
	p.promised[pl.Chosen.Device] += w.Size
	p.reserved[pl.Chosen.Device] = p.reserved[pl.Chosen.Device].plus(minimum(w))
	p.plan.Placements = append(p.plan.Placements, pl)
	s := Step{
		Order: command.Order{
			Kind: command.CreateVolume, Node: pl.Chosen.Node, Volume: w.Volume,
			Device: pl.Chosen.Device, Size: w.Size, Epoch: domain.Epoch(p.o.Position),
			Encrypted: w.Set.Intent.Security.Encryption == "on",
		},
		Name: w.Name,
		Why:  "it is wanted and does not exist",
	}
	if w.Source != nil {
		s.Order.Kind, s.Order.Snapshot = command.CloneVolume, w.Source.Snapshot
		s.Why = "it is wanted as a clone and does not exist"
	}
	s.Why = p.because(w, pl.Chosen.Device, s.Why)
	p.add(s)
}

// remedies says what would make an impossible placement possible.
func remedies(w *Wish, rejects []Reject) []string {
	if len(rejects) == 0 {
		return []string{"add a device"}
	}
	var out []string
	for _, r := range rejects {
		switch {
		case r.Why == "device failed":
			out = append(out, "replace the failed device")
		case r.Why == "node unknown", r.Why == "node down":
			out = append(out, "bring the device's node back")
		case r.Why == sourceGone:
			out = append(out, "delete the volume, and clone from a snapshot that is there")
		case r.Why == sourceElsewhere: // nothing helps: a clone shares its source's blocks
		case r.Why == "node drained":
			out = append(out, "let the node take part again: weft node drain --undo")
		case r.Why == leaving:
			out = append(out, "add another device: weft node device add; or keep it: weft node device keep")
		case len(r.Why) > 8 && r.Why[:8] == "media is":
			out = append(out, "add a "+w.Set.Intent.Placement.Capacity+
				" device, or change placement.capacity")
		default:
			out = append(out, "add a device, or ask for less than "+w.Size.String())
		}
	}
	return out
}

// Compliance says how far a volume is what its policy set demands.
type Compliance struct {
	State  string // "compliant", "converging", "violated"
	Reason string
}

// Check judges one volume by its fact, nil when it has none. A demand that no hardware can meet yet
// is converging, with the reason.
func Check(w Wish, f *Volume, o *Observed) Compliance {
	down := f != nil && slices.ContainsFunc(o.Nodes, func(n Node) bool {
		return n.Node == f.Node && n.Down
	})
	before := f != nil && slices.ContainsFunc(o.Nodes, func(n Node) bool {
		return n.Node == f.ServedBy && n.Incarnation != f.Incarnation
	})
	failed := f != nil && slices.ContainsFunc(o.Devices, func(d Device) bool {
		return d.Device == f.Device && d.Failed
	})
	switch {
	case f == nil:
		return Compliance{"converging", "not placed yet"}
	case down:
		return Compliance{"violated", "its node is down"}
	case failed:
		return Compliance{"violated", "its device failed"}
	case f.ServedBy.IsZero():
		return Compliance{"converging", "not served yet"}
	case before:
		return Compliance{"converging", "not served since its node's start"}
	case w.Restore != nil && w.Restore.Restore != f.Restored:
		return Compliance{"converging", "rolling back"}
	case f.Size < w.Size:
		return Compliance{"converging", "growing"}
	case len(f.Missing) > 0:
		return Compliance{"violated", "scheduled snapshots fail"}
	case w.Set.Intent.Security.Encryption == "on" && !f.Encrypted:
		return Compliance{"violated", "it is not encrypted: only a new volume can be"}
	case w.Set.Intent.Security.Encryption == "off" && f.Encrypted:
		return Compliance{"violated", "it is encrypted, and stays so"}
	}
	if n := w.Set.Intent.Availability.Replicas; n > 1 {
		return Compliance{"converging", fmt.Sprintf("1 of %d copies: add %d nodes", n, n-1)}
	}
	return Compliance{"compliant", ""}
}
