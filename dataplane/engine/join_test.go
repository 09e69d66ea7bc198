package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// The tests of join sessions of replicas that have cuts (C8, C10, C12): a member beside a model
// that knows every version and every branch's own copies, and two members that must be equal at
// the end.

// spot names a block of the branch of a generation.
type spot struct {
	gen   uint32
	block uint64
}

// lineBlock is what a branch itself has of a block.
type lineBlock struct {
	ver  domain.Version
	era  uint16
	n    uint64
	kind segment.Kind
	gen  uint32
	most bool // of a hole or zeros: the version is no more than that
}

// over tells whether it is of an era and above a version.
func (x lineBlock) over(ver domain.Version, era uint16) bool {
	return x.era == era && !x.most && x.ver.Compare(ver) > 0
}

// lineOp is something that was logged, or what came with it.
type lineOp struct {
	what         string // append, import, same, begin, end, cut, drop
	at           Link
	block        uint64
	count        int
	x            lineBlock
	parent       bool
	floor        domain.Version // of the member
	begun, acked int
}

// lineModel is the contract of a slice that has cuts, in RAM and naive.
type lineModel struct {
	line    []uint32
	own     map[spot]lineBlock
	trusted map[spot]bool
	held    map[domain.Version]bool
	era     uint16
	since   domain.Epoch // 0: no session
}

func newLineModel() *lineModel {
	return &lineModel{
		line: []uint32{1}, own: map[spot]lineBlock{}, trusted: map[spot]bool{},
		held: map[domain.Version]bool{},
	}
}

// home gives the place in the line of a generation.
func (m *lineModel) home(gen uint32) int {
	i, _ := slices.BinarySearch(m.line, gen)
	return min(i, len(m.line)-1)
}

// beats tells whether a branch up to one in the line has more of this era than a version.
func (m *lineModel) beats(upto int, b uint64, ver domain.Version) bool {
	for _, g := range m.line[:upto+1] {
		if m.own[spot{g, b}].over(ver, m.era) {
			return true
		}
	}
	return false
}

// sees gives what a branch shows of a block.
func (m *lineModel) sees(gen uint32, b uint64) lineBlock {
	for i := m.home(gen); i >= 0; i-- {
		if x, ok := m.own[spot{m.line[i], b}]; ok {
			return x
		}
	}
	return lineBlock{}
}

// apply lets an operation have its effect, and gives the mask of a record.
func (m *lineModel) apply(o *lineOp) (mask segment.Mask, kept int) {
	switch o.what {
	case "begin":
		m.era++
		m.since = o.x.ver.Epoch
		clear(m.trusted)
		clear(m.held)
	case "end":
		m.since = 0
		clear(m.trusted)
	case "cut":
		m.line = append(m.line, o.at.Gen+1)
	case "drop":
		i := slices.Index(m.line, o.at.Gen)
		for s, x := range m.own {
			into := spot{m.line[i+1], s.block}
			if _, ok := m.own[into]; s.gen == o.at.Gen && !ok {
				m.own[into] = x
			}
			if s.gen == o.at.Gen {
				delete(m.own, s)
			}
		}
		m.line = slices.Delete(m.line, i, i+1)
	case "same":
		s := spot{o.at.Gen, o.block}
		x := m.own[s]
		x.era = m.era
		m.own[s], m.trusted[s] = x, true
	case "import":
		m.imported(o)
	case "append":
		m.held[o.x.ver] = true
		for i := range o.count {
			if !m.takes(o, o.block+uint64(i)) {
				mask.Set(i)
				kept++
			}
		}
	}
	return mask, kept
}

