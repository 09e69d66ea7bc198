package segment

// Loc says where a copy of a block stands and what its bytes must be, in 8 bytes:
//
//	63..32 address in blocks of 4 KiB | 31..0 CRC-32C of the block
//
// The first blocks of a device are its guard, so an address of 0 is free to say what stands
// nowhere; the low half then holds the kind. So every read is verified with all 32 bits at 8 bytes
// a block, on devices of up to 16 TiB. The zero Loc says nothing at all: in a leaf, that its branch
// has not written the block and that an older branch answers for it.
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

// MakeLoc gives the location of a block at an address in units of 512 bytes: a multiple of
// BlockUnits, not 0, inside SizeMax.
func MakeLoc(addr uint64, crc uint32) Loc { return Loc(addr/BlockUnits<<32 | uint64(crc)) }

// Kind gives the kind; Lost for what no version of the format writes.
func (l Loc) Kind() LocKind {
	switch {
	case l>>32 != 0:
		return Flash
	case l <= LostLoc:
		return LocKind(l)
	}
	return Lost
}

// Addr gives the place of a Flash block on the device in units of 512 bytes.
func (l Loc) Addr() uint64 { return uint64(l>>32) * BlockUnits }

// Off gives the place of a Flash block on the device in bytes.
func (l Loc) Off() int64 { return int64(l>>32) * BlockSize }

// CRC gives the checksum of a Flash block.
func (l Loc) CRC() uint32 { return uint32(l) }
