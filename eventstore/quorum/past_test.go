package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/storetest"
)

// small is a store whose segments hold three records, so that everything soon stands in the
// archive.
func small(t testing.TB, dir string) *Store {
	t.Helper()
	cfg := config(dir)
	cfg.SegmentEvents = 3
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// trimmer deletes what is archived as fast as it can, until it is stopped.
type trimmer struct {
	end  context.CancelFunc
	done sync.WaitGroup
}

func trimming(s *Store) *trimmer {
	ctx, end := context.WithCancel(context.Background())
	r := &trimmer{end: end}
	r.done.Go(func() {
		for ctx.Err() == nil && s.life.Err() == nil {
			next := s.past.Head().Position + 1
			_, _ = s.Trim(ctx, s.past.Head().Position)
			if s.mirror.Wait(ctx, next) != nil {
				return
			}
		}
	})
	return r
}

func (r *trimmer) stop() {
	r.end()
	r.done.Wait()
}

// inFile gives the file that holds an archived record, and where the record begins in it.
func inFile(t testing.TB, s *Store, n uint64) (path string, at int64) {
	t.Helper()
	for _, seg := range s.past.Segments() {
		if n >= seg.First && n <= seg.Last.N() {
			at = 68
			for k := seg.First; k < n; k++ {
				at += int64(len(s.mirror.Raw(domain.Position(k))))
			}
			return filepath.Join(s.cfg.Archive, seg.File), at
		}
	}
	t.Fatalf("record %d is not archived", n)
	return "", 0
}

func flip(t testing.TB, path string, bit int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, bit/8); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b, bit/8); err != nil {
		t.Fatal(err)
	}
}

// The whole suite over a log most of which has left the database, while it leaves: reading,
// following, finding repeats, and reopening see no seam.
func TestConformanceArchived(t *testing.T) {
	var open sync.Map // *Store to its trimmer
	begin := func(t testing.TB, dir string) eventstore.Store {
		s := small(t, dir)
		r := trimming(s)
		open.Store(s, r)
		t.Cleanup(r.stop)
		return s
	}
	of := func(s eventstore.Store) (*Store, *trimmer) {
		q, _ := s.(*Store)
		v, _ := open.Load(s)
		r, _ := v.(*trimmer)
		return q, r
	}
	storetest.Run(t, storetest.Engine{
		Open: func(t testing.TB) eventstore.Store { return begin(t, t.TempDir()) },
		Reopen: func(t testing.TB, s eventstore.Store) eventstore.Store {
			q, r := of(s)
			r.stop()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return begin(t, q.cfg.Dir)
		},
		Flip: func(
			t testing.TB, s eventstore.Store, p domain.Position, bit int,
		) (func() error, func()) {
			q, _ := of(s)
			until(t, "the record leaves the database, and memory", func() bool {
				return get(t, q, q.keys.log(p)) == "" && q.mirror.Base() >= p.N()
			})
			path, at := inFile(t, q, p.N())
			turn := func() { flip(t, path, 8*at+int64(bit)) }
			turn()
			return func() error {
				var read error
				for r, err := range q.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
					eventstore.NoLimit) {
					if read = err; err == nil && r.Position >= p {
						read = errors.Join(read, q.mirrorDamage(r))
					}
				}
				if audit := q.Verify(t.Context(), nil); (audit == nil) != (read == nil) {
					t.Errorf("reading says %v, the audit %v", read, audit)
				}
				return read
			}, turn
		},
	})
}

// mirrorDamage reads a record again by its stream: every way to it must find the same.
func (s *Store) mirrorDamage(r eventstore.Recorded) error {
	ctx := context.Background()
	for _, err := range s.ReadStream(ctx, r.Stream, r.Revision, eventstore.Forward, 1) {
		return err
	}
	return nil
}

// The same random histories leave the same records whether they stay in the database or leave it.
func TestArchivedEqualsKept(t *testing.T) {
	storetest.Equal(t, engine(), storetest.Engine{
		Open: func(t testing.TB) eventstore.Store {
			s := small(t, t.TempDir())
			t.Cleanup(trimming(s).stop)
			return s
		},
	})
}

// appendTo appends single events to five streams until the log holds n.
func appendTo(t testing.TB, s *Store, n uint64) {
	t.Helper()
	for i := s.mirror.Head().Position.N(); i < n; i++ {
		id := domain.StreamID(fmt.Sprintf("s-%d", i%5))
		add(t, s, id, eventstore.At(domain.Revision(i/5)-1), fmt.Sprint("n", i), 1)
	}
}

// archived waits until a node's archive reaches to n, and is read instead of memory.
func archived(t testing.TB, s *Store, n uint64) eventstore.Head {
	t.Helper()
	until(t, "the archive grows", func() bool {
		return s.past.Head().Position.N() >= n && s.mirror.Base() >= n
	})
	return s.past.Head()
}