// takes lets one block of a record have its effect; false where it keeps what it has.
func (m *lineModel) takes(o *lineOp, b uint64) bool {
	home, x := m.home(o.x.gen), o.x
	resolved := m.since != 0 && x.ver.Compare(o.floor) <= 0
	if m.beats(home, b, x.ver) || resolved && m.trusted[spot{m.line[home], b}] {
		return false
	}
	x.era = m.era
	m.own[spot{m.line[home], b}] = x
	for i, g := range m.line[home:] {
		s := spot{g, b}
		if m.since != 0 && x.ver.Epoch >= m.since {
			m.trusted[s] = true
		}
		if i > 0 && (m.own[s].over(x.ver, m.era) || resolved && m.trusted[s]) {
			for _, g := range m.line[home+i:] {
				if m.since != 0 && x.ver.Epoch >= m.since {
					m.trusted[spot{g, b}] = true
				}
			}
			break
		}
		if i > 0 {
			delete(m.own, s)
		}
	}
	return true
}

func (m *lineModel) imported(o *lineOp) {
	s, i := spot{o.at.Gen, o.block}, m.home(o.at.Gen)
	resolved := m.trusted[s] && o.x.ver.Compare(o.floor) <= 0
	switch {
	case m.own[s].over(o.x.ver, m.era) || resolved:
	case i > 0 && (o.parent || m.beats(i-1, o.block, o.x.ver)):
		delete(m.own, s)
	default:
		x := o.x
		x.era = m.era
		m.own[s] = x
	}
	m.trusted[s] = true
}

// joinRun is a member beside the model, and a source that has all that was drawn.
type joinRun struct {
	t      *testing.T
	rnd    *rand.Rand
	dev    backends.Device
	e      *Engine
	p      *Replica
	other  *Volume // so that there is something to clean
	tune   []func(*Config)
	mark   func() int
	m      *lineModel
	order  []*lineOp
	short  bool // a restart cut the session short
	source []lineBlock
	at     map[domain.Version]*Record // of the source
	line   []uint32                   // the source's
	late   []*Record
	floor  domain.Version
	epoch  domain.Epoch
	seq, n uint64
	below  uint64
	blocks map[uint64]bool
}

func newJoinRun(t *testing.T, dev backends.Device, seed uint64, tune ...func(*Config)) *joinRun {
	c := &joinRun{
		t: t, rnd: newRand(seed), dev: dev, m: newLineModel(), line: []uint32{1}, epoch: 5,
		at: map[domain.Version]*Record{}, blocks: map[uint64]bool{}, mark: func() int { return 0 },
	}
	c.tune = append(tune, func(c *Config) {
		c.Report = func(f Fact) { t.Errorf("reported %+v", f) }
	})
	c.e = open(t, dev, c.tune...)
	c.p = replicaOn(t, c.e)
	var err error
	c.other, err = c.e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 16*domain.MiB, 1)
	must(t, err)
	return c
}

// last gives the generation that is written in.
func (c *joinRun) last() uint32 { return c.line[len(c.line)-1] }

// draw draws a record, which the source has at once, unless it is of a tail that nobody else gets.
func (c *joinRun) draw(tail bool) *Record {
	c.seq++
	c.n++
	spots := contractSpots()
	r := versioned(spots[c.rnd.IntN(28)], 1+c.rnd.IntN(4), c.n, c.epoch, c.seq)
	r.Gen = c.last()
	for i := len(c.line) - 2; i >= 0 && c.rnd.IntN(2) == 0; i-- {
		r.Gen = c.line[i] // none that was dropped: it was sealed
	}
	switch c.rnd.IntN(10) {
	case 0:
		r.Kind, r.Data = segment.KindZero, nil
	case 1:
		r.Kind, r.Data, r.Count = segment.KindUnmap, nil, 1+c.rnd.IntN(20)
	}
	c.at[r.Version] = r
	for i := range r.Count {
		c.blocks[r.Block+uint64(i)] = true
	}
	if !tail {
		c.source = append(c.source, lineBlock{ver: r.Version})
	}
	return r
}

// block gives what a record of a version makes of a block.
func (c *joinRun) block(ver domain.Version) lineBlock {
	r := c.at[ver]
	x := lineBlock{ver: ver, kind: r.Kind, gen: r.Gen}
	if r.Kind == segment.KindData {
		x.n = ver.Seq
	}
	return x
}

