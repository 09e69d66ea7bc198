package engine

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// ranksOf makes a list of so many, of so many lines, whose blocks are below a bound from a base on.
func ranksOf(rnd *rand.Rand, n, lines int, base, below uint64) []rank {
	list := make([]rank, n)
	for i := range list {
		line := uint64(rnd.IntN(lines)) << (32 + rnd.IntN(2))
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
		list := ranksOf(rnd, n, 1+rnd.IntN(rankLines), rnd.Uint64(), 1+rnd.Uint64()>>(round%64))
		want := slices.SortedFunc(slices.Values(list), compareRanks)
		if lines, _ := linesOf(list); len(lines) > 1 && n >= rankLeast {
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
	if counted < 20 {
		t.Errorf("%d lists of more than one line were counted", counted)
	}
}

// BenchmarkSortRanks sorts a full batch of 4 KiB writes all over 2 GiB in two lanes.
func BenchmarkSortRanks(b *testing.B) {
	list := ranksOf(rand.New(rand.NewPCG(1, 2)), 4096, 2, 0, 2<<30/4096)
	for _, way := range []string{"compare", "count"} {
		b.Run(way, func(b *testing.B) {
			work, room := make([]rank, len(list)), make([]rank, len(list))
			for b.Loop() {
				copy(work, list)
				if way == "compare" {
					slices.SortFunc(work, compareRanks)
				} else {
					work, room = sortRanks(work, room)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(list)), "ns/record")
		})
	}
}
