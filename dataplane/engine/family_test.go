package engine

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

func snapID(n int) domain.SnapshotID {
	return domain.SnapshotID{UUID: domain.UUID{byte(n), byte(n >> 8), 0xaa}}
}

func volID(n int) domain.VolumeID {
	return domain.VolumeID{UUID: domain.UUID{byte(n), byte(n >> 8), 0xbb}}
}

// image is what a volume or snapshot must hold: the number of every block that is not zeros, and
// which blocks are zeros that were written.
type image struct {
	data map[uint64]uint64
	zero map[uint64]bool
	size domain.Bytes
}

func (m *image) clone() *image {
	return &image{maps.Clone(m.data), maps.Clone(m.zero), m.size}
}

func newImage(size domain.Bytes) *image {
	return &image{map[uint64]uint64{}, map[uint64]bool{}, size}
}

// families drives volumes, snapshots and clones by chance and keeps what each must hold.
type families struct {
	t     *testing.T
	dev   *mem.Device
	nv    *mem.Memory // nil: without a journal
	e     *Engine
	rnd   *rand.Rand
	vols  map[domain.VolumeID]*image
	snaps map[domain.SnapshotID]*image
	of    map[domain.SnapshotID]domain.VolumeID
	n     int
	most  int // snapshots at a time
	full  int // records that were refused
	tune  []func(*Config)
	was   Stats
}

func newFamilies(t *testing.T, dev *mem.Device, seed uint64) *families {
	return newFamiliesOn(t, dev, nil, seed)
}

func newFamiliesOn(t *testing.T, dev *mem.Device, nv *mem.Memory, seed uint64,
	tune ...func(*Config),
) *families {
	f := &families{
		t: t, dev: dev, nv: nv, rnd: newRand(seed), vols: map[domain.VolumeID]*image{}, most: 12,
		snaps: map[domain.SnapshotID]*image{}, of: map[domain.SnapshotID]domain.VolumeID{},
		tune: append(tune, strewn(seed)),
	}
	f.e = f.open()
	return f
}

func (f *families) open() *Engine {
	e := open(f.t, f.dev, append([]func(*Config){often, journaled(f.nv), func(c *Config) {
		c.Report = func(x Fact) { f.t.Errorf("reported %+v", x) }
	}}, f.tune...)...)
	squeezed(e)
	return e
}

func (f *families) next() int {
	f.n++
	return f.n
}

func (f *families) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatalf("%v; %+v", err, f.e.Stats())
	}
}

// idKey is an identifier.
type idKey interface {
	comparable
	String() string
}

// anyOf draws one key of a map, the same for the same seed.
func anyOf[K idKey, V any](rnd *rand.Rand, m map[K]V) (k K, ok bool) {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b K) int {
		return bytes.Compare([]byte(a.String()), []byte(b.String()))
	})
	if len(keys) == 0 {
		return k, false
	}
	return keys[rnd.IntN(len(keys))], true
}

func (f *families) create() {
	id := volID(f.next())
	_, err := created(f.e, id, 8*domain.MiB)
	f.must(err)
	f.vols[id] = newImage(8 * domain.MiB)
	squeezed(f.e)
}

// span draws a range inside one extent of a volume.
func (f *families) span(m *image, most int) (uint64, int) {
	count := 1 + f.rnd.IntN(most)
	ext := f.rnd.Uint64N(uint64(m.size / domain.VolumeMin))
	return ext*1024 + f.rnd.Uint64N(uint64(1024-count+1))/2%250, count
}

// write appends a batch at once and enters into the model what was not refused.
func (f *families) write() {
	id, _ := anyOf(f.rnd, f.vols)
	v, ok := f.e.Volume(id)
	if !ok {
		f.t.Fatalf("volume %s is gone", id)
	}
	m := f.vols[id]
	type sent struct {
		r   *Record
		err error
		n   uint64
	}
	var wg sync.WaitGroup
	batch := make([]*sent, 1+f.rnd.IntN(8))
	for i := range batch {
		block, count := f.span(m, 5)
		n := uint64(f.next())
		s := &sent{r: data(block, count, n), n: n}
		switch f.rnd.IntN(9) {
		case 0:
			s.r.Kind, s.n = segment.KindZero, 0
		case 1, 2:
			s.r.Kind, s.n = segment.KindUnmap, 0
		}
		if f.rnd.IntN(60) == 0 {
			s.r.Kind, s.r.Block, s.r.Count, s.n = segment.KindUnmap, block/1024*1024, 1024, 0
		}
		wg.Add(1)
		s.r.To = acker(func(err error) {
			s.err = err
			wg.Done()
		})
		batch[i] = s
		v.Append(s.r)
	}
	wg.Wait()
	for _, s := range batch {
		if domain.IsKind(s.err, domain.NoSpace) {
			f.full++
			continue
		}
		f.must(s.err)
		m.apply(s.r.Kind, s.r.Block, s.r.Count, s.n)
	}
}

