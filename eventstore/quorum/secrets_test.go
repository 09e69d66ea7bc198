package quorum

import (
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// TestSecrets proves on a real member what vault.Secrets promise; that a secret is there after a
// restart, is no event, and is not taken for itself when its bytes were changed.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	storetest.RunSecrets(t, s.Secrets())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	c := s.Secrets()
	if b, err := c.Load(ctx, "a"); string(b) != "1" || err != nil {
		t.Errorf("after a restart: %q, %v", b, err)
	}
	if h, err := s.Head(ctx); h != (eventstore.Head{}) || err != nil {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := c.Create(ctx, "max", make([]byte, secretMax), ""); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	_, err := c.Create(ctx, "over", make([]byte, secretMax+1), "")
	if !domain.IsKind(err, domain.TooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	noFlippedBit(t, s, s.keys.secret("a"), func() ([]byte, error) { return c.Load(ctx, "a") })
}
