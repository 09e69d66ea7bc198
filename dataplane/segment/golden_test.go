package segment

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/domain"
)

var rewrite = flag.Bool("rewrite", false, "write golden files that are missing; never change one")

// codec is one thing that stands on a device: a value, its bytes, and what reading them gives.
type codec struct {
	name   string
	value  any
	encode func() []byte
	decode func([]byte) (any, error)
}

func uuid(b byte) (u domain.UUID) {
	for i := range u {
		u[i] = b + byte(i)
	}
	return u
}

func goldenSuper() *Superblock {
	return &Superblock{
		Version: FormatVersion, Incompat: IncompatBase, Compat: 0x8000,
		Cluster: domain.ClusterID{UUID: uuid(1)}, Node: domain.NodeID{UUID: uuid(0x21)},
		Device: domain.DeviceID{UUID: uuid(0x41)},
		Size:   1 << 30, LogicalBlock: 512, AtomicUnit: 4096, SegmentSize: 4 << 20, Segments: 255,
		FirstOff: DataOff, Lanes: 3, Tier: 2, Generation: 0x0102030405060708, Salt: 0x61626364,
	}
}

func goldenPair() *Superblock {
	s := goldenSuper()
	s.Incompat |= IncompatPair
	s.Boundary = 0x20304000
	return s
}

func goldenAnchor() *Anchor {
	return &Anchor{
		Seq: 0x1112131415161718, Incarnation: 0x21222324, Clean: true, NextSegSeq: 0x31,
		NextVersion: 0x41, Journal: 0xb1b2b3b4b5b6b7b8,
		Root:   Piece{0x51 * Unit, 0x61, 0x71727374},
		Lanes:  []LaneMark{{0x81, 0x82, 0x83848586}, {0x91, 0x92, 0x93949596}},
		Window: []uint32{7, 9, 0xa1a2a3a4},
	}
}

func goldenScrub() *ScrubMark {
	return &ScrubMark{
		Seq: 0x0102030405060708, Pass: 0x11, Stage: ScrubExtents, Family: 0x21222324, Extent: 0x31323334,
		Segment: 0x41424344, Started: time.Unix(0x51525354, 0).UTC(),
		Finished: time.Unix(0x61626364, 0).UTC(), Checked: 0x7172737475767778, Damaged: 0x81,
	}
}

func goldenHeader() *Header {
	return &Header{
		Segment: 0x01020304, Sequence: 0x1112131415161718, Stream: StreamGen1, Lane: 15,
		Incarnation: 0x21222324, Device: domain.DeviceID{UUID: uuid(0x31)}, Anchor: 0x41,
	}
}

// goldenEntries covers each form: settled range, fresh data of three blocks, moved, both.
func goldenEntries() []Entry {
	ver := domain.Version{Epoch: 0x0102030405060708, Seq: 0x111213141516, Node: 0x2122}
	req := domain.RequestID{
		Gateway: 0x3132, Incarnation: 0x414243444546, Counter: 0x51525354555657, Attempt: 0x61,
	}
	return []Entry{
		{Branch: 1, Block: 3, Count: 1, Kind: KindZero, Version: ver, Gen: 9, Range: 1021, LSN: 96},
		{
			Branch: 2, Block: 0xf1f2f3f400, Count: 3, Kind: KindData, Flags: FlagFresh, Version: ver,
			Gen: 10, Off: 16, Units: 24, Era: 0x7172, LSN: 97, CRC: 0x81828384, Request: req,
		},
		{
			Branch: 3, Block: 5, Count: 1, Kind: KindData, Flags: FlagMoved | OutcomeSuperseded,
			Version: ver, Off: 40, Units: 8, LSN: 0xa1a2a3a4a5a6a7, CRC: 1, From: 0xb1b2b3b4b5,
			FromSeq: 0xc1,
		},
		{
			Branch: 4, Block: 1023, Count: 1, Kind: KindData, Flags: FlagFresh | FlagMoved, Version: ver,
			Off: 48, Units: 8, LSN: 99, CRC: 2, Request: req, From: 1, FromSeq: 2,
		},
		{Branch: 5, Count: 7, Kind: KindBranch, Off: 56, Units: 2, LSN: 100, CRC: 3},
	}
}

