package engine

import (
	"context"
	"fmt"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// A join session: how a copy of a slice that missed writes becomes one that may be read. It begins
// by trusting nothing that it has. What others send from then on, records and copies, is of a new
// era and beats all that is older, whatever its version: so the tail of writes that only this
// member ever held is forgotten. Within the era the higher version wins, as ever.
//
// A session is of all branches of the slice. A block of a branch is trusted when what the branch
// shows of it is what the source's shows: from when a copy of it was imported, when the source said
// that it is the same, or when a record came whose version is of the session's epoch or later: that
// is above all that there was before, in its branch and in every later one. A record of an older
// epoch leaves it untrusted, since the source may have had more. A branch that is made in a session
// is not trusted, since the source's may be older than the session.
//
// The version of a trusted block that no record tells is at or below the floor, or noted: with 24
// bytes a block, until the floor has passed it. A record of the session stays the newest beside a
// copy that has it, for the copy of a later branch may be from before it came. The floor rises to
// that of the source with each copy: what the source says is resolved, is resolved. So a floor is
// never taken back, and a record at or below it changes a trusted block never, and any other
// always.
//
//	C8  What is of an earlier era never wins, in this life or a later one.
//
// Which blocks are trusted is known in memory alone: a session that a crash cuts short has to be
// begun again, and until then the slice takes nothing.

// eraMax is the last era of a slice: a copy that went through so many is made anew.
const eraMax = 65000

// session is a join session of a slice in this life; guarded by the replica's mu. It is changed
// under the mutexes of all lanes as well.
type session struct {
	since   domain.Epoch
	turning bool // it is about to begin: nothing is accepted meanwhile
}

// known is the version of what a block shows of which no record is held. It does not change.
type known struct {
	ver domain.Version
	gen uint32
	era uint16 // from which on it is trusted
}

// trust is the trusted blocks of an extent, bit by bit.
type trust [segment.LeafBlocks / 64]uint64

func (t *trust) has(i uint64) bool { return t != nil && t[i/64]>>(i%64)&1 != 0 }

// trustKey names the trusted blocks of a branch in an extent.
type trustKey struct {
	br  *branch
	ext uint32
}

// trusts tells whether a block of a branch is trusted in the session under way; the lane's mutex is
// held.
func (rl *replicaLane) trusts(b *branch, block uint64) bool {
	return rl.trusted[trustKey{b, uint32(block / segment.LeafBlocks)}].has(block % segment.LeafBlocks)
}

// rely lets a block of a branch be trusted; the lane's mutex is held.
func (rl *replicaLane) rely(b *branch, block uint64) {
	k, i := trustKey{b, uint32(block / segment.LeafBlocks)}, block%segment.LeafBlocks
	t := rl.trusted[k]
	if t == nil {
		t = &trust{}
		rl.trusted[k] = t
	}
	t[i/64] |= 1 << (i % 64)
}

// relyFrom lets a block be trusted in a branch and every later one.
func (rep *replica) relyFrom(rl *replicaLane, home *branch, block uint64) {
	for _, b := range rep.from(home) {
		rl.rely(b, block)
	}
}

// from gives a branch and all later ones; a lane's mutex is held.
func (rep *replica) from(home *branch) []*branch {
	return rep.line[slices.Index(rep.line, home):]
}

// joined tells whether a record of blocks may be forgotten as far as sessions go: none is under
// way, or they are trusted, in their branch and in all later ones, whose copies may be from before
// it. What the floor says is resolved is so at the source, and may be missing here. The version of
// a copy needs no such care: what came to the source since the session began came here as well, as
// a record, before a floor passed it, and what was there by then is in the copies of later
// branches.
func (rl *replicaLane) joined(rep *replica, home *branch, block uint64, count int) bool {
	if _, ss := rep.status(sliceOf(block)); ss == (session{}) {
		return true
	}
	for _, b := range rep.from(home) {
		for i := range uint64(count) {
			if !rl.trusts(b, block+i) {
				return false
			}
		}
	}
	return true
}

// note sets what is known of a block, or with nil forgets it; the lane's mutex is held.
func (rl *replicaLane) note(s *space, b *branch, block uint64, k *known) {
	hs := rl.of(b)[block]
	if (hs.known == nil) != (k == nil) {
		n := 1
		if k == nil {
			n = -1
		}
		rl.knowns += n
		s.tables.Add(int64(n) * segment.KnownRunBytes)
	}
	hs.known = k
	rl.keep(b, block, hs)
}

// forgetKnown forgets what is known of some blocks, in all branches; the lane's mutex is held.
func (rl *replicaLane) forgetKnown(s *space, which func(block uint64) bool) {
	rl.all(func(b *branch, blocks map[uint64]holders) {
		for block := range blocks {
			if which(block) {
				rl.note(s, b, block, nil)
			}
		}
	})
}

// keep stores what holds a block of a branch, and nothing where nothing does.
func (rl *replicaLane) keep(b *branch, block uint64, hs holders) {
	m := rl.of(b)
	switch {
	case hs != (holders{}):
		if m == nil {
			m = map[uint64]holders{}
			rl.cuts[b] = m
		}
		m[block] = hs
		return
	case m == nil:
		return
	}
	if delete(m, block); len(m) == 0 && b != rl.head {
		delete(rl.cuts, b)
	}
}

// status gives the state of a slice and its session; a zero one where there is none.
func (rep *replica) status(no uint32) (segment.SliceState, session) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	s, ss := rep.mu.slices[no], session{}
	s.Branch, s.Slice = rep.fam.id, no
	if p := rep.mu.sessions[no]; p != nil {
		ss = *p
	}
	return s, ss
}

