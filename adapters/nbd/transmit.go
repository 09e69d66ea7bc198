package nbd

import (
	"math"
	"net"

	"weft/domain"
)

// transmit reads requests and submits them until the client or we end the connection. It returns
// nil after DISC.
func (c *conn) transmit() error {
	for {
		if err := c.fill(requestLen); err != nil {
			return err
		}
		w, err := parseRequest(c.rd[c.rdAt:])
		if err != nil {
			return err
		}
		c.rdAt += requestLen
		if w.cmd == cmdDisc {
			return nil
		}
		if err := c.serve(w); err != nil {
			return err
		}
	}
}

// serve takes one request from the wire to the disk. An error ends the connection.
func (c *conn) serve(w wireRequest) error {
	if w.cmd == cmdWrite && w.length > requestMax {
		return errTooBig // to read that much only to refuse it helps nobody
	}
	fault := c.check(w)
	data := int64(0)
	if fault == nil {
		switch w.cmd {
		case cmdRead, cmdWrite, cmdCache:
			data = int64(w.length)
		case cmdBlockStatus:
			data = 4 + 8*extentsMax
		}
	}
	r := c.admit(data)
	if r == nil {
		return net.ErrClosed // by us, or the socket is dead
	}
	r.cookie, r.cmd, r.flags, r.off = w.cookie, w.cmd, w.flags, int64(w.off)
	r.io.Len = int64(w.length)
	if fault != nil {
		if w.cmd == cmdWrite {
			if err := c.skip(int(w.length)); err != nil {
				c.abandon(r)
				return err
			}
		}
		r.io.Err = fault
		c.complete(r)
		return nil
	}
	if w.cmd == cmdWrite {
		if err := c.fillFull(r.buf.data[:w.length]); err != nil {
			c.abandon(r)
			return err
		}
	}
	if w.cmd == cmdBlockStatus {
		r.io.Err = c.status(r)
		c.complete(r)
		return nil
	}
	c.submit(r)
	return nil
}

func (c *conn) submit(r *request) {
	io := &r.io
	io.Off = r.off
	io.FUA = r.flags&cmdFUA != 0
	io.More = c.rdEnd-c.rdAt >= requestLen
	if r.cmd != cmdRead {
		c.kick()
	}
	switch r.cmd {
	case cmdRead, cmdCache: // a cache hint is a read whose data stays here
		io.Gather = io.More && r.cmd == cmdRead && c.kicker != nil
		c.kept = c.kept || io.Gather
		io.Op, io.FUA = domain.OpRead, false
		io.Buf = r.buf.data[:io.Len]
	case cmdWrite:
		io.Op = domain.OpWrite
		io.Lent = c.server.cfg.Memory != nil && len(r.buf.data) >= slabMin
		io.Buf = r.buf.data[:io.Len]
	case cmdWriteZeroes:
		io.Op, io.NoUnmap = domain.OpZero, r.flags&cmdNoHole != 0
	case cmdTrim:
		io.Op = domain.OpUnmap
	case cmdFlush:
		io.Op, io.FUA = domain.OpFlush, false
		io.Off, io.Len = 0, 0
	}
	c.disk.Submit(io)
}

// check gives what is wrong with a request, nil if nothing is.
func (c *conn) check(w wireRequest) error {
	known := uint16(cmdFUA) // valid everywhere, and without meaning for what does not write
	switch w.cmd {
	case cmdRead:
		if c.structured {
			known |= cmdDF
		}
	case cmdWriteZeroes:
		known |= cmdNoHole | cmdFastZero
	case cmdBlockStatus:
		known |= cmdReqOne
		if !c.meta0 {
			return domain.Errorf(domain.Invalid, "no context was negotiated")
		}
	case cmdWrite, cmdTrim, cmdCache, cmdFlush:
	default:
		return domain.Errorf(domain.Unsupported, "command %d", w.cmd)
	}
	block := uint64(c.info0.LogicalBlock)
	switch {
	case w.flags&^known != 0:
		return domain.Errorf(domain.Invalid, "flags %#x", w.flags)
	case w.cmd == cmdFlush:
		return nil
	case c.readOnly && (w.cmd == cmdWrite || w.cmd == cmdWriteZeroes || w.cmd == cmdTrim):
		return domain.Errorf(domain.ReadOnly, "the export is read-only")
	case w.length == 0:
		return domain.Errorf(domain.Invalid, "no length")
	case w.off > math.MaxInt64 || int64(w.off) > int64(c.info0.Size)-int64(w.length):
		return domain.Errorf(domain.OutOfRange, "beyond the end")
	case (w.off|uint64(w.length))%block != 0:
		return domain.Errorf(domain.Invalid, "not made of blocks of %d", block)
	case w.length > requestMax && (w.cmd == cmdRead || w.cmd == cmdCache):
		return domain.Errorf(domain.TooLarge, "over %d bytes", requestMax)
	}
	return nil
}

// status writes the body of a block status reply into the request's buffer:
//
//	| context id 4 | length 4 | flags 4 | ...
//
// Neighbours in the same state are one descriptor. The reply may end before the request does. The
// disk is asked window by window, so that its answer stays small too.
func (c *conn) status(r *request) error {
	l := statusList{
		b: be.AppendUint32(r.buf.data[:0], metaID), max: extentsMax, at: r.off, end: r.off + r.io.Len,
	}
	if r.flags&cmdReqOne != 0 {
		l.max = 1
	}
	for l.at < l.end {
		var err error
		n := min(l.end-l.at, statusWindow)
		if c.extents, err = c.disk.Extents(l.at, n, c.extents[:0]); err != nil {
			return err
		}
		if !l.add(c.extents) {
			break
		}
	}
	if l.length == 0 { // a disk that knows nothing has data everywhere
		l.length = r.io.Len
	}
	l.put()
	r.payload = l.b
	return nil
}

// statusList gathers descriptors. The last one is not in b yet: it may still grow.
type statusList struct {
	b       []byte
	max, n  int // descriptors
	at, end int64
	length  int64
	state   uint32
}

// add takes what follows at; false when there is no room, or nothing is known of at.
func (l *statusList) add(extents []domain.Extent) bool {
	before := l.at
	for _, e := range extents {
		from, to := max(e.Off, l.at), min(e.Off+e.Len, l.end)
		if from != l.at || to <= from {
			continue // outside the request, or behind a gap
		}
		state := extentState(e)
		if l.length > 0 && state != l.state {
			if l.n+1 == l.max {
				return false
			}
			l.put()
		}
		l.state = state
		l.length += to - from
		l.at = to
	}
	return l.at > before
}

func (l *statusList) put() {
	l.b = be.AppendUint32(be.AppendUint32(l.b, uint32(l.length)), l.state)
	l.n, l.length = l.n+1, 0
}

func extentState(e domain.Extent) uint32 {
	s := uint32(0)
	if e.Hole {
		s |= stateHole | stateZero
	}
	if e.Zero {
		s |= stateZero
	}
	return s
}
