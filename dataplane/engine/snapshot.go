package engine

import (
	"context"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// Cut asks for a snapshot of one volume.
type Cut struct {
	Volume   domain.VolumeID
	Snapshot domain.SnapshotID
	// Generation is the one that ends with the cut: records of the volume carry a higher one from
	// then on. 0 means the volume's own; a lower one than that was cut before and is refused.
	Generation uint32
}

// SnapshotsMax is the most volumes that one call of Snapshot cuts: two lines each in one record.
const SnapshotsMax = segment.BranchesMax / 2

// Snapshot freezes what the volumes hold, all at one instant: a record that was acknowledged before
// the call is in, one appended after its return is not, and of two records the one that was
// appended when the other was acknowledged is in only if that one is. It takes one record of the
// log, whatever the sizes, and stops no writer. Durable on return, and complete: nothing of a
// snapshot changes any more. A crash leaves all of the cuts or none.
//
// Taking a snapshot again under its id is a success. Errors: NotFound, Exists where the id belongs
// to another volume's, Conflict for a generation that has ended, TooLarge for too many cuts or too
// many branches in a family, Aborted when ctx ends first: then it may be there or not.
func (e *Engine) Snapshot(ctx context.Context, cuts ...Cut) error {
	e.control.Lock()
	defer e.control.Unlock()
	if len(cuts) > SnapshotsMax {
		return domain.Errorf(domain.TooLarge, "%d volumes at once: at most %d", len(cuts), SnapshotsMax)
	}
	var lines []segment.Branch
	for i, c := range cuts {
		if slices.ContainsFunc(cuts[:i], func(o Cut) bool {
			return o.Volume == c.Volume || o.Snapshot == c.Snapshot
		}) {
			return domain.Errorf(domain.Invalid, "volume or snapshot named twice")
		}
		two, err := e.cut(c)
		if err != nil {
			return err
		}
		lines = append(lines, two...)
	}
	if len(lines) > 0 {
		if err := e.logBranches(ctx, lines...); err != nil {
			return err
		}
	}
	for _, c := range cuts {
		if s, ok := e.snapshot(c.Snapshot); ok {
			if err := s.drain(); err != nil {
				return err
			}
		}
	}
	return nil
}

// cut gives the lines of one cut: what was the head is frozen, and a new head stands on it. None
// when the snapshot is there.
func (e *Engine) cut(c Cut) ([]segment.Branch, error) {
	v, ok := e.Volume(c.Volume)
	if !ok {
		return nil, notFound(c.Volume)
	}
	if err := v.notReplicated("snapshots"); err != nil {
		return nil, err
	}
	if c.Snapshot.IsZero() {
		return nil, domain.Errorf(domain.Invalid, "a snapshot needs an id")
	}
	if s, ok := e.snapshot(c.Snapshot); ok {
		if s.volume != c.Volume || s.fam != v.fam {
			return nil, domain.Errorf(domain.Exists, "snapshot %s is of volume %s", c.Snapshot, s.volume)
		}
		return nil, nil
	}
	old := e.lineOf(v)
	if c.Generation != 0 && c.Generation < old.Gen {
		return nil, domain.Errorf(domain.Conflict, "volume %s is in generation %d, not %d", c.Volume,
			old.Gen, c.Generation)
	}
	if err := e.roomFor(v.fam); err != nil {
		return nil, err
	}
	head := old
	head.ID, head.Parent, head.Gen = e.newBranch(), old.ID, max(old.Gen, c.Generation)+1
	old.State, old.Snapshot = segment.BranchFrozen, c.Snapshot
	return []segment.Branch{old, head}, nil
}

// roomFor refuses one branch too many.
func (e *Engine) roomFor(f *family) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if f.branches >= familyMax {
		return domain.Errorf(domain.TooLarge, "%d snapshots and clones of one volume: at most %d",
			f.branches, familyMax)
	}
	return nil
}

// snapshot gives a snapshot by its id, complete or not.
func (e *Engine) snapshot(id domain.SnapshotID) (*Volume, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	v, ok := e.mu.bySnapshot[id]
	return v, ok
}

// drain waits until every record that was appended before the cut is in. Unavailable when the
// engine ended before.
func (v *Volume) drain() error {
	for i, l := range v.e.lanes {
		if err := l.reach(v.sealed[i]); err != nil {
			return err
		}
	}
	return nil
}

// reach waits until all records up to an LSN have their outcome in the index.
func (l *lane) reach(lsn uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.mu.applied < lsn {
		if err := l.dead(); err != nil && l.mu.head == nil {
			return err
		}
		l.room.Wait()
	}
	return nil
}

// catchUp waits until all that the lane has given an LSN so far is in the index.
func (l *lane) catchUp() error {
	l.mu.Lock()
	last := l.mu.lsn
	l.mu.Unlock()
	return l.reach(last)
}

// OpenSnapshot gives a snapshot, to be used like a volume that takes no writes; false when there is
// none. It waits for a cut under way.
func (e *Engine) OpenSnapshot(id domain.SnapshotID) (*Volume, bool) {
	v, ok := e.snapshot(id)
	if !ok || v.drain() != nil {
		return nil, false
	}
	return v, true
}

