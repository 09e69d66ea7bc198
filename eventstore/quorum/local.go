package quorum

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/domain"
)

// local is the member in this process.
type local struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	rpc    *grpc.Server
	peers  http.Handler
	port   *Port
	// distrusted: its database is damaged. It takes part in the consensus until it is replaced, and
	// nobody reads from it.
	distrusted atomic.Bool
	asking     sync.Mutex  // held while the member is asked how it is
	over       atomic.Bool // that question found its database closed
}

// run starts the member, lets other members reach it, and waits until it may write.
func (s *Store) run(ctx context.Context, initial string, joining bool) (*local, error) {
	e, err := start(&s.cfg, initial, joining)
	if err != nil {
		return nil, err
	}
	m := &local{etcd: e, client: v3client.New(e.Server)}
	if s.cfg.Net != nil {
		m.port = s.cfg.Net.Port
		m.peers = etcdhttp.NewPeerHandler(e.Server.Logger(), e.Server)
		m.rpc = v3rpc.Server(e.Server, nil, m.survive)
		m.port.member.Store(m)
	}
	// A majority that has removed this node never lets it come up, and says so when it is asked.
	within, cancel := context.WithCancelCause(ctx)
	var asking sync.WaitGroup
	if s.cfg.Net != nil && len(s.cfg.Net.Seeds) > 0 && !joining {
		asking.Go(func() {
			if _, err := s.ask(within); domain.IsKind(err, domain.Denied) {
				cancel(err)
			}
		})
	}
	err = ready(within, &s.cfg, e)
	cancel(nil)
	asking.Wait()
	if err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}

// statusMethod is the question how a member is.
const statusMethod = "/etcdserverpb.Maintenance/Status"

// survive answers a call in which etcd panics. A member that was removed a moment ago panics when
// it is asked how it is ("failed to find local ID in cluster members"), and would end the process.
// Once its database is closed it panics with a lock held that the next such question waits for, for
// ever and whatever its context says: then it is not asked again, and never by two at once.
func (m *local) survive(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (resp any, err error) {
	if info.FullMethod == statusMethod {
		m.asking.Lock()
		defer m.asking.Unlock()
		if m.over.Load() {
			return nil, status.Error(codes.Unavailable, "the member has ended")
		}
	}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if _, closed := p.(runtime.Error); closed {
			m.over.Store(true)
		}
		resp, err = nil, status.Error(codes.Unavailable, fmt.Sprint(p))
	}()
	if info.FullMethod == statusMethod && m.etcd != nil {
		return m.status()
	}
	return next(ctx, req)
}

// status tells how the member is, in place of etcd, which reads the alarms from memory without a
// lock: a member that takes up a snapshot, a learner or a voter that lags, replaces them under
// whoever asks. Nobody asks a learner for its alarms.
func (m *local) status() (*pb.StatusResponse, error) {
	s := m.etcd.Server
	st := &pb.StatusResponse{
		Header: &pb.ResponseHeader{
			ClusterId: uint64(s.Cluster().ID()), MemberId: uint64(s.MemberID()), RaftTerm: s.Term(),
		},
		Version: version.Version, Leader: uint64(s.Leader()), RaftIndex: s.CommittedIndex(),
		RaftAppliedIndex: s.AppliedIndex(), RaftTerm: s.Term(), IsLearner: s.IsLearner(),
		DbSize: s.Backend().Size(), DbSizeInUse: s.Backend().SizeInUse(),
	}
	if st.IsLearner {
		return st, nil
	}
	if st.Leader == 0 {
		st.Errors = append(st.Errors, "no leader")
	}
	list, err := m.alarms()
	for _, a := range list {
		st.Errors = append(st.Errors, a.String())
	}
	return st, err
}

// alarms lists etcd's alarms, as the database has them.
func (m *local) alarms() ([]*pb.AlarmMember, error) {
	s := m.etcd.Server
	return schema.NewAlarmBackend(s.Logger(), s.Backend()).GetAllAlarms()
}

// votes tells whether the member has a vote. One that was removed a moment ago has none: etcd
// panics there.
func (m *local) votes() (yes bool) {
	defer func() {
		if recover() != nil {
			yes = false
		}
	}()
	return !m.etcd.Server.IsLearner()
}

// stop ends the member. It hands leadership on first.
func (m *local) stop() {
	m.handOn()
	if m.port != nil {
		m.port.member.CompareAndSwap(m, nil)
		m.rpc.Stop()
	}
	_ = m.client.Close() // gives the end of its own context, which is no news
	// Close would try to hand leadership on for five seconds, though nobody may be left to take it.
	// Without listeners the server is all there is to stop.
	m.etcd.Server.HardStop()
}

