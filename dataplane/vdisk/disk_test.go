package vdisk

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/engine"
	"weft/domain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const diskSize = 64 * domain.MiB

// build gives a disk over an engine in RAM.
func build(t testing.TB, tune ...func(*Config, *engine.Config)) *Disk {
	t.Helper()
	dev, err := mem.New(mem.Config{Size: 192 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	err = engine.Format(context.Background(), dev, engine.FormatOptions{
		Device: domain.DeviceID{UUID: domain.UUID{2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pool := NewPool(8)
	cfg, ecfg := Config{Pool: pool}, engine.Config{Device: dev, Node: 1}
	for _, f := range tune {
		f(&cfg, &ecfg)
	}
	e, err := engine.Open(context.Background(), ecfg)
	if err != nil {
		t.Fatal(err)
	}
	id := domain.VolumeID{UUID: domain.UUID{3}}
	cfg.Volume, err = e.Create(context.Background(), id, diskSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Volatile, cfg.Flush = e.Volatile(), e.Flush
	cfg.Scheduler = e.Scheduler()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pool.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7) + byte(i>>9)
	}
	return b
}

func do(t testing.TB, d *Disk, io domain.IO) {
	t.Helper()
	if err := d.Do(&io); err != nil {
		t.Fatalf("%s of %d at %d: %v", io.Op, io.Len, io.Off, err)
	}
}

func write(t testing.TB, d *Disk, off int64, p []byte) {
	t.Helper()
	do(t, d, domain.IO{Op: domain.OpWrite, Off: off, Len: int64(len(p)), Buf: p})
}

func read(t testing.TB, d *Disk, off, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	do(t, d, domain.IO{Op: domain.OpRead, Off: off, Len: n, Buf: p})
	return p
}

// TestAnyRange proves that writes, zeroes, unmaps and reads of any range of sectors, over block,
// record and extent bounds, do to a disk what they do to a slice of bytes.
func TestAnyRange(t *testing.T) {
	d := build(t)
	model := make([]byte, diskSize)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range 1500 {
		n := (1 + rnd.Int64N(16)) * 512
		if rnd.IntN(20) == 0 {
			n = (1 + rnd.Int64N(10<<20/512)) * 512
		}
		off := rnd.Int64N((int64(diskSize)-n)/512) * 512
		switch rnd.IntN(6) {
		case 0:
			do(t, d, domain.IO{Op: domain.OpZero, Off: off, Len: n, NoUnmap: true})
			clear(model[off : off+n])
		case 1:
			do(t, d, domain.IO{Op: domain.OpUnmap, Off: off, Len: n})
			clear(model[off : off+n])
		case 2, 3:
			p := pattern(int(n), byte(i))
			write(t, d, off, p)
			copy(model[off:], p)
		default:
			if !bytes.Equal(read(t, d, off, n), model[off:off+n]) {
				t.Fatalf("step %d: %d bytes at %d differ", i, n, off)
			}
		}
	}
	if !bytes.Equal(read(t, d, 0, int64(diskSize)), model) {
		t.Fatal("the whole disk differs")
	}
}

// TestSmallRecords proves that a device whose records are smaller than a request takes it in
// pieces.
func TestSmallRecords(t *testing.T) {
	d := build(t)
	d.at.Load().record = 16 << 10
	for _, off := range []int64{0, 512, 4<<20 - 20<<10} {
		p := pattern(100<<10, byte(off>>9))
		write(t, d, off, p)
		if !bytes.Equal(read(t, d, off, int64(len(p))), p) {
			t.Errorf("at %d: differs", off)
		}
	}
}

// TestTwoHostsOneBlock proves that writers of different sectors of one block never lose each
// other's data: each counts up its own sector, and every count must be there in the end. One writes
// whole blocks of another place meanwhile, so that group commits mix.
func TestTwoHostsOneBlock(t *testing.T) {
	d := build(t)
	var wg sync.WaitGroup
	const rounds = 200
	for s := range int64(8) {
		wg.Go(func() {
			for n := range byte(rounds) {
				p := bytes.Repeat([]byte{n + 1}, 512)
				io := &domain.IO{Op: domain.OpWrite, Off: 8192 + s*512, Len: 512, Buf: p}
				if err := d.Do(io); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, 512)
				if err := d.Do(&domain.IO{
					Op: domain.OpRead, Off: 8192 + s*512, Len: 512, Buf: got,
				}); err != nil || got[0] != n+1 {
					t.Errorf("sector %d holds %d after %d (%v)", s, got[0], n+1, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for s := range int64(8) {
		if got := read(t, d, 8192+s*512, 512); got[0] != rounds || got[511] != rounds {
			t.Errorf("sector %d holds %d", s, got[0])
		}
	}
}

// TestCompareAndWrite proves that of many writers who compare with what they read, one wins each
// round: a counter raised by all of them ends at the number of successes.
func TestCompareAndWrite(t *testing.T) {
	d := build(t)
	var wg sync.WaitGroup
	var wins [6]int
	for w := range wins {
		wg.Go(func() {
			for range 100 {
				old := make([]byte, 512)
				if err := d.Do(&domain.IO{Op: domain.OpRead, Off: 4096, Len: 512, Buf: old}); err != nil {
					t.Error(err)
					return
				}
				next := bytes.Clone(old)
				if next[0]++; next[0] == 0 {
					next[1]++
				}
				io := &domain.IO{Op: domain.OpCompareWrite, Off: 4096, Len: 512, Cmp: old, Buf: next}
				switch err := d.Do(io); {
				case err == nil:
					wins[w]++
				case !domain.IsKind(err, domain.Miscompare):
					t.Error(err)
				case io.Mismatch > 1:
					t.Errorf("mismatch at %d", io.Mismatch)
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range wins {
		sum += n
	}
	got := read(t, d, 4096, 512)
	if n := int(got[0]) + int(got[1])<<8; n != sum || sum == 0 {
		t.Errorf("%d successes, the counter says %d", sum, n)
	}
}

// TestRefused proves the kind of every request that a disk does not take.
func TestRefused(t *testing.T) {
	d := build(t)
	ro := build(t, func(c *Config, _ *engine.Config) { c.ReadOnly = true })
	buf := make([]byte, 8192)
	size := int64(diskSize)
	for _, c := range []struct {
		name string
		d    *Disk
		io   domain.IO
		kind domain.Kind
	}{
		{"ragged offset", d, domain.IO{Op: domain.OpRead, Off: 100, Len: 512, Buf: buf}, domain.Invalid},
		{"ragged length", d, domain.IO{Op: domain.OpWrite, Len: 100, Buf: buf}, domain.Invalid},
		{"negative", d, domain.IO{Op: domain.OpRead, Off: -512, Len: 512, Buf: buf}, domain.Invalid},
		{"beyond", d, domain.IO{Op: domain.OpRead, Off: size, Len: 512, Buf: buf}, domain.OutOfRange},
		{"over the end", d, domain.IO{Op: domain.OpUnmap, Off: size - 512, Len: 1024}, domain.OutOfRange},
		{"overflow", d, domain.IO{Op: domain.OpUnmap, Off: 512, Len: 1<<63 - 512}, domain.OutOfRange},
		{"no such operation", d, domain.IO{Op: 99}, domain.Unsupported},
		{"no operation", d, domain.IO{}, domain.Unsupported},
		{"no buffer", d, domain.IO{Op: domain.OpWrite, Len: 8192, Buf: buf[:512]}, domain.Internal},
		{"compare over an extent", d, domain.IO{
			Op: domain.OpCompareWrite, Off: 4<<20 - 4096, Len: 8192, Cmp: buf, Buf: buf,
		}, domain.TooLarge},
		{"write to read-only", ro, domain.IO{Op: domain.OpWrite, Len: 512, Buf: buf}, domain.ReadOnly},
		{"unmap of read-only", ro, domain.IO{Op: domain.OpUnmap, Len: 512}, domain.ReadOnly},
	} {
		if err := c.d.Do(&c.io); !domain.IsKind(err, c.kind) {
			t.Errorf("%s: %v, want %s", c.name, err, c.kind)
		}
	}
	for _, op := range []domain.Op{domain.OpRead, domain.OpWrite, domain.OpZero, domain.OpUnmap} {
		do(t, d, domain.IO{Op: op, Off: size, Buf: buf}) // nothing, at the very end, is no error
	}
}

// TestExtents proves that the allocation map says hole, zero and data as they are, cut to the
// range.
func TestExtents(t *testing.T) {
	d := build(t)
	write(t, d, 4096, pattern(8192, 1))
	do(t, d, domain.IO{Op: domain.OpZero, Off: 16384, Len: 4096, NoUnmap: true})
	got, err := d.Extents(512, 24064, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []domain.Extent{
		{Off: 512, Len: 3584, Hole: true, Zero: true},
		{Off: 4096, Len: 8192},
		{Off: 12288, Len: 4096, Hole: true, Zero: true},
		{Off: 16384, Len: 4096, Zero: true},
		{Off: 20480, Len: 4096, Hole: true, Zero: true},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
	if _, err := d.Extents(0, int64(diskSize)+512, nil); !domain.IsKind(err, domain.OutOfRange) {
		t.Error(err)
	}
}

// TestVolatileFlush proves that a disk whose acknowledgements are volatile says so, and that FUA
// and flush reach the device.
func TestVolatileFlush(t *testing.T) {
	flushes := 0
	d := build(t, func(_ *Config, e *engine.Config) { e.Mode = engine.Process })
	d.at.Load().Flush = func(context.Context) error { flushes++; return nil }
	if !d.Info().Volatile {
		t.Error("a process-durable disk claims to be safe")
	}
	write(t, d, 0, pattern(4096, 1))
	if flushes != 0 {
		t.Error("a plain write flushed")
	}
	do(t, d, domain.IO{Op: domain.OpWrite, Len: 4096, Buf: pattern(4096, 2), FUA: true})
	do(t, d, domain.IO{Op: domain.OpFlush})
	if flushes != 2 {
		t.Errorf("%d flushes", flushes)
	}
}

type counter struct{ wg sync.WaitGroup }

func (c *counter) Complete(*domain.IO) { c.wg.Done() }

// TestWriteAllocatesNothing gates the write path: 0 allocations per 4 KiB write, group commit,
// index and completion included. (The clean-up of a checkpoint may fall into a run; it is a
// fraction.)
func TestWriteAllocatesNothing(t *testing.T) {
	d := build(t, func(_ *Config, e *engine.Config) {
		// The device in RAM makes its pages when they are first written: let that be now.
		zeros := backends.AlignedBuffer(1 << 20)
		for off := int64(4 << 20); off < e.Device.Geometry().Size-2<<20; off += int64(len(zeros)) {
			if err := e.Device.WriteAt(zeros, off, false); err != nil {
				t.Fatal(err)
			}
		}
	})
	io := &domain.IO{Op: domain.OpWrite, Len: 4096, Buf: backends.AlignedBuffer(4096)}
	copy(io.Buf, pattern(4096, 3))
	c := &counter{}
	n := int64(0)
	one := func() {
		io.Off, io.To = n%512*4096, c
		n++
		c.wg.Add(1)
		d.Submit(io)
		c.wg.Wait()
	}
	for range 600 {
		one() // every leaf and pool is made once
	}
	if got := testing.AllocsPerRun(2000, one); got > 0 {
		t.Errorf("%v allocations per write", got)
	}
	r := &domain.IO{Op: domain.OpRead, Len: 4096, Buf: backends.AlignedBuffer(4096), To: c}
	if got := testing.AllocsPerRun(2000, func() {
		r.Off = n % 512 * 4096
		n++
		c.wg.Add(1)
		d.Submit(r)
		c.wg.Wait()
	}); got > 0 {
		t.Errorf("%v allocations per read", got)
	}
}

// TestBusyDevice proves that a disk waits for its turn on a device that others keep busy, that what
// waited does what it was asked for, that a flush and a refused request wait for nothing, and that
// every request gives its place back.
func TestBusyDevice(t *testing.T) {
	d := build(t)
	s := d.at.Load().Scheduler
	others, held := s.Flow(nil), &domain.IO{Op: domain.OpRead, Len: 4096}
	window := s.Reading().Window
	for range window {
		others.Admit(held)
	}
	model := make([]byte, 1<<20)
	c := &counter{}
	var all []*domain.IO
	submit := func(op domain.Op, off int64, p []byte) {
		io := &domain.IO{Op: op, Off: off, Len: int64(len(p)), Buf: p, To: c}
		all = append(all, io)
		c.wg.Add(1)
		d.Submit(io)
	}
	for i := range 300 {
		n := 4096
		if i%3 == 0 {
			n = 512 // has to be merged
		}
		p := pattern(n, byte(i))
		submit(domain.OpWrite, int64(i%200)*4096, p)
		if i < 200 {
			copy(model[i*4096:], p)
		}
	}
	if n := d.Queued(); n != 300 || s.Reading().Flight != window {
		t.Fatalf("%d wait, %+v", n, s.Reading())
	}
	do(t, d, domain.IO{Op: domain.OpFlush})
	err := d.Do(&domain.IO{Op: domain.OpRead, Off: 1, Len: 512})
	if !domain.IsKind(err, domain.Invalid) {
		t.Errorf("a ragged read: %v", err)
	}
	for range window {
		others.Done(held)
	}
	c.wg.Wait()
	for _, io := range all {
		if io.Err != nil {
			t.Error(io.Err)
		}
	}
	for i := 100; i < 200; i++ { // written once
		if got := read(t, d, int64(i)*4096, 512); !bytes.Equal(got, model[i*4096:i*4096+512]) {
			t.Fatalf("block %d differs", i)
		}
	}
	if r := s.Reading(); r.Flight != 0 || r.Waiting != 0 {
		t.Errorf("at rest %+v", r)
	}
}

// BenchmarkScheduled tells what a scheduler costs a write of 4 KiB to a device in RAM that is not
// short, beside a disk without one.
func BenchmarkScheduled(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("scheduler=%t", with), func(b *testing.B) {
			d := build(b)
			if !with {
				d.at.Load().flow = nil
			}
			io := &domain.IO{Op: domain.OpWrite, Len: 4096, Buf: backends.AlignedBuffer(4096)}
			copy(io.Buf, pattern(4096, 3))
			c, n := &counter{}, int64(0)
			io.To = c
			for b.Loop() {
				io.Off = n % 512 * 4096
				n++
				c.wg.Add(1)
				d.Submit(io)
				c.wg.Wait()
			}
		})
	}
}
