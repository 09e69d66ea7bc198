package iscsi

import (
	"bytes"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"weft/domain"
)

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>9) ^ seed
	}
	return b
}

// TestReadWrite moves data by immediate data, unsolicited data and R2T, with and without digests,
// in segments of every shape.
func TestReadWrite(t *testing.T) {
	for _, keys := range [][]pair{
		nil,
		{{"HeaderDigest", "CRC32C"}, {"DataDigest", "CRC32C"}},
		{{"MaxRecvDataSegmentLength", "512"}, {"DataDigest", "CRC32C"}},
		{{"MaxRecvDataSegmentLength", "262144"}, {"MaxBurstLength", "4096"}},
	} {
		b := newBench(t, Config{}, nil)
		i := b.dial()
		i.must(i.enter(keys))
		i.ready()
		data := pattern(1<<20, 1)
		if r := i.write(1, 8, data); r.header[3] != statusGood {
			t.Fatalf("status %02x", r.header[3])
		}
		p := i.request(2, cdb16(0x8a, 4000, 1), 512, true, data[:512])
		i.post(p) // immediate
		if r := i.expect(opResponse); r.header[3] != statusGood || r.get(44) != 0 {
			t.Fatalf("immediate: % x", r.header)
		}
		if status, got := i.read(3, 8, 2048); status != statusGood || !bytes.Equal(got, data) {
			t.Fatalf("status %02x, %d bytes differ", status, len(got))
		}
		if _, got := i.read(4, 4000, 1); !bytes.Equal(got, data[:512]) {
			t.Error("immediate data differs")
		}
		if n := b.server.Stats().BytesWritten; n != 1<<20+512 {
			t.Errorf("%d bytes counted", n)
		}
	}
}

// TestUnsolicited writes with InitialR2T=No: data comes unasked up to FirstBurstLength, then by
// R2T.
func TestUnsolicited(t *testing.T) {
	b := newBench(t, Config{Bytes: 64 << 10}, nil)
	i := b.dial()
	i.must(i.enter([]pair{{"InitialR2T", "No"}, {"FirstBurstLength", "8192"}}))
	i.ready()
	data := pattern(64<<10, 3)
	p := i.request(1, cdb16(0x8a, 0, len(data)/512), len(data), true, data[:4096])
	p.header[1] &^= flagFinal
	i.post(p)
	d := &pdu{data: data[4096:8192]}
	d.header[0], d.header[1] = opDataOut, flagFinal
	d.put(16, 1)
	d.put(20, noTag)
	d.put(40, 4096)
	i.post(d)
	if r := i.feed(1, data); r.header[3] != statusGood {
		t.Fatalf("status %02x", r.header[3])
	}
	if _, got := i.read(2, 0, len(data)/512); !bytes.Equal(got, data) {
		t.Error("data differs")
	}
}

// TestBytesLimit proves that commands over the limit of bytes wait and are all served.
func TestBytesLimit(t *testing.T) {
	b := newBench(t, Config{Bytes: 128 << 10}, nil)
	i := b.login(1)
	i.ready()
	data := pattern(64<<10, 5)
	const n = 20
	for k := range uint32(n) {
		i.post(i.request(100+k, cdb16(0x8a, uint64(k)*128, 128), len(data), true, data[:4096]))
	}
	for done := 0; done < n; {
		p := i.next()
		switch p.opcode() {
		case opResponse:
			if p.header[3] != statusGood {
				t.Fatalf("status %02x", p.header[3])
			}
			done++
		case opR2T:
			d := &pdu{data: data[p.get(40) : p.get(40)+p.get(44)]}
			d.header[0], d.header[1] = opDataOut, flagFinal
			d.put(16, p.tag())
			d.put(20, p.get(20))
			d.put(40, p.get(40))
			i.post(d)
		}
	}
	for k := range uint64(n) {
		if _, got := i.read(1, k*128, 128); !bytes.Equal(got, data) {
			t.Fatalf("write %d differs", k)
		}
	}
}

