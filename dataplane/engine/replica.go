package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// A replica is a volume of which other nodes hold copies too. Its records come with versions that
// whoever coordinates a write has given, in any order, more than once, and some of them when they
// are outdated already; what a record does is decided by versions, once, when it is accepted, and
// that outcome is logged: replay decides nothing.
//
//	version above all that its blocks hold      Applied     the index follows
//	below what all of them hold                 Superseded  stored, and no index entry
//	some of each                                Mixed       stored, the others follow
//	held, or at or below the floor              Duplicate   nothing is stored
//
// A record is held until it is settled: its version is at or below its slice's floor, so every
// member has it or something higher, and its gateway will not ask for its request again. Until then
// it may be asked for, whole, by whoever has to replay it. So it is in a table, in RAM and in every
// checkpoint; its blocks live, though nobody may see them; and the cleaner moves them side by side
// or not at all. All versions above the floor are in the table, so no version is kept by block: a
// block that no held record names has one at or below the floor, and any new record is above it.
// Where blocks come without records, in a join session, more has to be known: replicaera.go.
//
// The floor in RAM may be ahead of the one that a crash leaves. That is safe: what a checkpoint
// holds of floor and table is of one moment or the floor is the later one, and the log behind it
// has the rest; so after a crash everything above the floor that is known then is there again.
//
//	C1  A record is there whole or not at all, with the outcome that was told.
//	C3  A held record stays as it was accepted: range, version, request, generation, bytes.
//	C6  A request can be asked for from Append until Retire, also behind a restart.
//
// Snapshots of replicas are cut by generation: replicacut.go. They are not encrypted. How records
// go through the journal: replicajournal.go.

// Outcome says what became of a record that was given to a replica.
type Outcome uint8

// The outcomes. The record is durable with each of them.
const (
	Applied    Outcome = Outcome(segment.OutcomeApplied)    // all of its blocks took it
	Superseded Outcome = Outcome(segment.OutcomeSuperseded) // none: all held higher versions
	Mixed      Outcome = Outcome(segment.OutcomeMixed)      // some: Record.Kept tells which did not
	Duplicate  Outcome = 3                                  // it is there, or resolved everywhere
)

// String names the outcome.
func (o Outcome) String() string {
	return [...]string{"applied", "superseded", "mixed", "duplicate"}[o&3]
}

// ErrConflict is the cause of an error that nothing mends: one version names two different records.
// The engine is out of service then.
var ErrConflict = errors.New("one version names two records")

// Replica is a volume that takes records with versions given by others. It is read by its Volume.
// All methods may be called from many goroutines.
type Replica struct {
	v   *Volume
	rep *replica
}

// Meta describes a record that a replica holds.
type Meta struct {
	Kind    segment.Kind // KindData, KindZero or KindUnmap: data of zeros has become KindZero
	Block   uint64
	Count   int
	Version domain.Version
	Request domain.RequestID
	Gen     uint32
	Outcome Outcome // Applied, Superseded or Mixed
	Part    bool    // blocks of a record that is not held: committed, and known by version
}

// replica is the state of a replica.
type replica struct {
	e     *Engine
	fam   *family
	line  []*branch                     // the oldest first; guarded like a branch's place in the tree
	lanes [segment.LanesMax]replicaLane // each guarded by its lane's mutex
	gone  bool                          // deleted; changed under the mutexes of all lanes
	// absorbed counts the cuts that went into the branches above them, under the mutexes of all lanes,
	// and anchored those of them that are in a checkpoint.
	absorbed uint64
	anchored atomic.Uint64
	turn     sync.Mutex // one session begins or ends, or one cut is made, at a time
	// Of a recovery: the grains of what stands in the log behind the checkpoint, and of what the
	// checkpoint holds.
	touched, tabled grainMaps

	mu struct { // a leaf lock
		sync.Mutex
		slices map[uint32]segment.SliceState
		raised map[uint32]domain.Version // floors that are not logged yet
		// lasting floors are those that a crash does not forget.
		lasting map[uint32]domain.Version

		sessions map[uint32]*session // of this life
		dirty    map[dirtyKey]*dirtyMap
	}
}

