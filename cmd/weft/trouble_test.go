package main

import (
	"context"
	"log/slog"
	"testing"

	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/memory"
)

// TestTrouble proves that the failure of a device becomes one event, however often it is reported
// and although the log does not take it at first, and that what only says something about data
// does not.
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
	c, err := newCodec()
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
	ds := &devices{troubles: make(chan engine.Fact, troublesMax)}
	_, stop := startTelling(nil, ds, x, &dataDir{id: nodeIdentity{Node: node}}, log)
	defer stop()
	ds.told(engine.Fact{What: "corrupt", Device: device, Detail: "a block"}, log)
	ds.told(engine.Fact{What: "failed", Device: device, Detail: "input/output error"}, log)
	ds.told(engine.Fact{What: "failed", Device: device, Detail: "again"}, log)
	var failures []string
	until(t, "the failure is in the log", func(context.Context) bool {
		failures = nil
		for r, err := range s.ReadAll(t.Context(), 0, eventstore.Forward,
			domain.Filter{TypePrefix: []string{"DeviceFailed"}}, eventstore.NoLimit) {
			if err != nil {
				t.Fatal(err)
			}
			records, err := c.Decode(r.Header, r.Data)
			if err != nil {
				t.Fatal(err)
			}
			failures = append(failures, records[0].Event.(*cluster.DeviceFailed).Why)
		}
		return len(failures) > 0 && len(ds.troubles) == 0
	})
	stop()
	if len(failures) != 1 || failures[0] != "input/output error" {
		t.Errorf("%q", failures)
	}
	// A node that starts anew and has the device readmits it.
	res, err := x.Do(t.Context(), domain.Request{Command: cluster.Admit{
		DeviceAdmitted: cluster.DeviceAdmitted{Device: device, Node: node, Path: "/dev/x"},
	}})
	if err != nil || len(res.Events) != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}
