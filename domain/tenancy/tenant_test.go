package tenancy

import (
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