// TestDigestErrors proves that a bad header digest ends the connection, and a bad data digest fails
// the command alone, with nothing written.
func TestDigestErrors(t *testing.T) {
	digests := []pair{{"HeaderDigest", "CRC32C"}, {"DataDigest", "CRC32C"}}
	b := newBench(t, Config{}, nil)
	i := b.dial()
	i.must(i.enter(digests))
	i.ready()
	i.breakData = true
	i.post(i.request(1, cdb16(0x8a, 0, 1), 512, true, pattern(512, 9)))
	i.breakData = false
	if r := i.expect(opReject); r.header[2] != rejectDigest {
		t.Errorf("reason %d", r.header[2])
	}
	r := i.expect(opResponse)
	if r.header[3] != statusCheck || r.data[2+2] != 0x0b || r.data[2+12] != 0x47 {
		t.Errorf("% x: % x", r.header, r.data)
	}
	if _, got := i.read(2, 0, 1); !bytes.Equal(got, make([]byte, 512)) {
		t.Error("damaged data was written")
	}
	i.breakHeader = true
	i.post(i.request(3, make([]byte, 6), 0, false, nil))
	i.gone()
	if n := b.server.Stats().DigestErrors; n != 2 {
		t.Errorf("%d digest errors counted", n)
	}
}

// TestAbortWaits proves T2 and T4: ABORT TASK is answered after the write can no longer take
// effect, and the write is not answered at all.
func TestAbortWaits(t *testing.T) {
	b := newBench(t, Config{}, nil)
	i := b.login(1)
	i.ready()
	b.hold()
	i.post(i.request(1, cdb16(0x8a, 0, 1), 512, true, pattern(512, 1)))
	io := <-b.held
	i.function(2, abortTask, 1)
	i.ping() // the abort has been taken and is not answered yet
	b.disk.Run(io)
	if r := i.expect(opTaskDone); r.header[2] != functionDone || r.tag() != 2 {
		t.Errorf("% x", r.header)
	}
	i.function(3, abortTask, 1)
	if r := i.expect(opTaskDone); r.header[2] != functionNoTask {
		t.Errorf("% x", r.header)
	}
	i.function(4, reassign, 1)
	if r := i.expect(opTaskDone); r.header[2] != functionNoReassign {
		t.Errorf("% x", r.header)
	}
}

// TestResetAbortsOthers proves that LOGICAL UNIT RESET ends the tasks of another session with TASK
// ABORTED, and drops a write that still gathers data.
func TestResetAbortsOthers(t *testing.T) {
	b := newBench(t, Config{}, nil)
	one, two := b.login(1), b.login(2)
	one.ready()
	two.ready()
	b.hold()
	two.post(two.request(1, cdb16(0x8a, 0, 1), 512, true, pattern(512, 1)))
	io := <-b.held
	two.post(two.request(2, cdb16(0x8a, 8, 8), 4096, true, nil)) // wants an R2T
	r2t := two.expect(opR2T)
	one.function(9, resetLogicalUnit, noTag)
	one.ping()
	b.disk.Run(io)
	if r := one.expect(opTaskDone); r.header[2] != functionDone {
		t.Errorf("% x", r.header)
	}
	if r := two.expect(opResponse); r.tag() != 1 || r.header[3] != 0x40 {
		t.Errorf("% x", r.header)
	}
	b.disk.Hook(nil)
	d := &pdu{data: pattern(4096, 2)}
	d.header[0], d.header[1] = opDataOut, flagFinal
	d.put(16, 2)
	d.put(20, r2t.get(20))
	two.post(d)
	if r := two.expect(opResponse); r.header[3] != 0x40 {
		t.Errorf("late data: % x", r.header)
	}
	two.ready()
	if _, got := two.read(3, 8, 8); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("a write from before the reset landed after it")
	}
}

