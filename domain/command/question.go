package command

import (
	"time"

	"weft/domain"
)

// Ask says what a question is about.
type Ask uint8

// The questions. They change nothing, so they carry no token.
const (
	AskSnapshots Ask = iota + 1 // which snapshots are on the node's devices
	AskVolume                   // what a volume holds, and who uses it
	AskAllocated                // where a volume or snapshot holds data
	AskChanged                  // where it differs from an older snapshot
	AskScrub                    // how far the scrub of each device has come
	AskFailing                  // what of the work that the node does by itself fails
	AskSharing                  // what of a volume or snapshot nobody else sees; it walks an index
)

// SnapshotsPage is the most snapshots of one answer.
const SnapshotsPage = 1000

// Question is what one node wants to know of another.
type Question struct {
	Ask  Ask
	Node domain.NodeID

	// Volumes selects AskSnapshots; none selects all. After is the last snapshot of the answer before.
	Volumes []domain.VolumeID
	After   domain.SnapshotID

	// Volume and Snapshot name what AskVolume, AskAllocated, AskChanged and AskSharing are about: the
	// snapshot if there is one. Since is the snapshot that AskChanged compares with.
	Volume   domain.VolumeID
	Snapshot domain.SnapshotID
	Since    domain.SnapshotID

	// From and To bound the ranges asked for, in bytes and multiples of 4096; To 0 is the end. Limit
	// is the most ranges; 0: as many as one answer holds.
	From, To int64
	Limit    int
}

// Space says what a volume or a snapshot holds.
type Space struct {
	Volume     domain.VolumeID
	Snapshot   domain.SnapshotID // zero for a volume
	Device     domain.DeviceID
	Generation uint32
	Size       domain.Bytes
	Mapped     domain.Bytes // data and written zeros that it sees
	Own        domain.Bytes // room of the data that it wrote since the cut before
	Shared     domain.Bytes // room of the data that it sees and older snapshots wrote
	Saved      domain.Bytes // by which compression makes these two smaller than the data
}

// Answer is what the node knows.
type Answer struct {
	Spaces []Space // AskSnapshots by id; AskVolume: the volume, then its snapshots, the eldest first
	More   bool    // of AskSnapshots there are more behind the last

	Hosts      int    // connections that use the volume
	Durability string // what an acknowledged write survives

	Ranges []domain.Extent
	Next   int64 // where to ask on; -1: that was all
	Size   domain.Bytes

	Scrubs []Scrub // by AskScrub

	// By AskSharing, room of the data: what a deletion gives back, and what others see, too.
	Exclusive, Common domain.Bytes

	Failing []Failing // by AskFailing
}

// Failing is work that a node does by itself and that fails until it goes well again.
type Failing struct {
	What     string
	Since    time.Time
	Failures int64 // in a row
	Error    string
	Position domain.Position // where in the log it stands, or the log stood when it began to fail
}

// Scrub says how far the scrub of a device has come.
type Scrub struct {
	Device   domain.DeviceID
	Running  bool
	Underway bool // a pass is not at its end, running or not
	Pass     uint64
	Checked  domain.Bytes // by this pass, or by the last one
	Live     domain.Bytes // what there is to check, about
	Damaged  int64
	Started  time.Time
	Finished time.Time // of the last pass that came to its end
}
