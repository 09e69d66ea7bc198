package engine

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// Several members of one slice, each an engine with a device of its own, under the rules of the
// replica protocol and nothing else: what one has goes to another by Export and Import, Same and
// Unchanged. What all must have in the end is the list of the records that were not forgotten.

// fleetRecord is a record that is everywhere, or will be: in the end the only truth.
type fleetRecord struct {
	*Record
	n       uint64
	from    int            // who coordinates it
	has     []bool         // members that have it, since they began to join if they do
	missing []bool         // members that have to acknowledge it
	given   []domain.Epoch // in which a message of it went there
}

// committed tells whether all that must have it do.
func (r *fleetRecord) committed() bool { return !slices.Contains(r.missing, true) }

// parcel is an answer of a source on its way, for the session that it was asked in.
type parcel struct {
	since domain.Epoch
	at    Link
	block uint64
	list  []Copy // nil: the source has changed nothing in count blocks
	count int
	floor domain.Version
	same  bool // the version is the same
}

type fleetMember struct {
	no   int
	dev  *mem.Device
	nv   *mem.Memory // nil: no journal; it outlives crashes, which are the engine's alone then
	tune []func(*Config)
	e    *Engine
	p    *Replica
	in   bool         // of the configuration
	join domain.Epoch // 0: in no session
	mail []parcel
}

func (m *fleetMember) full() bool { return m.in && m.join == 0 }

func (m *fleetMember) node() domain.NodeNumber { return domain.NodeNumber(m.no + 1) }

// fleet is the members with what the protocol knows of all of them.
type fleet struct {
	t      *testing.T
	rnd    *rand.Rand
	all    []*fleetMember
	recs   []*fleetRecord
	line   []uint32
	sealed uint32
	epoch  domain.Epoch
	seq    uint64
	stable domain.Version
	below  uint64
	blocks map[uint64]bool

	joins, short, crashes, dead, trusted, stale int
}

const fleetExtents = 4

var (
	fleets     = flag.Int("fleets", 24, "seeds of TestC10Fleet")
	fleetFirst = flag.Int("fleet.first", 0, "the first of them")
)

func newFleet(t *testing.T, members int, seed uint64) *fleet {
	t.Helper()
	f := &fleet{
		t: t, rnd: newRand(seed), line: []uint32{1}, epoch: 5, blocks: map[uint64]bool{},
	}
	for i := range members {
		m := &fleetMember{no: i, in: true, dev: crashDevice(t, 200, 1+(i+int(seed))%3)}
		m.tune = []func(*Config){often, func(c *Config) { c.Node = m.node() }}
		if seed%4 == 3 && i == 0 {
			m.nv = newMemory(t, m.dev, 16)
			m.tune = append(m.tune, journaled(m.nv))
		}
		m.dev.StartHistory()
		m.e = opened(t, m.dev, m.tune...)
		var err error
		m.p, err = m.e.CreateReplica(background, testVolume,
			fleetExtents*segment.LeafBlocks*segment.BlockSize, 7)
		must(t, err)
		f.all = append(f.all, m)
	}
	return f
}

