package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"weft/domain"
	"weft/eventstore"
)

func subscribe(
	t testing.TB, s eventstore.Store, after domain.Position, f domain.Filter,
) eventstore.Subscription {
	t.Helper()
	sub, err := s.Subscribe(t.Context(), after, f)
	if err != nil {
		t.Fatalf("subscribe after %s: %v", after, err)
	}
	t.Cleanup(func() { _ = sub.Close() })
	return sub
}

func next(t testing.TB, sub eventstore.Subscription) eventstore.Item {
	t.Helper()
	item, err := sub.Next(t.Context())
	if err != nil {
		t.Fatalf("next: %v", err)
	}
	return item
}

// testSubscribeFrom follows from 0, the middle, the head and beyond it: the events after the
// cursor, then CaughtUp exactly once, then what comes.
func testSubscribeFrom(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 6, 1)
	at := e.places(t, s)
	subs := map[int]eventstore.Subscription{}
	for _, from := range []int{0, 3, 6, 7} {
		var after domain.Position
		switch {
		case from <= 6:
			after = at[from]
		case e.Gaps:
			continue // nobody was given a place beyond the head
		default:
			after = at[6] + 1
		}
		sub := subscribe(t, s, after, domain.Filter{})
		for i := from + 1; i <= 6; i++ {
			if item := next(t, sub); item.Kind != eventstore.Event || item.Event.Position != at[i] ||
				item.Position != at[i] || item.Hash != item.Event.Hash {
				t.Fatalf("after %s: %+v, want %s", after, item, at[i])
			}
		}
		if item := next(t, sub); item.Kind != eventstore.CaughtUp ||
			item.Position != max(after, at[6]) {
			t.Fatalf("after %s: %+v, want caught up", after, item)
		}
		subs[from] = sub
	}
	must(t, s, "s-0", eventstore.At(5), Propose("late", 2)...)
	at = e.places(t, s)
	for from, sub := range subs {
		for i := max(from, 6) + 1; i <= 8; i++ {
			if item := next(t, sub); item.Kind != eventstore.Event || item.Event.Position != at[i] {
				t.Fatalf("after event %d, live: %+v, want %s", from, item, at[i])
			}
		}
	}
}

// testHandOver follows while 8 writers append: no gap and no duplicate across catch-up and live.
func testHandOver(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 20, 1)
	const writers, rounds, readers = 8, 25, 4
	start := e.places(t, s)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			id := domain.StreamID(fmt.Sprintf("w-%d", w))
			for r := range rounds {
				if _, err := s.Append(t.Context(), id, eventstore.At(domain.Revision(r-1)),
					Propose(fmt.Sprintf("%s/%d", id, r), 1)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	// The last reader begins beyond the head, where an engine knows what stands there.
	from := [readers]int{0, 7, 14, 21}
	after := [readers]domain.Position{0, 7, 14, 21}
	if e.Gaps {
		from[3] = 20
		after = [readers]domain.Position{0, start[7], start[14], start[20]}
	}
	var told [readers][]domain.Position
	for reader := range readers {
		wg.Go(func() {
			sub, err := s.Subscribe(t.Context(), after[reader], domain.Filter{})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = sub.Close() }()
			caught := 0
			for len(told[reader]) < 20+writers*rounds-from[reader] || caught == 0 {
				item, err := sub.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if item.Kind == eventstore.CaughtUp {
					caught++
				} else {
					told[reader] = append(told[reader], item.Event.Position)
				}
			}
			if caught != 1 {
				t.Errorf("reader %d caught up %d times", reader, caught)
			}
		})
	}
	wg.Wait()
	at := e.places(t, s)
	for reader := range readers {
		if want := at[from[reader]+1:]; !slices.Equal(told[reader], want) {
			t.Errorf("reader %d: %v, want %v", reader, told[reader], want)
		}
	}
}

// testFallsBehind leaves a live reader more than LagMax back: it is told once, loses nothing, and
// catches up again.
func testFallsBehind(t *testing.T, e Engine) {
	if e.LagUnknown {
		t.Skip("the engine cannot tell how far a reader lies behind")
	}
	s := e.Open(t)
	sub := subscribe(t, s, 0, domain.Filter{})
	if item := next(t, sub); item.Kind != eventstore.CaughtUp {
		t.Fatalf("%+v", item)
	}
	rev := domain.NoRevision
	for appended := 0; appended <= eventstore.LagMax; appended += 100 {
		a := must(t, s, "s-0", eventstore.At(rev), Propose(fmt.Sprint("lag", appended), 100)...)
		rev = a.Last
	}
	if item := next(t, sub); item.Kind != eventstore.FellBehind || item.Position != 0 {
		t.Fatalf("%+v, want fell behind", item.Kind)
	}
	for p := domain.Position(1); p <= domain.Position(rev)+1; p++ {
		if item := next(t, sub); item.Kind != eventstore.Event || item.Position != p {
			t.Fatalf("kind %d at %s, want %s", item.Kind, item.Position, p)
		}
	}
	if item := next(t, sub); item.Kind != eventstore.CaughtUp {
		t.Fatalf("%+v, want caught up", item.Kind)
	}
	// At the limit nobody is told.
	for range eventstore.LagMax / 64 {
		a := must(t, s, "s-0", eventstore.At(rev), Propose(fmt.Sprint("more", rev), 64)...)
		rev = a.Last
	}
	if item := next(t, sub); item.Kind != eventstore.Event {
		t.Fatalf("kind %d at a lag of exactly %d", item.Kind, eventstore.LagMax)
	}
}

// testCheckpoint hides more than CheckpointEvery events from a reader: it hears how far it is.
func testCheckpoint(t *testing.T, e Engine) {
	s := e.Open(t)
	rev := domain.NoRevision
	for appended := 0; appended < eventstore.CheckpointEvery+100; appended += 100 {
		a := must(t, s, "s-0", eventstore.At(rev), Propose(fmt.Sprint("hide", appended), 100)...)
		rev = a.Last
	}
	must(t, s, "other-1", eventstore.NoStream(), Propose("seen", 1)...)
	sub := subscribe(t, s, 0, domain.Filter{StreamPrefix: []string{"other-"}})
	if item := next(t, sub); item.Kind != eventstore.Checkpoint ||
		item.Position != e.places(t, s)[eventstore.CheckpointEvery] {
		t.Fatalf("kind %d at %s", item.Kind, item.Position)
	}
	if item := next(t, sub); item.Kind != eventstore.Event || item.Event.Stream != "other-1" {
		t.Fatalf("%+v", item)
	}
}
