package cli

import (
	"context"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

// refusalsMax is the most refusals that one answer holds.
const refusalsMax = 1000

func (t *tool) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "What was tried and refused",
		Long: `What was done stands in the event log, with who did it: weft events list. What was refused
stands in a file of the node that refused it, every attempt; many of one kind are one event.`,
		Example: "  weft audit refusals\n  weft audit refusals --limit 1000 -o json",
	}
	cmd.AddCommand(t.auditRefusals())
	return cmd
}

func (t *tool) auditRefusals() *cobra.Command {
	cmd := &cobra.Command{
		Use: "refusals", Short: "List the attempts that this node refused", Args: cobra.NoArgs,
		Long: `List the attempts that this node refused, the newest first: without a token, with a wrong
or an old one, in a foreign tenant, without the role, or malformed. It takes a role in the
whole cluster.`,
		Example: "  weft audit refusals\n  weft audit refusals --limit 1000 -o json",
	}
	limit := cmd.Flags().Int("limit", 100, "most attempts, to 1000")
	form := choose(cmd, "output", "o", "form of the answer", "table", "wide", "json", "yaml", "name")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		l, err := refusalKind(min(*limit, refusalsMax)).list(cmd.Context(), c, client.At{})
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), form.value, l, t.colours(cmd))
	})
	return cmd
}

func refusalKind(limit int) kind {
	type T = client.Refusal
	list := func(c *client.Client, ctx context.Context, _ client.At) (
		client.Reply[client.List[T]], error,
	) {
		return c.Refusals(ctx, limit)
	}
	return kindOf("refusal", "refusals", list,
		func(x T) string { return x.Request }, func(x T) string { return x.Request },
		col[T]{name: "TIME", cell: func(x T) string { return x.Time }},
		col[T]{name: "ACTOR", cell: func(x T) string { return orDash(x.Actor) }},
		col[T]{name: "OPERATION", cell: func(x T) string { return x.Operation }},
		col[T]{name: "STATUS", cell: func(x T) string { return itoa(x.Status) }},
		col[T]{name: "REASON", cell: func(x T) string { return x.Reason }},
		col[T]{name: "TENANT", cell: func(x T) string { return orDash(x.Tenant) }},
		col[T]{name: "SOURCE", cell: func(x T) string { return x.Source }, wide: true},
		col[T]{name: "REQUEST", cell: func(x T) string { return x.Request }, wide: true})
}
