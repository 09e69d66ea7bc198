package engine

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
	"weft/domain"
)

var crashImages = flag.Int("crash.images", defaultImages, "crash images per test of this kind")

// images gives how many crash images a test makes.
func images() int {
	if testing.Short() {
		return *crashImages / 10
	}
	return *crashImages
}

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
	begun int // point of the history when it was appended
	acked int // and when its outcome arrived
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
				if err != nil {
					s.t.Errorf("record %d: %v", sc.n, err)
				}
				s.mu.Lock()
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

// state is what the script's blocks hold: block to number, zero for holes.
type state map[uint64]uint64

func (st state) apply(sc *scripted, touched map[uint64]bool) {
	for i := range sc.count {
		b := sc.block + uint64(i)
		if !touched[b] {
			continue
		}
		if sc.kind == segment.KindData {
			st[b] = sc.n
		} else {
			st[b] = 0
		}
	}
}

// touched lists every block that some record of data wrote.
func (s *script) touched() map[uint64]bool {
	set := map[uint64]bool{}
	for _, sc := range s.recs {
		if sc.kind == segment.KindData {
			for i := range sc.count {
				set[sc.block+uint64(i)] = true
			}
		}
	}
	return set
}

// judge opens an image and compares it with the model; cut is the point of the history.
func (s *script) judge(img *mem.Device, nv *mem.Memory, cut int, touched map[uint64]bool) error {
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

func (s *script) compare(e *Engine, cut int, touched map[uint64]bool) error {
	v, ok := e.Volume(testVolume)
	if !ok {
		return fmt.Errorf("the volume is gone")
	}
	got, buf := state{}, backends.AlignedBuffer(segment.BlockSize)
	mine := make([]map[uint64]bool, len(e.lanes))
	for i := range mine {
		mine[i] = map[uint64]bool{}
	}
	for b := range touched {
		mine[v.lane(b).no][b] = true
		if err := v.Read(b, 1, buf); err != nil {
			return err
		}
		got[b] = binary.LittleEndian.Uint64(buf)
	}
	recs := make([][]*scripted, len(e.lanes))
	for _, sc := range s.recs {
		no := v.lane(sc.block).no
		recs[no] = append(recs[no], sc)
	}
	for i := range e.lanes {
		if err := prefix(recs[i], cut, got, mine[i]); err != nil {
			return fmt.Errorf("lane %d: %w", i, err)
		}
	}
	return nil
}

// prefix judges one lane: what its blocks hold must be the state after some prefix of its records.
func prefix(recs []*scripted, cut int, got state, touched map[uint64]bool) error {
	lo, hi := 0, 0
	for i, sc := range recs {
		if sc.acked <= cut {
			lo = i + 1
		}
		if sc.begun <= cut {
			hi = i + 1
		}
	}
	want, why := state{}, ""
	for i, sc := range recs[:hi] {
		if i >= lo {
			if why = want.differs(got, touched); why == "" {
				return nil
			}
		}
		want.apply(sc, touched)
	}
	if last := want.differs(got, touched); last == "" {
		return nil
	} else if why == "" {
		why = last
	}
	return fmt.Errorf("no prefix of %d..%d records fits: %s", lo, hi, why)
}

func (st state) differs(got state, touched map[uint64]bool) string {
	for b := range touched {
		if st[b] != got[b] {
			return fmt.Sprintf("block %d holds %d, model %d", b, got[b], st[b])
		}
	}
	return ""
}

// enumerate opens images for every cut of the history, budget in all, and gives how many. Where the
// budget is less than the cuts, it takes some.
func (s *script) enumerate(budget int) int {
	touched := s.touched()
	each, stride := max(1, budget/(s.dev.Ops()+1)), max(1, (s.dev.Ops()+1)/budget)
	n, seed := 0, uint64(1)
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
			n++
			if err := s.judge(en.Image(choose), nil, en.At(), touched); err != nil {
				s.t.Fatalf("cut %d of %d, choice %d: %v", en.At(), s.dev.Ops(), i, err)
			}
		}
	}
	return n
}

func newScript(t *testing.T, segments, lanes int, seed uint64, spots []uint64) *script {
	return newScriptOn(t, crashDevice(t, segments, lanes), nil, seed, spots)
}

