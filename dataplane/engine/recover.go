package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"weft/backends"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/domain"
)

// background is for device calls whose end nobody may hasten.
var background = context.Background()

// FormatOptions is what Format writes into the superblock. Zero fields mean the defaults.
type FormatOptions struct {
	Cluster     domain.ClusterID
	Node        domain.NodeID
	Device      domain.DeviceID // zero is refused
	Lanes       int             // default 1 up to 2 cores' worth of load; at most 16
	SegmentSize int             // default: a 256th of the device between 4 and 32 MiB
	Force       bool            // overwrite a device that holds a Weft superblock
}

// Format makes a device ready: an anchor for an empty store, then the superblocks. It refuses a
// device that already has a superblock (Exists) unless forced, and one too small (Invalid).
func Format(ctx context.Context, dev backends.Device, o FormatOptions) error {
	g := dev.Geometry()
	old, err := readSuper(dev)
	if err != nil {
		return translate(err, "engine.Format", g.Path) // it may hold somebody's data
	}
	if old != nil && !o.Force {
		return domain.Errorf(domain.Exists, "%s holds device %s of cluster %s", g.Path,
			old.Device, old.Cluster)
	}
	sb, err := layout(g, o)
	if err != nil {
		return err
	}
	b := backends.AlignedBuffer(segment.AnchorSlots * segment.Sector)
	a := segment.Anchor{
		Seq: 1, Clean: true, NextSegSeq: 1, NextVersion: 1,
		Lanes: make([]segment.LaneMark, sb.Lanes),
	}
	if o.Force {
		if err := wipe(dev, sb); err != nil {
			return err
		}
	}
	for i := range int64(segment.AnchorCopies) {
		a.Encode(b[segment.AnchorPlace(a.Seq)-segment.AnchorOff+i*segment.Sector:])
	}
	if err := dev.WriteAt(b, segment.AnchorOff, false); err != nil {
		return translate(err, "engine.Format", g.Path)
	}
	if err := clearKeys(dev); err != nil {
		return translate(err, "engine.Format", g.Path)
	}
	if err := dev.Flush(ctx); err != nil {
		return translate(err, "engine.Format", g.Path)
	}
	sb.Encode(b[:segment.Sector])
	for _, off := range sb.SuperOffsets() {
		if err := dev.WriteAt(b[:segment.Sector], off, false); err != nil {
			return translate(err, "engine.Format", g.Path)
		}
	}
	return translate(dev.Flush(ctx), "engine.Format", g.Path)
}

// clearKeys makes the key table empty: what an earlier store had encrypted is gone with it.
func clearKeys(dev backends.Device) error {
	n := segment.KeyPages * segment.KeyCopies * segment.Sector
	return dev.WriteAt(backends.AlignedBuffer(n), segment.KeysOff, false)
}

// wipe clears what an earlier store left where segments open, so that a device formatted anew under
// its old id takes nothing of it for its own.
func wipe(dev backends.Device, sb *segment.Superblock) error {
	b := backends.AlignedBuffer(2 * segment.Sector)
	for i := range int64(sb.Segments) {
		off := int64(sb.FirstOff) + i*int64(sb.SegmentSize)
		if err := dev.WriteAt(b, off, false); err != nil {
			return translate(err, "engine.Format", dev.Geometry().Path)
		}
	}
	return nil
}

