package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// The damage tests prove E10 and E3b: whatever happens to bytes at rest, a read gives what was
// written, or says Corrupt, or Open refuses the device, or the damage was reported. The last log
// chunk is the one exception that the format grants: nothing proves yet that it was durable, so a
// crash and damage to it read as a torn tail. Each story therefore ends with records of no worth:
// two, since a last chunk that lands one sector back also harms the one before.

const (
	scratch   = 1023 // the block of the records of no worth
	smallSize = segment.DataOff + 36*(64<<10) + segment.Guard + segment.Sector
)

// story fills a small device with a bit of everything: data of several sizes, zeros, unmaps,
// overwrites, a checkpoint in the middle, a second volume that is buried. It gives the model.
func story(t *testing.T, e *Engine) map[uint64]uint64 {
	t.Helper()
	v := create(t, e, 16*domain.MiB)
	model, n := map[uint64]uint64{}, uint64(0)
	do := func(kind segment.Kind, block uint64, count int) {
		n++
		r := &Record{Kind: kind, Block: block, Count: count}
		if kind == segment.KindData {
			r.Data = fill(count, n)
		}
		if err := put(v, r); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(count) {
			model[block+i] = 0
			if kind == segment.KindData {
				model[block+i] = n
			}
		}
	}
	other := domain.VolumeID{UUID: domain.UUID{9}}
	if _, err := e.Create(background, other, 4*domain.MiB, 1); err != nil {
		t.Fatal(err)
	}
	for round := range uint64(2) {
		for i := range uint64(14) {
			do(segment.KindData, i*5, 3)
			do(segment.KindData, 1024+i*40+round, 1)
		}
		do(segment.KindZero, 10, 8)
		do(segment.KindUnmap, 30, 5)
		do(segment.KindUnmap, 1024+40, 200)
		do(segment.KindData, 2048, 4)
		if round == 0 {
			if err := e.Delete(background, other); err != nil {
				t.Fatal(err)
			}
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		if err := put(v, data(scratch, 1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	return model
}

// verdict counts how the damage showed.
type verdict struct{ right, corrupt, refused, reported int }

// audit reads every block of the model: what is wrong without a word fails the test. told is what
// the engine reported so far.
func (w *verdict) audit(e *Engine, model map[uint64]uint64, told *facts) error {
	v, ok := e.Volume(testVolume)
	if !ok {
		if told.count("corrupt") == 0 {
			return fmt.Errorf("the volume is gone without a word")
		}
		w.reported++
		return nil
	}
	before, stale := told.count("corrupt"), false
	for b, want := range model {
		got, err := holds(v, b)
		switch {
		case err == nil && got == want:
			w.right++
		case domain.IsKind(err, domain.Corrupt):
			w.corrupt++
		case err != nil:
			return err
		case before > 0:
			stale = true // an older state of a block whose newer one was reported lost
		default:
			return fmt.Errorf("block %d spells %d, not %d, without a word", b, got, want)
		}
	}
	if stale {
		w.reported++
	}
	return nil
}

// reopen opens a damaged device and audits it.
func (w *verdict) reopen(dev backends.Device, model map[uint64]uint64) error {
	told := &facts{}
	cfg := Config{Device: dev, Cluster: testCluster, Node: 1, ClusterKey: testKey}
	told.into(&cfg)
	e, err := Open(background, cfg)
	if domain.IsKind(err, domain.Corrupt) {
		w.refused++
		return nil
	}
	if err != nil {
		return err
	}
	defer e.Abandon()
	return w.audit(e, model, told)
}

// TestBitFlips turns over one bit in each sector of a small device, superblocks, anchors, headers,
// chunks, footers, leaves and root included, after a clean stop and after a crash, opens it and
// reads everything; and the same under the feet of an open engine (E10, E3b).
func TestBitFlips(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("clean=%v", clean), func(t *testing.T) {
			dev := recorded(t, smallSize, 64<<10, 1)
			e := open(t, dev)
			model := story(t, e)
			if clean {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			e.Abandon()
			w, rnd := &verdict{}, rand.New(rand.NewPCG(1, 2))
			for _, off := range used(t, dev) {
				img := copyOf(dev)
				flip(t, img, off, rnd)
				if err := w.reopen(img, model); err != nil {
					t.Fatalf("unit at %d: %v", off, err)
				}
			}
			t.Logf("%+v", *w)
			if w.corrupt == 0 || w.refused == 0 && !raceOn && !testing.Short() {
				t.Error("payload or root were never hit: the test tests too little")
			}
		})
	}
}

// used lists the units of 512 bytes that hold something. Metadata is placed in units, so that each
// header, entry list, leaf and root has a bit turned over.
func used(t *testing.T, dev *mem.Device) []int64 {
	t.Helper()
	all := backends.AlignedBuffer(smallSize)
	if err := dev.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	var list []int64
	for off := 0; off < len(all); off += segment.Unit {
		if !allBytesZero(all[off : off+segment.Unit]) {
			list = append(list, int64(off))
		}
	}
	if raceOn || testing.Short() {
		for i := range len(list) / 9 {
			list[i] = list[i*9]
		}
		list = list[:len(list)/9]
	}
	return list
}

func allBytesZero(p []byte) bool { return bytes.Count(p, []byte{0}) == len(p) }

// flip turns over one bit in the unit at off, half of the time among its first bytes, where the
// fields are.
func flip(t *testing.T, dev *mem.Device, off int64, rnd *rand.Rand) {
	t.Helper()
	n := int64(64)
	if rnd.IntN(2) == 0 {
		n = segment.Unit
	}
	if err := dev.FlipBit(off+rnd.Int64N(n), uint(rnd.IntN(8))); err != nil {
		t.Fatal(err)
	}
}

// TestBitFlipsWhileOpen turns over bits of the device under an open engine: each read is right or
// Corrupt, and writing the block again heals it (E10).
func TestBitFlipsWhileOpen(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	e := open(t, dev)
	defer e.Abandon()
	model := story(t, e)
	w, rnd := &verdict{}, rand.New(rand.NewPCG(3, 4))
	for off := int64(segment.DataOff); off < smallSize; off += segment.Sector {
		flip(t, dev, off+rnd.Int64N(8)*segment.Unit, rnd)
	}
	if err := w.audit(e, model, &facts{}); err != nil {
		t.Fatal(err)
	}
	if w.corrupt == 0 || w.corrupt+w.right != len(model) {
		t.Errorf("%+v of %d", *w, len(model))
	}
	v := mustVolume(t, e)
	for b, n := range model {
		if n == 0 {
			continue
		}
		if err := put(v, data(b, 1, 1000+b)); err != nil {
			t.Fatal(err)
		}
		check(t, v, b, 1000+b)
	}
}

// TestTornTailAgainstCorruption is R10: a bit rots in an early chunk of a long durable log. The log
// is not cut there: what follows is all there, and the damage is reported. The header, the payload
// and the header of the segment rot in turn.
func TestTornTailAgainstCorruption(t *testing.T) {
	dev := recorded(t, 32<<20, 1<<20, 1)
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(100) {
		if err := put(v, data(i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	chunks := logged(t, e, 0)
	victim := chunks[10] // the first is the branch, so this is block 9
	first := (victim.off-e.space.first)/e.space.size*e.space.size + e.space.first
	e.Abandon()
	for name, off := range map[string]int64{
		"chunk header": victim.off + 8, "entry": victim.off + segment.ChunkHeader + 12,
		"payload": victim.off + int64(victim.h.HeaderBytes()) + 99, "segment header": first + 9,
	} {
		t.Run(name, func(t *testing.T) {
			img, told := copyOf(dev), &facts{}
			if err := img.FlipBit(off, 3); err != nil {
				t.Fatal(err)
			}
			e := open(t, img, told.into)
			defer e.Abandon()
			v := mustVolume(t, e)
			for i := range uint64(100) {
				got, err := holds(v, i)
				hit := i == 9 && name != "segment header"
				switch {
				case hit && name == "payload":
					kindOf(t, err, domain.Corrupt)
				case hit && (err != nil || got != 0), !hit && (err != nil || got != i+1):
					t.Errorf("block %d: %d, %v", i, got, err)
				}
			}
			if told.count("corrupt") == 0 {
				t.Error("no report")
			}
		})
	}
}

// TestLostLeafIsNoHole proves that a leaf image that rots costs its extent only, as Corrupt and not
// as zeros, also behind the next checkpoint and restart, and that writing heals block by block.
func TestLostLeafIsNoHole(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 1)
	e := open(t, dev)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(8) {
		if err := put(v, data(i%2*1024+i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	at := e.maint.directory[leafID{v.br.Load().id, 0}]
	if err := dev.FlipBit(int64(at.Off)+100, 1); err != nil {
		t.Fatal(err)
	}
	for life := range 3 {
		told := &facts{}
		e = open(t, dev, told.into)
		v = mustVolume(t, e)
		if life == 0 && told.count("corrupt") != 1 {
			t.Errorf("reported %d times", told.count("corrupt"))
		}
		for b := range uint64(1024) {
			_, err := holds(v, b)
			if b == 5 && life > 0 {
				check(t, v, b, 55)
				continue
			}
			kindOf(t, err, domain.Corrupt)
		}
		check(t, v, 1024+3, 4)
		if err := put(v, data(5, 1, 55)); err != nil {
			t.Fatal(err)
		}
		recount(t, e)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// liars are the ways in which a device acknowledges a write and does something else.
func liars(n int) map[string]string {
	return map[string]string{
		"lost":            fmt.Sprintf("write after %d times 1 lose", n),
		"one sector on":   fmt.Sprintf("write after %d times 1 misdirect 4096", n),
		"one sector back": fmt.Sprintf("write after %d times 1 misdirect -4096", n),
		"a segment on":    fmt.Sprintf("write after %d times 1 misdirect 65536", n),
		"torn silently":   fmt.Sprintf("write after %d times 1 tear 1 silent", n),
		"stored wrong":    fmt.Sprintf("write after %d times 1 flip 12345", n),
	}
}

// TestLyingDevice makes every third write of a story in turn a lost, misdirected, silently torn or
// rotten one, and reads everything: from the open engine, after a crash, and after a clean stop
// (E10).
func TestLyingDevice(t *testing.T) {
	step := 3
	if raceOn || testing.Short() {
		step = 13
	}
	runLiars(t, 0, step, nil)
}

// TestLyingDeviceEncrypted is the same for an encrypted volume: a header that was lost, or stands
// elsewhere, must not bring keys of another life, nor a chunk that stands elsewhere nonces of other
// blocks.
func TestLyingDeviceEncrypted(t *testing.T) {
	step := 5
	if raceOn || testing.Short() {
		step = 35
	}
	runLiars(t, 2, step, testKey)
}

func runLiars(t *testing.T, first, step int, key []byte) {
	t.Helper()
	w, fired := &verdict{}, 0
	for n := first; ; n += step {
		more := false
		for name, script := range liars(n) {
			for _, clean := range []bool{false, true} {
				inner := newMem(t, smallSize, 64<<10, 1)
				e := open(t, inner)
				e.Abandon()
				dev, told := harmed(t, inner, script), &facts{}
				cfg := Config{Device: dev, Cluster: testCluster, Node: 1, ClusterKey: key}
				told.into(&cfg)
				e, err := Open(background, cfg)
				if err != nil {
					continue // the recovery's own checkpoint found it
				}
				model := story(t, e)
				if err := w.audit(e, model, told); err != nil {
					t.Fatalf("write %d %s, open: %v", n, name, err)
				}
				if clean {
					_ = e.Close() // may find it too
				}
				e.Abandon()
				more = more || dev.Stats().Writes > int64(n)
				fired++
				dev.Heal()
				if err := w.reopen(inner, model); err != nil {
					t.Fatalf("write %d %s, clean %v: %v", n, name, clean, err)
				}
			}
		}
		if !more {
			break
		}
	}
	t.Logf("%d stories: %+v", fired, *w)
}

var _ backends.Device = (*faulty.Device)(nil)
