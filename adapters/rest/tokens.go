package rest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"weft/domain"
	"weft/domain/identity"
	"weft/projections/access"
)

// AccessTokenBody asks for a token of the API. A caller that draws the secret itself sends the
// SHA-256 of its 32 random bytes: then a retry is the same request. Else the node draws it and
// shows the token once.
type AccessTokenBody struct {
	User       string `json:"user,omitempty" doc:"whose; absent: the caller's own"`
	Role       string `json:"role" enum:"viewer,operator,tenant-admin,admin" doc:"the most it allows"`
	Tenant     string `json:"tenant,omitempty" doc:"and only there and below; absent: anywhere"`
	TTLSeconds int64  `json:"ttl_seconds" minimum:"1" maximum:"31622400"`
	Note       string `json:"note,omitempty" maxLength:"128" doc:"what it is for"`
	Hash       string `json:"secret_sha256,omitempty" doc:"of 32 random bytes; absent: drawn here"`
}

// AccessTokenDoc is a token of the API. Its secret is shown once if the node drew it.
type AccessTokenDoc struct {
	ID      string `json:"id"`
	User    string `json:"user"`
	Role    string `json:"role"`
	Tenant  string `json:"tenant,omitempty"`
	Expires string `json:"expires"`
	State   string `json:"state" enum:"valid,expired,revoked"`
	Note    string `json:"note,omitempty"`
	Token   string `json:"token,omitempty" doc:"shown once"`
}

func (s *Server) tokenRoutes() {
	register(s, readOwn, "GET", "/v1/tokens", "list-tokens", "List your tokens, without secrets", 200,
		s.tokens)
	register(s, operateOwn, "POST", "/v1/tokens", "issue-token",
		"Issue a token; it never allows more than its user's roles do", 201, s.issueToken)
	register(s, operateOwn, "DELETE", "/v1/tokens/{name}", "revoke-token",
		"Revoke a token by its id", 200, s.revokeToken)
}

// ownsToken tells whether the caller may see and revoke a token.
func ownsToken(p access.Principal, t identity.Token) bool {
	return p.Rights.May(identity.AdministerCluster, nil) || !p.User.IsZero() && p.User == t.Owner
}

func (s *Server) tokenDoc(t identity.Token) AccessTokenDoc {
	return tokenIn(s.b.Now(), t, s.cfg.Now())
}

// tokenIn is tokenDoc of a moment.
func tokenIn(v Views, t identity.Token, now time.Time) AccessTokenDoc {
	d := AccessTokenDoc{
		ID: t.Token.String(), User: t.Owner.String(), Role: t.Role, State: "valid", Note: t.Note.Text,
		Expires: t.Expires.UTC().Format(time.RFC3339), Tenant: grantIn(v, t.Scope()).Tenant,
	}
	if u, ok := v.Access.User(d.User); ok {
		d.User = u.Name.Text
	}
	switch {
	case t.Revoked:
		d.State = "revoked"
	case !now.Before(t.Expires):
		d.State = "expired"
	}
	return d
}

func (s *Server) tokens(ctx context.Context, in *Whole) (*Got[List[AccessTokenDoc]], error) {
	v, _, err := s.views(ctx, in.at())
	if err != nil {
		return nil, err
	}
	now, err := s.clock(ctx, v, in.AtPosition)
	if err != nil {
		return nil, err
	}
	out := &Got[List[AccessTokenDoc]]{Position: v.Position.String()}
	out.Body = List[AccessTokenDoc]{[]AccessTokenDoc{}, v.Position.String()}
	for _, t := range v.Access.Tokens() {
		if ownsToken(principalOf(ctx), t) {
			out.Body.Items = append(out.Body.Items, tokenIn(v, t, now))
		}
	}
	return out, nil
}

