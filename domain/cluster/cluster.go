// Package cluster holds the cluster, its nodes and devices, and the role of the reconciler with the
// fencing token that follows from it.
package cluster

import "weft/domain"

// The categories of the streams of this package.
const (
	Category       = "cluster"
	NodeCategory   = "node"
	DeviceCategory = "device"
	RoleCategory   = "coordination"
)

// RoleStream is the stream of the reconciler's role.
const RoleStream domain.StreamID = "coordination-reconciler"

// Stream gives the cluster's stream.
func Stream(id domain.ClusterID) domain.StreamID { return domain.StreamOf(Category, id.UUID) }

// NodeStream gives a node's stream.
func NodeStream(id domain.NodeID) domain.StreamID { return domain.StreamOf(NodeCategory, id.UUID) }

// DeviceStream gives a device's stream.
func DeviceStream(id domain.DeviceID) domain.StreamID {
	return domain.StreamOf(DeviceCategory, id.UUID)
}

// ClusterInitialized is the first event of the whole log.
type ClusterInitialized struct {
	Cluster domain.ClusterID `msgpack:"cluster,omitempty"`
	Name    string           `msgpack:"name,omitempty"`
}

// RoleOpened is revision 0 of a role's stream, so that no token is ever 0.
type RoleOpened struct {
	Role string `msgpack:"role,omitempty"`
}

// LeadershipAcquired gives the role to a node; timeline and revision of this event are the token.
type LeadershipAcquired struct {
	Node        domain.NodeID `msgpack:"node,omitempty"`
	Incarnation uint64        `msgpack:"incarnation,omitempty"`
}

// NodeJoined says that a node is a member. Its devices have streams of their own.
type NodeJoined struct {
	Node        domain.NodeID     `msgpack:"node,omitempty"`
	Number      domain.NodeNumber `msgpack:"number,omitempty"`
	Name        string            `msgpack:"name,omitempty"`
	Incarnation uint64            `msgpack:"incarnation,omitempty"`
}

// NodeRestarted says that a node runs again; whatever it served before it serves no longer.
type NodeRestarted struct {
	Incarnation uint64 `msgpack:"incarnation,omitempty"`
}

// SoftwareVersionChanged names the version a node runs.
type SoftwareVersionChanged struct {
	From string `msgpack:"from,omitempty"`
	To   string `msgpack:"to,omitempty"`
}

// DeviceAdmitted says that a device serves the cluster.
type DeviceAdmitted struct {
	Device     domain.DeviceID `msgpack:"device,omitempty"`
	Node       domain.NodeID   `msgpack:"node,omitempty"`
	Path       string          `msgpack:"path,omitempty"`
	Class      string          `msgpack:"class,omitempty"` // "flash", "hdd", "hybrid"
	Bytes      domain.Bytes    `msgpack:"bytes,omitempty"`
	Usable     domain.Bytes    `msgpack:"usable,omitempty"`
	Sector     int64           `msgpack:"sector,omitempty"`
	Durability string          `msgpack:"durability,omitempty"`
}

// DeviceFailed says that a device is out of service.
type DeviceFailed struct {
	Why string `msgpack:"why,omitempty"`
}

// DeviceReadmitted says that a failed or missing device serves again, or that a suspended one is
// well.
type DeviceReadmitted struct {
	Node domain.NodeID `msgpack:"node,omitempty"`
}

// DeviceRetired says that a device was taken out in order: nothing of it is needed any more.
type DeviceRetired struct {
	Why string `msgpack:"why,omitempty"`
}

// EventType implements domain.Event.
func (DeviceRetired) EventType() string { return "DeviceRetired" }

// EventType implements domain.Event.
func (ClusterInitialized) EventType() string { return "ClusterInitialized" }

// EventType implements domain.Event.
func (RoleOpened) EventType() string { return "RoleOpened" }

// EventType implements domain.Event.
func (LeadershipAcquired) EventType() string { return "LeadershipAcquired" }

