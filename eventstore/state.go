package eventstore

import (
	"container/list"
	"context"
	"sync"
	"time"

	"weft/domain"
)

// state is one stream folded up to a revision. Whoever holds the stream's lane owns it.
type state struct {
	fold  any
	head  domain.Revision
	byID  map[domain.CommandID]done
	order []done // the same in order of the log; the oldest leave first
}

// done is a command found in a stream, with the place of its events.
type done struct {
	id          domain.CommandID
	hash        [16]byte
	first, last domain.Revision
	position    domain.Position // of the last event
	created     time.Time
}

func (s *state) find(id domain.CommandID) (done, bool) {
	d, ok := s.byID[id]
	return d, ok
}

// note enters an event under its command. The events of one command stand side by side, because a
// command is one append.
func (s *state) note(r *Recorded, now time.Time) {
	if k := len(s.order); k > 0 && s.order[k-1].id == r.Command {
		s.order[k-1].last, s.order[k-1].position = r.Revision, r.Position
		s.byID[r.Command] = s.order[k-1]
		return
	}
	d := done{r.Command, r.RequestHash, r.Revision, r.Revision, r.Position, r.Created}
	s.order = append(s.order, d)
	s.byID[r.Command] = d
	for len(s.order) > CommandsMin && now.Sub(s.order[0].created) > CommandAge {
		delete(s.byID, s.order[0].id)
		s.order = s.order[1:]
	}
}

// load folds what the store has beyond the kept state. A failure drops the kept state, but for a
// caller that left: what was folded for it is whole, and a long stream would otherwise never be
// folded to its end by callers who wait less than that takes.
func (j *job) load(ctx context.Context) (*state, error) {
	st := j.x.cache.take(j.stream)
	if st == nil {
		st = &state{
			fold: j.kind.zero(), head: domain.NoRevision, byID: map[domain.CommandID]done{},
		}
	}
	for r, err := range j.x.cfg.Store.ReadStream(ctx, j.stream, st.head+1, Forward, NoLimit) {
		if domain.IsKind(err, domain.Aborted) {
			j.x.cache.put(j.stream, st)
		}
		if err != nil {
			return nil, err
		}
		records, err := j.x.cfg.Codec.Decode(r.Header, r.Data)
		if err != nil {
			return nil, err
		}
		for i := range records {
			if records[i].Event != nil {
				st.fold = j.kind.evolve(st.fold, records[i].Event)
			}
		}
		st.head = r.Revision
		st.note(&r, j.now)
	}
	j.x.cache.put(j.stream, st)
	return st, nil
}

// stateCache keeps the StatesMax states used last.
type stateCache struct {
	mu struct {
		sync.Mutex
		byID  map[domain.StreamID]*list.Element
		order list.List // of *cached, the one used last in front
	}
}

type cached struct {
	stream domain.StreamID
	state  *state
}

// take removes a state, so that one which fails half-way is not met again.
func (c *stateCache) take(s domain.StreamID) *state {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.mu.byID[s]
	if !ok {
		return nil
	}
	delete(c.mu.byID, s)
	kept, _ := c.mu.order.Remove(el).(*cached)
	return kept.state
}

func (c *stateCache) put(s domain.StreamID, st *state) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.byID == nil {
		c.mu.byID = map[domain.StreamID]*list.Element{}
	}
	c.mu.byID[s] = c.mu.order.PushFront(&cached{s, st})
	if len(c.mu.byID) <= StatesMax {
		return
	}
	old, _ := c.mu.order.Remove(c.mu.order.Back()).(*cached)
	delete(c.mu.byID, old.stream)
}

// lanes let one command at a time work under one name, a stream's as a rule, and bound those that
// wait.
type lanes struct {
	mu struct {
		sync.Mutex
		byID map[domain.StreamID]*lane
	}
}

type lane struct {
	turn  chan struct{} // holds one token while the lane is taken; senders queue in order
	users int           // the one inside and those that wait
}

// enter waits for the stream's turn. More than WaitersMax waiting is Busy; a context that ends is
// Aborted.
func (l *lanes) enter(ctx context.Context, s domain.StreamID) error {
	l.mu.Lock()
	if l.mu.byID == nil {
		l.mu.byID = map[domain.StreamID]*lane{}
	}
	ln := l.mu.byID[s]
	if ln == nil {
		ln = &lane{turn: make(chan struct{}, 1)}
		l.mu.byID[s] = ln
	}
	if ln.users > WaitersMax {
		l.mu.Unlock()
		return &domain.Error{
			Op: "eventstore.Do", Kind: domain.Busy, Ref: string(s),
			Msg: "too many commands wait for this stream", Remedy: "try again shortly",
		}
	}
	ln.users++
	l.mu.Unlock()
	select {
	case ln.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		l.drop(s, ln)
		return aborted(ctx, "eventstore.Do")
	}
}

func (l *lanes) leave(s domain.StreamID) {
	l.mu.Lock()
	ln := l.mu.byID[s]
	l.mu.Unlock()
	<-ln.turn
	l.drop(s, ln)
}

func (l *lanes) drop(s domain.StreamID, ln *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ln.users--; ln.users == 0 {
		delete(l.mu.byID, s)
	}
}
