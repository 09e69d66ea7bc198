package segment

import (
	"fmt"

	"weft/domain"
)

const (
	segMagic     = 0x47455357 // "WSEG"
	chunkMagic   = 0x4b484357 // "WCHK"
	trailerMagic = 0x52544657 // "WFTR"
)

// Stream says which of a device's logs a segment belongs to.
type Stream uint8

// The streams.
const (
	StreamLog   Stream = 1 // what hosts wrote, in accept order, chained
	StreamGen1  Stream = 2 // moved once by the cleaner
	StreamGen2  Stream = 3 // moved again
	StreamMeta  Stream = 4 // leaves and checkpoint roots
	StreamCold  Stream = 5 // on the disk of a pair: moved there by the cleaner
	StreamCount        = 6
)

// Header opens a segment. It is durable before the segment's first chunk is written.
type Header struct {
	Segment     uint32
	Sequence    uint64 // the segment's life; one counter per device, never reused
	Stream      Stream
	Lane        uint8
	Incarnation uint32
	Device      domain.DeviceID
	Anchor      uint64 // sequence of the newest anchor when the segment was opened
	// Salt is drawn at random for this life of the segment: the keys of what is encrypted here are
	// derived with it.
	Salt Salt
}

// Salt is what makes a key that of one life of one segment, in 16 bytes.
type Salt [16]byte

// Encode fills one sector.
func (h *Header) Encode(b []byte) {
	clear(b[:Sector])
	le.PutUint32(b[0:], segMagic)
	le.PutUint32(b[4:], h.Segment)
	le.PutUint64(b[8:], h.Sequence)
	b[16], b[17] = byte(h.Stream), h.Lane
	le.PutUint32(b[20:], h.Incarnation)
	copy(b[24:], h.Device.UUID[:])
	le.PutUint64(b[40:], h.Anchor)
	copy(b[48:], h.Salt[:])
	le.PutUint32(b[Sector-4:], Checksum(b[:Sector-4]))
}

// DecodeHeader reads and checks one sector.
func DecodeHeader(b []byte) (*Header, error) {
	if len(b) < Sector || le.Uint32(b) != segMagic {
		return nil, fmt.Errorf("segment header: no magic: %w", ErrBad)
	}
	if le.Uint32(b[Sector-4:]) != Checksum(b[:Sector-4]) {
		return nil, fmt.Errorf("segment header: checksum: %w", ErrBad)
	}
	h := &Header{
		Segment: le.Uint32(b[4:]), Sequence: le.Uint64(b[8:]), Stream: Stream(b[16]), Lane: b[17],
		Incarnation: le.Uint32(b[20:]), Anchor: le.Uint64(b[40:]),
	}
	copy(h.Device.UUID[:], b[24:])
	copy(h.Salt[:], b[48:])
	if h.Stream == 0 || h.Stream >= StreamCount || h.Lane >= LanesMax {
		return nil, fmt.Errorf("segment header: stream %d lane %d: %w", h.Stream, h.Lane, ErrBad)
	}
	return h, nil
}

// Chunk is the fixed part of a chunk's header: one group commit.
type Chunk struct {
	Incarnation  uint32
	Sequence     uint64 // of the segment's life
	LSN          uint64 // the chunk's own: that of its last entry
	PrevLSN      uint64 // of its predecessor in the lane's chain; 0 outside the log stream
	FlushMark    uint64 // every chunk of the chain with LSN <= it was durable at this one's seal
	Entries      uint16
	Stream       Stream
	Lane         uint8
	PrevCRC      uint32 // Chain of the predecessor
	EntryBytes   uint32 // with the salt before them where there is one
	PayloadBytes uint32 // a multiple of Sector
	CRC          uint32 // over header and entries
	// Sealed says that entries are encrypted. Then the salt of the segment's life stands before the
	// entries too, so that the header of the segment may rot, and where the chunk stands: in
	// another place its blocks would be opened as others.
	Sealed bool
	Salt   Salt
	Place  uint64 // on the device, in sectors

	scratch [20]byte
}

// HeaderBytes gives the padded size of the header with its entries.
func (c *Chunk) HeaderBytes() int { return RoundUp(ChunkHeader+int(c.EntryBytes), Sector) }

// Bytes gives the whole size on the device.
func (c *Chunk) Bytes() int { return c.HeaderBytes() + int(c.PayloadBytes) }

