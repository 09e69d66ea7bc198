package qos

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/domain"
)

// world is a clock that a test moves; timers fire in order as it passes them.
type world struct {
	mu     sync.Mutex
	at     time.Time
	timers []*timer
}

type timer struct {
	w    *world
	when time.Time // zero: not running
	f    func()
}

func newWorld() *world { return &world{at: time.Unix(1_000_000, 0)} }

func (w *world) clock() Clock {
	return Clock{
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.at
		},
		AfterFunc: func(d time.Duration, f func()) Timer {
			w.mu.Lock()
			defer w.mu.Unlock()
			t := &timer{w, w.at.Add(d), f}
			w.timers = append(w.timers, t)
			return t
		},
	}
}

func (t *timer) Reset(d time.Duration) bool {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	was := !t.when.IsZero()
	t.when = t.w.at.Add(d)
	return was
}

func (t *timer) Stop() bool {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	was := !t.when.IsZero()
	t.when = time.Time{}
	return was
}

// pass lets time pass, timer by timer.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	end := w.at.Add(d)
	for {
		var next *timer
		for _, t := range w.timers {
			if !t.when.IsZero() && !t.when.After(end) && (next == nil || t.when.Before(next.when)) {
				next = t
			}
		}
		if next == nil {
			break
		}
		if next.when.After(w.at) {
			w.at = next.when
		}
		next.when = time.Time{}
		w.mu.Unlock()
		next.f()
		w.mu.Lock()
	}
	w.at = end
	w.mu.Unlock()
}

// load submits requests to a gate and notes which ran, and when.
type load struct {
	w    *world
	gate *Gate
	ran  []*domain.IO
	when map[*domain.IO]time.Time
}

func newLoad() *load {
	l := &load{w: newWorld(), when: map[*domain.IO]time.Time{}}
	l.gate = New(l.w.clock(), l.run)
	return l
}

func (l *load) run(io *domain.IO) {
	l.ran = append(l.ran, io)
	l.when[io] = l.w.clock().Now()
}

func (l *load) submit(op domain.Op, size int64) *domain.IO {
	io := &domain.IO{Op: op, Len: size, Gather: true, More: true}
	if l.gate.Admit(io) {
		l.run(io)
	}
	return io
}

// TestRate proves that a volume which always has more to do gets its limit over time, in requests
// or in bytes, whichever is less, after one burst, and not one request more.
func TestRate(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		size   int64
		want   int // requests in 10 s, the burst included
	}{
		"iops":             {Limits{IOPS: 100}, 4096, 100*11 + 1},
		"bytes":            {Limits{Bytes: 40 << 20}, 64 << 10, 40*16*11 + 1},
		"iops rules":       {Limits{IOPS: 50, Bytes: 1 << 30}, 4096, 50*11 + 1},
		"bytes rule":       {Limits{IOPS: 1_000_000, Bytes: 4 << 20}, 1 << 20, 4*11 + 1},
		"short burst":      {Limits{IOPS: 100, Burst: 100 * time.Millisecond}, 4096, 100*10 + 10 + 1},
		"larger than all":  {Limits{Bytes: 1 << 20}, 8 << 20, 2},
		"every nanosecond": {Limits{IOPS: 3_000}, 512, 3_000*11 + 1},
	} {
		l := newLoad()
		l.gate.SetLimits(c.limits)
		for range c.want + 500 {
			l.submit(domain.OpWrite, c.size)
		}
		l.w.pass(10 * time.Second)
		slack := c.want/1000 + 1 // a unit is whole nanoseconds
		if n := len(l.ran); n < c.want-slack || n > c.want+slack {
			t.Errorf("%s: %d in 10 s, want %d", name, n, c.want)
		}
	}
}

