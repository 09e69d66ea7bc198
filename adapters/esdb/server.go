package esdb

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/gossip"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/persistent"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/serverfeatures"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"weft/domain"
	"weft/eventstore"
)

// Limits of a server.
const (
	streamsMax  = 256              // calls of one connection at once
	messageMax  = 1 << 20          // bytes of a request; none of those served needs more
	pingLeast   = 5 * time.Second  // how often a client may ping
	shutdownMax = 5 * time.Second  // what calls under way get before they are cut
	aliveTime   = 30 * time.Second // silence after which a client is pinged
)

// Principal is who a call comes from.
type Principal struct {
	// Actor names it in the log.
	Actor string
	// Tenant, when not empty, hides every event that belongs to another tenant.
	Tenant string
	// Sees, when not nil, hides the events of every stream that it does not tell true for. It is
	// asked anew for each event, so that what is taken away is gone at once. One who sees a part in
	// this way has no persistent subscriptions, which outlive the call.
	Sees func(domain.StreamID) bool
	// Whole says that Sees takes nothing away at the moment.
	Whole bool
}

// Refusal is a call that was refused.
type Refusal struct {
	Call   string // the method, as the protocol names it, such as Append
	Actor  string // as far as it was proved
	Source string // address
	Reason string
}

// Member is one node of the cluster as gossip tells it.
type Member struct {
	ID      domain.UUID
	Address string // host name or address that clients reach this protocol at
	Port    uint16
	Leader  bool // serves persistent subscriptions
	Alive   bool
}

// Cursors keeps what must outlive a persistent subscription's node: one small value per name. The
// cluster's own are durable on a quorum.
type Cursors interface {
	// Load gives a value, nil when there is none.
	Load(ctx context.Context, name string) ([]byte, error)
	// Store replaces it; a nil error means that it is durable. It keeps no reference to value.
	Store(ctx context.Context, name string, value []byte) error
	// Delete removes it. One that is not there is no error.
	Delete(ctx context.Context, name string) error
	// Names lists all of them.
	Names(ctx context.Context) ([]string, error)
}

// Config says what a server serves. Store, Authenticate and Cursors are needed.
type Config struct {
	Store eventstore.Store
	// Authenticate judges the credentials of a call: the token of "authorization: Bearer", or the
	// password of "Basic". Both are empty when a call brings none. An error refuses the call.
	Authenticate func(ctx context.Context, user, secret string) (Principal, error)
	Cursors      Cursors
	// Self is this node's ID among the Members. Members lists the cluster for gossip; nil tells of
	// this node alone, by the listener's address.
	Self    domain.UUID
	Members func() []Member
	// TLS secures the listener. Nil serves in the clear, which only a loopback address is fit for.
	TLS *tls.Config
	// Render, when not nil, gives an event's payload as JSON; the recorded bytes are then in no
	// answer, and their SHA-256 is in the metadata. Nil serves the bytes.
	Render func(*eventstore.Recorded) ([]byte, error)
	// Refused, when not nil, hears of every call that was refused: for credentials that open nothing,
	// and for a change of the log. It must not wait.
	Refused func(Refusal)
	// Appender, when not nil, takes the appends of clients. Nil, as in the product, refuses them.
	Appender Appender
	// Now is the clock of retries; nil is time.Now.
	Now func() time.Time
	// Log takes one record per event that an operator may act on. Nil discards.
	Log *slog.Logger
}

// Server serves one log. Any number of goroutines may use it.
type Server struct {
	config Config
	log    *slog.Logger
	grpc   *grpc.Server
	groups *groups
	ended  context.Context
	end    context.CancelFunc

	mu struct {
		sync.Mutex
		portal net.Addr
	}
}

// New makes a server. It returns an error of kind Invalid for a Config without its needed fields.
func New(c Config) (*Server, error) {
	if c.Store == nil || c.Authenticate == nil || c.Cursors == nil {
		return nil, domain.Errorf(domain.Invalid, "esdb: Store, Authenticate and Cursors are needed")
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{config: c, log: c.Log}
	s.ended, s.end = context.WithCancel(context.Background())
	s.groups = newGroups(s)
	options := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(streamsMax), grpc.MaxRecvMsgSize(messageMax),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: pingLeast, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: aliveTime}),
		grpc.UnaryInterceptor(s.guardCall), grpc.StreamInterceptor(s.guardStream),
	}
	if c.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(c.TLS)))
	}
	s.grpc = grpc.NewServer(options...)
	serverfeatures.RegisterServerFeaturesServer(s.grpc, features{})
	gossip.RegisterGossipServer(s.grpc, rumours{s: s})
	streams.RegisterStreamsServer(s.grpc, reader{s: s})
	persistent.RegisterPersistentSubscriptionsServer(s.grpc, consumers{s: s})
	return s, nil
}

// Serve accepts connections until the listener fails or the server closes, and closes the listener.
// It returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.mu.portal = l.Addr()
	s.mu.Unlock()
	err := s.grpc.Serve(l)
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return &domain.Error{
		Op: "esdb.Serve", Kind: domain.Unavailable, Ref: l.Addr().String(), Err: err,
	}
}

// Close ends every call, saves the cursors of all persistent subscriptions, and joins every
// goroutine of the server. The store stays open.
func (s *Server) Close() {
	s.end()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	late := time.NewTimer(shutdownMax)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		s.grpc.Stop()
		<-done
	}
	s.groups.close()
}

// scope bounds a call's work by the call and by the server.
func (s *Server) scope(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ended, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}
