package domain

// Op is what a host asks of a disk.
type Op uint8

// The operations of a disk.
const (
	OpRead         Op = iota + 1
	OpWrite           // Buf holds the data
	OpZero            // reads zero afterwards; NoUnmap keeps the space
	OpUnmap           // reads zero afterwards and gives the space back
	OpFlush           // everything acknowledged so far is durable
	OpCompareWrite    // atomically: where Cmp matches, write Buf
)

// String names the operation as metrics and logs do.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpZero:
		return "zero"
	case OpUnmap:
		return "unmap"
	case OpFlush:
		return "flush"
	case OpCompareWrite:
		return "compare_write"
	}
	return "unknown"
}

// IO is one request of a host to a disk. The caller owns it before Submit and again from the call
// of To.Complete on; in between it and its buffers belong to the disk. An IO may be used again.
//
// Off and Len are bytes and multiples of the disk's logical block. Buf has Len bytes for OpRead,
// OpWrite and OpCompareWrite and is nil otherwise; alignment of Buf to 4096 saves a copy and is
// not required.
type IO struct {
	Op      Op
	FUA     bool // durable before completion even where the disk acknowledges volatile writes
	NoUnmap bool // OpZero: keep the space allocated
	More    bool // hint: further requests of this caller are already waiting
	// Gather lets the disk keep a read back, to start several at once. The caller promises to call
	// the disk's Kick before it waits for anything or submits something else.
	Gather bool
	// Lent says that Buf stays as it is until Complete whatever the host does, and is memory that a
	// device reads well: large writes may then be made from it.
	Lent bool
	Off  int64
	Len  int64
	Buf  []byte
	Cmp  []byte

	Err      error // outcome; nil is success, else an *Error with a Kind
	Mismatch int64 // OpCompareWrite with kind Miscompare: offset of the first byte that differs

	To Completer
}

// Completer is told once that an IO has ended. Complete runs on the disk's goroutine, which others'
// I/O may be waiting for: it must not block, nor submit to a disk. One that has more is a Feeder.
type Completer interface{ Complete(io *IO) }

// Feeder is a Completer with a queue of its own. Each time that the disk has told it of an end it
// asks, on the same goroutine, for the next request, which it then has as if Submit had been
// called; nil is none. Next must not block either. Reads that are started so need no goroutine
// between one and the next.
type Feeder interface {
	Completer
	Next() *IO
}

// DiskInfo is what a host may know of a disk. All sizes are bytes.
type DiskInfo struct {
	ID            VolumeID
	Name          string
	Size          Bytes
	LogicalBlock  int // 512 or 4096
	PhysicalBlock int // 4096
	ReadOnly      bool
	Rotational    bool
	Volatile      bool // acknowledged writes may be lost by a power cut until flushed
}

// Extent says how a range of a disk is allocated.
type Extent struct {
	Off, Len int64
	Hole     bool // not allocated; reads zero
	Zero     bool // allocated or not, reads zero
}
