package client

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"weft/domain"
)

// errDone ends a watch from inside.
var errDone = errors.New("done")

// Until returns once check says so. It checks at once and again after every event behind a
// position, handing on the position that the reading must hold at least: no poll, and no event
// slips between the check and the wait.
func (c *Client) Until(ctx context.Context, after domain.Position,
	check func(ctx context.Context, least domain.Position) (bool, error),
) error {
	done, err := check(ctx, after)
	if err != nil || done {
		return err
	}
	err = c.Watch(ctx, Watched{Since: after}, func(e Event) error {
		p, err := domain.ParsePosition(e.Position)
		if err != nil {
			return err
		}
		done, err := check(ctx, p)
		if err == nil && done {
			return errDone
		}
		return err
	})
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// Online waits until a volume of an application is served in its wished size, or all of them when
// the name is empty, and gives the application. When ctx ends first the error names the volume
// and the reason.
func (c *Client) Online(ctx context.Context, after domain.Position, tenant, app, volume string) (
	App, error,
) {
	var last App
	err := c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		r, err := c.App(ctx, app, At{Tenant: tenant, Min: least})
		if err != nil {
			return false, err
		}
		last = r.Value
		return pending(last, volume) == nil, nil
	})
	if v := pending(last, volume); err != nil && ctx.Err() != nil && v != nil {
		why := v.State
		if v.Compliance.Reason != "" {
			why += ", " + v.Compliance.Reason
		}
		return last, &domain.Error{
			Kind: domain.Aborted, Ref: "volume/" + app + "/" + v.Name,
			Msg: "not online yet: " + why, Err: ctx.Err(),
			Remedy: "see why with: weft why volume/" + app + "/" + v.Name,
		}
	}
	return last, err
}

// pending gives the first volume that is not yet served as wished.
func pending(a App, volume string) *Volume {
	for i := range a.Volumes {
		v := &a.Volumes[i]
		there := v.State == "online" && v.Actual >= v.Size && !v.Shrinking
		if (volume == "" || v.Name == volume) && !there {
			return v
		}
	}
	return nil
}

// Gone waits until an application is no more, or one volume of it when a name is given.
func (c *Client) Gone(ctx context.Context, after domain.Position, tenant, app, volume string) (
	err error,
) {
	err = c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		r, err := c.App(ctx, app, At{Tenant: tenant, Min: least})
		if domain.IsKind(err, domain.NotFound) {
			return true, nil
		}
		if err != nil || volume == "" {
			return false, err
		}
		for _, v := range r.Value.Volumes {
			if v.Name == volume {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil && ctx.Err() != nil {
		ref := "app/" + app
		if volume != "" {
			ref = "volume/" + app + "/" + volume
		}
		return &domain.Error{
			Kind: domain.Aborted, Ref: ref, Msg: "not gone yet", Err: ctx.Err(),
			Remedy: "the deletion goes on; follow it with: weft events watch",
		}
	}
	return err
}

// DeviceTaken waits until a node has answered whether it uses a device, and gives the node; its
// refusal is a Conflict. When ctx ends first the node has not answered yet.
func (c *Client) DeviceTaken(
	ctx context.Context, after domain.Position, node, device string,
) (found Node, err error) {
	err = c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		r, err := c.Nodes(ctx, At{Min: least})
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(r.Value.Items, func(n Node) bool {
			return (n.Name == node || n.ID == node) && n.State != "removed"
		})
		if i < 0 {
			return false, domain.Errorf(domain.NotFound, "no node %q", node)
		}
		found = r.Value.Items[i]
		for _, x := range found.Refused {
			if x.Device == device {
				return false, &domain.Error{
					Kind: domain.Conflict, Ref: device, Msg: x.Reason, Remedy: x.Remedy,
				}
			}
		}
		return !slices.Contains(found.Adding, device), nil
	})
	if err != nil && ctx.Err() != nil {
		err = &domain.Error{
			Kind: domain.Aborted, Ref: device, Msg: "the node has not answered yet", Err: ctx.Err(),
			Remedy: "is it up? weft get nodes; it goes on by itself",
		}
	}
	return found, err
}

// DeviceGone waits until a device is out of use. When ctx ends first the error says what keeps it.
func (c *Client) DeviceGone(ctx context.Context, after domain.Position, id string) error {
	var last Device
	err := c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		r, err := c.Devices(ctx, At{Min: least})
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(r.Value.Items, func(d Device) bool { return d.ID == id })
		if i < 0 {
			return true, nil
		}
		last = r.Value.Items[i]
		return false, nil
	})
	if err != nil && ctx.Err() != nil {
		return &domain.Error{
			Kind: domain.Aborted, Ref: cmp.Or(last.Path, id), Err: ctx.Err(),
			Msg: "still in use " + last.Reason,
			Remedy: "what stands on it: weft get volumes -o wide; to stop waiting for it: " +
				"weft node device keep",
		}
	}
	return err
}
