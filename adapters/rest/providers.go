package rest

import (
	"context"
	"time"

	"weft/domain"
	"weft/domain/identity"
)

// ProviderBody makes an identity provider known, or replaces its settings.
type ProviderBody struct {
	Name           string `json:"name" maxLength:"63"`
	Issuer         string `json:"issuer" maxLength:"512" doc:"https://..., as the provider spells it"`
	ClientID       string `json:"client_id" maxLength:"512" doc:"of a public client there"`
	Claim          string `json:"claim,omitempty" maxLength:"512" doc:"that names users; email"`
	CA             string `json:"ca,omitempty" maxLength:"65536" doc:"PEM; absent: the machine's"`
	SessionSeconds int64  `json:"session_seconds,omitempty" minimum:"60" maximum:"86400" doc:"28800"`
}

// ProviderDoc is an identity provider.
type ProviderDoc struct {
	ID string `json:"id"`
	ProviderBody
	Groups []GroupDoc `json:"groups,omitempty" doc:"what its groups give to linked users"`
}

// GroupDoc is a role that an identity provider's group gives to users linked to it.
type GroupDoc struct {
	Claim string `json:"claim,omitempty" maxLength:"512" doc:"that lists groups; absent: groups"`
	Group string `json:"group" minLength:"1" maxLength:"256"`
	GrantDoc
}

// SignInDoc is what whoever wants to sign in needs to know of a provider. None of it is a secret.
type SignInDoc struct {
	Name           string `json:"name"`
	Issuer         string `json:"issuer"`
	ClientID       string `json:"client_id"`
	CA             string `json:"ca,omitempty"`
	SessionSeconds int64  `json:"session_seconds"`
}

func (s *Server) providerRoutes() {
	register(s, openToAll, "GET", signInPath, "list-sign-in",
		"List the identity providers to sign in with", 200, s.signIn)
	register(s, readCluster, "GET", "/v1/identity-providers", "list-identity-providers",
		"List the identity providers", 200, s.providers)
	register(s, administerCluster, "POST", "/v1/identity-providers", "create-identity-provider",
		"Let a provider of OpenID Connect vouch for users that are linked to it", 201,
		s.createProvider)
	register(s, administerCluster, "PUT", "/v1/identity-providers/{name}", "change-identity-provider",
		"Replace the settings of an identity provider; its issuer stays", 200, s.changeProvider)
	for _, op := range []struct {
		path, id, summary string
		off               bool
	}{
		{"grant", "grant-group-role", "Give a role to the linked users of a group", false},
		{"revoke", "revoke-group-role", "Take a role from a group of an identity provider", true},
	} {
		register(s, administerCluster, "POST", "/v1/identity-providers/{name}/"+op.path, op.id,
			op.summary, 200, func(ctx context.Context, in *GroupIn) (*Changed[ProviderDoc], error) {
				return s.grantGroup(ctx, in, op.off)
			})
	}
	register(s, administerCluster, "DELETE", "/v1/identity-providers/{name}",
		"delete-identity-provider", "Let an identity provider vouch for nobody", 200, s.deleteProvider)
	register(s, administerCluster, "POST", "/v1/users/{name}/link", "link-user",
		"Let one identity provider vouch for a user", 200, s.linkUser)
	register(s, administerCluster, "POST", "/v1/users/{name}/unlink", "unlink-user",
		"Let no identity provider vouch for a user", 200,
		func(ctx context.Context, in *NamedChange) (*Changed[UserDoc], error) {
			u, err := s.user(ctx, in.Name)
			if err != nil {
				return nil, err
			}
			return s.userChange(ctx, in.Change, u.User, identity.UnlinkUser{User: u.User})
		})
}

func (s *Server) providerDoc(p identity.Provider) ProviderDoc { return providerIn(s.b.Now(), p) }

// providerIn is providerDoc of a moment.
func providerIn(v Views, p identity.Provider) ProviderDoc {
	d := ProviderDoc{ID: p.Provider.String(), ProviderBody: ProviderBody{
		Name: p.Name, Issuer: p.Issuer, ClientID: p.Settings.Client, Claim: p.Settings.Claim,
		CA: p.Settings.CA, SessionSeconds: int64(p.Settings.Session / time.Second),
	}}
	for _, g := range p.Groups {
		d.Groups = append(d.Groups, GroupDoc{g.Claim, g.Group, grantIn(v, g.Grant)})
	}
	return d
}

// GroupIn gives a role to a group, or takes it.
type GroupIn struct {
	NamedChange
	Body GroupDoc
}

func (s *Server) grantGroup(ctx context.Context, in *GroupIn, off bool) (
	*Changed[ProviderDoc], error,
) {
	p, err := s.provider(in.Name)
	if err != nil {
		return nil, err
	}
	c := identity.GrantGroupRole{Provider: p.Provider, Revoke: off}
	c.Membership = identity.Membership{Claim: in.Body.Claim, Group: in.Body.Group}
	if c.Claim == "" {
		c.Claim = identity.GroupsClaim
	}
	c.Role = identity.Role(in.Body.Role)
	if in.Body.Tenant != "" {
		t, err := s.tenant(in.Body.Tenant)
		if err != nil {
			return nil, err
		}
		c.Tenant = t.Tenant
	}
	return s.providerChange(ctx, in.Change, p.Provider, c)
}

