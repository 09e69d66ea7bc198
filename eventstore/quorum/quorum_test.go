package quorum

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var cluster = domain.ClusterID{UUID: domain.DeriveUUID(domain.UUID{}, "test cluster")}

func config(dir string) Config {
	return Config{Dir: dir, ClusterID: cluster, Logger: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, config(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var dirs sync.Map // *Store to its folder, so that Reopen finds it

func engine() storetest.Engine {
	of := func(s eventstore.Store) *Store {
		q, _ := s.(*Store)
		return q
	}
	opened := func(t testing.TB, dir string) eventstore.Store {
		s := open(t, dir)
		dirs.Store(s, dir)
		return s
	}
	return storetest.Engine{
		Open: func(t testing.TB) eventstore.Store { return opened(t, t.TempDir()) },
		Reopen: func(t testing.TB, s eventstore.Store) eventstore.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			dir, _ := dirs.Load(of(s))
			return opened(t, fmt.Sprint(dir))
		},
		Flip: func(
			t testing.TB, s eventstore.Store, p domain.Position, bit int,
		) (func() error, func()) {
			q := of(s)
			key, at := stored(t, q, p)
			flip := func() {
				b := []byte(get(t, q, key))
				b[at+bit/8] ^= 1 << (bit % 8)
				put(t, q, key, string(b))
			}
			flip()
			read := func() error { // what a start does, and what an audit does, must agree
				err := loader{keys: q.keys, kv: q.client}.fill(t.Context(), &eventstore.Mirror{})
				if audit := q.Verify(t.Context(), nil); fmt.Sprint(audit) != fmt.Sprint(err) {
					t.Errorf("the start says %v, the audit %v", err, audit)
				}
				return err
			}
			return read, flip
		},
	}
}

// stored tells where a record is in the database: the key, and where it begins in the value.
func stored(t testing.TB, q *Store, p domain.Position) (key string, at int) {
	t.Helper()
	res, err := q.client.Get(t.Context(), q.keys.log(p), clientv3.WithRange(q.keys.logEnd()),
		clientv3.WithLimit(1))
	if err != nil || len(res.Kvs) != 1 {
		t.Fatalf("%v, %+v", err, res)
	}
	last, _ := q.keys.position(string(res.Kvs[0].Key))
	entries, err := split(last, p, res.Kvs[0].Value)
	if err != nil {
		t.Fatal(err)
	}
	at = len(res.Kvs[0].Value)
	for i := len(entries) - 1; i >= 0 && entries[i].At >= p; i-- {
		at -= len(entries[i].Record)
	}
	return string(res.Kvs[0].Key), at
}

func get(t testing.TB, q *Store, key string) string {
	t.Helper()
	res, err := q.client.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Kvs) == 0 {
		return ""
	}
	return string(res.Kvs[0].Value)
}

func put(t testing.TB, q *Store, key, value string) {
	t.Helper()
	if _, err := q.client.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

func add(
	t testing.TB, q *Store, id domain.StreamID, e eventstore.Expect, seed string, n int,
) eventstore.Appended {
	t.Helper()
	a, err := q.Append(t.Context(), id, e, storetest.Propose(seed, n)...)
	if err != nil {
		t.Fatalf("%s: %v", seed, err)
	}
	return a
}

// foreign appends through another sequencer on the same database, as another member would.
func foreign(t testing.TB, q *Store) *sequencer {
	t.Helper()
	other := newSequencer(q.keys, q.client, &eventstore.Mirror{}, q.past.Per())
	go other.run()
	t.Cleanup(other.close)
	return other
}

func TestConformance(t *testing.T) { storetest.Run(t, engine()) }

// The same random histories leave the same records, hashes included, in memory and in etcd.
func TestMemoryEqualsQuorum(t *testing.T) {
	storetest.Equal(t, storetest.Engine{
		Open: func(testing.TB) eventstore.Store { return memory.New() },
	}, engine())
}

// B appended directly, so what A knows of the stream is old: A must neither refuse the caller who
// knows better nor write over B (E6). A's own repeat is a duplicate although its stream moved on.
func TestStaleHeadMap(t *testing.T) {
	a := open(t, t.TempDir())
	add(t, a, "s-1", eventstore.NoStream(), "one", 5)
	b := foreign(t, a)
	if _, err := b.append(
		t.Context(), "s-1", eventstore.At(4), storetest.Propose("b", 1),
	); err != nil {
		t.Fatal(err)
	}
	if got := add(t, a, "s-1", eventstore.At(5), "two", 1); got.Position != 7 || got.Last != 6 {
		t.Fatalf("%+v", got)
	}
	if got := add(t, a, "s-1", eventstore.NoStream(), "one", 5); !got.Duplicate || got.Position != 5 {
		t.Fatalf("%+v", got)
	}
	if _, err := b.append(
		t.Context(), "s-2", eventstore.NoStream(), storetest.Propose("c", 1),
	); err != nil {
		t.Fatal(err)
	}
	// A conflict that only B's events make is answered with the truth.
	_, err := a.Append(t.Context(), "s-2", eventstore.NoStream(), storetest.Propose("d", 1)...)
	var conflict *eventstore.ConflictError
	if !errors.As(err, &conflict) || conflict.Current != 0 {
		t.Fatal(err)
	}
	if head, err := a.Head(t.Context()); err != nil || head.Position != 8 {
		t.Fatalf("%+v, %v", head, err)
	}
	if err := a.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// B closed the log to intents, or opened it, and A has not heard: A neither takes an intent into a
// closed log nor refuses one that an open log takes (E6, E8).
func TestStaleEngine(t *testing.T) {
	a := open(t, t.TempDir())
	b := foreign(t, a)
	turn := func(rev domain.Revision) {
		t.Helper()
		if _, err := b.append(t.Context(), eventstore.EngineStream, eventstore.At(rev-1),
			storetest.Propose(fmt.Sprint("engine", rev), 1)); err != nil {
			t.Fatal(err)
		}
	}
	for term := range domain.Revision(3) {
		turn(2 * term)
		_, err := a.Append(t.Context(), "tenant-1", eventstore.At(2*term-1),
			storetest.Propose(fmt.Sprint("direct", term), 1)...)
		if !errors.Is(err, eventstore.ErrElsewhere) {
			t.Fatalf("an intent into a log that B closed: %v", err)
		}
		add(t, a, "tenant-1", eventstore.Copied(2*term-1), fmt.Sprint("copy", term), 1)
		turn(2*term + 1)
		add(t, a, "tenant-1", eventstore.At(2*term), fmt.Sprint("open", term), 1)
	}
	if err := a.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// A reader of A hears of what B appended once it asks for the head.
func TestHeadSeesForeignAppend(t *testing.T) {
	a := open(t, t.TempDir())
	if _, err := foreign(t, a).append(
		t.Context(), "s-1", eventstore.NoStream(), storetest.Propose("b", 2),
	); err != nil {
		t.Fatal(err)
	}
	if head, err := a.Head(t.Context()); err != nil || head.Position != 2 || a.mirror.Head() != head {
		t.Fatalf("%+v, %v", head, err)
	}
}

// Writers of two members collide on the tail and still leave one gapless chain with each event
// once.
func TestTwoSequencers(t *testing.T) {
	a := open(t, t.TempDir())
	b := foreign(t, a)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for r := range 10 {
				id, expect := domain.StreamID(fmt.Sprintf("w-%d", w)), eventstore.At(domain.Revision(r-1))
				ev := storetest.Propose(fmt.Sprintf("%s/%d", id, r), 1)
				for {
					var err error
					if w%2 == 0 {
						_, err = a.Append(t.Context(), id, expect, ev...)
					} else {
						_, err = b.append(t.Context(), id, expect, ev)
					}
					if err == nil {
						break
					}
					if !errors.Is(err, eventstore.ErrNoQuorum) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if head, err := a.Head(t.Context()); err != nil || head.Position != 40 {
		t.Fatalf("%+v, %v", head, err)
	}
	if err := a.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// An append loses its tail to other writers TailRetryMax times and still succeeds; once more and it
// is told that nothing was written.
func TestTailRetryMax(t *testing.T) {
	q := open(t, t.TempDir())
	b, real := foreign(t, q), q.seq.commit
	for extra, want := range map[int]error{0: nil, 1: eventstore.ErrNoQuorum} {
		lost := 0
		q.seq.commit = func(ctx context.Context, x *txn) (*clientv3.TxnResponse, error) {
			if lost++; lost <= eventstore.TailRetryMax+extra {
				ev := storetest.Propose(fmt.Sprint("b", extra, lost), 1)
				if _, err := b.append(ctx, "b-1", eventstore.Any(), ev); err != nil {
					return nil, err
				}
			}
			return real(ctx, x)
		}
		id := domain.StreamID(fmt.Sprintf("a-%d", extra))
		_, err := q.Append(t.Context(), id, eventstore.NoStream(), storetest.Propose(string(id), 1)...)
		if !errors.Is(err, want) || want != nil && q.mirror.StreamHead(id).Revision >= 0 {
			t.Errorf("%d losses: %v", eventstore.TailRetryMax+extra, err)
		}
	}
}

// The audit beside appends finds nothing wrong.
func TestVerifyUnderLoad(t *testing.T) {
	q := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for r := 0; ctx.Err() == nil; r++ {
				id := domain.StreamID(fmt.Sprintf("s-%d-%d", w, r/3))
				add(t, q, id, eventstore.Any(), fmt.Sprint(w, r), 1)
			}
		})
	}
	for range 20 {
		if err := q.Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
}

// A lost answer, before or after the commit, ends in one effect: the same transaction again (Q3).
func TestLostAnswers(t *testing.T) {
	q := open(t, t.TempDir())
	add(t, q, "s-1", eventstore.NoStream(), "start", 1)
	real := q.seq.commit
	for i, lose := range []func(context.Context, *txn) error{
		func(context.Context, *txn) error { return rpctypes.ErrTimeout },
		func(ctx context.Context, x *txn) error {
			_, err := real(ctx, x)
			return errors.Join(err, errLost)
		},
		func(ctx context.Context, x *txn) error { // committed, and another member followed
			if _, err := real(ctx, x); err != nil {
				return err
			}
			_, err := foreign(t, q).append(ctx, "other-1", eventstore.Any(), storetest.Propose("o", 1))
			return errors.Join(err, errLost)
		},
		func(ctx context.Context, x *txn) error { // not committed, and another member came first
			_, err := foreign(t, q).append(ctx, "other-2", eventstore.Any(), storetest.Propose("p", 1))
			return errors.Join(err, errLost)
		},
	} {
		calls := 0
		q.seq.commit = func(ctx context.Context, x *txn) (*clientv3.TxnResponse, error) {
			if calls++; calls == 1 {
				return nil, lose(ctx, x)
			}
			return real(ctx, x)
		}
		got := add(t, q, "s-1", eventstore.At(domain.Revision(i)), fmt.Sprint("lost", i), 1)
		if got.Last != domain.Revision(i+1) || got.Duplicate {
			t.Errorf("case %d: %+v", i, got)
		}
		if err := q.Verify(t.Context(), nil); err != nil {
			t.Errorf("case %d: %v", i, err)
		}
	}
	n := 0
	for range q.ReadStream(t.Context(), "s-1", 0, eventstore.Forward, eventstore.NoLimit) {
		n++
	}
	if n != 5 {
		t.Errorf("%d events, want 5", n)
	}
}

// Two writers build a batch on the same tail that begins with the same event, whose record is then
// the same to the bit, and goes on with another: what a client appends itself, after it sent it to
// a leader that died. The one whose answer is lost must not take the other's batch for its own
// (Q3).
func TestSameFirstOtherRest(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	real, held, release := q.seq.commit, make(chan struct{}), make(chan struct{})
	calls := 0
	q.seq.commit = func(ctx context.Context, x *txn) (*clientv3.TxnResponse, error) {
		switch calls++; calls {
		case 1:
			held <- struct{}{}
			<-release
		case 2: // x and y, as the other has x and z
			b := foreign(t, q)
			for _, id := range []string{"x", "z"} {
				if _, err := b.append(ctx, domain.StreamID(id+"-1"), eventstore.NoStream(),
					storetest.Propose(id, 1)); err != nil {
					return nil, err
				}
			}
			return nil, errLost
		}
		return real(ctx, x)
	}
	answers := make(chan error, 3)
	put := func(id string) {
		_, err := q.Append(t.Context(), domain.StreamID(id+"-1"), eventstore.NoStream(),
			storetest.Propose(id, 1)...)
		answers <- err
	}
	go put("first")
	<-held
	go put("x")
	for len(q.seq.queue) < 1 {
		runtime.Gosched()
	}
	go put("y")
	for len(q.seq.queue) < 2 {
		runtime.Gosched()
	}
	close(release)
	for range 3 {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, dir) // what the database holds, not what the writer thinks
	var got []domain.StreamID
	for r, err := range q.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Stream)
	}
	if want := []domain.StreamID{"first-1", "x-1", "z-1", "y-1"}; !slices.Equal(got, want) {
		t.Errorf("the log has %v, want %v", got, want)
	}
}

var errLost = errors.New("the connection broke")

// One caller's deadline ends its wait, not its batch: it hears that nobody knows, the others get
// their answers, and its repeat is a duplicate. A caller whose append was not begun is told so.
func TestCallerDeadlineKeepsBatch(t *testing.T) {
	q := open(t, t.TempDir())
	real, held, release := q.seq.commit, make(chan struct{}), make(chan struct{})
	q.seq.commit = func(ctx context.Context, x *txn) (*clientv3.TxnResponse, error) {
		held <- struct{}{}
		<-release
		return real(ctx, x)
	}
	ctx, cancel := context.WithCancel(t.Context())
	impatient, queued, patient := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := q.Append(ctx, "a-1", eventstore.NoStream(), storetest.Propose("a", 1)...)
		impatient <- err
	}()
	<-held // the batch with a-1 is under way; what comes now waits
	go func() {
		_, err := q.Append(ctx, "b-1", eventstore.NoStream(), storetest.Propose("b", 1)...)
		queued <- err
	}()
	go func() {
		_, err := q.Append(t.Context(), "c-1", eventstore.NoStream(), storetest.Propose("c", 1)...)
		patient <- err
	}()
	for len(q.seq.queue) < 2 { // both stand in the queue before the deadline passes
		runtime.Gosched()
	}
	cancel()
	if err := <-impatient; !errors.Is(err, eventstore.ErrUnknownOutcome) {
		t.Errorf("in flight: %v", err)
	}
	if err := <-queued; domain.KindOf(err) != domain.Aborted {
		t.Errorf("in the queue: %v", err)
	}
	release <- struct{}{}
	<-held
	release <- struct{}{}
	if err := <-patient; err != nil {
		t.Error(err)
	}
	q.seq.commit = real
	if got := add(t, q, "a-1", eventstore.NoStream(), "a", 1); !got.Duplicate {
		t.Errorf("%+v", got)
	}
	if got := add(t, q, "b-1", eventstore.NoStream(), "b", 1); got.Duplicate {
		t.Errorf("%+v", got)
	}
}

// Close while an answer is missing: the caller hears that nobody knows, and nothing hangs.
func TestCloseWithOutcomeUnknown(t *testing.T) {
	q := open(t, t.TempDir())
	tried := make(chan struct{}, 100)
	q.seq.commit = func(context.Context, *txn) (*clientv3.TxnResponse, error) {
		tried <- struct{}{}
		return nil, errLost
	}
	got := make(chan error, 1)
	go func() {
		ev := storetest.Propose("a", 1)
		_, err := q.Append(t.Context(), "a-1", eventstore.NoStream(), ev...)
		got <- err
	}()
	<-tried
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, eventstore.ErrUnknownOutcome) {
		t.Fatal(err)
	}
}

// A refusal of the engine is definite and typed.
func TestEngineRefuses(t *testing.T) {
	q := open(t, t.TempDir())
	real := q.seq.commit
	for cause, want := range map[error]error{
		rpctypes.ErrNoSpace: eventstore.ErrNoSpace, rpctypes.ErrRequestTooLarge: eventstore.ErrTooLarge,
	} {
		q.seq.commit = func(context.Context, *txn) (*clientv3.TxnResponse, error) { return nil, cause }
		_, err := q.Append(t.Context(), "a-1", eventstore.NoStream(), storetest.Propose("a", 1)...)
		if !errors.Is(err, want) {
			t.Errorf("%v: %v", cause, err)
		}
	}
	q.seq.commit = real
	add(t, q, "a-1", eventstore.NoStream(), "a", 1)
}

// The same append queued twice while another is in flight: one is stored, the other learns of it.
func TestTwinsInTheQueue(t *testing.T) {
	q := open(t, t.TempDir())
	real, held, release := q.seq.commit, make(chan struct{}), make(chan struct{})
	var first sync.Once
	q.seq.commit = func(ctx context.Context, x *txn) (*clientv3.TxnResponse, error) {
		first.Do(func() {
			close(held)
			<-release
		})
		return real(ctx, x)
	}
	answers := make(chan eventstore.Appended, 3)
	send := func(id domain.StreamID, e eventstore.Expect) {
		go func() {
			a, err := q.Append(t.Context(), id, e, storetest.Propose(string(id), 2)...)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	send("hold-1", eventstore.NoStream())
	<-held
	send("twin-1", eventstore.Any())
	send("twin-1", eventstore.Any())
	for len(q.seq.queue) < 2 {
		runtime.Gosched()
	}
	close(release)
	duplicates := 0
	for range 3 {
		if a := <-answers; a.Duplicate {
			duplicates++
		}
	}
	if head := q.mirror.Head(); duplicates != 1 || head.Position != 4 {
		t.Errorf("%d duplicates, head %s", duplicates, head.Position)
	}
}

// Every flipped bit of a tail is found.
func TestSmallValues(t *testing.T) {
	tail := []byte(encodeTail(eventstore.Head{Position: 7, Hash: [32]byte{1}}))
	if h, ok := decodeTail(tail); !ok || h.Position != 7 || h.Hash[0] != 1 || len(tail) != 44 {
		t.Errorf("%+v", h)
	}
	for bit := range 8 * len(tail) {
		tail[bit/8] ^= 1 << (bit % 8)
		if _, ok := decodeTail(tail); ok {
			t.Errorf("bit %d of a tail is not found", bit)
		}
		tail[bit/8] ^= 1 << (bit % 8)
	}
}

// The most that one append may hold passes etcd's own limits.
func TestBatchesFitTheEngine(t *testing.T) {
	q := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 200 { // many one-event appends at once: many batches
		id := domain.StreamID(fmt.Sprintf("s-%d", i))
		wg.Go(func() { add(t, q, id, eventstore.NoStream(), string(id), 1) })
	}
	wg.Wait()
	if err := q.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// An append to a coordination stream closes its batch: a plan with the old token queued right
// behind it must not be judged by the token from before.
func TestLeadershipClosesBatch(t *testing.T) {
	q := open(t, t.TempDir())
	add(t, q, eventstore.CoordinationStream, eventstore.NoStream(), "r0", 1)
	add(t, q, eventstore.CoordinationStream, eventstore.At(0), "r1", 1)
	real, held, release := q.seq.commit, make(chan struct{}), make(chan struct{})
	q.seq.commit = func(ctx context.Context, x *txn) (*clientv3.TxnResponse, error) {
		held <- struct{}{}
		<-release
		return real(ctx, x)
	}
	answers := make(chan error, 3)
	send := func(id domain.StreamID, e eventstore.Expect, seed string, token uint64) {
		ev := storetest.Propose(seed, 1)
		ev[0].Token = token
		waiting := len(q.seq.queue)
		go func() {
			_, err := q.Append(t.Context(), id, e, ev...)
			answers <- err
		}()
		if seed == "hold" {
			<-held
			return
		}
		for len(q.seq.queue) == waiting {
			runtime.Gosched()
		}
	}
	send("x-1", eventstore.NoStream(), "hold", 0)
	send(eventstore.CoordinationStream, eventstore.At(1), "r2", 0)
	send("plan-1", eventstore.NoStream(), "plan", 1)
	release <- struct{}{}
	<-held
	release <- struct{}{}
	fenced := 0
	for range 3 {
		if err := <-answers; errors.Is(err, eventstore.ErrFenced) {
			fenced++
		} else if err != nil {
			t.Error(err)
		}
	}
	if fenced != 1 {
		t.Errorf("%d fenced, want the plan", fenced)
	}
	q.seq.commit = real
}

// Each comparison of the transaction alone keeps a broken database from being written over: a tail
// with another hash, and what stands beyond the tail, near or far.
func TestComparisons(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*testing.T, *Store)
		at     domain.Position
	}{
		"tail": {func(t *testing.T, q *Store) {
			put(t, q, q.keys.tail(), encodeTail(eventstore.Head{Position: 3, Hash: [32]byte{1}}))
		}, 3},
		"tail went back": {func(t *testing.T, q *Store) {
			for r, err := range q.ReadAll(t.Context(), 2, eventstore.Backward, domain.Filter{}, 1) {
				if err != nil {
					t.Fatal(err)
				}
				put(t, q, q.keys.tail(), encodeTail(eventstore.Head{Position: 2, Hash: r.Hash}))
			}
		}, 3},
		"tail flipped": {func(t *testing.T, q *Store) {
			b := []byte(get(t, q, q.keys.tail()))
			b[9] ^= 4
			put(t, q, q.keys.tail(), string(b))
		}, 3},
		"record beyond the tail": {func(t *testing.T, q *Store) {
			put(t, q, q.keys.log(4), "garbage")
		}, 4},
		"record far beyond the tail": {func(t *testing.T, q *Store) {
			put(t, q, q.keys.log(9), "garbage")
		}, 9},
	} {
		t.Run(name, func(t *testing.T) {
			q := open(t, t.TempDir())
			add(t, q, "s-1", eventstore.NoStream(), "one", 3)
			c.damage(t, q)
			tail, four := get(t, q, q.keys.tail()), get(t, q, q.keys.log(4))
			_, err := q.Append(t.Context(), "s-1", eventstore.At(2), storetest.Propose("two", 1)...)
			var corrupt *eventstore.CorruptError
			if !errors.As(err, &corrupt) || corrupt.Position != c.at {
				t.Errorf("append: %v", err)
			}
			// A tail that does not verify says nothing about what became of the append.
			if errors.Is(err, eventstore.ErrUnknownOutcome) != (name == "tail flipped") {
				t.Errorf("append: %v", err)
			}
			if get(t, q, q.keys.tail()) != tail || get(t, q, q.keys.log(4)) != four {
				t.Error("the damaged database was written to")
			}
			if err := q.Verify(t.Context(), nil); !errors.As(err, &corrupt) || corrupt.Position != c.at {
				t.Errorf("verify: %v", err)
			}
		})
	}
}

// A bit flipped in a stored record: the log opens degraded, gives what lies before, then the error
// that names the place, to every kind of reader, and takes no append.
func TestOpensDegraded(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	for i := range 5 {
		add(t, q, "s-1", eventstore.At(domain.Revision(i-1)), fmt.Sprint(i), 1)
	}
	b := []byte(get(t, q, q.keys.log(3)))
	b[200] ^= 8
	put(t, q, q.keys.log(3), string(b))
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, dir)
	check := func(what string, err error) {
		t.Helper()
		var corrupt *eventstore.CorruptError
		if !errors.As(err, &corrupt) || corrupt.Position != 3 || domain.KindOf(err) != domain.Corrupt {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("health", q.Health())
	_, err := q.Append(t.Context(), "s-2", eventstore.NoStream(), storetest.Propose("n", 1)...)
	check("append", err)
	_, err = q.Head(t.Context())
	check("head", err)
	check("verify", q.Verify(t.Context(), nil))
	n := 0
	for _, err := range q.ReadAll(
		t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if n++; n == 3 {
			check("read all", err)
		}
	}
	for _, err := range q.ReadStream(t.Context(), "s-1", 2, eventstore.Forward, eventstore.NoLimit) {
		check("read stream", err)
		n++
	}
	if n != 4 {
		t.Errorf("%d steps, want 2 events and 2 errors", n)
	}
	sub, err := q.Subscribe(t.Context(), 2, domain.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = sub.Next(t.Context())
	check("next", err)
}

// A record that is missing is named.
func TestMissingRecord(t *testing.T) {
	q := open(t, t.TempDir())
	for i := range 5 {
		add(t, q, "s-1", eventstore.At(domain.Revision(i-1)), fmt.Sprint(i), 1)
	}
	if _, err := q.client.Delete(t.Context(), q.keys.log(4)); err != nil {
		t.Fatal(err)
	}
	var corrupt *eventstore.CorruptError
	for what, err := range map[string]error{
		"verify": q.Verify(t.Context(), nil),
		"start":  loader{keys: q.keys, kv: q.client}.fill(t.Context(), &eventstore.Mirror{}),
	} {
		if !errors.As(err, &corrupt) || corrupt.Position != 4 {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// More records than a page, and the audit hears of each in order.
func TestVerifyProgress(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	rev := domain.NoRevision
	for rev < 2*pageMax {
		rev = add(t, q, "s-1", eventstore.At(rev), fmt.Sprint(rev), 100).Last
	}
	_ = q.Close()
	q = open(t, dir)
	last := domain.Position(0)
	if err := q.Verify(t.Context(), func(p domain.Position) {
		if p != last+1 {
			t.Fatalf("%s after %s", p, last)
		}
		last = p
	}); err != nil || last != domain.Position(rev+1) {
		t.Fatalf("%v at %s", err, last)
	}
}

// A folder that another store holds, a broken database, a folder of another cluster, a bad setting.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	add(t, q, "s-1", eventstore.NoStream(), "x", 1)
	if _, err := Open(t.Context(), config(dir)); domain.KindOf(err) != domain.Locked {
		t.Errorf("a second store: %v", err)
	}
	_ = q.Close()
	other := config(dir)
	other.ClusterID = domain.ClusterID{UUID: domain.DeriveUUID(domain.UUID{}, "another")}
	if _, err := Open(t.Context(), other); domain.KindOf(err) != domain.Invalid ||
		!strings.Contains(err.Error(), "another cluster") {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := Open(t.Context(), Config{}); len(domain.ViolationsOf(err)) != 3 {
		t.Errorf("an empty configuration: %v", err)
	}
	file := filepath.Join(dir, "member", "snap", "db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, len(whole)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), config(dir)); domain.KindOf(err) != domain.Corrupt {
		t.Errorf("a broken database: %v", err)
	}
}

// A flipped bit in etcd's own write-ahead log is a typed error.
func TestBrokenWAL(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	add(t, q, "s-1", eventstore.NoStream(), "x", 1)
	_ = q.Close()
	names, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), formatValue)
	if at < 0 {
		t.Fatal("the write-ahead log does not hold what was written")
	}
	b[at] ^= 1
	if err := os.WriteFile(names[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), config(dir)); domain.KindOf(err) != domain.Corrupt {
		t.Fatal(err)
	}
}

// A database that is missing beside etcd's snapshot is a typed error, not the end of the process.
func TestMissingDatabase(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	for i := range snapshotCount + 50 {
		add(t, q, "s-1", eventstore.At(domain.Revision(i-1)), fmt.Sprint(i), 1)
	}
	_ = q.Close()
	if err := os.Remove(filepath.Join(dir, "member", "snap", "db")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), config(dir)); domain.KindOf(err) != domain.Corrupt {
		t.Fatal(err)
	}
}

// A newer format is refused and a database without its mark is named.
func TestFormatMark(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	put(t, q, q.keys.format(), "weft-log 3")
	_ = q.Close()
	if _, err := Open(t.Context(), config(dir)); domain.KindOf(err) != domain.Unsupported {
		t.Fatal(err)
	}
}

// A start says nothing to a quiet logger: no listener, so no warning about one.
func TestQuietStart(t *testing.T) {
	var said bytes.Buffer
	c := config(filepath.Join(t.TempDir(), "made", "here"))
	c.Logger = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for range 2 {
		q, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		add(t, q, "s-1", eventstore.NoStream(), "x", 1)
		_ = q.Close()
	}
	if said.Len() > 0 {
		t.Errorf("it said:\n%s", said.String())
	}
}

// The database is the plain bbolt file that a rescue would open.
func TestDatabaseIsBolt(t *testing.T) {
	dir := t.TempDir()
	_ = open(t, dir).Close()
	path := filepath.Join(dir, "member", "snap", "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
}