// replicaLane is the part of a replica that lies in one lane.
type replicaLane struct {
	held    map[heldKey]*heldRecord
	head    *branch
	blocks  map[uint64]holders             // of the head
	cuts    map[*branch]map[uint64]holders // of others, where something is known
	extents map[uint32]domain.Version      // the highest that was accepted in each
	kept    int                            // records and known blocks left by the last sweep
	knowns  int                            // blocks of which holders know a version
	trusted map[trustKey]*trust            // in join sessions
	scratch sumBuffer
	fresh   bool              // records came since a floor was logged here
	turned  map[uint32]uint16 // of a recovery: by slice, the era that the log came to, and one more

	// Beside a journal, by slice: the sequence of the last slot that was given a record, the LSN of
	// what the log was given last, and whether it stays with the log.
	slots, logged map[uint32]uint64
	late          map[uint32]bool
}

// heldKey names a record of a replica: versions are of a slice.
type heldKey struct {
	slice uint32
	ver   domain.Version
}

// holders are what is known of a block; each may be nil.
type holders struct {
	newest *heldRecord // record of the highest version, or copy that is on its way
	top    *heldRecord // record that the index shows: its copy, or its hole or zero
	known  *known      // version of what the index shows, where no record tells it
}

// beats tells whether what is there in an era is above a version.
func (hs *holders) beats(ver domain.Version, era uint16) bool {
	return hs.newest != nil && hs.newest.Version.Compare(ver) > 0 ||
		hs.known != nil && hs.known.era == era && hs.known.ver.Compare(ver) > 0
}

// heldRecord is a record that is not settled.
type heldRecord struct {
	segment.HeldRecord
	br      *branch       // see branchOf
	kept    *segment.Mask // of a mixed one, until it is durable
	durable bool          // and in the index as far as it goes there
	waiters []*Record     // the same record, come again before it was
	also    *heldRecord   // the next one of its request
	copied  bool          // it is no record: blocks that were imported
	exact   bool          // of them: their version is above the floor
	flags   uint8         // of them: those of their entry
	slot    *nvSlot       // of the journal, that it is in; nil: it is in the log
}

func (h *heldRecord) key() heldKey {
	return heldKey{sliceOf(h.Block), h.Version}
}

// bound tells whether its version is no more than that: of a copy that is at or below the floor.
func (h *heldRecord) bound() bool { return h.copied && !h.exact }

// newer gives which of two, each of which may be nil, says more of a block: the higher version, and
// never a bound where there is a version.
func newer(a, b *heldRecord) *heldRecord {
	switch {
	case a == nil || b == nil:
		return cmp.Or(a, b)
	case a.bound() != b.bound():
		if a.bound() {
			return b
		}
		return a
	case a.Version.Compare(b.Version) > 0:
		return a
	}
	return b
}

// keeps tells whether block i kept a higher version.
func (h *heldRecord) keeps(i int) bool {
	return h.Outcome == segment.OutcomeSuperseded ||
		h.Outcome == segment.OutcomeMixed && h.kept != nil && h.kept.Kept(i)
}

// off gives where block i stands on the device.
func (h *heldRecord) off(i int) int64 {
	return int64(h.Addr)*segment.Unit + int64(i)*segment.BlockSize
}

// same tells whether the other is the same record.
func (h *heldRecord) same(o *segment.HeldRecord) bool {
	a, b := h.Request, o.Request
	a.Attempt, b.Attempt = 0, 0
	return h.Block == o.Block && h.Count == o.Count && h.Kind == o.Kind && h.Gen == o.Gen &&
		h.Sum == o.Sum && a == b
}

// requests knows which record answers a request. Its mutex is a leaf lock.
type requests struct {
	sync.Mutex
	of     map[domain.RequestID]*heldRecord // without the attempt; the first of a list
	bounds map[segment.RequestBound]uint64
}

// gateway is the key of a bound.
func gateway(r domain.RequestID) segment.RequestBound {
	return segment.RequestBound{Gateway: r.Gateway, Incarnation: r.Incarnation}
}

func (q *requests) add(h *heldRecord) {
	id := h.Request
	if id.Attempt = 0; id == (domain.RequestID{}) {
		return
	}
	q.Lock()
	defer q.Unlock()
	if q.of == nil {
		q.of = map[domain.RequestID]*heldRecord{}
	}
	h.also = q.of[id]
	q.of[id] = h
}

func (q *requests) drop(h *heldRecord) {
	id := h.Request
	id.Attempt = 0
	q.Lock()
	defer q.Unlock()
	o := q.of[id]
	switch {
	case o == nil: // it has no request
	case o == h && h.also == nil:
		delete(q.of, id)
	case o == h:
		q.of[id] = h.also
	default:
		for o.also != h {
			o = o.also
		}
		o.also = h.also
	}
}