// Session gives the session of a slice that is under way in this life; false where there is none.
func (p *Replica) Session(slice uint32) (since domain.Epoch, ok bool) {
	_, ss := p.rep.status(slice)
	return ss.since, ss != (session{}) && !ss.turning
}

// joins refuses what belongs to another session than the one under way.
func (p *Replica) joins(no uint32, since domain.Epoch) error {
	s, ss := p.rep.status(no)
	if err := p.fenced(&s, s.Seal); err != nil {
		return err
	}
	if ss == (session{}) || ss.turning || ss.since != since {
		return p.stale(no, fmt.Sprintf("session %d is not under way", since))
	}
	return nil
}

func (p *Replica) stale(no uint32, msg string) error {
	return &domain.Error{
		Kind: domain.Stale, Ref: fmt.Sprintf("volume/%s/%d", p.v.volume, no), Msg: msg,
	}
}

// BeginEra opens a join session of a slice, named by the epoch that it began at: everything that
// the slice holds, in all branches, is untrusted on return, durably, and its records are forgotten
// as such. It waits for those on their way. Opening the session under way again is a success; Stale
// for one that began before it, TooLarge behind 65,000 sessions: then the copy has to be deleted
// and made anew.
func (p *Replica) BeginEra(ctx context.Context, slice uint32, since domain.Epoch) error {
	if err := p.reachable(slice); err != nil {
		return err
	}
	rep, e := p.rep, p.v.e
	rep.turn.Lock()
	defer rep.turn.Unlock()
	s, ss := rep.status(slice)
	if err := p.fenced(&s, s.Seal); err != nil {
		return err
	}
	switch {
	case ss != (session{}) && since == ss.since:
		return nil
	case ss != (session{}) && since < ss.since:
		return p.stale(slice, fmt.Sprintf("session %d: %d is under way", since, ss.since))
	case s.Era >= eraMax:
		return domain.Errorf(domain.TooLarge, "slice %d went through %d sessions", slice, s.Era)
	}
	rep.setSession(slice, &session{since, true})
	for _, l := range e.lanes {
		if err := l.catchUp(); err != nil {
			return err
		}
	}
	if err := rep.drain(slice); err != nil {
		return err
	}
	note := rep.note(slice, segment.KindEra, domain.Version{})
	note.Era = s.Era + 1
	// First here: a checkpoint that is behind the entry must have it.
	notes := append(rep.distrusts(slice, s.Floor), note)
	rep.change(slice, segment.SliceState{Era: note.Era, Open: true})
	err := e.logNotes(context.WithoutCancel(ctx), e.lanes[0], notes)
	if err != nil {
		return err // the engine is out of service
	}
	rep.lockLanes()
	for _, l := range e.lanes {
		l.turn(rep, slice, note.Era)
		l.distrust(rep, slice)
	}
	rep.unlockLanes()
	rep.setSession(slice, &session{since, false})
	return nil
}

