package engine

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

const (
	// windowMax is how much a cleaner reads at once, in bytes; it has two windows.
	windowMax = 8 << 20
	// gapMax is up to how many dead bytes between two live blocks are read along: a read of its own
	// costs as much.
	gapMax = 32 << 10
)

// move is one block on its way from a victim.
type move struct {
	br    *branch // that holds it
	block uint64
	from  segment.Loc
	crc   uint32
	span  int // in its window
	at    int // place in the window's buffer
	seq   uint64
	lsn   uint64

	version domain.Version
	gen     uint32
	era     uint16
	stream  segment.Stream // it goes to
	unit    uint32         // place in the output's payload
}

// span is a part of a victim that is read in one go.
type span struct {
	backends.Read
	w   *window
	id  uint32 // of the victim
	err error
}

// ReadDone implements backends.ReadDone.
func (s *span) ReadDone(_ *backends.Read, err error) {
	s.err = err
	s.w.arrive()
}

// window is a part of what a round moves: what is read together, and sorted before it is written.
// Its buffer belongs to the device from begin until wait.
type window struct {
	buf   []byte
	used  int
	spans []span
	moves []move
	left  atomic.Int32
	done  chan struct{} // of capacity 1
}

func (w *window) reset() {
	clear(w.moves)
	clear(w.spans)
	w.used, w.spans, w.moves = 0, w.spans[:0], w.moves[:0]
}

func (w *window) arrive() {
	if w.left.Add(-1) == 0 {
		w.done <- struct{}{}
	}
}

// begin reads all spans, at once where the device can.
func (w *window) begin(dev backends.Device) {
	starter, ok := dev.(backends.ReadStarter)
	w.left.Store(int32(len(w.spans)) + 1)
	for i := range w.spans {
		s := &w.spans[i]
		s.To = s
		if !ok || !starter.StartRead(&s.Read, i < len(w.spans)-1) {
			s.ReadDone(&s.Read, dev.ReadAt(s.P, s.Off))
		}
	}
	w.arrive()
}

// cleaner moves live blocks: it fills one window while the other is read, and writes that one while
// the next is read. Owned by the maintenance for one round.
type cleaner struct {
	e       *Engine
	filling int     // which of the engine's windows
	flying  *window // the other one, while it is read; nil is none

	c      *chunk // gathers what is to be written
	stream segment.Stream
	moves  []move
	limit  int // most payload of the gathering chunk
}

// newCleaner makes the cleaner of a round; its windows are kept for the next.
func (e *Engine) newCleaner() *cleaner {
	for i, w := range e.windows {
		if w == nil {
			w = &window{
				buf:  backends.HugeBuffer(int(min(windowMax, e.space.size))),
				done: make(chan struct{}, 1),
			}
			e.windows[i] = w
		}
		w.reset()
	}
	return &cleaner{e: e}
}

// settle waits for what is being read, whose buffer will be used again, and gives up what is not
// written.
func (c *cleaner) settle() {
	if c.flying != nil {
		<-c.flying.done
		c.flying = nil
	}
	if c.c != nil {
		c.e.cache.put(c.c)
		c.c = nil
	}
}

// segment takes everything live in one victim on its way.
func (c *cleaner) segment(v victim) error {
	stream := segment.StreamGen1
	if v.stream != segment.StreamLog {
		stream = segment.StreamGen2
	}
	err := c.e.eachChunk(v.id, v.seq, func(off int64, h *segment.Chunk, entries []byte) error {
		return c.chunk(v, stream, off+int64(h.HeaderBytes()), h, entries)
	})
	if errors.Is(err, errUnreadable) {
		c.unreadable(v.id, err)
		return nil
	}
	return err
}

// unreadable leaves a segment alone: one sector that cannot be read is no reason to give the device
// up. What lives in this segment and was not read stays there, and each read of it answers for
// itself.
func (c *cleaner) unreadable(id uint32, err error) {
	if c.e.space.condemn(id) {
		c.e.report(Fact{What: "read-error", Detail: err.Error()})
	}
}

