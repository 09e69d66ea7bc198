package archive

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"weft/domain"
	"weft/eventstore"
)

// Folder is an archive. Its methods are for one goroutine at a time.
type Folder struct {
	// Dir is made when something is written.
	Dir string
	// Per is how many records a full segment holds; 0 is SegmentEvents. It is the same for all
	// writers of one folder.
	Per uint32
}

func (f Folder) per() uint32 { return cmp.Or(f.Per, SegmentEvents) }

// Segment is what a folder holds in one file.
type Segment struct {
	File   string
	First  uint64 // n of its first record
	Count  uint32
	Last   domain.Position
	Hash   [32]byte // of the last record
	Root   [32]byte // over the whole segment
	Bytes  int64    // of the file
	Sealed bool     // full: it is never written again
}

// RootText is the root in hexadecimal.
func (s *Segment) RootText() string { return hex.EncodeToString(s.Root[:]) }

// Written says what Write did.
type Written struct {
	Head   eventstore.Head // of what the folder holds now
	Events int             // records that were not there before
	Files  int             // segments written
	Kept   int             // sealed segments that were there already
}

// Source is what Write reads: a store, or whatever hands records on in order.
type Source func(ctx context.Context, after domain.Position) iter.Seq2[eventstore.Recorded, error]

// Of makes a store a source.
func Of(s eventstore.Store) Source {
	return func(ctx context.Context, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
		return s.ReadAll(ctx, after, eventstore.Forward, domain.Filter{}, eventstore.NoLimit)
	}
}

// Write brings a folder up to a source. Sealed segments that are there are verified and kept, so a
// second backup into the same folder costs a look at the old and what is new. A nil error means
// that everything up to Head is durable. progress, when not nil, hears the position now and then.
//
// Errors: Mismatch for a folder of another cluster or another history; a CorruptError for damage in
// the folder or the source; what reading and writing give.
func (f Folder) Write(
	ctx context.Context, cluster domain.UUID, from Source,
	progress func(domain.Position),
) (Written, error) {
	var out Written
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return out, err
	}
	segments, err := f.List()
	if err != nil {
		return out, err
	}
	at := head{cluster: cluster}
	for i, s := range segments {
		if !s.Sealed && i < len(segments)-1 {
			return out, domain.Errorf(domain.Mismatch, "%s is not full, and is not the last", s.File)
		}
		h, t, err := f.check(s, at, func(eventstore.Recorded) error { return ctx.Err() })
		if err != nil {
			return out, err
		}
		if s.Sealed { // the last one, when it is not, is written again
			at = head{cluster: h.cluster, after: t.last, prev: t.hash}
			out.Kept++
		}
	}
	out.Head = eventstore.Head{Position: at.after, Hash: at.prev}
	next, stop := iter.Pull2(from(ctx, at.after))
	defer stop()
	for more := true; more; {
		var t foot
		if t, more, err = f.writeSegment(ctx, at, next); err != nil {
			return out, err
		}
		if t.count == 0 {
			break
		}
		out.Files++
		out.Events += int(t.count)
		at.after, at.prev = t.last, t.hash
		out.Head = eventstore.Head{Position: t.last, Hash: t.hash}
		if progress != nil {
			progress(t.last)
		}
	}
	return out, nil
}

