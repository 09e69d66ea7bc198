package engine

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/fsck"
	"weft/dataplane/journal"
	"weft/dataplane/segment"
	"weft/domain"
)

var testKey = bytes.Repeat([]byte{0x5a}, keyBytes)

// keyed gives an engine the cluster key: volumes that tests make on it are encrypted.
func keyed(c *Config) { c.ClusterKey = testKey }

// pairs records under which key and nonce blocks are closed.
type pairs struct {
	t  testing.TB
	mu sync.Mutex
	of map[[28]byte]bool
}

func newPairs(t testing.TB) *pairs { return &pairs{t: t, of: map[[28]byte]bool{}} }

func (p *pairs) into(c *Config) {
	c.ClusterKey = testKey
	c.closing = p.note
}

// note tells a key by what it makes of nothing, under a nonce that no block has: block 0 of a
// segment is its header.
func (p *pairs) note(a cipher.AEAD, nonce, _ []byte) {
	var k [28]byte
	a.Seal(k[:0], make([]byte, 12), nil, []byte("which key"))
	copy(k[16:], nonce)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[k] {
		p.t.Errorf("key %x closes a second block under nonce %x", k[:4], nonce)
	}
	p.of[k] = true
}

func (p *pairs) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.of)
}

// saved is a device at one moment, with its journal, and what was on it.
type saved struct {
	dev   *mem.Device
	nv    *mem.Memory
	vols  map[domain.VolumeID]*image
	snaps map[domain.SnapshotID]*image
	of    map[domain.SnapshotID]domain.VolumeID
}

// bytesOf reads a whole device at one moment.
func bytesOf(t testing.TB, dev *mem.Device) []byte {
	t.Helper()
	b := backends.AlignedBuffer(int(dev.Geometry().Size))
	if err := dev.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *families) save() saved {
	if f.nv != nil { // device and journal of one moment: nothing goes from here to there
		defer undestaged(f.e.nv)()
	}
	dev, err := mem.New(mem.Config{Size: f.dev.Geometry().Size, Durability: backends.NeedsFlush})
	f.must(err)
	f.must(dev.WriteAt(bytesOf(f.t, f.dev), 0, true))
	var nv *mem.Memory
	if f.nv != nil {
		nv, err = mem.NewMemory(f.nv.Geometry().Size, f.nv.Geometry().Durability)
		f.must(err)
		copy(nv.Bytes(), f.nv.Bytes())
	}
	s := saved{
		dev,
		nv,
		map[domain.VolumeID]*image{},
		map[domain.SnapshotID]*image{},
		map[domain.SnapshotID]domain.VolumeID{},
	}
	for id, m := range f.vols {
		s.vols[id] = m.clone()
	}
	for id, m := range f.snaps {
		s.snaps[id], s.of[id] = m.clone(), f.of[id]
	}
	return s
}

// restore goes on with an older state of device and journal, as an operator does who copies images
// back.
func (f *families) restore(s saved) {
	f.e.Abandon()
	f.dev, f.nv, f.vols, f.snaps, f.of = s.dev, s.nv, s.vols, s.snaps, s.of
	f.e = f.open()
}

// TestNoPairTwice runs encrypted families by chance, with snapshots, clones, roll-backs, deletions,
// cleaning, crashes, and devices that go back to an older image of themselves: no key closes two
// blocks under one nonce (E12c, R24, R25). With a journal, whose image goes back too, blocks are
// closed there as well, and destaging is in between.
func TestNoPairTwice(t *testing.T) {
	steps := 1500
	if raceOn || testing.Short() {
		steps = 240
	}
	cleaned := int64(0)
	for seed := range uint64(4) {
		p := newPairs(t)
		dev := newMem(t, segment.DataOff+48*(128<<10)+segment.Guard+segment.Sector, 128<<10, 2)
		var nv *mem.Memory
		if seed%2 == 1 {
			nv = newMemory(t, dev, 14)
		}
		f := newFamiliesOn(t, dev, nv, seed, p.into)
		f.create()
		f.create()
		var old saved
		for i := range steps {
			f.step()
			switch {
			case nv != nil && i%160 == 79:
				f.restart(false)
			case i%80 == 39:
				old = f.save()
			case i%80 == 79:
				f.was.Cleaned += f.e.Stats().Cleaned
				f.restore(old)
			}
			if i%200 == 199 && !raceOn {
				f.audit()
			}
		}
		f.audit()
		f.restart(true)
		f.audit()
		if cleaned += f.was.Cleaned; p.count() < steps {
			t.Errorf("seed %d: %d pairs", seed, p.count())
		}
		f.must(f.e.Close())
	}
	if cleaned == 0 {
		t.Error("nothing was cleaned: the test tests too little")
	}
}