// TestOrder proves that requests run in the order they came, each once, whatever limits are set
// meanwhile, and that what waited does not promise that others are behind it.
func TestOrder(t *testing.T) {
	l := newLoad()
	r := rand.New(rand.NewPCG(1, 2))
	var sent []*domain.IO
	for range 2000 {
		switch r.IntN(10) {
		case 0:
			l.gate.SetLimits(Limits{IOPS: int64(r.IntN(3)) * 500, Bytes: int64(r.IntN(2)) << 22})
		case 1:
			l.w.pass(time.Duration(r.IntN(20)) * time.Millisecond)
		default:
			sent = append(sent, l.submit(domain.OpRead, int64(r.IntN(64)+1)*4096))
		}
	}
	l.gate.SetLimits(Limits{})
	l.w.pass(time.Second)
	if len(l.ran) != len(sent) {
		t.Fatalf("%d ran of %d", len(l.ran), len(sent))
	}
	for i, io := range sent {
		if l.ran[i] != io {
			t.Fatalf("number %d ran out of order", i)
		}
	}
	if l.gate.Delayed() == 0 {
		t.Error("nothing was delayed: the test tests nothing")
	}
	waited := &domain.IO{Op: domain.OpRead, Len: 4096, Gather: true, More: true}
	l.gate.SetLimits(Limits{IOPS: 1, Burst: time.Nanosecond})
	for l.gate.Admit(waited) {
		waited = &domain.IO{Op: domain.OpRead, Len: 4096, Gather: true, More: true}
	}
	if waited.Gather || waited.More {
		t.Error("a request that waits still says that others follow it")
	}
}

// TestIdleVolume proves that a pause earns one burst and no more, and that no timer runs while
// nothing waits.
func TestIdleVolume(t *testing.T) {
	l := newLoad()
	l.gate.SetLimits(Limits{IOPS: 10, Burst: 500 * time.Millisecond})
	l.w.pass(time.Hour)
	for range 20 {
		l.submit(domain.OpRead, 4096)
	}
	if n := len(l.ran); n != 6 { // five of the burst, and the one that is due
		t.Errorf("%d at once, want 6", n)
	}
	l.w.pass(10 * time.Second)
	if len(l.ran) != 20 {
		t.Errorf("%d ran", len(l.ran))
	}
	for _, x := range l.w.timers {
		if !x.when.IsZero() {
			t.Error("a timer runs and nothing waits")
		}
	}
}

// TestFlushPasses proves that a flush waits for no limit: it holds what was acknowledged before.
func TestFlushPasses(t *testing.T) {
	l := newLoad()
	l.gate.SetLimits(Limits{IOPS: 1, Burst: time.Nanosecond})
	for range 5 {
		l.submit(domain.OpWrite, 4096)
	}
	f := l.submit(domain.OpFlush, 0)
	if l.when[f].IsZero() {
		t.Error("a flush waits")
	}
}

// TestLimitLifted proves that what waits goes on at once when the limit goes.
func TestLimitLifted(t *testing.T) {
	l := newLoad()
	l.gate.SetLimits(Limits{IOPS: 1, Burst: time.Nanosecond})
	for range 50 {
		l.submit(domain.OpWrite, 4096)
	}
	l.gate.SetLimits(Limits{})
	l.w.pass(0)
	if len(l.ran) != 50 {
		t.Errorf("%d ran of 50", len(l.ran))
	}
	if !l.gate.Admit(&domain.IO{Op: domain.OpWrite, Len: 4096}) {
		t.Error("a gate without limits holds a request back")
	}
}

// TestOneRuns proves that two wake-ups never run requests side by side, which would turn their
// order, and that what comes while one runs waits behind it.
func TestOneRuns(t *testing.T) {
	w := newWorld()
	var g *Gate
	var order []*domain.IO
	second := &domain.IO{Op: domain.OpWrite, Len: 4096}
	third := &domain.IO{Op: domain.OpWrite, Len: 4096}
	g = New(w.clock(), func(io *domain.IO) {
		if len(order) == 0 {
			order = append(order, nil) // the first is on its way
			g.release()                // as a timer does that was set again meanwhile
			if g.Admit(third) {
				t.Error("a request overtakes one that waited")
			}
			order[0] = io
			return
		}
		order = append(order, io)
	})
	g.SetLimits(Limits{IOPS: 1, Burst: time.Nanosecond})
	for g.Admit(&domain.IO{Op: domain.OpWrite}) {
	}
	g.Admit(second)
	g.SetLimits(Limits{IOPS: 1 << 40})
	w.pass(0)
	if len(order) != 3 || order[1] != second || order[2] != third {
		t.Errorf("%v", order)
	}
}

