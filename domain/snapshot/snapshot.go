// Package snapshot holds snapshots that somebody asked for: what was asked, and what became of it.
// One request names one volume of an application instance or several, and all of them are cut at
// one instant, so the unit of this package is the group; a snapshot of one volume is a group of
// one.
//
// Snapshots that a schedule takes are not here. They are facts of the engines alone, named by their
// rule and their time (see Scheduled): hourly cuts of 100,000 volumes would be millions of events
// a day that nobody asks for. One of them enters the log when somebody deletes it by hand.
package snapshot

import (
	"fmt"
	"slices"
	"time"

	"weft/domain"
	"weft/domain/tenancy"
)

// Category of a group's stream.
const Category = "snapshot"

// MembersMax is the most volumes that one cut freezes.
const MembersMax = 25

// Stream gives a group's stream.
func Stream(id domain.SnapshotGroupID) domain.StreamID { return domain.StreamOf(Category, id.UUID) }

// Member is one volume's part of a group.
type Member struct {
	Volume     domain.VolumeID   `msgpack:"volume,omitempty"`
	VolumeName string            `msgpack:"volume_name,omitempty"`
	Snapshot   domain.SnapshotID `msgpack:"snapshot,omitempty"`
}

// SnapshotRequested is the first event of a group.
type SnapshotRequested struct {
	Group   domain.SnapshotGroupID `msgpack:"group,omitempty"`
	App     domain.AppID           `msgpack:"app,omitempty"`
	Tenant  domain.TenantID        `msgpack:"tenant,omitempty"`
	AppName string                 `msgpack:"app_name,omitempty"`
	Name    string                 `msgpack:"name,omitempty"` // unique in the application instance
	Members []Member               `msgpack:"members,omitempty"`
}

// Cut is what one member is, once cut. Nothing of it changes but the device: SnapshotMoved.
type Cut struct {
	Snapshot   domain.SnapshotID `msgpack:"snapshot,omitempty"`
	Device     domain.DeviceID   `msgpack:"device,omitempty"`
	Generation int64             `msgpack:"generation,omitempty"` // that ended with the cut
	Size       domain.Bytes      `msgpack:"size,omitempty"`
}

// SnapshotCut says that a node has frozen all members at one instant.
type SnapshotCut struct {
	Node domain.NodeID `msgpack:"node,omitempty"`
	At   time.Time     `msgpack:"at,omitempty"` // by the node's clock
	Cuts []Cut         `msgpack:"cuts,omitempty"`
}

// SnapshotMoved says that members stand on another device of their node, unchanged.
type SnapshotMoved struct {
	Snapshots []domain.SnapshotID `msgpack:"snapshots,omitempty"`
	To        domain.DeviceID     `msgpack:"to,omitempty"`
}

// SnapshotFailed says that the group will never be cut.
type SnapshotFailed struct {
	Why string `msgpack:"why,omitempty"`
}

// SnapshotDeleteRequested says that members shall go.
type SnapshotDeleteRequested struct {
	Snapshots []domain.SnapshotID `msgpack:"snapshots,omitempty"`
}

// SnapshotDeleted says that one member is gone, and whether it was the last: then the group's name
// is free.
type SnapshotDeleted struct {
	Snapshot domain.SnapshotID `msgpack:"snapshot,omitempty"`
	Last     bool              `msgpack:"last,omitempty"`
}

// EventType implements domain.Event.
func (SnapshotRequested) EventType() string { return "SnapshotRequested" }

// EventType implements domain.Event.
func (SnapshotCut) EventType() string { return "SnapshotCut" }

// EventType implements domain.Event.
func (SnapshotMoved) EventType() string { return "SnapshotMoved" }

// EventType implements domain.Event.
func (SnapshotFailed) EventType() string { return "SnapshotFailed" }

// EventType implements domain.Event.
func (SnapshotDeleteRequested) EventType() string { return "SnapshotDeleteRequested" }

// EventType implements domain.Event.
func (SnapshotDeleted) EventType() string { return "SnapshotDeleted" }

// Request asks for a group. Its name is taken in the tenant first.
type Request struct{ SnapshotRequested }

