package engine

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"weft/dataplane/segment"
	"weft/dataplane/tier"
)

// segState is where a segment stands in its life.
type segState uint8

const (
	segFree     segState = iota // may be opened
	segOpen                     // takes chunks
	segSealed                   // full, with a footer; the cleaner may choose it
	segBad                      // a write to it failed; left alone until the next start
	segReserved                 // holds a copy of the superblock
)

// seg is one segment. live is guarded by nothing: it is counted by the lanes.
type seg struct {
	live atomic.Int64 // bytes of blocks whose newest copy stands here
	meta int64        // bytes that the last durable checkpoint needs; maintenance only
	life atomic.Pointer[life]
	// read is the sequence that the newest segment had when something was read here last; on the flash
	// of a pair only.
	read atomic.Uint64
	cold bool // it stands on the disk of a pair

	// guarded by space.mu
	state  segState
	stream segment.Stream
	lane   uint8
	seq    uint64
}

// Of each part of a segment it is known how much lives there, so that the cleaner looks only where
// something does: partMost is its size, in bytes, and partLeast how many a small segment has. What
// lives is counted in units, in a byte: no more blocks begin in a part than fill it and one more.
const (
	partMost  = 64 << 10
	partLeast = 32
)

// space owns the segments of a device and decides who may have one.
//
// Invariant: user segments are refused at or below reserveUser free ones, the cleaner's at or below
// reserveMeta, both counted above what the next checkpoint needs, so that cleaning and checkpoints
// always find room.
type space struct {
	size        int64        // of a segment
	first       int64        // offset of segment 0
	partShift   int          // the logarithm of a part's size
	partCount   int          // of a segment
	capacity    int64        // bytes of all segments that can hold data
	data        int64        // segments that hosts may fill
	packed      atomic.Int64 // bytes of blocks that a well-filled one holds
	tags        atomic.Int32 // bytes of tags in an entry of one block; 0 while nothing is encrypted
	reserveUser int
	reserveMeta int
	lowWater    int  // the cleaner starts below this many free segments, or earlier
	brisk       bool // hosts write to a journal; not on a pair

	live     atomic.Int64 // bytes of live blocks on the device
	saved    atomic.Int64 // bytes by which they take less room than their size
	admitted atomic.Int64 // bytes of new blocks on their way into the index
	index    atomic.Int64 // bytes that the images of all leaves take at most
	dirty    atomic.Int64 // of them, those that the next checkpoint writes
	tables   atomic.Int64 // bytes of the tables in the root: of replicas, and of lives at most
	usable   atomic.Int64 // most bytes admitted, index included; a bad segment lowers it
	waiting  atomic.Int32 // writers that wait for a free segment
	served   atomic.Int64 // segments that writers got so far
	scarce   atomic.Bool  // low, when a segment was taken or released last

	// disk is the part on the disk of a pair, which is given to StreamCold alone; nil: there is none.
	// All reserves and free segments here are those of the other part.
	disk *diskSpace

	parts []atomic.Uint32 // units of live blocks that begin in a part, four parts in each number

	mu struct {
		sync.Mutex
		segs    []*seg
		free    []uint32
		nextSeq uint64
		stopped bool
	}
	freed *sync.Cond
	hurry func() // asks the maintenance for free segments
}

func newSpace(sb *segment.Superblock) *space {
	s := &space{size: int64(sb.SegmentSize), first: int64(sb.FirstOff)}
	s.partShift = bits.Len64(uint64(min(s.size/partLeast, partMost))) - 1
	s.partCount = int((s.size-1)>>s.partShift) + 1
	s.parts = make([]atomic.Uint32, (int(sb.Segments)*s.partCount+3)/4)
	s.packed.Store(packed(s.size, 0))
	s.freed = sync.NewCond(&s.mu)
	s.mu.segs = make([]*seg, sb.Segments)
	usable := 0
	for i := range s.mu.segs {
		s.mu.segs[i] = &seg{cold: sb.OnDisk(i)}
		switch {
		case sb.Reserved(i):
			s.mu.segs[i].state = segReserved
		case !sb.OnDisk(i):
			usable++
		}
	}
	s.capacity = int64(usable) * s.size
	s.reserveMeta = max(2, usable/100)
	s.reserveUser = s.reserveMeta + max(4, usable/50)
	s.lowWater = s.reserveUser + max(3, usable/20)
	s.data = int64(max(0, usable-s.lowWater-int(sb.Lanes)-1))
	s.usable.Store(s.data * s.packed.Load() / 100 * fillMax)
	if sb.Boundary > 0 {
		s.addDisk()
	}
	if sb.Incompat&segment.IncompatLives != 0 {
		s.tables.Add(s.disk.capacity / s.size * segment.LifeBytes)
	}
	return s
}

