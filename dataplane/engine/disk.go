package engine

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/backends"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// A pair of flash and disk (backends/hybrid) is one log in one address space. Hosts, the journal,
// checkpoints and the cleaner write to the flash; what has not been touched for the longest goes to
// the disk, as the cleaner moves blocks: copied, flushed, named by an anchor, and only then is the
// flash's segment free. So recovery knows of the disk what it knows of any segment: that what the
// index names is in its place.
//
// The disk is written in whole segments in ascending order: header, chunks back to back, padding
// and footer go out in one stream of large writes, each of which goes on where the one before
// ended. A segment that was begun is never gone back to, not even for its footer. Nothing there
// needs an order of its own: what stands on the disk counts by the next anchor, before which all is
// flushed.

const (
	// diskLeast is the least number of the disk's segments.
	diskLeast = 8
	// diskReserve is what destaging leaves of them to the cleaner.
	diskReserve = 2
	// pourMax is how much is gathered for one write to the disk, in bytes.
	pourMax = 8 << 20
	// coolMax is the most that goes to the disk before the maintenance looks at its other work.
	coolMax = 256 << 20
	// holdPart is the part of a chunk that its writer pays for at once, in bytes: no wait is longer
	// than tier.DelayMax, and a large chunk has several.
	holdPart = 256 << 10
	// wantedMax is the most blocks that wait to come back from the disk, and wantedSome so many that
	// somebody has to see to it.
	wantedMax  = 4096
	wantedSome = 64
	// refusedMax is how many writes in a row the disk may refuse, and refusedRest the pause behind
	// each, before the engine goes out of service.
	refusedMax  = 10
	refusedRest = time.Second
)

// errRefused says that the disk of a pair refused a write.
var errRefused = errors.New("the disk refused a write")

// diskSpace is the part of the space that stands on the disk of a pair.
type diskSpace struct {
	capacity int64 // bytes of all its segments
	data     int64 // segments that may be filled
	low      int   // cleaned below this many free ones

	share  atomic.Int32  // segments of the flash that copies want; 0 until they lack room
	fill   atomic.Int32  // of the flash, in parts of tier.FillWhole, when it was last looked at
	newest atomic.Uint64 // sequence of the segment that is opened next, as of then

	clock tier.Clock
	pace  struct {
		sync.Mutex
		state tier.State
	}
	wanted struct {
		sync.Mutex
		set map[segment.Loc]bool // blocks that were read again
	}

	index atomic.Int64 // most room that the index may claim of the flash

	// guarded by space.mu
	front int64    // bytes of data that the flash can hold and still be cleaned
	back  int64    // and the disk
	free  []uint32 // segments, ascending
	next  uint32   // behind the one that was taken last
	// kept are the flash's free segments that hold copies, the oldest first: the last of the free.
	kept []*copySegment
}

// addDisk finds out what the disk holds. The bounds of the space are those of the flash until then.
func (s *space) addDisk() {
	n := 0
	for _, sg := range s.mu.segs {
		if sg.cold {
			n++
		}
	}
	d := &diskSpace{capacity: int64(n) * s.size, low: diskReserve + max(2, n/20)}
	d.front = s.usable.Load()
	d.index.Store(d.front / 2)
	d.data = max(0, int64(n-d.low-1))
	d.back = d.data * s.packed.Load() / 100 * fillMax
	s.usable.Add(d.back)
	s.disk = d
}

// give makes a segment of the disk free; space.mu is held.
func (d *diskSpace) give(id uint32) {
	i, _ := slices.BinarySearch(d.free, id)
	d.free = slices.Insert(d.free, i, id)
}

// lose notes that a segment holds less by n bytes; space.mu is held. d may be nil.
func (d *diskSpace) lose(sg *seg, n int64) {
	switch {
	case d == nil:
	case sg.cold:
		d.back -= n
	default:
		d.front -= n
	}
}