// goldenChunk gives a chunk's header with its entries, as a writer pads it.
func goldenChunk() (Chunk, []byte) {
	b, at := make([]byte, Sector), ChunkHeader
	entries := goldenEntries()
	for i := range entries {
		at += entries[i].Encode(b[at:], []uint32{0x91, 0x92})
	}
	c := Chunk{
		Incarnation: 0x01020304, Sequence: 0x1112131415161718, LSN: 100, PrevLSN: 95, FlushMark: 94,
		Entries: uint16(len(entries)), Stream: StreamLog, Lane: 2, PrevCRC: 0x21222324,
		EntryBytes: uint32(at - ChunkHeader), PayloadBytes: 8 * Sector,
	}
	c.Encode(b, goldenSalt)
	return c, b
}

// goldenSealed gives a sealed chunk's header: an encrypted record of three blocks, one that was
// moved, a hole and a plain block.
func goldenSealed() (Chunk, []byte) {
	plain := goldenEntries()
	list := []Entry{plain[1], plain[2], plain[0], plain[3]}
	b, at := make([]byte, Sector), ChunkHeader+SaltBytes
	for i := range list {
		e := &list[i]
		if i < 2 {
			e.Flags |= FlagEncrypted
		}
		n := e.Encode(b[at:], []uint32{0x91, 0x92})
		for k := range e.Count {
			if i < 2 {
				PutSeal(b[at:], k, 0xa0+uint32(k), bytes.Repeat([]byte{byte(0xb0 + 16*i + k)}, TagBytes))
			}
		}
		at += n
	}
	c := Chunk{
		Incarnation: 1, Sequence: 2, LSN: 100, PrevLSN: 95, FlushMark: 94, Entries: uint16(len(list)),
		Stream: StreamLog, Lane: 2, PrevCRC: 3, EntryBytes: uint32(at - ChunkHeader),
		PayloadBytes: 8 * Sector, Sealed: true, Salt: Salt(uuid(0xc1)), Place: 0x0102030405060708,
	}
	c.Encode(b, goldenSalt)
	return c, b
}

func goldenKeys() *KeyPage {
	return &KeyPage{No: 55, Turn: 0x0102030405060708, Keys: []Key{
		{ID: 1, Under: 0x1112131415161718, Wrapped: bytes.Repeat([]byte{0x21}, 60)},
		{ID: 0x31323334, Under: 2, Wrapped: bytes.Repeat([]byte{0x41}, 64)},
	}}
}

// goldenSalt is the salt of the device whose bytes are kept.
const goldenSalt = 0x51525354

func goldenLeaf(dense bool) *Leaf {
	l := &Leaf{Branch: 7, Extent: 0x01020304, Complete: 0x1112131415161718}
	for i := range 20 {
		l.Loc[100+i] = MakeLoc(uint64(4096+8*i), uint32(i)*0x01010101)
	}
	l.Loc[500], l.Loc[501], l.Loc[502] = HoleLoc, HoleLoc, LostLoc
	l.Loc[1022], l.Loc[1023] = ZeroLoc, ZeroLoc
	for i := range LeafBlocks {
		if dense {
			l.Loc[i] = MakeLoc(uint64(LeafBlocks-i)*16, uint32(i)*0x9e3779b9)
		}
	}
	return l
}

// goldenHeldEntries covers what replicas log: mixed outcomes with masks, of data that is new or
// moved and of a range; a superseded range; and what is known of a slice.
func goldenHeldEntries() []Entry {
	plain := goldenEntries()
	mixed, zero := plain[1], plain[0]
	mixed.Flags |= OutcomeMixed
	moved := mixed
	moved.Flags, moved.From, moved.FromSeq = moved.Flags|FlagMoved, 0xb1b2b3b4b5, 0xc1
	unmap := Entry{
		Branch: 1, Block: 3, Count: 1, Kind: KindUnmap, Flags: OutcomeMixed | FlagFresh,
		Version: mixed.Version, Gen: 9, Range: 45, LSN: 96, Request: mixed.Request,
	}
	zero.Flags = OutcomeSuperseded
	slice := Entry{Branch: 1, Block: SliceBlocks, Count: 1, Version: mixed.Version, LSN: 99}
	seal, floor, bury := slice, slice, slice
	seal.Kind, floor.Kind, bury.Kind = KindSeal, KindFloor, KindBury
	return []Entry{mixed, moved, unmap, zero, seal, floor, bury}
}

