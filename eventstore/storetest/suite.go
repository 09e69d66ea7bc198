package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"weft/domain"
	"weft/eventstore"
)

// Engine is one implementation and what it can do beyond the contract. A nil function means that it
// cannot; the tests that need it are skipped by name.
type Engine struct {
	// Open makes an empty store and closes it at the end of the test.
	Open func(t testing.TB) eventstore.Store
	// Reopen closes a store and opens what it left behind.
	Reopen func(t testing.TB, s eventstore.Store) eventstore.Store
	// Flip turns a bit of a stored record and gives a function that reads the whole log as the
	// engine would, and one that turns the bit back.
	Flip func(
		t testing.TB, s eventstore.Store, p domain.Position, bit int,
	) (read func() error, undo func())
	// StreamChain, when not nil, says that the chain runs per stream and by this link. A nil function
	// is the one chain over the whole log.
	StreamChain func(prev, content [32]byte) [32]byte
	// Gaps says that positions increase but are not continuous, and that a cursor must be one that
	// was given out.
	Gaps bool
	// IDsPerStream says that an id used in another stream is not found out.
	IDsPerStream bool
	// LagUnknown says that a subscription cannot tell how far it lies behind.
	LagUnknown bool
	// Restore drops what lies after n = keep and raises the timeline.
	Restore func(t testing.TB, s eventstore.Store, keep uint64, to domain.Timeline)
}

// Run runs the suite.
func Run(t *testing.T, e Engine) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Engine)
	}{
		{"AppendAndReadBack", testReadBack},
		{"ExpectMatrix", testExpectMatrix},
		{"ConflictLeavesNoTrace", testConflict},
		{"SameIDsTwice", testDuplicate},
		{"DuplicateBeforeConflict", testDuplicateBeforeConflict},
		{"IDsPartlyUsed", testIDReuse},
		{"FencingToken", testToken},
		{"IntentsElsewhere", testElsewhere},
		{"Limits", testLimits},
		{"SizeLimits", testSizeLimits},
		{"Invalid", testInvalid},
		{"StreamNames", testNames},
		{"OneStream64Writers", testOneStream},
		{"Streams64Writers64", testManyStreams},
		{"Directions", testDirections},
		{"Filters", testFilters},
		{"SubscribeFromEverywhere", testSubscribeFrom},
		{"HandOver", testHandOver},
		{"SlowReaderFallsBehind", testFallsBehind},
		{"HiddenEventsGiveCheckpoints", testCheckpoint},
		{"CancelledContexts", testCancelled},
		{"Closed", testClosed},
		{"HeadIsMonotone", testHead},
		{"Reopen", testReopen},
		{"FlippedBits", testFlips},
		{"TimelineRaised", testTimeline},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, e) })
	}
}

// Born is when the suite's events happen.
var born = time.Date(2026, 1, 2, 3, 4, 5, 6700, time.UTC)

// Propose makes n events that follow from a seed alone.
func Propose(seed string, n int) []eventstore.Proposed {
	cmd := domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, "storetest", seed)}
	out := make([]eventstore.Proposed, n)
	for i := range out {
		out[i] = eventstore.Proposed{Data: []byte(fmt.Sprintf("%s/%d", seed, i)), Header: domain.Header{
			ID: cmd.EventID(i), Type: "ThingHappened", Schema: 1, Actor: "user/admin", Tenant: "acme",
			Source: "192.0.2.7:4711", RequestID: "r-" + seed, Command: cmd,
			RequestHash: [16]byte(domain.DeriveUUID(cmd.UUID, "hash")),
			Correlation: domain.EventID(cmd), Causation: cmd.EventID(99), Created: born,
		}}
	}
	return out
}

// fill appends n events, one append each, round robin over streams s-0 .. s-(k-1).
func fill(t testing.TB, s eventstore.Store, n, k int) {
	t.Helper()
	for i := range n {
		id := domain.StreamID(fmt.Sprintf("s-%d", i%k))
		must(t, s, id, eventstore.At(domain.Revision(i/k-1)), Propose(fmt.Sprintf("fill %d", i), 1)...)
	}
}

func must(
	t testing.TB, s eventstore.Store, id domain.StreamID, e eventstore.Expect,
	ev ...eventstore.Proposed,
) eventstore.Appended {
	t.Helper()
	a, err := s.Append(t.Context(), id, e, ev...)
	if err != nil {
		t.Fatalf("append to %s at %s: %v", id, e, err)
	}
	return a
}

