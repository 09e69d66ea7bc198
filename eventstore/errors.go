package eventstore

import (
	"fmt"

	"weft/domain"
)

// The errors of every engine. Test with errors.Is; the kind of each is what domain.KindOf gives.
var (
	// ErrConflict (Conflict): the stream is not where the append expected it.
	ErrConflict = domain.Errorf(domain.Conflict, "the stream moved on")
	// ErrUnknownOutcome (Unavailable): the append may have happened or may still happen. The caller
	// repeats it with the same ids and learns which.
	ErrUnknownOutcome = domain.Errorf(domain.Unavailable, "the outcome is not known; repeat it")
	// ErrNoQuorum (Unavailable): the append did not happen; too few members answer, or too many
	// writers collide.
	ErrNoQuorum = domain.Errorf(domain.Unavailable, "no quorum for the append")
	// ErrCorrupt (Corrupt): stored bytes do not match their checksum, their content or the chain.
	ErrCorrupt = domain.Errorf(domain.Corrupt, "a stored record is damaged")
	// ErrTooLarge (TooLarge): the append is over a named limit.
	ErrTooLarge = domain.Errorf(domain.TooLarge, "the append is too large")
	// ErrNoSpace (NoSpace): the engine's quota is exhausted; the append did not happen.
	ErrNoSpace = domain.Errorf(domain.NoSpace, "the event log is full")
	// ErrFenced (Stale): an event carries a token that is not the current one.
	ErrFenced = domain.Errorf(domain.Stale, "the fencing token is not the current one")
	// ErrElsewhere (Unavailable): another log takes the intents and this one only copies of them, or
	// the other way round; nothing was written.
	ErrElsewhere = domain.Errorf(domain.Unavailable, "another log takes changes of intent")
	// ErrTimelineChanged (Stale): the cursor belongs to a history that was given up.
	ErrTimelineChanged = domain.Errorf(domain.Stale, "the cursor lies in a lost history")
	// ErrClosed (Unavailable): the store, or the subscription, was closed.
	ErrClosed = domain.Errorf(domain.Unavailable, "the event store is closed")
	// ErrIDReused (Mismatch): some of the append's event ids are stored and others are not, or they
	// stand in another stream or order.
	ErrIDReused = domain.Errorf(domain.Mismatch, "an event id was used before")
)

// ConflictError says where the stream really is. It is ErrConflict and of kind Conflict.
type ConflictError struct {
	Stream  domain.StreamID
	Want    Expect
	Current domain.Revision
}

// Error names the stream, what was wanted and what is.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s: wanted %s, is at revision %d", e.Stream, e.Want, e.Current)
}

// Unwrap gives ErrConflict.
func (*ConflictError) Unwrap() error { return ErrConflict }

// CorruptError names the first place found damaged. It is ErrCorrupt and of kind Corrupt. Position
// is 0 when the damage is not in one record, What then says where it is. Member is empty for an
// engine of one process.
type CorruptError struct {
	Position domain.Position
	What     string
	Member   string
}

// Error names the place and what does not match there.
func (e *CorruptError) Error() string {
	if e.Member != "" {
		return fmt.Sprintf("position %s on %s: %s", e.Position, e.Member, e.What)
	}
	return fmt.Sprintf("position %s: %s", e.Position, e.What)
}

// Unwrap gives ErrCorrupt.
func (*CorruptError) Unwrap() error { return ErrCorrupt }

// TimelineError says that a cursor belongs to a lost history: its reader starts over, or goes on
// from Floor if it can take back what lies above. It is ErrTimelineChanged and of kind Stale.
type TimelineError struct{ Cursor, Floor domain.Position }

// Error names both places.
func (e *TimelineError) Error() string {
	return fmt.Sprintf("cursor %s is above the floor %s of a later timeline", e.Cursor, e.Floor)
}

// Unwrap gives ErrTimelineChanged.
func (*TimelineError) Unwrap() error { return ErrTimelineChanged }
