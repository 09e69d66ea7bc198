package engine

import (
	"slices"

	"weft/dataplane/checksum"
	"weft/dataplane/segment"
)

// transfer is a block that is copied from the journal to a chunk, once the places of all blocks of
// a batch are known. They are copied in the order of the journal, for to read that from one end to
// the other takes half the time of reading it here and there, while it matters little where they
// are written to.
type transfer struct {
	c    *chunk // nil: the block is not copied
	at   uint32 // in the chunk's buffer
	move int32
	k    int32 // which block of that
}

// lay empties the list of transfers, for the slots of the batch.
func (n *nvram) lay() {
	b, blocks := &n.batch, n.share.SlotBlocks()
	b.copies = slices.Grow(b.copies[:0], len(b.slots)*blocks)[:len(b.slots)*blocks]
	clear(b.copies)
	if b.base == nil {
		b.base = make([]int, len(n.slots))
	}
	for i, sl := range b.slots {
		b.base[sl.No] = i*blocks - int(n.share.Start(sl.No))
	}
	b.bad = b.bad[:0]
}

// plan notes where the blocks of a move stand in a chunk, from its end on.
func (n *nvram) plan(c *chunk, m *settle) {
	b := &n.batch
	base := b.base[n.share.SlotOf(m.place)] + int(m.place)
	at, k := segment.HeaderMax+c.payload, m.first-b.moves[b.now].first
	for i := range m.count {
		b.copies[base+i] = transfer{c, uint32(at + i*segment.BlockSize), b.now, int32(k + i)}
	}
}

// copyAll copies what was planned, verifies and opens it, and lists what does not verify.
func (n *nvram) copyAll() {
	b := &n.batch
	for i := range b.copies {
		t := &b.copies[i]
		if t.c == nil {
			continue
		}
		if !n.copyBlock(t.c.buf[t.at:t.at+segment.BlockSize], &b.moves[t.move], int(t.k)) {
			b.bad = append(b.bad, *t)
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
	place, by := m.place+uint32(i), checksum.CopyPast // only the device looks at it
	if m.br.key != nil {
		by = checksum.Copy
	}
	return by(p, n.share.At(place, 1)) == n.batch.crcs[m.crc+i] &&
		n.unseal(&n.batch.pad, m.br.key, m.life, m.entry, m.first+i, place, p)
}