// takeCold gives the next free segment of the disk in ascending order; nil when there is none. mu
// is held.
func (s *space) takeCold() (uint32, *seg) {
	d := s.disk
	if s.mu.stopped || d == nil || len(d.free) == 0 {
		return 0, nil
	}
	i, _ := slices.BinarySearch(d.free, d.next)
	if i == len(d.free) {
		i = 0
	}
	id := d.free[i]
	d.free = slices.Delete(d.free, i, i+1)
	d.next = id + 1
	sg := s.mu.segs[id]
	sg.state, sg.stream, sg.lane, sg.seq = segOpen, segment.StreamCold, 0, s.mu.nextSeq
	s.mu.nextSeq++
	return id, sg
}

// lives lists those of the disk's segments for a checkpoint. Segments there are opened by the
// maintenance alone, so none that a leaf may name is missing.
func (s *space) lives() []segment.Life {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []segment.Life
	for i, sg := range s.mu.segs {
		if lf := sg.life.Load(); sg.cold && sg.state != segFree && lf != nil {
			list = append(list, segment.Life{Segment: uint32(i), Sequence: lf.seq, Salt: lf.salt})
		}
	}
	return list
}

// loadLives takes up what a checkpoint tells of the disk's segments, so that what is encrypted
// there is opened without a look at their headers.
func (s *space) loadLives(list []segment.Life) error {
	for _, l := range list {
		if int(l.Segment) >= len(s.mu.segs) || !s.mu.segs[l.Segment].cold {
			return domain.Errorf(domain.Corrupt, "checkpoint tells a life of segment %d", l.Segment)
		}
		sg := s.mu.segs[l.Segment]
		sg.seq, sg.stream = l.Sequence, segment.StreamCold
		sg.life.Store(&life{base: s.off(l.Segment), seq: l.Sequence, salt: l.Salt})
	}
	return nil
}

// skipLives passes by the sequences that segments of the disk may have got behind the last anchor:
// their headers are not read when a pair is opened, and each was opened once at most, since what
// becomes free does so by an anchor.
func (s *space) skipLives(clean bool) {
	if s.disk != nil && !clean {
		s.mu.nextSeq += uint64(s.disk.capacity / s.size)
	}
}

// gauge is how the two parts stand.
type gauge struct {
	flash, disk int64 // bytes that live there
	over        int64 // by which the flash holds more than cleaning it can bear
	room        int64 // bytes that the disk can still hold
	free, dead  int   // segments of the disk
	fill        int   // of the flash, in parts of tier.FillWhole
	share       int   // of it that copies want, in the same
}

// look is gauge and notes the fill.
func (s *space) look() gauge {
	g := s.gauge()
	s.disk.fill.Store(int32(g.fill))
	return g
}

// gauge reads how both parts stand. The space has a disk.
func (s *space) gauge() gauge {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := gauge{free: len(s.disk.free)}
	for _, sg := range s.mu.segs {
		live := sg.live.Load()
		switch {
		case !sg.cold:
			g.flash += live
		case live == 0 && sg.state == segSealed:
			g.dead++
		default:
			g.disk += live
		}
	}
	used := g.flash + s.charge(s.index.Load())
	g.over, g.room = used-s.disk.front, s.disk.back-g.disk
	g.fill = int(used * tier.FillWhole / max(s.disk.front, 1))
	share := int64(s.disk.share.Load()) * s.packed.Load() / 100 * fillMax
	g.share = int(share * tier.FillWhole / max(s.disk.front, 1))
	return g
}

// flashFill gives the fill of a pair's flash and notes it, as a segment is opened; mu is held.
func (s *space) flashFill() int {
	used := s.charge(s.index.Load())
	for _, sg := range s.mu.segs {
		if !sg.cold {
			used += sg.live.Load()
		}
	}
	fill := int(used * tier.FillWhole / max(s.disk.front, 1))
	s.disk.fill.Store(int32(fill))
	s.disk.newest.Store(s.mu.nextSeq)
	return fill
}

// over gives by how many bytes the flash of a pair holds more than cleaning it can bear.
func (s *space) over() int64 {
	if s.disk == nil {
		return 0
	}
	return s.gauge().over
}

// diskFree counts the free segments of the disk; 0 where there is none.
func (s *space) diskFree() int {
	if s.disk == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.disk.free)
}

