package fsck

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"weft/dataplane/segment"
)

// chunk is a chunk as it was found.
type chunk struct {
	segment.Chunk
	off     int64
	entries []byte
	chain   uint32
}

// Why a chunk whose header verifies does not count where it stands.
var (
	errLife  = errors.New("it is of another life of the segment")
	errCut   = errors.New("it reaches beyond the segment's end")
	errPlace = errors.New("it was sealed for another place")
)

// chunkAt gives the chunk that begins at an offset in a segment, whose bytes are b. The error says
// that none does, or why it does not count there; then what its header says is given all the same.
func (c *checker) chunkAt(s *Segment, at int64, b []byte) (chunk, error) {
	h, entries, err := segment.DecodeChunk(b, c.Super.Salt)
	if err != nil {
		return chunk{}, err
	}
	k := chunk{Chunk: *h, off: s.Off + at}
	switch {
	case h.Sequence != s.Sequence:
		return k, errLife
	case at+int64(h.Bytes()) > int64(c.Super.SegmentSize):
		return k, errCut
	case !h.Stands(k.off):
		return k, errPlace
	}
	k.entries, k.chain = slices.Clone(entries), h.Chain(entries)
	return k, nil
}

// chunks gives every valid chunk of a segment's life, by place, found by looking at every sector;
// and, apart, what a footer says, nil when there is none.
func (c *checker) chunks(s *Segment) (found, footer []chunk) {
	whole, err := c.read(s.Off, int64(c.Super.SegmentSize))
	if err != nil {
		return c.sectors(s), nil
	}
	found = c.sweep(s, whole)
	s.Chunks = len(found)
	_, footer, err = c.footer(s, whole)
	if err != nil {
		return found, nil // a crash tears footers; they save reading, and nothing depends on them
	}
	s.Footer = true
	return found, footer
}

// sweep looks for chunks at every sector of a segment's bytes.
func (c *checker) sweep(s *Segment, whole []byte) (found []chunk) {
	for at := int64(segment.Sector); at < int64(len(whole)); at += segment.Sector {
		k, err := c.chunkAt(s, at, whole[at:min(at+segment.HeaderMax, int64(len(whole)))])
		if err == nil {
			found = append(found, k)
			at += int64(k.Bytes()) - segment.Sector
		}
	}
	return found
}

// footer reads the footer at the end of a segment's bytes. The trailer is given where it verifies
// and is of the segment's life, whether the rest does or not.
func (c *checker) footer(s *Segment, whole []byte) (*segment.Trailer, []chunk, error) {
	t, err := segment.DecodeTrailer(whole[len(whole)-segment.Sector:])
	if err != nil {
		return nil, nil, err
	}
	size := segment.RoundUp(int(t.Bytes), segment.Sector)
	if t.Sequence != s.Sequence || size > len(whole)-2*segment.Sector {
		return nil, nil, fmt.Errorf("trailer: %d bytes of life %d: %w", t.Bytes, t.Sequence,
			segment.ErrBad)
	}
	var list []chunk
	at := len(whole) - segment.Sector - size
	err = t.Each(whole[at:], c.Super.Salt, func(off uint32, h *segment.Chunk, entries []byte) error {
		list = append(list, chunk{*h, s.Off + int64(off), slices.Clone(entries), h.Chain(entries)})
		return nil
	})
	return t, list, err
}

// sectors is chunks for a segment that cannot be read in one go.
func (c *checker) sectors(s *Segment) (found []chunk) {
	size := int64(c.Super.SegmentSize)
	for at := int64(segment.Sector); at < size; at += segment.Sector {
		b, err := c.read(s.Off+at, min(segment.HeaderMax, size-at))
		if err != nil {
			if b, err = c.read(s.Off+at, segment.Sector); err != nil {
				c.problem(Problem{Part: "sector", Off: s.Off + at, Segment: int64(s.ID)}, "%v", err)
				continue
			}
		}
		if k, err := c.chunkAt(s, at, b); err == nil {
			found = append(found, k)
		}
	}
	return found
}

// merged gives the chunks of a segment: those in the footer, and those found that it does not name.
func merged(found, footer []chunk) []chunk {
	all := slices.Clone(footer)
	for _, f := range found {
		if !slices.ContainsFunc(footer, func(o chunk) bool { return o.off == f.off }) {
			all = append(all, f)
		}
	}
	return all
}

// each calls fn with the entries of a chunk.
func (k *chunk) each(fn func(en *segment.Entry, raw []byte)) bool {
	b := k.entries
	for range k.Entries {
		var en segment.Entry
		n, err := segment.DecodeEntry(b, k.LSN, &en)
		if err != nil {
			return false
		}
		fn(&en, b[:n])
		b = b[n:]
	}
	return true
}

// payload is where a chunk's payload begins on the device.
func (k *chunk) payload() int64 { return k.off + int64(k.HeaderBytes()) }

// replay folds the log behind the checkpoint, lane by lane.
func (c *checker) replay() {
	for lane := range c.Super.Lanes {
		c.lane(uint8(lane), c.marks[lane])
	}
}

