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

// logTail is what recovery holds of a lane's log, in LSN order, because it does not simply follow
// what is redone already.
type logTail struct {
	chunks  []logChunk
	proven  uint64 // every chunk up to this LSN was durable
	highest uint64 // LSN seen, cut ones included
}

// replay is how far a lane's log is redone.
type replay struct {
	l    *lane
	q    *redoQueue
	mark uint64 // the checkpoint's
	prev uint64 // redone up to here
	crc  uint32 // of the chunk that ends there
	logTail
}

// replay folds the lane's log behind the mark into the index.
//
// Every chunk names its predecessor. At the first link that does not hold, the question is whether
// anything proves that the missing chunk was durable: a later chunk's flush mark or a footer. If so
// this is corruption: it is reported and the rest counts. If not, it is a torn tail: nothing from
// here on was acknowledged, and it is cut for ever, since the anchor that closes the recovery sets
// the lane's mark before any new write.
//
// Sealed segments, whose chunks follow each other, are redone as they are read and take no memory;
// from the first other one on the log is held and judged as a whole.
func (l *lane) replay(mk segment.LaneMark, heads []segment.Header, q *redoQueue) error {
	l.mu.lsn, l.mu.applied, l.mu.chain = mk.LSN, mk.LSN, mk.PrevCRC
	r := &replay{l: l, q: q, mark: mk.LSN, prev: mk.LSN, crc: mk.PrevCRC}
	for _, h := range heads {
		if h.Stream != segment.StreamLog || h.Lane != l.no || h.Sequence < mk.Sequence {
			continue
		}
		if err := r.segment(h); err != nil {
			return err
		}
	}
	slices.SortStableFunc(r.chunks, func(a, b logChunk) int { return cmp.Compare(a.h.LSN, b.h.LSN) })
	if err := r.held(); err != nil {
		return err
	}
	q.enter(l)
	l.mu.applied, l.mu.chain = r.prev, r.crc
	// The lane goes on above all it has seen, cut chunks included, and nothing is on its way there.
	l.mu.lsn = max(r.highest, l.mu.applied)
	l.mu.applied = l.mu.lsn
	l.lastLSN, l.lastCRC = l.mu.applied, l.mu.chain
	return nil
}

