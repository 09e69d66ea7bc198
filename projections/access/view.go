// Package access is the view of who may do what: users with their roles, tokens, and which tenant
// stands below which. Every node folds the same log, so every node answers alike.
//
// It also knows to which tenant a stream belongs, also after the object is gone: events are shown
// by that. A stream it knows no tenant of is the cluster's.
//
// It holds no secret, only hashes of secrets, and reads no clock: now is an argument. What the log
// holds sealed of persons it holds sealed too, and opens it for whoever asks, with the keys of that
// moment: a state of the past tells nothing that an erasure has taken away since.
package access

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"io"
	"maps"
	"slices"
	"strings"
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

// RevealWait bounds how long one call waits for keys; names whose keys it did not get stay sealed.
const RevealWait = 2 * time.Second

// actorPrefix begins how the log names a user; the id follows, which is no name.
const actorPrefix = "user/"

// Keys open what the log holds sealed of persons. vault.Vault has them.
type Keys interface {
	// Open gives the text that was sealed under a label; NotFound without a key.
	Open(ctx context.Context, user domain.UserID, label string, box []byte) (string, error)
	// Digest is the keyed hash that stands for a text of a kind.
	Digest(kind, text string) []byte
	// Forget removes a user's key from memory.
	Forget(user domain.UserID)
}

// noKeys open nothing.
type noKeys struct{}

// Open implements Keys.
func (noKeys) Open(context.Context, domain.UserID, string, []byte) (string, error) {
	return "", domain.Errorf(domain.NotFound, "there are no keys")
}

// Digest implements Keys.
func (noKeys) Digest(string, string) []byte { return nil }

// Forget implements Keys.
func (noKeys) Forget(domain.UserID) {}

// Principal is somebody who proved who they are, with what they may do at that moment. The zero
// Principal is nobody.
type Principal struct {
	User  domain.UserID
	Name  string               // of the bearer of the node's own administrator token, who is no user
	Token domain.AccessTokenID // by which they came; zero: another way
	// Provider vouched for them; zero: none did. Session is how long a token may live that is issued
	// on its word.
	Provider domain.IdentityProviderID
	Session  time.Duration
	// Groups are those of the provider's that the principal is in, as far as they give roles.
	Groups []identity.Membership
	Until  time.Time // when the way they came by ends; zero: not known to end
	Rights identity.Rights
}

// Known tells whether it is somebody.
func (p Principal) Known() bool { return p.Name != "" || !p.User.IsZero() }

// Actor is how the log names the principal: a user by id, which stays when the name goes, and which
// no other principal has. Idempotency counts per actor.
func (p Principal) Actor() string {
	if p.User.IsZero() {
		return actorPrefix + p.Name
	}
	return actorPrefix + p.User.String()
}

// Bootstrap is the bearer of a node's own administrator token: it may do everything.
func Bootstrap() Principal {
	return Principal{Name: identity.BootstrapName, Rights: identity.Rights{
		Grants: []identity.Grant{{Role: identity.Admin}},
	}}
}

