package kurrent_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/kurrent"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// yield is a pause that lets others run and does not wait.
func yield(ctx context.Context, _ int) error {
	runtime.Gosched()
	return ctx.Err()
}

// connect opens a store over a served log.
func connect(t testing.TB, s *esdouble.Server, change ...func(*kurrent.Config)) *kurrent.Store {
	t.Helper()
	c := kurrent.Config{
		Connection: "esdb://" + s.Addr + "?tls=false&keepAliveInterval=-1", Pause: yield,
	}
	for _, f := range change {
		f(&c)
	}
	store, err := kurrent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// TestSchemes proves that a connection string may have the scheme that newer clients know.
func TestSchemes(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	for i, scheme := range []string{"esdb", "kurrentdb", "kurrent"} {
		s := connect(t, server, func(c *kurrent.Config) {
			c.Connection = scheme + strings.TrimPrefix(c.Connection, "esdb")
		})
		if _, err := s.Append(t.Context(), "s-1", eventstore.At(domain.Revision(i-1)),
			storetest.Propose(scheme, 1)...); err != nil {
			t.Errorf("%s: %v", scheme, err)
		}
	}
	for _, c := range []string{
		"esdb+discover://h", "kurrentdb+discover://h", "kurrent+discover://h",
	} {
		s, err := kurrent.New(kurrent.Config{Connection: c, Pause: yield})
		if err != nil {
			t.Errorf("%s: %v", c, err)
			continue
		}
		_ = s.Close()
	}
	for _, c := range []string{"kurrentdb2://h", "kurrently://h", "http://h"} {
		if _, err := kurrent.New(kurrent.Config{Connection: c, Pause: yield}); err == nil {
			t.Errorf("%s is taken", c)
		}
	}
}

// TestStaleIDs proves that ids are not called used on the word of a memory that another store has
// made old: what looks like a part of an append there is all of it (E6). Found by
// TestSameAnswersAsMemory.
func TestStaleIDs(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	a, b := connect(t, server), connect(t, server)
	ctx, ev := t.Context(), storetest.Propose("two", 2)
	if _, err := a.Append(ctx, "s-1", eventstore.At(3), ev...); err == nil {
		t.Fatal("no conflict") // a remembers that the stream is empty
	}
	if _, err := b.Append(ctx, "s-1", eventstore.NoStream(), ev...); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Append(ctx, "s-1", eventstore.NoStream(), ev[0]); err != nil {
		t.Fatal(err) // a remembers the first event
	}
	got, err := a.Append(ctx, "s-1", eventstore.At(0), ev...)
	if err != nil || !got.Duplicate || got.Last != 1 {
		t.Errorf("the whole append: %+v, %v", got, err)
	}
	if _, err := a.Append(ctx, "s-1", eventstore.At(1), append(ev, storetest.Propose("x", 1)...)...,
	); !errors.Is(err, eventstore.ErrIDReused) {
		t.Errorf("more than was appended: %v", err)
	}
}

// TestConformance runs the suite against an EventStoreDB double through the official client.
func TestConformance(t *testing.T) {
	servers := map[eventstore.Store]*esdouble.Server{}
	open := func(t testing.TB) eventstore.Store {
		server := esdouble.Serve(t, esdouble.New())
		s := connect(t, server)
		servers[s] = server
		return s
	}
	storetest.Run(t, storetest.Engine{
		Open: open,
		Reopen: func(t testing.TB, s eventstore.Store) eventstore.Store {
			_ = s.Close()
			return connect(t, servers[s])
		},
		StreamChain: kurrent.Chain, Gaps: true, IDsPerStream: true, LagUnknown: true,
	})
}
