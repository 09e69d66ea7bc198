package engine

import (
	"context"
	"fmt"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// How a copy is filled from another one: Export there, Import and Same here, inside a join session.
// It goes branch by branch, the oldest first: a block that a branch does not have itself is as its
// parent, so it is right only when the parent's is. What came late in the session into an older
// branch, and is higher, stays too: then the copy of a later one is as the parent.
//
// A branch is named by its generation and that of the one it stands on, so that a cut which one of
// the two members lacks is met before its blocks are taken for those of another. Follow makes the
// cuts here those of the source.
//
//	C10  What is imported is what the source had, whatever was here; what came here in the session
//	     with a higher version stays.
//
// A hole and a block of zeros stand nowhere, so once their record is settled they have no version.
// They are of the floor that the source had at the same moment: at or below it nothing is missing
// there.

// Link names a branch of a replica: the highest generation of its records, and that of the branch
// that it stands on, 0 for the oldest.
type Link struct{ Gen, Under uint32 }

// Line names the branches of a replica, the oldest first: its cuts, and the head, which may be
// behind the generation of the volume.
func (p *Replica) Line() []Link {
	p.v.e.mu.RLock()
	defer p.v.e.mu.RUnlock()
	var list []Link
	under := uint32(0)
	for _, b := range p.rep.line {
		if b.named() {
			list = append(list, Link{b.gen, under})
			under = b.gen
		}
	}
	return list
}

// Follow makes the cuts here those of a line of the source: those that are missing are made, and
// those that it has no more are sealed and dropped. What the source has and this member has not can
// not be made where later ones are here: Conflict, and then it has to be dropped there, too, or
// this replica made anew, with the oldest generation of the source.
func (p *Replica) Follow(ctx context.Context, line []Link) error {
	if len(line) == 0 {
		return domain.Errorf(domain.Invalid, "a line of no branches")
	}
	if err := p.reach(ctx, line[len(line)-1].Gen); err != nil {
		return err
	}
	there := map[uint32]bool{}
	for _, at := range line {
		there[at.Gen] = true
	}
	for _, at := range p.Line() {
		if at.Gen > line[len(line)-1].Gen || there[at.Gen] { // what is cut here may be on its way there
			delete(there, at.Gen)
			continue
		}
		if err := p.SealCut(ctx, at.Gen); err != nil && !domain.IsKind(err, domain.NotFound) {
			return err
		}
		if err := p.DropCut(ctx, at.Gen); err != nil {
			return err
		}
	}
	for gen := range there {
		return p.noLink(Link{Gen: gen})
	}
	return nil
}

// link gives the branch that a link names; Conflict where there is none, or it stands on another,
// be it one that is being swept. A lane's mutex is held.
func (p *Replica) link(at Link) (*branch, error) {
	for _, b := range p.rep.line {
		if b.gen != at.Gen || !b.named() {
			continue
		}
		if b.parent == nil && at.Under == 0 ||
			b.parent != nil && b.parent.named() && b.parent.gen == at.Under {
			return b, nil
		}
	}
	return nil, p.noLink(at)
}

func (p *Replica) noLink(at Link) error {
	return &domain.Error{
		Kind: domain.Conflict, Ref: "volume/" + p.v.volume.String(),
		Msg: fmt.Sprintf("no branch of generation %d on %d", at.Gen, at.Under),
	}
}

// Copy is one block of a branch on its way from one member to another.
type Copy struct {
	Kind   segment.Kind // KindData, KindZero, or KindUnmap for a hole
	Parent bool         // of a hole: the branch has nothing there, so the one below answers
	// Version is exact. That of a hole or of zeros is known only while a record of them is held; if
	// it is zero, it is at or below the source's floor. Of what is as the parent it is that of what
	// the parent shows, known in the same way.
	Version domain.Version
	Gen     uint32
	CRC     uint32 // KindData: CRC-32C of Data
	Data    []byte // KindData: one block
}

// Export gives what a branch of a replica has itself in count blocks from block on, inside one
// extent, all as it was at one moment, and the slice's floor at that moment. Whether it is
// committed is the caller's to know, before and after. Errors: those of Versions, Conflict for a
// branch that is not there, or stands on another.
func (p *Replica) Export(at Link, block uint64, count int) ([]Copy, domain.Version, error) {
	if err := p.v.inside(block, count); err != nil {
		return nil, domain.Version{}, err
	}
	s := &versionSearch{p: p, found: make([]BlockVersion, count), block: block, link: &at}
	if p.v.e.nv != nil {
		s.kept = backends.AlignedBuffer(count * segment.BlockSize)
	}
	for range readTries {
		if err := s.all(); err != nil {
			return nil, domain.Version{}, err
		}
		list, err := s.copies()
		if list != nil || err != nil {
			return list, s.floor, err
		}
	}
	return nil, domain.Version{}, p.v.corrupt(block, 0)
}

// copies reads the blocks from where they stood; nil where bytes are others, because they were
// moved or are damaged.
func (s *versionSearch) copies() ([]Copy, error) {
	list, e := make([]Copy, len(s.found)), s.p.v.e
	buf := backends.AlignedBuffer(len(list) * segment.BlockSize)
	for i := 0; i < len(list); {
		n := 1
		switch loc := s.locs[i]; loc.Kind() {
		case segment.Flash:
			kept := e.nv.holds(loc)
			for !kept && i+n < len(list) && s.locs[i+n].Kind() == segment.Flash &&
				s.locs[i+n].Addr() == loc.Addr()+uint64(n)*segment.BlockUnits {
				n++
			}
			data := buf[i*segment.BlockSize : (i+n)*segment.BlockSize]
			if kept {
				copy(data, block(s.kept, i))
			} else if err := e.dev.ReadAt(data, loc.Off()); err != nil {
				return nil, e.device(err, "engine.Export")
			}
			for k := range n {
				b := block(data, k)
				if !s.locs[i+k].Matches(b) {
					return nil, nil
				}
				list[i+k] = Copy{
					Kind: segment.KindData, Version: s.found[i+k].Version, Gen: s.gens[i+k],
					CRC: segment.Checksum(b), Data: b,
				}
			}
		case segment.Zero:
			list[i] = Copy{Kind: segment.KindZero, Version: s.above[i], Gen: s.gens[i]}
		case segment.None, segment.Hole, segment.Lost: // lookup refuses what is lost
			list[i] = Copy{
				Kind: segment.KindUnmap, Parent: loc == 0, Version: s.above[i], Gen: s.gens[i],
			}
		}
		i += n
	}
	return list, nil
}

// Import takes copies of neighbouring blocks of a branch from block on, inside one extent, of
// another member whose slice had a floor at that moment, in the session that began at since. They
// beat all that is of an earlier era; what came in the session with a higher version stays. The
// floor rises to that of the source. Durable on return. With an error some of them may be there:
// importing again is right. A sealed cut takes them as any other. Errors: Stale for another
// session, and for blocks that are not trusted yet in the branch that this one stands on; Conflict
// for a branch that is not there, or stands on another; Corrupt for bytes that do not match their
// checksum, Invalid, OutOfRange, NotFound, NoSpace, Unavailable.
func (p *Replica) Import(since domain.Epoch, at Link, block uint64, list []Copy,
	floor domain.Version,
) error {
	if err := p.v.inside(block, len(list)); err != nil {
		return err
	}
	for i := range list {
		if err := list[i].check(block + uint64(i)); err != nil {
			return err
		}
	}
	if err := p.joins(sliceOf(block), since); err != nil {
		return err
	}
	p.SetFloor(sliceOf(block), floor)
	l := p.v.lane(block)
	l.mu.Lock()
	last, err := p.take(l, since, at, block, list, floor)
	l.mu.Unlock()
	l.work.Signal()
	if err != nil || last == 0 {
		return err
	}
	return l.reach(last)
}

func (c *Copy) check(block uint64) error {
	switch {
	case c.Kind == segment.KindZero || c.Kind == segment.KindUnmap:
	case c.Kind != segment.KindData || len(c.Data) != segment.BlockSize || c.Version.Seq == 0:
		return domain.Errorf(domain.Invalid, "block %d: a copy of kind %d, version %s, %d bytes", block,
			c.Kind, c.Version, len(c.Data))
	case segment.Checksum(c.Data) != c.CRC:
		return domain.Errorf(domain.Corrupt, "block %d does not match its checksum", block)
	}
	return nil
}

// take puts copies into the log, those of one kind and version together, and gives the last LSN; 0
// where none was needed. The lane's mutex is held, but not while it waits for room.
func (p *Replica) take(l *lane, since domain.Epoch, at Link, block uint64, list []Copy,
	floor domain.Version,
) (last uint64, err error) {
	for i := 0; i < len(list); {
		if err := l.dead(); err != nil {
			return last, err
		}
		if p.rep.gone || p.v.gone.Load() {
			return last, p.v.missing()
		}
		if waited, err := p.anchor(l); err != nil {
			return last, err
		} else if waited {
			continue
		}
		if err := p.joins(sliceOf(block), since); err != nil {
			return last, err
		}
		br, err := p.next(l, at, block+uint64(i), len(list)-i)
		if err != nil {
			return last, err
		}
		n := 1
		for i+n < len(list) && n < p.v.e.RecordBlocks() && list[i].follows(&list[i+n]) {
			n++
		}
		size := 0
		if list[i].Kind == segment.KindData {
			size = n * segment.BlockSize
		}
		if !l.roomy(size, 0) {
			continue
		}
		done, h := p.choose(l, br, block+uint64(i), list[i:i+n], floor)
		if p.rep.mark(block+uint64(i), done) && (h == nil || h.Count < done) {
			l.logMark(p.rep, block+uint64(i), done, nil)
			last = l.mu.lsn
		}
		if h != nil {
			if last, err = p.place(l, h, list[i+done-h.Count:][:h.Count]); err != nil {
				return last, err
			}
		}
		p.trust(l, br, block+uint64(i), done)
		i += done
	}
	return last, nil
}

// anchor sees to it that all cuts which were dropped are so in a checkpoint, and tells whether it
// had to. Else a crash would drop one once more, behind what a session logged of the branch that it
// went into: what this was to have no more would be there again. The lane's mutex is held, but not
// while a checkpoint is taken.
func (p *Replica) anchor(l *lane) (waited bool, err error) {
	n := p.rep.absorbed
	if n == p.rep.anchored.Load() {
		return false, nil
	}
	l.mu.Unlock()
	if err = p.v.e.Checkpoint(); err == nil {
		p.rep.anchored.Store(n)
	}
	l.mu.Lock()
	return true, err
}

// next gives the branch that a link names if it is the turn of its blocks: those of the branch that
// it stands on are trusted. The lane's mutex is held.
func (p *Replica) next(l *lane, at Link, block uint64, count int) (*branch, error) {
	br, err := p.link(at)
	if err != nil || br.parent == nil {
		return br, err
	}
	for b := block; b < block+uint64(count); b++ {
		if !p.rep.lanes[l.no].trusts(br.parent, b) {
			return nil, p.stale(sliceOf(b),
				fmt.Sprintf("block %d of generation %d is not trusted yet", b, at.Under))
		}
	}
	return br, nil
}

// follows tells whether a copy goes with one before it.
func (c *Copy) follows(o *Copy) bool {
	return c.Kind == o.Kind && c.Parent == o.Parent && c.Version == o.Version && c.Gen == o.Gen
}

// choose gives the first of some copies, neighbours of one record, that change something, as one,
// and how many blocks it has looked at up to its end. The lane's mutex is held.
func (p *Replica) choose(l *lane, br *branch, block uint64, list []Copy, floor domain.Version,
) (done int, h *heldRecord) {
	rl, c := &p.rep.lanes[l.no], &list[0]
	s := p.rep.slice(sliceOf(block))
	ver := c.Version
	if c.Kind != segment.KindData && ver.Compare(floor) < 0 {
		ver = floor
	}
	lf := p.rep.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].of(br)
	for ; done < len(list); done++ {
		b := block + uint64(done)
		hs := rl.of(br)[b]
		stays := hs.beats(ver, s.Era) || ver.Compare(s.Floor) <= 0 && rl.trusts(br, b)
		below := br.parent != nil && (c.Parent || rl.outdone(br, b, ver, s.Era))
		if h != nil && below != h.displaces() {
			return done, h
		}
		if !stays && (below || c.Kind == segment.KindUnmap) && hs == (holders{}) &&
			(below || br.parent == nil && ver.Compare(s.Floor) <= 0) &&
			(lf == nil || lf.own.get(int(b%segment.LeafBlocks)) == 0) {
			stays = true // nothing is there, and nothing is on its way
			p.rep.raiseGen(sliceOf(b), c.Gen)
		}
		switch {
		case stays && h == nil:
		case stays:
			return done, h
		case h == nil:
			h = &heldRecord{copied: true, br: br, HeldRecord: segment.HeldRecord{
				Branch: br.id, Block: b, Count: 1, Kind: c.Kind, Version: ver, Gen: c.Gen, Era: s.Era,
			}}
			if below { // never of the oldest: it may stand on one that is dropped, again, behind a crash
				h.Kind, h.flags = segment.KindUnmap, segment.FlagParent
			}
			h.exact = ver.Compare(s.Floor) > 0 && !h.displaces()
		default:
			h.Count++
		}
	}
	return done, h
}

