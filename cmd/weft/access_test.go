package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/identity"
)

// as gives a client of the same node with another token.
func (c *tester) as(token string) *tester { return &tester{c.t, c.base, token, c.http} }

// must sends a request that has to succeed.
func (c *tester) must(method, path, body string, headers ...string) answer {
	c.t.Helper()
	a := c.do(method, path, body, headers...)
	if a.code/100 != 2 {
		c.t.Fatalf("%s %s: %d %v", method, path, a.code, a.body)
	}
	return a
}

// tenants makes tenants "name" or "name<parent".
func (c *tester) tenants(names ...string) {
	c.t.Helper()
	for _, n := range names {
		name, parent, _ := strings.Cut(n, "<")
		c.must("POST", "/v1/tenants", fmt.Sprintf(`{"name":%q,"parent":%q}`, name, parent))
	}
}

// user makes a user with a role, and gives its client by a token that narrows nothing but the role.
func (c *tester) user(name, role, tenant string) *tester {
	c.t.Helper()
	c.must("POST", "/v1/users", fmt.Sprintf(`{"name":%q}`, name))
	c.must("POST", "/v1/users/"+name+"/grant",
		fmt.Sprintf(`{"role":%q,"tenant":%q}`, role, tenant))
	return c.as(c.token1(name, "admin", ""))
}

// token1 issues a token for a user.
func (c *tester) token1(user, role, tenant string) string {
	c.t.Helper()
	a := c.must("POST", "/v1/tokens", fmt.Sprintf(
		`{"user":%q,"role":%q,"tenant":%q,"ttl_seconds":3600}`, user, role, tenant,
	))
	return a.text("token")
}

