package engine

import (
	"cmp"
	"fmt"
	"slices"

	"weft/backends"
	"weft/dataplane/segment"
)

// logChunk is a chunk of a lane's log as recovery found it.
type logChunk struct {
	h       segment.Chunk
	entries []byte
	chain   uint32
	payload int64 // where it starts on the device
}

// logTail is a lane's log behind the checkpoint, in LSN order.
type logTail struct {
	chunks  []logChunk
	proven  uint64 // every chunk up to this LSN was durable
	highest uint64 // LSN seen, cut ones included
}

// replay folds the lane's log behind the mark into the index.
//
// Every chunk names its predecessor. At the first link that does not hold, the question is whether
// anything proves that the missing chunk was durable: a later chunk's flush mark or a footer. If so
// this is corruption: it is reported and the rest counts. If not, it is a torn tail: nothing from
// here on was acknowledged, and it is cut for ever, since the anchor that closes the recovery sets
// the lane's mark before any new write.
func (l *lane) replay(mk segment.LaneMark, heads []segment.Header) error {
	l.mu.lsn, l.mu.applied, l.mu.chain = mk.LSN, mk.LSN, mk.PrevCRC
	t, err := l.tail(mk, heads)
	if err != nil {
		return err
	}
	prev, prevCRC := mk.LSN, mk.PrevCRC
	var q redoQueue
	for i := range t.chunks {
		c := &t.chunks[i]
		if c.h.LSN <= prev {
			continue // a second copy of a chunk whose first write failed
		}
		linked := c.h.PrevLSN == prev && c.h.PrevCRC == prevCRC
		if !linked && c.h.PrevLSN > t.proven {
			break
		}
		whole, err := l.whole(c, t, i)
		if err != nil {
			return err
		}
		if !whole {
			if t.another(i) {
				continue
			}
			if c.h.LSN > t.proven {
				break
			}
		}
		if !linked {
			l.e.report(Fact{What: "corrupt", Detail: fmt.Sprintf(
				"lane %d: log chunks between LSN %d and %d do not verify", l.no, prev, c.h.LSN,
			)})
		}
		if err := l.redo(c, mk.LSN, &q); err != nil {
			return err
		}
		prev, prevCRC = c.h.LSN, c.chain
		l.mu.applied, l.mu.chain = prev, prevCRC
	}
	q.enter(l)
	// The lane goes on above all it has seen, cut chunks included, and nothing is on its way there.
	l.mu.lsn = max(t.highest, l.mu.applied)
	l.mu.applied = l.mu.lsn
	l.lastLSN, l.lastCRC = l.mu.applied, l.mu.chain
	return nil
}

// another tells whether the next chunk is a second copy of chunk i.
func (t *logTail) another(i int) bool {
	return i+1 < len(t.chunks) && t.chunks[i+1].h.LSN == t.chunks[i].h.LSN
}

// tail gathers the lane's valid chunks behind the mark.
func (l *lane) tail(mk segment.LaneMark, heads []segment.Header) (*logTail, error) {
	t := &logTail{}
	for _, h := range heads {
		if h.Stream != segment.StreamLog || h.Lane != l.no || h.Sequence < mk.Sequence {
			continue
		}
		last := uint64(0)
		sealed, err := l.e.readChunks(h.Segment, h.Sequence,
			func(off int64, c *segment.Chunk, entries []byte) error {
				last = max(last, c.LSN)
				t.proven = max(t.proven, c.FlushMark)
				t.highest = max(t.highest, c.LSN)
				if c.LSN > mk.LSN {
					t.chunks = append(t.chunks, logChunk{
						*c, entries, c.Chain(entries), off + int64(c.HeaderBytes()),
					})
				}
				return nil
			})
		if err != nil {
			return nil, err
		}
		if sealed {
			t.proven = max(t.proven, last)
		}
	}
	slices.SortStableFunc(t.chunks, func(a, b logChunk) int { return cmp.Compare(a.h.LSN, b.h.LSN) })
	return t, nil
}