// EntriesAt gives where the entries begin: behind the fixed part, and behind the salt.
func (c *Chunk) EntriesAt() int {
	if c.Sealed {
		return ChunkHeader + SaltBytes
	}
	return ChunkHeader
}

// Stands tells whether the chunk may count where it was found, at an offset of the device.
func (c *Chunk) Stands(off int64) bool { return !c.Sealed || c.Place == uint64(off/Sector) }

// Encode writes the fixed part before the entries, which stand in b[EntriesAt:] already, and
// computes CRC over both. b holds at least HeaderBytes; the padding is the caller's to clear.
func (c *Chunk) Encode(b []byte, salt uint32) {
	le.PutUint32(b[0:], chunkMagic)
	le.PutUint32(b[4:], c.Incarnation)
	le.PutUint64(b[8:], c.Sequence)
	le.PutUint64(b[16:], c.LSN)
	le.PutUint64(b[24:], c.PrevLSN)
	le.PutUint64(b[32:], c.FlushMark)
	le.PutUint16(b[40:], c.Entries)
	b[42], b[43] = byte(c.Stream), c.Lane
	le.PutUint32(b[44:], c.PrevCRC)
	le.PutUint32(b[48:], c.EntryBytes)
	le.PutUint32(b[52:], c.PayloadBytes)
	le.PutUint32(b[60:], 0)
	if c.Sealed {
		b[60] = chunkSealed
		copy(b[ChunkHeader:], c.Salt[:])
		le.PutUint64(b[ChunkHeader+len(c.Salt):], c.Place)
	}
	c.CRC = chunkCRC(b, int(c.EntryBytes), salt)
	le.PutUint32(b[56:], c.CRC)
}

// chunkCRC covers the fixed part but for the CRC itself, and the entries, and begins with the
// device's salt.
func chunkCRC(b []byte, entryBytes int, salt uint32) uint32 {
	crc := crcUpdate(salt, b[:56])
	return crcUpdate(crc, b[60:ChunkHeader+entryBytes])
}

// Chain gives the checksum by which the successor in the lane's log names this chunk. It covers
// what the lane decided (LSN, predecessor, entries) and not where the chunk stands, so a chunk
// written again elsewhere after a failed write keeps its place in the chain. What is encrypted is
// so under a key of its place: of such entries the checksums and tags do not count.
func (c *Chunk) Chain(entries []byte) uint32 {
	b := &c.scratch // on the stack it would escape: one allocation for every chunk
	le.PutUint64(b[0:], c.LSN)
	le.PutUint64(b[8:], c.PrevLSN)
	le.PutUint32(b[16:], c.PrevCRC)
	crc := Checksum(b[:])
	for c.Sealed && len(entries) >= EntrySettled {
		n, sums := entrySize(entries)
		if n > len(entries) {
			break
		}
		if sums == n {
			crc = crcUpdate(crc, entries[:n])
		} else {
			crc = crcUpdate(crc, entries[:EntrySettled-4])
			crc = crcUpdate(crc, entries[EntrySettled:sums])
		}
		entries = entries[n:]
	}
	return crcUpdate(crc, entries)
}

// entrySize gives the size of the entry that begins b, and where the sums and tags of an encrypted
// one begin: at its end for another.
func entrySize(b []byte) (n, sums int) {
	e := Entry{Count: int(b[9]) + 1, Kind: Kind(b[10]), Flags: b[11]}
	if ranged(e.Kind) {
		e.Range = min(get48(b[32:]), LeafBlocks) // one that is larger is refused
	}
	n = e.Size()
	if e.Kind != KindData || e.Flags&FlagEncrypted == 0 {
		return n, n
	}
	return n, n - 4*(e.Count-1) - TagBytes*e.Count
}

