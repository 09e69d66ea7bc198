// Package devicetest is the suite which every backends.Device passes. It holds a device to its
// contract: alignment and range are asserted, what is written is read, a discard harms its range
// only, a closed device says so, many goroutines may use it at once, and it counts what it does.
// What survives a power cut is not judged here: only a device whose power can be cut can tell.
package devicetest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"weft/backends"
)

// sizeMin is the smallest device the suite can use, in bytes.
const sizeMin = 1 << 20

// Run runs the suite. open gives a new device each time; the suite closes it. Its content may be
// anything and is overwritten.
func Run(t *testing.T, open func(t *testing.T) backends.Device) {
	tests := []struct {
		name string
		run  func(t *testing.T, d backends.Device)
	}{
		{"Geometry", testGeometry},
		{"ReadsWhatIsWritten", testReadWrite},
		{"AgainstModel", testModel},
		{"Limits", testLimits},
		{"Discard", testDiscard},
		{"Context", testContext},
		{"Concurrent", testConcurrent},
		{"Stats", testStats},
		{"Closed", testClosed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := open(t)
			defer func() {
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			if d.Geometry().Size < sizeMin {
				t.Fatalf("the suite needs a device of %d bytes", sizeMin)
			}
			test.run(t, d)
		})
	}
}

func testGeometry(t *testing.T, d backends.Device) {
	g := d.Geometry()
	if g.LogicalBlock != 512 && g.LogicalBlock != 4096 {
		t.Errorf("logical block %d", g.LogicalBlock)
	}
	if g.Size <= 0 || g.Size%int64(g.LogicalBlock) != 0 {
		t.Errorf("size %d is not made of logical blocks of %d", g.Size, g.LogicalBlock)
	}
	if g.AtomicUnit < g.LogicalBlock || g.AtomicUnit%g.LogicalBlock != 0 {
		t.Errorf("atomic unit %d below logical block %d", g.AtomicUnit, g.LogicalBlock)
	}
	if g.MemoryAlign <= 0 || backends.Align%g.MemoryAlign != 0 {
		t.Errorf("memory alignment %d, which AlignedBuffer does not keep", g.MemoryAlign)
	}
	if g.Path == "" {
		t.Error("no path")
	}
	if g.Durability > backends.PowerSafe {
		t.Errorf("durability %d", g.Durability)
	}
}

