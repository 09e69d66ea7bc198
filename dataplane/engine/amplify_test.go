package engine

import (
	"math/rand/v2"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// BenchmarkAmplification overwrites random blocks of 4 KiB on a device in RAM, filled to a share of
// what it admits, and reports what is written per byte of the host's in the steady state: moved by
// the cleaner (goals 2.0 uniform at 70 %, 3.0 at 80 %, 2.0 zipf at 80 %), and all causes together
// as the device counts. One iteration is a pass over the volume's size.
func BenchmarkAmplification(b *testing.B) {
	for _, c := range []struct {
		name string
		fill int64 // percent of Stats.UsableBytes, index included
		zipf bool
	}{
		{"uniform/70", 70, false},
		{"uniform/80", 80, false},
		{"uniform/95", 95, false},
		{"zipf/80", 80, true},
	} {
		b.Run(c.name, func(b *testing.B) { amplify(b, c.fill, c.zipf) })
	}
}

func amplify(b *testing.B, fill int64, zipf bool) {
	b.Helper()
	dev, err := mem.New(mem.Config{Size: 512 << 20, Durability: backends.PowerSafe})
	if err != nil {
		b.Fatal(err)
	}
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
	free := make(chan *Record, width)
	for range width {
		r := data(0, 1, rnd.Uint64())
		r.To = recycled(free)
		free <- r
	}
	write := func(pick func(i uint64) uint64) {
		for i := range blocks {
			r := <-free
			r.Block = pick(i)
			v.Append(r)
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
	b.ResetTimer()
	for range b.N {
		write(random)
	}
	b.StopTimer()
	after := e.Stats()
	user := float64(after.UserBytes - before.UserBytes)
	moved := float64(after.MovedBytes - before.MovedBytes)
	b.ReportMetric((user+moved)/user, "WA")
	b.ReportMetric(float64(dev.Stats().WriteBytes-wrote)/user, "WA-all")
	b.ReportMetric(float64(after.LiveBytes)/float64(after.UsableBytes), "fill")
	b.ReportMetric(float64(after.Checkpoints-before.Checkpoints)/float64(b.N), "checkpoints/op")
	for range width {
		<-free
	}
}

// recycled gives a record back once it has its outcome.
type recycled chan *Record

// Appended implements Appender.
func (c recycled) Appended(r *Record, err error) {
	if err != nil {
		panic(err)
	}
	c <- r
}
