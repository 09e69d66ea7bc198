package rest

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/topology"
)

// Intent is the wire form of an intent; absent fields are no demand.
type Intent struct {
	Performance  *Performance  `json:"performance,omitempty"`
	Availability *Availability `json:"availability,omitempty"`
	Placement    *Placement    `json:"placement,omitempty"`
	Security     *Security     `json:"security,omitempty"`
	Cost         *Cost         `json:"cost,omitempty"`
	Lifecycle    *Lifecycle    `json:"lifecycle,omitempty"`
	Protection   *Protection   `json:"protection,omitempty"`
}

// Performance is part of an intent.
type Performance struct {
	LatencyP99US int64 `json:"latency_p99_us,omitempty" doc:"4 KiB p99 at the edge, microseconds"`
	IOPSMin      int64 `json:"iops_min,omitempty" doc:"reserved while the device is short"`
	IOPSMax      int64 `json:"iops_max,omitempty"`
	BWMinBPS     int64 `json:"bw_min_bps,omitempty" doc:"bytes per second, reserved as iops_min"`
	BWMaxBPS     int64 `json:"bw_max_bps,omitempty" doc:"bytes per second"`
	BurstS       int64 `json:"burst_s,omitempty" doc:"seconds at the maxima that may come at once"`
}

// Availability is part of an intent.
type Availability struct {
	Replicas int64     `json:"replicas,omitempty" doc:"copies, 1 to 5"`
	Survive  []Survive `json:"survive,omitempty"`
	Ack      string    `json:"ack,omitempty" doc:"all"`
}

// Survive is part of an intent.
type Survive struct {
	Domain string `json:"domain"`
	Count  int64  `json:"count"`
}

// Placement is part of an intent.
type Placement struct {
	Hot      string `json:"hot,omitempty" doc:"nvram or flash"`
	Capacity string `json:"capacity,omitempty" doc:"flash or hdd"`
}

// Security is part of an intent.
type Security struct {
	Authn      string `json:"authn,omitempty" doc:"none, chap or mutual"`
	Encryption string `json:"encryption,omitempty" doc:"on or off; a volume keeps what it began with"`
}

// Cost is part of an intent.
type Cost struct {
	Compression string `json:"compression,omitempty" doc:"off, s2, zstd or auto, from now on"`
}

// Lifecycle is part of an intent.
type Lifecycle struct {
	Priority int64 `json:"priority,omitempty"`
}

// Protection is part of an intent.
type Protection struct {
	Snapshots []SnapshotRule `json:"snapshots,omitempty"`
}

// SnapshotRule asks for snapshots by the clock.
type SnapshotRule struct {
	Every Every `json:"every" doc:"such as 15m, 1h, 1d or 1w, counted from 1970 in UTC"`
	Keep  int64 `json:"keep" doc:"how many of the rule's snapshots are kept, 1 to 256"`
}

// Every is an interval as people write it.
type Every string

// seconds gives the interval, 0 for one that is none: the domain refuses it with all else.
func (e Every) seconds() int64 {
	d, err := snapshot.ParseEvery(string(e))
	if err != nil {
		return 0
	}
	return int64(d / time.Second)
}

func (i *Intent) domain() intent.Intent {
	var d intent.Intent
	if i == nil {
		return d
	}
	if p := i.Performance; p != nil {
		d.Performance = intent.Performance{
			LatencyP99US: p.LatencyP99US, IOPSMin: p.IOPSMin, IOPSMax: p.IOPSMax, BWMinBPS: p.BWMinBPS,
			BWMaxBPS: p.BWMaxBPS, BurstS: p.BurstS,
		}
	}
	if a := i.Availability; a != nil {
		d.Availability.Replicas, d.Availability.Ack = a.Replicas, a.Ack
		for _, s := range a.Survive {
			d.Availability.Survive = append(d.Availability.Survive, intent.Survive(s))
		}
	}
	if p := i.Placement; p != nil {
		d.Placement = intent.Placement{Hot: p.Hot, Capacity: p.Capacity}
	}
	if s := i.Security; s != nil {
		d.Security = intent.Security{Authn: s.Authn, Encryption: s.Encryption}
	}
	if c := i.Cost; c != nil {
		d.Cost = intent.Cost{Compression: c.Compression}
	}
	if l := i.Lifecycle; l != nil {
		d.Lifecycle.Priority = l.Priority
	}
	if p := i.Protection; p != nil {
		for _, r := range p.Snapshots {
			d.Protection.Snapshots = append(d.Protection.Snapshots, intent.SnapshotRule{
				EveryS: r.Every.seconds(), Keep: r.Keep,
			})
		}
	}
	return d
}

