package eventstore

import (
	"time"

	"weft/domain"
)

// The limits of the log. Each has a test at the limit and one beyond it.
const (
	// DataAdvised is the size of one event's payload, in bytes, that writers should stay below.
	DataAdvised = 64 << 10
	// DataMax is the largest payload of one event in bytes.
	DataMax = 256 << 10
	// EventsMax is the most events of one append.
	EventsMax = 120
	// AppendMax is the most bytes of encoded records in one append.
	AppendMax = 1 << 20
	// TextMax is the longest actor, tenant, source or request id in bytes.
	TextMax = 1 << 10
	// TypeMax is the longest name of an event type in bytes.
	TypeMax = 128
	// ConflictRetryMax is how often the Executor decides again after a conflict.
	ConflictRetryMax = 5
	// TailRetryMax is how often an engine builds a batch again because another writer moved the tail.
	TailRetryMax = 8
	// WaitersMax is how many commands wait for one stream in one Executor.
	WaitersMax = 1024
	// LagMax is how many events a live subscription may lie behind before it is told so.
	LagMax = 1024
	// CheckpointEvery is after how many events that its filter hides a subscription hears where it is.
	CheckpointEvery = 10_000
	// IDsMax is how many of the last event ids an engine knows besides those it can look up by place.
	IDsMax = 100_000
	// CommandAge is how long a command may be repeated. Older ones are refused unless found.
	CommandAge = 24 * time.Hour
	// CommandsMin is how many commands of a stream are remembered whatever their age.
	CommandsMin = 256
	// StatesMax is how many folded streams one Executor keeps.
	StatesMax = 4096
	// StepDepthMax is how deep commands that need or cause other commands may nest: a tenant eight
	// deep takes of the quotas of all above it, one after the other.
	StepDepthMax = 12
	// LinearizableWait bounds a read that must see everything acknowledged before it began.
	LinearizableWait = 5 * time.Second
)

// NoLimit makes a read go on to the end, as any negative number does.
const NoLimit = -1

// CoordinationStream is the stream whose last event is the current fencing token.
const CoordinationStream = "coordination-reconciler"

// EngineStream says which log takes the intents, by its length: every second event from the first
// on closes this log to them, and the one behind it opens it again.
const EngineStream = "engine-intents"

// ClosedAt tells whether a log whose EngineStream ends so takes copies of intents alone.
func ClosedAt(engine domain.Revision) bool { return engine >= 0 && engine%2 == 0 }
