package engine

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// moment is the state of a family between two steps of a script.
type moment struct {
	vols  map[domain.VolumeID]*image
	snaps map[domain.SnapshotID]*image
	begun point // of the history when the step that leads here began
	ended point // and when its outcome was there

	// shrinking is a volume that has some of what it had from a block on, and no longer all.
	shrinking domain.VolumeID
	from      uint64
}

// saga is a script of steps, one at a time, that change families, with everything that must be
// there after each.
type saga struct {
	f       *families
	moments []moment
}

func (s *saga) step(do func()) {
	begun := s.f.point()
	do()
	m := s.moment(begun)
	m.ended = s.f.point()
	s.moments = append(s.moments, m)
}

// moment gives what must be there now.
func (s *saga) moment(begun point) moment {
	m := moment{
		vols: map[domain.VolumeID]*image{}, snaps: map[domain.SnapshotID]*image{}, begun: begun,
	}
	for id, im := range s.f.vols {
		m.vols[id] = im.clone()
	}
	for id, im := range s.f.snaps {
		m.snaps[id] = im.clone()
	}
	return m
}

// shrink takes the end of a volume away: a cut may leave it with its size and without parts of what
// is to go.
func (s *saga) shrink() {
	id, _ := anyOf(s.f.rnd, s.f.vols)
	half := s.moment(s.f.point())
	half.ended = point{math.MaxInt, math.MaxInt}
	s.step(func() { s.f.shorten(id) })
	half.shrinking, half.from = id, uint64(s.f.vols[id].size/segment.BlockSize)
	s.moments = slices.Insert(s.moments, len(s.moments)-1, half)
}

// one writes one record.
func (s *saga) one() {
	f := s.f
	id, _ := anyOf(f.rnd, f.vols)
	v, ok := f.e.Volume(id)
	if !ok {
		f.t.Fatal("a volume is gone")
	}
	block, count := f.span(f.vols[id], 4)
	block = block/1024*1024 + block%60
	n := uint64(f.next())
	r := data(block, count, n)
	switch f.rnd.IntN(8) {
	case 0:
		r.Kind, n = segment.KindZero, 0
	case 1:
		r.Kind, n = segment.KindUnmap, 0
	}
	f.must(put(v, r))
	f.vols[id].apply(r.Kind, block, count, n)
}

// run takes steps by chance, mostly records; checkpoints and cleaning go on by themselves.
func (s *saga) run(steps int) {
	f := s.f
	for range steps {
		switch d := f.rnd.IntN(100); {
		case d < 62:
			s.step(s.one)
		case d < 76:
			s.step(f.snapshot)
		case d < 86:
			s.step(f.deleteSnapshot)
		case d < 90:
			s.step(f.clone)
		case d < 93:
			s.step(f.deleteVolume)
		case d < 96:
			s.step(f.rollback)
		case d < 97:
			s.step(f.grow)
		case d < 98:
			s.shrink()
		default:
			f.must(f.e.Checkpoint())
		}
	}
}

// judge opens an image: it must hold, exactly, one of the moments that the cut allows, and its
// counters must be those of a recount.
func (s *saga) judge(img *mem.Device, nv *mem.Memory, cut point) error {
	t := s.f.t
	cfg := Config{
		Device: img, Cluster: testCluster, Node: 1,
		Report: func(x Fact) { t.Errorf("cut %+v: reported %+v", cut, x) },
	}
	journaled(nv)(&cfg)
	e, err := Open(background, cfg)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer e.Abandon()
	recount(t, e)
	lo, hi := 0, 0
	for i, m := range s.moments {
		if m.ended.before(cut) {
			lo = i
		}
		if m.begun.before(cut) {
			hi = i
		}
	}
	why := ""
	for i := hi; i >= lo; i-- {
		w := s.moments[i].differs(e)
		if w == "" {
			return s.grows(e, lo, hi)
		}
		why += fmt.Sprintf("\nstep %d: %s", i, w)
	}
	return fmt.Errorf("neither before nor after:%s", why)
}