// layout chooses the segment size and count for a device.
func layout(g backends.Geometry, o FormatOptions) (*segment.Superblock, error) {
	size := o.SegmentSize
	if size == 0 {
		size = 32 << 20
		for size > 4<<20 && int64(size) > g.Front()/256 {
			size /= 2
		}
	}
	last := segment.SuperOffsets(g.Front())[2]
	count := (last - segment.DataOff) / max(int64(size), 1)
	lanes := max(o.Lanes, 1)
	switch {
	case o.Device.IsZero():
		return nil, domain.Errorf(domain.Invalid, "a device needs an id")
	case count < 24+2*int64(lanes):
		return nil, domain.Errorf(domain.Invalid,
			"%s: %s is too small: need %d segments of %s", g.Path, domain.Bytes(g.Size),
			24+2*lanes, domain.Bytes(size))
	case lanes > segment.LanesMax:
		return nil, domain.Errorf(domain.Invalid, "%d lanes: at most %d", lanes, segment.LanesMax)
	case g.Boundary > 0 && (g.Size-g.Boundary)/int64(size) <= diskLeast:
		return nil, domain.Errorf(domain.Invalid, "%s: the disk is too small: need %d segments of %s",
			g.Path, diskLeast+1, domain.Bytes(size))
	}
	incompat := segment.IncompatBase | segment.IncompatPacked | segment.IncompatReplica |
		segment.IncompatKeys | segment.IncompatMoves
	if g.Boundary > 0 {
		count = (g.Size - segment.DataOff) / int64(size)
		incompat |= segment.IncompatPair | segment.IncompatLives
	}
	sb := &segment.Superblock{
		Version: segment.FormatVersion, Incompat: incompat, Cluster: o.Cluster,
		Node: o.Node, Device: o.Device, Size: uint64(g.Size), LogicalBlock: uint32(g.LogicalBlock),
		AtomicUnit: uint32(g.AtomicUnit), SegmentSize: uint32(size),
		Segments: uint32(min(count, 1<<31)), FirstOff: segment.DataOff, Lanes: uint16(lanes),
		Tier: 2, Generation: 1, Salt: newSalt(), Boundary: uint64(g.Boundary),
	}
	b := make([]byte, segment.Sector)
	sb.Encode(b)
	if _, err := segment.DecodeSuperblock(b); err != nil {
		return nil, domain.Errorf(domain.Invalid, "%s: %v", g.Path, err)
	}
	return sb, nil
}

// newSalt draws a device's salt.
func newSalt() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return binary.LittleEndian.Uint32(b[:])
}

// readSuper gives the newest valid superblock, or nil.
func readSuper(dev backends.Device) (*segment.Superblock, error) {
	var best *segment.Superblock
	b := backends.AlignedBuffer(segment.Sector)
	for _, off := range segment.SuperOffsets(dev.Geometry().Front()) {
		if err := dev.ReadAt(b, off); err != nil {
			return nil, err
		}
		sb, err := segment.DecodeSuperblock(b)
		if err == nil && (best == nil || sb.Generation > best.Generation) {
			best = sb
		}
	}
	return best, nil
}

// Probe gives the ids on a device's superblock: NotFound when there is none that verifies.
func Probe(dev backends.Device) (domain.DeviceID, domain.ClusterID, error) {
	sb, err := readSuper(dev)
	if err != nil {
		return domain.DeviceID{}, domain.ClusterID{}, translate(err, "engine.Probe", dev.Geometry().Path)
	}
	if sb == nil {
		return domain.DeviceID{}, domain.ClusterID{}, domain.Errorf(domain.NotFound,
			"%s: no superblock", dev.Geometry().Path)
	}
	return sb.Device, sb.Cluster, nil
}

