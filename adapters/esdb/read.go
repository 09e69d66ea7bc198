package esdb

import (
	"context"
	"math"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
)

// reader serves the streams: it reads, and refuses everything else but appends in tests.
type reader struct {
	streams.UnimplementedStreamsServer
	s *Server
}

// BatchAppend implements streams.StreamsServer.
func (r reader) BatchAppend(stream streams.Streams_BatchAppendServer) error {
	return r.s.deny(stream.Context(), "BatchAppend", stream.SetTrailer)
}

// Delete implements streams.StreamsServer.
func (r reader) Delete(ctx context.Context, _ *streams.DeleteReq) (*streams.DeleteResp, error) {
	return nil, r.s.deny(ctx, "Delete", trailerOf(ctx))
}

// Tombstone implements streams.StreamsServer.
func (r reader) Tombstone(ctx context.Context, _ *streams.TombstoneReq) (
	*streams.TombstoneResp, error,
) {
	return nil, r.s.deny(ctx, "Tombstone", trailerOf(ctx))
}

// trailerOf gives the setter of a unary call's trailer.
func trailerOf(ctx context.Context) func(metadata.MD) {
	return func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }
}

// reading is one call of Read.
type reading struct {
	s    *Server
	ctx  context.Context //nolint:containedctx // it is the call's own
	out  streams.Streams_ReadServer
	sel  selection
	text bool // ids as text
}

// Read implements streams.StreamsServer.
func (r reader) Read(req *streams.ReadReq, out streams.Streams_ReadServer) error {
	o := req.GetOptions()
	ctx, done := r.s.scope(out.Context())
	defer done()
	who := principal(ctx)
	c := &reading{
		s: r.s, ctx: ctx, out: out, text: o.GetUuidOption().GetString_() != nil,
		sel: selection{tenant: who.Tenant, sees: who.Sees},
	}
	if f := o.GetFilter(); f != nil {
		var byStream, byType expression
		if e := f.GetStreamIdentifier(); e != nil {
			byStream = e
		} else if e := f.GetEventType(); e != nil {
			byType = e
		}
		if err := c.sel.narrow(f, byStream, byType); err != nil {
			return err
		}
	}
	following := o.GetSubscription() != nil
	switch {
	case o.GetAll() != nil && following:
		return c.followAll(o.GetAll())
	case o.GetAll() != nil:
		return c.readAll(o.GetAll(), o.GetReadDirection(), limitOf(o.GetCount()))
	case o.GetStream() == nil:
		return status.Error(codes.InvalidArgument, "neither a stream nor $all")
	}
	c.sel.exact = domain.StreamID(o.GetStream().GetStreamIdentifier().GetStreamName())
	if following {
		return c.followStream(o.GetStream())
	}
	return c.readStream(o.GetStream(), o.GetReadDirection(), limitOf(o.GetCount()))
}

// limitOf turns a count into the store's limit; clients say "all" by the largest number.
func limitOf(count uint64) int {
	if count > math.MaxInt {
		return eventstore.NoLimit
	}
	return int(count)
}

// readStream answers a plain read of one stream.
func (c *reading) readStream(
	o *streams.ReadReq_Options_StreamOptions, d streams.ReadReq_Options_ReadDirection, limit int,
) error {
	from, direction := domain.Revision(0), eventstore.Forward
	switch {
	case o.GetEnd() != nil || o.GetRevision() > math.MaxInt64:
		from = domain.NoRevision
	case o.GetStart() == nil:
		from = domain.Revision(o.GetRevision())
	}
	if d == streams.ReadReq_Options_Backwards {
		direction = eventstore.Backward
	} else if from == domain.NoRevision {
		limit = 0 // forward from the end: nothing
	}
	found := false
	for _, err := range c.s.config.Store.ReadStream(c.ctx, c.sel.exact, 0, eventstore.Forward, 1) {
		if err != nil {
			return fail(err)
		}
		found = true
	}
	if !found || !c.mayRead() {
		return c.out.Send(&streams.ReadResp{Content: &streams.ReadResp_StreamNotFound_{
			StreamNotFound: &streams.ReadResp_StreamNotFound{
				StreamIdentifier: &shared.StreamIdentifier{StreamName: []byte(c.sel.exact)},
			},
		}})
	}
	for r, err := range c.s.config.Store.ReadStream(c.ctx, c.sel.exact, from, direction, limit) {
		if err != nil {
			return fail(err)
		}
		if !c.sel.match(&r) {
			continue
		}
		if err := c.send(&r); err != nil {
			return err
		}
	}
	return nil
}

// mayRead tells whether any event of the stream is for the caller: a foreign stream looks like one
// that is not there.
func (c *reading) mayRead() bool {
	if c.sel.sees != nil && !c.sel.sees(c.sel.exact) {
		return false
	}
	if c.sel.tenant == "" {
		return true
	}
	for r, err := range c.s.config.Store.ReadStream(c.ctx, c.sel.exact, 0, eventstore.Forward,
		eventstore.NoLimit) {
		if err != nil {
			return false
		}
		if r.Tenant == c.sel.tenant {
			return true
		}
	}
	return false
}

// readAll answers a plain read of the log. The position given is read too.
func (c *reading) readAll(
	o *streams.ReadReq_Options_AllOptions, d streams.ReadReq_Options_ReadDirection, limit int,
) error {
	store := c.s.config.Store
	at := domain.Position(o.GetPosition().GetCommitPosition())
	end := o.GetEnd() != nil || o.GetPosition().GetCommitPosition() == math.MaxUint64
	direction := eventstore.Forward
	switch {
	case d == streams.ReadReq_Options_Backwards && o.GetStart() != nil:
		return nil
	case d == streams.ReadReq_Options_Backwards:
		direction = eventstore.Backward
		if end {
			at = 0
		}
	case end:
		return nil
	case o.GetStart() != nil:
		at = 0
	default:
		var err error
		if at, err = c.before(at); err != nil {
			return fail(err)
		}
	}
	if limit == 0 {
		return nil
	}
	for r, err := range store.ReadAll(c.ctx, at, direction, c.sel.filter, eventstore.NoLimit) {
		if err != nil {
			return fail(err)
		}
		if !c.sel.match(&r) {
			continue
		}
		if err := c.send(&r); err != nil {
			return err
		}
		if limit--; limit == 0 {
			return nil
		}
	}
	return nil
}

// before gives the cursor behind which an event at this position comes next.
func (c *reading) before(at domain.Position) (domain.Position, error) {
	if at == 0 {
		return 0, nil
	}
	older := domain.Position(0)
	for r, err := range c.s.config.Store.ReadAll(c.ctx, at, eventstore.Backward, domain.Filter{}, 2) {
		if err != nil {
			return 0, err
		}
		older = r.Position
		if r.Position < at {
			break
		}
		older = 0 // at is the first event of all
	}
	return older, nil
}

func (c *reading) send(r *eventstore.Recorded) error {
	m, err := c.s.event(r, c.text)
	if err != nil {
		return fail(err)
	}
	return c.out.Send(m)
}
