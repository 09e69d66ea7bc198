package iscsi

import (
	"encoding/binary"
	"hash/crc32"
)

// The phases of a command.
const (
	gathering = iota // waits for data-out
	parked           // waits for its share of the session's bytes
	running          // in its logical unit
	answered         // its response is queued
)

const senseMax = 252

// command is one SCSI command. The reader owns its data-out fields while it gathers; session.mu
// guards phase, muted, waits and the links.
type command struct {
	session *session
	nexus   Nexus
	cdb     [16]byte
	lun     [8]byte
	tag     uint32

	expected   int // Expected Data Transfer Length
	write      bool
	read       bool
	ordered    bool
	more       bool
	generation uint64
	wanted     int // data-out that the CDB asks for
	need       int // what of it the initiator has: wanted or expected
	share      int // bytes counted against the session

	buffer   *buffer // data-out
	got      int     // bytes received, in order, with those that are not needed
	unasked  bool    // unsolicited Data-Out PDUs follow
	limit    int     // end of the current burst
	transfer uint32  // tag of the current R2T
	dataSN   uint32
	r2tSN    uint32
	admitted bool

	answer *buffer // data-in
	phase  int
	muted  bool
	waits  []*function
	next   *command // free or waiting list

	status   byte
	n        int // bytes of data-in
	sense    [senseMax]byte
	senseLen int
}

// list is a queue of commands.
type list struct{ head, tail *command }

func (l *list) push(t *command) {
	t.next = nil
	if l.tail == nil {
		l.head = t
	} else {
		l.tail.next = t
	}
	l.tail = t
}

func (l *list) pop() *command {
	t := l.head
	l.head, t.next = t.next, nil
	if l.head == nil {
		l.tail = nil
	}
	return t
}

func (l *list) remove(t *command) {
	var before *command
	for x := l.head; x != nil; before, x = x, x.next {
		if x != t {
			continue
		}
		if before == nil {
			l.head = t.next
		} else {
			before.next = t.next
		}
		if l.tail == t {
			l.tail = before
		}
		t.next = nil
		return
	}
}

// CDB implements Call.
func (t *command) CDB() []byte { return t.cdb[:] }

// Out implements Call.
func (t *command) Out() []byte {
	if t.buffer == nil {
		return nil
	}
	return t.buffer.b[:t.need]
}

// In implements Call.
func (t *command) In(n int) []byte {
	t.answer = t.session.server.pool.get(n)
	return t.answer.b[:n]
}

// Offered implements Call.
func (t *command) Offered() int {
	if t.write {
		return t.expected
	}
	return 0
}

// More implements Call.
func (t *command) More() bool { return t.more }

// Generation implements Call.
func (t *command) Generation() uint64 { return t.generation }

// Done implements Call: it queues the response and, unless the reader is about to, sends it. That
// is cheaper than to wake the writer, and what ends meanwhile goes along. It does not wait for
// room in the socket.
func (t *command) Done(status byte, n int, sense []byte) {
	c := t.session
	c.mu.Lock()
	defer c.mu.Unlock()
	t.status, t.n = status, n
	t.senseLen = copy(t.sense[:], sense)
	c.mu.running--
	if t.ordered {
		c.mu.barrier = false
	}
	for _, f := range t.waits {
		c.less(f)
	}
	clear(t.waits)
	t.waits = t.waits[:0]
	if t.muted || c.mu.closed { // T4
		c.recycle(t)
		c.wake.Broadcast()
		return
	}
	t.phase = answered
	c.mu.out = append(c.mu.out, outgoing{kind: sendResponse, command: t})
	if !c.mu.busy {
		c.transmit(false)
	}
}

var _ Call = (*command)(nil)

// take gives a command from the session's own stock. c.mu is held.
func (c *session) take() *command {
	t := c.mu.free
	if t == nil {
		return &command{session: c}
	}
	c.mu.free = t.next
	waits := t.waits[:0]
	*t = command{session: c, waits: waits}
	return t
}

// recycle frees a command and its buffers. c.mu is held.
func (c *session) recycle(t *command) {
	// A response that left frees the tag: it may be another command's by now.
	if c.mu.tasks[t.tag] == t {
		delete(c.mu.tasks, t.tag)
	}
	if t.admitted {
		c.mu.bytes -= t.share
		c.mu.active--
	}
	c.server.pool.put(t.buffer)
	c.server.pool.put(t.answer)
	t.buffer, t.answer, t.nexus = nil, nil, nil
	t.next, c.mu.free = c.mu.free, t
	if c.mu.waiting.head != nil {
		c.mu.admit = true
		c.wake.Broadcast()
	}
}