// DecodeChunkFixed reads the fixed part and checks its limits, not its CRC, which needs the
// entries.
func DecodeChunkFixed(b []byte) (*Chunk, error) {
	if len(b) < ChunkHeader || le.Uint32(b) != chunkMagic {
		return nil, fmt.Errorf("chunk: no magic: %w", ErrBad)
	}
	c := &Chunk{
		Incarnation: le.Uint32(b[4:]), Sequence: le.Uint64(b[8:]), LSN: le.Uint64(b[16:]),
		PrevLSN: le.Uint64(b[24:]), FlushMark: le.Uint64(b[32:]), Entries: le.Uint16(b[40:]),
		Stream: Stream(b[42]), Lane: b[43], PrevCRC: le.Uint32(b[44:]),
		EntryBytes: le.Uint32(b[48:]), PayloadBytes: le.Uint32(b[52:]), CRC: le.Uint32(b[56:]),
		Sealed: b[60]&chunkSealed != 0,
	}
	room := int(c.EntryBytes) - c.EntriesAt() + ChunkHeader
	switch {
	case c.EntryBytes > HeaderMax-ChunkHeader || int(c.Entries)*EntrySettled > room || room < 0:
		return nil, fmt.Errorf("chunk: %d entries in %d B: %w", c.Entries, c.EntryBytes, ErrBad)
	case c.PayloadBytes > PayloadMax || c.PayloadBytes%Sector != 0:
		return nil, fmt.Errorf("chunk: payload of %d B: %w", c.PayloadBytes, ErrBad)
	case c.Stream == 0 || c.Stream >= StreamCount || c.Lane >= LanesMax:
		return nil, fmt.Errorf("chunk: stream %d lane %d: %w", c.Stream, c.Lane, ErrBad)
	}
	return c, nil
}

// DecodeChunk reads a whole header with its entries and checks the CRC. entries is a view of b.
func DecodeChunk(b []byte, salt uint32) (c *Chunk, entries []byte, err error) {
	if c, err = DecodeChunkFixed(b); err != nil {
		return nil, nil, err
	}
	end := ChunkHeader + int(c.EntryBytes)
	if len(b) < end {
		return nil, nil, fmt.Errorf("chunk: header cut short: %w", ErrBad)
	}
	if chunkCRC(b, int(c.EntryBytes), salt) != c.CRC {
		return nil, nil, fmt.Errorf("chunk: header checksum: %w", ErrBad)
	}
	if c.Sealed {
		copy(c.Salt[:], b[ChunkHeader:])
		c.Place = le.Uint64(b[ChunkHeader+len(c.Salt):])
	}
	return c, b[c.EntriesAt():end], nil
}

// Kind says what an entry records.
type Kind uint8

// The kinds. Numbers are never reused; 15 and 16 are reserved for payload and commit.
const (
	KindData   Kind = 1
	KindZero   Kind = 2
	KindUnmap  Kind = 3
	KindAlias  Kind = 4
	KindBranch Kind = 5
	KindEra    Kind = 6
	KindSame   Kind = 7
	KindSeal   Kind = 8
	KindLeaf   Kind = 9
	KindDirty  Kind = 10
	KindFloor  Kind = 11
	KindRetire Kind = 12
	KindBury   Kind = 13
	KindVoid   Kind = 14
	KindRoot   Kind = 17
)

var kindNames = [...]string{
	KindData: "data", KindZero: "zero", KindUnmap: "unmap", KindAlias: "alias", KindBranch: "branch",
	KindEra: "era", KindSame: "same", KindSeal: "seal", KindLeaf: "leaf", KindDirty: "dirty",
	KindFloor: "floor", KindRetire: "retire", KindBury: "bury", KindVoid: "void", KindRoot: "root",
}

// String names the kind as FORMAT.md does, in lower case; one without a name by its number.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Flags of an entry.
const (
	OutcomeApplied    uint8 = 0
	OutcomeSuperseded uint8 = 1
	OutcomeMixed      uint8 = 2
	outcomeMask       uint8 = 3
	FlagMoved         uint8 = 1 << 2
	FlagFresh         uint8 = 1 << 3
	FlagEncrypted     uint8 = 1 << 4
	FlagCompressed    uint8 = 1 << 5
	FlagParent        uint8 = 1 << 6 // of UNMAP: the branch has nothing there, its parent answers
	flagsKnown              = outcomeMask | FlagMoved | FlagFresh | FlagEncrypted | FlagCompressed |
		FlagParent

	chunkSealed = 1 // in a chunk's header
)

// Sizes of an entry's parts in bytes.
const (
	EntrySettled = 48
	EntryFresh   = 16
	EntryMoved   = 16
	SaltBytes    = 24 // of a salt and a place before the entries of a sealed chunk
	TagBytes     = 16 // of each block of an encrypted entry
)

