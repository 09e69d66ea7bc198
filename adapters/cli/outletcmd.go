package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

func (t *tool) outletCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "outlet", Short: "Where the cluster's events are published",
		Long: `An outlet publishes every event, or those of some types, in order and at least once:

  to NATS with JetStream    JSON messages, with ids by which JetStream drops what comes twice
                            within its window; the stream has to be there
  to an EventStoreDB or     a mirror: the same streams, revisions, ids and bytes, read back
  KurrentDB                 event by event

The leading node serves it; another one goes on where it was. An event that is not taken makes
the outlet stuck, which is an event itself, until you resume it, with that event or without.`,
		Example: `  weft outlet create bus --to nats://broker:4222 --subject weft.events --types Volume
  weft outlet create audit --to esdb://kurrent:2113?tls=true --secret kurrent
  weft outlet list
  weft outlet resume bus --skip`,
	}
	cmd.AddCommand(t.outletCreate(), t.plainList(outletKind()), t.outletPause(), t.outletResume(),
		t.outletDelete())
	return cmd
}

func outletKind() kind {
	type T = client.Outlet
	return kindOf("outlet", "outlets", (*client.Client).Outlets,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "BEHIND", cell: func(x T) string { return strconv.Itoa(x.Behind) }},
		col[T]{name: "TO", cell: func(x T) string { return x.Address }},
		col[T]{name: "SUBJECT", cell: func(x T) string { return orDash(x.Topic) }},
		col[T]{name: "TYPES", cell: func(x T) string { return orDash(strings.Join(x.Types, ",")) }},
		col[T]{name: "STUCK AT", cell: func(x T) string {
			if x.Stuck == nil {
				return "-"
			}
			return x.Stuck.Position + " " + x.Stuck.Type + ": " + oneLine(x.Stuck.Reason)
		}, wide: true},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

func (t *tool) outletCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Publish events to a broker or another log",
		Args: cobra.ExactArgs(1),
		Long: `Publish events from the first one on, or with --from-now those to come. The address decides
what it is: nats:// and tls:// a broker, esdb:// and kurrentdb:// a mirror. A password has no
place in an address, since addresses are in the log: keep user and password on each node with
weft secret set, and name them with --secret.`,
		Example: `  weft outlet create bus --to nats://broker:4222 --subject weft.events
  weft outlet create audit --to esdb://kurrent:2113 --secret kurrent`,
	}
	var b client.OutletBody
	f := cmd.Flags()
	f.StringVar(&b.Address, "to", "", "address, without a password")
	f.StringVar(&b.Topic, "subject", "", "NATS: subject of the messages")
	f.StringSliceVar(&b.Types, "types", nil, "what the types of events begin with; without any: all")
	f.StringVar(&b.Secret, "secret", "", "name of user and password (weft secret set, on each node)")
	f.BoolVar(&b.FromNow, "from-now", false, "leave out what has happened until now")
	if err := cmd.MarkFlagRequired("to"); err != nil {
		panic(err) // the flag stands above
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		b.Name, b.Kind = args[0], "mirror"
		if strings.HasPrefix(b.Address, "nats:") || strings.HasPrefix(b.Address, "tls:") {
			b.Kind = "nats"
		}
		r, err := c.CreateOutlet(cmd.Context(), b)
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"outlet/" + args[0], "created", "", r.Value})
		next(cmd, "weft outlet list shows how far it is")
		return err
	})
	return cmd
}

func (t *tool) outletPause() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pause NAME", Short: "Publish nothing until resumed", Args: cobra.ExactArgs(1),
		Long:    "Publish nothing until weft outlet resume, which goes on where it was.",
		Example: "  weft outlet pause bus", ValidArgsFunction: t.names(outletKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.PauseOutlet(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"outlet/" + args[0], "paused", "", r.Value})
	})
	return cmd
}

func (t *tool) outletResume() *cobra.Command {
	cmd := &cobra.Command{
		Use: "resume NAME", Short: "Let a paused or stuck outlet go on", Args: cobra.ExactArgs(1),
		Long: `Let a paused or stuck outlet go on. The event it was stuck at is tried anew, or with --skip
passed over: then it is missing at the other end, and the log says who decided so.`,
		Example:           "  weft outlet resume bus\n  weft outlet resume bus --skip",
		ValidArgsFunction: t.names(outletKind()),
	}
	skip := cmd.Flags().Bool("skip", false, "pass the event over that it is stuck at")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.ResumeOutlet(cmd.Context(), args[0], *skip)
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"outlet/" + args[0], "resumed", "", r.Value})
	})
	return cmd
}

func (t *tool) outletDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Publish nothing more to an outlet", Args: cobra.ExactArgs(1),
		Long:    "Publish nothing more to an outlet and forget how far it was. What is there stays.",
		Example: "  weft outlet delete bus", ValidArgsFunction: t.names(outletKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.DeleteOutlet(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"outlet/" + args[0], "deleted", "", r.Value})
	})
	return cmd
}
