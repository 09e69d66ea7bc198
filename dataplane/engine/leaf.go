package engine

import (
	"slices"

	"weft/dataplane/segment"
)

// depthMax is the most leaves that a read walks. A leaf that would stand deeper keeps a view: all
// that its branch sees, resolved. Measured on a chain of 1,000 snapshots that each wrote to the
// extent: a view every 8th costs 1 KiB a snapshot and a look-up stays below 0.2 us.
const depthMax = 8

// leaf is what one branch wrote in one extent, guarded by the lane's mutex. What it did not write
// is answered by its base: the leaf of the nearest older branch of its line that wrote here.
//
// So each copy of a block stands in one leaf, whatever the number of branches that see it: moving
// it is one change, and it is dead when no name is left whose way to it is free.
type leaf struct {
	br       *branch
	base     *leaf
	tree     *tree  // all leaves of the extent; nil when it is the only one
	view     *table // what the branch sees, where the way down would be too long; no holes
	complete uint64 // as loaded: the LSN up to which all outcomes are in
	own      table
	ext      uint32
	n        uint16 // blocks in own
	dirty    bool   // in the lane's dirty list
	gone     bool   // no leaf any more: its image leaves the directory
}

// leafBytes is the size of a leaf and of its place in the map, without its tables.
const leafBytes = 64 + 26

// markBytes is what a leaf adds to the tree of its extent.
const markBytes = 2 * 16

// tree holds the leaves of one extent, in the order of the family's walk: of each the place where
// its branch begins and where it ends. What a branch sees first is found by one binary search,
// whatever the number of branches and their depth.
type tree struct{ marks []mark }

type mark struct {
	lf  *leaf
	end bool
}

func (m mark) pos() uint32 {
	if m.end {
		return m.lf.br.out
	}
	return m.lf.br.in
}

// behind gives the number of marks up to a number of the walk.
func (t *tree) behind(pos uint32) int {
	lo, hi := 0, len(t.marks)
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); t.marks[m].pos() <= pos {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// within gives the marks between the beginning and the end of a leaf.
func (t *tree) within(lf *leaf) []mark {
	return t.marks[t.behind(lf.br.in) : t.behind(lf.br.out)-1]
}

// find gives the leaf that answers first for a branch; nil when nothing does. lf is any leaf of the
// extent, or nil.
func (lf *leaf) find(b *branch) *leaf {
	switch {
	case lf == nil || lf.br == b:
		return lf
	case lf.tree == nil:
		if lf.br.covers(b) {
			return lf
		}
		return nil
	}
	j := lf.tree.behind(b.in)
	if j == 0 {
		return nil
	}
	m := lf.tree.marks[j-1]
	if m.end {
		return m.lf.base
	}
	return m.lf
}

// of gives the leaf of a branch itself; nil when it has none.
func (lf *leaf) of(b *branch) *leaf {
	if f := lf.find(b); f != nil && f.br == b {
		return f
	}
	return nil
}

// shown is a location as a reader sees it.
func shown(loc segment.Loc) segment.Loc {
	if loc == segment.HoleLoc {
		return 0
	}
	return loc
}

// at gives what a leaf's branch sees of a block, 0 for a hole. lf may be nil.
func (lf *leaf) at(i int) segment.Loc {
	for ; lf != nil; lf = lf.base {
		if lf.view != nil {
			return lf.view.get(i)
		}
		if loc := lf.own.get(i); loc != 0 {
			return shown(loc)
		}
	}
	return 0
}

// resolve gives what the branch sees of the blocks from first on. lf may be nil.
func (lf *leaf) resolve(first int, dst []segment.Loc) {
	clear(dst)
	lf.lay(first, dst)
	for i, loc := range dst {
		if loc == segment.HoleLoc {
			dst[i] = 0
		}
	}
}

// lay lays one leaf after the other over dst, the oldest first.
func (lf *leaf) lay(first int, dst []segment.Loc) {
	if lf == nil {
		return
	}
	if lf.view != nil {
		lf.view.over(dst, first)
		return
	}
	lf.base.lay(first, dst)
	lf.own.over(dst, first)
}

// depth gives how many leaves a read walks.
func (lf *leaf) depth() int {
	n := 0
	for ; lf != nil; lf = lf.base {
		n++
		if lf.view != nil {
			break
		}
	}
	return n
}

// bound gives a leaf a view if the way down is too long.
func (l *lane) bound(lf *leaf) {
	if lf.depth() <= depthMax {
		return
	}
	var all [segment.LeafBlocks]segment.Loc
	lf.resolve(0, all[:])
	count := 0
	for _, loc := range all {
		if loc != 0 {
			count++
		}
	}
	v := &table{}
	v.load(&all, count)
	lf.view = v
	l.memory.Add(v.bytes())
}

// leaf gives the leaf of a branch and an extent, made when it is missing; nil when nobody sees what
// the branch would hold.
func (l *lane) leaf(b *branch, block uint64) *leaf {
	if b.dead() {
		return nil
	}
	ext := uint32(block / segment.LeafBlocks)
	if lf := b.fam.leaves[l.no][ext].of(b); lf != nil {
		return lf
	}
	lf := &leaf{br: b, ext: ext}
	l.insert(lf)
	l.bound(lf)
	if lf.tree != nil { // of a branch that others stand on: a late record of a replica
		for _, k := range lf.tree.within(lf) {
			if !k.end {
				l.bound(k.lf)
			}
		}
	}
	return lf
}

// insert puts a leaf among those of its extent.
func (l *lane) insert(lf *leaf) {
	l.memory.Add(leafBytes + lf.own.bytes())
	lf.br.note(l, lf.ext, true)
	m := lf.br.fam.leaves[l.no]
	other := m[lf.ext]
	if other == nil {
		m[lf.ext] = lf
		return
	}
	t := other.tree
	if t == nil {
		t = &tree{marks: []mark{{other, false}, {other, true}}}
		other.tree = t
		l.memory.Add(markBytes)
	}
	l.memory.Add(markBytes)
	lf.base = other.find(lf.br)
	from, to := t.behind(lf.br.in), t.behind(lf.br.out)
	for _, k := range t.marks[from:to] {
		if k.lf.base == lf.base {
			k.lf.base = lf
		}
	}
	t.marks = slices.Insert(t.marks, to, mark{lf, true})
	t.marks = slices.Insert(t.marks, from, mark{lf, false})
	lf.tree = t
}

// remove takes a leaf out of its extent. It must hold nothing.
func (l *lane) remove(lf *leaf) {
	l.memory.Add(-leafBytes - lf.own.bytes())
	if lf.view != nil {
		l.memory.Add(-lf.view.bytes())
	}
	lf.gone = true
	lf.br.note(l, lf.ext, false)
	m, t := lf.br.fam.leaves[l.no], lf.tree
	if t == nil {
		delete(m, lf.ext)
		return
	}
	from := t.behind(lf.br.in)
	to := t.behind(lf.br.out) - 1
	below := slices.Clone(t.marks[from:to])
	for _, k := range below {
		if k.lf.base == lf {
			k.lf.base = lf.base
		}
	}
	t.marks = slices.Delete(t.marks, to, to+1)
	t.marks = slices.Delete(t.marks, from-1, from)
	m[lf.ext] = t.marks[0].lf
	l.memory.Add(-markBytes)
	if len(t.marks) == 2 {
		t.marks[0].lf.tree = nil
		l.memory.Add(-markBytes)
	}
	for _, k := range below {
		if !k.end {
			l.bound(k.lf)
		}
	}
}
