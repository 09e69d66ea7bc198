package engine

import (
	"bytes"
	"maps"
	"runtime"
	"slices"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/dataplane/segment"
	"weft/domain"
)

// crashedLog gives an engine that wrote to so many segments and was ended as by a crash, all of
// them but the last sealed, and the headers of its log in their order.
func crashedLog(t *testing.T, dev backends.Device, segments int64) (*Engine, []segment.Header) {
	t.Helper()
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	for i := uint64(0); e.space.served.Load() < segments; i++ {
		if err := put(v, data(i%9, 1+int(i/100%2)*4, i+1)); err != nil { // of many chunks, or of few
			t.Fatal(err)
		}
	}
	var heads []segment.Header
	for _, p := range logged(t, e, 0) {
		id := uint32((p.off - e.space.first) / e.space.size)
		if n := len(heads); n > 0 && heads[n-1].Segment == id {
			continue
		}
		heads = append(heads, segment.Header{
			Segment: id, Sequence: p.h.Sequence, Stream: p.h.Stream, Lane: p.h.Lane,
		})
	}
	for _, h := range heads[:len(heads)-1] {
		for !e.space.sealed(e.space.mu.segs[h.Segment]) {
			runtime.Gosched()
		}
	}
	e.Abandon()
	return e, heads
}

// chunkRead is a chunk as it was read.
type chunkRead struct {
	off     int64
	h       segment.Chunk
	entries []byte
}

