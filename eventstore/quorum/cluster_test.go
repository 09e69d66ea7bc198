package quorum

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// peer is one node of a cluster in this process. It survives its store.
type peer struct {
	*Store
	t    testing.TB
	cfg  Config
	wall *wall
	stop func() // ends the loop of Follow
}

// patience bounds what must happen in the end. No test measures by it.
const patience = 5 * time.Minute

// newPeer listens and opens a node; with seeds it begins as a client of theirs.
func newPeer(t testing.TB, name string, seeds ...string) *peer {
	t.Helper()
	return newPeerWith(t, name, func(*Config) {}, seeds...)
}

func newPeerWith(t testing.TB, name string, change func(*Config), seeds ...string) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, cfg: config(t.TempDir())}
	p.cfg.Name = name
	change(&p.cfg)
	p.cfg.Net = &Net{URL: "http://" + l.Addr().String(), Seeds: seeds, Port: NewPort()}
	var proto http.Protocols
	proto.SetHTTP1(true)
	proto.SetUnencryptedHTTP2(true)
	p.wall = &wall{port: p.cfg.Net.Port, open: map[net.Conn]uint64{}}
	srv := &http.Server{
		Handler: p.wall, Protocols: &proto,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		p.close()
		_ = srv.Close()
		serving.Wait()
	})
	p.open()
	return p
}

func (p *peer) open() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := Open(ctx, p.cfg)
	if err != nil {
		p.t.Fatalf("%s: %v", p.cfg.Name, err)
	}
	life, end := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() {
		for life.Err() == nil {
			_ = s.Follow(life)
			rest, cancel := context.WithTimeout(life, 20*time.Millisecond)
			<-rest.Done()
			cancel()
		}
	})
	p.Store = s
	p.stop = func() {
		end()
		loop.Wait()
		_ = s.Close()
	}
}

func (p *peer) close() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
}

// until waits for a condition.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for !holds() {
		rest, done := context.WithTimeout(ctx, 10*time.Millisecond)
		<-rest.Done()
		done()
		if ctx.Err() != nil {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// grow makes voters of clients, both at once, and tells how long each part took.
func grow(t testing.TB, by *peer, clients ...*peer) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range clients {
		if err := by.AddLearner(ctx, c.cfg.Net.URL); err != nil {
			t.Fatal(err)
		}
	}
	added := time.Now()
	var ids []uint64
	until(t, "learners in sync", func() bool {
		ids = nil
		members, err := by.Members(ctx)
		if err != nil {
			return false
		}
		for _, m := range members {
			if in, err := by.CaughtUp(ctx, m); m.Learner && in && err == nil {
				ids = append(ids, m.ID)
			}
		}
		return len(ids) == len(clients)
	})
	synced := time.Now()
	var first time.Time
	window := time.Duration(0)
	by.promoted = func() {
		if first.IsZero() {
			first = time.Now()
		}
		window = time.Since(first)
	}
	if err := by.Promote(ctx, ids...); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		until(t, "voter answers for itself", func() bool {
			l := c.local()
			return l != nil && c.client.now() == l.client
		})
	}
	members, _ := by.Members(ctx)
	t.Logf("%d members: added in %s, in sync after %s, promoted in %s, an even number for %s",
		len(members), added.Sub(began).Round(time.Millisecond),
		synced.Sub(added).Round(time.Millisecond), time.Since(synced).Round(time.Millisecond), window)
}

// three is a cluster of three voters.
func three(t testing.TB) [3]*peer {
	t.Helper()
	a := newPeer(t, "a")
	b, c := newPeer(t, "b", a.cfg.Net.URL), newPeer(t, "c", a.cfg.Net.URL)
	grow(t, a, b, c)
	return [3]*peer{a, b, c}
}

// follower gives a voter that does not lead.
func follower(t testing.TB, c [3]*peer) *peer {
	t.Helper()
	var f *peer
	until(t, "a leader known to all", func() bool {
		for _, p := range c {
			if to := p.writer(); to != "" && p.Leader() != "" {
				f = p
			}
		}
		return f != nil
	})
	return f
}

