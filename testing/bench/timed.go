package main

import (
	"context"
	"sync/atomic"
	"time"

	"weft/backends/direct"
)

// timed is a device that knows how long the longest call into it took. What a host waits for beyond
// that is the engine's.
type timed struct {
	*direct.Device
	longest atomic.Int64 // ns
}

// took notes a call that began then.
func (d *timed) took(began time.Time) {
	for n := int64(time.Since(began)); ; {
		if was := d.longest.Load(); n <= was || d.longest.CompareAndSwap(was, n) {
			return
		}
	}
}

// again gives the longest call so far, and begins anew.
func (d *timed) again() time.Duration { return time.Duration(d.longest.Swap(0)) }

func (d *timed) ReadAt(p []byte, off int64) error {
	defer d.took(time.Now())
	return d.Device.ReadAt(p, off)
}

func (d *timed) WriteAt(p []byte, off int64, fua bool) error {
	defer d.took(time.Now())
	return d.Device.WriteAt(p, off, fua)
}

func (d *timed) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	defer d.took(time.Now())
	return d.Device.WriteVAt(bufs, off, fua)
}

func (d *timed) Flush(ctx context.Context) error {
	defer d.took(time.Now())
	return d.Device.Flush(ctx)
}
