package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/domain"
)

const size = 8 << 20

// TestErrorTable feeds every kind through every command and reads the code the client sees, by
// both forms of replies.
func TestErrorTable(t *testing.T) {
	want := map[domain.Kind]uint32{
		domain.Internal: wireEIO, domain.Invalid: wireEINVAL, domain.Unsupported: wireEINVAL,
		domain.OutOfRange: wireEINVAL, domain.NotFound: wireESHUTDOWN, domain.Exists: wireEIO,
		domain.Conflict: wireEIO, domain.Denied: wireEPERM, domain.ReadOnly: wireEPERM,
		domain.NoSpace: wireENOSPC, domain.Busy: wireEIO, domain.Stale: wireEIO,
		domain.Suspended: wireEIO, domain.Unavailable: wireESHUTDOWN, domain.Corrupt: wireEIO,
		domain.Aborted: wireEIO, domain.Miscompare: wireEIO, domain.Reserved: wireEPERM,
		domain.Locked: wireEIO, domain.Mismatch: wireEIO, domain.Expired: wireEIO,
		domain.TooLarge: wireEINVAL,
	}
	disk := newRAM(size)
	var now atomic.Uint32 // the kind
	disk.fail = func(*domain.IO) error { return domain.Errorf(domain.Kind(now.Load()), "secret") }
	_, path := served(t, Export{Name: "a", Disk: disk})
	for _, kind := range domain.Kinds() {
		now.Store(uint32(kind))
		code, ok := want[kind]
		if !ok {
			t.Errorf("%v stands in no row", kind)
		}
		for _, cmd := range []uint16{
			cmdRead, cmdWrite, cmdFlush, cmdTrim, cmdCache, cmdWriteZeroes,
		} {
			code := code
			if kind == domain.OutOfRange && (cmd == cmdWrite || cmd == cmdWriteZeroes) {
				code = wireENOSPC
			}
			var data []byte
			if cmd == cmdWrite {
				data = filled(block, 1)
			}
			for _, structured := range []bool{false, true} {
				c := dial(t, path).enter("a", structured)
				a := c.ask(0, cmd, 0, block, data)
				if a.code != code {
					t.Errorf("%v, command %d: %d, want %d", kind, cmd, a.code, code)
				}
				if bytes.Contains(a.body, []byte("secret")) {
					t.Errorf("%v: our words reach the client", kind)
				}
				if pathGone(kind) {
					c.gone()
				}
				_ = c.nc.Close()
			}
		}
	}
	now.Store(uint32(domain.Unsupported))
	c := dial(t, path).enter("a", true)
	if a := c.ask(cmdFastZero, cmdWriteZeroes, 0, block, nil); a.code != wireENOTSUP {
		t.Errorf("fast zero: %d", a.code)
	}
}

