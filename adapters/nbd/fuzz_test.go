package nbd

import (
	"testing"
	"testing/synctest"

	"weft/domain"
)

// FuzzParsers proves that the parsers of options and requests take any bytes without a panic, and
// give names and queries no longer than what came.
func FuzzParsers(f *testing.F) {
	f.Add(infoData("a/b", infoName, infoBlockSize))
	f.Add(metaData("a", metaAlloc, "base:"))
	f.Add(wire(uint32(1<<32-1), "x"))
	f.Add(wire(uint32(0), uint32(1<<32-1)))
	f.Add(wire(uint64(magicOption), uint32(optGo), uint32(4)))
	f.Add(wire(uint32(magicRequest), uint16(1), uint16(cmdWrite), uint64(7), uint64(0), uint32(512)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, items, ok := parseInfo(b); ok && len(name)+2*len(items)+6 != len(b) {
			t.Errorf("info %q %v out of %d bytes", name, items, len(b))
		}
		if name, queries, ok := parseMeta(b); ok {
			n := 8 + len(name)
			for _, q := range queries {
				n += 4 + len(q)
			}
			if n != len(b) {
				t.Errorf("meta %q %q out of %d bytes", name, queries, len(b))
			}
		}
		if len(b) >= optionLen {
			_, _, _ = parseOption(b)
		}
		if len(b) >= requestLen {
			if w, err := parseRequest(b); err == nil {
				c := &conn{structured: true, meta0: true}
				c.info0 = domain.DiskInfo{Size: size, LogicalBlock: 512}
				if c.check(w) == nil && w.cmd != cmdFlush && w.off+uint64(w.length) > size {
					t.Errorf("%+v passed", w)
				}
			}
		}
	})
}

// FuzzConnection feeds a whole connection, handshake and requests, and proves that it ends when the
// client goes, that the disk sees only what fits it, and that nothing stays behind.
func FuzzConnection(f *testing.F) {
	enter := wire(uint32(3), uint64(magicOption), uint32(optStructuredReply), uint32(0),
		uint64(magicOption), uint32(optGo), uint32(7), infoData("a"))
	f.Add(enter)
	f.Add(wire(enter, uint32(magicRequest), uint16(0), uint16(cmdRead), uint64(1), uint64(0),
		uint32(512)))
	f.Add(wire(enter, uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(1), uint64(512),
		uint32(512), filled(512, 1), uint32(magicRequest), uint16(0), uint16(cmdDisc), uint64(2),
		uint64(0), uint32(0)))
	f.Add(wire(uint32(3), uint64(magicOption), uint32(optExportName), uint32(1), "a",
		uint32(magicRequest), uint16(4), uint16(cmdTrim), uint64(1), uint64(1<<63), uint32(1<<31)))
	f.Add(wire(uint32(3), uint64(magicOption), uint32(optSetMeta), uint32(4), uint32(1<<31)))
	f.Fuzz(func(t *testing.T, b []byte) {
		synctest.Test(t, func(t *testing.T) {
			disk := newRAM(1 << 20)
			disk.seen = func(io *domain.IO) {
				if io.Off < 0 || io.Len < 0 || io.Off+io.Len > 1<<20 || (io.Off|io.Len)%512 != 0 {
					t.Errorf("the disk was asked for %d at %d", io.Len, io.Off)
				}
			}
			s, connect := piped(t, Export{Name: "a", Disk: disk})
			c := connect()
			go func() {
				_, _ = c.nc.Write(b) // ends when the server has had enough
				_ = c.nc.Close()
			}()
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				var p [4096]byte
				for {
					if _, err := c.nc.Read(p[:]); err != nil {
						return
					}
				}
			}()
			<-drained
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}
