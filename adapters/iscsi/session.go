package iscsi

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
)

const (
	readAhead   = 64 << 10 // bytes of the connection's read buffer
	packetsMax  = 256      // PDUs waiting to be sent besides command responses and R2Ts
	scratchSize = 64 << 10
)

// session is one session and its only connection. Its reader goroutine is run; the writer goroutine
// is write.
type session struct {
	server *Server
	conn   net.Conn
	in     *bufio.Reader
	log    *slog.Logger

	// Set by the login, constant afterwards.
	key       sessionKey
	target    string // empty in a discovery session
	discovery bool
	tsih      uint16
	params    params
	old       *session // predecessor that must end first

	// Of the reader alone.
	header  header
	extra   [255 * 4]byte
	scratch []byte
	text    []byte // of continued text requests
	texts   int
	targets []byte // of a text response that is still being sent

	units atomic.Pointer[map[uint16]Nexus]
	heard atomic.Uint64 // PDUs received
	done  chan struct{} // closed when nothing of the session can take effect any more

	retargeting sync.Mutex
	offered     map[uint16]LUN // guarded by retargeting: what units were attached for

	mu struct {
		sync.Mutex
		closed  bool
		tasks   map[uint32]*command
		running int
		active  int // commands that were admitted and are not recycled
		bytes   int
		waiting list // commands that wait for their share of bytes
		barrier bool // an ORDERED command is running
		out     []outgoing
		packets int
		admit   bool // something was freed that waiting commands may use
		free    *command
		tags    uint32
		busy    bool        // the reader has input and will send what is queued, see T5
		sending bool        // somebody uses out, see T5
		roused  bool        // the writer has something to send
		cut     *time.Timer // set by part

		expCmdSN, maxCmdSN uint32
		seen               uint64 // heard at the last tick
		silent             int
	}
	wake *sync.Cond // of the writer and of the end; on mu
	out  writer     // belongs to whoever holds mu.sending
}

func newSession(s *Server, conn net.Conn) *session {
	c := &session{
		server: s, conn: conn,
		log: s.log.With("client", conn.RemoteAddr().String()), done: make(chan struct{}),
		params: defaults(), scratch: make([]byte, scratchSize),
	}
	c.in = bufio.NewReaderSize(inlet{c}, readAhead)
	c.out.c, c.out.arena = c, make([]byte, 0, arenaSize)
	c.out.wire.open(conn)
	c.mu.tasks = map[uint32]*command{}
	c.units.Store(&map[uint16]Nexus{})
	c.wake = sync.NewCond(&c.mu.Mutex)
	return c
}

// inlet reads from the connection, after all that is queued has been sent.
type inlet struct{ c *session }

// Read implements io.Reader.
func (i inlet) Read(p []byte) (int, error) {
	c := i.c
	c.mu.Lock()
	c.transmit(false)
	c.mu.busy = false
	c.mu.Unlock()
	n, err := c.conn.Read(p)
	c.mu.Lock()
	c.mu.busy = true
	c.mu.Unlock()
	return n, err
}

// run is the life of a connection: login, commands, end.
func (c *session) run() {
	err := c.login()
	c.server.joining.Add(-1)
	if err != nil {
		c.server.count.loginFailures.Add(1)
		c.log.Warn("iscsi login failed", "initiator", c.key.initiator, "target", c.target,
			"err", err)
	} else {
		c.server.count.logins.Add(1)
		c.log.Info("iscsi login", "initiator", c.key.initiator, "target", c.target)
		writer := make(chan struct{})
		go func() {
			defer close(writer)
			c.write()
		}()
		err = c.serve()
		c.mu.Lock()
		c.transmit(false)
		c.mu.Unlock()
		c.kill()
		<-writer
		why := "closed"
		if err = quiet(err); err != nil {
			why = err.Error()
		}
		c.log.Info("iscsi session ended", "initiator", c.key.initiator, "target", c.target,
			"why", why)
	}
	c.end()
}

// quiet drops the errors by which every connection ends.
func quiet(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// end fences the session (T1): what did not reach a unit is dropped, what did is waited for, and
// so is a predecessor.
func (c *session) end() {
	c.kill()
	c.drop()
	c.detach()
	c.mu.Lock()
	for c.mu.running > 0 || c.mu.sending {
		c.wake.Wait()
	}
	c.release()
	if c.mu.cut != nil {
		c.mu.cut.Stop()
	}
	c.mu.Unlock()
	if c.old != nil {
		<-c.old.done
	}
	c.server.strike(c)
	close(c.done)
}

// detach ends the session's nexuses for good: what each of them held is free when it returns, and
// no new configuration attaches another.
func (c *session) detach() {
	c.retargeting.Lock()
	defer c.retargeting.Unlock()
	c.offered = nil
	for _, n := range *c.units.Swap(&map[uint16]Nexus{}) {
		n.Close()
	}
}

// drop ends the commands that still gather data or wait.
func (c *session) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.mu.tasks {
		if t.phase == gathering || t.phase == parked {
			c.discard(t)
		}
	}
}

