// Package vdisk makes a disk of a volume: it cuts a host's requests at record and extent bounds,
// merges writes below a block under a hold, compares before it writes, and completes each request
// once. It is the one interface every front end sees.
//
// A write of at most 1 MiB inside one extent is one record: after a crash it is there whole or not
// at all, and no reader sees half of it. Larger requests are cut, and complete when their last
// record has.
//
// Reads and writes run on the caller's goroutine while there is one: at depth one a hop costs more
// than the device. At depth reads hold no goroutine where the volume can start them, and one of a
// bounded pool of readers where it cannot.
package vdisk

import (
	"context"
	"sync"
	"sync/atomic"

	"weft/dataplane/engine"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/domain"
)

// Volume is what a disk needs of the layer below: the engine's volume today, the replica
// coordinator of its slices when there are several members.
type Volume interface {
	ID() domain.VolumeID
	Size() domain.Bytes
	Append(r *engine.Record)
	Read(block uint64, count int, dst []byte) error
	Extents(block uint64, count int, dst []domain.Extent) ([]domain.Extent, error)
	Hold(block uint64, count int) (*engine.Hold, error)
	// RecordBlocks is the most blocks of one record of data; it does not change.
	RecordBlocks() int
}

// Target is where a disk's volume stands.
type Target struct {
	Volume   Volume
	Volatile bool
	// Flush makes acknowledged writes durable where Volatile is set.
	Flush func(context.Context) error
	// Scheduler shares the volume's device with other volumes; nil: the disk has it for itself.
	Scheduler *qos.Scheduler
}

// Config describes a disk. Pool and Volume are required.
type Config struct {
	Target
	Pool         *Pool
	Name         string
	LogicalBlock int // 512 or 4096; 0: 512
	ReadOnly     bool
	Rotational   bool
	// Clock is what limits go by; the zero value is the system's.
	Clock qos.Clock
	// Gateway and Incarnation name this process in request ids.
	Gateway     domain.NodeNumber
	Incarnation uint64
}

// Disk serves one volume. All methods may be called from many goroutines.
type Disk struct {
	cfg     Config
	info    domain.DiskInfo
	at      atomic.Pointer[place]
	flight  atomic.Int64 // requests that the gate has let in and that have not ended
	drain   atomic.Pointer[chan struct{}]
	counter atomic.Uint64
	reading atomic.Int32
	writing atomic.Int32 // writes of whole blocks
	ops     sync.Pool
	reads   sync.Pool
	gate    *qos.Gate
	stats   [domain.OpCompareWrite + 1]opStats
}

type opStats struct{ count, bytes, errors atomic.Int64 }

// OpStats counts one operation of a disk since it was made.
type OpStats struct {
	Op                   domain.Op
	Count, Bytes, Errors int64
}

// New makes a disk.
func New(cfg Config) (*Disk, error) {
	if cfg.LogicalBlock == 0 {
		cfg.LogicalBlock = 512
	}
	if cfg.LogicalBlock != 512 && cfg.LogicalBlock != 4096 {
		return nil, domain.Errorf(domain.Invalid, "logical block %d: 512 or 4096", cfg.LogicalBlock)
	}
	if cfg.Volatile && cfg.Flush == nil {
		return nil, domain.Errorf(domain.Internal, "a volatile disk needs a flush")
	}
	d := &Disk{cfg: cfg}
	d.info = domain.DiskInfo{
		ID: cfg.Volume.ID(), Name: cfg.Name, LogicalBlock: cfg.LogicalBlock,
		PhysicalBlock: segment.BlockSize, ReadOnly: cfg.ReadOnly, Rotational: cfg.Rotational,
		Volatile: cfg.Volatile,
	}
	d.ops.New = func() any { return &op{disk: d} }
	d.reads.New = func() any { return &readOp{disk: d} }
	if cfg.Clock.Now == nil {
		cfg.Clock = qos.System()
	}
	d.gate = qos.New(cfg.Clock, d.pass)
	d.gate.CountIn(&d.flight)
	d.at.Store(d.place(cfg.Target))
	d.cfg.Target = Target{} // it changes: see Retarget
	return d, nil
}

