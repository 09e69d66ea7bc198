package rest

import (
	"context"
	"time"
)

// Failing is work that a node does by itself, and that has failed for a while.
type Failing struct {
	What     string     `json:"what" doc:"as outlet/NAME, or in words"`
	Node     string     `json:"node,omitempty" doc:"name of the node that does it"`
	Since    *time.Time `json:"since,omitempty" doc:"when that node saw it fail first"`
	Failures int64      `json:"failures" doc:"in a row"`
	Error    string     `json:"error" doc:"of the last time"`
	Position string     `json:"position" doc:"where in the log it stands, or the log stood then"`
}

// FailingList is what fails on the nodes that answered.
type FailingList struct {
	Items  []Failing `json:"items"`
	Silent []string  `json:"silent,omitempty" doc:"nodes that gave no answer"`
}

func (s *Server) failingRoutes() {
	register(s, readCluster, "GET", "/v1/failing", "list-failing",
		"List what the nodes do by themselves and cannot do now", 200,
		func(ctx context.Context, _ *struct{}) (*Got[FailingList], error) {
			items, silent := s.b.Failing(ctx)
			if items == nil {
				items = []Failing{}
			}
			return &Got[FailingList]{
				Position: s.b.Now().Position.String(), Body: FailingList{items, silent},
			}, nil
		})
}