// Open recovers a device and starts serving it: last anchor, leaves, replay of the log behind it,
// a new incarnation committed by an anchor before the first new write. It returns NotFound without
// a superblock, Denied for a device of another cluster, Corrupt when the checkpoint cannot be read
// or the journal is not the one that the device needs (see Config.AcceptLoss), Unavailable when the
// device fails or the journal that it needs is not given. Damage that costs single blocks is
// reported, not returned.
func Open(_ context.Context, cfg Config) (*Engine, error) {
	g := cfg.Device.Geometry()
	sb, err := readSuper(cfg.Device)
	switch {
	case err != nil:
		return nil, translate(err, "engine.Open", g.Path)
	case sb == nil:
		return nil, domain.Errorf(domain.NotFound, "%s: no superblock", g.Path)
	case sb.Cluster != cfg.Cluster:
		return nil, domain.Errorf(domain.Denied, "%s belongs to cluster %s", g.Path, sb.Cluster)
	case int64(sb.Boundary) != g.Boundary:
		return nil, domain.Errorf(domain.Invalid,
			"%s: its flash ends at %d, the store on it was made for %d: a pair is opened as that pair, "+
				"a device alone as that", g.Path, g.Boundary, sb.Boundary)
	case int64(sb.Size) > g.Size:
		return nil, domain.Errorf(domain.Corrupt, "%s shrank from %s to %s", g.Path,
			domain.Bytes(sb.Size), domain.Bytes(g.Size))
	}
	e := &Engine{cfg: cfg, dev: cfg.Device, super: sb, space: newSpace(sb)}
	e.cached = cfg.Reads.Attach()
	e.sched = qos.NewScheduler(qos.System(), g.Rotational)
	e.fua = cfg.Mode == Durable && g.Durability == backends.NeedsFlush
	e.noBranches()
	for i := range int(sb.Lanes) {
		e.lanes = append(e.lanes, newLane(e, i))
	}
	e.cache.size = e.space.size
	if err := e.keys.setup(cfg.ClusterKey); err != nil {
		return nil, err
	}
	e.cfg.ClusterKey = nil
	if e.space.disk != nil {
		e.space.disk.clock = e.clock()
	}
	m := &e.maint
	m.wakeup, m.halt = make(chan struct{}, 1), make(chan struct{})
	m.directory = map[leafID]segment.Piece{}
	m.limit = cfg.CheckpointBytes
	if m.limit == 0 {
		m.limit = min(16<<30, max(e.space.capacity/8, 1<<20))
	}
	e.space.hurry = func() {
		m.kick()
		e.sched.Rouse(qos.Clean)
	}
	if err := e.recover(); err != nil {
		return nil, err
	}
	e.space.brisk = e.nv != nil && e.space.disk == nil
	for _, l := range e.lanes {
		l.start()
	}
	// Asked while the maintenance, whose counters it reads, does not run.
	short := e.space.owed() > 0 || e.space.over() > 0
	m.start(e)
	e.nv.start()
	e.tellLoss()
	if short {
		m.kick()
	}
	if cfg.DropJournal && e.nv != nil {
		if err := e.dropJournal(); err != nil {
			e.Abandon()
			return nil, err
		}
	}
	return e, nil
}

// noBranches makes the tables of an empty device.
func (e *Engine) noBranches() {
	e.mu.branches = map[uint32]*branch{}
	e.mu.byVolume = map[domain.VolumeID]*Volume{}
	e.mu.bySnapshot = map[domain.SnapshotID]*Volume{}
	e.mu.replicas = map[uint32]*replica{}
	e.mu.graves = map[domain.VolumeID]struct{}{}
	e.mu.nextBranch = 1
}

// markPacked says on a device of an earlier version that its images may name compressed blocks, and
// its branches families that are not shown, from now on: who does not know them must not open it.
func (e *Engine) markPacked() error {
	const marks = segment.IncompatPacked | segment.IncompatMoves
	if e.super.Incompat&marks == marks {
		return nil
	}
	e.super.Incompat |= marks
	e.super.Generation++
	b := backends.AlignedBuffer(segment.Sector)
	e.super.Encode(b)
	for _, off := range e.super.SuperOffsets() { // each durable before the next is touched
		if err := e.dev.WriteAt(b, off, true); err != nil {
			return e.device(err, "engine.Open")
		}
	}
	return nil
}

