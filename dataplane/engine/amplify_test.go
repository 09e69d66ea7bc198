package engine

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/direct"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// BenchmarkAmplification overwrites random blocks of 4 KiB, 64 at a time, on a device filled to a
// share of what it admits, in RAM and on a file, and reports what is written per byte of the host's
// in the steady state: by hosts and cleaner (goals 2.0 uniform at 70 %, 3.0 at 80 %, 2.0 zipf at
// 80 %), and all causes together as the device counts; and the latency of a write at the 99th
// percentile and at worst, to be compared with the first, which is never cleaned (goals: twice, and
// 50 ms). One iteration is a pass over the volume's size.
func BenchmarkAmplification(b *testing.B) {
	for _, kind := range []string{"mem", "direct"} {
		for _, c := range []struct {
			name string
			fill int64 // percent of Stats.UsableBytes, index included
			zipf bool
		}{
			{"uniform/20", 20, false},
			{"uniform/70", 70, false},
			{"uniform/80", 80, false},
			{"uniform/95", 95, false},
			{"zipf/80", 80, true},
		} {
			b.Run(kind+"/"+c.name, func(b *testing.B) { amplify(b, kind, c.fill, c.zipf) })
		}
	}
}

// written is a record that notes how long it took.
type written struct {
	rec   Record
	began time.Time
	took  time.Duration
	err   error
	free  chan<- *written
}

// Appended implements Appender.
func (w *written) Appended(_ *Record, err error) {
	w.took, w.err = time.Since(w.began), err
	w.free <- w
}

func amplify(b *testing.B, kind string, fill int64, zipf bool) {
	b.Helper()
	const size = 512 << 20
	var dev backends.Device
	var err error
	if kind == "mem" {
		dev, err = mem.New(mem.Config{Size: size, Durability: backends.PowerSafe})
	} else {
		dev, err = direct.Create(filepath.Join(b.TempDir(), "device"), size, direct.Options{})
	}
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	if err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 2 << 20, Lanes: 1,
	}); err != nil {
		b.Fatal(err)
	}
	e := open(b, dev)
	defer e.Abandon()
	extents := e.Stats().UsableBytes * fill / 100 / (4<<20 + 2*segment.LeafMax)
	v := create(b, e, domain.Bytes(extents)*4*domain.MiB)
	blocks := uint64(extents) * segment.LeafBlocks
	rnd := newRand(4)
	order := rnd.Perm(int(blocks))
	skewed := rand.NewZipf(rnd, 1.1, 1, blocks-1)
	const width = 64
	free := make(chan *written, width)
	for range width {
		w := &written{rec: *data(0, 1, rnd.Uint64()), free: free}
		w.rec.To = w
		free <- w
	}
	var took []time.Duration
	write := func(pick func(i uint64) uint64) {
		took = took[:0]
		for i := range blocks {
			w := <-free
			if w.err != nil {
				b.Fatal(w.err)
			}
			took = append(took, w.took)
			w.rec.Block, w.began = pick(i), time.Now()
			v.Append(&w.rec)
		}
	}
	random := func(uint64) uint64 {
		if zipf {
			return uint64(order[skewed.Uint64()])
		}
		return rnd.Uint64N(blocks)
	}
	write(func(i uint64) uint64 { return i })
	for range 3 {
		write(random)
	}
	before, wrote := e.Stats(), dev.Stats().WriteBytes
	var all []time.Duration
	b.ResetTimer()
	for range b.N {
		write(random)
		all = append(all, took[width:]...)
	}
	b.StopTimer()
	after := e.Stats()
	user := float64(after.UserBytes - before.UserBytes)
	moved := float64(after.MovedBytes - before.MovedBytes)
	slices.Sort(all)
	b.ReportMetric((user+moved)/user, "WA")
	b.ReportMetric(float64(dev.Stats().WriteBytes-wrote)/user, "WA-all")
	b.ReportMetric(float64(after.LiveBytes)/float64(after.UsableBytes), "fill")
	b.ReportMetric(float64(all[len(all)/100*99].Microseconds()), "p99-us")
	b.ReportMetric(float64(all[len(all)-1].Microseconds())/1e3, "max-ms")
	for range width {
		<-free
	}
}
