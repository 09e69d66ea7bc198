package rest

import (
	"context"
	"encoding/json"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/outlet"
	"weft/projections/access"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/outlets"
	"weft/projections/topology"
)

// Result is what a command led to.
type Result struct {
	Stream    domain.StreamID
	Revision  domain.Revision
	Position  domain.Position
	Duplicate bool
}

// Views are the read models at one position.
type Views struct {
	Position domain.Position
	Topology *topology.View
	Desired  *desired.View
	Catalog  *catalog.View
	Audit    *audit.View
	Access   *access.View // of the present only: nobody sees in the past what today denies
	Outlets  *outlets.View
}

// Event is a stored event with its payload as JSON.
type Event struct {
	domain.Header
	Data json.RawMessage
}

// Live is what the node knows of a volume besides the log: how it is reached and what it does now.
type Live struct {
	NBD, ISCSI string         // URIs, empty where not offered
	Durability string         // "durable" or "process"
	Space      command.Answer // to AskVolume
	Ops        []LiveOps
}

// LiveOps counts one operation of a volume since the node began to serve it.
type LiveOps struct {
	Op     string `json:"op"`
	Count  int64  `json:"count"`
	Bytes  int64  `json:"bytes"`
	Errors int64  `json:"errors"`
}

// LiveDevice is what the node knows of a device besides the log.
type LiveDevice struct {
	Used, Usable, Capacity domain.Bytes
	Garbage                domain.Bytes // in segments in use, beside what lives
	FreeSegments, Segments int64
	Corruptions            int64
	Mode                   string
	// Of a device that leaves: where its volumes go to, how much went, how much is left, and what is
	// in the way.
	Moving      string
	Moved, Left domain.Bytes
	Trouble     string
}

// Verdict is the answer of a verification of the log.
type Verdict struct {
	Checked domain.Position // every position up to it is sound
	Bad     domain.Position // the first that is not; 0: none
	Why     string
	Part    string // "database" or "archive", where the damage is known to be in one
	Node    string // name of the node whose copy is damaged
	Remedy  string
	Alone   bool // no other node has a copy
}

// Replayed is what the replay of one view came to.
type Replayed struct {
	View    string
	Version uint16
	Events  uint64
	Hash    [32]byte // SHA-256 of the whole state in one encoding
	Took    time.Duration
}

// Backend is what the API stands on; cmd joins it with the event store and the node.
type Backend interface {
	Do(ctx context.Context, r domain.Request) (Result, error)
	Now() Views
	// At gives the views as they were at a position. Busy when too many are being built.
	At(ctx context.Context, p domain.Position) (Views, error)
	// Wait returns once the views hold a position.
	Wait(ctx context.Context, p domain.Position) error
	// Events gives up to limit events from a position on, or backwards from it.
	Events(ctx context.Context, from domain.Position, backward bool, f domain.Filter,
		limit int) ([]Event, error)
	// Watch calls fn with every event after a position, in order, until it fails or ctx ends.
	// fn gets nil at every pause, so that it can keep the connection alive.
	Watch(ctx context.Context, after domain.Position, f domain.Filter, fn func(*Event) error) error
	Verify(ctx context.Context) (Verdict, error)
	// Archive says how the old part of the log is kept, ArchiveSegments in which files.
	Archive(ctx context.Context) (Archive, error)
	ArchiveSegments(ctx context.Context) ([]ArchiveSegment, error)
	// Engine says which log takes changes of intent, CompareEngine what a move to another would copy.
	Engine(ctx context.Context) (Engine, error)
	CompareEngine(ctx context.Context, address, secret string) (EngineCopy, error)
	// Failing lists what the nodes do by themselves and cannot do now, and the names of those that
	// gave no answer.
	Failing(ctx context.Context) (items []Failing, silent []string)
	// LogDamage lists what is damaged of the nodes' copies of the log.
	LogDamage() []LogDamage
	// RepairLog makes a node read all of its copy of the log and repair what is damaged. What it finds
	// and is left is the answer.
	RepairLog(ctx context.Context, node domain.NodeID) (Verdict, error)
	// LogEnded tells whether the log takes no more events on this node, being damaged.
	LogEnded() bool
	// Export calls fn with every record after a position, in the bytes that are stored, and gives the
	// position of the last. fn does not keep them.
	Export(ctx context.Context, after domain.Position, fn func(record []byte) error) (
		domain.Position, error)
	// Until gives the position of the last event that was made up to a time, 0 before all of them.
	Until(ctx context.Context, t time.Time) (domain.Position, error)
	// Replay folds every view anew from the first event up to a position and keeps none of them.
	// Busy when too many views of the past are being built.
	Replay(ctx context.Context, p domain.Position) ([]Replayed, error)
	// Identify tells who bears a token. Denied with a reason for the audit when nobody does, or may;
	// the principal's name is then given as far as it was proved.
	Identify(ctx context.Context, token string) (access.Principal, error)
	// Refused keeps an attempt that was refused. It does not wait and does not fail the caller.
	Refused(a Attempt)
	// Refusals gives the newest attempts that this node refused, newest first, at most limit.
	Refusals(limit int) ([]Attempt, error)
	// JoinToken makes a join token as the request's caller.
	JoinToken(ctx context.Context, r domain.Request, ttl time.Duration, uses int64) (
		string, Result, error)
	// Digest is the keyed hash that stands in the log for a text about a person.
	Digest(kind, text string) []byte
	// Bundle gives the keys of persons closed under a passphrase, and whose they are by number.
	Bundle(ctx context.Context, passphrase string) (bundle []byte, users int, err error)
	// SealSource gives what the log holds in the place of the address a user's request came from.
	SealSource(ctx context.Context, user domain.UserID, request, source string) (string, error)
	// DestroyKey destroys the key of a user who is erased, for good. Again is no error.
	DestroyKey(ctx context.Context, user domain.UserID) error
	PutSecret(name, user, pass, ownUser, ownPass string) error
	// Published gives the position up to which an outlet has published, and how many events that it
	// selects are behind it, at most 10,000.
	Published(ctx context.Context, o outlet.State) (at domain.Position, behind int, err error)
	Live(id domain.VolumeID) (Live, bool)
	// Ask puts a question to the node that it names.
	Ask(ctx context.Context, q command.Question) (command.Answer, error)
	LiveDevice(id domain.DeviceID) (LiveDevice, bool)
}
