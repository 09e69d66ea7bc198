package oidc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"weft/adapters/oidc"
	"weft/domain"
	"weft/domain/identity"
	"weft/testing/oidcissuer"
)

// clock is a time that the test moves.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func newClock() *clock { return &clock{time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)} }

func provider(i *oidcissuer.Issuer) *identity.Provider {
	return &identity.Provider{IdentityProviderConfigured: identity.IdentityProviderConfigured{
		Name: "corp", Issuer: i.URL(), Settings: identity.ProviderSettings{
			Client: oidcissuer.Client, Claim: "email", CA: i.CA(), Session: time.Hour,
		},
	}}
}

// TestTokens proves what counts and what does not (O1, O4): each bad token differs from a good one
// in one thing.
func TestTokens(t *testing.T) {
	issuer, now := oidcissuer.Serve(t), newClock()
	v, p := oidc.NewVerifier(now.now), provider(issuer)
	claims := func(change func(c map[string]any)) map[string]any {
		c := issuer.Claims("s-1", "Ann@example.org", now.Time)
		if change != nil {
			change(c)
		}
		return c
	}
	signed := func(change func(c map[string]any)) string { return issuer.Sign(claims(change)) }
	who, err := v.Verify(t.Context(), p, signed(nil))
	if err != nil || who.Subject != "s-1" || who.Name != "ann@example.org" ||
		!who.Expires.Equal(now.Add(time.Hour)) {
		t.Fatalf("%+v, %v", who, err)
	}
	for name, change := range map[string]func(c map[string]any){
		"unverified address": func(c map[string]any) { c["email_verified"] = false },
		"no word of it":      func(c map[string]any) { delete(c, "email_verified") },
		"no text":            func(c map[string]any) { c["email"] = 7 },
	} {
		if who, err := v.Verify(t.Context(), p, signed(change)); err != nil || who.Name != "" {
			t.Errorf("%s: %+v, %v", name, who, err)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := issuer.Public()
	secret, err := public.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	good := signed(nil)
	bad := map[string]string{
		"audience": signed(func(c map[string]any) { c["aud"] = "another" }),
		"issuer":   signed(func(c map[string]any) { c["iss"] = issuer.URL() + "/" }),
		"expired":  signed(func(c map[string]any) { c["exp"] = now.Add(-time.Second).Unix() }),
		"no end":   signed(func(c map[string]any) { delete(c, "exp") }),
		"not yet":  signed(func(c map[string]any) { c["nbf"] = now.Add(time.Hour).Unix() }),
		"subject":  signed(func(c map[string]any) { delete(c, "sub") }),
		"long subject": signed(func(c map[string]any) {
			c["sub"] = strings.Repeat("s", identity.SubjectMax+1)
		}),
		"other key": oidcissuer.SignWith(t, jose.ES256, other, claims(nil)),
		"other key under this key's name": oidcissuer.SignWith(t, jose.ES256,
			jose.JSONWebKey{Key: other, KeyID: public.KeyID}, claims(nil)),
		"public key as a secret": oidcissuer.SignWith(t, jose.HS256, secret, claims(nil)),
		"none":                   unsigned(t, claims(nil)),
		"changed":                changed(good),
		"cut":                    good[:len(good)-4],
		"empty":                  "",
		"dots":                   "..",
	}
	for name, token := range bad {
		if who, err := v.Verify(t.Context(), p, token); !domain.IsKind(err, domain.Denied) {
			t.Errorf("%s: %+v, %v", name, who, err)
		}
	}
}

func unsigned(t *testing.T, claims map[string]any) string {
	t.Helper()
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(`{"alg":"none"}`)) + "." + e.EncodeToString(b) + "."
}

// changed makes somebody else of who a token names.
func changed(token string) string {
	parts := strings.Split(token, ".")
	b, _ := base64.RawURLEncoding.DecodeString(parts[1])
	b = []byte(strings.Replace(string(b), "s-1", "s-2", 1))
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString(b) + "." + parts[2]
}

// TestGroups proves that of a token's claims those groups count that have a role, as texts, and
// nothing else (O4).
func TestGroups(t *testing.T) {
	issuer, now := oidcissuer.Serve(t), newClock()
	v, p := oidc.NewVerifier(now.now), provider(issuer)
	role := func(claim, group string) identity.GroupRole {
		return identity.GroupRole{Membership: identity.Membership{Claim: claim, Group: group}}
	}
	ask := func(value any) []identity.Membership {
		t.Helper()
		c := issuer.Claims("s-1", "ann@example.org", now.Time)
		c["groups"], c["role"] = value, "ops"
		who, err := v.Verify(t.Context(), p, issuer.Sign(c))
		if err != nil {
			t.Fatal(err)
		}
		return who.Groups
	}
	if got := ask([]string{"ops"}); got != nil {
		t.Errorf("no group has a role: %v", got)
	}
	p.Groups = []identity.GroupRole{
		role("groups", "ops"), role("groups", "ops"), role("groups", "7"), role("other", "ops"),
	}
	for _, c := range []struct {
		value any
		want  int
	}{
		{[]string{"staff", "ops"}, 1},
		{"ops", 1},
		{[]any{"ops", 7}, 1},
		{[]string{"Ops"}, 0},
		{[]string{}, 0},
		{nil, 0},
		{7, 0},
		{map[string]any{"ops": true}, 0},
		{[]any{[]any{"ops"}}, 0},
		{"ops,staff", 0},
	} {
		got := ask(c.value)
		if len(got) != c.want || c.want > 0 && got[0] != p.Groups[0].Membership {
			t.Errorf("%v: %v", c.value, got)
		}
	}
	p.Groups = []identity.GroupRole{role("role", "ops")}
	if got := ask(nil); len(got) != 1 {
		t.Errorf("another claim: %v", got)
	}
}

// TestKeysRotate proves that new keys are found by the first token they sign, that old ones count
// no more, and that strangers' tokens do not make the node ask again and again (O2).
func TestKeysRotate(t *testing.T) {
	issuer, now := oidcissuer.Serve(t), newClock()
	v, p := oidc.NewVerifier(now.now), provider(issuer)
	token := func() string { return issuer.Sign(issuer.Claims("s-1", "a@b", now.Time)) }
	old := token()
	if _, err := v.Verify(t.Context(), p, old); err != nil {
		t.Fatal(err)
	}
	issuer.Rotate()
	now.Time = now.Add(11 * time.Second)
	if _, err := v.Verify(t.Context(), p, token()); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), p, old); !domain.IsKind(err, domain.Denied) {
		t.Errorf("a token of the old key: %v", err)
	}
	before := issuer.Asked()
	for range 100 {
		stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		text := oidcissuer.SignWith(t, jose.ES256, jose.JSONWebKey{Key: stranger, KeyID: "x"},
			issuer.Claims("s-1", "a@b", now.Time))
		if _, err := v.Verify(t.Context(), p, text); !domain.IsKind(err, domain.Denied) {
			t.Fatal(err)
		}
	}
	if n := issuer.Asked() - before; n > 1 {
		t.Errorf("100 tokens of strangers made %d questions", n)
	}
}

