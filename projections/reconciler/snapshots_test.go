package reconciler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/snapshot"
	"weft/eventstore"
)

func vol(n byte) domain.VolumeID { return domain.VolumeID{UUID: domain.UUID{20, n}} }

// request asks for a group; n tells groups of one name apart.
func request(name string, n byte, of ...byte) snapshot.Request {
	r := snapshot.Request{SnapshotRequested: snapshot.SnapshotRequested{
		Group: domain.SnapshotGroupID{UUID: domain.DeriveUUID(domain.UUID{n}, name)}, App: app,
		Tenant: tenant, AppName: "shop", Name: name,
	}}
	for _, v := range of {
		r.Members = append(r.Members, snapshot.Member{
			Volume:   vol(v),
			Snapshot: domain.SnapshotID{UUID: domain.DeriveUUID(r.Group.UUID, fmt.Sprint(v))},
		})
	}
	return r
}

// answers lets the agent's model say what a cut, a clone and a roll-back came to.
func answers(o command.Order) command.Outcome {
	out := command.Outcome{ID: o.ID, Size: 3 * domain.GiB, At: time.Unix(5, 0)}
	for _, c := range o.Cuts {
		out.Taken = append(out.Taken, command.Taken{
			Snapshot: c.Snapshot, Device: c.Device, Generation: 4, Size: domain.GiB,
		})
	}
	return out
}

// count gives how many events of a type there are.
func (h *house) count(typ string) int {
	h.t.Helper()
	n := 0
	for _, err := range h.store.ReadAll(h.t.Context(), 0, eventstore.Forward,
		domain.Filter{TypePrefix: []string{typ}}, eventstore.NoLimit) {
		if err != nil {
			h.t.Fatal(err)
		}
		n++
	}
	return n
}

