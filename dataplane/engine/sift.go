package engine

import "weft/dataplane/segment"

// Limits of the sieve.
const (
	// sieveMost is the most blocks that the cleaner looks up under one hold of a lane's mutex.
	sieveMost = 32
	// sievePart is the part of a victim up to which its blocks live where that pays: each that does is
	// looked up once more when it is moved.
	sievePart = 4
)

// sieve is a stretch of a chunk's entries of which the cleaner knows what lives. Places in it are
// how much of the entries is left from there on, in bytes.
type sieve struct {
	full bool  // too much of the victim lives to look it up here
	end  int   // behind it nothing is known
	live []int // places of what lives, in order
	next int   // of those

	found [sieveMost]sifted
	count int
}

// sifted is a single plain block in the sieve.
type sifted struct {
	at    int
	block uint64
	loc   segment.Loc
	br    *branch
	lf    *leaf
}

// sift passes over entries of single plain blocks that do not live, of a full victim over those in
// parts where nothing does: it gives the entries from the first one on that may. Most of a log's
// entries are such, and few of a victim's live: they are looked up side by side, while the
// processor fetches the lines, under one hold of the mutex for which hosts wait.
func (c *cleaner) sift(base int64, h *segment.Chunk, entries []byte) []byte {
	s := &c.sieve
	for {
		if len(entries) <= s.end {
			c.fill(base, h, entries)
		}
		for s.next < len(s.live) && s.live[s.next] > len(entries) {
			s.next++
		}
		if s.next < len(s.live) {
			return entries[len(entries)-s.live[s.next]:]
		}
		if len(entries) == s.end {
			return entries // of another kind, or none
		}
		entries = entries[len(entries)-s.end:]
	}
}

// fill puts the next entries into the sieve, up to one of another kind. What was not moved since a
// lane wrote it is of that lane.
func (c *cleaner) fill(base int64, h *segment.Chunk, entries []byte) {
	s := &c.sieve
	s.live, s.next, s.count = s.live[:0], 0, 0
	var of *branch
	var l *lane
	id := uint32(0) // whose entry the last one was; no branch has this one
	for s.end = len(entries); s.end > 0 && s.count < sieveMost; {
		var one segment.Single
		n := segment.DecodeSingle(entries[len(entries)-s.end:], h.LSN, &one)
		if n == 0 {
			break
		}
		off := int64(one.Off) * segment.Unit
		if !c.e.space.settled(base+off, segment.BlockSize) {
			s.end -= n
			continue
		}
		if s.full {
			break
		}
		if one.Branch != id {
			id, of = one.Branch, c.e.branch(one.Branch)
		}
		if of != nil {
			on := c.e.laneOf(of.fam, uint32(one.Block/segment.LeafBlocks))
			if of.fam.replica != nil || on.no != h.Lane {
				break // replicas hold what the index does not name
			}
			l = on
			s.found[s.count] = sifted{
				at: s.end, block: one.Block,
				loc: segment.MakeLoc(uint64(base+off)/segment.Unit, one.CRC),
				br:  of,
			}
			s.count++
		}
		s.end -= n
	}
	if s.count > 0 {
		c.lookUp(l)
		c.did(s.count - len(s.live)) // the others are still to come
	}
}

// lookUp lists what of the sieve lives.
func (c *cleaner) lookUp(l *lane) {
	s := &c.sieve
	l.lock()
	for i := range s.found[:s.count] {
		f := &s.found[i]
		f.lf = f.br.fam.leaves[l.no][uint32(f.block/segment.LeafBlocks)].of(f.br)
		if f.lf != nil {
			f.lf.own.soon(int(f.block % segment.LeafBlocks))
		}
	}
	for i := range s.found[:s.count] {
		f := &s.found[i]
		if f.lf != nil && f.lf.own.get(int(f.block%segment.LeafBlocks)) == f.loc {
			s.live = append(s.live, f.at)
		}
	}
	l.mu.Unlock()
}