// pick gives some member of whom something is true; nil for none.
func (f *fleet) pick(is func(m *fleetMember) bool) *fleetMember {
	var list []*fleetMember
	for _, m := range f.all {
		if is(m) {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[f.rnd.IntN(len(list))]
}

func (f *fleet) chance(n int) bool { return f.rnd.IntN(n) == 0 }

// links names the branches that a member must have in the end.
func (f *fleet) links() (list []Link) {
	under := uint32(0)
	for _, g := range f.line {
		list = append(list, Link{g, under})
		under = g
	}
	return list
}

// write draws a record.
func (f *fleet) write(from int) *fleetRecord {
	f.seq++
	at := f.rnd.Uint64N(2)*segment.LeafBlocks + [...]uint64{0, 1, 16}[f.rnd.IntN(3)]
	x := versioned(at, 1+f.rnd.IntN(2), f.seq, f.epoch, f.seq)
	x.Gen = f.line[len(f.line)-1]
	if g := f.line[f.rnd.IntN(len(f.line))]; g > f.sealed && !f.chance(3) {
		x.Gen = g
	}
	r := &fleetRecord{Record: x, n: f.seq, from: from}
	switch f.rnd.IntN(8) {
	case 0:
		x.Kind, x.Data, r.n = segment.KindZero, nil, 0
	case 1:
		x.Kind, x.Data, r.n, x.Count = segment.KindUnmap, nil, 0, 1+f.rnd.IntN(3)
	}
	for i := range x.Count {
		f.blocks[x.Block+uint64(i)] = true
	}
	for _, m := range f.all {
		r.has, r.given = append(r.has, false), append(r.given, 0)
		r.missing = append(r.missing, m.in)
	}
	f.recs = append(f.recs, r)
	return r
}

// send gives a record to a member, in a message of the present epoch.
func (f *fleet) send(r *fleetRecord, m *fleetMember, wg *sync.WaitGroup, may bool) {
	c := *r.Record
	c.Request.Attempt = uint8(f.rnd.IntN(4))
	r.given[m.no] = f.epoch
	wg.Add(1)
	c.To = acker(func(err error) {
		defer wg.Done()
		switch {
		case err == nil:
			r.has[m.no], r.missing[m.no] = true, false
		case !may:
			f.t.Errorf("member %d, version %s of generation %d: %v", m.no, c.Version, c.Gen, err)
		}
	})
	m.p.Append(&c, f.epoch)
}

// some sends some records that are on their way, and some once more.
func (f *fleet) some(n int, wg *sync.WaitGroup, only *fleetMember, may bool) {
	type way struct {
		r *fleetRecord
		m *fleetMember
	}
	var list, again []way
	for _, r := range f.recs[max(0, len(f.recs)-200):] {
		for _, m := range f.all {
			switch {
			case only != nil && m != only:
			case r.missing[m.no]:
				list = append(list, way{r, m})
			case m.in && r.given[m.no] == f.epoch:
				again = append(again, way{r, m})
			}
		}
	}
	f.rnd.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
	for _, w := range list[:min(n, len(list))] {
		f.send(w.r, w.m, wg, may)
	}
	if len(again) > 0 && f.chance(3) {
		w := again[f.rnd.IntN(len(again))]
		f.send(w.r, w.m, wg, may)
	}
}

// deliver delivers all that is on its way.
func (f *fleet) deliver() {
	var wg sync.WaitGroup
	for _, r := range f.recs {
		for _, m := range f.all {
			if r.missing[m.no] {
				f.send(r, m, &wg, false)
			}
		}
		wg.Wait()
	}
}

// settle raises the stable watermark and lets some members know.
func (f *fleet) settle() {
	low := domain.Version{Epoch: f.epoch, Seq: f.seq, Node: 9}
	first := f.seq + 1
	for _, r := range f.recs {
		if r.committed() {
			continue
		}
		first = min(first, r.Version.Seq)
		if r.Version.Compare(low) <= 0 {
			low = r.Version
			low.Seq--
			low.Node = 9
		}
	}
	if low.Compare(f.stable) > 0 {
		f.stable = low
	}
	f.below = max(f.below, first)
	for _, m := range f.all {
		if !m.in || f.chance(2) {
			continue
		}
		if f.chance(2) {
			m.e.Retire(3, 4, f.below)
		}
		m.p.SetFloor(0, f.stable)
		for _, l := range m.e.lanes {
			l.mu.Lock()
			l.sweepHeld(m.p.rep)
			l.mu.Unlock()
		}
	}
}

// turn cuts, seals or drops; some members learn of it later.
func (f *fleet) turn() {
	last := f.line[len(f.line)-1]
	do := func(fn func(m *fleetMember) error) {
		for _, m := range f.all {
			if m.in && f.chance(2) {
				must(f.t, fn(m))
			}
		}
	}
	switch i := f.rnd.IntN(len(f.line)); {
	case f.chance(2):
		if len(f.line) > 3 {
			return
		}
		f.line = append(f.line, last+1)
		do(func(m *fleetMember) error { return m.p.Cut(background, last) })
	case f.line[i] == last:
	case f.line[i] > f.sealed:
		f.settle()
		for _, r := range f.recs {
			if r.Gen <= f.line[i] && r.Version.Compare(f.stable) > 0 {
				return
			}
		}
		f.sealed = f.line[i]
		do(func(m *fleetMember) error {
			if err := m.p.SealCut(background, f.sealed); !domain.IsKind(err, domain.NotFound) {
				return err
			}
			return nil
		})
	default:
		f.line = slices.Delete(f.line, i, i+1)
		do(func(m *fleetMember) error {
			if m.full() {
				return m.p.Follow(background, f.links())
			}
			return nil
		})
	}
}

// install begins an epoch.
func (f *fleet) install() {
	f.epoch++
	for _, m := range f.all {
		if m.in {
			must(f.t, m.p.Seal(background, f.epoch, 0))
		}
	}
}

// evict takes a member out, some of whose records nobody else gets; with it goes what nobody who is
// left has, and whose coordinator is gone.
func (f *fleet) evict(x *fleetMember, tail bool) {
	var wg sync.WaitGroup
	for i := 0; tail && i < f.rnd.IntN(6); i++ {
		f.send(f.write(x.no), x, &wg, false)
	}
	wg.Wait()
	if x.join != 0 {
		f.short++
	}
	x.in, x.join, x.mail = false, 0, nil
	f.recs = slices.DeleteFunc(f.recs, func(r *fleetRecord) bool {
		held := f.all[r.from].in
		for _, m := range f.all {
			held = held || m.in && r.has[m.no]
		}
		dead := !held && !r.committed()
		r.missing[x.no] = false
		if dead {
			f.dead++
		}
		return dead
	})
	f.install()
	for _, m := range f.all {
		if m.in {
			must(f.t, m.p.Away(background, 0, x.node()))
		}
	}
}

// begin lets a member come back.
func (f *fleet) begin(x *fleetMember) {
	x.in = true
	f.install()
	x.join = f.epoch
	must(f.t, x.p.BeginEra(background, 0, x.join))
	for _, r := range f.recs {
		r.missing[x.no] = !r.committed() || r.Version.Compare(f.stable) > 0 && f.chance(3)
		r.has[x.no] = false
	}
	f.joins++
}

// valid tells whether what a source shows of a block up to a generation is committed.
func (f *fleet) valid(s *fleetMember, gen uint32, b uint64) bool {
	r := f.best(gen, b, func(r *fleetRecord) bool { return r.has[s.no] })
	return r == nil || r.committed()
}

// best gives the record of the highest version of a block up to a generation; nil for none.
func (f *fleet) best(gen uint32, b uint64, is func(r *fleetRecord) bool) *fleetRecord {
	var best *fleetRecord
	for _, r := range f.recs {
		if r.Gen <= gen && b >= r.Block && b < r.Block+uint64(r.Count) &&
			(best == nil || r.Version.Compare(best.Version) > 0) && is(r) {
			best = r
		}
	}
	return best
}

// ask lets a source answer about a block or a grain of some branch; the answer is on its way.
func (f *fleet) ask(x *fleetMember, b uint64) {
	s := f.pick((*fleetMember).full)
	line := s.p.Line()
	at := line[f.rnd.IntN(len(line))]
	if !slices.Contains(x.p.Line(), at) {
		if err := x.p.Follow(background, line); domain.IsKind(err, domain.Conflict) {
			must(f.t, s.p.Follow(background, f.links())) // it is to be dropped there
		} else {
			must(f.t, err)
		}
		return
	}
	if len(x.mail) > 40 {
		x.mail = slices.Delete(x.mail, 0, 1+f.rnd.IntN(20))
	}
	grain := b / segment.GrainBlocks
	grains, away := s.p.Dirty(0, x.node())
	if !away {
		f.t.Errorf("member %d does not know that %d is away", s.no, x.no)
	}
	if grains[grain/64]>>(grain%64)&1 == 0 && !f.chance(4) {
		x.mail = append(x.mail, parcel{
			since: x.join, at: at, block: grain * segment.GrainBlocks, count: segment.GrainBlocks,
		})
		return
	}
	if f.valid(s, at.Gen, b) {
		x.mail = append(x.mail, f.answer(s, x, at, b, 1))
	}
}

// answer gives what a source has of blocks of a branch, compared with the versions of who asks.
func (f *fleet) answer(s, x *fleetMember, at Link, b uint64, n int) parcel {
	var mine domain.Version
	must(f.t, branchOf(x.p, at.Gen).Versions(b, 1, func(v BlockVersion) error {
		mine = v.Version
		return nil
	}))
	list, floor, err := s.p.Export(at, b, n)
	must(f.t, err)
	return parcel{
		since: x.join, at: at, block: b, list: list, count: n, floor: floor,
		same: n == 1 && list[0].Kind == segment.KindData && list[0].Version == mine,
	}
}

// take lets an answer arrive.
func (f *fleet) take(x *fleetMember, a *parcel) error {
	switch {
	case a.list == nil:
		return x.p.Unchanged(a.since, a.at, a.block, a.count)
	case a.same:
		start := a.block / segment.SameBlocks * segment.SameBlocks
		got, err := x.p.Same(a.since, a.at, start, 1<<(a.block-start))
		if got != 0 {
			f.trusted++
		}
		return err
	}
	return x.p.Import(a.since, a.at, a.block, a.list, a.floor)
}

// receive lets some of the answers arrive, in any order, beside records.
func (f *fleet) receive(x *fleetMember) {
	var wg sync.WaitGroup
	if f.chance(2) {
		f.some(3, &wg, x, false)
	}
	for n := 1 + f.rnd.IntN(4); n > 0 && len(x.mail) > 0; n-- {
		i := f.rnd.IntN(len(x.mail))
		a := x.mail[i]
		err := f.take(x, &a)
		switch {
		case domain.IsKind(err, domain.Stale) && !f.chance(4): // its turn comes
			f.stale++
			continue
		case domain.IsKind(err, domain.Stale) || domain.IsKind(err, domain.Conflict):
		default:
			must(f.t, err)
		}
		if !f.chance(6) {
			x.mail = slices.Delete(x.mail, i, i+1)
		}
	}
	wg.Wait()
}

// finish brings what is not trusted yet, and ends the session.
func (f *fleet) finish(x *fleetMember) {
	s := f.pick((*fleetMember).full)
	must(f.t, s.p.Follow(background, f.links()))
	must(f.t, x.p.Follow(background, f.links()))
	grains, _ := s.p.Dirty(0, x.node())
	for i, at := range f.links() {
		for b := uint64(0); b < x.p.v.blocks(); b += segment.GrainBlocks {
			g := b / segment.GrainBlocks
			if grains[g/64]>>(g%64)&1 == 0 {
				err := x.p.Unchanged(x.join, at, b, segment.GrainBlocks)
				if err == nil {
					continue
				}
				kindOf(f.t, err, domain.Conflict)
			}
			for b := b; b < (g+1)*segment.GrainBlocks; b++ {
				for n := 0; !x.trusts(i, b); n++ {
					f.validate(s, at.Gen, b)
					a := f.answer(s, x, at, b, 1)
					a.same = a.same && n == 0
					must(f.t, f.take(x, &a))
				}
			}
		}
	}
	for _, y := range f.all {
		if y != x && !y.full() {
			marks, _ := s.p.Dirty(0, y.node())
			must(f.t, x.p.Away(background, 0, y.node()))
			must(f.t, x.p.Merge(background, 0, y.node(), marks))
		}
	}
	must(f.t, x.p.EndEra(background, 0, x.join))
	x.join, x.mail = 0, nil
	f.install()
	for _, m := range f.all {
		if m != x && m.in {
			must(f.t, m.p.Back(background, 0, x.node()))
		}
	}
	for _, r := range f.recs {
		r.has[x.no] = r.has[x.no] || r.committed()
	}
}

// trusts tells whether a block of a member's branch is trusted.
func (m *fleetMember) trusts(i int, b uint64) bool {
	l := m.p.v.lane(b)
	l.mu.Lock()
	defer l.mu.Unlock()
	return m.p.rep.lanes[l.no].trusts(m.p.rep.line[i], b)
}

// validate lets what a source shows of a block up to a generation be committed.
func (f *fleet) validate(s *fleetMember, gen uint32, b uint64) {
	for !f.valid(s, gen, b) {
		var wg sync.WaitGroup
		r := f.best(gen, b, func(r *fleetRecord) bool { return r.has[s.no] })
		for _, m := range f.all {
			if r.missing[m.no] {
				f.send(r, m, &wg, false)
			}
		}
		wg.Wait()
	}
}

// crash cuts the power of a member, with some records on their way to it.
func (f *fleet) crash(x *fleetMember, seed uint64) {
	f.crashes++
	var wg sync.WaitGroup
	if x.in {
		f.some(4, &wg, x, true)
	}
	img := x.dev
	if x.nv == nil {
		img = x.dev.Cut(mem.RandomGarbage(seed))
	}
	wg.Wait()
	x.e.Abandon()
	f.open(x, img)
	switch {
	case x.join != 0:
		f.evict(x, false)
	case x.in: // what it has and did not tell is not valid
		f.install()
		for _, h := range metas(f.t, x.p, 0) {
			for _, r := range f.recs {
				if r.Version == h.Version {
					r.has[x.no] = true
				}
			}
		}
	}
}

func (f *fleet) open(x *fleetMember, dev *mem.Device) {
	x.dev = dev
	x.dev.StartHistory()
	x.e = opened(f.t, x.dev, x.tune...)
	x.p = mustReplica(f.t, x.e)
	recount(f.t, x.e)
}

// judge compares all members that have everything with the records, and with each other.
func (f *fleet) judge() {
	f.t.Helper()
	f.deliver()
	sums := map[string]int{}
	for _, m := range f.all {
		if !m.full() {
			continue
		}
		must(f.t, m.p.Follow(background, f.links()))
		if got := m.p.Line(); !slices.Equal(got, f.links()) {
			f.t.Fatalf("member %d has branches %v, not %v", m.no, got, f.links())
		}
		sum := ""
		for _, gen := range f.line {
			err := compareBranch(m.p, gen, f.blocks, func(b uint64) (want expected) {
				r := f.best(gen, b, func(*fleetRecord) bool { return true })
				if r != nil && r.Kind == segment.KindData {
					want = expected{r.n, r.Version, min(r.Gen, gen)}
				}
				return want
			})
			if err != nil {
				f.t.Fatalf("member %d: %v", m.no, err)
			}
			for ext := range uint64(fleetExtents) {
				d, err := branchOf(m.p, gen).Digest(ext*segment.LeafBlocks, segment.LeafBlocks)
				must(f.t, err)
				sum += fmt.Sprintf("%d/%d %x ", gen, ext, d)
			}
		}
		sums[sum]++
		recount(f.t, m.e)
	}
	if len(sums) != 1 {
		f.t.Fatalf("digests differ: %v", sums)
	}
}

// step does something by chance.
func (f *fleet) step() {
	full := 0
	for _, m := range f.all {
		if m.full() {
			full++
		}
	}
	x := f.pick(func(m *fleetMember) bool { return m.join != 0 })
	out := f.pick(func(m *fleetMember) bool { return !m.in })
	switch d := f.rnd.IntN(100); {
	case d < 14:
		f.write(f.pick((*fleetMember).full).no)
	case d < 32:
		var wg sync.WaitGroup
		f.some(1+f.rnd.IntN(3), &wg, nil, false)
		wg.Wait()
	case d < 38:
		f.settle()
	case d < 42:
		f.turn()
	case d < 43:
		must(f.t, f.pick(func(*fleetMember) bool { return true }).e.Checkpoint())
	case d < 46:
		if y := f.pick((*fleetMember).full); full > 1 {
			f.evict(y, true)
		}
	case d < 54:
		if out != nil {
			f.begin(out)
		}
	case d < 55:
		y := f.pick(func(*fleetMember) bool { return true })
		f.crash(y, f.rnd.Uint64())
	case d < 56:
		f.judge()
	case x == nil:
	case d < 76:
		list := slices.Sorted(maps.Keys(f.blocks))
		for range 1 + f.rnd.IntN(6) {
			if len(list) > 0 {
				f.ask(x, list[f.rnd.IntN(len(list))])
			}
		}
	case d < 98 || f.chance(2):
		f.receive(x)
	default:
		f.finish(x)
	}
}

// TestC10Fleet runs two and three members, each with an engine and a device of its own, by chance:
// records of several generations come in any order, late and again; cuts are made, sealed and
// dropped; members fall behind with tails that nobody else has, lose their power, come back and
// join by what another exports, in answers that come late and in any order, while all of that goes
// on. In the end all cuts of all members are what the records say, digests are equal, and the
// devices are sound (C8, C10, C11, C12).
func TestC10Fleet(t *testing.T) {
	seeds, steps := *fleets, 1200
	if raceOn || testing.Short() {
		seeds, steps = seeds/6, 600
	}
	list := []uint64{288, 2166, 5847, 6393} // these found something
	found := len(list)
	for i := range seeds {
		list = append(list, uint64(*fleetFirst+i))
	}
	for i, seed := range list {
		n := steps
		if i < found {
			n = 1200
		}
		f := newFleet(t, 2+int(seed%2), 40+seed)
		for i := range n {
			if f.step(); t.Failed() {
				t.Fatalf("seed %d, step %d", seed, i)
			}
		}
		for _, m := range f.all {
			if !m.in {
				f.begin(m)
			}
			if m.join != 0 {
				f.finish(m)
			}
		}
		f.judge()
		for _, m := range f.all {
			if m.nv != nil {
				must(t, m.e.nv.drain(background))
			}
			must(t, m.e.Close())
			soundCrash(t, m.dev)
		}
		t.Logf("seed %d: %d sessions, %d cut short, %d crashes, %d records, %d forgotten; %d blocks "+
			"the same, %d answers before their turn", seed, f.joins, f.short, f.crashes, f.seq, f.dead,
			f.trusted, f.stale)
	}
}
