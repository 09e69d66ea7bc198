//go:build linux

package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"weft/backends"
	"weft/backends/devicetest"
)

// TestMain proves that no reaper outlives its device.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWays runs the suite with every read through the ring, and with none.
func TestWays(t *testing.T) {
	t.Run("ring", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device {
			return ringed(t, created(t, t.TempDir(), Options{}))
		})
	})
	t.Run("started", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device {
			return &starting{ringed(t, created(t, t.TempDir(), Options{}))}
		})
	})
	t.Run("tried", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device {
			return &trying{ringed(t, created(t, t.TempDir(), Options{}))}
		})
	})
	t.Run("vector", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device {
			return devicetest.Vectored(created(t, t.TempDir(), Options{}))
		})
	})
	t.Run("pread", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device {
			return created(t, t.TempDir(), Options{NoRing: true})
		})
	})
}

// starting is a device whose every read is started and waited for.
type starting struct{ *Device }

// ended tells who waits of the end of a started read.
type ended chan error

// ReadDone implements backends.ReadDone.
func (e ended) ReadDone(_ *backends.Read, err error) { e <- err }

// ReadAt reads by starting, and kicks what was kept back.
func (s *starting) ReadAt(p []byte, off int64) error {
	e := make(ended, 1)
	if len(p) == 0 || !s.StartRead(&backends.Read{P: p, Off: off, To: e}, true) {
		return s.Device.ReadAt(p, off)
	}
	s.KickReads()
	return <-e
}

// trying is a device whose every read is tried to be started, and waited for.
type trying struct{ *Device }

// ReadAt reads by starting, without a kick.
func (s *trying) ReadAt(p []byte, off int64) error {
	e := make(ended, 1)
	if len(p) == 0 || !s.TryStartRead(&backends.Read{P: p, Off: off, To: e}) {
		return s.Device.ReadAt(p, off)
	}
	return <-e
}

// ringed makes every read of d go through the ring, or skips the test where there is none.
func ringed(t testing.TB, d *Device) *Device {
	t.Helper()
	d.reading.from = 0
	if err := d.ReadAt(backends.AlignedBuffer(4096), 0); err != nil {
		t.Fatal(err)
	}
	if d.reading.ring == nil {
		_ = d.Close()
		t.Skip("SKIPPED: no io_uring, or a temporary folder in memory")
	}
	return d
}

