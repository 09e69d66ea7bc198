package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"weft/domain"
)

// until reads a path after every change of the log until the answer is as wished.
func (c *tester) until(path string, ok func(answer) bool) answer {
	c.t.Helper()
	for {
		now := c.must("GET", "/v1/health", "").text("position")
		a := c.do("GET", path, "")
		if ok(a) {
			return a
		}
		p, err := domain.ParsePosition(now)
		if err != nil {
			c.t.Fatal(err)
		}
		c.do("GET", fmt.Sprintf("/v1/apps?min_position=%s", p+1), "")
	}
}

func items(a answer) []map[string]any {
	list, _ := a.body["items"].([]any)
	out := make([]map[string]any, 0, len(list))
	for _, x := range list {
		m, _ := x.(map[string]any)
		out = append(out, m)
	}
	return out
}

func ready(n int) func(answer) bool {
	return func(a answer) bool {
		list := items(a)
		for _, x := range list {
			if x["state"] != "ready" {
				return false
			}
		}
		return len(list) == n
	}
}

// TestSnapshotAPI proves, through REST: a repeated request makes one snapshot and answers alike,
// its key with another body is refused, a name is taken once in an application and free after its
// deletion, If-Match holds, the past shows what was, each bad input has its kind, and a clone that
// is repeated is one clone.
func TestSnapshotAPI(t *testing.T) {
	c := newTester(t)
	c.must("POST", "/v1/templates", `{"name":"gold","intent":{"availability":{"replicas":1}}}`)
	c.must("POST", "/v1/apps", `{"name":"shop","template":"gold","volumes":[`+
		`{"name":"v1","size":8388608},{"name":"v2","size":8388608}]}`)
	c.waitOnline("/v1/volumes")
	first := c.do("POST", "/v1/apps/shop/snapshots", `{"name":"a"}`, "Idempotency-Key", "k1")
	c.want(first, 201, "")
	again := c.do("POST", "/v1/apps/shop/snapshots", `{"name":"a"}`, "Idempotency-Key", "k1")
	if len(items(first)) != 2 || len(items(again)) != 2 ||
		items(first)[0]["id"] != items(again)[0]["id"] {
		t.Errorf("%v\n%v", first.body, again.body)
	}
	other := c.do("POST", "/v1/apps/shop/snapshots", `{"name":"b"}`, "Idempotency-Key", "k1")
	c.want(other, 422, "mismatch")
	c.want(c.do("POST", "/v1/apps/shop/snapshots", `{"name":"a"}`), 409, "exists")
	c.want(c.do("POST", "/v1/apps/shop/volumes/v1/snapshots", "", "Idempotency-Key", "k2"), 201, "")
	list := c.until("/v1/snapshots", ready(3))
	past := list.text("position")
	one := c.must("GET", "/v1/snapshots?app=shop&volume=v1", "")
	if len(items(one)) != 2 || items(one)[0]["generation"] != float64(1) {
		t.Errorf("%v", one.body)
	}
	id := fmt.Sprint(items(first)[0]["id"])
	for _, x := range []struct {
		method, path, body string
		code               int
		kind               string
	}{
		{"GET", "/v1/snapshots/none", "", 404, "not_found"},
		{"POST", "/v1/apps/none/snapshots", "{}", 404, "not_found"},
		{"POST", "/v1/apps/shop/snapshots", `{"volumes":["v9"]}`, 404, "not_found"},
		{"POST", "/v1/apps/shop/snapshots", `{"volumes":["v1","v1"]}`, 422, "invalid"},
		{"POST", "/v1/apps/shop/volumes/v2/restore", `{"snapshot":"` + id + `"}`, 422, "invalid"},
		{"POST", "/v1/apps/shop/volumes/v1/restore", `{"snapshot":"none"}`, 404, "not_found"},
		{"POST", "/v1/apps/shop/volumes", `{"name":"c","source":"shop/v1@none"}`, 404, "not_found"},
		{"POST", "/v1/apps/shop/volumes", `{"name":"c","source":"shop@a"}`, 422, "invalid"},
		{
			"POST", "/v1/apps/shop/volumes", `{"name":"c","source":"shop/v1@a","size":4194304}`, 422,
			"invalid",
		},
		{"GET", "/v1/snapshots/" + id + "/allocated?from=5", "", 422, "out_of_range"},
		{"GET", "/v1/snapshots/" + id + "/allocated?limit=5000", "", 422, "invalid"},
		{"GET", "/v1/snapshots/" + id + "/changes", "", 422, "invalid"},
		{"GET", "/v1/snapshots/none/sharing", "", 404, "not_found"},
		{"GET", "/v1/volumes/none/sharing", "", 404, "not_found"},
		{"GET", "/v1/snapshots/" + id + "/changes?since=shop/v2@a", "", 422, "invalid"},
		{"PATCH", "/v1/apps/shop/volumes/v1", `{"size":4194304}`, 422, "invalid"},
	} {
		a := c.do(x.method, x.path, x.body)
		if a.code != x.code || a.text("kind") != x.kind {
			t.Errorf("%s %s %s: %d %v", x.method, x.path, x.body, a.code, a.body)
		}
	}
	clone := `{"name":"c","source":"shop/v1@a"}`
	for range 2 {
		c.want(c.do("POST", "/v1/apps/shop/volumes", clone, "Idempotency-Key", "k3"), 201, "")
	}
	c.want(c.do("DELETE", "/v1/snapshots/"+id, "", "If-Match", `"0.0"`), 412, "conflict")
	tag := fmt.Sprint(items(one)[0]["etag"])
	c.want(c.do("DELETE", "/v1/snapshots/"+id, "", "If-Match", tag), 202, "")
	c.until("/v1/snapshots", ready(2))
	c.want(c.do("DELETE", "/v1/snapshots/"+id, ""), 404, "not_found")
	for _, x := range items(first)[1:] {
		c.must("DELETE", "/v1/snapshots/"+fmt.Sprint(x["id"]), "")
	}
	c.until("/v1/snapshots", ready(1))
	c.want(c.do("POST", "/v1/apps/shop/snapshots", `{"name":"a","volumes":["v2"]}`), 201, "")
	if n := len(items(c.must("GET", "/v1/snapshots?at_position="+past, ""))); n != 3 {
		t.Errorf("the past shows %d snapshots", n)
	}
	c.waitOnline("/v1/volumes")
	v := c.must("GET", "/v1/apps/shop", "")
	if n := strings.Count(fmt.Sprint(v.body["volumes"]), "name:c "); n != 1 {
		t.Errorf("%d clones: %v", n, v.body["volumes"])
	}
	m := c.metrics()
	for _, want := range []string{
		`weft_volume_snapshots{volume="default/shop/v1"} 1`,
		`weft_volume_shared_bytes{volume="default/shop/c"} 0`, `weft_device_kept_bytes{`,
		`weft_volume_queued_total{volume="default/shop/v1"} 0`, `weft_device_window{`,
		`class="destage"`,
	} {
		if !strings.Contains(m, want) {
			t.Errorf("no %s", want)
		}
	}
}

// metrics reads the page of counters.
func (c *tester) metrics() string {
	c.t.Helper()
	res, err := c.http.Get(c.base + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}
