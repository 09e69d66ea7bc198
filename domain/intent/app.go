package intent

import (
	"fmt"
	"slices"

	"weft/domain"
	"weft/domain/tenancy"
)

// AppCategory of an application instance's stream.
const AppCategory = "appinstance"

// VolumesMax is the most volumes of one application instance: the LUNs of one target.
const VolumesMax = 255

// AppStream gives an application instance's stream.
func AppStream(id domain.AppID) domain.StreamID { return domain.StreamOf(AppCategory, id.UUID) }

// VolumeSpec is the wish for one volume.
type VolumeSpec struct {
	Volume       domain.VolumeID `msgpack:"volume,omitempty"`
	Name         string          `msgpack:"name,omitempty"`
	Size         domain.Bytes    `msgpack:"size,omitempty"`
	LogicalBlock int64           `msgpack:"logical_block,omitempty"` // 512 or 4096; 0: 512
	LUN          int64           `msgpack:"lun,omitempty"`           // from 1, given once
	// Source is the snapshot that the volume begins as; zero: it begins empty. SourceVolume is the
	// volume that the snapshot is of. A clone is as large as its source at least.
	Source       domain.SnapshotID `msgpack:"source,omitempty"`
	SourceVolume domain.VolumeID   `msgpack:"source_volume,omitempty"`
}

// Export says how hosts reach the volumes of an application instance.
type Export struct {
	NBD        bool     `msgpack:"nbd,omitempty"`
	ISCSI      bool     `msgpack:"iscsi,omitempty"`
	AllowAny   bool     `msgpack:"allow_any,omitempty"`
	Initiators []string `msgpack:"initiators,omitempty"`
	// CHAP names a secret in the node's keyring, never the secret.
	CHAP string `msgpack:"chap,omitempty"`
}

// AppInstanceCreated is the first event of an application instance.
type AppInstanceCreated struct {
	App          domain.AppID      `msgpack:"app,omitempty"`
	Tenant       domain.TenantID   `msgpack:"tenant,omitempty"`
	TenantName   string            `msgpack:"tenant_name,omitempty"`
	Name         string            `msgpack:"name,omitempty"`
	Template     domain.TemplateID `msgpack:"template,omitempty"`
	TemplateName string            `msgpack:"template_name,omitempty"`
	Version      int64             `msgpack:"version,omitempty"` // 0 follows the newest
	Overrides    Intent            `msgpack:"overrides,omitempty"`
	Volumes      []VolumeSpec      `msgpack:"volumes,omitempty"`
	Export       Export            `msgpack:"export,omitempty"`
}

// VolumeSpecAdded adds a volume.
type VolumeSpecAdded struct {
	Spec VolumeSpec `msgpack:"spec,omitempty"`
}

// VolumeSpecResized changes a volume's wished size.
type VolumeSpecResized struct {
	Volume domain.VolumeID `msgpack:"volume,omitempty"`
	From   domain.Bytes    `msgpack:"from,omitempty"`
	To     domain.Bytes    `msgpack:"to,omitempty"`
	Force  bool            `msgpack:"force,omitempty"` // where it shrinks: also while hosts use it
}

// VolumeSpecRemoved says that a volume and its data shall go.
type VolumeSpecRemoved struct {
	Volume domain.VolumeID `msgpack:"volume,omitempty"`
}

// RestoreRequested says that a volume shall become what it was at one of its snapshots.
type RestoreRequested struct {
	Restore  domain.UUID       `msgpack:"restore,omitempty"` // tells this wish from the one before
	Volume   domain.VolumeID   `msgpack:"volume,omitempty"`
	Snapshot domain.SnapshotID `msgpack:"snapshot,omitempty"`
	Force    bool              `msgpack:"force,omitempty"` // also while hosts use the volume
}

// ExportChanged replaces how the volumes are reached.
type ExportChanged struct {
	Export Export `msgpack:"export,omitempty"`
}

// IntentChanged replaces the instance's own layer of intent.
type IntentChanged struct {
	Overrides Intent `msgpack:"overrides,omitempty"`
}

// AppInstanceDeleteRequested says that the instance and all its data shall go.
type AppInstanceDeleteRequested struct {
	App domain.AppID `msgpack:"app,omitempty"`
}

// AppInstanceDeleted says that nothing of it is left.
type AppInstanceDeleted struct {
	App domain.AppID `msgpack:"app,omitempty"`
}

// EventType implements domain.Event.
func (AppInstanceCreated) EventType() string { return "AppInstanceCreated" }

// EventType implements domain.Event.
func (VolumeSpecAdded) EventType() string { return "VolumeSpecAdded" }

