package nbd

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"weft/domain"
)

// conn is one connection. What stands above mu belongs to the reader goroutine.
type conn struct {
	server *Server
	nc     net.Conn // replaced once, by TLS, under the lock
	log    *slog.Logger
	born   time.Time
	export *export       // set under the server's lock
	ended  chan struct{} // closed when everything of the connection is over

	rd          []byte // what was read and not parsed lies at rdAt..rdEnd
	rdAt, rdEnd int
	extents     []domain.Extent

	greeted     bool // an option has come
	clientFlags uint32
	secure      bool // TLS
	structured  bool
	meta0       bool // base:allocation is negotiated
	metaName    string
	disk        Disk
	kicker      kicker // the disk, if it may keep reads back
	kept        bool   // N6: it may have
	name        string
	info0       domain.DiskInfo
	readOnly    bool

	wake chan struct{} // one token: there is something to send
	room sync.Cond     // of mu: a place in flight is free, or there is no need to wait

	mu struct {
		sync.Mutex
		stock      stock
		head, tail *request // completed, to be sent
		queued     int
		inFlight   int   // invariant: <= flightMax
		bytes      int64 // invariant: <= flightBytesMax, or one request alone
		busy       bool  // N3
		sending    bool  // N2
		waiting    bool  // the reader waits on room
		closing    bool  // no further request is read
		asked      bool  // closing, and it is our doing
		dead       error // the socket is of no use: replies are dropped
	}
	in  receiver // belongs to the reader
	out sender   // belongs to whoever holds mu.sending
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		server: s, nc: nc, born: time.Now(),
		log:   s.log.With("client", nc.RemoteAddr().String()),
		ended: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	c.room.L = &c.mu.Mutex
	c.in.open(nc)
	c.out.open(nc)
	return c
}

// run serves the connection to its end.
func (c *conn) run() {
	timeout := c.server.cfg.HandshakeTimeout
	c.rd = make([]byte, readBuffer)
	c.deadline(c.born.Add(timeout * 2 / 3))
	enter, err := c.handshake()
	if !enter {
		c.farewell(err)
		_ = c.nc.Close() // nothing is in flight
		return
	}
	c.log = c.log.With("export", c.name)
	c.log.Debug("nbd: connected", "structured", c.structured)
	c.deadline(time.Time{})
	var writer sync.WaitGroup
	writer.Go(c.writer)
	c.mu.Lock()
	c.mu.busy = true
	c.mu.Unlock()
	err = c.transmit()
	c.drain()
	close(c.wake)
	writer.Wait()
	_ = c.nc.Close() // all that could be sent is sent
	c.mu.Lock()
	if c.mu.dead != nil {
		err = c.mu.dead // the cause; what the reader met is the effect
	}
	c.mu.Unlock()
	c.farewell(err)
}

// farewell logs the end of a connection, once.
func (c *conn) farewell(err error) {
	c.mu.Lock()
	asked := c.mu.asked
	c.mu.Unlock()
	switch {
	case err == nil, asked, errors.Is(err, io.EOF):
		c.log.Debug("nbd: disconnected")
	default:
		c.log.Warn("nbd: connection ended", "err", err)
	}
}

// shut ends the connection from outside: the reader stops, what is in flight is answered, and a
// client that does not read is given closeGrace.
func (c *conn) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closing {
		return
	}
	c.mu.closing, c.mu.asked = true, true
	c.room.Broadcast()
	now := time.Now()
	// Both fail on a closed socket only, which is what we want.
	_ = c.nc.SetReadDeadline(now)
	_ = c.nc.SetWriteDeadline(now.Add(closeGrace))
}

// drain waits for all that is in flight and for its replies to be sent or dropped. Afterwards
// nobody completes, so wake can be closed.
func (c *conn) drain() {
	c.kick()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.closing { // the client went: it may still read, but not for ever
		c.mu.closing = true
		_ = c.nc.SetWriteDeadline(time.Now().Add(closeGrace))
	}
	c.send(false)
	c.mu.busy = false
	for c.mu.inFlight > 0 {
		c.mu.waiting = true
		c.room.Wait()
	}
}

// complete takes a request with its outcome and sees to it that someone sends the reply (N1).
func (c *conn) complete(r *request) {
	c.mu.Lock()
	if c.mu.tail == nil {
		c.mu.head = r
	} else {
		c.mu.tail.next = r
	}
	c.mu.tail = r
	c.mu.queued++
	if !c.mu.busy && !c.mu.sending {
		c.rouse()
	}
	c.mu.Unlock()
}

