package engine

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// ofGen is a record of a block in a generation; the version follows from seq.
func ofGen(block uint64, gen uint32, seq uint64) *Record {
	r := versioned(block, 1, seq, 7, seq)
	r.Gen = gen
	return r
}

// cutSees checks what a cut, or with 0 the head, has in block.
func cutSees(t *testing.T, p *Replica, gen uint32, block, n uint64) {
	t.Helper()
	v := p.Volume()
	if gen != 0 {
		var err error
		if v, _, err = p.At(gen); err != nil {
			t.Fatal(err)
		}
	}
	check(t, v, block, n)
}

func mustGive(t *testing.T, p *Replica, r *Record, want Outcome) {
	t.Helper()
	if got, err := give(p, r, 9); err != nil || got != want {
		t.Fatalf("version %s of generation %d: %v %v, not %v", r.Version, r.Gen, got, err, want)
	}
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestC12LateRecords takes records of older generations behind cuts: each lands in its own, and in
// the later ones that hold nothing above it, holes and zeros too; over a crash, a clean stop and a
// checkpoint (C12).
func TestC12LateRecords(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	mustGive(t, p, ofGen(1, 1, 10), Applied)
	mustGive(t, p, ofGen(2, 2, 20), Applied) // the first of its generation cuts
	mustGive(t, p, ofGen(1, 2, 21), Applied)
	must(t, p.Cut(background, 2))
	mustGive(t, p, ofGen(3, 3, 30), Applied)
	hole := ofGen(5, 3, 31)
	hole.Kind, hole.Data = segment.KindUnmap, nil
	mustGive(t, p, hole, Applied)

	mustGive(t, p, ofGen(2, 1, 15), Applied)    // below what 2 has
	mustGive(t, p, ofGen(1, 1, 25), Applied)    // above what 2 has
	mustGive(t, p, ofGen(3, 1, 12), Applied)    // where only 3 has something
	mustGive(t, p, ofGen(5, 1, 13), Applied)    // under the hole of 3
	mustGive(t, p, ofGen(1, 1, 24), Superseded) // in its own
	mustGive(t, p, ofGen(1, 2, 23), Superseded) // by what its own shows of an older one
	mustGive(t, p, ofGen(6, 1, 14), Applied)
	sees := func(p *Replica) {
		t.Helper()
		for block, want := range map[uint64][3]uint64{
			1: {25, 25, 25}, 2: {15, 20, 20}, 3: {12, 12, 30}, 5: {13, 13, 0}, 6: {14, 14, 14},
		} {
			for i, gen := range []uint32{1, 2, 0} {
				cutSees(t, p, gen, block, want[i])
			}
		}
		recount(t, p.v.e)
	}
	sees(p)
	for _, how := range []string{"crash", "checkpoint", "clean", "crash"} {
		switch how {
		case "checkpoint":
			must(t, e.Checkpoint())
		case "clean":
			must(t, e.Close())
		}
		e.Abandon()
		soundCrash(t, dev)
		res, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{})
		must(t, err)
		if len(res.Branches) != len(p.rep.line) {
			t.Errorf("%s: %d branches", how, len(res.Branches))
		}
		for i, b := range p.rep.line { // what fsck resolves for itself
			if got := res.Branches[i]; got.ID != b.id || got.Sees != b.data.Load()*segment.BlockSize {
				t.Errorf("%s: generation %d sees %d bytes, not %d blocks", how, b.gen, got.Sees,
					b.data.Load())
			}
		}
		e = open(t, dev, quiet)
		p = mustReplica(t, e)
		sees(p)
	}
	e.Abandon()
}

