package fsck

import (
	"cmp"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// key names a leaf.
type key struct{ branch, extent uint32 }

// leaf is what one branch wrote in one extent.
type leaf struct{ segment.Leaf }

// node is a branch with its place in the tree.
type node struct {
	segment.Branch
	named bool
	kids  []uint32
}

// index is the state that the checkpoint and the log behind it amount to, as plain maps.
type index struct {
	nodes   map[uint32]*node
	aliases map[uint32]uint32
	heads   map[domain.VolumeID]uint32
	leaves  map[key]*leaf
	held    map[heldKey]segment.HeldRecord // records of replicas that are not settled
	buried  map[heldKey]bool               // slices of families, without a version
	eras    map[heldKey]uint16             // of slices of families, without a version
	known   map[place]domain.Version       // of blocks of which no record is held
}

// load begins with the root of a checkpoint; nil is an empty device.
func (x *index) load(r *segment.Root) {
	*x = index{
		nodes: map[uint32]*node{}, aliases: map[uint32]uint32{}, leaves: map[key]*leaf{},
		heads: map[domain.VolumeID]uint32{},
	}
	x.held, x.buried = map[heldKey]segment.HeldRecord{}, map[heldKey]bool{}
	x.eras, x.known = map[heldKey]uint16{}, map[place]domain.Version{}
	if r == nil {
		return
	}
	for _, a := range r.Aliases {
		x.aliases[a.ID] = a.Into
	}
	for _, b := range r.Branches {
		x.line(b)
	}
	for _, h := range r.Replicas.Records {
		x.hold(h)
	}
	for _, s := range r.Replicas.Slices {
		if s.Buried {
			x.buried[heldKey{branch: s.Branch, slice: s.Slice}] = true
		}
		x.eras[heldKey{branch: s.Branch, slice: s.Slice}] = s.Era
	}
	for _, k := range r.Replicas.Known {
		for i := range uint64(k.Count) {
			x.known[place{k.Branch, k.Block + i}] = k.Version
		}
	}
}

// canonical gives the branch that answers for what is named by an id.
func (x *index) canonical(id uint32) uint32 {
	if into, ok := x.aliases[id]; ok {
		return into
	}
	return id
}

// line applies one line of a BRANCH record or of a root.
func (x *index) line(b segment.Branch) {
	if _, absorbed := x.aliases[b.ID]; absorbed {
		return
	}
	n := x.nodes[b.ID]
	if n == nil {
		parent := x.nodes[b.Parent]
		if b.Parent != 0 && parent == nil {
			return
		}
		n = &node{Branch: b}
		x.nodes[b.ID] = n
		if parent != nil {
			parent.kids = append(parent.kids, b.ID)
		}
	}
	switch b.State {
	case segment.BranchLive:
		if was, ok := x.heads[b.Volume]; ok && was != b.ID && x.nodes[was].State == segment.BranchLive {
			x.nodes[was].named = false
		}
		x.heads[b.Volume] = b.ID
		n.State, n.named, n.Volume, n.Size = b.State, true, b.Volume, b.Size
	case segment.BranchFrozen:
		n.State, n.named, n.Volume, n.Snapshot = b.State, true, b.Volume, b.Snapshot
		n.Size = b.Size
	case segment.BranchBuried:
		if n.Replica && n.State == segment.BranchLive { // its cuts go with it
			for _, o := range x.nodes {
				o.named = o.named && o.Family != n.Family
			}
		}
		n.State, n.named = b.State, false
	}
}

// living lists the families of which somebody has the head by name.
func (x *index) living() map[uint32]bool {
	of := map[uint32]bool{}
	for _, n := range x.nodes {
		of[n.Family] = of[n.Family] || n.named && n.State == segment.BranchLive
	}
	return of
}

// family gives the family of a branch.
func (x *index) family(id uint32) uint32 {
	if n := x.nodes[id]; n != nil {
		return n.Family
	}
	return 0
}

// set notes one block of a branch.
func (x *index) set(branch uint32, block uint64, loc segment.Loc) {
	k := key{branch, uint32(block / segment.LeafBlocks)}
	lf := x.leaves[k]
	if lf == nil {
		lf = &leaf{segment.Leaf{Branch: branch, Extent: k.extent}}
		x.leaves[k] = lf
	}
	lf.Loc[block%segment.LeafBlocks] = loc
}

// seen is a block that some name sees: where it stands and who wrote it.
type seen struct {
	loc    segment.Loc
	branch uint32
	block  uint64
}

// roots lists the branches that stand on none, by id.
func (x *index) roots() []uint32 {
	var list []uint32
	for id, n := range x.nodes {
		if x.nodes[n.Parent] == nil {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// wanted lists every block on the device that some name sees, each once, and counts what each
// branch sees; lost are those whose place is not known.
func (x *index) wanted() (list, lost []seen, sees map[uint32]int64) {
	sees = map[uint32]int64{}
	extents := map[uint32][]uint32{} // by root
	root := func(id uint32) uint32 {
		for x.nodes[id] != nil && x.nodes[x.nodes[id].Parent] != nil {
			id = x.nodes[id].Parent
		}
		return id
	}
	for k := range x.leaves {
		r := root(k.branch)
		extents[r] = append(extents[r], k.extent)
	}
	for _, r := range x.roots() {
		slices.Sort(extents[r])
		for _, ext := range slices.Compact(extents[r]) {
			w := walk{x: x, ext: ext, found: map[seen]bool{}, sees: sees}
			w.branch(r, [segment.LeafBlocks]seen{})
			for s := range w.found {
				if s.loc.Kind() == segment.Flash {
					list = append(list, s)
				} else {
					lost = append(lost, s)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b seen) int { return cmp.Compare(a.loc, b.loc) })
	return list, lost, sees
}

// walk lays one branch of a family over the other in one extent.
type walk struct {
	x     *index
	ext   uint32
	found map[seen]bool
	sees  map[uint32]int64
}

func (w *walk) branch(id uint32, view [segment.LeafBlocks]seen) {
	w.x.lay(id, w.ext, &view)
	for _, s := range view {
		k := s.loc.Kind()
		if k == segment.Flash {
			w.sees[id] += s.loc.Room()
		}
		if w.x.nodes[id].named && (k == segment.Flash || k == segment.Lost) {
			w.found[s] = true
		}
	}
	for _, kid := range w.x.nodes[id].kids {
		w.branch(kid, view)
	}
}

// lay lays what a branch says of an extent over what it stands on.
func (x *index) lay(id, ext uint32, view *[segment.LeafBlocks]seen) {
	lf := x.leaves[key{id, ext}]
	if lf == nil {
		return
	}
	for i, loc := range lf.Loc {
		switch loc.Kind() {
		case segment.None:
		case segment.Hole:
			view[i] = seen{}
		case segment.Zero, segment.Lost, segment.Flash:
			view[i] = seen{loc, id, uint64(ext)*segment.LeafBlocks + uint64(i)}
		}
	}
}
