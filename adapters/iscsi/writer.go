package iscsi

import "encoding/binary"

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

// send queues a packet. It is called by the reader, which sends itself when many have gathered:
// what came by one read must not look like an initiator that does not read.
func (c *session) send(p *packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue(p)
	if c.mu.packets >= packetsMax/2 {
		c.transmit(false)
	}
}

// queue is send with c.mu held. An initiator that makes us queue answers without reading them is
// cut off.
func (c *session) queue(p *packet) {
	if c.mu.packets++; c.mu.packets > packetsMax {
		c.mu.closed = true
		c.wake.Broadcast()
		_ = c.conn.Close()
	}
	c.mu.out = append(c.mu.out, outgoing{kind: sendPacket, packet: p})
	c.prompt()
}

// prompt sees to it that somebody sends what was queued (T5). c.mu is held.
func (c *session) prompt() {
	if !c.mu.busy && !c.mu.sending {
		c.rouse()
	}
}

// rouse wakes the writer. c.mu is held.
func (c *session) rouse() {
	if !c.mu.roused {
		c.mu.roused = true
		c.wake.Broadcast()
	}
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

// The room of one writev: headers, digests and padding, and what one PDU may take of it.
const (
	arenaSize  = 32 << 10
	vectorsMax = 512
	batchMax   = 64 // responses that the reader lets gather
	pduArena   = headerSize + 2 + senseMax + 16
	pduVectors = 4
)

// writer turns what is queued into bytes and sends them. It belongs to whoever holds mu.sending.
type writer struct {
	c      *session
	wire   wire
	arena  []byte
	batch  []outgoing
	at     int    // batch[at] is encoded next
	off    int    // of its data: what was encoded
	dataSN uint32 // of its next Data-In
	last   bool   // the connection is closed behind the batch

	statSN, expCmdSN, maxCmdSN uint32
}

// write is the writer goroutine: it sends what nobody else can or does, and starts commands that
// waited for bytes.
func (c *session) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for !c.mu.roused && !c.mu.admit && !c.mu.closed {
			c.wake.Wait()
		}
		if c.mu.closed {
			return
		}
		c.mu.roused = false
		if c.mu.admit {
			c.mu.admit = false
			c.admitWaiting()
		}
		c.transmit(true)
	}
}

// transmit sends until nothing is queued. Without wait it leaves to the writer what the socket does
// not take at once. c.mu is held, but not while sending.
func (c *session) transmit(wait bool) {
	if c.mu.sending {
		return // and whoever does will look at the queue again
	}
	w := &c.out
	c.mu.sending = true
	for !c.mu.closed && (len(c.mu.out) > 0 || len(w.batch) > 0) {
		if len(w.batch) == 0 {
			w.cut()
		}
		c.mu.Unlock()
		done, err := w.run(wait)
		c.mu.Lock()
		if err != nil || done && w.last {
			c.mu.closed = true
			_ = c.conn.Close()
			break
		}
		if !done {
			c.rouse()
			break
		}
		w.free()
	}
	c.mu.sending = false
	if c.mu.closed {
		c.wake.Broadcast()
	}
}

// cut takes what is queued as the next batch, with the sequence numbers of all of it. Its commands
// leave the tasks, so that the window in their answers is open for their successors. c.mu is held.
func (w *writer) cut() {
	c := w.c
	w.batch, c.mu.out = c.mu.out, w.batch
	w.at, w.off, w.dataSN = 0, 0, 0
	for i := range w.batch {
		if t := w.batch[i].command; t != nil {
			delete(c.mu.tasks, t.tag)
		}
	}
	w.expCmdSN, w.maxCmdSN = c.mu.expCmdSN, c.window()
}

// run encodes and writes the batch, as far as the socket takes it.
func (w *writer) run(wait bool) (done bool, err error) {
	for {
		if w.wire.n == 0 {
			w.arena = w.arena[:0]
			for w.at < len(w.batch) && w.room() {
				w.encode(&w.batch[w.at])
			}
		}
		if done, err := w.wire.flush(wait); err != nil || !done {
			return false, err
		}
		if w.at == len(w.batch) {
			return true, nil
		}
	}
}

// room tells whether one more PDU can be encoded.
func (w *writer) room() bool {
	return cap(w.arena)-len(w.arena) >= pduArena && vectorsMax-w.wire.n >= pduVectors
}

// free gives the batch back. c.mu is held.
func (w *writer) free() {
	for i := range w.batch {
		o := &w.batch[i]
		switch o.kind {
		case sendResponse:
			w.c.recycle(o.command)
		case sendPacket:
			w.c.mu.packets--
		}
		*o = outgoing{}
	}
	w.batch = w.batch[:0]
}

