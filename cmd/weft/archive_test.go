package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"weft/adapters/client"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/quorum"
)

// lengthen appends events that say nothing new until the node's log holds n.
func lengthen(t *testing.T, n *Node, count uint64) {
	t.Helper()
	s, id := n.backend.store, n.dir.id.Node
	x, ok := n.backend.views.topology.Node(id)
	if !ok {
		t.Fatal("the node does not know itself")
	}
	schema, data, err := n.backend.codec.Encode(t.Context(), cluster.NodeStream(id), &x.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	for {
		h, err := s.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		k := min(eventstore.EventsMax, int(count)-int(h.Position.N()))
		if k <= 0 {
			return
		}
		events := make([]eventstore.Proposed, k)
		for i := range events {
			events[i].Header = domain.Header{
				Type: x.Endpoint.EventType(), Schema: schema, Created: time.Unix(1e9, 0).UTC(),
				ID: domain.EventID{UUID: domain.DeriveUUID(id.UUID, fmt.Sprint(h.Position, i))},
			}
			events[i].Data = append([]byte(nil), data...)
		}
		stream := cluster.NodeStream(id)
		if _, err := s.Append(t.Context(), stream, eventstore.Any(), events...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOldEventsLeaveTheDatabase proves with a node that the oldest events leave the database once
// the window is full, that the log says who holds them, and that nobody who reads sees a seam: not
// the API, not a replay, not a verification, not a restart.
func TestOldEventsLeaveTheDatabase(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 65,000 events")
	}
	dir := t.TempDir()
	n, down := startNode(t, dir)
	t.Cleanup(func() { down() })
	lengthen(t, n, 65_000)
	api := func() *client.Client {
		c, err := client.New(client.Config{URL: "http://" + n.api.addr, Token: token(t, dir), Tries: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	c := api()
	r, err := c.ChangeSetting(t.Context(), cluster.SettingLogWindow,
		strconv.Itoa(cluster.LogWindowMin), client.Change{})
	if err != nil || r.Value.Value != strconv.Itoa(cluster.LogWindowMin) {
		t.Fatalf("%+v, %v", r.Value, err)
	}
	var a client.Archive
	// Somebody who verifies meanwhile sees one moment.
	if v, err := c.Verify(t.Context()); err != nil || !v.Value.Sound {
		t.Errorf("%+v, %v", v.Value, err)
	}
	until(t, "the window holds", func(ctx context.Context) bool {
		got, err := c.Archive(ctx)
		a = got.Value
		return err == nil && a.Sealed == "40000" && a.State == "ok"
	})
	if a.Window != cluster.LogWindowMin || a.Segments != 3 || len(a.Holders) != 1 ||
		a.Holders[0].Name == "" || a.Sealed != "40000" || a.Archived != "60000" {
		t.Errorf("%+v", a)
	}
	list, err := c.ArchiveSegments(t.Context())
	items := list.Value.Items
	if err != nil || len(items) != 3 || items[1].Hot || !items[2].Hot {
		t.Errorf("%+v, %v", list.Value, err)
	}
	told, err := c.Events(t.Context(), client.Selection{
		Types: []string{"SegmentArchived"}, Limit: 10, Newest: true,
	})
	if err != nil || len(told.Value.Items) != 2 {
		t.Errorf("%+v, %v", told.Value, err)
	}
	for range 2 {
		old, err := c.Events(t.Context(), client.Selection{Limit: 3})
		if err != nil || len(old.Value.Items) != 3 || old.Value.Items[0].Position != "1" {
			t.Errorf("%+v, %v", old.Value, err)
		}
		v, err := c.Verify(t.Context())
		if err != nil || !v.Value.Sound {
			t.Errorf("%+v, %v", v.Value, err)
		}
		p, err := c.Replay(t.Context(), "")
		if err != nil || p.Value.Position == "" {
			t.Errorf("%+v, %v", p.Value, err)
		}
		down()
		n, down = startNode(t, dir)
		c = api()
	}
}

// token gives the administrator's token of a node's folder.
func token(t *testing.T, dir string) string {
	t.Helper()
	l, err := client.ReadLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l.Token
}

// What leaves the database is what lies outside of the window, whole segments, oldest first, and
// all that is sealed when the database fills up.
func TestDueForArchive(t *testing.T) {
	st := quorum.Archive{}
	for k := range uint64(5) {
		st.Segments = append(st.Segments, archive.Segment{
			First: 100*k + 1, Last: domain.PositionOf(0, 100*(k+1)),
		})
	}
	for _, c := range []struct {
		tail, sealed, window uint64
		used                 int64
		want                 int
	}{
		{550, 0, 550, 0, 0},
		{551, 0, 550, 0, 1},
		{550, 100, 450, 0, 0},
		{550, 100, 449, 0, 1},
		{550, 0, 200, 0, 4},
		{550, 0, 50, 0, 5},
		{550, 300, 1000, quorum.SpaceTrim - 1, 0},
		{550, 300, 1000, quorum.SpaceTrim, 2},
	} {
		st.Tail.Position = domain.PositionOf(0, c.tail)
		st.Sealed.Position = domain.PositionOf(0, c.sealed)
		due := dueForArchive(&st, c.window, quorum.Database{InUse: c.used, Quota: 100})
		if len(due) != c.want || c.want > 0 && due[0].First != c.sealed+1 {
			t.Errorf("%+v: %d due", c, len(due))
		}
	}
}
