package domain

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what an error means to the one who meets it. Kinds are append-only, and each adapter
// owns one table from Kind to its wire's code.
type Kind uint8

// The kinds. Their names, given by String, are stable on the wire.
const (
	Internal    Kind = iota // a bug of ours
	Invalid                 // malformed: the caller must change the request
	Unsupported             // known and not offered
	OutOfRange              // beyond the end
	NotFound                // no such object, or not visible to the caller
	Exists                  // the name or the id is taken by something else
	Conflict                // the state moved on: read again
	Denied                  // not allowed
	ReadOnly                // the disk takes no writes
	NoSpace                 // the pool, the device or a quota is exhausted
	Busy                    // a bounded queue is full: try again
	Stale                   // an old token, epoch or incarnation
	Suspended               // held back while no safe way to serve exists
	Unavailable             // the part that would answer is not there now
	Corrupt                 // a checksum does not match and no good copy is left
	Aborted                 // ended by the caller's own wish
	Miscompare              // compare-and-write met other data
	Reserved                // held by another host's reservation
	Locked                  // another process owns the resource
	Mismatch                // a key used before with another request
	Expired                 // too old to be run
	TooLarge                // over a named limit
	kindCount
)

var kindNames = [kindCount]string{
	"internal", "invalid", "unsupported", "out_of_range", "not_found", "exists", "conflict",
	"denied", "read_only", "no_space", "busy", "stale", "suspended", "unavailable", "corrupt",
	"aborted", "miscompare", "reserved", "locked", "mismatch", "expired", "too_large",
}

// String gives the kind's stable name.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Kinds lists every kind, for the tables of the adapters and their tests.
func Kinds() []Kind {
	all := make([]Kind, kindCount)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Violation is one thing wrong with a request, and where.
type Violation struct {
	Path   string // such as "intent.availability.replicas"
	Reason string
}

// Error is the one error type of Weft. Op names the step that failed ("engine.Append"), Ref the
// object it was about, Violations lists all that is wrong with an invalid request, Remedy says
// what the reader can do. Err is the cause and may be nil.
type Error struct {
	Op         string
	Kind       Kind
	Ref        string
	Msg        string
	Remedy     string
	Violations []Violation
	Err        error
}

// Error gives one line: op: ref: message: cause.
func (e *Error) Error() string {
	var parts []string
	for _, p := range []string{e.Op, e.Ref, e.Msg} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	for _, v := range e.Violations {
		parts = append(parts, v.Path+": "+v.Reason)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	if len(parts) == 0 {
		return e.Kind.String()
	}
	return strings.Join(parts, ": ")
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is lets errors.Is compare with a bare &Error{Kind: k}: equal kinds match.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Op == "" && t.Ref == "" && t.Msg == "" && t.Err == nil
}

// Errorf makes an error of a kind with a message.
func Errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// Wrap puts an operation and the object it was about before an error, keeping its kind. It gives
// nil for nil.
func Wrap(err error, op, ref string) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: KindOf(err), Ref: ref, Err: err}
}

// KindOf gives the kind of the outermost *Error in the chain, Internal when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// IsKind tells whether err has the kind. A nil error has none.
func IsKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// ViolationsOf lists everything wrong with a request, from anywhere in the chain.
func ViolationsOf(err error) []Violation {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return nil
		}
		if len(e.Violations) > 0 {
			return e.Violations
		}
		err = e.Err
	}
	return nil
}

// Checker gathers all violations of a request, so that the caller hears of them at once.
type Checker struct{ found []Violation }

// Check notes a violation at path unless ok holds.
func (c *Checker) Check(ok bool, path, format string, args ...any) {
	if !ok {
		c.found = append(c.found, Violation{Path: path, Reason: fmt.Sprintf(format, args...)})
	}
}

// Err gives nil, or one error of kind Invalid that lists every violation.
func (c *Checker) Err(op, ref string) error {
	if len(c.found) == 0 {
		return nil
	}
	return &Error{Op: op, Kind: Invalid, Ref: ref, Violations: c.found}
}