// Info describes the disk; its size may have grown since the last call.
func (d *Disk) Info() domain.DiskInfo {
	i := d.info
	i.Size = d.at.Load().Volume.Size()
	return i
}

// Stats reads the counters.
func (d *Disk) Stats() []OpStats {
	var out []OpStats
	for o := domain.OpRead; o <= domain.OpCompareWrite; o++ {
		s := &d.stats[o]
		out = append(out, OpStats{o, s.count.Load(), s.bytes.Load(), s.errors.Load()})
	}
	return out
}

// SetLimits bounds what hosts get from now on, those that wait included.
func (d *Disk) SetLimits(l qos.Limits) { d.gate.SetLimits(l) }

// SetShare says what the volume is owed of its device from now on, while that is short. Without a
// scheduler it does nothing.
func (d *Disk) SetShare(s qos.Share) {
	if f := d.at.Load().flow; f != nil {
		f.SetShare(s)
	}
}

// Share gives what the volume is owed now.
func (d *Disk) Share() qos.Share {
	f := d.at.Load().flow
	if f == nil {
		return qos.Share{}
	}
	return f.Share()
}

// Pause keeps every request but flushes back until Resume. Pauses add up. Those that were let in
// before are in the volume's log or on their way there, where some may wait for the device.
func (d *Disk) Pause() { d.gate.Pause() }

// Resume takes one Pause back. What waited runs, in order.
func (d *Disk) Resume() { d.gate.Resume() }

// Limits gives what holds now.
func (d *Disk) Limits() qos.Limits { return d.gate.Limits() }

// Delayed counts the requests that a limit has held back.
func (d *Disk) Delayed() int64 { return d.gate.Delayed() }

// Queued counts the requests that waited for their turn on a device that was short.
func (d *Disk) Queued() int64 {
	f := d.at.Load().flow
	if f == nil {
		return 0
	}
	return f.Delayed()
}

// Submit starts a request; io.To.Complete runs once, perhaps before Submit returns. It may wait
// while the log is behind: that is how a host that writes faster than the device is slowed down.
// Where a limit holds it back, or the device has enough to do for others, Submit returns and the
// request runs when its time has come.
func (d *Disk) Submit(io *domain.IO) {
	if err := d.check(io); err != nil {
		d.end(io, err)
		return
	}
	if io.Op == domain.OpFlush { // no gate keeps it, and nobody waits for it in Drain
		d.pass(io)
		return
	}
	d.flight.Add(1) // before the gate is asked: see Drain
	if d.gate.Admit(io) {
		d.pass(io)
	} else {
		d.leave()
	}
}

// pass takes a request that its volume's limits allow to the device's queue.
func (d *Disk) pass(io *domain.IO) {
	if f := d.at.Load().flow; f == nil || f.Admit(io) {
		d.run(io)
	}
}

// run starts a request whose turn has come.
func (d *Disk) run(io *domain.IO) {
	switch io.Op {
	case domain.OpRead:
		d.read(io)
	case domain.OpWrite:
		if aligned(io.Off) && aligned(io.Len) && !(io.FUA && d.at.Load().Volatile) {
			d.write(io)
			return
		}
		d.later(io)
	case domain.OpFlush:
		if d.at.Load().Volatile {
			d.later(io)
			return
		}
		d.complete(io, nil)
	case domain.OpZero, domain.OpUnmap, domain.OpCompareWrite:
		d.later(io)
	}
}

// Do runs a request and waits for it. It gives io.Err.
func (d *Disk) Do(io *domain.IO) error {
	w := make(waiting, 1)
	io.To = w
	d.Submit(io)
	<-w
	return io.Err
}

type waiting chan struct{}

func (w waiting) Complete(*domain.IO) { w <- struct{}{} }

