package engine

import (
	"errors"
	"sync"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/cache"
	"weft/dataplane/segment"
	"weft/domain"
)

// readTries bounds how often a read looks a block up again because the cleaner moved it meanwhile.
const readTries = 8

// Read fills dst with count blocks from block on, all inside one extent: len(dst) is count blocks.
// The blocks are one view of the index. Holes read zero. It returns OutOfRange, NotFound, Corrupt
// when the bytes on the device do not match their checksum, and Unavailable when the device fails.
// dst aligned to the device's memory alignment is read into directly.
func (v *Volume) Read(block uint64, count int, dst []byte) error {
	_, err := v.read(block, count, dst)
	return err
}

// read is Read and gives the highest generation of what a replica returned.
func (v *Volume) read(block uint64, count int, dst []byte) (gen uint32, err error) {
	if err := v.inside(block, count); err != nil {
		return 0, err
	}
	if len(dst) != count*segment.BlockSize {
		return 0, domain.Errorf(domain.Invalid, "%d bytes for %d blocks", len(dst), count)
	}
	v.e.stats.reads.Add(1)
	v.e.stats.readBytes.Add(int64(len(dst)))
	rd := readers.Get().(*reader) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	defer rd.release()
	rd.again = false // a read that ended early may have left it
	rd.stream = v.ahead.note(v, block, count)
	for range readTries {
		if err = rd.lookup(v, block, count, dst); err != nil {
			return 0, err
		}
		if err = rd.run(v, block, dst); !errors.Is(err, errStale) {
			return rd.gen, err
		}
	}
	return 0, v.corrupt(block, rd.bad)
}

// inside refuses a range that crosses an extent or the end.
func (v *Volume) inside(block uint64, count int) error {
	blocks := uint64(v.end.Load()) / segment.BlockSize
	if count < 1 || int(block%segment.LeafBlocks)+count > segment.LeafBlocks ||
		block >= blocks || uint64(count) > blocks-block {
		return domain.Errorf(domain.OutOfRange, "%d blocks at %d of %d", count, block, blocks)
	}
	return nil
}

// cachedBlocks is up to how many blocks a read asks the cache: a larger one is served by the device
// as well, and would push out what is read in small pieces. Where it goes on with what the read
// before ended at, it asks for up to streamBlocks: they may have been read ahead.
const (
	cachedBlocks = 16
	streamBlocks = 64
)

// errStale says that bytes did not match the index: moved meanwhile, or corrupt.
var errStale = errors.New("stale")

// reader holds what one read knows of its blocks; pooled, so that a read allocates nothing.
type reader struct {
	loc    [segment.LeafBlocks]segment.Loc
	count  int
	had    uint64 // blocks that came from the cache, by bit
	stream bool   // the read goes on with one before
	gen    uint32 // of a replica: the highest generation of the blocks
	bad    int    // block that did not match
	again  bool
	badLoc segment.Loc
	bounce []byte
	dst    []byte   // of the caller
	block  uint64   // the first
	from   []origin // of encrypted blocks: what opens them; empty for a plain volume
	pad    *pad

	where []int64 // copies of its blocks on the flash of a pair, 0 for none; empty: none at all
	turn  uint64  // of copies, when the places were looked up

	pieces []backends.Read // what is to be read from the device, each in one go
	first  []int           // block with which each begins
	whole  int             // pieces of plain blocks; those behind are of compressed ones
	packed []byte          // what those are read to
	spare  []byte          // a compressed block on its way to its place
	left   atomic.Int32    // pieces under way, and one until all are started
	fail   atomic.Pointer[error]
	owner  *Reading      // told when the last piece is there; nil when a goroutine waits at done
	done   chan struct{} // of capacity 1, made when it is needed

	// most reads are of few pieces
	few      [4]backends.Read
	fewFirst [4]int
}

var readers = sync.Pool{New: func() any {
	rd := &reader{}
	rd.pieces, rd.first = rd.few[:0], rd.fewFirst[:0]
	return rd
}}

// lookup copies the places of the blocks under the lane's mutex, and to dst, unless it is nil, the
// blocks that stand in the journal: their slots may be in other use once the mutex is free.
func (rd *reader) lookup(v *Volume, block uint64, count int, dst []byte) error {
	l := v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	return rd.look(l, v, block, count, dst)
}

