package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"weft/domain"
	"weft/eventstore"
)

const (
	// HistoryEvents is how many records a segment of a node's own history holds. The bounds follow
	// from n alone, so every node of a cluster comes to the same files.
	HistoryEvents = 20_000
	// pageRecords is how many records are read at once.
	pageRecords = 128
	// indexesKept is how many indexes stay in memory, 1 to 5 MB each.
	indexesKept = 3
)

// History is the old part of a node's log in a folder of sealed segments, open for reading at any
// place. It grows at its end by Seal, from the node's own log, and by Receive, from another node's
// files; nothing in it is ever deleted. Beside each segment stands its index, made from it.
//
// Readers are many; one goroutine at a time changes it.
type History struct {
	folder  Folder
	cluster domain.UUID
	mu      struct {
		sync.Mutex
		segments []Segment
		raises   []eventstore.Raise
		cached   []*index // most recently used last
	}
}

var _ eventstore.Cold = (*History)(nil)

// OpenHistory opens the history of a cluster in a folder, which need not be there. Segments without
// a sound index are read, verified and indexed. The history ends before the first segment that is
// missing or is not sound: damage, which may be nil, then says what is wrong with that one, and the
// history before it is good to use.
//
// Errors: Mismatch for a folder of another cluster, Unsupported for a newer format, and what the
// file system gives.
func OpenHistory(dir string, cluster domain.UUID, per uint32) (h *History, damage, err error) {
	h = &History{folder: Folder{Dir: dir, Per: per}, cluster: cluster}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	at := head{cluster: cluster}
	for _, e := range names { // in order of their names, so of their first n
		first, ok := parseName(e.Name())
		if !ok {
			continue
		}
		if first != at.after.N()+1 {
			return h, &eventstore.CorruptError{
				Position: at.after + 1, What: "its segment is missing from the archive",
			}, nil
		}
		x, err := h.admit(e.Name(), first, at)
		if errors.Is(err, eventstore.ErrCorrupt) {
			return h, inFile(e.Name(), place(err, at.after)), nil
		}
		if err != nil {
			return nil, nil, inFile(e.Name(), err)
		}
		h.add(x)
		at.after, at.prev = x.Last, x.Hash
	}
	return h, nil, nil
}

// admit gives the index of a segment that continues what is given, and makes it where it must.
func (h *History) admit(file string, first uint64, at head) (*index, error) {
	x, err := h.loadIndex(file, first)
	if err != nil && !errors.Is(err, eventstore.ErrCorrupt) && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		info, serr := os.Stat(filepath.Join(h.folder.Dir, file))
		if serr != nil {
			return nil, serr
		}
		if info.Size() != x.Bytes {
			err = errDamaged("the file has another size than when it was sealed")
		}
	}
	if err != nil {
		if x, err = h.makeIndex(file, first, at); err != nil {
			return nil, err
		}
	}
	if err := follows(head{x.cluster, x.after, x.prev}, at, first); err != nil {
		return nil, err
	}
	if x.Count != h.folder.per() {
		return nil, errDamaged(fmt.Sprintf("the segment holds %d records, not %d", x.Count,
			h.folder.per()))
	}
	return x, nil
}

func (h *History) loadIndex(file string, first uint64) (*index, error) {
	b, err := os.ReadFile(filepath.Join(h.folder.Dir, indexName(first)))
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(file, b)
	if err == nil && x.First != first {
		err = errDamaged("the index is of another segment")
	}
	return x, err
}

// makeIndex reads and verifies a segment from the disk, and writes its index beside it.
func (h *History) makeIndex(file string, first uint64, at head) (*index, error) {
	w := newIndexer(at.after)
	s := Segment{File: file, First: first}
	hd, ft, err := h.folder.check(s, at, func(r eventstore.Recorded) error {
		w.add(&r, eventstore.SizeOf(&r))
		return nil
	})
	if err != nil {
		return nil, err
	}
	b := w.bytes(hd, ft)
	if err := replace(h.folder.Dir, indexName(first), b); err != nil {
		return nil, err
	}
	return parseIndex(file, b)
}

