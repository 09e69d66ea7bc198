package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"weft/backends"
	"weft/dataplane/checksum"
	"weft/dataplane/segment"
	"weft/domain"
)

// Sizes of the format, in bytes.
const (
	page       = 4096
	headerMax  = 2 * page // two copies, written in turn
	slotHeader = 64       // one copy of a slot's header; there are two
	wordsOff   = 2 * slotHeader
	// EntriesMax is the most records of a slot: the words of its commit page.
	EntriesMax = (page - wordsOff) / 8
	// entryRoom is the room for entries of a slot for each block of its payload: a record of one block
	// takes half of it, so that as many records without payload fit.
	entryRoom = 2 * (segment.EntrySettled + segment.EntryFresh)

	// entryMax is the size of the largest entry.
	entryMax = segment.EntrySettled + segment.EntryFresh + 4*(segment.RecordBlocks-1)

	shareMagic = 0x314c4e4a54464557 // "WEFTJNL1"
	// 1 had no salts, 2 no outcomes; they are read, and become 3 when they are used.
	version = 3
)

// SlotsMin is the fewest slots of a share for a device with so many lanes: each lane may hold one
// open, one waits to be opened by each, and some are on their way to flash.
func SlotsMin(lanes int) int { return 2*lanes + 4 }

// Errors of a share that is not what it should be.
var (
	ErrBlank = errors.New("journal: no share here")    // never formatted
	ErrBad   = errors.New("journal: share is damaged") // no header verifies
)

// Header says whose a share is. Sizes are bytes.
type Header struct {
	Cluster domain.ClusterID
	Node    domain.NodeID
	Device  domain.DeviceID
	// ID is drawn when the share is formatted, never zero: the device's anchors repeat it.
	ID          uint64
	Incarnation uint32 // of the engine that used it last
	Payload     uint32 // of a slot: a multiple of a block, at least the device's largest record
	Slots       uint32
	turn        uint64 // raised with each write; the higher valid copy wins
}

// Share is a device's part of an NVRAM region.
type Share struct {
	dev     backends.ByteDevice
	mem     []byte
	head    Header
	entries int // bytes of a slot's entries
	salt    uint32
}

var le = binary.LittleEndian

// entryBytes gives the bytes that a slot keeps for its entries.
func entryBytes(payload int) int {
	n := payload / segment.BlockSize * entryRoom
	return segment.RoundUp(min(max(n, entryMax), EntriesMax*entryRoom/2), page)
}

// slotBytes gives the size of a slot.
func slotBytes(payload int) int { return page + entryBytes(payload) + payload }

// Fit gives how many slots of a payload a region of so many bytes holds.
func Fit(size int64, payload int) int {
	return int(max(0, size-headerMax) / int64(slotBytes(payload)))
}

// Format makes an empty share of all of dev. What was there is gone. It fills in the number of
// slots; a size with room for none is refused.
func Format(dev backends.ByteDevice, h Header) (*Share, error) {
	h.Slots = uint32(Fit(int64(len(dev.Bytes())), int(h.Payload)))
	if h.Slots == 0 || h.ID == 0 || h.Payload == 0 || h.Payload%segment.BlockSize != 0 {
		return nil, fmt.Errorf("journal: no share in %d bytes with slots of %d", len(dev.Bytes()),
			h.Payload)
	}
	s := newShare(dev, h)
	s.Wipe()
	for i := range s.Slots() {
		clear(s.mem[s.slot(i):][:page])
		s.dev.Persist(s.slot(i), page)
	}
	s.Begin(h.Incarnation)
	return s, nil
}

func newShare(dev backends.ByteDevice, h Header) *Share {
	s := &Share{dev: dev, mem: dev.Bytes(), head: h, entries: entryBytes(int(h.Payload))}
	var id [8]byte
	le.PutUint64(id[:], h.ID)
	s.salt = checksum.Sum(id[:])
	return s
}

