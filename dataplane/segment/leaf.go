package segment

import (
	"fmt"
	"slices"
)

const (
	leafMagic = 0x4641454c // "LEAF"
	leafFixed = 64
	leafRun   = 8 // start u16, blocks u16, address u32; low halves of data follow all runs
	leafDense = LeafBlocks * 8

	formOldRuns  = 1 // with all 32 bits of the CRC: nothing was compressed then
	formOldDense = 2
	formRuns     = 3 // with the low half of the location instead
	formDense    = 4

	// LeafFixed is the size of an image without its body in bytes.
	LeafFixed = leafFixed
	// LeafEntry bounds what one block adds to an image in runs: a run of its own and its CRC.
	LeafEntry = leafRun + 4
	// LeafMax is the largest image of a leaf in bytes.
	LeafMax = leafFixed + leafDense
)

// Leaf is what one branch wrote in one extent: for each block the place and the CRC-32C of the
// branch's newest copy, or None where an older branch of the line answers. Complete is the lane's
// LSN up to which all outcomes are in.
type Leaf struct {
	Branch   uint32 // the branch, or one that it has absorbed since the image was written
	Extent   uint32
	Complete uint64
	Loc      [LeafBlocks]Loc
}

// Count counts the blocks that the branch answers for.
func (l *Leaf) Count() int {
	n := 0
	for _, loc := range l.Loc {
		if loc != 0 {
			n++
		}
	}
	return n
}

// Encode appends the image to dst: as runs of blocks that follow each other on the device, or
// dense, whichever is smaller.
func (l *Leaf) Encode(dst []byte) []byte {
	at := len(dst)
	dst = slices.Grow(dst, LeafMax)[:at+LeafMax]
	b := dst[at:]
	clear(b[:leafFixed])
	runs, size := l.putRuns(b[leafFixed:])
	form := formRuns
	if size += leafFixed; size >= LeafMax {
		form, size = formDense, LeafMax
		for i, loc := range l.Loc {
			le.PutUint64(b[leafFixed+8*i:], uint64(loc))
		}
	}
	b = b[:size]
	le.PutUint32(b[0:], leafMagic)
	le.PutUint32(b[4:], l.Branch)
	le.PutUint32(b[8:], l.Extent)
	le.PutUint64(b[16:], l.Complete)
	b[24] = byte(form)
	le.PutUint16(b[26:], uint16(runs))
	le.PutUint32(b[28:], uint32(size))
	le.PutUint32(b[60:], leafCRC(b))
	return dst[:at+size]
}

func leafCRC(b []byte) uint32 { return crcUpdate(Checksum(b[:60]), b[leafFixed:]) }

// follows tells whether a block continues the run that ends with another.
func follows(a, b Loc) bool {
	if a.Kind() == Flash && b.Kind() == Flash {
		return b>>32 == a>>32+1 // also of compressed ones: where in its sector each says itself
	}
	return a != 0 && a == b
}

// putRuns writes the runs, which always have room in b, and gives their number; then the low halves
// of all data, if both are smaller than the dense form. size is that of both. A run that stands
// nowhere names its kind in the place of the address.
func (l *Leaf) putRuns(b []byte) (runs, size int) {
	var lows [LeafBlocks]uint32
	data, last := 0, Loc(0)
	var run []byte
	for i, loc := range l.Loc {
		if loc == 0 {
			last = 0
			continue
		}
		flash := loc.Kind() == Flash
		if flash {
			lows[data] = uint32(loc)
			data++
		}
		if follows(last, loc) {
			le.PutUint16(run[2:], le.Uint16(run[2:])+1)
		} else {
			run = b[leafRun*runs:][:leafRun]
			runs++
			addr := uint32(loc)
			if flash {
				addr = uint32(loc >> 32)
			}
			le.PutUint64(run, uint64(addr)<<32|1<<16|uint64(i))
		}
		last = loc
	}
	size = leafRun*runs + 4*data
	if size < leafDense {
		for i, low := range lows[:data] {
			le.PutUint32(b[leafRun*runs+4*i:], low)
		}
	}
	return runs, size
}

// DecodeLeaf reads and checks an image into l and returns its size.
func DecodeLeaf(b []byte, l *Leaf) (int, error) {
	if len(b) < leafFixed || le.Uint32(b) != leafMagic {
		return 0, fmt.Errorf("leaf: no magic: %w", ErrBad)
	}
	size := int(le.Uint32(b[28:]))
	if size < leafFixed || size > LeafMax || size > len(b) {
		return 0, fmt.Errorf("leaf: size %d: %w", size, ErrBad)
	}
	b = b[:size]
	if le.Uint32(b[60:]) != leafCRC(b) {
		return 0, fmt.Errorf("leaf: checksum: %w", ErrBad)
	}
	*l = Leaf{Branch: le.Uint32(b[4:]), Extent: le.Uint32(b[8:]), Complete: le.Uint64(b[16:])}
	mask := Loc(1<<64 - 1)
	if b[24] == formOldRuns || b[24] == formOldDense {
		mask ^= locPacked
	}
	switch b[24] {
	case formRuns, formOldRuns:
		return size, l.decodeRuns(b[leafFixed:], int(le.Uint16(b[26:])), mask)
	case formDense, formOldDense:
		if size != leafFixed+leafDense {
			return 0, fmt.Errorf("leaf: size %d: %w", size, ErrBad)
		}
		for i := range l.Loc {
			l.Loc[i] = known(Loc(le.Uint64(b[leafFixed+8*i:])), mask)
		}
		return size, nil
	}
	return 0, fmt.Errorf("leaf: form %d: %w", b[24], ErrBad)
}

// known gives a location as it was read, Lost for what no version writes. mask leaves out what the
// form does not have.
func known(loc, mask Loc) Loc {
	if loc>>32 == 0 {
		return loc
	}
	if loc &= mask; loc.Kind() == Lost {
		return LostLoc
	}
	return loc
}

func (l *Leaf) decodeRuns(b []byte, runs int, mask Loc) error {
	if len(b) < runs*leafRun {
		return fmt.Errorf("leaf: %d runs: %w", runs, ErrBad)
	}
	crcs, next := b[runs*leafRun:], 0
	for r := range runs {
		p := b[r*leafRun:]
		start, n, addr := int(le.Uint16(p)), int(le.Uint16(p[2:])), uint64(le.Uint32(p[4:]))
		data := addr > uint64(LostLoc)
		if addr == 0 || n == 0 || start < next || start+n > LeafBlocks ||
			data && (len(crcs) < 4*n || addr+uint64(n) > addrMax) {
			return fmt.Errorf("leaf: run %d+%d: %w", start, n, ErrBad)
		}
		for i := range n {
			l.Loc[start+i] = Loc(addr)
			if data {
				l.Loc[start+i] = known(Loc((addr+uint64(i))<<32|uint64(le.Uint32(crcs[4*i:]))), mask)
			}
		}
		if data {
			crcs = crcs[4*n:]
		}
		next = start + n
	}
	return nil
}
