package archive_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
)

var cluster = domain.DeriveUUID(domain.UUID{}, "cluster")

// fill appends events up to n in all to three streams.
func fill(t testing.TB, s *memory.Store, label string, from, n int) {
	t.Helper()
	for i := from; i < n; i++ {
		id := domain.StreamID(fmt.Sprintf("volume-%d", i%3))
		_, err := s.Append(t.Context(), id, eventstore.Any(),
			storetest.Propose(fmt.Sprintf("%s %d", label, i), 1)...)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func store(t testing.TB, label string, n int) *memory.Store {
	t.Helper()
	s := memory.New()
	t.Cleanup(func() { _ = s.Close() })
	fill(t, s, label, 0, n)
	return s
}

func write(t testing.TB, f archive.Folder, s eventstore.Store) archive.Written {
	t.Helper()
	w, err := f.Write(t.Context(), cluster, archive.Of(s), nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// read gives what a folder holds, in the bytes of the log.
func read(t testing.TB, f archive.Folder) [][]byte {
	t.Helper()
	var out [][]byte
	_, err := f.Read(t.Context(), func(c domain.UUID, r eventstore.Recorded) error {
		if c != cluster {
			t.Errorf("cluster %s", c)
		}
		out = append(out, eventstore.AppendRecord(nil, &r))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// logged gives what a store holds, in the bytes of the log.
func logged(t testing.TB, s eventstore.Store) [][]byte {
	t.Helper()
	var out [][]byte
	for r, err := range archive.Of(s)(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, eventstore.AppendRecord(nil, &r))
	}
	return out
}

func equal(a, b [][]byte) bool {
	return slices.EqualFunc(a, b, func(x, y []byte) bool { return slices.Equal(x, y) })
}

// TestGrowing proves that a folder holds every byte of the log after each backup, that a second one
// keeps what is sealed and adds what is new, and that nothing new costs no segment but the last.
func TestGrowing(t *testing.T) {
	f := archive.Folder{Dir: filepath.Join(t.TempDir(), "made", "here"), Per: 10}
	s, had := store(t, "a", 0), 0
	for _, n := range []int{1, 9, 10, 11, 30, 30, 47} {
		fill(t, s, "a", had, n)
		w := write(t, f, s)
		head, _ := s.Head(t.Context())
		if w.Head != head || w.Kept != had/10 || w.Events != n-had/10*10 {
			t.Errorf("%d events: %+v, head %+v", n, w, head)
		}
		had = n
		if !equal(read(t, f), logged(t, s)) {
			t.Errorf("%d events: the folder holds something else", n)
		}
		if c, at, err := f.Verify(t.Context()); c != cluster || at != head || err != nil {
			t.Errorf("verify: %s %+v %v", c, at, err)
		}
	}
	list, err := f.List()
	if err != nil || len(list) != 5 || !list[3].Sealed || list[4].Sealed || list[4].Count != 7 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestRoots proves that two nodes which archive one history come to equal segments, byte for byte,
// and that another history has other roots.
func TestRoots(t *testing.T) {
	one := archive.Folder{Dir: t.TempDir(), Per: 5}
	two := archive.Folder{Dir: t.TempDir(), Per: 5}
	other := archive.Folder{Dir: t.TempDir(), Per: 5}
	s := store(t, "a", 7)
	write(t, one, s)
	fill(t, s, "a", 7, 17)
	write(t, one, s)
	write(t, two, s)
	write(t, other, store(t, "b", 17))
	a, _ := one.List()
	b, _ := two.List()
	c, _ := other.List()
	if len(a) != 4 || !slices.Equal(a, b) {
		t.Errorf("%+v\n%+v", a, b)
	}
	for i := range a {
		if a[i].Root == c[i].Root {
			t.Errorf("segment %d of another history has the same root", i)
		}
	}
}

// TestEveryFlippedBit flips a bit of every byte of every file: each is found, one in a record
// under the position of that record, and none of the damaged record is given.
func TestEveryFlippedBit(t *testing.T) {
	f := archive.Folder{Dir: t.TempDir(), Per: 2}
	s := store(t, "a", 5)
	write(t, f, s)
	sizes := make([]int, 0, 5)
	for _, b := range logged(t, s) {
		sizes = append(sizes, len(b))
	}
	list, err := f.List()
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	flips := 0
	for i, seg := range list {
		path := filepath.Join(f.Dir, seg.File)
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for off := range len(sound) {
			bit := off*8 + off%8
			bad := slices.Clone(sound)
			bad[bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			given := domain.Position(0)
			_, err := f.Read(t.Context(), func(_ domain.UUID, r eventstore.Recorded) error {
				given = r.Position
				return nil
			})
			flips++
			if err == nil {
				t.Fatalf("%s bit %d: not found", seg.File, bit)
			}
			want := at(sizes, 2*i, bit/8)
			if want == 0 {
				continue // in head or foot
			}
			var damage *eventstore.CorruptError
			if !errors.As(err, &damage) || damage.Position != want || given >= want {
				t.Fatalf("%s bit %d: %v, want position %s; given up to %s", seg.File, bit, err, want,
					given)
			}
		}
		if err := os.WriteFile(path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := f.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("%d bits", flips)
}

// at gives the position of the record that holds a byte of a segment, whose first record is number
// first of all; 0 for head and foot.
func at(sizes []int, first, off int) domain.Position {
	const head = 68
	end := head
	for i := first; i < min(first+2, len(sizes)); i++ {
		begin := end
		if end += sizes[i]; off >= begin && off < end {
			return domain.Position(i + 1)
		}
	}
	return 0
}

// TestFilesThatDoNotBelong proves that a lost segment, one of another history, one of another
// cluster, a cut one, and one under another's name are refused, by reading and by writing on.
func TestFilesThatDoNotBelong(t *testing.T) {
	s, b := store(t, "a", 9), store(t, "b", 9)
	for name, c := range map[string]struct {
		harm func(t *testing.T, f archive.Folder, files []string)
		kind domain.Kind
	}{
		"lost": {func(t *testing.T, _ archive.Folder, files []string) {
			if err := os.Remove(files[1]); err != nil {
				t.Fatal(err)
			}
		}, domain.Mismatch},
		"another history": {func(t *testing.T, f archive.Folder, files []string) {
			other := archive.Folder{Dir: t.TempDir(), Per: 3}
			write(t, other, b)
			copyFile(t, filepath.Join(other.Dir, filepath.Base(files[1])), files[1])
		}, domain.Mismatch},
		"another cluster": {func(t *testing.T, f archive.Folder, files []string) {
			other := archive.Folder{Dir: t.TempDir(), Per: 3}
			if _, err := other.Write(t.Context(), domain.UUID{1}, archive.Of(s), nil); err != nil {
				t.Fatal(err)
			}
			copyFile(t, filepath.Join(other.Dir, filepath.Base(files[1])), files[1])
		}, domain.Mismatch},
		"another name": {func(t *testing.T, _ archive.Folder, files []string) {
			copyFile(t, files[0], files[1])
		}, domain.Mismatch},
		"cut": {func(t *testing.T, _ archive.Folder, files []string) {
			if err := os.Truncate(files[1], 300); err != nil {
				t.Fatal(err)
			}
		}, domain.Corrupt},
		"empty": {func(t *testing.T, _ archive.Folder, files []string) {
			if err := os.Truncate(files[1], 0); err != nil {
				t.Fatal(err)
			}
		}, domain.Corrupt},
	} {
		f := archive.Folder{Dir: t.TempDir(), Per: 3}
		write(t, f, s)
		files, err := filepath.Glob(filepath.Join(f.Dir, "*"))
		if err != nil || len(files) != 3 {
			t.Fatal(files, err)
		}
		c.harm(t, f, files)
		if _, _, err := f.Verify(t.Context()); domain.KindOf(err) != c.kind {
			t.Errorf("%s: reading gives %v", name, err)
		}
		if _, err := f.Write(t.Context(), cluster, archive.Of(s), nil); domain.KindOf(err) != c.kind {
			t.Errorf("%s: writing gives %v", name, err)
		}
	}
	none := archive.Folder{Dir: filepath.Join(t.TempDir(), "none")}
	if _, _, err := none.Verify(t.Context()); domain.KindOf(err) != domain.NotFound {
		t.Errorf("no folder: %v", err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestInterrupted proves that a backup which ends half-way leaves a folder that is sound, and that
// the next one completes it; what an earlier one left unfinished beside it does no harm.
func TestInterrupted(t *testing.T) {
	f := archive.Folder{Dir: t.TempDir(), Per: 4}
	s := store(t, "a", 18)
	for stop := range 18 {
		ctx, cancel := context.WithCancel(t.Context())
		source := func(ctx context.Context, after domain.Position) iter.Seq2[
			eventstore.Recorded, error,
		] {
			return func(yield func(eventstore.Recorded, error) bool) {
				for r, err := range archive.Of(s)(ctx, after) {
					if int(r.Position) > stop {
						cancel()
					}
					if !yield(r, err) {
						return
					}
				}
			}
		}
		if _, err := f.Write(ctx, cluster, source, nil); err == nil {
			t.Errorf("stopped at %d and complete", stop)
		}
		if list, _ := f.List(); len(list) > 0 {
			if _, _, err := f.Verify(t.Context()); err != nil {
				t.Errorf("stopped at %d: %v", stop, err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(f.Dir, ".segment-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, f, s)
	if !equal(read(t, f), logged(t, s)) {
		t.Error("the folder holds something else")
	}
}

// BenchmarkVerify tells how many events a second are verified.
func BenchmarkVerify(b *testing.B) {
	const events = 20_000
	f := archive.Folder{Dir: b.TempDir()}
	write(b, f, store(b, "a", events))
	b.ResetTimer()
	for range b.N {
		if _, _, err := f.Verify(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
