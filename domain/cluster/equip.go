package cluster

import (
	"slices"

	"weft/domain"
)

// DevicesWantedMax is how many devices a node can be asked to take into use at once.
const DevicesWantedMax = 64

// DeviceAddRequested asks a node to take a device into use. It is on the node's stream, and so are
// its answers.
type DeviceAddRequested struct {
	Spec string `msgpack:"spec,omitempty"` // as weft serve --device takes it
}

// DeviceAdded says that the node uses the device it was asked to.
type DeviceAdded struct {
	Spec   string          `msgpack:"spec,omitempty"`
	Device domain.DeviceID `msgpack:"device,omitempty"`
}

// DeviceAddRefused says why the node does not.
type DeviceAddRefused struct {
	Spec   string `msgpack:"spec,omitempty"`
	Why    string `msgpack:"why,omitempty"`
	Remedy string `msgpack:"remedy,omitempty"`
}

// DeviceRemovalRequested says that a device shall take no new volumes, and be out of use once
// nothing stands on it: DeviceRetired. It is on the device's stream.
type DeviceRemovalRequested struct{}

// DeviceRemovalCancelled takes that back.
type DeviceRemovalCancelled struct{}

// EventType implements domain.Event.
func (DeviceAddRequested) EventType() string { return "DeviceAddRequested" }

// EventType implements domain.Event.
func (DeviceAdded) EventType() string { return "DeviceAdded" }

// EventType implements domain.Event.
func (DeviceAddRefused) EventType() string { return "DeviceAddRefused" }

// EventType implements domain.Event.
func (DeviceRemovalRequested) EventType() string { return "DeviceRemovalRequested" }

// EventType implements domain.Event.
func (DeviceRemovalCancelled) EventType() string { return "DeviceRemovalCancelled" }

// AddDevice asks a node to take a device into use. Asking again while it waits changes nothing.
type AddDevice struct {
	Node domain.NodeID
	Spec string
}

// AnswerDevice records a node's answer, DeviceAdded or DeviceAddRefused. It records nothing where
// nobody asks any more.
type AnswerDevice struct {
	Node domain.NodeID
	Fact domain.Event
}

// RemoveDevice asks for a device to be put out of use once it is empty; Undo takes the wish back.
// Last says that it is the only one of its node by the caller's view: Conflict.
type RemoveDevice struct {
	Device     domain.DeviceID
	Last, Undo bool
}

// CommandType implements domain.Command.
func (AddDevice) CommandType() string { return "AddDevice" }

// Stream implements domain.Command.
func (c AddDevice) Stream() domain.StreamID { return NodeStream(c.Node) }

// CommandType implements domain.Command.
func (c AnswerDevice) CommandType() string { return "Answer" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c AnswerDevice) Stream() domain.StreamID { return NodeStream(c.Node) }

// CommandType implements domain.Command.
func (c RemoveDevice) CommandType() string {
	if c.Undo {
		return "KeepDevice"
	}
	return "RemoveDevice"
}

// Stream implements domain.Command.
func (c RemoveDevice) Stream() domain.StreamID { return DeviceStream(c.Device) }

// Wanted gives the devices that a node shall take into use, in the order asked for, after one more
// event of its stream.
func Wanted(before []string, ev domain.Event) []string {
	without := func(spec string) []string {
		return slices.DeleteFunc(slices.Clone(before), func(s string) bool { return s == spec })
	}
	switch ev := ev.(type) {
	case *DeviceAddRequested:
		return append(without(ev.Spec), ev.Spec)
	case *DeviceAdded:
		return without(ev.Spec)
	case *DeviceAddRefused:
		return without(ev.Spec)
	}
	return before
}

// equip judges wishes for devices, and the node's answers.
func (s Node) equip(c domain.Command) ([]domain.Event, error) {
	switch c := c.(type) {
	case AddDevice:
		switch {
		case s.Removed:
			return nil, domain.Errorf(domain.Conflict, "node %s was removed", s.Name)
		case c.Spec == "":
			return nil, domain.Errorf(domain.Invalid, "a device without a path")
		case slices.Contains(s.Wanted, c.Spec):
			return nil, nil
		case len(s.Wanted) >= DevicesWantedMax:
			return nil, domain.Errorf(domain.Busy, "node %s has %d devices to take into use already",
				s.Name, len(s.Wanted))
		}
		return []domain.Event{&DeviceAddRequested{c.Spec}}, nil
	case AnswerDevice:
		var spec string
		switch f := c.Fact.(type) {
		case *DeviceAdded:
			spec = f.Spec
		case *DeviceAddRefused:
			spec = f.Spec
		default:
			return nil, domain.Errorf(domain.Internal, "node: %T is no answer", f)
		}
		if !slices.Contains(s.Wanted, spec) {
			return nil, nil
		}
		return []domain.Event{c.Fact}, nil
	}
	return nil, domain.Errorf(domain.Internal, "node: unknown command %T", c)
}

// leave judges the wish that a device be put out of use.
func (s Device) leave(c RemoveDevice) ([]domain.Event, error) {
	switch {
	case !s.Exists:
		return nil, domain.Errorf(domain.NotFound, "no such device")
	case s.Class == ClassNVRAM:
		return nil, &domain.Error{
			Kind: domain.Unsupported, Msg: "NVRAM is given up by its node",
			Remedy: "start the node once with --drop-nvram",
		}
	case c.Undo && s.Leaving:
		return []domain.Event{&DeviceRemovalCancelled{}}, nil
	case c.Undo, s.Leaving:
		return nil, nil
	case c.Last:
		return nil, &domain.Error{
			Kind: domain.Conflict, Msg: "it is the only device of its node",
			Remedy: "add another first: weft node device add; or drain and remove the node",
		}
	}
	return []domain.Event{&DeviceRemovalRequested{}}, nil
}
