package mem

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"weft/backends"
)

// discarded is what a discarded range reads as: neither zero nor old data, so that a caller who
// relies on either is found out.
const discarded = 0xDB

// Config says what device New makes.
type Config struct {
	// Size in bytes, a multiple of LogicalBlock. The page table costs 8 bytes per 16 KiB of it.
	Size int64
	// LogicalBlock is 512 or 4096 bytes; 0 means 4096. It is also the unit at which writes tear.
	LogicalBlock int
	// Durability of a completed write. The zero value is Volatile, as everywhere.
	Durability backends.Durability
	// RecordHistory keeps a copy of all that is written, which CrashImage needs.
	RecordHistory bool
	Rotational    bool
}

// Device is a block device in RAM. Its methods may be called from many goroutines.
type Device struct {
	geometry backends.Geometry

	mu struct {
		sync.RWMutex
		content pages
		closed  bool
		// history is nil while nothing is recorded.
		history *history
	}

	// recorded counts the operations of the history. It is read at the start of a call, before the
	// lock, to know which calls overlap.
	recorded atomic.Int64

	kept kept

	reads, writes, flushes, discards    atomic.Int64
	readBytes, writeBytes, discardBytes atomic.Int64
	errors                              atomic.Int64
}

// New makes a device that reads zero. A Size or LogicalBlock that makes no device is an error that
// wraps backends.ErrAlign.
func New(cfg Config) (*Device, error) {
	if cfg.LogicalBlock == 0 {
		cfg.LogicalBlock = 4096
	}
	if cfg.LogicalBlock != 512 && cfg.LogicalBlock != 4096 {
		return nil, fmt.Errorf("mem: logical block %d: %w", cfg.LogicalBlock, backends.ErrAlign)
	}
	if cfg.Size <= 0 || cfg.Size%int64(cfg.LogicalBlock) != 0 {
		return nil, fmt.Errorf("mem: size %d: %w", cfg.Size, backends.ErrAlign)
	}
	d := newDevice(backends.Geometry{
		Size:         cfg.Size,
		LogicalBlock: cfg.LogicalBlock,
		AtomicUnit:   cfg.LogicalBlock,
		MemoryAlign:  cfg.LogicalBlock,
		Rotational:   cfg.Rotational,
		Durability:   cfg.Durability,
		CanDiscard:   true,
		Path:         "mem",
		Model:        "weft RAM",
	}, newPages(cfg.Size))
	if cfg.RecordHistory {
		d.StartHistory()
	}
	return d, nil
}

func newDevice(g backends.Geometry, content pages) *Device {
	d := &Device{geometry: g}
	d.mu.content = content
	return d
}

// Geometry describes the device.
func (d *Device) Geometry() backends.Geometry { return d.geometry }

// ReadAt reads len(p) bytes from off. Errors: ErrClosed, ErrAlign, ErrRange.
func (d *Device) ReadAt(p []byte, off int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.check("read", off, int64(len(p)), p); err != nil {
		return err
	}
	d.mu.content.read(p, off)
	d.reads.Add(1)
	d.readBytes.Add(int64(len(p)))
	return nil
}

// WriteAt writes p at off, as an atomic step for readers. Errors: ErrClosed, ErrAlign, ErrRange.
func (d *Device) WriteAt(p []byte, off int64, fua bool) error {
	begun := d.recorded.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check("write", off, int64(len(p)), p); err != nil {
		return err
	}
	d.mu.content.write(p, off)
	if d.mu.history != nil {
		d.record(begun, Op{
			Kind: OpWrite, Off: off, Len: int64(len(p)), FUA: fua,
			Data: append([]byte(nil), p...),
		})
	}
	d.writes.Add(1)
	d.writeBytes.Add(int64(len(p)))
	return nil
}

// Flush makes all completed writes durable. Errors: ErrClosed, or that of an ended context.
func (d *Device) Flush(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ready(ctx); err != nil {
		return err
	}
	if d.mu.history != nil {
		d.record(d.recorded.Load(), Op{Kind: OpFlush})
	}
	d.flushes.Add(1)
	return nil
}

// Discard fills the range with 0xDB. Errors: ErrClosed, ErrAlign, ErrRange, or that of an ended
// context.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	begun := d.recorded.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ready(ctx); err != nil {
		return err
	}
	if err := d.check("discard", off, n, nil); err != nil {
		return err
	}
	d.mu.content.fill(off, n, discarded)
	if d.mu.history != nil {
		d.record(begun, Op{Kind: OpDiscard, Off: off, Len: n})
	}
	d.discards.Add(1)
	d.discardBytes.Add(n)
	return nil
}

// Stats counts since New, or since the image was made.
func (d *Device) Stats() backends.DeviceStats {
	return backends.DeviceStats{
		Reads: d.reads.Load(), Writes: d.writes.Load(), Flushes: d.flushes.Load(),
		Discards: d.discards.Load(), ReadBytes: d.readBytes.Load(),
		WriteBytes: d.writeBytes.Load(), DiscardBytes: d.discardBytes.Load(),
		Errors: d.errors.Load(),
	}
}

// Close ends the device; every later call gives ErrClosed. The history stays, and crash images can
// still be made. Closing twice is no error.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.closed = true
	return nil
}

// FlipBit turns over bit 0..7 of the byte at off, as decay at rest does, and durably so. It counts
// as an operation of the history. Errors: ErrRange.
func (d *Device) FlipBit(off int64, bit uint) error {
	if off < 0 || off >= d.geometry.Size || bit > 7 {
		return fmt.Errorf("mem: flip bit %d at %d: %w", bit, off, backends.ErrRange)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	op := Op{Kind: OpFlip, Off: off, Len: 1, Data: []byte{1 << bit}}
	op.apply(&d.mu.content)
	if d.mu.history != nil {
		d.record(d.recorded.Load(), op)
	}
	return nil
}

// Equal tells whether two devices hold the same bytes now; those of different sizes never do. Two
// goroutines must not compare one pair in opposite order while others write to it: each would hold
// a lock the other waits for.
func (d *Device) Equal(e *Device) bool {
	if d == e {
		return true
	}
	if d.geometry.Size != e.geometry.Size {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	e.mu.RLock()
	defer e.mu.RUnlock()
	return d.mu.content.equal(&e.mu.content)
}

// Sum gives a checksum of the bytes that the device holds: equal for equal bytes and sizes, in this
// process only, and else different but for a chance of 2^-64. Of an image it costs little.
func (d *Device) Sum() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.content.sum()
}

// Clone gives an independent device with the same bytes, powered and without history. It shares
// pages with d until either writes to them.
func (d *Device) Clone() *Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return newDevice(d.geometry, d.mu.content.clone())
}

func (d *Device) ready(ctx context.Context) error {
	if d.mu.closed {
		d.errors.Add(1)
		return fmt.Errorf("mem: %w", backends.ErrClosed)
	}
	return ctx.Err()
}

// check asserts what a real device asserts, and more: one that only tests would forgive a caller
// teaches him wrong.
func (d *Device) check(what string, off, n int64, p []byte) error {
	err := d.geometry.Check(p, off, n)
	if d.mu.closed {
		err = backends.ErrClosed
	}
	if err == nil {
		return nil
	}
	d.errors.Add(1)
	return fmt.Errorf("mem: %s %d bytes at %d: %w", what, n, off, err)
}
