package cache

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
)

// content makes the block that a key stands for.
func content(k Key) []byte {
	b := make([]byte, BlockSize)
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], k.Place)
		binary.LittleEndian.PutUint64(b[i+8:], uint64(k.Device))
	}
	return b
}

func read(t testing.TB, c *Cache, k Key) bool {
	t.Helper()
	got := make([]byte, BlockSize)
	if !c.Get(k, got) {
		c.Put(k, content(k))
		return false
	}
	if string(got) != string(content(k)) {
		t.Fatalf("%+v holds something else", k)
	}
	return true
}

// TestSecondRead proves that a block is kept from its second read on, that places of two devices
// are two, and that what was dropped is gone.
func TestSecondRead(t *testing.T) {
	c := New(1 << 20)
	a, b := Key{c.Attach(), 7}, Key{c.Attach(), 7}
	for i, want := range []bool{false, false, true, true} {
		if read(t, c, a) != want {
			t.Errorf("read %d: %v", i+1, !want)
		}
	}
	if read(t, c, b) {
		t.Error("another device's block is there")
	}
	c.Drop(a)
	if c.Get(a, make([]byte, BlockSize)) {
		t.Error("it was dropped and is there")
	}
	if s := c.Stats(); s.Hits != 2 || s.Misses != 4 || s.Used != 0 || s.Bytes != 1<<20 {
		t.Errorf("%+v", s)
	}
}

// TestAhead proves that what was read ahead is there once, and takes the place of nothing that is
// used.
func TestAhead(t *testing.T) {
	c := New(ways * BlockSize)
	k, got := Key{1, 7}, make([]byte, BlockSize)
	c.Ahead(k, content(k))
	if !c.Get(k, got) || string(got) != string(content(k)) || c.Get(k, got) {
		t.Error("not there once")
	}
	for p := range uint64(ways - 1) {
		for range 3 {
			read(t, c, Key{1, 100 + p})
		}
	}
	there := func() (n int) {
		for p := range uint64(ways - 1) {
			if c.Get(Key{1, 100 + p}, got) {
				n++
			}
		}
		return n
	}
	before := there()
	for p := range uint64(100) {
		c.Ahead(Key{1, 1000 + p}, content(Key{1, 1000 + p}))
	}
	if after := there(); before < ways/2 || after != before {
		t.Errorf("%d of %d blocks in use are left", after, before)
	}
}

// TestScan proves that a scan, however long, takes nothing from what is read again and again.
func TestScan(t *testing.T) {
	c := New(1 << 20) // 256 blocks
	const hot = 128
	for range 3 {
		for p := range uint64(hot) {
			read(t, c, Key{1, p + 1})
		}
	}
	there := func() (n int) {
		for p := range uint64(hot) {
			if c.Get(Key{1, p + 1}, make([]byte, BlockSize)) {
				n++
			}
		}
		return n
	}
	before := there()
	for p := range uint64(100_000) {
		read(t, c, Key{1, 1000 + p})
	}
	if after := there(); before < hot*3/4 || after < before*9/10 {
		t.Errorf("%d of %d, %d are left", before, hot, after)
	}
}

// TestSkewedReads proves that most of a skewed load is served from a cache of a tenth of it.
func TestSkewedReads(t *testing.T) {
	c := New(4 << 20)
	rnd := rand.New(rand.NewPCG(1, 2))
	z := rand.NewZipf(rnd, 1.1, 1, 10*1024-1)
	for range 100_000 {
		read(t, c, Key{1, 1 + z.Uint64()})
	}
	if s := c.Stats(); s.Hits < 2*s.Misses || s.Used > s.Bytes {
		t.Errorf("%+v", s)
	}
}

// TestTogether proves that many goroutines get nothing but what a place holds.
func TestTogether(t *testing.T) {
	c := New(256 << 10)
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(g, 1))
			for range 20_000 {
				k := Key{1, 1 + rnd.Uint64N(100)}
				if read(t, c, k); rnd.IntN(50) == 0 {
					c.Drop(k)
				}
			}
		})
	}
	wg.Wait()
	if s := c.Stats(); s.Hits == 0 || s.Used < 0 || s.Used > s.Bytes {
		t.Errorf("%+v", s)
	}
}

// TestNone proves that no cache is a cache that holds nothing.
func TestNone(t *testing.T) {
	c := New(BlockSize)
	if c != nil {
		t.Fatal("a cache of one block")
	}
	k := Key{c.Attach(), 1}
	read(t, c, k)
	c.Drop(k)
	if read(t, c, k) || c.Stats() != (Stats{}) {
		t.Error("it holds something")
	}
}

// TestAllocatesNothing proves that a cache in use takes no memory beyond its own.
func TestAllocatesNothing(t *testing.T) {
	c := New(1 << 20)
	k, b := Key{1, 1}, make([]byte, BlockSize)
	n := testing.AllocsPerRun(1000, func() {
		if !c.Get(k, b) {
			c.Put(k, b)
		}
		k.Place = k.Place%300 + 1
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGet(b *testing.B) {
	c, p := New(64<<20), make([]byte, BlockSize)
	for range 2 {
		for i := range uint64(4096) {
			c.Put(Key{1, i + 1}, p)
		}
	}
	b.SetBytes(BlockSize)
	for i := range b.N {
		c.Get(Key{1, uint64(i)%4096 + 1}, p)
	}
}

func BenchmarkMiss(b *testing.B) {
	c, p := New(64<<20), make([]byte, BlockSize)
	for i := range b.N {
		if k := (Key{1, uint64(i) + 1}); !c.Get(k, p) {
			c.Put(k, p)
		}
	}
}
