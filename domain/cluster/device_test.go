package cluster

import (
	"reflect"
	"strconv"
	"testing"

	"weft/domain"
)

// TestDeviceLife proves what becomes of a device: admitted once, failed and readmitted, retired in
// order once, and admitted anew after that.
func TestDeviceLife(t *testing.T) {
	agg, s := DeviceAggregate(), Device{}
	id := domain.DeviceID{UUID: domain.UUID{1}}
	admit := Admit{DeviceAdmitted{Device: id, Path: "p", Class: "nvram"}}
	for i, step := range []struct {
		cmd  domain.Command
		want domain.Event
	}{
		{Retire{Device: id}, nil},
		{admit, &admit.DeviceAdmitted},
		{admit, nil},
		{Fail{Device: id, Why: "gone"}, &DeviceFailed{"gone"}},
		{admit, &DeviceReadmitted{}},
		{Retire{Device: id, Why: "empty"}, &DeviceRetired{"empty"}},
		{Retire{Device: id}, nil},
		{Fail{Device: id}, nil},
		{admit, &admit.DeviceAdmitted},
	} {
		if step.cmd.Stream() != DeviceStream(id) {
			t.Errorf("step %d goes to %v", i, step.cmd.Stream())
		}
		s = decided(t, i, agg, s, step.cmd, step.want, 0)
	}
}

// TestDeviceLeaves proves that a device leaves only where it may, that the wish is told once, can
// be taken back, and is forgotten with the device.
func TestDeviceLeaves(t *testing.T) {
	agg, s := DeviceAggregate(), Device{}
	id := domain.DeviceID{UUID: domain.UUID{1}}
	admit := Admit{DeviceAdmitted{Device: id, Path: "p", Class: "flash"}}
	for i, step := range []struct {
		cmd  domain.Command
		want domain.Event
		kind domain.Kind
	}{
		{RemoveDevice{Device: id}, nil, domain.NotFound},
		{admit, &admit.DeviceAdmitted, 0},
		{RemoveDevice{Device: id, Last: true}, nil, domain.Conflict},
		{RemoveDevice{Device: id, Undo: true}, nil, 0},
		{RemoveDevice{Device: id}, &DeviceRemovalRequested{}, 0},
		{RemoveDevice{Device: id, Last: true}, nil, 0}, // it was not when it was asked for
		{RemoveDevice{Device: id, Undo: true}, &DeviceRemovalCancelled{}, 0},
		{RemoveDevice{Device: id}, &DeviceRemovalRequested{}, 0},
		{Retire{Device: id, Why: "empty"}, &DeviceRetired{"empty"}, 0},
		{RemoveDevice{Device: id}, nil, domain.NotFound},
		{admit, &admit.DeviceAdmitted, 0},
		{RemoveDevice{Device: id, Last: true}, nil, domain.Conflict},
	} {
		s = decided(t, i, agg, s, step.cmd, step.want, step.kind)
	}
	nv := Device{Exists: true, DeviceAdmitted: DeviceAdmitted{Class: ClassNVRAM}}
	if _, err := agg.Decide(nv, domain.Request{Command: RemoveDevice{}}); domain.KindOf(err) !=
		domain.Unsupported {
		t.Errorf("NVRAM: %v", err)
	}
}

// TestDeviceWishes proves that a node is asked for a device once until it has answered, that
// answers nobody waits for are no events, and that a node does not gather wishes without end.
func TestDeviceWishes(t *testing.T) {
	agg, s := NodeAggregate(), Node{}
	node, dev := domain.NodeID{UUID: domain.UUID{1}}, domain.DeviceID{UUID: domain.UUID{2}}
	ask := AddDevice{node, "/dev/a"}
	added := &DeviceAdded{Spec: "/dev/a", Device: dev}
	refused := &DeviceAddRefused{Spec: "/dev/a", Why: "foreign"}
	start := StartNode{NodeJoined: NodeJoined{Node: node, Number: 1, Name: "n", Incarnation: 1}}
	for i, step := range []struct {
		cmd  domain.Command
		want domain.Event
		kind domain.Kind
	}{
		{ask, nil, domain.NotFound},
		{start, &start.NodeJoined, 0},
		{AnswerDevice{node, added}, nil, 0},
		{ask, &DeviceAddRequested{"/dev/a"}, 0},
		{ask, nil, 0},
		{AnswerDevice{node, &DeviceAdded{Spec: "/dev/b"}}, nil, 0},
		{AnswerDevice{node, refused}, refused, 0},
		{AnswerDevice{node, added}, nil, 0},
		{ask, &DeviceAddRequested{"/dev/a"}, 0},
		{AnswerDevice{node, added}, added, 0},
		{AddDevice{node, ""}, nil, domain.Invalid},
	} {
		s = decided(t, i, agg, s, step.cmd, step.want, step.kind)
	}
	for i := range DevicesWantedMax {
		s = agg.Evolve(s, &DeviceAddRequested{strconv.Itoa(i)})
	}
	if _, err := agg.Decide(s, domain.Request{Command: ask}); domain.KindOf(err) != domain.Busy {
		t.Errorf("%d wishes: %v", len(s.Wanted), err)
	}
	s = agg.Evolve(s, &NodeRemoved{})
	if _, err := agg.Decide(s, domain.Request{Command: ask}); domain.KindOf(err) != domain.Conflict {
		t.Errorf("a node that was removed: %v", err)
	}
}

// decided gives the state after a command, whose only event and kind of error are known.
func decided[S any](
	t *testing.T, step int, agg domain.Aggregate[S], s S, c domain.Command, want domain.Event,
	kind domain.Kind,
) S {
	t.Helper()
	got, err := agg.Decide(s, domain.Request{Command: c})
	if kind != 0 && domain.KindOf(err) != kind || kind == 0 && err != nil ||
		len(got) != 0 != (want != nil) || len(got) == 1 && !reflect.DeepEqual(got[0], want) {
		t.Fatalf("step %d: %+v: %v", step, got, err)
	}
	for _, ev := range got {
		s = agg.Evolve(s, ev)
	}
	return s
}
