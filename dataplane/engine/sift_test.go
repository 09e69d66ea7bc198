package engine

import (
	"slices"
	"testing"

	"weft/dataplane/segment"
	"weft/domain"
)

// TestSift proves that the cleaner passes over all single blocks that do not live, and over nothing
// else, whatever stands between them; over nothing that it would have to look up where much lives;
// and over nothing that lives where blocks are not of the lane that their chunk names.
func TestSift(t *testing.T) {
	dev := newMem(t, 128<<20, 2<<20, 2)
	nv := newMemory(t, dev, 16)
	e := open(t, dev, quiet, journaled(nv))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	const blocks = 16 << 20 / segment.BlockSize
	rnd := newRand(140)
	for n := range uint64(4 * blocks) {
		r := data(rnd.Uint64N(blocks), 1, n+1)
		if n%97 == 0 {
			r = data(rnd.Uint64N(blocks/4)*4, 3, n+1)
		}
		if err := put(v, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	c, passed, live, others, most, looked := e.newCleaner(), 0, 0, 0, 0, 0
	for id, sg := range e.space.mu.segs {
		if !e.space.sealed(sg) || sg.stream != segment.StreamLog {
			continue
		}
		err := e.eachChunk(uint32(id), sg.seq, func(off int64, h *segment.Chunk, entries []byte) error {
			base := off + int64(h.HeaderBytes())
			want, alive := e.wantedOf(t, base, h, entries)
			got := c.stops(t, base, h, entries)
			if !slices.Equal(got, want) {
				t.Errorf("segment %d at %d: stops at %v, wanted %v", id, off, got, want)
			}
			passed, live, others = passed+int(h.Entries)-len(want), live+len(alive),
				others+len(want)-len(alive)
			most = max(most, int(h.Entries))
			c.sieve.full = true
			whole := c.stops(t, base, h, entries)
			c.sieve.full = false
			looked += len(whole)
			for _, at := range want {
				if !slices.Contains(whole, at) {
					t.Errorf("segment %d at %d: of a full one, what stands at %d was passed over", id, off, at)
				}
			}
			for _, lane := range []uint8{1 - h.Lane, segment.LanesMax - 1} {
				wrong := *h
				wrong.Lane = lane
				whole := c.stops(t, base, &wrong, entries)
				for _, at := range alive {
					if !slices.Contains(whole, at) {
						t.Errorf("segment %d at %d: what lives at %d was passed over", id, off, at)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if looked < 2*(live+others) {
		t.Errorf("full ones: stops at %d, where %d live and %d are of another kind", looked, live, others)
	}
	if passed < 1000 || live < 100 || others < 10 || most < 3*sieveMost {
		t.Errorf("%d passed over, %d live, %d of another kind, %d at most of a chunk", passed, live,
			others, most)
	}
}

// wantedOf gives the places in a chunk's entries at which the cleaner is to stop, and those of them
// where a single block lives.
func (e *Engine) wantedOf(t *testing.T, base int64, h *segment.Chunk, entries []byte,
) (all, live []int) {
	t.Helper()
	var is [segment.RecordBlocks]bool
	for range h.Entries {
		var en segment.Entry
		var one segment.Single
		n, err := segment.DecodeEntry(entries, h.LSN, &en)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case segment.DecodeSingle(entries, h.LSN, &one) == 0:
			all = append(all, len(entries))
		case e.liveAt(&en, entries[:n], uint64(base)/segment.Unit, is[:1]) != nil:
			all, live = append(all, len(entries)), append(live, len(entries))
		}
		entries = entries[n:]
	}
	return all, live
}

// stops gives the places in a chunk's entries at which the cleaner stops.
func (c *cleaner) stops(t *testing.T, base int64, h *segment.Chunk, entries []byte) (all []int) {
	t.Helper()
	c.sieve.end = len(entries)
	for len(entries) > 0 {
		if entries = c.sift(base, h, entries); len(entries) == 0 {
			break
		}
		var en segment.Entry
		n, err := segment.DecodeEntry(entries, h.LSN, &en)
		if err != nil {
			break // the padding
		}
		all = append(all, len(entries))
		entries = entries[n:]
	}
	return all
}
