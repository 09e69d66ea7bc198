package engine

import (
	"testing"

	"weft/backends/mem"
	"weft/dataplane/segment"
)

// TestParts proves that what lives is counted by part, of large segments and of small ones, at
// their ends too: as a map of blocks says, whatever order they come and go in, and that settled
// says so of every stretch.
func TestParts(t *testing.T) {
	for _, size := range []uint32{64 << 10, 1 << 20, 3 << 20, 32<<20 - 4096} {
		s := newSpace(&segment.Superblock{
			SegmentSize: size, Segments: 40, FirstOff: segment.DataOff, Lanes: 1,
		})
		rnd := newRand(uint64(size))
		blocks := int(size / segment.BlockSize)
		at := func(id, i int) int64 { return s.off(uint32(id)) + int64(i)*segment.BlockSize }
		alive := map[int64]bool{}
		for range 20_000 {
			off := at(rnd.IntN(40), rnd.IntN(blocks))
			if rnd.IntN(3) == 0 {
				off = at(rnd.IntN(40), blocks-1-rnd.IntN(min(blocks, 20)))
			}
			if alive[off] {
				delete(alive, off)
				s.stand(off, -segment.BlockSize)
			} else {
				alive[off] = true
				s.stand(off, segment.BlockSize)
			}
		}
		for id := range 40 {
			sum, parts := int64(0), map[int64]bool{} // those in which one begins
			for i := range blocks {
				if alive[at(id, i)] {
					sum += segment.BlockSize
					parts[int64(i)*segment.BlockSize>>s.partShift] = true
				}
			}
			for i := range blocks {
				want := false
				first, last := int64(i)*segment.BlockSize, int64(i+1)*segment.BlockSize-1
				for p := first >> s.partShift; p <= last>>s.partShift; p++ {
					want = want || parts[p]
				}
				if want != s.settled(at(id, i), segment.BlockSize) {
					t.Fatalf("segments of %d: block %d of segment %d: settled is %v", size, i, id, !want)
				}
			}
			if got := s.mu.segs[id].live.Load(); got != sum {
				t.Errorf("segments of %d: %d bytes live in segment %d, not %d", size, got, id, sum)
			}
		}
	}
}

// TestPartOfUnits proves that a part takes as many compressed blocks as begin in it, and that they
// do not show in the parts beside it.
func TestPartOfUnits(t *testing.T) {
	s := newSpace(&segment.Superblock{
		SegmentSize: 32 << 20, Segments: 40, FirstOff: segment.DataOff, Lanes: 1,
	})
	part := int64(1) << s.partShift
	off := s.off(7) + 5*part
	loc := segment.MakePacked(uint64(off)/segment.Unit, 1, 1)
	for i := range part / segment.Unit {
		last := off + i*segment.Unit
		room := loc.Room()
		if last+segment.Unit == off+part { // one that begins here and ends in the next part
			room = segment.MakePacked(uint64(last)/segment.Unit, 7, 1).Room()
		}
		s.stand(last, room)
	}
	k := s.part(off)
	if n := s.alive(k); int64(n) != part/segment.Unit-1+7 {
		t.Errorf("%d units in the part", n)
	}
	if s.alive(k-1) != 0 || s.alive(k+1) != 0 || s.settled(off-part, part) {
		t.Errorf("%d and %d units beside it", s.alive(k-1), s.alive(k+1))
	}
}

// TestScarce proves that segments are scarce from where on a checkpoint is due for their sake, and
// no more once enough are free again.
func TestScarce(t *testing.T) {
	s := newSpace(&segment.Superblock{
		SegmentSize: 1 << 20, Segments: 400, FirstOff: segment.DataOff, Lanes: 1,
	})
	s.hurry = func() {}
	for i := range 400 {
		s.mu.free = append(s.mu.free, uint32(i))
	}
	var taken []uint32
	for !s.low() {
		if s.scarce.Load() {
			t.Fatalf("scarce with %d free", s.freeCount())
		}
		id, _ := s.take(segment.StreamLog, 0)
		taken = append(taken, id)
	}
	if !s.scarce.Load() {
		t.Errorf("not scarce with %d free", s.freeCount())
	}
	s.release(taken[:1])
	if s.scarce.Load() {
		t.Errorf("scarce with %d free", s.freeCount())
	}
}

// TestTakeAhead proves that a lane gets no segment ahead where that would leave too few to the
// others, and none on a device on which those that lanes keep are most of what the cleaner has.
func TestTakeAhead(t *testing.T) {
	s := newSpace(&segment.Superblock{
		SegmentSize: 1 << 20, Segments: 400, FirstOff: segment.DataOff, Lanes: 1,
	})
	hurried := false
	s.hurry = func() { hurried = true }
	for i := range 400 {
		s.mu.free = append(s.mu.free, uint32(i))
	}
	const lanes = 4
	n := 0
	for {
		if _, sg := s.takeAhead(0, lanes); sg == nil {
			break
		}
		n++
	}
	if left := s.freeCount(); left != s.reserve(segment.StreamLog)+lanes || !hurried {
		t.Errorf("%d taken, %d left, the cleaner was asked: %v", n, left, hurried)
	}
	band := s.lowWater - s.reserveUser
	for i := range 300 {
		s.mu.free = append(s.mu.free, uint32(i))
	}
	if _, sg := s.takeAhead(0, (band+1)/2); sg != nil {
		t.Errorf("%d lanes took one ahead, with %d for the cleaner", (band+1)/2, band)
	}
	if _, sg := s.takeAhead(0, lanes); sg == nil {
		t.Error("none, with free ones")
	}
	s.stop()
	if _, sg := s.takeAhead(0, 1); sg != nil {
		t.Error("one of a space that has stopped")
	}
}

// TestStartsEarlier proves that below a journal the cleaner starts earlier where much of the device
// need not be full, and where half of what lies before the hosts' reserve is used up a checkpoint
// is due; elsewhere at three quarters.
func TestStartsEarlier(t *testing.T) {
	s := newSpace(&segment.Superblock{
		SegmentSize: 1 << 20, Segments: 400, FirstOff: segment.DataOff, Lanes: 1,
	})
	due := func(free int) bool {
		s.mu.free = make([]uint32, free)
		return s.low()
	}
	for _, k := range []struct {
		brisk       bool
		full        int64 // parts of 100 of what hosts may fill
		start, part int   // the start, and where a checkpoint is due, in parts of 4
	}{
		{false, 0, s.lowWater, 3},
		{true, 100, s.lowWater, 2},
		{true, 50, s.lowWater + int(s.data/2/startPart), 2},
		{true, 0, s.lowWater + int(s.data/startPart), 2},
	} {
		s.brisk = k.brisk
		s.live.Store(s.data * s.packed.Load() / 100 * k.full)
		start := s.start()
		if start < k.start-1 || start > k.start+1 {
			t.Errorf("%+v: it starts at %d", k, start)
		}
		at := start + s.needed() - (start-s.reserveUser)*k.part/4
		if due(at+1) || !due(at) {
			t.Errorf("%+v: at %d free segments a checkpoint is due: %v, with one more: %v", k, at, due(at),
				due(at+1))
		}
	}
	for _, below := range []bool{false, true} {
		dev := newMem(t, smallSize, 64<<10, 1)
		var nv *mem.Memory
		if below {
			nv = newMemory(t, dev, 8)
		}
		e := open(t, dev, quiet, journaled(nv))
		if e.space.brisk != below {
			t.Errorf("below a journal: %v; brisk: %v", below, e.space.brisk)
		}
		e.Abandon()
	}
}
