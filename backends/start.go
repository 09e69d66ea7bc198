package backends

// Read is a read that no goroutine waits for. From StartRead until To.ReadDone ran it and P belong
// to the device.
type Read struct {
	P   []byte // not empty; as for ReadAt
	Off int64  // bytes
	To  ReadDone
}

// ReadDone is told once of the end of a Read, with an error as ReadAt gives it. It may run on the
// goroutine that all reads of the device wait for, or inside StartRead: it must not block, and must
// not call the device but for TryStartRead.
type ReadDone interface {
	ReadDone(r *Read, err error)
}

// ReadStarter is a Device that can read without holding a goroutine. Not all can, and not always.
type ReadStarter interface {
	Device
	// StartRead starts a read, or gives false: then nothing was begun, and ReadAt does it. With
	// more the device may keep the read back to hand several over at once; the caller promises
	// another StartRead or KickReads before it waits for anything. It waits for others' reads to
	// end while too many are under way.
	StartRead(r *Read, more bool) bool
	// KickReads hands over what StartRead kept back.
	KickReads()
}

// ReadChainer is a ReadStarter whose reads may be started from where others end. Not all can.
type ReadChainer interface {
	ReadStarter
	// TryStartRead starts a read without waiting for anything, also from ReadDone, or gives false:
	// then nothing was begun. It needs no KickReads. ReadDone never runs inside it.
	TryStartRead(r *Read) bool
}

// VectorWriter is a Device that writes several buffers as one. Not all can.
type VectorWriter interface {
	Device
	// WriteVAt writes the buffers one behind the other from off on, as WriteAt writes their
	// concatenation, and with its errors. Each is aligned and a multiple of LogicalBlock long, and
	// none is empty. The slice is the device's to change during the call; the buffers are only read.
	WriteVAt(bufs [][]byte, off int64, fua bool) error
}

// WriteV writes buffers one behind the other from off on: as one write where the device can, else
// buffer by buffer, with FUA on each where that was asked for. Its errors are the device's.
func WriteV(dev Device, bufs [][]byte, off int64, fua bool) error {
	if v, ok := dev.(VectorWriter); ok {
		return v.WriteVAt(bufs, off, fua)
	}
	for _, b := range bufs {
		if err := dev.WriteAt(b, off, fua); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}
