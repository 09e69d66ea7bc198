package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/intent"
)

// world is what a loop of reconciler and agents would make of plans: a model of both.
type world struct {
	d Desired
	o Observed
}

func id(n int) domain.UUID { return domain.DeriveUUID(domain.UUID{9}, fmt.Sprint(n)) }

// obey carries a plan out, as an agent and the recording of its outcome would.
func (w *world) obey(t *rapid.T, p Plan) {
	for _, s := range p.Steps {
		w.o.Position++
		if s.Finish != nil {
			for _, v := range w.o.Volumes {
				if v.App == s.Finish.App {
					t.Fatalf("application finished while volume %s is there", v.Name)
				}
			}
			w.d.Endings = slices.DeleteFunc(w.d.Endings, func(e Ending) bool {
				return e.App == s.Finish.App
			})
			continue
		}
		w.order(t, s.Order)
	}
}

func (w *world) order(t *rapid.T, o command.Order) {
	at := slices.IndexFunc(w.o.Volumes, func(v Volume) bool { return v.Volume == o.Volume })
	if (at < 0) != (o.Kind == command.CreateVolume) {
		t.Fatalf("order %s for a volume that is there: %v", o.Kind, at >= 0)
	}
	switch o.Kind {
	case command.CreateVolume:
		v := Volume{Volume: o.Volume, Size: o.Size, Node: o.Node, Device: o.Device}
		for _, x := range w.d.Volumes {
			if x.Volume == o.Volume {
				v.App, v.Name = x.App, x.Name
			}
		}
		for _, d := range w.o.Devices {
			if d.Device == o.Device && d.Failed {
				t.Fatalf("placed on a failed device")
			}
		}
		w.o.Volumes = append(w.o.Volumes, v)
	case command.ResizeVolume:
		if o.Size <= w.o.Volumes[at].Size {
			t.Fatalf("volume shrinks to %s", o.Size)
		}
		w.o.Volumes[at].Size = o.Size
	case command.ExportVolume:
		w.o.Volumes[at].ServedBy = o.Node
		w.o.Volumes[at].Incarnation = w.o.Nodes[0].Incarnation
		w.o.Volumes[at].Export = o.Export.Digest()
	case command.UnexportVolume:
		w.o.Volumes[at].ServedBy = domain.NodeID{}
	case command.DeleteVolume:
		if !w.o.Volumes[at].ServedBy.IsZero() {
			t.Fatalf("deleted while hosts reach it")
		}
		w.o.Volumes = slices.Delete(w.o.Volumes, at, at+1)
	case command.CloneVolume, command.CutSnapshots, command.RollbackVolume, command.DeleteSnapshot:
		t.Fatalf("nobody asked for %s", o.Kind)
	}
}

// draw makes a world with wishes, facts that match some of them, and facts that match none.
func draw(t *rapid.T) *world {
	w := &world{}
	w.o.Position = 100
	w.o.Nodes = []Node{{Node: domain.NodeID{UUID: id(1)}, Number: 1, Name: "n1", Incarnation: 3}}
	for i := range rapid.IntRange(0, 4).Draw(t, "devices") {
		w.o.Devices = append(w.o.Devices, Device{
			Device: domain.DeviceID{UUID: id(100 + i)}, Node: w.o.Nodes[0].Node, Class: "flash",
			Usable: domain.Bytes(rapid.IntRange(1, 100).Draw(t, "usable")) * domain.GiB,
			Failed: rapid.IntRange(0, 4).Draw(t, "failed") == 0,
		})
	}
	set := Resolve(nil)
	for i := range rapid.IntRange(0, 30).Draw(t, "wishes") {
		w.d.Volumes = append(w.d.Volumes, Wish{
			Volume: domain.VolumeID{UUID: id(1000 + i)}, App: domain.AppID{UUID: id(50 + i%5)},
			Name: fmt.Sprintf("t/a/v%02d", i), Set: set,
			Size: domain.Bytes(rapid.IntRange(1, 50).Draw(t, "size")) * domain.GiB,
		})
	}
	for i := range rapid.IntRange(0, 10).Draw(t, "facts") {
		if len(w.o.Devices) == 0 {
			break
		}
		app := domain.AppID{UUID: id(60)} // of an application that is ending
		if 3*i < len(w.d.Volumes) {
			app = w.d.Volumes[3*i].App
		}
		w.o.Volumes = append(w.o.Volumes, Volume{
			Volume: domain.VolumeID{UUID: id(1000 + 3*i)}, Size: domain.GiB, App: app,
			Node: w.o.Nodes[0].Node, Device: w.o.Devices[i%len(w.o.Devices)].Device,
			ServedBy:    w.o.Nodes[0].Node,
			Incarnation: uint64(rapid.IntRange(1, 3).Draw(t, "incarnation")),
		})
	}
	w.d.Endings = []Ending{{App: domain.AppID{UUID: id(60)}, Name: "t/old"}}
	return w
}

