package engine

import (
	"context"
	"fmt"

	"weft/dataplane/segment"
	"weft/domain"
)

// Snapshots of a replica are cut by generation, a number in every record: a member that learns of
// generation g+1, by a record or by Cut, freezes the branch of g, and that of every generation
// before that it has none of. So a replica is a line of branches, and each ends with a generation
// of its own. What a branch shows of a block is the highest version of the generations up to its.
//
// A record of g that comes late lands in the branch of g. Where a later branch holds something
// lower, that is taken away, and what the older one has shows through: so each copy still stands in
// one place, and no branch has to be told of it when it moves. That is logged, branch by branch, in
// the chunk of the record: replay compares no versions. A hole in a branch that stands on another
// is noted even if nothing is under it: something may come, in a join session to sealed cuts, too.
//
// A sealed cut takes nothing any more, and neither do those before it.
//
//	C12  A branch shows the highest version of the generations up to its own, over crashes too.

// openCuts is how many cuts of a replica may be open before a new one is refused: a late record
// takes an entry for each that it changes, and all stand in one chunk.
const openCuts = 128

// lateMax gives how many branches one record may change beside its own.
func (e *Engine) lateMax() int {
	room := int(min(entriesMax, e.space.size/segmentParts)) - firstEntryMax - segment.MaskMax
	return min(chunkRecords-1, room/(segment.EntrySettled+segment.MaskMax))
}

// open tells whether something may yet come into a branch below.
func (b *branch) open() bool { return b.fam.replica != nil && b.parent != nil }

// head gives the branch that new generations are written to. A lane's mutex, or the engine's, is
// held.
func (rep *replica) head() *branch { return rep.line[len(rep.line)-1] }

// home gives the branch of a generation; a lane's mutex is held.
func (rep *replica) home(gen uint32) *branch {
	for i := len(rep.line) - 2; i >= 0; i-- {
		if rep.line[i].gen < gen {
			return rep.line[i+1]
		}
	}
	return rep.line[0]
}

// over tells whether the cut of a generation is sealed, or was dropped; a lane's mutex is held.
func (rep *replica) over(gen uint32) bool {
	home := rep.home(gen)
	return home.sealed || home.gen > gen
}

// of gives the holders of a branch's blocks, to be read.
func (rl *replicaLane) of(b *branch) map[uint64]holders {
	if b == rl.head {
		return rl.blocks
	}
	return rl.cuts[b]
}

// all calls fn with the holders of each branch that has some.
func (rl *replicaLane) all(fn func(b *branch, blocks map[uint64]holders)) {
	fn(rl.head, rl.blocks)
	for b, m := range rl.cuts {
		fn(b, m)
	}
}

// branchOf gives the branch that a record is in now. A lane's mutex is held.
func (h *heldRecord) branchOf() *branch {
	for h.br.into != nil {
		h.br = h.br.into
	}
	return h.br
}

// seatOf gives the branch whose holders tell of block i of a held record: its own, or, while that
// is swept, its only kid, which has taken over some extents and not others. The lane's mutex is
// held.
func (rl *replicaLane) seatOf(h *heldRecord, i int) *branch {
	b, block := h.branchOf(), h.Block+uint64(i)
	for k := b; ; k = k.kids[0] {
		if hs := rl.of(k)[block]; hs.top == h || hs.newest == h {
			return k
		}
		if k.named() || len(k.kids) != 1 {
			return b
		}
	}
}

// seat gives the holders of block i of a held record.
func (rl *replicaLane) seat(h *heldRecord, i int) holders {
	return rl.of(rl.seatOf(h, i))[h.Block+uint64(i)]
}

// advance makes a branch the head; the locks of setBranches are held.
func (rep *replica) advance(was, head *branch) {
	for _, l := range rep.e.lanes {
		rl := &rep.lanes[l.no]
		if len(rl.blocks) > 0 {
			rl.cuts[was] = rl.blocks
			rl.blocks = map[uint64]holders{}
		}
		rl.head = head
	}
}

// leave lets go of a branch that leaves the tree; the locks of prune are held.
func (rep *replica) leave(b *branch) {
	if b.into != nil {
		rep.absorbed++
	}
	for _, l := range rep.e.lanes {
		rl := &rep.lanes[l.no]
		if b.into != nil {
			for block := range rl.of(b) {
				rep.inherit(l, b, b.into, block)
			}
		}
		delete(rl.cuts, b)
		for k := range rl.trusted {
			if k.br == b {
				delete(rl.trusted, k)
			}
		}
	}
	if b.fam.root == nil {
		delete(rep.e.mu.replicas, b.fam.id)
	}
}