// retired tells whether nobody will ask for a request any more.
func (q *requests) retired(r domain.RequestID) bool {
	if r.Attempt = 0; r == (domain.RequestID{}) {
		return true
	}
	q.Lock()
	defer q.Unlock()
	return r.Counter < q.bounds[gateway(r)]
}

// Known tells the version under which a request was accepted, whatever its attempt, from Append
// until Retire and over restarts; the highest, where there are several. The record may still be on
// its way.
func (e *Engine) Known(r domain.RequestID) (domain.Version, bool) {
	if e.requests.retired(r) {
		return domain.Version{}, false
	}
	r.Attempt = 0
	e.requests.Lock()
	defer e.requests.Unlock()
	best, ok := domain.Version{}, false
	for h := e.requests.of[r]; h != nil; h = h.also {
		if !ok || h.Version.Compare(best) > 0 {
			best, ok = h.Version, true
		}
	}
	return best, ok
}

// Retire says that a gateway's incarnation will not ask for requests with counters below one any
// more. It is durable with the next checkpoint: a crash before may forget it, which costs memory
// until it is said again.
func (e *Engine) Retire(gw domain.NodeNumber, incarnation, below uint64) {
	e.requests.Lock()
	defer e.requests.Unlock()
	if e.requests.bounds == nil {
		e.requests.bounds = map[segment.RequestBound]uint64{}
	}
	k := segment.RequestBound{Gateway: gw, Incarnation: incarnation}
	if _, ok := e.requests.bounds[k]; !ok {
		e.space.tables.Add(segment.RequestBoundBytes)
	}
	e.requests.bounds[k] = max(e.requests.bounds[k], below)
}

// CreateReplica is Create for a volume of which other nodes hold copies. More errors: Unsupported
// on a device that was formatted before there were any, Exists also for the id of a replica that
// was deleted: ids are never used again.
func (e *Engine) CreateReplica(ctx context.Context, id domain.VolumeID, size domain.Bytes,
	epoch domain.Epoch,
) (*Replica, error) {
	return e.CreateReplicaAt(ctx, id, size, epoch, 1)
}

// CreateReplicaAt is CreateReplica for a member that comes to a volume in a generation, 1 or
// higher: it has no cuts of those before, whose records are all of that one here.
func (e *Engine) CreateReplicaAt(ctx context.Context, id domain.VolumeID, size domain.Bytes,
	epoch domain.Epoch, gen uint32,
) (*Replica, error) {
	if e.super.Incompat&segment.IncompatReplica == 0 {
		return nil, domain.Errorf(domain.Unsupported, "%s was formatted before there were replicas",
			e.dev.Geometry().Path)
	}
	v, err := e.create(ctx, id, size, epoch, segment.Branch{Replica: true, Gen: gen})
	if err != nil {
		return nil, err
	}
	return &Replica{v, v.fam.replica}, nil
}

// Replica gives a replica by the id of its volume.
func (e *Engine) Replica(id domain.VolumeID) (*Replica, bool) {
	v, ok := e.Volume(id)
	if !ok || v.fam.replica == nil {
		return nil, false
	}
	return &Replica{v, v.fam.replica}, true
}

// Volume gives what a replica is read by. A read returns the newest records, committed or not:
// whether they may be shown is the caller's to know.
func (p *Replica) Volume() *Volume { return p.v }

// notReplicated refuses what a replica does not offer.
func (v *Volume) notReplicated(what string) error {
	if v.fam.replica == nil {
		return nil
	}
	return &domain.Error{
		Kind: domain.Unsupported, Ref: "volume/" + v.volume.String(), Msg: "a replica takes no " + what,
	}
}

// newReplica makes the state of a replica for its branch.
func newReplica(e *Engine, b *branch) *replica {
	rep := &replica{e: e, fam: b.fam, line: []*branch{b}}
	for i := range e.lanes {
		rep.lanes[i] = replicaLane{
			held: map[heldKey]*heldRecord{}, head: b, blocks: map[uint64]holders{},
			cuts:    map[*branch]map[uint64]holders{},
			extents: map[uint32]domain.Version{}, trusted: map[trustKey]*trust{},
			slots: map[uint32]uint64{}, logged: map[uint32]uint64{}, late: map[uint32]bool{},
		}
	}
	rep.mu.slices, rep.mu.raised = map[uint32]segment.SliceState{}, map[uint32]domain.Version{}
	rep.mu.sessions, rep.mu.dirty = map[uint32]*session{}, map[dirtyKey]*dirtyMap{}
	rep.mu.lasting = map[uint32]domain.Version{}
	return rep
}

