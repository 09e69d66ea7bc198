package rest

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"weft/domain"
	"weft/domain/policy"
	"weft/projections/topology"
)

// Health is the answer to "is it there".
type Health struct {
	Status   string `json:"status" enum:"ok,degraded"`
	Version  string `json:"version"`
	Cluster  string `json:"cluster"`
	Position string `json:"position"`
	Reason   string `json:"reason,omitempty"`
}

// Node is a node of the cluster.
type Node struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Version     string `json:"version"`
	Incarnation uint64 `json:"incarnation" doc:"how often it was started"`
	Leader      bool   `json:"leader" doc:"runs the reconciler"`
	Devices     int    `json:"devices"`
	State       string `json:"state" enum:"ready,down,lost,drained,removed"`
	Vote        string `json:"vote,omitempty" doc:"on the event log: voter, learner, or none"`
	Peer        string `json:"peer,omitempty" doc:"where other nodes reach it"`
	API         string `json:"api,omitempty" doc:"where its API answers"`
	Location    string `json:"location,omitempty" doc:"failure domains, as zone=a,rack=r1"`

	Adding  []string        `json:"adding,omitempty" doc:"devices that it was asked to use"`
	Refused []RefusedDevice `json:"refused,omitempty" doc:"devices that it does not use"`
}

// RefusedDevice is a device that a node was asked to use and does not.
type RefusedDevice struct {
	Device string `json:"device"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy,omitempty"`
}

// Device is a device of a node.
type Device struct {
	ID          string       `json:"id"`
	Node        string       `json:"node"`
	Path        string       `json:"path"`
	Class       string       `json:"class"`
	State       string       `json:"state" enum:"ok,suspect,failed,leaving"`
	Reason      string       `json:"reason,omitempty" doc:"why it is not ok"`
	Damaged     int64        `json:"damaged,omitempty" doc:"places found and not mended"`
	Bytes       domain.Bytes `json:"bytes"`
	Usable      domain.Bytes `json:"usable" doc:"bytes of data it takes"`
	Used        domain.Bytes `json:"used"`
	Garbage     domain.Bytes `json:"garbage,omitempty" doc:"in segments in use, beside what lives"`
	Segments    int64        `json:"segments"`
	Free        int64        `json:"free_segments"`
	Corruptions int64        `json:"corruptions" doc:"found since the start"`
	Moved       domain.Bytes `json:"moved,omitempty" doc:"copied off it since it began to leave"`
	Left        domain.Bytes `json:"left,omitempty" doc:"to be copied before it leaves"`
	MovingTo    string       `json:"moving_to,omitempty" doc:"where volumes go to now"`
	Durability  string       `json:"durability" doc:"of a completed write on the device"`
	Mode        string       `json:"mode" doc:"durable or process; NVRAM: power-safe or volatile"`
}

// Plan is a plan of the reconciler.
type Plan struct {
	ID        string     `json:"id"`
	Position  string     `json:"position"`
	Base      string     `json:"base" doc:"the position it was made on"`
	State     string     `json:"state" enum:"running,finished"`
	Completed int64      `json:"completed"`
	Failed    int64      `json:"failed"`
	Steps     []PlanStep `json:"steps"`
}

// PlanStep is one step with its reason.
type PlanStep struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Why   string `json:"why"`
	Error string `json:"error,omitempty"`
}

// Decision says why a volume is where it is.
type Decision struct {
	Volume     string           `json:"volume"`
	Position   string           `json:"position"`
	Placed     bool             `json:"placed"`
	Node       string           `json:"node,omitempty"`
	Device     string           `json:"device,omitempty"`
	Plan       string           `json:"plan,omitempty"`
	Considered int64            `json:"considered"`
	Rejects    []DecisionReject `json:"rejects,omitempty"`
	Candidates []DecisionScore  `json:"candidates,omitempty"`
	Remedies   []string         `json:"remedies,omitempty"`
	Policy     []PolicyRow      `json:"policy,omitempty"`
	Damages    []Damage         `json:"damages,omitempty" doc:"places of it that are damaged or lost"`
}

// DecisionReject counts the devices that one constraint excluded.
type DecisionReject struct {
	Why   string `json:"why"`
	Count int64  `json:"count"`
}

// DecisionScore is a candidate; higher is better, 1000 is empty.
type DecisionScore struct {
	Device  string `json:"device"`
	Score   int64  `json:"score"`
	Suspect bool   `json:"suspect,omitempty" doc:"it was slow or erred"`
	Crowded bool   `json:"crowded,omitempty" doc:"it had no room for the volume's minima"`
}

func (s *Server) clusterRoutes() {
	register(s, openToAll, "GET", "/v1/health", "health", "Is it there", 200, s.health)
	register(s, readCluster, "GET", "/v1/devices", "list-devices", "List devices", 200, s.devices)
	register(s, readCluster, "GET", "/v1/plans", "list-plans",
		"List the last plans, newest first", 200, s.plans)
	register(s, operateCluster, "PUT", "/v1/secrets/{name}", "put-secret",
		"Keep a CHAP secret on this node; it is never shown again", 200, s.putSecret)
}

