package fsck_test

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/engine"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

func dump(t testing.TB, dev *mem.Device, id uint32) *fsck.SegmentDump {
	t.Helper()
	d, err := fsck.DumpSegment(dev, dev.Geometry().Size, fsck.Options{}, id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sealed gives a segment of a stream with a footer and chunks that have payload.
func sealed(t testing.TB, dev *mem.Device, stream string) *fsck.SegmentDump {
	t.Helper()
	for _, s := range check(t, dev).Segments {
		d := dump(t, dev, s.ID)
		if d.State == fsck.StateSealed && d.Stream == stream && len(d.Chunks) > 1 {
			return d
		}
	}
	t.Fatalf("no sealed segment of %q", stream)
	return nil
}

// TestDumpOfSoundSegments proves that of a sound device every segment is told without a problem,
// that the bytes of each are all accounted for, and that every live block stands where an entry of
// its segment says.
func TestDumpOfSoundSegments(t *testing.T) {
	for _, stop := range []bool{true, false} {
		dev := image(t, stop)
		r := check(t, dev)
		states, named := map[string]int{}, map[int64]bool{}
		for _, s := range r.Segments {
			d := dump(t, dev, s.ID)
			states[d.State]++
			if len(d.Problems) > 0 || d.Agrees != (d.Footer != nil) || d.Sequence != s.Sequence ||
				d.Off != s.Off {
				t.Errorf("stopped %t, segment %d, life %d and %d: %+v", stop, s.ID, d.Sequence, s.Sequence,
					d.Problems)
			}
			told := int64(segment.Sector)
			for _, c := range d.Chunks {
				told += int64(c.Bytes())
				if !c.Header || !c.Whole || c.InFooter != (d.Footer != nil) || len(c.List) != int(c.Entries) {
					t.Errorf("segment %d: %+v", s.ID, c)
				}
				for _, e := range c.List {
					for i := range e.Count {
						named[c.Payload+int64(e.Off)*segment.Unit+int64(i)*segment.BlockSize] = true
					}
				}
			}
			for _, g := range d.Gaps {
				told += g.Len
			}
			if d.Footer != nil {
				told += int64(segment.RoundUp(int(d.Footer.Bytes), segment.Sector)) + segment.Sector
			}
			if told != d.Size && d.State != fsck.StateReserved {
				t.Errorf("segment %d of %d bytes: %d are told", s.ID, d.Size, told)
			}
		}
		if states[fsck.StateSealed] == 0 || states[fsck.StateOpen] == 0 ||
			states[fsck.StateReserved] == 0 {
			t.Errorf("states %v", states)
		}
		for _, p := range r.Places {
			if p.Part == "block" && !named[p.Off] {
				t.Errorf("no entry names the block at %d", p.Off)
			}
		}
	}
}

// TestDumpOfDamage proves that one flipped bit in a segment is told with its place, whatever it
// hits, and that all else is told as before.
func TestDumpOfDamage(t *testing.T) {
	dev := image(t, true)
	d := sealed(t, dev, "log")
	second := d.Chunks[1]
	meta := sealed(t, dev, "metadata")
	end := d.Off + d.Size
	body := end - segment.Sector - int64(segment.RoundUp(int(d.Footer.Bytes), segment.Sector))
	leaf := meta.Chunks[0].Payload
	for _, c := range []struct {
		name       string
		of         *fsck.SegmentDump
		flip, told int64
		part, want string
	}{
		{"header of the segment", d, d.Off + 9, d.Off, "header", "checksum"},
		{"payload", d, second.Payload + 77, second.Payload, "block", "entry 0 of the chunk"},
		{"fixed part", d, second.Off + 17, second.Off, "chunk", "the footer has it"},
		{"magic", d, second.Off, second.Off, "chunk", "the footer has it"},
		{"entries", d, second.Off + segment.ChunkHeader + 20, second.Off, "chunk", "the footer has it"},
		{"footer", d, body + 3, body, "footer", "checksum"},
		{"leaf", meta, leaf + 5, leaf, "block", "entry 0 of the chunk"},
	} {
		back := spoil(t, dev, c.flip, 1)
		is := dump(t, dev, c.of.ID)
		if !slices.ContainsFunc(is.Problems, func(p fsck.Problem) bool {
			return p.Part == c.part && p.Off == c.told && strings.Contains(p.Detail, c.want) &&
				p.Segment == int64(c.of.ID)
		}) || len(is.Problems) != 1 {
			t.Errorf("%s: %+v", c.name, is.Problems)
		}
		agrees := c.part == "header" || c.part == "block"
		if len(is.Chunks) != len(c.of.Chunks) || is.Agrees != agrees {
			t.Errorf("%s: %d chunks, not %d, agrees %t", c.name, len(is.Chunks), len(c.of.Chunks), is.Agrees)
		}
		back()
	}
	// Without its footer, a damaged header is told by its own word, or as what stands before others.
	back := spoil(t, dev, end-segment.Sector, 1)
	for flip, want := range map[int64]string{
		second.Off + 33: "by its own word", second.Off: "no chunk",
	} {
		again := spoil(t, dev, flip, 1)
		is := dump(t, dev, d.ID)
		if is.State != fsck.StateOpen || len(is.Chunks) != len(d.Chunks)-1 || len(is.Problems) == 0 ||
			is.Problems[0].Off != second.Off || !strings.Contains(is.Problems[0].Detail, want) {
			t.Errorf("%s: %s, %d chunks, %+v", want, is.State, len(is.Chunks), is.Problems)
		}
		again()
	}
	back()
	_, err := fsck.DumpSegment(dev, dev.Geometry().Size, fsck.Options{}, math.MaxUint32)
	if !domain.IsKind(err, domain.Invalid) {
		t.Errorf("segment that is not there: %v", err)
	}
}

// TestDumpOfRandomBytes proves that a segment of any bytes is told, and ends.
func TestDumpOfRandomBytes(t *testing.T) {
	dev := image(t, true)
	d := sealed(t, dev, "log")
	spoil(t, dev, d.Off, d.Size)
	is := dump(t, dev, d.ID)
	if is.State != fsck.StateUnused || is.Header != nil || len(is.Gaps) == 0 || len(is.Problems) == 0 {
		t.Errorf("%+v", is)
	}
}

func extents(t testing.TB, dev *mem.Device, q fsck.ExtentQuery) *fsck.Extents {
	t.Helper()
	x, err := fsck.ReadExtents(dev, dev.Geometry().Size, fsck.Options{}, q)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestExtents proves that what is told of a volume covers it without a gap or an overlap, that its
// data is as much as the checker counts, that the first block of every run matches its checksum at
// its place, that neighbours are one run, and that pages of one run come to the same.
func TestExtents(t *testing.T) {
	for _, stop := range []bool{true, false} {
		dev := image(t, stop)
		r := check(t, dev)
		for _, br := range r.Branches {
			if !br.Named {
				continue
			}
			id := br.Volume.UUID
			if br.State == segment.BranchFrozen {
				id = br.Snapshot.UUID
			}
			x := extents(t, dev, fsck.ExtentQuery{Volume: id, Limit: math.MaxInt})
			at, data := uint64(0), int64(0)
			for i, e := range x.List {
				if e.Block != at || e.Blocks == 0 {
					t.Fatalf("branch %d: run %+v, want block %d", br.ID, e, at)
				}
				at += e.Blocks
				data += e.Bytes
				if e.Kind == fsck.ExtentData {
					first(t, dev, r, e)
				}
				if i > 0 && e.Kind == x.List[i-1].Kind && e.Kind != fsck.ExtentData {
					t.Errorf("two runs of %s at block %d", e.Kind, e.Block)
				}
			}
			if x.Branch.ID != br.ID || at*segment.BlockSize != br.Size || data != br.Sees || x.Next != 0 {
				t.Errorf("branch %d, told %d: %d blocks of %d, %d bytes of %d, next %d", br.ID, x.Branch.ID,
					at, br.Size/segment.BlockSize, data, br.Sees, x.Next)
			}
			paged(t, dev, br.ID, x)
		}
	}
}

func first(t testing.TB, dev *mem.Device, r *fsck.Report, e fsck.Extent) {
	t.Helper()
	b := backends.AlignedBuffer(segment.BlockSize)
	if err := dev.ReadAt(b, r.Segments[e.Segment].Off+e.Off); err != nil {
		t.Fatal(err)
	}
	if segment.Checksum(b)&math.MaxInt32 != e.CRC {
		t.Errorf("%+v: its first block has checksum %x", e, segment.Checksum(b))
	}
}

func paged(t testing.TB, dev *mem.Device, branch uint32, whole *fsck.Extents) {
	t.Helper()
	var all []fsck.Extent
	for from := uint64(0); ; {
		x := extents(t, dev, fsck.ExtentQuery{Branch: branch, From: from, Limit: 7})
		all = append(all, x.List...)
		if from = x.Next; from == 0 {
			break
		}
	}
	if !slices.Equal(all, whole.List) {
		t.Errorf("branch %d by pages: %d runs, not %d", branch, len(all), len(whole.List))
	}
	e := whole.List[1]
	x := extents(t, dev, fsck.ExtentQuery{Branch: branch, From: e.Block, Blocks: 1, Limit: 7})
	if len(x.List) != 1 || x.List[0].Block != e.Block || x.List[0].Blocks != 1 ||
		x.List[0].CRC != e.CRC {
		t.Errorf("one block: %+v of %+v", x.List, e)
	}
}

// TestExtentsOfDamagedLeaf proves that where a leaf does not verify the blocks are told as lost,
// not as a hole; and that a branch that is not there is said to be.
func TestExtentsOfDamagedLeaf(t *testing.T) {
	dev := image(t, true)
	r := check(t, dev)
	ref := r.Root.Leaves[0]
	spoil(t, dev, int64(ref.Piece.Off), 1)
	x := extents(t, dev, fsck.ExtentQuery{Branch: ref.Branch, Limit: math.MaxInt})
	i := slices.IndexFunc(x.List, func(e fsck.Extent) bool { return e.Kind == fsck.ExtentLost })
	if i < 0 || len(x.Problems) == 0 || x.List[i].Blocks%segment.LeafBlocks != 0 ||
		x.List[i].Block != uint64(ref.Extent)*segment.LeafBlocks {
		t.Errorf("%+v, %+v", x.List, x.Problems)
	}
	_, err := fsck.ReadExtents(dev, dev.Geometry().Size, fsck.Options{}, fsck.ExtentQuery{Branch: 999})
	if !domain.IsKind(err, domain.NotFound) {
		t.Errorf("no branch: %v", err)
	}
}

// TestRunsOfExtents proves that neighbours of one record are one run, those that stand apart are
// not, that an extent which nobody wrote in is a hole, and that a clone sees its own block where it
// has one, and what it stands on elsewhere, as the snapshot does everywhere.
func TestRunsOfExtents(t *testing.T) {
	dev, err := mem.New(mem.Config{Size: 5 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	err = engine.Format(t.Context(), dev, engine.FormatOptions{
		Device: domain.DeviceID{UUID: domain.UUID{9}}, SegmentSize: 64 << 10, Lanes: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), engine.Config{Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	a, err := e.Create(t.Context(), volA, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	const far = 3*segment.LeafBlocks + 5
	o := &outcome{}
	o.Add(1)
	a.Append(&engine.Record{
		Kind: segment.KindData, Block: far, Count: 4, To: o,
		Data: bytes.Repeat([]byte{9}, 4*segment.BlockSize),
	})
	if o.Wait(); o.err != nil {
		t.Fatal(o.err)
	}
	write(t, a, far+4, 1)
	write(t, a, far+5, 2)
	if err := e.Snapshot(t.Context(), engine.Cut{Volume: volA, Snapshot: snapA}); err != nil {
		t.Fatal(err)
	}
	b, err := e.Clone(t.Context(), snapA, volB, 1)
	if err != nil {
		t.Fatal(err)
	}
	write(t, b, far+4, 3)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	type run struct {
		block, blocks uint64
		kind          string
		own           bool
	}
	for id, own := range map[domain.UUID]bool{volB.UUID: true, snapA.UUID: false} {
		want := []run{
			{0, far, "hole", false},
			{far, 4, "data", false},
			{far + 4, 1, "data", own},
			{far + 5, 1, "data", false},
			{far + 6, segment.LeafBlocks - 11, "hole", false},
		}
		x := extents(t, dev, fsck.ExtentQuery{Volume: id, Limit: 100})
		var is []run
		for _, l := range x.List {
			is = append(is, run{l.Block, l.Blocks, l.Kind, own && l.Branch == x.Branch.ID})
		}
		if !slices.Equal(is, want) {
			t.Errorf("%s: %+v", id, is)
		}
	}
}
