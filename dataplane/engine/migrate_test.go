package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
	"weft/domain"
)

// shuttle takes the families of a model from one device to another and back.
type shuttle struct {
	*families
	to    *Engine
	toDev *mem.Device
	toNV  *mem.Memory
}

func newShuttle(t *testing.T, seed uint64, journal bool, tune ...func(*Config)) *shuttle {
	device := func() (*mem.Device, *mem.Memory) {
		// The model fills 6 of 9 MiB: a device that has no room for a copy refuses it.
		dev := newMem(t, segment.DataOff+120*(128<<10)+segment.Guard+segment.Sector, 128<<10,
			1+int(seed%2)*2)
		if journal {
			return dev, newMemory(t, dev, 14)
		}
		return dev, nil
	}
	dev, nv := device()
	s := &shuttle{families: newFamiliesOn(t, dev, nv, seed, tune...)}
	s.toDev, s.toNV = device()
	there := &families{t: t, dev: s.toDev, nv: s.toNV, tune: tune}
	s.to = there.open()
	return s
}

// swap lets the model go on with the other device.
func (s *shuttle) swap() {
	s.e, s.to = s.to, s.e
	s.dev, s.toDev = s.toDev, s.dev
	s.nv, s.toNV = s.toNV, s.nv
}

// busy is a step of the model that needs no restart: what hosts and operators do meanwhile.
func (s *shuttle) busy() {
	switch d := s.rnd.IntN(100); {
	case d < 70:
		s.write()
	case d < 78:
		s.snapshot()
	case d < 84:
		s.deleteSnapshot()
	case d < 87:
		s.clone()
	case d < 89:
		s.deleteVolume()
	case d < 92:
		s.rollback()
	case d < 94:
		s.grow()
	case d < 95:
		s.shrink()
	case d < 97:
		s.compare()
	default:
		s.must(s.e.Checkpoint())
	}
}

// move takes all families over, with up to steps of the model between the pieces.
func (s *shuttle) move(steps int) {
	s.t.Helper()
	for _, f := range s.e.Families() {
		m, err := s.e.Migrate(f.ID, s.to, func(context.Context, int64) error {
			if steps > 0 && s.rnd.IntN(4) == 0 {
				steps--
				s.busy()
			}
			return nil
		})
		if domain.IsKind(err, domain.NotFound) {
			continue // all of it was deleted meanwhile
		}
		s.must(err)
		s.must(m.Copy(background))
		s.must(m.Finish(background))
		s.must(m.Clean(background))
	}
	left := s.e.Families()
	if len(left) > 0 || s.e.Hidden()+s.to.Hidden() > 0 {
		s.t.Fatalf("left: %v, hidden: %d and %d", left, s.e.Hidden(), s.to.Hidden())
	}
	s.swap()
}

// TestMigrate takes families of volumes, snapshots and clones from device to device, while they are
// written to, cut, cloned, deleted, rolled back and resized; now and then a copy is given up. Every
// byte of every one of them, what is allocated and what differs are as before, all counters are
// those of a recount, the device that was left is empty, and the copies share what was shared (M1).
func TestMigrate(t *testing.T) {
	for seed := range uint64(6) {
		journal := seed%3 == 2
		s := newShuttle(t, 400+seed, journal)
		s.most = 6
		s.create()
		if seed%2 == 0 { // then nothing is asked of them meanwhile: some are here and some are there
			s.create()
		}
		rounds, steps := 12, 150
		if raceOn || testing.Short() {
			rounds, steps = 4, 60
		}
		for round := range rounds {
			for range steps {
				s.busy()
			}
			s.audit()
			if round%3 == 1 {
				s.giveUp()
				s.audit()
			}
			before := s.e.Stats()
			s.move(steps * (round % 2) * int(seed%2))
			s.audit()
			if after := s.e.Stats(); round%2 == 0 &&
				after.LiveBytes+after.SavedBytes != before.LiveBytes+before.SavedBytes {
				t.Fatalf("seed %d: %d bytes became %d", seed, before.LiveBytes, after.LiveBytes)
			}
			if st := s.to.Stats(); st.LiveBytes != 0 || len(s.to.mu.byVolume) > 0 {
				t.Fatalf("seed %d: left behind: %+v", seed, st)
			}
			s.restart(round%2 == 0)
			s.audit()
		}
		s.empty()
		s.must(s.to.Close())
	}
}

