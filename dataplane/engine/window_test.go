package engine

import (
	"bytes"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
)

// TestWindowReadsWhileItFills proves that a window is read in steps while it fills, that the span
// that may still grow is left out, and that all of it is what stands on the device.
func TestWindowReadsWhileItFills(t *testing.T) {
	dev, err := mem.New(mem.Config{Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	all := backends.AlignedBuffer(64 << 20)
	for i := range all {
		all[i] = byte(i>>12) ^ byte(i*7)
	}
	if err := dev.WriteAt(all, 0, false); err != nil {
		t.Fatal(err)
	}
	w := newWindow(4 << 20)
	w.longest, w.cost = segment.Sector, &tier.ReadCost{} // as many spans as there can be
	w.clock, w.piece = func() time.Duration { return 0 }, func() int { return pieceMax }
	list := &w.spans[:1][0]
	rnd := newRand(2)
	type place struct {
		off int64
		at  int
	}
	var places []place
	off, early := int64(0), 0
	for {
		off += segment.BlockSize * int64(1+rnd.IntN(6)*rnd.IntN(6))
		m := move{from: uint64(off) / segment.Unit}
		if w.take(0, &m, 1) == 0 {
			break
		}
		places = append(places, place{off, m.at})
		w.early(dev)
		if w.begun == len(w.spans) {
			t.Fatalf("span %d is read, and may still grow", w.begun-1)
		}
		early = w.begun
		if w.under { // the next step is begun where this one has ended
			<-w.done
			w.done <- struct{}{}
		}
	}
	if early < len(w.spans)/2 {
		t.Errorf("%d of %d spans were read before the window was full", early, len(w.spans))
	}
	if &w.spans[0] != list {
		t.Errorf("the list of %d spans has grown while some were read", len(w.spans))
	}
	w.wait(dev)
	for _, p := range places {
		if !bytes.Equal(w.buf[p.at:p.at+segment.BlockSize], all[p.off:p.off+segment.BlockSize]) {
			t.Fatalf("what stands at %d is not what was read", p.off)
		}
	}
}