// look is lookup with the lane's mutex held. Without again it waits for nothing.
func (rd *reader) look(l *lane, v *Volume, block uint64, count int, dst []byte) error {
	rd.count = count
	if v.gone.Load() {
		return v.missing()
	}
	br := v.br.Load()
	lf := br.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].find(br)
	lf.resolve(int(block%segment.LeafBlocks), rd.loc[:count])
	rd.block, rd.from, rd.gen = block, rd.from[:0], 0
	rd.turn = v.e.copies.turn.Load()
	if rep := br.fam.replica; rep != nil {
		rd.gen = rep.maxGen(l, br, block, count)
	}
	if br.key != nil && dst != nil {
		if br.key.secret == nil {
			return v.locked(br.key)
		}
		rd.origins(v.e, br, lf, int(block%segment.LeafBlocks))
	}
	if v.e.nv != nil && dst != nil {
		v.e.nv.fetch(rd.loc[:count], dst)
	}
	if rd.again && rd.loc[rd.bad] == rd.badLoc {
		rd.again = false
		return v.corrupt(block, rd.bad) // nobody moved it: the bytes are wrong
	}
	rd.again = false
	return nil
}

// run reads the blocks, all pieces at once where the device can, and verifies each.
func (rd *reader) run(v *Volume, block uint64, dst []byte) error {
	if lost := rd.plan(v.e, dst); lost >= 0 {
		return v.corrupt(block, lost)
	}
	starter, ok := v.e.dev.(backends.ReadStarter)
	if ok && len(rd.pieces) > 1 && backends.Aligned(dst, backends.Align) {
		if rd.owner = nil; rd.done == nil {
			rd.done = make(chan struct{}, 1)
		}
		if rd.start(starter, false) {
			<-rd.done
			return rd.check(v)
		}
	}
	for i := range rd.pieces {
		if err := rd.fetch(v.e, rd.pieces[i].Off, rd.pieces[i].P); err != nil {
			return rd.refused(v.e, err)
		}
	}
	return rd.check(v)
}

// plan lists the pieces to be read, neighbours on the device as one, verifies what came from the
// journal and clears what is nowhere. It gives a block that is lost, or -1.
func (rd *reader) plan(e *Engine, dst []byte) (lost int) {
	rd.pieces, rd.first, rd.dst = rd.pieces[:0], rd.first[:0], dst
	packed := false
	rd.recall(e, dst)
	rd.lookCopies(e)
	for i := 0; i < rd.count; {
		n := 1
		switch kind := rd.loc[i].Kind(); { // anything else is lost
		case e.nv.holds(rd.loc[i]):
			if rd.verify(dst[i*segment.BlockSize:], i, 1) >= 0 {
				return i
			}
		case rd.had>>i&1 != 0:
		case kind == segment.Flash && rd.loc[i].Packed():
			packed = true
		case kind == segment.Flash:
			n = rd.together(i)
			rd.pieces = append(rd.pieces, backends.Read{
				P: dst[i*segment.BlockSize : (i+n)*segment.BlockSize], Off: rd.off(i), To: rd,
			})
			rd.first = append(rd.first, i)
		case kind == segment.None, kind == segment.Zero:
			clear(dst[i*segment.BlockSize : (i+1)*segment.BlockSize])
		default:
			return i
		}
		i += n
	}
	if rd.whole = len(rd.pieces); packed {
		rd.planPacked(e)
	}
	return -1
}

// together gives how many blocks from one on, which stands on the device as it is, stand there side
// by side and are to be read from there.
func (rd *reader) together(i int) int {
	n := 1
	for i+n < rd.count && rd.loc[i+n].Kind() == segment.Flash && !rd.loc[i+n].Packed() &&
		rd.had>>(i+n)&1 == 0 && rd.off(i+n) == rd.off(i)+int64(n)*segment.BlockSize {
		n++
	}
	return n
}

// recall fetches what the cache has, verified as if it came from the device.
func (rd *reader) recall(e *Engine, dst []byte) {
	rd.had = 0
	if e.cfg.Reads == nil || rd.count > cachedBlocks && (!rd.stream || rd.count > streamBlocks) {
		return
	}
	for i, loc := range rd.loc[:rd.count] {
		if loc.Kind() != segment.Flash || e.nv.holds(loc) {
			continue
		}
		p := dst[i*segment.BlockSize:]
		switch {
		case !e.cfg.Reads.Get(e.placeOf(loc), p):
		case rd.verify(p, i, 1) < 0:
			rd.had |= 1 << i
		default:
			e.cfg.Reads.Drop(e.placeOf(loc))
		}
	}
}

// remember offers the cache what the device gave and what was verified.
func (rd *reader) remember(e *Engine) {
	if e.cfg.Reads == nil || rd.count > cachedBlocks || rd.stream {
		return
	}
	for i, loc := range rd.loc[:rd.count] {
		if loc.Kind() != segment.Flash || e.nv.holds(loc) || rd.had>>i&1 != 0 {
			continue
		}
		if again := e.cfg.Reads.Put(e.placeOf(loc), rd.dst[i*segment.BlockSize:]); again {
			e.promote(loc, rd.dst[i*segment.BlockSize:][:loc.Stored()], rd.turn)
		}
	}
}

