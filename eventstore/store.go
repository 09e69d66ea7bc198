package eventstore

import (
	"context"
	"fmt"
	"iter"

	"weft/domain"
)

// Direction says which way a read goes.
type Direction uint8

// The directions of a read.
const (
	Forward Direction = iota
	Backward
)

type expectKind uint8

const (
	expectNothing expectKind = iota // the zero Expect is refused: nobody expects by oversight
	expectAt
	expectAny
	expectExists
	expectCopied
)

// Expect is what an append believes of its stream. The zero value is invalid.
type Expect struct {
	kind expectKind
	rev  domain.Revision
}

// NoStream expects a stream without events.
func NoStream() Expect { return At(domain.NoRevision) }

// At expects the stream's last event to have this revision.
func At(r domain.Revision) Expect { return Expect{kind: expectAt, rev: r} }

// Any expects nothing. It exists for the conformance suite and the served protocol's tests.
func Any() Expect { return Expect{kind: expectAny} }

// Exists expects a stream with at least one event. It exists for the conformance suite.
func Exists() Expect { return Expect{kind: expectExists} }

// Copied expects what At does, for events that stand behind this revision in the log that takes the
// intents and are copied from there. A log takes it exactly while it does not take At (E8).
func Copied(r domain.Revision) Expect { return Expect{kind: expectCopied, rev: r} }

// Holds tells whether a stream at this revision is as expected.
func (e Expect) Holds(current domain.Revision) bool {
	switch e.kind {
	case expectAt, expectCopied:
		return current == e.rev
	case expectAny:
		return true
	case expectExists:
		return current >= 0
	case expectNothing:
	}
	return false
}

// Exact gives the revision expected, if one is.
func (e Expect) Exact() (domain.Revision, bool) {
	return e.rev, e.kind == expectAt || e.kind == expectCopied
}

// String says it in words.
func (e Expect) String() string {
	switch _, exact := e.Exact(); {
	case exact && e.rev == domain.NoRevision:
		return "no stream"
	case exact:
		return fmt.Sprintf("revision %d", e.rev)
	case e.kind == expectAny:
		return "any revision"
	case e.kind == expectExists:
		return "an existing stream"
	}
	return "nothing stated"
}

// Proposed is an event to append. Its header is filled up to Created; the store fills the rest.
// The data is msgpack with named fields and belongs to the store from the call on.
type Proposed struct {
	domain.Header
	Data []byte
}

// Recorded is a stored event, verified. The data belongs to whoever received it.
type Recorded struct {
	domain.Header
	Data []byte
	// Before is the position of the event before this one in its stream, 0 for the first.
	Before domain.Position
}

// Appended says where an append stands. Duplicate means that the same ids were there already: Last
// and Position are the old ones and nothing was written.
type Appended struct {
	Last      domain.Revision
	Position  domain.Position
	Duplicate bool
}

// Head is the end of the log: the position and the hash of its last record. Both are zero for an
// empty log.
type Head struct {
	Position domain.Position
	Hash     [32]byte
}

// StreamHead is the end of one stream.
type StreamHead struct {
	Revision domain.Revision
	Position domain.Position
}

// Store is one event log. Implementations: memory, quorum, kurrent. Every method may be called by
// many goroutines at once. After Close all fail with ErrClosed.
type Store interface {
	// Append adds events to the end of one stream, all or none. A nil error means that they are
	// durable on a quorum. An append of no events is Invalid.
	//
	// Errors: ConflictError, ErrTooLarge, ErrFenced, ErrElsewhere, ErrIDReused, ErrNoSpace,
	// ErrNoQuorum, CorruptError and kind Invalid mean that nothing was written. ErrUnknownOutcome
	// means that nobody knows. A context that ends before the append was begun gives kind Aborted and
	// nothing was written; one that ends later gives ErrUnknownOutcome.
	Append(ctx context.Context, s domain.StreamID, e Expect, ev ...Proposed) (Appended, error)

	// ReadStream gives the events of one stream from a revision on, that one included. Backward
	// from domain.NoRevision begins at the last event. A stream without events gives nothing. The
	// first error ends the sequence.
	ReadStream(
		ctx context.Context, s domain.StreamID, from domain.Revision, d Direction, limit int,
	) iter.Seq2[Recorded, error]

	// ReadAll gives the selected events of the log. Forward gives those after the cursor, Backward
	// those up to and with it, so both together are the whole log. Backward from 0 begins at the
	// head. A cursor of a lost history gives a TimelineError. Limit counts selected events.
	ReadAll(
		ctx context.Context, from domain.Position, d Direction, f domain.Filter, limit int,
	) iter.Seq2[Recorded, error]

	// Subscribe gives the selected events after the cursor and then those to come, in exactly the
	// order of ReadAll. A cursor beyond the head of the current timeline waits for what comes after
	// it. The context bounds the call, not the subscription.
	Subscribe(ctx context.Context, after domain.Position, f domain.Filter) (Subscription, error)

	// Head gives the end of the log, with everything acknowledged before the call in it.
	Head(ctx context.Context) (Head, error)

	// Close ends every subscription and waits for the engine to stop. What was acknowledged stays.
	Close() error
}

// Subscription is one reader that follows the log. Next is for one goroutine at a time; Close may
// come from any other.
type Subscription interface {
	// Next waits for the next item. A CorruptError or TimelineError repeats on every call. A context
	// that ends gives kind Aborted and loses nothing.
	Next(ctx context.Context) (Item, error)
	// Close ends the subscription; a waiting Next returns ErrClosed.
	Close() error
}

// ItemKind says what a subscription has to tell.
type ItemKind uint8

// The kinds of item.
const (
	// Event carries an event.
	Event ItemKind = iota + 1
	// CaughtUp says that everything up to Position was delivered; it comes once per catch-up.
	CaughtUp
	// Checkpoint says that nothing selected lies between the last event and Position.
	Checkpoint
	// FellBehind says that the reader lies more than LagMax events back. Nothing is lost: events go
	// on where they stopped, and CaughtUp comes again.
	FellBehind
)

// Item is one thing a subscription tells. Position and Hash are the cursor after it.
type Item struct {
	Kind     ItemKind
	Event    Recorded
	Position domain.Position
	Hash     [32]byte
}
