package quorum

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"weft/domain"
)

// Times of a lease.
const (
	// LeaseTTL is how long the cluster believes in a node that says nothing.
	LeaseTTL = 2 * time.Second
	// LeaseEvery is how often a node says that it is there.
	LeaseEvery = 500 * time.Millisecond
	// LeaseSafe is how long a node believes in itself after it sent the last renewal that was
	// answered: the TTL less two per cent for clocks that run apart, less 100 ms.
	LeaseSafe = LeaseTTL - LeaseTTL/50 - 100*time.Millisecond
)

// bootTime is a clock that goes on while the machine sleeps: a node that wakes up must not think
// that no time has passed.
func bootTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // the kernel has had this clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

// Lease is a node's word that it is there: the key node/<id> lives as long as it does. It is
// renewed until Close, or until it is lost.
type Lease struct {
	store *Store
	id    clientv3.LeaseID
	until atomic.Int64 // on bootTime; sent, not received
	lost  chan struct{}
	end   context.CancelFunc
	work  sync.WaitGroup
}

// NodeLease puts the node's key under a lease of its own. The context bounds the call alone.
// Unavailable without a majority.
func (s *Store) NodeLease(ctx context.Context, node domain.NodeID) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	sent := bootTime()
	res, err := s.client.now().Grant(ctx, int64(LeaseTTL/time.Second))
	if err != nil {
		return nil, unavailable(ctx, "quorum.NodeLease", err)
	}
	l := &Lease{store: s, id: res.ID, lost: make(chan struct{})}
	l.until.Store(int64(sent + LeaseSafe))
	_, err = s.client.Put(ctx, s.keys.node(node), "", clientv3.WithLease(l.id))
	if err != nil {
		return nil, unavailable(ctx, "quorum.NodeLease", err)
	}
	life, end := context.WithCancel(s.life)
	l.end = end
	l.work.Go(func() { l.renew(life) })
	return l, nil
}

// renew keeps the lease until its owner's time is over.
func (l *Lease) renew(ctx context.Context) {
	defer close(l.lost)
	for l.Valid() && ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, LeaseEvery)
		sent := bootTime()
		// An endpoint that does not answer costs one turn: the next goes to another one.
		res, err := l.store.client.now().KeepAliveOnce(wait, l.id)
		if err == nil && res.TTL > 0 {
			l.until.Store(int64(sent + LeaseSafe))
			<-wait.Done()
		}
		cancel()
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			l.until.Store(0)
		}
		if err != nil { // not in a spin
			rest, cancel := context.WithTimeout(ctx, memberRest)
			<-rest.Done()
			cancel()
		}
	}
}

// Valid tells whether the cluster must still believe in the node.
func (l *Lease) Valid() bool { return int64(bootTime()) < l.until.Load() }

// Lost gives a channel that closes when the lease is over.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Close gives the lease back, so that the cluster need not wait for its end.
func (l *Lease) Close() {
	l.end()
	l.work.Wait()
	l.until.Store(0)
	ctx, cancel := context.WithTimeout(context.Background(), LeaseEvery)
	defer cancel()
	_, _ = l.store.client.now().Revoke(ctx, l.id) // it ends by itself as well
}

// Campaign returns once the node holds the reconciler's role under its lease, or the lease or the
// context has ended. The role only avoids doubled work: what keeps an old holder from doing harm is
// the token of the term that the holder begins next.
func (s *Store) Campaign(ctx context.Context, l *Lease, node domain.NodeID) error {
	key := s.keys.leader()
	for l.Valid() {
		way, leave, client := s.client.use(ctx)
		err := contend(way, client, l, key, node)
		leave()
		if err == nil {
			return nil
		}
		rest, cancel := context.WithTimeout(ctx, memberRest)
		<-rest.Done()
		cancel()
		if ctx.Err() != nil {
			return aborted(ctx, "quorum.Campaign")
		}
	}
	return domain.Errorf(domain.Stale, "the node's lease has ended")
}

// contend takes the role when it is free, and otherwise waits until it is. Any error: again.
func contend(
	ctx context.Context, client *clientv3.Client, l *Lease, key string, node domain.NodeID,
) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	go func() { // who has lost its lease must not win by it
		select {
		case <-l.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	within, done := context.WithTimeout(ctx, txnWait)
	res, err := client.Txn(within).
		If(clientv3.Compare(clientv3.Version(key), "=", 0)).
		Then(clientv3.OpPut(key, node.String(), clientv3.WithLease(l.id))).
		Else(clientv3.OpGet(key)).Commit()
	done()
	if err != nil {
		return err
	}
	if res.Succeeded {
		return nil
	}
	kvs := res.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) > 0 && kvs[0].Lease == int64(l.id) {
		return nil // an earlier try came through after all
	}
	if len(kvs) > 0 && string(kvs[0].Value) == node.String() {
		return inherit(ctx, client, l, kvs[0])
	}
	for told := range client.Watch(ctx, key, clientv3.WithRev(res.Header.GetRevision()+1)) {
		for _, ev := range told.Events {
			if ev.Type == mvccpb.Event_DELETE {
				return domain.Errorf(domain.Conflict, "the role is free")
			}
		}
	}
	return domain.Errorf(domain.Unavailable, "the watch of the role ended")
}

// inherit takes the role over from an earlier incarnation of the same node, which was killed and
// whose lease has not ended: the node's folder is locked, so it is gone for certain.
func inherit(
	ctx context.Context, client *clientv3.Client, l *Lease, held *mvccpb.KeyValue,
) error {
	ctx, done := context.WithTimeout(ctx, txnWait)
	defer done()
	key := string(held.Key)
	res, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", held.ModRevision)).
		Then(clientv3.OpPut(key, string(held.Value), clientv3.WithLease(l.id))).Commit()
	if err != nil {
		return err
	}
	if !res.Succeeded {
		return domain.Errorf(domain.Conflict, "the role changed hands")
	}
	return nil
}

// Alive lists the nodes that hold a lease. Unavailable without a majority.
func (s *Store) Alive(ctx context.Context) ([]domain.NodeID, error) {
	ctx, cancel := context.WithTimeout(ctx, membersWait)
	defer cancel()
	prefix := s.keys.node(domain.NodeID{})
	prefix = prefix[:strings.LastIndexByte(prefix, '/')+1]
	res, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, unavailable(ctx, "quorum.Alive", err)
	}
	var list []domain.NodeID
	for _, kv := range res.Kvs {
		u, err := domain.ParseUUID(strings.TrimPrefix(string(kv.Key), prefix))
		if err == nil {
			list = append(list, domain.NodeID{UUID: u})
		}
	}
	return list, nil
}
