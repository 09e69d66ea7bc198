package segment

import (
	"fmt"

	"weft/domain"
)

const (
	superMagic  = 0x3142535446455721 // "!WEFTSB1"
	anchorMagic = 0x31434e4154464557 // "WEFTANC1"

	// Guard is left untouched at the start of a device, for partition tables and boot sectors.
	Guard = 64 << 10
	// AnchorOff is where the ring of anchors starts.
	AnchorOff = Guard + Sector
	// AnchorSlots is the number of sectors in the ring of anchors.
	AnchorSlots = 256
	// AnchorCopies is how often an anchor stands in the ring, side by side and written in one go: a
	// sector that rots must not bring back an older checkpoint, whose segments are in other use.
	AnchorCopies = 2
	// DataOff is the earliest place of the first segment.
	DataOff = 2 << 20
	// LanesMax is the most lanes of a device.
	LanesMax = 16
	// SizeMax is the largest device in bytes: a Loc names 2^32 blocks of 4 KiB.
	SizeMax = 1 << 44
)

// Features that a reader must know. A device with an unknown incompatible bit is refused, one with
// an unknown ro-compatible bit may be read only.
const (
	IncompatBase = uint64(1) << 0
	// IncompatKeys: volumes may be encrypted, and the key table counts. Set with the first one.
	IncompatKeys = uint64(1) << 1
	// IncompatPacked: images of leaves may name compressed blocks. Set by whoever opens the device.
	IncompatPacked = uint64(1) << 2
	// IncompatReplica: volumes may be replicas: entries have outcomes that decide what they change,
	// and the root has a table of replicas.
	IncompatReplica = uint64(1) << 3
	// IncompatMoves: lines of branches may say that a family is not to be shown. Set by whoever opens
	// the device.
	IncompatMoves = uint64(1) << 4
	// IncompatPair is set on a pair of flash and disk: see Superblock.Boundary.
	IncompatPair = uint64(1) << 8
	// IncompatLives: the root of a pair tells the lives of its disk's segments (Root.Lives). Without
	// it no volume there is encrypted.
	IncompatLives = uint64(1) << 9
	// IncompatAll is all that this version knows.
	IncompatAll = IncompatBase | IncompatKeys | IncompatPair | IncompatReplica | IncompatPacked |
		IncompatMoves | IncompatLives
	ROCompatAll = uint64(0)
)

// Superblock describes a device; it is written three times and names its owner. Sizes are bytes.
type Superblock struct {
	Version      uint32
	Incompat     uint64
	ROCompat     uint64
	Compat       uint64
	Cluster      domain.ClusterID
	Node         domain.NodeID
	Device       domain.DeviceID
	Size         uint64
	LogicalBlock uint32
	AtomicUnit   uint32
	SegmentSize  uint32
	Segments     uint32
	FirstOff     uint64 // of segment 0
	Lanes        uint16
	Tier         uint8  // 1 nvram, 2 flash, 3 hdd
	Generation   uint64 // raised by each write; the newest valid copy wins
	// Boundary is the offset from which on a pair stands on a disk that turns; 0: the device is one.
	// What stands there is moved by the cleaner and nothing else; superblocks, anchors, logs of hosts
	// and checkpoints stand below. IncompatPair says that it is not 0.
	Boundary uint64
	// Salt begins the checksum of every chunk of the device. It is drawn when the device is
	// formatted and never leaves it, so that no host can write a block that recovery, scanning a
	// torn segment, would take for a chunk.
	Salt uint32
}

// SuperOffsets gives the places of the three copies on a device of that size; of a pair the size is
// that of the part below its boundary.
func SuperOffsets(size int64) [3]int64 {
	return [3]int64{Guard, size / 2 / Sector * Sector, (size - Guard) / Sector * Sector}
}

// SuperOffsets gives the places of the three copies.
func (s *Superblock) SuperOffsets() [3]int64 {
	if s.Boundary > 0 {
		return SuperOffsets(int64(s.Boundary))
	}
	return SuperOffsets(int64(s.Size))
}

// Reserved tells whether segment i is never used, because it lies over one of the superblock's
// copies, or across the boundary of a pair.
func (s *Superblock) Reserved(i int) bool {
	from := int64(s.FirstOff) + int64(i)*int64(s.SegmentSize)
	to := from + int64(s.SegmentSize)
	for _, off := range s.SuperOffsets() {
		if off < to && off+Sector > from {
			return true
		}
	}
	return from < int64(s.Boundary) && to > int64(s.Boundary)
}

// OnDisk tells whether segment i stands on the disk of a pair.
func (s *Superblock) OnDisk(i int) bool {
	return s.Boundary > 0 && s.FirstOff+uint64(i)*uint64(s.SegmentSize) >= s.Boundary
}