func intentDoc(d intent.Intent) *Intent {
	i := &Intent{}
	if d.Performance != (intent.Performance{}) {
		i.Performance = &Performance{
			LatencyP99US: d.Performance.LatencyP99US, IOPSMin: d.Performance.IOPSMin,
			IOPSMax: d.Performance.IOPSMax, BWMinBPS: d.Performance.BWMinBPS,
			BWMaxBPS: d.Performance.BWMaxBPS, BurstS: d.Performance.BurstS,
		}
	}
	a := d.Availability
	if a.Replicas != 0 || a.Ack != "" || len(a.Survive) > 0 {
		i.Availability = &Availability{Replicas: a.Replicas, Ack: a.Ack}
		for _, s := range a.Survive {
			i.Availability.Survive = append(i.Availability.Survive, Survive(s))
		}
	}
	if d.Placement != (intent.Placement{}) {
		i.Placement = &Placement{Hot: d.Placement.Hot, Capacity: d.Placement.Capacity}
	}
	if d.Security != (intent.Security{}) {
		i.Security = &Security{Authn: d.Security.Authn, Encryption: d.Security.Encryption}
	}
	if d.Cost != (intent.Cost{}) {
		i.Cost = &Cost{Compression: d.Cost.Compression}
	}
	if d.Lifecycle != (intent.Lifecycle{}) {
		i.Lifecycle = &Lifecycle{Priority: d.Lifecycle.Priority}
	}
	if rules := d.Protection.Snapshots; len(rules) > 0 {
		i.Protection = &Protection{}
		for _, r := range rules {
			i.Protection.Snapshots = append(i.Protection.Snapshots, SnapshotRule{
				Every(snapshot.FormatEvery(r.Every())), r.Keep,
			})
		}
	}
	return i
}

// Template is a template with its versions.
type Template struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Tenant      string            `json:"tenant"`
	Description string            `json:"description,omitempty"`
	Version     int64             `json:"version" doc:"the newest"`
	Intent      *Intent           `json:"intent" doc:"of the newest version"`
	Versions    []TemplateVersion `json:"versions"`
	ETag        string            `json:"etag"`
}

// TemplateVersion is one immutable version.
type TemplateVersion struct {
	Version int64   `json:"version"`
	Intent  *Intent `json:"intent"`
}

func templateDoc(v Views, t desired.Template) Template {
	d := Template{
		ID: t.TemplateCreated.Template.String(), Name: t.Name, Tenant: tenantName(v, t.Tenant),
		Description: t.Description, Version: int64(len(t.Versions)),
		ETag: etag(t.Changed, t.Revision),
	}
	for i, in := range t.Versions {
		d.Versions = append(d.Versions, TemplateVersion{int64(i + 1), intentDoc(in)})
		d.Intent = intentDoc(in)
	}
	return d
}

func tenantName(v Views, id domain.TenantID) string {
	for _, t := range v.Desired.Tenants() {
		if t.Tenant == id {
			return t.Name
		}
	}
	return id.String()
}

// Export says how hosts reach the volumes of an application.
type Export struct {
	NBD        bool     `json:"nbd,omitempty"`
	ISCSI      bool     `json:"iscsi,omitempty"`
	AllowAny   bool     `json:"allow_any,omitempty" doc:"any initiator may log in"`
	Initiators []string `json:"initiators,omitempty"`
	CHAP       string   `json:"chap,omitempty" doc:"name of a secret in the node's keyring"`
}

func (e *Export) domain() intent.Export {
	if e == nil {
		return intent.Export{}
	}
	return intent.Export(*e)
}

// App is an application instance as it is wished for.
type App struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Tenant   string   `json:"tenant"`
	Template string   `json:"template,omitempty"`
	Version  int64    `json:"version,omitempty" doc:"0 follows the newest"`
	Intent   *Intent  `json:"intent,omitempty" doc:"the instance's own layer"`
	Export   Export   `json:"export"`
	Volumes  []Volume `json:"volumes"`
	Deleting bool     `json:"deleting,omitempty"`
	ETag     string   `json:"etag"`
}

