package kurrent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
)

// errNotSent says that no server was reached, so that nothing can have happened.
var errNotSent = domain.Errorf(domain.Unavailable, "no node of the cluster answers")

// errPanicked says that the client ended a call by a panic of its own.
var errPanicked = domain.Errorf(domain.Unavailable, "the client met an answer it does not know")

// clients are connections that serve one call at a time. More than one call on a client is unsafe:
// when its search for a node fails, all calls behind the first hang for ever.
//
// A connection that breaks takes those made before it with it: they went to the same cluster, and
// each may hold the refusal it met while the cluster was away and answer with it for a second, so
// that a caller would spend all its attempts on them after the cluster is back.
type clients struct {
	config *esdb.Configuration
	slots  chan slot
	losses atomic.Int64 // of connections
}

// slot holds a client, nil when it is to be made, and the losses there had been when it was made.
type slot struct {
	client *esdb.Client
	losses int64
}

func newClients(config *esdb.Configuration, n int) *clients {
	p := &clients{config: config, slots: make(chan slot, n)}
	for range n {
		p.slots <- slot{}
	}
	return p
}

// call runs f on a connected client. A follower's refusal is answered by running f again, once: by
// then the client has gone over to the leader. f therefore begins anew each time. It must not call
// call. The error is errNotSent, errPanicked, or the client's own.
func (p *clients) call(
	ctx context.Context, f func(ctx context.Context, c *esdb.Client) error,
) error {
	var s slot
	select {
	case s = <-p.slots:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
	if s.client != nil && s.losses < p.losses.Load() {
		_ = s.client.Close() // it has no error to give
		s.client = nil
	}
	var err error
	c := s.client
	if c == nil {
		s.losses = p.losses.Load()
		c, err = esdb.NewClient(p.config)
	}
	if err == nil {
		err = connect(c)
	}
	if err == nil {
		err = guarded(ctx, c, f)
		if codeOf(err) == esdb.ErrorCodeNotLeader {
			err = guarded(ctx, c, f)
		}
	}
	if c != nil && broken(err) {
		_ = c.Close() // it has no error to give
		c = nil
		p.losses.CompareAndSwap(s.losses, s.losses+1)
	}
	s.client = c
	p.slots <- s
	return err
}

// close waits for every call and closes the connections. Nobody may call afterwards.
func (p *clients) close() {
	for range cap(p.slots) {
		if s := <-p.slots; s.client != nil {
			_ = s.client.Close() // it has no error to give
		}
	}
}

// connect makes sure that a client has a node. It sends nothing when it has one.
func connect(c *esdb.Client) error {
	if _, err := c.GetServerVersion(); err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	return nil
}

// guarded runs f and turns a panic of the client into an error. It asks for the leader itself: the
// client puts the wish where it is never sent.
func guarded(
	ctx context.Context, c *esdb.Client, f func(context.Context, *esdb.Client) error,
) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanicked, r)
		}
	}()
	return f(metadata.AppendToOutgoingContext(ctx, "requires-leader", "true"), c)
}

// codeOf gives the client's own code, ErrorCodeUnknown when there is none. The client hands out the
// failure of a read to begin as gRPC's bare status: one that found no server is given the code that
// it has everywhere else.
func codeOf(err error) esdb.ErrorCode {
	var e *esdb.Error
	switch {
	case errors.As(err, &e):
		return e.Code()
	case err != nil && status.Code(err) == codes.Unavailable:
		return esdb.ErrorUnavailable
	}
	return esdb.ErrorCodeUnknown
}

// broken tells whether a client must not be used again: it is dead, or would leak the connection
// that it lost.
func broken(err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, errNotSent) || errors.Is(err, errPanicked) {
		return true
	}
	code := codeOf(err)
	return code == esdb.ErrorUnavailable || code == esdb.ErrorCodeConnectionClosed ||
		code == esdb.ErrorCodeNotLeader
}

// The answers that a repeat does not change.
var (
	answers = map[esdb.ErrorCode]domain.Kind{
		esdb.ErrorCodeAccessDenied: domain.Denied, esdb.ErrorCodeUnauthenticated: domain.Denied,
		esdb.ErrorCodeUnsupportedFeature: domain.Unsupported,
		esdb.ErrorCodeStreamDeleted:      domain.Corrupt,
	}
	// Of those that the client has no code for. What Check lets through is only refused as invalid
	// for the server's own limits.
	statuses = map[codes.Code]domain.Kind{
		codes.InvalidArgument: domain.TooLarge, codes.ResourceExhausted: domain.TooLarge,
		codes.DataLoss: domain.Corrupt, codes.FailedPrecondition: domain.Stale,
	}
)

// refused tells whether the server answered that it will not, in a way that a repeat does not
// change. The error for the caller is nil otherwise.
func refused(err error, op string, s domain.StreamID) error {
	k, ok := answers[codeOf(err)]
	if !ok && codeOf(err) == esdb.ErrorCodeUnknown {
		k, ok = statuses[status.Code(causeOf(err))]
	}
	switch {
	case !ok:
		return nil
	case k == domain.Corrupt:
		return &eventstore.CorruptError{What: fmt.Sprintf("stream %s: %v", s, err)}
	case k == domain.TooLarge:
		return &domain.Error{
			Op: op, Kind: k, Ref: string(s), Msg: err.Error(), Err: eventstore.ErrTooLarge,
		}
	}
	return &domain.Error{Op: op, Kind: k, Ref: string(s), Err: err}
}

// causeOf gives the status behind the client's error.
func causeOf(err error) error {
	var e *esdb.Error
	if errors.As(err, &e) && e.Err() != nil {
		return e.Err()
	}
	return err
}
