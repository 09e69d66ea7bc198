package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"weft/domain"
	"weft/eventstore/archive"
)

// Sizes and times of the embedded engine. The two snapshot numbers bound how many batches stay in
// memory: with etcd's own defaults a loaded node needs several hundred MiB.
const (
	snapshotCount   = 500
	snapshotCatchUp = 250
	// QuotaDefault is the most that the database takes, in bytes.
	QuotaDefault = 6 << 30
	lockWait     = 100 * time.Millisecond
	fastTick     = 25 * time.Millisecond
	// CalmTick and CalmElection are a pace that pauses of a second do not disturb.
	CalmTick     = 100 * time.Millisecond
	CalmElection = time.Second
	// placeholder stands where etcd wants to be told its address; nothing listens there. Growing
	// the cluster replaces it.
	placeholder = "http://127.0.0.1:2380"
)

// Config says where and how the engine runs. Dir, ClusterID and Logger are required.
type Config struct {
	// Dir is the engine's own folder; it is made when missing. The caller holds its lock.
	Dir string
	// ClusterID is part of every key; a folder of another cluster is refused.
	ClusterID domain.ClusterID
	// Archive is the folder of the sealed part of the log, which is read from there and not from
	// memory. Default: archive below Dir. It may stand on another device.
	Archive string
	// SegmentEvents is how many records a segment of the archive holds, the same on every node.
	// Default: archive.HistoryEvents. Tests alone set it.
	SegmentEvents uint32
	// Quota is the most bytes that the database takes. Default: QuotaDefault.
	Quota int64
	// Logger hears what etcd says at Warn and above.
	Logger *slog.Logger
	// Name of this member, at most 64 bytes. Default: voter.
	Name string
	// Net says how this member reaches others. Nil: it is alone, and nothing listens.
	Net *Net
	// Tick and Election pace the consensus; Election is at least five ticks. A leader that is silent
	// is replaced after one to two times Election, drawn anew each time. Default: 25 and 200 ms;
	// CalmTick and CalmElection are for hosts that are loaded or far apart.
	Tick, Election time.Duration
	// forced: this is a copy of a member that is made the only voter, see Recovery. It has nothing to
	// say about the node's archive.
	forced bool
}

// Net is the way between members. The owner of the listener serves Port on it from before Open.
type Net struct {
	// URL is where others reach this node's Port, such as https://10.0.0.1:7782.
	URL string
	// Seeds are URLs of nodes that may hold a member. With seeds and an empty folder the node begins
	// as a client of their log; without, as a cluster of one.
	Seeds []string
	// TLS names the files of this node's identity. Nil means plain connections: for tests alone.
	TLS *TLSFiles
	// Port receives what other members send.
	Port *Port
}

// TLSFiles are PEM files that are read again at each handshake, so replacing them is rotation. CA
// alone is read once. ServerName is the name that every member's certificate bears.
type TLSFiles struct{ Cert, Key, CA, ServerName string }

func (f *TLSFiles) info() transport.TLSInfo {
	if f == nil {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{
		CertFile: f.Cert, KeyFile: f.Key, TrustedCAFile: f.CA, ServerName: f.ServerName,
		ClientCertAuth: true,
	}
}

func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = "voter"
	}
	if c.Archive == "" {
		c.Archive = filepath.Join(c.Dir, "archive")
	}
	if c.Quota == 0 {
		c.Quota = QuotaDefault
	}
	if c.SegmentEvents == 0 {
		c.SegmentEvents = archive.HistoryEvents
	}
	if c.Tick == 0 {
		c.Tick = fastTick
	}
	if c.Election == 0 {
		c.Election = 8 * c.Tick
	}
	var k domain.Checker
	k.Check(c.Dir != "", "dir", "missing")
	k.Check(!c.ClusterID.IsZero(), "cluster_id", "missing")
	k.Check(c.Logger != nil, "logger", "missing")
	k.Check(len(c.Name) <= 64, "name", "longer than 64 bytes")
	k.Check(c.Tick >= time.Millisecond, "tick", "below 1 ms")
	k.Check(c.Election >= 5*c.Tick, "election", "below five ticks")
	if c.Net != nil {
		u, err := url.Parse(c.Net.URL)
		k.Check(err == nil && u.Host != "", "net.url", "%q is no URL", c.Net.URL)
		k.Check(c.Net.Port != nil, "net.port", "missing")
	}
	return k.Err("quorum.Open", c.Dir)
}

