package rest

import (
	"context"

	"weft/domain"
	"weft/domain/command"
)

// listMax is the most items of a page.
const listMax = 1000

func (s *Server) volumeRoutes() {
	register(s, readTenant, "GET", "/v1/volumes", "list-volumes", "List volumes", 200, s.listVolumes)
	register(s, readTenant, "GET", "/v1/volumes/{id}", "get-volume",
		"Show a volume by id", 200, s.getVolume)
	register(s, readTenant, "GET", "/v1/volumes/{id}/decision", "why-volume",
		"Why the volume is where it is, or nowhere", 200, s.why)
}

func (s *Server) listVolumes(ctx context.Context, in *At) (*Got[List[Volume]], error) {
	v, past, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	out := &Got[List[Volume]]{Position: v.Position.String()}
	out.Body = List[Volume]{[]Volume{}, v.Position.String()}
	for _, a := range v.Desired.Apps(t.Tenant) {
		out.Body.Items = append(out.Body.Items, s.volumeDocs(v, a, past)...)
	}
	return out, nil
}

// VolumeIn is a GET of one volume.
type VolumeIn struct {
	At
	ID string `path:"id"`
}

// find gives a volume of a tenant by id, in the views asked for.
func (s *Server) find(ctx context.Context, in *VolumeIn) (Views, Volume, error) {
	v, past, err := s.views(ctx, in.At)
	if err != nil {
		return v, Volume{}, err
	}
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return v, Volume{}, err
	}
	for _, a := range v.Desired.Apps(t.Tenant) {
		for _, d := range s.volumeDocs(v, a, past) {
			if d.ID == in.ID {
				return v, d, nil
			}
		}
	}
	return v, Volume{}, &domain.Error{
		Kind: domain.NotFound, Ref: "volume/" + in.ID, Msg: "no such volume",
	}
}

func (s *Server) getVolume(ctx context.Context, in *VolumeIn) (*Got[Volume], error) {
	v, d, err := s.find(ctx, in)
	if err != nil {
		return nil, err
	}
	if in.AtPosition == "" {
		s.askVolume(ctx, &d)
	}
	return &Got[Volume]{v.Position.String(), d.ETag, d}, nil
}

// askVolume adds what the volume's node knows, if it answers: the rest is true without it.
func (s *Server) askVolume(ctx context.Context, d *Volume) {
	id, err := Snapshot{VolumeID: d.ID, Node: d.Node}.ids()
	if err != nil || id.node.IsZero() {
		return
	}
	a, err := s.b.Ask(ctx, command.Question{Ask: command.AskVolume, Node: id.node, Volume: id.volume})
	if err == nil {
		d.Durability = a.Durability
		d.holds(a)
	}
}

func (s *Server) why(ctx context.Context, in *VolumeIn) (*Got[Decision], error) {
	v, d, err := s.find(ctx, in)
	if err != nil {
		return nil, err
	}
	id, err := domain.ParseUUID(d.ID)
	if err != nil {
		return nil, err
	}
	out := Decision{Volume: d.ID, Policy: d.Policy}
	dec, ok := v.Catalog.Decision(domain.VolumeID{UUID: id})
	switch {
	case !ok:
		return nil, domain.Errorf(domain.NotFound, "nothing was decided about volume %s yet", d.Name)
	case dec.Decided != nil:
		p := dec.Decided
		out.Placed, out.Node, out.Device = true, p.Node.String(), p.Device.String()
		out.Plan, out.Considered = p.Plan.String(), p.Considered
		for _, r := range p.Rejects {
			out.Rejects = append(out.Rejects, DecisionReject(r))
		}
		for _, c := range p.Candidates {
			out.Candidates = append(out.Candidates, DecisionScore{
				c.Device.String(), c.Score, c.Suspect(), c.Crowded,
			})
		}
	case dec.Impossible != nil:
		p := dec.Impossible
		out.Considered, out.Remedies = p.Considered, p.Remedies
		for _, r := range p.Rejects {
			out.Rejects = append(out.Rejects, DecisionReject(r))
		}
	}
	for _, x := range v.Topology.Devices() {
		for _, f := range x.Damages {
			if f.Volume.UUID == id && !f.Mended {
				out.Damages = append(out.Damages, damageDoc(f))
			}
		}
	}
	out.Position = dec.At.String()
	return &Got[Decision]{Position: v.Position.String(), Body: out}, nil
}
