package quorum

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
)

// Store is the event log of one node. It is safe for many goroutines.
type Store struct {
	cfg    Config
	keys   keys
	client *conn
	mirror *eventstore.Mirror
	past   *archive.History // what the mirror does not hold in memory
	seq    *sequencer
	life   context.Context // ends when Close is called
	end    context.CancelFunc
	work   sync.WaitGroup // the watch, and what grows the archive
	http   *http.Client   // forwards appends
	closed sync.Once
	// growing is held while the archive grows; never inside mu.
	growing sync.Mutex
	ills    ills
	// heals is held while a segment of the archive is repaired; never inside mu or ills. It guards
	// failed, when that last did not succeed.
	heals  sync.Mutex
	failed time.Duration // by bootTime
	loads  int           // how often damage was met while the log was loaded
	turn   sync.Mutex    // held while Follow changes what this node is; never inside mu
	// salvaged is how many records a recovery took from the archive.
	salvaged uint64
	// gone is closed once, by over, when part of what this node knows is no history any more.
	gone chan struct{}
	over sync.Once
	// promoted hears of every promotion; tests measure with it.
	promoted func()
	mu       struct {
		sync.Mutex
		local  *local           // nil while the node is a client
		remote *clientv3.Client // nil while the node is alone
		// single asks one member at a time, by address. It is another client because one whose
		// endpoints change must not dial meanwhile.
		single *clientv3.Client
		leader string   // URL of the leading member as a client last heard
		term   uint64   // the highest term of a leader that a client heard of
		known  []string // URLs of all other members as last heard
		nodes  []string // URLs of nodes, as the owner last told
		stuck  error    // why the archive does not grow, nil while it does
	}
}

var _ eventstore.Store = (*Store)(nil)

// Open starts the engine, loads the log and verifies every record of it. The context bounds the
// start alone. A member of several waits for a quorum; a node with seeds and an empty folder is a
// client of the log.
//
// Errors: Locked when another process holds the folder, Corrupt when etcd's files are broken,
// Invalid for a bad configuration or the folder of another cluster, Unsupported for a log of a
// newer format, Denied and Unavailable, Stale for a voter that a recovery of the log left behind. A
// log whose records are damaged opens degraded, see the package comment.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, &domain.Error{Op: "quorum.Open", Kind: domain.Denied, Ref: cfg.Dir, Err: err}
	}
	s := &Store{cfg: cfg, keys: keysOf(cfg.ClusterID), client: newConn(nil), gone: make(chan struct{})}
	s.mirror = &eventstore.Mirror{}
	s.life, s.end = context.WithCancel(context.Background())
	err := s.openPast()
	if err == nil {
		err = s.begin(ctx)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	s.seq = newSequencer(s.keys, s.client, s.mirror, s.past.Per())
	s.seq.admit = s.admit
	s.seq.distrust, s.seq.behind = s.distrust, s.supersede
	err = nil
	if cfg.forced {
		err = patiently(ctx, s.salvage)
	}
	if err == nil {
		err = patiently(ctx, s.load)
	}
	if err != nil {
		s.stop()
		if errors.Is(err, eventstore.ErrTimelineChanged) && !cfg.forced {
			return s.anew(ctx, err)
		}
		return nil, domain.Wrap(err, "quorum.Open", cfg.Dir)
	}
	go s.seq.run()
	if !cfg.forced {
		s.work.Go(func() { s.keepPast(s.life) })
	}
	if cfg.Net != nil {
		s.seq.stirred = s.stirs
		s.work.Go(func() { s.watch(s.life) })
		cfg.Net.Port.append.Store(s)
	}
	return s, nil
}

// begin makes the way to the database: a member that is there, a client of the seeds, or a new
// cluster of one.
func (s *Store) begin(ctx context.Context) error {
	if s.cfg.Net != nil {
		if err := s.dial(s.cfg.Net.Seeds); err != nil {
			return err
		}
	}
	if err := probe(s.cfg.Dir); err != nil {
		if domain.IsKind(err, domain.Corrupt) && s.cfg.Net != nil && len(s.cfg.Net.Seeds) > 0 {
			return s.forsake(ctx, err)
		}
		return err
	}
	if !s.hasMember() && s.cfg.Net != nil && len(s.cfg.Net.Seeds) > 0 {
		return s.discover(ctx)
	}
	m, err := s.run(ctx, s.cfg.alone(), false)
	if domain.IsKind(err, domain.Corrupt) && s.cfg.Net != nil && len(s.cfg.Net.Seeds) > 0 {
		return s.forsake(ctx, err)
	}
	var gone *removedError
	if errors.As(err, &gone) && s.cfg.Net != nil && len(s.cfg.Net.Seeds) > 0 {
		err := patiently(ctx, func(ctx context.Context) error { return s.leftBehind(ctx, gone.member) })
		if err != nil {
			return err
		}
		s.cfg.Logger.Warn("this node lost its vote while it was away; it goes on as a client")
		if err := s.wipe(); err != nil {
			return err
		}
		return s.discover(ctx)
	}
	if err != nil {
		return err
	}
	s.mu.local = m
	s.client.set(m.client)
	return patiently(ctx, s.announce)
}

