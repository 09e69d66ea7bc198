package rest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/snapshot"
	"weft/projections/catalog"
	"weft/projections/desired"
)

// Snapshot is what one volume was at one instant.
type Snapshot struct {
	ID         string       `json:"id"`
	Name       string       `json:"name" doc:"unique in the application"`
	App        string       `json:"app"`
	Volume     string       `json:"volume"`
	VolumeID   string       `json:"volume_id"`
	Tenant     string       `json:"tenant"`
	Group      string       `json:"group,omitempty" doc:"of those asked for together"`
	State      string       `json:"state" enum:"taking,ready,failed,deleting"`
	Reason     string       `json:"reason,omitempty" doc:"why it failed"`
	Every      string       `json:"every,omitempty" doc:"the rule that took it, if one did"`
	Taken      *time.Time   `json:"taken,omitempty" doc:"of a rule: when it was due"`
	Generation int64        `json:"generation,omitempty" doc:"of the volume, that ended with the cut"`
	Size       domain.Bytes `json:"size,omitempty"`
	Used       domain.Bytes `json:"used,omitempty" doc:"bytes that hold data as it sees them"`
	Own        domain.Bytes `json:"own,omitempty" doc:"room of those written since the cut before"`
	Shared     domain.Bytes `json:"shared,omitempty" doc:"room of what older snapshots wrote"`
	Node       string       `json:"node,omitempty"`
	Device     string       `json:"device,omitempty"`
	ETag       string       `json:"etag,omitempty" doc:"of its group"`
}

// SnapshotList is a list of snapshots. What nodes did not tell is named.
type SnapshotList struct {
	Items    []Snapshot `json:"items"`
	Position string     `json:"position" doc:"of the log, that the list shows"`
	Silent   []string   `json:"silent,omitempty" doc:"nodes that gave no answer"`
}

// SnapshotBody asks for a snapshot.
type SnapshotBody struct {
	Name    string   `json:"name,omitempty" maxLength:"63" doc:"absent: one is made up"`
	Volumes []string `json:"volumes,omitempty" doc:"absent: all of the application"`
}

// RestoreBody asks to roll a volume back.
type RestoreBody struct {
	Snapshot string `json:"snapshot" doc:"id, name, or volume@name"`
	Force    bool   `json:"force,omitempty" doc:"also while hosts use the volume"`
}

// SnapshotsIn is a GET of snapshots.
type SnapshotsIn struct {
	At
	App    string `query:"app" doc:"only of this application"`
	Volume string `query:"volume" doc:"only of this volume, by name or id"`
}

// SnapshotChange is a mutation of one snapshot of a tenant.
type SnapshotChange struct {
	Change
	ID string `path:"id"`
}

func (s *Server) snapshotRoutes() {
	register(s, readTenant, "GET", "/v1/snapshots", "list-snapshots", "List snapshots", 200,
		s.listSnapshots)
	register(s, readTenant, "GET", "/v1/snapshots/{id}", "get-snapshot", "Show a snapshot by id", 200,
		s.getSnapshot)
	register(s, operateTenant, "DELETE", "/v1/snapshots/{id}", "delete-snapshot",
		"Delete a snapshot; volumes, clones and other snapshots stay as they are", 202,
		s.deleteSnapshot)
	register(s, operateTenant, "POST", "/v1/apps/{name}/snapshots", "snapshot-app",
		"Take a snapshot of volumes of an application, all at one instant", 201,
		func(ctx context.Context, in *struct {
			NamedChange
			Body SnapshotBody
		},
		) (*Changed[SnapshotList], error) {
			return s.createSnapshot(ctx, in.NamedChange, in.Body)
		})
	register(s, operateTenant, "POST", "/v1/apps/{name}/volumes/{volume}/snapshots", "snapshot-volume",
		"Take a snapshot of a volume", 201,
		func(ctx context.Context, in *struct {
			VolumeChange
			Body *struct {
				Name string `json:"name,omitempty" maxLength:"63" doc:"absent: one is made up"`
			}
		},
		) (*Changed[SnapshotList], error) {
			b := SnapshotBody{Volumes: []string{in.Volume}}
			if in.Body != nil {
				b.Name = in.Body.Name
			}
			return s.createSnapshot(ctx, in.NamedChange, b)
		})
	register(s, operateTenant, "POST", "/v1/apps/{name}/volumes/{volume}/restore", "restore-volume",
		"Roll a volume back to one of its snapshots", 202, s.restoreVolume)
	s.rangeRoutes()
}