// TestHandshake walks the options: list, info, what is unknown, malformed or too long, and both
// ways into transmission.
func TestHandshake(t *testing.T) {
	disk := newRAM(size)
	disk.info.Rotational = true
	closed := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s, path := served(t, Export{Name: "a/b", Description: "words", Disk: disk},
		Export{Name: "ro", Disk: disk, ReadOnly: true}, Export{Name: "far", Disk: disk, Allow: closed})
	c := dial(t, path)
	c.hello(3)
	replies, last := c.option(optList, nil)
	var names []string
	for _, r := range replies {
		names = append(names, string(r[4:]))
	}
	// A unix socket sees all.
	if last != repAck || !slices.Equal(names, []string{"a/bwords", "far", "ro"}) {
		t.Errorf("list: %#x %q", last, names)
	}
	cases := []struct {
		option uint32
		data   []byte
		want   uint32
	}{
		{optStartTLS, nil, repErrUnsup},
		{11, nil, repErrUnsup},
		{4711, []byte("x"), repErrUnsup},
		{optList, []byte("x"), repErrInvalid},
		{optStructuredReply, []byte("x"), repErrInvalid},
		{optInfo, nil, repErrInvalid},
		{optInfo, infoData("none"), repErrUnknown},
		{optInfo, wire(uint32(1<<31), "a"), repErrInvalid},
		{optInfo, append(infoData("a/b"), 1), repErrInvalid},
		{optGo, wire(uint32(3), "a/b", uint16(2), uint16(0)), repErrInvalid},
		{optGo, infoData("none"), repErrUnknown},
		{optSetMeta, metaData("a/b", metaAlloc), repErrInvalid}, // not structured yet
		{optStructuredReply, nil, repAck},
		{optSetMeta, metaData("none", metaAlloc), repErrUnknown},
		{optSetMeta, wire(uint32(3), "a/b", uint32(1<<31)), repErrInvalid},
		{optInfo, filled(optionMax, 0), repErrInvalid},
		{optInfo, filled(optionMax+1, 0), repErrTooBig},
		{optInfo, filled(optionSkipMax, 0), repErrTooBig},
	}
	for i, tc := range cases {
		if _, last := c.option(tc.option, tc.data); last != tc.want {
			t.Errorf("case %d, option %d: %#x, want %#x", i, tc.option, last, tc.want)
		}
	}
	metas := []struct {
		option uint32
		query  []string
		want   int
	}{
		{optListMeta, nil, 1},
		{optListMeta, []string{"base:"}, 1},
		{optListMeta, []string{"weft:"}, 0},
		{optSetMeta, nil, 0},
		{optSetMeta, []string{"base:"}, 0},
		{optSetMeta, []string{"x:y", metaAlloc}, 1},
	}
	for _, tc := range metas {
		r, last := c.option(tc.option, metaData("a/b", tc.query...))
		if last != repAck || len(r) != tc.want {
			t.Errorf("meta %d %q: %#x %q", tc.option, tc.query, last, r)
		}
	}
	replies, last = c.option(optGo, infoData("a/b", infoName, infoDescription, infoBlockSize, 99))
	want := [][]byte{
		wire(uint16(infoExport), uint64(size), uint16(0xdfd)),
		wire(uint16(infoBlockSize), uint32(512), uint32(preferredBlock), uint32(requestMax)),
		wire(uint16(infoName), "a/b"), wire(uint16(infoDescription), "words"),
	}
	if last != repAck || !slices.EqualFunc(replies, want, bytes.Equal) {
		t.Errorf("go: %#x %x", last, replies)
	}
	c.structured = true
	if a := c.ask(0, cmdRead, 0, 512, nil); a.kind != chunkOffsetData {
		t.Errorf("read after go: %+v", a)
	}
	if got := s.Stats(); got.Open != 1 || got.Reads != 1 || got.ReadBytes != 512 {
		t.Errorf("stats %+v", got)
	}
	c = dial(t, path)
	c.hello(3)
	if _, last := c.option(optAbort, nil); last != repAck {
		t.Errorf("abort: %#x", last)
	}
	c.gone()
	c = dial(t, path).enter("ro", false)
	if c.flags != 0x51f {
		t.Errorf("read-only flags %#x", c.flags)
	}
}

// TestExportName proves the old way in, with and without the 124 zeros.
func TestExportName(t *testing.T) {
	disk := newRAM(size)
	disk.data[0] = 'x'
	_, path := served(t, Export{Name: "a", Disk: disk})
	for flags, pad := range map[uint32]int{1: 124, 3: 0, 0: 124} {
		c := dial(t, path)
		c.hello(flags)
		c.send(uint64(magicOption), uint32(optExportName), uint32(1), "a")
		b := c.recv(10 + pad)
		if be.Uint64(b) != size || be.Uint16(b[8:]) != 0xd6d || !zero(b[10:]) {
			t.Errorf("flags %d: %x", flags, b)
		}
		if a := c.ask(0, cmdRead, 0, 512, nil); a.code != 0 || a.body[0] != 'x' {
			t.Errorf("read: %+v", a)
		}
		c.request(0, cmdDisc, 0, 0, nil)
		c.gone()
	}
}

