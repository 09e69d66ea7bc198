package esdb_test

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	client "github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"go.uber.org/goleak"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/memory"
	"weft/testing/esdouble"
	"weft/testing/testcert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	adminToken = "token-of-the-admin"
	acmeToken  = "token-of-acme"
)

// patience bounds a test that would otherwise hang. It judges nothing.
const patience = 5 * time.Minute

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// rig is a served log.
type rig struct {
	t       *testing.T
	store   *memory.Store
	cursors *esdouble.Cursors
	clock   *clock
	server  *esdb.Server
	addr    string
	stop    func()
}

// authenticate knows two principals.
func authenticate(_ context.Context, user, secret string) (esdb.Principal, error) {
	is := func(token string) bool {
		return subtle.ConstantTimeCompare([]byte(token), []byte(secret)) == 1
	}
	switch {
	case is(adminToken):
		return esdb.Principal{Actor: "user/" + user}, nil
	case is(acmeToken):
		return esdb.Principal{Actor: "user/" + user, Tenant: "acme"}, nil
	}
	return esdb.Principal{}, errors.New("no such token")
}

// serve begins to serve a new log, or the one of a rig that was stopped.
func serve(t *testing.T, old *rig, change ...func(*esdb.Config)) *rig {
	t.Helper()
	r := old
	if r == nil {
		r = &rig{
			t: t, store: memory.New(), cursors: &esdouble.Cursors{},
			clock: &clock{at: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
		}
		t.Cleanup(func() { _ = r.store.Close() })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	config := esdb.Config{
		Store: r.store, Authenticate: authenticate, Cursors: r.cursors, Now: r.clock.now,
	}
	config.TLS, _ = testcert.Loopback(t)
	for _, f := range change {
		f(&config)
	}
	server, err := esdb.New(config)
	if err != nil {
		t.Fatal(err)
	}
	r.server = server
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			server.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

// dial gives the official Go client with a token.
func (r *rig) dial(token string) *client.Client {
	r.t.Helper()
	return dialTo(r.t, token, r.addr)
}

func dialTo(t *testing.T, token, addr string) *client.Client {
	t.Helper()
	_, authority := testcert.Loopback(t)
	config, err := client.ParseConnectionString("esdb://auditor:" + token + "@" + addr +
		"?keepAliveInterval=-1&tlsCAFile=" + authority)
	if err != nil {
		t.Fatal(err)
	}
	config.Logger = client.NoopLogging()
	db, err := client.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// add appends n events of a type to a stream, one append each.
func (r *rig) add(stream domain.StreamID, typ, tenant string, n int) {
	r.t.Helper()
	for range n {
		head, err := r.store.Head(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		command := domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, head.Position.String())}
		_, err = r.store.Append(r.t.Context(), stream, eventstore.Any(), eventstore.Proposed{
			Data: []byte(fmt.Sprintf("data %s of %s", head.Position, stream)),
			Header: domain.Header{
				ID: command.EventID(0), Type: typ, Schema: 3, Actor: "user/admin", Tenant: tenant,
				Source: "192.0.2.7:4711", RequestID: "r-7", Command: command,
				RequestHash: [16]byte{1, 2, 3}, Correlation: command.EventID(7),
				Causation: command.EventID(8),
				Created:   time.Date(2026, 1, 2, 3, 4, 5, 6700, time.UTC),
			},
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// fill appends n events in turn to three streams of two tenants.
func (r *rig) fill(n int) {
	for i := range n {
		switch i % 3 {
		case 0:
			r.add("volume-a", "VolumeCreated", "acme", 1)
		case 1:
			r.add("volume-b", "VolumeResized", "other", 1)
		case 2:
			r.add("tenant-x", "QuotaSet", "acme", 1)
		}
	}
}

// logged gives the whole log.
func (r *rig) logged() []eventstore.Recorded {
	r.t.Helper()
	var out []eventstore.Recorded
	for e, err := range r.store.ReadAll(r.t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// drain reads a client's read to its end.
func drain(t *testing.T, s *client.ReadStream, err error) []*client.RecordedEvent {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out []*client.RecordedEvent
	for {
		e, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.OriginalEvent())
	}
}

// places writes the positions of events.
func places(events []*client.RecordedEvent) string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprint(e.Position.Commit))
	}
	return strings.Join(out, " ")
}

// codeOf gives the client's error code.
func codeOf(err error) client.ErrorCode {
	if err == nil {
		return -1
	}
	e, _ := client.FromError(err)
	return e.Code()
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