// chunk lists the live blocks of one chunk, whose payload starts at the device offset base.
func (c *cleaner) chunk(v victim, to segment.Stream, base int64, h *segment.Chunk,
	entries []byte,
) error {
	var live [segment.RecordBlocks]bool
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
		outside := int(en.Off)*segment.Unit+en.Count*segment.BlockSize > int(h.PayloadBytes)
		addr := uint64(base)/segment.Unit + uint64(en.Off)
		br := c.e.liveAt(&en, this, addr, live[:en.Count])
		if br == nil {
			continue
		}
		for i := range en.Count {
			if !live[i] {
				continue
			}
			if outside {
				c.e.spoiled(v.id, br, en.Block+uint64(i))
				continue
			}
			m := move{
				br: br, block: en.Block + uint64(i), from: entryLoc(&en, this, addr, i),
				crc: en.Further(this, i), seq: v.seq, lsn: en.LSN, version: en.Version,
				gen: en.Gen, era: en.Era, stream: to,
			}
			if err := c.add(v.id, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// entryLoc gives the place of block i of an entry whose payload stands at addr.
func entryLoc(en *segment.Entry, bytes []byte, addr uint64, i int) segment.Loc {
	return segment.MakeLoc(addr+uint64(i)*segment.BlockUnits, en.Further(bytes, i))
}

// liveAt notes which copies of the entry's blocks are still wanted, and gives the branch that holds
// them if any is: the one that the entry names, or that has absorbed it. No branch that only sees
// them is asked.
func (e *Engine) liveAt(en *segment.Entry, bytes []byte, addr uint64, live []bool) *branch {
	b := e.branch(en.Branch)
	if b == nil {
		return nil
	}
	ext := uint32(en.Block / segment.LeafBlocks)
	l := e.laneOf(b.fam, ext)
	l.mu.Lock()
	defer l.mu.Unlock()
	lf := b.fam.leaves[l.no][ext].of(b)
	if lf == nil {
		return nil
	}
	first, any := int(en.Block%segment.LeafBlocks), false
	for i := range live {
		live[i] = lf.own.get(first+i) == entryLoc(en, bytes, addr, i)
		any = any || live[i]
	}
	if !any {
		return nil
	}
	return b
}

// add puts a live block into the filling window, into the span before it where that is near.
func (c *cleaner) add(id uint32, m move) error {
	w, off := c.e.windows[c.filling], m.from.Off()
	if n := len(w.spans); n > 0 {
		s := &w.spans[n-1]
		gap := off - s.Off - int64(len(s.P))
		if s.id == id && gap >= 0 && gap <= gapMax &&
			w.used+int(gap)+segment.BlockSize <= len(w.buf) {
			start := w.used - len(s.P)
			w.used += int(gap) + segment.BlockSize
			s.P = w.buf[start:w.used:w.used]
			m.span, m.at = n-1, w.used-segment.BlockSize
			w.moves = append(w.moves, m)
			return nil
		}
	}
	if w.used+segment.BlockSize > len(w.buf) {
		if err := c.turn(); err != nil {
			return err
		}
		w = c.e.windows[c.filling]
	}
	m.span, m.at = len(w.spans), w.used
	p := w.buf[w.used : w.used+segment.BlockSize : w.used+segment.BlockSize]
	w.spans = append(w.spans, span{Read: backends.Read{P: p, Off: off}, w: w, id: id})
	w.moves = append(w.moves, m)
	w.used += segment.BlockSize
	return nil
}

// turn begins to read the full window, and writes the other one meanwhile if it holds something.
func (c *cleaner) turn() error {
	w, before := c.e.windows[c.filling], c.flying
	w.begin(c.e.dev)
	c.flying, c.filling = w, 1-c.filling
	if before == nil {
		return nil
	}
	return c.write(before)
}

// end takes what is still on its way to its end.
func (c *cleaner) end() error {
	if err := c.turn(); err != nil {
		return err
	}
	last := c.flying
	c.flying = nil
	if err := c.write(last); err != nil {
		return err
	}
	return c.flush()
}

// write waits for a window, verifies its blocks and puts them into the output, neighbours of a
// volume side by side: what random writes have scattered is read in fewer pieces afterwards.
func (c *cleaner) write(w *window) error {
	<-w.done
	defer w.reset()
	for i := range w.spans {
		if s := &w.spans[i]; s.err != nil {
			c.unreadable(s.id, c.e.unreadable(s.err))
		}
	}
	slices.SortFunc(w.moves, func(a, b move) int {
		return cmp.Or(cmp.Compare(a.stream, b.stream), cmp.Compare(a.br.id, b.br.id),
			cmp.Compare(a.block, b.block))
	})
	for i := range w.moves {
		m := &w.moves[i]
		s, data := &w.spans[m.span], w.buf[m.at:m.at+segment.BlockSize]
		switch {
		case s.err != nil:
		case segment.Checksum(data) != m.crc:
			c.e.spoiled(s.id, m.br, m.block)
		default:
			if err := c.put(m, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// spoiled reports a live block whose bytes are wrong, and keeps its segment out of the cleaner's
// way: the block stays where it is and reads as corrupt until it is written again.
func (e *Engine) spoiled(id uint32, b *branch, block uint64) {
	e.report(Fact{
		What: "corrupt", Volume: e.volumeOf(b), Block: block, Detail: "found by the cleaner",
	})
	e.space.set(e.space.mu.segs[id], segBad)
}

// put adds one block to the output.
func (c *cleaner) put(m *move, data []byte) error {
	if c.c != nil && (c.stream != m.stream || !c.c.fits(segment.BlockSize, c.limit)) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.c == nil {
		c.c, c.limit, c.stream = c.e.cache.get(), 0, m.stream
		if o := c.e.maint.out[c.stream]; o != nil {
			c.limit = o.roomMoved(c.e.space.size)
		}
		if c.limit == 0 {
			c.limit = c.e.payloadMax()
		}
	}
	m.unit = uint32(c.c.payload / segment.Unit)
	out := segment.Entry{
		Branch: m.br.id, Block: m.block, Count: 1, Kind: segment.KindData,
		Flags: segment.FlagMoved, Version: m.version, Gen: m.gen, Era: m.era, LSN: m.lsn,
		Off: m.unit, Units: segment.BlockUnits, CRC: m.crc, From: m.from.Addr(), FromSeq: m.seq,
	}
	copy(c.c.buf[segment.HeaderMax+c.c.payload:], data)
	c.moves = append(c.moves, *m)
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
		clear(c.moves)
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
	for moves := c.moves; len(moves) > 0; {
		moves = e.swap(moves, base)
	}
	return nil
}

// swap points the blocks of one leaf at their moved copies, each if nobody wrote it meanwhile, and
// gives the moves that are left.
func (e *Engine) swap(moves []move, base uint64) []move {
	b, ext := moves[0].br, uint32(moves[0].block/segment.LeafBlocks)
	l := e.laneOf(b.fam, ext)
	l.mu.Lock()
	defer l.mu.Unlock()
	lf := b.fam.leaves[l.no][ext].of(b)
	for n := range moves {
		m := &moves[n]
		if m.br != b || uint32(m.block/segment.LeafBlocks) != ext {
			return moves[n:]
		}
		i := int(m.block % segment.LeafBlocks)
		if lf == nil || lf.own.get(i) != m.from {
			continue
		}
		to := segment.MakeLoc(base+uint64(m.unit), m.crc)
		l.put(lf, i, to)
		l.show(lf, i, m.from, to)
		l.touch(lf)
	}
	return nil
}
