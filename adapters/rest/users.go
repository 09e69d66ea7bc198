package rest

import (
	"context"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/identity"
	"weft/projections/access"
)

// UserDoc is a user as the caller may see it: with the roles that the caller may see.
type UserDoc struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	State string     `json:"state" enum:"enabled,disabled,erased"`
	Roles []GrantDoc `json:"roles"`
	IDP   string     `json:"idp,omitempty" doc:"the identity provider that vouches for the user"`
}

// GrantDoc is a role that a user has.
type GrantDoc struct {
	Role   string `json:"role" enum:"viewer,operator,tenant-admin,admin"`
	Tenant string `json:"tenant,omitempty" doc:"and those below it; absent: the whole cluster"`
}

// Who is what the API knows of its caller.
type Who struct {
	Name    string     `json:"name"`
	User    string     `json:"user,omitempty" doc:"id; absent for the node's own token"`
	Roles   []GrantDoc `json:"roles" doc:"what the user has"`
	Limits  []GrantDoc `json:"limits,omitempty" doc:"what the token narrows it to"`
	Token   string     `json:"token,omitempty" doc:"id of the token"`
	IDP     string     `json:"idp,omitempty" doc:"the identity provider that vouched"`
	Expires string     `json:"expires,omitempty"`
}

func (s *Server) userRoutes() {
	register(s, readOwn, "GET", "/v1/whoami", "whoami", "Who you are and what you may do", 200,
		s.whoami)
	register(s, readOwn, "GET", "/v1/users", "list-users", "List the users you may see", 200, s.users)
	register(s, administerCluster, "POST", "/v1/users", "create-user",
		"Create a user, who has no role yet", 201, s.createUser)
	register(s, administerCluster, "POST", "/v1/users/{name}/disable", "disable-user",
		"Shut a user out until it is enabled", 200,
		func(ctx context.Context, in *NamedChange) (*Changed[UserDoc], error) {
			return s.enable(ctx, in, true)
		})
	register(s, administerCluster, "POST", "/v1/users/{name}/enable", "enable-user",
		"Let a user in again", 200,
		func(ctx context.Context, in *NamedChange) (*Changed[UserDoc], error) {
			return s.enable(ctx, in, false)
		})
	register(s, administerGrants, "POST", "/v1/users/{name}/grant", "grant-role",
		"Give a user a role", 200, func(ctx context.Context, in *GrantIn) (*Changed[UserDoc], error) {
			return s.grant(ctx, in, false)
		})
	register(s, administerGrants, "POST", "/v1/users/{name}/revoke", "revoke-role",
		"Take a role from a user", 200,
		func(ctx context.Context, in *GrantIn) (*Changed[UserDoc], error) {
			return s.grant(ctx, in, true)
		})
	register(s, administerCluster, "POST", "/v1/keys:export", "export-keys",
		"The keys of what the log holds sealed of persons, closed under a passphrase", 200, s.exportKeys)
	register(s, administerCluster, "POST", "/v1/users/{name}/erase", "erase-user",
		"Destroy the key of what the log holds of a user in words; it cannot be undone", 200, s.eraseUser)
	register(s, administerCluster, "DELETE", "/v1/users/{name}", "delete-user",
		"Delete a user and void its tokens", 200, s.deleteUser)
}

func (s *Server) grantDoc(g identity.Grant) GrantDoc { return grantIn(s.b.Now(), g) }

// grantIn shows a grant with the names of a moment.
func grantIn(v Views, g identity.Grant) GrantDoc {
	d := GrantDoc{Role: string(g.Role)}
	if !g.Tenant.IsZero() {
		d.Tenant = tenantName(v, g.Tenant)
	}
	return d
}

