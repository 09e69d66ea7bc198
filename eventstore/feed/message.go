package feed

import (
	"context"
	"encoding/hex"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"weft/eventstore"
)

// The metadata of a message. Numbers are decimal text.
const (
	Position    = "weft_position"
	Stream      = "weft_stream"
	Revision    = "weft_revision"
	Type        = "weft_type"
	Schema      = "weft_schema"
	Tenant      = "weft_tenant"
	Actor       = "weft_actor"
	Created     = "weft_created_ns" // since 1970, UTC
	Content     = "weft_content"    // hash, hexadecimal, as eventstore.Content gives it
	Correlation = "correlation_id"  // the key of Watermill's own middleware
	Causation   = "causation_id"
	// Reason is why a handler refused the message; Fail sets it.
	Reason = "weft_reason"
)

type eventKey struct{}

// encode makes the message of an event. Its id is the event's.
func encode(ctx context.Context, r *eventstore.Recorded) *message.Message {
	m := message.NewMessage(r.ID.String(), append([]byte(nil), r.Data...))
	content := eventstore.Content(&r.Header, r.Data)
	m.Metadata = message.Metadata{
		Position: r.Position.String(), Stream: string(r.Stream),
		Revision: strconv.FormatInt(int64(r.Revision), 10), Type: r.Type,
		Schema: strconv.Itoa(int(r.Schema)), Tenant: r.Tenant, Actor: r.Actor,
		Created: strconv.FormatInt(r.Created.UnixNano(), 10),
		Content: hex.EncodeToString(content[:]),
	}
	if !r.Correlation.IsZero() {
		m.Metadata[Correlation] = r.Correlation.String()
	}
	if !r.Causation.IsZero() {
		m.Metadata[Causation] = r.Causation.String()
	}
	m.SetContext(context.WithValue(ctx, eventKey{}, *r))
	return m
}

// Event gives the event behind a message of this process.
func Event(m *message.Message) (eventstore.Recorded, bool) {
	r, ok := m.Context().Value(eventKey{}).(eventstore.Recorded)
	return r, ok
}

// Fail refuses a message and says why, so that whoever is told of a poisoned event hears it.
func Fail(m *message.Message, err error) {
	m.Metadata.Set(Reason, err.Error())
	m.Nack()
}

// Reasons is a middleware for a Watermill router: it notes why a handler failed. The router's own
// Nack tells nothing.
func Reasons(h message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		out, err := h(m)
		if err != nil {
			m.Metadata.Set(Reason, err.Error())
		}
		return out, err
	}
}
