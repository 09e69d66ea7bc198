package scsi

import (
	"weft/domain"
)

// doWriteSame serves WRITE SAME. Zeros go to the disk as one range; a pattern is written out.
func doWriteSame(t *task) outcome {
	unmap, anchor := t.cdb[1]&0x08 != 0, t.cdb[1]&0x10 != 0
	noData := t.cdb[0] == 0x93 && t.cdb[1]&0x01 != 0
	if anchor || t.cdb[1]&0x06 != 0 {
		return badField
	}
	most := t.blocksOf(writeSameMax)
	if o := t.ranged(most); o != good {
		return o
	}
	if t.blocks == 0 {
		t.blocks = t.capacity() - t.lba // WSNZ=0: to the end
		if t.blocks > uint64(most) {
			return badField
		}
	}
	data := t.call.Out()
	if !noData && (len(data) != t.info.LogicalBlock || t.call.Offered() != len(data)) {
		return badUnit
	}
	if t.blocks == 0 {
		return good
	}
	// With UNMAP the pattern is not looked at, as in the kernel's target: initiators that unmap
	// this way expect zeros whatever they sent.
	if !noData && !unmap && !zeros(data) {
		return t.repeat(data)
	}
	bs := int64(t.info.LogicalBlock)
	io := &domain.IO{Op: domain.OpZero, Off: int64(t.lba) * bs, Len: int64(t.blocks) * bs}
	if unmap {
		io.Op = domain.OpUnmap
	}
	return t.run(io)
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// repeat writes one block over the whole range, a buffer at a time.
func (t *task) repeat(block []byte) outcome {
	held := scratch()
	defer scratches.Put(held)
	bs := int64(t.info.LogicalBlock)
	left := int64(t.blocks) * bs
	buf := (*held)[:min(left, transferMax)]
	for n := 0; n < len(buf); n += len(block) {
		copy(buf[n:], block)
	}
	for off := int64(t.lba) * bs; left > 0 && !t.stopped(); {
		n := min(left, int64(len(buf)))
		io := &domain.IO{Op: domain.OpWrite, Off: off, Len: n, Buf: buf[:n]}
		if o := t.run(io); o != good {
			return o
		}
		off, left = off+n, left-n
	}
	return good
}

// span is a range of blocks.
type span struct{ lba, blocks uint64 }

// unmapList parses the parameter list of UNMAP. A last descriptor that is cut off is left out.
func unmapList(p []byte) ([]span, outcome) {
	if len(p) == 0 {
		return nil, good
	}
	if len(p) < 8 {
		return nil, badLength
	}
	n := min(int(get16(p[2:])), len(p)-8) / 16
	if n > unmapEntriesMax {
		return nil, badParameter
	}
	spans := make([]span, n)
	for i := range spans {
		d := p[8+16*i:]
		spans[i] = span{get64(d), uint64(get32(d[8:]))}
	}
	return spans, good
}

// doUnmap serves UNMAP. Every range is checked before the first is unmapped.
func doUnmap(t *task) outcome {
	if t.cdb[1]&0x01 != 0 {
		return badField
	}
	if len(t.call.Out()) < t.command.allocation(t.cdb) {
		return badLength
	}
	spans, o := unmapList(t.call.Out())
	if o != good {
		return o
	}
	total := uint64(0)
	for _, s := range spans {
		t.lba, t.blocks = s.lba, s.blocks
		if o := t.inside(); o != good {
			return o
		}
		total += s.blocks
	}
	if total > unmapMax {
		return badParameter
	}
	if o := t.writable(); o != good {
		return o
	}
	bs := int64(t.info.LogicalBlock)
	for _, s := range spans {
		if s.blocks == 0 || t.stopped() {
			continue
		}
		io := &domain.IO{Op: domain.OpUnmap, Off: int64(s.lba) * bs, Len: int64(s.blocks) * bs}
		if o := t.run(io); o != good {
			return o
		}
	}
	return good
}

// The walk of GET LBA STATUS over the allocation map.
const (
	statusWindow     = int64(domain.GiB) // bytes asked of the disk at a time
	statusWindowsMax = 64
	statusEntriesMax = 1024
)

// doBlockStatus serves GET LBA STATUS: mapped or deallocated, from the block that was asked for on.
func doBlockStatus(t *task) outcome {
	t.lba = get64(t.cdb[2:])
	if t.lba >= t.capacity() {
		return badRange
	}
	allocation := t.command.allocation(t.cdb)
	most := min(max((allocation-8)/16, 1), statusEntriesMax)
	found, o := t.mapped(most)
	if o != good {
		return o
	}
	b := make([]byte, 8, 8+16*len(found))
	for _, m := range found {
		b = put64(b, m.lba)
		b = put32(b, uint32(m.blocks))
		b = append(b, m.state, 0, 0, 0)
	}
	copy(b, put32(nil, uint32(len(b)-4)))
	return t.reply(b, allocation)
}

type mapping struct {
	span
	state byte
}

// mapped walks the allocation map from t.lba on until most entries are found, the disk ends or
// enough was asked.
func (t *task) mapped(most int) ([]mapping, outcome) {
	bs := int64(t.info.LogicalBlock)
	off, end := int64(t.lba)*bs, int64(t.capacity())*bs
	var found []mapping
	var extents []domain.Extent
	for range statusWindowsMax {
		if off >= end || t.stopped() {
			break
		}
		n := min(statusWindow-off%statusWindow, end-off)
		var err error
		if extents, err = t.unit.disk.Extents(off, n, extents[:0]); err != nil {
			return nil, failed(&domain.IO{Op: domain.OpRead, Err: err}, t.lba, true)
		}
		for _, e := range extents {
			first := max(e.Off, off) / bs
			last := min(e.Off+e.Len, off+n) / bs
			if last > first {
				found = extend(found, span{uint64(first), uint64(last - first)}, e.Hole)
			}
		}
		if len(found) > most {
			break
		}
		off += n
	}
	if len(found) == 0 {
		found = append(found, mapping{span: span{t.lba, 1}})
	}
	return found[:min(len(found), most)], good
}

// extend appends a span, or lengthens the last one of the same state.
func extend(found []mapping, s span, hole bool) []mapping {
	state := byte(0)
	if hole {
		state = 1
	}
	if n := len(found); n > 0 {
		m := &found[n-1]
		if m.state == state && m.lba+m.blocks == s.lba && m.blocks+s.blocks <= 0xffffffff {
			m.blocks += s.blocks
			return found
		}
	}
	return append(found, mapping{s, state})
}