// createSnapshot asks for a group of snapshots.
func (s *Server) createSnapshot(ctx context.Context, ch NamedChange, b SnapshotBody) (
	*Changed[SnapshotList], error,
) {
	t, a, err := s.app(ch.Tenant, ch.Name)
	if err != nil {
		return nil, err
	}
	id := commandID(ctx, ch.Change)
	ev := snapshot.SnapshotRequested{
		Group: domain.SnapshotGroupID{UUID: id.ObjectID("snapshot-group", 0)},
		App:   a.AppInstanceCreated.App, Tenant: t.Tenant, AppName: a.Name, Name: b.Name,
	}
	if ev.Name == "" {
		ev.Name = "snap-" + ev.Group.String()[:8]
	}
	wanted := a.Volumes
	if len(b.Volumes) > 0 {
		wanted = nil
	}
	for _, name := range b.Volumes {
		v, ok := volumeOf(a, name)
		if !ok {
			return nil, noVolume(a, name)
		}
		wanted = append(wanted, v)
	}
	for i, v := range wanted {
		ev.Members = append(ev.Members, snapshot.Member{
			Volume: v.Volume, VolumeName: v.Name,
			Snapshot: domain.SnapshotID{UUID: id.ObjectID("snapshot", i)},
		})
	}
	res, err := s.command(ctx, ch.Change, id, snapshot.Request{SnapshotRequested: ev})
	if err != nil {
		return nil, err
	}
	v := s.b.Now()
	out := &Changed[SnapshotList]{Position: res.Position.String()}
	out.Body = SnapshotList{Items: []Snapshot{}, Position: v.Position.String()}
	for _, g := range v.Catalog.Groups(t.Tenant) {
		if g.Group == ev.Group {
			out.Body.Items = append(out.Body.Items, groupDocs(t.Name, g)...)
			out.ETag = etag(g.Changed, g.Revision)
		}
	}
	return out, nil
}

func noVolume(a desired.App, name string) error {
	return &domain.Error{
		Kind: domain.NotFound, Ref: "volume/" + name, Msg: "app " + a.Name + " has no such volume",
	}
}

// groupDocs gives the members of a group that are not gone.
func groupDocs(tenant string, g catalog.Group) []Snapshot {
	var out []Snapshot
	for _, m := range g.Members {
		if slices.Contains(g.Deleted, m.Snapshot) {
			continue
		}
		d := Snapshot{
			ID: m.Snapshot.String(), Name: g.Name, App: g.AppName, Volume: m.VolumeName,
			VolumeID: m.Volume.String(), Tenant: tenant, Group: g.Group.String(), State: "taking",
			ETag: etag(g.Changed, g.Revision),
		}
		if c, ok := g.CutOf(m.Snapshot); ok {
			at := g.Cut.At
			d.State, d.Taken, d.Generation, d.Size = "ready", &at, c.Generation, c.Size
			d.Node, d.Device = g.Cut.Node.String(), c.Device.String()
		}
		if g.Failed != nil {
			d.State, d.Reason = "failed", g.Failed.Why
		}
		if slices.Contains(g.Deleting, m.Snapshot) {
			d.State = "deleting"
		}
		out = append(out, d)
	}
	return out
}

