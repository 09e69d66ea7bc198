package rest

import (
	"context"
	"net/http"
	"time"

	"weft/projections/access"
)

// attemptTextMax bounds what an attempt keeps of foreign text, bytes.
const attemptTextMax = 256

// Attempt is a request that was refused. It holds no token and nothing of the body.
type Attempt struct {
	Time      time.Time `json:"time"`
	Actor     string    `json:"actor,omitempty" doc:"as far as it was proved"`
	Source    string    `json:"source"`
	Request   string    `json:"request"`
	Operation string    `json:"operation" doc:"its id, or method and path where none was reached"`
	Tenant    string    `json:"tenant,omitempty"`
	Status    int       `json:"status"`
	Reason    string    `json:"reason"`
}

type attemptKey struct{}

// attemptOf gives the request's attempt, which is kept if it is refused.
func attemptOf(ctx context.Context) *Attempt {
	if a, ok := ctx.Value(attemptKey{}).(*Attempt); ok {
		return a
	}
	return &Attempt{}
}

func newAttempt(r *http.Request, id string, now time.Time) *Attempt {
	return &Attempt{
		Time: now.UTC(), Source: r.RemoteAddr, Request: id,
		Operation: short(r.Method + " " + r.URL.Path),
	}
}

func short(s string) string { return s[:min(len(s), attemptTextMax)] }

// refused fills in how the attempt ended, and tells whether it belongs in the audit: everything
// that was not let in or not understood, and every change that was refused, or of which the caller
// did not hear that it was done.
func (a *Attempt) refused(method string, code int) bool {
	a.Status, a.Tenant = code, short(a.Tenant)
	if code < 400 {
		return false
	}
	if a.Reason != "" {
		return true
	}
	change := method != http.MethodGet && method != http.MethodHead
	if code >= 500 && code != http.StatusInsufficientStorage {
		a.Reason = "no answer of the cluster"
		if code == http.StatusInternalServerError {
			a.Reason = "failed"
		}
		return change
	}
	switch code {
	case http.StatusNotFound:
		a.Reason = "no such object"
		return change
	case http.StatusTooManyRequests:
		a.Reason = "busy"
		return change
	case http.StatusForbidden:
		a.Reason = "denied"
	case http.StatusConflict, http.StatusPreconditionFailed:
		a.Reason = "conflict"
	case http.StatusInsufficientStorage:
		a.Reason = "quota"
	default:
		a.Reason = "malformed"
	}
	return true
}

func (s *Server) listRefusals(ctx context.Context, in *struct {
	Limit int `query:"limit" default:"100" minimum:"1" maximum:"1000"`
},
) (*Got[List[Attempt]], error) {
	list, err := s.b.Refusals(in.Limit)
	if err != nil {
		return nil, err
	}
	now := s.b.Now().Position.String()
	out := &Got[List[Attempt]]{Position: now, Body: List[Attempt]{[]Attempt{}, now}}
	out.Body.Items = append(out.Body.Items, list...)
	ctx, cancel := context.WithTimeout(ctx, access.RevealWait)
	defer cancel()
	for i := range out.Body.Items {
		a := &out.Body.Items[i]
		a.Actor = s.b.Now().Access.Actor(ctx, a.Actor)
	}
	return out, nil
}
