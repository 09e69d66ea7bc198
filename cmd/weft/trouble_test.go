package main

import (
	"context"
	"log/slog"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/mem"
	"weft/backends/watched"
	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/memory"
)

// TestTrouble proves that the failure of a device, and each change of its health, becomes one
// event, however often it is reported and although the log does not take it at first; that what
// only says something about data does not; and that a device which the log knows as suspect begins
// so, and is looked at.
func TestTrouble(t *testing.T) {
	away := 3
	s := memory.New(memory.WithFaults(func(id domain.StreamID, _ []eventstore.Proposed) memory.Fault {
		if id.Category() == cluster.DeviceCategory && away > 0 {
			away--
			return memory.NoSpace
		}
		return memory.None
	}))
	t.Cleanup(func() { _ = s.Close() })
	c, err := newCodec(nil)
	if err != nil {
		t.Fatal(err)
	}
	x, err := newExecutor(s, c)
	if err != nil {
		t.Fatal(err)
	}
	device, node := domain.DeviceID{UUID: domain.UUID{1}}, domain.NodeID{UUID: domain.UUID{2}}
	keep := away
	away = 0
	_, err = x.Do(t.Context(), domain.Request{Command: cluster.Admit{
		DeviceAdmitted: cluster.DeviceAdmitted{Device: device, Node: node, Path: "/dev/x"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	away = keep
	log := slog.New(slog.DiscardHandler)
	views := newViews(nil)
	for _, ev := range []domain.Event{
		&cluster.DeviceAdmitted{Device: device}, &cluster.DeviceSuspended{Rule: watched.RuleStall},
	} {
		r := domain.Record{Event: ev}
		r.Stream = cluster.DeviceStream(device)
		if err := views.topology.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	ds := &devices{troubles: make(chan domain.Command, troublesMax)}
	looked, begun := make(chan struct{}), time.Now()
	below, err := mem.New(mem.Config{Size: 1 << 20, Durability: backends.PowerSafe})
	if err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64
	well := func(watched.Change) { close(looked) }
	watch := watched.New(below, func() time.Time {
		return begun.Add(time.Duration(ahead.Load()))
	}, well)
	ds.add(&unit{id: device, watched: watch})
	_, stop := startTelling(nil, ds, x, views, &dataDir{id: nodeIdentity{Node: node}}, nil, log)
	defer stop()
	if watch.State() != watched.Suspect {
		t.Fatal("the device begins well")
	}
	ahead.Store(int64(watched.Quiet))
	<-looked
	slow := watched.Change{State: watched.Suspect, Rule: watched.RuleStall, Why: "2s"}
	ds.told(engine.Fact{What: "corrupt", Device: device, Detail: "a block"}, log)
	ds.changed(device, node, slow, log)
	ds.changed(device, node, slow, log)
	ds.changed(device, node, watched.Change{}, log)
	ds.told(engine.Fact{What: "failed", Device: device, Detail: "input/output error"}, log)
	ds.told(engine.Fact{What: "failed", Device: device, Detail: "again"}, log)
	want := []domain.Event{
		&cluster.DeviceSuspended{Rule: watched.RuleStall, Why: "2s"},
		&cluster.DeviceReadmitted{Node: node},
		&cluster.DeviceFailed{Why: "input/output error"},
	}
	var told []domain.Event
	until(t, "the failure is in the log", func(context.Context) bool {
		told = nil
		for r, err := range s.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{
			TypePrefix: []string{"DeviceFailed", "DeviceSuspended", "DeviceReadmitted"},
		}, eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			records, err := c.Decode(r.Header, r.Data)
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, records[0].Event)
		}
		return len(told) > 0 && told[len(told)-1].EventType() == "DeviceFailed" && len(ds.troubles) == 0
	})
	stop()
	if !reflect.DeepEqual(told, want) {
		t.Errorf("%+v", told)
	}
	// A node that starts anew and has the device readmits it.
	res, err := x.Do(t.Context(), domain.Request{Command: cluster.Admit{
		DeviceAdmitted: cluster.DeviceAdmitted{Device: device, Node: node, Path: "/dev/x"},
	}})
	if err != nil || len(res.Events) != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestPairIsWellWhenBothAre proves that a pair is told to be well when the last of its members is.
func TestPairIsWellWhenBothAre(t *testing.T) {
	u := &unit{}
	bad, well := watched.Change{State: watched.Suspect}, watched.Change{State: watched.OK}
	for i, step := range []struct {
		of   side
		is   watched.Change
		told bool
	}{
		{second, bad, true},
		{first, bad, true},
		{second, well, false},
		{second, bad, true},
		{first, well, false},
		{second, well, true},
		{first, bad, true},
		{first, well, true},
	} {
		if u.after(step.of, step.is) != step.told {
			t.Errorf("step %d: told is not %t", i, step.told)
		}
	}
}
