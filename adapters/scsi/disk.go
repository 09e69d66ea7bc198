package scsi

import "weft/domain"

// Disk is the volume behind a logical unit.
type Disk interface {
	// Info tells what the disk is now. The size may grow. It is called once per command.
	Info() domain.DiskInfo
	// Submit begins a request; io.To.Complete(io) is called exactly once, on any goroutine,
	// possibly before Submit returns, and does not block.
	Submit(io *domain.IO)
	// Extents appends the allocation map of a range of bytes to dst: ascending and without gaps.
	Extents(off, n int64, dst []domain.Extent) ([]domain.Extent, error)
}

// ReservationStore keeps the persistent reservations of volumes over restarts and on all nodes.
// Save returns once every node obeys the new state; both are called from goroutines that may block.
type ReservationStore interface {
	// Load gives the state kept for the volume, the zero value when there is none.
	Load(id domain.VolumeID) (Reservations, error)
	// Save replaces it. The slices belong to the store afterwards and are not changed any more.
	Save(id domain.VolumeID, r Reservations) error
}

// Call is one command as a transport hands it to a Nexus. The transport owns it and its buffers;
// the logical unit may use them from Submit until it calls Done.
type Call = interface {
	// CDB gives the command descriptor block, zero-padded to 16 bytes or more.
	CDB() []byte
	// Out gives the data that the initiator sent: at most as many bytes as Expect asked for.
	Out() []byte
	// In gives a buffer of n bytes for the data to return, aligned to 4096 where n is large. It is
	// called at most once.
	In(n int) []byte
	// Offered tells how many bytes of data-out the initiator announced; it may be more than Expect
	// asked for.
	Offered() int
	// More tells that further commands of this initiator already wait.
	More() bool
	// Generation gives the number that Expect returned when the command arrived.
	Generation() uint64
	// Done ends the command. The first n bytes of the In buffer are the data, sense is only valid
	// during the call. It does not block.
	Done(status byte, n int, sense []byte)
}

// Nexus is one initiator port's way to a logical unit.
type Nexus = interface {
	// Expect tells what a CDB moves, in bytes: data-out wanted and data-in at most. generation is
	// to be kept with the command until Submit.
	Expect(cdb []byte) (out, in int, generation uint64)
	// Submit runs a command; its Done is called exactly once, possibly before Submit returns.
	Submit(call Call)
	// Abort asks for an early end of a command whose answer nobody wants any more. Its Done is
	// still called, when it can no longer take effect; possibly before Abort returns.
	Abort(call Call)
	// Reset ends commands by task management: ClearTaskSet, ResetUnit. done is called, on any
	// goroutine, when no earlier command of any nexus can take effect any more. Commands of other
	// nexuses end with TASK ABORTED.
	Reset(function int, done func())
	// Attention queues a unit attention for this nexus.
	Attention(asc, ascq byte)
	// Close ends the nexus: what waits for it is dropped, RESERVE(6) is released. Running commands
	// still end with Done; the caller waits for those itself.
	Close()
}

// The functions of Nexus.Reset.
const (
	ClearTaskSet = 1 // end every command of the task set
	ResetUnit    = 2 // also release RESERVE(6), restore mode pages, raise unit attentions
)
