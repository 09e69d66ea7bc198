package engine

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// attempts is what a block may hold: the last acknowledged number, or one of those begun since
// whose outcome is unknown.
type attempts struct{ acked, unknown []uint64 }

// diary is the model of a run in which appends may fail.
type diary map[uint64]*attempts

// write appends a number to a block and notes the outcome.
func (j diary) write(v *Volume, block, n uint64) error {
	a := j[block]
	if a == nil {
		a = &attempts{acked: []uint64{0}}
		j[block] = a
	}
	err := put(v, data(block, 1, n))
	if err == nil {
		a.acked, a.unknown = append(a.acked, n), nil
	} else {
		a.unknown = append(a.unknown, n)
	}
	return err
}

// check compares an engine with the model.
func (j diary) check(v *Volume) error {
	for b, a := range j {
		got, err := holds(v, b)
		if err != nil {
			return err
		}
		ok := got == a.acked[len(a.acked)-1]
		for _, n := range a.unknown {
			ok = ok || got == n
		}
		if !ok {
			return fmt.Errorf("block %d holds %d: acknowledged %v, begun %v", b, got, a.acked, a.unknown)
		}
	}
	return nil
}

// TestChunkWrittenAgain makes every write to the log in turn fail, headers of segments and footers
// included, without and with a part of it landing (R16). The host sees nothing of it, though it
// sends one record at a time and waits; after a crash all is there, nothing is reported corrupt,
// and the chunk that failed is not taken for the end of the log.
func TestChunkWrittenAgain(t *testing.T) {
	for _, how := range []string{"eio", "tear 1", "tear 2"} {
		failed := 0
		for n := range 60 {
			inner := newMem(t, smallSize, 64<<10, 1)
			e := open(t, inner, quiet)
			create(t, e, 16*domain.MiB)
			e.Abandon()
			dev, told := faulty.New(inner, nil), &facts{}
			e = open(t, dev, quiet, told.into)
			if err := dev.Script(fmt.Sprintf("write after %d times 1 %s", n, how)); err != nil {
				t.Fatal(err)
			}
			v, j := mustVolume(t, e), diary{}
			for i := range uint64(40) {
				if err := j.write(v, i%7, i+1); err != nil {
					t.Fatalf("write %d %s: %v", n, how, err)
				}
			}
			failed += told.count("write-error")
			if err := j.check(v); err != nil {
				t.Fatalf("write %d %s: %v", n, how, err)
			}
			recount(t, e)
			e.Abandon()
			e = open(t, inner, told.into)
			if err := j.check(mustVolume(t, e)); err != nil {
				t.Fatalf("write %d %s, after a crash: %v", n, how, err)
			}
			recount(t, e)
			e.Abandon()
			if told.count("corrupt") > 0 || told.count("failed") > 0 {
				t.Fatalf("write %d %s: %+v", n, how, told.list)
			}
		}
		if failed < 40 {
			t.Errorf("%s: %d writes failed only", how, failed)
		}
	}
}

// TestFailedChunkAmongOthers is TestChunkWrittenAgain with many records in flight: the chunk
// behind the failed one is durable before it and must wait for it (E1, E2, R16), and every cut of
// the power finds a prefix.
func TestFailedChunkAmongOthers(t *testing.T) {
	rounds := 20
	if raceOn || testing.Short() {
		rounds = 6
	}
	for n := range rounds {
		s := &script{t: t, dev: crashDevice(t, 40, 1), spots: spread(3, 4, 6)}
		s.rnd = newRand(uint64(n))
		dev, told := faulty.New(s.dev, nil), &facts{}
		s.e = open(t, dev, told.into)
		s.v = create(t, s.e, 16*domain.MiB)
		s.dev.StartHistory()
		rule := fmt.Sprintf("write after %d times 1 tear 1", 2*n)
		if err := dev.Script(rule); err != nil {
			t.Fatal(err)
		}
		s.run(25, 8)
		s.e.Abandon()
		if told.count("failed") > 0 {
			continue // it was the checkpoint's
		}
		s.enumerate(once(t), 150)
	}
}

// TestSecondFailureIsLoud proves that a device which refuses the same chunk in two segments is
// given up with a report: the record ends in Unavailable, later ones at once, reads go on, and
// everything acknowledged is there after a restart.
func TestSecondFailureIsLoud(t *testing.T) {
	inner := newMem(t, smallSize, 64<<10, 1)
	dev, told := faulty.New(inner, nil), &facts{}
	e := open(t, dev, quiet, told.into)
	v, j := create(t, e, 16*domain.MiB), diary{}
	for i := range uint64(30) {
		if err := j.write(v, i%9, i+1); err != nil {
			t.Fatal(err)
		}
	}
	dev.Add(faulty.Rule{On: faulty.Write, Err: backends.ErrMedia})
	for i := range uint64(5) {
		kindOf(t, j.write(v, i, 100+i), domain.Unavailable)
	}
	_, err := e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 4*domain.MiB, 1)
	kindOf(t, err, domain.Unavailable)
	_, err = v.Hold(3, 1)
	kindOf(t, err, domain.Unavailable)
	if told.count("failed") != 1 {
		t.Errorf("reported %+v", told.list)
	}
	if err := j.check(v); err != nil {
		t.Error(err)
	}
	kindOf(t, e.Close(), domain.Unavailable)
	e = open(t, inner)
	defer e.Abandon()
	if err := j.check(mustVolume(t, e)); err != nil {
		t.Error(err)
	}
}

