package engine

import (
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
)

// Compression. A block is compressed where it is written in the background: when the journal is
// destaged, and when the cleaner moves it. Nobody waits for that, and what a host writes to a
// device without a journal goes there as it is. A compressed block stays so: the cleaner moves its
// bytes as they are.
//
// It takes 1 to 7 units of 512 bytes and has an entry of its own. In a chunk such blocks stand back
// to back behind all plain ones, whose places are multiples of 4 KiB; so their places are known
// when the chunk is full (join). The index has the place in units and the length beside part of the
// checksum, so a read takes one request to the device, of one sector or two, and all that is
// counted of what lives is exact (segment.Loc.Room).
//
// Of an encrypted volume a block is closed after it was compressed, so all checksums but the one
// inside of the compressed bytes are over cipher text there, too.

// squeeze is what a branch's blocks are compressed by.
type squeeze struct {
	mode  atomic.Uint32    // compress.Mode
	fresh compress.Backoff // of the destager
	moved compress.Backoff // of the cleaner
}

func (s *squeeze) warm() compress.Codec { return compress.Mode(s.mode.Load()).Warm() }

func (s *squeeze) cold() compress.Codec { return compress.Mode(s.mode.Load()).Cold() }

// SetCompression says how what is written to the volume is compressed from now on, and what of it
// is moved. It holds until the engine is closed, for the snapshots of the volume, too, and for what
// it shares with others; what stands on the device is read whatever it says. Replicas stay plain:
// their records are kept as they were accepted (C3).
func (v *Volume) SetCompression(m compress.Mode) {
	if v.fam.replica != nil {
		return
	}
	v.e.mu.RLock()
	defer v.e.mu.RUnlock()
	for b := v.br.Load(); b != nil; b = b.parent {
		b.squeeze.mode.Store(uint32(m))
	}
}

// Compression gives what SetCompression said.
func (v *Volume) Compression() compress.Mode {
	return compress.Mode(v.br.Load().squeeze.mode.Load())
}

// squeezer is what a goroutine compresses with: it is kept, since the memory of a codec is large.
type squeezer struct {
	packer compress.Packer
	stored [compress.Max]byte // what it made last
	open   [segment.BlockSize]byte
}

// tail is a compressed block of a chunk that is not full.
type tail struct {
	entry  int    // where its entry begins
	rec    int    // which record it is
	unit   uint32 // where it begins among such blocks
	secret int    // its place among the secrets; -1: it is not encrypted
}

// tail adds a compressed block to a chunk that has room for it. The entry, which is encoded here,
// has its place among such blocks, and so has p, until join.
func (c *chunk) tail(p *pending, en *segment.Entry, key *volumeKey, stored []byte, was uint32) {
	p.unit, p.units = uint32(len(c.packed)/segment.Unit), len(stored)/segment.Unit
	p.crc, p.count = len(c.crcs), 1
	en.Count, en.Off, en.Units, en.CRC = 1, p.unit, uint16(p.units), segment.Checksum(stored)
	en.Flags |= segment.FlagCompressed
	t := tail{len(c.entries), len(c.recs), p.unit, -1}
	if key != nil {
		en.Flags, p.tags = en.Flags|segment.FlagEncrypted, segment.TagBytes
		t.secret = len(c.secrets)
		c.conceal(secret{key, t.entry, p.unit, 1, len(stored), p.crc})
	}
	c.packed = append(c.packed, stored...)
	c.tails = append(c.tails, t)
	c.crcs, c.was = append(c.crcs, en.CRC), append(c.was, was)
	c.encode(en, nil)
	c.recs = append(c.recs, *p)
}

// join puts the compressed blocks behind the plain ones and gives the unit where they begin, which
// whoever keeps their places has to add.
func (c *chunk) join() uint32 {
	base := uint32(c.payload / segment.Unit)
	for _, t := range c.tails {
		segment.PutOff(c.entries[t.entry:], t.unit+base)
		if t.secret >= 0 {
			c.secrets[t.secret].unit += base
		}
	}
	copy(c.buf[segment.HeaderMax+c.payload:], c.packed)
	c.payload += len(c.packed)
	c.packed = c.packed[:0]
	return base
}

