package cli

import (
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

func (t *tool) nodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "node", Short: "Nodes of the cluster",
		Long: `The nodes of the cluster. A machine joins by a token:

  weft node token                          # on a node that runs
  weft serve --join weft-join-...          # on the new machine, with an empty data folder

A node leaves in two steps: drain it, so that it takes no new volumes and its vote goes
to another node; then, when no volume stands on it, remove it.`,
		Example: `  weft node list
  weft node token --ttl 15m
  weft node locate node3 zone=a,rack=r1
  weft node drain node3
  weft node remove node3`,
	}
	cmd.AddCommand(t.listCommand(nodeKind()), t.nodeTokenCommand(), t.nodeLocateCommand(),
		t.nodeDrainCommand(), t.nodeRemoveCommand(), t.nodeDeviceCommand(), t.scrubCommand())
	return cmd
}

func (t *tool) nodeTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token by which a machine joins", Args: cobra.NoArgs,
		Long: `Make a token by which a machine joins the cluster, and show it once. It holds the nodes'
addresses, the fingerprint of the cluster's authority, and a secret: whoever has it can
join until it has expired or is used up, so pass it on as you would a password.`,
		Example: `  weft node token
  weft node token --ttl 5m
  weft node token --uses 4 -o json`,
	}
	ttl := cmd.Flags().Duration("ttl", time.Hour, "how long it is good, from 1m to 720h")
	uses := cmd.Flags().Int64("uses", 1, "how many machines may join by it")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.CreateJoinToken(cmd.Context(), client.TokenBody{
			TTLSeconds: int64(*ttl / time.Second), Uses: *uses,
		}, t.change())
		if err != nil {
			return err
		}
		if form.value == "text" {
			if _, err := cmd.OutOrStdout().Write([]byte(r.Value.Token + "\n")); err != nil {
				return err
			}
			next(cmd, "on the new machine: weft serve --join %s...", r.Value.Token[:12])
			return nil
		}
		return tell(cmd, form.value, outcome{doc: r.Value})
	})
	return cmd
}

func (t *tool) nodeLocateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "locate NODE LOCATION", Short: "Say in which zone, rack ... a node stands",
		Args: cobra.ExactArgs(2),
		Long: `Say in which failure domains a node stands: parts of the installation that fail as a
whole. Kinds are, from the widest to the narrowest, site, zone, power, rack and chassis;
name those that you have. The nodes that vote on the event log are spread over them: a
vote moves by itself to a node that stands better. none takes the location back.

The same is said at the start with weft serve --location.`,
		Example: `  weft node locate node3 zone=a,rack=r1
  weft node locate node3 none`,
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.SetNodeLocation(cmd.Context(), args[0], args[1], t.change())
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			ref: "node/" + r.Value.Name, what: "located", doc: r.Value,
		})
	})
	return cmd
}

func (t *tool) nodeDrainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Let a node take no new volumes and give its vote up",
		Args: cobra.ExactArgs(1),
		Long: `Let a node take no new volumes, and let another node take its vote on the event log. What
stands on the node stays and is served. --undo lets it take part again.`,
		Example: "  weft node drain node3\n  weft node drain node3 --undo",
	}
	undo := cmd.Flags().Bool("undo", false, "let the node take part again")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		do, what := c.DrainNode, "drained"
		if *undo {
			do, what = c.UndrainNode, "ready"
		}
		r, err := do(cmd.Context(), args[0], t.change())
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			ref: "node/" + r.Value.Name, what: what, doc: r.Value,
		})
	})
	return cmd
}

func (t *tool) nodeRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Take a drained node out of the cluster", Args: cobra.ExactArgs(1),
		Long: `Take a node out of the cluster for good. It must be drained, without a vote and without
volumes. Its certificate opens nothing any more; the machine comes back only as a new
node, with an empty data folder and a new token.`,
		Example: "  weft node drain node3\n  weft node remove node3",
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.RemoveNode(cmd.Context(), args[0], t.change())
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			ref: "node/" + r.Value.Name, what: "removed", doc: r.Value,
		})
	})
	return cmd
}
