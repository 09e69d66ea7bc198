package client

import "context"

// Provider is an identity provider of OpenID Connect.
type Provider struct {
	ID             string `json:"id,omitempty"`
	Name           string `json:"name"`
	Issuer         string `json:"issuer"`
	ClientID       string `json:"client_id"`
	Claim          string `json:"claim,omitempty"` // that names users; empty: email
	CA             string `json:"ca,omitempty"`    // PEM; empty: the machine's authorities
	SessionSeconds int64  `json:"session_seconds,omitempty"`
	// Groups are what its groups give to linked users. GrantGroup and RevokeGroup change them.
	Groups []GroupRole `json:"groups,omitempty"`
}

// GroupRole is a role that an identity provider's group gives to users linked to it.
type GroupRole struct {
	Claim  string `json:"claim,omitempty"` // that lists groups; empty: groups
	Group  string `json:"group"`
	Role   string `json:"role"`
	Tenant string `json:"tenant,omitempty"` // and those below it; empty: the whole cluster
}

// GrantGroup gives a role to a provider's group.
func (c *Client) GrantGroup(ctx context.Context, name string, g GroupRole) (
	Reply[Provider], error,
) {
	return change[Provider](ctx, c, "POST", "/v1/identity-providers/"+seg(name)+"/grant", g, Change{})
}

// RevokeGroup takes a role from a provider's group.
func (c *Client) RevokeGroup(ctx context.Context, name string, g GroupRole) (
	Reply[Provider], error,
) {
	return change[Provider](ctx, c, "POST", "/v1/identity-providers/"+seg(name)+"/revoke", g, Change{})
}

// SignIns lists the identity providers to sign in with. It needs no token.
func (c *Client) SignIns(ctx context.Context) (Reply[List[Provider]], error) {
	return get[List[Provider]](ctx, c, "/v1/sign-in", nil)
}

// Providers lists the identity providers.
func (c *Client) Providers(ctx context.Context, at At) (Reply[List[Provider]], error) {
	at.Tenant = ""
	return get[List[Provider]](ctx, c, "/v1/identity-providers", at.query())
}

// CreateProvider makes an identity provider known; Exists if the name is taken.
func (c *Client) CreateProvider(ctx context.Context, p Provider) (Reply[Provider], error) {
	return change[Provider](ctx, c, "POST", "/v1/identity-providers", p, Change{})
}

// ChangeProvider replaces the settings of an identity provider.
func (c *Client) ChangeProvider(ctx context.Context, p Provider) (Reply[Provider], error) {
	p.ID, p.Groups = "", nil
	return change[Provider](ctx, c, "PUT", "/v1/identity-providers/"+seg(p.Name), p, Change{})
}

// DeleteProvider lets an identity provider vouch for nobody.
func (c *Client) DeleteProvider(ctx context.Context, name string) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/identity-providers/"+seg(name), nil, Change{})
}

// LinkUser lets an identity provider vouch for a user: for a subject, or without one for whoever
// bears the user's name there.
func (c *Client) LinkUser(ctx context.Context, name, provider, subject string) (
	Reply[User], error,
) {
	body := struct {
		Provider string `json:"provider"`
		Subject  string `json:"subject,omitempty"`
	}{provider, subject}
	return change[User](ctx, c, "POST", "/v1/users/"+seg(name)+"/link", body, Change{})
}

// UnlinkUser lets no identity provider vouch for a user.
func (c *Client) UnlinkUser(ctx context.Context, name string) (Reply[User], error) {
	return change[User](ctx, c, "POST", "/v1/users/"+seg(name)+"/unlink", nil, Change{})
}
