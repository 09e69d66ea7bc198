package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/segment"
	"weft/domain"
)

// facts collects what an engine reports.
type facts struct {
	mu   sync.Mutex
	list []Fact
}

func (f *facts) add(x Fact) {
	f.mu.Lock()
	f.list = append(f.list, x)
	f.mu.Unlock()
}

func (f *facts) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, x := range f.list {
		if x.What == what {
			n++
		}
	}
	return n
}

func (f *facts) into(c *Config) { c.Report = f.add }

// quiet keeps the engine from taking checkpoints of its own.
func quiet(c *Config) { c.CheckpointBytes = 1 << 40 }

// often makes it take one every few chunks.
func often(c *Config) { c.CheckpointBytes = 256 << 10 }

// recorded makes a formatted device that keeps its history from here on.
func recorded(t testing.TB, size int64, seg, lanes int) *mem.Device {
	t.Helper()
	dev := newMem(t, size, seg, lanes)
	dev.StartHistory()
	return dev
}

// copyOf gives an independent device with the same bytes; dev records its history.
func copyOf(dev *mem.Device) *mem.Device { return dev.CrashImage(dev.Ops(), mem.All) }

// harmed wraps a device to be harmed by script; the test never waits for latency.
func harmed(t testing.TB, dev backends.Device, script string) *faulty.Device {
	t.Helper()
	f := faulty.New(dev, nil)
	if err := f.Script(script); err != nil {
		t.Fatal(err)
	}
	return f
}

// isNumber tells whether a block is that of a number. What was made by chance is kept for the next
// time: blocks are looked at more often than they are written.
func isNumber(p []byte, n uint64) bool {
	switch {
	case n == 0:
		return bytes.Equal(p, zeroBlock[:])
	case n%4 < 2:
		return binary.LittleEndian.Uint64(p) == n && bytes.Equal(p[8:], p[:len(p)-8])
	}
	numbers.Lock()
	defer numbers.Unlock()
	b := numbers.of[n]
	if b == nil {
		if b = fill(1, n); numbers.of == nil || len(numbers.of) == numbersMax {
			numbers.of = map[uint64][]byte{}
		}
		numbers.of[n] = b
	}
	return bytes.Equal(p, b)
}

const numbersMax = 4096

var numbers struct {
	sync.Mutex
	of map[uint64][]byte
}

// squeezed lets three in four volumes be compressed, each in its way.
func squeezed(e *Engine) {
	for _, v := range e.Volumes() {
		v.SetCompression(compress.Mode(v.fam.id % 4))
	}
}

// holds reads one block and gives the number it spells; a block that is not one number all over is
// an error of its own kind.
func holds(v *Volume, block uint64) (uint64, error) {
	got := backends.AlignedBuffer(segment.BlockSize)
	if err := v.Read(block, 1, got); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(got)
	if !isNumber(got, n) {
		return 0, fmt.Errorf("block %d is no number", block)
	}
	return n, nil
}

// named lists all volumes and snapshots.
func named(e *Engine) []*Volume {
	list := e.Volumes()
	for _, v := range e.mu.bySnapshot {
		list = append(list, v)
	}
	return list
}