// patiently repeats what fails because the members are between two leaders, until the context ends.
func patiently(ctx context.Context, f func(context.Context) error) error {
	for {
		err := f(ctx)
		if !domain.IsKind(err, domain.Unavailable) {
			return err
		}
		rest, cancel := context.WithTimeout(ctx, memberRest)
		<-rest.Done()
		cancel()
		if ctx.Err() != nil {
			return err
		}
	}
}

func (s *Store) load(ctx context.Context) error {
	l := loader{keys: s.keys, kv: s.client}
	if err := l.admit(ctx); err != nil {
		return err
	}
	err := l.fill(ctx, s.mirror)
	if far := (*archivedError)(nil); errors.As(err, &far) {
		if err = s.fetch(ctx, far.to); err == nil {
			err = l.fill(ctx, s.mirror)
		}
	}
	if errors.Is(err, eventstore.ErrCorrupt) {
		if s.readsOwn() && s.distrust(err) {
			return s.load(ctx) // from the others
		}
		if s.loads++; s.loads < damageMax*s.sources() {
			return &domain.Error{Kind: domain.Unavailable, Err: err} // to be read from another member
		}
		s.mirror.End(err) // degraded: what lies before stays readable
		return nil
	}
	return err
}

// Health gives nil, or why the log is degraded: a CorruptError that names the first damage met.
func (s *Store) Health() error { return s.mirror.Ended() }

// Append implements eventstore.Store. A nil error means that etcd has synced it, on a majority of
// the voters. It waits while the sequencer's queue of queueMax appends is full. A node that does
// not lead forwards, because several writers of one tail starve each other; where that fails it
// writes itself, and the same event ids see to it that both together write once.
func (s *Store) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	if err := eventstore.Check(id, e, ev); err != nil {
		return eventstore.Appended{}, err
	}
	if to := s.writer(); to != "" {
		if a, err, final := s.forward(ctx, to, id, e, ev); final {
			return a, err
		}
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

// Verify reads the whole log from the archive and the database again, not from the mirror, and
// checks every record, the chain over both, and the tail. It gives the first damage as a FoundError
// that names part and position, and takes note of it: what follows is as if a reader had met it.
// The database is that of this node's member where it votes, and otherwise of a voter. Progress,
// which may be nil, hears every position that is sound, in order. Appends go on meanwhile; what
// they add is not looked at.
func (s *Store) Verify(ctx context.Context, progress func(domain.Position)) error {
	w := s.own()
	l := loader{keys: s.keys, kv: w}
	err := l.verify(ctx, s.past, progress)
	if err == nil {
		s.sound(w)
	}
	return s.found(err, w)
}

// Close ends the subscriptions, lets the batch in flight end, and stops etcd. What was acknowledged
// is durable with or without it.
func (s *Store) Close() error {
	s.closed.Do(func() {
		if s.cfg.Net != nil {
			s.cfg.Net.Port.append.Store(nil)
		}
		s.seq.close()
		s.stop()
	})
	return nil
}

func (s *Store) stop() {
	s.mirror.End(eventstore.ErrClosed)
	s.end()
	s.work.Wait()
	s.turn.Lock()
	defer s.turn.Unlock()
	if l := s.keep(nil); l != nil {
		l.stop()
	}
	if r := s.remote(); r != nil {
		_ = r.Close() // gives the end of its own context, which is no news
		_ = s.single().Close()
		s.http.CloseIdleConnections()
	}
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
	if status.Code(err) == codes.PermissionDenied {
		return &domain.Error{
			Op: op, Kind: domain.Denied, Err: err,
			Msg:    "the cluster refuses this node: it was removed, or is another's",
			Remedy: "join anew with an empty data folder and a token from weft node token",
		}
	}
	return &domain.Error{Op: op, Kind: domain.Unavailable, Err: err}
}
