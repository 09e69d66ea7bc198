package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// testIDs are the owner's ids of every test device.
var (
	testCluster = domain.ClusterID{UUID: domain.UUID{1}}
	testDevice  = domain.DeviceID{UUID: domain.UUID{2}}
	testVolume  = domain.VolumeID{UUID: domain.UUID{3}}
)

// waiter collects the outcome of one record.
type waiter struct {
	wg  sync.WaitGroup
	err error
}

func (w *waiter) Appended(_ *Record, err error) {
	w.err = err
	w.wg.Done()
}

// put appends a record and waits for its outcome.
func put(v *Volume, r *Record) error {
	w := &waiter{}
	w.wg.Add(1)
	r.To = w
	v.Append(r)
	w.wg.Wait()
	return w.err
}

// fill gives count blocks that spell out a number, different in every block.
func fill(count int, n uint64) []byte {
	b := backends.AlignedBuffer(count * segment.BlockSize)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], word(n, i%segment.BlockSize))
	}
	return b
}

// word gives the eight bytes at i of a block that spells a number, which is what its first ones
// are. The others are the number, or by chance: all, or from some place on, so that blocks compress
// well, to any size, or not at all.
func word(n uint64, i int) uint64 {
	some := int(n/4%(segment.BlockSize/8)) * 8
	if n == 0 || i == 0 || n%4 < 2 || n%4 == 2 && i < some {
		return n
	}
	x := (n*512 + uint64(i)) * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	return x ^ x>>27
}

func data(block uint64, count int, n uint64) *Record {
	return &Record{Kind: segment.KindData, Block: block, Count: count, Data: fill(count, n)}
}

// newMem makes a formatted device in RAM.
func newMem(t testing.TB, size int64, seg, lanes int) *mem.Device {
	t.Helper()
	dev, err := mem.New(mem.Config{Size: size, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	err = Format(context.Background(), dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: seg, Lanes: lanes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func open(t testing.TB, dev backends.Device, tune ...func(*Config)) *Engine {
	t.Helper()
	cfg := Config{Device: dev, Cluster: testCluster, Node: 1}
	for _, f := range tune {
		f(&cfg)
	}
	e, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	audited(t, dev, e)
	return e
}

func create(t testing.TB, e *Engine, size domain.Bytes) *Volume {
	t.Helper()
	v, err := created(e, testVolume, size)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// created makes a volume, encrypted where the engine has a cluster key.
func created(e *Engine, id domain.VolumeID, size domain.Bytes) (*Volume, error) {
	if e.keys.wrap != nil {
		return e.CreateEncrypted(background, id, size, 7)
	}
	return e.Create(background, id, size, 7)
}

// check reads a block and compares it with the number it should spell.
func check(t testing.TB, v *Volume, block, n uint64) {
	t.Helper()
	got := backends.AlignedBuffer(segment.BlockSize)
	if err := v.Read(block, 1, got); err != nil {
		t.Fatalf("block %d: %v", block, err)
	}
	if !bytes.Equal(got, fill(1, n)) {
		t.Fatalf("block %d spells %d, not %d", block, binary.LittleEndian.Uint64(got), n)
	}
}

// TestReadBack proves that what was written is read, before and after a clean stop and a crash.
func TestReadBack(t *testing.T) {
	dev := newMem(t, 64<<20, 256<<10, 2)
	e := open(t, dev)
	v := create(t, e, 64*domain.MiB)
	for i := range uint64(200) {
		if err := put(v, data(i*50, 3, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(v *Volume) {
		for i := range uint64(200) {
			check(t, v, i*50, i+1)
			check(t, v, i*50+2, i+1)
			check(t, v, i*50+3, 0)
		}
	}
	verify(v)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev)
	v, _ = e.Volume(testVolume)
	verify(v)
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 0, Count: 1024}); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	e = open(t, dev)
	defer e.Close()
	v, _ = e.Volume(testVolume)
	check(t, v, 0, 0)
	check(t, v, 1050, 22)
}

// TestOverwriteForEver proves that overwriting never fills the device: 25 times its size goes in
// while 60 percent of it is live (E9).
func TestOverwriteForEver(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	e := open(t, dev)
	defer e.Close()
	v := create(t, e, 64*domain.MiB)
	blocks := uint64(e.space.usable.Load()) / segment.BlockSize * 9 / 10
	latest := make([]uint64, blocks)
	rnd := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	records := uint64(200_000)
	if raceOn || testing.Short() {
		records = 30_000
	}
	for n := uint64(1); n < records; n++ {
		b := rnd.Uint64N(blocks)
		latest[b] = n
		w := &waiter{}
		wg.Add(1)
		w.wg.Add(1)
		r := data(b, 1, n)
		r.To = w
		v.Append(r)
		go func() {
			defer wg.Done()
			w.wg.Wait()
			if w.err != nil {
				t.Error(w.err)
			}
		}()
		if n%64 == 0 {
			wg.Wait()
			if t.Failed() {
				t.Fatalf("after %d: %+v", n, e.Stats())
			}
		}
	}
	wg.Wait()
	for b, n := range latest {
		check(t, v, uint64(b), n)
	}
	t.Logf("%+v", e.Stats())
}
