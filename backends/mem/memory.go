package mem

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"

	"weft/backends"
)

// memoryPage is the unit of a memory's size, in bytes.
const memoryPage = 4096

// Memory is byte-addressable memory whose power can be cut: a backends.ByteDevice for crash tests.
// It keeps, beside what is stored, what was persisted. After a cut there is
//
//	B1  what was persisted before, whole;
//	B2  of everything else that was stored, each aligned word of 8 bytes or not, whatever became of
//	    its neighbours: a cache line may have gone out by itself, and need not have.
//
// With StartHistory it records every Persist with all that was stored and not persisted by then, so
// a cut is a question about the past, as with Device. Stores are not seen: only what they amount to
// at the next Persist.
type Memory struct {
	live       []byte
	durability backends.Durability

	mu       sync.Mutex
	kept     []byte // as persisted
	clock    func() int
	base     []byte // kept at the start of the history
	persists []persist
	walk     int    // persists that at holds
	at       []byte // the walk's copy of kept
}

// persist is one call: what it was about, and all that was stored and not persisted before it.
type persist struct {
	off, n int64
	clock  int
	dirty  []run
}

// run is bytes that differ from what is kept; both ends are whole words.
type run struct {
	off  int64
	data []byte
}

var _ backends.ByteDevice = (*Memory)(nil)

// NewMemory makes memory of so many bytes, a multiple of 4096, all zero.
func NewMemory(size int64, durability backends.Durability) (*Memory, error) {
	if size <= 0 || size%memoryPage != 0 {
		return nil, fmt.Errorf("mem: memory of %d bytes: %w", size, backends.ErrAlign)
	}
	return newMemory(make([]byte, size), durability), nil
}

func newMemory(content []byte, durability backends.Durability) *Memory {
	live := backends.AlignedBuffer(len(content))
	copy(live, content)
	return &Memory{live: live, kept: content, durability: durability}
}

// Geometry describes the memory.
func (m *Memory) Geometry() backends.Geometry {
	return backends.Geometry{
		Size: int64(len(m.live)), LogicalBlock: memoryPage, AtomicUnit: 8, MemoryAlign: 1,
		Durability: m.durability, Path: "mem", Model: "memory", Lendable: true,
	}
}

// Bytes gives the memory.
func (m *Memory) Bytes() []byte { return m.live }

// Persist makes a range durable.
func (m *Memory) Persist(off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.live[off : off+n]
	if m.clock != nil {
		// First what is stored, then the clock: a store that follows from an operation of the device
		// must not be dated before it.
		dirty := m.dirty()
		m.persists = append(m.persists, persist{off, n, m.clock(), dirty})
	}
	from, to := off&^7, min((off+n+7)&^7, int64(len(m.live)))
	keep(m.kept[from:to], m.live[from:to])
}

// keep copies what other goroutines may be storing around: they own their words, and a word is read
// whole.
//
//go:norace
func keep(to, from []byte) {
	for i := 0; i < len(to); i += 8 {
		binary.NativeEndian.PutUint64(to[i:], binary.NativeEndian.Uint64(from[i:]))
	}
}

// dirty lists what is stored and not kept. It looks at words that others may be storing to, as the
// power's end would.
//
//go:norace
func (m *Memory) dirty() []run {
	var list []run
	for p := int64(0); p < int64(len(m.live)); p += memoryPage {
		if same(m.live[p:p+memoryPage], m.kept[p:p+memoryPage]) {
			continue
		}
		for w := p; w < p+memoryPage; w += 8 {
			v := binary.NativeEndian.Uint64(m.live[w:])
			if v == binary.NativeEndian.Uint64(m.kept[w:]) {
				continue
			}
			if k := len(list) - 1; k < 0 || list[k].off+int64(len(list[k].data)) != w {
				list = append(list, run{off: w})
			}
			k := len(list) - 1
			list[k].data = binary.NativeEndian.AppendUint64(list[k].data, v)
		}
	}
	return list
}

//go:norace
func same(a, b []byte) bool {
	for i := 0; i < len(a); i += 8 {
		if binary.NativeEndian.Uint64(a[i:]) != binary.NativeEndian.Uint64(b[i:]) {
			return false
		}
	}
	return true
}

// Close does nothing: the bytes stay.
func (*Memory) Close() error { return nil }

// StartHistory takes the present content as durable and records from here on. clock is asked at
// each Persist, so that a test can tell which operations of a Device came before it: Device.Mark.
func (m *Memory) StartHistory(clock func() int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keep(m.kept, m.live)
	m.clock, m.persists, m.walk, m.at = clock, nil, 0, nil
	m.base = bytes.Clone(m.kept)
}

// Mark gives the present point of the history: a cut at n >= Mark() comes after all Persists that
// had returned.
func (m *Memory) Mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.persists)
}

// Stop ends the history: what is stored and not persisted now is in flight at its last point. A
// second call does nothing.
func (m *Memory) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clock == nil {
		return
	}
	dirty := m.dirty()
	m.persists = append(m.persists, persist{clock: m.clock(), dirty: dirty})
	m.clock = nil
}

// Clock gives what the clock said at the n-th Persist, from 0.
func (m *Memory) Clock(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.persists[n].clock
}

// CrashImage makes the memory that a power cut leaves when so many Persists had returned, the next
// one, if there is one, being under way: each word stored and not persisted by then is there with a
// probability of keep by chance of the seed. Calls with at not decreasing walk the history once.
func (m *Memory) CrashImage(at int, keepShare float64, seed uint64) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil || m.walk > at {
		m.at, m.walk = bytes.Clone(m.base), 0
	}
	for ; m.walk < at; m.walk++ {
		p := &m.persists[m.walk]
		from, to := p.off&^7, (p.off+p.n+7)&^7
		for _, r := range p.dirty {
			lo, hi := max(r.off, from), min(r.off+int64(len(r.data)), to)
			if lo < hi {
				copy(m.at[lo:hi], r.data[lo-r.off:hi-r.off])
			}
		}
	}
	img := bytes.Clone(m.at)
	if at < len(m.persists) && keepShare > 0 {
		rnd := rand.New(rand.NewPCG(seed, 0x6e766d))
		for _, r := range m.persists[at].dirty {
			for w := 0; w < len(r.data); w += 8 {
				if rnd.Float64() < keepShare {
					copy(img[r.off+int64(w):], r.data[w:w+8])
				}
			}
		}
	}
	return newMemory(img, m.durability)
}

// Sum gives a checksum of what is stored: equal for equal bytes, in this process only.
func (m *Memory) Sum() uint64 { return maphash.Bytes(sumSeed, m.live) }

// Clone makes memory with the same content as stored now, as a crash of the process leaves it.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	content := make([]byte, len(m.live))
	keep(content, m.live)
	return newMemory(content, m.durability)
}
