package kurrent_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/kurrent"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

// TestSameAnswersAsMemory gives random histories to the reference engine and, through one of two
// stores at a time, to an EventStoreDB: every answer is the same but for positions, and so is the
// content of the logs. The ids of a stream are its own, as the declared difference asks.
func TestSameAnswersAsMemory(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	stores := []*kurrent.Store{connect(t, server), connect(t, server)}
	reference := memory.New()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		for step := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			id := domain.StreamID(fmt.Sprintf("run%d-%d", run, rapid.IntRange(0, 1).Draw(rt, "stream")))
			expect := rapid.SampledFrom([]eventstore.Expect{
				eventstore.NoStream(), eventstore.At(0), eventstore.At(1), eventstore.At(3),
				eventstore.Any(), eventstore.Exists(),
			}).Draw(rt, "expect")
			seed := fmt.Sprintf("%s/%d", id, rapid.IntRange(0, 2).Draw(rt, "seed"))
			if rapid.Bool().Draw(rt, "fresh") {
				seed = fmt.Sprintf("%s/step %d", id, step)
			}
			n := rapid.IntRange(1, 3).Draw(rt, "events")
			want, err1 := reference.Append(t.Context(), id, expect, storetest.Propose(seed, n)...)
			s := rapid.SampledFrom(stores).Draw(rt, "store")
			got, err2 := s.Append(t.Context(), id, expect, storetest.Propose(seed, n)...)
			want.Position, got.Position = 0, 0
			if got != want || domain.KindOf(err1) != domain.KindOf(err2) ||
				(err1 == nil) != (err2 == nil) {
				rt.Fatalf("%s %s: %+v %v, want %+v %v", id, expect, got, err2, want, err1)
			}
		}
		only := []string{fmt.Sprintf("run%d-", run)}
		a, err := duplicate.Digest(t.Context(), reference, only)
		if err != nil {
			rt.Fatal(err)
		}
		b, err := duplicate.Digest(t.Context(), stores[0], only)
		if err != nil || a.Digest != b.Digest || a.Events != b.Events {
			rt.Fatalf("%+v against %+v, %v", b, a, err)
		}
	})
}
