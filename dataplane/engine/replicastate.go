package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// What a replica knows beside its records, slice by slice: the seal, the floor, whether it is
// buried. All of it only rises, so the entries that log it need no order among lanes: a recovery
// takes the highest.

// fenced refuses a message for a slice that was sealed or buried.
func (p *Replica) fenced(s *segment.SliceState, msg domain.Epoch) error {
	if !s.Buried && msg >= s.Seal {
		return nil
	}
	err := &domain.Error{
		Kind: domain.NotFound, Ref: fmt.Sprintf("volume/%s/%d", p.v.volume, s.Slice),
		Msg: "the slice is buried",
	}
	if !s.Buried {
		err.Kind, err.Msg = domain.Stale, fmt.Sprintf("epoch %d, sealed at %d", msg, s.Seal)
	}
	return err
}

// change changes what is known of a slice and tells whether that is more than before.
func (rep *replica) change(no uint32, to segment.SliceState) bool {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	s, ok := rep.mu.slices[no]
	if !ok {
		rep.e.space.tables.Add(segment.SliceStateBytes)
	}
	was := s
	s.Branch, s.Slice, s.Seal = rep.fam.id, no, max(s.Seal, to.Seal)
	if to.Floor.Compare(s.Floor) > 0 {
		s.Floor = to.Floor
	}
	s.Buried, s.Gen = s.Buried || to.Buried, max(s.Gen, to.Gen)
	if to.Era > s.Era {
		s.Era, s.Open = to.Era, to.Open
	}
	rep.mu.slices[no] = s
	return s != was
}

// Seal makes slices refuse every message of a lower epoch, for ever: durably on return. Records
// that were accepted before may still become durable. A record of a lower epoch that comes in a
// message of the new one is taken. Sealing again is a success; a lower epoch than the seal's is
// Stale, a slice that is buried or beyond the end NotFound or OutOfRange, and then no slice was
// sealed. With Aborted it may be so or not.
func (p *Replica) Seal(ctx context.Context, epoch domain.Epoch, list ...uint32) error {
	var ens []segment.Entry
	for _, no := range list {
		if err := p.reachable(no); err != nil {
			return err
		}
		s := p.rep.slice(no)
		if err := p.fenced(&s, epoch); err != nil {
			return err
		}
		ens = append(ens, p.rep.note(no, segment.KindSeal, domain.Version{Epoch: epoch}))
	}
	for _, no := range list { // before it is durable: refusing early is harmless
		p.rep.change(no, segment.SliceState{Seal: epoch})
	}
	return p.v.e.logNotes(ctx, p.v.e.lanes[0], ens)
}

// reachable refuses a slice beyond the volume's end.
func (p *Replica) reachable(no uint32) error {
	if int64(no)*segment.SliceBlocks*segment.BlockSize >= p.v.size.Load() {
		return domain.Errorf(domain.OutOfRange, "slice %d of %s", no, p.v.Size())
	}
	return nil
}

// Sealed gives the epoch that a slice was sealed at; 0 where it was not.
func (p *Replica) Sealed(slice uint32) domain.Epoch { return p.rep.slice(slice).Seal }

// note makes the entry that logs something of a slice.
func (rep *replica) note(no uint32, kind segment.Kind, ver domain.Version) segment.Entry {
	return segment.Entry{
		Branch: rep.fam.id, Block: uint64(no) * segment.SliceBlocks, Count: 1, Kind: kind, Version: ver,
	}
}

// logNotes writes entries without blocks to a lane's log and waits until they are durable.
func (*Engine) logNotes(ctx context.Context, l *lane, ens []segment.Entry) error {
	if len(ens) == 0 {
		return nil
	}
	w := make(branchWait, 1)
	l.mu.Lock()
	for i := range ens {
		if err := l.roomForNote(); err != nil {
			l.mu.Unlock()
			return err
		}
		if i == len(ens)-1 {
			l.addNote(&ens[i], w)
		} else {
			l.addNote(&ens[i], nil)
		}
	}
	l.mu.Unlock()
	l.work.Signal()
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return &domain.Error{Op: "engine.logNotes", Kind: domain.Aborted, Err: ctx.Err()}
	}
}

// roomForNote waits until the open chunk takes an entry without blocks; the lane's mutex is held,
// but not while it waits.
func (l *lane) roomForNote() error {
	for {
		if err := l.dead(); err != nil {
			return err
		}
		if l.mu.cur != nil && !l.mu.cur.fits(0, l.e.payloadMax()) {
			l.mu.cur.full = true
			l.work.Signal()
		}
		if l.mu.cur != nil && !l.mu.cur.full {
			return nil
		}
		l.room.Wait()
	}
}