// squeeze is log for blocks that are compressed where that is worth it; those between go as they
// are. What does not match its checksum is not told from what is not worth it: plain finds it.
func (n *nvram) squeeze(m *settle, codec compress.Codec) {
	b, back := &n.batch, &m.br.squeeze.fresh
	first := 0 // of those that go as they are
	for i := range m.count {
		units := 0
		if back.Try() {
			if block, crc, ok := n.text(m, i); ok {
				units = b.squeezer.packer.Pack(b.squeezer.stored[:], block, crc, codec)
				back.Tell(units > 0)
				if units > 0 && segment.Checksum(block) != crc {
					units = 0
				}
			}
		}
		if units == 0 {
			continue
		}
		if i > first {
			before := m.part(first, i)
			n.plain(&before)
		}
		n.packed(m.part(i, i+1), b.squeezer.stored[:units*segment.Unit])
		first = i + 1
	}
	if first < m.count {
		rest := m.part(first, m.count)
		n.plain(&rest)
	}
}

// text gives block i of a move as its host wrote it, and its checksum, which is still to be
// compared; false for an encrypted one that does not verify.
func (n *nvram) text(m *settle, i int) (block []byte, crc uint32, ok bool) {
	block, crc = n.share.At(m.place+uint32(i), 1), n.batch.crcs[m.crc+i]
	if m.br.key == nil || m.life == nil {
		return block, crc, true
	}
	block = n.batch.squeezer.open[:segment.BlockSize]
	if !n.copyBlock(block, m, i) {
		return nil, 0, false
	}
	return block, segment.Checksum(block), true
}

// packed puts a compressed block into the gathering chunk.
func (n *nvram) packed(m settle, stored []byte) {
	c := n.chunkOf(&m, len(stored))
	p := pending{br: m.br, kind: m.kind, block: m.block, from: m.place, near: m.near}
	c.tail(&p, &segment.Entry{
		Branch: m.id, Block: m.block, Kind: m.kind, Version: m.version, Gen: m.gen, Era: m.era,
	}, m.br.key, stored, n.batch.crcs[m.crc])
	n.e.stats.packed.Add(1)
	n.e.stats.packedBytes.Add(int64(len(stored)))
}

// store adds blocks of a move to the output, from the first'th on; data begins with them. What is
// compressed stays so, of the others it makes smaller what its volume says.
func (c *cleaner) store(m *move, first int, crcs []uint32, data []byte) error {
	if m.units > 0 {
		return c.tail(m, first, crcs[0], data[:m.stored()])
	}
	codec, back := m.br.squeeze.cold(), &m.br.squeeze.moved
	if codec == compress.Zstd && c.urgent() {
		codec = compress.S2 // hosts wait for what is cleaned
	}
	if codec == compress.None {
		return c.put(m, first, crcs, data)
	}
	done, z := 0, &c.e.maint.squeezer
	for i := range crcs {
		if !back.Try() {
			continue
		}
		block := data[i*segment.BlockSize:][:segment.BlockSize]
		units := z.packer.Pack(z.stored[:], block, m.sum(block, crcs[i]), codec)
		if back.Tell(units > 0); units == 0 {
			continue
		}
		err := c.put(m, first+done, crcs[done:i], data[done*segment.BlockSize:])
		if err == nil {
			err = c.tail(m, first+i, crcs[i], z.stored[:units*segment.Unit])
		}
		if err != nil {
			return err
		}
		c.e.stats.packed.Add(1)
		c.e.stats.packedBytes.Add(int64(units * segment.Unit))
		done = i + 1
	}
	return c.put(m, first+done, crcs[done:], data[done*segment.BlockSize:])
}

// sum gives the checksum of a plain block: that of its entry, unless that is over cipher text.
func (m *move) sum(block []byte, crc uint32) uint32 {
	if m.life != nil {
		return segment.Checksum(block)
	}
	return crc
}

// tail adds one compressed block to the output; crc is what its entry had.
func (c *cleaner) tail(m *move, first int, crc uint32, stored []byte) error {
	if err := c.ready(m, len(stored)); err != nil {
		return err
	}
	out, p := *m, pending{}
	out.block += uint64(first)
	out.from += uint64(first) * segment.BlockUnits
	en := segment.Entry{
		Branch: m.br.id, Block: out.block, Kind: segment.KindData, Flags: segment.FlagMoved,
		Version: m.version, Gen: m.gen, Era: m.era, LSN: m.lsn, From: out.from, FromSeq: m.seq,
	}
	c.c.tail(&p, &en, m.key(), stored, crc)
	out.count, out.crc, out.unit, out.packed = 1, p.crc, p.unit, p.units
	c.moves = append(c.moves, out)
	c.e.stats.movedBytes.Add(int64(len(stored)))
	return nil
}

