package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	eventstore "github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/adapters/client"
)

// reader gives the official Go client of EventStoreDB, at a node.
func (m *machine) reader(t *testing.T) *eventstore.Client {
	t.Helper()
	l, err := client.ReadLocal(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := strings.CutPrefix(m.doc.Events, "esdb://")
	c, err := eventstore.ParseConnectionString("esdb://auditor:" + l.Token + "@" + addr +
		"?keepAliveInterval=-1&tlsCAFile=" + m.doc.EventCA)
	if err != nil {
		t.Fatal(err)
	}
	c.Logger = eventstore.NoopLogging()
	db, err := eventstore.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// history reads the whole log through a node.
func history(t *testing.T, db *eventstore.Client) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s, err := db.ReadAll(ctx, eventstore.ReadAllOptions{From: eventstore.Start{}}, math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out []string
	for {
		e, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, told(e.OriginalEvent()))
	}
}

func told(e *eventstore.RecordedEvent) string {
	return fmt.Sprintf("%d %s@%d %s", e.Position.Commit, e.StreamID, e.EventNumber, e.EventType)
}

// The official client of EventStoreDB reads the log of a cluster through any node, the same
// everywhere. SIGKILL of the leader costs a subscription at another node nothing, and a persistent
// subscription goes on at the next leader: what was acknowledged and saved does not come again, and
// nothing is left out.
func TestForeignReaders(t *testing.T) {
	list := cluster3(t)
	volumes(t, list)
	victim := leader(t, list, nil)
	var others []*machine
	for _, m := range list {
		if m != victim {
			others = append(others, m)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	db := victim.reader(t)
	err := db.CreatePersistentSubscriptionToAll(ctx, "audit",
		eventstore.PersistentAllSubscriptionOptions{StartFrom: eventstore.Start{}})
	if err != nil {
		t.Fatal(err)
	}
	group, err := db.SubscribeToPersistentSubscriptionToAll(ctx, "audit",
		eventstore.SubscribeToPersistentSubscriptionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	live, err := others[0].reader(t).SubscribeToAll(ctx, eventstore.SubscribeToAllOptions{
		From: eventstore.Start{},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = live.Close() }()
	const acked = 10 // what a consumer holds when it does not say
	var seen []string
	for len(seen) < acked {
		if e := group.Recv().EventAppeared; e != nil {
			seen = append(seen, told(e.Event.OriginalEvent()))
			if err := group.Ack(e.Event); err != nil {
				t.Fatal(err)
			}
		}
	}
	until(t, "the answers are there, so more was sent", func(ctx context.Context) bool {
		i, err := db.GetPersistentSubscriptionInfoToAll(ctx, "audit",
			eventstore.GetPersistentSubscriptionOptions{})
		return err == nil && i.Stats.TotalItems == 2*acked // as many as it may hold
	})
	_ = group.Close() // which saves the cursor
	until(t, "nobody reads the group", func(ctx context.Context) bool {
		i, err := db.GetPersistentSubscriptionInfoToAll(ctx, "audit",
			eventstore.GetPersistentSubscriptionOptions{})
		return err == nil && len(i.Connections) == 0
	})
	victim.kill()
	next := leader(t, list, victim)
	body := client.TemplateBody{Name: "after", Intent: &client.Intent{}}
	until(t, "a write after the kill", func(ctx context.Context) bool {
		_, err := next.api.CreateTemplate(ctx, body, client.Change{Key: "after"})
		return err == nil
	})
	want := history(t, next.reader(t))
	group, err = next.reader(t).SubscribeToPersistentSubscriptionToAll(ctx, "audit",
		eventstore.SubscribeToPersistentSubscriptionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = group.Close() }()
	for len(seen) < len(want) {
		x := group.Recv()
		if x.SubscriptionDropped != nil {
			t.Fatalf("dropped after %d of %d: %v", len(seen), len(want), x.SubscriptionDropped.Error)
		}
		if e := x.EventAppeared; e != nil {
			seen = append(seen, told(e.Event.OriginalEvent()))
			if err := group.Ack(e.Event); err != nil {
				t.Fatal(err)
			}
		}
	}
	var followed []string
	for len(followed) < len(want) {
		x := live.Recv()
		if x.SubscriptionDropped != nil {
			t.Fatalf("dropped after %d of %d: %v", len(followed), len(want), x.SubscriptionDropped.Error)
		}
		if x.EventAppeared != nil {
			followed = append(followed, told(x.EventAppeared.OriginalEvent()))
		}
	}
	for i, w := range want {
		if seen[i] != w || followed[i] != w {
			t.Fatalf("number %d: group %q, subscription %q, log %q", i, seen[i], followed[i], w)
		}
	}
	for _, m := range others {
		if m != next && fmt.Sprint(history(t, m.reader(t))[:len(want)]) != fmt.Sprint(want) {
			t.Errorf("%s tells another history", m.name)
		}
	}
	t.Logf("%d events, the same by every way", len(want))
}