// giveUp copies a part and throws it away.
func (s *shuttle) giveUp() {
	live := s.to.Stats().LiveBytes
	enough, n := errors.New("enough"), 3+s.rnd.IntN(200)
	f := s.e.Families()[0]
	m, err := s.e.Migrate(f.ID, s.to, func(context.Context, int64) error {
		s.busy()
		if n--; n == 0 {
			return enough
		}
		return nil
	})
	s.must(err)
	if err := m.Copy(background); err != nil && !errors.Is(err, enough) {
		s.t.Fatal(err)
	}
	on := still(s.to)
	if k := s.to.Kept(); int64(k) != s.to.Stats().LiveBytes || k == 0 {
		s.t.Fatalf("%d live, kept %d", s.to.Stats().LiveBytes, k)
	}
	on()
	s.must(m.Abort(background))
	if st := s.to.Stats(); st.LiveBytes != live || s.to.Hidden() > 0 {
		s.t.Fatalf("the copy is there: %+v", st)
	}
}

// TestMigrateEncrypted does the same with encrypted volumes: the copies are closed under keys of
// the target's own, and none of the source's is left.
func TestMigrateEncrypted(t *testing.T) {
	key := func(c *Config) { c.ClusterKey = fill(1, 3)[:32] }
	s := newShuttle(t, 500, false, key)
	s.create()
	for range 150 {
		s.busy()
	}
	s.move(60)
	s.audit()
	for _, v := range s.e.Volumes() {
		if !v.Encrypted() || v.Keyless() != nil {
			t.Errorf("%s is not encrypted, or without its key", v.ID())
		}
	}
	for i := range s.to.keys.pages {
		if n := len(s.to.keys.pages[i].Keys); n > 0 {
			t.Errorf("%d keys are left", n)
		}
	}
	s.restart(false)
	s.audit()
	s.empty()
	s.must(s.to.Close())
}

// timeline is the one order of what happens to two devices.
type timeline struct {
	mu     sync.Mutex // held while one of them is written to
	a, b   *mem.Device
	points []cutBoth
}

// cutBoth is a point of a timeline at which the power may be cut.
type cutBoth struct {
	point             // of the one device, and of the other
	under *mem.Device // the one at work; the other has nothing in flight
}

func (l *timeline) now() point { return point{l.a.Ops(), l.b.Ops()} }

// images makes what a cut leaves behind.
func (l *timeline) images(at cutBoth, choose mem.Chooser) (a, b *mem.Device) {
	image := func(dev *mem.Device, ops int) *mem.Device {
		return dev.CrashImage(ops, func(i int, p mem.Pending) mem.Fate {
			if fate := choose(i, p); !p.InFlight || at.under == dev {
				return fate
			}
			return mem.Fate{} // it came later
		})
	}
	return image(l.a, at.dev), image(l.b, at.nv)
}

// timed is a device on a timeline.
type timed struct {
	*mem.Device
	line *timeline
}

func (d timed) WriteAt(p []byte, off int64, fua bool) error {
	return d.do(func() error { return d.Device.WriteAt(p, off, fua) })
}

func (d timed) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	return d.do(func() error { return d.Device.WriteVAt(bufs, off, fua) })
}

func (d timed) Flush(ctx context.Context) error {
	return d.do(func() error { return d.Device.Flush(ctx) })
}

func (d timed) do(op func() error) error {
	d.line.mu.Lock()
	defer d.line.mu.Unlock()
	d.line.points = append(d.line.points, cutBoth{d.line.now(), d.Device})
	return op()
}

// TestCrashMigration cuts the power of both devices at every write and flush of a migration with
// records between its pieces and behind it: after SettleMigrations one device holds all of what was
// there before or after the record under way, to the byte and to the name, the other nothing, and
// all space is counted exactly, in whatever order the devices are looked at (M1, M2, M3).
func TestCrashMigration(t *testing.T) { rounds(t, crashMigration) }

