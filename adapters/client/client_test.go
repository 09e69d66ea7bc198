package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/domain"
)

// clock never waits and notes how long it was asked to.
type clock struct {
	mu     sync.Mutex
	pauses []time.Duration
}

func (c *clock) after(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pauses = append(c.pauses, d)
	now := make(chan time.Time, 1)
	now <- time.Time{}
	return now
}

// serve makes a client of a server that a function plays.
func serve(t *testing.T, h http.HandlerFunc) (*Client, *clock) {
	t.Helper()
	s := httptest.NewServer(h)
	k := &clock{}
	c, err := New(Config{
		URL: s.URL, Token: "secret", Agent: "test", After: k.after,
		Now: func() time.Time { return time.UnixMilli(0x0102030405) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.CloseClientConnections()
		s.Close()
	})
	return c, k
}

func problemOut(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body)
}

// TestRequestSaysAllOfIt proves what a change and a reading carry, and what comes back of headers.
func TestRequestSaysAllOfIt(t *testing.T) {
	var got *http.Request
	var body string
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
		w.Header().Set("Weft-Position", "281474976710663")
		w.Header().Set("ETag", `"1.7"`)
		_, _ = io.WriteString(w, `{"name":"gold","version":2}`)
	})
	r, err := c.ApplyTemplate(t.Context(), TemplateBody{Name: "a/b ä"}, Change{
		Tenant: "acme", IfMatch: `"1.6"`, Key: "mine",
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Value.Version != 2 || r.Position != domain.PositionOf(1, 7) || r.ETag != `"1.7"` {
		t.Errorf("reply %+v", r)
	}
	h := got.Header
	for name, want := range map[string]string{
		"Authorization": "Bearer secret", "Idempotency-Key": "mine", "If-Match": `"1.6"`,
		"User-Agent": "test", "Content-Type": "application/json",
	} {
		if h.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, h.Get(name), want)
		}
	}
	if got.Method != "PUT" || got.URL.EscapedPath() != "/v1/templates/a%2Fb%20%C3%A4" {
		t.Errorf("%s %s", got.Method, got.URL.EscapedPath())
	}
	if got.URL.RawQuery != "tenant=acme" || body != `{"name":"a/b ä"}` {
		t.Errorf("query %q, body %q", got.URL.RawQuery, body)
	}
	at := domain.Position(0)
	if _, err := c.Apps(t.Context(), At{At: at.String(), Min: 5}); err != nil {
		t.Fatal(err)
	}
	if got.URL.RawQuery != "at_position=0&min_position=5" || got.Header.Get("Idempotency-Key") != "" {
		t.Errorf("query %q, key %q", got.URL.RawQuery, got.Header.Get("Idempotency-Key"))
	}
}

// TestLostReplyMakesOne plays a node that obeys and whose reply is lost: the second try bears the
// same key, so the node makes no second object (C1).
func TestLostReplyMakesOne(t *testing.T) {
	made := map[string]int{}
	tries := 0
	var mu sync.Mutex // a broken connection orders its handler before nothing
	c, k := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		made[r.Header.Get("Idempotency-Key")]++
		if tries++; tries == 1 {
			panic(http.ErrAbortHandler) // the connection breaks
		}
		_, _ = io.WriteString(w, `{"name":"web"}`)
	})
	if _, err := c.CreateApp(t.Context(), AppBody{Name: "web"}, Change{}); err != nil {
		t.Fatal(err)
	}
	if len(made) != 1 || tries != 2 || len(k.pauses) != 1 {
		t.Fatalf("keys %v, %d tries, pauses %v", made, tries, k.pauses)
	}
	for key := range made {
		if !strings.HasPrefix(key, "00010203-0405-7") || len(key) != 36 {
			t.Errorf("key %q is no UUIDv7 of the time", key)
		}
	}
	if _, err := c.CreateApp(t.Context(), AppBody{Name: "web"}, Change{}); err != nil {
		t.Fatal(err)
	}
	if len(made) != 2 {
		t.Errorf("two calls used one key")
	}
}

