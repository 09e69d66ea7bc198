package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/cache"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
	"weft/domain"
)

// caching gives an engine a read cache of its own.
func caching(bytes int64) func(*Config) {
	return func(c *Config) { c.Reads = cache.New(bytes) }
}

// copyNow lets the maintenance write what was gathered.
func copyNow(e *Engine) {
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	e.keepCopies()
}

// allDown sends blocks to the disk of a pair. The segment of the last may be sealed a moment later.
func allDown(t testing.TB, e *Engine, v *Volume, blocks uint64) {
	t.Helper()
	down := func() bool {
		for b := range blocks {
			if !onDisk(t, v, b) {
				return false
			}
		}
		return true
	}
	for n := 0; !down(); n++ {
		if n == 100 {
			t.Fatal("the blocks do not come to the disk")
		}
		if err := put(v, data(2000+uint64(n)%20, 1, 1)); err != nil {
			t.Fatal(err)
		}
		cooled(t, e)
	}
}

// copyAll reads so many blocks b, that spell b+1, until they have copies, and makes memory forget
// them.
func copyAll(t testing.TB, e *Engine, v *Volume, blocks uint64) {
	t.Helper()
	e.cfg.Reads = cache.New(4 << 20)
	for range 20 {
		e.cached = e.cfg.Reads.Attach() // another hash: what it saw before is kept by chance
		for n := range 2 * blocks {
			if b := n * 7 % blocks; !hasCopy(e, v, b) { // no stream
				check(t, v, b, b+1)
			}
		}
		if copyNow(e); copiesOf(e, v, blocks) == blocks {
			break
		}
	}
	if n := copiesOf(e, v, blocks); n != blocks {
		t.Fatalf("%d blocks of %d have copies", n, blocks)
	}
	e.cfg.Reads = cache.New(64 << 10)
	e.cached = e.cfg.Reads.Attach()
	copiesAreFree(t, e)
}

// copiesOf counts the blocks that have copies.
func copiesOf(e *Engine, v *Volume, blocks uint64) (n uint64) {
	for b := range blocks {
		if hasCopy(e, v, b) {
			n++
		}
	}
	return n
}

func hasCopy(e *Engine, v *Volume, block uint64) bool {
	loc := locOf(v, block)
	e.copies.mu.Lock()
	defer e.copies.mu.Unlock()
	k, ok := e.copies.mu.of[loc]
	return ok && !k.in.gone.Load()
}

// copiesAreFree proves that segments with copies are free ones, those that are given out last, and
// that no segment but those is found by a read.
func copiesAreFree(t testing.TB, e *Engine) int {
	t.Helper()
	s := e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.disk.kept
	tail := s.mu.free[len(s.mu.free)-len(kept):]
	for i, in := range kept {
		if in.gone.Load() || tail[i] != in.id || s.mu.segs[in.id].state != segFree {
			t.Errorf("segment %d with copies is not free: %v of %v", in.id, tail, s.mu.free)
		}
	}
	e.copies.mu.Lock()
	defer e.copies.mu.Unlock()
	for loc, k := range e.copies.mu.of {
		lent := s.mu.segs[k.in.id].state == segFree && !slices.Contains(s.mu.free, k.in.id)
		if !k.in.gone.Load() && !slices.Contains(kept, k.in) && !lent { // lent: copies are written to it
			t.Errorf("block %x: its copy stands in segment %d, that is in use", loc, k.in.id)
		}
	}
	return len(kept)
}

