package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/domain"
)

const grace = 10 * time.Minute

// world is a cluster that obeys changes at once.
type world struct {
	nodes []Candidate
	seats []Seat
	next  uint64
}

func newWorld(n int) *world {
	w := &world{next: 1}
	for range n {
		w.join()
	}
	w.seats = []Seat{{Member: 99, URL: w.nodes[0].URL}}
	return w
}

func (w *world) join() {
	i := len(w.nodes) + 1
	w.nodes = append(w.nodes, Candidate{
		Node: domain.NodeID{UUID: domain.UUID{byte(i)}}, URL: fmt.Sprintf("https://n%d", i),
	})
}

func (w *world) leader() string {
	for _, s := range w.seats {
		if !s.Learner && !w.node(s.URL).Down {
			return s.URL
		}
	}
	return ""
}

func (w *world) node(url string) *Candidate {
	for i := range w.nodes {
		if w.nodes[i].URL == url {
			return &w.nodes[i]
		}
	}
	return &Candidate{}
}

func (w *world) count() (voters, up int) {
	for _, s := range w.seats {
		if !s.Learner {
			voters++
			if !w.node(s.URL).Down {
				up++
			}
		}
	}
	return voters, up
}

// step carries one change out, each promotion of it at once, and tells whether there was one.
func (w *world) step() bool {
	c := PlanVoters(w.nodes, w.seats, w.leader(), grace)
	for _, n := range c.Add {
		w.next++
		w.seats = append(w.seats, Seat{Member: w.next, URL: n.URL, Learner: true, CaughtUp: true})
	}
	for _, p := range c.Promote {
		at := slices.IndexFunc(w.seats, func(s Seat) bool { return s.Member == p.Member })
		w.seats[at].Learner = false
	}
	if c.Remove != nil {
		gone := c.Remove.Member
		w.seats = slices.DeleteFunc(w.seats, func(s Seat) bool { return s.Member == gone })
	}
	return len(c.Add)+len(c.Promote) > 0 || c.Remove != nil
}

// Whatever joins, dies, returns and leaves: no step takes the quorum from a log that had one, it
// comes to rest, and where all nodes are up and stay it rests at the wanted number of voters.
func TestVotersStayOdd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.IntRange(1, 4).Draw(t, "nodes"))
		for range rapid.IntRange(1, 12).Draw(t, "happenings") {
			n := &w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "which")]
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0:
				if len(w.nodes) < 9 {
					w.join()
				}
			case 1:
				n.Down = true
			case 2:
				n.Down, n.DownFor = false, 0
			case 3:
				if n.Down {
					n.DownFor = grace
				}
			case 4:
				n.Leaving = true
			default:
				n.Place = drawLocation(t)
			}
			steps := 0
			for quorum(w) && w.step() {
				if voters, up := w.count(); up <= voters/2 {
					t.Fatalf("a step left %d of %d voters", up, voters)
				}
				if steps++; steps > 100 {
					t.Fatalf("no rest: %+v", w.seats)
				}
			}
			rest(t, w)
		}
	})
}

func quorum(w *world) bool {
	voters, up := w.count()
	return up > voters/2
}

// rest judges a state without a next step, where all nodes are up and stay.
func rest(t *rapid.T, w *world) {
	for _, n := range w.nodes {
		if n.Down || n.Leaving {
			return
		}
	}
	if !quorum(w) {
		return
	}
	want := VoterCount(len(w.nodes))
	if want == VotersMax && twoDomains(w.nodes) {
		want = 3
	}
	var voting []Candidate
	for _, s := range w.seats {
		if s.Learner {
			t.Fatalf("a learner is left: %+v", w.seats)
		}
		voting = append(voting, *w.node(s.URL))
	}
	if len(voting) != want {
		t.Fatalf("%d voters of %d nodes, want %d", len(voting), len(w.nodes), want)
	}
	if want == 1 {
		return
	}
	if got, best := pairs(voting), bestPairs(w.nodes, want); !slices.Equal(got, best) {
		t.Fatalf("pairs of voters that share a domain: %v, best %v; %+v", got, best, voting)
	}
}

// drawLocation draws some of the levels of a tree of three kinds.
func drawLocation(t *rapid.T) Location {
	var l Location
	for _, kind := range []string{"site", "zone", "rack"} {
		if name := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, kind); name != "" {
			l = append(l, FailureDomain{kind, name})
		}
	}
	return l
}

// shared tells in how many of the kinds, from the widest on, two nodes stand together: the naive
// form of what the plan counts by paths.
func shared(a, b Location) int {
	for k, kind := range domainKinds {
		var x, y string
		for _, d := range a {
			if d.Kind == kind {
				x = d.Name
			}
		}
		for _, d := range b {
			if d.Kind == kind {
				y = d.Name
			}
		}
		if x != y {
			return k
		}
	}
	return len(domainKinds)
}

