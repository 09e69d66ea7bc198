package segment

import (
	"fmt"
	"math"

	"weft/domain"
)

const (
	rootMagic  = 0x544f4f52 // "ROOT"
	livesMagic = 0x4c4f4f52 // "ROOL": with a table of lives
)

// BranchState says what a branch is.
type BranchState uint8

// The states of a branch. A buried branch's id is never given out again; in a root it is there
// only while two or more branches stand on it.
const (
	BranchLive   BranchState = 1 // the head of a volume
	BranchBuried BranchState = 2 // named by nobody any more
	BranchFrozen BranchState = 3 // a snapshot
)

// Branch is one line of writes on this device: from a cut or a creation to the next cut. A volume,
// its snapshots and its clones are a family, a tree of branches over one space of blocks. It is a
// line of a BRANCH record and of the checkpoint root.
type Branch struct {
	ID       uint32
	Parent   uint32 // the branch that answers for what this one never wrote; 0: none
	Family   uint32 // id of the family: that of its first branch
	State    BranchState
	Gen      uint32 // stamped into every record of the branch
	Epoch    domain.Epoch
	Size     uint64 // bytes
	Volume   domain.VolumeID
	Snapshot domain.SnapshotID // of a frozen branch
	// Key names the key in the device's key table that encrypts what the branch writes; 0: none. The
	// branches of one volume share it, a clone has its own.
	Key uint32
	// Replica says that the volume takes records with versions that others have given. A frozen branch
	// of one is the cut of its generation: its Snapshot is zero.
	Replica bool
	Sealed  bool // of a cut: nothing of it changes any more
	// Move says how the family stands to a migration to or from another device, and Token which one
	// that is, the same on both: 0 where the family never took part in one. All lines of a family say
	// the same, and the newest one counts.
	Move  MoveState
	Token uint32
}

// MoveState is the place of a family on its way between two devices.
type MoveState uint8

// The states of a family.
const (
	MoveNone   MoveState = 0 // it stands here and nowhere else; with a token: it came here by that
	MoveComing MoveState = 1 // a copy that is being made: nobody is shown it
	MoveLeft   MoveState = 2 // it stands on another device now, and this is what is left of it
)

const (
	branchReplica = 1 // in a branch's flags
	branchMove    = 1 // bits by which a MoveState is shifted there
	branchMoves   = 3 << branchMove
	branchSealed  = 8

	// BranchBytes is the encoded size of a Branch.
	BranchBytes = 80
	// BranchesMax is the most lines of one BRANCH record: they fit a sector.
	BranchesMax = Sector / BranchBytes
)

// BranchUnits gives the units that the payload of a BRANCH record of n lines takes.
func BranchUnits(n int) int { return RoundUp(n*BranchBytes, Unit) / Unit }

// Append encodes the branch.
func (r *Branch) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, r.ID)
	dst = le.AppendUint32(dst, r.Parent)
	dst = le.AppendUint32(dst, r.Family)
	flags := byte(0)
	if r.Replica {
		flags = branchReplica
	}
	flags |= byte(r.Move) << branchMove
	if r.Sealed {
		flags |= branchSealed
	}
	dst = append(dst, byte(r.State), flags, 0, 0)
	dst = le.AppendUint64(dst, uint64(r.Gen))
	dst = le.AppendUint64(dst, uint64(r.Epoch))
	dst = le.AppendUint64(dst, r.Size)
	dst = append(dst, r.Volume.UUID[:]...)
	dst = append(dst, r.Snapshot.UUID[:]...)
	dst = le.AppendUint32(dst, r.Key)
	return le.AppendUint32(dst, r.Token)
}

// DecodeBranch reads a branch from the start of b.
func DecodeBranch(b []byte) (Branch, error) {
	if len(b) < BranchBytes {
		return Branch{}, fmt.Errorf("branch: cut short: %w", ErrBad)
	}
	r := Branch{
		ID: le.Uint32(b), Parent: le.Uint32(b[4:]), Family: le.Uint32(b[8:]),
		State: BranchState(b[12]), Gen: le.Uint32(b[16:]), Epoch: domain.Epoch(le.Uint64(b[24:])),
		Size: le.Uint64(b[32:]), Key: le.Uint32(b[72:]), Replica: b[13]&branchReplica != 0,
		Move: MoveState(b[13] & branchMoves >> branchMove), Token: le.Uint32(b[76:]),
		Sealed: b[13]&branchSealed != 0,
	}
	copy(r.Volume.UUID[:], b[40:])
	copy(r.Snapshot.UUID[:], b[56:])
	// A branch stands on an older one, so ids fall on the way to the root and the way has an end.
	if r.State < BranchLive || r.State > BranchFrozen || r.ID == 0 || r.Size > math.MaxInt64 ||
		r.Parent >= r.ID || r.Family == 0 || r.Family > r.ID || r.Move > MoveLeft {
		return Branch{}, fmt.Errorf("branch %d: state %d: %w", r.ID, r.State, ErrBad)
	}
	return r, nil
}

