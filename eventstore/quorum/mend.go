package quorum

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"weft/domain"
	"weft/eventstore"
)

// repairPath is where another node asks this one to repair its copy of the log.
const repairPath = "/weft/v1/repair"

// Repair reads all that this node keeps of the log, and repairs what it finds damaged: files of the
// archive before it returns, a damaged database by waiting to be replaced (see the package
// comment). A nil error means that all is sound. A FoundError is damage that is left.
func (s *Store) Repair(ctx context.Context) error {
	var failed error
	for _, seg := range s.past.Segments() {
		err := s.CheckSegment(ctx, seg.First)
		var found *FoundError
		if errors.As(err, &found) {
			if s.heal(ctx, found.Damage, 0) == nil {
				err = nil
			}
		}
		if err != nil && failed == nil {
			failed = err
		}
		if ctx.Err() != nil {
			return aborted(ctx, "quorum.Repair")
		}
	}
	if err := s.Verify(ctx, nil); failed == nil {
		failed = err
	}
	return failed
}

// repaired is the answer to a node that asks for a repair.
type repaired struct {
	Kind  string  `json:"kind,omitempty"` // of the error; empty: all is sound
	Error string  `json:"error,omitempty"`
	Found *Damage `json:"found,omitempty"`
}

// serveRepair repairs this node's copy for another node.
func (s *Store) serveRepair(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "no such call", http.StatusMethodNotAllowed)
		return
	}
	var a repaired
	if err := s.Repair(r.Context()); err != nil {
		a.Kind, a.Error = domain.KindOf(err).String(), err.Error()
		var found *FoundError
		if errors.As(err, &found) {
			a.Found = &found.Damage
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // a caller that left asks again
}

// RepairAt is Repair on another node, which the context alone bounds. Unavailable when it does not
// answer.
func (s *Store) RepairAt(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+repairPath, http.NoBody)
	if err != nil {
		return err
	}
	res, err := s.http.Do(req)
	if err != nil {
		return unavailable(ctx, "quorum.Repair", err)
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or given up
	if res.StatusCode != http.StatusOK {
		return &domain.Error{
			Op: "quorum.Repair", Kind: domain.Unavailable, Ref: url, Err: errors.New(res.Status),
		}
	}
	var a repaired
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&a); err != nil {
		return unavailable(ctx, "quorum.Repair", err)
	}
	if a.Found != nil {
		return &FoundError{*a.Found, &eventstore.CorruptError{
			Position: a.Found.Position, What: a.Found.What, Member: url,
		}}
	}
	for _, k := range domain.Kinds() {
		if a.Kind != "" && k.String() == a.Kind {
			return &domain.Error{Op: "quorum.Repair", Kind: k, Ref: url, Msg: a.Error}
		}
	}
	return nil
}
