package engine

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"weft/dataplane/segment"
	"weft/domain"
)

// TestRedoSort proves that what recovery holds back is sorted by extent and family, and stays in
// its order within one, whatever the size of the volumes.
func TestRedoSort(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var q redoQueue
	one, two := &family{}, &family{}
	q.branches = []*branch{{fam: one}, nil, {fam: two}, {fam: one}}
	of := []int{0, -1, 1, 0}
	for _, extents := range []uint32{1, 2, 100, 1 << redoBits, 1<<redoBits + 1, 1 << 22, 1<<32 - 1} {
		for _, n := range []int{1, 2, 1000, 300} {
			q.list, q.extents = q.list[:0], 0
			for i := range n {
				br := []uint16{0, 2, 3}[rng.IntN(3)]
				ext := rng.Uint32N(extents)
				q.list, q.extents = append(q.list, redo{ext: ext, loc: segment.Loc(i), br: br}), q.extents|ext
			}
			want := slices.Clone(q.list)
			slices.SortStableFunc(want, func(a, b redo) int {
				return cmp.Or(cmp.Compare(a.ext, b.ext), cmp.Compare(of[a.br], of[b.br]))
			})
			q.sort()
			if !slices.Equal(q.list, want) {
				t.Fatalf("%d extents, %d blocks: %+v, not %+v", extents, n, q.list, want)
			}
		}
	}
}

// TestRedoBulk proves that many blocks of a leaf enter together as they would one by one: over
// nothing, zeros, plain and compressed blocks, and over each other; in a list, in an array, and in
// a list that becomes one.
func TestRedoBulk(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 60 {
		type state struct {
			live, saved, own, index, dirty int64
			n                              uint16
			segs                           []int64
			parts                          []uint8
			all                            [segment.LeafBlocks]segment.Loc
		}
		before := rng.IntN(segment.LeafBlocks)
		if round%2 == 0 {
			before = rng.IntN(100)
		}
		was := map[int]segment.Loc{}
		place := func(unit, units uint64) uint64 {
			at := (segment.DataOff + uint64(rng.IntN(64<<20))) / segment.BlockSize
			return at*segment.BlockUnits + unit*units
		}
		for range before {
			i := rng.IntN(segment.LeafBlocks)
			was[i] = []segment.Loc{
				segment.ZeroLoc, segment.MakeLoc(place(0, 0), rng.Uint32()),
				segment.MakePacked(place(1, 3), 3, rng.Uint32()),
			}[rng.IntN(3)]
		}
		list := make([]redo, 2+rng.IntN(900))
		for i := range list {
			list[i] = redo{
				loc: segment.MakeLoc(place(0, 0), rng.Uint32()), i: uint16(rng.IntN(segment.LeafBlocks)),
			}
		}
		var got [2]state
		for k, bulk := range []int{1, len(list) + 1} {
			redoBulk = bulk
			e := open(t, newMem(t, 80<<20, 64<<10, 1), quiet)
			v := create(t, e, 4*domain.MiB)
			l, br := e.lanes[0], v.br.Load()
			lf := l.leaf(br, 0)
			for i := range segment.LeafBlocks {
				if loc, ok := was[i]; ok {
					l.point(lf, i, loc)
				}
			}
			q := redoQueue{}
			for _, part := range [][]redo{list[:len(list)/2], list[len(list)/2:]} {
				q.branches, q.list = append(q.branches, br), slices.Clone(part)
				q.enter(l)
			}
			s := state{
				live: e.space.live.Load(), saved: e.space.saved.Load(), own: br.own.Load(),
				index: e.space.index.Load(), dirty: e.space.dirty.Load(), n: lf.n,
			}
			for _, sg := range e.space.mu.segs {
				s.segs = append(s.segs, sg.live.Load())
			}
			for p := range len(s.segs) * e.space.partCount {
				s.parts = append(s.parts, e.space.alive(p))
			}
			lf.own.over(s.all[:], 0)
			if lf.own.dense == nil && len(lf.own.few.at) != int(lf.n) {
				t.Errorf("round %d: a list of %d blocks, %d counted", round, len(lf.own.few.at), lf.n)
			}
			got[k] = s
			e.Abandon()
		}
		redoBulk = 2
		var want [segment.LeafBlocks]segment.Loc
		for i, loc := range was {
			want[i] = loc
		}
		for _, r := range list {
			want[r.i] = r.loc
		}
		if got[0].all != want {
			t.Errorf("round %d: the leaf holds what it should not", round)
		}
		if !slices.Equal(got[0].segs, got[1].segs) || !slices.Equal(got[0].parts, got[1].parts) {
			t.Errorf("round %d: what lives of segments differs", round)
		}
		got[0].segs, got[1].segs = nil, nil
		if a, b := got[0], got[1]; a.live != b.live || a.saved != b.saved || a.own != b.own ||
			a.index != b.index || a.dirty != b.dirty || a.n != b.n || a.all != b.all {
			t.Errorf("round %d: together %d %d %d %d %d %d, one by one %d %d %d %d %d %d", round, a.live,
				a.saved, a.own, a.index, a.dirty, a.n, b.live, b.saved, b.own, b.index, b.dirty, b.n)
		}
	}
}

// TestRedoForgets proves that who answers for an entry's branch is asked again once all that was
// held back is in: records of branches change it.
func TestRedoForgets(t *testing.T) {
	other := open(t, newMem(t, smallSize, 64<<10, 1), quiet)
	first := create(t, other, 4*domain.MiB).br.Load().id
	other.Abandon()
	e := open(t, newMem(t, smallSize, 64<<10, 1), quiet)
	defer e.Abandon()
	l, q := e.lanes[0], redoQueue{}
	if b, _ := q.branch(l, first); b != nil {
		t.Fatal("a branch that is not there answers")
	}
	v := create(t, e, 4*domain.MiB)
	q.enter(l)
	if b, no := q.branch(l, first); b != v.br.Load() || no != 0 {
		t.Errorf("%v at %d answers", b, no)
	}
}

// BenchmarkReplicaRedo opens a replica whose records are all in the log behind the checkpoint: that
// takes as long for each of many as of few.
func BenchmarkReplicaRedo(b *testing.B) {
	for _, n := range []int{2000, 20000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			dev := newMem(b, 256<<20, 1<<20, 1)
			e := open(b, dev, quiet)
			p := replicaOn(b, e)
			done := make(signal, n)
			for seq := range uint64(n) {
				r := versioned(seq, 1, seq, 5, seq+1)
				r.To = done
				p.Append(r, 5)
			}
			for range n {
				must(b, <-done)
			}
			for b.Loop() {
				e.Abandon()
				e = open(b, dev, quiet)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/record")
			e.Abandon()
		})
	}
}