// TestC12Sealed lets a sealed cut, and those before it, take nothing, and what is there already be
// there; it is sealed behind a crash too. Everything may be said twice (C12).
func TestC12Sealed(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	mustGive(t, p, ofGen(1, 1, 10), Applied)
	for range 2 {
		must(t, p.Cut(background, 1))
		must(t, p.Cut(background, 3))
	}
	if got := p.Cuts(); !slices.Equal(got, []uint32{1, 2, 3}) {
		t.Fatalf("cuts of %v", got)
	}
	kindOf(t, p.DropCut(background, 2), domain.Conflict)
	kindOf(t, p.SealCut(background, 4), domain.NotFound)
	mustGive(t, p, ofGen(1, 3, 30), Applied)
	for range 2 {
		must(t, p.SealCut(background, 2))
		must(t, p.SealCut(background, 1))
	}
	for _, how := range []string{"", "crash", "checkpoint"} {
		if how == "checkpoint" {
			must(t, e.Checkpoint())
		}
		if how != "" {
			e.Abandon()
			e = open(t, dev, quiet)
			p = mustReplica(t, e)
		}
		for _, gen := range []uint32{1, 2} {
			_, err := give(p, ofGen(7, gen, 40), 9)
			kindOf(t, err, domain.Conflict)
			if _, sealed, err := p.At(gen); err != nil || !sealed {
				t.Fatalf("generation %d: sealed %t, %v", gen, sealed, err)
			}
		}
		mustGive(t, p, ofGen(1, 1, 10), Duplicate)
		if _, sealed, err := p.At(3); err != nil || sealed {
			t.Fatalf("generation 3: sealed %t, %v", sealed, err)
		}
		v, _, err := p.At(1)
		must(t, err)
		kindOf(t, put(v, data(1, 1, 1)), domain.ReadOnly)
	}
	mustGive(t, p, ofGen(7, 3, 41), Applied)
	v, _, err := p.At(2)
	must(t, err)
	for range 2 {
		must(t, p.DropCut(background, 2))
	}
	buf := backends.AlignedBuffer(segment.BlockSize)
	_, err = p.ReadAt(2, 1, 1, buf)
	kindOf(t, err, domain.NotFound)
	_, err = p.DigestAt(2, 1, 1)
	kindOf(t, err, domain.NotFound)
	_, err = (&Replica{v, p.rep}).Digest(1, 1) // of who had it before
	kindOf(t, err, domain.NotFound)
	one, err := p.DigestAt(1, 0, 9)
	must(t, err)
	two, err := p.DigestAt(3, 0, 9)
	if must(t, err); one == two || one == (Digest{}) {
		t.Errorf("digests %x and %x", one, two)
	}
	kindOf(t, p.SealCut(background, 2), domain.NotFound)
	must(t, p.Cut(background, 2)) // it was, and is not made again
	if got := p.Cuts(); !slices.Equal(got, []uint32{1, 3}) {
		t.Fatalf("cuts of %v", got)
	}
	e.Abandon()
}

// TestC12Newcomer makes a replica of a volume that was cut before: it begins with the generation
// that it was told, over restarts, and what is of an older one is of that (C12).
func TestC12Newcomer(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	p, err := e.CreateReplicaAt(background, testVolume, 2<<30, 7, 500)
	must(t, err)
	mustGive(t, p, ofGen(1, 500, 10), Applied)
	mustGive(t, p, ofGen(2, 499, 9), Applied)
	for _, how := range []string{"", "crash", "checkpoint"} {
		if how == "checkpoint" {
			must(t, e.Checkpoint())
		}
		if how != "" {
			e.Abandon()
			e = open(t, dev, quiet)
			p = mustReplica(t, e)
		}
		_, err := e.CreateReplicaAt(background, testVolume, 2<<30, 7, 501) // it is there
		must(t, err)
		mustGive(t, p, ofGen(1, 500, 10), Duplicate)
		if got := p.Cuts(); len(got) != 0 {
			t.Fatalf("cuts of %v", got)
		}
	}
	mustGive(t, p, ofGen(1, 501, 11), Applied)
	mustGive(t, p, ofGen(3, 400, 12), Applied)
	if got := p.Cuts(); !slices.Equal(got, []uint32{500}) {
		t.Fatalf("cuts of %v", got)
	}
	cutSees(t, p, 500, 1, 10)
	cutSees(t, p, 500, 3, 12)
	cutSees(t, p, 0, 3, 12)
	recount(t, e)
	must(t, e.Close())
	soundCrash(t, dev)
}

