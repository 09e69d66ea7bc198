package engine

import (
	"runtime"
	"testing"

	"weft/backends/faulty"
	"weft/dataplane/segment"
	"weft/domain"
)

// The rules of a join session of a replica with cuts, one small case each: a cut of generation 1
// and a head of generation 2, one lane, a session of epoch 6.

// member is a replica with a cut, in a session.
type member struct {
	t         *testing.T
	dev       *faulty.Device
	e         *Engine
	p         *Replica
	cut, head Link
}

// joining makes a member: records are given before its session begins by early.
func joining(t *testing.T, early func(m *member)) *member {
	t.Helper()
	m := &member{t: t, dev: faulty.New(newMem(t, 16<<20, 256<<10, 1), nil)}
	m.e = open(t, m.dev, quiet)
	t.Cleanup(func() {
		m.dev.Heal() // else a failed test waits for ever
		m.e.Abandon()
	})
	var err error
	m.p, err = m.e.CreateReplica(background, testVolume, 4*segment.LeafBlocks*segment.BlockSize, 7)
	must(t, err)
	must(t, m.p.Cut(background, 1))
	m.cut, m.head = m.p.Line()[0], m.p.Line()[1]
	if early != nil {
		early(m)
	}
	began(t, m.p, 0, 6)
	return m
}

// record is one of a block, of an epoch and generation; it spells its sequence.
func record(block uint64, gen uint32, epoch domain.Epoch, seq uint64) *Record {
	r := versioned(block, 1, seq, epoch, seq)
	r.Gen = gen
	return r
}

// take gives a record and expects its outcome.
func (m *member) take(r *Record, want Outcome) {
	m.t.Helper()
	if got, err := give(m.p, r, 9); err != nil || got != want {
		m.t.Fatalf("version %s of generation %d: %v %v, not %v", r.Version, r.Gen, got, err, want)
	}
}

// bring imports the copy of a block of a branch.
func (m *member) bring(at Link, block, floor uint64, c Copy) {
	m.t.Helper()
	must(m.t, m.p.Import(6, at, block, []Copy{c}, domain.Version{Epoch: 5, Seq: floor, Node: 1}))
}

// settle lets all records that are in the floor be settled.
func (m *member) settle(floor domain.Version) {
	m.p.SetFloor(0, floor)
	m.e.Retire(3, 4, 1000)
	for _, l := range m.e.lanes {
		l.mu.Lock()
		l.sweepHeld(m.p.rep)
		l.mu.Unlock()
	}
}

// sees expects what block 0 is in both branches.
func (m *member) sees(cut, head uint64) {
	m.t.Helper()
	cutSees(m.t, m.p, 1, 0, cut)
	cutSees(m.t, m.p, 0, 0, head)
	recount(m.t, m.e)
}

