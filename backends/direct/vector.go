//go:build linux

package direct

import (
	"errors"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/backends"
)

// vectorMax is the most buffers of one system call; IOV_MAX of the kernel is 1024.
const vectorMax = 1024

// vector is the kernel's list of a call's buffers; pooled.
type vector [vectorMax]unix.Iovec

var vectors = sync.Pool{New: func() any { return new(vector) }}

// WriteVAt implements backends.VectorWriter.
func (d *Device) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	d.life.RLock()
	defer d.life.RUnlock()
	size := int64(0)
	for _, b := range bufs {
		if err := d.check("write", off+size, int64(len(b)), b); err != nil {
			return err
		}
		size += int64(len(b))
	}
	fua = fua && d.geometry.Durability == backends.NeedsFlush
	for at := off; len(bufs) > 0; {
		n, err := d.writev(bufs, at, fua)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errShort
		}
		if err != nil {
			return d.failed("write", off, size, err)
		}
		at += int64(n)
		bufs = behind(bufs, n)
	}
	if fua && d.noDSYNC.Load() {
		if err := retry(func() error { return unix.Fdatasync(d.fd) }); err != nil {
			return d.failed("write", off, size, err)
		}
	}
	d.stats.writes.Add(1)
	d.stats.writeBytes.Add(size)
	return nil
}

// behind gives what is left of the buffers behind n bytes.
func behind(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// writev does one system call over the first buffers. Where RWF_DSYNC is refused the caller adds
// fdatasync.
func (d *Device) writev(bufs [][]byte, off int64, fua bool) (int, error) {
	v := vectors.Get().(*vector) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	defer vectors.Put(v)
	n := min(len(bufs), vectorMax)
	for i, b := range bufs[:n] {
		v[i].Base = unsafe.SliceData(b)
		v[i].SetLen(len(b))
	}
	defer clear(v[:n]) // the buffers are not ours to keep
	for {
		flags := uintptr(0)
		if fua && !d.noDSYNC.Load() {
			flags = unix.RWF_DSYNC
		}
		done, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(d.fd),
			uintptr(unsafe.Pointer(&v[0])), uintptr(n), uintptr(off), 0, flags)
		switch {
		case errno == 0:
			return int(done), nil
		case flags != 0 && (errno == unix.EOPNOTSUPP || errno == unix.ENOSYS):
			d.noDSYNC.Store(true)
		default:
			return 0, errno
		}
	}
}