func crashMigration(c *crashes) {
	t := c.t
	for seed := range uint64(4) {
		lanes := 1 + int(seed%2)
		a, b := crashDevice(t, 60, lanes), crashDevice(t, 60, lanes)
		s := newSagaOn(t, a, nil, c.seed(80+seed))
		s.run(60)
		for len(s.f.vols) > 1 { // one family
			s.f.deleteVolume()
		}
		s.f.clone()
		s.f.must(s.f.e.Close())
		b.StartHistory()
		line := &timeline{a: a, b: b}
		s.f.e = open(t, timed{a, line}, often)
		to := open(t, timed{b, line}, often)
		s.migrate(line, to)
		s.f.e.Abandon()
		s.enumerateBoth(c, line)
	}
}

// migrate takes the families over, with records meanwhile and afterwards.
func (s *saga) migrate(line *timeline, to *Engine) {
	f := s.f
	s.moments, line.points = nil, nil
	step := func(do func()) {
		begun := line.now()
		do()
		m := s.moment(begun)
		m.ended = line.now()
		s.moments = append(s.moments, m)
	}
	step(func() {})
	for _, fam := range f.e.Families() {
		n := 0
		m, err := f.e.Migrate(fam.ID, to, func(context.Context, int64) error {
			if n++; n%3 == 0 && n < 60 {
				step(s.one)
			}
			if n == 7 {
				step(f.snapshot)
			}
			return nil
		})
		f.must(err)
		f.must(m.Copy(background))
		m.Release()
		step(s.one)
		f.must(m.Finish(background))
		defer f.e.Abandon()
		defer func() { f.must(m.Clean(background)) }()
	}
	f.e = to
	for range 8 {
		step(s.one)
	}
}

// enumerateBoth judges pairs of images.
func (s *saga) enumerateBoth(c *crashes, line *timeline) {
	seed := uint64(1)
	stride := max(1, 8*len(line.points)/images())
	for i := 0; i < len(line.points); i += stride {
		at := line.points[i]
		for _, choose := range []mem.Chooser{mem.None, mem.All, mem.RandomGarbage(seed)} {
			seed++
			ia, ib := line.images(at, choose)
			if !c.fresh(at.point, ia, ib, nil) {
				continue
			}
			if err := s.judgeBoth(ia, ib, at.point, seed%2 == 0); err != nil {
				s.f.t.Fatalf("seed %d, cut %d of %d, %+v: %v", seed, i, len(line.points), at.point, err)
			}
		}
	}
}

func (s *saga) judgeBoth(a, b *mem.Device, cut point, back bool) error {
	var engines []*Engine
	for _, img := range []*mem.Device{a, b} {
		e, err := Open(background, Config{
			Device: img, Cluster: testCluster, Node: 1,
			Report: func(x Fact) { s.f.t.Errorf("cut %+v: reported %+v", cut, x) },
		})
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		defer e.Abandon()
		engines = append(engines, e)
	}
	if back {
		slices.Reverse(engines)
	}
	if err := SettleMigrations(background, engines); err != nil {
		return err
	}
	for i, e := range engines {
		recount(s.f.t, e)
		if e.Hidden() > 0 {
			return errors.New("something is still hidden")
		}
		o := engines[1-i]
		if len(e.Volumes()) == 0 || len(o.Volumes())+len(o.AllSnapshots()) > 0 {
			continue
		}
		why := ""
		for j, m := range s.moments {
			begun := m.begun.dev <= cut.dev && m.begun.nv <= cut.nv
			replaced := j+1 < len(s.moments) && s.moments[j+1].ended.before(cut)
			if !begun || replaced {
				continue
			}
			w := m.differs(e)
			if w == "" {
				return nil
			}
			why += fmt.Sprintf("\nmoment %d: %s", j, w)
		}
		return fmt.Errorf("neither before nor after:%s", why)
	}
	return fmt.Errorf("%d and %d volumes, %d and %d snapshots", len(engines[0].Volumes()),
		len(engines[1].Volumes()), len(engines[0].AllSnapshots()), len(engines[1].AllSnapshots()))
}

