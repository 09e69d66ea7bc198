package nbd

import (
	"slices"
	"sync"
	"testing"

	"weft/domain"
)

// keeper is a disk that keeps back every read it may, until it is kicked.
type keeper struct {
	*ramDisk
	mu    sync.Mutex
	kept  []*domain.IO
	most  int
	order []domain.Op
}

// Submit keeps a read back where the caller allows it.
func (k *keeper) Submit(io *domain.IO) {
	k.mu.Lock()
	k.order = append(k.order, io.Op)
	if io.Gather {
		k.kept = append(k.kept, io)
		k.most = max(k.most, len(k.kept))
		k.mu.Unlock()
		return
	}
	if io.Op != domain.OpRead && len(k.kept) > 0 {
		k.order = append(k.order, 99) // seen below
	}
	k.mu.Unlock()
	k.ramDisk.Submit(io)
}

// Kick does what was kept back.
func (k *keeper) Kick() {
	k.mu.Lock()
	list := k.kept
	k.kept = nil
	k.mu.Unlock()
	for _, io := range list {
		k.ramDisk.Submit(io)
	}
}

// TestReadsAreKicked proves N6: reads that a disk keeps back are started before the reader waits
// for the rest of a request, for the payload of a write, or for a place in flight, and before the
// disk sees anything but a read.
func TestReadsAreKicked(t *testing.T) {
	disk := &keeper{ramDisk: newRAM(size)}
	_, path := served(t, Export{Name: "a", Disk: disk})
	c := dial(t, path).enter("a", false)
	reads := func(n int) (b []byte) {
		for i := range n {
			b = append(b, wire(uint32(magicRequest), uint16(0), uint16(cmdRead), uint64(i),
				uint64(i*block), uint32(block))...)
		}
		return b
	}
	answers := func(n, size int) {
		t.Helper()
		for range n {
			if a := c.answer(size); a.code != 0 {
				t.Fatal(a.code)
			}
		}
	}
	head := wire(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(9), uint64(0),
		uint32(block))
	c.send(reads(5), head[:10])
	answers(5, block)
	c.send(head[10:], filled(block, 1))
	answers(1, 0)
	c.send(reads(5), head) // and no payload yet
	answers(5, block)
	c.send(filled(block, 2))
	answers(1, 0)
	c.send(reads(flightMax + 40)) // over the limit
	answers(flightMax+40, block)
	c.send(reads(3), head, filled(block, 3), reads(3))
	answers(3, block)
	answers(1, 0)
	answers(3, block)
	disk.mu.Lock()
	defer disk.mu.Unlock()
	if disk.most < 2 {
		t.Errorf("at most %d reads were gathered", disk.most)
	}
	if slices.Contains(disk.order, 99) {
		t.Error("a write was submitted while reads were kept back")
	}
}
