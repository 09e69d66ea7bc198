//go:build linux

package direct

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"weft/backends"
	"weft/backends/devicetest"
)

const size = 4 << 20

// TestFile runs the suite on a file of the disk below the temporary folder.
func TestFile(t *testing.T) {
	devicetest.Run(t, func(t *testing.T) backends.Device { return created(t, t.TempDir(), Options{}) })
}

// TestTmpfs runs the suite on a file system that would take any alignment.
func TestTmpfs(t *testing.T) {
	dir := shm(t)
	devicetest.Run(t, func(t *testing.T) backends.Device {
		d := created(t, filepath.Join(dir, t.Name()), Options{})
		if g := d.Geometry(); g.Durability != backends.Volatile {
			t.Errorf("tmpfs is %v", g.Durability)
		}
		return d
	})
}

// TestLoop runs the suite on a block device with sectors of 512 and of 4096 bytes. It needs root
// and a free loop device.
func TestLoop(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		t.Run(sector, func(t *testing.T) {
			path := loop(t, sector)
			devicetest.Run(t, func(t *testing.T) backends.Device {
				d, err := Open(path, Options{})
				if err != nil {
					t.Fatal(err)
				}
				if g := d.Geometry(); g.Size != size || g.Durability == backends.PowerSafe {
					t.Errorf("geometry %+v", g)
				}
				return d
			})
			lockedTwice(t, path)
		})
	}
}

