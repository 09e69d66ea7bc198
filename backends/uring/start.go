//go:build linux

package uring

import (
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request is a read that no goroutine waits for. From Start until To.ReadDone it belongs to the
// ring, and so does P; what the package comment says of buffers holds for P.
type Request struct {
	FD  int
	P   []byte // not empty
	Off int64  // bytes
	To  Done

	n int // bytes read
}

// Done is told once of the end of a Request: nil, io.EOF when the file ends early, or a unix.Errno.
// It runs on the ring's own goroutine, which all reads wait for: it must not block, and must not
// read through this ring but by TryStart.
type Done interface {
	ReadDone(q *Request, err error)
}

// Start queues a request, and hands it to the kernel with all that is queued unless more is set.
// With more the caller promises another Start or Kick before it waits for anything. While as many
// reads as the ring has entries are under way Start hands over what is queued and waits for a slot.
//
// Errors: os.ErrClosed, and then q is not started.
func (r *Ring) Start(q *Request, more bool) error {
	var s *slot
	var ok bool
	select {
	case s, ok = <-r.free:
	default:
		r.Kick() // the slots may all be held by what nobody has handed over
		s, ok = <-r.free
	}
	if !ok {
		return os.ErrClosed
	}
	q.n = 0
	r.put(s, q, q.FD, q.P, q.Off)
	if !more {
		r.Kick()
	}
	return nil
}

// TryStart queues a request as Start does with more, and never waits: false says that all slots are
// taken, or that the ring is closed, and that q is not started. It may be called from ReadDone. It
// needs no Kick: called from there, what is still queued when all reads that have ended are told of
// it goes to the kernel in the call in which the reaper waits for the next.
func (r *Ring) TryStart(q *Request) bool {
	var s *slot
	select {
	case s = <-r.free: // nil when it is closed
	default:
	}
	if s == nil {
		return false
	}
	r.chained.Add(1)
	q.n = 0
	// A device that had run dry works on the first read while the next are looked up, and what is
	// handed over at once doubles from call to call. Start does not do so: whoever submits from
	// outside competes with those that the early results wake. Through NBD, 32 deep, it cost 3 us
	// of 18.
	//
	// Either the reaper sees the request when it has laid awake down, or we see that it has.
	if dry := r.put(s, q, q.FD, q.P, q.Off); dry || !r.awake.Load() {
		r.Kick()
	}
	return true
}

// Kick hands to the kernel what is queued.
func (r *Ring) Kick() {
	r.line.Lock()
	if r.line.submitting || r.line.closed {
		r.line.Unlock()
		return // whoever does takes it along
	}
	r.line.submitting = true
	r.submit() // unlocks
}

// put queues the request of a slot; q is nil when a goroutine waits for it. It tells whether the
// kernel has no more to do than is queued.
func (r *Ring) put(s *slot, q *Request, fd int, p []byte, off int64) (dry bool) {
	s.p = p
	e := sqe{
		opcode: opRead, fd: int32(fd), off: uint64(off), userData: uint64(s.index),
		addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))),
		len:  uint32(min(len(p), maxRead)),
	}
	if fd == r.fixed {
		e.flags, e.fd = sqeFixedFile, 0
	}
	s.q.Store(q) // first, for whoever sees the request sees what stands here
	r.line.Lock()
	n := r.queue(e, s.index)
	r.line.Unlock()
	return int64(n) >= r.flight.Load()
}

// queue adds the request of a slot and gives how many there are. The caller holds line.
func (r *Ring) queue(e sqe, slot uint32) uint32 {
	r.sq.requests[slot] = e // the kernel has copied what stood here
	tail := *r.sq.tail
	r.sq.order[tail&r.sq.mask] = slot
	// The kernel may take it from here on: another one's call is under way or comes at any time.
	atomic.StoreUint32(r.sq.tail, tail+1)
	return tail + 1 - atomic.LoadUint32(r.sq.head)
}

// result takes the kernel's result of a started request: it goes on after a short read, and ends
// the request otherwise. The caller is the reaper; again says that it has to hand over more.
func (r *Ring) result(s *slot, res int32) (again bool) {
	q := s.q.Load()
	var err error
	switch {
	case res > 0:
		q.n += int(res)
		again = q.n < len(q.P)
	case res == 0:
		err = io.EOF
	default:
		errno := unix.Errno(-res)
		again = passing(errno)
		err = errno
	}
	if again {
		r.put(s, q, q.FD, q.P[q.n:], q.Off+int64(q.n))
		return true
	}
	r.end(s, err)
	return false
}

// end gives a started request back, and its slot to the next.
func (r *Ring) end(s *slot, err error) {
	q := s.q.Load()
	runtime.KeepAlive(s.p)
	s.p = nil
	s.q.Store(nil)
	r.free <- s // before the caller hears of it, so that it finds a place for the next
	q.To.ReadDone(q, err)
}
