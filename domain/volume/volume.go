// Package volume holds what became of a volume: the facts the reconciler records once a node has
// obeyed. The wish stands on the application instance's stream.
package volume

import (
	"slices"
	"time"

	"weft/domain"
)

// Category of a volume's stream.
const Category = "volume"

// Stream gives a volume's stream.
func Stream(id domain.VolumeID) domain.StreamID { return domain.StreamOf(Category, id.UUID) }

// VolumeCreated says that the volume exists on a device: empty, or as the snapshot it was cloned
// from.
type VolumeCreated struct {
	Volume domain.VolumeID `msgpack:"volume,omitempty"`
	App    domain.AppID    `msgpack:"app,omitempty"`
	Tenant domain.TenantID `msgpack:"tenant,omitempty"`
	Name   string          `msgpack:"name,omitempty"`
	Size   domain.Bytes    `msgpack:"size,omitempty"`
	Node   domain.NodeID   `msgpack:"node,omitempty"`
	Device domain.DeviceID `msgpack:"device,omitempty"`
	Epoch  domain.Epoch    `msgpack:"epoch,omitempty"`
	// Source is the snapshot that it began as; zero: none.
	Source    domain.SnapshotID `msgpack:"source,omitempty"`
	Encrypted bool              `msgpack:"encrypted,omitempty"`
}

// VolumeRolledBack says that the volume is again what it was at a snapshot, its size included.
// Restore names the wish that this fulfils.
type VolumeRolledBack struct {
	Restore  domain.UUID       `msgpack:"restore,omitempty"`
	Snapshot domain.SnapshotID `msgpack:"snapshot,omitempty"`
	Size     domain.Bytes      `msgpack:"size,omitempty"`
}

// VolumeRollbackRefused says that a wish to roll the volume back was given up, and why. The volume
// is as it was.
type VolumeRollbackRefused struct {
	Restore domain.UUID `msgpack:"restore,omitempty"`
	Why     string      `msgpack:"why,omitempty"`
}

// ScheduledSnapshotFailed says that a rule's cut was not taken, and why. It is told once, until
// ScheduledSnapshotResumed: cuts that go well are no events.
type ScheduledSnapshotFailed struct {
	EveryS int64     `msgpack:"every_s,omitempty"` // the rule
	Due    time.Time `msgpack:"due,omitempty"`
	Why    string    `msgpack:"why,omitempty"`
}

// ScheduledSnapshotResumed says that a rule's cuts are taken again.
type ScheduledSnapshotResumed struct {
	EveryS int64 `msgpack:"every_s,omitempty"`
}

// VolumeResized says that the volume has grown.
type VolumeResized struct {
	From domain.Bytes `msgpack:"from,omitempty"`
	To   domain.Bytes `msgpack:"to,omitempty"`
}

// VolumeOnlined says that a node serves the volume to hosts, by the export with this digest.
type VolumeOnlined struct {
	Node        domain.NodeID `msgpack:"node,omitempty"`
	Incarnation uint64        `msgpack:"incarnation,omitempty"`
	Export      []byte        `msgpack:"export,omitempty"`
}

// VolumeOfflined says that a node serves it no longer.
type VolumeOfflined struct {
	Node domain.NodeID `msgpack:"node,omitempty"`
	Why  string        `msgpack:"why,omitempty"`
}

// VolumeMoved says that the volume stands on another device of its node, with all it holds: data
// that it shares with snapshots and clones included, which go with it.
type VolumeMoved struct {
	Node  domain.NodeID   `msgpack:"node,omitempty"`
	From  domain.DeviceID `msgpack:"from,omitempty"`
	To    domain.DeviceID `msgpack:"to,omitempty"`
	Bytes domain.Bytes    `msgpack:"bytes,omitempty"` // that it holds there
}

// VolumeDeleted says that the volume and its data are gone.
type VolumeDeleted struct {
	Volume domain.VolumeID `msgpack:"volume,omitempty"`
}

// EventType implements domain.Event.
func (VolumeCreated) EventType() string { return "VolumeCreated" }

// EventType implements domain.Event.
func (VolumeResized) EventType() string { return "VolumeResized" }

// EventType implements domain.Event.
func (VolumeOnlined) EventType() string { return "VolumeOnlined" }

// EventType implements domain.Event.
func (VolumeOfflined) EventType() string { return "VolumeOfflined" }

// EventType implements domain.Event.
func (VolumeMoved) EventType() string { return "VolumeMoved" }

// EventType implements domain.Event.
func (VolumeDeleted) EventType() string { return "VolumeDeleted" }