// grows makes every volume that may have been shrinking larger again: there it holds nothing.
func (s *saga) grows(e *Engine, lo, hi int) error {
	for i := lo; i <= hi; i++ {
		v, ok := e.Volume(s.moments[i].shrinking)
		if !ok {
			continue
		}
		end := v.Size()
		if err := e.Resize(background, v.ID(), 20*domain.MiB); err != nil {
			return err
		}
		r, err := v.Allocated(int64(end), int64(v.Size()), 0)
		if err != nil {
			return err
		}
		if len(r.List) > 0 {
			return fmt.Errorf("it grew from %s and has %+v there", end, r.List)
		}
	}
	return nil
}

func (m *moment) differs(e *Engine) string {
	if len(e.Volumes()) != len(m.vols) || len(e.mu.bySnapshot) != len(m.snaps) {
		return fmt.Sprintf("%d volumes and %d snapshots, not %d and %d", len(e.Volumes()),
			len(e.mu.bySnapshot), len(m.vols), len(m.snaps))
	}
	for id, im := range m.vols {
		v, ok := e.Volume(id)
		if !ok {
			return fmt.Sprintf("volume %s is gone", id)
		}
		if id == m.shrinking {
			im = im.partly(v, m.from)
		}
		if w := im.differs(v); w != "" {
			return fmt.Sprintf("volume %s: %s", id, w)
		}
	}
	for id, im := range m.snaps {
		v, ok := e.OpenSnapshot(id)
		if !ok {
			return fmt.Sprintf("snapshot %s is gone", id)
		}
		if w := im.differs(v); w != "" {
			return fmt.Sprintf("snapshot %s: %s", id, w)
		}
	}
	return ""
}

// differs reads what a volume has allocated and compares: all of it, and nothing else.
func (m *image) differs(v *Volume) string {
	if v.Size() != m.size {
		return fmt.Sprintf("%s, not %s", v.Size(), m.size)
	}
	r, err := v.Allocated(0, int64(m.size), 0)
	if err != nil || r.Next >= 0 {
		return fmt.Sprintf("%v, next %d", err, r.Next)
	}
	want, zero := maps.Clone(m.data), maps.Clone(m.zero)
	for _, x := range r.List {
		for at := x.Off; at < x.Off+x.Len; at += segment.BlockSize {
			b := uint64(at) / segment.BlockSize
			got, err := holds(v, b)
			if err != nil || got != m.data[b] || x.Zero != m.zero[b] {
				return fmt.Sprintf("block %d holds %d, model %d, zeros %v: %v", b, got, m.data[b],
					m.zero[b], err)
			}
			delete(want, b)
			delete(zero, b)
		}
	}
	if len(want)+len(zero) > 0 {
		return fmt.Sprintf("%d blocks and %d of zeros are holes", len(want), len(zero))
	}
	return ""
}

// partly gives the image without what is a hole in the volume from a block on.
func (m *image) partly(v *Volume, from uint64) *image {
	m = m.clone()
	gone := func(b uint64) bool {
		x, err := v.Extents(b, 1, nil)
		return b >= from && err == nil && x[0].Hole
	}
	maps.DeleteFunc(m.data, func(b, _ uint64) bool { return gone(b) })
	maps.DeleteFunc(m.zero, func(b uint64, _ bool) bool { return gone(b) })
	return m
}

// point is a point of the history of a device, and of that of its journal.
type point struct{ dev, nv int }

func (p point) before(o point) bool { return p.dev <= o.dev && p.nv <= o.nv }

// point gives the present one.
func (f *families) point() point {
	if f.nv == nil {
		return point{f.dev.Mark(), 0}
	}
	return point{f.dev.Mark(), f.nv.Mark()}
}

func newSaga(t *testing.T, segments, lanes int, seed uint64) *saga {
	return newSagaOn(t, crashDevice(t, segments, lanes), nil, seed)
}