// Adopt enters a cut that a schedule took, and asks at once for its deletion.
type Adopt struct {
	SnapshotRequested
	Cut SnapshotCut
}

// Delete asks for the deletion of members, all of them when none is named. What is gone already is
// no error.
type Delete struct {
	Group     domain.SnapshotGroupID
	Snapshots []domain.SnapshotID
}

// Record notes a fact about a group: SnapshotCut, SnapshotMoved, SnapshotFailed or SnapshotDeleted.
// What is known already notes nothing.
type Record struct {
	Group domain.SnapshotGroupID
	Fact  domain.Event
}

// FullName is how a group's name is reserved and shown: "web@before".
func (r SnapshotRequested) FullName() string { return r.AppName + "@" + r.Name }

// CommandType implements domain.Command.
func (Request) CommandType() string { return "RequestSnapshot" }

// Stream implements domain.Command.
func (c Request) Stream() domain.StreamID { return Stream(c.Group) }

// Validate implements domain.Validator.
func (c Request) Validate() error {
	var chk domain.Checker
	chk.Check(tenancy.ValidName(c.Name), "name", "%q is no name: a lower-case DNS label", c.Name)
	chk.Check(len(c.Members) > 0, "volumes", "no volume is named")
	chk.Check(len(c.Members) <= MembersMax, "volumes", "%d volumes: one cut takes at most %d",
		len(c.Members), MembersMax)
	for i, m := range c.Members {
		twice := slices.ContainsFunc(c.Members[:i], func(o Member) bool { return o.Volume == m.Volume })
		chk.Check(!twice, fmt.Sprintf("volumes[%d]", i), "%q is given twice", m.VolumeName)
	}
	return chk.Err("snapshot.Request", c.Name)
}

// Before implements domain.Prelude.
func (c Request) Before() []domain.Command { return reserve(c.SnapshotRequested) }

// Undo implements domain.Reversal.
func (c Request) Undo() []domain.Command { return release(c.SnapshotRequested, "snapshot refused") }

func reserve(r SnapshotRequested) []domain.Command {
	return []domain.Command{tenancy.Reserve{
		Tenant: r.Tenant, Kind: "snapshot", Name: r.FullName(), Object: r.Group.UUID,
	}}
}

func release(r SnapshotRequested, why string) []domain.Command {
	return []domain.Command{tenancy.Release{Tenant: r.Tenant, Object: r.Group.UUID, Why: why}}
}

// CommandType implements domain.Command.
func (Adopt) CommandType() string { return "DeleteScheduledSnapshot" }

// Stream implements domain.Command.
func (c Adopt) Stream() domain.StreamID { return Stream(c.Group) }

// Before implements domain.Prelude.
func (c Adopt) Before() []domain.Command { return reserve(c.SnapshotRequested) }

// Undo implements domain.Reversal.
func (c Adopt) Undo() []domain.Command { return release(c.SnapshotRequested, "deletion refused") }

// CommandType implements domain.Command.
func (Delete) CommandType() string { return "DeleteSnapshot" }

// Stream implements domain.Command.
func (c Delete) Stream() domain.StreamID { return Stream(c.Group) }

// CommandType implements domain.Command.
func (c Record) CommandType() string { return "Record" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Record) Stream() domain.StreamID { return Stream(c.Group) }

// State is a group folded.
type State struct {
	Exists bool
	SnapshotRequested
	Cut      *SnapshotCut
	Failed   *SnapshotFailed
	Deleting []domain.SnapshotID // asked for
	Deleted  []domain.SnapshotID
}

// Over tells whether every member is gone.
func (s State) Over() bool { return s.Exists && len(s.Deleted) == len(s.Members) }

// CutOf gives what a member is; false while it is not cut.
func (s State) CutOf(id domain.SnapshotID) (Cut, bool) {
	if s.Cut == nil {
		return Cut{}, false
	}
	i := slices.IndexFunc(s.Cut.Cuts, func(c Cut) bool { return c.Snapshot == id })
	if i < 0 {
		return Cut{}, false
	}
	return s.Cut.Cuts[i], true
}

// Aggregate is the group for the executor.
func Aggregate() domain.Aggregate[State] {
	return domain.Aggregate[State]{Category: Category, Evolve: Evolve, Decide: decide}
}

