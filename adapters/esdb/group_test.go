package esdb_test

import (
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	client "github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/adapters/esdb"
	"weft/domain"
)

// enough is a timeout of messages that no test reaches unless it moves the clock.
const enough = int32(30_000) // ms

func groupSettings(change ...func(*client.PersistentSubscriptionSettings)) *client.
	PersistentSubscriptionSettings {
	s := client.SubscriptionSettingsDefault()
	s.MessageTimeout = enough
	for _, f := range change {
		f(&s)
	}
	return &s
}

// group makes a group over $all from the start.
func (r *rig) group(db *client.Client, name string,
	change ...func(*client.PersistentSubscriptionSettings),
) {
	r.t.Helper()
	err := db.CreatePersistentSubscriptionToAll(limited(r.t), name,
		client.PersistentAllSubscriptionOptions{
			Settings: groupSettings(change...), StartFrom: client.Start{},
		})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) consume(
	db *client.Client, name string, window uint32,
) *client.PersistentSubscription {
	r.t.Helper()
	sub, err := db.SubscribeToPersistentSubscriptionToAll(limited(r.t), name,
		client.SubscribeToPersistentSubscriptionOptions{BufferSize: window})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = sub.Close() })
	return sub
}

// next gives the next event of a consumer, and how often it was delivered before.
func next(t *testing.T, sub *client.PersistentSubscription) (*client.ResolvedEvent, int) {
	t.Helper()
	for {
		e := sub.Recv()
		if e.SubscriptionDropped != nil {
			t.Fatalf("dropped: %v", e.SubscriptionDropped.Error)
		}
		if e.EventAppeared != nil {
			return e.EventAppeared.Event, e.EventAppeared.RetryCount
		}
	}
}

func position(e *client.ResolvedEvent) uint64 { return e.OriginalEvent().Position.Commit }

// expect reads so many events, wants them to begin at a position, and answers each.
func expect(t *testing.T, sub *client.PersistentSubscription, from, n uint64, answer bool) {
	t.Helper()
	for i := range n {
		e, _ := next(t, sub)
		if position(e) != from+i {
			t.Fatalf("position %d, want %d", position(e), from+i)
		}
		if !answer {
			continue
		}
		if err := sub.Ack(e); err != nil {
			t.Fatal(err)
		}
	}
}

// info waits until what the server tells of a group is as a test wants it.
func (r *rig) info(
	db *client.Client, name string, ok func(*client.PersistentSubscriptionInfo) bool,
) {
	r.t.Helper()
	ctx := limited(r.t)
	var last *client.PersistentSubscriptionInfo
	for {
		i, err := db.GetPersistentSubscriptionInfoToAll(ctx, name,
			client.GetPersistentSubscriptionOptions{})
		if err != nil {
			r.t.Fatalf("%v; was %+v", err, last)
		}
		if last = i; ok(i) {
			return
		}
	}
}

// TestGroupResumes proves that what was acknowledged before a server ends is not delivered again,
// and that all else is, by the server that comes after it; also where nothing was acknowledged.
func TestGroupResumes(t *testing.T) {
	r := serve(t, nil)
	r.fill(20)
	db := r.dial(adminToken)
	r.group(db, "audit")
	sub := r.consume(db, "audit", 5)
	expect(t, sub, 1, 8, true)
	expect(t, sub, 9, 2, false)
	r.info(db, "audit", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.TotalItems == 13
	})
	r.stop()
	r = serve(t, r)
	db = r.dial(adminToken)
	expect(t, r.consume(db, "audit", 5), 9, 12, true)
	r.info(db, "audit", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.OutstandingMessagesCount == 0
	})
	r.stop()
	r = serve(t, r)
	r.fill(2)
	expect(t, r.consume(r.dial(adminToken), "audit", 5), 21, 2, true)
}

// TestCursorNotBeyondAHole proves that an event acknowledged out of order does not take the cursor
// past one that was not.
func TestCursorNotBeyondAHole(t *testing.T) {
	r := serve(t, nil)
	r.fill(6)
	db := r.dial(adminToken)
	r.group(db, "holes")
	sub := r.consume(db, "holes", 10)
	var held []*client.ResolvedEvent
	for range 6 {
		e, _ := next(t, sub)
		held = append(held, e)
	}
	if err := sub.Ack(held[0], held[1], held[3], held[5]); err != nil {
		t.Fatal(err)
	}
	r.info(db, "holes", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.OutstandingMessagesCount == 2
	})
	r.stop()
	r = serve(t, r)
	expect(t, r.consume(r.dial(adminToken), "holes", 10), 3, 4, true)
}