// TestBrokenHandshakes proves that what is not the protocol ends the connection.
func TestBrokenHandshakes(t *testing.T) {
	_, path := served(t, Export{Name: "a", Disk: newRAM(size)})
	for name, send := range map[string][]byte{
		"client flags":   wire(uint32(0xff)),
		"option magic":   wire(uint32(3), filled(16, 'x')),
		"unknown export": wire(uint32(3), uint64(magicOption), uint32(optExportName), uint32(1), "b"),
		"long name": wire(uint32(3), uint64(magicOption), uint32(optExportName),
			uint32(optionMax+1)),
		"huge option": wire(uint32(3), uint64(magicOption), uint32(optInfo), uint32(1<<31)),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path)
			c.recv(18)
			c.send(send)
			c.gone()
		})
	}
	c := dial(t, path) // half an option, then nothing
	c.recv(18)
	c.send(uint32(3), uint32(7))
	_ = c.nc.Close()
}

// TestReadsWhatIsWritten goes through all commands with data, by both forms of replies and by disks
// that complete at once and later.
func TestReadsWhatIsWritten(t *testing.T) {
	for _, structured := range []bool{false, true} {
		for _, async := range []bool{false, true} {
			t.Run(fmt.Sprintf("structured=%v,async=%v", structured, async), func(t *testing.T) {
				disk := newRAM(size)
				disk.async = async
				_, path := served(t, Export{Name: "a", Disk: disk})
				exercise(t, dial(t, path).enter("a", structured), disk)
				disk.wg.Wait()
			})
		}
	}
}

func exercise(t *testing.T, c *client, disk *ramDisk) {
	t.Helper()
	read := func(off, n int) []byte {
		t.Helper()
		a := c.ask(0, cmdRead, uint64(off), uint32(n), nil)
		switch {
		case a.code != 0:
			t.Fatalf("read %d at %d: %d", n, off, a.code)
		case a.kind == chunkOffsetHole:
			return make([]byte, be.Uint32(a.body[8:]))
		case a.kind == chunkOffsetData:
			return a.body[8:]
		}
		return a.body
	}
	done := func(a answer) {
		t.Helper()
		if a.code != 0 {
			t.Fatalf("code %d: %q", a.code, a.body)
		}
	}
	for i, n := range []int{512, block, 60 << 10, 200 << 10, 2 << 20} {
		data := filled(n, byte('a'+i))
		done(c.ask(cmdFUA, cmdWrite, 512, uint32(n), data))
		if got := read(512, n); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes do not come back", n)
		}
	}
	done(c.ask(0, cmdFlush, 0, 0, nil))
	done(c.ask(0, cmdCache, 0, block, nil))
	done(c.ask(cmdNoHole|cmdFastZero|cmdFUA, cmdWriteZeroes, block, 64<<10, nil))
	done(c.ask(0, cmdTrim, 256<<10, 128<<10, nil))
	if !zero(read(block, 64<<10)) || !zero(read(256<<10, 128<<10)) {
		t.Error("zeroes are not")
	}
	if got := read(0, block); got[0] != 0 || got[512] != 'e' {
		t.Errorf("neighbours changed: %q", got[510:514])
	}
	if !c.structured {
		if a := c.ask(0, cmdBlockStatus, 0, block, nil); a.code != wireEINVAL {
			t.Errorf("status without context: %+v", a)
		}
		return
	}
	if a := c.ask(cmdDF, cmdRead, 256<<10, 128<<10, nil); a.kind != chunkOffsetData {
		t.Errorf("DF: chunk %d", a.kind)
	}
	if a := c.ask(0, cmdRead, 256<<10, 128<<10, nil); a.kind != chunkOffsetHole {
		t.Errorf("hole: chunk %d", a.kind)
	}
	want := wire(uint32(metaID), uint32(256<<10), uint32(0), uint32(128<<10), uint32(3),
		uint32(128<<10), uint32(0))
	if a := c.ask(0, cmdBlockStatus, 0, 512<<10, nil); !bytes.Equal(a.body, want) {
		t.Errorf("status: %x", a.body)
	}
	if a := c.ask(cmdReqOne, cmdBlockStatus, 300<<10, 1<<20, nil); !bytes.Equal(a.body,
		wire(uint32(metaID), uint32(84<<10), uint32(3))) {
		t.Errorf("one status: %x", a.body)
	}
	done(c.ask(0, cmdTrim, 0, size, nil)) // more than requestMax would carry is fine without data
	disk.mu.Lock()
	for b := range disk.alloc {
		disk.alloc[b] = b%2 == 0
	}
	disk.mu.Unlock()
	if a := c.ask(0, cmdBlockStatus, 0, size, nil); len(a.body) != 4+8*min(size/block, extentsMax) {
		t.Errorf("%d bytes of status", len(a.body))
	}
}

