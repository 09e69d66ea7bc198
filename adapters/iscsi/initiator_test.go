package iscsi

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/adapters/scsi"
	"weft/domain"
	"weft/testing/iscsicu/ramdisk"
)

const (
	testTarget    = "iqn.2026-01.example.weft:test"
	testInitiator = "iqn.2026-01.example.host:a"
	patience      = 2 * time.Minute
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a server over one RAM disk as LUN 0.
type bench struct {
	t      *testing.T
	server *Server
	disk   *ramdisk.Disk
	unit   *scsi.Unit
	target Target
	addr   string
	held   chan *domain.IO // see hold
}

func newBench(t *testing.T, c Config, change func(*Target)) *bench {
	t.Helper()
	b := &bench{t: t, held: make(chan *domain.IO, 1024)}
	b.disk = ramdisk.New(domain.DiskInfo{
		ID: domain.VolumeID{UUID: domain.UUID{1, 2, 3}}, Size: 64 * domain.MiB,
	})
	var err error
	if b.unit, err = scsi.New(scsi.Config{Disk: b.disk}); err != nil {
		t.Fatal(err)
	}
	if b.server, err = New(c); err != nil {
		t.Fatal(err)
	}
	b.target = Target{Name: testTarget, AllowAny: true, LUNs: map[uint16]LUN{0: b.unit}}
	if change != nil {
		change(&b.target)
	}
	if err := b.server.SetTargets([]Target{b.target}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(l) }()
	t.Cleanup(func() {
		b.server.Close()
		b.unit.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return b
}

// hold keeps every write back and puts it on b.held; the test runs it.
func (b *bench) hold() {
	b.disk.Hook(func(io *domain.IO) (bool, error) {
		if io.Op != domain.OpWrite {
			return false, nil
		}
		b.held <- io
		return true, nil
	})
}

// until waits for a condition that another goroutine brings about.
func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			b.t.Fatalf("never: %s", what)
		}
	}
}

// pdu is a PDU as the initiator sees it.
type pdu struct {
	header
	data []byte
}

// initiator is a small iSCSI initiator that does what it is told, also what it should not do.
type initiator struct {
	t              *testing.T
	conn           net.Conn
	name           string
	isid           byte
	cmdSN          uint32
	headerD, dataD bool
	breakHeader    bool
	breakData      bool
	mu             sync.Mutex
}

func (b *bench) dial() *initiator {
	b.t.Helper()
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &initiator{t: b.t, conn: conn, name: testInitiator, isid: 1, cmdSN: 7}
}

// login dials and logs in without authentication.
func (b *bench) login(isid byte) *initiator {
	b.t.Helper()
	i := b.dial()
	i.isid = isid
	i.must(i.enter(nil))
	return i
}

func (i *initiator) must(status int) {
	i.t.Helper()
	if status != loginOK {
		i.t.Fatalf("login status %04x", status)
	}
}

func (i *initiator) send(p *pdu) error {
	p.setDataLen(len(p.data))
	var b bytes.Buffer
	b.Write(p.header[:])
	if i.headerD {
		d := digest(p.header[:])
		if i.breakHeader {
			d[0] ^= 1
		}
		b.Write(d[:])
	}
	b.Write(p.data)
	pad := make([]byte, padding(len(p.data)))
	b.Write(pad)
	if i.dataD && len(p.data) > 0 {
		d := digest(p.data, pad)
		if i.breakData {
			d[0] ^= 1
		}
		b.Write(d[:])
	}
	_, err := i.conn.Write(b.Bytes())
	return err
}

func (i *initiator) recv() (*pdu, error) {
	var p pdu
	if _, err := io.ReadFull(i.conn, p.header[:]); err != nil {
		return nil, err
	}
	var d [4]byte
	if i.headerD {
		if _, err := io.ReadFull(i.conn, d[:]); err != nil {
			return nil, err
		}
		if d != digest(p.header[:]) {
			i.t.Error("header digest of the target is wrong")
		}
	}
	n := p.dataLen()
	whole := make([]byte, n+padding(n))
	if _, err := io.ReadFull(i.conn, whole); err != nil {
		return nil, err
	}
	if i.dataD && n > 0 {
		if _, err := io.ReadFull(i.conn, d[:]); err != nil {
			return nil, err
		}
		if d != digest(whole) {
			i.t.Error("data digest of the target is wrong")
		}
	}
	p.data = whole[:n]
	return &p, nil
}

