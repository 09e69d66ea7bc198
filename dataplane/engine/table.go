package engine

import (
	"math/bits"
	"slices"
	"unsafe"

	"weft/dataplane/segment"
)

// fewMax is up to how many blocks a table is kept as a list: 10 bytes a block, where the array is
// 8 KiB. fewAgain is from how few on an array becomes a list again; between the two nothing turns
// back and forth.
const (
	fewMax   = 640
	fewAgain = 320
)

// table maps the blocks of an extent to locations, in the smaller of two forms: an array, or a list
// of those that have one. The zero table is empty.
type table struct {
	dense *[segment.LeafBlocks]segment.Loc
	few   *few
}

// few is a list of blocks in order, and their locations side by side.
type few struct {
	at  []uint16
	loc []segment.Loc
}

// soon lets the processor fetch what get reads of a block.
func (t *table) soon(i int) {
	switch {
	case t.dense != nil:
		prefetch(unsafe.Pointer(&t.dense[i]))
	case t.few != nil && len(t.few.at) > 0:
		prefetch(unsafe.Pointer(&t.few.at[len(t.few.at)/2]))
	}
}

// find gives the place of the first block that is not below i.
func (f *few) find(i int) int {
	lo, hi := 0, len(f.at)
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); int(f.at[m]) < i {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// get gives a block's location, None when it has none.
func (t *table) get(i int) segment.Loc {
	if t.dense != nil {
		return t.dense[i]
	}
	if t.few == nil {
		return 0
	}
	if j := t.few.find(i); j < len(t.few.at) && int(t.few.at[j]) == i {
		return t.few.loc[j]
	}
	return 0
}

// set replaces a block's location and gives the old one.
func (t *table) set(i int, loc segment.Loc) segment.Loc {
	if t.dense != nil {
		old := t.dense[i]
		t.dense[i] = loc
		return old
	}
	if t.few == nil {
		if loc == 0 {
			return 0
		}
		t.few = &few{}
	}
	f := t.few
	j := f.find(i)
	there := j < len(f.at) && int(f.at[j]) == i
	switch {
	case there && loc != 0:
		old := f.loc[j]
		f.loc[j] = loc
		return old
	case there:
		old := f.loc[j]
		f.at, f.loc = slices.Delete(f.at, j, j+1), slices.Delete(f.loc, j, j+1)
		return old
	case loc == 0:
		return 0
	case len(f.at) == fewMax:
		t.spread()
		t.dense[i] = loc
		return 0
	}
	if len(f.at) == cap(f.at) {
		f.grow()
	}
	f.at, f.loc = slices.Insert(f.at, j, uint16(i)), slices.Insert(f.loc, j, loc)
	return 0
}

// grow makes room for a quarter more: doubling would leave half of an index unused.
func (f *few) grow() {
	n := min(len(f.at)+max(4, len(f.at)/4), fewMax)
	f.at = append(make([]uint16, 0, n), f.at...)
	f.loc = append(make([]segment.Loc, 0, n), f.loc...)
}

// spread makes the list an array.
func (t *table) spread() {
	all := new([segment.LeafBlocks]segment.Loc)
	t.over(all[:], 0)
	t.dense, t.few = all, nil
}

// pack makes an array of so few blocks a list.
func (t *table) pack(count int) {
	all := t.dense
	t.dense, t.few = nil, nil
	if count == 0 {
		return
	}
	t.few = &few{make([]uint16, 0, count), make([]segment.Loc, 0, count)}
	for i, loc := range all {
		if loc != 0 {
			t.few.at, t.few.loc = append(t.few.at, uint16(i)), append(t.few.loc, loc)
		}
	}
}

// load makes the table what all says of count blocks. The array is the caller's again.
func (t *table) load(all *[segment.LeafBlocks]segment.Loc, count int) {
	if count <= fewMax {
		t.dense = all
		t.pack(count)
		return
	}
	dense := *all
	t.dense, t.few = &dense, nil
}

// blockSet is a set of the blocks of an extent.
type blockSet [segment.LeafBlocks / 64]uint64

func (s *blockSet) add(i int) { s[i/64] |= 1 << (i % 64) }

// refill makes a list what all says of the blocks of a set, which are count and those of the list
// at least. The array is the caller's again.
func (t *table) refill(all *[segment.LeafBlocks]segment.Loc, of *blockSet, count int) {
	if count > fewMax {
		dense := *all
		t.dense, t.few = &dense, nil
		return
	}
	f := t.few
	if f == nil {
		f = &few{}
		t.few = f
	}
	if count > cap(f.at) {
		n := min(count+max(4, count/4), fewMax)
		f.at, f.loc = make([]uint16, n), make([]segment.Loc, n)
	}
	f.at, f.loc = f.at[:count], f.loc[:count]
	j := 0
	for w, word := range of {
		for ; word != 0; word &= word - 1 {
			i := w*64 + bits.TrailingZeros64(word)
			f.at[j], f.loc[j] = uint16(i), all[i]
			j++
		}
	}
}

// over lays what the table says of the blocks from first on over dst.
func (t *table) over(dst []segment.Loc, first int) {
	if t.dense != nil {
		for i, loc := range t.dense[first : first+len(dst)] {
			if loc != 0 {
				dst[i] = loc
			}
		}
		return
	}
	if t.few == nil {
		return
	}
	for j := t.few.find(first); j < len(t.few.at); j++ {
		i := int(t.few.at[j]) - first
		if i >= len(dst) {
			return
		}
		dst[i] = t.few.loc[j]
	}
}

// write sets all to what the table says of every block, None where it says nothing.
func (t *table) write(all *[segment.LeafBlocks]segment.Loc) {
	if t.dense != nil {
		*all = *t.dense
		return
	}
	clear(all[:])
	t.over(all[:], 0)
}

// each calls fn with every block that has a location, in order. fn may change that block's.
func (t *table) each(fn func(i int, loc segment.Loc)) {
	var all [segment.LeafBlocks]segment.Loc
	t.write(&all)
	for i, loc := range all {
		if loc != 0 {
			fn(i, loc)
		}
	}
}

// bytes gives the memory that the table takes.
func (t *table) bytes() int64 {
	switch {
	case t.dense != nil:
		return segment.LeafBlocks * 8
	case t.few != nil:
		return int64(cap(t.few.at))*2 + int64(cap(t.few.loc))*8 + 48
	}
	return 0
}