// hollow is a large disk that answers for its extents only.
type hollow struct {
	*ramDisk
	knows int64 // bytes it knows anything of
	asked int
}

func (d *hollow) Extents(off, n int64, dst []domain.Extent) ([]domain.Extent, error) {
	d.asked++
	if off >= d.knows {
		return dst, nil
	}
	return append(dst, domain.Extent{Off: off, Len: min(n, d.knows-off), Zero: true}), nil
}

// TestStatusOfLargeRange proves that a large range is asked window by window, that equal answers
// become one descriptor, and that what a disk knows nothing of ends the reply or is data.
func TestStatusOfLargeRange(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		knows         int64
		length, state uint32
		asked         int
	}{{gib, gib, stateZero, 16}, {100 << 20, 100 << 20, stateZero, 3}, {0, gib, 0, 1}} {
		disk := &hollow{ramDisk: newRAM(block), knows: tc.knows}
		disk.info.Size = gib
		s, path := served(t, Export{Name: "a", Disk: disk})
		a := dial(t, path).enter("a", true).ask(0, cmdBlockStatus, 0, gib, nil)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.body, wire(uint32(metaID), tc.length, tc.state)) || disk.asked != tc.asked {
			t.Errorf("%+v: asked %d times, %x", tc, disk.asked, a.body)
		}
	}
}

// TestMalformedRequests proves what is answered by an error and leaves the connection usable.
func TestMalformedRequests(t *testing.T) {
	disk := newRAM(size)
	_, path := served(t, Export{Name: "a", Disk: disk}, Export{Name: "ro", Disk: disk, ReadOnly: true})
	page := filled(block, 1)
	cases := []struct {
		name       string
		flags, cmd uint16
		off        uint64
		n          uint32
		data       []byte
		want       uint32
	}{
		{"command", 0, 99, 0, 0, nil, wireEINVAL},
		{"flags of read", 1 << 10, cmdRead, 0, block, nil, wireEINVAL},
		{"DF on a write", cmdDF, cmdWrite, 0, block, page, wireEINVAL},
		{"fast zero on trim", cmdFastZero, cmdTrim, 0, block, nil, wireEINVAL},
		{"no length", 0, cmdRead, 0, 0, nil, wireEINVAL},
		{"no length to write", 0, cmdWrite, 0, 0, nil, wireEINVAL},
		{"offset", 0, cmdRead, 100, 512, nil, wireEINVAL},
		{"length", 0, cmdWrite, 0, 100, page[:100], wireEINVAL},
		{"the end", 0, cmdRead, size, 512, nil, wireEINVAL},
		{"over the end", 0, cmdRead, size - 512, 1024, nil, wireEINVAL},
		{"write over the end", 0, cmdWrite, size, 512, page[:512], wireENOSPC},
		{"zero over the end", 0, cmdWriteZeroes, size - 512, 1024, nil, wireENOSPC},
		{"trim over the end", 0, cmdTrim, size, 512, nil, wireEINVAL},
		{"far", 0, cmdRead, 1<<64 - 512, 512, nil, wireEINVAL},
		{"negative", 0, cmdRead, 1 << 63, 512, nil, wireEINVAL},
		{"status of nothing", 0, cmdBlockStatus, 0, 0, nil, wireEINVAL},
		{"large read", 0, cmdRead, 0, requestMax + 512, nil, wireEINVAL},
	}
	for _, structured := range []bool{false, true} {
		c := dial(t, path).enter("a", structured)
		for _, tc := range cases {
			if a := c.ask(tc.flags, tc.cmd, tc.off, tc.n, tc.data); a.code != tc.want {
				t.Errorf("%s: %d, want %d", tc.name, a.code, tc.want)
			}
		}
		if a := c.ask(0, cmdRead, 0, 512, nil); a.code != 0 {
			t.Errorf("afterwards: %+v", a)
		}
		ro := dial(t, path).enter("ro", structured)
		for _, cmd := range []uint16{cmdWrite, cmdTrim, cmdWriteZeroes} {
			var data []byte
			if cmd == cmdWrite {
				data = page
			}
			if a := ro.ask(0, cmd, 0, block, data); a.code != wireEPERM {
				t.Errorf("read-only, %d: %d", cmd, a.code)
			}
		}
	}
	for name, send := range map[string][]byte{
		"magic": filled(requestLen, 'x'),
		"large write": wire(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(1), uint64(0),
			uint32(requestMax+512)),
	} {
		c := dial(t, path).enter("a", true)
		c.send(send)
		t.Run(name, func(t *testing.T) { c.t = t; c.gone() })
	}
	c := dial(t, path).enter("a", true) // gone in the middle of a payload
	c.request(0, cmdWrite, 0, block, page[:100])
	_ = c.nc.Close()
}

