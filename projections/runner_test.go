package projections_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/projections"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type happened struct {
	N int `msgpack:"n,omitempty"`
}

func (happened) EventType() string { return "ThingHappened" }

// tally counts events by stream and remembers every position it saw.
type tally struct {
	name    string
	version uint16
	failAt  domain.Position
	counts  map[domain.StreamID]int
	sum     int
	seen    []domain.Position
}

func newTally() *tally {
	return &tally{name: "tally", version: 2, counts: map[domain.StreamID]int{}}
}

func (v *tally) Name() string    { return v.name }
func (v *tally) Version() uint16 { return v.version }

func (v *tally) Apply(r domain.Record) error {
	if r.Position == v.failAt {
		return domain.Errorf(domain.Unsupported, "cannot live with it")
	}
	v.seen = append(v.seen, r.Position)
	if e, ok := r.Event.(happened); ok {
		v.counts[r.Stream]++
		v.sum += e.N
	}
	return nil
}

func (v *tally) Digest(w io.Writer) error {
	for _, s := range slices.Sorted(maps.Keys(v.counts)) {
		if _, err := fmt.Fprintf(w, "%s %d\n", s, v.counts[s]); err != nil {
			return err
		}
	}
	return binary.Write(w, binary.LittleEndian, int64(v.sum))
}

// keeping is a tally that can be copied.
type keeping struct{ *tally }

func newKeeping() keeping { return keeping{newTally()} }

func (v keeping) Clone() projections.View {
	c := *v.tally
	c.counts, c.seen = maps.Clone(v.counts), slices.Clone(v.seen)
	return keeping{&c}
}

var _ projections.Keeper = keeping{}

// counting counts the readings of a log.
type counting struct {
	*memory.Store
	reads *atomic.Int64
}

func (c counting) ReadAll(
	ctx context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	c.reads.Add(1)
	return c.Store.ReadAll(ctx, from, d, f, limit)
}

type bench struct {
	store *memory.Store
	reads atomic.Int64
	reg   *codec.Registry
	r     *projections.Runner
}

