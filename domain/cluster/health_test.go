package cluster

import (
	"testing"

	"weft/domain"
)

// TestDeviceHealth proves that a device's troubles are told once each, that the places of one
// scrub are bounded, that a new pass tells anew, and that being well again is told once and does
// not bring back a device that failed, and that NVRAM is not scrubbed by itself.
func TestDeviceHealth(t *testing.T) {
	a := DeviceAggregate()
	var s Device
	do := func(c domain.Command) int {
		t.Helper()
		evs, err := a.Decide(s, domain.Request{Command: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			s = a.Evolve(s, ev)
		}
		return len(evs)
	}
	if _, err := a.Decide(s, domain.Request{Command: Scrub{}}); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("no device: %v", err)
	}
	do(Admit{})
	see := func(f domain.Event) domain.Command { return Observe{Fact: f} }
	for i, c := range []struct {
		c    domain.Command
		want int
	}{
		{Scrub{Pause: true}, 1},
		{Scrub{Pause: true}, 0},
		{Scrub{}, 1},
		{Scrub{}, 1}, // asked again: another pass
		{see(&DamageFound{Pass: 1, Part: "block", Offset: 7}), 1},
		{see(&DamageFound{Pass: 1, Part: "block", Offset: 7}), 0},
		{see(&DamageFound{Pass: 1, Part: "index", Offset: 7}), 1},
		{see(&DamageFound{Pass: 1, Part: "block", Block: 3}), 1},
		{see(&DamageFound{Pass: 1, Part: "block", Block: 3}), 0},
		{see(&DamageFound{Pass: 1, Part: "block", Block: 4}), 1}, // nowhere, as the one before
		{see(&ScrubFinished{Pass: 1, Damaged: 2}), 1},
		{see(&ScrubFinished{Pass: 1, Damaged: 2}), 0},
		{see(&DamageFound{Pass: 1, Part: "block", Offset: 9}), 0}, // late
		{see(&DamageFound{Pass: 2, Part: "block", Offset: 9}), 1},
		{Resume{}, 0},
		{see(&DeviceSuspended{Rule: "stall"}), 1},
		{see(&DeviceSuspended{Rule: "latency"}), 0},
		{Resume{}, 1},
		{Resume{}, 0},
		{see(&DeviceSuspended{Rule: "stall"}), 1},
		{Fail{Why: "dead"}, 1},
		{Resume{}, 0},
		{see(&DeviceSuspended{Rule: "stall"}), 0},
		{Admit{}, 1},
		{Resume{}, 0},
		{Fail{Why: "dead"}, 1},
		{see(&DeviceSuspended{Rule: "stall"}), 0},
	} {
		if n := do(c.c); n != c.want {
			t.Errorf("%d: %s gave %d events, want %d", i, c.c.CommandType(), n, c.want)
		}
	}
	for _, pass := range []uint64{3, 4} { // nobody hears of the end of the first
		for i := range DamagesMax + 5 {
			do(see(&DamageFound{Pass: pass, Part: "block", Offset: domain.Bytes(100 + i)}))
		}
		if len(s.Found) != DamagesMax || s.Found[0].Pass != pass {
			t.Errorf("%d places are events", len(s.Found))
		}
	}
	s.Class = ClassNVRAM
	_, err := a.Decide(s, domain.Request{Command: Scrub{}})
	if !domain.IsKind(err, domain.Unsupported) {
		t.Errorf("NVRAM: %v", err)
	}
	if _, err = a.Decide(s, domain.Request{Command: see(&ScrubPaused{})}); err == nil {
		t.Error("a wish is taken for a fact")
	}
}
