package intents_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/intents"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds a test that would otherwise hang. It judges nothing.
const patience = 5 * time.Minute

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func yield(ctx context.Context, _ int) error {
	runtime.Gosched()
	return ctx.Err()
}

// marks are durable as long as the test runs.
type marks struct {
	mu    sync.Mutex
	kept  intents.Mark
	saved int
	fail  func() error
	heard chan struct{} // closed and replaced at every save
}

func (m *marks) Load(context.Context) (intents.Mark, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept, nil
}

func (m *marks) Save(_ context.Context, k intents.Mark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(); err != nil {
			return err
		}
	}
	m.kept = k
	m.saved++
	if m.heard != nil {
		close(m.heard)
	}
	m.heard = make(chan struct{})
	return nil
}

// until waits for a mark that is as it should be.
func (m *marks) until(ctx context.Context, t testing.TB, what string, ok func(intents.Mark) bool) {
	t.Helper()
	for {
		m.mu.Lock()
		if m.heard == nil {
			m.heard = make(chan struct{})
		}
		k, heard := m.kept, m.heard
		m.mu.Unlock()
		if ok(k) {
			return
		}
		select {
		case <-heard:
		case <-ctx.Done():
			t.Fatalf("%s: never; the mark is %+v", what, k)
		}
	}
}

// closeLog closes a log to intents, or opens it again.
func closeLog(t testing.TB, s eventstore.Store) domain.Position {
	t.Helper()
	rev := domain.NoRevision
	for r, err := range s.ReadStream(
		t.Context(), eventstore.EngineStream, domain.NoRevision, eventstore.Backward, 1,
	) {
		if err != nil {
			t.Fatal(err)
		}
		rev = r.Revision
	}
	a, err := s.Append(t.Context(), eventstore.EngineStream, eventstore.At(rev),
		storetest.Propose(fmt.Sprint("engine", rev), 1)...)
	if err != nil {
		t.Fatal(err)
	}
	return a.Position
}

