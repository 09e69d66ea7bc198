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

	"weft/dataplane/checksum"
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
	FormatVersion = 2
)

var le = binary.LittleEndian

// Checksum gives the CRC-32C of p.
func Checksum(p []byte) uint32 { return checksum.Sum(p) }

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