// A node that joins, and one that was away while the log left the database, get the archive from
// another node; their files are the same byte for byte, and they read the whole log.
func TestArchiveFromAnotherNode(t *testing.T) {
	a := newPeerSmall(t, "a")
	b := newPeerSmall(t, "b", a.cfg.Net.URL)
	appendTo(t, a.Store, 7)
	archived(t, b.Store, 6)
	b.close()
	appendTo(t, a.Store, 31)
	head := archived(t, a.Store, 30)
	if _, err := a.Safe(t.Context(), head, 2); !domain.IsKind(err, domain.Busy) {
		t.Fatalf("the other node is behind, and it may go: %v", err)
	}
	if _, err := a.Trim(t.Context(), head.Position); err != nil {
		t.Fatal(err)
	}
	if err := a.Compact(t.Context(), 1<<40); !domain.IsKind(err, domain.Unavailable) {
		t.Errorf("a revision to come is compacted: %v", err)
	}
	rev, err := a.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds it done
		if err := a.Compact(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
	}
	b.open()
	c := newPeerSmall(t, "c", a.cfg.Net.URL)
	for _, p := range []*peer{b, c} {
		archived(t, p.Store, 30)
		sameLog(t, a.Store, p.Store)
		if err := p.Verify(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", p.cfg.Name, err)
		}
		for _, seg := range a.past.Segments() {
			one, err1 := os.ReadFile(filepath.Join(a.Store.cfg.Archive, seg.File))
			two, err2 := os.ReadFile(filepath.Join(p.Store.cfg.Archive, seg.File))
			if string(one) != string(two) || errors.Join(err1, err2) != nil {
				t.Errorf("%s: %s differs", p.cfg.Name, seg.File)
			}
		}
	}
	until(t, "three holders", func() bool {
		names, err := a.Safe(t.Context(), head, 3)
		return err == nil && len(names) == 3
	})
}

func newPeerSmall(t testing.TB, name string, seeds ...string) *peer {
	t.Helper()
	return newPeerWith(t, name, func(c *Config) { c.SegmentEvents = 3 }, seeds...)
}

// sameLog reads two logs from their beginning and compares them.
func sameLog(t testing.TB, a, b *Store) {
	t.Helper()
	read := func(s *Store) (out []eventstore.Recorded) {
		if _, err := s.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		for r, err := range s.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
			eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return out
	}
	one, two := read(a), read(b)
	if len(one) != len(two) {
		t.Fatalf("%d events and %d", len(one), len(two))
	}
	for i := range one {
		if one[i].Hash != two[i].Hash {
			t.Fatalf("position %s differs", one[i].Position)
		}
	}
}