// segment reads the valid chunks of a segment behind the mark, and redoes or holds them.
func (r *replay) segment(h segment.Header) error {
	list, last := r.q.chunks[:0], uint64(0)
	sealed, err := r.l.e.readChunks(h.Segment, h.Sequence, &r.q.room,
		func(off int64, c *segment.Chunk, entries []byte) error {
			last = max(last, c.LSN)
			r.proven = max(r.proven, c.FlushMark)
			r.highest = max(r.highest, c.LSN)
			if c.LSN > r.mark {
				list = append(list, logChunk{
					*c, entries, c.Chain(entries), off + int64(c.HeaderBytes()),
				})
			}
			return nil
		})
	if err != nil {
		return err
	}
	r.q.chunks = list
	if sealed {
		r.proven = max(r.proven, last)
	}
	if !sealed || !r.follows(list) {
		for _, c := range list {
			c.entries = slices.Clone(c.entries) // the room is used again
			r.chunks = append(r.chunks, c)
		}
		return nil
	}
	for i := range list {
		if err := r.redo(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// follows tells whether chunks of a sealed segment follow what is redone, one by one. Then nothing
// that is read later says otherwise: their writes had succeeded before the footer's, so a second
// copy of one, which only follows a write that failed, is none that would be needed.
func (r *replay) follows(list []logChunk) bool {
	if len(r.chunks) > 0 {
		return false
	}
	prev, crc := r.prev, r.crc
	for i := range list {
		c := &list[i]
		if c.h.LSN <= prev || c.h.PrevLSN != prev || c.h.PrevCRC != crc {
			return false
		}
		prev, crc = c.h.LSN, c.chain
	}
	return true
}

// held redoes what is held, up to the torn tail.
func (r *replay) held() error {
	for i := range r.chunks {
		c := &r.chunks[i]
		if c.h.LSN <= r.prev {
			continue // a second copy of a chunk whose first write failed
		}
		linked := c.h.PrevLSN == r.prev && c.h.PrevCRC == r.crc
		if !linked && c.h.PrevLSN > r.proven {
			break
		}
		whole, err := r.l.whole(c, &r.logTail, i)
		if err != nil {
			return err
		}
		if !whole {
			if r.another(i) {
				continue
			}
			if c.h.LSN > r.proven {
				break
			}
		}
		if !linked {
			r.l.e.report(Fact{What: "corrupt", Detail: fmt.Sprintf(
				"lane %d: log chunks between LSN %d and %d do not verify", r.l.no, r.prev, c.h.LSN,
			)})
		}
		if err := r.redo(c); err != nil {
			return err
		}
	}
	return nil
}

// another tells whether the next chunk is a second copy of chunk i.
func (t *logTail) another(i int) bool {
	return i+1 < len(t.chunks) && t.chunks[i+1].h.LSN == t.chunks[i].h.LSN
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
func (r *replay) redo(c *logChunk) error {
	q, b := r.q, c.entries
	base := uint64(c.payload) / segment.Unit
	var s segment.Single
	for range c.h.Entries {
		n := segment.DecodeSingle(b, c.h.LSN, &s)
		if n == 0 || !r.single(&s, base) {
			var err error
			if n, err = segment.DecodeEntry(b, c.h.LSN, &q.entry); err != nil {
				return err
			}
			if err := r.entry(c, &q.entry, b[:n]); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	r.l.e.raiseVersion(q.seq)
	r.prev, r.crc = c.h.LSN, c.chain
	return nil
}

// single holds a block back that waits for nothing else; false when it is one of a replica.
func (r *replay) single(s *segment.Single, base uint64) bool {
	l, q := r.l, r.q
	if s.LSN <= r.mark {
		return true
	}
	b, no := q.branch(l, s.Branch) // what was destaged may name one that was absorbed meanwhile
	if b != nil && b.fam.replica != nil {
		return false
	}
	q.seq = max(q.seq, s.Seq)
	if b == nil {
		return true // swept before the checkpoint
	}
	ext := uint32(s.Block / segment.LeafBlocks)
	if len(l.e.lanes) > 1 && l.e.laneOf(b.fam, ext) != l {
		return true // nothing of ours: a lane's log names its own extents only
	}
	if s.LSN <= l.loaded && l.has(b, ext, s.LSN) {
		return true
	}
	loc := segment.MakeLoc(base+uint64(s.Off), s.CRC)
	q.add(l, redo{loc, ext, uint16(s.Block % segment.LeafBlocks), no})
	return true
}

// raiseVersion lets no version be given out again that recovery has seen.
func (e *Engine) raiseVersion(seq uint64) {
	if seq > e.versionSeq.Load() {
		e.versionSeq.Store(seq)
	}
}

// has tells whether a leaf had an outcome when it was loaded.
func (l *lane) has(b *branch, ext uint32, lsn uint64) bool {
	lf := b.fam.leaves[l.no][ext].of(b)
	return lf != nil && lsn <= lf.complete
}

// entry applies what is no single block.
func (r *replay) entry(c *logChunk, en *segment.Entry, raw []byte) error {
	l, q := r.l, r.q
	if en.LSN <= r.mark {
		return nil
	}
	if en.Kind == segment.KindBranch {
		q.enter(l)
		return l.redoBranch(c, en)
	}
	b, _ := q.branch(l, en.Branch)
	if b != nil && b.fam.replica != nil {
		q.enter(l)
		l.redoHeld(c, en, raw, b)
		return nil
	}
	q.seq = max(q.seq, en.Version.Seq)
	if b == nil {
		return nil
	}
	ext := uint32(en.Block / segment.LeafBlocks)
	if l.e.laneOf(b.fam, ext) != l {
		return nil
	}
	q.enter(l)
	if l.has(b, ext, en.LSN) {
		return nil
	}
	base := uint64(c.payload) / segment.Unit
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
