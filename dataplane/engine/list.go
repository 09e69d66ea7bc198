package engine

import "slices"

// AllSnapshots lists every snapshot on the device, complete or not, by id: also those of volumes
// that are gone.
func (e *Engine) AllSnapshots() []*Volume {
	e.mu.RLock()
	defer e.mu.RUnlock()
	list := make([]*Volume, 0, len(e.mu.bySnapshot))
	for _, v := range e.mu.bySnapshot {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *Volume) int {
		return slices.Compare(a.snapshot.UUID[:], b.snapshot.UUID[:])
	})
	return list
}
