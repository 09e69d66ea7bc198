package rest

import (
	"context"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/command"
	"weft/projections/topology"
)

// Scrub says how far the scrub of a device has come, and what the last one found.
type Scrub struct {
	Device   string       `json:"device"`
	Path     string       `json:"path"`
	State    string       `json:"state" enum:"running,waiting,paused,finished,never,unknown"`
	Pass     uint64       `json:"pass,omitempty"`
	Checked  domain.Bytes `json:"checked,omitempty" doc:"by this pass, or by the last one"`
	Live     domain.Bytes `json:"live,omitempty" doc:"what there is to check, about"`
	Damaged  int64        `json:"damaged" doc:"places found damaged by it, mended ones included"`
	Started  *time.Time   `json:"started,omitempty"`
	Finished *time.Time   `json:"finished,omitempty" doc:"of the last pass that came to its end"`
	Damages  []Damage     `json:"damages,omitempty"`
}

// Damage is a place of a device that is not what it has to be.
type Damage struct {
	Part     string `json:"part"`
	Volume   string `json:"volume,omitempty" doc:"id"`
	Snapshot string `json:"snapshot,omitempty" doc:"id"`
	Block    int64  `json:"block,omitempty" doc:"of 4096 bytes"`
	Version  string `json:"version,omitempty"`
	Offset   int64  `json:"offset" doc:"on the device, bytes"`
	Detail   string `json:"detail"`
	Mended   bool   `json:"mended,omitempty"`
}

// ScrubBody starts or pauses the scrub of a node's devices.
type ScrubBody struct {
	Action string `json:"action" enum:"start,pause"`
	Device string `json:"device,omitempty" doc:"id or path; absent: all of the node"`
}

func (s *Server) scrubRoutes() {
	register(s, readCluster, "GET", "/v1/nodes/{name}/scrub", "get-scrub",
		"How far the scrub of a node's devices has come", 200,
		func(ctx context.Context, in *NamedIn) (*Got[List[Scrub]], error) {
			v, past, err := s.views(ctx, in.At)
			if err != nil {
				return nil, err
			}
			n, err := s.node(in.Name)
			if err != nil {
				return nil, err
			}
			return &Got[List[Scrub]]{
				Position: v.Position.String(), Body: s.scrubs(ctx, v, n, past),
			}, nil
		})
	register(s, operateCluster, "POST", "/v1/nodes/{name}/scrub", "scrub-node",
		"Start or pause the scrub of a node's devices", 202,
		func(ctx context.Context, in *struct {
			NamedChange
			Body ScrubBody
		},
		) (*Changed[List[Scrub]], error) {
			return s.scrub(ctx, in.NamedChange, in.Body)
		})
}

func (s *Server) scrub(ctx context.Context, ch NamedChange, b ScrubBody) (
	*Changed[List[Scrub]], error,
) {
	n, err := s.node(ch.Name)
	if err != nil {
		return nil, err
	}
	var res Result
	some := false
	for _, d := range s.b.Now().Topology.Devices() {
		id := d.Device.String()
		switch {
		case d.Node != n.Node.Node, b.Device == "" && d.Class == cluster.ClassNVRAM,
			b.Device != "" && b.Device != id && b.Device != d.Path:
			continue
		}
		some = true
		// Each device's command has an id of its own, so that a retry finishes what was begun.
		res, err = s.command(ctx, ch.Change, commandID(ctx, ch.Change).Sub("scrub/"+id),
			cluster.Scrub{Device: d.Device, Pause: b.Action == "pause"})
		if err != nil {
			return nil, err
		}
	}
	switch {
	case !some && b.Device == "":
		return nil, domain.Errorf(domain.NotFound, "node %s has no device", n.Name)
	case !some:
		return nil, domain.Errorf(domain.NotFound, "node %s has no device %q", n.Name, b.Device)
	}
	return &Changed[List[Scrub]]{
		Position: res.Position.String(), Body: s.scrubs(ctx, s.b.Now(), n, false),
	}, nil
}

// scrubs joins what the log knows of a node's devices with what the node tells, if it answers; of
// the past the log alone knows.
func (s *Server) scrubs(ctx context.Context, v Views, n topology.Node, past bool) List[Scrub] {
	out := List[Scrub]{Items: []Scrub{}, Position: v.Position.String()}
	var a command.Answer
	var err error
	if !past {
		a, err = s.b.Ask(ctx, command.Question{Ask: command.AskScrub, Node: n.Node.Node})
	}
	for _, d := range v.Topology.Devices() {
		if d.Node != n.Node.Node || d.Class == cluster.ClassNVRAM {
			continue // what NVRAM holds is scrubbed with the devices that it serves
		}
		x := Scrub{
			Device: d.Device.String(), Path: d.Path, State: "unknown", Pass: d.Scrubbed.Pass,
			Checked: d.Scrubbed.Checked, Damaged: d.Scrubbed.Damaged,
		}
		for _, f := range d.Damages {
			x.Damages = append(x.Damages, damageDoc(f))
		}
		for _, live := range a.Scrubs {
			if err == nil && live.Device == d.Device {
				x.tell(live, d)
			}
		}
		out.Items = append(out.Items, x)
	}
	return out
}

func damageDoc(f cluster.DamageFound) Damage {
	d := Damage{
		Part: f.Part, Block: f.Block, Version: f.Version, Offset: int64(f.Offset), Detail: f.Detail,
		Mended: f.Mended,
	}
	if !f.Volume.IsZero() {
		d.Volume = f.Volume.String()
	}
	if !f.Snapshot.IsZero() {
		d.Snapshot = f.Snapshot.String()
	}
	return d
}

func (x *Scrub) tell(live command.Scrub, d topology.Device) {
	x.Pass, x.Checked, x.Live, x.Damaged = live.Pass, live.Checked, live.Live, live.Damaged
	if !live.Started.IsZero() {
		x.Started = &live.Started
	}
	if !live.Finished.IsZero() {
		x.Finished = &live.Finished
	}
	switch {
	case d.Paused:
		x.State = "paused"
	case live.Running:
		x.State = "running"
	case live.Underway, d.Asked > d.Ended:
		x.State = "waiting"
	case !live.Finished.IsZero():
		x.State = "finished"
	default:
		x.State = "never"
	}
}
