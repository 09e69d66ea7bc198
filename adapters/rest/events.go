package rest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"weft/domain"
	"weft/projections/access"
)

// EventsIn selects events.
type EventsIn struct {
	Since   string `query:"since" doc:"only events after this position"`
	Types   string `query:"types" doc:"prefixes of event types, comma separated"`
	Streams string `query:"streams" doc:"prefixes of streams, comma separated"`
	Limit   int    `query:"limit" default:"100" minimum:"1" maximum:"1000"`
	Newest  bool   `query:"newest" doc:"the newest first, backwards from the end"`
	At      string `query:"at_position" doc:"as if the log ended at this position or RFC 3339 time"`
}

func (in *EventsIn) filter() domain.Filter {
	return domain.Filter{TypePrefix: split(in.Types), StreamPrefix: split(in.Streams)}
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// VerdictDoc is the verdict of the log on the wire.
type VerdictDoc struct {
	Sound   bool   `json:"sound"`
	Checked string `json:"checked" doc:"every position up to it is sound"`
	Bad     string `json:"bad,omitempty" doc:"the first position that is not"`
	Why     string `json:"why,omitempty"`
	Part    string `json:"part,omitempty" doc:"where it is damaged: database or archive"`
	Node    string `json:"node,omitempty" doc:"the node whose copy is damaged"`
	Remedy  string `json:"remedy,omitempty"`
	Alone   bool   `json:"alone,omitempty" doc:"no other node has a copy"`
}

func (s *Server) eventRoutes() {
	register(s, readOwn, "GET", "/v1/events", "list-events", "List events", 200, s.listEvents)
	register(s, readOwn, "GET", "/v1/events/{position}", "get-event",
		"Show an event", 200, s.getEvent)
	register(s, readCluster, "POST", "/v1/events:verify", "verify-events",
		"Read the whole log again and check every record and the chain", 200, s.verify)
	register(s, operateCluster, "POST", "/v1/nodes/{name}/log:repair", "repair-node-log",
		"Make a node read all of its copy of the log and repair what is damaged", 200, s.repairLog)
	register(s, readCluster, "POST", "/v1/events:replay", "replay-events",
		"Fold every view anew from the first event, and tell what it comes to", 200, s.replay)
	register(s, readOwn, "GET", "/v1/audit", "list-audit",
		"Who did what, newest first", 200, s.listAudit)
	stream(s, readCluster, huma.Operation{
		OperationID: "export-events", Method: "GET", Path: "/v1/events:export",
		Summary: "The records of the log as they are stored, for a backup",
		Description: "Records (eventstore/FORMAT.md), one behind the other, and then the end: " +
			"\"WEND\", the u32 16, and the position u64 of the last record.",
	}, s.export)
	stream(s, readOwn, huma.Operation{
		OperationID: "watch-events", Method: "GET", Path: "/v1/watch",
		Summary: "Follow the log as server-sent events; id is the position",
	}, s.watch)
	register(s, readCluster, "GET", "/v1/audit/refusals", "list-refusals",
		"Attempts that this node refused, newest first", 200, s.listRefusals)
}

func (s *Server) listEvents(ctx context.Context, in *EventsIn) (*Got[List[EventDoc]], error) {
	from := domain.Position(0)
	if in.Since != "" {
		p, err := domain.ParsePosition(in.Since)
		if err != nil {
			return nil, err
		}
		from = p
	}
	now, err := s.end(ctx, in.At)
	if err != nil {
		return nil, err
	}
	if in.Newest {
		from = now
	}
	var list []Event
	if from < now || in.Newest {
		if list, err = s.seen(ctx, from, in.Newest, in.filter(), in.Limit); err != nil {
			return nil, err
		}
	}
	if in.At != "" {
		list = slices.DeleteFunc(list, func(e Event) bool { return e.Position > now })
	}
	out := &Got[List[EventDoc]]{Position: now.String()}
	out.Body = List[EventDoc]{[]EventDoc{}, now.String()}
	ctx, cancel := context.WithTimeout(ctx, access.RevealWait)
	defer cancel()
	for i := range list {
		out.Body.Items = append(out.Body.Items, s.eventDoc(ctx, &list[i]))
	}
	return out, nil
}

// end is where the log ends, or ended at a moment.
func (s *Server) end(ctx context.Context, at string) (domain.Position, error) {
	now := s.b.Now().Position
	if at == "" {
		return now, nil
	}
	p, err := s.place(ctx, at)
	if err == nil && p > now {
		err = domain.Errorf(domain.OutOfRange, "position %s: the log ends at %s", p, now)
	}
	return p, err
}

func (s *Server) getEvent(ctx context.Context, in *struct {
	Position string `path:"position"`
},
) (*Got[EventDoc], error) {
	p, err := domain.ParsePosition(in.Position)
	if err != nil {
		return nil, err
	}
	missing := &domain.Error{Kind: domain.NotFound, Ref: "event/" + in.Position, Msg: "no such event"}
	if p == 0 || p > s.b.Now().Position {
		return nil, missing
	}
	list, err := s.b.Events(ctx, p-1, false, domain.Filter{}, 1)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[0].Position != p || !s.sees(ctx, list[0].Stream) {
		return nil, missing
	}
	return &Got[EventDoc]{Position: in.Position, Body: s.eventDoc(ctx, &list[0])}, nil
}

func (s *Server) verify(ctx context.Context, _ *struct{}) (*Got[VerdictDoc], error) {
	v, err := s.b.Verify(ctx)
	if err != nil {
		return nil, err
	}
	return &Got[VerdictDoc]{Body: verdictDoc(v)}, nil
}

func verdictDoc(v Verdict) VerdictDoc {
	d := VerdictDoc{
		Sound: v.Bad == 0 && v.Why == "", Checked: v.Checked.String(), Why: v.Why, Part: v.Part,
		Node: v.Node, Remedy: v.Remedy, Alone: v.Alone,
	}
	if v.Bad != 0 {
		d.Bad = v.Bad.String()
	}
	return d
}

func (s *Server) repairLog(ctx context.Context, in *struct {
	Name string `path:"name"`
},
) (*Got[VerdictDoc], error) {
	n, err := s.node(in.Name)
	if err != nil {
		return nil, err
	}
	v, err := s.b.RepairLog(ctx, n.Node.Node)
	if err != nil {
		return nil, err
	}
	return &Got[VerdictDoc]{Body: verdictDoc(v)}, nil
}

// export streams records. An answer without the end is not whole: the log was damaged, or the node
// stopped.
func (s *Server) export(ctx context.Context, in *struct {
	Since string `query:"since" doc:"only records after this position"`
},
) (*huma.StreamResponse, error) {
	after := domain.Position(0)
	if in.Since != "" {
		p, err := domain.ParsePosition(in.Since)
		if err != nil {
			return nil, problem(ctx, err)
		}
		after = p
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/octet-stream")
		hc.SetHeader("Cache-Control", "no-store")
		w := bufio.NewWriterSize(hc.BodyWriter(), exportBuffer)
		last, err := s.b.Export(hc.Context(), after, func(record []byte) error {
			_, err := w.Write(record)
			return err
		})
		if err == nil {
			end := append([]byte("WEND"), 16, 0, 0, 0)
			_, err = w.Write(binary.LittleEndian.AppendUint64(end, uint64(last)))
		}
		err = errors.Join(err, w.Flush())
		if err != nil && hc.Context().Err() == nil {
			loggerOf(hc.Context()).Warn("export", "err", err)
		}
	}}, nil
}

