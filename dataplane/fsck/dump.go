package fsck

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// The states of a segment, by its own bytes alone: whether anything in it lives, the checkpoint
// says.
const (
	StateReserved = "reserved" // it lies over a superblock and is never used
	StateUnused   = "unused"   // neither a header nor a chunk of it verifies
	StateOpen     = "open"     // it has no footer: it was being written, or a crash ended it
	StateSealed   = "sealed"   // it has a footer
)

// SegmentDump is all that stands in one segment. Offsets count from the start of the device.
type SegmentDump struct {
	ID       uint32
	Off      int64
	Size     int64
	State    string
	Sequence uint64 // of the life whose chunks are listed; without a header, that of the first chunk
	Stream   string
	Lane     uint8
	Header   *segment.Header  // nil: it does not verify
	Footer   *segment.Trailer // nil: there is none of this life
	Agrees   bool             // the footer names the chunks that were found, and no other
	Chunks   []ChunkDump      // of this life, by place
	Gaps     []Gap            // what stands in no chunk of this life, by place
	Problems []Problem
}

// ChunkDump is a chunk with its entries.
type ChunkDump struct {
	segment.Chunk
	Off      int64
	Payload  int64 // where its payload begins
	Header   bool  // its own header verifies; else what is told is the footer's copy of it
	Whole    bool  // all of its payload that has a checksum matches it
	InFooter bool  // the footer names it, with the same checksum
	List     []EntryDump
}

// EntryDump is one entry, and whether the payload that it names matches its checksums.
type EntryDump struct {
	segment.Entry
	Sound bool
}

// Gap is a stretch of a segment that holds no chunk of its life, and what it looks like.
type Gap struct {
	Off, Len int64
	What     string
}

// DumpSegment reads one segment of a device of a size in bytes, by the device's superblock alone.
// What does not verify is told and passed over. It holds the segment in memory, 32 MiB at most.
// Errors: as of Check for a device without a superblock; Invalid for a segment that it has not.
func DumpSegment(dev Reader, size int64, o Options, id uint32) (*SegmentDump, error) {
	c := &checker{dev: dev, size: size, o: o}
	if err := c.supers(); err != nil {
		return nil, err
	}
	if id >= c.Super.Segments {
		return nil, &domain.Error{
			Op: "inspect", Kind: domain.Invalid,
			Msg:    fmt.Sprintf("no segment %d: the device has %d, from 0 on", id, c.Super.Segments),
			Remedy: "weft inspect segment DEVICE lists them",
		}
	}
	c.Problems = nil // of the superblock's copies: not what was asked for
	n := int64(c.Super.SegmentSize)
	s := &Segment{
		ID: id, Off: int64(c.Super.FirstOff) + int64(id)*n, Reserved: c.Super.Reserved(int(id)),
	}
	d := &SegmentDump{ID: id, Off: s.Off, Size: n, State: StateReserved}
	if s.Reserved {
		return d, nil
	}
	whole := c.readable(s)
	c.dumpHeader(d, s, whole)
	c.dumpChunks(d, s, whole)
	d.Sequence, d.Stream, d.Lane = s.Sequence, s.Stream, s.Lane
	d.Problems = c.Problems
	slices.SortStableFunc(d.Problems, func(a, b Problem) int { return cmp.Compare(a.Off, b.Off) })
	return d, nil
}

// readable gives a segment's bytes, zeros where the device does not answer, which is told.
func (c *checker) readable(s *Segment) []byte {
	size := int64(c.Super.SegmentSize)
	whole, err := c.read(s.Off, size)
	if err == nil {
		return whole
	}
	whole = backends.AlignedBuffer(int(size))
	for at := int64(0); at < size; at += segment.Sector {
		b, err := c.read(s.Off+at, segment.Sector)
		if err != nil {
			c.problem(Problem{Part: "sector", Off: s.Off + at, Segment: int64(s.ID)}, "%v", err)
			continue
		}
		copy(whole[at:], b)
	}
	return whole
}

func (c *checker) dumpHeader(d *SegmentDump, s *Segment, whole []byte) {
	at := Problem{Part: "header", Off: s.Off, Segment: int64(s.ID)}
	h, err := segment.DecodeHeader(whole[:segment.Sector])
	switch {
	case err == nil && h.Segment == s.ID && h.Device == c.Super.Device:
		d.Header = h
		s.Sequence, s.Lane, s.Stream = h.Sequence, h.Lane, streams[h.Stream]
		return
	case err == nil:
		d.Header = h
		c.problem(at, "it is that of segment %d of device %s", h.Segment, h.Device)
	case !blank(whole[:segment.Sector]):
		c.problem(at, "%v", err)
	}
	c.guess(s)
	if s.Sequence != 0 && len(c.Problems) == 0 {
		c.problem(at, "there is none, and chunks stand behind it")
	}
}

func (c *checker) dumpChunks(d *SegmentDump, s *Segment, whole []byte) {
	d.State = StateUnused
	end := int64(len(whole))
	if s.Sequence != 0 {
		d.State = StateOpen
		found := c.sweep(s, whole)
		t, footer, err := c.footer(s, whole)
		if t != nil {
			d.State, d.Footer = StateSealed, t
			end -= int64(segment.RoundUp(int(t.Bytes), segment.Sector)) + segment.Sector
			d.Agrees = c.agree(s, end, found, footer, err)
		}
		if err != nil {
			footer = nil
		}
		for _, k := range merged(found, footer) {
			e := c.dumpChunk(s, &k, whole)
			e.Header, e.InFooter = holds(found, &k), holds(footer, &k)
			d.Chunks = append(d.Chunks, e)
		}
		slices.SortFunc(d.Chunks, func(a, b ChunkDump) int { return cmp.Compare(a.Off, b.Off) })
	}
	c.gaps(d, s, whole[:end])
}

