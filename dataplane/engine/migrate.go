package engine

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/compress"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/domain"
)

// A family goes to another device while its volumes are in use. All branches are copied, each with
// what it wrote itself, so the copy shares what the family shares:
//
//	source              target
//	pinned, watched     coming: made, filled branch by branch     hosts use the source
//	  |                   |  again what hosts wrote meanwhile, until that is little
//	no host is let in     |  the last of it, names, flush
//	left  <------- the switch: one line in the source's log
//	  |                 shown, flushed                            hosts use the target
//	taken away
//
// M1  Until the line is durable the source holds all that was acknowledged and the copy is shown to
//     nobody; from then on the copy does, and the source is shown to nobody.
// M2  No host is let in between the last copy and the target's being shown, so what a crash leaves
//     in between is the same on both.
// M3  A copy whose source was not left is thrown away by the next start, what is left of a source
//     whose copy is shown, too (SettleMigrations).
//
// While a family is copied, its branches without a name are pinned: nothing of them is dropped or
// absorbed, or the copy of one that stands on them would be of another tree than theirs.

// moves is how a family stands to migrations. It changes like a branch's name does.
type moves struct {
	state  segment.MoveState
	token  uint32
	pinned bool // branches that lose their name keep what they hold
}

// hidden tells whether nobody is shown the family.
func (m *moves) hidden() bool { return m.state != segment.MoveNone }

// pin is the name of pinned branches.
var pin = &Volume{}

// show lets a volume or snapshot be found by its id; the locks of setBranches are held.
func (e *Engine) show(v *Volume) {
	switch {
	case v.fam.moves.hidden():
	case v.snapshot.IsZero():
		e.mu.byVolume[v.volume] = v
	default:
		e.mu.bySnapshot[v.snapshot] = v
	}
}

// hide takes that back.
func (e *Engine) hide(v *Volume) {
	switch {
	case v.snapshot.IsZero() && e.mu.byVolume[v.volume] == v:
		delete(e.mu.byVolume, v.volume)
	case e.mu.bySnapshot[v.snapshot] == v:
		delete(e.mu.bySnapshot, v.snapshot)
	}
}

// moved enters what a line says of its family's migration; the locks of setBranches are held.
func (e *Engine) moved(f *family, br *segment.Branch) {
	was := f.moves.hidden()
	f.moves.state, f.moves.token = br.Move, br.Token
	if f.moves.hidden() == was {
		return
	}
	for _, b := range e.mu.branches {
		if b.fam != f || b.gone || b.handle == nil || b.handle == pin {
			continue
		}
		if was {
			e.show(b.handle)
		} else {
			e.hide(b.handle)
		}
	}
}

// grainBlocks is the unit in which is noted what hosts write while a family is copied: 64 KiB.
const grainBlocks = segment.LeafBlocks / 64

// fresh notes where a branch was written to since it was copied there: by extent, a bit for each
// grain. A grain is noted after its change is in the index, and taken off before it is copied.
type fresh struct {
	mu     sync.Mutex
	grains map[uint32]uint64
	count  int // of bits
}

func newFresh() *fresh { return &fresh{grains: map[uint32]uint64{}} }

// freshen notes what a record has changed.
func (p *pending) freshen() {
	f := p.br.fresh.Load()
	if f == nil || p.count == 0 {
		return
	}
	ext, more := uint32(p.block/segment.LeafBlocks), grainsOf(p.block, p.count)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count += bits.OnesCount64(more &^ f.grains[ext])
	f.grains[ext] |= more
}

// take gives an extent that was written to, and forgets it; false when there is none.
func (f *fresh) take() (ext uint32, grains uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ext, grains = range f.grains {
		delete(f.grains, ext)
		f.count -= bits.OnesCount64(grains)
		return ext, grains, true
	}
	return 0, 0, false
}

// extents counts those that were written to, and the grains of them.
func (f *fresh) extents() (n, grains int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.grains), f.count
}

// brake slows the hosts of a family down while it is copied: what they write has to be paid for by
// what is copied, half a grain for each. So the copy catches up with them whatever they do: of n
// grains that are to be copied when the brake is put on, and those of records under way then, no
// more than twice as many are copied until none is left.
type brake struct {
	mu     sync.Mutex
	paid   *sync.Cond
	credit int // halves of grains; below 0 by one record at most
	off    bool
}

