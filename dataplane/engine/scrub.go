package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/backends"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// The scrub reads everything that the device would be asked for one day and compares it with the
// checksums that stand elsewhere: so a sector that was flipped, lost, written to another place or
// left as it was shows while there is time to do something about it. It goes by the index, extent
// by extent, because that says what has to be there; a walk through the segments would miss what
// no entry names any more.
//
// Blocks of encrypted volumes wait for the walk through the segments that follows, which has their
// entries and so their tags (scrubtag.go).
//
// A block whose newest copy is in the journal is checked there, in memory: what stands on the
// device for it is of no worth any more, and an image of the index says that it is lost.
//
// What it finds it reports and never returns to anybody. Superblocks and images of the index it
// writes anew from memory. Blocks of hosts stay as they are: they read as corrupt until they are
// written again.

const (
	// scrubBurst is the most it reads at once; hosts wait no longer than that takes.
	scrubBurst = 256 << 10
	// scrubSave is how much is checked between two writes of the mark.
	scrubSave = 256 << 20
	// scrubYield divides the rate while hosts use the device.
	scrubYield = 4
)

// Damage is one place that is not what it has to be.
type Damage struct {
	// Part is "block", "journal", "index", "superblock", "anchor", "root", "header" or "entries"; or
	// "record": one of the blocks of a record that a replica holds whole, seen or not.
	Part     string
	Pass     uint64 // that found it
	Volume   domain.VolumeID
	Snapshot domain.SnapshotID
	Block    uint64
	Version  domain.Version // of a block, as far as its entry can be read
	Off      int64          // on the device, in bytes; of "journal" in its memory
	Detail   string
	Mended   bool // it was written anew
}

// ScrubOptions say how a pass is run. Now and After are required.
type ScrubOptions struct {
	// Rate is the most bytes a second, a quarter of it while hosts use the device; 0: no limit.
	Rate int64
	// Above is a pass that is known elsewhere: a new one has a higher number, also where the device's
	// own mark was lost.
	Above uint64
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
	// Found hears of each damaged place, once a pass. It must not block. Nil hears nothing.
	Found func(Damage)
}

// ScrubStatus says how far the scrub has come.
type ScrubStatus struct {
	Running bool
	segment.ScrubMark
}

// scrubState is the scrub's part of an engine.
type scrubState struct {
	mu      sync.Mutex
	running bool
	loaded  bool
	mark    segment.ScrubMark
}

// ScrubStatus gives how far the scrub has come, also of one that was cut short. Its error is the
// device's.
func (e *Engine) ScrubStatus() (ScrubStatus, error) {
	e.scrub.mu.Lock()
	defer e.scrub.mu.Unlock()
	err := e.loadScrub()
	return ScrubStatus{e.scrub.running, e.scrub.mark}, err
}

// loadScrub reads the mark; scrub.mu is held.
func (e *Engine) loadScrub() error {
	s := &e.scrub
	if s.loaded {
		return nil
	}
	b := backends.AlignedBuffer(segment.ScrubCopies * segment.Sector)
	if err := e.dev.ReadAt(b, segment.ScrubOff); err != nil {
		return e.device(err, "engine.scrub")
	}
	for i := range segment.ScrubCopies {
		m, err := segment.DecodeScrubMark(b[i*segment.Sector : (i+1)*segment.Sector])
		if err == nil && m.Seq > s.mark.Seq {
			s.mark = *m
		}
	}
	s.loaded = true
	return nil
}

// saveScrub writes the mark, over the older copy.
func (e *Engine) saveScrub(m *segment.ScrubMark) error {
	m.Seq++
	b := backends.AlignedBuffer(segment.Sector)
	m.Encode(b)
	off := segment.ScrubOff + int64(m.Seq%segment.ScrubCopies)*segment.Sector
	if err := e.dev.WriteAt(b, off, e.fua); err != nil {
		return e.device(err, "engine.scrub")
	}
	e.scrub.mu.Lock()
	e.scrub.mark = *m
	e.scrub.mu.Unlock()
	return nil
}

