package rest

import (
	"context"

	"weft/domain"
	"weft/domain/command"
	"weft/projections/desired"
)

// Range is a part of a volume or snapshot, in bytes.
type Range struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind" enum:"data,zero,hole" doc:"what is there now"`
}

// Ranges is one page of ranges. Whoever wants the rest asks again from next.
type Ranges struct {
	Items []Range      `json:"items"`
	Next  *int64       `json:"next,omitempty" doc:"from of the next page; absent: no more"`
	Size  domain.Bytes `json:"size" doc:"of the volume or snapshot"`
}

// RangesIn asks for ranges.
type RangesIn struct {
	Tenant string `query:"tenant" default:"default"`
	ID     string `path:"id"`
	From   int64  `query:"from" minimum:"0" doc:"bytes, a multiple of 4096"`
	To     int64  `query:"to" minimum:"0" doc:"bytes, a multiple of 4096; 0: the end"`
	Limit  int    `query:"limit" minimum:"0" maximum:"4096" doc:"ranges of a page; 0: 4096"`
}

// ChangesIn asks for the ranges that differ from an older snapshot.
type ChangesIn struct {
	RangesIn
	Since string `query:"since" required:"true" doc:"id or name of the older snapshot"`
}

func (in RangesIn) tenantName() string { return in.Tenant }

func (s *Server) rangeRoutes() {
	register(s, readTenant, "GET", "/v1/volumes/{id}/allocated", "volume-allocated",
		"Where a volume holds data", 200, func(ctx context.Context, in *RangesIn) (*Got[Ranges], error) {
			return s.ranges(ctx, *in, false, "")
		})
	register(s, readTenant, "GET", "/v1/volumes/{id}/changes", "volume-changes",
		"Where a volume differs from a snapshot", 200,
		func(ctx context.Context, in *ChangesIn) (*Got[Ranges], error) {
			return s.ranges(ctx, in.RangesIn, false, in.Since)
		})
	register(s, readTenant, "GET", "/v1/snapshots/{id}/allocated", "snapshot-allocated",
		"Where a snapshot holds data", 200,
		func(ctx context.Context, in *RangesIn) (*Got[Ranges], error) {
			return s.ranges(ctx, *in, true, "")
		})
	register(s, readTenant, "GET", "/v1/snapshots/{id}/changes", "snapshot-changes",
		"Where a snapshot differs from an older one", 200,
		func(ctx context.Context, in *ChangesIn) (*Got[Ranges], error) {
			return s.ranges(ctx, in.RangesIn, true, in.Since)
		})
	register(s, readTenant, "GET", "/v1/volumes/{id}/sharing", "volume-sharing",
		"What deleting a volume gives back; reads an index", 200,
		func(ctx context.Context, in *SharingIn) (*Got[Sharing], error) {
			return s.sharing(ctx, in, false)
		})
	register(s, readTenant, "GET", "/v1/snapshots/{id}/sharing", "snapshot-sharing",
		"What deleting a snapshot gives back; reads an index", 200,
		func(ctx context.Context, in *SharingIn) (*Got[Sharing], error) {
			return s.sharing(ctx, in, true)
		})
}

// ranges asks the node that has it for one page.
func (s *Server) ranges(ctx context.Context, in RangesIn, snap bool, since string) (
	*Got[Ranges], error,
) {
	v := s.b.Now()
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	q := command.Question{
		Ask: command.AskAllocated, From: in.From, To: in.To, Limit: in.Limit,
	}
	if err := s.about(ctx, v, t, &q, in.ID, snap); err != nil {
		return nil, err
	}
	if since != "" {
		d, err := s.oneSnapshot(ctx, v, t, false, since, nil)
		if err != nil {
			return nil, err
		}
		id, err := d.ids()
		if err != nil {
			return nil, err
		}
		q.Ask, q.Since = command.AskChanged, id.snapshot
	}
	a, err := s.b.Ask(ctx, q)
	if err != nil {
		return nil, err
	}
	return &Got[Ranges]{Position: v.Position.String(), Body: page(a)}, nil
}

// about lets a question be about a volume or a snapshot, and to the node that has it.
func (s *Server) about(
	ctx context.Context, v Views, t desired.Tenant, q *command.Question, ref string, snap bool,
) error {
	var d Snapshot
	var err error
	if snap {
		d, err = s.oneSnapshot(ctx, v, t, false, ref, nil)
	} else {
		var of Volume
		_, of, err = s.find(ctx, &VolumeIn{At{Tenant: t.Name}, ref})
		d = Snapshot{VolumeID: of.ID, Node: of.Node}
	}
	if err != nil {
		return err
	}
	id, err := d.ids()
	if err != nil {
		return err
	}
	if id.node.IsZero() {
		return domain.Errorf(domain.Conflict, "%s is not on any device yet", ref)
	}
	q.Snapshot, q.Volume, q.Node = id.snapshot, id.volume, id.node
	return nil
}

// Sharing splits the room of the data that a volume or snapshot sees.
type Sharing struct {
	Exclusive domain.Bytes `json:"exclusive" doc:"nobody else sees it: a deletion gives it back"`
	Common    domain.Bytes `json:"common" doc:"others of its volume and its clones see it, too"`
}

// SharingIn asks what a volume or snapshot shares.
type SharingIn struct {
	Tenant string `query:"tenant" default:"default"`
	ID     string `path:"id"`
}

func (in SharingIn) tenantName() string { return in.Tenant }

func (s *Server) sharing(ctx context.Context, in *SharingIn, snap bool) (*Got[Sharing], error) {
	v := s.b.Now()
	t, err := s.tenant(in.Tenant)
	if err != nil {
		return nil, err
	}
	q := command.Question{Ask: command.AskSharing}
	if err := s.about(ctx, v, t, &q, in.ID, snap); err != nil {
		return nil, err
	}
	a, err := s.b.Ask(ctx, q)
	if err != nil {
		return nil, err
	}
	return &Got[Sharing]{
		Position: v.Position.String(), Body: Sharing{a.Exclusive, a.Common},
	}, nil
}

func page(a command.Answer) Ranges {
	out := Ranges{Items: []Range{}, Size: a.Size}
	if a.Next >= 0 {
		out.Next = &a.Next
	}
	for _, x := range a.Ranges {
		kind := "data"
		switch {
		case x.Hole:
			kind = "hole"
		case x.Zero:
			kind = "zero"
		}
		out.Items = append(out.Items, Range{x.Off, x.Len, kind})
	}
	return out
}