// TestReinstatementFences proves T1: a second login of the same port is answered only after the
// writes of the first session have ended.
func TestReinstatementFences(t *testing.T) {
	b := newBench(t, Config{}, nil)
	i := b.login(1)
	i.ready()
	b.hold()
	i.post(i.request(1, cdb16(0x8a, 0, 1), 512, true, pattern(512, 1)))
	held := <-b.held
	again := b.dial()
	ended := make(chan struct{})
	landed := make(chan bool, 1)
	go func() {
		again.must(again.enter(nil))
		select {
		case <-ended:
			landed <- true
		default:
			landed <- false
		}
	}()
	b.until("reinstatement", func() bool { return b.server.Stats().Reinstatements == 1 })
	i.gone()
	select {
	case <-landed:
		t.Fatal("the login was answered while a write was in flight")
	default:
	}
	close(ended)
	b.disk.Run(held)
	if !<-landed {
		t.Error("the login was answered before the fence")
	}
	again.ready()
}

// TestUnitsChange proves that units come and go under a running session, and that removing the
// target asks the session to log out.
func TestUnitsChange(t *testing.T) {
	b := newBench(t, Config{}, nil)
	i := b.login(1)
	i.ready()
	b.target.LUNs = map[uint16]LUN{0: b.unit, 5: b.unit}
	if err := b.server.SetTargets([]Target{b.target}); err != nil {
		t.Fatal(err)
	}
	i.post(i.request(1, make([]byte, 6), 0, false, nil))
	if r := i.expect(opResponse); len(r.data) < 16 || r.data[2+12] != 0x3f || r.data[2+13] != 0x0e {
		t.Errorf("no attention for a new unit: % x", r.data)
	}
	b.target.LUNs = nil
	if err := b.server.SetTargets([]Target{b.target}); err != nil {
		t.Fatal(err)
	}
	i.post(i.request(2, make([]byte, 6), 0, false, nil))
	if r := i.expect(opResponse); len(r.data) < 16 || r.data[2+12] != 0x25 {
		t.Errorf("the unit is still there: % x", r.data)
	}
	if err := b.server.SetTargets(nil); err != nil {
		t.Fatal(err)
	}
	if r := i.expect(opAsync); r.header[36] != 1 {
		t.Errorf("event %d", r.header[36])
	}
	out := &pdu{}
	out.header[0], out.header[1] = opLogout|opImmediate, flagFinal
	out.put(16, 3)
	i.post(out)
	i.expect(opLogoutDone)
	i.gone()
}

// parting is a unit that notes that a nexus of it was closed.
type parting struct {
	LUN
	closed *atomic.Bool
}

// Attach implements LUN.
func (p parting) Attach(initiator, target string, port uint16) Nexus {
	return partingNexus{p.LUN.Attach(initiator, target, port), p.closed}
}

type partingNexus struct {
	Nexus
	closed *atomic.Bool
}

// Close implements Nexus.
func (n partingNexus) Close() {
	n.Nexus.Close()
	n.closed.Store(true)
}

// overheard is a connection whose writes somebody sees before they leave.
type overheard struct {
	net.Conn
	saw func(p []byte)
}

// Write implements net.Conn.
func (o overheard) Write(p []byte) (int, error) {
	o.saw(p)
	return o.Conn.Write(p)
}

// TestLogoutEndsNexusFirst proves that what a host holds at a unit is free before it hears that it
// is logged out, and that a configuration which comes meanwhile attaches nothing to it any more.
func TestLogoutEndsNexusFirst(t *testing.T) {
	var closed atomic.Bool
	b := newBench(t, Config{}, func(x *Target) { x.LUNs[0] = parting{x.LUNs[0], &closed} })
	client, server := net.Pipe()
	defer client.Close()
	first := make(chan bool, 1)
	b.server.accept(overheard{server, func(p []byte) {
		if len(p) > 0 && p[0]&0x3f == opLogoutDone {
			first <- closed.Load()
		}
	}})
	var c *session
	b.server.mu.Lock()
	for c = range b.server.mu.all {
	}
	b.server.mu.Unlock()
	i := &initiator{t: t, conn: client, name: testInitiator, isid: 1, cmdSN: 7}
	i.must(i.enter(nil))
	i.ready()
	out := &pdu{}
	out.header[0], out.header[1] = opLogout|opImmediate, flagFinal
	out.put(16, 3)
	i.post(out)
	i.expect(opLogoutDone)
	if !<-first {
		t.Error("the host heard that it is out, and its nexus stands")
	}
	c.retarget()
	if n := len(*c.units.Load()); n != 0 {
		t.Errorf("%d units are attached to a session that is over", n)
	}
}