func (s *Server) whoami(ctx context.Context, _ *struct{}) (*Got[Who], error) {
	p := principalOf(ctx)
	d := Who{Name: p.Name, Roles: []GrantDoc{}}
	if u, ok := s.b.Now().Access.User(p.User.String()); ok {
		d.Name = u.Name.Text
	}
	for _, g := range p.Rights.Grants {
		d.Roles = append(d.Roles, s.grantDoc(g))
	}
	for _, g := range p.Rights.Scopes {
		d.Limits = append(d.Limits, s.grantDoc(g))
	}
	if !p.User.IsZero() {
		d.User = p.User.String()
	}
	if !p.Token.IsZero() {
		d.Token = p.Token.String()
	}
	if idp, ok := s.b.Now().Access.Provider(p.Provider.String()); ok {
		d.IDP = idp.Name
	}
	if !p.Until.IsZero() {
		d.Expires = p.Until.UTC().Format(time.RFC3339)
	}
	return &Got[Who]{Position: s.b.Now().Position.String(), Body: d}, nil
}

// userDoc shows a user to a caller; false when the caller may not know of it. An administrator of
// the cluster sees all; one of a tenant, those who have a role in it, and that role; everybody,
// themselves. Who may know is never read from the past.
func (s *Server) userDoc(p access.Principal, u identity.User) (UserDoc, bool) {
	return s.userIn(s.b.Now(), p, u)
}

// userIn is userDoc of a moment.
func (s *Server) userIn(v Views, p access.Principal, u identity.User) (UserDoc, bool) {
	d := UserDoc{ID: u.User.String(), Name: u.Name.Text, State: "enabled", Roles: []GrantDoc{}}
	switch {
	case u.Erased:
		d.State = "erased"
	case u.Disabled:
		d.State = "disabled"
	}
	all := p.Rights.May(identity.AdministerCluster, nil) || p.User == u.User
	if idp, ok := v.Access.Provider(u.Provider.String()); ok && all {
		d.IDP = idp.Name
	}
	for _, g := range u.Grants {
		if all || s.b.Now().Access.May(p, identity.AdministerTenant, g.Tenant) {
			d.Roles = append(d.Roles, grantIn(v, g))
		}
	}
	return d, all || len(d.Roles) > 0
}

func (s *Server) users(ctx context.Context, in *Whole) (*Got[List[UserDoc]], error) {
	v, _, err := s.views(ctx, in.at())
	if err != nil {
		return nil, err
	}
	out := &Got[List[UserDoc]]{Position: v.Position.String()}
	out.Body = List[UserDoc]{[]UserDoc{}, v.Position.String()}
	for _, u := range v.Access.Users() {
		if d, ok := s.userIn(v, principalOf(ctx), u); ok {
			out.Body.Items = append(out.Body.Items, d)
		}
	}
	return out, nil
}

// user finds a user among those the caller may see.
func (s *Server) user(ctx context.Context, ref string) (identity.User, error) {
	u, ok := s.b.Now().Access.User(ref)
	if ok {
		_, ok = s.userDoc(principalOf(ctx), u)
	}
	if !ok {
		return identity.User{}, &domain.Error{
			Kind: domain.NotFound, Ref: "user/" + ref, Msg: "no such user",
			Remedy: "weft user list shows those you may see",
		}
	}
	return u, nil
}

func (s *Server) createUser(ctx context.Context, in *struct {
	Change
	Body struct {
		Name string `json:"name" maxLength:"128" doc:"as an identity provider names them, if one does"`
	}
},
) (*Changed[UserDoc], error) {
	id := commandID(ctx, in.Change)
	user := domain.UserID{UUID: id.ObjectID("user", 0)}
	return s.userChange(ctx, in.Change, user, identity.CreateUser{
		Cluster: s.cluster(), User: user, Name: domain.Personal{Text: in.Body.Name},
		Tag: s.b.Digest(identity.NameDigest, in.Body.Name),
	})
}

func (s *Server) userChange(ctx context.Context, ch Change, id domain.UserID, c domain.Command) (
	*Changed[UserDoc], error,
) {
	res, err := s.command(ctx, ch, commandID(ctx, ch), c)
	if err != nil {
		return nil, err
	}
	u, _ := s.b.Now().Access.User(id.String())
	d, _ := s.userDoc(principalOf(ctx), u)
	return &Changed[UserDoc]{Position: res.Position.String(), Body: d}, nil
}

