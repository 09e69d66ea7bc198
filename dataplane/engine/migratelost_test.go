package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/dataplane/segment"
	"weft/domain"
)

// dying is a volume with a snapshot on a device that will not read some of it, and another device.
type dying struct {
	t        *testing.T
	dev      *faulty.Device // all of the source, or the disk of it
	from, to *Engine
	toDev    backends.Device
	told     *facts
	v        *Volume
	m        *Migration
}

const dyingBlocks = 300

// newDying writes blocks 0 to dyingBlocks-1, each with its number and one, by records of four, and
// cuts a snapshot. On a pair all of it stands on the disk, which is what will not read.
func newDying(t *testing.T, pair bool) *dying {
	t.Helper()
	d := &dying{t: t, told: &facts{}}
	if pair {
		flash, disk := members(t, 60, 90, 128<<10)
		d.dev = faulty.New(disk, nil)
		d.from = open(t, joined(t, flash, d.dev, 128<<10, 2), quiet, awake, d.told.into)
	} else {
		inner := newMem(t, segment.DataOff+60*(128<<10)+segment.Guard+segment.Sector, 128<<10, 1)
		d.dev = faulty.New(inner, nil)
		d.from = open(t, d.dev, quiet, d.told.into)
	}
	d.toDev = newMem(t, segment.DataOff+60*(128<<10)+segment.Guard+segment.Sector, 128<<10, 1)
	d.to = open(t, d.toDev, quiet, d.told.into)
	v, err := created(d.from, testVolume, 8*domain.MiB)
	d.must(err)
	for b := uint64(0); b < dyingBlocks; b++ {
		d.must(put(v, data(b, 1, b+1)))
	}
	d.must(d.from.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}))
	if d.v = v; pair {
		cooled(t, d.from)
	}
	return d
}

func (d *dying) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// off gives where a block stands on the device that will not read.
func (d *dying) off(b uint64) int64 {
	d.t.Helper()
	off := locsOf(d.t, d.v, b, 1)[0].Off()
	if g := d.from.dev.Geometry(); g.Boundary > 0 {
		off += mib - g.Boundary // the disk's first one is its label's
	}
	return off
}

// bad makes blocks answer a read with an error, the first times it is asked for; 0 is always.
func (d *dying) bad(err error, times int, blocks ...uint64) {
	d.t.Helper()
	for _, b := range blocks {
		d.dev.Add(faulty.Rule{
			On: faulty.Read, Off: d.off(b), Len: segment.BlockSize, Err: err, Times: times,
		})
	}
}

// begin begins to move the volume.
func (d *dying) begin(pace func(context.Context, int64) error) {
	d.t.Helper()
	var err error
	d.m, err = d.from.Migrate(d.from.Families()[0].ID, d.to, pace)
	d.must(err)
}

// arrived ends the move and proves that all but some blocks are on the other device, of volume and
// snapshot, and that those read as corrupt there, also behind a crash.
func (d *dying) arrived(lost ...uint64) {
	d.t.Helper()
	d.must(d.m.Finish(background))
	list, n := d.m.Losses()
	d.must(d.m.Clean(background))
	is := map[uint64]bool{}
	for _, b := range lost {
		is[b] = true
	}
	if n != len(lost) || len(list) != min(n, lossesTold) || d.told.count("corrupt") != len(list) {
		d.t.Fatalf("%d of %d blocks are lost, %d were told: %v", n, len(lost),
			d.told.count("corrupt"), list)
	}
	for _, x := range list {
		if !is[x.Block] || x.Volume != testVolume || !x.Refused {
			d.t.Errorf("said to be lost: %+v", x)
		}
	}
	if len(d.from.Volumes()) > 0 || d.from.Hidden() > 0 {
		d.t.Error("something is left on the device")
	}
	for life := range 2 {
		if life > 0 {
			d.to.Abandon()
			d.to = open(d.t, d.toDev, quiet)
		}
		v, _ := d.to.Volume(testVolume)
		snap, _ := d.to.OpenSnapshot(snapID(1))
		for b := uint64(0); b < dyingBlocks; b++ {
			for _, h := range []*Volume{v, snap} {
				if got, err := holds(h, b); is[b] != domain.IsKind(err, domain.Corrupt) ||
					!is[b] && (err != nil || got != b+1) {
					d.t.Fatalf("block %d holds %d: %v", b, got, err)
				}
			}
		}
		recount(d.t, d.to)
	}
	d.to.Abandon()
	d.from.Abandon()
}

