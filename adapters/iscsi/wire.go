//go:build linux

package iscsi

import (
	"net"
	"syscall"
	"unsafe"
)

// wire writes byte vectors to a connection, at will without waiting for room in the socket. Its
// array lives as long as the connection: a local net.Buffers allocates, and cannot give up.
type wire struct {
	conn  net.Conn
	raw   syscall.RawConn // nil: no socket of the kernel's
	iov   [vectorsMax]syscall.Iovec
	n, at int // iov[at:n] is to be written

	wait    bool
	done    bool
	err     error
	attempt func(fd uintptr) bool // the method try, bound once
}

func (o *wire) open(conn net.Conn) {
	o.conn, o.attempt = conn, o.try
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			o.raw = raw
		}
	}
}

// add appends bytes to what is to be written. Neighbours in memory share an entry.
func (o *wire) add(b []byte) {
	if o.n > 0 {
		last := &o.iov[o.n-1]
		end := uintptr(unsafe.Pointer(last.Base)) + uintptr(last.Len)
		if end == uintptr(unsafe.Pointer(&b[0])) {
			last.SetLen(int(last.Len) + len(b))
			return
		}
	}
	o.iov[o.n].Base = &b[0]
	o.iov[o.n].SetLen(len(b))
	o.n++
}

// flush writes everything. Without wait it gives up where the socket takes no more, and goes on
// there the next time.
func (o *wire) flush(wait bool) (done bool, err error) {
	switch {
	case o.at == o.n:
		return true, nil
	case o.raw == nil:
		return o.flushSlow(wait)
	}
	o.wait, o.done, o.err = wait, false, nil
	if err := o.raw.Write(o.attempt); err != nil {
		return false, err
	}
	return o.done, o.err
}

// try makes one attempt; false asks to be called again when the socket takes more.
func (o *wire) try(fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd,
			uintptr(unsafe.Pointer(&o.iov[o.at])), uintptr(o.n-o.at))
		switch {
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			return !o.wait
		case errno != 0:
			o.err = errno
			return true
		case o.advance(int(n)):
			o.done = true
			return true
		}
	}
}

// advance drops n written bytes; true when nothing is left.
func (o *wire) advance(n int) bool {
	for n > 0 {
		v := &o.iov[o.at]
		if n < int(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return false
		}
		n -= int(v.Len)
		v.Base = nil
		o.at++
	}
	if o.at < o.n {
		return false
	}
	o.at, o.n = 0, 0
	return true
}

// flushSlow writes to what is no plain socket. It can only wait, so only the writer does it.
func (o *wire) flushSlow(wait bool) (done bool, err error) {
	if !wait {
		return false, nil
	}
	for o.at < o.n {
		v := &o.iov[o.at]
		n, err := o.conn.Write(unsafe.Slice(v.Base, v.Len))
		if err != nil {
			return false, err
		}
		o.advance(n)
	}
	return true, nil
}