func (s *Server) enable(ctx context.Context, in *NamedChange, off bool) (*Changed[UserDoc], error) {
	u, err := s.user(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return s.userChange(ctx, in.Change, u.User, identity.EnableUser{User: u.User, Disable: off})
}

// GrantIn gives or takes a role.
type GrantIn struct {
	NamedChange
	Body GrantDoc
}

// tenantName is where the role would hold: there the caller needs the right to give it.
func (g *GrantIn) tenantName() string { return g.Body.Tenant }

func (s *Server) grant(ctx context.Context, in *GrantIn, off bool) (*Changed[UserDoc], error) {
	u, err := s.user(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	g := identity.Grant{Role: identity.Role(in.Body.Role)}
	if in.Body.Tenant != "" {
		t, err := s.tenant(in.Body.Tenant)
		if err != nil {
			return nil, err
		}
		g.Tenant = t.Tenant
	}
	return s.userChange(ctx, in.Change, u.User, identity.GrantRole{
		User: u.User, Grant: g, Revoke: off,
	})
}

func (s *Server) deleteUser(ctx context.Context, in *NamedChange) (*Changed[Gone], error) {
	u, err := s.user(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), identity.DeleteUser{
		Cluster: s.cluster(), User: u.User,
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{u.Name.Text, "deleted"}}, nil
}

// ErasedUser is a user of whom the log holds nothing in words any more.
type ErasedUser struct {
	ID    string `json:"id"`
	Name  string `json:"name" doc:"what stands in the place of the name everywhere"`
	State string `json:"state" enum:"erased"`
	Clear bool   `json:"clear,omitempty" doc:"events from before names were sealed hold it for ever"`
}

// eraseUser records the erasure, which shuts the user out, and then destroys the key. When it fails
// between the two, the node that leads goes on.
func (s *Server) eraseUser(ctx context.Context, in *NamedChange) (*Changed[ErasedUser], error) {
	user, err := s.erasable(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), identity.EraseUser{
		Cluster: s.cluster(), User: user,
	})
	if err != nil {
		return nil, err
	}
	if err := s.b.DestroyKey(ctx, user); err != nil {
		return nil, &domain.Error{
			Kind: domain.KindOf(err), Ref: "user/" + identity.ErasedName(user), Err: err,
			Msg:    "the erasure is recorded and the key not destroyed yet",
			Remedy: "repeat it by the id " + user.String() + "; the node that leads tries it, too",
		}
	}
	_, inClear := s.b.Now().Access.Erased(user)
	return &Changed[ErasedUser]{Position: res.Position.String(), Body: ErasedUser{
		ID: user.String(), Name: identity.ErasedName(user), State: "erased", Clear: inClear,
	}}, nil
}

// Keys are the keys of persons, closed under a passphrase.
type Keys struct {
	Users  int    `json:"users" doc:"whose keys are in it"`
	Bundle []byte `json:"bundle" doc:"see eventstore/vault"`
}

// exportKeys records that keys are handed out, and hands them out.
func (s *Server) exportKeys(ctx context.Context, in *struct {
	Change
	Body struct {
		Passphrase string `json:"passphrase" minLength:"12" maxLength:"1024"`
	}
},
) (*Changed[Keys], error) {
	bundle, users, err := s.b.Bundle(ctx, in.Body.Passphrase)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), cluster.RecordKeysExport{
		Cluster: s.cluster(), Users: int64(users),
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Keys]{Position: res.Position.String(), Body: Keys{users, bundle}}, nil
}

// erasable finds a user by name or id, also one who was deleted by id.
func (s *Server) erasable(ctx context.Context, ref string) (domain.UserID, error) {
	u, err := s.user(ctx, ref)
	if err == nil {
		return u.User, nil
	}
	id, bad := domain.ParseUUID(ref)
	if bad == nil && s.b.Now().Access.Was(domain.UserID{UUID: id}) {
		return domain.UserID{UUID: id}, nil
	}
	return domain.UserID{}, err
}
