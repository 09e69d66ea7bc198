package engine

import (
	"slices"
	"sync"

	"weft/dataplane/segment"
)

// A branch that lost its name is swept by the maintenance, extent by extent: copies that no name
// sees any more are dropped, and what is left goes over to its only kid, if it has one. Each step
// leaves every view as it was, so readers, writers and a crash may stand between any two of them.
// Checkpoints do not: a leaf's image would leave the directory before the one that took its blocks
// over is written.

// sweeps are the branches that wait to be swept.
type sweeps struct {
	mu   sync.Mutex
	list []*sweepJob
}

type sweepJob struct {
	br   *branch
	done chan struct{}
}

// sweep lets the maintenance sweep a branch and waits until it is done or the engine stops; what
// was not done then is done by the next start.
func (e *Engine) sweep(b *branch) {
	j := &sweepJob{b, make(chan struct{})}
	e.maint.sweeps.mu.Lock()
	e.maint.sweeps.list = append(e.maint.sweeps.list, j)
	e.maint.sweeps.mu.Unlock()
	e.maint.kick()
	select {
	case <-j.done:
	case <-e.maint.halt:
	}
}

// runSweeps does what waits. The checkpoint lock is held.
func (e *Engine) runSweeps() {
	s := &e.maint.sweeps
	for {
		s.mu.Lock()
		list := s.list
		s.list = nil
		s.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, j := range list {
			e.sweepBranch(j.br)
			close(j.done)
		}
	}
}

// sweepAll sweeps every branch without a name; for a start, when nobody else is there.
func (e *Engine) sweepAll() {
	var list []*branch
	for _, b := range e.mu.branches {
		if !b.gone && !b.named() {
			list = append(list, b)
		}
	}
	// The youngest first: what they hide and hold is decided before that of those they stand on.
	slices.SortFunc(list, func(a, b *branch) int { return int(b.id) - int(a.id) })
	for _, b := range list {
		e.sweepBranch(b)
	}
}

// sweepBranch sweeps a branch, and then the one it stood on if that has become superfluous by it.
func (e *Engine) sweepBranch(b *branch) {
	for e.waits(b) {
		for _, l := range e.lanes {
			for _, ext := range l.extents(b) {
				l.sweep(b, ext)
			}
		}
		if len(b.kids) > 1 || e.holdsMore(b) {
			return
		}
		below := b.parent
		if len(b.kids) == 1 {
			below = nil
		}
		e.prune(b)
		b = below
	}
}

// waits tells whether a branch has to be swept.
func (e *Engine) waits(b *branch) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return b != nil && !b.gone && !b.named()
}

// extents lists the extents of a lane in which the sweep of a branch may find something.
func (l *lane) extents(b *branch) []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []uint32
	for p := b; p != nil && !p.named(); p = p.parent {
		if p.parent == nil {
			list = list[:0]
			for ext := range p.fam.leaves[l.no] {
				list = append(list, ext)
			}
			return list
		}
		for ext := range p.wrote[l.no] {
			list = append(list, ext)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// sweep sweeps a branch in one extent. What dies by its end is its own, or stands in a branch
// without a name right below it.
func (l *lane) sweep(b *branch, ext uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	leaves := b.fam.leaves[l.no]
	for p := b; p != nil && !p.named(); p = p.parent {
		if lf := leaves[ext].of(p); lf != nil {
			l.winnow(lf)
		}
	}
	lf := leaves[ext].of(b)
	if rep := b.fam.replica; rep != nil && len(b.kids) == 1 {
		first := uint64(ext) * segment.LeafBlocks
		for i := range uint64(segment.LeafBlocks) {
			rep.inherit(l, b, b.kids[0], first+i)
		}
	}
	switch {
	case lf == nil:
	case len(b.kids) == 1 && b.kids[0].key == b.key:
		l.absorb(lf, b.kids[0])
	case lf.n == 0:
		l.touch(lf)
		l.remove(lf)
	}
}

// winnow drops the copies in a leaf that no name sees.
func (l *lane) winnow(lf *leaf) {
	for _, k := range lf.br.kids {
		if k.named() && lf.of(k) == nil {
			return // it hides nothing
		}
	}
	was := lf.n
	lf.own.each(func(i int, _ segment.Loc) {
		if !l.wanted(lf, i) {
			l.unseat(lf, i)
			l.put(lf, i, 0)
		}
	})
	if lf.n != was {
		l.touch(lf)
	}
}

// absorb lets a branch's only kid have what the branch still holds in an extent. What both hold was
// dropped before. A hole goes when nothing is left that it hides, and nothing may come.
func (l *lane) absorb(lf *leaf, kid *branch) {
	var all [segment.LeafBlocks]segment.Loc
	lf.own.write(&all)
	own := int64(0)
	for _, loc := range all {
		if loc.Kind() == segment.Flash {
			own += loc.Room()
		}
	}
	lf.br.own.Add(-own)
	kid.own.Add(own)
	kl := lf.of(kid)
	if kl == nil {
		l.handOver(lf, kid)
		return
	}
	kl.own.over(all[:], 0)
	count := 0
	for i, loc := range all {
		if loc == segment.HoleLoc && lf.base.at(i) == 0 && !lf.br.open() {
			all[i] = 0
		} else if loc != 0 {
			count++
		}
	}
	l.touch(lf)
	l.touch(kl)
	l.refill(lf, nil, 0)
	l.refill(kl, &all, count)
	l.remove(lf)
}

// refill replaces all that a leaf holds; what stands on the device stays the same in all.
func (l *lane) refill(lf *leaf, all *[segment.LeafBlocks]segment.Loc, count int) {
	before := lf.own.bytes()
	lf.own = table{}
	if count > 0 {
		lf.own.load(all, count)
	}
	l.memory.Add(lf.own.bytes() - before)
	l.resize(lf, uint16(count))
}

// handOver makes a leaf that of a kid. Its image stays where it is.
func (l *lane) handOver(lf *leaf, kid *branch) {
	m := l.e.maint.directory
	if p, ok := m[leafID{lf.br.id, lf.ext}]; ok {
		delete(m, leafID{lf.br.id, lf.ext})
		m[leafID{kid.id, lf.ext}] = p
	}
	lf.br.note(l, lf.ext, false)
	kid.note(l, lf.ext, true)
	lf.br = kid
}
