package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/tenancy"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/projections"
	"weft/projections/access"
)

// raw gives the body of a GET as it comes.
func (c *tester) raw(path string) []byte {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), "GET", c.base+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("GET %s: %d, %v", path, res.StatusCode, err)
	}
	return b
}

// rebuilt proves that the view of users, folded anew from the first event, equals the live one.
func rebuilt(t *testing.T, n *Node) {
	t.Helper()
	fresh, at, err := projections.Rebuild(t.Context(), n.backend.runner, func() *access.View {
		return access.New(n.backend.vault)
	})
	if err != nil {
		t.Fatal(err)
	}
	want, now, err := n.backend.runner.Hash("access")
	if err != nil {
		t.Fatal(err)
	}
	got, err := projections.StateHash(fresh)
	if err != nil || at.Position == now.Position && got != want {
		t.Errorf("the view folded anew differs from the live one at %s: %v", at.Position, err)
	}
	if at.Position == 0 {
		t.Error("nothing was folded")
	}
}

// places are where an administrator can see who did what, or what there is.
var places = []string{
	"/v1/users", "/v1/tokens", "/v1/audit?limit=1000", "/v1/audit/refusals?limit=1000",
	"/v1/events?limit=1000", "/v1/events?limit=1000&newest=true", "/v1/events:export",
	"/v1/apps", "/v1/templates", "/v1/tenants", "/v1/nodes", "/v1/identity-providers", "/v1/whoami",
	"/v1/health", "/v1/failing", "/metrics", "/openapi.json",
}

// TestErase proves that after an erasure nothing tells the name, the subject or a note any more: no
// list, event, audit, past state, payload as the served protocol shows it, record of a backup, or
// file of the node; that what stands there instead says so; that the user is shut out by every
// token; that the name is free and is another's then; that the log is sound and its views fold to
// the same; and that all this is so after a restart.
func TestErase(t *testing.T) {
	dir := t.TempDir()
	n, down := startNode(t, dir)
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	me := c.person()
	user, _ := n.backend.views.access.User(personName)
	id, name := user.User.String(), identity.ErasedName(user.User)
	before := n.backend.runner.Position()
	rebuilt(t, n)
	if text := string(c.raw("/v1/events?limit=1000")); !strings.Contains(text, personName) {
		t.Fatalf("nothing shows the name before: %s", text)
	}
	a := c.must("POST", "/v1/users/"+personName+"/erase", "", "Idempotency-Key", "erase")
	if a.text("name") != name || a.text("id") != id || a.body["clear"] != nil {
		t.Errorf("%v", a.body)
	}
	if b, err := n.backend.store.Secrets().Load(t.Context(), "user/"+id); b != nil || err != nil {
		t.Errorf("the key is there: %v", err)
	}
	c.want(me.do("GET", "/v1/whoami", ""), 401, "denied")
	check := func() {
		t.Helper()
		for _, path := range append(slices.Clone(places),
			"/v1/templates?at_position="+before.String(), "/v1/apps?at_position="+before.String()) {
			if text := personal(c.raw(path)); text != "" {
				t.Errorf("%s shows %s", path, text)
			}
		}
		for _, path := range []string{"/v1/users", "/v1/events?limit=1000", "/v1/audit?limit=1000"} {
			if text := string(c.raw(path)); !strings.Contains(text, name) {
				t.Errorf("%s does not show %s", path, name)
			}
		}
		show, shown := n.backend.renderer(true), false
		for r, err := range n.backend.store.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
			eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			text, err := show(&r)
			if err != nil || personal(text) != "" {
				t.Errorf("%s is served as %s, %v", r.Type, text, err)
			}
			shown = shown || strings.Contains(string(text), name)
		}
		if !shown {
			t.Errorf("no event is served with %s", name)
		}
		if found := logHolds(t, n); found != "" {
			t.Errorf("the log holds %s", found)
		}
		if v := c.must("POST", "/v1/events:verify", ""); v.body["sound"] != true {
			t.Errorf("verify: %v", v.body)
		}
		rebuilt(t, n)
	}
	check()
	_, err := n.backend.exec.Do(t.Context(), domain.Request{Command: identity.IssueToken{
		Life: identity.TokenLifeMax, TokenIssued: identity.TokenIssued{
			Token: domain.AccessTokenID{UUID: randomUUID()}, Owner: user.User, Role: "viewer",
			Hash: hashOf([]byte("x")), Note: domain.Personal{Text: personNote},
		},
	}})
	if !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a note of an erased user is sealed again: %v", err)
	}
	c.want(c.do("POST", "/v1/users/"+id+"/enable", ""), 409, "conflict")
	c.want(c.do("POST", "/v1/users/"+id+"/grant", `{"role":"admin"}`), 409, "conflict")
	c.want(c.do("POST", "/v1/users/"+personName+"/erase", ""), 404, "not_found")
	c.must("POST", "/v1/users/"+id+"/erase", "", "Idempotency-Key", "erase")
	c.must("POST", "/v1/users/"+id+"/erase", "")
	down()
	for path, b := range under(t, dir) {
		if text := personal(b); text != "" {
			t.Errorf("%s holds %s", path, text)
		}
	}
	n, down = startNode(t, dir)
	c = &tester{t, "http://" + n.api.addr, c.token, newHTTP(t)}
	defer down()
	check()
	// Somebody else of the same name has nothing of theirs, and is shown.
	next := c.user(personName, "viewer", "")
	if a := next.must("GET", "/v1/whoami", ""); a.text("name") != personName || a.text("user") == id {
		t.Errorf("the next of the name: %v", a.body)
	}
	if text := string(c.raw("/v1/events?types=UserCreated")); !strings.Contains(text, name) {
		t.Errorf("the events give the erased user the name back: %s", text)
	}
	c.must("DELETE", "/v1/users/"+name, "")
	if text := string(c.raw("/v1/users")); strings.Contains(text, name) {
		t.Errorf("deleted, and in the list: %s", text)
	}
}

