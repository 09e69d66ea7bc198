package identity

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/domain"
)

// TestProviderLife proves what each command does to an identity provider, that repeating one
// changes nothing, that its issuer never changes, and that nothing brings a removed one back (U8).
func TestProviderLife(t *testing.T) {
	id := domain.IdentityProviderID{UUID: domain.UUID{3}}
	settings := ProviderSettings{Client: "weft", Claim: "email", Session: time.Hour}
	first := ConfigureProvider{IdentityProviderConfigured: IdentityProviderConfigured{
		Provider: id, Name: "corp", Issuer: "https://id.example.org/a", Settings: settings,
	}}
	settings.Session = 2 * time.Hour
	change := ChangeProvider{IdentityProviderChanged{id, settings}}
	var p Provider
	for i, x := range []struct {
		c    domain.Command
		n    int
		kind domain.Kind
	}{
		{change, 0, domain.NotFound},
		{RemoveProvider{Provider: id}, 0, domain.NotFound},
		{first, 1, 0},
		{first, 0, domain.Exists},
		{change, 1, 0},
		{change, 0, 0},
		{RemoveProvider{Provider: id}, 1, 0},
		{RemoveProvider{Provider: id}, 0, 0},
		{change, 0, domain.NotFound},
		{first, 0, domain.Exists},
	} {
		evs, err := DecideProvider(p, domain.Request{Command: x.c})
		for _, ev := range evs {
			p = EvolveProvider(p, ev)
		}
		kind := domain.Kind(0)
		if err != nil {
			kind = domain.KindOf(err)
		}
		if len(evs) != x.n || kind != x.kind {
			t.Errorf("step %d %T: %d events, %v", i, x.c, len(evs), err)
		}
	}
	if p.Issuer != first.Issuer || p.Settings != settings || !p.Removed {
		t.Errorf("%+v", p)
	}
}

