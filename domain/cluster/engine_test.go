package cluster

import (
	"strings"
	"testing"

	"weft/domain"
)

// TestMoveEngine proves what each command does to the engine, that one move is under way at a time,
// that one which was called off cannot end, and that repeating changes nothing.
func TestMoveEngine(t *testing.T) {
	const a, b = "esdb://a:2113", "esdb://b:2113"
	var s State
	agg := Aggregate()
	moved := func(to string) EndMove { return EndMove{Fact: &EngineMigrated{To: to, Position: 7}} }
	lost := func(to string) EndMove {
		return EndMove{Fact: &EngineMoveFailed{To: to, Why: strings.Repeat("x", 2*whyMax)}}
	}
	for i, x := range []struct {
		c       domain.Command
		n       int
		kind    domain.Kind
		engine  string
		to, was string
	}{
		{MoveEngine{To: EngineEmbedded}, 0, 0, EngineEmbedded, "", ""},
		{moved(a), 0, domain.Conflict, EngineEmbedded, "", ""},
		{MoveEngine{To: a, Secret: "s"}, 1, 0, EngineEmbedded, a, ""},
		{MoveEngine{To: a, Secret: "s"}, 0, 0, EngineEmbedded, a, ""},
		{MoveEngine{To: a}, 0, domain.Conflict, EngineEmbedded, a, ""},
		{MoveEngine{To: b}, 0, domain.Conflict, EngineEmbedded, a, ""},
		{moved(b), 0, domain.Conflict, EngineEmbedded, a, ""},
		{lost(b), 0, 0, EngineEmbedded, a, ""},
		{lost(a), 1, 0, EngineEmbedded, "", ""},
		{MoveEngine{To: a}, 1, 0, EngineEmbedded, a, ""},
		{MoveEngine{To: EngineEmbedded}, 1, 0, EngineEmbedded, "", ""},
		{moved(a), 0, domain.Conflict, EngineEmbedded, "", ""},
		{MoveEngine{To: a, Secret: "s"}, 1, 0, EngineEmbedded, a, ""},
		{moved(a), 1, 0, a, "", ""},
		{MoveEngine{To: a}, 0, 0, a, "", ""},
		{MoveEngine{To: b}, 0, domain.Conflict, a, "", ""},
		{MoveEngine{To: EngineEmbedded}, 1, 0, EngineEmbedded, "", a},
		{MoveEngine{To: b}, 1, 0, EngineEmbedded, b, a},
		{moved(b), 1, 0, b, "", ""},
	} {
		evs, err := agg.Decide(s, domain.Request{Command: x.c})
		for _, ev := range evs {
			s = agg.Evolve(s, ev)
			if f, ok := ev.(*EngineMoveFailed); ok && len(f.Why) > whyMax {
				t.Errorf("step %d: a reason of %d bytes", i, len(f.Why))
			}
		}
		kind := domain.Kind(0)
		if err != nil {
			kind = domain.KindOf(err)
		}
		e := s.Engine
		if len(evs) != x.n || kind != x.kind || e.Name() != x.engine || e.To != x.to || e.Was != x.was {
			t.Errorf("step %d %T: %d events, %v, %+v", i, x.c, len(evs), err, e)
		}
	}
}

// TestEngineFold proves that a move which ends in a log that was opened before counts for nothing,
// and that a restored log knows of no event store, and is as closed as it was until it is opened.
func TestEngineFold(t *testing.T) {
	var e Engine
	fold := func(evs ...domain.Event) {
		for _, ev := range evs {
			e = e.After(ev)
		}
	}
	start, end := &EngineMoveStarted{"esdb://a", "s"}, &EngineMigrated{To: "esdb://a", Secret: "s"}
	fold(start, &IntentsClosed{}, &IntentsOpened{}, end)
	if e.Address != "" || e.To != "" || e.Failed == "" || e.Closed {
		t.Errorf("a move that ended too late: %+v", e)
	}
	fold(start, &IntentsClosed{}, end)
	if e.Address != "esdb://a" || e.Secret != "s" || e.Failed != "" || !e.Closed {
		t.Errorf("a move: %+v", e)
	}
	fold(&LogRestored{})
	if e.Address != "" || e.Was != "" || !e.Closed || e.Turn != 1 {
		t.Errorf("restored: %+v", e)
	}
	fold(&IntentsOpened{}, start, &IntentsClosed{}, end, &EngineMigrated{To: EngineEmbedded})
	if e.Address != "" || e.Was != "esdb://a" || e.WasSecret != "s" || !e.Closed || e.Turn != 2 {
		t.Errorf("on the way back: %+v", e)
	}
	if fold(&IntentsOpened{}); e.Was != "" || e.Closed {
		t.Errorf("back: %+v", e)
	}
}

// TestEngineStreamTakesTurns proves that closing and opening alternate whoever repeats them: the
// log reads its state off the stream's length.
func TestEngineStreamTakesTurns(t *testing.T) {
	agg, closed, n := EngineAggregate(), false, 0
	for i, c := range []domain.Command{
		OpenIntents{}, CloseIntents{}, CloseIntents{}, OpenIntents{}, OpenIntents{}, CloseIntents{},
	} {
		evs, err := agg.Decide(closed, domain.Request{Command: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			closed = agg.Evolve(closed, ev)
			n++
		}
		if closed != (n%2 == 1) {
			t.Errorf("step %d: %d events and closed %v", i, n, closed)
		}
	}
	if n != 3 {
		t.Errorf("%d events", n)
	}
}

// TestEngineAddress proves what is refused of an address, a password first of all.
func TestEngineAddress(t *testing.T) {
	for to, ok := range map[string]bool{
		"embedded": true, "esdb://h:1?tls=true": true, "kurrentdb+discover://h": true,
		"kurrent://h:1": true, "+discover://h": false,
		"esdb://u:p@h:1": false, "http://h": false, "esdb://": false, "esdb:///x": false, "": false,
		"esdb://h h": false, "esdb://" + strings.Repeat("h", EngineAddressMax): false,
	} {
		if err := (MoveEngine{To: to}).Validate(); (err == nil) != ok {
			t.Errorf("%.40q: %v", to, err)
		}
	}
	if (MoveEngine{To: EngineEmbedded, Secret: "s"}).Validate() == nil {
		t.Error("a secret for the embedded log is taken")
	}
}
