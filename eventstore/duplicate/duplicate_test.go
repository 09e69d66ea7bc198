package duplicate_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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
	a, _ := first.Head(t.Context())
	b, _ := third.Head(t.Context())
	if a != b {
		t.Errorf("heads %+v and %+v", a, b)
	}
}

// TestRestarts cuts a copy short at every append, also behind one whose answer is lost, and runs it
// again: the copy is whole, with nothing twice.
func TestRestarts(t *testing.T) {
	from := memory.New()
	history(t, from, 30)
	want := digest(t, from)
	log := esdouble.New()
	calls, cut := 0, 1
	log.Fault = func(domain.StreamID, []esdb.Foreign) esdouble.Fault {
		if calls++; calls < cut {
			return esdouble.None
		}
		return []esdouble.Fault{esdouble.Lost, esdouble.Applied}[cut%2]
	}
	to := connect(t, log)
	for runs := 0; ; runs++ {
		calls = 0
		_, err := duplicate.Run(t.Context(), from, to, duplicate.Options{})
		if err == nil {
			break
		}
		if !errors.Is(err, eventstore.ErrUnknownOutcome) || runs > 100 {
			t.Fatal(err)
		}
		cut++
	}
	if got := digest(t, to); got.Digest != want.Digest || got.Events != want.Events {
		t.Errorf("%+v, want %+v", got, want)
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

// TestFindsDifferences proves that a target that holds something else is refused by name, in a dry
// run too.
func TestFindsDifferences(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, s *memory.Store){
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
		_, err := duplicate.Run(t.Context(), from, to, duplicate.Options{})
		if domain.KindOf(err) != domain.Mismatch {
			t.Errorf("%s: %v", name, err)
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
		_, err := duplicate.Run(ctx, from, to, duplicate.Options{
			StreamPrefix: prefixes, Progress: func(duplicate.Report) {
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