// slice gives the state of a slice.
func (rep *replica) slice(no uint32) segment.SliceState {
	s, _ := rep.status(no)
	return s
}

// Append takes a record with the Version, Request and Gen that its caller has set, from a message
// of an epoch; it returns and tells the outcome as Volume.Append does, and with a nil error sets
// r.Outcome, and r.Kept where that is Mixed. A record that is there already is told to be so when
// it is durable. Its blocks are of one slice since they are of one extent. More errors: Invalid for
// a version of an epoch above the message's, Stale where a restart cut a join session short that
// was not begun again, and Conflict with ErrConflict, behind which the engine is out of service.
func (p *Replica) Append(r *Record, msg domain.Epoch) {
	err := p.check(r, msg)
	if err == nil {
		err = p.sees(r, msg)
	}
	if err != nil {
		r.To.Appended(r, err)
		return
	}
	r.kind, r.Kept = r.Kind, segment.Mask{}
	if r.Kind == segment.KindData {
		sum(r, true)
	}
	if p.v.e.nv != nil {
		p.v.e.nv.wait(r.paced())
	}
	l, now := p.v.lane(r.Block), r.Now
	l.mu.Lock()
	later, err := p.accept(l, r, msg)
	if err == nil && later {
		l.push(now && r.Outcome != Duplicate)
		return
	}
	l.mu.Unlock()
	if errors.Is(err, ErrConflict) {
		p.v.e.report(Fact{What: "conflict", Volume: p.v.volume, Block: r.Block, Detail: err.Error()})
		p.v.e.fail(err)
	}
	r.To.Appended(r, err)
}

// sees makes the cut that the first record of a generation stands for.
func (p *Replica) sees(r *Record, msg domain.Epoch) error {
	if p.v.br.Load().gen >= r.Gen {
		return nil
	}
	s := p.rep.slice(sliceOf(r.Block))
	if err := p.fenced(&s, msg); err != nil {
		return err
	}
	return p.reach(background, r.Gen)
}

// check refuses a record that no order of events makes right.
func (p *Replica) check(r *Record, msg domain.Epoch) error {
	if err := p.v.checkRecord(r); err != nil {
		return err
	}
	ver, req := r.Version, r.Request
	if ver.Seq == 0 || ver.Seq >= 1<<48 || ver.Epoch > msg || req.Incarnation >= 1<<48 ||
		req.Counter >= 1<<56 {
		return domain.Errorf(domain.Invalid, "version %s in a message of epoch %d", ver, msg)
	}
	return nil
}

// accept gives a checked record its outcome, and puts it into its lane's open chunk unless it is a
// duplicate, or the journal takes it. It tells whether its owner is told later; of one that is on
// its way that is with the first. The lane's mutex is held, but not while it waits for room.
func (p *Replica) accept(l *lane, r *Record, msg domain.Epoch) (later bool, err error) {
	rec := r.asHeld(&p.rep.lanes[l.no].scratch)
	n := 0
	if r.kind == segment.KindData {
		n = r.Count * segment.BlockSize
	}
	var home *branch
	var late []displaced
	var kept bool
	for {
		if err := l.dead(); err != nil {
			return false, err
		}
		if p.rep.gone || p.v.gone.Load() {
			return false, p.v.missing()
		}
		if err := p.v.reaches(r); err != nil {
			return false, err
		}
		if _, ss := p.rep.status(sliceOf(rec.Block)); ss.turning {
			l.room.Wait()
			continue
		}
		done, waits, err := p.judge(l, &rec, r, msg)
		if err != nil {
			return false, err
		}
		home = p.rep.home(r.Gen)
		if home.sealed && !done {
			return false, domain.Errorf(domain.Conflict, "generation %d of volume %s is sealed", r.Gen,
				p.v.volume)
		}
		if p.rep.mark(r.Block, r.Count) && done && !waits { // nothing else of it will be logged
			if l.roomy(0, 0) {
				l.logMark(p.rep, r.Block, r.Count, told{r})
				return true, nil
			}
			continue
		}
		if done {
			return waits, nil
		}
		late = p.rep.displace(l, home, r, p.rep.slice(sliceOf(r.Block)).Era)
		if len(late) > p.v.e.lateMax() {
			return false, domain.Errorf(domain.TooLarge, "%d cuts at once", len(late))
		}
		kept = p.rep.journals(l, home, sliceOf(r.Block))
		if kept && l.ready(p.rep, r) ||
			!kept && l.drained(p.rep, sliceOf(r.Block)) && l.roomy(n, len(late)) {
			break
		}
	}
	newly := l.heldBytes(home, r)
	if !p.v.e.space.admit(newly) {
		return false, p.v.e.full()
	}
	h := &heldRecord{HeldRecord: rec, br: home}
	p.rep.outdo(l, h, r)
	if kept {
		l.putHeld(home, r, h, newly)
		return false, nil
	}
	l.addHeld(home, r, h, newly)
	for i := range late {
		l.addDisplaced(h, &late[i])
	}
	return true, nil
}