func newSagaOn(t *testing.T, dev *mem.Device, nv *mem.Memory, seed uint64) *saga {
	f := newFamiliesOn(t, dev, nv, seed)
	f.most = 6
	s := &saga{f: f}
	s.step(func() {})
	f.dev.StartHistory()
	if nv != nil {
		nv.StartHistory(f.dev.Ops)
	}
	s.step(f.create)
	return s
}

// enumerate judges images for every cut of the history, as many as the budget allows.
func (s *saga) enumerate(c *crashes, budget int) {
	dev := s.f.dev
	stride, each := max(1, 2*dev.Ops()/budget), max(2, budget/(dev.Ops()+1))
	seed := uint64(1)
	for en := dev.Enumerate(); en.Next() && !s.f.t.Failed(); {
		if en.At()%stride != 0 {
			continue
		}
		choosers := []mem.Chooser{mem.None, mem.All}
		for len(choosers) < each {
			choosers = append(choosers, mem.RandomGarbage(seed))
			seed++
		}
		if stride > 1 {
			choosers[1] = mem.RandomGarbage(seed)
			seed++
		}
		for i, choose := range choosers {
			img := en.Image(choose)
			if !c.fresh(en.At(), img, nil, nil) {
				continue
			}
			if err := s.judge(img, nil, point{en.At(), 0}); err != nil {
				s.f.t.Fatalf("cut %d of %d, choice %d: %v", en.At(), dev.Ops(), i, err)
			}
		}
	}
}

// TestCrashFamilies cuts the power at every write and flush of scripts of records, cuts, clones,
// deletions, rollbacks, growth and shrinking, with checkpoints and cleaning under way: each image
// holds, to the byte and to the name, what was there before or after the step under way, and its
// space is counted exactly (E1, E5, E12).
func TestCrashFamilies(t *testing.T) { rounds(t, crashFamilies) }

func crashFamilies(c *crashes) {
	t := c.t
	for seed := range uint64(4) {
		s := newSaga(t, 48, 1+int(seed%2), c.seed(40+seed))
		s.run(120)
		s.f.e.Abandon()
		s.enumerate(c, images()/10)
	}
	s := newSaga(t, 64, 2, c.seed(60))
	s.run(1200)
	st := s.f.e.Stats()
	c.need(st.Cleaned > 0 && st.Checkpoints >= 10, "the script never cleaned: %+v", st)
	s.f.e.Abandon()
	s.enumerate(c, images()/10)
}

// TestCrashWhileSweeping deletes snapshots and clones with much to be swept, cuts the power at
// each write from there on, and again at each write of the recovery: the space is always counted
// exactly.
func TestCrashWhileSweeping(t *testing.T) { rounds(t, crashWhileSweeping) }

func crashWhileSweeping(c *crashes) {
	t := c.t
	s := newSaga(t, 64, 2, c.seed(70))
	s.run(250)
	for len(s.f.snaps) > 1 {
		s.step(s.f.deleteSnapshot)
	}
	s.step(s.f.snapshot)
	s.f.must(s.f.e.Checkpoint())
	s.f.e.Abandon()
	stride := max(1, 4*s.f.dev.Ops()/images())
	for cut := s.f.dev.Ops() / 2; cut <= s.f.dev.Ops(); cut += stride {
		img := s.f.dev.CrashImage(cut, mem.RandomGarbage(uint64(cut)))
		img.StartHistory()
		open(t, img, quiet).Abandon()
		for again := 0; again <= img.Ops(); again += 3 {
			second := img.CrashImage(again, mem.RandomGarbage(uint64(again)))
			if !c.fresh(cut, second, nil, nil) {
				continue
			}
			if err := s.judge(second, nil, point{cut, 0}); err != nil {
				t.Fatalf("cut %d, then %d: %v", cut, again, err)
			}
		}
	}
}
