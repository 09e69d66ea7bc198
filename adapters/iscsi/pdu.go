package iscsi

import (
	"encoding/binary"
	"hash/crc32"
)

// A PDU is a basic header segment, additional header segments, a header digest, a data segment
// padded to four bytes, and a data digest:
//
//	0        1       2       3       4        5..7          8..15  16..19  20..47
//	+--------+-------+-------+-------+--------+-------------+------+-------+-----------------+
//	| opcode | flags | by opcode     | AHS /4 | data length | LUN  | task  | by opcode       |
//	+--------+-------+-------+-------+--------+-------------+------+-------+-----------------+
const headerSize = 48

// Opcodes of the initiator.
const (
	opNopOut     = 0x00
	opCommand    = 0x01
	opTask       = 0x02
	opLogin      = 0x03
	opText       = 0x04
	opDataOut    = 0x05
	opLogout     = 0x06
	opSNACK      = 0x10
	opImmediate  = 0x40
	opcodeBits   = 0x3f
	opNopIn      = 0x20 // of the target from here on
	opResponse   = 0x21
	opTaskDone   = 0x22
	opLoginReply = 0x23
	opTextReply  = 0x24
	opDataIn     = 0x25
	opLogoutDone = 0x26
	opR2T        = 0x31
	opAsync      = 0x32
	opReject     = 0x3f
)

// Reasons of a Reject.
const (
	rejectDigest    = 0x02
	rejectSNACK     = 0x03
	rejectProtocol  = 0x04
	rejectOpcode    = 0x05
	rejectImmediate = 0x06
	rejectTaskInUse = 0x07
	rejectField     = 0x09
)

// SCSI status codes that a session itself gives.
const (
	statusGood  = 0x00
	statusCheck = 0x02
)

// noTag is the reserved value of task tags.
const noTag = 0xffffffff

const (
	flagFinal     = 0x80
	flagContinue  = 0x40
	flagRead      = 0x40 // of a SCSI command
	flagWrite     = 0x20
	flagOverflow  = 0x04
	flagUnderflow = 0x02
	flagStatus    = 0x01
)

// header is a basic header segment.
type header [headerSize]byte

func (h *header) opcode() byte     { return h[0] & opcodeBits }
func (h *header) immediate() bool  { return h[0]&opImmediate != 0 }
func (h *header) final() bool      { return h[1]&flagFinal != 0 }
func (h *header) extra() int       { return int(h[4]) * 4 }
func (h *header) dataLen() int     { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }
func (h *header) lun() []byte      { return h[8:16] }
func (h *header) tag() uint32      { return h.get(16) }
func (h *header) get(i int) uint32 { return binary.BigEndian.Uint32(h[i:]) }
func (h *header) cmdSN() uint32    { return h.get(24) }
func (h *header) put(i int, v uint32) {
	binary.BigEndian.PutUint32(h[i:], v)
}

func (h *header) setDataLen(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// padding tells how many bytes fill n up to a multiple of four.
func padding(n int) int { return -n & 3 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// digest gives the CRC32C of parts, in the byte order of the wire.
func digest(parts ...[]byte) (d [4]byte) {
	sum := uint32(0)
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	binary.LittleEndian.PutUint32(d[:], sum)
	return d
}

// after tells whether sequence number a comes after b, in serial arithmetic.
func after(a, b uint32) bool { return int32(a-b) > 0 }
