package rest

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"weft/domain"
	"weft/domain/identity"
	"weft/projections/access"
	"weft/projections/desired"
)

// place is where an operation works, and so where its caller needs the verb.
type place uint8

const (
	undeclared place = iota // not declared: nobody may
	anywhere                // no token is needed
	own                     // whoever is known; the answer holds what they may see
	inTenant                // the tenant that the request names
	inCluster               // the cluster as a whole
	byGrant                 // where the role of the request's body would hold
)

// need is what an operation demands. The zero need is met by nobody.
type need struct {
	verb identity.Verb
	place
}

// The needs, each named in the registration of an operation.
var (
	openToAll         = need{identity.Read, anywhere}
	readOwn           = need{identity.Read, own}
	operateOwn        = need{identity.Operate, own}
	readTenant        = need{identity.Read, inTenant}
	operateTenant     = need{identity.Operate, inTenant}
	administerGrants  = need{identity.AdministerTenant, byGrant}
	readCluster       = need{identity.Read, inCluster}
	operateCluster    = need{identity.Operate, inCluster}
	administerCluster = need{identity.AdministerCluster, inCluster}
)

type principalKey struct{}

// principalOf gives who calls; the zero principal may do nothing.
func principalOf(ctx context.Context) access.Principal {
	p, _ := ctx.Value(principalKey{}).(access.Principal)
	return p
}

// tenanted is a request that names a tenant.
type tenanted interface{ tenantName() string }

func (a At) tenantName() string      { return a.Tenant }
func (ch Change) tenantName() string { return ch.Tenant }

// register adds one operation with what it demands, and turns its errors into problems.
func register[I, O any](s *Server, n need, method, path, id, summary string, code int,
	fn func(context.Context, *I) (*O, error),
) {
	add(s, n, huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: code,
	}, fn)
}

// stream adds an operation that answers with a stream.
func stream[I any](s *Server, n need, op huma.Operation,
	fn func(context.Context, *I) (*huma.StreamResponse, error),
) {
	add(s, n, op, fn)
}

func add[I, O any](s *Server, n need, op huma.Operation,
	fn func(context.Context, *I) (*O, error),
) {
	s.needs[op.OperationID] = n
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		attemptOf(ctx).Operation = op.OperationID
		err := s.guard(ctx, n, in)
		if err == nil {
			var out *O
			if out, err = fn(ctx, in); err == nil {
				return out, nil
			}
		}
		return nil, problem(ctx, err)
	})
}

// guard refuses a caller that lacks what an operation demands. A tenant that the caller may not
// read is one that there is not, to the letter.
func (s *Server) guard(ctx context.Context, n need, in any) error {
	p := principalOf(ctx)
	switch n.place {
	case anywhere:
		return nil
	case own:
		if p.Known() && p.Rights.Reach(n.verb) {
			return nil
		}
	case inCluster:
		if p.Rights.May(n.verb, nil) {
			return nil
		}
	case inTenant, byGrant:
		if t, ok := in.(tenanted); ok {
			return s.guardTenant(ctx, n, t.tenantName())
		}
	case undeclared:
	}
	return lacking(ctx, n.verb)
}

func (s *Server) guardTenant(ctx context.Context, n need, name string) error {
	p := principalOf(ctx)
	if n.place == byGrant && name == "" {
		if p.Rights.May(identity.AdministerCluster, nil) {
			return nil
		}
		return lacking(ctx, identity.AdministerCluster)
	}
	attemptOf(ctx).Tenant = name
	t, err := s.visibleTenant(ctx, name)
	if err != nil {
		return err
	}
	if !s.b.Now().Access.May(p, n.verb, t.Tenant) {
		return lacking(ctx, n.verb)
	}
	return nil
}

// lacking is the answer to a caller that is known and lacks a role.
func lacking(ctx context.Context, v identity.Verb) error {
	attemptOf(ctx).Reason = "missing role"
	return &domain.Error{
		Kind: domain.Denied, Msg: "your roles do not allow you to " + v.String() + " here",
		Remedy: "weft whoami shows your roles; an administrator grants more",
	}
}

// visibleTenant finds a tenant by name among those the caller may read, in the present.
func (s *Server) visibleTenant(ctx context.Context, name string) (desired.Tenant, error) {
	t, err := s.b.Now().Desired.Tenant(name)
	if err == nil && s.b.Now().Access.May(principalOf(ctx), identity.Read, t.Tenant) {
		return t, nil
	}
	attemptOf(ctx).Reason = "foreign or no such tenant"
	return desired.Tenant{}, &domain.Error{
		Kind: domain.NotFound, Ref: "tenant/" + name, Msg: "no such tenant",
		Remedy: "weft tenant list shows those you may see",
	}
}

// sees tells whether the caller may see the events of a stream, now.
func (s *Server) sees(ctx context.Context, id domain.StreamID) bool {
	return s.b.Now().Access.Sees(principalOf(ctx), id)
}

// seenPage is how many events are looked at in one reading for a caller that does not see all.
const seenPage = 1000

// seen gives up to limit events that the caller may see.
func (s *Server) seen(ctx context.Context, from domain.Position, newest bool, f domain.Filter,
	limit int,
) ([]Event, error) {
	if principalOf(ctx).Rights.May(identity.Read, nil) {
		return s.b.Events(ctx, from, newest, f, limit)
	}
	var out []Event
	for {
		page, err := s.b.Events(ctx, from, newest, f, seenPage)
		if err != nil || len(page) == 0 {
			return out, err
		}
		last := page[len(page)-1].Position
		// Whose a stream is must be known before it is judged.
		if err := s.b.Wait(ctx, max(last, page[0].Position)); err != nil {
			return nil, err
		}
		for i := range page {
			if s.sees(ctx, page[i].Stream) {
				out = append(out, page[i])
			}
			if len(out) == limit {
				return out, nil
			}
		}
		if len(page) < seenPage || newest && last <= 1 {
			return out, nil
		}
		if from = last; newest {
			from--
		}
	}
}

// stillSees tells whether a watch goes on, and whether it shows an event (nil: a pause). It fails
// as soon as the caller's token is revoked or has expired, or the user is shut out.
func (s *Server) stillSees(ctx context.Context, e *Event) (bool, error) {
	p := principalOf(ctx)
	if p.User.IsZero() {
		return true, nil
	}
	if e != nil {
		if err := s.b.Wait(ctx, e.Position); err != nil {
			return false, err
		}
	}
	p, err := s.b.Now().Access.Again(p, s.cfg.Now())
	if err != nil || e == nil {
		return e == nil, err
	}
	return s.b.Now().Access.Sees(p, e.Stream), nil
}
