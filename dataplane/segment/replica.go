package segment

import (
	"fmt"

	"weft/domain"
)

// Outcome gives the entry's outcome: OutcomeApplied, OutcomeSuperseded or OutcomeMixed.
func (e *Entry) Outcome() uint8 { return e.Flags & outcomeMask }

// Blocks tells whether records of the kind change blocks of a volume.
func (k Kind) Blocks() bool { return k == KindData || ranged(k) }

// Len gives how many blocks an entry of a kind with blocks is about.
func (e *Entry) Len() int {
	if ranged(e.Kind) {
		return int(e.Range)
	}
	return e.Count
}

// MaskMax is the most bytes of a mask: that of a range over a whole extent.
const MaskMax = LeafBlocks / 8

// Mask tells, bit by bit, which blocks of a record kept a higher version than the record's.
type Mask [LeafBlocks / 64]uint64

// Set notes that block i kept what it had.
func (m *Mask) Set(i int) { m[i/64] |= 1 << (i % 64) }

// Kept tells whether block i kept what it had.
func (m *Mask) Kept(i int) bool { return m[i/64]>>(i%64)&1 != 0 }

// maskBytes gives the size of the mask in an entry whose outcome is mixed.
func (e *Entry) maskBytes() int {
	if e.Outcome() != OutcomeMixed {
		return 0
	}
	return RoundUp((e.Len()+7)/8, 4)
}

// maskAt gives where the mask of an entry begins.
func (e *Entry) maskAt() int {
	n := EntrySettled
	if e.Flags&FlagFresh != 0 {
		n += EntryFresh
	}
	if e.Flags&FlagMoved != 0 {
		n += EntryMoved
	}
	return n
}

// PutMask writes the mask of an entry with OutcomeMixed, whose encoded bytes are b.
func (e *Entry) PutMask(b []byte, m *Mask) {
	b = b[e.maskAt():][:e.maskBytes()]
	for i := range b {
		b[i] = byte(m[i/8] >> (i % 8 * 8))
	}
}

// Kept tells whether block i of an entry, whose bytes are b, kept a higher version: then the record
// changed nothing there.
func (e *Entry) Kept(b []byte, i int) bool {
	switch e.Outcome() {
	case OutcomeSuperseded:
		return true
	case OutcomeMixed:
		return b[e.maskAt()+i/8]>>(i%8)&1 != 0
	}
	return false
}

// MaskOf reads the mask of an entry whose bytes are b, whatever its outcome.
func (e *Entry) MaskOf(b []byte, m *Mask) {
	*m = Mask{}
	for i := range e.Len() {
		if e.Kept(b, i) {
			m.Set(i)
		}
	}
}

// SameBlocks is how many blocks, from a multiple of it on, a SAME entry is about: 256 KiB.
const SameBlocks = 64

// SetSame makes the map of a SAME entry: bit i is of block i.
func (e *Entry) SetSame(blocks uint64) { e.Version.Epoch = domain.Epoch(blocks) }

// Same gives the map of a SAME entry.
func (e *Entry) Same() uint64 { return uint64(e.Version.Epoch) }

// SetEnded says in an ERA entry that the session has ended.
func (e *Entry) SetEnded() { e.Off = 1 }

// Ended tells whether an ERA entry says that the session has ended.
func (e *Entry) Ended() bool { return e.Off != 0 }

// SliceBlocks is the number of blocks of a slice: the unit of coherency, 1 GiB.
const SliceBlocks = 1 << 18

// SliceState is what a replica knows of one slice.
type SliceState struct {
	Branch uint32
	Slice  uint32
	Seal   domain.Epoch   // no message of a lower epoch is accepted
	Floor  domain.Version // what is at or below it is resolved at every member
	Buried bool           // deleted for ever
	Era    uint16         // of its last join session; what is of an earlier one is not trusted
	Open   bool           // that session has not ended
	Gen    uint32         // no record of a higher generation is settled, or without data
}

// RequestBound says that a gateway will not ask again for requests below a counter.
type RequestBound struct {
	Gateway     domain.NodeNumber
	Incarnation uint64
	Below       uint64
}

// ExtentVersion is the highest version that was accepted in an extent of a replica.
type ExtentVersion struct {
	Branch, Extent uint32
	Version        domain.Version
}

