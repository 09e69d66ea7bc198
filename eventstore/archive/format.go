package archive

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strings"

	"weft/domain"
	"weft/eventstore"
)

// The segment, version 1; FORMAT.md draws it. Integers are little-endian, sizes are bytes.
const (
	headMagic = "WSEG"
	footMagic = "WSGE"
	format    = 1
	headSize  = 4 + 2 + 2 + 16 + 8 + 32 + 4
	footSize  = 4 + 4 + 8 + 8 + 32 + 32 + 4
	// fixed is how many bytes of a record tell its length.
	fixed = 8
)

// SegmentEvents is how many records a full segment holds.
const SegmentEvents = 50_000

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// name gives the file of the segment that begins at n.
func name(n uint64) string { return fmt.Sprintf("events-%016d.wes", n) }

// parseName gives the first n of a segment's file.
func parseName(file string) (n uint64, ok bool) {
	rest, found := strings.CutPrefix(file, "events-")
	rest, ended := strings.CutSuffix(rest, ".wes")
	if !found || !ended || len(rest) != 16 {
		return 0, false
	}
	_, err := fmt.Sscanf(rest, "%016d", &n)
	return n, err == nil && n > 0 && name(n) == file
}

// head begins a segment: what it continues.
type head struct {
	cluster domain.UUID
	after   domain.Position // of the record before the first
	prev    [32]byte        // its hash
}

