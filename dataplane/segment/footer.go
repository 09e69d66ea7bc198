package segment

import (
	"fmt"
	"slices"

	"weft/dataplane/checksum"
)

func crcUpdate(crc uint32, p []byte) uint32 { return checksum.Update(crc, p) }

// footerChunk is the size of a chunk's place in a footer, before its header and entries.
const footerChunk = 8

// Footer repeats the headers and entries of all chunks of a sealed segment, so that recovery and
// the cleaner read them in one piece. It ends at the segment's end with a trailer sector:
//
//	[{offset in the segment u32, bytes u32} header+entries]* pad | trailer: magic u32, chunks u32,
//	sequence u64, incarnation u32, bytes u32, body CRC u32, ..., CRC u32
type Footer struct {
	body   []byte
	chunks uint32
}

// Reset empties the footer for the next segment.
func (f *Footer) Reset() { f.body, f.chunks = f.body[:0], 0 }

// Grow makes room for a body of so many bytes.
func (f *Footer) Grow(n int) { f.body = slices.Grow(f.body, max(n-len(f.body), 0)) }

// Add notes a chunk whose header with entries is h, at an offset within the segment.
func (f *Footer) Add(off uint32, h []byte) {
	f.body = le.AppendUint32(f.body, off)
	f.body = le.AppendUint32(f.body, uint32(len(h)))
	f.body = append(f.body, h...)
	f.chunks++
}

// Chunks counts the chunks noted.
func (f *Footer) Chunks() int { return int(f.chunks) }

// Size gives the footer's bytes on the device if one more header of n bytes were added.
func (f *Footer) Size(n int) int { return FooterSize(len(f.body), n) }

// FooterSize is Size for a footer whose body has so many bytes.
func FooterSize(body, n int) int { return RoundUp(body+footerChunk+n, Sector) + Sector }

// Body gives the bytes of the body so far.
func (f *Footer) Body() int { return len(f.body) }

// Encode gives the bytes to be written so that they end at the segment's end. dst is reused when
// it has the room.
func (f *Footer) Encode(dst []byte, sequence uint64, incarnation uint32) []byte {
	n := RoundUp(len(f.body), Sector)
	if cap(dst) < n+Sector {
		dst = make([]byte, n+Sector)
	}
	dst = dst[:n+Sector]
	clear(dst[copy(dst, f.body):])
	t := dst[n:]
	le.PutUint32(t[0:], trailerMagic)
	le.PutUint32(t[4:], f.chunks)
	le.PutUint64(t[8:], sequence)
	le.PutUint32(t[16:], incarnation)
	le.PutUint32(t[20:], uint32(len(f.body)))
	le.PutUint32(t[24:], Checksum(f.body))
	le.PutUint32(t[Sector-4:], Checksum(t[:Sector-4]))
	return dst
}

// Trailer is the last sector of a sealed segment.
type Trailer struct {
	Chunks      uint32
	Sequence    uint64
	Incarnation uint32
	Bytes       uint32 // of the body, before padding
	CRC         uint32
}

// DecodeTrailer reads and checks the last sector of a segment.
func DecodeTrailer(b []byte) (*Trailer, error) {
	if len(b) < Sector || le.Uint32(b) != trailerMagic {
		return nil, fmt.Errorf("trailer: no magic: %w", ErrBad)
	}
	if le.Uint32(b[Sector-4:]) != Checksum(b[:Sector-4]) {
		return nil, fmt.Errorf("trailer: checksum: %w", ErrBad)
	}
	return &Trailer{
		Chunks: le.Uint32(b[4:]), Sequence: le.Uint64(b[8:]), Incarnation: le.Uint32(b[16:]),
		Bytes: le.Uint32(b[20:]), CRC: le.Uint32(b[24:]),
	}, nil
}

// Each calls fn with every chunk of a footer's body, which must match the trailer.
func (t *Trailer) Each(body []byte, salt uint32,
	fn func(off uint32, c *Chunk, entries []byte) error,
) error {
	if len(body) < int(t.Bytes) || Checksum(body[:t.Bytes]) != t.CRC {
		return fmt.Errorf("footer: checksum: %w", ErrBad)
	}
	body = body[:t.Bytes]
	for range t.Chunks {
		if len(body) < footerChunk {
			return fmt.Errorf("footer: cut short: %w", ErrBad)
		}
		off, n := le.Uint32(body), le.Uint32(body[4:])
		body = body[footerChunk:]
		if uint64(n) > uint64(len(body)) {
			return fmt.Errorf("footer: cut short: %w", ErrBad)
		}
		c, entries, err := DecodeChunk(body[:n], salt)
		if err != nil {
			return err
		}
		if err := fn(off, c, entries); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}
