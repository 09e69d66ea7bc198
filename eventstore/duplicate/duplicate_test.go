package duplicate_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/kurrent"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connect(t testing.TB, log *esdouble.Log) *kurrent.Store {
	t.Helper()
	s, err := kurrent.New(kurrent.Config{
		Connection: "esdb://" + esdouble.Serve(t, log).Addr + "?tls=false&keepAliveInterval=-1",
		Clients:    16,
		Unfenced:   true,
		Pause: func(ctx context.Context, _ int) error {
			runtime.Gosched()
			return ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// history fills a log with events of several streams in turn, with tokens of two terms.
func history(t testing.TB, s eventstore.Store, n int) {
	t.Helper()
	next := map[domain.StreamID]domain.Revision{}
	for i := range n {
		id := domain.StreamID(fmt.Sprintf("s-%d", i*i%7))
		ev := storetest.Propose(fmt.Sprint("h", i), i%5+1)
		if i%20 == 10 {
			id, ev = eventstore.CoordinationStream, storetest.Propose(fmt.Sprint("term", i), 1)
		} else if next[eventstore.CoordinationStream] > 0 {
			ev[0].Token = uint64(next[eventstore.CoordinationStream] - 1)
		}
		a, err := s.Append(t.Context(), id, eventstore.At(next[id]-1), ev...)
		if err != nil {
			t.Fatal(err)
		}
		next[id] = a.Last + 1
	}
}

func run(t testing.TB, from, to eventstore.Store, o duplicate.Options) duplicate.Report {
	t.Helper()
	r, err := duplicate.Run(t.Context(), from, to, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func digest(t testing.TB, s eventstore.Store) duplicate.Report {
	t.Helper()
	r, err := duplicate.Digest(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestContentAcrossEngines copies a history from memory to an EventStoreDB and from there to
// memory: content, ids and revisions are equal in all three, and the last has the very chain of the
// first.
func TestContentAcrossEngines(t *testing.T) {
	first, third := memory.New(), memory.New()
	second := connect(t, esdouble.New())
	history(t, first, 100)
	want := digest(t, first)
	if dry := run(t, first, second, duplicate.Options{DryRun: true}); dry.Copied != want.Events ||
		dry.Digest != want.Digest || digest(t, second).Events != 0 {
		t.Fatalf("dry run: %+v, want %+v", dry, want)
	}
	there := run(t, first, second, duplicate.Options{})
	back := run(t, second, third, duplicate.Options{})
	for _, got := range []duplicate.Report{there, back, digest(t, second), digest(t, third)} {
		if got.Digest != want.Digest || got.Events != want.Events || got.Streams != want.Streams ||
			got.Bytes != want.Bytes {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if again := run(t, first, second, duplicate.Options{}); again.Copied != 0 ||
		again.Present != want.Events {
		t.Errorf("a second run: %+v", again)
	}
	all := duplicate.Options{Flight: 8, Window: 16}
	fourth := connect(t, esdouble.New())
	for _, got := range []duplicate.Report{run(t, second, fourth, all), digest(t, fourth)} {
		if got.Digest != want.Digest || got.Events != want.Events || got.Streams != want.Streams {
			t.Errorf("several in flight: %+v, want %+v", got, want)
		}
	}
	if again := run(t, second, fourth, all); again.Copied != 0 || again.Present != want.Events {
		t.Errorf("a second run of several in flight: %+v", again)
	}
	a, _ := first.Head(t.Context())
	b, _ := third.Head(t.Context())
	if a != b {
		t.Errorf("heads %+v and %+v", a, b)
	}
}

// TestRestarts cuts a copy short at every append, also behind one whose answer is lost, and runs it
// again: the copy is whole, with nothing twice.
func TestRestarts(t *testing.T) {
	for _, flight := range []int{1, 4} {
		from := memory.New()
		history(t, from, 30)
		want := digest(t, from)
		log := esdouble.New()
		var calls, cut atomic.Int64 // the server may be at what the copy has given up
		cut.Store(1)
		log.Fault = func(domain.StreamID, []esdb.Foreign) esdouble.Fault {
			if calls.Add(1) < cut.Load() {
				return esdouble.None
			}
			return []esdouble.Fault{esdouble.Lost, esdouble.Applied}[cut.Load()%2]
		}
		to := connect(t, log)
		for runs := 0; ; runs++ {
			calls.Store(0)
			_, err := duplicate.Run(t.Context(), from, to, duplicate.Options{Flight: flight, Window: 16})
			if err == nil {
				break
			}
			if !errors.Is(err, eventstore.ErrUnknownOutcome) || runs > 100 {
				t.Fatal(err)
			}
			cut.Add(1)
		}
		if got := digest(t, to); got.Digest != want.Digest || got.Events != want.Events {
			t.Errorf("%d in flight: %+v, want %+v", flight, got, want)
		}
	}
}

// TestStaysInItsWindow proves that of several streams in flight no event leaves its window, and
// that one stream in flight keeps the order of the source (P2).
func TestStaysInItsWindow(t *testing.T) {
	const window = 16
	from := memory.New()
	history(t, from, 60)
	for _, flight := range []int{1, 8} {
		at, within := map[domain.EventID]int{}, window
		if flight == 1 {
			within = 1
		}
		for r, err := range from.ReadAll(
			t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
		) {
			if err != nil {
				t.Fatal(err)
			}
			at[r.ID] = len(at)
		}
		log := esdouble.New()
		run(t, from, connect(t, log), duplicate.Options{Flight: flight, Window: window})
		for i, e := range log.Events("weft.") {
			if want := at[e.ID]; i/within != want/within {
				t.Errorf("%d in flight: event %d of the source is event %d", flight, want, i)
			}
		}
	}
}

// TestRounds copies by parts: each ends behind so many events or in front of a position,
// and the digest is that of the whole.
func TestRounds(t *testing.T) {
	from, to := memory.New(), memory.New()
	for i := range 50 {
		add(t, from, domain.StreamID(fmt.Sprint("s-", i%7)), domain.Revision(i/7-1),
			storetest.Propose(fmt.Sprint(i), 1))
	}
	c := duplicate.New(from, to, duplicate.Options{Flight: 3, Window: 8})
	for _, step := range []struct {
		part duplicate.Part
		want uint64
	}{
		{duplicate.Part{Events: 5}, 5},
		{duplicate.Part{Through: 5}, 5},
		{duplicate.Part{Through: 19}, 19},
		{duplicate.Part{Events: 20, Through: 30}, 30},
		{duplicate.Part{Events: 8, Through: 40}, 38},
		{duplicate.Part{}, 50},
		{duplicate.Part{}, 50},
	} {
		r, err := c.Round(t.Context(), step.part)
		if err != nil || r.Events != step.want || r.Copied != step.want ||
			r.Through != domain.Position(step.want) {
			t.Fatalf("%+v: %+v, %v", step.part, r, err)
		}
	}
	r, err := c.Round(t.Context(), duplicate.Part{})
	if want := digest(t, from); err != nil || r.Digest != want.Digest ||
		digest(t, to) != withPresent(r) {
		t.Errorf("%+v, %v, want %+v", r, err, want)
	}
	if err := c.Prove(t.Context()); err != nil {
		t.Error(err)
	}
}

// withPresent is a report as Digest of the target gives it.
func withPresent(r duplicate.Report) duplicate.Report {
	r.Present, r.Copied = r.Events, 0
	return r
}

// changing shows another log than it holds.
type changing struct {
	*memory.Store
	show func(*eventstore.Recorded) bool
}

func (c changing) ReadAll(
	ctx context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		for r, err := range c.Store.ReadAll(ctx, from, d, f, limit) {
			if err == nil && !c.show(&r) {
				continue
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// TestProve proves that what the target does not hold any more, or not as it was copied, is found
// by reading all of it.
func TestProve(t *testing.T) {
	from := memory.New()
	history(t, from, 20)
	for name, c := range map[string]struct {
		show  func(*eventstore.Recorded) bool
		sound bool
	}{
		"sound": {func(*eventstore.Recorded) bool { return true }, true},
		"shorter": {func(r *eventstore.Recorded) bool {
			return r.Stream != "s-4" || r.Revision < 3
		}, false},
		"without": {func(r *eventstore.Recorded) bool { return r.Stream != "s-1" }, false},
		"changed": {func(r *eventstore.Recorded) bool {
			if r.Stream == "s-2" && r.Revision == 0 {
				r.Actor = "somebody"
			}
			return true
		}, false},
	} {
		_, err := duplicate.Run(t.Context(), from, changing{memory.New(), c.show}, duplicate.Options{})
		if c.sound != (err == nil) || !c.sound && domain.KindOf(err) != domain.Mismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGrownSource copies, lets the source go on, and copies again: what joins an append with events
// that are there already is written without them.
func TestGrownSource(t *testing.T) {
	from, to := memory.New(), memory.New()
	add(t, from, "s-0", -1, storetest.Propose("one", 3))
	run(t, from, to, duplicate.Options{})
	add(t, from, "s-0", 2, storetest.Propose("two", 2))
	if r := run(t, from, to, duplicate.Options{}); r.Present != 3 || r.Copied != 2 {
		t.Errorf("%+v", r)
	}
}

// TestPutMeetsWhatIsThere proves that an append into a place that is taken, in part or as a whole,
// is compared by content, in a copy that found nothing there so far as well (P3).
func TestPutMeetsWhatIsThere(t *testing.T) {
	for name, to := range map[string]eventstore.Store{
		"memory": memory.New(), "an event store": connect(t, esdouble.New()),
	} {
		from := memory.New()
		for i := range 20 {
			add(t, from, domain.StreamID(fmt.Sprint("s-", i)), -1, storetest.Propose(fmt.Sprint(i), 5))
		}
		add(t, to, "s-18", -1, storetest.Propose("18", 5)[:2])
		add(t, to, "s-19", -1, storetest.Propose("19", 5))
		r := run(t, from, to, duplicate.Options{Flight: 2, Window: 10})
		if r.Present != 7 || r.Copied != 93 {
			t.Errorf("%s: %+v", name, r)
		}
		for r, err := range from.ReadStream(t.Context(), "s-19", 0, eventstore.Forward, 5) {
			if err != nil {
				t.Fatal(err)
			}
			if n, err := duplicate.Put(t.Context(), to, r); n != 0 || err != nil {
				t.Errorf("%s: again: %d, %v", name, n, err)
			}
			r.Actor = "somebody"
			if _, err := duplicate.Put(t.Context(), to, r); domain.KindOf(err) != domain.Mismatch {
				t.Errorf("%s: the same id with another content: %v", name, err)
			}
		}
	}
}

// TestFindsDifferences proves that a target that holds something else is refused by name, in a dry
// run too.
func TestFindsDifferences(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, s *memory.Store){
		"another event behind the first": func(t *testing.T, s *memory.Store) {
			ev := storetest.Propose("h1", 2)
			ev[1] = storetest.Propose("other", 1)[0]
			add(t, s, "s-1", -1, ev)
		},
		"another event": func(t *testing.T, s *memory.Store) {
			add(t, s, "s-0", -1, storetest.Propose("other", 1))
		},
		"another content": func(t *testing.T, s *memory.Store) {
			ev := storetest.Propose("h0", 1)
			ev[0].Data = []byte("forged")
			add(t, s, "s-0", -1, ev)
		},
		"more": func(t *testing.T, s *memory.Store) {
			from := memory.New()
			history(t, from, 3)
			run(t, from, s, duplicate.Options{})
			add(t, s, "s-0", 0, storetest.Propose("more", 1))
		},
		"a stream of its own": func(t *testing.T, s *memory.Store) {
			add(t, s, "own-0", -1, storetest.Propose("own", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := memory.New(), memory.New()
			history(t, from, 3)
			spoil(t, to)
			for _, dry := range []bool{true, false} {
				_, err := duplicate.Run(t.Context(), from, to, duplicate.Options{DryRun: dry})
				if domain.KindOf(err) != domain.Mismatch {
					t.Errorf("dry %t: %v", dry, err)
				}
			}
		})
	}
}

func add(
	t testing.TB, s eventstore.Store, id domain.StreamID, at domain.Revision,
	ev []eventstore.Proposed,
) {
	t.Helper()
	if _, err := s.Append(t.Context(), id, eventstore.At(at), ev...); err != nil {
		t.Fatal(err)
	}
}

// lossy acknowledges and forgets, or stores something else.
type lossy struct {
	*memory.Store
	change func([]eventstore.Proposed) []eventstore.Proposed
}

func (l lossy) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	ev = l.change(ev)
	if len(ev) == 0 {
		return eventstore.Appended{}, nil
	}
	return l.Store.Append(ctx, id, e, ev...)
}

// TestReadsBack proves that an acknowledgement alone is not believed.
func TestReadsBack(t *testing.T) {
	from := memory.New()
	history(t, from, 3)
	for name, change := range map[string]func([]eventstore.Proposed) []eventstore.Proposed{
		"forgotten": func([]eventstore.Proposed) []eventstore.Proposed { return nil },
		"changed": func(ev []eventstore.Proposed) []eventstore.Proposed {
			ev[0].Actor = "somebody"
			return ev
		},
	} {
		to := lossy{memory.New(), change}
		for _, flight := range []int{1, 4} {
			_, err := duplicate.Run(t.Context(), from, to, duplicate.Options{Flight: flight})
			if domain.KindOf(err) != domain.Mismatch {
				t.Errorf("%s, %d in flight: %v", name, flight, err)
			}
		}
	}
}

// TestAnyHistory copies random histories, in whole and by prefix, with a cut anywhere.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		from, to := memory.New(), memory.New()
		for i := range rapid.IntRange(0, 30).Draw(rt, "appends") {
			id := domain.StreamID(fmt.Sprintf("%s-%d", rapid.SampledFrom([]string{"a", "b"}).
				Draw(rt, "category"), rapid.IntRange(0, 2).Draw(rt, "id")))
			n := rapid.IntRange(1, 4).Draw(rt, "events")
			if _, err := from.Append(t.Context(), id, eventstore.Any(),
				storetest.Propose(fmt.Sprint(i), n)...); err != nil {
				rt.Fatal(err)
			}
		}
		prefixes := rapid.SampledFrom([][]string{nil, {"a-"}, {"b-1", "a-"}}).Draw(rt, "prefixes")
		ctx, cut := context.WithCancel(t.Context())
		defer cut()
		steps := rapid.IntRange(0, 20).Draw(rt, "cut")
		flight := rapid.IntRange(0, 3).Draw(rt, "flight")
		_, err := duplicate.Run(ctx, from, to, duplicate.Options{
			StreamPrefix: prefixes, Flight: flight, Window: 4, Progress: func(duplicate.Report) {
				if steps--; steps < 0 {
					cut()
				}
			},
		})
		if err != nil && domain.KindOf(err) != domain.Aborted {
			rt.Fatal(err)
		}
		if _, err := duplicate.Run(t.Context(), from, to,
			duplicate.Options{StreamPrefix: prefixes}); err != nil {
			rt.Fatal(err)
		}
		a, _ := duplicate.Digest(t.Context(), from, prefixes)
		b, _ := duplicate.Digest(t.Context(), to, nil)
		if a.Digest != b.Digest || a.Events != b.Events || a.Streams != b.Streams {
			rt.Fatalf("%+v against %+v", a, b)
		}
	})
}
