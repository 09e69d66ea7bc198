package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"weft/adapters/rest"
	"weft/domain/identity"
)

// TestRefusalFilesRotate proves that a file never grows over its limit, that no more files are kept
// than allowed, that the newest come first across files, and that a line which was cut off by a
// crash hides no other.
func TestRefusalFilesRotate(t *testing.T) {
	r := &refusals{
		dir: t.TempDir(), max: 1000, log: slog.New(slog.DiscardHandler),
		told: make(chan identity.CommandRefused, 1),
	}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	const n = 200
	for i := range n {
		r.note(rest.Attempt{Request: fmt.Sprint(i), Reason: "no token"})
	}
	list, err := r.newest(7)
	if err != nil || len(list) != 7 || list[0].Request != "199" || list[6].Request != "193" {
		t.Fatalf("%v %v", list, err)
	}
	files, err := os.ReadDir(r.dir)
	if err != nil || len(files) != refusalFiles {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if st, err := f.Info(); err != nil || st.Size() > r.max || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f.Name(), st, err)
		}
	}
	if err := r.write([]byte(`{"time":"20`)); err != nil {
		t.Fatal(err)
	}
	if err := r.mu.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	r.note(rest.Attempt{Request: "after"})
	list, err = r.newest(1000)
	if err != nil || list[0].Request != "after" || list[1].Request != "199" || len(list) < 15 {
		t.Errorf("%v %v", list, err)
	}
	if err := r.mu.file.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRefusalsBecomeFewEvents proves that the first refused attempt of a kind is an event at once,
// that a hundred like it are none, and that paths which a caller makes up are one kind.
func TestRefusalsBecomeFewEvents(t *testing.T) {
	c := newTester(t)
	nobody := c.as("")
	for i := range 100 {
		nobody.do("GET", fmt.Sprintf("/v1/apps/%d", i), "")
	}
	c.want(c.do("DELETE", "/v1/templates/none", ""), 404, "not_found")
	seen := c.watchUntil(t, "delete-template", func() {})
	if n := strings.Count(seen, "event: CommandRefused"); n != 2 {
		t.Errorf("%d events:\n%s", n, seen)
	}
	for _, want := range []string{`"who":"address/127.0.0.1"`, `"reason":"no token"`, `"count":1`} {
		if !strings.Contains(seen, want) {
			t.Errorf("no event says %s", want)
		}
	}
}