// outdone tells whether something came in the session into a branch older than one that is above
// the version of its copy. The version of a hole or of zeros that are on their way may be a bound.
func (rl *replicaLane) outdone(br *branch, block uint64, ver domain.Version, era uint16) bool {
	for b, m := range rl.cuts {
		hs := m[block]
		if hs.newest != nil && hs.newest.bound() {
			hs.newest = nil
		}
		if b.gen < br.gen && hs.beats(ver, era) {
			return true
		}
	}
	return false
}

// place puts chosen copies into the open chunk; the lane's mutex is held.
func (p *Replica) place(l *lane, h *heldRecord, list []Copy) (lsn uint64, err error) {
	r := &Record{
		Kind: h.Kind, kind: h.Kind, Block: h.Block, Count: h.Count, Version: h.Version, Gen: h.Gen,
		To: nobody{},
	}
	for i := 0; h.Kind == segment.KindData && i < len(list); i++ {
		r.Data = append(r.Data, list[i].Data...)
		r.crc[i] = list[i].CRC
	}
	rl := &p.rep.lanes[l.no]
	newly := l.heldBytes(h.br, r)
	if !p.v.e.space.admit(newly) {
		return 0, p.v.e.full()
	}
	for i := range uint64(h.Count) {
		hs := rl.of(h.br)[h.Block+i]
		hs.newest = newer(hs.newest, h)
		rl.keep(h.br, h.Block+i, hs)
	}
	p.rep.arrived(l, h)
	l.addHeld(h.br, r, h, newly)
	return l.mu.lsn, nil
}