// tail gathers what one lane's log holds behind its mark.
func (c *checker) tail(lane uint8, mark segment.LaneMark) (list []chunk, proven uint64) {
	for i := range c.Segments {
		s := &c.Segments[i]
		if s.Stream != streams[segment.StreamLog] || s.Lane != lane || s.Sequence < mark.Sequence {
			continue
		}
		found, footer := c.chunks(s)
		for _, k := range merged(found, footer) {
			proven = max(proven, k.FlushMark)
			if s.Footer {
				proven = max(proven, k.LSN)
			}
			if k.LSN > mark.LSN {
				list = append(list, k)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b chunk) int { return cmp.Compare(a.LSN, b.LSN) })
	return list, proven
}

// lane follows the names from chunk to chunk: what is not linked and not proven was never
// acknowledged, and neither is anything behind it.
func (c *checker) lane(lane uint8, mark segment.LaneMark) {
	list, proven := c.tail(lane, mark)
	prev, prevCRC := mark.LSN, mark.PrevCRC
	for i := range list {
		k := &list[i]
		if k.LSN <= prev {
			continue
		}
		linked := k.PrevLSN == prev && k.PrevCRC == prevCRC
		if !linked && k.PrevLSN > proven {
			break
		}
		twin := i+1 < len(list) && list[i+1].LSN == k.LSN || i > 0 && list[i-1].LSN == k.LSN
		if (k.LSN > proven || twin) && !c.whole(k) {
			if i+1 < len(list) && list[i+1].LSN == k.LSN {
				continue
			}
			if k.LSN > proven {
				break
			}
		}
		at := Problem{Part: "log", Off: k.off, Segment: c.segmentOf(k.off)}
		if c.Anchor.Clean {
			c.problem(at, "lane %d: LSN %d stands behind a clean stop", lane, k.LSN)
		}
		if !linked {
			c.problem(at, "lane %d: the log between LSN %d and %d does not verify", lane, prev, k.LSN)
		}
		c.place(k.off, segment.ChunkHeader+int64(k.EntryBytes), "log")
		if !k.each(func(en *segment.Entry, raw []byte) { c.redo(lane, k, en, raw, mark.LSN) }) {
			c.problem(at, "an entry does not decode")
		}
		c.Replayed++
		prev, prevCRC = k.LSN, k.chain
	}
}

// whole tells whether the payload of a chunk is what its entries say.
func (c *checker) whole(k *chunk) bool {
	if k.PayloadBytes == 0 {
		return true
	}
	b, err := c.read(k.payload(), int64(k.PayloadBytes))
	if err != nil {
		return false
	}
	ok := true
	all := k.sums(func(_, _ int, _ *segment.Entry, at, n int, crc uint32) {
		ok = ok && at+n <= len(b) && segment.Checksum(b[at:at+n]) == crc
	})
	return ok && all
}

// sums calls fn with each part of a chunk's payload that an entry has the checksum of: which entry
// that is, which of its blocks, and where in the payload it stands. It tells whether all entries
// decode.
func (k *chunk) sums(fn func(no, i int, en *segment.Entry, at, n int, crc uint32)) bool {
	no := -1
	return k.each(func(en *segment.Entry, raw []byte) {
		no++
		at := int(en.Off) * segment.Unit
		switch en.Kind { //nolint:exhaustive // the others have no payload, or one that the root verifies
		case segment.KindData:
			for i := range en.Count {
				fn(no, i, en, at+i*segment.BlockSize, en.Stored(), en.Further(raw, i))
			}
		case segment.KindBranch:
			fn(no, 0, en, at, en.Count*segment.BranchBytes, en.CRC)
		}
	})
}

// redo applies one entry.
func (c *checker) redo(lane uint8, k *chunk, en *segment.Entry, raw []byte, mark uint64) {
	if en.LSN <= mark {
		return
	}
	at := k.payload() + int64(en.Off)*segment.Unit
	if en.Kind == segment.KindBranch {
		b, err := c.read(at, int64(en.Count)*segment.BranchBytes)
		if err == nil && segment.Checksum(b) == en.CRC {
			lines, bad := segment.DecodeBranches(b, en.Count)
			for _, l := range lines {
				c.index.line(l)
			}
			err = bad
		}
		if err != nil {
			c.problem(Problem{Part: "log", Off: at, Segment: c.segmentOf(at)}, "record of branch %d: %v",
				en.Branch, err)
		}
		return
	}
	en.Branch = c.index.canonical(en.Branch)
	n := c.index.nodes[en.Branch]
	if n == nil {
		return // nobody sees it any more
	}
	if n.Replica && !en.Kind.Blocks() {
		c.index.note(en)
		return
	}
	ext := uint32(en.Block / segment.LeafBlocks)
	if segment.LaneOf(n.Family, ext, int(c.Super.Lanes)) != int(lane) {
		return
	}
	if n.Replica {
		if en.Flags&segment.FlagFresh != 0 {
			c.index.hold(heldOf(en, raw, uint64(at)/segment.Unit))
		}
		c.index.learn(en, raw)
	}
	if lf := c.index.leaves[key{en.Branch, ext}]; lf != nil && en.LSN <= lf.Complete {
		return
	}
	switch en.Kind { //nolint:exhaustive // the others change no index
	case segment.KindData:
		for i := range en.Count {
			if en.Kept(raw, i) {
				continue
			}
			loc := en.Loc(raw, uint64(k.payload())/segment.Unit, i)
			c.index.set(en.Branch, en.Block+uint64(i), loc)
		}
	case segment.KindZero, segment.KindUnmap:
		loc := segment.ZeroLoc
		if en.Kind == segment.KindUnmap {
			loc = segment.HoleLoc
		}
		if en.Flags&segment.FlagParent != 0 {
			loc = 0
		}
		for i := range en.Range {
			if en.Kept(raw, int(i)) {
				continue
			}
			c.index.set(en.Branch, en.Block+i, loc)
		}
	}
}