// over joins an embedded log with another that takes intents.
func over(
	t testing.TB, here, there eventstore.Store, change ...func(*intents.Config),
) *intents.Store {
	t.Helper()
	c := intents.Config{
		Embedded: here, Wait: patience,
		Where: func() intents.Where { return intents.Where{Address: "there"} },
		Dial:  func(intents.Where) (eventstore.Store, error) { return kept{there}, nil },
	}
	for _, f := range change {
		f(&c)
	}
	s, err := intents.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// kept is a log that stays open when a store is done with it.
type kept struct{ eventstore.Store }

func (kept) Close() error { return nil }

// carry runs a carrier until the function is called, or the test ends.
func carry(t testing.TB, c *intents.Carrier) (stop func() error) {
	t.Helper()
	ctx, end := context.WithCancel(limited(t))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			end()
			err = <-done
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func inward(
	t testing.TB, here, there eventstore.Store, m *marks, change ...func(*intents.CarrierConfig),
) *intents.Carrier {
	t.Helper()
	c := intents.CarrierConfig{From: there, To: here, Marks: m, Pause: yield}
	for _, f := range change {
		f(&c)
	}
	k, err := intents.Inward(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// lines gives the events of a log's streams, in order, as text.
func lines(
	t testing.TB, s eventstore.Store, mine func(category string) bool,
) map[domain.StreamID][]string {
	t.Helper()
	out := map[domain.StreamID][]string{}
	for r, err := range s.ReadAll(
		t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			t.Fatal(err)
		}
		if mine(r.Stream.Category()) {
			out[r.Stream] = append(out[r.Stream],
				fmt.Sprintf("%d %s %x", r.Revision, r.ID, eventstore.Content(&r.Header, r.Data)))
		}
	}
	return out
}

func equal(t testing.TB, here, there eventstore.Store) {
	t.Helper()
	a, b := lines(t, here, domain.Intent), lines(t, there, domain.Intent)
	if !maps.EqualFunc(a, b, slices.Equal) {
		t.Errorf("the logs hold other intents: here\n%v\nthere\n%v", a, b)
	}
}

// TestCopiedIsAcknowledged proves N1: without a copy there is no answer but that the outcome is
// unknown, a repeat waits for the copy of the first and gives the place in the embedded log, and
// the event stands once in both logs.
func TestCopiedIsAcknowledged(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), memory.New()
	closeLog(t, here)
	hasty := over(t, here, there, func(c *intents.Config) { c.Wait = time.Millisecond })
	ev := storetest.Propose("one", 3)
	_, err := hasty.Append(ctx, "tenant-a", eventstore.NoStream(), ev...)
	if !errors.Is(err, eventstore.ErrUnknownOutcome) {
		t.Fatalf("an append without a copy: %v", err)
	}
	if n := len(lines(t, here, domain.Intent)); n != 0 {
		t.Fatalf("%d streams were written past the other log", n)
	}
	// A command that does not know of it meets a conflict, and no answer before the copy is here.
	_, err = hasty.Append(ctx, "tenant-a", eventstore.NoStream(), storetest.Propose("two", 1)...)
	if !errors.Is(err, eventstore.ErrNoQuorum) {
		t.Errorf("a conflict with what is not copied: %v", err)
	}
	m := &marks{}
	s, stop := over(t, here, there), carry(t, inward(t, here, there, m))
	a, err := s.Append(ctx, "tenant-a", eventstore.NoStream(), ev...)
	if err != nil || !a.Duplicate || a.Last != 2 || a.Position != 4 {
		t.Errorf("the repeat: %+v, %v", a, err)
	}
	var conflict *eventstore.ConflictError
	_, err = s.Append(ctx, "tenant-a", eventstore.NoStream(), storetest.Propose("two", 1)...)
	if !errors.As(err, &conflict) || conflict.Current != 2 {
		t.Errorf("a stale expectation: %v", err)
	}
	a, err = s.Append(ctx, "tenant-a", eventstore.At(2), storetest.Propose("two", 1)...)
	if err != nil || a.Duplicate || a.Last != 3 || a.Position != 5 {
		t.Errorf("the next: %+v, %v", a, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	equal(t, here, there)
}

// TestOthersStayHere proves that what is no intent is decided by the embedded log, with nothing of
// the other log in its way (N5).
func TestOthersStayHere(t *testing.T) {
	here := memory.New()
	closeLog(t, here)
	s := over(t, here, nil, func(c *intents.Config) {
		c.Dial = func(intents.Where) (eventstore.Store, error) {
			return nil, domain.Errorf(domain.Unavailable, "there is none")
		}
	})
	for _, id := range []domain.StreamID{
		"cluster-a", "node-a", "device-a", "membership-a", "plan-a", "decision-a", "volume-a",
		"snapshot-a", "command-a", eventstore.CoordinationStream,
	} {
		if _, err := s.Append(t.Context(), id, eventstore.NoStream(),
			storetest.Propose(string(id), 1)...); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, id := range []domain.StreamID{"tenant-a", "appinstance-a", "user-a", "directory-a"} {
		_, err := s.Append(t.Context(), id, eventstore.NoStream(), storetest.Propose(string(id), 1)...)
		if !domain.IsKind(err, domain.Unavailable) || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestBelatedNode proves N2: a node that has not heard that another log takes intents, or that none
// does any more, decides nothing.
func TestBelatedNode(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), memory.New()
	address := ""
	s := over(t, here, there, func(c *intents.Config) {
		c.Where = func() intents.Where { return intents.Where{Address: address} }
		c.Wait = time.Millisecond
	})
	if _, err := s.Append(ctx, "tenant-a", eventstore.NoStream(),
		storetest.Propose("a", 1)...); err != nil {
		t.Fatal(err)
	}
	closeLog(t, here)
	_, err := s.Append(ctx, "tenant-a", eventstore.At(0), storetest.Propose("b", 1)...)
	if !errors.Is(err, eventstore.ErrElsewhere) || !domain.IsKind(err, domain.Unavailable) {
		t.Errorf("an intent into the closed log: %v", err)
	}
	address = "there"
	closeLog(t, here) // opened again, and this node has not heard
	_, err = s.Append(ctx, "tenant-b", eventstore.NoStream(), storetest.Propose("c", 1)...)
	if !errors.Is(err, eventstore.ErrUnknownOutcome) {
		t.Errorf("an intent for the log that was given up: %v", err)
	}
	if err := inward(t, here, there, &marks{}).Run(ctx); !errors.Is(err, eventstore.ErrElsewhere) {
		t.Errorf("a carrier that has not heard: %v", err)
	}
	if got := lines(t, here, domain.Intent); len(got) != 1 || len(got["tenant-a"]) != 1 {
		t.Errorf("the log holds %v", got)
	}
}

// TestTokens proves that a stale fencing token stops an intent, and that the right one does not
// stand in the logs, where it could not be judged again.
func TestTokens(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), memory.New()
	for i := range 3 {
		if _, err := here.Append(ctx, eventstore.CoordinationStream,
			eventstore.At(domain.Revision(i-1)), storetest.Propose(fmt.Sprint(i), 1)...); err != nil {
			t.Fatal(err)
		}
	}
	closeLog(t, here)
	s := over(t, here, there)
	carry(t, inward(t, here, there, &marks{}))
	ev := storetest.Propose("release", 1)
	ev[0].Token = 1
	if _, err := s.Append(ctx, "tenant-a", eventstore.NoStream(), ev...); !errors.Is(err,
		eventstore.ErrFenced) {
		t.Errorf("a stale token: %v", err)
	}
	ev[0].Token = 2
	if _, err := s.Append(ctx, "tenant-a", eventstore.NoStream(), ev...); err != nil {
		t.Errorf("the token of the term: %v", err)
	}
	if ev[0].Token != 2 {
		t.Error("the caller's event was changed")
	}
	equal(t, here, there)
	for r := range there.ReadStream(ctx, "tenant-a", 0, eventstore.Forward, 1) {
		if r.Token != 0 {
			t.Errorf("token %d in the log", r.Token)
		}
	}
}

// TestCommandAtOnce proves that the events of one command are copied in one append: whoever folds
// the embedded log never sees a part of them (N3).
func TestCommandAtOnce(t *testing.T) {
	ctx := limited(t)
	var mu sync.Mutex
	var sizes []int
	here := memory.New(memory.WithFaults(
		func(s domain.StreamID, ev []eventstore.Proposed) memory.Fault {
			if domain.Intent(s.Category()) {
				mu.Lock()
				defer mu.Unlock()
				sizes = append(sizes, len(ev))
			}
			return memory.None
		},
	))
	there := memory.New()
	closeLog(t, here)
	want := []int{1, 3, eventstore.EventsMax, 2}
	rev := domain.NoRevision
	for i, n := range want {
		a, err := there.Append(ctx, "tenant-a", eventstore.At(rev),
			storetest.Propose(fmt.Sprint(i), n)...)
		if err != nil {
			t.Fatal(err)
		}
		rev = a.Last
	}
	s := over(t, here, there)
	carry(t, inward(t, here, there, &marks{}))
	end := storetest.Propose("end", 1)
	if _, err := s.Append(ctx, "tenant-a", eventstore.At(rev), end...); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(sizes, append(want, 1)) {
		t.Errorf("copied in appends of %v", sizes)
	}
}

// TestStopsInFrontOf proves N4: what contradicts the log, has a gap before it, or is refused by the
// check is not copied, nor anything behind it; the mark says why, until it is well again.
func TestStopsInFrontOf(t *testing.T) {
	good := func(ctx context.Context, t *testing.T, s eventstore.Store, id domain.StreamID) {
		t.Helper()
		if _, err := s.Append(ctx, id, eventstore.NoStream(),
			storetest.Propose(string(id), 1)...); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		spoil func(ctx context.Context, t *testing.T, here, there eventstore.Store)
		says  string
	}{
		"another event": {func(ctx context.Context, t *testing.T, here, there eventstore.Store) {
			good(ctx, t, there, "tenant-bad")
			if _, err := here.Append(ctx, "tenant-bad", eventstore.Copied(domain.NoRevision),
				storetest.Propose("other", 1)...); err != nil {
				t.Fatal(err)
			}
		}, "is another event there"},
		"other content": {func(ctx context.Context, t *testing.T, here, there eventstore.Store) {
			good(ctx, t, there, "tenant-bad")
			ev := storetest.Propose("tenant-bad", 1)
			ev[0].Actor = "user/forger"
			if _, err := here.Append(ctx, "tenant-bad", eventstore.Copied(domain.NoRevision),
				ev...); err != nil {
				t.Fatal(err)
			}
		}, "has another content"},
		"refused": {func(ctx context.Context, t *testing.T, _, there eventstore.Store) {
			good(ctx, t, there, "tenant-refused")
		}, "not of this cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := limited(t)
			here, there := memory.New(), memory.New()
			closeLog(t, here)
			good(ctx, t, there, "tenant-before")
			c.spoil(ctx, t, here, there)
			good(ctx, t, there, "tenant-behind")
			m := &marks{}
			before := lines(t, here, domain.Intent)
			carry(t, inward(t, here, there, m, func(c *intents.CarrierConfig) {
				c.Check = func(r *eventstore.Recorded) error {
					if r.Stream == "tenant-refused" {
						return domain.Errorf(domain.Invalid, "not of this cluster")
					}
					return nil
				}
			}))
			m.until(ctx, t, "trouble", func(k intents.Mark) bool {
				return strings.Contains(k.Trouble, c.says)
			})
			after := lines(t, here, domain.Intent)
			if len(after) != len(before)+1 || len(after["tenant-before"]) != 1 {
				t.Errorf("copied %v", after)
			}
		})
	}
}

// TestGapIsNotCopied proves that an event whose predecessors are in neither log is not copied.
func TestGapIsNotCopied(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), memory.New()
	closeLog(t, here)
	var last domain.Position
	for i := range 3 {
		a, err := there.Append(ctx, "tenant-a", eventstore.At(domain.Revision(i-1)),
			storetest.Propose(fmt.Sprint(i), 1)...)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			last = a.Position
		}
	}
	m := &marks{kept: intents.Mark{Position: last}}
	carry(t, inward(t, here, there, m))
	m.until(ctx, t, "trouble", func(k intents.Mark) bool {
		return strings.Contains(k.Trouble, "events before it")
	})
	if n := len(lines(t, here, domain.Intent)); n != 0 {
		t.Errorf("%d streams were copied", n)
	}
}

// TestMoveUnderLoad proves that a move keeps every acknowledged event while four writers go on: in
// both logs, at the same revision, with the same content; that the digest is that of the log; and
// that behind it the closed log takes intents through the other one alone.
func TestMoveUnderLoad(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), external(t, esdouble.Serve(t, esdouble.New()))
	var mu sync.Mutex
	address := ""
	at := func() intents.Where {
		mu.Lock()
		defer mu.Unlock()
		return intents.Where{Address: address}
	}
	s := over(t, here, there, func(c *intents.Config) { c.Where = at })
	var wg sync.WaitGroup
	acked := make([][]domain.EventID, 4)
	stop, done := make(chan struct{}), make(chan struct{})
	for w := range acked {
		id := domain.StreamID(fmt.Sprintf("tenant-%d", w))
		if w == 3 {
			id = "node-a" // it never waits for the move
		}
		wg.Go(func() {
			rev := domain.NoRevision
			for i := 0; ; i++ {
				ev := storetest.Propose(fmt.Sprint(w, "/", i), i%3+1)
				a, err := s.Append(ctx, id, eventstore.At(rev), ev...)
				for err != nil && domain.IsKind(err, domain.Unavailable) && ctx.Err() == nil {
					runtime.Gosched()
					a, err = s.Append(ctx, id, eventstore.At(rev), ev...)
				}
				if err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				for k := range ev {
					acked[w] = append(acked[w], ev[k].ID)
				}
				rev = a.Last
				select {
				case done <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	more := func(n int) {
		for range n {
			select {
			case <-done:
			case <-ctx.Done():
				t.Fatal("the writers do not go on")
			}
		}
	}
	more(60)
	copies := 0
	moved, err := intents.Move(ctx, intents.MoveConfig{
		Embedded: here, Other: there, Clock: time.Now,
		Close: func(context.Context) (domain.Position, error) { return closeLog(t, here), nil },
		Open:  func(context.Context) error { closeLog(t, here); return nil },
		Progress: func(intents.Progress) { // the log grows half as fast as it is copied
			if copies++; copies%2 == 0 {
				select {
				case <-done:
				default:
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := duplicate.Report{}
	for r, err := range here.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Position > moved.Report.Through {
			break
		}
		want.Events++
	}
	if moved.Report.Events != want.Events || moved.Report.Copied != want.Events || moved.Behind == 0 {
		t.Errorf("moved %+v of %d events", moved, want.Events)
	}
	mu.Lock()
	address = "there"
	mu.Unlock()
	carry(t, inward(t, here, there, &marks{kept: intents.Mark{Position: moved.Behind}}))
	more(60)
	close(stop)
	wg.Wait()
	equal(t, here, there)
	for w, ids := range acked {
		id := domain.StreamID(fmt.Sprintf("tenant-%d", w))
		if w == 3 {
			id = "node-a"
		}
		got := lines(t, here, func(string) bool { return true })[id]
		if len(got) != len(ids) {
			t.Errorf("%s: %d acknowledged, %d there", id, len(ids), len(got))
			continue
		}
		for i := range ids {
			if !strings.Contains(got[i], ids[i].String()) {
				t.Errorf("%s@%d is %s, want %s", id, i, got[i], ids[i])
			}
		}
	}
}

// TestMoveFails proves that intents are open behind a move that failed: because the other log holds
// something else, and because it went away during the last copy.
func TestMoveFails(t *testing.T) {
	for name, c := range map[string]struct {
		there func() eventstore.Store
		kind  domain.Kind
	}{
		"other content": {func() eventstore.Store {
			s := memory.New()
			if _, err := s.Append(t.Context(), "tenant-a", eventstore.NoStream(),
				storetest.Propose("other", 1)...); err != nil {
				t.Fatal(err)
			}
			return s
		}, domain.Mismatch},
		"more than ours": {func() eventstore.Store {
			s := memory.New()
			if _, err := s.Append(t.Context(), "tenant-z", eventstore.NoStream(),
				storetest.Propose("other", 1)...); err != nil {
				t.Fatal(err)
			}
			return s
		}, domain.Mismatch},
		"away": {func() eventstore.Store {
			return memory.New(memory.WithFaults(
				func(s domain.StreamID, _ []eventstore.Proposed) memory.Fault {
					if s == eventstore.EngineStream { // the first of the last copy
						return memory.UnknownLost
					}
					return memory.None
				},
			))
		}, domain.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := limited(t)
			here, there := memory.New(), c.there()
			if _, err := here.Append(ctx, "tenant-a", eventstore.NoStream(),
				storetest.Propose("a", 1)...); err != nil {
				t.Fatal(err)
			}
			_, err := intents.Move(ctx, intents.MoveConfig{
				Embedded: here, Other: there, Clock: time.Now,
				Close: func(context.Context) (domain.Position, error) { return closeLog(t, here), nil },
				Open:  func(context.Context) error { closeLog(t, here); return nil },
			})
			if !domain.IsKind(err, c.kind) {
				t.Errorf("the move: %v", err)
			}
			if _, err := here.Append(ctx, "tenant-a", eventstore.At(0),
				storetest.Propose("b", 1)...); err != nil {
				t.Errorf("an intent behind it: %v", err)
			}
		})
	}
}

// TestDrain proves that the way back takes what the other log decided until then, ends there
// although the other log goes on, and that nothing more comes once the log is open.
func TestDrain(t *testing.T) {
	ctx := limited(t)
	here, there := memory.New(), memory.New()
	closeLog(t, here)
	for i := range 70 {
		id := domain.StreamID(fmt.Sprintf("tenant-%d", i%3))
		if _, err := there.Append(ctx, id, eventstore.At(domain.Revision(i/3-1)),
			storetest.Propose(fmt.Sprint(i), 1)...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := there.Append(ctx, "node-a", eventstore.NoStream(),
		storetest.Propose("copied out", 1)...); err != nil { // which is not to come back
		t.Fatal(err)
	}
	m := &marks{}
	k := inward(t, here, there, m)
	if err := intents.Drain(ctx, k); err != nil {
		t.Fatal(err)
	}
	equal(t, here, there)
	if err := intents.Drain(ctx, k); err != nil { // again is no error
		t.Fatal(err)
	}
	closeLog(t, here)
	if _, err := there.Append(ctx, "tenant-0", eventstore.At(23),
		storetest.Propose("late", 1)...); err != nil {
		t.Fatal(err)
	}
	if err := intents.Drain(ctx, k); !errors.Is(err, eventstore.ErrElsewhere) {
		t.Errorf("a drain into an open log: %v", err)
	}
	if n := len(lines(t, here, domain.Intent)["tenant-0"]); n != 24 {
		t.Errorf("%d events of the stream", n)
	}
}
