package kurrent

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/domain"
	"weft/eventstore"
)

// The defaults and limits of a store.
const (
	prefixDefault   = "weft."
	clientsDefault  = 8
	attemptsDefault = 5
	deadlineDefault = 10 * time.Second
	idsMax          = 256     // ids of a stream's last events that are known at any place
	headsMax        = 4096    // streams whose end is remembered
	linksMax        = 65_536  // streams whose last event one reader remembers
	pageMax         = 256     // events fetched in one call
	pageBytesMax    = 4 << 20 // a page ends behind the event that reaches this
	bufferMax       = 64      // verified items a subscription holds ahead of its reader
)

// Config says which cluster to use and how.
type Config struct {
	// Connection is the cluster's connection string, esdb://... or esdb+discover://..., or the same
	// with kurrentdb or kurrent.
	Connection string
	// Prefix stands before the name of each of our streams, and tells them from those of others.
	// Empty is "weft.".
	Prefix string
	// Unfenced leaves fencing tokens unjudged: for a copy of events that another log has judged.
	Unfenced bool
	// Clients is how many calls run at once, each on a connection of its own; 0 is 8.
	Clients int
	// Attempts is how often a call is tried while no node answers; 0 is 5.
	Attempts int
	// Deadline bounds one call to the cluster; 0 is 10 s.
	Deadline time.Duration
	// Pause waits before the attempt that comes after that many failed ones in a row. An error ends
	// the attempts. It is needed.
	Pause func(ctx context.Context, failed int) error
	// Mark fills a buffer with bytes that no other call ever drew; nil is crypto/rand.
	Mark func(p []byte)
	// Log takes what an operator may act on, and what the client says. Nil discards.
	Log *slog.Logger
}

// Store is an event log in a cluster. Any number of goroutines may use it.
type Store struct {
	config  Config
	client  *esdb.Configuration
	clients *clients
	ended   context.Context //nolint:containedctx // it ends with the store, not with a call
	end     context.CancelFunc
	follows sync.WaitGroup // followers

	mu struct {
		sync.Mutex
		heads  map[domain.StreamID]*head
		closed bool
	}
}

var _ eventstore.Store = (*Store)(nil)

// New makes a store. It does not connect yet. The error is of kind Invalid.
func New(c Config) (*Store, error) {
	if c.Pause == nil || c.Clients < 0 || c.Attempts < 0 || c.Deadline < 0 {
		return nil, domain.Errorf(domain.Invalid, "kurrent: Pause is needed, and nothing below 0")
	}
	c.Prefix = cmp.Or(c.Prefix, prefixDefault)
	c.Clients = cmp.Or(c.Clients, clientsDefault)
	c.Attempts = cmp.Or(c.Attempts, attemptsDefault)
	c.Deadline = cmp.Or(c.Deadline, deadlineDefault)
	if c.Mark == nil {
		c.Mark = func(p []byte) { _, _ = rand.Read(p) } // it never fails
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	config, err := esdb.ParseConnectionString(ofClient(c.Connection))
	if err != nil {
		return nil, &domain.Error{Op: "kurrent.New", Kind: domain.Invalid, Err: err}
	}
	log := c.Log
	config.Logger = func(level esdb.LogLevel, format string, args ...any) {
		log.Debug("client", "level", level, "text", fmt.Sprintf(format, args...))
	}
	// A search that failed once ends the client; the attempts are counted here, with our pauses.
	config.MaxDiscoverAttempts, config.DiscoveryInterval = 1, 0
	s := &Store{config: c, client: config, clients: newClients(config, c.Clients)}
	s.ended, s.end = context.WithCancel(context.Background())
	s.mu.heads = map[domain.StreamID]*head{}
	return s, nil
}

// ofClient gives a connection string as this client knows it: newer ones call the scheme kurrentdb,
// or kurrent for short, and mean the same.
func ofClient(connection string) string {
	for _, name := range []string{"kurrentdb", "kurrent"} {
		rest, ok := strings.CutPrefix(connection, name)
		if ok && (strings.HasPrefix(rest, "://") || strings.HasPrefix(rest, "+discover://")) {
			return "esdb" + rest
		}
	}
	return connection
}

// ReadsBack implements duplicate.Prover: Append compares what it acknowledges, by the hash of each
// event, with what stands in the cluster.
func (*Store) ReadsBack() bool { return true }

// Close implements eventstore.Store. It waits for every call to the cluster and every subscription,
// not for a reader between two events.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.mu.closed
	s.mu.closed = true
	s.mu.Unlock()
	s.end()
	s.follows.Wait()
	if first {
		s.clients.close()
	}
	return nil
}

// enter begins a call: its context ends with the caller's and with the store. The error is
// ErrClosed or of kind Aborted.
func (s *Store) enter(ctx context.Context, op string) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, nil, eventstore.ErrClosed
	}
	if ctx.Err() != nil {
		return nil, nil, &domain.Error{Op: op, Kind: domain.Aborted, Err: ctx.Err()}
	}
	inner, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ended, cancel)
	return inner, func() {
		stop()
		cancel()
	}, nil
}

// failed turns the failure of a read into the error of the contract.
func (s *Store) failed(ctx context.Context, err error, op string, id domain.StreamID) error {
	switch {
	case s.ended.Err() != nil:
		return eventstore.ErrClosed
	case ctx.Err() != nil:
		return &domain.Error{Op: op, Kind: domain.Aborted, Ref: string(id), Err: ctx.Err()}
	case err == nil:
		return nil
	}
	if answer := refused(err, op, id); answer != nil {
		return answer
	}
	if k := domain.KindOf(err); k != domain.Internal {
		return err
	}
	return &domain.Error{Op: op, Kind: domain.Unavailable, Ref: string(id), Err: err}
}

// retry runs a read until a node answers.
func (s *Store) retry(
	ctx context.Context, f func(ctx context.Context, c *esdb.Client) error,
) error {
	for failed := 1; ; failed++ {
		err := s.clients.call(ctx, f)
		if !broken(err) || failed == s.config.Attempts || ctx.Err() != nil {
			return err
		}
		s.config.Log.Warn("kurrent read failed", "attempt", failed, "err", err)
		if pause := s.config.Pause(ctx, failed); pause != nil {
			return err
		}
	}
}