// trusts tells whether block 0 of a branch is trusted.
func (m *member) trusts(i int) bool {
	l := m.e.lanes[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	return m.p.rep.lanes[0].trusts(m.p.rep.line[i], 0)
}

// ends ends the session and begins anew behind a crash.
func (m *member) ends() {
	m.t.Helper()
	synced(m.t, m.p, 0, 6)
	m.e.Abandon()
	m.e = open(m.t, m.dev, quiet)
	m.p = mustReplica(m.t, m.e)
}

// TestC10HoleOnItsWay imports a hole of a cut and, before that is durable, the head's copy, which
// is below the bound of the hole's version and above the hole: it stays.
func TestC10HoleOnItsWay(t *testing.T) {
	m := joining(t, func(m *member) { m.take(record(0, 1, 5, 7), Applied) })
	stall := m.dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	done := make(signal, 2)
	floor := at(60)
	go func() { done <- m.p.Import(6, m.cut, 0, []Copy{{Kind: segment.KindUnmap}}, floor) }()
	<-stall.Stalled()
	go func() { done <- m.p.Import(6, m.head, 0, []Copy{copied(50)}, floor) }()
	for !m.trusts(1) {
		runtime.Gosched()
	}
	stall.Release()
	must(t, <-done)
	must(t, <-done)
	m.sees(0, 50)
	m.ends()
	m.sees(0, 50)
}

// TestC10SameOfACut lets a block of a cut be the same as the source's: it keeps its version there
// behind a crash, so a late record below it changes nothing.
func TestC10SameOfACut(t *testing.T) {
	m := joining(t, func(m *member) { m.take(record(0, 1, 5, 100), Applied) })
	if got, err := m.p.Same(6, m.cut, 0, 1); got != 1 || err != nil {
		t.Fatalf("trusted %b %v", got, err)
	}
	m.ends()
	m.take(record(0, 1, 5, 97), Superseded)
	m.sees(100, 100)
}

// TestC10SameBesideALateRecord lets a record be on its way into a cut that takes away what the head
// had before the session, though it is lower: the head's block is not the source's then.
func TestC10SameBesideALateRecord(t *testing.T) {
	m := joining(t, func(m *member) { m.take(record(0, 2, 5, 100), Applied) })
	stall := m.dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	late, done := record(0, 1, 5, 50), make(signal, 1)
	late.To = done
	m.p.Append(late, 9)
	<-stall.Stalled()
	same := make(chan uint64, 1) // it would be logged behind the record
	go func() {
		got, err := m.p.Same(6, m.head, 0, 1)
		if err != nil {
			t.Error(err)
		}
		same <- got
	}()
	for !m.trusts(1) && len(same) == 0 {
		runtime.Gosched()
	}
	stall.Release()
	got := <-same
	must(t, <-done)
	if got != 0 {
		t.Error("trusted beside a record that takes it away")
	}
	m.bring(m.cut, 0, 0, copied(50))
	m.bring(m.head, 0, 0, copied(100))
	m.sees(50, 100)
	m.ends()
	m.sees(50, 100)
}

// TestC12LateBesideTrusted gives a record that the source says is resolved late to a cut that is
// not trusted yet: what the head has of the session, and what no held record tells any more, stays.
func TestC12LateBesideTrusted(t *testing.T) {
	m := joining(t, nil)
	m.take(record(0, 2, 6, 3), Applied)
	m.settle(domain.Version{Epoch: 6, Seq: 9})
	if n := len(m.p.rep.lanes[0].held); n != 0 {
		t.Fatalf("%d records are held", n)
	}
	m.take(record(0, 1, 5, 80), Applied)
	m.sees(80, 3)
	m.bring(m.cut, 0, 0, copied(80))
	m.ends()
	m.sees(80, 3)
}

// TestC10CopyFromBeforeALateRecord takes the head's copy from before a late record came to the
// source's cut, when that record is settled: it is as the cut, here as there. The cut's own copy
// came before the record or behind it, above the floor or not; that of the head came late.
func TestC10CopyFromBeforeALateRecord(t *testing.T) {
	for name, cut := range map[string]func(m *member){
		"before it":       func(m *member) { m.bring(m.cut, 0, 0, copied(5)) },
		"above the floor": func(m *member) { m.bring(m.cut, 0, 0, copied(50)) },
		"below the floor": func(m *member) { m.bring(m.cut, 0, 60, copied(50)) },
		"on its way": func(m *member) {
			stall := m.dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
			done := make(signal, 2)
			go func() { done <- m.p.Import(6, m.cut, 0, []Copy{copied(50)}, at(60)) }()
			<-stall.Stalled()
			go func() { done <- m.p.Import(6, m.head, 0, []Copy{copied(20)}, at(0)) }()
			for !m.trusts(1) {
				runtime.Gosched()
			}
			stall.Release()
			must(t, <-done)
			must(t, <-done)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := joining(t, nil)
			m.take(record(0, 1, 5, 50), Applied)
			cut(m)
			m.settle(at(60))
			m.bring(m.head, 0, 0, copied(20))
			m.sees(50, 50)
			m.ends()
			m.sees(50, 50)
		})
	}
}

// TestC10UnchangedBesideATail says of a block that the source has changed nothing where this member
// may have: by a tail of its own in the block, though the floor has risen above it meanwhile; by
// one in the cut, or a record of the session or of one that a crash cut short, which took away
// what the head had, though the cut's block is imported by then. It is not trusted.
func TestC10UnchangedBesideATail(t *testing.T) {
	hole := Copy{Kind: segment.KindUnmap}
	for _, how := range []string{"itself", "older", "older, cut short", "session", "short session"} {
		t.Run(how, func(t *testing.T) {
			since := domain.Epoch(6)
			m := joining(t, func(m *member) {
				m.take(record(0, 2, 5, 18), Applied)
				m.settle(at(20))
				switch how {
				case "itself":
					m.take(record(0, 2, 5, 120), Applied) // of a coordinator that died
				case "older", "older, cut short":
					m.take(record(0, 1, 5, 120), Applied)
				}
			})
			m.bring(m.cut, 64, 200, copied(5)) // the floor of the source
			switch how {
			case "session":
				m.take(record(0, 1, 5, 15), Applied)
			case "short session":
				m.take(record(0, 1, 6, 3), Applied)
			}
			m.bring(m.cut, 0, 200, hole)
			if how == "older, cut short" || how == "short session" {
				m.settle(at(200))
				m.e, m.p = again(t, m.e, m.dev, quiet)
				since = 7
				began(t, m.p, 0, since)
				must(t, m.p.Import(since, m.cut, 0, []Copy{hole}, at(0)))
			}
			kindOf(t, m.p.Unchanged(since, m.head, 0, 1), domain.Conflict)
			must(t, m.p.Unchanged(since, m.cut, 128, 1))
			must(t, m.p.Unchanged(since, m.head, 128, 1))
			must(t, m.p.Import(since, m.head, 0, []Copy{copied(18)}, at(0)))
			m.sees(0, 18)
			m.e, m.p = again(t, m.e, m.dev, quiet)
			m.sees(0, 18)
		})
	}
}

