package client

import (
	"context"
	"net/url"
	"strconv"

	"weft/domain"
)

// Tenant is a tenant.
type Tenant struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Parent string `json:"parent,omitempty"`
	Quota  Quota  `json:"quota"`
}

// Quota is what a tenant may hold; 0 is no limit.
type Quota struct {
	Bytes   domain.Bytes `json:"bytes"`
	Volumes int64        `json:"volumes"`
}

// TenantBody asks for a tenant.
type TenantBody struct {
	Name   string `json:"name"`
	Parent string `json:"parent,omitempty"`
	Quota  *Quota `json:"quota,omitempty"`
}

// Grant is a role; without a tenant it holds in the whole cluster.
type Grant struct {
	Role   string `json:"role"`
	Tenant string `json:"tenant,omitempty"`
}

// User is a user with the roles that the caller may see.
type User struct {
	ID    string  `json:"id"`
	Name  string  `json:"name"`
	State string  `json:"state"` // "enabled", "disabled", "erased"
	Roles []Grant `json:"roles"`
	IDP   string  `json:"idp,omitempty"` // the identity provider that vouches for the user
}

// AccessTokenBody asks for a token of the API.
type AccessTokenBody struct {
	User       string `json:"user,omitempty"` // empty: the caller's own
	Role       string `json:"role"`
	Tenant     string `json:"tenant,omitempty"`
	TTLSeconds int64  `json:"ttl_seconds"`
	Note       string `json:"note,omitempty"`
	// Hash is the SHA-256, in hex, of the secret that the caller drew; empty: the node draws it.
	Hash string `json:"secret_sha256,omitempty"`
}

// AccessToken is a token of the API.
type AccessToken struct {
	ID      string `json:"id"`
	User    string `json:"user"`
	Role    string `json:"role"`
	Tenant  string `json:"tenant,omitempty"`
	Expires string `json:"expires"`
	State   string `json:"state"` // "valid", "expired", "revoked"
	Note    string `json:"note,omitempty"`
	Token   string `json:"token,omitempty"` // once, if the node drew the secret
}

// Who is what the API knows of its caller.
type Who struct {
	Name    string  `json:"name"`
	User    string  `json:"user,omitempty"`
	Roles   []Grant `json:"roles"`
	Limits  []Grant `json:"limits,omitempty"`
	Token   string  `json:"token,omitempty"`
	IDP     string  `json:"idp,omitempty"`
	Expires string  `json:"expires,omitempty"`
}

// Refusal is a request that a node refused.
type Refusal struct {
	Time      string `json:"time"`
	Actor     string `json:"actor,omitempty"`
	Source    string `json:"source"`
	Request   string `json:"request"`
	Operation string `json:"operation"`
	Tenant    string `json:"tenant,omitempty"`
	Status    int    `json:"status"`
	Reason    string `json:"reason"`
}

// Tenants lists the tenants that the caller may see.
func (c *Client) Tenants(ctx context.Context, at At) (Reply[List[Tenant]], error) {
	return get[List[Tenant]](ctx, c, "/v1/tenants", at.query())
}

// CreateTenant makes a tenant; Exists if the name is taken.
func (c *Client) CreateTenant(ctx context.Context, b TenantBody) (Reply[Tenant], error) {
	return change[Tenant](ctx, c, "POST", "/v1/tenants", b, Change{})
}

// SetQuota limits what a tenant may hold.
func (c *Client) SetQuota(ctx context.Context, tenant string, q Quota) (Reply[Tenant], error) {
	return change[Tenant](ctx, c, "PUT", "/v1/tenants/"+seg(tenant)+"/quota", q, Change{})
}

// DeleteTenant deletes a tenant that holds nothing; Conflict otherwise.
func (c *Client) DeleteTenant(ctx context.Context, name string) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/tenants/"+seg(name), nil, Change{})
}