// has gives what the source's branches show of a block up to a generation.
func (c *joinRun) has(gen uint32, b uint64) lineBlock {
	best := domain.Version{}
	for _, x := range c.source {
		r := c.at[x.ver]
		if r.Gen <= gen && b >= r.Block && b < r.Block+uint64(r.Count) && r.Version.Compare(best) > 0 {
			best = r.Version
		}
	}
	if best == (domain.Version{}) {
		return lineBlock{}
	}
	return c.block(best)
}

// log lets an operation have its effect in the model.
func (c *joinRun) log(o *lineOp) *lineOp {
	o.begun, o.acked = c.mark(), 1<<62
	c.order = append(c.order, o)
	c.m.apply(o)
	return o
}

// cut lets the model have all generations up to one.
func (c *joinRun) cut(gen uint32) (list []*lineOp) {
	for last := c.m.line[len(c.m.line)-1]; last < gen; last++ {
		list = append(list, c.log(&lineOp{what: "cut", at: Link{Gen: last}}))
	}
	return list
}

// give gives a record to both.
func (c *joinRun) give(r *Record, wg *sync.WaitGroup) {
	if c.short {
		return
	}
	ops := c.cut(r.Gen)
	want, mask := Duplicate, segment.Mask{}
	if !c.m.held[r.Version] && (c.m.since != 0 || r.Version.Compare(c.floor) > 0) {
		o := &lineOp{what: "append", block: r.Block, count: r.Count, x: c.block(r.Version)}
		o.floor, o.begun, o.acked = c.floor, c.mark(), 1<<62
		var kept int
		mask, kept = c.m.apply(o)
		c.order = append(c.order, o)
		ops = append(ops, o)
		switch want = Applied; kept {
		case 0:
		case r.Count:
			want = Superseded
		default:
			want = Mixed
		}
	}
	wg.Add(1)
	settled := r.Request.Counter < c.below && r.Version.Compare(c.floor) <= 0
	r.To = acker(func(err error) {
		defer wg.Done()
		switch {
		case err == nil && settled && want == Duplicate && r.Outcome == Superseded: // let go meanwhile
		case err != nil || r.Outcome != want || want != Duplicate && r.Kept != mask:
			c.t.Errorf("version %s of generation %d at %d: %v %x %v, not %v %x", r.Version, r.Gen, r.Block,
				r.Outcome, r.Kept, err, want, mask)
		}
		for _, o := range ops {
			o.acked = c.mark()
		}
	})
	c.p.Append(r, c.epoch)
}

// deliver gives some records, in any order and again, to both.
func (c *joinRun) deliver() {
	var wg sync.WaitGroup
	for range 1 + c.rnd.IntN(6) {
		if c.m.since == 0 && c.rnd.IntN(12) == 0 {
			c.give(c.draw(true), &wg)
			continue
		}
		for len(c.late) < 1+c.rnd.IntN(10) {
			c.late = append(c.late, c.draw(false))
		}
		i := c.rnd.IntN(len(c.late))
		r := *c.late[i]
		if !c.short && c.rnd.IntN(5) > 0 {
			c.late = slices.Delete(c.late, i, i+1)
		}
		c.give(&r, &wg)
	}
	wg.Wait()
}

// turn cuts or drops at the source; what is dropped there was sealed.
func (c *joinRun) turn() {
	if len(c.line) < 5 && c.rnd.IntN(3) > 0 {
		c.line = append(c.line, c.last()+1)
		return
	}
	if len(c.line) < 2 {
		return
	}
	i := c.rnd.IntN(len(c.line) - 1)
	if slices.ContainsFunc(c.late, func(r *Record) bool { return r.Gen <= c.line[i] }) {
		return
	}
	first := c.line[i]
	c.line = slices.Delete(c.line, i, i+1)
	for c.line[0] < first { // sealing one seals all before it
		c.line = c.line[1:]
	}
}

