// Package tenancy holds the tenant: whose names and quotas every create, rename and grow reserves
// first, in one append to the tenant's own stream. So two creates of one name cannot both win and
// no quota is ever exceeded by a race; the object's own event follows on its own stream and
// confirms the reservation without an event here.
package tenancy

import (
	"fmt"
	"strings"

	"weft/domain"
)

// Category of a tenant's stream.
const Category = "tenant"

// NameMax is the longest name of any object in bytes.
const NameMax = 63

// ReservedMax is the most live reservations of one tenant.
const ReservedMax = 100_000

// Stream gives a tenant's stream.
func Stream(id domain.TenantID) domain.StreamID { return domain.StreamOf(Category, id.UUID) }

// DepthMax is how deep tenants nest: a tenant without a parent has depth one.
const DepthMax = 8

// TenantCreated is the first event of a tenant. Parent is zero for one that stands below none.
type TenantCreated struct {
	Tenant domain.TenantID `msgpack:"tenant,omitempty"`
	Name   string          `msgpack:"name,omitempty"`
	Parent domain.TenantID `msgpack:"parent,omitempty"`
}

// TenantDeleted is the last event of a tenant.
type TenantDeleted struct {
	Tenant domain.TenantID `msgpack:"tenant,omitempty"`
}

// QuotaSet replaces the tenant's limits; zero is no limit.
type QuotaSet struct {
	Bytes   domain.Bytes `msgpack:"bytes,omitempty"`
	Volumes int64        `msgpack:"volumes,omitempty"`
}

// Reserved holds a name and an amount for an object that is about to be made, renamed or grown.
type Reserved struct {
	Command domain.CommandID `msgpack:"command,omitempty"`
	Kind    string           `msgpack:"kind,omitempty"` // "template", "app"
	Name    string           `msgpack:"name,omitempty"` // empty: an amount only
	Object  domain.UUID      `msgpack:"object,omitempty"`
	Bytes   domain.Bytes     `msgpack:"bytes,omitempty"`
	Volumes int64            `msgpack:"volumes,omitempty"`
}

// ReserveReleased gives back everything an object held, or the last reservation of an amount.
type ReserveReleased struct {
	Object domain.UUID  `msgpack:"object,omitempty"`
	Bytes  domain.Bytes `msgpack:"bytes,omitempty"` // 0: all of the object
	Why    string       `msgpack:"why,omitempty"`
}

// EventType implements domain.Event.
func (TenantCreated) EventType() string { return "TenantCreated" }

// EventType implements domain.Event.
func (TenantDeleted) EventType() string { return "TenantDeleted" }

// EventType implements domain.Event.
func (QuotaSet) EventType() string { return "QuotaSet" }

// EventType implements domain.Event.
func (Reserved) EventType() string { return "Reserved" }

// EventType implements domain.Event.
func (ReserveReleased) EventType() string { return "ReserveReleased" }

// Create makes a tenant. With a cluster its name is taken in the cluster's directory first, and a
// parent holds it: two tenants never share a name, and no parent is deleted above its child.
type Create struct {
	Tenant  domain.TenantID
	Name    string
	Parent  domain.TenantID
	Cluster domain.ClusterID
}

// Delete removes a tenant that holds nothing: no template, no instance, no sub-tenant. One that is
// gone already is no error.
type Delete struct {
	Tenant  domain.TenantID
	Parent  domain.TenantID
	Cluster domain.ClusterID
}

// SetQuota replaces the tenant's limits.
type SetQuota struct {
	Tenant  domain.TenantID
	Bytes   domain.Bytes
	Volumes int64
}

// Reserve takes a name and an amount.
type Reserve struct {
	Tenant  domain.TenantID
	Kind    string
	Name    string
	Object  domain.UUID
	Bytes   domain.Bytes
	Volumes int64
	// Above are the tenants above, from the nearest to the top, of whose quotas the amount is taken
	// first: a limit holds for all that stands below it. Tenants never move, so they stay the same.
	Above []domain.TenantID `msgpack:",omitempty"`
	// Below says that the object is one of a tenant below this one, whose users see nothing of this
	// tenant: a refusal then tells no figures of it.
	Below bool `msgpack:",omitempty"`
}

// Release gives back what an object holds: all of it, or its last reservation of so many bytes.
type Release struct {
	Tenant domain.TenantID
	Object domain.UUID
	Bytes  domain.Bytes
	Why    string
	Above  []domain.TenantID `msgpack:",omitempty"` // as it was reserved
}

// Lower gives back a part of what an object holds, since it is to become smaller.
type Lower struct {
	Tenant domain.TenantID
	Object domain.UUID
	By     domain.Bytes
	Above  []domain.TenantID `msgpack:",omitempty"` // as it was reserved
}

// CommandType implements domain.Command.
func (Lower) CommandType() string { return "LowerReservation" }

// Stream implements domain.Command.
func (c Lower) Stream() domain.StreamID { return Stream(c.Tenant) }

// CommandType implements domain.Command.
func (Create) CommandType() string { return "CreateTenant" }