func aligned(n int64) bool { return n%segment.BlockSize == 0 }

// check refuses what a front end should not have let through, and what the size forbids.
func (d *Disk) check(io *domain.IO) error {
	lb, size := int64(d.info.LogicalBlock), int64(d.at.Load().Volume.Size())
	data := io.Op == domain.OpRead || io.Op == domain.OpWrite || io.Op == domain.OpCompareWrite
	switch {
	case io.Op < domain.OpRead || io.Op > domain.OpCompareWrite:
		return domain.Errorf(domain.Unsupported, "operation %d", io.Op)
	case io.Off < 0 || io.Len < 0 || io.Off%lb != 0 || io.Len%lb != 0:
		return domain.Errorf(domain.Invalid, "%s of %d bytes at %d: not whole blocks of %d",
			io.Op, io.Len, io.Off, lb)
	case io.Off > size || io.Len > size-io.Off:
		return domain.Errorf(domain.OutOfRange, "%s of %d bytes at %d: the disk has %d",
			io.Op, io.Len, io.Off, size)
	case data && int64(len(io.Buf)) < io.Len:
		return domain.Errorf(domain.Internal, "%s without a buffer", io.Op)
	case io.Op == domain.OpCompareWrite && int64(len(io.Cmp)) < io.Len:
		return domain.Errorf(domain.Internal, "compare without data")
	case d.info.ReadOnly && io.Op != domain.OpRead && io.Op != domain.OpFlush:
		return domain.Errorf(domain.ReadOnly, "the disk is read-only")
	}
	return nil
}

// complete ends a request that was run.
func (d *Disk) complete(io *domain.IO, err error) {
	f, feeds := io.To.(domain.Feeder)
	d.account(io, err)
	tell(io)
	if feeds {
		d.feed(f)
	}
}

// account gives back what a request held that was run, and counts it.
func (d *Disk) account(io *domain.IO, err error) {
	if f := d.at.Load().flow; f != nil {
		f.Done(io)
	}
	if io.Op != domain.OpFlush {
		d.leave()
	}
	d.count(io, err)
}

// end tells the outcome of a request that was refused.
func (d *Disk) end(io *domain.IO, err error) {
	f, feeds := io.To.(domain.Feeder)
	d.count(io, err)
	tell(io)
	if feeds {
		d.feed(f)
	}
}

// tell tells a request's owner of its end.
func tell(io *domain.IO) { io.To.Complete(io) }

// count keeps a request's outcome.
func (d *Disk) count(io *domain.IO, err error) {
	if io.Op <= domain.OpCompareWrite {
		s := &d.stats[io.Op]
		s.count.Add(1)
		if err != nil {
			s.errors.Add(1)
		} else {
			s.bytes.Add(io.Len)
		}
	}
	io.Err = err
}

// later hands a request that may block to the pool.
func (d *Disk) later(io *domain.IO) { d.cfg.Pool.run(d, io) }

// serve is the pool's part of a request.
func (d *Disk) serve(io *domain.IO) {
	switch io.Op {
	case domain.OpRead:
		d.readNow(io)
	case domain.OpWrite:
		d.complete(io, d.fua(io, d.merge(io.Off, io.Len, io.Buf)))
	case domain.OpZero:
		d.complete(io, d.fua(io, d.ranged(io, segment.KindZero)))
	case domain.OpUnmap:
		d.complete(io, d.fua(io, d.ranged(io, segment.KindUnmap)))
	case domain.OpFlush:
		d.complete(io, d.at.Load().Flush(context.Background()))
	case domain.OpCompareWrite:
		d.complete(io, d.fua(io, d.compareWrite(io)))
	}
}

// fua makes a finished write durable where the host asks and the disk does not promise it.
func (d *Disk) fua(io *domain.IO, err error) error {
	if err != nil || !io.FUA || !d.at.Load().Volatile {
		return err
	}
	return d.at.Load().Flush(context.Background())
}