// stamped gives a device each of whose blocks of 4096 bytes bears its number.
func stamped(t testing.TB, opt Options) *Device {
	t.Helper()
	d := created(t, t.TempDir(), opt)
	p := backends.AlignedBuffer(size)
	for at := 0; at < size; at += 8 {
		binary.LittleEndian.PutUint64(p[at:], uint64(at))
	}
	if err := d.WriteAt(p, 0, false); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestReadsAtDepth reads random ranges from many goroutines and looks at every word, as the device
// chooses its way and by each alone.
func TestReadsAtDepth(t *testing.T) {
	for _, from := range []int64{0, 1, ringFrom, 1 << 30} {
		d := stamped(t, Options{})
		d.reading.from = from
		var wg sync.WaitGroup
		for w := range 32 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), uint64(from)))
				buf := backends.AlignedBuffer(64 << 10)
				for range 50 {
					n := 4096 * (1 + rnd.IntN(16))
					off := 4096 * rnd.Int64N(int64(size-n)/4096+1)
					if err := d.ReadAt(buf[:n], off); err != nil {
						t.Error(err)
						return
					}
					for at := 0; at < n; at += 8 {
						if got := binary.LittleEndian.Uint64(buf[at:]); got != uint64(off)+uint64(at) {
							t.Errorf("at %d: %d", off+int64(at), got)
							return
						}
					}
				}
			})
		}
		wg.Wait()
		if made := d.reading.ring != nil; made && from == 1<<30 {
			t.Error("a ring was made for nothing")
		}
		if s := d.Stats(); s.Reads != 32*50 || s.Errors != 0 || d.reading.flight.Load() != 0 {
			t.Errorf("%+v, %d under way", s, d.reading.flight.Load())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestMemoryTakesNoRing proves that tmpfs is read by pread at any depth.
func TestMemoryTakesNoRing(t *testing.T) {
	d := created(t, shm(t), Options{})
	defer func() { _ = d.Close() }()
	d.reading.from = 0
	if err := d.ReadAt(backends.AlignedBuffer(4096), 0); err != nil || d.reading.ring != nil {
		t.Errorf("%v, ring %v", err, d.reading.ring)
	}
}

// TestRingErrors proves that the errors of a read are those of pread, and that none allocates.
func TestRingErrors(t *testing.T) {
	d := ringed(t, created(t, t.TempDir(), Options{}))
	p := backends.AlignedBuffer(8192)
	if n := testing.AllocsPerRun(50, func() {
		if err := d.ReadAt(p, 4096); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if err := os.Truncate(d.geometry.Path, size/2); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int64]error{
		size / 2: errShort, size/2 - 4096: errShort,
		size - 4096: backends.ErrRange, 100: backends.ErrAlign,
	} {
		if err := d.ReadAt(p, off); !errors.Is(err, want) {
			t.Errorf("read at %d: %v, want %v", off, err, want)
		}
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if err := d.ReadAt(p, 0); !errors.Is(err, backends.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCloseFreesLock closes with reads under way and opens at once: the kernel must not hold the
// file, and with it the lock, for a read that has ended.
func TestCloseFreesLock(t *testing.T) {
	d := ringed(t, created(t, t.TempDir(), Options{}))
	path := d.geometry.Path
	for range 30 {
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				p := backends.AlignedBuffer(4096)
				for {
					if err := d.ReadAt(p, int64(w)*4096); errors.Is(err, backends.ErrClosed) {
						return
					} else if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for d.Stats().Reads < 20 {
			runtime.Gosched()
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		next, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("open after close: %v", err)
		}
		wg.Wait() // the readers use d until then
		d = ringed(t, next)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestWithoutRing proves that reads at depth are preads where no ring is to be had or none wanted.
func TestWithoutRing(t *testing.T) {
	for _, opt := range []Options{{}, {NoRing: true}} {
		d := stamped(t, opt)
		d.reading.from = 0
		if !opt.NoRing {
			d.reading.once.Do(func() {}) // as if the kernel had refused
		}
		p := backends.AlignedBuffer(4096)
		if err := d.ReadAt(p, 8192); err != nil || binary.LittleEndian.Uint64(p) != 8192 {
			t.Errorf("%v", err)
		}
		if d.reading.ring != nil {
			t.Error("a ring")
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkReadDepth reads random places of a written file with so many goroutines, by pread alone
// and by the ring alone ("ring") and as the product does ("auto"), in turns, with GOMAXPROCS as
// the product sets it. cpu-us/op is user and system time of the process.
func BenchmarkReadDepth(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const size = 512 << 20
	path := filepath.Join(b.TempDir(), "disk")
	d, err := Create(path, size, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, block := range []int{4 << 10, 64 << 10} {
		for _, depth := range []int{1, 2, 4, 8, 32, 64} {
			for _, way := range []string{"psync", "ring", "auto"} {
				b.Run(fmt.Sprintf("%dk/qd%d/%s", block>>10, depth, way), func(b *testing.B) {
					d.reading.from, d.reading.off = ringFrom, way == "psync"
					if way == "ring" {
						d.reading.from = 0
					}
					readDepth(b, d, block, depth)
				})
			}
		}
	}
}

func readDepth(b *testing.B, d *Device, block, depth int) {
	var done atomic.Int64
	var wg sync.WaitGroup
	total := int64(b.N)
	blocks := d.geometry.Size / int64(block)
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	took := make([][]time.Duration, depth)
	for w := range took {
		took[w] = make([]time.Duration, 0, b.N)
	}
	b.ResetTimer()
	for w := range depth {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), uint64(total)))
			p := backends.AlignedBuffer(block)
			for done.Add(1) <= total {
				begun := time.Now()
				if err := d.ReadAt(p, rnd.Int64N(blocks)*int64(block)); err != nil {
					b.Error(err)
					return
				}
				took[w] = append(took[w], time.Since(begun))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := func(r *unix.Rusage) time.Duration {
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	b.ReportMetric(float64((cpu(&after)-cpu(&before)).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/float64(b.N), "cs/op")
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds())/1e3, "p99-us")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "iops")
}