// all reads the whole log forward and fails on any error.
func all(t testing.TB, s eventstore.Store) []eventstore.Recorded {
	t.Helper()
	var out []eventstore.Recorded
	for r, err := range s.ReadAll(
		t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			t.Fatalf("read all: %v", err)
		}
		out = append(out, r)
	}
	return out
}

func stream(
	t testing.TB, s eventstore.Store, id domain.StreamID, from domain.Revision,
	d eventstore.Direction, limit int,
) []eventstore.Recorded {
	t.Helper()
	var out []eventstore.Recorded
	for r, err := range s.ReadStream(t.Context(), id, from, d, limit) {
		if err != nil {
			t.Fatalf("read %s: %v", id, err)
		}
		out = append(out, r)
	}
	return out
}

func positions(rs []eventstore.Recorded) []domain.Position {
	out := make([]domain.Position, len(rs))
	for i := range rs {
		out[i] = rs[i].Position
	}
	return out
}

// places gives the positions of the log behind a 0, so that the nth is that of the nth event. They
// increase, and without Gaps the nth is n.
func (e Engine) places(t testing.TB, s eventstore.Store) []domain.Position {
	t.Helper()
	at := append([]domain.Position{0}, positions(all(t, s))...)
	for i := 1; i < len(at); i++ {
		if at[i] <= at[i-1] || !e.Gaps && at[i].N() != uint64(i) {
			t.Fatalf("event %d stands at %s, behind %s", i, at[i], at[i-1])
		}
	}
	return at
}

// link gives the hash that a record must have.
func (e Engine) link(prev [32]byte, p domain.Position, content [32]byte) [32]byte {
	if e.StreamChain != nil {
		return e.StreamChain(prev, content)
	}
	return eventstore.Chain(prev, p, content)
}

func testReadBack(t *testing.T, e Engine) {
	s := e.Open(t)
	events := Propose("back", eventstore.EventsMax)
	events[7].Data = nil
	events[8].Data = []byte{0, 1, 2, 255}
	a := must(t, s, "volume-1", eventstore.NoStream(), slices.Clone(events)...)
	at := e.places(t, s)
	if a.Last != eventstore.EventsMax-1 || a.Position != at[eventstore.EventsMax] || a.Duplicate {
		t.Fatalf("appended %+v", a)
	}
	got := stream(t, s, "volume-1", 0, eventstore.Forward, eventstore.NoLimit)
	if len(got) != len(events) {
		t.Fatalf("%d events, want %d", len(got), len(events))
	}
	var prev [32]byte
	for i, r := range got {
		want := events[i].Header
		want.Stream, want.Revision = "volume-1", domain.Revision(i)
		want.Position, want.Prev = at[i+1], prev
		want.Hash = e.link(prev, want.Position, eventstore.Content(&want, events[i].Data))
		if r.Header != want || string(r.Data) != string(events[i].Data) || r.Before != at[i] {
			t.Fatalf("event %d: got %+v, want %+v", i, r, want)
		}
		prev = r.Hash
	}
	head, err := s.Head(t.Context())
	if err != nil || head.Hash != prev || head.Position != a.Position {
		t.Fatalf("head %+v, %v", head, err)
	}
}

func testExpectMatrix(t *testing.T, e Engine) {
	s := e.Open(t)
	must(t, s, "there-1", eventstore.NoStream(), Propose("there", 3)...)
	for i, c := range []struct {
		expect  eventstore.Expect
		missing bool // holds for a stream without events
		there   bool // holds for one at revision 2
	}{
		{eventstore.NoStream(), true, false},
		{eventstore.At(domain.NoRevision), true, false},
		{eventstore.At(0), false, false},
		{eventstore.At(2), false, true},
		{eventstore.At(3), false, false},
		{eventstore.Exists(), false, true},
		{eventstore.Any(), true, true},
	} {
		for _, id := range []domain.StreamID{"missing-", "there-"} {
			id := id + domain.StreamID(fmt.Sprint(i+10))
			holds, current := c.missing, domain.NoRevision
			if id.Category() == "there" {
				must(t, s, id, eventstore.NoStream(), Propose("pre"+string(id), 3)...)
				holds, current = c.there, 2
			}
			_, err := s.Append(t.Context(), id, c.expect, Propose("m"+string(id), 1)...)
			var conflict *eventstore.ConflictError
			switch {
			case holds && err != nil:
				t.Errorf("%s at %s: %v", id, c.expect, err)
			case !holds && (!errors.As(err, &conflict) || conflict.Current != current):
				t.Errorf("%s at %s: %v, want a conflict at %d", id, c.expect, err, current)
			case !holds && (!errors.Is(err, eventstore.ErrConflict) ||
				domain.KindOf(err) != domain.Conflict):
				t.Errorf("%s: %v is of kind %v", id, err, domain.KindOf(err))
			}
		}
	}
}

