//go:build linux

package uring

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func opened(t testing.TB, entries int) *Ring {
	t.Helper()
	r, err := New(entries)
	if errors.Is(err, ErrUnavailable) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// filled gives a file with content that tells every place, and the content.
func filled(t testing.TB, size int) (*os.File, []byte) {
	t.Helper()
	want := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, want
}

// TestConcurrent reads random ranges, with fewer slots than readers and with enough, of a
// registered file and of one that is not.
func TestConcurrent(t *testing.T) {
	f, want := filled(t, 1<<20)
	for _, entries := range []int{1, 4, 128} {
		for _, fixed := range []bool{false, true} {
			r := opened(t, entries)
			if fixed {
				if err := r.Register(int(f.Fd())); err != nil {
					t.Fatal(err)
				}
			}
			var wg sync.WaitGroup
			for w := range 32 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(w), 7))
					buf := make([]byte, 70_000)
					for range 100 {
						off := rnd.IntN(len(want) - len(buf))
						p := buf[:rnd.IntN(len(buf))]
						n, err := r.Read(int(f.Fd()), p, int64(off))
						if err != nil || n != len(p) || !bytes.Equal(p, want[off:off+n]) {
							t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
							return
						}
					}
				})
			}
			wg.Wait()
		}
	}
}

// TestErrors proves what a read answers that cannot be served, and that its slot comes back.
func TestErrors(t *testing.T) {
	f, want := filled(t, 10_000)
	r := opened(t, 1)
	fd := int(f.Fd())
	p := make([]byte, 8192)
	for range 3 {
		if n, err := r.Read(fd, p, 5000); n != 5000 || !errors.Is(err, io.EOF) ||
			!bytes.Equal(p[:n], want[5000:]) {
			t.Errorf("over the end: %d, %v", n, err)
		}
		if n, err := r.Read(fd, p, 10_000); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("behind the end: %d, %v", n, err)
		}
		if n, err := r.Read(fd, nil, 0); n != 0 || err != nil {
			t.Errorf("nothing: %d, %v", n, err)
		}
		if _, err := r.Read(1<<20, p, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("no such descriptor: %v", err)
		}
		if _, err := r.Read(fd, p, -2); !errors.Is(err, unix.EINVAL) {
			t.Errorf("negative offset: %v", err)
		}
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(fd, p, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	for _, n := range []int{0, -1, 5000} {
		if _, err := New(n); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%d entries: %v", n, err)
		}
	}
}

// TestCloseWaits closes while a read is under way that ends only later, from a pipe.
func TestCloseWaits(t *testing.T) {
	r := opened(t, 4)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(unix.Close(fds[0]), unix.Close(fds[1])) }()
	read := make(chan error, 1)
	p := make([]byte, 4)
	go func() {
		_, err := r.Read(fds[0], p, -1)
		read <- err
	}()
	for r.flight.Load() == 0 {
		runtime.Gosched()
	}
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	select {
	case err := <-closed:
		t.Fatalf("closed with a read under way: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	for _, half := range []string{"ab", "cd"} { // a short read, gone on with
		if _, err := unix.Write(fds[1], []byte(half)); err != nil {
			t.Fatal(err)
		}
		for left := 1; left > 0; { // until it was read, so that the next half makes another read
			var err error
			if left, err = unix.IoctlGetInt(fds[0], unix.TIOCINQ); err != nil {
				t.Fatal(err)
			}
			runtime.Gosched()
		}
	}
	if err := errors.Join(<-read, <-closed); err != nil || string(p) != "abcd" {
		t.Errorf("%q, %v", p, err)
	}
}

// TestTakeBack proves that reads which the kernel refuses to take end with its reason, and that the
// ring goes on.
func TestTakeBack(t *testing.T) {
	f, want := filled(t, 4096)
	r := opened(t, 4)
	r.line.Lock()
	r.line.submitting = true // as if someone were
	r.line.Unlock()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := r.Read(int(f.Fd()), make([]byte, 8), 0); !errors.Is(err, unix.ENOMEM) {
				t.Error(err)
			}
		})
	}
	for ended := 0; ended < 3; {
		r.line.Lock()
		ended += int(*r.sq.tail - *r.sq.head)
		r.takeBack(unix.ENOMEM)
		r.line.Unlock()
		runtime.Gosched()
	}
	wg.Wait()
	r.line.submitting = false
	p := make([]byte, 4096)
	if _, err := r.Read(int(f.Fd()), p, 0); err != nil || !bytes.Equal(p, want) {
		t.Error(err)
	}
}

// TestReadDoesNotAllocate gates the path of every read.
func TestReadDoesNotAllocate(t *testing.T) {
	f, _ := filled(t, 4096)
	r := opened(t, 4)
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := r.Read(int(f.Fd()), p, 0); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
