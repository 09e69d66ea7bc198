package esdouble_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	client "github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/testing/esdouble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t *testing.T, s *esdouble.Server) *client.Client {
	t.Helper()
	config, err := client.ParseConnectionString("esdb://" + s.Addr + "?tls=false&keepAliveInterval=-1")
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

func event(id string) client.EventData {
	return client.EventData{
		EventID: uuid.UUID(domain.DeriveUUID(domain.UUID{}, id)), EventType: "Happened",
		ContentType: client.ContentTypeJson, Data: []byte(`{"id":"` + id + `"}`),
		Metadata: []byte(`{"meta":"` + id + `"}`),
	}
}

func read(t *testing.T, db *client.Client, stream string) []*client.RecordedEvent {
	t.Helper()
	s, err := db.ReadStream(t.Context(), stream, client.ReadStreamOptions{}, 100)
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
		out = append(out, e.Event)
	}
}

// TestExpectations gives the official client every expectation against a stream that is there and
// one that is not: it sees what an EventStoreDB shows.
func TestExpectations(t *testing.T) {
	db := dial(t, esdouble.Serve(t, esdouble.New()))
	for i, c := range []struct {
		expect         client.ExpectedRevision
		missing, there string // words of the error, none: it holds
	}{
		{client.Any{}, "", ""},
		{client.NoStream{}, "", "expecting 'no_stream' but got '2'"},
		{client.StreamExists{}, "expecting 'stream_exists' but got 'no_stream'", ""},
		{client.Revision(2), "expecting '2' but got 'no_stream'", ""},
		{client.Revision(7), "expecting '7' but got 'no_stream'", "expecting '7' but got '2'"},
	} {
		for _, there := range []bool{false, true} {
			stream, want := fmt.Sprintf("any Name %d %v", i, there), c.missing
			first := uint64(0)
			if there {
				want, first = c.there, 3
				if _, err := db.AppendToStream(t.Context(), stream, client.AppendToStreamOptions{},
					event("a"), event("b"), event("c")); err != nil {
					t.Fatal(err)
				}
			}
			got, err := db.AppendToStream(t.Context(), stream,
				client.AppendToStreamOptions{ExpectedRevision: c.expect}, event("d"), event("e"))
			if want == "" {
				if err != nil || got.NextExpectedVersion != first+1 || got.CommitPosition == 0 {
					t.Errorf("%s: %+v, %v", stream, got, err)
				}
				continue
			}
			e, _ := client.FromError(err)
			if err == nil || e.Code() != client.ErrorCodeWrongExpectedVersion ||
				!strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", stream, err, want)
			}
		}
	}
}

// TestRepeats proves that the same ids at the same place give the old result and that nothing is
// written, and that custom metadata and content types come back as they were given.
func TestRepeats(t *testing.T) {
	db := dial(t, esdouble.Serve(t, esdouble.New()))
	add := func(e client.ExpectedRevision, ev ...client.EventData) *client.WriteResult {
		t.Helper()
		got, err := db.AppendToStream(t.Context(), "s",
			client.AppendToStreamOptions{ExpectedRevision: e}, ev...)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := add(client.NoStream{}, event("a"), event("b"))
	add(client.Revision(1), event("c"))
	for _, e := range []client.ExpectedRevision{
		client.NoStream{}, client.Any{}, client.StreamExists{},
	} {
		if again := add(e, event("a"), event("b")); *again != *first {
			t.Errorf("%T: %+v, want %+v", e, again, first)
		}
	}
	got := read(t, db, "s")
	if len(got) != 3 {
		t.Fatalf("%d events", len(got))
	}
	for i, e := range got {
		want := event(string(rune('a' + i)))
		if e.EventID != want.EventID || string(e.Data) != string(want.Data) ||
			string(e.UserMetadata) != string(want.Metadata) || e.ContentType != "application/json" ||
			e.EventType != want.EventType || e.EventNumber != uint64(i) {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	if got[1].Position.Commit <= got[0].Position.Commit+1 {
		t.Errorf("positions %v and %v have no gap", got[0].Position, got[1].Position)
	}
}

// TestFaults proves that an append can be lost or applied behind an error, and that there is a
// limit on its size.
func TestFaults(t *testing.T) {
	log := esdouble.New()
	fault := esdouble.Lost
	log.Fault = func(domain.StreamID, []esdb.Foreign) esdouble.Fault {
		f := fault
		fault = esdouble.None
		return f
	}
	log.AppendMax = 1000
	server := esdouble.Serve(t, log)
	for want := range 2 {
		db := dial(t, server) // one that saw "unavailable" and goes on leaks its connection
		_, err := db.AppendToStream(t.Context(), "s", client.AppendToStreamOptions{},
			event(fmt.Sprint(want)))
		if e, _ := client.FromError(err); err == nil || e.Code() != client.ErrorUnavailable {
			t.Fatal(err)
		}
		if got := len(log.Events("s")); got != want {
			t.Fatalf("%d events, want %d", got, want)
		}
		fault = esdouble.Applied
	}
	fault = esdouble.None
	db := dial(t, server)
	big := event("big")
	big.Data = make([]byte, 1000)
	_, err := db.AppendToStream(t.Context(), "s", client.AppendToStreamOptions{}, big)
	if err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Fatal(err)
	}
}
