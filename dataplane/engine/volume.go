package engine

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"weft/dataplane/segment"
	"weft/domain"
)

// Volume is a volume's line of writes on this device. All methods may be called from many
// goroutines; a buried volume answers NotFound.
type Volume struct {
	e      *Engine
	id     uint32 // branch
	volume domain.VolumeID
	epoch  domain.Epoch
	gen    uint32
	size   atomic.Int64
	gone   atomic.Bool
	mapped atomic.Int64 // blocks that are no holes, counted by the lanes
	// leaves holds the index by lane, each map guarded by its lane's mutex; nil once buried.
	leaves [segment.LanesMax]map[uint32]*leaf
}

// Record is one write of 1 to RecordBlocks blocks inside one extent. The caller owns it again, and
// its Data, once To.Appended ran; Data that is not Lent may be reused as soon as Append returned.
// Pool Records: they are over a kilobyte.
type Record struct {
	Kind  segment.Kind // KindData, KindZero or KindUnmap
	Block uint64
	Count int    // KindData: up to Engine.RecordBlocks; the others: up to a whole extent
	Data  []byte // KindData: Count blocks
	// Lent allows the device to read Data itself until To.Appended: the caller must not change it
	// before, or what is written will not match its checksum and read as corrupt.
	Lent    bool
	Request domain.RequestID
	Version domain.Version // set by Append: the record's place in the order of writes
	To      Appender

	kind segment.Kind // as it is logged: data of zeros becomes KindZero
	crc  [segment.RecordBlocks]uint32
}

// Appender is told the outcome of a record once. It must not block.
type Appender interface{ Appended(r *Record, err error) }

// ID gives the volume's identifier.
func (v *Volume) ID() domain.VolumeID { return v.volume }

// Size gives the volume's size in bytes.
func (v *Volume) Size() domain.Bytes { return domain.Bytes(v.size.Load()) }

// lane gives the lane of a block's extent.
func (v *Volume) lane(block uint64) *lane {
	return v.e.lanes[segment.LaneOf(v.id, uint32(block/segment.LeafBlocks), len(v.e.lanes))]
}

// zeroCRC is the CRC of a block of zeros.
var zeroCRC = segment.Checksum(make([]byte, segment.BlockSize))

// Append takes a record. It returns once the record has its place in the order of writes; the
// outcome follows by To.Appended, on another goroutine: nil when the record is durable as the
// engine's mode says, NoSpace, OutOfRange, NotFound, or Unavailable when the device failed, which
// leaves open whether the record is there. It waits while all chunk buffers are in flight.
func (v *Volume) Append(r *Record) { v.append(r, nil) }

func (v *Volume) append(r *Record, own *Hold) {
	if err := v.checkRecord(r); err != nil {
		r.To.Appended(r, err)
		return
	}
	r.kind = r.Kind
	if r.Kind == segment.KindData {
		sum(r)
	}
	if err := v.enqueue(r, own); err != nil {
		r.To.Appended(r, err)
	}
}

// sum computes the checksums outside of any lock and turns a record of zeros into a range of them.
func sum(r *Record) {
	zero := true
	for i := range r.Count {
		r.crc[i] = segment.Checksum(r.Data[i*segment.BlockSize : (i+1)*segment.BlockSize])
		zero = zero && r.crc[i] == zeroCRC
	}
	if zero && allZero(r.Data[:r.Count*segment.BlockSize]) {
		r.kind = segment.KindZero
	}
}

var zeroBlock [segment.BlockSize]byte

func allZero(p []byte) bool {
	for len(p) >= segment.BlockSize {
		if !bytes.Equal(p[:segment.BlockSize], zeroBlock[:]) {
			return false
		}
		p = p[segment.BlockSize:]
	}
	return true
}

func (v *Volume) checkRecord(r *Record) error {
	limit := segment.LeafBlocks
	if r.Kind == segment.KindData {
		limit = v.e.RecordBlocks()
	}
	blocks := uint64(v.size.Load()) / segment.BlockSize
	switch {
	case r.Kind < segment.KindData || r.Kind > segment.KindUnmap:
		return domain.Errorf(domain.Invalid, "record of kind %d", r.Kind)
	case r.Count < 1 || r.Count > limit:
		return domain.Errorf(domain.Invalid, "record of %d blocks: 1 to %d", r.Count, limit)
	case int(r.Block%segment.LeafBlocks)+r.Count > segment.LeafBlocks:
		return domain.Errorf(domain.Invalid, "record crosses an extent")
	case r.Kind == segment.KindData && len(r.Data) < r.Count*segment.BlockSize:
		return domain.Errorf(domain.Invalid, "record without its data")
	case r.Block >= blocks || uint64(r.Count) > blocks-r.Block:
		return domain.Errorf(domain.OutOfRange, "block %d of %d", r.Block, blocks)
	}
	return nil
}