// TestCopies proves that a block on the disk of a pair which was read twice is read from the flash
// from then on, in clear, compressed, and encrypted, alone and with its neighbours; that what is
// written over it is read instead, also when that has come to the disk; that a large read goes to
// the disk; and that a restart forgets all copies.
func TestCopies(t *testing.T) {
	const blocks = 150
	for n, tune := range [][]func(*Config){{awake}, {awake}, {awake, keyed}} {
		flash, disk := members(t, 60, 40, 64<<10)
		dev := joined(t, flash, disk, 64<<10, 1)
		e := open(t, dev, append(tune, quiet, caching(1<<20))...)
		e.maint.quiet.Store(true)
		v := create(t, e, 16*domain.MiB)
		if n > 0 {
			v.SetCompression(compress.OnlyS2)
		}
		for b := range uint64(blocks) {
			if err := put(v, data(b, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
		for b := range uint64(20) {
			if err := put(v, data(2000+b, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
		allDown(t, e, v, blocks)
		copyAll(t, e, v, blocks)
		reads, live := disk.Stats().Reads, e.Stats().LiveBytes
		got := backends.AlignedBuffer(cachedBlocks * segment.BlockSize)
		for b := range uint64(blocks - cachedBlocks) {
			b = b * 7 % (blocks - cachedBlocks)
			check(t, v, b, b+1)
			if err := v.Read(b, cachedBlocks, got); err != nil {
				t.Fatal(err)
			}
			for i := range uint64(cachedBlocks) {
				if !bytes.Equal(got[i*segment.BlockSize:][:segment.BlockSize], fill(1, b+i+1)) {
					t.Fatalf("block %d with its neighbours", b+i)
				}
			}
		}
		st := e.Stats()
		if n := disk.Stats().Reads - reads; n != 0 || st.CopyReads < blocks || st.CopiedBytes == 0 {
			t.Errorf("%d reads of the disk, %d of copies, %d bytes copied", n, st.CopyReads, st.CopiedBytes)
		}
		if st.LiveBytes != live || st.PromotedBytes != 0 {
			t.Error("copies are counted")
		}
		large := backends.AlignedBuffer(100 * segment.BlockSize)
		if err := v.Read(0, 100, large); err != nil || disk.Stats().Reads == reads {
			t.Errorf("a large read is not of the disk: %v", err)
		}
		recount(t, e)
		for b := range uint64(10) {
			if err := put(v, data(b, 1, 900+b)); err != nil {
				t.Fatal(err)
			}
			check(t, v, b, 900+b)
		}
		for b := range uint64(40) {
			if err := put(v, data(2100+b, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
		cooled(t, e)
		for b := range uint64(10) {
			check(t, v, b, 900+b)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, dev, append(tune, quiet, caching(1<<20))...)
		v = mustVolume(t, e)
		for b := range uint64(blocks - 10) {
			check(t, v, b+10, b+11)
		}
		if e.Stats().CopyReads > 0 {
			t.Error("copies outlived a restart")
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// copiesOn makes a pair over a flash, with an engine whose blocks b of so many spell b+1, stand on
// the disk and have copies.
func copiesOn(t testing.TB, flash, disk backends.Device, blocks uint64, tune ...func(*Config)) (
	*Engine, *Volume,
) {
	t.Helper()
	e := open(t, joined(t, flash, disk, 64<<10, 1), append(tune, awake, quiet, caching(1<<20))...)
	e.maint.quiet.Store(true)
	v := create(t, e, 64*domain.MiB)
	for b := range blocks {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	for b := range uint64(20) {
		if err := put(v, data(2000+b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	allDown(t, e, v, blocks)
	copyAll(t, e, v, blocks)
	return e, v
}

// TestCopyIsWrong proves that copies which do not match, cannot be read, or are of another life of
// the disk's segment cost nothing but a read of the disk, and are forgotten.
func TestCopyIsWrong(t *testing.T) {
	inner, disk := members(t, 60, 40, 64<<10)
	flash, told := faulty.New(inner, nil), &facts{}
	e, v := copiesOn(t, flash, disk, 60, told.into)
	defer e.Abandon()
	c := &e.copies
	from := func(b uint64) (*mem.Device, copyOfBlock) { return disk, c.mu.of[locOf(v, b)] }
	reads := func(b uint64, want int64) {
		t.Helper()
		disk, _ := from(b)
		before := disk.Stats().Reads
		check(t, v, b, b+1)
		if n := disk.Stats().Reads - before; n != want {
			t.Errorf("block %d: %d reads of the disk, not %d", b, n, want)
		}
	}
	_, k := from(7)
	clearAt(t, inner, k.in.base+int64(k.off), segment.Sector)
	reads(7, 1)
	reads(6, 0)
	flash.Add(faulty.Rule{On: faulty.Read, Err: backends.ErrMedia, Times: 1})
	reads(8, 1)
	_, k = from(9)
	k.life = &life{}
	c.mu.of[locOf(v, 9)] = k
	reads(9, 1)
	if _, ok := c.mu.of[locOf(v, 7)]; ok {
		t.Error("a copy that does not match is kept")
	}
	_, k = from(11)
	k.in.gone.Store(true)
	before := inner.Stats().Reads
	if reads(11, 1); inner.Stats().Reads != before {
		t.Error("a segment is read that was given to others")
	}
	k.in.gone.Store(false)
	rd := &reader{}
	if err := rd.lookup(v, 10, 1, nil); err != nil {
		t.Fatal(err)
	}
	if rd.lookCopies(e); len(rd.where) != 1 {
		t.Error("block 10 has no copy")
	}
	c.turn.Add(1) // a segment of the disk was opened behind the look-up
	if rd.lookCopies(e); len(rd.where) != 0 {
		t.Error("a copy is used for a block that was looked up before a segment was opened")
	}
	if !e.gather(locOf(v, 7), fill(1, 8), rd.turn) || len(c.mu.list) != 0 {
		t.Error("a block is copied that was looked up before a segment was opened")
	}
	if len(told.list) > 0 {
		t.Errorf("told %+v", told.list)
	}
}

// watchedFlash looks at what is written to it.
type watchedFlash struct {
	*mem.Device
	look atomic.Pointer[func(off, n int64)]
}

func (d *watchedFlash) WriteAt(p []byte, off int64, fua bool) error {
	if look := d.look.Load(); look != nil {
		(*look)(off, int64(len(p)))
	}
	return d.Device.WriteAt(p, off, fua)
}

// TestCopiesGiveWay proves that nobody else can be given a segment while copies are written to it,
// and that these leave what a start reads of it; that segments with copies are given out as free
// ones, after those without, the oldest first; and that there are none once free segments are few.
func TestCopiesGiveWay(t *testing.T) {
	inner, disk := members(t, 60, 40, 64<<10)
	flash := &watchedFlash{Device: inner}
	e, v := copiesOn(t, flash, disk, 100)
	defer e.Abandon()
	s, wrote := e.space, 0
	look := func(off, n int64) {
		id := uint32((off - s.first) / s.size)
		s.mu.Lock()
		defer s.mu.Unlock()
		if slices.Contains(s.mu.free, id) {
			t.Errorf("segment %d may be given to others while copies are written to it", id)
		}
		if at := off - s.off(id); at < copiesFirst || at+n > s.size {
			t.Errorf("copies at %d of a segment", at)
		}
		wrote++
	}
	e.maint.ckpt.Lock()
	e.copies.last = nil // into another segment
	e.copies.mu.Lock()
	e.copies.mu.of = nil
	e.copies.mu.Unlock()
	e.maint.ckpt.Unlock()
	flash.look.Store(&look)
	copyAll(t, e, v, 100)
	flash.look.Store(nil)
	if wrote < 2 {
		t.Fatalf("%d writes of copies", wrote)
	}
	was := copiesAreFree(t, e)
	if was < 3 {
		t.Fatalf("%d segments with copies: the test tests too little", was)
	}
	s.mu.Lock()
	oldest := slices.Clone(s.disk.kept)
	s.mu.Unlock()
	all := was
	for n := uint64(0); s.freeCount() > s.reserve(segment.StreamLog)+1; n++ {
		before := s.freeCount() - was
		if err := put(v, data(4000+n%3000, 1, n+1)); err != nil {
			t.Fatal(err)
		}
		now := copiesAreFree(t, e)
		if now < was && before > 0 {
			t.Fatalf("copies went while %d segments without were free", before)
		}
		if now < was && !oldest[len(oldest)-was].gone.Load() {
			t.Fatal("not the oldest went")
		}
		was = now
	}
	if was == all || was > s.freeCount() {
		t.Errorf("%d segments of %d with copies are left, %d free", was, all, s.freeCount())
	}
	for b := range uint64(100) {
		check(t, v, b, b+1)
	}
	if e.gather(locOf(v, 1), fill(1, 2), e.copies.turn.Load()) || s.borrow(nil) != nil {
		t.Errorf("copies are made with %d segments free", s.freeCount())
	}
	if s.disk.share.Load() == 0 {
		t.Error("nothing is cleaned for copies")
	}
	recount(t, e)
}

// TestCopiesCrash is TestPairCrash with copies, which change nothing of what a start finds.
func TestCopiesCrash(t *testing.T) { rounds(t, copiesCrash) }

func copiesCrash(c *crashes) {
	t := c.t
	a, b := members(t, 30, 12, 64<<10)
	j := &joint{devs: [2]*mem.Device{a, b}}
	dev := joined(t, side{a, j}, side{b, j}, 64<<10, 1)
	s := &script{t: t, spots: spread(4, 24, 10), point: j.now}
	s.rnd = rand.New(rand.NewPCG(c.seed(5), 8))
	s.tune = []func(*Config){awake, keyed, caching(512 << 10)}
	s.e = open(t, dev, s.tune...)
	s.v = create(t, s.e, 16*domain.MiB)
	j.start()
	got := backends.AlignedBuffer(segment.BlockSize)
	for range 60 {
		s.run(12, 8)
		for range 3 {
			for _, b := range s.spots[:200] {
				if err := s.v.Read(b, 1, got); err != nil {
					t.Fatal(err)
				}
			}
			copyNow(s.e)
		}
	}
	st := s.e.Stats()
	s.e.Abandon()
	c.need(st.CooledBytes > 0 && st.Checkpoints > 2 && st.CopiedBytes >= 64<<10 && st.CopyReads > 0,
		"the disk was not used: %+v", st)
	s.enumeratePair(c, j, 5, images()/24)
	t.Logf("%d cuts, %d KiB to the disk, %d KiB copied, %d reads of copies",
		len(j.cuts), st.CooledBytes>>10, st.CopiedBytes>>10, st.CopyReads)
}

// readMostly is what a host and its pair did: reads of a set of blocks that stand on the disk, are
// more than memory keeps and less than its flash, and slowly become others; and writes elsewhere.
type readMostly struct {
	reads, writes int64
	busy          float64 // seconds of the disk
	wrote         int64   // bytes to the disk
	st            Stats
}

func (r readMostly) String() string {
	return fmt.Sprintf("%d reads, %d writes: %.1f s of the disk, %d KiB to it for %d KiB written by "+
		"the host, %d KiB came back, %d KiB copied, %d reads of copies", r.reads, r.writes, r.busy,
		r.wrote>>10, r.writes*segment.BlockSize>>10, r.st.PromotedBytes>>10,
		r.st.CopiedBytes>>10, r.st.CopyReads)
}

// runReadMostly lets it run on a disk that is reckoned to turn, with copies or without: a set of so
// many MiB, of which a block is exchanged every few operations.
func runReadMostly(t testing.TB, none bool, size, drift, rounds int) readMostly {
	t.Helper()
	dev, disk := turning(t, 100, 400, 1<<20)
	e := open(t, dev, awake, caching(2*mib), func(c *Config) { c.CheckpointBytes = 16 * mib })
	defer e.Abandon()
	e.copies.none = none
	v := create(t, e, 512*domain.MiB)
	const cold = 160 * mib / segment.BlockSize
	for b := uint64(0); b < cold; b += 64 {
		if err := put(v, data(b, 64, 2*b+2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.maintain(); err != nil {
		t.Fatal(err)
	}
	rnd, hot := newRand(3), []uint64(nil)
	for b := uint64(0); b < cold; b += 1 + rnd.Uint64N(4) {
		if onDisk(t, v, b) {
			hot = append(hot, b)
		}
	}
	rnd.Shuffle(len(hot), func(i, j int) { hot[i], hot[j] = hot[j], hot[i] })
	n := size * mib / segment.BlockSize
	hot, more := hot[:n:n], hot[n:]
	var r readMostly
	disk.Writes()
	busy := disk.Busy()
	got := backends.AlignedBuffer(segment.BlockSize)
	for i := range rounds {
		if i%256 == 255 { // the maintenance is as far whoever else uses the processors
			copyNow(e)
			if err := e.maintain(); err != nil {
				t.Fatal(err)
			}
		}
		if i%5 == 4 {
			if err := put(v, data(cold+rnd.Uint64N(cold), 1, uint64(i))); err != nil {
				t.Fatal(err)
			}
			r.writes++
			continue
		}
		if i%drift == 0 && len(more) > 0 {
			hot[rnd.IntN(n)], more = more[0], more[1:]
		}
		b := hot[rnd.IntN(n)]
		if err := v.Read(b, 1, got); err != nil {
			t.Fatal(err)
		}
		if !isNumber(got, 2*(b/64*64)+2) {
			t.Fatalf("block %d is another's", b)
		}
		r.reads++
	}
	for _, w := range disk.Writes() {
		r.wrote += w.Len
	}
	r.busy, r.st = (disk.Busy() - busy).Seconds(), e.Stats()
	copiesAreFree(t, e)
	return r
}

// TestCopiesSaveTheDisk compares, on the model of a disk that turns, blocks that come back to the
// flash as the only copy, are read from the disk for that, and go down again, with those that are
// copied as they are read. -v tells of sets of other sizes, too.
func TestCopiesSaveTheDisk(t *testing.T) {
	rounds, sets := 120000, [][2]int{{8, 10}}
	if raceOn || testing.Short() {
		rounds = 10000
	} else if testing.Verbose() {
		sets = append(sets, [2]int{8, 1 << 30}, [2]int{16, 1 << 30}, [2]int{16, 10}, [2]int{24, 20})
	}
	for i, x := range sets {
		var back, kept readMostly // sums: what moves meanwhile differs from run to run
		for range 3 {
			b := runReadMostly(t, true, x[0], x[1], rounds)
			k := runReadMostly(t, false, x[0], x[1], rounds)
			t.Logf("%d MiB, one in %d exchanged: %.2f of the disk's time, %.2f of the bytes to it\n%v\n%v",
				x[0], x[1], k.busy/b.busy, float64(k.wrote)/float64(b.wrote), b, k)
			back.busy, kept.busy = back.busy+b.busy, kept.busy+k.busy
			back.wrote, kept.wrote = back.wrote+b.wrote, kept.wrote+k.wrote
			if rounds < 120000 {
				break
			}
		}
		if i == 0 && rounds == 120000 && (kept.busy > 0.8*back.busy || kept.wrote > back.wrote) {
			t.Error("copies do not save the disk anything")
		}
	}
}
