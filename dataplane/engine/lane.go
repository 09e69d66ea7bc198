package engine

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// Limits of a lane.
const (
	chunkBuffers  = 4    // per lane: one gathers, two are in flight, one waits for its turn
	chunkWriters  = 2    // measured: two in flight beat four, whose chunks get smaller
	chunkCarriers = 4    // of the destager's, which are full
	chunkPlaced   = 2    // of those that have their places while the ones before are written
	chunkRecords  = 1008 // records of a chunk: fresh one-block entries that fit its header
	entriesMax    = segment.HeaderMax - segment.ChunkHeader - segment.SaltBytes
	segmentParts  = 8 // a chunk's entries take at most this part of a segment
	chunkCRCs     = segment.PayloadMax / segment.BlockSize
	firstEntryMax = segment.EntrySettled + segment.EntryFresh + 4*segment.RecordBlocks
)

// pending is a record on its way to the device.
type pending struct {
	rec   *Record
	br    *branch // the head when it was appended
	kind  segment.Kind
	block uint64
	count int
	lsn   uint64
	unit  uint32           // DATA: place in the payload, in units of 512 B
	units int              // DATA: of a compressed block; 0: they are plain
	crc   int              // DATA: index of its first CRC in the chunk
	newly int64            // bytes admitted for it
	tags  int              // DATA: bytes of tags in its entry
	from  uint32           // DATA: place in the journal that it comes from; 0: from a host
	near  *leaf            // DATA from there: where it stands in the index; nil: not known
	lines []segment.Branch // BRANCH
	held  *heldRecord      // of a replica
	whole bool             // one of those, from the journal
	size  int              // of its entry, in bytes
}

// chunk is one group commit: entries and payload gather here until a writer seals it. The buffer
// holds header and payload side by side, so that one write takes both.
type chunk struct {
	buf     []byte // header room, then payload from HeaderMax on
	entries []byte // encoded entries
	crcs    []uint32
	recs    []pending
	parts   []part   // of the payload, in order, that stand elsewhere
	vector  [][]byte // what is written, where there are parts
	payload int
	room    int // most bytes of entries
	full    bool
	// group counts the writes of the destager's group that this belongs to: it is written without FUA,
	// and nvram.settle tells its outcome. nil: it is not the destager's.
	group *sync.WaitGroup

	packed []byte // compressed blocks, which go behind the plain ones when the chunk is full
	tails  []tail // their entries

	secrets  []secret // entries that are encrypted
	life     *life    // under whose keys they are; nil: not yet
	closedAt int64    // where the payload stood then
	was      []uint32 // of the crcs, those where the blocks come from; empty for what hosts append
	pad      *pad

	head  segment.Chunk
	chain uint32
	seg   *openSegment
	off   int64
	done  bool
	err   error
	next  *chunk
}

// newChunk makes a buffer for the largest payload of a device with segments of that size, or for
// one leaf where that is less. Entries are bounded by the segment too: they stand in it twice, in
// the chunk and in the footer, and a chunk that no segment can hold would never be written.
func newChunk(size int64) *chunk {
	payload := max(chunkPayload(size), segment.RoundUp(segment.LeafMax, segment.Sector))
	return &chunk{
		room:    int(min(entriesMax, size/segmentParts)),
		buf:     backends.HugeBuffer(segment.HeaderMax + payload),
		entries: make([]byte, 0, segment.HeaderMax),
		crcs:    make([]uint32, 0, chunkCRCs),
		recs:    make([]pending, 0, chunkRecords),
	}
}

// chunkPool keeps chunk buffers of a whole device: they are a megabyte each.
type chunkPool struct {
	size int64 // of the device's segments

	mu   sync.Mutex
	list []*chunk
}

func (p *chunkPool) get() *chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.list); n > 0 {
		c := p.list[n-1]
		p.list = p.list[:n-1]
		return c
	}
	return newChunk(p.size)
}

func (p *chunkPool) put(c *chunk) {
	c.reset()
	p.mu.Lock()
	p.list = append(p.list, c)
	p.mu.Unlock()
}

