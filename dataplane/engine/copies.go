package engine

import (
	"slices"
	"sync"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
)

// Copies. A block on the disk of a pair that was read a second time of late is kept on the flash,
// too, in a segment that is free: its bytes as they stand on the disk, found by the place there.
// Nothing else knows of them. A segment with copies is free like any other and is given to whoever
// asks, the ones without copies before it, the oldest before the others, and its copies end with
// that: so they take room from nobody, are counted nowhere, and dropping them costs no write. They
// end with the engine, too; the header of their segment and what a start looks at besides stay as
// they were.
//
// A copy is used for the block whose place and checksum the index gives, while the disk's segment
// is in the life in which it was copied, and is held to that checksum like what comes from the
// disk. One that does not match, or cannot be read, is forgotten, and the disk is asked.

const (
	// copiesMax bounds the blocks that have a copy: each takes some 60 bytes of memory.
	copiesMax = 1 << 20
	// copiesFirst is where copies begin in a segment: a start reads the first two sectors.
	copiesFirst = 2 * segment.Sector
	// copiesShare is the part of the flash, one in so many, that cleaning wins for copies.
	copiesShare = 8
	// gatherSlots is how many blocks wait to be written, gatherSome so many that they are.
	gatherSlots = 1024
	gatherSome  = 64
)

// copySegment is a free segment of the flash that holds copies. It never changes but for gone.
type copySegment struct {
	id   uint32
	base int64
	last atomic.Bool   // it goes soon: what is read there is copied once more
	gone atomic.Bool   // it was given to somebody
	locs []segment.Loc // of what was copied to it; guarded by copies.mu
}

// copyOfBlock is where a block's copy stands.
type copyOfBlock struct {
	in   *copySegment
	off  uint32 // in it
	life *life  // of the disk's segment
}

// gathered is a block that is to be copied.
type gathered struct {
	loc  segment.Loc
	off  int // in the buffer
	life *life
}

// copies is what a pair's flash holds of its disk's blocks.
type copies struct {
	none bool          // tests want blocks to come back for good
	turn atomic.Uint64 // how often a segment of the disk was opened
	mu   struct {
		sync.Mutex
		of     map[segment.Loc]copyOfBlock
		buf    []byte // gatherSlots blocks
		spare  []byte
		list   []gathered
		slots  int // of buf that are used
		packed int // where the next compressed block goes; 0: into a slot of its own
	}

	// of the maintenance
	last *copySegment // is being filled
	used int64        // of it
	old  []*copySegment
}

// lookCopies notes where the copies of a read's blocks stand, if all of them have one that would be
// read from the disk: a read that has to go there anyway gets the rest in the same go.
func (rd *reader) lookCopies(e *Engine) {
	rd.where = rd.where[:0]
	if e.space.disk == nil || rd.stream || rd.count > cachedBlocks {
		return
	}
	c, some := &e.copies, false
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mu.of) == 0 {
		return
	}
	for i, loc := range rd.loc[:rd.count] {
		rd.where = append(rd.where, 0)
		if loc.Kind() != segment.Flash || e.nv.holds(loc) || rd.had>>i&1 != 0 {
			continue
		}
		sg := e.space.at(loc.Off())
		if !sg.cold {
			continue
		}
		k, ok := c.mu.of[loc]
		if !ok || k.in.gone.Load() || k.life != sg.life.Load() {
			rd.where = rd.where[:0]
			return
		}
		rd.where[i], some = k.in.base+int64(k.off), true
	}
	if !some || c.turn.Load() != rd.turn { // else the lives may not be those of the look-up
		rd.where = rd.where[:0]
	}
}

// off gives where block i of a read is read from.
func (rd *reader) off(i int) int64 {
	if len(rd.where) > 0 && rd.where[i] > 0 {
		return rd.where[i]
	}
	return rd.loc[i].Off()
}

// span gives the sectors in which block i of a read stands.
func (rd *reader) span(i int) (from, end int64) {
	off := rd.off(i)
	end = off + int64(rd.loc[i].Stored())
	return off / segment.Sector * segment.Sector,
		(end + segment.Sector - 1) / segment.Sector * segment.Sector
}

