package vdisk

import (
	"weft/dataplane/engine"
	"weft/dataplane/segment"
	"weft/domain"
)

const (
	// inlineMax is up to how many bytes a lone read runs in its caller, who does nothing else
	// meanwhile.
	inlineMax = 64 << 10
	// aloneMax is up to how many bytes a read is verified where it arrives, on the goroutine that
	// all reads wait for: 128 KiB take some 15 us.
	aloneMax = 128 << 10
)

// starter is a Volume that can read without holding a goroutine.
type starter interface {
	Start(r *engine.Reading, more bool) bool
	TryStart(r *engine.Reading) engine.Begun
	Kick()
}

// readOp is a started read. It owns the request until it completes.
type readOp struct {
	disk *Disk
	io   *domain.IO
	r    engine.Reading
}

// start starts a read of whole blocks of one extent; false when it has to be done otherwise.
func (d *Disk) start(io *domain.IO) bool {
	if !d.startable(io) {
		return false
	}
	o := d.readOp(io)
	if d.at.Load().starter.Start(&o.r, io.Gather) {
		return true
	}
	o.put()
	return false
}

// startable tells whether a read is one of whole blocks of one extent.
func (d *Disk) startable(io *domain.IO) bool {
	return d.at.Load().starter != nil && io.Len > 0 && aligned(io.Off) && aligned(io.Len) &&
		io.Off/int64(domain.ExtentSize) == (io.Off+io.Len-1)/int64(domain.ExtentSize)
}

func (d *Disk) readOp(io *domain.IO) *readOp {
	o := d.reads.Get().(*readOp) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	o.io = io
	o.r.Block, o.r.Count = uint64(io.Off/segment.BlockSize), int(io.Len/segment.BlockSize)
	o.r.Dst, o.r.To = io.Buf[:io.Len], o
	return o
}

// feedMax bounds the requests of a Feeder that end one after the other without leaving the
// goroutine, which others' reads may wait for.
const feedMax = 16

// feed runs what a Feeder wants next, where one of its requests has ended.
func (d *Disk) feed(f domain.Feeder) {
	for range feedMax {
		io := f.Next()
		if io == nil || !d.next(io) {
			return
		}
		f, _ = io.To.(domain.Feeder)
		tell(io)
		if f == nil {
			return
		}
	}
	if io := f.Next(); io != nil {
		go d.Submit(io)
	}
}

// next starts a request without waiting for anything. It tells whether the request has ended and
// is to be told so.
func (d *Disk) next(io *domain.IO) (ended bool) {
	if io.Op != domain.OpRead || d.check(io) != nil || !d.startable(io) {
		go d.Submit(io)
		return false
	}
	d.flight.Add(1) // before the gate is asked: see Drain
	if !d.gate.Admit(io) {
		d.leave()
		return false
	}
	if f := d.at.Load().flow; f != nil && !f.Admit(io) {
		return false
	}
	d.reading.Add(1)
	o := d.readOp(io)
	switch d.at.Load().starter.TryStart(&o.r) {
	case engine.Started:
		return false
	case engine.Here:
		if ended, err := o.r.Check(); ended {
			o.put()
			d.reading.Add(-1)
			d.account(io, err)
			return true
		}
		go func() { o.end(o.r.Again()) }()
		return false
	case engine.Refused:
	}
	o.put()
	if !d.cfg.Pool.try(job{disk: d, io: io}) {
		go d.serve(io)
	}
	return false
}

// Kick starts the reads that were kept back.
func (d *Disk) Kick() {
	if d.at.Load().starter != nil {
		d.at.Load().starter.Kick()
	}
}

// Arrived implements engine.Arrival. A long read is verified on the pool if somebody there is free.
func (o *readOp) Arrived(*engine.Reading) {
	if o.io.Len > aloneMax && o.disk.cfg.Pool.try(job{read: o}) {
		return
	}
	o.finish()
}

// finish ends the read, or reads once more on a goroutine of its own: that is rare.
func (o *readOp) finish() {
	ended, err := o.r.Check()
	if !ended {
		go func() { o.end(o.r.Again()) }()
		return
	}
	o.end(err)
}

func (o *readOp) end(err error) {
	d, io := o.disk, o.io
	o.put()
	d.reading.Add(-1)
	d.complete(io, err)
}

func (o *readOp) put() {
	o.io, o.r.Dst = nil, nil
	o.disk.reads.Put(o)
}
