package engine

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"weft/backends"
	"weft/backends/hybrid"
	"weft/backends/mem"
	"weft/dataplane/cache"
	"weft/dataplane/compress"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// secretPair makes a pair with an encrypted volume of which block b, of so many, spells b+1 and
// stands on the disk.
func secretPair(t testing.TB, blocks uint64, tune ...func(*Config)) (
	flash, disk *mem.Device, dev *hybrid.Device, e *Engine, v *Volume,
) {
	t.Helper()
	flash, disk = members(t, 60, 40, 64<<10)
	dev = joined(t, flash, disk, 64<<10, 1)
	e = open(t, dev, append(tune, keyed, awake, quiet)...)
	e.maint.quiet.Store(true)
	v = create(t, e, 16*domain.MiB)
	for b := range blocks {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	for b := range uint64(20) { // the segment of the last is left behind
		if err := put(v, data(2000+b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	allDown(t, e, v, blocks)
	return flash, disk, dev, e, v
}

// TestPairEncrypted proves that what is encrypted on the disk of a pair is read back, waiting and
// not, compressed and not, beside the cache, over a stop and a crash, without a look at the disk at
// the start; that it comes back to the flash and is cleaned on the disk; and that nothing of it
// stands on either member in clear.
func TestPairEncrypted(t *testing.T) {
	const blocks = 200
	for _, mode := range []compress.Mode{compress.Off, compress.OnlyS2} {
		reads := cache.New(1 << 20)
		tune := []func(*Config){keyed, awake, quiet, func(c *Config) { c.Reads = reads }}
		flash, disk, dev, e, v := secretPair(t, 0, tune...)
		v.SetCompression(mode)
		for b := range uint64(blocks) {
			if err := put(v, data(b, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
		allDown(t, e, v, blocks)
		whole := func() {
			t.Helper()
			for b := range uint64(blocks) {
				check(t, v, b, b+1)
			}
			got := backends.AlignedBuffer(blocks * segment.BlockSize)
			if err := v.Read(0, blocks, got); err != nil {
				t.Fatal(err)
			}
			for b := range uint64(blocks) {
				if !bytes.Equal(got[b*segment.BlockSize:][:segment.BlockSize], fill(1, b+1)) {
					t.Fatalf("block %d of all", b)
				}
			}
		}
		whole()
		for round := range 3 {
			if round%2 == 0 {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			e.Abandon()
			before := disk.Stats().Reads
			e = open(t, dev, tune...)
			if n := disk.Stats().Reads - before; n != 0 {
				t.Errorf("round %d: %d reads of the disk", round, n)
			}
			e.maint.quiet.Store(true)
			v = mustVolume(t, e)
			if !onDisk(t, v, 1) {
				t.Fatal("it is not on the disk")
			}
			whole()
			if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
				t.Fatalf("%+v", list)
			}
		}
		e.copies.none = true
		for range 2 {
			check(t, v, 5, 6)
		}
		e.maint.ckpt.Lock()
		back, err := e.bringBack()
		e.maint.ckpt.Unlock()
		if err != nil || !back || onDisk(t, v, 5) {
			t.Errorf("nothing came back: %v", err)
		}
		for b := range uint64(blocks / 3) { // holes for the cleaner
			if err := put(v, data(b*3, 1, b*3+1)); err != nil {
				t.Fatal(err)
			}
		}
		cleanedDisk(t, e)
		whole()
		recount(t, e)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if n := inClear(bytesOf(t, flash)) + inClear(bytesOf(t, disk)); n > 0 {
			t.Errorf("%d places in clear", n)
		}
	}
}

// TestPairLiar lets the disk of a pair lose the writes of a segment's header and first chunks, as a
// disk does that says it wrote them, so that a whole older life with another salt stands there and
// the newer one's chunks behind it: what is read is right or said to be wrong, never opened by the
// older salt. Then all headers are lost.
func TestPairLiar(t *testing.T) {
	const blocks = 150
	_, disk, dev, e, v := secretPair(t, blocks)
	old := bytesOf(t, disk)
	began := map[uint32]uint64{}
	for id, sg := range e.space.mu.segs {
		if sg.cold {
			began[uint32(id)] = sg.seq
		}
	}
	for round := range uint64(6) { // until segments of the disk live again
		for b := range uint64(blocks) {
			if err := put(v, data(b, 1, 1000*(round+1)+b)); err != nil {
				t.Fatal(err)
			}
		}
		cooled(t, e)
	}
	want := func(b uint64) uint64 { return 6000 + b }
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	lied := 0
	for id, sg := range e.space.mu.segs {
		if !sg.cold || sg.live.Load() == 0 {
			continue
		}
		at := e.space.off(uint32(id))
		if was := began[uint32(id)]; was != 0 && was != sg.seq {
			lied++
		}
		for n := int64(0); n < 6; n++ { // header and first chunk
			p := backends.AlignedBuffer(segment.Sector)
			copy(p, old[at+n*segment.Sector-dev.Geometry().Boundary+mib:])
			if err := dev.WriteAt(p, at+n*segment.Sector, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lied == 0 {
		t.Fatal("no segment of the disk lives again: the test tests too little")
	}
	told := &facts{}
	e = open(t, dev, keyed, awake, quiet, told.into)
	v = mustVolume(t, e)
	got, right, wrong := backends.AlignedBuffer(segment.BlockSize), 0, 0
	for b := range uint64(blocks) {
		switch err := v.Read(b, 1, got); {
		case domain.IsKind(err, domain.Corrupt):
			wrong++
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(got, fill(1, want(b))):
			t.Fatalf("block %d is garbage that was not told", b)
		default:
			right++
		}
	}
	if right == 0 || wrong == 0 {
		t.Errorf("%d blocks are right, %d wrong", right, wrong)
	}
	e.Abandon()
	r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Boundary: dev.Geometry().Boundary})
	if err != nil || r.Sound() {
		t.Errorf("the checker finds nothing: %v", err)
	}
	e.stats.corrupt.Add(1) // the device was harmed: no audit of it
}

// TestPairHeadersLost clears the headers of all segments of a pair's disk: the checkpoint tells
// their lives, so everything is read and moved as ever.
func TestPairHeadersLost(t *testing.T) {
	const blocks = 150
	_, _, dev, e, _ := secretPair(t, blocks)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for id, sg := range e.space.mu.segs {
		if sg.cold && sg.live.Load() > 0 {
			clearAt(t, dev, e.space.off(uint32(id)), segment.Sector)
			lost++
		}
	}
	r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{
		Data: true, Boundary: dev.Geometry().Boundary,
	})
	if err != nil || len(r.Problems) != lost || lost == 0 {
		t.Errorf("%d headers lost: %v, %+v", lost, err, r.Problems)
	}
	e = open(t, dev, keyed, awake, quiet)
	defer e.Abandon()
	e.maint.quiet.Store(true)
	v := mustVolume(t, e)
	for b := range uint64(blocks / 3) {
		if err := put(v, data(b*3, 1, b*3+1)); err != nil {
			t.Fatal(err)
		}
	}
	cleanedDisk(t, e)
	for b := range uint64(blocks) {
		check(t, v, b, b+1)
	}
	e.stats.corrupt.Add(1) // the device was harmed: no audit of it
}

// TestPairLifeUntold proves that the checker finds a checkpoint which does not tell the life of a
// segment of the disk that holds something, or tells another.
func TestPairLifeUntold(t *testing.T) {
	_, _, dev, e, _ := secretPair(t, 100)
	defer e.Abandon()
	id := slices.IndexFunc(e.space.mu.segs, func(s *seg) bool { return s.cold && s.live.Load() > 0 })
	sg := e.space.mu.segs[id]
	was := sg.life.Load()
	for _, lf := range []*life{
		nil, {seq: was.seq + 1, salt: was.salt}, {seq: was.seq, salt: segment.Salt{1}}, was,
	} {
		sg.life.Store(lf)
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Boundary: dev.Geometry().Boundary})
		if err != nil || r.Sound() != (lf == was) {
			t.Errorf("%+v: %v, %+v", lf, err, r.Problems)
		}
	}
}

// TestPairForged lets somebody who knows every checksum change blocks on the disk of a pair: the
// scrub finds them by their tags.
func TestPairForged(t *testing.T) {
	_, _, _, e, v := secretPair(t, 100)
	defer e.Abandon()
	if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
		t.Fatalf("%+v", list)
	}
	key := v.br.Load().key
	v.br.Load().key = &volumeKey{id: key.id + 1, secret: testKey} // then no tag is right
	list, _, _ := scrubbed(t, e, 0)
	for _, d := range list {
		if d.Part != "block" || d.Detail != forged {
			t.Fatalf("%+v", d)
		}
	}
	if len(list) < 100 {
		t.Errorf("%d found", len(list))
	}
	v.br.Load().key = key
	if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
		t.Fatalf("%+v", list)
	}
}

// TestPairErase is TestErase over both parts of a pair: while a clone sees what its origin wrote,
// which stands on the disk, the origin's key stays; then it goes and is on no member.
func TestPairErase(t *testing.T) {
	const blocks = 60
	flash, disk, dev, e, v := secretPair(t, blocks)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}))
	must(put(v, data(3, 1, 300)))
	c, err := e.Clone(background, snapID(1), volID(1), 1)
	must(err)
	must(put(c, data(4, 1, 400)))
	cooled(t, e)
	keys := wrappedOn(e)
	must(e.Delete(background, testVolume))
	must(e.DeleteSnapshot(background, snapID(1)))
	for round := range 3 {
		for b := range uint64(blocks) {
			want := b + 1
			if b == 4 {
				want = 400
			}
			check(t, c, b, want)
		}
		if n := len(wrappedOn(e)); n != 2 {
			t.Fatalf("%d keys while the clone needs two", n)
		}
		if round > 0 {
			must(e.Close())
		}
		e.Abandon()
		e = open(t, dev, keyed, awake, quiet)
		c, _ = e.Volume(volID(1))
	}
	for b := uint64(0); b < blocks; b += 4 {
		must(put(c, data(b, 4, 7)))
		must(put(c, data(2000+b, 4, 7)))
	}
	must(e.Checkpoint())
	must(e.Close())
	e = open(t, dev, keyed, awake, quiet)
	if n := len(wrappedOn(e)); n != 1 {
		t.Errorf("%d keys while the clone needs its own only", n)
	}
	must(e.Delete(background, volID(1)))
	for i, w := range keys {
		if bytes.Contains(bytesOf(t, flash), w) || bytes.Contains(bytesOf(t, disk), w) {
			t.Errorf("key %d is still on the pair", i)
		}
	}
	must(e.Close())
}