// Stream implements domain.Command.
func (c Create) Stream() domain.StreamID { return Stream(c.Tenant) }

// Validate implements domain.Validator.
func (c Create) Validate() error { return CheckName("tenancy.Create", "name", c.Name) }

// Before implements domain.Prelude.
func (c Create) Before() []domain.Command {
	var list []domain.Command
	if !c.Cluster.IsZero() {
		list = append(list, TakeName{
			Cluster: c.Cluster, Kind: "tenant", Name: c.Name, Object: c.Tenant.UUID,
		})
	}
	if !c.Parent.IsZero() {
		list = append(list, Reserve{
			Tenant: c.Parent, Kind: "tenant", Name: c.Name, Object: c.Tenant.UUID,
		})
	}
	return list
}

// Undo implements domain.Reversal.
func (c Create) Undo() []domain.Command { return free(c.Cluster, c.Parent, c.Tenant, "refused") }

func free(in domain.ClusterID, parent, t domain.TenantID, why string) []domain.Command {
	var list []domain.Command
	if !parent.IsZero() {
		list = append(list, Release{Tenant: parent, Object: t.UUID, Why: "tenant " + why})
	}
	if !in.IsZero() {
		list = append(list, FreeName{in, t.UUID})
	}
	return list
}

// CommandType implements domain.Command.
func (Delete) CommandType() string { return "DeleteTenant" }

// Stream implements domain.Command.
func (c Delete) Stream() domain.StreamID { return Stream(c.Tenant) }

// After implements domain.Postlude.
func (c Delete) After() []domain.Command { return free(c.Cluster, c.Parent, c.Tenant, "deleted") }

// CommandType implements domain.Command.
func (SetQuota) CommandType() string { return "SetQuota" }

// Stream implements domain.Command.
func (c SetQuota) Stream() domain.StreamID { return Stream(c.Tenant) }

// CommandType implements domain.Command.
func (Reserve) CommandType() string { return "Reserve" }

// Stream implements domain.Command.
func (c Reserve) Stream() domain.StreamID { return Stream(c.Tenant) }

// Before implements domain.Prelude.
func (c Reserve) Before() []domain.Command {
	if len(c.Above) == 0 {
		return nil
	}
	c.Tenant, c.Above, c.Name, c.Below = c.Above[0], c.Above[1:], "", true
	return []domain.Command{c}
}

// Undo implements domain.Reversal: only what this command took above.
func (c Reserve) Undo() []domain.Command {
	if len(c.Above) == 0 {
		return nil
	}
	return []domain.Command{Release{
		Tenant: c.Above[0], Above: c.Above[1:], Object: c.Object, Bytes: c.Bytes, Why: "refused below",
	}}
}

// After implements domain.Postlude.
func (c Release) After() []domain.Command {
	if len(c.Above) == 0 {
		return nil
	}
	c.Tenant, c.Above = c.Above[0], c.Above[1:]
	return []domain.Command{c}
}

// After implements domain.Postlude.
func (c Lower) After() []domain.Command {
	if len(c.Above) == 0 {
		return nil
	}
	c.Tenant, c.Above = c.Above[0], c.Above[1:]
	return []domain.Command{c}
}

// CommandType implements domain.Command.
func (Release) CommandType() string { return "Release" }

// Stream implements domain.Command.
func (c Release) Stream() domain.StreamID { return Stream(c.Tenant) }

// Held is one live reservation.
type Held struct{ Reserved }

// State is a tenant folded.
type State struct {
	Exists  bool
	Deleted bool
	Name    string
	Quota   QuotaSet
	Bytes   domain.Bytes // sum of what is held
	Count   int64        // volumes held
	Held    many[Held]   // in the order they were taken
}

// Aggregate is the tenant for the executor.
func Aggregate() domain.Aggregate[State] {
	return domain.Aggregate[State]{Category: Category, Evolve: Evolve, Decide: Decide}
}

// Evolve folds one event.
func Evolve(s State, ev domain.Event) State {
	switch ev := ev.(type) {
	case *TenantCreated:
		s.Exists, s.Name = true, ev.Name
	case *TenantDeleted:
		s.Deleted = true
	case *QuotaSet:
		s.Quota = *ev
	case *Reserved:
		s.Held = s.Held.with(Held{*ev})
		s.Bytes += ev.Bytes
		s.Count += ev.Volumes
	case *ReserveReleased:
		s = s.release(ev)
	}
	return s
}

func (s State) release(ev *ReserveReleased) State {
	done := false
	s.Held = s.Held.without(func(h Held) bool { // the youngest first
		part := ev.Bytes == 0 || h.Bytes == ev.Bytes && !done
		if h.Object != ev.Object || !part {
			return false
		}
		s.Bytes -= h.Bytes
		s.Count -= h.Volumes
		done = true
		return true
	})
	return s
}

