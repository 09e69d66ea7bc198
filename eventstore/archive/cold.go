package archive

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"weft/domain"
	"weft/eventstore"
)

// index gives the index of the segment that holds n, from memory or from the disk, where it is made
// again when it is not sound.
func (h *History) index(n uint64) (*index, error) {
	h.mu.Lock()
	i := sort.Search(len(h.mu.segments), func(i int) bool { return h.mu.segments[i].Last.N() >= n })
	if i == len(h.mu.segments) || n == 0 {
		h.mu.Unlock()
		return nil, domain.Errorf(domain.NotFound, "the archive holds no record %d", n)
	}
	s := h.mu.segments[i]
	at := head{cluster: h.cluster}
	if i > 0 {
		at.after, at.prev = h.mu.segments[i-1].Last, h.mu.segments[i-1].Hash
	}
	k := slices.IndexFunc(h.mu.cached, func(x *index) bool { return x.First == s.First })
	if k >= 0 {
		x := h.mu.cached[k]
		h.mu.cached = append(slices.Delete(h.mu.cached, k, k+1), x)
		h.mu.Unlock()
		return x, nil
	}
	h.mu.Unlock()
	x, err := h.loadIndex(s.File, s.First)
	if errors.Is(err, eventstore.ErrCorrupt) || errors.Is(err, os.ErrNotExist) {
		x, err = h.makeIndex(s.File, s.First, at)
	}
	if err != nil {
		return nil, err
	}
	if x.Root != s.Root {
		return nil, errDamaged("the index is of another history than when it was opened")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.cached = append(h.mu.cached, x)
	if len(h.mu.cached) > indexesKept {
		h.mu.cached = slices.Delete(h.mu.cached, 0, 1)
	}
	return x, nil
}

// Page implements eventstore.Cold.
func (h *History) Page(n uint64) (uint64, [][]byte, error) {
	x, err := h.index(n)
	if err != nil {
		return 0, nil, err
	}
	from := uint32(n-x.First) / pageRecords * pageRecords
	to := min(from+pageRecords, x.Count)
	f, err := os.Open(filepath.Join(h.folder.Dir, x.File))
	if err != nil {
		return 0, nil, missing(err)
	}
	defer f.Close() //nolint:errcheck // read only
	start := x.offset(from)
	b := make([]byte, x.offset(to)-start)
	if k, err := f.ReadAt(b, start); err != nil {
		if !errors.Is(err, io.EOF) {
			return 0, nil, &domain.Error{Op: "archive.Read", Kind: domain.Unavailable, Ref: x.File, Err: err}
		}
		b = append(b[:k], make([]byte, len(b)-k)...) // the record that is cut does not verify
	}
	out := make([][]byte, 0, to-from)
	for i := from; i < to; i++ {
		a, z := x.offset(i)-start, x.offset(i+1)-start
		out = append(out, b[a:z:z])
	}
	return x.First + uint64(from), out, nil
}

// missing makes damage of a file that is gone.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errDamaged("its segment is missing from the archive")
	}
	return err
}

// Run implements eventstore.Cold.
func (h *History) Run(s domain.StreamID, n uint64) (eventstore.Run, error) {
	x, err := h.index(n)
	if err != nil {
		return eventstore.Run{}, err
	}
	r, ok := x.run(s)
	if !ok {
		return r, errDamaged("the index of its segment does not know the stream")
	}
	return r, nil
}

// Base gives what a mirror must know to begin behind the history.
func (h *History) Base() (eventstore.Base, error) {
	ends := map[domain.StreamID]eventstore.StreamHead{}
	b := eventstore.Base{Head: h.Head(), Raises: h.raises()}
	for _, s := range h.Segments() {
		x, err := h.loadIndex(s.File, s.First)
		if err != nil {
			return b, err
		}
		for j := range x.streams {
			name, first, _, list := x.entry(j)
			n := x.First + uint64(lastOf(list))
			ends[clone(name)] = eventstore.StreamHead{
				Revision: first + domain.Revision(len(list)/4-1), Position: position(b.Raises, n),
			}
		}
		for j := range x.Count {
			if n := x.First + uint64(j); n+eventstore.IDsMax > b.Head.Position.N() {
				b.IDs = append(b.IDs, x.id(j))
			}
		}
	}
	b.Streams = func(yield func(domain.StreamID, eventstore.StreamHead) bool) {
		for s, e := range ends {
			if !yield(s, e) {
				return
			}
		}
	}
	return b, nil
}

func (h *History) raises() []eventstore.Raise {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.raises
}

func lastOf(list []byte) uint32 {
	b := list[len(list)-4:]
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func position(raises []eventstore.Raise, n uint64) domain.Position {
	for i := len(raises) - 1; i >= 0; i-- {
		if raises[i].Floor < n {
			return domain.PositionOf(raises[i].Timeline, n)
		}
	}
	return domain.PositionOf(0, n)
}

// Read gives the records behind n, raw and unverified, to whoever verifies them: to the end of the
// history or of what take wants.
func (h *History) Read(
	ctx context.Context, after uint64, take func(eventstore.Entry) error,
) error {
	raises := h.raises()
	for n, end := after+1, h.Head().Position.N(); n <= end; {
		first, records, err := h.Page(n)
		if err != nil {
			return err
		}
		for _, b := range records[n-first:] {
			if err := errors.Join(ctx.Err(),
				take(eventstore.Entry{At: position(raises, n), Record: b})); err != nil {
				return err
			}
			n++
		}
	}
	return nil
}

// Verify reads every byte of the history again and checks it: records, chain, heads, feet, roots.
// The first damage is a CorruptError that names its position and its file. progress, which may be
// nil, hears every record that is sound, in order.
func (h *History) Verify(ctx context.Context, progress func(*eventstore.Recorded) error) error {
	at := head{cluster: h.cluster}
	for _, s := range h.Segments() {
		err := h.checkOne(&s, at, func(r eventstore.Recorded) error {
			if progress == nil {
				return ctx.Err()
			}
			return errors.Join(ctx.Err(), progress(&r))
		})
		if err != nil {
			return err
		}
		at.after, at.prev = s.Last, s.Hash
	}
	return nil
}
