package intent

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"weft/domain"
	"weft/domain/tenancy"
)

func vol(n int) domain.VolumeID { return domain.VolumeID{UUID: domain.UUID{byte(n)}} }

func spec(n int, size domain.Bytes) VolumeSpec {
	return VolumeSpec{Volume: vol(n), Name: fmt.Sprintf("v%d", n), Size: size}
}

// run folds commands into an application, as the executor would.
func run(t *testing.T, s App, cmds ...domain.Command) App {
	t.Helper()
	for _, c := range cmds {
		evs, err := DecideApp(s, domain.Request{Command: c})
		if err != nil {
			t.Fatalf("%s: %v", c.CommandType(), err)
		}
		for _, ev := range evs {
			s = EvolveApp(s, ev)
		}
	}
	return s
}

func shop() CreateApp {
	return CreateApp{AppInstanceCreated: AppInstanceCreated{
		App: domain.AppID{UUID: domain.UUID{1}}, Name: "shop",
		Volumes: []VolumeSpec{spec(1, domain.GiB), spec(2, domain.GiB)},
	}}
}

// TestApp proves the life of an application: LUNs are given once and never again, sizes only grow,
// and what it was asked before is not asked twice.
func TestApp(t *testing.T) {
	s := run(t, App{}, shop())
	app := s.AppInstanceCreated.App
	if s.Volumes[0].LUN != 1 || s.Volumes[1].LUN != 2 {
		t.Fatalf("LUNs %+v", s.Volumes)
	}
	s = run(t, s, RemoveVolume{App: app, Volume: vol(2)},
		AddVolume{App: app, Spec: spec(3, domain.GiB)})
	if got := s.Volumes[1].LUN; got != 3 {
		t.Errorf("LUN %d is given again: hosts would take the new volume for the old", got)
	}
	s = run(t, s, ResizeVolume{App: app, Volume: vol(1), From: domain.GiB, Size: 2 * domain.GiB})
	if s.Volumes[0].Size != 2*domain.GiB {
		t.Errorf("size %s", s.Volumes[0].Size)
	}
	less := ResizeVolume{
		App: app, Volume: vol(1), From: 2 * domain.GiB, Size: domain.GiB, Shrink: true, Force: true,
	}
	s = run(t, s, less)
	if s.Volumes[0].Size != domain.GiB || len(s.Shrinks) != 1 || !s.Shrinks[0].Force {
		t.Errorf("size %s, %+v", s.Volumes[0].Size, s.Shrinks)
	}
	s = run(t, s, ResizeVolume{App: app, Volume: vol(1), From: domain.GiB, Size: 2 * domain.GiB})
	if len(s.Shrinks) != 1 {
		t.Errorf("it may be there with more than is wished again, and: %+v", s.Shrinks)
	}
	s = run(t, s, DeleteApp{app}, DeleteApp{app}, FinishDeleteApp{App: app})
	if !s.Deleted {
		t.Error("not deleted")
	}
}

// TestAppRefusals proves the kind of every refusal.
func TestAppRefusals(t *testing.T) {
	live := run(t, App{}, shop())
	app := live.AppInstanceCreated.App
	dying := run(t, live, DeleteApp{app})
	for _, c := range []struct {
		name string
		s    App
		cmd  domain.Command
		kind domain.Kind
	}{
		{"create twice", live, shop(), domain.Exists},
		{"change nothing that exists", App{}, SetExport{App: app}, domain.NotFound},
		{
			"shrink", live,
			ResizeVolume{App: app, Volume: vol(1), From: domain.GiB, Size: domain.VolumeMin},
			domain.Invalid,
		},
		{
			"grow from another size", live,
			ResizeVolume{App: app, Volume: vol(1), From: domain.VolumeMin, Size: 2 * domain.GiB},
			domain.Conflict,
		},
		{
			"grow to the size that is there, believing another", live,
			ResizeVolume{App: app, Volume: vol(1), From: domain.VolumeMin, Size: domain.GiB},
			domain.Conflict,
		},
		{
			"grow what is not there", live,
			ResizeVolume{App: app, Volume: vol(9), Size: domain.GiB},
			domain.NotFound,
		},
		{"remove what is not there", live, RemoveVolume{App: app, Volume: vol(9)}, domain.NotFound},
		{
			"same name", live,
			AddVolume{App: app, Spec: VolumeSpec{Volume: vol(7), Name: "v1"}},
			domain.Exists,
		},
		{"finish unasked", live, FinishDeleteApp{App: app}, domain.Conflict},
		{"change what is dying", dying, SetExport{App: app}, domain.Conflict},
		{
			"bad intent", live,
			SetIntent{App: app, Overrides: Intent{Availability: Availability{Replicas: 6}}},
			domain.Invalid,
		},
		{
			"encrypt what is there", live,
			SetIntent{App: app, Overrides: Intent{Security: Security{Encryption: "on"}}},
			domain.Invalid,
		},
	} {
		if _, err := DecideApp(c.s, domain.Request{Command: c.cmd}); domain.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %s", c.name, err, c.kind)
		}
	}
}

