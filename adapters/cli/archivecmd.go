package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

func segmentKind() kind {
	type T = client.ArchiveSegment
	return kindOf("segment", "segments", func(c *client.Client, ctx context.Context, _ client.At) (
		client.Reply[client.List[T]], error,
	) {
		return c.ArchiveSegments(ctx)
	}, func(s T) string { return strconv.FormatUint(s.First, 10) },
		func(s T) string { return s.Root },
		col[T]{name: "FIRST", cell: func(s T) string { return strconv.FormatUint(s.First, 10) }},
		col[T]{name: "LAST", cell: func(s T) string { return s.Last }},
		col[T]{name: "EVENTS", cell: func(s T) string { return itoa(int(s.Events)) }},
		col[T]{name: "SIZE", cell: func(s T) string { return rounded(s.Bytes) }},
		col[T]{name: "DATABASE", cell: func(s T) string { return yesNo(s.Hot) }},
		col[T]{name: "ROOT", cell: func(s T) string { return s.Root }, wide: true},
	)
}

func (t *tool) archiveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "archive", Short: "Where the old part of the log is kept",
		Long: `The log is kept for ever. Its newest events, the window, stand in the database; older ones
in sealed files, of which every node has the same. Reads see no difference. An event leaves
the database once every voter, and three nodes where there are so many, have proved that
their files hold it.`,
		Example: `  weft events archive status
  weft events archive list -o wide
  weft events archive set --window 300000`,
	}
	list := t.listCommand(segmentKind())
	list.Short = "List this node's sealed files"
	list.Long = `List the sealed files of this node's archive. Two nodes
with equal roots have equal histories.`
	list.Example = "  weft events archive list\n  weft events archive list -o json"
	cmd.AddCommand(t.archiveStatus(), list, t.archiveSet())
	return cmd
}

func (t *tool) archiveStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the old part of the log is kept", Args: cobra.NoArgs,
		Long: `Say how much of the log stands in the database, how much in sealed files, how far each
node's files reach, and what keeps old events from leaving the database. Exit code 4 when
something does.`,
		Example: "  weft events archive status\n  weft events archive status -o json",
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.Archive(cmd.Context())
		if err != nil {
			return err
		}
		if form.value == "text" {
			_, err = fmt.Fprint(cmd.OutOrStdout(), archiveText(r.Value))
		} else {
			err = show(cmd.OutOrStdout(), form.value, listing{value: r.Value}, false)
		}
		if err == nil && r.Value.State != "ok" {
			err = &degraded{first(r.Value.Reason, "the archive of the log is "+r.Value.State)}
		}
		return err
	})
	return cmd
}

func archiveText(a client.Archive) string {
	var b strings.Builder
	fmt.Fprintf(&b, "State:     %s\n", a.State)
	if a.Reason != "" {
		fmt.Fprintf(&b, "           %s\n", oneLine(a.Reason))
	}
	fmt.Fprintf(&b, "Log:       position %s, archives alone up to %s\n", a.Tail, a.Sealed)
	fmt.Fprintf(&b, "Database:  %d events, %d at most", a.Hot, a.Window)
	if d := a.Database; d.Quota > 0 {
		fmt.Fprintf(&b, "; %s of %s used, file %s", rounded(d.Used), rounded(d.Quota), rounded(d.Size))
	}
	fmt.Fprintf(&b, "\nArchive:   %d files, %s, up to %s on this node\n", a.Segments, rounded(a.Bytes),
		a.Archived)
	for _, h := range a.Holders {
		fmt.Fprintf(&b, "Held by:   %s up to %s\n", first(h.Name, h.Node), h.Archived)
	}
	return b.String()
}

func (t *tool) archiveSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set", Short: "Set how much of the log stays in the database", Args: cobra.NoArgs,
		Long: `Set how many events the database holds before the oldest are in the archives alone: 40,000
to 10,000,000, at first 200,000. A larger window costs memory and start-up time on every
voter, about 250 bytes an event, and gains nothing for readers. 0 means the default.`,
		Example: "  weft events archive set --window 300000\n  weft events archive set --window 0",
	}
	window := cmd.Flags().Uint64("window", 0, "events in the database; 0: the default")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		if !cmd.Flags().Changed("window") {
			return &usage{errors.New("say what to set: --window"), cmd.CommandPath()}
		}
		value := ""
		if *window > 0 {
			value = strconv.FormatUint(*window, 10)
		}
		r, err := c.ChangeSetting(cmd.Context(), "log.window", value, t.change())
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			ref: "setting/" + r.Value.Key, what: r.Value.Value, doc: r.Value,
		})
	})
	return cmd
}
