package engine

import (
	"bytes"
	"runtime"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/cache"
	"weft/dataplane/segment"
	"weft/domain"
)

// cachedVolume makes a volume of 16 MiB on a device whose reads a cache of so many bytes keeps.
func cachedVolume(t *testing.T, bytes int64) (*mem.Device, *Engine, *Volume) {
	t.Helper()
	dev := newMem(t, 96<<20, 1<<20, 1)
	e := open(t, dev, func(c *Config) { c.Reads = cache.New(bytes) })
	v, err := e.Create(background, testVolume, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	return dev, e, v
}

// TestCachedReads proves that what was read twice is served without the device, also to a clone,
// that what was written since is what is read, and that large reads go past the cache.
func TestCachedReads(t *testing.T) {
	dev, e, v := cachedVolume(t, 1<<20)
	defer e.Abandon()
	if err := put(v, data(0, 64, 7)); err != nil {
		t.Fatal(err)
	}
	read := func(v *Volume, block, want uint64, fromDevice int64) {
		t.Helper()
		before := dev.Stats().ReadBytes
		got, err := holds(v, block)
		if err != nil || got != want {
			t.Errorf("block %d holds %d, not %d: %v", block, got, want, err)
		}
		if n := dev.Stats().ReadBytes - before; n != fromDevice {
			t.Errorf("block %d: %d bytes of the device, not %d", block, n, fromDevice)
		}
	}
	read(v, 3, 7, segment.BlockSize)
	read(v, 3, 7, segment.BlockSize)
	read(v, 3, 7, 0)
	if err := e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}); err != nil {
		t.Fatal(err)
	}
	s, _ := e.OpenSnapshot(snapID(1))
	if err := put(v, data(3, 1, 8)); err != nil {
		t.Fatal(err)
	}
	read(v, 3, 8, segment.BlockSize)
	read(s, 3, 7, 0)
	large := backends.AlignedBuffer(64 * segment.BlockSize)
	for range 3 {
		before := dev.Stats().ReadBytes
		if err := v.Read(0, 64, large); err != nil {
			t.Fatal(err)
		}
		if n := dev.Stats().ReadBytes - before; n != int64(len(large)) {
			t.Errorf("%d of %d bytes came from the device", n, len(large))
		}
	}
}

// TestCachedRot proves that a block of the cache which is not what was written is not returned.
func TestCachedRot(t *testing.T) {
	_, e, v := cachedVolume(t, 1<<20)
	defer e.Abandon()
	reads := e.cfg.Reads
	if err := put(v, data(0, 1, 7)); err != nil {
		t.Fatal(err)
	}
	var rd reader
	if err := rd.lookup(v, 0, 1, nil); err != nil {
		t.Fatal(err)
	}
	wrong := make([]byte, segment.BlockSize)
	for range 2 {
		reads.Put(e.placeOf(rd.loc[0]), wrong)
	}
	for range 2 {
		if got, err := holds(v, 0); err != nil || got != 7 {
			t.Errorf("%d, %v", got, err)
		}
	}
	if reads.Get(e.placeOf(rd.loc[0]), wrong) && !bytes.Equal(wrong, fill(1, 7)) {
		t.Error("the rotten block is still there")
	}
}

// TestReadAhead proves that a stream of small reads is served from what was fetched before it was
// asked for, in few reads of the device, that bytes written meanwhile are the ones that are read,
// and that reads by chance fetch nothing.
func TestReadAhead(t *testing.T) {
	dev, e, v := cachedVolume(t, 8<<20)
	defer e.Abandon()
	const blocks = 4096
	for b := uint64(0); b < blocks; b += 64 {
		if err := put(v, data(b, 64, 1+b)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(b uint64) uint64 { return 1 + b/64*64 }
	before := dev.Stats().Reads
	for b := range uint64(blocks) {
		if b == 2000 {
			if err := put(v, data(2100, 1, 99)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := holds(v, b)
		if err != nil || got != want(b) && (b != 2100 || got != 99) {
			t.Fatalf("block %d holds %d: %v", b, got, err)
		}
		fetched(&v.ahead)
	}
	if n := dev.Stats().Reads - before; n > blocks/20 {
		t.Errorf("%d reads of the device for %d of a stream", n, blocks)
	}
	before = dev.Stats().Reads
	for b := range uint64(500) {
		b = b * 1237 % blocks
		if _, err := holds(v, b); err != nil {
			t.Fatal(err)
		}
	}
	if n := dev.Stats().Reads - before; n != 500 {
		t.Errorf("%d reads of the device for 500 by chance", n)
	}
}

// TestLargeStream proves that a stream whose reads go past the cache has nothing fetched for it:
// each byte would be read twice.
func TestLargeStream(t *testing.T) {
	dev, e, v := cachedVolume(t, 8<<20)
	defer e.Abandon()
	const blocks, each = 1024, 2 * streamBlocks
	for b := uint64(0); b < blocks; b += 64 {
		if err := put(v, data(b, 64, 1+b)); err != nil {
			t.Fatal(err)
		}
	}
	before, buf := dev.Stats().ReadBytes, backends.AlignedBuffer(each*segment.BlockSize)
	for b := uint64(0); b < blocks; b += each {
		if err := v.Read(b, each, buf); err != nil {
			t.Fatal(err)
		}
		fetched(&v.ahead)
	}
	if n := dev.Stats().ReadBytes - before; n != blocks*segment.BlockSize {
		t.Errorf("%d bytes of the device for %d", n, blocks*segment.BlockSize)
	}
}

// fetched waits until no window is being fetched.
func fetched(a *ahead) {
	for {
		a.mu.Lock()
		busy := a.busy
		a.mu.Unlock()
		if !busy {
			return
		}
		runtime.Gosched()
	}
}
