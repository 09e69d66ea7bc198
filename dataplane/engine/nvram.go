package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"weft/dataplane/checksum"
	"weft/dataplane/journal"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// nvram is the engine's journal: a log above the lanes' logs. A host's record is stored in its
// lane's open slot, enters the index with its place there, and is acknowledged before Append
// returns. The destager takes the oldest slots, drops what was overwritten, sorts the rest where
// that wins anything, and logs it as records of the lanes; when those are durable the index is
// pointed at them, each block if nobody wrote it meanwhile, and the slots are free.
//
//	Append -> slot: entry, data, commit word -> index -> Appended
//	                  |  oldest slots
//	                  +-> live, sorted -> [chunks] -> queue -> write -> one flush -> index -> free
//	                      a batch                     up to three groups
//
// A place in the journal is an address above the device's own, so a leaf needs no other form for
// it. No image of a leaf holds one: there such a block is lost, and the journal, or the log behind
// the image, finds it again.
//
// After a crash the journal is replayed on top of the device, all of it that is not free, in the
// order of each lane. That is right however much of it was destaged, because a lane's slots become
// free from the oldest on: if a slot is there then so is every later record of its lane, so the
// last record of a block that the journal holds is the last there ever was.
//
// What a record of an encrypted volume carries is closed while it is put, and opened when it is
// read, destaged or scrubbed (crypt.go); its checksums are over the cipher text.
//
// All methods but holds, id and those that say so need a receiver that is not nil.
type nvram struct {
	e     *Engine
	share *journal.Share
	base  uint32 // address of the journal's first block, in blocks; the device ends below
	slots []nvSlot
	salt  segment.Salt // of this start, for the keys of what is encrypted
	// lendable says that the device may write from the journal's memory.
	lendable bool
	clock    tier.Clock
	used     atomic.Int64 // slots that are not free

	mu struct {
		sync.Mutex
		free  []int
		queue []*nvSlot // in use, the oldest first
		next  uint64    // sequence of the next slot
		want  uint64    // slots up to this sequence are to be destaged whatever the fill
		away  int64     // slots of batches under way
		ended bool
	}
	freed *sync.Cond // on mu: slots became free, or there is no more hope

	pace struct {
		sync.Mutex
		state tier.State
		last  time.Duration // of the clock: when slots became free last
		owed  atomic.Int64  // bytes that were written since somebody asked; not guarded
	}
	wakeup chan struct{}
	halt   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
	turn   sync.Mutex // held while a batch is destaged
	// keyless are branches whose key is not there, and of which the journal holds records: they can go
	// nowhere without it, since there they are closed anew.
	keyless []*branch
	batch   batch // guarded by turn
}

// nvSlot is a slot and how many bytes of it the index names.
type nvSlot struct {
	journal.Slot
	live atomic.Int64
	// held counts the records of replicas that are to go from here to the log.
	held atomic.Int32
	life *life // of its keys; nil: nothing in it is encrypted. Changed while the index names nothing
	away bool  // its batch is under way; guarded by nvram.mu
	// leaves are, by block, those that named it first; nil: not known. Guarded by the lane's mutex.
	leaves []*leaf
}

func newNVRAM(e *Engine, share *journal.Share, base uint32) *nvram {
	n := &nvram{e: e, share: share, base: base, clock: e.clock()}
	n.lendable = lendable(e.dev, share)
	n.slots = make([]nvSlot, share.Slots())
	n.freed = sync.NewCond(&n.mu)
	n.wakeup, n.halt = make(chan struct{}, 1), make(chan struct{})
	return n
}

// holds tells whether a place is one in the journal; n may be nil.
func (n *nvram) holds(loc segment.Loc) bool { return n != nil && uint64(loc)>>32 >= uint64(n.base) }

// id gives the journal's identity; 0 where n is nil.
func (n *nvram) id() uint64 {
	if n == nil {
		return 0
	}
	return n.share.Header().ID
}

// place gives a place in the journal from a location that it holds.
func (n *nvram) place(loc segment.Loc) uint32 { return uint32(uint64(loc)>>32) - n.base }

// loc gives the location of a block in the journal.
func (n *nvram) loc(place, crc uint32) segment.Loc {
	return segment.MakeLoc((uint64(n.base)+uint64(place))*segment.BlockUnits, crc)
}

func (n *nvram) slotAt(loc segment.Loc) *nvSlot { return &n.slots[n.share.SlotOf(n.place(loc))] }

// fetch copies the blocks that stand in the journal to dst. The lane's mutex is held.
func (n *nvram) fetch(locs []segment.Loc, dst []byte) {
	for i, loc := range locs {
		if n.holds(loc) {
			copy(dst[i*segment.BlockSize:], n.share.At(n.place(loc), 1))
		}
	}
}