func created(t testing.TB, dir string, opt Options) *Device {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := Create(filepath.Join(dir, "disk"), size, opt)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func shm(t testing.TB) string {
	t.Helper()
	//nolint:usetesting // t.TempDir cannot be told to lie on tmpfs
	dir, err := os.MkdirTemp("/dev/shm", "weft-direct-")
	if err != nil {
		t.Skipf("SKIPPED: no shared memory file system: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// loop makes a loop device over a file of the temporary folder.
func loop(t testing.TB, sector string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", sector, file).
		CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: the block device path is not tested: losetup: %v: %s", err, out)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", path).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return path
}

// lockedTwice proves that a second Open is refused while the first lives.
func lockedTwice(t *testing.T, path string) {
	t.Helper()
	d, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, backends.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(path, Options{}); err != nil {
		t.Fatalf("open after close: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLock proves that the lock on a file lasts from Create to Close, also against another process.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	d := created(t, dir, Options{})
	path := filepath.Join(dir, "disk")
	if _, err := Open(path, Options{}); !errors.Is(err, backends.ErrLocked) {
		t.Errorf("open of a created device: %v", err)
	}
	if _, err := exec.LookPath("flock"); err != nil {
		t.Log("SKIPPED: another process: no flock command")
	} else if exec.Command("flock", "-n", path, "true").Run() == nil {
		t.Error("another process took the lock")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	lockedTwice(t, path)
}

// TestCreate proves what Create refuses, that it reports progress, and that it leaves nothing
// behind when it is stopped or there is no room.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	var last, total int64
	d, err := Create(path, size, Options{Progress: func(done, all int64) error {
		last, total = done, all
		return nil
	}})
	if err != nil || last != size || total != size {
		t.Fatalf("%v, progress %d of %d", err, last, total)
	}
	if s := d.Stats(); s.Writes != 0 {
		t.Errorf("the making is counted: %+v", s)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, size, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an old file: %v", err)
	}
	stop := errors.New("stop")
	cases := []struct {
		size int64
		opt  Options
		want error
	}{
		{size, Options{Progress: func(int64, int64) error { return stop }}, stop},
		{1 << 60, Options{}, backends.ErrNoSpace},
		{100, Options{}, backends.ErrAlign},
		{512 * 3, Options{LogicalBlock: 4096}, backends.ErrAlign},
		{size, Options{LogicalBlock: 1024}, backends.ErrAlign},
	}
	for _, c := range cases {
		path := filepath.Join(dir, "new")
		if _, err := Create(path, c.size, c.opt); !errors.Is(err, c.want) {
			t.Errorf("%d: %v, want %v", c.size, err, c.want)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d: something is left: %v", c.size, err)
		}
	}
}

// TestOpenRefuses proves the errors of what is no device.
func TestOpenRefuses(t *testing.T) {
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none"), "/dev/null"} {
		if _, err := Open(path, Options{}); !errors.Is(err, backends.ErrNotPresent) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestTruncatedBelow proves that a file cut off below us reads as an error and not as old bytes,
// and not as one place of it that is bad.
func TestTruncatedBelow(t *testing.T) {
	dir := t.TempDir()
	d := created(t, dir, Options{})
	defer func() { _ = d.Close() }()
	if err := os.Truncate(filepath.Join(dir, "disk"), size/2); err != nil {
		t.Fatal(err)
	}
	p := backends.AlignedBuffer(8192)
	for _, off := range []int64{size / 2, size/2 - 4096} {
		if err := d.ReadAt(p, off); !errors.Is(err, errShort) || errors.Is(err, backends.ErrMedia) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
}

// TestFallbackWithoutDSYNC proves that FUA still flushes where the flag is refused.
func TestFallbackWithoutDSYNC(t *testing.T) {
	d := created(t, t.TempDir(), Options{})
	defer func() { _ = d.Close() }()
	d.noDSYNC.Store(true)
	p := backends.AlignedBuffer(4096)
	p[0] = 1
	if err := d.WriteAt(p, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(p, 0); err != nil || p[0] != 1 {
		t.Errorf("%v", err)
	}
}

// TestOverrides proves that the options count above what is probed.
func TestOverrides(t *testing.T) {
	yes, safe := true, backends.PowerSafe
	d := created(t, t.TempDir(), Options{
		Rotational: &yes, Durability: &safe, NoDiscard: true, LogicalBlock: 4096,
	})
	defer func() { _ = d.Close() }()
	g := d.Geometry()
	if !g.Rotational || g.Durability != backends.PowerSafe || g.CanDiscard || g.LogicalBlock != 4096 {
		t.Errorf("%+v", g)
	}
	if err := d.Discard(t.Context(), 0, 4096); err != nil {
		t.Errorf("discard without the ability: %v", err)
	}
}

// TestProbe reads a made-up /sys: a partition of a rotational disk, an NVMe disk with and without a
// volatile cache, and a disk in RAM; and disks that say they turn, of which those of hypervisors
// are not believed, nor what is made of such alone.
func TestProbe(t *testing.T) {
	sys := t.TempDir()
	put := func(name, value string) {
		t.Helper()
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(number, name, rotational, cache, discard string) {
		t.Helper()
		dir := "devices/" + name
		put(dir+"/queue/rotational", rotational)
		put(dir+"/queue/write_cache", cache)
		put(dir+"/queue/discard_max_bytes", discard)
		put(dir+"/device/model", "M "+name)
		put(dir+"/device/serial", "S "+name)
		if err := os.MkdirAll(filepath.Join(sys, "dev/block"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../"+dir, filepath.Join(sys, "dev/block", number)); err != nil {
			t.Fatal(err)
		}
	}
	disk("8:0", "sda", "1", "write back", "0")
	disk("259:0", "nvme0n1", "0", "write through", "4096")
	disk("252:0", "zram0", "0", "write through", "4096")
	disk("254:0", "vda", "1", "write back", "0")
	disk("8:16", "sdb", "1", "write back", "0")
	put("devices/sdb/device/vendor", "VMware")
	disk("8:32", "sdc", "1", "write back", "0")
	disk("253:0", "dm-0", "1", "write back", "0")
	disk("253:1", "dm-1", "1", "write back", "0")
	disk("253:2", "md0", "1", "write back", "0")
	put("devices/nvme0n1/queue/atomic_write_unit_max_bytes", "16384")
	put("devices/vda/vda1/partition", "1")
	for _, made := range []struct{ of, part string }{
		{"dm-0", "vda/vda1"}, {"dm-0", "sdb"}, {"dm-1", "sdc"}, {"md0", "sdb"}, {"md0", "sdc"},
	} {
		dir := filepath.Join(sys, "devices", made.of, "slaves")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, filepath.Base(made.part))
		if err := os.Symlink("../../"+made.part, link); err != nil {
			t.Fatal(err)
		}
	}
	put("devices/sda/sda1/partition", "1")
	if err := os.Symlink("../../devices/sda/sda1", sys+"/dev/block/8:1"); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		major, minor uint32
		mode         uint32
		want         Media
		durability   backends.Durability
	}{
		{8, 1, unix.S_IFBLK, Media{
			Disk: "sda", Partition: "sda1", Rotational: true, Model: "M sda", Serial: "S sda",
			WriteCache: true,
		}, backends.NeedsFlush},
		{259, 0, unix.S_IFBLK, Media{
			Disk: "nvme0n1", NVMe: true, Model: "M nvme0n1", Serial: "S nvme0n1", Discard: true,
			Atomic: 16384,
		}, backends.PowerSafe},
		{259, 0, unix.S_IFREG, Media{
			Disk: "nvme0n1", NVMe: true, Model: "M nvme0n1", Serial: "S nvme0n1", Discard: true,
			File: true, Atomic: 16384,
		}, backends.NeedsFlush},
		{252, 0, unix.S_IFBLK, Media{
			Disk: "zram0", Model: "M zram0", Serial: "S zram0", Discard: true, Memory: true,
		}, backends.Volatile},
		{1, 1, unix.S_IFBLK, Media{}, backends.NeedsFlush},
	}
	for _, c := range cases {
		st := unix.Stat_t{Mode: c.mode, Rdev: unix.Mkdev(c.major, c.minor)}
		if c.mode == unix.S_IFREG {
			st.Dev = st.Rdev
		}
		got := probe(sys, sys+"/none", &st)
		if got != c.want || got.Durability() != c.durability {
			t.Errorf("%d:%d: %+v %v", c.major, c.minor, got, got.Durability())
		}
	}
	for minor, turns := range map[[2]uint32]bool{
		{8, 1}: true, {259, 0}: false, {254, 0}: false, {8, 16}: false, {8, 32}: true,
		{253, 0}: false, {253, 1}: true, {253, 2}: true,
	} {
		st := unix.Stat_t{Mode: unix.S_IFBLK, Rdev: unix.Mkdev(minor[0], minor[1])}
		if m := probe(sys, sys+"/none", &st); m.Turns() != turns {
			t.Errorf("%v: turns %t: %+v", minor, m.Turns(), m)
		}
	}
	if _, err := Probe(sys + "/none"); !errors.Is(err, backends.ErrNotPresent) {
		t.Errorf("probe of nothing: %v", err)
	}
}

// TestWriteDoesNotAllocate gates the path of every write and read.
func TestWriteDoesNotAllocate(t *testing.T) {
	d := created(t, t.TempDir(), Options{})
	defer func() { _ = d.Close() }()
	p := backends.AlignedBuffer(4096)
	for _, fua := range []bool{false, true} {
		if n := testing.AllocsPerRun(20, func() {
			if err := errors.Join(d.WriteAt(p, 0, fua), d.ReadAt(p, 0)); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("fua %v: %v allocations", fua, n)
		}
	}
}

// BenchmarkDurableWrite writes 4 KiB with FUA, each place once, on a file that was only allocated
// and on one whose zeros were written: the reason for what Create does.
func BenchmarkDurableWrite(b *testing.B) {
	for _, written := range []bool{false, true} {
		name := map[bool]string{false: "allocated", true: "written"}[written]
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "disk")
			const size = 256 << 20
			if written {
				d, err := Create(path, size, Options{})
				if err != nil {
					b.Fatal(err)
				}
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
			} else {
				f, err := os.Create(path)
				if err != nil {
					b.Fatal(err)
				}
				err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Sync(), f.Close())
				if err != nil {
					b.Fatal(err)
				}
			}
			d, err := Open(path, Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			p := backends.AlignedBuffer(4096)
			p[0] = 1
			i := int64(0)
			for b.Loop() {
				if err := d.WriteAt(p, i*7919%(size/4096)*4096, true); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// TestCloseWaits closes while I/O is under way, and proves that each call ends well or with
// ErrClosed: none meets a descriptor that is gone or someone else's.
func TestCloseWaits(t *testing.T) {
	d := created(t, t.TempDir(), Options{})
	var wg sync.WaitGroup
	begun := make(chan struct{}, 8)
	for w := range 8 {
		wg.Go(func() {
			p := backends.AlignedBuffer(4096)
			for i := 0; ; i++ {
				err := errors.Join(d.WriteAt(p, int64(w)*4096, i%2 == 0), d.ReadAt(p, int64(w)*4096))
				if i == 0 {
					begun <- struct{}{}
				}
				if err == nil {
					continue
				}
				if !errors.Is(err, backends.ErrClosed) || errors.Is(err, backends.ErrMedia) {
					t.Errorf("during Close: %v", err)
				}
				return
			}
		})
	}
	for range 8 {
		<-begun
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestSentinels proves what system errors mean: a place that the device cannot read is one of it, a
// device that did not answer is not.
func TestSentinels(t *testing.T) {
	for err, want := range map[error]error{
		unix.EIO: backends.ErrMedia, unix.ENODATA: backends.ErrMedia, unix.EILSEQ: backends.ErrMedia,
		unix.EREMOTEIO: backends.ErrMedia, unix.ETIMEDOUT: nil, unix.ENOLINK: nil, unix.EBADE: nil,
		unix.ENOMEM: nil, errShort: nil, unix.ENODEV: backends.ErrNotPresent,
		unix.ENXIO: backends.ErrNotPresent, unix.ENOSPC: backends.ErrNoSpace,
	} {
		got := fail("read", "x", err)
		if !errors.Is(got, err) || want != nil && !errors.Is(got, want) ||
			want == nil && errors.Is(got, backends.ErrMedia) {
			t.Errorf("%v is %v", err, got)
		}
	}
}
