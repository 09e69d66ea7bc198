package iscsi

// LUN is a logical unit that a target offers. It must be comparable with ==: the same value in a
// new configuration is the same unit.
type LUN interface {
	// Attach begins a nexus between an initiator port ("iqn...,i,0x00023d000001") and a target port
	// ("iqn...,t,0x0001") with a relative identifier. The session calls Close in the end.
	Attach(initiator, target string, port uint16) Nexus
}

// Call is one command, handed to a logical unit. The session owns it and its buffers; the unit uses
// them from Submit until it calls Done.
type Call = interface {
	// CDB gives the command descriptor block, zero-padded to 16 bytes.
	CDB() []byte
	// Out gives the data that the initiator sent: at most as many bytes as Expect asked for.
	Out() []byte
	// In gives a buffer of n bytes for the data to return. It is called at most once.
	In(n int) []byte
	// Offered tells how many bytes of data-out the initiator announced.
	Offered() int
	// More tells that further commands of this initiator already wait.
	More() bool
	// Generation gives the number that Expect returned when the command arrived.
	Generation() uint64
	// Done ends the command; n bytes of the In buffer are the data. It does not block.
	Done(status byte, n int, sense []byte)
}

// Nexus is one session's way to a logical unit.
type Nexus = interface {
	// Expect tells what a CDB moves, in bytes: data-out wanted and data-in at most.
	Expect(cdb []byte) (out, in int, generation uint64)
	// Submit runs a command; its Done is called exactly once, possibly before Submit returns.
	Submit(call Call)
	// Abort asks for an early end of a command; its Done is still called, possibly before Abort
	// returns.
	Abort(call Call)
	// Reset ends commands of all nexuses: clearTaskSet, resetUnit. done is called, on any
	// goroutine, when none of them can take effect any more.
	Reset(function int, done func())
	// Attention queues a unit attention.
	Attention(asc, ascq byte)
	// Close ends the nexus. Running commands still end with Done.
	Close()
}

// The functions of Nexus.Reset.
const (
	clearTaskSet = 1
	resetUnit    = 2
)

// unitNumber decodes the LUN field of a header: peripheral or flat addressing. Anything else is a
// unit that does not exist.
func unitNumber(field []byte) (uint16, bool) {
	for _, b := range field[2:8] {
		if b != 0 {
			return 0, false
		}
	}
	switch field[0] >> 6 {
	case 0:
		return uint16(field[1]), field[0] == 0
	case 1:
		return uint16(field[0]&0x3f)<<8 | uint16(field[1]), true
	}
	return 0, false
}

// absent answers for a logical unit number that has no unit.
type absent struct{}

var _ Nexus = absent{}

// Expect implements Nexus.
func (absent) Expect([]byte) (out, in int, generation uint64) { return 0, 0, 0 }

// Submit implements Nexus.
func (absent) Submit(call Call) {
	cdb := call.CDB()
	missing := []byte{0x70, 0, 0x05, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0}
	var data []byte
	var allocation int
	switch {
	case cdb[0] == 0x12 && cdb[1]&0x01 == 0:
		data = make([]byte, 36)
		data[0], data[2], data[3], data[4] = 0x7f, 0x06, 0x02, 31
		allocation = int(cdb[3])<<8 | int(cdb[4])
	case cdb[0] == 0x03:
		data, allocation = missing, int(cdb[4])
	default:
		call.Done(statusCheck, 0, missing)
		return
	}
	n := min(len(data), allocation)
	if n > 0 {
		copy(call.In(n), data)
	}
	call.Done(statusGood, n, nil)
}

// Abort implements Nexus.
func (absent) Abort(Call) {}

// Reset implements Nexus.
func (absent) Reset(_ int, done func()) { done() }

// Attention implements Nexus.
func (absent) Attention(_, _ byte) {}

// Close implements Nexus.
func (absent) Close() {}