// conceal takes into account that entries may have tags: a segment holds a little less of them.
// Open calls it, or who makes the first key, under control.
func (s *space) conceal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tags.Swap(segment.TagBytes) > 0 {
		return
	}
	was, now := s.packed.Load(), packed(s.size, segment.TagBytes)
	lost := s.data*was/100*fillMax - s.data*now/100*fillMax
	s.packed.Store(now)
	s.usable.Add(-lost)
	if d := s.disk; d != nil {
		d.front -= lost
		d.index.Store(d.front / 2)
		lost = d.data*was/100*fillMax - d.data*now/100*fillMax
		d.back -= lost
		s.usable.Add(-lost)
	}
}

// fillMax is the share of live blocks, in percent, up to which new ones are admitted. Cleaning
// costs 1/(1-u) of what hosts write: beyond this the price rises steeply.
const fillMax = 85

// packed gives the bytes of blocks that a segment holds once the cleaner has packed it, by packing
// one. An estimate by ratios was too high for small segments, whose last chunk is a large part of
// them: hosts were admitted beyond what cleaning can win, and the cleaner ran for ever.
func packed(size int64, tags int) int64 {
	o, sum := &openSegment{used: segment.Sector}, 0
	for n := o.roomMoved(size, tags); n > 0; n = o.roomMoved(size, tags) {
		o.footer.Add(0, make([]byte, movedHeader(n, tags)))
		o.used += int64(segment.RoundUp(movedHeader(n, tags), segment.Sector) + n)
		sum += n
	}
	return int64(sum)
}

// movedHeader gives the bytes of a header for so much payload of moved one-block entries with so
// many bytes of tags each.
func movedHeader(payload, tags int) int {
	n := segment.ChunkHeader + payload/segment.BlockSize*(segment.EntrySettled+segment.EntryMoved+tags)
	if tags > 0 {
		n += segment.SaltBytes
	}
	return n
}

// roomMoved gives the most payload of moved one-block entries that the segment takes as one more
// chunk; 0 when it is full.
func (o *openSegment) roomMoved(size int64, tags int) int {
	n := chunkPayload(size)
	for ; n > 0; n -= segment.BlockSize {
		h := movedHeader(n, tags)
		if o.fits(int64(segment.RoundUp(h, segment.Sector)+n), h, size) {
			break
		}
	}
	return n
}

// chunkPayload gives the most payload of one chunk: small segments take small chunks.
func chunkPayload(size int64) int {
	return min(segment.PayloadMax, max(int(size)/4/segment.Sector*segment.Sector, segment.Sector))
}

// off gives the device offset of a segment.
func (s *space) off(id uint32) int64 { return s.first + int64(id)*s.size }

// id gives the number of the segment that holds a place on the device.
func (s *space) id(loc segment.Loc) uint32 { return uint32((loc.Off() - s.first) / s.size) }

// at gives the segment that holds a device offset.
func (s *space) at(off int64) *seg { return s.mu.segs[(off-s.first)/s.size] }

// part gives the number of the part of a segment that a device offset is in, counted from the first
// of the device.
func (s *space) part(off int64) int {
	id := (off - s.first) / s.size
	return int(id)*s.partCount + int((off-s.off(uint32(id)))>>s.partShift)
}

// stand counts bytes of a block that stands, or no longer stands, at a device offset.
func (s *space) stand(off, n int64) {
	part := s.part(off)
	s.mu.segs[part/s.partCount].live.Add(n)
	s.standIn(part, int16(n/segment.Unit))
}

// standIn counts units of blocks that begin, or no longer begin, in a part; not those of the
// entries of compressed ones, which claim less than a unit each. It adds to a number of four parts:
// what is carried into the next one comes back, for no part holds less than nothing in the end.
func (s *space) standIn(part int, units int16) {
	s.parts[part/4].Add(uint32(units) << (part % 4 * 8))
}

// alive gives the units of live blocks that begin in a part.
func (s *space) alive(part int) uint8 { return uint8(s.parts[part/4].Load() >> (part % 4 * 8)) }

// settled tells whether any block may stand in a stretch of a segment: in the parts that it
// touches.
func (s *space) settled(off, n int64) bool {
	if !s.valid(off, n) {
		return true // whoever looks there tells that it lies outside
	}
	for p := s.part(off); p <= s.part(off+n-1); p++ {
		if s.alive(p) != 0 {
			return true
		}
	}
	return false
}

// settledBy is settled for the data of an entry, whose chunk's payload begins at a device offset.
func (s *space) settledBy(en *segment.Entry, payload int64) bool {
	return s.settled(payload+int64(en.Off)*segment.Unit, int64(en.Units)*segment.Unit)
}

