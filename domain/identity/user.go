package identity

import (
	"bytes"
	"slices"
	"strings"

	"weft/domain"
	"weft/domain/tenancy"
)

// UserCategory of a user's stream.
const UserCategory = "user"

// Limits of users.
const (
	// UserNameMax is the longest name of a user in bytes.
	UserNameMax = 128
	// GrantsMax is the most roles of one user.
	GrantsMax = 256
)

// BootstrapName is what the bearer of a node's own administrator token is called. No user bears it.
const BootstrapName = "admin"

// The kinds of digest (vault.Digest) that stand in the log for what must be found again without
// being read: the name of a user, and who a user is to an identity provider.
const (
	NameDigest    = "user"
	SubjectDigest = "subject"
)

// What stands for a name that nobody can read: of a user who was erased, and of one whose key is
// not at hand. No user is called so.
const (
	erasedPrefix = "erased-"
	sealedPrefix = "sealed-"
	shortID      = 8
)

// ErasedName is what an erased user is called everywhere.
func ErasedName(id domain.UserID) string { return erasedPrefix + id.String()[:shortID] }

// SealedName is what a user is called where the key of the name is not at hand.
func SealedName(id domain.UserID) string { return sealedPrefix + id.String()[:shortID] }

// UserStream gives a user's stream.
func UserStream(id domain.UserID) domain.StreamID { return domain.StreamOf(UserCategory, id.UUID) }

// UserCreated is the first event of a user. Tag is the digest of the name.
type UserCreated struct {
	User domain.UserID   `msgpack:"user,omitempty"`
	Name domain.Personal `msgpack:"name,omitempty"`
	Tag  []byte          `msgpack:"tag,omitempty"`
}

// AboutUser implements domain.AboutUser.
func (e UserCreated) AboutUser() domain.UserID { return e.User }

// UserDisabled says that the user may do nothing until it is enabled.
type UserDisabled struct {
	User domain.UserID `msgpack:"user,omitempty"`
}

// UserEnabled ends UserDisabled.
type UserEnabled struct {
	User domain.UserID `msgpack:"user,omitempty"`
}

// UserRoleGranted gives a role for the cluster (no tenant) or for a tenant and those below it.
type UserRoleGranted struct {
	User   domain.UserID   `msgpack:"user,omitempty"`
	Role   string          `msgpack:"role,omitempty"`
	Tenant domain.TenantID `msgpack:"tenant,omitempty"`
}

// UserRoleRevoked takes such a role away.
type UserRoleRevoked struct {
	User   domain.UserID   `msgpack:"user,omitempty"`
	Role   string          `msgpack:"role,omitempty"`
	Tenant domain.TenantID `msgpack:"tenant,omitempty"`
}

// UserDeleted is the last event of a user.
type UserDeleted struct {
	User domain.UserID `msgpack:"user,omitempty"`
}

// UserErased says that the key of what the log holds of a user in words is destroyed, for good: the
// user is shut out, and nothing gives the name back. Clear says that events from before there were
// keys hold it in clear, which nothing takes out of the log.
type UserErased struct {
	User  domain.UserID `msgpack:"user,omitempty"`
	Clear bool          `msgpack:"clear,omitempty"`
}

// EventType implements domain.Event.
func (UserErased) EventType() string { return "UserErased" }

// EventType implements domain.Event.
func (UserCreated) EventType() string { return "UserCreated" }

// EventType implements domain.Event.
func (UserDisabled) EventType() string { return "UserDisabled" }

// EventType implements domain.Event.
func (UserEnabled) EventType() string { return "UserEnabled" }

// EventType implements domain.Event.
func (UserRoleGranted) EventType() string { return "UserRoleGranted" }

// EventType implements domain.Event.
func (UserRoleRevoked) EventType() string { return "UserRoleRevoked" }

// EventType implements domain.Event.
func (UserDeleted) EventType() string { return "UserDeleted" }

// CreateUser makes a user without any role. Its name is taken in the cluster's directory first, by
// its digest.
type CreateUser struct {
	Cluster domain.ClusterID
	User    domain.UserID
	Name    domain.Personal // in clear
	Tag     []byte          // its digest
}

// EnableUser lets a user in again, or shuts it out.
type EnableUser struct {
	User    domain.UserID
	Disable bool
}

// GrantRole gives a user a role, or takes it away. What is so already is no error.
type GrantRole struct {
	User   domain.UserID
	Grant  Grant
	Revoke bool
}

