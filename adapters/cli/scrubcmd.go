package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

func (t *tool) scrubCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "scrub", Short: "Read all that a node holds, and check it",
		Long: `A scrub reads every block that some volume or snapshot sees, and the device's own
structures, and compares them with their checksums: what was flipped, lost or written to a
wrong place is found before somebody needs it. It runs by itself once a week (weft serve
--scrub-every), at a limited rate, and slower while hosts use the device; a restart does not
begin it anew.

Structures that are in memory too are written anew. A damaged block of a host stays as it is
and reads as an error until it is written again: restore it from a copy.`,
		Example: "  weft node scrub start node1\n  weft node scrub status node1\n" +
			"  weft node scrub pause node1",
	}
	cmd.AddCommand(t.scrubAction("start", "Begin a pass now, or go on after a pause"),
		t.scrubAction("pause", "Stop until it is started again; what was checked counts"),
		t.scrubStatus())
	return cmd
}

func (t *tool) scrubAction(action, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: action + " NODE", Short: short, Args: cobra.ExactArgs(1),
		Long:              short + ". Repeating it is no error.",
		Example:           "  weft node scrub " + action + " node1",
		ValidArgsFunction: t.names(nodeKind()),
	}
	device := cmd.Flags().String("device", "", "only this device: its id or path (default: all)")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.ScrubNode(cmd.Context(), args[0],
			client.ScrubBody{Action: action, Device: *device}, t.change())
		if err != nil {
			return err
		}
		what := map[string]string{"start": "scrub started", "pause": "scrub paused"}[action]
		err = tell(cmd, form.value, outcome{ref: "node/" + args[0], what: what, doc: r.Value})
		next(cmd, "weft node scrub status %s", args[0])
		return err
	})
	return cmd
}

func (t *tool) scrubStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status NODE", Short: "Show how far the scrub has come and what it found",
		Args: cobra.ExactArgs(1),
		Long: `Show, for each device of a node, how far the scrub has come and what the pass under way
or the last one found. Exit code 4 when something is damaged and could not be mended.`,
		Example:           "  weft node scrub status node1\n  weft node scrub status node1 -o json",
		ValidArgsFunction: t.names(nodeKind()),
	}
	form := choose(cmd, "output", "o", "form of the answer", "table", "wide", "json", "yaml", "name")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.Scrubs(cmd.Context(), args[0], client.At{})
		if err != nil {
			return err
		}
		l, bad := scrubListing(r.Value)
		if err := show(cmd.OutOrStdout(), form.value, l, t.colours(cmd)); err != nil {
			return err
		}
		for _, line := range bad {
			if form.value != "table" && form.value != "wide" {
				break
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), oneLine(line)); err != nil {
				return err
			}
		}
		if len(bad) > 0 {
			return &degraded{strings.Join(bad, "; ")}
		}
		return nil
	})
	return cmd
}

// scrubListing gives the table, and what is damaged and not mended.
func scrubListing(list client.List[client.Scrub]) (listing, []string) {
	l := listing{value: list, head: []column{
		{name: "DEVICE"},
		{name: "STATE"},
		{name: "PASS"},
		{name: "CHECKED"},
		{name: "LIVE"},
		{name: "DAMAGED"},
		{name: "FINISHED"},
		{name: "ID", wide: true},
	}}
	var bad []string
	for _, x := range list.Items {
		finished := "-"
		if x.Finished != nil {
			finished = x.Finished.Local().Format("2006-01-02 15:04:05")
		}
		l.names = append(l.names, "device/"+x.Device)
		l.rows = append(l.rows, []string{
			x.Path, x.State, fmt.Sprint(x.Pass), rounded(x.Checked), rounded(x.Live), itoa(x.Damaged),
			finished, x.Device,
		})
		for _, d := range x.Damages {
			if !d.Mended {
				bad = append(bad, fmt.Sprintf("device %s: %s at %d: %s", x.Path, d.Part, d.Offset, d.Detail))
			}
		}
	}
	return l, bad
}
