package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestEveryReadHasAPast proves that every read which the log can answer takes a moment. What is
// left tells of the present alone: of who asks, of the nodes as they run, and of bytes on devices;
// or it names places of the log itself.
func TestEveryReadHasAPast(t *testing.T) {
	c := newTester(t)
	present := []string{
		"health", "whoami", "list-sign-in", "list-refusals", "list-failing", "get-log-archive",
		"list-log-segments", "list-log-damage", "get-log-engine", "volume-allocated", "volume-changes",
		"volume-sharing", "snapshot-allocated", "snapshot-changes", "snapshot-sharing", "get-event",
		"export-events", "watch-events",
	}
	paths, _ := c.must("GET", "/openapi.json", "").body["paths"].(map[string]any)
	for path, item := range paths {
		op, ok := item.(map[string]any)["get"].(map[string]any)
		if !ok {
			continue
		}
		takes := false
		list, _ := op["parameters"].([]any)
		for _, p := range list {
			takes = takes || p.(map[string]any)["name"] == "at_position"
		}
		id := fmt.Sprint(op["operationId"])
		if takes == slices.Contains(present, id) {
			t.Errorf("%s %s takes a moment: %v", id, path, takes)
		}
	}
}

// TestPastOfAccess proves that users, tokens, identity providers, outlets, events and the audit are
// shown as they were at a position and at a time, after all of it has changed; that who may see is
// the present's; and that a name which was erased since is in no past.
func TestPastOfAccess(t *testing.T) {
	c := newTester(t)
	c.tenants("acme")
	ann := c.user("ann", "operator", "acme")
	c.user("eve", "viewer", "acme")
	c.must("POST", "/v1/identity-providers",
		`{"name":"corp","issuer":"https://id.example.org","client_id":"weft"}`)
	c.must("POST", "/v1/outlets",
		`{"name":"bus","kind":"nats","address":"nats://127.0.0.1:9","topic":"t"}`)
	c.must("POST", "/v1/outlets/bus/pause", "")
	at := c.must("GET", "/v1/apps", "").header.Get("Weft-Position")
	created := ""
	for _, e := range items(c.must("GET", "/v1/events?newest=true&limit=1&at_position="+at, "")) {
		created = fmt.Sprint(e["created"])
		if e["position"] != at {
			t.Errorf("the newest event at %s is %v", at, e["position"])
		}
	}
	paths := []string{
		"/v1/users", "/v1/tokens", "/v1/identity-providers", "/v1/outlets", "/v1/audit", "/v1/events",
		"/v1/events?newest=true&limit=3", "/v1/events?since=3",
	}
	show := func(x *tester, path, at string) string {
		t.Helper()
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		return fmt.Sprint(x.must("GET", path+sep+"at_position="+at, "").body)
	}
	was := map[string]string{}
	for _, p := range paths {
		was[p] = show(c, p, at)
	}
	for what, text := range map[string]string{
		"/v1/users": "ann", "/v1/identity-providers": "corp", "/v1/outlets": "paused",
		"/v1/audit": "UserCreated",
	} {
		if !strings.Contains(was[what], text) {
			t.Errorf("%s: no %s in %s", what, text, was[what])
		}
	}
	for _, x := range items(c.must("GET", "/v1/tokens", "")) {
		c.must("DELETE", "/v1/tokens/"+fmt.Sprint(x["id"]), "")
	}
	c.must("POST", "/v1/users/ann/disable", "")
	c.must("DELETE", "/v1/identity-providers/corp", "")
	c.must("DELETE", "/v1/outlets/bus", "")
	for _, p := range paths {
		if got := show(c, p, at); got != was[p] {
			t.Errorf("%s at %s was\n%s\nand is\n%s", p, at, was[p], got)
		}
		if got := show(c, p, "1"); got == was[p] {
			t.Errorf("%s is the same at 1 and at %s", p, at)
		}
		if got := show(c, p, created); got != was[p] {
			t.Errorf("%s at the time %s was\n%s\nand is\n%s", p, created, was[p], got)
		}
		c.want(c.do("GET", p+map[bool]string{true: "&", false: "?"}[strings.Contains(p, "?")]+
			"at_position=99999", ""), 422, "out_of_range")
	}
	c.must("POST", "/v1/users/eve/erase", "")
	if got := show(c, "/v1/users", at); strings.Contains(got, "eve") || !strings.Contains(got, "ann") {
		t.Errorf("behind the erasure: %s", got)
	}
	// Ann has lost her token: what she could read is no reason to let her in.
	c.want(ann.do("GET", "/v1/users?at_position="+at, ""), 401, "denied")
}