// exportBuffer gathers records into writes, bytes.
const exportBuffer = 256 << 10

// ReplayDoc is what a replay came to.
type ReplayDoc struct {
	Position string      `json:"position" doc:"up to which the log was folded"`
	Views    []ReplayOne `json:"views"`
}

// ReplayOne is what the replay of one view came to.
type ReplayOne struct {
	View    string  `json:"view"`
	Version uint16  `json:"version" doc:"of the fold"`
	Events  uint64  `json:"events"`
	Hash    string  `json:"hash" doc:"SHA-256 of the view's whole state; equal states, equal hashes"`
	Seconds float64 `json:"seconds"`
}

func (s *Server) replay(ctx context.Context, in *struct {
	To string `query:"to" doc:"a position or an RFC 3339 time; empty: the end of the log"`
},
) (*Got[ReplayDoc], error) {
	p := s.b.Now().Position
	if in.To != "" {
		var err error
		if p, err = s.place(ctx, in.To); err != nil {
			return nil, err
		}
	}
	list, err := s.b.Replay(ctx, p)
	if err != nil {
		return nil, err
	}
	d := ReplayDoc{Position: p.String(), Views: []ReplayOne{}}
	for _, r := range list {
		d.Views = append(d.Views, ReplayOne{
			View: r.View, Version: r.Version, Events: r.Events, Hash: hexOf(r.Hash[:]),
			Seconds: r.Took.Seconds(),
		})
	}
	return &Got[ReplayDoc]{Position: p.String(), Body: d}, nil
}

