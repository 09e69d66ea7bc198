package faulty

import (
	"context"
	"sync"
	"time"

	"weft/backends"
)

// Timing is that of a disk that turns.
type Timing struct {
	Seek time.Duration // of the head from anywhere to anywhere
	Turn time.Duration // one rotation
	Rate int64         // bytes a second on a track and on to the next
}

// SevenTwo is a common disk of 7,200 turns a minute.
func SevenTwo() Timing {
	return Timing{Seek: 8 * time.Millisecond, Turn: 8333 * time.Microsecond, Rate: 200e6}
}

// Disk passes everything to the device it wraps and reckons what a disk that turns would have taken
// for it, in virtual time: nothing waits. An access that goes on where the one before ended costs
// its bytes at the rate; any other a seek, half a turn and its bytes. A write with FUA and a flush,
// of what was written since the last one, cost a whole turn more: the medium has passed by
// meanwhile. Calls are taken one at a time, in the order in which they come; it starts no reads, so
// that every access passes by. Its methods may be called from many goroutines.
type Disk struct {
	backends.Device
	timing Timing

	mu struct {
		sync.Mutex
		head  int64 // where the last access ended
		dirty bool
		busy  time.Duration
		at    []Access
	}
}

var _ backends.VectorWriter = (*Disk)(nil)

// Access is a write that a Disk took. Off and Len are bytes.
type Access struct{ Off, Len int64 }

// NewDisk wraps a device, which it owns from now on.
func NewDisk(inner backends.Device, t Timing) *Disk {
	return &Disk{Device: inner, timing: t}
}

// Geometry is that of the wrapped device, but that it turns.
func (d *Disk) Geometry() backends.Geometry {
	g := d.Device.Geometry()
	g.Rotational = true
	return g
}

// Busy gives how long the disk would have been at work so far.
func (d *Disk) Busy() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.busy
}

// Writes gives all writes since the last call of Writes, in order.
func (d *Disk) Writes() []Access {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.mu.at
	d.mu.at = nil
	return list
}

// access reckons one access; mu is held.
func (d *Disk) access(off, n int64) {
	if off != d.mu.head {
		d.mu.busy += d.timing.Seek + d.timing.Turn/2
	}
	d.mu.busy += time.Duration(float64(n) / float64(d.timing.Rate) * float64(time.Second))
	d.mu.head = off + n
}

// write reckons a write; mu is held.
func (d *Disk) write(off, n int64, fua bool) {
	d.access(off, n)
	d.mu.at = append(d.mu.at, Access{off, n})
	if d.mu.dirty = true; fua {
		d.mu.busy += d.timing.Turn
	}
}

// ReadAt implements backends.Device.
func (d *Disk) ReadAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.access(off, int64(len(p)))
	return d.Device.ReadAt(p, off)
}

// WriteAt implements backends.Device.
func (d *Disk) WriteAt(p []byte, off int64, fua bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.write(off, int64(len(p)), fua)
	return d.Device.WriteAt(p, off, fua)
}

// WriteVAt implements backends.VectorWriter: one access.
func (d *Disk) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	d.write(off, n, fua)
	return backends.WriteV(d.Device, bufs, off, fua)
}

// Flush implements backends.Device.
func (d *Disk) Flush(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.dirty {
		d.mu.busy += d.timing.Turn
		d.mu.dirty = false
	}
	return d.Device.Flush(ctx)
}
