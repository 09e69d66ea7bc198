package engine

import (
	"sync"
	"testing"
	"unsafe"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
)

// borrower is a device that notes how many bytes it writes from the memory of a journal.
type borrower struct {
	*mem.Device
	memory []byte

	mu    sync.Mutex
	lent  int
	parts int
	fails int // writes of lent memory that are still to fail
}

// WriteVAt writes and notes.
func (d *borrower) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	d.mu.Lock()
	lent := false
	for _, p := range bufs {
		at := uintptr(unsafe.Pointer(unsafe.SliceData(p))) -
			uintptr(unsafe.Pointer(unsafe.SliceData(d.memory)))
		if at < uintptr(len(d.memory)) {
			d.lent += len(p)
			d.parts++
			lent = true
		}
	}
	fail := lent && d.fails > 0
	if fail {
		d.fails--
	}
	d.mu.Unlock()
	if fail {
		return backends.ErrMedia
	}
	return d.Device.WriteVAt(bufs, off, fua)
}

// took gives the blocks lent since it was asked last, and their pieces.
func (d *borrower) took() (blocks, pieces int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	blocks, pieces = d.lent/segment.BlockSize, d.parts
	d.lent, d.parts = 0, 0
	return blocks, pieces
}

// straightRun writes batches of blocks and destages each at once.
type straightRun struct {
	t    *testing.T
	dev  *borrower
	nv   *mem.Memory
	e    *Engine
	v    *Volume
	says map[uint64]uint64
	n    uint64
}

const straightBlocks = 256 << 10 // of the volume

func newStraightRun(t *testing.T, lanes int, tune ...func(*Config)) *straightRun {
	t.Helper()
	inner := recorded(t, 64<<20, 1<<20, lanes)
	r := &straightRun{t: t, nv: newMemory(t, inner, 40), says: map[uint64]uint64{}}
	r.dev = &borrower{Device: inner, memory: r.nv.Bytes()}
	r.e = open(t, r.dev, append([]func(*Config){quiet, journaled(r.nv)}, tune...)...)
	r.v = create(t, r.e, straightBlocks*segment.BlockSize)
	return r
}

func (r *straightRun) put(block uint64) {
	r.t.Helper()
	r.n++
	r.says[block] = r.n
	if err := put(r.v, data(block, 1, r.n)); err != nil {
		r.t.Fatal(err)
	}
}

// far writes so many blocks far apart.
func (r *straightRun) far(n int) {
	r.t.Helper()
	for range n {
		r.put(r.n * 40_503 % straightBlocks)
	}
}

// destaged destages what was written and gives the blocks lent for it, and their pieces.
func (r *straightRun) destaged() (blocks, pieces int) {
	r.t.Helper()
	if err := r.e.nv.drain(background); err != nil {
		r.t.Fatal(err)
	}
	return r.dev.took()
}

// look compares all that was written, with the engine as it is and behind a power cut.
func (r *straightRun) look() {
	r.t.Helper()
	for block, n := range r.says {
		check(r.t, r.v, block, n)
	}
	r.e.Abandon()
	e := open(r.t, r.dev.CrashImage(r.dev.Ops(), mem.None), quiet, journaled(r.nv))
	defer e.Abandon()
	for block, n := range r.says {
		check(r.t, mustVolume(r.t, e), block, n)
	}
}

// TestStraight proves that a batch of blocks that stand far apart is written from the memory of the
// journal, in long pieces, once a batch like it was sorted; that its blocks are those of the hosts,
// behind a power cut too, and where the first write of a chunk fails.
func TestStraight(t *testing.T) {
	for lanes := 1; lanes <= 2; lanes++ {
		r := newStraightRun(t, lanes)
		r.far(200)
		if blocks, _ := r.destaged(); blocks != 0 {
			t.Errorf("%d blocks lent before anything is known", blocks)
		}
		r.dev.fails = 1
		for range 3 {
			r.far(200)
			again := 0
			if r.dev.fails > 0 {
				again = 1
			}
			blocks, pieces := r.destaged()
			if blocks < 200 || blocks > 200*(1+again) || pieces > 20 {
				t.Errorf("%d of 200 blocks lent in %d pieces", blocks, pieces)
			}
		}
		r.look()
	}
}

// TestStraightLearns proves that where neighbours come to stand side by side batches are sorted
// again, at the latest behind straightMax that were not.
func TestStraightLearns(t *testing.T) {
	r := newStraightRun(t, 1)
	defer r.e.Abandon()
	r.far(100)
	r.destaged()
	next, lent := uint64(1000), 0
	for range straightMax + 6 {
		for i := range uint64(60) {
			r.put(next + i*37%60) // one by one, in no order
		}
		next += 60
		if blocks, _ := r.destaged(); blocks > 0 {
			lent++
		}
	}
	if lent != straightMax {
		t.Errorf("%d batches were lent, not %d", lent, straightMax)
	}
}

// TestStraightOnlyLong proves that blocks are copied where what is current of the journal stands in
// short pieces.
func TestStraightOnlyLong(t *testing.T) {
	r := newStraightRun(t, 1)
	r.far(100)
	r.destaged()
	for i := range uint64(120) {
		r.put(i * 1000)
	}
	for i := range uint64(60) { // of the first ones every other is dead then
		r.put(i * 2000)
	}
	if blocks, _ := r.destaged(); blocks != 0 || !r.e.nv.batch.straight.now {
		t.Errorf("%d blocks lent; straight: %v", blocks, r.e.nv.batch.straight.now)
	}
	r.look()
}

// stiff is memory that no device may write from.
type stiff struct{ backends.ByteDevice }

// Geometry says so.
func (s stiff) Geometry() backends.Geometry {
	g := s.ByteDevice.Geometry()
	g.Lendable = false
	return g
}

// TestStraightOnlyPlain proves that a batch with a hole, of a volume that is encrypted or
// compressed, or of a journal that no device may write from, is sorted and copied.
func TestStraightOnlyPlain(t *testing.T) {
	cases := []struct {
		name  string
		tune  func(*Config)
		spoil func(r *straightRun)
	}{
		{"hole", nil, func(r *straightRun) {
			hole := &Record{Kind: segment.KindUnmap, Block: r.n * 40_503 % straightBlocks, Count: 1}
			if err := put(r.v, hole); err != nil {
				r.t.Fatal(err)
			}
		}},
		{"compressed", nil, func(r *straightRun) { r.v.SetCompression(compress.OnlyS2) }},
		{"encrypted", keyed, nil},
		{"not lendable", func(c *Config) { c.Journal = stiff{c.Journal} }, nil},
	}
	for _, c := range cases {
		tune := func(*Config) {}
		if c.tune != nil {
			tune = c.tune
		}
		r := newStraightRun(t, 1, tune)
		r.far(100)
		r.destaged()
		if c.spoil != nil {
			c.spoil(r)
		}
		r.far(100)
		if blocks, _ := r.destaged(); blocks != 0 || r.e.nv.batch.straight.now {
			t.Errorf("%s: %d blocks lent, straight %v", c.name, blocks, r.e.nv.batch.straight.now)
		}
		r.e.Abandon()
	}
}