func (c *chunk) reset() {
	clear(c.recs)
	clear(c.parts)
	clear(c.secrets)
	c.parts = c.parts[:0]
	c.entries, c.crcs, c.recs = c.entries[:0], c.crcs[:0], c.recs[:0]
	c.payload, c.full, c.done, c.err, c.next, c.seg = 0, false, false, nil, nil, nil
	c.group = nil
	c.secrets, c.life, c.was = c.secrets[:0], nil, c.was[:0]
	c.packed, c.tails = c.packed[:0], c.tails[:0]
}

// fits tells whether n bytes of payload and one more entry have room; limit is the most payload a
// chunk of this device may hold.
func (c *chunk) fits(n, limit int) bool {
	return !c.full && c.payload+len(c.packed)+n <= limit && len(c.recs) < chunkRecords &&
		len(c.entries)+firstEntryMax <= c.room
}

// image lays the header before the payload and gives the bytes to write.
func (c *chunk) image(salt uint32) []byte {
	h := c.head.HeaderBytes()
	start := segment.HeaderMax - h
	b := c.buf[start : segment.HeaderMax+int(c.head.PayloadBytes)]
	used := c.head.EntriesAt() + copy(b[c.head.EntriesAt():], c.entries)
	clear(b[used:h])
	clear(c.buf[segment.HeaderMax+c.payload : segment.HeaderMax+int(c.head.PayloadBytes)])
	c.head.Encode(b, salt)
	return b
}

// openSegment is a segment that takes chunks. Guarded by the lane's seal lock, or owned by the
// maintenance for its own streams, but for inflight and closing.
type openSegment struct {
	id     uint32
	sg     *seg
	life   *life
	seq    uint64
	used   int64
	footer segment.Footer

	mu       sync.Mutex
	inflight int  // chunks placed here whose outcome is not in the index yet
	closing  bool // takes no more chunks
	bad      bool // a write failed: no footer
}

// lane is the unit of order: one LSN counter, one log chain, one part of the index.
type lane struct {
	e  *Engine
	no uint8

	seal    sync.Mutex // held while a chunk is taken and placed, so the chain follows seal order
	open    *openSegment
	asked   bool              // the segment behind it was asked for
	ahead   chan *openSegment // which comes here; of capacity 1
	loaded  uint64            // no leaf was complete beyond it when it was loaded
	lastLSN uint64            // of the chunk sealed last
	lastCRC uint32

	mu struct {
		sync.Mutex
		cur     *chunk
		queue   []*chunk // full, before cur: the destager's, and what gathered before those
		spare   []*chunk
		head    *chunk // in flight, in LSN order
		tail    *chunk
		lsn     uint64  // the last one given out
		applied uint64  // all outcomes up to it are durable and in the index
		chain   uint32  // of the chunk that ends at applied
		slot    *nvSlot // of the journal, that takes records; nil is none
		openSeq uint64  // no chunk will be placed in a segment with a lower sequence
		dirty   []*leaf
		holds   []*Hold
		closed  bool
		// entering: the first chunk in flight is entered into the index, by who then takes the next ones.
		entering bool
	}
	spins  atomic.Bool // a host waits for the mutex without going to sleep
	work   *sync.Cond  // the writers wait for records
	lined  *sync.Cond  // the placer waits for the destager's chunks
	placed chan *chunk // those that have their places wait for a carrier; the placer closes it
	room   *sync.Cond  // appenders wait for a chunk, a hold, an apply
	wg     sync.WaitGroup
	memory atomic.Int64 // bytes of its part of the index
	sealer sealer       // for the journal; guarded by mu
}

func newLane(e *Engine, no int) *lane {
	l := &lane{e: e, no: uint8(no), ahead: make(chan *openSegment, 1)}
	l.sealer.e = e
	l.work, l.lined, l.room = sync.NewCond(&l.mu), sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	l.placed = make(chan *chunk, chunkPlaced)
	return l
}