// TestLargestRequest proves that a request of 32 MiB passes both ways.
func TestLargestRequest(t *testing.T) {
	_, path := served(t, Export{Name: "a", Disk: newRAM(requestMax)})
	c := dial(t, path).enter("a", true)
	data := filled(requestMax, 'y')
	if a := c.ask(0, cmdWrite, 0, requestMax, data); a.code != 0 {
		t.Fatalf("write: %d", a.code)
	}
	if a := c.ask(0, cmdRead, 0, requestMax, nil); a.code != 0 || !bytes.Equal(a.body[8:], data) {
		t.Fatalf("read: %d", a.code)
	}
}

// TestClientThatDoesNotRead proves N4: a client may send all its requests before it reads the first
// reply, up to the limits, though the socket takes far less; also with a disk that completes later.
func TestClientThatDoesNotRead(t *testing.T) {
	for _, async := range []bool{false, true} {
		disk := newRAM(size)
		disk.async = async
		copy(disk.data, filled(size, 'z'))
		_, path := served(t, Export{Name: "a", Disk: disk})
		c := dial(t, path).enter("a", true)
		const n, reads = 128 << 10, flightMax - 8
		for range reads {
			c.request(0, cmdRead, 0, n, nil)
		}
		c.request(0, cmdWrite, 4<<20, 4<<20, filled(4<<20, 'w'))
		seen := map[uint64]bool{}
		for range reads + 1 {
			a := c.answer(0)
			if a.code != 0 || seen[a.cookie] || a.kind != 0 && !bytes.Equal(a.body[8:], disk.data[:n]) {
				t.Fatalf("cookie %d: %d", a.cookie, a.code)
			}
			seen[a.cookie] = true
		}
		disk.wg.Wait()
		_ = c.nc.Close()
	}
}

// TestPipelined sends bursts of mixed requests from several connections and checks each reply.
func TestPipelined(t *testing.T) {
	for _, async := range []bool{false, true} {
		disk := newRAM(size)
		disk.async = async
		s, path := served(t, Export{Name: "a", Disk: disk})
		var wg sync.WaitGroup
		for w := range 4 {
			c := dial(t, path).enter("a", w%2 == 0)
			wg.Go(func() { burst(t, c, uint64(w)*(size/4)) })
		}
		wg.Wait()
		disk.wg.Wait()
		if st := s.Stats(); st.Errors != 0 || st.Sends >= st.Reads+st.Writes && !async {
			t.Errorf("replies are not gathered: %+v", st)
		}
	}
}

