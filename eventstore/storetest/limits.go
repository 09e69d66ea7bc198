package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"weft/domain"
	"weft/eventstore"
)

// testLimits counts what reads give at limits of none, one, exact and over.
func testLimits(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 10, 2)
	for limit, want := range map[int]int{0: 0, 1: 1, 5: 5, 6: 5, eventstore.NoLimit: 5} {
		for _, d := range []eventstore.Direction{eventstore.Forward, eventstore.Backward} {
			from := domain.Revision(0)
			if d == eventstore.Backward {
				from = domain.NoRevision
			}
			if got := len(stream(t, s, "s-0", from, d, limit)); got != want {
				t.Errorf("direction %d limit %d: %d events, want %d", d, limit, got, want)
			}
			n := 0
			only := domain.Filter{StreamPrefix: []string{"s-0"}}
			for _, err := range s.ReadAll(t.Context(), 0, d, only, limit) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != want {
				t.Errorf("all, direction %d limit %d: %d events, want %d", d, limit, n, want)
			}
		}
	}
	if got := stream(t, s, "none-1", 0, eventstore.Forward, eventstore.NoLimit); len(got) != 0 {
		t.Errorf("a stream without events gave %d", len(got))
	}
}

// testSizeLimits appends at each limit and one beyond it.
func testSizeLimits(t *testing.T, e Engine) {
	s := e.Open(t)
	text := func(n int) string { return strings.Repeat("x", n) }
	one := func(change func(*eventstore.Proposed)) func(string) []eventstore.Proposed {
		return func(seed string) []eventstore.Proposed {
			ev := Propose(seed, 1)
			change(&ev[0])
			return ev
		}
	}
	whole := func(over int) func(string) []eventstore.Proposed {
		return func(seed string) []eventstore.Proposed {
			ev := Propose(seed, 5)
			left := eventstore.AppendMax + over
			for i := range ev {
				ev[i].Data = nil
				left -= eventstore.Size("big-00", &ev[i])
			}
			for i := range ev {
				ev[i].Data = make([]byte, min(left, eventstore.DataMax))
				left -= len(ev[i].Data)
			}
			return ev
		}
	}
	type maker = func(string) []eventstore.Proposed
	for i, c := range []struct {
		name     string
		at, over maker
	}{
		{
			"events",
			func(seed string) []eventstore.Proposed { return Propose(seed, eventstore.EventsMax) },
			func(seed string) []eventstore.Proposed { return Propose(seed, eventstore.EventsMax+1) },
		},
		{
			"data",
			one(func(p *eventstore.Proposed) { p.Data = []byte(text(eventstore.DataMax)) }),
			one(func(p *eventstore.Proposed) { p.Data = []byte(text(eventstore.DataMax + 1)) }),
		},
		{"append", whole(0), whole(1)},
		{
			"type",
			one(func(p *eventstore.Proposed) { p.Type = text(eventstore.TypeMax) }),
			one(func(p *eventstore.Proposed) { p.Type = text(eventstore.TypeMax + 1) }),
		},
		{
			"text",
			one(func(p *eventstore.Proposed) { p.Actor = text(eventstore.TextMax) }),
			one(func(p *eventstore.Proposed) { p.Source = text(eventstore.TextMax + 1) }),
		},
	} {
		id := domain.StreamID(fmt.Sprintf("big-%02d", i))
		_, err := s.Append(t.Context(), id, eventstore.NoStream(), c.over(c.name+" over")...)
		if !errors.Is(err, eventstore.ErrTooLarge) || domain.KindOf(err) != domain.TooLarge {
			t.Errorf("%s over the limit: %v", c.name, err)
		}
		must(t, s, id, eventstore.NoStream(), c.at(c.name)...)
	}
	all(t, s)
}