// addNote puts an entry without blocks into the open chunk; to is told when it is durable.
func (l *lane) addNote(en *segment.Entry, to Appender) {
	l.mu.lsn++
	en.LSN = l.mu.lsn
	p := pending{kind: en.Kind, lsn: l.mu.lsn}
	if to != nil {
		p.rec = &Record{To: to}
	}
	l.mu.cur.encode(en, nil)
	l.mu.cur.recs = append(l.mu.cur.recs, p)
}

// Bury deletes what a replica holds of a slice for ever: its space is free for others behind the
// next checkpoint, and neither a message nor a restart brings anything of it back. Engine.Delete
// does that for all of a replica, id included. Durable on return. Burying again is a success.
func (p *Replica) Bury(ctx context.Context, slice uint32) error {
	if err := p.reachable(slice); err != nil {
		return err
	}
	p.rep.change(slice, segment.SliceState{Buried: true})
	e := p.v.e
	note := p.rep.note(slice, segment.KindBury, domain.Version{})
	if err := e.logNotes(context.WithoutCancel(ctx), e.lanes[0], []segment.Entry{note}); err != nil {
		return err
	}
	for _, l := range e.lanes {
		if err := l.catchUp(); err != nil { // what was accepted before is in the index by then
			return err
		}
		l.mu.Lock()
		l.clearSlice(p.rep, slice)
		l.mu.Unlock()
	}
	return nil
}

// clearSlice lets go of all that a replica has of a slice in a lane, whose mutex is held.
func (l *lane) clearSlice(rep *replica, no uint32) {
	for k, h := range rep.lanes[l.no].held {
		if k.slice == no {
			l.letGo(rep, h)
		}
	}
	for ext := range rep.lanes[l.no].extents {
		if ext/sliceExtents == no {
			rep.lanes[l.no].forget(l.e.space, ext)
		}
	}
	rep.lanes[l.no].forgetKnown(l.e.space, func(b uint64) bool { return sliceOf(b) == no })
	l.distrust(rep, no)
	rep.forgetAway(no)
	for ext, lf := range rep.fam.leaves[l.no] {
		if ext/sliceExtents != no {
			continue
		}
		for _, b := range rep.line {
			if own := lf.of(b); own != nil {
				own.own.each(func(i int, _ segment.Loc) { l.reveal(own, i) })
				l.touch(own)
			}
		}
	}
}

// emptyGraves lets go of what a recovery found of buried slices.
func (e *Engine) emptyGraves() {
	for _, rep := range e.mu.replicas {
		for no, s := range rep.mu.slices {
			for _, l := range e.lanes {
				if s.Buried {
					l.clearSlice(rep, no)
				}
			}
		}
	}
}

// dig notes that a replica was deleted; the engine's mutex is held.
func (e *Engine) dig(id domain.VolumeID) {
	if _, ok := e.mu.graves[id]; !ok {
		e.mu.graves[id] = struct{}{}
		e.space.tables.Add(segment.GraveBytes)
	}
}

// lies tells whether a replica of that id was deleted.
func (e *Engine) lies(id domain.VolumeID) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	_, ok := e.mu.graves[id]
	return ok
}

// Floor gives a slice's floor: everything at or below it is resolved at every member.
func (p *Replica) Floor(slice uint32) domain.Version { return p.rep.slice(slice).Floor }

// SetFloor raises a slice's floor; a lower one than it has changes nothing. It must be true when it
// is said, for ever: every version at or below it is held by all members, or beaten there, durably,
// and none of them will be given out any more. It is logged within a tenth of a second; a crash
// before may lower it again.
func (p *Replica) SetFloor(slice uint32, floor domain.Version) {
	if !p.rep.change(slice, segment.SliceState{Floor: floor}) {
		return
	}
	p.rep.mu.Lock()
	p.rep.mu.raised[slice] = p.rep.mu.slices[slice].Floor
	p.rep.mu.Unlock()
	p.v.e.raise()
	for _, l := range p.v.e.lanes {
		l.mu.Lock()
		if rl := &p.rep.lanes[l.no]; len(rl.held)+rl.knowns > 2*rl.kept+heldSome {
			l.sweepHeld(p.rep)
		}
		l.mu.Unlock()
	}
}

