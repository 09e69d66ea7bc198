package quorum

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"weft/domain"
	"weft/eventstore"
)

const (
	appendPath = "/weft/v1/append"
	// appendBody bounds a forwarded append: its records and their envelope.
	appendBody = eventstore.AppendMax + 4<<10
	// forwardWait bounds a forwarded append. Past it the node writes itself.
	forwardWait = 2 * time.Second
	// forwardConns is how many forwarded appends are on their way to one node at a time.
	forwardConns = 64
	// timelineHeader says in a forwarded append how far its sender's history has come: one of a
	// history that a recovery gave up must not be judged by the one that followed.
	timelineHeader = "Weft-Timeline"
)

// verdict is the answer to a forwarded append.
type verdict struct {
	Error     string          `json:"error,omitempty"` // a word of the table, or "other"
	Message   string          `json:"message,omitempty"`
	Last      domain.Revision `json:"last"`
	Position  uint64          `json:"position"`
	Duplicate bool            `json:"duplicate,omitempty"`
	Current   domain.Revision `json:"current,omitempty"` // of a conflict
	Known     uint64          `json:"known"`             // the end of the writer's mirror
}

// verdicts names the errors that are final: the append did not happen and asking again would give
// the same answer. Everything else makes the asking node write itself.
var verdicts = []struct {
	word string
	err  error
}{
	{"conflict", eventstore.ErrConflict},
	{"fenced", eventstore.ErrFenced},
	{"elsewhere", eventstore.ErrElsewhere},
	{"too-large", eventstore.ErrTooLarge},
	{"no-space", eventstore.ErrNoSpace},
	{"id-reused", eventstore.ErrIDReused},
}

// serveAppend runs an append that another node forwarded.
func (s *Store) serveAppend(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, appendBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, e, ev, err := eventstore.DecodeAppend(b)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	of, err := strconv.ParseUint(r.Header.Get(timelineHeader), 10, 16)
	if err == nil && domain.Timeline(of) < s.mirror.Head().Position.Timeline() {
		http.Error(w, "the log was recovered since", http.StatusConflict) // its sender looks, and repeats
		return
	}
	a, err := s.seq.append(r.Context(), id, e, ev)
	v := verdict{
		Last: a.Last, Position: uint64(a.Position), Duplicate: a.Duplicate,
		Known: uint64(s.mirror.Head().Position),
	}
	if err != nil {
		v.Error, v.Message = "other", err.Error()
		for _, known := range verdicts {
			if errors.Is(err, known.err) {
				v.Error = known.word
			}
		}
		var c *eventstore.ConflictError
		if errors.As(err, &c) {
			v.Current = c.Current
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a reader that left reads the log instead
}

// forward sends an append to the node that writes. final is false when it did not go through or
// nobody knows: then the caller appends itself, with the same ids and the same expectation.
func (s *Store) forward(
	ctx context.Context, to string, id domain.StreamID, e eventstore.Expect, ev []eventstore.Proposed,
) (a eventstore.Appended, refused error, final bool) {
	if ctx.Err() != nil {
		return a, aborted(ctx, "quorum.Append"), true
	}
	if err := s.mirror.Ended(); err != nil {
		return a, err, true
	}
	within, cancel := context.WithTimeout(ctx, forwardWait)
	defer cancel()
	changed := s.stirs(within)
	go func() { // whoever the append was sent to may be gone: its answer would never come
		select {
		case <-changed:
			cancel()
		case <-within.Done():
		}
	}()
	v, err := s.post(within, to, eventstore.EncodeAppend(id, e, ev))
	if err != nil {
		s.doubt(to)
		if ctx.Err() != nil {
			return a, eventstore.ErrUnknownOutcome, true
		}
		return a, nil, false
	}
	// What the writer knew, this node's readers must see: the append itself, or what refused it.
	if s.mirror.Wait(within, domain.Position(v.Known)) != nil && ctx.Err() == nil {
		s.seq.nudge()
		_ = s.mirror.Wait(ctx, domain.Position(v.Known)) // the append stands all the same
	}
	switch v.Error {
	case "":
		return eventstore.Appended{
			Last: v.Last, Position: domain.Position(v.Position), Duplicate: v.Duplicate,
		}, nil, true
	case "conflict":
		return a, &eventstore.ConflictError{Stream: id, Want: e, Current: v.Current}, true
	}
	for _, known := range verdicts {
		if v.Error == known.word {
			return a, &domain.Error{
				Op: "quorum.Append", Kind: domain.KindOf(known.err), Ref: string(id), Msg: v.Message,
				Err: known.err,
			}, true
		}
	}
	return a, nil, false
}

// doubt makes a client write itself until it hears again who leads.
func (s *Store) doubt(leader string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.leader == leader {
		s.mu.leader = ""
	}
}

func (s *Store) post(ctx context.Context, to string, body []byte) (verdict, error) {
	var v verdict
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to+appendPath, bytes.NewReader(body))
	if err != nil {
		return v, err
	}
	of := s.mirror.Head().Position.Timeline()
	req.Header.Set(timelineHeader, strconv.Itoa(int(of)))
	res, err := s.http.Do(req)
	if err != nil {
		return v, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or given up
	if res.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 4<<10)) // so that the connection is kept
		return v, errors.New(res.Status)
	}
	return v, json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&v)
}
