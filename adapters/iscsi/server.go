package iscsi

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
)

// Limits of a server, the defaults of Config.
const (
	sessionsMax   = 4096
	halfOpenMax   = 256 // connections that have not logged in yet
	depthMax      = 128 // commands per session
	immediateMax  = 32  // commands outside the window
	bytesMax      = 32 << 20
	unitsMax      = 256 // logical units per target
	unitNumberMax = 255
	targetsMax    = 4096
	loginTime     = 15 * time.Second
	firstTime     = 10 * time.Second
	nopTime       = 5 * time.Second
	partingTime   = 3 * time.Second // from the request to log out to the cut
	nameMax       = 223
)

// Config says how a server behaves. The zero value of each field takes the default.
type Config struct {
	// Advertise lists the portals ("host:port") that discovery answers with. Empty answers with the
	// local address of the connection, which is wrong behind address translation.
	Advertise []string
	// Group is the target portal group tag, and the relative target port, of this node: 1.
	Group uint16
	// Alias is the TargetAlias.
	Alias string
	// Digests lists what is acceptable for header and data digests, the preferred one first:
	// "CRC32C", "None".
	Digests []string
	// Discovery, when not empty, must be proved before SendTargets is answered.
	Discovery []Credential
	// LoginTime bounds a login from the first byte on: 15 s.
	LoginTime time.Duration
	// NopTime is how long a connection may be silent before it is pinged, and then again before it
	// is closed: 5 s.
	NopTime time.Duration
	// Sessions bounds the sessions: 4096. Depth bounds the commands of a session: 128. Bytes bounds
	// its data in flight, in bytes: 32 MiB.
	Sessions, Depth, Bytes int
	// Log takes one record per event that an operator may act on. Nil discards.
	Log *slog.Logger
}

// Target is what initiators log in to.
type Target struct {
	// Name is the iSCSI qualified name.
	Name string
	// LUNs gives the logical units by number, 0 to 255.
	LUNs map[uint16]LUN
	// Initiators lists the names that may log in; AllowAny admits every one.
	Initiators []string
	AllowAny   bool
	// CHAP, when not empty, must be proved by the initiator. Own proves the target in return, to
	// initiators that ask for it.
	CHAP []Credential
	Own  *Credential
	// Redirect, when not empty, is a portal ("host:port") that logins are sent to instead.
	Redirect string
}

// Stats are counters since New. All but Sessions only grow.
type Stats struct {
	Sessions       int64 // now
	Logins         uint64
	LoginFailures  uint64
	Commands       uint64
	CheckStatuses  uint64 // commands that ended with CHECK CONDITION
	BytesRead      uint64
	BytesWritten   uint64
	Rejects        uint64
	DigestErrors   uint64
	TaskFunctions  uint64
	Reinstatements uint64
	PingTimeouts   uint64
}

type counters struct {
	logins, loginFailures, commands, checks, read, written   atomic.Uint64
	rejects, digests, functions, reinstatements, pingTimeout atomic.Uint64
}

// sessionKey names a session for reinstatement: one per initiator port and target.
type sessionKey struct {
	initiator, target string
	isid              [6]byte
}

// Server is an iSCSI target node. Any number of goroutines may use it.
type Server struct {
	config  Config
	log     *slog.Logger
	pool    buffers
	count   counters
	tsih    atomic.Uint32
	ended   chan struct{}
	joined  sync.WaitGroup
	joining atomic.Int64 // connections that have not logged in

	mu struct {
		sync.Mutex
		closed    bool
		targets   map[string]*Target
		sessions  map[sessionKey]*session
		all       map[*session]struct{} // also those that log in
		listeners map[net.Listener]struct{}
	}
}

