package faulty

import (
	"errors"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/devicetest"
	"weft/backends/mem"
)

const block = 4096

func wrapped(t testing.TB, script string) (*Device, *[]time.Duration) {
	t.Helper()
	inner, err := mem.New(mem.Config{Size: 1 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	var slept []time.Duration
	d := New(inner, func(n time.Duration) { slept = append(slept, n) })
	if err := d.Script(script); err != nil {
		t.Fatal(err)
	}
	return d, &slept
}

func filled(blocks int, b byte) []byte {
	p := backends.AlignedBuffer(blocks * block)
	for i := range p {
		p[i] = b
	}
	return p
}

// at gives the byte that the device below holds at off.
func at(t testing.TB, d *Device, off int64) byte {
	t.Helper()
	p := backends.AlignedBuffer(block)
	if err := d.Inner().ReadAt(p, off/block*block); err != nil {
		t.Fatal(err)
	}
	return p[off%block]
}

// TestWithoutRulesIsADevice runs the suite on a device with no rules.
func TestWithoutRulesIsADevice(t *testing.T) {
	devicetest.Run(t, func(t *testing.T) backends.Device {
		d, _ := wrapped(t, "")
		return d
	})
}

// TestErrorsByKindRangeAndCount proves where and when rules fire.
func TestErrorsByKindRangeAndCount(t *testing.T) {
	d, slept := wrapped(t, `
		# the second write into the second block, once; every flush after the first
		write 4096+4096 after 1 times 1 eio
		flush after 1 enospc
		read delay 5ms
	`)
	p := filled(1, 'a')
	for i, want := range []error{nil, backends.ErrMedia, nil} {
		if err := d.WriteAt(p, block, false); !errors.Is(err, want) {
			t.Errorf("write %d: %v", i, err)
		}
		if err := d.WriteAt(p, 0, false); err != nil {
			t.Errorf("write outside the range: %v", err)
		}
	}
	for i, want := range []error{nil, backends.ErrNoSpace, backends.ErrNoSpace} {
		if err := d.Flush(t.Context()); !errors.Is(err, want) {
			t.Errorf("flush %d: %v", i, err)
		}
	}
	if err := d.ReadAt(p, 0); err != nil || len(*slept) != 1 || (*slept)[0] != 5*time.Millisecond {
		t.Errorf("read: %v, slept %v", err, *slept)
	}
	if got := d.Stats().Errors; got != 3 {
		t.Errorf("%d errors counted", got)
	}
}

// TestSilentFaults proves that lost, misdirected, torn and flipped writes are acknowledged and do
// to the device below what they say, and leave the caller's buffer alone.
func TestSilentFaults(t *testing.T) {
	cases := []struct {
		script string
		want   map[int64]byte
	}{
		{"write lose", map[int64]byte{0: 0, block: 0}},
		{"write misdirect 8192", map[int64]byte{0: 0, block: 0, 2 * block: 'a', 3 * block: 'a'}},
		{"write tear 1 silent", map[int64]byte{0: 'a', block: 0}},
		{"write flip 9", map[int64]byte{0: 'a', 1: 'a' ^ 2, 2: 'a'}},
		{"write 4096+4096 flip 0", map[int64]byte{0: 'a', block: 'a' ^ 1}},
	}
	for _, c := range cases {
		d, _ := wrapped(t, c.script)
		p := filled(2, 'a')
		if err := d.WriteAt(p, 0, false); err != nil {
			t.Errorf("%s: %v", c.script, err)
		}
		for off, want := range c.want {
			if got := at(t, d, off); got != want {
				t.Errorf("%s: %q at %d, want %q", c.script, got, off, want)
			}
		}
		if p[0] != 'a' || p[1] != 'a' || p[block] != 'a' {
			t.Errorf("%s: the caller's buffer changed", c.script)
		}
	}
}

// TestReadFaults proves flips on read, at rest, and misdirected reads.
func TestReadFaults(t *testing.T) {
	d, _ := wrapped(t, "read 4096+4096 times 1 flip 8")
	if err := d.WriteAt(filled(2, 'a'), 0, false); err != nil {
		t.Fatal(err)
	}
	p := backends.AlignedBuffer(2 * block)
	for i, want := range []byte{'a' ^ 1, 'a'} {
		if err := d.ReadAt(p, 0); err != nil || p[block+1] != want {
			t.Errorf("read %d: %q %v", i, p[block+1], err)
		}
	}
	if err := d.FlipAtRest(8*block + 3); err != nil || at(t, d, block) != 'a'^8 {
		t.Errorf("at rest: %v", err)
	}
	if err := d.Script("read misdirect 8192"); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(p, 0); err != nil || p[0] != 0 {
		t.Errorf("misdirected read: %q %v", p[0], err)
	}
}

// TestTornWriteFails proves that a loud tear leaves a part and says so.
func TestTornWriteFails(t *testing.T) {
	d, _ := wrapped(t, "write tear 1")
	if err := d.WriteAt(filled(3, 'a'), 0, false); !errors.Is(err, backends.ErrMedia) {
		t.Errorf("got %v", err)
	}
	if at(t, d, 0) != 'a' || at(t, d, block) != 0 {
		t.Error("not torn after the first sector")
	}
}

// TestStall proves that a stalled write waits for Release, that Close ends one with ErrClosed, and
// that a removed rule is gone.
func TestStall(t *testing.T) {
	d, _ := wrapped(t, "")
	done := make(chan error, 1)
	write := func() { done <- d.WriteAt(filled(1, 'a'), 0, false) }
	a := d.Add(Rule{On: Write, Stall: true})
	go write()
	<-a.Stalled()
	if at(t, d, 0) != 0 {
		t.Error("written before the release")
	}
	a.Release()
	if err := <-done; err != nil || at(t, d, 0) != 'a' || a.Fired() != 1 {
		t.Errorf("after the release: %v", err)
	}
	a.Remove()
	b := d.Add(Rule{On: Write, Stall: true})
	go write()
	<-b.Stalled()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, backends.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	d.Heal()
}

// TestScriptsAreChecked proves that what makes no rule is refused.
func TestScriptsAreChecked(t *testing.T) {
	for _, s := range []string{
		"jump eio", "write", "write burn", "write after eio", "write 1+x eio", "write tear",
		"read delay soon", "write after", "write flip -1",
	} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}