// TestEncryptedCrash cuts the power under an encrypted volume at every write and flush, and goes on
// from each image: what was acknowledged is there, in order, and no pair is used twice over all of
// them (E1, E2, E12c). With a journal, at every Persist too (E14).
func TestEncryptedCrash(t *testing.T) { rounds(t, encryptedCrash) }

func encryptedCrash(c *crashes) {
	t := c.t
	p := newPairs(t)
	s := newScriptOn(t, crashDevice(t, 44, 1), nil, c.seed(3), spread(4, 24, 10), p.into)
	s.dev.StartHistory()
	s.run(400, 8)
	st := s.e.Stats()
	c.need(st.Cleaned > 0 && st.Checkpoints > 2, "the script never cleaned: %+v", st)
	s.e.Abandon()
	s.enumerate(c, images()/10)
	dev := crashDevice(t, 40, 2)
	j := newScriptOn(t, dev, newMemory(t, dev, 10), c.seed(31), spread(3, 4, 6), p.into)
	j.runJournal(c, func() {
		for range 4 {
			j.run(20, 6)
			if err := j.e.nv.drain(background); err != nil {
				t.Fatal(err)
			}
		}
	}, images()/20)
	t.Logf("%d pairs", p.count())
}

// TestEncryptedWriteFails lets writes of chunks fail, so that they are written again elsewhere:
// under keys of the new place, and what is acknowledged is read back, also after a crash, whose
// recovery follows the chain over the chunks that stand elsewhere.
func TestEncryptedWriteFails(t *testing.T) {
	p := newPairs(t)
	base := newMem(t, 32<<20, 256<<10, 1)
	dev := &failing{Device: base, every: 5}
	told := &facts{}
	e := open(t, dev, p.into, quiet, told.into)
	v := create(t, e, 16*domain.MiB)
	dev.armed.Store(true)
	for i := range uint64(60) {
		if err := put(v, data(i*3, 2, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	dev.armed.Store(false)
	verify := func(v *Volume) {
		for i := range uint64(60) {
			check(t, v, i*3, i+1)
			check(t, v, i*3+1, i+1)
		}
	}
	verify(v)
	if told.count("write-error") < 5 {
		t.Errorf("%d writes failed: the test tests too little", told.count("write-error"))
	}
	e.Abandon()
	told = &facts{}
	e = open(t, base, p.into, told.into)
	defer e.Abandon()
	v, _ = e.Volume(testVolume)
	verify(v)
	if len(told.list) > 0 {
		t.Errorf("reported %+v", told.list)
	}
}

// failing is a device that fails every so many writes of chunks to the log.
type failing struct {
	*mem.Device
	every int64
	n     atomic.Int64
	armed atomic.Bool
}

func (d *failing) WriteAt(p []byte, off int64, fua bool) error {
	if d.armed.Load() && len(p) > segment.Sector && d.n.Add(1)%d.every == 0 {
		return errors.New("no")
	}
	return d.Device.WriteAt(p, off, fua)
}

// inClear counts the places where a block that a test wrote stands in clear: eight equal small
// numbers in a row.
func inClear(b []byte) int {
	n := 0
	for at := 0; at+64 <= len(b); at += 64 {
		w := binary.LittleEndian.Uint64(b[at:])
		same := w != 0 && w < 1<<20
		for i := 8; i < 64 && same; i += 8 {
			same = binary.LittleEndian.Uint64(b[at+i:]) == w
		}
		if same {
			n++
		}
	}
	return n
}

// TestNothingInClear writes what can be recognised to encrypted volumes by every way to the device:
// the log, the journal, the cleaner, destaging, snapshots and clones, and then looks at every byte
// of device and journal, also while the journal is full of records. The same run without keys shows
// that it would be found.
func TestNothingInClear(t *testing.T) {
	steps := 400
	if raceOn {
		steps = 100
	}
	for _, secret := range []bool{true, false} {
		for _, journal := range []bool{false, true} {
			dev := newMem(t, segment.DataOff+100*(128<<10)+segment.Guard+segment.Sector, 128<<10, 2)
			var nv *mem.Memory
			if journal {
				nv = newMemory(t, dev, 14)
			}
			var tune []func(*Config)
			if secret {
				tune = append(tune, keyed)
			}
			f := newFamiliesOn(t, dev, nv, 5, tune...)
			f.create()
			f.create()
			for i := range steps {
				f.step()
				if journal && i%25 == 0 {
					release := still(f.e)
					n := inClear(nv.Bytes())
					release()
					if secret && n > 0 {
						t.Fatalf("step %d: %d places of the journal in clear", i, n)
					}
				}
			}
			f.restart(true)
			if n := inClear(bytesOf(t, dev)); secret != (n == 0) {
				t.Errorf("encrypted %t, journal %t: %d places in clear", secret, journal, n)
			}
			f.must(f.e.Close())
			if journal && secret != (inClear(nv.Bytes()) == 0) {
				t.Errorf("encrypted %t: %d places of the journal in clear", secret, inClear(nv.Bytes()))
			}
		}
	}
}

// wrappedOn gives, for each key of a device's table, its wrapped bytes.
func wrappedOn(e *Engine) [][]byte {
	var list [][]byte
	for _, p := range e.keys.pages {
		for _, k := range p.Keys {
			list = append(list, k.Wrapped)
		}
	}
	return list
}

// TestErase proves that deleting destroys keys and takes no clone with them (R26): while a clone
// sees what its origin wrote the origin's key stays, over restarts too, though origin and snapshot
// are gone; when nobody needs a key any more no byte of it is on the device.
func TestErase(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 2)
	e := open(t, dev, keyed)
	v := create(t, e, 16*domain.MiB)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(20) {
		must(put(v, data(i, 1, i+1)))
	}
	must(e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}))
	must(put(v, data(3, 1, 300)))
	c, err := e.Clone(background, snapID(1), volID(1), 1)
	must(err)
	must(put(c, data(4, 1, 400)))
	first := wrappedOn(e)
	if len(first) != 2 || !v.Encrypted() || !c.Encrypted() {
		t.Fatalf("%d keys for a volume and its clone", len(first))
	}
	must(e.Delete(background, testVolume))
	must(e.DeleteSnapshot(background, snapID(1)))
	sees := func() {
		t.Helper()
		for i := range uint64(20) {
			want := i + 1
			if i == 4 {
				want = 400
			}
			check(t, c, i, want)
		}
	}
	sees()
	for _, clean := range []bool{true, false} {
		if clean {
			must(e.Close())
		}
		e.Abandon()
		e = open(t, dev, keyed)
		c, _ = e.Volume(volID(1))
		sees()
		if n := len(wrappedOn(e)); n != 2 {
			t.Fatalf("%d keys while the clone needs two", n)
		}
	}
	recount(t, e)
	must(put(c, data(0, 10, 7))) // hides all that the origin wrote
	must(put(c, data(10, 10, 7)))
	must(e.Checkpoint())
	must(e.Close())
	e = open(t, dev, keyed)
	c, _ = e.Volume(volID(1))
	check(t, c, 5, 7)
	if n := len(wrappedOn(e)); n != 1 {
		t.Errorf("%d keys while the clone needs its own only", n)
	}
	must(e.Delete(background, volID(1)))
	all := bytesOf(t, dev)
	for i, w := range first {
		if bytes.Contains(all, w) {
			t.Errorf("key %d is still on the device", i)
		}
	}
	must(e.Close())
}

