package rest

import (
	"context"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"weft/domain"
	"weft/domain/intent"
	"weft/projections/desired"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// At is what every GET takes.
type At struct {
	AtPosition  string `query:"at_position" doc:"show the state at this position or RFC 3339 time"`
	MinPosition string `query:"min_position" doc:"wait until the views hold this position"`
	Tenant      string `query:"tenant" default:"default"`
}

// Whole is what a GET takes that no tenant narrows.
type Whole struct {
	AtPosition  string `query:"at_position" doc:"show the state at this position or RFC 3339 time"`
	MinPosition string `query:"min_position" doc:"wait until the views hold this position"`
}

func (w *Whole) at() At { return At{AtPosition: w.AtPosition, MinPosition: w.MinPosition} }

// Change is what every mutation takes.
type Change struct {
	Key     string `header:"Idempotency-Key" maxLength:"128"`
	IfMatch string `header:"If-Match" doc:"refuse unless the object has this ETag"`
	Tenant  string `query:"tenant" default:"default"`
}

// Changed is what every mutation answers with.
type Changed[T any] struct {
	Position string `header:"Weft-Position" doc:"wait for it with min_position to read your write"`
	ETag     string `header:"ETag"`
	Body     T
}

// Got is what every GET answers with.
type Got[T any] struct {
	Position string `header:"Weft-Position"`
	ETag     string `header:"ETag"`
	Body     T
}

// List is a list of things.
type List[T any] struct {
	Items    []T    `json:"items"`
	Position string `json:"position" doc:"of the log, that the list shows"`
}

// views gives the read models a request wants.
func (s *Server) views(ctx context.Context, at At) (v Views, past bool, err error) {
	if at.MinPosition != "" {
		p, err := domain.ParsePosition(at.MinPosition)
		if err != nil {
			return v, false, err
		}
		if err := s.b.Wait(ctx, p); err != nil {
			return v, false, err
		}
	}
	if at.AtPosition == "" {
		return s.b.Now(), false, nil
	}
	p, err := s.place(ctx, at.AtPosition)
	if err != nil {
		return v, false, err
	}
	v, err = s.b.At(ctx, p)
	return v, true, err
}

// place reads a position, or a time, which is where the last event up to it stands.
func (s *Server) place(ctx context.Context, text string) (domain.Position, error) {
	p, err := domain.ParsePosition(text)
	if err == nil {
		return p, nil
	}
	t, bad := time.Parse(time.RFC3339Nano, text)
	if bad != nil {
		return 0, domain.Errorf(domain.Invalid, "%q is neither a position nor an RFC 3339 time", text)
	}
	return s.b.Until(ctx, t)
}

// clock tells what time it was at the moment that a request shows: the time that it names, or that
// of the last event up to its position.
func (s *Server) clock(ctx context.Context, v Views, at string) (time.Time, error) {
	if at == "" {
		return s.cfg.Now(), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
		return t, nil
	}
	last, err := s.b.Events(ctx, v.Position, true, domain.Filter{}, 1)
	if err != nil || len(last) == 0 {
		return time.Time{}, err
	}
	return last[0].Created, nil
}

// tenant finds a tenant by name in the present: who may see what is never read from the past.
func (s *Server) tenant(name string) (desired.Tenant, error) {
	return s.b.Now().Desired.Tenant(name)
}

// above gives the tenants above one, whose quotas hold for it too.
func (s *Server) above(t desired.Tenant) []domain.TenantID {
	return s.b.Now().Desired.Above(t.Tenant)
}

// command runs a command as the caller of ctx and waits until this node's views show it.
func (s *Server) command(ctx context.Context, ch Change, id domain.CommandID,
	c domain.Command,
) (Result, error) {
	caller, err := s.caller(ctx)
	if err != nil {
		return Result{}, err
	}
	r := domain.Request{Command: c, ID: id, Caller: caller}
	r.Caller.Tenant = attemptOf(ctx).Tenant // where the guard let the caller in
	if ch.IfMatch != "" {
		rev, err := parseETag(ch.IfMatch)
		if err != nil {
			return Result{}, err
		}
		r.IfRevision = &rev
	}
	res, err := s.b.Do(ctx, r)
	if err != nil {
		if r.IfRevision != nil && domain.IsKind(err, domain.Conflict) {
			err = stale("the object has changed since that ETag: read it again")
		}
		return res, err
	}
	return res, s.b.Wait(ctx, res.Position)
}

// caller says who calls as the log is to hold it: a user's address is sealed, as the name is.
func (s *Server) caller(ctx context.Context) (domain.Caller, error) {
	c, p := callerOf(ctx), principalOf(ctx)
	if p.User.IsZero() {
		return c, nil
	}
	var err error
	c.Source, err = s.b.SealSource(ctx, p.User, c.RequestID, c.Source)
	return c, err
}

// stale is the answer to an If-Match that does not hold.
func stale(detail string) error {
	return &Problem{
		Type: "urn:weft:problem:conflict", Kind: domain.Conflict.String(),
		Status: http.StatusPreconditionFailed, Title: "Precondition Failed", Detail: detail,
	}
}

// commandID derives a command's id from the caller and its key, so that nobody meets another's.
// Without a key it follows from the request, which has an id of its own.
func commandID(ctx context.Context, ch Change) domain.CommandID {
	if ch.Key == "" {
		return domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, requestID(ctx))}
	}
	return domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, ch.Tenant,
		principalOf(ctx).Actor(), ch.Key)}
}