// seen waits until the views hold the whole log.
func (h *house) seen() {
	h.t.Helper()
	for r, err := range h.store.ReadAll(h.t.Context(), 1<<47, eventstore.Backward,
		domain.Filter{}, 1) {
		if err == nil {
			err = h.run.Wait(h.t.Context(), r.Position)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// TestSnapshotLife walks a group from request to end: cut by one order, its facts in the log;
// deleted member by member; its name free only then; and a clone, whose size is what the node
// says.
func TestSnapshotLife(t *testing.T) {
	h := build(t)
	h.obeyed = answers
	h.do(shop(domain.GiB, domain.GiB))
	h.settle()
	r := request("before", 1, 0, 1)
	h.do(r)
	if got := h.settle(); !slices.Equal(got, []command.Kind{command.CutSnapshots}) {
		t.Fatalf("orders %v", got)
	}
	g := h.facts.Groups(tenant)
	if len(g) != 1 || g[0].Cut == nil || len(g[0].Cut.Cuts) != 2 || g[0].Cut.Cuts[1].Generation != 4 ||
		!g[0].Cut.At.Equal(time.Unix(5, 0)) {
		t.Fatalf("%+v", g)
	}
	clone := intent.VolumeSpec{
		Volume: vol2, Name: "c", Size: domain.GiB, Source: r.Members[0].Snapshot, SourceVolume: vol(0),
	}
	h.do(intent.AddVolume{App: app, Tenant: tenant, Spec: clone})
	h.settle()
	if v, ok := h.facts.Volume(vol2); !ok || v.Size != 3*domain.GiB || v.Source != clone.Source {
		t.Errorf("%+v", v)
	}
	h.do(snapshot.Delete{Group: r.Group, Snapshots: []domain.SnapshotID{r.Members[0].Snapshot}})
	h.settle()
	again := request("before", 2, 0)
	_, err := h.exec.Do(t.Context(), domain.Request{Command: again})
	if !domain.IsKind(err, domain.Exists) {
		t.Errorf("the name was given away: %v", err)
	}
	h.do(snapshot.Delete{Group: r.Group})
	h.settle()
	h.do(request("other", 1, 0, 1))
	h.settle()
	h.do(snapshot.Delete{Group: request("other", 1).Group}) // two members in one plan
	h.settle()
	h.do(again)
	h.do(request("other", 2, 1))
	h.settle()
	if n := len(h.facts.Groups(tenant)); n != 2 {
		t.Errorf("%d groups", n)
	}
	h.do(intent.DeleteApp{App: app})
	h.settle()
	h.settle()
	if len(h.want.Apps(tenant)) != 0 || len(h.facts.Groups(tenant)) != 0 {
		t.Errorf("%d apps, %d groups are left", len(h.want.Apps(tenant)), len(h.facts.Groups(tenant)))
	}
}

// TestNameIsFreedInTheEnd proves that the name of a group is given back although the log took
// nothing of tenants when its last members were deleted, in one plan or one after the other, and
// that it is not given back before.
func TestNameIsFreedInTheEnd(t *testing.T) {
	for _, atOnce := range []bool{true, false} {
		h := build(t)
		h.obeyed = answers
		h.do(shop(domain.GiB, domain.GiB))
		h.settle()
		r := request("before", 1, 0, 1)
		h.do(r)
		h.settle()
		if !atOnce {
			h.do(snapshot.Delete{Group: r.Group, Snapshots: []domain.SnapshotID{r.Members[0].Snapshot}})
			h.settle()
		}
		h.do(snapshot.Delete{Group: r.Group})
		h.away = true
		h.settle()
		again := request("before", 2, 0)
		h.away = false
		_, err := h.exec.Do(t.Context(), domain.Request{Command: again})
		if !domain.IsKind(err, domain.Exists) {
			t.Fatalf("the name was given away: %v", err)
		}
		for range 4 {
			h.now = h.now.Add(RetryMax)
			h.settle()
		}
		if n := len(h.facts.Groups(tenant)); n != 0 {
			t.Errorf("%d groups are left", n)
		}
		h.do(again)
	}
}

// TestSnapshotFails proves that what will never be cut is said once with the reason, while what may
// yet succeed is tried again.
func TestSnapshotFails(t *testing.T) {
	h := build(t)
	h.do(shop(domain.GiB))
	h.settle()
	h.fail = func(o command.Order) error { return domain.Errorf(domain.Unavailable, "stalled") }
	h.do(request("a", 1, 0))
	h.settle()
	if h.count("SnapshotFailed") != 0 {
		t.Error("a node that stalls ended the wish")
	}
	h.fail = func(o command.Order) error { return domain.Errorf(domain.TooLarge, "too many") }
	h.now = h.now.Add(RetryMax)
	h.settle()
	g := h.facts.Groups(tenant)
	if len(g) != 1 || g[0].Failed == nil || h.count("SnapshotFailed") != 1 {
		t.Fatalf("%+v", g)
	}
	n := len(h.orders)
	h.do(snapshot.Delete{Group: g[0].Group})
	h.settle()
	if len(h.orders) != n || len(h.facts.Groups(tenant)) != 0 {
		t.Errorf("%d orders to delete what never was", len(h.orders)-n)
	}
	h.do(request("a", 2, 0)) // the name is free
}

// TestRollback walks a wish to roll back: hosts go first, then the past comes, then they are let in
// again; and one that the node refuses is given up, with the reason, and not tried again.
func TestRollback(t *testing.T) {
	h := build(t)
	h.obeyed = answers
	h.do(shop(4 * domain.GiB))
	h.settle()
	wish := intent.Restore{App: app, RestoreRequested: intent.RestoreRequested{
		Restore: domain.UUID{1}, Volume: vol(0), Snapshot: domain.SnapshotID{UUID: domain.UUID{2}},
	}}
	h.do(wish)
	want := []command.Kind{
		command.UnexportVolume, command.RollbackVolume, command.ResizeVolume, command.ExportVolume,
	}
	if got := h.settle(); !slices.Equal(got, want) {
		t.Fatalf("orders %v, want %v", got, want)
	}
	v, _ := h.facts.Volume(vol(0))
	if v.Restored != wish.Restore || v.Refused != "" || v.Size != 4*domain.GiB ||
		v.Online.Node != node {
		t.Errorf("%+v", v)
	}
	h.fail = func(o command.Order) error {
		if o.Kind == command.UnexportVolume && o.Idle {
			return domain.Errorf(domain.Conflict, "2 connections of hosts use it")
		}
		return nil
	}
	wish.Restore = domain.UUID{3}
	h.do(wish)
	n := len(h.orders)
	h.settle()
	h.now = h.now.Add(RetryMax)
	h.settle()
	v, _ = h.facts.Volume(vol(0))
	if v.Restored != wish.Restore || v.Refused == "" || len(h.orders) != n+1 {
		t.Errorf("%d orders, %+v", len(h.orders)-n, v)
	}
	wish.Restore, wish.Force = domain.UUID{4}, true
	h.do(wish)
	h.settle()
	if v, _ = h.facts.Volume(vol(0)); v.Restored != wish.Restore || v.Refused != "" {
		t.Errorf("forced: %+v", v)
	}
}

// TestShrink walks a wish to become smaller: it waits while hosts use the volume, then they go, the
// size changes, what the tenant holds for it is lowered, and they are let in again.
func TestShrink(t *testing.T) {
	h := build(t)
	h.obeyed = answers
	h.do(shop(8 * domain.GiB))
	h.settle()
	used := true
	h.fail = func(o command.Order) error {
		if o.Kind == command.UnexportVolume && o.Idle && used {
			return domain.Errorf(domain.Conflict, "2 connections of hosts use it")
		}
		return nil
	}
	h.do(intent.ResizeVolume{
		App: app, Tenant: tenant, Volume: vol(0), From: 8 * domain.GiB, Size: 2 * domain.GiB,
		Shrink: true,
	})
	if got := h.settle(); !slices.Equal(got, []command.Kind{command.UnexportVolume}) {
		t.Fatalf("orders %v while hosts use it", got)
	}
	if v, _ := h.facts.Volume(vol(0)); v.Size != 8*domain.GiB || v.Online.Node != node {
		t.Errorf("%+v", v)
	}
	used = false
	h.now = h.now.Add(RetryMax)
	want := []command.Kind{command.UnexportVolume, command.ResizeVolume, command.ExportVolume}
	if got := h.settle(); !slices.Equal(got, want) {
		t.Fatalf("orders %v, want %v", got, want)
	}
	if v, _ := h.facts.Volume(vol(0)); v.Size != 2*domain.GiB || v.Online.Node != node {
		t.Errorf("%+v", v)
	}
	if held := h.held(tenant); held != 2*domain.GiB {
		t.Errorf("the tenant holds %s", held)
	}
}

// TestShrinkChanged proves that a wish to become smaller which hosts hold up is followed when it is
// changed: to a size that is smaller still than what is there, and back to that; and that the
// tenant holds what is wished for all the time.
func TestShrinkChanged(t *testing.T) {
	h := build(t)
	h.obeyed = answers
	h.do(shop(8 * domain.GiB))
	h.settle()
	used, wish := true, 8*domain.GiB
	h.fail = func(o command.Order) error {
		if o.Kind == command.UnexportVolume && used {
			return domain.Errorf(domain.Conflict, "2 connections of hosts use it")
		}
		return nil
	}
	change := func(to domain.Bytes) {
		h.do(intent.ResizeVolume{
			App: app, Tenant: tenant, Volume: vol(0), From: wish, Size: to, Shrink: to < wish,
		})
		wish = to
		h.now = h.now.Add(RetryMax)
		h.settle()
		if held := h.held(tenant); held != wish {
			t.Errorf("the tenant holds %s, not %s", held, wish)
		}
	}
	there := func(want domain.Bytes) {
		t.Helper()
		if v, _ := h.facts.Volume(vol(0)); v.Size != want || v.Online.Node != node {
			t.Errorf("%s, not %s: %+v", v.Size, want, v)
		}
	}
	change(2 * domain.GiB)
	change(8 * domain.GiB)
	there(8 * domain.GiB)
	change(2 * domain.GiB)
	change(4 * domain.GiB)
	there(8 * domain.GiB)
	used = false
	h.now = h.now.Add(RetryMax)
	h.settle()
	there(4 * domain.GiB)
}

// keeper is a model of the engines' snapshots, which the schedule asks for.
type keeper struct{ have []command.Space }

func (k *keeper) obey(o command.Order) command.Outcome {
	for _, c := range o.Cuts {
		same := func(s command.Space) bool { return s.Snapshot == c.Snapshot }
		if !slices.ContainsFunc(k.have, same) {
			k.have = append(k.have, command.Space{Volume: c.Volume, Snapshot: c.Snapshot, Device: c.Device})
		}
	}
	if o.Kind == command.DeleteSnapshot {
		k.have = slices.DeleteFunc(k.have, func(s command.Space) bool { return s.Snapshot == o.Snapshot })
	}
	return command.Outcome{ID: o.ID}
}

func (k *keeper) ask(q command.Question) (command.Answer, error) {
	var a command.Answer
	list := slices.SortedFunc(slices.Values(k.have), func(x, y command.Space) int {
		return slices.Compare(x.Snapshot.UUID[:], y.Snapshot.UUID[:])
	})
	for _, s := range list {
		behind := slices.Compare(s.Snapshot.UUID[:], q.After.UUID[:]) > 0
		if behind && slices.Contains(q.Volumes, s.Volume) {
			if len(a.Spaces) == 2 { // pages are small, so that they are asked for
				a.More = true
				break
			}
			a.Spaces = append(a.Spaces, s)
		}
	}
	return a, nil
}

// TestScheduledSnapshotsMakeNoEvents proves, over a month of hourly and daily cuts of two volumes,
// with leaders that come and go: each tick is cut once and of both volumes together, what a rule
// does not keep goes, a pause of days is made up by one cut, and the log hears of nothing.
func TestScheduledSnapshotsMakeNoEvents(t *testing.T) {
	h := build(t)
	k := &keeper{}
	h.obeyed, h.ask = k.obey, k.ask
	c := shop(domain.GiB, domain.GiB)
	c.Overrides.Protection.Snapshots = []intent.SnapshotRule{
		{EveryS: 3600, Keep: 24}, {EveryS: 86400, Keep: 7},
	}
	h.do(c)
	h.settle()
	byName := domain.SnapshotID{UUID: domain.UUID{9}} // is no rule's to delete
	k.have = append(k.have, command.Space{Volume: vol(0), Snapshot: byName})
	before, orders := h.run.Position(), len(h.orders)
	s := newSchedule(h.loop)
	hours := 0
	for end := h.now.Add(30 * 24 * time.Hour); h.now.Before(end); {
		again := s.round(t.Context())
		if again <= 0 || again > time.Hour {
			t.Fatalf("looks again in %s", again)
		}
		if hours++; hours%50 == 0 {
			s = newSchedule(h.loop) // another leader knows nothing
		}
		if hours == 100 {
			again += 72 * time.Hour // nobody led for days
		}
		h.now = h.now.Add(again)
	}
	cuts := 0
	for _, o := range h.orders[orders:] {
		if o.Kind == command.CutSnapshots {
			cuts++
			if len(o.Cuts) != 2 || o.Token != h.loop.Token() {
				t.Fatalf("%+v", o)
			}
		}
	}
	if want := 30*24 + 30 - 72 - 3; cuts < want-2 || cuts > want+2 {
		t.Errorf("%d cuts, about %d are right", cuts, want)
	}
	if n := len(k.have); n != 2*(24+7)+1 {
		t.Errorf("%d snapshots are kept", n)
	}
	if after := h.run.Position(); after != before {
		t.Errorf("the log went from %s to %s", before, after)
	}
}

// TestScheduleFailsOnce proves that a rule whose cuts fail is told in the log once, from the
// second failure on, makes the volume known as not protected, and is told once more when it goes
// on; and that another rule goes on meanwhile.
func TestScheduleFailsOnce(t *testing.T) {
	h := build(t)
	k := &keeper{}
	h.ask = k.ask
	c := shop(domain.GiB)
	c.Overrides.Protection.Snapshots = []intent.SnapshotRule{{EveryS: 60, Keep: 2}}
	h.do(c)
	h.settle()
	h.fail = func(command.Order) error { return domain.Errorf(domain.NoSpace, "full") }
	s := newSchedule(h.loop)
	look := func(times int) {
		for range times {
			h.now = h.now.Add(2 * time.Minute)
			s.round(t.Context())
			h.seen()
		}
	}
	look(1)
	if h.count("ScheduledSnapshot") != 0 {
		t.Error("told at the first failure")
	}
	look(5)
	v, _ := h.facts.Volume(vol(0))
	if h.count("ScheduledSnapshotFailed") != 1 || len(v.Missing) != 1 || v.Missing[0].Why == "" {
		t.Errorf("%d events, %+v", h.count("ScheduledSnapshotFailed"), v.Missing)
	}
	h.fail, h.obeyed = nil, k.obey
	look(3)
	if v, _ = h.facts.Volume(vol(0)); len(v.Missing) != 0 || h.count("ScheduledSnapshotResumed") != 1 {
		t.Errorf("%d events, %+v", h.count("ScheduledSnapshotResumed"), v.Missing)
	}
	if len(k.have) != 2 {
		t.Errorf("%d are kept", len(k.have))
	}
}
