package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"

	"weft/domain"
)

// TestArithmetic proves the sums that the sizes of the format were chosen for: full sectors of
// entries, the overhead of a chunk of one-block records, and limits that fit their fields.
func TestArithmetic(t *testing.T) {
	fresh, moved := EntrySettled+EntryFresh, EntrySettled+EntryMoved
	leafRefs := LeafMax + Sector - 1
	for _, c := range []struct {
		what string
		ok   bool
	}{
		{"63 fresh entries fill one header sector", ChunkHeader+63*fresh == Sector},
		{"254 settled entries fit three", ChunkHeader+254*EntrySettled <= 3*Sector},
		{"255 fresh entries fill four", ChunkHeader+255*fresh == 4*Sector},
		{"255 moved entries fill four", ChunkHeader+255*moved == 4*Sector},
		{"256 blocks of payload are the most", RecordBlocks*BlockSize == PayloadMax},
		{"256 moved entries fit the header", ChunkHeader+256*moved <= HeaderMax},
		{"1022 fresh entries fit the header", ChunkHeader+1022*fresh <= HeaderMax},
		{"a record of 256 blocks is 1084 B", fresh+4*(RecordBlocks-1) == 1084},
		{"the largest record fits a header", ChunkHeader+fresh+EntryMoved+4*RecordBlocks <= HeaderMax},
		{"count-1 of a record fits a byte", RecordBlocks-1 <= 0xff},
		{"units of a record fit 16 bits", RecordBlocks*BlockUnits <= 0xffff},
		{"a dense leaf is 8256 B", LeafMax == 8256 && leafRefs/Sector == 3},
		{"its size fits a piece of one chunk", LeafMax <= PayloadMax},
		{"anchors hold their lanes and window", 64+LanesMax*32+windowMax*4 <= Sector-4},
		{"the ring of anchors ends before the data", AnchorOff+AnchorSlots*Sector <= DataOff},
		{"copies divide the ring", AnchorSlots%AnchorCopies == 0},
		{
			"the last anchor stays in the ring",
			AnchorPlace(1<<64-1)+AnchorCopies*Sector <= AnchorOff+AnchorSlots*Sector,
		},
		{"the largest device has addresses for all", SizeMax/BlockSize <= addrMax},
		{"the guard covers the addresses of no place", Guard/BlockSize > uint64(LostLoc)},
		{"the lines of a BRANCH record fit a sector", BranchesMax*BranchBytes <= Sector},
		{"the key table stands behind the scrub's marks", ScrubOff+ScrubCopies*Sector <= KeysOff},
		{"and before the segments", KeyOff(KeyPages-1, KeyCopies-1)+Sector <= DataOff},
		{"it holds 2800 keys", KeysMax == 2800},
		{
			"the largest encrypted record fits a header",
			ChunkHeader+SaltBytes+fresh+EntryMoved+(4+TagBytes)*RecordBlocks <= HeaderMax,
		},
		{"the largest record of a replica fits a header", ChunkHeader+SaltBytes+fresh+EntryMoved+
			4*RecordBlocks+MaskMax <= HeaderMax},
		{"a mask has a bit for every block of an extent", len(Mask{})*64 == LeafBlocks},
		{"zeros have no place and are not a hole", ZeroLoc.Kind() == Zero && ZeroLoc != 0},
	} {
		if !c.ok {
			t.Errorf("no longer true: %s", c.what)
		}
	}
}