// TestPing proves that a silent initiator is pinged and then cut.
func TestPing(t *testing.T) {
	b := newBench(t, Config{NopTime: 20 * time.Millisecond}, nil)
	i := b.login(1)
	if p := i.expect(opNopIn); p.tag() != noTag || p.get(20) == noTag {
		t.Errorf("% x", p.header)
	}
	i.gone()
	if n := b.server.Stats().PingTimeouts; n != 1 {
		t.Errorf("%d time-outs counted", n)
	}
}

// TestWindow proves that the window closes at the depth and that a command outside it is dropped
// without a trace.
func TestWindow(t *testing.T) {
	b := newBench(t, Config{Depth: 4}, nil)
	i := b.login(1)
	i.ready()
	b.hold()
	for k := range uint32(4) {
		i.post(i.request(k, cdb16(0x8a, uint64(k), 1), 512, true, pattern(512, 1)))
	}
	var ios []*domain.IO
	for range 4 {
		ios = append(ios, <-b.held)
	}
	late := i.request(50, make([]byte, 6), 0, false, nil)
	i.post(late)   // beyond MaxCmdSN
	ping := &pdu{} // answered behind what was sent before it: the window is closed until then
	ping.header[0], ping.header[1] = opNopOut|opImmediate, flagFinal
	ping.put(16, 99)
	ping.put(20, noTag)
	i.post(ping)
	if p := i.expect(opNopIn); p.tag() != 99 {
		t.Errorf("tag %d", p.tag())
	}
	for _, io := range ios {
		b.disk.Run(io)
	}
	for range 4 {
		if r := i.expect(opResponse); r.tag() > 3 {
			t.Errorf("tag %d", r.tag())
		}
	}
	i.cmdSN-- // the dropped one did not count
	i.ready()
}

// TestMalformed proves that what no initiator sends is rejected or ends the connection, and harms
// nobody else.
func TestMalformed(t *testing.T) {
	b := newBench(t, Config{}, nil)
	healthy := b.login(1)
	healthy.ready()
	rejects := map[string]func(i *initiator) *pdu{
		"unknown opcode": func(i *initiator) *pdu {
			p := &pdu{}
			p.header[0] = 0x1e
			return p
		},
		"snack": func(i *initiator) *pdu {
			p := &pdu{}
			p.header[0] = opSNACK
			return p
		},
		"more data than announced": func(i *initiator) *pdu {
			return i.request(1, cdb16(0x8a, 0, 1), 512, true, make([]byte, 1024))
		},
		"data with a read": func(i *initiator) *pdu {
			return i.request(1, cdb16(0x88, 0, 1), 512, false, make([]byte, 512))
		},
		"both directions": func(i *initiator) *pdu {
			p := i.request(1, cdb16(0x8a, 0, 1), 512, true, nil)
			p.header[1] |= flagRead
			return p
		},
		"reserved tag": func(i *initiator) *pdu {
			return i.request(noTag, make([]byte, 6), 0, false, nil)
		},
	}
	for name, make := range rejects {
		t.Run(name, func(t *testing.T) {
			i := b.login(2)
			i.ready()
			i.post(make(i))
			i.expect(opReject)
			i.ready()
		})
	}
	ends := map[string]func(i *initiator){
		"oversize data segment": func(i *initiator) {
			p := i.request(1, cdb16(0x8a, 0, 1), 1<<24, true, nil)
			p.setDataLen(segmentMax + 1)
			_, _ = i.conn.Write(p.header[:])
		},
		"skipped number": func(i *initiator) {
			i.cmdSN += 3
			i.post(i.request(1, make([]byte, 6), 0, false, nil))
		},
	}
	for name, do := range ends {
		t.Run(name, func(t *testing.T) {
			i := b.login(2)
			i.ready()
			do(i)
			i.gone()
		})
	}
	healthy.ready()
}

