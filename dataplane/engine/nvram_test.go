package engine

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/journal"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// journaled gives an engine a journal; nil is none. Writers never sleep: what they wait is counted.
func journaled(nv *mem.Memory) func(*Config) {
	return func(c *Config) {
		if nv != nil {
			c.Journal = nv
			c.Clock = tier.System()
			c.Clock.Sleep = func(time.Duration) { runtime.Gosched() }
		}
	}
}

// strewn lets what every other seed writes go straight from the journal.
func strewn(seed uint64) func(*Config) {
	return func(c *Config) { c.strew = seed%2 == 0 }
}

// newMemory makes memory for a journal of so many slots for a device, power-safe.
func newMemory(t testing.TB, dev backends.Device, slots int) *mem.Memory {
	return newMemoryOf(t, dev, slots, backends.PowerSafe)
}

func newMemoryOf(t testing.TB, dev backends.Device, slots int, d backends.Durability) *mem.Memory {
	t.Helper()
	sb, err := readSuper(dev)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(4096)
	for journal.Fit(size, chunkPayload(int64(sb.SegmentSize))) < slots {
		size += 4096
	}
	nv, err := mem.NewMemory(size, d)
	if err != nil {
		t.Fatal(err)
	}
	return nv
}

// TestJournalModel is TestModel with a journal of few slots: what hosts wrote is destaged, cleaned,
// overwritten and read meanwhile (E1, E6, E12, E14).
func TestJournalModel(t *testing.T) { runModel(t, true) }

// TestJournalFamilies is TestFamilies with a journal (E5).
func TestJournalFamilies(t *testing.T) { runFamilies(t, true) }

