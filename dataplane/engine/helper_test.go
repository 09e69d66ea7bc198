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

// holds reads one block and gives the number it spells; a block that is not one number all over is
// an error of its own kind.
func holds(v *Volume, block uint64) (uint64, error) {
	got := backends.AlignedBuffer(segment.BlockSize)
	if err := v.Read(block, 1, got); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(got)
	if !bytes.Equal(got, fill(1, n)) {
		return 0, fmt.Errorf("block %d is no number", block)
	}
	return n, nil
}

// recount walks the whole index of an engine to which nobody writes, with its cleaner held off, and
// compares it with every counter that the engine keeps incrementally (E12, the space part).
func recount(t testing.TB, e *Engine) {
	t.Helper()
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	live := make([]int64, len(e.space.mu.segs))
	total, leaves, index, dirty := int64(0), make([]int64, len(e.lanes)), int64(0), int64(0)
	for _, v := range e.Volumes() {
		mapped := int64(0)
		for i, l := range e.lanes {
			l.mu.Lock()
			for ext, lf := range v.leaves[i] {
				leaves[i]++
				mapped += int64(lf.mapped)
				if int(ext) != int(lf.Extent) || lf.Branch != v.id {
					t.Errorf("extent %d of branch %d is filed as %d of %d", lf.Extent, lf.Branch, ext, v.id)
				}
				if lf.mapped != lf.Mapped() {
					t.Errorf("extent %d: %d blocks mapped, counted %d", ext, lf.Mapped(), lf.mapped)
				}
				index += imageBytes(lf.mapped)
				if lf.dirty {
					dirty += imageBytes(lf.mapped)
				}
				for _, loc := range lf.Loc {
					if loc.Kind() == segment.Flash {
						live[(loc.Off()-e.space.first)/e.space.size] += segment.BlockSize
						total += segment.BlockSize
					}
				}
			}
			l.mu.Unlock()
		}
		if got := v.mapped.Load(); got != mapped {
			t.Errorf("volume %s: %d blocks mapped, counted %d", v.volume, mapped, got)
		}
	}
	for i, sg := range e.space.mu.segs {
		if sg.live.Load() != live[i] {
			t.Errorf("segment %d: %d bytes live, counted %d", i, live[i], sg.live.Load())
		}
	}
	if e.space.live.Load() != total || e.space.admitted.Load() != 0 {
		t.Errorf("%d bytes live, counted %d, and %d admitted", total, e.space.live.Load(),
			e.space.admitted.Load())
	}
	if e.space.index.Load() != index || e.space.dirty.Load() != dirty {
		t.Errorf("index of %d bytes, %d changed; counted %d and %d", index, dirty,
			e.space.index.Load(), e.space.dirty.Load())
	}
	for i, l := range e.lanes {
		if l.leaves.Load() != leaves[i] {
			t.Errorf("lane %d: %d leaves, counted %d", i, leaves[i], l.leaves.Load())
		}
	}
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
