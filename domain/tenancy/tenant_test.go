package tenancy

import (
	"slices"
	"testing"

	"weft/domain"
)

// TestReserve proves that one name is held once, that a quota is never exceeded, and that a release
// makes room again.
func TestReserve(t *testing.T) {
	var s State
	do := func(c domain.Command) error {
		evs, err := Decide(s, domain.Request{Command: c})
		for _, ev := range evs {
			s = Evolve(s, ev)
		}
		return err
	}
	want := func(err error, k domain.Kind) {
		t.Helper()
		if domain.KindOf(err) != k {
			t.Errorf("%v, want %s", err, k)
		}
	}
	want(do(Reserve{Name: "x"}), domain.NotFound)
	if err := do(Create{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	want(do(Create{Name: "acme"}), domain.Exists)
	want(do(SetQuota{Bytes: -1}), domain.Invalid)
	if err := do(SetQuota{Bytes: 10 * domain.GiB, Volumes: 2}); err != nil {
		t.Fatal(err)
	}
	a, b := domain.UUID{1}, domain.UUID{2}
	held := Reserve{Kind: "app", Name: "x", Object: a, Bytes: 8 * domain.GiB, Volumes: 1}
	if err := do(held); err != nil {
		t.Fatal(err)
	}
	want(do(Reserve{Kind: "app", Name: "x", Object: b}), domain.Exists)
	want(do(Reserve{Kind: "app", Name: "y", Object: b, Bytes: 3 * domain.GiB}), domain.NoSpace)
	want(do(Reserve{Kind: "app", Name: "y", Object: b, Volumes: 2}), domain.NoSpace)
	want(do(Reserve{Kind: "app", Name: "y", Object: b, Bytes: -1}), domain.Invalid)
	if err := do(Reserve{Kind: "template", Name: "x", Object: b}); err != nil {
		t.Errorf("another kind may bear the name: %v", err)
	}
	if err := do(Release{Object: a}); err != nil {
		t.Fatal(err)
	}
	if s.Bytes != 0 || s.Count != 0 {
		t.Errorf("after the release: %s, %d", s.Bytes, s.Count)
	}
	if err := do(Reserve{Kind: "app", Name: "x", Object: b, Bytes: 10 * domain.GiB}); err != nil {
		t.Errorf("the name and the room are free again: %v", err)
	}
}

// TestLower proves that what an object holds in several parts becomes one of the smaller amount,
// under its name, and that one which holds nothing is left alone.
func TestLower(t *testing.T) {
	object, other := domain.UUID{1}, domain.UUID{2}
	var s State
	do := func(c domain.Command) int {
		evs, err := Decide(s, domain.Request{Command: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			s = Evolve(s, ev)
		}
		return len(evs)
	}
	do(Create{Name: "acme"})
	do(Reserve{Kind: "volume", Name: "d", Object: object, Bytes: 4 * domain.GiB, Volumes: 1})
	do(Reserve{Object: other, Bytes: domain.GiB, Volumes: 1})
	do(Reserve{Object: object, Bytes: 4 * domain.GiB})
	if do(Lower{Object: object}) != 0 || do(Lower{Object: domain.UUID{3}, By: domain.GiB}) != 0 {
		t.Error("something changed")
	}
	for _, left := range []domain.Bytes{4 * domain.GiB, domain.GiB, domain.GiB} {
		do(Lower{Object: object, By: 5 * domain.GiB})
		if s.Bytes != left || s.Count != 2 || s.Held.Len() != 2 {
			t.Errorf("%s, %d volumes, %+v", s.Bytes, s.Count, s.Held)
		}
	}
	h := slices.Collect(s.Held.All())[1]
	if h.Name != "d" || h.Kind != "volume" || h.Object != object {
		t.Errorf("%+v", h)
	}
}

// TestTenantTree proves that names of tenants are unique in a cluster, that a parent holds its
// child, and that a tenant goes only when it holds nothing and never comes back.
func TestTenantTree(t *testing.T) {
	in := domain.ClusterID{UUID: domain.UUID{1}}
	top, low := domain.TenantID{UUID: domain.UUID{2}}, domain.TenantID{UUID: domain.UUID{3}}
	var dir Directory
	tree := map[domain.StreamID]State{}
	do := func(c domain.Command) error {
		r := domain.Request{Command: c}
		if c.Stream().Category() == DirectoryCategory {
			evs, err := DecideDirectory(dir, r)
			for _, ev := range evs {
				dir = EvolveDirectory(dir, ev)
			}
			return err
		}
		evs, err := Decide(tree[c.Stream()], r)
		for _, ev := range evs {
			tree[c.Stream()] = Evolve(tree[c.Stream()], ev)
		}
		return err
	}
	whole := func(c domain.Command) error {
		if p, ok := c.(domain.Prelude); ok {
			for _, b := range p.Before() {
				if err := do(b); err != nil {
					return err
				}
			}
		}
		err := do(c)
		if p, ok := c.(domain.Postlude); ok && err == nil {
			for _, a := range p.After() {
				if err := do(a); err != nil {
					return err
				}
			}
		}
		return err
	}
	want := func(err error, k domain.Kind) {
		t.Helper()
		if err == nil || domain.KindOf(err) != k {
			t.Errorf("%v, want %s", err, k)
		}
	}
	for _, c := range []domain.Command{
		Create{Tenant: top, Name: "acme", Cluster: in},
		Create{Tenant: low, Name: "lab", Parent: top, Cluster: in},
	} {
		if err := whole(c); err != nil {
			t.Fatal(err)
		}
	}
	third := domain.TenantID{UUID: domain.UUID{4}}
	want(whole(Create{Tenant: third, Name: "lab", Cluster: in}), domain.Exists)
	want(whole(Delete{Tenant: top, Cluster: in}), domain.Conflict)
	if err := whole(Delete{Tenant: low, Parent: top, Cluster: in}); err != nil {
		t.Fatal(err)
	}
	want(do(Reserve{Tenant: low, Kind: "app", Name: "x"}), domain.NotFound)
	want(do(Create{Tenant: low, Name: "lab"}), domain.Exists)
	if err := whole(Delete{Tenant: low, Parent: top, Cluster: in}); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
	if err := whole(Delete{Tenant: top, Cluster: in}); err != nil {
		t.Errorf("without its child: %v", err)
	}
	if err := whole(Create{Tenant: third, Name: "lab", Cluster: in}); err != nil {
		t.Errorf("the name is free again: %v", err)
	}
}

// TestNamesOfPersons proves that a person's name is held once by its digest, also where an older
// event holds it in clear, that no event has the name, and that it is free again once it is given
// back.
func TestNamesOfPersons(t *testing.T) {
	tag := func(name string) []byte { return []byte("tag of " + name) }
	take := func(name string, object byte) TakeName {
		return TakeName{
			Kind: "user", Person: domain.Personal{Text: name}, Tag: tag(name), Object: domain.UUID{object},
		}
	}
	d := EvolveDirectory(Directory{}, &NameTaken{Kind: "user", Name: "old", Object: domain.UUID{1}})
	do := func(c domain.Command) error {
		evs, err := DecideDirectory(d, domain.Request{Command: c})
		for _, ev := range evs {
			if e, ok := ev.(*NameTaken); ok && e.Name != "" && e.Kind == "user" {
				t.Errorf("the event holds the name: %+v", e)
			}
			d = EvolveDirectory(d, ev)
		}
		return err
	}
	if err := do(take("ann", 2)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ann", "old"} {
		if err := do(take(name, 3)); !domain.IsKind(err, domain.Exists) {
			t.Errorf("%s is taken twice: %v", name, err)
		}
	}
	if err := do(take("bob", 3)); err != nil {
		t.Error(err)
	}
	// Another kind of object may bear it, and one without a tag is not everybody's.
	if err := do(TakeName{Kind: "idp", Name: "ann", Object: domain.UUID{4}}); err != nil {
		t.Error(err)
	}
	for object, name := range map[byte]string{1: "old", 2: "ann"} {
		if err := do(FreeName{Object: domain.UUID{object}}); err != nil {
			t.Fatal(err)
		}
		if err := do(take(name, object+10)); err != nil {
			t.Errorf("%s is not free again: %v", name, err)
		}
	}
}
