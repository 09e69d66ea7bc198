package segment

import "fmt"

const keysMagic = 0x5359454b // "KEYS"

// The key table holds the wrapped keys of encrypted volumes, in sectors of their own between the
// scrub's marks and the segments. It is overwritten in place, because a key that was destroyed must
// not stand in an old part of a log. Each page stands twice, the copies one behind the other.
const (
	KeysOff   = 0x190000
	KeyPages  = 56
	KeyCopies = 2

	keyFixed   = 64
	keySlot    = 80
	wrappedMax = 64
	// KeysPerPage is the most keys of a page.
	KeysPerPage = (Sector - keyFixed - 4) / keySlot
	// KeysMax is the most keys of a device.
	KeysMax = KeyPages * KeysPerPage
)

// Key is a volume's data key, wrapped under a key that is not on the device.
type Key struct {
	ID      uint32 // not 0
	Under   uint64 // tells one wrapping key from another
	Wrapped []byte // at most 64 bytes; their meaning is the engine's
}

// KeyPage is a page of the table.
type KeyPage struct {
	No   uint32
	Turn uint64 // raised by each change; the higher valid copy wins
	Keys []Key  // at most KeysPerPage
}

// KeyOff gives the place of a copy of a page.
func KeyOff(page uint32, copied int) int64 {
	return KeysOff + (int64(page)*KeyCopies+int64(copied))*Sector
}

// Encode fills one sector. It panics only on more than a page holds, which is the engine's mistake.
func (p *KeyPage) Encode(b []byte) {
	if len(p.Keys) > KeysPerPage {
		panic("segment: key page too large")
	}
	clear(b[:Sector])
	le.PutUint32(b[0:], keysMagic)
	le.PutUint32(b[4:], p.No)
	le.PutUint64(b[8:], p.Turn)
	le.PutUint32(b[16:], uint32(len(p.Keys)))
	for i := range p.Keys {
		k, s := &p.Keys[i], b[keyFixed+i*keySlot:]
		le.PutUint32(s[0:], k.ID)
		s[4] = byte(copy(s[16:16+wrappedMax], k.Wrapped))
		le.PutUint64(s[8:], k.Under)
	}
	le.PutUint32(b[Sector-4:], Checksum(b[:Sector-4]))
}

// DecodeKeyPage reads and checks one sector.
func DecodeKeyPage(b []byte) (*KeyPage, error) {
	if len(b) < Sector || le.Uint32(b) != keysMagic {
		return nil, fmt.Errorf("key page: no magic: %w", ErrBad)
	}
	if le.Uint32(b[Sector-4:]) != Checksum(b[:Sector-4]) {
		return nil, fmt.Errorf("key page: checksum: %w", ErrBad)
	}
	p, n := &KeyPage{No: le.Uint32(b[4:]), Turn: le.Uint64(b[8:])}, le.Uint32(b[16:])
	if p.No >= KeyPages || n > KeysPerPage {
		return nil, fmt.Errorf("key page %d: %d keys: %w", p.No, n, ErrBad)
	}
	for i := range int(n) {
		s := b[keyFixed+i*keySlot:]
		k := Key{ID: le.Uint32(s), Under: le.Uint64(s[8:])}
		if k.ID == 0 || s[4] > wrappedMax {
			return nil, fmt.Errorf("key page %d: key %d of %d B: %w", p.No, k.ID, s[4], ErrBad)
		}
		k.Wrapped = append(k.Wrapped, s[16:16+int(s[4])]...)
		p.Keys = append(p.Keys, k)
	}
	return p, nil
}