// Entry is one record as a chunk names it. For DATA, Off is the payload's place in units of 512
// bytes from the start of the chunk's payload, and CRC holds the CRC-32C of the first block; the
// further ones follow the entry. With FlagEncrypted the blocks are cipher text, the CRCs are over
// that, and the AES-GCM tags follow the CRCs. With FlagCompressed it is one block in 1 to UnitsMax
// units from any unit on, and the CRC is over those, zeros behind its bytes included; closed after
// it was compressed where both are set. For the range kinds Range counts the blocks, for
// BRANCH Count counts the lines of the payload, which take effect together.
type Entry struct {
	Branch    uint32
	Block     uint64 // below 2^40
	Count     int    // blocks, 1 to 256; 1 for range kinds
	Kind      Kind
	Flags     uint8
	Version   domain.Version
	Gen       uint32
	Off       uint32
	Units     uint16 // stored length in units of 512 B
	Range     uint64 // ZERO and UNMAP: blocks, below 2^48
	Era       uint16
	LSN       uint64 // accept LSN; only the low 32 bits are stored in an entry that was not moved
	CRC       uint32
	Request   domain.RequestID // with FlagFresh
	From      uint64           // with FlagMoved: address in units of 512 B
	FromSeq   uint64           // with FlagMoved: sequence of the segment it came from
	FurtherAt int              // decoded only: where the further CRCs start in the entry bytes
}

// Size gives the entry's encoded size.
func (e *Entry) Size() int {
	n := EntrySettled
	if e.Flags&FlagFresh != 0 {
		n += EntryFresh
	}
	if e.Flags&FlagMoved != 0 {
		n += EntryMoved
	}
	n += e.maskBytes()
	if e.Kind == KindData {
		n += 4 * (e.Count - 1)
		if e.Flags&FlagEncrypted != 0 {
			n += TagBytes * e.Count
		}
	}
	return n
}

// PutSeal notes in an encoded entry with FlagEncrypted what block i has become: the CRC of its
// cipher text, and its tag.
func PutSeal(entry []byte, i int, crc uint32, tag []byte) {
	n, at := entrySize(entry)
	putSum(entry, at, i, crc)
	copy(entry[n-TagBytes*(int(entry[9])+1-i):], tag[:TagBytes])
}

// PutSum notes in an encoded DATA entry without FlagEncrypted the CRC of its block i.
func PutSum(entry []byte, i int, crc uint32) {
	n, _ := entrySize(entry)
	putSum(entry, n-4*int(entry[9]), i, crc)
}

// putSum notes a CRC in an entry whose further ones start at a place.
func putSum(entry []byte, further, i int, crc uint32) {
	if i == 0 {
		le.PutUint32(entry[EntrySettled-4:], crc)
		return
	}
	le.PutUint32(entry[further+4*(i-1):], crc)
}

// SumOf gives the CRC of block i of an encoded DATA entry.
func SumOf(entry []byte, i int) uint32 {
	if i == 0 {
		return le.Uint32(entry[EntrySettled-4:])
	}
	n, at := entrySize(entry)
	if !Encrypted(entry) {
		at = n - 4*int(entry[9])
	}
	return le.Uint32(entry[at+4*(i-1):])
}

// Tag gives the tag of block i of an encrypted entry whose bytes are b: a view.
func Tag(b []byte, i int) []byte {
	n, _ := entrySize(b)
	at := n - TagBytes*(int(b[9])+1-i)
	return b[at : at+TagBytes]
}

// Encrypted tells whether an encoded entry has FlagEncrypted.
func Encrypted(entry []byte) bool { return entry[11]&FlagEncrypted != 0 }

// SealedBytes is how many of an entry's first bytes a tag vouches for: whose block it is, and of
// which version.
const SealedBytes = 32

func ranged(k Kind) bool { return k == KindZero || k == KindUnmap }

// Encode writes the entry; further holds Count-1 CRCs for DATA. It returns the bytes used. Tags are
// left as they are, for PutSeal, and so is a mask, for PutMask.
func (e *Entry) Encode(b []byte, further []uint32) int {
	le.PutUint32(b[0:], e.Branch)
	put40(b[4:], e.Block)
	b[9], b[10], b[11] = byte(e.Count-1), byte(e.Kind), e.Flags
	le.PutUint64(b[12:], uint64(e.Version.Epoch))
	put48(b[20:], e.Version.Seq)
	le.PutUint16(b[26:], uint16(e.Version.Node))
	le.PutUint32(b[28:], e.Gen)
	if ranged(e.Kind) {
		put48(b[32:], e.Range)
	} else {
		le.PutUint32(b[32:], e.Off)
		le.PutUint16(b[36:], e.Units)
	}
	le.PutUint16(b[38:], e.Era)
	le.PutUint32(b[40:], uint32(e.LSN))
	le.PutUint32(b[44:], e.CRC)
	n := EntrySettled
	if e.Flags&FlagFresh != 0 {
		le.PutUint16(b[n:], uint16(e.Request.Gateway))
		put48(b[n+2:], e.Request.Incarnation)
		put56(b[n+8:], e.Request.Counter)
		b[n+15] = e.Request.Attempt
		n += EntryFresh
	}
	if e.Flags&FlagMoved != 0 {
		put40(b[n:], e.From)
		high := e.LSN >> 32
		b[n+5], b[n+6], b[n+7] = byte(high), byte(high>>8), byte(high>>16)
		le.PutUint64(b[n+8:], e.FromSeq)
		n += EntryMoved
	}
	n += e.maskBytes()
	if e.Kind == KindData {
		for _, crc := range further[:e.Count-1] {
			le.PutUint32(b[n:], crc)
			n += 4
		}
	}
	return e.Size()
}

