// Package segment holds the on-disk format of a Weft device as codecs: superblock, anchor, segment
// header, chunk, entry, footer, leaf image and checkpoint root. FORMAT.md draws the bytes.
//
// What it never does: no I/O, no lock, no decision. A decoder takes bytes of any origin, never
// panics, never allocates more than a named limit, and answers ErrBad for everything that does not
// verify. Encoders are deterministic. All integers are little-endian, all checksums CRC-32C
// (Castagnoli).
//
// A format constant is never changed, only added. Golden bytes in testdata decode for ever.
package segment

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// ErrBad is the answer of every decoder to bytes that do not verify; it is wrapped with what.
var ErrBad = errors.New("does not verify")

// Sizes of the format, in bytes.
const (
	Sector     = 4096 // superblock, anchor, segment header and chunk padding
	Unit       = 512  // unit of addresses and stored lengths
	BlockSize  = 4096
	BlockUnits = BlockSize / Unit

	ChunkHeader   = 64       // fixed part of a chunk's header
	HeaderMax     = 64 << 10 // header with its entries, padded
	PayloadMax    = 1 << 20
	ChunkMax      = HeaderMax + PayloadMax
	LeafBlocks    = 1024 // blocks of an extent: one leaf
	RecordBlocks  = 256  // most blocks of one DATA entry
	FormatVersion = 1
)

var (
	le    = binary.LittleEndian
	table = crc32.MakeTable(crc32.Castagnoli)
)

// Checksum gives the CRC-32C of p.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, table) }

// RoundUp gives the least multiple of unit that is not below n.
func RoundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

func put40(b []byte, v uint64) {
	le.PutUint32(b, uint32(v))
	b[4] = byte(v >> 32)
}

func get40(b []byte) uint64 { return uint64(le.Uint32(b)) | uint64(b[4])<<32 }

func put48(b []byte, v uint64) {
	le.PutUint32(b, uint32(v))
	le.PutUint16(b[4:], uint16(v>>32))
}

func get48(b []byte) uint64 { return uint64(le.Uint32(b)) | uint64(le.Uint16(b[4:]))<<32 }

// Loc says where the newest copy of a block stands, in 8 bytes:
//
//	63..61 kind | 60..21 address in 512 B units | 20..18 stored units - 1 | 17..0 fold of the CRC
//
// The zero Loc is a hole.
type Loc uint64

// LocKind is the top three bits of a Loc. 3 to 6 are reserved: nvram, hdd, indirect and one more.
type LocKind uint8

// The kinds of location.
const (
	Hole  LocKind = 0 // never written or unmapped; reads zero
	Zero  LocKind = 1 // written as zeros; reads zero, counts as allocated
	Flash LocKind = 2 // data on this device
	Lost  LocKind = 7 // the index entry was damaged; reads as corrupt until written again
)

// addrMax bounds the addresses that a Loc and an entry can name, in units of 512 bytes: 512 TiB.
const addrMax = 1 << 40

// MakeLoc puts a location together. addr is in units of 512 bytes, below 2^40; units is 1 to 8.
func MakeLoc(kind LocKind, addr uint64, units int, crc uint32) Loc {
	return Loc(uint64(kind)<<61 | addr<<21 | uint64(units-1)&7<<18 | uint64(Fold(crc)))
}

// ZeroLoc is the location of a block written as zeros.
func ZeroLoc() Loc { return Loc(uint64(Zero) << 61) }

// Kind gives the kind.
func (l Loc) Kind() LocKind { return LocKind(l >> 61) }

// Addr gives the address on the device in units of 512 bytes.
func (l Loc) Addr() uint64 { return uint64(l) >> 21 & (1<<40 - 1) }

// Off gives the address on the device in bytes.
func (l Loc) Off() int64 { return int64(l.Addr()) * Unit }

// Fold gives the 18 bits of a CRC that a Loc carries.
func Fold(crc uint32) uint32 { return (crc ^ crc>>18) & (1<<18 - 1) }