// brakeMost is how many halves of grains hosts may use at once: the copy is not held up by a host
// that pauses, and hosts that come back do not undo it.
const brakeMost = 16

func newBrake() *brake {
	b := &brake{}
	b.paid = sync.NewCond(&b.mu)
	return b
}

// wait lets a record through when what was copied has paid for it.
func (b *brake) wait(r *Record) {
	n := 2
	if r.Count > 0 && r.Block%segment.LeafBlocks+uint64(r.Count) <= segment.LeafBlocks {
		n = 2 * bits.OnesCount64(grainsOf(r.Block, r.Count))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.credit <= 0 && !b.off {
		b.paid.Wait()
	}
	b.credit -= n
}

// pay notes grains that were copied.
func (b *brake) pay(grains int) {
	b.mu.Lock()
	b.credit = min(b.credit+grains, brakeMost)
	b.mu.Unlock()
	b.paid.Broadcast()
}

// release lets everybody through from now on.
func (b *brake) release() {
	b.mu.Lock()
	b.off = true
	b.mu.Unlock()
	b.paid.Broadcast()
}

// Family is a volume with all its snapshots and clones, as migrations see it.
type Family struct {
	ID        uint32
	Volumes   []domain.VolumeID
	Snapshots []domain.SnapshotID
	Bytes     domain.Bytes // that its data takes where nothing is compressed
	Packed    domain.Bytes // that it takes compressed as it is now, as far as it would be again
	Encrypted bool         // some of it
	Replica   bool         // other nodes hold copies of it
}

// Families lists the families on the device that are shown, by id.
func (e *Engine) Families() []Family {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.census(func(f *family) bool { return !f.moves.hidden() })
}

// census lists those that a function picks; e.mu is held.
func (e *Engine) census(pick func(f *family) bool) []Family {
	by := map[uint32]*Family{}
	for _, b := range e.mu.branches {
		if b.gone || !pick(b.fam) {
			continue
		}
		f := by[b.fam.id]
		if f == nil {
			f = &Family{ID: b.fam.id, Replica: b.fam.replica != nil}
			by[b.fam.id] = f
		}
		own := domain.Bytes(b.own.Load())
		f.Bytes, f.Packed = f.Bytes+own, f.Packed+own
		f.Encrypted = f.Encrypted || b.key != nil
		switch v := b.handle; {
		case v == nil || v == pin:
		case v.snapshot.IsZero():
			saved := domain.Bytes(b.saved.Load())
			f.Volumes, f.Bytes = append(f.Volumes, v.volume), f.Bytes+saved
			if b.squeeze.warm() == compress.None { // it was said that it shall not be, since
				f.Packed += saved
			}
		default:
			f.Snapshots = append(f.Snapshots, v.snapshot)
		}
	}
	var list []Family
	for _, f := range by {
		slices.SortFunc(f.Volumes, func(a, b domain.VolumeID) int {
			return slices.Compare(a.UUID[:], b.UUID[:])
		})
		slices.SortFunc(f.Snapshots, func(a, b domain.SnapshotID) int {
			return slices.Compare(a.UUID[:], b.UUID[:])
		})
		list = append(list, *f)
	}
	slices.SortFunc(list, func(a, b Family) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Hidden counts the families that stand on the device and are not shown: copies under way, and what
// is left of families that are on another device now.
func (e *Engine) Hidden() int {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return len(e.census(func(f *family) bool { return f.moves.hidden() }))
}

// Room gives how much more data of hosts the device takes.
func (e *Engine) Room() domain.Bytes {
	s := e.space
	index := s.charge(s.index.Load() + s.tables.Load())
	return domain.Bytes(max(0, s.usable.Load()-s.live.Load()-s.admitted.Load()-index))
}

// Staging gives how much data may be in the journal, from where what can be compressed goes to the
// device compressed; 0 without a journal: then it stands there plain until the cleaner moves it.
func (e *Engine) Staging() domain.Bytes {
	if e.nv == nil {
		return 0
	}
	return domain.Bytes(e.nv.share.Slots() * e.nv.share.SlotBlocks() * segment.BlockSize)
}

// Keys tells whether the device takes encrypted volumes.
func (e *Engine) Keys() bool { return e.hasKeys() && e.keys.wrap != nil }

// Migration copies a family to another device. Its methods are called by one goroutine, but for
// Progress.
type Migration struct {
	from, to *Engine
	fam      *family
	pace     func(ctx context.Context, bytes int64) error
	token    uint32
	twins    map[*branch]*twin
	keys     map[uint32]uint32 // of the target, by those of the source
	root     *branch           // of the copy
	unsure   bool              // the switch was begun: whether it was made, the source's log says
	left     bool              // it was made
	done     atomic.Int64
	total    atomic.Int64
	urgent   bool // hosts wait for it
	outrun   bool // hosts wrote faster than it copied: they are slowed down from then on
	lost     losses
	buf      []byte
}

// twin is a branch of the source and its copy.
type twin struct {
	src, dst *branch
	line     segment.Branch // of the copy, as logged last
	walked   bool           // all that it had wrote once is copied
	settled  bool           // nothing of it changes any more, and it is whole
}

// Migrate begins to copy a family to another device; pace, which may be nil, is called after each
// piece with its size and may wait. The engines serve on as before. One family goes at a time from
// and to a device. End it with Clean or Abort. Errors: NotFound; Unsupported for a replica;
// Conflict where the target holds something of the family, Unavailable where a key is missing.
func (e *Engine) Migrate(id uint32, to *Engine,
	pace func(ctx context.Context, bytes int64) error,
) (*Migration, error) {
	e.control.Lock()
	defer e.control.Unlock()
	m := &Migration{
		from: e, to: to, pace: pace, twins: map[*branch]*twin{}, keys: map[uint32]uint32{},
		lost: losses{of: map[carried]fate{}},
		buf:  backends.AlignedBuffer(min(e.RecordBlocks(), to.RecordBlocks()) * segment.BlockSize),
	}
	for m.token == 0 {
		m.token = rand.Uint32() //nolint:gosec // it tells migrations apart, and guards nothing
	}
	e.mu.RLock()
	list := e.census(func(f *family) bool { return f.id == id && !f.moves.hidden() })
	for _, b := range e.mu.branches {
		if b.fam.id == id && !b.gone {
			m.fam = b.fam
		}
	}
	e.mu.RUnlock()
	switch {
	case len(list) == 0:
		return nil, domain.Errorf(domain.NotFound, "family %d is not there", id)
	case list[0].Replica:
		return nil, domain.Errorf(domain.Unsupported, "a replica does not go to another device alone")
	case m.fam.moves.pinned:
		return nil, domain.Errorf(domain.Conflict, "family %d is being copied", id)
	}
	if err := to.strange(list[0]); err != nil {
		return nil, err
	}
	m.total.Store(int64(list[0].Bytes))
	e.pin(m.fam)
	return m, nil
}

// strange refuses a family of which the device holds something, shown or not.
func (e *Engine) strange(f Family) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, b := range e.mu.branches {
		if v := b.handle; !b.gone && v != nil && v != pin && (v.snapshot.IsZero() &&
			slices.Contains(f.Volumes, v.volume) || slices.Contains(f.Snapshots, v.snapshot)) {
			return domain.Errorf(domain.Conflict, "the device holds %s already", v.name())
		}
	}
	return nil
}

// name is what messages call a volume or snapshot.
func (v *Volume) name() string {
	if v.snapshot.IsZero() {
		return "volume/" + v.volume.String()
	}
	return "snapshot/" + v.snapshot.String()
}

// pin keeps what the branches of a family hold, and notes from now on what changes. No sweep is
// half done meanwhile. The caller holds control.
func (e *Engine) pin(f *family) {
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	e.each(f, func(b *branch) {
		b.fresh.Store(newFresh())
		if b.handle == nil {
			b.handle = pin
		}
	}, true)
}

// unpin takes that back, and gives the branches that have to be swept then, the youngest first.
func (e *Engine) unpin(f *family) (list []*branch) {
	e.each(f, func(b *branch) {
		b.fresh.Store(nil)
		if b.handle == pin {
			b.handle = nil
		}
		if b.handle == nil {
			list = append(list, b)
		}
	}, false)
	slices.SortFunc(list, func(a, b *branch) int { return cmp.Compare(b.id, a.id) })
	return list
}

// each calls fn with every branch of a family, under all locks, and sets whether it is pinned.
func (e *Engine) each(f *family, fn func(b *branch), pinned bool) {
	for _, l := range e.lanes {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f.moves.pinned = pinned
	for _, b := range e.mu.branches {
		if b.fam == f && !b.gone {
			fn(b)
		}
	}
}

// Progress gives the bytes that were copied and about how many there are in all. What hosts write
// meanwhile is copied again and counts in both.
func (m *Migration) Progress() (done, total domain.Bytes) {
	return domain.Bytes(m.done.Load()), domain.Bytes(max(m.done.Load(), m.total.Load()))
}

// Volumes names the volumes of the family as it is now.
func (m *Migration) Volumes() []domain.VolumeID {
	m.from.mu.RLock()
	defer m.from.mu.RUnlock()
	for _, f := range m.from.census(func(f *family) bool { return f == m.fam }) {
		return f.Volumes
	}
	return nil
}

const (
	// migrateRest is how many grains may be left to be copied while hosts wait: 2 MiB.
	migrateRest = 32
	// migrateTries is how often a pass may leave more than half of what the one before left, before
	// hosts are slowed down.
	migrateTries = 2
	// migratePasses bounds how often what hosts write is copied. It is not reached: what is left is
	// halved by most passes.
	migratePasses = 64
)

// Copy copies until little is left: at most 2 MiB, and what of hosts is under way. Where they write
// faster than it copies it slows them down, for as long as that takes twice as long as copying what
// is left then; they stay slow, and soon wait, until Release. It may be called again. Errors:
// Aborted when ctx ends; NoSpace, Unavailable and others of the two devices.
func (m *Migration) Copy(ctx context.Context) error {
	if m.outrun && m.fam.brake.Load() == nil {
		m.slow()
	}
	before, tries := math.MaxInt, 0
	for range migratePasses {
		if err := m.pass(ctx); err != nil {
			m.Release()
			return err
		}
		rest := m.rest()
		if rest <= migrateRest {
			return nil
		}
		if rest > before/2 {
			tries++
		}
		if before = rest; tries >= migrateTries && !m.outrun {
			m.slow()
		}
	}
	return nil
}

// slow puts the brake on. Hosts wait for the copy then, so it rests for nobody.
func (m *Migration) slow() {
	m.outrun = true
	m.fam.brake.Store(newBrake())
}

// Release lets hosts write as fast as they can again, also those that wait. Finish needs it, once
// the hosts are kept back otherwise; Abort and Clean do it.
func (m *Migration) Release() {
	if b := m.fam.brake.Swap(nil); b != nil {
		b.release()
	}
}

// rest counts the grains that are to be copied again, or were never copied.
func (m *Migration) rest() int {
	n := 0
	for _, b := range m.branches() {
		t := m.twins[b]
		switch f := b.fresh.Load(); {
		case t == nil && m.from.waste(b), t != nil && t.settled, f == nil:
		case t == nil:
			for _, l := range m.from.lanes {
				n += len(l.written(b)) * (segment.LeafBlocks / grainBlocks)
			}
		default:
			_, grains := f.extents()
			n += grains
		}
	}
	return n
}

// branches lists those of the family, parents first: a branch stands on older ones only.
func (m *Migration) branches() (list []*branch) {
	m.from.mu.RLock()
	defer m.from.mu.RUnlock()
	for _, b := range m.from.mu.branches {
		if b.fam == m.fam && !b.gone {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b *branch) int { return cmp.Compare(a.id, b.id) })
	return list
}

// pass copies what is not copied.
func (m *Migration) pass(ctx context.Context) error {
	for _, b := range m.branches() {
		if m.twins[b] == nil && m.from.waste(b) {
			continue
		}
		if err := m.branch(ctx, b); err != nil {
			return err
		}
	}
	return m.retry(ctx)
}

// branch copies one branch. One that takes no writes any more is whole afterwards; of a head there
// may be more.
func (m *Migration) branch(ctx context.Context, b *branch) error {
	t := m.twins[b]
	if t == nil {
		var err error
		if t, err = m.plant(b); err != nil {
			return err
		}
		m.twins[b] = t
	}
	if t.settled {
		return nil
	}
	frozen := m.from.frozen(b)
	if frozen || m.urgent {
		if err := m.from.reach(); err != nil { // what was appended before it froze
			return err
		}
	}
	if !t.walked {
		for _, l := range m.from.lanes {
			for _, ext := range l.written(b) {
				if err := m.extent(ctx, t, ext, ^uint64(0), false); err != nil {
					return err
				}
			}
		}
		t.walked = true
	}
	f := b.fresh.Load()
	for n, _ := f.extents(); n > 0 || frozen || m.urgent; n-- {
		ext, grains, ok := f.take()
		if !ok {
			break
		}
		if err := m.extent(ctx, t, ext, grains, true); err != nil {
			return err
		}
	}
	t.settled = frozen
	return nil
}

// waste tells whether a pinned branch is one that nobody sees.
func (e *Engine) waste(b *branch) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return b.handle == pin && len(b.kids) == 0
}

// frozen tells whether a branch takes no more writes.
func (e *Engine) frozen(b *branch) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return b.handle == nil || b.handle == pin || !b.handle.snapshot.IsZero()
}

// reach waits until all that was appended before is in the index.
func (e *Engine) reach() error {
	for _, l := range e.lanes {
		if e.nv != nil {
			break // it is
		}
		if err := l.catchUp(); err != nil {
			return err
		}
	}
	return nil
}

// written lists the extents of a lane in which a branch has a leaf.
func (l *lane) written(b *branch) (list []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.parent == nil {
		for ext, lf := range b.fam.leaves[l.no] {
			if lf.of(b) != nil {
				list = append(list, ext)
			}
		}
	} else {
		for ext := range b.wrote[l.no] {
			list = append(list, ext)
		}
	}
	slices.Sort(list)
	return list
}

// plant makes the copy of a branch, empty, under a name of chance.
func (m *Migration) plant(b *branch) (*twin, error) {
	m.to.control.Lock()
	defer m.to.control.Unlock()
	line := segment.Branch{
		ID: m.to.newBranch(), State: segment.BranchLive, Gen: b.gen, Epoch: b.epoch,
		Size: uint64(domain.VolumeMax), Move: segment.MoveComing, Token: m.token,
	}
	line.Family, line.Volume = line.ID, provisional(m.token, line.ID)
	if m.root != nil {
		p := m.twins[m.parent(b)]
		line.Parent, line.Family = p.dst.id, m.root.fam.id
	}
	if b.key != nil {
		if b.key.secret == nil {
			return nil, (&Volume{volume: m.from.volumeOf(b)}).locked(b.key)
		}
		if m.keys[b.key.id] == 0 {
			if err := m.to.newKey(line.ID); err != nil {
				return nil, err
			}
			m.keys[b.key.id] = line.ID
		}
		line.Key = m.keys[b.key.id]
	}
	if err := m.to.logBranches(context.Background(), line); err != nil {
		return nil, err
	}
	t := &twin{src: b, line: line, dst: m.to.branch(line.ID)}
	t.dst.squeeze.mode.Store(b.squeeze.mode.Load())
	if m.root == nil {
		m.root = t.dst
	}
	return t, nil
}

// parent gives the branch that another one stands on.
func (m *Migration) parent(b *branch) *branch {
	m.from.mu.RLock()
	defer m.from.mu.RUnlock()
	return b.parent
}

// provisional names a copy of a branch that is not whole.
func provisional(token, id uint32) (v domain.VolumeID) {
	copy(v.UUID[:], "\xff\xffmoving")
	binary.LittleEndian.PutUint32(v.UUID[8:], token)
	binary.LittleEndian.PutUint32(v.UUID[12:], id)
	return v
}

// extent copies what a branch itself says of some grains of an extent. Of one that was copied
// before, again says so, what it says nothing of any more and sees as a hole becomes one.
func (m *Migration) extent(ctx context.Context, t *twin, ext uint32, grains uint64, again bool,
) error {
	return m.some(ctx, t, ext, again, grains, func(i int) bool {
		return grains>>(i/grainBlocks)&1 > 0
	})
}

// some is extent for blocks of it that a function picks; grains are those that are done with then.
func (m *Migration) some(ctx context.Context, t *twin, ext uint32, again bool, grains uint64,
	pick func(i int) bool,
) error {
	var own, sees [segment.LeafBlocks]segment.Loc
	l := m.from.laneOf(m.fam, ext)
	l.mu.Lock()
	if lf := m.fam.leaves[l.no][ext]; lf != nil {
		if of := lf.of(t.src); of != nil {
			of.own.over(own[:], 0)
		}
		lf.find(t.src).resolve(0, sees[:])
	}
	l.mu.Unlock()
	kind := func(i int) segment.Kind {
		switch {
		case !pick(i):
		case own[i] == segment.HoleLoc, own[i] == 0 && again && sees[i] == 0:
			return segment.KindUnmap
		case own[i].Kind() == segment.Zero:
			return segment.KindZero
		case own[i] != 0:
			return segment.KindData
		}
		return 0
	}
	most := len(m.buf) / segment.BlockSize
	for i := 0; i < segment.LeafBlocks; {
		k, n := kind(i), 1
		for i+n < segment.LeafBlocks && kind(i+n) == k && (k != segment.KindData || n < most) {
			n++
		}
		if k != 0 {
			if err := m.piece(ctx, t, k, uint64(ext)*segment.LeafBlocks+uint64(i), n); err != nil {
				return err
			}
		}
		if b := m.fam.brake.Load(); b != nil { // for the grains that end here
			b.pay(bits.OnesCount64(grains >> (i / grainBlocks) & (1<<((i+n)/grainBlocks-i/grainBlocks) - 1)))
		}
		i += n
	}
	return nil
}

// ended gives the error of a migration that was ended.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return &domain.Error{Op: "engine.Migrate", Kind: domain.Aborted, Err: err}
	}
	return nil
}

