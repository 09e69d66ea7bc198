package engine

import (
	"cmp"
	"context"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// What a member that is away may lack, in grains of 64 KiB: when it comes back, these are compared
// and the rest is not. A map is never too small. So whatever is accepted while a member is away
// marks its grains, whatever became of it; and what is above the floor when it goes marks, too: it
// may never have had that.
//
//	C11  Every block that a member away may lack is in its map, over crashes, at every member that
//	     noted that it is away before it accepted anything.
//
// What is logged anyway needs no mark of its own there: behind a crash every record and copy in the
// log marks again, and so does every record that is held, for who went since the checkpoint. Only
// what is not logged, a duplicate or a copy that changes nothing, logs its grains.
//
// In a join session a member has a map of itself, too: of what it held above its floor when the
// session began, which may be a tail that nobody else has, and of the records that came since.
// Each may have taken away what a later branch had. It outlives sessions that are cut short.

// dirtyKey names a map.
type dirtyKey struct {
	slice  uint32
	member domain.NodeNumber
}

// dirtyMap is one map; guarded by the replica's mu.
type dirtyMap struct {
	grains [segment.SliceGrains / 64]uint64
	ended  bool // during a recovery: it is dropped behind it
	fresh  bool // during a recovery: it began behind the checkpoint
}

// mark marks blocks of one extent for every member that is away; it tells whether one is. The
// lane's mutex is held.
func (rep *replica) mark(block uint64, count int) bool {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	any := false
	for k, d := range rep.mu.dirty {
		if k.slice == sliceOf(block) && k.member != rep.e.cfg.Node {
			d.mark(block, count)
			any = true
		}
	}
	return any
}

// own names the map of this member itself.
func (rep *replica) own(slice uint32) dirtyKey { return dirtyKey{slice, rep.e.cfg.Node} }

// doubt marks a record of a join session in this member's own map. The lane's mutex is held.
func (rep *replica) doubt(block uint64, count int) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if d := rep.mu.dirty[rep.own(sliceOf(block))]; d != nil {
		d.mark(block, count)
	}
}

// doubted tells whether a block is marked in this member's own map.
func (rep *replica) doubted(block uint64) bool {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	d, g := rep.mu.dirty[rep.own(sliceOf(block))], block%segment.SliceBlocks/segment.GrainBlocks
	return d != nil && d.grains[g/64]>>(g%64)&1 != 0
}

// distrusts begins this member's own map of a slice with what it holds above a floor, and gives the
// entry that logs that; none where it goes on from a session that was cut short.
func (rep *replica) distrusts(slice uint32, floor domain.Version) []segment.Entry {
	rep.lockLanes()
	defer rep.unlockLanes()
	rep.mu.Lock()
	defer rep.mu.Unlock()
	k := rep.own(slice)
	if rep.mu.dirty[k] != nil {
		return nil
	}
	rep.markHeld(slice, rep.away(k), floor)
	en := rep.note(slice, segment.KindDirty, domain.Version{})
	en.SetDirty(k.member, segment.DirtyBegin, 0)
	return []segment.Entry{en}
}

func (d *dirtyMap) mark(block uint64, count int) { markGrains(&d.grains, block, count) }

// markGrains sets the bits of blocks of one extent in the map of their slice.
func markGrains(grains *[segment.SliceGrains / 64]uint64, block uint64, count int) {
	first := block % segment.SliceBlocks / segment.GrainBlocks
	last := (block + uint64(count) - 1) % segment.SliceBlocks / segment.GrainBlocks
	for g := first; g <= last; g++ {
		grains[g/64] |= 1 << (g % 64)
	}
}

// grainsOf gives the grains of blocks of one extent, a bit each.
func grainsOf(block uint64, count int) (grains uint64) {
	first := block % segment.LeafBlocks / segment.GrainBlocks
	last := (block%segment.LeafBlocks + uint64(count) - 1) / segment.GrainBlocks
	for g := first; g <= last; g++ {
		grains |= 1 << g
	}
	return grains
}

// logMark puts an entry into the open chunk, which has the room, that marks blocks for everybody
// who is away; to is told when it is durable. The lane's mutex is held.
func (l *lane) logMark(rep *replica, block uint64, count int, to Appender) {
	en := rep.note(0, segment.KindDirty, domain.Version{})
	en.Block = block / segment.LeafBlocks * segment.LeafBlocks
	en.SetDirty(0, segment.DirtyMarks, grainsOf(block, count))
	l.addNote(&en, to)
}

