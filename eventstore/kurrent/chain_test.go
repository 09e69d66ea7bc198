package kurrent_test

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/kurrent"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

var rewrite = flag.Bool("rewrite", false, "add golden files that are missing; never changes one")

// everyWay reads a log in each way there is and gives the first error of each.
func everyWay(t *testing.T, s eventstore.Store, id domain.StreamID) map[string]error {
	t.Helper()
	out := map[string]error{}
	for name, d := range map[string]eventstore.Direction{
		"forward": eventstore.Forward, "backward": eventstore.Backward,
	} {
		from := domain.Revision(0)
		if d == eventstore.Backward {
			from = domain.NoRevision
		}
		for _, err := range s.ReadStream(t.Context(), id, from, d, eventstore.NoLimit) {
			out["stream "+name] = err
		}
		for _, err := range s.ReadAll(t.Context(), 0, d, domain.Filter{}, eventstore.NoLimit) {
			out["all "+name] = err
		}
	}
	sub, err := s.Subscribe(t.Context(), 0, domain.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Close() }()
	for {
		item, err := sub.Next(t.Context())
		if err == nil && item.Kind != eventstore.CaughtUp {
			continue
		}
		if err != nil {
			if _, again := sub.Next(t.Context()); !errors.Is(again, err) {
				t.Errorf("the failure does not repeat: %v", again)
			}
		}
		out["subscription"] = err
		return out
	}
}

// TestDamage changes each part of a stored event, and every bit of its custom metadata: every way
// of reading meets an ErrCorrupt that names the event.
func TestDamage(t *testing.T) {
	log := esdouble.New()
	server := esdouble.Serve(t, log)
	s := connect(t, server)
	for i := range 4 {
		appendOne(t, s, "a-1", eventstore.At(domain.Revision(i-1)), fmt.Sprint(i))
	}
	stored := log.Events("weft.")
	victim, other := stored[2], stored[1]
	changes := map[string]func(*esdouble.Event){
		"type":         func(e *esdouble.Event) { e.Type = "ThingHappenee" },
		"id":           func(e *esdouble.Event) { e.ID.UUID[15]++ },
		"data":         func(e *esdouble.Event) { e.Data = append(slices.Clone(e.Data), 0) },
		"none of ours": func(e *esdouble.Event) { e.Custom = []byte("{}") },
		"no metadata":  func(e *esdouble.Event) { e.Custom = nil },
		// Sound in itself, and of another place.
		"another event": func(e *esdouble.Event) { e.Foreign = other.Foreign },
	}
	check := func(name string, ways map[string]error) {
		t.Helper()
		for way, err := range ways {
			var corrupt *eventstore.CorruptError
			if !errors.As(err, &corrupt) || corrupt.Position != victim.Position ||
				domain.KindOf(err) != domain.Corrupt {
				t.Errorf("%s, %s: %v", name, way, err)
			}
		}
	}
	for name, change := range changes {
		log.Change(victim.Position, change)
		check(name, everyWay(t, s, "a-1"))
		log.Change(victim.Position, func(e *esdouble.Event) { *e = victim })
	}
	for bit := range 8 * len(victim.Custom) {
		log.Change(victim.Position, func(e *esdouble.Event) {
			e.Custom = slices.Clone(e.Custom)
			e.Custom[bit/8] ^= 1 << (bit % 8)
		})
		var corrupt *eventstore.CorruptError
		for _, err := range s.ReadStream(t.Context(), "a-1", 2, eventstore.Forward, 1) {
			// The digit of the format may become that of a newer one.
			if (!errors.As(err, &corrupt) || corrupt.Position != victim.Position) &&
				!domain.IsKind(err, domain.Unsupported) {
				t.Fatalf("bit %d of %s: %v", bit, victim.Custom, err)
			}
		}
		log.Change(victim.Position, func(e *esdouble.Event) { *e = victim })
	}
	for way, err := range everyWay(t, s, "a-1") {
		if err != nil {
			t.Errorf("turned back, %s: %v", way, err)
		}
	}
}