// PutLSN changes the LSN of an encoded entry without FlagMoved: a record that is encoded before it
// is given its place in a log.
func PutLSN(entry []byte, lsn uint64) { le.PutUint32(entry[40:], uint32(lsn)) }

// PutOff changes the place of an encoded entry's payload, in units: compressed blocks get theirs
// behind all plain ones of a chunk.
func PutOff(entry []byte, off uint32) { le.PutUint32(entry[32:], off) }

func put56(b []byte, v uint64) {
	put48(b, v)
	b[6] = byte(v >> 48)
}

// Single is what an entry says of a plain block of data alone: all that recovery asks of most of a
// log.
type Single struct {
	Branch uint32
	Off    uint32
	Block  uint64
	Seq    uint64 // of the version
	LSN    uint64
	CRC    uint32
}

// DecodeSingle reads the entry at the start of b into s, whose chunk has the given LSN, and returns
// its size: 0 when it is no single plain block that was applied, was moved, or is nothing that a
// writer writes. DecodeEntry says of all that DecodeSingle reads the same, and of the rest what it
// is.
func DecodeSingle(b []byte, chunkLSN uint64, s *Single) int {
	if len(b) < EntrySettled {
		return 0
	}
	e := (*[EntrySettled]byte)(b)
	// Block in 5 bytes, blocks less one, kind, flags; place in 4 bytes, units in 2, era in 2.
	head, at := le.Uint64(e[4:]), le.Uint64(e[32:])
	const (
		flags = uint64(FlagFresh|FlagEncrypted) << 56
		block = 1<<40 - 1
		place = 0xffff<<32 | (BlockUnits - 1)
	)
	if head&^(flags|block) != uint64(KindData)<<48 || at&place != BlockUnits<<32 {
		return 0
	}
	n := EntrySettled + int(e[11]&FlagFresh)/int(FlagFresh)*EntryFresh +
		int(e[11]&FlagEncrypted)/int(FlagEncrypted)*TagBytes
	if len(b) < n {
		return 0
	}
	s.Branch, s.Block, s.Off = le.Uint32(e[:]), head&block, uint32(at)
	s.Seq = le.Uint64(e[20:]) & (1<<48 - 1)
	s.LSN, s.CRC = logLSN(chunkLSN, le.Uint32(e[40:])), le.Uint32(e[44:])
	return n
}

// logLSN gives the LSN of an entry that was not moved from its low bits. The chunk's is that of its
// last entry, so they wrap at most once below it.
func logLSN(chunkLSN uint64, low uint32) uint64 {
	lsn := chunkLSN&^(1<<32-1) | uint64(low)
	if lsn > chunkLSN && lsn >= 1<<32 {
		lsn -= 1 << 32
	}
	return lsn
}