// told tells the owner of a record what became of an entry that was logged for it.
type told struct{ r *Record }

// Appended implements Appender.
func (t told) Appended(_ *Record, err error) { t.r.To.Appended(t.r, err) }

// judge tells whether a record needs no place: it is a duplicate, and waits says that its first is
// still on its way; or it is refused.
func (p *Replica) judge(l *lane, rec *segment.HeldRecord, r *Record, msg domain.Epoch,
) (done, waits bool, err error) {
	no := sliceOf(rec.Block)
	s, ss := p.rep.status(no)
	if err := p.fenced(&s, msg); err != nil {
		return false, false, err
	}
	if s.Open && ss == (session{}) {
		return false, false, p.stale(no, "its join session was cut short")
	}
	h := p.rep.lanes[l.no].held[heldKey{no, rec.Version}]
	switch {
	case h != nil && !h.same(rec):
		return false, false, &domain.Error{
			Op: "engine.Append", Kind: domain.Conflict, Ref: "volume/" + p.v.volume.String(),
			Msg: fmt.Sprintf("version %s at block %d", rec.Version, rec.Block), Err: ErrConflict,
		}
	case h != nil && !h.durable:
		r.Outcome = Duplicate
		h.waiters = append(h.waiters, r)
		return true, true, nil
	case h != nil || (!s.Open || p.rep.over(r.Gen)) && rec.Version.Compare(s.Floor) <= 0:
		r.Outcome = Duplicate
		return true, false, nil
	}
	return false, false, nil
}

// asHeld gives a record as it will be held.
func (r *Record) asHeld(scratch *sumBuffer) segment.HeldRecord {
	h := segment.HeldRecord{
		Block: r.Block, Count: r.Count, Kind: r.kind, Version: r.Version, Gen: r.Gen, Request: r.Request,
	}
	if r.kind == segment.KindData {
		h.Sum = sumOf(scratch, r.crc[:r.Count])
	}
	return h
}

// sumBuffer is what sumOf works in: on the stack it would escape, one allocation for every record.
type sumBuffer [4 * segment.RecordBlocks]byte

// sumOf gives the checksum over the checksums of a record's blocks.
func sumOf(b *sumBuffer, crcs []uint32) uint32 {
	for i, crc := range crcs {
		b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	}
	return segment.Checksum(b[:4*len(crcs)])
}

// outdo decides, block by block, whether a new record or what is there has the higher version, and
// enters it into the table. The lane's mutex is held.
func (rep *replica) outdo(l *lane, h *heldRecord, r *Record) {
	rl, kept := &rep.lanes[l.no], 0
	s, ss := rep.status(sliceOf(h.Block))
	resolved := h.Version.Compare(s.Floor) <= 0 // then it has changed all that is trusted
	above := s.Open && h.Version.Epoch >= ss.since
	rep.doubt(h.Block, h.Count)
	for i := range h.Count {
		b := h.Block + uint64(i)
		if rep.beaten(l, h.br, b, h.Version, s.Era) || resolved && rl.trusts(h.br, b) {
			r.Kept.Set(i)
			kept++
			continue
		}
		hs := rl.of(h.br)[b]
		hs.newest = h
		rl.keep(h.br, b, hs)
		if above { // whatever the source had before the session
			rep.relyFrom(rl, h.br, b)
		}
	}
	switch kept {
	case 0:
		r.Outcome = Applied
	case h.Count:
		r.Outcome = Superseded
	default:
		r.Outcome = Mixed
		mask := r.Kept
		h.kept = &mask
	}
	h.Branch, h.Outcome, h.Era = h.br.id, uint8(r.Outcome), s.Era
	rep.insert(l, h)
}

