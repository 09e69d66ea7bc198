package identity

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/domain"
	"weft/domain/tenancy"
)

// TestRoleTable proves the whole of who may do what: each role with each verb, granted for the
// cluster, for a tenant above, for the tenant, beside it, and not at all (U1).
func TestRoleTable(t *testing.T) {
	top, mid, low, side := tenant(1), tenant(2), tenant(3), tenant(4)
	lineage := []domain.TenantID{low, mid, top}
	may := map[Role]string{Viewer: "R", Operator: "RO", TenantAdmin: "ROT", Admin: "ROTC"}
	for role, verbs := range may {
		for i, v := range []Verb{Read, Operate, AdministerTenant, AdministerCluster} {
			want := i < len(verbs)
			for _, at := range []domain.TenantID{{}, top, mid, low} {
				r := Rights{Grants: []Grant{{role, at}}}
				if got := r.May(v, lineage); got != want {
					t.Errorf("%s at %v may %s below: %v", role, at, v, got)
				}
				if got := r.May(v, nil); got != (want && at.IsZero()) {
					t.Errorf("%s at %v may %s in the cluster: %v", role, at, v, got)
				}
			}
			for _, at := range []domain.TenantID{side, low} {
				if (Rights{Grants: []Grant{{role, at}}}).May(v, lineage[1:]) {
					t.Errorf("%s of another tenant may %s", role, v)
				}
			}
		}
		if (Rights{Grants: []Grant{{Role: role}}}).May(None, lineage) {
			t.Errorf("%s may what no verb names", role)
		}
	}
	if (Rights{}).May(Read, lineage) || (Rights{Grants: []Grant{{Role: "root"}}}).May(Read, nil) {
		t.Error("without a known role something is allowed")
	}
}

func tenant(n byte) domain.TenantID { return domain.TenantID{UUID: domain.UUID{n}} }

// TestScopeOnlyNarrows proves that whatever scopes are laid over rights, nothing is allowed that
// the rights, or any one scope, do not allow (U2).
func TestScopeOnlyNarrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		grant := rapid.Custom(func(t *rapid.T) Grant {
			return Grant{
				rapid.SampledFrom(Roles()).Draw(t, "role"),
				tenant(rapid.ByteRange(0, 4).Draw(t, "tenant")),
			}
		})
		bare := Rights{Grants: rapid.SliceOfN(grant, 0, 3).Draw(t, "grants")}
		scoped := bare
		for _, s := range rapid.SliceOfN(grant, 0, 2).Draw(t, "scopes") {
			scoped = scoped.Within(s)
		}
		lineage := rapid.SampledFrom([][]domain.TenantID{
			nil, {tenant(1)}, {tenant(2), tenant(1)}, {tenant(3), tenant(2), tenant(1)}, {tenant(4)},
		}).Draw(t, "lineage")
		v := rapid.SampledFrom([]Verb{
			None, Read, Operate, AdministerTenant, AdministerCluster,
		}).Draw(t, "verb")
		if !scoped.May(v, lineage) {
			return
		}
		if !bare.May(v, lineage) {
			t.Fatalf("a scope added %s", v)
		}
		for _, s := range scoped.Scopes {
			if !(Rights{Grants: []Grant{s}}).May(v, lineage) {
				t.Fatalf("%s is outside scope %v", v, s)
			}
		}
	})
}

