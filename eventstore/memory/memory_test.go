package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	of := func(t testing.TB, s eventstore.Store) *memory.Store {
		m, ok := s.(*memory.Store)
		if !ok {
			t.Fatalf("%T", s)
		}
		return m
	}
	storetest.Run(t, storetest.Engine{
		Open: func(t testing.TB) eventstore.Store {
			m := memory.New()
			t.Cleanup(func() { _ = m.Close() })
			return m
		},
		Flip: func(
			t testing.TB, s eventstore.Store, p domain.Position, bit int,
		) (func() error, func()) {
			m := of(t, s)
			if !m.Flip(p, bit) {
				t.Fatalf("no bit %d at %s", bit, p)
			}
			read := func() error {
				for _, err := range m.ReadAll(
					t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
				) {
					if err != nil {
						return err
					}
				}
				return nil
			}
			return read, func() { m.Flip(p, bit) }
		},
		Restore: func(t testing.TB, s eventstore.Store, keep uint64, to domain.Timeline) {
			if err := of(t, s).Restore(keep, to); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// Each injected failure answers as the real one does, and a repeat with the same ids ends in one
// effect whether the append was applied or lost.
func TestFaults(t *testing.T) {
	for fault, want := range map[memory.Fault]error{
		memory.Conflict: eventstore.ErrConflict, memory.UnknownApplied: eventstore.ErrUnknownOutcome,
		memory.UnknownLost: eventstore.ErrUnknownOutcome, memory.NoSpace: eventstore.ErrNoSpace,
	} {
		calls := 0
		m := memory.New(memory.WithFaults(
			func(domain.StreamID, []eventstore.Proposed) memory.Fault {
				if calls++; calls == 1 {
					return fault
				}
				return memory.None
			},
		))
		ev := storetest.Propose("x", 2)
		if _, err := m.Append(t.Context(), "a-1", eventstore.NoStream(), ev...); !errors.Is(err, want) {
			t.Errorf("fault %d: %v", fault, err)
		}
		a, err := m.Append(t.Context(), "a-1", eventstore.NoStream(), ev...)
		if err != nil || a.Last != 1 || a.Duplicate != (fault == memory.UnknownApplied) {
			t.Errorf("fault %d, repeated: %+v, %v", fault, a, err)
		}
	}
}

// The last IDsMax ids are known wherever they are expected; older ones only at their place.
func TestIDsMax(t *testing.T) {
	m := memory.New()
	first := storetest.Propose("first", 1)
	add := func(e eventstore.Expect, ev []eventstore.Proposed) eventstore.Appended {
		a, err := m.Append(t.Context(), "a-1", e, ev...)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	rev := add(eventstore.NoStream(), first).Last
	for rev < eventstore.IDsMax-1 {
		n := min(100, eventstore.IDsMax-1-int(rev))
		rev = add(eventstore.At(rev), storetest.Propose(fmt.Sprint(rev), n)).Last
	}
	if a := add(eventstore.Any(), first); !a.Duplicate {
		t.Fatalf("with %d ids: %+v", rev+1, a)
	}
	rev = add(eventstore.At(rev), storetest.Propose("one more", 1)).Last
	if a := add(eventstore.NoStream(), first); !a.Duplicate || a.Last != 0 {
		t.Errorf("at its place: %+v", a)
	}
	if a := add(eventstore.Any(), first); a.Duplicate || a.Last != rev+1 {
		t.Errorf("beyond the limit: %+v", a)
	}
}

// The gate holds an append back and may refuse it.
func TestGate(t *testing.T) {
	refusal := errors.New("closed")
	m := memory.New(memory.WithGate(func(context.Context) error { return refusal }))
	if _, err := m.Append(
		t.Context(), "a-1", eventstore.NoStream(), storetest.Propose("x", 1)...,
	); !errors.Is(err, refusal) {
		t.Fatal(err)
	}
	if head, err := m.Head(t.Context()); err != nil || head.Position != 0 {
		t.Fatalf("%+v, %v", head, err)
	}
}

// Damage in one record is met by every way of reading it, and what lies before stays readable.
func TestDamageIsMetEverywhere(t *testing.T) {
	m := memory.New()
	for i := range 4 {
		if _, err := m.Append(t.Context(), "a-1", eventstore.At(domain.Revision(i-1)),
			storetest.Propose(string(rune('a'+i)), 1)...); err != nil {
			t.Fatal(err)
		}
	}
	m.Flip(3, 8*m.RecordSize(3)-1) // in its hash
	var corrupt *eventstore.CorruptError
	seen := 0
	for _, err := range m.ReadStream(t.Context(), "a-1", 0, eventstore.Forward, eventstore.NoLimit) {
		if err != nil && (!errors.As(err, &corrupt) || corrupt.Position != 3) {
			t.Error(err)
		}
		seen++
	}
	if seen != 3 {
		t.Errorf("%d steps, want two events and one error", seen)
	}
	// The record behind is sound; its predecessor is not, and that one is named.
	for _, err := range m.ReadStream(t.Context(), "a-1", 3, eventstore.Forward, eventstore.NoLimit) {
		if !errors.As(err, &corrupt) || corrupt.Position != 3 {
			t.Error(err)
		}
	}
	sub, err := m.Subscribe(t.Context(), 2, domain.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := sub.Next(t.Context()); !errors.As(err, &corrupt) || corrupt.Position != 3 {
			t.Error(err)
		}
	}
}
