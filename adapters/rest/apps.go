package rest

import (
	"context"
	"strconv"
	"strings"

	"weft/domain"
	"weft/domain/intent"
	"weft/projections/desired"
)

// VolumeBody asks for a volume.
type VolumeBody struct {
	Name         string       `json:"name" maxLength:"63"`
	Size         domain.Bytes `json:"size,omitempty" doc:"bytes; a clone's may be left out"`
	LogicalBlock int64        `json:"logical_block,omitempty" doc:"512 or 4096"`
	Source       string       `json:"source,omitempty" doc:"the snapshot it begins as: id or name"`
}

// AppBody asks for an application instance.
type AppBody struct {
	Name     string       `json:"name" maxLength:"63"`
	Template string       `json:"template,omitempty" doc:"name, or name@version to pin one"`
	Intent   *Intent      `json:"intent,omitempty" doc:"over the template's"`
	Volumes  []VolumeBody `json:"volumes,omitempty"`
	Export   *Export      `json:"export,omitempty" doc:"absent: NBD and iSCSI, any initiator"`
}

func (s *Server) appRoutes() {
	register(s, readTenant, "GET", "/v1/apps", "list-apps",
		"List application instances", 200, s.listApps)
	register(s, readTenant, "GET", "/v1/apps/{name}", "get-app",
		"Show an application instance", 200, s.getApp)
	register(s, operateTenant, "POST", "/v1/apps", "create-app",
		"Create an application instance", 201,
		func(ctx context.Context, in *struct {
			Change
			Body AppBody
		},
		) (*Changed[App], error) {
			return s.createApp(ctx, in.Change, in.Body)
		})
	register(s, operateTenant, "PUT", "/v1/apps/{name}", "apply-app",
		"Create an application instance, or bring it to this form", 200, s.applyApp)
	register(s, operateTenant, "DELETE", "/v1/apps/{name}", "delete-app",
		"Delete an application instance and all its data", 202, s.deleteApp)
	register(s, operateTenant, "POST", "/v1/apps/{name}/volumes", "add-volume",
		"Add a volume", 201, s.addVolume)
	register(s, operateTenant, "PATCH", "/v1/apps/{name}/volumes/{volume}", "resize-volume",
		"Grow a volume", 200,
		s.resizeVolume)
	register(s, operateTenant, "DELETE", "/v1/apps/{name}/volumes/{volume}", "remove-volume",
		"Remove a volume and its data", 202, s.removeVolume)
}

func (s *Server) listApps(ctx context.Context, in *At) (*Got[List[App]], error) {
	v, past, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	out := &Got[List[App]]{Position: v.Position.String()}
	out.Body = List[App]{[]App{}, v.Position.String()}
	for _, a := range v.Desired.Apps(t.Tenant) {
		out.Body.Items = append(out.Body.Items, s.appDoc(v, a, past))
	}
	return out, nil
}

