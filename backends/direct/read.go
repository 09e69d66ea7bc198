//go:build linux

package direct

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft/backends"
	"weft/backends/uring"
)

// ringFrom is how many other reads must be under way for one to go through the ring. Measured by
// BenchmarkReadDepth on ext4 over a virtio disk, two busy cores, means of three runs in turns:
// IOPS, CPU per read, p99.
//
//	        pread                    ring
//	4 KiB
//	 1      13,800  30 us   0.34 ms  10,500  43 us   0.73 ms
//	 2      25,000  23 us   0.18 ms  19,900  26 us   0.33 ms
//	 4      33,300  20 us   0.51 ms  31,500  20 us   0.50 ms
//	 8      37,700  17 us   2.6 ms   40,500  14 us   1.0 ms
//	 32     42,000  16 us   24 ms    59,400  8.7 us  1.8 ms
//	 64     48,100  14 us   43 ms    73,800  6.6 us  3.8 ms
//	64 KiB
//	 1      7,800   46 us   0.28 ms  7,200   55 us   0.42 ms
//	 4      13,800  33 us   0.54 ms  13,200  22 us   0.75 ms
//	 8      15,500  27 us   0.94 ms  13,600  20 us   1.6 ms
//	 32     15,800  25 us   3.9 ms   15,600  13 us   4.0 ms
//	 64     13,800  29 us   9.5 ms   13,900  15 us   9.1 ms
//
// With 64 KiB the disk is the limit and the ring saves CPU alone. On tmpfs, 4 KiB and 32 deep,
// pread makes 583,000 at 1.9 us and the ring 178,000 at 4.5 us, so there it is not used.
const ringFrom = 2

// ringEntries bounds the reads in the ring; more wait for a place.
const ringEntries = 128

// reading chooses the way of each read.
type reading struct {
	flight atomic.Int64 // reads under way, both ways
	from   int64        // as ringFrom, for the tests to change
	off    bool         // no ring is wanted, or none would help

	once sync.Once
	ring *uring.Ring // nil is none to be had; read behind once
}

// read fills p from off, and ends early only with an error.
func (d *Device) read(p []byte, off int64) error {
	others := d.reading.flight.Add(1) - 1
	defer d.reading.flight.Add(-1)
	if others < d.reading.from || d.reading.off {
		return d.pread(p, off)
	}
	d.reading.once.Do(d.makeRing)
	if d.reading.ring == nil {
		return d.pread(p, off)
	}
	n, err := d.reading.ring.Read(d.fd, p, off)
	switch {
	case errors.Is(err, io.EOF):
		return errShort
	case errors.Is(err, unix.ENOMEM): // for the request, before it was begun
		return d.pread(p[n:], off+int64(n))
	}
	return err
}

// makeRing leaves the device without a ring where the kernel forbids it: pread does as well.
func (d *Device) makeRing() {
	r, err := uring.New(ringEntries)
	if err != nil {
		return
	}
	// Where the file cannot be registered its reads only cost a little more.
	_ = r.Register(d.fd)
	d.reading.ring = r
}

// pread reads in the system calls of the calling goroutine.
func (d *Device) pread(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(d.fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errShort // the file was cut off below us
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// started is a backends.Read on its way through the ring; pooled.
type started struct {
	d *Device
	r *backends.Read
	q uring.Request
}

var startedPool = sync.Pool{New: func() any { return new(started) }}

// request makes the ring's request of a read.
func (d *Device) request(r *backends.Read) *started {
	s := startedPool.Get().(*started) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	s.d, s.r = d, r
	s.q.FD, s.q.P, s.q.Off, s.q.To = d.fd, r.P, r.Off, s
	return s
}

func (s *started) put() {
	s.d, s.r, s.q = nil, nil, uring.Request{}
	startedPool.Put(s)
}

// StartRead implements backends.ReadStarter. It gives false where there is no ring to be had.
func (d *Device) StartRead(r *backends.Read, more bool) bool {
	if d.reading.off {
		return false
	}
	d.reading.once.Do(d.makeRing)
	if d.reading.ring == nil {
		return false
	}
	// The lock is held until the read has ended. Close waits for those started before, so they must
	// not be kept back while we wait for Close.
	if !d.life.TryRLock() {
		d.reading.ring.Kick()
		d.life.RLock()
	}
	if err := d.check("read", r.Off, int64(len(r.P)), r.P); err != nil {
		d.life.RUnlock()
		r.To.ReadDone(r, err)
		return true
	}
	d.reading.flight.Add(1)
	s := d.request(r)
	if err := d.reading.ring.Start(&s.q, more); err != nil {
		s.ReadDone(&s.q, err)
	}
	return true
}

// TryStartRead implements backends.ReadChainer. What StartRead would answer with an error is not
// begun.
func (d *Device) TryStartRead(r *backends.Read) bool {
	if d.reading.off {
		return false
	}
	d.reading.once.Do(d.makeRing)
	if d.reading.ring == nil || !d.life.TryRLock() {
		return false
	}
	if d.life.closed || d.geometry.Check(r.P, r.Off, int64(len(r.P))) != nil {
		d.life.RUnlock()
		return false
	}
	d.reading.flight.Add(1)
	s := d.request(r)
	if d.reading.ring.TryStart(&s.q) {
		return true
	}
	s.put()
	d.reading.flight.Add(-1)
	d.life.RUnlock()
	return false
}

// KickReads implements backends.ReadStarter.
func (d *Device) KickReads() {
	if d.reading.off {
		return
	}
	d.reading.once.Do(d.makeRing)
	if d.reading.ring != nil {
		d.reading.ring.Kick()
	}
}

// ReadDone implements uring.Done.
func (s *started) ReadDone(_ *uring.Request, err error) {
	if errors.Is(err, unix.ENOMEM) { // for the request, before it was begun
		go s.instead()
		return
	}
	s.finish(err)
}

// instead reads by system calls what the ring had no memory for.
func (s *started) instead() { s.finish(s.d.pread(s.r.P, s.r.Off)) }

// finish counts, gives the device's lock back, and then tells.
func (s *started) finish(err error) {
	d, r := s.d, s.r
	s.put()
	d.reading.flight.Add(-1)
	switch {
	case errors.Is(err, io.EOF):
		err = errShort
		fallthrough
	case err != nil:
		err = d.failed("read", r.Off, int64(len(r.P)), err)
	default:
		d.stats.reads.Add(1)
		d.stats.readBytes.Add(int64(len(r.P)))
	}
	d.life.RUnlock()
	r.To.ReadDone(r, err)
}