// leads gives the one of some voters that leads, once they agree.
func leads(t testing.TB, list []*peer) *peer {
	t.Helper()
	var found *peer
	until(t, "a leader", func() bool {
		for _, p := range list {
			if p.Leader() != list[0].Leader() {
				return false
			}
			if p.Leader() == p.cfg.Net.URL {
				found = p
			}
		}
		return found != nil
	})
	return found
}

// The suite through a node that does not lead, so that every append is forwarded and every read
// comes from a mirror that a watch feeds.
func TestConformanceThreeVoters(t *testing.T) {
	var peers sync.Map
	of := func(s eventstore.Store) *peer {
		p, _ := peers.Load(s)
		q, _ := p.(*peer)
		return q
	}
	storetest.Run(t, storetest.Engine{
		Open: func(t testing.TB) eventstore.Store {
			f := follower(t, three(t))
			peers.Store(f.Store, f)
			return f.Store
		},
		Reopen: func(_ testing.TB, s eventstore.Store) eventstore.Store {
			p := of(s)
			p.close()
			p.open()
			peers.Store(p.Store, p)
			return p.Store
		},
	})
}

// Growth from one voter to three and to five under load loses nothing, doubles nothing, and leaves
// the same chain on every node, clients included.
func TestGrowthUnderLoad(t *testing.T) {
	a := newPeer(t, "a")
	nodes := []*peer{a}
	for _, name := range []string{"b", "c", "d", "e", "client"} {
		nodes = append(nodes, newPeer(t, name, a.cfg.Net.URL))
	}
	stop := make(chan struct{})
	var load sync.WaitGroup
	acked := make([]domain.Revision, 8)
	for w := range acked {
		acked[w] = domain.NoRevision
		load.Go(func() {
			id := domain.StreamID(fmt.Sprintf("w-%d", w))
			for {
				select {
				case <-stop:
					return
				default:
				}
				rev := acked[w]
				ev := storetest.Propose(fmt.Sprintf("%s/%d", id, rev), 1)
				_, err := nodes[w%len(nodes)].Append(t.Context(), id, eventstore.At(rev), ev...)
				switch {
				case err == nil:
					acked[w]++
				case errors.Is(err, eventstore.ErrUnknownOutcome), errors.Is(err, eventstore.ErrNoQuorum):
				default:
					t.Errorf("%s: %v", id, err)
					return
				}
			}
		})
	}
	grow(t, a, nodes[1], nodes[2])
	grow(t, a, nodes[3], nodes[4])
	for _, n := range nodes[3:5] { // and back: they go on as clients
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := a.Remove(ctx, n.local().id()); err != nil {
			t.Fatal(err)
		}
		cancel()
		until(t, "a client again", func() bool { return n.local() == nil && !n.hasMember() })
	}
	close(stop)
	load.Wait()
	same(t, nodes, acked)
}

// same compares the logs of nodes with each other and with what was acknowledged on w-0, w-1 ...
func same(t testing.TB, nodes []*peer, acked []domain.Revision) {
	t.Helper()
	head, err := nodes[0].Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		got, err := n.Head(t.Context())
		if err != nil || got != head {
			t.Errorf("%s: head %+v, %v, want %+v", n.cfg.Name, got, err, head)
		}
		if err := n.Verify(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", n.cfg.Name, err)
		}
		seen := map[domain.EventID]bool{}
		for r, err := range n.ReadAll(
			t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
		) {
			if err != nil || seen[r.ID] {
				t.Fatalf("%s: %s stands twice, or %v", n.cfg.Name, r.ID, err)
			}
			seen[r.ID] = true
		}
		for w, rev := range acked {
			id := domain.StreamID(fmt.Sprintf("w-%d", w))
			if got := n.mirror.StreamHead(id).Revision; got < rev {
				t.Errorf("%s: %s is at %d, %d was acknowledged", n.cfg.Name, id, got, rev)
			}
		}
	}
	t.Logf("%s events, the same on %d nodes", head.Position, len(nodes))
}

// ended tells whether the member of l stopped by itself. A member hears of its removal in one of
// two ways: by the entry in its log, or, if the leader dropped it before it sent that commit, by
// the answer of the others to its next question, upon which etcd stops.
func ended(l *local) bool {
	select {
	case <-l.etcd.Server.StopNotify():
		return true
	default:
		return false
	}
}