// handOn gives leadership to a voter that answers, each asked for handOnWait. Without one the
// others elect.
func (m *local) handOn() {
	s := m.etcd.Server
	for _, v := range s.Cluster().Members() {
		if s.Leader() != s.MemberID() {
			return
		}
		if v.ID == s.MemberID() || v.IsLearner {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), handOnWait)
		_ = s.MoveLeader(ctx, uint64(s.MemberID()), uint64(v.ID))
		cancel()
	}
}

// handOnWait is how long one voter is waited for to take the leadership.
const handOnWait = 500 * time.Millisecond

func (m *local) id() uint64 { return uint64(m.etcd.Server.MemberID()) }

// hasMember tells whether the folder holds a member of some cluster.
func (s *Store) hasMember() bool {
	_, err := os.Stat(filepath.Join(s.cfg.Dir, "member", "wal"))
	return err == nil
}

// wipe removes a member that the cluster has removed. Its id is never used again.
func (s *Store) wipe() error {
	if err := os.RemoveAll(filepath.Join(s.cfg.Dir, "member")); err != nil {
		return &domain.Error{Op: "quorum.Open", Kind: domain.Denied, Ref: s.cfg.Dir, Err: err}
	}
	return nil
}

// Port receives what other nodes send to the log of this one: consensus, the calls of nodes that
// hold no member, and forwarded appends. It answers 503 while there is nobody to answer. The owner
// of the listener serves it and sees to it that nobody but nodes of the cluster comes this far.
type Port struct {
	member atomic.Pointer[local]
	append atomic.Pointer[Store]
}

// NewPort makes a port that nobody answers on yet.
func NewPort() *Port { return &Port{} }

// ownPaths is where the calls between nodes begin that are not etcd's.
const ownPaths = "/weft/v1/"

// ServeHTTP implements http.Handler.
func (p *Port) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, ownPaths) {
		s := p.append.Load()
		switch {
		case s == nil:
		case r.URL.Path == repairPath:
			s.serveRepair(w, r)
			return
		case r.URL.Path == appendPath:
			s.serveAppend(w, r)
			return
		case strings.HasPrefix(r.URL.Path, archivePath):
			s.serveArchive(w, r)
			return
		}
	} else if m := p.member.Load(); m != nil {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			if m.distrusted.Load() {
				http.Error(w, "the member's database is damaged", http.StatusServiceUnavailable)
				return
			}
			m.rpc.ServeHTTP(w, r)
			return
		}
		m.peers.ServeHTTP(w, r)
		return
	}
	http.Error(w, "no member of the log answers here", http.StatusServiceUnavailable)
}

// dialWait bounds the first connection of a client to a voter.
const dialWait = 5 * time.Second

// dial makes the client to the members of other nodes. Without any address it points at this node.
func (s *Store) dial(urls []string) error {
	cfg := clientv3.Config{
		Endpoints: endpoints(urls, s.cfg.Net.URL), DialTimeout: dialWait, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
	}
	var err error
	if cfg.TLS, err = s.clientTLS(); err != nil {
		return err
	}
	s.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig: cfg.TLS.Clone(), MaxIdleConnsPerHost: forwardConns,
		MaxConnsPerHost: forwardConns, IdleConnTimeout: time.Minute,
	}}
	if s.mu.remote, err = newClient(cfg); err != nil {
		return err
	}
	s.mu.single, err = newClient(cfg)
	return err
}

// newClient makes a client and begins to connect. Its list of addresses is handed to grpc meanwhile
// by the first use, and reading it there is not guarded against a change: the first use is here.
func newClient(cfg clientv3.Config) (*clientv3.Client, error) {
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, &domain.Error{Op: "quorum.Open", Kind: domain.Unavailable, Err: err}
	}
	c.ActiveConnection().Connect()
	return c, nil
}

func (s *Store) clientTLS() (*tls.Config, error) {
	if s.cfg.Net.TLS == nil {
		return nil, nil
	}
	c, err := s.cfg.Net.TLS.info().ClientConfig()
	if err != nil {
		return nil, &domain.Error{Op: "quorum.Open", Kind: domain.Denied, Err: err}
	}
	c.MinVersion = tls.VersionTLS13
	// grpc puts the address in the place of the name that members' certificates bear, so the name is
	// checked here, and with it all that the standard check would.
	c.InsecureSkipVerify = true
	roots, name := c.RootCAs, s.cfg.Net.TLS.ServerName
	c.VerifyConnection = func(st tls.ConnectionState) error {
		opts := x509.VerifyOptions{
			Roots: roots, DNSName: name, Intermediates: x509.NewCertPool(),
		}
		for _, x := range st.PeerCertificates[1:] {
			opts.Intermediates.AddCert(x)
		}
		_, err := st.PeerCertificates[0].Verify(opts)
		return err
	}
	return c, nil
}

func endpoints(urls []string, own string) []string {
	if len(urls) == 0 {
		return []string{own}
	}
	return slices.Clone(urls)
}
