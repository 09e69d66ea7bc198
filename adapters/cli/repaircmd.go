package cli

import (
	"context"
	"fmt"
	"io"
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
weft restore brings a backup back, or where a node is down and could not be checked.`,
		Example: "  weft events repair\n  weft events repair --node node2 --wait 10m\n" +
			"  weft events repair -o json",
	}
	node := cmd.Flags().String("node", "", "only this node, by name or id")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json")
	wait := cmd.Flags().Duration("wait", 5*time.Minute, "how long a replacement is waited for")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, down := &repair{wait: *wait, out: cmd.OutOrStdout()}, 0
		if form.value == "json" {
			r.out = cmd.ErrOrStderr()
		}
		names := []string{*node}
		if *node == "" {
			all, err := c.Nodes(cmd.Context(), client.At{})
			if err != nil {
				return err
			}
			names = nil
			for _, n := range all.Value.Items {
				switch n.State {
				case "removed":
				case "down":
					down++
					r.say(n.Name, "it is down and was not checked")
					r.list = append(r.list, repairedNode{Node: n.Name, Why: "the node is down"})
				default:
					names = append(names, n.Name)
				}
			}
		}
		left := 0
		for _, name := range names {
			sound, err := r.node(cmd.Context(), c, name)
			if err != nil {
				return err
			}
			if !sound {
				left++
			}
		}
		if form.value == "json" && r.err == nil {
			r.err = writeJSON(cmd.OutOrStdout(), struct {
				Items []repairedNode `json:"items"`
			}{r.list})
		}
		switch {
		case r.err != nil:
			return r.err
		case left > 0:
			return &degraded{fmt.Sprintf("the log is damaged on %d of %d nodes", left, len(names))}
		case down > 0:
			return &degraded{fmt.Sprintf("%d nodes are down and were not checked", down)}
		}
		return nil
	})
	return cmd
}

// repair is a repair of the nodes' copies under way.
type repair struct {
	wait time.Duration // for a replacement
	out  io.Writer     // takes the progress
	err  error         // of out
	list []repairedNode
}

// repairedNode says what became of one node's copy.
type repairedNode struct {
	Node   string `json:"node"`
	Sound  bool   `json:"sound"`
	Part   string `json:"part,omitempty"` // that was found damaged
	Bad    string `json:"bad,omitempty"`  // the first position that was
	Why    string `json:"why,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

func (r *repair) say(node, format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintln(r.out, oneLine("node/"+node+": "+fmt.Sprintf(format, args...)))
	}
}

// node repairs one node's copy, says how it goes, and tells whether it is sound in the end.
func (r *repair) node(ctx context.Context, c *client.Client, name string) (bool, error) {
	got, err := c.RepairLog(ctx, name)
	if err != nil {
		return false, err
	}
	v := got.Value
	x := repairedNode{
		Node: name, Sound: v.Sound, Part: v.Part, Bad: v.Bad, Why: v.Why, Remedy: v.Remedy,
	}
	switch {
	case v.Sound:
		r.say(name, "the log is sound")
	default:
		r.say(name, "the %s is damaged at position %s: %s", v.Part, first(v.Bad, "unknown"), v.Why)
		r.say(name, "%s", v.Remedy)
		if !v.Alone && v.Part == "database" {
			x.Sound = r.replaced(ctx, c, name)
		}
	}
	r.list = append(r.list, x)
	return x.Sound, nil
}

// replaced waits until a voter with a damaged database was replaced, and tells whether it was.
func (r *repair) replaced(ctx context.Context, c *client.Client, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	for was := "voter"; ctx.Err() == nil; {
		now, damaged, err := logState(ctx, c, name)
		if err == nil && now != was {
			r.say(name, "%s", map[string]string{
				"": "its member is removed", "learner": "a new member copies the log", "voter": "it votes",
			}[now])
			was = now
		}
		if err == nil && !damaged && now == "voter" {
			// The word of the node itself: the list may not know of the damage yet.
			if got, err := c.RepairLog(ctx, name); err == nil && got.Value.Sound {
				r.say(name, "repaired")
				return true
			}
		}
		rest := time.NewTimer(repairLook)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
		}
	}
	r.say(name, "not repaired within %s", r.wait)
	return false
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
