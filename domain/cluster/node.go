package cluster

import (
	"slices"
	"time"

	"weft/domain"
)

// NodeEndpointChanged says where a node is reached: by other nodes, by clients of the API, by
// hosts.
type NodeEndpointChanged struct {
	Peer  string `msgpack:"peer,omitempty"` // URL
	API   string `msgpack:"api,omitempty"`  // URL
	NBD   string `msgpack:"nbd,omitempty"`
	ISCSI string `msgpack:"iscsi,omitempty"`
	Log   string `msgpack:"log,omitempty"` // host:port of the log for clients of EventStoreDB
}

// NodeDown says that a node lost its lease: it is taken for dead. Seen is when the lease was last
// there, by the leader's clock.
type NodeDown struct {
	Incarnation uint64    `msgpack:"incarnation,omitempty"`
	Seen        time.Time `msgpack:"seen,omitempty"`
}

// NodeReturned says that a node that was down holds a lease again.
type NodeReturned struct {
	Incarnation uint64 `msgpack:"incarnation,omitempty"`
}

// NodeDrainRequested says that a node shall take no new volumes and no vote.
type NodeDrainRequested struct{}

// NodeUncordoned says that a node takes part again.
type NodeUncordoned struct{}

// NodeRemoved says that a node is no member any more and never will be under this id.
type NodeRemoved struct {
	Why string `msgpack:"why,omitempty"`
}

// EventType implements domain.Event.
func (NodeEndpointChanged) EventType() string { return "NodeEndpointChanged" }

// EventType implements domain.Event.
func (NodeDown) EventType() string { return "NodeDown" }

// EventType implements domain.Event.
func (NodeReturned) EventType() string { return "NodeReturned" }

// EventType implements domain.Event.
func (NodeDrainRequested) EventType() string { return "NodeDrainRequested" }

// EventType implements domain.Event.
func (NodeUncordoned) EventType() string { return "NodeUncordoned" }

// EventType implements domain.Event.
func (NodeRemoved) EventType() string { return "NodeRemoved" }

// Locate notes where a node is reached.
type Locate struct {
	Node domain.NodeID
	NodeEndpointChanged
}

// Notice records what became of a node: NodeDown or NodeReturned. What is known already records
// nothing.
type Notice struct {
	Node domain.NodeID
	Fact domain.Event
}

// Drain asks a node to take no new volumes and to give its vote up; Undo takes the wish back.
type Drain struct {
	Node domain.NodeID
	Undo bool
}

// Remove takes a node out for good. It is drained first, and down or empty: Serves says how many
// volumes stand on it by the caller's view.
type Remove struct {
	Node   domain.NodeID
	Serves int
	Why    string
}

// CommandType implements domain.Command.
func (Locate) CommandType() string { return "LocateNode" }

// Stream implements domain.Command.
func (c Locate) Stream() domain.StreamID { return NodeStream(c.Node) }

// CommandType implements domain.Command.
func (c Notice) CommandType() string { return "Notice" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Notice) Stream() domain.StreamID { return NodeStream(c.Node) }

// CommandType implements domain.Command.
func (Drain) CommandType() string { return "DrainNode" }

// Stream implements domain.Command.
func (c Drain) Stream() domain.StreamID { return NodeStream(c.Node) }

// CommandType implements domain.Command.
func (Remove) CommandType() string { return "RemoveNode" }

// Stream implements domain.Command.
func (c Remove) Stream() domain.StreamID { return NodeStream(c.Node) }

// Node is a node folded.
type Node struct {
	Exists, Down, Drained, Removed bool
	Version                        string
	Location                       Location
	Wanted                         []string // devices to take into use
	NodeJoined
	NodeEndpointChanged
}

// NodeAggregate is the node for the executor.
func NodeAggregate() domain.Aggregate[Node] {
	return domain.Aggregate[Node]{Category: NodeCategory, Evolve: evolveNode, Decide: decideNode}
}

