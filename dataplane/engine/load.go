package engine

import (
	"fmt"

	"weft/dataplane/segment"
	"weft/domain"
)

// loadRoot reads the root that the anchor names.
func (e *Engine) loadRoot(at segment.Piece) error {
	if at.Bytes == 0 {
		return nil
	}
	b, err := e.read(at)
	if err != nil {
		return err
	}
	list, err := segment.DecodePieces(b)
	if err != nil {
		return domain.Errorf(domain.Corrupt, "%v", err)
	}
	var whole []byte
	for _, p := range list {
		if b, err = e.read(p); err != nil {
			return err
		}
		whole = append(whole, b...)
	}
	root, err := segment.DecodeRoot(whole)
	if err != nil {
		return domain.Errorf(domain.Corrupt, "%v", err)
	}
	e.mu.nextBranch = max(1, root.NextBranch)
	e.setBranches(root.Branches)
	for _, a := range root.Aliases {
		if b := e.mu.branches[a.Into]; b != nil {
			e.mu.branches[a.ID] = &branch{id: a.ID, fam: b.fam, into: b, gone: true}
		}
	}
	e.maint.table = root.Replicas
	if err := e.space.loadLives(root.Lives); err != nil {
		return err
	}
	for _, l := range root.Leaves {
		e.maint.directory[leafID{l.Branch, l.Extent}] = l.Piece
	}
	e.maint.root = append(list, at)
	for _, p := range e.maint.root {
		e.space.at(int64(p.Off)).meta += int64(p.Bytes)
	}
	return nil
}

// loadLeaves reads every leaf of the checkpoint. One that does not verify costs its extent only:
// its blocks read as corrupt until they are written again.
func (e *Engine) loadLeaves() error {
	im := &segment.Leaf{}
	for id, p := range e.maint.directory {
		br := e.mu.branches[id.branch]
		if br == nil || br.gone {
			delete(e.maint.directory, id)
			continue
		}
		if e.space.valid(int64(p.Off), int64(p.Bytes)) {
			e.space.at(int64(p.Off)).meta += int64(p.Bytes)
		}
		b, err := e.read(p)
		if err == nil {
			_, err = segment.DecodeLeaf(b, im)
		}
		if err == nil && (e.branch(im.Branch) != br || im.Extent != id.extent) {
			err = domain.Errorf(domain.Corrupt, "leaf of branch %d extent %d", im.Branch, im.Extent)
		}
		if err != nil && domain.IsKind(err, domain.Unavailable) {
			return err
		}
		if err != nil {
			e.report(Fact{
				What: "corrupt", Volume: e.volumeOf(br), Block: uint64(id.extent) * segment.LeafBlocks,
				Detail: fmt.Sprintf("index of extent %d: %v", id.extent, err),
			})
			*im = segment.Leaf{Extent: id.extent}
			for i := range im.Loc {
				im.Loc[i] = segment.LostLoc
			}
		}
		e.adopt(br, im)
	}
	return nil
}

// adopt enters a loaded leaf and counts what it keeps alive.
func (e *Engine) adopt(b *branch, im *segment.Leaf) {
	l := e.laneOf(b.fam, im.Extent)
	lf := &leaf{br: b, ext: im.Extent, complete: im.Complete}
	l.loaded = max(l.loaded, im.Complete)
	l.insert(lf)
	count := 0
	for i, loc := range im.Loc {
		switch loc.Kind() {
		case segment.None:
			continue
		case segment.Hole, segment.Zero:
		case segment.Flash:
			if !e.space.valid(loc.Off(), int64(loc.Stored())) {
				loc = segment.LostLoc
			}
		case segment.Lost:
			loc = segment.LostLoc // also what no version writes
		}
		im.Loc[i] = loc
		count++
		if loc.Kind() == segment.Flash {
			e.space.stand(loc.Off(), loc.Room())
			e.space.live.Add(loc.Room())
			e.space.saved.Add(segment.BlockSize - loc.Room())
			b.own.Add(loc.Room())
		}
	}
	lf.own.load(&im.Loc, count)
	l.memory.Add(lf.own.bytes())
	l.resize(lf, uint16(count))
}

// settleIndex brings the index to its order once everything is loaded and replayed: branches that
// lost their names are swept, as far as the last life had not come to it; every branch's counts are
// taken; reads are given their bound.
func (e *Engine) settleIndex() {
	e.sweepAll()
	families := map[*family]bool{}
	for _, b := range e.mu.branches {
		b.mapped.Store(0)
		b.data.Store(0)
		b.saved.Store(0)
		families[b.fam] = true
	}
	for f := range families {
		if f.root == nil {
			continue
		}
		for _, l := range e.lanes {
			for _, lf := range f.leaves[l.no] {
				l.settleExtent(lf)
			}
		}
		f.root.inherit()
	}
}

// settleExtent counts, for every branch that wrote to an extent, what it sees there more than its
// parent does, and gives views to the leaves that stand too deep.
func (l *lane) settleExtent(lf *leaf) {
	marks := []mark{{lf: lf}}
	if lf.tree != nil {
		marks = lf.tree.marks
	}
	for _, m := range marks {
		if m.end {
			continue
		}
		l.bound(m.lf)
		var all sight
		m.lf.own.each(func(i int, loc segment.Loc) {
			s := seen(m.lf.base.at(i), shown(loc))
			all.mapped, all.data, all.saved = all.mapped+s.mapped, all.data+s.data, all.saved+s.saved
		})
		m.lf.br.count(all)
	}
}

// inherit adds to the counts of the branches below what they see as this one does.
func (b *branch) inherit() {
	for _, k := range b.kids {
		k.count(b.sight())
		k.inherit()
	}
}