// put copies blocks, all or none.
func (m *Migration) put(ctx context.Context, t *twin, k segment.Kind, block uint64, n int) error {
	if err := ended(ctx); err != nil {
		return err
	}
	hurry := func() bool { return m.urgent || m.fam.brake.Load() != nil }
	m.from.sched.Begin(qos.Migrate, hurry)
	m.to.sched.Begin(qos.Migrate, hurry)
	r, w := &Record{Kind: k, Block: block, Count: n, Now: true}, make(branchWait, 1)
	r.To = w
	var err error
	if k == segment.KindData {
		r.Data = m.buf[:n*segment.BlockSize]
		v := &Volume{e: m.from, fam: m.fam, volume: m.from.volumeOf(t.src)}
		v.resize(uint64(domain.VolumeMax))
		v.br.Store(t.src)
		if err = v.Read(block, n, r.Data); err != nil {
			err = m.unread(t, block, n, err)
		}
	}
	if err == nil {
		t.dst.handle.Append(r)
		err = <-w
	}
	m.to.sched.End(qos.Migrate)
	m.from.sched.End(qos.Migrate)
	if err != nil || k != segment.KindData {
		return err
	}
	m.done.Add(int64(n) * segment.BlockSize)
	if m.pace != nil && !hurry() {
		return m.pace(ctx, int64(n)*segment.BlockSize)
	}
	return nil
}