// TestMigrateUnreadable proves that blocks which the device cannot read hold up nothing: all else
// goes, and they are lost on the other device, as many as they are, wherever they stand.
func TestMigrateUnreadable(t *testing.T) {
	for _, pair := range []bool{false, true} {
		d := newDying(t, pair)
		var bad []uint64
		for b := uint64(3); b < 290; b += 4 {
			if d.off(b) >= mib { // not on the flash, in a segment that was not full
				bad = append(bad, b)
			}
		}
		if len(bad) < lossesTold {
			t.Fatalf("%d blocks will not be read", len(bad))
		}
		d.bad(backends.ErrMedia, 0, bad...)
		d.begin(nil)
		d.must(d.m.Copy(background))
		d.arrived(bad...)
	}
}

// TestMigrateReadsAgain proves that a block which cannot be had with others nor alone is asked for
// again when all else is copied, and not lost if it is there then (L1); and that one is not lost
// for its neighbour's sake.
func TestMigrateReadsAgain(t *testing.T) {
	for times := 1; times <= 3; times++ {
		d := newDying(t, false)
		d.bad(backends.ErrMedia, times, 70)
		d.bad(backends.ErrMedia, 0, 72)
		most := int64(0)
		d.begin(func(_ context.Context, n int64) error {
			most = max(most, n)
			return nil
		})
		d.must(d.m.Copy(background))
		if most <= segment.BlockSize {
			t.Fatal("nothing was read with others")
		}
		if times < 3 {
			d.arrived(72)
		} else {
			d.arrived(70, 72)
		}
	}
}

// TestMigrateUnreadableLate proves that a block which was copied, written again, and cannot be read
// while hosts wait is lost, and not what the copy had of it before.
func TestMigrateUnreadableLate(t *testing.T) {
	d := newDying(t, false)
	d.begin(nil)
	d.must(d.m.Copy(background))
	d.must(put(d.v, data(9, 1, 1000)))
	d.bad(backends.ErrMedia, 0, 9)
	d.must(d.m.Finish(background))
	if list, n := d.m.Losses(); n != 1 || list[0].Block != 9 {
		t.Errorf("%d are lost: %v", n, list)
	}
	v, _ := d.to.Volume(testVolume)
	_, err := holds(v, 9)
	kindOf(t, err, domain.Corrupt)
	snap, _ := d.to.OpenSnapshot(snapID(1))
	if got, err := holds(snap, 9); got != 10 || err != nil {
		t.Errorf("the snapshot's holds %d: %v", got, err)
	}
	d.must(d.m.Clean(background))
	d.from.Abandon()
	d.to.Abandon()
}