// Users lists the users that the caller may see.
func (c *Client) Users(ctx context.Context, at At) (Reply[List[User]], error) {
	at.Tenant = ""
	return get[List[User]](ctx, c, "/v1/users", at.query())
}

// CreateUser makes a user without a role; Exists if the name is taken.
func (c *Client) CreateUser(ctx context.Context, name string) (Reply[User], error) {
	body := struct {
		Name string `json:"name"`
	}{name}
	return change[User](ctx, c, "POST", "/v1/users", body, Change{})
}

// EnableUser lets a user in again, or shuts it out.
func (c *Client) EnableUser(ctx context.Context, name string, on bool) (Reply[User], error) {
	verb := "/disable"
	if on {
		verb = "/enable"
	}
	return change[User](ctx, c, "POST", "/v1/users/"+seg(name)+verb, nil, Change{})
}

// GrantRole gives a user a role.
func (c *Client) GrantRole(ctx context.Context, name string, g Grant) (Reply[User], error) {
	return change[User](ctx, c, "POST", "/v1/users/"+seg(name)+"/grant", g, Change{})
}

// RevokeRole takes a role from a user.
func (c *Client) RevokeRole(ctx context.Context, name string, g Grant) (Reply[User], error) {
	return change[User](ctx, c, "POST", "/v1/users/"+seg(name)+"/revoke", g, Change{})
}

// DeleteUser deletes a user and voids its tokens.
func (c *Client) DeleteUser(ctx context.Context, name string) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/users/"+seg(name), nil, Change{})
}

// ErasedUser is a user of whom the log holds nothing in words any more.
type ErasedUser struct {
	ID    string `json:"id"`
	Name  string `json:"name"` // what stands in the place of the name everywhere
	State string `json:"state"`
	// Clear says that events from before names were sealed hold the name for ever.
	Clear bool `json:"clear,omitempty"`
}

// EraseUser destroys the key of what the log holds of a user in words. By id it may be repeated,
// and takes users who were deleted, too.
func (c *Client) EraseUser(ctx context.Context, ref string) (Reply[ErasedUser], error) {
	return change[ErasedUser](ctx, c, "POST", "/v1/users/"+seg(ref)+"/erase", nil, Change{})
}

// Keys are the keys of persons, closed under a passphrase.
type Keys struct {
	Users  int    `json:"users"`
	Bundle []byte `json:"bundle"`
}

// ExportKeys gives the keys of what the log holds sealed of persons, to be kept beside a backup.
func (c *Client) ExportKeys(ctx context.Context, passphrase string) (Reply[Keys], error) {
	return change[Keys](ctx, c, "POST", "/v1/keys:export", map[string]string{
		"passphrase": passphrase,
	}, Change{})
}

// AccessTokens lists the caller's tokens; an administrator's call lists all.
func (c *Client) AccessTokens(ctx context.Context, at At) (Reply[List[AccessToken]], error) {
	at.Tenant = ""
	return get[List[AccessToken]](ctx, c, "/v1/tokens", at.query())
}

// IssueToken issues a token of the API.
func (c *Client) IssueToken(ctx context.Context, b AccessTokenBody) (Reply[AccessToken], error) {
	return change[AccessToken](ctx, c, "POST", "/v1/tokens", b, Change{})
}

// RevokeToken revokes a token by its id.
func (c *Client) RevokeToken(ctx context.Context, id string) (Reply[AccessToken], error) {
	return change[AccessToken](ctx, c, "DELETE", "/v1/tokens/"+seg(id), nil, Change{})
}

// Whoami tells who the caller is.
func (c *Client) Whoami(ctx context.Context) (Reply[Who], error) {
	return get[Who](ctx, c, "/v1/whoami", nil)
}

// Refusals lists what the node refused, the newest first.
func (c *Client) Refusals(ctx context.Context, limit int) (Reply[List[Refusal]], error) {
	return get[List[Refusal]](ctx, c, "/v1/audit/refusals", url.Values{
		"limit": {strconv.Itoa(limit)},
	})
}
