package iscsi

import (
	"bytes"
	"net"
	"testing"
	"time"

	"weft/adapters/scsi"
	"weft/domain"
	"weft/testing/iscsicu/ramdisk"
)

// FuzzText proves that text from the wire is parsed within bounds, and that what was parsed is
// written the same.
func FuzzText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.x\x00SendTargets=All\x00"))
	f.Add([]byte("=\x00==\x00a"))
	f.Add(bytes.Repeat([]byte("k=v\x00"), keysMax+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, err := parseText(b)
		if err != nil {
			return
		}
		if len(pairs) > keysMax {
			t.Fatal("too many keys")
		}
		again, err := parseText(formatText(pairs))
		if err != nil || len(again) != len(pairs) {
			t.Fatalf("%q: %v", pairs, err)
		}
	})
}

// FuzzNegotiate proves that no value of a key makes parameters that are out of bounds.
func FuzzNegotiate(f *testing.F) {
	f.Add("MaxBurstLength", "1048576")
	f.Add("MaxRecvDataSegmentLength", "0x200")
	f.Add("FirstBurstLength", "99999999999999999999")
	f.Add("HeaderDigest", "CRC32C,None")
	f.Fuzz(func(t *testing.T, key, value string) {
		p := defaults()
		if _, ok := p.negotiate(pair{key, value}, []string{"None", "CRC32C"}, false); !ok {
			return
		}
		p.settle()
		if p.segment < 512 || p.burst < 512 || p.burst > burstMax || p.firstBurst > p.burst {
			t.Fatalf("%s=%s: %+v", key, value, p)
		}
	})
}

// FuzzBinary proves that CHAP's binary values are decoded within bounds.
func FuzzBinary(f *testing.F) {
	f.Add("0x00ff")
	f.Add("0bAAAA")
	f.Add("0x")
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := decodeBinary(s); err == nil && len(b) > challengeMax {
			t.Fatalf("%d bytes", len(b))
		}
	})
}

// FuzzConnection feeds a whole connection with anything, first without and then with a login before
// it: the server neither panics nor hangs.
func FuzzConnection(f *testing.F) {
	login := &pdu{data: formatText([]pair{
		{"InitiatorName", testInitiator}, {"TargetName", testTarget}, {"InitialR2T", "No"},
	})}
	login.header[0], login.header[1] = opLogin|opImmediate, 0x87
	login.put(24, 7)
	login.setDataLen(len(login.data))
	hello := append(login.header[:], login.data...)
	hello = append(hello, make([]byte, padding(len(login.data)))...)
	command := header{opCommand, flagFinal | flagWrite}
	command.put(24, 7)
	command.put(20, 4096)
	copy(command[32:], cdb16(0x8a, 0, 8))
	f.Add(false, []byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(true, command[:])
	f.Add(true, bytes.Repeat([]byte{0xff}, 96))
	disk := ramdisk.New(domain.DiskInfo{Size: 4 * domain.MiB})
	unit, err := scsi.New(scsi.Config{Disk: disk})
	if err != nil {
		f.Fatal(err)
	}
	server, err := New(Config{LoginTime: time.Second})
	if err != nil {
		f.Fatal(err)
	}
	err = server.SetTargets([]Target{
		{Name: testTarget, AllowAny: true, LUNs: map[uint16]LUN{0: unit}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		server.Close()
		unit.Close()
	})
	f.Fuzz(func(t *testing.T, loggedIn bool, b []byte) {
		ours, theirs := net.Pipe()
		c := newSession(server, theirs)
		server.mu.Lock()
		server.mu.all[c] = struct{}{}
		server.mu.Unlock()
		server.joining.Add(1)
		go c.run()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			buf := make([]byte, 4096)
			for {
				if _, err := ours.Read(buf); err != nil {
					return
				}
			}
		}()
		_ = ours.SetWriteDeadline(time.Now().Add(time.Second))
		if loggedIn {
			_, _ = ours.Write(hello)
		}
		_, _ = ours.Write(b)
		_ = ours.Close()
		<-c.done
		<-drained
	})
}

// TestNoAllocations proves that reading and writing over a connection allocates nothing in steady
// state, on either side.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	b := newBench(t, Config{}, nil)
	i := b.dial()
	i.must(i.enter([]pair{{"MaxRecvDataSegmentLength", "262144"}}))
	i.ready()
	_ = i.conn.SetDeadline(time.Time{})
	data := pattern(4096, 1)
	write := i.request(1, cdb16(0x8a, 0, 8), 4096, true, data)
	write.setDataLen(len(data))
	read := i.request(2, cdb16(0x88, 0, 8), 4096, false, nil)
	out := append(append([]byte(nil), write.header[:]...), data...)
	out = append(out, read.header[:]...)
	in := make([]byte, headerSize+headerSize+4096)
	sn := i.cmdSN - 2
	round := func() {
		(*header)(out).put(24, sn)
		(*header)(out[headerSize+4096:]).put(24, sn+1)
		sn += 2
		if _, err := i.conn.Write(out); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(in); {
			m, err := i.conn.Read(in[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	}
	for range 200 {
		round()
	}
	if !bytes.Equal(in[2*headerSize:], data) {
		t.Error("read something else")
	}
	if n := testing.AllocsPerRun(500, round); n != 0 {
		t.Errorf("%v allocations per write and read", n)
	}
}