// Finish copies the rest and makes the switch, while no host is let in to any volume of the family
// and none of their requests is under way: afterwards the family is shown by the target, and by
// the source no more, durably. An error leaves the family where it was, but for one of the devices
// itself, which is out of service then: what holds the family is decided by SettleMigrations.
func (m *Migration) Finish(ctx context.Context) error {
	m.urgent = true
	m.Release()
	if err := m.pass(ctx); err != nil {
		return err
	}
	m.from.control.Lock()
	defer m.from.control.Unlock()
	if err := m.pass(ctx); err != nil { // what was asked of the family's branches meanwhile
		return err
	}
	if err := ended(ctx); err != nil {
		return err
	}
	m.to.control.Lock()
	defer m.to.control.Unlock()
	ctx = context.WithoutCancel(ctx)
	if err := m.baptize(ctx); err != nil {
		return err
	}
	if err := m.saveLosses(ctx); err != nil {
		return err
	}
	if err := m.to.settleAll(ctx); err != nil {
		return err
	}
	m.unsure = true
	if err := m.from.mark(ctx, m.fam, segment.MoveLeft, m.token); err != nil {
		return err
	}
	m.left = true
	m.tellLosses()
	return m.to.mark(ctx, m.root.fam, segment.MoveNone, m.token)
}

