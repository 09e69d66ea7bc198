// Package access is the view of who may do what: users with their roles, tokens, and which tenant
// stands below which. Every node folds the same log, so every node answers alike.
//
// It also knows to which tenant a stream belongs, also after the object is gone: events are shown by
// that. A stream it knows no tenant of is the cluster's.
//
// It holds no secret, only hashes of secrets, and reads no clock: now is an argument.
package access

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/intent"
	"weft/domain/snapshot"
	"weft/domain/tenancy"
	"weft/domain/volume"
	"weft/projections"
)

// Principal is somebody who proved who they are, with what they may do at that moment.
type Principal struct {
	User  domain.UserID // zero: the bearer of the node's own administrator token
	Name  string
	Token domain.AccessTokenID // by which they came; zero: another way
	// Provider vouched for them; zero: none did. Session is how long a token may live that is issued
	// on its word.
	Provider domain.IdentityProviderID
	Session  time.Duration
	Until    time.Time // when the way they came by ends; zero: not known to end
	Rights   identity.Rights
}

// Actor is how the log names the principal.
func (p Principal) Actor() string { return "user/" + p.Name }

// Key is what no other principal has, whatever names are used again: idempotency counts per key.
func (p Principal) Key() string {
	if p.User.IsZero() {
		return p.Actor()
	}
	return "user/" + p.User.String()
}

// Bootstrap is the bearer of a node's own administrator token: it may do everything.
func Bootstrap() Principal {
	return Principal{Name: identity.BootstrapName, Rights: identity.Rights{
		Grants: []identity.Grant{{Role: identity.Admin}},
	}}
}

// View folds users, tokens and tenants.
type View struct {
	mu struct {
		sync.RWMutex
		state
	}
}

type state struct {
	Users   map[domain.UserID]identity.User // the living
	Tokens  map[domain.AccessTokenID]identity.Token
	Vouch   map[domain.IdentityProviderID]identity.Provider // those that are not removed
	Parents map[domain.TenantID]domain.TenantID             // of every tenant there is; zero: none
	Owners  map[domain.StreamID]domain.TenantID             // also of what is deleted
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view.
func New() *View {
	v := &View{}
	v.mu.state = state{
		map[domain.UserID]identity.User{},
		map[domain.AccessTokenID]identity.Token{},
		map[domain.IdentityProviderID]identity.Provider{},
		map[domain.TenantID]domain.TenantID{},
		map[domain.StreamID]domain.TenantID{},
	}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "access" }

// Version implements projections.View.
func (*View) Version() uint16 { return 3 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch r.Stream.Category() {
	case identity.UserCategory:
		v.user(r.Event)
	case identity.ProviderCategory:
		v.provider(r.Event)
	case identity.TokenCategory:
		if ev, ok := r.Event.(*identity.TokenIssued); ok {
			v.mu.Tokens[ev.Token] = identity.Token{TokenIssued: *ev}
		}
		if ev, ok := r.Event.(*identity.TokenRevoked); ok {
			v.mu.Tokens[ev.Token] = identity.EvolveToken(v.mu.Tokens[ev.Token], ev)
		}
	default:
		v.owned(r.Stream, r.Event)
	}
	return nil
}

func (v *View) user(ev domain.Event) {
	id, ok := userOf(ev)
	if !ok {
		return
	}
	u := identity.EvolveUser(v.mu.Users[id], ev)
	v.mu.Users[id] = u
	if u.Deleted {
		delete(v.mu.Users, id)
	}
}

func (v *View) provider(ev domain.Event) {
	switch ev := ev.(type) {
	case *identity.IdentityProviderConfigured:
		v.mu.Vouch[ev.Provider] = identity.EvolveProvider(identity.Provider{}, ev)
	case *identity.IdentityProviderChanged:
		v.mu.Vouch[ev.Provider] = identity.EvolveProvider(v.mu.Vouch[ev.Provider], ev)
	case *identity.IdentityProviderRemoved:
		delete(v.mu.Vouch, ev.Provider)
	}
}

// userOf tells whose event it is.
func userOf(ev domain.Event) (domain.UserID, bool) {
	switch ev := ev.(type) {
	case *identity.UserCreated:
		return ev.User, true
	case *identity.UserDisabled:
		return ev.User, true
	case *identity.UserEnabled:
		return ev.User, true
	case *identity.UserRoleGranted:
		return ev.User, true
	case *identity.UserRoleRevoked:
		return ev.User, true
	case *identity.UserLinked:
		return ev.User, true
	case *identity.UserUnlinked:
		return ev.User, true
	case *identity.UserDeleted:
		return ev.User, true
	}
	return domain.UserID{}, false
}

// owned notes the tenant that a stream belongs to.
func (v *View) owned(s domain.StreamID, ev domain.Event) {
	switch ev := ev.(type) {
	case *tenancy.TenantCreated:
		v.mu.Parents[ev.Tenant], v.mu.Owners[s] = ev.Parent, ev.Tenant
	case *tenancy.TenantDeleted:
		delete(v.mu.Parents, ev.Tenant)
	case *intent.TemplateCreated:
		v.mu.Owners[s] = ev.Tenant
	case *intent.AppInstanceCreated:
		v.mu.Owners[s] = ev.Tenant
	case *volume.VolumeCreated:
		v.mu.Owners[s] = ev.Tenant
	case *snapshot.SnapshotRequested:
		v.mu.Owners[s] = ev.Tenant
	}
}

// Digest implements projections.View.
func (v *View) Digest(w io.Writer) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return projections.WriteDigest(w, v.mu.state)
}

