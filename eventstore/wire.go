package eventstore

import (
	"encoding/binary"

	"weft/domain"
)

// An append on its way from one node to another, version 1:
//
//	| version u8 | kind of expectation u8 | revision i64 | stream length u8 | stream |
//	| a record (FORMAT.md) per event, sealed at position 0 |
//
// A record carries its own length and checksum, so a torn or flipped body is found out.
const (
	appendVersion = 1
	appendFixed   = 1 + 1 + 8 + 1
)

// EncodeAppend gives the bytes of an append that Check has passed.
func EncodeAppend(s domain.StreamID, e Expect, events []Proposed) []byte {
	b := append(make([]byte, 0, 1<<10), appendVersion, byte(e.kind))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.rev))
	b = append(b, byte(len(s)))
	b = append(b, s...)
	for i := range events {
		r := Recorded{Header: events[i].Header, Data: events[i].Data}
		r.Stream = s
		r.Seal()
		b = AppendRecord(b, &r)
	}
	return b
}

// DecodeAppend reads what EncodeAppend wrote and checks it as Check does. Bytes that are no append
// are of kind Invalid, a damaged record is a CorruptError. The result shares no memory with b.
func DecodeAppend(b []byte) (s domain.StreamID, e Expect, events []Proposed, err error) {
	if len(b) < appendFixed || b[0] != appendVersion || len(b) < appendFixed+int(b[10]) {
		return "", e, nil, domain.Errorf(domain.Invalid, "no append of version %d", appendVersion)
	}
	e = Expect{kind: expectKind(b[1]), rev: domain.Revision(binary.LittleEndian.Uint64(b[2:]))}
	s, b = domain.StreamID(b[appendFixed:appendFixed+int(b[10])]), b[appendFixed+int(b[10]):]
	for len(b) > 0 && len(events) <= EventsMax {
		if len(b) < recordMin {
			return "", e, nil, domain.Errorf(domain.Invalid, "a cut record in an append")
		}
		n := int(binary.LittleEndian.Uint32(b[4:]))
		if n < recordMin || n > len(b) {
			return "", e, nil, domain.Errorf(domain.Invalid, "a record of %d bytes in an append", n)
		}
		r, err := DecodeRecord(0, b[:n])
		if err != nil {
			return "", e, nil, err
		}
		h := r.Header
		h.Stream, h.Revision, h.Position = "", 0, 0
		h.Hash, h.Prev = [32]byte{}, [32]byte{}
		events, b = append(events, Proposed{Header: h, Data: r.Data}), b[n:]
	}
	return s, e, events, Check(s, e, events)
}