// Snapshots lists the snapshots that were cut from a volume, the eldest first. They outlive it.
func (e *Engine) Snapshots(id domain.VolumeID) []*Volume {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var list []*Volume
	for _, v := range e.mu.bySnapshot {
		if v.volume == id {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *Volume) int { return int(a.br.Load().id) - int(b.br.Load().id) })
	return list
}

// Clone makes a volume that begins as a snapshot: writable at once, whatever the size, of the
// snapshot's size and in its family. A clone of what is encrypted is encrypted, under a key of its
// own. Cloning again is a success if the volume stands on that snapshot, Exists otherwise. Durable
// on return. Errors as Snapshot's and, about keys, CreateEncrypted's.
func (e *Engine) Clone(ctx context.Context, from domain.SnapshotID, id domain.VolumeID,
	epoch domain.Epoch,
) (*Volume, error) {
	e.control.Lock()
	defer e.control.Unlock()
	s, ok := e.snapshot(from)
	if !ok {
		return nil, noSnapshot(from)
	}
	if v, ok := e.Volume(id); ok {
		if !e.standsOn(v, s) {
			return nil, domain.Errorf(domain.Exists, "volume %s is no clone of snapshot %s", id, from)
		}
		return v, nil
	}
	head, err := e.headOn(s, id)
	if err != nil {
		return nil, err
	}
	head.Epoch = epoch
	if head.Key != 0 { // its own, so that it can be destroyed when the clone is
		head.Key = head.ID
		if err := e.newKey(head.Key); err != nil {
			return nil, err
		}
	}
	if err := e.logBranches(ctx, head); err != nil {
		return nil, err
	}
	v, _ := e.Volume(id)
	return v, nil
}

// standsOn tells whether a volume's line goes back to a snapshot.
func (e *Engine) standsOn(v, s *Volume) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return v.fam == s.fam && v.volume != s.volume && s.br.Load().covers(v.br.Load())
}

// headOn gives the line of a new head on a snapshot. Its generation is above the snapshot's, so
// that generations rise along every line.
func (e *Engine) headOn(s *Volume, id domain.VolumeID) (segment.Branch, error) {
	if err := e.roomFor(s.fam); err != nil {
		return segment.Branch{}, err
	}
	br := e.lineOf(s)
	br.ID, br.Parent, br.State = e.newBranch(), br.ID, segment.BranchLive
	br.Gen++
	br.Volume, br.Snapshot = id, domain.SnapshotID{}
	return br, nil
}

// Rollback makes a volume what it was at one of its snapshots, size included, whatever the size.
// What was written since goes, but for what other snapshots hold: those stay, the younger ones too,
// so that going back can itself be undone. A record appended during the call may be lost with the
// rest though it is acknowledged: let nobody write. Durable on return. Errors: NotFound; Invalid
// where the snapshot is no relative of the volume; others as Snapshot's.
func (e *Engine) Rollback(ctx context.Context, id domain.VolumeID, to domain.SnapshotID) error {
	e.control.Lock()
	v, err := e.rollback(ctx, id, to)
	e.control.Unlock()
	if err != nil {
		return err
	}
	e.sweep(v)
	return nil
}

// rollback gives the branch that was the head before; control is held.
func (e *Engine) rollback(ctx context.Context, id domain.VolumeID, to domain.SnapshotID,
) (*branch, error) {
	v, ok := e.Volume(id)
	if !ok {
		return nil, notFound(id)
	}
	s, ok := e.snapshot(to)
	switch {
	case !ok:
		return nil, noSnapshot(to)
	case s.fam != v.fam:
		return nil, domain.Errorf(domain.Invalid, "snapshot %s is not of volume %s's family", to, id)
	}
	head, err := e.headOn(s, id)
	if err != nil {
		return nil, err
	}
	was := v.br.Load() // loses its name to the new head
	head.Epoch, head.Gen = was.epoch, max(head.Gen, was.gen+1)
	if head.Key = 0; was.key != nil {
		head.Key = was.key.id // the snapshot may be another volume's
	}
	return was, e.logBranches(context.WithoutCancel(ctx), head)
}

// DeleteSnapshot takes a snapshot away; what only it saw is free for others once the next
// checkpoint is taken. What others see stays: the volume, its clones, older and younger
// snapshots, in any order. Deleting what is not there is a success. Durable on return.
func (e *Engine) DeleteSnapshot(ctx context.Context, id domain.SnapshotID) error {
	e.control.Lock()
	v, ok := e.snapshot(id)
	if !ok {
		e.control.Unlock()
		return nil
	}
	return e.burial(ctx, v)
}

// Kept gives the data that lives on the device and belongs to no volume or snapshot by name: what
// the clones of a deleted snapshot share, and families that are not shown.
func (e *Engine) Kept() domain.Bytes {
	e.mu.RLock()
	defer e.mu.RUnlock()
	n := int64(0)
	for _, b := range e.mu.branches {
		if !b.gone && (!b.named() || b.handle == pin || b.fam.moves.hidden()) {
			n += b.own.Load()
		}
	}
	return domain.Bytes(n)
}

func noSnapshot(id domain.SnapshotID) error {
	return &domain.Error{
		Kind: domain.NotFound, Ref: "snapshot/" + id.String(), Msg: "no such snapshot",
	}
}
