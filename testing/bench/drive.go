package main

import (
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"weft/backends"
	"weft/domain"
)

// disk is what the driver needs of a disk.
type disk interface {
	Info() domain.DiskInfo
	Submit(io *domain.IO)
	Kick()
}

// driver keeps a number of requests under way on a disk, as a front end does: one goroutine
// submits, completions come back through a channel that has room for all of them. Reads at depth
// for a time follow one another at their ends instead: it is a domain.Feeder, as a front end with a
// queue.
type driver struct {
	disk disk
	load load
	size int64
	free chan *slot
	next int64        // offset of the next sequential request
	pick func() int64 // block of a random request; nil: all alike
	rng  *mathrand.Rand
	hist histogram
	err  error
	// epoch is what times count from: to ask for those alone takes half of what time.Now takes.
	epoch time.Time

	queue struct {
		sync.Mutex // of what is above, while reads follow one another
		until      time.Duration
		ctx        context.Context //nolint:containedctx // of the run
	}
}

// slot is one place in the queue.
type slot struct {
	io           domain.IO
	began, ended time.Duration // of the driver; began is 0 where nothing is to be counted
	free         chan<- *slot
	driver       *driver
}

// Complete implements domain.Completer.
func (s *slot) Complete(*domain.IO) {
	s.ended = s.driver.now()
	s.free <- s
}

// follower is a slot whose next read follows the one before. It implements domain.Feeder.
type follower slot

// Complete implements domain.Completer.
func (s *follower) Complete(*domain.IO) { s.ended = s.driver.now() }

// Next implements domain.Feeder.
func (s *follower) Next() *domain.IO {
	v := s.driver
	v.queue.Lock()
	defer v.queue.Unlock()
	v.note((*slot)(s))
	if v.err != nil || v.queue.ctx.Err() != nil || s.ended >= v.queue.until {
		s.free <- (*slot)(s)
		return nil
	}
	s.io.Off, s.began = v.offset(), s.ended
	return &s.io
}

// void is a disk of which every request is done at once.
type void domain.DiskInfo

func (v void) Info() domain.DiskInfo { return domain.DiskInfo(v) }

func (void) Submit(io *domain.IO) {
	io.To.Complete(io)
	f, feeds := io.To.(domain.Feeder)
	for feeds && f.Next() != nil {
		f.Complete(io)
	}
}

func (void) Kick() {}

// driverAlone gives what a request takes of the driver itself, in us of CPU, on a disk of that
// shape. Nothing else may be under way in this process.
func driverAlone(ctx context.Context, l load, d domain.DiskInfo) (float64, error) {
	const span = 500 * time.Millisecond
	v := newDriver(void(d), l)
	began := ownCPU()
	if _, err := v.run(ctx, span); err != nil {
		return 0, err
	}
	return float64((ownCPU() - began).Nanoseconds()) / 1e3 / float64(v.hist.total), nil
}

func newDriver(d disk, l load) *driver {
	v := &driver{
		disk: d, load: l, size: int64(d.Info().Size), free: make(chan *slot, l.Depth),
		rng:   mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64())),
		epoch: time.Now(),
	}
	for range l.Depth {
		s := &slot{free: v.free, driver: v}
		s.io.Op, s.io.Len, s.io.To = domain.OpRead, int64(l.Block), s
		s.io.Buf = backends.AlignedBuffer(l.Block)
		if l.writes() {
			s.io.Op = domain.OpWrite
			_, _ = rand.Read(s.io.Buf) // never fails
		}
		v.free <- s
	}
	return v
}

// run submits until the time is over, or with none given until the whole disk was passed once, and
// waits for what is under way. It gives the time taken, and the first error of a request. It may be
// called again, and counts on.
func (v *driver) run(ctx context.Context, d time.Duration) (time.Duration, error) {
	begin := v.now()
	if d > 0 && !v.load.writes() && v.load.Depth > 1 {
		v.follow(ctx, begin+d)
		err := v.finish(ctx)
		return v.now() - begin, err
	}
	total := v.size / int64(v.load.Block)
	for n := int64(0); v.err == nil && ctx.Err() == nil; n++ {
		if d == 0 && n == total {
			break
		}
		s := <-v.free
		now := v.now()
		v.note(s)
		if d > 0 && now-begin >= d {
			v.free <- s
			break
		}
		s.io.Off, s.began = v.offset(), now
		s.io.More = len(v.free) > 0
		v.disk.Submit(&s.io)
	}
	err := v.finish(ctx)
	return v.now() - begin, err
}

// now gives the time since the driver was made: more than nothing.
func (v *driver) now() time.Duration { return time.Since(v.epoch) + 1 }

// follow begins as many reads as there are slots; each is followed by the next until the time is
// over.
func (v *driver) follow(ctx context.Context, until time.Duration) {
	v.queue.until, v.queue.ctx = until, ctx
	for range v.load.Depth {
		s := <-v.free
		v.queue.Lock()
		v.note(s)
		s.io.To, s.io.Gather = (*follower)(s), true
		s.io.Off, s.began = v.offset(), v.now()
		v.queue.Unlock()
		v.disk.Submit(&s.io)
	}
	v.disk.Kick()
}

// finish waits for what is under way and gives the first error.
func (v *driver) finish(ctx context.Context) error {
	ended := make([]*slot, v.load.Depth)
	for i := range ended {
		ended[i] = <-v.free
		v.note(ended[i])
	}
	for _, s := range ended {
		v.free <- s
	}
	if v.err == nil {
		v.err = ctx.Err()
	}
	return v.err
}

// note counts a request that came back. A slot that was never used, or was counted, has no start.
func (v *driver) note(s *slot) {
	if s.began == 0 {
		return
	}
	v.hist.add(s.ended - s.began)
	s.began = 0
	if s.io.Err != nil && v.err == nil {
		v.err = s.io.Err
	}
}

func (v *driver) offset() int64 {
	block := int64(v.load.Block)
	if v.pick != nil {
		return v.pick() * block
	}
	if v.load.random() {
		return v.rng.Int64N(v.size/block) * block
	}
	off := v.next
	if v.next += block; v.next+block > v.size {
		v.next = 0
	}
	return off
}

// drive runs a load on a disk. CPU is left to the caller.
func drive(ctx context.Context, d disk, l load, t time.Duration) (sample, error) {
	v := newDriver(d, l)
	took, err := v.run(ctx, t)
	if err != nil {
		return sample{}, err
	}
	const usPerSecond, mb = 1e6, 1e6
	rate := float64(v.hist.total) / took.Seconds()
	return sample{
		Count: v.hist.total, IOPS: rate, MBps: rate * float64(l.Block) / mb,
		P50: v.hist.quantile(0.5).Seconds() * usPerSecond,
		P99: v.hist.quantile(0.99).Seconds() * usPerSecond,
	}, nil
}
