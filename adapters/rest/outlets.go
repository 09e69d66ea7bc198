package rest

import (
	"context"

	"weft/domain"
	"weft/domain/outlet"
)

// OutletBody asks for an outlet.
type OutletBody struct {
	Name    string   `json:"name" maxLength:"63"`
	Kind    string   `json:"kind" enum:"nats,mirror"`
	Address string   `json:"address" maxLength:"1024" doc:"nats://, tls://, esdb://; no password"`
	Topic   string   `json:"topic,omitempty" maxLength:"256" doc:"nats: the subject"`
	Types   []string `json:"types,omitempty" maxItems:"100" doc:"what types begin with; absent: all"`
	Secret  string   `json:"secret,omitempty" maxLength:"63" doc:"name of user and password there"`
	FromNow bool     `json:"from_now,omitempty" doc:"leave out what has happened until now"`
}

// OutletDoc is an outlet, with how far it is.
type OutletDoc struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Address  string   `json:"address"`
	Topic    string   `json:"topic,omitempty"`
	Types    []string `json:"types,omitempty"`
	Secret   string   `json:"secret,omitempty"`
	State    string   `json:"state" enum:"running,paused,stuck"`
	Position string   `json:"published" doc:"every selected event up to it is there; not of the past"`
	Behind   int      `json:"behind" doc:"selected events after it, counted to 10,000"`
	Stuck    *StuckAt `json:"stuck,omitempty"`
}

// StuckAt is the event that an outlet does not take.
type StuckAt struct {
	Position string `json:"position"`
	Type     string `json:"type"`
	Stream   string `json:"stream"`
	Failures int64  `json:"failures"`
	Reason   string `json:"reason"`
}

func (s *Server) outletRoutes() {
	register(s, readCluster, "GET", "/v1/outlets", "list-outlets",
		"List where events are published", 200, s.outlets)
	register(s, administerCluster, "POST", "/v1/outlets", "create-outlet",
		"Publish events to a broker or another log", 201, s.createOutlet)
	register(s, administerCluster, "POST", "/v1/outlets/{name}/pause", "pause-outlet",
		"Publish nothing until resumed", 200,
		func(ctx context.Context, in *NamedChange) (*Changed[OutletDoc], error) {
			return s.outletChange(ctx, in, func(o outlet.State) domain.Command {
				return outlet.Pause{Outlet: o.Outlet}
			})
		})
	register(s, administerCluster, "POST", "/v1/outlets/{name}/resume", "resume-outlet",
		"Go on, with the event it was stuck at or without", 200,
		func(ctx context.Context, in *struct {
			NamedChange
			Body struct {
				Skip bool `json:"skip,omitempty" doc:"pass the event over that it is stuck at"`
			}
		},
		) (*Changed[OutletDoc], error) {
			return s.outletChange(ctx, &in.NamedChange, func(o outlet.State) domain.Command {
				return outlet.Resume{Outlet: o.Outlet, Skip: in.Body.Skip}
			})
		})
	register(s, administerCluster, "DELETE", "/v1/outlets/{name}", "delete-outlet",
		"Publish nothing more; what is there stays", 200, s.deleteOutlet)
}

func (s *Server) outletDoc(ctx context.Context, o outlet.State) (OutletDoc, error) {
	d := wishedOutlet(o)
	at, behind, err := s.b.Published(ctx, o)
	if err != nil {
		return d, err
	}
	d.Position, d.Behind = at.String(), behind
	return d, nil
}

// wishedOutlet shows what the log says of an outlet. How far it is stands beside the log.
func wishedOutlet(o outlet.State) OutletDoc {
	d := OutletDoc{
		ID: o.Outlet.String(), Name: o.Name, Kind: o.Kind, Address: o.Address, Topic: o.Topic,
		Types: o.Types, Secret: o.Secret, State: "running",
	}
	if o.Paused {
		d.State = "paused"
	}
	if o.Stuck != nil {
		d.State = "stuck"
		d.Stuck = &StuckAt{
			o.Stuck.At.String(), o.Stuck.Type, string(o.Stuck.Of), o.Stuck.Failures, o.Stuck.Reason,
		}
	}
	return d
}

func (s *Server) outlets(ctx context.Context, in *Whole) (*Got[List[OutletDoc]], error) {
	v, past, err := s.views(ctx, in.at())
	if err != nil {
		return nil, err
	}
	out := &Got[List[OutletDoc]]{Position: v.Position.String()}
	out.Body = List[OutletDoc]{[]OutletDoc{}, v.Position.String()}
	for _, o := range v.Outlets.Outlets() {
		if past {
			out.Body.Items = append(out.Body.Items, wishedOutlet(o))
			continue
		}
		d, err := s.outletDoc(ctx, o)
		if err != nil {
			return nil, err
		}
		out.Body.Items = append(out.Body.Items, d)
	}
	return out, nil
}

// outlet finds an outlet by name or id.
func (s *Server) outlet(ref string) (outlet.State, error) {
	o, ok := s.b.Now().Outlets.Outlet(ref)
	if !ok {
		return o, &domain.Error{
			Kind: domain.NotFound, Ref: "outlet/" + ref, Msg: "no such outlet",
			Remedy: "weft outlet list shows them",
		}
	}
	return o, nil
}

func (s *Server) createOutlet(ctx context.Context, in *struct {
	Change
	Body OutletBody
},
) (*Changed[OutletDoc], error) {
	b, id := in.Body, commandID(ctx, in.Change)
	c := outlet.Create{Cluster: s.cluster(), OutletCreated: outlet.OutletCreated{
		Outlet: domain.OutletID{UUID: id.ObjectID("outlet", 0)}, Name: b.Name, Kind: b.Kind,
		Address: b.Address, Topic: b.Topic, Types: b.Types, Secret: b.Secret,
	}}
	if b.FromNow {
		c.After = s.b.Now().Position
	}
	return s.outletCommand(ctx, in.Change, c.Outlet, c)
}

func (s *Server) outletCommand(ctx context.Context, ch Change, id domain.OutletID,
	c domain.Command,
) (*Changed[OutletDoc], error) {
	res, err := s.command(ctx, ch, commandID(ctx, ch), c)
	if err != nil {
		return nil, err
	}
	o, _ := s.b.Now().Outlets.Outlet(id.String())
	d, err := s.outletDoc(ctx, o)
	if err != nil {
		return nil, err
	}
	return &Changed[OutletDoc]{Position: res.Position.String(), Body: d}, nil
}

func (s *Server) outletChange(ctx context.Context, in *NamedChange,
	c func(o outlet.State) domain.Command,
) (*Changed[OutletDoc], error) {
	o, err := s.outlet(in.Name)
	if err != nil {
		return nil, err
	}
	return s.outletCommand(ctx, in.Change, o.Outlet, c(o))
}

func (s *Server) deleteOutlet(ctx context.Context, in *NamedChange) (*Changed[Gone], error) {
	o, err := s.outlet(in.Name)
	if err != nil {
		return nil, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), outlet.Delete{
		Cluster: s.cluster(), Outlet: o.Outlet,
	})
	if err != nil {
		return nil, err
	}
	return &Changed[Gone]{Position: res.Position.String(), Body: Gone{o.Name, "deleted"}}, nil
}
