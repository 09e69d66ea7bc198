package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"weft/domain"
)

// Exit codes of every command (L3).
const (
	ExitOK       = 0
	ExitError    = 1
	ExitInvalid  = 2
	ExitConflict = 3
	ExitDegraded = 4
	ExitTimeout  = 5
)

// degraded is an answer that is complete and not good: it was printed, and only the exit code is
// left to tell.
type degraded struct{ why string }

// Error implements error.
func (d *degraded) Error() string { return d.why }

// usage is a command line that cannot be understood.
type usage struct {
	err     error
	command string
}

// Error implements error.
func (u *usage) Error() string { return u.err.Error() }

// Unwrap gives the cause.
func (u *usage) Unwrap() error { return u.err }

// ExitCode tells the exit code of an error.
func ExitCode(err error) int {
	var (
		d *degraded
		u *usage
	)
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &d):
		return ExitDegraded
	case errors.As(err, &u):
		return ExitInvalid
	case errors.Is(err, context.DeadlineExceeded):
		return ExitTimeout
	}
	return exitOfKind(domain.KindOf(err))
}

// exitOfKind is the one table from Kind to exit code.
func exitOfKind(k domain.Kind) int {
	switch k {
	case domain.Invalid, domain.Unsupported, domain.OutOfRange, domain.Mismatch, domain.TooLarge:
		return ExitInvalid
	case domain.Exists, domain.Conflict, domain.Stale, domain.Expired, domain.Reserved,
		domain.Miscompare, domain.Locked:
		return ExitConflict
	case domain.Suspended, domain.Corrupt:
		return ExitDegraded
	case domain.Internal, domain.NotFound, domain.Denied, domain.ReadOnly, domain.NoSpace,
		domain.Busy, domain.Unavailable, domain.Aborted:
	}
	return ExitError
}

// report is an error as -o json shows it.
type report struct {
	Error reported `json:"error"`
}

type reported struct {
	Kind       string      `json:"kind"`
	Exit       int         `json:"exit"`
	Ref        string      `json:"ref,omitempty"`
	Message    string      `json:"message"`
	Remedy     string      `json:"remedy,omitempty"`
	Violations []violation `json:"violations,omitempty"`
}

type violation struct {
	Path   string `json:"path,omitempty"`
	Reason string `json:"reason"`
}

// reportOf gathers what an error tells: the message of the innermost errors, the first reference
// and the first remedy on the way.
func reportOf(err error) reported {
	r := reported{Kind: domain.KindOf(err).String(), Exit: ExitCode(err), Message: err.Error()}
	var u *usage
	if errors.As(err, &u) {
		r.Kind, r.Remedy = domain.Invalid.String(), "see: "+u.command+" --help"
	}
	var last *domain.Error
	for e := err; ; {
		var d *domain.Error
		if !errors.As(e, &d) {
			break
		}
		// An error of a type of its own, such as one that names a damaged place, says more than the
		// general one that it stands for.
		if last != nil && d != e && d.Ref == "" && d.Err == nil { //nolint:errorlint // this very one
			break
		}
		r.Ref, r.Remedy, last = first(d.Ref, r.Ref), first(r.Remedy, d.Remedy), d
		e = d.Err
	}
	for _, v := range domain.ViolationsOf(err) {
		r.Violations = append(r.Violations, violation{v.Path, v.Reason})
	}
	if last != nil && u == nil {
		r.Message = messageOf(last)
	}
	return r
}

// messageOf is an error without the names of the steps that led to it.
func messageOf(e *domain.Error) string {
	var parts []string
	if e.Ref != "" {
		parts = append(parts, e.Ref)
	}
	if e.Msg != "" {
		parts = append(parts, e.Msg)
	}
	// The context's own words say nothing that the message does not.
	if e.Err != nil && (e.Msg == "" || !errors.Is(e.Err, context.DeadlineExceeded)) {
		parts = append(parts, e.Err.Error())
	}
	if len(parts) == 0 && len(e.Violations) > 0 {
		parts = append(parts, "the request is not valid")
	}
	if len(parts) == 0 {
		parts = append(parts, strings.ReplaceAll(e.Kind.String(), "_", " "))
	}
	return strings.Join(parts, ": ")
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// printError writes an error for people, or as JSON (L4). An answer that is only degraded was
// printed already.
func printError(w io.Writer, err error, asJSON bool) {
	var d *degraded
	if errors.As(err, &d) {
		return
	}
	r := reportOf(err)
	if asJSON {
		if b, err := json.Marshal(report{r}); err == nil {
			_, _ = fmt.Fprintln(w, string(b)) // nowhere is left to say that this failed
		}
		return
	}
	_, _ = fmt.Fprintln(w, "error: "+oneLine(r.Message))
	for _, v := range r.Violations {
		if v.Path != "" {
			v.Reason = v.Path + ": " + v.Reason
		}
		_, _ = fmt.Fprintln(w, "  - "+oneLine(v.Reason))
	}
	if r.Remedy != "" {
		_, _ = fmt.Fprintln(w, "try: "+oneLine(r.Remedy))
	}
}

// oneLine keeps what came over the wire from writing on the terminal at will.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