// valid tells whether n bytes from off on lie inside one segment.
func (s *space) valid(off, n int64) bool {
	if off < s.first || n <= 0 {
		return false
	}
	id := (off - s.first) / s.size
	return id < int64(len(s.mu.segs)) && off+n <= s.off(uint32(id))+s.size
}

// admit reserves room for n bytes of blocks that hold nothing yet. Overwrites need no room of
// their own: the cleaner gives theirs back.
func (s *space) admit(n int64) bool {
	if n == 0 {
		return true
	}
	index := s.charge(s.index.Load() + s.tables.Load())
	if s.admitted.Add(n)+s.live.Load()+index > s.usable.Load() ||
		s.disk != nil && index > s.disk.index.Load() {
		s.admitted.Add(-n)
		return false
	}
	return true
}

// ample tells whether there is room for whatever records of hosts may take that are on their way in
// all lanes: then they need not be looked at.
func (s *space) ample(lanes int) bool {
	image := s.charge(imageBytes(segment.LeafBlocks))
	most := int64(lanes) * (segment.RecordBlocks*segment.BlockSize + image)
	index := s.charge(s.index.Load() + s.tables.Load())
	return s.admitted.Load()+s.live.Load()+index+most <= s.usable.Load() &&
		(s.disk == nil || index+most <= s.disk.index.Load())
}

// imageBytes bounds what a leaf with so many blocks mapped takes on the device: its image in whole
// units, at worst in runs of one block, and its line in the root.
func imageBytes(mapped int) int64 {
	if mapped == 0 {
		return 0
	}
	const line = 32
	n := min(segment.LeafFixed+segment.LeafEntry*mapped, segment.LeafMax)
	return int64(segment.RoundUp(n, segment.Unit) + line)
}

// charge gives the room that index bytes claim: metadata segments may be half dead before they are
// rewritten, and may be filled to metaFull only.
func (s *space) charge(index int64) int64 { return 2 * index * s.size / s.metaFull() }

// metaFull gives the bytes of images that a metadata segment holds at least when it is closed: a
// new chunk is begun only where a whole one has room, and small segments hold few.
func (s *space) metaFull() int64 {
	if s.size < 16<<20 {
		return s.size / 2
	}
	return s.size / 4 * 3
}

// needed counts the segments that a checkpoint taken now fills: changed leaves and the root, and
// one for the chunks that end half full.
func (s *space) needed() int {
	const roots = 16 // a root's line is less than this part of the smallest image
	full := s.metaFull()
	return 1 + int((s.dirty.Load()+s.index.Load()/roots+s.tables.Load()+full-1)/full)
}

// startPart is the part of what may be cleaned of a device by which the cleaner starts earlier
// below a journal.
const startPart = 16

// start gives the number of free segments below which the cleaner starts: lowWater, and more below
// a journal, whose hosts use up segments as fast as the device writes. There it starts earlier by a
// part of the segments that need not be full: each checkpoint frees more then, fewer are needed,
// and hosts do not come up to it.
func (s *space) start() int {
	if !s.brisk {
		return s.lowWater
	}
	return s.lowWater + int(max(s.data-s.live.Load()/s.packed.Load(), 0))/startPart
}

// owed gives how many segments are missing, the dead ones counted as free: so the cleaner wins one
// for each that hosts take, and none while enough die by themselves.
func (s *space) owed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start() + s.needed() - len(s.mu.free) - s.dead()
}

// low tells whether three quarters of what lies between the cleaner's start and the hosts' reserve
// are used up, half of it below a journal: then a checkpoint frees what has died until now, so that
// one frees many.
func (s *space) low() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runsLow()
}

// runsLow is low; mu is held.
func (s *space) runsLow() bool {
	start := s.start()
	used := (start - s.reserveUser) * 3 / 4
	if s.brisk {
		used = (start - s.reserveUser) / 2
	}
	return len(s.mu.free) <= start+s.needed()-used
}

// short tells whether more than half of what lies between the cleaner's start and the hosts'
// reserve is used up, what died counted as free: then cleaning comes before what hosts ask for.
func (s *space) short() bool { return s.owed() > (s.start()-s.reserveUser)/2 }

// dead counts the sealed segments that hold nothing any more; mu is held.
func (s *space) dead() int {
	n := 0
	for _, sg := range s.mu.segs {
		if sg.state == segSealed && !sg.cold && sg.live.Load() == 0 && sg.meta == 0 {
			n++
		}
	}
	return n
}

// condemn leaves a sealed segment alone for good; false when that is so already.
func (s *space) condemn(id uint32) bool {
	s.mu.Lock()
	sg := s.mu.segs[id]
	already := sg.state == segBad
	s.mu.Unlock()
	if !already {
		s.set(sg, segBad)
	}
	return !already
}