func parseETag(s string) (domain.Revision, error) {
	_, rev, ok := strings.Cut(strings.Trim(strings.TrimPrefix(s, "W/"), `"`), ".")
	n, err := strconv.ParseInt(rev, 10, 64)
	if !ok || err != nil {
		return 0, stale("If-Match is no ETag of ours")
	}
	return domain.Revision(n), nil
}

func (s *Server) routes() {
	s.clusterRoutes()
	s.nodeRoutes()
	s.archiveRoutes()
	s.engineRoutes()
	s.failingRoutes()
	s.scrubRoutes()
	s.templateRoutes()
	s.appRoutes()
	s.volumeRoutes()
	s.snapshotRoutes()
	s.eventRoutes()
	s.tenantRoutes()
	s.userRoutes()
	s.tokenRoutes()
	s.providerRoutes()
	s.outletRoutes()
}

// TemplateBody creates a template or adds a version.
type TemplateBody struct {
	Name        string  `json:"name" maxLength:"63"`
	Description string  `json:"description,omitempty" maxLength:"1024"`
	Intent      *Intent `json:"intent,omitempty"`
}

// NamedIn is a GET of one named object.
type NamedIn struct {
	At
	Name string `path:"name"`
}

// NamedChange is a mutation of one named object. It is exported because huma looks into no other
// embedded struct.
type NamedChange struct {
	Change
	Name string `path:"name"`
}

func (s *Server) templateRoutes() {
	register(s, readTenant, "GET", "/v1/templates", "list-templates",
		"List templates", 200, s.listTemplates)
	register(s, readTenant, "GET", "/v1/templates/{name}", "get-template",
		"Show a template", 200, s.getTemplate)
	register(s, operateTenant, "POST", "/v1/templates", "create-template", "Create a template", 201,
		func(ctx context.Context, in *struct {
			Change
			Body TemplateBody
		},
		) (*Changed[Template], error) {
			return s.createTemplate(ctx, in.Change, in.Body)
		})
	register(s, operateTenant, "PUT", "/v1/templates/{name}", "apply-template",
		"Create a template, or publish a version if its intent differs", 200, s.applyTemplate)
	register(s, operateTenant, "DELETE", "/v1/templates/{name}", "delete-template",
		"Delete a template nobody uses",
		200, s.deleteTemplate)
}

func (s *Server) listTemplates(ctx context.Context, in *At) (*Got[List[Template]], error) {
	v, _, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	out := &Got[List[Template]]{Position: v.Position.String()}
	out.Body = List[Template]{[]Template{}, v.Position.String()}
	for _, x := range v.Desired.Templates(t.Tenant) {
		out.Body.Items = append(out.Body.Items, templateDoc(v, x))
	}
	return out, nil
}

func (s *Server) getTemplate(ctx context.Context, in *NamedIn) (*Got[Template], error) {
	v, _, err := s.views(ctx, in.At)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	x, err := v.Desired.Template(t.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	d := templateDoc(v, x)
	return &Got[Template]{v.Position.String(), d.ETag, d}, nil
}

func (s *Server) createTemplate(ctx context.Context, ch Change, b TemplateBody) (
	*Changed[Template], error,
) {
	t, err := s.tenant(ch.Tenant)
	if err != nil {
		return nil, err
	}
	id := commandID(ctx, ch)
	res, err := s.command(ctx, ch, id, intent.CreateTemplate{
		Template: domain.TemplateID{UUID: id.ObjectID("template", 0)}, Tenant: t.Tenant,
		Name: b.Name, Description: b.Description, Intent: b.Intent.domain(),
	})
	if err != nil {
		return nil, err
	}
	return s.changedTemplate(t, id.ObjectID("template", 0).String(), res)
}

func (s *Server) changedTemplate(t desired.Tenant, ref string, res Result) (
	*Changed[Template], error,
) {
	v := s.b.Now()
	x, err := v.Desired.Template(t.Tenant, ref)
	if err != nil {
		return nil, err
	}
	d := templateDoc(v, x)
	return &Changed[Template]{res.Position.String(), d.ETag, d}, nil
}

func (s *Server) applyTemplate(ctx context.Context, in *struct {
	NamedChange
	Body TemplateBody
},
) (*Changed[Template], error) {
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	if in.Body.Name != in.Name {
		return nil, otherName(in.Name, in.Body.Name)
	}
	x, err := s.b.Now().Desired.Template(t.Tenant, in.Name)
	if domain.IsKind(err, domain.NotFound) {
		return s.createTemplate(ctx, in.Change, in.Body)
	}
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), intent.PublishTemplate{
		Template: x.TemplateCreated.Template, Intent: in.Body.Intent.domain(),
	})
	if err != nil {
		return nil, err
	}
	return s.changedTemplate(t, in.Name, res)
}

// otherName refuses a body that names another object than the path.
func otherName(path, body string) error {
	return domain.Errorf(domain.Invalid, "the path names %q, the body %q", path, body)
}

// Gone is the answer to a deletion.
type Gone struct {
	Deleted string `json:"deleted"`
	State   string `json:"state" enum:"deleted,deleting"`
}

func (s *Server) deleteTemplate(ctx context.Context, in *NamedChange) (*Changed[Gone], error) {
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	v := s.b.Now()
	x, err := v.Desired.Template(t.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	for _, a := range v.Desired.Apps(t.Tenant) {
		if a.AppInstanceCreated.Template == x.TemplateCreated.Template {
			return nil, &domain.Error{
				Kind: domain.Conflict, Ref: "template/" + x.Name, Msg: "app " + a.Name + " uses it",
				Remedy: "delete that app first",
			}
		}
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), intent.DeleteTemplate{
		Template: x.TemplateCreated.Template, Tenant: t.Tenant,
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{x.Name, "deleted"}}, nil
}
