package engine

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// modelRun drives an engine by chance and keeps what every byte must be. A block is a pair of
// halves of 2 KiB, each spelling a number, so that two writers can each own one half of a block.
type modelRun struct {
	t    *testing.T
	dev  backends.Device
	nv   *mem.Memory // nil: without a journal
	e    *Engine
	rnd  *rand.Rand
	vols map[domain.VolumeID]map[uint64][2]uint64
	ids  []domain.VolumeID
	n    uint64
	next byte
	tune []func(*Config)
	thin uint64 // of an extent, the part that is written to
}

const half = segment.BlockSize / 2

func halves(p [2]uint64) []byte {
	b := backends.AlignedBuffer(segment.BlockSize)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], word(p[i/half], i))
	}
	return b
}

func (m *modelRun) volume() (*Volume, map[uint64][2]uint64) {
	id := m.ids[m.rnd.IntN(len(m.ids))]
	v, ok := m.e.Volume(id)
	if !ok {
		m.t.Fatalf("volume %s is gone", id)
	}
	return v, m.vols[id]
}

// blocks gives a range inside one extent; the volumes are of 8 MiB.
func (m *modelRun) blocks(most int) (uint64, int) {
	count := 1 + m.rnd.IntN(most)
	return m.rnd.Uint64N(2)*1024 + m.rnd.Uint64N(uint64(1024-count+1))/m.thin%400, count
}

// write sends a batch of records at once, in order, and waits for all. Overlapping ones are the
// point: the later one wins.
func (m *modelRun) write() {
	var wg sync.WaitGroup
	full := atomic.Int64{}
	for range 1 + m.rnd.IntN(12) {
		v, model := m.volume()
		block, count := m.blocks(4)
		m.n++
		r := &Record{Kind: segment.KindData, Block: block, Count: count, Data: fill(count, m.n)}
		val := [2]uint64{m.n, m.n}
		switch m.rnd.IntN(10) {
		case 0:
			r.Kind, val = segment.KindZero, [2]uint64{}
		case 1:
			r.Kind, val = segment.KindUnmap, [2]uint64{}
		case 2:
			r.Data, val = make([]byte, len(r.Data)), [2]uint64{}
		}
		wg.Add(1)
		r.To = acker(func(err error) {
			if err != nil {
				full.Add(1)
			}
			wg.Done()
		})
		v.Append(r)
		for i := range uint64(count) {
			model[block+i] = val
		}
	}
	wg.Wait()
	if full.Load() > 0 {
		m.t.Fatalf("refused: %+v", m.e.Stats())
	}
}

// merge lets two writers change one half each of the same block, read-modify-write under a hold.
func (m *modelRun) merge() {
	v, model := m.volume()
	block, _ := m.blocks(1)
	var wg sync.WaitGroup
	val := model[block]
	for side := range 2 {
		m.n++
		val[side] = m.n
		n := m.n
		wg.Add(1)
		go func() {
			defer wg.Done()
			h, err := v.Hold(block, 1)
			if err != nil {
				m.t.Error(err)
				return
			}
			buf := backends.AlignedBuffer(segment.BlockSize)
			if err := v.Read(block, 1, buf); err != nil {
				m.t.Error(err)
			}
			for i := side * half; i < (side+1)*half; i += 8 {
				binary.LittleEndian.PutUint64(buf[i:], word(n, i))
			}
			w := &waiter{}
			w.wg.Add(1)
			r := &Record{Kind: segment.KindData, Block: block, Count: 1, Data: buf, To: w}
			h.Append(r)
			h.Release() // the next holder waits for the record, not for the release alone
			w.wg.Wait()
			if w.err != nil {
				m.t.Error(w.err)
			}
		}()
	}
	wg.Wait()
	model[block] = val
}

func (m *modelRun) read() {
	v, model := m.volume()
	block, count := m.blocks(64)
	got := backends.AlignedBuffer(count*segment.BlockSize + 1)[m.rnd.IntN(2):] // aligned or not
	got = got[:count*segment.BlockSize]
	if err := v.Read(block, count, got); err != nil {
		m.t.Fatal(err)
	}
	for i := range uint64(count) {
		want := halves(model[block+i])
		if !bytes.Equal(got[i*segment.BlockSize:(i+1)*segment.BlockSize], want) {
			m.t.Fatalf("block %d+%d: not %v", block, i, model[block+i])
		}
	}
}

func (m *modelRun) create() {
	id := domain.VolumeID{UUID: domain.UUID{m.next, 2}}
	m.next++
	if _, err := m.e.Create(background, id, 8*domain.MiB, 1); err != nil {
		m.t.Fatal(err)
	}
	m.vols[id] = map[uint64][2]uint64{}
	m.ids = append(m.ids, id)
	squeezed(m.e)
}

func (m *modelRun) drop() {
	i := m.rnd.IntN(len(m.ids))
	if err := m.e.Delete(background, m.ids[i]); err != nil {
		m.t.Fatal(err)
	}
	delete(m.vols, m.ids[i])
	m.ids = append(m.ids[:i], m.ids[i+1:]...)
}

func (m *modelRun) restart(clean bool) {
	if clean {
		if err := m.e.Close(); err != nil {
			m.t.Fatal(err)
		}
	}
	m.e.Abandon()
	m.e = open(m.t, m.dev, append(m.tune, often, journaled(m.nv), func(c *Config) {
		c.Report = func(f Fact) { m.t.Errorf("reported %+v", f) }
	})...)
	squeezed(m.e)
}