// TestEraseOlder proves of a user whom the log names in clear, as it did before there were keys:
// the name cannot be taken twice, the erasure says that older events hold it, what the node shows
// does not, and the name is free afterwards.
func TestEraseOlder(t *testing.T) {
	n, down := startNode(t, t.TempDir())
	defer down()
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	user := domain.UserID{UUID: randomUUID()}
	directory := tenancy.DirectoryStream(n.dir.id.Cluster)
	older := func(s domain.StreamID, typ string, payload any) {
		t.Helper()
		data, err := codec.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		cmd := domain.CommandID{UUID: randomUUID()}
		a, err := n.backend.store.Append(t.Context(), s, eventstore.Any(), eventstore.Proposed{
			Header: domain.Header{
				ID: cmd.EventID(0), Type: typ, Schema: 1, Actor: "user/admin", Command: cmd,
				Created: time.Now().UTC().Truncate(time.Microsecond),
			},
			Data: data,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.backend.Wait(t.Context(), a.Position); err != nil {
			t.Fatal(err)
		}
	}
	older(directory, "NameTaken", struct {
		Kind   string      `msgpack:"kind"`
		Name   string      `msgpack:"name"`
		Object domain.UUID `msgpack:"object"`
	}{"user", personName, user.UUID})
	older(identity.UserStream(user), "UserCreated", struct {
		User domain.UserID `msgpack:"user"`
		Name string        `msgpack:"name"`
	}{user, personName})
	body := fmt.Sprintf(`{"name":%q}`, personName)
	c.want(c.do("POST", "/v1/users", body), 409, "exists")
	if text := string(c.raw("/v1/users")); !strings.Contains(text, personName) {
		t.Errorf("not shown: %s", text)
	}
	rebuilt(t, n)
	a := c.must("POST", "/v1/users/"+personName+"/erase", "")
	if a.body["clear"] != true {
		t.Errorf("it does not say that older events hold the name: %v", a.body)
	}
	for _, path := range []string{"/v1/users", "/v1/events?limit=1000"} {
		text := string(c.raw(path))
		if personal([]byte(text)) != "" || !strings.Contains(text, identity.ErasedName(user)) {
			t.Errorf("%s shows %s", path, text)
		}
	}
	if found := logHolds(t, n); !strings.HasPrefix(found, "NameTaken") {
		t.Errorf("and the log holds %q: the test proves nothing", found)
	}
	rebuilt(t, n)
	c.must("POST", "/v1/users", body)
}

// TestLeaderDestroysKeys proves that the key of a user whom the log says is erased is destroyed by
// the node that leads, where whoever recorded it went no further; also of one who was deleted.
func TestLeaderDestroysKeys(t *testing.T) {
	n, down := startNode(t, t.TempDir())
	defer down()
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	c.person()
	user, _ := n.backend.views.access.User(personName)
	c.must("DELETE", "/v1/users/"+personName, "")
	if text := string(c.raw("/v1/audit")); !strings.Contains(text, personName) {
		t.Errorf("who was deleted has no name in the audit: %s", text)
	}
	_, err := n.backend.exec.Do(t.Context(), domain.Request{Command: identity.EraseUser{
		Cluster: n.dir.id.Cluster, User: user.User,
	}})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the key is destroyed", func(ctx context.Context) bool {
		kept, err := n.backend.vault.Kept(ctx)
		return err == nil && !slices.Contains(kept, user.User)
	})
	if text := personal(c.raw("/v1/audit")); text != "" {
		t.Errorf("the audit shows %s", text)
	}
	c.must("POST", "/v1/users/"+user.User.String()+"/erase", "")
}