// inherit lets a branch have what is known of a block in the one that it absorbs, before it has the
// block itself. The lane's mutex is held.
func (rep *replica) inherit(l *lane, from, to *branch, block uint64) {
	rl := &rep.lanes[l.no]
	hs := rl.of(from)[block]
	if hs == (holders{}) {
		return
	}
	rl.note(rep.e.space, from, block, nil)
	rl.keep(from, block, holders{})
	ts := rl.of(to)[block]
	ts.newest = newer(hs.newest, ts.newest)
	lf := rep.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].of(to)
	hides := lf != nil && lf.own.get(int(block%segment.LeafBlocks)) != 0
	known := ts.known
	if !hides && ts.top == nil && known == nil {
		ts.top, known = hs.top, hs.known
	}
	rl.keep(to, block, ts)
	rl.note(rep.e.space, to, block, known)
}

// unseat notes that a branch is about to lose its copy of a block, which nobody sees: a record that
// is held keeps it. The lane's mutex is held.
func (l *lane) unseat(lf *leaf, i int) {
	rep := lf.br.fam.replica
	if rep == nil {
		return
	}
	rl, block := &rep.lanes[l.no], uint64(lf.ext)*segment.LeafBlocks+uint64(i)
	hs := rl.of(lf.br)[block]
	if hs.top != nil {
		l.spare(hs.top, int(block-hs.top.Block), 1)
		hs.top = nil
		rl.keep(lf.br, block, hs)
	}
	if hs.known != nil {
		rep.raiseGen(sliceOf(block), hs.known.gen)
		rl.note(rep.e.space, lf.br, block, nil)
	}
}

// beaten tells whether a branch shows more than a version of a block, or will when what is on its
// way is there. The lane's mutex is held.
func (rep *replica) beaten(l *lane, home *branch, block uint64, ver domain.Version, era uint16,
) bool {
	rl := &rep.lanes[l.no]
	hs := rl.of(home)[block]
	if hs.beats(ver, era) {
		return true
	}
	for b, m := range rl.cuts {
		if b.gen < home.gen {
			if hs := m[block]; hs.beats(ver, era) {
				return true
			}
		}
	}
	return false
}

// displaced is what a late record takes out of a later branch: of its blocks, those that it does
// not keep.
type displaced struct {
	br   *branch
	kept segment.Mask
	n    int
}

// displace tells what a record of a branch takes out of later ones. The lane's mutex is held.
func (rep *replica) displace(l *lane, home *branch, r *Record, era uint16) []displaced {
	rl := &rep.lanes[l.no]
	if home == rl.head {
		return nil
	}
	var list []displaced
	var ended segment.Mask
	resolved := r.Version.Compare(rep.slice(sliceOf(r.Block)).Floor) <= 0 // see outdo
	for i := range r.Count {
		b := r.Block + uint64(i)
		if rep.beaten(l, home, b, r.Version, era) || resolved && rl.trusts(home, b) {
			ended.Set(i)
		}
	}
	leaves := rep.fam.leaves[l.no][uint32(r.Block/segment.LeafBlocks)]
	for _, b := range rep.from(home)[1:] {
		lf, blocks, d := leaves.of(b), rl.of(b), displaced{br: b}
		for i := range r.Count {
			hs := blocks[r.Block+uint64(i)]
			own := lf != nil && lf.own.get(int(r.Block%segment.LeafBlocks)+i) != 0
			if hs.beats(r.Version, era) || resolved && rl.trusts(b, r.Block+uint64(i)) {
				ended.Set(i)
			}
			if ended.Kept(i) || !own && hs == (holders{}) {
				d.kept.Set(i)
				continue
			}
			d.n++
		}
		if d.n > 0 {
			list = append(list, d)
		}
	}
	return list
}

// displaces tells whether it is no copy but what a late record took out of a branch. A branch that
// stands on none loses nothing.
func (h *heldRecord) displaces() bool {
	return h.copied && h.flags&segment.FlagParent != 0 && h.br.parent != nil
}

// last is head for whoever holds no mutex.
func (rep *replica) last() *branch {
	rep.e.mu.RLock()
	defer rep.e.mu.RUnlock()
	return rep.head()
}