// insert adds a record to the table; the lane's mutex is held. Behind a crash it may meet itself:
// it was settled, came again in a join session, and was stored once more.
func (rep *replica) insert(l *lane, h *heldRecord) {
	rl := &rep.lanes[l.no]
	if old := rl.held[h.key()]; old != nil {
		l.letGo(rep, old)
	}
	rl.held[h.key()] = h
	rl.top(rep.e.space, uint32(h.Block/segment.LeafBlocks), h.Version)
	rep.e.space.tables.Add(segment.HeldRecordBytes)
	rep.e.requests.add(h)
}

// takesHeld is fits for a record of a replica, whose entry may have a mask, and for more entries
// without data that go with it.
func (c *chunk) takesHeld(n, more, limit int) bool {
	return c.fits(n, limit) && len(c.recs)+more < chunkRecords &&
		len(c.entries)+firstEntryMax+segment.MaskMax+more*(segment.EntrySettled+segment.MaskMax) <= c.room
}

// roomy tells whether the open chunk has room for a record of a replica with n bytes of data, and
// for more entries without; if not, it has waited for another one. The lane's mutex is held, but
// not while it waits.
func (l *lane) roomy(n, more int) bool {
	if l.mu.cur != nil && !l.mu.cur.takesHeld(n, more, l.e.payloadMax()) {
		l.mu.cur.full = true
		l.work.Signal()
	}
	if l.mu.cur != nil && !l.mu.cur.full {
		return true
	}
	l.room.Wait()
	return false
}

// heldBytes gives the room that a record of a replica takes: all of its data, since what it
// replaces may be held, the growth of the index, and its line in the table. One without data takes
// none.
func (l *lane) heldBytes(b *branch, r *Record) int64 {
	if r.kind == segment.KindUnmap {
		return 0
	}
	mapped, data := 0, int64(0)
	if lf := b.fam.leaves[l.no][uint32(r.Block/segment.LeafBlocks)].of(b); lf != nil {
		mapped = int(lf.n)
	}
	if r.kind == segment.KindData {
		data = int64(r.Count) * segment.BlockSize
	}
	index := imageBytes(min(mapped+r.Count, segment.LeafBlocks)) - imageBytes(mapped)
	return data + l.e.space.charge(index+segment.HeldRecordBytes)
}

// addHeld encodes a record of a replica into the open chunk; mu is held and the chunk has room.
func (l *lane) addHeld(b *branch, r *Record, h *heldRecord, newly int64) {
	c := l.mu.cur
	l.mu.lsn++
	h.LSN = l.mu.lsn
	p := pending{
		rec: r, br: b, kind: r.kind, block: r.Block, count: r.Count, lsn: h.LSN, held: h,
		unit: uint32(c.payload / segment.Unit), crc: len(c.crcs), newly: newly,
	}
	en := heldEntry(b, r, h)
	if r.kind == segment.KindData {
		l.e.fill(c, r, r.Count*segment.BlockSize, true)
		c.crcs = append(c.crcs, r.crc[:r.Count]...)
		en.Off = p.unit
	}
	at := len(c.entries)
	c.encode(&en, r.crc[1:])
	en.PutMask(c.entries[at:], &r.Kept)
	c.recs = append(c.recs, p)
	rl := &b.fam.replica.lanes[l.no]
	if rl.fresh = true; l.e.nv != nil {
		rl.logged[sliceOf(h.Block)] = h.LSN
	}
	if h.copied {
		return
	}
	l.e.stats.records.Add(1)
	l.e.stats.userBytes.Add(int64(r.Count) * segment.BlockSize)
}

// heldEntry makes the entry of a record or copy, but for the place of its data.
func heldEntry(b *branch, r *Record, h *heldRecord) segment.Entry {
	en := segment.Entry{
		Branch: b.id, Block: r.Block, Count: 1, Kind: r.kind, Flags: segment.FlagFresh | h.Outcome,
		Version: r.Version, Gen: r.Gen, Era: h.Era, LSN: h.LSN, Request: r.Request,
	}
	if h.copied {
		en.Flags = h.flags
	}
	if r.kind == segment.KindData {
		en.Count, en.CRC, en.Units = r.Count, r.crc[0], uint16(r.Count*segment.BlockUnits)
	} else {
		en.Range = uint64(r.Count)
	}
	return en
}

