package storetest

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/eventstore"
)

// Equal gives two engines the same random histories: every answer and every record, with its hash,
// is the same. Both must keep one chain over the whole log.
func Equal(t *testing.T, a, b Engine) {
	one, two := a.Open(t), b.Open(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		ids := make([]domain.StreamID, 3)
		for i := range ids {
			ids[i] = domain.StreamID(fmt.Sprintf("run%d-%d", run, i))
		}
		from, _ := one.Head(t.Context())
		for step := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			id := rapid.SampledFrom(ids).Draw(rt, "stream")
			expect := rapid.SampledFrom([]eventstore.Expect{
				eventstore.NoStream(), eventstore.At(0), eventstore.At(1), eventstore.At(3),
				eventstore.Any(), eventstore.Exists(),
			}).Draw(rt, "expect")
			// Few seeds, so that ids meet again; the stream belongs to some of them only.
			seed := fmt.Sprintf("%d/%d", run, rapid.IntRange(0, 4).Draw(rt, "seed"))
			if rapid.Bool().Draw(rt, "fresh") {
				seed = fmt.Sprintf("%d/step %d", run, step)
			}
			n := rapid.IntRange(1, 3).Draw(rt, "events")
			got1, err1 := one.Append(t.Context(), id, expect, Propose(seed, n)...)
			got2, err2 := two.Append(t.Context(), id, expect, Propose(seed, n)...)
			if got1 != got2 || fmt.Sprint(err1) != fmt.Sprint(err2) ||
				domain.KindOf(err1) != domain.KindOf(err2) {
				rt.Fatalf("%s %s: %+v %v, against %+v %v", id, expect, got1, err1, got2, err2)
			}
		}
		var rest []eventstore.Recorded
		for r, err := range one.ReadAll(
			t.Context(), from.Position, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
		) {
			if err != nil {
				rt.Fatal(err)
			}
			rest = append(rest, r)
		}
		i := 0
		for r, err := range two.ReadAll(
			t.Context(), from.Position, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
		) {
			if err != nil || i >= len(rest) || r.Header != rest[i].Header ||
				!slices.Equal(r.Data, rest[i].Data) || r.Before != rest[i].Before {
				rt.Fatalf("record %d: %+v, %v", i, r, err)
			}
			i++
		}
		if i != len(rest) {
			rt.Fatalf("%d records against %d", i, len(rest))
		}
	})
}