// arrived notes what the copies of blocks say of their extent and slice; the lane's mutex is held.
func (rep *replica) arrived(l *lane, h *heldRecord) {
	rep.lanes[l.no].top(rep.e.space, uint32(h.Block/segment.LeafBlocks), h.Version)
	if !h.exact {
		rep.raiseGen(sliceOf(h.Block), h.Gen)
	}
}

// trust lets blocks of a branch be trusted; the lane's mutex is held.
func (p *Replica) trust(l *lane, br *branch, block uint64, count int) {
	for i := range uint64(count) {
		p.rep.lanes[l.no].rely(br, block+i)
	}
}

// nobody is told nothing.
type nobody struct{}

// Appended implements Appender.
func (nobody) Appended(*Record, error) {}

// Same says, in the session that began at since, that the source has the same as this member in
// some of the segment.SameBlocks blocks of a branch from block, a multiple of that, on: those whose
// bits are set. It gives the bits of those that are trusted on return, durably. The others have to
// be imported: holes and zeros, which are nowhere the same, what is as the parent, blocks of which
// a record is held, for it may have come after the versions were compared, and those of which one
// is on its way into an older branch. Errors: those of Import, but for copies.
func (p *Replica) Same(since domain.Epoch, at Link, block, blocks uint64,
) (trusted uint64, err error) {
	if block%segment.SameBlocks != 0 {
		return 0, domain.Errorf(domain.Invalid, "block %d begins no range of 256 KiB", block)
	}
	if err := p.v.inside(block, segment.SameBlocks); err != nil {
		return 0, err
	}
	w, l := make(branchWait, 1), p.v.lane(block)
	l.mu.Lock()
	for waited := true; waited && err == nil; {
		if err = l.roomForNote(); err == nil {
			waited, err = p.anchor(l)
		}
	}
	if err != nil {
		l.mu.Unlock()
		return 0, err
	}
	var br *branch
	if err = p.joins(sliceOf(block), since); err == nil {
		br, err = p.link(at)
	}
	if err != nil {
		l.mu.Unlock()
		return 0, err
	}
	trusted, fresh := p.alike(l, br, block, blocks)
	if fresh == 0 {
		l.mu.Unlock()
		return trusted, nil
	}
	en := p.rep.note(sliceOf(block), segment.KindSame, domain.Version{})
	en.Branch, en.Block, en.Era = br.id, block, p.rep.slice(sliceOf(block)).Era
	en.SetSame(fresh)
	l.confirm(p.rep, br, block, fresh, en.Era)
	l.addNote(&en, w)
	l.mu.Unlock()
	l.work.Signal()
	return trusted | fresh, <-w
}