// snapshots gives the snapshots of a tenant by application, volume and time: those in the log, and,
// in the present, those that rules took, which the nodes tell.
func (s *Server) snapshots(ctx context.Context, v Views, t desired.Tenant, past bool) SnapshotList {
	out := SnapshotList{Items: []Snapshot{}, Position: v.Position.String()}
	known := map[string]int{}
	for _, g := range v.Catalog.Groups(t.Tenant) {
		for _, d := range groupDocs(t.Name, g) {
			known[d.ID] = len(out.Items)
			out.Items = append(out.Items, d)
		}
	}
	if !past {
		s.tellSnapshots(ctx, v, t, known, &out)
	}
	slices.SortStableFunc(out.Items, func(a, b Snapshot) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Volume, b.Volume),
			since(a.Taken).Compare(since(b.Taken)), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func since(t *time.Time) time.Time {
	if t == nil {
		return time.Unix(1<<40, 0) // what is not taken comes last
	}
	return *t
}

// tellSnapshots adds what the nodes know: of each snapshot what it holds, and those of rules.
func (s *Server) tellSnapshots(
	ctx context.Context, v Views, t desired.Tenant, known map[string]int, out *SnapshotList,
) {
	names := map[domain.VolumeID][2]string{}
	for _, a := range v.Desired.Apps(t.Tenant) {
		for _, x := range a.Volumes {
			names[x.Volume] = [2]string{a.Name, x.Name}
		}
	}
	for _, n := range v.Topology.Nodes() {
		if n.Removed {
			continue
		}
		list, err := s.askSnapshots(ctx, n.Node.Node)
		if err != nil {
			out.Silent = append(out.Silent, n.Name)
		}
		for _, x := range list {
			if i, ok := known[x.Snapshot.String()]; ok {
				out.Items[i].holds(x)
				continue
			}
			of, mine := names[x.Volume]
			c, timed := snapshot.ScheduledOf(x.Volume, x.Snapshot)
			if !mine || !timed {
				continue
			}
			tick := c.Tick
			d := Snapshot{
				ID: x.Snapshot.String(), Name: c.Name(), App: of[0], Volume: of[1],
				VolumeID: x.Volume.String(), Tenant: t.Name, State: "ready",
				Every: snapshot.FormatEvery(c.Every), Taken: &tick, Node: n.Node.Node.String(),
			}
			d.holds(x)
			out.Items = append(out.Items, d)
		}
	}
}

func (d *Snapshot) holds(x command.Space) {
	d.Used, d.Own, d.Shared, d.Size = x.Mapped, x.Own, x.Shared, x.Size
	d.Device, d.Generation = x.Device.String(), int64(x.Generation)
}

// askSnapshots asks a node for its snapshots, of some volumes or all. What came before an error is
// given with it.
func (s *Server) askSnapshots(
	ctx context.Context, node domain.NodeID, of ...domain.VolumeID,
) ([]command.Space, error) {
	var list []command.Space
	q := command.Question{Ask: command.AskSnapshots, Node: node, Volumes: of}
	for {
		a, err := s.b.Ask(ctx, q)
		list = append(list, a.Spaces...)
		if err != nil || !a.More || len(a.Spaces) == 0 {
			return list, err
		}
		q.After = a.Spaces[len(a.Spaces)-1].Snapshot
	}
}

func (s *Server) listSnapshots(ctx context.Context, in *SnapshotsIn) (*Got[SnapshotList], error) {
	v, past, err := s.views(ctx, in.At)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	list := s.snapshots(ctx, v, t, past)
	list.Items = slices.DeleteFunc(list.Items, func(d Snapshot) bool {
		return in.App != "" && d.App != in.App ||
			in.Volume != "" && d.Volume != in.Volume && d.VolumeID != in.Volume
	})
	return &Got[SnapshotList]{Position: v.Position.String(), Body: list}, nil
}

func (s *Server) getSnapshot(ctx context.Context, in *VolumeIn) (*Got[Snapshot], error) {
	v, past, err := s.views(ctx, in.At)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	d, err := s.oneSnapshot(ctx, v, t, past, in.ID, nil)
	if err != nil {
		return nil, err
	}
	if id, err := d.ids(); err == nil && !past && !id.node.IsZero() {
		list, err := s.askSnapshots(ctx, id.node, id.volume)
		for _, x := range list {
			if err == nil && x.Snapshot == id.snapshot {
				d.holds(x)
			}
		}
	}
	return &Got[Snapshot]{v.Position.String(), d.ETag, d}, nil
}

// oneSnapshot finds a snapshot by id, by "app/volume@name", or, of one volume, by "volume@name" or
// its name.
func (s *Server) oneSnapshot(
	ctx context.Context, v Views, t desired.Tenant, past bool, ref string, of *intent.VolumeSpec,
) (Snapshot, error) {
	list := s.snapshots(ctx, v, t, true) // the log alone may know it
	for _, d := range list.Items {
		if d.ID == ref {
			return d, nil
		}
	}
	list = s.snapshots(ctx, v, t, past)
	var found []Snapshot
	for _, d := range list.Items {
		if d.ID == ref {
			return d, nil
		}
		short := of != nil && d.VolumeID == of.Volume.String() &&
			(ref == d.Name || ref == d.Volume+"@"+d.Name)
		if short || ref == d.App+"/"+d.Volume+"@"+d.Name || ref == d.App+"@"+d.Name {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Snapshot{}, &domain.Error{
			Kind: domain.Invalid, Ref: "snapshot/" + ref,
			Msg:    fmt.Sprintf("%d volumes have it", len(found)),
			Remedy: "name one: " + found[0].App + "/" + found[0].Volume + "@" + found[0].Name,
		}
	case len(list.Silent) > 0:
		return Snapshot{}, &domain.Error{
			Kind: domain.Unavailable, Ref: "snapshot/" + ref,
			Msg: "it is not in the log, and nodes that may have it do not answer: " +
				strings.Join(list.Silent, ", "),
		}
	}
	return Snapshot{}, &domain.Error{
		Kind: domain.NotFound, Ref: "snapshot/" + ref, Msg: "no such snapshot",
		Remedy: "weft get snapshots lists what there is",
	}
}

// deleteSnapshot asks for the end of one snapshot. A rule's cut enters the log by that.
func (s *Server) deleteSnapshot(ctx context.Context, in *SnapshotChange) (*Changed[Gone], error) {
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	v := s.b.Now()
	d, err := s.oneSnapshot(ctx, v, t, false, in.ID, nil)
	if err != nil {
		return nil, err
	}
	id, err := d.ids()
	if err != nil {
		return nil, err
	}
	var c domain.Command = snapshot.Delete{
		Group: domain.SnapshotGroupID{UUID: id.group}, Snapshots: []domain.SnapshotID{id.snapshot},
	}
	if d.Group == "" {
		if c, err = adopt(v, t, d, id); err != nil {
			return nil, err
		}
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), c)
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{d.ref(), "deleting"}}, nil
}

