package checksum

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// page is a buffer of a few pages, aligned to a line.
func page(n int) []byte {
	b := make([]byte, n+64)
	for !aligned(b) && canFold {
		b = b[1:]
	}
	return b[:n]
}

func random(n int) []byte {
	b := page(n)
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// TestSums holds every length and alignment, alone, behind other bytes and beside a copy, to
// hash/crc32, folded where the processor can, and not.
func TestSums(t *testing.T) {
	defer func(can bool) { canFold = can }(canFold)
	if !canFold {
		t.Log("this processor folds nothing: only hash/crc32 is tested")
	} else {
		testSums(t)
	}
	canFold = false
	testSums(t)
}

func testSums(t *testing.T) {
	t.Helper()
	const most = 4*foldUnit + 70
	src := random(most + 64)
	dst := page(most + 64)
	for n := range most {
		for _, at := range []int{0, 1, 7, 8, 63} {
			p := src[at : at+n]
			want := crc32.Checksum(p, castagnoli)
			if got := Sum(p); got != want {
				t.Fatalf("%d bytes at %d: %08x, not %08x", n, at, got, want)
			}
			if got, want := Update(0x12345678, p), crc32.Update(0x12345678, castagnoli, p); got != want {
				t.Fatalf("%d bytes at %d behind others: %08x, not %08x", n, at, got, want)
			}
			for name, fn := range map[string]func(dst, src []byte) uint32{
				"Copy": Copy, "CopyPast": CopyPast,
			} {
				clear(dst)
				if got := fn(dst, p); got != want || !bytes.Equal(dst[:n], p) || dst[n] != 0 {
					t.Fatalf("%s of %d bytes at %d: %08x, not %08x", name, n, at, got, want)
				}
				clear(dst)
				if got := fn(dst[3:], p); got != want || !bytes.Equal(dst[3:3+n], p) || dst[3+n] != 0 ||
					dst[2] != 0 {
					t.Fatalf("%s of %d bytes at %d to 3: %08x, not %08x", name, n, at, got, want)
				}
			}
		}
	}
}

// TestLong holds what is longer than a page to hash/crc32, so that every register carries over.
func TestLong(t *testing.T) {
	src := random(1 << 20)
	dst := page(1 << 20)
	for _, n := range []int{4096, 8192, 1<<16 + 5, 1 << 20} {
		want := crc32.Checksum(src[:n], castagnoli)
		if a, b, c := Sum(src[:n]), Copy(dst, src[:n]), CopyPast(dst, src[:n]); a != want || b != want ||
			c != want {
			t.Fatalf("%d bytes: %08x %08x %08x, not %08x", n, a, b, c, want)
		}
	}
}

// FuzzSum holds any bytes to hash/crc32.
func FuzzSum(f *testing.F) {
	f.Add(uint32(0), random(700))
	f.Fuzz(func(t *testing.T, crc uint32, p []byte) {
		if got, want := Update(crc, p), crc32.Update(crc, castagnoli, p); got != want {
			t.Fatalf("%08x, not %08x", got, want)
		}
	})
}

// BenchmarkBlock compares a block of 4 KiB by hash/crc32 and by this package, in the cache and out
// of 256 MiB of memory.
func BenchmarkBlock(b *testing.B) {
	const block = 4096
	dst := page(64 * block)
	for _, size := range []int{64 * block, 256 << 20} {
		src := random(size)
		for name, fn := range map[string]func(dst, src []byte) uint32{
			"hash/crc32": func(_, src []byte) uint32 { return crc32.Checksum(src, castagnoli) },
			"sum":        func(_, src []byte) uint32 { return Sum(src) },
			"copy and hash/crc32": func(dst, src []byte) uint32 {
				copy(dst, src)
				return crc32.Checksum(dst[:block], castagnoli)
			},
			"copy": Copy, "copy past": CopyPast,
		} {
			b.Run(fmt.Sprintf("%s of %d KiB", name, size>>10), func(b *testing.B) {
				b.SetBytes(block)
				for i := range b.N {
					at := i * block % size
					sink += fn(dst[i%64*block:], src[at:at+block])
				}
			})
		}
	}
}

var sink uint32