func newBench(t testing.TB, every uint64, views ...projections.View) *bench {
	b := &bench{store: memory.New(), reg: codec.New()}
	b.reg.Register(happened{}, 1, true)
	b.reg.Optional("Hint")
	r, err := projections.New(projections.Config{
		Store: counting{b.store, &b.reads}, Codec: b.reg, Views: views, KeepEvery: every,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.r = r
	t.Cleanup(func() { _ = r.Close() })
	return b
}

func (b *bench) start(t testing.TB) {
	t.Helper()
	if err := b.r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.r.CaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// add appends n events, in appends of at most 100, round robin over three streams.
func (b *bench) add(t testing.TB, n int) domain.Position {
	t.Helper()
	head, err := b.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := head.Position
	for n > 0 {
		k := min(n, 100)
		ev := storetest.Propose(fmt.Sprintf("at %s", at), k)
		for i := range ev {
			_, ev[i].Data, err = b.reg.Encode(t.Context(), "s-0", happened{N: int(at)%7 + i})
			if err != nil {
				t.Fatal(err)
			}
		}
		id := domain.StreamID(fmt.Sprintf("s-%d", int(at)%3))
		a, err := b.store.Append(t.Context(), id, eventstore.Any(), ev...)
		if err != nil {
			t.Fatal(err)
		}
		at, n = a.Position, n-k
	}
	return at
}

// Every view sees every record once and in order, from before the start and after it (P1).
func TestOrder(t *testing.T) {
	one, two := newTally(), newTally()
	two.name = "two"
	b := newBench(t, 0, one, two)
	b.add(t, 250)
	b.start(t)
	to := b.add(t, 250)
	if err := b.r.Wait(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if err := b.r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, v := range []*tally{one, two} {
		for i, p := range v.seen {
			if p != domain.Position(i+1) {
				t.Fatalf("%s saw %s as number %d", v.name, p, i+1)
			}
		}
		if len(v.seen) != 500 {
			t.Errorf("%s saw %d", v.name, len(v.seen))
		}
	}
}

// A view folded anew, in this runner and in another, has the hash of the live one (P4).
func TestRebuiltEqualsLive(t *testing.T) {
	b := newBench(t, 0, newTally())
	b.add(t, 300)
	b.start(t)
	if err := b.r.Wait(t.Context(), b.add(t, 77)); err != nil {
		t.Fatal(err)
	}
	live, at, err := b.r.Hash("tally")
	if err != nil {
		t.Fatal(err)
	}
	again, cp, err := projections.Rebuild(t.Context(), b.r, newTally)
	if err != nil || cp != at {
		t.Fatalf("%+v, want %+v, %v", cp, at, err)
	}
	if sum, err := projections.StateHash(again); err != nil || sum != live {
		t.Errorf("rebuilt state differs, %v", err)
	}
	other, err := projections.New(projections.Config{
		Store: b.store, Codec: b.reg, Views: []projections.View{newTally()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := errors.Join(other.Start(t.Context()), other.CaughtUp(t.Context())); err != nil {
		t.Fatal(err)
	}
	if sum, _, err := other.Hash("tally"); err != nil || sum != live {
		t.Errorf("another runner's state differs, %v", err)
	}
	again.sum++
	if sum, _ := projections.StateHash(again); sum == live {
		t.Error("the hash does not see a change")
	}
	if _, _, err := b.r.Hash("none"); domain.KindOf(err) != domain.NotFound {
		t.Error(err)
	}
}

// A replay follows from the log alone: at each position its hash is that of a view folded there
// from kept states, two replays agree, and another position gives another hash (P4).
func TestReplay(t *testing.T) {
	b := newBench(t, 50, newKeeping())
	b.add(t, 300)
	b.start(t)
	if err := b.r.Wait(t.Context(), 300); err != nil {
		t.Fatal(err)
	}
	seen := map[[32]byte]domain.Position{}
	for _, p := range []domain.Position{0, 1, 49, 50, 51, 299, 300} {
		once, err := projections.Replay(t.Context(), b.r, p, newKeeping())
		if err != nil {
			t.Fatal(err)
		}
		twice, err := projections.Replay(t.Context(), b.r, p, newKeeping())
		if err != nil || once != twice || once.Events != uint64(p) {
			t.Errorf("position %s: %+v, %+v, %v", p, once, twice, err)
		}
		past, _, err := projections.At(t.Context(), b.r, p, newKeeping)
		if err != nil {
			t.Fatal(err)
		}
		if sum, _ := projections.StateHash(past); sum != once.Hash {
			t.Errorf("position %s: the view of the past has another hash", p)
		}
		if q, ok := seen[once.Hash]; ok {
			t.Errorf("positions %s and %s have one hash", p, q)
		}
		seen[once.Hash] = p
	}
	if _, err := projections.Replay(t.Context(), b.r, 301, newKeeping()); !domain.IsKind(err,
		domain.OutOfRange) {
		t.Errorf("beyond the head: %v", err)
	}
}

// Read-your-writes: Wait returns when the views are there, not before, and gives up after its
// bound.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0, newTally())
		b.start(t)
		got := make(chan error, 1)
		go func() { got <- b.r.Wait(context.Background(), 3) }()
		b.add(t, 2)
		synctest.Wait()
		select {
		case err := <-got:
			t.Fatalf("returned early: %v", err)
		default:
		}
		b.add(t, 1)
		if err := <-got; err != nil || b.r.Position() < 3 {
			t.Errorf("%v at %s", err, b.r.Position())
		}
		began := time.Now()
		err := b.r.Wait(context.Background(), 99)
		if domain.KindOf(err) != domain.Unavailable || time.Since(began) != eventstore.LinearizableWait {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := b.r.Wait(ctx, 99); domain.KindOf(err) != domain.Aborted {
			t.Error(err)
		}
		changed := b.r.Changed()
		b.add(t, 1)
		<-changed
		if err := b.r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.r.Wait(context.Background(), 99); !errors.Is(err, eventstore.ErrClosed) {
			t.Error(err)
		}
	})
}

// A view that fails stops alone, at its checkpoint, and says so to those who wait for it (P2, P3).
func TestViewStopsAlone(t *testing.T) {
	bad, good := newTally(), newTally()
	bad.name, bad.failAt = "bad", 5
	b := newBench(t, 0, bad, good)
	b.start(t)
	to := b.add(t, 8)
	if err := b.r.Wait(t.Context(), to, "tally"); err != nil {
		t.Error(err)
	}
	if err := b.r.Wait(t.Context(), to); domain.KindOf(err) != domain.Unsupported {
		t.Error(err)
	}
	if err := b.r.Wait(t.Context(), 4, "bad"); err != nil {
		t.Error(err)
	}
	st := b.r.Status()
	if st[0].Err == nil || st[0].Checkpoint.Position != 4 || st[1].Err != nil ||
		st[1].Checkpoint.Position != 8 || st[1].Checkpoint.Version != 2 {
		t.Errorf("%+v", st)
	}
}

// An event of an unknown type stops the fold when it may be required, and is counted when optional.
func TestUnknownTypes(t *testing.T) {
	b := newBench(t, 0, newTally())
	b.start(t)
	hint := storetest.Propose("hint", 1)
	hint[0].Type = "Hint"
	if _, err := b.store.Append(t.Context(), "s-1", eventstore.NoStream(), hint...); err != nil {
		t.Fatal(err)
	}
	if err := b.r.Wait(t.Context(), b.add(t, 1)); err != nil || b.r.Status()[0].Skipped != 1 {
		t.Errorf("%v, %+v", err, b.r.Status())
	}
	alien := storetest.Propose("alien", 1)
	alien[0].Type = "Alien"
	a, err := b.store.Append(t.Context(), "s-2", eventstore.Any(), alien...)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.r.Wait(t.Context(), a.Position); domain.KindOf(err) != domain.Unsupported {
		t.Error(err)
	}
}

// Damage stops the fold and is told by position.
func TestDamageStopsTheFold(t *testing.T) {
	b := newBench(t, 0, newTally())
	b.add(t, 5)
	b.store.Flip(3, 8*200)
	if err := b.r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var corrupt *eventstore.CorruptError
	if err := b.r.CaughtUp(t.Context()); !errors.As(err, &corrupt) || corrupt.Position != 3 ||
		domain.KindOf(err) != domain.Corrupt {
		t.Fatal(err)
	}
	if p := b.r.Position(); p != 2 {
		t.Errorf("stands at %s", p)
	}
}

// The state at every past position is what a fold up to there gives, with kept states and without.
func TestAt(t *testing.T) {
	b := newBench(t, 10, newKeeping())
	b.add(t, 57)
	b.start(t)
	for p := domain.Position(0); p <= 57; p++ {
		got, at, err := projections.At(t.Context(), b.r, p, newKeeping)
		if err != nil || at.Position != p || len(got.seen) != int(p) {
			t.Fatalf("at %s: %+v, %v", p, at, err)
		}
		want := newTally()
		for r, err := range b.store.ReadAll(
			t.Context(), 0, eventstore.Forward, domain.Filter{}, int(p),
		) {
			if err != nil {
				t.Fatal(err)
			}
			recs, err := b.reg.Decode(r.Header, r.Data)
			if err != nil {
				t.Fatal(err)
			}
			_ = want.Apply(recs[0])
		}
		a, _ := projections.StateHash(got)
		if w, _ := projections.StateHash(want); a != w {
			t.Fatalf("at %s: the state differs", p)
		}
	}
	if _, _, err := projections.At(t.Context(), b.r, 58, newKeeping); domain.KindOf(err) !=
		domain.OutOfRange {
		t.Errorf("beyond the head: %v", err)
	}
}

// TestAtOnce proves that several views of one past position are what each would be by itself, also
// where they begin from different states, and that the log is read once for them.
func TestAtOnce(t *testing.T) {
	b := newBench(t, 10, newKeeping())
	b.add(t, 37)
	b.start(t)
	plain := func() *tally { v := newTally(); v.version = 3; return v }
	for p := domain.Position(0); p <= 10; p++ {
		reads := b.reads.Load()
		got, at, err := projections.AtOnce(t.Context(), b.r, p, plain(), newKeeping(), newKeeping())
		if err != nil || at.Position != p || len(got) != 3 {
			t.Fatalf("at %s: %+v, %v", p, at, err)
		}
		if n := b.reads.Load() - reads; n > 1 {
			t.Errorf("at %s: the log was read %d times", p, n)
		}
		alone, _, err := projections.At(t.Context(), b.r, p, plain)
		if err != nil {
			t.Fatal(err)
		}
		if a, _ := projections.StateHash(alone); a != hashOf(t, got[0]) {
			t.Errorf("at %s: the plain view differs", p)
		}
		one, _, err := projections.At(t.Context(), b.r, p, newKeeping)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := projections.StateHash(one)
		if a != hashOf(t, got[1]) || a != hashOf(t, got[2]) {
			t.Errorf("at %s: the kept views differ", p)
		}
	}
	_, _, err := projections.AtOnce(t.Context(), b.r, 30, newKeeping(), plain())
	if domain.KindOf(err) != domain.TooLarge {
		t.Errorf("one of them is too far from a kept state: %v", err)
	}
	if got, _, err := projections.AtOnce(t.Context(), b.r, 38, newKeeping()); got != nil ||
		domain.KindOf(err) != domain.OutOfRange {
		t.Errorf("beyond the head: %v", err)
	}
}

func hashOf(t *testing.T, v projections.View) [32]byte {
	t.Helper()
	sum, err := projections.StateHash(v)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// A view without kept states is folded up to the bound and no further; a fresh version of a view
// does not begin from the states of another.
func TestAtBound(t *testing.T) {
	b := newBench(t, 10, newKeeping())
	b.add(t, 25)
	b.start(t)
	if _, _, err := projections.At(t.Context(), b.r, 10, newTally); err == nil {
		t.Error("a tally cannot come out of states kept of another type")
	}
	plain := func() *tally { v := newTally(); v.version = 3; return v }
	if v, _, err := projections.At(t.Context(), b.r, 10, plain); err != nil || len(v.seen) != 10 {
		t.Errorf("at the bound: %v", err)
	}
	_, _, err := projections.At(t.Context(), b.r, 11, plain)
	if domain.KindOf(err) != domain.TooLarge {
		t.Errorf("beyond the bound: %v", err)
	}
	if v, _, err := projections.Rebuild(t.Context(), b.r, plain); err != nil || len(v.seen) != 25 {
		t.Errorf("a rebuild has no bound: %v", err)
	}
}

// KeptMax states are kept and the oldest leave.
func TestKeptMax(t *testing.T) {
	b := newBench(t, 10, newKeeping())
	b.add(t, 10*(projections.KeptMax+2))
	b.start(t)
	if _, _, err := projections.At(t.Context(), b.r, 25, newKeeping); domain.KindOf(err) !=
		domain.TooLarge {
		t.Errorf("a state that has left: %v", err)
	}
	if _, _, err := projections.At(t.Context(), b.r, 30, newKeeping); err != nil {
		t.Errorf("the oldest kept: %v", err)
	}
}

// blocking holds its fold until it is released.
type blocking struct {
	*tally
	inside  chan<- struct{}
	release <-chan struct{}
}

func (v blocking) Apply(r domain.Record) error {
	if r.Position == 1 {
		v.inside <- struct{}{}
		<-v.release
	}
	return v.tally.Apply(r)
}

// Two builds run at once, a third is Busy, and there is room again afterwards.
func TestBuildsMax(t *testing.T) {
	b := newBench(t, 0)
	b.add(t, 5)
	b.start(t)
	inside, release := make(chan struct{}), make(chan struct{})
	factory := func() blocking { return blocking{newTally(), inside, release} }
	var wg sync.WaitGroup
	for range projections.BuildsMax {
		wg.Go(func() {
			if _, _, err := projections.At(t.Context(), b.r, 5, factory); err != nil {
				t.Error(err)
			}
		})
	}
	for range projections.BuildsMax {
		<-inside
	}
	if _, _, err := projections.At(t.Context(), b.r, 5, newTally); domain.KindOf(err) != domain.Busy {
		t.Errorf("a third build: %v", err)
	}
	_, _, err := projections.Rebuild(t.Context(), b.r, newTally)
	if domain.KindOf(err) != domain.Busy {
		t.Errorf("a rebuild as third: %v", err)
	}
	close(release)
	wg.Wait()
	if _, _, err := projections.At(t.Context(), b.r, 5, newTally); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	_, err := projections.New(projections.Config{
		Views: []projections.View{newTally(), newTally(), nil},
	})
	if len(domain.ViolationsOf(err)) != 4 {
		t.Error(err)
	}
}

// Views are read and hashed while events come in.
func TestConcurrentUse(t *testing.T) {
	b := newBench(t, 16, newKeeping())
	b.start(t)
	var wg sync.WaitGroup
	wg.Go(func() { b.add(t, 2000) })
	for range 3 {
		wg.Go(func() {
			for {
				changed := b.r.Changed()
				if b.r.Position() == 2000 {
					return
				}
				if _, _, err := b.r.Hash("tally"); err != nil {
					t.Error(err)
				}
				_ = b.r.Status()
				<-changed
			}
		})
	}
	wg.Wait()
	if err := b.r.Wait(t.Context(), 2000); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkFold(b *testing.B) {
	bench := newBench(b, 0, newTally())
	to := bench.add(b, 100_000)
	for b.Loop() {
		v, _, err := projections.At(b.Context(), bench.r, to, newTally)
		if err != nil || len(v.seen) != 100_000 {
			b.Fatal(err)
		}
	}
	b.ReportMetric(100_000*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
