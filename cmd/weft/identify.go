package main

import (
	"context"
	"time"

	"weft/adapters/client"
	"weft/adapters/oidc"
	"weft/adapters/rest"
	"weft/domain"
	"weft/projections/access"
)

// Identify implements rest.Backend: the node's own administrator, a user by a token of theirs, or a
// user by the word of an identity provider.
func (b *backend) Identify(ctx context.Context, token string) (access.Principal, error) {
	if b.dir.Admin(token) {
		return access.Bootstrap(), nil
	}
	if issuer, ok := oidc.IssuerOf(token); ok {
		return b.vouched(ctx, issuer, token)
	}
	return b.views.access.Bearer(token, time.Now())
}

// vouched asks the identity providers of an issuer, one for each client, who bears a token.
func (b *backend) vouched(ctx context.Context, issuer, token string) (access.Principal, error) {
	var err error = domain.Errorf(domain.Denied, "no identity provider has this issuer")
	for _, p := range b.views.access.IssuedBy(issuer) {
		var who oidc.Identity
		if who, err = b.idps.Verify(ctx, &p, token); err == nil {
			return b.views.access.Vouched(p, who.Subject, who.Name, who.Groups, who.Expires)
		}
	}
	return access.Principal{}, err
}

// signIn gets an ID token for the command line.
func signIn(ctx context.Context, p client.Provider, show func(address, code, complete string)) (
	string, error,
) {
	s := oidc.SignIn{Issuer: p.Issuer, Client: p.ClientID, CA: p.CA, Show: show}
	return s.Run(ctx)
}

func newVerifier() *oidc.Verifier { return oidc.NewVerifier(nil) }

// Refused implements rest.Backend.
func (b *backend) Refused(a rest.Attempt) { b.refused.note(a) }

// Refusals implements rest.Backend.
func (b *backend) Refusals(limit int) ([]rest.Attempt, error) { return b.refused.newest(limit) }
