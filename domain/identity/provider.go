package identity

import (
	"strings"
	"time"

	"weft/domain"
	"weft/domain/tenancy"
)

// ProviderCategory of an identity provider's stream.
const ProviderCategory = "idp"

// Limits of identity providers.
const (
	// ProviderNameMax is the longest name of a provider in bytes.
	ProviderNameMax = 63
	// ProviderTextMax bounds issuer, client and claim, bytes each.
	ProviderTextMax = 512
	// AuthoritiesMax bounds the certificates that a provider is trusted by, bytes.
	AuthoritiesMax = 64 << 10
	// SessionMax bounds how long a token lives that a sign-in issues.
	SessionMax = 24 * time.Hour
	// SessionDefault is how long it lives where nobody says.
	SessionDefault = 8 * time.Hour
	// SubjectMax is the longest subject that OpenID Connect allows, bytes.
	SubjectMax = 255
)

// ClaimDefault is the claim that names the user where nobody says.
const ClaimDefault = "email"

// ProviderStream gives a provider's stream.
func ProviderStream(id domain.IdentityProviderID) domain.StreamID {
	return domain.StreamOf(ProviderCategory, id.UUID)
}

// ProviderSettings is what may change of a provider. Weft is a public client of it, so there is no
// secret.
type ProviderSettings struct {
	Client  string        `msgpack:"client,omitempty"`  // the audience of its tokens
	Claim   string        `msgpack:"claim,omitempty"`   // holds the user's name
	CA      string        `msgpack:"ca,omitempty"`      // PEM; empty: the machine's authorities
	Session time.Duration `msgpack:"session,omitempty"` // longest life of a token from a sign-in
}

// IdentityProviderConfigured is the first event of a provider of OpenID Connect.
type IdentityProviderConfigured struct {
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
	Name     string                    `msgpack:"name,omitempty"`
	Issuer   string                    `msgpack:"issuer,omitempty"`
	Settings ProviderSettings          `msgpack:"settings,omitempty"`
}

// IdentityProviderChanged replaces its settings. Its issuer stays: another one would vouch for the
// users of this one.
type IdentityProviderChanged struct {
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
	Settings ProviderSettings          `msgpack:"settings,omitempty"`
}

// IdentityProviderRemoved is its last event: it vouches for nobody any more.
type IdentityProviderRemoved struct {
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
}

// UserLinked says that a provider, and no other, vouches for a user: for the subject, or without
// one for whoever bears the user's name there. Tag is the digest of the subject.
type UserLinked struct {
	User     domain.UserID             `msgpack:"user,omitempty"`
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
	Subject  domain.Personal           `msgpack:"subject,omitempty"`
	Tag      []byte                    `msgpack:"tag,omitempty"`
}

// AboutUser implements domain.AboutUser.
func (e UserLinked) AboutUser() domain.UserID { return e.User }

// UserUnlinked says that nobody vouches for the user any more.
type UserUnlinked struct {
	User domain.UserID `msgpack:"user,omitempty"`
}

// EventType implements domain.Event.
func (IdentityProviderConfigured) EventType() string { return "IdentityProviderConfigured" }

// EventType implements domain.Event.
func (IdentityProviderChanged) EventType() string { return "IdentityProviderChanged" }

// EventType implements domain.Event.
func (IdentityProviderRemoved) EventType() string { return "IdentityProviderRemoved" }

// EventType implements domain.Event.
func (UserLinked) EventType() string { return "UserLinked" }

// EventType implements domain.Event.
func (UserUnlinked) EventType() string { return "UserUnlinked" }

// ConfigureProvider makes a provider known. Its name is taken in the cluster's directory first.
type ConfigureProvider struct {
	Cluster domain.ClusterID
	IdentityProviderConfigured
}

// ChangeProvider replaces the settings of a provider.
type ChangeProvider struct{ IdentityProviderChanged }

// RemoveProvider makes a provider vouch for nobody; its users stay. Again is no error.
type RemoveProvider struct {
	Cluster  domain.ClusterID
	Provider domain.IdentityProviderID
}

// LinkUser lets a provider vouch for a user instead of whoever did.
type LinkUser struct{ UserLinked }

// UnlinkUser lets nobody vouch for a user. Again is no error.
type UnlinkUser struct{ User domain.UserID }

// CommandType implements domain.Command.
func (ConfigureProvider) CommandType() string { return "ConfigureProvider" }

// Stream implements domain.Command.
func (c ConfigureProvider) Stream() domain.StreamID { return ProviderStream(c.Provider) }

// Validate implements domain.Validator.
func (c ConfigureProvider) Validate() error {
	var k domain.Checker
	k.Check(len(c.Name) <= ProviderNameMax && ValidUserName(c.Name), "name",
		"%q is no name: 1 to %d of a-z, 0-9, '-', '.', '_', starting with a letter", clip(c.Name),
		ProviderNameMax)
	k.Check(ValidIssuer(c.Issuer), "issuer",
		"%q is no issuer: https://..., without query; http only on this machine", clip(c.Issuer))
	c.Settings.check(&k)
	return k.Err("identity.ConfigureProvider", "")
}

