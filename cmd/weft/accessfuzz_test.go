package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/domain/identity"
)

// operation is one of the API's own document.
type operation struct{ id, method, path string }

// operations reads all operations from the document that the node serves.
func (c *tester) operations() []operation {
	c.t.Helper()
	var list []operation
	paths, _ := c.must("GET", "/openapi.json", "").body["paths"].(map[string]any)
	for path, item := range paths {
		methods, _ := item.(map[string]any)
		for method, op := range methods {
			if d, ok := op.(map[string]any); ok {
				list = append(list, operation{d["operationId"].(string), strings.ToUpper(method), path})
			}
		}
	}
	slices.SortFunc(list, func(a, b operation) int { return strings.Compare(a.id, b.id) })
	return list
}

// fill puts names into a path, and a tenant behind it if the operation takes one.
func (o operation) fill(name, volume, tenant string) string {
	path := strings.NewReplacer("{name}", name, "{volume}", "v1", "{id}", volume,
		"{position}", "3").Replace(o.path)
	for _, of := range []string{"/v1/apps", "/v1/templates", "/v1/volumes", "/v1/snapshots"} {
		if strings.HasPrefix(path, of) {
			path += "?tenant=" + tenant
			break
		}
	}
	if strings.Contains(path, "/changes?") {
		path += "&since=" + volume
	}
	return path
}

// ownOperations are those that answer whoever is known with what they may see.
var ownOperations = []string{
	"health", "list-events", "get-event", "watch-events", "list-audit", "list-tenants", "whoami",
	"list-sign-in", "list-users", "list-tokens", "issue-token",
}