// TestMalformedLogin proves that a login of garbage or of too much text ends early.
func TestMalformedLogin(t *testing.T) {
	b := newBench(t, Config{}, nil)
	hello := header{opLogin | opImmediate}
	for name, p := range map[string]*pdu{
		"not a login":  {header: header{opCommand}},
		"no equals":    {header: hello, data: []byte("garbage\x00")},
		"long value":   {header: hello, data: append([]byte("K="), make120k()...)},
		"a full stage": {header: header{opLogin | opImmediate, 0x8f}},
	} {
		t.Run(name, func(t *testing.T) {
			i := b.dial()
			if err := i.send(p); err != nil {
				t.Skip("cut while sending")
			}
			i.gone()
		})
	}
}

func make120k() []byte { return bytes.Repeat([]byte("x"), 120<<10) }

// TestRanges proves the sense of LBAs beyond the end and of units that do not exist.
func TestRanges(t *testing.T) {
	b := newBench(t, Config{}, nil)
	i := b.login(1)
	i.ready()
	end := uint64(64<<20) / 512
	for _, c := range []struct {
		lba    uint64
		blocks int
		asc    byte
	}{{end, 1, 0x21}, {end - 1, 2, 0x21}, {1 << 63, 1, 0x21}, {0, 1 << 30, 0x21}} {
		status, sense := i.read(1, c.lba, c.blocks)
		if status != statusCheck || sense[2+12] != c.asc {
			t.Errorf("%d+%d: %02x % x", c.lba, c.blocks, status, sense)
		}
	}
	p := i.request(2, []byte{0x12, 0, 0, 0, 96, 0}, 96, false, nil)
	p.header[9] = 77
	i.post(p)
	if r := i.expect(opDataIn); r.data[0] != 0x7f || r.header[1]&flagUnderflow == 0 {
		t.Errorf("% x", r.data)
	}
	i.post(i.request(3, []byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, 256, false, nil))
	one := append([]byte{0, 0, 0, 8}, make([]byte, 12)...)
	if r := i.expect(opDataIn); !bytes.Equal(r.data, one) {
		t.Errorf("% x", r.data)
	}
}

// TestDataOutOfOrder proves that wrong data sequence numbers and offsets fail the command.
func TestDataOutOfOrder(t *testing.T) {
	b := newBench(t, Config{}, nil)
	i := b.login(1)
	i.ready()
	for _, change := range []func(*pdu){
		func(p *pdu) { p.put(36, 27) },
		func(p *pdu) { p.put(40, 512) },
		func(p *pdu) { p.put(20, 12345) },
		func(p *pdu) { p.data = append(p.data, p.data...) },
	} {
		i.post(i.request(1, cdb16(0x8a, 0, 1), 512, true, nil))
		r2t := i.expect(opR2T)
		d := &pdu{data: pattern(512, 1)}
		d.header[0], d.header[1] = opDataOut, flagFinal
		d.put(16, 1)
		d.put(20, r2t.get(20))
		change(d)
		i.post(d)
		if r := i.expect(opResponse); r.header[3] != statusCheck || r.data[2+2] != 0x0b {
			t.Errorf("% x", r.header)
		}
	}
	if b.disk.Pages() != 0 {
		t.Error("something was written")
	}
}

// TestSlowReader proves that an initiator which never reads is cut and leaves nothing behind.
func TestSlowReader(t *testing.T) {
	b := newBench(t, Config{NopTime: 50 * time.Millisecond}, nil)
	i := b.login(1)
	i.ready()
	for k := range uint32(100) {
		i.post(i.request(k, cdb16(0x88, 0, 2048), 1<<20, false, nil))
	}
	b.until("cut", func() bool { return b.server.Stats().Sessions == 0 })
}
