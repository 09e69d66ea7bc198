// Package checksum computes CRC-32C (Castagnoli) of the blocks that move through the data plane,
// beside their copying where there is a copy to make: a block that is not in the processor's cache
// is then waited for once.
//
// With AVX-512 and its carry-less multiplication it folds 256 bytes at a time, after "Fast CRC
// Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009); hash/crc32 does
// the rest, and everything elsewhere. On an EPYC of the fourth generation, ns for 4 KiB: in the
// cache 158 by hash/crc32 and 71 folded, copied with it 245 and 95; out of memory, one page after
// the other, 590 and 190, 340 and 270.
package checksum

import "hash/crc32"

// foldUnit is what is folded at once, in bytes; foldMin from how many on it is worth it.
const (
	foldUnit = 256
	foldMin  = 2 * foldUnit
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum gives the CRC-32C of p.
func Sum(p []byte) uint32 { return Update(0, p) }

// Update gives the CRC-32C of what crc is that of, followed by p.
func Update(crc uint32, p []byte) uint32 {
	if n := len(p) &^ (foldUnit - 1); canFold && n >= foldMin {
		crc, p = fold(&p[0], n, crc), p[n:]
	}
	return crc32.Update(crc, castagnoli, p)
}

// Copy copies src to dst, which is as long at least and does not overlap it, and gives the CRC-32C
// of what it copied: also if somebody else changes src meanwhile.
func Copy(dst, src []byte) uint32 {
	crc, dst := uint32(0), dst[:len(src)]
	if n := len(src) &^ (foldUnit - 1); canFold && n >= foldMin {
		crc = foldCopy(&dst[0], &src[0], n, 0)
		dst, src = dst[n:], src[n:]
	}
	copy(dst, src)
	return crc32.Update(crc, castagnoli, dst)
}

// CopyPast is Copy that writes dst past the caches where the processor can, for what is not read
// again soon: dst is 64-byte aligned then, or it is Copy. Others see dst behind the caller's next
// atomic operation that writes, or lock, or unlock: on this processor these wait for all stores.
func CopyPast(dst, src []byte) uint32 {
	if n := len(src); canFold && n >= foldMin && n%foldUnit == 0 && aligned(dst) {
		return foldCopyPast(&dst[:n][0], &src[0], n, 0)
	}
	return Copy(dst, src)
}