// forget drops the copies that a read was served from, and tells whether there were any.
func (rd *reader) forget(e *Engine) bool {
	if len(rd.where) == 0 {
		return false
	}
	c := &e.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, at := range rd.where {
		if at > 0 {
			delete(c.mu.of, rd.loc[i])
		}
	}
	rd.where = rd.where[:0]
	return true
}

// gather takes a block, as it stands on the disk, to be copied, and tells whether that is so, or
// was. Its bytes were verified; turn is that of the look-up.
func (e *Engine) gather(loc segment.Loc, stored []byte, turn uint64) bool {
	c, lf := &e.copies, e.space.at(loc.Off()).life.Load()
	if c.none || !e.space.lends() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.mu.of[loc]
	if ok && !k.in.gone.Load() && !k.in.last.Load() && k.life == lf || c.turn.Load() != turn ||
		slices.ContainsFunc(c.mu.list, func(g gathered) bool { return g.loc == loc }) {
		return true
	}
	if c.mu.buf == nil {
		c.mu.buf = backends.AlignedBuffer(gatherSlots * segment.BlockSize)
	}
	off := c.mu.packed
	if n := len(stored); n == segment.BlockSize || off%segment.BlockSize == 0 ||
		off%segment.BlockSize+n > segment.BlockSize {
		if c.mu.slots == gatherSlots {
			return true // it will be read again
		}
		off = c.mu.slots * segment.BlockSize
		c.mu.slots++
	}
	copy(c.mu.buf[off:], stored)
	if len(stored) < segment.BlockSize {
		c.mu.packed = off + len(stored)
	}
	c.mu.list = append(c.mu.list, gathered{loc, off, lf})
	if len(c.mu.list)%gatherSome == 0 {
		e.maint.kick()
	}
	return true
}

// taken gives what was gathered, and takes up the other buffer.
func (c *copies) taken() ([]gathered, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list, buf := c.mu.list, c.mu.buf[:c.mu.slots*segment.BlockSize]
	c.mu.buf, c.mu.spare = c.mu.spare, c.mu.buf
	c.mu.list, c.mu.slots, c.mu.packed = nil, 0, 0
	return list, buf
}

// sweep forgets the copies of segments that were given to others.
func (c *copies) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.old = slices.DeleteFunc(c.old, func(s *copySegment) bool {
		if !s.gone.Load() {
			return false
		}
		for _, loc := range s.locs {
			if c.mu.of[loc].in == s {
				delete(c.mu.of, loc)
			}
		}
		return true
	})
}

// publish makes copies known that stand in a segment: those of the list that end by an offset of
// the buffer, which begins there at another. It gives the others.
func (c *copies) publish(list []gathered, in *copySegment, from, to int, at int64) []gathered {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.of == nil {
		c.mu.of = map[segment.Loc]copyOfBlock{}
	}
	return slices.DeleteFunc(list, func(g gathered) bool {
		if g.off >= to {
			return false
		}
		c.mu.of[g.loc] = copyOfBlock{in, uint32(at + int64(g.off-from)), g.life}
		in.locs = append(in.locs, g.loc)
		return true
	})
}

// keepCopies writes what was gathered to free segments of the flash. It is the maintenance's. What
// there is no room for, or is refused, is not copied: nothing depends on it.
func (e *Engine) keepCopies() {
	c := &e.copies
	c.sweep()
	list, buf := c.taken()
	for from := 0; from < len(buf); {
		if c.last != nil && c.used == e.space.size {
			c.last = nil
		}
		in := e.space.borrow(c.last)
		if in == nil {
			return
		}
		if in != c.last {
			c.last, c.used, c.old = in, copiesFirst, append(c.old, in)
		}
		to := from + int(min(int64(len(buf)-from), e.space.size-c.used, pieceMax))
		e.sched.Begin(qos.Clean, nil)
		err := e.dev.WriteAt(buf[from:to], in.base+c.used, false)
		e.sched.End(qos.Clean)
		if err != nil {
			e.report(Fact{What: "write-error", Detail: "copies: " + err.Error()})
			in.gone.Store(true)
			c.last = nil
			e.space.lendBack(in)
			return
		}
		list = c.publish(list, in, from, to, c.used)
		e.stats.copied.Add(int64(to - from))
		c.used, from = c.used+int64(to-from), to
		e.space.lendBack(in)
	}
}

