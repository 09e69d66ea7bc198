package engine

import (
	"bytes"
	"slices"
	"sync/atomic"

	"weft/dataplane/segment"
	"weft/domain"
)

// Volume is a volume on this device, or a snapshot, which takes no writes. All methods may be
// called from many goroutines; one that was deleted answers NotFound.
type Volume struct {
	e        *Engine
	fam      *family
	volume   domain.VolumeID   // of a snapshot: the volume that it was cut from
	snapshot domain.SnapshotID // zero for a volume
	cut      uint32            // of a cut of a replica: its generation; else 0
	size     atomic.Int64
	end      atomic.Int64 // of what may be reached: its size, or less while it shrinks
	gone     atomic.Bool
	ahead    ahead
	// br is the branch that it names: a volume's head changes with every cut. It is changed under the
	// mutexes of all lanes.
	br     atomic.Pointer[branch]
	sealed [segment.LanesMax]uint64 // of a snapshot: the lanes' LSNs at the cut
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
	Lent bool
	// Now tells that its owner sends nothing more before the outcome: where the lane rests, Append
	// writes it on the caller's goroutine, and calls Appended, instead of waking a writer.
	Now     bool
	Request domain.RequestID
	Version domain.Version // set by Append: the record's place in the order of writes
	Gen     uint32         // of a replica: the generation it was written in
	To      Appender

	// Of a replica, set by Append: what became of the record, and, where that is Mixed, which of its
	// blocks kept a higher version.
	Outcome Outcome
	Kept    segment.Mask

	kind   segment.Kind // as it is logged: data of zeros becomes KindZero
	beyond bool         // of a volume that shrinks: behind its end on purpose
	crc    [segment.RecordBlocks]uint32
}

// Appender is told the outcome of a record once. It must not block.
type Appender interface{ Appended(r *Record, err error) }

// ID gives the volume's identifier; for a snapshot that of the volume it was cut from.
func (v *Volume) ID() domain.VolumeID { return v.volume }

// Snapshot gives the snapshot's identifier; zero for a volume.
func (v *Volume) Snapshot() domain.SnapshotID { return v.snapshot }

// Size gives the volume's size in bytes.
func (v *Volume) Size() domain.Bytes { return domain.Bytes(v.size.Load()) }

// lane gives the lane of a block's extent.
func (v *Volume) lane(block uint64) *lane {
	return v.e.laneOf(v.fam, uint32(block/segment.LeafBlocks))
}

// zeroCRC is the CRC of a block of zeros.
var zeroCRC = segment.Checksum(make([]byte, segment.BlockSize))

// Append takes a record. It returns once the record has its place in the order of writes; the
// outcome follows by To.Appended, on another goroutine unless the record says Now or a journal
// takes it: nil when it is durable as the engine's mode says, NoSpace, OutOfRange, NotFound,
// ReadOnly for a snapshot, or Unavailable when the device failed, which leaves open whether the
// record is there. It waits while all chunk buffers are in flight; where a journal fills faster
// than it is destaged, in proportion; and where hosts outrun the copy of a family that goes to
// another device, for that.
func (v *Volume) Append(r *Record) { v.append(r, nil) }

func (v *Volume) append(r *Record, own *Hold) {
	err := v.checkRecord(r)
	if err == nil {
		err = v.Keyless()
	}
	if err == nil {
		err = v.notReplicated("records without versions")
	}
	if err != nil {
		r.To.Appended(r, err)
		return
	}
	if b := v.fam.brake.Load(); b != nil {
		b.wait(r)
	}
	r.kind = r.Kind
	if r.Kind == segment.KindData {
		sum(r, !v.Encrypted() && v.e.nv == nil)
	}
	if v.e.nv != nil {
		r.To.Appended(r, v.keep(r, own))
		return
	}
	l, now := v.lane(r.Block), r.Now // the record may have ended once it is in a chunk
	l.mu.Lock()
	err = v.enqueue(l, r, own)
	switch {
	case err != nil:
		l.mu.Unlock()
		r.To.Appended(r, err)
	default:
		l.push(now)
	}
}

// sum computes the checksums outside of any lock and turns a record of zeros into a range of them.
// Without all only the latter: those of what is encrypted follow when it is, those of what goes to
// the journal while it is copied there.
func sum(r *Record, all bool) {
	zero := true
	if !all {
		if allZero(r.Data[:r.Count*segment.BlockSize]) {
			r.kind = segment.KindZero
		}
		return
	}
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
	switch {
	case v.cut != 0:
		return &domain.Error{
			Kind: domain.ReadOnly, Ref: "volume/" + v.volume.String(), Msg: "a cut takes no writes",
		}
	case !v.snapshot.IsZero():
		return &domain.Error{
			Kind: domain.ReadOnly, Ref: "snapshot/" + v.snapshot.String(), Msg: "a snapshot takes no writes",
		}
	case r.Kind < segment.KindData || r.Kind > segment.KindUnmap:
		return domain.Errorf(domain.Invalid, "record of kind %d", r.Kind)
	case r.Count < 1 || r.Count > limit:
		return domain.Errorf(domain.Invalid, "record of %d blocks: 1 to %d", r.Count, limit)
	case int(r.Block%segment.LeafBlocks)+r.Count > segment.LeafBlocks:
		return domain.Errorf(domain.Invalid, "record crosses an extent")
	case r.Kind == segment.KindData && len(r.Data) < r.Count*segment.BlockSize:
		return domain.Errorf(domain.Invalid, "record without its data")
	}
	return v.reaches(r)
}