// readDisk adds the disk to a reading.
func (s *space) readDisk(st *Stats) {
	g := s.gauge()
	st.FreeSegments += int64(g.free)
	st.CapacityBytes += s.disk.capacity
	st.DiskBytes, st.DiskLiveBytes = s.disk.capacity, g.disk
	st.FlashFill = int64(g.fill)
}

// coldest lists the sealed segments of the flash that hold something, the longest untouched first:
// neither written nor read in small pieces.
func (s *space) coldest() []victim {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []victim
	for i, sg := range s.mu.segs {
		live := sg.live.Load()
		if sg.state == segSealed && !sg.cold && sg.stream != segment.StreamMeta && live > 0 {
			touched := max(sg.seq, sg.read.Load())
			list = append(list, victim{uint32(i), sg.seq, sg.stream, live, float64(touched)})
		}
	}
	slices.SortFunc(list, func(a, b victim) int {
		return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.id, b.id))
	})
	return list
}

// hold keeps back a chunk that is about to be written while the flash is fuller than destaging to
// the disk is to hold it, so that writers come down to the disk's rate before they have to stop.
func (d *diskSpace) hold(e *Engine, bytes int64) {
	fill := int(d.fill.Load())
	if fill <= tier.FlashFull {
		return
	}
	e.stats.held.Add(1)
	for ; bytes > 0 && !e.failed.Load(); bytes -= holdPart {
		d.pace.Lock()
		state, wait := d.pace.state.Admit(d.clock.Now(), min(bytes, holdPart), tier.Slow(fill))
		d.pace.state = state
		d.pace.Unlock()
		if wait > 0 {
			d.clock.Sleep(wait)
		}
	}
}

// warm notes that segments of the flash were read: what is read stays there longer. A stream, and a
// large read, touch what they will not come back to.
func (rd *reader) warm(e *Engine) {
	if rd.stream || rd.count > cachedBlocks {
		return
	}
	now := e.space.disk.newest.Load()
	for _, loc := range rd.loc[:rd.count] {
		if loc.Kind() != segment.Flash || e.nv.holds(loc) {
			continue
		}
		if sg := e.space.at(loc.Off()); !sg.cold && sg.read.Load() != now {
			sg.read.Store(now)
		}
	}
}

// promote notes that a block, which stands on the device as given, was read again of late. One on
// the disk is copied to the flash, where that has free segments to spare; else it comes back there
// for good, as long as the flash has room.
func (e *Engine) promote(loc segment.Loc, stored []byte, turn uint64) {
	d := e.space.disk
	if d == nil || !e.space.at(loc.Off()).cold || e.gather(loc, stored, turn) ||
		d.fill.Load() > tier.FlashFull {
		return
	}
	d.wanted.Lock()
	if d.wanted.set == nil {
		d.wanted.set = map[segment.Loc]bool{}
	}
	if len(d.wanted.set) < wantedMax {
		d.wanted.set[loc] = true
	}
	some := len(d.wanted.set)%wantedSome == 0
	d.wanted.Unlock()
	if some {
		e.maint.kick()
	}
}

// coldStream is what the maintenance has to do with the disk of a pair, and what it is writing
// there.
type coldStream struct {
	came    int64         // segments that writers had got when it last looked
	debt    int64         // bytes that should have gone to the disk by now
	parched bool          // for want of free segments, while some are dead: a checkpoint is due
	reads   tier.ReadCost // what reads of the cleaner cost the disk
	refused int           // writes in a row

	bufs [][]byte // to be written back to back from off on
	off  int64
	size int
	laid []flight       // the chunks among them
	full []*openSegment // the segments that end among them
}