// View folds users, tokens and tenants.
type View struct {
	keys Keys
	mu   struct {
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
	Names   map[domain.UserID]domain.Personal               // also of users who are deleted
	// Erased are the users whose keys are destroyed; true: older events hold the name in clear.
	Erased map[domain.UserID]bool
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view. Without keys all that is sealed stays so.
func New(keys Keys) *View {
	if keys == nil {
		keys = noKeys{}
	}
	v := &View{keys: keys}
	v.mu.state = state{
		map[domain.UserID]identity.User{},
		map[domain.AccessTokenID]identity.Token{},
		map[domain.IdentityProviderID]identity.Provider{},
		map[domain.TenantID]domain.TenantID{},
		map[domain.StreamID]domain.TenantID{},
		map[domain.UserID]domain.Personal{},
		map[domain.UserID]bool{},
	}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "access" }

// Version implements projections.View.
func (*View) Version() uint16 { return 6 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	if gone, ok := r.Event.(*identity.UserErased); ok {
		defer v.keys.Forget(gone.User) // once the view's own lock is free
	}
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
			if _, gone := v.mu.Erased[ev.Owner]; gone { // by a request that was under way
				v.void(ev.Token)
			}
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
	if gone, ok := ev.(*identity.UserErased); ok {
		v.erase(gone)
		if _, living := v.mu.Users[id]; !living {
			return
		}
	}
	u := identity.EvolveUser(v.mu.Users[id], ev)
	v.mu.Users[id] = u
	if made, ok := ev.(*identity.UserCreated); ok {
		v.mu.Names[id] = made.Name
	}
	if u.Deleted {
		delete(v.mu.Users, id)
	}
}

// erase forgets what the view holds of a user in words, and voids their tokens.
func (v *View) erase(ev *identity.UserErased) {
	v.mu.Erased[ev.User] = ev.Clear
	v.mu.Names[ev.User] = domain.Personal{}
	for id, t := range v.mu.Tokens {
		if t.Owner == ev.User {
			v.void(id)
		}
	}
}

// void ends a token whose owner is erased. It runs under the mutex.
func (v *View) void(id domain.AccessTokenID) {
	t := v.mu.Tokens[id]
	t.Revoked, t.Note = true, domain.Personal{}
	v.mu.Tokens[id] = t
}

func (v *View) provider(ev domain.Event) {
	switch ev := ev.(type) {
	case *identity.IdentityProviderConfigured:
		v.mu.Vouch[ev.Provider] = identity.EvolveProvider(identity.Provider{}, ev)
	case *identity.IdentityProviderChanged:
		v.mu.Vouch[ev.Provider] = identity.EvolveProvider(v.mu.Vouch[ev.Provider], ev)
	case *identity.GroupRoleGranted:
		v.mu.Vouch[ev.Provider] = identity.EvolveProvider(v.mu.Vouch[ev.Provider], ev)
	case *identity.GroupRoleRevoked:
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
	case *identity.UserErased:
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
	c := &View{keys: v.keys}
	c.mu.state = state{
		maps.Clone(v.mu.Users), maps.Clone(v.mu.Tokens), maps.Clone(v.mu.Vouch),
		maps.Clone(v.mu.Parents), maps.Clone(v.mu.Owners), maps.Clone(v.mu.Names),
		maps.Clone(v.mu.Erased),
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
	grants := v.grants(u, t.Provider, t.Groups)
	v.mu.RUnlock()
	hash := sha256.Sum256(secret)
	p := Principal{User: u.User, Token: id, Until: t.Expires}
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
	p.Rights = identity.Rights{Grants: grants}.Within(t.Scope())
	return p, nil
}

// grants gives a user's roles with those of groups at a provider, while that one vouches for the
// user. The caller holds the lock.
func (v *View) grants(
	u identity.User, by domain.IdentityProviderID, in []identity.Membership,
) []identity.Grant {
	p, vouches := v.mu.Vouch[by]
	if !vouches || u.Provider != by {
		return u.Grants
	}
	return append(slices.Clip(u.Grants), p.Roles(in)...)
}

// Named tells who a user is whose name somebody trusted vouches for. Its errors are as Bearer's.
func (v *View) Named(name string) (Principal, error) {
	u, ok := v.User(name)
	p := Principal{User: u.User}
	switch {
	case !ok:
		return Principal{}, denied("no such user")
	case u.Disabled:
		return p, denied("disabled user")
	}
	p.Rights = identity.Rights{Grants: u.Grants}
	return p, nil
}

// Vouched tells who a user is whom a provider knows by a subject and a name and lists in groups, as
// long as it says. Only a user that is linked to this provider is found. Its errors are as
// Bearer's.
func (v *View) Vouched(
	by identity.Provider, subject, name string, groups []identity.Membership, until time.Time,
) (Principal, error) {
	byName, bySubject := v.keys.Digest(identity.NameDigest, name),
		v.keys.Digest(identity.SubjectDigest, subject)
	v.mu.RLock()
	defer v.mu.RUnlock()
	if _, ok := v.mu.Vouch[by.Provider]; !ok {
		return Principal{}, denied("the identity provider was removed")
	}
	for _, u := range v.mu.Users {
		if u.Provider != by.Provider || u.BySubject() && !u.KnownAs(subject, bySubject) ||
			!u.BySubject() && !u.Called(name, byName) {
			continue
		}
		p := Principal{
			User: u.User, Provider: by.Provider, Session: by.Settings.Session, Groups: groups,
			Until: until,
		}
		if u.Disabled {
			return p, denied("disabled user")
		}
		p.Rights = identity.Rights{Grants: v.grants(u, by.Provider, groups)}
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

// Users lists the users by name, the names in clear.
func (v *View) Users() []identity.User {
	v.mu.RLock()
	list := slices.Collect(maps.Values(v.mu.Users))
	v.mu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), RevealWait)
	defer cancel()
	for i := range list {
		list[i].Name = domain.Personal{Text: v.name(ctx, list[i].User, list[i].Name)}
	}
	slices.SortFunc(list, func(a, b identity.User) int {
		return cmp.Or(cmp.Compare(a.Name.Text, b.Name.Text),
			cmp.Compare(a.User.String(), b.User.String()))
	})
	return list
}

// User finds a user by name or id; the name is given in clear.
func (v *View) User(ref string) (identity.User, bool) {
	tag := v.keys.Digest(identity.NameDigest, ref)
	find := func() (identity.User, bool) {
		v.mu.RLock()
		defer v.mu.RUnlock()
		for id, u := range v.mu.Users {
			if u.Called(ref, tag) || id.String() == ref || u.Erased && identity.ErasedName(id) == ref {
				return u, true
			}
		}
		return identity.User{}, false
	}
	u, ok := find()
	if ok {
		ctx, cancel := context.WithTimeout(context.Background(), RevealWait)
		defer cancel()
		u.Name = domain.Personal{Text: v.name(ctx, u.User, u.Name)}
	}
	return u, ok
}

// Actor shows by whom an event is as the log names them: a user by the name, where it can be read.
func (v *View) Actor(ctx context.Context, actor string) string {
	id, err := domain.ParseUUID(strings.TrimPrefix(actor, actorPrefix))
	if err != nil || !strings.HasPrefix(actor, actorPrefix) {
		return actor
	}
	user := domain.UserID{UUID: id}
	v.mu.RLock()
	name, ok := v.mu.Names[user]
	v.mu.RUnlock()
	if !ok {
		return actor
	}
	ctx, cancel := context.WithTimeout(ctx, RevealWait)
	defer cancel()
	return actorPrefix + v.name(ctx, user, name)
}

// Erased tells whether a user was erased, and whether older events hold the name in clear.
func (v *View) Erased(user domain.UserID) (erased, inClear bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	inClear, erased = v.mu.Erased[user]
	return erased, inClear
}

// ErasedUsers lists the users who were erased.
func (v *View) ErasedUsers() []domain.UserID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Collect(maps.Keys(v.mu.Erased))
}

// Was tells whether there is or ever was such a user.
func (v *View) Was(user domain.UserID) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, ok := v.mu.Names[user]
	return ok
}

// name opens a user's name.
func (v *View) name(ctx context.Context, user domain.UserID, p domain.Personal) string {
	if gone, _ := v.Erased(user); gone {
		return identity.ErasedName(user)
	}
	created := domain.SealLabel(identity.UserStream(user), identity.UserCreated{}.EventType(), "name")
	if text := v.text(ctx, user, created, p); text != "" {
		return text
	}
	return identity.SealedName(user)
}

// text opens personal text, empty where that cannot be done.
func (v *View) text(
	ctx context.Context, user domain.UserID, label string, p domain.Personal,
) string {
	if len(p.Box) == 0 {
		return p.Text
	}
	text, err := v.keys.Open(ctx, user, label, p.Box)
	if err != nil {
		return ""
	}
	return text
}

// Reveal opens personal text of an event that stands in a stream, for whoever may read the event.
// What cannot be opened is a name that says so; so is whatever an event says of an erased user,
// also in clear.
func (v *View) Reveal(
	ctx context.Context, h *domain.Header, user domain.UserID, field string, p domain.Personal,
) domain.Personal {
	if p.Text == "" && len(p.Box) == 0 {
		return p
	}
	if gone, _ := v.Erased(user); gone {
		return domain.Personal{Text: identity.ErasedName(user)}
	}
	ctx, cancel := context.WithTimeout(ctx, RevealWait)
	defer cancel()
	text := v.text(ctx, user, domain.SealLabel(h.Stream, h.Type, field), p)
	if text == "" {
		text = identity.SealedName(user)
	}
	return domain.Personal{Text: text}
}

// sourcePrefix begins an address that is sealed; the box follows in base64.
const sourcePrefix = "sealed:"

// SourceLabel is the label of the address that a request came from.
func SourceLabel(request string) string { return "source\x00" + request }

// SealedSource writes the box of an address as the header of an event holds it.
func SealedSource(box []byte) string {
	return sourcePrefix + base64.RawURLEncoding.EncodeToString(box)
}

// Source shows from where an actor's request came: an address that is sealed is opened, as a name
// is.
func (v *View) Source(ctx context.Context, actor, request, source string) string {
	text, sealed := strings.CutPrefix(source, sourcePrefix)
	id, err := domain.ParseUUID(strings.TrimPrefix(actor, actorPrefix))
	if !sealed || err != nil {
		return source
	}
	user := domain.UserID{UUID: id}
	if gone, _ := v.Erased(user); gone {
		return identity.ErasedName(user)
	}
	ctx, cancel := context.WithTimeout(ctx, RevealWait)
	defer cancel()
	box, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		text = v.text(ctx, user, SourceLabel(request), domain.Personal{Box: box})
	}
	if err != nil || text == "" {
		return identity.SealedName(user)
	}
	return text
}

// Tokens lists the tokens by id, their notes in clear.
func (v *View) Tokens() []identity.Token {
	v.mu.RLock()
	list := slices.Collect(maps.Values(v.mu.Tokens))
	v.mu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), RevealWait)
	defer cancel()
	for i := range list {
		list[i] = v.noted(ctx, list[i])
	}
	slices.SortFunc(list, func(a, b identity.Token) int {
		return cmp.Compare(a.Token.String(), b.Token.String())
	})
	return list
}