func burst(t *testing.T, c *client, base uint64) {
	for round := range 20 {
		var out []byte
		want := map[uint64]bool{}
		for i := range 32 {
			c.cookie++
			off := base + uint64(i)*block
			want[c.cookie] = false
			out = append(out, wire(uint32(magicRequest), uint16(0), uint16(cmdWrite), c.cookie, off,
				uint32(block), filled(block, byte(round)))...)
		}
		if _, err := c.nc.Write(out); err != nil {
			t.Error(err)
			return
		}
		for range 32 {
			a := c.answer(0)
			if done, ok := want[a.cookie]; !ok || done || a.code != 0 {
				t.Errorf("reply %+v", a)
			}
			want[a.cookie] = true
		}
		a := c.ask(0, cmdRead, base+31*block, block, nil)
		if a.body[len(a.body)-1] != byte(round) {
			t.Errorf("round %d reads %d", round, a.body[len(a.body)-1])
		}
	}
}

// TestSetExports proves that an export which goes answers what is in flight, ends its connections
// and no other, and that its disk sees no Submit afterwards.
func TestSetExports(t *testing.T) {
	one, two := newRAM(size), newRAM(size)
	one.hold = make(chan *domain.IO, flightMax)
	s, path := served(t, Export{Name: "one", Disk: one}, Export{Name: "two", Disk: two})
	a, b := dial(t, path).enter("one", true), dial(t, path).enter("two", true)
	a.request(0, cmdRead, 0, block, nil)
	held := <-one.hold
	set := make(chan error, 1)
	go func() { set <- s.SetExports([]Export{{Name: "two", Disk: two, Description: "new"}}) }()
	for { // SetExports has taken the name away
		if _, _, ok := s.find("one", a.nc.RemoteAddr()); !ok {
			break
		}
	}
	select {
	case err := <-set:
		t.Fatalf("returned with an I/O in flight: %v", err)
	default:
	}
	one.do(held)
	if got := a.answer(0); got.code != 0 {
		t.Errorf("in flight: %+v", got)
	}
	a.gone()
	if err := <-set; err != nil {
		t.Fatal(err)
	}
	if got := b.ask(0, cmdRead, 0, block, nil); got.code != 0 {
		t.Errorf("the other export: %+v", got)
	}
	for _, bad := range [][]Export{
		{{Name: "x", Disk: one}, {Name: "x", Disk: two}},
		{{Name: "x"}},
		{{Name: strings.Repeat("n", nameMax+1), Disk: one}},
	} {
		if err := s.SetExports(bad); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%v", err)
		}
	}
	if err := s.SetExports(nil); err != nil {
		t.Fatal(err)
	}
	b.gone()
}

// pipes is a listener whose connections are pipes, which fake time understands.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// piped starts a server behind pipes and gives a dialer.
func piped(t *testing.T, exports ...Export) (*Server, func() *client) {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetExports(exports); err != nil {
		t.Fatal(err)
	}
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	go func() {
		if err := s.Serve(p); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	return s, func() *client {
		ours, theirs := net.Pipe()
		p.conns <- theirs
		return &client{t: t, nc: ours}
	}
}

// TestHalfOpen proves that a client which says nothing, or stops within the handshake, is let go at
// the time limits, and one in transmission never.
func TestHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, connect := piped(t, Export{Name: "a", Disk: newRAM(size)})
		silent, slow, idle := connect(), connect(), connect()
		start := time.Now()
		silent.recv(18)
		slow.hello(3)
		slow.option(optList, nil)
		idle.enter("a", true)
		silent.gone()
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("silent for %v", d)
		}
		slow.gone()
		if d := time.Since(start); d != 15*time.Second {
			t.Errorf("slow for %v", d)
		}
		time.Sleep(24 * time.Hour) // fake
		if a := idle.ask(0, cmdRead, 0, 512, nil); a.code != 0 {
			t.Errorf("idle: %+v", a)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		idle.gone()
	})
}