// read runs in the caller when it is the only read, without a goroutine where the volume can, else
// on the pool.
func (d *Disk) read(io *domain.IO) {
	switch alone := d.reading.Add(1) == 1; {
	case alone && !io.More && io.Len <= inlineMax:
		d.readNow(io)
	case !d.start(io):
		d.later(io)
	}
}

func (d *Disk) readNow(io *domain.IO) {
	err := d.fetch(io.Off, io.Buf[:io.Len])
	d.reading.Add(-1)
	d.complete(io, err)
}

// fetch reads any range. Ragged ends go through a block of our own.
func (d *Disk) fetch(off int64, p []byte) error {
	for len(p) > 0 {
		block, skip := off/segment.BlockSize, off%segment.BlockSize
		if skip != 0 || len(p) < segment.BlockSize {
			b := bounce.Get().(*[segment.BlockSize]byte) //nolint:errcheck,forcetypeassert // its own
			err := d.at.Load().Volume.Read(uint64(block), 1, b[:])
			n := copy(p, b[skip:])
			bounce.Put(b)
			if err != nil {
				return err
			}
			p, off = p[n:], off+int64(n)
			continue
		}
		n := cut(off, int64(len(p))/segment.BlockSize*segment.BlockSize, int64(domain.ExtentSize))
		if err := d.at.Load().Volume.Read(uint64(block), int(n/segment.BlockSize), p[:n]); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

var bounce = sync.Pool{New: func() any { return new([segment.BlockSize]byte) }}

// cut gives how much of n bytes at off lie before the next multiple of the extent, at most limit.
func cut(off, n, limit int64) int64 {
	return min(n, limit, int64(domain.ExtentSize)-off%int64(domain.ExtentSize))
}

// op is a write on its way: one record for most, a list of parts for long ones. It owns the request
// until the last record has its outcome.
type op struct {
	disk *Disk
	io   *domain.IO
	rec  engine.Record
	left atomic.Int32
	fail atomic.Pointer[error]
}

// write starts a write of whole blocks.
func (d *Disk) write(io *domain.IO) {
	if io.Len == 0 {
		d.complete(io, nil)
		return
	}
	o := d.ops.Get().(*op) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	o.io = io
	o.left.Store(1)
	alone := d.writing.Add(1) == 1 && !io.More && io.Len <= inlineMax
	off, p := io.Off, io.Buf[:io.Len]
	for {
		n := cut(off, int64(len(p)), d.at.Load().record)
		r := &o.rec
		if last := int(n) == len(p); !last {
			r = &engine.Record{}
			o.left.Add(1)
		}
		d.fill(r, segment.KindData, off, n, p[:n])
		r.To, r.Lent, r.Now = o, io.Lent, alone && r == &o.rec
		p, off = p[n:], off+n
		done := len(p) == 0
		d.at.Load().Volume.Append(r)
		if done {
			return
		}
	}
}

func (d *Disk) fill(r *engine.Record, kind segment.Kind, off, n int64, p []byte) {
	r.Kind, r.Block, r.Count = kind, uint64(off/segment.BlockSize), int(n/segment.BlockSize)
	r.Data = p
	r.Request = domain.RequestID{
		Gateway: d.cfg.Gateway, Incarnation: d.cfg.Incarnation, Counter: d.counter.Add(1),
	}
}

// failed keeps the first error of a write's records. It is apart so that success allocates nothing.
func (o *op) failed(err error) { o.fail.CompareAndSwap(nil, &err) }

// Appended implements engine.Appender.
func (o *op) Appended(_ *engine.Record, err error) {
	if err != nil {
		o.failed(err)
	}
	if o.left.Add(-1) > 0 {
		return
	}
	io, d := o.io, o.disk
	err = nil
	if f := o.fail.Load(); f != nil {
		err = *f
		o.fail.Store(nil)
	}
	o.io, o.rec.Data, o.rec.To = nil, nil, nil
	d.ops.Put(o)
	d.writing.Add(-1)
	d.complete(io, err)
}