// Encode fills one sector.
func (s *Superblock) Encode(b []byte) {
	clear(b[:Sector])
	le.PutUint64(b[0:], superMagic)
	le.PutUint32(b[8:], s.Version)
	le.PutUint64(b[16:], s.Incompat)
	le.PutUint64(b[24:], s.ROCompat)
	le.PutUint64(b[32:], s.Compat)
	copy(b[40:], s.Cluster.UUID[:])
	copy(b[56:], s.Node.UUID[:])
	copy(b[72:], s.Device.UUID[:])
	le.PutUint64(b[88:], s.Size)
	le.PutUint32(b[96:], s.LogicalBlock)
	le.PutUint32(b[100:], s.AtomicUnit)
	le.PutUint32(b[104:], s.SegmentSize)
	le.PutUint32(b[108:], s.Segments)
	le.PutUint64(b[112:], s.FirstOff)
	le.PutUint16(b[120:], s.Lanes)
	b[122] = s.Tier
	le.PutUint64(b[124:], s.Generation)
	le.PutUint32(b[132:], s.Salt)
	le.PutUint64(b[256:], s.Boundary)
	le.PutUint32(b[Sector-4:], Checksum(b[:Sector-4]))
}

// DecodeSuperblock reads and checks one sector, geometry included.
func DecodeSuperblock(b []byte) (*Superblock, error) {
	if len(b) < Sector || le.Uint64(b) != superMagic {
		return nil, fmt.Errorf("superblock: no magic: %w", ErrBad)
	}
	if le.Uint32(b[Sector-4:]) != Checksum(b[:Sector-4]) {
		return nil, fmt.Errorf("superblock: checksum: %w", ErrBad)
	}
	s := &Superblock{
		Version: le.Uint32(b[8:]), Incompat: le.Uint64(b[16:]), ROCompat: le.Uint64(b[24:]),
		Compat: le.Uint64(b[32:]), Size: le.Uint64(b[88:]), LogicalBlock: le.Uint32(b[96:]),
		AtomicUnit: le.Uint32(b[100:]), SegmentSize: le.Uint32(b[104:]),
		Segments: le.Uint32(b[108:]), FirstOff: le.Uint64(b[112:]), Lanes: le.Uint16(b[120:]),
		Tier: b[122], Generation: le.Uint64(b[124:]), Salt: le.Uint32(b[132:]),
		Boundary: le.Uint64(b[256:]),
	}
	copy(s.Cluster.UUID[:], b[40:])
	copy(s.Node.UUID[:], b[56:])
	copy(s.Device.UUID[:], b[72:])
	return s, s.check()
}

// check refuses what no formatter wrote: a data size of zero, segments beyond the device.
func (s *Superblock) check() error {
	end := s.FirstOff + uint64(s.Segments)*uint64(s.SegmentSize)
	switch {
	case s.Incompat&^IncompatAll != 0:
		return fmt.Errorf("superblock: unknown features %#x: %w", s.Incompat, ErrBad)
	case s.Version != FormatVersion:
		return fmt.Errorf("superblock: format version %d: %w", s.Version, ErrBad)
	case s.SegmentSize < 16*Sector || s.SegmentSize%Sector != 0 || s.Segments < 8:
		return fmt.Errorf("superblock: segments %d x %d: %w", s.Segments, s.SegmentSize, ErrBad)
	case s.FirstOff < DataOff || s.FirstOff%Sector != 0 || s.Size > SizeMax || end > s.Size:
		return fmt.Errorf("superblock: data outside the device: %w", ErrBad)
	case (s.Boundary > 0) != (s.Incompat&IncompatPair != 0) || s.Boundary%Sector != 0 ||
		s.Boundary > 0 && (s.Boundary < DataOff || s.Boundary >= s.Size):
		return fmt.Errorf("superblock: boundary at %d: %w", s.Boundary, ErrBad)
	case s.Boundary > 0 && s.Incompat&(IncompatKeys|IncompatLives) == IncompatKeys,
		s.Boundary == 0 && s.Incompat&IncompatLives != 0:
		return fmt.Errorf("superblock: features %#x: %w", s.Incompat, ErrBad)
	case s.Lanes == 0 || s.Lanes > LanesMax:
		return fmt.Errorf("superblock: %d lanes: %w", s.Lanes, ErrBad)
	case s.LogicalBlock != 512 && s.LogicalBlock != 4096:
		return fmt.Errorf("superblock: logical block %d: %w", s.LogicalBlock, ErrBad)
	}
	return nil
}

