package engine

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// leafID names a leaf in the checkpoint's directory.
type leafID struct{ branch, extent uint32 }

// maintenance is the one goroutine that takes checkpoints and cleans. Everything but the channels
// and counters belongs to it, or to Open and Close while it does not run.
type maintenance struct {
	logged atomic.Int64 // log bytes since the last checkpoint
	limit  int64
	asked  atomic.Bool // kicked by a full space or by hand
	wakeup chan struct{}
	halt   chan struct{}
	quiet  atomic.Bool // no more cleaning
	behind atomic.Bool // the round under way, or the last one, while segments are owed, is in a hurry
	dear   bool        // the last round moved much for each segment it won
	done   sync.WaitGroup

	ckpt      sync.Mutex // one checkpoint or cleaning round at a time
	directory map[leafID]segment.Piece
	root      []segment.Piece      // where the last durable root stands, its list included
	table     segment.ReplicaTable // as loaded, until Open has taken it up
	anchorSeq uint64
	meta      *openSegment
	out       [segment.StreamCount]*openSegment // the cleaner's
	taken     atomic.Int64                      // checkpoints so far, for waiters
	sweeps    sweeps
	reads     tier.ReadCost // what reads of the cleaner cost the device
	cold      coldStream    // to the disk of a pair
	room      footerRoom    // the cleaner's
	squeezer  squeezer      // the cleaner's
}

// note counts log bytes and wakes the maintenance when a checkpoint is due.
func (m *maintenance) note(n int64) {
	if m.logged.Add(n) >= m.limit {
		m.kick()
	}
}

// kick wakes the maintenance.
func (m *maintenance) kick() {
	m.asked.Store(true)
	select {
	case m.wakeup <- struct{}{}:
	default:
	}
}

func (m *maintenance) start(e *Engine) {
	m.done.Add(1)
	go func() {
		defer m.done.Done()
		for {
			select {
			case <-m.halt:
				return
			case <-m.wakeup:
			}
			m.asked.Store(false)
			if err := e.maintain(); err != nil {
				e.fail(err)
			}
		}
	}()
}

// stopCleaning lets the round under way be the last.
func (m *maintenance) stopCleaning() { m.quiet.Store(true) }

func (m *maintenance) stop() {
	close(m.halt)
	m.done.Wait()
}

// vainMax is how many rounds of moving and freeing may win nothing while a writer waits. More would
// only wear the device: then the accounting of space is wrong, and that is better said than hidden.
const vainMax = 32

// maintain cleans until enough segments are free, and takes the checkpoints that are due.
func (e *Engine) maintain() error {
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	e.runSweeps()
	for vain := 0; !e.failed.Load(); {
		e.runSweeps() // while the device is full, a deletion must not wait for the end of cleaning
		before, served := e.space.freeCount(), e.space.served.Load()
		diskBefore := e.space.diskFree()
		short, moved := e.space.owed() > 0, false
		if !short {
			e.maint.behind.Store(false)
		}
		if (short || e.space.owedToCopies() > 0) && !e.maint.quiet.Load() {
			var err error
			if moved, err = e.clean(); err != nil {
				return err
			}
		}
		cooled, err := e.cool()
		if err != nil {
			return err
		}
		moved = moved || cooled
		if !e.due() {
			if moved && (e.space.owed() > 0 || e.maint.cold.debt > 0) {
				continue
			}
			return nil
		}
		if err := e.checkpointLocked(false); err != nil {
			return err
		}
		won := e.space.freeCount() > before || e.space.diskFree() > diskBefore
		switch {
		case !short && e.space.owed() <= 0 && e.maint.cold.debt == 0 || !moved && !won:
			return nil // nothing left to win; the next change wakes us again
		case won || e.space.served.Load() > served || e.space.waiting.Load() == 0:
			vain = 0
			continue
		}
		if vain++; vain >= vainMax {
			return domain.Errorf(domain.NoSpace, "cleaning wins nothing: %d of %d segments free",
				e.space.freeCount(), len(e.space.mu.segs))
		}
		runtime.Gosched() // the writers that were woken come first
	}
	return nil
}

