package engine

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"weft/dataplane/segment"
	"weft/domain"
)

// filler keeps a model of several volumes on one small device while it fills.
type filler struct {
	t    *testing.T
	e    *Engine
	rnd  *rand.Rand
	n    uint64
	live map[domain.VolumeID]map[uint64]uint64
	ids  []domain.VolumeID
	next byte
}

func newFiller(t *testing.T, e *Engine) *filler {
	return &filler{
		t: t, e: e, rnd: newRand(5), live: map[domain.VolumeID]map[uint64]uint64{}, next: 10,
	}
}

func (f *filler) create() {
	f.t.Helper()
	id := domain.VolumeID{UUID: domain.UUID{f.next, 1}}
	f.next++
	if _, err := created(f.e, id, 16*domain.MiB); err != nil {
		f.t.Fatal(err)
	}
	f.live[id] = map[uint64]uint64{}
	f.ids = append(f.ids, id)
}

func (f *filler) drop(i int) {
	f.t.Helper()
	if err := f.e.Delete(background, f.ids[i]); err != nil {
		f.t.Fatal(err)
	}
	delete(f.live, f.ids[i])
	f.ids = append(f.ids[:i], f.ids[i+1:]...)
}

func (f *filler) pick() (*Volume, map[uint64]uint64) {
	id := f.ids[f.rnd.IntN(len(f.ids))]
	v, ok := f.e.Volume(id)
	if !ok {
		f.t.Fatal("a volume is gone")
	}
	return v, f.live[id]
}

// put writes a few blocks somewhere and gives false when the device is full.
func (f *filler) put() bool {
	v, m := f.pick()
	count := 1 + f.rnd.IntN(4)
	block := f.rnd.Uint64N(4092)
	block -= min(block%1024, uint64(count)) // inside one extent
	f.n++
	err := put(v, data(block, count, f.n))
	if domain.IsKind(err, domain.NoSpace) {
		return false
	}
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range uint64(count) {
		m[block+i] = f.n
	}
	return true
}

func (f *filler) unmap() {
	v, m := f.pick()
	block, count := f.rnd.Uint64N(4096)/64*64, 1+f.rnd.IntN(64)
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: block, Count: count}); err != nil {
		f.t.Fatal(err)
	}
	for i := range uint64(count) {
		delete(m, block+i)
	}
}

// overwrite writes over blocks that are there, which must succeed on a full device.
func (f *filler) overwrite(count int) {
	v, m := f.pick()
	for b := range m {
		if count--; count < 0 {
			return
		}
		f.n++
		if err := put(v, data(b, 1, f.n)); err != nil {
			f.t.Fatalf("overwrite: %v; %+v", err, f.e.Stats())
		}
		m[b] = f.n
	}
}

// audit reads everything and recounts, and proves that the live bytes are the model's exactly.
func (f *filler) audit() {
	f.t.Helper()
	sum := int64(0)
	for id, m := range f.live {
		v, ok := f.e.Volume(id)
		if !ok {
			f.t.Fatal("a volume is gone")
		}
		for b, n := range m {
			check(f.t, v, b, n)
		}
		sum += int64(len(m)) * segment.BlockSize
	}
	if st := f.e.Stats(); st.LiveBytes != sum {
		f.t.Errorf("%d bytes live, model %d", st.LiveBytes, sum)
	}
	recount(f.t, f.e)
	if f.t.Failed() {
		f.t.FailNow()
	}
}

