package esdb

import (
	"context"
	"errors"
	"io"
	"math"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
)

// appendMax is the most events that one foreign append may hold.
const appendMax = 4096

const tooLarge = "maximum-append-size-exceeded"

const refusal = "this is an audit log: what happened is appended by Weft alone, through its own API"

// Foreign is an event as a client of the protocol proposes it. The slices are the receiver's.
type Foreign struct {
	ID          domain.EventID
	Type        string
	ContentType string
	Custom      []byte // custom metadata, which the protocol does not look into
	Data        []byte
}

// Appender takes the appends of clients, as an EventStoreDB does. The product has none: only tests
// that need an EventStoreDB to talk to set one.
type Appender interface {
	// AppendForeign adds events to the end of a stream, all or none. The same ids at the expected
	// place give the old result. An expectation that does not hold gives a ConflictError, and
	// nothing was written. Kind TooLarge is the server's limit on an append.
	AppendForeign(
		ctx context.Context, s domain.StreamID, e eventstore.Expect, ev []Foreign,
	) (eventstore.Appended, error)
	// Foreign gives an event of the served store as its client proposed it.
	Foreign(r *eventstore.Recorded) (Foreign, bool)
}

// Append implements streams.StreamsServer. What the client sends is read before it is refused: a
// client that is still sending would see a broken call and no reason.
func (r reader) Append(stream streams.Streams_AppendServer) error {
	if r.s.config.Appender == nil {
		for range eventstore.EventsMax + 1 {
			if _, err := stream.Recv(); err != nil {
				break
			}
		}
		return r.s.deny(stream.Context(), "Append", stream.SetTrailer)
	}
	ctx, done := r.s.scope(stream.Context())
	defer done()
	o, events, err := proposals(stream)
	if err != nil {
		return err
	}
	id := domain.StreamID(o.GetStreamIdentifier().GetStreamName())
	a, err := r.s.config.Appender.AppendForeign(ctx, id, expectation(o), events)
	var conflict *eventstore.ConflictError
	switch {
	case errors.As(err, &conflict):
		return stream.SendAndClose(wrongVersion(o, conflict.Current))
	case domain.KindOf(err) == domain.TooLarge && err != nil:
		stream.SetTrailer(metadata.Pairs(exceptionKey, tooLarge))
		return status.Error(codes.InvalidArgument, err.Error())
	case err != nil:
		return fail(err)
	}
	return stream.SendAndClose(&streams.AppendResp{Result: &streams.AppendResp_Success_{
		Success: &streams.AppendResp_Success{
			CurrentRevisionOption: &streams.AppendResp_Success_CurrentRevision{
				CurrentRevision: uint64(a.Last),
			},
			PositionOption: &streams.AppendResp_Success_Position{
				Position: &streams.AppendResp_Position{
					CommitPosition: uint64(a.Position), PreparePosition: uint64(a.Position),
				},
			},
		},
	}})
}

// proposals reads a whole append: its options, then its events.
func proposals(stream streams.Streams_AppendServer) (
	*streams.AppendReq_Options, []Foreign, error,
) {
	first, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	o := first.GetOptions()
	if o == nil {
		return nil, nil, status.Error(codes.InvalidArgument, "an append begins with its options")
	}
	var events []Foreign
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return o, events, nil
		}
		if err != nil {
			return nil, nil, err
		}
		m := req.GetProposedMessage()
		id, ok := parseID(m.GetId())
		if m == nil || !ok || len(events) == appendMax {
			return nil, nil, status.Errorf(codes.InvalidArgument, "event %d: not one, or too many",
				len(events))
		}
		events = append(events, Foreign{
			ID: domain.EventID{UUID: id}, Type: m.GetMetadata()["type"],
			ContentType: m.GetMetadata()["content-type"], Custom: m.GetCustomMetadata(),
			Data: m.GetData(),
		})
	}
}

// expectation reads what an append expects of its stream.
func expectation(o *streams.AppendReq_Options) eventstore.Expect {
	switch {
	case o.GetNoStream() != nil:
		return eventstore.NoStream()
	case o.GetAny() != nil:
		return eventstore.Any()
	case o.GetStreamExists() != nil:
		return eventstore.Exists()
	}
	return eventstore.At(domain.Revision(min(o.GetRevision(), math.MaxInt64)))
}

// wrongVersion answers a conflict by the fields that clients of today read.
func wrongVersion(o *streams.AppendReq_Options, current domain.Revision) *streams.AppendResp {
	w := &streams.AppendResp_WrongExpectedVersion{}
	if current == domain.NoRevision {
		w.CurrentRevisionOption = &streams.AppendResp_WrongExpectedVersion_CurrentNoStream{
			CurrentNoStream: &shared.Empty{},
		}
	} else {
		w.CurrentRevisionOption = &streams.AppendResp_WrongExpectedVersion_CurrentRevision{
			CurrentRevision: uint64(current),
		}
	}
	switch {
	case o.GetNoStream() != nil:
		w.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedNoStream{
			ExpectedNoStream: &shared.Empty{},
		}
	case o.GetAny() != nil:
		w.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedAny{
			ExpectedAny: &shared.Empty{},
		}
	case o.GetStreamExists() != nil:
		w.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedStreamExists{
			ExpectedStreamExists: &shared.Empty{},
		}
	default:
		w.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedRevision{
			ExpectedRevision: o.GetRevision(),
		}
	}
	return &streams.AppendResp{Result: &streams.AppendResp_WrongExpectedVersion_{
		WrongExpectedVersion: w,
	}}
}