// TestJournalAbsorbs proves that a record is acknowledged and read back without a write to the
// device, after a crash and a clean stop too, which destages nothing; and that what was overwritten
// in the journal never goes to the device.
func TestJournalAbsorbs(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	nv := newMemory(t, dev, 40)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	before := dev.Stats().Writes
	for n := range uint64(40) {
		if err := put(v, data(n%8, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 3, Count: 2}); err != nil {
		t.Fatal(err)
	}
	if err := put(v, data(100, 4, 99)); err != nil {
		t.Fatal(err)
	}
	if n := dev.Stats().Writes - before; n != 0 {
		t.Errorf("%d writes to the device", n)
	}
	judge := func(e *Engine) {
		t.Helper()
		v := mustVolume(t, e)
		for b := range uint64(8) {
			want := 32 + b
			if b == 3 || b == 4 {
				want = 0
			}
			check(t, v, b, want)
		}
		check(t, v, 103, 99)
		if i := v.Info(); i.Mapped != 10*segment.BlockSize || i.Own != 10*segment.BlockSize {
			t.Errorf("info %+v", i)
		}
		recount(t, e)
	}
	judge(e)
	for _, clean := range []bool{false, true, false} {
		if clean {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		e.Abandon()
		e = open(t, dev, quiet, journaled(nv))
		judge(e)
	}
	if st := e.Stats(); st.DestagedBytes != 0 || st.JournalUsed == 0 ||
		st.JournalBytes < st.JournalUsed {
		t.Errorf("before: %+v", st)
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if st := e.Stats(); st.DestagedBytes != 10*segment.BlockSize || st.JournalUsed != 0 {
		t.Errorf("%d bytes destaged, %d in use", st.DestagedBytes, st.JournalUsed)
	}
	judge(e)
	last := e.nv.mu.next
	e.Abandon()
	e = open(t, dev, quiet, journaled(nv))
	judge(e)
	if e.nv.mu.next < last {
		t.Errorf("a slot's sequence %d is given out again, behind %d", e.nv.mu.next, last)
	}
	e.Abandon()
}

// TestJournalVerdicts proves that a device is not opened without its journal, or with another or an
// older state of it, by a typed error; that with the loss accepted it is, says so for each volume,
// and reads what stood in the journal only as corrupt where it knows of it, never as what was there
// before.
func TestJournalVerdicts(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	dev.StartHistory()
	nv := newMemory(t, dev, 20)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	older := nv.Clone()
	for b := range uint64(4) {
		if err := put(v, data(b, 1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if err := put(v, data(2, 1, 2)); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dev, quiet, journaled(nv)).Abandon() // older is one start behind now, and a bit
	e = open(t, dev, quiet, journaled(nv))
	e.Abandon()
	other := newMem(t, smallSize, 64<<10, 1)
	foreign := newMemory(t, other, 20)
	open(t, other, quiet, journaled(foreign)).Abandon()
	twin := foreign.Clone() // another one's, but of the same start
	share, err := journal.Open(twin)
	if err != nil {
		t.Fatal(err)
	}
	share.Begin(e.incarnation)
	damaged := nv.Clone()
	clear(damaged.Bytes()[8:8192])
	cases := []struct {
		name string
		nv   *mem.Memory
		kind domain.Kind
	}{
		{"none", nil, domain.Unavailable},
		{"blank", newMemory(t, dev, 20), domain.Corrupt},
		{"foreign", foreign, domain.Corrupt},
		{"twin", twin, domain.Corrupt},
		{"older", older, domain.Corrupt},
		{"damaged", damaged, domain.Corrupt},
	}
	for _, c := range cases {
		cfg := Config{Device: copyOf(dev), Cluster: testCluster, Node: 1}
		journaled(c.nv)(&cfg)
		_, err := Open(background, cfg)
		if !domain.IsKind(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.nv != nil {
			copied := c.nv.Clone()
			cfg.Journal = copied
		}
		told := &facts{}
		cfg.AcceptLoss = true
		told.into(&cfg)
		e, err := Open(background, cfg)
		if err != nil {
			t.Fatalf("%s, accepted: %v", c.name, err)
		}
		if told.count("journal-lost") != 1 || told.list[0].Volume != testVolume {
			t.Errorf("%s: told %+v", c.name, told.list)
		}
		v := mustVolume(t, e)
		for b := range uint64(4) {
			got, err := holds(v, b)
			if b == 2 && !domain.IsKind(err, domain.Corrupt) || b != 2 && (err != nil || got != 1) {
				t.Errorf("%s: block %d holds %d: %v", c.name, b, got, err)
			}
		}
		if err := put(v, data(2, 1, 3)); err != nil {
			t.Fatal(err)
		}
		check(t, v, 2, 3)
		e.Abandon()
	}
	e = open(t, dev, quiet, journaled(nv)) // and it is still there
	check(t, mustVolume(t, e), 2, 2)
	e.Abandon()
}

// TestJournalRefusals proves that memory another device needs is not formatted, and that a journal
// too small for the lanes is refused.
func TestJournalRefusals(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 2)
	nv := newMemory(t, dev, 20)
	open(t, dev, journaled(nv)).Abandon()
	other, err := mem.New(mem.Config{Size: smallSize, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	if err := Format(background, other, FormatOptions{
		Cluster: testCluster, Device: domain.DeviceID{UUID: domain.UUID{9}}, SegmentSize: 64 << 10,
		Lanes: 2,
	}); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Device: other, Cluster: testCluster, Node: 1, Journal: nv}
	_, err = Open(background, cfg)
	kindOf(t, err, domain.Denied)
	cfg.Journal = newMemory(t, other, journal.SlotsMin(2)-1)
	_, err = Open(background, cfg)
	kindOf(t, err, domain.Invalid)
	cfg.Journal = newMemory(t, other, journal.SlotsMin(2))
	e, err := Open(background, cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Abandon()
}

// TestDropJournal proves that a device gives its journal up with all that it held on the device,
// and opens without it from then on; that giving up twice is no error, and that what is cut short
// between leaves the journal in its right.
func TestDropJournal(t *testing.T) {
	dev := recorded(t, smallSize, 64<<10, 2)
	nv := newMemory(t, dev, 20)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(30) {
		if err := put(v, data(b*700%4096, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	e.Abandon()
	drop := func(c *Config) { c.DropJournal = true }
	dev.StartHistory()
	nv.StartHistory(dev.Ops)
	judge := func(e *Engine) {
		for b := range uint64(30) {
			check(t, mustVolume(t, e), b*700%4096, b+1)
		}
	}
	e = open(t, dev, quiet, journaled(nv), drop)
	judge(e)
	recount(t, e)
	if st := e.Stats(); st.JournalBytes != 0 || e.nv != nil {
		t.Errorf("still there: %+v", st)
	}
	e.Abandon()
	dev2, nv2 := copyOf(dev), nv.Clone()
	c := once(t)
	cuts(c, dev, nv, 400, func(img *mem.Device, nv *mem.Memory, _ point) error {
		e := open(t, img, quiet, journaled(nv), drop)
		judge(e)
		e.Abandon()
		return nil
	})
	t.Logf("%d images", c.n)
	for _, tune := range []func(*Config){journaled(nv2), quiet} {
		e = open(t, dev2, tune, drop)
		judge(e)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestJournalDamage flips bits in the journal of a device that is down, and in the journal of one
// that serves: what was hit reads as corrupt and is reported, on its way to the device too, and
// nothing else is harmed (E3b, E10).
func TestJournalDamage(t *testing.T) {
	dev := recorded(t, smallSize, 64<<10, 1)
	nv := newMemory(t, dev, 20)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(8) {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(e *Engine, b int) int64 {
		l := e.lanes[0]
		l.mu.Lock()
		defer l.mu.Unlock()
		br := mustVolume(t, e).br.Load()
		return int64(e.nv.place(br.fam.leaves[0][0].of(br).own.get(b))) * segment.BlockSize
	}
	where := at(e, 5)
	judge := func(e *Engine, told *facts) {
		t.Helper()
		v := mustVolume(t, e)
		for b := range uint64(8) {
			got, err := holds(v, b)
			if b == 5 && !domain.IsKind(err, domain.Corrupt) || b != 5 && (err != nil || got != b+1) {
				t.Errorf("block %d holds %d: %v", b, got, err)
			}
		}
		if told.count("corrupt") == 0 || told.count("failed") > 0 {
			t.Errorf("told %+v", told.list)
		}
	}
	e.Abandon()
	// What was open at the crash is closed by the next start: then its last word is missed too.
	img, mine := copyOf(dev), nv.Clone()
	open(t, img, quiet, journaled(mine)).Abandon()
	share, err := journal.Open(mine)
	var sl journal.Slot
	if err != nil || !share.Read(1, &sl, nil) || !sl.Sealed || share.Read(2, &sl, nil) {
		t.Fatalf("the slot that was open: %+v: %v", sl, err)
	}
	for i := range uint64(4) {
		img, mine, told, serving := copyOf(dev), nv.Clone(), &facts{}, i >= 2
		if !serving {
			mine.Bytes()[where+100] ^= 8
		}
		e := open(t, img, quiet, journaled(mine), told.into, strewn(i))
		if serving {
			if told.count("corrupt") > 0 {
				t.Fatalf("told %+v", told.list)
			}
			mine.Bytes()[where+100] ^= 8
		}
		judge(e, told)
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
		judge(e, told)
		recount(t, e)
		e.Abandon()
		e = open(t, img, quiet, journaled(mine), told.into)
		judge(e, told)
		e.Abandon()
	}
}

// TestJournalNeedsRoomOnDevice proves admission: no record is acknowledged for which the device
// has no room when the journal is destaged, though the journal has.
func TestJournalNeedsRoomOnDevice(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	nv := newMemory(t, dev, 400)
	e := open(t, dev, journaled(nv))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	n := uint64(0)
	for ; ; n++ {
		if err := put(v, data(n, 1, n+1)); err != nil {
			kindOf(t, err, domain.NoSpace)
			break
		}
	}
	if st := e.Stats(); st.JournalUsed > st.JournalBytes*9/10 || st.LiveBytes > st.UsableBytes {
		t.Errorf("%+v", st)
	}
	for b := range n { // overwriting needs no room
		if err := put(v, data(b, 1, b+7)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	for b := range n {
		check(t, v, b, b+7)
	}
	recount(t, e)
}

// TestFullJournal holds the device's writes back until the journal is full and writers wait; then
// one write at a time goes on, and writers do: nobody is left without a wake-up (E9).
func TestFullJournal(t *testing.T) {
	inner := newMem(t, 12<<20, 256<<10, 1)
	dev := faulty.New(inner, nil)
	nv := newMemory(t, inner, 8)
	e := open(t, dev, quiet, journaled(nv), func(c *Config) {
		c.Clock.Now = func() time.Duration { return 0 } // turns add up, however slow the machine is
	})
	defer e.Abandon()
	defer dev.Heal()
	v := create(t, e, 16*domain.MiB)
	stall := dev.Add(faulty.Rule{On: faulty.Write, Stall: true, Times: 1})
	var writers sync.WaitGroup
	done := atomic.Int64{}
	for w := range uint64(4) {
		writers.Go(func() {
			for i := range uint64(100) {
				if err := put(v, data(w*200+i, 1, w*1000+i)); err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	<-stall.Stalled()
	for e.Stats().JournalFull == 0 {
		runtime.Gosched()
	}
	if done.Load() == 400 {
		t.Error("nobody had to wait")
	}
	stall.Release()
	writers.Wait()
	for w := range uint64(4) {
		for i := range uint64(100) {
			check(t, v, w*200+i, w*1000+i)
		}
	}
	if st := e.Stats(); st.JournalDelayed == 0 {
		t.Errorf("nobody was slowed down before: %+v", st)
	}
}

// TestFullJournalOfDead lets a journal become full of what was overwritten. Destaging it writes
// nothing, so that nothing but the freeing of slots can wake who waits for one (E9).
func TestFullJournalOfDead(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	e := open(t, dev, quiet, journaled(newMemory(t, dev, 8)))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	release := undestaged(e.nv)
	done := make(chan error, 1)
	go func() {
		for n := range uint64(36) { // 32 fill all slots
			if err := put(v, data(7, 1, n)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for e.Stats().JournalFull == 0 {
		runtime.Gosched()
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	check(t, v, 7, 35)
	// When the journal was full the newest record stood in a sealed slot, and may have gone too.
	if n := e.Stats().DestagedBytes; n > segment.BlockSize {
		t.Errorf("%d bytes destaged of what was overwritten", n)
	}
}

// TestDestageFailure proves that a chunk whose write fails is written again from the journal, in
// another segment, and that a device that fails for good leaves the journal as it is for the next
// Open, with nothing lost.
func TestDestageFailure(t *testing.T) {
	for _, forGood := range []bool{false, true} {
		inner := newMem(t, 12<<20, 256<<10, 1)
		dev := faulty.New(inner, nil)
		nv := newMemory(t, inner, 8)
		told := &facts{}
		e := open(t, dev, quiet, journaled(nv), told.into)
		v := create(t, e, 16*domain.MiB)
		times := 1
		if forGood {
			times = 0
		}
		dev.Add(faulty.Rule{
			On: faulty.Write, Off: segment.DataOff, Len: 10 << 20, Times: times, Err: backends.ErrMedia,
		})
		acked := map[uint64]uint64{}
		for n := range uint64(300) {
			if err := put(v, data(n%200, 1, n+1)); err != nil {
				kindOf(t, err, domain.Unavailable)
				break
			}
			acked[n%200] = n + 1
		}
		if forGood != (len(acked) < 200) || forGood != (told.count("failed") == 1) {
			t.Errorf("for good %v: %d acknowledged, told %+v", forGood, len(acked), told.list)
		}
		if !forGood && told.count("write-error") != 1 {
			t.Errorf("told %+v", told.list)
		}
		if forGood {
			kindOf(t, e.nv.drain(background), domain.Unavailable)
		}
		e.Abandon()
		dev.Heal()
		e = open(t, inner, journaled(nv))
		for b, n := range acked {
			check(t, mustVolume(t, e), b, n)
		}
		e.Abandon()
	}
}

// TestHoleOverDestaged destages, in one batch, a block of a snapshot and the hole that its volume
// made over it later: replayed from the log the hole is still one, whatever order the numbers of
// the blocks would give.
func TestHoleOverDestaged(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	nv := newMemory(t, dev, 20)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(9, 1, 5)); err != nil {
		t.Fatal(err)
	}
	cut := Cut{Volume: testVolume, Snapshot: domain.SnapshotID{UUID: domain.UUID{8}}}
	if err := e.Snapshot(background, cut); err != nil {
		t.Fatal(err)
	}
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 0, Count: 20}); err != nil {
		t.Fatal(err)
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	e = open(t, dev, quiet, journaled(nv))
	defer e.Abandon()
	check(t, mustVolume(t, e), 9, 0)
	s, ok := e.OpenSnapshot(cut.Snapshot)
	if !ok {
		t.Fatal("the snapshot is gone")
	}
	check(t, s, 9, 5)
	recount(t, e)
}

// TestRangeUnderDestaged destages, in one batch, a hole and data that was written over part of it
// later and that begins before it: replayed from the log the data is there.
func TestRangeUnderDestaged(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	nv := newMemory(t, dev, 20)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	for _, r := range []*Record{
		data(5, 3, 1),
		{Kind: segment.KindUnmap, Block: 5, Count: 3},
		data(3, 4, 2),
	} {
		if err := put(v, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	e = open(t, dev, quiet, journaled(nv))
	defer e.Abandon()
	for b, want := range map[uint64]uint64{3: 2, 4: 2, 5: 2, 6: 2, 7: 0} {
		check(t, mustVolume(t, e), b, want)
	}
	recount(t, e)
}

// TestDestageMeetsAbsorption holds the write of a destaged chunk back while the branch that its
// records name is absorbed by another and a checkpoint knows only that one: the records find their
// way, in memory and again when the chunk is replayed, after a crash that leaves no other copy.
func TestDestageMeetsAbsorption(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 2)
	dev := faulty.New(inner, nil)
	nv := newMemory(t, inner, 20)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	block := uint64(0)
	for v.lane(block).no == 0 { // the log of branches goes by the other lane
		block += 1024
	}
	if err := put(v, data(block, 3, 5)); err != nil {
		t.Fatal(err)
	}
	cut := Cut{Volume: testVolume, Snapshot: domain.SnapshotID{UUID: domain.UUID{8}}}
	if err := e.Snapshot(background, cut); err != nil {
		t.Fatal(err)
	}
	if err := put(v, data(block+1, 1, 6)); err != nil {
		t.Fatal(err)
	}
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: block + 2, Count: 1}); err != nil {
		t.Fatal(err)
	}
	chunk := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	drained := make(chan error, 1)
	go func() { drained <- e.nv.drain(background) }()
	<-chunk.Stalled()
	if err := e.DeleteSnapshot(background, cut.Snapshot); err != nil {
		t.Fatal(err)
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	chunk.Release()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	judge := func(e *Engine) {
		t.Helper()
		v := mustVolume(t, e)
		for i, n := range []uint64{5, 6, 0} {
			check(t, v, block+uint64(i), n)
		}
		recount(t, e)
	}
	judge(e)
	e.Abandon()
	e = open(t, inner.CrashImage(inner.Ops(), mem.None), quiet, journaled(nv))
	judge(e)
	e.Abandon()
}

// TestDestageMeetsSweep destages while a branch is being swept: its only kid has taken an extent
// over, and the branch is still in the tree. What it wrote is found at the kid, before and behind
// the look for what is current.
func TestDestageMeetsSweep(t *testing.T) {
	for _, between := range []bool{false, true} {
		inner := newMem(t, smallSize, 64<<10, 2)
		dev := faulty.New(inner, nil)
		nv := newMemory(t, inner, 20)
		e := open(t, dev, quiet, journaled(nv))
		v := create(t, e, 16*domain.MiB)
		block := uint64(0)
		for v.lane(block).no == 0 { // the log of branches goes by the other lane
			block += 1024
		}
		if err := put(v, data(block, 3, 5)); err != nil {
			t.Fatal(err)
		}
		cut := Cut{Volume: testVolume, Snapshot: domain.SnapshotID{UUID: domain.UUID{8}}}
		if err := e.Snapshot(background, cut); err != nil {
			t.Fatal(err)
		}
		s, _ := e.OpenSnapshot(cut.Snapshot)
		if err := put(v, data(block+1, 1, 6)); err != nil {
			t.Fatal(err)
		}
		b, l := s.br.Load(), v.lane(block)
		e.maint.ckpt.Lock() // the sweep is ours
		gone, drained := make(chan error, 1), make(chan error, 1)
		go func() { gone <- e.DeleteSnapshot(background, cut.Snapshot) }()
		for !e.waits(b) {
			runtime.Gosched()
		}
		if between {
			chunk := dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
			go func() { drained <- e.nv.drain(background) }()
			<-chunk.Stalled()
			l.sweep(b, uint32(block/1024))
			chunk.Release()
		} else {
			l.sweep(b, uint32(block/1024))
			go func() { drained <- e.nv.drain(background) }()
		}
		if err := <-drained; err != nil {
			t.Fatalf("between %v: %v", between, err)
		}
		e.maint.ckpt.Unlock()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		for again := range 2 {
			for i, n := range []uint64{5, 6, 5} {
				check(t, mustVolume(t, e), block+uint64(i), n)
			}
			recount(t, e)
			e.Abandon()
			if again == 0 {
				e = open(t, inner, quiet, journaled(nv))
			}
		}
	}
}

// TestVolatileJournal proves that a journal in memory that a power cut empties makes the engine
// volatile, and that a flush then destages, so that what was flushed is on the device.
func TestVolatileJournal(t *testing.T) {
	dev := recorded(t, smallSize, 64<<10, 2)
	nv := newMemoryOf(t, dev, 20, backends.Volatile)
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(10) {
		if err := put(v, data(b*1024%4096+b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	if !e.Volatile() || e.Mode() != Process {
		t.Error("not said to be volatile")
	}
	gone, cancel := context.WithCancel(background)
	cancel()
	if err := e.Flush(gone); err != nil && !domain.IsKind(err, domain.Aborted) {
		t.Error(err)
	}
	if err := e.Flush(background); err != nil {
		t.Fatal(err)
	}
	if st := e.Stats(); st.JournalUsed != 0 {
		t.Errorf("%d bytes are still in the journal", st.JournalUsed)
	}
	img := dev.CrashImage(dev.Ops(), mem.None)
	e.Abandon()
	e = open(t, img, func(c *Config) { c.AcceptLoss = true })
	defer e.Abandon()
	for b := range uint64(10) {
		check(t, mustVolume(t, e), b*1024%4096+b, b+1)
	}
}

// TestJournalIdle proves that a journal below half is left alone, by time too: an idle engine
// writes nothing (E15).
func TestJournalIdle(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	e := open(t, dev, quiet, journaled(newMemory(t, dev, 40)))
	v := create(t, e, 16*domain.MiB)
	for n := range uint64(60) {
		if err := put(v, data(n%8, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	before := dev.Stats()
	e.nv.kick()
	release := undestaged(e.nv) // whatever it wanted to do it has done by now, or finds nothing
	if e.nv.pick() {
		t.Error("something is to be destaged")
	}
	release()
	e.Abandon()
	if after := dev.Stats(); after != before {
		t.Errorf("%+v, then %+v", before, after)
	}
}

// TestJournalAllocatesNothing proves that neither a 4 KiB write into a journal nor a read from it
// allocates, with destaging under way; of an encrypted volume neither.
func TestJournalAllocatesNothing(t *testing.T) {
	journalAllocatesNothing(t)
	journalAllocatesNothing(t, keyed)
}

func journalAllocatesNothing(t *testing.T, tune ...func(*Config)) {
	t.Helper()
	if raceOn {
		t.Skip("the race detector allocates")
	}
	dev := &sink{Device: newMem(t, 256<<20, 4<<20, 1)}
	nv := newMemoryOf(t, dev, 12, backends.Volatile)
	e := open(t, dev, append(tune, quiet, journaled(nv))...)
	defer e.Abandon()
	v := create(t, e, 64*domain.MiB)
	done, buf := make(signal, 1), backends.AlignedBuffer(segment.BlockSize)
	r := data(0, 1, 7)
	r.To = done
	n := uint64(0)
	write := func() {
		n++
		r.Block = n * 7 % 4096
		v.Append(r)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for range 10_000 {
		write()
	}
	dev.forget = true
	writes := testing.AllocsPerRun(12_000, write)
	r.Block = 5
	v.Append(r)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	reads := testing.AllocsPerRun(4000, func() {
		if err := v.Read(5, 1, buf); err != nil {
			t.Fatal(err)
		}
	})
	if st := e.Stats(); st.Destages < 10 {
		t.Errorf("too little was destaged: %+v", st)
	}
	if reads != 0 || writes != 0 {
		t.Errorf("%v allocations per read, %v per write", reads, writes)
	}
}

// TestJournalAmplification proves what goes to the device for what hosts write at random, without
// cleaning: at most 1.06 bytes a byte, checkpoint included.
func TestJournalAmplification(t *testing.T) {
	if raceOn {
		t.Skip("too long for the race detector")
	}
	dev := newMem(t, 512<<20, 4<<20, 1)
	nv := newMemory(t, dev, 40)
	e := open(t, dev, quiet, journaled(nv))
	defer e.Abandon()
	v := create(t, e, 256*domain.MiB)
	rnd, r := newRand(1), data(0, 1, 1)
	done := make(signal, 1)
	r.To = done
	before := dev.Stats().WriteBytes
	for range 32 << 10 {
		r.Block = rnd.Uint64N(64 << 10)
		v.Append(r)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	st := e.Stats()
	written := float64(dev.Stats().WriteBytes - before)
	toHosts, toDestage := written/float64(st.UserBytes), written/float64(st.DestagedBytes)
	t.Logf("%.3f of what hosts wrote, %.3f of what was destaged; %+v", toHosts, toDestage, st)
	if toHosts > 1.06 || toDestage > 1.10 {
		t.Errorf("%.3f of what hosts wrote, %.3f of what was destaged", toHosts, toDestage)
	}
	if full := st.DestagedBytes / st.Chunks; full < segment.PayloadMax*3/4 {
		t.Errorf("chunks of %d bytes are not full", full)
	}
}

// TestRangeDestagedBesideSweep proves that zeros and holes which stand in a branch without a name
// are destaged also where its kid has taken their extent over already: what they replaced does not
// come back by a crash. The random crash test met it once in some 10,000 images, under load.
func TestRangeDestagedBesideSweep(t *testing.T) {
	for _, kind := range []segment.Kind{segment.KindZero, segment.KindUnmap} {
		dev := newMem(t, smallSize, 64<<10, 1)
		nv := newMemory(t, dev, 8)
		e := open(t, dev, quiet, journaled(nv))
		v := create(t, e, 16*domain.MiB)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(put(v, data(40, 4, 5)))
		must(put(v, data(44, 4, 9)))
		must(e.nv.drain(background))
		must(put(v, &Record{Kind: kind, Block: 41, Count: 6}))
		must(e.Snapshot(background, Cut{Volume: v.ID(), Snapshot: snapID(1)}))
		must(put(v, data(43, 1, 99))) // the kid's own
		e.maint.ckpt.Lock()           // the maintenance does not run
		deleted := make(chan error, 1)
		go func() { deleted <- e.DeleteSnapshot(background, snapID(1)) }()
		var waits []*sweepJob
		for len(waits) == 0 {
			e.maint.sweeps.mu.Lock()
			waits, e.maint.sweeps.list = e.maint.sweeps.list, nil
			e.maint.sweeps.mu.Unlock()
			runtime.Gosched()
		}
		e.maint.ckpt.Unlock()
		for _, l := range e.lanes { // all its extents, and it is there still
			for _, ext := range l.extents(waits[0].br) {
				l.sweep(waits[0].br, ext)
			}
		}
		must(e.nv.drain(background))
		close(waits[0].done)
		must(<-deleted)
		e.Abandon()
		e = open(t, dev, quiet, journaled(nv))
		v = mustVolume(t, e)
		for b := range uint64(8) {
			want := uint64(0)
			switch b {
			case 0, 7:
				want = 5 + b/7*4
			case 3:
				want = 99
			}
			check(t, v, 40+b, want)
		}
		e.Abandon()
	}
}

// TestJournalAdmitsNoMore proves that what the journal takes never needs more than there is, though
// nobody computes what a record needs while there is plenty of room.
func TestJournalAdmitsNoMore(t *testing.T) {
	dev := newMem(t, 16<<20, 64<<10, 1)
	e := open(t, dev, quiet, journaled(newMemory(t, dev, 40)))
	defer e.Abandon()
	v := create(t, e, 64*domain.MiB)
	s, count := e.space, e.RecordBlocks()
	for block := uint64(0); ; block += uint64(count) {
		err := put(v, data(block, count, 1+block))
		index := s.charge(s.index.Load() + s.tables.Load())
		if taken := s.live.Load() + s.admitted.Load() + index; taken > s.usable.Load() {
			t.Fatalf("%d bytes are taken of %d at block %d", taken, s.usable.Load(), block)
		}
		if err != nil {
			kindOf(t, err, domain.NoSpace)
			break
		}
	}
	if e.space.ample(1) {
		t.Error("it is full, and there is plenty of room")
	}
}