// TestC12ManyCuts lets one late record take something out of every cut that may be open, in one
// chunk, over a crash, and refuses one more: it is taken when some are sealed (C12).
func TestC12ManyCuts(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 1)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	most, c := e.lateMax(), newChunk(e.space.size)
	if !c.takesHeld(0, most, e.payloadMax()) || c.takesHeld(0, most+1, e.payloadMax()) {
		t.Errorf("an empty chunk does not take a record and %d entries, or more", most)
	}
	gen := uint32(1)
	for ; gen <= openCuts; gen++ {
		mustGive(t, p, ofGen(1, gen, uint64(gen)), Applied)
		must(t, p.Cut(background, gen))
	}
	kindOf(t, p.Cut(background, gen), domain.TooLarge)
	mustGive(t, p, ofGen(1, gen, 500), Applied)
	chunks := e.Stats().Chunks
	mustGive(t, p, ofGen(1, 1, 400), Applied)
	if n := e.Stats().Chunks - chunks; n != 1 {
		t.Errorf("%d chunks", n)
	}
	e.Abandon()
	e = open(t, dev, quiet)
	defer e.Abandon()
	p = mustReplica(t, e)
	for _, cut := range p.Cuts() {
		cutSees(t, p, cut, 1, 400)
	}
	cutSees(t, p, 0, 1, 500)
	recount(t, e)
	must(t, p.SealCut(background, 5))
	must(t, p.Cut(background, gen))
}

// TestC12DropGivesBack drops the first, the middle and the last of three cuts in every order: what
// others see stays, and what is left takes the room that it takes in a replica that never had the
// rest (C12, E5).
func TestC12DropGivesBack(t *testing.T) {
	for _, order := range [][]uint32{
		{1, 2, 3}, {2, 1, 3}, {2, 3, 1}, {3, 1, 2}, {3, 2, 1}, {1, 3, 2},
	} {
		for _, settled := range []bool{false, true} {
			dev := newMem(t, 64<<20, 256<<10, 2)
			e := open(t, dev, quiet)
			p := replicaOn(t, e)
			seq := uint64(0)
			for gen := range uint32(4) {
				for _, block := range []uint64{1, 2 + uint64(gen), 9} {
					seq++
					mustGive(t, p, ofGen(block, gen+1, seq), Applied)
				}
				if gen == 3 {
					hole := ofGen(9, gen+1, 100)
					hole.Kind, hole.Data = segment.KindUnmap, nil
					mustGive(t, p, hole, Applied)
				}
			}
			settle := func() {
				p.SetFloor(0, domain.Version{Epoch: 7, Seq: 200})
				e.Retire(3, 4, 200)
				must(t, e.Checkpoint())
			}
			if settled {
				settle()
			}
			must(t, p.SealCut(background, 3))
			for i, gen := range order {
				must(t, p.DropCut(background, gen))
				recount(t, e)
				for _, left := range order[i+1:] {
					cutSees(t, p, left, 1, uint64(left-1)*3+1)
					cutSees(t, p, left, 2, 2)
				}
				cutSees(t, p, 0, 1, 10)
				cutSees(t, p, 0, 9, 0)
			}
			settle()
			if live := e.space.live.Load(); live != 5*segment.BlockSize { // 1, and 2 to 5
				t.Errorf("%v, settled %t: %d bytes live", order, settled, live)
			}
			must(t, e.Close())
			soundCrash(t, dev)
			e = open(t, dev, quiet)
			p = mustReplica(t, e)
			recount(t, e)
			cutSees(t, p, 0, 1, 10)
			must(t, e.Delete(background, testVolume))
			must(t, e.Checkpoint())
			if live := e.space.live.Load(); live != 0 {
				t.Errorf("%v: %d bytes live in nothing", order, live)
			}
			must(t, e.Close())
			soundCrash(t, dev)
		}
	}
}

