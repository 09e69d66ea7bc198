//go:build linux

package nvram

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/backends"
)

// ErrKind says that a path is neither a file nor a device-dax. A block device of persistent memory
// is not mapped: the kernel grants MAP_SYNC on the other two alone.
var ErrKind = errors.New("neither a file nor a device-dax")

// page is the unit of a region's size, in bytes.
const page = 4096

// Region is a mapped file. Its bytes may be used from many goroutines; who orders their stores is
// the caller's matter.
type Region struct {
	file     *os.File // kept open: its lock lasts as long
	mapped   []byte
	geometry backends.Geometry
	sync     bool
	once     sync.Once
	closeErr error
}

var _ backends.ByteDevice = (*Region)(nil)

// Size tells how many bytes a file or a device-dax (/dev/dax0.0) at path has; 0 where a file has
// none yet. Errors: ErrNotPresent, ErrKind, or that of the system.
func Size(path string) (int64, error) { return sizeOf("/sys", path) }

func sizeOf(sys, path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fail(path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return st.Size, nil
	case unix.S_IFCHR:
		b, err := os.ReadFile(fmt.Sprintf("%s/dev/char/%d:%d/size", sys, unix.Major(st.Rdev),
			unix.Minor(st.Rdev)))
		if err == nil {
			return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		}
	}
	return 0, fmt.Errorf("nvram: %s: %w", path, ErrKind)
}

// Open maps the file or the device-dax at path and locks it. A file that is not there is made with
// size bytes, zero and allocated; one that is there keeps its bytes and must have that size, a
// multiple of 4096. A device-dax is mapped as a whole, and is PowerSafe as a file on DAX is.
//
// Errors: ErrAlign for a size that does not fit, ErrLocked, ErrNoSpace, ErrKind, ErrNotPresent when
// the folder is missing, or that of the system.
func Open(path string, size int64) (*Region, error) {
	if size <= 0 || size%page != 0 {
		return nil, fmt.Errorf("nvram: %s: %d bytes: %w", path, size, backends.ErrAlign)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fail(path, err)
	}
	r, err := open(f, path, size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// OpenReading maps what is at path for reading alone, whole, and holds it against those who write:
// a store to Bytes kills the process, and Persist has nothing to do. The mapping is shared, as that
// of a device-dax must be, so it shows what others store.
//
// Errors: ErrLocked, ErrNotPresent also for a file without a byte, ErrKind, or that of the system.
func OpenReading(path string) (*Region, error) {
	size, err := Size(path) // before it is opened: a reader of a pipe would wait for a writer
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, fmt.Errorf("nvram: %s: it is empty: %w", path, backends.ErrNotPresent)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fail(path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fail(path, err), f.Close())
	}
	hold, err := unix.MmapPtr(int(f.Fd()), 0, nil, uintptr(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fail(path, err), f.Close())
	}
	return &Region{
		file: f, mapped: unsafe.Slice((*byte)(hold), size),
		geometry: backends.Geometry{Size: size, MemoryAlign: 1, Path: path, Model: "read-only mapping"},
	}, nil
}

func open(f *os.File, path string, size int64) (*Region, error) {
	fd := int(f.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fail(path, err)
	}
	has, err := Size(path)
	if err != nil {
		return nil, err
	}
	switch {
	case has == 0:
		if err := unix.Fallocate(fd, 0, 0, size); err != nil {
			return nil, errors.Join(fail(path, err), f.Truncate(0))
		}
	case has != size:
		return nil, fmt.Errorf("nvram: %s: has %d bytes, not %d: %w",
			path, has, size, backends.ErrAlign)
	}
	r, lendable := &Region{file: f}, false
	const prot = unix.PROT_READ | unix.PROT_WRITE
	r.mapped, err = unix.Mmap(fd, 0, int(size), prot, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)
	r.sync = err == nil
	if err != nil { // not DAX, or a kernel that does not know the flags
		r.mapped, lendable, err = mapHuge(fd, int(size), prot)
	}
	if err != nil {
		return nil, fail(path, err)
	}
	r.geometry = backends.Geometry{
		Size: size, LogicalBlock: page, AtomicUnit: 8, MemoryAlign: 1,
		Durability: backends.Volatile, Path: path, Model: "mapped file", Lendable: lendable,
	}
	if r.sync {
		r.geometry.Durability, r.geometry.Model = backends.PowerSafe, "DAX mapping"
	}
	return r, nil
}

const hugePage = 2 << 20

// mapHuge maps a file where huge pages can be, and asks for them: the journal is written and read
// by blocks here and there, each the first of its page that the processor looks up. Shared memory
// has none of itself on most systems. It tells whether the kernel gave them; else its pages are
// small.
func mapHuge(fd, size, prot int) (mapped []byte, huge bool, err error) {
	whole := uintptr(size + hugePage)
	hold, err := unix.MmapPtr(-1, 0, nil, whole, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, false, err
	}
	skip := -uintptr(hold) % hugePage
	at := unsafe.Add(hold, skip)
	end := skip + uintptr(size+page-1)/page*page
	_, err = unix.MmapPtr(fd, 0, at, uintptr(size), prot, unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		return nil, false, errors.Join(err, unix.MunmapPtr(hold, whole))
	}
	if skip > 0 {
		err = unix.MunmapPtr(hold, skip)
	}
	err = errors.Join(err, unix.MunmapPtr(unsafe.Add(hold, end), whole-end))
	if err != nil {
		return nil, false, err
	}
	mapped = unsafe.Slice((*byte)(at), size)
	return mapped, unix.Madvise(mapped, unix.MADV_COLLAPSE) == nil, nil
}

// Geometry describes the region. AtomicUnit is 8: an aligned word.
func (r *Region) Geometry() backends.Geometry { return r.geometry }

// Bytes gives the mapping, page-aligned, valid until Close. A use after Close kills the process.
func (r *Region) Bytes() []byte { return r.mapped }

// Persist makes the stores made so far to n bytes from off durable, and orders them before all
// stores that follow. On a Volatile region there is nothing to do: stores are ordered already. A
// range outside the region panics, as an index would.
func (r *Region) Persist(off, n int64) {
	p := r.mapped[off : off+n]
	if !r.sync || n == 0 {
		return
	}
	persist(unsafe.Pointer(unsafe.SliceData(p)), uintptr(n))
}

// Close unmaps the region and gives up its lock. Nobody may use Bytes any more. Closing twice is no
// error.
func (r *Region) Close() error {
	r.once.Do(func() {
		var err error
		if r.sync {
			err = unix.Munmap(r.mapped)
		} else {
			p := unsafe.Pointer(unsafe.SliceData(r.mapped))
			err = unix.MunmapPtr(p, uintptr(len(r.mapped)))
		}
		r.closeErr = errors.Join(err, r.file.Close())
	})
	return r.closeErr
}

func fail(path string, err error) error {
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("nvram: %s: %w: %w", path, backends.ErrLocked, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nvram: %s: %w: %w", path, backends.ErrNotPresent, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("nvram: %s: %w: %w", path, backends.ErrNoSpace, err)
	}
	return fmt.Errorf("nvram: %s: %w", path, err)
}