func (s *Server) getApp(ctx context.Context, in *NamedIn) (*Got[App], error) {
	v, past, err := s.views(ctx, in.At)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	a, err := v.Desired.App(t.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	d := s.appDoc(v, a, past)
	return &Got[App]{v.Position.String(), d.ETag, d}, nil
}

// template resolves "name" or "name@version".
func (s *Server) template(t desired.Tenant, ref string) (
	x desired.Template, version int64, err error,
) {
	name, pin, pinned := strings.Cut(ref, "@")
	if x, err = s.b.Now().Desired.Template(t.Tenant, name); err != nil || !pinned {
		return x, 0, err
	}
	version, err = strconv.ParseInt(pin, 10, 64)
	if err != nil || version < 1 || version > int64(len(x.Versions)) {
		return x, 0, &domain.Error{
			Kind: domain.NotFound, Ref: "template/" + name,
			Msg: "it has versions 1 to " + strconv.Itoa(len(x.Versions)),
		}
	}
	return x, version, nil
}

func (s *Server) createApp(ctx context.Context, ch Change, b AppBody) (*Changed[App], error) {
	t, err := s.tenant(ch.Tenant)
	if err != nil {
		return nil, err
	}
	id := commandID(ctx, ch)
	ev := intent.AppInstanceCreated{
		App: domain.AppID{UUID: id.ObjectID("app", 0)}, Tenant: t.Tenant, TenantName: t.Name,
		Name: b.Name, Overrides: b.Intent.domain(), Export: exportOrDefault(b.Export),
	}
	if b.Template != "" {
		x, version, err := s.template(t, b.Template)
		if err != nil {
			return nil, err
		}
		ev.Template, ev.TemplateName, ev.Version = x.TemplateCreated.Template, x.Name, version
	}
	for i, w := range b.Volumes {
		spec := w.spec(id, i)
		if err := s.source(ctx, t, w.Source, &spec); err != nil {
			return nil, err
		}
		ev.Volumes = append(ev.Volumes, spec)
	}
	res, err := s.command(ctx, ch, id, intent.CreateApp{
		AppInstanceCreated: ev, Above: s.above(t),
	})
	if err != nil {
		return nil, err
	}
	return s.changedApp(t, ev.App.String(), res)
}

// spec is the wish for a volume; its source is found by itself.
func (b VolumeBody) spec(id domain.CommandID, index int) intent.VolumeSpec {
	return intent.VolumeSpec{
		Volume: domain.VolumeID{UUID: id.ObjectID("volume", index)}, Name: b.Name, Size: b.Size,
		LogicalBlock: b.LogicalBlock,
	}
}

func exportOrDefault(e *Export) intent.Export {
	if e == nil {
		return intent.Export{NBD: true, ISCSI: true, AllowAny: true}
	}
	return e.domain()
}

func (s *Server) changedApp(t desired.Tenant, ref string, res Result) (*Changed[App], error) {
	v := s.b.Now()
	a, err := v.Desired.App(t.Tenant, ref)
	if err != nil {
		return nil, err
	}
	d := s.appDoc(v, a, false)
	return &Changed[App]{res.Position.String(), d.ETag, d}, nil
}

// applyApp creates an instance or changes what differs: intent, export, new volumes, larger
// sizes. A volume that the body leaves out stays: losing data takes an explicit deletion.
func (s *Server) applyApp(ctx context.Context, in *struct {
	NamedChange
	Body AppBody
},
) (*Changed[App], error) {
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	if in.Body.Name != in.Name {
		return nil, otherName(in.Name, in.Body.Name)
	}
	a, err := s.b.Now().Desired.App(t.Tenant, in.Name)
	if domain.IsKind(err, domain.NotFound) {
		return s.createApp(ctx, in.Change, in.Body)
	}
	if err != nil {
		return nil, err
	}
	list, err := s.differences(ctx, t, commandID(ctx, in.Change), a, in.Body)
	if err != nil {
		return nil, err
	}
	var res Result
	for i, c := range list {
		// Each command has an id of its own, so that a retry finishes what was begun.
		id := commandID(ctx, in.Change).Sub("apply/" + strconv.Itoa(i))
		ch := in.Change
		if i > 0 {
			ch.IfMatch = "" // the first command has moved the revision
		}
		if res, err = s.command(ctx, ch, id, c); err != nil {
			return nil, err
		}
	}
	res.Position = max(res.Position, s.b.Now().Position)
	return s.changedApp(t, in.Name, res)
}

// differences lists the commands that bring an instance to the wanted form.
func (s *Server) differences(
	ctx context.Context, t desired.Tenant, id domain.CommandID, a desired.App, b AppBody,
) ([]domain.Command, error) {
	app := a.AppInstanceCreated.App
	list := []domain.Command{intent.SetIntent{App: app, Overrides: b.Intent.domain()}}
	if b.Export != nil && !sameExport(a.Export, b.Export.domain()) {
		list = append(list, intent.SetExport{App: app, Export: b.Export.domain()})
	}
	for i, w := range b.Volumes {
		v, ok := volumeOf(a, w.Name)
		switch {
		case !ok:
			spec := w.spec(id, i)
			if err := s.source(ctx, t, w.Source, &spec); err != nil {
				return nil, err
			}
			list = append(list, intent.AddVolume{
				App: app, Tenant: a.Tenant, Above: s.above(t), Spec: spec,
			})
		case v.Size != w.Size && (w.Size != 0 || w.Source == ""): // a clone may leave its size open
			list = append(list, intent.ResizeVolume{
				App: app, Tenant: a.Tenant, Above: s.above(t), Volume: v.Volume, From: v.Size,
				Size: w.Size,
			})
		}
	}
	return list, nil
}

func sameExport(a, b intent.Export) bool {
	return a.NBD == b.NBD && a.ISCSI == b.ISCSI && a.AllowAny == b.AllowAny && a.CHAP == b.CHAP &&
		strings.Join(a.Initiators, "\n") == strings.Join(b.Initiators, "\n")
}

func volumeOf(a desired.App, ref string) (intent.VolumeSpec, bool) {
	for _, v := range a.Volumes {
		if v.Name == ref || v.Volume.String() == ref {
			return v, true
		}
	}
	return intent.VolumeSpec{}, false
}

// app finds an instance and its tenant.
func (s *Server) app(tenant, name string) (desired.Tenant, desired.App, error) {
	t, err := s.tenant(tenant)
	if err != nil {
		return t, desired.App{}, err
	}
	a, err := s.b.Now().Desired.App(t.Tenant, name)
	return t, a, err
}

func (s *Server) deleteApp(ctx context.Context, in *NamedChange) (*Changed[Gone], error) {
	_, a, err := s.app(in.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change),
		intent.DeleteApp{App: a.AppInstanceCreated.App})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{a.Name, "deleting"}}, nil
}

