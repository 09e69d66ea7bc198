package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/hybrid"
	"weft/backends/mem"
	"weft/dataplane/cache"
	"weft/dataplane/compress"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

const mib = 1 << 20

// members makes memory for a pair that holds at least so many segments on either side.
func members(t testing.TB, flash, disk, seg int) (a, b *mem.Device) {
	t.Helper()
	up := func(n int) int64 { return int64(n+mib-1) / mib * mib }
	var list [2]*mem.Device
	for i, size := range []int64{
		up(segment.DataOff+flash*seg+segment.Guard+segment.Sector) + mib, up(disk*seg) + 2*mib,
	} {
		dev, err := mem.New(mem.Config{Size: size, Durability: backends.NeedsFlush, Rotational: i == 1})
		if err != nil {
			t.Fatal(err)
		}
		list[i] = dev
	}
	return list[0], list[1]
}

// joined makes a pair of two devices and formats it.
func joined(t testing.TB, flash, disk backends.Device, seg, lanes int) *hybrid.Device {
	t.Helper()
	if err := hybrid.Format(flash, disk); err != nil {
		t.Fatal(err)
	}
	dev, err := hybrid.Open(flash, disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: seg, Lanes: lanes,
	}); err != nil {
		t.Fatal(err)
	}
	return dev
}

// newPair makes a formatted pair in RAM.
func newPair(t testing.TB, flash, disk, seg, lanes int) *hybrid.Device {
	t.Helper()
	a, b := members(t, flash, disk, seg)
	return joined(t, a, b, seg, lanes)
}

// awake keeps writers into the flash of a pair from sleeping: what they wait is counted.
func awake(c *Config) {
	c.Clock = tier.System()
	c.Clock.Sleep = func(time.Duration) {}
}

// unsealed counts the flash's segments that take chunks of the log, or wait for their footer.
func (s *space) unsealed() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sg := range s.mu.segs {
		if sg.state == segOpen && !sg.cold && sg.stream == segment.StreamLog {
			n++
		}
	}
	return n
}

// sealed waits until every segment that was left has its footer. It is sealed by the writer that
// filled it, behind the acknowledgement, which a busy machine may keep from that for long.
func sealed(e *Engine) {
	for e.space.unsealed() > len(e.lanes) {
		runtime.Gosched()
	}
}

// cooled sends all that a pair's flash holds in sealed segments to its disk.
func cooled(t testing.TB, e *Engine) {
	t.Helper()
	sealed(e)
	e.maint.ckpt.Lock()
	e.maint.cold.debt = 1 << 40
	e.space.disk.fill.Store(tier.FlashFull)
	g := e.space.gauge()
	_, err := e.destageCold(g.flash, g.room)
	e.maint.cold.debt = 0
	e.maint.ckpt.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
}

// cleanedDisk lets the disk of a pair be cleaned as if it were short of segments.
func cleanedDisk(t testing.TB, e *Engine) {
	t.Helper()
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	g := e.space.gauge()
	g.free, g.dead = min(g.free, 1), 0
	if moved, err := e.cleanDisk(g); err != nil || !moved {
		t.Errorf("nothing was cleaned: %v", err)
	}
}

// onDisk tells whether a block stands on the disk of a pair.
func onDisk(t testing.TB, v *Volume, block uint64) bool {
	t.Helper()
	rd := &reader{}
	if err := rd.lookup(v, block, 1, nil); err != nil {
		t.Fatal(err)
	}
	return rd.loc[0].Kind() == segment.Flash && !v.e.nv.holds(rd.loc[0]) &&
		v.e.space.at(rd.loc[0].Off()).cold
}