// discard frees a command that did not reach its unit. c.mu is held.
func (c *session) discard(t *command) {
	if t.phase == parked {
		c.mu.waiting.remove(t)
	}
	if t.ordered && t.admitted {
		c.mu.barrier = false
	}
	c.recycle(t)
	c.wake.Broadcast()
}

// command begins a SCSI command.
func (c *session) command() error {
	h := &c.header
	c.server.count.commands.Add(1)
	data := h.dataLen()
	write := h[1]&flagWrite != 0
	switch {
	case data > 0 && (!write || !c.params.immediate || data > c.params.firstBurst),
		data > int(h.get(20)):
		return c.refuse(rejectProtocol)
	case write && h[1]&flagRead != 0 || h.extra() != 0:
		return c.refuse(rejectField) // neither bidirectional commands nor long CDBs
	}
	t, reason := c.begin()
	if reason != 0 {
		return c.refuse(reason)
	}
	dst := []byte(nil)
	if t.buffer != nil {
		dst = t.buffer.b[:min(t.need, len(t.buffer.b))]
	}
	intact, err := c.readData(dst)
	if err != nil {
		return err
	}
	t.more = c.in.Buffered() >= headerSize
	t.got = data
	if !intact {
		bad := c.header
		c.reject(rejectDigest, &bad)
		c.fail(t, 0x47, 0x05)
		return nil
	}
	c.gathered(t)
	return nil
}

// begin makes a command from the header and registers it. reason is that of a Reject.
func (c *session) begin() (t *command, reason byte) {
	h := &c.header
	nexus := c.unit(h.lun())
	wanted, toHost, generation := nexus.Expect(h[32:48])
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mu.out) >= batchMax {
		c.transmit(false)
	}
	if c.mu.tasks[h.tag()] != nil || h.tag() == noTag {
		return nil, rejectTaskInUse
	}
	if len(c.mu.tasks) >= c.server.config.Depth+immediateMax {
		return nil, rejectImmediate
	}
	t = c.take()
	copy(t.cdb[:], h[32:48])
	copy(t.lun[:], h.lun())
	t.tag, t.expected = h.tag(), int(h.get(20))
	t.write, t.read = h[1]&flagWrite != 0, h[1]&flagRead != 0
	t.ordered = h[1]&7 == 2
	t.nexus, t.wanted, t.generation = nexus, wanted, generation
	if t.write {
		t.need = min(t.wanted, t.expected)
		t.unasked = !h.final() && !c.params.initialR2T && h.dataLen() < t.expected
	}
	t.limit = min(t.expected, c.params.firstBurst)
	t.share = max(t.need, toHost)
	c.mu.tasks[t.tag] = t
	t.admitted = c.admissible(t)
	if t.admitted {
		c.account(t)
	}
	first := t.need
	if !t.admitted {
		first = h.dataLen()
		if t.unasked {
			first = t.limit
		}
		first = min(first, t.need)
	}
	if first > 0 {
		t.buffer = c.server.pool.get(first)
	}
	return t, 0
}

// admissible tells whether a command may start: nobody waits before it, its bytes fit, and no
// ORDERED command stands in between. c.mu is held.
func (c *session) admissible(t *command) bool {
	return c.mu.waiting.head == nil && c.fits(t)
}

func (c *session) fits(t *command) bool {
	if c.mu.barrier || t.ordered && c.mu.active > 0 {
		return false
	}
	return c.mu.bytes == 0 || c.mu.bytes+t.share <= c.server.config.Bytes
}

// account counts a command that may start. c.mu is held.
func (c *session) account(t *command) {
	c.mu.bytes += t.share
	c.mu.active++
	if t.ordered {
		c.mu.barrier = true
	}
}

// gathered goes on with a command after some of its data came: run it, ask for more, or wait.
func (c *session) gathered(t *command) {
	c.mu.Lock()
	if t.unasked {
		c.mu.Unlock()
		return
	}
	if !t.admitted {
		t.phase = parked
		c.mu.waiting.push(t)
		c.mu.admit = true // it may have become the first of the queue just now
		c.wake.Broadcast()
		c.mu.Unlock()
		return
	}
	c.advance(t)
}

