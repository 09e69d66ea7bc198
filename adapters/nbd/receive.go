//go:build linux

package nbd

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// receiver reads from the socket into two places by one system call: the rest of a payload into its
// buffer, and the head of the next request behind it. Without the second place either every large
// payload costs a call more, or its first part is copied once more.
type receiver struct {
	conn    net.Conn
	raw     syscall.RawConn // nil: no socket of the kernel's, such as TLS
	iov     [2]syscall.Iovec
	used    int // places of iov
	n       int
	err     error
	attempt func(fd uintptr) bool // the method try, bound once
}

func (in *receiver) open(nc net.Conn) {
	in.conn, in.raw = nc, nil
	in.attempt = in.try
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			in.raw = raw
		}
	}
}

// read fills p and then ahead, as far as bytes are there, and waits for the first. It reads into p
// alone where the connection is no plain socket. P is not empty; ahead may be.
func (in *receiver) read(p, ahead []byte) (int, error) {
	if in.raw == nil {
		return in.conn.Read(p)
	}
	in.used = 1
	in.iov[0].Base = unsafe.SliceData(p)
	in.iov[0].SetLen(len(p))
	if len(ahead) > 0 {
		in.used = 2
		in.iov[1].Base = unsafe.SliceData(ahead)
		in.iov[1].SetLen(len(ahead))
	}
	in.n, in.err = 0, nil
	err := in.raw.Read(in.attempt)
	in.iov[0].Base, in.iov[1].Base = nil, nil // the payload belongs to others from here on
	if err == nil {
		err = in.err
	}
	if err == nil && in.n == 0 {
		err = io.EOF
	}
	return in.n, err
}

// try makes one attempt; false asks to be called again when there is something to read.
func (in *receiver) try(fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_READV, fd,
			uintptr(unsafe.Pointer(&in.iov[0])), uintptr(in.used))
		if errno == syscall.EINTR {
			continue
		}
		if errno == syscall.EAGAIN {
			return false
		}
		in.n = int(n)
		if errno != 0 {
			in.n, in.err = 0, errno
		}
		return true
	}
}
