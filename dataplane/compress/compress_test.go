package compress

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func crcOf(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func random(seed uint64) []byte {
	rnd, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, Block)
	for i := 0; i < Block; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64())
	}
	return b
}

// words is text of a log, as it is made everywhere.
func words(seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 2))
	var b bytes.Buffer
	for b.Len() < Block {
		fmt.Fprintf(&b, "2026-11-26T%02d:%02d:%02dZ %s host-%d request=%016x status=%d took=%dus\n",
			rnd.IntN(24), rnd.IntN(60), rnd.IntN(60), []string{"INFO", "WARN"}[rnd.IntN(2)],
			rnd.IntN(40), rnd.Uint64(), 200+rnd.IntN(5), rnd.IntN(90000))
	}
	return b.Bytes()[:Block]
}

// sources is this package's text: a corpus that every machine has.
func sources(t testing.TB) [][]byte {
	t.Helper()
	var all []byte
	for _, dir := range []string{".", "../segment", "../engine"} {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b...)
		}
	}
	var list [][]byte
	for ; len(all) >= Block; all = all[Block:] {
		list = append(list, all[:Block])
	}
	return list
}

// TestRoundTrip proves that what is packed becomes what it was, in fewer units by an eighth at
// least, and that what is not worth it stays.
func TestRoundTrip(t *testing.T) {
	var p Packer
	blocks := map[string][]byte{
		"one byte": bytes.Repeat([]byte{7}, Block), "words": words(1), "zeros": make([]byte, Block),
		"half": append(random(1)[:Block/2:Block/2], make([]byte, Block/2)...),
	}
	for i, b := range sources(t)[:20] {
		blocks[fmt.Sprint("source ", i)] = b
	}
	for name, b := range blocks {
		for _, codec := range []Codec{S2, Zstd} {
			dst, got := make([]byte, Max), make([]byte, Block)
			units := p.Pack(dst, b, crcOf(b), codec)
			if units < 1 || units > Max/Unit {
				t.Errorf("%s: %d units by codec %d", name, units, codec)
				continue
			}
			if Codec(dst[4]) != codec {
				t.Errorf("%s: codec %d, not %d", name, dst[4], codec)
			}
			for _, src := range [][]byte{dst[:units*Unit], dst} {
				if err := Unpack(got, src); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s by codec %d: %v", name, codec, err)
				}
			}
			if units := p.Pack(dst, b, 1, codec); Unpack(got, dst[:units*Unit]) == nil {
				t.Errorf("%s by codec %d: another checksum is let pass", name, codec)
			}
		}
	}
	barely := random(3) // what would save less than an eighth
	copy(barely[Block-300:], make([]byte, 300))
	for name, b := range map[string][]byte{"random": random(2), "barely": barely} {
		for _, codec := range []Codec{None, S2, Zstd} {
			if n := p.Pack(make([]byte, Max), b, crcOf(b), codec); n != 0 {
				t.Errorf("%s: %d units by codec %d", name, n, codec)
			}
		}
	}
}

// TestDense proves that the sample tells random bytes from text and from halves of zeros.
func TestDense(t *testing.T) {
	for i := range uint64(2000) {
		if !Dense(random(i)) {
			t.Errorf("random block %d is tried", i)
		}
	}
	for i, b := range sources(t) {
		if Dense(b) {
			t.Errorf("text %d is not tried", i)
		}
	}
	for i := range uint64(100) {
		if Dense(words(i)) || Dense(append(random(i)[:Block/2:Block/2], make([]byte, Block/2)...)) {
			t.Errorf("block %d is not tried", i)
		}
	}
}

// TestBackoff proves that a stream that does not become smaller is tried ever less, never not at
// all, and at once again when it does.
func TestBackoff(t *testing.T) {
	var b Backoff
	tries, gap, widest := 0, 0, 0
	for range 100_000 {
		if !b.Try() {
			gap++
			continue
		}
		tries, widest, gap = tries+1, max(widest, gap), 0
		b.Tell(false)
	}
	if widest != backoffMax || tries > 100_000/backoffMax+50 {
		t.Errorf("%d tries, at most %d blocks apart", tries, widest)
	}
	for !b.Try() {
	}
	b.Tell(true)
	for range backoffAfter {
		if !b.Try() {
			t.Fatal("passed by after a success")
		}
		b.Tell(false)
	}
}

