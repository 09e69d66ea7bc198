package eventstore

import (
	"encoding/binary"
	"hash/crc32"
)

// repair makes length and checksum of a record fit its bytes.
func repair(b []byte) {
	if len(b) < recordMin {
		return
	}
	copy(b, recordMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[crcFrom:], castagnoli))
}