// issueToken issues a token for the caller, or for another user if the caller administers the
// cluster. A token's bearer issues nothing that reaches further, or lives longer, than that token.
func (s *Server) issueToken(ctx context.Context, in *struct {
	Change
	Body AccessTokenBody
},
) (*Changed[AccessTokenDoc], error) {
	b, p := in.Body, principalOf(ctx)
	id := commandID(ctx, in.Change)
	c := identity.IssueToken{
		Life: time.Duration(b.TTLSeconds) * time.Second, TokenIssued: identity.TokenIssued{
			Token: domain.AccessTokenID{UUID: id.ObjectID("token", 0)}, Owner: p.User, Role: b.Role,
			Note: domain.Personal{Text: b.Note},
		},
	}
	if b.User != "" {
		u, err := s.user(ctx, b.User)
		if err != nil {
			return nil, err
		}
		c.Owner = u.User
	}
	if b.Tenant != "" {
		t, err := s.visibleTenant(ctx, b.Tenant)
		if err != nil {
			return nil, err
		}
		c.Tenant = t.Tenant
	}
	if err := s.mayIssue(ctx, c); err != nil {
		return nil, err
	}
	if c.Owner == p.User && c.Life <= p.Session { // no longer than the provider's word lasts
		c.Provider, c.Groups = p.Provider, p.Groups
	}
	secret, err := secretFor(b.Hash, &c)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, id, c)
	if err != nil {
		return nil, err
	}
	out := &Changed[AccessTokenDoc]{Position: res.Position.String()}
	t, _ := s.b.Now().Access.Token(c.Token)
	out.Body = s.tokenDoc(t)
	if secret != nil {
		out.Body.Token = identity.TokenText(c.Token, secret)
	}
	return out, nil
}

// mayIssue refuses a token that would give its bearer more than the caller has.
func (s *Server) mayIssue(ctx context.Context, c identity.IssueToken) error {
	p := principalOf(ctx)
	switch {
	case p.Rights.May(identity.AdministerCluster, nil):
		if c.Owner.IsZero() {
			return domain.Errorf(domain.Invalid, "say whose it is: the node's own token has no user")
		}
		return nil
	case c.Owner != p.User:
		return lacking(ctx, identity.AdministerCluster)
	case !p.Provider.IsZero():
		if c.Life > p.Session {
			attemptOf(ctx).Reason = "longer than a sign-in lasts"
			return domain.Errorf(domain.Denied, "a sign-in lasts %s", p.Session)
		}
	case !p.Until.IsZero() && s.cfg.Now().Add(c.Life).After(p.Until):
		attemptOf(ctx).Reason = "longer than the token it comes by"
		return domain.Errorf(domain.Denied, "it would outlive the token you came with")
	}
	for _, scope := range p.Rights.Scopes {
		within := scope.Tenant.IsZero()
		for _, t := range s.b.Now().Access.Lineage(c.Tenant) {
			within = within || t == scope.Tenant
		}
		if !within || !scope.Role.Covers(identity.Role(c.Role)) {
			attemptOf(ctx).Reason = "wider than the token it comes by"
			return domain.Errorf(domain.Denied, "it would allow more than the token you came with")
		}
	}
	return nil
}

// secretFor draws the secret unless the caller did, and puts its hash into the command.
func secretFor(given string, c *identity.IssueToken) ([]byte, error) {
	if given != "" {
		hash, err := hex.DecodeString(given)
		if err != nil {
			return nil, domain.Errorf(domain.Invalid, "secret_sha256 is not hex")
		}
		c.Hash = hash
		return nil, nil
	}
	secret := make([]byte, identity.SecretSize)
	_, _ = rand.Read(secret) // never fails: it ends the program instead
	sum := sha256.Sum256(secret)
	c.Hash = sum[:]
	return secret, nil
}

func (s *Server) revokeToken(ctx context.Context, in *NamedChange) (
	*Changed[AccessTokenDoc], error,
) {
	id, err := domain.ParseUUID(in.Name)
	t, ok := s.b.Now().Access.Token(domain.AccessTokenID{UUID: id})
	if err != nil || !ok || !ownsToken(principalOf(ctx), t) {
		return nil, &domain.Error{
			Kind: domain.NotFound, Ref: "token/" + in.Name, Msg: "no such token",
			Remedy: "weft token list shows yours",
		}
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change),
		identity.RevokeToken{Token: t.Token})
	if err != nil {
		return nil, err
	}
	t, _ = s.b.Now().Access.Token(t.Token)
	return &Changed[AccessTokenDoc]{Position: res.Position.String(), Body: s.tokenDoc(t)}, nil
}
