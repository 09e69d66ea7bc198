package quorum

import (
	"context"
	"errors"
	"iter"
	"os"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"weft/domain"
	"weft/eventstore"
)

// Store is the event log of one member. It is safe for many goroutines.
type Store struct {
	keys   keys
	etcd   *embed.Etcd
	client *clientv3.Client
	mirror *eventstore.Mirror
	seq    *sequencer
	closed sync.Once
}

var _ eventstore.Store = (*Store)(nil)

// Open starts the engine, loads the log and verifies every record of it. The context bounds the
// start alone.
//
// Errors: Locked when another process holds the folder, Corrupt when etcd's files are broken,
// Invalid for a bad configuration or the folder of another cluster, Unsupported for a log of a
// newer format, Denied and Unavailable. A log whose records are damaged opens degraded, see the
// package comment.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, &domain.Error{Op: "quorum.Open", Kind: domain.Denied, Ref: cfg.Dir, Err: err}
	}
	if err := probe(cfg.Dir); err != nil {
		return nil, err
	}
	e, err := start(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	s := &Store{
		keys: keysOf(cfg.ClusterID), etcd: e, client: v3client.New(e.Server),
		mirror: &eventstore.Mirror{},
	}
	s.seq = newSequencer(s.keys, s.client, s.mirror)
	if err := s.load(ctx); err != nil {
		s.stop()
		return nil, domain.Wrap(err, "quorum.Open", cfg.Dir)
	}
	go s.seq.run()
	return s, nil
}

func (s *Store) load(ctx context.Context) error {
	l := loader{keys: s.keys, kv: s.client}
	if err := l.admit(ctx); err != nil {
		return err
	}
	err := l.fill(ctx, s.mirror)
	if errors.Is(err, eventstore.ErrCorrupt) {
		s.mirror.End(err) // degraded: what lies before stays readable
		return nil
	}
	return err
}

// Health gives nil, or why the log is degraded: a CorruptError that names the first damage met.
func (s *Store) Health() error { return s.mirror.Ended() }

// Append implements eventstore.Store. A nil error means that etcd has synced it. It waits while the
// sequencer's queue of queueMax appends is full.
func (s *Store) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	if err := eventstore.Check(id, e, ev); err != nil {
		return eventstore.Appended{}, err
	}
	return s.seq.append(ctx, id, e, ev)
}

// ReadStream implements eventstore.Store.
func (s *Store) ReadStream(
	ctx context.Context, id domain.StreamID, from domain.Revision, d eventstore.Direction, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return s.mirror.ReadStream(ctx, id, from, d, limit)
}

// ReadAll implements eventstore.Store.
func (s *Store) ReadAll(
	ctx context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return s.mirror.ReadAll(ctx, from, d, f, limit)
}

// Subscribe implements eventstore.Store.
func (s *Store) Subscribe(
	ctx context.Context, after domain.Position, f domain.Filter,
) (eventstore.Subscription, error) {
	return s.mirror.Subscribe(ctx, after, f)
}

// Head implements eventstore.Store: a linearizable read of the tail, then a wait until the mirror
// holds it. A tail that cannot be read is Unavailable after eventstore.LinearizableWait.
func (s *Store) Head(ctx context.Context) (eventstore.Head, error) {
	if err := s.mirror.Ended(); err != nil {
		return eventstore.Head{}, err
	}
	if ctx.Err() != nil {
		return eventstore.Head{}, aborted(ctx, "quorum.Head")
	}
	within, cancel := context.WithTimeout(ctx, eventstore.LinearizableWait)
	defer cancel()
	l := loader{keys: s.keys, kv: s.client}
	head, err := l.tail(within)
	if err != nil {
		return eventstore.Head{}, unavailable(ctx, "quorum.Head", err)
	}
	if head.Position.N() > s.mirror.Head().Position.N() {
		s.seq.nudge() // another writer moved it, or this one is about to learn what it wrote
		if err := s.mirror.Wait(within, head.Position); err != nil {
			return eventstore.Head{}, unavailable(ctx, "quorum.Head", err)
		}
	}
	return head, nil
}

// Verify reads the whole log from the database again, not from the mirror, and checks every record,
// the chain, the tail, and the head of every stream. It gives the first damage as a CorruptError
// that names its position. Progress, which may be nil, hears every position that is sound, in
// order. Appends go on meanwhile; what they add is not looked at.
func (s *Store) Verify(ctx context.Context, progress func(domain.Position)) error {
	l := loader{keys: s.keys, kv: s.client}
	return l.verify(ctx, progress)
}

// Close ends the subscriptions, lets the batch in flight end, and stops etcd. What was acknowledged
// is durable with or without it.
func (s *Store) Close() error {
	s.closed.Do(func() {
		s.seq.close()
		s.stop()
	})
	return nil
}

func (s *Store) stop() {
	s.mirror.End(eventstore.ErrClosed)
	_ = s.client.Close() // gives the end of its own context, which is no news
	s.etcd.Close()
}

func aborted(ctx context.Context, op string) error {
	return &domain.Error{Op: op, Kind: domain.Aborted, Err: ctx.Err()}
}

// unavailable gives an engine's failure a kind, and leaves those that have one.
func unavailable(ctx context.Context, op string, err error) error {
	var typed *domain.Error
	switch {
	case ctx.Err() != nil:
		return aborted(ctx, op)
	case errors.As(err, &typed) && typed.Kind != domain.Aborted:
		return err
	}
	return &domain.Error{Op: op, Kind: domain.Unavailable, Err: err}
}