// TestC12SealedInASession gives a record of a sealed cut once more, in the session in which it came
// and was settled: it is there.
func TestC12SealedInASession(t *testing.T) {
	m := joining(t, nil)
	m.take(record(0, 1, 6, 3), Applied)
	must(t, m.p.SealCut(background, 1))
	m.take(record(0, 1, 6, 3), Duplicate)
	m.settle(domain.Version{Epoch: 6, Seq: 4})
	m.take(record(0, 1, 6, 3), Duplicate)
	_, err := give(m.p, record(0, 1, 6, 5), 9)
	kindOf(t, err, domain.Conflict)
	m.sees(3, 3)
}

// TestC12DroppedInASession is that for a cut that is dropped since: the branch that it went into
// began in the session, and is not trusted for it.
func TestC12DroppedInASession(t *testing.T) {
	m := joining(t, nil)
	m.take(record(0, 2, 6, 3), Applied)
	m.settle(domain.Version{Epoch: 6, Seq: 4})
	must(t, m.p.Cut(background, 2))
	must(t, m.p.SealCut(background, 2))
	must(t, m.p.DropCut(background, 2))
	m.take(record(0, 2, 6, 3), Duplicate)
	if m.trusts(1) {
		t.Error("trusted")
	}
}

// TestC10ParentOfADropped drops a cut, before a session or in it, and then takes a copy of the
// branch that it went into: that is as its parent. It is so behind a crash, which has to drop the
// cut once more.
func TestC10ParentOfADropped(t *testing.T) {
	for _, before := range []bool{false, true} {
		drop := func(m *member) {
			must(t, m.p.SealCut(background, 2))
			must(t, m.p.DropCut(background, 2))
		}
		m := joining(t, func(m *member) {
			must(t, m.p.Cut(background, 2))
			m.take(record(0, 2, 5, 18), Applied)
			m.settle(at(20))
			must(t, m.e.Checkpoint())
			if before {
				drop(m)
			}
		})
		if !before {
			drop(m)
		}
		for i, c := range []Copy{copied(21), {Kind: segment.KindUnmap, Parent: true}} {
			must(t, m.p.Import(6, m.p.Line()[i], 0, []Copy{c}, at(30)))
		}
		m.sees(21, 21)
		m.ends()
		m.sees(21, 21)
	}
}

// TestC10SameOfADropped is that for a block that is the same as the source's: it keeps the version
// that it had from the cut.
func TestC10SameOfADropped(t *testing.T) {
	m := joining(t, func(m *member) {
		must(t, m.p.Cut(background, 2))
		m.take(record(0, 2, 5, 100), Applied)
		must(t, m.e.Checkpoint())
	})
	must(t, m.p.SealCut(background, 2))
	must(t, m.p.DropCut(background, 2))
	if got, err := m.p.Same(6, m.p.Line()[1], 0, 1); got != 1 || err != nil {
		t.Fatalf("trusted %b %v", got, err)
	}
	for b := range m.p.v.blocks() { // without a copy, which would see to it as well
		for _, br := range m.p.rep.line {
			m.p.rep.lanes[0].rely(br, b)
		}
	}
	m.ends()
	m.take(record(0, 3, 5, 97), Superseded)
	m.sees(0, 100)
}

// TestC10HoleOfADropped lets a hole of a cut be dropped into the head while nothing is under it: it
// hides what comes to the older cut since, be it of the cut that is dropped or of the head.
func TestC10HoleOfADropped(t *testing.T) {
	for _, gen := range []uint32{2, 3} {
		m := joining(t, nil)
		hole := record(0, gen, 6, 30)
		hole.Kind, hole.Data = segment.KindUnmap, nil
		m.take(record(5, 2, 6, 28), Applied)
		m.take(record(6, 3, 6, 29), Applied)
		m.take(hole, Applied)
		must(t, m.p.SealCut(background, 2))
		must(t, m.p.DropCut(background, 2))
		m.bring(m.cut, 0, 30, copied(21))
		m.sees(21, 0)
		if !m.trusts(1) { // no copy of it comes
			t.Error("not trusted")
		}
		m.ends()
		m.sees(21, 0)
	}
}