func (h *head) bytes() []byte {
	b := make([]byte, 0, headSize)
	b = append(b, headMagic...)
	b = binary.LittleEndian.AppendUint16(b, format)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = append(b, h.cluster[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.after))
	b = append(b, h.prev[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseHead(b []byte) (h head, err error) {
	switch {
	case string(b[:4]) != headMagic:
		return h, errDamaged("the head's magic does not match")
	case binary.LittleEndian.Uint32(b[headSize-4:]) != crc32.Checksum(b[:headSize-4], castagnoli):
		return h, errDamaged("the head's checksum does not match")
	case binary.LittleEndian.Uint16(b[4:]) != format || binary.LittleEndian.Uint16(b[6:]) != 0:
		return h, domain.Errorf(domain.Unsupported, "segment format %d is newer than this build",
			binary.LittleEndian.Uint16(b[4:]))
	}
	copy(h.cluster[:], b[8:])
	h.after = domain.Position(binary.LittleEndian.Uint64(b[24:]))
	copy(h.prev[:], b[32:])
	return h, nil
}

// foot ends a segment: what it holds.
type foot struct {
	count uint32
	bytes uint64 // of the records
	last  domain.Position
	hash  [32]byte // of the last record
	root  [32]byte // SHA-256 over head and records
}

func (f *foot) encode() []byte {
	b := make([]byte, 0, footSize)
	b = append(b, footMagic...)
	b = binary.LittleEndian.AppendUint32(b, f.count)
	b = binary.LittleEndian.AppendUint64(b, f.bytes)
	b = binary.LittleEndian.AppendUint64(b, uint64(f.last))
	b = append(b, f.hash[:]...)
	b = append(b, f.root[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseFoot(b []byte) (f foot, err error) {
	switch {
	case string(b[:4]) != footMagic:
		return f, errDamaged("the foot's magic does not match")
	case binary.LittleEndian.Uint32(b[footSize-4:]) != crc32.Checksum(b[:footSize-4], castagnoli):
		return f, errDamaged("the foot's checksum does not match")
	}
	f.count = binary.LittleEndian.Uint32(b[4:])
	f.bytes = binary.LittleEndian.Uint64(b[8:])
	f.last = domain.Position(binary.LittleEndian.Uint64(b[16:]))
	copy(f.hash[:], b[24:])
	copy(f.root[:], b[56:])
	return f, nil
}

func errDamaged(what string) error { return &eventstore.CorruptError{What: what} }

// writer makes one segment.
type writer struct {
	to   *bufio.Writer
	sum  hash.Hash
	foot foot
	buf  []byte
}

func newWriter(w io.Writer, h head) (*writer, error) {
	s := &writer{to: bufio.NewWriterSize(w, 1<<20), sum: sha256.New()}
	s.foot.last, s.foot.hash = h.after, h.prev
	return s, s.put(h.bytes())
}

func (s *writer) put(b []byte) error {
	s.sum.Write(b)
	_, err := s.to.Write(b)
	return err
}

// add appends a record, which must follow the one before.
func (s *writer) add(r *eventstore.Recorded) error {
	s.buf = eventstore.AppendRecord(s.buf[:0], r)
	return s.addEncoded(r, s.buf)
}

// addEncoded is add for a record whose bytes are there.
func (s *writer) addEncoded(r *eventstore.Recorded, b []byte) error {
	if r.Prev != s.foot.hash || r.Position <= s.foot.last {
		return &eventstore.CorruptError{
			Position: r.Position, What: "does not follow the record before it",
		}
	}
	s.foot.count++
	s.foot.bytes += uint64(len(b))
	s.foot.last, s.foot.hash = r.Position, r.Hash
	return s.put(b)
}

func (s *writer) finish() error {
	s.sum.Sum(s.foot.root[:0])
	if _, err := s.to.Write(s.foot.encode()); err != nil {
		return err
	}
	return s.to.Flush()
}

// readSegment verifies a segment of so many bytes. begin judges its head, then fn gets its records
// in order; an error of either ends it. Damage is a CorruptError that names the position where one
// is known.
func readSegment(
	r io.Reader, size int64, begin func(head) error, fn func(eventstore.Recorded) error,
) (h head, f foot, err error) {
	if size < headSize+footSize {
		return h, f, errDamaged("the file is too short for a segment")
	}
	in := bufio.NewReaderSize(r, 1<<20)
	sum := sha256.New()
	buf := make([]byte, headSize)
	if _, err := io.ReadFull(in, buf); err != nil {
		return h, f, err
	}
	if h, err = parseHead(buf); err == nil {
		err = begin(h)
	}
	if err != nil {
		return h, f, err
	}
	sum.Write(buf)
	got := foot{last: h.after, hash: h.prev}
	for left := size - headSize - footSize; left > 0; {
		buf, err = nextRecord(in, buf, left)
		if err != nil {
			return h, f, place(err, got.last)
		}
		sum.Write(buf)
		left -= int64(len(buf))
		rec, err := eventstore.DecodeRecord(positionIn(buf), buf)
		if err != nil {
			return h, f, place(err, got.last)
		}
		if rec.Prev != got.hash || rec.Position <= got.last {
			return h, f, &eventstore.CorruptError{
				Position: rec.Position, What: "does not follow the record before it",
			}
		}
		got.count++
		got.bytes += uint64(len(buf))
		got.last, got.hash = rec.Position, rec.Hash
		if err := fn(rec); err != nil {
			return h, f, err
		}
	}
	tail := make([]byte, footSize)
	if _, err := io.ReadFull(in, tail); err != nil {
		return h, f, err
	}
	if f, err = parseFoot(tail); err != nil {
		return h, f, place(err, got.last)
	}
	sum.Sum(got.root[:0])
	if got != f {
		return h, f, &eventstore.CorruptError{
			Position: got.last, What: "the foot does not match what the segment holds",
		}
	}
	return h, f, nil
}

// nextRecord reads one record, which must fit into the bytes left.
func nextRecord(in io.Reader, buf []byte, left int64) ([]byte, error) {
	if left < fixed {
		return nil, errDamaged("a record is cut")
	}
	buf = append(buf[:0], make([]byte, fixed)...)
	if _, err := io.ReadFull(in, buf); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(buf[4:]))
	if n < fixed || n > left {
		return nil, errDamaged("a record's length is out of bounds")
	}
	buf = append(buf, bytes.Repeat([]byte{0}, int(n-fixed))...)
	_, err := io.ReadFull(in, buf[fixed:])
	return buf, err
}

// positionIn gives the position that a record claims.
func positionIn(b []byte) domain.Position {
	const at = 16
	if len(b) < at+8 {
		return 0
	}
	return domain.Position(binary.LittleEndian.Uint64(b[at:]))
}

// place gives damage the position after the last sound one.
func place(err error, last domain.Position) error {
	var bad *eventstore.CorruptError
	if errors.As(err, &bad) {
		return &eventstore.CorruptError{Position: last + 1, What: bad.What}
	}
	return err
}