// probe opens the database alone and read-only. Without it a broken file ends the process in a
// goroutine of etcd, and a second process waits for ever.
func probe(dir string) (err error) {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, serr := os.Stat(path); errors.Is(serr, os.ErrNotExist) {
		return nil // a new member, or one that start answers
	}
	defer func() {
		if p := recover(); p != nil {
			err = broken(path, fmt.Errorf("%v", p))
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockWait})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return &domain.Error{
			Op: "quorum.Open", Kind: domain.Locked, Ref: path, Err: err,
			Remedy: "another process has the event log open; stop it first",
		}
	case errors.Is(err, os.ErrPermission):
		return &domain.Error{Op: "quorum.Open", Kind: domain.Denied, Ref: path, Err: err}
	case err != nil:
		return broken(path, err)
	}
	return db.Close()
}

func broken(path string, cause error) error {
	return &domain.Error{
		Op: "quorum.Open", Kind: domain.Corrupt, Ref: path, Err: cause,
		Remedy: "the database file is damaged; restore it from another member or a backup",
	}
}

// alone is what a member of one is told about the cluster.
func (c *Config) alone() string { return c.Name + "=" + c.url() }

func (c *Config) url() string {
	if c.Net == nil {
		return placeholder
	}
	return c.Net.URL
}

// start runs etcd without a listener of its own. initial lists the members, joining says that the
// cluster is there already. The member may write once its ReadyNotify fires.
func start(cfg *Config, initial string, joining bool) (e *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil { // a database that is missing beside its snapshot, for one
			e, err = nil, broken(cfg.Dir, fmt.Errorf("%v", p))
		}
	}()
	u, err := url.Parse(cfg.url())
	if err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name, c.Dir = cfg.Name, cfg.Dir
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{*u}, []url.URL{*u}
	c.InitialCluster = initial
	if joining {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	if cfg.Net != nil {
		c.PeerTLSInfo = cfg.Net.TLS.info()
	}
	c.MaxLearners = LearnersMax
	c.ForceNewCluster = cfg.forced
	c.InitialClusterToken = cfg.ClusterID.String()
	c.TickMs = uint(cfg.Tick.Milliseconds())
	c.ElectionMs = uint(cfg.Election.Milliseconds())
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotCount, snapshotCatchUp
	// The engine counts its file, we what is in use of it: values of many pages leave gaps, 13 % where
	// that was measured. At the default that is the 8 GiB which the engine advises.
	c.QuotaBackendBytes = cfg.Quota / 3 * 4
	c.AutoCompactionMode, c.AutoCompactionRetention = "periodic", "0"
	// Where etcd would end the process, it panics instead, and start makes an error of that.
	log := zap.New(&bridge{to: cfg.Logger}, zap.WithFatalHook(zapcore.WriteThenPanic))
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	e, err = embed.StartEtcd(c)
	if err != nil {
		return nil, &domain.Error{Op: "quorum.Open", Kind: startKind(err), Ref: cfg.Dir, Err: err}
	}
	return e, nil
}

// removedError says that the cluster went on without the member of this node.
type removedError struct{ member uint64 }

// Error implements error.
func (e *removedError) Error() string {
	return fmt.Sprintf("the member %x was removed from the cluster", e.member)
}

// ready waits until a member may write. The error is of kind Unavailable, around a removedError
// where there is no member any more.
func ready(ctx context.Context, cfg *Config, e *embed.Etcd) error {
	var err error
	select {
	case <-e.Server.ReadyNotify():
		return nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = &removedError{uint64(e.Server.MemberID())}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if domain.IsKind(err, domain.Denied) {
		return err
	}
	if id := uint64(e.Server.MemberID()); e.Server.IsIDRemoved(id) {
		err = &removedError{id}
	}
	return &domain.Error{Op: "quorum.Open", Kind: domain.Unavailable, Ref: cfg.Dir, Err: err}
}

// startKind tells damage from other failures.
func startKind(err error) domain.Kind {
	if errors.Is(err, os.ErrPermission) {
		return domain.Denied
	}
	for _, damage := range []error{
		walpb.ErrCRCMismatch, wal.ErrFileNotFound, wal.ErrSnapshotMismatch, wal.ErrSliceOutOfRange,
		snap.ErrCRCMismatch, snap.ErrNoDBSnapshot, snap.ErrEmptySnapshot, io.ErrUnexpectedEOF,
	} {
		if errors.Is(err, damage) {
			return domain.Corrupt
		}
	}
	return domain.Unavailable
}