// follow lets the member have the source's cuts.
func (c *joinRun) follow() {
	if slices.Equal(c.m.line, c.line) {
		return
	}
	ops := c.cut(c.last())
	for _, g := range slices.Clone(c.m.line) {
		if !slices.Contains(c.line, g) {
			ops = append(ops, c.log(&lineOp{what: "drop", at: Link{Gen: g}}))
		}
	}
	must(c.t, c.p.Follow(background, c.links()))
	for _, o := range ops {
		o.acked = c.mark()
	}
}

func (c *joinRun) links() (list []Link) {
	under := uint32(0)
	for _, g := range c.line {
		list = append(list, Link{g, under})
		under = g
	}
	return list
}

// resolved gives the highest version that the source may say is resolved.
func (c *joinRun) resolved() domain.Version {
	floor := domain.Version{Epoch: c.epoch, Seq: c.seq, Node: 9}
	for _, r := range c.late {
		if r.Version.Epoch >= max(c.m.since, 1) && r.Version.Compare(floor) <= 0 {
			floor = r.Version
			floor.Seq--
		}
	}
	return floor
}

// bring makes a block that of the source, in its branches from the oldest on, or some of them.
func (c *joinRun) bring(b uint64, all bool) {
	for _, at := range c.links() {
		if !all && c.rnd.IntN(8) == 0 {
			return
		}
		c.copy(at, b)
	}
}

// copy makes a block of a branch that of the source.
func (c *joinRun) copy(at Link, b uint64) {
	s := spot{at.Gen, b}
	view, own := c.has(at.Gen, b), c.m.own[s]
	parent := at.Under != 0 && c.has(at.Under, b).ver == view.ver
	if !c.m.trusted[s] && !parent && view.kind == segment.KindData && own.kind == view.kind &&
		own.ver == view.ver && own.era != c.m.era {
		o := c.log(&lineOp{what: "same", at: at, block: b})
		start := b / segment.SameBlocks * segment.SameBlocks
		got, err := c.p.Same(c.m.since, at, start, 1<<(b-start))
		if err != nil || got != 1<<(b-start) {
			c.t.Fatalf("block %d of %v: trusted %x %v", b, at, got, err)
		}
		o.acked = c.mark()
		return
	}
	floor := c.floor
	if f := c.resolved(); c.rnd.IntN(2) == 0 && f.Compare(floor) > 0 {
		floor = f
	}
	one := Copy{Kind: view.kind, Version: view.ver, Gen: view.gen, Parent: parent || view.kind == 0}
	if one.Parent {
		one.Kind = segment.KindUnmap
	}
	if one.Kind == segment.KindData {
		one.Data = fill(1, view.n)
		one.CRC = segment.Checksum(one.Data)
	} else if view.ver.Compare(floor) <= 0 && c.rnd.IntN(2) == 0 {
		one.Version = domain.Version{} // settled there
	}
	c.floor = floor
	o := &lineOp{what: "import", at: at, block: b, x: view, parent: one.Parent, floor: floor}
	o.x.kind = one.Kind
	if one.Kind != segment.KindData {
		o.x.n = 0
		if one.Version.Compare(floor) < 0 {
			o.x.ver, o.x.most = floor, true
		}
	}
	c.log(o)
	must(c.t, c.p.Import(c.m.since, at, b, []Copy{one}, floor))
	o.acked = c.mark()
}

