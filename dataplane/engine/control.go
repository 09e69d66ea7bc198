package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"weft/dataplane/segment"
	"weft/domain"
)

// VolumeInfo describes a volume or a snapshot on a device. Own and Shared make up what it sees of
// data, as much room as that takes; the Own of all of a device, Kept included, is what lives on it.
// They are counted as records come and say who wrote, not who sees: what a deletion gives back is
// another question, and Sharing's to answer.
type VolumeInfo struct {
	ID         domain.VolumeID
	Snapshot   domain.SnapshotID // zero for a volume
	Generation uint32            // stamped into its records
	Encrypted  bool
	Size       domain.Bytes
	Mapped     domain.Bytes // blocks that hold data or written zeros
	Own        domain.Bytes // data that it wrote since the cut before
	Shared     domain.Bytes // data that it sees and older snapshots wrote
	Saved      domain.Bytes // by which compression makes Own and Shared smaller than the data
}

// Volume gives a volume by its id.
func (e *Engine) Volume(id domain.VolumeID) (*Volume, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	v, ok := e.mu.byVolume[id]
	return v, ok
}

// Volumes lists the volumes on the device, the eldest head first.
func (e *Engine) Volumes() []*Volume {
	e.mu.RLock()
	defer e.mu.RUnlock()
	list := make([]*Volume, 0, len(e.mu.byVolume))
	for _, v := range e.mu.byVolume {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *Volume) int { return int(a.br.Load().id) - int(b.br.Load().id) })
	return list
}

// Info tells what a volume holds. It takes no lock: it is asked for every volume of a list.
func (v *Volume) Info() VolumeInfo {
	b := v.br.Load()
	own, saved := b.own.Load(), b.saved.Load()
	return VolumeInfo{
		ID: v.volume, Snapshot: v.snapshot, Generation: b.gen, Size: v.Size(), Encrypted: b.key != nil,
		Mapped: domain.Bytes(b.mapped.Load()) * segment.BlockSize,
		Own:    domain.Bytes(own),
		Shared: domain.Bytes(b.data.Load()*segment.BlockSize - saved - own),
		Saved:  domain.Bytes(saved),
	}
}

// Create makes a volume of a size, a multiple of the extent. Creating the same volume again is a
// success if the size agrees, Exists otherwise. Durable on return.
func (e *Engine) Create(ctx context.Context, id domain.VolumeID, size domain.Bytes,
	epoch domain.Epoch,
) (*Volume, error) {
	return e.create(ctx, id, size, epoch, segment.Branch{})
}

// CreateEncrypted is Create for a volume that is encrypted for all its life, under a key of its
// own. More errors: Unavailable without a cluster key, Unsupported on a device that was formatted
// without a key table, TooLarge where that is full.
func (e *Engine) CreateEncrypted(ctx context.Context, id domain.VolumeID, size domain.Bytes,
	epoch domain.Epoch,
) (*Volume, error) {
	return e.create(ctx, id, size, epoch, segment.Branch{Key: 1})
}

// create makes a volume; of br, Replica and whether Key is not 0 say of what kind, and Gen with
// what generation it begins.
func (e *Engine) create(ctx context.Context, id domain.VolumeID, size domain.Bytes,
	epoch domain.Epoch, br segment.Branch,
) (*Volume, error) {
	e.control.Lock()
	defer e.control.Unlock()
	if v, ok := e.Volume(id); ok {
		replica := v.fam.replica != nil
		if v.Size() != size || v.Encrypted() != (br.Key != 0) || replica != br.Replica {
			return nil, domain.Errorf(domain.Exists, "volume %s has %s, encrypted: %t, replica: %t", id,
				v.Size(), v.Encrypted(), replica)
		}
		return v, nil
	}
	if e.lies(id) {
		return nil, domain.Errorf(domain.Exists, "volume %s was a replica and was deleted for ever", id)
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	br.ID = e.newBranch()
	br.Family, br.State, br.Volume, br.Size = br.ID, segment.BranchLive, id, uint64(size)
	br.Gen, br.Epoch = max(br.Gen, 1), epoch
	if br.Key != 0 {
		br.Key = br.ID
		if err := e.newKey(br.Key); err != nil {
			return nil, err
		}
	}
	if err := e.logBranches(ctx, br); err != nil {
		return nil, err
	}
	v, _ := e.Volume(id)
	return v, nil
}

func checkSize(size domain.Bytes) error {
	if size < domain.VolumeMin || size%domain.VolumeMin != 0 || size > domain.VolumeMax {
		return domain.Errorf(domain.Invalid, "volume size %s: a multiple of %s up to %s",
			size, domain.VolumeMin, domain.VolumeMax)
	}
	return nil
}

// newBranch gives a branch id that was never given out.
func (e *Engine) newBranch() uint32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.mu.nextBranch
	e.mu.nextBranch++
	return next
}