// Scrub goes on with the pass that is under way, from where it was cut short, or begins one, and
// returns when it has come to its end, or with Aborted when ctx ends first. The mark is durable
// then. One at a time: Busy for another. Unavailable when the device fails.
func (e *Engine) Scrub(ctx context.Context, o ScrubOptions) (ScrubStatus, error) {
	s := &e.scrub
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return ScrubStatus{}, domain.Errorf(domain.Busy, "a scrub of the device is under way")
	}
	err := e.loadScrub()
	m := s.mark
	s.running = err == nil
	s.mu.Unlock()
	if err != nil {
		return ScrubStatus{}, err
	}
	p := &scrubPass{e: e, o: o, m: m, hosts: e.hostOps()}
	err = p.run(ctx)
	if serr := e.saveScrub(&p.m); err == nil {
		err = serr
	}
	s.mu.Lock()
	s.running = false
	s.mu.Unlock()
	return ScrubStatus{false, p.m}, err
}

func (e *Engine) hostOps() int64 { return e.stats.records.Load() + e.stats.reads.Load() }

// scrubPass is one run. It belongs to the goroutine that called Scrub.
type scrubPass struct {
	e     *Engine
	o     ScrubOptions
	m     segment.ScrubMark
	hosts int64 // operations of hosts when it last looked
	since int64 // bytes since the mark was written
	buf   []byte
	again bool // images have to be written anew
	pad   pad
	seals []scrubBlock // of the segment that is looked at
}

func (p *scrubPass) run(ctx context.Context) error {
	if p.m.Stage == 0 {
		p.m = segment.ScrubMark{
			Seq: p.m.Seq, Pass: max(p.m.Pass, p.o.Above) + 1, Stage: segment.ScrubFrame, Started: p.o.Now(),
			Finished: p.m.Finished,
		}
	}
	p.buf = backends.AlignedBuffer(scrubBurst)
	for _, stage := range []struct {
		no uint8
		do func(context.Context) error
	}{
		{segment.ScrubFrame, p.frame},
		{segment.ScrubExtents, p.extents},
		{segment.ScrubSegments, p.segments},
	} {
		if p.m.Stage != stage.no {
			continue
		}
		if err := stage.do(ctx); err != nil {
			return err
		}
		if p.again {
			if err := p.e.Checkpoint(); err != nil {
				return err
			}
			p.again = false
		}
		p.m.Stage++
	}
	p.m.Stage, p.m.Finished = 0, p.o.Now()
	p.m.Family, p.m.Extent, p.m.Segment = 0, 0, 0
	return nil
}

// pace notes that bytes were read and waits as the rate says. Idle devices are read at full rate.
func (p *scrubPass) pace(ctx context.Context, n int64) error {
	p.m.Checked += uint64(n)
	if p.since += n; p.since >= scrubSave {
		p.since = 0
		if err := p.e.saveScrub(&p.m); err != nil {
			return err
		}
	}
	p.e.scrub.mu.Lock()
	p.e.scrub.mark = p.m
	p.e.scrub.mu.Unlock()
	if ctx.Err() == nil && p.o.Rate > 0 {
		rate, hosts := p.o.Rate, p.e.hostOps()
		if hosts != p.hosts {
			rate = max(rate/scrubYield, 1)
		}
		p.hosts = hosts
		select {
		case <-p.o.After(time.Duration(float64(n) / float64(rate) * float64(time.Second))):
		case <-ctx.Done():
		}
	}
	switch {
	case ctx.Err() != nil:
		return &domain.Error{Op: "engine.Scrub", Kind: domain.Aborted, Err: ctx.Err()}
	case p.e.failed.Load():
		return domain.Errorf(domain.Unavailable, "device failed")
	}
	return nil
}

// found reports one place.
func (p *scrubPass) found(d Damage) {
	p.m.Damaged++
	d.Pass = p.m.Pass
	p.e.report(Fact{
		What: "corrupt", Volume: d.Volume, Block: d.Block,
		Detail: fmt.Sprintf("found by the scrub: %s at %d: %s", d.Part, d.Off, d.Detail),
	})
	if p.o.Found != nil {
		p.o.Found(d)
	}
}