func newScriptOn(t *testing.T, dev *mem.Device, nv *mem.Memory, seed uint64, spots []uint64,
	tune ...func(*Config),
) *script {
	s := &script{t: t, dev: dev, nv: nv, spots: spots, tune: tune}
	s.rnd = rand.New(rand.NewPCG(seed, 1))
	s.e = open(t, s.dev, append([]func(*Config){journaled(nv)}, tune...)...)
	s.e.lendFrom = segment.BlockSize // chunks are too small here for what is worth it
	s.v = create(t, s.e, 16*domain.MiB)
	s.v.SetCompression(compress.Mode(seed % 4))
	return s
}

// TestCrashEnumeration cuts a script at every write and flush: first a short one densely, then a
// long one that overwrites the device several times, with checkpoints and cleaning under way.
func TestCrashEnumeration(t *testing.T) {
	total := 0
	for seed := range uint64(4) {
		s := newScript(t, 40, 1, seed, spread(3, 4, 6))
		s.dev.StartHistory()
		s.run(60, 6)
		if err := s.e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		s.run(60, 6)
		s.e.Abandon()
		total += s.enumerate(images() / 8)
	}
	long := newScript(t, 56, 1, 9, spread(4, 24, 10))
	long.dev.StartHistory()
	long.run(700, 8)
	if st := long.e.Stats(); st.Cleaned == 0 || st.Checkpoints < 3 {
		t.Fatalf("the script never cleaned: %+v", st)
	}
	long.e.Abandon()
	total += long.enumerate(images() / 2)
	t.Logf("%d crash images", total)
}

// TestCrashTwoLanes is TestCrashEnumeration with two lanes (E2): each lane's records are a prefix,
// whatever became of the other's, and a checkpoint marks both.
func TestCrashTwoLanes(t *testing.T) {
	s := newScript(t, 64, 2, 3, spread(4, 6, 6))
	s.dev.StartHistory()
	s.run(300, 8)
	if err := s.e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	s.run(60, 8)
	s.e.Abandon()
	for i, l := range s.e.lanes {
		if l.lastLSN < 100 {
			t.Fatalf("lane %d took %d records only", i, l.lastLSN)
		}
	}
	t.Logf("%d crash images", s.enumerate(images()/4))
}

// TestDoubleCrash cuts the power again at every point of the recovery, and then a third time after
// new records: what was acknowledged in any life stays, and what a recovery cut never comes back.
func TestDoubleCrash(t *testing.T) {
	s := newScript(t, 40, 1, 5, spread(3, 4, 6))
	s.dev.StartHistory()
	s.run(50, 6)
	s.e.Abandon()
	touched := s.touched()
	n, seed := 0, uint64(1000)
	for cut := 0; cut <= s.dev.Ops(); cut += 1 + s.dev.Ops()/min(25, 1+images()/50) {
		img := s.dev.CrashImage(cut, mem.RandomGarbage(seed))
		seed++
		img.StartHistory()
		e := open(t, img)
		end := img.Ops()
		if err := s.compare(e, cut, touched); err != nil {
			t.Fatal(err)
		}
		first := s.snapshot(t, e, touched)
		v, _ := e.Volume(testVolume)
		for i := range uint64(12) {
			if err := put(v, data(i%4, 1, 1<<40+i)); err != nil {
				t.Fatal(err)
			}
			first[i%4] = 1<<40 + i
		}
		e.Abandon()
		for en := img.Enumerate(); en.Next(); {
			again := en.Image(mem.RandomGarbage(seed))
			seed++
			n++
			if en.At() <= end {
				if err := s.judge(again, nil, cut, touched); err != nil {
					t.Fatalf("cut %d, then %d of %d in recovery: %v", cut, en.At(), end, err)
				}
				continue
			}
			if en.At() < img.Ops() {
				continue
			}
			e := open(t, again)
			for b, want := range first {
				if touched[b] {
					check(t, mustVolume(t, e), b, want)
				}
			}
			e.Abandon()
		}
	}
	t.Logf("%d images", n)
}

func mustVolume(t *testing.T, e *Engine) *Volume {
	t.Helper()
	v, ok := e.Volume(testVolume)
	if !ok {
		t.Fatal("the volume is gone")
	}
	return v
}

// snapshot reads the script's blocks.
func (s *script) snapshot(t *testing.T, e *Engine, touched map[uint64]bool) state {
	t.Helper()
	st, buf := state{}, backends.AlignedBuffer(segment.BlockSize)
	for b := range touched {
		if err := mustVolume(t, e).Read(b, 1, buf); err != nil {
			t.Fatal(err)
		}
		st[b] = binary.LittleEndian.Uint64(buf)
	}
	return st
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
