package engine

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"weft/backends"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

const (
	// windowMax is how much a cleaner reads at once, in bytes; it has two windows.
	windowMax = 8 << 20
	// windowSteps is in how many steps at most a small window is read while it fills.
	windowSteps = 8
	// stepMax is how much of it is read beside one chunk that is written.
	stepMax = 1 << 20
	// pieceMax is how much of either is under way at once: a host's write waits behind it on the
	// device, and the flush behind that once more.
	pieceMax = 256 << 10
)

// longest gives how many bytes of the device are read as one.
func (e *Engine) longest() int {
	if e.dev.Geometry().Rotational {
		return stepMax
	}
	return pieceMax
}

// piece gives how much of the device's own work is under way at once, in bytes: whole steps on a
// disk that turns, and where hosts would have to wait for what it wins.
func (e *Engine) piece() int {
	if e.hurried() {
		return stepMax
	}
	return e.longest()
}

// move is blocks on their way from a victim: neighbours of one record that still live.
type move struct {
	br    *branch // that holds them
	block uint64
	count int
	from  uint64 // address of the first
	units int    // of a compressed block, of which a move has one; 0: they are plain
	crc   int    // index of its CRC, in the window and then in the chunk
	span  int    // in its window
	at    int    // place in the window's buffer
	seq   uint64
	lsn   uint64

	version domain.Version
	gen     uint32
	era     uint16
	stream  segment.Stream // it goes to

	// of an encrypted volume: the life it comes from; its entry as it was, in the window's raw; which
	// block of that it begins with
	life   *life
	raw    [2]int
	behind int
	unit   uint32 // place in the output's payload
	packed int    // units that it takes there, of a compressed one

	held *heldRecord // of a replica: it is moved as a whole
	kept segment.Mask
}

// stored gives the bytes of each block where it comes from.
func (m *move) stored() int {
	if m.units > 0 {
		return m.units * segment.Unit
	}
	return segment.BlockSize
}

// source gives the place of block i, whose CRC there is given.
func (m *move) source(i int, crc uint32) segment.Loc {
	if m.units > 0 {
		return segment.MakePacked(m.from, m.units, crc)
	}
	return segment.MakeLoc(m.from+uint64(i)*segment.BlockUnits, crc)
}

// target gives the new place of block i, in a chunk whose payload is at base.
func (m *move) target(base uint64, i int, crc uint32) segment.Loc {
	p := pending{unit: m.unit, units: m.packed}
	return p.loc(base, i, crc)
}

