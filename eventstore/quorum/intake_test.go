package quorum

import (
	"errors"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// What is known is taken again only when it is the same to the byte and at its place; what has a
// hole is taken up to it; and readers are woken once for all of it (Q4).
func TestIntake(t *testing.T) {
	var source eventstore.Mirror
	d := eventstore.NewDraft(&source)
	for _, id := range []domain.StreamID{"a-1", "b-1", "c-1", "d-1"} {
		if _, err := d.Add(id, eventstore.NoStream(), storetest.Propose(string(id), 1)); err != nil {
			t.Fatal(err)
		}
	}
	all := d.Entries()
	var m eventstore.Mirror
	in := &intake{mirror: &m}
	holds := func(n uint64) {
		t.Helper()
		if got := m.Head().Position.N(); got != n {
			t.Errorf("the mirror holds %d records, want %d", got, n)
		}
	}
	if err := in.takeAll([]eventstore.Entry{all[0], all[1], all[3]}); !errors.Is(err, errGap) {
		t.Errorf("a hole: %v", err)
	}
	holds(2)
	if err := in.takeAll(all[3:]); !errors.Is(err, errGap) {
		t.Errorf("a hole before all: %v", err)
	}
	if err := in.takeAll(all); err != nil { // two of them known
		t.Error(err)
	}
	holds(4)
	flipped := append([]byte(nil), all[1].Record...)
	for bit := range 8 * len(flipped) {
		flipped[bit/8] ^= 1 << (bit % 8)
		err := in.takeAll([]eventstore.Entry{all[0], {At: all[1].At, Record: flipped}})
		if !errors.Is(err, eventstore.ErrCorrupt) && !domain.IsKind(err, domain.Unsupported) {
			t.Fatalf("bit %d of a known record: %v", bit, err)
		}
		flipped[bit/8] ^= 1 << (bit % 8)
	}
	for _, at := range []domain.Position{all[2].At, domain.PositionOf(1, 2)} {
		if err := in.take(eventstore.Entry{At: at, Record: all[1].Record}); !errors.Is(
			err, eventstore.ErrCorrupt) {
			t.Errorf("a known record at %s: %v", at, err)
		}
	}
	other := eventstore.NewDraft(&eventstore.Mirror{})
	if _, err := other.Add("z-1", eventstore.NoStream(), storetest.Propose("z", 1)); err != nil {
		t.Fatal(err)
	}
	if err := in.takeAll(other.Entries()); !errors.Is(err, eventstore.ErrCorrupt) {
		t.Errorf("another record in the place of a known one: %v", err)
	}
	holds(4)
}
