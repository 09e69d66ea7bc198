package engine

import (
	"errors"
	"slices"
	"time"
	"unsafe"

	"weft/dataplane/compress"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// batch is what the destager works on; its lists are kept for the next.
type batch struct {
	slots []*nvSlot
	found []found
	moves []settle
	now   int32  // which of the moves is logged
	order []rank // of what was found
	room  []rank // to sort that in
	line  []rank // of the moves, as they are logged
	crcs  []uint32
	ended []*heldRecord // of replicas, of which only what shows is destaged

	out    *chunk     // gathers what goes to one lane; nil: not begun
	ready  []sent     // chunks of the batch, in the order of each lane, that wait for their data
	copies []transfer // of all blocks of the slots, in their order
	base   []int      // by slot: what added to a place in it gives the block's place among those
	bad    []transfer

	away    []*group // on their way to be durable, in their order
	spare   []*group
	flushed chan struct{} // closed when the last group that is flushed is durable; may be nil
	turn    bool          // the destager has its turn on the device
	asked   bool          // somebody waits for the batch whatever the fill
	rested  time.Duration

	straight straight
	squeezer squeezer
	pad      pad
}

// settle is one record that goes from the journal to the log: blocks of one record of a host that
// are still current, or a range of them.
type settle struct {
	l     *lane
	br    *branch // that holds the blocks
	near  *leaf   // DATA: where they stand in the index
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
	near    *leaf   // that named its first block first; nil: not known
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

// sort orders the moves: by lane, parents before their kids, by block; but records of replicas that
// are whole before all else, as they were accepted. A hole is noted only over something, and replay
// comes this way too. A range and data of one branch do not meet: what is current of both is one or
// the other. They are in that order already, but for those of replicas, and of branches that were
// absorbed.
func (b *batch) sort() {
	b.line = b.line[:0]
	for i := range b.moves {
		m := &b.moves[i]
		o := rank{lineOf(m.l, m.id), m.block, int32(i)}
		if m.whole {
			o.line, o.block = uint64(m.l.no)<<33, uint64(i)
		}
		b.line = append(b.line, o)
	}
	if !slices.IsSortedFunc(b.line, compareRanks) {
		slices.SortFunc(b.line, compareRanks)
	}
}

// destage takes batches until the fill is low enough and nobody waits for more, and until all of
// them are durable.
func (n *nvram) destage() error {
	for !n.e.failed.Load() {
		select {
		case <-n.halt:
			return n.rest()
		default:
		}
		if more, err := n.one(); !more || err != nil {
			return err
		}
	}
	return n.rest()
}

// rest waits until nothing is under way.
func (n *nvram) rest() error {
	n.turn.Lock()
	defer n.turn.Unlock()
	return n.land(0)
}

// one destages a batch, if there is one: it is on its way when one returns. Where there is none,
// the oldest group that was has become durable; false when there was none either.
func (n *nvram) one() (more bool, err error) {
	n.turn.Lock()
	defer n.turn.Unlock()
	began := n.clock.Now()
	if !n.pick() {
		under := len(n.batch.away)
		return under > 0, n.land(max(under-1, 0))
	}
	if err := n.write(began); err != nil {
		return false, errors.Join(err, n.land(0))
	}
	return true, nil
}

// pick chooses the oldest sealed slots; false when there is nothing to do. What is under way counts
// as gone, but for one batch: else the device would stand idle until room has come back.
func (n *nvram) pick() bool {
	b := &n.batch
	b.slots = b.slots[:0]
	slot := int64(n.share.SlotBlocks()) * segment.BlockSize
	n.mu.Lock()
	defer n.mu.Unlock()
	size := int64(len(n.slots)) * slot
	gone := max(n.mu.away-tier.Batch(tier.FillWhole, size)/slot, 0)
	bytes := tier.Batch(n.part(n.used.Load()-gone), size)
	b.asked = false
	for _, sl := range n.mu.queue {
		if !sl.Sealed || sl.away {
			continue
		}
		wanted := sl.Sequence <= n.mu.want && int64(len(b.slots))*slot < tier.BatchMax
		if !wanted && int64(len(b.slots))*slot >= bytes {
			break
		}
		b.slots = append(b.slots, sl)
		b.asked = b.asked || wanted
	}
	for _, sl := range b.slots {
		sl.away = true
	}
	n.mu.away += int64(len(b.slots))
	return len(b.slots) > 0
}

// urgent tells whether somebody waits for the batch, or writers are slowed down.
func (n *nvram) urgent() bool { return n.batch.asked || n.fill() > tier.FillSlow }

// write hands the batch to the device; its slots become free when it is durable there. An error
// leaves the engine out of service and the journal as it is, for the next Open.
func (n *nvram) write(began time.Duration) error {
	b := &n.batch
	b.rested = 0
	if err := n.prepare(); err != nil {
		return err
	}
	size := n.e.groupSize()
	for first := 0; ; first += size {
		g := n.group()
		last := first+size >= len(b.ready)
		if last {
			g.slots, g.ended = append(g.slots, b.slots...), append(g.ended, b.ended...)
		}
		err := n.depart(g, b.ready[first:min(first+size, len(b.ready))], began)
		if last || err != nil {
			clear(b.ready)
			clear(b.ended)
			b.ready, b.ended = b.ready[:0], b.ended[:0]
			return err
		}
	}
}

// prepare makes chunks of what is current of the batch. Where blocks of it went bad it gives them
// up and begins anew, for then they are not current any more.
func (n *nvram) prepare() error {
	b := &n.batch
	b.moves, b.crcs = b.moves[:0], b.crcs[:0]
	b.found, b.order = b.found[:0], b.order[:0]
	b.straight.mixed = false
	b.byLane()
	for _, sl := range b.slots {
		n.collect(sl)
	}
	defer clear(b.found)
	n.arrange()
	whole, crcs := len(b.moves), len(b.crcs)
	for {
		n.lookUp()
		n.lay()
		n.list()
		if err := n.logAll(); err != nil {
			return err
		}
		if n.copyAll(); len(b.bad) == 0 {
			clear(b.moves)
			return nil
		}
		for i := range b.bad {
			n.lose(&b.moves[b.bad[i].move], int(b.bad[i].k))
		}
		n.discard()
		b.moves, b.crcs = b.moves[:whole], b.crcs[:crcs]
	}
}

// discard gives up the chunks of the batch.
func (n *nvram) discard() {
	b := &n.batch
	for _, s := range b.ready {
		n.e.cache.put(s.c)
	}
	clear(b.ready)
	b.ready = b.ready[:0]
}

// logAll puts all moves into chunks of their lanes, full ones as far as it goes.
func (n *nvram) logAll() error {
	b := &n.batch
	for i, o := range b.line {
		b.now = o.at
		m := &b.moves[o.at]
		if err := n.log(m); err != nil {
			return err
		}
		if i+1 == len(b.line) || b.moves[b.line[i+1].at].l != m.l {
			n.handOver(m.l)
		}
	}
	return nil
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
		b.straight.takes(last, en.Kind)
		if last.fam.replica == nil {
			if en.Kind == segment.KindData && sl.leaves != nil {
				f.near = sl.leaves[place-n.share.Start(sl.No)]
			}
			b.order = append(b.order, rank{lineOf(l, last.id), en.Block, int32(len(b.found))})
			b.found = append(b.found, f)
			return
		}
		l.lock()
		if br := last.now(); br != nil {
			n.collectHeld(br, sl, en, &f)
		}
		l.mu.Unlock()
	}, nil)
}