// goldenHeld gives the header of a chunk with those.
func goldenHeld() (Chunk, []byte) {
	b, at := make([]byte, Sector), ChunkHeader
	entries := goldenHeldEntries()
	for i := range entries {
		n := entries[i].Encode(b[at:], []uint32{0x91, 0x92})
		entries[i].PutMask(b[at:], &Mask{0x0102030405060703})
		at += n
	}
	c := Chunk{
		Incarnation: 1, Sequence: 2, LSN: 100, Entries: uint16(len(entries)), Stream: StreamLog,
		EntryBytes: uint32(at - ChunkHeader), PayloadBytes: 8 * Sector,
	}
	c.Encode(b, goldenSalt)
	return c, b
}

func goldenReplicas() ReplicaTable {
	e := goldenEntries()[1]
	return ReplicaTable{
		Slices: []SliceState{
			{Branch: 8, Slice: 1, Seal: 0x1112131415161718, Floor: e.Version, Buried: true},
			{Branch: 8, Slice: 0x21222324},
		},
		Bounds:  []RequestBound{{Gateway: 0x3132, Incarnation: 0x414243444546, Below: 0x5152}},
		Graves:  []domain.VolumeID{{UUID: uuid(0x61)}},
		Extents: []ExtentVersion{{8, 0x6162, e.Version}, {8, 0x6163, domain.Version{}}},
		Records: []HeldRecord{
			{
				Branch: 8, Block: 0x7172, Count: 3, Kind: KindData, Outcome: OutcomeMixed,
				Version: e.Version, Gen: 0x8182, Request: e.Request, LSN: 0x9192, Addr: 0xa1a2, Sum: 0xb1b2,
			},
			{Branch: 8, Count: LeafBlocks, Kind: KindUnmap, Version: e.Version},
		},
	}
}

// goldenEraEntries covers what join sessions log: an imported block, a range that is as the
// parent, the session's beginning and end, and what is the same.
func goldenEraEntries() []Entry {
	data := goldenEntries()[1]
	data.Flags, data.Request = 0, domain.RequestID{}
	unmap := Entry{
		Branch: 1, Block: 3, Count: 1, Kind: KindUnmap, Flags: FlagParent, Version: data.Version,
		Range: 45, LSN: 96, Era: 0x1112,
	}
	begun := Entry{Branch: 1, Block: SliceBlocks, Count: 1, Kind: KindEra, LSN: 97, Era: 0x1112}
	ended := begun
	ended.SetEnded()
	same := Entry{Branch: 1, Block: 64, Count: 1, Kind: KindSame, LSN: 99, Era: 0x1112}
	same.SetSame(0x0102030405060708)
	return []Entry{data, unmap, begun, ended, same}
}

// goldenDirty gives the header of a chunk with the entries about members that are away.
func goldenDirty() (Chunk, []byte) {
	b, at := make([]byte, Sector), ChunkHeader
	entries := goldenDirtyEntries()
	for i := range entries {
		at += entries[i].Encode(b[at:], nil)
	}
	c := Chunk{
		Incarnation: 1, Sequence: 2, LSN: 100, Entries: uint16(len(entries)), Stream: StreamLog,
		EntryBytes: uint32(at - ChunkHeader),
	}
	c.Encode(b, goldenSalt)
	return c, b
}

func goldenDirtyEntries() []Entry {
	e := Entry{Branch: 1, Block: 3 * LeafBlocks, Count: 1, Kind: KindDirty, LSN: 97}
	list := []Entry{e, e, e}
	list[0].SetDirty(0x1112, DirtyMarks, 0x0102030405060708)
	list[1].SetDirty(0x1112, DirtyBegin, 0)
	list[2].SetDirty(0x1112, DirtyEnd, 0)
	return list
}

