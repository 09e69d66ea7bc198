package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/snapshot"
)

func volumeID(n int) domain.VolumeID     { return domain.VolumeID{UUID: id(1000 + n)} }
func snapshotID(n int) domain.SnapshotID { return domain.SnapshotID{UUID: id(3000 + n)} }

// shelf is a model of a node that carries out orders about snapshots, and of what is recorded.
type shelf struct {
	*rapid.T
	d Desired
	o Observed
}

func (w *shelf) group(g domain.SnapshotGroupID) *Group {
	for i := range w.o.Groups {
		if w.o.Groups[i].Group == g {
			return &w.o.Groups[i]
		}
	}
	w.Fatalf("a step about group %s, which there is not", g)
	return nil
}

func (w *shelf) volume(v domain.VolumeID) *Volume {
	for i := range w.o.Volumes {
		if w.o.Volumes[i].Volume == v {
			return &w.o.Volumes[i]
		}
	}
	return nil
}

func (w *shelf) forget(s Step) {
	g := w.group(s.Group)
	at := slices.IndexFunc(g.Members, func(m Snapshot) bool { return m.Snapshot == s.Order.Snapshot })
	m := g.Members[at]
	ending := slices.ContainsFunc(w.d.Endings, func(e Ending) bool { return e.App == g.App })
	if !m.Deleting && !ending {
		w.Fatalf("%s deletes a snapshot that is wanted", g.Name)
	}
	if g.Members = slices.Delete(g.Members, at, at+1); len(g.Members) == 0 {
		w.o.Groups = slices.DeleteFunc(w.o.Groups, func(o Group) bool { return o.Group == g.Group })
	}
}

func (w *shelf) obey(p Plan) {
	for _, s := range p.Steps {
		if s.Why == "" || s.Name == "" {
			w.Fatalf("no reason or no name: %+v", s)
		}
		o, v := s.Order, w.volume(s.Order.Volume)
		switch _, failed := s.Fact.(*snapshot.SnapshotFailed); {
		case s.Finish != nil:
			for _, g := range w.o.Groups {
				if g.App == s.Finish.App {
					w.Fatalf("an application ended before its snapshot %s", g.Name)
				}
			}
			w.d.Endings = slices.DeleteFunc(w.d.Endings, func(e Ending) bool { return e == *s.Finish })
			continue
		case failed:
			w.group(s.Group).Failed = true
			continue
		case s.Fact != nil:
			w.forget(s)
			continue
		}
		n := w.o.Nodes[slices.IndexFunc(w.o.Nodes, func(n Node) bool { return n.Node == o.Node })]
		if n.Down {
			w.Fatalf("an order to a node that is down: %+v", o)
		}
		switch o.Kind { //nolint:exhaustive // the others are the other test's
		case command.CutSnapshots:
			g := w.group(s.Group)
			for _, c := range o.Cuts {
				v := w.volume(c.Volume)
				if v == nil || v.Node != o.Node || v.Device != c.Device {
					w.Fatalf("cuts volume %s where it is not", c.Volume)
				}
			}
			if g.Cut = true; len(o.Cuts) == 0 {
				w.Fatalf("cuts nothing")
			}
			for i := range g.Members {
				g.Members[i].Device = w.volume(g.Members[i].Volume).Device
			}
		case command.DeleteSnapshot:
			w.forget(s)
		case command.UnexportVolume:
			v.ServedBy = domain.NodeID{}
		case command.RollbackVolume:
			if v.ServedBy == v.Node && v.Incarnation == n.Incarnation {
				w.Fatalf("rolled back under its hosts")
			}
			v.Restored = s.Wish
		case command.ExportVolume:
			v.ServedBy, v.Incarnation, v.Export = o.Node, n.Incarnation, o.Export.Digest()
		case command.CloneVolume:
			w.o.Volumes = append(w.o.Volumes, Volume{
				Volume: o.Volume, Node: o.Node, Device: o.Device, Size: o.Size, Name: s.Name,
			})
		case command.DeleteVolume:
			w.o.Volumes = slices.DeleteFunc(w.o.Volumes, func(x Volume) bool { return x.Volume == o.Volume })
		default:
			w.Fatalf("nobody asked for %s", o.Kind)
		}
	}
}

