// Package desired is the view of what operators want: tenants, templates and application instances
// with their volumes. It resolves every volume's policy set.
package desired

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/policy"
	"weft/domain/tenancy"
	"weft/projections"
)

// IQNPrefix begins the name of every target.
const IQNPrefix = "iqn.2026-01.io.weft:"

// Tenant is a tenant by id and name.
type Tenant struct {
	Tenant   domain.TenantID
	Name     string
	Parent   domain.TenantID
	Revision domain.Revision
	Quota    tenancy.QuotaSet
}

// Template is a template with all its versions.
type Template struct {
	intent.TemplateCreated
	Versions []intent.Intent
	Revision domain.Revision
	Changed  domain.Position
}

// App is an application instance as it is wished for now.
type App struct {
	intent.App
	Revision domain.Revision
	Changed  domain.Position
}

// View folds wishes.
type View struct {
	mu struct {
		sync.RWMutex
		state
	}
}

type state struct {
	Tenants   map[string]Tenant // by stream
	Templates map[string]Template
	Apps      map[string]App
}

var _ projections.Keeper = (*View)(nil)

// New makes an empty view.
func New() *View {
	v := &View{}
	v.mu.state = state{map[string]Tenant{}, map[string]Template{}, map[string]App{}}
	return v
}

// Name implements projections.View.
func (*View) Name() string { return "desired" }

// Version implements projections.View.
func (*View) Version() uint16 { return 3 }

// Apply implements projections.View.
func (v *View) Apply(r domain.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := string(r.Stream)
	switch r.Stream.Category() {
	case tenancy.Category:
		v.tenant(id, r)
	case intent.TemplateCategory:
		t := v.mu.Templates[id]
		s := intent.EvolveTemplate(intent.Template{
			Created: t.TemplateCreated, Versions: t.Versions,
		}, r.Event)
		if s.Deleted {
			delete(v.mu.Templates, id)
			return nil
		}
		v.mu.Templates[id] = Template{s.Created, s.Versions, r.Revision, r.Position}
	case intent.AppCategory:
		a := App{intent.EvolveApp(v.mu.Apps[id].App, r.Event), r.Revision, r.Position}
		if a.Deleted {
			delete(v.mu.Apps, id)
			return nil
		}
		v.mu.Apps[id] = a
	}
	return nil
}

func (v *View) tenant(id string, r domain.Record) {
	t, ok := v.mu.Tenants[id]
	if _, first := r.Event.(*tenancy.TenantCreated); !ok && !first {
		return // what is given back after the tenant was deleted
	}
	t.Revision = r.Revision
	switch ev := r.Event.(type) {
	case *tenancy.TenantCreated:
		t.Tenant, t.Name, t.Parent = ev.Tenant, ev.Name, ev.Parent
	case *tenancy.QuotaSet:
		t.Quota = *ev
	case *tenancy.TenantDeleted:
		delete(v.mu.Tenants, id)
		return
	}
	v.mu.Tenants[id] = t
}

// Digest implements projections.View.
func (v *View) Digest(w io.Writer) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return projections.WriteDigest(w, v.mu.state)
}

// Clone implements projections.Keeper. The slices inside are never changed in place.
func (v *View) Clone() projections.View {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c := &View{}
	c.mu.state = state{
		maps.Clone(v.mu.Tenants), maps.Clone(v.mu.Templates), maps.Clone(v.mu.Apps),
	}
	return c
}

