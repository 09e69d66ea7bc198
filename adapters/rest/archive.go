package rest

import (
	"context"

	"weft/domain"
	"weft/domain/cluster"
)

// Archive says how the old part of the event log is kept.
type Archive struct {
	State    string          `json:"state" enum:"ok,waiting,late,full,stuck"`
	Reason   string          `json:"reason,omitempty"`
	Window   uint64          `json:"window" doc:"events the database holds before the oldest leave it"`
	Hot      uint64          `json:"hot" doc:"events that the database holds"`
	Tail     string          `json:"tail" doc:"position of the last event"`
	Sealed   string          `json:"sealed" doc:"up to here events are in the archives alone"`
	Archived string          `json:"archived" doc:"up to here this node's archive reaches"`
	Segments int             `json:"segments" doc:"files of this node's archive"`
	Bytes    domain.Bytes    `json:"bytes" doc:"size of these files"`
	Holders  []ArchiveHolder `json:"holders" doc:"the nodes and how far their archives reach"`
	Database ArchiveDatabase `json:"database" doc:"of this node; zeros where it has no vote"`
}

// ArchiveHolder is a node that keeps an archive.
type ArchiveHolder struct {
	Node     string `json:"node"`
	Name     string `json:"name,omitempty"`
	Archived string `json:"archived" doc:"up to here the node proved to hold the log"`
}

// ArchiveDatabase is how large the log's database is.
type ArchiveDatabase struct {
	Size  domain.Bytes `json:"size" doc:"of the file"`
	Used  domain.Bytes `json:"used"`
	Quota domain.Bytes `json:"quota" doc:"the most it takes"`
}

// ArchiveSegment is one file of the archive. Equal roots, equal histories.
type ArchiveSegment struct {
	First  uint64       `json:"first" doc:"number of its first event"`
	Last   string       `json:"last" doc:"position of its last event"`
	Events uint32       `json:"events"`
	Bytes  domain.Bytes `json:"bytes"`
	Root   string       `json:"root" doc:"SHA-256 over the segment"`
	Hot    bool         `json:"hot" doc:"the database holds these events as well"`
}

// LogDamage is damage of a node's copy of the event log that is not repaired yet. Nobody gets to
// see what is damaged.
type LogDamage struct {
	Node     string `json:"node"`
	Name     string `json:"name,omitempty"`
	Part     string `json:"part" enum:"database,archive"`
	Position string `json:"position,omitempty" doc:"the first that is damaged, when it is known"`
	First    uint64 `json:"first,omitempty" doc:"archive: number of the file's first event"`
	Why      string `json:"why"`
	Remedy   string `json:"remedy"`
}

// Setting is one setting of the cluster.
type Setting struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Default string `json:"default"`
	About   string `json:"about"`
}

// SettingBody gives a setting a value.
type SettingBody struct {
	Value string `json:"value" maxLength:"256" doc:"empty: the default"`
}

func (s *Server) archiveRoutes() {
	register(s, readCluster, "GET", "/v1/log/archive", "get-log-archive",
		"How the old part of the event log is kept", 200,
		func(ctx context.Context, _ *struct{}) (*Got[Archive], error) {
			a, err := s.b.Archive(ctx)
			return &Got[Archive]{Position: a.Tail, Body: a}, err
		})
	register(s, readCluster, "GET", "/v1/log/segments", "list-log-segments",
		"List the sealed files of this node's archive of the event log", 200,
		func(ctx context.Context, _ *struct{}) (*Got[List[ArchiveSegment]], error) {
			list, err := s.b.ArchiveSegments(ctx)
			p := s.b.Now().Position.String()
			return &Got[List[ArchiveSegment]]{
				Position: p, Body: List[ArchiveSegment]{list, p},
			}, err
		})
	register(s, readCluster, "GET", "/v1/log/damage", "list-log-damage",
		"List what is damaged of the nodes' copies of the event log", 200,
		func(context.Context, *struct{}) (*Got[List[LogDamage]], error) {
			p := s.b.Now().Position.String()
			return &Got[List[LogDamage]]{
				Position: p, Body: List[LogDamage]{s.b.LogDamage(), p},
			}, nil
		})
	register(s, readCluster, "GET", "/v1/settings", "list-settings",
		"List the settings of the cluster", 200, s.settings)
	register(s, administerCluster, "PUT", "/v1/settings/{key}", "change-setting",
		"Give a setting of the cluster a value", 200, s.changeSetting)
}

func (s *Server) settings(ctx context.Context, in *At) (*Got[List[Setting]], error) {
	v, _, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	out := &Got[List[Setting]]{Position: v.Position.String()}
	out.Body = List[Setting]{[]Setting{}, v.Position.String()}
	for _, x := range v.Topology.Settings() {
		out.Body.Items = append(out.Body.Items, Setting(x))
	}
	return out, nil
}

func (s *Server) changeSetting(ctx context.Context, in *struct {
	Change
	Key  string `path:"key"`
	Body SettingBody
},
) (*Changed[Setting], error) {
	id, _ := s.b.Now().Topology.Cluster()
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), cluster.ChangeSetting{
		Cluster: id, Key: in.Key, Value: in.Body.Value,
	})
	if err != nil {
		return nil, err
	}
	out := &Changed[Setting]{Position: res.Position.String()}
	for _, x := range s.b.Now().Topology.Settings() {
		if x.Key == in.Key {
			out.Body = Setting(x)
		}
	}
	return out, nil
}