// EventType implements domain.Event.
func (VolumeRolledBack) EventType() string { return "VolumeRolledBack" }

// EventType implements domain.Event.
func (VolumeRollbackRefused) EventType() string { return "VolumeRollbackRefused" }

// EventType implements domain.Event.
func (ScheduledSnapshotFailed) EventType() string { return "ScheduledSnapshotFailed" }

// EventType implements domain.Event.
func (ScheduledSnapshotResumed) EventType() string { return "ScheduledSnapshotResumed" }

// Record notes a fact about a volume. Noting what is known already notes nothing.
type Record struct {
	Volume domain.VolumeID
	Fact   domain.Event // one of this package's events
}

// CommandType implements domain.Command.
func (c Record) CommandType() string { return "Record" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Record) Stream() domain.StreamID { return Stream(c.Volume) }

// State is a volume folded.
type State struct {
	Exists, Deleted bool
	VolumeCreated
	Online VolumeOnlined // zero: not served
	// Restored is the last wish to roll back that was fulfilled or refused.
	Restored domain.UUID
	Refused  string // why, if it was refused
	// Missing are the rules whose last cut was not taken.
	Missing []ScheduledSnapshotFailed
}

// Aggregate is the volume for the executor.
func Aggregate() domain.Aggregate[State] {
	return domain.Aggregate[State]{Category: Category, Evolve: Evolve, Decide: Decide}
}

// Evolve folds one event.
func Evolve(s State, ev domain.Event) State {
	switch ev := ev.(type) {
	case *VolumeCreated:
		s.Exists, s.VolumeCreated = true, *ev
	case *VolumeResized:
		s.Size = ev.To
	case *VolumeMoved:
		s.Device = ev.To
	case *VolumeOnlined:
		s.Online = *ev
	case *VolumeOfflined:
		s.Online = VolumeOnlined{}
	case *VolumeRolledBack:
		s.Restored, s.Refused, s.Size = ev.Restore, "", ev.Size
	case *VolumeRollbackRefused:
		s.Restored, s.Refused = ev.Restore, ev.Why
	case *ScheduledSnapshotFailed:
		s.Missing = append(s.missingBut(ev.EveryS), *ev)
	case *ScheduledSnapshotResumed:
		s.Missing = s.missingBut(ev.EveryS)
	case *VolumeDeleted:
		s.Deleted, s.Online = true, VolumeOnlined{}
	}
	return s
}

// missingBut gives a copy of what is missing without one rule's.
func (s State) missingBut(every int64) []ScheduledSnapshotFailed {
	return slices.DeleteFunc(slices.Clone(s.Missing), func(m ScheduledSnapshotFailed) bool {
		return m.EveryS == every
	})
}

// misses tells whether the last cut of a rule was not taken.
func (s State) misses(every int64) bool {
	return slices.ContainsFunc(s.Missing, func(m ScheduledSnapshotFailed) bool {
		return m.EveryS == every
	})
}

// Decide judges one command.
func Decide(s State, r domain.Request) ([]domain.Event, error) {
	c, ok := r.Command.(Record)
	if !ok {
		return nil, domain.Errorf(domain.Internal, "volume: unknown command %T", r.Command)
	}
	if _, first := c.Fact.(*VolumeCreated); !first && !s.Exists {
		return nil, domain.Errorf(domain.NotFound, "no such volume")
	}
	if s.Deleted {
		if _, again := c.Fact.(*VolumeDeleted); again {
			return nil, nil
		}
		return nil, domain.Errorf(domain.Conflict, "volume %s is deleted", s.Name)
	}
	if s.knows(c.Fact) {
		return nil, nil
	}
	return []domain.Event{c.Fact}, nil
}

// knows tells whether a fact changes nothing.
func (s State) knows(fact domain.Event) bool {
	switch f := fact.(type) {
	case *VolumeCreated:
		return s.Exists
	case *VolumeResized:
		return s.Size == f.To
	case *VolumeMoved:
		return s.Device == f.To
	case *VolumeOnlined:
		return s.Online.Node == f.Node && s.Online.Incarnation == f.Incarnation &&
			string(s.Online.Export) == string(f.Export)
	case *VolumeOfflined:
		return s.Online.Node.IsZero()
	case *VolumeRolledBack:
		return s.Restored == f.Restore
	case *VolumeRollbackRefused:
		return s.Restored == f.Restore
	case *ScheduledSnapshotFailed:
		return s.misses(f.EveryS)
	case *ScheduledSnapshotResumed:
		return !s.misses(f.EveryS)
	}
	return false
}