// DecodeEntry reads the entry at the start of b into e, whose chunk has the given LSN, and returns
// its size. The further CRCs stand at b[e.FurtherAt:], four bytes each.
func DecodeEntry(b []byte, chunkLSN uint64, e *Entry) (int, error) {
	if len(b) < EntrySettled {
		return 0, fmt.Errorf("entry cut short: %w", ErrBad)
	}
	*e = Entry{
		Branch: le.Uint32(b), Block: get40(b[4:]), Count: int(b[9]) + 1, Kind: Kind(b[10]),
		Flags: b[11], Gen: le.Uint32(b[28:]), Era: le.Uint16(b[38:]), CRC: le.Uint32(b[44:]),
		Version: domain.Version{
			Epoch: domain.Epoch(le.Uint64(b[12:])), Seq: get48(b[20:]),
			Node: domain.NodeNumber(le.Uint16(b[26:])),
		},
	}
	if e.Flags&^flagsKnown != 0 || e.Kind == 0 || e.Kind > KindRoot ||
		e.Flags&(FlagEncrypted|FlagCompressed) != 0 && e.Kind != KindData {
		return 0, fmt.Errorf("entry: kind %d flags %#x: %w", e.Kind, e.Flags, ErrBad)
	}
	if ranged(e.Kind) {
		if e.Range = get48(b[32:]); e.Range > LeafBlocks {
			return 0, fmt.Errorf("entry: range of %d blocks: %w", e.Range, ErrBad)
		}
	} else {
		e.Off, e.Units = le.Uint32(b[32:]), le.Uint16(b[36:])
	}
	if len(b) < e.Size() {
		return 0, fmt.Errorf("entry cut short: %w", ErrBad)
	}
	low := le.Uint32(b[40:])
	n := EntrySettled
	if e.Flags&FlagFresh != 0 {
		e.Request = domain.RequestID{
			Gateway: domain.NodeNumber(le.Uint16(b[n:])), Incarnation: get48(b[n+2:]),
			Counter: get48(b[n+8:]) | uint64(b[n+14])<<48, Attempt: b[n+15],
		}
		n += EntryFresh
	}
	e.LSN = logLSN(chunkLSN, low)
	if e.Flags&FlagMoved != 0 {
		e.From, e.FromSeq = get40(b[n:]), le.Uint64(b[n+8:])
		e.LSN = uint64(low) | (uint64(b[n+5])|uint64(b[n+6])<<8|uint64(b[n+7])<<16)<<32
		n += EntryMoved
	}
	e.FurtherAt = n + e.maskBytes()
	return e.Size(), e.check()
}

// check refuses what no writer writes.
func (e *Entry) check() error {
	inside := int(e.Block%LeafBlocks)+e.Count <= LeafBlocks
	switch {
	case e.Outcome() > OutcomeMixed || e.Outcome() != OutcomeApplied && !e.Kind.Blocks():
		return fmt.Errorf("entry: outcome %d of kind %d: %w", e.Outcome(), e.Kind, ErrBad)
	case e.Packed() && (e.Count != 1 || e.Units == 0 || e.Units > UnitsMax):
		return fmt.Errorf("entry: %d compressed in %d units: %w", e.Count, e.Units, ErrBad)
	case e.Flags&FlagParent != 0 && e.Kind != KindUnmap:
		return fmt.Errorf("entry: as the parent, of kind %d: %w", e.Kind, ErrBad)
	case e.Kind == KindData && !e.Packed() &&
		(!inside || int(e.Units) != e.Count*BlockUnits || e.Off%BlockUnits != 0):
		return fmt.Errorf("entry: %d blocks in %d units: %w", e.Count, e.Units, ErrBad)
	case e.Kind == KindBranch && (e.Count > BranchesMax || int(e.Units) != BranchUnits(e.Count)):
		return fmt.Errorf("entry: %d branches in %d units: %w", e.Count, e.Units, ErrBad)
	case ranged(e.Kind) && (e.Range == 0 || e.Block%LeafBlocks+e.Range > LeafBlocks):
		return fmt.Errorf("entry: range of %d blocks: %w", e.Range, ErrBad)
	}
	return nil
}

// Packed tells whether the entry is of one compressed block.
func (e *Entry) Packed() bool { return e.Flags&FlagCompressed != 0 }

// Stored gives the bytes that each block of a DATA entry takes in the payload.
func (e *Entry) Stored() int {
	if e.Packed() {
		return int(e.Units) * Unit
	}
	return BlockSize
}

// Loc gives the location of block i of a DATA entry whose bytes start at b and whose chunk's
// payload starts at an address in units of 512 bytes.
func (e *Entry) Loc(b []byte, payload uint64, i int) Loc {
	addr := payload + uint64(e.Off)
	if e.Packed() {
		return MakePacked(addr, int(e.Units), e.CRC)
	}
	return MakeLoc(addr+uint64(i)*BlockUnits, e.Further(b, i))
}

// Further gives the CRC of block i of a DATA entry whose bytes start at b.
func (e *Entry) Further(b []byte, i int) uint32 {
	if i == 0 {
		return e.CRC
	}
	return le.Uint32(b[e.FurtherAt+4*(i-1):])
}
