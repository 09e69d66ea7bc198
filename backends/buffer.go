package backends

import "unsafe"

// Align is the alignment of every buffer AlignedBuffer gives: enough for 4Kn devices.
const Align = 4096

// AlignedBuffer gives n zero bytes whose address is a multiple of Align. The memory is the
// collector's like any other; Go does not move it, which O_DIRECT relies on. Pool what you use
// per I/O: making one costs microseconds.
func AlignedBuffer(n int) []byte {
	raw := make([]byte, n+Align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (Align - 1)
	return raw[skip : skip+n : skip+n]
}

// Aligned tells whether the buffer's address is a multiple of align.
func Aligned(p []byte, align int) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(align) == 0
}