// Tenants lists the tenants by name.
func (v *View) Tenants() []Tenant {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.SortedFunc(maps.Values(v.mu.Tenants), func(a, b Tenant) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// Tenant finds a tenant by name.
func (v *View) Tenant(name string) (Tenant, error) {
	for _, t := range v.Tenants() {
		if t.Name == name {
			return t, nil
		}
	}
	return Tenant{}, missing("tenant", name)
}

// Above gives the tenants above one, from the nearest to the top.
func (v *View) Above(t domain.TenantID) []domain.TenantID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []domain.TenantID
	for len(list) < tenancy.DepthMax {
		up := v.mu.Tenants[string(tenancy.Stream(t))].Parent
		if up.IsZero() {
			break
		}
		list = append(list, up)
		t = up
	}
	return list
}

// Templates lists a tenant's templates by name; the zero id lists all.
func (v *View) Templates(tenant domain.TenantID) []Template {
	v.mu.RLock()
	defer v.mu.RUnlock()
	list := slices.SortedFunc(maps.Values(v.mu.Templates), func(a, b Template) int {
		return cmp.Compare(a.Name, b.Name)
	})
	return slices.DeleteFunc(list, func(t Template) bool {
		return !tenant.IsZero() && t.Tenant != tenant
	})
}

// Template finds a template of a tenant by name or id.
func (v *View) Template(tenant domain.TenantID, ref string) (Template, error) {
	for _, t := range v.Templates(tenant) {
		if t.Name == ref || t.TemplateCreated.Template.String() == ref {
			return t, nil
		}
	}
	return Template{}, missing("template", ref)
}

// Apps lists a tenant's application instances by name; the zero id lists all.
func (v *View) Apps(tenant domain.TenantID) []App {
	v.mu.RLock()
	defer v.mu.RUnlock()
	list := slices.SortedFunc(maps.Values(v.mu.Apps), func(a, b App) int {
		return cmp.Or(cmp.Compare(a.TenantName, b.TenantName), cmp.Compare(a.Name, b.Name))
	})
	return slices.DeleteFunc(list, func(a App) bool {
		return !tenant.IsZero() && a.Tenant != tenant
	})
}

// App finds an application instance of a tenant by name or id.
func (v *View) App(tenant domain.TenantID, ref string) (App, error) {
	for _, a := range v.Apps(tenant) {
		if a.Name == ref || a.AppInstanceCreated.App.String() == ref {
			return a, nil
		}
	}
	return App{}, missing("app", ref)
}

func missing(kind, ref string) error {
	return &domain.Error{
		Kind: domain.NotFound, Ref: kind + "/" + ref, Msg: "no such " + kind,
		Remedy: "weft get " + kind + "s lists what there is",
	}
}

// Desired gives everything that is wanted, for the planner. An instance that is being deleted wants
// no volumes.
func (v *View) Desired() policy.Desired {
	var d policy.Desired
	for _, a := range v.Apps(domain.TenantID{}) {
		if a.Deleting {
			d.Endings = append(d.Endings, policy.Ending{
				App: a.AppInstanceCreated.App, Tenant: a.Tenant, Name: a.TenantName + "/" + a.Name,
			})
			continue
		}
		d.Volumes = append(d.Volumes, v.Wishes(a)...)
	}
	return d
}

// Wishes resolves the volumes of one application instance.
func (v *View) Wishes(a App) []policy.Wish {
	set := policy.Resolve(v.layers(a))
	var list []policy.Wish
	for _, s := range a.Volumes {
		name := a.TenantName + "/" + a.Name + "/" + s.Name
		w := policy.Wish{
			Volume: s.Volume, App: a.AppInstanceCreated.App, Tenant: a.Tenant, Name: name,
			Size: s.Size, LogicalBlock: int(s.LogicalBlock), Set: set,
			Export: export(a, s, name, set.Intent),
		}
		if !s.Source.IsZero() {
			w.Source = &policy.Source{Snapshot: s.Source, Volume: s.SourceVolume}
		}
		for _, r := range a.Restores {
			if r.Volume == s.Volume {
				w.Restore = &policy.Restore{Restore: r.Restore, Snapshot: r.Snapshot, Force: r.Force}
			}
		}
		for _, r := range a.Shrinks {
			if r.Volume == s.Volume {
				w.Shrink = &policy.Shrink{Force: r.Force}
			}
		}
		list = append(list, w)
	}
	return list
}

// layers gives the sources of an instance's intent, lowest first.
func (v *View) layers(a App) []policy.Layer {
	var out []policy.Layer
	v.mu.RLock()
	t, ok := v.mu.Templates[string(intent.TemplateStream(a.AppInstanceCreated.Template))]
	v.mu.RUnlock()
	if n := int64(len(t.Versions)); ok && n > 0 {
		version := a.Version
		if version < 1 || version > n {
			version = n
		}
		out = append(out, policy.Layer{
			Name: fmt.Sprintf("template/%s@%d", t.Name, version), Intent: t.Versions[version-1],
		})
	}
	return append(out, policy.Layer{Name: "app/" + a.Name, Intent: a.Overrides})
}

func export(a App, s intent.VolumeSpec, name string, want intent.Intent) command.Export {
	authn := want.Security.Authn
	x := command.Export{
		Name: name, LogicalBlock: int(s.LogicalBlock), AllowAny: a.Export.AllowAny,
		Initiators: a.Export.Initiators, LUN: int(s.LUN),
		IOPSMax: want.Performance.IOPSMax, BPSMax: want.Performance.BWMaxBPS,
		IOPSMin: want.Performance.IOPSMin, BPSMin: want.Performance.BWMinBPS,
		BurstS: want.Performance.BurstS,
	}
	if z := want.Cost.Compression; z != "off" {
		x.Compression = z
	}
	if p := want.Lifecycle.Priority; p != policy.Defaults().Intent.Lifecycle.Priority {
		x.Weight = p
	}
	if a.Export.NBD {
		x.NBD = name
	}
	if a.Export.ISCSI {
		x.Target = IQNPrefix + a.TenantName + ":" + a.Name
	}
	if authn == "chap" || authn == "mutual" {
		x.CHAP, x.Mutual = a.Export.CHAP, authn == "mutual"
	}
	return x
}