// release gives the buffers of unsent responses back. c.mu is held and nobody sends.
func (c *session) release() {
	c.out.free()
	for _, o := range c.mu.out {
		if o.kind == sendResponse {
			c.recycle(o.command)
		}
	}
	c.mu.out = nil
}

// kill cuts the connection. Reader and writer notice and end.
func (c *session) kill() {
	c.mu.Lock()
	c.mu.closed = true
	c.wake.Broadcast()
	c.mu.Unlock()
	_ = c.conn.Close()
}

// part asks the initiator to log out, and cuts the connection a moment later.
func (c *session) part() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tsih == 0 || c.mu.cut != nil || c.mu.closed {
		return
	}
	c.async(1, 0, 0, uint16(partingTime/time.Second))
	c.mu.cut = time.AfterFunc(partingTime, c.kill)
}

// tick is called once per NopTime.
func (c *session) tick() {
	heard := c.heard.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tsih == 0 || c.mu.closed {
		return // the login has its own deadline
	}
	if heard != c.mu.seen {
		c.mu.seen, c.mu.silent = heard, 0
		return
	}
	c.mu.silent++
	switch c.mu.silent {
	case 1:
		c.ping()
	case 2:
		c.server.count.pingTimeout.Add(1)
		c.log.Warn("iscsi connection is dead: no answer to a ping")
		c.mu.closed = true
		c.wake.Broadcast()
		_ = c.conn.Close()
	}
}

// retarget makes the session's units those of the current configuration.
func (c *session) retarget() {
	c.retargeting.Lock()
	defer c.retargeting.Unlock()
	if c.offered == nil {
		return // not logged in, or not any more, or discovery
	}
	t := c.server.target(c.target)
	if t == nil || !t.admits(c.key.initiator) {
		c.part()
		return
	}
	c.attach(t)
}

// attach reconciles the attached units with a target's. retargeting is held.
func (c *session) attach(t *Target) {
	now := *c.units.Load()
	next := make(map[uint16]Nexus, len(t.LUNs))
	first, changed := len(c.offered) == 0, false
	for n, l := range t.LUNs {
		if c.offered[n] == l {
			next[n] = now[n]
			continue
		}
		next[n] = l.Attach(c.initiatorPort(), c.targetPort(), c.server.config.Group)
		changed = true
	}
	changed = changed || len(next) != len(now)
	c.offered = maps.Clone(t.LUNs)
	if c.offered == nil {
		c.offered = map[uint16]LUN{}
	}
	c.units.Store(&next)
	for n, x := range now {
		if next[n] != x {
			x.Close()
		}
	}
	if changed && !first {
		for _, x := range next {
			x.Attention(0x3f, 0x0e)
		}
	}
}

func (c *session) initiatorPort() string {
	return fmt.Sprintf("%s,i,0x%x", c.key.initiator, c.key.isid[:])
}

func (c *session) targetPort() string {
	return fmt.Sprintf("%s,t,0x%04x", c.target, c.server.config.Group)
}

// unit gives the nexus of a LUN field.
func (c *session) unit(field []byte) Nexus {
	if n, ok := unitNumber(field); ok {
		if x := (*c.units.Load())[n]; x != nil {
			return x
		}
	}
	return absent{}
}

// numbers lists the logical unit numbers, ascending.
func (c *session) numbers() []uint16 {
	return slices.Sorted(maps.Keys(*c.units.Load()))
}

// serve reads PDUs until the connection ends.
func (c *session) serve() error {
	for {
		if err := c.readHeader(); err != nil {
			return err
		}
		c.heard.Add(1)
		if err := c.dispatch(); err != nil {
			return err
		}
	}
}

