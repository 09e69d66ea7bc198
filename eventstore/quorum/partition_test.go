package quorum

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// wall stands before the port of one node and keeps out what the members on the other side send.
// What carries no sender, a client's call or a forwarded append, passes.
type wall struct {
	port *Port
	mu   sync.Mutex
	out  map[uint64]bool
	open map[net.Conn]uint64 // from whom each connection is
}

type connKey struct{}

// ServeHTTP implements http.Handler.
func (w *wall) ServeHTTP(res http.ResponseWriter, r *http.Request) {
	if from, err := strconv.ParseUint(r.Header.Get("X-Server-From"), 16, 64); err == nil {
		conn, _ := r.Context().Value(connKey{}).(net.Conn)
		w.mu.Lock()
		blocked := w.out[from]
		w.open[conn] = from
		w.mu.Unlock()
		if blocked {
			_ = conn.Close()
			return
		}
	}
	w.port.ServeHTTP(res, r)
}

// keepOut cuts what there is of members and lets nothing new in; none lets everybody in again.
func (w *wall) keepOut(members ...uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = map[uint64]bool{}
	for _, m := range members {
		w.out[m] = true
	}
	for c, from := range w.open {
		if w.out[from] {
			_ = c.Close()
			delete(w.open, c)
		}
	}
}

// A leader that is cut off from both other voters acknowledges nothing more, they elect another and
// go on, and when the wall falls what it had on its way stands once or not at all, in one log.
func TestPartitionedLeader(t *testing.T) {
	nodes := three(t)
	client := newPeer(t, "client", nodes[1].cfg.Net.URL, nodes[2].cfg.Net.URL, nodes[0].cfg.Net.URL)
	lead := leads(t, nodes[:])
	var rest []*peer
	for _, n := range nodes {
		if n != lead {
			rest = append(rest, n)
		}
	}
	add(t, lead.Store, "w-0", eventstore.NoStream(), "w-0/-1", 1)
	lead.wall.keepOut(rest[0].local().id(), rest[1].local().id())
	for _, n := range rest {
		n.wall.keepOut(lead.local().id())
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	late := make(chan error, 1)
	go func() { // it believes to lead, for a moment; then nobody does
		_, err := lead.Append(ctx, "w-0", eventstore.At(0), storetest.Propose("late", 1)...)
		late <- err
	}()
	next := leads(t, rest)
	t.Logf("%s was cut off, %s leads", lead.cfg.Name, next.cfg.Name)
	for rev := range domain.Revision(20) {
		append1(t, rest[rev%2], "w-1", rev-1, fmt.Sprint("w-1/", rev))
		append1(t, client, "w-2", rev-1, fmt.Sprint("w-2/", rev))
	}
	select {
	case err := <-late:
		t.Fatalf("a leader without a majority answered %v", err)
	default:
	}
	if lead.mirror.StreamHead("w-1").Revision >= 0 {
		t.Error("the wall has a hole: this test proves nothing")
	}
	for _, n := range nodes {
		n.wall.keepOut()
	}
	if err := <-late; err != nil && !errors.Is(err, eventstore.ErrUnknownOutcome) {
		t.Errorf("after the wall: %v", err)
	}
	append1(t, lead, "w-0", 0, "late") // the same again: once in the end
	same(t, append(nodes[:], client), []domain.Revision{1, 19, 19})
}

// A voter that is removed while it is cut off finds out when it is back, and goes on as a client:
// no member speaks to it any more, and its own list still names it.
func TestRemovedWhileCutOff(t *testing.T) {
	nodes := three(t)
	gone := follower(t, nodes)
	other := nodes[0]
	if gone == other {
		other = nodes[1]
	}
	id := gone.local().id()
	for _, n := range nodes { // both ways, so that it neither hears nor is heard
		if n != gone {
			n.wall.keepOut(id)
		}
	}
	gone.wall.keepOut(nodes[0].local().id(), nodes[1].local().id(), nodes[2].local().id())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := other.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	if gone.local() != nil && gone.local().etcd.Server.IsIDRemoved(id) {
		t.Fatal("it was told, so nothing is shown")
	}
	for _, n := range nodes {
		n.wall.keepOut()
	}
	until(t, "a client again", func() bool { return gone.local() == nil && !gone.hasMember() })
	_, err := gone.Append(ctx, "s-1", eventstore.NoStream(), storetest.Propose("after", 1)...)
	if err != nil {
		t.Errorf("as a client: %v", err)
	}
}