func testInvalid(t *testing.T, e Engine) {
	s := e.Open(t)
	change := func(f func(*eventstore.Proposed)) []eventstore.Proposed {
		ev := Propose("bad", 2)
		f(&ev[1])
		return ev
	}
	noID := change(func(p *eventstore.Proposed) { p.ID = domain.EventID{} })
	noType := change(func(p *eventstore.Proposed) { p.Type = "" })
	fine := change(func(p *eventstore.Proposed) { p.Created = born.Add(1) })
	early := change(func(p *eventstore.Proposed) { p.Created = born.AddDate(-3000, 0, 0) })
	for name, c := range map[string]struct {
		id     domain.StreamID
		expect eventstore.Expect
		events []eventstore.Proposed
	}{
		"no events":      {"a-1", eventstore.NoStream(), nil},
		"no expectation": {"a-1", eventstore.Expect{}, Propose("x", 1)},
		"revision -2":    {"a-1", eventstore.At(-2), Propose("x", 1)},
		"stream name":    {"A-1", eventstore.NoStream(), Propose("x", 1)},
		"no id":          {"a-1", eventstore.NoStream(), noID},
		"no type":        {"a-1", eventstore.NoStream(), noType},
		"fine time":      {"a-1", eventstore.NoStream(), fine},
		"early time":     {"a-1", eventstore.NoStream(), early},
		"same id twice":  {"a-1", eventstore.NoStream(), append(Propose("x", 1), Propose("x", 1)...)},
	} {
		_, err := s.Append(t.Context(), c.id, c.expect, c.events...)
		if domain.KindOf(err) != domain.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(all(t, s)); n != 0 {
		t.Fatalf("%d events", n)
	}
}

func testNames(t *testing.T, e Engine) {
	s := e.Open(t)
	names := []domain.StreamID{
		"a-b", "0-A", "a-.", "a--", "a-1:2_3", "a-1", "a-10", "a-1.", "aa-1",
		domain.StreamID("x-" + strings.Repeat("y", 180)),
		domain.StreamID(strings.Repeat("c", 9) + "-" + strings.Repeat("y", 180)),
	}
	for i, id := range names {
		must(t, s, id, eventstore.NoStream(), Propose(fmt.Sprint("name", i), i%3+1)...)
	}
	for i, id := range names {
		if got := stream(t, s, id, 0, eventstore.Forward, eventstore.NoLimit); len(got) != i%3+1 {
			t.Errorf("%s: %d events, want %d", id, len(got), i%3+1)
		}
	}
}

// testCancelled calls everything with a context that has ended: kind Aborted, and nothing happens.
func testCancelled(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 3, 1)
	ctx, cancel := context.WithCancel(t.Context())
	sub, err := s.Subscribe(ctx, 0, domain.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Close() }()
	cancel()
	check := func(what string, err error) {
		t.Helper()
		if domain.KindOf(err) != domain.Aborted || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = s.Append(ctx, "s-0", eventstore.At(2), Propose("late", 1)...)
	check("append", err)
	_, err = s.Head(ctx)
	check("head", err)
	_, err = s.Subscribe(ctx, 0, domain.Filter{})
	check("subscribe", err)
	_, err = sub.Next(ctx)
	check("next", err)
	for _, err := range s.ReadStream(ctx, "s-0", 0, eventstore.Forward, 1) {
		check("read stream", err)
	}
	for _, err := range s.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{}, 1) {
		check("read all", err)
	}
	if item, err := sub.Next(t.Context()); err != nil || item.Event.Position != e.places(t, s)[1] {
		t.Errorf("a cancelled Next lost something: %+v, %v", item, err)
	}
	if n := len(all(t, s)); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

func testClosed(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 3, 1)
	sub, err := s.Subscribe(t.Context(), e.places(t, s)[3], domain.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if item, err := sub.Next(t.Context()); err != nil || item.Kind != eventstore.CaughtUp {
		t.Fatalf("%+v, %v", item, err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := sub.Next(t.Context())
		waiting <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, eventstore.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("a waiting Next", <-waiting)
	_, err = s.Append(t.Context(), "s-0", eventstore.At(2), Propose("late", 1)...)
	check("append", err)
	_, err = s.Head(t.Context())
	check("head", err)
	_, err = s.Subscribe(t.Context(), 0, domain.Filter{})
	check("subscribe", err)
	for _, err := range s.ReadStream(t.Context(), "s-0", 0, eventstore.Forward, 1) {
		check("read stream", err)
	}
	for _, err := range s.ReadAll(t.Context(), 0, eventstore.Backward, domain.Filter{}, 1) {
		check("read all", err)
	}
}