// compressed tells whether block i of a read stands compressed on the device.
func (rd *reader) compressed(e *Engine, i int) bool {
	loc := rd.loc[i]
	return loc.Kind() == segment.Flash && loc.Packed() && !e.nv.holds(loc)
}

// planPacked lists the pieces in which the compressed blocks of a read stand, in the order of the
// blocks; those whose sectors meet are one.
func (rd *reader) planPacked(e *Engine) {
	meets := func(from, end int64) bool { return from <= end && from >= end-segment.Sector }
	size, end := 0, int64(-2*segment.Sector)
	for i := range rd.count {
		if !rd.compressed(e, i) || rd.had>>i&1 != 0 {
			continue
		}
		from, to := rd.span(i)
		if meets(from, end) {
			from = end
		}
		size, end = size+int(to-from), to
	}
	if len(rd.packed) < size {
		rd.packed = backends.AlignedBuffer(size)
	}
	free := rd.packed
	end = -2 * segment.Sector
	for i := range rd.count {
		if !rd.compressed(e, i) || rd.had>>i&1 != 0 {
			continue
		}
		from, to := rd.span(i)
		if !meets(from, end) {
			rd.pieces = append(rd.pieces, backends.Read{P: free[:0], Off: from, To: rd})
			rd.first = append(rd.first, i)
			end = from
		}
		p := &rd.pieces[len(rd.pieces)-1]
		n := int(to - end)
		p.P, free, end = p.P[:len(p.P)+n], free[n:], to
	}
}

// scatter puts the compressed blocks that were read into their places, as they are, and gives the
// first that does not match, or -1.
func (rd *reader) scatter(e *Engine) int {
	k := rd.whole
	for i := 0; k < len(rd.pieces) && i < rd.count; i++ {
		if !rd.compressed(e, i) || rd.had>>i&1 != 0 {
			continue
		}
		for k+1 < len(rd.pieces) && rd.first[k+1] <= i {
			k++
		}
		b := rd.dst[i*segment.BlockSize:][:rd.loc[i].Stored()]
		copy(b, rd.pieces[k].P[rd.off(i)-rd.pieces[k].Off:])
		if !rd.loc[i].Matches(b) {
			return i
		}
	}
	return -1
}

// unpack makes the compressed blocks of a read whole, in place: they matched, and are open.
func (rd *reader) unpack(e *Engine) error {
	for i := range rd.count {
		if !rd.compressed(e, i) {
			continue
		}
		if rd.spare == nil {
			rd.spare = make([]byte, compress.Max)
		}
		b := rd.dst[i*segment.BlockSize:][:segment.BlockSize]
		n := copy(rd.spare, b[:rd.loc[i].Stored()])
		if compress.Unpack(b, rd.spare[:n]) != nil {
			return rd.stale(e, i)
		}
	}
	return nil
}

// fetchPacked reads compressed blocks ahead, from block i of a read on, as many as stand side by
// side and fit the buffer; it gives how many, or 0 where the device fails.
func (rd *reader) fetchPacked(v *Volume, i int, buf []byte) int {
	from, end := rd.loc[i].Span()
	n := 1
	for ; i+n < rd.count && rd.compressed(v.e, i+n) &&
		rd.loc[i+n].Addr() == rd.loc[i+n-1].Addr()+uint64(rd.loc[i+n-1].Units()); n++ {
		_, to := rd.loc[i+n].Span()
		if to-from > int64(len(buf)) {
			break
		}
		end = to
	}
	p := buf[:end-from]
	if v.e.dev.ReadAt(p, from) != nil {
		return 0
	}
	var slot [segment.BlockSize]byte
	for _, loc := range rd.loc[i : i+n] {
		if copy(slot[:], p[loc.Off()-from:][:loc.Stored()]); loc.Matches(slot[:]) {
			v.e.cfg.Reads.Ahead(v.e.placeOf(loc), slot[:])
		}
	}
	return n
}