// TestReadError proves that a device which fails a read gives Unavailable and never bytes, and that
// the block is there when the device is well again (E10).
func TestReadError(t *testing.T) {
	dev := harmed(t, newMem(t, smallSize, 64<<10, 1), "")
	e := open(t, dev)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(3, 4, 7)); err != nil {
		t.Fatal(err)
	}
	rule := dev.Add(faulty.Rule{On: faulty.Read, Err: backends.ErrMedia})
	_, err := holds(v, 4)
	kindOf(t, err, domain.Unavailable)
	rule.Remove()
	check(t, v, 4, 7)
}

// TestBusErrorOnce documents what a read that comes back wrong once means: Corrupt, since the index
// did not change, and right the next time.
func TestBusErrorOnce(t *testing.T) {
	dev := harmed(t, newMem(t, smallSize, 64<<10, 1), "")
	e := open(t, dev)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(3, 1, 7)); err != nil {
		t.Fatal(err)
	}
	dev.Add(faulty.Rule{On: faulty.Read, Times: 1, Flip: true, FlipBit: 77})
	_, err := holds(v, 3)
	kindOf(t, err, domain.Corrupt)
	check(t, v, 3, 7)
}

// TestFlushFailure is E11: every flush in turn fails. The engine then trusts nothing behind the
// last good one: it takes itself out of service, and after a power cut that loses all that no
// flush or FUA made durable, everything acknowledged is there. The same for every FUA write of an
// anchor.
func TestFlushFailure(t *testing.T) {
	for _, what := range []string{
		"flush after %d times 1 eio", "write 69632+1048576 after %d times 1 eio",
	} {
		loud := 0
		for n := range 14 {
			inner := newMem(t, smallSize, 64<<10, 1)
			open(t, inner).Abandon()
			inner.StartHistory()
			dev, told := faulty.New(inner, nil), &facts{}
			e := open(t, dev, told.into)
			v, j := create(t, e, 16*domain.MiB), diary{}
			if err := dev.Script(fmt.Sprintf(what, n)); err != nil {
				t.Fatal(err)
			}
			for i := range uint64(60) {
				err := j.write(v, i%7, i+1)
				if i%6 == 5 && err == nil {
					err = e.Checkpoint()
				}
				if err != nil {
					kindOf(t, err, domain.Unavailable)
				}
			}
			loud += told.count("failed")
			e.Abandon()
			for _, choose := range []mem.Chooser{mem.None, mem.All, mem.Random(uint64(n))} {
				e = open(t, inner.CrashImage(inner.Ops(), choose))
				if err := j.check(mustVolume(t, e)); err != nil {
					t.Fatalf("%s, %d: %v", what, n, err)
				}
				e.Abandon()
			}
		}
		if loud < 8 {
			t.Errorf("%s: %d engines gave up only", what, loud)
		}
	}
}

// lazy drops the FUA of writes while it is told to, as a process does that is killed between a
// write and its flush.
type lazy struct {
	backends.Device
	on bool
}

// WriteAt writes without FUA.
func (l *lazy) WriteAt(p []byte, off int64, fua bool) error {
	return l.Device.WriteAt(p, off, fua && !l.on)
}