// Volume is a volume: what is wished for and what became of it.
type Volume struct {
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	App          string       `json:"app"`
	Tenant       string       `json:"tenant"`
	Size         domain.Bytes `json:"size" doc:"wished, bytes"`
	Actual       domain.Bytes `json:"actual_size" doc:"what hosts see, bytes"`
	LogicalBlock int          `json:"logical_block"`
	LUN          int          `json:"lun"`
	State        string       `json:"state" enum:"placing,offline,online,deleting"`
	Compliance   Compliance   `json:"compliance"`
	Node         string       `json:"node,omitempty"`
	Device       string       `json:"device,omitempty"`
	Durability   string       `json:"durability,omitempty" doc:"what an acknowledged write survives"`
	Used         domain.Bytes `json:"used,omitempty" doc:"bytes that hold data"`
	Own          domain.Bytes `json:"own,omitempty" doc:"room of those since the last snapshot"`
	Shared       domain.Bytes `json:"shared,omitempty" doc:"room of what older snapshots wrote"`
	Saved        domain.Bytes `json:"saved,omitempty" doc:"by which compression makes that smaller"`
	Snapshots    int          `json:"snapshots,omitempty" doc:"how many there are of it on its device"`
	SnapshotOwn  domain.Bytes `json:"snapshot_own,omitempty" doc:"bytes that these wrote"`
	Hosts        int          `json:"hosts,omitempty" doc:"connections that use it"`
	Source       string       `json:"source,omitempty" doc:"id of the snapshot it was cloned from"`
	Restore      string       `json:"restore,omitempty" enum:"pending,done,refused"`
	Refused      string       `json:"refused,omitempty" doc:"why the last roll-back was not done"`
	Encrypted    bool         `json:"encrypted,omitempty" doc:"where it rests"`
	Shrinking    bool         `json:"shrinking,omitempty" doc:"becomes smaller once no host uses it"`
	NBD          string       `json:"nbd,omitempty"`
	ISCSI        string       `json:"iscsi,omitempty"`
	Target       string       `json:"target,omitempty" doc:"the IQN"`
	Ops          []LiveOps    `json:"ops,omitempty"`
	Policy       []PolicyRow  `json:"policy,omitempty"`
	ETag         string       `json:"etag,omitempty"`
}

// Compliance says how far a volume is what its policy demands.
type Compliance struct {
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}

// PolicyRow is one effective field of a policy set with its source.
type PolicyRow struct {
	Field      string   `json:"field"`
	Value      string   `json:"value"`
	From       string   `json:"from"`
	Overridden []string `json:"overridden,omitempty"`
}

func (s *Server) appDoc(v Views, a desired.App, past bool) App {
	d := App{
		ID: a.AppInstanceCreated.App.String(), Name: a.Name, Tenant: a.TenantName,
		Template: a.TemplateName, Version: a.Version, Intent: intentDoc(a.Overrides),
		Export: Export(a.Export), Deleting: a.Deleting, ETag: etag(a.Changed, a.Revision),
		Volumes: s.volumeDocs(v, a, past),
	}
	return d
}

// volumeDocs joins wishes, facts and what the node knows now.
func (s *Server) volumeDocs(v Views, a desired.App, past bool) []Volume {
	var o policy.Observed
	v.Topology.Observe(&o)
	out := []Volume{}
	for i, w := range v.Desired.Wishes(a) {
		d := Volume{
			ID: w.Volume.String(), Name: a.Volumes[i].Name, App: a.Name, Tenant: a.TenantName,
			Size: w.Size, LogicalBlock: max(w.LogicalBlock, 512), LUN: int(a.Volumes[i].LUN),
			Target: w.Export.Target, State: "placing", ETag: etag(a.Changed, a.Revision),
			Compliance: Compliance(policy.Check(w, nil, &o)),
		}
		for _, f := range w.Set.Fields {
			d.Policy = append(d.Policy, PolicyRow{f.Path, f.Value, f.From, f.Overridden})
		}
		if w.Source != nil {
			d.Source = w.Source.Snapshot.String()
		}
		if w.Restore != nil {
			d.Restore = "pending"
		}
		if f, ok := v.Catalog.Volume(w.Volume); ok {
			d.fact(f, v.Topology)
			d.restored(w, f)
			d.Shrinking = w.Shrink != nil && w.Size < f.Size
			d.Encrypted = f.Encrypted
			fact := f.Fact()
			d.Compliance = Compliance(policy.Check(w, &fact, &o))
		} else if dec, ok := v.Catalog.Decision(w.Volume); ok && dec.Impossible != nil {
			d.Compliance = nowhere(dec.Impossible)
		}
		if a.Deleting {
			d.State = "deleting"
		}
		if l, ok := s.b.Live(w.Volume); ok && !past {
			d.NBD, d.ISCSI, d.Durability, d.Ops = l.NBD, l.ISCSI, l.Durability, l.Ops
			d.holds(l.Space)
		} else if f, ok := v.Catalog.Volume(w.Volume); ok && !past {
			d.NBD, d.ISCSI = far(v, f, w.Export)
		}
		out = append(out, d)
	}
	return out
}

