//go:build linux

package direct

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/backends"
)

// discardMax bounds one discard call to the kernel, in bytes, so that a context can end a long one.
const discardMax = 1 << 30

// Device is an open block device or file. Its methods may be called from many goroutines.
type Device struct {
	// file is held for as long as fd is used: a dropped os.File closes its descriptor.
	file     *os.File
	fd       int
	block    bool // a block device, not a file
	geometry backends.Geometry

	noDSYNC   atomic.Bool // the kernel refused RWF_DSYNC once
	noDiscard atomic.Bool

	// life is held for reading by every I/O and for writing by Close, so that no I/O meets a
	// descriptor which was closed and given to someone else.
	life struct {
		sync.RWMutex
		closed bool
	}
	reading reading
	stats   counters
}

type counters struct {
	reads, writes, flushes, discards    atomic.Int64
	readBytes, writeBytes, discardBytes atomic.Int64
	errors                              atomic.Int64
}

var _ backends.ReadChainer = (*Device)(nil)

// Geometry describes the device as it was when opened.
func (d *Device) Geometry() backends.Geometry { return d.geometry }

// ReadAt reads len(p) bytes from off. Errors: ErrClosed, ErrAlign, ErrRange, ErrMedia,
// ErrNotPresent when the device is gone. P is memory of the heap or from mmap: the kernel may write
// to it while the goroutine sleeps.
func (d *Device) ReadAt(p []byte, off int64) error {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.check("read", off, int64(len(p)), p); err != nil {
		return err
	}
	size := int64(len(p))
	if err := d.read(p, off); err != nil {
		return d.failed("read", off, size, err)
	}
	d.stats.reads.Add(1)
	d.stats.readBytes.Add(size)
	return nil
}

// WriteAt writes p at off, durably with fua. Errors: ErrClosed, ErrAlign, ErrRange, ErrMedia,
// ErrNoSpace when a discarded or sparse part of a file cannot be given blocks, ErrNotPresent when
// the device is gone.
func (d *Device) WriteAt(p []byte, off int64, fua bool) error {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.check("write", off, int64(len(p)), p); err != nil {
		return err
	}
	// A PowerSafe device has nothing to flush and a Volatile one nothing to gain.
	fua = fua && d.geometry.Durability == backends.NeedsFlush
	size := int64(len(p))
	for at := off; len(p) > 0; {
		n, err := d.write(p, at, fua)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errShort
		}
		if err != nil {
			return d.failed("write", off, size, err)
		}
		p, at = p[n:], at+int64(n)
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

// write does one system call. Where RWF_DSYNC is refused the caller adds fdatasync.
func (d *Device) write(p []byte, off int64, fua bool) (int, error) {
	if !fua || d.noDSYNC.Load() {
		return unix.Pwrite(d.fd, p, off)
	}
	n, err := unix.Pwritev2(d.fd, [][]byte{p}, off, unix.RWF_DSYNC)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		d.noDSYNC.Store(true)
		return unix.Pwrite(d.fd, p, off)
	}
	return n, err
}

// Flush makes all completed writes durable. The context is looked at once, before: the system call
// cannot be broken off. Errors: ErrClosed, ErrMedia, that of the context. After an error the kernel
// may have dropped what it could not write, so another Flush proves nothing.
func (d *Device) Flush(ctx context.Context) error {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.check("flush", 0, 0, nil); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := retry(func() error { return unix.Fdatasync(d.fd) }); err != nil {
		return d.failed("flush", 0, d.geometry.Size, err)
	}
	d.stats.flushes.Add(1)
	return nil
}

// Discard gives the range back to the device or the file system, in steps between which the context
// is looked at. It costs milliseconds: keep it off the write path. A device without the ability
// answers nil. Errors: ErrClosed, ErrAlign, ErrRange, ErrMedia, that of the context.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.check("discard", off, n, nil); err != nil {
		return err
	}
	for at := off; at < off+n && !d.noDiscard.Load(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := min(discardMax, off+n-at)
		err := retry(func() error { return d.discard(at, part) })
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			d.noDiscard.Store(true)
			return nil
		}
		if err != nil {
			return d.failed("discard", at, part, err)
		}
		at += part
	}
	d.stats.discards.Add(1)
	d.stats.discardBytes.Add(n)
	return nil
}

func (d *Device) discard(off, n int64) error {
	if !d.block {
		return unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	span := [2]uint64{uint64(off), uint64(n)}
	return ioctl(d.fd, unix.BLKDISCARD, unsafe.Pointer(&span))
}

// Stats counts since the device was opened.
func (d *Device) Stats() backends.DeviceStats {
	s := &d.stats
	return backends.DeviceStats{
		Reads: s.reads.Load(), Writes: s.writes.Load(), Flushes: s.flushes.Load(),
		Discards: s.discards.Load(), ReadBytes: s.readBytes.Load(),
		WriteBytes: s.writeBytes.Load(), DiscardBytes: s.discardBytes.Load(),
		Errors: s.errors.Load(),
	}
}

// Close waits for the I/O under way and gives up the device and its lock. It does not flush.
// Closing twice is no error.
func (d *Device) Close() error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.life.closed {
		return nil
	}
	d.life.closed = true
	var err error
	if d.reading.ring != nil { // before the file: it holds the file, and with it the lock
		err = d.reading.ring.Close()
	}
	if err = errors.Join(err, d.file.Close()); err != nil {
		return fail("close", d.geometry.Path, err)
	}
	return nil
}

func (d *Device) check(what string, off, n int64, p []byte) error {
	err := d.geometry.Check(p, off, n)
	if d.life.closed {
		err = backends.ErrClosed
	}
	if err == nil {
		return nil
	}
	d.stats.errors.Add(1)
	return fmt.Errorf("direct: %s %d bytes at %d of %s: %w", what, n, off, d.geometry.Path, err)
}

func (d *Device) failed(what string, off, n int64, err error) error {
	d.stats.errors.Add(1)
	return fail(fmt.Sprintf("%s %d bytes at %d of", what, n, off), d.geometry.Path, err)
}

var errShort = errors.New("the device ends before its size")

// fail wraps a system error with the sentinel it means, keeping both. ErrMedia says that the device
// answered, and has no such bytes; what tells of a device that did not answer has no sentinel.
func fail(what, path string, err error) error {
	sentinel := backends.ErrMedia
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		sentinel = backends.ErrNotPresent
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EBUSY):
		sentinel = backends.ErrLocked
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		sentinel = backends.ErrNoSpace
	case errors.Is(err, unix.EINVAL):
		sentinel = backends.ErrAlign
	case errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrPermission), errors.Is(err, errShort),
		errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.ENOLINK), errors.Is(err, unix.EBADE),
		errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("direct: %s %s: %w", what, path, err)
	}
	return fmt.Errorf("direct: %s %s: %w: %w", what, path, sentinel, err)
}

// retry repeats a system call that a signal broke off.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func blockDeviceSize(fd int) (int64, error) {
	var n uint64
	err := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&n))
	return int64(n), err
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}
