package fsck

import (
	"cmp"
	"slices"

	"weft/dataplane/segment"
)

// burst is the most data that is read in one go.
const burst = 1 << 20

// count counts what lives and compares it with the entries that stand beside it.
func (c *checker) count() {
	list, lost, sees := c.index.wanted()
	for _, s := range lost {
		if c.Anchor.Journal != 0 { // its newest copy is in NVRAM, which is not read here
			c.Journaled += segment.BlockSize
			continue
		}
		c.problem(c.at(s, "index"), "the index lost its place")
	}
	own := map[uint32]int64{}
	for i, s := range list {
		own[s.branch] += s.loc.Room()
		c.Live += s.loc.Room()
		c.Saved += segment.BlockSize - s.loc.Room()
		id := c.segmentOf(s.loc.Off())
		end := s.loc.Off() + int64(s.loc.Stored())
		switch {
		case id < 0 || c.segmentOf(end-1) != id || c.Segments[id].Reserved:
			c.problem(c.at(s, "index"), "it stands outside all segments")
		case i > 0 && list[i-1].loc.Off()+int64(list[i-1].loc.Stored()) > s.loc.Off():
			o := list[i-1]
			c.problem(c.at(s, "index"), "block %d of branch %d claims the same place", o.block, o.branch)
		}
		c.place(s.loc.Off(), int64(s.loc.Stored()), "block")
	}
	c.garbage(list)
	c.held(list)
	for id, n := range c.index.nodes {
		c.Branches = append(c.Branches, Branch{n.Branch, n.named, own[id], sees[id]})
	}
	slices.SortFunc(c.Branches, func(a, b Branch) int { return cmp.Compare(a.ID, b.ID) })
	for len(list) > 0 {
		id, n := c.segmentOf(list[0].loc.Off()), 1
		for n < len(list) && c.segmentOf(list[n].loc.Off()) == id {
			n++
		}
		if id >= 0 {
			c.segment(&c.Segments[id], list[:n])
		}
		list = list[n:]
	}
}

// at names a block in a problem.
func (c *checker) at(s seen, part string) Problem {
	p := Problem{Part: part, Block: s.block, Segment: -1}
	if s.loc.Kind() == segment.Flash {
		p.Off, p.Segment = s.loc.Off(), c.segmentOf(s.loc.Off())
	}
	// A branch without a name is seen by those that stand on it: any of them names the volume.
	for id := s.branch; ; {
		n := c.index.nodes[id]
		if n == nil {
			return p
		}
		if n.named || len(n.kids) == 0 {
			p.Volume, p.Snapshot = n.Volume, n.Snapshot
			return p
		}
		id = n.kids[0]
	}
}

// garbage counts what the index holds and no name sees. A clean stop leaves none.
func (c *checker) garbage(list []seen) {
	wanted := make(map[segment.Loc]bool, len(list))
	for _, s := range list {
		wanted[s.loc] = true
	}
	for k, lf := range c.index.leaves {
		for i, loc := range lf.Loc {
			if loc.Kind() != segment.Flash || wanted[loc] {
				continue
			}
			c.Garbage += loc.Room()
			if c.Anchor.Clean {
				s := seen{loc, k.branch, uint64(k.extent)*segment.LeafBlocks + uint64(i)}
				c.problem(c.at(s, "index"), "no name sees this copy of branch %d", k.branch)
			}
		}
	}
}

