package archive_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/memory"
)

// entries gives a store's records as a mirror holds them.
func entries(t testing.TB, s eventstore.Store) []eventstore.Entry {
	t.Helper()
	var out []eventstore.Entry
	for r, err := range archive.Of(s)(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, eventstore.Entry{At: r.Position, Record: eventstore.AppendRecord(nil, &r)})
	}
	return out
}

func history(t testing.TB, dir string, per uint32) *archive.History {
	t.Helper()
	h, damage, err := archive.OpenHistory(dir, cluster, per)
	if err != nil || damage != nil {
		t.Fatal(err, damage)
	}
	return h
}

// sealed is a history of every full segment that a store gives.
func sealed(t testing.TB, dir string, per uint32, s eventstore.Store) *archive.History {
	t.Helper()
	h := history(t, dir, per)
	list := entries(t, s)
	for k := int(per); k <= len(list); k += int(per) {
		if _, err := h.Seal(t.Context(), list[k-int(per):k]); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// TestHistoryBehindAMirror proves with random logs, segment sizes and raises of the timeline that a
// mirror which stands on a history reads like one that holds everything: all, streams, both
// directions, from anywhere, and repeats are found.
func TestHistoryBehindAMirror(t *testing.T) {
	root, tries := t.TempDir(), 0
	rapid.Check(t, func(rt *rapid.T) {
		tries++
		dir := filepath.Join(root, strconv.Itoa(tries))
		s := memory.New()
		defer func() { _ = s.Close() }()
		n := rapid.IntRange(0, 40).Draw(rt, "events")
		fill(t, s, "a", 0, n)
		if k := rapid.IntRange(0, n).Draw(rt, "keep"); k > 0 {
			if err := s.Restore(uint64(k), 2); err != nil {
				rt.Fatal(err)
			}
			fill(t, s, "b", k, n+3)
		}
		per := uint32(rapid.IntRange(1, 9).Draw(rt, "per"))
		sealed(t, dir, per, s)
		h := history(t, dir, per) // as a restart finds it
		b, err := h.Base()
		if err != nil {
			rt.Fatal(err)
		}
		var m, whole eventstore.Mirror
		if err := m.Attach(h, b); err != nil {
			rt.Fatal(err)
		}
		list := entries(t, s)
		if err := errors.Join(m.Extend(list[m.Base():]...), whole.Extend(list...)); err != nil {
			rt.Fatal(err)
		}
		compare(rt, &m, &whole, n)
	})
}

func compare(t *rapid.T, m, whole *eventstore.Mirror, n int) {
	if m.Head() != whole.Head() {
		t.Fatalf("head %+v, want %+v", m.Head(), whole.Head())
	}
	ctx := context.Background()
	back := rapid.SampledFrom([]eventstore.Direction{eventstore.Forward, eventstore.Backward})
	d := back.Draw(t, "direction")
	from := domain.Revision(rapid.IntRange(-1, n/3+1).Draw(t, "revision"))
	stream := domain.StreamID("volume-" + string(rune('0'+rapid.IntRange(0, 3).Draw(t, "stream"))))
	after := whole.Head().Position
	if n := rapid.Uint64Range(0, after.N()).Draw(t, "after"); n > 0 {
		h, _ := whole.HeadAt(n)
		after = h.Position
	}
	got, want := records(t, m.ReadStream(ctx, stream, from, d, -1)),
		records(t, whole.ReadStream(ctx, stream, from, d, -1))
	if !equal(got, want) {
		t.Fatalf("%s from %d: %d events, want %d", stream, from, len(got), len(want))
	}
	got, want = records(t, m.ReadAll(ctx, after, d, domain.Filter{}, -1)),
		records(t, whole.ReadAll(ctx, after, d, domain.Filter{}, -1))
	if !equal(got, want) {
		t.Fatalf("after %s: %d events, want %d", after, len(got), len(want))
	}
	for r, err := range whole.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{}, -1) {
		if err != nil {
			t.Fatal(err)
		}
		e := eventstore.At(r.Revision - 1)
		p := []eventstore.Proposed{{Header: r.Header, Data: r.Data}}
		a, found, err := m.Find(r.Stream, e, p)
		if !found || err != nil || a.Position != r.Position {
			t.Fatalf("a repeat of %s: %+v, %t, %v", r.Position, a, found, err)
		}
		if _, found, err = m.Find(r.Stream, eventstore.Any(), p); !found || err != nil {
			t.Fatalf("a repeat of %s by its id: %t, %v", r.Position, found, err)
		}
		if m.StreamHead(r.Stream) != whole.StreamHead(r.Stream) {
			t.Fatalf("head of %s: %+v", r.Stream, m.StreamHead(r.Stream))
		}
	}
}

func records(
	t *rapid.T, seq func(func(eventstore.Recorded, error) bool),
) (out [][]byte) {
	for r, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, eventstore.AppendRecord(nil, &r))
	}
	return out
}

