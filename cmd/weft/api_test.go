package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/domain"
)

// tester is a client of a node that runs in this process, over the real log and a small device.
type tester struct {
	t     *testing.T
	base  string
	token string
	http  *http.Client
}

func startNode(t *testing.T, dir string) (*Node, func()) {
	t.Helper()
	n, down, err := Start(t.Context(), Options{
		DataDir: dir, DeviceSize: 256 * domain.MiB, API: "127.0.0.1:0", NBD: "127.0.0.1:0",
		ISCSI: "127.0.0.1:0", Peer: "127.0.0.1:0", VoterGrace: time.Minute,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, down
}

func newTester(t *testing.T) *tester {
	t.Helper()
	n, down := startNode(t, t.TempDir())
	c := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		c.CloseIdleConnections()
		down()
	})
	return &tester{t, "http://" + n.api.addr, n.dir.fresh, c}
}

// answer is a reply of the API.
type answer struct {
	code   int
	header http.Header
	body   map[string]any
}

func (a answer) text(key string) string {
	s, _ := a.body[key].(string)
	return s
}

// do sends one request; headers come in pairs.
func (c *tester) do(method, path, body string, headers ...string) answer {
	c.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, c.base+path,
		strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	a := answer{code: res.StatusCode, header: res.Header, body: map[string]any{}}
	if len(bytes.TrimSpace(raw)) > 0 && json.Unmarshal(raw, &a.body) != nil {
		c.t.Fatalf("%s %s: no JSON: %s", method, path, raw)
	}
	return a
}

func (c *tester) want(a answer, code int, kind string) {
	c.t.Helper()
	if a.code != code || kind != "" && a.text("kind") != kind {
		c.t.Errorf("%d %v, want %d %s", a.code, a.body, code, kind)
	}
}

const shopBody = `{"name":"shop","volumes":[{"name":"v1","size":8388608}]}`

// TestLostReplyMakesOne proves that a request repeated with its key has one effect and the same
// answer, that the key with another body is refused, and that a name is no key: after a deletion
// the same name makes a new object.
func TestLostReplyMakesOne(t *testing.T) {
	c := newTester(t)
	first := c.do("POST", "/v1/apps", shopBody, "Idempotency-Key", "k1")
	c.want(first, 201, "")
	again := c.do("POST", "/v1/apps", shopBody, "Idempotency-Key", "k1")
	c.want(again, 201, "")
	if first.text("id") != again.text("id") || first.text("id") == "" {
		t.Errorf("two objects: %v, %v", first.body, again.body)
	}
	other := strings.Replace(shopBody, "8388608", "4194304", 1)
	c.want(c.do("POST", "/v1/apps", other, "Idempotency-Key", "k1"), 422, "mismatch")
	c.want(c.do("POST", "/v1/apps", shopBody, "Idempotency-Key", "k2"), 409, "exists")
	list := c.do("GET", "/v1/apps", "")
	if items, _ := list.body["items"].([]any); len(items) != 1 {
		t.Errorf("%d applications", len(items))
	}
}

