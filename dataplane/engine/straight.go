package engine

import (
	"cmp"
	"slices"

	"weft/backends"
	"weft/dataplane/checksum"
	"weft/dataplane/compress"
	"weft/dataplane/journal"
	"weft/dataplane/segment"
)

// When a batch of the destager is sorted. That is worth it where neighbours of a volume come to
// stand side by side. Else it wins nothing, and costs a copy of each block: then the batch goes
// straight.
const (
	// closeBlocks is how far apart neighbours may be and count as such: a read of 64 KiB has both.
	closeBlocks = 16
	// straightMax is how many batches go straight before one is sorted to see what that wins.
	straightMax = 15
)

// straight is what a batch notes of its way to the log. One that goes straight is logged in the
// order in which it came, slot by slot, and written from the memory of the journal, where what is
// still current of it stands there in long pieces.
type straight struct {
	mixed bool  // with what is not plain data of hosts: such a batch is sorted
	now   bool  // the batch goes straight
	lends bool  // from the memory of the journal
	left  int   // batches that may go straight before the next is sorted
	count int64 // batches that were written from the memory of the journal, for tests
}

// takes notes a record of a batch: the order of holes counts, replicas have one of their own, and
// what is closed or made smaller on the way is copied.
func (s *straight) takes(b *branch, kind segment.Kind) {
	plain := kind == segment.KindData && b.fam.replica == nil && b.key == nil &&
		b.squeeze.warm() == compress.None
	s.mixed = s.mixed || !plain
}

// lendable tells whether a device may write from a journal's memory, and does so as fast as from
// other memory.
func lendable(dev backends.Device, share *journal.Share) bool {
	_, can := dev.(backends.VectorWriter)
	return can && share.Geometry().Lendable && backends.Aligned(share.At(0, 1), backends.Align)
}

// byLane puts the slots of a lane side by side, in their order: a chunk is of one lane, and full
// where it goes on from one slot to the next.
func (b *batch) byLane() {
	slices.SortStableFunc(b.slots, func(x, y *nvSlot) int { return cmp.Compare(x.Lane, y.Lane) })
}

// arrange settles whether the batch goes straight, and sorts it where not.
func (n *nvram) arrange() {
	b := &n.batch
	s := &b.straight
	s.now = !s.mixed && (s.left > 0 || n.e.cfg.strew)
	if s.now {
		s.left--
		return
	}
	b.order, b.room = sortRanks(b.order, b.room)
	if s.left = 0; !s.mixed && n.lendable && b.scattered() {
		s.left = straightMax
	}
}

// scattered tells whether fewer than half of the sorted records have the one before them close by.
func (b *batch) scattered() bool {
	near := 0
	for i := 1; i < len(b.order); i++ {
		p, r := b.order[i-1], b.order[i]
		end := p.block + uint64(b.found[p.at].count)
		if r.line == p.line && r.block > p.block && r.block < end+closeBlocks {
			near++
		}
	}
	return 2*near < len(b.order)
}

// list lists the moves in the order in which they are logged, and settles what of them is lent.
func (n *nvram) list() {
	b := &n.batch
	if b.straight.lends = b.straight.now && n.lendable && n.long(); b.straight.lends {
		b.straight.count++
	}
	if !b.straight.now {
		b.sort()
		return
	}
	b.line = slices.Grow(b.line[:0], len(b.moves))[:len(b.moves)]
	for i := range b.line {
		b.line[i] = rank{at: int32(i)}
	}
}

// long tells whether the moves of the batch stand in the journal in pieces that are worth lending:
// each is a buffer of its own for the device.
func (n *nvram) long() bool {
	b := &n.batch
	pieces, blocks := 0, 0
	for i := range b.moves {
		m := &b.moves[i]
		if i == 0 || m.place != b.moves[i-1].place+uint32(b.moves[i-1].count) {
			pieces++
		}
		blocks += m.count
	}
	return blocks*segment.BlockSize >= pieces*n.e.partMin() || n.e.cfg.strew
}

// lend takes the blocks of a move into a chunk as the memory of the journal, which stays as it is
// until the slot is free, and lists those that do not verify.
func (n *nvram) lend(c *chunk, m *settle) {
	b := &n.batch
	for i := range m.count {
		if checksum.Sum(n.share.At(m.place+uint32(i), 1)) != b.crcs[m.crc+i] {
			k := m.first - b.moves[b.now].first + i
			b.bad = append(b.bad, transfer{c: c, move: b.now, k: int32(k)})
		}
	}
	c.part(n.share.At(m.place, m.count))
}
