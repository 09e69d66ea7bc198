//go:build linux

package direct

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ncw/directio"
	"golang.org/x/sys/unix"

	"weft/backends"
)

// Options overrule what is probed. The zero value takes everything as probed.
type Options struct {
	// LogicalBlock in bytes, 512 or 4096, no smaller than what the device takes; 0 as probed, or
	// 4096 where nothing is known.
	LogicalBlock int
	// Rotational and Durability, where the kernel is known to be wrong: a disk behind a RAID
	// controller, a battery behind a write-back cache, which makes it PowerSafe.
	Rotational *bool
	Durability *backends.Durability
	// NoDiscard makes Discard do nothing, as for a file whose blocks must not be given back.
	NoDiscard bool
	// NoRing makes every read a pread, also where many are under way and io_uring is to be had. On
	// tmpfs, and on a file system without O_DIRECT, it is so in any case.
	NoRing bool
	// Progress is told by Create how many bytes of how many are written. An error from it stops
	// Create, which returns it. Open ignores it.
	Progress func(done, total int64) error
}

// Open opens a block device or an existing file for use as one, and locks it. The size is taken now
// and stays; a file is used up to its last whole logical block.
//
// Errors: ErrNotPresent, ErrLocked (held by another process, or by another Open in this one),
// ErrAlign when Options.LogicalBlock does not fit, or that of the system.
func Open(path string, opt Options) (*Device, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fail("open", path, err)
	}
	flags := os.O_RDWR
	switch {
	case st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0:
		flags |= os.O_EXCL
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("direct: open %s: neither a block device nor a file: %w",
			path, backends.ErrNotPresent)
	}
	f, err := openLocked(path, flags)
	if err != nil {
		return nil, fail("open", path, err)
	}
	d, err := newDevice(f, path, opt)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// Create makes a new file of size bytes, all of them allocated and written, and opens it. Size is a
// multiple of the logical block. What was begun is removed on failure.
//
// Errors: fs.ErrExist, ErrNoSpace, ErrAlign, that of Options.Progress, or that of the system.
func Create(path string, size int64, opt Options) (*Device, error) {
	if size <= 0 || size%minBlock != 0 {
		return nil, fmt.Errorf("direct: create %s: %d bytes: %w", path, size, backends.ErrAlign)
	}
	f, err := openLocked(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, fail("create", path, err)
	}
	d, err := create(f, path, size, opt)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return d, nil
}

func create(f *os.File, path string, size int64, opt Options) (*Device, error) {
	err := retry(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(size) // the zeros below will find out whether there is room
	}
	if err != nil {
		return nil, fail("create", path, err)
	}
	d, err := newDevice(f, path, opt)
	if err != nil {
		return nil, err
	}
	if d.geometry.Size != size {
		return nil, fmt.Errorf("direct: create %s: %d bytes in blocks of %d: %w",
			path, size, d.geometry.LogicalBlock, backends.ErrAlign)
	}
	if err := d.zero(opt.Progress); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, fail("create", path, err)
	}
	if err := syncFolder(path); err != nil {
		return nil, fail("create", path, err)
	}
	d.stats = counters{}
	return d, nil
}

// zero writes zeros over the whole device. Without this every first durable write would turn an
// unwritten extent into a written one, with a journal commit each.
func (d *Device) zero(progress func(done, total int64) error) error {
	const chunk = 4 << 20
	buf := backends.AlignedBuffer(int(min(chunk, d.geometry.Size)))
	for off := int64(0); off < d.geometry.Size; {
		n := min(chunk, d.geometry.Size-off)
		if err := d.WriteAt(buf[:n], off, false); err != nil {
			return err
		}
		off += n
		if progress == nil {
			continue
		}
		if err := progress(off, d.geometry.Size); err != nil {
			return err
		}
	}
	return nil
}

func syncFolder(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// openLocked opens with O_DIRECT, or without where the file system has none, and takes the lock.
func openLocked(path string, flags int) (*os.File, error) {
	f, err := directio.OpenFile(path, flags, 0o600)
	if errors.Is(err, unix.EINVAL) {
		// Kernels differ in whether the file was made before the flag was refused.
		f, err = os.OpenFile(path, flags&^os.O_EXCL, 0o600)
	}
	if err != nil {
		return nil, err
	}
	if err := retry(func() error {
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// minBlock is the smallest logical block there is, in bytes.
const minBlock = 512

func newDevice(f *os.File, path string, opt Options) (*Device, error) {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fail("stat", path, err)
	}
	media := probe("/sys", path, &st)
	g := backends.Geometry{
		OptimalIO:  media.OptimalIO,
		Rotational: media.Turns(),
		Durability: media.Durability(),
		CanDiscard: media.Discard || media.File,
		Path:       path,
		Model:      media.Model,
		Serial:     media.Serial,
	}
	var err error
	if g.LogicalBlock, g.MemoryAlign, err = alignment(fd, !media.File, opt.LogicalBlock); err != nil {
		return nil, fmt.Errorf("direct: open %s: %w", path, err)
	}
	g.AtomicUnit = g.LogicalBlock
	if n := media.Atomic; !media.File && n > g.AtomicUnit && n%g.AtomicUnit == 0 {
		g.AtomicUnit = n
	}
	g.Size = st.Size
	if !media.File {
		if g.Size, err = blockDeviceSize(fd); err != nil {
			return nil, fail("size of", path, err)
		}
	}
	g.Size -= g.Size % int64(g.LogicalBlock)
	if opt.Rotational != nil {
		g.Rotational = *opt.Rotational
	}
	if opt.Durability != nil {
		g.Durability = *opt.Durability
	}
	g.CanDiscard = g.CanDiscard && !opt.NoDiscard
	d := &Device{file: f, fd: fd, block: !media.File, geometry: g}
	d.noDiscard.Store(!g.CanDiscard)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	// From memory a read is a copy, which one goroutine would make for all who share a ring.
	cached := media.Memory || err == nil && flags&unix.O_DIRECT == 0
	d.reading.from, d.reading.off = ringFrom, opt.NoRing || cached
	return d, nil
}

// alignment gives the logical block and the alignment of memory, both in bytes.
func alignment(fd int, isBlock bool, want int) (block, memory int, err error) {
	block, memory = 4096, 4096
	var stx unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
	if err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 && stx.Dio_offset_align != 0 {
		block, memory = int(stx.Dio_offset_align), int(stx.Dio_mem_align)
	}
	if isBlock { // a device's own word counts above that of the file system which holds its node
		if block, err = unix.IoctlGetInt(fd, unix.BLKSSZGET); err != nil {
			return 0, 0, err
		}
		memory = min(memory, max(block, minBlock))
	}
	if block < minBlock {
		block = minBlock
	}
	memory = max(memory, 1)
	if want == 0 {
		want = minBlock
		if block > minBlock {
			want = 4096
		}
	}
	if want != minBlock && want != 4096 || want < block {
		return 0, 0, fmt.Errorf("logical block %d where the device takes %d: %w",
			want, block, backends.ErrAlign)
	}
	return want, memory, nil
}
