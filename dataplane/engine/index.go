package engine

import "weft/dataplane/segment"

// How the index changes: every change of a leaf goes through point or put, which keep all counters.
// The lane's mutex is held throughout.

// setData points the blocks of a record at their new place.
func (l *lane) setData(p *pending, base uint64, crcs []uint32) {
	l.setBlocks(l.leaf(p.br, p.block), p, base, crcs)
}

// setBlocks is setData in the leaf of the record; nil where that was buried while the record was on
// its way.
func (l *lane) setBlocks(lf *leaf, p *pending, base uint64, crcs []uint32) {
	if lf == nil {
		return
	}
	first := int(p.block % segment.LeafBlocks)
	for i, crc := range crcs {
		l.point(lf, first+i, p.loc(base, i, crc))
	}
	l.touch(lf)
	p.freshen()
}

// loc gives the location of block i of a record whose chunk's payload is at base.
func (p *pending) loc(base uint64, i int, crc uint32) segment.Loc {
	if p.units > 0 {
		return segment.MakePacked(base+uint64(p.unit), p.units, crc)
	}
	return segment.MakeLoc(base+uint64(p.unit)+uint64(i)*segment.BlockUnits, crc)
}

// setRange makes a range of one extent zero or, with HoleLoc, a hole.
func (l *lane) setRange(p *pending, loc segment.Loc) {
	lf := l.leaf(p.br, p.block)
	if lf == nil {
		return
	}
	first := int(p.block % segment.LeafBlocks)
	for i := range p.count {
		l.point(lf, first+i, loc)
	}
	l.touch(lf)
	p.freshen()
}

// point replaces what a leaf's branch says of one block. A hole is noted only where something older
// would show through, or may yet.
func (l *lane) point(lf *leaf, i int, loc segment.Loc) {
	old, under := lf.own.get(i), segment.Loc(0)
	if lf.base != nil {
		under = lf.base.at(i)
	}
	if loc == segment.HoleLoc && under == 0 && !lf.br.open() {
		loc = 0
	}
	was, now := under, shown(loc)
	if old != 0 {
		was = shown(old)
	}
	l.put(lf, i, loc)
	l.show(lf, i, was, now)
	if old == 0 && under != 0 {
		l.hidden(lf, i)
	}
}

// reveal lets a leaf say nothing of one block any more, so that its base answers.
func (l *lane) reveal(lf *leaf, i int) {
	old, under := lf.own.get(i), segment.Loc(0)
	if old == 0 {
		return
	}
	if lf.base != nil {
		under = lf.base.at(i)
	}
	l.put(lf, i, 0)
	l.show(lf, i, shown(old), under)
}

// put stores one block's location in a leaf and keeps the counts of what stands on the device. What
// all lanes count together is left alone where nothing changes: writers and the destager would take
// those lines of memory from each other for every block.
func (l *lane) put(lf *leaf, i int, loc segment.Loc) {
	dense := lf.own.dense != nil
	before := int64(0)
	if !dense {
		before = lf.own.bytes()
	}
	old := lf.own.set(i, loc)
	more, saved := int64(0), int64(0)
	if loc.Kind() == segment.Flash {
		l.e.stands(loc, loc.Room())
		more, saved = loc.Room(), segment.BlockSize-loc.Room()
	}
	if old.Kind() == segment.Flash {
		l.e.stands(old, -old.Room())
		more, saved = more-old.Room(), saved-segment.BlockSize+old.Room()
	}
	if saved != 0 {
		l.e.space.saved.Add(saved)
	}
	if more != 0 {
		l.e.space.live.Add(more)
		lf.br.own.Add(more)
	}
	if (old == 0) != (loc == 0) {
		n := lf.n + 1
		if loc == 0 {
			n = lf.n - 1
		}
		l.resize(lf, n)
		if dense && n <= fewAgain {
			before = lf.own.bytes()
			lf.own.pack(int(n))
			dense = false
		}
	}
	if !dense && lf.own.bytes() != before {
		l.memory.Add(lf.own.bytes() - before)
	}
}

// stands counts bytes of a block that stands, or no longer stands, at a place: on the device, or in
// the journal, from where it will go to the device and so has its room there already.
func (e *Engine) stands(loc segment.Loc, n int64) {
	if e.nv.holds(loc) {
		e.nv.slotAt(loc).live.Add(n)
		return
	}
	e.space.stand(loc.Off(), n)
}

