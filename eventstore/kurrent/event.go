package kurrent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"

	"weft/domain"
	"weft/eventstore"
)

// metadataFormat is the version of the custom metadata. FORMAT.md describes it.
const metadataFormat = 1

// note is the custom metadata of an event. 64-bit numbers are decimal text, because JavaScript has
// no room for them; hashes and ids are lower-case hexadecimal and canonical UUIDs. The order of the
// fields is part of the format: what is read must be, byte for byte, what writing it again gives.
type note struct {
	Format      int    `json:"weft"`
	Correlation string `json:"$correlationId,omitempty"`
	Causation   string `json:"$causationId,omitempty"`
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
	Prev        string `json:"prev"` // hash of the event before in the stream, zeros for the first
	Hash        string `json:"hash"`
	Append      string `json:"append"` // which call appended it: a mark's text
}

// markSize is the length of a mark, and of what proves one.
const markSize = 8

// mark tells one call of Append from all others: a repeat of an append that is there has the same
// ids and the same hashes, and the server's success is the same. It is drawn at random.
type mark [markSize]byte

// text is what stands in the metadata of an event: the mark, and the first bytes of the SHA-256 of
// mark and hash, so that no bit of it changes unseen.
func (m mark) text(hash [32]byte) string {
	proof := sha256.Sum256(append(m[:], hash[:]...))
	return hex.EncodeToString(append(m[:], proof[:markSize]...))
}

// Chain is the hash of an event: over that of the event before it in its stream, and its content.
func Chain(prev, content [32]byte) [32]byte {
	return sha256.Sum256(append(append(make([]byte, 0, 64), prev[:]...), content[:]...))
}

// seal gives an event its place behind a hash, and the data to send. Stream and revision are set.
func seal(r *eventstore.Recorded, m mark) (esdb.EventData, error) {
	for _, s := range []string{r.Type, r.Actor, r.Tenant, r.Source, r.RequestID} {
		if !utf8.ValidString(s) {
			return esdb.EventData{}, &domain.Error{
				Op: "kurrent.Append", Kind: domain.Invalid, Ref: string(r.Stream),
				Msg: fmt.Sprintf("%q is not UTF-8, which the protocol asks for", s),
			}
		}
	}
	content := eventstore.Content(&r.Header, r.Data)
	r.Hash = Chain(r.Prev, content)
	custom, err := json.Marshal(noteOf(r, content, m))
	if err != nil {
		return esdb.EventData{}, domain.Wrap(err, "kurrent.Append", string(r.Stream))
	}
	return esdb.EventData{
		EventID: uuid.UUID(r.ID.UUID), EventType: r.Type, ContentType: esdb.ContentTypeBinary,
		Data: r.Data, Metadata: custom,
	}, nil
}

func noteOf(r *eventstore.Recorded, content [32]byte, m mark) *note {
	n := &note{
		Format: metadataFormat, Created: strconv.FormatInt(r.Created.UnixNano(), 10),
		Schema: r.Schema, Actor: r.Actor, Tenant: r.Tenant, Source: r.Source,
		RequestID: r.RequestID, RequestHash: hex.EncodeToString(r.RequestHash[:]),
		Command: r.Command.String(), Token: strconv.FormatUint(r.Token, 10),
		Content: hex.EncodeToString(content[:]), Prev: hex.EncodeToString(r.Prev[:]),
		Hash: hex.EncodeToString(r.Hash[:]), Append: m.text(r.Hash),
	}
	if !r.Correlation.IsZero() {
		n.Correlation = r.Correlation.String()
	}
	if !r.Causation.IsZero() {
		n.Causation = r.Causation.String()
	}
	return n
}

// open reads an event of the server and verifies all that it says of itself: metadata, content and
// hash. That it follows its predecessor is for the caller, who knows that one. A mismatch is a
// CorruptError at its position, metadata of a newer build is of kind Unsupported.
func (s *Store) open(e *esdb.RecordedEvent) (eventstore.Recorded, error) {
	at := domain.Position(e.Position.Commit)
	bad := func(what string) (eventstore.Recorded, error) {
		return eventstore.Recorded{}, &eventstore.CorruptError{
			Position: at, What: fmt.Sprintf("%s@%d: %s", e.StreamID, e.EventNumber, what),
		}
	}
	name, ours := strings.CutPrefix(e.StreamID, s.config.Prefix)
	switch {
	case !ours:
		return bad("is in a stream that is none of ours")
	case e.Position.Commit == math.MaxUint64 || at.Timeline() != 0:
		return eventstore.Recorded{}, domain.Errorf(domain.Unsupported,
			"%s@%d: the server gives it no position that we can use", e.StreamID, e.EventNumber)
	case e.EventNumber > math.MaxInt64:
		return bad("has a revision out of bounds")
	}
	var n note
	if err := json.Unmarshal(e.UserMetadata, &n); err != nil || n.Format < 1 {
		return bad("its custom metadata is not ours")
	}
	if n.Format > metadataFormat {
		return eventstore.Recorded{}, domain.Errorf(domain.Unsupported,
			"%s@%d: metadata format %d is newer than this build", e.StreamID, e.EventNumber, n.Format)
	}
	r := eventstore.Recorded{Data: e.Data, Header: domain.Header{
		ID: domain.EventID{UUID: domain.UUID(e.EventID)}, Type: e.EventType, Schema: n.Schema,
		Actor: n.Actor, Tenant: n.Tenant, Source: n.Source, RequestID: n.RequestID,
		Stream: domain.StreamID(name), Revision: domain.Revision(e.EventNumber), Position: at,
	}}
	m, ok := n.fill(&r)
	if !ok {
		return bad("its custom metadata is malformed")
	}
	content := eventstore.Content(&r.Header, r.Data)
	again, err := json.Marshal(noteOf(&r, content, m))
	if err != nil || !bytes.Equal(again, e.UserMetadata) {
		return bad("its content does not match its custom metadata")
	}
	if r.Hash != Chain(r.Prev, content) {
		return bad("its hash does not match its content")
	}
	return r, nil
}

// fill sets what stands in the metadata as text, and tells whether all of it could be read.
func (n *note) fill(r *eventstore.Recorded) (m mark, ok bool) {
	ok = true
	fixed := func(to []byte, s string) {
		k, err := hex.Decode(to, []byte(s[:min(len(s), 2*len(to))]))
		ok = ok && err == nil && k == len(to) && len(s) == 2*len(to)
	}
	id := func(to *domain.UUID, s string) {
		u, err := domain.ParseUUID(s)
		*to, ok = u, ok && err == nil
	}
	fixed(r.RequestHash[:], n.RequestHash)
	fixed(r.Prev[:], n.Prev)
	fixed(r.Hash[:], n.Hash)
	fixed(m[:], n.Append[:min(len(n.Append), 2*markSize)])
	id(&r.Command.UUID, n.Command)
	if n.Correlation != "" {
		id(&r.Correlation.UUID, n.Correlation)
	}
	if n.Causation != "" {
		id(&r.Causation.UUID, n.Causation)
	}
	created, err := strconv.ParseInt(n.Created, 10, 64)
	ok = ok && err == nil
	r.Created = time.Unix(0, created).UTC()
	r.Token, err = strconv.ParseUint(n.Token, 10, 64)
	return m, ok && err == nil
}

// has tells whether a mark is that of an event as the server gave it, which open has verified.
func (m mark) has(e *esdb.RecordedEvent) bool {
	var n note
	return json.Unmarshal(e.UserMetadata, &n) == nil &&
		strings.HasPrefix(n.Append, hex.EncodeToString(m[:]))
}
