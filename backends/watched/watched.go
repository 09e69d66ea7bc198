// Package watched wraps a device and tells a slow or failing one from one that is well, by what its
// writes and flushes take and how they end. It changes nothing of what passes through.
//
// A device is suspect when one of these rules holds:
//
//	stall         a write or flush has been under way for StallMax
//	write-errors  WriteErrorsMax writes or flushes failed within ErrorWindow
//	latency       the 99th percentile of a window of writes is over LatencyFactor times the median of
//	              those of the windows before, and over LatencyFloor: a fast device may vary
//
// It is well again when Quiet has passed without any of them. Each change is told once, in order.
// Nothing here decides what a suspect device may still do: that is for whoever is told.
//
// A device is compared with its own past. One window a minute becomes part of that, so what lasts
// for a quarter of an hour is the device's way from then on, and no longer held against it.
//
// A stall is noticed by Look, which the owner calls every LookEvery, so no goroutine is kept here
// and no call pays for a timer. A Look that comes late says that this process was held up, not the
// device: the machine slept, was out of memory, or somebody stopped it. What is under way then is
// taken as begun anew.
//
// A device that is only streamed to in the background, in writes of megabytes, is measured by
// another scale: it stalls after StreamStallMax, and the latency rule does not hold for it.
//
// Reads are not watched: those that hold no goroutine end elsewhere.
package watched

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"weft/backends"
)

// The rules' numbers.
const (
	// StallMax is three seconds, not one: shared disks of virtual machines do take one now and then.
	StallMax = 3 * time.Second
	// StreamStallMax leaves a disk the time in which it writes its own cache out.
	StreamStallMax = 15 * time.Second
	WriteErrorsMax = 3
	ErrorWindow    = 10 * time.Minute
	LatencyFactor  = 10
	LatencyFloor   = 20 * time.Millisecond
	// Quiet is how long none of the rules must hold before a suspect device is well again.
	Quiet = 10 * time.Minute
	// LookEvery is how often Look wants to be called, and lateMax the longest time between two calls
	// of it that is not held against the process.
	LookEvery = 250 * time.Millisecond
	lateMax   = time.Second / 2

	// window is how many writes a percentile is of; the slowest of them are what is above it.
	window  = 1000
	slowest = window / 100
	// history is how many windows are compared with, historyMin the fewest, historyEvery the least
	// time between two of them.
	history      = 32
	historyMin   = 8
	historyEvery = time.Minute
)

// State says how a device is.
type State uint8

// The states.
const (
	OK State = iota
	Suspect
)

// The names of the rules.
const (
	RuleStall   = "stall"
	RuleErrors  = "write-errors"
	RuleLatency = "latency"
)

// Change is a change of state, with the rule and what was seen; both are empty for OK.
type Change struct {
	State State
	Rule  string
	Why   string
}

// Reading is what a device's writes and flushes came to since New.
type Reading struct {
	P99      time.Duration // of the last whole window of writes; 0: there was none yet
	Stalls   int64         // that took as long as a stall and have ended
	Failures int64         // that failed by the device's fault
}

// Device passes all calls on and watches writes and flushes. Its methods may be called from many
// goroutines, and allocate nothing once as many calls were under way as ever are.
type Device struct {
	backends.Device
	now      func() time.Time
	tell     func(Change)
	stall    time.Duration
	streamed bool

	mu struct {
		sync.Mutex
		state  State
		last   time.Time   // when a rule held last
		looked time.Time   // when Look was called last; zero: never
		flight []time.Time // when each call under way began; zero: a free place
		free   []int       // the free places of flight

		errors [WriteErrorsMax]time.Time // the newest last; zero: none
		writes int                       // of the window
		top    [slowest]time.Duration    // the slowest of them, ascending
		past   []time.Duration           // percentiles of the windows before, the newest last
		kept   time.Time                 // when one was added to past
		sum    Reading
	}
}

var (
	_ backends.Device       = (*Device)(nil)
	_ backends.ReadStarter  = (*Device)(nil)
	_ backends.VectorWriter = (*Device)(nil)
)

// New wraps a device, which it owns from now on. tell hears of every change, one at a time, on the
// goroutine that noticed it; it must neither block nor call the device.
func New(inner backends.Device, now func() time.Time, tell func(Change)) *Device {
	d := &Device{Device: inner, now: now, tell: tell, stall: StallMax}
	d.mu.past = make([]time.Duration, 0, history)
	return d
}

// NewStreamed is New for a device that no host waits for and that gets large writes in order.
func NewStreamed(inner backends.Device, now func() time.Time, tell func(Change)) *Device {
	d := New(inner, now, tell)
	d.stall, d.streamed = StreamStallMax, true
	return d
}

// Doubt makes the device suspect without telling: it was when it was last seen, before a restart.
func (d *Device) Doubt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.state, d.mu.last = Suspect, d.now()
}

// State gives how the device is.
func (d *Device) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.state
}

// Reading gives what was counted so far.
func (d *Device) Reading() Reading {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.sum
}

// begin notes a call and gives its place for end.
func (d *Device) begin() int {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.mu.free)
	if n == 0 {
		d.mu.flight = append(d.mu.flight, now)
		return len(d.mu.flight) - 1
	}
	at := d.mu.free[n-1]
	d.mu.free = d.mu.free[:n-1]
	d.mu.flight[at] = now
	return at
}