// TestC12DropUnderSettled drops a cut whose hole is of a record that is held, under a block whose
// record is not any more: the block keeps its version (C9, C12).
func TestC12DropUnderSettled(t *testing.T) {
	e := open(t, newMem(t, 64<<20, 256<<10, 2), quiet)
	defer e.Abandon()
	p := replicaOn(t, e)
	hole, over := ofGen(1, 1, 5), ofGen(1, 2, 6)
	hole.Kind, hole.Data, hole.Request.Counter = segment.KindUnmap, nil, 100
	mustGive(t, p, hole, Applied)
	mustGive(t, p, over, Applied)
	must(t, p.SealCut(background, 1))
	p.SetFloor(0, domain.Version{Epoch: 7, Seq: 10})
	e.Retire(3, 4, 50)
	must(t, e.Checkpoint())
	must(t, p.DropCut(background, 1))
	if _, err := p.Record(0, hole.Version); err != nil {
		t.Fatal(err)
	}
	must(t, p.Versions(1, 1, func(b BlockVersion) error {
		if b.Version != over.Version {
			t.Errorf("version %s, not %s", b.Version, over.Version)
		}
		return nil
	}))
}

// TestC12SettleBesideSweep lets records settle while the cut that they are in is swept, which has
// been done for some extents and not for others.
func TestC12SettleBesideSweep(t *testing.T) {
	e := open(t, newMem(t, 64<<20, 256<<10, 1), quiet)
	defer e.Abandon()
	p, l := replicaOn(t, e), e.lanes[0]
	for seq := range uint64(4) {
		mustGive(t, p, ofGen(seq%2*segment.LeafBlocks, 1, seq+1), Applied)
	}
	must(t, p.Cut(background, 1))
	must(t, p.SealCut(background, 1))
	b, dropped := p.rep.line[0], make(signal, 1)
	e.maint.ckpt.Lock()
	go func() { dropped <- p.DropCut(background, 1) }()
	for len(p.Cuts()) > 0 {
		runtime.Gosched()
	}
	l.sweep(b, 0)
	e.Retire(3, 4, 100)
	p.SetFloor(0, domain.Version{Epoch: 8})
	l.mu.Lock()
	l.sweepHeld(p.rep)
	l.mu.Unlock()
	e.maint.ckpt.Unlock()
	must(t, <-dropped)
	recount(t, e)
	check(t, p.v, 0, 3)
}

// TestC12Bury buries a slice of a replica that has cuts, the first of which was dropped: nothing of
// it is left in any, here, behind a crash and to fsck (C12, C13).
func TestC12Bury(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 2)
	e := open(t, dev, quiet)
	p := replicaOn(t, e)
	for gen := range uint32(3) {
		mustGive(t, p, ofGen(uint64(gen), gen+1, uint64(gen)+1), Applied)
		mustGive(t, p, ofGen(segment.SliceBlocks, gen+1, uint64(gen)+11), Applied)
	}
	must(t, p.SealCut(background, 1))
	must(t, p.DropCut(background, 1))
	must(t, e.Checkpoint())
	must(t, p.Bury(background, 0))
	for range 2 {
		for block := range uint64(3) {
			cutSees(t, p, 2, block, 0)
			cutSees(t, p, 0, block, 0)
		}
		cutSees(t, p, 2, segment.SliceBlocks, 12)
		cutSees(t, p, 0, segment.SliceBlocks, 13)
		recount(t, e)
		e.Abandon()
		res, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{})
		must(t, err)
		for _, b := range res.Branches {
			if b.Sees != segment.BlockSize {
				t.Errorf("branch %d sees %d bytes", b.ID, b.Sees)
			}
		}
		e = open(t, dev, quiet)
		p = mustReplica(t, e)
	}
	v, _, err := p.At(2)
	must(t, err)
	must(t, e.Delete(background, testVolume)) // its cuts go with it
	kindOf(t, v.Read(0, 1, backends.AlignedBuffer(segment.BlockSize)), domain.NotFound)
	e.Abandon()
	res, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{})
	must(t, err)
	if res.Live != 0 || res.HeldBytes != 0 {
		t.Errorf("%d bytes live, %d of them held", res.Live, res.HeldBytes)
	}
	e = open(t, dev, quiet)
	recount(t, e)
	if live := e.space.live.Load(); live != 0 || len(e.mu.replicas) != 0 {
		t.Errorf("%d bytes live of %d replicas", live, len(e.mu.replicas))
	}
	must(t, e.Close())
	soundCrash(t, dev)
}

