package engine

import (
	"sync/atomic"
	"testing"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// gate is a device whose writes of others' memory wait until the test lets them go.
type gate struct {
	backends.Device
	came chan *gated
}

// gated is a write that waits.
type gated struct {
	parts int
	let   chan error // nil: write; else the error
}

// WriteVAt waits before it looks at the buffers.
func (g *gate) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	w := &gated{parts: len(bufs), let: make(chan error)}
	g.came <- w
	if err := <-w.let; err != nil {
		return err
	}
	v, ok := g.Device.(backends.VectorWriter)
	if !ok {
		return backends.ErrAlign
	}
	return v.WriteVAt(bufs, off, fua)
}

// lent gives a record of whole blocks whose data is spoilt once its outcome is known, as an owner
// does who uses the memory again.
func lent(block uint64, count int, n uint64, acks *atomic.Int32, done chan error) *Record {
	r := data(block, count, n)
	p := backends.AlignedBuffer(len(r.Data))
	copy(p, r.Data)
	r.Data, r.Lent = p, true
	r.To = acker(func(err error) {
		for i := range p {
			p[i] = 0xAA
		}
		acks.Add(1)
		done <- err
	})
	return r
}

// TestLentMemory proves that memory lent to the device is not given back before the device is done
// with it: its owner spoils it at once, two writes end in the wrong order, the first of them fails
// and is made again elsewhere, and what is read afterwards is what was appended.
func TestLentMemory(t *testing.T) {
	for _, fails := range []bool{false, true} {
		dev := &gate{Device: newMem(t, 64<<20, 1<<20, 1), came: make(chan *gated, 4)}
		told := &facts{}
		e := open(t, dev, quiet, told.into)
		v := create(t, e, 16*domain.MiB)
		var acks atomic.Int32
		done := make(chan error, 2)
		v.Append(lent(8, 16, 100, &acks, done))
		first := <-dev.came
		v.Append(lent(40, 32, 200, &acks, done))
		second := <-dev.came
		if first.parts != 2 || second.parts != 2 {
			t.Errorf("%d and %d buffers, not header and data", first.parts, second.parts)
		}
		second.let <- nil
		if fails {
			first.let <- backends.ErrMedia
			first = <-dev.came // made again
		}
		if n := acks.Load(); n != 0 {
			t.Errorf("%d outcomes while the first write is under way", n)
		}
		first.let <- nil
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		look := func(e *Engine) {
			t.Helper()
			got := backends.AlignedBuffer(32 * segment.BlockSize)
			if err := mustVolume(t, e).Read(8, 16, got[:16*segment.BlockSize]); err != nil ||
				string(got[:16*segment.BlockSize]) != string(fill(16, 100)) {
				t.Errorf("first: %v", err)
			}
			if err := mustVolume(t, e).Read(40, 32, got); err != nil ||
				string(got) != string(fill(32, 200)) {
				t.Errorf("second: %v", err)
			}
		}
		look(e)
		if told.count("corrupt") > 0 || fails != (told.count("write-error") == 1) {
			t.Errorf("%+v", told.list)
		}
		e.Abandon()
		e = open(t, dev.Device)
		look(e)
		e.Abandon()
	}
}

// TestLentAndCopied proves that lent and copied records of one chunk find their places, also when
// the data is not aligned, too short to be lent, or for a device that takes one buffer only.
func TestLentAndCopied(t *testing.T) {
	whole := newMem(t, 64<<20, 1<<20, 1)
	for name, dev := range map[string]backends.Device{
		"vector": newMem(t, 64<<20, 1<<20, 1), "plain": &sink{Device: whole},
	} {
		e := open(t, dev, quiet)
		v := create(t, e, 16*domain.MiB)
		rnd := newRand(3)
		model := map[uint64]uint64{}
		for n := range uint64(300) {
			width := 1 + rnd.IntN(12)
			done := make(chan error, width)
			var acks atomic.Int32
			for i := range width {
				count := 1 + rnd.IntN(20)
				block := uint64(i*80 + rnd.IntN(60))
				r := lent(block, count, n*100+uint64(i)+1, &acks, done)
				switch rnd.IntN(3) {
				case 0:
					r.Lent = false
				case 1:
					if raw := backends.AlignedBuffer(len(r.Data) + 512); rnd.IntN(2) == 0 {
						r.Data = raw[512:][:copy(raw[512:], r.Data)]
					}
				}
				for b := range count {
					model[block+uint64(b)] = n*100 + uint64(i) + 1
				}
				v.Append(r)
			}
			for range width {
				if err := <-done; err != nil {
					t.Fatal(name, err)
				}
			}
		}
		for block, n := range model {
			if got, err := holds(v, block); err != nil || got != n {
				t.Fatalf("%s: block %d holds %d, not %d: %v", name, block, got, n, err)
			}
		}
		recount(t, e)
		e.Abandon()
	}
}
