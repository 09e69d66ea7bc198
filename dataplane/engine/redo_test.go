package engine

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRedoSort proves that what recovery holds back is sorted by extent, and stays in its order
// within one, whatever the size of the volumes.
func TestRedoSort(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var q redoQueue
	for _, extents := range []uint32{1, 2, 100, 1 << redoBits, 1<<redoBits + 1, 1 << 22, 1<<32 - 1} {
		for _, n := range []int{1, 2, 1000, 300} {
			q.list = q.list[:0]
			for i := range n {
				q.list = append(q.list, redo{ext: rng.Uint32N(extents), lsn: uint64(i)})
			}
			want := slices.Clone(q.list)
			slices.SortStableFunc(want, func(a, b redo) int { return cmp.Compare(a.ext, b.ext) })
			q.sort()
			if len(q.keys) != n {
				t.Fatalf("%d extents: %d keys of %d", extents, len(q.keys), n)
			}
			for i, k := range q.keys {
				if r := q.list[uint32(k)]; r != want[i] || uint32(k>>32) != r.ext {
					t.Fatalf("%d extents, %d blocks: place %d has %+v, not %+v", extents, n, i, r, want[i])
				}
			}
		}
	}
}
