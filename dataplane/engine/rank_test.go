package engine

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// ranksOf makes a list of so many, of so many branches in two lanes, whose blocks are below a bound
// from a base on.
func ranksOf(rnd *rand.Rand, n, lines int, base, below uint64) []rank {
	list := make([]rank, n)
	for i := range list {
		line := lineOf(&lane{no: uint8(rnd.IntN(2))}, uint32(1000+rnd.IntN(lines)))
		list[i] = rank{line, base + rnd.Uint64N(below), int32(i)}
	}
	return list
}

// TestSortRanks proves that counting sorts as comparing does, whatever there is of lines and bits,
// and loses nothing.
func TestSortRanks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var room []rank
	counted := 0
	for round := range 400 {
		n := rnd.IntN(3 * rankLeast)
		list := ranksOf(rnd, n, 1+rnd.IntN(40), rnd.Uint64(), 1+rnd.Uint64()>>(round%64))
		want := slices.SortedFunc(slices.Values(list), compareRanks)
		if n >= rankLeast {
			counted++
		}
		list, room = sortRanks(list, room)
		if !slices.EqualFunc(list, want, func(a, b rank) bool { return compareRanks(a, b) == 0 }) {
			t.Fatalf("round %d: %d are not in order", round, n)
		}
		slices.SortFunc(list, func(a, b rank) int { return cmp.Compare(a.at, b.at) })
		for i := range list {
			if list[i].at != int32(i) {
				t.Fatalf("round %d: record %d is gone", round, i)
			}
		}
	}
	if counted < 100 {
		t.Errorf("%d lists were counted", counted)
	}
}

// BenchmarkSortRanks sorts a full batch of 4 KiB writes all over 2 GiB, of one volume in two lanes
// and of forty.
func BenchmarkSortRanks(b *testing.B) {
	for _, c := range []struct {
		way   string
		lines int
	}{{"compare", 1}, {"count", 1}, {"compare", 40}, {"count", 40}} {
		b.Run(fmt.Sprintf("%s/volumes=%d", c.way, c.lines), func(b *testing.B) {
			list := ranksOf(rand.New(rand.NewPCG(1, 2)), 4096, c.lines, 0, 2<<30/4096)
			work, room := make([]rank, len(list)), make([]rank, len(list))
			for b.Loop() {
				copy(work, list)
				if c.way == "compare" {
					slices.SortFunc(work, compareRanks)
				} else {
					work, room = sortRanks(work, room)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(list)), "ns/record")
		})
	}
}