// Decide judges one command.
func Decide(s State, r domain.Request) ([]domain.Event, error) {
	const op = "tenancy.Decide"
	if c, ok := r.Command.(Create); ok {
		if s.Exists {
			return nil, domain.Errorf(domain.Exists, "tenant %s exists", c.Tenant)
		}
		if err := CheckName(op, "name", c.Name); err != nil {
			return nil, err
		}
		return []domain.Event{&TenantCreated{c.Tenant, c.Name, c.Parent}}, nil
	}
	if c, ok := r.Command.(Delete); ok && s.Exists {
		return s.delete(c)
	}
	if !s.Exists || s.Deleted {
		return nil, domain.Errorf(domain.NotFound, "no such tenant")
	}
	switch c := r.Command.(type) {
	case SetQuota:
		if c.Bytes < 0 || c.Volumes < 0 {
			return nil, domain.Errorf(domain.Invalid, "a quota is not negative")
		}
		return []domain.Event{&QuotaSet{c.Bytes, c.Volumes}}, nil
	case Reserve:
		return s.reserve(c, r.ID)
	case Lower:
		return s.lower(c, r.ID), nil
	case Release:
		for h := range s.Held.All() {
			if h.Object == c.Object && (c.Bytes == 0 || h.Bytes == c.Bytes) {
				return []domain.Event{&ReserveReleased{c.Object, c.Bytes, c.Why}}, nil
			}
		}
		return nil, nil
	}
	return nil, domain.Errorf(domain.Internal, "tenant: unknown command %T", r.Command)
}

// lower replaces all reservations of an object by one of a smaller amount. What it holds by name
// keeps its name. One that holds nothing was released meanwhile.
func (s State) lower(c Lower, id domain.CommandID) []domain.Event {
	now, held := Reserved{Command: id, Object: c.Object, Bytes: -c.By}, false
	for h := range s.Held.All() {
		if h.Object != c.Object {
			continue
		}
		held = true
		now.Bytes += h.Bytes
		now.Volumes += h.Volumes
		if now.Kind == "" {
			now.Kind, now.Name = h.Kind, h.Name
		}
	}
	if !held || c.By <= 0 {
		return nil
	}
	now.Bytes = max(now.Bytes, 0)
	return []domain.Event{&ReserveReleased{Object: c.Object, Why: "became smaller"}, &now}
}

func (s State) delete(c Delete) ([]domain.Event, error) {
	switch {
	case s.Deleted:
		return nil, nil
	case s.Held.Len() > 0:
		h := s.Held.newest()
		return nil, &domain.Error{
			Kind: domain.Conflict, Ref: "tenant/" + s.Name,
			Msg:    fmt.Sprintf("it holds %d objects, such as %s/%s", s.Held.Len(), h.Kind, h.Name),
			Remedy: "delete what it holds first",
		}
	}
	return []domain.Event{&TenantDeleted{c.Tenant}}, nil
}

func (s State) reserve(c Reserve, id domain.CommandID) ([]domain.Event, error) {
	for h := range s.Held.All() {
		if c.Name != "" && h.Kind == c.Kind && h.Name == c.Name {
			return nil, &domain.Error{
				Kind: domain.Exists, Ref: c.Kind + "/" + c.Name,
				Msg:    "the name is taken by " + h.Object.String(),
				Remedy: "choose another name, or remove that " + c.Kind,
			}
		}
	}
	switch {
	case c.Bytes < 0 || c.Volumes < 0:
		return nil, domain.Errorf(domain.Invalid, "a reservation is not negative")
	case s.Held.Len() >= ReservedMax:
		return nil, domain.Errorf(domain.NoSpace, "the tenant holds %d objects", s.Held.Len())
	}
	if err := s.exceeds(c); err != nil {
		if c.Below {
			err = domain.Errorf(domain.NoSpace, "the quota of a tenant above leaves no room for it")
		}
		return nil, err
	}
	return []domain.Event{&Reserved{id, c.Kind, c.Name, c.Object, c.Bytes, c.Volumes}}, nil
}

// exceeds gives by what a reservation goes beyond the quota, nil where it does not.
func (s State) exceeds(c Reserve) error {
	switch {
	case c.Bytes > 0 && s.Quota.Bytes > 0 && s.Bytes+c.Bytes > s.Quota.Bytes:
		return domain.Errorf(domain.NoSpace, "quota: %s of %s are held, %s more wanted", s.Bytes,
			s.Quota.Bytes, c.Bytes)
	case c.Volumes > 0 && s.Quota.Volumes > 0 && s.Count+c.Volumes > s.Quota.Volumes:
		return domain.Errorf(domain.NoSpace, "quota: %d of %d volumes are held", s.Count,
			s.Quota.Volumes)
	}
	return nil
}

// CheckName refuses a name that is no lower-case DNS label: it becomes part of IQNs and export
// names.
func CheckName(op, path, name string) error {
	var c domain.Checker
	c.Check(ValidName(name), path,
		"%q is no name: 1 to %d of a-z, 0-9 and '-', starting with a letter", clip(name), NameMax)
	return c.Err(op, "")
}

func clip(s string) string { return s[:min(len(s), NameMax+1)] }

// ValidName tells whether a name is a lower-case DNS label.
func ValidName(name string) bool {
	if name == "" || len(name) > NameMax || strings.HasSuffix(name, "-") {
		return false
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return true
}