// TestPairModel is TestModel on a pair whose flash is too small for what is written: with destaging
// to the disk, cleaning on both sides, blocks that come back, and restarts under way; without a
// journal and with one, in clear and encrypted (E1, E6, E12, E12c, E14). The check of the device at
// its end proves E19.
func TestPairModel(t *testing.T) {
	steps := 4000
	if raceOn || testing.Short() {
		steps = 500
	}
	cleaned, cooled := int64(0), int64(0)
	for seed := range uint64(4) {
		if raceOn && seed%3 == 0 {
			continue // the others are one with a journal and one without
		}
		dev := newPair(t, 32, 62, 128<<10, 1+int(seed%2)*2)
		m := &modelRun{t: t, dev: dev, rnd: newRand(seed), thin: 2}
		m.vols = map[domain.VolumeID]map[uint64][2]uint64{}
		m.tune = []func(*Config){awake, func(c *Config) { c.Reads = cache.New(64 << 10) }}
		if seed%2 == 1 {
			m.tune = append(m.tune, newPairs(t).into)
		}
		if seed >= 2 {
			m.nv = newMemory(t, dev, 14)
		}
		m.e = open(t, dev, append(m.tune, often, journaled(m.nv))...)
		m.create()
		m.create()
		var sum Stats
		for i := range steps {
			was := m.e
			m.step()
			if m.e != was {
				st := was.Stats()
				sum.CooledBytes += st.CooledBytes
				sum.PromotedBytes += st.PromotedBytes
				sum.DiskCleaned += st.DiskCleaned
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, i)
			}
			if i%500 == 499 {
				m.audit()
			}
		}
		m.audit()
		m.restart(true)
		m.audit()
		t.Logf("seed %d: %d KiB to the disk, %d back, %d segments cleaned there", seed,
			sum.CooledBytes>>10, sum.PromotedBytes>>10, sum.DiskCleaned)
		cleaned += sum.DiskCleaned
		cooled += sum.CooledBytes
		if sum.CooledBytes == 0 && steps > 1000 { // few steps may all fit, being compressed
			t.Errorf("seed %d: the disk was not used: %+v", seed, sum)
		}
		if err := m.e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if cooled == 0 {
		t.Error("the disk was never used")
	}
	if cleaned == 0 && steps > 1000 {
		t.Error("the disk was never cleaned")
	}
}

// joint records the histories of both members of a pair as one: its cuts are instants of both.
type joint struct {
	mu   sync.Mutex
	devs [2]*mem.Device
	cuts [][2]int // operations that each had taken, after each operation of either
}

// start forgets the past.
func (j *joint) start() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.devs {
		d.StartHistory()
	}
	j.cuts = [][2]int{{}}
}

// did does an operation of a member as one step.
func (j *joint) did(op func() error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := op()
	j.cuts = append(j.cuts, [2]int{j.devs[0].Ops(), j.devs[1].Ops()})
	return err
}

func (j *joint) now() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.cuts) - 1
}

// image makes what a cut may leave of a member. Its next operation was under way only if it is the
// next of both.
func (j *joint) image(cut, member int, choose mem.Chooser) *mem.Device {
	at := j.cuts[cut][member]
	next := cut+1 < len(j.cuts) && j.cuts[cut+1][member] > at
	return j.devs[member].CrashImage(at, func(i int, p mem.Pending) mem.Fate {
		if p.InFlight && !next {
			return mem.Fate{}
		}
		return choose(i, p)
	})
}

// side is a member whose operations are steps of the joint history.
type side struct {
	*mem.Device
	j *joint
}

func (h side) WriteAt(p []byte, off int64, fua bool) error {
	return h.j.did(func() error { return h.Device.WriteAt(p, off, fua) })
}

func (h side) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	return h.j.did(func() error { return h.Device.WriteVAt(bufs, off, fua) })
}

func (h side) Flush(ctx context.Context) error {
	return h.j.did(func() error { return h.Device.Flush(ctx) })
}

func (h side) Discard(ctx context.Context, off, n int64) error {
	return h.j.did(func() error { return h.Device.Discard(ctx, off, n) })
}

// TestPairCrash is TestCrashEnumeration on a pair: power cuts of both members at every write and
// flush of either, while what was written goes to the disk, is cleaned there, and overwritten; in
// clear, compressed, and encrypted. Then each image is gone on with: over all of them no key closes
// two blocks under one nonce (E1, E2, E3, E7, E12c).
func TestPairCrash(t *testing.T) { rounds(t, pairCrash) }

