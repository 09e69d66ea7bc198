package vault

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"weft/domain"
)

// store is Secrets in a map, of one goroutine. memory.Secrets would import this package in a
// circle.
type store map[string][]byte

func (s store) Load(_ context.Context, name string) ([]byte, error) { return s[name], nil }

func (s store) Create(_ context.Context, name string, v []byte, bar string) (bool, error) {
	_, there := s[name]
	_, barred := s[bar]
	if there || bar != "" && barred {
		return false, nil
	}
	s[name] = bytes.Clone(v)
	return true, nil
}

func (s store) Destroy(_ context.Context, name, bar string) error {
	delete(s, name)
	s[bar] = nil
	return nil
}

func (s store) Names(_ context.Context, prefix string) (list []string, err error) {
	for n := range s {
		if strings.HasPrefix(n, prefix) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

const phrase = "correct horse battery"

var home = domain.ClusterID{UUID: domain.UUID{9}}

func user(n byte) domain.UserID { return domain.UserID{UUID: domain.UUID{n}} }

// bundled gives a vault that knows two users and erased a third, its bundle, and a box of the
// first.
func bundled(t testing.TB) (v *Vault, bundle, box []byte) {
	t.Helper()
	v, err := Open(t.Context(), store{}, []byte("one master"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range byte(3) {
		if box, err = v.Seal(t.Context(), user(3-n), "name", "ann"); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Destroy(t.Context(), user(3)); err != nil {
		t.Fatal(err)
	}
	bundle, users, err := v.bundle(t.Context(), home, phrase, 1)
	if err != nil || users != 2 {
		t.Fatalf("%d users, %v", users, err)
	}
	return v, bundle, box
}

// TestBundle proves that a cluster with another master opens what was sealed and finds what was
// digested once it has the bundle, also when that is repeated; that who was erased stays so; that
// who is erased by then does not come back; and that nothing of a key stands in the bundle in
// clear.
func TestBundle(t *testing.T) {
	ctx := t.Context()
	v, bundle, box := bundled(t)
	if bytes.Contains(bundle, v.digest) || bytes.Contains(bundle, []byte(userPrefix)) {
		t.Error("the bundle is not closed")
	}
	s := store{}
	for range 2 {
		users, err := Unpack(ctx, s, []byte("another"), home, bundle, phrase)
		if err != nil || users != 2 {
			t.Fatalf("%d users, %v", users, err)
		}
	}
	w, err := Open(ctx, s, []byte("another"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := w.Open(ctx, user(1), "name", box); err != nil || text != "ann" {
		t.Errorf("%q, %v", text, err)
	}
	if !bytes.Equal(v.Digest("user", "ann"), w.Digest("user", "ann")) {
		t.Error("digests differ")
	}
	if _, err := w.Seal(ctx, user(3), "name", "x"); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("an erased user is back: %v", err)
	}
	if err := w.Destroy(ctx, user(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(ctx, s, []byte("another"), home, bundle, phrase); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(ctx, user(1), "name", box); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a user erased since is back: %v", err)
	}
}

// TestBundleRefused proves that nothing is stored of a bundle that was changed in any bit, was cut,
// is of another cluster, or is opened with another passphrase, and that it does not replace keys.
func TestBundleRefused(t *testing.T) {
	ctx := t.Context()
	_, bundle, _ := bundled(t)
	refused := func(what string, k domain.Kind, in domain.ClusterID, b []byte, p string) {
		t.Helper()
		s := store{}
		_, err := Unpack(ctx, s, []byte("another"), in, b, p)
		if !domain.IsKind(err, k) || len(s) > 0 {
			t.Errorf("%s: %v, %d secrets", what, err, len(s))
		}
	}
	for bit := range 8 * len(bundle) {
		bad := bytes.Clone(bundle)
		bad[bit/8] ^= 1 << (bit % 8)
		if binary.LittleEndian.Uint32(bad[8:]) > 1<<10 && bit/8 >= 8 && bit/8 < 12 {
			continue // takes its time, and is refused as the others are
		}
		refused("a bit", domain.Corrupt, home, bad, phrase)
	}
	for n := range len(bundle) {
		refused("cut", domain.Corrupt, home, bundle[:n], phrase)
	}
	refused("passphrase", domain.Corrupt, home, bundle, phrase+"!")
	refused("cluster", domain.Mismatch, domain.ClusterID{}, bundle, phrase)
	s := store{}
	if _, err := Open(ctx, s, []byte("another")); err != nil {
		t.Fatal(err)
	}
	_, err := Unpack(ctx, s, []byte("another"), home, bundle, phrase)
	if !domain.IsKind(err, domain.Exists) {
		t.Errorf("over other keys: %v", err)
	}
	v, _, _ := bundled(t)
	if _, _, err := v.Bundle(ctx, home, "short"); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("a short passphrase: %v", err)
	}
}

// FuzzEntries proves that what a box holds is read whole or refused, whatever it is.
func FuzzEntries(f *testing.F) {
	v, _, _ := bundled(f)
	body, _, err := v.everything(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{1, 0, 0, 0, 3, 'a'})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, ok := entries(b)
		if !ok {
			return
		}
		size := 4
		for _, e := range list {
			if len(e.key) != 0 && len(e.key) != keySize {
				t.Errorf("%q has a key of %d bytes", e.name, len(e.key))
			}
			size += 2 + len(e.name) + len(e.key)
		}
		if size != len(b) {
			t.Errorf("%d of %d bytes", size, len(b))
		}
	})
}
