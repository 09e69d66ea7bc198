package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"weft/domain"
	"weft/eventstore"
)

// testOneStream lets 64 writers race for each revision of one stream: exactly one wins.
func testOneStream(t *testing.T, e Engine) {
	s := e.Open(t)
	const writers, rounds = 64, 8
	for round := range rounds {
		var wins atomic.Int32
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				_, err := s.Append(t.Context(), "hot-1", eventstore.At(domain.Revision(round-1)),
					Propose(fmt.Sprintf("%d/%d", round, w), 1)...)
				var conflict *eventstore.ConflictError
				switch {
				case err == nil:
					wins.Add(1)
				case !errors.As(err, &conflict) || conflict.Current != domain.Revision(round):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("round %d: %d winners", round, wins.Load())
		}
	}
	if n := len(all(t, s)); n != rounds {
		t.Fatalf("%d events, want %d", n, rounds)
	}
}

// testManyStreams lets 64 writers append to a stream each: all succeed, and positions are in order.
func testManyStreams(t *testing.T, e Engine) {
	s := e.Open(t)
	const writers, rounds = 64, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			id, last := domain.StreamID(fmt.Sprintf("s-%d", w)), domain.Position(0)
			for r := range rounds {
				a, err := s.Append(t.Context(), id, eventstore.At(domain.Revision(2*r-1)),
					Propose(fmt.Sprintf("%s/%d", id, r), 2)...)
				if err != nil || a.Position <= last || a.Last != domain.Revision(2*r+1) {
					t.Errorf("%s: %+v, %v", id, a, err)
					return
				}
				last = a.Position
			}
		})
	}
	wg.Wait()
	got := all(t, s)
	if len(got) != 2*writers*rounds {
		t.Fatalf("%d events", len(got))
	}
	e.places(t, s)
	for i, r := range got {
		if i%2 == 1 && (r.Stream != got[i-1].Stream || r.Command != got[i-1].Command) {
			t.Fatalf("%s: an append was cut in two", r.Position)
		}
	}
}

// testDirections checks that backward is the reverse of forward, and that both directions from one
// cursor are the whole log, each event once.
func testDirections(t *testing.T, e Engine) {
	s := e.Open(t)
	fill(t, s, 12, 3)
	forward, at := all(t, s), e.places(t, s)
	read := func(from domain.Position, d eventstore.Direction) (out []domain.Position) {
		for r, err := range s.ReadAll(t.Context(), from, d, domain.Filter{}, eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r.Position)
		}
		return out
	}
	for _, from := range at[1:] {
		back := read(from, eventstore.Backward)
		slices.Reverse(back)
		if whole := append(back, read(from, eventstore.Forward)...); !slices.Equal(whole,
			positions(forward)) {
			t.Errorf("around %s: %v", from, whole)
		}
	}
	if back := read(0, eventstore.Backward); len(back) != 12 || back[0] != at[12] {
		t.Errorf("backward from the head: %v", back)
	}
	fwd := stream(t, s, "s-1", 1, eventstore.Forward, eventstore.NoLimit)
	back := stream(t, s, "s-1", domain.NoRevision, eventstore.Backward, 3)
	slices.Reverse(back)
	if !slices.Equal(positions(fwd), positions(back)) || len(fwd) != 3 {
		t.Errorf("stream forward %v, backward %v", positions(fwd), positions(back))
	}
}

func testFilters(t *testing.T, e Engine) {
	s := e.Open(t)
	for i, id := range []domain.StreamID{"volume-1", "volume-2", "node-1", "volumes-1"} {
		ev := Propose(fmt.Sprint("f", i), 2)
		ev[1].Type = "OtherThing"
		must(t, s, id, eventstore.NoStream(), ev...)
	}
	at := e.places(t, s)
	for _, c := range []struct {
		filter domain.Filter
		want   []int // which events
	}{
		{domain.Filter{}, []int{1, 2, 3, 4, 5, 6, 7, 8}},
		{domain.Filter{StreamPrefix: []string{"volume-"}}, []int{1, 2, 3, 4}},
		{domain.Filter{TypePrefix: []string{"Other"}}, []int{2, 4, 6, 8}},
		{
			domain.Filter{StreamPrefix: []string{"node-", "volumes-"}, TypePrefix: []string{"Thing"}},
			[]int{5, 7},
		},
		{domain.Filter{StreamPrefix: []string{"none-"}}, nil},
	} {
		var read, told, want []domain.Position
		for _, i := range c.want {
			want = append(want, at[i])
		}
		for r, err := range s.ReadAll(
			t.Context(), 0, eventstore.Forward, c.filter, eventstore.NoLimit,
		) {
			if err != nil {
				t.Fatal(err)
			}
			read = append(read, r.Position)
		}
		sub := subscribe(t, s, 0, c.filter)
		for item := next(t, sub); item.Kind == eventstore.Event; item = next(t, sub) {
			told = append(told, item.Event.Position)
		}
		if !slices.Equal(read, want) || !slices.Equal(told, want) {
			t.Errorf("%+v: read %v, subscribed %v, want %v", c.filter, read, told, want)
		}
	}
}