// readHeader reads header, additional header segments and header digest.
func (c *session) readHeader() error {
	h := &c.header
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return err
	}
	extra := c.extra[:h.extra()]
	if _, err := io.ReadFull(c.in, extra); err != nil {
		return err
	}
	if c.params.headerDigest {
		if _, err := io.ReadFull(c.in, c.scratch[:4]); err != nil {
			return err
		}
		want := digest(h[:], extra)
		if [4]byte(c.scratch[:4]) != want {
			c.server.count.digests.Add(1)
			return domain.Errorf(domain.Corrupt, "header digest is wrong")
		}
	}
	if h.dataLen() > segmentMax {
		return domain.Errorf(domain.TooLarge, "data segment of %d bytes", h.dataLen())
	}
	return nil
}

// readData reads the data segment: its first bytes into dst, the rest nowhere. intact is false when
// the digest is wrong.
func (c *session) readData(dst []byte) (intact bool, err error) {
	n := c.header.dataLen()
	if n == 0 {
		return true, nil
	}
	dst = dst[:min(n, len(dst))]
	if _, err := io.ReadFull(c.in, dst); err != nil {
		return false, err
	}
	sum := sum32(0, c.params.dataDigest, dst)
	for left := n + padding(n) - len(dst); left > 0; {
		part := c.scratch[:min(left, len(c.scratch))]
		if _, err := io.ReadFull(c.in, part); err != nil {
			return false, err
		}
		sum = sum32(sum, c.params.dataDigest, part)
		left -= len(part)
	}
	if !c.params.dataDigest {
		return true, nil
	}
	if _, err := io.ReadFull(c.in, c.scratch[:4]); err != nil {
		return false, err
	}
	if littleEndian(c.scratch) == sum {
		return true, nil
	}
	c.server.count.digests.Add(1)
	return false, nil
}

// errWindow ends a session that skipped a command number: on one connection nothing can fill the
// gap.
var errWindow = domain.Errorf(domain.Invalid, "command number skipped")

// dispatch handles the PDU whose header was read.
func (c *session) dispatch() error {
	h := &c.header
	op := h.opcode()
	if op == opDataOut {
		return c.dataOut()
	}
	if op == opSNACK {
		return c.refuse(rejectSNACK)
	}
	if op != opNopOut && op != opCommand && op != opTask && op != opText && op != opLogout {
		return c.refuse(rejectOpcode)
	}
	if c.discovery && (op == opCommand || op == opTask) {
		return c.refuse(rejectProtocol)
	}
	if !h.immediate() {
		admitted, err := c.number(h.cmdSN())
		if err != nil {
			return err
		}
		if !admitted {
			_, err := c.readData(nil)
			return err
		}
	}
	switch op {
	case opNopOut:
		return c.nopOut()
	case opCommand:
		return c.command()
	case opTask:
		return c.taskFunction()
	case opText:
		return c.textRequest()
	}
	return c.logout()
}

// number checks a command number against the window. One outside is dropped without an answer.
func (c *session) number(n uint32) (admitted bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if after(c.mu.expCmdSN, n) || after(n, c.mu.maxCmdSN) {
		return false, nil
	}
	if n != c.mu.expCmdSN {
		return false, errWindow
	}
	c.mu.expCmdSN++
	return true, nil
}

// refuse reads the PDU's data and answers with a Reject.
func (c *session) refuse(reason byte) error {
	h := c.header
	if _, err := c.readData(nil); err != nil {
		return err
	}
	c.reject(reason, &h)
	return nil
}

// nopOut answers a ping, or takes the answer to ours.
func (c *session) nopOut() error {
	h := c.header
	n := min(h.dataLen(), c.params.segment)
	data := make([]byte, n)
	intact, err := c.readData(data)
	if err != nil {
		return err
	}
	if !intact {
		c.reject(rejectDigest, &h)
		return nil
	}
	if h.tag() == noTag {
		return nil
	}
	p := &packet{status: true, data: data}
	p.header[0], p.header[1] = opNopIn, flagFinal
	copy(p.header[8:16], h.lun())
	p.header.put(16, h.tag())
	p.header.put(20, noTag)
	c.send(p)
	return nil
}

// logout answers a logout; the writer closes the connection after the answer. The nexuses end
// before it: once a host has heard that it is out, a unit that it had reserved is free for others.
func (c *session) logout() error {
	h := c.header
	if _, err := c.readData(nil); err != nil {
		return err
	}
	response := byte(0)
	if h[1]&0x7f == 2 {
		response = 2 // recovery is not supported
	}
	if response == 0 {
		c.detach()
	}
	p := &packet{status: true, last: response == 0}
	p.header[0], p.header[1], p.header[2] = opLogoutDone, flagFinal, response
	p.header.put(16, h.tag())
	p.header[41] = 2 // Time2Wait
	c.send(p)
	return nil
}