func (i *initiator) next() *pdu {
	i.t.Helper()
	p, err := i.recv()
	if err != nil {
		i.t.Fatal(err)
	}
	return p
}

// expect receives a PDU of an opcode.
func (i *initiator) expect(op byte) *pdu {
	i.t.Helper()
	p := i.next()
	if p.opcode() != op {
		i.t.Fatalf("got opcode %02x, want %02x: % x", p.opcode(), op, p.header)
	}
	return p
}

// gone wants the target to close the connection, whatever it sends before.
func (i *initiator) gone() {
	i.t.Helper()
	for {
		if _, err := i.recv(); err != nil {
			if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
				i.t.Fatal("the connection stays open")
			}
			return
		}
	}
}

// exchange sends one login request and gives the status and the answered keys.
func (i *initiator) exchange(stage, next byte, keys ...pair) (int, map[string]string) {
	i.t.Helper()
	p := &pdu{data: formatText(keys)}
	p.header[0] = opLogin | opImmediate
	p.header[1] = stage << 2
	if next > stage {
		p.header[1] |= flagFinal | next
	}
	p.header[13] = i.isid
	p.put(24, i.cmdSN)
	if err := i.send(p); err != nil {
		return -1, nil
	}
	r, err := i.recv()
	if err != nil {
		return -1, nil
	}
	pairs, err := parseText(r.data)
	if err != nil {
		i.t.Error(err)
	}
	got := map[string]string{}
	for _, k := range pairs {
		got[k.key] = k.value
	}
	return int(r.header[36])<<8 | int(r.header[37]), got
}

func (i *initiator) opening() []pair {
	return []pair{{"InitiatorName", i.name}, {"TargetName", testTarget}, {"SessionType", "Normal"}}
}

// enter logs in straight to the operational stage, with some keys.
func (i *initiator) enter(keys []pair) int {
	i.t.Helper()
	status, got := i.exchange(stageOperational, stageFull, append(i.opening(), keys...)...)
	i.headerD = got["HeaderDigest"] == "CRC32C"
	i.dataD = got["DataDigest"] == "CRC32C"
	return status
}

// discover logs in to a discovery session and gives the addresses of SendTargets=All.
func (i *initiator) discover() []string {
	i.t.Helper()
	status, _ := i.exchange(stageOperational, stageFull,
		pair{"InitiatorName", i.name}, pair{"SessionType", "Discovery"})
	i.must(status)
	p := &pdu{data: formatText([]pair{{"SendTargets", "All"}})}
	p.header[0], p.header[1] = opText, flagFinal
	p.put(16, 1)
	p.put(20, noTag)
	p.put(24, i.number())
	if err := i.send(p); err != nil {
		i.t.Fatal(err)
	}
	pairs, err := parseText(i.expect(opTextReply).data)
	if err != nil {
		i.t.Fatal(err)
	}
	var all []string
	for _, k := range pairs {
		all = append(all, k.value)
	}
	return all
}

func (i *initiator) number() uint32 {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.cmdSN
	i.cmdSN++
	return n
}

// request builds a SCSI command. A nil data with toTarget 0 reads.
func (i *initiator) request(tag uint32, cdb []byte, expected int, write bool, data []byte) *pdu {
	p := &pdu{data: data}
	p.header[0], p.header[1] = opCommand, flagFinal|flagRead
	if write {
		p.header[1] = flagFinal | flagWrite
	}
	p.put(16, tag)
	p.put(20, uint32(expected))
	p.put(24, i.number())
	copy(p.header[32:48], cdb)
	return p
}

func (i *initiator) post(p *pdu) {
	i.t.Helper()
	if err := i.send(p); err != nil {
		i.t.Fatal(err)
	}
}

// read runs READ(16) and gives status and data.
func (i *initiator) read(tag uint32, lba uint64, blocks int) (byte, []byte) {
	i.t.Helper()
	i.post(i.request(tag, cdb16(0x88, lba, blocks), blocks*512, false, nil))
	var data []byte
	for {
		p := i.next()
		switch {
		case p.opcode() == opResponse:
			return p.header[3], p.data
		case p.opcode() != opDataIn:
			i.t.Fatalf("opcode %02x", p.opcode())
		}
		data = append(data, p.data...)
		if p.header[1]&flagStatus != 0 {
			return p.header[3], data
		}
	}
}

