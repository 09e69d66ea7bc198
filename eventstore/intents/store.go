package intents

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"weft/domain"
	"weft/eventstore"
)

// WaitDefault is how long an append waits for its copy in the embedded log.
const WaitDefault = 5 * time.Second

// Where names the log that takes intents; no address is the embedded one. Turn tells two moves to
// one address apart.
type Where struct {
	Address string
	Turn    int64
}

// Config says what a Store works with. Embedded, Where and Dial are required.
type Config struct {
	// Embedded is the log that orders everything.
	Embedded eventstore.Store
	// Where tells which log takes intents as far as this node has heard. It is asked at every append
	// of an intent and must be quick.
	Where func() Where
	// Dial opens a log. It need not reach it yet.
	Dial func(w Where) (eventstore.Store, error)
	// Wait bounds the wait for a copy; 0 is WaitDefault.
	Wait time.Duration
}

// Store is the log as commands see it: intents are decided where they belong, everything else and
// every read is the embedded log's. Any number of goroutines may use it.
type Store struct {
	cfg Config
	mu  struct {
		sync.Mutex
		where  Where            // of other
		other  eventstore.Store // nil until the first intent for it
		closed bool
	}
}

var _ eventstore.Store = (*Store)(nil)

// New makes a store. The embedded log stays its owner's. The error is of kind Invalid.
func New(c Config) (*Store, error) {
	if c.Embedded == nil || c.Where == nil || c.Dial == nil || c.Wait < 0 {
		return nil, domain.Errorf(domain.Invalid, "intents: Embedded, Where and Dial are needed")
	}
	if c.Wait == 0 {
		c.Wait = WaitDefault
	}
	return &Store{cfg: c}, nil
}

// Append implements eventstore.Store. An intent for another log is durable in both when the error
// is nil, and the position is the embedded log's. Errors beyond those of the contract: kind
// Unavailable while the other log does not answer or a change of engine is under way, Suspended
// when the two logs contradict each other.
func (s *Store) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	if !domain.Intent(id.Category()) {
		return s.cfg.Embedded.Append(ctx, id, e, ev...)
	}
	where := s.cfg.Where()
	if where.Address == "" {
		a, err := s.cfg.Embedded.Append(ctx, id, e, ev...)
		if errors.Is(err, eventstore.ErrElsewhere) {
			err = &domain.Error{
				Op: "intents.Append", Kind: domain.Unavailable, Ref: string(id), Err: err,
				Msg:    "the event log that takes changes of intent is being changed",
				Remedy: "try again shortly; weft events engine shows how far it is",
			}
		}
		return a, err
	}
	if err := eventstore.Check(id, e, ev); err != nil {
		return eventstore.Appended{}, err
	}
	other, err := s.dial(where)
	if err != nil {
		return eventstore.Appended{}, err
	}
	return s.decide(ctx, other, where.Address, id, e, ev)
}

// dial gives a log. Another one than the last closes the old one.
func (s *Store) dial(w Where) (eventstore.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.closed:
		return nil, eventstore.ErrClosed
	case s.mu.other != nil && s.mu.where == w:
		return s.mu.other, nil
	case s.mu.other != nil:
		_ = s.mu.other.Close() // what it acknowledged stays
		s.mu.other = nil
	}
	other, err := s.cfg.Dial(w)
	if err != nil {
		return nil, away(w.Address, err)
	}
	s.mu.where, s.mu.other = w, other
	return other, nil
}

// away says that the other log could not be used. What it wraps still tells whether anything was
// written.
func away(address string, err error) error {
	return &domain.Error{
		Op: "intents.Append", Kind: domain.Unavailable, Ref: address, Err: err,
		Msg: "the event store that takes changes of intent does not answer; all else goes on",
		Remedy: "bring it back, or take intents into the embedded log: " +
			"weft events migrate --to embedded",
	}
}

// decide appends to the other log and waits for the copy (N1).
func (s *Store) decide(
	ctx context.Context, other eventstore.Store, address string, id domain.StreamID,
	e eventstore.Expect, ev []eventstore.Proposed,
) (eventstore.Appended, error) {
	ev, err := s.unfenced(ctx, id, ev)
	if err != nil {
		return eventstore.Appended{}, err
	}
	before, err := s.end(ctx)
	if err != nil {
		return eventstore.Appended{}, err
	}
	a, err := other.Append(ctx, id, e, ev...)
	var conflict *eventstore.ConflictError
	switch {
	case errors.As(err, &conflict):
		return eventstore.Appended{}, s.conflict(ctx, id, before, conflict)
	case err != nil && domain.KindOf(err) == domain.Unavailable:
		return eventstore.Appended{}, away(address, err)
	case err != nil:
		return eventstore.Appended{}, err
	}
	copied, err := s.await(ctx, id, before, a.Last)
	if err != nil {
		return eventstore.Appended{}, &domain.Error{
			Op: "intents.Append", Kind: domain.Unavailable, Ref: string(id),
			Msg: "it is in the event store that takes changes of intent, and no copy of it in the log " +
				"yet; repeat it",
			Remedy: "weft events engine says what is wrong with the copies",
			Err:    errors.Join(eventstore.ErrUnknownOutcome, err),
		}
	}
	if want := ev[len(ev)-1].ID; copied.ID != want {
		return eventstore.Appended{}, apart(id, a.Last, fmt.Sprintf(
			"the log has event %s and the store %s", copied.ID, want,
		))
	}
	return eventstore.Appended{
		Last: a.Last, Position: copied.Position, Duplicate: a.Duplicate,
	}, nil
}

