package devicetest

import "weft/backends"

// vectored is a device whose every write is made of several buffers.
type vectored struct{ backends.VectorWriter }

// Vectored gives the device with every WriteAt of more than one block made by WriteVAt, in pieces
// that stand apart in memory, so that the suite holds for that way, too.
func Vectored(d backends.VectorWriter) backends.Device { return &vectored{d} }

// WriteAt writes in pieces of one block, then two, and so on.
func (v *vectored) WriteAt(p []byte, off int64, fua bool) error {
	block := v.Geometry().LogicalBlock
	if len(p) <= block || len(p)%block != 0 {
		return v.VectorWriter.WriteAt(p, off, fua)
	}
	if !backends.Aligned(p, v.Geometry().MemoryAlign) {
		return v.WriteVAt([][]byte{p}, off, fua)
	}
	var bufs [][]byte
	for n := block; len(p) > 0; n += block {
		n = min(n, len(p))
		b := backends.AlignedBuffer(n)
		bufs, p = append(bufs, b), p[copy(b, p):]
	}
	return v.WriteVAt(bufs, off, fua)
}
