package rest

import (
	"context"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/tenancy"
	"weft/projections/desired"
)

// TenantDoc is a tenant.
type TenantDoc struct {
	ID     string   `json:"id"`
	Name   string   `json:"name"`
	Parent string   `json:"parent,omitempty" doc:"the tenant it stands below"`
	Quota  QuotaDoc `json:"quota"`
}

// QuotaDoc is what a tenant may hold; 0 is no limit.
type QuotaDoc struct {
	Bytes   domain.Bytes `json:"bytes" minimum:"0" doc:"sum of the volumes' sizes"`
	Volumes int64        `json:"volumes" minimum:"0"`
}

// TenantBody asks for a tenant.
type TenantBody struct {
	Name   string    `json:"name" maxLength:"63"`
	Parent string    `json:"parent,omitempty" doc:"the tenant it stands below; empty: none"`
	Quota  *QuotaDoc `json:"quota,omitempty"`
}

func (s *Server) tenantRoutes() {
	register(s, readOwn, "GET", "/v1/tenants", "list-tenants", "List the tenants you may see", 200,
		s.tenants)
	register(s, administerCluster, "POST", "/v1/tenants", "create-tenant", "Create a tenant", 201,
		s.createTenant)
	register(s, administerCluster, "PUT", "/v1/tenants/{name}/quota", "set-quota",
		"Limit what a tenant may hold from now on", 200, s.setQuota)
	register(s, administerCluster, "DELETE", "/v1/tenants/{name}", "delete-tenant",
		"Delete a tenant that holds nothing", 200, s.deleteTenant)
}

func (s *Server) tenants(ctx context.Context, in *At) (*Got[List[TenantDoc]], error) {
	v, _, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	p, now := principalOf(ctx), s.b.Now().Access
	out := &Got[List[TenantDoc]]{Position: v.Position.String()}
	out.Body = List[TenantDoc]{[]TenantDoc{}, v.Position.String()}
	sees := func(id domain.TenantID) bool {
		return p.Rights.May(identity.Read, nil) || now.May(p, identity.Read, id)
	}
	for _, t := range v.Desired.Tenants() {
		if !sees(t.Tenant) {
			continue
		}
		d := tenantDoc(v, t)
		if !sees(t.Parent) {
			d.Parent = ""
		}
		out.Body.Items = append(out.Body.Items, d)
	}
	return out, nil
}

func tenantDoc(v Views, t desired.Tenant) TenantDoc {
	d := TenantDoc{
		ID: t.Tenant.String(), Name: t.Name, Quota: QuotaDoc{t.Quota.Bytes, t.Quota.Volumes},
	}
	if !t.Parent.IsZero() {
		d.Parent = tenantName(v, t.Parent)
	}
	return d
}

func (s *Server) createTenant(ctx context.Context, in *struct {
	Change
	Body TenantBody
},
) (*Changed[TenantDoc], error) {
	if in.Body.Name == defaultTenant {
		// It is older than the directory of names, which does not hold it.
		return nil, domain.Errorf(domain.Exists, "the default tenant is there from the first start")
	}
	id := commandID(ctx, in.Change)
	c := tenancy.Create{
		Tenant: domain.TenantID{UUID: id.ObjectID("tenant", 0)}, Name: in.Body.Name,
		Cluster: s.cluster(),
	}
	if in.Body.Parent != "" {
		up, err := s.tenant(in.Body.Parent)
		if err != nil {
			return nil, err
		}
		if len(s.b.Now().Access.Lineage(up.Tenant)) >= tenancy.DepthMax {
			return nil, domain.Errorf(domain.OutOfRange, "tenants nest at most %d deep", tenancy.DepthMax)
		}
		c.Parent = up.Tenant
	}
	res, err := s.command(ctx, in.Change, id, c)
	if err != nil {
		return nil, err
	}
	if q := in.Body.Quota; q != nil {
		// Under an id of its own, so that a retry finishes what was begun.
		res, err = s.command(ctx, Change{Tenant: in.Tenant}, id.Sub("quota"),
			tenancy.SetQuota{Tenant: c.Tenant, Bytes: q.Bytes, Volumes: q.Volumes})
		if err != nil {
			return nil, err
		}
	}
	return s.changedTenant(in.Body.Name, res)
}

func (s *Server) changedTenant(name string, res Result) (*Changed[TenantDoc], error) {
	v := s.b.Now()
	t, err := v.Desired.Tenant(name)
	if err != nil {
		return nil, err
	}
	return &Changed[TenantDoc]{Position: res.Position.String(), Body: tenantDoc(v, t)}, nil
}

func (s *Server) setQuota(ctx context.Context, in *struct {
	NamedChange
	Body QuotaDoc
},
) (*Changed[TenantDoc], error) {
	t, err := s.tenant(in.Name)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), tenancy.SetQuota{
		Tenant: t.Tenant, Bytes: in.Body.Bytes, Volumes: in.Body.Volumes,
	})
	if err != nil {
		return nil, err
	}
	return s.changedTenant(in.Name, res)
}

func (s *Server) deleteTenant(ctx context.Context, in *NamedChange) (*Changed[Gone], error) {
	t, err := s.tenant(in.Name)
	if err != nil {
		return nil, err
	}
	if t.Name == defaultTenant {
		return nil, domain.Errorf(domain.Conflict, "the default tenant stays")
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), tenancy.Delete{
		Tenant: t.Tenant, Parent: t.Parent, Cluster: s.cluster(),
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{t.Name, "deleted"}}, nil
}

// defaultTenant is there from the first start.
const defaultTenant = "default"

func (s *Server) cluster() domain.ClusterID {
	id, _ := s.b.Now().Topology.Cluster()
	return id
}
