package rest

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"weft/domain"
)

// Problem is an RFC 9457 problem document.
type Problem struct {
	Type      string      `json:"type"`
	Title     string      `json:"title"`
	Status    int         `json:"status"`
	Detail    string      `json:"detail,omitempty"`
	Kind      string      `json:"kind"`
	Ref       string      `json:"ref,omitempty"`
	Remedy    string      `json:"remedy,omitempty"`
	RequestID string      `json:"request_id,omitempty"`
	Errors    []Violation `json:"errors,omitempty"`
}

// Violation is one thing wrong with a request.
type Violation struct {
	Location string `json:"location"`
	Message  string `json:"message"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (*Problem) ContentType(string) string { return "application/problem+json" }

// statuses maps kinds to HTTP.
func status(k domain.Kind) int {
	switch k {
	case domain.Invalid, domain.Mismatch, domain.Unsupported, domain.OutOfRange:
		return http.StatusUnprocessableEntity
	case domain.NotFound:
		return http.StatusNotFound
	case domain.Exists, domain.Conflict, domain.Expired, domain.Stale, domain.Miscompare,
		domain.Reserved:
		return http.StatusConflict
	case domain.Denied, domain.ReadOnly:
		return http.StatusForbidden
	case domain.NoSpace:
		return http.StatusInsufficientStorage
	case domain.TooLarge:
		return http.StatusRequestEntityTooLarge
	case domain.Busy:
		return http.StatusTooManyRequests
	case domain.Suspended, domain.Unavailable, domain.Locked, domain.Aborted:
		return http.StatusServiceUnavailable
	case domain.Corrupt, domain.Internal:
	}
	return http.StatusInternalServerError
}

// problem turns any error into a document. The text of a bug stays inside: the log has it.
func problem(ctx context.Context, err error) error {
	var known *Problem
	if errors.As(err, &known) {
		return err
	}
	k := domain.KindOf(err)
	p := &Problem{
		Type: "urn:weft:problem:" + k.String(), Status: status(k), Kind: k.String(),
		RequestID: requestID(ctx), Detail: detail(err),
	}
	p.Title = http.StatusText(p.Status)
	if k == domain.Internal {
		loggerOf(ctx).Error("api", "request", p.RequestID, "err", err)
		p.Detail = "an error inside weft; the node's log has it under this request id"
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		var d *domain.Error
		if !errors.As(e, &d) {
			break
		}
		p.Ref, p.Remedy = first(d.Ref, p.Ref), first(d.Remedy, p.Remedy) // the innermost knows best
		e = d
	}
	for _, v := range domain.ViolationsOf(err) {
		p.Errors = append(p.Errors, Violation{Location: "body." + v.Path, Message: v.Reason})
	}
	return p
}

// detail gives what the innermost error that says something says. The names of the steps around it
// are for the log.
func detail(err error) string {
	text := err.Error()
	for e := err; e != nil; e = errors.Unwrap(e) {
		var d *domain.Error
		if !errors.As(e, &d) {
			break
		}
		if d.Msg != "" || len(d.Violations) > 0 {
			said := *d
			said.Op = ""
			text = said.Error()
		}
		e = d
	}
	return text
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// newError is huma's way to a document, for what it finds itself: malformed JSON, unknown fields,
// values outside the schema. Values are left out: they may be secrets.
func newError(ctx huma.Context, code int, msg string, errs ...error) huma.StatusError {
	p := &Problem{Status: code, Title: http.StatusText(code), Detail: msg}
	k := domain.Invalid
	switch {
	case code == http.StatusNotFound:
		k = domain.NotFound
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		k = domain.Denied
	case code == http.StatusPreconditionFailed:
		k = domain.Conflict
	case code == http.StatusRequestEntityTooLarge:
		k = domain.TooLarge
	case code >= http.StatusInternalServerError:
		k = domain.Internal
		p.Detail = "an error inside weft"
	}
	p.Kind, p.Type = k.String(), "urn:weft:problem:"+k.String()
	if ctx != nil {
		p.RequestID = requestID(ctx.Context())
	}
	for _, e := range errs {
		var d *huma.ErrorDetail
		if errors.As(e, &d) {
			p.Errors = append(p.Errors, Violation{Location: d.Location, Message: d.Message})
		} else if e != nil {
			p.Errors = append(p.Errors, Violation{Message: strings.TrimSpace(e.Error())})
		}
	}
	// huma finds them in the order of a map: equal requests shall have equal answers.
	slices.SortFunc(p.Errors, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Location, b.Location), cmp.Compare(a.Message, b.Message))
	})
	return p
}