// lends tells whether copies have room in free segments. From the first time that they lack it on,
// cleaning wins them some.
func (s *space) lends() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.mu.free); n-len(s.disk.kept) > s.spared() ||
		n > s.spared() && len(s.disk.kept) > 0 {
		return true
	}
	s.disk.share.Store(int32(s.capacity / s.size / copiesShare))
	return false
}

// owedToCopies gives how many segments are missing for copies to have their share, the dead ones
// counted as free; none while the flash is fuller than destaging is to hold it.
func (s *space) owedToCopies() int {
	d := s.disk
	if d == nil || d.share.Load() == 0 || d.fill.Load() > tier.FlashFull {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spared() + int(d.share.Load()) - len(s.mu.free) - s.dead()
}

// spared gives the free segments that copies leave alone: at so many cleaning begins, and one is
// not there while copies are written to it. mu is held.
func (s *space) spared() int { return s.lowWater + s.needed() + 1 }

// eaten tells whether hosts take from the share of copies while segments that died wait for a
// checkpoint.
func (s *space) eaten() bool {
	if s.disk == nil || s.disk.share.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	share := int(s.disk.share.Load())
	return len(s.mu.free) < s.spared()+share && s.dead() > share/4
}

// borrow takes a free segment away for the time of a write of copies: the one that was written to
// last, unless it was given to somebody meanwhile, or else one without copies, or the oldest with
// copies, which end with that. It gives nil when there is none to spare.
func (s *space) borrow(last *copySegment) *copySegment {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, n := s.disk, len(s.mu.free)
	if s.mu.stopped || n <= s.spared() {
		return nil
	}
	k := len(d.kept)
	if last != nil && k > 0 && d.kept[k-1] == last {
		d.kept, s.mu.free = d.kept[:k-1], s.mu.free[:n-1]
		return last
	}
	at := n - k - 1 // the last without copies
	switch {
	case n-k > s.spared() && int64(k) < copiesMax*segment.BlockSize/s.size:
	case k == 0:
		return nil
	default:
		at = n - k
		d.kept[0].gone.Store(true)
		d.kept = d.kept[1:]
		d.share.Store(int32(s.capacity / s.size / copiesShare))
	}
	for _, o := range d.kept[:len(d.kept)/4] {
		o.last.Store(true)
	}
	id := s.mu.free[at]
	s.mu.free = slices.Delete(s.mu.free, at, at+1)
	return &copySegment{id: id, base: s.off(id)}
}

// lendBack gives a borrowed segment back, as the last that is given to anybody.
func (s *space) lendBack(in *copySegment) {
	s.mu.Lock()
	if in.gone.Load() {
		s.give(in.id)
	} else {
		s.mu.free = append(s.mu.free, in.id)
		s.disk.kept = append(s.disk.kept, in)
	}
	s.mu.Unlock()
	s.freed.Broadcast()
}

// give makes a segment of the flash free, before those with copies; mu is held.
func (s *space) give(id uint32) {
	if s.disk == nil {
		s.mu.free = append(s.mu.free, id)
		return
	}
	s.mu.free = slices.Insert(s.mu.free, len(s.mu.free)-len(s.disk.kept), id)
}

// takeFree gives the segment that is to be used next; there is one, and mu is held. Its copies end.
func (s *space) takeFree() uint32 {
	id := s.mu.free[0]
	s.mu.free = s.mu.free[1:]
	if d := s.disk; d != nil && len(d.kept) > len(s.mu.free) {
		d.kept[0].gone.Store(true)
		d.kept = d.kept[1:]
	}
	return id
}
