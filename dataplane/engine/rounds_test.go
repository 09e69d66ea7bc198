package engine

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
)

var (
	crashImages = flag.Int64("crash.images", 0,
		"go on, round by round, until all crash tests together opened so many images")
	crashRound = flag.Uint64("crash.round", 0, "the one round to run of each crash test")
)

// images gives how many crash images a round of a crash test makes.
func images() int {
	if testing.Short() {
		return defaultImages / 10
	}
	return defaultImages
}

// crashes is one round of a crash test: its scripts by seeds of the round's own, and images of what
// cuts of them leave. Round 0 is what a usual run runs.
type crashes struct {
	t     *testing.T
	run   *longRun
	round uint64
	seen  map[uint64]any // the images so far, and which cut each was judged for last
	n     int            // how many
	again int            // were judged once more, for another cut

	last    *mem.Device // the image that is being judged, as the cut left it; of a pair both
	other   *mem.Device
	journal func() *mem.Memory // nil: without
}

// seed gives the round's own of a seed.
func (c *crashes) seed(s uint64) uint64 { return s + 1000*c.round }

// need ends round 0 where its script tests too little. Those of other rounds may: there are many,
// and nobody chose their seeds.
func (c *crashes) need(ok bool, format string, args ...any) {
	c.t.Helper()
	if !ok && c.round == 0 {
		c.t.Fatalf(format, args...)
	}
}

// fresh takes note of an image that is about to be opened and judged for a cut, and is to be asked
// before it is. It gives false for one that has the bytes of an earlier one at the same cut. One
// that another cut left, too, is judged by what has to be there at this one, but counted once.
// other, of a pair, and nv may be nil.
func (c *crashes) fresh(cut any, img, other *mem.Device, nv *mem.Memory) bool {
	sum := img.Sum()
	if other != nil {
		sum = sum*31 + other.Sum()
	}
	if nv != nil {
		sum = sum*31 + nv.Sum()
	}
	was, is := c.seen[sum]
	if is && was == cut {
		return false
	}
	c.seen[sum] = cut
	if is {
		c.again++
		c.run.again.Add(1)
	} else {
		c.n++
		c.run.images.Add(1)
	}
	c.last, c.other, c.journal = img.Clone(), nil, nil
	if other != nil {
		c.other = other.Clone()
	}
	return true
}

// keep says how to run a round that failed again, and leaves the image behind.
func (c *crashes) keep() {
	if !c.t.Failed() || c.last == nil {
		return
	}
	test := c.t.Name()
	if long.on() {
		test = filepath.Dir(test) // the round is a subtest
	}
	c.t.Logf("again: make crash TESTS='^%s$$' ROUND=%d (by the same seeds, of a script that is "+
		"scheduled anew)", test, c.round)
	dir, err := os.MkdirTemp("", "weft-crash-") // not of the test: it is to be there afterwards
	if err != nil {
		c.t.Log(err)
		return
	}
	for name, dev := range map[string]*mem.Device{"device": c.last, "other": c.other} {
		if dev != nil {
			err = errors.Join(err, save(dev, filepath.Join(dir, name)))
		}
	}
	if c.journal != nil {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "journal"), c.journal().Bytes(), 0o600))
	}
	c.t.Logf("the last image, as the cut left it, is in %s: %v", dir, err)
}

// save writes a device to a sparse file.
func save(dev *mem.Device, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	size, zero := dev.Geometry().Size, make([]byte, 4096)
	for off, p := int64(0), backends.AlignedBuffer(len(zero)); off < size; off += int64(len(p)) {
		if err = dev.ReadAt(p, off); err != nil {
			break
		}
		if bytes.Equal(p, zero) {
			continue
		}
		if _, err = f.WriteAt(p, off); err != nil {
			break
		}
	}
	return errors.Join(err, f.Truncate(size), f.Close())
}

// long is a long run: rounds of all crash tests beside each other, one for each processor, always
// of the test that has opened the fewest images so far.
var long longRun

type longRun struct {
	goal          int64 // images; 0: this is no long run
	images, again atomic.Int64
	tests         atomic.Int64
	begun         time.Time

	mu struct {
		sync.Mutex
		wake    sync.Cond
		free    int // processors
		waiting map[*crashTest]bool
		told    time.Time
	}
}

// crashTest is one test of a long run.
type crashTest struct {
	rounds uint64
	images int
}

// on tells whether this is a long run.
func (l *longRun) on() bool { return l.goal > 0 }

// enough tells whether the run is over.
func (l *longRun) enough() bool { return l.images.Load() >= l.goal }

// start begins a run with so many processors.
func (l *longRun) start(goal int64, processors int) {
	l.goal, l.begun = goal, time.Now()
	l.mu.wake.L = &l.mu
	l.mu.free, l.mu.waiting, l.mu.told = processors, map[*crashTest]bool{}, l.begun
}

// enter waits for the turn of a test; false when it is over. Each has one round at least.
func (l *longRun) enter(x *crashTest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.waiting[x] = true
	for l.mu.free == 0 || !l.least(x) {
		if l.enough() && x.rounds > 0 {
			break
		}
		l.mu.wake.Wait()
	}
	delete(l.mu.waiting, x)
	l.mu.wake.Broadcast() // another may be the least now
	if l.enough() && x.rounds > 0 {
		return false
	}
	l.mu.free--
	return true
}

// least tells whether no test that waits opened fewer images.
func (l *longRun) least(x *crashTest) bool {
	for o := range l.mu.waiting {
		if o.images < x.images {
			return false
		}
	}
	return true
}