func (d Snapshot) ref() string { return d.App + "/" + d.Volume + "@" + d.Name }

// snapshotIDs are the ids of a snapshot's document.
type snapshotIDs struct {
	snapshot domain.SnapshotID
	volume   domain.VolumeID
	group    domain.UUID
	device   domain.DeviceID
	node     domain.NodeID
}

func (d Snapshot) ids() (snapshotIDs, error) {
	var id snapshotIDs
	for text, to := range map[string]*domain.UUID{
		d.ID: &id.snapshot.UUID, d.VolumeID: &id.volume.UUID, d.Group: &id.group,
		d.Device: &id.device.UUID, d.Node: &id.node.UUID,
	} {
		if text == "" {
			continue
		}
		u, err := domain.ParseUUID(text)
		if err != nil {
			return id, err
		}
		*to = u
	}
	return id, nil
}

// adopt makes the command that enters a rule's cut into the log and asks for its end.
func adopt(v Views, t desired.Tenant, d Snapshot, id snapshotIDs) (domain.Command, error) {
	a, err := v.Desired.App(t.Tenant, d.App)
	if err != nil {
		return nil, err
	}
	// The group's id follows from the snapshot's, so that two deletions are one.
	group := domain.SnapshotGroupID{UUID: domain.DeriveUUID(id.snapshot.UUID, "scheduled")}
	return snapshot.Adopt{
		SnapshotRequested: snapshot.SnapshotRequested{
			Group: group, App: a.AppInstanceCreated.App, Tenant: t.Tenant, AppName: a.Name,
			Name: d.Name + "-" + id.snapshot.String()[24:],
			Members: []snapshot.Member{
				{Volume: id.volume, VolumeName: d.Volume, Snapshot: id.snapshot},
			},
		},
		Cut: snapshot.SnapshotCut{Node: id.node, At: *d.Taken, Cuts: []snapshot.Cut{{
			Snapshot: id.snapshot, Device: id.device, Generation: d.Generation, Size: d.Size,
		}}},
	}, nil
}

