// Package topology is the view of nodes and devices: what the planner may place on.
package topology

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/policy"
	"weft/projections"
)

// Node is a node with its software version and where it is reached.
type Node struct {
	policy.Node
	Version  string
	Since    domain.Position
	Endpoint cluster.NodeEndpointChanged
	Removed  bool
	// Lost says that a recovery of the log gave the node up as a voter, and it was not back since.
	Lost     bool
	Location cluster.Location
	Vote     string // "voter", "learner", or empty for a client of the log
	Member   uint64 // of the log while it has or learns to vote
	// Wanted is what the node shall take into use, Refused what it would not when last asked.
	Wanted  []string
	Refused []cluster.DeviceAddRefused
}

// RefusedMax is how many refused devices are remembered of a node.
const RefusedMax = 16

// Device is a device with what its admission said.
type Device struct {
	cluster.DeviceAdmitted
	Failed  bool
	Leaving bool // it is put out of use once it is empty
	Why     string
	Since   time.Time // when it was admitted
	// Suspended says by which rule the device is slow or errs; empty: it is well. Why says what was
	// seen.
	Suspended string
	Paused    bool                  // the scrub
	Asked     domain.Position       // the last wish for a pass
	Scrubbed  cluster.ScrubFinished // the last pass that came to its end
	Ended     domain.Position       // of Scrubbed
	Damages   []cluster.DamageFound // of the last pass and of the one under way, each place once
}

// View folds clusters, nodes, devices and the reconciler's role.
type View struct {
	mu struct {
		sync.RWMutex
		state
	}
}

type state struct {
	Cluster domain.ClusterID
	Name    string
	Leader  domain.NodeID
	Token   uint64
	Nodes   map[string]Node // by id
	Devices map[string]Device
	// Settings are the changed settings of the cluster, in order of key.
	Settings []cluster.SettingChanged
	// Damaged is what nodes found damaged of their copies of the log.
	Damaged []cluster.LogDamaged
	// Engine is which log takes intents.
	Engine cluster.Engine
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view.
func New() *View {
	v := &View{}
	v.mu.Nodes, v.mu.Devices = map[string]Node{}, map[string]Device{}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "topology" }

// Version implements projections.View.
func (*View) Version() uint16 { return 7 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &v.mu.state
	s.Engine = s.Engine.After(r.Event)
	id := string(r.Stream)
	switch ev := r.Event.(type) {
	case *cluster.ClusterInitialized:
		s.Cluster, s.Name = ev.Cluster, ev.Name
	case *cluster.SettingChanged:
		s.Settings = cluster.WithSetting(s.Settings, *ev)
	case *cluster.LeadershipAcquired:
		s.Leader = ev.Node
		s.Token = uint64(domain.PositionOf(r.Position.Timeline(), uint64(r.Revision)))
	case *cluster.NodeJoined:
		n := policy.Node{Node: ev.Node, Number: ev.Number, Name: ev.Name, Incarnation: ev.Incarnation}
		s.Nodes[id] = Node{Node: n, Since: r.Position}
	case *cluster.LogRecovered:
		s.lose(ev.Lost)
	case *cluster.NodeRestarted:
		n := s.Nodes[id]
		n.Incarnation, n.Since, n.Lost = ev.Incarnation, r.Position, false
		s.Nodes[id] = n
	case *cluster.SoftwareVersionChanged:
		n := s.Nodes[id]
		n.Version = ev.To
		s.Nodes[id] = n
	case *cluster.NodeEndpointChanged, *cluster.NodeDown, *cluster.NodeReturned,
		*cluster.NodeDrainRequested, *cluster.NodeUncordoned, *cluster.NodeRemoved,
		*cluster.NodeLocationChanged, *cluster.DeviceAddRequested, *cluster.DeviceAdded,
		*cluster.DeviceAddRefused:
		s.Nodes[id] = s.Nodes[id].after(ev)
	case *cluster.LearnerAdded:
		s.vote(ev.Node, ev.Member, "learner")
	case *cluster.VoterPromoted:
		s.vote(ev.Node, ev.Member, "voter")
	case *cluster.VoterRemoved:
		s.vote(ev.Node, 0, "")
		s.Damaged = cluster.WithDamage(s.Damaged, ev)
	case *cluster.LogDamaged, *cluster.LogRepaired:
		s.Damaged = cluster.WithDamage(s.Damaged, ev)
	case *cluster.DeviceAdmitted:
		s.Devices[id] = Device{DeviceAdmitted: *ev, Since: r.Created}
	case *cluster.DeviceFailed:
		d := s.Devices[id]
		d.Failed, d.Why = true, ev.Why
		s.Devices[id] = d
	case *cluster.DeviceRetired:
		delete(s.Devices, id)
	case *cluster.DeviceReadmitted:
		d := s.Devices[id]
		d.Failed, d.Why, d.Suspended = false, "", ""
		s.Devices[id] = d
	case *cluster.DeviceSuspended, *cluster.ScrubRequested, *cluster.ScrubPaused,
		*cluster.ScrubFinished, *cluster.DamageFound, *cluster.DeviceRemovalRequested,
		*cluster.DeviceRemovalCancelled:
		s.Devices[id] = s.Devices[id].after(ev, r.Position)
	}
	return nil
}

// after folds what a node found out about a device, and wishes to scrub it.
func (d Device) after(ev domain.Event, at domain.Position) Device {
	switch ev := ev.(type) {
	case *cluster.DeviceRemovalRequested:
		d.Leaving = true
	case *cluster.DeviceRemovalCancelled:
		d.Leaving = false
	case *cluster.DeviceSuspended:
		d.Suspended, d.Why = ev.Rule, ev.Why
	case *cluster.ScrubRequested:
		d.Paused, d.Asked = false, at
	case *cluster.ScrubPaused:
		d.Paused = true
	case *cluster.ScrubFinished:
		d.Scrubbed, d.Ended = *ev, at
		d.Damages = slices.DeleteFunc(slices.Clone(d.Damages), func(x cluster.DamageFound) bool {
			return x.Pass < ev.Pass
		})
	case *cluster.DamageFound:
		d.Damages = append(slices.DeleteFunc(slices.Clone(d.Damages), func(x cluster.DamageFound) bool {
			return x.Place(ev)
		}), *ev)
	}
	return d
}

// after folds what became of a node.
func (n Node) after(ev domain.Event) Node {
	switch ev := ev.(type) {
	case *cluster.NodeEndpointChanged:
		n.Endpoint = *ev
	case *cluster.NodeDown:
		n.Down = true
	case *cluster.NodeReturned:
		n.Down, n.Lost = false, false
	case *cluster.NodeDrainRequested:
		n.Drained = true
	case *cluster.NodeUncordoned:
		n.Drained = false
	case *cluster.NodeRemoved:
		n.Removed = true
	case *cluster.NodeLocationChanged:
		n.Location = ev.Location
	case *cluster.DeviceAddRequested:
		n.refuse(ev.Spec)
	case *cluster.DeviceAdded:
		n.refuse(ev.Spec)
	case *cluster.DeviceAddRefused:
		n.refuse(ev.Spec, *ev)
	}
	n.Wanted = cluster.Wanted(n.Wanted, ev)
	return n
}

// refuse replaces what is known of the refusal of a device; of the last RefusedMax it is known.
func (n *Node) refuse(spec string, now ...cluster.DeviceAddRefused) {
	list := slices.DeleteFunc(slices.Clone(n.Refused), func(r cluster.DeviceAddRefused) bool {
		return r.Spec == spec
	})
	list = append(list, now...)
	n.Refused = list[max(0, len(list)-RefusedMax):]
}

func (s *state) vote(id domain.NodeID, member uint64, vote string) {
	key := string(cluster.NodeStream(id))
	if n, ok := s.Nodes[key]; ok {
		n.Vote, n.Member = vote, member
		s.Nodes[key] = n
	}
}

// lose marks the nodes whose members a recovery gave up.
func (s *state) lose(members []cluster.LostMember) {
	for _, m := range members {
		key := string(cluster.NodeStream(m.Node))
		if n, ok := s.Nodes[key]; ok && !m.Node.IsZero() {
			n.Lost = true
			s.Nodes[key] = n
		}
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
	c.mu.state = v.mu.state
	c.mu.Nodes, c.mu.Devices = maps.Clone(v.mu.Nodes), maps.Clone(v.mu.Devices)
	return c
}

// Cluster gives the cluster's id and name.
func (v *View) Cluster() (domain.ClusterID, string) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.state.Cluster, v.mu.Name
}

// Settings gives every setting of the cluster.
func (v *View) Settings() []cluster.Setting {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return cluster.Settings(v.mu.Settings)
}

// Engine tells which log takes intents.
func (v *View) Engine() cluster.Engine {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.Engine
}

// LogWindow gives how many events the log's database holds before the oldest leave it.
func (v *View) LogWindow() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return cluster.LogWindow(v.mu.Settings)
}

