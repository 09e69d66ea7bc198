package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
	"weft/domain/command"
)

// Paths of the calls. Everything else belongs to the log.
const (
	joinPath = "/weft/v1/join"
	obeyPath = "/weft/v1/obey"
	askPath  = "/weft/v1/ask"
)

const (
	bodyMax       = 1 << 20          // bytes of a call or an answer
	headerTimeout = 10 * time.Second // for the first bytes of a call
	closeWait     = 2 * time.Second  // for calls under way at the end
)

// Agent obeys orders that another node's reconciler gives, and answers other nodes' questions.
type Agent interface {
	Obey(ctx context.Context, o command.Order) command.Outcome
	Ask(ctx context.Context, q command.Question) (command.Answer, error)
}

// Gate decides who belongs to the cluster.
type Gate interface {
	// Admitted tells whether a node with a good certificate may still speak (T2).
	Admitted(node domain.NodeID) bool
	// Join admits a machine and gives what it starts with.
	Join(ctx context.Context, r JoinRequest) (Welcome, error)
	// Refused hears of every caller that was not let in. It must not wait.
	Refused(r Refusal)
}

// Refusal is a caller that was not let in.
type Refusal struct {
	Call   string        // join, obey, ask, log, or handshake where it came no further
	Node   domain.NodeID // as its good certificate says; zero without one
	Source string        // address
	Reason string
}

// JoinRequest is what a machine says that wants to join.
type JoinRequest struct {
	Token  domain.UUID   `json:"token"`
	Secret []byte        `json:"secret"`
	Node   domain.NodeID `json:"node"`
	Name   string        `json:"name"`
}

// Welcome is what it gets.
type Welcome struct {
	Number  domain.NodeNumber `json:"number"`
	Name    string            `json:"name"` // of the cluster
	CA      []byte            `json:"ca"`
	CAKey   []byte            `json:"ca_key"`
	Members []string          `json:"members"` // URLs of nodes
}

// Config is what Listen needs.
type Config struct {
	Addr     string
	Identity *Identity
	Log      http.Handler // the log's port
	Logger   *slog.Logger
	// Kept, when not nil, hears of every look at the node's certificate, and of its failure.
	Kept func(error)
}

// Server is the node's door for other nodes. It serves the log at once, orders and joins from Open.
type Server struct {
	cfg   Config
	l     net.Listener
	http  *http.Server
	open  atomic.Pointer[doors]
	keep  context.CancelFunc
	works sync.WaitGroup
	mu    struct {
		sync.Mutex
		guests map[*guest]struct{}
	}
}

// guest is a call of another node for the log. Some never end by themselves.
type guest struct {
	node domain.NodeID
	end  context.CancelFunc
}

type doors struct {
	agent Agent
	gate  Gate
}

// Listen opens the door and keeps its certificate fresh. The caller closes it.
func Listen(cfg Config) (*Server, error) {
	l, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, l: l}
	s.mu.guests = map[*guest]struct{}{}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, TLSConfig: cfg.Identity.serverTLS(),
		ErrorLog: log.New(handshakes{s}, "", 0), // strangers would fill the log
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.keep = cancel
	s.works.Go(func() {
		cfg.Identity.Keep(ctx, func(err error) {
			if err != nil {
				cfg.Logger.Error("the node's certificate", "err", err)
			}
			if cfg.Kept != nil {
				cfg.Kept(err)
			}
		})
	})
	s.works.Go(func() { s.expel(ctx) })
	s.works.Go(func() {
		if err := s.http.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("peer port", "err", err)
		}
	})
	return s, nil
}

// Addr is where it really listens.
func (s *Server) Addr() string { return s.l.Addr().String() }

// Open lets orders and joins in.
func (s *Server) Open(a Agent, g Gate) { s.open.Store(&doors{a, g}) }

// Close ends every connection after the calls under way, and waits.
func (s *Server) Close() error {
	s.keep()
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil { // streams of the log have no end of their own
		err = s.http.Close()
	}
	s.works.Wait()
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d := s.open.Load()
	if r.URL.Path == joinPath {
		serve(w, r.WithContext(context.WithValue(r.Context(), sourceKey{}, r.RemoteAddr)), d, s.join)
		return
	}
	node, err := s.admit(r.TLS, d)
	if err != nil { // T1, T2
		s.refused(Refusal{
			Call: callOf(r.URL.Path), Node: node, Source: r.RemoteAddr, Reason: detail(err),
		})
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	switch r.URL.Path {
	case obeyPath:
		serve(w, r, d, s.obey)
		return
	case askPath:
		serve(w, r, d, s.ask)
		return
	}
	ctx, end := context.WithCancel(r.Context())
	defer end()
	g := &guest{node, end}
	s.mu.Lock()
	s.mu.guests[g] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.mu.guests, g)
	}()
	s.cfg.Log.ServeHTTP(w, r.WithContext(ctx))
}