// TestMigrateRefused proves what is refused: a family that is not there, one that is being copied,
// a target that holds something of it, and a device without room; and that the source goes on.
func TestMigrateRefused(t *testing.T) {
	s := newShuttle(t, 600, false)
	s.create()
	for range 30 {
		s.write()
	}
	_, err := s.e.Migrate(99, s.to, nil)
	kindOf(t, err, domain.NotFound)
	id := s.e.Families()[0].ID
	m, err := s.e.Migrate(id, s.to, nil)
	s.must(err)
	_, err = s.e.Migrate(id, s.to, nil)
	kindOf(t, err, domain.Conflict)
	s.must(m.Abort(background))
	v := slices.Collect(maps.Keys(s.vols))[0]
	_, err = created(s.to, v, 4*domain.MiB)
	s.must(err)
	_, err = s.e.Migrate(id, s.to, nil)
	kindOf(t, err, domain.Conflict)
	s.must(s.to.Delete(background, v))
	other, err := created(s.to, testVolume, 64*domain.MiB)
	s.must(err)
	for b := uint64(0); ; b++ {
		if err := put(other, data(b, 1, b+1)); err != nil {
			kindOf(t, err, domain.NoSpace)
			break
		}
	}
	if s.to.Room() > 64<<10 {
		t.Errorf("%s are free", s.to.Room())
	}
	m, err = s.e.Migrate(id, s.to, nil)
	s.must(err)
	kindOf(t, m.Copy(background), domain.NoSpace)
	s.must(m.Abort(background))
	s.audit()
	s.must(s.e.Close())
	s.must(s.to.Close())
}

// TestMigrateBesideSweep proves that a branch which waits to be swept when the copy begins is left
// as it is until that ends: else a hole that the head has over it would go, and the copy of what
// it hides would show through.
func TestMigrateBesideSweep(t *testing.T) {
	s := newShuttle(t, 700, false)
	s.create()
	id := slices.Collect(maps.Keys(s.vols))[0]
	v, _ := s.e.Volume(id)
	s.must(put(v, data(0, 4, 50)))
	s.must(s.e.Snapshot(background, Cut{Volume: id, Snapshot: snapID(1)}))
	s.must(put(v, &Record{Kind: segment.KindUnmap, Block: 1, Count: 1}))
	s.e.maint.ckpt.Lock() // the maintenance does not run
	deleted := make(chan error, 1)
	go func() { deleted <- s.e.DeleteSnapshot(background, snapID(1)) }()
	var waits []*sweepJob
	for len(waits) == 0 {
		s.e.maint.sweeps.mu.Lock()
		waits, s.e.maint.sweeps.list = s.e.maint.sweeps.list, nil
		s.e.maint.sweeps.mu.Unlock()
		runtime.Gosched()
	}
	s.e.maint.ckpt.Unlock()
	m, err := s.e.Migrate(s.e.Families()[0].ID, s.to, func(context.Context, int64) error {
		for _, j := range waits {
			s.e.sweep(j.br)
			close(j.done)
		}
		waits = nil
		return nil
	})
	s.must(err)
	s.must(m.Copy(background))
	s.must(<-deleted)
	s.must(m.Finish(background))
	s.must(m.Clean(background))
	s.swap()
	im := s.vols[id]
	im.apply(segment.KindData, 0, 4, 50)
	im.apply(segment.KindUnmap, 1, 1, 0)
	s.audit()
	s.empty()
	s.must(s.to.Close())
}

// again opens a device of the shuttle anew, as the next start does.
func (s *shuttle) again(e *Engine, dev *mem.Device, nv *mem.Memory) *Engine {
	e.Abandon()
	return (&families{t: s.t, dev: dev, nv: nv, tune: s.tune}).open()
}