// apart says that the two logs contradict each other.
func apart(id domain.StreamID, r domain.Revision, what string) error {
	return &domain.Error{
		Op: "intents", Kind: domain.Suspended, Ref: fmt.Sprintf("%s@%d", id, r),
		Msg: "the event store that takes changes of intent contradicts the log: " + what,
	}
}

// conflict waits until what the expectation did not know of is here, so that a caller who reads
// again and decides anew can succeed.
func (s *Store) conflict(
	ctx context.Context, id domain.StreamID, before domain.Position, c *eventstore.ConflictError,
) error {
	if want, exact := c.Want.Exact(); exact && c.Current < want {
		if _, here, err := s.at(ctx, id, want); here || err != nil {
			if err != nil {
				return err
			}
			return apart(id, want, fmt.Sprintf("the store ends at revision %d", c.Current))
		}
	}
	if c.Current >= 0 {
		if _, err := s.await(ctx, id, before, c.Current); err != nil {
			return &domain.Error{
				Op: "intents.Append", Kind: domain.Unavailable, Ref: string(id),
				Msg:    "the copies of other changes of intent are not here yet",
				Remedy: "weft events engine says what is wrong with them",
				Err:    errors.Join(eventstore.ErrNoQuorum, err),
			}
		}
	}
	return c
}

// unfenced judges the tokens of intents by the embedded log, and gives the events without them.
func (s *Store) unfenced(
	ctx context.Context, id domain.StreamID, ev []eventstore.Proposed,
) ([]eventstore.Proposed, error) {
	if !slices.ContainsFunc(ev, func(p eventstore.Proposed) bool { return p.Token != 0 }) {
		return ev, nil
	}
	now := uint64(0)
	for r, err := range s.cfg.Embedded.ReadStream(
		ctx, eventstore.CoordinationStream, domain.NoRevision, eventstore.Backward, 1,
	) {
		if err != nil {
			return nil, err
		}
		now = eventstore.TokenAt(eventstore.StreamHead{Revision: r.Revision, Position: r.Position})
	}
	ev = slices.Clone(ev)
	for i := range ev {
		if t := ev[i].Token; t != 0 && t != now {
			return nil, domain.Wrap(eventstore.ErrFenced, "intents.Append", string(id))
		}
		ev[i].Token = 0
	}
	return ev, nil
}

// end gives the last position that this node's copy of the embedded log holds.
func (s *Store) end(ctx context.Context) (domain.Position, error) {
	for r, err := range s.cfg.Embedded.ReadAll(
		ctx, 0, eventstore.Backward, domain.Filter{}, 1,
	) {
		return r.Position, err
	}
	return 0, nil
}

// at gives an event of the embedded log by its place in its stream, if it is there.
func (s *Store) at(
	ctx context.Context, id domain.StreamID, rev domain.Revision,
) (eventstore.Recorded, bool, error) {
	for r, err := range s.cfg.Embedded.ReadStream(ctx, id, rev, eventstore.Forward, 1) {
		return r, err == nil, err
	}
	return eventstore.Recorded{}, false, nil
}

// await waits until the embedded log holds a revision of a stream. Before is a position that was
// its end before the wait began.
func (s *Store) await(
	ctx context.Context, id domain.StreamID, before domain.Position, rev domain.Revision,
) (eventstore.Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Wait)
	defer cancel()
	if r, here, err := s.at(ctx, id, rev); here || err != nil {
		return r, err
	}
	sub, err := s.cfg.Embedded.Subscribe(ctx, before, domain.Filter{
		StreamPrefix: []string{string(id)},
	})
	if err != nil {
		return eventstore.Recorded{}, err
	}
	defer func() { _ = sub.Close() }() // it has nothing left to tell
	for {
		item, err := sub.Next(ctx)
		if err != nil {
			return eventstore.Recorded{}, err
		}
		if r := item.Event; item.Kind == eventstore.Event && r.Stream == id && r.Revision == rev {
			return r, nil
		}
	}
}

// ReadStream implements eventstore.Store: the embedded log's.
func (s *Store) ReadStream(
	ctx context.Context, id domain.StreamID, from domain.Revision, d eventstore.Direction, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return s.cfg.Embedded.ReadStream(ctx, id, from, d, limit)
}

// ReadAll implements eventstore.Store: the embedded log's.
func (s *Store) ReadAll(
	ctx context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return s.cfg.Embedded.ReadAll(ctx, from, d, f, limit)
}

// Subscribe implements eventstore.Store: the embedded log's.
func (s *Store) Subscribe(
	ctx context.Context, after domain.Position, f domain.Filter,
) (eventstore.Subscription, error) {
	return s.cfg.Embedded.Subscribe(ctx, after, f)
}

// Head implements eventstore.Store: the embedded log's.
func (s *Store) Head(ctx context.Context) (eventstore.Head, error) {
	return s.cfg.Embedded.Head(ctx)
}

// Close closes the other log, not the embedded one.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	if s.mu.other == nil {
		return nil
	}
	other := s.mu.other
	s.mu.other = nil
	return other.Close()
}