// replace writes a file as a whole, durably.
func replace(dir, name string, b []byte) error {
	return put(dir, name, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// put makes a file durable under its name once fill has written it.
func put(dir, name string, fill func(*os.File) error) error {
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // it has its name by then, or is of no use
	defer tmp.Close()           //nolint:errcheck // closed below, where it matters
	if err := fill(tmp); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	// What proves the file must come from the disk, not from memory.
	_ = unix.Fadvise(int(tmp.Fd()), 0, 0, unix.FADV_DONTNEED) // advice: what it gives is no matter
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return flushDir(dir)
}

// Head gives the end of the history.
func (h *History) Head() eventstore.Head {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.head()
}

func (h *History) head() eventstore.Head {
	if k := len(h.mu.segments); k > 0 {
		return eventstore.Head{Position: h.mu.segments[k-1].Last, Hash: h.mu.segments[k-1].Hash}
	}
	return eventstore.Head{}
}

// Segments lists what the history holds, the oldest first.
func (h *History) Segments() []Segment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mu.segments)
}

// Per is how many records a segment holds.
func (h *History) Per() uint64 { return uint64(h.folder.per()) }

// Seal makes the next segment of the records that follow the history: exactly Per of them. They are
// verified before they are written, and the file is read back from the disk and verified as a whole
// before it counts. A nil error means that it is durable.
//
// Errors: Invalid for another number of records, a CorruptError, and what the file system gives.
func (h *History) Seal(ctx context.Context, entries []eventstore.Entry) (Segment, error) {
	if uint64(len(entries)) != h.Per() {
		return Segment{}, domain.Errorf(domain.Invalid, "%d records for a segment of %d", len(entries),
			h.Per())
	}
	at := h.next()
	return h.take(ctx, at, func(f *os.File) error { return fill(ctx, f, at, entries) })
}

// fill writes the segment of some records, each of which is verified.
func fill(ctx context.Context, f *os.File, at head, entries []eventstore.Entry) error {
	w, err := newWriter(f, at)
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := eventstore.DecodeRecord(e.At, e.Record)
		if err == nil {
			err = errors.Join(ctx.Err(), w.addEncoded(&r, e.Record))
		}
		if err != nil {
			return err
		}
	}
	return w.finish()
}

func (h *History) next() head {
	end := h.Head()
	return head{cluster: h.cluster, after: end.Position, prev: end.Hash}
}

// Receive makes the next segment of another node's file. It counts once it has been verified on
// this node's disk, continues this node's history, and is full. Errors are those of Seal; Mismatch
// for a file that does not continue the history.
func (h *History) Receive(ctx context.Context, from io.Reader) (Segment, error) {
	return h.take(ctx, h.next(), func(f *os.File) error {
		_, err := io.Copy(f, from)
		return errors.Join(err, ctx.Err())
	})
}

