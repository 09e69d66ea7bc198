package esdb

import (
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
)

const (
	// checkpointEvery is the step in which clients ask for checkpoints of filtered subscriptions.
	checkpointEvery = 32
	patternMax      = 1 << 10 // bytes of a regular expression
	prefixesMax     = 256
)

// selection says which events a call is about. The prefixes are the store's to apply, the rest is
// ours: a regular expression, and the tenant that the caller is bound to.
type selection struct {
	filter  domain.Filter
	stream  *regexp.Regexp // nil: any
	typ     *regexp.Regexp
	tenant  string
	sees    func(domain.StreamID) bool
	exact   domain.StreamID // one stream and no other; empty: any
	partial bool            // the client asked for a filter, so it wants checkpoints
	every   uint64          // events examined between two of them
}

// expression is a filter's inner message, the same under two Go types.
type expression interface {
	GetRegex() string
	GetPrefix() []string
}

// filterOptions is a filter, the same under two Go types but for its inner message.
type filterOptions interface {
	GetMax() uint32
	GetCheckpointIntervalMultiplier() uint32
}

// narrow applies a client's filter. At most one of the expressions is not nil.
func (s *selection) narrow(o filterOptions, byStream, byType expression) error {
	s.partial = true
	step := o.GetMax()
	if step == 0 {
		step = checkpointEvery
	}
	s.every = uint64(step) * uint64(max(o.GetCheckpointIntervalMultiplier(), 1))
	var err error
	if byStream != nil {
		s.filter.StreamPrefix, s.stream, err = expressed(byStream)
	} else if byType != nil {
		s.filter.TypePrefix, s.typ, err = expressed(byType)
	}
	return err
}

// expressed gives an expression as prefixes for the store, or as a pattern.
func expressed(e expression) (prefixes []string, re *regexp.Regexp, err error) {
	if p := e.GetPrefix(); len(p) > 0 {
		if len(p) > prefixesMax {
			return nil, nil, status.Errorf(codes.InvalidArgument, "more than %d prefixes", prefixesMax)
		}
		return p, nil, nil
	}
	text := e.GetRegex()
	if len(text) > patternMax {
		return nil, nil, status.Errorf(codes.InvalidArgument, "pattern over %d bytes", patternMax)
	}
	// What the clients send for "no system events" is written with a lookahead, which no engine of
	// linear time has. Our log has no system events.
	if text == "" || strings.HasPrefix(text, `^(?!\$`) {
		return nil, nil, nil
	}
	re, err = regexp.Compile(text)
	if err != nil {
		return nil, nil, status.Errorf(codes.InvalidArgument, "pattern: %v", err)
	}
	return nil, re, nil
}

// match tells whether an event that the store selected is selected here too.
func (s *selection) match(r *eventstore.Recorded) bool {
	return (s.exact == "" || r.Stream == s.exact) &&
		(s.tenant == "" || r.Tenant == s.tenant) && (s.sees == nil || s.sees(r.Stream)) &&
		(s.stream == nil || s.stream.MatchString(string(r.Stream))) &&
		(s.typ == nil || s.typ.MatchString(r.Type))
}