// restoreVolume asks to roll a volume back. It is refused while hosts use the volume; the node
// looks once more when it carries it out.
func (s *Server) restoreVolume(ctx context.Context, in *struct {
	VolumeChange
	Body RestoreBody
},
) (*Changed[Volume], error) {
	t, a, spec, err := s.volume(in.VolumeChange)
	if err != nil {
		return nil, err
	}
	v := s.b.Now()
	d, err := s.oneSnapshot(ctx, v, t, false, in.Body.Snapshot, &spec)
	if err != nil {
		return nil, err
	}
	switch {
	case d.VolumeID != spec.Volume.String():
		return nil, &domain.Error{
			Kind: domain.Invalid, Ref: "snapshot/" + d.ref(), Msg: "it is a snapshot of another volume",
			Remedy: "clone it: weft volume clone " + d.ref(),
		}
	case d.State != "ready":
		return nil, domain.Errorf(domain.Conflict, "snapshot %s is %s", d.ref(), d.State)
	}
	if err := s.idle(ctx, v, spec, in.Body.Force); err != nil {
		return nil, err
	}
	id := commandID(ctx, in.Change)
	ids, err := d.ids()
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, id, intent.Restore{
		App: a.AppInstanceCreated.App, RestoreRequested: intent.RestoreRequested{
			Restore: id.ObjectID("restore", 0), Volume: spec.Volume, Snapshot: ids.snapshot,
			Force: in.Body.Force,
		},
	})
	if err != nil {
		return nil, err
	}
	v = s.b.Now()
	if a, err = v.Desired.App(t.Tenant, in.Name); err != nil {
		return nil, err
	}
	for _, x := range s.volumeDocs(v, a, false) {
		if x.ID == spec.Volume.String() {
			return &Changed[Volume]{res.Position.String(), x.ETag, x}, nil
		}
	}
	return nil, noVolume(a, spec.Name)
}

// idle refuses to go on while hosts use a volume, unless that is forced.
func (s *Server) idle(ctx context.Context, v Views, spec intent.VolumeSpec, force bool) error {
	f, ok := v.Catalog.Volume(spec.Volume)
	if !ok {
		return domain.Errorf(domain.Conflict, "volume %s is not placed yet", spec.Name)
	}
	if force {
		return nil
	}
	a, err := s.b.Ask(ctx, command.Question{
		Ask: command.AskVolume, Node: f.Node, Volume: spec.Volume,
	})
	if err != nil {
		return domain.Wrap(err, "", "volume/"+spec.Name)
	}
	if a.Hosts > 0 {
		return &domain.Error{
			Kind: domain.Conflict, Ref: "volume/" + spec.Name,
			Msg:    fmt.Sprintf("%d connections of hosts use it", a.Hosts),
			Remedy: "detach it first, or say force: hosts lose the disk under them",
		}
	}
	return nil
}

// source finds the snapshot that a volume shall begin as and completes its spec.
func (s *Server) source(
	ctx context.Context, t desired.Tenant, ref string, spec *intent.VolumeSpec,
) error {
	if ref == "" {
		return nil
	}
	d, err := s.oneSnapshot(ctx, s.b.Now(), t, false, ref, nil)
	if err != nil {
		return err
	}
	if d.State != "ready" {
		return domain.Errorf(domain.Conflict, "snapshot %s is %s", d.ref(), d.State)
	}
	id, err := d.ids()
	if err != nil {
		return err
	}
	spec.Source, spec.SourceVolume = id.snapshot, id.volume
	if spec.Size == 0 {
		spec.Size = d.Size
	}
	if spec.Size < d.Size {
		var c domain.Checker
		c.Check(false, "size", "%s is below the %s of its source", spec.Size, d.Size)
		return c.Err("rest.source", spec.Name)
	}
	return nil
}