// agree holds a footer, which begins at an offset in the segment, to the chunks that were found.
func (c *checker) agree(s *Segment, at int64, found, footer []chunk, err error) bool {
	of := Problem{Part: "footer", Off: s.Off + at, Segment: int64(s.ID)}
	if err != nil {
		c.problem(of, "%v", err)
		return false
	}
	agrees := true
	for _, k := range footer {
		if !holds(found, &k) {
			agrees = false
			c.problem(Problem{Part: "chunk", Off: k.off, Segment: int64(s.ID)},
				"its header does not verify; the footer has it")
		}
	}
	for _, k := range found {
		if !holds(footer, &k) {
			agrees = false
			c.problem(of, "it does not name the chunk at %d", k.off)
		}
	}
	return agrees
}

// holds tells whether a list has the same chunk at the same place.
func holds(list []chunk, k *chunk) bool {
	return slices.ContainsFunc(list, func(o chunk) bool { return o.off == k.off && o.CRC == k.CRC })
}

// dumpChunk lists the entries of a chunk and holds its payload to them.
func (c *checker) dumpChunk(s *Segment, k *chunk, whole []byte) ChunkDump {
	d := ChunkDump{Chunk: k.Chunk, Off: k.off, Payload: k.payload(), Whole: true}
	from := min(k.payload()-s.Off, int64(len(whole)))
	payload := whole[from:min(from+int64(k.PayloadBytes), int64(len(whole)))]
	bad := map[int]bool{}
	spoiled := func(no int, en *segment.Entry, at int, block uint64) {
		d.Whole, bad[no] = false, true
		p := Problem{
			Part: "block", Off: k.payload() + int64(at), Segment: int64(s.ID), Block: block,
		}
		if en.Version != (domain.Version{}) {
			p.Version = en.Version.String()
		}
		c.problem(p, "entry %d of the chunk at %d, block %d of branch %d: its bytes do not match its "+
			"checksum", no, k.off, block, en.Branch)
	}
	all := k.sums(func(no, i int, en *segment.Entry, at, n int, crc uint32) {
		if at+n > len(payload) || segment.Checksum(payload[at:at+n]) != crc {
			spoiled(no, en, at, en.Block+uint64(i))
		}
	})
	k.each(func(en *segment.Entry, _ []byte) {
		at := int(en.Off) * segment.Unit
		if en.Kind == segment.KindLeaf || en.Kind == segment.KindRoot {
			if n := int(en.Units) * segment.Unit; at+n > len(payload) || !padded(payload[at:at+n], en.CRC) {
				spoiled(len(d.List), en, at, 0)
			}
		}
		d.List = append(d.List, EntryDump{*en, !bad[len(d.List)]})
	})
	if !all {
		d.Whole = false
		c.problem(Problem{Part: "entry", Off: k.off, Segment: int64(s.ID)}, "entry %d does not decode",
			len(d.List))
	}
	return d
}

// padded tells whether b is a body with the given checksum and zeros behind it, up to a unit: of
// leaves and roots the entry does not say how long they are, the checkpoint does.
func padded(b []byte, crc uint32) bool {
	n := len(b)
	for {
		if segment.Checksum(b[:n]) == crc {
			return true
		}
		if n == 0 || b[n-1] != 0 || len(b)-n >= segment.Unit-1 {
			return false
		}
		n--
	}
}

// gaps lists what stands in no chunk; whole ends where the footer begins. Bytes that are no chunk
// are no problem behind the last one: a crash leaves such, and so do earlier lives.
func (c *checker) gaps(d *SegmentDump, s *Segment, whole []byte) {
	at := int64(segment.Sector)
	for i := range len(d.Chunks) + 1 {
		to := int64(len(whole))
		if i < len(d.Chunks) {
			to = d.Chunks[i].Off - s.Off
		}
		for ; at < to; at += segment.Sector {
			what, ours := c.looks(s, at, whole)
			off := s.Off + at
			last := len(d.Gaps) - 1
			if last >= 0 && d.Gaps[last].What == what && d.Gaps[last].Off+d.Gaps[last].Len == off && !ours {
				d.Gaps[last].Len += segment.Sector
				continue
			}
			d.Gaps = append(d.Gaps, Gap{off, segment.Sector, what})
			if ours || what == noChunk && i < len(d.Chunks) {
				c.problem(Problem{Part: "chunk", Off: off, Segment: int64(s.ID)}, "%s", what)
			}
		}
		if i < len(d.Chunks) {
			at = max(at, to+int64(d.Chunks[i].Bytes()))
		}
	}
}

const noChunk = "bytes that are no chunk"

// looks says what a sector in no chunk looks like, and whether it is a damaged header of this life.
func (c *checker) looks(s *Segment, at int64, whole []byte) (what string, ours bool) {
	b := whole[at:min(at+segment.HeaderMax, int64(len(whole)))]
	k, err := c.chunkAt(s, at, b)
	switch {
	case err == nil:
		return "a chunk inside of another", true
	case k.Sequence != 0 && k.Sequence != s.Sequence:
		return fmt.Sprintf("chunks of life %d", k.Sequence), false
	case k.Sequence != 0:
		return fmt.Sprintf("a chunk of LSN %d: %v", k.LSN, err), true
	case blank(b[:segment.Sector]):
		return "zeros", false
	}
	if h, bad := segment.DecodeChunkFixed(b); bad == nil && h.Sequence == s.Sequence {
		return fmt.Sprintf("a chunk of LSN %d, by its own word: %v", h.LSN, err), true
	}
	return noChunk, false
}

func blank(b []byte) bool {
	return len(bytes.Trim(b, "\x00")) == 0
}
