package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rogpeppe/go-internal/testscript"

	"weft/testing/esdouble"
)

// busMax is the largest message that the broker takes: less than some events are.
const busMax = 2 << 10

// startBroker starts a real NATS server with JetStream that keeps what is published to weft.>.
func startBroker(t *testing.T) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		MaxPayload: busMax,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	c, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	js, err := c.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.AddStream(&nats.StreamConfig{
		Name: "weft", Subjects: []string{"weft.>"}, Duplicates: time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// untilCmd is `[!] until REGEXP COMMAND ARGS...`: it runs a command until what it says matches. The
// test's own limit ends it.
func untilCmd(ts *testscript.TestScript, neg bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
	}
}

// messagesCmd is `messages SUBJECT TYPES...`: it waits until a subject has as many messages, and
// these are their types; each has a name of its own, an event's id, and JSON in it.
func messagesCmd(ts *testscript.TestScript, s *server.Server, args []string) {
	c, err := nats.Connect(s.ClientURL())
	ts.Check(err)
	defer c.Close()
	js, err := c.JetStream()
	ts.Check(err)
	sub, err := js.SubscribeSync(args[0], nats.OrderedConsumer())
	ts.Check(err)
	seen := map[string]bool{}
	for i, want := range args[1:] {
		m, err := sub.NextMsg(time.Minute)
		if err != nil {
			ts.Fatalf("message %d, %s: %v", i, want, err)
		}
		got, id := m.Header.Get("weft_type"), m.Header.Get(nats.MsgIdHdr)
		if got != want || seen[id] || !json.Valid(m.Data) {
			ts.Fatalf("message %d: %s with id %s, want %s: %s", i, got, id, want, m.Data)
		}
		seen[id] = true
	}
	if n, _, _ := sub.Pending(); n > 0 {
		ts.Fatalf("%d more messages", n)
	}
}

// mirroredCmd is `mirrored TYPE...`: an EventStoreDB has events of these types, and may have more.
func mirroredCmd(ts *testscript.TestScript, l *esdouble.Log, args []string) {
	var types []string
	for _, e := range l.Events("weft.") {
		types = append(types, e.Type)
	}
	all := " " + strings.Join(types, " ") + " "
	for _, want := range args {
		if !strings.Contains(all, " "+want+" ") {
			ts.Fatalf("no %s among %s", want, all)
		}
	}
}