// reserve gives the free segments that a stream may not touch. Metadata takes the last one.
func (s *space) reserve(stream segment.Stream) int {
	switch stream { //nolint:exhaustive // metadata may take the last one
	case segment.StreamLog:
		return s.reserveUser + s.needed()
	case segment.StreamGen1, segment.StreamGen2:
		return s.reserveMeta + s.needed()
	}
	return 0
}

// take gives a free segment to a stream, waiting for the cleaner where it must. It gives nil once
// the space is stopped.
func (s *space) take(stream segment.Stream, lane uint8) (uint32, *seg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stream == segment.StreamCold {
		return s.takeCold()
	}
	for !s.mu.stopped && len(s.mu.free) <= s.reserve(stream) {
		if stream != segment.StreamLog {
			return 0, nil // the maintenance must not wait for itself
		}
		s.waiting.Add(1)
		s.hurry()
		s.freed.Wait()
		s.waiting.Add(-1)
	}
	if s.mu.stopped {
		return 0, nil
	}
	return s.occupy(stream, lane)
}

// takeAhead gives a lane a free segment before it needs it, if there are enough: what it keeps
// would else be missing to another one. On a small device there are never enough.
func (s *space) takeAhead(lane uint8, lanes int) (uint32, *seg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopped || s.lowWater-s.reserveUser <= 2*lanes ||
		len(s.mu.free) <= s.reserve(segment.StreamLog)+lanes {
		return 0, nil
	}
	return s.occupy(segment.StreamLog, lane)
}

// occupy gives a free segment to a stream, and wakes the cleaner where few are left; mu is held.
func (s *space) occupy(stream segment.Stream, lane uint8) (uint32, *seg) {
	if stream == segment.StreamLog {
		s.served.Add(1)
	}
	id := s.takeFree()
	sg := s.mu.segs[id]
	sg.state, sg.stream, sg.lane, sg.seq = segOpen, stream, lane, s.mu.nextSeq
	s.mu.nextSeq++
	s.scarce.Store(s.runsLow())
	warm := s.disk != nil && s.flashFill() > tier.FlashCool
	least := s.start() + s.needed()
	if s.disk != nil {
		least += int(s.disk.share.Load())
	}
	if warm || len(s.mu.free) < least {
		s.hurry()
	}
	return id, sg
}

// set changes a segment's state. A bad one is no room for live bytes any more, so that the cleaner
// still finds some to win; a sealed one may be what the cleaner lacked.
func (s *space) set(sg *seg, st segState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st == segBad && sg.state != segBad {
		s.usable.Add(-s.packed.Load() / 100 * fillMax)
		s.disk.lose(sg, s.packed.Load()/100*fillMax)
	}
	sg.state = st
	if st == segSealed && s.waiting.Load() > 0 {
		s.hurry()
	}
}

// release makes segments free again. Only the maintenance calls it, behind an anchor.
func (s *space) release(ids []uint32) {
	s.mu.Lock()
	for _, id := range ids {
		s.mu.segs[id].state = segFree
		if s.mu.segs[id].cold {
			s.disk.give(id)
			continue
		}
		s.give(id)
	}
	s.scarce.Store(s.runsLow())
	s.mu.Unlock()
	s.freed.Broadcast()
}

// empty lists the sealed segments that hold nothing any more.
func (s *space) empty() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []uint32
	for i, sg := range s.mu.segs {
		if sg.state == segSealed && sg.meta == 0 && sg.live.Load() == 0 {
			ids = append(ids, uint32(i))
		}
	}
	return ids
}

// freeCount counts the free segments.
func (s *space) freeCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.free)
}

// seqNow gives the sequence the next segment will get.
func (s *space) seqNow() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.nextSeq
}

// stop ends all waits for good.
func (s *space) stop() {
	s.mu.Lock()
	s.mu.stopped = true
	s.mu.Unlock()
	s.freed.Broadcast()
}

// wake ends the waits when the engine failed.
func (s *space) wake() { s.stop() }

func (s *space) read(st *Stats) {
	s.mu.Lock()
	st.Segments, st.FreeSegments = int64(len(s.mu.segs)), int64(len(s.mu.free))
	s.mu.Unlock()
	st.ReservedSegments = int64(s.reserveUser)
	st.LiveBytes, st.UsableBytes = s.live.Load(), max(0, s.usable.Load())
	st.CapacityBytes = s.capacity
	if s.disk != nil {
		s.readDisk(st)
	}
	st.GarbageBytes = max(0, (st.Segments-st.FreeSegments)*s.size-st.LiveBytes)
}
