package engine

import (
	"slices"
	"time"

	"weft/dataplane/checksum"
	"weft/dataplane/compress"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// batch is what the destager works on; its lists are kept for the next.
type batch struct {
	slots []*nvSlot
	found []found
	moves []settle
	order []rank // of what was found, then of the moves, as they are logged
	crcs  []uint32
	last  [segment.LanesMax]uint64 // LSN that each lane gave last; 0: none
	ended []*heldRecord            // of replicas, of which only what shows is destaged
	out   *chunk                   // gathers what goes to one lane; kept empty between batches

	group  []sent // chunks that no flush has made durable yet, in the order of each lane
	faults uint64 // of the engine, when the group began
	turn   bool   // the group has its turn on the device
	asked  bool   // somebody waits for the batch whatever the fill
	rested time.Duration

	squeezer squeezer
	pad      pad
}

// sent is a chunk that a lane writes for the destager, who tells its outcome.
type sent struct {
	l *lane
	c *chunk
}

// A group is chunks of the destager that one flush makes durable. Its segments stay unsealed until
// then, out of the cleaner's reach, so it is a small part of a small device.
const (
	groupMax  = 16 // chunks
	groupMin  = 2
	groupPart = 32 // of a device
)

// groupSize gives the most chunks of a group.
func (e *Engine) groupSize() int {
	n := e.space.capacity / groupPart / int64(e.payloadMax())
	return int(min(max(n, groupMin), groupMax))
}

// settle is one record that goes from the journal to the log: blocks of one record of a host that
// are still current, or a range of them.
type settle struct {
	l     *lane
	br    *branch // that holds the blocks
	id    uint32  // its number when it was looked up: older branches have lower ones
	kind  segment.Kind
	block uint64
	count int
	place uint32 // DATA: of the first block, in the journal
	crc   int    // DATA: of the first block, in the batch
	life  *life  // DATA: of the slot
	entry []byte // DATA: in the journal; it stays until the slot is free
	first int    // DATA: which block of that it begins with

	version domain.Version
	gen     uint32
	era     uint16
	whole   bool        // a record of a replica, as it was accepted
	held    *heldRecord // that
}

// found is a record of a slot, of which is not known yet what is still current.
type found struct {
	l       *lane
	br      *branch // that it was written to
	life    *life   // of the slot
	raw     []byte  // the entry, in the journal
	place   uint32  // DATA: of the first block
	kind    segment.Kind
	count   int    // DATA: blocks
	blocks  uint64 // of the others
	version domain.Version
	gen     uint32
	era     uint16
}

// rank is the place of a record, or of a move, in the order of the index. It is apart from them,
// which are too large to be swapped about while sorting.
type rank struct {
	line  uint64 // lane; whole records first; then branch
	block uint64
	at    int32 // in the list of records, or of moves
}

func lineOf(l *lane, branch uint32) uint64 { return uint64(l.no)<<33 | 1<<32 | uint64(branch) }

func compareRanks(x, y rank) int {
	switch {
	case x.line < y.line, x.line == y.line && x.block < y.block:
		return -1
	case x.line == y.line && x.block == y.block:
		return 0
	}
	return 1
}

// sort orders the moves: by lane, parents before their kids, by block; but records of replicas that
// are whole before all else, as they were accepted. A hole is noted only over something, and replay
// comes this way too. A range and data of one branch do not meet: what is current of both is one or
// the other. They are in that order already, but for those of replicas, and of branches that were
// absorbed.
func (b *batch) sort() {
	b.order = b.order[:0]
	for i := range b.moves {
		m := &b.moves[i]
		o := rank{lineOf(m.l, m.id), m.block, int32(i)}
		if m.whole {
			o.line, o.block = uint64(m.l.no)<<33, uint64(i)
		}
		b.order = append(b.order, o)
	}
	if !slices.IsSortedFunc(b.order, compareRanks) {
		slices.SortFunc(b.order, compareRanks)
	}
}

// destage takes batches until the fill is low enough and nobody waits for more.
func (n *nvram) destage() error {
	for !n.e.failed.Load() {
		select {
		case <-n.halt:
			return nil
		default:
		}
		if more, err := n.one(); !more || err != nil {
			return err
		}
	}
	return nil
}

// one destages a batch, if there is one.
func (n *nvram) one() (more bool, err error) {
	n.turn.Lock()
	defer n.turn.Unlock()
	if !n.pick() {
		return false, nil
	}
	n.batch.rested = 0
	began := n.clock.Now()
	if err := n.write(); err != nil {
		return false, err
	}
	took := max(n.clock.Now()-began-n.batch.rested, 0) // where writers wait it does not rest
	size := int64(len(n.batch.slots)) * int64(n.share.SlotBlocks()) * segment.BlockSize
	n.pace.Lock()
	n.pace.state = n.pace.state.Destaged(size, took)
	n.pace.Unlock()
	return true, nil
}

// pick chooses the oldest sealed slots; false when there is nothing to do.
func (n *nvram) pick() bool {
	b := &n.batch
	b.slots = b.slots[:0]
	slot := int64(n.share.SlotBlocks()) * segment.BlockSize
	bytes := tier.Batch(n.fill(), int64(len(n.slots))*slot)
	n.mu.Lock()
	defer n.mu.Unlock()
	b.asked = false
	for _, sl := range n.mu.queue {
		if !sl.Sealed {
			continue
		}
		wanted := sl.Sequence <= n.mu.want && int64(len(b.slots))*slot < tier.BatchMax
		if !wanted && int64(len(b.slots))*slot >= bytes {
			break
		}
		b.slots = append(b.slots, sl)
		b.asked = b.asked || wanted
	}
	return len(b.slots) > 0
}

// urgent tells whether somebody waits for the batch, or writers are slowed down.
func (n *nvram) urgent() bool { return n.batch.asked || n.fill() > tier.FillSlow }

// write brings the batch to the device and frees its slots. An error leaves the engine out of
// service and the journal as it is, for the next Open.
func (n *nvram) write() error {
	b := &n.batch
	b.moves, b.crcs = b.moves[:0], b.crcs[:0]
	b.found, b.order = b.found[:0], b.order[:0]
	clear(b.last[:])
	for _, sl := range b.slots {
		n.collect(sl)
	}
	slices.SortFunc(b.order, compareRanks)
	n.lookUp()
	b.sort()
	err := n.logAll()
	if flushed := n.sync(); err == nil { // whatever happened, who waits for a chunk gets an outcome
		err = flushed
	}
	clear(b.moves)
	if err != nil {
		return err
	}
	for i, l := range n.e.lanes { // a branch's record may be under way before the last chunk
		if err := l.reach(b.last[i]); err != nil {
			return err
		}
	}
	return n.release()
}

// logAll hands all moves to their lanes, in full chunks.
func (n *nvram) logAll() error {
	b := &n.batch
	for i, o := range b.order {
		m := &b.moves[o.at]
		if err := n.log(*m); err != nil {
			return err
		}
		if i+1 == len(b.order) || b.moves[b.order[i+1].at].l != m.l {
			if err := n.handOver(m.l); err != nil {
				return err
			}
		}
	}
	return nil
}

// sync waits for the group's writes, makes them durable by one flush, and lets them into the index.
// If the flush failed, or anything that may have been one since the group began, all of it is
// written once more, durably, in other segments. An error leaves the engine out of service.
func (n *nvram) sync() error {
	b, e := &n.batch, n.e
	for _, s := range b.group {
		s.l.mu.Lock()
		for !s.c.written {
			s.l.room.Wait()
		}
		s.l.mu.Unlock()
	}
	var bad error
	if e.fua && len(b.group) > 0 && !e.failed.Load() {
		bad = e.dev.Flush(background)
		if bad != nil {
			e.faults.Add(1)
			e.report(Fact{What: "write-error", Detail: "flush: " + bad.Error()})
		}
	}
	again := e.fua && (bad != nil || e.faults.Load() != b.faults)
	var failed error
	for _, s := range b.group {
		err := s.c.err
		if err == nil && again && !e.failed.Load() {
			err = s.l.elsewhere(s.c)
		}
		if err != nil {
			e.fail(err)
			failed = err
		}
		s.l.finish(s.c, err)
	}
	clear(b.group)
	b.group = b.group[:0]
	if b.turn {
		b.turn = false
		e.sched.End(qos.Destage)
	}
	if failed == nil && e.failed.Load() {
		failed = domain.Errorf(domain.Unavailable, "device failed")
	}
	return failed
}

// collect lists the records of a slot; those of replicas as moves at once, in the order in which
// they were accepted.
func (n *nvram) collect(sl *nvSlot) {
	b := &n.batch
	var last *branch // looked up for the entry before
	n.share.Each(&sl.Slot, func(en *segment.Entry, raw []byte, place uint32) {
		if last == nil || last.id != en.Branch {
			last = n.e.branch(en.Branch)
		}
		if last == nil {
			return // nobody sees it any more
		}
		l := n.e.laneOf(last.fam, uint32(en.Block/segment.LeafBlocks))
		f := found{
			l: l, br: last, life: sl.life, raw: raw, place: place, kind: en.Kind, count: en.Count,
			blocks: en.Range, version: en.Version, gen: en.Gen, era: en.Era,
		}
		if last.fam.replica == nil {
			b.order = append(b.order, rank{lineOf(l, last.id), en.Block, int32(len(b.found))})
			b.found = append(b.found, f)
			return
		}
		l.mu.Lock()
		if br := last.now(); br != nil {
			n.collectHeld(br, sl, en, &f)
		}
		l.mu.Unlock()
	}, nil)
}

// lookHold is the most records that are looked up under one hold of a lane's mutex.
const lookHold = 32

// lookUp lists as moves what of the found records is still current. Records of a host that wrote,
// say, 100 blocks stay together as far as they are. It goes in the order of the index, so that what
// stands in one leaf is looked up under one hold of the mutex.
func (n *nvram) lookUp() {
	b := &n.batch
	for i := 0; i < len(b.order); {
		o := b.order[i]
		l, ext := b.found[o.at].l, o.block/segment.LeafBlocks
		var near *leaf
		l.mu.Lock()
		for k := 0; k < lookHold && i < len(b.order); k, i = k+1, i+1 {
			r := b.order[i]
			if r.line != o.line || r.block/segment.LeafBlocks != ext {
				break
			}
			f := &b.found[r.at]
			br := f.br.now()
			switch {
			case br == nil:
			case f.kind == segment.KindData:
				near = n.collectData(near, br, f, r.block)
			default:
				n.collectRange(br, f, r.block)
			}
		}
		l.mu.Unlock()
	}
	clear(b.found)
}

// now gives the branch that has absorbed this one, itself where none has, nil when it is gone. A
// lane's mutex is held.
func (b *branch) now() *branch {
	for b.into != nil {
		b = b.into
	}
	if b.gone {
		return nil
	}
	return b
}

// collectData lists the blocks of a record that the index names at this place; the lane's mutex is
// held. It takes and gives a leaf as exchangeNear does.
func (n *nvram) collectData(near *leaf, b *branch, f *found, first uint64) *leaf {
	var run *leaf // that the last move's blocks stand in; nil: the next one begins a move
	l := f.l
	for i := range f.count {
		crc, block := segment.SumOf(f.raw, i), first+uint64(i)
		lf, loc := near, n.loc(f.place+uint32(i), crc)
		if lf == nil || lf.own.get(int(block%segment.LeafBlocks)) != loc {
			if lf = l.holder(b, block, loc); lf == nil {
				run = nil
				continue
			}
			near = lf
		}
		if lf.br.dead() { // the sweep has not come here yet
			l.put(lf, int(block%segment.LeafBlocks), 0)
			l.touch(lf)
			run = nil
			continue
		}
		n.batch.crcs = append(n.batch.crcs, crc)
		if run == lf {
			n.batch.moves[len(n.batch.moves)-1].count++
			continue
		}
		run = lf
		n.batch.moves = append(n.batch.moves, settle{
			l: l, br: lf.br, id: lf.br.id, kind: f.kind, block: block, count: 1,
			place: f.place + uint32(i), crc: len(n.batch.crcs) - 1, life: f.life, entry: f.raw, first: i,
			version: f.version, gen: f.gen, era: f.era,
		})
	}
	return near
}

// holder gives the leaf in which a copy of a block stands that a branch wrote; nil when it stands
// nowhere any more. While a branch without a name is swept, its only kid has taken over some
// extents and not others. The lane's mutex is held.
func (l *lane) holder(b *branch, block uint64, loc segment.Loc) *leaf {
	ext, i := uint32(block/segment.LeafBlocks), int(block%segment.LeafBlocks)
	for b = b.now(); b != nil; b = b.kids[0] {
		if lf := b.fam.leaves[l.no][ext].of(b); lf != nil && lf.own.get(i) == loc {
			return lf
		}
		if b.named() || len(b.kids) != 1 {
			return nil
		}
	}
	return nil
}

// collectRange lists the parts of a range that are still what it made them. What was written since
// is not touched: it may be on the device already, where a later hole would end it. The lane's
// mutex is held.
func (n *nvram) collectRange(b *branch, f *found, first uint64) {
	var run *branch // whose the last move is; nil: the next block begins one
	for i := range f.blocks {
		at, loc := f.l.says(b, first+i)
		current := loc == segment.ZeroLoc
		if f.kind == segment.KindUnmap {
			current = shown(loc) == 0
		}
		switch {
		case !current:
			run = nil
		case run == at:
			n.batch.moves[len(n.batch.moves)-1].count++
		default:
			run = at
			n.batch.moves = append(n.batch.moves, settle{
				l: f.l, br: at, id: at.id, kind: f.kind, block: first + i, count: 1,
				version: f.version, gen: f.gen, era: f.era,
			})
		}
	}
}

// says gives what a branch says of a block itself, and which branch says it now: while one without
// a name is swept, its only kid has taken over some extents and not others. Where nobody says
// anything it is the branch. The lane's mutex is held.
func (l *lane) says(b *branch, block uint64) (*branch, segment.Loc) {
	ext, i := uint32(block/segment.LeafBlocks), int(block%segment.LeafBlocks)
	for k := b; ; k = k.kids[0] {
		if lf := b.fam.leaves[l.no][ext].of(k); lf != nil {
			if loc := lf.own.get(i); loc != 0 {
				return k, loc
			}
		}
		if k.named() || len(k.kids) != 1 {
			return b, 0
		}
	}
}

// spoiled tells of a block of a record whose bytes went bad.
func (n *nvram) spoiled(b *branch, block uint64) {
	n.e.report(Fact{
		What: "corrupt", Volume: n.e.volumeOf(b), Block: block, Detail: "found in the journal",
	})
}

// lose gives a block of a move up, unless it was written meanwhile.
func (n *nvram) lose(m *settle, i int) {
	block := m.block + uint64(i)
	n.spoiled(m.br, block)
	m.l.mu.Lock()
	defer m.l.mu.Unlock()
	from := n.loc(m.place+uint32(i), n.batch.crcs[m.crc+i])
	m.l.exchange(m.br, block, from, segment.LostLoc)
}

// exchange points one block to another place if it still stands where it was thought to; the lane's
// mutex is held.
func (l *lane) exchange(b *branch, block uint64, from, to segment.Loc) {
	l.exchangeNear(nil, b, block, from, to)
}

// exchangeNear is exchange that looks in a leaf first, which the mutex was not let go since it was
// found; it gives the leaf for the next block. near may be nil. A place in the journal stands in
// one leaf, so where near names it, near is the leaf.
func (l *lane) exchangeNear(near *leaf, b *branch, block uint64, from, to segment.Loc) *leaf {
	lf, i := near, int(block%segment.LeafBlocks)
	if lf == nil || lf.own.get(i) != from {
		if lf = l.holder(b, block, from); lf == nil {
			return near
		}
	}
	l.put(lf, i, to)
	l.show(lf, i, from, to)
	l.touch(lf)
	return lf
}

// settleData points the blocks of a destaged record at their places on the device; mu is held. It
// takes and gives a leaf as exchangeNear does: a chunk is sorted, so neighbours share one. was are
// the checksums in the journal.
func (l *lane) settleData(near *leaf, p *pending, base uint64, crcs, was []uint32) *leaf {
	for i, crc := range crcs {
		to := p.loc(base, i, crc)
		from := l.e.nv.loc(p.from+uint32(i), was[i])
		near = l.exchangeNear(near, p.br, p.block+uint64(i), from, to)
	}
	return near
}

// log puts a move into the gathering chunk, without a lock: nobody else has that chunk. What is
// copied is verified there; a block whose bytes in the journal went bad is lost and not logged: a
// chunk with a block that does not verify may pass for torn.
func (n *nvram) log(m settle) error {
	if m.whole {
		return n.whole(m)
	}
	if codec := m.br.squeeze.warm(); codec != compress.None && m.kind == segment.KindData {
		return n.squeeze(m, codec)
	}
	return n.plain(m)
}

// plain is log for blocks as they are.
func (n *nvram) plain(m settle) error {
	for {
		c, err := n.chunkFor(&m)
		if err != nil {
			return err
		}
		good := m.count
		if m.kind == segment.KindData {
			at := segment.HeaderMax + c.payload
			good = n.copyOut(c.buf[at:], &m)
		}
		if good > 0 {
			n.record(c, &m, good)
		}
		if good == m.count {
			return nil
		}
		n.lose(&m, good)
		bad := good + 1
		m = m.part(bad, m.count)
		if m.count == 0 {
			return nil
		}
	}
}

// copyOut copies the blocks of a move to p and opens them, up to the first that does not verify; it
// gives their number.
func (n *nvram) copyOut(p []byte, m *settle) int {
	for i := range m.count {
		if !n.copyBlock(p[i*segment.BlockSize:(i+1)*segment.BlockSize], m, i) {
			return i
		}
	}
	return m.count
}

// copyBlock copies block i of a move to p and opens it, and tells whether it is what was put there.
func (n *nvram) copyBlock(p []byte, m *settle, i int) bool {
	by := checksum.CopyPast // only the device looks at it
	if m.br.key != nil {
		by = checksum.Copy
	}
	return by(p, n.share.At(m.place+uint32(i), 1)) == n.batch.crcs[m.crc+i] &&
		n.unseal(&n.batch.pad, m.br.key, m.life, m.entry, m.first+i, m.place+uint32(i), p)
}

// part gives the blocks of a move from one on, up to another.
func (m *settle) part(from, to int) settle {
	p := *m
	p.block, p.count, p.first = m.block+uint64(from), to-from, m.first+from
	p.place, p.crc = m.place+uint32(from), m.crc+from
	return p
}

// chunkFor gives the gathering chunk with room for a move. A full one goes to its lane before.
func (n *nvram) chunkFor(m *settle) (*chunk, error) {
	bytes := 0
	if m.kind == segment.KindData {
		bytes = m.count * segment.BlockSize
	}
	return n.chunkOf(m, bytes)
}

// chunkOf is chunkFor for so many bytes.
func (n *nvram) chunkOf(m *settle, bytes int) (*chunk, error) {
	b := &n.batch
	if b.out != nil && !b.out.takes(m.br.key, bytes, n.e.payloadMax()) {
		if err := n.handOver(m.l); err != nil {
			return nil, err
		}
	}
	if b.out == nil {
		b.out = n.e.cache.get()
	}
	return b.out, nil
}

// record adds the first count blocks of a move, whose data is in the chunk. Its LSN follows when
// the lane takes the chunk.
func (n *nvram) record(c *chunk, m *settle, count int) {
	p := pending{
		br: m.br, block: m.block, count: count, unit: uint32(c.payload / segment.Unit),
		crc: len(c.crcs),
	}
	en := segment.Entry{
		Branch: m.id, Block: m.block, Count: 1, Kind: m.kind, Version: m.version, Gen: m.gen,
		Era: m.era,
	}
	var further []uint32
	if m.kind == segment.KindData {
		crcs := n.batch.crcs[m.crc : m.crc+count]
		p.kind, p.from = m.kind, m.place
		en.Count, en.Off, en.CRC = count, p.unit, crcs[0]
		en.Units = uint16(count * segment.BlockUnits)
		c.payload += count * segment.BlockSize
		c.crcs, c.was = append(c.crcs, crcs...), append(c.was, crcs...)
		further = crcs[1:]
		if m.br.key != nil {
			en.Flags, p.tags = segment.FlagEncrypted, count*segment.TagBytes
			c.conceal(secret{m.br.key, len(c.entries), p.unit, count, segment.BlockSize, p.crc})
		}
		n.e.stats.destaged.Add(int64(count) * segment.BlockSize)
	} else {
		en.Range = uint64(count)
	}
	c.encode(&en, further)
	c.recs = append(c.recs, p)
}

// handOver gives the gathered chunk to a lane, which gives an empty one for it if it has one, and
// its records their LSNs. It waits while the lane's writers are behind. A full group ends with it.
func (n *nvram) handOver(l *lane) error {
	b := &n.batch
	if b.out == nil || len(b.out.recs) == 0 {
		return nil
	}
	if len(b.group) == 0 {
		b.faults = n.e.faults.Load()
		b.rested += n.e.sched.Begin(qos.Destage, n.urgent)
		b.turn = true
	}
	c := b.out
	base := c.join()
	for _, t := range c.tails {
		c.recs[t.rec].unit += base
	}
	if err := n.send(l, c); err != nil {
		return err
	}
	b.group = append(b.group, sent{l, c})
	if len(b.group) < n.e.groupSize() {
		return nil
	}
	return n.sync()
}

// send puts the gathered chunk where the lane's writers take the next one from.
func (n *nvram) send(l *lane, c *chunk) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.mu.cur != nil && len(l.mu.cur.recs) > 0 {
		if err := l.dead(); err != nil {
			return err
		}
		l.room.Wait()
	}
	if err := l.dead(); err != nil {
		return err
	}
	at := 0
	for i := range c.recs {
		p := &c.recs[i]
		l.mu.lsn++
		p.lsn = l.mu.lsn
		segment.PutLSN(c.entries[at:], p.lsn)
		switch {
		case p.whole:
			at += p.size
		case p.kind == segment.KindData:
			at += segment.EntrySettled + 4*(p.count-1) + p.tags
		default:
			at += segment.EntrySettled
		}
	}
	c.full, c.group = true, true
	n.batch.last[l.no] = l.mu.lsn
	n.batch.out, l.mu.cur = l.mu.cur, c
	l.work.Signal()
	return nil
}