func (m *image) apply(kind segment.Kind, block uint64, count int, n uint64) {
	for i := range uint64(count) {
		delete(m.data, block+i)
		delete(m.zero, block+i)
		switch kind { //nolint:exhaustive // the rest unmaps
		case segment.KindData:
			m.data[block+i] = n
		case segment.KindZero:
			m.zero[block+i] = true
		}
	}
}

func (f *families) snapshot() {
	if len(f.snaps) >= f.most {
		f.deleteSnapshot()
		return
	}
	id, _ := anyOf(f.rnd, f.vols)
	s := snapID(f.next())
	f.must(f.e.Snapshot(background, Cut{Volume: id, Snapshot: s}))
	f.snaps[s], f.of[s] = f.vols[id].clone(), id
}

func (f *families) clone() {
	s, ok := anyOf(f.rnd, f.snaps)
	if !ok || len(f.vols) >= 5 {
		return
	}
	id := volID(f.next())
	_, err := f.e.Clone(background, s, id, 1)
	f.must(err)
	f.vols[id] = f.snaps[s].clone()
}

func (f *families) deleteSnapshot() {
	s, ok := anyOf(f.rnd, f.snaps)
	if !ok {
		return
	}
	f.must(f.e.DeleteSnapshot(background, s))
	delete(f.snaps, s)
	delete(f.of, s)
}

func (f *families) deleteVolume() {
	if len(f.vols) < 2 {
		return
	}
	id, _ := anyOf(f.rnd, f.vols)
	f.must(f.e.Delete(background, id))
	delete(f.vols, id)
}

func (f *families) rollback() {
	s, ok := anyOf(f.rnd, f.snaps)
	if !ok || f.vols[f.of[s]] == nil {
		return
	}
	f.must(f.e.Rollback(background, f.of[s], s))
	f.vols[f.of[s]] = f.snaps[s].clone()
}

func (f *families) grow() {
	id, _ := anyOf(f.rnd, f.vols)
	m := f.vols[id]
	if m.size < 16*domain.MiB {
		m.size += 4 * domain.MiB
		f.must(f.e.Resize(background, id, m.size))
	}
}

// shrink takes up to all but the first extent of a volume away.
func (f *families) shrink() {
	id, _ := anyOf(f.rnd, f.vols)
	f.shorten(id)
}

func (f *families) shorten(id domain.VolumeID) {
	m := f.vols[id]
	if m.size > domain.VolumeMin {
		m.end(domain.VolumeMin * domain.Bytes(1+f.rnd.IntN(int(m.size/domain.VolumeMin)-1)))
		f.must(f.e.Resize(background, id, m.size))
	}
}

// end gives the image a new end.
func (m *image) end(size domain.Bytes) {
	beyond := uint64(size / segment.BlockSize)
	maps.DeleteFunc(m.data, func(b, _ uint64) bool { return b >= beyond })
	maps.DeleteFunc(m.zero, func(b uint64, _ bool) bool { return b >= beyond })
	m.size = size
}

func (f *families) restart(clean bool) {
	st := f.e.Stats()
	f.was.Cleaned += st.Cleaned
	if clean {
		f.must(f.e.Close())
	}
	f.e.Abandon()
	f.e = f.open()
}

// each calls fn with every volume and snapshot and what it must hold.
func (f *families) each(fn func(v *Volume, m *image)) {
	f.t.Helper()
	for id, m := range f.vols {
		v, ok := f.e.Volume(id)
		if !ok {
			f.t.Fatalf("volume %s is gone", id)
		}
		fn(v, m)
	}
	for id, m := range f.snaps {
		v, ok := f.e.OpenSnapshot(id)
		if !ok {
			f.t.Fatalf("snapshot %s is gone", id)
		}
		fn(v, m)
	}
	if len(f.e.Volumes()) != len(f.vols) || len(f.e.mu.bySnapshot) != len(f.snaps) {
		f.t.Fatalf("%d volumes and %d snapshots, not %d and %d", len(f.e.Volumes()),
			len(f.e.mu.bySnapshot), len(f.vols), len(f.snaps))
	}
}