// TestFullDevice is E9: a device is filled in small steps with random unmaps and deletions until
// it says NoSpace, and stays at the brink. There reads, overwrites, unmaps and deletions go on,
// what they give back can be written again, the live bytes are the model's to the byte, and the
// device opens.
func TestFullDevice(t *testing.T) {
	rounds := 14
	if raceOn || testing.Short() {
		rounds = 4
	}
	for _, seg := range []int{64 << 10, 256 << 10} {
		t.Run(fmt.Sprintf("%dKiB", seg>>10), func(t *testing.T) {
			dev := newMem(t, segment.DataOff+int64(40*seg)+segment.Guard+segment.Sector, seg, 1)
			f := newFiller(t, open(t, dev))
			f.create()
			f.create()
			f.create()
			for round := range rounds {
				for f.put() {
					if f.rnd.IntN(40) == 0 {
						f.unmap()
					}
				}
				if st := f.e.Stats(); st.LiveBytes < st.UsableBytes*9/10 {
					t.Fatalf("round %d: full at %d of %d", round, st.LiveBytes, st.UsableBytes)
				}
				f.overwrite(300)
				f.audit()
				f.unmap()
				f.unmap()
				switch round % 4 {
				case 1:
					f.drop(f.rnd.IntN(len(f.ids)))
					f.create()
				case 2:
					if err := f.e.Close(); err != nil {
						t.Fatal(err)
					}
					f.e = open(t, dev)
				case 3:
					f.e.Abandon()
					f.e = open(t, dev)
				}
				f.audit()
			}
			for len(f.ids) > 0 {
				f.drop(0)
			}
			if err := f.e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			f.audit()
			if err := f.e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			if st := f.e.Stats(); st.LiveBytes != 0 || st.FreeSegments < st.Segments-8 {
				t.Errorf("not given back: %+v", st)
			}
			if err := f.e.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSparseFill fills a device in the dearest way for the index: one block, or one zero block, in
// each extent of a volume much larger than the device. The index must not eat what checkpoints
// need: the device says NoSpace and goes on, also after a restart (E9).
func TestSparseFill(t *testing.T) {
	for _, c := range []struct {
		kind segment.Kind
		seg  int
	}{
		{segment.KindData, 64 << 10}, {segment.KindZero, 64 << 10}, {segment.KindData, 1 << 20},
	} {
		if c.seg >= 1<<20 && (raceOn || testing.Short()) {
			continue
		}
		kind, seg := c.kind, c.seg
		t.Run(fmt.Sprintf("kind %d, %d KiB", kind, seg>>10), func(t *testing.T) {
			dev := newMem(t, segment.DataOff+int64(60*seg)+segment.Guard+segment.Sector, seg, 1)
			e := open(t, dev, func(c *Config) { c.CheckpointBytes = 128 << 10 })
			v := create(t, e, 1*domain.TiB)
			full, n := uint64(0), uint64(0)
			for ext := uint64(0); ext < 60_000; ext++ {
				r := &Record{Kind: kind, Block: ext * 1024, Count: 1}
				if kind == segment.KindData {
					r.Data = fill(1, ext+1)
				} else {
					r.Count = 1000
				}
				err := put(v, r)
				if domain.IsKind(err, domain.NoSpace) {
					full = ext
					break
				}
				if err != nil {
					t.Fatalf("extent %d: %v, %+v", ext, err, e.Stats())
				}
				n = ext
			}
			if full == 0 {
				t.Fatalf("never full: %d extents, %+v", n, e.Stats())
			}
			t.Logf("full after %d extents, %+v", full, e.Stats())
			for round := range uint64(3) {
				for ext := range full {
					if err := put(v, data(ext*1024, 1, ext+round)); err != nil &&
						(kind == segment.KindData || !domain.IsKind(err, domain.NoSpace)) {
						t.Fatalf("overwrite of extent %d: %v, %+v", ext, err, e.Stats())
					}
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				e = open(t, dev)
				v = mustVolume(t, e)
				recount(t, e)
			}
			if err := put(v, &Record{Kind: segment.KindUnmap, Block: 0, Count: 1024}); err != nil {
				t.Fatal(err)
			}
			if err := e.Delete(background, testVolume); err != nil {
				t.Fatal(err)
			}
			recount(t, e)
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestVolumeLoops creates, grows, fills and deletes volumes many times over the size of the device,
// with crashes between: nothing of a deleted one comes back, ids are not given out twice, and no
// space is left behind.
func TestVolumeLoops(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 2)
	e := open(t, dev)
	seen := map[uint32]bool{}
	for i := range 40 {
		id := domain.VolumeID{UUID: domain.UUID{byte(i%3 + 1)}}
		v, err := e.Create(background, id, 4*domain.MiB, 1)
		if err != nil {
			t.Fatal(err)
		}
		if seen[v.br.Load().id] {
			t.Fatalf("branch %d given out twice", v.br.Load().id)
		}
		seen[v.br.Load().id] = true
		kindOf(t, v.Read(1024, 1, make([]byte, segment.BlockSize)), domain.OutOfRange)
		if err := e.Resize(background, id, 16*domain.MiB); err != nil {
			t.Fatal(err)
		}
		for b := range uint64(20) {
			if got, err := holds(v, b*150); got != 0 || err != nil {
				t.Fatalf("a new volume holds %d: %v", got, err)
			}
			if err := put(v, data(b*150, 2, b+1)); err != nil {
				t.Fatal(err)
			}
		}
		if i%5 == 1 {
			e.Abandon()
			e = open(t, dev)
		}
		if v, _ = e.Volume(id); v.Size() != 16*domain.MiB {
			t.Fatalf("size %s", v.Size())
		}
		check(t, v, 19*150, 20)
		if err := e.Delete(background, id); err != nil {
			t.Fatal(err)
		}
		kindOf(t, put(v, data(0, 1, 1)), domain.NotFound)
		kindOf(t, v.Read(0, 1, make([]byte, segment.BlockSize)), domain.NotFound)
		if i%5 == 2 {
			e.Abandon()
			e = open(t, dev)
		}
		recount(t, e)
		if st := e.Stats(); st.LiveBytes != 0 || st.OpenVolumes != 0 {
			t.Fatalf("left behind: %+v", st)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestManySmallRecords sends more unmaps at once than the header of a small segment's chunk takes,
// and records as large as the device allows and one block larger: each ends (E9).
func TestManySmallRecords(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	var wg sync.WaitGroup
	for i := range uint64(4000) {
		wg.Add(1)
		r := &Record{Kind: segment.KindUnmap, Block: i, Count: 1}
		r.To = acker(func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
		v.Append(r)
	}
	wg.Wait()
	most := e.RecordBlocks()
	if err := put(v, data(0, most, 1)); err != nil {
		t.Fatal(err)
	}
	check(t, v, uint64(most-1), 1)
	kindOf(t, put(v, data(0, most+1, 1)), domain.Invalid)
}

// TestRefusals proves that a malformed request is answered by its kind and changes nothing: ranges
// that end behind the volume, wrap around, cross an extent, or bring too little data.
func TestRefusals(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 4*domain.MiB)
	buf := make([]byte, 2*segment.BlockSize)
	last := ^uint64(0)
	for _, c := range []struct {
		r    Record
		kind domain.Kind
	}{
		{Record{Kind: segment.KindData, Block: 0, Count: 0}, domain.Invalid},
		{Record{Kind: segment.KindBranch, Block: 0, Count: 1}, domain.Invalid},
		{Record{Kind: 0, Block: 0, Count: 1}, domain.Invalid},
		{Record{Kind: segment.KindData, Block: 0, Count: 3, Data: buf}, domain.Invalid},
		{Record{Kind: segment.KindUnmap, Block: 1, Count: 1024}, domain.Invalid},
		{Record{Kind: segment.KindUnmap, Block: 1024, Count: 1}, domain.OutOfRange},
		{Record{Kind: segment.KindZero, Block: last, Count: 1}, domain.OutOfRange},
		{Record{Kind: segment.KindData, Block: last - 1023, Count: 1, Data: buf}, domain.OutOfRange},
	} {
		kindOf(t, put(v, &c.r), c.kind)
	}
	kindOf(t, v.Read(0, 0, nil), domain.OutOfRange)
	kindOf(t, v.Read(1023, 2, buf), domain.OutOfRange)
	kindOf(t, v.Read(last, 1, buf[:4096]), domain.OutOfRange)
	kindOf(t, v.Read(0, 1, buf), domain.Invalid)
	_, err := v.Extents(1023, 2, nil)
	kindOf(t, err, domain.OutOfRange)
	_, err = e.Create(background, domain.VolumeID{UUID: domain.UUID{9}}, 4*domain.MiB+1, 1)
	kindOf(t, err, domain.Invalid)
	_, err = e.Create(background, testVolume, 8*domain.MiB, 1)
	kindOf(t, err, domain.Exists)
	kindOf(t, e.Resize(background, testVolume, 0), domain.Invalid)
	other := domain.VolumeID{UUID: domain.UUID{9}}
	kindOf(t, e.Resize(background, other, 4*domain.MiB), domain.NotFound)
	if v.Info().Mapped != 0 {
		t.Errorf("%+v", v.Info())
	}
}

// TestExtents proves that the allocation map tells data, zeros and holes apart and joins
// neighbours.
func TestExtents(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 4*domain.MiB)
	zeros := &Record{Kind: segment.KindData, Block: 4, Count: 2, Data: make([]byte, 8192)}
	for _, r := range []*Record{
		data(2, 2, 1), zeros, {Kind: segment.KindUnmap, Block: 3, Count: 1},
	} {
		if err := put(v, r); err != nil {
			t.Fatal(err)
		}
	}
	if zeros.Kind != segment.KindData {
		t.Error("the caller's record was changed")
	}
	got, err := v.Extents(0, 8, nil)
	want := []domain.Extent{
		{Off: 0, Len: 8192, Hole: true, Zero: true},
		{Off: 8192, Len: 4096},
		{Off: 12288, Len: 4096, Hole: true, Zero: true},
		{Off: 16384, Len: 8192, Zero: true},
		{Off: 24576, Len: 8192, Hole: true, Zero: true},
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, %v", got, err)
	}
	if v.Info().Mapped != 3*segment.BlockSize || e.Stats().LiveBytes != segment.BlockSize {
		t.Errorf("%+v", v.Info())
	}
}

// TestGarbage proves that live, garbage and free make up the device at any time, and that what is
// overwritten is garbage until a checkpoint has freed the segments that hold nothing else.
func TestGarbage(t *testing.T) {
	const seg, blocks = 64 << 10, 256
	dev := newMem(t, segment.DataOff+int64(256*seg)+segment.Guard+segment.Sector, seg, 1)
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 4*domain.MiB)
	fill := func(seed uint64) Stats {
		t.Helper()
		for b := uint64(0); b < blocks; b += 4 {
			if err := put(v, data(b, 4, seed)); err != nil {
				t.Fatal(err)
			}
		}
		st := e.Stats()
		if st.LiveBytes != blocks*segment.BlockSize ||
			st.LiveBytes+st.GarbageBytes+st.FreeSegments*seg != st.Segments*seg {
			t.Fatalf("%d live, %d garbage, %d free of %d segments", st.LiveBytes, st.GarbageBytes,
				st.FreeSegments, st.Segments)
		}
		return st
	}
	first, second := fill(1), fill(2)
	if n := second.GarbageBytes - first.GarbageBytes; n < blocks*segment.BlockSize {
		t.Errorf("overwriting %d bytes left %d", blocks*segment.BlockSize, n)
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if n := second.GarbageBytes - e.Stats().GarbageBytes; n < blocks*segment.BlockSize*3/4 {
		t.Errorf("the checkpoint won %d bytes", n)
	}
}

// TestFullByThousandths fills a device by a thousandth of what it can hold at a time, to the last,
// several times. From nine tenths on something that is there is overwritten after each step, and
// here and there a range is unmapped or a whole volume deleted: none of it is ever refused, at no
// fill, and what is live is the model's to the byte.
func TestFullByThousandths(t *testing.T) {
	const seg = 64 << 10
	dev := newMem(t, segment.DataOff+int64(128*seg)+segment.Guard+segment.Sector, seg, 1)
	f := newFiller(t, open(t, dev))
	defer func() { f.e.Abandon() }()
	for range 3 {
		f.create()
	}
	full, steps := 0, 0
	for ; full < 6 && steps < 20000; steps++ {
		st := f.e.Stats()
		v, m := f.pick()
		block := uint64(0)
		for _, taken := m[block]; taken; _, taken = m[block] {
			block = f.rnd.Uint64N(4096)
		}
		f.n++
		err := put(v, data(block, 1, f.n))
		switch {
		case domain.IsKind(err, domain.NoSpace):
			full++
			f.audit()
			f.overwrite(20)
			if full%3 == 0 {
				f.drop(f.rnd.IntN(len(f.ids)))
				f.create()
			} else {
				f.unmap()
			}
		case err != nil:
			t.Fatal(err)
		default:
			m[block] = f.n
		}
		if st.LiveBytes*10 < st.UsableBytes*9 {
			continue
		}
		f.overwrite(1)
		if f.rnd.IntN(200) == 0 {
			f.unmap()
		}
	}
	if st := f.e.Stats(); full < 6 || st.UsableBytes < 900*segment.BlockSize {
		t.Errorf("full %d times in %d steps of %d bytes", full, steps, st.UsableBytes)
	}
	f.audit()
}