// restored tells what became of the last wish to roll back.
func (d *Volume) restored(w policy.Wish, f catalog.Volume) {
	if w.Restore == nil || w.Restore.Restore != f.Restored {
		return
	}
	if d.Restore = "done"; f.Refused != "" {
		d.Restore, d.Refused = "refused", f.Refused
	}
}

// holds tells what a volume and its snapshots hold, and who uses the volume.
func (d *Volume) holds(a command.Answer) {
	d.Hosts, d.Snapshots, d.SnapshotOwn = a.Hosts, 0, 0
	for _, x := range a.Spaces {
		if x.Snapshot.IsZero() {
			d.Used, d.Own, d.Shared, d.Saved = x.Mapped, x.Own, x.Shared, x.Saved
			continue
		}
		d.Snapshots++
		d.SnapshotOwn += x.Own
	}
}

// nowhere says why a volume cannot be placed.
func nowhere(p *policy.PlacementImpossible) Compliance {
	c := Compliance{State: "violated", Reason: "no device takes it"}
	for _, r := range p.Rejects {
		c.Reason += "; " + strconv.FormatInt(r.Count, 10) + " x " + r.Why
	}
	return c
}

// fact tells what became of a volume. What a node served before its last start it does not serve.
func (d *Volume) fact(f catalog.Volume, t *topology.View) {
	d.State, d.Actual = "offline", f.Size
	d.Node, d.Device = f.Node.String(), f.Device.String()
	n, ok := t.Node(f.Online.Node)
	if ok && !n.Down && n.Incarnation == f.Online.Incarnation {
		d.State = "online"
	}
}

// EventDoc is a stored event on the wire.
type EventDoc struct {
	Position    string          `json:"position"`
	Stream      string          `json:"stream"`
	Revision    int64           `json:"revision"`
	Type        string          `json:"type"`
	ID          string          `json:"id"`
	Created     time.Time       `json:"created"`
	Actor       string          `json:"actor,omitempty"`
	Source      string          `json:"source,omitempty"`
	Command     string          `json:"command"`
	Request     string          `json:"request,omitempty"`
	Correlation string          `json:"correlation,omitempty"`
	Causation   string          `json:"causation,omitempty"`
	Token       string          `json:"token,omitempty"`
	Hash        string          `json:"hash"`
	Data        json.RawMessage `json:"data,omitempty"`
}

func (s *Server) eventDoc(ctx context.Context, e *Event) EventDoc {
	d := EventDoc{
		Position: e.Position.String(), Stream: string(e.Stream), Revision: int64(e.Revision),
		Type: e.Type, ID: e.ID.String(), Created: e.Created,
		Source:  s.b.Now().Access.Source(ctx, e.Actor, e.RequestID, e.Source),
		Actor:   s.b.Now().Access.Actor(ctx, e.Actor),
		Command: e.Command.String(), Request: e.RequestID, Hash: hexOf(e.Hash[:]), Data: e.Data,
	}
	if !e.Correlation.IsZero() {
		d.Correlation = e.Correlation.String()
	}
	if !e.Causation.IsZero() {
		d.Causation = e.Causation.String()
	}
	if e.Token != 0 {
		d.Token = strconv.FormatUint(e.Token, 10)
	}
	return d
}

// etag is "timeline.revision" of a stream, quoted as HTTP wants it.
func etag(p domain.Position, r domain.Revision) string {
	return `"` + strconv.Itoa(int(p.Timeline())) + "." + strconv.FormatInt(int64(r), 10) + `"`
}
