package rest

import (
	"context"

	"weft/domain"
	"weft/domain/cluster"
)

// Engine says which event log takes changes of intent, and how far the copies between the logs are.
type Engine struct {
	Engine   string      `json:"engine" doc:"embedded, or the address of an event store"`
	State    string      `json:"state" enum:"embedded,copying,closed,external,stuck,returning"`
	Reason   string      `json:"reason,omitempty" doc:"what is wrong"`
	To       string      `json:"to,omitempty" doc:"where a move is under way to"`
	Events   uint64      `json:"events,omitempty" doc:"of a move: how many were copied or compared"`
	Rest     uint64      `json:"rest,omitempty" doc:"of a move: how many are still to be"`
	Pace     uint64      `json:"pace,omitempty" doc:"of a move: events copied in a second, of late"`
	Growth   uint64      `json:"growth,omitempty" doc:"of a move: events that came in a second"`
	Through  string      `json:"through,omitempty" doc:"up to here the embedded log is there"`
	Behind   int         `json:"behind" doc:"events after it that are to go there, counted to 10,000"`
	Migrated string      `json:"migrated,omitempty" doc:"the position that the last move ended at"`
	Copy     *EngineCopy `json:"copy,omitempty" doc:"of a dry run"`
}

// EngineCopy counts what a move would do.
type EngineCopy struct {
	Events  uint64       `json:"events"`
	Present uint64       `json:"present" doc:"that are there, with the same content"`
	Missing uint64       `json:"missing" doc:"that would be copied"`
	Streams int          `json:"streams"`
	Bytes   domain.Bytes `json:"bytes" doc:"of payload"`
}

// EngineBody asks for another log to take changes of intent.
type EngineBody struct {
	To     string `json:"to" maxLength:"1024" doc:"embedded, or an address without a password"`
	Secret string `json:"secret,omitempty" maxLength:"63" doc:"name of user and password there"`
	DryRun bool   `json:"dry_run,omitempty" doc:"compare and count, and change nothing"`
}

func (s *Server) engineRoutes() {
	register(s, readCluster, "GET", "/v1/log/engine", "get-log-engine",
		"Which event log takes changes of intent", 200,
		func(ctx context.Context, _ *struct{}) (*Got[Engine], error) {
			e, err := s.b.Engine(ctx)
			return &Got[Engine]{Position: s.b.Now().Position.String(), Body: e}, err
		})
	register(s, administerCluster, "POST", "/v1/log/engine", "move-log-engine",
		"Let another event log take changes of intent", 200, s.moveEngine)
}

func (s *Server) moveEngine(ctx context.Context, in *struct {
	Change
	Body EngineBody
},
) (*Changed[Engine], error) {
	b, out := in.Body, &Changed[Engine]{}
	c := cluster.MoveEngine{Cluster: s.cluster(), To: b.To, Secret: b.Secret}
	if b.DryRun {
		if err := c.Validate(); err != nil {
			return nil, err
		}
		counts := EngineCopy{}
		var err error
		if b.To != cluster.EngineEmbedded {
			if counts, err = s.b.CompareEngine(ctx, b.To, b.Secret); err != nil {
				return nil, err
			}
		}
		out.Position = s.b.Now().Position.String()
		out.Body, err = s.b.Engine(ctx)
		out.Body.Copy = &counts
		return out, err
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), c)
	if err != nil {
		return nil, err
	}
	out.Position = res.Position.String()
	out.Body, err = s.b.Engine(ctx)
	return out, err
}
