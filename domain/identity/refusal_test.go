package identity

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestRefusalFlood proves that however attempts come, no second has more than ten events, at most
// so many kinds are told apart, one kind has one event a window and one more at its end, and in the
// end every attempt is counted.
func TestRefusalFlood(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tally Tally
		now := time.Unix(1_800_000_000, 0)
		noted, told := int64(0), int64(0)
		perSecond, events := map[int64]int{}, map[string]int{}
		take := func(list []CommandRefused) {
			for _, ev := range list {
				told += ev.Count
				perSecond[now.Unix()]++
				events[ev.Who]++
				if ev.First.After(ev.Last) || ev.Count < 1 {
					t.Fatalf("%+v", ev)
				}
			}
		}
		kinds := rapid.SampledFrom([]int{1, 3, 40, 3000}).Draw(t, "kinds")
		n := rapid.IntRange(1, 4000).Draw(t, "attempts")
		for i := range n {
			take(tally.Note(now, CommandRefused{Who: string(rune('a' + i%kinds))}))
			noted++
			if len(tally.open) > RefusalKindsMax+1 {
				t.Fatalf("%d windows", len(tally.open))
			}
			if i%500 == 0 {
				now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond)
				take(tally.Due(now))
			}
		}
		short := now.Sub(time.Unix(1_800_000_000, 0)) < RefusalWindow
		for who, count := range events {
			if short && count > 1 {
				t.Fatalf("%d events of %q within a window", count, who)
			}
		}
		for range 60 + RefusalKindsMax {
			now = now.Add(time.Second)
			take(tally.Due(now))
		}
		if told != noted || len(tally.open) != 0 {
			t.Fatalf("%d of %d told, %d windows open", told, noted, len(tally.open))
		}
		for s, count := range perSecond {
			if count > RefusalsPerSecond {
				t.Fatalf("%d events in second %d", count, s)
			}
		}
	})
}
