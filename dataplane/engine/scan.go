package engine

import (
	"errors"
	"fmt"
	"slices"

	"weft/backends"
	"weft/dataplane/segment"
)

// scanWindow is how much of an unsealed segment is read at a time, in bytes.
const scanWindow = 256 << 10

// errUnreadable says that the device refused a read of a segment.
var errUnreadable = errors.New("segment not readable")

// unreadable translates a failed read of a segment.
func (e *Engine) unreadable(err error) error {
	return e.device(fmt.Errorf("%w: %w", errUnreadable, err), "engine.scan")
}

// eachChunk calls fn with every valid chunk of a segment's life: from its footer, or by scanning it
// when it has none. off is the chunk's place on the device; entries are fn's to keep.
func (e *Engine) eachChunk(id uint32, seq uint64,
	fn func(off int64, h *segment.Chunk, entries []byte) error,
) error {
	_, err := e.readChunks(id, seq, &footerRoom{}, fn)
	return err
}

// readChunks is eachChunk and tells whether the segment was sealed. Then entries are fn's only
// until the room is used again.
func (e *Engine) readChunks(id uint32, seq uint64, room *footerRoom,
	fn func(off int64, h *segment.Chunk, entries []byte) error,
) (sealed bool, err error) {
	base := e.space.off(id)
	t, body, err := e.footer(id, seq, room)
	if err != nil {
		return false, err
	}
	if t == nil {
		return false, e.scan(id, seq, fn)
	}
	var fault error
	bad := t.Each(body, e.super.Salt, func(off uint32, h *segment.Chunk, entries []byte) error {
		if h.Sequence != seq {
			return segment.ErrBad
		}
		fault = fn(base+int64(off), h, entries)
		return fault
	})
	if bad != nil && fault == nil {
		return false, e.scan(id, seq, fn) // a footer that lies is no footer
	}
	return true, fault
}

// footerRoom is where one footer after the other is read. The next one is asked for at the size of
// the one before, so that a single read takes the trailer and the body.
type footerRoom struct {
	buf  []byte
	last int  // bytes of the footer before
	kept bool // for many footers: huge pages are worth it
}

// read gives the last n bytes of a segment that ends at an offset of the device. The last so many
// of them are there already, from the read before.
func (r *footerRoom) read(dev backends.Device, end int64, n, there int) ([]byte, error) {
	if n > len(r.buf) {
		old := r.buf
		if r.kept {
			r.buf = backends.HugeBuffer(n)
		} else {
			r.buf = backends.AlignedBuffer(n)
		}
		copy(r.buf[n-there:], old[len(old)-there:])
	}
	b := r.buf[len(r.buf)-n:]
	return b, dev.ReadAt(b[:n-there], end-int64(n))
}

// footer reads a segment's footer; nil when this life of the segment has none. Its body is not
// verified yet, and stays as it is until the room is used again.
func (e *Engine) footer(id uint32, seq uint64, room *footerRoom) (*segment.Trailer, []byte, error) {
	end := e.space.off(id) + e.space.size
	b, err := room.read(e.dev, end, max(room.last, segment.Sector), 0)
	if err != nil && len(b) > segment.Sector { // what cannot be read may be no part of this footer
		b, err = room.read(e.dev, end, segment.Sector, 0)
	}
	if err != nil {
		return nil, nil, e.unreadable(err)
	}
	t, bad := segment.DecodeTrailer(b[len(b)-segment.Sector:])
	if bad != nil || t.Sequence != seq {
		return nil, nil, nil //nolint:nilerr // no footer is an answer, not an error
	}
	n := segment.RoundUp(int(t.Bytes), segment.Sector) + segment.Sector
	if int64(n) > e.space.size-segment.Sector {
		return nil, nil, nil
	}
	if room.last = n; n > len(b) {
		if b, err = room.read(e.dev, end, n, len(b)); err != nil {
			return nil, nil, e.unreadable(err)
		}
	}
	return t, b[len(b)-n : len(b)-segment.Sector], nil
}

// scan walks a segment sector by sector: behind a valid chunk it goes on at its end, elsewhere one
// sector further, so that a damaged chunk hides only itself.
func (e *Engine) scan(id uint32, seq uint64,
	fn func(off int64, h *segment.Chunk, entries []byte) error,
) error {
	s := &scanner{e: e, base: e.space.off(id), size: e.space.size}
	for at := int64(segment.Sector); at+segment.Sector <= s.size; {
		b, err := s.bytes(at, segment.ChunkHeader)
		if err != nil {
			return err
		}
		h, bad := segment.DecodeChunkFixed(b)
		if bad != nil || h.Sequence != seq || at+int64(h.Bytes()) > s.size {
			at += segment.Sector
			continue
		}
		if b, err = s.bytes(at, h.HeaderBytes()); err != nil {
			return err
		}
		h, entries, bad := segment.DecodeChunk(b, e.super.Salt)
		if bad != nil || !h.Stands(s.base+at) {
			at += segment.Sector
			continue
		}
		if err := fn(s.base+at, h, slices.Clone(entries)); err != nil {
			return err
		}
		at += int64(h.Bytes())
	}
	return nil
}

// scanner reads a segment through one window.
type scanner struct {
	e          *Engine
	base, size int64
	buf        []byte
	from, to   int64
}

// bytes gives n bytes at an offset of the segment; n is at most segment.HeaderMax.
func (s *scanner) bytes(at int64, n int) ([]byte, error) {
	if s.buf == nil {
		s.buf = backends.AlignedBuffer(scanWindow)
	}
	if at < s.from || at+int64(n) > s.to {
		end := min(at+scanWindow, s.size)
		if err := s.e.dev.ReadAt(s.buf[:end-at], s.base+at); err != nil {
			return nil, s.e.unreadable(err)
		}
		s.from, s.to = at, end
	}
	return s.buf[at-s.from:][:n], nil
}
