package backends

import "unsafe"

const (
	// Align is the alignment of every buffer AlignedBuffer gives: enough for 4Kn devices.
	Align = 4096
	// hugeMin is from which size on a buffer is worth a huge page.
	hugeMin = 256 << 10
	// hugePage is the size and alignment of one.
	hugePage = 2 << 20
)

// AlignedBuffer gives n zero bytes whose address is a multiple of Align. The memory is the
// collector's like any other; Go does not move it, which O_DIRECT relies on. Pool what you use
// per I/O: making one costs microseconds. A large buffer that will live long is better a
// HugeBuffer.
func AlignedBuffer(n int) []byte { return aligned(n, Align) }

// HugeBuffer is an AlignedBuffer in huge pages, as far as the kernel gives them. It takes up to two
// huge pages more than it holds, so it is for buffers that are kept.
func HugeBuffer(n int) []byte {
	if n < hugeMin {
		return AlignedBuffer(n)
	}
	whole := (n + hugePage - 1) / hugePage * hugePage
	p := aligned(whole, hugePage)
	huge(p)
	return p[:n:n]
}

func aligned(n, align int) []byte {
	raw := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (align - 1)
	return raw[skip : skip+n : skip+n]
}

// Aligned tells whether the buffer's address is a multiple of align.
func Aligned(p []byte, align int) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(align) == 0
}