// start lets the lane take records. Everything before is set by Open.
func (l *lane) start() {
	l.mu.openSeq = l.e.space.seqNow()
	l.mu.cur = l.e.cache.get()
	for range chunkBuffers - 1 {
		l.mu.spare = append(l.mu.spare, l.e.cache.get())
	}
	l.wg.Add(chunkWriters)
	for range chunkWriters {
		go l.writer()
	}
	if l.e.nv == nil {
		return
	}
	l.wg.Go(l.placer)
	for range chunkCarriers {
		l.wg.Go(func() {
			for c := range l.placed {
				l.carry(c)
			}
		})
	}
}

// spinMax is how often a host looks for the mutex before it goes to sleep: that takes about as long
// as to be woken again.
const spinMax = 800

// seize locks the mutex for a host that fills the journal. The destager holds it for a few
// microseconds at a time; who goes to sleep for those is woken 50 to 100 later. One host of a lane
// waits awake, others would take the processors from each other.
func (l *lane) seize() {
	if l.mu.TryLock() {
		return
	}
	if l.spins.CompareAndSwap(false, true) {
		defer l.spins.Store(false)
		l.lock()
		return
	}
	l.mu.Lock()
}

// lock locks the mutex for the engine's own work, awake as long as it pays.
func (l *lane) lock() {
	for range spinMax {
		if l.mu.TryLock() {
			return
		}
		pause()
	}
	l.mu.Lock()
}

// wake lets every waiter look again.
func (l *lane) wake() {
	l.mu.Lock()
	l.mu.Unlock() //nolint:staticcheck // a waiter between its check and its wait must not miss it
	l.work.Broadcast()
	l.lined.Broadcast()
	l.room.Broadcast()
}

// close ends the writers once everything appended has its outcome.
func (l *lane) close() {
	l.mu.Lock()
	l.mu.closed = true
	l.mu.Unlock()
	l.wake()
	l.wg.Wait()
}

// dead tells whether the lane takes no more records; with mu held.
func (l *lane) dead() error {
	switch {
	case l.e.failed.Load():
		return domain.Errorf(domain.Unavailable, "device failed")
	case l.mu.closed:
		return domain.Errorf(domain.Unavailable, "engine closed")
	}
	return nil
}

// writer seals whatever has gathered and writes it, until the lane closes.
func (l *lane) writer() {
	defer l.wg.Done()
	for {
		if !l.await(l.work, l.gathered) {
			return
		}
		l.carry(l.cut())
	}
}

// placer gives chunks of the destager, which are full, their places while those before them are
// written: hosts hold the lane's mutex most of the time while they fill the journal, and who has
// waited for that finds the device idle.
func (l *lane) placer() {
	defer close(l.placed)
	for l.await(l.lined, l.lines) {
		l.placed <- l.cut()
	}
}

// carry writes a chunk that has its place, and sees to its outcome; that of a group's follows when
// the group is flushed.
func (l *lane) carry(c *chunk) {
	if l.e.space.disk != nil {
		l.e.space.disk.hold(l.e, int64(c.head.Bytes()))
	}
	err := l.write(c, l.e.fua && c.group == nil)
	if err != nil && !l.e.failed.Load() {
		if c.group == nil {
			l.e.faults.Add(1) // it may have been the flush behind the write that failed
		}
		err = l.again(c, err)
	}
	if err != nil {
		l.e.fail(err)
	}
	if c.group == nil {
		l.finish(c, err)
		return
	}
	c.err = err
	c.group.Done() // it is the destager's now
}

// rests tells whether a record is alone in its chunk and nothing is in flight before it; mu is
// held.
func (l *lane) rests() bool {
	return l.mu.head == nil && len(l.mu.queue) == 0 && len(l.mu.cur.recs) == 1
}

// push sees to what has gathered: the caller writes it where it has the time and nothing is before
// it, else the lane's writer does. mu is held, and released.
func (l *lane) push(now bool) {
	if now && l.rests() && l.seal.TryLock() {
		l.wg.Add(1) // the lane is not closed yet
		l.carry(l.cut())
		l.wg.Done()
		return
	}
	l.mu.Unlock()
	l.work.Signal()
}

