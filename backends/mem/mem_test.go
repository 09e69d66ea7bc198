package mem

import (
	"bytes"
	"errors"
	"testing"

	"weft/backends"
)

const block = 4096

func made(t testing.TB, cfg Config) *Device {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func recorded(t testing.TB, dur backends.Durability) *Device {
	return made(t, Config{Size: 1 << 20, Durability: dur, RecordHistory: true})
}

func write(t testing.TB, d *Device, at, blocks int, b byte, fua bool) {
	t.Helper()
	p := backends.AlignedBuffer(blocks * block)
	for i := range p {
		p[i] = b
	}
	if err := d.WriteAt(p, int64(at*block), fua); err != nil {
		t.Fatal(err)
	}
}

// state gives the first byte of each of the first n blocks, and fails if a block is mixed.
func state(t testing.TB, d *Device, n int) string {
	t.Helper()
	p := backends.AlignedBuffer(block)
	var s []byte
	for i := range n {
		if err := d.ReadAt(p, int64(i*block)); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(p, p[:1]) != block {
			s = append(s, '?')
			continue
		}
		c := p[0]
		if c == 0 {
			c = '.'
		}
		s = append(s, c)
	}
	return string(s)
}

// TestCutKeepsWhatIsDurable proves M1 to M4 on one history, cut by cut.
func TestCutKeepsWhatIsDurable(t *testing.T) {
	d := recorded(t, backends.NeedsFlush)
	write(t, d, 0, 1, 'a', false) // 0
	write(t, d, 1, 1, 'b', false) // 1
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	} // 2
	write(t, d, 0, 1, 'c', false) // 3
	write(t, d, 0, 1, 'd', true)  // 4
	write(t, d, 2, 2, 'e', false) // 5
	mark := d.Mark()
	cases := []struct {
		at     int
		choose Chooser
		want   string
	}{
		{0, None, "...."},
		{0, All, "a..."},
		{1, None, "...."},
		{2, None, "...."},
		{2, Mask(2), ".b.."},
		{3, None, "ab.."},
		{4, None, "ab.."},       // d in flight, lost
		{4, Mask(1), "cb.."},    // c there, d lost
		{4, Mask(2), "db.."},    // d there, c lost
		{5, None, "db.."},       // d is fua
		{5, Mask(1), "db.."},    // c there, and d above it
		{mark, None, "db.."},    // e lost
		{mark, All, "dbee"},     // e there
		{mark, Mask(1), "db.."}, // c alone
		{mark, torn(1, 1, FillNew), "dbee"},
		{mark, torn(1, 1, FillOld), "dbe."},
		{mark, torn(1, 0, FillGarbage), "db?."},
		{1, None, "...."}, // back again
	}
	for _, c := range cases {
		if got := state(t, d.CrashImage(c.at, c.choose), 4); got != c.want {
			t.Errorf("cut at %d: got %s, want %s", c.at, got, c.want)
		}
	}
	if got := state(t, d, 4); got != "dbee" {
		t.Errorf("the device itself changed: %s", got)
	}
}

// torn tears the i-th pending write and loses the others.
func torn(i, sector int, fill Fill) Chooser {
	return func(j int, _ Pending) Fate {
		if i == j {
			return Fate{Part: Torn, Sector: sector, Fill: fill, Seed: 7}
		}
		return Fate{}
	}
}

// TestDurabilityDecidesWhatIsPending proves that PowerSafe leaves only the write in flight open and
// Volatile everything, flushed or not.
func TestDurabilityDecidesWhatIsPending(t *testing.T) {
	for dur, want := range map[backends.Durability]int{
		backends.PowerSafe: 0, backends.NeedsFlush: 1, backends.Volatile: 3,
	} {
		d := recorded(t, dur)
		write(t, d, 0, 1, 'a', false)
		write(t, d, 1, 1, 'b', true)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		write(t, d, 2, 1, 'c', false)
		e := d.Enumerate()
		var last int
		for e.Next() {
			last = len(e.Pending())
		}
		if last != want || e.At() != d.Ops() {
			t.Errorf("%v: %d pending at %d, want %d", dur, last, e.At(), want)
		}
	}
}

// TestImagesAreIndependent proves that writes to an image, to its device and to a second image of
// the same cut do not meet, and that an image can crash again.
func TestImagesAreIndependent(t *testing.T) {
	d := recorded(t, backends.NeedsFlush)
	write(t, d, 0, 2, 'a', true)
	one, two := d.CrashImage(1, None), d.CrashImage(1, None)
	one.StartHistory()
	write(t, one, 0, 1, 'x', false)
	write(t, two, 1, 1, 'y', false)
	write(t, d, 1, 1, 'z', false)
	again := one.Cut(None)
	for got, want := range map[*Device]string{two: "ay", d: "az", again: "aa"} {
		if s := state(t, got, 2); s != want {
			t.Errorf("got %s, want %s", s, want)
		}
	}
	if err := one.Flush(t.Context()); !errors.Is(err, backends.ErrClosed) {
		t.Errorf("flush without power: %v", err)
	}
	if again.Equal(two) || !again.Equal(d.CrashImage(1, None)) {
		t.Error("Equal is wrong")
	}
}

