package projections

import (
	"crypto/sha256"
	"io"

	"weft/domain"
)

// The limits of views. Each has a test at the limit and one beyond it.
const (
	// KeepEvery is after how many events a view's state is kept for reads of the past, and so the
	// most that one of those folds.
	KeepEvery = 100_000
	// KeptMax is how many states are kept of one view; the oldest leave first.
	KeptMax = 64
	// BuildsMax is how many views of the past are built at once.
	BuildsMax = 2
)

// View is one fold of the log. Apply and Digest are called by one goroutine at a time; how readers
// are kept apart from Apply is the view's own affair.
type View interface {
	// Name is the view's stable name, such as "catalog".
	Name() string
	// Version counts the meanings of the fold; a change of it starts the view over.
	Version() uint16
	// Apply folds one record. Event is nil for an optional type that this build does not know. An
	// error stops the view for good, so a view refuses only what it cannot live with.
	Apply(r domain.Record) error
	// Digest writes the whole state in one deterministic encoding: equal states, equal bytes.
	Digest(w io.Writer) error
}

// Keeper is a View whose state can be copied, so that the past is read without folding from zero.
type Keeper interface {
	View
	// Clone gives an independent copy. It runs between two calls of Apply.
	Clone() View
}

// Checkpoint says how far a view is: the position and hash of the last record it saw.
type Checkpoint struct {
	Position domain.Position
	Hash     [32]byte
	Version  uint16
}

// Status is what can be told of a running view.
type Status struct {
	Name       string
	Checkpoint Checkpoint
	Skipped    uint64 // events of optional types unknown to this build
	Err        error  // why it stopped, nil while it runs
}

// StateHash is SHA-256 over what a view's Digest writes.
func StateHash(v View) ([32]byte, error) {
	var sum [32]byte
	h := sha256.New()
	if err := v.Digest(h); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}
