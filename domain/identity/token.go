package identity

import (
	"bytes"
	"encoding/hex"
	"strings"
	"time"

	"weft/domain"
)

// TokenCategory of a token's stream.
const TokenCategory = "token"

// Limits of tokens.
const (
	// SecretSize is the length of a token's secret in bytes; all of them are random.
	SecretSize = 32
	// TokenLifeMax bounds for how long a token is issued.
	TokenLifeMax = 366 * 24 * time.Hour
	// TokenNoteMax bounds what a token says it is for, bytes.
	TokenNoteMax = 128
)

// tokenPrefix begins every token, so that a scanner for leaked secrets knows one.
const tokenPrefix = "weftu-"

// TokenStream gives a token's stream.
func TokenStream(id domain.AccessTokenID) domain.StreamID {
	return domain.StreamOf(TokenCategory, id.UUID)
}

// TokenIssued says that whoever knows the token's secret may act as its owner, within the scope and
// until it expires. The secret stands nowhere.
type TokenIssued struct {
	Token   domain.AccessTokenID `msgpack:"token,omitempty"`
	Owner   domain.UserID        `msgpack:"owner,omitempty"`
	Hash    []byte               `msgpack:"hash,omitempty"` // SHA-256 of the secret
	Role    string               `msgpack:"role,omitempty"` // not more than this role may
	Tenant  domain.TenantID      `msgpack:"tenant,omitempty"`
	Expires time.Time            `msgpack:"expires,omitempty"`
	Note    domain.Personal      `msgpack:"note,omitempty"`
	// Provider vouched for the owner when it was issued, and listed them in Groups, as far as those
	// gave roles then. They count as long as the owner is linked to it, for what they give now.
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
	Groups   []Membership              `msgpack:"groups,omitempty"`
}

// AboutUser implements domain.AboutUser.
func (t TokenIssued) AboutUser() domain.UserID { return t.Owner }

// TokenRevoked says that a token opens nothing any more.
type TokenRevoked struct {
	Token domain.AccessTokenID `msgpack:"token,omitempty"`
}

// EventType implements domain.Event.
func (TokenIssued) EventType() string { return "TokenIssued" }

// EventType implements domain.Event.
func (TokenRevoked) EventType() string { return "TokenRevoked" }

// IssueToken makes a token known by the hash of its secret. It expires after its life, counted from
// the request's stamp, so that a retry is the same command.
type IssueToken struct {
	TokenIssued
	Life time.Duration
}

// RevokeToken takes a token back. One that is revoked already is no error.
type RevokeToken struct{ Token domain.AccessTokenID }

// CommandType implements domain.Command.
func (IssueToken) CommandType() string { return "IssueToken" }

// Stream implements domain.Command.
func (c IssueToken) Stream() domain.StreamID { return TokenStream(c.Token) }

// CommandType implements domain.Command.
func (RevokeToken) CommandType() string { return "RevokeToken" }

// Stream implements domain.Command.
func (c RevokeToken) Stream() domain.StreamID { return TokenStream(c.Token) }

// Token is a token folded.
type Token struct {
	TokenIssued
	Revoked bool
}

// Scope is what the token narrows its owner's rights to.
func (t TokenIssued) Scope() Grant { return Grant{Role(t.Role), t.Tenant} }

// TokenAggregate is the token for the executor.
func TokenAggregate() domain.Aggregate[Token] {
	return domain.Aggregate[Token]{Category: TokenCategory, Evolve: EvolveToken, Decide: DecideToken}
}

// EvolveToken folds one event.
func EvolveToken(t Token, ev domain.Event) Token {
	switch ev := ev.(type) {
	case *TokenIssued:
		t.TokenIssued = *ev
	case *TokenRevoked:
		t.Revoked = true
	}
	return t
}

// DecideToken judges one command.
func DecideToken(t Token, r domain.Request) ([]domain.Event, error) {
	switch c := r.Command.(type) {
	case IssueToken:
		return t.issue(c, r.Stamped)
	case RevokeToken:
		switch {
		case t.Token.IsZero():
			return nil, domain.Errorf(domain.NotFound, "no such token")
		case t.Revoked:
			return nil, nil
		}
		return []domain.Event{&TokenRevoked{t.Token}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "token: unknown command %T", r.Command)
}

func (t Token) issue(c IssueToken, now time.Time) ([]domain.Event, error) {
	if !t.Token.IsZero() {
		return nil, domain.Errorf(domain.Exists, "token %s exists", c.Token)
	}
	var k domain.Checker
	k.Check(!c.Owner.IsZero(), "user", "missing")
	k.Check(len(c.Hash) == 32 && !bytes.Equal(c.Hash, make([]byte, 32)), "secret_sha256",
		"no SHA-256")
	k.Check(c.Life >= time.Second && c.Life <= TokenLifeMax, "ttl", "not from 1s to %s", TokenLifeMax)
	k.Check(len(c.Groups) <= GroupRolesMax, "groups", "over %d", GroupRolesMax)
	k.Check(len(c.Note.Text) <= TokenNoteMax, "note", "over %d bytes", TokenNoteMax)
	c.Scope().check(&k, "role")
	if err := k.Err("identity.IssueToken", ""); err != nil {
		return nil, err
	}
	ev := c.TokenIssued
	ev.Expires = now.Add(c.Life).UTC()
	return []domain.Event{&ev}, nil
}

// TokenText writes a token as its bearer keeps it: the id, which is no secret, and the secret.
func TokenText(id domain.AccessTokenID, secret []byte) string {
	return tokenPrefix + hex.EncodeToString(id.UUID[:]) + "-" + hex.EncodeToString(secret)
}

// ParseToken reads a token. What has another form is of kind Invalid; the error says nothing of it.
func ParseToken(text string) (id domain.AccessTokenID, secret []byte, err error) {
	bad := domain.Errorf(domain.Invalid, "this is no token of a user")
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	name, hidden, cut := strings.Cut(rest, "-")
	if !ok || !cut || len(name) != 2*len(id.UUID) || len(hidden) != 2*SecretSize {
		return id, nil, bad
	}
	if _, err := hex.Decode(id.UUID[:], []byte(name)); err != nil {
		return domain.AccessTokenID{}, nil, bad
	}
	if secret, err = hex.DecodeString(hidden); err != nil {
		return domain.AccessTokenID{}, nil, bad
	}
	return id, secret, nil
}
