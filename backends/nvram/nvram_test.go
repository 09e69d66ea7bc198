//go:build linux

package nvram

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/backends"
)

const size = 1 << 20

func shm(t testing.TB) string {
	t.Helper()
	//nolint:usetesting // t.TempDir cannot be told to lie on tmpfs
	dir, err := os.MkdirTemp("/dev/shm", "weft-nvram-")
	if err != nil {
		t.Skipf("SKIPPED: no shared memory file system: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "nvram")
}

// TestBytesOutliveTheMapping proves that what was stored is there after Close and Open, that tmpfs
// is said to be Volatile, and that a region is used once at a time.
func TestBytesOutliveTheMapping(t *testing.T) {
	path := shm(t)
	r, err := Open(path, size)
	if err != nil {
		t.Fatal(err)
	}
	g := r.Geometry()
	if g.Durability != backends.Volatile || g.Size != size || len(r.Bytes()) != size {
		t.Errorf("geometry %+v", g)
	}
	if !backends.Aligned(r.Bytes(), backends.Align) {
		t.Error("the mapping is not aligned")
	}
	copy(r.Bytes()[100:], "kept")
	r.Persist(100, 4)
	if _, err := Open(path, size); !errors.Is(err, backends.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if r, err = Open(path, size); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.Bytes()[100:104], []byte("kept")) {
		t.Error("the bytes are gone")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, 2*size); !errors.Is(err, backends.ErrAlign) {
		t.Errorf("another size: %v", err)
	}
}

// TestAnySize proves that a region that is no multiple of a huge page is mapped whole, where one
// begins, once, and not after Close.
func TestAnySize(t *testing.T) {
	for _, n := range []int64{page, hugePage - page, hugePage, 2*hugePage + 3*page} {
		path := shm(t)
		for _, want := range []byte{0, 7} {
			r, err := Open(path, n)
			if err != nil {
				t.Fatal(err)
			}
			b := r.Bytes()
			if int64(len(b)) != n || !backends.Aligned(b, hugePage) || b[0] != want || b[n-1] != want {
				t.Fatalf("%d bytes of %d, %d and %d", len(b), n, b[0], b[n-1])
			}
			b[0], b[n-1] = 7, 7
			if got := mappings(t); got != n {
				t.Errorf("%d bytes of %d are mapped", got, n)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if got := mappings(t); got != 0 {
				t.Errorf("%d bytes of %d are still mapped", got, n)
			}
		}
	}
}

// mappings counts the bytes of regions that this process has mapped.
func mappings(t *testing.T) (n int64) {
	t.Helper()
	all, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		var from, to int64
		if !strings.Contains(line, "weft-nvram-") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		n += to - from
	}
	return n
}

// TestOpenRefuses proves the errors of sizes and places that make no region.
func TestOpenRefuses(t *testing.T) {
	path := shm(t)
	cases := []struct {
		path string
		size int64
		want error
	}{
		{path, 100, backends.ErrAlign},
		{path, -page, backends.ErrAlign},
		{filepath.Join(path, "none"), page, backends.ErrNotPresent},
		{path, 1 << 56, backends.ErrNoSpace},
	}
	for _, c := range cases {
		if _, err := Open(c.path, c.size); !errors.Is(err, c.want) {
			t.Errorf("%s, %d: %v, want %v", c.path, c.size, err, c.want)
		}
	}
}

// TestPersistRunsOnPlainMemory runs the cache line code, which a Volatile region never reaches, at
// odd places. That it makes anything durable only a power cut could show.
func TestPersistRunsOnPlainMemory(t *testing.T) {
	p := backends.AlignedBuffer(8192)
	for _, off := range []int{0, 1, 63, 64, 4095} {
		for _, n := range []uintptr{1, 64, 65, 4096} {
			persist(unsafe.Pointer(&p[off]), n)
		}
	}
}

// BenchmarkStore copies 4 KiB into the region and persists them, as far as it can.
func BenchmarkStore(b *testing.B) {
	r, err := Open(shm(b), 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	p := make([]byte, 4096)
	b.SetBytes(4096)
	i := int64(0)
	for b.Loop() {
		off := i * 4096 % (64 << 20)
		copy(r.Bytes()[off:], p)
		persist(unsafe.Pointer(&r.Bytes()[off]), 4096)
		i++
	}
}

// TestSizeOfADevice proves that the size of a device-dax is what the kernel says, and that nothing
// else but a file is taken: no folder, no other character device, which Open leaves alone too.
func TestSizeOfADevice(t *testing.T) {
	sys := t.TempDir()
	dir := filepath.Join(sys, "dev/char/1:5") // of /dev/zero
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "size"), []byte("2097152\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := sizeOf(sys, "/dev/zero"); err != nil || n != 2<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	for _, path := range []string{"/dev/zero", sys} {
		if _, err := Size(path); !errors.Is(err, ErrKind) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Open("/dev/zero", size); !errors.Is(err, ErrKind) {
		t.Errorf("opened: %v", err)
	}
	if _, err := Size(filepath.Join(sys, "none")); !errors.Is(err, backends.ErrNotPresent) {
		t.Errorf("of nothing: %v", err)
	}
}

// TestReading proves that a reader sees the bytes and changes none, that it stands beside other
// readers and not beside a writer, and that what is no NVRAM is refused, not waited for.
func TestReading(t *testing.T) {
	path := shm(t)
	if _, err := OpenReading(path); !errors.Is(err, backends.ErrNotPresent) {
		t.Errorf("of nothing: %v", err)
	}
	w, err := Open(path, size)
	if err != nil {
		t.Fatal(err)
	}
	copy(w.Bytes()[100:], "kept")
	if _, err := OpenReading(path); !errors.Is(err, backends.ErrLocked) {
		t.Errorf("beside a writer: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var both [2]*Region
	for i := range both {
		if both[i], err = OpenReading(path); err != nil {
			t.Fatal(err)
		}
		if b := both[i].Bytes(); len(b) != size || !bytes.Equal(b[100:104], []byte("kept")) {
			t.Errorf("%d bytes, %q", len(b), b[100:104])
		}
	}
	if _, err := Open(path, size); !errors.Is(err, backends.ErrLocked) {
		t.Errorf("a writer beside readers: %v", err)
	}
	if err := errors.Join(both[0].Close(), both[1].Close()); err != nil {
		t.Fatal(err)
	}
	pipe, empty := path+".pipe", path+".empty"
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]error{
		pipe: ErrKind, "/dev/zero": ErrKind, filepath.Dir(path): ErrKind, empty: backends.ErrNotPresent,
	} {
		if _, err := OpenReading(at); !errors.Is(err, want) {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// TestLendable proves that a mapping is said to be lendable when, and only when, all of its whole
// huge pages are that for the kernel.
func TestLendable(t *testing.T) {
	for _, path := range []string{shm(t), filepath.Join(t.TempDir(), "nvram")} {
		const bytes = 4 * hugePage
		r, err := Open(path, bytes)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		huge := int64(0)
		for _, line := range mappingOf(t, path) {
			var kib int64
			for _, name := range []string{"ShmemPmdMapped:", "FilePmdMapped:"} {
				if _, err := fmt.Sscanf(line, name+" %d kB", &kib); err == nil {
					huge += kib << 10
				}
			}
		}
		if got := r.Geometry().Lendable; got != (huge == bytes) {
			t.Errorf("%s: %d of %d bytes are in huge pages, lendable %v", path, huge, bytes, got)
		}
		t.Logf("%s: %d of %d bytes in huge pages", path, huge, bytes)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// mappingOf gives what the kernel says of the first mapping of a file.
func mappingOf(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.Skip("SKIPPED: this kernel does not tell of which pages a mapping is (no /proc/self/smaps)")
	case err != nil:
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		switch {
		case strings.Contains(line, path):
			lines = append(lines, line)
		case strings.HasPrefix(line, "VmFlags") && len(lines) > 0:
			return lines
		case len(lines) > 0:
			lines = append(lines, line)
		}
	}
	t.Fatalf("%s is not mapped", path)
	return nil
}