// due tells whether a checkpoint is to be taken: enough was logged, what died is to be freed, or a
// writer waits, and be it for no more than the room that the next checkpoint lays claim to.
func (e *Engine) due() bool {
	return e.maint.logged.Load() >= e.maint.limit || e.space.waiting.Load() > 0 || e.space.low() ||
		e.maint.cold.parched || e.space.eaten()
}

// Checkpoint takes one now. One that fails takes the engine out of service: what it wrote is not
// to be trusted, and neither is a flush that comes after a failed one.
func (e *Engine) Checkpoint() error { return e.checkpoint(false) }

func (e *Engine) checkpoint(clean bool) error {
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	if e.failed.Load() {
		return domain.Errorf(domain.Unavailable, "device failed")
	}
	err := e.checkpointLocked(clean)
	if err != nil {
		e.fail(err)
	}
	return err
}

// checkpointLocked writes every changed leaf and the root, commits them by an anchor, and frees
// what nothing refers to any more. The order is the proof: leaves and root flushed, then the
// anchor, then the frees. A segment may be freed only if it was sealed and empty before the lanes'
// marks were taken: then no entry behind the marks stands in it.
func (e *Engine) checkpointLocked(clean bool) error {
	m := &e.maint
	empty := e.space.empty()
	m.logged.Store(0)
	marks := make([]segment.LaneMark, len(e.lanes))
	changed := make([][]*leaf, len(e.lanes))
	var table segment.ReplicaTable
	for i, l := range e.lanes {
		marks[i], changed[i] = l.mark(&table)
	}
	e.replicaStates(&table)
	w := &metaWriter{e: e}
	var dropped []segment.Piece
	for i, l := range e.lanes {
		for _, lf := range changed[i] {
			e.giveWay() // an image takes 20 to 60 us
			old, err := l.saveLeaf(lf, w)
			if err != nil {
				return err
			}
			if old.Bytes > 0 {
				dropped = append(dropped, old)
			}
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	root, err := e.writeRoot(w, table)
	if err != nil {
		return err
	}
	if err := e.commit(marks, root[len(root)-1], clean); err != nil {
		return err
	}
	dropped = append(dropped, m.root...)
	m.root = root
	for _, p := range dropped {
		e.space.at(int64(p.Off)).meta -= int64(p.Bytes)
	}
	e.free(append(empty, e.space.emptyMeta()...))
	e.stats.checkpoints.Add(1)
	m.taken.Add(1)
	return nil
}

// mark gives the lane's place in its log and hands over the list of changed leaves. What replicas
// hold up to that place is added to the table.
func (l *lane) mark(table *segment.ReplicaTable) (segment.LaneMark, []*leaf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.saveHeld(table)
	mk := segment.LaneMark{LSN: l.mu.applied, PrevCRC: l.mu.chain, Sequence: l.mu.openSeq}
	for c := l.mu.head; c != nil; c = c.next {
		if c.seg != nil {
			mk.Sequence = min(mk.Sequence, c.seg.seq)
		}
	}
	list := l.mu.dirty
	l.mu.dirty = nil
	return mk, list
}

// saveLeaf writes one changed leaf's image and gives the place of the one it replaces. An empty
// leaf leaves the directory.
func (l *lane) saveLeaf(lf *leaf, w *metaWriter) (segment.Piece, error) {
	l.lock()
	id := leafID{lf.br.id, lf.ext}
	lf.dirty = false
	l.e.space.dirty.Add(-imageBytes(int(lf.n)))
	if lf.n == 0 && !lf.gone {
		l.remove(lf)
	}
	old := l.e.maint.directory[id]
	if lf.gone {
		l.mu.Unlock()
		delete(l.e.maint.directory, id)
		return old, nil
	}
	im := &w.leaf
	im.Branch, im.Extent, im.Complete = id.branch, id.extent, l.mu.applied
	lf.own.write(&im.Loc)
	l.mu.Unlock() // hosts wait for it, and what follows takes ten times as long
	l.e.nv.leaveOut(&im.Loc)
	w.image = im.Encode(w.image[:0])
	p, err := w.put(segment.KindLeaf, w.image, id)
	if err != nil {
		return old, err
	}
	l.e.maint.directory[id] = p
	return old, nil
}

// writeRoot writes the root in pieces and the list of pieces; the list's own place comes last.
func (e *Engine) writeRoot(w *metaWriter, table segment.ReplicaTable) ([]segment.Piece, error) {
	r := segment.Root{Replicas: table}
	if e.super.Incompat&segment.IncompatLives != 0 {
		r.Lives = e.space.lives()
	}
	r.NextBranch, r.Branches, r.Aliases = e.branchTable()
	for id, p := range e.maint.directory {
		r.Leaves = append(r.Leaves, segment.LeafRef{Branch: id.branch, Extent: id.extent, Piece: p})
	}
	slices.SortFunc(r.Leaves, func(a, b segment.LeafRef) int {
		if a.Branch != b.Branch {
			return int(a.Branch) - int(b.Branch)
		}
		return int(a.Extent) - int(b.Extent)
	})
	var pieces []segment.Piece
	for b := r.Encode(); len(b) > 0; {
		n := min(len(b), e.payloadMax())
		p, err := w.put(segment.KindRoot, b[:n], leafID{})
		if err != nil {
			return nil, err
		}
		pieces, b = append(pieces, p), b[n:]
	}
	list, err := w.put(segment.KindRoot, segment.EncodePieces(pieces), leafID{})
	if err != nil {
		return nil, err
	}
	return append(pieces, list), w.flush()
}

// commit makes everything written so far durable and then the anchor.
func (e *Engine) commit(marks []segment.LaneMark, root segment.Piece, clean bool) error {
	if err := e.flushDevice(); err != nil {
		return err
	}
	e.maint.anchorSeq++
	a := segment.Anchor{
		Seq: e.maint.anchorSeq, Incarnation: e.incarnation, Clean: clean,
		NextSegSeq: e.space.seqNow(), NextVersion: e.versionSeq.Load() + 1,
		Root: root, Lanes: marks, Journal: e.nv.id(),
	}
	b := backends.AlignedBuffer(segment.AnchorCopies * segment.Sector)
	for i := range segment.AnchorCopies {
		a.Encode(b[i*segment.Sector:])
	}
	if err := e.dev.WriteAt(b, segment.AnchorPlace(a.Seq), e.fua); err != nil {
		return e.device(err, "engine.commit")
	}
	if err := e.flushDevice(); err != nil {
		return err
	}
	e.anchorSeq.Store(a.Seq)
	return nil
}

// flushDevice is the checkpoint's barrier.
func (e *Engine) flushDevice() error {
	if e.dev.Geometry().Durability != backends.NeedsFlush {
		return nil
	}
	return e.device(e.dev.Flush(background), "engine.flush")
}

// emptyMeta lists the sealed segments of checkpoints that the new anchor no longer needs.
func (s *space) emptyMeta() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []uint32
	for i, sg := range s.mu.segs {
		if sg.state == segSealed && sg.stream == segment.StreamMeta && sg.meta == 0 {
			ids = append(ids, uint32(i))
		}
	}
	return ids
}

// free returns segments to the pool, each once, and tells the device.
func (e *Engine) free(ids []uint32) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	ids = slices.DeleteFunc(ids, func(id uint32) bool { return !e.space.idle(id) })
	if e.dev.Geometry().CanDiscard && e.dev.Geometry().Durability == backends.PowerSafe {
		for _, id := range ids {
			// A failed discard costs space on the device below, never data.
			_ = e.dev.Discard(background, e.space.off(id), e.space.size)
		}
	}
	e.space.release(ids)
}

