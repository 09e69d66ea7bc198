package kurrent_test

import (
	"bytes"
	"context"
	"errors"
	"log"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/serverfeatures"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/kurrent"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

// node is a server that answers as a test says.
type node struct {
	streams.UnimplementedStreamsServer
	serverfeatures.UnimplementedServerFeaturesServer
	refuse func(set func(metadata.MD)) error // every call that is not answered otherwise
	read   func(streams.Streams_ReadServer) error
	leader atomic.Int32 // calls that asked for the leader
}

func (n *node) GetSupportedMethods(context.Context, *shared.Empty) (
	*serverfeatures.SupportedMethods, error,
) {
	return &serverfeatures.SupportedMethods{EventStoreServerVersion: "23.10.0"}, nil
}

func (n *node) note(ctx context.Context) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("requires-leader")) > 0 {
		n.leader.Add(1)
	}
}

func (n *node) Append(s streams.Streams_AppendServer) error {
	n.note(s.Context())
	return n.refuse(s.SetTrailer)
}

func (n *node) Read(_ *streams.ReadReq, s streams.Streams_ReadServer) error {
	n.note(s.Context())
	if n.read != nil {
		return n.read(s)
	}
	return n.refuse(s.SetTrailer)
}

func (n *node) serve(t *testing.T) *esdouble.Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	streams.RegisterStreamsServer(s, n)
	serverfeatures.RegisterServerFeaturesServer(s, n)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		wg.Wait()
	})
	return &esdouble.Server{Addr: l.Addr().String()}
}

func appendOne(
	t testing.TB, s eventstore.Store, id domain.StreamID, e eventstore.Expect, seed string,
) eventstore.Appended {
	t.Helper()
	a, err := s.Append(t.Context(), id, e, storetest.Propose(seed, 1)...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestDeadClient proves that a cluster that was away is found again. The client would stay dead for
// ever, and whoever waits beside the call that killed it would hang.
func TestDeadClient(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	s := connect(t, server)
	appendOne(t, s, "a-1", eventstore.NoStream(), "one")
	server.Stop()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			_, err := s.Append(t.Context(), "a-1", eventstore.At(0), storetest.Propose("two", 1)...)
			if domain.KindOf(err) != domain.Unavailable {
				t.Errorf("append while nobody answers: %v", err)
			}
			if _, err := s.Head(t.Context()); domain.KindOf(err) != domain.Unavailable {
				t.Errorf("head while nobody answers: %v", err)
			}
		})
	}
	wg.Wait()
	_, err := s.Append(t.Context(), "b-1", eventstore.NoStream(), storetest.Propose("b", 1)...)
	if !errors.Is(err, eventstore.ErrNoQuorum) {
		t.Errorf("nothing was sent, and the answer is %v", err)
	}
	server.Start()
	if a := appendOne(t, s, "a-1", eventstore.At(0), "two"); a.Last != 1 {
		t.Errorf("%+v", a)
	}
}

// TestReadFindsTheServerBack proves that a read whose connection was lost while it lay idle is
// tried again: the client gives the refusal such a read meets in another form than all others.
func TestReadFindsTheServerBack(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	tries := 0
	s := connect(t, server, func(c *kurrent.Config) {
		c.Clients = 1
		c.Pause = func(ctx context.Context, _ int) error {
			if tries++; tries == 1 {
				server.Start()
			}
			return ctx.Err()
		}
	})
	appendOne(t, s, "a-1", eventstore.NoStream(), "one")
	server.Stop()
	read := 0
	for _, err := range s.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{}, -1) {
		if err != nil {
			t.Fatal(err)
		}
		read++
	}
	if read != 1 || tries == 0 {
		t.Errorf("read %d events behind %d failed tries", read, tries)
	}
}