// leaveOut makes the blocks that stand in the journal lost in an image; n may be nil. If the
// journal is gone after a crash they read as corrupt, not as what they were before.
func (n *nvram) leaveOut(locs *[segment.LeafBlocks]segment.Loc) {
	if n == nil {
		return
	}
	for i, loc := range locs {
		if n.holds(loc) {
			locs[i] = segment.LostLoc
		}
	}
}

// keep takes a checked record into the journal. It is durable, as far as the journal is, and in
// the index when keep returns nil.
func (v *Volume) keep(r *Record, own *Hold) error {
	v.e.nv.wait(r.paced())
	l := v.lane(r.Block)
	l.seize()
	defer l.mu.Unlock()
	if l.held(v, r.Block, r.Count, own) {
		v.e.stats.stalls.Add(1)
	}
	for {
		if err := l.dead(); err != nil {
			return err
		}
		if err := v.reaches(r); err != nil {
			return err
		}
		if v.gone.Load() {
			return v.missing()
		}
		if err := v.reaches(r); err != nil {
			return err
		}
		if !l.held(v, r.Block, r.Count, own) && l.slotFor(r, v.Encrypted()) {
			return l.keep(v.br.Load(), r)
		}
		l.room.Wait()
	}
}

// journalEntry is what a record without data counts for the pace of writers, in bytes.
const journalEntry = segment.EntrySettled + segment.EntryFresh

// paced gives what a record counts for the pace of writers, in bytes.
func (r *Record) paced() int64 {
	if r.kind == segment.KindData {
		return int64(r.Count) * segment.BlockSize
	}
	return journalEntry
}

// paceStep is for how many bytes together writers ask how long they have to wait: for less that is
// next to nothing, and to ask takes a tenth of a write of 4 KiB.
const paceStep = 64 << 10

// wait holds a writer back while the journal is full beyond what destaging is to hold.
func (n *nvram) wait(bytes int64) {
	fill := n.fill()
	if fill <= tier.FillSlow || n.pace.owed.Add(bytes) < paceStep {
		return
	}
	bytes = n.pace.owed.Swap(0)
	n.pace.Lock()
	var d time.Duration
	n.pace.state, d = n.pace.state.Admit(n.clock.Now(), bytes, fill)
	n.pace.Unlock()
	if d > 0 {
		n.e.stats.delayed.Add(1)
		n.clock.Sleep(d)
	}
}

// fill gives how much of the journal is in use, in parts of tier.FillWhole.
func (n *nvram) fill() int { return n.part(n.used.Load()) }

// part gives so many slots as parts of tier.FillWhole.
func (n *nvram) part(slots int64) int { return int(slots) * tier.FillWhole / len(n.slots) }

// slotFor makes sure that the lane's open slot takes the record, of an encrypted volume or of
// another; false when the journal is full. The lane's mutex is held.
func (l *lane) slotFor(r *Record, secret bool) bool {
	blocks, entry := 0, journalEntry
	if r.kind == segment.KindData {
		blocks, entry = r.Count, entry+4*(r.Count-1)
		if secret {
			entry += segment.TagBytes * r.Count
		}
	}
	return l.slotOf(entry, blocks)
}

// slotOf is slotFor for a record with so many bytes of entry and blocks of data.
func (l *lane) slotOf(entry, blocks int) bool {
	n := l.e.nv
	if l.mu.slot != nil && n.share.Fits(&l.mu.slot.Slot, entry, blocks) {
		return true
	}
	n.sealSlot(l)
	l.mu.slot = n.take(l.no)
	return l.mu.slot != nil
}

// sealSlot lets the lane's open slot take no more; the lane's mutex is held.
func (n *nvram) sealSlot(l *lane) {
	if l.mu.slot == nil {
		return
	}
	n.mu.Lock()
	n.share.Seal(&l.mu.slot.Slot)
	n.mu.Unlock()
	l.mu.slot = nil
}

// take opens a free slot for a lane; nil when there is none.
func (n *nvram) take(lane uint8) *nvSlot {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.mu.free) == 0 {
		n.e.stats.full.Add(1)
		n.kick()
		return nil
	}
	no := n.mu.free[0]
	n.mu.free = append(n.mu.free[:0], n.mu.free[1:]...)
	sl := &n.slots[no]
	n.share.Open(&sl.Slot, no, lane, n.mu.next, n.salt)
	sl.life = n.lifeOf(&sl.Slot)
	if sl.leaves == nil {
		sl.leaves = make([]*leaf, n.share.SlotBlocks())
	}
	n.mu.next++
	n.mu.queue = append(n.mu.queue, sl)
	n.used.Add(1)
	if fill := n.fill(); fill >= tier.FillStart {
		n.kick()
		if fill > tier.FillSlow {
			n.e.sched.Rouse(qos.Destage)
		}
	}
	return sl
}