// dirtyReplicas is eraReplicas with maps of members that are away.
func dirtyReplicas() ReplicaTable {
	t := eraReplicas()
	d := DirtyMap{Branch: 8, Slice: 0x91, Member: 0x9293}
	for i := range d.Grains {
		d.Grains[i] = uint64(i) << 40
	}
	t.Dirt = []DirtyMap{d, {Branch: 8, Slice: 0x92}}
	return t
}

// goldenEra gives the header of a chunk with those.
func goldenEra() (Chunk, []byte) {
	b, at := make([]byte, Sector), ChunkHeader
	entries := goldenEraEntries()
	for i := range entries {
		at += entries[i].Encode(b[at:], []uint32{0x91, 0x92})
	}
	c := Chunk{
		Incarnation: 1, Sequence: 2, LSN: 100, Entries: uint16(len(entries)), Stream: StreamLog,
		EntryBytes: uint32(at - ChunkHeader), PayloadBytes: 8 * Sector,
	}
	c.Encode(b, goldenSalt)
	return c, b
}

// eraReplicas is goldenReplicas with what join sessions leave.
func eraReplicas() ReplicaTable {
	t := goldenReplicas()
	t.Slices[0].Era, t.Slices[0].Open, t.Slices[0].Gen = 0x3132, true, 0x41424344
	t.Records[0].Era = 0x5152
	t.Known = []KnownRun{{
		Branch: 8, Block: 0x6162, Count: LeafBlocks / 2, Version: t.Records[0].Version,
		Gen: 0x71727374, Era: 0x8182,
	}}
	return t
}

// packedLeaf is goldenLeaf with compressed blocks.
func packedLeaf(dense bool) *Leaf {
	l := goldenLeaf(dense)
	for i := range 2 * UnitsMax {
		units := 1 + i%UnitsMax
		l.Loc[300+i] = MakePacked(uint64(1<<35-64-9*i), units, uint32(i)*0x9e3779b9)
	}
	return l
}

func packedEntry() *Entry {
	return &Entry{
		Branch: 0x01020304, Block: 0x0506070809, Count: 1, Kind: KindData,
		Flags:   FlagMoved | FlagEncrypted | FlagCompressed,
		Version: domain.Version{Epoch: 0x1112131415161718, Seq: 0x212223242526, Node: 0x3132},
		Gen:     0x41424344, Off: 0x5153, Units: 5, Era: 0x6162, LSN: 0x71727374, CRC: 0x81828384,
		From: 0x9192939495, FromSeq: 0xa1a2a3a4a5a6a7a8, FurtherAt: EntrySettled + EntryMoved,
	}
}

// kept gives the bytes that an earlier version wrote and this one only reads.
func kept(name string) func() []byte {
	return func() []byte {
		b, err := readDump(filepath.Join("testdata", name+".v2.txt"))
		if err != nil {
			panic(err)
		}
		return b
	}
}

func goldenRoot() *Root {
	return &Root{
		NextBranch: 9,
		Branches: []Branch{
			{
				ID: 2, Family: 1, State: BranchFrozen, Volume: domain.VolumeID{UUID: uuid(1)},
				Snapshot: domain.SnapshotID{UUID: uuid(0x71)}, Size: 1 << 40, Gen: 1,
			},
			{
				ID: 8, Parent: 2, Family: 1, State: BranchLive, Volume: domain.VolumeID{UUID: uuid(9)},
				Size: 4 << 20, Gen: 0x01020304, Epoch: 7,
			},
		},
		Leaves:  []LeafRef{{2, 2, Piece{512, 64, 3}}, {8, 4, Piece{1024, LeafMax, 5}}},
		Aliases: []Alias{{1, 2}, {7, 8}},
	}
}

// living is the root of a pair.
func living() *Root {
	r := goldenRoot()
	r.Lives = []Life{
		{Segment: 0x21222324, Sequence: 0x3132333435363738, Salt: Salt(uuid(0x41))},
		{Segment: 0x51525354, Sequence: 0x6162636465666768, Salt: Salt(uuid(0x71))},
	}
	return r
}

