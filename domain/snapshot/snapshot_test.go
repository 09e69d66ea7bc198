package snapshot

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/domain"
)

func vol(n byte) domain.VolumeID    { return domain.VolumeID{UUID: domain.UUID{n}} }
func snap(n byte) domain.SnapshotID { return domain.SnapshotID{UUID: domain.UUID{200, n}} }

func asked(n byte) Request {
	r := Request{SnapshotRequested{
		Group: domain.SnapshotGroupID{UUID: domain.UUID{1}}, AppName: "web", Name: "before",
	}}
	for i := range n {
		r.Members = append(r.Members, Member{Volume: vol(i), VolumeName: "v", Snapshot: snap(i)})
	}
	return r
}

// run folds commands; each must be allowed. It gives how many events there were.
func run(t *testing.T, s *State, cmds ...domain.Command) int {
	t.Helper()
	n := 0
	for _, c := range cmds {
		evs, err := decide(*s, domain.Request{Command: c})
		if err != nil {
			t.Fatalf("%s: %v", c.CommandType(), err)
		}
		for _, ev := range evs {
			*s = Evolve(*s, ev)
			n++
		}
	}
	return n
}

// TestGroup proves the life of a group: asked for once, cut once, its members deleted one by one,
// the last said to be the last, and nothing said twice.
func TestGroup(t *testing.T) {
	var s State
	id := asked(2).Group
	_, err := decide(s, domain.Request{Command: Delete{Group: id}})
	if !domain.IsKind(err, domain.NotFound) {
		t.Errorf("nothing was deleted: %v", err)
	}
	run(t, &s, asked(2))
	if _, err := decide(s, domain.Request{Command: asked(2)}); !domain.IsKind(err, domain.Exists) {
		t.Errorf("asked for again: %v", err)
	}
	cut := &SnapshotCut{Cuts: []Cut{{Snapshot: snap(0), Generation: 3}, {Snapshot: snap(1)}}}
	if n := run(t, &s, Record{id, cut}, Record{id, cut}, Record{id, &SnapshotFailed{"late"}}); n != 1 {
		t.Errorf("%d events of one cut", n)
	}
	if c, ok := s.CutOf(snap(0)); !ok || c.Generation != 3 {
		t.Errorf("%+v", c)
	}
	one := Delete{id, []domain.SnapshotID{snap(0)}}
	if n := run(t, &s, one, one, Delete{Group: id}, Delete{Group: id}); n != 2 {
		t.Errorf("%d events of two deletions", n)
	}
	stranger := Delete{id, []domain.SnapshotID{snap(9)}}
	if _, err := decide(s, domain.Request{Command: stranger}); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a stranger was deleted: %v", err)
	}
	gone := func(n byte) Record { return Record{id, &SnapshotDeleted{Snapshot: snap(n)}} }
	for n, last := range []bool{false, true} {
		evs, err := decide(s, domain.Request{Command: gone(byte(n))})
		if err != nil || len(evs) != 1 || evs[0].(*SnapshotDeleted).Last != last {
			t.Fatalf("member %d: %v, %v", n, evs, err)
		}
		s = Evolve(s, evs[0])
		if run(t, &s, gone(byte(n))) != 0 || s.Over() != last {
			t.Errorf("member %d: over %t", n, s.Over())
		}
	}
}

// TestFailedIsNotCut proves that a group that failed is never cut afterwards.
func TestFailedIsNotCut(t *testing.T) {
	var s State
	run(t, &s, asked(1), Record{asked(1).Group, &SnapshotFailed{"no"}})
	_, err := decide(s, domain.Request{Command: Record{asked(1).Group, &SnapshotCut{}}})
	if !domain.IsKind(err, domain.Conflict) {
		t.Error(err)
	}
}

// TestAdopt proves that a rule's cut enters the log with its deletion, once.
func TestAdopt(t *testing.T) {
	var s State
	c := Adopt{asked(1).SnapshotRequested, SnapshotCut{Cuts: []Cut{{Snapshot: snap(0)}}}}
	want := []domain.SnapshotID{snap(0)}
	if n := run(t, &s, c, c); n != 3 || s.Cut == nil || !slices.Equal(s.Deleting, want) {
		t.Errorf("%d events, %+v", n, s)
	}
}

// TestRequestIsChecked proves that a request lists all that is wrong with it, at the limits.
func TestRequestIsChecked(t *testing.T) {
	if err := asked(MembersMax).Validate(); err != nil {
		t.Error(err)
	}
	bad := asked(MembersMax + 1)
	bad.Name = "Before"
	bad.Members[1].Volume = bad.Members[0].Volume
	for _, c := range []Request{bad, {}} {
		if n := len(domain.ViolationsOf(c.Validate())); n != 3 && n != 2 {
			t.Errorf("%d violations: %v", n, c.Validate())
		}
	}
}

