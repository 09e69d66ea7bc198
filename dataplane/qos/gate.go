package qos

import (
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
)

// BurstDefault is how much time's worth of requests may come at once after a pause.
const BurstDefault = time.Second

// Limits bound what a volume's hosts get. Zero fields bound nothing.
type Limits struct {
	IOPS  int64         // requests a second
	Bytes int64         // bytes read and written a second
	Burst time.Duration // 0: BurstDefault
}

// Timer runs a function once, later.
type Timer interface {
	Reset(d time.Duration) bool
	Stop() bool
}

// Clock is the time a gate goes by.
type Clock struct {
	Now func() time.Time
	// AfterFunc makes a timer that calls f on a goroutine of its own, as time.AfterFunc does.
	AfterFunc func(d time.Duration, f func()) Timer
}

// System is the machine's own clock.
func System() Clock {
	return Clock{
		Now:       time.Now,
		AfterFunc: func(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) },
	}
}

// Gate holds the requests of one volume back. Any number of goroutines may use it.
type Gate struct {
	clock  Clock
	run    func(*domain.IO)
	active atomic.Bool // there is a limit, or somebody waits
	in     *atomic.Int64

	mu struct {
		sync.Mutex
		limits     Limits
		iops, rate pace
		queue      fifo
		timer      Timer
		armed      bool
		paused     int  // nothing is let in until it is 0
		releasing  bool // somebody runs what waited
		delayed    int64
	}
}

// pace is one virtual clock.
type pace struct {
	unit time.Duration // that one request, or 1 MiB, is worth; 0: no limit
	due  time.Time
}

// unitBytes is what a pace of bytes counts in: a byte at 1 GB/s is worth only a nanosecond.
const unitBytes = 1 << 20

// New makes a gate without limits. run takes the requests that waited; it is called on the timer's
// goroutine, one after the other, and may block.
func New(clock Clock, run func(*domain.IO)) *Gate { return &Gate{clock: clock, run: run} }

// CountIn lets the gate add to a count for each request that it gives to run, before a Pause that
// comes then returns. It is called before the gate is used.
func (g *Gate) CountIn(n *atomic.Int64) { g.in = n }

// SetLimits replaces the limits. Requests that wait are judged by the new ones.
func (g *Gate) SetLimits(l Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.Burst <= 0 {
		l.Burst = BurstDefault
	}
	if l == g.mu.limits {
		return
	}
	g.mu.limits = l
	g.mu.iops.set(l.IOPS)
	g.mu.rate.setBytes(l.Bytes)
	g.mark()
	if g.waiting() > 0 {
		g.arm(0)
	}
}

// Pause lets nothing in until Resume, whatever the limits. Pauses add up.
func (g *Gate) Pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.paused++
	g.mark()
}

// Resume takes one Pause back.
func (g *Gate) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.paused--
	g.mark()
	if g.mu.paused == 0 && g.waiting() > 0 {
		g.arm(0)
	}
}

// Admit tells whether a request may run now. One that may not is kept and given to run when its
// time has come. Flushes are never kept: what they wait for was admitted before.
func (g *Gate) Admit(io *domain.IO) bool {
	if !g.active.Load() || io.Op == domain.OpFlush {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.clock.Now()
	switch {
	case g.mu.paused > 0:
	case g.waiting() == 0 && !g.mu.releasing:
		wait := g.wait(now)
		if wait <= 0 {
			g.charge(io, now)
			return true
		}
		g.arm(wait)
	}
	g.mu.delayed++
	io.Gather, io.More = false, false // whoever runs it has nobody behind it
	g.mu.queue.push(io)
	g.active.Store(true)
	return false
}

// Delayed counts the requests that had to wait.
func (g *Gate) Delayed() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.delayed
}

// Limits gives what holds now.
func (g *Gate) Limits() Limits {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.limits
}

func (g *Gate) waiting() int { return g.mu.queue.len() }

func (g *Gate) mark() {
	g.active.Store(g.mu.iops.unit > 0 || g.mu.rate.unit > 0 || g.waiting() > 0 || g.mu.paused > 0)
}

// wait gives how long the next request has to wait. mu is held.
func (g *Gate) wait(now time.Time) time.Duration {
	return max(g.mu.iops.wait(now, g.mu.limits.Burst), g.mu.rate.wait(now, g.mu.limits.Burst))
}

// set begins the clock anew for so many requests a second; 0: no limit.
func (p *pace) set(n int64) {
	*p = pace{}
	if n > 0 {
		p.unit = max(time.Second/time.Duration(n), 1)
	}
}

// setBytes begins the clock anew for so many bytes a second; 0: no limit.
func (p *pace) setBytes(n int64) {
	*p = pace{}
	if n > 0 {
		p.unit = max(time.Duration(float64(time.Second)*unitBytes/float64(n)), 1)
	}
}

func (p *pace) wait(now time.Time, burst time.Duration) time.Duration {
	if p.unit == 0 || p.due.Before(now) { // of a clock that never ran the difference overflows
		return 0
	}
	return p.due.Sub(now) - burst
}

// charge puts the clocks on by what a request is worth. mu is held.
func (g *Gate) charge(io *domain.IO, now time.Time) {
	g.mu.iops.charge(now, 1)
	g.mu.rate.charge(now, float64(transfer(io))/unitBytes)
}

func (p *pace) charge(now time.Time, units float64) {
	if p.unit == 0 {
		return
	}
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(p.unit) * units))
}

// arm sees to it that the queue is looked at. mu is held.
func (g *Gate) arm(after time.Duration) {
	if g.mu.armed && after > 0 {
		return
	}
	g.mu.armed = true
	if g.mu.timer == nil {
		g.mu.timer = g.clock.AfterFunc(after, g.release)
		return
	}
	g.mu.timer.Reset(after)
}

// release runs what has waited long enough, in order. One that finds another at work leaves it to
// that one, which looks at the limits before each request.
func (g *Gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.releasing {
		return
	}
	g.mu.releasing = true
	for g.waiting() > 0 {
		if g.mu.paused > 0 { // Resume looks again
			g.mu.armed, g.mu.releasing = false, false
			return
		}
		now := g.clock.Now()
		if wait := g.wait(now); wait > 0 {
			g.mu.armed = true
			g.mu.timer.Reset(wait)
			g.mu.releasing = false
			return
		}
		io := g.mu.queue.pop()
		g.charge(io, now)
		if g.in != nil {
			g.in.Add(1)
		}
		g.mu.Unlock()
		g.run(io)
		g.mu.Lock()
	}
	g.mu.armed, g.mu.releasing = false, false
	g.mark()
}