// advance runs an admitted command that has its data, or asks for the next burst. c.mu is held and
// let go.
func (c *session) advance(t *command) {
	if t.got < t.need {
		n := min(t.need-t.got, c.params.burst)
		t.phase = gathering
		t.limit, t.dataSN = t.got+n, 0
		c.mu.tags++
		if c.mu.tags == noTag {
			c.mu.tags = 0
		}
		t.transfer = c.mu.tags
		c.mu.out = append(c.mu.out, outgoing{
			kind: sendR2T, tag: t.tag, lun: t.lun, transfer: t.transfer, number: t.r2tSN,
			offset: uint32(t.got), length: uint32(n),
		})
		t.r2tSN++
		c.prompt()
		c.mu.Unlock()
		return
	}
	t.phase = running
	c.mu.running++
	c.mu.Unlock()
	if t.write {
		c.server.count.written.Add(uint64(t.need))
	}
	if t.cdb[0] == 0xa0 {
		c.reportUnits(t)
		return
	}
	t.nexus.Submit(t)
}

// admitWaiting starts waiting commands, in their order, as far as they fit. c.mu is held, and let
// go in between.
func (c *session) admitWaiting() {
	for c.mu.waiting.head != nil && !c.mu.closed {
		t := c.mu.waiting.head
		if !c.fits(t) {
			return
		}
		c.mu.waiting.pop()
		t.admitted = true
		c.account(t)
		c.advance(t)
		c.mu.Lock()
	}
}

// fail ends a command that did not reach its unit with ABORTED COMMAND.
func (c *session) fail(t *command, asc, ascq byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.phase == parked {
		c.mu.waiting.remove(t)
	}
	if t.ordered && t.admitted {
		c.mu.barrier = false
	}
	t.phase, t.status, t.n = answered, statusCheck, 0
	sense := []byte{0x70, 0, 0x0b, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0}
	t.senseLen = copy(t.sense[:], sense)
	c.mu.out = append(c.mu.out, outgoing{kind: sendResponse, command: t})
	c.prompt()
}

// dataOut takes a Data-Out PDU.
func (c *session) dataOut() error {
	h := &c.header
	c.mu.Lock()
	t := c.mu.tasks[h.tag()]
	if t == nil || t.phase != gathering {
		c.mu.Unlock()
		// Its command ended before, by task management or with an error: nobody wants the data.
		_, err := c.readData(nil)
		return err
	}
	n, offset := h.dataLen(), int(h.get(40))
	transfer := h.get(20)
	good := h.get(36) == t.dataSN && offset == t.got && t.got+n <= t.limit &&
		(t.unasked && transfer == noTag || !t.unasked && transfer == t.transfer)
	if good {
		t.grow()
	}
	c.mu.Unlock()
	if !good {
		if _, err := c.readData(nil); err != nil {
			return err
		}
		c.fail(t, 0x4b, 0x00)
		return nil
	}
	dst := []byte(nil)
	if t.got < t.need {
		dst = t.buffer.b[t.got:min(t.need, len(t.buffer.b))]
	}
	intact, err := c.readData(dst)
	if err != nil {
		return err
	}
	if !intact {
		bad := c.header
		c.reject(rejectDigest, &bad)
		c.fail(t, 0x47, 0x05)
		return nil
	}
	t.got += n
	t.dataSN++
	if !h.final() {
		return nil
	}
	t.unasked = false
	c.gathered(t)
	return nil
}

// grow gives an admitted command the whole of its buffer, when it began with room for its first
// burst only.
func (t *command) grow() {
	if !t.admitted || t.need == 0 || t.buffer != nil && len(t.buffer.b) >= t.need {
		return
	}
	pool := &t.session.server.pool
	whole := pool.get(t.need)
	if t.buffer != nil {
		copy(whole.b, t.buffer.b[:min(t.got, len(t.buffer.b))])
		pool.put(t.buffer)
	}
	t.buffer = whole
}

// reportUnits serves REPORT LUNS, which is the target's and not a unit's.
func (c *session) reportUnits(t *command) {
	selected := t.cdb[2]
	allocation := int(min(binary.BigEndian.Uint32(t.cdb[6:]), 8*unitsMax+8))
	if allocation < 16 || selected > 2 {
		t.Done(statusCheck, 0,
			[]byte{0x70, 0, 0x05, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0})
		return
	}
	b := make([]byte, 8)
	if selected != 1 { // 1 asks for well-known units, of which there is none
		for _, n := range c.numbers() {
			b = append(b, 0, byte(n), 0, 0, 0, 0, 0, 0)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-8))
	n := min(len(b), allocation)
	copy(t.In(n), b)
	t.Done(statusGood, n, nil)
}

func sum32(sum uint32, wanted bool, b []byte) uint32 {
	if !wanted {
		return 0
	}
	return crc32.Update(sum, castagnoli, b)
}

func littleEndian(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
