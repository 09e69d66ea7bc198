package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"weft/backends"
	"weft/dataplane/cache"
	"weft/dataplane/segment"
	"weft/domain"
)

// held is a device that keeps started reads until the test lets them end, in the order it likes.
type held struct {
	backends.Device
	mu   sync.Mutex
	list []*backends.Read
	room int // reads that it will still take without waiting
}

// StartRead keeps the read.
func (h *held) StartRead(r *backends.Read, _ bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, r)
	return true
}

// TryStartRead keeps the read if there is room.
func (h *held) TryStartRead(r *backends.Read) bool {
	h.mu.Lock()
	if h.room--; h.room < 0 {
		h.mu.Unlock()
		return false
	}
	h.mu.Unlock()
	return h.StartRead(r, true)
}

// KickReads does nothing: the test decides.
func (h *held) KickReads() {}

// end ends a read that was kept: spoil may change what was read.
func (h *held) end(r *backends.Read, spoil func(p []byte)) {
	err := h.ReadAt(r.P, r.Off)
	if spoil != nil {
		spoil(r.P)
	}
	r.To.ReadDone(r, err)
}

func (h *held) taken() []*backends.Read {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.list
	h.list = nil
	return list
}

// arrival counts.
type arrival struct{ n int }

// Arrived implements Arrival.
func (a *arrival) Arrived(*Reading) { a.n++ }