// TestRoleMatrix proves what each role may do through the API, in its tenant, below it and beside
// it. A tenant the caller may not read is not there; where it may read and lacks the verb, 403.
func TestRoleMatrix(t *testing.T) {
	c := newTester(t)
	c.tenants("acme", "lab<acme", "other")
	who := map[string]*tester{
		"viewer":       c.user("v", "viewer", "acme"),
		"operator":     c.user("o", "operator", "acme"),
		"tenant-admin": c.user("t", "tenant-admin", "acme"),
		"all-viewer":   c.user("av", "viewer", ""),
		"all-operator": c.user("ao", "operator", ""),
		"admin":        c.user("a", "admin", ""),
	}
	c.user("z", "viewer", "acme")
	roles := []string{"viewer", "operator", "tenant-admin", "all-viewer", "all-operator", "admin"}
	n := 0
	for _, x := range []struct {
		method, path, body string
		want               [6]int
	}{
		{"GET", "/v1/apps?tenant=acme", "", [6]int{200, 200, 200, 200, 200, 200}},
		{"GET", "/v1/volumes?tenant=lab", "", [6]int{200, 200, 200, 200, 200, 200}},
		{"GET", "/v1/snapshots?tenant=lab", "", [6]int{200, 200, 200, 200, 200, 200}},
		{"GET", "/v1/snapshots?tenant=other", "", [6]int{404, 404, 404, 200, 200, 200}},
		{
			"POST", "/v1/apps/none/snapshots?tenant=acme", "{}", [6]int{403, 404, 404, 403, 404, 404},
		},
		{
			"POST", "/v1/apps/none/volumes/v/restore?tenant=acme", `{"snapshot":"s"}`,
			[6]int{403, 404, 404, 403, 404, 404},
		},
		{"DELETE", "/v1/snapshots/none?tenant=acme", "", [6]int{403, 404, 404, 403, 404, 404}},
		{"GET", "/v1/apps?tenant=other", "", [6]int{404, 404, 404, 200, 200, 200}},
		{"GET", "/v1/apps?tenant=none", "", [6]int{404, 404, 404, 404, 404, 404}},
		{"GET", "/v1/apps", "", [6]int{404, 404, 404, 200, 200, 200}},
		{"POST", "/v1/templates?tenant=acme", `{"name":"x%d"}`, [6]int{403, 201, 201, 403, 201, 201}},
		{"POST", "/v1/templates?tenant=lab", `{"name":"x%d"}`, [6]int{403, 201, 201, 403, 201, 201}},
		{"POST", "/v1/templates?tenant=other", `{"name":"x%d"}`, [6]int{404, 404, 404, 403, 201, 201}},
		{"GET", "/v1/nodes", "", [6]int{403, 403, 403, 200, 200, 200}},
		{"GET", "/v1/nodes/none/scrub", "", [6]int{403, 403, 403, 404, 404, 404}},
		{
			"POST", "/v1/nodes/none/scrub", `{"action":"pause"}`, [6]int{403, 403, 403, 403, 404, 404},
		},
		{"GET", "/v1/devices", "", [6]int{403, 403, 403, 200, 200, 200}},
		{"GET", "/v1/plans", "", [6]int{403, 403, 403, 200, 200, 200}},
		{"POST", "/v1/events:verify", "", [6]int{403, 403, 403, 200, 200, 200}},
		{"GET", "/v1/audit/refusals", "", [6]int{403, 403, 403, 200, 200, 200}},
		{"GET", "/v1/events", "", [6]int{200, 200, 200, 200, 200, 200}},
		{"GET", "/v1/users", "", [6]int{200, 200, 200, 200, 200, 200}},
		{"POST", "/v1/users", `{"name":"u%d"}`, [6]int{403, 403, 403, 403, 403, 201}},
		{"POST", "/v1/tenants", `{"name":"t%d"}`, [6]int{403, 403, 403, 403, 403, 201}},
		{
			"PUT", "/v1/tenants/acme/quota", `{"bytes":0,"volumes":0}`,
			[6]int{403, 403, 403, 403, 403, 200},
		},
		{"POST", "/v1/nodes/tokens", `{}`, [6]int{403, 403, 403, 403, 403, 201}},
		{
			"PUT", "/v1/secrets/s", `{"user":"u","secret":"0123456789ab"}`,
			[6]int{403, 403, 403, 403, 200, 200},
		},
		{
			"POST", "/v1/users/z/grant", `{"role":"viewer","tenant":"lab"}`,
			[6]int{403, 403, 200, 403, 403, 200},
		},
		{
			"POST", "/v1/users/z/grant", `{"role":"viewer","tenant":"other"}`,
			[6]int{404, 404, 404, 403, 403, 200},
		},
		{
			"POST", "/v1/users/z/revoke", `{"role":"viewer","tenant":"other"}`,
			[6]int{404, 404, 404, 403, 403, 200},
		},
		{
			"POST", "/v1/users/a/grant", `{"role":"viewer","tenant":"acme"}`,
			[6]int{403, 403, 404, 403, 403, 200},
		},
		{
			"POST", "/v1/users/a/revoke", `{"role":"viewer","tenant":"acme"}`,
			[6]int{403, 403, 200, 403, 403, 200},
		},
		{"POST", "/v1/users/z/grant", `{"role":"viewer"}`, [6]int{403, 403, 403, 403, 403, 200}},
		{"POST", "/v1/users/z/disable", "", [6]int{403, 403, 403, 403, 403, 200}},
	} {
		for i, role := range roles {
			body := x.body
			if n++; strings.Contains(body, "%d") {
				body = fmt.Sprintf(body, n)
			}
			if a := who[role].do(x.method, x.path, body); a.code != x.want[i] {
				t.Errorf("%s: %s %s %s: %d %v, want %d", role, x.method, x.path, body, a.code, a.body,
					x.want[i])
			}
		}
	}
}

