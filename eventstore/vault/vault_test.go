package vault_test

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"weft/domain"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/eventstore/vault"
)

var (
	ann    = domain.UserID{UUID: domain.UUID{1}}
	bob    = domain.UserID{UUID: domain.UUID{2}}
	master = []byte("what the nodes have")
)

func open(t *testing.T, s vault.Secrets) *vault.Vault {
	t.Helper()
	v, err := vault.Open(t.Context(), s, master)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func seal(t *testing.T, v *vault.Vault, user domain.UserID, label, text string) []byte {
	t.Helper()
	box, err := v.Seal(t.Context(), user, label, text)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// TestSecretsInMemory runs the suite of vault.Secrets on those in memory.
func TestSecretsInMemory(t *testing.T) { storetest.RunSecrets(t, &memory.Secrets{}) }

// TestSeal proves that a text comes back on every node, under its user and label alone; that no
// text gives the same box twice; that a change of any bit is found out (K1); and that nothing of
// the text is in what is stored.
func TestSeal(t *testing.T) {
	ctx, s := t.Context(), &memory.Secrets{}
	v, other := open(t, s), open(t, s)
	const text = "ann@example.org"
	box := seal(t, v, ann, "here", text)
	for _, x := range []*vault.Vault{v, other} {
		if got, err := x.Open(ctx, ann, "here", box); err != nil || got != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	again := seal(t, other, ann, "here", text)
	if bytes.Equal(again, box) || bytes.Contains(box, []byte("ann")) {
		t.Error("two boxes of one text are equal, or hold it in clear")
	}
	seal(t, v, bob, "here", text)
	for name, x := range map[string]struct {
		user  domain.UserID
		label string
	}{"another user": {bob, "here"}, "another place": {ann, "there"}} {
		if got, err := v.Open(ctx, x.user, x.label, box); !domain.IsKind(err, domain.Corrupt) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for bit := range 8 * len(box) {
		bad := bytes.Clone(box)
		bad[bit/8] ^= 1 << (bit % 8)
		if got, err := v.Open(ctx, ann, "here", bad); !domain.IsKind(err, domain.Corrupt) {
			t.Fatalf("bit %d: %q, %v", bit, got, err)
		}
	}
	if _, err := v.Open(ctx, ann, "here", box[:5]); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("cut: %v", err)
	}
}

// TestDestroy proves that a destroyed key opens nothing on any node that has heard of it, is never
// made again (K2), and leaves others as they are.
func TestDestroy(t *testing.T) {
	ctx, s := t.Context(), &memory.Secrets{}
	v, other := open(t, s), open(t, s)
	mine, his := seal(t, v, ann, "l", "ann"), seal(t, v, bob, "l", "bob")
	if _, err := other.Open(ctx, ann, "l", mine); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.Destroy(ctx, ann); err != nil {
			t.Fatal(err)
		}
	}
	other.Forget(ann)
	for name, x := range map[string]*vault.Vault{"here": v, "there": other, "later": open(t, s)} {
		if got, err := x.Open(ctx, ann, "l", mine); !domain.IsKind(err, domain.NotFound) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, err := x.Seal(ctx, ann, "l", "ann"); !domain.IsKind(err, domain.NotFound) {
			t.Errorf("%s: sealed again: %v", name, err)
		}
		if got, err := x.Open(ctx, bob, "l", his); err != nil || got != "bob" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if kept, err := v.Kept(ctx); err != nil || len(kept) != 1 || kept[0] != bob {
		t.Errorf("%v, %v", kept, err)
	}
	// Of somebody who never had a key nothing is sealed afterwards either.
	never := domain.UserID{UUID: domain.UUID{3}}
	if err := v.Destroy(ctx, never); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Seal(ctx, never, "l", "x"); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a key that never was: %v", err)
	}
}

// TestDestroyedWhileRead proves that a key which is on its way into memory while it is forgotten
// does not stay there.
func TestDestroyedWhileRead(t *testing.T) {
	ctx, s := t.Context(), &memory.Secrets{}
	box := seal(t, open(t, s), ann, "l", "ann")
	slow := &between{Secrets: s}
	v := open(t, slow)
	slow.after = func() {
		slow.after = nil
		if err := v.Destroy(ctx, ann); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Open(ctx, ann, "l", box); err != nil {
		t.Fatal(err) // it was there when it was read
	}
	if got, err := v.Open(ctx, ann, "l", box); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("%q, %v", got, err)
	}
}

// between calls a function once after a value was loaded.
type between struct {
	vault.Secrets
	after func()
}

func (b *between) Load(ctx context.Context, name string) ([]byte, error) {
	v, err := b.Secrets.Load(ctx, name)
	if b.after != nil {
		b.after()
	}
	return v, err
}

// TestOneKeyForAll proves that nodes which begin at once have the same keys: what one seals the
// others open, and their digests agree, tell kinds apart, and are no plain hash (K3).
func TestOneKeyForAll(t *testing.T) {
	ctx, s := t.Context(), &memory.Secrets{}
	nodes, boxes := make([]*vault.Vault, 6), make([][]byte, 6)
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			var err error
			if nodes[i], err = vault.Open(ctx, s, master); err == nil {
				boxes[i], err = nodes[i].Seal(ctx, ann, "l", "ann")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := nodes[0].Digest("user", "ann")
	for i, v := range nodes {
		for _, box := range boxes {
			if got, err := v.Open(ctx, ann, "l", box); err != nil || got != "ann" {
				t.Fatalf("node %d: %q, %v", i, got, err)
			}
		}
		if !bytes.Equal(v.Digest("user", "ann"), want) {
			t.Errorf("node %d digests otherwise", i)
		}
	}
	if bytes.Equal(nodes[0].Digest("subject", "ann"), want) ||
		bytes.Equal(nodes[0].Digest("user", "bob"), want) {
		t.Error("digests of other texts are equal")
	}
	if elsewhere := open(t, &memory.Secrets{}); bytes.Equal(elsewhere.Digest("user", "ann"), want) {
		t.Error("another cluster has the same digests")
	}
}

// TestMaster proves that what is stored opens with the nodes' key alone.
func TestMaster(t *testing.T) {
	ctx, s := t.Context(), &memory.Secrets{}
	open(t, s)
	if _, err := vault.Open(ctx, s, []byte("another")); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("another master: %v", err)
	}
	if _, err := vault.Open(ctx, s, nil); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("no master: %v", err)
	}
	// A key does not open in the place of another one.
	seal(t, open(t, s), ann, "l", "ann")
	b, err := s.Load(ctx, "user/"+ann.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, "user/"+bob.String(), b, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, s).Seal(ctx, bob, "l", "bob"); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("a key of somebody else: %v", err)
	}
}