// reaches tells whether a record ends inside its volume. It is asked again under the lane's mutex,
// where the order is decided between it and the volume's shrinking.
func (v *Volume) reaches(r *Record) error {
	blocks := uint64(v.end.Load()) / segment.BlockSize
	if !r.beyond && (r.Block >= blocks || uint64(r.Count) > blocks-r.Block) {
		return domain.Errorf(domain.OutOfRange, "block %d of %d", r.Block, blocks)
	}
	return nil
}

// enqueue puts a checked record into its lane's open chunk; mu is held, but not while it waits.
func (v *Volume) enqueue(l *lane, r *Record, own *Hold) error {
	n := 0
	if r.kind == segment.KindData {
		n = r.Count * segment.BlockSize
	}
	if l.held(v, r.Block, r.Count, own) {
		v.e.stats.stalls.Add(1)
	}
	for {
		if err := l.dead(); err != nil {
			return err
		}
		if v.gone.Load() {
			return v.missing()
		}
		if err := v.reaches(r); err != nil {
			return err
		}
		if l.mu.cur != nil && !l.mu.cur.takes(v.br.Load().key, n, v.e.payloadMax()) {
			l.mu.cur.full = true
			l.work.Signal()
		}
		if l.mu.cur != nil && !l.mu.cur.full && !l.held(v, r.Block, r.Count, own) {
			break
		}
		l.room.Wait()
	}
	newly, br := int64(0), v.br.Load()
	if r.kind != segment.KindUnmap {
		newly = l.newBytes(br, r)
		if !v.e.space.admit(newly) {
			return v.e.full()
		}
	}
	l.add(br, r, newly)
	return nil
}

// full is the error of a record for which there is no room.
func (e *Engine) full() error {
	return domain.Errorf(domain.NoSpace, "device full: %s of %s used",
		domain.Bytes(e.space.live.Load()), domain.Bytes(e.space.usable.Load()))
}

// newBytes gives the room that a record takes beyond what its blocks have: their data, and the
// index of those that were not mapped. What a snapshot keeps is not given back by writing over it,
// so only what the head wrote itself since the last cut counts.
func (l *lane) newBytes(b *branch, r *Record) int64 {
	absent, unmapped, mapped := int64(r.Count)*segment.BlockSize, r.Count, 0
	if lf := b.fam.leaves[l.no][uint32(r.Block/segment.LeafBlocks)].of(b); lf != nil {
		absent, unmapped, mapped = 0, 0, int(lf.n)
		for i := range r.Count {
			loc := lf.own.get(int(r.Block%segment.LeafBlocks) + i)
			absent += segment.BlockSize // what was compressed may not be any more
			if loc.Kind() == segment.Flash {
				absent -= loc.Room()
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
	return absent + l.e.space.charge(index)
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
func (l *lane) add(b *branch, r *Record, newly int64) {
	c := l.mu.cur
	l.mu.lsn++
	r.Version = domain.Version{
		Epoch: b.epoch, Seq: l.e.versionSeq.Add(1), Node: l.e.cfg.Node,
	}
	p := pending{
		rec: r, br: b, kind: r.kind, block: r.Block, count: r.Count, lsn: l.mu.lsn,
		unit: uint32(c.payload / segment.Unit), crc: len(c.crcs), newly: newly,
	}
	en := segment.Entry{
		Branch: b.id, Block: r.Block, Count: 1, Kind: r.kind, Flags: segment.FlagFresh,
		Version: r.Version, Gen: b.gen, LSN: p.lsn, Request: r.Request,
	}
	if r.kind == segment.KindData {
		n := r.Count * segment.BlockSize
		l.e.fill(c, r, n, b.key == nil)
		c.crcs = append(c.crcs, r.crc[:r.Count]...)
		en.Count, en.Off, en.CRC = r.Count, p.unit, r.crc[0]
		en.Units = uint16(r.Count * segment.BlockUnits)
		if b.key != nil {
			en.Flags |= segment.FlagEncrypted
			c.conceal(secret{b.key, len(c.entries), p.unit, r.Count, segment.BlockSize, p.crc})
		}
	} else {
		en.Range = uint64(r.Count)
	}
	c.encode(&en, r.crc[1:])
	c.recs = append(c.recs, p)
	l.e.stats.records.Add(1)
	l.e.stats.userBytes.Add(int64(r.Count) * segment.BlockSize)
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
	if v.e.nv != nil && v.fam.replica == nil {
		return h, nil // what was appended is in the index
	}
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
