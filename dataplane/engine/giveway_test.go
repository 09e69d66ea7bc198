package engine

import (
	"slices"
	"testing"
	"time"

	"weft/backends/mem"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// occupied lets a device have requests of hosts under way that do not end.
func occupied(e *Engine) {
	f := e.Scheduler().Flow(nil)
	for range 40 {
		f.Admit(&domain.IO{Op: domain.OpRead, Len: 4096})
	}
}

func rested(e *Engine, c qos.Class) int64 { return e.Scheduler().Reading().Rested[c] }

// TestScrubGivesWay proves that a scrub rests beside hosts and comes to its end all the same.
func TestScrubGivesWay(t *testing.T) {
	_, e := scrubDevice(t)
	defer e.Abandon()
	occupied(e)
	scrubbed(t, e, 0)
	if n := rested(e, qos.Scrub); n == 0 {
		t.Error("it did not rest beside hosts")
	}
}

// TestCleanerGivesWay proves that the cleaner rests beside hosts while there are free segments,
// does all of its round nevertheless, and does not rest once they are short or a writer waits for
// one.
func TestCleanerGivesWay(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 1)
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 32*domain.MiB)
	for n := range uint64(6 << 20 / 4096) {
		if err := put(v, data(n, 1, n+1)); err != nil {
			t.Fatal(err)
		}
	}
	for n := uint64(0); n < 6<<20/4096; n += 2 { // half of each segment dies
		if err := put(v, data(n, 1, n+1)); err != nil {
			t.Fatal(err)
		}
	}
	occupied(e)
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	clean := func() (cleaned int64) {
		before := e.stats.cleaned.Load()
		if _, err := e.clean(); err != nil {
			t.Fatal(err)
		}
		return e.stats.cleaned.Load() - before
	}
	owe(e, 4, 20)
	if n := clean(); n < 4 || rested(e, qos.Clean) == 0 {
		t.Errorf("%d segments cleaned, and it rested %d times beside hosts", n, rested(e, qos.Clean))
	}
	before := rested(e, qos.Clean)
	owe(e, 4, 6)
	if n := clean(); n < 4 || rested(e, qos.Clean) != before {
		t.Errorf("%d segments cleaned while they are short, and it rested", n)
	}
	owe(e, 4, 20)
	e.space.waiting.Add(1)
	defer e.space.waiting.Add(-1)
	if n := clean(); n < 4 || rested(e, qos.Clean) != before {
		t.Errorf("%d segments cleaned while a writer waits, and it rested", n)
	}
}

// owe lets the cleaner owe n segments of so many that lie between its start and the hosts' reserve.
// Nobody else uses the engine.
func owe(e *Engine, n, of int) {
	owed := e.space.owed()
	e.space.mu.Lock()
	defer e.space.mu.Unlock()
	e.space.lowWater += n - owed
	e.space.reserveUser = e.space.start() - of
}

// TestCleanerInPieces proves that the cleaner reads and writes in pieces, behind which a host waits
// for a short time, and in whole steps where the device turns, once a host waits for what it wins,
// once segments are short, and behind a round that moved much for what it won, as long as segments
// are owed.
func TestCleanerInPieces(t *testing.T) {
	for _, k := range []struct {
		turns, dear bool
		dies        uint64 // one of so many blocks
	}{{false, false, 2}, {true, false, 2}, {false, true, 4}} {
		dev := &sizes{lending: lending{bursts{Device: newMem(t, 128<<20, 1<<20, 1)}}, turns: k.turns}
		e := open(t, dev, quiet)
		v := create(t, e, 32*domain.MiB)
		const blocks, record = 24 << 20 / segment.BlockSize, 16
		for n := uint64(0); n < blocks; n += record {
			if err := put(v, data(n, record, n)); err != nil {
				t.Fatal(err)
			}
		}
		for n := uint64(0); n < blocks; n += k.dies {
			if err := put(v, data(n, 1, n+1)); err != nil {
				t.Fatal(err)
			}
		}
		e.maint.ckpt.Lock()
		clean := func(what string, of int, whole bool) {
			owe(e, 4, of)
			dev.mu.Lock()
			dev.most, dev.list = 0, nil
			dev.mu.Unlock()
			if won, err := e.clean(); err != nil || !won {
				t.Fatal(what, won, err)
			}
			dev.mu.Lock()
			defer dev.mu.Unlock()
			for _, n := range []int{dev.most, slices.Max(dev.list)} {
				if n <= pieceMax/2 || n > pieceMax != whole {
					t.Errorf("%s, %+v: %d bytes at once", what, k, n)
				}
			}
		}
		clean("nothing known", 20, k.turns)
		clean("behind a round", 20, k.turns || k.dear)
		e.maint.dear = false
		clean("short", 6, true)
		e.maint.dear = false
		e.space.waiting.Add(1)
		clean("a writer waits", 20, true)
		e.space.waiting.Add(-1)
		clean("short", 6, true)
		owe(e, 0, 20)
		e.maint.ckpt.Unlock()
		if err := e.maintain(); err != nil || e.hurried() {
			t.Errorf("in a hurry although nothing is owed: %v", err)
		}
		e.Abandon()
		dev.wg.Wait()
	}
}

// slow is a device on which large writes take their time.
type slow struct{ *mem.Device }

// WriteAt writes, after a while.
func (d slow) WriteAt(p []byte, off int64, fua bool) error {
	if len(p) > 8<<10 {
		<-time.After(time.Millisecond)
	}
	return d.Device.WriteAt(p, off, fua)
}

// TestDestageGivesWay proves that destaging rests beside hosts while their writes are not slowed
// down, is done nevertheless, is not taken for slower by it, and does not rest where somebody
// waits for it.
func TestDestageGivesWay(t *testing.T) {
	inner := newMem(t, 16<<20, 64<<10, 1)
	nv := newMemory(t, inner, 60)
	e := open(t, slow{inner}, quiet, journaled(nv))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	occupied(e)
	block := uint64(0)
	fill := func(to int) (urgent bool) {
		defer undestaged(e.nv)() // nothing is destaged before it is there
		for ; e.nv.fill() < to; block++ {
			if err := put(v, data(block%4000, 1, block+1)); err != nil {
				t.Fatal(err)
			}
		}
		return e.nv.urgent()
	}
	if fill(tier.FillSlow - 20) {
		t.Error("it is urgent although no writer is slowed down")
	}
	e.nv.kick()
	end := time.Now().Add(time.Minute)
	for e.nv.fill() >= tier.FillStart {
		if time.Now().After(end) {
			t.Fatalf("the fill is still %d", e.nv.fill())
		}
		<-time.After(time.Millisecond)
	}
	n := rested(e, qos.Destage)
	if n == 0 {
		t.Error("it did not rest beside hosts")
	}
	if !fill(tier.FillSlow + 20) {
		t.Error("it is not urgent although writers are slowed down")
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if m := rested(e, qos.Destage); m > n+1 { // the batch that was under way
		t.Errorf("it rested %d times although a flush waits for it", m-n)
	}
}