// drawShelf makes volumes on up to two nodes, wishes to roll back, groups in all states, clones,
// and an application that ends.
func drawShelf(t *rapid.T) *shelf {
	w := &shelf{T: t}
	for i := range 2 {
		n := Node{Node: domain.NodeID{UUID: id(1 + i)}, Name: fmt.Sprint(i), Incarnation: 2}
		n.Down = rapid.IntRange(0, 5).Draw(t, "down") == 0
		w.o.Nodes = append(w.o.Nodes, n)
		w.o.Devices = append(w.o.Devices, Device{
			Device: domain.DeviceID{UUID: id(100 + i)}, Node: n.Node, Class: "flash", Usable: domain.TiB,
		})
	}
	app := func(n int) domain.AppID { return domain.AppID{UUID: id(50 + n)} }
	ending := rapid.Bool().Draw(t, "ending")
	for i := range rapid.IntRange(1, 8).Draw(t, "volumes") {
		d := w.o.Devices[rapid.IntRange(0, 1).Draw(t, "device")]
		f := Volume{
			Volume: volumeID(i), App: app(i % 2), Node: d.Node, Device: d.Device, Size: domain.GiB,
			Name: fmt.Sprint("v", i), Incarnation: uint64(rapid.IntRange(1, 2).Draw(t, "served")),
			ServedBy: d.Node, Export: command.Export{}.Digest(),
		}
		w.o.Volumes = append(w.o.Volumes, f)
		if ending && i%2 == 0 || rapid.IntRange(0, 4).Draw(t, "unwanted") == 0 {
			continue
		}
		x := Wish{Volume: f.Volume, App: f.App, Name: f.Name, Size: f.Size, Set: Resolve(nil)}
		if rapid.IntRange(0, 2).Draw(t, "restore") == 0 {
			x.Restore = &Restore{Restore: id(5000 + i), Snapshot: snapshotID(i)}
		}
		w.d.Volumes = append(w.d.Volumes, x)
	}
	if ending {
		w.d.Endings = append(w.d.Endings, Ending{App: app(0), Name: "a0"})
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "groups") {
		g := Group{
			Group: domain.SnapshotGroupID{UUID: id(2000 + i)}, App: app(i % 2), Name: fmt.Sprint("g", i),
			Cut: rapid.Bool().Draw(t, "cut"),
		}
		for j := range rapid.IntRange(1, 3).Draw(t, "members") {
			m := Snapshot{
				Volume: volumeID(rapid.IntRange(0, 8).Draw(t, "of")), Snapshot: snapshotID(10*i + j),
				Deleting: rapid.IntRange(0, 2).Draw(t, "deleting") == 0,
			}
			if g.Cut {
				m.Device = w.o.Devices[rapid.IntRange(0, 1).Draw(t, "stands")].Device
			}
			g.Members = append(g.Members, m)
		}
		w.o.Groups = append(w.o.Groups, g)
		if rapid.Bool().Draw(t, "clone") {
			w.d.Volumes = append(w.d.Volumes, Wish{
				Volume: volumeID(100 + i), App: app(1), Name: fmt.Sprint("c", i), Size: domain.GiB,
				Set: Resolve(nil), Source: &Source{Snapshot: snapshotID(10 * i), Volume: g.Members[0].Volume},
			})
		}
	}
	return w
}

// TestSnapshotsConverge proves: every step is lawful on the way (in obey), the plans end, and then
// each group is cut, failed, going on a node that is down, or waits for one; each roll-back is done
// where the node is up; a clone stands where its source stands; what ended left no snapshot behind.
func TestSnapshotsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawShelf(t)
		sources := map[domain.SnapshotID]domain.DeviceID{}
		for range 30 {
			for _, g := range w.o.Groups {
				for _, m := range g.Members {
					sources[m.Snapshot] = m.Device
				}
			}
			p := Reconcile(w.d, w.o)
			if len(p.Steps) == 0 {
				w.settled(sources)
				return
			}
			w.obey(p)
		}
		t.Fatal("still not converged")
	})
}

func (w *shelf) settled(sources map[domain.SnapshotID]domain.DeviceID) {
	down := func(d domain.DeviceID) bool {
		for _, x := range w.o.Devices {
			for _, n := range w.o.Nodes {
				if x.Device == d && x.Node == n.Node {
					return n.Down
				}
			}
		}
		return false
	}
	for _, g := range w.o.Groups {
		waits := g.Cut || g.Failed
		for _, m := range g.Members {
			at := m.Device
			if v := w.volume(m.Volume); at.IsZero() && v != nil {
				at = v.Device
			}
			waits = waits || down(at)
			if m.Deleting && !down(at) {
				w.Errorf("%s: member of %s is still there", g.Name, m.Volume)
			}
		}
		if !waits {
			w.Errorf("%s is neither cut nor failed nor waits: %+v", g.Name, g)
		}
	}
	for _, x := range w.d.Volumes {
		v := w.volume(x.Volume)
		if v != nil && x.Restore != nil && v.Restored != x.Restore.Restore && !down(v.Device) {
			w.Errorf("%s is not rolled back", x.Name)
		}
		if v != nil && x.Source != nil && v.Device != sources[x.Source.Snapshot] {
			w.Errorf("clone %s stands elsewhere than its source", x.Name)
		}
	}
}