// noted opens a token's note.
func (v *View) noted(ctx context.Context, t identity.Token) identity.Token {
	issued := domain.SealLabel(identity.TokenStream(t.Token), t.EventType(), "note")
	t.Note = domain.Personal{Text: v.text(ctx, t.Owner, issued, t.Note)}
	return t
}

// Again looks at a principal anew: Denied once its token is revoked or its time is over, or its
// user is shut out. The bearer of a node's own token stays as it is.
func (v *View) Again(p Principal, now time.Time) (Principal, error) {
	if p.User.IsZero() {
		return p, nil
	}
	v.mu.RLock()
	t := v.mu.Tokens[p.Token]
	u, alive := v.mu.Users[p.User]
	_, vouches := v.mu.Vouch[p.Provider]
	by, in := p.Provider, p.Groups
	if by.IsZero() {
		by, in = t.Provider, t.Groups
	}
	grants := v.grants(u, by, in)
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
	p.Rights.Grants = grants
	return p, nil
}

// Token finds a token by id; its note is given in clear.
func (v *View) Token(id domain.AccessTokenID) (identity.Token, bool) {
	v.mu.RLock()
	t, ok := v.mu.Tokens[id]
	v.mu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), RevealWait)
	defer cancel()
	return v.noted(ctx, t), ok
}