func sector(encode func([]byte)) func() []byte {
	return func() []byte {
		b := make([]byte, Sector)
		encode(b)
		return b
	}
}

// footerParts is a footer taken apart.
type footerParts struct {
	Trailer Trailer
	Offs    []uint32
	Chunks  []Chunk
}

func encodeFooter() []byte {
	var f Footer
	c, b := goldenChunk()
	f.Add(Sector, b[:ChunkHeader+int(c.EntryBytes)])
	f.Add(12*Sector, b[:ChunkHeader+int(c.EntryBytes)])
	return f.Encode(nil, c.Sequence, c.Incarnation)
}

func decodeFooter(b []byte) (any, error) {
	if len(b) < Sector {
		return nil, ErrBad
	}
	body, last := b[:len(b)-Sector], b[len(b)-Sector:]
	t, err := DecodeTrailer(last)
	if err != nil {
		return nil, err
	}
	p := &footerParts{Trailer: *t}
	err = t.Each(body, goldenSalt, func(off uint32, c *Chunk, _ []byte) error {
		p.Offs, p.Chunks = append(p.Offs, off), append(p.Chunks, *c)
		return nil
	})
	return p, err
}

func goldenFooter() *footerParts {
	c, b := goldenChunk()
	var f Footer
	f.Add(Sector, b[:ChunkHeader+int(c.EntryBytes)])
	f.Add(12*Sector, b[:ChunkHeader+int(c.EntryBytes)])
	return &footerParts{
		Trailer{2, c.Sequence, c.Incarnation, uint32(len(f.body)), Checksum(f.body)},
		[]uint32{Sector, 12 * Sector},
		[]Chunk{c, c},
	}
}