// enter lets a durable record into the index as its outcome says; base is the address of its
// chunk's payload. mu is held, or nobody else is there yet.
func (l *lane) enter(p *pending, base uint64, crcs []uint32) {
	h, rep := p.held, p.br.fam.replica
	h.durable = true
	if rep.gone {
		return
	}
	rl, loc := &rep.lanes[l.no], segment.HoleLoc
	if h.Kind == segment.KindData {
		h.Addr = base + uint64(p.unit)
	}
	if h.Kind == segment.KindZero {
		loc = segment.ZeroLoc
	}
	var lf *leaf
	for i := range h.Count {
		if h.keeps(i) {
			l.spare(h, i, 1)
			continue
		}
		if lf == nil {
			if lf = l.leaf(p.br, h.Block); lf == nil {
				return
			}
		}
		b := h.Block + uint64(i)
		hs := rl.of(p.br)[b]
		was := hs.top
		if hs.top != nil { // before its place leaves the index: its segment must not look empty
			l.spare(hs.top, int(b-hs.top.Block), 1)
		}
		if hs.top = h; h.copied {
			hs.top = nil
		}
		if h.Kind == segment.KindData {
			loc = segment.MakeLoc(h.Addr+uint64(i)*segment.BlockUnits, crcs[i])
		}
		if h.copied && hs.newest == h {
			hs.newest = was // it came in the session: a later branch's copy may be from before
		}
		rl.keep(p.br, b, hs)
		if rl.note(l.e.space, p.br, b, nil); h.exact {
			rl.note(l.e.space, p.br, b, &known{h.Version, h.Gen, h.Era})
		}
		if h.displaces() {
			l.reveal(lf, int(b%segment.LeafBlocks))
			continue
		}
		l.point(lf, int(b%segment.LeafBlocks), loc)
	}
	h.kept = nil
	if lf != nil {
		l.touch(lf)
	}
}

// spare counts a block of a held record that the index does not name, or no longer counts it with
// sign -1: it lives all the same. mu is held.
func (l *lane) spare(h *heldRecord, i int, sign int64) {
	if h.Kind != segment.KindData {
		return
	}
	if h.slot != nil {
		h.slot.live.Add(sign * segment.BlockSize)
	} else {
		l.e.space.stand(h.off(i), sign*segment.BlockSize)
	}
	l.e.space.live.Add(sign * segment.BlockSize)
}

// tell answers those who came with a record again before it was durable.
func (l *lane) tell(h *heldRecord, err error) {
	l.mu.Lock()
	list := h.waiters
	h.waiters = nil
	l.mu.Unlock()
	for _, r := range list {
		r.To.Appended(r, err)
	}
}

// sweepHeld lets go of a replica's records that are settled, but for those in the journal; the
// lane's mutex is held.
func (l *lane) sweepHeld(rep *replica) {
	rl := &rep.lanes[l.no]
	for k, h := range rl.held {
		if h.durable && h.slot == nil && h.Version.Compare(rep.slice(k.slice).Floor) <= 0 &&
			rep.e.requests.retired(h.Request) &&
			rl.joined(rep, h.branchOf(), h.Block, h.Count) {
			l.letGo(rep, h)
		}
	}
	rl.all(func(br *branch, blocks map[uint64]holders) {
		if rl.knowns == 0 {
			return
		}
		for b, hs := range blocks {
			if hs.known != nil && hs.known.ver.Compare(rep.slice(sliceOf(b)).Floor) <= 0 {
				rep.raiseGen(sliceOf(b), hs.known.gen)
				rl.note(rep.e.space, br, b, nil)
			}
		}
	})
	rl.kept = len(rl.held) + rl.knowns
}