// Left tells whether the switch was made: the source does not show the family any more.
func (m *Migration) Left() bool { return m.left }

// Copied gives the copy of a volume, which is shown once Finish has succeeded.
func (m *Migration) Copied(id domain.VolumeID) (*Volume, bool) {
	if m.root == nil {
		return nil, false
	}
	m.to.mu.RLock()
	defer m.to.mu.RUnlock()
	for _, b := range m.to.mu.branches {
		if v := b.handle; b.fam == m.root.fam && !b.gone && v != nil && v.volume == id &&
			v.snapshot.IsZero() {
			return v, true
		}
	}
	return nil, false
}

// baptize gives all copies of branches the names of theirs, and takes provisional ones away where
// there is none. Both controls are held.
func (m *Migration) baptize(ctx context.Context) error {
	var lines []segment.Branch
	for b, t := range m.twins {
		t.dst.squeeze.mode.Store(b.squeeze.mode.Load()) // it may have been said meanwhile
		m.from.mu.RLock()
		is := b.line()
		m.from.mu.RUnlock()
		want := t.line
		want.State, want.Size = is.State, is.Size
		want.Volume, want.Snapshot = is.Volume, is.Snapshot
		if want == t.line {
			continue
		}
		t.line = want
		lines = append(lines, want)
	}
	for list := range slices.Chunk(lines, segment.BranchesMax) {
		if err := m.to.logBranches(ctx, list...); err != nil {
			return err
		}
	}
	return nil
}