// TestScheduledID proves that a cut's id gives rule and tick back for its own volume and for no
// other, and that ids sort by time.
func TestScheduledID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		minutes := rapid.Int64Range(1, int64(EveryMax/time.Minute)).Draw(t, "minutes")
		every := time.Duration(minutes) * time.Minute
		at := time.UnixMilli(rapid.Int64Range(0, 1<<47).Draw(t, "ms")).UTC()
		c := Scheduled{every, at}
		id := c.ID(vol(1))
		if back, ok := ScheduledOf(vol(1), id); !ok || back != c {
			t.Fatalf("%+v became %+v, %t", c, back, ok)
		}
		if _, ok := ScheduledOf(vol(2), id); ok {
			t.Fatal("another volume's")
		}
		later := Scheduled{every, at.Add(time.Millisecond)}.ID(vol(1))
		if slices.Compare(id.UUID[:6], later.UUID[:6]) >= 0 {
			t.Fatal("ids do not sort by time")
		}
		other := domain.SnapshotID{UUID: domain.DeriveUUID(id.UUID, "other")}
		if _, ok := ScheduledOf(vol(1), other); ok {
			t.Fatal("an id that was drawn otherwise")
		}
	})
}

// TestRule proves, over random clocks that also stand still, jump and go back: a tick is cut once,
// what was missed is made up by one cut, nothing is due for a time before the volume was, and never
// more than Keep are left, the youngest.
func TestRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		every := rapid.SampledFrom([]time.Duration{
			time.Minute, 15 * time.Minute, time.Hour, 24 * time.Hour,
		}).Draw(t, "every")
		r := Rule{every, rapid.IntRange(1, 5).Draw(t, "keep")}
		born := time.Unix(1e9, 0)
		now, have := born, []Scheduled{{every + time.Minute, born}} // of another rule: not ours to delete
		var ticks []time.Time
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			now = now.Add(time.Duration(rapid.Int64Range(-int64(every), 5*int64(every)).Draw(t, "on")))
			c, due, next := r.Due(born, now, have)
			if !next.After(now) || next.Sub(now) > every {
				t.Fatalf("asked again in %s", next.Sub(now))
			}
			if !due {
				continue
			}
			if !c.Tick.After(born) || c.Tick.After(now) || slices.Contains(ticks, c.Tick) {
				t.Fatalf("tick %s at %s, born %s", c.Tick, now, born)
			}
			if n := len(ticks); n > 0 && !c.Tick.After(ticks[n-1]) {
				t.Fatalf("tick %s behind %s", c.Tick, ticks[n-1])
			}
			ticks, have = append(ticks, c.Tick), append(have, c)
			if _, again, _ := r.Due(born, now, have); again {
				t.Fatal("due twice")
			}
			for _, x := range r.Expired(have) {
				have = slices.DeleteFunc(have, func(h Scheduled) bool { return h == x })
			}
			if len(have)-1 > r.Keep || have[len(have)-1] != c || have[0].Every == every {
				t.Fatalf("kept %+v", have)
			}
		}
	})
}

// TestEvery proves how intervals are written and what is none.
func TestEvery(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1m": time.Minute, "90m": 90 * time.Minute, "1h": time.Hour, "24h": 24 * time.Hour,
		"1d": 24 * time.Hour, "1w": 7 * 24 * time.Hour, "366d": EveryMax,
	} {
		d, err := ParseEvery(text)
		if err != nil || d != want {
			t.Errorf("%s: %s, %v", text, d, err)
		}
		if back, err := ParseEvery(FormatEvery(d)); err != nil || back != d {
			t.Errorf("%s: written %s", text, FormatEvery(d))
		}
	}
	for _, text := range []string{
		"", "m", "0m", "1", "1s", "-1h", "367d", "99999999999w", "1.5h", "h1",
	} {
		if d, err := ParseEvery(text); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%q is %s, %v", text, d, err)
		}
	}
	c := Scheduled{time.Hour, time.Date(2026, 11, 26, 3, 0, 0, 0, time.UTC)}
	if c.Name() != "every-1h-20261126-0300" {
		t.Error(c.Name())
	}
}

// TestMoved proves that members which went to another device are known to be there, the others not,
// that this is told once, and that an earlier state of the group is not changed by it.
func TestMoved(t *testing.T) {
	at := func(n byte) domain.DeviceID { return domain.DeviceID{UUID: domain.UUID{n}} }
	var s State
	id := asked(2).Group
	moved := Record{id, &SnapshotMoved{Snapshots: []domain.SnapshotID{snap(1)}, To: at(9)}}
	if n := run(t, &s, asked(2), moved); n != 1 {
		t.Errorf("%d events: what is not cut was moved", n)
	}
	run(t, &s, Record{id, &SnapshotCut{Cuts: []Cut{
		{Snapshot: snap(0), Device: at(1)}, {Snapshot: snap(1), Device: at(1), Generation: 4},
	}}})
	before := s
	if n := run(t, &s, moved, moved); n != 1 {
		t.Errorf("%d events of one move", n)
	}
	for i, want := range []domain.DeviceID{at(1), at(9)} {
		if c, _ := s.CutOf(snap(byte(i))); c.Device != want {
			t.Errorf("member %d is on %s", i, c.Device)
		}
	}
	if c, _ := before.CutOf(snap(1)); c.Device != at(1) || c.Generation != 4 {
		t.Errorf("an earlier state has %+v", c)
	}
}
