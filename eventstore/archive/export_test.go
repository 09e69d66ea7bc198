package archive

import (
	"encoding/binary"
	"hash/crc32"
)

// ProbeIndex reads all that an index says, with its checksum made to match.
func ProbeIndex(b []byte) {
	if len(b) > 4 {
		end := len(b) - 4
		binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[:end], castagnoli))
	}
	x, err := parseIndex("file", b)
	if err != nil {
		return
	}
	for i := range x.streams {
		name, _, _, _ := x.entry(i)
		x.run(clone(name))
	}
	for i := range x.Count {
		x.offset(i)
		x.id(i)
	}
}
