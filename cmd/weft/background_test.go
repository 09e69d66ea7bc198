package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/testing/esdouble"
)

// TestBackground proves that what fails is shown once it has failed for a while, since the first
// time, with the last error and the place it stands at, until it goes well or is done elsewhere;
// and that waiting is no failure.
func TestBackground(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	began := now
	b := newBackground()
	b.now = func() time.Time { return now }
	b.reached(40)
	b.note("archive", 0, errors.New("no room"))
	b.note("outlet/bus", 7, errors.New("refused"))
	b.note("waits", 0, domain.Errorf(domain.Busy, "others copy"))
	if got := b.list(); len(got) != 0 {
		t.Errorf("shown at once: %+v", got)
	}
	now = now.Add(failingShown)
	b.reached(50)
	b.note("archive", 0, errors.New("no room at all"))
	b.note("outlet/bus", 9, errors.New(strings.Repeat("x", 2*failingText)))
	want := []command.Failing{
		{What: "archive", Since: began, Failures: 2, Error: "no room at all", Position: 40},
		{
			What: "outlet/bus", Since: began, Failures: 2, Error: strings.Repeat("x", failingText),
			Position: 9,
		},
	}
	if got := b.list(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%+v, want %+v", got, want)
	}
	b.end("archive")
	b.note("outlet/bus", 9, nil)
	if got := b.list(); len(got) != 0 {
		t.Errorf("shown when it is over: %+v", got)
	}
	b.note("archive", 0, errors.New("again"))
	now = now.Add(failingShown)
	if got := b.list(); len(got) != 1 || !got[0].Since.After(began) || got[0].Failures != 1 {
		t.Errorf("a second time: %+v", got)
	}
	if n := b.totals(); n["archive"] != 3 || n["outlet/bus"] != 2 || len(n) != 2 {
		t.Errorf("counted: %v", n)
	}
}

// TestFailingIsShown proves that the trouble of outlets is seen by whoever asks a node: one whose
// broker is away, one whose event store is, with the place they stand at, and no longer once it
// is back; and that the page of metrics has the same.
func TestFailingIsShown(t *testing.T) {
	store := esdouble.Serve(t, esdouble.New())
	store.Stop()
	c := newTester(t)
	c.must("POST", "/v1/outlets", `{"name":"copy","kind":"mirror","address":"esdb://`+store.Addr+
		`?tls=false&keepAliveInterval=-1"}`)
	c.must("POST", "/v1/outlets",
		`{"name":"bus","kind":"nats","address":"nats://127.0.0.1:1","topic":"weft.bus"}`)
	failing := func() map[string]map[string]any {
		out := map[string]map[string]any{}
		list, _ := c.must("GET", "/v1/failing", "").body["items"].([]any)
		for _, x := range list {
			f, _ := x.(map[string]any)
			what, _ := f["what"].(string)
			out[what] = f
		}
		return out
	}
	has := func(f map[string]any, key string) bool { s, _ := f[key].(string); return s != "" }
	until(t, "both are shown", func(context.Context) bool {
		f := failing()
		for _, what := range []string{"outlet/copy", "outlet/bus"} {
			x := f[what]
			if !has(x, "since") || !has(x, "error") || !has(x, "node") || !has(x, "position") {
				return false
			}
		}
		return f["outlet/copy"]["position"] == "1"
	})
	page := c.metrics()
	for _, line := range []string{
		`weft_failing{work="outlet/copy"} 1`, `weft_failing_position{work="outlet/copy"} 1`,
		`weft_failing_since_seconds{work="outlet/copy"} `, `weft_failing{work="outlet/bus"} 1`,
		`weft_failures_total{work="outlet/bus"} `,
	} {
		if !strings.Contains(page, line) {
			t.Errorf("the metrics have no %s", line)
		}
	}
	store.Start()
	until(t, "one is over", func(context.Context) bool {
		f := failing()
		return f["outlet/copy"] == nil && f["outlet/bus"] != nil
	})
	if page := c.metrics(); strings.Contains(page, `weft_failing{work="outlet/copy"}`) {
		t.Error("the metrics still show what is over")
	}
	c.must("POST", "/v1/outlets/bus/pause", "")
	until(t, "nobody tries", func(context.Context) bool { return len(failing()) == 0 })
}