// addDisplaced logs what a record takes out of a later branch; the chunk has the room.
func (l *lane) addDisplaced(h *heldRecord, d *displaced) {
	o := &heldRecord{copied: true, flags: segment.FlagParent, br: d.br, HeldRecord: segment.HeldRecord{
		Branch: d.br.id, Block: h.Block, Count: h.Count, Kind: segment.KindUnmap, Version: h.Version,
		Gen: h.Gen, Era: h.Era,
	}}
	if d.n < h.Count {
		o.Outcome, o.kept = segment.OutcomeMixed, &d.kept
		o.flags |= o.Outcome
	}
	r := &Record{
		Kind: o.Kind, kind: o.Kind, Block: h.Block, Count: h.Count, Version: h.Version, Gen: h.Gen,
		Kept: d.kept, To: nobody{},
	}
	l.addHeld(d.br, r, o, 0)
}

// shows gives what holds the block that a branch sees, and where that stands: 0 for what nobody
// wrote. The lane's mutex is held.
func (rep *replica) shows(l *lane, at *branch, block uint64) (holders, segment.Loc) {
	rl, i := &rep.lanes[l.no], int(block%segment.LeafBlocks)
	lf, loc := rep.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].find(at), segment.Loc(0)
	for ; lf != nil && loc == 0; lf = lf.base {
		if loc = lf.own.get(i); shown(loc) != 0 {
			return rl.of(lf.br)[block], loc
		}
	}
	for b := at; b != nil; b = b.parent { // a hole above a hole may not be noted in the index
		if hs := rl.of(b)[block]; hs.top != nil || hs.known != nil {
			return hs, loc
		}
		if len(rl.cuts) == 0 {
			break
		}
	}
	return holders{}, loc
}

// reach sees to it that a generation has a branch, and every one before.
func (p *Replica) reach(ctx context.Context, gen uint32) error {
	if p.v.br.Load().gen >= gen {
		return nil
	}
	e := p.v.e
	e.control.Lock()
	defer e.control.Unlock()
	p.rep.turn.Lock()
	defer p.rep.turn.Unlock()
	for {
		if p.rep.gone || p.v.gone.Load() {
			return p.v.missing()
		}
		old := e.lineOf(p.v)
		if old.Gen >= gen {
			return nil
		}
		if err := p.mayCut(); err != nil {
			return err
		}
		if err := e.roomFor(p.v.fam); err != nil {
			return err
		}
		head := old
		old.State = segment.BranchFrozen
		lines := []segment.Branch{old}
		for head.Gen < gen && len(lines) < segment.BranchesMax {
			head.ID, head.Parent, head.Gen = e.newBranch(), head.ID, head.Gen+1
			head.State = segment.BranchFrozen
			lines = append(lines, head)
		}
		lines[len(lines)-1].State = segment.BranchLive
		if err := e.logBranches(ctx, lines...); err != nil {
			return err
		}
	}
}

// mayCut refuses a cut while there are too many that are not sealed.
func (p *Replica) mayCut() error {
	e, n := p.v.e, 0
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, b := range p.rep.line {
		if !b.sealed {
			n++
		}
	}
	if n > min(openCuts, e.lateMax()) {
		return domain.Errorf(domain.TooLarge, "%d cuts are not sealed: at most %d", n-1, openCuts)
	}
	return nil
}

// freeze makes a branch the cut of its generation; the locks of setBranches are held.
func (e *Engine) freeze(b *branch, br *segment.Branch) {
	b.sealed = b.sealed || br.Sealed
	if b.handle != nil && b.handle.cut != 0 {
		return
	}
	v := &Volume{e: e, fam: b.fam, volume: br.Volume, cut: b.gen}
	v.resize(br.Size)
	b.take(v)
}

// cut gives the branch of a generation that was cut; nil where there is none.
func (p *Replica) cut(gen uint32) *branch {
	p.v.e.mu.RLock()
	defer p.v.e.mu.RUnlock()
	for _, b := range p.rep.line {
		if b.gen == gen && b.handle != nil && b.handle.cut != 0 {
			return b
		}
	}
	return nil
}

// Cut freezes what the replica has of the generations up to one: records of a higher one are not in
// it. Records that come late still are, until SealCut. A record of a higher generation does the
// same by itself. Durable on return. Cutting again is a success, and cutting what was dropped
// changes nothing. Errors: NotFound, TooLarge for too many cuts or cuts that are not sealed,
// Aborted when ctx ends first: then it may be there or not.
func (p *Replica) Cut(ctx context.Context, gen uint32) error {
	if gen == 0 || gen+1 == 0 {
		return domain.Errorf(domain.Invalid, "a cut of generation %d", gen)
	}
	return p.reach(ctx, gen+1)
}

