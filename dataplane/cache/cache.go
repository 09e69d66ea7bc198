package cache

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"weft/backends"
)

const (
	// BlockSize is the size of what is kept, in bytes.
	BlockSize = 4096

	ways      = 8 // blocks of a set
	usesMax   = 3
	seenParts = 4 // entries of the filter for each block
	stripes   = 64
	// slabSets is how many sets get their memory together, so that a cache that is not used takes
	// none.
	slabSets = 64
)

// Key is the place of a block. Place is never 0.
type Key struct {
	Device uint32 // from Attach
	Place  uint64 // address and checksum, as the index has them
}

// Stats is a reading of a cache.
type Stats struct {
	Hits, Misses int64
	Bytes        int64 // that it may hold
	Used         int64 // that it holds
}

// Cache is a cache of blocks. Any number of goroutines may use it; a nil one holds nothing.
type Cache struct {
	sets    []set
	slabs   []atomic.Pointer[[]byte]
	seen    []atomic.Uint32 // the filter: the part of a hash that its place does not tell
	locks   [stripes]sync.Mutex
	devices atomic.Uint32

	hits, misses, used atomic.Int64
}

// set is the blocks that share a part of their hash. Guarded by its stripe's lock.
type set struct {
	keys [ways]Key // of a free way: zero
	uses [ways]uint8
	hand uint8
	once uint8 // ways, by bit, that go when they are read
}

// New makes a cache of at most so many bytes; nil where that is less than a set.
func New(bytes int64) *Cache {
	n := bytes / (ways * BlockSize)
	if n < 1 {
		return nil
	}
	return &Cache{
		sets:  make([]set, n),
		slabs: make([]atomic.Pointer[[]byte], (n+slabSets-1)/slabSets),
		seen:  make([]atomic.Uint32, n*ways*seenParts),
	}
}

// Attach gives a number for a device that no other has; 0 for a cache that is nil.
func (c *Cache) Attach() uint32 {
	if c == nil {
		return 0
	}
	return c.devices.Add(1)
}

// Get copies a block to dst, which holds one, and tells whether it was there. The caller verifies
// it, and says Drop where it is not what it should be.
func (c *Cache) Get(k Key, dst []byte) bool {
	if c == nil {
		return false
	}
	h := hash(k)
	n := h % uint64(len(c.sets))
	l := &c.locks[n%stripes]
	l.Lock()
	s := &c.sets[n]
	for w := range s.keys {
		if s.keys[w] == k {
			s.uses[w] = min(s.uses[w]+1, usesMax)
			copy(dst[:BlockSize], c.block(n, w))
			if s.once>>w&1 != 0 {
				c.clear(s, w)
			}
			l.Unlock()
			c.hits.Add(1)
			return true
		}
	}
	l.Unlock()
	c.misses.Add(1)
	return false
}

// Put says that a block was read from its device. It is taken in if that is the second time of
// late, and it tells whether it is.
func (c *Cache) Put(k Key, block []byte) (again bool) {
	if c == nil || !c.again(k) {
		return false
	}
	c.store(k, block, false)
	return true
}

// Ahead takes a block in that will be read once, soon: it goes when it is read, and before others.
func (c *Cache) Ahead(k Key, block []byte) {
	if c != nil {
		c.store(k, block, true)
	}
}

func (c *Cache) store(k Key, block []byte, once bool) {
	n := hash(k) % uint64(len(c.sets))
	l := &c.locks[n%stripes]
	l.Lock()
	defer l.Unlock()
	s := &c.sets[n]
	w, ok := s.room(k)
	if !ok {
		return
	}
	if s.keys[w] == (Key{}) {
		c.used.Add(BlockSize)
	}
	s.keys[w], s.uses[w] = k, 0
	if s.once &^= 1 << w; once {
		s.once |= 1 << w
	}
	copy(c.block(n, w), block[:BlockSize])
}

// Drop forgets a block.
func (c *Cache) Drop(k Key) {
	if c == nil {
		return
	}
	n := hash(k) % uint64(len(c.sets))
	l := &c.locks[n%stripes]
	l.Lock()
	defer l.Unlock()
	s := &c.sets[n]
	for w := range s.keys {
		if s.keys[w] == k {
			c.clear(s, w)
		}
	}
}

// clear frees a way; its set's lock is held.
func (c *Cache) clear(s *set, w int) {
	s.keys[w], s.uses[w] = Key{}, 0
	s.once &^= 1 << w
	c.used.Add(-BlockSize)
}

// Stats reads the counters.
func (c *Cache) Stats() Stats {
	if c == nil {
		return Stats{}
	}
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Used: c.used.Load(),
		Bytes: int64(len(c.sets)) * ways * BlockSize,
	}
}

// again notes a read in the filter and tells whether it was there.
func (c *Cache) again(k Key) bool {
	h := hash(k)
	at, mark := &c.seen[(h>>8)%uint64(len(c.seen))], uint32(h>>32)|1
	return at.Swap(mark) == mark
}

// room gives the way that a block shall have; false when it is there already.
func (s *set) room(k Key) (int, bool) {
	free := -1
	for w := range s.keys {
		switch s.keys[w] {
		case k:
			return 0, false
		case Key{}:
			free = w
		}
	}
	if free < 0 && s.once != 0 {
		return bits.TrailingZeros8(s.once), true
	}
	for free < 0 {
		w := int(s.hand)
		if s.hand = (s.hand + 1) % ways; s.uses[w] == 0 {
			return w, true
		}
		s.uses[w]--
	}
	return free, true
}

// block gives the memory of a way; its set's lock is held.
func (c *Cache) block(n uint64, w int) []byte {
	const setBytes = ways * BlockSize
	at := &c.slabs[n/slabSets]
	p := at.Load()
	if p == nil {
		b := backends.HugeBuffer(slabSets * setBytes)
		if p = &b; !at.CompareAndSwap(nil, p) { // sets of a slab have different locks
			p = at.Load()
		}
	}
	off := int(n%slabSets)*setBytes + w*BlockSize
	return (*p)[off : off+BlockSize]
}

// hash mixes a key: the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func hash(k Key) uint64 {
	h := k.Place ^ uint64(k.Device)*0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
