package client

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"weft/domain"
)

// problemDoc is an RFC 9457 problem document as Weft sends it.
type problemDoc struct {
	Title     string `json:"title"`
	Detail    string `json:"detail"`
	Kind      string `json:"kind"`
	Ref       string `json:"ref"`
	Remedy    string `json:"remedy"`
	RequestID string `json:"request_id"`
	Errors    []struct {
		Location string `json:"location"`
		Message  string `json:"message"`
	} `json:"errors"`
}

// steps matches the names of inner steps and streams before a message: they help a developer with
// the log, not the reader of an error.
var steps = regexp.MustCompile(`^(?:command [A-Za-z]+|[a-z]+\.[A-Z][A-Za-z]*|` +
	`[a-z]+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}): `)

// problemOf turns a refusal into an error (C3).
func problemOf(res *http.Response, body []byte) *domain.Error {
	var d problemDoc
	if json.Unmarshal(body, &d) != nil || d.Kind == "" {
		if bytes.Contains(body, []byte("HTTP request to an HTTPS server")) {
			return &domain.Error{
				Kind: domain.Denied, Msg: "the API speaks TLS", Remedy: "write its address as https://...",
			}
		}
		return &domain.Error{
			Kind: kindOfStatus(res.StatusCode), Msg: "the node answered " + res.Status,
			Remedy: "check that --api names a Weft node",
		}
	}
	e := &domain.Error{Kind: kindOf(d.Kind), Ref: d.Ref, Remedy: d.Remedy, Msg: d.Detail}
	for steps.MatchString(e.Msg) {
		e.Msg = steps.ReplaceAllString(e.Msg, "")
	}
	if steps.MatchString(e.Ref + ": ") {
		e.Ref = "" // a stream, not an object's name
	}
	if e.Ref != "" {
		e.Msg = strings.TrimPrefix(e.Msg, e.Ref+": ")
	}
	for _, v := range d.Errors {
		e.Violations = append(e.Violations, domain.Violation{
			Path: strings.TrimPrefix(v.Location, "body."), Reason: v.Message,
		})
	}
	if len(e.Violations) > 0 {
		e.Msg = "the request is not valid" // the violations say all that the detail says
	}
	if e.Kind == domain.Internal && d.RequestID != "" {
		e.Msg += " (request " + d.RequestID + ")"
	}
	return e
}

// kindOf reads a kind's stable name. A name of a newer node is an Internal error here.
func kindOf(name string) domain.Kind {
	for _, k := range domain.Kinds() {
		if k.String() == name {
			return k
		}
	}
	return domain.Internal
}

// kindOfStatus judges an answer without a problem document, such as a proxy's.
func kindOfStatus(code int) domain.Kind {
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return domain.Denied
	case http.StatusNotFound:
		return domain.NotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return domain.Conflict
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return domain.Invalid
	case http.StatusTooManyRequests:
		return domain.Busy
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return domain.Unavailable
	}
	return domain.Internal
}
