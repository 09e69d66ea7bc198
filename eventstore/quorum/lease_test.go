package quorum

import (
	"context"
	"slices"
	"testing"
	"time"

	"weft/domain"
)

// A node is alive while it holds a lease, hears when that is lost, and is gone at once when it
// gives it back.
func TestNodeLease(t *testing.T) {
	q := open(t, t.TempDir())
	one, two := domain.NodeID{UUID: domain.UUID{1}}, domain.NodeID{UUID: domain.UUID{2}}
	a, err := q.NodeLease(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := q.NodeLease(t.Context(), two)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := q.Alive(t.Context()); err != nil || len(list) != 2 || !slices.Contains(list, one) {
		t.Fatalf("%v, %v", list, err)
	}
	if _, err := q.client.now().Revoke(t.Context(), a.id); err != nil {
		t.Fatal(err)
	}
	<-a.Lost()
	if a.Valid() {
		t.Error("a lease that was taken away is valid")
	}
	b.Close()
	if list, err := q.Alive(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	a.Close()
}

// TestRoleAfterKill proves that a node which was killed while it had the role has it again at once,
// although the lease of its earlier incarnation lives on, and that another node does not get it so.
func TestRoleAfterKill(t *testing.T) {
	q := open(t, t.TempDir())
	one, two := domain.NodeID{UUID: domain.UUID{1}}, domain.NodeID{UUID: domain.UUID{2}}
	lease := func(n domain.NodeID) *Lease {
		l, err := q.NodeLease(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		return l
	}
	before := lease(one)
	if err := q.Campaign(t.Context(), before, one); err != nil {
		t.Fatal(err)
	}
	after, other := lease(one), lease(two)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := q.Campaign(ctx, after, one); err != nil {
		t.Fatalf("the node's next incarnation: %v", err)
	}
	if !before.Valid() {
		t.Fatal("the earlier lease has ended, so nothing was shown")
	}
	brief, done := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer done()
	if err := contend(brief, q.client.now(), other, q.keys.leader(), two); err == nil {
		t.Error("another node took the role of one that lives")
	}
	before.Close() // whose end must not end the role
	if got := get(t, q, q.keys.leader()); got != one.String() {
		t.Errorf("%q holds the role", got)
	}
}

// One node holds the role at a time; the next one gets it when the first one's lease ends, and a
// node without a lease never does.
func TestRoleIsHeldByOne(t *testing.T) {
	q := open(t, t.TempDir())
	one, two := domain.NodeID{UUID: domain.UUID{1}}, domain.NodeID{UUID: domain.UUID{2}}
	a, err := q.NodeLease(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := q.NodeLease(t.Context(), two)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := q.Campaign(t.Context(), a, one); err != nil {
		t.Fatal(err)
	}
	if err := q.Campaign(t.Context(), a, one); err != nil {
		t.Fatalf("the holder asked again: %v", err)
	}
	brief, done := context.WithTimeout(t.Context(), 100*time.Millisecond)
	if err := contend(brief, q.client.now(), b, q.keys.leader(), two); err == nil {
		t.Fatal("two nodes hold the role")
	}
	done()
	won := make(chan error, 1)
	go func() { won <- q.Campaign(t.Context(), b, two) }()
	holder := func() string { return get(t, q, q.keys.leader()) }
	if holder() != one.String() {
		t.Fatalf("%q holds the role", holder())
	}
	a.Close()
	if err := <-won; err != nil || holder() != two.String() {
		t.Fatalf("%v; %q holds the role", err, holder())
	}
	if err := q.Campaign(t.Context(), a, one); !domain.IsKind(err, domain.Stale) {
		t.Errorf("a lease that ended: %v", err)
	}
	c, err := q.NodeLease(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { won <- q.Campaign(ctx, c, one) }()
	cancel()
	if err := <-won; !domain.IsKind(err, domain.Aborted) {
		t.Errorf("a campaign given up: %v", err)
	}
}