// settleAll makes everything that was acknowledged durable, also where that is not promised.
func (e *Engine) settleAll(ctx context.Context) error {
	if err := e.Flush(ctx); err != nil {
		return err
	}
	return e.flushDevice()
}

// mark says what became of a family, durably. The caller holds control. An error takes the engine
// out of service: nobody knows what its log says.
func (e *Engine) mark(ctx context.Context, f *family, s segment.MoveState, token uint32) error {
	e.mu.RLock()
	line := f.root.line()
	e.mu.RUnlock()
	line.Move, line.Token = s, token
	err := e.logBranches(ctx, line)
	if err == nil {
		err = e.flushDevice()
	}
	if err != nil {
		e.fail(err)
	}
	return err
}

// Clean takes away what is left on the source after the switch.
func (m *Migration) Clean(ctx context.Context) error {
	m.Release()
	m.from.unpin(m.fam)
	for _, b := range m.to.nameless(m.root.fam) {
		m.to.sweep(b)
	}
	return m.from.discard(ctx, m.fam)
}

// Abort ends a migration before the switch: the source is as it was, and the copy is thrown away.
// Where that fails the next start does it. Once the switch was begun nothing is thrown away.
func (m *Migration) Abort(ctx context.Context) error {
	m.Release()
	if m.unsure {
		return nil
	}
	for _, b := range m.from.unpin(m.fam) {
		m.from.sweep(b)
	}
	m.from.control.Lock()
	err := m.from.dropKeys()
	m.from.control.Unlock()
	if m.root == nil || err != nil {
		return err
	}
	return m.to.discard(ctx, m.root.fam)
}