// whole tells whether a chunk's payload is all there. What is proven durable need not be read, but
// for one of two copies.
func (l *lane) whole(c *logChunk, t *logTail, i int) (bool, error) {
	copies := t.another(i) || i > 0 && t.chunks[i-1].h.LSN == c.h.LSN
	if c.h.LSN <= t.proven && !copies || c.h.PayloadBytes == 0 {
		return true, nil
	}
	b := backends.AlignedBuffer(int(c.h.PayloadBytes))
	if err := l.e.dev.ReadAt(b, c.payload); err != nil {
		return false, l.e.device(err, "engine.replay")
	}
	ok := true
	err := eachEntry(c, func(en *segment.Entry, raw []byte) error {
		at := int(en.Off) * segment.Unit
		switch en.Kind { //nolint:exhaustive // the other kinds carry no payload
		case segment.KindData:
			for i := range en.Count {
				end := at + en.Stored()
				ok = ok && end <= len(b) && segment.Checksum(b[at:end]) == en.Further(raw, i)
				at = end
			}
		case segment.KindBranch:
			end := at + en.Count*segment.BranchBytes
			ok = ok && end <= len(b) && segment.Checksum(b[at:end]) == en.CRC
		}
		return nil
	})
	return ok && err == nil, nil
}

// eachEntry calls fn with every entry of a chunk, which is valid during the call, and its bytes.
func eachEntry(c *logChunk, fn func(en *segment.Entry, raw []byte) error) error {
	b := c.entries
	var en segment.Entry // one for all: it escapes
	for range c.h.Entries {
		n, err := segment.DecodeEntry(b, c.h.LSN, &en)
		if err != nil {
			return err
		}
		if err := fn(&en, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// redo applies a chunk's outcomes to the leaves that do not have them yet, or holds them back in q.
func (l *lane) redo(c *logChunk, mark uint64, q *redoQueue) error {
	base := uint64(c.payload) / segment.Unit
	return eachEntry(c, func(en *segment.Entry, raw []byte) error {
		if en.LSN <= mark {
			return nil
		}
		if en.Kind == segment.KindBranch {
			q.enter(l)
			return l.redoBranch(c, en)
		}
		b, no := q.branch(l, en.Branch) // what was destaged may name one that was absorbed meanwhile
		if b != nil && b.fam.replica != nil {
			q.enter(l)
			l.redoHeld(c, en, raw, b)
			return nil
		}
		if en.Version.Seq > l.e.versionSeq.Load() {
			l.e.versionSeq.Store(en.Version.Seq)
		}
		if b == nil {
			return nil // swept before the checkpoint
		}
		ext := uint32(en.Block / segment.LeafBlocks)
		if l.e.laneOf(b.fam, ext) != l {
			return nil // nothing of ours: a lane's log names its own extents only
		}
		if en.Kind == segment.KindData && en.Count == 1 && !en.Packed() {
			q.add(l, redo{
				loc: segment.MakeLoc(base+uint64(en.Off), en.CRC), lsn: en.LSN, ext: ext,
				i: uint16(en.Block % segment.LeafBlocks), br: no,
			})
			return nil
		}
		q.enter(l)
		if lf := b.fam.leaves[l.no][ext].of(b); lf != nil && en.LSN <= lf.complete {
			return nil
		}
		p := pending{br: b, kind: en.Kind, block: en.Block, count: en.Count, unit: en.Off}
		switch en.Kind { //nolint:exhaustive // the other kinds change no index
		case segment.KindData:
			var crcs [segment.RecordBlocks]uint32
			for i := range en.Count {
				crcs[i] = en.Further(raw, i)
			}
			if en.Packed() {
				p.units = int(en.Units)
			}
			l.setData(&p, base, crcs[:en.Count])
		case segment.KindZero:
			p.count = int(en.Range)
			l.setRange(&p, segment.ZeroLoc)
		case segment.KindUnmap:
			p.count = int(en.Range)
			l.setRange(&p, segment.HoleLoc)
		}
		return nil
	})
}

// redoBranch applies what became of branches: all lines of the record, or none.
func (l *lane) redoBranch(c *logChunk, en *segment.Entry) error {
	b := backends.AlignedBuffer(2 * segment.Sector)
	off := c.payload + int64(en.Off)*segment.Unit
	start := off / segment.Sector * segment.Sector
	n := en.Count * segment.BranchBytes
	skip := int(off - start)
	if err := l.e.dev.ReadAt(b[:segment.RoundUp(skip+n, segment.Sector)], start); err != nil {
		return l.e.device(err, "engine.replay")
	}
	b = b[skip : skip+n]
	lines, err := segment.DecodeBranches(b, en.Count)
	if err != nil || segment.Checksum(b) != en.CRC {
		l.e.report(Fact{What: "corrupt", Detail: fmt.Sprintf("record of branch %d", en.Branch)})
		return nil
	}
	l.e.setBranches(lines)
	return nil
}