// heldSome is how many records more than twice those that the last sweep left may be held before
// the next one: so a sweep costs a small part of what brought it about.
const heldSome = 64

// Unsettled gives every record of a slice above its floor, durable or on its way, by version; after
// a restart that is all that may have to be replayed. What came by Import or Same is told too, with
// Part: it is committed, and no record to be replayed. Nothing of an earlier era is. fn ends the
// walk with an error, which is returned.
func (p *Replica) Unsettled(slice uint32, fn func(Meta) error) error {
	floor := p.Floor(slice)
	var list []Meta
	for _, l := range p.v.e.lanes {
		l.mu.Lock()
		for k, h := range p.rep.lanes[l.no].held {
			if k.slice == slice && k.ver.Compare(floor) > 0 {
				list = append(list, h.meta())
			}
		}
		list = p.rep.knownParts(l, slice, floor, list)
		l.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Meta) int {
		return cmp.Or(a.Version.Compare(b.Version), cmp.Compare(a.Block, b.Block))
	})
	for _, m := range list {
		if err := fn(m); err != nil {
			return err
		}
	}
	return nil
}

func (h *heldRecord) meta() Meta {
	return Meta{
		Kind: h.Kind, Block: h.Block, Count: h.Count, Version: h.Version, Request: h.Request, Gen: h.Gen,
		Outcome: Outcome(h.Outcome),
	}
}

// saveHeld adds what replicas hold, as far as it is durable, to the table of a checkpoint; mu is
// held.
func (l *lane) saveHeld(t *segment.ReplicaTable) {
	l.e.mu.RLock()
	defer l.e.mu.RUnlock()
	for _, rep := range l.e.mu.replicas {
		l.sweepHeld(rep)
		for ext, ver := range rep.lanes[l.no].extents {
			t.Extents = append(t.Extents, segment.ExtentVersion{
				Branch: rep.fam.id, Extent: ext, Version: ver,
			})
		}
		for _, h := range rep.lanes[l.no].held {
			if h.durable && h.slot == nil {
				h.Branch = h.branchOf().id
				t.Records = append(t.Records, h.HeldRecord)
			}
		}
		l.saveKnown(rep, t)
	}
}

// replicaStates adds the rest to the table, in order. It is read behind all lanes' records: floors
// may be newer than those.
func (e *Engine) replicaStates(t *segment.ReplicaTable) {
	e.mu.RLock()
	for _, rep := range e.mu.replicas {
		rep.mu.Lock()
		for _, s := range rep.mu.slices {
			t.Slices = append(t.Slices, s)
		}
		rep.saveDirty(t)
		rep.mu.Unlock()
	}
	for v := range e.mu.graves {
		t.Graves = append(t.Graves, v)
	}
	e.mu.RUnlock()
	e.requests.Lock()
	for b, below := range e.requests.bounds {
		b.Below = below
		t.Bounds = append(t.Bounds, b)
	}
	e.requests.Unlock()
	slices.SortFunc(t.Slices, func(a, b segment.SliceState) int {
		return cmp.Or(cmp.Compare(a.Branch, b.Branch), cmp.Compare(a.Slice, b.Slice))
	})
	slices.SortFunc(t.Records, func(a, b segment.HeldRecord) int {
		return cmp.Or(cmp.Compare(a.Branch, b.Branch), cmp.Compare(a.Block, b.Block),
			a.Version.Compare(b.Version))
	})
	joinKnown(t)
	slices.SortStableFunc(t.Dirt, func(a, b segment.DirtyMap) int {
		return cmp.Compare(a.Branch, b.Branch)
	})
	slices.SortFunc(t.Extents, func(a, b segment.ExtentVersion) int {
		return cmp.Or(cmp.Compare(a.Branch, b.Branch), cmp.Compare(a.Extent, b.Extent))
	})
	slices.SortFunc(t.Bounds, func(a, b segment.RequestBound) int {
		return cmp.Or(cmp.Compare(a.Gateway, b.Gateway), cmp.Compare(a.Incarnation, b.Incarnation))
	})
	slices.SortFunc(t.Graves, func(a, b domain.VolumeID) int {
		return slices.Compare(a.UUID[:], b.UUID[:])
	})
}