func codecs() []codec {
	chunk, chunkBytes := goldenChunk()
	sealed, sealedBytes := goldenSealed()
	salted, keyed := goldenHeader(), goldenRoot().Branches[1]
	salted.Salt, keyed.Key = Salt(uuid(0x51)), 0x61626364
	held, heldBytes := goldenHeld()
	replica, table, holding := goldenRoot().Branches[1], goldenReplicas(), goldenRoot()
	replica.Replica, holding.Replicas = true, table
	cut := goldenRoot().Branches[0]
	cut.Snapshot, cut.Replica, cut.Sealed = domain.SnapshotID{}, true, true
	era, eraBytes := goldenEra()
	eraTable := eraReplicas()
	dirty, dirtyBytes := goldenDirty()
	dirtyTable := dirtyReplicas()
	leaf := func(b []byte) (any, error) {
		l := &Leaf{}
		_, err := DecodeLeaf(b, l)
		return l, err
	}
	return []codec{
		{
			"superblock", goldenSuper(), sector(goldenSuper().Encode),
			func(b []byte) (any, error) { return DecodeSuperblock(b) },
		},
		{
			"superblock-pair", goldenPair(), sector(goldenPair().Encode),
			func(b []byte) (any, error) { return DecodeSuperblock(b) },
		},
		{
			"anchor", goldenAnchor(), sector(goldenAnchor().Encode),
			func(b []byte) (any, error) { return DecodeAnchor(b) },
		},
		{
			"scrub", goldenScrub(), sector(goldenScrub().Encode),
			func(b []byte) (any, error) { return DecodeScrubMark(b) },
		},
		{
			"header", goldenHeader(), sector(goldenHeader().Encode),
			func(b []byte) (any, error) { return DecodeHeader(b) },
		},
		{
			"chunk", &chunk, func() []byte { return chunkBytes },
			func(b []byte) (any, error) {
				c, _, err := DecodeChunk(b, goldenSalt)
				return c, err
			},
		},
		{
			"chunk-sealed", &sealed, func() []byte { return sealedBytes },
			func(b []byte) (any, error) {
				c, _, err := DecodeChunk(b, goldenSalt)
				return c, err
			},
		},
		{
			"keys", goldenKeys(), sector(goldenKeys().Encode),
			func(b []byte) (any, error) { return DecodeKeyPage(b) },
		},
		{
			"header-salt", salted, sector(salted.Encode),
			func(b []byte) (any, error) { return DecodeHeader(b) },
		},
		{
			"branch-key", keyed, func() []byte { return keyed.Append(nil) },
			func(b []byte) (any, error) { return DecodeBranch(b) },
		},
		{
			"chunk-held", &held, func() []byte { return heldBytes },
			func(b []byte) (any, error) {
				c, _, err := DecodeChunk(b, goldenSalt)
				return c, err
			},
		},
		{
			"branch-replica", replica, func() []byte { return replica.Append(nil) },
			func(b []byte) (any, error) { return DecodeBranch(b) },
		},
		{
			"branch-cut", cut, func() []byte { return cut.Append(nil) },
			func(b []byte) (any, error) { return DecodeBranch(b) },
		},
		{
			"replicas", table, func() []byte { return table.Append(nil) },
			func(b []byte) (any, error) { return DecodeReplicas(b) },
		},
		{
			"replicas-era", eraTable, func() []byte { return eraTable.Append(nil) },
			func(b []byte) (any, error) { return DecodeReplicas(b) },
		},
		{
			"replicas-dirty", dirtyTable, func() []byte { return dirtyTable.Append(nil) },
			func(b []byte) (any, error) { return DecodeReplicas(b) },
		},
		{
			"chunk-dirty", &dirty, func() []byte { return dirtyBytes },
			func(b []byte) (any, error) {
				c, _, err := DecodeChunk(b, goldenSalt)
				return c, err
			},
		},
		{
			"chunk-era", &era, func() []byte { return eraBytes },
			func(b []byte) (any, error) {
				c, _, err := DecodeChunk(b, goldenSalt)
				return c, err
			},
		},
		{
			"root-replicas", holding, func() []byte { return holding.Encode() },
			func(b []byte) (any, error) { return DecodeRoot(b) },
		},
		{
			"root-lives", living(), func() []byte { return living().Encode() },
			func(b []byte) (any, error) { return DecodeRoot(b) },
		},
		{"footer", goldenFooter(), encodeFooter, decodeFooter},
		{"leaf-runs", goldenLeaf(false), kept("leaf-runs"), leaf},
		{"leaf-dense", goldenLeaf(true), kept("leaf-dense"), leaf},
		{
			"leaf-runs-packed", packedLeaf(false),
			func() []byte { return packedLeaf(false).Encode(nil) }, leaf,
		},
		{
			"leaf-dense-packed", packedLeaf(true),
			func() []byte { return packedLeaf(true).Encode(nil) }, leaf,
		},
		{
			"entry-packed", packedEntry(), func() []byte {
				b := make([]byte, packedEntry().Size())
				packedEntry().Encode(b, nil)
				return b
			}, func(b []byte) (any, error) {
				e := &Entry{}
				_, err := DecodeEntry(b, math.MaxUint32, e)
				return e, err
			},
		},
		{
			"branch", goldenRoot().Branches[1],
			func() []byte { return goldenRoot().Branches[1].Append(nil) },
			func(b []byte) (any, error) { return DecodeBranch(b) },
		},
		{
			"root", goldenRoot(), func() []byte { return goldenRoot().Encode() },
			func(b []byte) (any, error) { return DecodeRoot(b) },
		},
		{
			"pieces",
			[]Piece{{1, 2, 3}, {1 << 40, 1 << 20, 0xffffffff}},
			func() []byte { return EncodePieces([]Piece{{1, 2, 3}, {1 << 40, 1 << 20, 0xffffffff}}) },
			func(b []byte) (any, error) { return DecodePieces(b) },
		},
	}
}

// TestGolden proves that the bytes of every codec are what they were when the format was fixed, and
// that bytes written then are read today (E13): encoder and decoder are compared with files that
// are only ever added to.
func TestGolden(t *testing.T) {
	for _, c := range codecs() {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join("testdata", c.name+".v2.txt")
			want, err := readDump(path)
			if os.IsNotExist(err) && *rewrite {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				want = c.encode()
				err = os.WriteFile(path, dump(want), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.encode(), want) {
				t.Errorf("encodes to other bytes:\n%s", dump(c.encode()))
			}
			got, err := c.decode(want)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.value) {
				t.Errorf("reads as\n%+v, not\n%+v", got, c.value)
			}
		})
	}
}