// idle tells whether a sealed segment still holds nothing.
func (s *space) idle(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sg := s.mu.segs[id]
	return sg.state == segSealed && sg.meta == 0 && sg.live.Load() == 0
}

// metaWriter packs leaf images and root pieces into chunks of the metadata stream.
type metaWriter struct {
	e     *Engine
	c     *chunk
	leaf  segment.Leaf
	image []byte
	// open pieces of the gathering chunk, whose places are known when it is written
	base int64
}

// put adds one body and gives its place. The bytes are on the device after flush.
func (w *metaWriter) put(kind segment.Kind, body []byte, id leafID) (segment.Piece, error) {
	stored := segment.RoundUp(max(len(body), 1), segment.Unit)
	limit := max(w.e.payloadMax(), segment.RoundUp(segment.LeafMax, segment.Sector))
	room := w.e.metaHeader() - segment.ChunkHeader - segment.EntrySettled
	if w.c != nil && (!w.c.fits(stored, limit) || len(w.c.entries) > room) {
		if err := w.flush(); err != nil {
			return segment.Piece{}, err
		}
	}
	if w.c == nil {
		if err := w.begin(limit); err != nil {
			return segment.Piece{}, err
		}
	}
	c := w.c
	en := segment.Entry{
		Branch: id.branch, Block: uint64(id.extent), Count: 1, Kind: kind,
		Off: uint32(c.payload / segment.Unit), Units: uint16(stored / segment.Unit),
		CRC: segment.Checksum(body),
	}
	at := segment.HeaderMax + c.payload
	clear(c.buf[at+copy(c.buf[at:], body) : at+stored])
	p := segment.Piece{
		Off: uint64(w.base) + uint64(c.payload), Bytes: uint32(len(body)), CRC: en.CRC,
	}
	c.encode(&en, nil)
	c.recs = append(c.recs, pending{})
	c.payload += stored
	w.e.space.at(w.base).meta += int64(len(body))
	return p, nil
}