func (m *modelRun) audit() {
	for id, model := range m.vols {
		v, _ := m.e.Volume(id)
		got := backends.AlignedBuffer(segment.BlockSize)
		for b, p := range model {
			if err := v.Read(b, 1, got); err != nil || !bytes.Equal(got, halves(p)) {
				m.t.Fatalf("block %d: not %v: %v", b, p, err)
			}
		}
	}
	recount(m.t, m.e)
}

// step does one thing by chance.
func (m *modelRun) step() {
	switch d := m.rnd.IntN(100); {
	case d < 55:
		m.write()
	case d < 65:
		m.merge()
	case d < 92:
		m.read()
	case d < 94:
		if err := m.e.Checkpoint(); err != nil {
			m.t.Fatal(err)
		}
	case d < 96 && len(m.ids) < 4:
		m.create()
	case d < 97 && len(m.ids) > 1:
		m.drop()
	case d == 98:
		m.restart(true)
	case d == 99:
		m.restart(false)
	}
}

// TestModel runs an engine by chance against a map of what every byte must be: overwrites in one
// batch, zeros, holes, read-modify-write of the halves of a block by two writers, checkpoints,
// cleaning, clean and unclean restarts, volumes that come and go; on one and on three lanes (E1,
// E6, E12). At the end the index is recounted.
func TestModel(t *testing.T) { runModel(t, false) }

var (
	models     = flag.Int("models", 4, "seeds of TestModel and TestJournalModel")
	modelFirst = flag.Int("model.first", 0, "the first of them")
)

// runModel runs the model on so many devices, with a journal or without.
func runModel(t *testing.T, journal bool) {
	steps := 6000
	if raceOn || testing.Short() {
		steps = 900
	}
	for i := range *models {
		seed := uint64(*modelFirst + i)
		dev := newMem(t, segment.DataOff+90*(128<<10)+segment.Guard+segment.Sector, 128<<10,
			1+int(seed%2)*2)
		m := &modelRun{t: t, dev: dev, rnd: newRand(seed), thin: 3}
		m.vols = map[domain.VolumeID]map[uint64][2]uint64{}
		if journal {
			m.nv = newMemory(t, dev, 14)
		}
		m.tune = append(m.tune, strewn(seed))
		m.e = open(t, dev, often, journaled(m.nv), strewn(seed))
		m.create()
		m.create()
		cleaned, destaged, packed, straight := int64(0), int64(0), int64(0), int64(0)
		for i := range steps {
			was := m.e
			m.step()
			if m.e != was {
				cleaned += was.Stats().Cleaned
				destaged += was.Stats().Destages
				packed += was.Stats().PackedBlocks
				if journal {
					straight += was.nv.batch.straight.count
				}
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
		t.Logf("seed %d: %d segments cleaned, %d batches destaged, %d straight, %d blocks compressed",
			seed, cleaned, destaged, straight, packed)
		if seed < 4 && (cleaned == 0 || packed == 0 || journal != (destaged > 0)) ||
			journal && seed%2 == 0 && straight == 0 {
			t.Error("not all was done that should be")
		}
		m.e.Abandon()
	}
}

// TestReadsWhileCleaning reads blocks while they are overwritten, cleaned and their segments
// reused. Each read must give a number that was current at some moment of it: no older than what
// was acknowledged before it began, no newer than what was begun before it ended, and whole (E6,
// E7, E10).
func TestReadsWhileCleaning(t *testing.T) {
	const writers, each = 4, 60
	rounds := uint64(700)
	if raceOn || testing.Short() {
		rounds = 120
	}
	dev := newMem(t, segment.DataOff+44*(64<<10)+segment.Guard+segment.Sector, 64<<10, 1)
	e := open(t, dev, often, func(c *Config) {
		c.Report = func(f Fact) { t.Errorf("reported %+v", f) }
	})
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	var begun, acked [writers * each]atomic.Uint64
	var writing, reading sync.WaitGroup
	done := make(chan struct{})
	for w := range uint64(writers) {
		writing.Add(1)
		go func() {
			defer writing.Done()
			rnd := newRand(w)
			for n := uint64(1); n < rounds*each/8; n++ {
				b := w*each + rnd.Uint64N(each)
				begun[b].Store(n)
				if err := put(v, data(b, 1, n)); err != nil {
					t.Error(err)
					return
				}
				acked[b].Store(n)
			}
		}()
	}
	reads := atomic.Int64{}
	for r := range uint64(3) {
		reading.Add(1)
		go func() {
			defer reading.Done()
			rnd := newRand(100 + r)
			buf := backends.AlignedBuffer(4 * segment.BlockSize)
			for {
				select {
				case <-done:
					return
				default:
				}
				b, count := rnd.Uint64N(writers*each-3), 1+rnd.IntN(4)
				var from [4]uint64
				for i := range count {
					from[i] = acked[int(b)+i].Load()
				}
				p := buf[:count*segment.BlockSize]
				if err := v.Read(b, count, p); err != nil {
					t.Error(err)
					return
				}
				for i := range count {
					one := p[i*segment.BlockSize : (i+1)*segment.BlockSize]
					n := binary.LittleEndian.Uint64(one)
					if n < from[i] || n > begun[int(b)+i].Load() || !bytes.Equal(one, fill(1, n)) {
						t.Errorf("block %d spells %d: %d..%d", int(b)+i, n, from[i], begun[int(b)+i].Load())
						return
					}
				}
				reads.Add(1)
			}
		}()
	}
	writing.Wait()
	close(done)
	reading.Wait()
	if st := e.Stats(); st.Cleaned < 20 || st.Checkpoints < 20 {
		t.Errorf("too little was cleaned: %+v", st)
	}
	t.Logf("%d reads, %+v", reads.Load(), e.Stats())
	recount(t, e)
}
