package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"weft/domain"
	"weft/domain/identity"
)

// TokenMax is the longest token that is looked at, bytes.
const TokenMax = 16 << 10

// Identity is who a provider says somebody is.
type Identity struct {
	Subject string
	Name    string                // by the provider's claim; empty: it says none that counts
	Groups  []identity.Membership // those of its groups that were given a role
	Expires time.Time             // of the token
}

// Verifier verifies tokens. It keeps the providers' keys. Any number of goroutines may use it.
type Verifier struct {
	now func() time.Time

	mu    sync.Mutex
	known map[identity.IdentityProviderConfigured]*issuer
}

// issuer is a provider with settings as they were when it was asked.
type issuer struct {
	mu    sync.Mutex
	keys  *keys     // nil: it has not answered yet
	asked time.Time // for its discovery document
}

// issuersMax bounds what is kept; a changed provider is another one.
const issuersMax = 64

// NewVerifier makes a verifier by a clock; nil is the real one.
func NewVerifier(now func() time.Time) *Verifier {
	if now == nil {
		now = time.Now
	}
	return &Verifier{now: now, known: map[identity.IdentityProviderConfigured]*issuer{}}
}

// IssuerOf gives who a token says has issued it, which proves nothing. False: it is no such token.
func IssuerOf(token string) (string, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(token) > TokenMax {
		return "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", false
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	return c.Issuer, json.Unmarshal(b, &c) == nil && c.Issuer != ""
}

// Verify tells who bears an ID token of a provider (O1, O4). The error is of kind Denied, or
// Unavailable when the provider's keys cannot be had; its text is for the audit.
func (v *Verifier) Verify(ctx context.Context, p *identity.Provider, token string) (
	Identity, error,
) {
	k, err := v.keysOf(ctx, p)
	if err != nil {
		return Identity{}, &domain.Error{
			Kind: domain.Unavailable, Ref: "idp/" + p.Name, Msg: "the identity provider does not answer",
			Err: err,
		}
	}
	var algs []string
	for _, a := range algorithms() {
		algs = append(algs, string(a))
	}
	check := oidc.NewVerifier(p.Issuer, k, &oidc.Config{
		ClientID: p.Settings.Client, SupportedSigningAlgs: algs, Now: v.now,
	})
	t, err := check.Verify(ctx, token)
	if err != nil {
		return Identity{}, denied(err)
	}
	if t.Subject == "" || len(t.Subject) > identity.SubjectMax {
		return Identity{}, denied(errors.New("no subject"))
	}
	claims := map[string]any{}
	if err := t.Claims(&claims); err != nil {
		return Identity{}, denied(err)
	}
	return Identity{
		t.Subject, nameIn(claims, p.Settings.Claim), groupsIn(claims, p.Groups), t.Expiry,
	}, nil
}

// denied refuses a token; the text has no part of it.
func denied(err error) error {
	var expired *oidc.TokenExpiredError
	if errors.As(err, &expired) {
		return &domain.Error{Kind: domain.Denied, Msg: "expired token"}
	}
	return &domain.Error{Kind: domain.Denied, Msg: "token of an identity provider", Err: err}
}

// nameIn reads the user's name from a claim.
func nameIn(claims map[string]any, claim string) string {
	name, _ := claims[claim].(string)
	if claim == "email" && claims["email_verified"] != true && claims["email_verified"] != "true" {
		name = "" // some providers write the truth as a text
	}
	return strings.ToLower(name)
}

// groupsIn gives those memberships of a list that claims tell: a claim is a text, or a list of
// texts. Anything else tells nothing, and neither does a claim that stands elsewhere.
func groupsIn(claims map[string]any, of []identity.GroupRole) []identity.Membership {
	var out []identity.Membership
	for _, g := range of {
		in := claims[g.Claim] == g.Group
		list, _ := claims[g.Claim].([]any)
		for _, x := range list {
			in = in || x == g.Group
		}
		if in && !slices.Contains(out, g.Membership) {
			out = append(out, g.Membership)
		}
	}
	return out
}

// keysOf gives the keys of a provider, whose discovery document is read once.
func (v *Verifier) keysOf(ctx context.Context, p *identity.Provider) (*keys, error) {
	v.mu.Lock()
	if len(v.known) >= issuersMax && v.known[p.IdentityProviderConfigured] == nil {
		clear(v.known)
	}
	i := v.known[p.IdentityProviderConfigured]
	if i == nil {
		i = &issuer{}
		v.known[p.IdentityProviderConfigured] = i
	}
	v.mu.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.keys != nil {
		return i.keys, nil
	}
	now := v.now()
	if !i.asked.IsZero() && now.Sub(i.asked) < refreshMin {
		return nil, errors.New("it did not a moment ago")
	}
	i.asked = now
	c, err := clientFor(p.Settings.CA)
	if err != nil {
		return nil, err
	}
	doc, err := discover(ctx, c, p.Issuer)
	if err != nil {
		return nil, err
	}
	i.keys = &keys{url: doc.Keys, client: c, now: v.now}
	return i.keys, nil
}

// document is what Discovery tells.
type document struct {
	Issuer string `json:"issuer"`
	Keys   string `json:"jwks_uri"`
	Device string `json:"device_authorization_endpoint"`
	Token  string `json:"token_endpoint"`
}

// discover reads an issuer's document. All of its addresses are as safe as the issuer's own.
func discover(ctx context.Context, c *http.Client, issuer string) (*document, error) {
	body, err := fetch(ctx, c, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, fmt.Errorf("the provider's document: %w", err)
	}
	if d.Issuer != issuer {
		return nil, fmt.Errorf("the document is that of the issuer %q", d.Issuer)
	}
	for _, u := range []string{d.Keys, d.Token, d.Device} {
		if u != "" && !identity.ValidIssuer(strings.SplitN(u, "?", 2)[0]) {
			return nil, fmt.Errorf("the document has the address %q", u)
		}
	}
	if d.Keys == "" {
		return nil, errors.New("the document names no keys")
	}
	return &d, nil
}

// clientFor makes the client for a provider that is trusted by these certificates, by the machine's
// where there are none. It follows no redirection: what a provider names, it names itself.
func clientFor(ca string) (*http.Client, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: answerTime, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if ca != "" {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, errors.New("the provider's authorities are no PEM certificates")
		}
	}
	return &http.Client{
		Transport: t, Timeout: answerTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}