// Resize changes a volume's size; its snapshots keep theirs. What a volume that shrinks has beyond
// its new end is gone for good, but for what snapshots hold: after growing again it reads as zeros.
// Durable on return. Where shrinking fails the volume keeps its size, and parts of what stood
// beyond may be zeros.
func (e *Engine) Resize(ctx context.Context, id domain.VolumeID, size domain.Bytes) error {
	e.control.Lock()
	defer e.control.Unlock()
	v, ok := e.Volume(id)
	switch {
	case !ok:
		return notFound(id)
	case size == v.Size():
		return nil
	}
	if err := checkSize(size); err != nil {
		return err
	}
	if size < v.Size() {
		if err := v.notReplicated("smaller size"); err != nil {
			return err
		}
		v.end.Store(int64(size))
		defer func() { v.end.Store(v.size.Load()) }() // whatever came of it
		if err := e.truncate(ctx, v, size); err != nil {
			return err
		}
	}
	br := e.lineOf(v)
	br.Size = uint64(size)
	return e.logBranches(context.WithoutCancel(ctx), br)
}

// truncate makes holes of all that a volume has from a size on, durably; nobody writes there any
// more. That goes before the record of the new size, so that a crash at any point is harmless:
// whoever sees that size, and grows the volume again, finds nothing. The caller holds control.
func (e *Engine) truncate(ctx context.Context, v *Volume, size domain.Bytes) error {
	cut, first := &cutting{}, uint32(size/domain.VolumeMin)
	for _, l := range e.lanes {
		l.mu.Lock()
		var beyond []uint32
		for ext := range v.fam.leaves[l.no] {
			if ext >= first {
				beyond = append(beyond, ext)
			}
		}
		l.mu.Unlock()
		slices.Sort(beyond)
		for _, ext := range beyond {
			if ctx.Err() != nil {
				break
			}
			cut.Add(1)
			v.Append(&Record{
				Kind: segment.KindUnmap, Block: uint64(ext) * segment.LeafBlocks,
				Count: segment.LeafBlocks, To: cut, beyond: true,
			})
		}
	}
	cut.Wait()
	if ctx.Err() != nil {
		return &domain.Error{Op: "engine.Resize", Kind: domain.Aborted, Err: ctx.Err()}
	}
	if err := cut.failed.Load(); err != nil {
		return *err
	}
	return e.Flush(ctx) // a volatile journal must not lose the holes where the log keeps the size
}

// cutting waits for the records of a truncation.
type cutting struct {
	sync.WaitGroup
	failed atomic.Pointer[error]
}

// Appended implements Appender.
func (c *cutting) Appended(_ *Record, err error) {
	if err != nil {
		c.failed.CompareAndSwap(nil, &err)
	}
	c.Done()
}

// lineOf gives the line of the branch that a volume or snapshot names.
func (e *Engine) lineOf(v *Volume) segment.Branch {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return v.br.Load().line()
}

// Delete buries a volume: what only it saw is gone for good and the space free for others once the
// next checkpoint is taken. Its snapshots stay. Deleting what is not there is a success. Durable on
// return.
func (e *Engine) Delete(ctx context.Context, id domain.VolumeID) error {
	e.control.Lock()
	v, ok := e.Volume(id)
	if !ok {
		e.control.Unlock()
		return nil
	}
	return e.burial(ctx, v)
}

// burial takes a name away and gives back what nobody else sees. It unlocks control, which is held,
// before it waits for that.
func (e *Engine) burial(ctx context.Context, v *Volume) error {
	br := e.lineOf(v)
	br.State = segment.BranchBuried
	// The wait cannot be cut short: a burial whose outcome nobody awaits would leave its space taken.
	err := e.logBranches(context.WithoutCancel(ctx), br)
	b := v.br.Load()
	e.control.Unlock()
	if err != nil {
		return err
	}
	if v.cut != 0 {
		for _, l := range e.lanes { // copies on their way to it, or to the branch above
			if err := l.catchUp(); err != nil {
				return err
			}
		}
	}
	e.sweep(b)
	e.control.Lock()
	defer e.control.Unlock()
	return e.dropKeys()
}

// branchWait carries a BRANCH record's outcome to whoever logged it.
type branchWait chan error

// Appended implements Appender.
func (w branchWait) Appended(_ *Record, err error) { w <- err }

// logBranches writes the new states of some branches to the first lane's log, as one record, and
// waits for it. They enter the engine's tables together when it is durable, in LSN order like
// everything else. The caller holds control.
func (e *Engine) logBranches(ctx context.Context, lines ...segment.Branch) error {
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
	var body []byte
	for i := range lines {
		body = lines[i].Append(body)
	}
	at := segment.HeaderMax + c.payload
	clear(c.buf[at : at+segment.Sector])
	copy(c.buf[at:], body)
	en := segment.Entry{
		Branch: lines[0].ID, Count: len(lines), Kind: segment.KindBranch, LSN: l.mu.lsn,
		Off: uint32(c.payload / segment.Unit), Units: uint16(segment.BranchUnits(len(lines))),
		CRC: segment.Checksum(body),
	}
	c.encode(&en, nil)
	c.payload += segment.Sector
	c.recs = append(c.recs, pending{
		rec: &Record{To: w}, kind: segment.KindBranch, lsn: l.mu.lsn, lines: lines,
	})
	l.mu.Unlock()
	l.work.Signal()
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return &domain.Error{
			Op: "engine.logBranches", Kind: domain.Aborted, Err: ctx.Err(),
			Msg: fmt.Sprintf("outcome of branch %d unknown", lines[0].ID),
		}
	}
}
