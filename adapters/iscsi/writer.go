package iscsi

import (
	"encoding/binary"
	"net"
)

// The kinds of what a writer sends.
const (
	sendPacket = iota
	sendResponse
	sendR2T
)

// outgoing is one thing to send.
type outgoing struct {
	kind     int
	command  *command
	packet   *packet
	lun      [8]byte
	tag      uint32
	transfer uint32
	number   uint32
	offset   uint32
	length   uint32
}

// packet is a PDU that is no command response. The writer fills in the sequence numbers.
type packet struct {
	header header
	data   []byte
	status bool // carries and advances StatSN
	last   bool // the connection is closed after it
}

// send queues a packet.
func (c *session) send(p *packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue(p)
}

// queue is send with c.mu held. An initiator that makes us queue answers without reading them is
// cut off.
func (c *session) queue(p *packet) {
	if c.mu.packets++; c.mu.packets > packetsMax {
		c.mu.closed = true
		_ = c.conn.Close()
	}
	c.mu.out = append(c.mu.out, outgoing{kind: sendPacket, packet: p})
	c.wake.Broadcast()
}

// reject queues a Reject of a PDU.
func (c *session) reject(reason byte, bad *header) {
	c.server.count.rejects.Add(1)
	p := &packet{status: true, data: append([]byte(nil), bad[:]...)}
	p.header[0], p.header[1], p.header[2] = opReject, flagFinal, reason
	p.header.put(16, noTag)
	c.send(p)
}

// ping queues a NOP-In that wants an answer. c.mu is held.
func (c *session) ping() {
	p := &packet{}
	p.header[0], p.header[1] = opNopIn, flagFinal
	p.header.put(16, noTag)
	c.mu.tags++
	p.header.put(20, c.mu.tags&0x7fffffff)
	c.queue(p)
}

// async queues an asynchronous message. c.mu is held.
func (c *session) async(event byte, p1, p2, p3 uint16) {
	p := &packet{status: true}
	p.header[0], p.header[1], p.header[36] = opAsync, flagFinal, event
	p.header.put(16, noTag)
	binary.BigEndian.PutUint16(p.header[38:], p1)
	binary.BigEndian.PutUint16(p.header[40:], p2)
	binary.BigEndian.PutUint16(p.header[42:], p3)
	c.queue(p)
}

// The writer's room: headers, digests and padding of one writev.
const (
	arenaSize  = 32 << 10
	vectorsMax = 512
)

// writer is the state of the writer goroutine.
type writer struct {
	c       *session
	batch   []outgoing
	arena   []byte
	vectors net.Buffers
	view    net.Buffers // what WriteTo consumes of vectors
	sent    int         // of batch: how much may be given back
	last    bool
}

// write sends what is queued until the session closes, and starts commands that waited for bytes.
func (c *session) write() {
	w := &writer{c: c, arena: make([]byte, 0, arenaSize)}
	for {
		c.mu.Lock()
		for len(c.mu.out) == 0 && !c.mu.admit && !c.mu.closed {
			c.wake.Wait()
		}
		if c.mu.closed {
			c.mu.Unlock()
			return
		}
		if c.mu.admit {
			c.mu.admit = false
			c.admitWaiting()
		}
		w.batch, c.mu.out = c.mu.out, w.batch[:0]
		c.mu.Unlock()
		err := w.run()
		if err != nil || w.last {
			c.kill()
			w.abandon()
			return
		}
	}
}

// run sends one batch.
func (w *writer) run() error {
	w.sent = 0
	for i := range w.batch {
		if err := w.encode(&w.batch[i]); err != nil {
			return err
		}
		if len(w.vectors) > vectorsMax/2 || cap(w.arena)-len(w.arena) < arenaSize/2 {
			if err := w.flush(i + 1); err != nil {
				return err
			}
		}
	}
	return w.flush(len(w.batch))
}

// flush writes what was encoded and frees the commands of the batch below upTo.
func (w *writer) flush(upTo int) error {
	if len(w.vectors) > 0 {
		w.view = w.vectors
		if _, err := w.view.WriteTo(w.c.conn); err != nil {
			return err
		}
		clear(w.vectors)
		w.vectors, w.arena = w.vectors[:0], w.arena[:0]
	}
	w.free(upTo)
	return nil
}

func (w *writer) free(upTo int) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; w.sent < upTo; w.sent++ {
		o := &w.batch[w.sent]
		switch o.kind {
		case sendResponse:
			c.recycle(o.command)
		case sendPacket:
			c.mu.packets--
		}
		*o = outgoing{}
	}
}

// abandon frees what could not be sent.
func (w *writer) abandon() { w.free(len(w.batch)) }

func (w *writer) encode(o *outgoing) error {
	switch o.kind {
	case sendResponse:
		return w.response(o.command)
	case sendR2T:
		h := w.header()
		h[0], h[1] = opR2T, flagFinal
		copy(h[8:16], o.lun[:])
		h.put(16, o.tag)
		h.put(20, o.transfer)
		h.put(36, o.number)
		h.put(40, o.offset)
		h.put(44, o.length)
		w.numbers(h, false)
		w.finish(h, nil)
		return nil
	}
	h := w.header()
	*h = o.packet.header
	w.numbers(h, o.packet.status)
	w.last = w.last || o.packet.last
	w.finish(h, o.packet.data)
	return nil
}

// header makes room for a header, and its digest, in the arena.
func (w *writer) header() *header {
	n := len(w.arena)
	w.arena = w.arena[:n+headerSize]
	h := (*header)(w.arena[n:])
	*h = header{}
	return h
}

