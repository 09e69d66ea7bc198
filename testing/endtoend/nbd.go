package endtoend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
)

// nbdClient is the least NBD client that can say which writes were acknowledged: fixed newstyle,
// simple replies, any number of requests in flight. It belongs to the test that made it.
type nbdClient struct {
	conn net.Conn
	size int64

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*nbdCall
	broken  error
}

// nbdCall is a request on its way.
type nbdCall struct {
	read []byte
	done chan error
}

const (
	nbdRead  = 0
	nbdWrite = 1
)

var errGone = errors.New("the connection is gone")

// dialNBD connects to an nbd:// URI.
func dialNBD(uri string) (*nbdClient, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn, waiting: map[uint64]*nbdCall{}}
	if err := c.handshake(strings.TrimPrefix(u.Path, "/")); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	go c.replies()
	return c, nil
}

// handshake asks for an export by EXPORT_NAME, which every server knows.
func (c *nbdClient) handshake(name string) error {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c.conn, hello); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	info := make([]byte, 10)
	if _, err := io.ReadFull(c.conn, info); err != nil {
		return err
	}
	c.size = int64(binary.BigEndian.Uint64(info))
	return nil
}

// replies reads until the connection ends, and then fails what is left.
func (c *nbdClient) replies() {
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(c.conn, head); err != nil {
			break
		}
		c.mu.Lock()
		call := c.waiting[binary.BigEndian.Uint64(head[8:])]
		delete(c.waiting, binary.BigEndian.Uint64(head[8:]))
		c.mu.Unlock()
		if call == nil {
			break // a reply to nothing
		}
		var failed error
		if code := binary.BigEndian.Uint32(head[4:]); code != 0 {
			failed = fmt.Errorf("nbd error %d", code)
		} else if call.read != nil {
			if _, err := io.ReadFull(c.conn, call.read); err != nil {
				failed = errGone
			}
		}
		call.done <- failed
		if errors.Is(failed, errGone) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = errGone
	for _, call := range c.waiting {
		call.done <- errGone
	}
	c.waiting = nil
}

// do sends one request and waits. p is data for a write, room for a read.
func (c *nbdClient) do(op uint16, off int64, p []byte) error {
	call := &nbdCall{done: make(chan error, 1)}
	if op == nbdRead {
		call.read = p
	}
	c.mu.Lock()
	if c.broken != nil {
		c.mu.Unlock()
		return c.broken
	}
	c.next++
	c.waiting[c.next] = call
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, op)
	b = binary.BigEndian.AppendUint64(b, c.next)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	if op == nbdWrite {
		b = append(b, p...)
	}
	_, err := c.conn.Write(b)
	c.mu.Unlock()
	if err != nil {
		return errGone
	}
	return <-call.done
}

func (c *nbdClient) close() { _ = c.conn.Close() }
