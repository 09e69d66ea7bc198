package mem

import (
	"bytes"
	"hash/maphash"
	"slices"
)

// pageSize is a compromise: small pages make a first write after a copy cheap, large ones keep the
// table, which every image copies, short.
const pageSize = 16 << 10

type page = [pageSize]byte

// pages is the content of a device. A nil page reads zero. A page that is not owned may be seen by
// other devices and is copied before it is written. Pages are guarded by their holder's lock.
type pages struct {
	table []*page
	owned []bool
	sums  []uint64 // of each page, for sum; 0: not known
}

func newPages(size int64) pages {
	n := (size + pageSize - 1) / pageSize
	return pages{table: make([]*page, n), owned: make([]bool, n), sums: make([]uint64, n)}
}

// clone gives a second content equal to the first. Afterwards neither owns any page.
func (s *pages) clone() pages {
	clear(s.owned)
	return pages{
		table: slices.Clone(s.table), owned: make([]bool, len(s.owned)), sums: slices.Clone(s.sums),
	}
}

func (s *pages) read(p []byte, off int64) {
	for len(p) > 0 {
		i, at := off/pageSize, off%pageSize
		n := min(len(p), int(pageSize-at))
		if pg := s.table[i]; pg != nil {
			copy(p[:n], pg[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

func (s *pages) write(p []byte, off int64) {
	for len(p) > 0 {
		i, at := off/pageSize, off%pageSize
		n := copy(s.own(i, at == 0 && len(p) >= pageSize)[at:], p)
		p, off = p[n:], off+int64(n)
	}
}

// fill writes n bytes of value b.
func (s *pages) fill(off, n int64, b byte) {
	for n > 0 {
		i, at := off/pageSize, off%pageSize
		part := min(n, pageSize-at)
		dst := s.own(i, part == pageSize)[at : at+part]
		for j := range dst {
			dst[j] = b
		}
		off, n = off+part, n-part
	}
}

// own gives page i for writing. With whole the caller overwrites all of it, so the old content need
// not be copied.
func (s *pages) own(i int64, whole bool) *page {
	s.sums[i] = 0
	if s.owned[i] {
		return s.table[i]
	}
	fresh := new(page)
	if old := s.table[i]; old != nil && !whole {
		*fresh = *old
	}
	s.table[i], s.owned[i] = fresh, true
	return fresh
}

// equal compares two contents of one size.
func (s *pages) equal(t *pages) bool {
	var zero page
	for i, a := range s.table {
		b := t.table[i]
		switch {
		case a == b:
			continue
		case a == nil:
			a = &zero
		case b == nil:
			b = &zero
		}
		if !bytes.Equal(a[:], b[:]) {
			return false
		}
	}
	return true
}

var (
	sumSeed = maphash.MakeSeed()
	zeroSum = maphash.Bytes(sumSeed, make([]byte, pageSize))
)

// sum gives a checksum of the content, the same in one process for the same bytes. What was not
// written since the last call is not looked at again, in a clone neither.
func (s *pages) sum() uint64 {
	const ofZeros = 1
	var all uint64
	for i, pg := range s.table {
		if pg == nil {
			continue
		}
		if s.sums[i] == 0 {
			x := maphash.Bytes(sumSeed, pg[:])
			if x == zeroSum {
				s.sums[i] = ofZeros
			} else {
				s.sums[i] = max(maphash.Comparable(sumSeed, [2]uint64{x, uint64(i)}), ofZeros+1)
			}
		}
		if s.sums[i] != ofZeros {
			all ^= s.sums[i]
		}
	}
	return all
}