// rouse wakes the writer. The lock is held.
func (c *conn) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// writer sends what the reader cannot or does not. It waits for the socket as long as it takes.
func (c *conn) writer() {
	for range c.wake {
		c.mu.Lock()
		c.send(true)
		c.mu.Unlock()
	}
}

// send sends batches until the queue is empty. Without wait it leaves to the writer what the socket
// does not take at once. The lock is held, but not while sending.
func (c *conn) send(wait bool) {
	if c.mu.sending {
		return // and whoever does will look at the queue again
	}
	c.mu.sending = true
	for c.mu.head != nil || c.out.batch != nil {
		fresh := c.out.batch == nil
		if fresh {
			c.cut()
		}
		dead := c.mu.dead
		c.mu.Unlock()
		done, gone := true, false
		if dead == nil {
			if fresh {
				gone = c.build()
			}
			done, dead = c.out.flush(wait)
			c.server.stats.sends.Add(1)
		}
		if gone {
			c.shut()
		}
		c.mu.Lock()
		if dead != nil && c.mu.dead == nil {
			c.mu.dead, c.mu.closing = dead, true
			_ = c.nc.Close() // the reader shall not wait for a client that is gone
		}
		if dead == nil && !done {
			c.rouse()
			break
		}
		c.recycle()
	}
	c.mu.sending = false
}

// cut takes up to batchMax replies off the queue. The lock is held.
func (c *conn) cut() {
	c.out.batch = c.mu.head
	last, n := c.mu.head, 1
	for last.next != nil && n < batchMax {
		last, n = last.next, n+1
	}
	c.mu.head = last.next
	if c.mu.head == nil {
		c.mu.tail = nil
	}
	last.next = nil
	c.mu.queued -= n
}

// recycle takes back the requests of the batch just sent. The lock is held.
func (c *conn) recycle() {
	for r := c.out.batch; r != nil; {
		next := r.next
		c.mu.inFlight--
		c.mu.bytes -= r.size
		c.mu.stock.put(c.server, r)
		r = next
	}
	c.out.batch = nil
	if c.mu.waiting {
		c.mu.waiting = false
		c.room.Broadcast()
	}
}

// read reads from the socket, into p and what is ahead of it, after all replies there are have been
// sent.
func (c *conn) read(p, ahead []byte) (int, error) {
	c.kick()
	c.mu.Lock()
	c.send(false)
	c.mu.busy = false
	c.mu.Unlock()
	n, err := c.in.read(p, ahead)
	c.mu.Lock()
	c.mu.busy = true
	c.mu.Unlock()
	return n, err
}

// kick lets the disk start what it may have kept back (N6).
func (c *conn) kick() {
	if c.kept {
		c.kept = false
		c.kicker.Kick()
	}
}

// admit gives a request its place in flight, with a buffer for n bytes if n is not 0. It waits at
// the limits, with all replies sent; nil says that the connection ends.
func (c *conn) admit(n int64) *request {
	class, size := 0, int64(0)
	if n > 0 {
		class = classOf(n)
		size = classSize(class)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.inFlight >= flightMax || c.mu.inFlight > 0 && c.mu.bytes+size > flightBytesMax {
		c.mu.Unlock()
		c.kick()
		c.mu.Lock()
	}
	if c.mu.queued >= batchMax {
		c.send(false)
	}
	for c.mu.inFlight >= flightMax || c.mu.inFlight > 0 && c.mu.bytes+size > flightBytesMax {
		if c.mu.head != nil && !c.mu.sending && c.out.batch == nil {
			c.send(false)
			continue
		}
		if c.mu.closing {
			return nil
		}
		c.mu.busy, c.mu.waiting = false, true
		c.room.Wait()
		c.mu.busy = true
	}
	if c.mu.closing {
		return nil
	}
	c.mu.inFlight++
	c.mu.bytes += size
	r := c.mu.stock.request(c)
	r.size = size
	if n > 0 {
		r.buf = c.mu.stock.buffer(c.server, class)
	}
	return r
}

// abandon gives back a request that was not submitted.
func (c *conn) abandon(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.inFlight--
	c.mu.bytes -= r.size
	c.mu.stock.put(c.server, r)
}
