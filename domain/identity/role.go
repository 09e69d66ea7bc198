package identity

import (
	"slices"

	"weft/domain"
)

// Verb is what an operation does to the place it works in.
type Verb uint8

// The verbs, a closed list. None stands for nothing that anybody may do.
const (
	None Verb = iota
	Read
	Operate
	AdministerTenant
	AdministerCluster
)

// String gives the verb's name.
func (v Verb) String() string {
	switch v {
	case Read:
		return "read"
	case Operate:
		return "operate"
	case AdministerTenant:
		return "administer the tenant"
	case AdministerCluster:
		return "administer the cluster"
	case None:
	}
	return "none"
}

// Role names a fixed set of verbs.
type Role string

// The roles, a closed list.
const (
	Viewer      Role = "viewer"
	Operator    Role = "operator"
	TenantAdmin Role = "tenant-admin"
	Admin       Role = "admin"
)

// Roles lists all roles, the weakest first.
func Roles() []Role { return []Role{Viewer, Operator, TenantAdmin, Admin} }

// verbs is the one table of what a role may do.
func (r Role) verbs() []Verb {
	switch r {
	case Viewer:
		return []Verb{Read}
	case Operator:
		return []Verb{Read, Operate}
	case TenantAdmin:
		return []Verb{Read, Operate, AdministerTenant}
	case Admin:
		return []Verb{Read, Operate, AdministerTenant, AdministerCluster}
	}
	return nil
}

// Valid tells whether there is such a role.
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// Covers tells whether the role may do all that another may.
func (r Role) Covers(other Role) bool {
	for _, v := range other.verbs() {
		if !slices.Contains(r.verbs(), v) {
			return false
		}
	}
	return r.Valid() && other.Valid()
}

// Grant is a role for the whole cluster (the zero tenant), or for a tenant and those below it.
type Grant struct {
	Role   Role            `msgpack:"role,omitempty"`
	Tenant domain.TenantID `msgpack:"tenant,omitempty"`
}

// allows tells whether a grant allows a verb in a place: a tenant with all those above it, or nil
// for the cluster as a whole.
func (g Grant) allows(v Verb, lineage []domain.TenantID) bool {
	return slices.Contains(g.Role.verbs(), v) &&
		(g.Tenant.IsZero() || slices.Contains(lineage, g.Tenant))
}

// check refuses what is no grant. The administrator's role is for the cluster alone: within a
// tenant there is tenant-admin.
func (g Grant) check(c *domain.Checker, path string) {
	c.Check(g.Role.Valid(), path, "%q is none of viewer, operator, tenant-admin, admin",
		clip(string(g.Role)))
	c.Check(g.Role != Admin || g.Tenant.IsZero(), path,
		"admin is a role for the whole cluster; for a tenant there is tenant-admin")
}

func clip(s string) string { return s[:min(len(s), 64)] }

// Rights are what somebody may do: what a grant allows, within every scope.
type Rights struct {
	Grants []Grant
	Scopes []Grant
}

// May tells whether a verb is allowed in a place: a tenant with all those above it, or nil for the
// cluster as a whole.
func (r Rights) May(v Verb, lineage []domain.TenantID) bool {
	for _, s := range r.Scopes {
		if !s.allows(v, lineage) {
			return false
		}
	}
	return slices.ContainsFunc(r.Grants, func(g Grant) bool { return g.allows(v, lineage) })
}

// Within gives the rights narrowed to a scope; the receiver's slices are not changed.
func (r Rights) Within(s Grant) Rights {
	return Rights{r.Grants, append(slices.Clip(slices.Clone(r.Scopes)), s)}
}

// Reach tells whether no scope is too narrow for a verb, wherever it holds.
func (r Rights) Reach(v Verb) bool {
	return !slices.ContainsFunc(r.Scopes, func(s Grant) bool {
		return !slices.Contains(s.Role.verbs(), v)
	})
}