// TestFlightLimits proves N5: at 128 requests or 32 MiB in flight the socket is not read, and that
// a completion lets the next request in.
func TestFlightLimits(t *testing.T) {
	for _, tc := range []struct {
		n, max int
	}{{512, flightMax}, {1 << 20, flightBytesMax >> 20}, {requestMax, 1}} {
		synctest.Test(t, func(t *testing.T) {
			disk := newRAM(requestMax)
			disk.hold = make(chan *domain.IO, 2*flightMax)
			s, connect := piped(t, Export{Name: "a", Disk: disk})
			c := connect().enter("a", false)
			go func() {
				for range tc.max + 10 {
					c.request(0, cmdRead, 0, uint32(tc.n), nil)
				}
			}()
			synctest.Wait()
			if got := len(disk.hold); got != tc.max {
				t.Errorf("%d requests of %d bytes in flight, want %d", got, tc.n, tc.max)
			}
			for range tc.max + 10 {
				disk.do(<-disk.hold)
				if a := c.answer(tc.n); a.code != 0 {
					t.Fatalf("%+v", a)
				}
				synctest.Wait()
				if got := len(disk.hold); got > tc.max {
					t.Errorf("%d in flight", got)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCloseGrace proves that Close does not wait for ever for a client that does not read.
func TestCloseGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, connect := piped(t, Export{Name: "a", Disk: newRAM(size)})
		c := connect().enter("a", true)
		c.request(0, cmdRead, 0, block, nil)
		synctest.Wait() // the reply waits for us
		start := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != closeGrace {
			t.Errorf("closed after %v", d)
		}
		if err := s.Close(); err != nil {
			t.Errorf("twice: %v", err)
		}
	})
}

// TestSessionLimit proves that the connection over sessionsMax is closed at once.
func TestSessionLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, connect := piped(t)
		s.mu.Lock()
		for range sessionsMax { // placeholders: no goroutine each
			s.mu.conns[&conn{}] = struct{}{}
		}
		s.mu.Unlock()
		connect().gone()
		s.mu.Lock()
		clear(s.mu.conns)
		s.mu.Unlock()
		connect().hello(3)
		if st := s.Stats(); st.Refused != 1 || st.Connections != 1 {
			t.Errorf("%+v", st)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestMoreIsAHint proves that the disk hears of requests which wait behind this one.
func TestMoreIsAHint(t *testing.T) {
	disk := newRAM(size)
	var mu sync.Mutex
	var more []bool
	disk.seen = func(io *domain.IO) {
		mu.Lock()
		defer mu.Unlock()
		more = append(more, io.More)
	}
	_, path := served(t, Export{Name: "a", Disk: disk})
	c := dial(t, path).enter("a", true)
	one := wire(uint32(magicRequest), uint16(0), uint16(cmdFlush), uint64(1), uint64(0), uint32(0))
	c.send(one, one, one)
	for range 3 {
		c.answer(0)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(more, []bool{true, true, false}) {
		t.Errorf("more: %v", more)
	}
}

// TestHotPathDoesNotAllocate gates reads and writes in steady state, at depth 1 and 16, for a disk
// that completes at once.
func TestHotPathDoesNotAllocate(t *testing.T) {
	_, path := served(t, Export{Name: "a", Disk: newRAM(size)})
	for _, structured := range []bool{false, true} {
		c := dial(t, path).enter("a", structured)
		for _, cmd := range []uint16{cmdRead, cmdWrite} {
			for _, depth := range []int{1, 16} {
				out, reply := hotRequests(cmd, depth, structured)
				in := make([]byte, reply)
				if n := testing.AllocsPerRun(200, func() {
					if _, err := c.nc.Write(out); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(c.nc, in); err != nil {
						t.Fatal(err)
					}
				}); n > 0 {
					t.Errorf("command %d, depth %d, structured %v: %v allocations",
						cmd, depth, structured, n)
				}
			}
		}
	}
}

// hotRequests gives depth requests of 4 KiB and the length of their replies.
func hotRequests(cmd uint16, depth int, structured bool) (out []byte, reply int) {
	for i := range depth {
		out = append(out, wire(uint32(magicRequest), uint16(0), cmd, uint64(i), uint64(i*block),
			uint32(block))...)
		reply += simpleLen
		if cmd == cmdWrite {
			out = append(out, filled(block, 7)...)
			continue
		}
		reply += block
		if structured {
			reply += chunkLen + 8 - simpleLen
		}
	}
	return out, reply
}

// workerDisk does its I/O on one goroutine, as a disk with a queue does.
type workerDisk struct {
	*ramDisk
	queue chan *domain.IO
}

func (d *workerDisk) Submit(io *domain.IO) { d.queue <- io }

func newWorkerDisk(t testing.TB) *workerDisk {
	d := &workerDisk{ramDisk: newRAM(size), queue: make(chan *domain.IO, flightMax)}
	d.wg.Go(func() {
		for io := range d.queue {
			d.do(io)
		}
	})
	t.Cleanup(func() {
		close(d.queue)
		d.wg.Wait()
	})
	return d
}

// BenchmarkHop measures the bare hop over a unix socket, client included, to a disk that completes
// at once and to one that completes on a goroutine of its own.
func BenchmarkHop(b *testing.B) {
	b.Run("inline", func(b *testing.B) { hop(b, newRAM(size)) })
	b.Run("worker", func(b *testing.B) { hop(b, newWorkerDisk(b)) })
}

func hop(b *testing.B, disk Disk) {
	b.Helper()
	_, path := served(b, Export{Name: "a", Disk: disk})
	for _, cmd := range []uint16{cmdRead, cmdWrite} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%d/qd%d", cmd, depth), func(b *testing.B) {
				c := dial(b, path).enter("a", true)
				out, reply := hotRequests(cmd, depth, true)
				in := make([]byte, reply)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.nc.Write(out); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(c.nc, in); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*depth), "ns/io")
			})
		}
	}
}

