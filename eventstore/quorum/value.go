package quorum

import (
	"encoding/binary"
	"hash/crc32"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// The records of a batch are one value: keys cost every member more than bytes do (decision 116 in
// ARCHITECTURE.md). ../FORMAT.md draws it: a record by itself stands as it is, several stand behind
// a head.
const (
	recordMagic  = "WEV1"
	severalMagic = "WEVS"
	severalHead  = 4 + 4 + 4 // magic, how many, checksum of both
	recordLength = 4         // where a record says how long it is
	recordStart  = 8         // magic and length
)

// value is what one key of log/ holds.
type value struct {
	last  domain.Position // names the key
	bytes string
}

func (k keys) put(v value) clientv3.Op { return clientv3.OpPut(k.log(v.last), v.bytes) }

// valuesOf gives the values of records, in order: none goes on behind a segment of the archive, of
// per records, so that what leaves the database is whole values, and none is longer than batchBytes
// unless one record is.
func valuesOf(entries []eventstore.Entry, per uint64) []value {
	var all []value
	for len(entries) > 0 {
		n, size := 1, len(entries[0].Record)
		for n < len(entries) && entries[n-1].At.N()%per != 0 &&
			size+len(entries[n].Record) <= batchBytes {
			size += len(entries[n].Record)
			n++
		}
		all = append(all, join(entries[:n], size))
		entries = entries[n:]
	}
	return all
}

func join(entries []eventstore.Entry, size int) value {
	v := value{last: entries[len(entries)-1].At}
	if len(entries) == 1 {
		v.bytes = string(entries[0].Record)
		return v
	}
	b := append(make([]byte, 0, severalHead+size), severalMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	for _, e := range entries {
		b = append(b, e.Record...)
	}
	v.bytes = string(b)
	return v
}

// split gives the records of a value, which share its bytes, unverified. next is where the reader
// expects the first that it does not have. Where the value itself is damaged the error is a
// CorruptError behind the records before the damage: who takes those first names the first bad one.
func split(last, next domain.Position, b []byte) ([]eventstore.Entry, error) {
	if len(b) >= len(recordMagic) && string(b[:len(recordMagic)]) == recordMagic {
		return []eventstore.Entry{{At: last, Record: b}}, nil
	}
	bad := func(n uint64, what string) error {
		return &eventstore.CorruptError{
			Position: domain.PositionOf(last.Timeline(), n), What: what,
		}
	}
	le := binary.LittleEndian
	if len(b) < severalHead || string(b[:4]) != severalMagic ||
		le.Uint32(b[8:]) != crc32.Checksum(b[:8], castagnoli) {
		return nil, bad(next.N(), "is neither a record nor the head of several")
	}
	count := uint64(le.Uint32(b[4:]))
	if count < 2 || count > last.N() || count > uint64(len(b))/recordStart {
		return nil, bad(next.N(), "stands among more records than there are")
	}
	b = b[severalHead:]
	entries := make([]eventstore.Entry, 0, count)
	for n := last.N() - count + 1; n < last.N(); n++ {
		size := uint64(0)
		if len(b) >= recordStart {
			size = uint64(le.Uint32(b[recordLength:]))
		}
		if size < recordStart || size > uint64(len(b)) {
			return entries, bad(n, "is longer or shorter than its place")
		}
		at := domain.PositionOf(last.Timeline(), n)
		entries = append(entries, eventstore.Entry{At: at, Record: b[:size:size]})
		b = b[size:]
	}
	return append(entries, eventstore.Entry{At: last, Record: b}), nil
}