// resize notes how many blocks a leaf holds, and what its image will take.
func (l *lane) resize(lf *leaf, n uint16) {
	more := imageBytes(int(n)) - imageBytes(int(lf.n))
	lf.n = n
	if more == 0 {
		return
	}
	l.e.space.index.Add(more)
	if lf.dirty {
		l.e.space.dirty.Add(more)
	}
}

// show counts what a leaf's branch sees of a block, and lets all that see it by way of this branch
// know. Only a record that was appended before a cut and entered behind it, and the cleaner, change
// what others see.
func (l *lane) show(lf *leaf, i int, was, now segment.Loc) {
	change := seen(was, now)
	if change != (sight{}) {
		lf.br.count(change)
	}
	if lf.view != nil {
		l.look(lf, i, now)
	}
	if len(lf.br.kids) == 0 {
		return
	}
	l.spread(lf, i, now)
	if change != (sight{}) {
		l.below(lf.br, lf, i, func(b *branch) bool {
			b.count(change)
			return false
		})
	}
}

// sight is what is counted of blocks as a branch sees them.
type sight struct {
	mapped, data int64 // blocks
	saved        int64 // bytes by which the room of the data is less than their size
}

// seen gives the change of what is counted of a block.
func seen(was, now segment.Loc) (s sight) {
	count := func(loc segment.Loc, n int64) {
		if loc != 0 {
			s.mapped += n
		}
		if loc.Kind() == segment.Flash {
			s.data += n
			s.saved += n * (segment.BlockSize - loc.Room())
		}
	}
	count(was, -1)
	count(now, 1)
	return s
}

// count adds to what is counted of a branch.
func (b *branch) count(s sight) {
	b.mapped.Add(s.mapped)
	b.data.Add(s.data)
	if s.saved != 0 {
		b.saved.Add(s.saved)
	}
}

// sight gives what is counted of a branch.
func (b *branch) sight() sight {
	return sight{b.mapped.Load(), b.data.Load(), b.saved.Load()}
}

// look changes a block in a leaf's view.
func (l *lane) look(lf *leaf, i int, loc segment.Loc) {
	before := lf.view.bytes()
	lf.view.set(i, loc)
	l.memory.Add(lf.view.bytes() - before)
}

// spread changes a block in all views to which the leaf's copy shows through.
func (l *lane) spread(lf *leaf, i int, loc segment.Loc) {
	if lf.tree == nil {
		return
	}
	marks := lf.tree.within(lf)
	for j := 0; j < len(marks); j++ {
		k := marks[j].lf
		switch {
		case marks[j].end:
		case k.own.get(i) != 0:
			for end := (mark{k, true}); marks[j] != end; {
				j++
			}
		case k.view != nil:
			l.look(k, i, loc)
		}
	}
}

// below calls fn with the branches below one that see the block as it does, until fn gives true.
// lf is any leaf of the extent.
func (l *lane) below(b *branch, lf *leaf, i int, fn func(b *branch) bool) bool {
	for _, k := range b.kids {
		if kl := lf.of(k); kl != nil && kl.own.get(i) != 0 {
			continue
		}
		if fn(k) || l.below(k, lf, i, fn) {
			return true
		}
	}
	return false
}

// hidden drops the copy that a leaf has just hidden from its branch if no name sees it any more. A
// name on the way to it answers that at once, and only a clone whose origin was deleted has none.
func (l *lane) hidden(lf *leaf, i int) {
	if lf.br.parent == nil || lf.br.parent.named() {
		return
	}
	owner := lf.base
	for owner != nil && owner.own.get(i) == 0 {
		owner = owner.base
	}
	if owner == nil {
		return
	}
	for b := lf.br.parent; ; b = b.parent {
		if b.named() {
			return
		}
		if b == owner.br {
			break
		}
	}
	if !l.wanted(owner, i) {
		l.unseat(owner, i)
		l.put(owner, i, 0)
		l.touch(owner)
	}
}

// wanted tells whether a name sees the leaf's copy of a block.
func (l *lane) wanted(lf *leaf, i int) bool {
	return lf.br.named() || l.below(lf.br, lf, i, func(b *branch) bool { return b.named() })
}

// touch puts a changed leaf on the next checkpoint's list.
func (l *lane) touch(lf *leaf) {
	if !lf.dirty {
		lf.dirty = true
		l.e.space.dirty.Add(imageBytes(int(lf.n)))
		l.mu.dirty = append(l.mu.dirty, lf)
	}
}
