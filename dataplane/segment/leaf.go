package segment

import (
	"fmt"
	"math"

	"weft/domain"
)

const (
	leafMagic = 0x4641454c // "LEAF"
	leafFixed = 64
	leafRun   = 12 // start u16, blocks u16, location u64; CRCs follow all runs
	leafDense = LeafBlocks * 12

	formRuns  = 1
	formDense = 2

	// LeafMax is the largest image of a leaf in bytes.
	LeafMax = leafFixed + leafDense
)

// Leaf is the index of one extent of one branch: for each block where its newest copy stands and
// its CRC-32C. Complete is the lane's LSN up to which all outcomes are in.
type Leaf struct {
	Branch   uint32
	Extent   uint32
	Complete uint64
	Loc      [LeafBlocks]Loc
	CRC      [LeafBlocks]uint32
}

// Mapped counts the blocks that are no holes.
func (l *Leaf) Mapped() int {
	n := 0
	for _, loc := range l.Loc {
		if loc != 0 {
			n++
		}
	}
	return n
}

// Encode appends the image to dst: as runs of blocks that follow each other on the device, or
// dense, whichever is smaller.
func (l *Leaf) Encode(dst []byte) []byte {
	runs, mapped := l.runs()
	form, size := formRuns, leafFixed+runs*leafRun+4*mapped
	if size >= leafFixed+leafDense {
		form, size = formDense, leafFixed+leafDense
	}
	at := len(dst)
	dst = append(dst, make([]byte, leafFixed)...)
	if form == formRuns {
		dst = l.appendRuns(dst)
	} else {
		for _, loc := range l.Loc {
			dst = le.AppendUint64(dst, uint64(loc))
		}
		for _, crc := range l.CRC {
			dst = le.AppendUint32(dst, crc)
		}
	}
	b := dst[at:]
	le.PutUint32(b[0:], leafMagic)
	le.PutUint32(b[4:], l.Branch)
	le.PutUint32(b[8:], l.Extent)
	le.PutUint64(b[16:], l.Complete)
	b[24] = byte(form)
	le.PutUint16(b[26:], uint16(runs))
	le.PutUint32(b[28:], uint32(size))
	le.PutUint32(b[60:], leafCRC(b))
	return dst
}

func leafCRC(b []byte) uint32 { return crcUpdate(Checksum(b[:60]), b[leafFixed:]) }

// follows tells whether block i continues the run that ends with block i-1.
func (l *Leaf) follows(i int) bool {
	a, b := l.Loc[i-1], l.Loc[i]
	switch {
	case a == 0 || b == 0 || a.Kind() != b.Kind():
		return false
	case a.Kind() == Zero:
		return true
	}
	return b.Addr() == a.Addr()+BlockUnits
}

func (l *Leaf) runs() (runs, mapped int) {
	for i, loc := range l.Loc {
		if loc == 0 {
			continue
		}
		mapped++
		if i == 0 || !l.follows(i) {
			runs++
		}
	}
	return runs, mapped
}

func (l *Leaf) appendRuns(dst []byte) []byte {
	for i := 0; i < LeafBlocks; {
		if l.Loc[i] == 0 {
			i++
			continue
		}
		n := 1
		for i+n < LeafBlocks && l.follows(i+n) {
			n++
		}
		dst = le.AppendUint16(dst, uint16(i))
		dst = le.AppendUint16(dst, uint16(n))
		dst = le.AppendUint64(dst, uint64(l.Loc[i]))
		i += n
	}
	for i, loc := range l.Loc {
		if loc != 0 {
			dst = le.AppendUint32(dst, l.CRC[i])
		}
	}
	return dst
}

// DecodeLeaf reads and checks an image into l and returns its size.
func DecodeLeaf(b []byte, l *Leaf) (int, error) {
	if len(b) < leafFixed || le.Uint32(b) != leafMagic {
		return 0, fmt.Errorf("leaf: no magic: %w", ErrBad)
	}
	size := int(le.Uint32(b[28:]))
	if size < leafFixed || size > LeafMax || size > len(b) {
		return 0, fmt.Errorf("leaf: size %d: %w", size, ErrBad)
	}
	b = b[:size]
	if le.Uint32(b[60:]) != leafCRC(b) {
		return 0, fmt.Errorf("leaf: checksum: %w", ErrBad)
	}
	*l = Leaf{Branch: le.Uint32(b[4:]), Extent: le.Uint32(b[8:]), Complete: le.Uint64(b[16:])}
	switch b[24] {
	case formRuns:
		return size, l.decodeRuns(b[leafFixed:], int(le.Uint16(b[26:])))
	case formDense:
		if size != leafFixed+leafDense {
			return 0, fmt.Errorf("leaf: size %d: %w", size, ErrBad)
		}
		for i := range l.Loc {
			l.Loc[i] = Loc(le.Uint64(b[leafFixed+8*i:]))
			l.CRC[i] = le.Uint32(b[leafFixed+8*LeafBlocks+4*i:])
		}
		return size, nil
	}
	return 0, fmt.Errorf("leaf: form %d: %w", b[24], ErrBad)
}

