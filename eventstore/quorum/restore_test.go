package quorum

import (
	"fmt"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/storetest"
)

// TestImport proves that a log is filled with a history byte for byte, over several transactions,
// goes on behind it in a higher timeline, also after restarts, that cursors of the history that was
// given up are told so, and that a log which holds something takes nothing.
func TestImport(t *testing.T) {
	from := open(t, t.TempDir())
	const events = 307
	for i := range events {
		id := domain.StreamID(fmt.Sprintf("s-%d", i%5))
		ev := storetest.Propose(fmt.Sprint(i), 1)
		ev[0].Data = make([]byte, 3*importBytes/events)
		_, err := from.Append(t.Context(), id, eventstore.At(domain.Revision(i/5-1)), ev...)
		if err != nil {
			t.Fatal(err)
		}
	}
	head, err := from.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to := open(t, dir)
	if err := to.Import(t.Context(), archive.Of(from)(t.Context(), 0), 3); err != nil {
		t.Fatal(err)
	}
	next := domain.PositionOf(3, head.Position.N()+1)
	a, err := to.Append(t.Context(), "s-0", eventstore.At(domain.Revision((events-1)/5)),
		storetest.Propose("after", 1)...)
	if err != nil || a.Position != next {
		t.Fatalf("%+v, want position %s; %v", a, next, err)
	}
	for range 2 {
		n := 0
		for r, err := range to.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
			eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			if r.Position > head.Position {
				if r.Position != next || r.Prev != head.Hash {
					t.Errorf("%s follows %s", r.Position, head.Position)
				}
				continue
			}
			was := from.mirror.Raw(r.Position)
			if string(eventstore.AppendRecord(nil, &r)) != string(was) {
				t.Fatalf("position %s is another record", r.Position)
			}
		}
		if n != int(head.Position.N())+1 {
			t.Fatalf("%d events", n)
		}
		lost := domain.PositionOf(0, head.Position.N()+1) // of the history that was given up
		if _, err := to.Subscribe(t.Context(), lost, domain.Filter{}); !domain.IsKind(err,
			domain.Stale) {
			t.Errorf("a cursor of the lost history: %v", err)
		}
		if err := to.Verify(t.Context(), func(domain.Position) {}); err != nil {
			t.Error(err)
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
		to = open(t, dir)
	}
	err = to.Import(t.Context(), archive.Of(from)(t.Context(), 0), 4)
	if !domain.IsKind(err, domain.Exists) {
		t.Errorf("into a log that holds something: %v", err)
	}
}