// cutRecord is a record that was accepted, or began to be.
type cutRecord struct {
	block        uint64
	count        int
	n            uint64
	ver          domain.Version
	gen          uint32
	begun, acked int
}

// cutEvent is a change of the cuts.
type cutEvent struct {
	what         string // cut, seal or drop
	gen          uint32
	begun, acked int
}

// cutRun is a replica with cuts beside a model: the list of all records that were accepted. What a
// generation has of a block is that of the highest version among those of its generation and below.
type cutRun struct {
	t      *testing.T
	rnd    *rand.Rand
	dev    backends.Device
	e      *Engine
	p      *Replica
	other  *Volume // so that there is something to clean
	tune   []func(*Config)
	order  []*cutRecord
	events []*cutEvent
	held   map[domain.Version]bool
	late   []*Record
	spell  map[domain.Version]uint64
	floor  domain.Version
	seq, n uint64
	gen    uint32
	cuts   map[uint32]bool // whether it is sealed
}

func newCutRun(t *testing.T, dev backends.Device, seed uint64, tune ...func(*Config)) *cutRun {
	c := &cutRun{
		t: t, rnd: newRand(seed), dev: dev, tune: tune, gen: 1, held: map[domain.Version]bool{},
		spell: map[domain.Version]uint64{}, cuts: map[uint32]bool{},
	}
	c.e = open(t, dev, tune...)
	c.p = replicaOn(t, c.e)
	var err error
	c.other, err = c.e.Create(background, domain.VolumeID{UUID: domain.UUID{8}}, 16*domain.MiB, 1)
	must(t, err)
	return c
}

// wear overwrites blocks of the other volume.
func (c *cutRun) wear(n, of int) {
	for range n {
		r := data(c.rnd.Uint64N(uint64(of)), 1+c.rnd.IntN(3), 1)
		must(c.t, put(c.other, r))
	}
}

// sees gives what a generation has of a block behind the first k records.
func (c *cutRun) sees(k int, gen uint32, block uint64) (n uint64, ver domain.Version, of uint32) {
	for _, x := range c.order[:k] {
		if x.gen <= gen && block >= x.block && block < x.block+uint64(x.count) &&
			x.ver.Compare(ver) > 0 {
			n, ver, of = x.n, x.ver, x.gen
		}
	}
	return n, ver, of
}

func (c *cutRun) draw() *Record {
	c.seq++
	c.n++
	spots := contractSpots()
	r := versioned(spots[c.rnd.IntN(14)], 1+c.rnd.IntN(4), c.n, 7, c.seq)
	r.Gen = c.gen - min(c.gen-1, uint32(c.rnd.IntN(2)))
	for r.Gen < c.gen && c.cuts[r.Gen] {
		r.Gen++
	}
	switch c.rnd.IntN(8) {
	case 0:
		r.Kind, r.Data = segment.KindZero, nil
	case 1:
		r.Kind, r.Data, r.Count = segment.KindUnmap, nil, 1+c.rnd.IntN(40)
	}
	c.spell[r.Version] = c.n
	if r.Kind != segment.KindData {
		c.spell[r.Version] = 0
	}
	return r
}

