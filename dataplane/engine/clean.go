package engine

import (
	"cmp"
	"errors"
	"math"
	"slices"

	"weft/backends"
	"weft/dataplane/segment"
)

// Limits of one cleaning round.
const (
	victimsMax = 64
	// tooFull is the share of live bytes above which cleaning a segment wins nothing.
	tooFull = 0.97
)

// victim is a segment to be cleaned.
type victim struct {
	id     uint32
	seq    uint64
	stream segment.Stream
	live   int64
	score  float64
}

// clean moves what lives in the best victims into the cleaner's own segments and tells whether
// there was anything to win. The victims become free by the checkpoint that follows.
func (e *Engine) clean() (bool, error) {
	free := e.space.freeCount()
	// Two outputs may end half full, one for each generation. Hosts may take free segments while
	// this round runs; then it ends early.
	budget := int64(max(free-e.space.reserve(segment.StreamGen1)-2, 1)) * e.space.packed
	want := int64(e.space.lowWater+e.space.needed()-free+2) * e.space.size
	c := &cleaner{e: e}
	won, out := int64(0), int64(0)
	for _, v := range e.victims() {
		if won >= want {
			break
		}
		if out+v.live > budget {
			continue
		}
		if err := c.segment(v); errors.Is(err, errNoSegment) {
			break
		} else if err != nil {
			return won > 0, err
		}
		won += e.space.size - v.live
		out += v.live
		e.stats.cleaned.Add(1)
	}
	err := c.flush()
	if errors.Is(err, errNoSegment) {
		err = nil // what was not moved stays where it is
	}
	e.thinMeta()
	return won > 0, err
}

// victims lists sealed segments by cost and benefit: (1-u)/(1+u) times the root of the age, as the
// log-structured file systems do it (Rosenblum and Ousterhout 1992); the root is from simulation.
func (e *Engine) victims() []victim {
	s := e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []victim
	for i, sg := range s.mu.segs {
		live := sg.live.Load()
		u := float64(live) / float64(s.size)
		if sg.state != segSealed || sg.stream == segment.StreamMeta || live == 0 || u > tooFull {
			continue
		}
		age := math.Sqrt(float64(s.mu.nextSeq - sg.seq))
		list = append(list, victim{uint32(i), sg.seq, sg.stream, live, (1 - u) / (1 + u) * age})
	}
	slices.SortFunc(list, func(a, b victim) int {
		switch {
		case a.score > b.score:
			return -1
		case a.score < b.score:
			return 1
		}
		return int(a.id) - int(b.id)
	})
	return list[:min(len(list), victimsMax)]
}

// thinMeta lets the next checkpoint rewrite the leaves that keep a mostly dead metadata segment
// from being free: the thinnest first, and no more than the checkpoint has room for.
func (e *Engine) thinMeta() {
	s := e.space
	type thin struct {
		id   uint32
		meta int64
	}
	var list []thin
	s.mu.Lock()
	for i, sg := range s.mu.segs {
		if sg.state == segSealed && sg.stream == segment.StreamMeta && sg.meta < s.metaFull()/2 {
			list = append(list, thin{uint32(i), sg.meta})
		}
	}
	room := int64(len(s.mu.free)-s.reserveMeta-s.needed()) * s.metaFull()
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b thin) int { return cmp.Compare(a.meta, b.meta) })
	chosen := map[uint32]bool{}
	for _, t := range list {
		if room -= t.meta; room < 0 {
			break
		}
		chosen[t.id] = true
	}
	for id, p := range e.maint.directory {
		if chosen[uint32((int64(p.Off)-s.first)/s.size)] {
			e.retouch(id)
		}
	}
}

// retouch puts a leaf on the next checkpoint's list although nothing changed in it.
func (e *Engine) retouch(id leafID) {
	e.mu.RLock()
	v := e.mu.branches[id.branch]
	e.mu.RUnlock()
	if v == nil {
		return
	}
	block := uint64(id.extent) * segment.LeafBlocks
	l := v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	if lf := v.leaves[l.no][id.extent]; lf != nil {
		l.touch(lf, v, block)
	}
}