// dump shows bytes as lines of 32 with their offset; lines of zeros are left out.
func dump(b []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d bytes\n", len(b))
	for at := 0; at < len(b); at += 32 {
		line := b[at:min(at+32, len(b))]
		if len(bytes.Trim(line, "\x00")) > 0 {
			fmt.Fprintf(&out, "%05x %x\n", at, line)
		}
	}
	return out.Bytes()
}

func readDump(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Scan()
	var n int
	if _, err := fmt.Sscanf(lines.Text(), "%d bytes", &n); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	for lines.Scan() {
		var at int
		where, what, _ := strings.Cut(lines.Text(), " ")
		if _, err := fmt.Sscanf(where, "%x", &at); err != nil {
			return nil, err
		}
		p, err := hex.DecodeString(what)
		if err != nil {
			return nil, err
		}
		copy(b[at:], p)
	}
	return b, nil
}

// TestEveryBitCounts proves that no codec with a checksum of its own reads one of its encodings
// with a bit turned over: each bit of the golden bytes in turn. Only the padding behind a chunk's
// entries and a footer's body is free, since nobody reads it.
func TestEveryBitCounts(t *testing.T) {
	chunk, _ := goldenChunk()
	sealed, _ := goldenSealed()
	held, _ := goldenHeld()
	era, _ := goldenEra()
	dirty, _ := goldenDirty()
	body := len(encodeFooter()) - Sector
	free := map[string][2]int{
		"chunk":  {ChunkHeader + int(chunk.EntryBytes), Sector},
		"footer": {int(goldenFooter().Trailer.Bytes), body},

		"chunk-sealed": {ChunkHeader + int(sealed.EntryBytes), Sector},
		"chunk-held":   {ChunkHeader + int(held.EntryBytes), Sector},
		"chunk-era":    {ChunkHeader + int(era.EntryBytes), Sector},
		"chunk-dirty":  {ChunkHeader + int(dirty.EntryBytes), Sector},
	}
	for _, c := range codecs() {
		if strings.HasPrefix(c.name, "branch") || strings.HasPrefix(c.name, "entry") ||
			strings.HasPrefix(c.name, "root") || c.name == "pieces" ||
			strings.HasPrefix(c.name, "replicas") {
			continue // covered by the checksum of the entry or piece that names them
		}
		b := c.encode()
		for bit := range len(b) * 8 {
			if f := free[c.name]; bit/8 >= f[0] && bit/8 < f[1] {
				continue
			}
			b[bit/8] ^= 1 << (bit % 8)
			if _, err := c.decode(b); err == nil {
				t.Fatalf("%s: reads with bit %d of byte %d turned over", c.name, bit%8, bit/8)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// TestCutShort proves that a decoder refuses every proper prefix of its encoding and never reads
// behind it.
func TestCutShort(t *testing.T) {
	chunk, _ := goldenChunk()
	sealed, _ := goldenSealed()
	held, _ := goldenHeld()
	for _, c := range codecs() {
		b := c.encode()
		whole := len(b)
		if c.name == "chunk-held" {
			whole = ChunkHeader + int(held.EntryBytes)
		}
		if c.name == "chunk-dirty" {
			dirty, _ := goldenDirty()
			whole = ChunkHeader + int(dirty.EntryBytes)
		}
		if c.name == "chunk-era" {
			era, _ := goldenEra()
			whole = ChunkHeader + int(era.EntryBytes)
		}
		if c.name == "chunk" {
			whole = ChunkHeader + int(chunk.EntryBytes)
		}
		if c.name == "chunk-sealed" {
			whole = ChunkHeader + int(sealed.EntryBytes)
		}
		for n := range whole {
			if c.name == "pieces" && n%PieceBytes == 0 || strings.HasPrefix(c.name, "replicas") && n == 0 {
				continue // a shorter list is a list; its own checksum stands in the anchor
			}
			if _, err := c.decode(bytes.Clone(b[:n])); err == nil {
				t.Fatalf("%s: reads with %d of %d bytes", c.name, n, whole)
			}
		}
	}
}