// scattered writes the blocks of an extent one by one, in an order of its own, so that a read of
// several is many pieces; block b spells b+1.
func scattered(t testing.TB, v *Volume, blocks int) {
	t.Helper()
	for i := range uint64(blocks) {
		b := i * 7 % uint64(blocks)
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
}

func spells(p []byte, first uint64) bool {
	for i := range len(p) / segment.BlockSize {
		if !bytes.Equal(p[i*segment.BlockSize:][:segment.BlockSize], fill(1, first+uint64(i))) {
			return false
		}
	}
	return true
}

// TestStartedRead proves that a started read hands over all its pieces at once, arrives when the
// last of them has, whatever their order, and not before.
func TestStartedRead(t *testing.T) {
	dev := &held{Device: newMem(t, 64<<20, 1<<20, 1)}
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	scattered(t, v, 32)
	for _, backward := range []bool{false, true} {
		a, dst := &arrival{}, backends.AlignedBuffer(48*segment.BlockSize)
		for i := range dst {
			dst[i] = 0xEE
		}
		r := &Reading{Block: 0, Count: 48, Dst: dst, To: a} // the last 16 are a hole
		if !v.Start(r, false) {
			t.Fatal("not started")
		}
		list := dev.taken()
		if len(list) != 32 {
			t.Fatalf("%d pieces at once, not 32", len(list))
		}
		if backward {
			slices.Reverse(list)
		}
		for i, p := range list {
			if a.n != 0 {
				t.Fatalf("arrived with %d pieces of %d", i, len(list))
			}
			dev.end(p, nil)
		}
		if a.n != 1 {
			t.Fatalf("arrived %d times", a.n)
		}
		if ended, err := r.Check(); !ended || err != nil {
			t.Fatal(ended, err)
		}
		if !spells(dst[:32*segment.BlockSize], 1) ||
			!bytes.Equal(dst[32*segment.BlockSize:], make([]byte, 16*segment.BlockSize)) {
			t.Error("other bytes than were written")
		}
	}
}

// TestStartedReadStale proves that a started read whose bytes do not match the index, as when the
// cleaner moved a block and its place was written anew, is read again, and is corrupt only when the
// second look says so too.
func TestStartedReadStale(t *testing.T) {
	dev := &held{Device: newMem(t, 64<<20, 1<<20, 1)}
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	scattered(t, v, 8)
	dst := backends.AlignedBuffer(segment.BlockSize)
	read := func(spoil func(p []byte)) error {
		t.Helper()
		r := &Reading{Block: 3, Count: 1, Dst: dst, To: &arrival{}}
		if !v.Start(r, false) {
			t.Fatal("not started")
		}
		for _, p := range dev.taken() {
			dev.end(p, spoil)
		}
		ended, err := r.Check()
		if ended {
			return err
		}
		return r.Again()
	}
	if err := read(func(p []byte) { p[17] ^= 1 }); err != nil || !spells(dst, 4) {
		t.Errorf("spoilt on its way: %v", err)
	}
	at := v.fam.leaves[0][0].own.get(3).Off()
	sector := backends.AlignedBuffer(segment.BlockSize)
	copy(sector, fill(1, 4))
	sector[5] ^= 4
	if err := dev.WriteAt(sector, at, true); err != nil {
		t.Fatal(err)
	}
	kindOf(t, read(nil), domain.Corrupt)
	for name, r := range map[string]*Reading{
		"across an extent": {Block: 1020, Count: 8, Dst: make([]byte, 8*segment.BlockSize)},
		"beyond the end":   {Block: 1 << 30, Count: 1, Dst: dst},
		"short buffer":     {Block: 0, Count: 2, Dst: dst},
		"not aligned":      {Block: 0, Count: 1, Dst: backends.AlignedBuffer(8192)[512:][:4096]},
	} {
		if v.Start(r, false) {
			t.Errorf("%s: started", name)
		}
	}
}

// TestStartedReadFails proves that the error of one piece is the read's, and that a later read is
// not told of it.
func TestStartedReadFails(t *testing.T) {
	dev := &held{Device: newMem(t, 64<<20, 1<<20, 1)}
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	scattered(t, v, 8)
	for round := range 2 {
		r := &Reading{
			Block: 0, Count: 8, Dst: backends.AlignedBuffer(8 * segment.BlockSize), To: &arrival{},
		}
		if !v.Start(r, false) {
			t.Fatal("not started")
		}
		for i, p := range dev.taken() {
			if round == 0 && i == 2 {
				p.To.ReadDone(p, backends.ErrMedia)
				continue
			}
			dev.end(p, nil)
		}
		ended, err := r.Check()
		if round == 0 {
			kindOf(t, err, domain.Unavailable)
		} else if err != nil || !ended {
			t.Error(err)
		}
	}
}

// TestTryStart proves that TryStart refuses a read for which the index is not to be had at once,
// and one that the device does not take; that it says where nothing is to be read; and that a read
// of which the device takes a part arrives when that part has, and then has to be read again.
func TestTryStart(t *testing.T) {
	dev := &held{Device: newMem(t, 64<<20, 1<<20, 1)}
	e := open(t, dev, quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	scattered(t, v, 32)
	a, dst := &arrival{}, backends.AlignedBuffer(32*segment.BlockSize)
	for i := range dst {
		dst[i] = 0xEE
	}
	try := func(block uint64, room int, want Begun) *Reading {
		t.Helper()
		dev.room = room
		r := &Reading{Block: block, Count: 32, Dst: dst, To: a}
		if got := v.TryStart(r); got != want {
			t.Fatalf("%d, not %d", got, want)
		}
		return r
	}
	before := e.Stats().Reads
	l := v.lane(0)
	l.mu.Lock()
	try(0, 32, Refused)
	l.mu.Unlock()
	try(0, 0, Refused)
	try(v.blocks()-1, 32, Refused) // 32 blocks end behind the volume
	if n := e.Stats().Reads; n != before {
		t.Errorf("%d refused reads are counted", n-before)
	}
	r := try(64, 32, Here)
	if ended, err := r.Check(); !ended || err != nil || !bytes.Equal(dst, make([]byte, len(dst))) {
		t.Errorf("of a hole: %v, %v, or not zeros", ended, err)
	}
	if list := dev.taken(); a.n != 0 || len(list) != 0 {
		t.Errorf("told %d times, %d reads of the device", a.n, len(list))
	}
	for _, part := range []int{32, 3} { // the second finds the right bytes in its buffer
		a.n = 0
		r = try(0, part, Started)
		list := dev.taken()
		for i, p := range list {
			if a.n != 0 {
				t.Fatalf("arrived with %d pieces of %d", i, len(list))
			}
			dev.end(p, nil)
		}
		ended, err := r.Check()
		if len(list) != part || a.n != 1 || ended != (part == 32) {
			t.Fatalf("%d pieces, arrived %d times, ended %v: %v", len(list), a.n, ended, err)
		}
		if !ended {
			err = onceMore(dev, r)
		}
		if err != nil || !spells(dst, 1) {
			t.Errorf("%d pieces: %v, or other bytes than were written", part, err)
		}
	}
}

// onceMore reads again from a device that keeps what is started.
func onceMore(dev *held, r *Reading) error {
	out := make(chan error, 1)
	go func() { out <- r.Again() }()
	for {
		select {
		case err := <-out:
			return err
		default:
		}
		for _, p := range dev.taken() {
			dev.end(p, nil)
		}
		runtime.Gosched()
	}
}

// following is a read that starts the next from where it arrives, or from a goroutine where that is
// refused, until there are no more.
type following struct {
	Reading
	v     *Volume
	left  int
	check func(p []byte, first uint64) error
	end   chan error
}

// Arrived implements Arrival.
func (f *following) Arrived(*Reading) {
	for ended, err := f.Check(); ; ended, err = f.Check() {
		if !ended {
			go f.wait(f.Again)
			return
		}
		if f.next(err) {
			return
		}
		switch f.v.TryStart(&f.Reading) {
		case Started:
			return
		case Refused:
			go f.wait(func() error { return f.v.Read(f.Block, f.Count, f.Dst) })
			return
		case Here:
		}
	}
}

// wait reads where waiting is allowed, and goes on.
func (f *following) wait(read func() error) {
	for err := read(); !f.next(err); err = f.v.Read(f.Block, f.Count, f.Dst) {
		if f.v.Start(&f.Reading, false) {
			return
		}
	}
}

// next looks at what was read; true ends the row.
func (f *following) next(err error) bool {
	if err == nil {
		err = f.check(f.Dst, f.Block)
	}
	if f.left--; err != nil || f.left == 0 {
		f.end <- err
		return true
	}
	f.Block = (f.Block + 64) % 256
	return false
}

// TestReadsFollowWhileWriting lets rows of reads start one another from where they arrive, beside a
// writer, the cleaner and checkpoints, with a cache: what a read sees in a block is whole and the
// block's, and each row comes to its end.
func TestReadsFollowWhileWriting(t *testing.T) {
	cached := func(c *Config) { c.Reads = cache.New(1 << 20) }
	e := open(t, newMem(t, 16<<20, 256<<10, 2), often, cached)
	defer e.Abandon()
	v := create(t, e, 8*domain.MiB)
	const blocks, rounds = 256, 6
	scattered(t, v, blocks)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range uint64(rounds) {
			for b := range uint64(blocks) {
				if err := put(v, data(b, 1, n*blocks+b+1)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	look := func(p []byte, first uint64) error {
		for i := range uint64(len(p) / segment.BlockSize) {
			p := p[i*segment.BlockSize:][:segment.BlockSize]
			n := binary.LittleEndian.Uint64(p)
			if n == 0 || (n-1)%blocks != first+i || !bytes.Equal(p, fill(1, n)) {
				return fmt.Errorf("block %d holds %d", first+i, n)
			}
		}
		return nil
	}
	for i := range 4 {
		count := 4 << (2 * i % 6) // some of a size that the cache takes
		f := &following{v: v, left: 300, check: look, end: make(chan error, 1)}
		f.Reading = Reading{Count: count, Dst: backends.AlignedBuffer(count * segment.BlockSize), To: f}
		if !v.Start(&f.Reading, false) {
			t.Fatal("not started")
		}
		wg.Go(func() {
			if err := <-f.end; err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestStartedReadsWhileWriting starts reads beside a writer that raises the number in each block,
// with the cleaner and checkpoints at work: what a read sees in a block is whole and the block's.
func TestStartedReadsWhileWriting(t *testing.T) {
	dev := newMem(t, 16<<20, 256<<10, 2)
	e := open(t, dev, often)
	defer e.Abandon()
	v := create(t, e, 8*domain.MiB)
	const blocks, rounds = 256, 6
	scattered(t, v, blocks)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stop)
		for n := range uint64(rounds) {
			for b := range uint64(blocks) {
				if err := put(v, data(b, 1, n*blocks+b+1)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for range 4 {
		wg.Go(func() {
			dst := backends.AlignedBuffer(64 * segment.BlockSize)
			for first := uint64(0); ; first = (first + 64) % blocks {
				select {
				case <-stop:
					return
				default:
				}
				there := make(chan struct{}, 1)
				r := &Reading{Block: first, Count: 64, Dst: dst, To: arrivedChan(there)}
				if !v.Start(r, true) {
					t.Error("not started")
					return
				}
				v.Kick()
				<-there
				ended, err := r.Check()
				if !ended {
					err = r.Again()
				}
				if err != nil {
					t.Error(err)
					return
				}
				for i := range uint64(64) {
					p := dst[i*segment.BlockSize:][:segment.BlockSize]
					n := binary.LittleEndian.Uint64(p)
					if n == 0 || (n-1)%blocks != first+i || !bytes.Equal(p, fill(1, n)) {
						t.Errorf("block %d holds %d", first+i, n)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

type arrivedChan chan struct{}

// Arrived implements Arrival.
func (c arrivedChan) Arrived(*Reading) { c <- struct{}{} }

// instant is a device whose started reads end at once.
type instant struct{ backends.Device }

// StartRead reads.
func (d *instant) StartRead(r *backends.Read, _ bool) bool {
	r.To.ReadDone(r, d.ReadAt(r.P, r.Off))
	return true
}

// KickReads has nothing to do.
func (d *instant) KickReads() {}

// TestStartedReadAllocatesNothing gates a started read of many pieces.
func TestStartedReadAllocatesNothing(t *testing.T) {
	if raceOn {
		t.Skip("the race detector allocates")
	}
	e := open(t, &instant{newMem(t, 64<<20, 1<<20, 1)}, quiet)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	scattered(t, v, 16)
	r := &Reading{Count: 16, Dst: backends.AlignedBuffer(16 * segment.BlockSize), To: &arrival{}}
	n := testing.AllocsPerRun(1000, func() {
		if !v.Start(r, false) {
			t.Fatal("not started")
		}
		if ended, err := r.Check(); !ended || err != nil {
			t.Fatal(ended, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