// keep stores a record in the lane's open slot, which takes it, and enters it. The lane's mutex
// is held.
func (l *lane) keep(b *branch, r *Record) error {
	e, newly := l.e, int64(0)
	if r.kind != segment.KindUnmap && !e.space.ample(len(e.lanes)) {
		newly = l.newBytes(b, r)
		if !e.space.admit(newly) {
			return e.full()
		}
	}
	r.Version = domain.Version{
		Epoch: b.epoch, Seq: e.versionSeq.Add(1), Node: e.cfg.Node,
	}
	en := segment.Entry{
		Branch: b.id, Block: r.Block, Count: 1, Kind: r.kind, Flags: segment.FlagFresh,
		Version: r.Version, Gen: b.gen, Request: r.Request,
	}
	p := pending{br: b, kind: r.kind, block: r.Block, count: r.Count}
	if r.kind == segment.KindData {
		en.Count, en.Units = r.Count, uint16(r.Count*segment.BlockUnits)
		data, crcs := r.Data[:r.Count*segment.BlockSize], r.crc[:r.Count]
		by := journal.Sealer((*summer)(r))
		if b.key != nil {
			en.Flags |= segment.FlagEncrypted
			l.sealer.key, l.sealer.life = b.key, l.mu.slot.life
			crcs, by = l.sealer.crcs[:r.Count], &l.sealer
		}
		lf := l.leaf(b, r.Block)
		if lf != nil {
			lf.own.soon(int(r.Block % segment.LeafBlocks)) // while the data is copied
		}
		place := e.nv.share.Put(&l.mu.slot.Slot, &en, nil, crcs[1:], data, by)
		base := (uint64(e.nv.base) + uint64(place)) * segment.BlockUnits
		l.setBlocks(lf, &p, base, crcs)
		l.mu.slot.leaves[place-e.nv.share.Start(l.mu.slot.No)] = lf
	} else {
		en.Range = uint64(r.Count)
		e.nv.share.Put(&l.mu.slot.Slot, &en, nil, nil, nil, nil)
		loc := segment.ZeroLoc
		if r.kind == segment.KindUnmap {
			loc = segment.HoleLoc
		}
		l.setRange(&p, loc)
	}
	if newly != 0 {
		e.space.admitted.Add(-newly)
	}
	e.stats.records.Add(1)
	e.stats.userBytes.Add(int64(r.Count) * segment.BlockSize)
	return nil
}

// summer is a record whose blocks are summed while they are copied to the journal.
type summer Record

// Seal implements journal.Sealer for what is not encrypted.
func (s *summer) Seal(entry []byte, _ uint32, dst, data []byte) {
	for k := range len(data) / segment.BlockSize {
		at := k * segment.BlockSize
		s.crc[k] = checksum.CopyPast(dst[at:], data[at:at+segment.BlockSize])
		segment.PutSum(entry, k, s.crc[k])
	}
}

// kick wakes the destager.
func (n *nvram) kick() {
	select {
	case n.wakeup <- struct{}{}:
	default:
	}
}

// start starts the destager; n may be nil.
func (n *nvram) start() {
	if n == nil {
		return
	}
	n.done.Add(1)
	go func() {
		defer n.done.Done()
		for {
			select {
			case <-n.halt:
				return
			case <-n.wakeup:
			}
			if err := n.destage(); err != nil {
				n.e.fail(err)
			}
		}
	}()
	n.kick()
}

// stop ends the destager behind the batch under way; n may be nil.
func (n *nvram) stop() {
	if n == nil {
		return
	}
	n.once.Do(func() { close(n.halt) })
	n.done.Wait()
	n.wake()
}

// wake ends the waits for destaging for good; n may be nil.
func (n *nvram) wake() {
	if n == nil {
		return
	}
	n.mu.Lock()
	n.mu.ended = true
	n.mu.Unlock()
	n.freed.Broadcast()
}

// drain destages all that was acknowledged before the call.
func (n *nvram) drain(ctx context.Context) error {
	for _, l := range n.e.lanes {
		l.mu.Lock()
		n.sealSlot(l)
		l.mu.Unlock()
	}
	defer context.AfterFunc(ctx, n.freed.Broadcast)()
	n.mu.Lock()
	defer n.mu.Unlock()
	last := n.mu.next - 1
	n.mu.want = max(n.mu.want, last)
	n.kick()
	for len(n.mu.queue) > 0 && n.mu.queue[0].Sequence <= last {
		switch {
		case ctx.Err() != nil:
			return &domain.Error{Op: "engine.Flush", Kind: domain.Aborted, Err: ctx.Err()}
		case n.mu.ended:
			return domain.Errorf(domain.Unavailable, "engine ended; the journal keeps its records")
		}
		n.freed.Wait()
	}
	return nil
}

// read adds the journal to a reading.
func (n *nvram) read(s *Stats) {
	slot := int64(n.share.SlotBlocks()) * segment.BlockSize
	s.JournalBytes, s.JournalUsed = int64(len(n.slots))*slot, n.used.Load()*slot
	s.DestagedBytes, s.Destages = n.e.stats.destaged.Load(), n.e.stats.destages.Load()
	s.JournalDelayed, s.JournalFull = n.e.stats.delayed.Load(), n.e.stats.full.Load()
}