// loadHeld takes up what the checkpoint says of replicas; the leaves are loaded.
func (e *Engine) loadHeld() {
	t := e.maint.table
	e.maint.table = segment.ReplicaTable{}
	for _, v := range t.Graves {
		e.dig(v)
	}
	for _, b := range t.Bounds {
		e.Retire(b.Gateway, b.Incarnation, b.Below)
	}
	for _, s := range t.Slices {
		if rep := e.mu.replicas[s.Branch]; rep != nil {
			rep.change(s.Slice, s)
		}
	}
	for _, x := range t.Extents {
		if rep := e.mu.replicas[x.Branch]; rep != nil {
			l := e.laneOf(rep.fam, x.Extent)
			rep.lanes[l.no].top(e.space, x.Extent, x.Version)
		}
	}
	e.loadKnown(t.Known)
	e.loadDirty(t.Dirt)
	for i := range t.Records {
		h := &heldRecord{HeldRecord: t.Records[i], durable: true}
		if h.br = e.branch(h.Branch); h.br == nil || h.br.fam.replica == nil || h.br.fam.replica.gone {
			continue
		}
		rep := h.br.fam.replica
		if h.Version.Compare(rep.slice(sliceOf(h.Block)).Floor) > 0 {
			markGrains(rep.tabled.of(h.Block), h.Block, h.Count)
		}
		l := e.laneOf(rep.fam, uint32(h.Block/segment.LeafBlocks))
		if h.Kind == segment.KindData &&
			!e.space.valid(int64(h.Addr)*segment.Unit, int64(h.Count)*segment.BlockSize) {
			e.report(Fact{
				What: "corrupt", Volume: e.volumeOf(rep.head()), Block: h.Block,
				Detail: "record " + h.Version.String() + " stands outside all segments",
			})
			continue
		}
		rep.found(l, h)
	}
	e.showHoles()
}

// showHoles lets the blocks of which a checkpoint's table holds the newest record, and which show
// no data, be those of that record.
func (e *Engine) showHoles() {
	for _, rep := range e.mu.replicas {
		for _, l := range e.lanes {
			rep.lanes[l.no].all(func(br *branch, blocks map[uint64]holders) {
				rep.showHolesOf(l, br, blocks)
			})
		}
	}
}

// showHolesOf does so for a branch. One that stands on another and says nothing of a block has lost
// it to a late record, which may be one of a hole.
func (rep *replica) showHolesOf(l *lane, br *branch, blocks map[uint64]holders) {
	for b, hs := range blocks {
		if hs.top != nil || hs.known != nil || hs.newest == nil || hs.newest.Kind == segment.KindData {
			continue
		}
		i, own := int(b%segment.LeafBlocks), segment.Loc(0)
		lf := rep.fam.leaves[l.no][uint32(b/segment.LeafBlocks)].find(br)
		if lf != nil && lf.br == br {
			own = lf.own.get(i)
		}
		if own.Kind() == segment.Flash || own == 0 && br.open() {
			continue
		}
		hs.top = hs.newest
		blocks[b] = hs
	}
}

// passed enters what is behind the checkpoint's mark, with its effect in the index already: that of
// a record, or of a copy.
func (rep *replica) passed(l *lane, h *heldRecord) {
	rl := &rep.lanes[l.no]
	for i := range h.Count {
		b := h.Block + uint64(i)
		if h.keeps(i) {
			continue
		}
		rl.uncover(h.br, b)
		if rl.note(rep.e.space, h.br, b, nil); h.exact {
			rl.note(rep.e.space, h.br, b, &known{h.Version, h.Gen, h.Era})
		}
	}
	if h.copied {
		rep.arrived(l, h)
		return
	}
	rep.found(l, h)
	for i := range h.Count {
		if b := h.Block + uint64(i); !h.keeps(i) && h.Kind != segment.KindData {
			hs := rl.of(h.br)[b]
			hs.top = h
			rl.keep(h.br, b, hs)
		}
	}
	h.kept = nil
}

// uncover notes that a block shows no held record any more.
func (rl *replicaLane) uncover(b *branch, block uint64) {
	hs := rl.of(b)[block]
	hs.top = nil
	rl.keep(b, block, hs)
}

// found enters a record whose effect is in the index already, as far as it has one.
func (rep *replica) found(l *lane, h *heldRecord) {
	rl := &rep.lanes[l.no]
	lf := rep.fam.leaves[l.no][uint32(h.Block/segment.LeafBlocks)].of(h.br)
	rep.insert(l, h)
	rep.surface(l, h)
	for i := range h.Count {
		b := h.Block + uint64(i)
		hs, loc := rl.of(h.br)[b], segment.Loc(0)
		if lf != nil {
			loc = lf.own.get(int(b % segment.LeafBlocks))
		}
		switch {
		case h.Kind != segment.KindData:
		case loc.Kind() == segment.Flash && loc.Off() == h.off(i):
			hs.top = h
			rl.keep(h.br, b, hs)
		default:
			l.spare(h, i, 1)
		}
	}
}

