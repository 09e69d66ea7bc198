package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"weft/domain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const block = 4096

// ramDisk is a disk in memory. Zeroed and unmapped blocks are holes. With async set each I/O
// completes on a goroutine of its own, with hold set when the test says so.
type ramDisk struct {
	info  domain.DiskInfo
	async bool
	hold  chan *domain.IO           // takes I/Os instead of doing them
	fail  func(io *domain.IO) error // an outcome instead of doing it
	seen  func(io *domain.IO)       // told of each
	wg    running
	mu    sync.Mutex
	data  []byte
	alloc []bool // per block
}

func newRAM(size int64) *ramDisk {
	return &ramDisk{
		info: domain.DiskInfo{
			Name: "ram", Size: domain.Bytes(size), LogicalBlock: 512, PhysicalBlock: block,
		},
		data: make([]byte, size), alloc: make([]bool, (size+block-1)/block),
	}
}

func (d *ramDisk) Info() domain.DiskInfo { return d.info }

func (d *ramDisk) Submit(io *domain.IO) {
	if d.seen != nil {
		d.seen(io)
	}
	switch {
	case d.hold != nil:
		d.hold <- io
	case d.async:
		d.wg.Go(func() { d.do(io) })
	default:
		d.do(io)
	}
}

func (d *ramDisk) do(io *domain.IO) {
	if d.fail != nil {
		if io.Err = d.fail(io); io.Err != nil {
			io.To.Complete(io)
			return
		}
	}
	d.mu.Lock()
	switch io.Op {
	case domain.OpRead:
		copy(io.Buf, d.data[io.Off:io.Off+io.Len])
	case domain.OpWrite:
		copy(d.data[io.Off:], io.Buf)
		d.mark(io, true)
	case domain.OpZero, domain.OpUnmap:
		clear(d.data[io.Off : io.Off+io.Len])
		d.mark(io, io.NoUnmap)
	case domain.OpFlush, domain.OpCompareWrite:
	}
	d.mu.Unlock()
	io.To.Complete(io)
}

func (d *ramDisk) mark(io *domain.IO, allocated bool) {
	for b := io.Off / block; b*block < io.Off+io.Len; b++ {
		d.alloc[b] = allocated
	}
}

func (d *ramDisk) Extents(off, n int64, dst []domain.Extent) ([]domain.Extent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := off / block; b*block < off+n; b++ {
		dst = append(dst, domain.Extent{Off: b * block, Len: block, Hole: !d.alloc[b]})
	}
	return dst, nil
}

// running counts goroutines like a WaitGroup, but for one rule: a new one may begin while somebody
// waits for the others, as happens to a disk whose client is still there.
type running struct {
	mu sync.Mutex
	n  int
	no sync.Cond
}

// Go runs f.
func (r *running) Go(f func()) {
	r.mu.Lock()
	r.n++
	r.mu.Unlock()
	go func() {
		f()
		r.mu.Lock()
		r.n--
		r.mu.Unlock()
		r.no.Broadcast()
	}()
}

// Wait returns at a moment when nothing runs.
func (r *running) Wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.no.L = &r.mu
	for r.n > 0 {
		r.no.Wait()
	}
}

// served starts a server on a unix socket in the test's folder and gives its path.
func served(t testing.TB, exports ...Export) (*Server, string) {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetExports(exports); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	listen(t, s, "unix", path)
	return s, path
}

// listen serves on an address until the test ends.
func listen(t testing.TB, s *Server, network, address string) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-ended); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return l.Addr()
}

// client speaks the protocol by hand.
type client struct {
	t          testing.TB
	nc         net.Conn
	size       uint64
	flags      uint16
	structured bool
	cookie     uint64
}

func dial(t testing.TB, path string) *client {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &client{t: t, nc: nc}
}

func (c *client) send(parts ...any) {
	c.t.Helper()
	if _, err := c.nc.Write(wire(parts...)); err != nil {
		c.t.Fatal(err)
	}
}

// wire puts integers, strings and bytes together, big endian.
func wire(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case uint16:
			b = be.AppendUint16(b, p)
		case uint32:
			b = be.AppendUint32(b, p)
		case uint64:
			b = be.AppendUint64(b, p)
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		default:
			panic("wire: what is that?")
		}
	}
	return b
}