// TestRetries holds which answers are tried again, how often and after what pauses (C2).
func TestRetries(t *testing.T) {
	for _, x := range []struct {
		code, tries int
		after       string
		pauses      []time.Duration
	}{
		{429, 4, "", []time.Duration{100e6, 200e6, 400e6}},
		{503, 4, "2", []time.Duration{2e9, 2e9, 2e9}},
		{503, 4, "900", []time.Duration{5e9, 5e9, 5e9}},
		{503, 4, "soon", []time.Duration{100e6, 200e6, 400e6}},
		{500, 1, "", nil},
		{409, 1, "", nil},
		{302, 1, "", nil},
	} {
		t.Run(fmt.Sprintf("%d after %s", x.code, x.after), func(t *testing.T) {
			tries := 0
			c, k := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				tries++
				w.Header().Set("Location", "/elsewhere")
				if x.after != "" {
					w.Header().Set("Retry-After", x.after)
				}
				problemOut(w, x.code, `{"kind":"busy","detail":"no"}`)
			})
			_, err := c.Nodes(t.Context(), At{})
			if !domain.IsKind(err, domain.Busy) || tries != x.tries || !slices.Equal(k.pauses, x.pauses) {
				t.Errorf("%v, %d tries, pauses %v", err, tries, k.pauses)
			}
		})
	}
}

// TestNoNode says what to do when nothing listens.
func TestNoNode(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	k := &clock{}
	c, err := New(Config{URL: s.URL, After: k.after, Tries: 2})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Health(t.Context())
	var e *domain.Error
	if !errors.As(err, &e) || e.Kind != domain.Unavailable ||
		!strings.Contains(e.Remedy, "weft serve") {
		t.Errorf("%#v", err)
	}
	if len(k.pauses) != 1 {
		t.Errorf("pauses %v", k.pauses)
	}
	if _, err := New(Config{URL: "ftp://x"}); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("ftp: %v", err)
	}
}

// TestContextEndsRetries proves that a pause does not outlast the caller's patience.
func TestContextEndsRetries(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		problemOut(w, 503, `{"kind":"unavailable","detail":"not yet"}`)
	})
	c.cfg.After = func(time.Duration) <-chan time.Time {
		cancel()
		return nil
	}
	_, err := c.Nodes(ctx, At{})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("%v", err)
	}
}

// TestProblems maps documents to errors (C3).
func TestProblems(t *testing.T) {
	const stream = "appinstance-c73fa2cd-06cd-8268-a98b-b1a6a9f1d358"
	for _, x := range []struct {
		name, body string
		code       int
		want       domain.Error
	}{
		{
			"names of steps go", `{"kind":"exists","ref":"` + stream + `","remedy":"choose another",` +
				`"detail":"command CreateApp: ` + stream + `: tenancy.Reserve: app/web: the name is taken"}`,
			409,
			domain.Error{
				Kind: domain.Exists, Msg: "app/web: the name is taken", Remedy: "choose another",
			},
		},
		{
			"a reference stays", `{"kind":"not_found","ref":"app/web","detail":"app/web: no such app"}`, 404,
			domain.Error{Kind: domain.NotFound, Ref: "app/web", Msg: "no such app"},
		},
		{
			"violations", `{"kind":"invalid","detail":"all in one","errors":[{"location":"body.size",` +
				`"message":"3 bytes"},{"location":"query.limit","message":"too many"}]}`, 422,
			domain.Error{
				Kind: domain.Invalid, Msg: "the request is not valid",
				Violations: []domain.Violation{
					{Path: "size", Reason: "3 bytes"}, {Path: "query.limit", Reason: "too many"},
				},
			},
		},
		{
			"a bug bears its request", `{"kind":"internal","detail":"inside","request_id":"ab12"}`, 500,
			domain.Error{Kind: domain.Internal, Msg: "inside (request ab12)"},
		},
		{
			"no document", `<html>`, 403,
			domain.Error{
				Kind: domain.Denied, Msg: "the node answered 403 Forbidden",
				Remedy: "check that --api names a Weft node",
			},
		},
		{
			"a kind of tomorrow", `{"kind":"frozen","detail":"cold"}`, 409,
			domain.Error{Kind: domain.Internal, Msg: "cold"},
		},
	} {
		t.Run(x.name, func(t *testing.T) {
			c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { problemOut(w, x.code, x.body) })
			_, err := c.Tenants(t.Context(), At{})
			var e *domain.Error
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			if e.Kind != x.want.Kind || e.Msg != x.want.Msg || e.Ref != x.want.Ref ||
				e.Remedy != x.want.Remedy || !slices.Equal(e.Violations, x.want.Violations) {
				t.Errorf("got  %+v\nwant %+v", *e, x.want)
			}
		})
	}
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	})
	if _, err := c.Health(t.Context()); !domain.IsKind(err, domain.Internal) {
		t.Errorf("no JSON: %v", err)
	}
}

