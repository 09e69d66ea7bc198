// Package audit is the view of who did what: the headers of the last events, and counts of all.
package audit

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"sync"

	"weft/domain"
	"weft/projections"
)

// entriesMax is how many headers are kept; older ones are read from the log itself.
const entriesMax = 10_000

// Count says how many events of a type there are.
type Count struct {
	Type  string
	Count uint64
}

// View folds headers.
type View struct {
	mu struct {
		sync.RWMutex
		state
	}
}

type state struct {
	Counts map[string]uint64
	Last   []domain.Header // oldest first
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view.
func New() *View {
	v := &View{}
	v.mu.Counts = map[string]uint64{}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "audit" }

// Version implements projections.View.
func (*View) Version() uint16 { return 1 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.Counts[r.Type]++
	v.mu.Last = append(v.mu.Last, r.Header)
	if len(v.mu.Last) >= 2*entriesMax {
		v.mu.Last = slices.Clone(v.mu.Last[len(v.mu.Last)-entriesMax:])
	}
	return nil
}

// Digest implements projections.View.
func (v *View) Digest(w io.Writer) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return projections.WriteDigest(w, v.mu.state)
}

// Clone implements projections.Keeper.
func (v *View) Clone() projections.View {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c := &View{}
	c.mu.state = state{maps.Clone(v.mu.Counts), slices.Clone(v.mu.Last)}
	return c
}

// Counts lists the event types seen, by name.
func (v *View) Counts() []Count {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []Count
	for t, n := range v.mu.Counts {
		list = append(list, Count{t, n})
	}
	slices.SortFunc(list, func(a, b Count) int { return cmp.Compare(a.Type, b.Type) })
	return list
}

// Entries lists the newest headers that pass the filter and keep, newest first, at most limit.
func (v *View) Entries(f domain.Filter, limit int, keep func(*domain.Header) bool) []domain.Header {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []domain.Header
	for i := len(v.mu.Last) - 1; i >= 0 && len(list) < limit; i-- {
		if h := &v.mu.Last[i]; f.Match(h.Stream, h.Type) && keep(h) {
			list = append(list, v.mu.Last[i])
		}
	}
	return list
}