// enqueue puts a checked record into its lane's open chunk.
func (v *Volume) enqueue(r *Record, own *Hold) error {
	l := v.lane(r.Block)
	n := 0
	if r.kind == segment.KindData {
		n = r.Count * segment.BlockSize
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held(v, r.Block, r.Count, own) {
		v.e.stats.stalls.Add(1)
	}
	for {
		if err := l.dead(); err != nil {
			return err
		}
		if v.gone.Load() {
			return notFound(v.volume)
		}
		if l.mu.cur != nil && !l.mu.cur.fits(n, v.e.payloadMax()) {
			l.mu.cur.full = true
			l.work.Signal()
		}
		if l.mu.cur != nil && !l.mu.cur.full && !l.held(v, r.Block, r.Count, own) {
			break
		}
		l.room.Wait()
	}
	newly := int64(0)
	if r.kind != segment.KindUnmap {
		newly = v.newBytes(l, r)
		if !v.e.space.admit(newly) {
			return domain.Errorf(domain.NoSpace, "device full: %s of %s used",
				domain.Bytes(v.e.space.live.Load()), domain.Bytes(v.e.space.usable.Load()))
		}
	}
	l.add(v, r, newly)
	return nil
}

// newBytes gives the room that a record takes beyond what its blocks have: their data, and the
// index of those that were not mapped.
func (v *Volume) newBytes(l *lane, r *Record) int64 {
	absent, unmapped, mapped := r.Count, r.Count, 0
	if lf := v.leaves[l.no][uint32(r.Block/segment.LeafBlocks)]; lf != nil {
		first := int(r.Block % segment.LeafBlocks)
		absent, unmapped, mapped = 0, 0, lf.mapped
		for _, loc := range lf.Loc[first : first+r.Count] {
			if loc.Kind() != segment.Flash {
				absent++
			}
			if loc == 0 {
				unmapped++
			}
		}
	}
	if r.kind == segment.KindZero {
		absent = 0
	}
	index := imageBytes(mapped+unmapped) - imageBytes(mapped)
	return int64(absent)*segment.BlockSize + v.e.space.charge(index)
}

// RecordBlocks gives the most blocks of one record of data on this device: segment.RecordBlocks,
// or less where segments below 4 MiB take smaller chunks.
func (e *Engine) RecordBlocks() int {
	return min(segment.RecordBlocks, e.payloadMax()/segment.BlockSize)
}

// RecordBlocks gives the most blocks of one record of data: the largest atomic write.
func (v *Volume) RecordBlocks() int { return v.e.RecordBlocks() }

// payloadMax gives the most payload of one chunk of this device.
func (e *Engine) payloadMax() int { return chunkPayload(e.space.size) }

// add encodes a record into the open chunk; mu is held and the chunk has room.
func (l *lane) add(v *Volume, r *Record, newly int64) {
	c := l.mu.cur
	l.mu.lsn++
	r.Version = domain.Version{
		Epoch: v.epoch, Seq: l.e.versionSeq.Add(1), Node: l.e.cfg.Node,
	}
	p := pending{
		rec: r, vol: v, kind: r.kind, block: r.Block, count: r.Count, lsn: l.mu.lsn,
		unit: uint32(c.payload / segment.Unit), crc: len(c.crcs), newly: newly,
	}
	en := segment.Entry{
		Branch: v.id, Block: r.Block, Count: 1, Kind: r.kind, Flags: segment.FlagFresh,
		Version: r.Version, Gen: v.gen, LSN: p.lsn, Request: r.Request,
	}
	if r.kind == segment.KindData {
		n := r.Count * segment.BlockSize
		l.e.fill(c, r, n)
		c.crcs = append(c.crcs, r.crc[:r.Count]...)
		en.Count, en.Off, en.CRC = r.Count, p.unit, r.crc[0]
		en.Units = uint16(r.Count * segment.BlockUnits)
	} else {
		en.Range = uint64(r.Count)
	}
	c.encode(&en, r.crc[1:])
	c.recs = append(c.recs, p)
	l.e.stats.records.Add(1)
	l.e.stats.userBytes.Add(int64(r.Count) * segment.BlockSize)
	l.work.Signal()
}

// encode appends an entry to the chunk.
func (c *chunk) encode(en *segment.Entry, further []uint32) {
	at := len(c.entries)
	c.entries = c.entries[:at+en.Size()]
	clear(c.entries[at:])
	en.Encode(c.entries[at:], further)
}

// Hold keeps every other writer away from a range of blocks, so that they can be read, judged and
// written as one step: the reservation of compare-and-write and of writes below a block.
type Hold struct {
	v     *Volume
	l     *lane
	block uint64
	count int
}

// Hold waits until the range, inside one extent, is free of other holds and of records on their
// way, and keeps it until Release. It has no timeout.
func (v *Volume) Hold(block uint64, count int) (*Hold, error) {
	l := v.lane(block)
	h := &Hold{v, l, block, count}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.held(v, block, count, nil) {
		if err := l.dead(); err != nil {
			return nil, err
		}
		l.room.Wait()
	}
	l.mu.holds = append(l.mu.holds, h)
	for mark := l.mu.lsn; l.mu.applied < mark; {
		if err := l.dead(); err != nil && l.mu.head == nil {
			l.drop(h)
			return nil, err
		}
		l.room.Wait()
	}
	return h, nil
}

// Append takes a record inside the held range.
func (h *Hold) Append(r *Record) { h.v.append(r, h) }

// Release lets the waiting writers on. The next holder still waits for the record appended here.
func (h *Hold) Release() {
	h.l.mu.Lock()
	h.l.drop(h)
	h.l.mu.Unlock()
	h.l.room.Broadcast()
}

func (l *lane) drop(h *Hold) {
	l.mu.holds = slices.DeleteFunc(l.mu.holds, func(o *Hold) bool { return o == h })
}

// held tells whether another hold covers part of the range; mu is held.
func (l *lane) held(v *Volume, block uint64, count int, own *Hold) bool {
	for _, h := range l.mu.holds {
		if h != own && h.v == v && block < h.block+uint64(h.count) &&
			h.block < block+uint64(count) {
			return true
		}
	}
	return false
}

func notFound(id domain.VolumeID) error {
	return &domain.Error{Kind: domain.NotFound, Ref: "volume/" + id.String(), Msg: "no such volume"}
}

// VolumeInfo describes a volume on a device.
type VolumeInfo struct {
	ID     domain.VolumeID
	Size   domain.Bytes
	Mapped domain.Bytes // blocks that hold data or written zeros
}

// Volume gives a volume by its id.
func (e *Engine) Volume(id domain.VolumeID) (*Volume, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	v, ok := e.mu.byVolume[id]
	return v, ok
}

// Volumes lists the volumes on the device, by branch.
func (e *Engine) Volumes() []*Volume {
	e.mu.RLock()
	defer e.mu.RUnlock()
	list := make([]*Volume, 0, len(e.mu.byVolume))
	for _, v := range e.mu.byVolume {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *Volume) int { return int(a.id) - int(b.id) })
	return list
}