// TestProviderIsAway proves that known keys count while the provider does not answer, for a day and
// no longer, and that a provider that never answered is unavailable, and asked again later (O3).
func TestProviderIsAway(t *testing.T) {
	issuer, now := oidcissuer.Serve(t), newClock()
	v, p := oidc.NewVerifier(now.now), provider(issuer)
	verify := func() error {
		_, err := v.Verify(t.Context(), p, issuer.Sign(issuer.Claims("s-1", "a@b", now.Time)))
		return err
	}
	issuer.Down(true)
	for range 2 {
		if err := verify(); !domain.IsKind(err, domain.Unavailable) {
			t.Errorf("never reached: %v", err)
		}
	}
	issuer.Down(false)
	now.Time = now.Add(time.Minute)
	if err := verify(); err != nil {
		t.Error(err)
	}
	issuer.Down(true)
	now.Time = now.Add(23 * time.Hour)
	if err := verify(); err != nil {
		t.Errorf("away for 23 h: %v", err)
	}
	now.Time = now.Add(2 * time.Hour)
	if err := verify(); err == nil {
		t.Error("away for 25 h, and the old keys count")
	}
	issuer.Down(false)
	now.Time = now.Add(time.Minute)
	if err := verify(); err != nil {
		t.Error(err)
	}
}

// TestForeignDocument proves that an address whose document is another issuer's vouches for nobody.
func TestForeignDocument(t *testing.T) {
	issuer := oidcissuer.Serve(t)
	p := provider(issuer)
	p.Issuer += "/" // the document is found there all the same
	token := issuer.Claims("s-1", "a@b", time.Now())
	token["iss"] = p.Issuer
	_, err := oidc.NewVerifier(nil).Verify(t.Context(), p, issuer.Sign(token))
	if !domain.IsKind(err, domain.Unavailable) {
		t.Error(err)
	}
}

// TestIssuerOf proves that what is no token of a provider is told apart.
func TestIssuerOf(t *testing.T) {
	issuer := oidcissuer.Serve(t)
	good := issuer.Sign(issuer.Claims("s", "a@b", time.Now()))
	if iss, ok := oidc.IssuerOf(good); !ok || iss != issuer.URL() {
		t.Errorf("%q %v", iss, ok)
	}
	for _, text := range []string{
		"", "weftu-1-2", "a.b.c", "..", good + "." + good,
		strings.Repeat("x", oidc.TokenMax) + "." + good[strings.IndexByte(good, '.')+1:],
	} {
		if iss, ok := oidc.IssuerOf(text); ok {
			t.Errorf("%.40q is of %q", text, iss)
		}
	}
}

// TestSignIn signs in with the device grant: granted, refused, and given up.
func TestSignIn(t *testing.T) {
	issuer, v := oidcissuer.Serve(t), oidc.NewVerifier(nil)
	p := provider(issuer)
	try := func(ctx context.Context, decide func(code string)) (string, error) {
		s := oidc.SignIn{
			Issuer: p.Issuer, Client: p.Settings.Client, CA: p.Settings.CA,
			Show: func(_, code, _ string) { decide(code) },
		}
		return s.Run(ctx)
	}
	token, err := try(t.Context(), func(code string) {
		if err := issuer.Decide(code, issuer.Claims("s-1", "ann@b", time.Now())); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if who, err := v.Verify(t.Context(), p, token); err != nil || who.Name != "ann@b" {
		t.Errorf("%+v, %v", who, err)
	}
	_, err = try(t.Context(), func(code string) { _ = issuer.Decide(code, nil) })
	if !domain.IsKind(err, domain.Denied) || !strings.Contains(err.Error(), "access_denied") {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = try(ctx, func(string) { cancel() })
	if !domain.IsKind(err, domain.Aborted) {
		t.Errorf("given up: %v", err)
	}
	issuer.Down(true)
	if _, err = try(t.Context(), func(string) {}); !domain.IsKind(err, domain.Unavailable) {
		t.Errorf("down: %v", err)
	}
}