// DecodeBranches reads the n lines of a BRANCH record.
func DecodeBranches(b []byte, n int) ([]Branch, error) {
	var list []Branch
	for range n {
		br, err := DecodeBranch(b)
		if err != nil {
			return nil, err
		}
		list, b = append(list, br), b[BranchBytes:]
	}
	return list, nil
}

// Alias says that a branch was absorbed by another one of its family, which answers for all that
// entries on the device still name by the old id.
type Alias struct{ ID, Into uint32 }

const aliasBytes = 8

// LeafRef names the newest image of a leaf.
type LeafRef struct {
	Branch uint32
	Extent uint32
	Piece  Piece
}

const leafRefBytes = 24

// Life is one life of a segment of a pair's disk: what the keys of its encrypted blocks follow
// from.
type Life struct {
	Segment  uint32
	Sequence uint64 // not 0
	Salt     Salt
}

const (
	livesFixed = 8
	// LifeBytes is the encoded size of a Life.
	LifeBytes = 32
)

// appendLives encodes the table of lives.
func appendLives(b []byte, list []Life) []byte {
	b = le.AppendUint64(b, uint64(len(list)))
	for _, l := range list {
		b = le.AppendUint64(b, uint64(l.Segment))
		b = le.AppendUint64(b, l.Sequence)
		b = append(b, l.Salt[:]...)
	}
	return b
}

// decodeLives reads the table, which is all of b: by segment, each once.
func decodeLives(b []byte) ([]Life, error) {
	if len(b) < livesFixed || uint64(len(b)-livesFixed) != le.Uint64(b)*LifeBytes ||
		le.Uint64(b) > uint64(len(b)) {
		return nil, fmt.Errorf("root: table of lives of %d B: %w", len(b), ErrBad)
	}
	var list []Life
	for b = b[livesFixed:]; len(b) > 0; b = b[LifeBytes:] {
		l := Life{Segment: le.Uint32(b), Sequence: le.Uint64(b[8:])}
		copy(l.Salt[:], b[16:])
		if n := len(list); l.Sequence == 0 || n > 0 && list[n-1].Segment >= l.Segment {
			return nil, fmt.Errorf("root: life %d of segment %d: %w", l.Sequence, l.Segment, ErrBad)
		}
		list = append(list, l)
	}
	return list, nil
}

// Root is what a checkpoint commits besides the leaves themselves.
type Root struct {
	NextBranch uint32
	Branches   []Branch
	Leaves     []LeafRef
	Aliases    []Alias
	Replicas   ReplicaTable
	// Lives are those of the segments of a pair's disk that are in use, by segment.
	Lives []Life
}

const rootFixed = 24

// Encode gives the root as one stretch of bytes, to be cut into pieces.
func (r *Root) Encode() []byte {
	magic := uint32(rootMagic)
	if len(r.Lives) > 0 {
		magic = livesMagic
	}
	b := le.AppendUint32(nil, magic)
	b = le.AppendUint32(b, r.NextBranch)
	b = le.AppendUint32(b, uint32(len(r.Branches)))
	b = le.AppendUint32(b, uint32(len(r.Leaves)))
	b = le.AppendUint32(b, uint32(len(r.Aliases)))
	b = le.AppendUint32(b, uint32(r.Replicas.Bytes()))
	for i := range r.Branches {
		b = r.Branches[i].Append(b)
	}
	for _, l := range r.Leaves {
		b = le.AppendUint32(b, l.Branch)
		b = le.AppendUint32(b, l.Extent)
		b = appendPiece(b, l.Piece)
	}
	for _, a := range r.Aliases {
		b = le.AppendUint32(b, a.ID)
		b = le.AppendUint32(b, a.Into)
	}
	if b = r.Replicas.Append(b); magic == livesMagic {
		b = appendLives(b, r.Lives)
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
	if len(b) < rootFixed || le.Uint32(b) != rootMagic && le.Uint32(b) != livesMagic {
		return nil, fmt.Errorf("root: no magic: %w", ErrBad)
	}
	branches, leaves := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
	aliases, replicas := uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))
	need := rootFixed + branches*BranchBytes + leaves*leafRefBytes + aliases*aliasBytes + replicas
	if uint64(len(b)) < need {
		return nil, fmt.Errorf("root: cut short: %w", ErrBad)
	}
	r, lives := &Root{NextBranch: le.Uint32(b[4:])}, le.Uint32(b) == livesMagic
	b = b[rootFixed:]
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
	for range aliases {
		r.Aliases = append(r.Aliases, Alias{le.Uint32(b), le.Uint32(b[4:])})
		b = b[aliasBytes:]
	}
	var err error
	if r.Replicas, err = DecodeReplicas(b[:replicas]); err != nil {
		return nil, err
	}
	if lives {
		r.Lives, err = decodeLives(b[replicas:])
	}
	return r, err
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