// Info tells what a volume holds. It takes no lock: it is asked for every volume of a list.
func (v *Volume) Info() VolumeInfo {
	return VolumeInfo{
		ID: v.volume, Size: v.Size(), Mapped: domain.Bytes(v.mapped.Load()) * segment.BlockSize,
	}
}

// Create makes a volume of a size, a multiple of the extent. Creating the same volume again is a
// success if the size agrees, Exists otherwise. Durable on return.
func (e *Engine) Create(ctx context.Context, id domain.VolumeID, size domain.Bytes,
	epoch domain.Epoch,
) (*Volume, error) {
	e.control.Lock()
	defer e.control.Unlock()
	if v, ok := e.Volume(id); ok {
		if v.Size() != size {
			return nil, domain.Errorf(domain.Exists, "volume %s has %s", id, v.Size())
		}
		return v, nil
	}
	if size < domain.VolumeMin || size%domain.VolumeMin != 0 || size > domain.VolumeMax {
		return nil, domain.Errorf(domain.Invalid, "volume size %s: a multiple of %s up to %s",
			size, domain.VolumeMin, domain.VolumeMax)
	}
	e.mu.Lock()
	next := e.mu.nextBranch
	e.mu.nextBranch++
	e.mu.Unlock()
	br := segment.Branch{
		ID: next, State: segment.BranchLive, Volume: id, Size: uint64(size), Gen: 1, Epoch: epoch,
	}
	if err := e.logBranch(ctx, br); err != nil {
		return nil, err
	}
	v, _ := e.Volume(id)
	return v, nil
}

