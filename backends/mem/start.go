package mem

import (
	"runtime"
	"slices"
	"sync"

	"weft/backends"
)

var (
	_ backends.ReadChainer  = (*Device)(nil)
	_ backends.VectorWriter = (*Device)(nil)
)

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

// TryStartRead implements backends.ReadChainer. The read ends on another goroutine.
func (d *Device) TryStartRead(r *backends.Read) bool {
	go func() { r.To.ReadDone(r, d.ReadAt(r.P, r.Off)) }()
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

// WriteVAt implements backends.VectorWriter. The buffers are taken when the call ends, not before:
// one that is used again meanwhile is found out.
func (d *Device) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	for _, b := range bufs {
		if len(b)%d.geometry.LogicalBlock != 0 || !backends.Aligned(b, d.geometry.MemoryAlign) {
			return d.check("write", off, 1, b)
		}
	}
	runtime.Gosched()
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	whole, n := backends.AlignedBuffer(size), 0
	for _, b := range bufs {
		n += copy(whole[n:], b)
	}
	return d.WriteAt(whole, off, fua)
}