// TestClientPanics proves that an answer the client panics over is an error.
func TestClientPanics(t *testing.T) {
	n := &node{read: func(s streams.Streams_ReadServer) error {
		return s.Send(&streams.ReadResp{Content: &streams.ReadResp_CaughtUp_{
			CaughtUp: &streams.ReadResp_CaughtUp{},
		}})
	}}
	s := connect(t, n.serve(t))
	if _, err := s.Head(t.Context()); domain.KindOf(err) != domain.Unavailable {
		t.Errorf("head: %v", err)
	}
	for _, err := range s.ReadStream(t.Context(), "a-1", 0, eventstore.Forward, 1) {
		if domain.KindOf(err) != domain.Unavailable {
			t.Errorf("read: %v", err)
		}
	}
}

// TestNotLeader proves that a follower's refusal is followed to the leader, and that calls ask for
// the leader where a server can see it.
func TestNotLeader(t *testing.T) {
	leader := esdouble.Serve(t, esdouble.New())
	host, port, _ := net.SplitHostPort(leader.Addr)
	n := &node{refuse: func(set func(metadata.MD)) error {
		set(metadata.Pairs("exception", "not-leader",
			"leader-endpoint-host", host, "leader-endpoint-port", port))
		return status.Error(codes.NotFound, "not the leader")
	}}
	s := connect(t, n.serve(t), func(c *kurrent.Config) { c.Clients = 1 })
	if a := appendOne(t, s, "a-1", eventstore.NoStream(), "one"); a.Last != 0 {
		t.Errorf("%+v", a)
	}
	asked := n.leader.Load() // more than once where the client takes its time to change over
	if a := appendOne(t, s, "a-1", eventstore.At(0), "two"); a.Last != 1 {
		t.Errorf("%+v", a)
	}
	if calls := n.leader.Load(); asked == 0 || calls != asked {
		t.Errorf("%d calls asked the follower for the leader, and %d behind those", asked, calls-asked)
	}
}

// TestRefusedByServer proves that an answer which a repeat does not change is given at once, by its
// kind, and not as an unknown outcome.
func TestRefusedByServer(t *testing.T) {
	for code, want := range map[codes.Code]domain.Kind{
		codes.PermissionDenied: domain.Denied, codes.Unauthenticated: domain.Denied,
		codes.InvalidArgument: domain.TooLarge, codes.DataLoss: domain.Corrupt,
	} {
		n := &node{
			refuse: func(func(metadata.MD)) error { return status.Error(code, "no") },
			read:   func(streams.Streams_ReadServer) error { return nil },
		}
		s := connect(t, n.serve(t))
		_, err := s.Append(t.Context(), "a-1", eventstore.NoStream(), storetest.Propose("x", 1)...)
		if domain.KindOf(err) != want {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// TestResubscribes proves that a subscription goes on behind a restart of the server, without a gap
// and without a repeat, and that it is not caught up twice.
func TestResubscribes(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	s := connect(t, server)
	sub, err := s.Subscribe(t.Context(), 0, domain.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var want domain.Revision
	caught := 0
	for round := range 4 {
		for i := range 5 {
			appendOne(t, s, "a-1", eventstore.At(want+domain.Revision(i)-1),
				strconv.Itoa(10*round+i))
		}
		for end := want + 5; want < end; {
			item, err := sub.Next(t.Context())
			switch {
			case err != nil:
				t.Fatal(err)
			case item.Kind == eventstore.CaughtUp:
				caught++
			case item.Event.Revision != want:
				t.Fatalf("revision %d, want %d", item.Event.Revision, want)
			default:
				want++
			}
		}
		server.Stop()
		server.Start()
	}
	if caught != 1 {
		t.Errorf("caught up %d times", caught)
	}
}

// TestConsoleStaysQuiet proves that the client's own log goes where it is told.
func TestConsoleStaysQuiet(t *testing.T) {
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(log.Default().Writer())
	server := esdouble.Serve(t, esdouble.New())
	s := connect(t, server)
	appendOne(t, s, "a-1", eventstore.NoStream(), "one")
	server.Stop()
	if _, err := s.Head(t.Context()); err == nil {
		t.Error("an answer from nobody")
	}
	if err := s.Close(); err != nil || out.Len() > 0 {
		t.Errorf("%v, on the console: %s", err, out.String())
	}
}