// end judges a call by what it took and how it ended.
func (d *Device) end(at int, err error, write bool) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	took := now.Sub(d.mu.flight[at])
	d.mu.flight[at] = time.Time{}
	d.mu.free = append(d.mu.free, at)
	late := d.late(now)
	if deviceFault(err) {
		d.mu.sum.Failures++
		copy(d.mu.errors[:], d.mu.errors[1:])
		d.mu.errors[WriteErrorsMax-1] = now
		if first := d.mu.errors[0]; !first.IsZero() && now.Sub(first) <= ErrorWindow {
			d.suspect(now, RuleErrors, "writes fail: "+err.Error())
		}
	}
	switch {
	case late: // neither its time nor the device's
	case took >= d.stall:
		d.mu.sum.Stalls++
		d.suspect(now, RuleStall, "a write took "+took.Round(time.Millisecond).String())
	case write && err == nil:
		d.count(now, took)
	}
}

// deviceFault tells whether an error is the device's: one of a caller that asked for what there is
// not, or gave up waiting, is not.
func deviceFault(err error) bool {
	for _, other := range []error{
		context.Canceled, context.DeadlineExceeded, backends.ErrRange, backends.ErrAlign,
		backends.ErrClosed,
	} {
		if errors.Is(err, other) {
			return false
		}
	}
	return err != nil
}

// late tells whether this process was held up; mu is held.
func (d *Device) late(now time.Time) bool {
	return !d.mu.looked.IsZero() && now.Sub(d.mu.looked) > lateMax
}

// count counts a write and judges the window that it ends; mu is held.
func (d *Device) count(now time.Time, took time.Duration) {
	if top := d.mu.top[:]; took > top[0] {
		i, _ := slices.BinarySearch(top, took)
		copy(top, top[1:i])
		top[i-1] = took
	}
	if d.mu.writes++; d.mu.writes < window {
		return
	}
	p := d.mu.top[0]
	d.mu.sum.P99 = p
	d.mu.writes, d.mu.top = 0, [slowest]time.Duration{}
	if n := len(d.mu.past); n >= historyMin && p >= LatencyFloor && !d.streamed {
		var sorted [history]time.Duration
		copy(sorted[:], d.mu.past)
		slices.Sort(sorted[:n])
		if before := sorted[n/2]; p >= LatencyFactor*before {
			d.suspect(now, RuleLatency, "99 of 100 writes took up to "+p.String()+", before that "+
				before.String())
		}
	}
	if now.Sub(d.mu.kept) < historyEvery {
		return
	}
	d.mu.kept = now
	if len(d.mu.past) == history {
		copy(d.mu.past, d.mu.past[1:])
		d.mu.past = d.mu.past[:history-1]
	}
	d.mu.past = append(d.mu.past, p)
}

// suspect notes that a rule holds; mu is held.
func (d *Device) suspect(now time.Time, rule, why string) {
	was := d.mu.state
	d.mu.state, d.mu.last = Suspect, now
	if was != Suspect {
		d.tell(Change{Suspect, rule, why})
	}
}

// Look judges what is under way, and whether a suspect device is well again. Its owner calls it
// every LookEvery for as long as the device is used.
func (d *Device) Look() {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	late := d.late(now)
	d.mu.looked = now
	longest := time.Duration(0)
	for i, at := range d.mu.flight {
		switch {
		case at.IsZero():
		case late:
			d.mu.flight[i] = now
		default:
			longest = max(longest, now.Sub(at))
		}
	}
	switch {
	case longest >= d.stall:
		d.suspect(now, RuleStall,
			"a write has been under way for "+longest.Round(time.Millisecond).String())
	case d.mu.state == Suspect && now.Sub(d.mu.last) >= Quiet:
		d.mu.state = OK
		d.tell(Change{State: OK})
	}
}

// WriteAt implements backends.Device.
func (d *Device) WriteAt(p []byte, off int64, fua bool) error {
	at := d.begin()
	err := d.Device.WriteAt(p, off, fua)
	d.end(at, err, true)
	return err
}

// Flush implements backends.Device.
func (d *Device) Flush(ctx context.Context) error {
	at := d.begin()
	err := d.Device.Flush(ctx)
	d.end(at, err, false)
	return err
}

// WriteVAt implements backends.VectorWriter. Where the device below cannot, it writes buffer by
// buffer, with FUA on each where that was asked for.
func (d *Device) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	at := d.begin()
	err := backends.WriteV(d.Device, bufs, off, fua)
	d.end(at, err, true)
	return err
}

// StartRead implements backends.ReadStarter; false where the device below cannot.
func (d *Device) StartRead(r *backends.Read, more bool) bool {
	s, ok := d.Device.(backends.ReadStarter)
	return ok && s.StartRead(r, more)
}

// TryStartRead implements backends.ReadChainer; false where the device below cannot.
func (d *Device) TryStartRead(r *backends.Read) bool {
	s, ok := d.Device.(backends.ReadChainer)
	return ok && s.TryStartRead(r)
}

// KickReads implements backends.ReadStarter.
func (d *Device) KickReads() {
	if s, ok := d.Device.(backends.ReadStarter); ok {
		s.KickReads()
	}
}