// testHead appends beside a reader of the head: it never goes back, and holds what was
// acknowledged.
func testHead(t *testing.T, e Engine) {
	s := e.Open(t)
	var acked, end atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { end.Store(acked.Load()) }()
		for i := range 50 {
			a, err := s.Append(t.Context(), "s-0", eventstore.At(domain.Revision(i-1)),
				Propose(fmt.Sprint("h", i), 1)...)
			if err != nil {
				t.Error(err)
				return
			}
			acked.Store(a.Position.N())
		}
	})
	for last := uint64(0); (end.Load() == 0 || last < end.Load()) && !t.Failed(); {
		floor := acked.Load()
		head, err := s.Head(t.Context())
		if err != nil || head.Position.N() < last || head.Position.N() < floor {
			t.Fatalf("head %+v, %v; was %d, acknowledged %d", head, err, last, floor)
		}
		last = head.Position.N()
	}
	wg.Wait()
	if at := e.places(t, s); len(at) != 51 || at[50].N() != end.Load() {
		t.Errorf("%d events, the last at %d", len(at)-1, end.Load())
	}
}

func testReopen(t *testing.T, e Engine) {
	if e.Reopen == nil {
		t.Skip("the engine forgets")
	}
	s := e.Open(t)
	fill(t, s, 30, 4)
	before := all(t, s)
	head, _ := s.Head(t.Context())
	s = e.Reopen(t, s)
	after := all(t, s)
	if len(after) != len(before) {
		t.Fatalf("%d events, had %d", len(after), len(before))
	}
	for i := range after {
		if after[i].Header != before[i].Header || string(after[i].Data) != string(before[i].Data) {
			t.Fatalf("event %d changed: %+v", i, after[i])
		}
	}
	if h, err := s.Head(t.Context()); err != nil || h != head {
		t.Fatalf("head %+v, %v, was %+v", h, err, head)
	}
	again := must(t, s, "s-0", eventstore.NoStream(), Propose("fill 0", 1)...)
	if !again.Duplicate {
		t.Error("a repeat after the restart is no duplicate")
	}
	a := must(t, s, "s-0", eventstore.Exists(), Propose("more", 1)...)
	if a.Position != e.places(t, s)[31] {
		t.Errorf("the next position is %s", a.Position)
	}
}

// testFlips turns one bit in every field of a record in the middle: nothing of it is delivered, and
// the error names its position (E4).
func testFlips(t *testing.T, e Engine) {
	if e.Flip == nil {
		t.Skip("the engine offers no access to its bytes")
	}
	s := e.Open(t)
	fill(t, s, 5, 2)
	const at = domain.Position(3)
	r := all(t, s)[at-1]
	size := eventstore.Size(r.Stream, &eventstore.Proposed{Header: r.Header, Data: r.Data})
	fields := map[string]int{
		"magic": 0, "length": 4, "crc": 8, "format": 12, "flags": 14, "position": 16, "revision": 24,
		"before": 32, "event id": 40, "command id": 56, "request hash": 72, "correlation": 88,
		"causation": 104, "created": 120, "token": 128, "schema": 136, "zero": 138, "lengths": 140,
		"stored": 152, "uncompressed": 156, "stream": 160, "type": 165, "data": size - 65,
		"prev": size - 64, "hash": size - 32, "end": size - 1,
	}
	for name, off := range fields {
		for _, bit := range []int{8 * off, 8*off + 7} {
			read, undo := e.Flip(t, s, at, bit)
			var corrupt *eventstore.CorruptError
			err := read()
			if !errors.As(err, &corrupt) || corrupt.Position != at ||
				domain.KindOf(err) != domain.Corrupt {
				t.Errorf("bit %d of %s: %v", bit, name, err)
			}
			undo()
			if err := read(); err != nil {
				t.Fatalf("%s turned back: %v", name, err)
			}
		}
	}
}

// testTimeline restores a log to 5 of 8: a cursor above the floor hears of it, one below goes on.
func testTimeline(t *testing.T, e Engine) {
	if e.Restore == nil {
		t.Skip("the engine cannot be restored in place")
	}
	s := e.Open(t)
	fill(t, s, 8, 1)
	above, below := subscribe(t, s, 7, domain.Filter{}), subscribe(t, s, 4, domain.Filter{})
	e.Restore(t, s, 5, 3)
	var lost *eventstore.TimelineError
	if _, err := above.Next(t.Context()); !errors.As(err, &lost) || lost.Floor != 5 ||
		!errors.Is(err, eventstore.ErrTimelineChanged) || domain.KindOf(err) != domain.Stale {
		t.Fatalf("above the floor: %v", err)
	}
	a := must(t, s, "s-0", eventstore.At(4), Propose("after", 2)...)
	if a.Position != domain.PositionOf(3, 7) {
		t.Fatalf("the new history begins at %s", a.Position)
	}
	for _, want := range []domain.Position{5, domain.PositionOf(3, 6), domain.PositionOf(3, 7)} {
		if item := next(t, below); item.Position != want {
			t.Fatalf("below the floor: %+v, want %s", item, want)
		}
	}
	for cursor, floor := range map[domain.Position]domain.Position{
		6: 5, 7: 5, 8: 5, 99: 5, domain.PositionOf(2, 6): 5, domain.PositionOf(4, 1): 0,
		domain.PositionOf(3, 5): 0,
	} {
		if _, err := s.Subscribe(t.Context(), cursor, domain.Filter{}); !errors.As(err, &lost) ||
			lost.Floor != floor || lost.Cursor != cursor {
			t.Errorf("cursor %s: %v, want floor %s", cursor, err, floor)
		}
	}
	if _, err := s.Subscribe(t.Context(), domain.PositionOf(3, 9), domain.Filter{}); err != nil {
		t.Errorf("a cursor ahead in the present timeline: %v", err)
	}
	if n := len(all(t, s)); n != 7 {
		t.Errorf("%d events, want 7", n)
	}
}