// TestC10CopyBesideADrop drops a cut while a copy of the head is on its way that is as its parent:
// what the cut has is there until then. Once the drop is durable nothing is taken by its name.
func TestC10CopyBesideADrop(t *testing.T) {
	m := joining(t, func(m *member) {
		must(t, m.p.Cut(background, 2))
		m.take(record(0, 3, 5, 18), Applied)
	})
	must(t, m.p.SealCut(background, 2))
	line := m.p.Line()
	m.bring(line[0], 0, 30, Copy{Kind: segment.KindUnmap})
	m.bring(line[1], 0, 30, copied(21))
	drop, head := make(signal, 1), make(signal, 1)
	stall := m.dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	go func() { drop <- m.p.DropCut(background, 2) }()
	<-stall.Stalled()
	second := m.dev.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	parent := Copy{Kind: segment.KindUnmap, Parent: true}
	go func() { head <- m.p.Import(6, line[2], 0, []Copy{parent}, at(30)) }()
	for !m.trusts(2) {
		runtime.Gosched()
	}
	stall.Release()
	<-second.Stalled()
	for m.p.cut(2) != nil {
		runtime.Gosched()
	}
	for i := 0; i < 100_000 && len(drop) == 0; i++ { // it must not end
		runtime.Gosched()
	}
	kindOf(t, m.p.Unchanged(6, line[2], 128, 1), domain.Conflict)
	second.Release()
	must(t, <-head)
	must(t, <-drop)
	cutSees(t, m.p, 0, 0, 21)
	m.ends()
	m.sees(0, 21)
}

// TestC10VersionBesideALateHole lets the head have lost a hole or zeros to a late hole of the cut:
// behind a crash, too, the version told of the head is that of the late one.
func TestC10VersionBesideALateHole(t *testing.T) {
	for _, kind := range []segment.Kind{segment.KindUnmap, segment.KindZero} {
		joining(t, func(m *member) {
			lost, late := record(0, 2, 5, 20), record(0, 1, 5, 30)
			lost.Kind, lost.Data = kind, nil
			late.Kind, late.Data = segment.KindUnmap, nil
			m.take(lost, Applied)
			m.take(late, Applied)
			for range 2 {
				list, _, err := m.p.Export(m.head, 0, 1)
				must(t, err)
				if c := list[0]; !c.Parent || c.Version != at(30) {
					t.Errorf("kind %d: %+v", kind, c)
				}
				must(t, m.e.Checkpoint())
				m.e, m.p = again(t, m.e, m.dev, quiet)
			}
		})
	}
}

// TestC10OwnMapGoesOn lets a tail in a cut have taken away what the head had, and all that tells of
// it but the map be gone when the session is cut short, with a checkpoint and without: the next one
// knows.
func TestC10OwnMapGoesOn(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		m := joining(t, func(m *member) {
			must(t, m.p.Cut(background, 2))
			m.take(record(0, 3, 5, 18), Applied)
			m.settle(at(20))
			m.take(record(0, 2, 5, 120), Applied)
		})
		parent := Copy{Kind: segment.KindUnmap, Parent: true}
		for since := domain.Epoch(6); since < 8; since++ {
			for _, at := range m.p.Line()[:2] {
				must(t, m.p.Import(since, at, 0, []Copy{parent}, domain.Version{Epoch: 5, Seq: 200}))
			}
			kindOf(t, m.p.Unchanged(since, m.p.Line()[2], 0, 1), domain.Conflict)
			if m.settle(at(200)); checkpoint {
				must(t, m.e.Checkpoint())
			}
			m.e, m.p = again(t, m.e, m.dev, quiet)
			began(t, m.p, 0, since+1)
		}
	}
}

// TestC11OwnMap proves that the map of this member itself is there in a session alone, over crashes
// and checkpoints, and is not told to be that of a member that is away.
func TestC11OwnMap(t *testing.T) {
	m := joining(t, func(m *member) {
		m.take(record(40, 2, 5, 18), Applied)
		kindOf(t, m.p.Away(background, 0, 1), domain.Invalid)
	})
	for i := range 3 {
		if list := dirtied(t, m.p, 0, 1); len(list) != 1 || list[0] != 32 || len(m.p.Missing(0)) > 0 {
			t.Errorf("%d: marked %v, away %v", i, list, m.p.Missing(0))
		}
		if i == 1 {
			must(t, m.e.Checkpoint())
		}
		m.e, m.p = again(t, m.e, m.dev, quiet)
		began(t, m.p, 0, 7)
	}
	tables := m.e.space.tables.Load()
	synced(t, m.p, 0, 7)
	for i := range 2 {
		if _, there := m.p.Dirty(0, 1); there {
			t.Errorf("%d: there behind the session", i)
		}
		if n := m.e.space.tables.Load(); n >= tables {
			t.Errorf("%d: %d bytes of tables, %d in the session", i, n, tables)
		}
		m.e, m.p = again(t, m.e, m.dev, quiet)
	}
}