// TestGolden proves that bytes compressed once are read for ever.
func TestGolden(t *testing.T) {
	for _, codec := range []string{"s2", "zstd"} {
		text, err := os.ReadFile(filepath.Join("testdata", codec+".hex"))
		if err != nil {
			t.Fatal(err)
		}
		src, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil {
			t.Fatal(err)
		}
		got, want := make([]byte, Block), bytes.Repeat([]byte("a word that comes again "), 171)[:Block]
		if err := Unpack(got, src); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", codec, err)
		}
	}
}

// TestDamage proves that no flipped bit of a compressed block gives another block, whatever the
// codec makes of it.
func TestDamage(t *testing.T) {
	var p Packer
	b := words(5)
	for _, codec := range []Codec{S2, Zstd} {
		dst, got := make([]byte, Max), make([]byte, Block)
		units := p.Pack(dst, b, crcOf(b), codec)
		used := header + int(binary.LittleEndian.Uint16(dst[6:]))
		for bit := range used * 8 {
			dst[bit/8] ^= 1 << (bit % 8)
			err := Unpack(got, dst[:units*Unit])
			dst[bit/8] ^= 1 << (bit % 8)
			if err != nil && !errors.Is(err, ErrBad) {
				t.Fatalf("codec %d, bit %d: %v", codec, bit, err)
			}
			if err == nil && !bytes.Equal(got, b) {
				t.Fatalf("codec %d: bit %d is let pass", codec, bit)
			}
		}
	}
}

// TestNoAllocation proves that neither way allocates once it has run.
func TestNoAllocation(t *testing.T) {
	if raceOn {
		t.Skip("the race detector allocates")
	}
	var p Packer
	b := words(6)
	dst, got := make([]byte, Max), make([]byte, Block)
	for _, codec := range []Codec{S2, Zstd} {
		units := p.Pack(dst, b, crcOf(b), codec)
		if n := testing.AllocsPerRun(100, func() { _ = Unpack(got, dst[:units*Unit]) }); n > 0 {
			t.Errorf("codec %d: %v allocations a block to unpack", codec, n)
		}
		if n := testing.AllocsPerRun(100, func() { p.Pack(dst, b, 1, codec) }); n > 0 {
			t.Errorf("codec %d: %v allocations a block to pack", codec, n)
		}
	}
}

// FuzzUnpack proves that no bytes make Unpack panic, write beyond its block, take more than that,
// or give a block without its checksum.
func FuzzUnpack(f *testing.F) {
	var p Packer
	for _, codec := range []Codec{S2, Zstd} {
		for _, b := range [][]byte{words(7), bytes.Repeat([]byte{1}, Block)} {
			dst := make([]byte, Max)
			f.Add(dst[:p.Pack(dst, b, crcOf(b), codec)*Unit])
		}
	}
	// A frame that says that it becomes a gigabyte.
	f.Add([]byte("\x00\x00\x00\x00\x02\x00\x0c\x00" +
		"\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x40\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, src []byte) {
		all := bytes.Repeat([]byte{0xa5}, 2*Block)
		err := Unpack(all[:Block], src)
		if !bytes.Equal(all[Block:], bytes.Repeat([]byte{0xa5}, Block)) {
			t.Fatal("written behind the block")
		}
		if err != nil && !errors.Is(err, ErrBad) {
			t.Fatal(err)
		}
		if err == nil && crcOf(all[:Block]) != binary.LittleEndian.Uint32(src) {
			t.Fatal("another block than was packed")
		}
	})
}

// BenchmarkBlock gives the CPU of a block: trying, compressing, making whole.
func BenchmarkBlock(b *testing.B) {
	var p Packer
	text, dst, got := sources(b), make([]byte, Max), make([]byte, Block)
	b.Run("dense", func(b *testing.B) {
		block := random(1)
		for b.Loop() {
			Dense(block)
		}
	})
	for name, blocks := range map[string][][]byte{"source": text, "log": {words(1), words(2)}} {
		for _, codec := range []Codec{S2, Zstd} {
			label := name + "/" + []string{"", "s2", "zstd"}[codec]
			total, packed := 0, []([]byte){}
			for _, t := range blocks {
				units := p.Pack(dst, t, crcOf(t), codec)
				if units == 0 {
					total += Block
					continue
				}
				total += units * Unit
				packed = append(packed, bytes.Clone(dst[:units*Unit]))
			}
			b.Run(label+"/pack", func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					p.Pack(dst, blocks[i%len(blocks)], 0, codec)
				}
				b.ReportMetric(float64(len(blocks)*Block)/float64(total), "ratio")
			})
			b.Run(label+"/unpack", func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					if err := Unpack(got, packed[i%len(packed)]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
