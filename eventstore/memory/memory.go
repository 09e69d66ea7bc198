// Package memory is the reference engine of the event log: a mirror under one mutex. It forgets at
// the end of the process and keeps the same records, chain and judgement as every other engine.
// Simulations and unit tests run on it, so it can be told to fail in each way a real engine does.
//
// What it never does: it writes nothing to any device, and it starts no goroutine. It is safe for
// many goroutines.
package memory

import (
	"context"
	"iter"
	"sync"

	"weft/domain"
	"weft/eventstore"
)

// Fault is what an injected failure does to one append.
type Fault uint8

// The faults of an append.
const (
	// None lets it be.
	None Fault = iota
	// Conflict answers a ConflictError with the stream's true revision; nothing is written.
	Conflict
	// UnknownApplied writes it and answers ErrUnknownOutcome.
	UnknownApplied
	// UnknownLost writes nothing and answers ErrUnknownOutcome.
	UnknownLost
	// NoSpace answers ErrNoSpace; nothing is written.
	NoSpace
)

// Option changes a new store.
type Option func(*Store)

// WithFaults asks a function about every append that passed the limits. It runs under the store's
// mutex and must not call the store.
func WithFaults(f func(s domain.StreamID, events []eventstore.Proposed) Fault) Option {
	return func(m *Store) { m.fault = f }
}

// WithGate makes the store slow: every append waits for the function before it takes the mutex. An
// error of the function is the answer, and nothing is written.
func WithGate(f func(context.Context) error) Option {
	return func(m *Store) { m.gate = f }
}

// Store is an event log in memory.
type Store struct {
	mirror eventstore.Mirror
	fault  func(domain.StreamID, []eventstore.Proposed) Fault
	gate   func(context.Context) error
	mu     sync.Mutex // one append at a time
}

var _ eventstore.Store = (*Store)(nil)

// New makes an empty log.
func New(options ...Option) *Store {
	m := &Store{
		fault: func(domain.StreamID, []eventstore.Proposed) Fault { return None },
		gate:  func(context.Context) error { return nil },
	}
	for _, o := range options {
		o(m)
	}
	return m
}

// Append implements eventstore.Store. It is durable until Close.
func (m *Store) Append(
	ctx context.Context, s domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	if err := eventstore.Check(s, e, ev); err != nil {
		return eventstore.Appended{}, err
	}
	if err := m.gate(ctx); err != nil {
		return eventstore.Appended{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return eventstore.Appended{}, &domain.Error{
			Op: "memory.Append", Kind: domain.Aborted, Ref: string(s), Err: ctx.Err(),
		}
	}
	if err := m.mirror.Ended(); err != nil {
		return eventstore.Appended{}, err
	}
	fault := m.fault(s, ev)
	switch fault {
	case Conflict:
		return eventstore.Appended{}, &eventstore.ConflictError{
			Stream: s, Want: e, Current: m.mirror.StreamHead(s).Revision,
		}
	case UnknownLost:
		return eventstore.Appended{}, eventstore.ErrUnknownOutcome
	case NoSpace:
		return eventstore.Appended{}, eventstore.ErrNoSpace
	case None, UnknownApplied:
	}
	d := eventstore.NewDraft(&m.mirror)
	a, err := d.Add(s, e, ev)
	if err == nil {
		err = m.mirror.Extend(d.Entries()...)
	}
	if err == nil && fault == UnknownApplied {
		err = eventstore.ErrUnknownOutcome
	}
	if err != nil {
		return eventstore.Appended{}, err
	}
	return a, nil
}

// ReadStream implements eventstore.Store.
func (m *Store) ReadStream(
	ctx context.Context, s domain.StreamID, from domain.Revision, d eventstore.Direction, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return m.mirror.ReadStream(ctx, s, from, d, limit)
}

// ReadAll implements eventstore.Store.
func (m *Store) ReadAll(
	ctx context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return m.mirror.ReadAll(ctx, from, d, f, limit)
}

// Subscribe implements eventstore.Store.
func (m *Store) Subscribe(
	ctx context.Context, after domain.Position, f domain.Filter,
) (eventstore.Subscription, error) {
	return m.mirror.Subscribe(ctx, after, f)
}

// Head implements eventstore.Store.
func (m *Store) Head(ctx context.Context) (eventstore.Head, error) {
	if err := m.mirror.Ended(); err != nil {
		return eventstore.Head{}, err
	}
	if ctx.Err() != nil {
		return eventstore.Head{}, &domain.Error{Op: "memory.Head", Kind: domain.Aborted, Err: ctx.Err()}
	}
	return m.mirror.Head(), nil
}

// Close implements eventstore.Store.
func (m *Store) Close() error {
	m.mirror.End(eventstore.ErrClosed)
	return nil
}

// Flip turns one bit of a stored record, counted from its first byte on, so that a test can see the
// damage found. It tells whether there is such a bit.
func (m *Store) Flip(p domain.Position, bit int) bool {
	b := m.mirror.Raw(p)
	if bit < 0 || bit >= 8*len(b) {
		return false
	}
	b[bit/8] ^= 1 << (bit % 8)
	return m.mirror.Replace(p, b)
}

// RecordSize gives the stored bytes of a record, 0 when there is none.
func (m *Store) RecordSize(p domain.Position) int { return len(m.mirror.Raw(p)) }

// Restore drops every event after n = keep and goes on in a higher timeline, as restoring a backup
// does. The error is of kind Invalid.
func (m *Store) Restore(keep uint64, t domain.Timeline) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mirror.Restore(keep, t)
}