// cool is the maintenance's part in a pair: it brings back what is read again, and sends to the
// disk what is cold, as the fill of the flash demands. It tells whether anything was moved.
func (e *Engine) cool() (bool, error) {
	m := &e.maint.cold
	if m.parched = false; e.space.disk == nil || e.maint.quiet.Load() {
		return false, nil
	}
	e.keepCopies()
	moved, err := e.bringBack()
	if err != nil {
		return moved, err
	}
	g, served := e.space.look(), e.space.served.Load()
	fill := g.fill + g.share
	m.debt = min(m.debt+tier.Cool(fill, (served-m.came)*e.space.packed.Load()), g.flash)
	if m.came = served; fill <= tier.FlashCool {
		m.debt = 0
	}
	want := max(m.debt, g.over)
	if want <= 0 {
		return moved, nil
	}
	cleaned, err := e.cleanDisk(g)
	if err != nil {
		return moved, e.refused(err)
	}
	if cleaned {
		g = e.space.gauge()
	}
	room := min(g.room, int64(g.free-diskReserve)*e.space.packed.Load())
	if room <= 0 {
		m.parched = g.dead > 0
		return moved || cleaned, nil
	}
	n, err := e.destageCold(min(want, coolMax), room)
	m.debt = max(0, m.debt-n)
	m.parched = n == 0 && g.dead > 0
	return moved || cleaned || n > 0, e.refused(err)
}

// refused judges how writing to the disk went. A refused write costs nothing: what was to be moved
// stands where it stood, and the segments being written take no more until the next start. So it is
// told, and tried again elsewhere on the disk after a pause; after refusedMax in a row the
// error stands, since then the flash would fill up behind a disk that is gone.
func (e *Engine) refused(err error) error {
	m := &e.maint.cold
	if !errors.Is(err, errRefused) {
		if err == nil {
			m.refused = 0
		}
		return err
	}
	m.refused++
	if m.refused >= refusedMax {
		return err
	}
	e.report(Fact{What: "write-error", Detail: err.Error()})
	e.space.disk.clock.Sleep(refusedRest)
	return nil
}

// destageCold sends about want bytes of the coldest to the disk, and no more than room; it gives
// how many.
func (e *Engine) destageCold(want, room int64) (int64, error) {
	d := e.space.disk
	began, n := d.clock.Now(), int64(0)
	c := e.newCleaner()
	defer c.settle()
	c.cold = true
	for _, v := range e.space.coldest() {
		if n >= want || n+v.live > room {
			break
		}
		if err := c.segment(v); errors.Is(err, errNoSegment) {
			return n, nil // what was not moved stays where it is
		} else if err != nil {
			return n, err
		}
		n += v.live
	}
	if err := c.end(); errors.Is(err, errNoSegment) {
		return n, nil
	} else if err != nil {
		return n, err
	}
	e.stats.cooled.Add(n)
	d.pace.Lock()
	d.pace.state = d.pace.state.Destaged(n, d.clock.Now()-began)
	d.pace.Unlock()
	e.space.look()
	return n, nil
}

// fromDisk says that the cleaner reads the disk: reads there are dear, and while it is written they
// would tear the stream apart.
func (c *cleaner) fromDisk() {
	c.disk = true
	for _, w := range c.e.windows {
		w.cost, w.longest = &c.e.maint.cold.reads, stepMax
	}
}

// cleanDisk moves what lives in the best victims of the disk to other segments there, if free ones
// are missing: it reads what lives with the gaps between, upwards, a window at a time. It tells
// whether it moved anything.
func (e *Engine) cleanDisk(g gauge) (bool, error) {
	owed := e.space.disk.low - g.free - g.dead
	if owed <= 0 || g.free == 0 {
		return false, nil
	}
	budget, want := int64(max(g.free-1, 1))*e.space.packed.Load(), int64(owed)*e.space.size
	c := e.newCleaner()
	defer c.settle()
	c.cold = true
	c.fromDisk()
	won, out := int64(0), int64(0)
	for _, v := range e.victims(true) {
		if won >= want {
			break
		}
		if out+v.live > budget {
			continue
		}
		seq, err := e.lifeOf(v.id)
		if err != nil || seq == 0 {
			c.unreadable(v.id, cmp.Or(err, errUnreadable))
			continue
		}
		v.seq = seq
		if err := c.segment(v); errors.Is(err, errNoSegment) {
			return won > 0, nil
		} else if err != nil {
			return won > 0, err
		}
		won, out = won+e.space.size-v.live, out+v.live
		e.stats.diskCleaned.Add(1)
	}
	err := c.end()
	if errors.Is(err, errNoSegment) {
		err = nil
	}
	return won > 0, err
}