// letGo takes a record out of the table; what nobody sees of it is garbage from here on. The lane's
// mutex is held.
func (l *lane) letGo(rep *replica, h *heldRecord) {
	rl := &rep.lanes[l.no]
	for i := range h.Count {
		b := h.Block + uint64(i)
		br := rl.seatOf(h, i)
		hs := rl.of(br)[b]
		switch {
		case hs.top == h:
			hs.top = nil
		case h.durable:
			l.spare(h, i, -1)
		}
		if hs.newest == h {
			hs.newest = nil
		}
		rl.keep(br, b, hs)
	}
	h.sits(nil)
	rep.raiseGen(h.key().slice, h.Gen)
	delete(rl.held, h.key())
	rep.e.space.tables.Add(-segment.HeldRecordBytes)
	rep.e.requests.drop(h)
}

// end lets go of all that a deleted replica holds; the mutexes of all lanes are held.
func (rep *replica) end() {
	for _, l := range rep.e.lanes {
		for _, h := range rep.lanes[l.no].held {
			l.letGo(rep, h)
		}
		for ext := range rep.lanes[l.no].extents {
			rep.lanes[l.no].forget(rep.e.space, ext)
		}
		rep.lanes[l.no].forgetKnown(rep.e.space, func(uint64) bool { return true })
	}
	rep.gone = true
	rep.mu.Lock()
	rep.e.space.tables.Add(-segment.DirtyMapBytes * int64(len(rep.mu.dirty)))
	clear(rep.mu.dirty)
	rep.e.space.tables.Add(-segment.SliceStateBytes * int64(len(rep.mu.slices)))
	rep.mu.Unlock()
	delete(rep.e.mu.replicas, rep.fam.id)
}

// Record gives a held record whole, with its data verified, as it was accepted. It waits for one
// that is on its way. Errors: NotFound for one that was never there or is settled, Corrupt,
// Unavailable.
func (p *Replica) Record(slice uint32, ver domain.Version) (*Record, error) {
	for range readTries {
		h, err := p.find(heldKey{slice, ver})
		if err != nil {
			return nil, err
		}
		r, err := p.fetch(h)
		if r != nil || err != nil {
			return r, err
		}
	}
	p.v.e.report(Fact{
		What: "corrupt", Volume: p.v.volume, Detail: "record " + ver.String() + " of a replica",
	})
	return nil, &domain.Error{
		Op: "engine.Record", Kind: domain.Corrupt, Ref: "volume/" + p.v.volume.String(),
		Msg: "record " + ver.String() + " does not match its checksum",
	}
}

// find gives a copy of a held record, once that is durable.
func (p *Replica) find(k heldKey) (segment.HeldRecord, error) {
	for _, l := range p.v.e.lanes {
		l.mu.Lock()
		h := p.rep.lanes[l.no].held[k]
		for h != nil && !h.durable {
			if err := l.dead(); err != nil && l.mu.head == nil {
				l.mu.Unlock()
				return segment.HeldRecord{}, err
			}
			l.room.Wait()
			h = p.rep.lanes[l.no].held[k]
		}
		if h != nil {
			rec := h.HeldRecord
			l.mu.Unlock()
			return rec, nil
		}
		l.mu.Unlock()
	}
	return segment.HeldRecord{}, &domain.Error{
		Kind: domain.NotFound, Ref: "volume/" + p.v.volume.String(),
		Msg: "record " + k.ver.String() + " is not held",
	}
}

// fetch reads what a held record was when it was looked up; nil where the bytes are others, because
// it was moved or let go meanwhile, or because it is damaged.
func (p *Replica) fetch(h segment.HeldRecord) (*Record, error) {
	r := &Record{
		Kind: h.Kind, Block: h.Block, Count: h.Count, Version: h.Version, Request: h.Request, Gen: h.Gen,
		Outcome: Outcome(h.Outcome),
	}
	if h.Kind != segment.KindData {
		return r, nil
	}
	e := p.v.e
	r.Data = backends.AlignedBuffer(h.Count * segment.BlockSize)
	if e.nv.has(h.Addr) {
		l := e.laneOf(p.rep.fam, uint32(h.Block/segment.LeafBlocks))
		l.mu.Lock()
		there := e.nv.fetchHeld(&p.rep.lanes[l.no], &h, r.Data)
		if l.mu.Unlock(); !there {
			return nil, nil
		}
	} else if err := e.dev.ReadAt(r.Data, int64(h.Addr)*segment.Unit); err != nil {
		return nil, e.device(err, "engine.Record")
	}
	for i := range h.Count {
		r.crc[i] = segment.Checksum(block(r.Data, i))
	}
	if sumOf(&sumBuffer{}, r.crc[:h.Count]) != h.Sum {
		return nil, nil
	}
	return r, nil
}
