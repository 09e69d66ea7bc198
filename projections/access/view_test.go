package access

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/intent"
	"weft/domain/tenancy"
	"weft/eventstore/codec"
	"weft/eventstore/memory"
	"weft/eventstore/vault"
)

var (
	ann    = domain.UserID{UUID: domain.UUID{1}}
	acme   = domain.TenantID{UUID: domain.UUID{2}}
	below  = domain.TenantID{UUID: domain.UUID{3}}
	other  = domain.TenantID{UUID: domain.UUID{4}}
	token  = domain.AccessTokenID{UUID: domain.UUID{5}}
	app    = domain.AppID{UUID: domain.UUID{6}}
	secret = bytes.Repeat([]byte{7}, identity.SecretSize)
	noon   = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

// fold lets a view see events as the log gives them back.
func fold(t *testing.T, v *View, s domain.StreamID, list ...domain.Event) {
	t.Helper()
	c := codec.Catalog()
	c.SealWith(v.keys.(*vault.Vault))
	for _, ev := range list {
		schema, data, err := c.Encode(t.Context(), s, ev)
		if err != nil {
			t.Fatal(err)
		}
		h := domain.Header{Stream: s, Type: ev.EventType(), Schema: schema}
		recs, err := c.Decode(h, data)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Apply(recs[0]); err != nil {
			t.Fatal(err)
		}
	}
}

// empty is a view with keys of its own.
func empty(t *testing.T) *View {
	t.Helper()
	keys, err := vault.Open(t.Context(), &memory.Secrets{}, []byte("nodes"))
	if err != nil {
		t.Fatal(err)
	}
	return New(keys)
}

func person(text string) domain.Personal { return domain.Personal{Text: text} }

// created is the first event of a user, with the digest of the view's keys.
func created(v *View, id domain.UserID, name string) *identity.UserCreated {
	return &identity.UserCreated{
		User: id, Name: person(name), Tag: v.keys.Digest(identity.NameDigest, name),
	}
}

func world(t *testing.T) *View {
	t.Helper()
	v := empty(t)
	fold(t, v, tenancy.Stream(acme), &tenancy.TenantCreated{Tenant: acme})
	fold(t, v, tenancy.Stream(below), &tenancy.TenantCreated{Tenant: below, Parent: acme})
	fold(t, v, tenancy.Stream(other), &tenancy.TenantCreated{Tenant: other})
	hash := sha256.Sum256(secret)
	fold(t, v, identity.UserStream(ann), created(v, ann, "ann"),
		&identity.UserRoleGranted{User: ann, Role: "tenant-admin", Tenant: acme})
	fold(t, v, identity.TokenStream(token), &identity.TokenIssued{
		Token: token, Owner: ann, Hash: hash[:], Role: "operator", Expires: noon, Note: person("deploy"),
	})
	fold(t, v, intent.AppStream(app), &intent.AppInstanceCreated{App: app, Tenant: below})
	return v
}

// TestBearer proves that a token opens for its secret alone, until it expires, is revoked, or its
// owner is disabled or deleted, and then at once (U4); and that it allows what its owner's roles
// and its own scope both allow, now.
func TestBearer(t *testing.T) {
	text, before := identity.TokenText(token, secret), noon.Add(-1)
	v := world(t)
	p, err := v.Bearer(text, before)
	if err != nil || p.Actor() != "user/"+ann.String() ||
		v.Actor(t.Context(), p.Actor()) != "user/ann" {
		t.Fatal(p, err)
	}
	for _, x := range []struct {
		verb identity.Verb
		in   domain.TenantID
		want bool
	}{
		{identity.Operate, acme, true},
		{identity.Operate, below, true},
		{identity.AdministerTenant, acme, false}, // the token is an operator's
		{identity.Read, other, false},
		{identity.Read, domain.TenantID{UUID: domain.UUID{99}}, false},
	} {
		if got := v.May(p, x.verb, x.in); got != x.want {
			t.Errorf("%s in %s: %v", x.verb, x.in, got)
		}
	}
	wrong := identity.TokenText(token, bytes.Repeat([]byte{8}, identity.SecretSize))
	nobody := identity.TokenText(domain.AccessTokenID{UUID: domain.UUID{50}}, secret)
	for _, bad := range []string{"", "x", wrong, nobody} {
		if p, err := v.Bearer(bad, before); !domain.IsKind(err, domain.Denied) || p.Known() {
			t.Errorf("%q: %v %v", bad, p, err)
		}
	}
	if _, err := v.Bearer(text, noon); !domain.IsKind(err, domain.Denied) {
		t.Errorf("an expired token: %v", err)
	}
	user, tok := identity.UserStream(ann), identity.TokenStream(token)
	for name, x := range map[string]struct {
		s  domain.StreamID
		ev domain.Event
	}{
		"disabled": {user, &identity.UserDisabled{User: ann}},
		"deleted":  {user, &identity.UserDeleted{User: ann}},
		"revoked":  {tok, &identity.TokenRevoked{Token: token}},
	} {
		v := world(t)
		fold(t, v, x.s, x.ev)
		if p, err := v.Bearer(text, before); !domain.IsKind(err, domain.Denied) ||
			v.May(p, identity.Read, acme) {
			t.Errorf("%s: %v", name, err)
		}
	}
	fold(t, v, user, &identity.UserRoleRevoked{User: ann, Role: "tenant-admin", Tenant: acme})
	if p, err = v.Again(p, before); err != nil || v.May(p, identity.Read, acme) {
		t.Errorf("a role taken away is still held by who came before: %v", err)
	}
	if _, err := v.Again(p, noon); !domain.IsKind(err, domain.Denied) {
		t.Errorf("a token expired while it was in use: %v", err)
	}
	if p, err = v.Bearer(text, before); err != nil || v.May(p, identity.Read, acme) {
		t.Errorf("a role taken away is still held: %v", err)
	}
}

// TestSees proves that streams are seen by those who may read their tenant, and those of none by
// who may read the cluster; also when the tenant is gone.
func TestSees(t *testing.T) {
	v := world(t)
	p, err := v.Named("ann")
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[domain.StreamID]bool{
		intent.AppStream(app):                       true,
		tenancy.Stream(acme):                        true,
		tenancy.Stream(other):                       false,
		identity.UserStream(ann):                    false,
		tenancy.DirectoryStream(domain.ClusterID{}): false,
		"node-x": false,
	} {
		if got := v.Sees(p, s); got != want {
			t.Errorf("%s is seen: %v", s, got)
		}
		if !v.Sees(Bootstrap(), s) {
			t.Errorf("the administrator does not see %s", s)
		}
	}
	fold(t, v, tenancy.Stream(below), &tenancy.TenantDeleted{Tenant: below})
	if v.Sees(p, intent.AppStream(app)) {
		t.Error("what a deleted tenant left is seen")
	}
	if _, err := v.Named("bob"); !domain.IsKind(err, domain.Denied) {
		t.Errorf("an unknown user: %v", err)
	}
}

// TestCloneIsApart proves that a kept state does not change with the live one.
func TestCloneIsApart(t *testing.T) {
	v := world(t)
	var before, after bytes.Buffer
	c := v.Clone()
	if err := c.Digest(&before); err != nil {
		t.Fatal(err)
	}
	fold(t, v, identity.UserStream(ann), &identity.UserDeleted{User: ann})
	if err := c.Digest(&after); err != nil || !bytes.Equal(before.Bytes(), after.Bytes()) {
		t.Errorf("the clone changed: %v", err)
	}
}

// TestVouched proves that a provider is believed about the users that are linked to it alone, by
// subject or by name, and that what ends that is felt by who is under way (U8).
func TestVouched(t *testing.T) {
	v := empty(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ids := []domain.IdentityProviderID{{UUID: domain.UUID{1}}, {UUID: domain.UUID{2}}}
	for i, id := range ids {
		fold(t, v, identity.ProviderStream(id), &identity.IdentityProviderConfigured{
			Provider: id, Name: string(rune('a' + i)), Issuer: "https://i",
			Settings: identity.ProviderSettings{Session: time.Hour},
		})
	}
	user := domain.UserID{UUID: domain.UUID{7}}
	s := identity.UserStream(user)
	say := func(ev domain.Event) { fold(t, v, s, ev) }
	say(created(v, user, "ann"))
	say(&identity.UserRoleGranted{User: user, Role: "viewer"})
	ask := func(provider, subject, name string) bool {
		p, ok := v.Provider(provider)
		if !ok {
			return false
		}
		who, err := v.Vouched(p, subject, name, nil, now.Add(time.Minute))
		return err == nil && who.User == user && who.Provider == p.Provider && who.Session == time.Hour &&
			who.Until.Equal(now.Add(time.Minute)) && who.Rights.May(identity.Read, nil)
	}
	if ask("a", "", "ann") || ask("a", "s", "ann") {
		t.Error("nobody is linked, and somebody is believed")
	}
	say(&identity.UserLinked{User: user, Provider: ids[0]})
	if !ask("a", "s", "ann") || ask("b", "s", "ann") || ask("a", "s", "bob") || ask("a", "s", "") {
		t.Error("by name")
	}
	p, _ := v.Provider("a")
	who, err := v.Vouched(p, "s", "ann", nil, now.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	again := func(at time.Time) bool {
		_, err := v.Again(who, at)
		return err == nil
	}
	if !again(now) || again(now.Add(time.Minute)) {
		t.Error("its time")
	}
	say(&identity.UserLinked{
		User: user, Provider: ids[0], Subject: person("s"),
		Tag: v.keys.Digest(identity.SubjectDigest, "s"),
	})
	if !ask("a", "s", "other") || ask("a", "t", "ann") || ask("b", "s", "ann") || !again(now) {
		t.Error("by subject")
	}
	say(&identity.UserLinked{User: user, Provider: ids[1]})
	if again(now) {
		t.Error("goes on although another provider vouches now")
	}
	say(&identity.UserLinked{User: user, Provider: ids[0]})
	say(&identity.UserDisabled{User: user})
	if ask("a", "s", "ann") || again(now) {
		t.Error("disabled")
	}
	say(&identity.UserEnabled{User: user})
	if got := len(v.IssuedBy("https://i")); got != 2 || !ask("a", "s", "ann") {
		t.Errorf("%d providers of the issuer", got)
	}
	fold(t, v, identity.ProviderStream(ids[0]), &identity.IdentityProviderRemoved{Provider: ids[0]})
	if ask("a", "s", "ann") || again(now) {
		t.Error("removed")
	}
	if _, err := v.Vouched(p, "s", "ann", nil, now); err == nil {
		t.Error("a removed provider is believed")
	}
}

// TestGroups proves that groups give a linked user what was granted to them, by the provider's word
// and by a token that was issued on it, and that it ends at once: with the grant, the link, the
// provider, and for a token whose issue another provider's word led to (U8b).
func TestGroups(t *testing.T) {
	v := empty(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ids := []domain.IdentityProviderID{{UUID: domain.UUID{1}}, {UUID: domain.UUID{2}}}
	for i, id := range ids {
		fold(t, v, identity.ProviderStream(id), &identity.IdentityProviderConfigured{
			Provider: id, Name: string(rune('a' + i)), Issuer: "https://i",
		})
	}
	user := domain.UserID{UUID: domain.UUID{7}}
	say := func(ev domain.Event) { fold(t, v, identity.UserStream(user), ev) }
	rule := func(ev domain.Event) { fold(t, v, identity.ProviderStream(ids[0]), ev) }
	say(created(v, user, "ann"))
	say(&identity.UserLinked{User: user, Provider: ids[0]})
	ops := identity.Membership{Claim: "groups", Group: "ops"}
	secret := make([]byte, identity.SecretSize)
	hash := sha256.Sum256(secret)
	token := domain.AccessTokenID{UUID: domain.UUID{9}}
	fold(t, v, identity.TokenStream(token), &identity.TokenIssued{
		Token: token, Owner: user, Hash: hash[:], Role: "admin", Expires: now.Add(time.Hour),
		Provider: ids[0], Groups: []identity.Membership{ops},
	})
	reads := func(p Principal, err error) bool {
		return err == nil && p.Rights.May(identity.Read, nil)
	}
	var under, held Principal // way, since before
	all := func(what string, want bool) {
		t.Helper()
		p, _ := v.Provider("a")
		vouched, err := v.Vouched(p, "s", "ann", []identity.Membership{ops}, now.Add(time.Minute))
		if reads(vouched, err) != want {
			t.Errorf("%s: vouched for: %+v, %v", what, vouched, err)
		}
		borne, err := v.Bearer(identity.TokenText(token, secret), now)
		if reads(borne, err) != want {
			t.Errorf("%s: by the token: %+v, %v", what, borne, err)
		}
		if under.User.IsZero() {
			under, held = vouched, borne
		}
		for _, p := range []Principal{under, held} {
			if reads(v.Again(p, now)) != want {
				t.Errorf("%s: looked at anew: %+v", what, p)
			}
		}
	}
	granted := &identity.GroupRoleGranted{
		Provider: ids[0], Claim: "groups", Group: "ops", Role: "viewer",
	}
	all("no group has a role", false)
	rule(granted)
	all("granted", true)
	p, _ := v.Provider("a")
	if reads(v.Vouched(p, "s", "ann", nil, now)) {
		t.Error("a role without the group")
	}
	b, _ := v.Provider("b")
	if reads(v.Vouched(b, "s", "ann", []identity.Membership{ops}, now)) {
		t.Error("by a provider that the user is not linked to")
	}
	rule(&identity.GroupRoleRevoked{
		Provider: ids[0], Claim: "groups", Group: "ops", Role: "viewer",
	})
	all("revoked", false)
	rule(granted)
	say(&identity.UserLinked{User: user, Provider: ids[1]})
	all("linked elsewhere", false)
	say(&identity.UserLinked{User: user, Provider: ids[0]})
	all("linked again", true)
	rule(&identity.IdentityProviderRemoved{Provider: ids[0]})
	all("removed", false)
}

// TestNamesAreOpenedWhenRead proves that the view holds no name, subject or note in clear, and
// gives them to whoever reads it, with the keys of that moment: also of a user who was deleted, and
// sealed where the key is gone.
func TestNamesAreOpenedWhenRead(t *testing.T) {
	v := world(t)
	var state bytes.Buffer
	if err := v.Digest(&state); err != nil || strings.Contains(state.String(), `"ann"`) ||
		strings.Contains(state.String(), "deploy") {
		t.Errorf("%v: the view holds %s", err, &state)
	}
	for _, ref := range []string{"ann", ann.String()} {
		if u, ok := v.User(ref); !ok || u.User != ann || u.Name.Text != "ann" {
			t.Errorf("%s: %+v", ref, u)
		}
	}
	if u, ok := v.User("bob"); ok {
		t.Errorf("bob is %+v", u)
	}
	if l := v.Users(); len(l) != 1 || l[0].Name.Text != "ann" {
		t.Errorf("%+v", l)
	}
	tok, _ := v.Token(token)
	if l := v.Tokens(); len(l) != 1 || l[0].Note.Text != "deploy" || tok.Note.Text != "deploy" {
		t.Errorf("%+v", l)
	}
	actor := "user/" + ann.String()
	for given, want := range map[string]string{
		actor: "user/ann", "user/admin": "user/admin", "node/" + ann.String(): "node/" + ann.String(),
		"user/" + other.String(): "user/" + other.String(), "": "", ann.String(): ann.String(),
	} {
		if got := v.Actor(t.Context(), given); got != want {
			t.Errorf("%s is shown as %s", given, got)
		}
	}
	fold(t, v, identity.UserStream(ann), &identity.UserDeleted{User: ann})
	if got := v.Actor(t.Context(), actor); got != "user/ann" {
		t.Errorf("who was deleted is shown as %s", got)
	}
	v.keys.Forget(ann)
	v.keys = noKeys{}
	if got := v.Actor(t.Context(), actor); got != "user/"+identity.SealedName(ann) {
		t.Errorf("without a key: %s", got)
	}
}

// TestClearNamesOfOlderLogs proves that a user whom the log names in clear, as it did before there
// were keys, is found and shown like any other.
func TestClearNamesOfOlderLogs(t *testing.T) {
	v := empty(t)
	r := domain.Record{Header: domain.Header{Stream: identity.UserStream(ann), Type: "UserCreated"}}
	r.Event = &identity.UserCreated{User: ann, Name: person("ann")}
	if err := v.Apply(r); err != nil {
		t.Fatal(err)
	}
	if u, ok := v.User("ann"); !ok || u.Name.Text != "ann" {
		t.Errorf("%+v", u)
	}
	if got := v.Actor(t.Context(), "user/"+ann.String()); got != "user/ann" {
		t.Errorf("shown as %s", got)
	}
	if _, ok := v.User(""); ok {
		t.Error("no name is somebody's")
	}
}

// forgotten notes whose key is forgotten, and reads the view meanwhile, which must not wait.
type forgotten struct {
	Keys
	by *View
	of domain.UserID
}

// Forget implements Keys.
func (f *forgotten) Forget(user domain.UserID) {
	if f.by.mu.TryRLock() {
		f.of = user
		f.by.mu.RUnlock()
	}
	f.Keys.Forget(user)
}

// TestErased proves that an erased user is shown by a name that says so, in the present and in a
// state of the past, opens nothing by any token, whenever it was issued, and keeps no word in the
// view; and that an event which holds the name in clear is shown without it (U14).
func TestErased(t *testing.T) {
	v, text := world(t), identity.TokenText(token, secret)
	past, _ := v.Clone().(*View)
	p, err := v.Bearer(text, noon.Add(-1))
	if err != nil {
		t.Fatal(err)
	}
	box := v.mu.Names[ann]
	older := identity.TokenIssued{Token: domain.AccessTokenID{UUID: domain.UUID{8}}, Owner: ann}
	fold(t, v, identity.TokenStream(older.Token), &older)
	late := identity.TokenIssued{
		Token: domain.AccessTokenID{UUID: domain.UUID{9}}, Owner: ann, Note: person("late"),
	}
	schema, data, err := func() (uint16, []byte, error) {
		c := codec.Catalog()
		c.SealWith(v.keys.(*vault.Vault))
		return c.Encode(t.Context(), identity.TokenStream(late.Token), late)
	}()
	if err != nil {
		t.Fatal(err)
	}
	keys := &forgotten{Keys: v.keys, by: v}
	v.keys = keys
	gone := domain.Record{Event: &identity.UserErased{User: ann}}
	gone.Stream = identity.UserStream(ann)
	if err := v.Apply(gone); err != nil || keys.of != ann {
		t.Errorf("%v; the key of %v is forgotten", err, keys.of)
	}
	v.keys = keys.Keys
	recs, err := codec.Catalog().Decode(domain.Header{
		Type: "TokenIssued", Schema: schema, Stream: identity.TokenStream(late.Token),
	}, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Apply(recs[0]); err != nil {
		t.Fatal(err)
	}
	name := identity.ErasedName(ann)
	for _, ref := range []string{name, ann.String()} {
		if u, ok := v.User(ref); !ok || u.Name.Text != name || !u.Erased || len(u.Grants) > 0 {
			t.Errorf("%s: %+v", ref, u)
		}
	}
	if u, ok := v.User("ann"); ok {
		t.Errorf("ann is %+v", u)
	}
	if got := v.Actor(t.Context(), "user/"+ann.String()); got != "user/"+name {
		t.Errorf("shown as %s", got)
	}
	h := &domain.Header{Type: "UserCreated", Stream: identity.UserStream(ann)}
	for _, said := range []domain.Personal{person("ann"), box} {
		if got := v.Reveal(t.Context(), h, ann, "name", said); got.Text != name {
			t.Errorf("an event of the past shows %q", got.Text)
		}
	}
	if _, err := v.Bearer(text, noon.Add(-1)); !domain.IsKind(err, domain.Denied) {
		t.Errorf("the token opens: %v", err)
	}
	if _, err := v.Again(p, noon.Add(-1)); !domain.IsKind(err, domain.Denied) {
		t.Errorf("who was inside stays: %v", err)
	}
	for _, x := range v.Tokens() {
		if !x.Revoked || x.Note.Text != "" {
			t.Errorf("%+v", x)
		}
	}
	for _, x := range v.mu.Tokens {
		if len(x.Note.Box) > 0 || x.Note.Text != "" {
			t.Errorf("the view keeps %+v", x.Note)
		}
	}
	if p := v.mu.Names[ann]; p.Text != "" || len(p.Box) > 0 {
		t.Errorf("the view keeps the name: %+v", p)
	}
	if erased, inClear := v.Erased(ann); !erased || inClear || !v.Was(ann) {
		t.Error("nobody was erased")
	}
	// The past has no keys of its own.
	if err := v.keys.(*vault.Vault).Destroy(t.Context(), ann); err != nil {
		t.Fatal(err)
	}
	if u, _ := past.User(ann.String()); u.Name.Text != identity.SealedName(ann) {
		t.Errorf("the past tells %q", u.Name.Text)
	}
	// One who was deleted before does not come back into the list.
	w := world(t)
	fold(t, w, identity.UserStream(ann), &identity.UserDeleted{User: ann},
		&identity.UserErased{User: ann, Clear: true})
	if l := w.Users(); len(l) != 0 {
		t.Errorf("%+v", l)
	}
	if got := w.Actor(t.Context(), "user/"+ann.String()); got != "user/"+name {
		t.Errorf("shown as %s", got)
	}
}