// TestReconcileConverges proves that carrying out plans reaches a state with nothing to do, that
// every step is lawful on the way (in obey), and that what cannot be placed is said with a remedy.
func TestReconcileConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		for range 20 {
			p := Reconcile(w.d, w.o)
			if again := Reconcile(w.d, w.o); !reflect.DeepEqual(p, again) {
				t.Fatal("the same input gave two plans")
			}
			if len(p.Steps) > StepsMax {
				t.Fatalf("%d steps", len(p.Steps))
			}
			if len(p.Steps) == 0 {
				w.settled(t, p)
				return
			}
			w.obey(t, p)
		}
		t.Fatal("still not converged")
	})
}

// settled checks that with nothing to do every wish is a fact or known to be impossible.
func (w *world) settled(t *rapid.T, p Plan) {
	nowhere := map[domain.VolumeID]bool{}
	for _, pl := range p.Placements {
		if pl.Chosen != nil || len(pl.Remedies) == 0 {
			t.Fatalf("a placement without a step and without a remedy: %+v", pl)
		}
		nowhere[pl.Volume] = true
	}
	for _, x := range w.d.Volumes {
		at := slices.IndexFunc(w.o.Volumes, func(v Volume) bool { return v.Volume == x.Volume })
		switch {
		case nowhere[x.Volume]:
		case at < 0:
			t.Fatalf("%s is nowhere and nobody says why", x.Name)
		case w.o.Volumes[at].Size < x.Size || w.o.Volumes[at].ServedBy.IsZero():
			t.Fatalf("%s: %+v", x.Name, w.o.Volumes[at])
		}
	}
	if len(w.o.Volumes)+len(nowhere) != len(w.d.Volumes) {
		t.Fatalf("%d facts, %d impossible, %d wishes", len(w.o.Volumes), len(nowhere), len(w.d.Volumes))
	}
	if len(w.d.Endings) != 0 {
		t.Fatal("an application never ended")
	}
}

// TestNothingToDo proves that a served wish of a current incarnation needs no step, and that each
// difference alone gives the one step that mends it.
func TestNothingToDo(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}, Incarnation: 2}
	wish := Wish{
		Volume: domain.VolumeID{UUID: id(2)}, App: domain.AppID{UUID: id(3)}, Size: domain.GiB,
	}
	fact := Volume{
		Volume: wish.Volume, App: wish.App, Size: wish.Size, Node: node.Node, ServedBy: node.Node,
		Incarnation: 2, Export: wish.Export.Digest(),
	}
	for _, c := range []struct {
		name   string
		change func(*Wish, *Volume)
		want   command.Kind
	}{
		{"nothing", func(*Wish, *Volume) {}, 0},
		{"restarted node", func(_ *Wish, v *Volume) { v.Incarnation = 1 }, command.ExportVolume},
		{"not served", func(_ *Wish, v *Volume) { v.ServedBy = domain.NodeID{} }, command.ExportVolume},
		{"other export", func(w *Wish, _ *Volume) { w.Export.LUN = 4 }, command.ExportVolume},
		{"larger wish", func(w *Wish, _ *Volume) { w.Size *= 2 }, command.ResizeVolume},
		{"smaller than a clone's source", func(w *Wish, _ *Volume) { w.Size /= 2 }, 0},
		{"to shrink", func(w *Wish, _ *Volume) {
			w.Size, w.Shrink = w.Size/2, &Shrink{}
		}, command.UnexportVolume},
		{"to shrink, and no host reaches it", func(w *Wish, v *Volume) {
			w.Size, w.Shrink, v.ServedBy = w.Size/2, &Shrink{}, domain.NodeID{}
		}, command.ResizeVolume},
		{"has shrunk", func(w *Wish, _ *Volume) { w.Shrink = &Shrink{} }, 0},
	} {
		w, f := wish, fact
		c.change(&w, &f)
		p := Reconcile(Desired{Volumes: []Wish{w}}, Observed{Nodes: []Node{node}, Volumes: []Volume{f}})
		switch {
		case c.want == 0 && len(p.Steps) != 0:
			t.Errorf("%s: %+v", c.name, p.Steps)
		case c.want != 0 && (len(p.Steps) != 1 || p.Steps[0].Order.Kind != c.want):
			t.Errorf("%s: %+v, want %s", c.name, p.Steps, c.want)
		case c.want != 0 && p.Steps[0].Why == "":
			t.Errorf("%s: no reason", c.name)
		}
	}
}

