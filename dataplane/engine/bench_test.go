package engine

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/direct"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// sink is a device that takes writes to segments and forgets them, so that what is measured is the
// engine's own work and not a copy into a device in RAM.
type sink struct {
	backends.Device
	forget bool
}

// WriteAt writes or forgets.
func (s *sink) WriteAt(p []byte, off int64, fua bool) error {
	if s.forget {
		return nil
	}
	return s.Device.WriteAt(p, off, fua)
}

// signal is told the outcome of one record at a time and allocates nothing.
type signal chan error

// Appended implements Appender.
func (s signal) Appended(_ *Record, err error) { s <- err }

// TestNoAllocationPerIO proves that neither a 4 KiB write nor a read allocates: the mean over some
// thousand of each is below one, so what a new segment costs is spread over its records.
func TestNoAllocationPerIO(t *testing.T) { allocatesNothing(t, quiet) }

func allocatesNothing(t *testing.T, tune ...func(*Config)) {
	t.Helper()
	if raceOn {
		t.Skip("the race detector allocates")
	}
	dev := &sink{Device: newMem(t, 256<<20, 4<<20, 1)}
	e := open(t, dev, tune...)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	done := make(signal, 1)
	r := data(0, 1, 7)
	r.To = done
	buf := backends.AlignedBuffer(segment.BlockSize)
	for b := range uint64(64) {
		if err := put(v, data(b, 1, 9)); err != nil {
			t.Fatal(err)
		}
	}
	reads := testing.AllocsPerRun(4000, func() {
		if err := v.Read(5, 1, buf); err != nil {
			t.Fatal(err)
		}
	})
	dev.forget = true
	n := uint64(0)
	writes := testing.AllocsPerRun(4000, func() {
		n++
		r.Block = n % 64
		v.Append(r)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	if reads != 0 || writes != 0 {
		t.Errorf("%v allocations per read, %v per write", reads, writes)
	}
}

// benchDevice is a formatted device of a kind.
func benchDevice(b *testing.B, kind string) backends.Device {
	b.Helper()
	var dev backends.Device
	var err error
	size := int64(1 << 30)
	if kind == "mem" {
		dev, err = mem.New(mem.Config{Size: size, Durability: backends.PowerSafe})
	} else {
		dev, err = direct.Create(filepath.Join(b.TempDir(), "device"), size, direct.Options{})
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = dev.Close() })
	err = Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 8 << 20,
	})
	if err != nil {
		b.Fatal(err)
	}
	return dev
}

// BenchmarkAppend writes random blocks of 4 KiB in 64 MiB, durably, so many at a time, in RAM and
// on a file that is driven past the page cache.
func BenchmarkAppend(b *testing.B) {
	for _, kind := range []string{"mem", "direct"} {
		for _, width := range []int{1, 32, 128} {
			b.Run(fmt.Sprintf("%s/%d", kind, width), func(b *testing.B) {
				e := open(b, benchDevice(b, kind))
				defer e.Abandon()
				v := create(b, e, 64*domain.MiB)
				b.ReportAllocs()
				b.SetBytes(segment.BlockSize)
				b.ResetTimer()
				var wg sync.WaitGroup
				for w := range width {
					wg.Add(1)
					go func() {
						defer wg.Done()
						done, rnd := make(signal, 1), newRand(uint64(w))
						r := data(0, 1, uint64(w+1))
						r.To = done
						for range (b.N + width - 1) / width {
							r.Block = rnd.Uint64N(16 << 10)
							v.Append(r)
							if err := <-done; err != nil {
								b.Error(err)
								return
							}
						}
					}()
				}
				wg.Wait()
				b.StopTimer()
				st := e.Stats()
				b.ReportMetric(float64(st.Records)/float64(max(st.Chunks, 1)), "records/chunk")
			})
		}
	}
}

// BenchmarkRead reads random blocks of 4 KiB, one at a time.
func BenchmarkRead(b *testing.B) {
	for _, kind := range []string{"mem", "direct"} {
		b.Run(kind, func(b *testing.B) {
			e := open(b, benchDevice(b, kind))
			defer e.Abandon()
			v := create(b, e, 64*domain.MiB)
			for i := range uint64(64) {
				if err := put(v, data(i*256, 256, i+1)); err != nil {
					b.Fatal(err)
				}
			}
			rnd, buf := newRand(1), backends.AlignedBuffer(segment.BlockSize)
			b.ReportAllocs()
			b.SetBytes(segment.BlockSize)
			for b.Loop() {
				if err := v.Read(rnd.Uint64N(16<<10), 1, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRecovery opens a device with 60,000 records of log behind the checkpoint.
func BenchmarkRecovery(b *testing.B) {
	dev := benchDevice(b, "mem")
	e := open(b, dev, quiet)
	v := create(b, e, 64*domain.MiB)
	var wg sync.WaitGroup
	for i := range uint64(60_000) {
		wg.Add(1)
		r := data(i*7%(16<<10), 1, i)
		r.To = acker(func(error) { wg.Done() })
		v.Append(r)
	}
	wg.Wait()
	e.Abandon()
	m, ok := dev.(*mem.Device)
	if !ok {
		b.Fatal("not in RAM")
	}
	m.StartHistory()
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		img := copyOf(m)
		b.StartTimer()
		open(b, img, quiet).Abandon()
	}
}