// deliver gives some records, in any order and again, to both.
func (c *cutRun) deliver(mark func() int) {
	var wg sync.WaitGroup
	for range 1 + c.rnd.IntN(8) {
		for len(c.late) < 1+c.rnd.IntN(12) {
			c.late = append(c.late, c.draw())
		}
		i := c.rnd.IntN(len(c.late))
		r := *c.late[i]
		if c.rnd.IntN(6) > 0 {
			c.late = slices.Delete(c.late, i, i+1)
		}
		want, mask := c.accept(&r, mark)
		x := c.order[max(0, len(c.order)-1)]
		wg.Add(1)
		r.To = acker(func(err error) {
			defer wg.Done()
			if err != nil || r.Outcome != want || want == Mixed && r.Kept != mask {
				c.t.Errorf("version %s of generation %d: %v %v, not %v", r.Version, r.Gen, r.Outcome, err,
					want)
			}
			if want != Duplicate {
				x.acked = mark()
			}
		})
		c.p.Append(&r, 9)
	}
	wg.Wait()
}

// accept gives the outcome of a record.
func (c *cutRun) accept(r *Record, mark func() int) (Outcome, segment.Mask) {
	var mask segment.Mask
	if c.held[r.Version] || r.Version.Compare(c.floor) <= 0 {
		return Duplicate, mask
	}
	for g := uint32(1); g < r.Gen; g++ {
		if _, ok := c.cuts[g]; !ok {
			c.cuts[g] = false
			c.events = append(c.events, &cutEvent{"cut", g, mark(), 1 << 62})
		}
	}
	c.gen = max(c.gen, r.Gen)
	kept, home := 0, r.Gen // or the one that took over what was dropped
	for ; home < c.gen && !c.is(home); home++ {
	}
	for i := range r.Count {
		if _, ver, _ := c.sees(len(c.order), home, r.Block+uint64(i)); ver.Compare(r.Version) > 0 {
			mask.Set(i)
			kept++
		}
	}
	c.held[r.Version] = true
	c.order = append(c.order, &cutRecord{
		r.Block, r.Count, c.spell[r.Version], r.Version, r.Gen, mark(), 1 << 62,
	})
	switch kept {
	case 0:
		return Applied, mask
	case r.Count:
		return Superseded, mask
	}
	return Mixed, mask
}

// is tells whether there is a cut of a generation: a dropped one stays in the map, sealed.
func (c *cutRun) is(gen uint32) bool { return slices.Contains(c.p.Cuts(), gen) }

// turn cuts, seals or drops, as the protocol would.
func (c *cutRun) turn(mark func() int) {
	x := &cutEvent{gen: c.gen, begun: mark(), acked: 1 << 62}
	switch c.rnd.IntN(3) {
	case 0:
		x.what = "cut"
		c.cuts[c.gen] = false
		c.gen++
		if c.rnd.IntN(2) == 0 {
			return // whoever sees a record first
		}
		must(c.t, c.p.Cut(background, x.gen))
	case 1:
		x.what = "seal"
		for x.gen--; x.gen > 0; x.gen-- {
			pending := slices.ContainsFunc(c.late, func(r *Record) bool { return r.Gen <= x.gen })
			if c.is(x.gen) && !pending {
				break
			}
		}
		if x.gen == 0 {
			return
		}
		for g := range c.cuts {
			c.cuts[g] = c.cuts[g] || g <= x.gen
		}
		must(c.t, c.p.SealCut(background, x.gen))
	default:
		x.what = "drop"
		list := c.p.Cuts()
		if len(list) < 3 {
			return
		}
		x.gen = list[c.rnd.IntN(len(list))]
		if !c.cuts[x.gen] {
			return
		}
		must(c.t, c.p.DropCut(background, x.gen))
	}
	x.acked = mark()
	c.events = append(c.events, x)
}

