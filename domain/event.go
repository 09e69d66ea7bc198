package domain

import (
	"strings"
	"time"
)

// StreamID names one aggregate's stream: a category, a hyphen, an id.
type StreamID string

// StreamMax is the longest stream name in bytes.
const StreamMax = 190

// StreamOf puts a stream name together.
func StreamOf(category string, id UUID) StreamID {
	return StreamID(category + "-" + id.String())
}

// Category gives the part before the first hyphen.
func (s StreamID) Category() string {
	c, _, _ := strings.Cut(string(s), "-")
	return c
}

// Valid tells whether the name has the form [a-z0-9]+ '-' [A-Za-z0-9._:-]{1,180}.
func (s StreamID) Valid() bool {
	cat, id, ok := strings.Cut(string(s), "-")
	if !ok || cat == "" || id == "" || len(id) > 180 || len(s) > StreamMax {
		return false
	}
	for _, c := range []byte(cat) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9') {
			return false
		}
	}
	for _, c := range []byte(id) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune("._:-", rune(c)) {
			return false
		}
	}
	return true
}

// Event is something that happened: past tense, whole, never changed afterwards. Its fields are
// exported, tagged for msgpack, and hold no map.
type Event interface {
	EventType() string // such as "VolumeCreated"; never renamed or reused
}

// Command is a wish in the imperative, directed at one stream.
type Command interface {
	CommandType() string // such as "CreateTemplate"
	Stream() StreamID
}

// Prelude is a command that needs other commands to have succeeded first, such as the reservation
// of a name on its tenant's stream. They run in order, each under an id derived from the command's.
type Prelude interface {
	Command
	Before() []Command
}

// Validator is a command that can be judged in part without any state. The executor asks before the
// prelude runs, so that a malformed command reserves nothing.
type Validator interface {
	Command
	Validate() error
}

// Reversal is a command whose prelude must be taken back when the command itself is refused.
type Reversal interface {
	Prelude
	Undo() []Command
}

// Postlude is a command that lets other commands follow once its own events are durable, such as
// the release of a name. They are retried with the command.
type Postlude interface {
	Command
	After() []Command
}

// Caller says who issues a command, from where, and for which tenant.
type Caller struct {
	Actor     string // such as "user/admin" or "node/<id>/reconciler"
	Tenant    string
	Source    string // address of the caller
	RequestID string
}

// Request is a command with everything the log records about its origin.
type Request struct {
	Command     Command
	ID          CommandID // zero: the executor draws a random one and promises nothing on retry
	Hash        [16]byte  // over the canonical form; zero: the executor computes it
	Caller      Caller
	Correlation EventID
	Causation   EventID
	Token       uint64    // fencing token; 0 = none needed
	Stamped     time.Time // when the caller made it; zero: now
	IfRevision  *Revision // expected revision of the stream, from an ETag; nil: any
}

// Header is what every stored event carries besides its payload. All of it is covered by the hash
// chain. The executor fills it up to Created, the store from Stream on.
type Header struct {
	ID          EventID
	Type        string
	Schema      uint16
	Actor       string
	Tenant      string
	Source      string
	RequestID   string
	Command     CommandID
	RequestHash [16]byte
	Correlation EventID
	Causation   EventID
	Token       uint64
	Created     time.Time // UTC, cut to 100 ns

	Stream   StreamID
	Revision Revision
	Position Position
	Hash     [32]byte
	Prev     [32]byte
}

// Record is a stored event as views and readers see it: the header and the decoded payload.
// Event is nil when this build does not know the type and the type is optional.
type Record struct {
	Header
	Event Event
}

// Filter selects events by prefixes of their stream and type. Empty lists select all.
type Filter struct {
	StreamPrefix []string
	TypePrefix   []string
}

// Match tells whether an event of this stream and type is selected.
func (f Filter) Match(s StreamID, typ string) bool {
	return anyPrefix(f.StreamPrefix, string(s)) && anyPrefix(f.TypePrefix, typ)
}

func anyPrefix(prefixes []string, s string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return len(prefixes) == 0
}

// Aggregate is one kind of stream: the fold of its events and the judgement of its commands. Both
// functions are pure. Evolve must not change the state it was given in place where an older copy
// could see it.
type Aggregate[S any] struct {
	Category string
	Evolve   func(S, Event) S
	Decide   func(S, Request) ([]Event, error)
}