// cut seals what has gathered as a chunk and gives it its place. Both locks are held, and released.
func (l *lane) cut() *chunk {
	defer l.seal.Unlock()
	c := l.next()
	last := c.recs[len(c.recs)-1].lsn
	c.head = segment.Chunk{
		Incarnation: l.e.incarnation, LSN: last, PrevLSN: l.lastLSN, PrevCRC: l.lastCRC,
		Entries: uint16(len(c.recs)), Stream: segment.StreamLog, Lane: l.no,
		EntryBytes:   uint32(c.entryBytes()),
		PayloadBytes: uint32(segment.RoundUp(c.payload, segment.Sector)),
		Sealed:       len(c.secrets) > 0,
	}
	if l.mu.tail == nil {
		l.mu.head = c
	} else {
		l.mu.tail.next = c
	}
	l.mu.tail = c
	there := l.locateOpen(c)
	l.mu.Unlock()
	l.room.Broadcast()
	c.chain = c.head.Chain(c.entries)
	l.lastLSN, l.lastCRC = last, c.chain
	if !there {
		c.err = l.locate(c)
	}
	if c.err == nil {
		l.frame(c)
	}
	return c
}

// next takes the chunk whose turn it is from those that wait for a writer; mu is held.
func (l *lane) next() *chunk {
	if l.mu.closed {
		defer l.lined.Broadcast()
		defer l.work.Broadcast()
	}
	if l.lines() {
		c := l.mu.queue[0]
		l.mu.queue = slices.Delete(l.mu.queue, 0, 1)
		if !l.lines() {
			l.work.Broadcast()
		}
		return c
	}
	c := l.mu.cur
	l.renew()
	return c
}

// renew makes an empty chunk the one that gathers, if there is one; mu is held.
func (l *lane) renew() {
	l.mu.cur = nil
	if n := len(l.mu.spare); n > 0 {
		l.mu.cur, l.mu.spare = l.mu.spare[n-1], l.mu.spare[:n-1]
	}
}

// line puts a full chunk where the placer takes the next one from, behind what has gathered; mu is
// held.
func (l *lane) line(c *chunk) {
	if cur := l.mu.cur; cur != nil && len(cur.recs) > 0 {
		cur.full = true
		l.mu.queue = append(l.mu.queue, cur)
		l.renew()
	}
	l.mu.queue = append(l.mu.queue, c)
	l.lined.Signal()
}

// await waits on a condition until something is there and then holds both locks; false, and no
// lock, when the lane is closed and empty. It waits without the seal lock: the other writer may
// need that to write a chunk again, and the host whose record it is may send nothing more before
// its outcome.
func (l *lane) await(on *sync.Cond, there func() bool) bool {
	for {
		l.lock()
		for !there() && !l.ended() {
			on.Wait()
		}
		if there() && l.seal.TryLock() {
			return true
		}
		l.mu.Unlock()
		l.seal.Lock()
		l.lock()
		if there() {
			return true
		}
		ended := l.ended()
		l.mu.Unlock()
		l.seal.Unlock()
		if ended {
			return false
		}
	}
}

// lines tells whether a chunk waits for its place; mu is held.
func (l *lane) lines() bool { return len(l.mu.queue) > 0 }

// gathered tells whether records wait for a writer, and nothing before them; mu is held.
func (l *lane) gathered() bool {
	return !l.lines() && l.mu.cur != nil && len(l.mu.cur.recs) > 0
}

// ended tells whether the lane is closed and empty; mu is held.
func (l *lane) ended() bool { return l.mu.closed && !l.lines() && !l.gathered() }

// place gives the chunk its segment and offset and makes its header, opening a new segment where
// needed. The seal lock is held. An error means the engine failed or stopped.
func (l *lane) place(c *chunk) error {
	if err := l.locate(c); err != nil {
		return err
	}
	l.frame(c)
	return nil
}

// locate gives the chunk its place, in a new segment where the open one lacks room. The seal lock
// is held. An error means the engine failed or stopped.
func (l *lane) locate(c *chunk) error {
	for {
		l.lock()
		there := l.locateOpen(c)
		l.mu.Unlock()
		if there {
			return nil
		}
		if l.open != nil {
			l.e.closeSegment(l.open)
			l.setOpen(nil)
		}
		o, err := l.following()
		if err != nil {
			return err
		}
		l.setOpen(o)
	}
}