func testConflict(t *testing.T, e Engine) {
	s := e.Open(t)
	must(t, s, "a-1", eventstore.NoStream(), Propose("a", 2)...)
	before := all(t, s)
	for range 3 {
		if _, err := s.Append(t.Context(), "a-1", eventstore.At(7), Propose("b", 5)...); err == nil {
			t.Fatal("no conflict")
		}
	}
	if after := all(t, s); !slices.Equal(positions(after), positions(before)) {
		t.Fatalf("a conflict left a trace: %v", positions(after))
	}
	must(t, s, "a-1", eventstore.At(1), Propose("b", 5)...) // its ids are still free
}

func testDuplicate(t *testing.T, e Engine) {
	s := e.Open(t)
	first := must(t, s, "a-1", eventstore.NoStream(), Propose("x", 3)...)
	must(t, s, "b-1", eventstore.NoStream(), Propose("y", 3)...)
	for _, expect := range []eventstore.Expect{
		eventstore.NoStream(), eventstore.At(0), eventstore.At(2), eventstore.Any(), eventstore.Exists(),
	} {
		again := must(t, s, "a-1", expect, Propose("x", 3)...)
		if !again.Duplicate || again.Last != first.Last || again.Position != first.Position {
			t.Fatalf("at %s: %+v, want %+v as a duplicate", expect, again, first)
		}
	}
	if n := len(all(t, s)); n != 6 {
		t.Fatalf("%d events, want 6", n)
	}
}

// A repeat whose stream has long moved on must hear of its success, not of a conflict (E5).
func testDuplicateBeforeConflict(t *testing.T, e Engine) {
	s := e.Open(t)
	must(t, s, "a-1", eventstore.NoStream(), Propose("one", 1)...)
	first := must(t, s, "a-1", eventstore.At(0), Propose("two", 2)...)
	must(t, s, "a-1", eventstore.At(2), Propose("three", 1)...)
	again := must(t, s, "a-1", eventstore.At(0), Propose("two", 2)...)
	if !again.Duplicate || again.Position != first.Position || again.Last != first.Last {
		t.Fatalf("%+v, want %+v", again, first)
	}
}

func testIDReuse(t *testing.T, e Engine) {
	s := e.Open(t)
	must(t, s, "a-1", eventstore.NoStream(), Propose("x", 3)...)
	mixed := append(Propose("x", 1), Propose("new", 1)...)
	late := append(Propose("new", 1), Propose("x", 1)...)
	for name, try := range map[string]func() error{
		"more than were there": func() error {
			_, err := s.Append(t.Context(), "a-1", eventstore.At(2), Propose("x", 4)...)
			return err
		},
		"other stream": func() error {
			if e.IDsPerStream {
				return eventstore.ErrIDReused
			}
			_, err := s.Append(t.Context(), "b-1", eventstore.NoStream(), Propose("x", 3)...)
			return err
		},
		"mixed": func() error {
			_, err := s.Append(t.Context(), "a-1", eventstore.At(2), mixed...)
			return err
		},
		"late": func() error {
			_, err := s.Append(t.Context(), "a-1", eventstore.At(2), late...)
			return err
		},
	} {
		if err := try(); !errors.Is(err, eventstore.ErrIDReused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(all(t, s)); n != 3 {
		t.Fatalf("%d events, want 3", n)
	}
}

func testToken(t *testing.T, e Engine) {
	s := e.Open(t)
	with := func(seed string, token uint64) []eventstore.Proposed {
		ev := Propose(seed, 1)
		ev[0].Token = token
		return ev
	}
	_, err := s.Append(t.Context(), "plan-1", eventstore.NoStream(), with("p", 1)...)
	if !errors.Is(err, eventstore.ErrFenced) || domain.KindOf(err) != domain.Stale {
		t.Fatalf("a token before any was given out: %v", err)
	}
	for i := range 3 {
		must(t, s, eventstore.CoordinationStream, eventstore.At(domain.Revision(i-1)),
			Propose(fmt.Sprint("term", i), 1)...)
	}
	must(t, s, "plan-1", eventstore.NoStream(), with("q", 2)...)
	must(t, s, "plan-1", eventstore.At(0), with("none", 0)...)
	_, err = s.Append(t.Context(), "plan-1", eventstore.At(1), with("old", 1)...)
	if !errors.Is(err, eventstore.ErrFenced) {
		t.Fatalf("an old token: %v", err)
	}
}