// TestUserLife proves what each command does to a user, that repeating one changes nothing, and
// that nothing brings a deleted user back (U4, U5).
func TestUserLife(t *testing.T) {
	id := domain.UserID{UUID: domain.UUID{7}}
	create := CreateUser{User: id, Name: domain.Personal{Text: "ann"}, Tag: []byte{1}}
	var u User
	do := func(c domain.Command) (int, domain.Kind) {
		evs, err := DecideUser(u, domain.Request{Command: c})
		for _, ev := range evs {
			u = EvolveUser(u, ev)
		}
		if err != nil {
			return 0, domain.KindOf(err)
		}
		return len(evs), 0
	}
	for i, x := range []struct {
		c    domain.Command
		n    int
		kind domain.Kind
	}{
		{EnableUser{User: id}, 0, domain.NotFound},
		{create, 1, 0},
		{create, 0, domain.Exists},
		{GrantRole{User: id, Grant: Grant{Operator, tenant(1)}}, 1, 0},
		{GrantRole{User: id, Grant: Grant{Operator, tenant(1)}}, 0, 0},
		{GrantRole{User: id, Grant: Grant{Admin, tenant(1)}}, 0, domain.Invalid},
		{GrantRole{User: id, Grant: Grant{"root", tenant(1)}}, 0, domain.Invalid},
		{GrantRole{User: id, Grant: Grant{Viewer, tenant(1)}, Revoke: true}, 0, 0},
		{GrantRole{User: id, Grant: Grant{Operator, tenant(1)}, Revoke: true}, 1, 0},
		{EnableUser{User: id, Disable: true}, 1, 0},
		{EnableUser{User: id, Disable: true}, 0, 0},
		{EnableUser{User: id}, 1, 0},
		{DeleteUser{User: id}, 1, 0},
		{DeleteUser{User: id}, 0, 0},
		{EnableUser{User: id}, 0, domain.NotFound},
		{GrantRole{User: id, Grant: Grant{Role: Admin}}, 0, domain.NotFound},
		{create, 0, domain.Exists},
	} {
		if n, kind := do(x.c); n != x.n || kind != x.kind {
			t.Errorf("step %d %#v: %d events, %s", i, x.c, n, kind)
		}
	}
	named := func(name string) CreateUser {
		return CreateUser{Name: domain.Personal{Text: name}, Tag: []byte{1}}
	}
	for _, name := range []string{
		"", "admin", "Ann", "a/b", "1a", "a b", "a\n", ErasedName(id), SealedName(id),
	} {
		if named(name).Validate() == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
	if err := named("ann.b@example.org").Validate(); err != nil {
		t.Error(err)
	}
	if (CreateUser{Name: domain.Personal{Text: "ann"}}).Validate() == nil {
		t.Error("a name without a digest is taken: nobody would find it again")
	}
}

// TestTokenLife proves the limits of a token's issue, that it is issued and revoked once, and that
// its text is read back exactly and in no other form.
func TestTokenLife(t *testing.T) {
	id := domain.AccessTokenID{UUID: domain.UUID{9}}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	good := IssueToken{Life: time.Hour, TokenIssued: TokenIssued{
		Token: id, Owner: domain.UserID{UUID: domain.UUID{7}}, Hash: bytes.Repeat([]byte{1}, 32),
		Role: "viewer",
	}}
	for name, spoil := range map[string]func(*IssueToken){
		"owner":    func(c *IssueToken) { c.Owner = domain.UserID{} },
		"hash":     func(c *IssueToken) { c.Hash = c.Hash[:31] },
		"no hash":  func(c *IssueToken) { c.Hash = make([]byte, 32) },
		"life":     func(c *IssueToken) { c.Life = TokenLifeMax + 1 },
		"no life":  func(c *IssueToken) { c.Life = 0 },
		"role":     func(c *IssueToken) { c.Role = "" },
		"admin at": func(c *IssueToken) { c.Role, c.Tenant = "admin", tenant(1) },
	} {
		c := good
		spoil(&c)
		_, err := DecideToken(Token{}, domain.Request{Command: c, Stamped: now})
		if !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	evs, err := DecideToken(Token{}, domain.Request{Command: good, Stamped: now})
	if err != nil || len(evs) != 1 {
		t.Fatal(evs, err)
	}
	tok := EvolveToken(Token{}, evs[0])
	if !tok.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("expires %s", tok.Expires)
	}
	evs, err = DecideToken(tok, domain.Request{Command: RevokeToken{id}})
	if err != nil || len(evs) != 1 {
		t.Fatal(evs, err)
	}
	tok = EvolveToken(tok, evs[0])
	evs, err = DecideToken(tok, domain.Request{Command: RevokeToken{id}})
	if len(evs) != 0 || err != nil {
		t.Errorf("revoked twice: %v %v", evs, err)
	}
	secret := bytes.Repeat([]byte{0xab}, SecretSize)
	text := TokenText(id, secret)
	got, s, err := ParseToken(text)
	if err != nil || got != id || !bytes.Equal(s, secret) {
		t.Errorf("%v %x %v", got, s, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", text[:len(text)-1], "weftu--", text + "-"} {
		if _, _, err := ParseToken(bad); err == nil {
			t.Errorf("%q is read as a token", bad)
		}
	}
}

// TestErase proves that an erased user keeps nothing but the id, does nothing any more, gives the
// name back and stays erased, deleted or not; and that the event says whether older ones hold the
// name in clear (U14).
func TestErase(t *testing.T) {
	id := domain.UserID{UUID: domain.UUID{7}}
	for name, x := range map[string]struct {
		before []domain.Event
		clear  bool
	}{
		"sealed": {[]domain.Event{
			&UserCreated{User: id, Name: domain.Personal{Box: []byte{1}}, Tag: []byte{2}},
			&UserRoleGranted{User: id, Role: "admin"},
			&UserLinked{User: id, Provider: domain.IdentityProviderID{UUID: domain.UUID{1}}},
		}, false},
		"older": {[]domain.Event{&UserCreated{User: id, Name: domain.Personal{Text: "ann"}}}, true},
		"older link": {[]domain.Event{
			&UserCreated{User: id}, &UserLinked{User: id, Subject: domain.Personal{Text: "s"}},
		}, true},
		"deleted": {[]domain.Event{&UserCreated{User: id}, &UserDeleted{User: id}}, false},
	} {
		var u User
		for _, ev := range x.before {
			u = EvolveUser(u, ev)
		}
		c, deleted := EraseUser{User: id}, u.Deleted
		evs, err := DecideUser(u, domain.Request{Command: c})
		if err != nil || len(evs) != 1 || *evs[0].(*UserErased) != (UserErased{id, x.clear}) {
			t.Errorf("%s: %v, %v", name, evs, err)
			continue
		}
		u = EvolveUser(u, evs[0])
		want := User{User: id, Deleted: deleted, Disabled: true, Erased: true}
		if !reflect.DeepEqual(u, want) {
			t.Errorf("%s: what is left is %+v", name, u)
		}
		if evs, err := DecideUser(u, domain.Request{Command: c}); len(evs) != 0 || err != nil {
			t.Errorf("%s: erased twice: %v, %v", name, evs, err)
		}
		kind := domain.Conflict
		if deleted {
			kind = domain.NotFound
		}
		for _, c := range []domain.Command{
			EnableUser{User: id},
			GrantRole{User: id, Grant: Grant{Role: Admin}},
			UnlinkUser{id},
			LinkUser{UserLinked{User: id}},
		} {
			if evs, err := DecideUser(u, domain.Request{Command: c}); !domain.IsKind(err, kind) {
				t.Errorf("%s: %T: %v, %v", name, c, evs, err)
			}
		}
		if _, err := DecideUser(u, domain.Request{Command: DeleteUser{User: id}}); err != nil {
			t.Errorf("%s: cannot be deleted: %v", name, err)
		}
	}
	if _, err := DecideUser(User{}, domain.Request{Command: EraseUser{User: id}}); !domain.IsKind(err,
		domain.NotFound) {
		t.Errorf("somebody who never was: %v", err)
	}
	if l := (EraseUser{User: id}).After(); len(l) != 1 || l[0].(tenancy.FreeName).Object != id.UUID {
		t.Errorf("the name is not given back: %v", l)
	}
}
