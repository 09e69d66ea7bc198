package main

import (
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"time"

	"weft/backends"
	"weft/domain"
)

// disk is what the driver needs of a disk.
type disk interface {
	Info() domain.DiskInfo
	Submit(io *domain.IO)
}

// driver keeps a number of requests under way on a disk, as a front end does: one goroutine
// submits, completions come back through a channel that has room for all of them.
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
}

// slot is one place in the queue.
type slot struct {
	io           domain.IO
	began, ended time.Time
	free         chan<- *slot
}

// Complete implements domain.Completer.
func (s *slot) Complete(*domain.IO) {
	s.ended = time.Now()
	s.free <- s
}

func newDriver(d disk, l load) *driver {
	v := &driver{
		disk: d, load: l, size: int64(d.Info().Size), free: make(chan *slot, l.Depth),
		rng: mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64())),
	}
	for range l.Depth {
		s := &slot{free: v.free}
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
	begin := time.Now()
	total := v.size / int64(v.load.Block)
	for n := int64(0); v.err == nil && ctx.Err() == nil; n++ {
		if d == 0 && n == total {
			break
		}
		s := <-v.free
		now := time.Now()
		v.note(s)
		if d > 0 && now.Sub(begin) >= d {
			v.free <- s
			break
		}
		s.io.Off, s.began = v.offset(), now
		s.io.More = len(v.free) > 0
		v.disk.Submit(&s.io)
	}
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
	return time.Since(begin), v.err
}

// note counts a request that came back. A slot that was never used, or was counted, has no start.
func (v *driver) note(s *slot) {
	if s.began.IsZero() {
		return
	}
	v.hist.add(s.ended.Sub(s.began))
	s.began = time.Time{}
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