func (l *Leaf) decodeRuns(b []byte, runs int) error {
	if len(b) < runs*leafRun {
		return fmt.Errorf("leaf: %d runs: %w", runs, ErrBad)
	}
	crcs, next := b[runs*leafRun:], 0
	for r := range runs {
		p := b[r*leafRun:]
		start, n, loc := int(le.Uint16(p)), int(le.Uint16(p[2:])), Loc(le.Uint64(p[4:]))
		beyond := loc.Addr()+uint64(n)*BlockUnits > addrMax
		if loc == 0 || n == 0 || start < next || start+n > LeafBlocks || len(crcs) < 4*n || beyond {
			return fmt.Errorf("leaf: run %d+%d: %w", start, n, ErrBad)
		}
		for i := range n {
			crc := le.Uint32(crcs[4*i:])
			l.CRC[start+i] = crc
			l.Loc[start+i] = loc
			if loc.Kind() != Zero {
				addr := loc.Addr() + uint64(i)*BlockUnits
				l.Loc[start+i] = MakeLoc(loc.Kind(), addr, BlockUnits, crc)
			}
		}
		crcs, next = crcs[4*n:], start+n
	}
	return nil
}

const rootMagic = 0x544f4f52 // "ROOT"

// BranchState says what became of a branch.
type BranchState uint8

// The states of a branch. A buried branch's id is never given out again.
const (
	BranchLive   BranchState = 1
	BranchBuried BranchState = 2
)

// Branch is a volume's line of writes on this device. It is the payload of a BRANCH entry and a
// line of the checkpoint root.
type Branch struct {
	ID     uint32
	State  BranchState
	Volume domain.VolumeID
	Size   uint64 // bytes
	Gen    uint32
	Epoch  domain.Epoch
}

// BranchBytes is the encoded size of a Branch.
const BranchBytes = 48

// Append encodes the branch.
func (r *Branch) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, r.ID)
	dst = append(dst, byte(r.State), 0, 0, 0)
	dst = append(dst, r.Volume.UUID[:]...)
	dst = le.AppendUint64(dst, r.Size)
	dst = le.AppendUint32(dst, r.Gen)
	dst = le.AppendUint64(dst, uint64(r.Epoch))
	return le.AppendUint32(dst, 0)
}

// DecodeBranch reads a branch from the start of b.
func DecodeBranch(b []byte) (Branch, error) {
	if len(b) < BranchBytes {
		return Branch{}, fmt.Errorf("branch: cut short: %w", ErrBad)
	}
	r := Branch{
		ID: le.Uint32(b), State: BranchState(b[4]), Size: le.Uint64(b[24:]),
		Gen: le.Uint32(b[32:]), Epoch: domain.Epoch(le.Uint64(b[36:])),
	}
	copy(r.Volume.UUID[:], b[8:])
	if r.State != BranchLive && r.State != BranchBuried || r.ID == 0 || r.Size > math.MaxInt64 {
		return Branch{}, fmt.Errorf("branch %d: state %d: %w", r.ID, r.State, ErrBad)
	}
	return r, nil
}

// LeafRef names the newest image of a leaf.
type LeafRef struct {
	Branch uint32
	Extent uint32
	Piece  Piece
}

const leafRefBytes = 24

// Root is what a checkpoint commits besides the leaves themselves.
type Root struct {
	NextBranch uint32
	Branches   []Branch
	Leaves     []LeafRef
	Pieces     []Piece // where this root itself stands; filled by the reader
}

// Encode gives the root as one stretch of bytes, to be cut into pieces.
func (r *Root) Encode() []byte {
	b := le.AppendUint32(nil, rootMagic)
	b = le.AppendUint32(b, r.NextBranch)
	b = le.AppendUint32(b, uint32(len(r.Branches)))
	b = le.AppendUint32(b, uint32(len(r.Leaves)))
	for i := range r.Branches {
		b = r.Branches[i].Append(b)
	}
	for _, l := range r.Leaves {
		b = le.AppendUint32(b, l.Branch)
		b = le.AppendUint32(b, l.Extent)
		b = appendPiece(b, l.Piece)
	}
	return b
}

func appendPiece(b []byte, p Piece) []byte {
	b = le.AppendUint64(b, p.Off)
	b = le.AppendUint32(b, p.Bytes)
	return le.AppendUint32(b, p.CRC)
}

func piece(b []byte) Piece { return Piece{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])} }

// DecodeRoot reads a whole root, whose pieces were verified one by one.
func DecodeRoot(b []byte) (*Root, error) {
	if len(b) < 16 || le.Uint32(b) != rootMagic {
		return nil, fmt.Errorf("root: no magic: %w", ErrBad)
	}
	branches, leaves := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
	if uint64(len(b)) < 16+branches*BranchBytes+leaves*leafRefBytes {
		return nil, fmt.Errorf("root: cut short: %w", ErrBad)
	}
	r := &Root{NextBranch: le.Uint32(b[4:])}
	b = b[16:]
	for range branches {
		br, err := DecodeBranch(b)
		if err != nil {
			return nil, err
		}
		r.Branches, b = append(r.Branches, br), b[BranchBytes:]
	}
	for range leaves {
		r.Leaves = append(r.Leaves, LeafRef{le.Uint32(b), le.Uint32(b[4:]), piece(b[8:])})
		b = b[leafRefBytes:]
	}
	return r, nil
}

// PieceBytes is the encoded size of a Piece.
const PieceBytes = 16

// EncodePieces gives the list that an anchor's Root points to.
func EncodePieces(list []Piece) []byte {
	var b []byte
	for _, p := range list {
		b = appendPiece(b, p)
	}
	return b
}

// DecodePieces reads the list.
func DecodePieces(b []byte) ([]Piece, error) {
	if len(b)%PieceBytes != 0 {
		return nil, fmt.Errorf("root: list of %d B: %w", len(b), ErrBad)
	}
	var list []Piece
	for ; len(b) > 0; b = b[PieceBytes:] {
		list = append(list, piece(b))
	}
	return list, nil
}