// leave ends a round, and says now and then how far the run is.
func (l *longRun) leave(x *crashTest, c *crashes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.rounds++
	x.images += c.n
	l.mu.free++
	l.mu.wake.Broadcast()
	if time.Since(l.mu.told) < 30*time.Second {
		return
	}
	l.mu.told = time.Now()
	n := l.images.Load()
	rate := float64(n) / time.Since(l.begun).Seconds()
	left := time.Duration(float64(max(l.goal-n, 0)) / rate * float64(time.Second))
	fmt.Printf("%d of %d crash images, %.0f a second, %v to go\n", n, l.goal, rate,
		left.Round(time.Second))
}

// end says what was done, in one line.
func (l *longRun) end() {
	took := time.Since(l.begun)
	n := l.images.Load()
	fmt.Printf("%d crash images in %d tests in %v, %.0f a second; %d of them were judged for several "+
		"cuts\n", n, l.tests.Load(), took.Round(time.Second), float64(n)/took.Seconds(), l.again.Load())
}

// rounds runs a crash test: one round, or as many as a long run gives it.
func rounds(t *testing.T, do func(c *crashes)) {
	t.Helper()
	if !long.on() {
		c := &crashes{round: *crashRound}
		c.do(t, do)
		t.Logf("%d crash images, %d of them judged for several cuts", c.n, c.again)
		return
	}
	t.Parallel()
	long.tests.Add(1)
	for x := (&crashTest{}); !t.Failed() && long.enter(x); {
		c := &crashes{round: x.rounds}
		t.Run(strconv.FormatUint(c.round, 10), func(t *testing.T) { c.do(t, do) })
		long.leave(x, c)
	}
}

// once gives what counts the images of a test that is no crash test.
func once(t *testing.T) *crashes {
	return &crashes{t: t, run: &longRun{}, seen: map[uint64]any{}}
}

func (c *crashes) do(t *testing.T, do func(c *crashes)) {
	c.t, c.run, c.seen = t, &long, map[uint64]any{}
	t.Cleanup(c.keep)
	do(c)
}

// TestCrashesCountOnce proves that an image is counted once, whatever made it, and judged once for
// each cut that leaves it: what a long run says it did, it did.
func TestCrashesCountOnce(t *testing.T) {
	dev := recorded(t, smallSize, 64<<10, 1)
	nv := newMemory(t, dev, 8)
	for i := range int64(2) {
		must(t, dev.WriteAt(fill(1, 5), 1<<20+i*4096, false))
	}
	c := once(t)
	cases := []struct {
		cut   int
		all   bool
		other *mem.Device
		store byte
		fresh bool
		n     int
	}{
		{cut: 0, fresh: true, n: 1},
		{cut: 0, n: 1},
		{cut: 1, fresh: true, n: 1}, // the write is lost: the same bytes
		{cut: 1, n: 1},
		{cut: 0, all: true, fresh: true, n: 2},
		{cut: 1, all: true, fresh: true, n: 3},
		{cut: 2, all: true, fresh: true, n: 3}, // nothing is under way any more
		{cut: 2, all: true, other: dev, fresh: true, n: 4},
		{cut: 2, all: true, store: 1, fresh: true, n: 5},
		{cut: 2, all: true, store: 2, fresh: true, n: 6},
		{cut: 2, all: true, store: 2, n: 6},
	}
	for i, x := range cases {
		choose := mem.None
		if x.all {
			choose = mem.All
		}
		img, with := dev.CrashImage(x.cut, choose), nv
		if nv.Bytes()[0] = x.store; x.store == 0 {
			with = nil
		}
		if fresh := c.fresh(x.cut, img, x.other, with); fresh != x.fresh || c.n != x.n {
			t.Errorf("case %d: fresh %v, %d counted", i, fresh, c.n)
		}
	}
	if n := c.run.images.Load(); n != 6 || c.again != 2 {
		t.Errorf("%d images, %d judged again", n, c.again)
	}
}

// TestLongRunIsShared proves that a long run lets work as many tests as there are processors, that
// each goes on until all together have opened enough, and that none opens many more than another.
func TestLongRunIsShared(t *testing.T) {
	const processors, goal = 3, 4000
	l := &longRun{}
	l.start(goal, processors)
	tests := make([]crashTest, 9)
	busy, most := atomic.Int64{}, atomic.Int64{}
	var wg, all sync.WaitGroup
	all.Add(len(tests))
	for i := range tests {
		x := &tests[i]
		wg.Go(func() {
			all.Done()
			all.Wait()
			for l.enter(x) {
				if n := busy.Add(1); n > most.Load() {
					most.Store(n)
				}
				runtime.Gosched()
				l.images.Add(int64(5 + i))
				busy.Add(-1)
				l.leave(x, &crashes{n: 5 + i})
			}
		})
	}
	wg.Wait()
	sum, least, greatest := 0, goal, 0
	for i := range tests {
		sum += tests[i].images
		least, greatest = min(least, tests[i].images), max(greatest, tests[i].images)
	}
	if sum < goal || sum > goal+processors*13 || int64(sum) != l.images.Load() {
		t.Errorf("%d images of %d", sum, goal)
	}
	if greatest-least > 3*13*processors {
		t.Errorf("a test opened %d images, another %d", least, greatest)
	}
	if most.Load() > processors {
		t.Errorf("%d worked at once", most.Load())
	}
	late := &crashTest{}
	if !l.enter(late) {
		t.Error("a test had no round")
	}
	l.leave(late, &crashes{})
	if l.enter(late) {
		t.Error("it goes on for ever")
	}
}