// TestNack proves what each answer does: retry delivers again with a count, too many retries park,
// park sets aside and replay brings back, skip forgets.
func TestNack(t *testing.T) {
	r := serve(t, nil)
	r.fill(4)
	db := r.dial(adminToken)
	r.group(db, "nack", func(s *client.PersistentSubscriptionSettings) { s.MaxRetryCount = 2 })
	sub := r.consume(db, "nack", 1)
	nack := func(want uint64, retries int, a client.NackAction) {
		t.Helper()
		e, n := next(t, sub)
		if position(e) != want || n != retries {
			t.Fatalf("position %d retry %d, want %d retry %d", position(e), n, want, retries)
		}
		if err := sub.Nack("because", a, e); err != nil {
			t.Fatal(err)
		}
	}
	nack(1, 0, client.NackActionRetry)
	nack(1, 1, client.NackActionRetry)
	nack(1, 2, client.NackActionRetry) // once too often: parked
	nack(2, 0, client.NackActionPark)
	nack(3, 0, client.NackActionSkip)
	expect(t, sub, 4, 1, true)
	r.info(db, "nack", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.ParkedMessagesCount == 2 && i.Stats.OutstandingMessagesCount == 0
	})
	_ = sub.Close()
	err := db.ReplayParkedMessagesToAll(limited(t), "nack", client.ReplayParkedMessagesOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.fill(1)
	sub = r.consume(db, "nack", 1)
	expect(t, sub, 1, 2, true)
	expect(t, sub, 5, 1, true)
	r.info(db, "nack", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.ParkedMessagesCount == 0 && i.Stats.OutstandingMessagesCount == 0
	})
	r.stop()
	r = serve(t, r)
	r.fill(1)
	expect(t, r.consume(r.dial(adminToken), "nack", 1), 6, 1, true)
}

// TestMessageTimeout proves that an event which is not acknowledged in time is delivered again.
func TestMessageTimeout(t *testing.T) {
	r := serve(t, nil)
	r.fill(1)
	db := r.dial(adminToken)
	r.group(db, "slow")
	sub := r.consume(db, "slow", 3)
	first, n := next(t, sub)
	if n != 0 {
		t.Errorf("retry %d", n)
	}
	r.clock.move(time.Duration(enough)*time.Millisecond + time.Second)
	again, n := next(t, sub)
	if position(again) != position(first) || n != 1 {
		t.Errorf("position %d retry %d", position(again), n)
	}
}

// TestConsumersShare proves that two consumers get each event once between them, and that one which
// goes leaves what it held to the other.
func TestConsumersShare(t *testing.T) {
	r := serve(t, nil)
	r.fill(40)
	db := r.dial(adminToken)
	r.group(db, "shared")
	one, two := r.consume(db, "shared", 4), r.consume(r.dial(adminToken), "shared", 4)
	next(t, one)
	r.info(db, "shared", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.OutstandingMessagesCount == 8 && len(i.Connections) == 2
	})
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for len(seen) < 40 {
		e, _ := next(t, two)
		seen[position(e)] = true
		if err := two.Ack(e); err != nil {
			t.Fatal(err)
		}
	}
	r.info(db, "shared", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.OutstandingMessagesCount == 0 && len(i.Connections) == 1
	})
}

// TestGroupOfStream proves a group over one stream: it begins at a revision, that one included, and
// follows what is written.
func TestGroupOfStream(t *testing.T) {
	r := serve(t, nil)
	r.fill(9) // volume-a has n = 1, 4, 7
	db := r.dial(adminToken)
	err := db.CreatePersistentSubscription(limited(t), "volume-a", "g",
		client.PersistentStreamSubscriptionOptions{
			Settings: groupSettings(), StartFrom: client.Revision(1),
		})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := db.SubscribeToPersistentSubscription(limited(t), "volume-a", "g",
		client.SubscribeToPersistentSubscriptionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Close() })
	for _, want := range []uint64{4, 7} {
		if e, _ := next(t, sub); position(e) != want {
			t.Errorf("position %d, want %d", position(e), want)
		}
	}
	r.fill(1)
	if e, _ := next(t, sub); position(e) != 10 {
		t.Errorf("position %d, want 10", position(e))
	}
}

