package watched

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/devicetest"
	"weft/backends/faulty"
	"weft/backends/mem"
)

// bench is a device under watch over one that is harmed by script, and a clock that goes on by what
// the harmed one sleeps. Its owner looks as often as it should.
type bench struct {
	t     *testing.T
	dev   *Device
	below *faulty.Device
	buf   []byte
	held  bool // nobody looks

	mu      sync.Mutex
	at      time.Time
	looked  time.Time
	changes []Change
}

func (b *bench) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at
}

// pass lets time go by.
func (b *bench) pass(d time.Duration) {
	for ; d > 0; d -= LookEvery {
		b.mu.Lock()
		b.at = b.at.Add(min(d, LookEvery))
		due := b.at.Sub(b.looked) >= LookEvery && !b.held
		if due {
			b.looked = b.at
		}
		b.mu.Unlock()
		if due {
			b.dev.Look()
		}
	}
}

func (b *bench) told(c Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, c)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	inner, err := mem.New(mem.Config{Size: 1 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, at: time.Unix(1e9, 0), buf: backends.AlignedBuffer(4096)}
	b.below = faulty.New(inner, b.pass)
	b.dev = New(b.below, b.now, b.told)
	t.Cleanup(func() { _ = b.dev.Close() })
	return b
}

// hang begins a write that hangs until the function that it gives is called; a look has seen it.
func (b *bench) hang() func() {
	b.t.Helper()
	hung := b.below.Add(faulty.Rule{On: faulty.Write, Times: 1, Stall: true})
	done := make(chan error)
	go func() { done <- b.write() }()
	<-hung.Stalled()
	b.dev.Look()
	return func() {
		b.t.Helper()
		hung.Release()
		if err := <-done; err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) write() error { return b.dev.WriteAt(b.buf, 0, true) }

// slow lets so many windows of writes take that long each.
func (b *bench) slow(d string, windows int) {
	b.t.Helper()
	b.below.Heal()
	b.script("write delay " + d)
	for range windows {
		b.pass(historyEvery)
		for range window {
			if err := b.write(); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// rules gives the rules of the changes so far; "" is well again.
func (b *bench) rules() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []string
	for _, c := range b.changes {
		list = append(list, c.Rule)
	}
	return list
}

func (b *bench) want(what string, rules ...string) {
	b.t.Helper()
	if got := b.rules(); !slices.Equal(got, rules) {
		b.t.Fatalf("%s: %q, want %q", what, got, rules)
	}
}

func (b *bench) script(s string) {
	b.t.Helper()
	if err := b.below.Script(s); err != nil {
		b.t.Fatal(err)
	}
}

// TestSuite proves that a watched device is a device, also where it writes vectors over one that
// can, and over one that cannot.
func TestSuite(t *testing.T) {
	for name, below := range map[string]func(backends.Device) backends.Device{
		"vectors": func(d backends.Device) backends.Device { return d },
		"none":    func(d backends.Device) backends.Device { return faulty.New(d, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			devicetest.Run(t, func(t *testing.T) backends.Device {
				t.Helper()
				d, err := mem.New(mem.Config{Size: 64 << 20, Durability: backends.NeedsFlush})
				if err != nil {
					t.Fatal(err)
				}
				return devicetest.Vectored(New(below(d), time.Now, func(Change) {}))
			})
		})
	}
}

// TestStall proves that a write or flush which hangs is noticed while it hangs, one that took too
// long when it ends, each once, also when it ends with an error; and that the device is well again
// after Quiet, and not before.
func TestStall(t *testing.T) {
	b := newBench(t)
	release := b.hang()
	b.pass(StallMax - 1)
	b.dev.Look()
	b.want("not yet a stall")
	b.pass(1)
	b.dev.Look()
	b.dev.Look()
	b.want("hangs", RuleStall)
	b.pass(2 * Quiet)
	b.want("still hangs", RuleStall)
	release()
	b.dev.Look()
	b.pass(Quiet - 1)
	b.dev.Look()
	b.want("not yet well", RuleStall)
	b.pass(1)
	b.dev.Look()
	b.dev.Look()
	b.want("well", RuleStall, "")
	long := []string{RuleStall, ""}
	for _, script := range []string{"flush times 1 delay 3s", "write times 1 delay 3s eio"} {
		b.script(script)
		b.held = true // only its end can tell
		b.dev.mu.looked = time.Time{}
		if err := b.dev.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = b.write()
		b.held = false
		b.dev.Look()
		long = append(long, RuleStall)
		b.want(script, long...)
		b.pass(2 * Quiet)
		long = append(long, "")
		b.want("well again", long...)
	}
}

// TestHeldUp proves that a device is not blamed for a process that was held up: neither for what
// was under way, before or after the process goes on, nor for how long it took; and that a device
// which hangs on from then on is.
func TestHeldUp(t *testing.T) {
	b := newBench(t)
	release := b.hang()
	b.held = true
	b.pass(time.Hour)
	if err := b.dev.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.held = false
	b.dev.Look()
	b.pass(StallMax - 1)
	b.dev.Look()
	b.want("held up")
	b.pass(1)
	b.dev.Look()
	b.want("hangs from then on", RuleStall)
	release()
	b = newBench(t)
	b.dev.Look()
	b.held = true
	b.script("write times 1 delay 1h")
	if err := b.write(); err != nil {
		t.Fatal(err)
	}
	b.dev.Look()
	b.want("ended before anybody looked")
}

// TestWriteErrors proves that three errors within ten minutes make a device suspect, that two, or
// three that are spread wider, do not, and that a caller's own errors are not counted.
func TestWriteErrors(t *testing.T) {
	b := newBench(t)
	fail := func() {
		t.Helper()
		if b.write() == nil {
			t.Fatal("no error")
		}
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	for range 2 * WriteErrorsMax {
		if b.dev.WriteAt(b.buf, 2<<20, true) == nil || b.dev.WriteAt(b.buf[:7], 0, true) == nil ||
			b.dev.Flush(gone) == nil {
			t.Fatal("no error")
		}
	}
	b.want("the caller's own")
	b.script("write eio")
	for range 5 {
		fail()
		b.pass(ErrorWindow/2 + time.Second)
	}
	b.want("spread wide")
	fail()
	b.want("the second within ten minutes")
	fail()
	b.want("close together", RuleErrors)
}

// TestLatency proves that a device which becomes ten times as slow is suspect for as long as it
// takes to get used to it, that one which is twice as slow or slow from the beginning is not, that
// microseconds do not count, and that the hundredth write of a hundred does not either.
func TestLatency(t *testing.T) {
	b := newBench(t)
	b.slow("3ms", history+1)
	b.slow("6ms", 2)
	b.want("twice")
	b.below.Heal()
	b.script(fmt.Sprintf("write delay 3ms\nwrite times %d delay 500ms", slowest-1))
	for range window {
		if err := b.write(); err != nil {
			t.Fatal(err)
		}
	}
	b.want("one of a hundred")
	b.slow("31ms", 1)
	b.want("ten times", RuleLatency)
	b.slow("31ms", history)
	b.pass(Quiet)
	b.dev.Look()
	b.want("it is the device's way", RuleLatency, "")
	for _, c := range []struct {
		what, before string
		windows      int
		then         string
	}{
		{"twice, and over the floor", "30ms", history, "60ms"},
		{"with too little past to compare with", "1ms", historyMin - 1, "30ms"},
		{"of microseconds", "10us", history, "1ms"},
		{"slow by nature", "50ms", historyMin, "50ms"},
	} {
		b = newBench(t)
		b.slow(c.before, c.windows)
		b.slow(c.then, 1)
		b.want(c.what)
	}
	b = newBench(t)
	b.slow("1ms", historyMin)
	b.slow("30ms", 1)
	b.want("with just enough past", RuleLatency)
}

// TestStreamed proves that a device which nobody waits for is blamed for long stalls and failing
// writes, not for taking seconds, nor for being slower than it was.
func TestStreamed(t *testing.T) {
	b := newBench(t)
	b.dev = NewStreamed(b.below, b.now, b.told)
	b.slow("1ms", historyMin)
	b.slow("100ms", historyMin)
	b.below.Heal()
	release := b.hang()
	b.pass(StreamStallMax - 1)
	b.dev.Look()
	b.want("it writes its cache out")
	b.pass(1)
	b.dev.Look()
	b.want("it hangs", RuleStall)
	release()
	b.pass(2 * Quiet)
	b.want("well again", RuleStall, "")
	b.script(fmt.Sprintf("write times %d eio", WriteErrorsMax))
	for range WriteErrorsMax {
		if err := b.write(); err == nil {
			t.Fatal("the script does not hold")
		}
	}
	b.want("it fails", RuleStall, "", RuleErrors)
}

// TestBeginsSuspect proves that what was suspect before a restart is so until Quiet has passed, and
// that it is not told again.
func TestBeginsSuspect(t *testing.T) {
	b := newBench(t)
	b.dev.Doubt()
	if b.dev.State() != Suspect {
		t.Error("it begins well")
	}
	b.script("write times 1 delay 3s")
	if err := b.write(); err != nil {
		t.Fatal(err)
	}
	b.pass(Quiet - StallMax)
	b.want("too early")
	b.pass(StallMax)
	b.want("well", "")
	if b.dev.State() != OK {
		t.Error("it stays suspect")
	}
}

// TestReading proves what is counted: the 99th percentile of whole windows, stalls and failures.
func TestReading(t *testing.T) {
	b := newBench(t)
	b.dev.Look()
	b.script(fmt.Sprintf("write delay 3ms\nwrite times %d delay 7ms", slowest))
	for i := range 2*window - 1 {
		if err := b.write(); err != nil {
			t.Fatal(err)
		}
		if p := b.dev.Reading().P99; (p != 0) != (i >= window-1) || p != 0 && p != 10*time.Millisecond {
			t.Fatalf("after %d: %s", i+1, p)
		}
	}
	b.below.Heal()
	b.script("write times 1 delay 4s\nwrite times 2 eio")
	for range 4 {
		_ = b.write()
	}
	if r := b.dev.Reading(); r.Stalls != 1 || r.Failures != 2 || r.P99 != 3*time.Millisecond {
		t.Errorf("%+v", r)
	}
}

// TestAllocatesNothing proves that a write costs no memory.
func TestAllocatesNothing(t *testing.T) {
	b := newBench(t)
	d := New(nothing{b.below}, time.Now, func(Change) {})
	if n := testing.AllocsPerRun(3*window, func() { _ = d.WriteAt(b.buf, 0, true) }); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
	if len(d.mu.flight) != 1 {
		t.Errorf("%d places for one call at a time", len(d.mu.flight))
	}
}

// nothing is a device that takes no time.
type nothing struct{ backends.Device }

func (nothing) WriteAt([]byte, int64, bool) error { return nil }
