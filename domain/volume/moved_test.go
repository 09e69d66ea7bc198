package volume

import (
	"testing"

	"weft/domain"
)

// TestMoved proves that a volume which went to another device is known to stand there, that this is
// told once, and that one which is not known, or is deleted, does not move.
func TestMoved(t *testing.T) {
	at := func(n byte) domain.DeviceID { return domain.DeviceID{UUID: domain.UUID{n}} }
	move := domain.Request{Command: Record{Fact: &VolumeMoved{From: at(1), To: at(2), Bytes: 7}}}
	var s State
	if _, err := Decide(s, move); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	s = Evolve(s, &VolumeCreated{Device: at(1), Size: 5})
	for n := range 2 {
		evs, err := Decide(s, move)
		if err != nil || len(evs) != 1-n {
			t.Fatalf("time %d: %v, %v", n, evs, err)
		}
		for _, ev := range evs {
			s = Evolve(s, ev)
		}
	}
	if s.Device != at(2) || s.Size != 5 {
		t.Errorf("%+v", s)
	}
	s = Evolve(s, &VolumeDeleted{})
	back := domain.Request{Command: Record{Fact: &VolumeMoved{To: at(1)}}}
	if _, err := Decide(s, back); !domain.IsKind(err, domain.Conflict) {
		t.Errorf("a deleted one: %v", err)
	}
}