// metaHeader is the room every metadata chunk keeps for its header, so that the place of a body is
// known before the chunk is full.
func (e *Engine) metaHeader() int {
	if e.space.size < 1<<20 {
		return segment.Sector
	}
	return 4 * segment.Sector
}

// begin starts a chunk, in a new segment where the open one lacks room.
func (w *metaWriter) begin(limit int) error {
	m, e := &w.e.maint, w.e
	n := int64(e.metaHeader() + limit)
	if m.meta == nil || !m.meta.fits(n, e.metaHeader(), e.space.size) {
		if m.meta != nil {
			e.closeSegment(m.meta)
		}
		o, err := e.openSegment(segment.StreamMeta, 0)
		if err != nil {
			m.meta = nil
			return e.device(err, "engine.checkpoint")
		}
		m.meta = o
	}
	w.c = e.cache.get()
	w.base = e.space.off(m.meta.id) + m.meta.used + int64(e.metaHeader())
	return nil
}

// flush writes the gathering chunk.
func (w *metaWriter) flush() error {
	c, e, o := w.c, w.e, w.e.maint.meta
	if c == nil {
		return nil
	}
	w.c = nil
	defer e.cache.put(c)
	// Pad the entries to the room kept for them: the header is always metaHeader bytes.
	pad := e.metaHeader() - segment.ChunkHeader - len(c.entries)
	count := len(c.recs)
	c.entries = c.entries[:len(c.entries)+pad]
	clear(c.entries[len(c.entries)-pad:])
	c.head = segment.Chunk{
		Incarnation: e.incarnation, Sequence: o.seq, Entries: uint16(count),
		Stream: segment.StreamMeta, EntryBytes: uint32(len(c.entries)),
		PayloadBytes: uint32(segment.RoundUp(c.payload, segment.Sector)),
	}
	img := c.image(e.super.Salt)
	off := e.space.off(o.id) + o.used
	o.footer.Add(uint32(o.used), img[:c.head.HeaderBytes()])
	o.used += int64(len(img))
	e.stats.metaByte.Add(int64(len(img)))
	return e.device(c.trickle(e.dev, img, off, e.piece()), "engine.checkpoint")
}
