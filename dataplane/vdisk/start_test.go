package vdisk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"weft/backends"
	"weft/dataplane/cache"
	"weft/dataplane/engine"
	"weft/domain"
)

// feeding is a host's row of requests, each of which follows the one before.
type feeding struct {
	io    domain.IO
	model []byte // of the disk, as long as it is not written
	rnd   *rand.Rand
	own   int64 // where this row alone writes
	left  int
	fails int // requests that have to be refused
	err   error
	end   chan struct{}
}

// Complete implements domain.Completer.
func (f *feeding) Complete(io *domain.IO) {
	switch {
	case io.Off%512 != 0:
		if !domain.IsKind(io.Err, domain.Invalid) {
			f.err = errors.Join(f.err, fmt.Errorf("a ragged read: %w", io.Err))
		}
		f.fails++
	case io.Err != nil:
		f.err = errors.Join(f.err, io.Err)
	case io.Op == domain.OpRead && !bytes.Equal(io.Buf[:io.Len], f.model[io.Off:][:io.Len]):
		f.err = errors.Join(f.err, fmt.Errorf("other bytes: %d at %d", io.Len, io.Off))
	}
}

// Next implements domain.Feeder.
func (f *feeding) Next() *domain.IO {
	if f.left--; f.left < 0 {
		f.end <- struct{}{}
		return nil
	}
	f.io.Op, f.io.Len = domain.OpRead, 4096
	f.io.Off = 4096 * f.rnd.Int64N(int64(len(f.model)/4096-210))
	switch f.rnd.IntN(16) {
	case 0: // over the end of an extent, perhaps
		f.io.Len = 4096 * (1 + f.rnd.Int64N(200))
	case 1:
		f.io.Len, f.io.Off = 512, f.io.Off+1024
	case 2:
		f.io.Off++
	case 3:
		f.io.Op, f.io.Off = domain.OpWrite, f.own
		copy(f.io.Buf, pattern(4096, byte(f.left)))
		copy(f.model[f.own:], f.io.Buf[:4096])
	case 4:
		f.io.Off = f.own
	}
	clear(f.io.Buf[4096:])
	return &f.io
}

// TestFeeder lets rows of requests of all kinds follow one another, beside pauses of the disk and a
// device that is short, with a cache: each ends once, with the bytes of its place.
func TestFeeder(t *testing.T) {
	d := build(t, func(_ *Config, e *engine.Config) { e.Reads = cache.New(1 << 20) })
	model := make([]byte, 8<<20) // its second half is a hole
	for at := 0; at < len(model)/2; at += 4096 {
		copy(model[at:], pattern(4096, byte(at/4096%251)))
	}
	write(t, d, 0, model[:len(model)/2])
	before := d.Stats()
	var rows []*feeding
	for i := range 8 {
		f := &feeding{
			model: model, rnd: rand.New(rand.NewPCG(uint64(i), 5)), left: 400,
			end: make(chan struct{}, 1),
			own: int64(len(model)) - 4096*int64(i+1),
		}
		f.io.Buf, f.io.To = backends.AlignedBuffer(200*4096), f
		rows = append(rows, f)
		d.Submit(f.Next())
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				d.Pause()
				d.Resume()
			}
		}
	})
	refused := int64(0)
	for _, f := range rows {
		<-f.end
		if f.err != nil {
			t.Error(f.err)
		}
		refused += int64(f.fails)
	}
	close(stop)
	wg.Wait()
	if err := d.Drain(t.Context()); err != nil || d.flight.Load() != 0 || d.reading.Load() != 0 {
		t.Errorf("%v, %d under way, %d reads", err, d.flight.Load(), d.reading.Load())
	}
	if r := d.at.Load().Scheduler.Reading(); r.Flight != 0 || r.Waiting != 0 {
		t.Errorf("at rest %+v", r)
	}
	n := int64(0)
	for i, s := range d.Stats() {
		n += s.Count - before[i].Count
	}
	if n != 8*400 || refused == 0 {
		t.Errorf("%d requests ended, %d refused", n, refused)
	}
}

// endless is a row of reads of nothing, which end where they are started.
type endless struct {
	io          domain.IO
	left        int
	deep, lines atomic.Int64 // completions inside the test's own call, and the most lines of a stack
	end         chan struct{}
}

// Complete implements domain.Completer.
func (e *endless) Complete(*domain.IO) {
	stack := string(debug.Stack())
	if strings.Contains(stack, "TestFeederDoesNotNest(") {
		e.deep.Add(1)
	}
	e.lines.Store(max(e.lines.Load(), int64(strings.Count(stack, "\n"))))
}

// Next implements domain.Feeder.
func (e *endless) Next() *domain.IO {
	if e.left--; e.left < 0 {
		e.end <- struct{}{}
		return nil
	}
	return &e.io
}

// TestFeederDoesNotNest proves that requests which end where they are started neither nest nor keep
// the goroutine that began them for long.
func TestFeederDoesNotNest(t *testing.T) {
	d := build(t)
	e := &endless{left: 2000, end: make(chan struct{}, 1)}
	e.io = domain.IO{Op: domain.OpRead, Len: 4096, Buf: backends.AlignedBuffer(4096), To: e}
	d.Submit(e.Next())
	<-e.end
	if n := e.deep.Load(); n > feedMax+1 {
		t.Errorf("%d completions in the caller", n)
	}
	if n := e.lines.Load(); n > 40 {
		t.Errorf("a stack of %d lines", n)
	}
}

// pausing is a row of two reads that pauses the disk between them.
type pausing struct {
	io   domain.IO
	d    *Disk
	told int
	end  chan struct{}
}

// Complete implements domain.Completer.
func (p *pausing) Complete(*domain.IO) {
	if p.told++; p.told == 1 {
		p.d.Pause()
	} else {
		p.end <- struct{}{}
	}
}

// Next implements domain.Feeder.
func (p *pausing) Next() *domain.IO {
	if p.told == 2 {
		return nil
	}
	return &p.io
}

// TestFeederPaused proves that what a Feeder wants next waits at the gate like any request.
func TestFeederPaused(t *testing.T) {
	d := build(t)
	p := &pausing{d: d, end: make(chan struct{}, 1)}
	p.io = domain.IO{Op: domain.OpRead, Len: 4096, Buf: backends.AlignedBuffer(4096), To: p}
	d.Submit(&p.io) // alone, so it ends inside the call, and what follows of a hole does too
	if p.told != 1 || d.flight.Load() != 0 {
		t.Errorf("%d reads ended of a paused disk, %d under way", p.told, d.flight.Load())
	}
	d.Resume()
	<-p.end
}