// lookHold is the most records that are looked up under one hold of a lane's mutex.
const lookHold = 32

// lookUp lists as moves what of the found records is still current. Records of a host that wrote,
// say, 100 blocks stay together as far as they are. Up to lookHold of one lane are looked up under
// one hold of its mutex; where they are sorted, those of a leaf follow one another.
func (n *nvram) lookUp() {
	b := &n.batch
	for i := 0; i < len(b.order); {
		l := b.found[b.order[i].at].l
		var near *leaf
		l.lock()
		for k := 0; k < lookHold && i < len(b.order) && b.order[i].lane() == l.no; k, i = k+1, i+1 {
			r := b.order[i]
			n.ahead(i, l.no)
			f := &b.found[r.at]
			br := f.br.now()
			switch {
			case br == nil:
			case f.kind == segment.KindData:
				if f.near != nil {
					near = f.near
				}
				near = n.collectData(near, br, f, r.block)
			default:
				n.collectRange(br, f, r.block)
			}
		}
		l.mu.Unlock()
	}
}

// How far ahead lines of memory are fetched, in records: a leaf first, then what it says.
const (
	leafAhead = 8
	lineAhead = 4
)

// ahead lets the processor fetch what will be looked up behind record i of the order, as far as
// that is of the same lane; the lane's mutex is held.
func (n *nvram) ahead(i int, lane uint8) {
	b := &n.batch
	if i+lineAhead >= len(b.order) || b.order[i+lineAhead].lane() != lane {
		return
	}
	r := b.order[i+lineAhead]
	if lf := b.found[r.at].near; lf != nil {
		lf.own.soon(int(r.block % segment.LeafBlocks))
	}
	if i+leafAhead < len(b.order) {
		prefetch(unsafe.Pointer(b.found[b.order[i+leafAhead].at].near))
	}
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
			l: l, br: lf.br, near: lf, id: lf.br.id, kind: f.kind, block: block, count: 1,
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
func (n *nvram) log(m *settle) error {
	if m.whole {
		return n.whole(m)
	}
	if codec := m.br.squeeze.warm(); codec != compress.None && m.kind == segment.KindData {
		n.squeeze(m, codec)
		return nil
	}
	n.plain(m)
	return nil
}

// plain is log for blocks as they are.
func (n *nvram) plain(m *settle) {
	c := n.chunkFor(m)
	switch {
	case m.kind != segment.KindData:
	case n.batch.straight.lends && m.br.key == nil:
		n.lend(c, m)
	default:
		n.plan(c, m)
	}
	n.record(c, m)
}

// part gives the blocks of a move from one on, up to another.
func (m *settle) part(from, to int) settle {
	p := *m
	p.block, p.count, p.first = m.block+uint64(from), to-from, m.first+from
	p.place, p.crc = m.place+uint32(from), m.crc+from
	return p
}

// chunkFor gives the gathering chunk with room for a move. A full one is put by before.
func (n *nvram) chunkFor(m *settle) *chunk {
	bytes := 0
	if m.kind == segment.KindData {
		bytes = m.count * segment.BlockSize
	}
	return n.chunkOf(m, bytes)
}

// chunkOf is chunkFor for so many bytes.
func (n *nvram) chunkOf(m *settle, bytes int) *chunk {
	b := &n.batch
	if b.out != nil && !b.out.takes(m.br.key, bytes, n.e.payloadMax()) {
		n.handOver(m.l)
	}
	if b.out == nil {
		b.out = n.e.cache.get()
	}
	return b.out
}

// record adds a move to a chunk that has room for it. Its LSN follows when the lane takes the
// chunk.
func (n *nvram) record(c *chunk, m *settle) {
	count := m.count
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
		p.kind, p.from, p.near = m.kind, m.place, m.near
		en.Count, en.Off, en.CRC = count, p.unit, crcs[0]
		en.Units = uint16(count * segment.BlockUnits)
		c.payload += count * segment.BlockSize
		c.crcs, c.was = append(c.crcs, crcs...), append(c.was, crcs...)
		further = crcs[1:]
		if m.br.key != nil {
			en.Flags, p.tags = segment.FlagEncrypted, count*segment.TagBytes
			c.conceal(secret{m.br.key, len(c.entries), p.unit, count, segment.BlockSize, p.crc})
		}
	} else {
		en.Range = uint64(count)
	}
	c.encode(&en, further)
	c.recs = append(c.recs, p)
}

// handOver puts the gathered chunk by, for a lane.
func (n *nvram) handOver(l *lane) {
	b := &n.batch
	c := b.out
	if c == nil || len(c.recs) == 0 {
		return
	}
	base := c.join()
	for _, t := range c.tails {
		c.recs[t.rec].unit += base
	}
	b.ready = append(b.ready, sent{l, c})
	b.out = nil
}