// Open reads the share's header: ErrBlank where none was ever made, ErrBad where none verifies or
// the geometry does not fit the memory.
func Open(dev backends.ByteDevice) (*Share, error) {
	mem := dev.Bytes()
	if len(mem) < headerMax {
		return nil, fmt.Errorf("%w: %d bytes", ErrBlank, len(mem))
	}
	var best *Header
	blank := true
	for i := range 2 {
		p := mem[i*page : (i+1)*page]
		blank = blank && le.Uint64(p) == 0
		if h, ok := decodeHeader(p); ok && (best == nil || h.turn > best.turn) {
			best = h
		}
	}
	switch {
	case best == nil && blank:
		return nil, ErrBlank
	case best == nil:
		return nil, ErrBad
	case best.Payload == 0 || best.Payload%segment.BlockSize != 0 ||
		int(best.Slots) > Fit(int64(len(mem)), int(best.Payload)):
		return nil, fmt.Errorf("%w: %d slots of %d in %d bytes", ErrBad, best.Slots, best.Payload,
			len(mem))
	}
	return newShare(dev, *best), nil
}

// Wipe makes the memory blank: no share is there any more. What it held must be durable elsewhere,
// and the device's anchor must not name it.
func (s *Share) Wipe() {
	for off := range int64(headerMax / 8) {
		s.store(off*8, 0)
	}
	s.dev.Persist(0, headerMax)
}

// Begin notes that an incarnation uses the share, durably, in the copy of the header that is not
// the newest.
func (s *Share) Begin(incarnation uint32) {
	s.head.turn++
	s.head.Incarnation = incarnation
	off := int64(s.head.turn%2) * page
	s.head.encode(s.mem[off : off+page])
	s.dev.Persist(off, page)
}

// Header gives what the share says of itself.
func (s *Share) Header() Header { return s.head }

// Slots counts the slots.
func (s *Share) Slots() int { return int(s.head.Slots) }

// SlotBlocks gives the blocks of payload of a slot.
func (s *Share) SlotBlocks() int { return int(s.head.Payload) / segment.BlockSize }

// Volatile tells whether what is stored survives a crash of the process only.
func (s *Share) Volatile() bool { return s.dev.Geometry().Durability != backends.PowerSafe }

// Geometry describes the memory below.
func (s *Share) Geometry() backends.Geometry { return s.dev.Geometry() }

func (s *Share) slot(i int) int64 {
	return headerMax + int64(i)*int64(slotBytes(int(s.head.Payload)))
}

func (h *Header) encode(b []byte) {
	clear(b)
	le.PutUint64(b[0:], shareMagic)
	le.PutUint32(b[8:], version)
	copy(b[16:], h.Cluster.UUID[:])
	copy(b[32:], h.Node.UUID[:])
	copy(b[48:], h.Device.UUID[:])
	le.PutUint64(b[64:], h.ID)
	le.PutUint64(b[72:], h.turn)
	le.PutUint32(b[80:], h.Incarnation)
	le.PutUint32(b[84:], h.Payload)
	le.PutUint32(b[88:], h.Slots)
	le.PutUint32(b[page-4:], checksum.Sum(b[:page-4]))
}

func decodeHeader(b []byte) (*Header, bool) {
	v := le.Uint32(b[8:])
	if le.Uint64(b) != shareMagic || v < 1 || v > version ||
		le.Uint32(b[page-4:]) != checksum.Sum(b[:page-4]) {
		return nil, false
	}
	h := &Header{
		ID: le.Uint64(b[64:]), turn: le.Uint64(b[72:]), Incarnation: le.Uint32(b[80:]),
		Payload: le.Uint32(b[84:]), Slots: le.Uint32(b[88:]),
	}
	copy(h.Cluster.UUID[:], b[16:])
	copy(h.Node.UUID[:], b[32:])
	copy(h.Device.UUID[:], b[48:])
	return h, true
}

// store puts a word into memory in one piece: it is there whole or not at all after a power cut.
func (s *Share) store(off int64, word uint64) {
	var b [8]byte
	le.PutUint64(b[:], word)
	p := (*uint64)(unsafe.Pointer(&s.mem[off : off+8][0]))
	atomic.StoreUint64(p, binary.NativeEndian.Uint64(b[:]))
}

// word reads a word.
func (s *Share) word(off int64) uint64 { return le.Uint64(s.mem[off:]) }