// DeleteUser removes a user for good; its name may be used again, its id never is.
type DeleteUser struct {
	Cluster domain.ClusterID
	User    domain.UserID
}

// EraseUser gives up what the log holds of a user in words, also of one who was deleted. Again is
// no error. The key is destroyed by whoever runs the command, once it is recorded.
type EraseUser struct {
	Cluster domain.ClusterID
	User    domain.UserID
}

// CommandType implements domain.Command.
func (EraseUser) CommandType() string { return "EraseUser" }

// Stream implements domain.Command.
func (c EraseUser) Stream() domain.StreamID { return UserStream(c.User) }

// After implements domain.Postlude.
func (c EraseUser) After() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.User.UUID}}
}

// CommandType implements domain.Command.
func (CreateUser) CommandType() string { return "CreateUser" }

// Stream implements domain.Command.
func (c CreateUser) Stream() domain.StreamID { return UserStream(c.User) }

// Validate implements domain.Validator.
func (c CreateUser) Validate() error {
	var k domain.Checker
	name := c.Name.Text
	k.Check(ValidUserName(name), "name",
		"%q is no user's name: 1 to %d of a-z, 0-9, '-', '.', '_' and '@', starting with a letter",
		clip(name), UserNameMax)
	k.Check(name != BootstrapName, "name", "the bearer of a node's own token is called so")
	k.Check(!strings.HasPrefix(name, erasedPrefix) && !strings.HasPrefix(name, sealedPrefix), "name",
		"users whose names nobody can read are called so")
	k.Check(len(c.Tag) > 0, "tag", "missing")
	return k.Err("identity.CreateUser", "")
}

// Before implements domain.Prelude.
func (c CreateUser) Before() []domain.Command {
	return []domain.Command{tenancy.TakeName{
		Cluster: c.Cluster, Kind: "user", Person: c.Name, Tag: c.Tag, Object: c.User.UUID,
	}}
}

// Undo implements domain.Reversal.
func (c CreateUser) Undo() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.User.UUID}}
}

// CommandType implements domain.Command.
func (c EnableUser) CommandType() string {
	if c.Disable {
		return "DisableUser"
	}
	return "EnableUser"
}

// Stream implements domain.Command.
func (c EnableUser) Stream() domain.StreamID { return UserStream(c.User) }

// CommandType implements domain.Command.
func (c GrantRole) CommandType() string {
	if c.Revoke {
		return "RevokeRole"
	}
	return "GrantRole"
}

// Stream implements domain.Command.
func (c GrantRole) Stream() domain.StreamID { return UserStream(c.User) }

// CommandType implements domain.Command.
func (DeleteUser) CommandType() string { return "DeleteUser" }

// Stream implements domain.Command.
func (c DeleteUser) Stream() domain.StreamID { return UserStream(c.User) }

// After implements domain.Postlude.
func (c DeleteUser) After() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.User.UUID}}
}

// User is a user folded.
type User struct {
	User     domain.UserID
	Name     domain.Personal
	Tag      []byte // digest of the name; empty where the log holds the name in clear
	Disabled bool
	Deleted  bool
	Erased   bool
	Grants   []Grant // in the order they were given
	// Provider vouches for the user, zero for nobody; Subject is who it knows it as, zero for the
	// user's name, and SubjectTag its digest.
	Provider   domain.IdentityProviderID
	Subject    domain.Personal
	SubjectTag []byte
}

// UserAggregate is the user for the executor.
func UserAggregate() domain.Aggregate[User] {
	return domain.Aggregate[User]{Category: UserCategory, Evolve: EvolveUser, Decide: DecideUser}
}

// EvolveUser folds one event.
func EvolveUser(u User, ev domain.Event) User {
	switch ev := ev.(type) {
	case *UserCreated:
		u.User, u.Name, u.Tag = ev.User, ev.Name, ev.Tag
	case *UserDisabled:
		u.Disabled = true
	case *UserEnabled:
		u.Disabled = false
	case *UserRoleGranted:
		u.Grants = append(slices.Clip(u.Grants), Grant{Role(ev.Role), ev.Tenant})
	case *UserRoleRevoked:
		u.Grants = slices.DeleteFunc(slices.Clone(u.Grants), func(g Grant) bool {
			return g == Grant{Role(ev.Role), ev.Tenant}
		})
	case *UserLinked:
		u.Provider, u.Subject, u.SubjectTag = ev.Provider, ev.Subject, ev.Tag
	case *UserUnlinked:
		u.Provider, u.Subject, u.SubjectTag = domain.IdentityProviderID{}, domain.Personal{}, nil
	case *UserDeleted:
		u.Deleted, u.Grants = true, nil
	case *UserErased: // what is left is that there was somebody
		u = User{User: ev.User, Deleted: u.Deleted, Disabled: true, Erased: true}
	}
	return u
}