// frame checks superblocks, the newest anchor and the root.
func (p *scrubPass) frame(ctx context.Context) error {
	e := p.e
	b := p.buf[:segment.Sector]
	for i, off := range e.super.SuperOffsets() {
		err := e.dev.ReadAt(b, off)
		if err == nil {
			var sb *segment.Superblock
			if sb, err = segment.DecodeSuperblock(b); err == nil && sb.Generation != e.super.Generation {
				err = fmt.Errorf("copy %d is of generation %d", i, sb.Generation)
			}
		}
		if err != nil {
			e.super.Encode(b)
			mended := e.dev.WriteAt(b, off, e.fua) == nil
			p.found(Damage{Part: "superblock", Off: off, Detail: err.Error(), Mended: mended})
		}
	}
	e.maint.ckpt.Lock()
	seq, root := e.maint.anchorSeq, slices.Clone(e.maint.root)
	for i := range int64(segment.AnchorCopies) {
		off := segment.AnchorPlace(seq) + i*segment.Sector
		err := e.dev.ReadAt(b, off)
		if err == nil {
			var a *segment.Anchor
			if a, err = segment.DecodeAnchor(b); err == nil && a.Seq != seq {
				err = fmt.Errorf("anchor %d stands there", a.Seq)
			}
		}
		if err != nil {
			p.again = true
			p.found(Damage{Part: "anchor", Off: off, Detail: err.Error(), Mended: true})
		}
	}
	n := int64(0)
	for _, r := range root { // under the lock: a checkpoint would free them
		n += int64(r.Bytes)
		if _, err := e.read(r); err != nil {
			p.again = true
			p.found(Damage{Part: "root", Off: int64(r.Off), Detail: err.Error(), Mended: true})
		}
	}
	e.maint.ckpt.Unlock()
	return p.pace(ctx, n+int64(3+segment.AnchorCopies)*segment.Sector)
}

