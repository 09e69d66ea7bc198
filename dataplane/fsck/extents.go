package fsck

import (
	"fmt"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// ExtentQuery asks what a branch sees.
type ExtentQuery struct {
	Branch uint32      // by number, where it is not 0
	Volume domain.UUID // else the head of this volume, or this snapshot
	From   uint64      // first block
	Blocks uint64      // 0: to the volume's end
	Limit  int         // runs in one answer, at least 1
}

// The kinds of an extent.
const (
	ExtentData = "data"
	ExtentZero = "zero" // written as zeros
	ExtentHole = "hole" // never written, or unmapped
	ExtentLost = "lost" // its place in the index is damaged
	ExtentNV   = "nvram"
)

// Extent is a run of blocks that a branch sees, which stand side by side where they are data.
type Extent struct {
	Block, Blocks uint64
	Kind          string
	Branch        uint32 // that wrote it; 0 of a hole
	Segment       int64  // -1 where it stands nowhere
	Off           int64  // in the segment
	Bytes         int64  // that it takes there
	Packed        bool   // its blocks are compressed, each on its own
	CRC           uint32 // of the first: its low 31 bits, 25 of a compressed one
}

// Extents is an answer to an ExtentQuery.
type Extents struct {
	Branch   Branch // Own and Sees are not counted
	List     []Extent
	Next     uint64 // the first block that was not told; 0: all were
	Problems []Problem
}

// ReadExtents tells what a branch sees of a device of a size in bytes, by the checkpoint and the
// log behind it. Errors: as of Check; NotFound for a branch that is not there, Corrupt where the
// checkpoint's root cannot be read.
func ReadExtents(dev Reader, size int64, o Options, q ExtentQuery) (*Extents, error) {
	c := &checker{dev: dev, size: size, o: o}
	if err := c.load(); err != nil {
		return nil, err
	}
	if c.Root == nil && c.Anchor.Root.Bytes != 0 {
		return nil, domain.Errorf(domain.Corrupt, "the checkpoint cannot be read: %s",
			c.Problems[len(c.Problems)-1].Detail)
	}
	c.replay()
	c.index.empty()
	n, err := c.index.find(q)
	if err != nil {
		return nil, err
	}
	r := runs{c: c, limit: q.Limit, out: &Extents{Branch: Branch{Branch: n.Branch, Named: n.named}}}
	end := n.Size / segment.BlockSize
	if q.Blocks != 0 {
		end = min(end, q.From+min(q.Blocks, end))
	}
	r.branch(n, q.From, end)
	r.out.Problems = c.Problems
	return r.out, nil
}

// find gives the branch that a query names.
func (x *index) find(q ExtentQuery) (*node, error) {
	if q.Branch != 0 {
		if n := x.nodes[x.canonical(q.Branch)]; n != nil {
			return n, nil
		}
	}
	for _, n := range x.nodes {
		of := n.Volume.UUID
		if n.State == segment.BranchFrozen {
			of = n.Snapshot.UUID
		}
		if q.Branch == 0 && n.named && of == q.Volume && !of.IsZero() {
			return n, nil
		}
	}
	what := fmt.Sprintf("volume or snapshot %s", q.Volume)
	if q.Branch != 0 {
		what = fmt.Sprintf("branch %d", q.Branch)
	}
	return nil, &domain.Error{
		Op: "inspect", Kind: domain.NotFound, Msg: "the device has no " + what,
		Remedy: "weft inspect index DEVICE lists what it has",
	}
}

// runs gathers neighbours.
type runs struct {
	c     *checker
	limit int
	out   *Extents
	end   int64 // where the last run ends on the device
}

// branch tells the blocks of a branch from one to before another.
func (r *runs) branch(n *node, from, end uint64) {
	x := &r.c.index
	var chain []uint32 // from the root on
	for id := n.ID; x.nodes[id] != nil; id = x.nodes[id].Parent {
		chain = append(chain, id)
	}
	slices.Reverse(chain)
	var extents []uint32
	for k := range x.leaves {
		if slices.Contains(chain, k.branch) {
			extents = append(extents, k.extent)
		}
	}
	for k := range r.c.lostLeaves {
		if slices.Contains(chain, k.branch) {
			extents = append(extents, k.extent)
		}
	}
	slices.Sort(extents)
	at := from
	for _, ext := range slices.Compact(extents) {
		first := uint64(ext) * segment.LeafBlocks
		if first+segment.LeafBlocks <= at || first >= end {
			continue
		}
		if first > at {
			if !r.add(at, first-at, seen{}) {
				return
			}
			at = first
		}
		view := r.c.view(chain, ext)
		for ; at < min(first+segment.LeafBlocks, end); at++ {
			if !r.add(at, 1, view[at-first]) {
				return
			}
		}
	}
	if at < end {
		r.add(at, end-at, seen{})
	}
}

// view lays the branches of a chain over each other in one extent. A leaf that does not verify
// leaves nothing known of what its branch did not write since.
func (c *checker) view(chain []uint32, ext uint32) (v [segment.LeafBlocks]seen) {
	for _, id := range chain {
		if c.lostLeaves[key{id, ext}] {
			for i := range v {
				v[i] = seen{segment.LostLoc, id, uint64(ext)*segment.LeafBlocks + uint64(i)}
			}
		}
		c.index.lay(id, ext, &v)
	}
	return v
}

// add tells n blocks; false when the answer is full.
func (r *runs) add(block, n uint64, s seen) bool {
	e := Extent{Block: block, Blocks: n, Kind: ExtentHole, Branch: s.branch, Segment: -1}
	switch s.loc.Kind() {
	case segment.None, segment.Hole:
	case segment.Zero:
		e.Kind = ExtentZero
	case segment.Lost:
		e.Kind = ExtentLost
		if r.c.Anchor.Journal != 0 && !r.c.lostLeaves[key{s.branch, uint32(block / segment.LeafBlocks)}] {
			e.Kind = ExtentNV
		}
	case segment.Flash:
		e.Kind, e.Segment, e.Off = ExtentData, r.c.segmentOf(s.loc.Off()), s.loc.Off()
		if e.Segment >= 0 {
			e.Off -= r.c.Segments[e.Segment].Off
		}
		e.Bytes, e.Packed, e.CRC = int64(s.loc.Stored()), s.loc.Packed(), s.loc.CRC()
	}
	if last := len(r.out.List) - 1; last >= 0 {
		l := &r.out.List[last]
		if l.Kind == e.Kind && l.Branch == e.Branch && l.Segment == e.Segment && l.Packed == e.Packed &&
			(e.Kind != ExtentData || r.end == s.loc.Off()) {
			l.Blocks, l.Bytes, r.end = l.Blocks+n, l.Bytes+e.Bytes, s.loc.Off()+e.Bytes
			return true
		}
	}
	if len(r.out.List) >= r.limit {
		r.out.Next = block
		return false
	}
	r.out.List, r.end = append(r.out.List, e), s.loc.Off()+e.Bytes
	return true
}