// settle raises the floor as far as it may.
func (c *cutRun) settle() {
	c.floor = domain.Version{Epoch: 7, Seq: c.seq, Node: 1}
	for _, r := range c.late {
		if r.Version.Compare(c.floor) <= 0 {
			c.floor = r.Version
			c.floor.Seq--
		}
	}
	for _, s := range []uint32{0, 1} {
		c.p.SetFloor(s, c.floor)
	}
	c.e.Retire(3, 4, c.seq-min(c.seq, 20))
}

// relieve makes room: all that is late comes, and all is settled and dropped.
func (c *cutRun) relieve() {
	if c.e.space.live.Load()*2 < c.e.space.usable.Load() {
		return
	}
	for len(c.late) > 0 {
		r := *c.late[0]
		c.late = c.late[1:]
		want, _ := c.accept(&r, func() int { return 0 })
		mustGive(c.t, c.p, &r, want)
	}
	c.settle()
	c.e.Retire(3, 4, c.seq+1)
	list := c.p.Cuts()
	if len(list) > 0 {
		must(c.t, c.p.SealCut(background, list[len(list)-1]))
	}
	for _, gen := range list {
		c.cuts[gen] = true
		must(c.t, c.p.DropCut(background, gen))
	}
	must(c.t, c.e.Checkpoint())
}