// LaneOf gives the lane that an extent of a family belongs to: all branches of the family share it,
// so that what one of them hides from another is decided under one lock. Neighbouring extents
// spread over all lanes, so it mixes fully (the finalizer of MurmurHash3): one multiplication would
// keep sixteen neighbours together. Recovery depends on it: it must not change.
func LaneOf(family, extent uint32, lanes int) int {
	h := uint64(extent) + uint64(family)*0x9e3779b97f4a7c15
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return int((h ^ h>>33) % uint64(lanes))
}

// LaneMark is a lane's part of an anchor: replay starts behind LSN, in segments whose sequence is
// at least Sequence. PrevCRC is the Chain of the chunk with that LSN, the first link.
type LaneMark struct {
	LSN      uint64
	Sequence uint64
	PrevCRC  uint32
}

// Piece names a stretch of bytes on the device and its checksum.
type Piece struct {
	Off   uint64
	Bytes uint32
	CRC   uint32
}

// AnchorPlace gives the device offset of an anchor's copies, which rotate through the ring.
func AnchorPlace(seq uint64) int64 {
	return AnchorOff + int64(seq%(AnchorSlots/AnchorCopies))*AnchorCopies*Sector
}

// Anchor commits a checkpoint: one copy of it on the device is enough.
type Anchor struct {
	Seq         uint64
	Incarnation uint32 // of the process that wrote it
	Clean       bool   // nothing was written after it
	NextSegSeq  uint64 // every segment sequence given out so far is below
	NextVersion uint64 // every version seq given out so far is below
	Root        Piece  // the checkpoint root's list of pieces; Bytes 0: an empty device
	Lanes       []LaneMark
	// Journal is the identity of the NVRAM share that may hold acknowledged records; 0: there is none.
	Journal uint64
	// Window lists the only segments that may be opened before the next anchor; empty: any.
	Window []uint32
}

const windowMax = 768

// Encode fills one sector. It panics only on more lanes or window than the format holds, which
// is the engine's own mistake.
func (a *Anchor) Encode(b []byte) {
	if len(a.Lanes) > LanesMax || len(a.Window) > windowMax {
		panic("segment: anchor too large")
	}
	clear(b[:Sector])
	le.PutUint64(b[0:], anchorMagic)
	le.PutUint64(b[8:], a.Seq)
	le.PutUint32(b[16:], a.Incarnation)
	if a.Clean {
		b[20] = 1
	}
	b[21] = byte(len(a.Lanes))
	le.PutUint16(b[22:], uint16(len(a.Window)))
	le.PutUint64(b[24:], a.NextSegSeq)
	le.PutUint64(b[32:], a.NextVersion)
	le.PutUint64(b[40:], a.Root.Off)
	le.PutUint32(b[48:], a.Root.Bytes)
	le.PutUint32(b[52:], a.Root.CRC)
	le.PutUint64(b[56:], a.Journal)
	for i, l := range a.Lanes {
		p := b[64+i*32:]
		le.PutUint64(p, l.LSN)
		le.PutUint64(p[8:], l.Sequence)
		le.PutUint32(p[16:], l.PrevCRC)
	}
	for i, w := range a.Window {
		le.PutUint32(b[64+LanesMax*32+i*4:], w)
	}
	le.PutUint32(b[Sector-4:], Checksum(b[:Sector-4]))
}

// DecodeAnchor reads and checks one sector.
func DecodeAnchor(b []byte) (*Anchor, error) {
	if len(b) < Sector || le.Uint64(b) != anchorMagic {
		return nil, fmt.Errorf("anchor: no magic: %w", ErrBad)
	}
	if le.Uint32(b[Sector-4:]) != Checksum(b[:Sector-4]) {
		return nil, fmt.Errorf("anchor: checksum: %w", ErrBad)
	}
	lanes, window := int(b[21]), int(le.Uint16(b[22:]))
	if lanes == 0 || lanes > LanesMax || window > windowMax {
		return nil, fmt.Errorf("anchor: %d lanes, window %d: %w", lanes, window, ErrBad)
	}
	a := &Anchor{
		Seq: le.Uint64(b[8:]), Incarnation: le.Uint32(b[16:]), Clean: b[20] == 1,
		NextSegSeq: le.Uint64(b[24:]), NextVersion: le.Uint64(b[32:]),
		Root:    Piece{le.Uint64(b[40:]), le.Uint32(b[48:]), le.Uint32(b[52:])},
		Journal: le.Uint64(b[56:]),
	}
	for i := range lanes {
		p := b[64+i*32:]
		a.Lanes = append(a.Lanes, LaneMark{le.Uint64(p), le.Uint64(p[8:]), le.Uint32(p[16:])})
	}
	for i := range window {
		a.Window = append(a.Window, le.Uint32(b[64+LanesMax*32+i*4:]))
	}
	return a, nil
}