// EventType implements domain.Event.
func (VolumeSpecResized) EventType() string { return "VolumeSpecResized" }

// EventType implements domain.Event.
func (VolumeSpecRemoved) EventType() string { return "VolumeSpecRemoved" }

// EventType implements domain.Event.
func (RestoreRequested) EventType() string { return "RestoreRequested" }

// EventType implements domain.Event.
func (ExportChanged) EventType() string { return "ExportChanged" }

// EventType implements domain.Event.
func (IntentChanged) EventType() string { return "IntentChanged" }

// EventType implements domain.Event.
func (AppInstanceDeleteRequested) EventType() string { return "AppInstanceDeleteRequested" }

// EventType implements domain.Event.
func (AppInstanceDeleted) EventType() string { return "AppInstanceDeleted" }

// CreateApp makes an application instance with its volumes.
type CreateApp struct {
	AppInstanceCreated
	Above []domain.TenantID `msgpack:",omitempty"` // the tenants above its own, the nearest first
}

// AddVolume adds a volume to an instance; the LUN is given by the instance.
type AddVolume struct {
	App    domain.AppID
	Tenant domain.TenantID
	Above  []domain.TenantID `msgpack:",omitempty"` // the tenants above it, the nearest first
	Spec   VolumeSpec
}

// ResizeVolume changes a volume's wished size. From is the size the caller knows: the difference is
// reserved first, and another size than that is a conflict. It shrinks only where the caller says
// that this is meant: what stands beyond the new end goes.
type ResizeVolume struct {
	App    domain.AppID
	Tenant domain.TenantID
	Above  []domain.TenantID `msgpack:",omitempty"` // the tenants above it, the nearest first
	Volume domain.VolumeID
	From   domain.Bytes
	Size   domain.Bytes
	Shrink bool
	Force  bool // to shrink although hosts use it
}

// RemoveVolume lets a volume and its data go.
type RemoveVolume struct {
	App    domain.AppID
	Tenant domain.TenantID
	Volume domain.VolumeID
}

// Restore makes a volume what it was at one of its snapshots. What was written since goes.
type Restore struct {
	App domain.AppID
	RestoreRequested
}

// SetExport replaces how the volumes are reached.
type SetExport struct {
	App    domain.AppID
	Export Export
}

// SetIntent replaces the instance's own layer of intent.
type SetIntent struct {
	App       domain.AppID
	Overrides Intent
}

// DeleteApp lets the instance and all its data go.
type DeleteApp struct{ App domain.AppID }

// FinishDeleteApp is the reconciler's word that nothing is left.
type FinishDeleteApp struct {
	App    domain.AppID
	Tenant domain.TenantID
}

// CommandType implements domain.Command.
func (CreateApp) CommandType() string { return "CreateApp" }

// Stream implements domain.Command.
func (c CreateApp) Stream() domain.StreamID { return AppStream(c.App) }

// Before implements domain.Prelude: the name comes first, then each volume's share of the quota.
func (c CreateApp) Before() []domain.Command {
	list := []domain.Command{tenancy.Reserve{
		Tenant: c.Tenant, Kind: "app", Name: c.Name, Object: c.App.UUID,
	}}
	for _, v := range c.Volumes {
		list = append(list, reserve(c.Tenant, c.Above, v.Volume, v.Size, 1))
	}
	return list
}

// Undo implements domain.Reversal.
func (c CreateApp) Undo() []domain.Command {
	list := []domain.Command{tenancy.Release{
		Tenant: c.Tenant, Object: c.App.UUID, Why: "application refused",
	}}
	for _, v := range c.Volumes {
		list = append(list, release(c.Tenant, c.Above, v.Volume, 0, "application refused"))
	}
	return list
}

func reserve(t domain.TenantID, above []domain.TenantID, v domain.VolumeID, b domain.Bytes,
	n int64,
) domain.Command {
	return tenancy.Reserve{
		Tenant: t, Above: above, Kind: "volume", Object: v.UUID, Bytes: b, Volumes: n,
	}
}

func release(t domain.TenantID, above []domain.TenantID, v domain.VolumeID, b domain.Bytes,
	why string,
) domain.Command {
	return tenancy.Release{Tenant: t, Above: above, Object: v.UUID, Bytes: b, Why: why}
}

