package eventstore

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"time"

	"weft/domain"
)

// The record, version 1. FORMAT.md draws it. Offsets and sizes are bytes, integers little-endian.
const (
	recordMagic  = "WEV1"
	recordFormat = 1
	recordFixed  = 160                             // up to the strings
	recordChain  = 2 * sha256.Size                 // prev and hash at the end
	recordMin    = recordFixed + recordChain       // 224
	recordMax    = recordMin + 6*(1<<16) + DataMax // nothing longer is looked at
	contentLabel = "weft-content-1"                // first words of what content hashes
	crcFrom      = 12                              // the checksum covers the bytes from here on
	flagZstd     = 1 << 0                          // reserved: data is compressed
	flagSealed   = 1 << 1                          // data holds sealed fields
	createdStep  = 100 * time.Nanosecond           // Created is cut to this
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hasher feeds SHA-256 with lengths before what has one.
type hasher struct {
	hash.Hash
	buf [8]byte
}

func (h *hasher) u16(v uint16) { h.Write(binary.LittleEndian.AppendUint16(h.buf[:0], v)) }
func (h *hasher) u64(v uint64) { h.Write(binary.LittleEndian.AppendUint64(h.buf[:0], v)) }

func (h *hasher) text(s string) {
	h.Write(binary.LittleEndian.AppendUint32(h.buf[:0], uint32(len(s))))
	h.Write([]byte(s))
}

// Content is the hash over all that a writer knows of an event before it is appended. It is the
// same in every engine, and any reader can compute it again.
func Content(h *domain.Header, data []byte) [32]byte {
	w := hasher{Hash: sha256.New()}
	w.Write([]byte(contentLabel))
	w.text(string(h.Stream))
	w.u64(uint64(h.Revision))
	w.Write(h.ID.UUID[:])
	w.text(h.Type)
	w.u16(h.Schema)
	w.u64(uint64(h.Created.UnixNano()))
	w.text(h.Actor)
	w.text(h.Tenant)
	w.Write(h.Correlation.UUID[:])
	w.Write(h.Causation.UUID[:])
	w.Write(h.Command.UUID[:])
	w.u64(h.Token)
	w.Write(h.RequestHash[:])
	w.text(h.Source)
	w.text(h.RequestID)
	w.Write(binary.LittleEndian.AppendUint32(w.buf[:0], uint32(len(data))))
	w.Write(data)
	var sum [32]byte
	w.Sum(sum[:0])
	return sum
}

// Chain is the hash of a record: over the hash before it, its position, and its content.
func Chain(prev [32]byte, p domain.Position, content [32]byte) [32]byte {
	var b [32 + 8 + 32]byte
	copy(b[:], prev[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(p))
	copy(b[40:], content[:])
	return sha256.Sum256(b[:])
}

// Seal sets Hash from all the other fields. The fields up to Prev must be final.
func (r *Recorded) Seal() { r.Hash = Chain(r.Prev, r.Position, Content(&r.Header, r.Data)) }

// AppendRecord encodes a sealed record behind dst and gives the longer slice. It keeps neither.
func AppendRecord(dst []byte, r *Recorded) []byte {
	le, start := binary.LittleEndian, len(dst)
	texts := r.texts()
	size := recordMin + len(r.Data)
	for _, s := range texts {
		size += len(s)
	}
	dst = append(dst, recordMagic...)
	dst = le.AppendUint32(dst, uint32(size))
	dst = le.AppendUint32(dst, 0) // the checksum, once the rest stands
	dst = le.AppendUint16(dst, recordFormat)
	dst = le.AppendUint16(dst, 0)
	dst = le.AppendUint64(dst, uint64(r.Position))
	dst = le.AppendUint64(dst, uint64(r.Revision))
	dst = le.AppendUint64(dst, uint64(r.Before))
	dst = append(dst, r.ID.UUID[:]...)
	dst = append(dst, r.Command.UUID[:]...)
	dst = append(dst, r.RequestHash[:]...)
	dst = append(dst, r.Correlation.UUID[:]...)
	dst = append(dst, r.Causation.UUID[:]...)
	dst = le.AppendUint64(dst, uint64(r.Created.UnixNano()))
	dst = le.AppendUint64(dst, r.Token)
	dst = le.AppendUint16(dst, r.Schema)
	dst = le.AppendUint16(dst, 0)
	for _, s := range texts {
		dst = le.AppendUint16(dst, uint16(len(s)))
	}
	dst = le.AppendUint32(dst, uint32(len(r.Data)))
	dst = le.AppendUint32(dst, uint32(len(r.Data)))
	for _, s := range texts {
		dst = append(dst, s...)
	}
	dst = append(dst, r.Data...)
	dst = append(dst, r.Prev[:]...)
	dst = append(dst, r.Hash[:]...)
	rec := dst[start:]
	le.PutUint32(rec[8:], crc32.Checksum(rec[crcFrom:], castagnoli))
	return dst
}

func (r *Recorded) texts() [6]string {
	return [6]string{string(r.Stream), r.Type, r.Actor, r.Tenant, r.Source, r.RequestID}
}

// DecodeRecord reads the record that stands at a position and verifies its checksum, its content
// and its hash; whether it follows the record before it is for the caller, who knows that one.
// Anything that does not match is a CorruptError at that position. A record of a newer format is of
// kind Unsupported. The result shares no memory with b.
func DecodeRecord(at domain.Position, b []byte) (Recorded, error) {
	bad := func(what string) (Recorded, error) {
		return Recorded{}, &CorruptError{Position: at, What: what}
	}
	le := binary.LittleEndian
	switch {
	case len(b) < recordMin || len(b) > recordMax:
		return bad("length out of bounds")
	case string(b[:4]) != recordMagic:
		return bad("magic does not match")
	case le.Uint32(b[4:]) != uint32(len(b)):
		return bad("length does not match")
	case le.Uint32(b[8:]) != crc32.Checksum(b[crcFrom:], castagnoli):
		return bad("checksum does not match")
	}
	if f, flags := le.Uint16(b[12:]), le.Uint16(b[14:]); f != recordFormat || flags&^flagSealed != 0 {
		return Recorded{}, domain.Errorf(domain.Unsupported,
			"position %s: record format %d with flags %#x is newer than this build", at, f, flags)
	}
	stored := int(le.Uint32(b[152:]))
	var lens [6]int
	size := recordMin + stored
	for i := range lens {
		lens[i] = int(le.Uint16(b[140+2*i:]))
		size += lens[i]
	}
	if size != len(b) || le.Uint32(b[156:]) != uint32(stored) || le.Uint16(b[138:]) != 0 {
		return bad("inner lengths do not match")
	}
	r := decodeFields(b, lens, stored)
	if r.Position != at {
		return bad("holds the record of position " + r.Position.String())
	}
	if r.Hash != Chain(r.Prev, r.Position, Content(&r.Header, r.Data)) {
		return bad("hash does not match the content")
	}
	return r, nil
}

func decodeFields(b []byte, lens [6]int, stored int) Recorded {
	le := binary.LittleEndian
	var r Recorded
	r.Position = domain.Position(le.Uint64(b[16:]))
	r.Revision = domain.Revision(le.Uint64(b[24:]))
	r.Before = domain.Position(le.Uint64(b[32:]))
	copy(r.ID.UUID[:], b[40:])
	copy(r.Command.UUID[:], b[56:])
	copy(r.RequestHash[:], b[72:])
	copy(r.Correlation.UUID[:], b[88:])
	copy(r.Causation.UUID[:], b[104:])
	r.Created = time.Unix(0, int64(le.Uint64(b[120:]))).UTC()
	r.Token = le.Uint64(b[128:])
	r.Schema = le.Uint16(b[136:])
	tail := len(b) - recordChain
	all, at := string(b[recordFixed:tail-stored]), 0 // one string for six: one allocation
	var texts [6]string
	for i, n := range lens {
		texts[i], at = all[at:at+n], at+n
	}
	r.Stream, r.Type, r.Actor = domain.StreamID(texts[0]), texts[1], texts[2]
	r.Tenant, r.Source, r.RequestID = texts[3], texts[4], texts[5]
	r.Data = append([]byte(nil), b[tail-stored:tail]...)
	copy(r.Prev[:], b[tail:])
	copy(r.Hash[:], b[tail+32:])
	return r
}

// streamOf gives the stream a record claims, unverified; empty when there is none.
func streamOf(b []byte) domain.StreamID {
	if len(b) < recordMin {
		return ""
	}
	n := int(binary.LittleEndian.Uint16(b[140:]))
	if recordFixed+n > len(b) {
		return ""
	}
	return domain.StreamID(b[recordFixed : recordFixed+n])
}

// storedHash gives the hash a record claims, unverified.
func storedHash(b []byte) (h [32]byte) {
	if len(b) >= len(h) {
		copy(h[:], b[len(b)-len(h):])
	}
	return h
}
