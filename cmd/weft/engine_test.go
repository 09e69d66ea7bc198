package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/adapters/client"
	"weft/domain"
	"weft/testing/esdouble"
)

// migrate makes a log take intents and waits until it does, while a load goes on at a pace that the
// copy can follow on any machine: one write for every twenty events that it has copied.
func (m *machine) migrate(to string, l *load) {
	m.t.Helper()
	one, release := l.hold()
	defer release()
	paid := uint64(0)
	until(m.t, "the move is recorded", func(ctx context.Context) bool {
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := m.api.MoveEngine(within, client.EngineBody{To: to}, client.Change{})
		return err == nil
	})
	until(m.t, to+" takes intents", func(ctx context.Context) bool {
		e := m.engine(ctx)
		if e.Events < paid || e.Events >= paid+20 {
			paid = e.Events
			one()
		}
		if e.To == "" && e.Engine != to && e.Reason != "" {
			m.t.Fatalf("the move came to nothing: %s", e.Reason)
		}
		return e.Engine == to && e.To == "" && e.State != "returning"
	})
}

func (m *machine) engine(ctx context.Context) client.Engine {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := m.api.Engine(ctx)
	if err != nil {
		return client.Engine{}
	}
	return r.Value
}

// TestEngineSecret proves that what is said of an address that cannot be used quotes no password:
// it may become an event.
func TestEngineSecret(t *testing.T) {
	d, unlock, err := openDataDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	const password = "open sesame, please"
	if err := d.PutSecret("store", "weft", password, "", ""); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	k, err := dialEngine(d, "esdb://127.0.0.1:1?tls=false", "store", 0, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	_, err = dialEngine(d, "esdb://127.0.0.1:port", "store", 0, log)
	if !domain.IsKind(err, domain.Invalid) || strings.Contains(err.Error(), "sesame") {
		t.Errorf("a bad address: %v", err)
	}
	if _, err = dialEngine(d, "esdb://h", "other", 0, log); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a secret that this node lacks: %v", err)
	}
}

// Three nodes move to an event store and back under load, while their leader is killed, and while
// the event store is away: nothing acknowledged is lost or doubled, every node has the same log,
// the two logs hold the same events at the same revisions, and a store that is away stops changes
// of intent alone.
func TestIntentsElsewhere(t *testing.T) {
	store := esdouble.Serve(t, esdouble.New())
	address := "esdb://" + store.Addr + "?tls=false&keepAliveInterval=-1"
	list := cluster3(t)
	l := newLoad(t, list)
	defer l.wg.Wait()
	defer l.stop()
	more := func(what string) {
		t.Helper()
		n := l.count()
		until(t, "writes "+what, func(context.Context) bool { return l.count() > n+20 })
		t.Logf("%s: %s without an acknowledgement", what, l.take().Round(time.Millisecond))
	}
	more("before")
	list[0].migrate(address, l)
	more("into the event store")

	victim := leader(t, list, nil)
	victim.kill()
	more("after the leader was killed")
	victim.start()

	store.Stop()
	other := leader(t, list, nil)
	other.kill() // fail-over is decided by the nodes alone
	next := leader(t, list, other)
	_, err := next.api.CreateTemplate(t.Context(), client.TemplateBody{
		Name: "away", Intent: &client.Intent{},
	}, client.Change{})
	if err == nil { // on a busy machine the client may give up before the node says why
		t.Error("a change of intent was acknowledged while the event store is away")
	}
	other.start()
	store.Start()
	more("after the event store was away")

	l.stop()
	l.wg.Wait()
	twins(t, list[0], store.Log)

	again := newLoad(t, list) // it meets the names of the first, and goes on behind them
	defer again.wg.Wait()
	defer again.stop()
	list[1].migrate("embedded", again)
	until(t, "writes into the embedded log", func(context.Context) bool {
		return again.count() > l.count()+20
	})
	again.stop()
	again.wg.Wait()
	same(t, list, append(l.names, again.names...))
}

// twins compares what a node's log and an event store hold, stream by stream.
func twins(t *testing.T, m *machine, log *esdouble.Log) {
	t.Helper()
	until(t, "all is copied out", func(ctx context.Context) bool {
		e := m.engine(ctx)
		return e.State == "external" && e.Behind == 0
	})
	var here, there map[string][]string
	until(t, "what the store has alone is copied in", func(ctx context.Context) bool {
		r, err := m.api.Nodes(ctx, client.At{})
		if err != nil {
			return false
		}
		here, there = m.byStream(r.Position), inStore(log)
		for id := range there {
			category, _, _ := strings.Cut(id, "-")
			if domain.Intent(category) && len(here[id]) < len(there[id]) {
				return false
			}
		}
		return true
	})
	for _, id := range slices.Sorted(maps.Keys(here)) {
		n := min(len(here[id]), len(there[id])) // the nodes go on telling of themselves
		if !slices.Equal(here[id][:n], there[id][:n]) {
			t.Errorf("%s: here\n%v\nthere\n%v", id, here[id], there[id])
		}
		category, _, _ := strings.Cut(id, "-")
		if domain.Intent(category) && len(here[id]) != len(there[id]) {
			t.Errorf("%s: %d events here, %d there", id, len(here[id]), len(there[id]))
		}
	}
	t.Logf("%d streams in both logs", len(here))
}

// byStream gives what a node's log holds up to a position, stream by stream.
func (m *machine) byStream(to domain.Position) map[string][]string {
	m.t.Helper()
	here := map[string][]string{}
	for _, line := range m.history(to) { // position, id, type, stream
		f := strings.Fields(line)
		here[f[3]] = append(here[f[3]], f[1]+" "+f[2])
	}
	return here
}

// inStore gives what an event store holds of ours, stream by stream.
func inStore(log *esdouble.Log) map[string][]string {
	there := map[string][]string{}
	for _, e := range log.Events("weft.") {
		_, name, _ := strings.Cut(strings.TrimPrefix(string(e.Stream), "weft."), ".")
		_, name, _ = strings.Cut(name, ".") // the cluster, and the turn
		there[name] = append(there[name], fmt.Sprint(e.ID, " ", e.Type))
	}
	return there
}
