package identity

import (
	"slices"

	"weft/domain"
)

// Limits of roles by groups.
const (
	// GroupMax is the longest name of a group in bytes.
	GroupMax = 256
	// GroupRolesMax is the most roles that a provider's groups give.
	GroupRolesMax = 256
)

// GroupsClaim is the claim that lists an account's groups where nobody says.
const GroupsClaim = "groups"

// Membership says that a provider's claim lists a group for an account.
type Membership struct {
	Claim string `msgpack:"claim,omitempty"`
	Group string `msgpack:"group,omitempty"`
}

// GroupRole is a role that linked users have as long as their provider lists them in a group.
type GroupRole struct {
	Membership
	Grant
}

// GroupRoleGranted gives a role to those users that are linked to a provider and in a group there.
type GroupRoleGranted struct {
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
	Claim    string                    `msgpack:"claim,omitempty"`
	Group    string                    `msgpack:"group,omitempty"`
	Role     string                    `msgpack:"role,omitempty"`
	Tenant   domain.TenantID           `msgpack:"tenant,omitempty"`
}

// GroupRoleRevoked takes such a role away.
type GroupRoleRevoked struct {
	Provider domain.IdentityProviderID `msgpack:"provider,omitempty"`
	Claim    string                    `msgpack:"claim,omitempty"`
	Group    string                    `msgpack:"group,omitempty"`
	Role     string                    `msgpack:"role,omitempty"`
	Tenant   domain.TenantID           `msgpack:"tenant,omitempty"`
}

// EventType implements domain.Event.
func (GroupRoleGranted) EventType() string { return "GroupRoleGranted" }

// EventType implements domain.Event.
func (GroupRoleRevoked) EventType() string { return "GroupRoleRevoked" }

// GrantGroupRole gives a role to a provider's group, or takes it away. What is so already is no
// error.
type GrantGroupRole struct {
	Provider domain.IdentityProviderID
	GroupRole
	Revoke bool
}

// CommandType implements domain.Command.
func (GrantGroupRole) CommandType() string { return "GrantGroupRole" }

// Stream implements domain.Command.
func (c GrantGroupRole) Stream() domain.StreamID { return ProviderStream(c.Provider) }

// Validate implements domain.Validator.
func (c GrantGroupRole) Validate() error {
	var k domain.Checker
	k.Check(c.Claim != "" && len(c.Claim) <= ProviderTextMax, "claim", "1 to %d bytes",
		ProviderTextMax)
	k.Check(c.Group != "" && len(c.Group) <= GroupMax, "group", "1 to %d bytes", GroupMax)
	c.Grant.check(&k, "role")
	return k.Err("identity.GrantGroupRole", "")
}

func (p Provider) grantGroup(c GrantGroupRole) ([]domain.Event, error) {
	switch has := slices.Contains(p.Groups, c.GroupRole); {
	case has != c.Revoke:
		return nil, nil
	case c.Revoke:
		return []domain.Event{&GroupRoleRevoked{
			p.Provider, c.Claim, c.Group, string(c.Role), c.Tenant,
		}}, nil
	case len(p.Groups) >= GroupRolesMax:
		return nil, domain.Errorf(domain.TooLarge, "groups of one identity provider give %d roles",
			GroupRolesMax)
	}
	return []domain.Event{&GroupRoleGranted{
		p.Provider, c.Claim, c.Group, string(c.Role), c.Tenant,
	}}, nil
}

// groups gives the roles of groups behind one more event; the slice before is not changed.
func (p Provider) groups(ev domain.Event) []GroupRole {
	switch ev := ev.(type) {
	case *GroupRoleGranted:
		return append(slices.Clip(p.Groups), GroupRole{
			Membership{ev.Claim, ev.Group}, Grant{Role(ev.Role), ev.Tenant},
		})
	case *GroupRoleRevoked:
		gone := GroupRole{Membership{ev.Claim, ev.Group}, Grant{Role(ev.Role), ev.Tenant}}
		return slices.DeleteFunc(slices.Clone(p.Groups), func(g GroupRole) bool { return g == gone })
	}
	return p.Groups
}

// Roles gives what memberships are worth at this provider; what no role was given to, nothing.
func (p Provider) Roles(in []Membership) []Grant {
	var out []Grant
	for _, g := range p.Groups {
		if slices.Contains(in, g.Membership) && !slices.Contains(out, g.Grant) {
			out = append(out, g.Grant)
		}
	}
	return out
}