// TestListenerFails proves that Serve gives the listener's error, and nil after Close.
func TestListenerFails(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != nil {
		t.Errorf("after Close: %v", err)
	}
	for _, bad := range []Config{{HandshakeTimeout: -1}, {RequireTLS: true}} {
		if _, err := New(bad); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestAllow proves that a client from another network neither sees nor gets the export.
func TestAllow(t *testing.T) {
	s, _ := served(t, Export{
		Name: "far", Disk: newRAM(size), Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	})
	addr := listen(t, s, "tcp", "127.0.0.1:0")
	nc, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	c := &client{t: t, nc: nc}
	c.hello(3)
	if r, last := c.option(optList, nil); last != repAck || len(r) != 0 {
		t.Errorf("list: %q", r)
	}
	if _, last := c.option(optGo, infoData("far")); last != repErrPolicy {
		t.Errorf("go: %#x", last)
	}
	near := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	if err := s.SetExports([]Export{{Name: "far", Disk: newRAM(size), Allow: near}}); err != nil {
		t.Fatal(err)
	}
	if _, last := c.option(optGo, infoData("far")); last != repAck {
		t.Errorf("go from a near network: %#x", last)
	}
}

// levels counts the records of a log by level.
type levels struct {
	mu    sync.Mutex
	count map[slog.Level]int
}

func (l *levels) Enabled(context.Context, slog.Level) bool { return true }
func (l *levels) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *levels) WithGroup(string) slog.Handler            { return l }

func (l *levels) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[r.Level]++
	return nil
}

// TestErrorsAreLoggedOnce proves one warning per error of the disk, none for what a client does
// wrong or for its going, and one for a connection that breaks the protocol.
func TestErrorsAreLoggedOnce(t *testing.T) {
	log := &levels{count: map[slog.Level]int{}}
	s, err := New(Config{Log: slog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	disk := newRAM(size)
	disk.fail = func(io *domain.IO) error {
		if io.Op == domain.OpRead {
			return domain.Errorf(domain.Corrupt, "block 7")
		}
		return nil
	}
	if err := s.SetExports([]Export{{Name: "a", Disk: disk}}); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/s"
	listen(t, s, "unix", path)
	c := dial(t, path).enter("a", true)
	for range 3 {
		c.ask(0, cmdRead, 0, 512, nil)
		c.ask(0, cmdRead, 1, 512, nil)
		c.ask(0, cmdWrite, 0, 512, filled(512, 1))
	}
	c.request(0, cmdDisc, 0, 0, nil)
	c.gone()
	c = dial(t, path).enter("a", true)
	c.send(filled(requestLen, 'x'))
	c.gone()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if log.count[slog.LevelWarn] != 4 || log.count[slog.LevelError] != 0 || s.Stats().Errors != 6 {
		t.Errorf("log %v, stats %+v", log.count, s.Stats())
	}
}
