package quorum

import (
	"errors"
	"fmt"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// A database that fills up refuses in steps, what is needed to repair the cluster last, tells a
// repeat that it was stored, and takes everything again once the old events have left it, which it
// also gives back to the file system.
func TestNearlyFull(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.SegmentEvents, cfg.Quota = 20, 16<<20
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	write := func(id domain.StreamID, i int) error {
		ev := storetest.Propose(fmt.Sprint(id, i), 4)
		for k := range ev {
			ev[k].Data = make([]byte, 60<<10)
		}
		_, err := s.Append(t.Context(), id, eventstore.Any(), ev...)
		s.local().etcd.Server.Backend().ForceCommit() // by itself it counts ten times a second
		return err
	}
	i := 0
	// fill writes to a stream until it is refused.
	fill := func(id domain.StreamID) {
		for ; i < 1000; i++ {
			if err := write(id, i); err != nil {
				if !errors.Is(err, eventstore.ErrNoSpace) {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatal("never refused")
	}
	fill("volume-1")
	if err := write("volume-1", i-1); err != nil {
		t.Errorf("a repeat: %v", err)
	}
	before := i
	if fill("plan-1"); i == before {
		t.Error("plans are refused as early as intents")
	}
	if err := write("node-1", i); err != nil {
		t.Errorf("a node: %v", err)
	}
	head := archived(t, s, s.mirror.Head().Position.N()/20*20)
	if _, err := s.Trim(t.Context(), head.Position); err != nil {
		t.Fatal(err)
	}
	rev, err := s.Revision(t.Context())
	if err == nil {
		err = s.Compact(t.Context(), rev)
	}
	if err != nil {
		t.Fatal(err)
	}
	room(t, s)
	if !s.Database().Sparse() {
		t.Errorf("%+v is not sparse", s.Database())
	}
	if err := s.Defragment(t.Context()); err != nil || s.Database().Size > cfg.Quota/2 {
		t.Errorf("%+v, %v", s.Database(), err)
	}
	if err := write("volume-1", i); err != nil {
		t.Error(err)
	}
	if err := s.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// Intents are refused first, then all but what is needed to get the log smaller.
func TestAdmits(t *testing.T) {
	for _, c := range []struct {
		category string
		most     int64 // per cent at which it is still written
	}{
		{"volume", SpaceFailover - 1},
		{"tenant", SpaceFailover - 1},
		{"command", SpaceFailover - 1},
		{"plan", SpaceVital - 1},
		{"coordination", SpaceVital - 1},
		{"device", SpaceVital - 1},
		{"cluster", 200},
		{"membership", 200},
		{"node", 200},
		{"placement", 200},
	} {
		if !admits(c.most, c.category) || c.most < 200 && admits(c.most+1, c.category) {
			t.Errorf("%s is not written up to exactly %d per cent", c.category, c.most)
		}
	}
}

// room waits until pages that were freed count as such, which the next write makes them.
func room(t *testing.T, s *Store) {
	until(t, "the database is compacted", func() bool {
		put(t, s, s.keys.holder("nobody"), "")
		s.local().etcd.Server.Backend().ForceCommit()
		return s.Database().Percent() < SpaceAlarm
	})
}
