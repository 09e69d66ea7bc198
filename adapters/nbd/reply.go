//go:build linux

package nbd

import (
	"bufio"
	"bytes"
	"net"
	"syscall"
	"unsafe"

	"weft/domain"
)

// headMax is the longest header of a reply: an error chunk with its text, in bytes.
const headMax = 64

// sender puts the replies of a batch together and writes them. Its arrays live as long as the
// connection: a local net.Buffers costs two allocations a call, and does not say "would block".
type sender struct {
	conn  net.Conn
	raw   syscall.RawConn // nil: no socket of the kernel's, such as TLS
	batch *request        // what is being written, in order

	iov   [2 * batchMax]syscall.Iovec
	n, at int // iov[at:n] is to be written
	head  [batchMax * headMax]byte
	used  int

	wait    bool
	done    bool
	err     error
	attempt func(fd uintptr) bool // the method try, bound once
}

func (o *sender) open(nc net.Conn) {
	o.conn, o.raw = nc, nil
	o.attempt = o.try
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			o.raw = raw
		}
	}
}

// header gives n bytes of header space that will be written next. Headers that follow each other
// share one entry.
func (o *sender) header(n int) []byte {
	b := o.head[o.used : o.used+n : o.used+n]
	o.used += n
	if o.n > 0 {
		last := &o.iov[o.n-1]
		end := uintptr(unsafe.Pointer(last.Base)) + uintptr(last.Len)
		if end == uintptr(unsafe.Pointer(&b[0])) {
			last.SetLen(int(last.Len) + n)
			return b
		}
	}
	o.add(b)
	return b
}

func (o *sender) add(p []byte) {
	o.iov[o.n].Base = unsafe.SliceData(p)
	o.iov[o.n].SetLen(len(p))
	o.n++
}

// flush writes what is put together. Without wait it gives up where the socket takes no more, and
// goes on there the next time.
func (o *sender) flush(wait bool) (done bool, err error) {
	if o.raw == nil {
		return o.flushSlow(wait)
	}
	o.wait, o.done, o.err = wait, false, nil
	if err := o.raw.Write(o.attempt); err != nil {
		return false, err
	}
	return o.done, o.err
}

// try makes one attempt; false asks to be called again when the socket takes more.
func (o *sender) try(fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd,
			uintptr(unsafe.Pointer(&o.iov[o.at])), uintptr(o.n-o.at))
		if errno == syscall.EINTR {
			continue
		}
		if errno == syscall.EAGAIN {
			return !o.wait
		}
		if errno != 0 {
			o.err = errno
			return true
		}
		if o.advance(int(n)) {
			o.done = true
			return true
		}
	}
}

// advance drops n written bytes; true when nothing is left.
func (o *sender) advance(n int) bool {
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
	return o.at == o.n
}

// flushSlow writes to what is no plain socket. It can only wait, so only the writer does it.
func (o *sender) flushSlow(wait bool) (bool, error) {
	if !wait {
		return false, nil
	}
	w := bufio.NewWriterSize(o.conn, readBuffer)
	for _, v := range o.iov[o.at:o.n] {
		if _, err := w.Write(unsafe.Slice(v.Base, v.Len)); err != nil {
			return false, err
		}
	}
	return true, w.Flush()
}

// build turns the batch into bytes, counts and logs. gone says that one of the replies also ends
// the connection.
func (c *conn) build() (gone bool) {
	o := &c.out
	o.n, o.at, o.used = 0, 0, 0
	for r := o.batch; r != nil; r = r.next {
		ops := &c.server.stats
		if int(r.cmd) < len(ops.ops) {
			ops.ops[r.cmd].Add(1)
		}
		switch {
		case r.io.Err != nil:
			gone = c.buildError(r) || gone
			continue
		case r.cmd == cmdBlockStatus:
			c.chunk(r, chunkBlockStatus, 0, len(r.payload))
			o.add(r.payload)
		case r.cmd == cmdRead:
			c.buildRead(r)
		default:
			c.simple(r, 0)
		}
		if int(r.cmd) < len(ops.bytes) {
			ops.bytes[r.cmd].Add(r.io.Len)
		}
	}
	return gone
}

func (c *conn) buildRead(r *request) {
	data := r.buf.data[:r.io.Len]
	if !c.structured {
		c.simple(r, 0)
		c.out.add(data)
		return
	}
	if len(data) >= holeMin && r.flags&cmdDF == 0 && zero(data) {
		b := c.chunk(r, chunkOffsetHole, 12, 0)
		be.PutUint64(b, uint64(r.off))
		be.PutUint32(b[8:], uint32(len(data)))
		return
	}
	be.PutUint64(c.chunk(r, chunkOffsetData, 8, len(data)), uint64(r.off))
	c.out.add(data)
}

// buildError answers by an error; the text is our word for its kind and gives nothing away.
func (c *conn) buildError(r *request) (gone bool) {
	kind := domain.KindOf(r.io.Err)
	code := wireError(kind, r.cmd, r.flags)
	c.server.stats.errors.Add(1)
	log := c.log.Warn
	if clientFault(kind) {
		log = c.log.Debug // a client must not be able to fill the log
	}
	log("nbd: request failed", "command", r.cmd, "off", r.off, "len", r.io.Len,
		"kind", kind, "err", r.io.Err)
	if !c.structured {
		c.simple(r, code)
		return pathGone(kind)
	}
	text := kind.String()
	b := c.chunk(r, chunkError, 6+len(text), 0)
	be.PutUint32(b, code)
	be.PutUint16(b[4:], uint16(len(text)))
	copy(b[6:], text)
	return pathGone(kind)
}

// simple puts a simple reply together:
//
//	| magic 4 | error 4 | cookie 8 |
func (c *conn) simple(r *request, code uint32) {
	b := c.out.header(simpleLen)
	be.PutUint32(b, magicSimple)
	be.PutUint32(b[4:], code)
	be.PutUint64(b[8:], r.cookie)
}

// chunk puts the header of the one chunk of a structured reply together and gives the n bytes which
// follow it; more bytes come after those:
//
//	| magic 4 | flags 2 | type 2 | cookie 8 | length 4 |
func (c *conn) chunk(r *request, kind uint16, n, more int) []byte {
	b := c.out.header(chunkLen + n)
	be.PutUint32(b, magicStructured)
	be.PutUint16(b[4:], chunkDone)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], r.cookie)
	be.PutUint32(b[16:], uint32(n+more))
	return b[chunkLen:]
}

var zeros [4096]byte

// zero tells whether p, a multiple of 512 bytes long, is all zero.
func zero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
