package faulty

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/backends"
)

// Device passes everything to the device it wraps, except what its rules do. Its methods may be
// called from many goroutines; which of several calls at once is the n-th is then up to chance.
type Device struct {
	inner  backends.Device
	sleep  func(time.Duration)
	errors atomic.Int64 // made here, not by the device below
	closed chan struct{}
	once   sync.Once

	mu struct {
		sync.Mutex
		armed []*Armed
	}
}

var _ backends.Device = (*Device)(nil)

// Armed is a rule in force.
type Armed struct {
	dev     *Device
	rule    Rule
	release chan struct{}
	once    sync.Once
	// seen and fired are guarded by dev.mu.
	seen, fired int
	waiting     chan struct{} // one token for each operation that begins to stall
}

// stallMax bounds how many stalls of one rule Stalled can tell apart before it is read.
const stallMax = 1024

// New wraps a device, which it owns from now on. sleep waits for latency; nil is time.Sleep.
func New(inner backends.Device, sleep func(time.Duration), rules ...Rule) *Device {
	if sleep == nil {
		sleep = time.Sleep
	}
	d := &Device{inner: inner, sleep: sleep, closed: make(chan struct{})}
	for _, r := range rules {
		d.Add(r)
	}
	return d
}

// Add puts a rule in force, after those there are.
func (d *Device) Add(r Rule) *Armed {
	a := &Armed{
		dev: d, rule: r, release: make(chan struct{}), waiting: make(chan struct{}, stallMax),
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.armed = append(d.mu.armed, a)
	return a
}

// Script adds the rules of a text; see the package comment.
func (d *Device) Script(text string) error {
	rules, err := Parse(text)
	if err != nil {
		return err
	}
	for _, r := range rules {
		d.Add(r)
	}
	return nil
}

// Heal takes all rules out of force and releases what stalls.
func (d *Device) Heal() {
	d.mu.Lock()
	armed := d.mu.armed
	d.mu.armed = nil
	d.mu.Unlock()
	for _, a := range armed {
		a.Release()
	}
}

// Fired counts how often the rule fired.
func (a *Armed) Fired() int {
	a.dev.mu.Lock()
	defer a.dev.mu.Unlock()
	return a.fired
}

// Stalled gives a token for each operation that has begun to stall by this rule.
func (a *Armed) Stalled() <-chan struct{} { return a.waiting }

// Release lets go what stalls by this rule, and what would later.
func (a *Armed) Release() { a.once.Do(func() { close(a.release) }) }

// Remove takes the rule out of force and releases what stalls by it.
func (a *Armed) Remove() {
	a.dev.mu.Lock()
	a.dev.mu.armed = slices.DeleteFunc(a.dev.mu.armed, func(b *Armed) bool { return a == b })
	a.dev.mu.Unlock()
	a.Release()
}

// Geometry is that of the wrapped device.
func (d *Device) Geometry() backends.Geometry { return d.inner.Geometry() }

// Inner gives the wrapped device, past all rules.
func (d *Device) Inner() backends.Device { return d.inner }

// ReadAt reads, as the rules allow. Errors are those of the rules and of the wrapped device.
func (d *Device) ReadAt(p []byte, off int64) error {
	fired := d.match(Read, off, int64(len(p)))
	if err := d.hinder(fired); err != nil {
		return err
	}
	at := off
	for _, a := range fired {
		at += a.rule.Misdirect
	}
	if err := d.inner.ReadAt(p, at); err != nil {
		return err
	}
	flip(fired, p, off)
	return nil
}

// WriteAt writes, as the rules allow. Errors are those of the rules and of the wrapped device.
func (d *Device) WriteAt(p []byte, off int64, fua bool) error {
	fired := d.match(Write, off, int64(len(p)))
	if err := d.hinder(fired); err != nil {
		return err
	}
	if len(fired) == 0 {
		return d.inner.WriteAt(p, off, fua)
	}
	bad := backends.AlignedBuffer(len(p)) // the caller's bytes are not ours to spoil
	copy(bad, p)
	flip(fired, bad, off)
	at, n, block := off, len(p), d.inner.Geometry().LogicalBlock
	var err error
	for _, a := range fired {
		at += a.rule.Misdirect
		if a.rule.Lose {
			n = 0
		}
		if a.rule.Tear {
			n = min(n, a.rule.TearAt*block)
			if !a.rule.Silent {
				err = d.made("write", fmt.Errorf("torn: %w", backends.ErrMedia))
			}
		}
	}
	if n > 0 {
		if err := d.inner.WriteAt(bad[:n], at, fua); err != nil {
			return err
		}
	}
	return err
}

// Flush flushes, as the rules allow. A flush that fails by a rule flushes nothing.
func (d *Device) Flush(ctx context.Context) error {
	fired := d.match(Flush, 0, 0)
	if err := d.hinder(fired); err != nil {
		return err
	}
	if lost(fired) {
		return nil
	}
	return d.inner.Flush(ctx)
}

// Discard discards, as the rules allow.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	fired := d.match(Discard, off, n)
	if err := d.hinder(fired); err != nil {
		return err
	}
	if lost(fired) {
		return nil
	}
	return d.inner.Discard(ctx, off, n)
}

