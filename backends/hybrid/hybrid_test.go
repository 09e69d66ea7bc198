package hybrid

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"weft/backends"
	"weft/backends/devicetest"
	"weft/backends/faulty"
	"weft/backends/mem"
)

var rewrite = flag.Bool("rewrite", false, "write the golden label anew")

const mib = 1 << 20

func memory(t testing.TB, size int64, block int) *mem.Device {
	t.Helper()
	d, err := mem.New(mem.Config{
		Size: size, LogicalBlock: block, Durability: backends.NeedsFlush, RecordHistory: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pair makes a pair of memory: of the flash 3 MiB count, of the disk 4 MiB.
func pair(t testing.TB, flashBlock, diskBlock int) (*Device, *mem.Device, *mem.Device) {
	t.Helper()
	flash, disk := memory(t, 4*mib+64<<10, flashBlock), memory(t, 6*mib, diskBlock)
	if err := Format(flash, disk); err != nil {
		t.Fatal(err)
	}
	d, err := Open(flash, disk)
	if err != nil {
		t.Fatal(err)
	}
	return d, flash, disk
}

// across is a pair as seen from the middle of its flash on: what the suite of all devices writes
// lies across the boundary.
type across struct{ *Device }

const shift = 3*mib - 512<<10

func (a across) at(off int64) int64 {
	if off < 0 {
		return off
	}
	return off + shift
}

func (a across) Geometry() backends.Geometry {
	g := a.Device.Geometry()
	g.Size, g.Boundary = g.Size-shift, g.Boundary-shift
	return g
}

func (a across) ReadAt(p []byte, off int64) error { return a.Device.ReadAt(p, a.at(off)) }

func (a across) WriteAt(p []byte, off int64, fua bool) error {
	return a.Device.WriteAt(p, a.at(off), fua)
}

func (a across) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	return a.Device.WriteVAt(bufs, a.at(off), fua)
}

func (a across) Discard(ctx context.Context, off, n int64) error {
	return a.Device.Discard(ctx, a.at(off), n)
}

// TestDevice runs the suite of all devices, on members of equal and of different blocks, on either
// side of the boundary and across it, written by one buffer and by several.
func TestDevice(t *testing.T) {
	for name, block := range map[string][2]int{
		"4Kn": {4096, 4096}, "512": {512, 512}, "mixed": {512, 4096},
	} {
		open := func(t *testing.T) *Device {
			d, _, _ := pair(t, block[0], block[1])
			return d
		}
		t.Run(name, func(t *testing.T) {
			devicetest.Run(t, func(t *testing.T) backends.Device { return open(t) })
		})
		t.Run(name+" across", func(t *testing.T) {
			devicetest.Run(t, func(t *testing.T) backends.Device { return across{open(t)} })
		})
		t.Run(name+" across vectored", func(t *testing.T) {
			devicetest.Run(t, func(t *testing.T) backends.Device {
				return devicetest.Vectored(across{open(t)})
			})
		})
	}
}

func number(n int, c byte) []byte {
	p := backends.AlignedBuffer(n)
	for i := range p {
		p[i] = c
	}
	return p
}

// TestBoundary proves where the bytes of a pair stand: from the boundary on, on the disk behind its
// guard, and the boundary is told by the geometry.
func TestBoundary(t *testing.T) {
	d, flash, disk := pair(t, 4096, 4096)
	defer func() { _ = d.Close() }()
	g := d.Geometry()
	if g.Boundary != 3*mib || g.Front() != 3*mib || g.Size != 7*mib {
		t.Fatalf("%+v", g)
	}
	if one := flash.Geometry(); one.Front() != one.Size {
		t.Errorf("a device alone: front %d of %d", one.Front(), one.Size)
	}
	if err := d.WriteAt(number(8192, 7), g.Boundary-4096, false); err != nil {
		t.Fatal(err)
	}
	got := backends.AlignedBuffer(4096)
	for _, c := range []struct {
		m   *mem.Device
		off int64
	}{{flash, g.Boundary - 4096}, {disk, mib}} {
		if err := c.m.ReadAt(got, c.off); err != nil || !bytes.Equal(got, number(4096, 7)) {
			t.Errorf("at %d of a member: %v, %x", c.off, err, got[:4])
		}
	}
}

// TestFlushIsOfBoth proves that a flush makes durable what was written to either member, also where
// the disk was written to since an earlier flush, and that a disk that was not written to is not
// flushed.
func TestFlushIsOfBoth(t *testing.T) {
	d, flash, disk := pair(t, 4096, 4096)
	g := d.Geometry()
	for round := range byte(3) {
		for _, off := range []int64{0, g.Boundary} {
			if err := d.WriteAt(number(4096, 1+round), off, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.WriteVAt([][]byte{number(4096, 1+round)}, g.Boundary+8192, false); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := backends.AlignedBuffer(4096)
		for _, c := range []struct {
			m   *mem.Device
			off int64
		}{{flash, 0}, {disk, mib}, {disk, mib + 8192}} {
			img := c.m.CrashImage(c.m.Ops(), mem.None)
			if err := img.ReadAt(got, c.off); err != nil || !bytes.Equal(got, number(4096, 1+round)) {
				t.Errorf("round %d, at %d: %v, %x", round, c.off, err, got[:4])
			}
		}
	}
	before := disk.Stats().Flushes
	if err := errors.Join(d.WriteAt(number(4096, 9), 0, false), d.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	if n := disk.Stats().Flushes - before; n != 0 {
		t.Errorf("the disk was flushed %d times for a write to the flash", n)
	}
}

// told collects the ends of started reads.
type told chan error

func (c told) ReadDone(_ *backends.Read, err error) { c <- err }

// TestStartedReads proves that reads of both members end with their own bytes and their own offset,
// also those that a member keeps back while the last one of a row is the other member's; that a
// read across the boundary is left to ReadAt; and what is out of range, too.
func TestStartedReads(t *testing.T) {
	d, _, _ := pair(t, 4096, 4096)
	defer func() { _ = d.Close() }()
	at := d.Geometry().Boundary
	for i, off := range []int64{0, at - 4096, at, at + 4096} {
		if err := d.WriteAt(number(4096, byte(i+1)), off, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range [][]int64{{0, at}, {at, 0}, {at, at + 4096}, {at - 4096, at, at + 4096, 0}} {
		done, reads := make(told, len(row)), make([]backends.Read, len(row))
		for i, off := range row {
			reads[i] = backends.Read{P: backends.AlignedBuffer(4096), Off: off, To: done}
			if !d.StartRead(&reads[i], i < len(row)-1) {
				t.Fatalf("read at %d not started", off)
			}
		}
		arrived(t, d, done, reads, row)
		for i := range reads {
			clear(reads[i].P)
			if !d.TryStartRead(&reads[i]) {
				t.Fatalf("read at %d not started", row[i])
			}
		}
		arrived(t, d, done, reads, row)
	}
	for _, off := range []int64{at - 4096, d.Geometry().Size - 4096, -8192, 1} {
		r := backends.Read{P: backends.AlignedBuffer(8192), Off: off, To: make(told)}
		if d.StartRead(&r, false) || d.TryStartRead(&r) {
			t.Errorf("a read at %d was started", off)
		}
	}
}

// arrived waits for reads at the offsets of a row and compares them with what ReadAt gives.
func arrived(t *testing.T, d *Device, done told, reads []backends.Read, row []int64) {
	t.Helper()
	for range row {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i, off := range row {
		want := backends.AlignedBuffer(4096)
		if err := d.ReadAt(want, off); err != nil || !bytes.Equal(reads[i].P, want) {
			t.Errorf("read at %d gave %x, not %x: %v", off, reads[i].P[:2], want[:2], err)
		}
		if reads[i].Off != off {
			t.Errorf("its offset became %d", reads[i].Off)
		}
	}
}

// TestWrongMember proves that a pair is opened of its own two members in their own roles only, and
// that each mistake has its own error, which names the device.
func TestWrongMember(t *testing.T) {
	_, flash, disk := pair(t, 4096, 4096)
	_, otherFlash, otherDisk := pair(t, 4096, 4096)
	blank := memory(t, 6*mib, 4096)
	small := memory(t, mib, 4096)
	// A copy of the disk on a larger device, its label brought along.
	grown := memory(t, 8*mib, 4096)
	p := backends.AlignedBuffer(4096)
	if err := errors.Join(disk.ReadAt(p, end(6*mib)), grown.WriteAt(p, end(8*mib), true)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		flash, disk backends.Device
		want        error
		role        Role
	}{
		"swapped":       {disk, flash, ErrSwapped, Flash},
		"one twice":     {flash, flash, ErrSwapped, Disk},
		"foreign disk":  {flash, otherDisk, ErrOther, Disk},
		"foreign flash": {otherFlash, disk, ErrOther, Disk},
		"blank disk":    {flash, blank, ErrNoMember, Disk},
		"blank flash":   {blank, disk, ErrNoMember, Flash},
		"small":         {small, disk, ErrNoMember, Flash},
		"grown":         {flash, grown, ErrSize, Disk},
	} {
		d, err := Open(c.flash, c.disk)
		var m *MemberError
		if d != nil || !errors.Is(err, c.want) || !errors.As(err, &m) || m.Role != c.role ||
			m.Path == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Format(blank, disk); !errors.Is(err, ErrMember) {
		t.Errorf("a member was taken for another pair: %v", err)
	}
	if err := Format(small, blank); !errors.Is(err, ErrSmall) {
		t.Errorf("a small device: %v", err)
	}
	if l, err := Probe(blank); l != nil || err != nil {
		t.Errorf("the refused pair was begun: %v, %v", l, err)
	}
	if _, err := Open(flash, disk); err != nil {
		t.Errorf("the right members: %v", err)
	}
}

// TestLabelTwice proves that either copy of a label is enough, and that none is not.
func TestLabelTwice(t *testing.T) {
	for _, harm := range [][]int64{{0}, {labelApart}, {0, labelApart}} {
		_, flash, disk := pair(t, 4096, 4096)
		for _, m := range []*mem.Device{flash, disk} {
			for _, off := range harm {
				if err := m.FlipBit(end(m.Geometry().Size)+off+33, 1); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, err := Open(flash, disk)
		var want error
		if len(harm) == labelCopies {
			want = ErrNoMember
		}
		if !errors.Is(err, want) {
			t.Errorf("harmed at %v: %v", harm, err)
		}
	}
}

// TestFormatCrash cuts the making of a pair at every write: what is left is either a pair or
// refused.
func TestFormatCrash(t *testing.T) {
	_, flash, disk := pair(t, 4096, 4096)
	opened := 0
	for f := range flash.Ops() + 1 {
		for d := range disk.Ops() + 1 {
			if f > 0 && d < disk.Ops() {
				continue // the disk's label was flushed before the flash's was begun
			}
			for _, choose := range []mem.Chooser{mem.None, mem.All} {
				a, b := flash.CrashImage(f, choose), disk.CrashImage(d, choose)
				if _, err := Open(a, b); err == nil {
					opened++
				} else if !errors.Is(err, ErrNoMember) {
					t.Errorf("cut at %d, %d: %v", f, d, err)
				}
				l, _ := Probe(a)
				if other, _ := Probe(b); l != nil && other == nil {
					t.Errorf("cut at %d, %d: the flash has a label, the disk has none", f, d)
				}
			}
		}
	}
	if opened == 0 {
		t.Error("no image was whole")
	}
	blank := memory(t, 6*mib, 4096)
	refuses := faulty.New(memory(t, 6*mib, 4096), nil, faulty.Rule{
		On: faulty.Write, Err: backends.ErrMedia,
	})
	if err := Format(blank, refuses); !errors.Is(err, backends.ErrMedia) {
		t.Errorf("a disk that takes no label: %v", err)
	}
	if l, err := Probe(blank); l != nil || err != nil {
		t.Errorf("the flash was labelled before its disk: %v, %v", l, err)
	}
}

// TestLabelGolden proves that the label's bytes are those of version 1 for ever.
func TestLabelGolden(t *testing.T) {
	l := Label{Role: Disk, Size: 0x0102030405060708, Other: 0x1112131415161718}
	for i := range l.Pair {
		l.Pair[i] = byte(0xa0 + i)
	}
	b := make([]byte, labelSize)
	l.encode(b)
	path := filepath.Join("testdata", "label.golden")
	if *rewrite {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b, want) {
		t.Fatalf("the label changed: %v", err)
	}
	if got, ok := decode(want); !ok || got != l {
		t.Errorf("%+v", got)
	}
}

// FuzzLabel proves that a decoder takes nothing that it would not have written.
func FuzzLabel(f *testing.F) {
	b := make([]byte, labelSize)
	(&Label{Role: Flash, Size: 1, Other: 2}).encode(b)
	f.Add(b)
	f.Add(b[:labelSize-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok := decode(b)
		if !ok {
			return
		}
		again := make([]byte, labelSize)
		l.encode(again)
		if got, ok := decode(again); !ok || got != l {
			t.Errorf("%+v became %+v", l, got)
		}
	})
}
