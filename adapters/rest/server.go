package rest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"weft/domain"
	"weft/projections/access"
)

// Limits of the API.
const (
	bodyMax       = 1 << 20
	headerTime    = 10 * time.Second
	shutdownGrace = 2 * time.Second
	keyMax        = 128
)

// Config is what New needs. Backend and Logger are required.
type Config struct {
	Backend Backend
	Logger  *slog.Logger
	Version string
	// Now is the clock; nil: the real one.
	Now func() time.Time
	// Metrics is served at /metrics, to whoever may read the cluster: its page names the volumes of
	// all tenants. OpenMetrics serves it to everybody.
	Metrics     http.Handler
	OpenMetrics bool
}

// Server is the API.
type Server struct {
	cfg  Config
	b    Backend
	api  huma.API
	http *http.Server
	stop context.CancelFunc
	// needs says of every operation, by its id, what it demands of the caller.
	needs map[string]need
}

// New makes the API; Serve lets it run.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	mux := http.NewServeMux()
	// huma has no instance-wide hook for errors: these are the package's own, set before any use.
	huma.NewErrorWithContext = newError
	hc := huma.DefaultConfig("Weft", cfg.Version)
	hc.CreateHooks = nil // a $schema link would be built from the client's Host header
	hc.RejectUnknownQueryParameters = true
	hc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer"},
	}
	hc.Security = []map[string][]string{{"token": {}}}
	s := &Server{cfg: cfg, b: cfg.Backend, api: humago.New(mux, hc), needs: map[string]need{}}
	s.routes()
	if cfg.Metrics != nil {
		mux.Handle("GET "+metricsPath, s.metrics(cfg.Metrics))
	}
	base, stop := context.WithCancel(context.WithValue(context.Background(), loggerKey{}, cfg.Logger))
	s.stop = stop
	s.http = &http.Server{
		Handler: s.around(mux), ReadHeaderTimeout: headerTime,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
	}
	return s
}

// OpenAPI gives the document as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return json.MarshalIndent(s.api.OpenAPI(), "", "  ") }

// Handler gives the whole API for tests.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve answers on a listener until Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// Close ends watches at once and lets other requests end.
func (s *Server) Close() error {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

type (
	loggerKey  struct{}
	requestKey struct{}
	callerKey  struct{}
)

func loggerOf(ctx context.Context) *slog.Logger {
	if l, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok {
		return l
	}
	return slog.Default()
}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

func callerOf(ctx context.Context) domain.Caller {
	c, _ := ctx.Value(callerKey{}).(domain.Caller)
	return c
}

// signInPath is where whoever has no token yet learns where to get one.
const signInPath = "/v1/sign-in"

// metricsPath is where Prometheus looks.
const metricsPath = "/metrics"

// metrics guards the page of metrics.
func (s *Server) metrics(page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		need := readCluster
		if s.cfg.OpenMetrics {
			need = openToAll
		}
		if err := s.guard(r.Context(), need, nil); err != nil {
			var refused *Problem
			_ = errors.As(problem(r.Context(), err), &refused) // it makes nothing else
			write(w, refused)
			return
		}
		page.ServeHTTP(w, r)
	})
}

// open lists the paths that need no token: what they show is no secret.
func (s *Server) open(path string) bool {
	switch path {
	case signInPath, "/v1/health", "/openapi.json", "/openapi.yaml", "/docs":
		return true
	case metricsPath:
		return s.cfg.OpenMetrics
	}
	return strings.HasPrefix(path, "/schemas/")
}

// around numbers requests, bounds bodies, finds out who calls, keeps what is refused, and turns
// ServeMux's own text errors into problems.
func (s *Server) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var raw [8]byte
		_, _ = rand.Read(raw[:])
		id := hex.EncodeToString(raw[:])
		w.Header().Set("Weft-Request-Id", id)
		a := newAttempt(r, id, s.cfg.Now())
		r.Body = http.MaxBytesReader(w, r.Body, bodyMax)
		p, known := access.Principal{}, true
		if !s.open(r.URL.Path) {
			p, known = s.identify(r, a)
		}
		ctx := context.WithValue(r.Context(), requestKey{}, id)
		ctx = context.WithValue(ctx, attemptKey{}, a)
		ctx = context.WithValue(ctx, principalKey{}, p)
		ctx = context.WithValue(ctx, callerKey{}, domain.Caller{
			Actor: a.Actor, Source: r.RemoteAddr, RequestID: id,
		})
		answer := &plain{ResponseWriter: w, id: id, code: http.StatusOK}
		if known {
			next.ServeHTTP(answer, r.WithContext(ctx))
		} else {
			unauthorized(answer, id)
		}
		if a.refused(r.Method, answer.code) {
			s.b.Refused(*a)
		}
	})
}

// identify tells who calls; why it is nobody is for the audit alone.
func (s *Server) identify(r *http.Request, a *Attempt) (access.Principal, bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		a.Reason = "no token"
		return access.Principal{}, false
	}
	p, err := s.b.Identify(r.Context(), token)
	if p.Known() {
		a.Actor = p.Actor()
	}
	if err != nil {
		a.Reason = detail(err)
		return access.Principal{}, false
	}
	return p, true
}

// unauthorized is the one answer to whoever is not known, whatever the reason.
func unauthorized(w http.ResponseWriter, id string) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="weft"`)
	write(w, &Problem{
		Type: "urn:weft:problem:denied", Title: "Unauthorized", Kind: "denied",
		Status: http.StatusUnauthorized, RequestID: id,
		Detail: "a valid token is needed: Authorization: Bearer TOKEN",
		Remedy: "weft login signs in with an identity provider; weft token issue makes one for a user; " +
			"weft token renew, the node's own",
	})
}

// plain rewrites ServeMux's text answers for unknown paths and methods.
type plain struct {
	http.ResponseWriter
	id      string
	code    int
	swallow bool
}

// WriteHeader implements http.ResponseWriter.
func (p *plain) WriteHeader(code int) {
	p.code = code
	text := strings.HasPrefix(p.Header().Get("Content-Type"), "text/plain")
	if text && (code == http.StatusNotFound || code == http.StatusMethodNotAllowed) {
		p.swallow = true
		write(p.ResponseWriter, &Problem{
			Type: "urn:weft:problem:not_found", Title: http.StatusText(code), Kind: "not_found",
			Status: code, RequestID: p.id, Detail: "no such path or method; /openapi.json lists them",
		})
		return
	}
	p.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (p *plain) Write(b []byte) (int, error) {
	if p.swallow {
		return len(b), nil
	}
	return p.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find Flush.
func (p *plain) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func write(w http.ResponseWriter, p *Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Del("X-Content-Type-Options")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone
}
