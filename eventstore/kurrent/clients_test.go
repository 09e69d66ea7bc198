package kurrent

import (
	"context"
	"testing"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/testing/esdouble"
)

// TestBrokenClientTakesTheOthersAlong proves that after one connection broke no call is given one
// that was made before, and that those made afterwards are kept.
func TestBrokenClientTakesTheOthersAlong(t *testing.T) {
	server := esdouble.Serve(t, esdouble.New())
	config, err := esdb.ParseConnectionString(
		"esdb://" + server.Addr + "?tls=false&keepAliveInterval=-1",
	)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxDiscoverAttempts, config.DiscoveryInterval = 1, 0
	config.Logger = func(esdb.LogLevel, string, ...any) {}
	const n = 4
	p := newClients(config, n)
	defer p.close()
	round := func() map[*esdb.Client]bool {
		seen := map[*esdb.Client]bool{}
		for range n {
			if err := p.call(t.Context(), func(_ context.Context, c *esdb.Client) error {
				seen[c] = true
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		return seen
	}
	old := round()
	if err := p.call(t.Context(), func(context.Context, *esdb.Client) error {
		return errPanicked
	}); !broken(err) {
		t.Fatal(err)
	}
	fresh := round()
	for c := range fresh {
		if old[c] {
			t.Error("a call was given a client made before the loss")
		}
	}
	for c := range round() {
		if !fresh[c] {
			t.Error("a sound client was not kept")
		}
	}
}