// Clone implements projections.Keeper. The slices inside are never changed in place.
func (v *View) Clone() projections.View {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c := &View{}
	c.mu.state = state{
		maps.Clone(v.mu.Users), maps.Clone(v.mu.Tokens), maps.Clone(v.mu.Vouch),
		maps.Clone(v.mu.Parents), maps.Clone(v.mu.Owners),
	}
	return c
}

// Bearer tells who bears a token, now. Its errors are of kind Denied, and their text is for the
// audit, not for the caller. The comparison of secrets takes the same time for all.
func (v *View) Bearer(text string, now time.Time) (Principal, error) {
	id, secret, err := identity.ParseToken(text)
	if err != nil {
		return Principal{}, denied("unknown token")
	}
	v.mu.RLock()
	t := v.mu.Tokens[id]
	u, alive := v.mu.Users[t.Owner]
	v.mu.RUnlock()
	hash := sha256.Sum256(secret)
	p := Principal{User: u.User, Name: u.Name, Token: id, Until: t.Expires}
	switch {
	case subtle.ConstantTimeCompare(hash[:], t.Hash) != 1:
		return Principal{}, denied("unknown token")
	case t.Revoked:
		return p, denied("revoked token")
	case !now.Before(t.Expires):
		return p, denied("expired token")
	case !alive:
		return Principal{}, denied("the token's user was deleted")
	case u.Disabled:
		return p, denied("disabled user")
	}
	p.Rights = identity.Rights{Grants: u.Grants}.Within(t.Scope())
	return p, nil
}

// Named tells who a user is whose name somebody trusted vouches for. Its errors are as Bearer's.
func (v *View) Named(name string) (Principal, error) {
	u, ok := v.User(name)
	p := Principal{User: u.User, Name: u.Name}
	switch {
	case !ok:
		return Principal{}, denied("no such user")
	case u.Disabled:
		return p, denied("disabled user")
	}
	p.Rights = identity.Rights{Grants: u.Grants}
	return p, nil
}

