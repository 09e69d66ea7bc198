//go:build linux

package uring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// asked is a started read that tells the test of its end.
type asked struct {
	Request
	ends chan *asked
	err  error
	told int
}

// ReadDone implements Done.
func (a *asked) ReadDone(_ *Request, err error) {
	a.err = err
	a.told++
	a.ends <- a
}

// TestStarted keeps many started reads under way from several goroutines beside blocking ones, in
// batches of all sizes, with fewer slots than reads and with enough, and looks at every byte.
func TestStarted(t *testing.T) {
	f, want := filled(t, 1<<20)
	for _, entries := range []int{1, 8, 128} {
		r := opened(t, entries)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 11))
				ends, buf := make(chan *asked, 32), make([]byte, 8192)
				for range 20 {
					n := 1 + rnd.IntN(cap(ends))
					for i := range n {
						off := rnd.IntN(len(want) - 16384)
						a := &asked{ends: ends}
						a.FD, a.P, a.Off, a.To = int(f.Fd()), make([]byte, 1+rnd.IntN(16384)), int64(off), a
						if err := r.Start(&a.Request, i < n-1 || w%2 == 0); err != nil {
							t.Error(err)
							return
						}
					}
					r.Kick()
					if k, err := r.Read(int(f.Fd()), buf, 0); k != len(buf) || err != nil {
						t.Errorf("beside them: %d, %v", k, err)
					}
					for range n {
						a := <-ends
						if a.err != nil || a.told != 1 || !bytes.Equal(a.P, want[a.Off:][:len(a.P)]) {
							t.Errorf("%d bytes at %d: %v, told %d times", len(a.P), a.Off, a.err, a.told)
						}
					}
				}
			})
		}
		wg.Wait()
	}
}

// pipe gives the ends of a pipe: reads of it end when the test writes.
func pipe(t testing.TB) (from, to int) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(unix.Close(fds[0]), unix.Close(fds[1])) })
	return fds[0], fds[1]
}

// starting starts reads of a pipe from where a read of its own ends, and notes with which of them
// those before were handed over.
type starting struct {
	asked
	r      *Ring
	reads  []*asked
	handed []int
	begun  chan struct{} // closed when its own read is counted and nobody submits
}

// ReadDone implements Done.
func (s *starting) ReadDone(q *Request, err error) {
	<-s.begun
	for i, a := range s.reads {
		if !s.r.TryStart(&a.Request) {
			break
		}
		if *s.r.sq.tail == *s.r.sq.head {
			s.handed = append(s.handed, i+1)
		}
	}
	s.asked.ReadDone(q, err)
}

// TestHandedOverInDoubles proves that reads which are started from where another ends go to the
// kernel as soon as they are as many as it has, and no sooner.
func TestHandedOverInDoubles(t *testing.T) {
	f, _ := filled(t, 512)
	r := opened(t, 64)
	from, to := pipe(t)
	ends := make(chan *asked, 32)
	for range 2 {
		s := &starting{r: r, begun: make(chan struct{})}
		s.FD, s.P, s.To, s.ends = int(f.Fd()), make([]byte, 512), s, make(chan *asked, 1)
		for range 32 {
			a := &asked{ends: ends}
			a.FD, a.P, a.Off, a.To = from, make([]byte, 1), -1, a
			s.reads = append(s.reads, a)
		}
		if err := r.Start(&s.Request, false); err != nil {
			t.Fatal(err)
		}
		close(s.begun)
		<-s.ends
		if want := []int{1, 2, 4, 8, 16, 32}; !slices.Equal(s.handed, want) {
			t.Errorf("handed over with read %v, not %v", s.handed, want)
		}
		if _, err := unix.Write(to, make([]byte, 32)); err != nil {
			t.Fatal(err)
		}
		for range 32 {
			if a := <-ends; a.err != nil {
				t.Error(a.err)
			}
		}
	}
}

// waiting starts n reads that end when the test writes to the pipe, and waits until the reaper
// sleeps.
func waiting(t testing.TB, r *Ring, n int) (ends chan *asked, to int) {
	t.Helper()
	from, to := pipe(t)
	ends = make(chan *asked, n)
	for range n {
		a := &asked{ends: ends}
		a.FD, a.P, a.Off, a.To = from, make([]byte, 1), -1, a
		if err := r.Start(&a.Request, false); err != nil {
			t.Fatal(err)
		}
	}
	for r.awake.Load() {
		runtime.Gosched()
	}
	return ends, to
}