// FlipAtRest turns over one bit of what the device holds, durably: bit counts from the start of the
// device. Errors are those of the wrapped device.
func (d *Device) FlipAtRest(bit int64) error {
	block := int64(d.inner.Geometry().LogicalBlock)
	p := backends.AlignedBuffer(int(block))
	off := bit / 8 / block * block
	if err := d.inner.ReadAt(p, off); err != nil {
		return err
	}
	p[bit/8-off] ^= 1 << (bit % 8)
	return d.inner.WriteAt(p, off, true)
}

// Stats is that of the wrapped device; Errors also counts those made by rules.
func (d *Device) Stats() backends.DeviceStats {
	s := d.inner.Stats()
	s.Errors += d.errors.Load()
	return s
}

// Close ends what stalls, with ErrClosed, and closes the wrapped device.
func (d *Device) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.inner.Close()
}

// match gives the rules that fire for an operation.
func (d *Device) match(op Ops, off, n int64) []*Armed {
	d.mu.Lock()
	defer d.mu.Unlock()
	var fired []*Armed
	for _, a := range d.mu.armed {
		if !a.rule.matches(op, off, n) {
			continue
		}
		a.seen++
		if a.seen <= a.rule.After || a.rule.Times > 0 && a.fired >= a.rule.Times {
			continue
		}
		a.fired++
		fired = append(fired, a)
	}
	return fired
}

// hinder waits as the rules say and gives the error of the first that has one.
func (d *Device) hinder(fired []*Armed) error {
	for _, a := range fired {
		if a.rule.Delay > 0 {
			d.sleep(a.rule.Delay)
		}
		if !a.rule.Stall {
			continue
		}
		select {
		case a.waiting <- struct{}{}:
		default:
		}
		select {
		case <-a.release:
		case <-d.closed:
			return d.made("stall", backends.ErrClosed)
		}
	}
	for _, a := range fired {
		if a.rule.Err != nil {
			return d.made("rule", a.rule.Err)
		}
	}
	return nil
}

func (d *Device) made(what string, err error) error {
	d.errors.Add(1)
	return fmt.Errorf("faulty: %s: %w", what, err)
}

func lost(fired []*Armed) bool {
	return slices.ContainsFunc(fired, func(a *Armed) bool { return a.rule.Lose })
}

// flip spoils p, which stands for the bytes at off.
func flip(fired []*Armed, p []byte, off int64) {
	for _, a := range fired {
		if !a.rule.Flip || a.rule.FlipBit < 0 {
			continue
		}
		at := a.rule.FlipBit / 8
		if a.rule.Len > 0 {
			at += a.rule.Off - off
		}
		if at >= 0 && at < int64(len(p)) {
			p[at] ^= 1 << (a.rule.FlipBit % 8)
		}
	}
}