// writeSegment writes one segment of what the source gives next; more tells that it was full.
// Nothing is written when nothing came.
func (f Folder) writeSegment(
	ctx context.Context, h head, next func() (eventstore.Recorded, error, bool),
) (t foot, more bool, err error) {
	r, err, ok := next()
	if !ok || err != nil {
		return t, false, err
	}
	file := name(h.after.N() + 1)
	tmp, err := os.CreateTemp(f.Dir, ".segment-*")
	if err != nil {
		return t, false, err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // it has its name by then, or is of no use
	defer tmp.Close()           //nolint:errcheck // closed below, where it matters
	w, err := newWriter(tmp, h)
	if err != nil {
		return t, false, err
	}
	for {
		if err = errors.Join(w.add(&r), ctx.Err()); err != nil {
			return t, false, err
		}
		if more = w.foot.count == f.per(); more {
			break
		}
		if r, err, ok = next(); err != nil {
			return t, false, err
		}
		if !ok {
			break
		}
	}
	if err := errors.Join(w.finish(), tmp.Sync(), tmp.Close()); err != nil {
		return t, false, err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(f.Dir, file)); err != nil {
		return t, false, err
	}
	return w.foot, more, flushDir(f.Dir)
}

// flushDir makes the names in a folder durable.
func flushDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// List gives the segments by their names and feet, in order, without reading what is between; a
// folder that is not there has none. Damage is found by Verify and Read.
func (f Folder) List() ([]Segment, error) {
	entries, err := os.ReadDir(f.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Segment
	for _, e := range entries {
		first, ok := parseName(e.Name())
		if !ok {
			continue
		}
		s, err := f.glance(e.Name())
		if err != nil {
			return nil, inFile(e.Name(), err)
		}
		s.File, s.First, s.Sealed = e.Name(), first, s.Count >= f.per()
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Segment) int { return cmp.Compare(a.First, b.First) })
	return out, nil
}

// glance reads a segment's foot.
func (f Folder) glance(file string) (s Segment, err error) {
	in, err := os.Open(filepath.Join(f.Dir, file))
	if err != nil {
		return s, err
	}
	defer in.Close() //nolint:errcheck // read only
	info, err := in.Stat()
	if err != nil {
		return s, err
	}
	if info.Size() < headSize+footSize {
		return s, errDamaged("the file is too short for a segment")
	}
	b := make([]byte, footSize)
	if _, err := in.ReadAt(b, info.Size()-footSize); err != nil {
		return s, err
	}
	t, err := parseFoot(b)
	return Segment{
		Count: t.count, Last: t.last, Hash: t.hash, Root: t.root, Bytes: info.Size(),
	}, err
}

// check reads a whole segment, which must continue what is given; a zero cluster there is any.
func (f Folder) check(s Segment, want head, fn func(eventstore.Recorded) error) (
	head, foot, error,
) {
	in, err := os.Open(filepath.Join(f.Dir, s.File))
	if err != nil {
		return head{}, foot{}, err
	}
	defer in.Close() //nolint:errcheck // read only
	info, err := in.Stat()
	if err != nil {
		return head{}, foot{}, err
	}
	begin := func(h head) error {
		if want.cluster.IsZero() {
			want.cluster = h.cluster
		}
		return follows(h, want, s.First)
	}
	h, t, err := readSegment(in, info.Size(), begin, fn)
	if err != nil {
		err = inFile(s.File, err)
	}
	return h, t, err
}

// follows checks that a segment continues what came before.
func follows(h, want head, first uint64) error {
	switch {
	case h.cluster != want.cluster:
		return domain.Errorf(domain.Mismatch, "it is of cluster %s, not %s", h.cluster, want.cluster)
	case h.after != want.after || h.prev != want.prev || first != want.after.N()+1:
		return domain.Errorf(domain.Mismatch,
			"it does not continue the history before it, which ends at position %s", want.after)
	}
	return nil
}

// Read verifies the folder from its first record on and gives every record in order. Nothing of a
// record that fails is given.
//
// Errors: NotFound for a folder without segments; a CorruptError that names the position; Mismatch
// for a lost segment or one of another history.
func (f Folder) Read(
	ctx context.Context, fn func(cluster domain.UUID, r eventstore.Recorded) error,
) (eventstore.Head, error) {
	segments, err := f.List()
	if err != nil {
		return eventstore.Head{}, err
	}
	if len(segments) == 0 {
		return eventstore.Head{}, domain.Errorf(domain.NotFound, "no segment of events in %s", f.Dir)
	}
	cluster, err := f.cluster(segments[0].File)
	if err != nil {
		return eventstore.Head{}, err
	}
	at := head{cluster: cluster}
	for _, s := range segments {
		_, t, err := f.check(s, at, func(r eventstore.Recorded) error {
			return errors.Join(ctx.Err(), fn(cluster, r))
		})
		if err != nil {
			return eventstore.Head{}, err
		}
		at.after, at.prev = t.last, t.hash
	}
	return eventstore.Head{Position: at.after, Hash: at.prev}, nil
}

// Source gives what Read gives, as a sequence.
func (f Folder) Source(ctx context.Context) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		enough := errors.New("enough")
		_, err := f.Read(ctx, func(_ domain.UUID, r eventstore.Recorded) error {
			if !yield(r, nil) {
				return enough
			}
			return nil
		})
		if err != nil && !errors.Is(err, enough) {
			yield(eventstore.Recorded{}, err)
		}
	}
}

// cluster tells whose history a segment is.
func (f Folder) cluster(file string) (domain.UUID, error) {
	in, err := os.Open(filepath.Join(f.Dir, file))
	if err != nil {
		return domain.UUID{}, err
	}
	defer in.Close() //nolint:errcheck // read only
	b := make([]byte, headSize)
	if _, err := in.ReadAt(b, 0); err != nil {
		return domain.UUID{}, err
	}
	h, err := parseHead(b)
	if err != nil {
		err = inFile(file, err)
	}
	return h.cluster, err
}

// Verify is Read that gives the verdict alone.
func (f Folder) Verify(ctx context.Context) (domain.UUID, eventstore.Head, error) {
	var cluster domain.UUID
	at, err := f.Read(ctx, func(c domain.UUID, _ eventstore.Recorded) error {
		cluster = c
		return nil
	})
	return cluster, at, err
}

// inFile names the file that an error is about.
func inFile(file string, err error) error {
	return &domain.Error{Kind: domain.KindOf(err), Ref: file, Err: err}
}
