package engine

import (
	"testing"

	"weft/backends/mem"
)

// cuts walks the points at which the power of a device and its journal may be cut: at every
// operation of the device and at every Persist. At each, the device keeps what a Chooser says and
// the journal, of the words stored and not persisted, none, all or some. There are about budget
// images in all.
func cuts(c *crashes, dev *mem.Device, nv *mem.Memory, budget int,
	judge func(img *mem.Device, nv *mem.Memory, at point) error,
) {
	t := c.t
	t.Helper()
	nv.Stop()
	last := nv.Mark() - 1
	stride := max(1, 2*(last+dev.Ops())/budget)
	at, seed, j := 0, uint64(1), 0
	for en := dev.Enumerate(); en.Next() && !t.Failed(); {
		for ; ; j++ {
			// Persist j came when the device had taken Clock(j) operations: at a cut here it is past, or
			// under way, or not begun.
			if at++; at%stride == 0 {
				for k := range 2 {
					seed++
					choose := []mem.Chooser{mem.RandomGarbage(seed), mem.None, mem.All}[seed%3]
					keep := []float64{0, 0.5, 1}[(seed/3+uint64(k))%3]
					if nv.Clock(j) <= en.At() {
						choose = returned(choose)
					} else {
						keep = 0 // what is stored by then may follow from operations behind the cut
					}
					img, left := en.Image(choose), nv.CrashImage(j, keep, seed)
					if !c.fresh(point{en.At(), j}, img, nil, left) {
						continue
					}
					c.journal = func() *mem.Memory { return nv.CrashImage(j, keep, seed) }
					if err := judge(img, left, point{en.At(), j}); err != nil {
						t.Fatalf("cut %d of %d, journal %d of %d, seed %d, keeping %v: %v", en.At(), dev.Ops(),
							j, last, seed, keep, err)
					}
				}
			}
			if j >= last || nv.Clock(j) > en.At() {
				break
			}
		}
	}
}

// returned keeps nothing of what was under way at the cut: it began behind the Persist at which the
// journal is cut.
func returned(choose mem.Chooser) mem.Chooser {
	return func(i int, p mem.Pending) mem.Fate {
		if p.InFlight {
			return mem.Fate{}
		}
		return choose(i, p)
	}
}

// TestJournalCrash cuts the power of a device with a journal at every write and at every Persist:
// every acknowledged record is there, in order, whole, whatever of it is in the journal, on its way
// to the device, or there (E1, E2, E2b, E14). First short scripts densely, then a long one that
// destages, overwrites and cleans.
func TestJournalCrash(t *testing.T) { rounds(t, journalCrash) }

func journalCrash(c *crashes) {
	t := c.t
	for seed := range uint64(4) {
		dev := crashDevice(t, 40, 1+int(seed%2))
		s := newScriptOn(t, dev, newMemory(t, dev, 8+2*int(seed)), c.seed(30+seed), spread(3, 4, 6))
		s.runJournal(c, func() {
			s.run(50, 6)
			if err := s.e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			for range 5 { // several slots in one batch
				s.run(12, 6)
				if err := s.e.nv.drain(background); err != nil {
					t.Fatal(err)
				}
			}
		}, images()/16)
	}
	dev := crashDevice(t, 40, 1)
	s := newScriptOn(t, dev, newMemory(t, dev, 12), c.seed(39), spread(4, 40, 10))
	s.runJournal(c, func() {
		s.run(1000, 8)
		st := s.e.Stats()
		c.need(st.Cleaned > 0 && st.Checkpoints > 2 && st.Destages >= 50,
			"the script never cleaned: %+v", st)
	}, images()/8)
}

// runJournal records a script and judges its cuts.
func (s *script) runJournal(c *crashes, do func(), budget int) {
	s.dev.StartHistory()
	s.nv.StartHistory(s.dev.Ops)
	do()
	c.need(s.refused == 0, "%d records were refused", s.refused)
	s.e.Abandon()
	touched := s.touched()
	cuts(c, s.dev, s.nv, budget, func(img *mem.Device, nv *mem.Memory, at point) error {
		return s.judge(img, nv, at.nv, touched)
	})
}

// TestJournalDoubleCrash cuts the power, and again at points of the recovery and of what comes
// behind it: what was acknowledged in either life is there.
func TestJournalDoubleCrash(t *testing.T) { rounds(t, journalDoubleCrash) }

func journalDoubleCrash(c *crashes) {
	t := c.t
	dev := crashDevice(t, 40, 1)
	s := newScriptOn(t, dev, newMemory(t, dev, 8), c.seed(50), spread(3, 4, 6))
	s.runJournal(c, func() { s.run(50, 6) }, 1)
	touched := s.touched()
	cuts(c, s.dev, s.nv, max(4, images()/400), func(img *mem.Device, nv *mem.Memory, at point) error {
		img.StartHistory()
		nv.StartHistory(img.Ops)
		e := open(t, img, journaled(nv))
		end := point{img.Mark(), nv.Mark()}
		if err := s.compare(e, at.nv, touched); err != nil {
			return err
		}
		x := newEncore(t, e, touched)
		for range 30 {
			x.put(e, func() point { return point{img.Mark(), nv.Mark()} })
		}
		e.Abandon()
		cuts(c, img, nv, 60, func(again *mem.Device, nv *mem.Memory, second point) error {
			if second.before(end) {
				return s.judge(again, nv, at.nv, touched)
			}
			return x.judge(again, nv, second)
		})
		return nil
	})
}

// TestJournalCrashFamilies is TestCrashFamilies with a journal: the order of records against cuts,
// clones, deletions and rollbacks holds over a crash (E5), and all space is counted.
func TestJournalCrashFamilies(t *testing.T) { rounds(t, journalCrashFamilies) }

func journalCrashFamilies(c *crashes) {
	t := c.t
	judge := func(s *saga, budget int) {
		s.f.e.Abandon()
		cuts(c, s.f.dev, s.f.nv, budget, s.judge)
	}
	for seed := range uint64(4) {
		dev := crashDevice(t, 48, 1+int(seed%2))
		s := newSagaOn(t, dev, newMemory(t, dev, 8+int(seed)), c.seed(80+seed))
		s.run(120)
		judge(s, images()/10)
	}
	dev := crashDevice(t, 90, 2)
	s := newSagaOn(t, dev, newMemory(t, dev, 8), c.seed(90))
	s.run(1200)
	st := s.f.e.Stats()
	c.need(st.Checkpoints > 3 && st.Destages >= 50, "the script never destaged: %+v", st)
	judge(s, images()/10)
}
