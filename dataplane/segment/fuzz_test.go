package segment

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
)

// The fuzz targets prove that no decoder panics, reads behind its input or takes more memory than
// its limit, whatever the bytes. A checksum would keep random bytes from everything behind it, so
// each input is tried as it is and again with its checksum put right. What decodes must encode, and
// decode again.

// seal puts the checksum right that stands at off and covers everything before.
func seal(b []byte, off int) {
	if len(b) >= off+4 {
		le.PutUint32(b[off:], Checksum(b[:off]))
	}
}

// judge refuses an error of another kind.
func judge(t *testing.T, err error) {
	if err != nil && !errors.Is(err, ErrBad) {
		t.Fatalf("not ErrBad: %v", err)
	}
}

func fuzzSector(f *testing.F, encode func(b []byte), decode func([]byte) (func([]byte), error)) {
	b := make([]byte, Sector)
	encode(b)
	f.Add(b)
	f.Add(b[:100])
	f.Add(make([]byte, Sector))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := bytes.Clone(in)
		_, err := decode(b)
		judge(t, err)
		seal(b, Sector-4)
		again, err := decode(b)
		judge(t, err)
		if err == nil {
			out := make([]byte, Sector)
			again(out)
			if _, err := decode(out); err != nil {
				t.Fatalf("written again: %v", err)
			}
		}
	})
}

// FuzzSuperblock: see above.
func FuzzSuperblock(f *testing.F) {
	fuzzSector(f, goldenSuper().Encode, func(b []byte) (func([]byte), error) {
		s, err := DecodeSuperblock(b)
		if err != nil {
			return nil, err
		}
		return s.Encode, nil
	})
}

// FuzzAnchor: see above.
func FuzzAnchor(f *testing.F) {
	fuzzSector(f, goldenAnchor().Encode, func(b []byte) (func([]byte), error) {
		a, err := DecodeAnchor(b)
		if err != nil {
			return nil, err
		}
		return a.Encode, nil
	})
}

// FuzzScrubMark: see above.
func FuzzScrubMark(f *testing.F) {
	fuzzSector(f, goldenScrub().Encode, func(b []byte) (func([]byte), error) {
		m, err := DecodeScrubMark(b)
		if err != nil {
			return nil, err
		}
		return m.Encode, nil
	})
}

// FuzzKeyPage: see above.
func FuzzKeyPage(f *testing.F) {
	fuzzSector(f, goldenKeys().Encode, func(b []byte) (func([]byte), error) {
		p, err := DecodeKeyPage(b)
		if err != nil {
			return nil, err
		}
		return p.Encode, nil
	})
}

// FuzzHeader: see above.
func FuzzHeader(f *testing.F) {
	fuzzSector(f, goldenHeader().Encode, func(b []byte) (func([]byte), error) {
		h, err := DecodeHeader(b)
		if err != nil {
			return nil, err
		}
		return h.Encode, nil
	})
}

// FuzzTrailer: see above; the body is the golden one.
func FuzzTrailer(f *testing.F) {
	foot := encodeFooter()
	f.Add(foot)
	f.Add(foot[len(foot)-Sector:])
	f.Fuzz(func(t *testing.T, in []byte) {
		_, err := decodeFooter(bytes.Clone(in))
		judge(t, err)
		b := bytes.Clone(in)
		if len(b) < Sector {
			return
		}
		last := b[len(b)-Sector:]
		if n := int(le.Uint32(last[20:])); n <= len(b)-Sector {
			le.PutUint32(last[24:], Checksum(b[:n]))
		}
		seal(last, Sector-4)
		_, err = decodeFooter(b)
		judge(t, err)
	})
}

// FuzzChunk: see above; the entries of a chunk that verifies are walked.
func FuzzChunk(f *testing.F) {
	_, b := goldenChunk()
	f.Add(b)
	f.Add(b[:ChunkHeader])
	_, sealed := goldenSealed()
	f.Add(sealed)
	_, held := goldenHeld()
	f.Add(held)
	_, era := goldenEra()
	f.Add(era)
	f.Fuzz(func(t *testing.T, in []byte) {
		b := bytes.Clone(in)
		_, _, err := DecodeChunk(b, goldenSalt)
		judge(t, err)
		if c, err := DecodeChunkFixed(b); err == nil && len(b) >= ChunkHeader+int(c.EntryBytes) {
			if c.Bytes() > ChunkMax {
				t.Fatalf("a chunk of %d B", c.Bytes())
			}
			le.PutUint32(b[56:], chunkCRC(b, int(c.EntryBytes), goldenSalt))
		}
		c, entries, err := DecodeChunk(b, goldenSalt)
		judge(t, err)
		if err != nil {
			return
		}
		c.Chain(entries)
		for len(entries) > 0 {
			var e Entry
			n, err := DecodeEntry(entries, c.LSN, &e)
			judge(t, err)
			if err != nil {
				return
			}
			for i := range e.Count {
				if e.Kind == KindData {
					e.Further(entries[:n], i)
				}
			}
			entries = entries[n:]
		}
	})
}