// alike tells which of some blocks of a branch are trusted, and trusts those that are what they
// were when their versions were compared. The lane's mutex is held.
func (p *Replica) alike(l *lane, br *branch, block, blocks uint64) (trusted, fresh uint64) {
	rl := &p.rep.lanes[l.no]
	lf := p.rep.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].of(br)
	for i := range uint64(segment.SameBlocks) {
		b := block + i
		switch {
		case blocks>>i&1 == 0:
		case rl.trusts(br, b):
			trusted |= 1 << i
		case lf == nil || lf.own.get(int(b%segment.LeafBlocks)).Kind() != segment.Flash:
		case rl.of(br)[b].newest != nil || rl.coming(br, b):
		default:
			fresh |= 1 << i
			rl.rely(br, b)
		}
	}
	return trusted, fresh
}

// coming tells whether something is on its way to a block of a branch older than one: it may take
// away what is there. The lane's mutex is held.
func (rl *replicaLane) coming(br *branch, block uint64) bool {
	for b, m := range rl.cuts {
		if h := m[block].newest; b.gen < br.gen && h != nil && !h.durable {
			return true
		}
	}
	return false
}

// confirm lets versions that are known of blocks of a branch be of an era: they are the same as the
// source's. The lane's mutex is held.
func (l *lane) confirm(rep *replica, br *branch, block, blocks uint64, era uint16) {
	rl := &rep.lanes[l.no]
	for i := range uint64(segment.SameBlocks) {
		k := rl.of(br)[block+i].known
		if blocks>>i&1 != 0 && k != nil && k.era < era {
			rl.note(rep.e.space, br, block+i, &known{k.ver, k.gen, era})
		}
	}
}

// Unchanged says, in the session that began at since, that the source has changed nothing in
// count blocks of a branch from block on, inside one extent, since this member had all of it:
// they are trusted as they are, holes too. Conflict, and nothing is trusted, where this member may
// have changed something, in this branch or by a record in an older one, in the grain of 64 KiB
// around a block that is not trusted: there the versions have to be compared; Dirty tells, by the
// number of this member. More errors: those of Import.
func (p *Replica) Unchanged(since domain.Epoch, at Link, block uint64, count int) error {
	if err := p.v.inside(block, count); err != nil {
		return err
	}
	l := p.v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := p.joins(sliceOf(block), since); err != nil {
		return err
	}
	br, err := p.next(l, at, block, count)
	if err != nil {
		return err
	}
	rl := &p.rep.lanes[l.no]
	for b := block; b < block+uint64(count); b++ {
		if p.rep.doubted(b) && !rl.trusts(br, b) {
			return domain.Errorf(domain.Conflict, "block %d may be of a record that the source lacks", b)
		}
	}
	p.trust(l, br, block, count)
	return nil
}