func (b *ProviderBody) settings() identity.ProviderSettings {
	out := identity.ProviderSettings{
		Client: b.ClientID, Claim: b.Claim, CA: b.CA,
		Session: time.Duration(b.SessionSeconds) * time.Second,
	}
	if out.Claim == "" {
		out.Claim = identity.ClaimDefault
	}
	if out.Session == 0 {
		out.Session = identity.SessionDefault
	}
	return out
}

func (s *Server) signIn(_ context.Context, _ *struct{}) (*Got[List[SignInDoc]], error) {
	now := s.b.Now()
	out := &Got[List[SignInDoc]]{Position: now.Position.String()}
	out.Body = List[SignInDoc]{[]SignInDoc{}, out.Position}
	for _, p := range now.Access.Providers() {
		d := s.providerDoc(p)
		out.Body.Items = append(out.Body.Items, SignInDoc{
			d.Name, d.Issuer, d.ClientID, d.CA, d.SessionSeconds,
		})
	}
	return out, nil
}

func (s *Server) providers(ctx context.Context, in *Whole) (*Got[List[ProviderDoc]], error) {
	v, _, err := s.views(ctx, in.at())
	if err != nil {
		return nil, err
	}
	out := &Got[List[ProviderDoc]]{Position: v.Position.String()}
	out.Body = List[ProviderDoc]{[]ProviderDoc{}, v.Position.String()}
	for _, p := range v.Access.Providers() {
		out.Body.Items = append(out.Body.Items, providerIn(v, p))
	}
	return out, nil
}

// provider finds an identity provider by name or id.
func (s *Server) provider(ref string) (identity.Provider, error) {
	p, ok := s.b.Now().Access.Provider(ref)
	if !ok {
		return p, &domain.Error{
			Kind: domain.NotFound, Ref: "idp/" + ref, Msg: "no such identity provider",
			Remedy: "weft idp list shows them",
		}
	}
	return p, nil
}

func (s *Server) createProvider(ctx context.Context, in *struct {
	Change
	Body ProviderBody
},
) (*Changed[ProviderDoc], error) {
	id := commandID(ctx, in.Change)
	p := domain.IdentityProviderID{UUID: id.ObjectID("idp", 0)}
	return s.providerChange(ctx, in.Change, p, identity.ConfigureProvider{
		Cluster: s.cluster(), IdentityProviderConfigured: identity.IdentityProviderConfigured{
			Provider: p, Name: in.Body.Name, Issuer: in.Body.Issuer, Settings: in.Body.settings(),
		},
	})
}

func (s *Server) changeProvider(ctx context.Context, in *struct {
	NamedChange
	Body ProviderBody
},
) (*Changed[ProviderDoc], error) {
	p, err := s.provider(in.Name)
	if err != nil {
		return nil, err
	}
	if in.Body.Name != p.Name || in.Body.Issuer != p.Issuer {
		return nil, &domain.Error{
			Kind: domain.Invalid, Ref: "idp/" + p.Name, Msg: "name and issuer stay as they are",
			Remedy: "make another identity provider, and link the users to it",
		}
	}
	return s.providerChange(ctx, in.Change, p.Provider, identity.ChangeProvider{
		IdentityProviderChanged: identity.IdentityProviderChanged{
			Provider: p.Provider, Settings: in.Body.settings(),
		},
	})
}

func (s *Server) providerChange(ctx context.Context, ch Change, id domain.IdentityProviderID,
	c domain.Command,
) (*Changed[ProviderDoc], error) {
	res, err := s.command(ctx, ch, commandID(ctx, ch), c)
	if err != nil {
		return nil, err
	}
	p, _ := s.b.Now().Access.Provider(id.String())
	return &Changed[ProviderDoc]{Position: res.Position.String(), Body: s.providerDoc(p)}, nil
}

func (s *Server) deleteProvider(ctx context.Context, in *NamedChange) (*Changed[Gone], error) {
	p, err := s.provider(in.Name)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), identity.RemoveProvider{
		Cluster: s.cluster(), Provider: p.Provider,
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{p.Name, "deleted"}}, nil
}

// linkUser lets a provider vouch for a user, in the place of whichever did.
func (s *Server) linkUser(ctx context.Context, in *struct {
	NamedChange
	Body LinkBody
},
) (*Changed[UserDoc], error) {
	u, err := s.user(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	p, err := s.provider(in.Body.Provider)
	if err != nil {
		return nil, err
	}
	link := identity.UserLinked{
		User: u.User, Provider: p.Provider, Subject: domain.Personal{Text: in.Body.Subject},
	}
	if in.Body.Subject != "" {
		link.Tag = s.b.Digest(identity.SubjectDigest, in.Body.Subject)
	}
	return s.userChange(ctx, in.Change, u.User, identity.LinkUser{UserLinked: link})
}

// LinkBody says who vouches for a user.
type LinkBody struct {
	Provider string `json:"provider" doc:"name or id"`
	Subject  string `json:"subject,omitempty" maxLength:"255" doc:"absent: who bears the user's name"`
}