// TestQueueStaysSmall proves that a queue which never empties takes memory for what waits in it,
// not for all that ever did.
func TestQueueStaysSmall(t *testing.T) {
	var q fifo
	var sent []*domain.IO
	for i := range 10_000 {
		sent = append(sent, &domain.IO{Off: int64(i)})
		q.push(sent[i])
		if i < 20 {
			continue
		}
		if io := q.pop(); io != sent[i-20] {
			t.Fatalf("number %d came as %d", io.Off, i-20)
		}
	}
	if n := cap(q.list); n > 64 || q.len() != 20 {
		t.Errorf("memory for %d requests, %d wait", n, q.len())
	}
}

// TestAdmitAllocatesNothing proves the price of a gate on the way of every request.
func TestAdmitAllocatesNothing(t *testing.T) {
	l := newLoad()
	io := &domain.IO{Op: domain.OpWrite, Len: 4096}
	if n := testing.AllocsPerRun(1000, func() { l.gate.Admit(io) }); n != 0 {
		t.Errorf("%g allocations without limits", n)
	}
	l.gate.SetLimits(Limits{IOPS: 1 << 40})
	if n := testing.AllocsPerRun(1000, func() { l.gate.Admit(io) }); n != 0 {
		t.Errorf("%g allocations with a limit", n)
	}
}

// BenchmarkAdmit tells what a gate costs a request.
func BenchmarkAdmit(b *testing.B) {
	clock := Clock{Now: time.Now, AfterFunc: func(d time.Duration, f func()) Timer {
		return time.AfterFunc(d, f)
	}}
	for name, l := range map[string]Limits{"none": {}, "both": {IOPS: 1 << 40, Bytes: 1 << 50}} {
		b.Run(name, func(b *testing.B) {
			g := New(clock, func(*domain.IO) {})
			g.SetLimits(l)
			io := &domain.IO{Op: domain.OpWrite, Len: 4096}
			for b.Loop() {
				g.Admit(io)
			}
		})
	}
}

// TestPause proves that nothing but a flush is let in while the gate is paused, however often,
// that what waited runs in order once all pauses are over, within the limits, and that limits that
// change meanwhile let nothing in.
func TestPause(t *testing.T) {
	l := newLoad()
	l.gate.Pause()
	l.gate.Pause()
	var all []*domain.IO
	for range 5 {
		all = append(all, l.submit(domain.OpWrite, 4096))
	}
	f := l.submit(domain.OpFlush, 0)
	l.gate.Resume()
	l.gate.SetLimits(Limits{IOPS: 1, Burst: time.Nanosecond})
	l.w.pass(time.Hour)
	if len(l.ran) != 1 || l.ran[0] != f {
		t.Fatalf("%d ran while paused", len(l.ran))
	}
	l.gate.Resume()
	l.w.pass(0)
	if len(l.ran) != 2 {
		t.Errorf("%d ran at once, one a second is the limit", len(l.ran)-1)
	}
	l.gate.Pause() // between two that wait
	l.w.pass(time.Hour)
	if len(l.ran) != 2 {
		t.Errorf("%d ran while paused again", len(l.ran)-2)
	}
	l.gate.Resume()
	l.w.pass(10 * time.Second)
	if !slices.Equal(l.ran[1:], all) {
		t.Errorf("%d ran, or in another order", len(l.ran)-1)
	}
	l.gate.SetLimits(Limits{})
	if !l.gate.Admit(&domain.IO{Op: domain.OpWrite, Len: 4096}) {
		t.Error("a gate without limits and pauses holds a request back")
	}
}
