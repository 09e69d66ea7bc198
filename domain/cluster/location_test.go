package cluster

import (
	"slices"
	"strings"
	"testing"

	"weft/domain"
)

func TestLocations(t *testing.T) {
	for text, want := range map[string]string{
		"":                             NoLocation,
		"none":                         NoLocation,
		"rack=r1,zone=a":               "zone=a,rack=r1",
		"chassis=c.1,site=Z_9,power=-": "site=Z_9,power=-,chassis=c.1",
	} {
		l, err := ParseLocation(text)
		if err != nil || l.String() != want {
			t.Errorf("%q: %q, %v, want %q", text, l, err, want)
		}
	}
	for _, text := range []string{
		"rack", "rack=", "=r1", "row=1", "rack=a,rack=b", "zone=a,", "rack=a b", "rack=ä",
		"rack=" + strings.Repeat("x", DomainNameMax+1),
	} {
		if l, err := ParseLocation(text); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%q: %q, %v, want an error of kind Invalid", text, l, err)
		}
	}
	wrong := Location{{"rack", "r"}, {"zone", "z"}}
	if err := (SetLocation{Location: wrong}).Validate(); err == nil {
		t.Error("a rack stands above a zone")
	}
}

// A node says where it stands once; the same again records nothing; a removed one says nothing.
func TestSetLocation(t *testing.T) {
	at := Location{{"zone", "a"}}
	n := Node{Exists: true}
	set := domain.Request{Command: SetLocation{Location: at}}
	for i, want := range []int{1, 0} {
		evs, err := decideNode(n, set)
		if err != nil || len(evs) != want {
			t.Fatalf("time %d: %v, %v", i, evs, err)
		}
		for _, ev := range evs {
			n = evolveNode(n, ev)
		}
	}
	if !slices.Equal(n.Location, at) {
		t.Errorf("it stands at %s", n.Location)
	}
	n.Removed = true
	set.Command = SetLocation{}
	if _, err := decideNode(n, set); !domain.IsKind(err, domain.Conflict) {
		t.Errorf("removed: %v", err)
	}
}

// located makes a cluster at rest of nodes that stand in these zones, the first so many of them
// voting.
func located(voters int, zones ...string) *world {
	w := newWorld(len(zones))
	for i, z := range zones {
		if z != "" {
			w.nodes[i].Place = Location{{"zone", z}}
		}
	}
	for i := 1; i < voters; i++ {
		w.next++
		w.seats = append(w.seats, Seat{Member: w.next, URL: w.nodes[i].URL})
	}
	return w
}

func (w *world) plan() Change { return PlanVoters(w.nodes, w.seats, w.leader(), grace) }

// A seat moves to another domain in three steps: a learner, its vote, the worst placed voter out,
// who is not the leader. It is begun at rest only.
func TestVotersSpread(t *testing.T) {
	w := located(3, "a", "a", "b", "a", "c")
	w.nodes[3].Down = true
	if c := w.plan(); len(c.Add) > 0 {
		t.Errorf("begun while five voters are wanted and three sit: %+v", c)
	}
	w.nodes[3].DownFor = grace // so that three are wanted
	c := w.plan()
	if len(c.Add) != 1 || c.Add[0].URL != "https://n5" {
		t.Fatalf("not the node of the third zone: %+v", c)
	}
	w.node("https://n3").Down = true
	if c = w.plan(); len(c.Add) > 0 {
		t.Errorf("begun while a voter is down: %+v", c)
	}
	w.node("https://n3").Down = false
	w.step()
	if c = w.plan(); len(c.Promote) != 1 {
		t.Fatalf("the learner does not vote: %+v", c)
	}
	w.step()
	if c = w.plan(); c.Remove == nil || c.Remove.URL != "https://n2" {
		t.Fatalf("not the follower in the first zone: %+v", c)
	}
	w.step()
	if w.step() {
		t.Error("no rest")
	}
}

// Growth takes the nodes that stand farthest apart at once, and where two domains part the nodes,
// three of any number vote.
func TestVotersGrowApart(t *testing.T) {
	w := located(1, "a", "a", "a", "b", "c")
	if c := w.plan(); len(c.Add) != 2 || c.Add[0].URL != "https://n4" || c.Add[1].URL != "https://n5" {
		t.Errorf("it grows by %+v", c.Add)
	}
	for w.step() {
	}
	if voters, _ := w.count(); voters != 5 {
		t.Errorf("%d of five nodes in three zones vote", voters)
	}
	w = located(1, "a", "a", "a", "b", "b", "b")
	for w.step() {
	}
	if voters, _ := w.count(); voters != 3 {
		t.Errorf("%d of six nodes in two zones vote", voters)
	}
	w = located(1, "a", "a", "a", "a", "a", "a")
	for w.step() {
	}
	if voters, _ := w.count(); voters != 5 {
		t.Errorf("%d of six nodes in one zone vote: it parts nothing", voters)
	}
}