// numbers fills in StatSN, ExpCmdSN and MaxCmdSN. Only the writer advances StatSN.
func (w *writer) numbers(h *header, status bool) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	// A ping, R2T and reject carry StatSN too; they just do not advance it.
	h.put(24, c.mu.statSN)
	if status {
		c.mu.statSN++
	}
	h.put(28, c.mu.expCmdSN)
	h.put(32, c.window())
}

// window gives MaxCmdSN: it moves on as commands are answered and never goes back. c.mu is held.
func (c *session) window() uint32 {
	open := max(c.server.config.Depth-len(c.mu.tasks), 0)
	if m := c.mu.expCmdSN + uint32(open) - 1; after(m, c.mu.maxCmdSN) {
		c.mu.maxCmdSN = m
	}
	return c.mu.maxCmdSN
}

// finish appends digest, data, padding and data digest behind a header to the vectors.
func (w *writer) finish(h *header, data []byte) {
	h.setDataLen(len(data))
	start := len(w.arena) - headerSize
	if w.c.params.headerDigest {
		d := digest(h[:])
		w.arena = append(w.arena, d[:]...)
	}
	w.vectors = append(w.vectors, w.arena[start:])
	if len(data) == 0 {
		return
	}
	w.vectors = append(w.vectors, data)
	tail := len(w.arena)
	w.arena = append(w.arena, "\x00\x00\x00"[:padding(len(data))]...)
	if w.c.params.dataDigest {
		d := digest(data, w.arena[tail:])
		w.arena = append(w.arena, d[:]...)
	}
	if len(w.arena) > tail {
		w.vectors = append(w.vectors, w.arena[tail:])
	}
}

// residual gives flags and count: how far the CDB's length and the initiator's expectation differ.
func (t *command) residual() (flags byte, count uint32) {
	moved := t.n
	if t.write {
		moved = t.wanted
	}
	switch {
	case moved > t.expected:
		return flagOverflow, uint32(moved - t.expected)
	case moved < t.expected:
		return flagUnderflow, uint32(t.expected - moved)
	}
	return 0, 0
}

// response encodes the data and the status of a command.
func (w *writer) response(t *command) error {
	w.retire(t)
	sent := 0
	if t.read {
		sent = min(t.n, t.expected)
	}
	if t.status == statusCheck {
		w.c.server.count.checks.Add(1)
	}
	if sent > 0 {
		w.c.server.count.read.Add(uint64(sent))
		return w.dataIn(t, sent)
	}
	flags, residual := t.residual()
	h := w.header()
	h[0], h[1], h[3] = opResponse, flagFinal|flags, t.status
	h.put(16, t.tag)
	h.put(44, residual)
	h.put(36, t.r2tSN)
	w.numbers(h, true)
	if t.senseLen == 0 {
		w.finish(h, nil)
		return nil
	}
	n := len(w.arena)
	w.arena = append(w.arena, byte(t.senseLen>>8), byte(t.senseLen))
	w.arena = append(w.arena, t.sense[:t.senseLen]...)
	w.finishAt(h, n)
	return nil
}

// finishAt is finish for data that stands in the arena already, right behind its header: the digest
// of the header comes between them on the wire, so the data is moved out of its way.
func (w *writer) finishAt(h *header, from int) {
	data := w.arena[from:len(w.arena):len(w.arena)]
	h.setDataLen(len(data))
	w.vectors = append(w.vectors, h[:])
	if w.c.params.headerDigest {
		d := digest(h[:])
		n := len(w.arena)
		w.arena = append(w.arena, d[:]...)
		w.vectors = append(w.vectors, w.arena[n:])
	}
	w.vectors = append(w.vectors, data)
	tail := len(w.arena)
	w.arena = append(w.arena, "\x00\x00\x00"[:padding(len(data))]...)
	if w.c.params.dataDigest {
		d := digest(data, w.arena[tail:])
		w.arena = append(w.arena, d[:]...)
	}
	if len(w.arena) > tail {
		w.vectors = append(w.vectors, w.arena[tail:])
	}
}

// retire takes a command that is about to be answered out of the tasks, so that the window in its
// answer is open for its successor.
func (w *writer) retire(t *command) {
	c := w.c
	c.mu.Lock()
	delete(c.mu.tasks, t.tag)
	c.mu.Unlock()
}

// dataIn encodes n bytes of data in as many PDUs as the initiator's segment length makes; the last
// one carries the status.
func (w *writer) dataIn(t *command, n int) error {
	p := &w.c.params
	flags, residual := t.residual()
	for off, number := 0, uint32(0); off < n; number++ {
		burstEnd := off - off%p.burst + p.burst
		size := min(n-off, p.segment, burstEnd-off)
		h := w.header()
		h[0] = opDataIn
		if off+size == burstEnd || off+size == n {
			h[1] = flagFinal
		}
		h.put(16, t.tag)
		h.put(20, noTag)
		h.put(36, number)
		h.put(40, uint32(off))
		last := off+size == n
		w.numbers(h, last)
		if last {
			h[1] |= flagStatus | flags
			h[3] = t.status
			h.put(44, residual)
		} else {
			h.put(24, 0)
		}
		w.finish(h, t.answer.b[off:off+size])
		off += size
		// Small segments make many PDUs: send before the arena is full.
		if !last && (len(w.vectors) > vectorsMax || cap(w.arena)-len(w.arena) < 4096) {
			if err := w.flush(w.sent); err != nil {
				return err
			}
		}
	}
	return nil
}