// FuzzEntry: see above; what decodes is written as it was read, but for bits without meaning.
func FuzzEntry(f *testing.F) {
	for _, e := range slices.Concat(goldenEntries(), goldenHeldEntries(), goldenEraEntries(),
		goldenDirtyEntries()) {
		b := make([]byte, e.Size())
		e.Encode(b, []uint32{1, 2})
		f.Add(b, uint64(100))
		if e.Kind == KindData {
			e.Flags |= FlagEncrypted
			b := make([]byte, e.Size())
			e.Encode(b, []uint32{1, 2})
			f.Add(b, uint64(100))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, lsn uint64) {
		var e, again Entry
		n, err := DecodeEntry(b, lsn, &e)
		judge(t, err)
		var s Single
		judgeSingle(t, DecodeSingle(b, lsn, &s), &s, &e, err)
		if err != nil {
			return
		}
		if n > len(b) || n != e.Size() {
			t.Fatalf("%d of %d B", n, len(b))
		}
		further := make([]uint32, e.Count-1)
		for i := range further {
			if e.Kind == KindData {
				further[i] = e.Further(b, i+1)
			}
		}
		out := make([]byte, n)
		e.Encode(out, further)
		var mask, twice Mask
		e.MaskOf(b, &mask)
		e.PutMask(out, &mask)
		for i := range e.Count {
			if e.Flags&FlagEncrypted != 0 {
				PutSeal(out, i, e.Further(b, i), Tag(b, i))
			}
		}
		if _, err := DecodeEntry(out, lsn, &again); err != nil || again != e {
			t.Fatalf("written again: %v\n%+v\n%+v", err, e, again)
		}
		if again.MaskOf(out, &twice); twice != mask {
			t.Fatalf("mask %x, not %x", twice, mask)
		}
	})
}

// judgeSingle compares what DecodeSingle says of an entry, and its size, with DecodeEntry.
func judgeSingle(t *testing.T, got int, s *Single, e *Entry, err error) {
	t.Helper()
	const others = FlagMoved | FlagCompressed | FlagParent | outcomeMask
	n := 0
	if err == nil && e.Kind == KindData && e.Count == 1 && e.Flags&others == 0 {
		n = e.Size()
	}
	if got != n {
		t.Fatalf("a single block in %d B, not %d: %+v, %v", got, n, e, err)
	}
	want := Single{e.Branch, e.Off, e.Block, e.Version.Seq, e.LSN, e.CRC}
	if n > 0 && *s != want {
		t.Fatalf("a single block %+v, not %+v", *s, want)
	}
}

// FuzzReplicas: see above; the table is covered by the checksums of the root's pieces.
func FuzzReplicas(f *testing.F) {
	whole := goldenReplicas()
	f.Add(whole.Append(nil))
	for _, whole := range []ReplicaTable{eraReplicas(), dirtyReplicas()} {
		f.Add(whole.Append(nil))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := DecodeReplicas(b)
		judge(t, err)
		if err != nil {
			return
		}
		out := table.Append(nil)
		again, err := DecodeReplicas(out)
		if err != nil || len(out) != len(b) || table.Bytes() != len(b) ||
			!reflect.DeepEqual(again, table) {
			t.Fatalf("%d B written again as %d: %v", len(b), len(out), err)
		}
	})
}

// FuzzLeaf: see above.
func FuzzLeaf(f *testing.F) {
	f.Add(goldenLeaf(false).Encode(nil))
	f.Add(goldenLeaf(true).Encode(nil))
	f.Add((&Leaf{}).Encode(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		var l, again Leaf
		b := bytes.Clone(in)
		_, err := DecodeLeaf(b, &l)
		judge(t, err)
		if len(b) < leafFixed {
			return
		}
		if n := int(le.Uint32(b[28:])); n >= leafFixed && n <= len(b) {
			le.PutUint32(b[60:], leafCRC(b[:n]))
		}
		_, err = DecodeLeaf(b, &l)
		judge(t, err)
		if err != nil {
			return
		}
		if _, err := DecodeLeaf(l.Encode(nil), &again); err != nil {
			t.Fatalf("written again: %v", err)
		}
		if again.Count() != l.Count() {
			t.Fatalf("written again: %d blocks, not %d", again.Count(), l.Count())
		}
	})
}

// FuzzRoot: see above; a root is covered by the checksums of its pieces.
func FuzzRoot(f *testing.F) {
	f.Add(goldenRoot().Encode())
	holding := goldenRoot()
	holding.Replicas = goldenReplicas()
	f.Add(holding.Encode())
	f.Add(living().Encode())
	f.Add((&Root{}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRoot(b)
		judge(t, err)
		if err == nil && len(r.Encode()) > len(b) {
			t.Fatalf("%d branches and %d leaves in %d B", len(r.Branches), len(r.Leaves), len(b))
		}
	})
}

// FuzzBranch: see above.
func FuzzBranch(f *testing.F) {
	f.Add(goldenRoot().Branches[0].Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		br, err := DecodeBranch(b)
		judge(t, err)
		if err != nil {
			return
		}
		if again, err := DecodeBranch(br.Append(nil)); err != nil || again != br {
			t.Fatalf("written again: %+v, %v", again, err)
		}
	})
}

// FuzzPieces: see above.
func FuzzPieces(f *testing.F) {
	f.Add(EncodePieces([]Piece{{1, 2, 3}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodePieces(b)
		judge(t, err)
		if err == nil && !bytes.Equal(EncodePieces(list), b) {
			t.Fatal("written again as other bytes")
		}
	})
}
