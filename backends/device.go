// Package backends states what Weft needs of a device and knows nothing else of Weft. A Device is a
// block device or a file used as one; a ByteDevice is memory that may survive a power cut. The
// rooms below implement them: direct (O_DIRECT), mem (a crashable double), faulty (a device that
// misbehaves by script), hybrid (flash and a disk as one), nvram (a mapping). devicetest is the
// suite every Device passes.
//
// Durability is stated, never assumed: a completed write is Volatile, NeedsFlush or PowerSafe, and
// a caller that must not lose it acts on that. No write above one logical block is assumed atomic.
//
// Errors are the sentinels below, wrapped with what happened; dataplane translates them once.
package backends

import (
	"context"
	"errors"
)

// Errors a device returns, wrapped.
var (
	ErrMedia      = errors.New("media error")             // the device could not read or write here
	ErrRange      = errors.New("outside the device")      // offset or length beyond the end
	ErrAlign      = errors.New("not aligned")             // offset, length or buffer address
	ErrClosed     = errors.New("device closed")           // used after Close, or its power is cut
	ErrLocked     = errors.New("device in use")           // another process holds it
	ErrNoSpace    = errors.New("no space for the device") // a file could not be given its blocks
	ErrNotPresent = errors.New("device not present")      // no such file or device
)

// Durability says what a completed, not yet flushed write survives.
type Durability uint8

// The durabilities.
const (
	Volatile   Durability = iota // a crash of the process only, even after Flush
	NeedsFlush                   // a power cut once flushed, or once written with FUA
	PowerSafe                    // a power cut, at once
)

// String names the durability.
func (d Durability) String() string {
	return [...]string{"volatile", "needs-flush", "power-safe"}[d]
}

// Geometry describes a device. All sizes are bytes.
type Geometry struct {
	Size         int64
	LogicalBlock int  // smallest unit of I/O: 512 or 4096
	AtomicUnit   int  // never torn by a power cut; LogicalBlock unless probed larger
	MemoryAlign  int  // of a buffer's address
	OptimalIO    int  // 0: unknown
	Rotational   bool // of what stands below Boundary, where there is one
	// Boundary is the offset in bytes below which a pair (backends/hybrid) stands on flash; from there
	// on it stands on a disk that turns. 0: the device is one.
	Boundary   int64
	Durability Durability
	CanDiscard bool
	// Lendable says of a ByteDevice that block devices write from its mapping, without a copy, as fast
	// as from other memory.
	Lendable bool
	Path     string
	Model    string
	Serial   string
}

// Front gives how many bytes from the start on are of one kind: all of them but on a pair.
func (g Geometry) Front() int64 {
	if g.Boundary > 0 {
		return g.Boundary
	}
	return g.Size
}

// Check tells whether n bytes at an offset are within the contract: ErrAlign or ErrRange, as they
// are. p is the buffer of them, nil where there is none.
func (g *Geometry) Check(p []byte, off, n int64) error {
	block := int64(g.LogicalBlock)
	switch {
	case off%block != 0 || n%block != 0 || len(p) > 0 && !Aligned(p, g.MemoryAlign):
		return ErrAlign
	case off < 0 || n < 0 || off > g.Size-n:
		return ErrRange
	}
	return nil
}

// Device is a block device. Offsets and lengths are bytes and multiples of LogicalBlock, buffers
// are aligned to MemoryAlign: use AlignedBuffer. All methods may be called from many goroutines. A
// call blocks until the I/O has ended; overlapping writes in flight at the same time are the
// caller's mistake. After an error the range written is undefined. Buffers belong to the device
// during the call only.
type Device interface {
	Geometry() Geometry
	ReadAt(p []byte, off int64) error
	// WriteAt writes p. With fua the data is durable on return, as far as the device's Durability
	// can promise; without, only a later Flush makes it so.
	WriteAt(p []byte, off int64, fua bool) error
	// Flush makes every write completed before the call durable. After a failed flush nothing
	// written since the last good one may be trusted.
	Flush(ctx context.Context) error
	// Discard tells the device that the range holds nothing of worth. Its content is undefined
	// afterwards. Devices without the ability answer nil.
	Discard(ctx context.Context, off, n int64) error
	Stats() DeviceStats
	Close() error
}

// DeviceStats counts what a device did since it was opened.
type DeviceStats struct {
	Reads, Writes, Flushes, Discards    int64
	ReadBytes, WriteBytes, DiscardBytes int64
	Errors                              int64
}

// ByteDevice is byte-addressable memory: NVDIMM, a DAX mapping, or shared memory as an emulation.
type ByteDevice interface {
	Geometry() Geometry
	Bytes() []byte // the mapping; valid until Close
	// Persist makes the range durable in program order, as far as Durability promises.
	Persist(off, n int64)
	Close() error
}
