package mem

import (
	"slices"
	"sync"

	"weft/backends"
)

var _ backends.ReadStarter = (*Device)(nil)

// kept holds the started reads that were kept back.
type kept struct {
	mu   sync.Mutex
	list []*backends.Read
}

// StartRead implements backends.ReadStarter. It keeps a read back as long as it may, and ends those
// handed over together on another goroutine, the last one first: who relies on order or on speed is
// found out.
func (d *Device) StartRead(r *backends.Read, more bool) bool {
	d.kept.mu.Lock()
	d.kept.list = append(d.kept.list, r)
	d.kept.mu.Unlock()
	if !more {
		d.KickReads()
	}
	return true
}

// KickReads implements backends.ReadStarter.
func (d *Device) KickReads() {
	d.kept.mu.Lock()
	list := d.kept.list
	d.kept.list = nil
	d.kept.mu.Unlock()
	if len(list) == 0 {
		return
	}
	go func() {
		for _, r := range slices.Backward(list) {
			r.To.ReadDone(r, d.ReadAt(r.P, r.Off))
		}
	}()
}
