package engine

import (
	"bytes"
	"fmt"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/cache"
	"weft/dataplane/compress"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// text gives blocks, each another, that become a little more than half as large.
func text(block uint64, count int, n uint64) *Record {
	r := data(block, count, 0)
	for i := range count {
		copy(r.Data[i*segment.BlockSize:], fill(1, (256+512*(n*1000+uint64(i)))*4+2))
	}
	return r
}

// packedDevice makes a device with a journal and a volume that is compressed.
func packedDevice(t testing.TB, mode compress.Mode, tune ...func(*Config)) (
	*mem.Device, *mem.Memory, *Engine, *Volume,
) {
	t.Helper()
	dev := newMem(t, 64<<20, 512<<10, 1)
	nv := newMemory(t, dev, 14)
	e := open(t, dev, append([]func(*Config){quiet, journaled(nv)}, tune...)...)
	v := create(t, e, 16*domain.MiB)
	v.SetCompression(mode)
	return dev, nv, e, v
}

// lay writes a record in as many as the device asks for.
func lay(v *Volume, r *Record) error {
	for i := 0; i < r.Count; i += v.RecordBlocks() {
		n := min(v.RecordBlocks(), r.Count-i)
		err := put(v, &Record{
			Kind: r.Kind, Block: r.Block + uint64(i), Count: n, Data: r.Data[i*segment.BlockSize:],
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// locsOf gives where blocks of a volume stand.
func locsOf(t testing.TB, v *Volume, block uint64, count int) []segment.Loc {
	t.Helper()
	rd := &reader{}
	if err := rd.lookup(v, block, count, nil); err != nil {
		t.Fatal(err)
	}
	return append([]segment.Loc(nil), rd.loc[:count]...)
}

// codecOf tells by what a block was compressed, from its bytes on the device.
func codecOf(stored []byte) compress.Codec { return compress.Codec(stored[4]) }

// same reads blocks and compares them with what was written.
func same(t testing.TB, v *Volume, block uint64, want []byte) {
	t.Helper()
	got := backends.AlignedBuffer(len(want))
	if err := v.Read(block, len(want)/segment.BlockSize, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("blocks from %d on are not what was written", block)
	}
}

// TestCompressed proves that what is destaged takes less room on the device, that all readings of
// that agree, and that it is read as it was written: alone, together, in part, over a restart, and
// by a volume that is not compressed any more.
func TestCompressed(t *testing.T) {
	for _, mode := range []compress.Mode{compress.OnlyS2, compress.OnlyZstd, compress.Auto} {
		dev, nv, e, v := packedDevice(t, mode)
		r := text(0, 200, 1)
		want := bytes.Clone(r.Data)
		if err := lay(v, r); err != nil {
			t.Fatal(err)
		}
		before := e.Stats()
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
		st, info, room := e.Stats(), v.Info(), int64(0)
		for i, loc := range locsOf(t, v, 0, 200) {
			if !loc.Packed() || loc.Units() > 5 {
				t.Fatalf("mode %d: block %d stands at %x", mode, i, uint64(loc))
			}
			room += loc.Room()
		}
		if st.LiveBytes != room || st.SavedBytes != 200*segment.BlockSize-room ||
			int64(info.Own) != room || int64(info.Saved) != st.SavedBytes || info.Shared != 0 {
			t.Errorf("mode %d: %d bytes of room, volume %+v, engine %+v", mode, room, info, st)
		}
		if n := st.LogBytes - before.LogBytes; n > 200*segment.BlockSize*3/4 {
			t.Errorf("mode %d: %d bytes were written", mode, n)
		}
		v.SetCompression(compress.Off)
		for range 2 {
			same(t, v, 0, want)
			for _, part := range [][2]uint64{{0, 1}, {77, 1}, {199, 1}, {3, 64}} {
				same(t, v, part[0], want[part[0]*segment.BlockSize:(part[0]+part[1])*segment.BlockSize])
			}
			recount(t, e)
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			e = open(t, dev, quiet, journaled(nv))
			v = mustVolume(t, e)
		}
		e.Abandon()
	}
}

// TestOneReadABlock proves that a read of one compressed block is one read of the device, of two
// sectors at most, and that neighbours are read together.
func TestOneReadABlock(t *testing.T) {
	dev, _, e, v := packedDevice(t, compress.OnlyS2)
	defer e.Abandon()
	destaged(t, v, text(0, 64, 1))
	buf := backends.AlignedBuffer(64 * segment.BlockSize)
	for block := range uint64(64) {
		before := dev.Stats()
		if err := v.Read(block, 1, buf[:segment.BlockSize]); err != nil {
			t.Fatal(err)
		}
		after := dev.Stats()
		if after.Reads-before.Reads != 1 || after.ReadBytes-before.ReadBytes > 2*segment.Sector {
			t.Fatalf("block %d: %d reads of %d bytes", block, after.Reads-before.Reads,
				after.ReadBytes-before.ReadBytes)
		}
	}
	before := dev.Stats()
	if err := v.Read(0, 32, buf[:32*segment.BlockSize]); err != nil { // of one chunk
		t.Fatal(err)
	}
	after := dev.Stats()
	reads, n := after.Reads-before.Reads, after.ReadBytes-before.ReadBytes
	if reads != 1 || n > 24*segment.Sector {
		t.Errorf("32 blocks: %d reads of %d bytes", reads, n)
	}
}

// TestMixedBlocks proves that blocks which do not become smaller stand as they are among those
// which do, in one record, at places that waste less than a sector a chunk.
func TestMixedBlocks(t *testing.T) {
	_, _, e, v := packedDevice(t, compress.OnlyS2)
	defer e.Abandon()
	r := text(0, 120, 1)
	for i := range 120 {
		if i%2 == 0 {
			copy(r.Data[i*segment.BlockSize:(i+1)*segment.BlockSize], fill(1, uint64(i)*4+3))
		}
	}
	want := bytes.Clone(r.Data)
	if err := lay(v, r); err != nil {
		t.Fatal(err)
	}
	before := e.Stats()
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	stored := 0
	for i, loc := range locsOf(t, v, 0, 120) {
		if loc.Packed() != (i%2 == 1) {
			t.Fatalf("block %d stands at %x", i, uint64(loc))
		}
		stored += loc.Stored()
	}
	st := e.Stats()
	limit := int64(stored) + (st.Chunks-before.Chunks)*4*segment.Sector
	if n := st.LogBytes - before.LogBytes; n > limit {
		t.Errorf("%d bytes of blocks took %d", stored, n)
	}
	same(t, v, 0, want)
	recount(t, e)
}

// destaged writes a record and lets the journal go to the device.
func destaged(t testing.TB, v *Volume, r *Record) {
	t.Helper()
	if err := lay(v, r); err != nil {
		t.Fatal(err)
	}
	if err := v.e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
}

// TestMovedAsItIs proves that the cleaner moves compressed blocks byte for byte, and compresses
// what was plain, by what is for cold data.
func TestMovedAsItIs(t *testing.T) {
	dev, _, e, v := packedDevice(t, compress.OnlyS2)
	defer e.Abandon()
	all := text(0, 100, 1)
	want := bytes.Clone(all.Data)
	destaged(t, v, all)
	v.SetCompression(compress.Off)
	plain := text(1024, 100, 2)
	wantPlain := bytes.Clone(plain.Data)
	destaged(t, v, plain)
	v.SetCompression(compress.Auto)
	stored := func(loc segment.Loc) []byte {
		from, to := loc.Span()
		b := backends.AlignedBuffer(int(to - from))
		if err := dev.ReadAt(b, from); err != nil {
			t.Fatal(err)
		}
		return b[loc.Off()-from:][:loc.Stored()]
	}
	was := locsOf(t, v, 0, 100)
	var bytesOf [][]byte
	for _, loc := range was {
		bytesOf = append(bytesOf, stored(loc))
	}
	moveAll(t, e)
	for i, loc := range locsOf(t, v, 0, 100) {
		if loc == was[i] || !bytes.Equal(stored(loc), bytesOf[i]) {
			t.Fatalf("block %d was moved from %x to %x", i, uint64(was[i]), uint64(loc))
		}
	}
	for i, loc := range locsOf(t, v, 1024, 100) {
		if !loc.Packed() || codecOf(stored(loc)) != compress.Zstd {
			t.Fatalf("block %d stands at %x", 1024+i, uint64(loc))
		}
	}
	same(t, v, 0, want)
	same(t, v, 1024, wantPlain)
	recount(t, e)
}

// TestHurriedMove proves that the cleaner takes the fast codec while hosts wait for what it cleans.
func TestHurriedMove(t *testing.T) {
	_, _, e, v := packedDevice(t, compress.Off)
	defer e.Abandon()
	destaged(t, v, text(0, 64, 1))
	v.SetCompression(compress.Auto)
	e.space.waiting.Add(1)
	moveAll(t, e)
	e.space.waiting.Add(-1)
	for i, loc := range locsOf(t, v, 0, 64) {
		from, to := loc.Span()
		b := backends.AlignedBuffer(int(to - from))
		if err := e.dev.ReadAt(b, from); err != nil {
			t.Fatal(err)
		}
		if !loc.Packed() || codecOf(b[loc.Off()-from:]) != compress.S2 {
			t.Fatalf("block %d stands at %x", i, uint64(loc))
		}
	}
}

// TestSmallBlocksPack proves that the cleaner fills its segments with blocks of one unit, whose
// entries take more than those of plain ones, as far as the space counts on: else a device would be
// full before it says so.
func TestSmallBlocksPack(t *testing.T) {
	for _, size := range []int64{64 << 10, 256 << 10} {
		segments := 40 + (6<<20)/size
		dev := newMem(t, segment.DataOff+segments*size+segment.Guard+segment.Sector, int(size), 1)
		e := open(t, dev, quiet, journaled(newMemory(t, dev, 14)))
		v := create(t, e, 16*domain.MiB)
		v.SetCompression(compress.OnlyS2)
		for b := range uint64(1500) {
			if err := put(v, data(b, 1, b*4+4)); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
		moveAll(t, e)
		full := 0
		for id, sg := range e.space.mu.segs {
			_, st, live := e.space.life(uint32(id))
			if st != segSealed || sg.stream != segment.StreamGen1 {
				continue
			}
			if full++; live < e.space.packed.Load() {
				t.Errorf("a segment of %d holds %d bytes of %d", size, live, e.space.packed.Load())
			}
		}
		if full == 0 {
			t.Errorf("no segment of %d was filled", size)
		}
		e.Abandon()
	}
}

// moveAll moves what lives in every sealed segment of the log, as the cleaner does.
func moveAll(t testing.TB, e *Engine) {
	t.Helper()
	for _, l := range e.lanes { // a segment that is open is not moved
		l.seal.Lock()
		if l.open != nil {
			e.closeSegment(l.open)
			l.setOpen(nil)
		}
		l.seal.Unlock()
	}
	e.behind.Wait()
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	var list []victim
	for id, sg := range e.space.mu.segs {
		if seq, st, live := e.space.life(uint32(id)); st == segSealed && live > 0 {
			list = append(list, victim{id: uint32(id), seq: seq, stream: sg.stream})
		}
	}
	c := e.newCleaner()
	defer c.settle()
	for _, v := range list {
		if err := c.segment(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.end(); err != nil {
		t.Fatal(err)
	}
}

// TestCompressedDamage proves that every sector which holds a part of a compressed block, spoiled,
// is found: by a read, by the scrub and by the checker, and gives no other block (E10, E18).
func TestCompressedDamage(t *testing.T) {
	dev, _, e, v := packedDevice(t, compress.OnlyS2, func(c *Config) { c.Report = func(Fact) {} })
	r := text(0, 24, 1)
	want := bytes.Clone(r.Data)
	destaged(t, v, r)
	locs, buf := locsOf(t, v, 0, 24), backends.AlignedBuffer(segment.BlockSize)
	sector := backends.AlignedBuffer(segment.Sector)
	for i, loc := range locs {
		for at := loc.Off(); at < loc.Off()+int64(loc.Stored()); at += 61 {
			start := at / segment.Sector * segment.Sector
			if err := dev.ReadAt(sector, start); err != nil {
				t.Fatal(err)
			}
			sector[at-start] ^= 1 << (at % 8)
			if err := dev.WriteAt(sector, start, true); err != nil {
				t.Fatal(err)
			}
			for block := range uint64(24) {
				err := v.Read(block, 1, buf)
				whole := bytes.Equal(buf, want[block*segment.BlockSize:(block+1)*segment.BlockSize])
				if block == uint64(i) && domain.KindOf(err) != domain.Corrupt ||
					block != uint64(i) && (err != nil || !whole) {
					t.Fatalf("byte %d of block %d turned over: block %d gives %v", at, i, block, err)
				}
			}
			sector[at-start] ^= 1 << (at % 8)
			if err := dev.WriteAt(sector, start, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	spoilt := locs[7].Off()
	start := spoilt / segment.Sector * segment.Sector
	if err := dev.ReadAt(sector, start); err != nil {
		t.Fatal(err)
	}
	sector[spoilt-start] ^= 1
	if err := dev.WriteAt(sector, start, true); err != nil {
		t.Fatal(err)
	}
	found, _, _ := scrubbed(t, e, 0)
	if len(found) != 1 || found[0].Block != 7 || found[0].Part != "block" ||
		found[0].Version.Seq == 0 {
		t.Errorf("the scrub found %+v", found)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Data: true})
	if err != nil || len(res.Problems) != 1 || res.Problems[0].Block != 7 {
		t.Errorf("the checker found %+v: %v", res.Problems, err)
	}
}

// TestWrongBlockUnpacked proves that the checksum inside of a compressed block is looked at: one
// that verifies as it stands and becomes something else is corrupt.
func TestWrongBlockUnpacked(t *testing.T) {
	dev, _, e, v := packedDevice(t, compress.OnlyS2, func(c *Config) { c.Report = func(Fact) {} })
	defer e.Abandon()
	destaged(t, v, text(0, 1, 1))
	loc := locsOf(t, v, 0, 1)[0]
	from, to := loc.Span()
	b := backends.AlignedBuffer(int(to - from))
	if err := dev.ReadAt(b, from); err != nil {
		t.Fatal(err)
	}
	stored := b[loc.Off()-from:][:loc.Stored()]
	stored[0] ^= 1 // of the checksum of the block
	if err := dev.WriteAt(b, from, true); err != nil {
		t.Fatal(err)
	}
	l := v.lane(0)
	l.mu.Lock()
	lf := v.fam.leaves[l.no][0].of(v.br.Load())
	l.put(lf, 0, segment.MakePacked(loc.Addr(), loc.Units(), segment.Checksum(stored)))
	l.mu.Unlock()
	err := v.Read(0, 1, backends.AlignedBuffer(segment.BlockSize))
	if domain.KindOf(err) != domain.Corrupt {
		t.Errorf("read gives %v", err)
	}
}

// TestOverwrittenCompressed proves that writing over compressed blocks what does not become smaller
// is refused before the device cannot hold it, not after: room is asked for the difference (E9).
func TestOverwrittenCompressed(t *testing.T) {
	dev := newMem(t, segment.DataOff+40*(64<<10)+segment.Guard+segment.Sector, 64<<10, 1)
	nv := newMemory(t, dev, 14)
	e := open(t, dev, often, journaled(nv))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	v.SetCompression(compress.OnlyS2)
	full := func(err error) bool { return domain.KindOf(err) == domain.NoSpace }
	drain := func() {
		t.Helper()
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
	}
	n := uint64(0)
	for ; n < 4096; n++ { // it holds more than it could plain
		err := put(v, data(n, 1, n*4+4)) // one unit each
		if full(err) {
			drain()
			if err = put(v, data(n, 1, n*4+4)); full(err) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if usable := uint64(e.Stats().UsableBytes) / segment.BlockSize; n < usable*2 {
		t.Errorf("%d blocks in room for %d", n, usable)
	}
	model, refused := map[uint64]uint64{}, 0
	for b := range n {
		model[b] = b*4 + 4
	}
	for b := range n {
		switch err := put(v, data(b, 1, b*4+3)); { // not one byte less
		case full(err):
			refused++
		case err != nil:
			t.Fatal(err)
		default:
			model[b] = b*4 + 3
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	drain()
	for b, want := range model {
		check(t, v, b, want)
	}
	if st := e.Stats(); st.LiveBytes > st.UsableBytes {
		t.Errorf("%d bytes live in %d", st.LiveBytes, st.UsableBytes)
	}
	recount(t, e)
}

// TestCompressedAndEncrypted proves that a block is closed after it was compressed: it takes as
// much less, nothing of it stands in clear, no nonce comes twice, it is moved and read (E12c).
func TestCompressedAndEncrypted(t *testing.T) {
	seen := newPairs(t)
	dev, nv, e, v := packedDevice(t, compress.Auto, seen.into, func(c *Config) {
		c.Report = func(Fact) {}
	})
	secret := bytes.Repeat([]byte("a secret that nobody is to see. "), segment.BlockSize/32)
	want := bytes.Repeat(secret, 60)
	r := &Record{Kind: segment.KindData, Block: 0, Count: 60, Data: bytes.Clone(want)}
	if err := lay(v, r); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		if round == 0 {
			if err := e.nv.drain(background); err != nil {
				t.Fatal(err)
			}
		} else {
			moveAll(t, e)
		}
		for i, loc := range locsOf(t, v, 0, 60) {
			if !loc.Packed() {
				t.Fatalf("block %d stands at %x", i, uint64(loc))
			}
		}
		same(t, v, 0, want)
		if bytes.Contains(bytesOf(t, dev), []byte("secret")) {
			t.Fatal("it stands in clear")
		}
	}
	if len(seen.of) < 2*60 {
		t.Errorf("%d blocks were closed", len(seen.of))
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dev, quiet, keyed, journaled(nv))
	defer e.Abandon()
	v = mustVolume(t, e)
	same(t, v, 0, want)
	recount(t, e)
}

// TestCompressedWrittenAgain proves that compressed blocks of an encrypted volume whose group has
// to be written again are closed anew where they come to stand then (E11, E12c).
func TestCompressedWrittenAgain(t *testing.T) {
	inner := recorded(t, smallSize, 64<<10, 1)
	b, nv, told := &barrier{Device: inner}, newMemory(t, inner, 40), &facts{}
	e := filled(t, b, nv, 48, told.into, newPairs(t).into)
	mustVolume(t, e).SetCompression(compress.OnlyS2)
	b.mu.Lock()
	b.failing = 1
	b.mu.Unlock()
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if st := e.Stats(); st.PackedBlocks == 0 || told.count("write-error") != 1 || b.fua == 0 {
		t.Errorf("%d blocks compressed, %d written again, told %+v", st.PackedBlocks, b.fua, told.list)
	}
	recount(t, e)
	for n := range uint64(48) {
		check(t, mustVolume(t, e), n*3, n+1)
	}
	e.Abandon()
	e = open(t, inner.CrashImage(inner.Ops(), mem.None), keyed, journaled(nv))
	defer e.Abandon()
	for n := range uint64(48) {
		check(t, mustVolume(t, e), n*3, n+1)
	}
}

// TestCompressedCached proves that the cache serves compressed blocks without the device, whole.
func TestCompressedCached(t *testing.T) {
	dev, _, e, v := packedDevice(t, compress.OnlyS2, func(c *Config) { c.Reads = cache.New(4 << 20) })
	defer e.Abandon()
	r := text(0, 256, 1)
	want := bytes.Clone(r.Data)
	destaged(t, v, r)
	for _, at := range []uint64{9, 30, 4} {
		for range 3 {
			same(t, v, at, want[at*segment.BlockSize:(at+2)*segment.BlockSize])
		}
		before := dev.Stats().Reads
		same(t, v, at, want[at*segment.BlockSize:(at+2)*segment.BlockSize])
		if n := dev.Stats().Reads - before; n != 0 {
			t.Errorf("%d reads of what is cached", n)
		}
	}
	for at := uint64(0); at < 256; at += 4 { // a stream, some of it read ahead
		same(t, v, at, want[at*segment.BlockSize:(at+4)*segment.BlockSize])
	}
}

// TestCompressedJournalRot proves that a block that goes bad in the journal is not compressed into
// one that looks sound: it is lost, told, and what stands beside it is not (E10, J5).
func TestCompressedJournalRot(t *testing.T) {
	told := &facts{}
	_, nv, e, v := packedDevice(t, compress.OnlyS2, told.into)
	defer e.Abandon()
	r := text(0, 9, 1)
	want := bytes.Clone(r.Data)
	if err := lay(v, r); err != nil {
		t.Fatal(err)
	}
	nv.Bytes()[int64(e.nv.place(locsOf(t, v, 4, 1)[0]))*segment.BlockSize+77] ^= 4
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	if told.count("corrupt") != 1 || told.list[0].Block != 4 {
		t.Errorf("told %+v", told.list)
	}
	err := v.Read(4, 1, backends.AlignedBuffer(segment.BlockSize))
	if !domain.IsKind(err, domain.Corrupt) || locsOf(t, v, 4, 1)[0] != segment.LostLoc {
		t.Errorf("it stands at %x and reads %v", uint64(locsOf(t, v, 4, 1)[0]), err)
	}
	same(t, v, 0, want[:4*segment.BlockSize])
	same(t, v, 5, want[5*segment.BlockSize:])
	recount(t, e)
}

// TestCompressedFamily proves that snapshots and clones share compressed blocks, that what is
// written behind a cut is compressed as before, and that all they take is given back.
func TestCompressedFamily(t *testing.T) {
	_, _, e, v := packedDevice(t, compress.OnlyS2)
	defer e.Abandon()
	snap, copied := domain.SnapshotID{UUID: domain.UUID{7}}, domain.VolumeID{UUID: domain.UUID{8}}
	first, second := text(0, 32, 1), text(0, 16, 2)
	old, now := bytes.Clone(first.Data), bytes.Clone(second.Data)
	write := func(v *Volume, r *Record) {
		t.Helper()
		if err := lay(v, r); err != nil {
			t.Fatal(err)
		}
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
	}
	write(v, first)
	if err := e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snap}); err != nil {
		t.Fatal(err)
	}
	write(v, second)
	c, err := e.Clone(background, snap, copied, 1)
	if err != nil {
		t.Fatal(err)
	}
	if c.Compression() != compress.OnlyS2 || v.Info().Saved == 0 {
		t.Errorf("the clone is compressed by %d, the volume is %+v", c.Compression(), v.Info())
	}
	room := func(v *Volume, count int) (n domain.Bytes) {
		for i, loc := range locsOf(t, v, 0, count) {
			if !loc.Packed() {
				t.Fatalf("block %d stands at %x", i, uint64(loc))
			}
			n += domain.Bytes(loc.Room())
		}
		return n
	}
	if i := v.Info(); i.Own != room(v, 16) || i.Own+i.Shared != room(v, 32) {
		t.Errorf("%+v, of %d bytes of room", i, room(v, 32))
	}
	if i := c.Info(); i.Own != 0 || i.Shared != room(c, 32) {
		t.Errorf("%+v, of %d bytes of room", i, room(c, 32))
	}
	moveAll(t, e)
	same(t, c, 0, old)
	same(t, v, 0, append(bytes.Clone(now), old[len(now):]...))
	recount(t, e)
	for _, drop := range []func() error{
		func() error { return e.Delete(background, testVolume) },
		func() error { return e.DeleteSnapshot(background, snap) },
		func() error { return e.Delete(background, copied) },
	} {
		if err := drop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	recount(t, e)
	if st := e.Stats(); st.LiveBytes != 0 || st.SavedBytes != 0 {
		t.Errorf("left behind: %+v", st)
	}
}

// TestOlderDevice proves that a device of an earlier version is marked when it is opened, in all
// copies, before its images say what an earlier reader would take for something else.
func TestOlderDevice(t *testing.T) {
	dev := newMem(t, 64<<20, 512<<10, 1)
	sb, err := readSuper(dev)
	if err != nil {
		t.Fatal(err)
	}
	sb.Incompat &^= segment.IncompatPacked
	b := backends.AlignedBuffer(segment.Sector)
	sb.Encode(b)
	for _, off := range sb.SuperOffsets() {
		if err := dev.WriteAt(b, off, true); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dev).Abandon()
	for _, off := range sb.SuperOffsets() {
		if err := dev.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		now, err := segment.DecodeSuperblock(b)
		if err != nil || now.Incompat&segment.IncompatPacked == 0 || now.Generation != sb.Generation+1 {
			t.Errorf("at %d: %+v: %v", off, now, err)
		}
	}
}

// TestCompressionAllocatesNothing gates a 4 KiB read of a compressed volume.
func TestCompressionAllocatesNothing(t *testing.T) {
	for _, mode := range []compress.Mode{compress.OnlyS2, compress.OnlyZstd} {
		_, _, e, v := packedDevice(t, mode)
		if err := lay(v, text(0, 64, 1)); err != nil {
			t.Fatal(err)
		}
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
		buf := backends.AlignedBuffer(segment.BlockSize)
		n := testing.AllocsPerRun(200, func() {
			if err := v.Read(11, 1, buf); err != nil {
				t.Fatal(err)
			}
		})
		if n > 0 && !raceOn {
			t.Errorf("mode %d: %v allocations a read", mode, n)
		}
		e.Abandon()
	}
}

// BenchmarkCompressed gives the CPU of a block of 4 KiB through the journal to the device, hosts'
// part included, and of a read, by what it holds and how it is compressed.
func BenchmarkCompressed(b *testing.B) {
	for _, mode := range []compress.Mode{compress.Off, compress.OnlyS2, compress.OnlyZstd} {
		for name, n := range map[string]uint64{"random": 3, "text": 1026} {
			label := fmt.Sprintf("%s/%s", []string{"off", "s2", "zstd"}[mode], name)
			b.Run("write/"+label, func(b *testing.B) {
				dev := endless(b)
				dev.forget = true
				e := open(b, dev, quiet, journaled(newMemory(b, dev, 40)))
				b.Cleanup(e.Abandon)
				v := create(b, e, 1*domain.GiB)
				v.SetCompression(mode)
				done, at, r := make(signal, 1), uint64(0), data(0, 1, n)
				r.To = done
				b.SetBytes(segment.BlockSize)
				began := cpu(b)
				for b.Loop() {
					r.Block, at = at, (at+1)%(256<<10)
					v.Append(r)
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
				if err := e.nv.drain(background); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
				st := e.Stats()
				b.ReportMetric(float64(st.LogBytes)/float64(st.UserBytes), "written/byte")
			})
			b.Run("read/"+label, func(b *testing.B) {
				_, _, e, v := packedDevice(b, mode)
				b.Cleanup(e.Abandon)
				if err := lay(v, data(0, 64, n)); err != nil {
					b.Fatal(err)
				}
				if err := e.nv.drain(background); err != nil {
					b.Fatal(err)
				}
				rnd, buf := newRand(1), backends.AlignedBuffer(segment.BlockSize)
				b.ReportAllocs()
				began := cpu(b)
				for b.Loop() {
					if err := v.Read(rnd.Uint64N(64), 1, buf); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}
