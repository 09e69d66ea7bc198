package storetest

import (
	"errors"
	"testing"

	"weft/domain"
	"weft/eventstore"
)

// testElsewhere proves E8: what a log takes of intents follows from its EngineStream, at every
// append, and nothing else does.
func testElsewhere(t *testing.T, e Engine) {
	if e.StreamChain != nil {
		t.Skip("this engine is the other log")
	}
	s := e.Open(t)
	first := Propose("first", 2)
	must(t, s, "tenant-a", eventstore.NoStream(), first...)
	copied := func(id domain.StreamID, after domain.Revision, seed string) error {
		_, err := s.Append(t.Context(), id, eventstore.Copied(after), Propose(seed, 1)...)
		return err
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, eventstore.ErrElsewhere) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a copy into an open log", copied("tenant-a", 1, "early"))
	for term := range 3 {
		must(t, s, eventstore.EngineStream, eventstore.At(domain.Revision(2*term-1)),
			Propose("close"+string(rune('a'+term)), 1)...)
		seed := string(rune('a' + term))
		_, err := s.Append(t.Context(), "tenant-a", eventstore.At(domain.Revision(2*term+1)),
			Propose("direct"+seed, 1)...)
		refused("an intent into a closed log", err)
		_, err = s.Append(t.Context(), "tenant-a", eventstore.Any(), Propose("any"+seed, 1)...)
		refused("an intent for any revision", err)
		if err := copied("tenant-a", domain.Revision(2*term), "late"+seed); !errors.Is(err,
			eventstore.ErrConflict) {
			t.Errorf("a copy at another place: %v", err)
		}
		if err := copied("tenant-a", domain.Revision(2*term+1), "copy"+seed); err != nil {
			t.Errorf("a copy into a closed log: %v", err)
		}
		a, err := s.Append(t.Context(), "tenant-a", eventstore.NoStream(), first...)
		if err != nil || !a.Duplicate {
			t.Errorf("a repeat of what is there: %+v, %v", a, err)
		}
		for _, id := range []domain.StreamID{"node-a", "volume-a", "plan-a"} {
			must(t, s, id, eventstore.At(domain.Revision(term-1)), Propose(string(id)+seed, 1)...)
			refused("a copy of no intent", copied(id, domain.Revision(term), "no"+string(id)+seed))
		}
		must(t, s, eventstore.EngineStream, eventstore.At(domain.Revision(2*term)),
			Propose("open"+seed, 1)...)
		refused("a copy into an open log", copied("tenant-a", domain.Revision(2*term+2), "too"+seed))
		must(t, s, "tenant-a", eventstore.At(domain.Revision(2*term+2)), Propose("after"+seed, 1)...)
	}
}
