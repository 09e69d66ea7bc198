package engine

import (
	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// How a copy is filled from another one: Export there, Import and Same here, inside a join session.
//
//	C10  What is imported is what the source had, whatever was here; what came here in the session
//	     with a higher version stays.
//
// A hole and a block of zeros stand nowhere, so once their record is settled they have no version.
// They are of the floor that the source had at the same moment: at or below it nothing is missing
// there.

// Copy is one block on its way from one member to another.
type Copy struct {
	Kind   segment.Kind // KindData, KindZero, or KindUnmap for a hole
	Parent bool         // of a hole: nothing was written there, so the branch below answers
	// Version is exact. That of a hole or of zeros is known only while a record of them is held; if
	// it is zero, it is at or below the source's floor.
	Version domain.Version
	Gen     uint32
	CRC     uint32 // KindData: CRC-32C of Data
	Data    []byte // KindData: one block
}

// Export gives what a replica has in count blocks from block on, inside one extent, all as it was
// at one moment, and the slice's floor at that moment. Whether it is committed is the caller's to
// know, before and after. Errors: those of Versions.
func (p *Replica) Export(block uint64, count int) ([]Copy, domain.Version, error) {
	if err := p.v.inside(block, count); err != nil {
		return nil, domain.Version{}, err
	}
	s := &versionSearch{p: p, found: make([]BlockVersion, count), block: block}
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

// Import takes copies of neighbouring blocks from block on, inside one extent, of another member
// whose slice had a floor at that moment, in the session that began at since. They beat all that is
// of an earlier era; what came in the session with a higher version stays. The floor rises to that
// of the source. Durable on return. With an error some of them may be there: importing again is
// right. Errors: Stale for another session, Corrupt for bytes that do not match their checksum,
// Invalid, OutOfRange, NotFound, NoSpace, Unavailable.
func (p *Replica) Import(since domain.Epoch, block uint64, list []Copy, floor domain.Version,
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
	last, err := p.take(l, since, block, list, floor)
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
func (p *Replica) take(l *lane, since domain.Epoch, block uint64, list []Copy, floor domain.Version,
) (last uint64, err error) {
	for i := 0; i < len(list); {
		if err := l.dead(); err != nil {
			return last, err
		}
		if p.rep.gone || p.v.gone.Load() {
			return last, p.v.missing()
		}
		if err := p.joins(sliceOf(block), since); err != nil {
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
		done, h := p.choose(l, block+uint64(i), list[i:i+n], floor)
		if p.rep.mark(block+uint64(i), done) && (h == nil || h.Count < done) {
			l.logMark(p.rep, block+uint64(i), done, nil)
			last = l.mu.lsn
		}
		if h != nil {
			if last, err = p.place(l, h, list[i+done-h.Count:][:h.Count]); err != nil {
				return last, err
			}
		}
		p.trust(l, block+uint64(i), done)
		i += done
	}
	return last, nil
}

// follows tells whether a copy goes with one before it.
func (c *Copy) follows(o *Copy) bool {
	return c.Kind == o.Kind && c.Parent == o.Parent && c.Version == o.Version && c.Gen == o.Gen
}

// choose gives the first of some copies, neighbours of one record, that change something, as one,
// and how many blocks it has looked at up to its end. The lane's mutex is held.
func (p *Replica) choose(l *lane, block uint64, list []Copy, floor domain.Version,
) (done int, h *heldRecord) {
	rl, c := &p.rep.lanes[l.no], &list[0]
	s := p.rep.slice(sliceOf(block))
	ver := c.Version
	if c.Kind != segment.KindData && ver.Compare(floor) < 0 {
		ver = floor
	}
	lf := p.rep.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].of(rl.head)
	for ; done < len(list); done++ {
		b := block + uint64(done)
		hs := rl.blocks[b]
		stays := hs.beats(ver, s.Era) || ver.Compare(s.Floor) <= 0 && rl.trusts(b)
		if !stays && c.Kind == segment.KindUnmap && hs == (holders{}) && ver.Compare(s.Floor) <= 0 &&
			(lf == nil || lf.own.get(int(b%segment.LeafBlocks)) == 0) {
			stays = true // nothing is there, and nothing is on its way
			p.rep.raiseGen(sliceOf(b), c.Gen)
		}
		switch {
		case stays && h == nil:
		case stays:
			return done, h
		case h == nil:
			h = &heldRecord{copied: true, br: rl.head, HeldRecord: segment.HeldRecord{
				Branch: rl.head.id, Block: b, Count: 1, Kind: c.Kind, Version: ver, Gen: c.Gen, Era: s.Era,
			}}
			if c.Parent {
				h.flags = segment.FlagParent
			}
			h.exact = ver.Compare(s.Floor) > 0
		default:
			h.Count++
		}
	}
	return done, h
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
		hs := rl.blocks[h.Block+i]
		hs.newest = h
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

// trust lets blocks be trusted; the lane's mutex is held.
func (p *Replica) trust(l *lane, block uint64, count int) {
	for i := range uint64(count) {
		p.rep.lanes[l.no].rely(block + i)
	}
}

// nobody is told nothing.
type nobody struct{}

// Appended implements Appender.
func (nobody) Appended(*Record, error) {}

// Same says, in the session that began at since, that the source has the same as this member in
// some of the segment.SameBlocks blocks from block, a multiple of that, on: those whose bits are
// set. It gives the bits of those that are trusted on return, durably. The others have to be
// imported: holes and zeros, which are nowhere the same, and blocks of which a record is held, for
// it may have come after the versions were compared. Errors: Stale for another session, Invalid,
// OutOfRange, NotFound, Unavailable.
func (p *Replica) Same(since domain.Epoch, block, blocks uint64) (trusted uint64, err error) {
	if block%segment.SameBlocks != 0 {
		return 0, domain.Errorf(domain.Invalid, "block %d begins no range of 256 KiB", block)
	}
	if err := p.v.inside(block, segment.SameBlocks); err != nil {
		return 0, err
	}
	w, l := make(branchWait, 1), p.v.lane(block)
	l.mu.Lock()
	if err := l.roomForNote(); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	if err := p.joins(sliceOf(block), since); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	fresh := uint64(0)
	rl := &p.rep.lanes[l.no]
	lf := p.rep.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].of(rl.head)
	for i := range uint64(segment.SameBlocks) {
		b := block + i
		switch {
		case blocks>>i&1 == 0:
		case rl.trusts(b):
			trusted |= 1 << i
		case lf == nil || lf.own.get(int(b%segment.LeafBlocks)).Kind() != segment.Flash:
		case rl.blocks[b].newest != nil:
		default:
			fresh |= 1 << i
			rl.rely(b)
		}
	}
	if fresh == 0 {
		l.mu.Unlock()
		return trusted, nil
	}
	en := p.rep.note(sliceOf(block), segment.KindSame, domain.Version{})
	en.Block, en.Era = block, p.rep.slice(sliceOf(block)).Era
	en.SetSame(fresh)
	l.confirm(p.rep, block, fresh, en.Era)
	l.addNote(&en, w)
	l.mu.Unlock()
	l.work.Signal()
	return trusted | fresh, <-w
}

// confirm lets versions that are known of blocks be of an era: they are the same as the source's.
// The lane's mutex is held.
func (l *lane) confirm(rep *replica, block, blocks uint64, era uint16) {
	rl := &rep.lanes[l.no]
	for i := range uint64(segment.SameBlocks) {
		k := rl.blocks[block+i].known
		if blocks>>i&1 != 0 && k != nil && k.era < era {
			rl.note(rep.e.space, rl.head, block+i, &known{k.ver, k.gen, era})
		}
	}
}

// Unchanged says, in the session that began at since, that the source has changed nothing in count
// blocks from block on, inside one extent, since this member had all of it: they are trusted as
// they are, holes too. Conflict, and nothing is trusted, where this member has or had records above
// the floor in the range: there the versions have to be compared.
func (p *Replica) Unchanged(since domain.Epoch, block uint64, count int) error {
	if err := p.v.inside(block, count); err != nil {
		return err
	}
	l := p.v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := p.joins(sliceOf(block), since); err != nil {
		return err
	}
	rl := &p.rep.lanes[l.no]
	floor := p.Floor(sliceOf(block))
	for i := range uint64(count) {
		hs := rl.blocks[block+i]
		above := hs.newest != nil || hs.known != nil && hs.known.ver.Compare(floor) > 0
		if above && !rl.trusts(block+i) {
			return domain.Errorf(domain.Conflict, "block %d may be of a record that the source lacks",
				block+i)
		}
	}
	p.trust(l, block, count)
	return nil
}