// segment looks for the entry of every live block of a segment, and reads the blocks.
func (c *checker) segment(s *Segment, live []seen) {
	s.Live = 0
	for _, b := range live {
		s.Live += b.loc.Room()
	}
	at := Problem{Part: "header", Off: s.Off, Segment: int64(s.ID)}
	c.place(s.Off, segment.Sector, "header")
	if s.Sequence == 0 {
		c.problem(at, "%d live blocks stand in a segment whose header does not verify", len(live))
		c.guess(s)
	}
	told := c.told(s, at)
	found, footer := c.chunks(s)
	here := make(map[segment.Loc]bool, len(live))
	for _, b := range live {
		here[b.loc] = true
	}
	entries := map[segment.Loc]seen{}
	versions := map[segment.Loc]string{}
	for _, k := range merged(found, footer) {
		lives := false
		if told && k.Sealed && k.Salt != c.lives[s.ID].Salt {
			c.problem(Problem{Part: "chunk", Off: k.off, Segment: int64(s.ID)},
				"its salt is not that of its life")
		}
		k.each(func(en *segment.Entry, raw []byte) {
			if en.Kind != segment.KindData {
				return
			}
			for i := range en.Count {
				loc := en.Loc(raw, uint64(k.payload())/segment.Unit, i)
				entries[loc] = seen{loc, c.index.canonical(en.Branch), en.Block + uint64(i)}
				versions[loc] = en.Version.String()
				lives = lives || here[loc]
			}
		})
		if lives || s.Footer {
			c.place(k.off, segment.ChunkHeader+int64(k.EntryBytes), "chunk")
		}
	}
	for _, f := range footer {
		if !holds(found, &f) {
			c.problem(Problem{Part: "chunk", Off: f.off, Segment: int64(s.ID)},
				"its header does not verify; the footer has it")
		}
	}
	for _, b := range live {
		p := c.at(b, "entry")
		switch e, ok := entries[b.loc]; {
		case !ok:
			c.problem(p, "no entry of the segment names it")
		case e.branch != b.branch || e.block != b.block:
			c.problem(p, "its entry is that of block %d of branch %d", e.block, e.branch)
		}
		ver, ok := c.index.known[place{b.branch, b.block}]
		if is := versions[b.loc]; ok && is != "" && is != ver.String() {
			c.problem(p, "it is known as of version %s, its entry says %s", ver, is)
		}
	}
	if c.o.Data {
		c.data(live, versions)
	}
}

// told holds a segment of a pair's disk to the life that the checkpoint tells of it, and tells
// whether that has any.
func (c *checker) told(s *Segment, at Problem) bool {
	if c.Super.Incompat&segment.IncompatLives == 0 || !c.Super.OnDisk(int(s.ID)) {
		return false
	}
	l, ok := c.lives[s.ID]
	switch {
	case !ok:
		c.problem(at, "live blocks stand in a segment of which the checkpoint tells no life")
	case s.Sequence != l.Sequence:
		c.problem(at, "it is that of life %d, the checkpoint tells life %d", s.Sequence, l.Sequence)
		s.Sequence, s.Stream = l.Sequence, streams[segment.StreamCold]
	}
	return ok
}

// guess takes the life of a segment without a header from its first chunk.
func (c *checker) guess(s *Segment) {
	for _, at := range []int64{segment.Sector, 0} {
		b, err := c.read(s.Off+at, segment.HeaderMax)
		if err != nil {
			continue
		}
		if h, _, err := segment.DecodeChunk(b, c.Super.Salt); err == nil {
			s.Sequence, s.Lane, s.Stream = h.Sequence, h.Lane, streams[h.Stream]
			return
		}
	}
}

// data reads live blocks, which stand in order, neighbours together.
func (c *checker) data(live []seen, versions map[segment.Loc]string) {
	for len(live) > 0 {
		n := 1
		start, end := live[0].loc.Span()
		first := end
		for n < len(live) {
			from, to := live[n].loc.Span()
			if from > end || to-start > burst {
				break
			}
			end = to
			n++
		}
		b, err := c.read(start, end-start)
		if err != nil && n > 1 { // one bad sector costs its own block only
			n = 1
			b, err = c.read(start, first-start)
		}
		room := int64(0)
		for _, s := range live[:n] {
			room += s.loc.Room()
			p := c.at(s, "block")
			p.Version = versions[s.loc]
			switch {
			case err != nil:
				c.problem(p, "%v", err)
			case !s.loc.Matches(b[s.loc.Off()-start:]):
				c.problem(p, "its bytes do not match its checksum")
			}
		}
		c.Read += room
		if c.o.Progress != nil {
			c.o.Progress(c.Read, c.Live)
		}
		live = live[n:]
	}
}