// take writes the next segment under a name of its own, proves it, and only then names it.
func (h *History) take(ctx context.Context, at head, fill func(*os.File) error) (Segment, error) {
	first := at.after.N() + 1
	incoming := fmt.Sprintf("incoming-%016d", first)
	dir := h.folder.Dir
	if err := put(dir, incoming, fill); err != nil {
		return Segment{}, err
	}
	defer os.Remove(filepath.Join(dir, incoming)) //nolint:errcheck // renamed by then, or of no use
	w := newIndexer(at.after)
	s := Segment{File: incoming, First: first}
	hd, ft, err := h.folder.check(s, at, func(r eventstore.Recorded) error {
		w.add(&r, eventstore.SizeOf(&r))
		return ctx.Err()
	})
	if err == nil && uint64(ft.count) != h.Per() {
		err = domain.Errorf(domain.Mismatch, "a segment of %d records, not %d", ft.count, h.Per())
	}
	if err != nil {
		return Segment{}, err
	}
	b := w.bytes(hd, ft)
	if err := replace(dir, indexName(first), b); err != nil {
		return Segment{}, err
	}
	if err := supplant(dir, incoming, name(first)); err != nil {
		return Segment{}, err
	}
	x, err := parseIndex(name(first), b)
	if err != nil {
		return Segment{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.add(x)
	return x.Segment, nil
}

func (h *History) add(x *index) {
	h.mu.segments = append(h.mu.segments, x.Segment)
	for _, p := range x.raises {
		h.mu.raises = append(slices.Clip(h.mu.raises),
			eventstore.Raise{Timeline: p.Timeline(), Floor: p.N() - 1})
	}
}

// Repair puts another node's file in the place of a segment, which is kept beside it under another
// name. The new one is verified first, and must hold exactly the history that was sealed. One
// goroutine at a time repairs; the history may grow and be read meanwhile.
//
// Errors: NotFound for a segment that the history does not have; Mismatch for another history; a
// CorruptError for a file that is not sound itself.
func (h *History) Repair(ctx context.Context, first uint64, from io.Reader) error {
	return h.replace(ctx, first, func(f *os.File) error {
		_, err := io.Copy(f, from)
		return errors.Join(err, ctx.Err())
	})
}

// Rebuild is Repair from the records of the segment. Errors are those of Repair.
func (h *History) Rebuild(ctx context.Context, first uint64, entries []eventstore.Entry) error {
	_, before, ok := h.Segment(first)
	if !ok {
		return noSegment(first)
	}
	at := head{cluster: h.cluster, after: before.Position, prev: before.Hash}
	return h.replace(ctx, first, func(f *os.File) error { return fill(ctx, f, at, entries) })
}

// replace makes a segment anew, which must become what it was.
func (h *History) replace(ctx context.Context, first uint64, fill func(*os.File) error) error {
	old, before, ok := h.Segment(first)
	if !ok {
		return noSegment(first)
	}
	incoming := fmt.Sprintf("repair-%016d", first)
	dir := h.folder.Dir
	if err := put(dir, incoming, fill); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(dir, incoming)) //nolint:errcheck // renamed by then, or of no use
	w := newIndexer(before.Position)
	hd, ft, err := h.folder.check(Segment{File: incoming, First: first},
		head{h.cluster, before.Position, before.Hash}, func(r eventstore.Recorded) error {
			w.add(&r, eventstore.SizeOf(&r))
			return ctx.Err()
		})
	if err == nil && (ft.root != old.Root || ft.last != old.Last) {
		err = domain.Errorf(domain.Mismatch, "the file holds another history than %s", old.File)
	}
	if err == nil {
		err = replace(dir, indexName(first), w.bytes(hd, ft))
	}
	if err != nil {
		return err
	}
	return supplant(dir, incoming, old.File)
}

// Segment gives the segment that begins at n, and the record before it.
func (h *History) Segment(first uint64) (s Segment, before eventstore.Head, ok bool) {
	for _, s := range h.Segments() {
		if s.First == first {
			return s, before, true
		}
		before = eventstore.Head{Position: s.Last, Hash: s.Hash}
	}
	return Segment{}, before, false
}

// Holding gives the first n of the segment that holds a record; false when none does.
func (h *History) Holding(n uint64) (first uint64, ok bool) {
	for _, s := range h.Segments() {
		if s.First <= n && n <= s.Last.N() {
			return s.First, true
		}
	}
	return 0, false
}

// Check reads every byte of one segment from the disk again and checks it. Damage is a SegmentError
// around a CorruptError. NotFound for a segment that the history does not have.
func (h *History) Check(ctx context.Context, first uint64) error {
	s, before, ok := h.Segment(first)
	if !ok {
		return noSegment(first)
	}
	at := head{cluster: h.cluster, after: before.Position, prev: before.Hash}
	return h.checkOne(&s, at, func(eventstore.Recorded) error { return ctx.Err() })
}

// checkOne verifies a segment as it was sealed.
func (h *History) checkOne(s *Segment, at head, fn func(eventstore.Recorded) error) error {
	_, ft, err := h.folder.check(*s, at, fn)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = missing(err)
	case domain.IsKind(err, domain.Mismatch), err == nil && ft.root != s.Root:
		err = errDamaged("the segment is sound, and another than was sealed")
	}
	var bad *eventstore.CorruptError
	if errors.As(err, &bad) {
		if bad.Position == 0 {
			bad = &eventstore.CorruptError{Position: at.after + 1, What: bad.What}
		}
		err = &SegmentError{First: s.First, File: s.File, Err: bad}
	}
	return err
}

// SegmentError says which segment is damaged.
type SegmentError struct {
	First uint64 // n of its first record
	File  string
	Err   error // a CorruptError
}

// Error names the file and what is wrong with it.
func (e *SegmentError) Error() string { return e.File + ": " + e.Err.Error() }

// Unwrap gives the CorruptError.
func (e *SegmentError) Unwrap() error { return e.Err }

func noSegment(first uint64) error {
	return domain.Errorf(domain.NotFound, "no segment begins at %d", first)
}

// supplant gives a file its name; one that bears it already was found damaged, and is kept beside.
func supplant(dir, from, to string) error {
	now := filepath.Join(dir, to)
	if err := os.Rename(now, now+".damaged"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(filepath.Join(dir, from), now); err != nil {
		return err
	}
	return flushDir(dir)
}

// Open opens a segment's file for another node to copy. NotFound when there is none such.
func (h *History) Open(first uint64) (*os.File, Segment, error) {
	for _, s := range h.Segments() {
		if s.First == first {
			f, err := os.Open(filepath.Join(h.folder.Dir, s.File))
			return f, s, err
		}
	}
	return nil, Segment{}, noSegment(first)
}
