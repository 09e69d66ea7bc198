package nbd

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"unsafe"

	"weft/domain"
)

// TestLargePayloads sends writes of all sizes around largeMin in one stream, cut at places that
// fall into heads and payloads, and proves that each byte finds its place: what is read ahead of a
// payload's end is the next request's.
func TestLargePayloads(t *testing.T) {
	disk := newRAM(64 << 20)
	_, path := served(t, Export{Name: "a", Disk: disk})
	c := dial(t, path).enter("a", false)
	rnd := rand.New(rand.NewPCG(3, 5))
	var stream []byte
	model := make([]byte, len(disk.data))
	off, n := 0, 0
	for off < 24<<20 {
		size := (1 + rnd.IntN(2*largeMin/512)) * 512
		if n%7 == 0 {
			size = 512 << rnd.IntN(12)
		}
		data := filled(size, byte(n))
		stream = append(stream, wire(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(n),
			uint64(off), uint32(size), data)...)
		copy(model[off:], data)
		off, n = off+size, n+1
	}
	sent := make(chan error, 1)
	go func() {
		for len(stream) > 0 {
			k := min(1+rnd.IntN(3*largeMin), len(stream))
			if _, err := c.nc.Write(stream[:k]); err != nil {
				sent <- err
				return
			}
			stream = stream[k:]
		}
		sent <- nil
	}()
	for i := range n {
		if a := c.answer(0); a.code != 0 {
			t.Fatalf("answer %d: %d", i, a.code)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	disk.mu.Lock()
	defer disk.mu.Unlock()
	if !bytes.Equal(disk.data, model) {
		t.Error("the disk differs from what was sent")
	}
}

// TestMemory proves that large buffers are cut from what Config.Memory gives, in multiples of
// bufferAlign, with no two in use over the same bytes.
func TestMemory(t *testing.T) {
	var asked atomic.Int64
	s, err := New(Config{Memory: func(n int) []byte {
		asked.Add(1)
		raw := newBuffer(&Server{}, classOf(int64(n)+bufferAlign)).data
		return raw[bufferAlign/2 : n+bufferAlign/2] // so that the test knows it again
	}})
	if err != nil {
		t.Fatal(err)
	}
	disk := newRAM(size)
	disk.hold = make(chan *domain.IO, flightMax)
	if err := s.SetExports([]Export{{Name: "a", Disk: disk}}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	listen(t, s, "unix", path)
	c := dial(t, path).enter("a", false)
	const depth, n = 16, slabMin + 512
	var held []*domain.IO
	for i := range uint64(depth) {
		c.request(0, cmdRead, i*n, n, nil)
		held = append(held, <-disk.hold)
	}
	for i, a := range held {
		from := uintptr(unsafe.Pointer(unsafe.SliceData(a.Buf)))
		if from%bufferAlign != bufferAlign/2 {
			t.Errorf("buffer %d does not stand in the memory given", i)
		}
		for _, b := range held[:i] {
			at := uintptr(unsafe.Pointer(unsafe.SliceData(b.Buf)))
			if span := uintptr(classSize(classOf(n))); from < at+span && at < from+span {
				t.Errorf("buffers over each other: %#x and %#x", from, at)
			}
		}
	}
	if got := asked.Load(); got == 0 || got > depth {
		t.Errorf("%d pieces of memory for %d buffers", got, depth)
	}
	for range held {
		disk.do(held[0])
		held = held[1:]
		c.answer(n)
	}
	for size, lent := range map[uint32]bool{n: true, block: false} {
		c.request(0, cmdWrite, 0, size, filled(int(size), 5))
		io := <-disk.hold
		if io.Lent != lent {
			t.Errorf("a write of %d bytes: lent is %v", size, io.Lent)
		}
		disk.do(io)
		c.answer(0)
	}
}
