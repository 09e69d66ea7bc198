package cluster

import (
	"reflect"
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
		got, err := agg.Decide(s, domain.Request{Command: step.cmd})
		if err != nil || len(got) != 0 != (step.want != nil) ||
			len(got) == 1 && !reflect.DeepEqual(got[0], step.want) {
			t.Fatalf("step %d: %+v: %v", i, got, err)
		}
		for _, ev := range got {
			s = agg.Evolve(s, ev)
		}
	}
}