// Damaged lists what of the log is damaged on nodes that are there, in the order in which it was
// found.
func (v *View) Damaged() []cluster.LogDamaged {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []cluster.LogDamaged
	for _, d := range v.mu.Damaged {
		if n, ok := v.mu.Nodes[string(cluster.NodeStream(d.Node))]; ok && !n.Removed {
			list = append(list, d)
		}
	}
	return list
}

// Leader gives the holder of the reconciler's role and its token.
func (v *View) Leader() (domain.NodeID, uint64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.Leader, v.mu.Token
}

// Nodes lists the nodes by name.
func (v *View) Nodes() []Node {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Nodes), func(a, b Node) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// Node finds a node.
func (v *View) Node(id domain.NodeID) (Node, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	n, ok := v.mu.Nodes[string(cluster.NodeStream(id))]
	return n, ok
}

// Devices lists the devices by path, then id.
func (v *View) Devices() []Device {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Devices), func(a, b Device) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Device.String(), b.Device.String()))
	})
}

// Device finds a device.
func (v *View) Device(id domain.DeviceID) (Device, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	d, ok := v.mu.Devices[string(cluster.DeviceStream(id))]
	return d, ok
}

// Observe adds nodes and devices to what the planner sees.
func (v *View) Observe(o *policy.Observed) {
	for _, n := range v.Nodes() {
		if !n.Removed {
			o.Nodes = append(o.Nodes, n.Node)
		}
	}
	for _, d := range v.Devices() {
		if d.Class == cluster.ClassNVRAM {
			continue // no volume stands there
		}
		o.Devices = append(o.Devices, policy.Device{
			Device: d.Device, Node: d.Node, Path: d.Path, Class: d.Class, Usable: d.Usable,
			Failed: d.Failed, Suspect: d.Suspended != "", Leaving: d.Leaving,
		})
	}
}