// badTokens makes one token of every kind that must not open anything.
func badTokens(t *testing.T, n *Node, c *tester) map[string]string {
	t.Helper()
	out := map[string]string{"none": "", "junk": "x", "node": "weft-" + strings.Repeat("0", 48)}
	kill := map[string]string{"disabled": "POST", "deleted": "DELETE"}
	for _, kind := range []string{"disabled", "deleted", "revoked"} {
		out[kind] = c.user("u"+kind, "admin", "").token
		path := "/v1/users/u" + kind
		if kind == "disabled" {
			path += "/disable"
		}
		if kind == "revoked" {
			id, _, err := identity.ParseToken(out[kind])
			if err != nil {
				t.Fatal(err)
			}
			path, kill[kind] = "/v1/tokens/"+id.String(), "DELETE"
		}
		c.must(kill[kind], path, "")
	}
	good := c.user("good", "admin", "").token
	out["other secret"] = good[:len(good)-1] + string('0'+(good[len(good)-1]-'0'+1)%10)
	out["long"], out["cut"] = good+"0", good[:len(good)-2]
	// Issued two hours ago for one hour.
	u, _ := n.backend.views.access.User("good")
	secret := make([]byte, identity.SecretSize)
	id := domain.AccessTokenID{UUID: randomUUID()}
	res, err := n.backend.exec.Do(t.Context(), domain.Request{
		Stamped: time.Now().Add(-2 * time.Hour),
		Command: identity.IssueToken{Life: time.Hour, TokenIssued: identity.TokenIssued{
			Token: id, Owner: u.User, Role: "admin", Hash: hashOf(secret),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.backend.Wait(t.Context(), res.Position); err != nil {
		t.Fatal(err)
	}
	out["expired"] = identity.TokenText(id, secret)
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims := part(`{"sub":"good","name":"good","exp":99999999999}`)
	out["alg none"] = part(`{"alg":"none","typ":"JWT"}`) + "." + claims + "."
	out["expired JWT"] = part(`{"alg":"RS256"}`) + "." + part(`{"sub":"good","exp":1}`) + ".c2ln"
	return out
}

// TestNobodyGetsIn proves, for every operation of the document and random names and bodies: with no
// token, or one that is wrong, expired, revoked, cut, of a user who is shut out, or a JWT that
// nobody signed, the answer is always the same 401; a user of one tenant meets another tenant as
// one that there is not, and succeeds with nothing that the role does not allow; a key that another
// user used answers nothing of theirs; nothing crashes; and each attempt stands in the audit.
func TestNobodyGetsIn(t *testing.T) {
	n, down := startNode(t, t.TempDir())
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	t.Cleanup(down)
	c.tenants("acme", "rival")
	made := c.must("POST", "/v1/apps?tenant=rival", shopBody, "Idempotency-Key", "key")
	c.must("POST", "/v1/templates?tenant=rival", `{"name":"shop"}`)
	volume := fmt.Sprint(made.body["volumes"].([]any)[0].(map[string]any)["id"])
	bad, ops := badTokens(t, n, c), c.operations()
	users := map[string]*tester{
		"viewer": c.user("v", "viewer", "acme"), "operator": c.user("o", "operator", "acme"),
		"tenant-admin": c.user("t", "tenant-admin", "acme"),
	}
	kept := func(rt *rapid.T, a answer, what string) {
		list := c.must("GET", "/v1/audit/refusals?limit=2", "").body["items"].([]any)
		for _, x := range list {
			if x.(map[string]any)["request"] == a.header.Get("Weft-Request-Id") {
				return
			}
		}
		rt.Fatalf("%s: %d is not in the audit", what, a.code)
	}
	want := plainAnswer(c.as("").do("GET", "/v1/apps", ""), "")
	names := func(m map[string]string) []string {
		var l []string
		for k := range m {
			l = append(l, k)
		}
		slices.Sort(l)
		return l
	}(bad)
	bodies := []string{
		"", "{}", shopBody, `{"name":"shop"}`, `{"name":`, `[]`, `{"size":8388608}`,
		`{"role":"admin"}`, `{"role":"viewer","tenant":"rival"}`, `{"bytes":0,"volumes":0}`,
		`{"user":"good","role":"admin","ttl_seconds":60}`, `{"user":"x","secret":"0123456789ab"}`,
	}
	rapid.Check(t, func(rt *rapid.T) {
		op := rapid.SampledFrom(ops).Draw(rt, "operation")
		name := rapid.SampledFrom([]string{"shop", "good", "rival", "none"}).Draw(rt, "name")
		body := rapid.SampledFrom(bodies).Draw(rt, "body")
		key := rapid.SampledFrom([]string{"key", "k2"}).Draw(rt, "key")
		send := func(x *tester, path string) answer {
			return x.do(op.method, path, body, "Idempotency-Key", key)
		}
		what := op.method + " " + op.fill(name, volume, "rival") + " " + body
		kind := rapid.SampledFrom(names).Draw(rt, "token")
		open := op.id == "health" || op.id == "list-sign-in"
		if a := send(c.as(bad[kind]), op.fill(name, volume, "rival")); !open {
			if plainAnswer(a, "") != want {
				rt.Fatalf("%s with %q: %d %v", what, kind, a.code, a.body)
			}
			kept(rt, a, what)
		}
		if slices.Contains(ownOperations, op.id) {
			return
		}
		role := rapid.SampledFrom([]string{"viewer", "operator", "tenant-admin"}).Draw(rt, "role")
		a := send(users[role], op.fill(name, volume, "rival"))
		if a.code < 400 || a.code >= 500 {
			rt.Fatalf("%s as %s: %d %v", what, role, a.code, a.body)
		}
		kept(rt, a, what)
		absent := send(users[role], op.fill(name, volume, "rivel"))
		if x, y := plainAnswer(a, "/rival/rivel"), plainAnswer(absent, "/rival/rivel"); x != y {
			rt.Fatalf("%s as %s: foreign\n%s\nabsent\n%s", what, role, x, y)
		}
	})
	if a := c.must("POST", "/v1/events:verify", ""); a.body["sound"] != true {
		t.Errorf("verify: %v", a.body)
	}
	if a := c.must("GET", "/v1/apps/shop?tenant=rival", ""); a.text("id") != made.text("id") {
		t.Errorf("the victim's application: %v", a.body)
	}
}

// TestForeignKeyAnswersNothing proves that the idempotency key of another user, with the same body,
// gives neither their result nor a success.
func TestForeignKeyAnswersNothing(t *testing.T) {
	c := newTester(t)
	c.tenants("acme")
	ann, eve := c.user("ann", "operator", "acme"), c.user("eve", "operator", "acme")
	mine := ann.must("POST", "/v1/apps?tenant=acme", shopBody, "Idempotency-Key", "key")
	again := ann.must("POST", "/v1/apps?tenant=acme", shopBody, "Idempotency-Key", "key")
	if mine.text("id") != again.text("id") {
		t.Error("one's own key makes another")
	}
	c.want(eve.do("POST", "/v1/apps?tenant=acme", shopBody, "Idempotency-Key", "key"), 409, "exists")
	c.must("DELETE", "/v1/users/ann", "")
	next := c.user("ann", "operator", "acme")
	c.want(next.do("POST", "/v1/apps?tenant=acme", shopBody, "Idempotency-Key", "key"), 409, "exists")
}

func hashOf(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

func newHTTP(t *testing.T) *http.Client {
	h := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(h.CloseIdleConnections)
	return h
}
