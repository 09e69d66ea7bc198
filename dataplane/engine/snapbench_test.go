package engine

import (
	"fmt"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// mapped makes a volume of so many extents whose index is full, without the device that this would
// take: each block stands somewhere in a run of its own or in one with its neighbours. The engine's
// counters do not know of it, so nothing may be written to the device's segments meanwhile.
func mapped(b *testing.B, extents int, dense bool) (*Engine, *Volume) {
	b.Helper()
	dev, err := mem.New(mem.Config{Size: 1 << 30, Durability: backends.PowerSafe})
	if err != nil {
		b.Fatal(err)
	}
	if err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 8 << 20, Lanes: 2,
	}); err != nil {
		b.Fatal(err)
	}
	e := open(b, dev, quiet)
	v := create(b, e, domain.Bytes(extents)*domain.VolumeMin)
	br := v.br.Load()
	all := &[segment.LeafBlocks]segment.Loc{}
	count := 1
	if dense {
		count = segment.LeafBlocks
	}
	for ext := range uint32(extents) {
		l := e.laneOf(v.fam, ext)
		clear(all[:])
		for i := range count {
			all[i] = segment.MakeLoc(uint64(segment.DataOff/segment.Unit+i*16), uint32(i))
		}
		lf := &leaf{br: br, ext: ext, n: uint16(count)}
		lf.own.load(all, count)
		all = &[segment.LeafBlocks]segment.Loc{}
		l.insert(lf)
	}
	return e, v
}

// BenchmarkSnapshot takes a snapshot of a volume with an index of so many extents, and clones it
// and goes back to it; the time does not depend on the size. A TiB has a block in each extent: a
// full index would be 2 GiB.
func BenchmarkSnapshot(b *testing.B) {
	for _, c := range []struct {
		name    string
		extents int
		dense   bool
	}{{"1GiB", 256, true}, {"1TiB", 256 << 10, false}} {
		e, v := mapped(b, c.extents, c.dense)
		n := 0
		b.Run("cut/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n++
				if err := e.Snapshot(background, Cut{Volume: v.ID(), Snapshot: snapID(n)}); err != nil {
					b.Fatal(err)
				}
				if n%1000 == 0 {
					b.StopTimer()
					for _, s := range e.Snapshots(v.ID())[1:] {
						if err := e.DeleteSnapshot(background, s.Snapshot()); err != nil {
							b.Fatal(err)
						}
					}
					b.StartTimer()
				}
			}
		})
		first := e.Snapshots(v.ID())[0].Snapshot()
		b.Run("clone/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n++
				if _, err := e.Clone(background, first, volID(n), 1); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if n%100 == 0 {
					for _, c := range e.Volumes()[1:] {
						if err := e.Delete(background, c.ID()); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.StartTimer()
			}
		})
		e.Abandon()
	}
}

// BenchmarkFirstWrite writes blocks of 4 KiB, one at a time, each to another extent, 256 between
// two cuts: cuts of another volume, so that none is the first since one, or of this one, so that
// each is, with one snapshot kept or 16. The clock runs for the write alone.
func BenchmarkFirstWrite(b *testing.B) {
	for _, kind := range []string{"mem", "direct"} {
		for _, keep := range []int{0, 1, 16} {
			b.Run(fmt.Sprintf("%s/%d", kind, keep), func(b *testing.B) { firstWrites(b, kind, keep) })
		}
	}
}

func firstWrites(b *testing.B, kind string, keep int) {
	const extents = 256
	e := open(b, benchDevice(b, kind))
	defer e.Abandon()
	v := create(b, e, extents*domain.VolumeMin)
	for x := range uint64(extents) {
		if err := put(v, data(x*1024, 64, x+1)); err != nil {
			b.Fatal(err)
		}
	}
	cut := v
	if keep == 0 {
		var err error
		if cut, err = e.Create(background, volID(1), domain.VolumeMin, 1); err != nil {
			b.Fatal(err)
		}
	}
	done, rnd, n, taken := make(signal, 1), newRand(1), 0, 0
	r := data(0, 1, 7)
	r.To = done
	write := func() {
		r.Block = uint64(n%extents)*1024 + rnd.Uint64N(64)
		n++
		v.Append(r)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	next := func() {
		taken++
		if taken > max(keep, 1) {
			if err := e.DeleteSnapshot(background, e.Snapshots(cut.ID())[0].Snapshot()); err != nil {
				b.Fatal(err)
			}
		}
		if err := e.Snapshot(background, Cut{Volume: cut.ID(), Snapshot: snapID(taken)}); err != nil {
			b.Fatal(err)
		}
	}
	for range (keep - 1) * extents {
		if n%extents == 0 {
			next()
		}
		write()
	}
	b.ReportAllocs()
	for b.Loop() {
		if n%extents == 0 {
			b.StopTimer()
			next()
			b.StartTimer()
		}
		write()
	}
}

// BenchmarkLookup resolves a block of a chain of so many snapshots that all wrote to the extent.
func BenchmarkLookup(b *testing.B) {
	for _, cuts := range []int{0, 1, 7, 1000} {
		b.Run(fmt.Sprintf("%d snapshots", cuts), func(b *testing.B) {
			e := open(b, benchDevice(b, "mem"), quiet)
			defer e.Abandon()
			v := create(b, e, 4*domain.MiB)
			if err := put(v, data(0, 256, 1)); err != nil {
				b.Fatal(err)
			}
			for c := range cuts {
				cutOf(b, e, v, c)
				if err := put(v, data(uint64(c%256), 1, 2)); err != nil {
					b.Fatal(err)
				}
			}
			br := v.br.Load()
			if cuts > 3 {
				s, _ := e.OpenSnapshot(snapID(cuts / 2))
				br = s.br.Load()
			}
			l, rd, rnd := v.lane(0), &reader{}, newRand(1)
			b.ReportMetric(float64(l.memory.Load())/float64(cuts+1), "B/snapshot")
			for b.Loop() {
				l.mu.Lock()
				br.fam.leaves[l.no][0].find(br).resolve(int(rnd.Uint64N(256)), rd.loc[:1])
				l.mu.Unlock()
			}
		})
	}
}

// TestIndexBytes proves what the index takes in memory and in its images: at most 8.1 bytes a block
// of a full extent, and 10 bytes a block beside 90 where few are written.
func TestIndexBytes(t *testing.T) {
	for _, c := range []struct {
		blocks int
		most   float64
	}{{1024, 8.1}, {641, 13}, {640, 10.3}, {100, 13}, {1, 180}} {
		all := &[segment.LeafBlocks]segment.Loc{}
		im := &segment.Leaf{}
		for i := range c.blocks {
			all[i] = segment.MakeLoc(uint64(segment.DataOff/segment.Unit+i*16), uint32(i))
			im.Loc[i] = all[i]
		}
		lf := &leaf{}
		lf.own.load(all, c.blocks)
		ram := float64(leafBytes+lf.own.bytes()) / float64(c.blocks)
		image := float64(len(im.Encode(nil))) / float64(c.blocks)
		t.Logf("%d blocks: %.2f B each in memory, %.2f in the image", c.blocks, ram, image)
		bound := max(8.1, float64(segment.LeafFixed)/float64(c.blocks)+segment.LeafEntry)
		if ram > c.most || image > bound {
			t.Errorf("%d blocks take %.2f B each, %.2f in the image", c.blocks, ram, image)
		}
	}
}