// TestCloneOfScheduled proves that a rule's cut is cloned where its volume stands, and that a
// source which is nowhere is said to be gone.
func TestCloneOfScheduled(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}}
	dev := Device{
		Device: domain.DeviceID{UUID: id(2)}, Node: node.Node, Class: "flash", Usable: domain.TiB,
	}
	other := dev
	other.Device, other.Usable = domain.DeviceID{UUID: id(3)}, 10*domain.TiB
	src := Volume{Volume: volumeID(1), Device: dev.Device, Node: node.Node, Size: domain.GiB}
	c := snapshot.Scheduled{Every: time.Hour, Tick: time.Unix(3600, 0)}
	w := Wish{
		Volume: volumeID(2), Name: "c", Size: domain.GiB, Set: Resolve(nil),
		Source: &Source{Snapshot: c.ID(src.Volume), Volume: src.Volume},
	}
	o := Observed{Nodes: []Node{node}, Devices: []Device{dev, other}, Volumes: []Volume{src}}
	keep := Wish{Volume: src.Volume, Name: "s", Size: src.Size, Set: Resolve(nil)}
	find := func(p Plan) (command.Order, Placement) {
		for _, s := range p.Steps {
			if s.Order.Volume == w.Volume {
				return s.Order, p.Placements[0]
			}
		}
		return command.Order{}, p.Placements[0]
	}
	ord, _ := find(Reconcile(Desired{Volumes: []Wish{keep, w}}, o))
	if ord.Kind != command.CloneVolume || ord.Device != dev.Device ||
		ord.Snapshot != w.Source.Snapshot {
		t.Errorf("%+v", ord)
	}
	w.Source.Snapshot = snapshotID(9)
	ord, pl := find(Reconcile(Desired{Volumes: []Wish{keep, w}}, o))
	if ord.Kind != 0 || pl.Chosen != nil || len(pl.Remedies) == 0 || pl.Rejects[0].Why != sourceGone {
		t.Errorf("%+v %+v", ord, pl)
	}
}

// TestRulesMerge proves that schedules of layers are joined, the later layer's rule of one interval
// holding, in a fixed order and with their source.
func TestRulesMerge(t *testing.T) {
	rules := func(r ...intent.SnapshotRule) intent.Intent {
		return intent.Intent{Protection: intent.Protection{Snapshots: r}}
	}
	s := Resolve([]Layer{
		{"template/gold@1", rules(
			intent.SnapshotRule{EveryS: 86400, Keep: 7}, intent.SnapshotRule{EveryS: 3600, Keep: 24},
		)},
		{"app/shop", rules(intent.SnapshotRule{EveryS: 3600, Keep: 48})},
	})
	want := []intent.SnapshotRule{{EveryS: 3600, Keep: 48}, {EveryS: 86400, Keep: 7}}
	if !slices.Equal(s.Intent.Protection.Snapshots, want) {
		t.Errorf("%+v", s.Intent.Protection)
	}
	at := slices.IndexFunc(s.Fields, func(f Field) bool { return f.Path == "protection.snapshots" })
	if at < 0 || s.Fields[at].Value != "1h keep 48, 1d keep 7" || s.Fields[at].From != "app/shop" {
		t.Errorf("%+v", s.Fields)
	}
}

// TestSchedules proves that volumes of one application on one node are cut together, at most
// MembersMax at once, and those that are not there or whose node is down not at all.
func TestSchedules(t *testing.T) {
	set := Resolve([]Layer{{"t", intent.Intent{Protection: intent.Protection{
		Snapshots: []intent.SnapshotRule{{EveryS: 60, Keep: 1}},
	}}}})
	up, down := Node{Node: domain.NodeID{UUID: id(1)}}, Node{Node: domain.NodeID{UUID: id(2)}}
	down.Down = true
	o := Observed{Nodes: []Node{up, down}}
	var d Desired
	for i := range snapshot.MembersMax + 3 {
		d.Volumes = append(d.Volumes, Wish{Volume: volumeID(i), App: domain.AppID{UUID: id(9)}, Set: set})
		f := Volume{Volume: volumeID(i), Node: up.Node, Born: time.Unix(30, 0)}
		switch i {
		case 0:
			f.Node = down.Node
		case 1:
			continue
		}
		o.Volumes = append(o.Volumes, f)
	}
	list := Schedules(d, o)
	if len(list) != 2 || len(list[0].Volumes) != snapshot.MembersMax || len(list[1].Volumes) != 1 {
		t.Fatalf("%d", len(list))
	}
	none := func(domain.VolumeID) []snapshot.Scheduled { return nil }
	cuts, tick, next := list[1].Due(time.Unix(70, 0), none)
	if len(cuts) != 1 || tick.Tick.Unix() != 60 || next.Unix() != 120 {
		t.Errorf("%v %v %v", cuts, tick, next)
	}
	if cuts, _, _ := list[1].Due(time.Unix(59, 0), none); len(cuts) != 0 {
		t.Errorf("due before it was born: %v", cuts)
	}
}