// all lists the leaves of an extent.
func all(lf *leaf) []*leaf {
	if lf == nil {
		return nil
	}
	if lf.tree == nil {
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

// undestaged holds the destager off, with nothing of it under way, until what it gives is called.
func undestaged(n *nvram) func() {
	n.turn.Lock()
	_ = n.land(0) // the engine tells why it failed
	return n.turn.Unlock
}

// still holds the destager and the cleaner off, which compress, until what it gives is called.
func still(e *Engine) func() {
	release := func() {}
	if e.nv != nil { // first: what is being destaged may wait for a segment that the cleaner frees
		release = undestaged(e.nv)
	}
	e.maint.ckpt.Lock()
	return func() {
		e.maint.ckpt.Unlock()
		release()
	}
}

// recount walks the whole index of an engine to which nobody writes, with its cleaner held off, and
// compares it with every counter that the engine keeps incrementally (E12, the space part): what
// lives is what some name sees, no more and no less.
func recount(t testing.TB, e *Engine) {
	t.Helper()
	defer still(e)()
	families := map[*family]bool{}
	for _, b := range e.mu.branches {
		if !b.gone {
			families[b.fam] = true
		}
	}
	for _, v := range named(e) {
		if b := v.br.Load(); b.handle != v || b.gone || len(b.kids) > 0 && v.snapshot.IsZero() {
			t.Errorf("volume %s/%s names branch %d, that has %d kids and another name", v.volume,
				v.snapshot, b.id, len(b.kids))
		}
	}
	kept := map[int]int64{}
	live, index, dirty := make([]int64, len(e.space.mu.segs)), int64(0), int64(0)
	wanted := map[segment.Loc]bool{}
	for f := range families {
		census(t, e, f, wanted)
	}
	stored := 0
	for f := range families {
		for i, l := range e.lanes {
			l.mu.Lock()
			for _, other := range f.leaves[i] {
				for _, lf := range all(other) {
					index += imageBytes(int(lf.n))
					if lf.dirty {
						dirty += imageBytes(int(lf.n))
					}
					lf.own.each(func(b int, loc segment.Loc) {
						if loc.Kind() != segment.Flash {
							return
						}
						stored++
						if !wanted[loc] {
							t.Errorf("branch %d extent %d block %d: nobody sees it", lf.br.id, lf.ext, b)
						}
						if e.nv.holds(loc) {
							kept[e.nv.share.SlotOf(e.nv.place(loc))] += segment.BlockSize
							return
						}
						live[(loc.Off()-e.space.first)/e.space.size] += loc.Room()
					})
				}
			}
			for _, lf := range l.mu.dirty {
				if lf.gone && lf.dirty {
					index, dirty = index+imageBytes(int(lf.n)), dirty+imageBytes(int(lf.n))
				}
			}
			l.mu.Unlock()
		}
	}
	spare := int64(0)
	for _, rep := range e.mu.replicas {
		spare += recountHeld(t, rep, live, kept)
	}
	if stored != len(wanted) {
		t.Errorf("%d copies in the index, %d are seen", stored, len(wanted))
	}
	for i, sg := range e.space.mu.segs {
		if sg.live.Load() != live[i] {
			t.Errorf("segment %d: %d bytes live, counted %d", i, live[i], sg.live.Load())
		}
	}
	if e.nv != nil {
		for i := range e.nv.slots {
			if n := e.nv.slots[i].live.Load(); n != kept[i] {
				t.Errorf("NVRAM slot %d: %d bytes live, counted %d", i, kept[i], n)
			}
		}
	}
	total, saved := spare, int64(0)
	for loc := range wanted {
		total += loc.Room()
		saved += segment.BlockSize - loc.Room()
	}
	if e.space.live.Load() != total || e.space.admitted.Load() != 0 {
		t.Errorf("%d bytes live, counted %d, and %d admitted", total, e.space.live.Load(),
			e.space.admitted.Load())
	}
	if e.space.saved.Load() != saved {
		t.Errorf("%d bytes saved, counted %d", saved, e.space.saved.Load())
	}
	if e.space.index.Load() != index || e.space.dirty.Load() != dirty {
		t.Errorf("index of %d bytes, %d changed; counted %d and %d", index, dirty,
			e.space.index.Load(), e.space.dirty.Load())
	}
}

// census resolves every block of every named branch of a family by laying one branch over the other
// from the root on, with none of the engine's shortcuts, adds what it finds to wanted, and compares
// it with what reads resolve and with the branches' counters.
func census(t testing.TB, e *Engine, f *family, wanted map[segment.Loc]bool) {
	t.Helper()
	sums := map[*branch]sight{}
	for i, l := range e.lanes {
		l.mu.Lock()
		for ext, other := range f.leaves[i] {
			checkExtent(t, l, ext, other)
			of := map[*branch]*leaf{}
			for _, lf := range all(other) {
				of[lf.br] = lf
			}
			var walk func(b *branch, see [segment.LeafBlocks]segment.Loc)
			walk = func(b *branch, see [segment.LeafBlocks]segment.Loc) {
				if lf := of[b]; lf != nil {
					lf.own.each(func(n int, loc segment.Loc) { see[n] = shown(loc) })
				}
				sum := sums[b]
				for _, loc := range see {
					if loc != 0 {
						sum.mapped++
					}
					if loc.Kind() == segment.Flash {
						sum.data++
						sum.saved += segment.BlockSize - loc.Room()
						if b.named() {
							wanted[loc] = true
						}
					}
				}
				sums[b] = sum
				if b.named() {
					resolves(t, other.find(b), b, &see)
				}
				for _, k := range b.kids {
					walk(k, see)
				}
			}
			if f.root != nil {
				walk(f.root, [segment.LeafBlocks]segment.Loc{})
			}
		}
		l.mu.Unlock()
	}
	var walk func(b *branch)
	walk = func(b *branch) {
		if got := b.sight(); b.named() && got != sums[b] {
			t.Errorf("branch %d sees %+v, counted %+v", b.id, sums[b], got)
		}
		if !b.named() && len(b.kids) < 2 && (len(b.kids) == 0 || b.kids[0].key == b.key) {
			t.Errorf("branch %d has no name and %d kids", b.id, len(b.kids))
		}
		for _, k := range b.kids {
			if k.parent != b {
				t.Errorf("branch %d stands on %v, not %d", k.id, k.parent, b.id)
			}
			walk(k)
		}
	}
	if f.root != nil {
		walk(f.root)
	}
}

// resolves compares what reads of a branch resolve with what they should, and their depth.
func resolves(t testing.TB, lf *leaf, b *branch, see *[segment.LeafBlocks]segment.Loc) {
	t.Helper()
	var fast [segment.LeafBlocks]segment.Loc
	lf.resolve(0, fast[:])
	if fast != *see {
		t.Errorf("branch %d resolves to something else", b.id)
	}
	for n, loc := range see {
		if lf.at(n) != loc {
			t.Fatalf("branch %d block %d: %x, not %x", b.id, n, uint64(lf.at(n)), uint64(loc))
		}
	}
	if lf != nil && lf.depth() > depthMax {
		t.Errorf("branch %d: a read walks %d leaves", b.id, lf.depth())
	}
}

// checkExtent proves that the leaves of an extent are in order: each stands on the nearest older
// one of its line, and counts what it holds. It stops at the first fault.
func checkExtent(t testing.TB, l *lane, ext uint32, other *leaf) {
	t.Helper()
	of := map[*branch]*leaf{}
	for _, lf := range all(other) {
		of[lf.br] = lf
	}
	for _, lf := range all(other) {
		n := 0
		lf.own.each(func(int, segment.Loc) { n++ })
		if _, ok := lf.br.wrote[l.no][ext]; ok != (lf.br.parent != nil) {
			t.Errorf("extent %d of branch %d: on its list %v", ext, lf.br.id, ok)
		}
		var base *leaf
		for b := lf.br.parent; b != nil && base == nil; b = b.parent {
			base = of[b]
		}
		if int(lf.n) != n || lf.ext != ext || lf.gone || lf.base != base {
			t.Errorf("extent %d of branch %d: %d blocks, counted %d, gone %v; base %v, not %v", ext,
				lf.br.id, n, lf.n, lf.gone, lf.base, base)
		}
	}
}

// sealed tells whether a segment is full and has its footer.
func (s *space) sealed(sg *seg) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sg.state == segSealed
}

// placed is a chunk where it stands on the device.
type placed struct {
	off int64
	h   segment.Chunk
}

// logged lists the chunks of a lane's log that the device holds, in LSN order.
func logged(t testing.TB, e *Engine, lane uint8) []placed {
	t.Helper()
	var list []placed
	b := backends.AlignedBuffer(segment.Sector)
	for i := range e.space.mu.segs {
		if err := e.dev.ReadAt(b, e.space.off(uint32(i))); err != nil {
			t.Fatal(err)
		}
		h, err := segment.DecodeHeader(b)
		if err != nil || h.Stream != segment.StreamLog || h.Lane != lane {
			continue
		}
		err = e.scan(h.Segment, h.Sequence, func(off int64, c *segment.Chunk, _ []byte) error {
			list = append(list, placed{off, *c})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(list, func(a, b placed) int { return int(a.h.LSN) - int(b.h.LSN) })
	return list
}

// clearAt makes bytes of a device zero, durably.
func clearAt(t testing.TB, dev backends.Device, off, n int64) {
	t.Helper()
	if err := dev.WriteAt(backends.AlignedBuffer(int(n)), off, true); err != nil {
		t.Fatal(err)
	}
}

// saltOf reads a device's salt from its superblock.
func saltOf(t testing.TB, dev backends.Device) uint32 {
	t.Helper()
	sb, err := readSuper(dev)
	if err != nil || sb == nil {
		t.Fatalf("no superblock: %v", err)
	}
	return sb.Salt
}

// restamp writes a chunk's header again with a change, so that it verifies.
func restamp(t testing.TB, dev backends.Device, p placed, change func(c *segment.Chunk)) {
	t.Helper()
	b := backends.AlignedBuffer(p.h.HeaderBytes())
	if err := dev.ReadAt(b, p.off); err != nil {
		t.Fatal(err)
	}
	c, _, err := segment.DecodeChunk(b, saltOf(t, dev))
	if err != nil {
		t.Fatal(err)
	}
	change(c)
	c.Encode(b, saltOf(t, dev))
	if err := dev.WriteAt(b, p.off, true); err != nil {
		t.Fatal(err)
	}
}

// kindOf fails the test when an error is not of the kind.
func kindOf(t testing.TB, err error, kind domain.Kind) {
	t.Helper()
	if !domain.IsKind(err, kind) {
		t.Fatalf("%v, not %v", err, kind)
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 77)) }
