package nbd

import (
	"math/bits"
	"unsafe"

	"weft/domain"
)

const (
	bufferMinShift = 12 // 4 KiB
	bufferMaxShift = 25 // requestMax
	bufferClasses  = bufferMaxShift - bufferMinShift + 1
	bufferAlign    = 4096
	slabMin        = 64 << 10 // from this size on buffers are cut from memory of Config.Memory
	slabSize       = 4 << 20  // what it is asked for at least
)

// buffer is memory for the data of a request: its address is a multiple of 4096 and its size a
// power of two.
type buffer struct {
	data  []byte
	class int
	next  *buffer
}

// classOf gives the smallest class that holds n bytes, n at most requestMax.
func classOf(n int64) int {
	if n <= 1<<bufferMinShift {
		return 0
	}
	return bits.Len64(uint64(n-1)) - bufferMinShift
}

func classSize(class int) int64 { return 1 << (class + bufferMinShift) }

// newBuffer makes a buffer, and others of its class in passing where they come out of one piece of
// memory: those are left in the server's pool.
func newBuffer(srv *Server, class int) *buffer {
	n := int(classSize(class))
	memory := srv.cfg.Memory
	if memory == nil || n < slabMin {
		raw := make([]byte, n+bufferAlign)
		skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (bufferAlign - 1)
		return &buffer{data: raw[skip : skip+n : skip+n], class: class}
	}
	slab := memory(max(n, slabSize))
	for rest := slab[n:]; len(rest) >= n; rest = rest[n:] {
		srv.pools[class].Put(&buffer{data: rest[:n:n], class: class})
	}
	return &buffer{data: slab[:n:n], class: class}
}

// request is one request in flight. It belongs to the reader until Submit, to the disk until
// Complete, then to the queue and whoever sends.
type request struct {
	io     domain.IO
	conn   *conn
	next   *request
	cookie uint64
	off    int64
	cmd    uint16
	flags  uint16
	buf    *buffer
	size   int64 // bytes it holds of flightBytesMax
	// payload is the body of a block status reply, inside buf.
	payload []byte
}

// Complete takes the outcome of an I/O. It implements domain.Completer.
func (r *request) Complete(*domain.IO) { r.conn.complete(r) }

// stock keeps requests and buffers for reuse. It is guarded by the connection's lock.
type stock struct {
	requests *request
	buffers  [bufferClasses]*buffer
	kept     int64 // bytes of buffers
}

func (s *stock) request(c *conn) *request {
	r := s.requests
	if r == nil {
		r = &request{conn: c}
		r.io.To = r
		return r
	}
	s.requests, r.next = r.next, nil
	return r
}

func (s *stock) buffer(srv *Server, class int) *buffer {
	if b := s.buffers[class]; b != nil {
		s.buffers[class], b.next = b.next, nil
		s.kept -= classSize(class)
		return b
	}
	if b, ok := srv.pools[class].Get().(*buffer); ok {
		return b
	}
	return newBuffer(srv, class)
}

// put takes back a request and its buffer.
func (s *stock) put(srv *Server, r *request) {
	if b := r.buf; b != nil {
		if s.kept+classSize(b.class) <= keepMax {
			b.next, s.buffers[b.class] = s.buffers[b.class], b
			s.kept += classSize(b.class)
		} else {
			srv.pools[b.class].Put(b)
		}
	}
	*r = request{conn: r.conn, next: s.requests}
	r.io.To = r
	s.requests = r
}