// HeldRecord is a record that is not settled: as it was accepted, and where it stands.
type HeldRecord struct {
	Branch  uint32
	Block   uint64
	Count   int
	Kind    Kind
	Outcome uint8
	Version domain.Version
	Gen     uint32
	Request domain.RequestID
	LSN     uint64
	Addr    uint64 // DATA: of its first block, in units of 512 B; the others follow
	Sum     uint32 // DATA: CRC-32C over the CRCs of its blocks, 4 bytes each
	Era     uint16
}

// KnownRun is blocks of data, side by side, whose version is above the floor and known though no
// record of theirs is held: they were imported, or confirmed to be the same as another member's.
type KnownRun struct {
	Branch  uint32
	Block   uint64
	Count   int // up to a whole extent
	Version domain.Version
	Gen     uint32
	Era     uint16 // from which on they are trusted
}

// ReplicaTable is what a checkpoint holds of the device's replicas.
type ReplicaTable struct {
	Slices  []SliceState
	Bounds  []RequestBound
	Graves  []domain.VolumeID // volumes that were replicas and never come back
	Extents []ExtentVersion
	Records []HeldRecord
	Known   []KnownRun
	Dirt    []DirtyMap
}

// GrainBlocks is the number of blocks of a grain: what is noted of writes that a member misses.
// An extent has 64 grains.
const GrainBlocks = 16

// SliceGrains is the number of grains of a slice.
const SliceGrains = SliceBlocks / GrainBlocks

// DirtyMap tells which grains of a slice a member that is away may lack, a bit each.
type DirtyMap struct {
	Branch uint32
	Slice  uint32
	Member domain.NodeNumber
	Grains [SliceGrains / 64]uint64
}

// What a DIRTY entry says of a member.
const (
	DirtyMarks = 0 // the grains of an extent whose bits are set
	DirtyBegin = 1 // it is away: whatever is accepted from here on counts
	DirtyEnd   = 2 // it has everything again
)

// SetDirty makes a DIRTY entry about a member; grains is the map of DirtyMarks.
func (e *Entry) SetDirty(member domain.NodeNumber, what uint32, grains uint64) {
	e.Version.Node, e.Off, e.Version.Epoch = member, what, domain.Epoch(grains)
}

// Dirty gives what a DIRTY entry says.
func (e *Entry) Dirty() (member domain.NodeNumber, what uint32, grains uint64) {
	return e.Version.Node, e.Off, uint64(e.Version.Epoch)
}

// Sizes of the table's lines in bytes.
const (
	SliceStateBytes   = 40
	RequestBoundBytes = 16
	GraveBytes        = 16
	ExtentBytes       = 24
	HeldRecordBytes   = 80
	KnownRunBytes     = 40
	DirtyMapBytes     = 16 + SliceGrains/8

	replicaFixed = 24
	moreFixed    = 16
	sliceBuried  = 1
	sliceOpen    = 2
)

// Bytes gives the encoded size; 0 for an empty table.
func (t *ReplicaTable) Bytes() int {
	n := len(t.Slices)*SliceStateBytes + len(t.Bounds)*RequestBoundBytes +
		len(t.Graves)*GraveBytes + len(t.Extents)*ExtentBytes + len(t.Records)*HeldRecordBytes +
		t.moreBytes()
	if n == 0 {
		return 0
	}
	return replicaFixed + n
}

// moreBytes gives the size of what stands behind the records; 0 where that is nothing.
func (t *ReplicaTable) moreBytes() int {
	if len(t.Known)+len(t.Dirt) == 0 {
		return 0
	}
	return moreFixed + len(t.Known)*KnownRunBytes + len(t.Dirt)*DirtyMapBytes
}

func appendVersion(b []byte, v domain.Version) []byte {
	b = le.AppendUint64(b, uint64(v.Epoch))
	var s [6]byte
	put48(s[:], v.Seq)
	b = append(b, s[:]...)
	return le.AppendUint16(b, uint16(v.Node))
}

func version(b []byte) domain.Version {
	return domain.Version{
		Epoch: domain.Epoch(le.Uint64(b)), Seq: get48(b[8:]), Node: domain.NodeNumber(le.Uint16(b[14:])),
	}
}

func appendRequest(b []byte, r domain.RequestID) []byte {
	var s [16]byte
	putRequest(s[:], r)
	return append(b, s[:]...)
}