// nameless lists the branches of a family without a name, the youngest first.
func (e *Engine) nameless(f *family) (list []*branch) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, b := range e.mu.branches {
		if b.fam == f && !b.gone && !b.named() {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b *branch) int { return cmp.Compare(b.id, a.id) })
	return list
}

// discard takes all names of a family away, and what they saw.
func (e *Engine) discard(ctx context.Context, f *family) error {
	e.control.Lock()
	var lines []segment.Branch
	e.mu.RLock()
	for _, b := range e.mu.branches {
		if b.fam == f && !b.gone && b.named() {
			line := b.line()
			line.State = segment.BranchBuried
			lines = append(lines, line)
		}
	}
	e.mu.RUnlock()
	var err error
	for list := range slices.Chunk(lines, segment.BranchesMax) {
		if err = e.logBranches(context.WithoutCancel(ctx), list...); err != nil {
			break
		}
	}
	e.control.Unlock()
	if err != nil {
		return err
	}
	for _, b := range e.nameless(f) {
		e.sweep(b)
	}
	e.control.Lock()
	defer e.control.Unlock()
	return e.dropKeys()
}

// remnant is a family that is not shown.
type remnant struct {
	e     *Engine
	f     *family
	names []*Volume
	whole bool // no branch waits for its name
}

// remnants lists the families of a device that are not shown, by token.
func (e *Engine) remnants() map[uint32]*remnant {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := map[uint32]*remnant{}
	for _, b := range e.mu.branches {
		if b.gone || !b.fam.moves.hidden() {
			continue
		}
		r := out[b.fam.moves.token]
		if r == nil {
			r = &remnant{e: e, f: b.fam, whole: true}
			out[b.fam.moves.token] = r
		}
		if v := b.handle; v != nil && v != pin {
			r.names = append(r.names, v)
			r.whole = r.whole && v.volume != provisional(b.fam.moves.token, b.id)
		}
	}
	return out
}

