package nbd

import "weft/domain"

// Errors on the wire.
const (
	wireEPERM     = 1
	wireEIO       = 5
	wireEINVAL    = 22
	wireENOSPC    = 28
	wireENOTSUP   = 95
	wireESHUTDOWN = 108
)

// wireError is the one table from a kind to NBD's code. The protocol knows no "try again": what is
// busy or suspended is held by the disk as long as it may be, and fails here after that.
func wireError(k domain.Kind, cmd, flags uint16) uint32 {
	switch k {
	case domain.OutOfRange:
		if cmd == cmdWrite || cmd == cmdWriteZeroes {
			return wireENOSPC
		}
		return wireEINVAL
	case domain.Unsupported:
		if cmd == cmdWriteZeroes && flags&cmdFastZero != 0 {
			return wireENOTSUP // the client then writes zeros itself
		}
		return wireEINVAL
	case domain.Invalid, domain.TooLarge:
		return wireEINVAL
	case domain.Denied, domain.ReadOnly, domain.Reserved:
		return wireEPERM
	case domain.NoSpace:
		return wireENOSPC
	case domain.NotFound, domain.Unavailable:
		return wireESHUTDOWN
	case domain.Internal, domain.Exists, domain.Conflict, domain.Busy, domain.Stale,
		domain.Suspended, domain.Corrupt, domain.Aborted, domain.Miscompare, domain.Locked,
		domain.Mismatch, domain.Expired:
		return wireEIO
	}
	return wireEIO
}

// pathGone tells whether an error of this kind also ends the connection: another node, or a later
// connection, may serve the disk, and a client that stays would never find out.
func pathGone(k domain.Kind) bool { return k == domain.NotFound || k == domain.Unavailable }

// clientFault tells whether a kind speaks of the client's request and not of our state.
func clientFault(k domain.Kind) bool {
	return k == domain.Invalid || k == domain.OutOfRange || k == domain.Unsupported ||
		k == domain.ReadOnly || k == domain.TooLarge
}
