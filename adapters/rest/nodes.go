package rest

import (
	"context"
	"strconv"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/command"
	"weft/projections/catalog"
	"weft/projections/topology"
)

// TokenBody asks for a join token.
type TokenBody struct {
	TTLSeconds int64 `json:"ttl_seconds,omitempty" default:"3600" minimum:"60" maximum:"2592000"`
	Uses       int64 `json:"uses,omitempty" default:"1" minimum:"1" maximum:"1000"`
}

// LocationBody says where a node stands.
type LocationBody struct {
	Location string `json:"location" maxLength:"512" doc:"as zone=a,rack=r1, or none"`
}

// JoinToken lets machines join. It is shown once; the log keeps the hash of its secret.
type JoinToken struct {
	Token   string `json:"token"`
	Uses    int64  `json:"uses"`
	Expires string `json:"expires"`
}

func (s *Server) nodeRoutes() {
	register(s, readCluster, "GET", "/v1/nodes", "list-nodes", "List nodes", 200, s.nodes)
	register(s, administerCluster, "POST", "/v1/nodes/tokens", "create-join-token",
		"Make a token by which machines join; it is shown once", 201,
		func(ctx context.Context, in *struct {
			Change
			Body TokenBody
		},
		) (*Changed[JoinToken], error) {
			return s.joinToken(ctx, in.Body)
		})
	register(s, operateCluster, "POST", "/v1/nodes/{name}/drain", "drain-node",
		"Let a node take no new volumes and give its vote to another", 200,
		func(ctx context.Context, in *NamedChange) (*Changed[Node], error) {
			return s.drain(ctx, in, false)
		})
	register(s, operateCluster, "POST", "/v1/nodes/{name}/undrain", "undrain-node",
		"Let a node take part again", 200,
		func(ctx context.Context, in *NamedChange) (*Changed[Node], error) {
			return s.drain(ctx, in, true)
		})
	register(s, operateCluster, "PUT", "/v1/nodes/{name}/location", "set-node-location",
		"Say in which failure domains a node stands", 200, s.setLocation)
	register(s, administerCluster, "DELETE", "/v1/nodes/{name}", "remove-node",
		"Take a drained node without volumes out for good", 200, s.removeNode)
	s.nodeDeviceRoutes()
}

// joinToken makes a token. A request that is repeated makes another one: the first is kept nowhere.
func (s *Server) joinToken(ctx context.Context, b TokenBody) (
	*Changed[JoinToken], error,
) {
	caller, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	r := domain.Request{Caller: caller}
	ttl := time.Duration(b.TTLSeconds) * time.Second
	token, res, err := s.b.JoinToken(ctx, r, ttl, b.Uses)
	if err != nil {
		return nil, err
	}
	return &Changed[JoinToken]{Position: res.Position.String(), Body: JoinToken{
		Token: token, Uses: b.Uses, Expires: time.Now().Add(ttl).UTC().Format(time.RFC3339),
	}}, nil
}

// node finds a node by name or id.
func (s *Server) node(ref string) (topology.Node, error) {
	for _, n := range s.b.Now().Topology.Nodes() {
		if n.Name == ref && !n.Removed || n.Node.Node.String() == ref {
			return n, nil
		}
	}
	return topology.Node{}, domain.Errorf(domain.NotFound, "no node %q", ref)
}

func (s *Server) drain(ctx context.Context, in *NamedChange, undo bool) (*Changed[Node], error) {
	n, err := s.node(in.Name)
	if err != nil {
		return nil, err
	}
	return s.nodeChange(ctx, in.Change, n, cluster.Drain{Node: n.Node.Node, Undo: undo})
}

func (s *Server) setLocation(ctx context.Context, in *struct {
	NamedChange
	Body LocationBody
},
) (*Changed[Node], error) {
	n, err := s.node(in.Name)
	if err != nil {
		return nil, err
	}
	l, err := cluster.ParseLocation(in.Body.Location)
	if err != nil {
		return nil, err
	}
	return s.nodeChange(ctx, in.Change, n, cluster.SetLocation{Node: n.Node.Node, Location: l})
}

func (s *Server) removeNode(ctx context.Context, in *NamedChange) (*Changed[Node], error) {
	n, err := s.node(in.Name)
	if err != nil {
		return nil, err
	}
	serves := 0
	for _, v := range s.b.Now().Catalog.Volumes() {
		if v.Node == n.Node.Node {
			serves++
		}
	}
	if n.Vote != "" {
		return nil, &domain.Error{
			Op: "node.Remove", Kind: domain.Conflict, Ref: n.Name, Msg: "the node still has a " + n.Vote +
				"'s seat at the event log", Remedy: "wait until another node has taken it: weft get nodes",
		}
	}
	return s.nodeChange(ctx, in.Change, n, cluster.Remove{
		Node: n.Node.Node, Serves: serves, Why: "asked for by " + callerOf(ctx).Actor,
	})
}

func (s *Server) nodeChange(ctx context.Context, ch Change, n topology.Node, c domain.Command) (
	*Changed[Node], error,
) {
	res, err := s.command(ctx, ch, commandID(ctx, ch), c)
	if err != nil {
		return nil, err
	}
	v := s.b.Now()
	n, _ = v.Topology.Node(n.Node.Node)
	return &Changed[Node]{Position: res.Position.String(), Body: nodeDoc(v, n)}, nil
}

func (s *Server) nodes(ctx context.Context, in *At) (*Got[List[Node]], error) {
	v, _, err := s.views(ctx, *in)
	if err != nil {
		return nil, err
	}
	out := &Got[List[Node]]{Position: v.Position.String()}
	out.Body = List[Node]{[]Node{}, v.Position.String()}
	for _, n := range v.Topology.Nodes() {
		out.Body.Items = append(out.Body.Items, nodeDoc(v, n))
	}
	return out, nil
}

func nodeDoc(v Views, n topology.Node) Node {
	leader, _ := v.Topology.Leader()
	d := Node{
		ID: n.Node.Node.String(), Name: n.Name, Version: n.Version, Incarnation: n.Incarnation,
		Leader: n.Node.Node == leader, State: "ready", Vote: n.Vote, Peer: n.Endpoint.Peer,
		API: n.Endpoint.API,
	}
	if len(n.Location) > 0 {
		d.Location = n.Location.String()
	}
	switch {
	case n.Removed:
		d.State = "removed"
	case n.Lost:
		d.State = "lost"
	case n.Down:
		d.State = "down"
	case n.Drained:
		d.State = "drained"
	}
	for _, x := range v.Topology.Devices() {
		if x.Node == n.Node.Node {
			d.Devices++
		}
	}
	d.Adding = n.Wanted
	for _, r := range n.Refused {
		d.Refused = append(d.Refused, RefusedDevice{Device: r.Spec, Reason: r.Why, Remedy: r.Remedy})
	}
	return d
}

// far gives how hosts reach a volume that another node serves.
func far(v Views, f catalog.Volume, x command.Export) (nbd, iscsi string) {
	n, ok := v.Topology.Node(f.Online.Node)
	if !ok || n.Down {
		return "", ""
	}
	if x.NBD != "" && n.Endpoint.NBD != "" {
		nbd = "nbd://" + n.Endpoint.NBD + "/" + x.NBD
	}
	if x.Target != "" && n.Endpoint.ISCSI != "" {
		iscsi = "iscsi://" + n.Endpoint.ISCSI + "/" + x.Target + "/" + strconv.Itoa(x.LUN)
	}
	return nbd, iscsi
}