func pairCrash(c *crashes) {
	t, budget := c.t, images()/24
	for seed := range uint64(3) {
		if raceOn && seed == 1 {
			continue
		}
		p := newPairs(t)
		a, b := members(t, 30, 12, 64<<10)
		j := &joint{devs: [2]*mem.Device{a, b}}
		dev := joined(t, side{a, j}, side{b, j}, 64<<10, 1)
		s := &script{t: t, spots: spread(4, 24, 10), point: j.now}
		s.rnd = rand.New(rand.NewPCG(c.seed(seed), 8))
		s.tune = []func(*Config){awake}
		if seed == 2 {
			s.tune = append(s.tune, p.into)
		}
		s.e = open(t, dev, s.tune...)
		s.e.lendFrom = segment.BlockSize
		s.v = create(t, s.e, 16*domain.MiB)
		if seed == 0 { // then it takes too little room for the disk to be cleaned
			s.v.SetCompression(compress.Auto)
		}
		j.start()
		s.run(900, 8)
		st := s.e.Stats()
		s.e.Abandon()
		used := st.DiskCleaned > 0
		if seed == 0 {
			used = st.PackedBlocks > 0
		}
		c.need(st.CooledBytes > 0 && st.Checkpoints > 2 && used, "the disk was not used: %+v", st)
		s.enumeratePair(c, j, seed, budget)
		t.Logf("%d cuts, %d KiB went to the disk, %d segments cleaned there, %d pairs",
			len(j.cuts), st.CooledBytes>>10, st.DiskCleaned, p.count())
	}
}

// enumeratePair opens what cuts of both members of a pair may leave.
func (s *script) enumeratePair(c *crashes, j *joint, seed uint64, budget int) {
	c.need(s.refused == 0, "%d records were refused", s.refused)
	touched := s.touched()
	for cut := 0; cut < len(j.cuts) && !s.t.Failed(); cut += max(1, len(j.cuts)*2/budget) {
		chance := mem.RandomGarbage(seed<<32 + uint64(cut))
		for i, choose := range [][2]mem.Chooser{
			{chance, chance}, {mem.All, mem.None}, {mem.None, mem.All},
		} {
			if i > 0 && cut%4 != 0 {
				continue
			}
			one, other := j.image(cut, 0, choose[0]), j.image(cut, 1, choose[1])
			if !c.fresh(cut, one, other, nil) {
				continue
			}
			if err := s.judgePair(one, other, cut, touched); err != nil {
				s.t.Fatalf("cut %d of %d, choice %d: %v", cut, len(j.cuts), i, err)
			}
		}
	}
}

// judgePair is judge for a pair.
func (s *script) judgePair(a, b *mem.Device, cut int, touched []uint64) error {
	dev, err := hybrid.Open(a, b)
	if err != nil {
		return err
	}
	cfg := Config{
		Device: dev, Cluster: testCluster, Node: 1,
		Report: func(f Fact) { s.t.Errorf("cut %d: reported %+v", cut, f) },
	}
	for _, f := range s.tune {
		f(&cfg)
	}
	e, err := Open(background, cfg)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer e.Abandon()
	if err := s.compare(e, cut, touched); err != nil || cut%8 > 0 {
		return err
	}
	cooled(s.t, e)
	return s.compare(e, cut, touched)
}

// TestPairFull is E9 on a pair: it is filled until it says NoSpace, which is not before both parts
// are, and goes on at the brink; what is given back can be written again, over restarts. What is
// encrypted takes more room for its entries, on both parts; copies take none.
func TestPairFull(t *testing.T) {
	for _, tune := range []func(*Config){
		awake, func(c *Config) { awake(c); keyed(c) }, func(c *Config) { awake(c); caching(mib)(c) },
	} {
		fillPair(t, tune)
	}
}

