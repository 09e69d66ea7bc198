package storetest

import (
	"fmt"
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
	subs := map[domain.Position]eventstore.Subscription{}
	for _, after := range []domain.Position{0, 3, 6, 7} {
		sub := subscribe(t, s, after, domain.Filter{})
		for p := after + 1; p <= 6; p++ {
			if item := next(t, sub); item.Kind != eventstore.Event || item.Event.Position != p ||
				item.Position != p || item.Hash != item.Event.Hash {
				t.Fatalf("after %s: %+v, want %s", after, item, p)
			}
		}
		if item := next(t, sub); item.Kind != eventstore.CaughtUp || item.Position != max(after, 6) {
			t.Fatalf("after %s: %+v, want caught up", after, item)
		}
		subs[after] = sub
	}
	must(t, s, "s-0", eventstore.At(5), Propose("late", 2)...)
	for after, sub := range subs {
		for p := max(after, 6) + 1; p <= 8; p++ {
			if item := next(t, sub); item.Kind != eventstore.Event || item.Event.Position != p {
				t.Fatalf("after %s, live: %+v, want %s", after, item, p)
			}
		}
	}
}

// testHandOver follows while 8 writers append: no gap and no duplicate across catch-up and live.
func testHandOver(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 20, 1)
	const writers, rounds = 8, 25
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
	for reader := range 4 {
		wg.Go(func() {
			after := domain.Position(7 * reader)
			sub, err := s.Subscribe(t.Context(), after, domain.Filter{})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = sub.Close() }()
			caught := 0
			for want := after + 1; want <= 20+writers*rounds || caught == 0; {
				item, err := sub.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				switch {
				case item.Kind == eventstore.CaughtUp:
					caught++
				case item.Event.Position != want:
					t.Errorf("reader %d: %s, want %s", reader, item.Event.Position, want)
					return
				default:
					want++
				}
			}
			if caught != 1 {
				t.Errorf("reader %d caught up %d times", reader, caught)
			}
		})
	}
	wg.Wait()
}

// testFallsBehind leaves a live reader more than LagMax back: it is told once, loses nothing, and
// catches up again.
func testFallsBehind(t *testing.T, e Engine) {
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
	sub := subscribe(t, s, 0, domain.Filter{StreamPrefix: []string{"other-"}})
	rev := domain.NoRevision
	for appended := 0; appended < eventstore.CheckpointEvery+100; appended += 100 {
		a := must(t, s, "s-0", eventstore.At(rev), Propose(fmt.Sprint("hide", appended), 100)...)
		rev = a.Last
	}
	must(t, s, "other-1", eventstore.NoStream(), Propose("seen", 1)...)
	if item := next(t, sub); item.Kind != eventstore.Checkpoint ||
		item.Position != eventstore.CheckpointEvery {
		t.Fatalf("kind %d at %s", item.Kind, item.Position)
	}
	if item := next(t, sub); item.Kind != eventstore.Event || item.Event.Stream != "other-1" {
		t.Fatalf("%+v", item)
	}
}