// TestEveryFlippedBitOfAHistory flips a bit of every byte of every file, index included, before and
// after the history was opened: no reader is given anything else than what was stored.
func TestEveryFlippedBitOfAHistory(t *testing.T) {
	dir := t.TempDir()
	s := store(t, "a", 4)
	sealed(t, dir, 2, s)
	want := logged(t, s)
	files, err := filepath.Glob(filepath.Join(dir, "events-*"))
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for off := range len(sound) {
			before := history(t, dir, 2)
			bad := bytes.Clone(sound)
			bad[off] ^= 1 << (off % 8)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			after, _, err := archive.OpenHistory(dir, cluster, 2)
			if err != nil && !domain.IsKind(err, domain.Mismatch) {
				t.Fatalf("%s byte %d: %v", path, off, err)
			}
			for _, h := range []*archive.History{before, after} {
				if h != nil {
					judge(t, h, want, filepath.Base(path), off)
				}
			}
			segment := strings.HasSuffix(path, ".wes")
			if err := before.Verify(t.Context(), nil); (err == nil) == segment {
				t.Fatalf("%s byte %d: the audit says %v", path, off, err)
			}
			if err := os.WriteFile(path, sound, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// judge reads a history through a mirror, which gives what is sound up to a named position.
func judge(t *testing.T, h *archive.History, want [][]byte, file string, off int) {
	t.Helper()
	b, err := h.Base()
	if err != nil {
		return // the index is not read any more, and says so
	}
	var m eventstore.Mirror
	if err := m.Attach(h, b); err != nil {
		t.Fatal(err)
	}
	n := 0
	for r, err := range m.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{}, -1) {
		var bad *eventstore.CorruptError
		if errors.As(err, &bad) {
			if bad.Position.N() != uint64(n+1) && bad.Position.N() != uint64(n) {
				t.Fatalf("%s byte %d: %v after %d", file, off, err, n)
			}
			return
		}
		if err != nil || !bytes.Equal(eventstore.AppendRecord(nil, &r), want[n]) {
			t.Fatalf("%s byte %d: record %d is another: %v", file, off, n+1, err)
		}
		n++
	}
}

// TestReceive proves that a segment of another node is taken only when it is sound, whole and the
// next one, byte for byte; that a repaired one is the same history; and that both keep what was
// damaged beside it.
func TestReceive(t *testing.T) {
	s, other := store(t, "a", 9), store(t, "b", 9)
	from := sealed(t, t.TempDir(), 3, s)
	dir := t.TempDir()
	h := history(t, dir, 3)
	file := func(h *archive.History, first uint64) []byte {
		f, seg, err := h.Open(first)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		b := make([]byte, seg.Bytes)
		if _, err := f.Read(b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	take := func(b []byte) error {
		_, err := h.Receive(t.Context(), bytes.NewReader(b))
		return err
	}
	first := file(from, 1)
	if err := take(first[:len(first)-1]); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("cut: %v", err)
	}
	short := sealed(t, t.TempDir(), 2, s)
	if err := take(file(short, 1)); !domain.IsKind(err, domain.Mismatch) {
		t.Errorf("not full: %v", err)
	}
	if err := errors.Join(take(first), take(file(from, 4))); err != nil {
		t.Fatal(err)
	}
	foreign := sealed(t, t.TempDir(), 3, other)
	if err := take(file(foreign, 7)); !domain.IsKind(err, domain.Mismatch) {
		t.Errorf("of another history: %v", err)
	}
	path := filepath.Join(dir, "events-0000000000000004.wes")
	bad := bytes.Clone(file(from, 4))
	bad[100] ^= 4
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	fix := func(b []byte) error { return h.Repair(t.Context(), 4, bytes.NewReader(b)) }
	forked := store(t, "a", 3) // the same up to here, and then another
	fill(t, forked, "b", 3, 9)
	fork := sealed(t, t.TempDir(), 3, forked)
	for what, b := range map[string][]byte{
		"damaged": bad, "foreign": file(foreign, 4), "of a fork": file(fork, 4),
	} {
		if err := fix(b); err == nil {
			t.Errorf("repaired by one that is %s", what)
		}
	}
	if err := errors.Join(fix(file(from, 4)), h.Verify(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(kept, bad) {
		t.Errorf("the damaged file is not kept: %v", err)
	}
}

// TestSwappedFile proves that a sound segment of another history in the place of one is found at
// its first record, by its chain alone.
func TestSwappedFile(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	h := sealed(t, dir, 3, store(t, "a", 9))
	sealed(t, other, 3, store(t, "b", 9))
	const file = "events-0000000000000004.wes"
	copyFile(t, filepath.Join(other, file), filepath.Join(dir, file))
	b, err := h.Base()
	if err != nil {
		t.Fatal(err)
	}
	var m eventstore.Mirror
	if err := m.Attach(h, b); err != nil {
		t.Fatal(err)
	}
	n := 0
	var bad *eventstore.CorruptError
	for _, err := range m.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{}, -1) {
		if !errors.As(err, &bad) {
			n++
		}
	}
	if n != 3 || bad == nil || bad.Position != 4 {
		t.Errorf("%d events, then %v", n, bad)
	}
}

// FuzzIndex gives anything for an index: it is refused, or points nowhere but into its segment.
func FuzzIndex(f *testing.F) {
	s := store(f, "a", 3)
	dir := f.TempDir()
	sealed(f, dir, 3, s)
	sound, err := os.ReadFile(filepath.Join(dir, "events-0000000000000001.wei"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Fuzz(func(t *testing.T, b []byte) { archive.ProbeIndex(b) })
}