// Nothing leaves the database that a voter does not hold, nor what too few hold, nor what somebody
// holds otherwise; and nothing that this node's own archive does not hold.
func TestSafe(t *testing.T) {
	s := small(t, t.TempDir())
	appendTo(t, s, 8)
	head := archived(t, s, 6)
	until(t, "it is told", func() bool {
		names, err := s.Safe(t.Context(), head, 1)
		return err == nil && len(names) == 1
	})
	if _, err := s.Safe(t.Context(), head, 2); !domain.IsKind(err, domain.Busy) {
		t.Errorf("one copy for two nodes: %v", err)
	}
	if _, err := s.Safe(t.Context(), s.mirror.Head(), 1); !domain.IsKind(err, domain.Busy) {
		t.Errorf("beyond the archive: %v", err)
	}
	if _, err := s.Trim(t.Context(), s.mirror.Head().Position); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("deletes what is not archived: %v", err)
	}
	key := s.keys.holder(s.cfg.Name)
	was := get(t, s, key)
	for what, value := range map[string]string{
		"none":    "",
		"behind":  encodeTail(eventstore.Head{Position: 3}),
		"damaged": was[:len(was)-1] + string(was[len(was)-1]^1),
	} {
		put(t, s, key, value)
		if _, err := s.Safe(t.Context(), head, 1); !domain.IsKind(err, domain.Busy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	put(t, s, key, "")
	put(t, s, s.keys.holder("other"), encodeTail(head))
	if _, err := s.Safe(t.Context(), head, 1); !domain.IsKind(err, domain.Busy) {
		t.Errorf("a voter does not hold it: %v", err)
	}
	other := head
	other.Hash[0] ^= 1
	put(t, s, s.keys.holder("other"), encodeTail(other))
	if _, err := s.Safe(t.Context(), head, 1); !errors.Is(err, eventstore.ErrCorrupt) {
		t.Errorf("another history: %v", err)
	}
}

// The mark and the keys move in one transaction, over the raise of a timeline too, at most so many
// at a time; what is left is what lies behind the mark.
func TestTrim(t *testing.T) {
	s := small(t, t.TempDir())
	from := open(t, t.TempDir())
	appendTo(t, from, 2*trimKeys+50)
	if err := s.Import(t.Context(), archive.Of(from)(t.Context(), 0), 3); err != nil {
		t.Fatal(err)
	}
	id := domain.StreamID("s-0")
	for range 2*trimKeys + 10 {
		add(t, s, id, eventstore.At(s.mirror.StreamHead(id).Revision), fmt.Sprint("later",
			s.mirror.StreamHead(id).Revision), 1)
	}
	head := archived(t, s, 4*trimKeys+57)
	before, err := s.Archive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	marks := []uint64{before.Sealed.Position.N()}
	told := s.client.now().Watch(t.Context(), s.keys.sealed())
	deleted, err := s.Trim(t.Context(), head.Position)
	if err != nil {
		t.Fatal(err)
	}
	for marks[len(marks)-1] < head.Position.N() {
		for _, ev := range (<-told).Events {
			h, ok := decodeTail(ev.Kv.Value)
			if !ok || h.Position.N()-marks[len(marks)-1] > trimKeys {
				t.Errorf("the mark went to %+v after %v", h, marks)
			}
			marks = append(marks, h.Position.N())
		}
	}
	a, err := s.Archive(t.Context())
	if err != nil || a.Sealed != head || a.Held != head || a.Stuck != nil || len(a.Holders) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	if deleted != head.Position.N()-marks[0] || a.Hot() != a.Tail.Position.N()-head.Position.N() {
		t.Errorf("%d deleted, %d left", deleted, a.Hot())
	}
	if n, err := s.Trim(t.Context(), head.Position); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	// Another node that begins from a mark which is no longer there must not move it back.
	if done, err := s.trimOnce(t.Context(), before.Sealed, marks[0]+1); done || err != nil {
		t.Errorf("from an old mark: %t, %v", done, err)
	}
	if now, err := s.Archive(t.Context()); err != nil || now.Sealed != head {
		t.Errorf("the mark went back to %+v, %v", now.Sealed, err)
	}
	if err := s.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A segment that is damaged or gone when the node starts ends the archive there; what follows is
// read from where it still is, and the damaged file is kept beside the new one.
func TestArchiveDamagedAtStart(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, s *Store){
		"index and record": func(t *testing.T, s *Store) {
			path, at := inFile(t, s, 5)
			flip(t, path, 8*at+80)
			if err := os.Remove(path[:len(path)-1] + "i"); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func(t *testing.T, s *Store) {
			path, _ := inFile(t, s, 5)
			if err := os.Truncate(path, 300); err != nil {
				t.Fatal(err)
			}
		},
		"gone": func(t *testing.T, s *Store) {
			path, _ := inFile(t, s, 5)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"index alone": func(t *testing.T, s *Store) {
			path, _ := inFile(t, s, 5)
			flip(t, path[:len(path)-1]+"i", 8*200)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := small(t, dir)
			appendTo(t, s, 14)
			archived(t, s, 12)
			path, _ := inFile(t, s, 5)
			harm(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = small(t, dir)
			archived(t, s, 12)
			if err := s.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			_, err := os.Stat(path + ".damaged")
			if kept := name == "cut" || name == "index and record"; kept != (err == nil) {
				t.Errorf("the damaged file: %v", err)
			}
		})
	}
}

// Where the database has given up what a lone node's archive has lost, the log opens degraded and
// names the first position that is gone; what lies before is readable.
func TestArchiveLostForGood(t *testing.T) {
	dir := t.TempDir()
	s := small(t, dir)
	appendTo(t, s, 14)
	if _, err := s.Trim(t.Context(), archived(t, s, 12).Position); err != nil {
		t.Fatal(err)
	}
	path, _ := inFile(t, s, 5)
	if err := errors.Join(os.Remove(path), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = small(t, dir)
	var bad *eventstore.CorruptError
	if err := s.Health(); !errors.As(err, &bad) || bad.Position != 4 {
		t.Fatalf("%v", err)
	}
	n := 0
	for _, err := range s.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err == nil {
			n++
		}
	}
	_, err := s.Append(t.Context(), "s-0", eventstore.Any(), storetest.Propose("x", 1)...)
	if n != 3 || !errors.Is(err, eventstore.ErrCorrupt) {
		t.Errorf("%d events; append: %v", n, err)
	}
}

// Whoever reads the database while it gives the oldest records up reads it as it was at one moment:
// a mirror that begins meanwhile, and a verification, miss nothing and call nothing damaged.
func TestReadWhileTrimmed(t *testing.T) {
	s := small(t, t.TempDir())
	appendTo(t, s, 60)
	head := archived(t, s, 60)
	l := loader{keys: s.keys, kv: s.client, page: 7}
	both, err := l.ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	err = l.pages(t.Context(), both.sealed, both.tail, both.revision, func(e eventstore.Entry) error {
		if n++; n == 1 {
			if _, err := s.Trim(t.Context(), head.Position); err != nil {
				t.Fatal(err)
			}
		}
		return nil
	})
	if err != nil || n != 60 {
		t.Fatalf("%d records, %v", n, err)
	}
	appendTo(t, s, 99)
	head = archived(t, s, 99)
	n = 0
	err = l.verify(t.Context(), s.past, func(p domain.Position) {
		if n++; p.N() == 61 {
			if _, err := s.Trim(t.Context(), head.Position); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err != nil || n != 99 {
		t.Fatalf("%d records, %v", n, err)
	}
}