// recover brings the index to the state of the last acknowledged record.
func (e *Engine) recover() error {
	if err := e.markPacked(); err != nil {
		return err
	}
	a, err := e.readAnchor()
	if err != nil {
		return err
	}
	e.maint.anchorSeq = a.Seq
	e.anchorSeq.Store(a.Seq)
	e.incarnation = a.Incarnation + 1
	e.space.mu.nextSeq = a.NextSegSeq
	e.versionSeq.Store(a.NextVersion)
	if err := e.openJournal(a); err != nil {
		return err
	}
	if err := e.loadKeys(); err != nil {
		return err
	}
	if err := e.loadRoot(a.Root); err != nil {
		return err
	}
	if err := e.loadLeaves(); err != nil {
		return err
	}
	e.loadHeld()
	heads, err := e.readHeaders(a)
	if err != nil {
		return err
	}
	q := newRedoQueue()
	for i, l := range e.lanes {
		if err := l.replay(a.Lanes[i], heads, q); err != nil {
			return err
		}
	}
	e.nv.replay()
	e.settleReplicas()
	e.emptyGraves()
	e.settleIndex()
	if err := e.nv.locked(); err != nil {
		return err
	}
	if e.stats.corrupt.Load() == 0 { // else a branch may be missing that needs its key
		if err := e.dropKeys(); err != nil {
			return err
		}
	}
	e.settleSpace(a)
	for _, l := range e.lanes {
		// Nothing of an earlier incarnation is ever replayed again, cut chunks least of all.
		l.mu.openSeq = e.space.seqNow()
	}
	// After a crash of this process alone, replay may have believed chunks that stand in the device's
	// cache only. The checkpoint reuses segments on their word, so they are made durable first.
	if err := e.flushDevice(); err != nil {
		return err
	}
	return e.checkpointLocked(false)
}

// readAnchor gives the newest valid anchor.
func (e *Engine) readAnchor() (*segment.Anchor, error) {
	ring := backends.AlignedBuffer(segment.AnchorSlots * segment.Sector)
	if err := e.dev.ReadAt(ring, segment.AnchorOff); err != nil {
		return nil, e.device(err, "engine.anchor")
	}
	var best *segment.Anchor
	for i := range segment.AnchorSlots {
		a, err := segment.DecodeAnchor(ring[i*segment.Sector : (i+1)*segment.Sector])
		if err == nil && (best == nil || a.Seq > best.Seq) {
			best = a
		}
	}
	if best == nil || len(best.Lanes) != len(e.lanes) {
		return nil, domain.Errorf(domain.Corrupt, "%s: no valid anchor", e.dev.Geometry().Path)
	}
	return best, nil
}

// read fetches the bytes of a piece and verifies them.
func (e *Engine) read(p segment.Piece) ([]byte, error) {
	if !e.space.valid(int64(p.Off), int64(p.Bytes)) || p.Off%segment.Unit != 0 {
		return nil, domain.Errorf(domain.Corrupt, "checkpoint names bytes outside the device")
	}
	start := int64(p.Off) / segment.Sector * segment.Sector
	skip := int64(p.Off) - start
	b := backends.AlignedBuffer(segment.RoundUp(int(skip)+int(p.Bytes), segment.Sector))
	if err := e.dev.ReadAt(b, start); err != nil {
		return nil, e.device(err, "engine.recover")
	}
	b = b[skip:][:p.Bytes]
	if segment.Checksum(b) != p.CRC {
		return nil, domain.Errorf(domain.Corrupt, "checkpoint at %d does not verify", p.Off)
	}
	return b, nil
}

// readHeaders gives the headers of all segments; after a clean stop there is nothing to replay and
// only the states matter. A header tells which anchor was the newest when its segment was opened:
// one above the newest found says that the true one is lost, and an older one would show what was
// overwritten since.
func (e *Engine) readHeaders(a *segment.Anchor) ([]segment.Header, error) {
	b := backends.AlignedBuffer(2 * segment.Sector)
	var heads []segment.Header
	for i, sg := range e.space.mu.segs {
		if sg.state == segReserved || sg.cold {
			continue
		}
		if err := e.dev.ReadAt(b, e.space.off(uint32(i))); err != nil {
			return nil, e.device(err, "engine.recover")
		}
		h, err := e.header(uint32(i), b, a)
		if err != nil {
			return nil, err
		}
		if h == nil {
			continue
		}
		if h.Anchor > a.Seq {
			return nil, domain.Errorf(domain.Corrupt, "%s: anchor %d is lost, the newest found is %d",
				e.dev.Geometry().Path, h.Anchor, a.Seq)
		}
		sg.stream, sg.lane, sg.seq = h.Stream, h.Lane, h.Sequence
		if h.Salt != (segment.Salt{}) {
			sg.life.Store(&life{base: e.space.off(uint32(i)), seq: h.Sequence, salt: h.Salt})
		}
		e.space.mu.nextSeq = max(e.space.mu.nextSeq, h.Sequence+1)
		if !a.Clean {
			heads = append(heads, *h)
		}
	}
	e.space.skipLives(a.Clean)
	slices.SortFunc(heads, func(a, b segment.Header) int {
		return cmp.Compare(a.Sequence, b.Sequence)
	})
	return heads, nil
}

