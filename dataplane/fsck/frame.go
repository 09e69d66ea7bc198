package fsck

import (
	"cmp"
	"fmt"
	"slices"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// Reader is a device that is only read. Offsets, lengths and memory are aligned to 4096 bytes.
type Reader interface {
	ReadAt(p []byte, off int64) error
}

// Problem is one thing that is wrong, in a part such as "superblock", "anchor", "root", "index",
// "log", "header", "chunk", "entry" or "block". A damaged block names its volume, block and
// version.
type Problem struct {
	Part     string            `json:"part"`
	Off      int64             `json:"offset,omitempty"`
	Segment  int64             `json:"segment"` // -1: in none
	Volume   domain.VolumeID   `json:"volume,omitzero"`
	Snapshot domain.SnapshotID `json:"snapshot,omitzero"`
	Block    uint64            `json:"block,omitempty"`
	Version  string            `json:"version,omitempty"`
	Detail   string            `json:"detail"`
}

// Place is a stretch of the device that something depends on, and what it is.
type Place struct {
	Off  int64
	Len  int64
	Part string
}

// Segment is what stands in one segment.
type Segment struct {
	ID       uint32 `json:"id"`
	Off      int64  `json:"offset"`
	Reserved bool   `json:"reserved,omitempty"` // lies over a superblock: never used
	Sequence uint64 `json:"sequence"`           // of its life; 0: it has no header
	Stream   string `json:"stream,omitempty"`   // "log", "moved", "moved again", "metadata", "cold"
	Lane     uint8  `json:"lane"`
	Footer   bool   `json:"footer"`
	Chunks   int    `json:"chunks"`
	Live     int64  `json:"live"`     // bytes of blocks that some name sees
	Metadata int64  `json:"metadata"` // bytes that the checkpoint needs
}

// Branch is one line of writes.
type Branch struct {
	segment.Branch
	Named bool
	Own   int64 // bytes that it wrote and that some name sees
	Sees  int64 // bytes of data that it sees
}

// Report is what a check came to.
type Report struct {
	Super    *segment.Superblock
	Anchor   *segment.Anchor
	Root     *segment.Root // of the checkpoint; nil: an empty device
	Segments []Segment
	Branches []Branch // after the replay, by id
	Replayed int      // chunks of the log behind the checkpoint
	Live     int64    // room of blocks that some name sees
	Saved    int64    // by which that is less than their size: some are compressed
	Garbage  int64    // bytes in the index that none sees: what a crash left for the next start
	Read     int64    // bytes of blocks whose checksum was compared
	// Journaled is bytes of blocks whose newest copy is in the NVRAM that the device needs, as far as
	// the checkpoint knows. They are not checked.
	Journaled int64
	// Held is how many records of replicas are not settled, HeldBytes what lives for their sake alone:
	// it counts to Live.
	Held      int
	HeldBytes int64
	Problems  []Problem
	// Places is what the device depends on, by offset.
	Places []Place
}

// Sound tells whether nothing is wrong.
func (r *Report) Sound() bool { return len(r.Problems) == 0 }

// checker is one run.
type checker struct {
	Report
	dev  Reader
	size int64
	o    Options

	marks []segment.LaneMark
	index index
	lives map[uint32]segment.Life // of the disk of a pair

	lostLeaves map[key]bool // of the checkpoint, that do not verify
}

func (c *checker) problem(p Problem, format string, args ...any) {
	p.Detail = fmt.Sprintf(format, args...)
	c.Problems = append(c.Problems, p)
}

func (c *checker) place(off, n int64, part string) {
	c.Places = append(c.Places, Place{off, n, part})
}

// read gives n bytes from any offset; the error is that of the device.
func (c *checker) read(off, n int64) ([]byte, error) {
	start := off / segment.Sector * segment.Sector
	skip := off - start
	if off < 0 || n < 0 || off+n > c.size {
		return nil, fmt.Errorf("bytes %d to %d are outside the device", off, off+n)
	}
	b := backends.AlignedBuffer(segment.RoundUp(int(skip+n), segment.Sector))
	if err := c.dev.ReadAt(b[:min(int64(len(b)), c.size-start)], start); err != nil {
		return nil, err
	}
	return b[skip : skip+n], nil
}

// piece reads what the checkpoint names, and verifies it.
func (c *checker) piece(p segment.Piece, part string) ([]byte, error) {
	b, err := c.read(int64(p.Off), int64(p.Bytes))
	if err == nil && segment.Checksum(b) != p.CRC {
		err = fmt.Errorf("it does not match its checksum")
	}
	if err != nil {
		c.problem(Problem{Part: part, Off: int64(p.Off), Segment: c.segmentOf(int64(p.Off))}, "%v", err)
		return nil, err
	}
	c.place(int64(p.Off), int64(p.Bytes), part)
	if s := c.segmentOf(int64(p.Off)); s >= 0 {
		c.Segments[s].Metadata += int64(p.Bytes)
	}
	return b, nil
}

// segmentOf gives the segment that holds an offset, -1 for none.
func (c *checker) segmentOf(off int64) int64 {
	first := int64(c.Super.FirstOff)
	id := (off - first) / int64(c.Super.SegmentSize)
	if off < first || id >= int64(c.Super.Segments) {
		return -1
	}
	return id
}

// supers reads the copies of the superblock; the newest valid one holds.
func (c *checker) supers() error {
	var list [3]*segment.Superblock
	front := c.size
	if c.o.Boundary > 0 {
		front = c.o.Boundary
	}
	for i, off := range segment.SuperOffsets(front) {
		b, err := c.read(off, segment.Sector)
		if err != nil {
			continue
		}
		if list[i], _ = segment.DecodeSuperblock(b); list[i] != nil {
			if c.Super == nil || list[i].Generation > c.Super.Generation {
				c.Super = list[i]
			}
		}
	}
	if c.Super == nil {
		return &domain.Error{
			Op: "fsck", Kind: domain.NotFound, Msg: "no superblock: this is no device of Weft's",
			Remedy: "name the device itself, not a partition or a copy that is cut short",
		}
	}
	if int64(c.Super.Boundary) != c.o.Boundary {
		return &domain.Error{
			Op: "fsck", Kind: domain.Invalid, Msg: fmt.Sprintf(
				"the store was made for a flash that ends at %d, not at %d", c.Super.Boundary, c.o.Boundary,
			),
			Remedy: "name a pair as hybrid:flash=PATH,hdd=PATH, and a device alone by its path",
		}
	}
	for i, off := range segment.SuperOffsets(front) {
		c.place(off, segment.Sector, "superblock")
		if list[i] == nil || list[i].Generation != c.Super.Generation {
			c.problem(Problem{Part: "superblock", Off: off, Segment: -1}, "copy %d does not verify", i)
		}
	}
	return nil
}

// anchor finds the newest anchor and looks for its other copy.
func (c *checker) anchor() error {
	ring, err := c.read(segment.AnchorOff, segment.AnchorSlots*segment.Sector)
	if err != nil {
		return &domain.Error{Op: "fsck", Kind: domain.Unavailable, Err: err}
	}
	slot := func(off int64) *segment.Anchor {
		b := ring[off-segment.AnchorOff:]
		a, _ := segment.DecodeAnchor(b[:segment.Sector])
		return a
	}
	for i := range int64(segment.AnchorSlots) {
		a := slot(segment.AnchorOff + i*segment.Sector)
		if a != nil && (c.Anchor == nil || a.Seq > c.Anchor.Seq) {
			c.Anchor = a
		}
	}
	if c.Anchor == nil || len(c.Anchor.Lanes) != int(c.Super.Lanes) {
		return &domain.Error{
			Op: "fsck", Kind: domain.Corrupt, Msg: "no valid anchor: the device cannot be opened",
			Remedy: "restore its volumes from copies; weft inspect index shows what is left",
		}
	}
	at := segment.AnchorPlace(c.Anchor.Seq)
	for i := range int64(segment.AnchorCopies) {
		off := at + i*segment.Sector
		c.place(off, segment.Sector, "anchor")
		if a := slot(off); a == nil || a.Seq != c.Anchor.Seq {
			c.problem(Problem{Part: "anchor", Off: off, Segment: -1}, "copy %d of anchor %d does not verify",
				i, c.Anchor.Seq)
		}
	}
	c.marks = c.Anchor.Lanes
	return nil
}

// root reads the checkpoint's root.
func (c *checker) root() {
	if c.Anchor.Root.Bytes == 0 {
		return
	}
	list, err := c.piece(c.Anchor.Root, "root")
	if err != nil {
		return
	}
	pieces, err := segment.DecodePieces(list)
	var whole []byte
	for _, p := range pieces {
		b, bad := c.piece(p, "root")
		if bad != nil {
			return
		}
		whole = append(whole, b...)
	}
	if err == nil {
		c.Root, err = segment.DecodeRoot(whole)
	}
	if err != nil {
		off := int64(c.Anchor.Root.Off)
		c.problem(Problem{Part: "root", Off: off, Segment: c.segmentOf(off)}, "%v", err)
	}
}

// tellLives takes up what the root tells of a pair's disk.
func (c *checker) tellLives() {
	c.lives = map[uint32]segment.Life{}
	if c.Root == nil {
		return
	}
	for _, l := range c.Root.Lives {
		c.lives[l.Segment] = l
		if int64(l.Segment) >= int64(c.Super.Segments) || !c.Super.OnDisk(int(l.Segment)) {
			off := int64(c.Anchor.Root.Off)
			c.problem(Problem{Part: "root", Off: off, Segment: c.segmentOf(off)},
				"it tells a life of segment %d, which is none of the disk's", l.Segment)
		}
	}
}

// leaves reads every leaf of the checkpoint.
func (c *checker) leaves() {
	if c.Root == nil {
		return
	}
	c.lostLeaves = map[key]bool{}
	for _, ref := range c.Root.Leaves {
		c.lostLeaves[key{ref.Branch, ref.Extent}] = true // until it is there
		p := Problem{Part: "index", Off: int64(ref.Piece.Off), Segment: c.segmentOf(int64(ref.Piece.Off))}
		p.Block = uint64(ref.Extent) * segment.LeafBlocks
		if n := c.index.nodes[ref.Branch]; n != nil {
			p.Volume, p.Snapshot = n.Volume, n.Snapshot
		}
		lf := &leaf{}
		b, err := c.piece(ref.Piece, "index")
		if err != nil {
			continue
		}
		if _, err = segment.DecodeLeaf(b, &lf.Leaf); err != nil {
			c.problem(p, "leaf of branch %d extent %d: %v", ref.Branch, ref.Extent, err)
			continue
		}
		// Of a branch that nobody names any more and that was not swept yet the root may list leaves, and
		// no longer what it had absorbed: an engine lets them go.
		known := c.index.nodes[ref.Branch] != nil
		if lf.Extent != ref.Extent || known && c.index.canonical(lf.Branch) != ref.Branch {
			c.problem(p, "leaf of branch %d extent %d stands where that of branch %d extent %d is named",
				lf.Branch, lf.Extent, ref.Branch, ref.Extent)
			continue
		}
		c.index.leaves[key{ref.Branch, ref.Extent}] = lf
		delete(c.lostLeaves, key{ref.Branch, ref.Extent})
	}
}

// headers reads the first sector of every segment.
func (c *checker) headers() {
	first, size := int64(c.Super.FirstOff), int64(c.Super.SegmentSize)
	for i := range int64(c.Super.Segments) {
		s := Segment{ID: uint32(i), Off: first + i*size, Reserved: c.Super.Reserved(int(i))}
		c.Segments = append(c.Segments, s)
		if s.Reserved {
			continue
		}
		b, err := c.read(s.Off, segment.Sector)
		if err != nil {
			c.problem(Problem{Part: "header", Off: s.Off, Segment: i}, "%v", err)
			continue
		}
		h, err := segment.DecodeHeader(b)
		if err == nil && h.Segment == s.ID && h.Device == c.Super.Device {
			s.Sequence, s.Lane, s.Stream = h.Sequence, h.Lane, streams[h.Stream]
			c.Segments[i] = s
			if cold := h.Stream == segment.StreamCold; cold != c.Super.OnDisk(int(i)) {
				c.problem(Problem{Part: "header", Off: s.Off, Segment: i},
					"it is of stream %q, on the wrong side of the boundary", s.Stream)
			}
		}
	}
}

// streams names the streams.
var streams = [...]string{
	segment.StreamLog: "log", segment.StreamGen1: "moved", segment.StreamGen2: "moved again",
	segment.StreamMeta: "metadata", segment.StreamCold: "cold",
}

// Options choose what is checked.
type Options struct {
	// Data reads every block that some name sees and compares its checksum.
	Data bool
	// Boundary is that of a pair (backends.Geometry); 0 for a device that is one.
	Boundary int64
	// Progress hears how many of the live bytes were read; nil hears nothing.
	Progress func(done, total int64)
}

// Check checks a device of a size in bytes. What is wrong is in the report; an error says that
// nothing could be checked: NotFound without a superblock, Corrupt without an anchor, Unavailable
// where the device does not answer.
func Check(dev Reader, size int64, o Options) (*Report, error) {
	c := &checker{dev: dev, size: size, o: o}
	if err := c.load(); err != nil {
		return nil, err
	}
	if c.Root != nil || c.Anchor.Root.Bytes == 0 {
		c.replay()
		c.index.empty()
		c.count()
	}
	slices.SortFunc(c.Places, func(a, b Place) int { return cmp.Compare(a.Off, b.Off) })
	return &c.Report, nil
}

// load reads the checkpoint and the headers of the segments.
func (c *checker) load() error {
	if err := c.supers(); err != nil {
		return err
	}
	if int64(c.Super.Size) > c.size {
		return domain.Errorf(domain.Corrupt, "the device shrank from %s to %s",
			domain.Bytes(c.Super.Size), domain.Bytes(c.size))
	}
	if err := c.anchor(); err != nil {
		return err
	}
	c.headers()
	c.root()
	c.tellLives()
	c.index.load(c.Root)
	c.leaves()
	return nil
}
