package cli

import (
	"context"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func (t *tool) nodeDeviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "device", Short: "Take devices of a running node into use and out of it",
		Long: `A node uses the devices that weft serve --device names, and those that were added while it
ran; it finds those again at each start. A device that is removed takes no new volumes, and
is out of use once no volume and no snapshot stands on it; from then on the node leaves it
alone, also where --device names it.`,
		Example: `  weft node device add node1 /dev/disk/by-id/nvme-eui.0025385b71b0a3c1
  weft node device add node1 hybrid:flash=/dev/nvme1n1,hdd=/dev/sdc
  weft get devices -o wide
  weft node device remove node1 /dev/sdb
  weft node device keep node1 /dev/sdb`,
	}
	cmd.AddCommand(t.deviceAddCommand(), t.deviceRemoveCommand(), t.deviceKeepCommand())
	return cmd
}

func (t *tool) deviceAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add NODE DEVICE", Short: "Let a running node use one more device",
		Args: cobra.ExactArgs(2),
		Long: `Let a running node use one more device: a block device or a file of at least 128 MiB, by
its absolute path on that node, in the forms that weft serve --device takes. A blank device
is formatted; one of this cluster is taken with what is on it; what holds anything else is
never touched. Repeating it is no error.`,
		Example: `  weft node device add node1 /dev/sdb
  weft node device add node1 hdd:/dev/sdc --wait=false`,
	}
	wait := waitFlags(cmd, "the node has answered")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.AddDevice(cmd.Context(), args[0], args[1], t.change())
		if err != nil {
			return err
		}
		what := "asked to use " + args[1]
		if err := wait.do(cmd.Context(), func(ctx context.Context) (err error) {
			what = "uses " + args[1]
			r.Value, err = c.DeviceTaken(ctx, r.Position, args[0], args[1])
			return err
		}); err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{ref: "node/" + r.Value.Name, what: what, doc: r.Value})
		next(cmd, "weft get devices -o wide")
		return err
	})
	return cmd
}

// deviceOf finds a node's device by path or id.
func deviceOf(ctx context.Context, c *client.Client, node, ref string) (client.Device, error) {
	nodes, err := c.Nodes(ctx, client.At{})
	if err != nil {
		return client.Device{}, err
	}
	list, err := c.Devices(ctx, client.At{})
	if err != nil {
		return client.Device{}, err
	}
	for _, n := range nodes.Value.Items {
		if n.Name != node && n.ID != node || n.State == "removed" {
			continue
		}
		for _, d := range list.Value.Items {
			if d.Node == n.ID && (d.Path == ref || d.ID == ref) {
				return d, nil
			}
		}
		return client.Device{}, &domain.Error{
			Kind: domain.NotFound, Ref: ref, Msg: "node " + node + " has no such device",
			Remedy: "see: weft get devices -o wide",
		}
	}
	return client.Device{}, domain.Errorf(domain.NotFound, "no node %q", node)
}

func (t *tool) deviceRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NODE DEVICE", Short: "Move all off a device and put it out of use",
		Args: cobra.ExactArgs(2),
		Long: `Let a device, named by its path or id, take no new volumes, move its volumes and snapshots
to other devices of the node while hosts use them, and put it out of use once it is empty. The
wish stays when the waiting ends before that: weft get devices -o wide tells how much is left
and what is in the way. The only device of a node is not removed. To use it for something else
afterwards, wipe it.`,
		Example: "  weft node device remove node1 /dev/sdb\n" +
			"  weft node device remove node1 /dev/sdb --timeout 10m",
	}
	wait := waitFlags(cmd, "it is out of use")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		d, err := deviceOf(cmd.Context(), c, args[0], args[1])
		if err != nil {
			return err
		}
		r, err := c.RemoveDevice(cmd.Context(), args[0], d.ID, t.change())
		if err != nil {
			return err
		}
		what := "leaving"
		if err := wait.do(cmd.Context(), func(ctx context.Context) error {
			what = "out of use"
			return c.DeviceGone(ctx, r.Position, d.ID)
		}); err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{ref: d.Path, what: what, doc: r.Value})
	})
	return cmd
}

func (t *tool) deviceKeepCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "keep NODE DEVICE", Short: "Take the removal of a device back", Args: cobra.ExactArgs(2),
		Long:    "Let a device that was to be removed, named by its path or id, take volumes again.",
		Example: "  weft node device keep node1 /dev/sdb",
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		d, err := deviceOf(cmd.Context(), c, args[0], args[1])
		if err != nil {
			return err
		}
		r, err := c.KeepDevice(cmd.Context(), args[0], d.ID, t.change())
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{ref: d.Path, what: "kept", doc: r.Value})
	})
	return cmd
}
