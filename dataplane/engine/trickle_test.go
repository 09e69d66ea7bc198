package engine

import (
	"bytes"
	"slices"
	"testing"

	"weft/backends"
	"weft/dataplane/segment"
)

// sizes is a device that notes how much is written at once.
type sizes struct {
	lending
	list  []int
	turns bool
}

// Geometry says whether it turns.
func (d *sizes) Geometry() backends.Geometry {
	g := d.Device.Geometry()
	g.Rotational = d.turns
	return g
}

func (d *sizes) note(n int) {
	d.mu.Lock()
	d.list = append(d.list, n)
	d.mu.Unlock()
}

// WriteAt notes its size.
func (d *sizes) WriteAt(p []byte, off int64, fua bool) error {
	d.note(len(p))
	return d.Device.WriteAt(p, off, fua)
}

// WriteVAt notes its size.
func (d *sizes) WriteVAt(parts [][]byte, off int64, fua bool) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	d.note(size)
	return d.lending.WriteVAt(parts, off, fua)
}

// TestTrickle proves that a chunk which is written in pieces, its parts copied or where they stood,
// is on the device what it is when it is written at once, that all pieces but the last have the
// size that was asked for, and that the chunk is given nothing to hold on to.
func TestTrickle(t *testing.T) {
	const at = 32 << 20
	rnd := newRand(7)
	for range 200 {
		dev := &sizes{lending: lending{bursts{Device: newMem(t, 64<<20, 1<<20, 1)}}}
		c := newChunk(32 << 20)
		for c.payload < segment.PayloadMax {
			n := min((1+rnd.IntN(100))*segment.BlockSize, segment.PayloadMax-c.payload)
			data := backends.AlignedBuffer(n)
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			c.lend(data, rnd.IntN(2) == 0)
			if rnd.IntN(20) == 0 {
				break
			}
		}
		c.head = segment.Chunk{EntryBytes: 100, PayloadBytes: uint32(c.payload)}
		image := c.image(1)
		if err := c.send(dev, image, 0, false); err != nil {
			t.Fatal(err)
		}
		dev.list = nil
		most := (1 + rnd.IntN(100)) * segment.Sector
		if err := c.trickle(dev, image, at, most); err != nil {
			t.Fatal(err)
		}
		want, got := backends.AlignedBuffer(len(image)), backends.AlignedBuffer(len(image))
		if dev.ReadAt(want, 0) != nil || dev.ReadAt(got, at) != nil || !bytes.Equal(want, got) {
			t.Fatalf("%d parts in pieces of %d are not what they are at once", len(c.parts), most)
		}
		last := len(dev.list) - 1
		for i, n := range dev.list {
			if n > most || i < last && n != most {
				t.Fatalf("pieces of %d, asked for %d", dev.list, most)
			}
		}
		if slices.ContainsFunc(c.vector[:cap(c.vector)], func(p []byte) bool { return p != nil }) {
			t.Fatal("the chunk holds on to what it wrote")
		}
	}
}