// TestSeedsRepeat proves that a seed gives the same image again, and that seeds differ.
func TestSeedsRepeat(t *testing.T) {
	d := recorded(t, backends.NeedsFlush)
	for i := range 20 {
		write(t, d, i*4, 4, byte('a'+i), false)
	}
	same, other := 0, 0
	for seed := range uint64(20) {
		a, b := d.CrashImage(20, RandomGarbage(seed)), d.CrashImage(20, RandomGarbage(seed))
		if !a.Equal(b) {
			t.Fatalf("seed %d does not repeat", seed)
		}
		if a.Equal(d.CrashImage(20, RandomGarbage(seed+100))) {
			same++
		}
		other++
	}
	if same > other/4 {
		t.Errorf("%d of %d seeds gave equal images", same, other)
	}
}

// TestSum proves that images have the same sum where they are equal, and only there, whichever way
// they came to their bytes; writes and flips change it, of a clone that of the clone alone.
func TestSum(t *testing.T) {
	d := recorded(t, backends.NeedsFlush)
	for i := range 24 {
		write(t, d, i*5%20, 1+i%3, byte('a'+i%2), i%7 == 0)
	}
	var all []*Device
	for e := d.Enumerate(); e.Next(); {
		for seed := range uint64(6) {
			all = append(all, e.Image(RandomGarbage(seed)), e.Image(Mask(seed)))
		}
	}
	zeroed, here, there := all[0].Clone(), all[0].Clone(), all[0].Clone()
	write(t, zeroed, 30, 1, 0, false)
	write(t, here, 40, 1, 'm', false)
	write(t, there, 40+pageSize/block, 1, 'm', false)
	all = append(all, d, zeroed, here, there, d.Clone(), d.CrashImage(d.Ops(), All))
	equal := 0
	for i, a := range all {
		for _, b := range all[:i] {
			if a.Equal(b) != (a.Sum() == b.Sum()) {
				t.Fatalf("equal %v, sums %x and %x", a.Equal(b), a.Sum(), b.Sum())
			}
			if a.Equal(b) {
				equal++
			}
		}
	}
	if equal == 0 || equal == len(all)*(len(all)-1)/2 {
		t.Fatalf("%d equal pairs of %d images: the test tests nothing", equal, len(all))
	}
	was, c := d.Sum(), d.Clone()
	if err := c.FlipBit(7, 3); err != nil {
		t.Fatal(err)
	}
	if c.Sum() == was || d.Sum() != was {
		t.Errorf("sum %x, of the clone %x, was %x", d.Sum(), c.Sum(), was)
	}
	write(t, d, 0, 1, 'z', false)
	if d.Sum() == was || d.Sum() == c.Sum() {
		t.Error("a write does not change the sum")
	}
}

// TestFlipBit proves that decay reaches the content, later images, and only one bit.
func TestFlipBit(t *testing.T) {
	d := recorded(t, backends.NeedsFlush)
	write(t, d, 0, 1, 'a', true)
	if err := d.FlipBit(5, 1); err != nil {
		t.Fatal(err)
	}
	p := backends.AlignedBuffer(block)
	for _, dev := range []*Device{d, d.CrashImage(d.Ops(), None)} {
		if err := dev.ReadAt(p, 0); err != nil || p[5] != 'a'^2 || p[4] != 'a' {
			t.Errorf("got %q %v", p[:8], err)
		}
	}
	if err := d.FlipBit(d.Geometry().Size, 0); !errors.Is(err, backends.ErrRange) {
		t.Errorf("flip beyond the end: %v", err)
	}
}

// TestConfigIsChecked proves that a size which makes no device is refused.
func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Size: 100}, {Size: -4096}, {Size: 4096, LogicalBlock: 1024}, {Size: 512},
	} {
		if _, err := New(cfg); !errors.Is(err, backends.ErrAlign) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

// BenchmarkEveryCut makes one seeded image of a 4 MiB device at each cut of a history of 1000
// writes with a flush after every eighth, and reads one block of each.
func BenchmarkEveryCut(b *testing.B) {
	d := made(b, Config{Size: 4 << 20, Durability: backends.NeedsFlush, RecordHistory: true})
	for i := range 1000 {
		write(b, d, i*7%1000, 2, byte(i), false)
		if i%8 == 7 {
			if err := d.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	p := backends.AlignedBuffer(block)
	images := 0
	for b.Loop() {
		for e := d.Enumerate(); e.Next(); {
			if err := e.Image(Random(uint64(e.At()))).ReadAt(p, 0); err != nil {
				b.Fatal(err)
			}
			images++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(images), "ns/image")
}

// TestOverlappingCallsAreInFlight proves that a write whose call came in before the cut is open to
// choice though the device took others first, and one that began after the cut is not there.
func TestOverlappingCallsAreInFlight(t *testing.T) {
	d := recorded(t, backends.PowerSafe)
	for i, begun := range []int64{0, 0, 1, 3} {
		data := bytes.Repeat([]byte{byte('a' + i)}, block)
		d.mu.Lock()
		d.record(begun, Op{Kind: OpWrite, Off: int64(i * block), Len: block, Data: data})
		d.mu.Unlock()
	}
	for at, want := range []string{"ab..", "abc.", "abc.", "abcd", "abcd"} {
		if got := state(t, d.CrashImage(at, All), 4); got != want {
			t.Errorf("cut at %d: all gives %s, want %s", at, got, want)
		}
	}
	for at, want := range []string{"....", "a...", "ab..", "abc.", "abcd"} {
		if got := state(t, d.CrashImage(at, None), 4); got != want {
			t.Errorf("cut at %d: none gives %s, want %s", at, got, want)
		}
	}
}