// follower is a read that starts the next from its end, n in all.
type follower struct {
	Request
	r    *Ring
	rnd  *rand.Rand
	want []byte
	n    int
	end  chan error
}

// ReadDone implements Done.
func (f *follower) ReadDone(_ *Request, err error) {
	if err == nil && !bytes.Equal(f.P, f.want[f.Off:][:len(f.P)]) {
		err = fmt.Errorf("other bytes at %d", f.Off)
	}
	f.n--
	if err != nil || f.n == 0 {
		f.end <- err
		return
	}
	clear(f.P)
	if f.Off = int64(f.rnd.IntN(len(f.want) - len(f.P))); !f.r.TryStart(&f.Request) {
		f.end <- errors.New("a slot that was free is not")
	}
}

// TestFollowing lets rows of reads follow one another from their ends, without a Kick, beside reads
// that do not end, so that the kernel is never dry and only the reaper can hand the next one over.
func TestFollowing(t *testing.T) {
	f, want := filled(t, 1<<20)
	r := opened(t, 16)
	ends, to := waiting(t, r, 8)
	rows := make([]*follower, 4)
	for i := range rows {
		rows[i] = &follower{
			r: r, want: want, n: 500, end: make(chan error, 1), rnd: rand.New(rand.NewPCG(uint64(i), 3)),
		}
		rows[i].FD, rows[i].P, rows[i].To = int(f.Fd()), make([]byte, 4096), rows[i]
		if err := r.Start(&rows[i].Request, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range rows {
		if err := <-row.end; err != nil {
			t.Error(err)
		}
	}
	if _, err := unix.Write(to, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		<-ends
	}
}

// TestTryStart proves that TryStart refuses what it would have to wait for, and that what it starts
// while the reaper sleeps is handed over there and then.
func TestTryStart(t *testing.T) {
	f, want := filled(t, 4096)
	r := opened(t, 8)
	ends, to := waiting(t, r, 7)
	a := &asked{ends: make(chan *asked, 1)}
	a.FD, a.P, a.To = int(f.Fd()), make([]byte, 4096), a
	if !r.TryStart(&a.Request) {
		t.Fatal("refused with a slot free")
	}
	if <-a.ends; a.err != nil || !bytes.Equal(a.P, want) {
		t.Errorf("%v, or other bytes", a.err)
	}
	more, to2 := waiting(t, r, 1)
	if r.TryStart(&a.Request) {
		t.Error("started without a slot")
	}
	for to, n := range map[int]int{to: 7, to2: 1} {
		if _, err := unix.Write(to, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	for range 7 {
		<-ends
	}
	<-more
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if r.TryStart(&a.Request) {
		t.Error("started after Close")
	}
}

// TestStartedErrors proves what a started read is told that cannot be served, and that its slot
// comes back.
func TestStartedErrors(t *testing.T) {
	f, want := filled(t, 10_000)
	r := opened(t, 1)
	start := func(fd int, off int64) *asked {
		a := &asked{ends: make(chan *asked, 1)}
		a.FD, a.P, a.Off, a.To = fd, make([]byte, 8192), off, a
		if err := r.Start(&a.Request, false); err != nil {
			t.Fatal(err)
		}
		return <-a.ends
	}
	for range 3 {
		if a := start(int(f.Fd()), 5000); !errors.Is(a.err, io.EOF) ||
			!bytes.Equal(a.P[:5000], want[5000:]) {
			t.Errorf("over the end: %v", a.err)
		}
		if a := start(int(f.Fd()), 10_000); !errors.Is(a.err, io.EOF) {
			t.Errorf("behind the end: %v", a.err)
		}
		if a := start(1<<20, 0); !errors.Is(a.err, unix.EBADF) {
			t.Errorf("no such descriptor: %v", a.err)
		}
	}
	kept := &asked{ends: make(chan *asked, 1)}
	kept.FD, kept.P, kept.To = int(f.Fd()), make([]byte, 512), kept
	if err := r.Start(&kept.Request, true); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if a := <-kept.ends; a.err != nil {
		t.Errorf("kept back when the ring was closed: %v", a.err)
	}
	if err := r.Start(&kept.Request, false); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
