package engine

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
	"weft/domain"
)

// The crash tests enumerate power cuts (E1, E2, E2b, E3). A script writes to a device that records
// its history; for every point of the history, images of what a cut there may leave behind are
// opened and compared with the model: the state must be that after the first k records of the
// script, for one k that is at least the number acknowledged before the cut and at most the number
// begun. With one lane that is the whole promise: nothing acknowledged is missing, nothing is torn,
// nothing comes in another order. With more it holds for the records of each lane.

// scripted is one record of a crash script.
type scripted struct {
	kind  segment.Kind
	block uint64
	count int
	n     uint64
	begun int   // point of the history when it was appended
	acked int   // and when its outcome arrived
	on    []int // indices into touched

	refused bool // for want of space: then nothing of it is ever there
}

// script writes records to a recording device, several in flight at a time.
type script struct {
	t     *testing.T
	dev   *mem.Device
	nv    *mem.Memory // nil: without a journal
	e     *Engine
	v     *Volume
	mu    sync.Mutex
	recs  []*scripted
	spots []uint64 // the blocks it writes to
	rnd   *rand.Rand
	tune  []func(*Config)
	point func() int // overrules mark

	refused int // records
}

// crashDevice is small, so that its segments are reused and cleaned within a short script.
func crashDevice(t *testing.T, segments, lanes int) *mem.Device {
	t.Helper()
	dev, err := mem.New(mem.Config{
		Size:       segment.DataOff + int64(segments)*(64<<10) + segment.Guard + segment.Sector,
		Durability: backends.NeedsFlush,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 64 << 10, Lanes: lanes,
	}); err != nil {
		t.Fatal(err)
	}
	return dev
}

// run appends records in rounds of up to width in flight.
func (s *script) run(rounds, width int) {
	for range rounds {
		var wg sync.WaitGroup
		for range 1 + s.rnd.IntN(width) {
			sc := s.next()
			s.mu.Lock()
			s.recs = append(s.recs, sc)
			sc.n = uint64(len(s.recs))
			sc.begun, sc.acked = s.mark(), 1<<62
			s.mu.Unlock()
			r := &Record{Kind: sc.kind, Block: sc.block, Count: sc.count}
			if sc.kind == segment.KindData {
				r.Data, r.Lent = fill(sc.count, sc.n), true
			}
			wg.Add(1)
			r.To = acker(func(err error) {
				defer wg.Done()
				for i := range r.Data { // it was lent, and is ours again
					r.Data[i] = 0xAA
				}
				full := domain.IsKind(err, domain.NoSpace)
				if err != nil && !full {
					s.t.Errorf("record %d: %v", sc.n, err)
				}
				s.mu.Lock()
				if full {
					sc.refused = true
					s.refused++
				}
				sc.acked = s.mark()
				s.mu.Unlock()
			})
			s.v.Append(r)
		}
		wg.Wait()
	}
}

// mark gives the present point of the history that acknowledgements hang on: the journal's, where
// there is one.
func (s *script) mark() int {
	if s.point != nil {
		return s.point()
	}
	if s.nv != nil {
		return s.nv.Mark()
	}
	return s.dev.Mark()
}

type acker func(error)

func (a acker) Appended(_ *Record, err error) { a(err) }

// next draws the next record: mostly short writes, some long ones, zeros and unmaps.
func (s *script) next() *scripted {
	sc := &scripted{kind: segment.KindData, count: 1}
	sc.block = s.spots[s.rnd.IntN(len(s.spots))]
	switch d := s.rnd.IntN(20); {
	case d < 3:
		sc.count = 2 + s.rnd.IntN(3)
	case d == 3:
		sc.kind, sc.count = segment.KindZero, 1+s.rnd.IntN(4)
	case d == 4:
		sc.kind, sc.count = segment.KindUnmap, 1+s.rnd.IntN(8)
	case d == 5:
		sc.kind, sc.block, sc.count = segment.KindUnmap, sc.block/1024*1024, 1024
	}
	return sc
}

// spread gives blocks in a few extents, in groups so that records overlap.
func spread(extents, groups, width int) []uint64 {
	var spots []uint64
	for x := range extents {
		for g := range groups {
			for i := range width {
				spots = append(spots, uint64(x*1024+g*16+i))
			}
		}
	}
	return spots
}

// state is what the blocks of a script hold, in the order of touched: a number, zero for holes.
type state []uint64