// TestGroupFilter proves that a group over $all keeps its filter over a restart.
func TestGroupFilter(t *testing.T) {
	r := serve(t, nil)
	r.fill(9)
	db := r.dial(adminToken)
	err := db.CreatePersistentSubscriptionToAll(limited(t), "quotas",
		client.PersistentAllSubscriptionOptions{
			Settings: groupSettings(), StartFrom: client.Start{},
			Filter: &client.SubscriptionFilter{Type: client.EventFilterType, Regex: "^Quota"},
		})
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	r = serve(t, r)
	sub := r.consume(r.dial(adminToken), "quotas", 2)
	for _, want := range []uint64{3, 6, 9} {
		e, _ := next(t, sub)
		if position(e) != want {
			t.Errorf("position %d, want %d", position(e), want)
		}
		if err := sub.Ack(e); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGroupLife proves the errors that clients tell apart: a group made twice, one that is not
// there, one with all its consumers; and that deleting it ends them.
func TestGroupLife(t *testing.T) {
	r := serve(t, nil)
	r.fill(2)
	db := r.dial(adminToken)
	o := client.PersistentAllSubscriptionOptions{Settings: groupSettings(
		func(s *client.PersistentSubscriptionSettings) { s.MaxSubscriberCount = 1 },
	), StartFrom: client.Start{}}
	if err := db.CreatePersistentSubscriptionToAll(limited(t), "g", o); err != nil {
		t.Fatal(err)
	}
	err := db.CreatePersistentSubscriptionToAll(limited(t), "g", o)
	if codeOf(err) != client.ErrorCodeResourceAlreadyExists {
		t.Errorf("made twice: %v", err)
	}
	_, err = db.SubscribeToPersistentSubscriptionToAll(limited(t), "none",
		client.SubscribeToPersistentSubscriptionOptions{})
	if codeOf(err) != client.ErrorCodeResourceNotFound {
		t.Errorf("not there: %v", err)
	}
	sub := r.consume(db, "g", 1)
	if _, err = db.SubscribeToPersistentSubscriptionToAll(limited(t), "g",
		client.SubscribeToPersistentSubscriptionOptions{}); err == nil {
		t.Error("a second consumer of one")
	}
	foreign := r.dial(acmeToken)
	_, err = foreign.SubscribeToPersistentSubscriptionToAll(limited(t), "g",
		client.SubscribeToPersistentSubscriptionOptions{})
	if codeOf(err) != client.ErrorCodeResourceNotFound {
		t.Errorf("another tenant's: %v", err)
	}
	err = db.DeletePersistentSubscriptionToAll(limited(t), "g",
		client.DeletePersistentSubscriptionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for e := sub.Recv(); e.SubscriptionDropped == nil; e = sub.Recv() {
	}
	list, err := db.ListAllPersistentSubscriptions(limited(t),
		client.ListPersistentSubscriptionsOptions{})
	if err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestLeaderMoves proves that a node which does not lead sends the client to the one that does,
// that consumers are cut when the leadership moves, and that the new leader goes on from where the
// old one was.
func TestLeaderMoves(t *testing.T) {
	var mu sync.Mutex
	leads := 0
	addrs := make([]string, 2)
	members := func() []esdb.Member {
		mu.Lock()
		defer mu.Unlock()
		var out []esdb.Member
		for i, a := range addrs {
			host, port, _ := net.SplitHostPort(a)
			n, _ := strconv.Atoi(port)
			out = append(out, esdb.Member{
				ID: domain.UUID{byte(i + 1)}, Address: host, Port: uint16(n), Leader: i == leads,
				Alive: true,
			})
		}
		return out
	}
	of := func(i int) func(*esdb.Config) {
		return func(c *esdb.Config) { c.Self, c.Members = domain.UUID{byte(i + 1)}, members }
	}
	one := serve(t, nil, of(0))
	addrs[0] = one.addr
	shared := &rig{t: t, store: one.store, cursors: one.cursors, clock: one.clock}
	two := serve(t, shared, of(1))
	mu.Lock()
	addrs[1] = two.addr
	mu.Unlock()
	one.fill(9)
	db := dialTo(t, adminToken, two.addr) // asks the follower first
	create := func() error {
		return db.CreatePersistentSubscriptionToAll(limited(t), "g",
			client.PersistentAllSubscriptionOptions{
				Settings: groupSettings(), StartFrom: client.Start{},
			})
	}
	err := create()
	if codeOf(err) != client.ErrorCodeNotLeader {
		t.Fatalf("the follower says %v", err)
	}
	if err = create(); err != nil {
		t.Fatalf("the leader says %v", err)
	}
	sub := one.consume(db, "g", 2)
	expect(t, sub, 1, 4, true)
	one.info(db, "g", func(i *client.PersistentSubscriptionInfo) bool {
		return i.Stats.TotalItems == 6
	})
	mu.Lock()
	leads = 1
	mu.Unlock()
	for e := sub.Recv(); e.SubscriptionDropped == nil; e = sub.Recv() {
	}
	expect(t, two.consume(dialTo(t, adminToken, two.addr), "g", 10), 5, 5, true)
}