// TestResolve proves the order of layers and that every field names its source.
func TestResolve(t *testing.T) {
	gold := Layer{"template/gold@1", intent.Intent{
		Performance: intent.Performance{IOPSMax: 1000},
		Availability: intent.Availability{
			Replicas: 2, Survive: []intent.Survive{{Domain: "rack", Count: 1}},
		},
	}}
	app := Layer{"app/shop", intent.Intent{Performance: intent.Performance{IOPSMax: 50}}}
	s := Resolve([]Layer{gold, app})
	want := map[string][2]string{
		"performance.iops_max":  {"50", "app/shop"},
		"availability.replicas": {"2", "template/gold@1"},
		"placement.capacity":    {"flash", "default"},
		"availability.survive":  {"[{node 1} {rack 1}]", "template/gold@1"},
	}
	for _, f := range s.Fields {
		if w, ok := want[f.Path]; ok && (f.Value != w[0] || f.From != w[1]) {
			t.Errorf("%+v, want %v", f, w)
		}
		delete(want, f.Path)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
	for _, f := range s.Fields {
		if f.Path == "performance.iops_max" && !slices.Equal(f.Overridden, []string{"template/gold@1"}) {
			t.Errorf("overridden %v", f.Overridden)
		}
	}
}

// TestCompliance proves that a demand beyond the hardware is converging with a reason, not
// violated.
func TestCompliance(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}, Incarnation: 2}
	w := Wish{Volume: domain.VolumeID{UUID: id(2)}, Size: domain.GiB, Set: Resolve(nil)}
	if c := Check(w, nil, &Observed{}); c.State != "converging" {
		t.Errorf("not placed: %+v", c)
	}
	dev := Device{Device: domain.DeviceID{UUID: id(5)}, Node: node.Node}
	devices := []Device{dev}
	fact := &Volume{Volume: w.Volume, Size: w.Size, Device: dev.Device, ServedBy: node.Node}
	if c := Check(w, fact, &Observed{Devices: devices}); c.State != "converging" || c.Reason == "" {
		t.Errorf("one of three copies: %+v", c)
	}
	w.Set = Resolve([]Layer{{"app", intent.Intent{Availability: intent.Availability{Replicas: 1}}}})
	nodes := []Node{{Node: fact.ServedBy, Incarnation: fact.Incarnation + 1}}
	if c := Check(w, fact, &Observed{Nodes: nodes}); c.State != "converging" || c.Reason == "" {
		t.Errorf("served by a node before its last start: %+v", c)
	}
	if c := Check(w, fact, &Observed{Devices: devices}); c.State != "compliant" {
		t.Errorf("one of one: %+v", c)
	}
	for _, wish := range []string{"", "on", "off"} {
		for _, is := range []bool{true, false} {
			o, f := w, *fact
			o.Set.Intent.Security.Encryption, f.Encrypted = wish, is
			want := "compliant"
			if wish == "on" && !is || wish == "off" && is {
				want = "violated"
			}
			if c := Check(o, &f, &Observed{Devices: devices}); c.State != want {
				t.Errorf("encryption %q, encrypted %t: %+v", wish, is, c)
			}
		}
	}
	devices[0].Failed = true
	if c := Check(w, fact, &Observed{Devices: devices}); c.State != "violated" {
		t.Errorf("failed device: %+v", c)
	}
}

