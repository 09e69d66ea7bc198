package topology

import (
	"testing"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/policy"
)

// TestNVRAM proves that a node's NVRAM is among the devices, that no volume is placed there, and
// that it is gone when it was given up.
func TestNVRAM(t *testing.T) {
	v := New()
	tell := func(n byte, ev domain.Event) {
		t.Helper()
		id := domain.DeviceID{UUID: domain.UUID{n}}
		rec := domain.Record{Event: ev}
		rec.Stream = cluster.DeviceStream(id)
		if err := v.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	for n, class := range map[byte]string{1: "flash", 2: "nvram"} {
		tell(n, &cluster.DeviceAdmitted{Device: domain.DeviceID{UUID: domain.UUID{n}}, Class: class})
	}
	var o policy.Observed
	v.Observe(&o)
	if len(v.Devices()) != 2 || len(o.Devices) != 1 || o.Devices[0].Class != "flash" {
		t.Errorf("%d devices, placed on %+v", len(v.Devices()), o.Devices)
	}
	tell(2, &cluster.DeviceRetired{Why: "empty"})
	if len(v.Devices()) != 1 {
		t.Errorf("after it was given up: %+v", v.Devices())
	}
}
