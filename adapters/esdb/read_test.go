package esdb_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	client "github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
)

// TestReadStream proves reads of one stream in both directions, from everywhere, with every kind of
// limit, and that a stream without events is told apart from an empty answer.
func TestReadStream(t *testing.T) {
	r := serve(t, nil)
	r.fill(12) // volume-a has n = 1, 4, 7, 10
	db := r.dial(adminToken)
	for _, c := range []struct {
		from  client.StreamPosition
		back  bool
		limit uint64
		want  string
	}{
		{client.Start{}, false, math.MaxUint64, "1 4 7 10"},
		{client.Start{}, false, 2, "1 4"},
		{client.Start{}, false, 4, "1 4 7 10"},
		{client.Start{}, false, 5, "1 4 7 10"},
		{client.Revision(2), false, 10, "7 10"},
		{client.Revision(9), false, 10, ""},
		{client.End{}, false, 10, ""},
		{client.End{}, true, 10, "10 7 4 1"},
		{client.End{}, true, 1, "10"},
		{client.Revision(1), true, 10, "4 1"},
	} {
		o := client.ReadStreamOptions{From: c.from}
		if c.back {
			o.Direction = client.Backwards
		}
		s, err := db.ReadStream(limited(t), "volume-a", o, c.limit)
		if got := places(drain(t, s, err)); got != c.want {
			t.Errorf("from %v back %t limit %d: %q, want %q", c.from, c.back, c.limit, got, c.want)
		}
	}
	s, err := db.ReadStream(limited(t), "volume-none", client.ReadStreamOptions{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Recv(); codeOf(err) != client.ErrorCodeResourceNotFound {
		t.Errorf("missing stream: %v", err)
	}
}

// TestReadAll proves reads of the log in both directions: the position given is read too, and
// limits count what the caller gets.
func TestReadAll(t *testing.T) {
	r := serve(t, nil)
	r.fill(7)
	db := r.dial(adminToken)
	at := func(n uint64) client.Position { return client.Position{Commit: n, Prepare: n} }
	for _, c := range []struct {
		from  client.AllPosition
		back  bool
		limit uint64
		want  string
	}{
		{client.Start{}, false, math.MaxUint64, "1 2 3 4 5 6 7"},
		{client.Start{}, false, 2, "1 2"},
		{at(1), false, 3, "1 2 3"},
		{at(5), false, 10, "5 6 7"},
		{at(7), false, 10, "7"},
		{at(8), false, 10, ""},
		{client.End{}, false, 10, ""},
		{client.End{}, true, 3, "7 6 5"},
		{at(3), true, 10, "3 2 1"},
		{client.Start{}, true, 10, ""},
	} {
		o := client.ReadAllOptions{From: c.from}
		if c.back {
			o.Direction = client.Backwards
		}
		s, err := db.ReadAll(limited(t), o, c.limit)
		if got := places(drain(t, s, err)); got != c.want {
			t.Errorf("from %v back %t limit %d: %q, want %q", c.from, c.back, c.limit, got, c.want)
		}
	}
}

// custom is what a reader of our custom metadata finds there.
type custom struct {
	Correlation string `json:"$correlationId"`
	Causation   string `json:"$causationId"`
	Position    string `json:"position"`
	Created     string `json:"created_ns"`
	Schema      uint16 `json:"schema"`
	Actor       string `json:"actor"`
	Tenant      string `json:"tenant"`
	Source      string `json:"source"`
	RequestID   string `json:"request_id"`
	RequestHash string `json:"request_hash"`
	Command     string `json:"command"`
	Token       string `json:"token"`
	Prev        string `json:"prev"`
	Hash        string `json:"hash"`
}

// TestChainFromOutside proves that a foreign client gets all that it needs to check the hash chain
// by itself: every event's content and hash are computed again from what came over the wire alone.
func TestChainFromOutside(t *testing.T) {
	r := serve(t, nil)
	r.fill(9)
	s, err := r.dial(adminToken).ReadAll(limited(t), client.ReadAllOptions{}, math.MaxUint64)
	var prev [32]byte
	events := drain(t, s, err)
	if len(events) != 9 {
		t.Fatalf("%d events", len(events))
	}
	id := func(s string) domain.UUID {
		u, err := domain.ParseUUID(s)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		return u
	}
	for _, e := range events {
		var m custom
		if err := json.Unmarshal(e.UserMetadata, &m); err != nil {
			t.Fatal(err)
		}
		ns, _ := strconv.ParseInt(m.Created, 10, 64)
		token, _ := strconv.ParseUint(m.Token, 10, 64)
		hash, _ := hex.DecodeString(m.RequestHash)
		h := domain.Header{
			ID: domain.EventID{UUID: domain.UUID(e.EventID)}, Type: e.EventType, Schema: m.Schema,
			Actor: m.Actor, Tenant: m.Tenant, Source: m.Source, RequestID: m.RequestID,
			Command: domain.CommandID{UUID: id(m.Command)}, RequestHash: [16]byte(hash),
			Correlation: domain.EventID{UUID: id(m.Correlation)},
			Causation:   domain.EventID{UUID: id(m.Causation)}, Token: token,
			Created: time.Unix(0, ns), Stream: domain.StreamID(e.StreamID),
			Revision: domain.Revision(e.EventNumber),
		}
		if m.Prev != hex.EncodeToString(prev[:]) {
			t.Errorf("position %d: prev does not match", e.Position.Commit)
		}
		prev = eventstore.Chain(prev, domain.Position(e.Position.Commit), eventstore.Content(&h, e.Data))
		if m.Hash != hex.EncodeToString(prev[:]) {
			t.Errorf("position %d: hash does not match", e.Position.Commit)
		}
		if want := time.Date(2026, 1, 2, 3, 4, 5, 6700, time.UTC); !e.CreatedDate.Equal(want) ||
			e.ContentType != "application/octet-stream" {
			t.Errorf("position %d: created %s, %s", e.Position.Commit, e.CreatedDate, e.ContentType)
		}
	}
}

// TestRender proves that a listener which renders gives JSON, and the hash of the bytes behind it.
func TestRender(t *testing.T) {
	r := serve(t, nil, func(c *esdb.Config) {
		c.Render = func(e *eventstore.Recorded) ([]byte, error) {
			return json.Marshal(map[string]string{"was": string(e.Data)})
		}
	})
	r.fill(1)
	s, err := r.dial(adminToken).ReadAll(limited(t), client.ReadAllOptions{}, 1)
	e := drain(t, s, err)[0]
	if e.ContentType != "application/json" || string(e.Data) != `{"was":"data 0 of volume-a"}` ||
		!strings.Contains(string(e.UserMetadata), `"weft.raw-hash":"`) {
		t.Errorf("%s %s %s", e.ContentType, e.Data, e.UserMetadata)
	}
}

// TestRefusals proves that nobody writes: appends, deletes, tombstones and stream metadata are
// refused as access denied, each is told of with who tried and from where, and the log stays as it
// is.
func TestRefusals(t *testing.T) {
	told := make(chan esdb.Refusal, 16)
	r := serve(t, nil, func(c *esdb.Config) { c.Refused = func(r esdb.Refusal) { told <- r } })
	r.fill(3)
	before := r.logged()
	db, ctx := r.dial(adminToken), limited(t)
	event := client.EventData{EventType: "VolumeDeleted", Data: []byte("x")}
	_, append1 := db.AppendToStream(ctx, "volume-a", client.AppendToStreamOptions{}, event)
	_, append2 := db.AppendToStream(ctx, "volume-new",
		client.AppendToStreamOptions{ExpectedRevision: client.NoStream{}}, event)
	_, deletion := db.DeleteStream(ctx, "volume-a", client.DeleteStreamOptions{})
	_, tombstone := db.TombstoneStream(ctx, "volume-a", client.TombstoneStreamOptions{})
	_, metadata := db.SetStreamMetadata(ctx, "volume-a", client.AppendToStreamOptions{},
		client.StreamMetadata{})
	for what, err := range map[string]error{
		"append": append1, "append to a new stream": append2, "delete": deletion,
		"tombstone": tombstone, "metadata": metadata,
	} {
		// The client wraps some of them, so that its own code is lost.
		if err == nil || !strings.Contains(err.Error(), "[ErrorCodeAccessDenied]") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, call := range []string{"Append", "Append", "Delete", "Tombstone", "Append"} {
		if got := <-told; got.Call != call || got.Actor != "user/auditor" || got.Reason == "" ||
			!strings.HasPrefix(got.Source, "127.0.0.1:") {
			t.Errorf("told %+v, want %s", got, call)
		}
	}
	if after := r.logged(); len(after) != len(before) {
		t.Errorf("%d events, were %d", len(after), len(before))
	}
}

// TestWrongToken proves that no call on the log is answered without a good token, and that each is
// told of.
func TestWrongToken(t *testing.T) {
	told := make(chan esdb.Refusal, 64)
	r := serve(t, nil, func(c *esdb.Config) { c.Refused = func(r esdb.Refusal) { told <- r } })
	r.fill(3)
	for _, token := range []string{"wrong", adminToken + "x", adminToken[1:]} {
		db, ctx := r.dial(token), limited(t)
		s, err := db.ReadAll(ctx, client.ReadAllOptions{}, 1)
		if err == nil {
			_, err = s.Recv()
			s.Close()
		}
		group := db.CreatePersistentSubscription(ctx, "volume-a", "g",
			client.PersistentStreamSubscriptionOptions{})
		_, appending := db.AppendToStream(ctx, "volume-a", client.AppendToStreamOptions{},
			client.EventData{EventType: "X"})
		if appending == nil { // the client may be too busy sending to see the reason
			t.Errorf("append with %q", token)
		}
		for what, err := range map[string]error{"read": err, "create": group} {
			if c := codeOf(err); c != client.ErrorCodeAccessDenied &&
				c != client.ErrorCodeUnauthenticated {
				t.Errorf("%s with %q: %v", what, token, err)
			}
		}
		for _, call := range []string{"Read", "Create", "Append"} {
			if got := <-told; got.Call != call || got.Actor != "" || got.Reason != "no such token" ||
				!strings.HasPrefix(got.Source, "127.0.0.1:") {
				t.Errorf("told %+v, want %s", got, call)
			}
		}
	}
}

// TestTenantSeesItsOwn proves that a principal bound to a tenant gets that tenant's events and no
// others, by every way to read, and that a foreign stream looks like one that is not there.
func TestTenantSeesItsOwn(t *testing.T) {
	r := serve(t, nil)
	r.fill(9) // n = 2, 5, 8 are another tenant's
	db := r.dial(acmeToken)
	const want = "1 3 4 6 7 9"
	s, err := db.ReadAll(limited(t), client.ReadAllOptions{}, math.MaxUint64)
	if got := places(drain(t, s, err)); got != want {
		t.Errorf("read: %s", got)
	}
	s, err = db.ReadAll(limited(t), client.ReadAllOptions{From: client.Start{}}, 2)
	if got := places(drain(t, s, err)); got != "1 3" {
		t.Errorf("limit: %s", got)
	}
	sub, err := db.SubscribeToAll(limited(t), client.SubscribeToAllOptions{From: client.Start{}})
	if err != nil {
		t.Fatal(err)
	}
	if got := places(follow(t, sub, 6)); got != want {
		t.Errorf("subscription: %s", got)
	}
	foreign, err := db.ReadStream(limited(t), "volume-b", client.ReadStreamOptions{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := foreign.Recv(); codeOf(err) != client.ErrorCodeResourceNotFound {
		t.Errorf("foreign stream: %v", err)
	}
}

// TestFilters proves filters by prefix and by pattern, on streams and on types, in subscriptions,
// and that a filtered subscription hears how far it is when nothing matches.
func TestFilters(t *testing.T) {
	r := serve(t, nil)
	r.fill(90)
	db := r.dial(adminToken)
	for name, c := range map[string]struct {
		filter client.SubscriptionFilter
		least  uint64 // of the matching events, and the step between them
		step   uint64
	}{
		"stream prefix": {
			client.SubscriptionFilter{Type: client.StreamFilterType, Prefixes: []string{"tenant-"}}, 3, 3,
		},
		"stream pattern": {
			client.SubscriptionFilter{Type: client.StreamFilterType, Regex: "b$"}, 2, 3,
		},
		"type prefix": {
			client.SubscriptionFilter{Type: client.EventFilterType, Prefixes: []string{"VolumeC"}}, 1, 3,
		},
		"type pattern": {
			client.SubscriptionFilter{Type: client.EventFilterType, Regex: "^(Quota|x)"}, 3, 3,
		},
		"no system events": {*client.ExcludeSystemEventsFilter(), 1, 1},
	} {
		sub, err := db.SubscribeToAll(limited(t), client.SubscribeToAllOptions{
			From: client.Start{}, Filter: &c.filter,
		})
		if err != nil {
			t.Fatal(err)
		}
		n := int(90 / c.step)
		var want []string
		for p := c.least; p <= 90; p += c.step {
			want = append(want, fmt.Sprint(p))
		}
		if got := places(follow(t, sub, n)); got != strings.Join(want, " ") {
			t.Errorf("%s: %s", name, got)
		}
	}
	sub, err := db.SubscribeToAll(limited(t), client.SubscribeToAllOptions{
		From: client.Start{}, Filter: &client.SubscriptionFilter{
			Type: client.StreamFilterType, Regex: "^none$",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	var told []uint64
	for {
		e := sub.Recv()
		if e.CaughtUp != nil {
			break
		}
		if e.CheckPointReached == nil {
			t.Fatalf("%+v", e)
		}
		told = append(told, e.CheckPointReached.Commit)
	}
	if fmt.Sprint(told) != "[32 64 90]" {
		t.Errorf("checkpoints at %v", told)
	}
}

// follow reads n events of a subscription and closes it.
func follow(t *testing.T, sub *client.Subscription, n int) []*client.RecordedEvent {
	t.Helper()
	defer sub.Close()
	var out []*client.RecordedEvent
	for len(out) < n {
		e := sub.Recv()
		if e.SubscriptionDropped != nil {
			t.Fatalf("dropped after %d: %v", len(out), e.SubscriptionDropped.Error)
		}
		if e.EventAppeared != nil {
			out = append(out, e.EventAppeared.OriginalEvent())
		}
	}
	return out
}

// TestSubscribeWhileWritten proves the hand-over from history to live: while another writes, every
// reader gets each event once and in order, from wherever it begins, and never again what it
// resumes from.
func TestSubscribeWhileWritten(t *testing.T) {
	r := serve(t, nil)
	r.fill(300)
	db := r.dial(adminToken)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		r.fill(300)
	}()
	for _, from := range []uint64{0, 1, 150, 299, 300} {
		o := client.SubscribeToAllOptions{From: client.Start{}}
		if from > 0 {
			o.From = client.Position{Commit: from, Prepare: from}
		}
		sub, err := db.SubscribeToAll(limited(t), o)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range follow(t, sub, 600-int(from)) {
			if want := from + uint64(i) + 1; e.Position.Commit != want {
				t.Fatalf("from %d: %d, want %d", from, e.Position.Commit, want)
			}
		}
	}
	<-wrote
	one, err := db.SubscribeToStream(limited(t), "volume-b",
		client.SubscribeToStreamOptions{From: client.Revision(197)})
	if err != nil {
		t.Fatal(err)
	}
	if got := places(follow(t, one, 2)); got != "596 599" {
		t.Errorf("stream after revision 197: %s", got)
	}
	later, err := db.SubscribeToStream(limited(t), "volume-b",
		client.SubscribeToStreamOptions{From: client.Revision(200)}) // which is not there yet
	if err != nil {
		t.Fatal(err)
	}
	tail, err := db.SubscribeToStream(limited(t), "volume-b",
		client.SubscribeToStreamOptions{From: client.End{}})
	if err != nil {
		t.Fatal(err)
	}
	r.fill(5)
	if got := places(follow(t, later, 1)); got != "605" {
		t.Errorf("stream after revision 200: %s", got)
	}
	if got := places(follow(t, tail, 1)); got != "602" {
		t.Errorf("stream after its end: %s", got)
	}
}

// TestCloseEndsSubscriptions proves that a server which closes leaves no call behind.
func TestCloseEndsSubscriptions(t *testing.T) {
	r := serve(t, nil)
	r.fill(3)
	sub, err := r.dial(adminToken).SubscribeToAll(limited(t), client.SubscribeToAllOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for sub.Recv().CaughtUp == nil {
	}
	r.stop()
	for e := sub.Recv(); e.SubscriptionDropped == nil; e = sub.Recv() {
		if e.EventAppeared != nil {
			t.Errorf("%+v", e)
		}
	}
}

// TestSeesAPart proves that a principal who sees some streams gets those alone, also of what
// happens while a subscription is under way and after a right was taken away, and has no persistent
// subscriptions.
func TestSeesAPart(t *testing.T) {
	var open atomic.Bool
	open.Store(true)
	r := serve(t, nil, func(c *esdb.Config) {
		c.Authenticate = func(context.Context, string, string) (esdb.Principal, error) {
			return esdb.Principal{Actor: "user/ann", Sees: func(s domain.StreamID) bool {
				return open.Load() && s == "volume-a"
			}}, nil
		}
	})
	r.fill(6) // volume-a has n = 1, 4
	db := r.dial(adminToken)
	s, err := db.ReadAll(limited(t), client.ReadAllOptions{}, math.MaxUint64)
	if got := places(drain(t, s, err)); got != "1 4" {
		t.Errorf("read: %s", got)
	}
	sub, err := db.SubscribeToAll(limited(t), client.SubscribeToAllOptions{From: client.Start{}})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for sub.Recv().CaughtUp == nil {
	}
	r.fill(1) // n = 7
	if e := sub.Recv(); e.EventAppeared == nil ||
		e.EventAppeared.OriginalEvent().Position.Commit != 7 {
		t.Errorf("live: %+v", e)
	}
	open.Store(false)
	s, err = db.ReadAll(limited(t), client.ReadAllOptions{}, math.MaxUint64)
	if got := places(drain(t, s, err)); got != "" {
		t.Errorf("after the right was taken away: %s", got)
	}
	open.Store(true)
	foreign, err := db.ReadStream(limited(t), "volume-b", client.ReadStreamOptions{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := foreign.Recv(); codeOf(err) != client.ErrorCodeResourceNotFound {
		t.Errorf("foreign stream: %v", err)
	}
	err = db.CreatePersistentSubscriptionToAll(limited(t), "g",
		client.PersistentAllSubscriptionOptions{Settings: groupSettings()})
	if codeOf(err) != client.ErrorCodeAccessDenied {
		t.Errorf("persistent subscription: %v", err)
	}
}