// TestForeignIsAbsent proves that an object of a tenant that the caller may not read is answered as
// one that there is not: status, body and headers, in the present and in the past.
func TestForeignIsAbsent(t *testing.T) {
	c := newTester(t)
	c.tenants("acme", "other")
	ann := c.user("ann", "tenant-admin", "acme")
	made := c.must("POST", "/v1/apps?tenant=other", shopBody)
	at := made.header.Get("Weft-Position")
	token := c.token1(c.user("bob", "viewer", "other").whoami(), "viewer", "")
	id, _, err := identity.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	acme := func(id string) string { return "/v1/apps/" + id + "?tenant=acme" }
	for _, x := range [][3]string{ // method, foreign, absent
		{"GET", "/v1/apps?tenant=other", "/v1/apps?tenant=otter"},
		{"GET", "/v1/apps/shop?tenant=other", "/v1/apps/shop?tenant=otter"},
		{"GET", "/v1/apps?tenant=other&at_position=" + at, "/v1/apps?tenant=otter&at_position=" + at},
		{"GET", acme(made.text("id")), acme(domain.UUID{1}.String())},
		{"DELETE", "/v1/apps/shop?tenant=other", "/v1/apps/shop?tenant=otter"},
		{"DELETE", "/v1/tokens/" + id.String(), "/v1/tokens/" + domain.UUID{1}.String()},
		{"GET", "/v1/events/" + at, "/v1/events/99999"},
	} {
		foreign, absent := ann.do(x[0], x[1], ""), ann.do(x[0], x[2], "")
		if foreign.code != 404 || plainAnswer(foreign, x[1]) != plainAnswer(absent, x[2]) {
			t.Errorf("%s %s:\n%s\n%s", x[0], x[1], plainAnswer(foreign, x[1]),
				plainAnswer(absent, x[2]))
		}
	}
	grant := func(user, tenant string) string {
		a := ann.do("POST", "/v1/users/"+user+"/grant", `{"role":"viewer","tenant":"`+tenant+`"}`)
		return strings.NewReplacer("bob", "*", "nob", "*", "other", "*", "otter", "*").
			Replace(plainAnswer(a, ""))
	}
	if a, b := grant("bob", "acme"), grant("nob", "acme"); a != b {
		t.Errorf("a foreign user shows:\n%s\n%s", a, b)
	}
	if a, b := grant("ann", "other"), grant("ann", "otter"); a != b {
		t.Errorf("a foreign tenant shows:\n%s\n%s", a, b)
	}
}

// whoami gives the caller's name.
func (c *tester) whoami() string { return c.must("GET", "/v1/whoami", "").text("name") }

// plainAnswer is an answer without what differs in any two: request id, time, and the words
// that the caller itself sent.
func plainAnswer(a answer, path string) string {
	h := a.header.Clone()
	for _, name := range []string{"Weft-Request-Id", "Date", "Content-Length"} {
		h.Del(name)
	}
	a.body["request_id"] = ""
	text := fmt.Sprint(a.code, h, a.body)
	cut := func(r rune) bool { return strings.ContainsRune("/?&=", r) }
	for _, word := range strings.FieldsFunc(path, cut) {
		if word != "tenant" && word != "v1" && len(word) > 1 {
			text = strings.ReplaceAll(text, word, "*")
		}
	}
	return text
}