// TestPairLayout proves where a pair's superblocks stand and which segments it does not use: the
// copies below the boundary, the segment that lies across it never used and of neither part, and
// the boundary and its feature bit together or not at all.
func TestPairLayout(t *testing.T) {
	s := goldenPair()
	s.Boundary = DataOff + 100*uint64(s.SegmentSize) + Guard/2
	b := make([]byte, Sector)
	for i, off := range s.SuperOffsets() {
		if off+Sector > int64(s.Boundary) {
			t.Errorf("copy %d at %d, the boundary at %d", i, off, s.Boundary)
		}
	}
	if !s.Reserved(100) || s.OnDisk(100) || s.Reserved(101) || !s.OnDisk(101) || s.OnDisk(99) ||
		!s.Reserved(99) || s.Reserved(98) {
		t.Error("the segments about the boundary are of the wrong part")
	}
	if one := goldenSuper(); one.OnDisk(254) || one.SuperOffsets() != SuperOffsets(int64(one.Size)) {
		t.Error("a device alone has a disk")
	}
	for _, c := range []struct {
		boundary, incompat uint64
		ok                 bool
	}{
		{s.Boundary, IncompatBase | IncompatPair, true},
		{0, IncompatBase, true},
		{s.Boundary, IncompatBase, false},
		{0, IncompatBase | IncompatPair, false},
		{s.Size, IncompatBase | IncompatPair, false},
		{DataOff - Sector, IncompatBase | IncompatPair, false},
		{s.Boundary + 512, IncompatBase | IncompatPair, false},
		{s.Boundary, IncompatBase | IncompatPair | IncompatKeys | IncompatLives, true},
		{s.Boundary, IncompatBase | IncompatPair | IncompatKeys, false},
		{0, IncompatBase | IncompatKeys | IncompatLives, false},
	} {
		s.Boundary, s.Incompat = c.boundary, c.incompat
		s.Encode(b)
		if _, err := DecodeSuperblock(b); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestSuperOffsets proves that the three copies lie apart, aligned and inside the device.
func TestSuperOffsets(t *testing.T) {
	for _, size := range []int64{4 << 20, 4<<20 + 512, 1<<30 + 12345*512, SizeMax} {
		o := SuperOffsets(size)
		for i, off := range o {
			if off%Sector != 0 || off < Guard || off+Sector > size || i > 0 && off < o[i-1]+Sector {
				t.Errorf("size %d: copies at %v", size, o)
			}
		}
	}
}

// TestLaneOf proves that the lane of an extent is what it was when the format was fixed, and that
// any 256 neighbours, 1 GiB of a volume, keep every lane busy.
func TestLaneOf(t *testing.T) {
	var got []int
	for ext := range uint32(16) {
		got = append(got, LaneOf(7, ext, 16))
	}
	want := []int{10, 10, 9, 14, 11, 5, 1, 3, 13, 8, 4, 7, 4, 10, 5, 11}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("lanes %v, not %v", got, want)
	}
	for lanes := 2; lanes <= LanesMax; lanes++ {
		for branch := uint32(1); branch < 20; branch++ {
			count := make([]int, lanes)
			for ext := range uint32(256) {
				count[LaneOf(branch, 1000+ext, lanes)]++
			}
			for lane, n := range count {
				if n < 256/lanes/4 || n > 256/lanes*5/2 {
					t.Errorf("lane %d of %d has %d of 256 extents of branch %d", lane, lanes, n, branch)
				}
			}
		}
	}
}

// TestLoc proves that a location gives back what it was made of, at the ends of both fields, and
// that what no version writes reads as lost.
func TestLoc(t *testing.T) {
	for _, block := range []uint64{Guard / BlockSize, DataOff / BlockSize, addrMax - 1} {
		for _, crc := range []uint32{0, 1, 0xdeadbeef, 1<<32 - 1} {
			l := MakeLoc(block*BlockUnits, crc)
			if l.Kind() != Flash || l.Addr() != block*BlockUnits || l.Off() != int64(block*BlockSize) ||
				l.CRC() != crc&^(1<<31) || l.Packed() || l.Room() != BlockSize {
				t.Errorf("block %d CRC %#x: %#x", block, crc, uint64(l))
			}
			for i := range uint64(BlockUnits * UnitsMax) {
				addr, units := block*BlockUnits+i%BlockUnits, 1+int(i/BlockUnits)
				l := MakePacked(addr, units, crc)
				from, to := l.Span()
				if l.Kind() != Flash || !l.Packed() || l.Addr() != addr || l.Units() != units ||
					l.CRC() != crc&(1<<25-1) || l.Stored() != units*Unit || l.Off() != int64(addr)*Unit ||
					from != int64(block*BlockSize) || to < l.Off()+int64(l.Stored()) ||
					to-int64(Sector) >= l.Off()+int64(l.Stored()) || l == MakeLoc(block*BlockUnits, crc) {
					t.Errorf("%d units at %d CRC %#x: %#x", units, addr, crc, uint64(l))
				}
			}
		}
	}
	for loc, kind := range map[Loc]LocKind{
		0: None, HoleLoc: Hole, ZeroLoc: Zero, LostLoc: Lost, LostLoc + 1: Lost, 1<<32 - 1: Lost,
		MakePacked(DataOff/Unit, 0, 7): Lost,
	} {
		if loc.Kind() != kind {
			t.Errorf("%#x is of kind %d", uint64(loc), loc.Kind())
		}
	}
}

// TestEntryLSN proves that the 32 stored bits of an accept LSN give the whole of it for every entry
// of a chunk, also where the low half wraps inside the chunk.
func TestEntryLSN(t *testing.T) {
	b := make([]byte, 128)
	for _, last := range []uint64{1, 1008, 1 << 32, 1<<32 + 5, 1<<40 - 1, 1<<56 + 3} {
		for back := range uint64(1008) {
			if back >= last {
				break
			}
			in := Entry{Branch: 1, Count: 1, Kind: KindZero, Range: 1, LSN: last - back}
			in.Encode(b, nil)
			var out Entry
			if _, err := DecodeEntry(b, last, &out); err != nil || out.LSN != in.LSN {
				t.Fatalf("LSN %d in chunk %d reads as %d: %v", in.LSN, last, out.LSN, err)
			}
		}
	}
}

// TestPutLSN proves that an entry that is given its LSN late is what it were had it had it before,
// whatever else stands in it.
func TestPutLSN(t *testing.T) {
	for _, lsn := range []uint64{1, 1<<32 - 1, 1 << 32, 1<<40 + 7} {
		for _, en := range goldenEntries() {
			if en.Flags&FlagMoved != 0 {
				continue
			}
			further := make([]uint32, en.Count)
			late, want := make([]byte, 256), make([]byte, 256)
			en.LSN = 0
			en.Encode(late, further)
			PutLSN(late, lsn)
			en.LSN = lsn
			en.Encode(want, further)
			if !bytes.Equal(late, want) {
				t.Errorf("LSN %d given late: %x, not %x", lsn, late, want)
			}
		}
	}
}

// TestEntriesRoundTrip proves that the entries of a chunk are read back one by one, further
// checksums included.
func TestEntriesRoundTrip(t *testing.T) {
	c, b := goldenChunk()
	_, entries, err := DecodeChunk(b, goldenSalt)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range goldenEntries() {
		var got Entry
		n, err := DecodeEntry(entries, c.LSN, &got)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if want.Count == 3 && (got.Further(entries, 0) != want.CRC || got.Further(entries, 2) != 0x92) {
			t.Errorf("entry %d: further checksum %x", i, got.Further(entries, 2))
		}
		got.FurtherAt = 0
		if !reflect.DeepEqual(got, want) {
			t.Errorf("entry %d reads as\n%+v, not\n%+v", i, got, want)
		}
		entries = entries[n:]
	}
	if len(entries) != 0 {
		t.Errorf("%d bytes left over", len(entries))
	}
}

// TestEntryRefusals proves that what no writer writes is refused although a checksum may cover it.
func TestEntryRefusals(t *testing.T) {
	for name, spoil := range map[string]func(b []byte){
		"kind 0":             func(b []byte) { b[10] = 0 },
		"unknown kind":       func(b []byte) { b[10] = byte(KindRoot) + 1 },
		"encrypted hole":     func(b []byte) { b[10], b[11] = byte(KindUnmap), b[11]|FlagEncrypted },
		"compressed":         func(b []byte) { b[11] |= FlagCompressed },
		"units of no record": func(b []byte) { b[36]++ },
		"between two blocks": func(b []byte) { b[32]++ },
		"beyond the extent":  func(b []byte) { le.PutUint32(b[4:], LeafBlocks-1) },
	} {
		e := goldenEntries()[1]
		b := make([]byte, 256)
		e.Encode(b, []uint32{1, 2})
		spoil(b)
		if _, err := DecodeEntry(b, 100, &e); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, units := range []uint16{0, UnitsMax + 1} {
		e := packedEntry()
		e.Units = units
		b := make([]byte, e.Size())
		e.Encode(b, nil)
		if _, err := DecodeEntry(b, 100, e); !errors.Is(err, ErrBad) {
			t.Errorf("compressed to %d units: %v", units, err)
		}
	}
	for _, n := range []uint64{0, LeafBlocks - 2, 1 << 47} {
		e := Entry{Branch: 1, Block: 3, Count: 1, Kind: KindUnmap, Range: n}
		b := make([]byte, EntrySettled)
		e.Encode(b, nil)
		if _, err := DecodeEntry(b, 100, &e); !errors.Is(err, ErrBad) {
			t.Errorf("range of %d: %v", n, err)
		}
	}
}

// TestSuperblockRefusals proves that a superblock that describes no device is refused at decoding,
// and an unknown incompatible feature with it (E13).
func TestSuperblockRefusals(t *testing.T) {
	for name, spoil := range map[string]func(s *Superblock){
		"no segments":       func(s *Superblock) { s.Segments = 0 },
		"segment size zero": func(s *Superblock) { s.SegmentSize = 0 },
		"odd segment size":  func(s *Superblock) { s.SegmentSize += 512 },
		"data in the ring":  func(s *Superblock) { s.FirstOff = Guard },
		"beyond the end":    func(s *Superblock) { s.Segments = 256 },
		"no lanes":          func(s *Superblock) { s.Lanes = 0 },
		"too many lanes":    func(s *Superblock) { s.Lanes = LanesMax + 1 },
		"odd logical block": func(s *Superblock) { s.LogicalBlock = 520 },
		"version 0":         func(s *Superblock) { s.Version = 0 },
		"version before":    func(s *Superblock) { s.Version = FormatVersion - 1 },
		"later version":     func(s *Superblock) { s.Version = FormatVersion + 1 },
		"unknown feature":   func(s *Superblock) { s.Incompat |= 1 << 63 },
		"too large":         func(s *Superblock) { s.Size = SizeMax + 1 },
	} {
		s := goldenSuper()
		spoil(s)
		b := make([]byte, Sector)
		s.Encode(b)
		if _, err := DecodeSuperblock(b); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := goldenSuper()
	s.Compat, s.ROCompat = 1<<40, 1<<41
	b := make([]byte, Sector)
	s.Encode(b)
	if got, err := DecodeSuperblock(b); err != nil || got.ROCompat != 1<<41 {
		t.Errorf("compatible features: %+v, %v", got, err)
	}
}

// TestLeafRoundTrip proves that any leaf is read back, in the smaller of its two forms, by random
// leaves from empty over scattered to full.
func TestLeafRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	var got Leaf
	for range 2000 {
		l := Leaf{Branch: rnd.Uint32(), Extent: rnd.Uint32(), Complete: rnd.Uint64()}
		fill, stay := rnd.Float64(), rnd.Float64()
		block := 512 + rnd.Uint64N(addrMax/2)
		for i := range LeafBlocks {
			if rnd.Float64() > fill {
				continue
			}
			if rnd.Float64() > stay {
				block = 512 + rnd.Uint64N(addrMax/2)
			}
			switch block++; rnd.IntN(60) {
			case 0:
				l.Loc[i] = ZeroLoc
			case 1:
				l.Loc[i] = LostLoc
			case 2:
				l.Loc[i] = HoleLoc
			default:
				l.Loc[i] = MakeLoc(block*BlockUnits, rnd.Uint32())
			}
		}
		b := l.Encode(nil)
		if runs, data := runsOf(&l); len(b) != min(LeafMax, leafFixed+runs*leafRun+4*data) ||
			len(b) > LeafFixed+LeafEntry*l.Count() {
			t.Fatalf("%d runs of %d blocks take %d B", runs, data, len(b))
		}
		n, err := DecodeLeaf(append(b, 1, 2, 3), &got)
		if err != nil || n != len(b) || got != l || got.Count() != l.Count() {
			t.Fatalf("%d of %d B: %v", n, len(b), err)
		}
	}
}

// TestSingle proves that DecodeSingle reads what DecodeEntry reads of a single plain block, and
// nothing else: whatever bit of an entry is another, wherever it is cut short, and where the low
// bits of the LSN have wrapped.
func TestSingle(t *testing.T) {
	var e Entry
	var s Single
	singles := 0
	for _, flags := range []uint8{0, FlagFresh, FlagEncrypted, FlagFresh | FlagEncrypted} {
		want := Entry{
			Branch: 0x01020304, Block: 0xf1f2f3f4f5, Count: 1, Kind: KindData, Flags: flags, Era: 0xffff,
			Version: domain.Version{Epoch: 1 << 60, Seq: 1<<48 - 2, Node: 0xffff}, Gen: 1 << 31,
			Off: 0xfffffff8, Units: BlockUnits, LSN: 0xfffffff0, CRC: 0x11121314,
		}
		whole := make([]byte, want.Size(), 200)
		want.Encode(whole, nil)
		for _, lsn := range []uint64{0xfffffff0, 0xffffffff, 1<<32 + 5, 7<<32 - 1} {
			for bit := range 8 * len(whole) {
				whole[bit/8] ^= 1 << (bit % 8)
				_, err := DecodeEntry(whole, lsn, &e)
				judge(t, err)
				got := DecodeSingle(whole, lsn, &s)
				judgeSingle(t, got, &s, &e, err)
				if got > 0 {
					singles++
				}
				whole[bit/8] ^= 1 << (bit % 8)
			}
			for n := range len(whole) {
				if got := DecodeSingle(whole[:n], lsn, &s); got != 0 {
					t.Errorf("%d of %d B are %d", n, len(whole), got)
				}
			}
		}
	}
	if singles == 0 {
		t.Error("nothing is a single block")
	}
}

// runsOf counts the runs of a leaf, and the blocks that stand somewhere.
func runsOf(l *Leaf) (runs, data int) {
	for i, loc := range l.Loc {
		if loc == 0 {
			continue
		}
		if loc.Kind() == Flash {
			data++
		}
		if i == 0 || !follows(l.Loc[i-1], loc) {
			runs++
		}
	}
	return runs, data
}

// TestChainIgnoresPlace proves that a chunk written again elsewhere keeps its name in the chain,
// while any change of what it records changes it.
func TestChainIgnoresPlace(t *testing.T) {
	c, b := goldenChunk()
	entries := b[ChunkHeader : ChunkHeader+int(c.EntryBytes)]
	was := c.Chain(entries)
	moved := c
	moved.Sequence, moved.FlushMark, moved.Incarnation = 99, 99, 99
	if moved.Chain(entries) != was {
		t.Error("the chain depends on the place")
	}
	for i, other := range []Chunk{
		{LSN: c.LSN + 1, PrevLSN: c.PrevLSN, PrevCRC: c.PrevCRC},
		{LSN: c.LSN, PrevLSN: c.PrevLSN + 1, PrevCRC: c.PrevCRC},
		{LSN: c.LSN, PrevLSN: c.PrevLSN, PrevCRC: c.PrevCRC + 1},
	} {
		if other.Chain(entries) == was {
			t.Errorf("change %d leaves the chain as it was", i)
		}
	}
	entries[0]++
	if c.Chain(entries) == was {
		t.Error("the chain does not cover the entries")
	}
}

// TestChainOfSealed proves that the sums and tags of encrypted entries do not count to a chunk's
// name, since they change where it is written again elsewhere, and that every other bit does.
func TestChainOfSealed(t *testing.T) {
	c, b := goldenSealed()
	entries := b[c.EntriesAt() : ChunkHeader+int(c.EntryBytes)]
	free, at := make([]bool, len(entries)), 0
	for range c.Entries {
		var e Entry
		n, err := DecodeEntry(entries[at:], c.LSN, &e)
		if err != nil {
			t.Fatal(err)
		}
		if e.Flags&FlagEncrypted != 0 {
			for i := range 4 {
				free[at+EntrySettled-4+i] = true
			}
			for i := at + e.FurtherAt; i < at+n; i++ {
				free[i] = true
			}
		}
		at += n
	}
	was := c.Chain(entries)
	for i := range entries {
		entries[i] ^= 0x40
		if same := c.Chain(entries) == was; same != free[i] {
			t.Errorf("byte %d: the name stays %t, free %t", i, same, free[i])
		}
		entries[i] ^= 0x40
	}
}

// TestSeals proves that sums and tags are found where they were put, and nothing else changed.
func TestSeals(t *testing.T) {
	for _, flags := range []uint8{0, FlagFresh, FlagMoved, FlagFresh | FlagMoved} {
		for _, count := range []int{1, 2, RecordBlocks} {
			e := Entry{
				Kind: KindData, Flags: flags | FlagEncrypted, Count: count, Units: uint16(count * BlockUnits),
			}
			b := make([]byte, e.Size())
			e.Encode(b, make([]uint32, count))
			for i := range count {
				PutSeal(b, i, uint32(i+1), bytes.Repeat([]byte{byte(i)}, TagBytes))
			}
			var got Entry
			if n, err := DecodeEntry(b, 0, &got); err != nil || n != len(b) {
				t.Fatalf("%d of %d bytes, %v", n, len(b), err)
			}
			for i := range count {
				if got.Further(b, i) != uint32(i+1) ||
					!bytes.Equal(Tag(b, i), bytes.Repeat([]byte{byte(i)}, TagBytes)) {
					t.Errorf("flags %#x, block %d of %d: %x, %x", flags, i, count, got.Further(b, i), Tag(b, i))
				}
			}
			got.CRC, got.FurtherAt = 0, 0
			if got != e {
				t.Errorf("reads as %+v, not %+v", got, e)
			}
		}
	}
}

// TestFooterSize proves that the room asked for before a chunk is placed is the room its footer
// takes.
func TestFooterSize(t *testing.T) {
	var f Footer
	c, b := goldenChunk()
	h := b[:ChunkHeader+int(c.EntryBytes)]
	for range 40 {
		want := f.Size(len(h))
		f.Add(Sector, h)
		if got := len(f.Encode(nil, 1, 1)); got != want {
			t.Fatalf("%d chunks take %d B, not %d", f.Chunks(), got, want)
		}
	}
	f.Reset()
	if f.Chunks() != 0 || f.Size(0) != 2*Sector {
		t.Errorf("not empty after Reset: %d", f.Size(0))
	}
}

// TestBoundedAllocation proves that a decoder allocates by what it was given and not by what the
// bytes claim: counts of four thousand million in a few bytes.
func TestBoundedAllocation(t *testing.T) {
	root := goldenRoot().Encode()
	for at := 8; at < 20; at++ {
		root[at] = 0xff
	}
	leaf := goldenLeaf(false).Encode(nil)
	le.PutUint32(leaf[28:], 0xffffffff)
	foot := encodeFooter()
	last := foot[len(foot)-Sector:]
	le.PutUint32(last[20:], 0xffffffff)
	seal(last, Sector-4)
	chunk := make([]byte, Sector)
	c := Chunk{Stream: StreamLog, EntryBytes: 0xffffffff, PayloadBytes: 0xffffffff}
	c.EntryBytes = 0
	c.Encode(chunk, goldenSalt)
	le.PutUint32(chunk[48:], 0xffffffff)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, decode := range map[string]func() error{
		"root":   func() error { _, err := DecodeRoot(root); return err },
		"leaf":   func() error { var l Leaf; _, err := DecodeLeaf(leaf, &l); return err },
		"footer": func() error { _, err := decodeFooter(foot); return err },
		"chunk":  func() error { _, err := DecodeChunkFixed(chunk); return err },
	} {
		if err := decode(); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated", n)
	}
}

// TestAnchorLimits proves that an anchor holds the most lanes and the longest window, and that one
// more is our own mistake.
func TestAnchorLimits(t *testing.T) {
	a := &Anchor{Lanes: make([]LaneMark, LanesMax), Window: make([]uint32, windowMax)}
	for i := range a.Window {
		a.Window[i] = uint32(i)
	}
	b := make([]byte, Sector)
	a.Encode(b)
	got, err := DecodeAnchor(b)
	if err != nil || !reflect.DeepEqual(got, a) {
		t.Fatalf("%v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	a.Window = append(a.Window, 0)
	a.Encode(b)
}

// TestBranchRefusals proves that a branch in no state, without an id or of no size is refused.
func TestBranchRefusals(t *testing.T) {
	for _, br := range []Branch{
		{ID: 0, Family: 1, State: BranchLive},
		{ID: 1, Family: 1},
		{ID: 1, Family: 1, State: 4},
		{ID: 1, Family: 1, State: BranchLive, Size: 1 << 63},
		{ID: 2, Family: 1, State: BranchLive, Parent: 2},
		{ID: 2, Family: 3, State: BranchLive},
		{ID: 2, State: BranchLive},
	} {
		if _, err := DecodeBranch(br.Append(nil)); !errors.Is(err, ErrBad) {
			t.Errorf("%+v: %v", br, err)
		}
	}
	ok := Branch{
		ID: 3, Parent: 2, Family: 1, State: BranchFrozen, Volume: domain.VolumeID{UUID: uuid(3)},
		Snapshot: domain.SnapshotID{UUID: uuid(4)}, Size: 1, Gen: 2,
	}
	if got, err := DecodeBranch(ok.Append(nil)); err != nil || got != ok {
		t.Errorf("%+v, %v", got, err)
	}
}