// TestEraseIsCutShort cuts the power at every write of a deletion: a volume that is there after the
// cut can be read, and of one that is gone no key is left once the device was opened.
func TestEraseIsCutShort(t *testing.T) {
	dev := recorded(t, 16<<20, 256<<10, 1)
	e := open(t, dev, keyed)
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 4, 9)); err != nil {
		t.Fatal(err)
	}
	begun, was := dev.Ops(), wrappedOn(e)[0]
	if err := e.Delete(background, testVolume); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	there, gone := 0, 0
	for at := begun; at <= dev.Ops(); at++ {
		for seed := range uint64(6) {
			img := dev.CrashImage(at, mem.Random(seed))
			e := open(t, img, keyed)
			v, ok := e.Volume(testVolume)
			if ok {
				check(t, v, 3, 9)
				there++
			} else if gone++; bytes.Contains(bytesOf(t, img), was) {
				t.Errorf("cut at %d: the volume is gone and its key is there", at)
			}
			e.Abandon()
		}
	}
	if there == 0 || gone == 0 {
		t.Errorf("%d images with the volume, %d without", there, gone)
	}
}

// TestCreateIsCutShort cuts the power at every write of the making of a volume and a clone: what is
// there after the cut has its key, and what is not has left none.
func TestCreateIsCutShort(t *testing.T) {
	dev := recorded(t, 16<<20, 256<<10, 1)
	e := open(t, dev, keyed)
	begun := dev.Ops()
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(0, 1, 9)); err != nil {
		t.Fatal(err)
	}
	if err := e.Snapshot(background, Cut{Volume: testVolume, Snapshot: snapID(1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Clone(background, snapID(1), volID(1), 1); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	seen := map[int]int{}
	for at := begun; at <= dev.Ops(); at++ {
		for seed := range uint64(4) {
			e := open(t, dev.CrashImage(at, mem.Random(seed)), keyed)
			for _, v := range e.Volumes() {
				if err := put(v, data(1, 1, 5)); err != nil {
					t.Fatalf("cut at %d: %v", at, err)
				}
				check(t, v, 1, 5)
			}
			n := len(e.Volumes())
			if keys := len(wrappedOn(e)); keys != n {
				t.Errorf("cut at %d: %d keys of %d volumes", at, keys, n)
			}
			seen[n]++
			e.Abandon()
		}
	}
	if seen[0] == 0 || seen[1] == 0 || seen[2] == 0 {
		t.Errorf("images with so many volumes: %v", seen)
	}
}

// TestKeyMissing opens a device without its cluster key and with another: encrypted volumes say so
// and nothing of them is lost, plain ones are written and cleaned as ever, the checker finds the
// device sound, and with the right key everything is back.
func TestKeyMissing(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	e := open(t, dev, keyed)
	secret := create(t, e, 16*domain.MiB)
	plain, err := e.Create(background, volID(1), 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(300) {
		if err := put(secret, data(i*2, 1, i+1)); err != nil {
			t.Fatal(err)
		}
		if err := put(plain, data(i*2, 2, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	e.Abandon()
	other := bytes.Repeat([]byte{1}, keyBytes)
	for n, key := range [][]byte{nil, other} {
		told := &facts{}
		e = open(t, dev, often, told.into, func(c *Config) { c.ClusterKey = key })
		secret, _ = e.Volume(testVolume)
		plain, _ = e.Volume(volID(1))
		buf := backends.AlignedBuffer(segment.BlockSize)
		for _, err := range []error{
			secret.Keyless(), secret.Read(0, 1, buf), put(secret, data(0, 1, 1)),
		} {
			if !errors.Is(err, ErrKeyMissing) || !domain.IsKind(err, domain.Unavailable) {
				t.Fatalf("key %d: %v", n, err)
			}
		}
		if !bytes.Equal(buf, make([]byte, len(buf))) {
			t.Fatalf("key %d: a refused read gives bytes", n)
		}
		if _, err := e.CreateEncrypted(background, volID(2+n), 4*domain.MiB, 1); n == 0 &&
			!domain.IsKind(err, domain.Unavailable) {
			t.Fatalf("encrypted without a key: %v", err)
		}
		if plain.Keyless() != nil || plain.Encrypted() {
			t.Fatal("the plain volume wants a key")
		}
		rnd := newRand(uint64(n))
		for i := range uint64(5000) {
			if err := put(plain, data(rnd.Uint64N(900), 2, 1000+i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := put(plain, data(999, 1, 5)); err != nil {
			t.Fatal(err)
		}
		if e.Stats().Cleaned == 0 {
			t.Error("nothing was cleaned: the test tests too little")
		}
		check(t, plain, 999, 5)
		if told.count("keyless") == 0 || told.count("corrupt") > 0 {
			t.Errorf("told %+v", told.list)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Data: true})
		if err != nil || !r.Sound() {
			t.Fatalf("%v, %+v", err, r.Problems)
		}
	}
	e = open(t, dev, keyed)
	defer e.Close()
	secret, _ = e.Volume(testVolume)
	for i := range uint64(300) {
		check(t, secret, i*2, i+1)
	}
	recount(t, e)
}

// TestKeylessJournal proves that a device whose journal holds records of an encrypted volume is not
// opened without its key, since they could go to no disk, that nothing is lost by trying, and that
// with the key they are there.
func TestKeylessJournal(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	nv := newMemory(t, dev, 10)
	e := open(t, dev, keyed, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(5, 1, 55)); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	if n := inClear(nv.Bytes()); n > 0 {
		t.Errorf("%d places of the journal in clear", n)
	}
	for range 3 {
		cfg := Config{Device: dev, Cluster: testCluster, Node: 1}
		journaled(nv)(&cfg)
		if _, err := Open(background, cfg); !errors.Is(err, ErrKeyMissing) {
			t.Fatalf("opened: %v", err)
		}
	}
	e = open(t, dev, keyed, journaled(nv))
	v, _ = e.Volume(testVolume)
	check(t, v, 5, 55)
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	check(t, v, 5, 55)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	// What was destaged needs no journal's key: the volume is refused, and the device opens.
	e = open(t, dev, journaled(nv))
	defer e.Abandon()
	if v, _ = e.Volume(testVolume); !errors.Is(v.Keyless(), ErrKeyMissing) {
		t.Errorf("%v", v.Keyless())
	}
}

// tamperKept turns a bit of the newest record of the journal, which is of one block, and puts right
// all checksums that its reader sees.
func tamperKept(e *Engine, nv *mem.Memory, v *Volume, block uint64, entry bool) {
	n, l := e.nv, v.lane(block)
	l.mu.Lock()
	defer l.mu.Unlock()
	br := v.br.Load()
	lf := br.fam.leaves[l.no][uint32(block/segment.LeafBlocks)].of(br)
	was := lf.own.get(int(block % segment.LeafBlocks))
	at := int64(n.place(was)) * segment.BlockSize
	b := nv.Bytes()[at : at+segment.BlockSize]
	n.entryOf(was, func(_ *segment.Entry, raw []byte, _ int) {
		tag := bytes.Clone(segment.Tag(raw, 0))
		if entry {
			raw[28]++ // its generation, which its tag vouches for
		} else {
			b[100] ^= 1
		}
		segment.PutSeal(raw, 0, segment.Checksum(b), tag)
	})
	restampKept(n, nv, &n.slotAt(was).Slot)
	l.put(lf, int(block%segment.LeafBlocks), n.loc(n.place(was), segment.Checksum(b)))
}

// restampKept makes the commit word of a slot's last record right.
func restampKept(n *nvram, nv *mem.Memory, sl *journal.Slot) {
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	size := int64(n.share.Start(1)-n.share.Start(0)) * segment.BlockSize
	at := int64(n.share.Start(sl.No)+uint32(n.share.SlotBlocks()))*segment.BlockSize - size
	word := nv.Bytes()[at+128+8*int64(sl.Entries-1):][:8]
	low := le.Uint32(word)
	b := le.AppendUint64(nil, n.share.Header().ID)
	b = le.AppendUint64(b, sl.Sequence)
	b = le.AppendUint32(b, uint32(sl.Entries-1))
	b = le.AppendUint32(b, low)
	b = le.AppendUint32(b, uint32(sl.No))
	b = le.AppendUint32(b, uint32(sl.Lane))
	entry := nv.Bytes()[at+segment.Sector+int64(low&0xffff)*4:][:low>>16*4]
	le.PutUint32(word[4:], crc32.Checksum(append(b, entry...), table))
}

// TestForgedInJournal lets somebody who can write to the journal, and knows every checksum of its
// format, change a block, or whose it is: without the key the tag cannot be put right, so a scrub
// finds it, and destaging does not take it over, compressed or not, and says so.
func TestForgedInJournal(t *testing.T) {
	for i := range 4 {
		dev := newMem(t, 32<<20, 256<<10, 1)
		nv := newMemory(t, dev, 10)
		told := &facts{}
		e := open(t, dev, keyed, quiet, told.into, journaled(nv))
		v := create(t, e, 16*domain.MiB)
		if i%2 == 1 {
			v.SetCompression(compress.OnlyS2)
		}
		for b := range uint64(8) {
			if err := put(v, data(b, 1, b+1)); err != nil {
				t.Fatal(err)
			}
		}
		if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
			t.Fatalf("before: %+v", list)
		}
		tamperKept(e, nv, v, 7, i >= 2)
		list, _, _ := scrubbed(t, e, 0)
		if len(list) != 1 || list[0].Part != "journal" || list[0].Block != 7 ||
			list[0].Volume != testVolume || list[0].Version == (domain.Version{}) ||
			list[0].Detail != forged {
			t.Fatalf("%d: %+v", i, list)
		}
		key := v.br.Load().key
		v.br.Load().key = &volumeKey{id: key.id, why: "it is away"}
		if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
			t.Errorf("%d: without the key: %+v", i, list)
		}
		v.br.Load().key = key
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
		kindOf(t, v.Read(7, 1, backends.AlignedBuffer(segment.BlockSize)), domain.Corrupt)
		if told.count("corrupt") < 2 {
			t.Errorf("%d: told %+v", i, told.list)
		}
		for b := range uint64(7) {
			check(t, v, b, b+1)
		}
		e.Abandon()
	}
}

// TestJournalFullOfEntries fills the room for entries of a slot before that for data, with ranges,
// and then puts an encrypted record, whose entry is long: it does not meet the data.
func TestJournalFullOfEntries(t *testing.T) {
	dev := newMem(t, 256<<20, 4<<20, 1)
	e := open(t, dev, keyed, quiet, journaled(newMemory(t, dev, 8)))
	defer e.Close()
	v := create(t, e, 64*domain.MiB)
	if err := put(v, data(0, 1, 1)); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(journal.EntriesMax - 2) {
		r := data(2000+i, 1, 0)
		r.Kind, r.Data = segment.KindUnmap, nil
		if err := put(v, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(v, data(100, 64, 2)); err != nil {
		t.Fatal(err)
	}
	check(t, v, 0, 1)
	check(t, v, 163, 2)
	if used := e.nv.used.Load(); used != 2 {
		t.Errorf("%d slots", used)
	}
}

// TestJournalOfEarlierBuild gives the engine a slot that was filled before anything was encrypted
// in a journal: its record of an encrypted volume is read, scrubbed, and destaged, encrypted.
func TestJournalOfEarlierBuild(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	nv := newMemory(t, dev, 10)
	e := open(t, dev, keyed, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	if err := put(v, data(5, 1, 55)); err != nil {
		t.Fatal(err)
	}
	br, block := v.br.Load(), fill(2, 77)
	e.nv.mu.Lock()
	sl := journal.Slot{}
	e.nv.share.Open(&sl, e.nv.mu.free[0], 0, e.nv.mu.next, segment.Salt{})
	e.nv.share.Put(&sl, &segment.Entry{
		Branch: br.id, Block: 6, Count: 2, Kind: segment.KindData, Flags: segment.FlagFresh,
		Version: domain.Version{Epoch: br.epoch, Seq: 1 << 20, Node: 1}, Gen: br.gen,
		Units: 2 * segment.BlockUnits, CRC: segment.Checksum(block[:segment.BlockSize]),
	}, nil, []uint32{segment.Checksum(block[segment.BlockSize:])}, block, nil)
	e.nv.mu.Unlock()
	e.Abandon()
	e = open(t, dev, keyed, quiet, journaled(nv))
	defer e.Close()
	v = mustVolume(t, e)
	for range 2 {
		check(t, v, 5, 55)
		check(t, v, 6, 77)
		check(t, v, 7, 77)
		if list, _, _ := scrubbed(t, e, 0); len(list) > 0 {
			t.Fatalf("%+v", list)
		}
		if err := e.nv.drain(background); err != nil {
			t.Fatal(err)
		}
	}
	if n := inClear(bytesOf(t, dev)); n > 0 {
		t.Errorf("%d places in clear", n)
	}
}

// TestKeyDestroyedBeforeJournal proves that a device opens whose journal still holds records of a
// volume that was deleted, key and all, before the power went; beside one that has its key.
func TestKeyDestroyedBeforeJournal(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	nv := newMemory(t, dev, 10)
	e := open(t, dev, keyed, quiet, journaled(nv))
	v := create(t, e, 16*domain.MiB)
	other := domain.VolumeID{UUID: domain.UUID{77}}
	w, err := e.CreateEncrypted(background, other, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	for b := range uint64(20) {
		if err := errors.Join(put(v, data(b, 1, b+1)), put(w, data(b, 1, b+100))); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Delete(background, testVolume); err != nil {
		t.Fatal(err)
	}
	e.Abandon()
	e = open(t, dev, keyed, journaled(nv))
	if len(e.Volumes()) != 1 {
		t.Fatalf("%d volumes", len(e.Volumes()))
	}
	w, _ = e.Volume(other)
	for b := range uint64(20) {
		check(t, w, b, b+100)
	}
	recount(t, e)
	if err := e.nv.drain(background); err != nil {
		t.Fatal(err)
	}
	recount(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestEncryptedBitFlips turns a bit in each used unit of an encrypted device, the key table
// included: what is read is right, or said to be wrong (E10).
func TestEncryptedBitFlips(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dev := recorded(t, smallSize, 64<<10, 1)
		e := open(t, dev, keyed)
		model := story(t, e)
		if clean {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		e.Abandon()
		w, rnd, n := &verdict{}, rand.New(rand.NewPCG(1, 2)), 0
		for i, off := range used(t, dev) {
			if clean && i%8 > 0 {
				continue // behind the checkpoint there is no more to it than for a plain volume
			}
			img := copyOf(dev)
			flip(t, img, off, rnd)
			if off >= segment.KeysOff && off < segment.DataOff {
				n++
			}
			if err := w.reopen(img, model); err != nil {
				t.Fatalf("clean %t, unit at %d: %v", clean, off, err)
			}
		}
		t.Logf("%+v, %d in the key table", *w, n)
		if raceOn {
			break
		}
		if w.corrupt == 0 && !testing.Short() {
			t.Error("payload was never hit: the test tests too little")
		}
	}
}

// TestHeaderLost clears the headers of all segments that hold something: the salts of their keys
// stand in the chunks too.
func TestHeaderLost(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	e := open(t, dev, keyed)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(200) {
		if err := put(v, data(i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for i, sg := range e.space.mu.segs {
		if sg.live.Load() > 0 {
			clearAt(t, dev, e.space.off(uint32(i)), segment.Sector)
			lost++
		}
	}
	told := &facts{}
	e = open(t, dev, keyed, told.into)
	defer e.Abandon()
	v, _ = e.Volume(testVolume)
	for i := range uint64(200) {
		check(t, v, i, i+1)
	}
	if lost == 0 || told.count("corrupt") < lost {
		t.Errorf("%d headers lost, told of %d", lost, told.count("corrupt"))
	}
}

// TestForgedBlockIsNotMoved lets somebody who can write to the device, and knows every checksum of
// the format, change a block with its checksums in entry and index: without the key the tag cannot
// be put right, so the cleaner, who has the entry, does not take the block over and says so.
func TestForgedBlockIsNotMoved(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	told := &facts{}
	e := open(t, dev, keyed, quiet, told.into)
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(40) {
		if err := put(v, data(i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(100) { // the segment is left behind, nearly empty
		if err := put(v, data(10+i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	loc := tamper(t, e, dev, v, 7)
	id := uint32((loc.Off() - e.space.first) / e.space.size)
	clearAt(t, dev, e.space.off(id+1)-segment.Sector, segment.Sector) // of the footer
	e.maint.ckpt.Lock()
	seq, _, before := e.space.life(id)
	c := e.newCleaner()
	err := c.segment(victim{id: id, seq: seq, stream: segment.StreamLog})
	if err == nil {
		err = c.end()
	}
	c.settle()
	e.maint.ckpt.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	_, _, left := e.space.life(id)
	if before < 5*segment.BlockSize || left != segment.BlockSize || told.count("corrupt") != 1 {
		t.Errorf("%d of %d bytes left behind, told %+v", left, before, told.list)
	}
	check(t, v, 5, 6) // what stood beside it was moved
}

// tamper turns a bit of a block on the device, and puts right all checksums that its reader sees.
func tamper(t *testing.T, e *Engine, dev *mem.Device, v *Volume, block uint64) segment.Loc {
	t.Helper()
	l := v.lane(block)
	l.mu.Lock()
	lf := v.fam.leaves[l.no][0].of(v.br.Load())
	was := lf.own.get(int(block))
	l.mu.Unlock()
	b := backends.AlignedBuffer(segment.BlockSize)
	if err := dev.ReadAt(b, was.Off()); err != nil {
		t.Fatal(err)
	}
	sum := segment.Checksum(b)
	b[100] ^= 1
	if err := dev.WriteAt(b, was.Off(), true); err != nil {
		t.Fatal(err)
	}
	now := segment.MakeLoc(was.Addr(), segment.Checksum(b))
	l.mu.Lock()
	l.put(lf, int(block), now)
	l.mu.Unlock()
	for _, p := range logged(t, e, l.no) {
		if p.off+int64(p.h.HeaderBytes()) > was.Off() || p.off+int64(p.h.Bytes()) <= was.Off() {
			continue
		}
		h := backends.AlignedBuffer(p.h.HeaderBytes())
		if err := dev.ReadAt(h, p.off); err != nil {
			t.Fatal(err)
		}
		old := binary.LittleEndian.AppendUint32(nil, sum)
		at := bytes.Index(h, old)
		if at < 0 {
			t.Fatal("the entry is not there")
		}
		binary.LittleEndian.PutUint32(h[at:], segment.Checksum(b))
		p.h.Encode(h, saltOf(t, dev))
		if err := dev.WriteAt(h, p.off, true); err != nil {
			t.Fatal(err)
		}
		return now
	}
	t.Fatal("the chunk is not there")
	return 0
}

// TestEncryptedAllocatesNothing gates a 4 KiB write and a read of an encrypted volume.
func TestEncryptedAllocatesNothing(t *testing.T) { allocatesNothing(t, quiet, keyed) }

// TestKeyTable proves the limits of the table, and that a device that is formatted again, or was
// formatted before there were keys, has none.
func TestKeyTable(t *testing.T) {
	dev := newMem(t, 32<<20, 256<<10, 1)
	e := open(t, dev, keyed)
	create(t, e, 16*domain.MiB)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.CreateEncrypted(background, testVolume, 4*domain.MiB, 1); err == nil {
		t.Error("a volume of another size")
	}
	err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 256 << 10, Lanes: 1, Force: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	e = open(t, dev, keyed)
	defer e.Abandon()
	if n := len(wrappedOn(e)); n != 0 {
		t.Fatalf("%d keys on a device that was formatted", n)
	}
	plain, err := e.Create(background, testVolume, 4*domain.MiB, 1)
	if err != nil || plain.Encrypted() {
		t.Fatal(err)
	}
	_, err = e.CreateEncrypted(background, testVolume, 4*domain.MiB, 1)
	kindOf(t, err, domain.Exists)
	for i := range e.keys.pages {
		e.keys.pages[i].Keys = make([]segment.Key, segment.KeysPerPage)
	}
	_, err = e.CreateEncrypted(background, volID(3), 4*domain.MiB, 1)
	kindOf(t, err, domain.TooLarge)
	e.super.Incompat = segment.IncompatBase
	_, err = e.CreateEncrypted(background, volID(3), 4*domain.MiB, 1)
	kindOf(t, err, domain.Unsupported)
}

// cpu gives the processor time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEncrypted compares writes and reads of 4 KiB of a plain and of an encrypted volume, in
// time and, which a busy machine disturbs less, in processor time.
func BenchmarkEncrypted(b *testing.B) {
	for _, secret := range []bool{false, true} {
		tune := func(*Config) {}
		if secret {
			tune = keyed
		}
		b.Run(fmt.Sprintf("write/%t", secret), func(b *testing.B) {
			dev := endless(b)
			dev.forget = true
			e := open(b, dev, quiet, tune)
			b.Cleanup(e.Abandon)
			v := create(b, e, 64*domain.MiB)
			appendBlocks(b, v)
		})
		b.Run(fmt.Sprintf("journal/%t", secret), func(b *testing.B) {
			dev := endless(b)
			e := open(b, dev, quiet, tune, journaled(newMemoryOf(b, dev, 64, backends.Volatile)))
			b.Cleanup(e.Abandon)
			v := create(b, e, 64*domain.MiB)
			dev.forget = true
			appendBlocks(b, v)
		})
		b.Run(fmt.Sprintf("read/%t", secret), func(b *testing.B) {
			e := open(b, benchDevice(b, "mem"), tune)
			b.Cleanup(e.Abandon)
			v := create(b, e, 64*domain.MiB)
			for i := range uint64(64) {
				if err := put(v, data(i*256, 256, i+1)); err != nil {
					b.Fatal(err)
				}
			}
			rnd, buf := newRand(1), backends.AlignedBuffer(segment.BlockSize)
			b.SetBytes(segment.BlockSize)
			began := cpu(b)
			for b.Loop() {
				if err := v.Read(rnd.Uint64N(16<<10), 1, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// endless makes a device so large that no segment comes twice, and that may forget what is written:
// then neither its memory nor cleaning is measured.
func endless(b *testing.B) *sink {
	b.Helper()
	dev, err := mem.New(mem.Config{Size: 1 << 40, Durability: backends.PowerSafe})
	if err == nil {
		err = Format(background, dev, FormatOptions{
			Cluster: testCluster, Device: testDevice, SegmentSize: 32 << 20,
		})
	}
	if err != nil {
		b.Fatal(err)
	}
	return &sink{Device: dev}
}

// appendBlocks measures appends of single blocks at random, one after the other.
func appendBlocks(b *testing.B, v *Volume) {
	b.Helper()
	done, rnd, r := make(signal, 1), newRand(1), data(0, 1, 7)
	r.To = done
	b.SetBytes(segment.BlockSize)
	began := cpu(b)
	for b.Loop() {
		r.Block = rnd.Uint64N(16 << 10)
		v.Append(r)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
}