// audit reads everything, holes included, and recounts.
func (f *families) audit() {
	f.t.Helper()
	f.sum()
	recount(f.t, f.e)
}

// sum compares what names hold with the model, and what all hold with what lives.
func (f *families) sum() {
	f.t.Helper()
	defer still(f.e)()
	own := f.e.Kept()
	f.each(func(v *Volume, m *image) {
		verify(f.t, v, m)
		own += v.Info().Own
		if got := v.Info(); got.Mapped != domain.Bytes(len(m.data)+len(m.zero))*segment.BlockSize ||
			got.Own+got.Shared+got.Saved != domain.Bytes(len(m.data))*segment.BlockSize {
			f.t.Errorf("%+v: %d blocks of data, %d of zeros", got, len(m.data), len(m.zero))
		}
	})
	if live := f.e.Stats().LiveBytes; int64(own) != live {
		f.t.Errorf("%d bytes live, all own %d", live, own)
	}
	if f.t.Failed() {
		f.t.FailNow()
	}
}

// verify reads all that tests write to in a volume.
func verify(t testing.TB, v *Volume, m *image) {
	t.Helper()
	if v.Size() != m.size {
		t.Fatalf("%s, not %s", v.Size(), m.size)
	}
	buf := backends.AlignedBuffer(256 * segment.BlockSize)
	for ext := range uint64(m.size / domain.VolumeMin) {
		if err := v.Read(ext*1024, 256, buf); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(256) {
			b := ext*1024 + i
			p := buf[i*segment.BlockSize:][:segment.BlockSize]
			if !isNumber(p, m.data[b]) {
				t.Fatalf("block %d of %s/%s spells %x.., not %d", b, v.ID(), v.Snapshot(), p[:8], m.data[b])
			}
		}
	}
}

// compare asks for differences and allocation in pieces and compares with the model.
func (f *families) compare() {
	a, ok := anyOf(f.rnd, f.snaps)
	id, _ := anyOf(f.rnd, f.vols)
	v, _ := f.e.Volume(id)
	if !ok {
		return
	}
	s, _ := f.e.OpenSnapshot(a)
	limit := 1 + f.rnd.IntN(5)
	collect := func(ask func(from int64) (Ranges, error)) map[uint64]domain.Extent {
		got, last := map[uint64]domain.Extent{}, int64(0)
		for from := int64(0); from >= 0; {
			r, err := ask(from)
			f.must(err)
			if len(r.List) > limit || r.Next >= 0 && r.Next <= from {
				f.t.Fatalf("%d ranges from %d, next %d", len(r.List), from, r.Next)
			}
			for _, x := range r.List {
				if x.Off < last {
					f.t.Fatalf("out of order: %+v behind %d", x, last)
				}
				last = x.Off + x.Len
				for at := x.Off; at < last; at += segment.BlockSize {
					got[uint64(at)/segment.BlockSize] = x
				}
			}
			from = r.Next
		}
		return got
	}
	m := f.vols[id]
	end := int64(m.size)
	there := collect(func(from int64) (Ranges, error) { return v.Allocated(from, end, limit) })
	if len(there) != len(m.data)+len(m.zero) {
		f.t.Errorf("%d blocks allocated, model %d and %d", len(there), len(m.data), len(m.zero))
	}
	for b, x := range there {
		if x.Zero != m.zero[b] || !x.Zero && m.data[b] == 0 {
			f.t.Errorf("block %d: %+v", b, x)
		}
	}
	if v.fam != s.fam {
		_, err := v.Diff(s, 0, end, limit)
		kindOf(f.t, err, domain.Invalid)
		return
	}
	diff := collect(func(from int64) (Ranges, error) { return v.Diff(s, from, end, limit) })
	for b := range uint64(m.size / segment.BlockSize) {
		old, now := f.snaps[a].data[b], m.data[b]
		x, told := diff[b]
		// A number is written once, so the same number is the same copy.
		if told != (old != now) {
			f.t.Errorf("block %d: %d, was %d; told %v", b, now, old, told)
		}
		if told && x.Zero != (now == 0) {
			f.t.Errorf("block %d holds %d: %+v", b, now, x)
		}
	}
}