// write runs WRITE(16) by R2T alone and gives the response.
func (i *initiator) write(tag uint32, lba uint64, data []byte) *pdu {
	i.t.Helper()
	i.post(i.request(tag, cdb16(0x8a, lba, len(data)/512), len(data), true, nil))
	return i.feed(tag, data)
}

// feed answers R2Ts until the response comes.
func (i *initiator) feed(tag uint32, data []byte) *pdu {
	i.t.Helper()
	for {
		p := i.next()
		if p.opcode() != opR2T {
			return p
		}
		off, n := int(p.get(40)), int(p.get(44))
		for sn := uint32(0); n > 0; sn++ {
			size := min(n, 64<<10)
			d := &pdu{data: data[off : off+size]}
			d.header[0] = opDataOut
			if size == n {
				d.header[1] = flagFinal
			}
			d.put(16, tag)
			d.put(20, p.get(20))
			d.put(36, sn)
			d.put(40, uint32(off))
			i.post(d)
			off, n = off+size, n-size
		}
	}
}

// ready runs TEST UNIT READY until no unit attention is left.
func (i *initiator) ready() {
	i.t.Helper()
	for range 20 {
		i.post(i.request(0x7000, make([]byte, 6), 0, false, nil))
		if i.expect(opResponse).header[3] == statusGood {
			return
		}
	}
	i.t.Fatal("unit attentions do not end")
}

// ping sends a NOP-Out and wants its echo as the very next PDU.
func (i *initiator) ping() {
	i.t.Helper()
	p := &pdu{data: []byte("ping")}
	p.header[0], p.header[1] = opNopOut|opImmediate, flagFinal
	p.put(16, 77)
	p.put(20, noTag)
	p.put(24, i.cmdSN)
	i.post(p)
	if r := i.expect(opNopIn); string(r.data) != "ping" || r.tag() != 77 {
		i.t.Errorf("% x", r.header)
	}
}

// function sends a task management function.
func (i *initiator) function(tag uint32, code byte, of uint32) {
	i.t.Helper()
	p := &pdu{}
	p.header[0], p.header[1] = opTask|opImmediate, flagFinal|code
	p.put(16, tag)
	p.put(20, of)
	p.put(24, i.cmdSN)
	i.post(p)
}

func cdb16(op byte, lba uint64, blocks int) []byte {
	cdb := make([]byte, 16)
	cdb[0] = op
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], uint32(blocks))
	return cdb
}

// chapLogin authenticates by CHAP. challenge, when not empty, asks the target for its proof.
func (i *initiator) chapLogin(algorithm, user, secret, challenge string) (int, map[string]string) {
	i.t.Helper()
	status, got := i.exchange(stageSecurity, 0, append(i.opening(), pair{"AuthMethod", "CHAP"})...)
	if status != loginOK {
		return status, got
	}
	status, got = i.exchange(stageSecurity, 0, pair{"CHAP_A", algorithm})
	if status != loginOK {
		return status, got
	}
	id, _ := strconv.Atoi(got["CHAP_I"])
	theirs, err := hex.DecodeString(strings.TrimPrefix(got["CHAP_C"], "0x"))
	if err != nil || len(theirs) < 16 {
		i.t.Errorf("bad challenge %q", got["CHAP_C"])
	}
	answer := chapAnswer(got["CHAP_A"], byte(id), secret, theirs)
	keys := []pair{{"CHAP_N", user}, {"CHAP_R", answer}}
	if challenge == "reflect" {
		challenge = got["CHAP_C"]
	}
	if challenge != "" {
		keys = append(keys, pair{"CHAP_I", "9"}, pair{"CHAP_C", challenge})
	}
	status, proof := i.exchange(stageSecurity, stageFull, keys...)
	return status, proof
}

func chapAnswer(algorithm string, id byte, secret string, challenge []byte) string {
	var h hash.Hash = md5.New()
	if algorithm == "7" {
		h = sha256.New()
	}
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return "0x" + hex.EncodeToString(h.Sum(nil))
}
