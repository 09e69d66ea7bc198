package archive

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"weft/domain"
	"weft/eventstore"
)

// The index of a segment, version 1; FORMAT.md draws it. It holds nothing that the segment does not
// say: one that is lost or damaged is made again.
const (
	indexMagic  = "WIDX"
	indexFormat = 1
	indexHead   = 168
	indexEntry  = 32 // of one stream
	idSize      = 16
)

// indexName gives the file of the index of the segment that begins at n.
func indexName(n uint64) string { return fmt.Sprintf("events-%016d.wei", n) }

// index is one segment's index, verified. It never changes.
type index struct {
	Segment
	cluster domain.UUID
	after   domain.Position // of the record before the first
	prev    [32]byte        // its hash
	streams int
	raises  []domain.Position // of the first record of each timeline that begins here

	offsets, ids, table, lists, names []byte
}

// offset gives where the record of a place in the segment begins in the file; that of Count is
// where the last one ends.
func (x *index) offset(i uint32) int64 {
	if i == x.Count {
		return x.Bytes - footSize
	}
	return int64(binary.LittleEndian.Uint64(x.offsets[8*i:]))
}

func (x *index) id(i uint32) (id domain.EventID) {
	copy(id.UUID[:], x.ids[idSize*i:])
	return id
}

// entry gives the i-th stream by name.
func (x *index) entry(i int) (name []byte, first domain.Revision, before uint64, list []byte) {
	le, b := binary.LittleEndian, x.table[indexEntry*i:]
	at, size := le.Uint32(b), le.Uint32(b[4:])
	start, count := le.Uint32(b[24:]), le.Uint32(b[28:])
	return x.names[at : at+size], domain.Revision(le.Uint64(b[8:])), le.Uint64(b[16:]),
		x.lists[4*start : 4*(start+count)]
}

// run gives a stream's events in the segment; false when it has none there.
func (x *index) run(s domain.StreamID) (eventstore.Run, bool) {
	lo, hi := 0, x.streams
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if name, _, _, _ := x.entry(mid); string(name) < string(s) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == x.streams {
		return eventstore.Run{}, false
	}
	name, first, before, list := x.entry(lo)
	if string(name) != string(s) {
		return eventstore.Run{}, false
	}
	r := eventstore.Run{First: first, Before: before, N: make([]uint64, 0, len(list)/4)}
	for ; len(list) > 0; list = list[4:] {
		r.N = append(r.N, x.First+uint64(binary.LittleEndian.Uint32(list)))
	}
	return r, true
}

// indexer gathers what an index says of the records of one segment, in order.
type indexer struct {
	at      int64 // where the next record begins
	tl      domain.Timeline
	offsets []byte
	ids     []byte
	raises  []domain.Position
	byName  map[domain.StreamID]*streamPlace
}

type streamPlace struct {
	first  domain.Revision
	before uint64
	places []uint32
}

func newIndexer(after domain.Position) *indexer {
	return &indexer{
		at: headSize, tl: after.Timeline(), byName: map[domain.StreamID]*streamPlace{},
	}
}

func (w *indexer) add(r *eventstore.Recorded, size int) {
	place := uint32(len(w.offsets) / 8)
	w.offsets = binary.LittleEndian.AppendUint64(w.offsets, uint64(w.at))
	w.ids = append(w.ids, r.ID.UUID[:]...)
	w.at += int64(size)
	if t := r.Position.Timeline(); t != w.tl {
		w.tl, w.raises = t, append(w.raises, r.Position)
	}
	p := w.byName[r.Stream]
	if p == nil {
		p = &streamPlace{first: r.Revision, before: r.Before.N()}
		w.byName[r.Stream] = p
	}
	p.places = append(p.places, place)
}