func (s *Server) addVolume(ctx context.Context, in *struct {
	NamedChange
	Body VolumeBody
},
) (*Changed[App], error) {
	t, a, err := s.app(in.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	id := commandID(ctx, in.Change)
	spec := in.Body.spec(id, 0)
	if err := s.source(ctx, t, in.Body.Source, &spec); err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, id, intent.AddVolume{
		App: a.AppInstanceCreated.App, Tenant: t.Tenant, Above: s.above(t), Spec: spec,
	})
	if err != nil {
		return nil, err
	}
	return s.changedApp(t, in.Name, res)
}

// VolumeChange is a mutation of one volume of an instance.
type VolumeChange struct {
	NamedChange
	Volume string `path:"volume"`
}

func (s *Server) volume(in VolumeChange) (desired.Tenant, desired.App, intent.VolumeSpec, error) {
	t, a, err := s.app(in.Tenant, in.Name)
	if err != nil {
		return t, a, intent.VolumeSpec{}, err
	}
	v, ok := volumeOf(a, in.Volume)
	if !ok {
		return t, a, v, noVolume(a, in.Volume)
	}
	return t, a, v, nil
}

func (s *Server) resizeVolume(ctx context.Context, in *struct {
	VolumeChange
	Body struct {
		Size   domain.Bytes `json:"size" doc:"bytes, a multiple of 4 MiB"`
		Shrink bool         `json:"shrink,omitempty" doc:"it may become smaller: what stands beyond goes"`
		Force  bool         `json:"force,omitempty" doc:"shrink although hosts use it"`
	}
},
) (*Changed[App], error) {
	t, a, v, err := s.volume(in.VolumeChange)
	if err != nil {
		return nil, err
	}
	if in.Body.Shrink && in.Body.Size < v.Size {
		if err := s.idle(ctx, s.b.Now(), v, in.Body.Force); err != nil {
			return nil, err
		}
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), intent.ResizeVolume{
		App: a.AppInstanceCreated.App, Tenant: t.Tenant, Above: s.above(t), Volume: v.Volume,
		From: v.Size, Size: in.Body.Size, Shrink: in.Body.Shrink, Force: in.Body.Force,
	})
	if err != nil {
		return nil, err
	}
	return s.changedApp(t, in.Name, res)
}

func (s *Server) removeVolume(ctx context.Context, in *VolumeChange) (*Changed[Gone], error) {
	t, a, v, err := s.volume(*in)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), intent.RemoveVolume{
		App: a.AppInstanceCreated.App, Tenant: t.Tenant, Volume: v.Volume,
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{v.Name, "deleting"}}, nil
}
