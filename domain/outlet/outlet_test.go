package outlet

import (
	"strings"
	"testing"

	"weft/domain"
)

// TestLife proves what each command does to an outlet, that a stuck one goes on by an operator's
// word alone and skips only what it is stuck at, and that repeating changes nothing (X2).
func TestLife(t *testing.T) {
	id := domain.OutletID{UUID: domain.UUID{4}}
	create := Create{OutletCreated: OutletCreated{Outlet: id, Name: "bus", Kind: "nats"}}
	stick := Stick{OutletStuck{Outlet: id, At: 7, Reason: strings.Repeat("r", 2*ReasonMax)}}
	var s State
	for i, x := range []struct {
		c    domain.Command
		n    int
		kind domain.Kind
		runs bool
		skip domain.Position
	}{
		{Pause{id}, 0, domain.NotFound, false, 0},
		{create, 1, 0, true, 0},
		{create, 0, domain.Exists, true, 0},
		{Resume{id, false}, 0, 0, true, 0},
		{Resume{id, true}, 0, domain.Conflict, true, 0},
		{Pause{id}, 1, 0, false, 0},
		{Pause{id}, 0, 0, false, 0},
		{Resume{id, true}, 0, domain.Conflict, false, 0},
		{Resume{id, false}, 1, 0, true, 0},
		{stick, 1, 0, false, 0},
		{stick, 0, 0, false, 0},
		{Resume{id, false}, 1, 0, true, 0},
		{stick, 1, 0, false, 0},
		{Resume{id, true}, 1, 0, true, 7},
		{Pause{id}, 1, 0, false, 7},
		{Resume{id, false}, 1, 0, true, 7},
		{Delete{Outlet: id}, 1, 0, false, 7},
		{Delete{Outlet: id}, 0, 0, false, 7},
		{Resume{id, false}, 0, domain.NotFound, false, 7},
		{create, 0, domain.Exists, false, 7},
	} {
		evs, err := Decide(s, domain.Request{Command: x.c})
		for _, ev := range evs {
			s = Evolve(s, ev)
		}
		kind := domain.Kind(0)
		if err != nil {
			kind = domain.KindOf(err)
		}
		if len(evs) != x.n || kind != x.kind || s.Runs() != x.runs || s.Skip != x.skip {
			t.Errorf("step %d %T: %d events, %v, runs %v, skips %s", i, x.c, len(evs), err, s.Runs(), s.Skip)
		}
		if s.Stuck != nil && len(s.Stuck.Reason) != ReasonMax {
			t.Errorf("step %d: a reason of %d bytes", i, len(s.Stuck.Reason))
		}
	}
	if s.Resumed != 4 {
		t.Errorf("resumed %d times", s.Resumed)
	}
}

// TestLimits proves what is refused of an outlet, each alone (X1, X3).
func TestLimits(t *testing.T) {
	bus := OutletCreated{Name: "bus", Kind: "nats", Address: "nats://b:4222", Topic: "weft.events"}
	mirror := OutletCreated{Name: "copy", Kind: "mirror", Address: "esdb+discover://b:2113?tls=true"}
	for _, o := range []OutletCreated{bus, mirror} {
		if err := (Create{OutletCreated: o}).Validate(); err != nil {
			t.Errorf("%s: %v", o.Name, err)
		}
	}
	for name, o := range map[string]OutletCreated{
		"no name":        with(bus, func(o *OutletCreated) { o.Name = "" }),
		"password":       with(bus, func(o *OutletCreated) { o.Address = "nats://u:p@b:4222" }),
		"password there": with(mirror, func(o *OutletCreated) { o.Address = "esdb://u:p@b:2113" }),
		"no host":        with(bus, func(o *OutletCreated) { o.Address = "nats:///x" }),
		"other scheme":   with(bus, func(o *OutletCreated) { o.Address = "http://b" }),
		"of the other":   with(mirror, func(o *OutletCreated) { o.Address = "nats://b" }),
		"long address":   with(bus, func(o *OutletCreated) { o.Address += strings.Repeat("b", 1024) }),
		"no subject":     with(bus, func(o *OutletCreated) { o.Topic = "" }),
		"wildcard":       with(bus, func(o *OutletCreated) { o.Topic = "weft.>" }),
		"empty token":    with(bus, func(o *OutletCreated) { o.Topic = "weft..x" }),
		"mirror's types": with(mirror, func(o *OutletCreated) { o.Types = []string{"Volume"} }),
		"mirror's topic": with(mirror, func(o *OutletCreated) { o.Topic = "x" }),
		"kind":           with(bus, func(o *OutletCreated) { o.Kind = "kafka" }),
		"many types":     with(bus, func(o *OutletCreated) { o.Types = make([]string, TypesMax+1) }),
		"long type": with(bus, func(o *OutletCreated) {
			o.Types = []string{strings.Repeat("t", TextMax+1)}
		}),
	} {
		if (Create{OutletCreated: o}).Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func with(o OutletCreated, change func(o *OutletCreated)) OutletCreated {
	change(&o)
	return o
}