// Validate implements domain.Validator.
func (c CreateApp) Validate() error {
	var chk domain.Checker
	chk.Check(tenancy.ValidName(c.Name), "name", "%q is no name: a lower-case DNS label", c.Name)
	c.Overrides.Check(&chk, "intent")
	chk.Check(len(c.Volumes) <= VolumesMax, "volumes", "%d volumes: at most %d",
		len(c.Volumes), VolumesMax)
	for i, v := range c.Volumes {
		v.check(&chk, fmt.Sprintf("volumes[%d]", i))
		for _, o := range c.Volumes[:i] {
			chk.Check(o.Name != v.Name, fmt.Sprintf("volumes[%d].name", i),
				"%q is given twice", v.Name)
		}
	}
	c.Export.check(&chk, "export")
	return chk.Err("intent.CreateApp", c.Name)
}

func (v VolumeSpec) check(chk *domain.Checker, at string) {
	chk.Check(tenancy.ValidName(v.Name), at+".name", "%q is no name: a lower-case DNS label", v.Name)
	checkSize(chk, at+".size", v.Size)
	chk.Check(v.LogicalBlock == 0 || v.LogicalBlock == 512 || v.LogicalBlock == 4096,
		at+".logical_block", "%d is not 512 or 4096", v.LogicalBlock)
}

func checkSize(chk *domain.Checker, at string, size domain.Bytes) {
	chk.Check(size >= domain.VolumeMin && size <= domain.VolumeMax && size%domain.VolumeMin == 0,
		at, "%d bytes is no volume size: a multiple of %s from %s to %s",
		int64(size), domain.VolumeMin, domain.VolumeMin, domain.VolumeMax)
}

// InitiatorsMax is the most initiators one export names.
const InitiatorsMax = 256

func (e Export) check(chk *domain.Checker, at string) {
	chk.Check(len(e.Initiators) <= InitiatorsMax, at+".initiators", "%d: at most %d",
		len(e.Initiators), InitiatorsMax)
	for i, name := range e.Initiators {
		chk.Check(name != "" && len(name) <= 223, fmt.Sprintf("%s.initiators[%d]", at, i),
			"an initiator name has 1 to 223 bytes")
	}
	chk.Check(!e.AllowAny || len(e.Initiators) == 0, at+".allow_any",
		"either any initiator or a list of them")
}

// CommandType implements domain.Command.
func (AddVolume) CommandType() string { return "AddVolume" }

// Stream implements domain.Command.
func (c AddVolume) Stream() domain.StreamID { return AppStream(c.App) }

// Before implements domain.Prelude.
func (c AddVolume) Before() []domain.Command {
	return []domain.Command{reserve(c.Tenant, c.Above, c.Spec.Volume, c.Spec.Size, 1)}
}

// Undo implements domain.Reversal.
func (c AddVolume) Undo() []domain.Command {
	return []domain.Command{release(c.Tenant, c.Above, c.Spec.Volume, 0, "volume refused")}
}

// Validate implements domain.Validator.
func (c AddVolume) Validate() error {
	var chk domain.Checker
	c.Spec.check(&chk, "volume")
	return chk.Err("intent.AddVolume", c.Spec.Name)
}

// CommandType implements domain.Command.
func (ResizeVolume) CommandType() string { return "ResizeVolume" }

// Stream implements domain.Command.
func (c ResizeVolume) Stream() domain.StreamID { return AppStream(c.App) }

// Before implements domain.Prelude.
func (c ResizeVolume) Before() []domain.Command {
	if c.Size <= c.From {
		return nil
	}
	return []domain.Command{reserve(c.Tenant, c.Above, c.Volume, c.Size-c.From, 0)}
}

// Undo implements domain.Reversal: only what this command reserved.
func (c ResizeVolume) Undo() []domain.Command {
	if c.Size <= c.From {
		return nil
	}
	return []domain.Command{release(c.Tenant, c.Above, c.Volume, c.Size-c.From, "growth refused")}
}

// After implements domain.Postlude: a tenant holds what is wished for, whenever it comes true.
func (c ResizeVolume) After() []domain.Command {
	if c.Size >= c.From {
		return nil
	}
	return []domain.Command{tenancy.Lower{
		Tenant: c.Tenant, Above: c.Above, Object: c.Volume.UUID, By: c.From - c.Size,
	}}
}

// Validate implements domain.Validator.
func (c ResizeVolume) Validate() error {
	var chk domain.Checker
	checkSize(&chk, "size", c.Size)
	return chk.Err("intent.ResizeVolume", c.Volume.String())
}

// CommandType implements domain.Command.
func (RemoveVolume) CommandType() string { return "RemoveVolume" }

// Stream implements domain.Command.
func (c RemoveVolume) Stream() domain.StreamID { return AppStream(c.App) }

