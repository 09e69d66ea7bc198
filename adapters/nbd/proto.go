package nbd

import (
	"encoding/binary"
	"errors"
)

// The limits of a connection. Sizes are bytes.
const (
	sessionsMax    = 4096     // connections of a server; the next is closed at once
	optionMax      = 4 << 10  // data of an option: ERR_TOO_BIG above
	optionSkipMax  = 64 << 10 // data of an option skipped after ERR_TOO_BIG; closed above
	optionsMax     = 4096     // options of a handshake; closed above
	nameMax        = 1 << 10  // of an export: with its option's other fields well below optionMax
	requestMax     = 32 << 20 // data of a request; told to the client as maximum block size
	flightMax      = 128      // requests in flight; the socket is not read above
	flightBytesMax = 32 << 20 // buffers in flight, one request always fits
	preferredBlock = 64 << 10 // told to the client
	statusWindow   = 64 << 20 // of a disk, asked for its extents at a time
	extentsMax     = 4096     // descriptors of one block status reply; the client asks on
	readBuffer     = 64 << 10 // of a connection
	batchMax       = 64       // replies sent by one system call
	holeMin        = 64 << 10 // a read of so much is searched for zeros; below it costs more
	keepMax        = 1 << 20  // buffers kept by an idle connection
	largeMin       = 16 << 10 // a payload of so much is not read through the connection's buffer
)

// Magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, the same bits for both sides.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// Replies to options.
const (
	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repMeta       = 4
	repErrUnsup   = 1<<31 + 1
	repErrPolicy  = 1<<31 + 2
	repErrInvalid = 1<<31 + 3
	repErrTLSReqd = 1<<31 + 5
	repErrUnknown = 1<<31 + 6
	repErrTooBig  = 1<<31 + 9
)

// Items of an info reply.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	txHasFlags    = 1 << 0
	txReadOnly    = 1 << 1
	txFlush       = 1 << 2
	txFUA         = 1 << 3
	txRotational  = 1 << 4
	txTrim        = 1 << 5
	txWriteZeroes = 1 << 6
	txDF          = 1 << 7
	txMultiConn   = 1 << 8
	txCache       = 1 << 10
	txFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Flags of commands.
const (
	cmdFUA      = 1 << 0
	cmdNoHole   = 1 << 1
	cmdDF       = 1 << 2
	cmdReqOne   = 1 << 3
	cmdFastZero = 1 << 4
)

// Structured replies.
const (
	chunkDone        = 1 << 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
)

// base:allocation, its id in our replies, and its bits.
const (
	metaBase   = "base:"
	metaAlloc  = "base:allocation"
	metaID     = 1
	stateHole  = 1 << 0
	stateZero  = 1 << 1
	requestLen = 28
	optionLen  = 16
	simpleLen  = 16
	chunkLen   = 20
)

var be = binary.BigEndian

// Errors that end a connection.
var (
	errMagic    = errors.New("wrong magic")
	errProtocol = errors.New("protocol broken")
	errTooBig   = errors.New("over a limit of the protocol")
)

// wireRequest is a request as it stands on the wire:
//
//	| magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 |
type wireRequest struct {
	flags, cmd uint16
	cookie     uint64
	off        uint64
	length     uint32
}

// parseRequest reads the requestLen bytes of a request. The only error is errMagic.
func parseRequest(b []byte) (wireRequest, error) {
	if be.Uint32(b) != magicRequest {
		return wireRequest{}, errMagic
	}
	return wireRequest{
		flags: be.Uint16(b[4:]), cmd: be.Uint16(b[6:]), cookie: be.Uint64(b[8:]),
		off: be.Uint64(b[16:]), length: be.Uint32(b[24:]),
	}, nil
}

// parseOption reads the optionLen bytes that open an option:
//
//	| magic 8 | option 4 | length 4 |
func parseOption(b []byte) (option, length uint32, err error) {
	if be.Uint64(b) != magicOption {
		return 0, 0, errMagic
	}
	return be.Uint32(b[8:]), be.Uint32(b[12:]), nil
}

// parseInfo reads the data of INFO and GO:
//
//	| name length 4 | name | count 2 | item 2 | ...
func parseInfo(b []byte) (name string, items []uint16, ok bool) {
	name, b, ok = cutString(b)
	if !ok || len(b) < 2 {
		return "", nil, false
	}
	n := int(be.Uint16(b))
	b = b[2:]
	if len(b) != 2*n {
		return "", nil, false
	}
	for i := range n {
		items = append(items, be.Uint16(b[2*i:]))
	}
	return name, items, true
}

// parseMeta reads the data of LIST_META_CONTEXT and SET_META_CONTEXT:
//
//	| name length 4 | name | count 4 | query length 4 | query | ...
func parseMeta(b []byte) (name string, queries []string, ok bool) {
	name, b, ok = cutString(b)
	if !ok || len(b) < 4 {
		return "", nil, false
	}
	n := be.Uint32(b)
	b = b[4:]
	if uint64(n)*4 > uint64(len(b)) {
		return "", nil, false
	}
	for range n {
		var query string
		if query, b, ok = cutString(b); !ok {
			return "", nil, false
		}
		queries = append(queries, query)
	}
	return name, queries, len(b) == 0
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := be.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}
