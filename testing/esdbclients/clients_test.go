package esdbclients_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/memory"
	"weft/testing/esdouble"
	"weft/testing/testcert"
)

// The clients, and what each needs of Node.js.
var clients = []struct {
	pkg, version, scheme string
	node                 int
}{
	{"@eventstore/db-client", "6.2.1", "esdb", 14},
	{"@kurrent/kurrentdb-client", "1.3.1", "kurrentdb", 20},
}

const (
	patience = 3 * time.Minute // bounds what would hang, and judges nothing
	events   = 99
)

// node gives the major version of Node.js, or says why there is none.
func node(t *testing.T) int {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT TESTED against the Node.js clients: %s is not installed", program)
		}
	}
	out, err := exec.CommandContext(t.Context(), "node", "--version").Output()
	major, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".")
	n, bad := strconv.Atoi(major)
	if err != nil || bad != nil {
		t.Skipf("NOT TESTED against the Node.js clients: node says %q, %v", out, err)
	}
	return n
}

// fetch installs a package of npm in a folder of the test.
func fetch(ctx context.Context, t *testing.T, dir, pkg, version string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts",
		"--no-save", "--prefix", dir, pkg+"@"+version)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED against %s: npm cannot fetch it: %v\n%s", pkg, err, tail(out))
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }

// replayed is what the script saw.
type replayed struct {
	Stream, All, Last, Filtered, Pattern, Persistent, OfStream []string

	Missing, Append string
	Sample          struct{ Type, ID, Created, Data, Actor, Hash, Position string }
}

// TestNodeClients proves that the official Node.js clients replay our history unmodified: reads in
// both directions, filtered subscriptions, persistent subscriptions over $all and one stream, the
// missing stream, and the refused append.
func TestNodeClients(t *testing.T) {
	major := node(t)
	for _, c := range clients {
		t.Run(c.pkg, func(t *testing.T) {
			if major < c.node {
				t.Skipf("NOT TESTED against %s: it needs Node.js %d, here is %d", c.pkg, c.node, major)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			dir := t.TempDir()
			fetch(ctx, t, dir, c.pkg, c.version)
			log := serve(t)
			script, err := os.ReadFile("replay.cjs")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "replay.cjs") // node looks for packages beside the script
			if err := os.WriteFile(path, script, 0o600); err != nil {
				t.Fatal(err)
			}
			uri := c.scheme + "://auditor:secret@" + log.addr + "?tlsCaFile=" + log.ca
			cmd := exec.CommandContext(ctx, "node", path, c.pkg, uri, strconv.Itoa(events), "group")
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, tail(errs.Bytes()))
			}
			var got replayed
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			log.compare(t, &got)
		})
	}
}

// served is a log behind a server.
type served struct {
	addr, ca string
	all      []eventstore.Recorded
}

// serve fills a log with events of three streams and serves it.
func serve(t *testing.T) served {
	t.Helper()
	store := memory.New()
	t.Cleanup(func() { _ = store.Close() })
	kinds := []struct{ stream, typ string }{
		{"volume-a", "VolumeCreated"}, {"volume-b", "VolumeResized"}, {"tenant-x", "QuotaSet"},
	}
	for i := range events {
		k := kinds[i%len(kinds)]
		command := domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, strconv.Itoa(i))}
		_, err := store.Append(t.Context(), domain.StreamID(k.stream), eventstore.Any(),
			eventstore.Proposed{
				Data: fmt.Appendf(nil, "data %d", i),
				Header: domain.Header{
					ID: command.EventID(0), Type: k.typ, Schema: 1, Actor: "user/admin",
					Command: command, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
				},
			})
		if err != nil {
			t.Fatal(err)
		}
	}
	config, ca := testcert.Loopback(t)
	s := served{ca: ca}
	for r, err := range store.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			t.Fatal(err)
		}
		s.all = append(s.all, r)
	}
	server, err := esdb.New(esdb.Config{
		Store: store, Cursors: &esdouble.Cursors{}, TLS: config,
		Authenticate: func(_ context.Context, user, secret string) (esdb.Principal, error) {
			if user != "auditor" || secret != "secret" {
				return esdb.Principal{}, domain.Errorf(domain.Denied, "no")
			}
			return esdb.Principal{Actor: user}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// compare judges what a client saw by what is in the log.
func (s served) compare(t *testing.T, got *replayed) {
	t.Helper()
	pick := func(match func(*eventstore.Recorded) bool) []string {
		var out []string
		for i := range s.all {
			if r := &s.all[i]; match(r) {
				out = append(out, fmt.Sprintf("%s@%d:%s", r.Stream, r.Revision, r.Position))
			}
		}
		return out
	}
	any1 := func(*eventstore.Recorded) bool { return true }
	ofA := func(r *eventstore.Recorded) bool { return r.Stream == "volume-a" }
	all := pick(any1)
	last := slices.Clone(all[len(all)-2:])
	slices.Reverse(last)
	for name, c := range map[string]struct{ got, want []string }{
		"stream": {got.Stream, pick(ofA)}, "all": {got.All, all}, "last": {got.Last, last},
		"filtered": {got.Filtered, pick(func(r *eventstore.Recorded) bool {
			return strings.HasPrefix(r.Type, "Quota")
		})},
		"pattern": {got.Pattern, pick(func(r *eventstore.Recorded) bool {
			return strings.HasSuffix(string(r.Stream), "b")
		})},
		"persistent": {got.Persistent, all}, "persistent of a stream": {got.OfStream, pick(ofA)},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q\nwant %q", name, c.got, c.want)
		}
	}
	if got.Missing != "stream-not-found" || got.Append != "access-denied" {
		t.Errorf("missing stream: %s, append: %s", got.Missing, got.Append)
	}
	r := &s.all[0]
	want := replayed{}.Sample
	want.Type, want.ID, want.Created = r.Type, r.ID.String(), "2026-01-02T03:04:05.000Z"
	want.Data, want.Actor, want.Position = string(r.Data), r.Actor, r.Position.String()
	want.Hash = hex.EncodeToString(r.Hash[:])
	if got.Sample != want {
		t.Errorf("event %+v, want %+v", got.Sample, want)
	}
}