func (s *Server) health(context.Context, *struct{}) (*Got[Health], error) {
	v := s.b.Now()
	id, _ := v.Topology.Cluster()
	h := Health{
		Status: "ok", Version: s.cfg.Version, Cluster: id.String(), Position: v.Position.String(),
	}
	for _, d := range v.Topology.Devices() {
		switch {
		case d.Failed:
			h.Status, h.Reason = "degraded", "device "+d.Path+" failed: "+d.Why
		case d.Suspended != "" && h.Status == "ok":
			h.Status, h.Reason = "degraded", "device "+d.Path+" is suspect: "+d.Why
		}
	}
	for _, n := range v.Topology.Nodes() {
		switch {
		case n.Lost && !n.Removed:
			h.Status, h.Reason = "degraded", "node "+n.Name+" was lost, and the log recovered without it"
		case n.Down && !n.Removed:
			h.Status, h.Reason = "degraded", "node "+n.Name+" is down"
		}
	}
	for _, d := range s.b.LogDamage() {
		h.Status = "degraded"
		h.Reason = "the event log's " + d.Part + " is damaged on node " + cmp.Or(d.Name, d.Node)
		if s.b.LogEnded() {
			h.Reason += ", and there is no other copy: nothing can be changed; weft restore"
		}
	}
	return &Got[Health]{Position: h.Position, Body: h}, nil
}

func (s *Server) devices(ctx context.Context, in *At) (*Got[List[Device]], error) {
	v, past, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	out := &Got[List[Device]]{Position: v.Position.String()}
	out.Body = List[Device]{[]Device{}, v.Position.String()}
	for _, x := range v.Topology.Devices() {
		d := deviceDoc(v, x)
		if l, ok := s.b.LiveDevice(x.Device); ok && !past {
			d.Used, d.Usable, d.Segments, d.Free = l.Used, l.Usable, l.Segments, l.FreeSegments
			d.Corruptions, d.Mode, d.Garbage = l.Corruptions, l.Mode, l.Garbage
			if d.State == "leaving" {
				d.Moved, d.Left, d.MovingTo = l.Moved, l.Left, l.Moving
				d.Reason = first(l.Trouble, d.Reason)
			}
		}
		out.Body.Items = append(out.Body.Items, d)
	}
	return out, nil
}

// namesMax is how many are named of what stands on a device that leaves.
const namesMax = 5

// deviceDoc is what the log knows of a device.
func deviceDoc(v Views, x topology.Device) Device {
	d := Device{
		ID: x.Device.String(), Node: x.Node.String(), Path: x.Path, Class: x.Class, State: "ok",
		Bytes: x.Bytes, Usable: x.Usable, Durability: x.Durability,
	}
	switch {
	case x.Failed:
		d.State, d.Reason = "failed", x.Why
	case x.Leaving:
		d.State, d.Reason = "leaving", "nothing stands on it any more"
		on := v.Catalog.On(x.Device)
		if n := len(on) - namesMax; n > 0 {
			on = append(on[:namesMax], fmt.Sprintf("%d more", n))
		}
		if len(on) > 0 {
			d.Reason = "until these are on other devices: " + strings.Join(on, ", ")
		}
	case x.Suspended != "":
		d.State, d.Reason = "suspect", x.Suspended+": "+x.Why
	}
	for _, f := range x.Damages {
		if !f.Mended {
			d.Damaged++
		}
	}
	return d
}

func (s *Server) plans(ctx context.Context, in *At) (*Got[List[Plan]], error) {
	v, _, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	out := &Got[List[Plan]]{Position: v.Position.String()}
	out.Body = List[Plan]{[]Plan{}, v.Position.String()}
	list := v.Catalog.Plans()
	for i := len(list) - 1; i >= 0 && len(out.Body.Items) < listMax; i-- {
		p := list[i]
		d := Plan{
			ID: p.Plan.String(), Position: p.At.String(), Base: p.Base.String(), State: "running",
		}
		for _, st := range p.Steps {
			d.Steps = append(d.Steps, planStep(st, p.Failed))
		}
		if p.Finished != nil {
			d.State, d.Completed, d.Failed = "finished", p.Finished.Completed, p.Finished.Failed
		}
		out.Body.Items = append(out.Body.Items, d)
	}
	return out, nil
}

func planStep(st policy.PlanStep, failed []policy.PlanStepFailed) PlanStep {
	d := PlanStep{Kind: st.Kind, Name: st.Name, Why: st.Why}
	for _, f := range failed {
		if f.Command == st.Command {
			d.Error = f.Why
		}
	}
	return d
}

// SecretBody is a CHAP secret.
type SecretBody struct {
	User      string `json:"user" maxLength:"223"`
	Secret    string `json:"secret" doc:"12 to 64 bytes, proved by the initiator"`
	OwnUser   string `json:"own_user,omitempty" doc:"for mutual CHAP"`
	OwnSecret string `json:"own_secret,omitempty" doc:"proved by the target"`
}

// Kept is the answer to a secret.
type Kept struct {
	Name string `json:"name"`
}

func (s *Server) putSecret(_ context.Context, in *struct {
	Name string `path:"name"`
	Body SecretBody
},
) (*Got[Kept], error) {
	b := in.Body
	if err := s.b.PutSecret(in.Name, b.User, b.Secret, b.OwnUser, b.OwnSecret); err != nil {
		return nil, err
	}
	return &Got[Kept]{Body: Kept{in.Name}}, nil
}
