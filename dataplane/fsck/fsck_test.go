package fsck_test

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/engine"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

var (
	volA  = domain.VolumeID{UUID: domain.UUID{1}}
	volB  = domain.VolumeID{UUID: domain.UUID{2}}
	snapA = domain.SnapshotID{UUID: domain.UUID{3}}
)

type outcome struct {
	sync.WaitGroup
	err error
}

func (o *outcome) Appended(_ *engine.Record, err error) {
	o.err = err
	o.Done()
}

func write(t testing.TB, v *engine.Volume, block uint64, c byte) {
	t.Helper()
	o := &outcome{}
	o.Add(1)
	v.Append(&engine.Record{
		Kind: segment.KindData, Block: block, Count: 1, To: o,
		Data: bytes.Repeat([]byte{c}, segment.BlockSize),
	})
	if o.Wait(); o.err != nil {
		t.Fatal(o.err)
	}
}

// image makes a small device with two volumes, of which one is a clone, a snapshot, overwrites, and
// blocks that the cleaner has moved. stop says whether it was stopped in order.
func image(t testing.TB, stop bool) *mem.Device {
	t.Helper()
	dev, err := mem.New(mem.Config{Size: 5 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	err = engine.Format(t.Context(), dev, engine.FormatOptions{
		Device: domain.DeviceID{UUID: domain.UUID{9}}, SegmentSize: 64 << 10, Lanes: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), engine.Config{Device: dev, CheckpointBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	a, err := e.Create(t.Context(), volA, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	some := func(v *engine.Volume, n int) {
		for range n {
			write(t, v, rnd.Uint64N(100)*37, byte(1+rnd.IntN(255)))
		}
	}
	some(a, 60)
	if err := e.Snapshot(t.Context(), engine.Cut{Volume: volA, Snapshot: snapA}); err != nil {
		t.Fatal(err)
	}
	some(a, 300) // more than the device takes at once: the cleaner moves
	b, err := e.Clone(t.Context(), snapA, volB, 1)
	if err != nil {
		t.Fatal(err)
	}
	some(b, 30)
	if !stop {
		e.Abandon()
	} else if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return dev
}

func check(t testing.TB, dev *mem.Device) *fsck.Report {
	t.Helper()
	r, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// spoil turns one bit of every byte of a range, and gives the function that turns them back.
func spoil(t testing.TB, dev backends.Device, off, n int64) func() {
	t.Helper()
	start := off / segment.Sector * segment.Sector
	b := backends.AlignedBuffer(segment.RoundUp(int(off-start+n), segment.Sector))
	turn := func() {
		if err := dev.ReadAt(b, start); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			b[off-start+i] ^= 0x10
		}
		if err := dev.WriteAt(b, start, true); err != nil {
			t.Fatal(err)
		}
	}
	turn()
	return turn
}

// TestEverySector proves, on devices that were stopped in order and that were not: an undamaged
// one is sound; whatever byte range of a sector something depends on is spoiled, it is found; and
// where nothing depends on a sector, all of it may be spoiled and nothing is said.
func TestEverySector(t *testing.T) {
	for _, stop := range []bool{true, false} {
		dev := image(t, stop)
		r := check(t, dev)
		if !r.Sound() || r.Live == 0 || r.Read != r.Live || r.Anchor.Clean != stop ||
			stop && r.Garbage != 0 {
			t.Fatalf("stopped %t: live %d, read %d, garbage %d, %+v", stop, r.Live, r.Read, r.Garbage,
				r.Problems)
		}
		depends := map[int64][]fsck.Place{}
		for _, p := range r.Places {
			for s := p.Off / segment.Sector; s*segment.Sector < p.Off+p.Len; s++ {
				depends[s] = append(depends[s], p)
			}
		}
		found, idle := 0, 0
		for s := range dev.Geometry().Size / segment.Sector {
			for _, p := range depends[s] {
				from := max(p.Off, s*segment.Sector)
				n := min(p.Off+p.Len, (s+1)*segment.Sector) - from
				back := spoil(t, dev, from+n/2, 1)
				d, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{Data: true})
				// Behind the checkpoint damage may look like a torn tail, which is none.
				behind := !stop && (p.Part == "log" || p.Part == "block" || p.Part == "header" ||
					p.Part == "chunk")
				if err == nil && d.Sound() && !behind {
					t.Errorf("stopped %t: a %s at %d is not found", stop, p.Part, from)
				}
				found++
				back()
			}
			if len(depends[s]) > 0 || s%3 > 0 {
				continue
			}
			back := spoil(t, dev, s*segment.Sector, segment.Sector)
			if d := check(t, dev); !d.Sound() && stop {
				t.Errorf("sector %d, on which nothing depends: %+v", s, d.Problems)
			}
			idle++
			back()
		}
		if again := check(t, dev); !again.Sound() || found < 100 || idle < 100 {
			t.Errorf("stopped %t: %d places, %d idle sectors, %+v", stop, found, idle, again.Problems)
		}
	}
}

// TestSeededDamage proves that each kind of damage is told as what it is, with its volume, block
// and version: a block of another place, an older one, a leaf of another extent, no anchor, no
// superblock.
func TestSeededDamage(t *testing.T) {
	dev := image(t, true)
	r := check(t, dev)
	var blocks []fsck.Place
	for _, p := range r.Places {
		if p.Part == "block" {
			blocks = append(blocks, p)
		}
	}
	b, keep := backends.AlignedBuffer(segment.BlockSize), backends.AlignedBuffer(segment.BlockSize)
	if err := dev.ReadAt(keep, blocks[0].Off); err != nil {
		t.Fatal(err)
	}
	if err := dev.ReadAt(b, blocks[1].Off); err != nil {
		t.Fatal(err)
	}
	if err := dev.WriteAt(b, blocks[0].Off, true); err != nil { // misdirected
		t.Fatal(err)
	}
	d := check(t, dev)
	if len(d.Problems) != 1 || d.Problems[0].Part != "block" || d.Problems[0].Off != blocks[0].Off ||
		d.Problems[0].Version == "" || d.Problems[0].Volume.IsZero() {
		t.Errorf("%+v", d.Problems)
	}
	if err := dev.WriteAt(keep, blocks[0].Off, true); err != nil {
		t.Fatal(err)
	}
	for i := range int64(segment.AnchorSlots) {
		spoil(t, dev, segment.AnchorOff+i*segment.Sector+100, 1)
	}
	_, err := fsck.Check(dev, dev.Geometry().Size, fsck.Options{})
	if !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("no anchor: %v", err)
	}
	for _, off := range segment.SuperOffsets(dev.Geometry().Size) {
		spoil(t, dev, off+40, 1)
	}
	_, err = fsck.Check(dev, dev.Geometry().Size, fsck.Options{})
	if !domain.IsKind(err, domain.NotFound) {
		t.Errorf("no superblock: %v", err)
	}
}

// forge changes a leaf of the checkpoint and puts every checksum on the way to the anchor right, so
// that only what it means is wrong.
func forge(t *testing.T, dev *mem.Device, change func(l *segment.Leaf) bool,
	root ...func(*segment.Root),
) {
	t.Helper()
	r := check(t, dev)
	put := func(p segment.Piece, b []byte) segment.Piece {
		spoilTo(t, dev, int64(p.Off), b)
		p.CRC, p.Bytes = segment.Checksum(b), uint32(len(b))
		return p
	}
	get := func(p segment.Piece) []byte {
		b := backends.AlignedBuffer(segment.RoundUp(int(p.Bytes)+segment.Sector, segment.Sector))
		start := int64(p.Off) / segment.Sector * segment.Sector
		if err := dev.ReadAt(b, start); err != nil {
			t.Fatal(err)
		}
		return b[int64(p.Off)-start:][:p.Bytes]
	}
	done := false
	for i := range r.Root.Leaves {
		l := &segment.Leaf{}
		if _, err := segment.DecodeLeaf(get(r.Root.Leaves[i].Piece), l); err != nil {
			t.Fatal(err)
		}
		if change(l) {
			done = true
			r.Root.Leaves[i].Piece = put(r.Root.Leaves[i].Piece, l.Encode(nil))
			break
		}
	}
	if !done {
		t.Fatal("no leaf to change")
	}
	for _, f := range root {
		f(r.Root)
	}
	whole := r.Root.Encode()
	list, err := segment.DecodePieces(get(r.Anchor.Root))
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		n := min(len(whole), int(list[i].Bytes))
		list[i] = put(list[i], whole[:n])
		whole = whole[n:]
	}
	r.Anchor.Root = put(r.Anchor.Root, segment.EncodePieces(list))
	b := backends.AlignedBuffer(segment.Sector)
	r.Anchor.Encode(b)
	for i := range int64(segment.AnchorCopies) {
		spoilTo(t, dev, segment.AnchorPlace(r.Anchor.Seq)+i*segment.Sector, b)
	}
}

func spoilTo(t *testing.T, dev backends.Device, off int64, with []byte) {
	t.Helper()
	start := off / segment.Sector * segment.Sector
	b := backends.AlignedBuffer(segment.RoundUp(int(off-start)+len(with), segment.Sector))
	if err := dev.ReadAt(b, start); err != nil {
		t.Fatal(err)
	}
	copy(b[off-start:], with)
	if err := dev.WriteAt(b, start, true); err != nil {
		t.Fatal(err)
	}
}

// TestLeafOfNobody proves that a leaf which the root names for a branch that is gone is no problem,
// whoever wrote its image, and that the same leaf under a branch that is there is one.
func TestLeafOfNobody(t *testing.T) {
	for branch, sound := range map[uint32]bool{1 << 30: true, 0: false} {
		dev := image(t, true)
		forge(t, dev, func(*segment.Leaf) bool { return true }, func(r *segment.Root) {
			last := &r.Leaves[len(r.Leaves)-1]
			if branch == 0 {
				branch = r.Branches[len(r.Branches)-1].ID
				if branch == last.Branch {
					branch = r.Branches[0].ID
				}
			}
			last.Branch = branch
		})
		d := check(t, dev)
		named := slices.ContainsFunc(d.Problems, func(p fsck.Problem) bool {
			return strings.Contains(p.Detail, "is named")
		})
		if named == sound {
			t.Errorf("branch %d: %+v", branch, d.Problems)
		}
	}
}

// TestForgedIndex proves that an index whose checksums all hold is not believed: two blocks that
// claim one place, a block at the place of another, one in no segment, and one that nobody sees.
func TestForgedIndex(t *testing.T) {
	first := func(l *segment.Leaf, not int) int {
		return slices.IndexFunc(l.Loc[not+1:], func(loc segment.Loc) bool {
			return loc.Kind() == segment.Flash
		}) + not + 1
	}
	for name, c := range map[string]struct {
		change func(l *segment.Leaf, i, j int)
		want   string
	}{
		"one place": {func(l *segment.Leaf, i, j int) { l.Loc[i] = l.Loc[j] }, "claims the same place"},
		"exchanged": {func(l *segment.Leaf, i, j int) {
			l.Loc[i], l.Loc[j] = l.Loc[j], l.Loc[i]
		}, "its entry is that"},
		"outside": {func(l *segment.Leaf, i, _ int) {
			l.Loc[i] = segment.MakeLoc(800, 1)
		}, "outside all segments"},
		"no entry":   {func(l *segment.Leaf, i, _ int) { l.Loc[i] ^= 1 }, "no entry of the segment"},
		"lost place": {func(l *segment.Leaf, i, _ int) { l.Loc[i] = segment.LostLoc }, "lost its place"},
	} {
		dev := image(t, true)
		forge(t, dev, func(l *segment.Leaf) bool {
			i := first(l, -1)
			if i == 0 && l.Loc[0].Kind() != segment.Flash {
				return false
			}
			j := first(l, i)
			if j == i || l.Loc[j].Kind() != segment.Flash {
				return false
			}
			c.change(l, i, j)
			return true
		})
		d := check(t, dev)
		found := slices.ContainsFunc(d.Problems, func(p fsck.Problem) bool {
			return strings.Contains(p.Detail, c.want)
		})
		if !found {
			t.Errorf("%s: %+v", name, d.Problems)
		}
	}
}

// TestHeldRecords proves that what a replica holds is checked though no name sees it: its blocks,
// its entry, and that the table says what the entry does; each fault names the version.
func TestHeldRecords(t *testing.T) {
	dev := image(t, true)
	e, err := engine.Open(t.Context(), engine.Config{Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	p, err := e.CreateReplica(t.Context(), domain.VolumeID{UUID: domain.UUID{7}}, 16*domain.MiB, 1)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(5); seq > 0; seq-- { // all but the first are superseded
		o := &outcome{}
		o.Add(1)
		p.Append(&engine.Record{
			Kind: segment.KindData, Block: 3, Count: 1, To: o, Version: domain.Version{Epoch: 2, Seq: seq},
			Data: bytes.Repeat([]byte{byte(seq)}, segment.BlockSize),
		}, 2)
		if o.Wait(); o.err != nil {
			t.Fatal(o.err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	r := check(t, dev)
	if !r.Sound() || r.Held != 5 || r.HeldBytes != 4*segment.BlockSize {
		t.Fatalf("%d records held, %d bytes, %+v", r.Held, r.HeldBytes, r.Problems)
	}
	told := func(want string) {
		t.Helper()
		d := check(t, dev)
		if !slices.ContainsFunc(d.Problems, func(p fsck.Problem) bool {
			return p.Part == "record" && p.Version == "2.3.0" && p.Block == 3 &&
				strings.Contains(p.Detail, want)
		}) {
			t.Errorf("not told that %s: %+v", want, d.Problems)
		}
	}
	i := slices.IndexFunc(r.Root.Replicas.Records, func(h segment.HeldRecord) bool {
		return h.Version.Seq == 3
	})
	at := int64(r.Root.Replicas.Records[i].Addr) * segment.Unit
	back := spoil(t, dev, at+100, 1)
	told("do not match")
	back()
	for want, change := range map[string]func(h *segment.HeldRecord){
		"its entry is another":       func(h *segment.HeldRecord) { h.Request.Counter++ },
		"not there: false":           func(h *segment.HeldRecord) { h.Addr -= segment.BlockUnits },
		"stands outside all segment": func(h *segment.HeldRecord) { h.Addr = 8 },
	} {
		was := r.Root.Replicas.Records[i]
		touch := func(h segment.HeldRecord) {
			forge(t, dev, func(*segment.Leaf) bool { return true }, func(r *segment.Root) {
				r.Replicas.Records[i] = h
			})
		}
		h := was
		change(&h)
		touch(h)
		told(want)
		touch(was)
	}
	if d := check(t, dev); !d.Sound() {
		t.Errorf("%+v", d.Problems)
	}
}