// EventType implements domain.Event.
func (NodeJoined) EventType() string { return "NodeJoined" }

// EventType implements domain.Event.
func (NodeRestarted) EventType() string { return "NodeRestarted" }

// EventType implements domain.Event.
func (SoftwareVersionChanged) EventType() string { return "SoftwareVersionChanged" }

// EventType implements domain.Event.
func (DeviceAdmitted) EventType() string { return "DeviceAdmitted" }

// EventType implements domain.Event.
func (DeviceFailed) EventType() string { return "DeviceFailed" }

// EventType implements domain.Event.
func (DeviceReadmitted) EventType() string { return "DeviceReadmitted" }

// Init gives birth to the cluster.
type Init struct {
	Cluster domain.ClusterID
	Name    string
}

// OpenRole writes revision 0 of the reconciler's role.
type OpenRole struct{}

// Acquire takes the reconciler's role for a node.
type Acquire struct {
	Node        domain.NodeID
	Incarnation uint64
}

// StartNode joins a node the first time and notes a restart every further time.
type StartNode struct {
	NodeJoined
	Version string
}

// Admit notes a device: admitted the first time, readmitted when it had failed.
type Admit struct{ DeviceAdmitted }

// Fail notes that a device is out of service.
type Fail struct {
	Device domain.DeviceID
	Why    string
}

// Retire notes that a device was taken out in order.
type Retire struct {
	Device domain.DeviceID
	Why    string
}

// CommandType implements domain.Command.
func (Retire) CommandType() string { return "RetireDevice" }

// Stream implements domain.Command.
func (c Retire) Stream() domain.StreamID { return DeviceStream(c.Device) }

// CommandType implements domain.Command.
func (Init) CommandType() string { return "InitCluster" }

// Stream implements domain.Command.
func (c Init) Stream() domain.StreamID { return Stream(c.Cluster) }

// CommandType implements domain.Command.
func (OpenRole) CommandType() string { return "OpenRole" }

// Stream implements domain.Command.
func (OpenRole) Stream() domain.StreamID { return RoleStream }

// CommandType implements domain.Command.
func (Acquire) CommandType() string { return "AcquireLeadership" }

// Stream implements domain.Command.
func (Acquire) Stream() domain.StreamID { return RoleStream }

// CommandType implements domain.Command.
func (StartNode) CommandType() string { return "StartNode" }

// Stream implements domain.Command.
func (c StartNode) Stream() domain.StreamID { return NodeStream(c.Node) }

// CommandType implements domain.Command.
func (Admit) CommandType() string { return "AdmitDevice" }

// Stream implements domain.Command.
func (c Admit) Stream() domain.StreamID { return DeviceStream(c.Device) }

// CommandType implements domain.Command.
func (Fail) CommandType() string { return "FailDevice" }

// Stream implements domain.Command.
func (c Fail) Stream() domain.StreamID { return DeviceStream(c.Device) }

// State is the cluster folded.
type State struct {
	Exists   bool
	Tokens   []Token
	Last     domain.NodeNumber // the highest number given to a node
	Archived domain.Position   // the last record that a SegmentArchived names
	Settings []SettingChanged  // the latest of each setting, in order of key
	Engine   Engine            // but for what EngineStream tells
}

// Aggregate is the cluster for the executor.
func Aggregate() domain.Aggregate[State] {
	return domain.Aggregate[State]{
		Category: Category,
		Evolve: func(s State, ev domain.Event) State {
			s.Engine.Closed = true // as far as this stream can tell
			s.Engine = s.Engine.After(ev)
			switch ev := ev.(type) {
			case *ClusterInitialized:
				s.Exists, s.Last = true, 1
				return s
			case *SegmentArchived:
				s.Archived = ev.Last
				return s
			case *SettingChanged:
				s.Settings = WithSetting(s.Settings, *ev)
				return s
			}
			return s.evolveToken(ev)
		},
		Decide: decideCluster,
	}
}