// New makes a server without targets. It returns an error of kind Invalid for a bad Config.
func New(c Config) (*Server, error) {
	c.Group = cmp.Or(c.Group, 1)
	c.LoginTime = cmp.Or(c.LoginTime, loginTime)
	c.NopTime = cmp.Or(c.NopTime, nopTime)
	c.Sessions = cmp.Or(c.Sessions, sessionsMax)
	c.Depth = cmp.Or(c.Depth, depthMax)
	c.Bytes = cmp.Or(c.Bytes, bytesMax)
	if len(c.Digests) == 0 {
		c.Digests = []string{"None", "CRC32C"}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var bad domain.Checker
	bad.Check(c.LoginTime > 0 && c.NopTime > 0, "LoginTime, NopTime", "negative")
	bad.Check(c.Sessions > 0 && c.Depth > 0 && c.Bytes > 0, "Sessions, Depth, Bytes", "negative")
	for _, d := range c.Digests {
		bad.Check(d == "None" || d == "CRC32C", "Digests", "%q is unknown", d)
	}
	checkCredentials(&bad, "Discovery", c.Discovery)
	for _, a := range c.Advertise {
		_, _, err := net.SplitHostPort(a)
		bad.Check(err == nil, "Advertise", "%q is not host:port", a)
	}
	if err := bad.Err("iscsi.New", ""); err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Log, ended: make(chan struct{})}
	s.mu.targets = map[string]*Target{}
	s.mu.sessions = map[sessionKey]*session{}
	s.mu.all = map[*session]struct{}{}
	s.mu.listeners = map[net.Listener]struct{}{}
	s.joined.Go(s.keepTime)
	return s, nil
}

func checkCredentials(bad *domain.Checker, path string, cs []Credential) {
	for _, c := range cs {
		bad.Check(len(c.Secret) >= secretMin && len(c.Secret) <= secretMax, path,
			"the secret of %q is not 12 to 64 bytes long", c.User)
		bad.Check(c.User != "" && len(c.User) <= valueMax, path, "bad user name")
	}
}

// Serve accepts connections until the listener fails or the server closes, and then closes the
// listener. It returns nil after Close. Several portals are several calls.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return errors.Join(l.Close())
	}
	s.mu.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.mu.listeners, l)
		s.mu.Unlock()
		_ = l.Close()
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			if s.closed() {
				return nil
			}
			return &domain.Error{
				Op: "iscsi.Serve", Kind: domain.Unavailable,
				Ref: l.Addr().String(), Err: err,
			}
		}
		s.accept(conn)
	}
}

func (s *Server) accept(conn net.Conn) {
	c := newSession(s, conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	full := len(s.mu.all) >= s.config.Sessions+halfOpenMax // with discovery sessions
	if s.mu.closed || full || s.joining.Load() >= halfOpenMax {
		_ = conn.Close()
		return
	}
	s.joining.Add(1)
	s.mu.all[c] = struct{}{}
	s.joined.Go(c.run)
}

func (s *Server) closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.closed
}

// Close ends all sessions, waits for their commands, and joins every goroutine of the server.
func (s *Server) Close() {
	s.mu.Lock()
	first := !s.mu.closed
	s.mu.closed = true
	listeners := slices.Collect(maps.Keys(s.mu.listeners))
	s.mu.Unlock()
	if first {
		close(s.ended)
	}
	for _, l := range listeners {
		_ = l.Close()
	}
	for _, c := range s.everyone() {
		c.kill()
	}
	s.joined.Wait()
}

func (s *Server) everyone() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.mu.all))
}

// SetTargets replaces the configuration. Sessions whose target is gone, or whose initiator may not
// use it any more, are asked to log out and cut a moment later; units that are gone answer as
// absent from the next command on. It returns an error of kind Invalid, and changes nothing, for a
// bad target.
func (s *Server) SetTargets(targets []Target) error {
	next := make(map[string]*Target, len(targets))
	var bad domain.Checker
	bad.Check(len(targets) <= targetsMax, "targets", "more than %d", targetsMax)
	for i := range targets {
		t := targets[i]
		t.Name = strings.ToLower(t.Name)
		t.LUNs, t.Initiators = maps.Clone(t.LUNs), slices.Clone(t.Initiators)
		checkTarget(&bad, &t)
		_, twice := next[t.Name]
		bad.Check(!twice, t.Name, "named twice")
		next[t.Name] = &t
	}
	if err := bad.Err("iscsi.SetTargets", ""); err != nil {
		return err
	}
	s.mu.Lock()
	s.mu.targets = next
	s.mu.Unlock()
	for _, c := range s.everyone() {
		c.retarget()
	}
	return nil
}