// TestMigrateDeviceFails proves that a target which fails costs nothing but the copy, which the
// next start throws away; and that nothing is thrown away once the switch was begun: a source that
// failed then was left, or was not, as its log says when it is back.
func TestMigrateDeviceFails(t *testing.T) {
	for _, left := range []bool{false, true} {
		silent := func(c *Config) { c.Report = nil }
		s := newShuttle(t, 800, false, silent)
		s.create()
		for range 60 {
			s.busy()
		}
		n := 0
		m, err := s.e.Migrate(s.e.Families()[0].ID, s.to, func(context.Context, int64) error {
			if n++; n == 5 {
				s.to.fail(errors.New("it broke"))
			}
			return nil
		})
		s.must(err)
		kindOf(t, m.Copy(background), domain.Unavailable)
		kindOf(t, m.Abort(background), domain.Unavailable)
		s.write()
		s.audit()
		s.to = s.again(s.to, s.toDev, s.toNV)
		if s.to.Hidden() != 1 || len(s.to.Volumes()) > 0 {
			t.Fatalf("%d copies are hidden", s.to.Hidden())
		}
		s.must(SettleMigrations(background, []*Engine{s.e, s.to}, s.to))
		if s.to.Hidden() != 0 || s.to.Stats().LiveBytes != 0 {
			t.Fatal("the copy is there")
		}
		m, err = s.e.Migrate(s.e.Families()[0].ID, s.to, nil)
		s.must(err)
		s.must(m.Copy(background))
		if left { // its log says so, and nobody heard of it
			s.must(m.pass(background))
			s.must(m.baptize(background))
			m.unsure = true
			s.must(s.e.mark(background, m.fam, segment.MoveLeft, m.token))
		}
		s.e.fail(errors.New("it broke"))
		if !left {
			kindOf(t, m.Finish(background), domain.Unavailable)
		}
		s.must(m.Abort(background))
		if m.Left() || s.to.Hidden() != 1 || len(s.to.Volumes()) > 0 {
			t.Fatal("the copy is not there, or shown")
		}
		s.e = s.again(s.e, s.dev, s.nv)
		s.must(SettleMigrations(background, []*Engine{s.e, s.to}))
		if left {
			s.swap()
		}
		s.audit()
		if s.to.Hidden()+s.e.Hidden() != 0 || s.to.Stats().LiveBytes != 0 {
			t.Fatal("something is left")
		}
		s.empty()
		s.must(s.to.Close())
	}
}

// scribbler is a host that writes blocks of a volume, one in each of some grains, by chance and as
// fast as it is let.
type scribbler struct {
	v      *Volume
	grains int
	ops    *atomic.Int64
	has    map[uint64]uint64
	err    error
}

func (w *scribbler) run(first uint64, stop *atomic.Bool) {
	rnd := newRand(first)
	w.has = map[uint64]uint64{}
	for n := first << 32; !stop.Load() && w.err == nil; n++ {
		b := (uint64(rnd.IntN(w.grains))*grainBlocks + first%grainBlocks)
		w.has[b] = n
		w.err = put(w.v, data(b, 1, n))
		w.ops.Add(1)
	}
	w.ops.Add(1 << 40) // nobody waits for it
}

// TestMigrateOutrun proves that hosts which write faster than a family is copied are slowed down,
// not failed, until what is left is as little as Copy says; that the pause has no more to copy than
// that; and that they are fast again afterwards, with every byte as it was written last.
func TestMigrateOutrun(t *testing.T) {
	for _, journal := range []bool{false, true} {
		s := newShuttle(t, 900, journal)
		const hosts, grains = 4, 256
		v, err := created(s.e, testVolume, grains*grainBlocks*segment.BlockSize)
		s.must(err)
		var ops atomic.Int64
		var stop atomic.Bool
		var wg sync.WaitGroup
		list := make([]*scribbler, hosts)
		for i := range list {
			list[i] = &scribbler{v: v, grains: grains, ops: &ops}
			wg.Go(func() { list[i].run(uint64(i+1), &stop) })
		}
		until := func(n int64) {
			for ops.Load() < n {
				runtime.Gosched()
			}
		}
		until(grains)
		pieces := 0
		m, err := s.e.Migrate(s.e.Families()[0].ID, s.to, func(context.Context, int64) error {
			pieces++
			until(ops.Load() + 4) // the copy never catches up with that
			return nil
		})
		s.must(err)
		s.must(m.Copy(background))
		if !m.outrun || pieces < 2*grains {
			t.Fatalf("nobody outran the copy: %d pieces", pieces)
		}
		stop.Store(true)
		m.Release()
		wg.Wait()
		const most = migrateRest + brakeMost/2 + 2*hosts
		if n := m.rest(); n > most {
			t.Fatalf("%d grains are left, not %d", n, most)
		}
		s.must(m.Finish(background))
		s.must(m.Clean(background))
		to, _ := s.to.Volume(testVolume)
		for _, w := range list {
			s.must(w.err)
			for b, n := range w.has {
				if got, err := holds(to, b); err != nil || got != n {
					t.Fatalf("block %d holds %d, not %d: %v", b, got, n, err)
				}
			}
		}
		s.must(s.e.Close())
		s.must(s.to.Close())
	}
}