// AuditDoc says who did what.
type AuditDoc struct {
	Position string `json:"position"`
	Type     string `json:"type"`
	Stream   string `json:"stream"`
	Actor    string `json:"actor"`
	Source   string `json:"source,omitempty"`
	Request  string `json:"request,omitempty"`
	Created  string `json:"created"`
}

func (s *Server) listAudit(ctx context.Context, in *EventsIn) (*Got[List[AuditDoc]], error) {
	v, _, err := s.views(ctx, At{AtPosition: in.At})
	if err != nil {
		return nil, err
	}
	out := &Got[List[AuditDoc]]{Position: v.Position.String()}
	out.Body = List[AuditDoc]{[]AuditDoc{}, v.Position.String()}
	now := s.b.Now().Access // names are opened with what is there to open them
	keep := func(h *domain.Header) bool { return s.sees(ctx, h.Stream) }
	named, cancel := context.WithTimeout(ctx, access.RevealWait)
	defer cancel()
	for _, h := range v.Audit.Entries(in.filter(), in.Limit, keep) {
		out.Body.Items = append(out.Body.Items, AuditDoc{
			Position: h.Position.String(), Type: h.Type, Stream: string(h.Stream),
			Source: now.Source(named, h.Actor, h.RequestID, h.Source),
			Actor:  now.Actor(named, h.Actor), Request: h.RequestID,
			Created: h.Created.Format("2006-01-02T15:04:05.000Z07:00"),
		})
	}
	return out, nil
}

// watch follows the log. Last-Event-ID, or since, says where to go on; without either it begins at
// the first event. A comment every pause keeps proxies from closing the connection.
func (s *Server) watch(ctx context.Context, in *struct {
	Since   string `query:"since" doc:"only events after this position"`
	LastID  string `header:"Last-Event-ID"`
	Types   string `query:"types" doc:"prefixes of event types, comma separated"`
	Streams string `query:"streams" doc:"prefixes of streams, comma separated"`
},
) (*huma.StreamResponse, error) {
	after := domain.Position(0)
	if at := first(in.LastID, in.Since); at != "" {
		p, err := domain.ParsePosition(at)
		if err != nil {
			return nil, problem(ctx, err)
		}
		after = p
	}
	f := domain.Filter{TypePrefix: split(in.Types), StreamPrefix: split(in.Streams)}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "text/event-stream")
		hc.SetHeader("Cache-Control", "no-store")
		w := hc.BodyWriter()
		flush := func() error { return nil }
		if rw, ok := w.(http.ResponseWriter); ok {
			flush = http.NewResponseController(rw).Flush
		}
		if _, err := fmt.Fprint(w, ": weft\n\n"); err != nil || flush() != nil {
			return
		}
		err := s.b.Watch(hc.Context(), after, f, func(e *Event) error {
			if show, err := s.stillSees(hc.Context(), e); err != nil || !show {
				return err
			}
			if e == nil {
				return send(w, flush, nil)
			}
			d := s.eventDoc(hc.Context(), e)
			return send(w, flush, &d)
		})
		if err != nil && hc.Context().Err() == nil {
			loggerOf(hc.Context()).Warn("watch", "err", err)
			_, _ = fmt.Fprintf(w, "event: error\ndata: %q\n\n", domain.KindOf(err).String())
			_ = flush() // the client may be gone
		}
	}}, nil
}

// send writes one event, or a comment for nil.
func send(w interface{ Write([]byte) (int, error) }, flush func() error, e *EventDoc) error {
	if e == nil {
		if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
			return err
		}
		return flush()
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "id: %s\nevent: %s\ndata: %s\n\n", e.Position, e.Type, b); err != nil {
		return err
	}
	return flush()
}
