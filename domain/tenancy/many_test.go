package tenancy

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/domain"
)

// TestMany gives random changes to lists that follow from each other in any way, and to plain
// slices: each list holds what its slice does, also after others followed from it.
func TestMany(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lists, want := []many[int]{{}}, [][]int{nil}
		for step := range rapid.IntRange(1, 30).Draw(rt, "steps") {
			from := rapid.IntRange(0, len(lists)-1).Draw(rt, "from")
			l, w := lists[from], slices.Clone(want[from])
			if rapid.Bool().Draw(rt, "add") {
				for i := range rapid.IntRange(1, 3*blockLen).Draw(rt, "n") {
					l, w = l.with(1000*step+i), append(w, 1000*step+i)
				}
			} else {
				div := rapid.IntRange(1, 200).Draw(rt, "divisor")
				var order []int
				l = l.without(func(x int) bool {
					order = append(order, x)
					return x%div == 0
				})
				slices.Reverse(order)
				if !slices.Equal(order, w) {
					rt.Fatalf("asked about %v of %v", order, w)
				}
				w = slices.DeleteFunc(w, func(x int) bool { return x%div == 0 })
			}
			lists, want = append(lists, l), append(want, w)
			for i := range lists {
				got := slices.Collect(lists[i].All())
				if !slices.Equal(got, want[i]) || lists[i].Len() != len(got) ||
					len(got) > 0 && lists[i].newest() != got[len(got)-1] {
					rt.Fatalf("list %d: %d, %v, want %v", i, lists[i].Len(), got, want[i])
				}
			}
		}
	})
}

// TestFoldIsLinear proves that folding a tenant allocates in proportion to its events: ten times as
// many may not take a hundred times as much.
func TestFoldIsLinear(t *testing.T) {
	cost := func(n int) float64 {
		events := make([]domain.Event, n)
		for i := range events {
			id := domain.DeriveUUID(domain.UUID{}, fmt.Sprint(i))
			events[i] = &Reserved{Kind: "template", Name: fmt.Sprint(i), Object: id}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, d := State{}, Directory{}
		for _, ev := range events {
			s = Evolve(s, ev)
			d = EvolveDirectory(d, &NameTaken{Kind: "tenant", Name: "n"})
		}
		runtime.ReadMemStats(&after)
		if s.Held.Len() != n || d.Names.Len() != n {
			t.Fatal("something is missing")
		}
		return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
	}
	if few, lots := cost(500), cost(5000); lots > 3*few {
		t.Errorf("%.0f bytes an event of 500, %.0f of 5000", few, lots)
	}
}
