package cli

import (
	"testing"
	"time"
)

// TestMoment proves what --at takes, and what becomes of it.
func TestMoment(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	local := time.Date(2026, 11, 25, 10, 30, 0, 0, time.Local).UTC().Format(time.RFC3339Nano)
	for in, want := range map[string]string{
		"0": "0", "12": "12", "281474976710657": "281474976710657",
		"2026-11-25T12:00:00Z":        "2026-11-25T12:00:00Z",
		"2026-11-25T12:00:00.5+01:00": "2026-11-25T11:00:00.5Z",
		"90m":                         "2026-11-25T10:30:00Z", "0s": "2026-11-25T12:00:00Z",
		"2026-11-25 10:30": local, "2026-11-25 10:30:00": local,
	} {
		m := momentFlag{now: func() time.Time { return now }}
		if err := m.Set(in); err != nil || m.text != want {
			t.Errorf("%q: %q, %v; want %q", in, m.text, err, want)
		}
	}
	for _, in := range []string{"", "yesterday", "-1", "-2h", "12:00", "2026-13-01"} {
		var m momentFlag
		if err := m.Set(in); err == nil {
			t.Errorf("%q: %q", in, m.text)
		}
	}
}

// TestCompare proves that a difference names each field by its path, and nothing that is equal.
func TestCompare(t *testing.T) {
	flat := func(v map[string]any) map[string]any {
		out := map[string]any{}
		flatten(out, "", v)
		return out
	}
	was := flat(map[string]any{
		"name": "a", "size": 1.0, "tags": []any{"x", "y"}, "policy": map[string]any{"replicas": 1.0},
	})
	is := flat(map[string]any{
		"name": "a", "size": 2.0, "tags": []any{"x"}, "policy": map[string]any{
			"replicas": 1.0, "media": "flash",
		},
	})
	got := diffText([]difference{{"volume/a", "changed", compare(was, is)}})
	const want = "volume/a changed\n    policy.media: - -> flash\n    size: 1 -> 2\n" +
		"    tags[1]: y -> -\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := compare(was, was); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