// move is one block on its way from a victim.
type move struct {
	vol   *Volume
	block uint64
	from  segment.Loc
	crc   uint32
	unit  uint32 // place in the output's payload
}

// cleaner gathers moved blocks into chunks. Owned by the maintenance for one round.
type cleaner struct {
	e      *Engine
	c      *chunk
	stream segment.Stream
	moves  []move
	limit  int // most payload of the gathering chunk
	buf    []byte
}

// segment moves everything live out of one victim.
func (c *cleaner) segment(v victim) error {
	stream := segment.StreamGen1
	if v.stream != segment.StreamLog {
		stream = segment.StreamGen2
	}
	if c.c != nil && c.stream != stream {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.stream = stream
	if c.buf == nil {
		c.buf = backends.AlignedBuffer(segment.PayloadMax)
	}
	err := c.e.eachChunk(v.id, v.seq, func(off int64, h *segment.Chunk, entries []byte) error {
		return c.chunk(v, off+int64(h.HeaderBytes()), h, entries)
	})
	if errors.Is(err, errUnreadable) {
		// One sector that cannot be read is no reason to give the device up: what lives in this
		// segment stays there, and each read of it answers for itself.
		c.e.report(Fact{What: "read-error", Detail: err.Error()})
		c.e.space.set(c.e.space.mu.segs[v.id], segBad)
		return nil
	}
	return err
}

// chunk moves the live blocks of one chunk, whose payload starts at the device offset base. The
// payload is read once, on the first live block.
func (c *cleaner) chunk(v victim, base int64, h *segment.Chunk, entries []byte) error {
	loaded := false
	for len(entries) > 0 {
		var en segment.Entry
		n, err := segment.DecodeEntry(entries, h.LSN, &en)
		if err != nil {
			return nil //nolint:nilerr // the padding of a header; a bad header has failed before
		}
		this := entries[:n]
		entries = entries[n:]
		if en.Kind != segment.KindData {
			continue
		}
		addr := uint64(base)/segment.Unit + uint64(en.Off)
		for i := range en.Count {
			from := segment.MakeLoc(segment.Flash, addr+uint64(i)*segment.BlockUnits,
				segment.BlockUnits, en.Further(this, i))
			vol := c.e.liveAt(&en, i, from)
			if vol == nil {
				continue
			}
			if !loaded {
				if err := c.e.dev.ReadAt(c.buf[:h.PayloadBytes], base); err != nil {
					return c.e.unreadable(err)
				}
				loaded = true
			}
			at := int(en.Off)*segment.Unit + i*segment.BlockSize
			crc := en.Further(this, i)
			if at+segment.BlockSize > int(h.PayloadBytes) ||
				segment.Checksum(c.buf[at:at+segment.BlockSize]) != crc {
				c.e.spoiled(v.id, vol, en.Block+uint64(i))
				continue
			}
			if err := c.put(vol, &en, i, from, crc, v.seq, c.buf[at:at+segment.BlockSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

// liveAt gives the volume when block i of the entry has its newest copy at from.
func (e *Engine) liveAt(en *segment.Entry, i int, from segment.Loc) *Volume {
	e.mu.RLock()
	v := e.mu.branches[en.Branch]
	e.mu.RUnlock()
	if v == nil || v.gone.Load() {
		return nil
	}
	block := en.Block + uint64(i)
	l := v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	lf := v.leaves[l.no][uint32(block/segment.LeafBlocks)]
	if lf == nil || lf.Loc[block%segment.LeafBlocks] != from {
		return nil
	}
	return v
}

// spoiled reports a live block whose bytes are wrong, and keeps its segment out of the cleaner's
// way: the block stays where it is and reads as corrupt until it is written again.
func (e *Engine) spoiled(id uint32, v *Volume, block uint64) {
	e.report(Fact{What: "corrupt", Volume: v.volume, Block: block, Detail: "found by the cleaner"})
	e.space.set(e.space.mu.segs[id], segBad)
}

// put adds one block to the output.
func (c *cleaner) put(v *Volume, en *segment.Entry, i int, from segment.Loc, crc uint32,
	seq uint64, data []byte,
) error {
	if c.c != nil && !c.c.fits(segment.BlockSize, c.limit) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.c == nil {
		c.c, c.limit = c.e.cache.get(), 0
		if o := c.e.maint.out[c.stream]; o != nil {
			c.limit = o.roomMoved(c.e.space.size)
		}
		if c.limit == 0 {
			c.limit = c.e.payloadMax()
		}
	}
	out := segment.Entry{
		Branch: en.Branch, Block: en.Block + uint64(i), Count: 1, Kind: segment.KindData,
		Flags: segment.FlagMoved, Version: en.Version, Gen: en.Gen, Era: en.Era, LSN: en.LSN,
		Off: uint32(c.c.payload / segment.Unit), Units: segment.BlockUnits, CRC: crc,
		From: from.Addr(), FromSeq: seq,
	}
	copy(c.c.buf[segment.HeaderMax+c.c.payload:], data)
	c.moves = append(c.moves, move{v, out.Block, from, crc, out.Off})
	c.c.encode(&out, nil)
	c.c.recs = append(c.c.recs, pending{})
	c.c.payload += segment.BlockSize
	c.e.stats.movedBytes.Add(segment.BlockSize)
	return nil
}

// flush writes the gathered chunk and then, block by block, swaps the places that are still what
// they were. The source stays until an anchor has taken the new places up.
func (c *cleaner) flush() error {
	out, e := c.c, c.e
	if out == nil {
		return nil
	}
	c.c = nil
	defer func() {
		e.cache.put(out)
		c.moves = c.moves[:0]
	}()
	out.head = segment.Chunk{
		Incarnation: e.incarnation, Entries: uint16(len(out.recs)), Stream: c.stream,
		LSN: math.MaxUint32, EntryBytes: uint32(len(out.entries)),
		PayloadBytes: uint32(out.payload),
	}
	o := e.maint.out[c.stream]
	header := segment.ChunkHeader + len(out.entries)
	if o == nil || !o.fits(int64(out.head.Bytes()), header, e.space.size) {
		if o != nil {
			e.closeSegment(o)
		}
		var err error
		if o, err = e.openSegment(c.stream, 0); err != nil {
			e.maint.out[c.stream] = nil
			return e.device(err, "engine.clean")
		}
		e.maint.out[c.stream] = o
	}
	out.head.Sequence = o.seq
	img := out.image(e.super.Salt)
	off := e.space.off(o.id) + o.used
	o.footer.Add(uint32(o.used), img[:header])
	o.used += int64(len(img))
	if err := e.dev.WriteAt(img, off, false); err != nil {
		return e.device(err, "engine.clean")
	}
	base := uint64(off+int64(out.head.HeaderBytes())) / segment.Unit
	for _, m := range c.moves {
		swap(m, base)
	}
	return nil
}

// swap points a block at its moved copy if nobody wrote it meanwhile.
func swap(m move, base uint64) {
	l := m.vol.lane(m.block)
	l.mu.Lock()
	defer l.mu.Unlock()
	lf := m.vol.leaves[l.no][uint32(m.block/segment.LeafBlocks)]
	i := int(m.block % segment.LeafBlocks)
	if lf == nil || lf.Loc[i] != m.from {
		return
	}
	to := segment.MakeLoc(segment.Flash, base+uint64(m.unit), segment.BlockUnits, m.crc)
	l.point(m.vol, lf, i, to, m.crc)
	l.touch(lf, m.vol, m.block)
}
