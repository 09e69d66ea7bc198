package qos

import (
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
)

const (
	// sharedFor is how long a device counts as shared after its requests came from two volumes in
	// turn.
	sharedFor = time.Second
	// waitBit stands in Scheduler.flight while requests wait: then no window lets anything pass.
	waitBit = 1 << 40

	targetFlash = 2 * time.Millisecond
	targetDisk  = 25 * time.Millisecond
)

// Scheduler shares one device between the volumes on it and its own work. Any number of goroutines
// may use it. It holds no goroutine and needs no end.
type Scheduler struct {
	clock Clock

	flight  atomic.Int64 // requests of hosts under way, and waitBit
	window  atomic.Int64 // mu.window.size
	resting atomic.Int32 // classes that wait
	owner   atomic.Pointer[Flow]
	mixed   atomic.Bool               // another flow than the one before came since mu.shared was set
	probe   atomic.Pointer[domain.IO] // whose time is taken; nil: nobody's
	wake    [classes]chan struct{}    // of capacity 1: there may be room for a class

	mu struct {
		sync.Mutex
		round   round
		window  window
		shared  time.Time // when the device was last known to be shared
		probed  time.Time // when the probe began
		timer   Timer
		armed   bool
		running bool // somebody runs what waited
		duties  duties
	}
}

// Flow is one volume's requests to a device.
type Flow struct {
	s   *Scheduler
	run func(*domain.IO)

	share   Share // this and what follows is guarded by s.mu
	line    line
	delayed int64
}

// NewScheduler makes the scheduler of a device; rotational ones are given longer to answer.
func NewScheduler(clock Clock, rotational bool) *Scheduler {
	s := &Scheduler{clock: clock}
	s.mu.window = window{target: targetFlash, size: windowFirst}
	if rotational {
		s.mu.window.target = targetDisk
	}
	s.window.Store(windowFirst)
	for c := range s.wake {
		s.wake[c] = make(chan struct{}, 1)
	}
	return s
}

// Flow makes a flow without minima and with WeightDefault. run takes the requests that waited,
// which say More; it is called on a timer's goroutine, one after the other for all flows, and
// while it blocks they all wait. A flow without requests costs its device nothing, so it needs no
// end.
func (s *Scheduler) Flow(run func(*domain.IO)) *Flow {
	f := &Flow{s: s, run: run}
	f.line.owner = f
	f.line.set(Share{})
	return f
}

// SetShare replaces what the volume is owed. Requests that wait are judged by it.
func (f *Flow) SetShare(x Share) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if x == f.share {
		return
	}
	f.share = x
	f.line.set(x)
}

// Share gives what the volume is owed now.
func (f *Flow) Share() Share {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.share
}

// Delayed counts the requests that had to wait for their turn.
func (f *Flow) Delayed() int64 {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.delayed
}

// Admit tells whether a request may run now. One that may not is kept and given to run when its
// turn has come. Done has to be called once it has ended, before its owner may use it again. A
// flush is neither kept nor counted: what it waits for was.
func (f *Flow) Admit(io *domain.IO) bool {
	if io.Op == domain.OpFlush {
		return true
	}
	s := f.s
	if o := s.owner.Load(); o != f {
		s.owner.Store(f)
		if o != nil && !s.mixed.Load() {
			s.mixed.Store(true)
		}
	}
	if s.flight.Add(1) <= s.window.Load() {
		return true
	}
	s.flight.Add(-1)
	return s.admit(f, io)
}

// admit decides about a request for which the window has no room, or behind which others wait.
func (s *Scheduler) admit(f *Flow, io *domain.IO) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.round.empty() && !s.mu.running && !s.isShared() {
		s.flight.Add(1)
		return true
	}
	// Who runs it starts others behind it: it must not be done there and then.
	io.Gather, io.More = false, true
	f.delayed++
	s.mu.round.push(&f.line, io)
	s.flight.Or(waitBit)
	s.arm() // what ended since may have found nobody waiting
	return false
}

// isShared tells whether more than one volume uses the device; mu is held.
func (s *Scheduler) isShared() bool {
	now := s.clock.Now()
	if s.mixed.Swap(false) {
		s.mu.shared = now
	}
	return now.Sub(s.mu.shared) <= sharedFor
}