// TestPairRoomForTags proves that both parts of a pair are reckoned to hold less once entries have
// tags, also after a restart.
func TestPairRoomForTags(t *testing.T) {
	dev := newPair(t, 40, 20, 1<<20, 1)
	e := open(t, dev, keyed)
	look := func(tags int) {
		t.Helper()
		s, full := e.space, packed(1<<20, tags)/100*fillMax
		if packed(1<<20, tags) == packed(1<<20, segment.TagBytes-tags) {
			t.Fatal("tags take no room: the test tests nothing")
		}
		front, back := s.data*full, s.disk.data*full
		off := func(a, b int64) bool { return max(a-b, b-a) > s.data*fillMax }
		if off(s.disk.front, front) || off(s.disk.back, back) ||
			s.usable.Load() != s.disk.front+s.disk.back ||
			s.disk.index.Load() != s.disk.front/2 {
			t.Errorf("%d of tags: room for %d and %d, %d together, %d of index: not %d and %d", tags,
				s.disk.front, s.disk.back, s.usable.Load(), s.disk.index.Load(), front, back)
		}
	}
	look(0)
	create(t, e, 16*domain.MiB)
	look(segment.TagBytes)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev, keyed)
	defer e.Abandon()
	look(segment.TagBytes)
}

// TestPairKeyMissing opens a pair without its cluster key: what is encrypted says so, what is plain
// goes to the disk and is read as ever, and with the key everything is back.
func TestPairKeyMissing(t *testing.T) {
	const blocks = 100
	_, _, dev, e, _ := secretPair(t, blocks)
	plain, err := e.Create(background, volID(1), 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	for b := range uint64(blocks) {
		if err := put(plain, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	e.Abandon()
	told := &facts{}
	e = open(t, dev, awake, quiet, told.into)
	e.maint.quiet.Store(true)
	v, got := mustVolume(t, e), backends.AlignedBuffer(segment.BlockSize)
	if err := v.Read(0, 1, got); !errors.Is(err, ErrKeyMissing) {
		t.Fatalf("%v", err)
	}
	plain, _ = e.Volume(volID(1))
	cooled(t, e)
	for b := range uint64(blocks) {
		check(t, plain, b, b+1)
	}
	if !onDisk(t, plain, 0) {
		t.Error("what is plain did not go to the disk")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev, keyed, awake)
	v = mustVolume(t, e)
	for b := range uint64(blocks) {
		check(t, v, b, b+1)
	}
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPairOfEarlierBuild proves that a pair which was formatted before its checkpoints told lives
// is served as it is, cleaned on its disk, and takes no encrypted volume.
func TestPairOfEarlierBuild(t *testing.T) {
	dev := newPair(t, 60, 40, 64<<10, 1)
	sb, err := readSuper(dev)
	if err != nil {
		t.Fatal(err)
	}
	sb.Incompat &^= segment.IncompatKeys | segment.IncompatLives
	p := backends.AlignedBuffer(segment.Sector)
	sb.Encode(p)
	for _, off := range sb.SuperOffsets() {
		if err := dev.WriteAt(p, off, true); err != nil {
			t.Fatal(err)
		}
	}
	e := open(t, dev, keyed, awake, quiet)
	_, err = e.CreateEncrypted(background, testVolume, 16*domain.MiB, 1)
	kindOf(t, err, domain.Unsupported)
	v, err := e.Create(background, testVolume, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	for b := range uint64(200) {
		if err := put(v, data(b, 1, b+1)); err != nil {
			t.Fatal(err)
		}
	}
	cooled(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev, keyed, awake, quiet)
	e.maint.quiet.Store(true)
	v = mustVolume(t, e)
	for b := range uint64(60) {
		if err := put(v, data(b*3, 1, b*3+1)); err != nil {
			t.Fatal(err)
		}
	}
	cleanedDisk(t, e)
	for b := range uint64(200) {
		check(t, v, b, b+1)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