func (f *families) step() {
	switch d := f.rnd.IntN(1000); {
	case d < 700:
		f.write()
	case d < 780:
		f.snapshot()
	case d < 830:
		f.deleteSnapshot()
	case d < 860:
		f.clone()
	case d < 875:
		f.deleteVolume()
	case d < 900:
		f.rollback()
	case d < 906:
		f.grow()
	case d < 910:
		f.shrink()
	case d < 945:
		f.compare()
	case d < 965:
		f.must(f.e.Checkpoint())
	case d < 970 && len(f.vols) < 4:
		f.create()
	case d >= 980 && d < 990:
		f.restart(true)
	case d >= 990:
		f.restart(false)
	}
}

// TestFamilies runs volumes, snapshots, clones, rollbacks and deletions by chance against maps of
// what each must hold, with cleaning, checkpoints, clean and unclean restarts between, on one and
// on three lanes: every byte of every one of them, what is allocated and what differs; and every
// counter against a naive recount (E5, E6, E12).
func TestFamilies(t *testing.T) { runFamilies(t, false) }

// runFamilies runs them on six devices, with a journal or without.
func runFamilies(t *testing.T, journal bool) {
	steps, every := 4000, 40
	if raceOn || testing.Short() {
		steps, every = 600, 60
	}
	cleaned := int64(0)
	for seed := range uint64(6) {
		dev := newMem(t, segment.DataOff+70*(128<<10)+segment.Guard+segment.Sector, 128<<10,
			1+int(seed%2)*2)
		var nv *mem.Memory
		if journal {
			nv = newMemory(t, dev, 14)
		}
		f := newFamiliesOn(t, dev, nv, seed)
		f.create()
		f.create()
		for i := range steps {
			f.step()
			if i%every == 0 {
				f.audit()
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, i)
			}
		}
		f.audit()
		f.restart(true)
		f.audit()
		cleaned += f.was.Cleaned
		t.Logf("seed %d: %d segments cleaned, %d records refused, %d branches of %d ids", seed,
			f.was.Cleaned, f.full, len(f.e.mu.branches), f.e.mu.nextBranch)
		f.empty()
	}
	if cleaned == 0 {
		t.Error("nothing was ever cleaned")
	}
}

// empty deletes everything in random order and proves that all space came back.
func (f *families) empty() {
	f.t.Helper()
	for len(f.vols)+len(f.snaps) > 0 {
		if len(f.snaps) > 0 && (f.rnd.IntN(2) == 0 || len(f.vols) == 0) {
			f.deleteSnapshot()
		} else {
			id, _ := anyOf(f.rnd, f.vols)
			f.must(f.e.Delete(background, id))
			delete(f.vols, id)
		}
		if left := len(f.vols) + len(f.snaps); left < 10 || left%7 == 0 {
			f.audit()
		}
	}
	f.must(f.e.Checkpoint())
	f.must(f.e.Checkpoint())
	st := f.e.Stats()
	if st.LiveBytes != 0 || st.FreeSegments < st.Segments-10 || st.IndexBytes != 0 ||
		len(f.e.mu.branches) != 0 {
		f.t.Errorf("left behind: %+v, %d branches", st, len(f.e.mu.branches))
	}
	f.must(f.e.Close())
}

// TestDeleteInAnyOrder takes 100 snapshots with writes between, some of them cloned, and deletes
// them in random order: after every deletion what lives is what some name sees, and in the end
// everything is given back (R28).
func TestDeleteInAnyOrder(t *testing.T) {
	for seed := range uint64(3) {
		f := newFamilies(t, newMem(t, 64<<20, 256<<10, 2), 100+seed)
		f.most = 200
		f.create()
		for i := range 100 {
			for range 3 {
				f.write()
			}
			f.snapshot()
			if i%25 == 24 {
				f.clone()
			}
		}
		f.audit()
		if len(f.snaps) != 100 {
			t.Fatalf("%d snapshots", len(f.snaps))
		}
		if seed == 1 {
			f.restart(false)
		}
		f.empty()
	}
}