// compare compares all that can be read with the first k records.
func (c *cutRun) compare(p *Replica, k int) error {
	blocks := map[uint64]bool{}
	for _, x := range c.order {
		for i := range x.count {
			blocks[x.block+uint64(i)] = true
		}
	}
	for _, gen := range append(p.Cuts(), 1<<30) {
		err := compareBranch(p, gen, blocks, func(b uint64) expected {
			n, ver, of := c.sees(k, gen, b)
			if n == 0 {
				ver = domain.Version{}
			}
			return expected{n, ver, of}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cutRun) judge() {
	c.t.Helper()
	if err := c.compare(c.p, len(c.order)); err != nil {
		c.t.Fatal(err)
	}
	recount(c.t, c.e)
}

func (c *cutRun) restart(clean bool) {
	if clean {
		must(c.t, c.e.Close())
	}
	c.e.Abandon()
	c.e = open(c.t, c.dev, c.tune...)
	c.p = mustReplica(c.t, c.e)
	c.other, _ = c.e.Volume(c.other.ID())
	c.p.SetFloor(0, c.floor)
	c.p.SetFloor(1, c.floor)
}

// TestC12Model compares a replica that is cut, sealed and dropped, beside late records, settling,
// the cleaner, checkpoints, clean stops and crashes, with the list of its records (C12, E5, E12).
func TestC12Model(t *testing.T) {
	steps := 800
	if raceOn || testing.Short() {
		steps = 250
	}
	cleaned := int64(0)
	for seed, kind := range []string{"one lane", "three lanes", "journal", "pair"} {
		var dev backends.Device = crashDevice(t, 60, 1+seed%2*2)
		tune := []func(*Config){often}
		switch kind {
		case "journal":
			tune = append(tune, journaled(newMemory(t, dev, 8)))
		case "pair":
			dev = newPair(t, 60, 80, 64<<10, 1)
			tune = append(tune, awake)
		}
		c := newCutRun(t, dev, 500+uint64(seed), tune...)
		for i := range steps {
			c.relieve()
			was := c.e
			switch d := c.rnd.IntN(100); {
			case d < 50:
				c.deliver(func() int { return 0 })
			case d < 65:
				c.turn(func() int { return 0 })
			case d < 80:
				c.wear(8, 60)
			case d < 90:
				c.settle()
			case d < 95:
				must(t, c.e.Checkpoint())
			default:
				c.restart(d < 98)
			}
			if c.e != was {
				cleaned += was.Stats().Cleaned
			}
			if i%10 == 9 {
				c.judge()
			}
			if t.Failed() {
				t.Fatalf("%s, step %d", kind, i)
			}
		}
		c.judge()
		c.restart(true)
		c.judge()
		must(t, c.e.Close())
		if dev, ok := dev.(*mem.Device); ok && kind != "journal" {
			soundCrash(t, dev)
		}
	}
	if cleaned == 0 && steps > 500 {
		t.Error("nothing was cleaned")
	}
}

// TestC12Crash enumerates power cuts of a device under a replica that is cut, sealed and dropped:
// every cut that was told to be there is, and sealed if that was told; each shows what the first so
// many records make of it, all acknowledged ones among them (C12, E1, E2).
func TestC12Crash(t *testing.T) { rounds(t, c12Crash) }

func c12Crash(r *crashes) {
	t := r.t
	for seed := range uint64(3) {
		dev := crashDevice(t, 90, 1)
		c := newCutRun(t, dev, r.seed(600+seed), func(c *Config) { c.CheckpointBytes = 128 << 10 })
		dev.StartHistory()
		for i := range 60 {
			c.deliver(dev.Mark)
			c.turn(dev.Mark)
			c.wear(10, 150)
			if i%7 == 6 {
				c.settle()
			}
			if i%20 == 19 {
				must(t, c.e.Checkpoint())
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
			p := mustReplica(t, e)
			err := cmp.Or(c.prefix(p, en.At()), c.stand(p, en.At()))
			if err != nil {
				t.Errorf("seed %d, cut %d of %d: %v", seed, en.At(), dev.Ops(), err)
			}
			recount(t, e)
			e.Abandon()
			if n/stride%8 == 0 {
				soundCrash(t, img)
			}
		}
	}
}

// prefix compares a replica behind a power cut with every number of records that may be there.
func (c *cutRun) prefix(p *Replica, at int) error { return c.between(p, at, at) }

// between is prefix where what was acknowledged and what had begun have moments of their own.
func (c *cutRun) between(p *Replica, acked, begun int) error {
	least, most := 0, 0
	for i, x := range c.order {
		if x.acked <= acked {
			least = i + 1
		}
		if x.begun <= begun {
			most = i + 1
		}
	}
	var err error
	for k := least; k <= most; k++ {
		if err = c.compare(p, k); err == nil {
			return nil
		}
	}
	return fmt.Errorf("no state of records %d to %d: %w", least, most, err)
}

// stand compares the cuts behind a power cut with those that there may be.
func (c *cutRun) stand(p *Replica, at int) error { return c.standBetween(p, at, at) }

func (c *cutRun) standBetween(p *Replica, acked, begun int) error {
	must, may, sealed := map[uint32]bool{}, map[uint32]bool{}, uint32(0)
	for _, x := range c.events {
		if x.begun > begun {
			continue
		}
		switch x.what {
		case "cut":
			must[x.gen] = x.acked <= acked
			may[x.gen] = true
		case "seal":
			if x.acked <= acked {
				sealed = max(sealed, x.gen)
			}
		case "drop":
			delete(must, x.gen)
			may[x.gen] = x.acked > acked
		}
	}
	list := p.Cuts()
	for gen, is := range must {
		if is && !slices.Contains(list, gen) {
			return fmt.Errorf("the cut of generation %d is lost: %v", gen, list)
		}
	}
	for _, gen := range list {
		if _, ok := may[gen]; ok && !may[gen] {
			return fmt.Errorf("the cut of generation %d is back", gen)
		}
		if _, is, err := p.At(gen); err != nil || gen <= sealed && !is {
			return fmt.Errorf("the cut of generation %d: sealed %t, %w", gen, is, err)
		}
	}
	return nil
}
