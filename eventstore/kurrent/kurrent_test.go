package kurrent_test

import (
	"context"
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