// TestBrake proves the price of what hosts write while a brake is on: of each two grains that are
// copied one is theirs, of which they may save up little, and a large record is paid for
// afterwards.
func TestBrake(t *testing.T) {
	b := newBrake()
	for n, c := range []struct{ pay, blocks, left int }{
		{2, 1, 0},
		{3, grainBlocks, 1},
		{1, 1, 0},
		{1000, 1, brakeMost - 2},
		{0, segment.LeafBlocks, brakeMost - 2 - 2*segment.LeafBlocks/grainBlocks},
	} {
		b.pay(c.pay)
		b.wait(&Record{Block: segment.LeafBlocks, Count: c.blocks})
		if b.credit != c.left {
			t.Errorf("case %d: %d are left, not %d", n, b.credit, c.left)
		}
	}
	var through sync.WaitGroup
	through.Go(func() { b.wait(&Record{Count: 1}) })
	b.release()
	through.Wait()
}

// spoil turns over a bit of a block where it stands.
func (s *shuttle) spoil(v *Volume, block uint64) {
	s.t.Helper()
	if v.e.nv != nil { // else it may be copied already, and be sound where it is next
		defer undestaged(v.e.nv)()
	}
	loc := locsOf(s.t, v, block, 1)[0]
	if v.e.nv.holds(loc) {
		s.nv.Bytes()[int64(v.e.nv.place(loc))*segment.BlockSize+9] ^= 4
		return
	}
	s.must(s.dev.FlipBit(loc.Off()+9, 2))
}

// TestMigrateDamaged proves that damaged blocks hold up nothing: whatever else the family has goes
// to the other device, and a block that was damaged, of a volume or of a snapshot, reads as corrupt
// there until it is written, also behind a crash, and also where the copy had an older one already
// that was whole; and that it is told which blocks they are.
func TestMigrateDamaged(t *testing.T) {
	for n, journal := range []bool{false, true} {
		told := &facts{}
		s := newShuttle(t, 1000+uint64(n), journal, told.into)
		v, err := created(s.e, testVolume, 8*domain.MiB)
		s.must(err)
		const old, cut, head, late = 3, 40, 60, 90 // blocks
		for b := range uint64(100) {
			s.must(put(v, data(b, 1, b+1)))
		}
		s.must(s.e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}))
		s.must(put(v, data(cut, 1, 1000)))
		s.must(put(v, data(head, 1, 1001)))
		s.must(put(v, data(late, 1, 1002)))
		snap, _ := s.e.OpenSnapshot(snapID(1))
		s.spoil(snap, old) // the volume sees it, too
		s.spoil(snap, cut)
		s.spoil(v, head)
		m, err := s.e.Migrate(s.e.Families()[0].ID, s.to, nil)
		s.must(err)
		s.must(m.Copy(background))
		s.must(put(v, data(late, 1, 1003)))
		s.spoil(v, late)
		was := told.count("corrupt")
		s.must(m.Finish(background))
		if len(m.lost.of) != 4 || told.count("corrupt") < was+4 {
			t.Errorf("%d went over damaged, %d were told", len(m.lost.of), told.count("corrupt")-was)
		}
		s.must(m.Clean(background))
		s.swap()
		for range 2 {
			v, _ = s.e.Volume(testVolume)
			snap, _ = s.e.OpenSnapshot(snapID(1))
			recount(t, s.e)
			for b := range uint64(100) {
				now, err := holds(v, b)
				if b == old || b == head || b == late {
					kindOf(t, err, domain.Corrupt)
				} else if want := map[uint64]uint64{cut: 1000}[b]; err != nil || now != max(want, b+1) {
					t.Errorf("block %d holds %d: %v", b, now, err)
				}
				then, err := holds(snap, b)
				if b == old || b == cut {
					kindOf(t, err, domain.Corrupt)
				} else if err != nil || then != b+1 {
					t.Errorf("block %d of the snapshot holds %d: %v", b, then, err)
				}
			}
			s.e = s.again(s.e, s.dev, s.nv)
		}
		v, _ = s.e.Volume(testVolume)
		s.must(put(v, data(head, 1, 7)))
		if got, err := holds(v, head); err != nil || got != 7 {
			t.Errorf("it was written, and holds %d: %v", got, err)
		}
		_, err = holds(v, late)
		kindOf(t, err, domain.Corrupt)
		s.must(s.e.Close())
		s.must(s.to.Close())
	}
}