// locateOpen gives the chunk its place in the open segment, if that has room. Both locks are held.
func (l *lane) locateOpen(c *chunk) bool {
	header := segment.ChunkHeader + c.entryBytes()
	if l.open == nil || !l.open.fits(int64(c.head.Bytes()), header, l.e.space.size) {
		return false
	}
	c.head.FlushMark = l.mu.applied
	c.seg, c.off = l.open, l.e.space.off(l.open.id)+l.open.used
	return true
}

// frame makes the header of a chunk that has its place. The seal lock is held.
func (l *lane) frame(c *chunk) {
	header := segment.ChunkHeader + c.entryBytes()
	c.head.Sequence = l.open.seq
	l.open.mu.Lock()
	l.open.inflight++
	l.open.mu.Unlock()
	c.close(l.e, l.open.life, c.off+int64(c.head.HeaderBytes()))
	img := c.image(l.e.super.Salt)
	h := c.head.HeaderBytes()
	l.open.footer.Add(uint32(l.open.used), img[:min(h, header)])
	l.open.used += int64(c.head.Bytes())
	if c.group != nil && !l.asked && l.open.used > l.e.space.size/2 {
		l.asked = true
		l.e.behind.Go(func() { l.ahead <- l.e.openAhead(l.no) })
	}
}

// following gives the segment that comes behind the open one: the one that was opened ahead if it
// was. The seal lock is held.
func (l *lane) following() (*openSegment, error) {
	if l.asked {
		l.asked = false
		if o := <-l.ahead; o != nil {
			return o, nil
		}
	}
	return l.e.openSegment(segment.StreamLog, l.no)
}

// setOpen changes the open segment; the seal lock is held. Checkpoints learn its sequence under mu
// alone: a writer holds the seal lock while it waits for records or for space. Without one they
// learn what is above the last: a mark that named it would have a start look for the log in a
// segment that may be empty by then, free, and written over by copies.
func (l *lane) setOpen(o *openSegment) {
	seq := l.open.after()
	if o != nil {
		seq = o.seq
	}
	l.open = o
	l.lock()
	l.mu.openSeq = max(l.mu.openSeq, seq)
	l.mu.Unlock()
}

// after gives the least sequence of a segment that is opened behind this one; 0 of none.
func (o *openSegment) after() uint64 {
	if o == nil {
		return 0
	}
	return o.seq + 1
}

// fits tells whether a chunk of n bytes with so many header bytes leaves room for the footer.
func (o *openSegment) fits(n int64, header int, size int64) bool {
	return o.used+n+int64(o.footer.Size(header)) <= size
}

// again writes a chunk whose write failed once more. A second failure takes the engine out of
// service.
func (l *lane) again(c *chunk, cause error) error {
	if errors.Is(cause, errNoSegment) {
		return cause
	}
	l.e.report(Fact{What: "write-error", Detail: cause.Error()})
	return l.elsewhere(c)
}

// elsewhere writes a chunk once more, durably, in another segment; the first one is bad and keeps
// its bytes.
func (l *lane) elsewhere(c *chunk) error {
	l.seal.Lock()
	if bad := c.seg; bad != nil { // else the header of a new segment could not be written
		bad.mu.Lock()
		bad.bad = true
		bad.mu.Unlock()
		if l.open == bad {
			l.e.closeSegment(bad)
			l.setOpen(nil)
		}
		l.mu.Lock()
		c.seg = nil // its share is given back here, not again by acknowledge
		l.mu.Unlock()
		l.e.settle(bad)
	}
	c.err = l.place(c)
	err := c.err
	l.seal.Unlock()
	if err != nil {
		return err
	}
	return l.write(c, l.e.fua)
}

