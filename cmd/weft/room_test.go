package main

import (
	"strings"
	"testing"
	"time"
)

// TestRoom proves that a device which runs full is told from 90 % on, once a percent, and until
// it is below 85; that one which can hold nothing is full; and that what is not here any more is
// told no longer.
func TestRoom(t *testing.T) {
	bg := newBackground()
	r := &rooms{bg: bg, told: map[string]int64{}}
	shown := func() string {
		bg.mu.Lock()
		defer bg.mu.Unlock()
		var out []string
		for what, f := range bg.mu.failing {
			out = append(out, what+": "+f.Error)
		}
		return strings.Join(out, "\n")
	}
	look := func(live ...int64) string {
		var all []fill
		for i, n := range live {
			all = append(all, fill{"/dev/" + string(rune('a'+i)), n, 1000})
		}
		r.look(all)
		return shown()
	}
	if s := look(899, 0); s != "" {
		t.Fatalf("at 89 %%: %s", s)
	}
	if s := look(900, 899); !strings.HasPrefix(s, "keeping room on /dev/a: 90 % is used") {
		t.Fatalf("at 90 %%: %s", s)
	}
	for range 3 {
		look(960, 0)
	}
	if s := shown(); !strings.Contains(s, "/dev/a: 96 %") {
		t.Fatalf("at 96 %%: %s", s)
	}
	if n := bg.totals()["keeping room on /dev/a"]; n != 2 {
		t.Fatalf("told %d times", n)
	}
	if s := look(850, 0); !strings.Contains(s, "/dev/a: 85 %") {
		t.Fatalf("at 85 %%, on its way down: %s", s)
	}
	if s := look(849, 0); s != "" {
		t.Fatalf("it is over: %s", s)
	}
	if s := look(899, 0); s != "" {
		t.Fatalf("it begins anew below 90 %%: %s", s)
	}
	if s := look(0, 1000); !strings.Contains(s, "/dev/b: 100 %") {
		t.Fatalf("the second one: %s", s)
	}
	if s := look(0); s != "" {
		t.Fatalf("the second one is gone: %s", s)
	}
	if s := look(0, 1000); !strings.Contains(s, "/dev/b: 100 %") {
		t.Fatalf("the second one is back: %s", s)
	}
	if (fill{usable: -1}).percent() != 100 {
		t.Error("what holds nothing is not full")
	}
	bg.now = func() time.Time { return time.Now().Add(time.Hour) }
	if len(bg.list()) != 1 {
		t.Error("it is not listed")
	}
}