// TestMigratePair does what TestMigrate does from a device to a pair of flash and disk, with most
// of what it holds on the disk, from there to another pair, and back to a device.
func TestMigratePair(t *testing.T) {
	s := newShuttle(t, 1100, false, awake)
	s.most = 6
	s.create()
	steps, last := 100, s.to
	other := func() *Engine {
		return open(t, newPair(t, 60, 90, 128<<10, 2), often, awake)
	}
	rest := []*Engine{s.e}
	for round := range 3 {
		for range steps {
			s.busy()
		}
		if round < 2 {
			s.to = other()
			rest = append(rest, s.to)
		} else {
			s.to = last
		}
		s.move(steps * (round % 2))
		s.audit()
		if e := s.e; e.space.disk != nil {
			cooled(t, e)
			s.audit()
			if e.Stats().DiskLiveBytes == 0 {
				t.Fatal("nothing is on the disk")
			}
		}
		if st := s.to.Stats(); st.LiveBytes != 0 || st.DiskLiveBytes != 0 {
			t.Fatalf("round %d: left behind: %+v", round, st)
		}
	}
	s.empty()
	for _, e := range rest {
		s.must(e.Close())
	}
}

// TestMigrateCompressed proves that what was compressed is compressed again where the target has a
// journal, at the latest as it is destaged, and goes plain where it has none, until it is moved;
// and that a volume keeps what was said of its compression while it was copied.
func TestMigrateCompressed(t *testing.T) {
	for _, journal := range []bool{false, true} {
		_, _, e, v := packedDevice(t, compress.OnlyS2)
		r := text(0, 64, 1)
		want := bytes.Clone(r.Data)
		if err := lay(v, r); err != nil {
			t.Fatal(err)
		}
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
		tune := quiet
		dev := newMem(t, 64<<20, 512<<10, 1)
		if journal {
			nv := newMemory(t, dev, 14)
			tune = func(c *Config) { quiet(c); journaled(nv)(c) }
		}
		to := open(t, dev, tune)
		m, err := e.Migrate(e.Families()[0].ID, to, nil)
		if err == nil {
			err = m.Copy(background)
		}
		if err != nil {
			t.Fatal(err)
		}
		saved := e.Stats().SavedBytes
		if journal {
			if err := to.nv.drain(background); err != nil {
				t.Fatal(err)
			}
		}
		v.SetCompression(compress.Off)
		if err := errors.Join(m.Finish(background), m.Clean(background)); err != nil {
			t.Fatal(err)
		}
		got, _ := to.Volume(v.ID())
		same(t, got, 0, want)
		if got.Compression() != compress.Off {
			t.Errorf("the copy is compressed as %v", got.Compression())
		}
		if n := to.Stats().SavedBytes; saved == 0 || n != map[bool]int64{true: saved}[journal] {
			t.Errorf("journal %t: %d bytes were saved, now %d", journal, saved, n)
		}
		recount(t, to)
		e.Abandon()
		to.Abandon()
	}
}

