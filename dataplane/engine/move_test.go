package engine

import (
	"sync"
	"testing"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// TestSequentialOverwriteMovesNothing proves that a range which is written again and again from end
// to end costs no cleaning: its segments die whole, and the cleaner waits for them, although there
// are others that are half dead and would be the best to clean.
func TestSequentialOverwriteMovesNothing(t *testing.T) {
	e := open(t, newMem(t, 96<<20, 256<<10, 1))
	defer e.Abandon()
	v := create(t, e, 48*domain.MiB)
	step := uint64(v.RecordBlocks())
	for b := range uint64(1024) {
		for _, at := range []uint64{b, 1024 + b} {
			if err := put(v, data(at, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for b := uint64(1024); b < 2048; b += step {
		if err := put(v, data(b, int(step), 1)); err != nil {
			t.Fatal(err)
		}
	}
	for pass := range uint64(6) {
		for b := uint64(2048); b+step <= 12<<10; b += step {
			if err := put(v, data(b, int(step), pass+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if st := e.Stats(); st.MovedBytes != 0 || st.Checkpoints < 2 ||
		st.Checkpoints > st.LogBytes/(8*256<<10) {
		t.Errorf("%d bytes moved by %d checkpoints for %d of log", st.MovedBytes, st.Checkpoints,
			st.LogBytes)
	}
	check(t, v, 5000, 6)
	recount(t, e)
}

// TestMovedInOrder proves that what random writes have scattered stands sorted by block once it was
// moved, but where a chunk holds the end of one window and the start of the next.
func TestMovedInOrder(t *testing.T) {
	e := open(t, newMem(t, 32<<20, 1<<20, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	rnd := newRand(1)
	var wg sync.WaitGroup
	const blocks = 3072
	for i := range uint64(40_000) {
		r := data(rnd.Uint64N(blocks), 1, i+1)
		wg.Add(1)
		r.To = acker(func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
		v.Append(r)
	}
	wg.Wait()
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	chunks, breaks, moved := 0, 0, 0
	for id, sg := range e.space.mu.segs {
		if sg.state != segSealed || sg.stream != segment.StreamGen1 && sg.stream != segment.StreamGen2 {
			continue
		}
		err := e.eachChunk(uint32(id), sg.seq, func(_ int64, h *segment.Chunk, entries []byte) error {
			chunks++
			last := uint64(0)
			for len(entries) > 0 {
				var en segment.Entry
				n, err := segment.DecodeEntry(entries, h.LSN, &en)
				if err != nil {
					break
				}
				if entries = entries[n:]; en.Block < last {
					breaks++
				}
				last = en.Block
				moved++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if chunks == 0 || breaks > chunks || moved < 20*breaks {
		t.Errorf("%d chunks with %d blocks, %d not in order", chunks, moved, breaks)
	}
}

// bursts is a device that counts what is being read at once by started reads.
type bursts struct {
	backends.Device
	mu        sync.Mutex
	now, most int
	wg        sync.WaitGroup
}

// StartRead reads on a goroutine of its own.
func (d *bursts) StartRead(r *backends.Read, _ bool) bool {
	d.mu.Lock()
	d.now += len(r.P)
	d.most = max(d.most, d.now)
	d.mu.Unlock()
	d.wg.Go(func() {
		err := d.ReadAt(r.P, r.Off)
		d.mu.Lock()
		d.now -= len(r.P)
		d.mu.Unlock()
		r.To.ReadDone(r, err)
	})
	return true
}

// KickReads has nothing to do.
func (d *bursts) KickReads() {}

// lending lets a device that is wrapped take parts, through a copy.
type lending struct{ bursts }

// WriteVAt implements backends.VectorWriter.
func (d *lending) WriteVAt(parts [][]byte, off int64, fua bool) error {
	all := backends.AlignedBuffer(0)
	for _, p := range parts {
		all = append(all, p...)
	}
	whole := backends.AlignedBuffer(len(all))
	copy(whole, all)
	return d.WriteAt(whole, off, fua)
}

// TestMovedTogether proves of records of many blocks, of which some were written over, that what
// lives of one is moved as few entries, that it reads as it was, also after a restart, whether it
// was copied or written from where it was read, and that no more than a step is read at once.
func TestMovedTogether(t *testing.T) {
	for _, lends := range []bool{false, true} {
		inner := newMem(t, 32<<20, 1<<20, 1)
		burst := &bursts{Device: inner}
		dev := backends.Device(burst)
		if lends {
			l := &lending{bursts{Device: inner}}
			burst, dev = &l.bursts, l
		}
		e := open(t, dev)
		v := create(t, e, 16*domain.MiB)
		const records, blocks = 200, 16
		want := map[uint64]uint64{}
		rnd := newRand(3)
		for i := range uint64(2000) {
			at, n := rnd.Uint64N(records)*blocks, blocks
			if i%4 == 3 {
				at, n = at+4, 2
			}
			if err := put(v, data(at, n, i+1)); err != nil {
				t.Fatal(err)
			}
			for k := range uint64(n) {
				want[at+k] = i + 1
			}
		}
		e.maint.ckpt.Lock() // what the cleaner had begun is done
		entries, moved := movedEntries(t, e)
		e.maint.ckpt.Unlock()
		if moved < 100 || entries*3 > moved {
			t.Errorf("%d blocks moved by %d entries", moved, entries)
		}
		burst.mu.Lock()
		if burst.most == 0 || burst.most > stepMax {
			t.Errorf("%d bytes were read at once", burst.most)
		}
		burst.mu.Unlock()
		for range 2 {
			for at, n := range want {
				check(t, v, at, n)
			}
			recount(t, e)
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			e = open(t, dev, quiet)
			v = mustVolume(t, e)
		}
		e.Abandon()
		burst.wg.Wait()
	}
}

// movedEntries counts entries and blocks in the cleaner's segments.
func movedEntries(t *testing.T, e *Engine) (entries, blocks int) {
	t.Helper()
	for id, sg := range e.space.mu.segs {
		if sg.state != segSealed || sg.stream != segment.StreamGen1 {
			continue
		}
		err := e.eachChunk(uint32(id), sg.seq, func(_ int64, h *segment.Chunk, list []byte) error {
			for len(list) > 0 {
				var en segment.Entry
				n, err := segment.DecodeEntry(list, h.LSN, &en)
				if err != nil {
					break
				}
				list = list[n:]
				entries++
				blocks += en.Count
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return entries, blocks
}