// Evolve folds one event.
func Evolve(s State, ev domain.Event) State {
	switch ev := ev.(type) {
	case *SnapshotRequested:
		s.Exists, s.SnapshotRequested = true, *ev
	case *SnapshotCut:
		s.Cut = ev
	case *SnapshotMoved:
		s.Cut = s.moved(ev)
	case *SnapshotFailed:
		s.Failed = ev
	case *SnapshotDeleteRequested:
		s.Deleting = append(slices.Clip(s.Deleting), ev.Snapshots...)
	case *SnapshotDeleted:
		s.Deleted = append(slices.Clip(s.Deleted), ev.Snapshot)
	}
	return s
}

// moved gives the cut with members on another device.
func (s State) moved(ev *SnapshotMoved) *SnapshotCut {
	if s.Cut == nil {
		return nil
	}
	cut := *s.Cut
	cut.Cuts = slices.Clone(cut.Cuts)
	for i := range cut.Cuts {
		if slices.Contains(ev.Snapshots, cut.Cuts[i].Snapshot) {
			cut.Cuts[i].Device = ev.To
		}
	}
	return &cut
}

func decide(s State, r domain.Request) ([]domain.Event, error) {
	switch c := r.Command.(type) {
	case Request:
		if s.Exists {
			return nil, domain.Errorf(domain.Exists, "snapshot %s exists", c.FullName())
		}
		ev := c.SnapshotRequested
		return []domain.Event{&ev}, nil
	case Adopt:
		return s.adopt(c)
	}
	if !s.Exists {
		return nil, domain.Errorf(domain.NotFound, "no such snapshot")
	}
	switch c := r.Command.(type) {
	case Delete:
		return s.delete(c)
	case Record:
		return s.record(c.Fact)
	}
	return nil, domain.Errorf(domain.Internal, "snapshot: unknown command %T", r.Command)
}

func (s State) adopt(c Adopt) ([]domain.Event, error) {
	if s.Exists { // it is being deleted
		return nil, nil
	}
	asked, cut := c.SnapshotRequested, c.Cut
	going := &SnapshotDeleteRequested{}
	for _, m := range asked.Members {
		going.Snapshots = append(going.Snapshots, m.Snapshot)
	}
	return []domain.Event{&asked, &cut, going}, nil
}

func (s State) delete(c Delete) ([]domain.Event, error) {
	going := &SnapshotDeleteRequested{}
	for _, m := range s.Members {
		asked := len(c.Snapshots) == 0 || slices.Contains(c.Snapshots, m.Snapshot)
		if asked && !slices.Contains(s.Deleting, m.Snapshot) {
			going.Snapshots = append(going.Snapshots, m.Snapshot)
		}
	}
	for _, id := range c.Snapshots {
		if !slices.ContainsFunc(s.Members, func(m Member) bool { return m.Snapshot == id }) {
			return nil, domain.Errorf(domain.NotFound, "%s has no snapshot %s", s.FullName(), id)
		}
	}
	if len(going.Snapshots) == 0 {
		return nil, nil
	}
	return []domain.Event{going}, nil
}

func (s State) record(fact domain.Event) ([]domain.Event, error) {
	var known bool
	switch f := fact.(type) {
	case *SnapshotCut:
		known = s.Cut != nil
		if s.Failed != nil {
			return nil, domain.Errorf(domain.Conflict, "snapshot %s failed before", s.FullName())
		}
	case *SnapshotMoved:
		known = !slices.ContainsFunc(f.Snapshots, func(id domain.SnapshotID) bool {
			c, ok := s.CutOf(id)
			return ok && c.Device != f.To
		})
	case *SnapshotFailed:
		known = s.Failed != nil || s.Cut != nil
	case *SnapshotDeleted:
		known = slices.Contains(s.Deleted, f.Snapshot)
		fact = &SnapshotDeleted{f.Snapshot, len(s.Deleted)+1 == len(s.Members)}
	default:
		return nil, domain.Errorf(domain.Internal, "snapshot: %T is no fact", fact)
	}
	if known {
		return nil, nil
	}
	return []domain.Event{fact}, nil
}