// pairs counts for each kind the pairs of nodes that share a domain of it.
func pairs(nodes []Candidate) []int {
	n := make([]int, len(domainKinds))
	for i := range nodes {
		for j := range i {
			for k := range shared(nodes[i].Place, nodes[j].Place) {
				n[k]++
			}
		}
	}
	return n
}

// bestPairs tries every choice of so many nodes.
func bestPairs(nodes []Candidate, count int) []int {
	var best []int
	for set := range 1 << len(nodes) {
		var chosen []Candidate
		for i := range nodes {
			if set>>i&1 == 1 {
				chosen = append(chosen, nodes[i])
			}
		}
		if len(chosen) != count {
			continue
		}
		if p := pairs(chosen); best == nil || slices.Compare(p, best) < 0 {
			best = p
		}
	}
	return best
}

// twoDomains tells whether the nodes stand in two domains of the widest kind that parts them.
func twoDomains(nodes []Candidate) bool {
	parted := len(domainKinds)
	for i := range nodes {
		parted = min(parted, shared(nodes[0].Place, nodes[i].Place))
	}
	if parted == len(domainKinds) {
		return false
	}
	var kinds []Location
	for _, n := range nodes {
		if !slices.ContainsFunc(kinds, func(l Location) bool { return shared(l, n.Place) > parted }) {
			kinds = append(kinds, n.Place)
		}
	}
	return len(kinds) == 2
}

// The steps by name: growth takes two learners at a time and promotes both in one change; a silent
// voter keeps its seat within the grace and loses it after; a leaving one goes when others sit.
func TestVoterSteps(t *testing.T) {
	w := newWorld(2)
	if w.step() {
		t.Fatal("two nodes: one votes")
	}
	w.join()
	c := PlanVoters(w.nodes, w.seats, w.leader(), grace)
	if len(c.Add) != 2 {
		t.Fatalf("%+v", c)
	}
	w.step()
	w.seats[2].CaughtUp = false
	if w.step() {
		t.Fatal("promoted one of two: two voters")
	}
	w.seats[2].CaughtUp = true
	if c = PlanVoters(w.nodes, w.seats, w.leader(), grace); len(c.Promote) != 2 {
		t.Fatalf("%+v", c)
	}
	w.step()
	w.join()
	w.nodes[1].Down, w.nodes[1].DownFor = true, grace-1
	if w.step() {
		t.Fatal("replaced within the grace")
	}
	w.nodes[1].DownFor = grace
	for w.step() {
	}
	if voters, up := w.count(); voters != 3 || up != 3 {
		t.Fatalf("%d of %d voters", up, voters)
	}
	w.nodes[0].Leaving = true
	for w.step() {
	}
	if slices.ContainsFunc(w.seats, func(s Seat) bool { return s.URL == w.nodes[0].URL }) {
		t.Fatalf("%+v", w.seats)
	}
}

// A node that lost its files comes again as another one at the address of the first, which stands
// in the list as down. The seat of the first is not taken for its own, and is given up after the
// grace; then the new one gets a seat and keeps it.
func TestWipedNodeAtItsAddress(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 0, 1, 2}} {
		w := newWorld(4)
		lost, again := w.nodes[2], w.nodes[3]
		lost.Down, lost.DownFor = true, grace/2
		again.URL = lost.URL
		w.nodes[2], w.nodes[3] = lost, again
		var nodes []Candidate
		for _, i := range order {
			nodes = append(nodes, w.nodes[i])
		}
		seats := make([]Seat, 0, 4)
		for i := range 3 {
			seats = append(seats, Seat{
				Member: uint64(i + 1), Node: w.nodes[i].Node, URL: w.nodes[i].URL,
			})
		}
		plan := func() Change { return PlanVoters(nodes, seats, w.nodes[0].URL, grace) }
		still := func(when string) {
			t.Helper()
			if c := plan(); c.Add != nil || c.Promote != nil || c.Remove != nil {
				t.Errorf("%s: %+v", when, c)
			}
		}
		still("within the grace")
		for i := range nodes {
			if nodes[i].Node == lost.Node {
				nodes[i].DownFor = grace
			}
		}
		if c := plan(); c.Remove == nil || c.Remove.Member != 3 {
			t.Fatalf("behind the grace: %+v", c)
		}
		seats = seats[:2]
		if c := plan(); len(c.Add) != 1 || c.Add[0].Node != again.Node {
			t.Fatalf("a free seat: %+v", c)
		}
		seats = append(seats, Seat{Member: 4, URL: again.URL, Learner: true})
		still("before it has started")
		seats[2].Node = again.Node
		still("while it copies")
		seats[2].CaughtUp = true
		if c := plan(); len(c.Promote) != 1 {
			t.Fatalf("once it has caught up: %+v", c)
		}
		seats[2].Learner = false
		still("at the end")
	}
}
