package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

// repairLook is the pause between two looks at a repair under way.
const repairLook = 500 * time.Millisecond

func (t *tool) eventsRepair() *cobra.Command {
	cmd := &cobra.Command{
		Use: "repair", Short: "Check the nodes' copies of the log and repair what is damaged",
		Args: cobra.NoArgs,
		Long: `Make every node, or the one named by --node, read all of its copy of the log and repair
what is damaged: a file of the archive is copied from another node, a voter with a damaged
database is replaced by itself, one at a time and only while a majority of sound voters
stays. The nodes do the same by themselves for what they meet. Nothing that is damaged is
ever shown. Exit code 4 when something stays damaged: where no other node has a copy,
weft restore brings a backup back.`,
		Example: "  weft events repair\n  weft events repair --node node2 --wait 10m",
	}
	node := cmd.Flags().String("node", "", "only this node, by name or id")
	wait := cmd.Flags().Duration("wait", 5*time.Minute, "how long a replacement is waited for")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		names := []string{*node}
		if *node == "" {
			all, err := c.Nodes(cmd.Context(), client.At{})
			if err != nil {
				return err
			}
			names = nil
			for _, n := range all.Value.Items {
				if n.State != "removed" && n.State != "down" {
					names = append(names, n.Name)
				}
			}
		}
		left := 0
		for _, name := range names {
			sound, err := repairNode(cmd, c, name, *wait)
			if err != nil {
				return err
			}
			if !sound {
				left++
			}
		}
		if left > 0 {
			return &degraded{fmt.Sprintf("the log is damaged on %d of %d nodes", left, len(names))}
		}
		return nil
	})
	return cmd
}

// repairNode repairs one node's copy, says how it goes, and tells whether it is sound in the end.
func repairNode(
	cmd *cobra.Command, c *client.Client, name string, wait time.Duration,
) (sound bool, err error) {
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), oneLine(fmt.Sprintf("node/"+name+": "+format, args...)))
		}
	}
	r, err := c.RepairLog(cmd.Context(), name)
	if err != nil {
		return false, err
	}
	v := r.Value
	if v.Sound {
		say("the log is sound")
		return true, err
	}
	say("the %s is damaged at position %s: %s", v.Part, first(v.Bad, "unknown"), v.Why)
	say("%s", v.Remedy)
	if v.Alone || v.Part != "database" || err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), wait)
	defer cancel()
	for was := "voter"; ctx.Err() == nil; {
		now, damaged, err := logState(ctx, c, name)
		if err == nil && now != was {
			say("%s", map[string]string{
				"": "its member is removed", "learner": "a new member copies the log", "voter": "it votes",
			}[now])
			was = now
		}
		if err == nil && !damaged && now == "voter" {
			// The word of the node itself: the list may not know of the damage yet.
			if r, err := c.RepairLog(ctx, name); err == nil && r.Value.Sound {
				say("repaired")
				return true, nil
			}
		}
		rest := time.NewTimer(repairLook)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
		}
	}
	say("not repaired within %s", wait)
	return false, err
}

// logState gives what a node is on the log, and whether its database is known to be damaged.
func logState(ctx context.Context, c *client.Client, name string) (string, bool, error) {
	d, err := c.LogDamage(ctx)
	if err != nil {
		return "", true, err
	}
	damaged := slices.ContainsFunc(d.Value.Items, func(d client.LogDamage) bool {
		return (d.Name == name || d.Node == name) && d.Part == "database"
	})
	all, err := c.Nodes(ctx, client.At{})
	if err != nil {
		return "", true, err
	}
	for _, n := range all.Value.Items {
		if n.Name == name || n.ID == name {
			return n.Vote, damaged, nil
		}
	}
	return "", damaged, nil
}