// key gives the key that the blocks are under; nil for none.
func (m *move) key() *volumeKey {
	if m.life == nil {
		return nil
	}
	return m.br.key
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
// Its buffer belongs to the device from the first step until wait.
type window struct {
	buf     []byte
	used    int
	spans   []span
	moves   []move
	crcs    []uint32 // of the moves' blocks
	raw     []byte   // entries of encrypted ones
	longest int      // bytes of a span
	begun   int      // spans of the steps that were started
	asked   int      // bytes of those
	under   bool     // the last of these may be under way
	reads   int      // of it, with their bytes, and how long it took
	bytes   int64
	took    time.Duration
	piece   func() int // bytes under way at once, if not longest
	clock   func() time.Duration
	cost    *tier.ReadCost // of the device
	left    atomic.Int32   // reads under way at once
	ended   chan struct{}  // they are done; of capacity 1
	done    chan struct{}  // the step is done; of capacity 1
}

// newWindow makes a window of so many bytes. Its list of spans never grows: spans that are being
// read stay where they are.
func newWindow(size int64) *window {
	return &window{
		buf: backends.HugeBuffer(int(size)), spans: make([]span, 0, size/segment.Sector),
		ended: make(chan struct{}, 1), done: make(chan struct{}, 1),
	}
}

func (w *window) reset() {
	clear(w.moves)
	clear(w.spans)
	w.used, w.begun, w.asked = 0, 0, 0
	w.spans, w.moves, w.crcs, w.raw = w.spans[:0], w.moves[:0], w.crcs[:0], w.raw[:0]
}

func (w *window) arrive() {
	if w.left.Add(-1) == 0 {
		w.ended <- struct{}{}
	}
}

// step waits for the step that is under way and starts the next.
func (w *window) step(dev backends.Device) {
	w.rest()
	w.start(dev, len(w.spans))
}

// early starts a step while the window still fills, if there is enough to read for one and none is
// under way. The last span may grow and is left out.
func (w *window) early(dev backends.Device) {
	if w.under {
		select {
		case <-w.done:
			w.rested()
		default:
			return
		}
	}
	if w.used-w.asked >= min(pieceMax, len(w.buf)/windowSteps) {
		w.start(dev, len(w.spans)-1)
	}
}

// start starts a step of spans before one of them; none is under way.
func (w *window) start(dev backends.Device, end int) {
	from, size := w.begun, 0
	for w.begun < end && size+len(w.spans[w.begun].P) <= stepMax {
		size += len(w.spans[w.begun].P)
		w.begun++
	}
	if from == w.begun {
		return
	}
	w.asked += size
	w.under, w.reads, w.bytes = true, w.begun-from, int64(size)
	go w.pull(dev, w.spans[from:w.begun], max(w.longest, w.piece()))
}

// pull reads spans, so many bytes of them at once.
func (w *window) pull(dev backends.Device, spans []span, most int) {
	began := w.clock()
	for n := 0; n < len(spans); {
		first, size := n, 0
		for n < len(spans) && (n == first || size+len(spans[n].P) <= most) {
			size += len(spans[n].P)
			n++
		}
		w.together(dev, spans[first:n])
	}
	w.took = w.clock() - began
	w.done <- struct{}{}
}

// together reads spans and waits for them, all at once where the device can.
func (w *window) together(dev backends.Device, spans []span) {
	starter, ok := dev.(backends.ReadStarter)
	w.left.Store(int32(len(spans)) + 1)
	for i := range spans {
		s := &spans[i]
		s.To = s
		if !ok || !starter.StartRead(&s.Read, i < len(spans)-1) {
			s.ReadDone(&s.Read, dev.ReadAt(s.P, s.Off))
		}
	}
	w.arrive()
	<-w.ended
}

// rest waits for the step that is under way.
func (w *window) rest() {
	if w.under {
		<-w.done
		w.rested()
	}
}

// rested notes that the step is done and what it took.
func (w *window) rested() {
	w.under = false
	*w.cost = w.cost.Read(w.reads, w.bytes, w.took)
}

// wait reads what is left, step by step.
func (w *window) wait(dev backends.Device) {
	for w.begun < len(w.spans) {
		w.step(dev)
	}
	w.rest()
}

// cleaner moves live blocks: it fills one window while the other is read, and writes that one while
// the next is read. Owned by the maintenance for one round.
type cleaner struct {
	e       *Engine
	filling int     // which of the engine's windows
	flying  *window // the other one, while it is read; nil is none

	c      *chunk // gathers what is to be written
	stream segment.Stream
	moves  []move // what it holds
	limit  int    // most payload of the gathering chunk
	lends  bool   // the device takes what is written from the window's memory
	flight *flight
	short  bool // of free segments: it does not give way to hosts
	eager  bool // to read a window while it fills
	pad    pad
	sieve  sieve
	seen   int // blocks since it let other threads go

	used   int64 // of the segment that the gathering chunk will go to
	footer int   // bytes of that segment's footer so far

	cold bool                 // what it moves goes to the disk of a pair
	disk bool                 // and comes from there
	only map[segment.Loc]bool // the only blocks it moves; nil: all that live
}

// flight is a chunk of the cleaner that is being written.
type flight struct {
	c     *chunk
	moves []move
	base  uint64 // address of its payload
	done  chan error
}

// newCleaner makes the cleaner of a round; its windows are kept for the next.
func (e *Engine) newCleaner() *cleaner {
	for i, w := range e.windows {
		if w == nil {
			w = newWindow(min(windowMax, e.space.size))
			w.clock, w.piece = e.clock().Now, e.piece
			e.windows[i] = w
		}
		w.cost, w.longest = &e.maint.reads, e.longest()
		w.reset()
	}
	_, can := e.dev.(backends.VectorWriter)
	c := &cleaner{e: e, lends: can, short: e.space.short(), eager: !e.dev.Geometry().Rotational}
	e.maint.behind.Store(c.short || e.maint.dear)
	return c
}

// hurried tells whether the device's own work takes what it can get of the device: the segments are
// short, one is dear, or a host waits. Small pieces between those of hosts leave more to hosts than
// the cleaner can win back then.
func (e *Engine) hurried() bool {
	return e.maint.behind.Load() || e.space.waiting.Load() > 0 || e.scarce()
}

// did notes blocks that were seen to; no lock is held.
func (c *cleaner) did(blocks int) {
	if c.seen += blocks; c.seen >= stintMax {
		c.seen = 0
		c.e.giveWay()
	}
}

// urgent tells whether hosts will have to wait for what is cleaned.
func (c *cleaner) urgent() bool {
	return c.short || c.e.space.waiting.Load() > 0 || c.e.scarce()
}

// scarce tells whether free segments are about to run out. With a journal the cleaner hurries then:
// its hosts wait for no device, and what they would wait for are segments.
func (e *Engine) scarce() bool { return e.nv != nil && e.space.scarce.Load() }

// settle waits for what is being read, whose buffer will be used again, and gives up what is not
// written.
func (c *cleaner) settle() {
	if c.flying != nil {
		c.flying.rest()
		c.flying = nil
	}
	if c.flight != nil {
		_ = c.land() // the round has failed already
	}
	c.e.dropCold()
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
	if c.cold {
		stream = segment.StreamCold
	}
	c.sieve.full = v.live > c.e.space.size/sievePart
	each := func(off int64, h *segment.Chunk, entries []byte) error {
		base := off + int64(h.HeaderBytes())
		if h.PayloadBytes > 0 && !c.e.space.settled(base, int64(h.PayloadBytes)) {
			return nil
		}
		// Compressed blocks stand behind the plain ones: so what is read goes on upwards.
		more, err := c.chunk(v, stream, base, h, entries, false)
		if more && err == nil {
			_, err = c.chunk(v, stream, base, h, entries, true)
		}
		return err
	}
	_, err := c.e.readChunks(v.id, v.seq, &c.e.maint.room, each)
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

// chunk lists the live blocks of one chunk, whose payload starts at the device offset base: those
// that are compressed, or the others; then it tells whether there are entries of compressed ones.
func (c *cleaner) chunk(v victim, to segment.Stream, base int64, h *segment.Chunk,
	entries []byte, packed bool,
) (more bool, err error) {
	var live [segment.RecordBlocks]bool
	c.sieve.end = len(entries)
	for c.did(1); len(entries) > 0; {
		if entries = c.sift(base, h, entries); len(entries) == 0 {
			break
		}
		var en segment.Entry
		n, err := segment.DecodeEntry(entries, h.LSN, &en)
		if err != nil {
			return more, nil //nolint:nilerr // the padding of a header; a bad header has failed before
		}
		this := entries[:n]
		entries = entries[n:]
		c.did(1)
		if en.Kind != segment.KindData || en.Packed() != packed {
			more = more || en.Packed()
			continue
		}
		outside := (int(en.Off)+int(en.Units))*segment.Unit > int(h.PayloadBytes)
		payload := uint64(base) / segment.Unit
		if !outside && !c.e.space.settledBy(&en, base) {
			continue
		}
		if l, h := c.e.heldAt(&en, payload+uint64(en.Off)); h != nil {
			if outside {
				c.e.spoiled(v.id, l.replicaOf(h), en.Block)
				continue
			}
			if err := c.whole(v, to, h, &en, this, payload+uint64(en.Off)); err != nil {
				return more, err
			}
			continue
		}
		br := c.e.liveAt(&en, this, payload, live[:en.Count])
		if br == nil {
			continue
		}
		lf, ok := c.unlock(v.id, br, &en)
		if !ok {
			continue
		}
		for i := 0; c.only != nil && i < en.Count; i++ {
			live[i] = live[i] && c.only[en.Loc(this, payload, i)]
		}
		if outside {
			for i := range en.Count {
				if live[i] {
					c.e.spoiled(v.id, br, en.Block+uint64(i))
				}
			}
			continue
		}
		m := move{
			br: br, seq: v.seq, lsn: en.LSN, version: en.Version, gen: en.Gen, era: en.Era, stream: to,
			life: lf,
		}
		if err := c.addLive(v.id, m, &en, this, payload, live[:en.Count]); err != nil {
			return more, err
		}
	}
	return more, nil
}

// addLive adds what lives of an entry's blocks, as a move for each stretch of them. It completes a
// move that says what the entry says.
func (c *cleaner) addLive(id uint32, m move, en *segment.Entry, bytes []byte, payload uint64,
	live []bool,
) error {
	if en.Packed() {
		m.units = int(en.Units)
	}
	for i := 0; i < len(live); i++ {
		if !live[i] {
			continue
		}
		first := i
		for i+1 < len(live) && live[i+1] {
			i++
		}
		m.block, m.count, m.behind = en.Block+uint64(first), i+1-first, first
		m.from = payload + uint64(en.Off) + uint64(first)*segment.BlockUnits
		err := c.add(id, m, bytes, func(k int) uint32 { return en.Further(bytes, first+k) })
		if err != nil {
			return err
		}
	}
	return nil
}

// unlock gives the life under whose keys an entry of a victim is, nil where it is not encrypted.
// What cannot be opened here cannot be moved: then it gives false, and the victim is left alone
// until the next start, which may have the key.
func (c *cleaner) unlock(id uint32, br *branch, en *segment.Entry) (lf *life, ok bool) {
	if br.key == nil && en.Flags&segment.FlagEncrypted == 0 {
		return nil, true
	}
	lf = c.e.space.mu.segs[id].life.Load()
	if br.key != nil && br.key.secret != nil && lf != nil && en.Flags&segment.FlagEncrypted != 0 {
		return lf, true
	}
	if c.e.space.condemn(id) {
		c.e.report(Fact{
			What: "keyless", Volume: c.e.volumeOf(br), Block: en.Block,
			Detail: "cannot be moved: its key is not there",
		})
	}
	return nil, false
}

// liveAt notes which copies of the blocks of an entry, whose chunk's payload stands at an address,
// are still wanted, and gives the branch that holds
// them if any is: the one that the entry names, or that has absorbed it. No branch that only sees
// them is asked.
func (e *Engine) liveAt(en *segment.Entry, bytes []byte, payload uint64, live []bool) *branch {
	b := e.branch(en.Branch)
	if b == nil {
		return nil
	}
	ext := uint32(en.Block / segment.LeafBlocks)
	l := e.laneOf(b.fam, ext)
	l.lock()
	defer l.mu.Unlock()
	lf := b.fam.leaves[l.no][ext].of(b)
	if lf == nil {
		return nil
	}
	first, any := int(en.Block%segment.LeafBlocks), false
	for i := range live {
		live[i] = lf.own.get(first+i) == en.Loc(bytes, payload, i)
		any = any || live[i]
	}
	if !any {
		return nil
	}
	return b
}

// add puts live blocks into the filling window, into the span before them where that is near; what
// has no room there goes into the next.
func (c *cleaner) add(id uint32, m move, entry []byte, crc func(i int) uint32) error {
	for done := 0; done < m.count; {
		w := c.e.windows[c.filling]
		part := m
		part.block += uint64(done)
		part.from += uint64(done) * segment.BlockUnits
		part.count, part.crc = w.take(id, &part, m.count-done), len(w.crcs)
		if part.count == 0 {
			if err := c.turn(); err != nil {
				return err
			}
			continue
		}
		if part.life != nil {
			part.behind += done
			part.raw[0] = len(w.raw)
			w.raw = append(w.raw, entry...)
			part.raw[1] = len(w.raw)
		}
		for range part.count {
			w.crcs = append(w.crcs, crc(done))
			done++
		}
		w.moves = append(w.moves, part)
		if c.eager && c.flying == nil {
			w.early(c.e.dev)
		}
	}
	return nil
}

// take finds room for up to n blocks of a move and gives for how many there is.
func (w *window) take(id uint32, m *move, n int) int {
	off, gap := int64(m.from)*segment.Unit, int64(-1)
	skip := int(off % segment.Sector)
	off -= int64(skip)
	var s *span
	if k := len(w.spans); k > 0 {
		s = &w.spans[k-1]
		gap = off - s.Off - int64(len(s.P))
	}
	if s != nil && s.id == id && gap == -segment.Sector && m.units > 0 {
		// It begins in the sector in which the one before ends.
		if n := w.share(s, m, skip); n > 0 {
			return n
		}
		s = nil
	}
	if s == nil || s.id != id || gap < 0 || gap > int64(w.cost.Gap()) ||
		len(s.P)+int(gap)+segment.BlockSize > w.longest {
		s, gap = nil, 0
	}
	each := segment.RoundUp(skip+m.stored(), segment.Sector)
	n = min(n, (len(w.buf)-w.used-int(gap))/each)
	if s != nil {
		n = min(n, (w.longest-len(s.P)-int(gap))/each)
	} else {
		n = min(n, w.longest/each)
	}
	if n <= 0 {
		return 0
	}
	size := int(gap) + n*each
	if s == nil {
		w.spans = append(w.spans, span{Read: backends.Read{Off: off}, w: w, id: id})
		s = &w.spans[len(w.spans)-1]
		s.P = w.buf[w.used:w.used]
	}
	start := w.used - len(s.P)
	m.span, m.at = len(w.spans)-1, w.used+int(gap)+skip
	w.used += size
	s.P = w.buf[start:w.used:w.used]
	return n
}

// share finds room for a compressed block that begins in the last sector of a span, skip bytes in
// it, and gives 1, or 0 when there is none.
func (w *window) share(s *span, m *move, skip int) int {
	more := segment.RoundUp(skip+m.stored(), segment.Sector) - segment.Sector
	if len(w.buf)-w.used < more || len(s.P)+more > w.longest {
		return 0
	}
	start := w.used - len(s.P)
	m.span, m.at = len(w.spans)-1, w.used-segment.Sector+skip
	w.used += more
	s.P = w.buf[start:w.used:w.used]
	return 1
}

// turn lets the full window be read, and writes the other one meanwhile if it holds something.
func (c *cleaner) turn() error {
	before := c.flying
	c.flying, c.filling = c.e.windows[c.filling], 1-c.filling
	if before == nil {
		c.flying.step(c.e.dev)
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
	if err := c.flush(); err != nil {
		return err
	}
	return c.land()
}

// write waits for a window, verifies its blocks and puts them into the output, neighbours of a
// volume side by side: what random writes have scattered is read in fewer pieces afterwards.
func (c *cleaner) write(w *window) error {
	w.wait(c.e.dev)
	if c.flying != nil {
		c.flying.step(c.e.dev)
	}
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
		c.did(m.count)
		if w.spans[m.span].err != nil {
			continue
		}
		if m.held != nil {
			if err := c.verifyWhole(w, m); err != nil {
				return err
			}
			continue
		}
		if err := c.verify(w, m); err != nil {
			return err
		}
	}
	if c.c != nil && (len(c.c.parts) > 0 || c.cold) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	return c.land() // the window's memory is used again
}

// verify puts those blocks of a move into the output that are what they were written as.
func (c *cleaner) verify(w *window, m *move) error {
	size := m.stored()
	data, crcs := w.buf[m.at:m.at+m.count*size], w.crcs[m.crc:m.crc+m.count]
	for first := 0; first < m.count; first++ {
		n := 0
		for first+n < m.count && c.sound(w, m, first+n, data[(first+n)*size:][:size], crcs[first+n]) {
			n++
		}
		if n > 0 {
			err := c.store(m, first, crcs[first:first+n], data[first*size:])
			if err != nil {
				return err
			}
		}
		if first += n; first < m.count {
			c.e.spoiled(w.spans[m.span].id, m.br, m.block+uint64(first))
		}
	}
	return nil
}

// sound tells whether a block is what it was written as, and opens it.
func (c *cleaner) sound(w *window, m *move, i int, b []byte, crc uint32) bool {
	if segment.Checksum(b) != crc {
		return false
	}
	if m.life == nil {
		return true
	}
	entry := w.raw[m.raw[0]:m.raw[1]]
	off := int64(m.from)*segment.Unit + int64(i)*segment.BlockSize
	a := c.e.cipherOf(m.br.key, m.life)
	return c.pad.open(a, m.life, off, b, segment.Tag(entry, m.behind+i), entry)
}

// spoiled reports a live block whose bytes are wrong, and keeps its segment out of the cleaner's
// way: the block stays where it is and reads as corrupt until it is written again.
func (e *Engine) spoiled(id uint32, b *branch, block uint64) {
	e.report(Fact{
		What: "corrupt", Volume: e.volumeOf(b), Block: block, Detail: "found by the cleaner",
	})
	e.space.set(e.space.mu.segs[id], segBad)
}

// put adds blocks of a move to the output, from the first'th on; data begins with them.
func (c *cleaner) put(m *move, first int, crcs []uint32, data []byte) error {
	for len(crcs) > 0 {
		if err := c.ready(m, segment.BlockSize); err != nil {
			return err
		}
		n := min(len(crcs), (c.limit-c.c.payload-len(c.c.packed))/segment.BlockSize)
		for n > 1 && !c.fits(m, n, n*segment.BlockSize) {
			n-- // its entry has no room
		}
		c.entry(m, first, crcs[:n], data[:n*segment.BlockSize])
		first, crcs, data = first+n, crcs[n:], data[n*segment.BlockSize:]
	}
	return nil
}

// ready makes a gathering chunk with room for one block of a move, of so many bytes.
func (c *cleaner) ready(m *move, size int) error {
	if c.c != nil && (c.stream != m.stream || !c.fits(m, 1, size)) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.c != nil {
		return nil
	}
	c.c, c.limit, c.stream = c.e.cache.get(), 0, m.stream
	if o := c.e.maint.out[c.stream]; o != nil {
		c.limit = o.roomMoved(c.e.space.size, int(c.e.space.tags.Load()))
		c.used, c.footer = o.used, o.footer.Body()
	}
	if c.limit == 0 {
		c.limit, c.used, c.footer = c.e.payloadMax(), segment.Sector, 0
	}
	return nil
}

// fits tells whether the gathering chunk takes n blocks of a move with so many bytes of data: by
// its own limits, and by those of its segment, where the entries of compressed blocks take more
// than roomMoved allows for.
func (c *cleaner) fits(m *move, n, size int) bool {
	if !c.c.takes(m.key(), size, c.limit) {
		return false
	}
	if len(c.c.packed) == 0 && m.units == 0 && size == n*segment.BlockSize {
		return true
	}
	entry := segment.EntrySettled + segment.EntryMoved + 4*(n-1) + segment.SaltBytes
	if m.key() != nil {
		entry += n * segment.TagBytes
	}
	header := segment.ChunkHeader + c.c.entryBytes() + entry
	foot := segment.FooterSize(c.footer, header)
	payload := segment.RoundUp(c.c.payload+len(c.c.packed)+size, segment.Sector)
	return c.used+int64(segment.RoundUp(header, segment.Sector)+payload+foot) <= c.e.space.size
}

// entry adds blocks that the gathering chunk has room for.
func (c *cleaner) entry(m *move, first int, crcs []uint32, data []byte) {
	out := *m
	out.block += uint64(first)
	out.from += uint64(first) * segment.BlockUnits
	out.count, out.crc, out.unit = len(crcs), len(c.c.crcs), uint32(c.c.payload/segment.Unit)
	en := segment.Entry{
		Branch: m.br.id, Block: out.block, Count: out.count, Kind: segment.KindData,
		Flags: segment.FlagMoved, Version: m.version, Gen: m.gen, Era: m.era, LSN: m.lsn,
		Off: out.unit, Units: uint16(out.count * segment.BlockUnits), CRC: crcs[0],
		From: out.from, FromSeq: m.seq,
	}
	if m.life != nil {
		en.Flags |= segment.FlagEncrypted
		c.c.conceal(secret{m.br.key, len(c.c.entries), out.unit, out.count, segment.BlockSize, out.crc})
	}
	at := len(c.c.entries)
	if m.held != nil {
		en.Flags |= segment.FlagFresh | m.held.Outcome
		en.Request = m.held.Request
	}
	c.c.encode(&en, crcs[1:])
	if m.held != nil {
		en.PutMask(c.c.entries[at:], &m.kept)
	}
	c.c.crcs, c.c.was = append(c.c.crcs, crcs...), append(c.c.was, crcs...)
	c.c.recs = append(c.c.recs, pending{})
	c.moves = append(c.moves, out)
	c.c.lend(data, c.lends && m.life == nil && len(data) >= partMin)
	c.e.stats.movedBytes.Add(int64(len(data)))
}

// flush sends the gathered chunk off, once the one before it has landed. The next step is read
// meanwhile.
func (c *cleaner) flush() error {
	out, e := c.c, c.e
	if out == nil {
		return nil
	}
	base := out.join()
	for i := range c.moves {
		if m := &c.moves[i]; m.packed > 0 {
			m.unit += base
		}
	}
	out.head = segment.Chunk{
		Incarnation: e.incarnation, Entries: uint16(len(out.recs)), Stream: c.stream,
		LSN: math.MaxUint32, EntryBytes: uint32(out.entryBytes()), Sealed: len(out.secrets) > 0,
		PayloadBytes: uint32(segment.RoundUp(out.payload, segment.Sector)),
	}
	if c.stream == segment.StreamCold {
		return c.lay(out)
	}
	if err := c.land(); err != nil {
		return err
	}
	o := e.maint.out[c.stream]
	header := segment.ChunkHeader + out.entryBytes()
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
	off := e.space.off(o.id) + o.used
	out.close(e, o.life, off+int64(out.head.HeaderBytes()))
	img := out.image(e.super.Salt)
	o.footer.Add(uint32(o.used), img[:header])
	o.used += int64(len(img))
	f := &flight{
		c: out, moves: c.moves, base: uint64(off+int64(out.head.HeaderBytes())) / segment.Unit,
		done: make(chan error, 1),
	}
	c.c, c.moves, c.flight = nil, nil, f
	e.sched.Begin(qos.Clean, c.urgent)
	go func() { f.done <- out.trickle(e.dev, img, off, e.piece()) }()
	if c.flying != nil {
		c.flying.step(e.dev)
	}
	return nil
}

// land waits for the chunk that is being written and then, block by block, swaps the places that
// are still what they were. The source stays until an anchor has taken the new places up.
func (c *cleaner) land() error {
	if err := c.pour(); err != nil {
		return err
	}
	f := c.flight
	if f == nil {
		return nil
	}
	c.flight = nil
	err := <-f.done
	c.e.sched.End(qos.Clean)
	c.enter(f, err)
	return c.e.device(err, "engine.clean")
}

// enter swaps the places of a chunk's blocks, if it was written, and gives its buffer back.
func (c *cleaner) enter(f *flight, err error) {
	for moves := f.moves; err == nil && len(moves) > 0; {
		left := c.e.swap(moves, f.c, f.base)
		c.did(len(moves) - len(left))
		moves = left
	}
	c.e.cache.put(f.c)
}

// swap points the blocks of one leaf at their moved copies, each if nobody wrote it meanwhile, and
// gives the moves that are left.
func (e *Engine) swap(moves []move, c *chunk, base uint64) []move {
	b, ext := moves[0].br, uint32(moves[0].block/segment.LeafBlocks)
	l := e.laneOf(b.fam, ext)
	l.lock()
	defer l.mu.Unlock()
	lf := b.fam.leaves[l.no][ext].of(b)
	for n := range moves {
		m := &moves[n]
		if m.br != b || uint32(m.block/segment.LeafBlocks) != ext {
			return moves[n:]
		}
		for k := range m.count {
			i, from := int(m.block%segment.LeafBlocks)+k, m.source(k, c.was[m.crc+k])
			if lf == nil || lf.own.get(i) != from {
				continue
			}
			to := m.target(base, k, c.crcs[m.crc+k])
			l.put(lf, i, to)
			l.show(lf, i, from, to)
			l.touch(lf)
		}
		if m.held != nil {
			l.moved(m, base)
		}
	}
	return nil
}
