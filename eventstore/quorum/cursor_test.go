package quorum

import (
	"bytes"
	"slices"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
)

// TestCursors proves that a cursor is the last value stored under its name, also after a restart,
// that its bytes are not taken for it when they were changed, and that it is no event.
func TestCursors(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	c := s.Cursors()
	if b, err := c.Load(ctx, "none"); b != nil || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	for _, x := range []struct{ name, value string }{
		{"psub/a::g", "1"}, {"psub/b", ""}, {"psub/a::g", "2"}, {"x", "3"},
	} {
		if err := c.Store(ctx, x.name, []byte(x.value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Delete(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx, "x"); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	c = s.Cursors()
	names, err := c.Names(ctx)
	if err != nil || !slices.Equal(names, []string{"psub/a::g", "psub/b"}) {
		t.Errorf("%q, %v", names, err)
	}
	if b, err := c.Load(ctx, "psub/a::g"); string(b) != "2" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := c.Load(ctx, "psub/b"); b == nil || len(b) != 0 || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if h, err := s.Head(ctx); h.Position != 0 || err != nil {
		t.Errorf("%+v, %v", h, err)
	}
	if err := c.Store(ctx, "big", make([]byte, cursorMax)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if err := c.Store(ctx, "big", make([]byte, cursorMax+1)); !domain.IsKind(err, domain.TooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	noFlippedBit(t, s, s.keys.cursor("psub/a::g"), func() ([]byte, error) {
		return c.Load(ctx, "psub/a::g")
	}, clientv3.WithIgnoreLease())
}

// noFlippedBit flips each bit of what stands under a key, which must then be told to be corrupt.
func noFlippedBit(
	t *testing.T, s *Store, key string, load func() ([]byte, error), how ...clientv3.OpOption,
) {
	t.Helper()
	r, err := s.client.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(r.Kvs[0].Value) * 8 {
		bad := bytes.Clone(r.Kvs[0].Value)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := s.client.Put(t.Context(), key, string(bad), how...); err != nil {
			t.Fatal(err)
		}
		if b, err := load(); !domain.IsKind(err, domain.Corrupt) {
			t.Fatalf("bit %d: %q, %v", bit, b, err)
		}
	}
}