// TestEncryptedOnPair proves that an encrypted volume is placed on a disk behind flash as one in
// clear is.
func TestEncryptedOnPair(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}}
	pair := Device{
		Device: domain.DeviceID{UUID: id(2)}, Node: node.Node, Class: "hybrid", Usable: domain.TiB,
	}
	for _, encryption := range []string{"on", "off"} {
		set := Resolve(nil)
		set.Intent.Placement.Capacity, set.Intent.Security.Encryption = "hybrid", encryption
		p := Reconcile(Desired{Volumes: []Wish{{
			Volume: volumeID(2), Name: "v", Size: domain.GiB, Set: set,
		}}}, Observed{Nodes: []Node{node}, Devices: []Device{pair}})
		if len(p.Steps) != 1 || p.Placements[0].Chosen == nil {
			t.Errorf("encryption %s: %+v", encryption, p)
		}
	}
}

// TestLeavingDevice proves that a device which is being removed takes no new volumes, even as the
// only one, and that its own stay and are served.
func TestLeavingDevice(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}}
	goes := Device{
		Device: domain.DeviceID{UUID: id(2)}, Node: node.Node, Class: "flash", Usable: 100 * domain.TiB,
		Leaving: true,
	}
	stays := goes
	stays.Device, stays.Leaving, stays.Usable = domain.DeviceID{UUID: id(3)}, false, domain.GiB
	w := Wish{Volume: volumeID(2), Name: "v", Size: domain.GiB, Set: Resolve(nil)}
	o := Observed{Nodes: []Node{node}, Devices: []Device{goes, stays}}
	p := Reconcile(Desired{Volumes: []Wish{w}}, o)
	if len(p.Steps) != 1 || p.Steps[0].Order.Device != stays.Device {
		t.Errorf("beside another: %+v", p)
	}
	o.Devices = o.Devices[:1]
	p = Reconcile(Desired{Volumes: []Wish{w}}, o)
	if len(p.Steps) != 0 || len(p.Placements) != 1 || p.Placements[0].Rejects[0].Why != leaving ||
		!strings.Contains(strings.Join(p.Placements[0].Remedies, " "), "weft node device keep") {
		t.Errorf("alone: %+v", p)
	}
	o.Volumes = []Volume{{
		Volume: w.Volume, Size: w.Size, Node: node.Node, Device: goes.Device, Epoch: 1,
	}}
	p = Reconcile(Desired{Volumes: []Wish{w}}, o)
	if len(p.Steps) != 1 || p.Steps[0].Order.Kind != command.ExportVolume {
		t.Errorf("its own volume: %+v", p)
	}
}

// TestSuspectDevice proves that a new volume goes to a device that is slow or errs only where no
// other can take it, be that one as good as full.
func TestSuspectDevice(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}}
	suspect := Device{
		Device: domain.DeviceID{UUID: id(2)}, Node: node.Node, Class: "flash", Usable: 100 * domain.TiB,
		Suspect: true,
	}
	well := suspect
	well.Device, well.Suspect, well.Usable = domain.DeviceID{UUID: id(3)}, false, domain.GiB
	w := Wish{Volume: volumeID(2), Name: "v", Size: Overcommit * domain.GiB, Set: Resolve(nil)}
	failed := well
	failed.Failed = true
	for _, c := range []struct {
		other Device
		want  domain.DeviceID
	}{{well, well.Device}, {failed, suspect.Device}} {
		p := Reconcile(Desired{Volumes: []Wish{w}}, Observed{
			Nodes: []Node{node}, Devices: []Device{suspect, c.other},
		})
		if len(p.Steps) != 1 || p.Steps[0].Order.Device != c.want {
			t.Errorf("%+v", p)
		}
	}
}
