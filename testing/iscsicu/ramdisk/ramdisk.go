// Package ramdisk is a thin disk in memory for tests of front ends: sparse pages, every operation
// of domain.IO, and hooks that hold requests back or fail them. It completes inside Submit unless a
// hook says otherwise.
package ramdisk

import (
	"bytes"
	"sync"

	"weft/domain"
)

const pageSize = 4096

// Disk is the disk. Its zero value is not usable; New makes one.
type Disk struct {
	mu    sync.RWMutex
	info  domain.DiskInfo
	pages map[int64]*[pageSize]byte
	hook  func(io *domain.IO) (held bool, err error)
}

// New makes an empty disk. Missing sizes become 1 GiB and 512 bytes over 4096.
func New(info domain.DiskInfo) *Disk {
	if info.Size == 0 {
		info.Size = domain.GiB
	}
	if info.LogicalBlock == 0 {
		info.LogicalBlock = 512
	}
	if info.PhysicalBlock == 0 {
		info.PhysicalBlock = pageSize
	}
	return &Disk{info: info, pages: map[int64]*[pageSize]byte{}}
}

// Hook makes f see every request before it runs. A request that f holds is the hook's to end, by
// Run; an error ends it at once. Nil takes the hook away.
func (d *Disk) Hook(f func(io *domain.IO) (held bool, err error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = f
}

// Grow changes the size.
func (d *Disk) Grow(size domain.Bytes) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info.Size = size
}

// Pages counts the allocated pages of 4096 bytes.
func (d *Disk) Pages() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.pages)
}

// Info tells what the disk is.
func (d *Disk) Info() domain.DiskInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.info
}

// Submit runs a request, unless the hook takes it.
func (d *Disk) Submit(io *domain.IO) {
	d.mu.RLock()
	hook := d.hook
	d.mu.RUnlock()
	if hook != nil {
		held, err := hook(io)
		if held {
			return
		}
		if err != nil {
			io.Err = err
			io.To.Complete(io)
			return
		}
	}
	d.Run(io)
}

// Run runs a request and completes it.
func (d *Disk) Run(io *domain.IO) {
	io.Err = d.apply(io)
	io.To.Complete(io)
}

func (d *Disk) apply(io *domain.IO) error {
	if io.Op == domain.OpRead {
		d.mu.RLock()
		defer d.mu.RUnlock()
	} else {
		d.mu.Lock()
		defer d.mu.Unlock()
	}
	bs := int64(d.info.LogicalBlock)
	size := int64(d.info.Size)
	if io.Off < 0 || io.Len < 0 || io.Off > size || io.Len > size-io.Off {
		return domain.Errorf(domain.OutOfRange, "%d+%d", io.Off, io.Len)
	}
	if io.Off%bs != 0 || io.Len%bs != 0 || io.Buf != nil && int64(len(io.Buf)) != io.Len {
		return domain.Errorf(domain.Invalid, "misshapen request %d+%d", io.Off, io.Len)
	}
	if d.info.ReadOnly && io.Op != domain.OpRead && io.Op != domain.OpFlush {
		return domain.Errorf(domain.ReadOnly, "read-only")
	}
	switch io.Op {
	case domain.OpRead:
		d.read(io.Off, io.Buf)
	case domain.OpWrite:
		d.write(io.Off, io.Buf)
	case domain.OpZero, domain.OpUnmap:
		d.zero(io.Off, io.Len, io.NoUnmap)
	case domain.OpCompareWrite:
		was := make([]byte, io.Len)
		d.read(io.Off, was)
		if !bytes.Equal(was, io.Cmp) {
			for io.Mismatch = 0; was[io.Mismatch] == io.Cmp[io.Mismatch]; io.Mismatch++ {
			}
			return domain.Errorf(domain.Miscompare, "differs at %d", io.Mismatch)
		}
		d.write(io.Off, io.Buf)
	case domain.OpFlush: // memory is as stable as it gets
	}
	return nil
}

func (d *Disk) read(off int64, buf []byte) {
	for len(buf) > 0 {
		n := min(int64(len(buf)), pageSize-off%pageSize)
		if p := d.pages[off/pageSize]; p != nil {
			copy(buf[:n], p[off%pageSize:])
		} else {
			clear(buf[:n])
		}
		off, buf = off+n, buf[n:]
	}
}

func (d *Disk) write(off int64, buf []byte) {
	for len(buf) > 0 {
		n := min(int64(len(buf)), pageSize-off%pageSize)
		p := d.pages[off/pageSize]
		if p == nil {
			p = new([pageSize]byte)
			d.pages[off/pageSize] = p
		}
		copy(p[off%pageSize:], buf[:n])
		off, buf = off+n, buf[n:]
	}
}

// zero clears a range. Whole pages are given back; a range that spans more pages than there are is
// walked by the pages instead.
func (d *Disk) zero(off, n int64, keep bool) {
	end := off + n
	if n/pageSize > int64(len(d.pages)) && !keep {
		for i := range d.pages {
			d.clearPage(i, max(off, i*pageSize), min(end, (i+1)*pageSize))
		}
		return
	}
	for off < end {
		i := off / pageSize
		next := min(end, (i+1)*pageSize)
		if keep && d.pages[i] == nil {
			d.pages[i] = new([pageSize]byte)
		}
		if keep {
			clear(d.pages[i][off-i*pageSize : next-i*pageSize])
		} else {
			d.clearPage(i, off, next)
		}
		off = next
	}
}

func (d *Disk) clearPage(i, from, to int64) {
	p := d.pages[i]
	if p == nil || to <= from {
		return
	}
	if to-from == pageSize {
		delete(d.pages, i)
		return
	}
	clear(p[from-i*pageSize : to-i*pageSize])
}

// Extents gives the allocation map.
func (d *Disk) Extents(off, n int64, dst []domain.Extent) ([]domain.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if off < 0 || n < 0 || off > int64(d.info.Size)-n {
		return dst, domain.Errorf(domain.OutOfRange, "%d+%d", off, n)
	}
	for end := off + n; off < end; {
		next := min(end, (off/pageSize+1)*pageSize)
		hole := d.pages[off/pageSize] == nil
		if i := len(dst) - 1; i >= 0 && dst[i].Hole == hole && dst[i].Off+dst[i].Len == off {
			dst[i].Len += next - off
		} else {
			dst = append(dst, domain.Extent{Off: off, Len: next - off, Hole: hole, Zero: hole})
		}
		off = next
	}
	return dst, nil
}