func evolveNode(s Node, ev domain.Event) Node {
	switch ev := ev.(type) {
	case *NodeJoined:
		s.Exists, s.NodeJoined = true, *ev
	case *NodeRestarted:
		s.Incarnation = ev.Incarnation
	case *SoftwareVersionChanged:
		s.Version = ev.To
	case *NodeEndpointChanged:
		s.NodeEndpointChanged = *ev
	case *NodeDown:
		s.Down = true
	case *NodeReturned:
		s.Down = false
	case *NodeDrainRequested:
		s.Drained = true
	case *NodeUncordoned:
		s.Drained = false
	case *NodeRemoved:
		s.Removed = true
	case *NodeLocationChanged:
		s.Location = ev.Location
	case *DeviceAddRequested, *DeviceAdded, *DeviceAddRefused:
		s.Wanted = Wanted(s.Wanted, ev)
	}
	return s
}

func decideNode(s Node, r domain.Request) ([]domain.Event, error) {
	if start, ok := r.Command.(StartNode); ok {
		return s.start(start)
	}
	if !s.Exists {
		return nil, domain.Errorf(domain.NotFound, "no such node")
	}
	switch c := r.Command.(type) {
	case Locate:
		if s.NodeEndpointChanged == c.NodeEndpointChanged {
			return nil, nil
		}
		ev := c.NodeEndpointChanged
		return []domain.Event{&ev}, nil
	case SetLocation:
		switch {
		case s.Removed:
			return nil, domain.Errorf(domain.Conflict, "node %s was removed", s.Name)
		case slices.Equal(s.Location, c.Location):
			return nil, nil
		}
		return []domain.Event{&NodeLocationChanged{c.Location}}, nil
	case Notice:
		return s.notice(c.Fact)
	case Drain:
		switch {
		case s.Removed:
			return nil, domain.Errorf(domain.Conflict, "node %s was removed", s.Name)
		case !c.Undo && !s.Drained:
			return []domain.Event{&NodeDrainRequested{}}, nil
		case c.Undo && s.Drained:
			return []domain.Event{&NodeUncordoned{}}, nil
		}
		return nil, nil
	case Remove:
		return s.remove(c)
	}
	return s.equip(r.Command)
}

func (s Node) start(c StartNode) ([]domain.Event, error) {
	var evs []domain.Event
	switch {
	case s.Removed:
		return nil, &domain.Error{
			Kind: domain.Denied, Msg: "node " + s.Name + " was removed from the cluster",
			Remedy: "join with an empty data folder and a new token",
		}
	case !s.Exists:
		joined := c.NodeJoined
		evs = append(evs, &joined)
	case c.Incarnation <= s.Incarnation:
		return nil, domain.Errorf(domain.Stale, "incarnation %d of node %s: %d runs",
			c.Incarnation, c.Name, s.Incarnation)
	default:
		evs = append(evs, &NodeRestarted{c.Incarnation})
	}
	if c.Version != s.Version {
		evs = append(evs, &SoftwareVersionChanged{s.Version, c.Version})
	}
	return evs, nil
}

func (s Node) notice(fact domain.Event) ([]domain.Event, error) {
	switch f := fact.(type) {
	case *NodeDown:
		if s.Down || s.Removed || f.Incarnation < s.Incarnation {
			return nil, nil
		}
		return []domain.Event{f}, nil
	case *NodeReturned:
		if !s.Down || s.Removed || f.Incarnation < s.Incarnation {
			return nil, nil
		}
		return []domain.Event{f}, nil
	}
	return nil, domain.Errorf(domain.Internal, "node: %T is no notice", fact)
}

func (s Node) remove(c Remove) ([]domain.Event, error) {
	refuse := func(msg, remedy string) ([]domain.Event, error) {
		return nil, &domain.Error{
			Op: "node.Remove", Kind: domain.Conflict, Ref: s.Name, Msg: msg, Remedy: remedy,
		}
	}
	switch {
	case s.Removed:
		return nil, nil
	case !s.Drained:
		return refuse("the node takes part", "drain it first with: weft node drain "+s.Name)
	case c.Serves > 0:
		return refuse("volumes stand on the node and nowhere else", "delete them first")
	}
	return []domain.Event{&NodeRemoved{c.Why}}, nil
}