// Remnant is a family that stands on a device and is shown to nobody, since what it is cannot be
// told without a device that is not there.
type Remnant struct {
	Token     uint32 // of the migration
	Left      bool   // the family went to the other device; else it is a copy of what is there
	Volumes   []domain.VolumeID
	Snapshots []domain.SnapshotID
}

// Remnants lists what SettleMigrations left, by token.
func (e *Engine) Remnants() (list []Remnant) {
	for token, r := range e.remnants() {
		x := Remnant{Token: token, Left: r.f.moves.state == segment.MoveLeft}
		for _, v := range r.names {
			if v.snapshot.IsZero() {
				x.Volumes = append(x.Volumes, v.volume)
			} else {
				x.Snapshots = append(x.Snapshots, v.snapshot)
			}
		}
		slices.SortFunc(x.Volumes, func(a, b domain.VolumeID) int {
			return slices.Compare(a.UUID[:], b.UUID[:])
		})
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b Remnant) int { return cmp.Compare(a.Token, b.Token) })
	return list
}

// DiscardCopies throws away the copies among what SettleMigrations left, and gives how many they
// were: the switch to one was never made as far as is known here, so the device that is not there
// has all of it, unless it is gone for good. What was left of a family that went stays.
func (e *Engine) DiscardCopies(ctx context.Context) (n int, err error) {
	for _, r := range e.remnants() {
		if r.f.moves.state == segment.MoveLeft {
			continue
		}
		if err := r.e.discard(ctx, r.f); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// SettleMigrations ends what a crash cut short, among the devices of a node: before anything of
// them is served. What cannot be told without a device that is not there stays as it is, shown to
// nobody. Where some of them are in use already, of names the one whose families it is about.
func SettleMigrations(ctx context.Context, engines []*Engine, of ...*Engine) error {
	if len(of) == 0 {
		of = engines
	}
	for _, e := range of {
		for token, r := range e.remnants() {
			if err := r.settle(ctx, token, engines); err != nil {
				id, _ := e.Info()
				return domain.Wrap(err, "engine.SettleMigrations", "device/"+id.String())
			}
		}
	}
	return nil
}

// settle ends the migration of which this is one end.
func (r *remnant) settle(ctx context.Context, token uint32, engines []*Engine) error {
	left := r.f.moves.state == segment.MoveLeft
	for _, o := range engines {
		other := o.remnants()[token]
		switch {
		case o == r.e:
		case left && other != nil:
			return r.promote(ctx, other, token)
		case left && o.came(token):
			return r.e.discard(ctx, r.f)
		case !left && other != nil:
			return other.promote(ctx, r, token)
		case !left && (!r.whole || o.shows(r.names)):
			return r.e.discard(ctx, r.f)
		}
	}
	if !left && !r.whole {
		return r.e.discard(ctx, r.f)
	}
	return nil
}

// promote shows the copy of what was left, and takes that away.
func (r *remnant) promote(ctx context.Context, to *remnant, token uint32) error {
	if !to.whole || r.f.moves.state != segment.MoveLeft {
		return domain.Errorf(domain.Corrupt, "migration %08x: the source was left, the copy is in parts",
			token)
	}
	to.e.control.Lock()
	err := to.e.mark(ctx, to.f, segment.MoveNone, token)
	to.e.control.Unlock()
	if err != nil {
		return err
	}
	return r.e.discard(ctx, r.f)
}

// came tells whether a family is shown that a migration brought here.
func (e *Engine) came(token uint32) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, b := range e.mu.branches {
		if !b.gone && !b.fam.moves.hidden() && b.fam.moves.token == token {
			return true
		}
	}
	return false
}

// shows tells whether the device shows something of a name.
func (e *Engine) shows(names []*Volume) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, v := range names {
		if v.snapshot.IsZero() && e.mu.byVolume[v.volume] != nil || e.mu.bySnapshot[v.snapshot] != nil {
			return true
		}
	}
	return false
}

// String describes a family in messages.
func (f Family) String() string {
	return fmt.Sprintf("%d volumes and %d snapshots, %s", len(f.Volumes), len(f.Snapshots), f.Bytes)
}
