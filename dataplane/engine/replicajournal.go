package engine

import (
	"weft/dataplane/segment"
	"weft/domain"
)

// How records of replicas go through the journal. One is put into its lane's open slot with all
// that it was accepted with, its outcome among it, and is in the table and in the index when Append
// returns; its address is one of the journal. Replay obeys that outcome.
//
// There are two ways then, the slot and the log, and one order: a slice's records in a lane.
//
//	to the log    when the journal holds nothing of the slice in that lane any more
//	to a slot     when all that the slice has in the lane's log is durable and in the index
//
// So behind a crash what the journal holds of a slice is later than all that did not come from
// there, and is replayed on top, and what it was decided by is there. To the log goes what is rare
// and needs entries side by side, or notes of the log in their place: records and copies of a join
// session, and records that come late to a cut, which may take something out of later branches;
// behind one of these the slice stays with the log until the cuts are sealed. BeginEra empties the
// journal of the slice before it logs the new era. All else that is noted in the log, seals,
// floors, burials, who is away, needs no order with records.
//
// What is in the journal is held, settled or not: a block there has its version from its record.
// No checkpoint has it in its table, for it is found again, in the journal or behind the mark.
// Destaging takes the records of a batch in the order in which they were accepted, each whole,
// whatever was overwritten of it; so replay passes the same states once more. Of a record of data
// that is settled, by a floor that a crash does not forget, it takes what shows, sorted, behind
// those: as copies, whose versions are told by their entries. Not while a member is away from the
// slice, for what that may lack is told by the log.

// addr gives the address of a block in the journal, as records have it.
func (n *nvram) addr(place uint32) uint64 {
	return (uint64(n.base) + uint64(place)) * segment.BlockUnits
}

// placeAt gives a place in the journal from an address there.
func (n *nvram) placeAt(addr uint64) uint32 { return uint32(addr/segment.BlockUnits) - n.base }

// has tells whether an address of a record is one in the journal; n may be nil.
func (n *nvram) has(addr uint64) bool {
	return n != nil && addr/segment.BlockUnits >= uint64(n.base)
}

// keeps tells whether a slot of a lane up to a sequence is not free.
func (n *nvram) keeps(lane uint8, sequence uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, sl := range n.mu.queue {
		if sl.Sequence > sequence {
			break
		}
		if sl.Lane == lane {
			return true
		}
	}
	return false
}

// demand lets all slots up to a sequence be destaged whatever the fill.
func (n *nvram) demand(sequence uint64) {
	n.mu.Lock()
	n.mu.want = max(n.mu.want, sequence)
	n.mu.Unlock()
	n.kick()
}

// journals tells whether a record of a branch and slice goes into the journal; the lane's mutex is
// held.
func (rep *replica) journals(l *lane, home *branch, no uint32) bool {
	if l.e.nv == nil {
		return false
	}
	rl := &rep.lanes[l.no]
	switch s, ss := rep.status(no); {
	case s.Open || ss != (session{}):
		return false
	case home != rl.head:
		rl.late[no] = true // else the slice would go to and fro, and wait each time
		return false
	case rl.late[no]:
		if n := len(rep.line); n > 1 && !rep.line[n-2].sealed {
			return false
		}
		delete(rl.late, no)
	}
	return true
}

// ready tells whether a record may be put into the lane's open slot: that has the room, and what
// the slice has in the log is in the index; if not, it has waited a while. The lane's mutex is
// held, but not while it waits.
func (l *lane) ready(rep *replica, r *Record) bool {
	blocks, entry := 0, journalEntry+segment.MaskMax
	if r.kind == segment.KindData {
		blocks, entry = r.Count, entry+4*(r.Count-1)
	}
	if rep.lanes[l.no].logged[sliceOf(r.Block)] > l.mu.applied || !l.slotOf(entry, blocks) {
		l.room.Wait()
		return false
	}
	return true
}

// drained tells whether the journal holds nothing of a slice in a lane; if not, it has seen to
// that, and waited a while. The lane's mutex is held, but not while it waits.
func (l *lane) drained(rep *replica, no uint32) bool {
	n, rl := l.e.nv, &rep.lanes[l.no]
	sequence, ok := rl.slots[no]
	if n == nil || !ok {
		return true
	}
	if !n.keeps(l.no, sequence) {
		delete(rl.slots, no)
		return true
	}
	if l.mu.slot != nil && l.mu.slot.Sequence <= sequence {
		n.sealSlot(l)
	}
	n.demand(sequence)
	l.room.Wait()
	return false
}