// TestForgedLink replaces an event by one whose hash fits its content: only the event behind it
// tells, also to a reader who begins there.
func TestForgedLink(t *testing.T) {
	build := func(second string) (*esdouble.Log, *kurrent.Store) {
		log := esdouble.New()
		s := connect(t, esdouble.Serve(t, log))
		appendOne(t, s, "a-1", eventstore.NoStream(), "0")
		appendOne(t, s, "a-1", eventstore.At(0), second)
		appendOne(t, s, "a-1", eventstore.At(1), "2")
		return log, s
	}
	log, s := build("1")
	forged, _ := build("another")
	at := log.Events("weft.")[1].Position
	log.Change(at, func(e *esdouble.Event) { e.Foreign = forged.Events("weft.")[1].Foreign })
	var corrupt *eventstore.CorruptError
	behind := log.Events("weft.")[2].Position
	for way, err := range everyWay(t, s, "a-1") {
		if !errors.As(err, &corrupt) || corrupt.Position != behind {
			t.Errorf("%s: %v", way, err)
		}
	}
	for _, err := range s.ReadStream(t.Context(), "a-1", 2, eventstore.Forward, 1) {
		if !errors.As(err, &corrupt) || corrupt.Position != behind {
			t.Errorf("from behind it: %v", err)
		}
	}
}

// TestTwoWriters lets two stores write one stream: what one remembers of it is wrong then, and
// every expectation is still judged by what is there (E6), with a sound chain.
func TestTwoWriters(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	a, b := connect(t, server), connect(t, server)
	appendOne(t, a, "x-1", eventstore.NoStream(), "0")
	appendOne(t, b, "x-1", eventstore.At(0), "1")
	var conflict *eventstore.ConflictError
	_, err := a.Append(t.Context(), "x-1", eventstore.At(0), storetest.Propose("late", 1)...)
	if !errors.As(err, &conflict) || conflict.Current != 1 {
		t.Errorf("a stale belief: %v", err)
	}
	if got := appendOne(t, a, "x-1", eventstore.At(1), "2"); got.Last != 2 {
		t.Errorf("%+v", got)
	}
	if got := appendOne(t, b, "x-1", eventstore.Any(), "3"); got.Last != 3 {
		t.Errorf("%+v", got)
	}
	if got := appendOne(t, a, "x-1", eventstore.At(3), "4"); got.Last != 4 {
		t.Errorf("an expectation ahead of what is remembered: %+v", got)
	}
	// The server takes these ids for a repeat. The content is another, so its hash must not be built
	// upon.
	ev := storetest.Propose("5", 1)
	appendOne(t, b, "x-1", eventstore.At(4), "5")
	ev[0].Data = []byte("other bytes")
	if got, err := a.Append(t.Context(), "x-1", eventstore.At(4), ev...); err != nil ||
		!got.Duplicate || got.Last != 5 {
		t.Errorf("%+v, %v", got, err)
	}
	appendOne(t, a, "x-1", eventstore.At(5), "6")
	for way, err := range everyWay(t, b, "x-1") {
		if err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
}

// TestUnknownOutcome loses appends before and behind the database: the same ids are sent again, and
// one effect is left whatever happened.
func TestUnknownOutcome(t *testing.T) {
	for _, fault := range []esdouble.Fault{esdouble.Lost, esdouble.Applied} {
		log := esdouble.New()
		times := 0
		log.Fault = func(domain.StreamID, []esdb.Foreign) esdouble.Fault {
			if times--; times >= 0 {
				return fault
			}
			return esdouble.None
		}
		s := connect(t, esdouble.Serve(t, log), func(c *kurrent.Config) { c.Attempts = 3 })
		appendOne(t, s, "a-1", eventstore.NoStream(), "0")
		times = 2
		if a := appendOne(t, s, "a-1", eventstore.At(0), "1"); a.Last != 1 || a.Duplicate {
			t.Errorf("fault %d twice: %+v", fault, a)
		}
		times = 3
		_, err := s.Append(t.Context(), "a-1", eventstore.At(1), storetest.Propose("2", 1)...)
		if !errors.Is(err, eventstore.ErrUnknownOutcome) {
			t.Errorf("fault %d three times: %v", fault, err)
		}
		a := appendOne(t, s, "a-1", eventstore.At(1), "2")
		if a.Last != 2 {
			t.Errorf("fault %d, repeated: %+v", fault, a)
		}
		if n := len(log.Events("weft.")); n != 3 {
			t.Errorf("fault %d: %d events", fault, n)
		}
	}
}

// TestLongStream goes beyond a page and beyond the ids that are known anywhere: an old append is
// found at the place it expects.
func TestLongStream(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	s := connect(t, server)
	rev := domain.NoRevision
	for i := range 6 {
		a, err := s.Append(t.Context(), "a-1", eventstore.At(rev),
			storetest.Propose(fmt.Sprint(i), 100)...)
		if err != nil {
			t.Fatal(err)
		}
		rev = a.Last
	}
	for _, s := range []eventstore.Store{s, connect(t, server)} {
		for i, first := range []domain.Revision{-1, 99, 499} {
			ev := storetest.Propose(fmt.Sprint([]int{0, 1, 5}[i]), 100)
			a, err := s.Append(t.Context(), "a-1", eventstore.At(first), ev...)
			if err != nil || !a.Duplicate || a.Last != first+100 {
				t.Errorf("at %d: %+v, %v", first, a, err)
			}
		}
		want := domain.Revision(599)
		for r, err := range s.ReadStream(t.Context(), "a-1", domain.NoRevision, eventstore.Backward,
			eventstore.NoLimit) {
			if err != nil || r.Revision != want {
				t.Fatalf("%d, %v, want %d", r.Revision, err, want)
			}
			want--
		}
		if want != domain.NoRevision {
			t.Errorf("stopped before %d", want)
		}
	}
}

// TestCloseInsideRead closes a store from the body of a read over it: neither waits for the other,
// and the read says why it ends.
func TestCloseInsideRead(t *testing.T) {
	s := connect(t, esdouble.Serve(t, esdouble.New()))
	appendOne(t, s, "a-1", eventstore.NoStream(), "0")
	appendOne(t, s, "a-1", eventstore.At(0), "1")
	var last error
	for _, err := range s.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if last = err; err == nil {
			_ = s.Close()
		}
	}
	if !errors.Is(last, eventstore.ErrClosed) {
		t.Error(last)
	}
}