// Before implements domain.Prelude.
func (c ConfigureProvider) Before() []domain.Command {
	return []domain.Command{tenancy.TakeName{
		Cluster: c.Cluster, Kind: "idp", Name: c.Name, Object: c.Provider.UUID,
	}}
}

// Undo implements domain.Reversal.
func (c ConfigureProvider) Undo() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.Provider.UUID}}
}

// CommandType implements domain.Command.
func (ChangeProvider) CommandType() string { return "ChangeProvider" }

// Stream implements domain.Command.
func (c ChangeProvider) Stream() domain.StreamID { return ProviderStream(c.Provider) }

// Validate implements domain.Validator.
func (c ChangeProvider) Validate() error {
	var k domain.Checker
	c.Settings.check(&k)
	return k.Err("identity.ChangeProvider", "")
}

// CommandType implements domain.Command.
func (RemoveProvider) CommandType() string { return "RemoveProvider" }

// Stream implements domain.Command.
func (c RemoveProvider) Stream() domain.StreamID { return ProviderStream(c.Provider) }

// After implements domain.Postlude.
func (c RemoveProvider) After() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.Provider.UUID}}
}

// CommandType implements domain.Command.
func (LinkUser) CommandType() string { return "LinkUser" }

// Stream implements domain.Command.
func (c LinkUser) Stream() domain.StreamID { return UserStream(c.User) }

// Validate implements domain.Validator.
func (c LinkUser) Validate() error {
	var k domain.Checker
	k.Check(!c.Provider.IsZero(), "provider", "missing")
	k.Check(len(c.Subject.Text) <= SubjectMax, "subject", "over %d bytes", SubjectMax)
	k.Check((c.Subject.Text == "") == (len(c.Tag) == 0), "tag", "of another subject")
	return k.Err("identity.LinkUser", "")
}

// CommandType implements domain.Command.
func (UnlinkUser) CommandType() string { return "UnlinkUser" }

// Stream implements domain.Command.
func (c UnlinkUser) Stream() domain.StreamID { return UserStream(c.User) }

func (s ProviderSettings) check(k *domain.Checker) {
	k.Check(s.Client != "" && len(s.Client) <= ProviderTextMax, "client_id", "1 to %d bytes",
		ProviderTextMax)
	k.Check(s.Claim != "" && len(s.Claim) <= ProviderTextMax, "claim", "1 to %d bytes",
		ProviderTextMax)
	k.Check(len(s.CA) <= AuthoritiesMax, "ca", "over %d bytes", AuthoritiesMax)
	k.Check(s.Session >= time.Minute && s.Session <= SessionMax, "session", "not from 1m to %s",
		SessionMax)
}

// Provider is an identity provider folded.
type Provider struct {
	IdentityProviderConfigured
	Groups  []GroupRole // what its groups give to linked users
	Removed bool
}

// ProviderAggregate is the provider for the executor.
func ProviderAggregate() domain.Aggregate[Provider] {
	return domain.Aggregate[Provider]{
		Category: ProviderCategory, Evolve: EvolveProvider, Decide: DecideProvider,
	}
}

// EvolveProvider folds one event.
func EvolveProvider(p Provider, ev domain.Event) Provider {
	switch ev := ev.(type) {
	case *IdentityProviderConfigured:
		p.IdentityProviderConfigured = *ev
	case *IdentityProviderChanged:
		p.Settings = ev.Settings
	case *IdentityProviderRemoved:
		p.Removed = true
	}
	p.Groups = p.groups(ev)
	return p
}

// DecideProvider judges one command.
func DecideProvider(p Provider, r domain.Request) ([]domain.Event, error) {
	if c, ok := r.Command.(ConfigureProvider); ok {
		if !p.Provider.IsZero() {
			return nil, domain.Errorf(domain.Exists, "identity provider %s exists", c.Provider)
		}
		ev := c.IdentityProviderConfigured
		return []domain.Event{&ev}, nil
	}
	if _, ok := r.Command.(RemoveProvider); ok && p.Removed {
		return nil, nil
	}
	if p.Provider.IsZero() || p.Removed {
		return nil, domain.Errorf(domain.NotFound, "no such identity provider")
	}
	switch c := r.Command.(type) {
	case ChangeProvider:
		if c.Settings == p.Settings {
			return nil, nil
		}
		ev := c.IdentityProviderChanged
		return []domain.Event{&ev}, nil
	case GrantGroupRole:
		return p.grantGroup(c)
	case RemoveProvider:
		return []domain.Event{&IdentityProviderRemoved{p.Provider}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "idp: unknown command %T", r.Command)
}

// ValidIssuer tells whether a text can be an issuer: an address under https without user, query and
// fragment, as OpenID Connect Discovery demands. Plain http is for an issuer on this machine.
func ValidIssuer(text string) bool {
	odd := func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune(`?#@\"<>`, c) }
	if len(text) > ProviderTextMax || strings.ContainsFunc(text, odd) {
		return false
	}
	scheme, rest, ok := strings.Cut(text, "://")
	host, _, _ := strings.Cut(rest, "/")
	if !ok || host == "" {
		return false
	}
	if scheme == "https" {
		return true
	}
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name = host[:i]
	}
	return scheme == "http" && (name == "localhost" || name == "127.0.0.1" || name == "[::1]")
}