// A client that still knows a node which is a member no more reads past it, whichever it asks
// first: that node's port answers for other things, so its connection stays among those asked.
func TestReadingPassesWhoIsGone(t *testing.T) {
	a := newPeer(t, "a")
	gone := newPeer(t, "gone", a.cfg.Net.URL) // a client of the log, without a member
	appendTo(t, a.Store, 3)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{a.cfg.Net.URL, gone.cfg.Net.URL}, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	l := loader{keys: a.keys, kv: newConn(client)}
	for i := range 40 {
		both, err := l.ends(t.Context())
		if err == nil {
			err = l.stops(t.Context(), both.tail, both.tail)
		}
		if err != nil || both.tail.Position != 3 {
			t.Fatalf("reading %d: %v, %v", i, both.tail, err)
		}
	}
}

// The node that is a member no more may be all that is connected: it refuses within a fraction of a
// millisecond, while the others still shake hands. Reading waits for them.
func TestReadingWaitsForWhoConnectsLate(t *testing.T) {
	const refusals = readTries - 2 // the last two go to one and the other
	a := newPeer(t, "a")
	appendTo(t, a.Store, 3)
	var asked atomic.Int32
	enough := make(chan struct{})
	var proto http.Protocols
	proto.SetUnencryptedHTTP2(true)
	gone := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == refusals {
			close(enough)
		}
		http.Error(w, "no member", http.StatusServiceUnavailable)
	}))
	gone.Config.Protocols = &proto
	gone.Start()
	defer gone.Close()
	late, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: a.cfg.Net.Port, Protocols: &proto}
	var serving sync.WaitGroup
	serving.Go(func() {
		<-enough
		_ = srv.Serve(late)
	})
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://" + late.Addr().String(), gone.URL}, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	l := loader{keys: a.keys, kv: newConn(client)}
	began := time.Now()
	both, err := l.ends(t.Context())
	if err != nil || both.tail.Position != 3 || asked.Load() < refusals {
		t.Fatalf("%v, %v after %d refusals", both.tail, err, asked.Load())
	}
	if rested := time.Since(began); rested < readRest<<refusals-readRest {
		t.Errorf("%d refusals within %v", refusals, rested)
	}
	_ = client.Close()
	_ = srv.Close()
	serving.Wait()
}

// A member whose database is closed panics with a lock held when it is asked how it is: it is not
// asked again. One that panics because it does not know itself yet is.
func TestEndedMemberIsNotAsked(t *testing.T) {
	m := &local{}
	asked := 0
	ask := func(how func()) {
		t.Helper()
		_, err := m.survive(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: statusMethod},
			func(context.Context, any) (any, error) {
				asked++
				how()
				return nil, nil
			})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%v", err)
		}
	}
	ask(func() { panic("failed to find local ID in cluster members") })
	ask(func() { close(chan int(nil)) })
	ask(func() {})
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// A member that was removed a moment ago answers a question after its state by an error: etcd
// panics there, which ended the process.
func TestRemovedMemberSurvivesQuestions(t *testing.T) {
	nodes := three(t)
	gone := follower(t, nodes)
	other := nodes[0]
	if gone == other {
		other = nodes[1]
	}
	gone.stop() // of its loop, so that the member stays up
	gone.stop = nil
	s, err := Open(t.Context(), gone.cfg)
	if err != nil {
		t.Fatal(err)
	}
	gone.Store = s
	gone.stop = func() { _ = s.Close() }
	id := gone.local().id()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := other.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	l := gone.local()
	until(t, "the removal arrived", func() bool { return l.etcd.Server.IsIDRemoved(id) || ended(l) })
	for range 3 {
		if _, err := statusOf(ctx, gone.single(), gone.cfg.Net.URL); err == nil {
			t.Error("a member that is gone says how it is")
		}
		_, _ = statusOf(ctx, other.single(), gone.cfg.Net.URL)
	}
	if l.etcd.Server.IsIDRemoved(id) && l.votes() { // it may have ended before it knew
		t.Error("a member that is gone has a vote")
	}
}
