package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// scrubClock is a clock that goes on by what is waited for.
type scrubClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *scrubClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *scrubClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	ch := make(chan time.Time, 1)
	ch <- c.now
	return ch
}

// scrubbed runs a pass to its end and gives what it found.
func scrubbed(t testing.TB, e *Engine, rate int64) ([]Damage, ScrubStatus, *scrubClock) {
	t.Helper()
	var list []Damage
	c := &scrubClock{now: time.Unix(1e9, 0)}
	s, err := e.Scrub(t.Context(), ScrubOptions{
		Rate: rate, Now: c.Now, After: c.After, Found: func(d Damage) { list = append(list, d) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return list, s, c
}

// scrubDevice makes a small device with overwrites, a snapshot and a clone, and opens it.
func scrubDevice(t testing.TB, tune ...func(*Config)) (*mem.Device, *Engine) {
	t.Helper()
	dev := newMem(t, 12<<20, 64<<10, 2)
	e := open(t, dev, append([]func(*Config){often}, tune...)...)
	v := create(t, e, 16*domain.MiB)
	rnd := newRand(5)
	write := func(v *Volume, n int) {
		for range n {
			if err := put(v, data(rnd.Uint64N(100)*37, 1, rnd.Uint64())); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(v, 60)
	snap := domain.SnapshotID{UUID: domain.UUID{50}}
	if err := e.Snapshot(t.Context(), Cut{Volume: testVolume, Snapshot: snap}); err != nil {
		t.Fatal(err)
	}
	write(v, 200)
	b, err := e.Clone(t.Context(), snap, domain.VolumeID{UUID: domain.UUID{51}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	write(b, 20)
	wide, err := e.Create(t.Context(), domain.VolumeID{UUID: domain.UUID{52}}, 400*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	for ext := range uint64(100) {
		if err := put(wide, data(ext*segment.LeafBlocks, 1, ext+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return dev, open(t, dev, tune...)
}

func places(t testing.TB, dev backends.Device) *fsck.Report {
	t.Helper()
	r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{})
	if err != nil || !r.Sound() {
		t.Fatalf("%v, %+v", err, r.Problems)
	}
	return r
}

// spoilAt replaces n bytes of a device and gives the function that brings them back.
func spoilAt(t testing.TB, dev backends.Device, off, n int64, change func(b []byte)) func() {
	t.Helper()
	start := off / segment.Sector * segment.Sector
	size := segment.RoundUp(int(off-start+n), segment.Sector)
	was, b := backends.AlignedBuffer(size), backends.AlignedBuffer(size)
	if err := dev.ReadAt(was, start); err != nil {
		t.Fatal(err)
	}
	copy(b, was)
	change(b[off-start:][:n])
	if err := dev.WriteAt(b, start, true); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := dev.WriteAt(was, start, true); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScrubFindsEverySector proves, with the naive checker as the judge of what matters, that a
// pass finds a spoiled byte in whatever the device depends on, each at its place and a block by
// volume, block and version; that superblocks, anchors, root and index are mended by it, and that
// a second pass then finds nothing; and that a pass over a sound device finds nothing at all. So on
// an encrypted device, with its keys and without.
func TestScrubFindsEverySector(t *testing.T) {
	scrubEverySector(t)
	scrubEverySector(t, keyed)
	scrubEverySector(t, keyed, func(c *Config) { c.ClusterKey = nil })
}

// scrubEverySector is TestScrubFindsEverySector on a device that is made as the first of tune says
// and opened as all of it does.
func scrubEverySector(t *testing.T, tune ...func(*Config)) {
	t.Helper()
	dev, e := scrubDevice(t, tune[:min(len(tune), 1)]...)
	if len(tune) > 1 {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, dev, tune...)
	}
	defer e.Close()
	if list, s, _ := scrubbed(t, e, 0); len(list) != 0 || s.Damaged != 0 || s.Checked < 100*4096 {
		t.Fatalf("a sound device: %+v %+v", list, s)
	}
	parts := map[string]int{}
	r := places(t, dev)
	for i := 0; i < len(r.Places); i++ {
		p := r.Places[i]
		if p.Part == "chunk" && footed(r, p.Off) {
			continue // the footer has what the chunk says: nothing is lost
		}
		if parts[p.Part] >= 5 && (raceOn || testing.Short()) {
			continue
		}
		back := spoilAt(t, dev, p.Off+p.Len/2, 1, func(b []byte) { b[0] ^= 8 })
		list, _, _ := scrubbed(t, e, 0)
		want := map[string]string{"chunk": "entries"}[p.Part]
		if want == "" {
			want = p.Part
		}
		if len(list) != 1 || list[0].Part != want || want != "entries" && list[0].Off != p.Off &&
			want != "index" && want != "root" {
			seq, st, live := e.space.life(uint32((p.Off - e.space.first) / e.space.size))
			t.Fatalf("%s at %d: %+v (segment of life %d, state %d, %d live)", p.Part, p.Off, list, seq,
				st, live)
		}
		d := list[0]
		if d.Part == "block" && (d.Volume.IsZero() || d.Version == domain.Version{} ||
			!strings.Contains(d.Detail, "not match its checksum")) {
			t.Errorf("%+v", d)
		}
		if !d.Mended {
			back()
		} else {
			r = places(t, dev) // a checkpoint has moved them
		}
		if list, _, _ := scrubbed(t, e, 0); len(list) != 0 {
			t.Fatalf("%s at %d: found again: %+v", p.Part, p.Off, list)
		}
		parts[p.Part]++
	}
	for _, part := range []string{"block", "index", "superblock", "anchor", "root", "header"} {
		if parts[part] == 0 {
			t.Errorf("no %s was spoiled: %v", part, parts)
		}
	}
	e.stats.corrupt.Store(0) // it is sound again, and is checked as such at the end
}

// footed tells whether a place lies in a segment with a footer.
func footed(r *fsck.Report, off int64) bool {
	for _, s := range r.Segments {
		if off >= s.Off && off < s.Off+int64(r.Super.SegmentSize) {
			return s.Footer
		}
	}
	return false
}

// TestScrubKinds proves that a block which was flipped, lost, left as it was before, written over
// by another, or cannot be read is found, told as what it is, and never returned to a reader.
func TestScrubKinds(t *testing.T) {
	inner, first := scrubDevice(t)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	dev := harmed(t, inner, "")
	e := open(t, dev)
	defer e.Close()
	r := places(t, inner)
	var blocks []fsck.Place
	for _, p := range r.Places {
		if p.Part == "block" {
			blocks = append(blocks, p)
		}
	}
	other := backends.AlignedBuffer(segment.BlockSize)
	if err := inner.ReadAt(other, blocks[1].Off); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b []byte){
		"flipped": func(b []byte) { b[17] ^= 1 }, "lost": func(b []byte) { clear(b) },
		"misdirected": func(b []byte) { copy(b, other) },
		"stale":       func(b []byte) { copy(b, fill(1, 12345)) },
	} {
		back := spoilAt(t, inner, blocks[0].Off, segment.BlockSize, change)
		list, s, _ := scrubbed(t, e, 0)
		if len(list) != 1 || list[0].Part != "block" || list[0].Off != blocks[0].Off || s.Damaged != 1 {
			t.Errorf("%s: %+v", name, list)
		}
		v, ok := e.Volume(list[0].Volume)
		if !list[0].Snapshot.IsZero() {
			v, ok = e.OpenSnapshot(list[0].Snapshot)
		}
		if !ok {
			t.Fatalf("%s: no such volume: %+v", name, list[0])
		}
		kindOf(t, v.Read(list[0].Block, 1, backends.AlignedBuffer(segment.BlockSize)), domain.Corrupt)
		back()
	}
	bad := blocks[1].Off // behind one that stands beside it
	if err := dev.Script(fmt.Sprintf("read %d+4096 eio", bad)); err != nil {
		t.Fatal(err)
	}
	if list, _, _ := scrubbed(t, e, 0); len(list) != 1 || list[0].Off != bad {
		t.Errorf("unreadable: %+v", list)
	}
	dev.Heal()
}

// TestScrubGoesOn proves that a pass which is cut short again and again, also by a restart, comes
// to its end without beginning anew, and that one at a time runs.
func TestScrubGoesOn(t *testing.T) {
	dev, e := scrubDevice(t)
	whole, _, _ := scrubbed(t, e, 0)
	total, err := e.ScrubStatus()
	if err != nil || len(whole) != 0 || total.Pass != 1 || total.Finished.IsZero() || total.Running {
		t.Fatalf("%+v, %v", total, err)
	}
	rounds, cut := 0, false
	for {
		ctx, stop := context.WithCancel(t.Context())
		c, left := &scrubClock{now: time.Unix(2e9, 0)}, 80
		s, err := e.Scrub(ctx, ScrubOptions{Rate: 1 << 20, Now: c.Now, After: func(d time.Duration,
		) <-chan time.Time {
			if _, err := e.Scrub(ctx, ScrubOptions{Now: c.Now, After: c.After}); rounds == 0 {
				kindOf(t, err, domain.Busy)
			}
			if left--; left == 0 {
				stop()
				return nil
			}
			return c.After(d)
		}})
		stop()
		rounds++
		if s.Pass != 2 || rounds > 100 {
			t.Fatalf("pass %d, round %d", s.Pass, rounds)
		}
		if err == nil {
			if s.Checked < total.Checked || s.Checked > total.Checked*3/2 || rounds < 4 || !cut {
				t.Errorf("%d of %d bytes in %d rounds", s.Checked, total.Checked, rounds)
			}
			break
		}
		kindOf(t, err, domain.Aborted)
		cut = true
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, dev)
	}
	defer e.Close()
}

// TestScrubMarkLost proves that a device which lost its mark begins a pass whose number nobody
// knows yet, by which its damages are told from older ones.
func TestScrubMarkLost(t *testing.T) {
	dev, e := scrubDevice(t)
	scrubbed(t, e, 0)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	clearAt(t, dev, segment.ScrubOff, segment.ScrubCopies*segment.Sector)
	e = open(t, dev)
	defer e.Abandon()
	var passes []uint64
	for _, above := range []uint64{7, 3} {
		off := places(t, dev).Places[0].Off
		back := spoilAt(t, dev, off, 1, func(b []byte) { b[0] ^= 1 })
		_, err := e.Scrub(t.Context(), ScrubOptions{
			Above: above, Now: time.Now, After: time.After,
			Found: func(d Damage) { passes = append(passes, d.Pass) },
		})
		if err != nil {
			t.Fatal(err)
		}
		back()
	}
	if !slices.Equal(passes, []uint64{8, 9}) {
		t.Errorf("passes %d", passes)
	}
}

// TestScrubRate proves that an idle device is read at the rate and no faster, and a busy one at a
// quarter of it.
func TestScrubRate(t *testing.T) {
	_, e := scrubDevice(t)
	defer e.Close()
	const rate = 1 << 20
	_, s, c := scrubbed(t, e, rate)
	idle := c.Now().Sub(time.Unix(1e9, 0))
	want := time.Duration(float64(s.Checked) / rate * float64(time.Second))
	if idle < want*99/100 || idle > want*101/100 {
		t.Errorf("%d bytes took %s, not %s", s.Checked, idle, want)
	}
	v, _ := e.Volume(testVolume)
	b := backends.AlignedBuffer(segment.BlockSize)
	busy := &scrubClock{now: time.Unix(1e9, 0)}
	_, err := e.Scrub(t.Context(), ScrubOptions{Rate: rate, Now: busy.Now, After: func(d time.Duration,
	) <-chan time.Time {
		if err := v.Read(0, 1, b); err != nil {
			t.Error(err)
		}
		return busy.After(d)
	}})
	if took := busy.Now().Sub(time.Unix(1e9, 0)); err != nil || took < 3*idle || took > 4*idle {
		t.Errorf("beside hosts it took %s, alone %s, %v", took, idle, err)
	}
}

// TestScrubBesideWriters proves that a pass beside writers, the cleaner, snapshots and deletions
// finds nothing on a sound device.
func TestScrubBesideWriters(t *testing.T) { scrubBeside(t, false) }

// TestScrubBesideCleaner is TestScrubBesideWriters on an encrypted device.
func TestScrubBesideCleaner(t *testing.T) { scrubBeside(t, false, keyed) }

// TestScrubBesideDestage is TestScrubBesideWriters with a journal of few slots: blocks go from
// there to the log, are overwritten on their way, and are moved by the cleaner while they are
// looked at.
func TestScrubBesideDestage(t *testing.T) { scrubBeside(t, true) }

func scrubBeside(t *testing.T, journal bool, tune ...func(*Config)) {
	t.Helper()
	dev := newMem(t, 32<<20, 256<<10, 2)
	var nv *mem.Memory
	if journal {
		nv = newMemory(t, dev, 12)
	}
	e := open(t, dev, append(tune, often, journaled(nv))...)
	defer e.Close()
	v := create(t, e, 64*domain.MiB)
	stop, done := make(chan struct{}), sync.WaitGroup{}
	var wrote atomic.Uint64
	done.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		for n := uint64(1); ; n++ {
			wrote.Store(n)
			select {
			case <-stop:
				return
			default:
			}
			if err := put(v, data(rnd.Uint64N(2000), 1, n)); err != nil {
				t.Error(err)
				return
			}
			id := domain.SnapshotID{UUID: domain.UUID{60, byte(n / 1000 % 3)}}
			switch n % 1000 {
			case 1:
				if err := e.Snapshot(context.Background(), Cut{Volume: testVolume, Snapshot: id}); err != nil {
					t.Error(err)
				}
			case 999:
				if err := e.DeleteSnapshot(context.Background(), id); err != nil {
					t.Error(err)
				}
			}
		}
	})
	enough := func() bool {
		st := e.Stats()
		return t.Failed() || wrote.Load() >= 6000 && (!journal || st.Destages >= 100) &&
			(!journal && len(tune) == 0 || st.Cleaned > 0)
	}
	for passes := 0; passes < 2 || !enough(); passes++ {
		if list, _, _ := scrubbed(t, e, 0); len(list) != 0 {
			t.Errorf("%+v", list[0])
		}
	}
	close(stop)
	done.Wait()
}

// TestScrubJournal proves that a block whose newest copy is in the journal is judged by that copy
// alone: the log's older one may be stale, overwritten or unreadable, and is no damage, unless a
// snapshot still sees it; that bytes which go bad in the journal are found there, by volume, block
// and version; and that what a lost journal held is found as lost.
func TestScrubJournal(t *testing.T) {
	inner := newMem(t, smallSize, 64<<10, 1)
	nv := newMemory(t, inner, 20)
	dev := harmed(t, inner, "")
	e := open(t, dev, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(8) {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	logged := make([]segment.Loc, 8)
	for b := range logged {
		logged[b] = locOf(v, uint64(b))
	}
	snap := domain.SnapshotID{UUID: domain.UUID{50}}
	sound := func(what string) {
		t.Helper()
		if list, s, _ := scrubbed(t, e, 0); len(list) != 0 || s.Checked < 8*segment.BlockSize {
			t.Fatalf("%s: %+v, %+v", what, s, list)
		}
	}
	sound("all in the log")
	for b := range uint64(4) {
		if err := put(v, data(b, 1, b+100)); err != nil {
			t.Fatal(err)
		}
	}
	sound("half in the journal")
	if err := e.Checkpoint(); err != nil { // an image says that they are lost
		t.Fatal(err)
	}
	for _, loc := range logged[:4] {
		spoilAt(t, inner, loc.Off(), segment.BlockSize, func(b []byte) { clear(b) })
	}
	if err := dev.Script(fmt.Sprintf("read %d+4096 eio", logged[3].Off())); err != nil {
		t.Fatal(err)
	}
	sound("over copies that are bad")
	dev.Heal()
	for b := range uint64(4) {
		check(t, v, b, b+100)
	}
	one := func(what string, want Damage) {
		t.Helper()
		list, _, _ := scrubbed(t, e, 0)
		if len(list) != 1 || list[0].Version == (domain.Version{}) || list[0].Detail == "" {
			t.Fatalf("%s: %+v", what, list)
		}
		want.Version, want.Detail, want.Pass = list[0].Version, list[0].Detail, list[0].Pass
		if list[0] != want {
			t.Errorf("%s: %+v, not %+v", what, list[0], want)
		}
	}
	back := spoilAt(t, inner, logged[5].Off(), 1, func(b []byte) { b[0] ^= 1 })
	one("in the log", Damage{Part: "block", Volume: testVolume, Block: 5, Off: logged[5].Off()})
	back()
	at := int64(e.nv.place(locOf(v, 2))) * segment.BlockSize
	nv.Bytes()[at+9] ^= 4
	one("in the journal", Damage{Part: "journal", Volume: testVolume, Block: 2, Off: at})
	if err := put(v, data(2, 1, 102)); err != nil { // what was seen there is of no worth any more
		t.Fatal(err)
	}
	p, fam := &scrubPass{e: e}, v.br.Load().fam
	seen := e.nv.loc(uint32(at/segment.BlockSize), segment.Checksum(fill(1, 102)))
	p.kept(scrubBlock{f: fam, at: 2, loc: seen})
	p.judge(scrubBlock{f: fam, at: 2, loc: logged[2]}, "seen before")
	if p.m.Damaged != 0 {
		t.Errorf("%d places that nobody names any more are damaged", p.m.Damaged)
	}
	nv.Bytes()[at+9] ^= 4

	if err := e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snap}); err != nil {
		t.Fatal(err)
	}
	if err := put(v, data(6, 1, 106)); err != nil {
		t.Fatal(err)
	}
	back = spoilAt(t, inner, logged[6].Off(), 1, func(b []byte) { b[0] ^= 1 })
	one("seen by a snapshot",
		Damage{Part: "block", Volume: testVolume, Snapshot: snap, Block: 6, Off: logged[6].Off()})
	back()
	e.Abandon()
	e = open(t, dev, quiet, journaled(nv))
	sound("after a restart")
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	sound("destaged")
	if err := put(mustVolume(t, e), data(2, 1, 7)); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev, quiet, func(c *Config) { c.AcceptLoss = true })
	defer e.Abandon()
	list, _, _ := scrubbed(t, e, 0)
	if len(list) != 1 || list[0].Volume != testVolume || list[0].Block != 2 || list[0].Off != 0 {
		t.Errorf("a lost journal: %+v", list)
	}
}

// forgedDevice makes an encrypted device on which the block of one sealed segment was changed with
// all its checksums, and gives which, and where it stands.
func forgedDevice(t *testing.T, tune ...func(*Config)) (*mem.Device, *Engine, uint64, segment.Loc) {
	t.Helper()
	dev := newMem(t, 32<<20, 256<<10, 1)
	e := open(t, dev, append(tune, keyed, quiet)...)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(40) {
		if err := put(v, data(i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(100) { // the segment is left behind
		if err := put(v, data(10+i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	sealed(e) // else the footer may come behind its end
	const block = 7
	loc := tamper(t, e, dev, v, block)
	// The footer has the entries as they were.
	clearAt(t, dev, e.space.off(e.space.id(loc)+1)-segment.Sector, segment.Sector)
	return dev, e, block, loc
}

// TestScrubForged lets somebody who can write to the device, and knows every checksum of the
// format, change a block with its checksums in entry and index: a pass finds it by its tag, and
// finds entries that say encrypted of a plain volume, or plain of an encrypted one. A pass that has
// not the key says nothing, and what does not match its checksum is found without.
func TestScrubForged(t *testing.T) {
	dev, e, block, loc := forgedDevice(t)
	list, s, _ := scrubbed(t, e, 0)
	want := Damage{Part: "block", Pass: 1, Volume: testVolume, Block: block, Off: loc.Off()}
	if len(list) == 1 {
		want.Version, want.Detail = list[0].Version, list[0].Detail
	}
	if len(list) != 1 || list[0] != want || s.Damaged != 1 || want.Version == (domain.Version{}) ||
		!strings.Contains(want.Detail, "forged") {
		t.Fatalf("%+v, not %+v", list, want)
	}
	v, _ := e.Volume(testVolume)
	br := v.br.Load()
	p := &scrubPass{e: e} // what it saw there was of another life of the segment
	seen := scrubBlock{f: br.fam, at: int(block), loc: loc, proof: &proof{life: &life{}}}
	if p.judge(seen, "seen before"); p.m.Damaged != 0 {
		t.Error("a block of a life that ended is damaged")
	}
	key := br.key
	for _, x := range []struct {
		lie  string
		key  *volumeKey
		want int
	}{
		{"", &volumeKey{id: key.id, why: "it is away"}, 0},
		{"its volume is not", nil, 10}, // what is left of the segment
		{"was forged", &volumeKey{id: key.id + 1, secret: testKey}, 50},
	} {
		br.key = x.key
		list, _, _ := scrubbed(t, e, 0)
		for _, d := range list {
			if !strings.Contains(d.Detail, x.lie) {
				t.Errorf("%q: %+v", x.lie, d)
			}
		}
		if x.want == 0 && len(list) > 0 || len(list) < x.want {
			t.Errorf("%q: %d found", x.lie, len(list))
		}
	}
	br.key = key
	last := locOf(v, 109)
	if _, st, _ := e.space.life(e.space.id(last)); st != segOpen {
		t.Fatalf("the segment of the last block is %d", st)
	}
	back := spoilAt(t, dev, last.Off(), 1, func(b []byte) { b[0] ^= 1 })
	if list, _, _ := scrubbed(t, e, 0); len(list) != 2 || list[0].Block != 109 {
		t.Errorf("in an open segment: %+v", list)
	}
	back()
	plain, err := e.Create(background, volID(1), 16*domain.MiB, 1)
	for i := range uint64(100) {
		if err == nil {
			err = put(plain, data(i, 1, i+1))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	br.key, plain.br.Load().key = key, key
	list, _, _ = scrubbed(t, e, 0)
	lies := 0
	for _, d := range list {
		if d.Volume == volID(1) && strings.Contains(d.Detail, "not encrypted, its volume is") {
			lies++
		}
	}
	if lies < 10 || len(list) != lies+1 {
		t.Errorf("%d lies, %+v", lies, list)
	}
	plain.br.Load().key = nil
	br.key = &volumeKey{id: key.id, why: "it is away"}
	back = spoilAt(t, dev, locOf(v, 3).Off(), 1, func(b []byte) { b[0] ^= 1 })
	if list, _, _ := scrubbed(t, e, 0); len(list) != 1 || list[0].Block != 3 {
		t.Errorf("without its key: %+v", list)
	}
	back()
	e.Abandon()
}

// TestScrubUnnamed proves that an encrypted block to which no entry leads any more is held to its
// checksum still, and only once.
func TestScrubUnnamed(t *testing.T) {
	dev, e, block, loc := forgedDevice(t)
	v, _ := e.Volume(testVolume)
	for _, p := range logged(t, e, 0) { // the entries of that block are gone
		if p.off+int64(p.h.HeaderBytes()) == loc.Off() {
			clearAt(t, dev, p.off, segment.Sector)
		}
	}
	if list, _, _ := scrubbed(t, e, 0); len(list) != 1 || list[0].Part != "entries" {
		t.Fatalf("%+v", list)
	}
	spoilAt(t, dev, loc.Off(), 1, func(b []byte) { b[0] ^= 1 })
	spoilAt(t, dev, locOf(v, 3).Off(), 1, func(b []byte) { b[0] ^= 1 })
	found := map[uint64]int{}
	list, _, _ := scrubbed(t, e, 0)
	for _, d := range list {
		found[d.Block]++
	}
	if len(list) != 3 || found[block] != 1 || found[3] != 1 {
		t.Errorf("%+v", list)
	}
	e.Abandon()
}

// locOf gives where the index has a block of a volume's head.
func locOf(v *Volume, block uint64) segment.Loc {
	l, loc := v.lane(block), make([]segment.Loc, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	br := v.br.Load()
	br.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].find(br).resolve(
		int(block%segment.LeafBlocks), loc,
	)
	return loc[0]
}