// join goes on with what a member that joins does.
func (c *joinRun) join() {
	if c.m.since == 0 || c.short || c.rnd.IntN(60) == 0 {
		if c.m.since == 0 && c.rnd.IntN(4) > 0 {
			return
		}
		c.epoch++
		o := &lineOp{what: "begin"}
		o.x.ver.Epoch = c.epoch
		c.log(o)
		for s := range uint32(2) {
			must(c.t, c.p.BeginEra(background, s, c.epoch))
		}
		o.acked, c.short = c.mark(), false
		return
	}
	c.follow()
	list := slices.Sorted(func(yield func(uint64) bool) {
		for b := range c.blocks {
			if !yield(b) {
				return
			}
		}
	})
	for range 1 + c.rnd.IntN(8) {
		c.bring(list[c.rnd.IntN(len(list))], false)
	}
	if c.rnd.IntN(10) > 0 {
		return
	}
	for _, b := range list {
		c.bring(b, true)
	}
	o := c.log(&lineOp{what: "end"})
	for s := range uint32(2) {
		unchanged(c.t, c.p, s, c.epochOf())
		must(c.t, c.p.EndEra(background, s, c.epochOf()))
	}
	o.acked = c.mark()
}

// epochOf gives the session's, which the model has forgotten.
func (c *joinRun) epochOf() domain.Epoch {
	since, _ := c.p.Session(0)
	if since == 0 {
		since, _ = c.p.Session(1)
	}
	return since
}

// settle raises the floor as far as it may.
func (c *joinRun) settle() {
	if c.m.since == 0 {
		f := c.resolved()
		if f.Compare(c.floor) > 0 {
			c.floor = f
		}
		c.below = max(c.below, c.seq-min(c.seq, 20))
	}
	c.repeat()
}

func (c *joinRun) repeat() {
	for s := range uint32(2) {
		c.p.SetFloor(s, c.floor)
	}
	c.e.Retire(3, 4, c.below)
}