// TestTokensOfUsers proves that a token ends at once when it is revoked and when its user is
// disabled, loses the role or is deleted; that it is never wider than its scope; that it issues
// nothing wider or longer; and that its secret stands in no event and no list.
func TestTokensOfUsers(t *testing.T) {
	c := newTester(t)
	c.tenants("acme", "lab<acme")
	ann := c.user("ann", "tenant-admin", "acme")
	lab := c.as(c.token1("ann", "operator", "lab"))
	apps := func(x *tester, tenant string) int {
		return x.do("GET", "/v1/apps?tenant="+tenant, "").code
	}
	if apps(lab, "lab") != 200 || apps(lab, "acme") != 404 || apps(ann, "acme") != 200 {
		t.Error("a token's scope does not hold")
	}
	issue := func(x *tester, role, tenant string, ttl int) int {
		return x.do("POST", "/v1/tokens", fmt.Sprintf(
			`{"role":%q,"tenant":%q,"ttl_seconds":%d}`, role, tenant, ttl,
		)).code
	}
	for _, x := range []struct {
		who          *tester
		role, tenant string
		ttl, want    int
	}{
		{lab, "viewer", "lab", 60, 201},
		{lab, "tenant-admin", "lab", 60, 403},
		{lab, "viewer", "acme", 60, 404}, // not there for this token
		{lab, "viewer", "", 60, 403},
		{lab, "viewer", "lab", 7200, 403},
		{c.as(c.token1("ann", "viewer", "")), "viewer", "", 60, 403},
		{c, "viewer", "", 60, 422}, // the node's own token is nobody's
	} {
		if got := issue(x.who, x.role, x.tenant, x.ttl); got != x.want {
			t.Errorf("%+v: %d", x, got)
		}
	}
	ann.must("POST", "/v1/tokens", `{"user":"ann","role":"viewer","ttl_seconds":60}`)
	c.user("eve", "viewer", "acme")
	c.want(ann.do("POST", "/v1/tokens", `{"user":"eve","role":"viewer","ttl_seconds":60}`), 403, "")
	id, _, err := identity.ParseToken(lab.token)
	if err != nil {
		t.Fatal(err)
	}
	secret := lab.token[len(lab.token)-64:]
	for _, path := range []string{"/v1/tokens", "/v1/events?limit=1000"} {
		if s := fmt.Sprint(c.must("GET", path, "").body); strings.Contains(s, secret) {
			t.Errorf("%s shows a secret", path)
		}
	}
	ann.must("DELETE", "/v1/tokens/"+id.String(), "")
	ann.must("DELETE", "/v1/tokens/"+id.String(), "")
	if apps(lab, "lab") != 401 {
		t.Error("a revoked token opens")
	}
	c.must("POST", "/v1/users/ann/disable", "")
	if apps(ann, "acme") != 401 {
		t.Error("a disabled user gets in")
	}
	c.must("POST", "/v1/users/ann/enable", "")
	c.must("POST", "/v1/users/ann/revoke", `{"role":"tenant-admin","tenant":"acme"}`)
	if apps(ann, "acme") != 404 {
		t.Error("a role that was taken is still held")
	}
	c.must("DELETE", "/v1/users/ann", "")
	if apps(ann, "acme") != 401 {
		t.Error("a deleted user gets in")
	}
	next := c.user("ann", "viewer", "acme")
	if apps(next, "acme") != 200 || apps(ann, "acme") != 401 {
		t.Error("the name's next user is mixed up with the one before")
	}
}

// TestEventsAreFiltered proves that events, audit and watch show a caller what happened in the
// tenants it may read and nothing else, and that a watch ends when its token does.
func TestEventsAreFiltered(t *testing.T) {
	c := newTester(t)
	c.tenants("acme", "other")
	ann := c.user("ann", "operator", "acme")
	c.must("POST", "/v1/apps?tenant=other", `{"name":"hidden"}`)
	ann.must("POST", "/v1/apps?tenant=acme", `{"name":"seen"}`)
	for _, path := range []string{
		"/v1/events?limit=1000", "/v1/events?newest=true", "/v1/audit?limit=1000",
	} {
		text := fmt.Sprint(ann.must("GET", path, "").body)
		if !strings.Contains(text, "AppInstanceCreated") {
			t.Errorf("%s hides the caller's own", path)
		}
		for _, foreign := range []string{"hidden", "other", "NodeJoined", "UserCreated", "NameTaken"} {
			if strings.Contains(text, foreign) {
				t.Errorf("%s shows %s", path, foreign)
			}
		}
	}
	if a := ann.must("GET", "/v1/events?limit=1&types=AppInstanceCreated", ""); !strings.Contains(
		fmt.Sprint(a.body), "seen",
	) {
		t.Errorf("a limit counts what is hidden: %v", a.body)
	}
	var names []string
	for _, i := range ann.must("GET", "/v1/tenants", "").body["items"].([]any) {
		names = append(names, i.(map[string]any)["name"].(string))
	}
	if !slices.Equal(names, []string{"acme"}) {
		t.Errorf("tenants %v", names)
	}
	seen := ann.watchUntil(t, "AppInstanceCreated", func() {})
	if strings.Contains(seen, "hidden") || strings.Contains(seen, "NodeJoined") {
		t.Errorf("the watch shows %s", seen)
	}
	rest := ann.watchUntil(t, "event: error", func() {
		c.must("POST", "/v1/users/ann/disable", "")
		c.must("POST", "/v1/apps?tenant=acme", `{"name":"late"}`)
	})
	if strings.Contains(rest, "late") {
		t.Error("a watch goes on after its user is disabled")
	}
}

