package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
)

// Disk is what the server needs of a disk. Its methods may be called from many goroutines.
type Disk interface {
	// Info is asked once per connection.
	Info() domain.DiskInfo
	// Submit starts an I/O and does not wait for it: io.To.Complete(io) follows exactly once,
	// perhaps before Submit returns, on any goroutine.
	Submit(io *domain.IO)
	// Extents appends to dst how the range is allocated, in order and without gaps, and may stop
	// before the end of the range. It is called on the connection's reader: it must answer from
	// memory.
	Extents(off, n int64, dst []domain.Extent) ([]domain.Extent, error)
}

// kicker is a Disk that keeps reads back where domain.IO.Gather allows it, until Kick or a request
// without it. It is for a Disk to have or not.
type kicker interface{ Kick() }

// Export is a disk under a name.
type Export struct {
	Name        string // at most 1 KiB; what the client asks for
	Description string // shown to clients that ask, at most 1 KiB
	Disk        Disk   // a pointer: two exports are compared by it
	ReadOnly    bool   // besides what the disk says
	// Allow lists the networks that may see the export; empty allows all. A unix socket is always
	// allowed: its folder's rights decide. A change counts for new connections.
	Allow []netip.Prefix
}

// Config of a server. The zero value works.
type Config struct {
	Log *slog.Logger // nil discards
	// HandshakeTimeout bounds the time from the first byte to transmission; 0 is 15 s. Two thirds
	// of it are given until the first option.
	HandshakeTimeout time.Duration
	// TLS answers STARTTLS; nil offers none. Set its ClientAuth to ask clients for certificates.
	// It is used as it is and must not change.
	TLS *tls.Config
	// RequireTLS refuses everything before STARTTLS, also by unix sockets. It needs TLS.
	RequireTLS bool
	// Memory gives n zero bytes at an address that is a multiple of 4096, n from 4 MiB on, for the
	// data of large requests: memory in one piece below is read and written by devices at less
	// cost. The memory is the collector's. nil: the heap.
	Memory func(n int) []byte
}

// closeGrace is how long a client may take to read its last replies when we close.
const closeGrace = 5 * time.Second

// Stats counts since New.
type Stats struct {
	Connections, Refused, Open                     int64 // accepted, over the limit, open now
	Reads, Writes, Zeroes, Trims                   int64
	Flushes, Caches, Statuses                      int64
	ReadBytes, WriteBytes, ZeroBytes, TrimmedBytes int64
	Errors                                         int64 // requests answered by an error
	Sends                                          int64 // system calls that carried replies
}

type counters struct {
	connections, refused atomic.Int64
	ops                  [cmdBlockStatus + 1]atomic.Int64
	bytes                [cmdBlockStatus + 1]atomic.Int64
	errors, sends        atomic.Int64
}

// Server serves exports on any number of listeners.
type Server struct {
	cfg   Config
	log   *slog.Logger
	stats counters
	pools [bufferClasses]sync.Pool // of *buffer, for what a connection does not keep

	running sync.WaitGroup // accept loops and connections
	done    chan struct{}

	mu struct {
		sync.Mutex
		exports   map[string]*export
		conns     map[*conn]struct{}
		listeners map[net.Listener]struct{}
		closed    bool
	}
}

// export is an Export in use. Its conns are guarded by the server's lock.
type export struct {
	Export
	conns map[*conn]struct{}
}

// New makes a server without exports. It returns an error of kind Invalid for a negative time, or
// for TLS that is required and not configured.
func New(cfg Config) (*Server, error) {
	var check domain.Checker
	check.Check(cfg.HandshakeTimeout >= 0, "handshakeTimeout", "negative")
	check.Check(cfg.TLS != nil || !cfg.RequireTLS, "requireTLS", "no TLS is configured")
	if err := check.Err("nbd.New", ""); err != nil {
		return nil, err
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log, done: make(chan struct{})}
	s.mu.exports = map[string]*export{}
	s.mu.conns = map[*conn]struct{}{}
	s.mu.listeners = map[net.Listener]struct{}{}
	return s, nil
}

// SetExports replaces the exports, also while clients are connected. An export that is gone, or has
// another disk or mode under its name, loses its connections; the others keep theirs. On return no
// Submit to a disk that is gone is under way or will come: it waits for that disk to complete what
// is in flight, and for slow clients up to 5 s.
//
// Errors of kind Invalid: a name twice or too long, or no disk. Nothing is changed then.
func (s *Server) SetExports(exports []Export) error {
	next := make(map[string]*export, len(exports))
	var check domain.Checker
	for i, e := range exports {
		path := fmt.Sprintf("exports[%d]", i)
		check.Check(len(e.Name) <= nameMax, path+".name", "over %d bytes", nameMax)
		check.Check(len(e.Description) <= nameMax, path+".description", "over %d bytes", nameMax)
		check.Check(e.Disk != nil, path+".disk", "no disk")
		check.Check(next[e.Name] == nil, path+".name", "%q is there twice", e.Name)
		next[e.Name] = &export{Export: e, conns: map[*conn]struct{}{}}
	}
	if err := check.Err("nbd.SetExports", ""); err != nil {
		return err
	}
	var gone []*conn
	s.mu.Lock()
	for name, old := range s.mu.exports {
		e := next[name]
		if e != nil && e.Disk == old.Disk && e.ReadOnly == old.ReadOnly {
			old.Export = e.Export // the set of connections lives on
			next[name] = old
			continue
		}
		for c := range old.conns {
			gone = append(gone, c)
		}
	}
	s.mu.exports = next
	s.mu.Unlock()
	for _, c := range gone {
		c.shut()
	}
	for _, c := range gone {
		<-c.ended
	}
	return nil
}