// Away notes that a member does not get what is accepted for a slice, durably on return. From then
// on that marks, and so does every record that is above the floor. Noting it again is a success.
func (p *Replica) Away(ctx context.Context, slice uint32, member domain.NodeNumber) error {
	s, err := p.standing(slice)
	if err == nil && (member == 0 || member == p.v.e.cfg.Node) {
		err = domain.Errorf(domain.Invalid, "member %d is never away from here", member)
	}
	if err != nil {
		return err
	}
	rep, k := p.rep, dirtyKey{slice, member}
	rep.lockLanes()
	rep.mu.Lock()
	if rep.mu.dirty[k] == nil {
		rep.markHeld(k.slice, rep.away(k), s.Floor)
	}
	rep.mu.Unlock()
	rep.unlockLanes()
	return p.logDirty(ctx, k, segment.DirtyBegin)
}

// Back notes that a member has everything again: its map is gone, durably on return.
func (p *Replica) Back(ctx context.Context, slice uint32, member domain.NodeNumber) error {
	if _, err := p.standing(slice); err != nil {
		return err
	}
	rep, k := p.rep, dirtyKey{slice, member}
	rep.lockLanes()
	there := rep.dirty(k) != nil
	rep.forgetDirty(k)
	rep.unlockLanes()
	if !there {
		return nil
	}
	return p.logDirty(ctx, k, segment.DirtyEnd)
}

// standing gives the state of a slice that is there.
func (p *Replica) standing(slice uint32) (segment.SliceState, error) {
	s := p.rep.slice(slice)
	err := p.reachable(slice)
	if err == nil {
		err = p.fenced(&s, s.Seal)
	}
	return s, err
}

func (p *Replica) logDirty(ctx context.Context, k dirtyKey, what uint32) error {
	en := p.rep.note(k.slice, segment.KindDirty, domain.Version{})
	en.SetDirty(k.member, what, 0)
	e := p.v.e
	return e.logNotes(context.WithoutCancel(ctx), e.lanes[0], []segment.Entry{en})
}

// dirty gives a map; nil for a member that is not away.
func (rep *replica) dirty(k dirtyKey) *dirtyMap {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.mu.dirty[k]
}

// forgetDirty drops a map.
func (rep *replica) forgetDirty(k dirtyKey) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if rep.mu.dirty[k] != nil {
		delete(rep.mu.dirty, k)
		rep.e.space.tables.Add(-segment.DirtyMapBytes)
	}
}

// forgetAway drops the maps of a slice.
func (rep *replica) forgetAway(slice uint32) {
	for _, m := range rep.missing(slice) {
		rep.forgetDirty(dirtyKey{slice, m})
	}
}

// markHeld marks the records of a slice above a floor; rep.mu and all lanes' mutexes are held.
func (rep *replica) markHeld(slice uint32, d *dirtyMap, floor domain.Version) {
	for i := range rep.e.lanes {
		for k, h := range rep.lanes[i].held {
			if k.slice == slice && k.ver.Compare(floor) > 0 {
				d.mark(h.Block, h.Count)
			}
		}
		rep.lanes[i].all(func(_ *branch, blocks map[uint64]holders) {
			for b, hs := range blocks {
				if sliceOf(b) == slice && (hs.known != nil || hs.newest != nil && hs.newest.copied) {
					d.mark(b, 1)
				}
			}
		})
	}
}

// Dirty gives the map of a member that is away: segment.SliceGrains bits, a grain of 64 KiB each,
// the lowest of the first word being the first; in a join session, that of the blocks of which
// Unchanged refuses to hear, by the number of this member. false for a member that is not.
func (p *Replica) Dirty(slice uint32, member domain.NodeNumber) (grains []uint64, away bool) {
	p.rep.mu.Lock()
	defer p.rep.mu.Unlock()
	d := p.rep.mu.dirty[dirtyKey{slice, member}]
	if d == nil {
		return nil, false
	}
	return slices.Clone(d.grains[:]), true
}

// Missing lists the members that are away from a slice, in order.
func (p *Replica) Missing(slice uint32) []domain.NodeNumber {
	own := p.v.e.cfg.Node
	return slices.DeleteFunc(p.rep.missing(slice), func(m domain.NodeNumber) bool { return m == own })
}

func (rep *replica) missing(slice uint32) []domain.NodeNumber {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	var list []domain.NodeNumber
	for k := range rep.mu.dirty {
		if k.slice == slice {
			list = append(list, k.member)
		}
	}
	slices.Sort(list)
	return list
}

// Mark marks count blocks from block on, inside one extent, for every member that is away, durably
// on return.
func (p *Replica) Mark(block uint64, count int) error {
	if err := p.v.inside(block, count); err != nil {
		return err
	}
	l, w := p.v.lane(block), make(branchWait, 1)
	l.mu.Lock()
	if err := l.roomForNote(); err != nil {
		l.mu.Unlock()
		return err
	}
	if !p.rep.mark(block, count) {
		l.mu.Unlock()
		return nil
	}
	l.logMark(p.rep, block, count, w)
	l.mu.Unlock()
	l.work.Signal()
	return <-w
}