// Done notes that a request which was admitted has ended, or is about to be told so.
func (f *Flow) Done(io *domain.IO) {
	if io.Op == domain.OpFlush {
		return
	}
	s := f.s
	if s.probe.Load() == io {
		s.measured()
	}
	n := s.flight.Add(-1)
	if n >= waitBit && n-waitBit < s.window.Load() {
		s.mu.Lock()
		s.arm()
		s.mu.Unlock()
	}
	if s.resting.Load() > 0 {
		s.rouse(n &^ waitBit)
	}
}

// measured fits the window to the time that the probe took.
func (s *Scheduler) measured() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	s.mu.window.after(now, now.Sub(s.mu.probed), !s.mu.round.empty())
	s.window.Store(s.mu.window.size)
	s.probe.Store(nil)
}

// arm sees to it that the round is looked at on a goroutine of its own; mu is held.
func (s *Scheduler) arm() {
	if s.mu.armed || s.mu.running || s.mu.round.empty() {
		return
	}
	s.mu.armed = true
	if s.mu.timer == nil {
		s.mu.timer = s.clock.AfterFunc(0, s.release)
		return
	}
	s.mu.timer.Reset(0)
}

// release runs what waits, in the order of the round, while the device has room. Requests that end
// meanwhile make room for the next without another goroutine.
func (s *Scheduler) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.armed = false
	if s.mu.running {
		return
	}
	s.mu.running = true
	for !s.mu.round.empty() {
		if s.flight.Load()-waitBit >= s.window.Load() && s.isShared() {
			break
		}
		now := s.clock.Now()
		f, io := s.mu.round.next(now)
		s.flight.Add(1)
		if s.probe.Load() == nil {
			s.mu.probed = now
			s.probe.Store(io)
		}
		s.mu.Unlock()
		f.run(io)
		s.mu.Lock()
	}
	s.mu.running = false
	if s.mu.round.empty() {
		s.flight.And(^int64(waitBit))
	}
}

// Begin waits until a class of the device's own work may take its next turn, and gives how long it
// waited. Work that hosts will have to wait for is urgent and waits for nothing: urgent, which may
// be nil, is asked at every look and must not block. The turn ends with End; each class has one at
// a time, and one goroutine that asks for it.
func (s *Scheduler) Begin(c Class, urgent func() bool) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := s.clock.Now()
	now, rested := began, false
	s.resting.Add(1) // before the first look: what ends behind it wakes us
	for urgent == nil || !urgent() {
		hold := s.mu.duties.hold(c, now, s.hosts())
		if hold <= 0 {
			break
		}
		s.mu.duties[c].waiting, rested = true, true
		s.rest(c, hold)
		now = s.clock.Now()
	}
	s.resting.Add(-1)
	if rested {
		s.mu.duties[c].rested++
	}
	s.mu.duties.begin(c, now)
	return now.Sub(began)
}

// rest waits so long, or until there may be room for a class; mu is held, but not meanwhile.
func (s *Scheduler) rest(c Class, hold time.Duration) {
	t := s.clock.AfterFunc(hold, func() { s.Rouse(c) })
	s.mu.Unlock()
	<-s.wake[c]
	t.Stop()
	s.mu.Lock()
}

// hosts counts the requests of hosts under way and waiting; mu is held.
func (s *Scheduler) hosts() int64 {
	return s.flight.Load()&^waitBit + int64(s.mu.round.waiting())
}

// End ends the turn of a class.
func (s *Scheduler) End(c Class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.duties.end(c, s.clock.Now())
	for below := c + 1; below < classes; below++ {
		if s.mu.duties[below].waiting {
			s.Rouse(below)
		}
	}
}

// rouse lets the classes look again for which so many requests of hosts leave room just now.
func (s *Scheduler) rouse(hosts int64) {
	for c := range classes {
		if rooms(c).hosts == hosts {
			s.Rouse(c)
		}
	}
}

// Rouse lets a class that waits look again whether it may go, since it may have become urgent. It
// does not block; once too often costs a look.
func (s *Scheduler) Rouse(c Class) {
	select {
	case s.wake[c] <- struct{}{}:
	default:
	}
}

// Reading is what a scheduler does now.
type Reading struct {
	Flight  int64          // requests of hosts under way
	Waiting int64          // and waiting
	Window  int64          // requests under way at once while volumes share the device
	Rested  [classes]int64 // turns of each class that had to wait
}

// Reading reads the scheduler.
func (s *Scheduler) Reading() Reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Reading{
		Flight: s.flight.Load() &^ waitBit, Waiting: int64(s.mu.round.waiting()),
		Window: s.window.Load(),
	}
	for c := range r.Rested {
		r.Rested[c] = s.mu.duties[c].rested
	}
	return r
}