func (c *client) recv(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.t.Fatalf("%d bytes expected: %v", n, err)
	}
	return b
}

// gone fails the test unless the server closes the connection and says nothing more.
func (c *client) gone() {
	c.t.Helper()
	b, err := io.ReadAll(c.nc)
	if len(b) > 0 {
		c.t.Errorf("the server said %x before it closed", b)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Logf("closed with %v", err) // a reset is a close, too
	}
}

func (c *client) hello(flags uint32) {
	c.t.Helper()
	b := c.recv(18)
	if be.Uint64(b) != magicServer || be.Uint64(b[8:]) != magicOption || be.Uint16(b[16:]) != 3 {
		c.t.Fatalf("greeting %x", b)
	}
	c.send(flags)
}

// option sends one option and gives all replies to it, the last being an ack or an error.
func (c *client) option(option uint32, data []byte) (replies [][]byte, last uint32) {
	c.t.Helper()
	c.send(uint64(magicOption), option, uint32(len(data)), data)
	for {
		h := c.recv(20)
		if be.Uint64(h) != magicOptReply || be.Uint32(h[8:]) != option {
			c.t.Fatalf("reply %x to option %d", h, option)
		}
		kind, body := be.Uint32(h[12:]), c.recv(int(be.Uint32(h[16:])))
		if kind == repAck || kind >= 1<<31 {
			return replies, kind
		}
		replies = append(replies, body)
	}
}

func infoData(name string, items ...uint16) []byte {
	b := wire(uint32(len(name)), name, uint16(len(items)))
	for _, i := range items {
		b = be.AppendUint16(b, i)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := wire(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		b = append(b, wire(uint32(len(q)), q)...)
	}
	return b
}

// enter does the usual handshake.
func (c *client) enter(name string, structured bool) *client {
	c.t.Helper()
	c.hello(3)
	c.structured = structured
	if structured {
		if _, last := c.option(optStructuredReply, nil); last != repAck {
			c.t.Fatalf("structured: %#x", last)
		}
		if r, last := c.option(optSetMeta, metaData(name, metaAlloc)); last != repAck || len(r) != 1 {
			c.t.Fatalf("meta: %#x %q", last, r)
		}
	}
	replies, last := c.option(optGo, infoData(name))
	if last != repAck || len(replies) < 1 {
		c.t.Fatalf("go: %#x", last)
	}
	c.size, c.flags = be.Uint64(replies[0][2:]), be.Uint16(replies[0][10:])
	return c
}

func (c *client) request(flags, cmd uint16, off uint64, n uint32, data []byte) uint64 {
	c.t.Helper()
	c.cookie++
	c.send(uint32(magicRequest), flags, cmd, c.cookie, off, n, data)
	return c.cookie
}

type answer struct {
	cookie uint64
	code   uint32
	kind   uint16 // of a chunk
	body   []byte
}

// answer reads one reply; n is the data due after a simple one.
func (c *client) answer(n int) answer {
	c.t.Helper()
	h := c.recv(16)
	switch be.Uint32(h) {
	case magicSimple:
		a := answer{cookie: be.Uint64(h[8:]), code: be.Uint32(h[4:])}
		if a.code == 0 {
			a.body = c.recv(n)
		}
		return a
	case magicStructured:
		a := answer{cookie: be.Uint64(h[8:]), kind: be.Uint16(h[6:])}
		if be.Uint16(h[4:]) != chunkDone {
			c.t.Fatalf("chunk %x is not the last", h)
		}
		a.body = c.recv(int(be.Uint32(c.recv(4))))
		if a.kind == chunkError {
			a.code = be.Uint32(a.body)
		}
		return a
	}
	c.t.Fatalf("reply %x", h)
	return answer{}
}

// ask sends a request and reads its reply.
func (c *client) ask(flags, cmd uint16, off uint64, n uint32, data []byte) answer {
	c.t.Helper()
	want := 0
	if cmd == cmdRead && !c.structured {
		want = int(n)
	}
	cookie := c.request(flags, cmd, off, n, data)
	a := c.answer(want)
	if a.cookie != cookie {
		c.t.Fatalf("cookie %d, want %d", a.cookie, cookie)
	}
	return a
}

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }
