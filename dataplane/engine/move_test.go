package engine

import (
	"sync"
	"testing"

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
		st.Checkpoints > st.LogBytes/(2*256<<10) {
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