// TestAddressesAreSealed proves that no event holds the address that a user called from, neither
// around its payload nor in what it says of a refused attempt; that who reads the event sees it;
// and that an erasure takes it away.
func TestAddressesAreSealed(t *testing.T) {
	n, down := startNode(t, t.TempDir())
	defer down()
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	c.person()
	user, _ := n.backend.views.access.User(personName)
	actor, seen, refused := "user/"+user.User.String(), 0, 0
	until(t, "the refused attempt is told", func(ctx context.Context) bool {
		seen, refused = 0, 0
		for r, err := range n.backend.store.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{},
			eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			by, told := r.Actor == actor, strings.Contains(string(r.Data), actor)
			if told {
				refused++
			}
			if by {
				seen++
			}
			if (by || told) && (strings.Contains(r.Source, "127.0.0.1") ||
				strings.Contains(string(r.Data), "127.0.0.1")) {
				t.Fatalf("%s holds the address", r.Type)
			}
		}
		return refused > 0
	})
	if seen == 0 {
		t.Error("the user did nothing")
	}
	sources := func(types string) (list []string) {
		items, _ := c.must("GET", "/v1/events?limit=1000&types="+types, "").body["items"].([]any)
		for _, x := range items {
			m, _ := x.(map[string]any)
			text, _ := m["source"].(string)
			if data, ok := m["data"].(map[string]any); ok && types == "CommandRefused" {
				text = fmt.Sprint(data["source"], " ", data["who"])
			}
			list = append(list, text)
		}
		return list
	}
	for _, types := range []string{"TemplateCreated", "CommandRefused"} {
		got := sources(types)
		if len(got) != 1 || !strings.HasPrefix(got[0], "127.0.0.1:") {
			t.Errorf("%s: who reads it sees %q", types, got)
		}
	}
	if text := string(c.raw("/v1/audit?types=TemplateCreated")); !strings.Contains(text,
		"127.0.0.1:") {
		t.Errorf("the audit shows %s", text)
	}
	c.must("POST", "/v1/users/"+personName+"/erase", "")
	name := identity.ErasedName(user.User)
	if got := sources("TemplateCreated"); len(got) != 1 || got[0] != name {
		t.Errorf("after the erasure: %q", got)
	}
	if got := sources("CommandRefused"); len(got) != 1 || got[0] != name+" user/"+name {
		t.Errorf("after the erasure: %q", got)
	}
}