// TestMigrateCompressedFits proves that a family which is compressed goes, over a journal, to a
// device that has room for what it takes there, but not for its size; that what it takes is known
// before; and that it is its size once it was said that it shall not be compressed any more.
func TestMigrateCompressedFits(t *testing.T) {
	_, _, e, v := packedDevice(t, compress.OnlyS2)
	const blocks = 2048
	for b := uint64(0); b < blocks; b += 64 {
		if err := lay(v, text(b, 64, b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	dev := newMem(t, segment.DataOff+90*(128<<10)+segment.Guard+segment.Sector, 128<<10, 1)
	to := open(t, dev, quiet, journaled(newMemory(t, dev, 14)))
	f := e.Families()[0]
	if st := e.Stats(); f.Packed != domain.Bytes(st.LiveBytes) ||
		f.Bytes != domain.Bytes(st.LiveBytes+st.SavedBytes) || f.Bytes != blocks*segment.BlockSize {
		t.Errorf("%s, %s packed: %+v", f.Bytes, f.Packed, st)
	}
	if room := to.Room(); room >= f.Bytes || room < f.Packed+to.Staging() || to.Staging() == 0 {
		t.Fatalf("%s of room for %s, %s packed, through %s", room, f.Bytes, f.Packed, to.Staging())
	}
	m, err := e.Migrate(f.ID, to, nil)
	if err == nil {
		err = errors.Join(m.Copy(background), m.Finish(background), m.Clean(background))
	}
	if err != nil {
		t.Fatal(err)
	}
	got, _ := to.Volume(v.ID())
	for b := uint64(0); b < blocks; b += 64 {
		same(t, got, b, text(b, 64, b).Data)
	}
	if err := to.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if n := to.Families()[0].Packed; n > f.Packed {
		t.Errorf("it takes %s there, not %s", n, f.Packed)
	}
	got.SetCompression(compress.Off)
	if n := to.Families()[0]; n.Packed != n.Bytes || n.Bytes != f.Bytes {
		t.Errorf("it shall not be compressed, and takes %s of %s", n.Packed, n.Bytes)
	}
	recount(t, to)
	e.Abandon()
	to.Abandon()
}

// TestMigrateOrphan proves that a copy which is whole stays, shown to nobody, while the device that
// it comes from is not there; that it is said what it is; and that it can be thrown away, but not
// what is left of a family that went.
func TestMigrateOrphan(t *testing.T) {
	for _, left := range []bool{false, true} {
		s := newShuttle(t, 1200, false)
		s.create()
		for range 60 {
			s.busy()
		}
		f := s.e.Families()[0]
		m, err := s.e.Migrate(f.ID, s.to, nil)
		s.must(err)
		s.must(m.Copy(background))
		s.must(m.pass(background))
		s.must(m.baptize(background))
		alone := func() *Engine { s.to = s.again(s.to, s.toDev, s.toNV); return s.to }
		if left {
			s.must(s.e.mark(background, m.fam, segment.MoveLeft, m.token))
			alone = func() *Engine { s.e = s.again(s.e, s.dev, s.nv); return s.e }
		}
		e := alone()
		s.must(SettleMigrations(background, []*Engine{e}))
		want := Remnant{Token: m.token, Left: left, Volumes: f.Volumes}
		list := e.Remnants()
		if len(list) != 1 || len(list[0].Snapshots) != len(f.Snapshots) || len(e.Volumes()) > 0 ||
			list[0].Token != want.Token || list[0].Left != left ||
			len(list[0].Volumes) != len(want.Volumes) || list[0].Volumes[0] != want.Volumes[0] {
			t.Fatalf("%+v, not %+v", list, want)
		}
		n, err := e.DiscardCopies(background)
		s.must(err)
		if gone := e.Stats().LiveBytes == 0; n == 1 == left || gone == left || e.Hidden() == 1 != left {
			t.Errorf("left %t: %d thrown away, all %t", left, n, gone)
		}
		s.must(s.e.Close())
		s.must(s.to.Close())
	}
}