// TestProviderLimits proves what is refused of a provider, each alone.
func TestProviderLimits(t *testing.T) {
	good := func() ConfigureProvider {
		return ConfigureProvider{IdentityProviderConfigured: IdentityProviderConfigured{
			Name: "corp", Issuer: "https://id.example.org",
			Settings: ProviderSettings{Client: "weft", Claim: "email", Session: time.Hour},
		}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(c *ConfigureProvider){
		"no name":       func(c *ConfigureProvider) { c.Name = "" },
		"long name":     func(c *ConfigureProvider) { c.Name = strings.Repeat("n", ProviderNameMax+1) },
		"issuer":        func(c *ConfigureProvider) { c.Issuer = "id.example.org" },
		"no client":     func(c *ConfigureProvider) { c.Settings.Client = "" },
		"no claim":      func(c *ConfigureProvider) { c.Settings.Claim = "" },
		"long claim":    func(c *ConfigureProvider) { c.Settings.Claim = strings.Repeat("c", 513) },
		"authorities":   func(c *ConfigureProvider) { c.Settings.CA = strings.Repeat("c", 65<<10) },
		"short session": func(c *ConfigureProvider) { c.Settings.Session = time.Second },
		"long session":  func(c *ConfigureProvider) { c.Settings.Session = 25 * time.Hour },
	} {
		c := good()
		if spoil(&c); c.Validate() == nil {
			t.Errorf("%s is taken", name)
		}
		change := ChangeProvider{IdentityProviderChanged{Settings: c.Settings}}
		if bad := c.Settings != good().Settings; bad && change.Validate() == nil {
			t.Errorf("%s is taken as a change", name)
		}
	}
	for text, ok := range map[string]bool{
		"https://id.example.org/realms/a": true, "https://id:5556": true,
		"http://localhost:5556/dex": true,
		"http://127.0.0.1:1":        true, "http://[::1]:1": true, "http://[::1]": true,
		"http://id.example.org": false, "http://127.0.0.1.example.org": false, "https://": false,
		"https:///x": false, "ftp://127.0.0.1": false, "https://a?b": false, "https://a#b": false,
		"https://u@a": false, "http://localhost@evil.org": false, "https://a b": false, "": false,
		"https://a\n": false, "https://" + strings.Repeat("a", ProviderTextMax): false,
	} {
		if ValidIssuer(text) != ok {
			t.Errorf("%q: %v", text, !ok)
		}
	}
}

// TestLink proves that one provider at most vouches for a user.
func TestLink(t *testing.T) {
	id := domain.UserID{UUID: domain.UUID{7}}
	a := domain.IdentityProviderID{UUID: domain.UUID{1}}
	b := domain.IdentityProviderID{UUID: domain.UUID{2}}
	u := EvolveUser(User{}, &UserCreated{User: id})
	link := func(p domain.IdentityProviderID, sub string) domain.Command {
		l := UserLinked{User: id, Provider: p, Subject: domain.Personal{Text: sub}}
		if sub != "" {
			l.Tag = []byte("tag of " + sub)
		}
		return LinkUser{l}
	}
	for i, x := range []struct {
		c    domain.Command
		n    int
		want domain.IdentityProviderID
		sub  string
	}{
		{UnlinkUser{id}, 0, domain.IdentityProviderID{}, ""},
		{link(a, ""), 1, a, ""},
		{link(a, ""), 0, a, ""},
		{link(a, "s"), 1, a, "s"},
		{link(a, "s"), 0, a, "s"},
		{link(a, "t"), 1, a, "t"},
		{link(b, ""), 1, b, ""},
		{UnlinkUser{id}, 1, domain.IdentityProviderID{}, ""},
	} {
		evs, err := DecideUser(u, domain.Request{Command: x.c})
		for _, ev := range evs {
			if linked, ok := ev.(*UserLinked); ok && linked.Subject.Text != "" { // as it is read back
				linked.Subject = domain.Personal{Box: []byte("sealed")}
			}
			u = EvolveUser(u, ev)
		}
		if err != nil || len(evs) != x.n || u.Provider != x.want ||
			!u.known(x.sub, []byte("tag of "+x.sub)) {
			t.Errorf("step %d: %d events, %+v, %v", i, len(evs), u, err)
		}
	}
	if (LinkUser{UserLinked{User: id}}).Validate() == nil ||
		link(a, strings.Repeat("s", SubjectMax+1)).(LinkUser).Validate() == nil {
		t.Error("a bad link is taken")
	}
	bare := link(a, "s").(LinkUser)
	if bare.Tag = nil; bare.Validate() == nil {
		t.Error("a subject without a digest is taken: nobody would be known by it")
	}
}

// TestGroupRoles proves that a group gives what was granted to it, by its claim and name alone, and
// nothing once that was taken back; that repeating changes nothing; and the limits (U8b).
func TestGroupRoles(t *testing.T) {
	id, acme := domain.IdentityProviderID{UUID: domain.UUID{3}}, domain.TenantID{UUID: domain.UUID{5}}
	p := EvolveProvider(Provider{}, &IdentityProviderConfigured{Provider: id, Name: "corp"})
	grant := func(claim, group string, role Role, in domain.TenantID, off bool) GrantGroupRole {
		return GrantGroupRole{id, GroupRole{Membership{claim, group}, Grant{role, in}}, off}
	}
	none := domain.TenantID{}
	for i, x := range []struct {
		c domain.Command
		n int
	}{
		{grant("groups", "ops", Operator, acme, false), 1},
		{grant("groups", "ops", Operator, acme, false), 0},
		{grant("groups", "ops", Viewer, none, false), 1},
		{grant("roles", "ops", Admin, none, false), 1},
		{grant("groups", "audit", Viewer, none, false), 1},
		{grant("groups", "audit", Viewer, acme, true), 0},
		{grant("groups", "ops", Viewer, none, true), 1},
		{grant("groups", "ops", Viewer, none, true), 0},
	} {
		before := p
		evs, err := DecideProvider(p, domain.Request{Command: x.c})
		if err != nil || len(evs) != x.n {
			t.Errorf("step %d: %d events, %v", i, len(evs), err)
		}
		kept := slices.Clone(before.Groups)
		for _, ev := range evs {
			p = EvolveProvider(p, ev)
		}
		if !slices.Equal(before.Groups, kept) {
			t.Errorf("step %d changed the state before", i)
		}
	}
	for _, x := range []struct {
		in   []Membership
		want []Grant
	}{
		{nil, nil},
		{[]Membership{{"groups", "op"}, {"roles", "audit"}, {"", "ops"}}, nil},
		{[]Membership{{"groups", "ops"}}, []Grant{{Operator, acme}}},
		{[]Membership{{"roles", "ops"}, {"groups", "ops"}}, []Grant{{Operator, acme}, {Admin, none}}},
	} {
		if got := p.Roles(x.in); !slices.Equal(got, x.want) {
			t.Errorf("%v give %v, want %v", x.in, got, x.want)
		}
	}
	if (Provider{}).Roles([]Membership{{"groups", "ops"}}) != nil {
		t.Error("nobody granted anything, and a group gives something")
	}
	for _, bad := range []GrantGroupRole{
		grant("", "g", Viewer, none, false), grant("c", "", Viewer, none, false),
		grant("c", strings.Repeat("x", GroupMax+1), Viewer, none, false),
		grant("c", "g", "root", none, false), grant("c", "g", Admin, acme, false),
	} {
		if err := bad.Validate(); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	more := func(group string) Provider {
		return EvolveProvider(p, &GroupRoleGranted{id, "c", group, "viewer", none})
	}
	one, other := more("one"), more("other")
	if last := len(p.Groups); one.Groups[last].Group != "one" || other.Groups[last].Group != "other" {
		t.Error("two states share what they differ in")
	}
	for i := len(p.Groups); i < GroupRolesMax; i++ {
		p = EvolveProvider(p, &GroupRoleGranted{id, "c", fmt.Sprint(i), "viewer", none})
	}
	_, err := DecideProvider(p, domain.Request{Command: grant("c", "one more", Viewer, none, false)})
	if !domain.IsKind(err, domain.TooLarge) {
		t.Errorf("beyond the limit: %v", err)
	}
}