// header gives what the first two sectors of a segment say about its life; nil when they say
// nothing. A chunk names the life too: where one stands in the first chunk's place, or in that of
// the header, with a sequence above the header's, the header was damaged, overwritten or never
// written, and what the segment holds counts all the same.
func (e *Engine) header(id uint32, b []byte, a *segment.Anchor) (*segment.Header, error) {
	h, bad := segment.DecodeHeader(b)
	if bad != nil || h.Segment != id || h.Device != e.super.Device || int(h.Lane) >= len(e.lanes) {
		h = nil
	}
	for _, at := range []int64{segment.Sector, 0} {
		c, err := e.life(id, at, b[at:], h, a)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		e.report(Fact{What: "corrupt", Detail: fmt.Sprintf(
			"header of segment %d is not that of its life %d", id, c.Sequence,
		)})
		return &segment.Header{
			Segment: id, Sequence: c.Sequence, Stream: c.Stream, Lane: c.Lane,
			Incarnation: c.Incarnation, Device: e.super.Device, Salt: e.saltOf(id, c.Sequence),
		}, nil
	}
	return h, nil
}

// life gives the chunk at an offset of a segment if it belongs to a later life than the header's
// and to one that counts: a life that holds something, or a log behind the marks. In a free
// segment it is what an earlier life left.
func (e *Engine) life(id uint32, at int64, b []byte, h *segment.Header, a *segment.Anchor,
) (*segment.Chunk, error) {
	c, bad := segment.DecodeChunkFixed(b)
	if bad != nil || int(c.Lane) >= len(e.lanes) || h != nil && c.Sequence <= h.Sequence {
		return nil, nil
	}
	sg := e.space.mu.segs[id]
	logged := c.Stream == segment.StreamLog && c.Sequence >= a.Lanes[c.Lane].Sequence
	if sg.live.Load() == 0 && sg.meta == 0 && (a.Clean || !logged) {
		return nil, nil
	}
	whole := backends.AlignedBuffer(c.HeaderBytes())
	if err := e.dev.ReadAt(whole, e.space.off(id)+at); err != nil {
		return nil, e.device(err, "engine.recover")
	}
	if c, _, bad = segment.DecodeChunk(whole, e.super.Salt); bad != nil {
		return nil, nil
	}
	to := int64(c.Place) * segment.Sector
	if c.Sealed && (to < e.space.off(id) || to >= e.space.off(id+1)) {
		return nil, nil // a write to another segment that came here
	}
	return c, nil
}

// settleSpace decides which segments hold something; the others become free at the checkpoint that
// closes the recovery, not before: until then the last anchor still needs them.
func (e *Engine) settleSpace(a *segment.Anchor) {
	s := e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	var spare []uint32
	for i, sg := range s.mu.segs {
		switch {
		case sg.state == segReserved:
		case sg.cold && sg.live.Load() > 0:
			sg.state, sg.stream = segSealed, segment.StreamCold
		case sg.cold:
			s.disk.give(uint32(i))
		case sg.live.Load() > 0 && sg.seq == 0:
			// Whose blocks these are cannot be told without a header: the cleaner leaves it alone.
			sg.state = segBad
		case sg.live.Load() > 0 || sg.meta > 0,
			!a.Clean && sg.stream == segment.StreamLog && sg.seq >= a.Lanes[sg.lane].Sequence:
			sg.state = segSealed
		default:
			spare = append(spare, uint32(i))
		}
	}
	// The longest unused are written first.
	slices.SortStableFunc(spare, func(a, b uint32) int {
		return cmp.Compare(s.mu.segs[a].seq, s.mu.segs[b].seq)
	})
	s.mu.free = spare
}