// pattern fills an aligned buffer with bytes of a seed.
func pattern(n int, seed uint64) []byte {
	p := backends.AlignedBuffer(n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

func testReadWrite(t *testing.T, d backends.Device) {
	g := d.Geometry()
	for i, n := range []int{g.LogicalBlock, 4096, 64 << 10, 1 << 20} {
		for _, off := range []int64{0, g.Size - int64(n)} {
			for _, fua := range []bool{false, true} {
				want := pattern(n, uint64(i)*4+uint64(off&1))
				if err := d.WriteAt(want, off, fua); err != nil {
					t.Fatalf("write %d at %d: %v", n, off, err)
				}
				got := backends.AlignedBuffer(n)
				if err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read %d at %d: %v, equal %v", n, off, err, bytes.Equal(got, want))
				}
			}
		}
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// testModel runs a random history against a byte slice.
func testModel(t *testing.T, d backends.Device) {
	block := d.Geometry().LogicalBlock
	blocks := sizeMin / block
	model := make([]byte, sizeMin)
	if err := d.WriteAt(backends.AlignedBuffer(sizeMin), 0, false); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		at := r.IntN(blocks)
		n := 1 + r.IntN(min(blocks-at, 32))
		off, end := at*block, (at+n)*block
		switch r.IntN(8) {
		case 0, 1, 2, 3:
			p := pattern(n*block, uint64(i))
			if err := d.WriteAt(p, int64(off), i%5 == 0); err != nil {
				t.Fatal(err)
			}
			copy(model[off:end], p)
		case 4:
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		default:
			p := backends.AlignedBuffer(n * block)
			if err := d.ReadAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, model[off:end]) {
				t.Fatalf("step %d: read %d at %d differs from the model", i, n*block, off)
			}
		}
	}
}

func testLimits(t *testing.T, d backends.Device) {
	g := d.Geometry()
	block := int64(g.LogicalBlock)
	p := backends.AlignedBuffer(2 * g.LogicalBlock)
	cases := []struct {
		name string
		p    []byte
		off  int64
		want error
	}{
		{"offset", p[:block], 1, backends.ErrAlign},
		{"offset half a block", p[:block], block / 2, backends.ErrAlign},
		{"length", p[:block-1], 0, backends.ErrAlign},
		{"negative", p[:block], -block, backends.ErrRange},
		{"the end", p[:block], g.Size, backends.ErrRange},
		{"over the end", p, g.Size - block, backends.ErrRange},
		{"overflow", p, (1<<63 - 1) - (block - 1), backends.ErrRange},
		{"last block", p[:block], g.Size - block, nil},
		{"nothing", nil, 0, nil},
	}
	if g.MemoryAlign > 1 {
		odd := backends.AlignedBuffer(g.LogicalBlock + 1)[1:]
		cases = append(cases, struct {
			name string
			p    []byte
			off  int64
			want error
		}{"address", odd, 0, backends.ErrAlign})
	}
	for _, c := range cases {
		if err := d.ReadAt(c.p, c.off); !errors.Is(err, c.want) {
			t.Errorf("read, %s: %v, want %v", c.name, err, c.want)
		}
		if err := d.WriteAt(c.p, c.off, true); !errors.Is(err, c.want) {
			t.Errorf("write, %s: %v, want %v", c.name, err, c.want)
		}
		if c.name == "address" {
			continue
		}
		if err := d.Discard(t.Context(), c.off, int64(len(c.p))); !errors.Is(err, c.want) {
			t.Errorf("discard, %s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := d.Discard(t.Context(), 0, -block); !errors.Is(err, backends.ErrRange) {
		t.Errorf("discard of a negative length: %v", err)
	}
}

// testDiscard proves that the neighbours of a discarded range keep their bytes, and that the range
// can be written again. What the range holds in between is nobody's business.
func testDiscard(t *testing.T, d backends.Device) {
	want := pattern(256<<10, 9)
	if err := d.WriteAt(want, 0, false); err != nil {
		t.Fatal(err)
	}
	from, to := 64<<10, 128<<10
	if err := d.Discard(t.Context(), int64(from), int64(to-from)); err != nil {
		t.Fatal(err)
	}
	got := backends.AlignedBuffer(len(want))
	if err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:from], want[:from]) || !bytes.Equal(got[to:], want[to:]) {
		t.Error("a discard reached beyond its range")
	}
	if err := d.WriteAt(want[from:to], int64(from), true); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("written again after a discard: %v", err)
	}
}

func testContext(t *testing.T, d backends.Device) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Flush(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("flush after the end of its context: %v", err)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Errorf("flush: %v", err)
	}
}

// testConcurrent lets several goroutines write, flush and read ranges of their own.
func testConcurrent(t *testing.T, d backends.Device) {
	const workers, span = 8, sizeMin / 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			got := backends.AlignedBuffer(span)
			for round := range 8 {
				want := pattern(span, uint64(w*100+round))
				if err := d.WriteAt(want, int64(w*span), round%2 == 0); err != nil {
					t.Errorf("write: %v", err)
				}
				if err := d.Flush(t.Context()); err != nil {
					t.Errorf("flush: %v", err)
				}
				if err := d.ReadAt(got, int64(w*span)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("worker %d round %d: %v", w, round, err)
				}
			}
		})
	}
	wg.Wait()
}

func testStats(t *testing.T, d backends.Device) {
	before := d.Stats()
	p := backends.AlignedBuffer(4096)
	for range 3 {
		if err := errors.Join(d.WriteAt(p, 0, false), d.ReadAt(p, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.Flush(t.Context()), d.Discard(t.Context(), 0, 4096)); err != nil {
		t.Fatal(err)
	}
	if d.ReadAt(p, d.Geometry().Size) == nil {
		t.Error("read at the end")
	}
	s := d.Stats()
	if s.Reads-before.Reads != 3 || s.ReadBytes-before.ReadBytes != 3*4096 {
		t.Errorf("reads: %+v", s)
	}
	if s.Writes-before.Writes != 3 || s.WriteBytes-before.WriteBytes != 3*4096 {
		t.Errorf("writes: %+v", s)
	}
	if s.Flushes-before.Flushes != 1 || s.Errors-before.Errors != 1 {
		t.Errorf("flushes and errors: %+v", s)
	}
}

func testClosed(t *testing.T, d backends.Device) {
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	p := backends.AlignedBuffer(4096)
	for what, err := range map[string]error{
		"read": d.ReadAt(p, 0), "write": d.WriteAt(p, 0, false), "flush": d.Flush(t.Context()),
		"discard": d.Discard(t.Context(), 0, 4096),
	} {
		if !errors.Is(err, backends.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if d.Geometry().Size == 0 {
		t.Error("a closed device forgets its geometry")
	}
}
