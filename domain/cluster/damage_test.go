package cluster

import (
	"testing"

	"weft/domain"
)

// A damage is told once, until it was repaired or its member was removed; what is found of a member
// that is gone, and the repair of what nobody knew, say nothing.
func TestDamageIsToldOnce(t *testing.T) {
	agg := MembershipAggregate()
	var s Members
	tell := func(c domain.Command) int {
		t.Helper()
		evs, err := agg.Decide(s, domain.Request{Command: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			s = agg.Evolve(s, ev)
		}
		return len(evs)
	}
	node := domain.NodeID{UUID: domain.UUID{1}}
	base := LogDamaged{Node: node, Part: "database", Member: 7, Position: 3, Why: "checksum"}
	file := LogDamaged{Node: node, Part: "archive", First: 4}
	for i, c := range []struct {
		fact domain.Event
		want int
		left int
	}{
		{&base, 1, 1},
		{&base, 0, 1},
		{&file, 1, 2},
		{&LogDamaged{Node: node, Part: "archive", First: 7}, 1, 3},
		{&LogRepaired{Node: node, Part: "archive", First: 4}, 1, 2},
		{&LogRepaired{Node: node, Part: "archive", First: 4}, 0, 2},
		{&file, 1, 3},
		{&VoterRemoved{Node: node, Member: 7}, 1, 2},
		{&base, 0, 2},
	} {
		var got int
		if _, seat := c.fact.(*VoterRemoved); seat {
			got = tell(Enroll{Fact: c.fact})
		} else {
			got = tell(ReportDamage{Fact: c.fact})
		}
		if got != c.want || len(s.Damaged) != c.left {
			t.Fatalf("step %d: %d events, %d are left", i, got, len(s.Damaged))
		}
	}
	if _, err := agg.Decide(s, domain.Request{
		Command: ReportDamage{Fact: &NodeDown{}},
	}); !domain.IsKind(err, domain.Internal) {
		t.Errorf("a node that is down is no damage: %v", err)
	}
}

// A voter with a damaged database is replaced: one at a time, not while it leads, never so that no
// majority of sound ones is left, and never the only one.
func TestDamagedVoterIsReplaced(t *testing.T) {
	removed := func(w *world, leader string) (member uint64) {
		if c := PlanVoters(w.nodes, w.seats, leader, grace); c.Remove != nil {
			return c.Remove.Member
		}
		return 0
	}
	w := newWorld(3)
	for w.step() {
	}
	ill := w.seats[1]
	w.node(ill.URL).Damaged = ill.Member
	if got := removed(w, ill.URL); got != 0 {
		t.Errorf("the leader is removed: %x", got)
	}
	other := w.node(w.seats[2].URL)
	for _, c := range []struct {
		what string
		set  func(*Candidate, bool)
	}{
		{"down", func(n *Candidate, on bool) { n.Down = on }},
		{"damaged", func(n *Candidate, on bool) {
			n.Damaged = 0
			if on {
				n.Damaged = w.seats[2].Member
			}
		}},
	} {
		c.set(other, true)
		if got := removed(w, w.leader()); got != 0 {
			t.Errorf("with another %s %x is removed", c.what, got)
		}
		c.set(other, false)
	}
	if got := removed(w, w.leader()); got != ill.Member {
		t.Fatalf("%x is removed, want %x", got, ill.Member)
	}
	w.step()
	w.node(w.seats[1].URL).Damaged = w.seats[1].Member
	if got := removed(w, w.leader()); got != 0 {
		t.Errorf("%x is removed before the first is back", got)
	}
	w.node(w.seats[1].URL).Damaged = 0
	for w.step() {
	}
	if voters, _ := w.count(); voters != 3 || w.seats[2].Member == ill.Member {
		t.Errorf("%+v", w.seats)
	}
	one := newWorld(1)
	one.nodes[0].Damaged = one.seats[0].Member
	if got := removed(one, ""); got != 0 {
		t.Error("the only voter is removed")
	}
}
