package rest

import (
	"context"

	"weft/domain"
	"weft/domain/cluster"
	"weft/projections/topology"
)

// AddDeviceBody names a device that a node shall use.
type AddDeviceBody struct {
	Device string `json:"device" minLength:"1" maxLength:"4096" doc:"as weft serve --device takes it"`
}

// DeviceChange names a node's device.
type DeviceChange struct {
	NamedChange
	Device string `path:"device" doc:"id"`
}

func (s *Server) nodeDeviceRoutes() {
	register(s, administerCluster, "POST", "/v1/nodes/{name}/devices", "add-device",
		"Let a node take a device into use; its answer is in the node's adding and refused", 202,
		func(ctx context.Context, in *struct {
			NamedChange
			Body AddDeviceBody
		},
		) (*Changed[Node], error) {
			n, err := s.node(in.Name)
			if err != nil {
				return nil, err
			}
			return s.nodeChange(ctx, in.Change, n, cluster.AddDevice{
				Node: n.Node.Node, Spec: in.Body.Device,
			})
		})
	register(s, administerCluster, "DELETE", "/v1/nodes/{name}/devices/{device}", "remove-device",
		"Put a device out of use once nothing stands on it", 202,
		func(ctx context.Context, in *DeviceChange) (*Changed[Device], error) {
			return s.leave(ctx, *in, false)
		})
	register(s, administerCluster, "POST", "/v1/nodes/{name}/devices/{device}/keep", "keep-device",
		"Take the removal of a device back", 200,
		func(ctx context.Context, in *DeviceChange) (*Changed[Device], error) {
			return s.leave(ctx, *in, true)
		})
}

// leave puts a device out of use, or takes that back. The answer for one that is gone at once holds
// its id alone.
func (s *Server) leave(ctx context.Context, in DeviceChange, undo bool) (*Changed[Device], error) {
	n, err := s.node(in.Name)
	if err != nil {
		return nil, err
	}
	var found topology.Device
	others := 0
	for _, d := range s.b.Now().Topology.Devices() {
		switch {
		case d.Node != n.Node.Node:
		case d.Device.String() == in.Device:
			found = d
		case d.Class != cluster.ClassNVRAM && !d.Leaving && !d.Failed:
			others++
		}
	}
	if found.Device.IsZero() {
		return nil, &domain.Error{
			Kind: domain.NotFound, Ref: "device/" + in.Device, Msg: "node " + n.Name + " has no such device",
			Remedy: "see the ids with: weft get devices -o wide",
		}
	}
	res, err := s.command(ctx, in.Change, commandID(ctx, in.Change), cluster.RemoveDevice{
		Device: found.Device, Last: others == 0, Undo: undo,
	})
	if err != nil {
		return nil, err
	}
	v := s.b.Now()
	out := &Changed[Device]{Position: res.Position.String(), Body: Device{ID: in.Device}}
	if d, ok := v.Topology.Device(found.Device); ok {
		out.Body = deviceDoc(v, d)
	}
	return out, nil
}