// release frees the batch's slots, the oldest first: a crash between two must not leave an older
// record of a lane without the later ones.
func (n *nvram) release() error {
	n.letEnd()
	for _, sl := range n.batch.slots {
		if left := sl.live.Load(); left != 0 {
			return domain.Errorf(domain.Internal, "%d bytes of NVRAM slot %d are neither destaged nor dead",
				left, sl.No)
		}
		if left := sl.held.Load(); left != 0 {
			return domain.Errorf(domain.Internal,
				"%d records of replicas in NVRAM slot %d were not destaged", left, sl.No)
		}
		n.share.Free(sl.No)
	}
	n.mu.Lock()
	n.mu.queue = slices.DeleteFunc(n.mu.queue, func(o *nvSlot) bool {
		return slices.Contains(n.batch.slots, o)
	})
	for _, sl := range n.batch.slots {
		n.mu.free = append(n.mu.free, sl.No)
	}
	n.mu.Unlock()
	n.used.Add(-int64(len(n.batch.slots)))
	n.e.stats.destages.Add(1)
	n.freed.Broadcast()
	for _, l := range n.e.lanes {
		l.mu.Lock()   // whoever saw no free slot under it waits by now
		l.mu.Unlock() //nolint:staticcheck // an empty section is the point
		l.room.Broadcast()
	}
	return nil
}