// bringBack moves blocks that were read again from the disk to the flash, unless that is full. It
// tells whether it moved any.
func (e *Engine) bringBack() (bool, error) {
	d := e.space.disk
	d.wanted.Lock()
	set := d.wanted.set
	d.wanted.set = nil
	d.wanted.Unlock()
	if len(set) == 0 || d.fill.Load() > tier.FlashFull ||
		e.space.freeCount() <= e.space.reserve(segment.StreamLog) {
		return false, nil
	}
	var ids []uint32
	for loc := range set {
		ids = append(ids, uint32((loc.Off()-e.space.first)/e.space.size))
	}
	slices.Sort(ids)
	c := e.newCleaner()
	defer c.settle()
	c.fromDisk()
	c.only = set
	before := e.stats.movedBytes.Load()
	for _, id := range slices.Compact(ids) {
		seq, err := e.lifeOf(id)
		if err != nil || seq == 0 {
			continue // whoever reads it is told
		}
		if err := c.segment(victim{id: id, seq: seq, stream: segment.StreamLog}); err != nil {
			return false, notFull(err)
		}
	}
	err := c.end()
	n := e.stats.movedBytes.Load() - before
	e.stats.promoted.Add(n)
	return n > 0, notFull(err)
}

// notFull leaves out that no segment was free: what was not moved stays where it is.
func notFull(err error) error {
	if errors.Is(err, errNoSegment) {
		return nil
	}
	return err
}

// lifeOf gives the sequence of a segment. That of one on the disk which the checkpoint did not
// tell, as on a pair of an earlier build, is read from there when it is first asked for: 0 when its
// header does not verify.
func (e *Engine) lifeOf(id uint32) (uint64, error) {
	seq, _, _ := e.space.life(id)
	if seq != 0 || !e.space.mu.segs[id].cold {
		return seq, nil
	}
	b := backends.AlignedBuffer(2 * segment.Sector)
	if err := e.dev.ReadAt(b, e.space.off(id)); err != nil {
		return 0, e.unreadable(err)
	}
	nothing := &segment.Anchor{Clean: true, Lanes: make([]segment.LaneMark, len(e.lanes))}
	h, err := e.header(id, b, nothing)
	if err != nil || h == nil {
		return 0, err
	}
	e.space.mu.Lock()
	defer e.space.mu.Unlock()
	sg := e.space.mu.segs[id]
	if sg.seq == 0 {
		sg.seq, sg.stream = h.Sequence, segment.StreamCold
	}
	return sg.seq, nil
}

// lay puts the sealed chunk of a cleaner behind what is to be written to the disk, in a new segment
// where the open one lacks room.
func (c *cleaner) lay(out *chunk) error {
	e, m := c.e, &c.e.maint.cold
	header := segment.ChunkHeader + out.entryBytes()
	o := e.maint.out[segment.StreamCold]
	if o != nil && !o.fits(int64(out.head.Bytes()), header, e.space.size) {
		e.sealCold(o)
		o = nil
	}
	if o == nil {
		var err error
		if o, err = c.openCold(); err != nil {
			return err
		}
	}
	out.head.Sequence = o.seq
	off := e.space.off(o.id) + o.used
	out.close(e, o.life, off+int64(out.head.HeaderBytes()))
	img := out.image(e.super.Salt)
	if len(m.bufs) == 0 {
		m.off = off
	}
	m.bufs = out.pieces(m.bufs, img)
	m.size += len(img)
	o.footer.Add(uint32(o.used), img[:header])
	o.used += int64(len(img))
	m.laid = append(m.laid, flight{
		c: out, moves: c.moves, base: uint64(off+int64(out.head.HeaderBytes())) / segment.Unit,
	})
	c.c, c.moves = nil, nil
	if m.size >= pourMax {
		return c.pour()
	}
	return nil
}