// Merge adds the map that another member has of one that is away from here, too, durably on return.
// Errors: Invalid for a map of another size, NotFound where it is not away.
func (p *Replica) Merge(ctx context.Context, slice uint32, member domain.NodeNumber,
	grains []uint64,
) error {
	if _, err := p.standing(slice); err != nil {
		return err
	}
	rep, d := p.rep, p.rep.dirty(dirtyKey{slice, member})
	switch {
	case len(grains) != segment.SliceGrains/64:
		return domain.Errorf(domain.Invalid, "a map of %d words", len(grains))
	case d == nil:
		return domain.Errorf(domain.NotFound, "member %d is not away from slice %d", member, slice)
	}
	var ens []segment.Entry
	rep.mu.Lock()
	for i, w := range grains {
		if d.grains[i] |= w; w != 0 {
			en := rep.note(slice, segment.KindDirty, domain.Version{})
			en.Block += uint64(i) * segment.LeafBlocks
			en.SetDirty(member, segment.DirtyMarks, w)
			ens = append(ens, en)
		}
	}
	rep.mu.Unlock()
	e := p.v.e
	return e.logNotes(context.WithoutCancel(ctx), e.lanes[0], ens)
}

// saveDirty adds the maps to the table of a checkpoint, in order; rep.mu is held.
func (rep *replica) saveDirty(t *segment.ReplicaTable) {
	first := len(t.Dirt)
	for k, d := range rep.mu.dirty {
		t.Dirt = append(t.Dirt, segment.DirtyMap{
			Branch: rep.fam.id, Slice: k.slice, Member: k.member, Grains: d.grains,
		})
	}
	slices.SortFunc(t.Dirt[first:], func(a, b segment.DirtyMap) int {
		return cmp.Or(cmp.Compare(a.Slice, b.Slice), cmp.Compare(a.Member, b.Member))
	})
}

// loadDirty takes up the maps of a checkpoint.
func (e *Engine) loadDirty(list []segment.DirtyMap) {
	for i := range list {
		if rep := e.mu.replicas[list[i].Branch]; rep != nil {
			d := rep.away(dirtyKey{list[i].Slice, list[i].Member})
			d.grains = list[i].Grains
		}
	}
}

// away gives a map, made where there is none; rep.mu is held, but in a recovery.
func (rep *replica) away(k dirtyKey) *dirtyMap {
	d := rep.mu.dirty[k]
	if d == nil {
		d = &dirtyMap{}
		rep.mu.dirty[k] = d
		rep.e.space.tables.Add(segment.DirtyMapBytes)
	}
	return d
}

// redoDirty takes up an entry behind the checkpoint. What it says of who is away stands in the
// first lane, in order; marks of others, and of who is back meanwhile, do no harm.
func (rep *replica) redoDirty(en *segment.Entry) {
	member, what, grains := en.Dirty()
	k, word := dirtyKey{sliceOf(en.Block), member}, en.Block%segment.SliceBlocks/segment.LeafBlocks
	switch what {
	case segment.DirtyBegin:
		d := rep.away(k)
		d.ended, d.fresh = false, true
	case segment.DirtyEnd:
		rep.away(k).ended = true
	case segment.DirtyMarks:
		if member == 0 {
			rep.touched.of(en.Block)[word] |= grains
			return
		}
		rep.away(k).grains[word] |= grains
	}
}

// grainMaps are grains by slice, of a recovery.
type grainMaps map[uint32]*[segment.SliceGrains / 64]uint64

// of gives those of a block's slice, made where there are none.
func (m *grainMaps) of(block uint64) *[segment.SliceGrains / 64]uint64 {
	if *m == nil {
		*m = grainMaps{}
	}
	g := (*m)[sliceOf(block)]
	if g == nil {
		g = &[segment.SliceGrains / 64]uint64{}
		(*m)[sliceOf(block)] = g
	}
	return g
}

// add adds those of a slice to a map.
func (m grainMaps) add(slice uint32, d *dirtyMap) {
	if g := m[slice]; g != nil {
		for i, w := range g {
			d.grains[i] |= w
		}
	}
}

// settleDirty ends what a recovery found of members that are away.
func (rep *replica) settleDirty() {
	for k, d := range rep.mu.dirty {
		if d.ended || k.member == rep.e.cfg.Node && !rep.mu.slices[k.slice].Open {
			rep.forgetDirty(k)
			continue
		}
		rep.touched.add(k.slice, d)
		if d.fresh { // what was held when it began is there, or behind the checkpoint
			rep.tabled.add(k.slice, d)
			d.fresh = false
		}
	}
	rep.touched, rep.tabled = nil, nil
}