// TestProcessCrashThenPowerCut kills the process while its last chunk is in the device's volatile
// cache only. The next start reads it there and believes it, and its checkpoint reuses the segment
// that the chunk emptied, the longest unused first; then the power goes at every point. The
// recovery must have made it durable first: else neither the old bytes nor the new ones are there
// (E1, E7).
func TestProcessCrashThenPowerCut(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	dev := &lazy{Device: inner}
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 3, 1)); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(600) { // every other segment is used since
		if err := put(v, data(500+n%3, 1, n)); err != nil {
			t.Fatal(err)
		}
		if n%20 == 19 {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if e.Stats().Cleaned > 0 {
		t.Fatal("the blocks were moved")
	}
	dev.on = true
	if err := put(v, data(0, 3, 2)); err != nil { // in truth it was never acknowledged
		t.Fatal(err)
	}
	e.Abandon()
	from := inner.Ops()
	e = open(t, inner, quiet)
	v = mustVolume(t, e)
	for n := range uint64(30) {
		if err := put(v, data(500+n%3, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	e.Abandon()
	// The worst case loses what the first process left in the cache and keeps what the second wrote.
	worst := func(_ int, p mem.Pending) mem.Fate {
		if p.Index >= from {
			return mem.All(0, p)
		}
		return mem.None(0, p)
	}
	for cut := from; cut <= inner.Ops(); cut++ {
		for _, choose := range []mem.Chooser{mem.None, worst, mem.Random(uint64(cut))} {
			e := open(t, inner.CrashImage(cut, choose))
			v := mustVolume(t, e)
			for b := range uint64(3) {
				if got, err := holds(v, b); err != nil || got != 1 && got != 2 {
					t.Fatalf("cut %d of %d: block %d holds %d: %v", cut-from, inner.Ops()-from, b, got, err)
				}
			}
			e.Abandon()
		}
	}
}

// TestReadStartsFresh proves that a read which ended between finding bytes that do not match and
// looking the block up again leaves nothing behind for the next one that uses its memory.
func TestReadStartsFresh(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 4, 7)); err != nil {
		t.Fatal(err)
	}
	for range 50 { // the pool may drop what it is given
		left := &reader{again: true, bad: 9, badLoc: segment.LostLoc}
		left.loc[9] = segment.LostLoc
		readers.Put(left)
		check(t, v, 2, 7)
	}
}

// TestCleanerMeetsBadSector proves that a live sector which cannot be read costs its own segment
// only: the cleaner reports it, leaves the segment alone and goes on, and so does the engine.
func TestCleanerMeetsBadSector(t *testing.T) {
	dev := harmed(t, newMem(t, smallSize, 64<<10, 1), "")
	told := &facts{}
	e := open(t, dev, told.into)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 2, 5)); err != nil {
		t.Fatal(err)
	}
	l := e.lanes[0]
	l.mu.Lock()
	at := v.fam.leaves[0][0].own.get(0).Off()
	l.mu.Unlock()
	dev.Add(faulty.Rule{On: faulty.Read, Off: at, Len: segment.Sector, Err: backends.ErrMedia})
	for i := range uint64(4000) {
		block := 10 + i*7%60
		if i%40 == 0 {
			block = 200 + i/40 // stays, so that segments do not die by themselves
		}
		if err := put(v, data(block, 1, i)); err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
	}
	if e.Stats().Cleaned == 0 || told.count("read-error") == 0 || told.count("failed") > 0 {
		t.Errorf("%+v, %+v", told.list, e.Stats())
	}
	_, err := holds(v, 0)
	kindOf(t, err, domain.Unavailable)
	dev.Heal()
	check(t, v, 1, 5)
	recount(t, e)
}

// TestHoldAfterCut proves that a hold is given on a lane whose last chunks a recovery has cut: the
// numbers of the cut ones are spent, and nothing is on its way to them.
func TestHoldAfterCut(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(5) {
		if err := put(v, data(i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	chunks := logged(t, e, 0)
	last := chunks[len(chunks)-1]
	e.Abandon()
	clearAt(t, dev, last.off+int64(last.h.HeaderBytes()), segment.Sector)
	e = open(t, dev)
	defer e.Abandon()
	v = mustVolume(t, e)
	check(t, v, 4, 0)
	h, err := v.Hold(4, 1)
	if err != nil {
		t.Fatal(err)
	}
	w := &waiter{}
	w.wg.Add(1)
	r := data(4, 1, 9)
	r.To = w
	h.Append(r)
	h.Release()
	w.wg.Wait()
	check(t, v, 4, 9)
}

// TestCloseOnFullDevice proves that Close finishes what was appended also where that needs the
// cleaner to win a segment first (E9).
func TestCloseOnFullDevice(t *testing.T) {
	for range 5 {
		dev := newMem(t, smallSize, 64<<10, 1)
		e := open(t, dev)
		v := create(t, e, 16*domain.MiB)
		blocks := uint64(e.space.usable.Load()) / segment.BlockSize
		var wg sync.WaitGroup
		outcome := acker(func(error) { wg.Done() })
		for i := range blocks * 8 {
			wg.Add(1)
			r := data(i*13%blocks, 1, i)
			r.To = outcome
			v.Append(r)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		e = open(t, dev)
		recount(t, e)
		e.Abandon()
	}
}

// TestDeleteIgnoresCancel proves that a burial whose caller goes away still gives its space back.
func TestDeleteIgnoresCancel(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 4, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(background)
	cancel()
	if err := e.Delete(ctx, testVolume); err != nil {
		t.Fatal(err)
	}
	if live := e.Stats().LiveBytes; live != 0 {
		t.Errorf("%d bytes live", live)
	}
	recount(t, e)
}