// CommandType implements domain.Command.
func (Restore) CommandType() string { return "RestoreVolume" }

// Stream implements domain.Command.
func (c Restore) Stream() domain.StreamID { return AppStream(c.App) }

// CommandType implements domain.Command.
func (SetExport) CommandType() string { return "SetExport" }

// Stream implements domain.Command.
func (c SetExport) Stream() domain.StreamID { return AppStream(c.App) }

// CommandType implements domain.Command.
func (SetIntent) CommandType() string { return "SetIntent" }

// Stream implements domain.Command.
func (c SetIntent) Stream() domain.StreamID { return AppStream(c.App) }

// CommandType implements domain.Command.
func (DeleteApp) CommandType() string { return "DeleteApp" }

// Stream implements domain.Command.
func (c DeleteApp) Stream() domain.StreamID { return AppStream(c.App) }

// CommandType implements domain.Command.
func (FinishDeleteApp) CommandType() string { return "FinishDeleteApp" }

// Stream implements domain.Command.
func (c FinishDeleteApp) Stream() domain.StreamID { return AppStream(c.App) }

// After implements domain.Postlude: name and quota are free again.
func (c FinishDeleteApp) After() []domain.Command {
	return []domain.Command{tenancy.Release{
		Tenant: c.Tenant, Object: c.App.UUID, Why: "application deleted",
	}}
}

// App is an application instance folded.
type App struct {
	Exists, Deleting, Deleted bool
	AppInstanceCreated        // Volumes, Overrides and Export are today's
	NextLUN                   int64
	Restores                  []RestoreRequested  // the last of each volume
	Shrinks                   []VolumeSpecResized // the last of each volume, where it was to shrink
}

// AppAggregate is the application instance for the executor.
func AppAggregate() domain.Aggregate[App] {
	return domain.Aggregate[App]{Category: AppCategory, Evolve: EvolveApp, Decide: DecideApp}
}

// EvolveApp folds one event.
func EvolveApp(s App, ev domain.Event) App {
	switch ev := ev.(type) {
	case *AppInstanceCreated:
		s.Exists, s.AppInstanceCreated = true, *ev
		for _, v := range ev.Volumes {
			s.NextLUN = max(s.NextLUN, v.LUN+1)
		}
	case *VolumeSpecAdded:
		s.Volumes = append(slices.Clip(s.Volumes), ev.Spec)
		s.NextLUN = max(s.NextLUN, ev.Spec.LUN+1)
	case *VolumeSpecResized:
		s.Volumes = slices.Clone(s.Volumes)
		for i := range s.Volumes {
			if s.Volumes[i].Volume == ev.Volume {
				s.Volumes[i].Size = ev.To
			}
		}
		if ev.To < ev.From { // it stays: what is there may be larger than a wish that grows again
			s.Shrinks = append(s.shrinksBut(ev.Volume), *ev)
		}
	case *VolumeSpecRemoved:
		s.Volumes = slices.DeleteFunc(slices.Clone(s.Volumes), func(v VolumeSpec) bool {
			return v.Volume == ev.Volume
		})
		s.Restores, s.Shrinks = s.restoresBut(ev.Volume), s.shrinksBut(ev.Volume)
	case *RestoreRequested:
		s.Restores = append(s.restoresBut(ev.Volume), *ev)
	case *ExportChanged:
		s.Export = ev.Export
	case *IntentChanged:
		s.Overrides = ev.Overrides
	case *AppInstanceDeleteRequested:
		s.Deleting = true
	case *AppInstanceDeleted:
		s.Deleted = true
	}
	return s
}

// restoresBut gives a copy of the wishes to restore without one volume's.
func (s App) restoresBut(id domain.VolumeID) []RestoreRequested {
	return slices.DeleteFunc(slices.Clone(s.Restores), func(r RestoreRequested) bool {
		return r.Volume == id
	})
}

// shrinksBut gives a copy of the wishes to shrink without one volume's.
func (s App) shrinksBut(id domain.VolumeID) []VolumeSpecResized {
	return slices.DeleteFunc(slices.Clone(s.Shrinks), func(r VolumeSpecResized) bool {
		return r.Volume == id
	})
}