func decideCluster(s State, r domain.Request) ([]domain.Event, error) {
	switch c := r.Command.(type) {
	case Init:
		if s.Exists {
			return nil, nil
		}
		return []domain.Event{&ClusterInitialized{c.Cluster, c.Name}}, nil
	case IssueToken:
		return s.decideIssue(c, r.Stamped)
	case UseToken:
		return s.decideUse(c)
	case RecordRestore:
		return s.decideRestore(c)
	case RecordKeysExport:
		if !s.Exists {
			return nil, domain.Errorf(domain.NotFound, "no such cluster")
		}
		return []domain.Event{&KeysExported{c.Users}}, nil
	case RecordRecovery:
		return s.decideRecovery(c)
	case ArchiveSegments:
		return s.decideArchive(c)
	case ChangeSetting:
		return s.decideSetting(c)
	case MoveEngine:
		return s.Engine.decideMove(c)
	case EndMove:
		return s.Engine.decideEnd(c)
	case RevokeToken:
		if s.token(c.Token) < 0 {
			return nil, nil
		}
		return []domain.Event{&JoinTokenRevoked{c.Token}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "cluster: unknown command %T", r.Command)
}

// Role is the reconciler's role folded.
type Role struct {
	Open   bool
	Holder LeadershipAcquired
}

// RoleAggregate is the role for the executor.
func RoleAggregate() domain.Aggregate[Role] {
	return domain.Aggregate[Role]{
		Category: RoleCategory,
		Evolve: func(s Role, ev domain.Event) Role {
			switch ev := ev.(type) {
			case *RoleOpened:
				s.Open = true
			case *LeadershipAcquired:
				s.Holder = *ev
			}
			return s
		},
		Decide: decideRole,
	}
}

func decideRole(s Role, r domain.Request) ([]domain.Event, error) {
	switch c := r.Command.(type) {
	case OpenRole:
		if s.Open {
			return nil, nil
		}
		return []domain.Event{&RoleOpened{"reconciler"}}, nil
	case Acquire:
		if !s.Open {
			return nil, domain.Errorf(domain.Conflict, "the role is not open")
		}
		return []domain.Event{&LeadershipAcquired{c.Node, c.Incarnation}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "role: unknown command %T", r.Command)
}

// Device is a device folded.
type Device struct {
	Exists, Failed bool
	Leaving        bool // it is put out of use once it is empty
	DeviceAdmitted
	health
}

// DeviceAggregate is the device for the executor.
func DeviceAggregate() domain.Aggregate[Device] {
	return domain.Aggregate[Device]{
		Category: DeviceCategory,
		Evolve: func(s Device, ev domain.Event) Device {
			s.health = s.health.after(ev)
			switch ev := ev.(type) {
			case *DeviceAdmitted:
				s.Exists, s.DeviceAdmitted = true, *ev
			case *DeviceFailed:
				s.Failed = true
			case *DeviceReadmitted:
				s.Failed = false
			case *DeviceRemovalRequested:
				s.Leaving = true
			case *DeviceRemovalCancelled:
				s.Leaving = false
			case *DeviceRetired:
				s = Device{}
			}
			return s
		},
		Decide: decideDevice,
	}
}

func decideDevice(s Device, r domain.Request) ([]domain.Event, error) {
	switch c := r.Command.(type) {
	case Admit:
		switch {
		case !s.Exists:
			return []domain.Event{&c.DeviceAdmitted}, nil
		case s.Failed:
			return []domain.Event{&DeviceReadmitted{c.Node}}, nil
		}
		return nil, nil
	case Fail:
		if !s.Exists || s.Failed {
			return nil, nil
		}
		return []domain.Event{&DeviceFailed{c.Why}}, nil
	case Retire:
		if !s.Exists {
			return nil, nil
		}
		return []domain.Event{&DeviceRetired{c.Why}}, nil
	case RemoveDevice:
		return s.leave(c)
	}
	return s.decideHealth(r.Command)
}