// SealCut ends a cut, and all before it: nothing of them changes any more, and a record of their
// generations is refused unless it is there already. It is for when the replica protocol knows that
// none is on its way: all of them are at or below its floor by then, and such ones are duplicates,
// in a join session too, and behind DropCut. Durable on return, and complete. Sealing again is a
// success. Errors: NotFound for what was not cut, or dropped.
func (p *Replica) SealCut(ctx context.Context, gen uint32) error {
	e := p.v.e
	e.control.Lock()
	defer e.control.Unlock()
	if p.cut(gen) == nil {
		return p.noCut(gen)
	}
	var lines []segment.Branch
	e.mu.RLock()
	for _, b := range p.rep.line {
		if b.gen <= gen && !b.sealed && b.handle != nil && b.handle.cut != 0 {
			line := b.line()
			line.Sealed = true
			lines = append(lines, line)
		}
	}
	e.mu.RUnlock()
	for ; len(lines) > 0; lines = lines[min(len(lines), segment.BranchesMax):] { // the oldest first
		err := e.logBranches(context.WithoutCancel(ctx), lines[:min(len(lines), segment.BranchesMax)]...)
		if err != nil {
			return err
		}
	}
	for _, l := range e.lanes {
		if err := l.catchUp(); err != nil { // what was accepted before is in the index by then
			return err
		}
	}
	return nil
}

// DropCut takes a sealed cut away; what only it saw is free for others once the next checkpoint is
// taken, but for records that are not settled. Dropping what is not there is a success. Durable on
// return. Errors: Conflict for a cut that is not sealed.
func (p *Replica) DropCut(ctx context.Context, gen uint32) error {
	e := p.v.e
	e.control.Lock()
	b := p.cut(gen)
	if b == nil {
		e.control.Unlock()
		return nil
	}
	if !b.sealed { // it changes under control
		e.control.Unlock()
		return domain.Errorf(domain.Conflict, "the cut of generation %d is not sealed", gen)
	}
	e.mu.RLock()
	v := b.handle
	e.mu.RUnlock()
	return e.burial(ctx, v)
}

// At gives a cut, to be read like a volume that takes no writes, and whether it is sealed; until
// then it may change. NotFound for what was not cut, or dropped.
func (p *Replica) At(gen uint32) (v *Volume, sealed bool, err error) {
	b := p.cut(gen)
	if b == nil {
		return nil, false, p.noCut(gen)
	}
	p.v.e.mu.RLock()
	defer p.v.e.mu.RUnlock()
	if b.handle == nil {
		return nil, false, noCut(p.v.volume, gen)
	}
	return b.handle, b.sealed, nil
}

// ReadAt is Read of a cut: of the generations up to one. More errors: those of At.
func (p *Replica) ReadAt(gen uint32, block uint64, count int, dst []byte,
) (maxGen uint32, err error) {
	v, _, err := p.At(gen)
	if err != nil {
		return 0, err
	}
	return v.read(block, count, dst)
}

// VersionsAt is Versions of a cut. More errors: those of At.
func (p *Replica) VersionsAt(gen uint32, block uint64, count int, fn func(BlockVersion) error,
) error {
	v, _, err := p.At(gen)
	if err != nil {
		return err
	}
	return (&Replica{v, p.rep}).Versions(block, count, fn)
}

// DigestAt is Digest of a cut. More errors: those of At.
func (p *Replica) DigestAt(gen uint32, block uint64, count int) (Digest, error) {
	v, _, err := p.At(gen)
	if err != nil {
		return Digest{}, err
	}
	return (&Replica{v, p.rep}).Digest(block, count)
}

// Cuts lists the generations that were cut, the oldest first.
func (p *Replica) Cuts() []uint32 {
	p.v.e.mu.RLock()
	defer p.v.e.mu.RUnlock()
	var list []uint32
	for _, b := range p.rep.line {
		if b.handle != nil && b.handle.cut != 0 {
			list = append(list, b.gen)
		}
	}
	return list
}

func (p *Replica) noCut(gen uint32) error {
	if p.v.gone.Load() {
		return p.v.missing()
	}
	return noCut(p.v.volume, gen)
}

func noCut(id domain.VolumeID, gen uint32) error {
	return &domain.Error{
		Kind: domain.NotFound, Ref: "volume/" + id.String(),
		Msg: fmt.Sprintf("no cut of generation %d", gen),
	}
}