// TestMigrateDeviceGone proves that nothing is given up for lost where it is the device that does
// not read: all of it, from the beginning or from some read on, also when it is the disk of a pair
// whose flash is well (L2); where a place answers with anything but a media error, or the engine is
// out of service (L3). The copy ends with an error that names a block, and goes through once the
// device is well.
func TestMigrateDeviceGone(t *testing.T) {
	for name, c := range map[string]struct {
		pair bool
		do   func(d *dying)
		says string
	}{
		"all":  {false, func(d *dying) { d.must(d.dev.Script("read eio")) }, "8 of 8 segments"},
		"soon": {false, func(d *dying) { d.must(d.dev.Script("read after 4 eio")) }, "8 of 8 segments"},
		"a disk": {true, func(d *dying) {
			for b := uint64(1024); b < 1524; b++ { // most of the pair is well
				d.must(put(d.v, data(b, 1, b)))
			}
			d.must(d.dev.Script("read eio"))
		}, "does not read"},
		"it is":   {false, func(d *dying) { d.bad(backends.ErrNotPresent, 0, 20) }, "not present"},
		"no link": {false, func(d *dying) { d.bad(errors.New("link"), 0, 20) }, "link"},
		"no write": {false, func(d *dying) {
			d.bad(backends.ErrMedia, 0, 20)
			d.from.fail(errors.New("w"))
		}, ""},
		"half": {false, func(d *dying) {
			half := d.dev.Geometry().Size * 3 / 4
			d.dev.Add(faulty.Rule{On: faulty.Read, Len: half, Err: backends.ErrMedia})
		}, "does not read"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDying(t, c.pair)
			c.do(d)
			d.begin(nil)
			err := d.m.Copy(background)
			if err == nil || domain.IsKind(err, domain.Corrupt) || !strings.Contains(err.Error(), c.says) ||
				!strings.Contains(err.Error(), "volume/"+testVolume.String()) ||
				!strings.Contains(err.Error(), "blocks from ") {
				t.Fatalf("%v", err)
			}
			list, n := d.m.Losses()
			if n > 0 || len(list) > 0 || d.told.count("corrupt") > 0 {
				t.Errorf("%d are lost", n)
			}
			if d.from.failed.Load() {
				d.from.Abandon()
				d.to.Abandon()
				return
			}
			d.must(d.m.Abort(background))
			d.dev.Heal()
			d.begin(nil)
			d.must(d.m.Copy(background))
			d.arrived()
		})
	}
}

// TestMigrateLosesNotAll proves that a family with more lost blocks than are kept in mind stays
// (L4).
func TestMigrateLosesNotAll(t *testing.T) {
	d := newDying(t, false)
	d.bad(backends.ErrMedia, 0, 20)
	d.begin(nil)
	for b := range uint64(lossesMost) {
		d.m.lost.of[carried{nil, b}] = gone
	}
	err := d.m.Copy(background)
	kindOf(t, err, domain.Unavailable)
	if !strings.Contains(err.Error(), "stays") {
		t.Error(err)
	}
	d.must(d.m.Abort(background))
	d.from.Abandon()
	d.to.Abandon()
}

// TestMigrateReadsElsewhere proves that a block which was refused for good where it does not stand
// any more, since it went to the disk of a pair meanwhile, is read from there.
func TestMigrateReadsElsewhere(t *testing.T) {
	flash, disk := members(t, 60, 90, 128<<10)
	d := &dying{t: t, dev: faulty.New(flash, nil), told: &facts{}}
	d.from = open(t, joined(t, d.dev, disk, 128<<10, 2), quiet, awake, d.told.into)
	d.toDev = newMem(t, segment.DataOff+60*(128<<10)+segment.Guard+segment.Sector, 128<<10, 1)
	d.to = open(t, d.toDev, quiet, d.told.into)
	var err error
	d.v, err = created(d.from, testVolume, 8*domain.MiB)
	d.must(err)
	for b := uint64(0); b < dyingBlocks; b++ {
		d.must(put(d.v, data(b, 1, b+1)))
	}
	d.must(d.from.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}))
	was := locsOf(t, d.v, 3, 1)[0]
	at := faulty.Rule{On: faulty.Read, Off: was.Off(), Len: segment.BlockSize, Err: backends.ErrMedia}
	at.Times = 2 // with others, and alone
	d.dev.Add(at)
	at.After, at.Times, at.Stall = 2, 1, true
	third := d.dev.Add(at)
	d.begin(nil)
	copied := make(chan error)
	go func() { copied <- d.m.Copy(background) }()
	select {
	case <-third.Stalled():
	case err := <-copied:
		t.Fatalf("nobody asked for it a third time: %v", err)
	}
	cooled(t, d.from)
	if locsOf(t, d.v, 3, 1)[0] == was {
		t.Fatal("the block stands where it stood")
	}
	third.Release()
	d.must(<-copied)
	d.arrived()
}
