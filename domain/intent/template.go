package intent

import (
	"slices"

	"weft/domain"
	"weft/domain/tenancy"
)

// TemplateCategory of a template's stream.
const TemplateCategory = "template"

// VersionsMax is the most versions of one template.
const VersionsMax = 10_000

// TemplateStream gives a template's stream.
func TemplateStream(id domain.TemplateID) domain.StreamID {
	return domain.StreamOf(TemplateCategory, id.UUID)
}

// TemplateCreated is the first event of a template.
type TemplateCreated struct {
	Template    domain.TemplateID `msgpack:"template,omitempty"`
	Tenant      domain.TenantID   `msgpack:"tenant,omitempty"`
	Name        string            `msgpack:"name,omitempty"`
	Description string            `msgpack:"description,omitempty"`
}

// TemplateVersionPublished adds an immutable version; versions count from 1.
type TemplateVersionPublished struct {
	Version int64  `msgpack:"version,omitempty"`
	Intent  Intent `msgpack:"intent,omitempty"`
}

// TemplateDeleted ends a template. Its versions stay in the log.
type TemplateDeleted struct {
	Template domain.TemplateID `msgpack:"template,omitempty"`
}

// EventType implements domain.Event.
func (TemplateCreated) EventType() string { return "TemplateCreated" }

// EventType implements domain.Event.
func (TemplateVersionPublished) EventType() string { return "TemplateVersionPublished" }

// EventType implements domain.Event.
func (TemplateDeleted) EventType() string { return "TemplateDeleted" }

// CreateTemplate makes a template with its first version.
type CreateTemplate struct {
	Template    domain.TemplateID
	Tenant      domain.TenantID
	Name        string
	Description string
	Intent      Intent
}

// PublishTemplate adds a version. Publishing what the newest version says already adds none.
type PublishTemplate struct {
	Template domain.TemplateID
	Intent   Intent
}

// DeleteTemplate ends a template. The caller has made sure that nothing uses it.
type DeleteTemplate struct {
	Template domain.TemplateID
	Tenant   domain.TenantID
}

// CommandType implements domain.Command.
func (CreateTemplate) CommandType() string { return "CreateTemplate" }

// Stream implements domain.Command.
func (c CreateTemplate) Stream() domain.StreamID { return TemplateStream(c.Template) }

// Before implements domain.Prelude: the name comes first.
func (c CreateTemplate) Before() []domain.Command {
	return []domain.Command{tenancy.Reserve{
		Tenant: c.Tenant, Kind: "template", Name: c.Name, Object: c.Template.UUID,
	}}
}

// Undo implements domain.Reversal.
func (c CreateTemplate) Undo() []domain.Command {
	return []domain.Command{tenancy.Release{
		Tenant: c.Tenant, Object: c.Template.UUID, Why: "template refused",
	}}
}

// CommandType implements domain.Command.
func (PublishTemplate) CommandType() string { return "PublishTemplate" }

// Stream implements domain.Command.
func (c PublishTemplate) Stream() domain.StreamID { return TemplateStream(c.Template) }

// CommandType implements domain.Command.
func (DeleteTemplate) CommandType() string { return "DeleteTemplate" }

// Stream implements domain.Command.
func (c DeleteTemplate) Stream() domain.StreamID { return TemplateStream(c.Template) }

// After implements domain.Postlude: the name is free again.
func (c DeleteTemplate) After() []domain.Command {
	return []domain.Command{tenancy.Release{
		Tenant: c.Tenant, Object: c.Template.UUID, Why: "template deleted",
	}}
}

// Template is a template folded.
type Template struct {
	Exists, Deleted bool
	Created         TemplateCreated
	Versions        []Intent // version n stands at n-1
}

// TemplateAggregate is the template for the executor.
func TemplateAggregate() domain.Aggregate[Template] {
	return domain.Aggregate[Template]{
		Category: TemplateCategory, Evolve: EvolveTemplate, Decide: DecideTemplate,
	}
}

// EvolveTemplate folds one event.
func EvolveTemplate(s Template, ev domain.Event) Template {
	switch ev := ev.(type) {
	case *TemplateCreated:
		s.Exists, s.Created = true, *ev
	case *TemplateVersionPublished:
		s.Versions = append(s.Versions[:len(s.Versions):len(s.Versions)], ev.Intent)
	case *TemplateDeleted:
		s.Deleted = true
	}
	return s
}

// DecideTemplate judges one command.
func DecideTemplate(s Template, r domain.Request) ([]domain.Event, error) {
	const op = "intent.DecideTemplate"
	if c, ok := r.Command.(CreateTemplate); ok {
		if s.Exists {
			return nil, domain.Errorf(domain.Exists, "template %s exists", c.Template)
		}
		if err := c.Validate(); err != nil {
			return nil, err
		}
		return []domain.Event{
			&TemplateCreated{c.Template, c.Tenant, c.Name, c.Description},
			&TemplateVersionPublished{1, c.Intent},
		}, nil
	}
	if !s.Exists || s.Deleted {
		return nil, domain.Errorf(domain.NotFound, "no such template")
	}
	switch c := r.Command.(type) {
	case PublishTemplate:
		var chk domain.Checker
		c.Intent.Check(&chk, "intent")
		chk.Check(len(s.Versions) < VersionsMax, "intent", "%d versions are the limit", VersionsMax)
		if err := chk.Err(op, s.Created.Name); err != nil {
			return nil, err
		}
		if equal(s.Versions[len(s.Versions)-1], c.Intent) {
			return nil, nil
		}
		return []domain.Event{&TemplateVersionPublished{int64(len(s.Versions) + 1), c.Intent}}, nil
	case DeleteTemplate:
		return []domain.Event{&TemplateDeleted{c.Template}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "template: unknown command %T", r.Command)
}

// Validate lists everything wrong with the command. The executor runs it before the name is
// reserved, so that a refused command holds nothing.
func (c CreateTemplate) Validate() error {
	var chk domain.Checker
	chk.Check(tenancy.ValidName(c.Name), "name", "%q is no name: a lower-case DNS label", c.Name)
	c.Intent.Check(&chk, "intent")
	return chk.Err("intent.CreateTemplate", c.Name)
}

// equal compares two intents field by field.
func equal(a, b Intent) bool {
	if len(a.Availability.Survive) != len(b.Availability.Survive) {
		return false
	}
	for i, s := range a.Availability.Survive {
		if s != b.Availability.Survive[i] {
			return false
		}
	}
	return a.Performance == b.Performance && a.Placement == b.Placement &&
		a.Security == b.Security && a.Lifecycle == b.Lifecycle && a.Cost == b.Cost &&
		a.Availability.Replicas == b.Availability.Replicas &&
		a.Availability.Ack == b.Availability.Ack &&
		slices.Equal(a.Protection.Snapshots, b.Protection.Snapshots)
}
