package intents_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/intents"
	"weft/eventstore/kurrent"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

// failing gives a fault to every fifth append of an intent, each kind in turn.
func failing() memory.Option {
	var mu sync.Mutex
	n := 0
	return memory.WithFaults(func(s domain.StreamID, _ []eventstore.Proposed) memory.Fault {
		if !domain.Intent(s.Category()) {
			return memory.None
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; n%5 != 0 {
			return memory.None
		}
		return []memory.Fault{
			memory.Conflict, memory.UnknownApplied, memory.UnknownLost,
		}[n/5%3]
	})
}

// increment does what an Executor does: it reads the end of a stream in the embedded log, appends
// behind it, reads again after a conflict, and repeats what has no known outcome with the same ids.
func increment(
	ctx context.Context, s eventstore.Store, id domain.StreamID, seed string,
) (eventstore.Appended, error) {
	for {
		rev := domain.NoRevision
		for r, err := range s.ReadStream(ctx, id, domain.NoRevision, eventstore.Backward, 1) {
			if err != nil {
				return eventstore.Appended{}, err
			}
			rev = r.Revision
		}
		a, err := s.Append(ctx, id, eventstore.At(rev), storetest.Propose(seed, len(seed)%3+1)...)
		if err == nil || ctx.Err() != nil ||
			!errors.Is(err, eventstore.ErrConflict) && !domain.IsKind(err, domain.Unavailable) {
			return a, err
		}
	}
}

// TestLeaderChanges proves N3 while everything fails that may: two carriers at once, of which one
// is replaced again and again, appends whose outcome is not known in either log, marks that are not
// kept, writers that meet each other. Every acknowledged command stands once, at one revision, in
// both logs.
func TestLeaderChanges(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(failing()), memory.New(failing())
	closeLog(t, here)
	m, saves := &marks{}, 0
	m.fail = func() error { // under the mutex of the marks
		if saves++; saves%3 == 0 {
			return domain.Errorf(domain.Unavailable, "no quorum")
		}
		return nil
	}
	carry(t, inward(t, here, there, m))
	stop, replaced := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(replaced)
		for {
			term, end := context.WithCancel(ctx)
			done := make(chan error, 1)
			k := inward(t, here, there, m)
			go func() { done <- k.Run(term) }()
			select {
			case <-stop:
			case <-func() <-chan struct{} {
				m.mu.Lock()
				defer m.mu.Unlock()
				if m.heard == nil {
					m.heard = make(chan struct{})
				}
				return m.heard
			}():
			}
			end()
			if err := <-done; err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	s := over(t, here, there)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 60 {
				id := domain.StreamID(fmt.Sprintf("tenant-%d", i%3))
				if _, err := increment(ctx, s, id, fmt.Sprint(w, "/", i)); err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-replaced
	m.mu.Lock()
	m.fail = nil
	m.mu.Unlock()
	m.until(ctx, t, "well again", func(k intents.Mark) bool { return k.Trouble == "" })
	equal(t, here, there)
	seen := map[domain.EventID]domain.StreamID{}
	for r := range here.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit) {
		if at, twice := seen[r.ID]; twice {
			t.Errorf("event %s stands in %s and in %s", r.ID, at, r.Stream)
		}
		seen[r.ID] = r.Stream
	}
	for w := range 4 {
		for i := range 60 {
			seed := fmt.Sprint(w, "/", i)
			for _, ev := range storetest.Propose(seed, len(seed)%3+1) {
				if seen[ev.ID] != domain.StreamID(fmt.Sprintf("tenant-%d", i%3)) {
					t.Errorf("command %s was acknowledged and is not there", seed)
				}
			}
		}
	}
}

// external opens a store over an EventStoreDB double.
func external(t testing.TB, s *esdouble.Server) *kurrent.Store {
	t.Helper()
	k, err := kurrent.New(kurrent.Config{
		Connection: "esdb://" + s.Addr + "?tls=false&keepAliveInterval=-1", Unfenced: true,
		Attempts: 2, Pause: yield,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// TestAway proves that an EventStoreDB that is down stops intents with an error that says so, and
// nothing else (N5); that intents go on once it is back; and that the mark tells both.
func TestAway(t *testing.T) {
	ctx := limited(t)
	server := esdouble.Serve(t, esdouble.New())
	here, there := memory.New(), external(t, server)
	closeLog(t, here)
	m := &marks{}
	s := over(t, here, there)
	carry(t, inward(t, here, there, m))
	if _, err := increment(ctx, s, "tenant-a", "a"); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	_, err := s.Append(ctx, "tenant-a", eventstore.At(1), storetest.Propose("b", 2)...)
	if !domain.IsKind(err, domain.Unavailable) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("an intent while it is away: %v", err)
	}
	if _, err := s.Append(ctx, "node-a", eventstore.NoStream(),
		storetest.Propose("n", 1)...); err != nil {
		t.Errorf("fail-over while it is away: %v", err)
	}
	server.Start()
	if _, err := increment(ctx, s, "tenant-a", "b"); err != nil {
		t.Errorf("an intent once it is back: %v", err)
	}
	equal(t, here, there)
}

// TestForeignAppend proves N4 with an EventStoreDB: what somebody else appends to one of our
// streams is reported with its place and not copied, nor anything behind it.
func TestForeignAppend(t *testing.T) {
	ctx := limited(t)
	log := esdouble.New()
	here, there := memory.New(), external(t, esdouble.Serve(t, log))
	closeLog(t, here)
	m := &marks{}
	s := over(t, here, there)
	carry(t, inward(t, here, there, m))
	if _, err := increment(ctx, s, "tenant-a", "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := log.AppendForeign(ctx, "weft.tenant-a", eventstore.Any(), []esdb.Foreign{{
		ID:   domain.EventID{UUID: domain.DeriveUUID(domain.UUID{}, "foreign")},
		Type: "TenantDeleted", ContentType: "application/octet-stream", Data: []byte("x"),
	}}); err != nil {
		t.Fatal(err)
	}
	m.until(ctx, t, "trouble", func(k intents.Mark) bool {
		return strings.Contains(k.Trouble, "tenant-a@2") && strings.Contains(k.Trouble, "not ours")
	})
	if got := lines(t, here, domain.Intent)["tenant-a"]; len(got) != 2 {
		t.Errorf("the log has %v", got)
	}
}

// TestOutward proves that what the embedded log decides is copied to the other one in order,
// once, over restarts, and that no intent is.
func TestOutward(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), external(t, esdouble.Serve(t, esdouble.New()))
	m := &marks{}
	fill := func(from, to int) domain.Position {
		var last domain.Position
		for i := from; i < to; i++ {
			id := domain.StreamID([]string{"node-a", "tenant-a", "volume-a", "node-b"}[i%4])
			a, err := here.Append(ctx, id, eventstore.At(domain.Revision(i/4-1)),
				storetest.Propose(fmt.Sprint("o", i), 1)...)
			if err != nil {
				t.Fatal(err)
			}
			if last = a.Position; i%10 == 0 {
				if last, err = term(ctx, here, i/10); err != nil {
					t.Fatal(err)
				}
			}
		}
		return last
	}
	for round := range 4 {
		k, err := intents.Outward(intents.CarrierConfig{
			From: here, To: there, Marks: m, Pause: yield, Flight: round % 2 * 4,
		})
		if err != nil {
			t.Fatal(err)
		}
		stop := carry(t, k)
		last := fill(40*round, 40*round+40)
		_, err = here.Append(ctx, "node-end", eventstore.At(domain.Revision(round-1)),
			storetest.Propose(fmt.Sprint("end", round), 1)...)
		if err != nil {
			t.Fatal(err)
		}
		others := func(category string) bool { return !domain.Intent(category) }
		for want := len(lines(t, here, others)["node-end"]); len(lines(t, there, others)["node-end"]) <
			want; {
			if ctx.Err() != nil {
				t.Fatal("it is not copied")
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		a, b := lines(t, here, others), lines(t, there, others)
		for id := range a {
			if strings.Join(a[id], "\n") != strings.Join(b[id], "\n") {
				t.Errorf("%s up to %s: here\n%v\nthere\n%v", id, last, a[id], b[id])
			}
		}
		if got := lines(t, there, domain.Intent); len(got) != 0 {
			t.Errorf("intents were copied out: %v", got)
		}
	}
}

// TestOutwardStopsInFrontOf proves that an event which the other log refuses stops the copy in
// front of it, with all before it there, also when it was to go together with others.
func TestOutwardStopsInFrontOf(t *testing.T) {
	for _, flight := range []int{1, 8} {
		ctx := limited(t)
		log := esdouble.New()
		log.AppendMax = 3000
		here, there := memory.New(), external(t, esdouble.Serve(t, log))
		var before domain.Position
		for i := range 30 {
			ev := storetest.Propose(fmt.Sprint("o", i), 1)
			if i == 20 {
				ev[0].Data = make([]byte, 4000)
			}
			a, err := here.Append(ctx, domain.StreamID(fmt.Sprint("node-", i)), eventstore.NoStream(), ev...)
			if err != nil {
				t.Fatal(err)
			}
			if i < 20 {
				before = a.Position
			}
		}
		m := &marks{}
		k, err := intents.Outward(intents.CarrierConfig{
			From: here, To: there, Marks: m, Pause: yield, Flight: flight,
		})
		if err != nil {
			t.Fatal(err)
		}
		stop := carry(t, k)
		m.until(ctx, t, "the refusal", func(k intents.Mark) bool {
			return strings.Contains(k.Trouble, "node-20") && k.Position == before
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
		got := lines(t, there, func(string) bool { return true })
		for i := range 20 {
			if len(got[domain.StreamID(fmt.Sprint("node-", i))]) != 1 {
				t.Errorf("%d in flight: event %d is not there", flight, i)
			}
		}
	}
}

// term begins a term of the reconciler's.
func term(ctx context.Context, s eventstore.Store, n int) (domain.Position, error) {
	a, err := s.Append(ctx, eventstore.CoordinationStream, eventstore.At(domain.Revision(n-1)),
		storetest.Propose(fmt.Sprint("term", n), 1)...)
	return a.Position, err
}