func fillPair(t *testing.T, tune func(*Config)) {
	t.Helper()
	rounds := 8
	if raceOn || testing.Short() {
		rounds = 3
	}
	dev := newPair(t, 40, 40, 64<<10, 1)
	f := newFiller(t, open(t, dev, tune))
	f.create()
	f.create()
	f.create()
	for round := range rounds {
		for f.put() {
			if f.rnd.IntN(40) == 0 {
				f.unmap()
			}
		}
		st := f.e.Stats()
		if st.LiveBytes < st.UsableBytes*8/10 || st.LiveBytes < st.DiskBytes/2+mib {
			t.Fatalf("round %d: full at %d of %d", round, st.LiveBytes, st.UsableBytes)
		}
		f.overwrite(300)
		f.audit()
		f.unmap()
		f.unmap()
		switch round % 3 {
		case 1:
			if err := f.e.Close(); err != nil {
				t.Fatal(err)
			}
			f.e = open(t, dev, tune)
		case 2:
			f.e.Abandon()
			f.e = open(t, dev, tune)
		}
		f.audit()
	}
	for len(f.ids) > 0 {
		f.drop(0)
	}
	for range 2 {
		if err := f.e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		f.audit()
	}
	if st := f.e.Stats(); st.LiveBytes != 0 || st.FreeSegments < st.Segments-14 {
		t.Errorf("not given back: %+v", st)
	}
	if err := f.e.Close(); err != nil {
		t.Fatal(err)
	}
}

// random counts the writes to the disk of a pair that are random: those that neither go on where
// the write before ended nor begin a segment. begun lists the segments that they begin, in order.
// end is where the last write before these ended.
func random(e *Engine, end int64, writes []faulty.Access) (n int, begun []int64) {
	for _, w := range writes {
		at := w.Off - mib + int64(e.super.Boundary) - e.space.first
		if at%e.space.size == 0 {
			begun = append(begun, at/e.space.size)
		} else if w.Off != end {
			n++
		}
		end = w.Off + w.Len
	}
	return n, begun
}

// turning makes a pair in RAM whose disk is reckoned to turn.
func turning(t testing.TB, flash, disk, seg int) (*hybrid.Device, *faulty.Disk) {
	t.Helper()
	a, b := members(t, flash, disk, seg)
	d := faulty.NewDisk(b, faulty.SevenTwo())
	return joined(t, a, d, seg, 1), d
}

// TestDestageStreams proves that what goes to the disk reaches it at nine tenths of its rate and
// more, the flush included, on a model of a disk that takes 12 ms for each access that does not go
// on where the one before ended; in writes of megabytes, segment by segment upwards, none of them
// random.
func TestDestageStreams(t *testing.T) {
	const seg, record = 8 << 20, 256 // as a small device has
	dev, disk := turning(t, 30, 20, seg)
	e := open(t, dev, awake, quiet)
	defer e.Abandon()
	e.maint.quiet.Store(true)
	v := create(t, e, 256*domain.MiB)
	blocks := uint64(100 * mib / segment.BlockSize)
	for b := uint64(0); b < blocks; b += record {
		r := data(b, record, b)
		if r.Lent = true; put(v, r) != nil {
			t.Fatal("refused")
		}
	}
	disk.Writes()
	before, n := disk.Busy(), e.Stats().CooledBytes
	cooled(t, e)
	busy, writes := disk.Busy()-before, disk.Writes()
	n = e.Stats().CooledBytes - n
	rate := float64(n) / busy.Seconds() / float64(faulty.SevenTwo().Rate)
	odd, begun := random(e, -1, writes)
	t.Logf("%d MiB in %d writes, %v of the disk: %.2f of its rate, %d segments", n>>20, len(writes),
		busy, rate, len(begun))
	if n < 80*mib || rate < 0.9 || odd != 0 || !slices.IsSorted(begun) {
		t.Errorf("%d MiB at %.2f of the disk's rate, %d random writes, segments %v", n>>20, rate, odd,
			begun)
	}
	if mean := n / int64(len(writes)); mean < 4*mib {
		t.Errorf("%d KiB a write", mean>>10)
	}
	for b := uint64(0); b < blocks; b += record {
		check(t, v, b+b%record, b)
	}
}