// TestEqualKnowsEveryField proves that no wish is taken for another that differs in one field: a
// change of it would be nothing.
func TestEqualKnowsEveryField(t *testing.T) {
	of := reflect.TypeFor[Intent]()
	for g := range of.NumField() {
		for f := range of.Field(g).Type.NumField() {
			var x Intent
			v := reflect.ValueOf(&x).Elem().Field(g).Field(f)
			if v.Kind() == reflect.Slice {
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			} else {
				v.Set(reflect.ValueOf(map[reflect.Kind]any{
					reflect.String: "x", reflect.Int64: int64(1),
				}[v.Kind()]))
			}
			if equal(x, Intent{}) || !equal(x, x) {
				t.Errorf("%s.%s is not compared", of.Field(g).Name, of.Field(g).Type.Field(f).Name)
			}
		}
	}
}

// TestValidateListsAll proves that every violation is named at once, each with its path.
func TestValidateListsAll(t *testing.T) {
	c := shop()
	c.Name = "Shop!"
	c.Volumes = []VolumeSpec{
		{Name: "a", Size: 0},
		{Name: "a", Size: -4096},
		{Name: "", Size: domain.VolumeMin + 1},
		{Name: "d", Size: domain.VolumeMax + domain.VolumeMin, LogicalBlock: 1024},
	}
	c.Overrides = Intent{
		Performance: Performance{
			IOPSMin: 10, IOPSMax: 5, LatencyP99US: -1, BWMinBPS: 2, BWMaxBPS: 1, BurstS: BurstMax + 1,
		},
		Availability: Availability{Replicas: 2, Survive: []Survive{{"rack", 2}}, Ack: "quorum"},
		Placement:    Placement{Capacity: "tape"}, Security: Security{Encryption: "rot13"},
		Cost: Cost{Compression: "lzma"},
	}
	c.Export = Export{AllowAny: true, Initiators: []string{""}}
	paths := map[string]bool{}
	for _, v := range domain.ViolationsOf(c.Validate()) {
		paths[v.Path] = true
	}
	for _, p := range []string{
		"name", "volumes[0].size", "volumes[1].size", "volumes[1].name", "volumes[2].name",
		"volumes[2].size", "volumes[3].size", "volumes[3].logical_block",
		"intent.performance.iops_min", "intent.performance.latency_p99_us",
		"intent.performance.bw_min_bps", "intent.performance.burst_s",
		"intent.availability.survive[0]", "intent.availability.ack", "intent.placement.capacity",
		"intent.security.encryption", "intent.cost.compression",
		"export.allow_any", "export.initiators[0]",
	} {
		if !paths[p] {
			t.Errorf("%s is not named; got %v", p, paths)
		}
	}
}

// TestTemplateVersions proves that versions are immutable, counted, and not added for nothing.
func TestTemplateVersions(t *testing.T) {
	var s Template
	do := func(c domain.Command) int {
		evs, err := DecideTemplate(s, domain.Request{Command: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			s = EvolveTemplate(s, ev)
		}
		return len(evs)
	}
	do(CreateTemplate{Name: "gold", Intent: Intent{Lifecycle: Lifecycle{Priority: 1}}})
	before := s.Versions
	if n := do(PublishTemplate{Intent: Intent{Lifecycle: Lifecycle{Priority: 1}}}); n != 0 {
		t.Errorf("an equal version was published: %d events", n)
	}
	do(PublishTemplate{Intent: Intent{Lifecycle: Lifecycle{Priority: 2}}})
	if len(s.Versions) != 2 || len(before) != 1 || before[0].Lifecycle.Priority != 1 {
		t.Errorf("versions %+v, before %+v", s.Versions, before)
	}
	do(DeleteTemplate{})
	_, err := DecideTemplate(s, domain.Request{Command: PublishTemplate{}})
	if !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a deleted template answers %v", err)
	}
}

// TestReservations proves that an application reserves its name and each volume, and takes back
// what it reserved when it is refused.
func TestReservations(t *testing.T) {
	c := shop()
	var s tenancy.State
	s.Exists = true
	do := func(list []domain.Command) {
		for _, cmd := range list {
			evs, err := tenancy.Decide(s, domain.Request{Command: cmd})
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range evs {
				s = tenancy.Evolve(s, ev)
			}
		}
	}
	do(c.Before())
	if s.Bytes != 2*domain.GiB || s.Count != 2 || s.Held.Len() != 3 {
		t.Errorf("held %+v", s)
	}
	grow := ResizeVolume{Volume: vol(1), From: domain.GiB, Size: 3 * domain.GiB}
	do(grow.Before())
	if s.Bytes != 4*domain.GiB {
		t.Errorf("after growth %s", s.Bytes)
	}
	do(grow.Undo())
	if s.Bytes != 2*domain.GiB || s.Count != 2 {
		t.Errorf("a refused growth left %s, %d volumes", s.Bytes, s.Count)
	}
	do(c.Undo())
	if s.Bytes != 0 || s.Count != 0 || s.Held.Len() != 0 {
		t.Errorf("left over: %+v", s)
	}
}

// TestNames proves which names become part of IQNs and export names.
func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "a-1": true, "gold": true, strings.Repeat("a", 63): true,
		"": false, "A": false, "1a": false, "-a": false, "a-": false, "a_b": false, "a.b": false,
		"a/b": false, strings.Repeat("a", 64): false, "ä": false,
	} {
		if tenancy.ValidName(name) != ok {
			t.Errorf("%q: %v", name, !ok)
		}
	}
}