// watchUntil follows the log until a text has come, calling then after the first event.
func (c *tester) watchUntil(t *testing.T, text string, then func()) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", c.base+"/v1/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var got strings.Builder
	buf, done := make([]byte, 4096), false
	for {
		n, err := res.Body.Read(buf)
		got.Write(buf[:n])
		if strings.Contains(got.String(), text) {
			return got.String()
		}
		if err != nil {
			t.Fatalf("the watch ended before %q: %v\n%s", text, err, got.String())
		}
		if !done && strings.Contains(got.String(), "id: ") {
			done = true
			then()
		}
	}
}

// TestQuota proves that a quota set through the API holds where reservations are made, for the
// tenant it is set on, and that a tenant with objects is not deleted.
func TestQuota(t *testing.T) {
	c := newTester(t)
	c.must("POST", "/v1/tenants", `{"name":"acme","quota":{"bytes":12582912,"volumes":2}}`)
	c.must("POST", "/v1/apps?tenant=acme", shopBody)
	c.want(c.do("POST", "/v1/apps?tenant=acme",
		`{"name":"b","volumes":[{"name":"v","size":8388608}]}`), 507, "no_space")
	c.must("PUT", "/v1/tenants/acme/quota", `{"bytes":0,"volumes":1}`)
	c.want(c.do("POST", "/v1/apps?tenant=acme",
		`{"name":"b","volumes":[{"name":"v","size":4194304}]}`), 507, "no_space")
	c.want(c.do("PUT", "/v1/tenants/acme/quota", `{"bytes":-1,"volumes":0}`), 422, "invalid")
	c.want(c.do("DELETE", "/v1/tenants/acme", ""), 409, "conflict")
	c.want(c.do("DELETE", "/v1/tenants/default", ""), 409, "conflict")
	c.want(c.do("POST", "/v1/tenants", `{"name":"default"}`), 409, "exists")
	c.tenants("empty")
	c.must("DELETE", "/v1/tenants/empty", "")
	c.want(c.do("GET", "/v1/apps?tenant=empty", ""), 404, "not_found")
	c.tenants("empty")
}

// TestRefusalsAreKept proves that each refused attempt stands in the node's audit with who, whence,
// what and why, and that no token does.
func TestRefusalsAreKept(t *testing.T) {
	c := newTester(t)
	c.tenants("acme")
	ann := c.user("ann", "viewer", "acme")
	secret := ann.token
	c.must("POST", "/v1/tokens", `{"user":"ann","role":"viewer","ttl_seconds":60}`)
	begun := time.Now().Add(-time.Minute)
	for _, x := range []struct {
		who                      *tester
		method, path, body       string
		actor, operation, reason string
	}{
		{c.as(""), "GET", "/v1/apps", "", "", "GET /v1/apps", "no token"},
		{c.as("wrong"), "GET", "/v1/apps", "", "", "GET /v1/apps", "unknown token"},
		{
			ann, "GET", "/v1/apps?tenant=default", "", "user/ann", "list-apps",
			"foreign or no such tenant",
		},
		{ann, "POST", "/v1/apps?tenant=acme", `{"name":"x"}`, "user/ann", "create-app", "missing role"},
		{ann, "POST", "/v1/apps?tenant=acme", `{"nam`, "user/ann", "POST /v1/apps", "malformed"},
		{ann, "DELETE", "/v1/none", "", "user/ann", "DELETE /v1/none", "no such object"},
	} {
		a := x.who.do(x.method, x.path, x.body)
		list := c.must("GET", "/v1/audit/refusals?limit=1", "")
		items, _ := list.body["items"].([]any)
		if len(items) != 1 {
			t.Fatalf("%s %s is not kept", x.method, x.path)
		}
		got, _ := items[0].(map[string]any)
		actor, _ := got["actor"].(string)
		at, err := time.Parse(time.RFC3339, got["time"].(string))
		if actor != x.actor || got["operation"] != x.operation ||
			got["reason"] != x.reason ||
			got["request"] != a.header.Get("Weft-Request-Id") || got["source"] == "" ||
			got["status"] != float64(a.code) || err != nil || at.Before(begun) {
			t.Errorf("%s %s: %v", x.method, x.path, got)
		}
		if strings.Contains(fmt.Sprint(got), secret) {
			t.Errorf("a token is in the audit: %v", got)
		}
	}
}
