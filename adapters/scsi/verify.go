package scsi

import (
	"bytes"
	"sync"
	"unsafe"

	"weft/domain"
)

const page = 4096

// scratches keeps the buffers of commands that compare or repeat data.
var scratches = sync.Pool{New: func() any {
	b := aligned(int(transferMax))
	return &b
}}

// scratch takes a buffer from scratches.
func scratch() *[]byte {
	b, _ := scratches.Get().(*[]byte) // nothing else is ever put there
	return b
}

// aligned makes a buffer that begins at a multiple of 4096.
func aligned(n int) []byte {
	raw := make([]byte, n+page)
	skip := (page - int(uintptr(unsafe.Pointer(&raw[0]))%page)) % page
	return raw[skip : skip+n : skip+n]
}

// bytCheck reads the BYTCHK field.
func (t *task) bytCheck() byte { return t.cdb[1] >> 1 & 3 }

// doVerify serves VERIFY: BYTCHK 00 reads the medium, 01 compares it with as many blocks, 11 with
// one block over and over.
func doVerify(t *task) outcome {
	if t.bytCheck() == 2 {
		return badField
	}
	if o := t.ranged(t.blocksOf(transferMax)); o != good || t.blocks == 0 {
		return o
	}
	want := t.call.Out()
	switch t.bytCheck() {
	case 0:
		want = nil
	case 1:
		if o := t.shorten(); o != good || t.blocks == 0 {
			return o
		}
	case 3:
		if len(want) < t.info.LogicalBlock {
			return badUnit
		}
	}
	return t.compare(want)
}

// compare reads the task's range and holds it against want, repeated as often as it fits. A nil
// want only reads.
func (t *task) compare(want []byte) outcome {
	held := scratch()
	defer scratches.Put(held)
	bs := int64(t.info.LogicalBlock)
	buf := (*held)[:int64(t.blocks)*bs]
	io := &domain.IO{Op: domain.OpRead, Off: int64(t.lba) * bs, Len: int64(len(buf)), Buf: buf}
	if o := t.run(io); o != good || want == nil {
		return o
	}
	for off := 0; off < len(buf); off += len(want) {
		part := buf[off:min(off+len(want), len(buf))]
		if d := differs(part, want); d >= 0 {
			o := check(keyMiscomp, 0x1d, 0x00)
			o.hasInfo, o.info = true, uint64(off+d)
			return o
		}
	}
	return good
}

// differs gives the first place where want, at least as long, differs from got, -1 when nowhere.
func differs(got, want []byte) int {
	if bytes.Equal(got, want[:len(got)]) {
		return -1
	}
	for i := range got {
		if got[i] != want[i] {
			return i
		}
	}
	return -1
}

// doWriteVerify serves WRITE AND VERIFY: a durable write, then the medium is read back, and
// compared with BYTCHK 01.
func doWriteVerify(t *task) outcome {
	if t.bytCheck() > 1 {
		return badField
	}
	if o := t.ranged(t.blocksOf(transferMax)); o != good {
		return o
	}
	if o := t.shorten(); o != good || t.blocks == 0 {
		return o
	}
	bs := int64(t.info.LogicalBlock)
	data := t.call.Out()[:int64(t.blocks)*bs]
	io := &domain.IO{
		Op: domain.OpWrite, FUA: true, Off: int64(t.lba) * bs, Len: int64(len(data)), Buf: data,
	}
	if o := t.run(io); o != good {
		return o
	}
	if t.bytCheck() == 0 {
		return t.compare(nil)
	}
	return t.compare(data)
}

// doPrefetch serves PRE-FETCH: there is no cache to fill, so a range that exists is met.
func doPrefetch(t *task) outcome {
	if o := t.ranged(1 << 62); o != good {
		return o
	}
	return outcome{status: statusConditionMet}
}