// openCold takes a segment of the disk. Its header goes out with its first chunks: neither counts
// before an anchor names what stands there. Where it stands right behind the one before, both go
// out together.
func (c *cleaner) openCold() (*openSegment, error) {
	e := c.e
	id, sg := e.space.take(segment.StreamCold, 0)
	if sg == nil {
		if err := c.pour(); err != nil {
			return nil, err
		}
		return nil, errNoSegment
	}
	m := &e.maint.cold
	if m.off+int64(m.size) != e.space.off(id) {
		if err := c.pour(); err != nil {
			e.space.set(sg, segBad)
			return nil, err
		}
	}
	if len(m.bufs) == 0 {
		m.off = e.space.off(id)
	}
	h := segment.Header{
		Segment: id, Sequence: sg.seq, Stream: segment.StreamCold, Incarnation: e.incarnation,
		Device: e.super.Device, Anchor: e.anchorSeq.Load(),
	}
	_, _ = rand.Read(h.Salt[:]) // never fails: it ends the process instead
	b := backends.AlignedBuffer(segment.Sector)
	h.Encode(b)
	m.bufs, m.size = append(m.bufs, b), m.size+segment.Sector
	e.copies.turn.Add(1)
	lf := &life{base: e.space.off(id), seq: sg.seq, salt: h.Salt}
	sg.life.Store(lf)
	o := &openSegment{id: id, sg: sg, life: lf, seq: sg.seq, used: segment.Sector}
	e.maint.out[segment.StreamCold] = o
	return o, nil
}

// sealCold ends a segment of the disk: what is left of it up to its footer is filled, so that the
// footer, too, goes on where the write before ended.
func (e *Engine) sealCold(o *openSegment) {
	m := &e.maint.cold
	body := o.footer.Encode(nil, o.seq, e.incarnation)
	tail := backends.AlignedBuffer(int(e.space.size - o.used))
	copy(tail[len(tail)-len(body):], body)
	if len(m.bufs) == 0 {
		m.off = e.space.off(o.id) + o.used
	}
	m.bufs, m.size, m.full = append(m.bufs, tail), m.size+len(tail), append(m.full, o)
	e.maint.out[segment.StreamCold] = nil
}

// pour writes what was laid, in one go, and then swaps the places of the blocks that are still what
// they were. The other window is read meanwhile, if it is not of the disk.
func (c *cleaner) pour() error {
	e, m := c.e, &c.e.maint.cold
	if len(m.bufs) == 0 {
		return nil
	}
	bufs, off, laid, full := m.bufs, m.off, m.laid, m.full
	m.bufs, m.laid, m.full, m.size = nil, nil, nil, 0
	e.sched.Begin(qos.Clean, c.urgent)
	done := make(chan error, 1)
	go func() { done <- backends.WriteV(e.dev, bufs, off, false) }()
	if c.flying != nil && !c.disk {
		c.flying.wait(e.dev)
	}
	err := <-done
	e.sched.End(qos.Clean)
	for i := range laid {
		c.enter(&laid[i], err)
	}
	state := segSealed
	if o := e.maint.out[segment.StreamCold]; err != nil {
		state = segBad
		if o != nil {
			e.space.set(o.sg, segBad)
			e.maint.out[segment.StreamCold] = nil
		}
	}
	for _, o := range full {
		e.space.set(o.sg, state)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, e.device(err, "engine.cool"))
	}
	return nil
}

// dropCold gives up what was laid and not written. Its segment takes no more: it would go on behind
// a gap.
func (e *Engine) dropCold() {
	m := &e.maint.cold
	if len(m.bufs) == 0 {
		return
	}
	for _, f := range m.laid {
		e.cache.put(f.c)
	}
	for _, o := range m.full {
		e.space.set(o.sg, segSealed)
	}
	m.bufs, m.laid, m.full, m.size = nil, nil, nil, 0
	if o := e.maint.out[segment.StreamCold]; o != nil {
		e.space.set(o.sg, segSealed)
		e.maint.out[segment.StreamCold] = nil
	}
}

// Boundary gives where the disk of a pair begins in its address space, in bytes; 0 for a device
// that is one.
func (e *Engine) Boundary() domain.Bytes { return domain.Bytes(e.super.Boundary) }