// surface notes of which blocks a record that was found is the newest.
func (rep *replica) surface(l *lane, h *heldRecord) {
	rl := &rep.lanes[l.no]
	for i := range h.Count {
		b := h.Block + uint64(i)
		hs := rl.of(h.br)[b]
		if hs.newest == nil || hs.newest.Version.Compare(h.Version) < 0 {
			hs.newest = h
			rl.keep(h.br, b, hs)
		}
	}
}

// heldFrom gives a durable record from its entry, but for where it stands.
func heldFrom(en *segment.Entry, raw []byte, b *branch) *heldRecord {
	h := &heldRecord{durable: true, br: b, kept: &segment.Mask{}, HeldRecord: segment.HeldRecord{
		Branch: b.id, Block: en.Block, Count: en.Len(), Kind: en.Kind, Outcome: en.Outcome(),
		Version: en.Version, Gen: en.Gen, Request: en.Request, LSN: en.LSN, Era: en.Era,
	}}
	en.MaskOf(raw, h.kept)
	return h
}

// sums fills in the checksums of an entry's blocks and gives that over them; 0 without data.
func (rl *replicaLane) sums(en *segment.Entry, raw []byte, crcs *[segment.RecordBlocks]uint32,
) uint32 {
	if en.Kind != segment.KindData {
		return 0
	}
	for i := range en.Count {
		crcs[i] = en.Further(raw, i)
	}
	return sumOf(&rl.scratch, crcs[:en.Count])
}

// redoTurn is turn for an entry of the log, in which eras only rise: once for each.
func (l *lane) redoTurn(rep *replica, slice uint32, era uint16) {
	rl := &rep.lanes[l.no]
	if rl.turned[slice] > era {
		return
	}
	if rl.turned == nil {
		rl.turned = map[uint32]uint16{}
	}
	rl.turned[slice] = era + 1
	l.turn(rep, slice, era)
}

// redoHeld takes up an entry of a replica behind the checkpoint.
func (l *lane) redoHeld(c *logChunk, en *segment.Entry, raw []byte, b *branch) {
	rep, no := b.fam.replica, uint32(en.Block/segment.SliceBlocks)
	switch en.Kind { //nolint:exhaustive // the others are no replica's
	case segment.KindSeal:
		rep.change(no, segment.SliceState{Seal: en.Version.Epoch})
		return
	case segment.KindFloor:
		rep.change(no, segment.SliceState{Floor: en.Version})
		return
	case segment.KindBury:
		rep.change(no, segment.SliceState{Buried: true})
		return
	case segment.KindEra:
		rep.change(no, segment.SliceState{Era: en.Era, Open: true, Gen: en.Gen})
		if en.Ended() && rep.slice(no).Era == en.Era {
			rep.close(no)
		}
		return
	case segment.KindDirty:
		rep.redoDirty(en)
		return
	case segment.KindSame:
		l.redoTurn(rep, no, en.Era)
		l.confirm(rep, b, en.Block, en.Same(), en.Era)
		return
	}
	ext := uint32(en.Block / segment.LeafBlocks)
	if rep.gone || !en.Kind.Blocks() || l.e.laneOf(b.fam, ext) != l {
		return
	}
	h := heldFrom(en, raw, b)
	h.copied, h.flags = en.Flags&segment.FlagFresh == 0, en.Flags
	h.exact = h.copied && !h.displaces() // at or below the floor it is swept
	markGrains(rep.touched.of(en.Block), en.Block, en.Len())
	l.redoTurn(rep, no, en.Era)
	var crcs [segment.RecordBlocks]uint32
	if h.Sum = rep.lanes[l.no].sums(en, raw, &crcs); en.Kind == segment.KindData {
		h.Addr = uint64(c.payload)/segment.Unit + uint64(en.Off)
	}
	if lf := b.fam.leaves[l.no][ext].of(b); lf != nil && en.LSN <= lf.complete {
		rep.passed(l, h)
		return
	}
	if h.copied {
		rep.arrived(l, h)
	} else {
		rep.insert(l, h)
		rep.surface(l, h)
	}
	l.enter(&pending{br: b, unit: en.Off, held: h}, uint64(c.payload)/segment.Unit, crcs[:])
}