// Serve accepts connections until Close, and then returns nil. It owns the listener. Any other
// end is an error.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.mu.listeners[l] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	for {
		nc, err := l.Accept()
		if err == nil {
			s.start(nc)
			continue
		}
		select {
		case <-s.done:
			return nil
		default:
		}
		if !temporary(err) {
			s.mu.Lock()
			delete(s.mu.listeners, l)
			s.mu.Unlock()
			return errors.Join(domain.Wrap(err, "nbd.Serve", l.Addr().String()), l.Close())
		}
		select { // out of descriptors: wait for connections to end
		case <-s.done:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func temporary(err error) bool {
	var ne net.Error
	// Temporary is deprecated for all but this: what Accept may get over.
	return errors.As(err, &ne) && ne.Temporary() //nolint:staticcheck // see above
}

// start gives a new connection its goroutine, or closes it at the limit.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	refused := s.mu.closed || len(s.mu.conns) >= sessionsMax
	if !refused {
		s.mu.conns[c] = struct{}{}
		s.running.Add(1)
	}
	s.mu.Unlock()
	if refused {
		s.stats.refused.Add(1)
		_ = nc.Close() // nothing was said yet
		return
	}
	s.stats.connections.Add(1)
	go func() {
		defer s.running.Done()
		c.run()
		s.mu.Lock()
		delete(s.mu.conns, c)
		if c.export != nil {
			delete(c.export.conns, c)
		}
		s.mu.Unlock()
		close(c.ended)
	}()
}

// find gives the export of a name as far as the client may see it.
func (s *Server) find(name string, from net.Addr) (Export, domain.Kind, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.mu.exports[name]
	if !ok {
		return Export{}, domain.NotFound, false
	}
	if !allowed(e.Allow, from) {
		return Export{}, domain.Denied, false
	}
	return e.Export, 0, true
}

// attach binds a connection to an export, so that SetExports finds it.
func (s *Server) attach(c *conn, name string) (Export, domain.Kind, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.mu.exports[name]
	if !ok || s.mu.closed {
		return Export{}, domain.NotFound, false
	}
	if !allowed(e.Allow, c.nc.RemoteAddr()) {
		return Export{}, domain.Denied, false
	}
	e.conns[c] = struct{}{}
	c.export = e
	return e.Export, 0, true
}

// visible lists what the client may see, by name.
func (s *Server) visible(from net.Addr) []Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Export
	for _, e := range s.mu.exports {
		if allowed(e.Allow, from) {
			list = append(list, e.Export)
		}
	}
	slices.SortFunc(list, func(a, b Export) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func allowed(networks []netip.Prefix, from net.Addr) bool {
	tcp, ok := from.(*net.TCPAddr)
	if len(networks) == 0 || !ok {
		return true
	}
	ip := tcp.AddrPort().Addr().Unmap()
	for _, network := range networks {
		if network.Contains(ip) {
			return true
		}
	}
	return false
}

// Connected counts the connections that use an export.
func (s *Server) Connected(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.mu.exports[name]; e != nil {
		return len(e.conns)
	}
	return 0
}

// Stats gives the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := len(s.mu.conns)
	s.mu.Unlock()
	ops, bytes := &s.stats.ops, &s.stats.bytes
	return Stats{
		Connections: s.stats.connections.Load(), Refused: s.stats.refused.Load(),
		Open:  int64(open),
		Reads: ops[cmdRead].Load(), ReadBytes: bytes[cmdRead].Load(),
		Writes: ops[cmdWrite].Load(), WriteBytes: bytes[cmdWrite].Load(),
		Zeroes: ops[cmdWriteZeroes].Load(), ZeroBytes: bytes[cmdWriteZeroes].Load(),
		Trims: ops[cmdTrim].Load(), TrimmedBytes: bytes[cmdTrim].Load(),
		Flushes: ops[cmdFlush].Load(), Caches: ops[cmdCache].Load(),
		Statuses: ops[cmdBlockStatus].Load(),
		Errors:   s.stats.errors.Load(), Sends: s.stats.sends.Load(),
	}
}

// Close ends all listeners and connections and waits for them, and for the disks to complete what
// is in flight. Closing twice is no error.
func (s *Server) Close() error {
	s.mu.Lock()
	var err error
	if !s.mu.closed {
		s.mu.closed = true
		close(s.done)
		for l := range s.mu.listeners {
			err = errors.Join(err, l.Close())
		}
	}
	conns := make([]*conn, 0, len(s.mu.conns))
	for c := range s.mu.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.shut()
	}
	s.running.Wait()
	return err
}