// Vouched tells who a user is whom a provider knows by a subject and a name, as long as it says.
// Only a user that is linked to this provider is found. Its errors are as Bearer's.
func (v *View) Vouched(
	by identity.Provider, subject, name string, until time.Time,
) (Principal, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if _, ok := v.mu.Vouch[by.Provider]; !ok {
		return Principal{}, denied("the identity provider was removed")
	}
	for _, u := range v.mu.Users {
		if u.Provider != by.Provider || u.Subject != "" && u.Subject != subject ||
			u.Subject == "" && (name == "" || u.Name != name) {
			continue
		}
		p := Principal{
			User: u.User, Name: u.Name, Provider: by.Provider, Session: by.Settings.Session, Until: until,
		}
		if u.Disabled {
			return p, denied("disabled user")
		}
		p.Rights = identity.Rights{Grants: u.Grants}
		return p, nil
	}
	return Principal{}, denied("no user is linked to who the identity provider names")
}

// Providers lists the identity providers by name.
func (v *View) Providers() []identity.Provider {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Vouch), func(a, b identity.Provider) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// Provider finds an identity provider by name or id.
func (v *View) Provider(ref string) (identity.Provider, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for id, p := range v.mu.Vouch {
		if p.Name == ref || id.String() == ref {
			return p, true
		}
	}
	return identity.Provider{}, false
}

// IssuedBy lists the identity providers of an issuer: one for each client.
func (v *View) IssuedBy(issuer string) []identity.Provider {
	return slices.DeleteFunc(v.Providers(), func(p identity.Provider) bool {
		return p.Issuer != issuer
	})
}

func denied(why string) error { return &domain.Error{Kind: domain.Denied, Msg: why} }

// Lineage gives a tenant with all those above it, nil for one that there is not.
func (v *View) Lineage(id domain.TenantID) []domain.TenantID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []domain.TenantID
	for !id.IsZero() && len(list) < tenancy.DepthMax {
		up, ok := v.mu.Parents[id]
		if !ok {
			return list
		}
		list = append(list, id)
		id = up
	}
	return list
}

// May tells whether a principal may do something in a tenant there is.
func (v *View) May(p Principal, verb identity.Verb, id domain.TenantID) bool {
	in := v.Lineage(id)
	return in != nil && p.Rights.May(verb, in)
}

// Sees tells whether a principal may see what happened to a stream. Streams of no tenant, and of
// tenants that are deleted, are the cluster's.
func (v *View) Sees(p Principal, s domain.StreamID) bool {
	if p.Rights.May(identity.Read, nil) {
		return true
	}
	v.mu.RLock()
	owner, ok := v.mu.Owners[s]
	v.mu.RUnlock()
	return ok && v.May(p, identity.Read, owner)
}

// Users lists the users by name.
func (v *View) Users() []identity.User {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Users), func(a, b identity.User) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// User finds a user by name or id.
func (v *View) User(ref string) (identity.User, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for id, u := range v.mu.Users {
		if u.Name == ref || id.String() == ref {
			return u, true
		}
	}
	return identity.User{}, false
}

// Tokens lists the tokens by id.
func (v *View) Tokens() []identity.Token {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Tokens), func(a, b identity.Token) int {
		return cmp.Compare(a.Token.String(), b.Token.String())
	})
}

// Again looks at a principal anew: Denied once its token is revoked or its time is over, or its user
// is shut out. The bearer of a node's own token stays as it is.
func (v *View) Again(p Principal, now time.Time) (Principal, error) {
	if p.User.IsZero() {
		return p, nil
	}
	v.mu.RLock()
	t := v.mu.Tokens[p.Token]
	u, alive := v.mu.Users[p.User]
	_, vouches := v.mu.Vouch[p.Provider]
	v.mu.RUnlock()
	switch {
	case !alive:
		return Principal{}, denied("the token's user was deleted")
	case !p.Provider.IsZero() && (!vouches || u.Provider != p.Provider):
		return p, denied("the identity provider vouches no more")
	case t.Revoked:
		return p, denied("revoked token")
	case !p.Until.IsZero() && !now.Before(p.Until):
		return p, denied("expired token")
	case u.Disabled:
		return p, denied("disabled user")
	}
	p.Rights.Grants = u.Grants
	return p, nil
}

// Token finds a token by id.
func (v *View) Token(id domain.AccessTokenID) (identity.Token, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	t, ok := v.mu.Tokens[id]
	return t, ok
}