func putRequest(b []byte, r domain.RequestID) {
	le.PutUint16(b, uint16(r.Gateway))
	put48(b[2:], r.Incarnation)
	put56(b[8:], r.Counter)
	b[15] = r.Attempt
}

func request(b []byte) domain.RequestID {
	return domain.RequestID{
		Gateway: domain.NodeNumber(le.Uint16(b)), Incarnation: get48(b[2:]),
		Counter: get48(b[8:]) | uint64(b[14])<<48, Attempt: b[15],
	}
}

// Append encodes the table: nothing where it is empty.
func (t *ReplicaTable) Append(b []byte) []byte {
	if t.Bytes() == 0 {
		return b
	}
	for _, n := range []int{
		len(t.Slices), len(t.Bounds), len(t.Graves), len(t.Extents), len(t.Records),
		t.moreBytes(),
	} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, s := range t.Slices {
		b = le.AppendUint32(b, s.Branch)
		b = le.AppendUint32(b, s.Slice)
		b = le.AppendUint64(b, uint64(s.Seal))
		b = appendVersion(b, s.Floor)
		flags := uint64(0)
		if s.Buried {
			flags = sliceBuried
		}
		if s.Open {
			flags |= sliceOpen
		}
		b = le.AppendUint64(b, flags|uint64(s.Era)<<16|uint64(s.Gen)<<32)
	}
	for _, r := range t.Bounds {
		b = le.AppendUint16(b, uint16(r.Gateway))
		var s [6]byte
		put48(s[:], r.Incarnation)
		b = append(b, s[:]...)
		b = le.AppendUint64(b, r.Below)
	}
	for _, v := range t.Graves {
		b = append(b, v.UUID[:]...)
	}
	for _, x := range t.Extents {
		b = le.AppendUint32(b, x.Branch)
		b = le.AppendUint32(b, x.Extent)
		b = appendVersion(b, x.Version)
	}
	for i := range t.Records {
		b = t.Records[i].append(b)
	}
	if t.moreBytes() > 0 {
		b = t.appendMore(b)
	}
	return b
}

// appendMore encodes what stands behind the records.
func (t *ReplicaTable) appendMore(b []byte) []byte {
	for _, n := range []int{len(t.Known), len(t.Dirt), 0, 0} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, k := range t.Known {
		b = le.AppendUint32(b, k.Branch)
		b = le.AppendUint16(b, uint16(k.Count))
		b = le.AppendUint16(b, k.Era)
		b = le.AppendUint64(b, k.Block)
		b = appendVersion(b, k.Version)
		b = le.AppendUint64(b, uint64(k.Gen))
	}
	for i := range t.Dirt {
		d := &t.Dirt[i]
		b = le.AppendUint32(b, d.Branch)
		b = le.AppendUint32(b, d.Slice)
		b = le.AppendUint64(b, uint64(d.Member))
		for _, w := range d.Grains {
			b = le.AppendUint64(b, w)
		}
	}
	return b
}

// decodeMore reads what stands behind the records, which takes all of b.
func (t *ReplicaTable) decodeMore(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) < moreFixed || len(b) == moreFixed {
		return fmt.Errorf("replicas: %d B behind the records: %w", len(b), ErrBad)
	}
	known, dirt := int(le.Uint32(b)), int(le.Uint32(b[4:]))
	if b = b[moreFixed:]; len(b) != known*KnownRunBytes+dirt*DirtyMapBytes {
		return fmt.Errorf("replicas: %d B behind the records: %w", len(b), ErrBad)
	}
	for range known {
		k := KnownRun{
			Branch: le.Uint32(b), Count: int(le.Uint16(b[4:])), Era: le.Uint16(b[6:]),
			Block: le.Uint64(b[8:]), Version: version(b[16:]), Gen: le.Uint32(b[32:]),
		}
		if k.Count < 1 || k.Block >= 1<<40 || int(k.Block%LeafBlocks)+k.Count > LeafBlocks {
			return fmt.Errorf("replicas: %d known blocks: %w", k.Count, ErrBad)
		}
		t.Known, b = append(t.Known, k), b[KnownRunBytes:]
	}
	for range dirt {
		d := DirtyMap{
			Branch: le.Uint32(b), Slice: le.Uint32(b[4:]), Member: domain.NodeNumber(le.Uint16(b[8:])),
		}
		for i := range d.Grains {
			d.Grains[i] = le.Uint64(b[16+8*i:])
		}
		t.Dirt, b = append(t.Dirt, d), b[DirtyMapBytes:]
	}
	return nil
}