// expelEvery is how often calls under way are looked at.
const expelEvery = 500 * time.Millisecond

// expel ends the calls of nodes that were removed after they began (T2).
func (s *Server) expel(ctx context.Context) {
	tick := time.NewTicker(expelEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d := s.open.Load()
		if d == nil {
			continue
		}
		s.mu.Lock()
		for g := range s.mu.guests {
			if !d.gate.Admitted(g.node) {
				g.end()
			}
		}
		s.mu.Unlock()
	}
}

// admit refuses who is no node of the cluster. Before Open there is nobody to ask who was removed:
// a good certificate is enough to rebuild the quorum by which that becomes known.
func (s *Server) admit(c *tls.ConnectionState, d *doors) (domain.NodeID, error) {
	if c == nil || len(c.VerifiedChains) == 0 {
		return domain.NodeID{}, domain.Errorf(domain.Denied, "a certificate of the cluster is needed")
	}
	node, err := nodeOf(c.PeerCertificates[0], s.cfg.Identity.Cluster)
	if err != nil {
		return domain.NodeID{}, err
	}
	if d != nil && !d.gate.Admitted(node) {
		err = domain.Errorf(domain.Denied, "node %s was removed from the cluster", node)
	}
	return node, err
}

func (s *Server) join(ctx context.Context, d *doors, r JoinRequest) (Welcome, error) {
	w, err := d.gate.Join(ctx, r)
	if err != nil && !domain.IsKind(err, domain.Unavailable) {
		s.refused(Refusal{Call: callOf(joinPath), Source: sourceOf(ctx), Reason: detail(err)})
	}
	return w, err
}

type sourceKey struct{}

func sourceOf(ctx context.Context) string {
	s, _ := ctx.Value(sourceKey{}).(string)
	return s
}

// refused tells of a caller that was not let in. Before Open there is nobody to hear it.
func (s *Server) refused(r Refusal) {
	if d := s.open.Load(); d != nil {
		d.gate.Refused(r)
	}
}

// callOf names a door. What callers make up is none of its own.
func callOf(path string) string {
	switch path {
	case joinPath:
		return "join"
	case obeyPath:
		return "obey"
	case askPath:
		return "ask"
	}
	return "log"
}

// detail is the reason of an error without what it is about.
func detail(err error) string {
	var e *domain.Error
	if errors.As(err, &e) && e.Msg != "" {
		return e.Msg
	}
	return err.Error()
}

// handshakes hears from net/http of connections that ended before a request: those whose
// certificate is not good are callers that were not let in. The library tells of them in words
// alone.
type handshakes struct{ s *Server }

// Write implements io.Writer.
func (h handshakes) Write(line []byte) (int, error) {
	rest, ok := strings.CutPrefix(string(line), "http: TLS handshake error from ")
	source, why, _ := strings.Cut(strings.TrimSpace(rest), ": ")
	if ok && strings.Contains(why, "failed to verify certificate") {
		h.s.refused(Refusal{Call: "handshake", Source: source, Reason: why})
	}
	return len(line), nil
}

func (*Server) obey(ctx context.Context, d *doors, o command.Order) (command.Outcome, error) {
	out := d.agent.Obey(ctx, o)
	err := out.Err
	out.Err = nil // it travels beside
	return out, err
}

func (*Server) ask(ctx context.Context, d *doors, q command.Question) (command.Answer, error) {
	return d.agent.Ask(ctx, q)
}

// serve decodes a call, runs it and answers.
func serve[In, Out any](w http.ResponseWriter, r *http.Request, d *doors,
	run func(context.Context, *doors, In) (Out, error),
) {
	var in In
	a := answer[Out]{}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax)).Decode(&in)
	switch {
	case r.Method != http.MethodPost || err != nil:
		a.fail(domain.Errorf(domain.Invalid, "no such call"))
	case d == nil:
		a.fail(domain.Errorf(domain.Unavailable, "the node is still starting"))
	default:
		out, err := run(r.Context(), d, in)
		if a.Out = out; err != nil {
			a.fail(err)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // a caller that left asks again
}

// answer is the body of every answer.
type answer[Out any] struct {
	Out    Out    `json:"out"`
	Kind   string `json:"kind,omitempty"` // of the error; empty: none
	Error  string `json:"error,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

func (a *answer[Out]) fail(err error) {
	a.Kind, a.Error = domain.KindOf(err).String(), err.Error()
	var e *domain.Error
	for errors.As(err, &e) {
		if e.Remedy != "" {
			a.Remedy = e.Remedy
		}
		err = e.Err
	}
}

func (a *answer[Out]) err() error {
	if a.Kind == "" {
		return nil
	}
	for _, k := range domain.Kinds() {
		if k.String() == a.Kind {
			return &domain.Error{Kind: k, Msg: a.Error, Remedy: a.Remedy}
		}
	}
	return &domain.Error{Kind: domain.Internal, Msg: a.Error, Remedy: a.Remedy}
}