func checkTarget(bad *domain.Checker, t *Target) {
	named := strings.HasPrefix(t.Name, "iqn.") || strings.HasPrefix(t.Name, "eui.") ||
		strings.HasPrefix(t.Name, "naa.")
	bad.Check(named && len(t.Name) <= nameMax, t.Name, "not an iSCSI name")
	bad.Check(len(t.LUNs) <= unitsMax, t.Name, "more than %d logical units", unitsMax)
	for n, l := range t.LUNs {
		bad.Check(n <= unitNumberMax && l != nil, t.Name, "bad logical unit %d", n)
	}
	checkCredentials(bad, t.Name, t.CHAP)
	if t.Own == nil {
		return
	}
	checkCredentials(bad, t.Name, []Credential{*t.Own})
	for _, c := range t.CHAP {
		bad.Check(c.Secret != t.Own.Secret, t.Name, "both directions use one secret")
	}
}

// admits tells whether an initiator may use the target.
func (t *Target) admits(initiator string) bool {
	return t.AllowAny || slices.ContainsFunc(t.Initiators, func(n string) bool {
		return strings.EqualFold(n, initiator)
	})
}

func (s *Server) target(name string) *Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.targets[strings.ToLower(name)]
}

// visible lists the targets that an initiator may see, by name.
func (s *Server) visible(initiator string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for n, t := range s.mu.targets {
		if t.admits(initiator) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// Sessions counts the sessions that are logged in to a target.
func (s *Server) Sessions(target string) int {
	target = strings.ToLower(target)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k := range s.mu.sessions {
		if k.target == target {
			n++
		}
	}
	return n
}

// Drain asks every session to log out and cuts those that stay. New logins still come in; use
// Target.Redirect to send them elsewhere.
func (s *Server) Drain() {
	for _, c := range s.everyone() {
		c.part()
	}
}

// Stats gives the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	sessions := int64(len(s.mu.all))
	s.mu.Unlock()
	c := &s.count
	return Stats{
		Sessions: sessions - s.joining.Load(), Logins: c.logins.Load(),
		LoginFailures: c.loginFailures.Load(), Commands: c.commands.Load(),
		CheckStatuses: c.checks.Load(), BytesRead: c.read.Load(), BytesWritten: c.written.Load(),
		Rejects: c.rejects.Load(), DigestErrors: c.digests.Load(),
		TaskFunctions: c.functions.Load(), Reinstatements: c.reinstatements.Load(),
		PingTimeouts: c.pingTimeout.Load(),
	}
}

// keepTime pings silent connections, and cuts those that stay silent or outstay a request to log
// out.
func (s *Server) keepTime() {
	tick := time.NewTicker(s.config.NopTime)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
			for _, c := range s.everyone() {
				c.tick()
			}
		}
	}
}

// enrol makes a session the one of its key and gives its predecessor. It fails when the server is
// closed or full.
func (s *Server) enrol(c *session) (old *session, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old = s.mu.sessions[c.key]
	if s.mu.closed || old == nil && len(s.mu.sessions) >= s.config.Sessions {
		return nil, false
	}
	s.mu.sessions[c.key] = c
	return old, true
}

// strike takes a session out of the registry.
func (s *Server) strike(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.all, c)
	if s.mu.sessions[c.key] == c {
		delete(s.mu.sessions, c.key)
	}
}

// peers lists the sessions of a target.
func (s *Server) peers(target string) []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*session
	for k, c := range s.mu.sessions {
		if k.target == target {
			found = append(found, c)
		}
	}
	return found
}