func chunksOf(t *testing.T, e *Engine, h segment.Header, room *footerRoom,
) (list []chunkRead, sealed bool) {
	t.Helper()
	sealed, err := e.readChunks(h.Segment, h.Sequence, room,
		func(off int64, c *segment.Chunk, entries []byte) error {
			list = append(list, chunkRead{off, *c, slices.Clone(entries)})
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	return list, sealed
}

// TestFooterRoom proves that footers which are read one after the other into the same room are
// the ones that are read alone, whichever is the larger, and that a sector which cannot be read
// in front of one, where the one before had its own, costs nothing; in it, the footer cannot be
// read.
func TestFooterRoom(t *testing.T) {
	inner := newMem(t, 24<<20, 512<<10, 1)
	dev := faulty.New(inner, nil)
	e, heads := crashedLog(t, dev, 9)
	heads = heads[:len(heads)-1]
	for _, kept := range []bool{true, false} {
		room := footerRoom{kept: kept}
		larger, smaller := 0, 0
		for _, h := range append(slices.Clone(heads), heads...) {
			last := room.last
			want, _ := chunksOf(t, e, h, &footerRoom{})
			got, sealed := chunksOf(t, e, h, &room)
			if !sealed || !slices.EqualFunc(got, want, func(a, b chunkRead) bool {
				return a.off == b.off && a.h.LSN == b.h.LSN && bytes.Equal(a.entries, b.entries)
			}) {
				t.Errorf("segment %d: %d chunks, %d alone, sealed %t", h.Segment, len(got), len(want), sealed)
			}
			switch {
			case room.last > last:
				larger++
			case room.last < last:
				smaller++
				bad := dev.Add(faulty.Rule{
					On: faulty.Read, Off: e.space.off(h.Segment+1) - int64(last), Len: segment.Sector,
					Err: backends.ErrMedia,
				})
				room.last = last
				if got, sealed := chunksOf(t, e, h, &room); !sealed || len(got) != len(want) {
					t.Errorf("behind a bad sector %d chunks, not %d, sealed %t", len(got), len(want), sealed)
				}
				bad.Remove()
			}
		}
		if larger == 0 || smaller == 0 {
			t.Errorf("%d footers are larger than the one before, %d smaller", larger, smaller)
		}
	}
	h := heads[0]
	dev.Add(faulty.Rule{
		On: faulty.Read, Off: e.space.off(h.Segment+1) - 2*segment.Sector, Len: segment.Sector,
		Err: backends.ErrMedia,
	})
	if _, err := e.readChunks(h.Segment, h.Sequence, &footerRoom{}, nil); err == nil {
		t.Error("half a footer is read")
	}
}

// TestFooterFront proves that of a footer which is larger than the one before only what is not
// there yet is read, whatever stood in the room, and whether the room has to grow for it; and that
// what was read first is where it belongs then: three footers, each larger than the one before, and
// again.
func TestFooterFront(t *testing.T) {
	inner := newMem(t, 24<<20, 512<<10, 1)
	e, heads := crashedLog(t, inner, 12)
	sizes := map[int]segment.Header{}
	for _, h := range heads[:len(heads)-1] {
		var room footerRoom
		chunksOf(t, e, h, &room)
		sizes[room.last] = h
	}
	order := slices.Sorted(maps.Keys(sizes))
	if len(order) < 3 {
		t.Fatalf("footers of %d bytes", order)
	}
	order = []int{order[0], order[len(order)/2], order[len(order)-1]}
	for _, kept := range []bool{true, false} {
		room := footerRoom{kept: kept}
		for turn, n := range append(slices.Clone(order), order...) {
			h, last := sizes[n], max(room.last, segment.Sector)
			before := inner.Stats()
			_, body, err := e.footer(h.Segment, h.Sequence, &room)
			if err != nil {
				t.Fatal(err)
			}
			after := inner.Stats()
			if got := after.ReadBytes - before.ReadBytes; got != int64(max(n, last)) {
				t.Errorf("%d: %d bytes of %d were read behind %d", turn, got, n, last)
			}
			_, want, err := e.footer(h.Segment, h.Sequence, &footerRoom{})
			if err != nil || !bytes.Equal(body, want) {
				t.Errorf("%d: the footer is another one: %v", turn, err)
			}
		}
	}
}

// TestReplayHoldsLittle proves that sealed segments whose chunks follow each other are redone as
// they are read, and that from the first other one on all is held, as it stands on the device.
func TestReplayHoldsLittle(t *testing.T) {
	for _, gap := range []bool{false, true} {
		dev := newMem(t, smallSize, 64<<10, 1)
		e, heads := crashedLog(t, dev, 8)
		a, err := e.readAnchor()
		if err != nil {
			t.Fatal(err)
		}
		if gap {
			heads = slices.Delete(heads, 2, 3)
		}
		mk := a.Lanes[0]
		r := &replay{l: e.lanes[0], q: newRedoQueue(), mark: mk.LSN, prev: mk.LSN, crc: mk.PrevCRC}
		var want []chunkRead
		for i, h := range heads {
			if err := r.segment(h); err != nil {
				t.Fatal(err)
			}
			list, sealed := chunksOf(t, e, h, &footerRoom{})
			if sealed != (i < len(heads)-1) {
				t.Fatalf("segment %d of %d: sealed %t", i, len(heads), sealed)
			}
			if !sealed || gap && i >= 2 {
				want = append(want, list...)
			} else if last := list[len(list)-1].h.LSN; r.prev != last {
				t.Errorf("gap %t: redone up to %d behind a segment that ends at %d", gap, r.prev, last)
			}
		}
		if !slices.EqualFunc(r.chunks, want, func(a logChunk, b chunkRead) bool {
			return a.h.LSN == b.h.LSN && bytes.Equal(a.entries, b.entries) && a.chain == b.h.Chain(b.entries)
		}) {
			t.Errorf("gap %t: %d chunks are held, %d should", gap, len(r.chunks), len(want))
		}
	}
}

// TestReplayFollows proves that chunks are redone as they are read only when the first names what
// is redone by LSN and by CRC, each of the others the one before, and nothing is held.
func TestReplayFollows(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	e, heads := crashedLog(t, dev, 3)
	var list []logChunk
	_, err := e.readChunks(heads[1].Segment, heads[1].Sequence, &footerRoom{},
		func(off int64, c *segment.Chunk, entries []byte) error {
			list = append(list, logChunk{*c, entries, c.Chain(entries), off + int64(c.HeaderBytes())})
			return nil
		})
	if err != nil || len(list) < 3 {
		t.Fatalf("%d chunks, %v", len(list), err)
	}
	at := func(lsn uint64, crc uint32) *replay { return &replay{prev: lsn, crc: crc} }
	first := list[0].h
	held := at(first.PrevLSN, first.PrevCRC)
	held.chunks = list[:1]
	for name, r := range map[string]*replay{
		"another CRC": at(first.PrevLSN, first.PrevCRC+1),
		"another LSN": at(first.PrevLSN-1, first.PrevCRC),
		"held":        held,
	} {
		if r.follows(list) {
			t.Errorf("%s: follows", name)
		}
	}
	if !at(first.PrevLSN, first.PrevCRC).follows(list) {
		t.Error("what follows does not")
	}
	list[1].chain++
	if at(first.PrevLSN, first.PrevCRC).follows(list) {
		t.Error("a chunk names another one's CRC and follows")
	}
}

// TestReplayRaisesVersions proves that a start behind a crash gives out no version again that the
// log has, of single blocks and of others.
func TestReplayRaisesVersions(t *testing.T) {
	for _, count := range []int{1, 2} {
		dev := newMem(t, smallSize, 64<<10, 1)
		e := open(t, dev, quiet)
		v := create(t, e, 16*domain.MiB)
		for i := range uint64(20) {
			if err := put(v, data(i*2, count, i+1)); err != nil {
				t.Fatal(err)
			}
		}
		last := e.versionSeq.Load()
		e.Abandon()
		e = open(t, dev, quiet)
		if got := e.versionSeq.Load(); got < last || last == 0 {
			t.Errorf("records of %d: versions up to %d are known, %d were given out", count, got, last)
		}
		e.Abandon()
	}
}
