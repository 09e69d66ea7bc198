package cluster

import (
	"reflect"
	"testing"

	"weft/domain"
)

// A recovery is told by what was kept and by the raise, in one append; one that says nothing lost,
// no hash, no node, or raises nothing is refused.
func TestRecordRecovery(t *testing.T) {
	node := domain.NodeID{UUID: domain.DeriveUUID(domain.UUID{}, "node")}
	sound := RecordRecovery{To: 3, LogRecovered: LogRecovered{
		By: node, Kept: domain.PositionOf(2, 40), Hash: make([]byte, 32), Term: 5, Index: 77,
		Lost: []LostMember{{Node: node, Member: 9}},
	}}
	s := State{Exists: true}
	got, err := decideCluster(s, domain.Request{Command: sound})
	want := []domain.Event{
		&sound.LogRecovered, &TimelineRaised{From: 2, To: 3, Floor: domain.PositionOf(2, 40)},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, change := range map[string]func(*RecordRecovery){
		"no raise": func(c *RecordRecovery) { c.To = 2 },
		"no hash":  func(c *RecordRecovery) { c.Hash = c.Hash[:31] },
		"no node":  func(c *RecordRecovery) { c.By = domain.NodeID{} },
		"no loss":  func(c *RecordRecovery) { c.Lost = nil },
	} {
		c := sound
		change(&c)
		if ev, err := decideCluster(s, domain.Request{Command: c}); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%s: %v, %v", name, ev, err)
		}
	}
	if _, err := decideCluster(State{}, domain.Request{Command: sound}); err == nil {
		t.Error("a cluster that is not there was recovered")
	}
}