// drain waits until the journal holds nothing of a slice; nobody writes to it meanwhile.
func (rep *replica) drain(no uint32) error {
	for _, l := range rep.e.lanes {
		l.mu.Lock()
		err := l.dead()
		for err == nil && !l.drained(rep, no) {
			err = l.dead()
		}
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// putHeld stores a record whose outcome is decided in the lane's open slot, which takes it, and
// lets it into the index. The lane's mutex is held.
func (l *lane) putHeld(b *branch, r *Record, h *heldRecord, newly int64) {
	n, rl := l.e.nv, &b.fam.replica.lanes[l.no]
	en, p := heldEntry(b, r, h), pending{br: b, held: h}
	var data []byte
	if r.kind == segment.KindData {
		data = r.Data[:r.Count*segment.BlockSize]
	}
	place := n.share.Put(&l.mu.slot.Slot, &en, &r.Kept, r.crc[1:], data, nil)
	h.sits(l.mu.slot)
	rl.slots[sliceOf(h.Block)] = l.mu.slot.Sequence
	l.enter(&p, n.addr(place), r.crc[:])
	if newly != 0 {
		l.e.space.admitted.Add(-newly)
	}
	l.e.stats.records.Add(1)
	l.e.stats.userBytes.Add(int64(r.Count) * segment.BlockSize)
}

// sits notes in which slot a record is; nil: in none any more. Its lane's mutex is held.
func (h *heldRecord) sits(sl *nvSlot) {
	if h.slot != nil {
		h.slot.held.Add(-1)
	}
	if h.slot = sl; sl != nil {
		sl.held.Add(1)
	}
}

// redoHeld enters a record of a replica that the journal holds.
func (n *nvram) redoHeld(l *lane, b *branch, sl *nvSlot, en *segment.Entry, raw []byte,
	place uint32,
) {
	rep := b.fam.replica
	if rep.gone {
		return
	}
	h := heldFrom(en, raw, b)
	rl := &rep.lanes[l.no]
	h.sits(sl)
	rl.slots[sliceOf(en.Block)] = sl.Sequence
	var crcs [segment.RecordBlocks]uint32
	h.Sum = rl.sums(en, raw, &crcs)
	markGrains(rep.touched.of(en.Block), en.Block, en.Len())
	rep.insert(l, h)
	rep.surface(l, h)
	l.enter(&pending{br: b, held: h}, n.addr(place), crcs[:])
}

// fetchHeld copies a record's blocks from the journal; false where they are not there any more. The
// lane's mutex is held.
func (n *nvram) fetchHeld(rl *replicaLane, h *segment.HeldRecord, dst []byte) bool {
	now := rl.held[heldKey{sliceOf(h.Block), h.Version}]
	if now == nil || now.Addr != h.Addr {
		return false
	}
	copy(dst, n.share.At(n.placeAt(h.Addr), h.Count))
	return true
}

// ended tells whether a record in the journal need not be kept as one any more, whatever a crash
// forgets. No session is under way, for then the journal holds nothing of its slice. The lane's
// mutex is held.
func (rep *replica) ended(h *heldRecord) bool {
	no := sliceOf(h.Block)
	return h.Version.Compare(rep.lasting(no)) <= 0 && rep.e.requests.retired(h.Request) &&
		len(rep.missing(no)) == 0
}

// lasting gives the floor of a slice that a crash does not forget.
func (rep *replica) lasting(no uint32) domain.Version {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.mu.lasting[no]
}

// lasts notes that the floors of some entries are durable.
func (rep *replica) lasts(notes []segment.Entry) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	for i := range notes {
		no := sliceOf(notes[i].Block)
		if rep.mu.lasting[no].Compare(notes[i].Version) < 0 {
			rep.mu.lasting[no] = notes[i].Version
		}
	}
}

// collectHeld lists what is to be destaged of a replica's record; the lane's mutex is held.
func (n *nvram) collectHeld(b *branch, sl *nvSlot, en *segment.Entry, f *found) {
	rep := b.fam.replica
	if rep.gone {
		if en.Kind == segment.KindData { // what was not swept yet is dropped
			n.collectData(nil, b, f, en.Block)
		}
		return
	}
	h := rep.lanes[f.l.no].held[heldKey{sliceOf(en.Block), en.Version}]
	if h != nil && (h.slot != sl || en.Kind == segment.KindData && h.Addr != n.addr(f.place)) {
		h = nil
	}
	if en.Kind == segment.KindData && (h == nil || rep.ended(h)) {
		n.collectData(nil, b, f, en.Block)
		if h != nil {
			n.batch.ended = append(n.batch.ended, h)
		}
		return
	}
	m := settle{
		l: f.l, br: b, id: b.id, kind: en.Kind, block: en.Block, count: en.Len(), place: f.place,
		crc: len(n.batch.crcs), entry: f.raw, whole: true, held: h,
	}
	if en.Kind == segment.KindData {
		for i := range en.Count {
			n.batch.crcs = append(n.batch.crcs, en.Further(f.raw, i))
		}
	}
	n.batch.moves = append(n.batch.moves, m)
}

// whole is log for a record of a replica as it was accepted. Where a block of it went bad in the
// journal it is a record no more: what it wrote goes block by block, and that one is lost.
func (n *nvram) whole(m *settle) error {
	bytes := 0
	if m.kind == segment.KindData {
		bytes = m.count * segment.BlockSize
	}
	if b := &n.batch; b.out != nil && !b.out.takesHeld(bytes, 0, n.e.payloadMax()) {
		n.handOver(m.l)
	}
	c := n.chunkOf(m, bytes)
	if bytes > 0 {
		p := c.buf[segment.HeaderMax+c.payload:]
		if n.copyOut(p, m) < m.count {
			return n.broken(*m)
		}
	}
	return n.recordWhole(c, m)
}

// recordWhole adds a record to a chunk that has its data.
func (n *nvram) recordWhole(c *chunk, m *settle) error {
	var en segment.Entry
	if _, err := segment.DecodeEntry(m.entry, 0, &en); err != nil {
		return err
	}
	p := pending{
		br: m.br, kind: m.kind, block: m.block, count: m.count, unit: uint32(c.payload / segment.Unit),
		crc: len(c.crcs), held: m.held, whole: true, size: en.Size(),
	}
	var mask segment.Mask
	var further []uint32
	en.MaskOf(m.entry, &mask)
	en.Branch = m.id
	if m.kind == segment.KindData {
		crcs := n.batch.crcs[m.crc : m.crc+m.count]
		p.from, en.Off, further = m.place, p.unit, crcs[1:]
		c.payload += m.count * segment.BlockSize
		c.crcs, c.was = append(c.crcs, crcs...), append(c.was, crcs...)
	}
	at := len(c.entries)
	c.encode(&en, further)
	en.PutMask(c.entries[at:], &mask)
	c.recs = append(c.recs, p)
	return nil
}

// broken takes what is sound of a record that is not.
func (n *nvram) broken(m settle) error {
	var en segment.Entry
	if _, err := segment.DecodeEntry(m.entry, 0, &en); err != nil {
		return err
	}
	if h := m.held; h != nil {
		rep := m.br.fam.replica
		m.l.mu.Lock()
		if rep.lanes[m.l.no].held[h.key()] == h {
			m.l.letGo(rep, h)
		}
		m.l.mu.Unlock()
	}
	m.whole, m.held = false, nil
	m.version, m.gen, m.era = en.Version, en.Gen, en.Era
	for i := range m.count {
		sound := segment.Checksum(n.share.At(m.place+uint32(i), 1)) == n.batch.crcs[m.crc+i]
		switch kept := en.Kept(m.entry, i); {
		case kept && !sound:
			n.spoiled(m.br, m.block+uint64(i))
		case kept:
		case !sound:
			n.lose(&m, i)
		default:
			one := m.part(i, i+1)
			n.plain(&one)
		}
	}
	return nil
}

// destaged lets a record that was destaged whole stand in the log; mu is held. It takes and gives a
// leaf as exchangeNear does.
func (l *lane) destaged(near *leaf, p *pending, base uint64, c *chunk) *leaf {
	if p.kind == segment.KindData {
		near = l.settleData(near, p, base, c.crcs[p.crc:p.crc+p.count], c.was[p.crc:p.crc+p.count])
	}
	h, rl := p.held, &p.br.fam.replica.lanes[l.no]
	if h == nil || rl.held[h.key()] != h {
		return near // let go meanwhile, with its slice
	}
	l.resettle(h, base+uint64(p.unit))
	h.LSN, rl.fresh = p.lsn, true
	return near
}

// resettle lets a held record stand at another address, of the device; mu is held.
func (l *lane) resettle(h *heldRecord, addr uint64) {
	rl := &h.br.fam.replica.lanes[l.no]
	for i := range h.Count {
		if rl.seat(h, i).top != h {
			l.spare(h, i, -1)
		}
	}
	if h.sits(nil); h.Kind == segment.KindData {
		h.Addr = addr
	}
	for i := range h.Count {
		if rl.seat(h, i).top != h {
			l.spare(h, i, 1)
		}
	}
}

// letEnd lets go of the records of a batch of which only what showed was destaged.
func (n *nvram) letEnd(ended []*heldRecord) {
	for _, h := range ended {
		rep := h.br.fam.replica
		l := n.e.laneOf(rep.fam, uint32(h.Block/segment.LeafBlocks))
		l.mu.Lock()
		if rep.lanes[l.no].held[h.key()] == h {
			l.letGo(rep, h)
		}
		l.mu.Unlock()
	}
}