// finish notes a chunk's outcome and lets every chunk whose turn has come into the index, in LSN
// order; then it tells the owners of the records, without a lock.
func (l *lane) finish(c *chunk, err error) {
	var first, last *chunk
	l.lock()
	c.done, c.err = true, err
	for l.mu.head != nil && l.mu.head.done && !l.mu.entering {
		d := l.mu.head
		if d.err == nil && !l.e.failed.Load() {
			l.mu.entering = true
			l.apply(d)
			l.mu.entering = false
		} else if d.err == nil {
			d.err = domain.Errorf(domain.Unavailable, "device failed")
		}
		l.mu.head = d.next
		if l.mu.head == nil {
			l.mu.tail = nil
		}
		d.next = nil
		if first == nil {
			first = d
		} else {
			last.next = d
		}
		last = d
	}
	l.mu.Unlock()
	l.room.Broadcast()
	if l.e.space.waiting.Load() > 0 {
		l.e.maint.kick() // what was entered may have made a segment worth cleaning
	}
	for d := first; d != nil; {
		next := d.next
		l.acknowledge(d)
		d = next
	}
}

// acknowledge tells the owners and gives the buffer back.
func (l *lane) acknowledge(d *chunk) {
	err := l.e.device(d.err, "engine.Append")
	for i := range d.recs {
		p := &d.recs[i]
		if err != nil {
			l.e.space.admitted.Add(-p.newly)
		}
		if p.rec != nil {
			p.rec.To.Appended(p.rec, err)
		}
		if p.held != nil && !p.whole {
			l.tell(p.held, err)
		}
	}
	if d.seg != nil {
		l.e.settle(d.seg)
	}
	d.reset()
	l.lock()
	keep := true
	switch {
	case l.mu.cur == nil:
		l.mu.cur = d
	case len(l.mu.spare) < chunkBuffers-1:
		l.mu.spare = append(l.mu.spare, d)
	default:
		keep = false
	}
	l.mu.Unlock()
	if !keep {
		l.e.cache.put(d)
	}
	l.room.Broadcast()
}

// applyHold is the most records of the destager that enter the index under one hold of the mutex: a
// host that waits for it longer goes to sleep, which costs it and its processor many times as much.
const applyHold = 16

// ahead lets the processor fetch what will be looked up behind record i; the lane's mutex is held.
func (c *chunk) ahead(i int) {
	if i+lineAhead >= len(c.recs) {
		return
	}
	p := &c.recs[i+lineAhead]
	if p.near != nil {
		p.near.own.soon(int(p.block % segment.LeafBlocks))
	}
	if i+leafAhead < len(c.recs) {
		prefetch(unsafe.Pointer(c.recs[i+leafAhead].near))
	}
}

// apply enters a durable chunk into the index; mu is held, but let go between records of the
// destager, which say where blocks stand and not what they are.
func (l *lane) apply(c *chunk) {
	base := uint64(c.off)/segment.Unit + uint64(c.head.HeaderBytes())/segment.Unit
	var near *leaf
	for i := range c.recs {
		p := &c.recs[i]
		if c.group != nil && i%applyHold == applyHold-1 {
			l.mu.Unlock()
			near = nil
			l.lock()
		}
		if p.whole {
			near = l.destaged(near, p, base, c)
			continue
		}
		if p.held != nil {
			l.enter(p, base, c.crcs[p.crc:])
			l.e.space.admitted.Add(-p.newly)
			continue
		}
		switch p.kind { //nolint:exhaustive // the other kinds change no index
		case segment.KindData:
			if crcs := c.crcs[p.crc : p.crc+p.count]; p.from != 0 {
				if p.near != nil {
					near = p.near
				}
				c.ahead(i)
				near = l.settleData(near, p, base, crcs, c.was[p.crc:p.crc+p.count])
			} else {
				l.setData(p, base, crcs)
			}
		case segment.KindZero:
			l.setRange(p, segment.ZeroLoc)
		case segment.KindUnmap:
			l.setRange(p, segment.HoleLoc)
		case segment.KindBranch:
			l.e.setBranches(p.lines)
		}
		if p.newly != 0 {
			l.e.space.admitted.Add(-p.newly)
		}
	}
	l.mu.applied, l.mu.chain = c.head.LSN, c.chain
}