// TestTwoCreatesOneName proves that of many creates of one name at once exactly one wins.
func TestTwoCreatesOneName(t *testing.T) {
	c := newTester(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range 8 {
		wg.Go(func() {
			a := c.do("POST", "/v1/templates", `{"name":"gold"}`, "Idempotency-Key", fmt.Sprint(i))
			mu.Lock()
			codes[a.code]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if codes[201] != 1 || codes[409] != 7 {
		t.Errorf("answers %v", codes)
	}
}

// TestIfMatch proves that of two writers with the same ETag one wins and the other hears 412.
func TestIfMatch(t *testing.T) {
	c := newTester(t)
	made := c.do("POST", "/v1/templates", `{"name":"gold","intent":{"lifecycle":{"priority":1}}}`)
	tag := made.header.Get("ETag")
	change := func(p int) answer {
		return c.do("PUT", "/v1/templates/gold",
			fmt.Sprintf(`{"name":"gold","intent":{"lifecycle":{"priority":%d}}}`, p), "If-Match", tag)
	}
	c.want(change(2), 200, "")
	c.want(change(3), 412, "conflict")
	a := c.do("PUT", "/v1/templates/gold", `{"name":"gold"}`, "If-Match", "nonsense")
	c.want(a, 412, "conflict")
}

// TestBadRequests proves that each bad input has its status and kind, that all violations come at
// once, and that no answer echoes a value.
func TestBadRequests(t *testing.T) {
	c := newTester(t)
	c.want(c.do("POST", "/v1/templates", `{"name":"gold"}`), 201, "")
	for _, x := range []struct {
		method, path, body string
		code               int
		kind               string
	}{
		{"POST", "/v1/apps", `{"name":"a","template":"none"}`, 404, "not_found"},
		{"POST", "/v1/apps", `{"name":"a","template":"gold@7"}`, 404, "not_found"},
		{"POST", "/v1/apps", `{"name":"a","sise":1}`, 422, "invalid"},
		{"POST", "/v1/apps", `{"name":"a","volumes":[{"name":"v","size":-1}]}`, 422, "invalid"},
		{"POST", "/v1/apps", `{"name":"a","volumes":[{"name":"v","size":0}]}`, 422, "invalid"},
		{
			"POST", "/v1/apps", `{"name":"a","volumes":[{"name":"v","size":9223372036854775807}]}`, 422,
			"invalid",
		},
		{"POST", "/v1/apps", `{"name":"a","volumes":[{"name":"v","size":"big"}]}`, 422, "invalid"},
		{"POST", "/v1/apps", `{"name":"` + strings.Repeat("a", 70) + `"}`, 422, "invalid"},
		{"POST", "/v1/apps", `{"name":`, 400, "invalid"},
		{"POST", "/v1/apps", `[]`, 422, "invalid"},
		{"GET", "/v1/apps/none", "", 404, "not_found"},
		{"GET", "/v1/apps?tenant=none", "", 404, "not_found"},
		{"GET", "/v1/apps?colour=red", "", 422, "invalid"},
		{"GET", "/v1/apps?at_position=99999", "", 422, "out_of_range"},
		{"GET", "/v1/apps?at_position=x", "", 422, "invalid"},
		{"GET", "/v1/events/99999", "", 404, "not_found"},
		{"GET", "/v1/events?limit=100000", "", 422, "invalid"},
		{"GET", "/nothing", "", 404, "not_found"},
		{"PUT", "/v1/health", "", 405, "not_found"},
		{"PUT", "/v1/secrets/x", `{"user":"u","secret":"short"}`, 422, "invalid"},
		{"DELETE", "/v1/templates/none", "", 404, "not_found"},
	} {
		a := c.do(x.method, x.path, x.body)
		if a.code != x.code || a.text("kind") != x.kind {
			t.Errorf("%s %s %.60s: %d %v", x.method, x.path, x.body, a.code, a.body)
		}
		if x.kind != "" && a.text("request_id") == "" {
			t.Errorf("%s %s: no request id: %v", x.method, x.path, a.body)
		}
		if strings.Contains(fmt.Sprint(a.body), "short") {
			t.Errorf("%s echoes a value: %v", x.path, a.body)
		}
	}
	a := c.do("POST", "/v1/apps", `{"name":"A","intent":{"availability":{"replicas":9}},
		"volumes":[{"name":"v","size":5}]}`)
	if errs, _ := a.body["errors"].([]any); len(errs) != 3 {
		t.Errorf("not all violations: %v", a.body)
	}
}

// TestTokens proves that nothing but health, metrics and the document is answered without the
// token, and that a wrong one is refused alike.
func TestTokens(t *testing.T) {
	c := newTester(t)
	for _, path := range []string{"/v1/apps", "/v1/events", "/v1/watch", "/v1/nodes", "/v1/audit"} {
		for _, token := range []string{"", "Bearer ", "Bearer wrong", "Basic " + c.token, c.token} {
			a := c.do("GET", path, "", "Authorization", token)
			if a.code != 401 {
				t.Errorf("%s with %q: %d", path, token, a.code)
			}
		}
	}
	if a := c.do("GET", "/v1/health", "", "Authorization", ""); a.code != 200 {
		t.Errorf("health: %d", a.code)
	}
}

// TestPast proves that every list at a past position shows the past, and the present is untouched.
func TestPast(t *testing.T) {
	c := newTester(t)
	c.want(c.do("POST", "/v1/apps", shopBody), 201, "")
	before := c.do("GET", "/v1/apps", "").text("position")
	del := c.do("DELETE", "/v1/apps/shop", "")
	c.want(del, 202, "")
	past := c.do("GET", "/v1/volumes?at_position="+before, "")
	if items, _ := past.body["items"].([]any); len(items) != 1 {
		t.Errorf("the past shows %v", past.body)
	}
	if a := c.do("GET", "/v1/apps/shop?at_position="+before, ""); a.code != 200 {
		t.Errorf("%d %v", a.code, a.body)
	}
	v := c.do("POST", "/v1/events:verify", "")
	if v.body["sound"] != true {
		t.Errorf("verify: %v", v.body)
	}
}

// TestRestart proves that a second start on the folder has the same objects, exports them again,
// and that a folder in use is refused by kind.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	n, down := startNode(t, dir)
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(c.http.CloseIdleConnections)
	c.want(c.do("POST", "/v1/apps", shopBody), 201, "")
	_, _, err := Start(t.Context(), Options{DataDir: dir, Logger: slog.Default()})
	if !domain.IsKind(err, domain.Locked) {
		t.Errorf("a folder in use: %v", err)
	}
	down()
	n2, down2 := startNode(t, dir)
	defer down2()
	if n2.dir.fresh != "" {
		t.Error("a second token was made")
	}
	c.base = "http://" + n2.api.addr
	c.waitOnline("/v1/volumes")
}

// waitOnline follows the log until every volume of a list is online.
func (c *tester) waitOnline(path string) {
	c.t.Helper()
	for {
		a := c.do("GET", path, "")
		items, _ := a.body["items"].([]any)
		online := len(items) > 0
		for _, i := range items {
			v, _ := i.(map[string]any)
			online = online && v["state"] == "online" && v["nbd"] != nil
		}
		if online {
			return
		}
		// The next position is the next change: the API waits for it, nobody sleeps.
		p, err := domain.ParsePosition(a.text("position"))
		if err != nil {
			c.t.Fatal(err)
		}
		c.do("GET", fmt.Sprintf("%s?min_position=%s", path, p+1), "")
	}
}
