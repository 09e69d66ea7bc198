package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/projections/topology"
)

// A node that a recovery gave up counts as dead at once: no seat is kept for it, none offered to it
// before it is back.
func TestLostNodesGetNoSeat(t *testing.T) {
	v := topology.New()
	node := func(n byte) domain.NodeID { return domain.NodeID{UUID: domain.UUID{n}} }
	tell := func(n byte, ev domain.Event) {
		t.Helper()
		rec := domain.Record{Event: ev}
		rec.Stream = cluster.NodeStream(node(n))
		if err := v.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	for n := byte(1); n <= 4; n++ {
		tell(n, &cluster.NodeJoined{Node: node(n)})
		tell(n, &cluster.NodeEndpointChanged{Peer: fmt.Sprint("https://", n)})
	}
	tell(1, &cluster.LogRecovered{By: node(1), Lost: []cluster.LostMember{
		{Node: node(2)}, {Node: node(3)},
	}})
	e := &electorate{
		leading: &leading{
			views: &views{topology: v}, o: Options{VoterGrace: time.Hour},
		},
		down: map[domain.NodeID]time.Time{},
	}
	seats := []cluster.Seat{{Member: 7, URL: "https://1"}}
	plan := func() cluster.Change {
		nodes, _ := e.candidates()
		return cluster.PlanVoters(nodes, seats, "https://1", e.o.VoterGrace)
	}
	if c := plan(); len(c.Add) > 0 || c.Remove != nil {
		t.Errorf("two nodes are left, and %+v", c)
	}
	tell(2, &cluster.NodeRestarted{Incarnation: 2})
	var add []string
	for _, n := range plan().Add {
		add = append(add, n.URL)
	}
	if slices.Sort(add); !slices.Equal(add, []string{"https://2", "https://4"}) {
		t.Errorf("three nodes are there, and %v are to learn", add)
	}
}