// TestKinds holds that every kind's name is read back, and every status without a document has one.
func TestKinds(t *testing.T) {
	for _, k := range domain.Kinds() {
		if got := kindOf(k.String()); got != k {
			t.Errorf("%s is read as %s", k, got)
		}
	}
	for code, want := range map[int]domain.Kind{
		401: domain.Denied, 404: domain.NotFound, 409: domain.Conflict, 422: domain.Invalid,
		429: domain.Busy, 502: domain.Unavailable, 418: domain.Internal,
	} {
		if got := kindOfStatus(code); got != want {
			t.Errorf("%d is %s, want %s", code, got, want)
		}
	}
}

// TestEveryCall holds method and path of each call against the API's list.
func TestEveryCall(t *testing.T) {
	var got []string
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.RequestURI())
		_, _ = io.WriteString(w, "{}")
	})
	ctx := t.Context()
	var err error
	note := func(e error) { err = errors.Join(err, e) }
	do(note, func() (any, error) { return c.Templates(ctx, At{}) })
	do(note, func() (any, error) { return c.CreateTemplate(ctx, TemplateBody{}, Change{}) })
	do(note, func() (any, error) { return c.DeleteTemplate(ctx, "..", Change{}) })
	do(note, func() (any, error) { return c.DeleteApp(ctx, "web", Change{}) })
	do(note, func() (any, error) { return c.ApplyApp(ctx, AppBody{Name: "web"}, Change{}) })
	do(note, func() (any, error) { return c.AddVolume(ctx, "web", VolumeBody{}, Change{}) })
	do(note, func() (any, error) {
		return c.ResizeVolume(ctx, "web", "d", Resizing{Size: 1}, Change{})
	})
	do(note, func() (any, error) { return c.RemoveVolume(ctx, "web", "d", Change{}) })
	do(note, func() (any, error) { return c.SnapshotVolume(ctx, "web", "d", "n", Change{}) })
	do(note, func() (any, error) { return c.Volume(ctx, "id", At{}) })
	do(note, func() (any, error) { return c.WhyVolume(ctx, "id", At{}) })
	do(note, func() (any, error) { return c.Devices(ctx, At{}) })
	do(note, func() (any, error) { return c.Plans(ctx, At{}) })
	do(note, func() (any, error) { return c.Event(ctx, 7) })
	do(note, func() (any, error) {
		return c.Events(ctx, Selection{
			Since: 3, Types: []string{"A", "B"}, Streams: []string{"s"}, Limit: 2, Newest: true,
		})
	})
	do(note, func() (any, error) { return c.Verify(ctx) })
	do(note, func() (any, error) { return c.PutSecret(ctx, "s", SecretBody{}) })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET /v1/templates", "POST /v1/templates", "DELETE /v1/templates/-", "DELETE /v1/apps/web",
		"PUT /v1/apps/web", "POST /v1/apps/web/volumes", "PATCH /v1/apps/web/volumes/d",
		"DELETE /v1/apps/web/volumes/d", "POST /v1/apps/web/volumes/d/snapshots", "GET /v1/volumes/id",
		"GET /v1/volumes/id/decision", "GET /v1/devices", "GET /v1/plans", "GET /v1/events/7",
		"GET /v1/events?limit=2&newest=true&since=3&streams=s&types=A%2CB", "POST /v1/events:verify",
		"PUT /v1/secrets/s",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func do(note func(error), call func() (any, error)) {
	_, err := call()
	note(err)
}

// TestLocal reads what a node left for its own machine, and where it is looked for.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadLocal(dir); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("none: %v", err)
	}
	want := Local{API: "http://127.0.0.1:1", Token: "t"}
	b, _ := json.Marshal(want)
	write(t, filepath.Join(dir, LocalFile), b)
	if got, err := ReadLocal(dir); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	write(t, filepath.Join(dir, LocalFile), []byte("{"))
	if _, err := ReadLocal(dir); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("damaged: %v", err)
	}
	env := map[string]string{"HOME": "/home/a"}
	get := func(k string) string { return env[k] }
	if d := DefaultDataDir(get, 1000); d != "/home/a/.local/state/weft" {
		t.Error(d)
	}
	if d := DefaultDataDir(get, 0); d != "/var/lib/weft" {
		t.Error(d)
	}
	env["XDG_STATE_HOME"] = dir
	def := DefaultDataDir(get, 0)
	if def != filepath.Join(dir, "weft") || CurrentDataDir(def) != def {
		t.Error(def)
	}
	write(t, CurrentFile(def), []byte("/srv/weft\n"))
	if d := CurrentDataDir(def); d != "/srv/weft" {
		t.Error(d)
	}
	write(t, CurrentFile(def), []byte("elsewhere"))
	if d := CurrentDataDir(def); d != def {
		t.Error(d)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