// bytes gives the file of the index of a segment with this head and foot.
func (w *indexer) bytes(h head, f foot) []byte {
	le := binary.LittleEndian
	var table, lists, names []byte
	sorted := make([]domain.StreamID, 0, len(w.byName))
	for s := range w.byName {
		sorted = append(sorted, s)
	}
	slices.Sort(sorted)
	for _, s := range sorted {
		p := w.byName[s]
		table = le.AppendUint32(table, uint32(len(names)))
		table = le.AppendUint32(table, uint32(len(s)))
		table = le.AppendUint64(table, uint64(p.first))
		table = le.AppendUint64(table, p.before)
		table = le.AppendUint32(table, uint32(len(lists)/4))
		table = le.AppendUint32(table, uint32(len(p.places)))
		for _, i := range p.places {
			lists = le.AppendUint32(lists, i)
		}
		names = append(names, s...)
	}
	b := make([]byte, 0, indexHead)
	b = append(b, indexMagic...)
	b = le.AppendUint16(b, indexFormat)
	b = le.AppendUint16(b, 0)
	b = append(b, h.cluster[:]...)
	b = le.AppendUint64(b, uint64(h.after))
	b = append(b, h.prev[:]...)
	b = le.AppendUint64(b, uint64(f.last))
	b = append(b, f.hash[:]...)
	b = append(b, f.root[:]...)
	b = le.AppendUint64(b, uint64(w.at+footSize))
	for _, n := range []int{
		int(f.count), len(sorted), len(w.raises), len(names),
	} {
		b = le.AppendUint32(b, uint32(n))
	}
	b = le.AppendUint64(b, h.after.N()+1)
	for _, part := range [][]byte{w.offsets, w.ids, w.raised(), table, lists, names} {
		b = append(b, part...)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func (w *indexer) raised() (b []byte) {
	for _, p := range w.raises {
		b = binary.LittleEndian.AppendUint64(b, uint64(p))
	}
	return b
}

// parseIndex reads the index of the segment in a file. The error is a CorruptError, or of kind
// Unsupported for a newer format.
func parseIndex(file string, b []byte) (*index, error) {
	le := binary.LittleEndian
	switch {
	case len(b) < indexHead+4 || string(b[:4]) != indexMagic:
		return nil, errDamaged("the index's magic does not match")
	case le.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli):
		return nil, errDamaged("the index's checksum does not match")
	case le.Uint16(b[4:]) != indexFormat:
		return nil, domain.Errorf(domain.Unsupported, "index format %d is newer than this build",
			le.Uint16(b[4:]))
	}
	x := &index{after: domain.Position(le.Uint64(b[24:]))}
	copy(x.cluster[:], b[8:])
	copy(x.prev[:], b[32:])
	x.Last = domain.Position(le.Uint64(b[64:]))
	copy(x.Hash[:], b[72:])
	copy(x.Root[:], b[104:])
	x.Bytes = int64(le.Uint64(b[136:]))
	x.Count, x.streams = le.Uint32(b[144:]), int(le.Uint32(b[148:]))
	raises, names := int(le.Uint32(b[152:])), int(le.Uint32(b[156:]))
	x.First, x.File, x.Sealed = le.Uint64(b[160:]), file, true
	rest := b[indexHead : len(b)-4]
	count := int(x.Count)
	if len(rest) != count*(8+idSize+4)+8*raises+indexEntry*x.streams+names {
		return nil, errDamaged("the index's lengths do not match")
	}
	cut := func(n int) (part []byte) {
		part, rest = rest[:n:n], rest[n:]
		return part
	}
	x.offsets, x.ids = cut(8*count), cut(idSize*count)
	for r := cut(8 * raises); len(r) > 0; r = r[8:] {
		x.raises = append(x.raises, domain.Position(le.Uint64(r)))
	}
	x.table, x.lists, x.names = cut(indexEntry*x.streams), cut(4*count), cut(names)
	return x, x.within()
}

// within checks that nothing in the index points out of it, whoever wrote it.
func (x *index) within() error {
	le, last := binary.LittleEndian, int64(0)
	for i := range x.Count {
		if at := x.offset(i); at <= last || at > x.Bytes-footSize {
			return errDamaged("the index's offsets are out of order")
		}
		last = x.offset(i)
	}
	for b := x.table; len(b) > 0; b = b[indexEntry:] {
		at, size := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
		start, count := uint64(le.Uint32(b[24:])), uint64(le.Uint32(b[28:]))
		if at+size > uint64(len(x.names)) || start+count > uint64(x.Count) || count == 0 {
			return errDamaged("the index's streams are out of bounds")
		}
	}
	for b := x.lists; len(b) > 0; b = b[4:] {
		if le.Uint32(b) >= x.Count {
			return errDamaged("the index's places are out of bounds")
		}
	}
	return nil
}

// clone gives a stream's name that shares no memory with the index.
func clone(name []byte) domain.StreamID { return domain.StreamID(strings.Clone(string(name))) }