func (st state) apply(sc *scripted) {
	n := sc.n
	if sc.kind != segment.KindData {
		n = 0
	}
	for _, i := range sc.on {
		st[i] = n
	}
}

// touched lists every block that some record of data wrote, and tells each record which of them it
// is about.
func (s *script) touched() []uint64 {
	var list []uint64
	for _, sc := range s.recs {
		if sc.kind == segment.KindData {
			for i := range sc.count {
				list = append(list, sc.block+uint64(i))
			}
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	for _, sc := range s.recs {
		sc.on = nil
		i, _ := slices.BinarySearch(list, sc.block)
		for ; i < len(list) && list[i] < sc.block+uint64(sc.count); i++ {
			sc.on = append(sc.on, i)
		}
	}
	return list
}

// judge opens an image and compares it with the model; cut is the point of the history.
func (s *script) judge(img *mem.Device, nv *mem.Memory, cut int, touched []uint64) error {
	cfg := Config{
		Device: img, Cluster: testCluster, Node: 1,
		Report: func(f Fact) { s.t.Errorf("cut %d: reported %+v", cut, f) },
	}
	journaled(nv)(&cfg)
	for _, f := range s.tune {
		f(&cfg)
	}
	e, err := Open(background, cfg)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer e.Abandon()
	return s.compare(e, cut, touched)
}

func (s *script) compare(e *Engine, cut int, touched []uint64) error {
	v, ok := e.Volume(testVolume)
	if !ok {
		return fmt.Errorf("the volume is gone")
	}
	got, buf := make(state, len(touched)), backends.AlignedBuffer(segment.BlockSize)
	mine := make([][]int, len(e.lanes))
	for i, b := range touched {
		no := v.lane(b).no
		mine[no] = append(mine[no], i)
		if err := v.Read(b, 1, buf); err != nil {
			return err
		}
		got[i] = binary.LittleEndian.Uint64(buf)
	}
	recs := make([][]*scripted, len(e.lanes))
	for _, sc := range s.recs {
		if !sc.refused {
			no := v.lane(sc.block).no
			recs[no] = append(recs[no], sc)
		}
	}
	for i := range e.lanes {
		if err := prefix(recs[i], cut, got, mine[i], touched); err != nil {
			return fmt.Errorf("lane %d: %w", i, err)
		}
	}
	return nil
}

// prefix judges one lane: what its blocks hold must be the state after some prefix of its records.
func prefix(recs []*scripted, cut int, got state, mine []int, touched []uint64) error {
	lo, hi := 0, 0
	for i, sc := range recs {
		if sc.acked <= cut {
			lo = i + 1
		}
		if sc.begun <= cut {
			hi = i + 1
		}
	}
	want, why := make(state, len(touched)), ""
	for i, sc := range recs[:hi] {
		if i >= lo {
			if why = want.differs(got, mine, touched); why == "" {
				return nil
			}
		}
		want.apply(sc)
	}
	if last := want.differs(got, mine, touched); last == "" {
		return nil
	} else if why == "" {
		why = last
	}
	return fmt.Errorf("no prefix of %d..%d records fits: %s", lo, hi, why)
}

func (st state) differs(got state, mine []int, touched []uint64) string {
	for _, i := range mine {
		if st[i] != got[i] {
			return fmt.Sprintf("block %d holds %d, model %d", touched[i], got[i], st[i])
		}
	}
	return ""
}

// enumerate opens images for every cut of the history, budget in all. Where the budget is less than
// the cuts, it takes some.
func (s *script) enumerate(c *crashes, budget int) {
	c.need(s.refused == 0, "%d records were refused", s.refused)
	touched := s.touched()
	each, stride := max(1, budget/(s.dev.Ops()+1)), max(1, (s.dev.Ops()+1)/budget)
	seed := uint64(1)
	for en := s.dev.Enumerate(); en.Next() && !s.t.Failed(); {
		if en.At()%stride != 0 {
			continue
		}
		choosers := []mem.Chooser{mem.None, mem.All}
		for len(choosers) < each {
			choosers = append(choosers, mem.RandomGarbage(seed))
			seed++
		}
		if each == 1 {
			choosers = []mem.Chooser{mem.RandomGarbage(seed)}
			seed++
		}
		for i, choose := range choosers[:each] {
			img := en.Image(choose)
			if !c.fresh(en.At(), img, nil, nil) {
				continue
			}
			if err := s.judge(img, nil, en.At(), touched); err != nil {
				s.t.Fatalf("cut %d of %d, choice %d: %v", en.At(), s.dev.Ops(), i, err)
			}
		}
	}
}

func newScript(t *testing.T, segments, lanes int, seed uint64, spots []uint64) *script {
	return newScriptOn(t, crashDevice(t, segments, lanes), nil, seed, spots)
}

func newScriptOn(t *testing.T, dev *mem.Device, nv *mem.Memory, seed uint64, spots []uint64,
	tune ...func(*Config),
) *script {
	s := &script{t: t, dev: dev, nv: nv, spots: spots, tune: tune}
	s.rnd = rand.New(rand.NewPCG(seed, 1))
	s.e = open(t, s.dev, append([]func(*Config){journaled(nv), strewn(seed)}, tune...)...)
	s.e.lendFrom = segment.BlockSize // chunks are too small here for what is worth it
	s.v = create(t, s.e, 16*domain.MiB)
	s.v.SetCompression(compress.Mode(seed % 4))
	return s
}

// TestCrashEnumeration cuts a script at every write and flush: first a short one densely, then a
// long one that overwrites the device several times, with checkpoints and cleaning under way.
func TestCrashEnumeration(t *testing.T) { rounds(t, crashEnumeration) }

func crashEnumeration(c *crashes) {
	t := c.t
	for seed := range uint64(4) {
		s := newScript(t, 40, 1, c.seed(seed), spread(3, 4, 6))
		s.dev.StartHistory()
		s.run(60, 6)
		if err := s.e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		s.run(60, 6)
		s.e.Abandon()
		s.enumerate(c, images()/8)
	}
	s := newScript(t, 56, 1, c.seed(9), spread(4, 24, 10))
	s.dev.StartHistory()
	s.run(700, 8)
	st := s.e.Stats()
	c.need(st.Cleaned > 0 && st.Checkpoints > 2, "the script never cleaned: %+v", st)
	s.e.Abandon()
	s.enumerate(c, images()/2)
}

// TestCrashTwoLanes is TestCrashEnumeration with two lanes (E2): each lane's records are a prefix,
// whatever became of the other's, and a checkpoint marks both.
func TestCrashTwoLanes(t *testing.T) { rounds(t, crashTwoLanes) }

func crashTwoLanes(c *crashes) {
	t := c.t
	s := newScript(t, 64, 2, c.seed(3), spread(4, 6, 6))
	s.dev.StartHistory()
	s.run(300, 8)
	if err := s.e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	s.run(60, 8)
	s.e.Abandon()
	for i, l := range s.e.lanes {
		c.need(l.lastLSN >= 100, "lane %d took %d records only", i, l.lastLSN)
	}
	s.enumerate(c, images()/4)
}

// TestDoubleCrash cuts the power again at every point of the recovery and of new records behind it:
// what was acknowledged in any life stays, and what a recovery cut never comes back.
func TestDoubleCrash(t *testing.T) { rounds(t, doubleCrash) }

func doubleCrash(c *crashes) {
	t := c.t
	s := newScript(t, 40, 1, c.seed(5), spread(3, 4, 6))
	s.dev.StartHistory()
	s.run(50, 6)
	s.e.Abandon()
	touched := s.touched()
	seed := c.seed(1000)
	for cut := 0; cut <= s.dev.Ops(); cut += 1 + s.dev.Ops()/min(25, 1+images()/50) {
		img := s.dev.CrashImage(cut, mem.RandomGarbage(seed))
		seed++
		img.StartHistory()
		e := open(t, img)
		end := img.Ops()
		if err := s.compare(e, cut, touched); err != nil {
			t.Fatal(err)
		}
		x := newEncore(t, e, touched)
		for range 12 {
			x.put(e, func() point { return point{dev: img.Ops()} })
		}
		e.Abandon()
		for en := img.Enumerate(); en.Next(); {
			again := en.Image(mem.RandomGarbage(seed))
			seed++
			if !c.fresh(point{cut, en.At()}, again, nil, nil) {
				continue
			}
			var err error
			if en.At() <= end {
				err = s.judge(again, nil, cut, touched)
			} else {
				err = x.judge(again, nil, point{dev: en.At()})
			}
			if err != nil {
				t.Fatalf("cut %d, then %d of %d, %d of them in recovery: %v", cut, en.At(), img.Ops(), end,
					err)
			}
		}
	}
}

// encore is a second life behind a recovery: one record after another, to blocks 0 to 3.
type encore struct {
	t     *testing.T
	found map[uint64]uint64 // by block, of the first life
	acked []point           // when the outcome of each record was there
}

func newEncore(t *testing.T, e *Engine, touched []uint64) *encore {
	x := &encore{t: t, found: map[uint64]uint64{}}
	for _, b := range append([]uint64{0, 1, 2, 3}, touched...) {
		n, err := holds(mustVolume(t, e), b)
		must(t, err)
		x.found[b] = n
	}
	return x
}

// put writes the next record.
func (x *encore) put(e *Engine, now func() point) {
	x.t.Helper()
	i := uint64(len(x.acked))
	must(x.t, put(mustVolume(x.t, e), data(i%4, 1, 1<<40+i)))
	x.acked = append(x.acked, now())
}

// judge opens what a cut behind the recovery left: everything that the recovery found is there, and
// of the records behind it those acknowledged, and one more at most.
func (x *encore) judge(img *mem.Device, nv *mem.Memory, cut point) error {
	e := opened(x.t, img, journaled(nv))
	defer e.Abandon()
	want, n := maps.Clone(x.found), 0
	for ; n < len(x.acked) && x.acked[n].before(cut); n++ {
		want[uint64(n%4)] = 1<<40 + uint64(n)
	}
	v, differs := mustVolume(x.t, e), ""
	for b, w := range want {
		got, err := holds(v, b)
		if err != nil {
			return err
		}
		next := n < len(x.acked) && b == uint64(n%4) && got == 1<<40+uint64(n)
		if got != w && !next {
			differs = fmt.Sprintf("block %d holds %d, model %d", b, got, w)
		}
	}
	if differs != "" {
		return fmt.Errorf("%d of %d records behind the recovery: %s", n, len(x.acked), differs)
	}
	return nil
}

func mustVolume(t *testing.T, e *Engine) *Volume {
	t.Helper()
	v, ok := e.Volume(testVolume)
	if !ok {
		t.Fatal("the volume is gone")
	}
	return v
}

// TestForgedChunk proves that a host cannot write a block that recovery takes for a chunk: behind a
// torn chunk it scans what hosts wrote. The forger knows everything but the device's salt: format,
// sequence, LSN, and how the chain goes on.
func TestForgedChunk(t *testing.T) {
	for _, knows := range []bool{false, true} {
		dev := crashDevice(t, 40, 1)
		e := open(t, dev)
		v := create(t, e, 16*domain.MiB)
		if err := put(v, data(0, 1, 1)); err != nil {
			t.Fatal(err)
		}
		l := e.lanes[v.lane(0).no]
		real := logged(t, e, l.no)
		last := real[len(real)-1]
		salt := uint32(0)
		if knows {
			salt = e.super.Salt
		}
		forged := &Record{
			Kind: segment.KindData, Block: 8, Count: 4, Data: forge(last, v.br.Load().id, salt),
		}
		if err := put(v, forged); err != nil {
			t.Fatal(err)
		}
		real = logged(t, e, l.no)
		e.Abandon()
		// The chunk that carried the forgery is torn: its header sector is gone, its payload is not.
		clearAt(t, dev, real[len(real)-1].off, segment.Sector)
		e = open(t, dev)
		got := backends.AlignedBuffer(segment.BlockSize)
		if err := mustVolume(t, e).Read(0, 1, got); err != nil {
			t.Fatal(err)
		}
		believed := binary.LittleEndian.Uint64(got) != 1
		e.Abandon()
		if believed != knows {
			t.Errorf("knowing the salt: %v; the forged chunk was believed: %v", knows, believed)
		}
	}
}

// forge gives four blocks of payload: a chunk that goes on behind the last one and unmaps block 0,
// and three blocks of anything.
func forge(last placed, branch, salt uint32) []byte {
	p := fill(4, 77)
	clear(p[:segment.Sector])
	en := segment.Entry{
		Branch: branch, Count: 1, Kind: segment.KindUnmap, Range: 1, LSN: last.h.LSN + 1,
	}
	n := en.Encode(p[segment.ChunkHeader:], nil)
	c := segment.Chunk{
		Incarnation: last.h.Incarnation, Sequence: last.h.Sequence, LSN: last.h.LSN + 1,
		PrevLSN: last.h.LSN, FlushMark: last.h.LSN + 1, Entries: 1, Stream: segment.StreamLog,
		Lane: last.h.Lane, EntryBytes: uint32(n),
	}
	c.Encode(p, salt)
	return p
}