// extents checks live blocks and leaves, family by family.
func (p *scrubPass) extents(ctx context.Context) error {
	for _, f := range p.e.families() {
		if f.id < p.m.Family {
			continue
		}
		if f.id > p.m.Family {
			p.m.Family, p.m.Extent = f.id, 0
		}
		for _, ext := range p.e.extentsOf(f) {
			if ext < p.m.Extent {
				continue
			}
			p.m.Extent = ext
			if err := p.extent(ctx, f, ext); err != nil {
				return err
			}
		}
		if err := p.held(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// families lists the families by id.
func (e *Engine) families() []*family {
	e.mu.RLock()
	defer e.mu.RUnlock()
	seen := map[*family]bool{}
	var list []*family
	for _, b := range e.mu.branches {
		if !b.gone && !seen[b.fam] {
			seen[b.fam] = true
			list = append(list, b.fam)
		}
	}
	slices.SortFunc(list, func(a, b *family) int { return cmp.Compare(a.id, b.id) })
	return list
}

// extentsOf lists the extents that some branch of a family wrote.
func (e *Engine) extentsOf(f *family) []uint32 {
	var list []uint32
	for _, l := range e.lanes {
		l.mu.Lock()
		for ext := range f.leaves[l.no] {
			list = append(list, ext)
		}
		l.mu.Unlock()
	}
	slices.Sort(list)
	return list
}

// scrubBlock is a live block as the index had it.
type scrubBlock struct {
	f     *family
	ext   uint32
	at    int // in its extent
	loc   segment.Loc
	proof *proof // what its tag is checked by; nil: it has none, or it cannot be checked here
}

func (b scrubBlock) block() uint64 { return uint64(b.ext)*segment.LeafBlocks + uint64(b.at) }

// leavesOf lists the leaves of an extent; the lane's mutex is held.
func leavesOf(f *family, l *lane, ext uint32) []*leaf {
	lf := f.leaves[l.no][ext]
	switch {
	case lf == nil:
		return nil
	case lf.tree == nil:
		return []*leaf{lf}
	}
	var list []*leaf
	for _, m := range lf.tree.marks {
		if !m.end {
			list = append(list, m.lf)
		}
	}
	return list
}

// live lists the blocks of an extent that stand in the log, or nowhere any more, those in the
// journal, and the leaves. Those of the log are all but those that wait for their segment, or,
// where seg is one, those that waited for it.
func (p *scrubPass) live(f *family, ext uint32, seg int64,
) (logged, kept []scrubBlock, ids []leafID) {
	l := p.e.laneOf(f, ext)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lf := range leavesOf(f, l, ext) {
		ids = append(ids, leafID{lf.br.id, ext})
		lf.own.each(func(i int, loc segment.Loc) {
			b := scrubBlock{f: f, ext: ext, at: i, loc: loc}
			switch k := loc.Kind(); {
			case p.e.nv.holds(loc):
				kept = append(kept, b)
			case k != segment.Flash:
				if k == segment.Lost && seg < 0 {
					logged = append(logged, b)
				}
			case seg < 0 && !p.waits(lf.br, loc),
				seg >= 0 && lf.br.key != nil && int64(p.e.space.id(loc)) == seg:
				logged = append(logged, b)
			}
		})
	}
	return logged, kept, ids
}

// extent checks one extent of all branches of a family.
func (p *scrubPass) extent(ctx context.Context, f *family, ext uint32) error {
	blocks, kept, ids := p.live(f, ext, -1)
	for _, b := range kept {
		p.kept(b)
	}
	if err := p.pace(ctx, int64(len(kept))*segment.BlockSize); err != nil {
		return err
	}
	if err := p.bursts(ctx, blocks); err != nil {
		return err
	}
	for _, id := range ids {
		n := p.image(p.e.laneOf(f, ext), f, id)
		if err := p.pace(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// bursts checks blocks in the order in which they stand on the device.
func (p *scrubPass) bursts(ctx context.Context, blocks []scrubBlock) error {
	slices.SortFunc(blocks, func(a, b scrubBlock) int { return cmp.Compare(a.loc, b.loc) })
	for len(blocks) > 0 {
		n, size, err := p.burst(blocks)
		if err != nil {
			return err
		}
		if err := p.pace(ctx, size); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	return nil
}

// kept checks a block in the journal, unless it left it since the index was looked at. While the
// lane's mutex is held and the index names the block, its slot is not free for others.
func (p *scrubPass) kept(b scrubBlock) {
	n, l := p.e.nv, p.e.laneOf(b.f, b.ext)
	l.mu.Lock()
	holder := l.names(b)
	wrong := ""
	if holder != nil {
		wrong = p.inJournal(holder, b.loc)
	}
	if wrong == "" {
		l.mu.Unlock()
		return
	}
	d := Damage{
		Part: "journal", Block: b.block(),
		Off: int64(n.place(b.loc)) * segment.BlockSize, Detail: wrong,
	}
	n.entryOf(b.loc, func(en *segment.Entry, _ []byte, _ int) { d.Version = en.Version })
	l.mu.Unlock()
	d.Volume, d.Snapshot = p.e.nameOf(holder)
	p.found(d)
}

// entryOf calls fn with the entry of a block in the journal, and which of its blocks it is; the
// lane's mutex is held.
func (n *nvram) entryOf(loc segment.Loc, fn func(en *segment.Entry, raw []byte, i int)) {
	at := n.place(loc)
	n.share.Each(&n.slotAt(loc).Slot, func(en *segment.Entry, raw []byte, first uint32) {
		if en.Kind == segment.KindData && at >= first && at < first+uint32(en.Count) {
			fn(en, raw, int(at-first))
		}
	}, nil)
}

// burst reads the first of the blocks with those that stand near behind it, and checks them. It
// gives how many it checked and how much it read.
func (p *scrubPass) burst(blocks []scrubBlock) (int, int64, error) {
	first := blocks[0].loc
	if first.Kind() != segment.Flash {
		p.judge(blocks[0], "the index lost its place")
		return 1, 0, nil
	}
	n := 0
	start, end := first.Span()
	for _, b := range blocks {
		from, to := b.loc.Span()
		if b.loc.Kind() != segment.Flash || from-end > tier.GapMin || to-start > scrubBurst {
			break
		}
		end = to
		n++
	}
	size := end - start
	p.e.sched.Begin(qos.Scrub, nil)
	err := p.e.dev.ReadAt(p.buf[:size], start)
	p.e.sched.End(qos.Scrub)
	if err != nil {
		if n == 1 {
			p.judge(blocks[0], "it cannot be read: "+err.Error())
			return 1, size, nil
		}
		// One bad sector costs its own block only.
		size = 0
		for _, b := range blocks[:n] {
			_, one, err := p.burst([]scrubBlock{b})
			if err != nil {
				return 0, 0, err
			}
			size += one
		}
		return n, size, nil
	}
	for _, b := range blocks[:n] {
		at := p.buf[b.loc.Off()-start:]
		if !b.loc.Matches(at) {
			p.judge(b, "its bytes do not match its checksum")
		} else if wrong := p.prove(b, at); wrong != "" {
			p.judge(b, wrong)
		}
	}
	return n, size, nil
}

// judge reports a block unless it went elsewhere, or away, since the index was looked at.
func (p *scrubPass) judge(b scrubBlock, why string) {
	l := p.e.laneOf(b.f, b.ext)
	l.mu.Lock()
	holder := l.names(b)
	if b.proof != nil && p.e.space.at(b.loc.Off()).life.Load() != b.proof.life {
		holder = nil // the place is another life's, and so is the block
	}
	l.mu.Unlock()
	if holder == nil {
		return
	}
	d := Damage{Part: "block", Block: b.block(), Detail: why}
	if b.loc.Kind() == segment.Flash {
		d.Off, d.Version = b.loc.Off(), p.e.versionOf(b.loc)
	}
	d.Volume, d.Snapshot = p.e.nameOf(holder)
	p.found(d)
}

// names gives the branch in whose leaf a block still stands where it was seen; nil when none has it
// there any more. The lane's mutex is held.
func (l *lane) names(b scrubBlock) *branch {
	for _, lf := range leavesOf(b.f, l, b.ext) {
		if lf.own.get(b.at) == b.loc {
			return lf.br
		}
	}
	return nil
}

// nameOf gives a name that sees what a branch wrote: its own, or that of one that stands on it.
func (e *Engine) nameOf(b *branch) (domain.VolumeID, domain.SnapshotID) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for (b.handle == nil || b.handle == pin) && len(b.kids) > 0 {
		b = b.kids[0]
	}
	if b.handle == nil {
		return domain.VolumeID{}, domain.SnapshotID{}
	}
	return b.handle.volume, b.handle.snapshot
}

// versionOf looks for the entry of a block in its segment; zero when there is none.
func (e *Engine) versionOf(loc segment.Loc) domain.Version {
	id := e.space.id(loc)
	var v domain.Version
	seq, err := e.lifeOf(id)
	if err != nil {
		return v
	}
	_ = e.eachChunk(id, seq, func(off int64, h *segment.Chunk, entries []byte) error {
		base := uint64(off+int64(h.HeaderBytes())) / segment.Unit
		for range h.Entries {
			var en segment.Entry
			n, err := segment.DecodeEntry(entries, h.LSN, &en)
			if err != nil {
				return nil //nolint:nilerr // the version is told where it can be read
			}
			first := base + uint64(en.Off)
			if en.Kind == segment.KindData && loc.Addr() >= first &&
				loc.Addr() < first+uint64(en.Units) {
				v = en.Version
			}
			entries = entries[n:]
		}
		return nil
	})
	return v
}

// life gives a segment's sequence, state and live bytes.
func (s *space) life(id uint32) (seq uint64, st segState, live int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sg := s.mu.segs[id]
	return sg.seq, sg.state, sg.live.Load()
}

// image checks the last durable image of a leaf. A damaged one is written anew from memory.
func (p *scrubPass) image(l *lane, f *family, id leafID) int64 {
	e := p.e
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	at, ok := e.maint.directory[id]
	if !ok {
		return 0
	}
	b, err := e.read(at)
	if err == nil {
		_, err = segment.DecodeLeaf(b, &segment.Leaf{})
	}
	if err == nil {
		return int64(at.Bytes)
	}
	d := Damage{
		Part: "index", Block: uint64(id.extent) * segment.LeafBlocks, Off: int64(at.Off),
		Detail: err.Error(), Mended: true,
	}
	l.mu.Lock()
	var holder *branch
	for _, lf := range leavesOf(f, l, id.extent) {
		if lf.br.id == id.branch {
			l.touch(lf)
			holder = lf.br
		}
	}
	l.mu.Unlock()
	p.again = true
	if holder != nil {
		d.Volume, d.Snapshot = e.nameOf(holder)
	}
	p.found(d)
	return int64(at.Bytes)
}

// segments checks that each segment's header is there, and that its entries lead to all that lives
// in it: without them the cleaner could not move it, and the segment would never be free again. Of
// encrypted blocks it checks bytes and tags, too.
func (p *scrubPass) segments(ctx context.Context) error {
	for int(p.m.Segment) < len(p.e.space.mu.segs) {
		id := p.m.Segment
		whole, err := p.segment(id)
		if err != nil {
			return err
		}
		if err := p.bursts(ctx, p.seals); err != nil {
			return err
		}
		if !whole {
			if err := p.unnamed(ctx, id); err != nil {
				return err
			}
		}
		p.m.Segment++
		if err := p.pace(ctx, 2*segment.Sector); err != nil {
			return err
		}
	}
	return nil
}

// segment checks header and entries of a segment, lists its encrypted blocks in seals, and tells
// whether all that lives there is named.
func (p *scrubPass) segment(id uint32) (whole bool, err error) {
	e := p.e
	clear(p.seals)
	p.seals = p.seals[:0]
	// Under the lock nothing is freed and the cleaner rests: what lives only dies.
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	if _, st, live := e.space.life(id); live == 0 || st != segSealed && st != segBad {
		return true, nil
	}
	seq, err := e.lifeOf(id)
	if err != nil {
		p.found(Damage{Part: "header", Off: e.space.off(id), Detail: err.Error()})
		return false, nil
	}
	b := p.buf[:segment.Sector]
	err = e.dev.ReadAt(b, e.space.off(id))
	if err == nil {
		var h *segment.Header
		if h, err = segment.DecodeHeader(b); err == nil && (h.Segment != id || h.Sequence != seq) {
			err = fmt.Errorf("it is that of segment %d, life %d", h.Segment, h.Sequence)
		}
	}
	if err != nil {
		p.found(Damage{Part: "header", Off: e.space.off(id), Detail: err.Error()})
	}
	named, err := p.named(id, seq)
	if errors.Is(err, errUnreadable) {
		p.found(Damage{Part: "entries", Off: e.space.off(id), Detail: err.Error()})
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, _, still := e.space.life(id)
	if named < still {
		p.found(Damage{Part: "entries", Off: e.space.off(id), Detail: fmt.Sprintf(
			"%d live bytes, entries that verify name %d: the rest cannot be moved", still, named,
		)})
	}
	return named >= still, nil
}

// named gives the live bytes of a segment that its entries lead to, and lists its encrypted blocks.
func (p *scrubPass) named(id uint32, seq uint64) (int64, error) {
	n, e := int64(0), p.e
	var live [segment.RecordBlocks]bool
	err := e.eachChunk(id, seq, func(off int64, h *segment.Chunk, entries []byte) error {
		base := uint64(off+int64(h.HeaderBytes())) / segment.Unit
		for range h.Entries {
			var en segment.Entry
			size, err := segment.DecodeEntry(entries, h.LSN, &en)
			if err != nil {
				return nil //nolint:nilerr // it names nothing, and that is what is counted
			}
			this := entries[:size]
			entries = entries[size:]
			if en.Kind != segment.KindData {
				continue
			}
			if _, h := e.heldAt(&en, base+uint64(en.Off)); h != nil {
				n += int64(h.Count) * segment.BlockSize
				continue
			}
			br := e.liveAt(&en, this, base, live[:en.Count])
			if br == nil {
				continue
			}
			for i, ok := range live[:en.Count] {
				if ok {
					loc := en.Loc(this, base, i)
					n += loc.Room()
					p.seal(id, br, &en, this, i, loc)
				}
			}
		}
		return nil
	})
	return n, err
}