// DecideUser judges one command.
func DecideUser(u User, r domain.Request) ([]domain.Event, error) {
	if c, ok := r.Command.(CreateUser); ok {
		if !u.User.IsZero() {
			return nil, domain.Errorf(domain.Exists, "user %s exists", c.User)
		}
		return []domain.Event{&UserCreated{c.User, c.Name, c.Tag}}, nil
	}
	if _, ok := r.Command.(DeleteUser); ok && u.Deleted {
		return nil, nil
	}
	if _, ok := r.Command.(EraseUser); ok && !u.User.IsZero() {
		return u.erase(), nil
	}
	if u.User.IsZero() || u.Deleted {
		return nil, domain.Errorf(domain.NotFound, "no such user")
	}
	if _, ok := r.Command.(DeleteUser); u.Erased && !ok {
		return nil, domain.Errorf(domain.Conflict, "the user was erased and does not come back")
	}
	switch c := r.Command.(type) {
	case EnableUser:
		switch {
		case c.Disable == u.Disabled:
			return nil, nil
		case c.Disable:
			return []domain.Event{&UserDisabled{u.User}}, nil
		}
		return []domain.Event{&UserEnabled{u.User}}, nil
	case GrantRole:
		return u.grant(c)
	case LinkUser:
		if c.Provider == u.Provider && u.known(c.Subject.Text, c.Tag) {
			return nil, nil
		}
		return []domain.Event{&UserLinked{u.User, c.Provider, c.Subject, c.Tag}}, nil
	case UnlinkUser:
		if u.Provider.IsZero() {
			return nil, nil
		}
		return []domain.Event{&UserUnlinked{u.User}}, nil
	case DeleteUser:
		return []domain.Event{&UserDeleted{u.User}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "user: unknown command %T", r.Command)
}

// Called tells whether a name, with this digest, is the user's.
func (u User) Called(name string, tag []byte) bool {
	return name != "" && (u.Name.Text == name || len(u.Tag) > 0 && bytes.Equal(u.Tag, tag))
}

// BySubject tells whether the provider knows the user by a subject, and not by name.
func (u User) BySubject() bool { return u.Subject.Text != "" || len(u.SubjectTag) > 0 }

// KnownAs tells whether a subject, with this digest, is the one that the provider knows the user
// by.
func (u User) KnownAs(subject string, tag []byte) bool {
	return subject != "" &&
		(u.Subject.Text == subject || len(u.SubjectTag) > 0 && bytes.Equal(u.SubjectTag, tag))
}

// known tells whether the user is linked by this subject, or by name where it is empty.
func (u User) known(subject string, tag []byte) bool {
	if subject == "" {
		return !u.BySubject()
	}
	return u.KnownAs(subject, tag)
}

func (u User) erase() []domain.Event {
	if u.Erased {
		return nil
	}
	return []domain.Event{&UserErased{u.User, u.Name.Text != "" || u.Subject.Text != ""}}
}

func (u User) grant(c GrantRole) ([]domain.Event, error) {
	var k domain.Checker
	c.Grant.check(&k, "role")
	if err := k.Err("identity.GrantRole", ""); err != nil {
		return nil, err
	}
	has := slices.Contains(u.Grants, c.Grant)
	switch {
	case has != c.Revoke:
		return nil, nil
	case c.Revoke:
		return []domain.Event{&UserRoleRevoked{u.User, string(c.Grant.Role), c.Grant.Tenant}}, nil
	case len(u.Grants) >= GrantsMax:
		return nil, domain.Errorf(domain.NoSpace, "the user has %d roles", len(u.Grants))
	}
	return []domain.Event{&UserRoleGranted{u.User, string(c.Grant.Role), c.Grant.Tenant}}, nil
}

// ValidUserName tells whether a user may be called so: a short name or an address of mail.
func ValidUserName(name string) bool {
	if name == "" || len(name) > UserNameMax {
		return false
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z'
		other := c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '@'
		if !letter && (i == 0 || !other) {
			return false
		}
	}
	return true
}
