package engine

import (
	"slices"
	"sync/atomic"

	"weft/dataplane/segment"
	"weft/domain"
)

// familyMax is the most branches of one family: a cut numbers them anew under every lane's lock,
// which takes 10 ns a branch.
const familyMax = 16 << 10

// family is a volume with all its snapshots and clones: a tree of branches over one space of
// blocks. A read of a branch finds the nearest branch on its way to the root that wrote the block.
type family struct {
	id       uint32
	root     *branch // guarded like a branch's place in the tree
	branches int
	mixed    bool // its branches write under more than one key
	moves    moves
	brake    atomic.Pointer[brake] // while it is copied and hosts outran that; nil is none
	// leaves names, by lane, a leaf of every extent that some branch wrote; its tree has the others.
	// Each map is guarded by its lane's mutex.
	leaves [segment.LanesMax]map[uint32]*leaf
	// replica is not nil for a volume that others hold copies of; it does not change.
	replica *replica
}

// branch is one line of writes: from a cut or a creation to the next cut. Only a head, the newest
// branch of a volume, takes writes; it has no kids.
//
// Its place in the tree and its name change under the mutexes of all lanes and that of the engine;
// whoever holds one of them may read them.
//
// Invariant: a branch without a name has two kids at least, or waits to be swept, or holds blocks
// under another key than its only kid's.
type branch struct {
	id    uint32
	gen   uint32 // stamped into every record; of a replica, the highest of its records
	epoch domain.Epoch
	fam   *family
	key   *volumeKey // that encrypts what it writes; nil: none

	parent *branch
	kids   []*branch
	in     uint32  // numbers of a walk through the tree: those of the branches below lie
	out    uint32  // between these two
	handle *Volume // the volume or snapshot that is named by it; nil is no name
	into   *branch // that absorbed it; then it is out of the tree
	gone   bool    // out of the tree
	sealed bool    // of a replica's cut: nothing of it changes any more

	// wrote lists by lane the extents where it has a leaf, so that taking back a small one is quick.
	// The first branch of a family keeps no list: it has most of them.
	wrote [segment.LanesMax]map[uint32]struct{}

	own    atomic.Int64 // bytes that the data takes which it wrote and somebody still sees
	mapped atomic.Int64 // blocks that are no holes as it sees them
	data   atomic.Int64 // of them, those that are no zeros
	saved  atomic.Int64 // bytes by which those take less room than their size

	squeeze squeeze
	fresh   atomic.Pointer[fresh] // what of it a migration has not copied yet; nil is none
}

// named tells whether somebody can read the branch by name, or it is pinned.
func (b *branch) named() bool { return b.handle != nil }

// unname takes a branch's name away. Of a family that is being copied it is pinned instead: what it
// holds stays as it is.
func (b *branch) unname() {
	if b.handle = nil; b.fam.moves.pinned {
		b.handle = pin
	}
}

// dead tells whether nobody sees the branch any more.
func (b *branch) dead() bool { return !b.named() && len(b.kids) == 0 }

// covers tells whether o is the branch or one below it.
func (b *branch) covers(o *branch) bool { return b.in <= o.in && o.out <= b.out }

// note puts an extent on the branch's list or takes it off; the lane's mutex is held.
func (b *branch) note(l *lane, ext uint32, there bool) {
	switch {
	case b.parent == nil:
	case !there:
		delete(b.wrote[l.no], ext)
	default:
		if b.wrote[l.no] == nil {
			b.wrote[l.no] = map[uint32]struct{}{}
		}
		b.wrote[l.no][ext] = struct{}{}
	}
}

// number numbers a family's branches by a walk through its tree.
func (f *family) number() {
	n := uint32(0)
	var walk func(b *branch)
	walk = func(b *branch) {
		n++
		b.in = n
		for _, k := range b.kids {
			walk(k)
		}
		n++
		b.out = n
	}
	if f.root != nil {
		walk(f.root)
	}
	if f.replica != nil {
		f.replica.line = f.line()
	}
}