// Resize grows a volume. Shrinking is refused: it would lose data. Durable on return.
func (e *Engine) Resize(ctx context.Context, id domain.VolumeID, size domain.Bytes) error {
	e.control.Lock()
	defer e.control.Unlock()
	v, ok := e.Volume(id)
	switch {
	case !ok:
		return notFound(id)
	case size == v.Size():
		return nil
	case size < v.Size():
		return domain.Errorf(domain.Unsupported, "a volume of %s does not shrink to %s", v.Size(), size)
	case size%domain.VolumeMin != 0 || size > domain.VolumeMax:
		return domain.Errorf(domain.Invalid, "volume size %s: a multiple of %s up to %s",
			size, domain.VolumeMin, domain.VolumeMax)
	}
	br := v.branch(segment.BranchLive)
	br.Size = uint64(size)
	return e.logBranch(ctx, br)
}

// Delete buries a volume: its data is gone for good and its space free for others once the next
// checkpoint is taken. Deleting what is not there is a success. Durable on return.
func (e *Engine) Delete(ctx context.Context, id domain.VolumeID) error {
	e.control.Lock()
	defer e.control.Unlock()
	v, ok := e.Volume(id)
	if !ok {
		return nil
	}
	// The wait cannot be cut short: a burial whose outcome nobody awaits would leave its space taken.
	wait := context.WithoutCancel(ctx)
	if err := e.logBranch(wait, v.branch(segment.BranchBuried)); err != nil {
		return err
	}
	for _, l := range e.lanes {
		l.bury(v)
	}
	e.maint.kick()
	return nil
}

func (v *Volume) branch(st segment.BranchState) segment.Branch {
	return segment.Branch{
		ID: v.id, State: st, Volume: v.volume, Size: uint64(v.size.Load()), Gen: v.gen,
		Epoch: v.epoch,
	}
}

// bury drops a volume's part of the index and gives its space back.
func (l *lane) bury(v *Volume) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ext, lf := range v.leaves[l.no] {
		for i, loc := range lf.Loc {
			if loc != 0 {
				l.point(v, lf, i, 0, 0)
			}
		}
		l.touch(lf, v, uint64(ext)*segment.LeafBlocks)
		l.leaves.Add(-1)
	}
	v.leaves[l.no] = nil
}

// branchWait carries a BRANCH record's outcome to the caller of Create.
type branchWait chan error

// Appended implements Appender.
func (w branchWait) Appended(_ *Record, err error) { w <- err }

// logBranch writes a branch's new state to the first lane's log and waits for it. It enters the
// engine's tables when it is durable, in LSN order like everything else.
func (e *Engine) logBranch(ctx context.Context, br segment.Branch) error {
	l, w := e.lanes[0], make(branchWait, 1)
	l.mu.Lock()
	for {
		if err := l.dead(); err != nil {
			l.mu.Unlock()
			return err
		}
		if l.mu.cur != nil && !l.mu.cur.fits(segment.Sector, e.payloadMax()) {
			l.mu.cur.full = true
			l.work.Signal()
		}
		if l.mu.cur != nil && !l.mu.cur.full {
			break
		}
		l.room.Wait()
	}
	c := l.mu.cur
	l.mu.lsn++
	body := br.Append(nil)
	at := segment.HeaderMax + c.payload
	clear(c.buf[at : at+segment.Sector])
	copy(c.buf[at:], body)
	en := segment.Entry{
		Branch: br.ID, Count: 1, Kind: segment.KindBranch, LSN: l.mu.lsn,
		Off: uint32(c.payload / segment.Unit), Units: 1, CRC: segment.Checksum(body),
	}
	c.encode(&en, nil)
	c.payload += segment.Sector
	c.recs = append(c.recs, pending{
		rec: &Record{To: w}, kind: segment.KindBranch, lsn: l.mu.lsn, branch: br,
	})
	l.mu.Unlock()
	l.work.Signal()
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return &domain.Error{
			Op: "engine.logBranch", Kind: domain.Aborted, Err: ctx.Err(),
			Msg: fmt.Sprintf("outcome of branch %d unknown", br.ID),
		}
	}
}

// setBranch enters a branch's state into the tables; the first lane's mutex is held.
func (e *Engine) setBranch(br segment.Branch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.mu.branches[br.ID]
	if v == nil {
		v = e.newVolume(br)
		e.mu.branches[br.ID] = v
	}
	e.mu.nextBranch = max(e.mu.nextBranch, br.ID+1)
	v.size.Store(int64(br.Size))
	if br.State == segment.BranchBuried {
		v.gone.Store(true)
		delete(e.mu.byVolume, br.Volume)
		return
	}
	e.mu.byVolume[br.Volume] = v
}

func (e *Engine) newVolume(br segment.Branch) *Volume {
	v := &Volume{e: e, id: br.ID, volume: br.Volume, epoch: br.Epoch, gen: br.Gen}
	for i := range e.lanes {
		v.leaves[i] = make(map[uint32]*leaf)
	}
	return v
}
