package checksum

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// canFold tells that processor and system have what fold needs. Tests turn it off.
var canFold = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasSSE42

// line is the alignment of stores past the caches.
const line = 64

func aligned(p []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%line == 0 }

// fold gives the CRC of what crc is that of, followed by n bytes at p; n is a multiple of foldUnit
// and not zero.
//
//go:noescape
func fold(p *byte, n int, crc uint32) uint32

// foldCopy is fold that also copies the bytes to dst.
//
//go:noescape
func foldCopy(dst, p *byte, n int, crc uint32) uint32

// foldCopyPast is foldCopy to a multiple of line, past the caches.
//
//go:noescape
func foldCopyPast(dst, p *byte, n int, crc uint32) uint32