func (r *HeldRecord) append(b []byte) []byte {
	b = le.AppendUint32(b, r.Branch)
	b = le.AppendUint16(b, uint16(r.Count))
	b = append(b, byte(r.Kind), r.Outcome)
	b = le.AppendUint64(b, r.Block)
	b = appendVersion(b, r.Version)
	b = appendRequest(b, r.Request)
	b = le.AppendUint64(b, r.LSN)
	b = le.AppendUint64(b, r.Addr)
	b = le.AppendUint32(b, r.Gen)
	b = le.AppendUint32(b, r.Sum)
	return le.AppendUint64(b, uint64(r.Era))
}

// DecodeReplicas reads a table, which takes all of b; none at all is an empty one.
func DecodeReplicas(b []byte) (t ReplicaTable, err error) {
	if len(b) == 0 {
		return t, nil
	}
	if len(b) < replicaFixed {
		return t, fmt.Errorf("replicas: cut short: %w", ErrBad)
	}
	slices, bounds := int(le.Uint32(b)), int(le.Uint32(b[4:]))
	graves, extents := int(le.Uint32(b[8:])), int(le.Uint32(b[12:]))
	records, more := int(le.Uint32(b[16:])), int(le.Uint32(b[20:]))
	b = b[replicaFixed:]
	if len(b) != slices*SliceStateBytes+bounds*RequestBoundBytes+graves*GraveBytes+
		extents*ExtentBytes+records*HeldRecordBytes+more || len(b) == 0 {
		return t, fmt.Errorf("replicas: %d B: %w", len(b), ErrBad)
	}
	for range slices {
		t.Slices = append(t.Slices, SliceState{
			Branch: le.Uint32(b), Slice: le.Uint32(b[4:]), Seal: domain.Epoch(le.Uint64(b[8:])),
			Floor: version(b[16:]), Buried: b[32]&sliceBuried != 0, Open: b[32]&sliceOpen != 0,
			Era: le.Uint16(b[34:]), Gen: le.Uint32(b[36:]),
		})
		b = b[SliceStateBytes:]
	}
	for range bounds {
		t.Bounds = append(t.Bounds, RequestBound{
			domain.NodeNumber(le.Uint16(b)), get48(b[2:]), le.Uint64(b[8:]),
		})
		b = b[RequestBoundBytes:]
	}
	for range graves {
		var v domain.VolumeID
		copy(v.UUID[:], b)
		t.Graves, b = append(t.Graves, v), b[GraveBytes:]
	}
	for range extents {
		t.Extents = append(t.Extents, ExtentVersion{le.Uint32(b), le.Uint32(b[4:]), version(b[8:])})
		b = b[ExtentBytes:]
	}
	for range records {
		r, err := decodeHeld(b)
		if err != nil {
			return ReplicaTable{}, err
		}
		t.Records, b = append(t.Records, r), b[HeldRecordBytes:]
	}
	if err := t.decodeMore(b); err != nil {
		return ReplicaTable{}, err
	}
	return t, nil
}

func decodeHeld(b []byte) (HeldRecord, error) {
	r := HeldRecord{
		Branch: le.Uint32(b), Count: int(le.Uint16(b[4:])), Kind: Kind(b[6]), Outcome: b[7],
		Block: le.Uint64(b[8:]), Version: version(b[16:]), Request: request(b[32:]),
		LSN: le.Uint64(b[48:]), Addr: le.Uint64(b[56:]), Gen: le.Uint32(b[64:]), Sum: le.Uint32(b[68:]),
		Era: le.Uint16(b[72:]),
	}
	most := LeafBlocks
	if r.Kind == KindData {
		most = RecordBlocks
	}
	if !r.Kind.Blocks() || r.Outcome > OutcomeMixed || r.Count < 1 || r.Count > most ||
		r.Block >= 1<<40 || int(r.Block%LeafBlocks)+r.Count > LeafBlocks {
		return r, fmt.Errorf("replicas: record of %d blocks of kind %d: %w", r.Count, r.Kind, ErrBad)
	}
	return r, nil
}
