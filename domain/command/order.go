// Package command holds the orders that a node's agent obeys, and their outcomes. An order carries
// its id and the fencing token of the reconciler that gave it: obeying twice is obeying once, and a
// token older than one already obeyed is refused.
package command

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"weft/domain"
)

// Kind says what an order asks for.
type Kind uint8

// The orders.
const (
	CreateVolume Kind = iota + 1
	ResizeVolume
	ExportVolume // make it reachable, exactly as Export says
	UnexportVolume
	DeleteVolume
	CutSnapshots   // of all the volumes in Cuts, at one instant
	CloneVolume    // make a volume that begins as Snapshot
	RollbackVolume // make a volume that nobody is served what it was at Snapshot
	DeleteSnapshot
)

// String names the order as plans and logs do.
func (k Kind) String() string {
	switch k {
	case CreateVolume:
		return "create"
	case ResizeVolume:
		return "resize"
	case ExportVolume:
		return "export"
	case UnexportVolume:
		return "unexport"
	case DeleteVolume:
		return "delete"
	case CutSnapshots:
		return "snapshot"
	case CloneVolume:
		return "clone"
	case RollbackVolume:
		return "rollback"
	case DeleteSnapshot:
		return "delete_snapshot"
	}
	return "unknown"
}

// Export says how a volume is reached: everything a front end needs but the secrets.
type Export struct {
	NBD          string // export name; empty: none
	Target       string // IQN; empty: none
	LUN          int
	AllowAny     bool
	Initiators   []string
	CHAP         string // name of a secret in the node's keyring; empty: none
	Mutual       bool
	Name         string // as operators call it
	LogicalBlock int
	ReadOnly     bool
	IOPSMax      int64 // requests a second; 0: no limit
	BPSMax       int64 // bytes a second; 0: no limit
	BurstS       int64 // seconds at these limits that may come at once; 0: the default
	IOPSMin      int64 // requests a second to reserve; 0: none
	BPSMin       int64 // bytes a second to reserve; 0: none
	Weight       int64 // 1 to 100, its part of the device while that is short; 0: the default, 50
	// Compression of what is written from now on, as an intent says it; empty: off.
	Compression string
}

// Digest tells two exports apart.
func (e Export) Digest() []byte {
	h := sha256.New()
	text := func(s string) {
		var n [4]byte
		binary.LittleEndian.PutUint32(n[:], uint32(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	text(e.NBD)
	text(e.Target)
	text(e.CHAP)
	text(e.Name)
	flags := []byte{byte(e.LUN), byte(e.LUN >> 8), 0, 0, 0, byte(e.LogicalBlock >> 8)}
	for i, on := range []bool{e.AllowAny, e.Mutual, e.ReadOnly} {
		if on {
			flags[2+i] = 1
		}
	}
	h.Write(flags)
	for _, i := range e.Initiators {
		text(i)
	}
	if e.IOPSMax != 0 || e.BPSMax != 0 { // so that an export without limits has the digest of old
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], uint64(e.IOPSMax))
		binary.LittleEndian.PutUint64(b[8:], uint64(e.BPSMax))
		h.Write(b[:])
	}
	if e.BurstS != 0 || e.IOPSMin != 0 || e.BPSMin != 0 || e.Weight != 0 { // likewise
		b := []byte{1} // no export without these ends so
		for _, v := range []int64{e.BurstS, e.IOPSMin, e.BPSMin, e.Weight} {
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		}
		h.Write(b)
	}
	if e.Compression != "" { // likewise
		h.Write([]byte{2})
		text(e.Compression)
	}
	return h.Sum(nil)[:16]
}

// Order is one command to a node's agent.
type Order struct {
	ID     domain.CommandID
	Token  uint64
	Kind   Kind
	Node   domain.NodeID
	Volume domain.VolumeID
	Device domain.DeviceID
	Size   domain.Bytes
	Epoch  domain.Epoch
	Export Export
	// Encrypted asks for a new volume to be encrypted; a clone is what its source is.
	Encrypted bool

	Snapshot domain.SnapshotID // to clone, roll back to, or delete
	Cuts     []Cut
	// Idle lets UnexportVolume be refused, with Conflict, while a host uses the volume.
	Idle bool
}

// Cut is one volume of an order to cut.
type Cut struct {
	Volume   domain.VolumeID
	Device   domain.DeviceID
	Snapshot domain.SnapshotID
}

// Taken is what a snapshot is once it was cut.
type Taken struct {
	Snapshot   domain.SnapshotID
	Device     domain.DeviceID
	Generation uint32 // that ended with the cut
	Size       domain.Bytes
}

// Outcome is the agent's answer: nil Err means obeyed, now or before.
type Outcome struct {
	ID   domain.CommandID
	Err  error
	Size domain.Bytes // of the volume, after CloneVolume and RollbackVolume
	// Encrypted says that the volume is, after CloneVolume.
	Encrypted bool
	At        time.Time // when the agent obeyed CutSnapshots, by its clock
	Taken     []Taken   // by CutSnapshots
}