// encode encodes the next PDU of the batch.
func (w *writer) encode(o *outgoing) {
	if o.kind == sendResponse {
		w.response(o.command)
		return
	}
	w.at++
	h := w.header()
	if o.kind == sendR2T {
		h[0], h[1] = opR2T, flagFinal
		copy(h[8:16], o.lun[:])
		h.put(16, o.tag)
		h.put(20, o.transfer)
		h.put(36, o.number)
		h.put(40, o.offset)
		h.put(44, o.length)
		w.numbers(h, false)
		w.finish(h, nil)
		return
	}
	*h = o.packet.header
	w.numbers(h, o.packet.status)
	w.last = w.last || o.packet.last
	w.finish(h, o.packet.data)
}

// header makes room for a header, and its digest, in the arena.
func (w *writer) header() *header {
	n := len(w.arena)
	w.arena = w.arena[:n+headerSize]
	h := (*header)(w.arena[n:])
	*h = header{}
	return h
}

// numbers fills in StatSN, ExpCmdSN and MaxCmdSN.
func (w *writer) numbers(h *header, status bool) {
	// A ping, R2T and reject carry StatSN too; they just do not advance it.
	h.put(24, w.statSN)
	if status {
		w.statSN++
	}
	h.put(28, w.expCmdSN)
	h.put(32, w.maxCmdSN)
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
	w.wire.add(w.arena[start:])
	if len(data) == 0 {
		return
	}
	w.wire.add(data)
	tail := len(w.arena)
	w.arena = append(w.arena, "\x00\x00\x00"[:padding(len(data))]...)
	if w.c.params.dataDigest {
		d := digest(data, w.arena[tail:])
		w.arena = append(w.arena, d[:]...)
	}
	if len(w.arena) > tail {
		w.wire.add(w.arena[tail:])
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

// response encodes the next PDU that answers a command.
func (w *writer) response(t *command) {
	sent := 0
	if t.read {
		sent = min(t.n, t.expected)
	}
	if t.status == statusCheck {
		w.c.server.count.checks.Add(1)
	}
	if sent > 0 {
		w.dataIn(t, sent)
		return
	}
	w.at++
	flags, residual := t.residual()
	h := w.header()
	h[0], h[1], h[3] = opResponse, flagFinal|flags, t.status
	h.put(16, t.tag)
	h.put(44, residual)
	h.put(36, t.r2tSN)
	w.numbers(h, true)
	if t.senseLen == 0 {
		w.finish(h, nil)
		return
	}
	n := len(w.arena)
	w.arena = append(w.arena, byte(t.senseLen>>8), byte(t.senseLen))
	w.arena = append(w.arena, t.sense[:t.senseLen]...)
	w.finishAt(h, n)
}

// finishAt is finish for data that stands in the arena already, right behind its header: the digest
// of the header comes between them on the wire, so the data is moved out of its way.
func (w *writer) finishAt(h *header, from int) {
	data := w.arena[from:len(w.arena):len(w.arena)]
	h.setDataLen(len(data))
	w.wire.add(h[:])
	if w.c.params.headerDigest {
		d := digest(h[:])
		n := len(w.arena)
		w.arena = append(w.arena, d[:]...)
		w.wire.add(w.arena[n:])
	}
	w.wire.add(data)
	tail := len(w.arena)
	w.arena = append(w.arena, "\x00\x00\x00"[:padding(len(data))]...)
	if w.c.params.dataDigest {
		d := digest(data, w.arena[tail:])
		w.arena = append(w.arena, d[:]...)
	}
	if len(w.arena) > tail {
		w.wire.add(w.arena[tail:])
	}
}

// dataIn encodes the next of the PDUs that n bytes of data make in segments of the initiator's
// length; the last one carries the status.
func (w *writer) dataIn(t *command, n int) {
	p := &w.c.params
	off := w.off
	end := min(n, off-off%p.burst+p.burst)
	size := min(end-off, p.segment)
	h := w.header()
	h[0] = opDataIn
	if off+size == end {
		h[1] = flagFinal
	}
	h.put(16, t.tag)
	h.put(20, noTag)
	h.put(36, w.dataSN)
	h.put(40, uint32(off))
	last := off+size == n
	w.numbers(h, last)
	if last {
		flags, residual := t.residual()
		h[1] |= flagStatus | flags
		h[3] = t.status
		h.put(44, residual)
	} else {
		h.put(24, 0)
	}
	w.finish(h, t.answer.b[off:off+size])
	w.off, w.dataSN = off+size, w.dataSN+1
	if last {
		w.c.server.count.read.Add(uint64(n))
		w.at, w.off, w.dataSN = w.at+1, 0, 0
	}
}
