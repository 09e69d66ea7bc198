package segment

// Loc says where a copy of a block stands and what its bytes must be, in 8 bytes:
//
//	plain       63..32 address in blocks of 4 KiB | 31: 0 | 30..0 low 31 bits of the CRC-32C
//	compressed  63..32 address in blocks of 4 KiB | 31: 1 | 30..28 unit in that block where it begins
//	            | 27..25 units that it takes, 1 to 7 | 24..0 low 25 bits of the CRC-32C
//
// The CRC is over the bytes as they stand on the device. The first blocks of a device are its
// guard, so an address of 0 is free to say what stands nowhere; the low half then holds the kind.
// So every read is verified at 8 bytes a block, on devices of up to 16 TiB; what a compressed block
// lacks of its CRC, the checksum inside of it makes up for. The zero Loc says nothing at all: in a
// leaf, that its branch has not written the block and that an older branch answers for it.
type Loc uint64

// LocKind is what a Loc says of its block.
type LocKind uint8

// The kinds of location. What is not Flash is stored as that number with address 0.
const (
	None  LocKind = 0 // this branch never wrote the block
	Hole  LocKind = 1 // unmapped in this branch, over what an older one holds; reads zero
	Zero  LocKind = 2 // written as zeros; reads zero, counts as allocated
	Lost  LocKind = 3 // the index entry was damaged; reads as corrupt until written again
	Flash LocKind = 4 // data on this device
)

// The locations of blocks that stand nowhere.
const (
	HoleLoc = Loc(Hole)
	ZeroLoc = Loc(Zero)
	LostLoc = Loc(Lost)
)

// addrMax bounds the addresses of blocks, in blocks.
const addrMax = 1 << 32

// UnitsMax is the most units of 512 bytes that a compressed block takes: an eighth less than a
// plain one.
const UnitsMax = BlockUnits - 1

const (
	locPacked   = 1 << 31
	locUnitBits = 28 // shift of the unit where a compressed block begins
	locSizeBits = 25 // shift of the units that it takes
	locPlainCRC = 1<<31 - 1
	locSmallCRC = 1<<locSizeBits - 1
)

// MakeLoc gives the location of a block at an address in units of 512 bytes: a multiple of
// BlockUnits, not 0, inside SizeMax.
func MakeLoc(addr uint64, crc uint32) Loc {
	return Loc(addr/BlockUnits<<32 | uint64(crc&locPlainCRC))
}

// MakePacked gives the location of a compressed block of 1 to UnitsMax units at an address in
// units, under the same bounds but for the multiple.
func MakePacked(addr uint64, units int, crc uint32) Loc {
	return Loc(addr/BlockUnits<<32 | locPacked | addr%BlockUnits<<locUnitBits |
		uint64(units)<<locSizeBits | uint64(crc&locSmallCRC))
}

// Kind gives the kind; Lost for what no version of the format writes.
func (l Loc) Kind() LocKind {
	switch {
	case l>>32 != 0:
		if l&(locPacked|UnitsMax<<locSizeBits) == locPacked {
			return Lost // compressed to nothing
		}
		return Flash
	case l <= LostLoc:
		return LocKind(l)
	}
	return Lost
}

// Packed tells whether a Flash block is compressed.
func (l Loc) Packed() bool { return l&locPacked != 0 }

// Units gives how many units of 512 bytes a Flash block takes on the device.
func (l Loc) Units() int {
	if l.Packed() {
		return int(l >> locSizeBits & UnitsMax)
	}
	return BlockUnits
}

// Stored is Units in bytes.
func (l Loc) Stored() int { return l.Units() * Unit }

// Room gives the bytes that a Flash block claims of a device: what is stored of it, and for a
// compressed one its own entry in chunk and footer, for which a plain block's room allows already.
func (l Loc) Room() int64 {
	if l.Packed() {
		return int64(l.Stored() + PackedEntry)
	}
	return BlockSize
}

// PackedEntry is what a compressed block takes beside its bytes: an entry of its own, twice.
const PackedEntry = 2 * (EntrySettled + EntryMoved)

// Addr gives the place of a Flash block on the device in units of 512 bytes.
func (l Loc) Addr() uint64 {
	if l.Packed() {
		return uint64(l>>32)*BlockUnits + uint64(l>>locUnitBits&UnitsMax)
	}
	return uint64(l>>32) * BlockUnits
}

// Off gives the place of a Flash block on the device in bytes.
func (l Loc) Off() int64 { return int64(l.Addr()) * Unit }

// Span gives the sectors in which a Flash block stands: what has to be read of the device.
func (l Loc) Span() (from, to int64) {
	from = int64(l>>32) * BlockSize
	return from, from + int64(RoundUp(int(l.Off()-from)+l.Stored(), Sector))
}

// CRC gives what the location says of the checksum of a Flash block.
func (l Loc) CRC() uint32 {
	if l.Packed() {
		return uint32(l & locSmallCRC)
	}
	return uint32(l & locPlainCRC)
}

// Matches tells whether b begins with the bytes of a Flash block as they stand on the device. It
// needs Stored bytes.
func (l Loc) Matches(b []byte) bool {
	crc := Checksum(b[:l.Stored()])
	if l.Packed() {
		return crc&locSmallCRC == l.CRC()
	}
	return crc&locPlainCRC == l.CRC()
}