// placeOf names a block of the device for the cache.
func (e *Engine) placeOf(loc segment.Loc) cache.Key {
	return cache.Key{Device: e.cached, Place: uint64(loc)}
}

// check gives the error of a device, or errStale with the first block that does not match.
func (rd *reader) check(v *Volume) error {
	if err := rd.fail.Swap(nil); err != nil {
		if *err == errStale { //nolint:errorlint // tryStart sets it bare
			return errStale
		}
		return rd.refused(v.e, *err)
	}
	for k := range rd.pieces[:rd.whole] {
		p, i := rd.pieces[k].P, rd.first[k]
		if bad := rd.verify(p, i, len(p)/segment.BlockSize); bad >= 0 {
			return rd.stale(v.e, bad)
		}
	}
	if bad := rd.scatter(v.e); bad >= 0 {
		return rd.stale(v.e, bad)
	}
	if len(rd.where) > 0 {
		v.e.stats.copyReads.Add(1)
	}
	rd.remember(v.e)
	if v.e.space.disk != nil {
		rd.warm(v.e)
	}
	if len(rd.from) > 0 {
		if err := rd.reveal(v); err != nil {
			return err
		}
	}
	return rd.unpack(v.e)
}

// refused gives the error of a device, or errStale where the disk of a pair has what was asked of a
// copy.
func (rd *reader) refused(e *Engine, err error) error {
	if rd.forget(e) {
		return errStale
	}
	return e.device(err, "engine.Read")
}

// stale notes a block that does not match. Where there were copies the next try does without.
func (rd *reader) stale(e *Engine, bad int) error {
	if rd.forget(e) {
		return errStale
	}
	rd.bad, rd.badLoc, rd.again = bad, rd.loc[bad], true
	return errStale
}

// release gives the reader back without what belongs to others.
func (rd *reader) release() {
	clear(rd.pieces)
	clear(rd.from)
	rd.pieces, rd.owner, rd.dst, rd.from = rd.pieces[:0], nil, nil, rd.from[:0]
	rd.whole, rd.where = 0, rd.where[:0]
	readers.Put(rd)
}

// fetch reads from the device, through a buffer of ours when the caller's is not aligned.
func (rd *reader) fetch(e *Engine, off int64, p []byte) error {
	if backends.Aligned(p, backends.Align) {
		return e.dev.ReadAt(p, off)
	}
	if len(rd.bounce) < len(p) {
		rd.bounce = backends.AlignedBuffer(len(p))
	}
	if err := e.dev.ReadAt(rd.bounce[:len(p)], off); err != nil {
		return err
	}
	copy(p, rd.bounce)
	return nil
}

// verify gives the first block of n from i on whose bytes do not match, or -1.
func (rd *reader) verify(p []byte, i, n int) int {
	for j := range n {
		if !rd.loc[i+j].Matches(p[j*segment.BlockSize : (j+1)*segment.BlockSize]) {
			return i + j
		}
	}
	return -1
}

// corrupt reports a block whose bytes cannot be trusted and gives the error.
func (v *Volume) corrupt(block uint64, i int) error {
	b := block + uint64(i)
	v.e.report(Fact{What: "corrupt", Volume: v.volume, Block: b, Detail: "checksum mismatch"})
	return &domain.Error{
		Op: "engine.Read", Kind: domain.Corrupt, Ref: "volume/" + v.volume.String(),
		Msg: "block " + domain.Position(b).String() + " does not match its checksum",
	}
}

// Extents appends how count blocks from block on, inside one extent, are allocated; neighbours of
// one kind are joined. Offsets are bytes. Errors: OutOfRange, NotFound.
func (v *Volume) Extents(block uint64, count int, dst []domain.Extent) ([]domain.Extent, error) {
	if err := v.inside(block, count); err != nil {
		return dst, err
	}
	rd := readers.Get().(*reader) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	defer readers.Put(rd)
	rd.again = false
	if err := rd.lookup(v, block, count, nil); err != nil {
		return dst, err
	}
	for i := range count {
		k := rd.loc[i].Kind()
		x := domain.Extent{
			Off: int64(block+uint64(i)) * segment.BlockSize, Len: segment.BlockSize,
			Hole: k == segment.None, Zero: k == segment.None || k == segment.Zero,
		}
		if n := len(dst); n > 0 && dst[n-1].Hole == x.Hole && dst[n-1].Zero == x.Zero &&
			dst[n-1].Off+dst[n-1].Len == x.Off {
			dst[n-1].Len += x.Len
			continue
		}
		dst = append(dst, x)
	}
	return dst, nil
}