// EndEra ends a session: all of the slice is trusted from then on, durably on return. It is what a
// member does before it says that it is synced. Ending a session that has ended is Stale, and so is
// ending one with a block of some branch that is not trusted: that one is named.
func (p *Replica) EndEra(ctx context.Context, slice uint32, since domain.Epoch) error {
	if err := p.reachable(slice); err != nil {
		return err
	}
	rep, e := p.rep, p.v.e
	rep.turn.Lock()
	defer rep.turn.Unlock()
	if err := p.joins(slice, since); err != nil {
		return err
	}
	first := uint64(slice) * segment.SliceBlocks
	end := min(first+segment.SliceBlocks, p.v.blocks())
	for at := first; at < end; at += segment.LeafBlocks {
		if b, gen, all := p.relied(at, min(at+segment.LeafBlocks, end)); !all {
			return p.stale(slice, fmt.Sprintf("block %d of generation %d is not trusted", b, gen))
		}
	}
	// The floor comes first: it is the version of holes that were there before, as the generation is
	// theirs.
	s := rep.slice(slice)
	floor := rep.note(slice, segment.KindFloor, s.Floor)
	note := rep.note(slice, segment.KindEra, domain.Version{})
	note.Era, note.Gen = s.Era, s.Gen
	note.SetEnded()
	rep.close(slice) // first here, as in BeginEra
	err := e.logNotes(context.WithoutCancel(ctx), e.lanes[0], []segment.Entry{floor, note})
	if err != nil {
		return err
	}
	rep.lockLanes()
	for _, l := range e.lanes {
		l.distrust(rep, slice)
	}
	rep.forgetDirty(rep.own(slice)) // a recovery knows by the session that has ended
	rep.unlockLanes()
	rep.setSession(slice, nil)
	return nil
}

// relied tells whether all blocks of an extent up to an end may be read behind the session, in each
// branch that somebody reads, and which is the first that may not.
func (p *Replica) relied(block, end uint64) (first uint64, gen uint32, all bool) {
	l := p.v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	rl := &p.rep.lanes[l.no]
	for _, br := range p.rep.line {
		for b := block; br.named() && b < end; b++ {
			if !rl.trusts(br, b) {
				return b, br.gen, false
			}
		}
	}
	return 0, 0, true
}

// setSession changes the session of a slice, and lets those go on who waited for that.
func (rep *replica) setSession(no uint32, ss *session) {
	rep.lockLanes()
	rep.mu.Lock()
	if ss == nil {
		delete(rep.mu.sessions, no)
	} else {
		rep.mu.sessions[no] = ss
	}
	rep.mu.Unlock()
	rep.unlockLanes()
	for _, l := range rep.e.lanes {
		l.room.Broadcast()
	}
}

func (rep *replica) lockLanes() {
	for _, l := range rep.e.lanes {
		l.mu.Lock()
	}
}

func (rep *replica) unlockLanes() {
	for _, l := range rep.e.lanes {
		l.mu.Unlock()
	}
}

// close notes that the session of a slice has ended.
func (rep *replica) close(no uint32) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	s := rep.mu.slices[no]
	s.Open = false
	rep.mu.slices[no] = s
}

// turn lets everything in a lane that is of an earlier era than the one given be untrusted: its
// records are held no more, and of what they show the version alone is kept, which may turn out to
// be the same as the source's. The lane's mutex is held, and all records are durable.
func (l *lane) turn(rep *replica, slice uint32, era uint16) {
	rl := &rep.lanes[l.no]
	for k, h := range rl.held {
		if k.slice != slice || h.Era >= era {
			continue
		}
		for i := range h.Count {
			if b := h.Block + uint64(i); rl.of(h.branchOf())[b].top == h {
				rl.note(rep.e.space, h.branchOf(), b, &known{h.Version, h.Gen, h.Era})
			}
		}
		l.letGo(rep, h)
	}
}

// distrust forgets which blocks of a slice are trusted in a session; the lane's mutex is held.
func (l *lane) distrust(rep *replica, slice uint32) {
	for k := range rep.lanes[l.no].trusted {
		if k.ext/sliceExtents == slice {
			delete(rep.lanes[l.no].trusted, k)
		}
	}
}

// settleReplicas does for a recovery what BeginEra did for records that came before it in other
// lanes' logs, and what Away and Append did for members that are away.
func (e *Engine) settleReplicas() {
	for _, rep := range e.mu.replicas {
		rep.settleDirty()
		for no, s := range rep.mu.slices {
			rep.mu.lasting[no] = s.Floor
			for _, l := range e.lanes {
				l.turn(rep, no, s.Era)
			}
		}
	}
}

// sliceExtents is the number of extents of a slice.
const sliceExtents = segment.SliceBlocks / segment.LeafBlocks
