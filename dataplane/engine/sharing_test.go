package engine

import (
	"context"
	"fmt"
	"testing"

	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// TestOwnComesBack runs volumes, snapshots, clones, roll-backs and deletions by chance, with zeros,
// unmaps, compression, cleaning and restarts between, in the clear, encrypted, and through a
// journal: what each name says it holds alone is what its deletion gives back, to the byte (E5b).
func TestOwnComesBack(t *testing.T) {
	steps, every := 1500, 50
	if raceOn || testing.Short() {
		steps, every = 300, 60
	}
	var alone, common, both int
	for seed := range uint64(6) {
		dev := newMem(t, segment.DataOff+70*(128<<10)+segment.Guard+segment.Sector, 128<<10,
			1+int(seed%2)*2)
		var nv *mem.Memory
		var tune []func(*Config)
		switch seed % 3 {
		case 1:
			nv = newMemory(t, dev, 14)
		case 2:
			tune = append(tune, keyed)
		}
		f := newFamiliesOn(t, dev, nv, 300+seed, tune...)
		f.create()
		f.create()
		for i := range steps {
			f.step()
			if i%every == every-1 {
				a, c, b := f.exclusives()
				alone, common, both = alone+a, common+c, both+b
			}
		}
		f.must(f.e.Close())
	}
	t.Logf("%d names held all alone, %d nothing, %d some", alone, common, both)
	if alone == 0 || common == 0 || both < 20 {
		t.Errorf("%d names held all alone, %d nothing, %d some", alone, common, both)
	}
}

// TestOwnByHand proves the words on a tree that can be followed by eye: a snapshot that a clone
// shares has nothing of its own though it wrote all of it, and each refusal by its kind.
func TestOwnByHand(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 2))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	write := func(v *Volume, block uint64, count int, n uint64) {
		t.Helper()
		for i := range uint64(count) {
			if err := put(v, data(block+i, 1, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	told := func(what string, v *Volume, exclusive, common int) {
		t.Helper()
		got, err := v.Sharing(background)
		want := Sharing{domain.Bytes(exclusive) * 4096, domain.Bytes(common) * 4096}
		if err != nil || got != want {
			t.Errorf("%s: %+v, not %+v: %v", what, got, want, err)
		}
	}
	write(v, 0, 8, 1)
	write(v, 2048, 4, 2)
	told("alone", v, 12, 0)
	s := cutOf(t, e, v, 1)
	told("just cut", s, 0, 12)
	told("its volume", v, 0, 12)
	c, err := e.Clone(background, snapID(1), volID(1), 1)
	if err != nil {
		t.Fatal(err)
	}
	write(v, 0, 8, 3)
	told("a clone sees it", s, 0, 12)
	if got := s.Info().Own; got != 12*4096 {
		t.Errorf("the snapshot wrote %s", got)
	}
	write(c, 0, 2, 4)
	told("both wrote over two", s, 2, 10)
	told("the clone", c, 2, 10)
	if err := put(c, &Record{Kind: segment.KindUnmap, Block: 2048, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if err := put(v, &Record{Kind: segment.KindZero, Block: 2048, Count: 2}); err != nil {
		t.Fatal(err)
	}
	told("hidden by a hole and by zeros", s, 3, 9)
	if err := e.DeleteSnapshot(background, snapID(1)); err != nil {
		t.Fatal(err)
	}
	told("the clone of what is gone", c, 9, 2)
	told("the volume of what is gone", v, 8, 2)
	_, err = s.Sharing(background)
	kindOf(t, err, domain.NotFound)
	ctx, cancel := context.WithCancel(background)
	cancel()
	_, err = v.Sharing(ctx)
	kindOf(t, err, domain.Aborted)
	r, err := e.CreateReplica(background, volID(2), 4*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Volume().Sharing(background)
	kindOf(t, err, domain.Unsupported)
}

// sharingOf asks a name what it shares: all in all it is what the cheap counters say that it sees.
func sharingOf(t testing.TB, v *Volume) Sharing {
	t.Helper()
	s, err := v.Sharing(background)
	if err != nil {
		t.Fatal(err)
	}
	if i := v.Info(); s.Exclusive+s.Common != i.Own+i.Shared {
		t.Fatalf("%s/%s: %+v of %s", v.volume, v.snapshot, s, i.Own+i.Shared)
	}
	return s
}

// exclusives opens a copy of the device for every name, asks it what it holds alone, and deletes it
// there: what lives becomes less by exactly that. It is asked on the copy, since what the cleaner
// has compressed and no checkpoint has taken up is not compressed after a crash. It counts the
// names that held all alone, nothing, and some.
func (f *families) exclusives() (alone, common, both int) {
	f.t.Helper()
	dev, nv, names := f.frozen()
	for _, n := range names {
		tune := []func(*Config){quiet}
		if nv != nil {
			tune = append(tune, journaled(nv.Clone()))
		}
		e := open(f.t, dev.Clone(), append(tune, f.tune...)...)
		v, there := e.Volume(n.volume)
		if !n.snapshot.IsZero() {
			v, there = e.OpenSnapshot(n.snapshot)
		}
		if !there {
			f.t.Fatalf("%s/%s is not there", n.volume, n.snapshot)
		}
		s, before := sharingOf(f.t, v), e.Stats().LiveBytes
		if n.snapshot.IsZero() {
			f.must(e.Delete(background, n.volume))
		} else {
			f.must(e.DeleteSnapshot(background, n.snapshot))
		}
		if came := before - e.Stats().LiveBytes; came != int64(s.Exclusive) {
			f.t.Fatalf("%s/%s: %d bytes came back, told %+v", n.volume, n.snapshot, came, s)
		}
		e.Abandon()
		switch {
		case s.Exclusive > 0 && s.Common > 0:
			both++
		case s.Exclusive > 0:
			alone++
		case s.Common > 0:
			common++
		}
	}
	return alone, common, both
}

// frozen gives a copy of the device and its journal, and the names that are there, each of which
// has told what it shares.
func (f *families) frozen() (*mem.Device, *mem.Memory, []*Volume) {
	f.t.Helper()
	defer still(f.e)()
	nv, names := f.nv, named(f.e)
	if nv != nil {
		nv = nv.Clone()
	}
	for _, v := range names {
		sharingOf(f.t, v)
	}
	return f.dev.Clone(), nv, names
}

// BenchmarkSharing asks a snapshot of 64 MiB, of which clones have each written over a part, for an
// extent: with few clones that wrote much, and with many that wrote little.
func BenchmarkSharing(b *testing.B) {
	const extents = 16
	for _, c := range []struct{ clones, writes int }{{0, 0}, {4, 128}, {1000, 1}} {
		b.Run(fmt.Sprintf("clones=%d", c.clones), func(b *testing.B) {
			e := open(b, newMem(b, 512<<20, 4<<20, 2), quiet)
			defer e.Abandon()
			v := create(b, e, extents*domain.VolumeMin)
			s := func(v *Volume, block uint64) {
				if err := put(v, data(block, 1, block)); err != nil {
					b.Fatal(err)
				}
			}
			for block := range uint64(extents * segment.LeafBlocks) {
				s(v, block)
			}
			cut := cutOf(b, e, v, 1)
			for n := range c.clones {
				k, err := e.Clone(background, snapID(1), volID(n), 1)
				if err != nil {
					b.Fatal(err)
				}
				for w := range uint64(extents * c.writes) {
					s(k, w%extents*segment.LeafBlocks+(uint64(n)+w/extents*8)%segment.LeafBlocks)
				}
			}
			if err := e.Delete(background, v.ID()); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				if _, err := cut.Sharing(background); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/extents, "ns/extent")
		})
	}
}
