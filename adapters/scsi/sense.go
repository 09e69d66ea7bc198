package scsi

import (
	"encoding/binary"

	"weft/domain"
)

// Status codes of SAM.
const (
	statusGood         = 0x00
	statusCheck        = 0x02
	statusConditionMet = 0x04
	statusBusy         = 0x08
	statusConflict     = 0x18
	statusTaskSetFull  = 0x28
	statusTaskAborted  = 0x40
)

// Sense keys.
const (
	keyNone      = 0x0
	keyNotReady  = 0x2
	keyMedium    = 0x3
	keyHardware  = 0x4
	keyIllegal   = 0x5
	keyAttention = 0x6
	keyProtect   = 0x7
	keyCopy      = 0xa // COPY ABORTED
	keyMiscomp   = 0xe
)

// senseMax is the longest sense data built here: descriptor format with an information and a
// sense-key specific descriptor.
const senseMax = 28

// outcome is how a command ended: a status and, with CHECK CONDITION, the sense.
type outcome struct {
	status         byte
	key, asc, ascq byte
	hasInfo        bool
	hasProgress    bool
	progress       uint16 // sense-key specific progress of 65536
	info           uint64
}

func check(key, asc, ascq byte) outcome {
	return outcome{status: statusCheck, key: key, asc: asc, ascq: ascq}
}

// The outcomes most commands share.
var (
	good         = outcome{}
	conflict     = outcome{status: statusConflict}
	badOpcode    = check(keyIllegal, 0x20, 0x00)
	badField     = check(keyIllegal, 0x24, 0x00)
	badRange     = check(keyIllegal, 0x21, 0x00)
	badLength    = check(keyIllegal, 0x1a, 0x00)
	badParameter = check(keyIllegal, 0x26, 0x00)
	badRelease   = check(keyIllegal, 0x26, 0x04)
	badUnit      = check(keyIllegal, 0x0e, 0x03) // invalid field in command information unit
	protected    = check(keyProtect, 0x27, 0x00)
	noResources  = check(keyIllegal, 0x55, 0x04) // insufficient registration resources
)

// failed maps the error of a disk to an outcome. It is the one table from kind to sense. write
// tells which direction failed, lba where; alone tells that nothing else of the nexus is running,
// so that TASK SET FULL would never be followed by a completion.
func failed(io *domain.IO, lba uint64, alone bool) outcome {
	if io.Err == nil {
		return good
	}
	write := io.Op != domain.OpRead
	switch domain.KindOf(io.Err) {
	case domain.Invalid, domain.Mismatch, domain.TooLarge, domain.Exists:
		return badField
	case domain.Unsupported:
		return badOpcode
	case domain.OutOfRange:
		return badRange
	case domain.NotFound:
		return check(keyIllegal, 0x25, 0x00)
	case domain.ReadOnly, domain.Denied:
		return protected
	case domain.NoSpace:
		return check(keyProtect, 0x27, 0x07)
	case domain.Miscompare:
		o := check(keyMiscomp, 0x1d, 0x00)
		o.hasInfo, o.info = true, uint64(io.Mismatch)
		return o
	case domain.Reserved:
		return conflict
	case domain.Busy, domain.Conflict:
		if alone {
			return outcome{status: statusBusy}
		}
		return outcome{status: statusTaskSetFull}
	case domain.Suspended, domain.Stale, domain.Locked, domain.Expired:
		return outcome{status: statusBusy}
	case domain.Unavailable:
		return check(keyNotReady, 0x04, 0x0c)
	case domain.Aborted:
		return outcome{status: statusTaskAborted}
	case domain.Corrupt:
		o := check(keyMedium, 0x11, 0x00)
		if write {
			o = check(keyMedium, 0x0c, 0x00)
		}
		o.hasInfo, o.info = true, lba
		return o
	case domain.Internal: // a bug of ours, or an error that names no kind
	}
	return check(keyHardware, 0x44, 0x00)
}

// sense writes the sense data of an outcome into dst, which has senseMax bytes, and gives its
// length: none for a status other than CHECK CONDITION.
func (o outcome) sense(dst []byte, descriptor bool) int {
	if o.status != statusCheck {
		return 0
	}
	clear(dst[:senseMax])
	if descriptor {
		return o.descriptors(dst)
	}
	dst[0] = 0x70
	dst[2] = o.key
	dst[7] = 10
	dst[12], dst[13] = o.asc, o.ascq
	// Fixed format has four bytes of information; a larger value is left out, as SPC has it.
	if o.hasInfo && o.info <= 0xffffffff {
		dst[0] |= 0x80
		binary.BigEndian.PutUint32(dst[3:], uint32(o.info))
	}
	if o.hasProgress {
		dst[15] = 0x80
		binary.BigEndian.PutUint16(dst[16:], o.progress)
	}
	return 18
}

func (o outcome) descriptors(dst []byte) int {
	dst[0] = 0x72
	dst[1], dst[2], dst[3] = o.key, o.asc, o.ascq
	n := 8
	if o.hasInfo {
		d := dst[n:]
		d[0], d[1], d[2] = 0x00, 0x0a, 0x80
		binary.BigEndian.PutUint64(d[4:], o.info)
		n += 12
	}
	if o.hasProgress {
		d := dst[n:]
		d[0], d[1], d[4] = 0x02, 0x06, 0x80
		binary.BigEndian.PutUint16(d[5:], o.progress)
		n += 8
	}
	dst[7] = byte(n - 8)
	return n
}