// line lists a replica's branches, the oldest first: none has two kids.
func (f *family) line() []*branch {
	var list []*branch
	for b := f.root; b != nil; {
		list = append(list, b)
		if len(b.kids) == 0 {
			break
		}
		b = b.kids[0]
	}
	return list
}

// laneOf gives the lane of an extent.
func (e *Engine) laneOf(f *family, ext uint32) *lane {
	return e.lanes[segment.LaneOf(f.id, ext, len(e.lanes))]
}

// branch gives the branch that answers for what entries name by an id; nil when nobody does.
func (e *Engine) branch(id uint32) *branch {
	e.mu.RLock()
	b, far := e.mu.branches[id], 0
	for b != nil && b.into != nil {
		b = b.into
		far++
	}
	if b != nil && b.gone {
		b = nil
	}
	e.mu.RUnlock()
	if far > farMax {
		e.shorten(id, b)
	}
	return b
}

// farMax is how many absorptions away a branch may be found before the way is made shorter.
const farMax = 8

// shorten lets all branches on the way from an id to the one that answers for it name that at once.
func (e *Engine) shorten(id uint32, to *branch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for b := e.mu.branches[id]; b != nil && b.into != nil; {
		b, b.into = b.into, to
	}
}

// setBranches enters the lines of one record into the tables, all of them at one instant for every
// lane. The first lane's mutex is held, or nobody else is there yet.
func (e *Engine) setBranches(lines []segment.Branch) {
	for _, l := range e.lanes[1:] {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range lines {
		e.setBranch(&lines[i])
	}
}

// setBranch enters one line; the locks of setBranches are held.
func (e *Engine) setBranch(br *segment.Branch) {
	e.mu.nextBranch = max(e.mu.nextBranch, br.ID+1)
	b := e.mu.branches[br.ID]
	if b == nil {
		if b = e.plant(br); b == nil {
			return
		}
	}
	e.moved(b.fam, br)
	if b.into != nil {
		return
	}
	switch br.State {
	case segment.BranchLive:
		e.head(b, br)
	case segment.BranchFrozen:
		if br.Replica {
			e.freeze(b, br)
			return
		}
		if b.handle != nil && b.handle.snapshot == br.Snapshot {
			return
		}
		v := &Volume{e: e, fam: b.fam, volume: br.Volume, snapshot: br.Snapshot}
		v.resize(br.Size)
		for i, l := range e.lanes {
			if e.nv == nil { // else all that was appended is in the index
				v.sealed[i] = l.mu.lsn
			}
		}
		b.take(v)
		e.show(v)
	case segment.BranchBuried:
		e.bury(b)
	}
}

// plant puts a new branch into the tree, on its parent; nil when that is not there. It sees what
// its parent sees.
func (e *Engine) plant(br *segment.Branch) *branch {
	b := &branch{id: br.ID, gen: br.Gen, epoch: br.Epoch, key: e.keys.key(br.Key)}
	if br.Parent == 0 {
		b.fam = &family{id: br.Family, root: b}
		for i := range e.lanes {
			b.fam.leaves[i] = make(map[uint32]*leaf)
		}
		if br.Replica {
			b.fam.replica = newReplica(e, b)
			e.mu.replicas[b.fam.id] = b.fam.replica
		}
	} else {
		p := e.mu.branches[br.Parent]
		if p == nil || p.into != nil {
			return nil
		}
		b.fam, b.parent = p.fam, p
		b.fam.mixed = b.fam.mixed || b.key != p.key
		p.kids = append(p.kids, b)
		b.mapped.Store(p.mapped.Load())
		b.data.Store(p.data.Load())
		b.saved.Store(p.saved.Load())
		b.squeeze.mode.Store(p.squeeze.mode.Load())
		if b.fam.replica != nil {
			b.fam.replica.advance(p, b)
		}
	}
	if b.fam.moves.pinned {
		b.fresh.Store(newFresh())
	}
	b.fam.branches++
	b.fam.number()
	e.mu.branches[br.ID] = b
	return b
}

// head makes a branch the head of its volume, whose handle moves from the one before.
func (e *Engine) head(b *branch, br *segment.Branch) {
	v := e.mu.byVolume[br.Volume]
	if b.fam.moves.hidden() {
		if v = b.handle; v != nil && (v.volume != br.Volume || !v.snapshot.IsZero()) {
			v = nil
		}
	}
	if v == nil {
		v = &Volume{e: e, fam: b.fam, volume: br.Volume}
		e.show(v)
	}
	v.resize(br.Size)
	if b.handle != v {
		b.take(v)
	}
}

// take gives a branch its name, which the branch that had it loses.
func (b *branch) take(v *Volume) {
	if was := v.br.Load(); was != nil && was.handle == v {
		was.unname()
	}
	v.br.Store(b)
	b.handle = v
}

// bury takes a branch's name away.
func (e *Engine) bury(b *branch) {
	v := b.handle
	if v == nil || v == pin {
		return
	}
	b.unname()
	v.gone.Store(true)
	e.hide(v)
	if v.cut == 0 && v.snapshot.IsZero() {
		if rep := b.fam.replica; rep != nil {
			e.dig(v.volume)
			rep.end()
			for _, cut := range rep.line {
				e.bury(cut)
			}
		}
	}
}

// prune takes a swept branch out of the tree: one without kids, or with one that has absorbed it.
func (e *Engine) prune(b *branch) {
	for _, l := range e.lanes {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	place := &b.fam.root
	if b.parent != nil {
		place = &b.parent.kids[slices.Index(b.parent.kids, b)]
	}
	if len(b.kids) == 1 {
		k := b.kids[0]
		*place, k.parent, b.into = k, b.parent, k
		if k.parent == nil {
			clear(k.wrote[:])
		}
	} else {
		*place = nil
		if b.parent != nil {
			b.parent.kids = slices.DeleteFunc(b.parent.kids, func(k *branch) bool { return k == nil })
		}
	}
	if b.fam.replica != nil {
		b.fam.replica.leave(b)
	}
	b.parent, b.kids, b.gone = nil, nil, true
	b.fam.branches--
	b.fam.number()
}

// volumeOf gives the volume that a branch is named by or was cut from; zero when nobody names it.
func (e *Engine) volumeOf(b *branch) domain.VolumeID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if b.handle == nil {
		return domain.VolumeID{}
	}
	return b.handle.volume // of a pinned branch none
}

// resize enters a size.
func (v *Volume) resize(size uint64) {
	v.size.Store(int64(size))
	v.end.Store(int64(size))
}

// line gives a branch as the format has it.
func (b *branch) line() segment.Branch {
	br := segment.Branch{
		ID: b.id, Family: b.fam.id, State: segment.BranchBuried, Gen: b.gen, Epoch: b.epoch,
		Replica: b.fam.replica != nil, Sealed: b.sealed,
		Move: b.fam.moves.state, Token: b.fam.moves.token,
	}
	if b.parent != nil {
		br.Parent = b.parent.id
	}
	if b.key != nil {
		br.Key = b.key.id
	}
	if v := b.handle; v != nil && v != pin {
		br.State, br.Volume, br.Snapshot = segment.BranchLive, v.volume, v.snapshot
		br.Size = uint64(v.size.Load())
		if v.cut != 0 || !v.snapshot.IsZero() {
			br.State = segment.BranchFrozen
		}
	}
	return br
}

// branchTable gives the next id, the branches and the aliases for the checkpoint, by id.
// What nobody answers for any more leaves the tables; one that waits to be swept is still found.
func (e *Engine) branchTable() (next uint32, list []segment.Branch, aliases []segment.Alias) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, b := range e.mu.branches {
		o := b
		for o.into != nil {
			o = o.into
		}
		switch {
		case o.dead() && o.gone:
			delete(e.mu.branches, id)
		case o.dead():
		case o != b:
			aliases = append(aliases, segment.Alias{ID: id, Into: o.id})
		default:
			list = append(list, b.line())
		}
	}
	slices.SortFunc(list, func(a, b segment.Branch) int { return int(a.ID) - int(b.ID) })
	slices.SortFunc(aliases, func(a, b segment.Alias) int { return int(a.ID) - int(b.ID) })
	return e.mu.nextBranch, list, aliases
}
