package scsi

import (
	"bytes"

	"weft/domain"
)

// orTriesMax bounds the rounds of ORWRITE against others that write the same blocks.
const orTriesMax = 16

// startCompare serves COMPARE AND WRITE: the first half of the data is compared, the second
// written, as one step of the disk.
func startCompare(t *task) {
	o := t.ranged(compareMax)
	want := 2 * int(t.blocks) * t.info.LogicalBlock
	// 256 blocks wrap to 0 in the CDB: only the amount of data gives them away.
	if o == good && (t.call.Offered() != want || len(t.call.Out()) != want) {
		o = badField
	}
	if o != good || t.blocks == 0 {
		t.finish(o)
		return
	}
	data := t.call.Out()
	t.io.Cmp = data[:want/2]
	t.io.FUA = t.cdb[1]&0x08 != 0
	t.begin(domain.OpCompareWrite, data[want/2:])
}

// startAtomic serves WRITE ATOMIC(16). One record is atomic; a record never crosses an extent, so a
// command that would is refused rather than torn.
func startAtomic(t *task) {
	o := t.ranged(t.blocksOf(atomicMax))
	if o == good && get16(t.cdb[10:]) != 0 {
		o = badField
	}
	bs := int64(t.info.LogicalBlock)
	if o == good && t.blocks > 0 {
		first := int64(t.lba) * bs / int64(domain.ExtentSize)
		last := (int64(t.lba+t.blocks)*bs - 1) / int64(domain.ExtentSize)
		if first != last {
			o = badField
		}
	}
	if o == good && len(t.call.Out()) < int(t.blocks)*int(bs) {
		o = badUnit // a part of it would not be what was asked for
	}
	if o != good || t.blocks == 0 {
		t.finish(o)
		return
	}
	t.io.FUA = t.cdb[1]&0x08 != 0
	t.begin(domain.OpWrite, t.call.Out())
}

// doOrWrite serves ORWRITE(16): read, or, and compare-and-write until nobody came in between.
func doOrWrite(t *task) outcome {
	if o := t.ranged(t.blocksOf(transferMax)); o != good {
		return o
	}
	if o := t.shorten(); o != good || t.blocks == 0 {
		return o
	}
	bs := int64(t.info.LogicalBlock)
	off, n := int64(t.lba)*bs, int64(t.blocks)*bs
	was, is := scratch(), scratch()
	defer scratches.Put(was)
	defer scratches.Put(is)
	before, after, data := (*was)[:n], (*is)[:n], t.call.Out()
	for range orTriesMax {
		read := &domain.IO{Op: domain.OpRead, Off: off, Len: n, Buf: before}
		if o := t.run(read); o != good || t.stopped() {
			return o
		}
		for i := range after {
			after[i] = before[i] | data[i]
		}
		if bytes.Equal(before, after) {
			return good
		}
		swap := &domain.IO{
			Op: domain.OpCompareWrite, Off: off, Len: n, Buf: after, Cmp: before,
			FUA: t.cdb[1]&0x08 != 0,
		}
		o := t.run(swap)
		if swap.Err == nil || !domain.IsKind(swap.Err, domain.Miscompare) {
			return o
		}
	}
	return outcome{status: statusBusy}
}
