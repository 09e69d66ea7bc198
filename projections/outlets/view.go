// Package outlets is the view of the outlets: where events are to be published, and what holds it
// up.
package outlets

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"sync"

	"weft/domain"
	"weft/domain/outlet"
	"weft/projections"
)

// View folds outlets.
type View struct {
	mu struct {
		sync.RWMutex
		state
	}
}

type state struct {
	Outlets map[domain.StreamID]outlet.State // those that are not deleted
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view.
func New() *View {
	v := &View{}
	v.mu.Outlets = map[domain.StreamID]outlet.State{}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "outlets" }

// Version implements projections.View.
func (*View) Version() uint16 { return 1 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	if r.Stream.Category() != outlet.Category || r.Event == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := outlet.Evolve(v.mu.Outlets[r.Stream], r.Event)
	v.mu.Outlets[r.Stream] = s
	if s.Deleted {
		delete(v.mu.Outlets, r.Stream)
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
	c.mu.state = state{maps.Clone(v.mu.Outlets)}
	return c
}

// Outlets lists the outlets by name.
func (v *View) Outlets() []outlet.State {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Outlets), func(a, b outlet.State) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// Outlet finds an outlet by name or id.
func (v *View) Outlet(ref string) (outlet.State, bool) {
	for _, o := range v.Outlets() {
		if o.Name == ref || o.Outlet.String() == ref {
			return o, true
		}
	}
	return outlet.State{}, false
}
