package hybrid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"weft/backends"
)

// Role says what a member is in its pair.
type Role uint8

// The roles. Their numbers are on devices.
const (
	Flash Role = 1
	Disk  Role = 2
)

// String names the role as the command line does.
func (r Role) String() string {
	switch r {
	case Flash:
		return "flash"
	case Disk:
		return "hdd"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Why a member is refused; each comes in a MemberError.
var (
	ErrNoMember = errors.New("not a member of a hybrid pair")
	ErrMember   = errors.New("a member of a hybrid pair already")
	ErrSwapped  = errors.New("the members are swapped")
	ErrOther    = errors.New("a member of another pair")
	ErrSize     = errors.New("another size than when the pair was made")
	ErrSmall    = errors.New("too small for a member")
)

// MemberError says which device was refused, as what, and why. Err is one of the errors above.
type MemberError struct {
	Path string
	Role Role
	Err  error
}

// Error implements error.
func (e *MemberError) Error() string {
	return fmt.Sprintf("hybrid: %s as %s: %v", e.Path, e.Role, e.Err)
}

// Unwrap gives why.
func (e *MemberError) Unwrap() error { return e.Err }

const (
	labelMagic   = 0x3142594854464557 // "WEFTHYB1"
	labelVersion = 1
	labelSize    = 4096
	labelCopies  = 2
	labelApart   = 64 << 10
	// unit is what sizes of parts are rounded down to; the tail of a member, and the head of a disk.
	unit = 1 << 20
)

var (
	le    = binary.LittleEndian
	table = crc32.MakeTable(crc32.Castagnoli)
)

// Label is what stands on a member. Sizes are bytes, of the whole devices.
type Label struct {
	Role  Role
	Pair  [16]byte
	Size  int64 // of the member
	Other int64 // of the other one
}

// encode fills labelSize bytes.
func (l *Label) encode(b []byte) {
	clear(b[:labelSize])
	le.PutUint64(b[0:], labelMagic)
	le.PutUint32(b[8:], labelVersion)
	b[12] = byte(l.Role)
	copy(b[16:], l.Pair[:])
	le.PutUint64(b[32:], uint64(l.Size))
	le.PutUint64(b[40:], uint64(l.Other))
	le.PutUint32(b[labelSize-4:], crc32.Checksum(b[:labelSize-4], table))
}

// decode reads and checks a label; false for anything else.
func decode(b []byte) (Label, bool) {
	if len(b) < labelSize || le.Uint64(b) != labelMagic || le.Uint32(b[8:]) != labelVersion ||
		le.Uint32(b[labelSize-4:]) != crc32.Checksum(b[:labelSize-4], table) {
		return Label{}, false
	}
	l := Label{Role: Role(b[12]), Size: int64(le.Uint64(b[32:])), Other: int64(le.Uint64(b[40:]))}
	copy(l.Pair[:], b[16:])
	return l, (l.Role == Flash || l.Role == Disk) && l.Size > 0 && l.Other > 0
}

// end gives where a member's label stands, and so where its part of the pair ends; 0 or less for a
// device that is too small.
func end(size int64) int64 { return size/unit*unit - unit }

// Probe reads a device's label: nil when it has none. Errors are the device's.
func Probe(dev backends.Device) (*Label, error) {
	g := dev.Geometry()
	at := end(g.Size)
	if at <= 0 {
		return nil, nil //nolint:nilnil // having none is an answer
	}
	b := backends.AlignedBuffer(labelSize)
	var failed error
	for i := range int64(labelCopies) {
		if err := dev.ReadAt(b, at+i*labelApart); err != nil {
			failed = err
			continue
		}
		if l, ok := decode(b); ok {
			return &l, nil
		}
	}
	return nil, failed
}

// write puts a label on a device, durably.
func (l *Label) write(dev backends.Device) error {
	b := backends.AlignedBuffer(labelSize)
	l.encode(b)
	for i := range int64(labelCopies) {
		if err := dev.WriteAt(b, end(l.Size)+i*labelApart, true); err != nil {
			return err
		}
	}
	return dev.Flush(background)
}
