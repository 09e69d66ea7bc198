package esdb

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"

	"weft/domain"
	"weft/eventstore"
)

// annotations is the custom metadata of an event. 64-bit numbers are decimal text: JavaScript has
// no room for them. Content, prev and hash are hexadecimal SHA-256; eventstore's FORMAT.md says
// over what.
type annotations struct {
	Correlation string `json:"$correlationId,omitempty"`
	Causation   string `json:"$causationId,omitempty"`
	Position    string `json:"position"`
	Timeline    string `json:"timeline"`
	Before      string `json:"before"` // position of the event before in its stream, 0: none
	Created     string `json:"created_ns"`
	Schema      uint16 `json:"schema"`
	Actor       string `json:"actor"`
	Tenant      string `json:"tenant,omitempty"`
	Source      string `json:"source,omitempty"`
	RequestID   string `json:"request_id,omitempty"`
	RequestHash string `json:"request_hash"`
	Command     string `json:"command"`
	Token       string `json:"token"`
	Content     string `json:"content"`
	Prev        string `json:"prev"`
	Hash        string `json:"hash"`
	RawHash     string `json:"weft.raw-hash,omitempty"` // of the bytes behind rendered data
}

// recorded is an event on the wire. Reads and persistent subscriptions have the same message under
// two Go types; this is what both are made of.
type recorded struct {
	stream       []byte
	metadata     map[string]string
	custom, data []byte
}

const (
	ticksPerSecond = 10_000_000
	nanosPerTick   = 100
)

// wire makes an event's parts.
func (s *Server) wire(r *eventstore.Recorded) (recorded, error) {
	if s.config.Appender != nil {
		if f, ok := s.config.Appender.Foreign(r); ok {
			return recorded{
				stream: []byte(r.Stream), custom: f.Custom, data: f.Data,
				metadata: systemMetadata(r, f.ContentType),
			}, nil
		}
	}
	content := eventstore.Content(&r.Header, r.Data)
	a := annotations{
		Position: r.Position.String(), Timeline: decimal(uint64(r.Position.Timeline())),
		Before:  r.Before.String(),
		Created: strconv.FormatInt(r.Created.UnixNano(), 10), Schema: r.Schema, Actor: r.Actor,
		Tenant: r.Tenant, Source: r.Source, RequestID: r.RequestID,
		RequestHash: hex.EncodeToString(r.RequestHash[:]), Command: r.Command.String(),
		Token: decimal(r.Token), Content: hex.EncodeToString(content[:]),
		Prev: hex.EncodeToString(r.Prev[:]), Hash: hex.EncodeToString(r.Hash[:]),
	}
	if !r.Correlation.IsZero() {
		a.Correlation = r.Correlation.String()
	}
	if !r.Causation.IsZero() {
		a.Causation = r.Causation.String()
	}
	out := recorded{stream: []byte(r.Stream), data: r.Data}
	kind := "application/octet-stream"
	if s.config.Render != nil {
		text, err := s.config.Render(r)
		if err != nil {
			return out, err
		}
		raw := sha256.Sum256(r.Data)
		a.RawHash, kind, out.data = hex.EncodeToString(raw[:]), "application/json", text
	}
	custom, err := json.Marshal(&a)
	if err != nil {
		return out, err
	}
	out.custom, out.metadata = custom, systemMetadata(r, kind)
	return out, nil
}

// systemMetadata is what the protocol itself knows of an event. Clients end their process when the
// time is no integer.
func systemMetadata(r *eventstore.Recorded, contentType string) map[string]string {
	ticks := r.Created.Unix()*ticksPerSecond + int64(r.Created.Nanosecond()/nanosPerTick)
	return map[string]string{
		"type": r.Type, "content-type": contentType, "created": strconv.FormatInt(ticks, 10),
	}
}

// event is an event as a read gives it.
func (s *Server) event(r *eventstore.Recorded, text bool) (*streams.ReadResp, error) {
	w, err := s.wire(r)
	if err != nil {
		return nil, err
	}
	e := &streams.ReadResp_ReadEvent_RecordedEvent{
		Id:               identifier(r.ID.UUID, text),
		StreamIdentifier: &shared.StreamIdentifier{StreamName: w.stream},
		StreamRevision:   uint64(r.Revision),
		PreparePosition:  uint64(r.Position), CommitPosition: uint64(r.Position),
		Metadata: w.metadata, CustomMetadata: w.custom, Data: w.data,
	}
	return &streams.ReadResp{Content: &streams.ReadResp_Event{Event: &streams.ReadResp_ReadEvent{
		Event: e,
		Position: &streams.ReadResp_ReadEvent_CommitPosition{
			CommitPosition: uint64(r.Position),
		},
	}}}, nil
}

// identifier gives an id in the form that the client asked for.
func identifier(u domain.UUID, text bool) *shared.UUID {
	if text {
		return &shared.UUID{Value: &shared.UUID_String_{String_: u.String()}}
	}
	return structured(u)
}

func structured(u domain.UUID) *shared.UUID {
	return &shared.UUID{Value: &shared.UUID_Structured_{Structured: &shared.UUID_Structured{
		MostSignificantBits:  int64(binary.BigEndian.Uint64(u[:8])),
		LeastSignificantBits: int64(binary.BigEndian.Uint64(u[8:])),
	}}}
}

// parseID reads an id in either form; ok is false for one that is malformed.
func parseID(m *shared.UUID) (u domain.UUID, ok bool) {
	if s := m.GetStructured(); s != nil {
		binary.BigEndian.PutUint64(u[:8], uint64(s.GetMostSignificantBits()))
		binary.BigEndian.PutUint64(u[8:], uint64(s.GetLeastSignificantBits()))
		return u, true
	}
	u, err := domain.ParseUUID(m.GetString_())
	return u, err == nil
}

func decimal(v uint64) string { return strconv.FormatUint(v, 10) }