// TestNoRandomWrites proves that no random write reaches the disk of a pair in any phase of its
// life: while hosts write at random, read, unmap and delete, and the pair destages, cleans both
// sides, takes checkpoints, scrubs, is stopped, killed and opened again (E19).
func TestNoRandomWrites(t *testing.T) {
	rounds := 6000
	if raceOn || testing.Short() {
		rounds = 2500
	}
	dev, disk := turning(t, 40, 24, 64<<10)
	e := open(t, dev, often, awake)
	v := create(t, e, 64*domain.MiB)
	rnd := newRand(11)
	cleaned, segments, end := int64(0), 0, int64(-1)
	look := func() {
		t.Helper()
		cleaned += e.Stats().DiskCleaned
		writes := disk.Writes()
		odd, begun := random(e, end, writes)
		segments += len(begun)
		if n := len(writes); n > 0 {
			end = writes[n-1].Off + writes[n-1].Len
		}
		if odd != 0 {
			t.Fatalf("%d random writes", odd)
		}
	}
	disk.Writes()
	for i := range rounds {
		block := rnd.Uint64N(400)
		if err := put(v, data(block, 1+rnd.IntN(4), uint64(i))); err != nil {
			t.Fatal(err)
		}
		switch {
		case i%997 == 996:
			if _, err := e.Scrub(background, ScrubOptions{Now: time.Now, After: time.After}); err != nil {
				t.Fatal(err)
			}
		case i%1500 == 1499:
			look()
			if i%3000 < 1500 {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			e.Abandon()
			e = open(t, dev, often, awake)
			v, _ = e.Volume(testVolume)
		}
	}
	look()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	look()
	if segments < 20 || cleaned == 0 {
		t.Errorf("the disk was not used: %d segments written, %d cleaned", segments, cleaned)
	}
	t.Logf("%d segments written on the disk, %d cleaned", segments, cleaned)
}

// TestColdGoesFirst proves that what was not touched for the longest goes to the disk first, and
// that a segment which is read in small pieces counts as touched, one that is read in a stream does
// not.
func TestColdGoesFirst(t *testing.T) {
	const each, record = 320, 4
	for _, stream := range []bool{false, true} {
		dev := newPair(t, 100, 40, 64<<10, 1)
		e := open(t, dev, awake, quiet, func(c *Config) { c.Reads = cache.New(64 << 10) })
		e.maint.quiet.Store(true)
		v := create(t, e, 16*domain.MiB)
		for b := uint64(0); b < 2*each; b += record {
			if err := put(v, data(b, record, b)); err != nil {
				t.Fatal(err)
			}
		}
		for b := range uint64(each) { // the older half
			if !stream {
				b = b * 7 % each
			}
			check(t, v, b, b/record*record)
		}
		e.maint.ckpt.Lock()
		n, err := e.destageCold(each/2*segment.BlockSize, 1<<40)
		e.maint.ckpt.Unlock()
		if err != nil || n < each/2*segment.BlockSize {
			t.Fatalf("%d bytes went: %v", n, err)
		}
		count := [2]int{}
		for b := range uint64(2 * each) {
			if onDisk(t, v, b) {
				count[b/each]++
			}
		}
		older, newer := count[0], count[1]
		if stream && (older < each/3 || newer > each/8) || !stream && (newer < each/3 || older > each/8) {
			t.Errorf("read in a stream %v: %d blocks of the older half went, %d of the newer", stream, older,
				newer)
		}
		for b := range uint64(2 * each) {
			check(t, v, b, b/record*record)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestComesBack proves that a block on the disk which is read a second time comes back to the
// flash, where that has no free segments for copies, it alone, and reads the same before and after
// a restart; and that it stays where the flash is full.
func TestComesBack(t *testing.T) {
	dev := newPair(t, 60, 40, 64<<10, 1)
	e := open(t, dev, awake, quiet, func(c *Config) { c.Reads = cache.New(1 << 20) })
	e.maint.quiet.Store(true)
	e.copies.none = true
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(300) {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	cooled(t, e)
	back := func() bool {
		t.Helper()
		e.maint.ckpt.Lock()
		defer e.maint.ckpt.Unlock()
		moved, err := e.bringBack()
		if err != nil {
			t.Fatal(err)
		}
		return moved
	}
	spots := []uint64{5, 6, 77, 200}
	for _, b := range spots {
		check(t, v, b, b+1)
	}
	if back() {
		t.Error("a block came back at its first read")
	}
	e.space.disk.fill.Store(tier.FlashFull + 1)
	for _, b := range spots[:2] {
		check(t, v, b, b+1)
	}
	if back() {
		t.Error("a block came back to a flash that is full")
	}
	e.space.disk.fill.Store(0)
	for _, b := range spots[2:] {
		check(t, v, b, b+1)
	}
	if !back() || e.Stats().PromotedBytes != 2*segment.BlockSize {
		t.Errorf("%d bytes came back", e.Stats().PromotedBytes)
	}
	look := func() {
		t.Helper()
		for b := range uint64(250) {
			check(t, v, b, b+1)
			if flash := b == 77 || b == 200; onDisk(t, v, b) == flash {
				t.Errorf("block %d: on the disk %v", b, !flash)
			}
		}
	}
	look()
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev)
	v, _ = e.Volume(testVolume)
	look()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSlowsBeforeFull proves that writers into a pair are kept back in small steps once the flash
// is fuller than it is to be, and not before.
func TestSlowsBeforeFull(t *testing.T) {
	var slept, longest atomic.Int64
	clock := tier.Clock{Now: func() time.Duration { return 0 }, Sleep: func(d time.Duration) {
		slept.Add(int64(d))
		longest.Store(max(longest.Load(), int64(d)))
	}}
	dev := newPair(t, 40, 20, 4<<20, 1)
	e := open(t, dev, quiet, func(c *Config) { c.Clock = clock })
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	for _, c := range []struct {
		fill  int32
		slows bool
	}{{tier.FlashFull, false}, {tier.FlashFull + 100, true}, {2 * tier.FillWhole, true}} {
		e.space.disk.fill.Store(c.fill)
		slept.Store(0)
		before := e.Stats().FlashDelayed
		if err := put(v, data(0, 128, 1)); err != nil {
			t.Fatal(err)
		}
		if slept.Load() > 0 != c.slows || e.Stats().FlashDelayed > before != c.slows {
			t.Errorf("fill %d: slept %v", c.fill, time.Duration(slept.Load()))
		}
	}
	if d := time.Duration(longest.Load()); d > tier.DelayMax {
		t.Errorf("one wait of %v", d)
	}
}

// TestPairIsRefused proves that a store made for a pair is not opened on the flash alone, nor one
// of a device alone on a pair, nor one with another boundary; and that a disk of a few segments is
// none.
func TestPairIsRefused(t *testing.T) {
	flash, disk := members(t, 40, 20, 64<<10)
	dev := joined(t, flash, disk, 64<<10, 1)
	cfg := Config{Device: flash, Cluster: testCluster}
	_, err := Open(background, cfg)
	kindOf(t, err, domain.Invalid)
	_, err = fsck.Check(flash, flash.Geometry().Size, fsck.Options{})
	kindOf(t, err, domain.Invalid)
	_, err = fsck.Check(dev, dev.Geometry().Size, fsck.Options{Boundary: dev.Geometry().Boundary})
	if err != nil {
		t.Errorf("the pair: %v", err)
	}
	a, b := members(t, 40, 20, 64<<10)
	alone := joined(t, a, b, 64<<10, 1)
	sb, err := readSuper(alone)
	if err != nil {
		t.Fatal(err)
	}
	sb.Boundary, sb.Incompat, sb.Generation = 0, segment.IncompatBase, 9
	p := backends.AlignedBuffer(segment.Sector)
	sb.Encode(p)
	if err := alone.WriteAt(p, segment.Guard, true); err != nil {
		t.Fatal(err)
	}
	_, err = Open(background, Config{Device: alone, Cluster: testCluster})
	kindOf(t, err, domain.Invalid)
	a, b = members(t, 40, 4, 512<<10)
	if err := hybrid.Format(a, b); err != nil {
		t.Fatal(err)
	}
	short, err := hybrid.Open(a, b)
	if err != nil {
		t.Fatal(err)
	}
	err = Format(background, short, FormatOptions{Device: testDevice, SegmentSize: 512 << 10})
	if kindOf(t, err, domain.Invalid); !strings.Contains(err.Error(), "the disk is too small") {
		t.Error(err)
	}
}

// TestOpenLeavesDiskAlone proves that a pair is opened without a read of its disk, after a stop and
// after a crash, also across the boundary of segments that do not divide it, and that what stands
// there is moved by the cleaner all the same.
func TestOpenLeavesDiskAlone(t *testing.T) {
	const seg = 192 << 10
	flash, disk := members(t, 40, 20, seg)
	dev := joined(t, flash, disk, seg, 1)
	e := open(t, dev, awake, quiet)
	edge := int64(e.Boundary()) - e.space.first
	if sg := e.space.mu.segs[edge/seg]; edge%seg == 0 || sg.state != segReserved || sg.cold {
		t.Fatalf("the segment across the boundary: %+v", sg.state)
	}
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(600) {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	cooled(t, e)
	for round := range 3 {
		if round%2 == 0 {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		e.Abandon()
		before := disk.Stats().Reads
		e = open(t, dev, awake, quiet)
		if n := disk.Stats().Reads - before; n != 0 {
			t.Errorf("round %d: %d reads of the disk", round, n)
		}
		v, _ = e.Volume(testVolume)
		for b := range uint64(200) {
			at := b*3 + uint64(round)%2
			if err := put(v, data(at, 1, at+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cleanedDisk(t, e)
	for b := range uint64(598) {
		check(t, v, b, b+1)
	}
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDiskRefuses proves that a few writes which the disk of a pair refuses are told and tried
// again, with the engine in service; and that so many in a row end it.
func TestDiskRefuses(t *testing.T) {
	flash, disk := members(t, 40, 600, 64<<10)
	bad := faulty.New(disk, nil)
	dev := joined(t, flash, bad, 64<<10, 1)
	var told atomic.Int64
	e := open(t, dev, awake, quiet, func(c *Config) {
		c.Report = func(f Fact) {
			if f.What == "write-error" {
				told.Add(1)
			}
		}
	})
	e.maint.quiet.Store(true) // nothing goes down but by this test
	v := create(t, e, 16*domain.MiB)
	write := func() {
		for b := range uint64(200) {
			if err := put(v, data(b, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	cool := func() error {
		e.maint.ckpt.Lock()
		defer e.maint.ckpt.Unlock()
		_, err := e.destageCold(1<<20, 1<<40)
		return e.refused(err)
	}
	whole := func(v *Volume) {
		t.Helper()
		for b := range uint64(200) {
			check(t, v, b, b+1)
		}
	}
	for round := range int64(2) { // what went well in between counts
		bad.Add(faulty.Rule{On: faulty.Write, Err: backends.ErrMedia, Times: refusedMax - 1})
		for range refusedMax - 1 {
			if err := cool(); err != nil {
				t.Fatal(err)
			}
			whole(v)
		}
		if n := told.Load(); n != (round+1)*(refusedMax-1) {
			t.Fatalf("told %d times", n)
		}
		if err := cool(); err != nil || !onDisk(t, v, 0) {
			t.Fatalf("nothing went to the disk that takes it again: %v", err)
		}
		write()
	}
	bad.Add(faulty.Rule{On: faulty.Write, Err: backends.ErrMedia})
	for range refusedMax - 1 {
		if err := cool(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cool(); !errors.Is(err, backends.ErrMedia) {
		t.Fatalf("the disk is gone: %v", err)
	}
	whole(v)
	e.Abandon()
	bad.Heal()
	e = open(t, dev, awake)
	v, _ = e.Volume(testVolume)
	whole(v)
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFails proves that a write which the disk refuses costs nothing that was acknowledged: the
// engine goes out of service, and the next start has it all.
func TestDiskFails(t *testing.T) {
	flash, disk := members(t, 40, 20, 64<<10)
	bad := faulty.New(disk, nil)
	dev := joined(t, flash, bad, 64<<10, 1)
	e := open(t, dev, awake, quiet)
	e.maint.quiet.Store(true)
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(200) {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	bad.Add(faulty.Rule{On: faulty.Write, Err: backends.ErrMedia})
	e.maint.ckpt.Lock()
	_, err := e.destageCold(1<<20, 1<<40)
	e.maint.ckpt.Unlock()
	if !errors.Is(err, backends.ErrMedia) {
		t.Fatalf("%v", err)
	}
	for b := range uint64(200) {
		check(t, v, b, b+1)
	}
	e.Abandon()
	bad.Heal()
	e = open(t, dev, awake)
	v, _ = e.Volume(testVolume)
	got := backends.AlignedBuffer(segment.BlockSize)
	for b := range uint64(200) {
		if err := v.Read(b, 1, got); err != nil || !bytes.Equal(got, fill(1, b+1)) {
			t.Fatalf("block %d: %v", b, err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