// TestTextIsUTF8 proves that text the protocol cannot carry is refused before it is sent.
func TestTextIsUTF8(t *testing.T) {
	s := connect(t, esdouble.Serve(t, esdouble.New()))
	ev := storetest.Propose("x", 1)
	ev[0].Actor = "user/\xff"
	_, err := s.Append(t.Context(), "a-1", eventstore.NoStream(), ev...)
	if domain.KindOf(err) != domain.Invalid {
		t.Error(err)
	}
}

// TestGoldenMetadata holds the bytes of the custom metadata: they are fixed for ever.
func TestGoldenMetadata(t *testing.T) {
	log := esdouble.New()
	s := connect(t, esdouble.Serve(t, log), func(c *kurrent.Config) {
		c.Unfenced = true
		c.Mark = func(p []byte) { copy(p, "one call") }
	})
	ev := storetest.Propose("golden", 2)
	ev[0].Token, ev[0].Schema = 1<<48|7, 3
	ev[1].Tenant, ev[1].Source, ev[1].RequestID = "", "", ""
	ev[1].Correlation, ev[1].Causation = domain.EventID{}, domain.EventID{}
	if _, err := s.Append(t.Context(), "a-1", eventstore.NoStream(), ev...); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"full", "least"} {
		e := log.Events("weft.")[i]
		got := fmt.Sprintf("%s\n%s\n", e.Custom, hex.EncodeToString(e.Data))
		path := filepath.Join("testdata", name+".metadata")
		golden, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) && *rewrite {
			golden = []byte(got)
			err = os.WriteFile(path, golden, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got != string(golden) {
			t.Errorf("%s: %s, was %s", name, got, golden)
		}
		if !strings.HasPrefix(got, `{"weft":1,`) {
			t.Errorf("%s: the format does not come first", name)
		}
	}
}