// DecideApp judges one command.
func DecideApp(s App, r domain.Request) ([]domain.Event, error) {
	if c, ok := r.Command.(CreateApp); ok {
		return s.create(c)
	}
	if !s.Exists || s.Deleted {
		return nil, domain.Errorf(domain.NotFound, "no such application instance")
	}
	switch c := r.Command.(type) {
	case DeleteApp:
		if s.Deleting {
			return nil, nil
		}
		return []domain.Event{&AppInstanceDeleteRequested{c.App}}, nil
	case FinishDeleteApp:
		if !s.Deleting {
			return nil, domain.Errorf(domain.Conflict, "nobody asked to delete %s", s.Name)
		}
		return []domain.Event{&AppInstanceDeleted{c.App}}, nil
	}
	if s.Deleting {
		return nil, domain.Errorf(domain.Conflict, "application %s is being deleted", s.Name)
	}
	return s.change(r.Command)
}

// change judges what changes an instance that is to stay.
func (s App) change(command domain.Command) ([]domain.Event, error) {
	switch c := command.(type) {
	case AddVolume:
		return s.add(c)
	case ResizeVolume:
		return s.resize(c)
	case RemoveVolume:
		if s.volume(c.Volume) == nil {
			return nil, domain.Errorf(domain.NotFound, "%s has no volume %s", s.Name, c.Volume)
		}
		return []domain.Event{&VolumeSpecRemoved{c.Volume}}, nil
	case Restore:
		if s.volume(c.Volume) == nil {
			return nil, domain.Errorf(domain.NotFound, "%s has no volume %s", s.Name, c.Volume)
		}
		ev := c.RestoreRequested
		return []domain.Event{&ev}, nil
	case SetExport:
		var chk domain.Checker
		c.Export.check(&chk, "export")
		if err := chk.Err("intent.SetExport", s.Name); err != nil {
			return nil, err
		}
		return []domain.Event{&ExportChanged{c.Export}}, nil
	case SetIntent:
		var chk domain.Checker
		c.Overrides.Check(&chk, "intent")
		if err := chk.Err("intent.SetIntent", s.Name); err != nil {
			return nil, err
		}
		if equal(s.Overrides, c.Overrides) {
			return nil, nil
		}
		if s.Overrides.Security.Encryption != c.Overrides.Security.Encryption && len(s.Volumes) > 0 {
			return nil, &domain.Error{
				Op: "intent.SetIntent", Kind: domain.Invalid, Ref: s.Name,
				Msg:    "security.encryption cannot change while there are volumes",
				Remedy: "make another application, and copy what is to be encrypted into it",
			}
		}
		return []domain.Event{&IntentChanged{c.Overrides}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "application: unknown command %T", command)
}

func (s App) create(c CreateApp) ([]domain.Event, error) {
	if s.Exists {
		return nil, domain.Errorf(domain.Exists, "application instance %s exists", c.App)
	}
	ev := c.AppInstanceCreated
	ev.Volumes = slices.Clone(ev.Volumes)
	for i := range ev.Volumes {
		ev.Volumes[i].LUN = int64(i + 1)
	}
	return []domain.Event{&ev}, nil
}

func (s App) volume(id domain.VolumeID) *VolumeSpec {
	for i := range s.Volumes {
		if s.Volumes[i].Volume == id {
			return &s.Volumes[i]
		}
	}
	return nil
}

func (s App) add(c AddVolume) ([]domain.Event, error) {
	for _, v := range s.Volumes {
		if v.Name == c.Spec.Name {
			return nil, domain.Errorf(domain.Exists, "%s has a volume %s", s.Name, c.Spec.Name)
		}
	}
	if len(s.Volumes) >= VolumesMax {
		return nil, domain.Errorf(domain.TooLarge, "%s has %d volumes", s.Name, VolumesMax)
	}
	c.Spec.LUN = max(s.NextLUN, 1)
	return []domain.Event{&VolumeSpecAdded{c.Spec}}, nil
}

func (s App) resize(c ResizeVolume) ([]domain.Event, error) {
	v := s.volume(c.Volume)
	switch {
	case v == nil:
		return nil, domain.Errorf(domain.NotFound, "%s has no volume %s", s.Name, c.Volume)
	case c.Size < v.Size && !c.Shrink:
		return nil, &domain.Error{
			Kind: domain.Invalid, Ref: "volume/" + v.Name,
			Msg:    fmt.Sprintf("%s are less than its %s: what stands beyond would be lost", c.Size, v.Size),
			Remedy: "shrink the file system inside first, then resize with shrink",
		}
	case c.From != v.Size:
		// Also where the size is right already: what the prelude reserved must be taken back.
		return nil, domain.Errorf(domain.Conflict, "volume %s has %s, not %s", v.Name, v.Size, c.From)
	case c.Size == v.Size:
		return nil, nil
	}
	return []domain.Event{&VolumeSpecResized{
		Volume: c.Volume, From: v.Size, To: c.Size, Force: c.Force && c.Size < v.Size,
	}}, nil
}
