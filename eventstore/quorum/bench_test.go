package quorum

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// BenchmarkRaw is the yardstick: one write of a record's size and one fdatasync, one after another.
func BenchmarkRaw(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 570)
	for b.Loop() {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkAppend appends one event of 256 B per call with 1, 16 and 64 writers on 64 streams.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			q := open(b, b.TempDir())
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					revs := map[domain.StreamID]domain.Revision{}
					for i := 0; left.Add(-1) >= 0; i++ {
						id := domain.StreamID(fmt.Sprintf("s-%d", w+writers*(i%(64/writers))))
						rev, ok := revs[id]
						if !ok {
							rev = domain.NoRevision
						}
						ev := storetest.Propose(fmt.Sprintf("%s/%d", id, rev), 1)
						ev[0].Data = make([]byte, 256)
						a, err := q.Append(b.Context(), id, eventstore.At(rev), ev...)
						if err != nil {
							b.Error(err)
							return
						}
						revs[id] = a.Last
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkStart is what a restart costs: etcd's start, and every record loaded and verified.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	q := open(b, dir)
	rev := domain.NoRevision
	for rev < 20_000 {
		ev := storetest.Propose(fmt.Sprint(rev), 100)
		a, err := q.Append(b.Context(), "s-1", eventstore.At(rev), ev...)
		if err != nil {
			b.Fatal(err)
		}
		rev = a.Last
	}
	_ = q.Close()
	for b.Loop() {
		_ = open(b, dir).Close()
	}
	b.ReportMetric(20_000*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