// compare compares all that can be read with a state of the model.
func (c *joinRun) compare(p *Replica, m *lineModel) error {
	line := p.Line()
	var gens []uint32
	for _, at := range line {
		gens = append(gens, at.Gen)
	}
	if !slices.Equal(gens, m.line) {
		return fmt.Errorf("branches %v, not %v", gens, m.line)
	}
	for _, at := range line {
		err := compareBranch(p, at.Gen, c.blocks, func(b uint64) expected {
			x := m.sees(at.Gen, b)
			want := expected{n: x.n}
			if x.kind == segment.KindData {
				want.ver, want.gen = x.ver, min(x.gen, at.Gen)
			}
			return want
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// expected is what a model has of a block; version and generation of data alone, the lowest that
// may be read.
type expected struct {
	n   uint64
	ver domain.Version
	gen uint32
}

// branchOf gives a replica as it is read of a generation.
func branchOf(p *Replica, gen uint32) *Replica {
	if v, _, err := p.At(gen); err == nil {
		return &Replica{v, p.rep}
	}
	return p
}

// compareBranch compares all that can be read of some blocks in the branch of a generation with
// what a model has.
func compareBranch(p *Replica, gen uint32, blocks map[uint64]bool, want func(b uint64) expected,
) error {
	p = branchOf(p, gen)
	buf, of, exts := backends.AlignedBuffer(segment.BlockSize), map[uint64]domain.Version{},
		map[uint64]bool{}
	for b := range blocks {
		exts[b/segment.LeafBlocks] = true
		x := want(b)
		if x.ver != (domain.Version{}) {
			of[b] = x.ver
		}
		got, err := p.Read(b, 1, buf)
		if err != nil {
			return err
		}
		if !isNumber(buf, x.n) {
			return fmt.Errorf("generation %d, block %d is not %d: %+v", gen, b, x.n, x)
		}
		if got < x.gen || got > gen {
			return fmt.Errorf("generation %d, block %d is of %d, read as of %d", gen, b, x.gen, got)
		}
	}
	for ext := range exts {
		err := p.Versions(ext*segment.LeafBlocks, segment.LeafBlocks, func(b BlockVersion) error {
			if of[b.Block] != b.Version {
				return fmt.Errorf("generation %d, block %d is of version %s, not %s", gen, b.Block,
					b.Version, of[b.Block])
			}
			delete(of, b.Block)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(of) > 0 {
		return fmt.Errorf("generation %d: no versions of %v", gen, of)
	}
	return nil
}

func (c *joinRun) judge() {
	c.t.Helper()
	if err := c.compare(c.p, c.m); err != nil {
		c.t.Fatal(err)
	}
	recount(c.t, c.e)
}

func (c *joinRun) restart(clean bool) {
	if clean {
		must(c.t, c.e.Close())
	}
	c.e.Abandon()
	c.e = open(c.t, c.dev, c.tune...)
	c.p = mustReplica(c.t, c.e)
	c.other, _ = c.e.Volume(c.other.ID())
	c.short = c.m.since != 0
	c.repeat()
}

// relieve makes room: all that is late comes, and all is settled; as far as it can.
func (c *joinRun) relieve() {
	if c.e.space.live.Load()*2 < c.e.space.usable.Load() || c.short {
		return
	}
	var wg sync.WaitGroup
	for _, r := range c.late {
		o := *r
		c.give(&o, &wg)
	}
	wg.Wait()
	c.late = nil
	if c.m.since == 0 {
		c.floor, c.below = c.resolved(), c.seq+1
		c.line = c.line[len(c.line)-1:]
		c.follow()
	}
	c.repeat()
	must(c.t, c.e.Checkpoint())
}

func (c *joinRun) wear(n, of int) {
	for range n {
		must(c.t, put(c.other, data(c.rnd.Uint64N(uint64(of)), 1+c.rnd.IntN(3), 1)))
	}
}

// TestC10CutsModel runs a member that has cuts through join sessions by chance, beside the model:
// late records, tails that nobody else has, cuts that are made and dropped meanwhile, settling, the
// cleaner, checkpoints, and restarts of both kinds (C8, C10, C12).
func TestC10CutsModel(t *testing.T) {
	steps := 1200
	if raceOn || testing.Short() {
		steps = 300
	}
	for seed, kind := range []string{"one lane", "three lanes", "journal", "pair"} {
		var dev backends.Device = crashDevice(t, 80, 1+seed%2*2)
		tune := []func(*Config){often}
		switch kind {
		case "journal":
			tune = append(tune, journaled(newMemory(t, dev, 8)))
		case "pair":
			dev = newPair(t, 80, 80, 64<<10, 1)
			tune = append(tune, awake)
		}
		c := newJoinRun(t, dev, 900+uint64(seed), tune...)
		for i := range steps {
			c.relieve()
			switch d := c.rnd.IntN(100); {
			case d < 45:
				c.deliver()
			case d < 65:
				c.join()
			case d < 72:
				c.turn()
			case d < 76 && !c.short:
				c.follow()
			case d < 85:
				c.wear(8, 60)
			case d < 91:
				c.settle()
			case d < 96:
				must(t, c.e.Checkpoint())
			default:
				c.restart(d < 98)
			}
			if i%5 == 4 {
				c.judge()
			}
			if t.Failed() {
				t.Fatalf("%s, step %d", kind, i)
			}
		}
		c.judge()
		c.restart(true)
		c.judge()
		t.Logf("%s: %d sessions, %d operations", kind, c.m.era, len(c.order))
		must(t, c.e.Close())
		if dev, ok := dev.(*mem.Device); ok && kind != "journal" {
			soundCrash(t, dev)
		}
	}
}

// TestC10CutsCrash enumerates power cuts of a device under a member that has cuts and joins:
// what is there is what the first so many operations make, all acknowledged ones among them (C8,
// C10, C12, E1, E2).
func TestC10CutsCrash(t *testing.T) { rounds(t, c10CutsCrash) }

func c10CutsCrash(r *crashes) {
	t := r.t
	for seed := range uint64(3) {
		dev := crashDevice(t, 90, 1)
		c := newJoinRun(t, dev, r.seed(950+seed), func(c *Config) { c.CheckpointBytes = 128 << 10 })
		dev.StartHistory()
		c.mark = dev.Mark
		for i := range 60 {
			c.deliver()
			c.join()
			c.turn()
			c.wear(10, 150)
			if i%7 == 6 {
				c.settle()
			}
		}
		c.e.Abandon()
		n, stride := 0, max(1, 20*dev.Ops()/images())
		for en := dev.Enumerate(); en.Next() && !t.Failed(); {
			if n++; n%stride != 0 {
				continue
			}
			img := en.Image(mem.RandomGarbage(seed*1000 + uint64(n)))
			if !r.fresh(en.At(), img, nil, nil) {
				continue
			}
			e := opened(t, img, c.tune...)
			if err := c.prefix(mustReplica(t, e), en.At()); err != nil {
				t.Errorf("seed %d, cut %d of %d: %v", seed, en.At(), dev.Ops(), err)
			}
			recount(t, e)
			e.Abandon()
			if n/stride%8 == 0 {
				soundCrash(t, img)
			}
		}
		t.Logf("seed %d: %d sessions, %d operations", seed, c.m.era, len(c.order))
	}
}

// prefix compares a member behind a power cut with every number of operations that may be there.
func (c *joinRun) prefix(p *Replica, at int) error {
	least, most := 0, 0
	for i, o := range c.order {
		if o.acked <= at {
			least = i + 1
		}
		if o.begun <= at {
			most = i + 1
		}
	}
	m := newLineModel()
	for _, o := range c.order[:least] {
		m.apply(o)
	}
	err := c.compare(p, m)
	for k := least; k < most && err != nil; k++ {
		m.apply(c.order[k])
		err = c.compare(p, m)
	}
	if err != nil {
		return fmt.Errorf("no state of operations %d to %d: %w", least, most, err)
	}
	return nil
}

// TestC10CutsOrder proves that a session of a replica with cuts takes the copies of a block
// oldest branch first, for branches that stand where the source's do, that a record of the
// session's epoch is trusted in its branch and every later one, and that all branches have to be
// trusted at the end.
func TestC10CutsOrder(t *testing.T) {
	e := open(t, newMem(t, 16<<20, 256<<10, 1))
	defer e.Abandon()
	p := replicaOn(t, e)
	must(t, p.Cut(background, 1))
	line := p.Line()
	if len(line) != 2 || line[0] != (Link{1, 0}) || line[1].Under != 1 {
		t.Fatalf("line %v", line)
	}
	cut, head := line[0], line[1]
	began(t, p, 0, 6)
	give := func(l Link, block uint64) error {
		return p.Import(6, l, block, []Copy{copied(3)}, at(1))
	}
	if err := give(head, 7); !domain.IsKind(err, domain.Stale) {
		t.Errorf("the head before the cut: %v", err)
	}
	for _, l := range []Link{{1, 1}, {head.Gen, 0}, {head.Gen + 1, 1}, {1, head.Gen}} {
		if err := give(l, 7); !domain.IsKind(err, domain.Conflict) {
			t.Errorf("branch %v: %v", l, err)
		}
	}
	must(t, give(cut, 7))
	must(t, give(head, 7))

	late := versioned(9, 1, 3, 6, 20) // of the session's epoch, to the cut
	late.Gen = 1
	mustGive(t, p, late, Applied)
	rl := &p.rep.lanes[0]
	for _, br := range p.rep.line {
		if !rl.trusts(br, 9) {
			t.Errorf("generation %d does not trust a record of the session below it", br.gen)
		}
	}
	for b := uint64(0); b < p.v.blocks(); b++ { // the head alone
		rl.rely(p.rep.line[len(p.rep.line)-1], b)
	}
	if err := p.EndEra(background, 0, 6); !domain.IsKind(err, domain.Stale) {
		t.Errorf("a cut that is not trusted: %v", err)
	}
	for b := uint64(0); b < p.v.blocks(); b++ {
		rl.rely(p.rep.line[0], b)
	}
	must(t, p.EndEra(background, 0, 6))
}
