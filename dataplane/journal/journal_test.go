package journal

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

var rewrite = flag.Bool("rewrite", false, "write the golden bytes anew")

const payload = 4 * segment.BlockSize

var testHeader = Header{
	Cluster: domain.ClusterID{UUID: domain.UUID{1}}, Node: domain.NodeID{UUID: domain.UUID{2}},
	Device: domain.DeviceID{UUID: domain.UUID{3}}, ID: 0x1112131415161718, Incarnation: 5,
	Payload: payload,
}

func newTestShare(t testing.TB, slots int) (*mem.Memory, *Share) {
	t.Helper()
	size := int64(headerMax + slots*slotBytes(payload))
	m, err := mem.NewMemory(size, backends.PowerSafe)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Format(m, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	return m, s
}

// record is what a test puts.
func record(n int) (*segment.Entry, []uint32, []byte) {
	en := &segment.Entry{
		Branch: 7, Block: uint64(n), Count: 1, Kind: segment.KindData, Flags: segment.FlagFresh,
		Gen: 2, Units: segment.BlockUnits,
		Version: domain.Version{Epoch: 1, Seq: uint64(n), Node: 1},
		Request: domain.RequestID{Gateway: 1, Incarnation: 2, Counter: uint64(n)},
	}
	switch n % 4 {
	case 1:
		en.Kind, en.Range, en.Units = segment.KindUnmap, 9, 0
		return en, nil, nil
	case 3:
		en.Count, en.Units = 2, 2*segment.BlockUnits
	}
	data := bytes.Repeat([]byte{byte(n), byte(n >> 8), 0x5a, 1}, en.Count*segment.BlockSize/4)
	crcs := make([]uint32, en.Count)
	for i := range crcs {
		crcs[i] = segment.Checksum(data[i*segment.BlockSize : (i+1)*segment.BlockSize])
	}
	en.CRC = crcs[0]
	return en, crcs[1:], data
}

// put fills a slot with records from n on and gives how many.
func put(s *Share, sl *Slot, n int) int {
	for i := n; ; i++ {
		en, further, data := record(i)
		if !s.Fits(sl, en.Size(), len(data)/segment.BlockSize) {
			return i - n
		}
		s.Put(sl, en, nil, further, data, nil)
	}
}

// holds lists the block numbers of the records that a slot gives, and fails where the data of one
// is not its own.
func holds(t testing.TB, s *Share, sl *Slot, bad func(Damage)) (list []uint64) {
	t.Helper()
	s.Each(sl, func(en *segment.Entry, raw []byte, place uint32) {
		if en.Kind == segment.KindData {
			for i := range en.Count {
				if segment.Checksum(s.At(place+uint32(i), 1)) != en.Further(raw, i) {
					t.Errorf("record %d: data does not match", en.Block)
				}
			}
			if s.SlotOf(place) != sl.No {
				t.Errorf("place %d is not in slot %d", place, sl.No)
			}
		}
		list = append(list, en.Block)
	}, bad)
	return list
}

func none(t testing.TB) func(Damage) {
	return func(d Damage) { t.Helper(); t.Errorf("%v does not verify", d) }
}

// TestShare proves that what was put is read after another Open, whatever of the slots is open,
// sealed or free, and that blank, foreign and damaged memory is told apart.
func TestShare(t *testing.T) {
	m, s := newTestShare(t, 4)
	var a, b, c Slot
	s.Open(&a, 2, 1, 10, segment.Salt{})
	n := put(s, &a, 0)
	s.Seal(&a)
	s.Open(&b, 0, 0, 11, segment.Salt{})
	en, further, data := record(100)
	s.Put(&b, en, nil, further, data, nil)
	s.Open(&c, 1, 0, 12, segment.Salt{})
	put(s, &c, 0)
	s.Free(1)
	s.Begin(6)
	s, err := Open(m.Clone())
	if err != nil || s.Header().Incarnation != 6 || s.Slots() != 4 || s.Volatile() {
		t.Fatalf("%+v: %v", s, err)
	}
	if !s.Read(2, &a, none(t)) || !a.Sealed || a.Lane != 1 || a.Sequence != 10 || a.Entries != n {
		t.Errorf("sealed slot: %+v", a)
	}
	if got := holds(t, s, &a, none(t)); len(got) != n || got[n-1] != uint64(n-1) {
		t.Errorf("%d records: %v", n, got)
	}
	if !s.Read(0, &b, none(t)) || b.Sealed || fmt.Sprint(holds(t, s, &b, none(t))) != "[100]" {
		t.Errorf("open slot: %+v", b)
	}
	if s.Read(1, &c, none(t)) || s.Read(3, &c, none(t)) {
		t.Error("a free slot is read")
	}
	blank, _ := mem.NewMemory(headerMax, backends.PowerSafe)
	if _, err := Open(blank); !errors.Is(err, ErrBlank) {
		t.Errorf("blank: %v", err)
	}
	if _, err := Format(blank, testHeader); err == nil {
		t.Error("a share without slots")
	}
	blank.Bytes()[0] = 1
	if _, err := Open(blank); !errors.Is(err, ErrBad) {
		t.Errorf("no header: %v", err)
	}
	cut, _ := mem.NewMemory(int64(len(m.Bytes())-page), backends.PowerSafe)
	copy(cut.Bytes(), m.Bytes())
	if _, err := Open(cut); !errors.Is(err, ErrBad) {
		t.Errorf("less memory than slots: %v", err)
	}
	s.Wipe()
	if _, err := Open(s.dev); !errors.Is(err, ErrBlank) {
		t.Errorf("wiped: %v", err)
	}
}

// TestHeaderIsTwice proves that a header torn while it was written, or one that rots, leaves the
// other.
func TestHeaderIsTwice(t *testing.T) {
	m, s := newTestShare(t, 1)
	m.StartHistory(func() int { return 0 })
	s.Begin(6)
	m.Stop()
	for seed := range uint64(40) {
		got, err := Open(m.CrashImage(0, 0.5, seed))
		if err != nil || got.Header().Incarnation < 5 || got.Header().Incarnation > 6 {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	for i := range 2 {
		c := m.Clone()
		c.Bytes()[i*page+70] ^= 1
		if _, err := Open(c); err != nil {
			t.Errorf("copy %d rotten: %v", i, err)
		}
	}
}

// TestCuts cuts the power at every Persist of lives of two slots, with every word that was not
// persisted there, absent, or by chance: at every cut the records are a prefix of those that were
// put, at least those whose Put had returned, none of an earlier life, and nothing passes for
// damage (J1, J2; R20, R21).
func TestCuts(t *testing.T) {
	m, s := newTestShare(t, 2)
	m.StartHistory(func() int { return 0 })
	type life struct{ no, first, count, begun, freed int }
	var lives []life
	acked := map[int]int{} // record to point
	n := 0
	for i := range 6 {
		l := life{i % 2, n, 0, m.Mark(), 1 << 60}
		var sl Slot
		s.Open(&sl, i%2, 0, uint64(i+1), segment.Salt{})
		for {
			en, further, data := record(n)
			if !s.Fits(&sl, en.Size(), len(data)/segment.BlockSize) {
				break
			}
			s.Put(&sl, en, nil, further, data, nil)
			acked[n] = m.Mark()
			n++
			l.count++
		}
		s.Seal(&sl)
		l.freed = m.Mark()
		s.Free(i % 2)
		lives = append(lives, l)
	}
	m.Stop()
	seed := uint64(0)
	for at := range m.Mark() {
		for _, keep := range []float64{0, 1, 0.5, 0.5, 0.5, 0.9} {
			seed++
			s, err := Open(m.CrashImage(at, keep, seed))
			if err != nil {
				t.Fatal(err)
			}
			for no := range 2 {
				var sl Slot
				if !s.Read(no, &sl, none(t)) {
					for _, l := range lives {
						if l.no == no && at < l.freed && acked[l.first] <= at {
							t.Fatalf("cut %d: slot %d is gone", at, no)
						}
					}
					continue
				}
				l := lives[sl.Sequence-1]
				got := holds(t, s, &sl, none(t))
				for i, b := range got {
					if int(b) != l.first+i {
						t.Fatalf("cut %d: life %d holds %v", at, sl.Sequence, got)
					}
				}
				for i := range l.count {
					if acked[l.first+i] <= at && i >= len(got) {
						t.Fatalf("cut %d: life %d lacks record %d: %v", at, sl.Sequence, l.first+i, got)
					}
				}
			}
			if t.Failed() {
				t.Fatalf("cut %d, seed %d, keeping %v", at, seed, keep)
			}
		}
	}
}

// TestDamage flips each bit of a sealed slot's commit page and entries, one at a time, and clears
// words: what does not verify is told, costs its own record, and never passes for the end of the
// slot (J3, J4; R20b).
func TestDamage(t *testing.T) {
	m, s := newTestShare(t, 1)
	var sl Slot
	s.Open(&sl, 0, 3, 9, segment.Salt{})
	n := put(s, &sl, 0)
	used := sl.used
	s.Seal(&sl)
	at := int(s.slot(0))
	for bit := range (wordsOff + 8*n) * 8 {
		judgeDamage(t, m, at+bit/8, 1<<(bit%8), n, bit/8 >= wordsOff)
	}
	for bit := range used * 8 {
		judgeDamage(t, m, at+page+bit/8, 1<<(bit%8), n, true)
	}
	for i := range n { // a word that became zero
		c := m.Clone()
		clear(c.Bytes()[at+wordsOff+8*i:][:8])
		lost(t, c, n, 1)
	}
}

// judgeDamage flips bits of one byte and judges what is left.
func judgeDamage(t *testing.T, m *mem.Memory, at int, bits byte, n int, costs bool) {
	t.Helper()
	c := m.Clone()
	c.Bytes()[at] ^= bits
	want := 0
	if costs {
		want = 1
	}
	lost(t, c, n, want)
}

// lost opens the share and demands that so many of n records are told as damaged, and the others
// are there.
func lost(t *testing.T, m *mem.Memory, n, want int) {
	t.Helper()
	s, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	var sl Slot
	told := 0
	if !s.Read(0, &sl, func(Damage) { told++ }) || sl.Entries != n || told != want {
		t.Fatalf("%d told, not %d: %+v", told, want, sl)
	}
	if got := holds(t, s, &sl, nil); len(got) != n-want {
		t.Fatalf("%d of %d records: %v", len(got), n, got)
	}
}

// TestOpenSlotDamage proves that a bad word in a slot that was open is damage and no end: words
// behind it count, and so does one that became zero before others (R20b).
func TestOpenSlotDamage(t *testing.T) {
	m, s := newTestShare(t, 1)
	var sl Slot
	s.Open(&sl, 0, 0, 1, segment.Salt{})
	for i := range 3 {
		en, further, data := record(i)
		s.Put(&sl, en, nil, further, data, nil)
	}
	word := int(s.slot(0)) + wordsOff + 8
	for _, harm := range []func(b []byte){
		func(b []byte) { b[word+5] ^= 4 },
		func(b []byte) { clear(b[word : word+8]) },
	} {
		c := m.Clone()
		harm(c.Bytes())
		lost(t, c, 3, 1)
	}
}

// outcome makes of some records what replicas put: one that nothing took, and one of which the
// second block kept what it had.
func outcome(n int, en *segment.Entry) (kept segment.Mask) {
	switch n {
	case 10:
		en.Flags |= segment.OutcomeSuperseded
		en.Era = 3
	case 11:
		en.Flags |= segment.OutcomeMixed
		en.Era = 4
		kept.Set(1)
	}
	return kept
}

// TestGolden holds the bytes, but for payload, of a share with an open slot that holds what
// replicas put, a sealed one that may hold something encrypted, and a free one.
func TestGolden(t *testing.T) {
	m, s := newTestShare(t, 3)
	var a, b Slot
	s.Open(&a, 0, 1, 0x21, testSalt)
	put(s, &a, 0)
	s.Seal(&a)
	s.Open(&b, 2, 0, 0x22, segment.Salt{})
	for n := 9; n < 12; n++ {
		en, further, data := record(n)
		kept := outcome(n, en)
		s.Put(&b, en, &kept, further, data, nil)
	}
	got := dump(s, m.Bytes())
	path := filepath.Join("testdata", "share.v3.txt")
	if *rewrite {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(want, got) {
		t.Fatalf("the bytes of a share changed: %v\n%s", err, got)
	}
}

var testSalt = segment.Salt{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// TestGoldenRead reads the golden bytes of each version: what they say is as it was put, and a
// share of an earlier version is of the last one once it is used.
func TestGoldenRead(t *testing.T) {
	for v, salt := range map[byte]segment.Salt{1: {}, 2: testSalt, 3: testSalt} {
		open := 1
		if v == 3 {
			open = 3
		}
		m, _ := newTestShare(t, 3)
		load(t, m.Bytes(), filepath.Join("testdata", fmt.Sprintf("share.v%d.txt", v)))
		s, err := Open(m)
		if err != nil {
			t.Fatal(err)
		}
		bad := func(d Damage) { t.Errorf("version %d: %v", v, d) }
		var sl Slot
		for no, want := range []Slot{
			{No: 0, Lane: 1, Sequence: 0x21, Entries: 4, Sealed: true, Salt: salt},
			{},
			{No: 2, Sequence: 0x22, Entries: open},
		} {
			used := s.Read(no, &sl, bad)
			sl.scratch = want.scratch
			if used != (want.Entries > 0) || used && sl != want {
				t.Errorf("version %d: slot %d: %+v", v, no, sl)
			}
			n := 0
			s.Each(&sl, func(en *segment.Entry, raw []byte, _ uint32) {
				of, want := segment.Entry{}, segment.Mask{}
				if no == 2 {
					want = outcome(9+n, &of)
				}
				for i := range en.Len() {
					if kept := en.Kept(raw, i); kept != (want.Kept(i) || n == 1 && no == 2) {
						t.Errorf("version %d: slot %d: record %d: block %d kept: %t", v, no, n, i, kept)
					}
				}
				if en.Outcome() != of.Outcome() || en.Era != of.Era {
					t.Errorf("version %d: slot %d: record %d: %+v", v, no, n, en)
				}
				if n++; en.Branch != 7 || en.Block != uint64(n-1)+[]uint64{0, 0, 9}[no] {
					t.Errorf("version %d: slot %d: %+v", v, no, en)
				}
			}, bad)
			if n != want.Entries {
				t.Errorf("version %d: slot %d: %d records", v, no, n)
			}
		}
		h := s.Header()
		s.Begin(6)
		if again, err := Open(m); err != nil || again.Header().ID != h.ID ||
			m.Bytes()[s.head.turn%2*page+8] != version {
			t.Errorf("version %d: used: %v", v, err)
		}
	}
}

// load puts golden bytes into memory that is otherwise zero.
func load(t *testing.T, p []byte, path string) {
	t.Helper()
	clear(p)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		var at int
		var b []byte
		if _, err := fmt.Sscanf(line, "%x  %x", &at, &b); err != nil {
			t.Fatal(err)
		}
		copy(p[at:], b)
	}
}

// dump gives the bytes that are not zero, without payload, 32 a line.
func dump(s *Share, p []byte) []byte {
	var out bytes.Buffer
	for at := 0; at < len(p); at += 32 {
		if at >= headerMax && (at-headerMax)%slotBytes(payload) >= page+s.entries {
			continue
		}
		if line := p[at : at+32]; !bytes.Equal(line, make([]byte, 32)) {
			fmt.Fprintf(&out, "%06x  %x\n", at, line)
		}
	}
	return out.Bytes()
}

// FuzzShare opens any memory: nothing panics, and no record is given whose bytes lie outside its
// slot.
func FuzzShare(f *testing.F) {
	m, s := newTestShare(f, 2)
	var sl Slot
	s.Open(&sl, 0, 1, 0x21, segment.Salt{})
	put(s, &sl, 0)
	base := m.Clone()
	f.Add(uint32(8192), []byte{1, 2, 3})
	f.Add(uint32(0), []byte("x"))
	f.Fuzz(func(_ *testing.T, at uint32, p []byte) {
		c := base.Clone()
		copy(c.Bytes()[int(at)%len(c.Bytes()):], p)
		s, err := Open(c)
		if err != nil {
			return
		}
		for i := range s.Slots() {
			var sl Slot
			if s.Read(i, &sl, func(Damage) {}) {
				s.Each(&sl, func(en *segment.Entry, _ []byte, place uint32) {
					if en.Kind == segment.KindData {
						_ = s.At(place, en.Count)
					}
				}, nil)
			}
		}
	})
}

// TestForeignSlot proves that what another share left in a slot's place verifies nowhere (J5).
func TestForeignSlot(t *testing.T) {
	m, s := newTestShare(t, 1)
	var sl Slot
	s.Open(&sl, 0, 0, 1, segment.Salt{})
	put(s, &sl, 0)
	s.Seal(&sl)
	h := testHeader
	h.ID++
	c := m.Clone()
	other, err := Format(c, h)
	if err != nil {
		t.Fatal(err)
	}
	copy(c.Bytes()[headerMax:], m.Bytes()[headerMax:])
	told := 0
	if other.Read(0, &sl, func(Damage) { told++ }) || told != 1 {
		t.Errorf("read as its own: %+v", sl)
	}
}

// TestEachBesideEach proves that several may read one slot at once: each gets every record.
func TestEachBesideEach(t *testing.T) {
	_, s := newTestShare(t, 1)
	var sl Slot
	s.Open(&sl, 0, 3, 1, segment.Salt{})
	n := put(s, &sl, 0)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 50 {
				if got := holds(t, s, &sl, none(t)); len(got) != n {
					t.Errorf("%d records, not %d", len(got), n)
				}
			}
		})
	}
	readers.Wait()
}

// TestEntriesMax proves that a slot takes as many records without data as its page has words for,
// and no more.
func TestEntriesMax(t *testing.T) {
	h := testHeader
	h.Payload = 1 << 20
	m, err := mem.NewMemory(int64(headerMax+slotBytes(1<<20)), backends.PowerSafe)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Format(m, h)
	if err != nil {
		t.Fatal(err)
	}
	var sl Slot
	s.Open(&sl, 0, 0, 1, segment.Salt{})
	en, _, _ := record(1)
	n := 0
	for ; s.Fits(&sl, en.Size(), 0); n++ {
		s.Put(&sl, en, nil, nil, nil, nil)
	}
	if n != EntriesMax || !s.Read(0, &sl, none(t)) || sl.Entries != n {
		t.Errorf("%d records of %d, read %d", n, EntriesMax, sl.Entries)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	s.Open(&sl, 0, 0, 2, segment.Salt{})
	blocks := 0
	for {
		count := 1 + rnd.IntN(3)
		en := segment.Entry{
			Count: count, Kind: segment.KindData, Flags: segment.FlagFresh,
			Units: uint16(count * segment.BlockUnits),
		}
		if !s.Fits(&sl, en.Size(), count) {
			break
		}
		s.Put(&sl, &en, nil, make([]uint32, count-1), make([]byte, count*segment.BlockSize), nil)
		blocks += count
	}
	if blocks < s.SlotBlocks()-2 {
		t.Errorf("room for %d blocks, %d fit", s.SlotBlocks(), blocks)
	}
}
