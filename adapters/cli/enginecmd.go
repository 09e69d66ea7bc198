package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// engineLook is the pause between two looks at how far a move is.
const engineLook = 500 * time.Millisecond

func (t *tool) eventsEngine() *cobra.Command {
	cmd := &cobra.Command{
		Use: "engine", Short: "Say which event log takes changes of intent", Args: cobra.NoArgs,
		Long: `Say which event log takes changes of intent, the embedded one or an EventStoreDB or
KurrentDB, how far a move between them is, how many events are still to be copied out, and
what is wrong with the copies. Exit code 4 when something is.`,
		Example: "  weft events engine\n  weft events engine -o json",
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.Engine(cmd.Context())
		if err != nil {
			return err
		}
		if form.value == "text" {
			_, err = fmt.Fprint(cmd.OutOrStdout(), engineText(r.Value))
		} else {
			err = show(cmd.OutOrStdout(), form.value, listing{value: r.Value}, false)
		}
		if err == nil && r.Value.Reason != "" {
			err = &degraded{r.Value.Reason}
		}
		return err
	})
	return cmd
}

func engineText(e client.Engine) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Engine:    %s\nState:     %s\n", e.Engine, e.State)
	if e.Reason != "" {
		fmt.Fprintf(&b, "           %s\n", oneLine(e.Reason))
	}
	if e.To != "" {
		fmt.Fprintf(&b, "Moving:    to %s, %s\n", e.To, moveText(e))
	}
	if e.To == "" && e.Through != "" {
		fmt.Fprintf(&b, "Copied:    the log up to %s, %d events to go\n", e.Through, e.Behind)
	}
	if e.Migrated != "" {
		fmt.Fprintf(&b, "Moved:     at position %s\n", e.Migrated)
	}
	return b.String()
}

// moveText says how far a move is, how fast it goes, and whether it comes nearer.
func moveText(e client.Engine) string {
	s := fmt.Sprintf("%d events so far, %d to go", e.Events, e.Rest)
	if e.Pace > 0 {
		s += fmt.Sprintf(", %d/s while the log grows by %d/s", e.Pace, e.Growth)
	}
	switch {
	case e.State == "closed":
		s += "; changes of intent wait for the last copy"
	case e.Pace > e.Growth:
		left := time.Duration(float64(e.Rest) / float64(e.Pace-e.Growth) * float64(time.Second))
		s += fmt.Sprintf("; about %s", left.Round(time.Second))
	}
	return s
}

func (t *tool) eventsMigrate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "migrate", Short: "Let another event log take changes of intent", Args: cobra.NoArgs,
		Long: `Copy the whole log to an EventStoreDB or KurrentDB, compare every event there by id,
revision and content, and let it take changes of intent from then on. The log goes on meanwhile;
changes of intent are refused for the last copy alone, a moment as a rule; where the log grows as
fast as it is copied, for up to 30 s at a time until it is there. Cut short, it is gone on with by
the node that leads.

The cluster's own log stays where it is and stays what views are made of. What nodes, devices,
plans and volumes tell is decided by it and copied out, so an event store that is down stops
changes of intent and nothing else. --to embedded goes back, also when the store is gone:
nothing that was acknowledged is lost, and calls a move off that is under way.

A password has no place in the address: keep user and password on each node with weft secret
set, and name them with --secret.`,
		Example: `  weft events migrate --to esdb://kurrent:2113?tls=true --secret kurrent --dry-run
  weft events migrate --to esdb://kurrent:2113?tls=true --secret kurrent
  weft events migrate --to embedded`,
	}
	var b client.EngineBody
	f := cmd.Flags()
	f.StringVar(&b.To, "to", "", "embedded, or an address without a password")
	f.StringVar(&b.Secret, "secret", "", "name of user and password (weft secret set, on each node)")
	f.BoolVar(&b.DryRun, "dry-run", false, "compare and count, and change nothing")
	if err := cmd.MarkFlagRequired("to"); err != nil {
		panic(err) // the flag stands above
	}
	wait := waitFlags(cmd, "the other log takes changes of intent")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.MoveEngine(cmd.Context(), b, t.change())
		if err != nil {
			return err
		}
		o := outcome{ref: "engine/" + b.To, what: r.Value.State, doc: r.Value}
		if n := r.Value.Copy; n != nil {
			o.what, o.note = "compared", fmt.Sprintf("%d events of %d streams, %s; %d are there, "+
				"%d would be copied", n.Events, n.Streams, rounded(n.Bytes), n.Present, n.Missing)
			return tell(cmd, form.value, o)
		}
		err = wait.do(cmd.Context(), func(ctx context.Context) error {
			return engineMoved(ctx, cmd, c, b.To, &o)
		})
		if err != nil {
			return err
		}
		return tell(cmd, form.value, o)
	})
	return cmd
}

// engineMoved waits until a log takes changes of intent. A move that came to nothing is Suspended.
func engineMoved(
	ctx context.Context, cmd *cobra.Command, c *client.Client, to string, o *outcome,
) error {
	for said := uint64(0); ; {
		r, err := c.Engine(ctx)
		if err != nil {
			return err
		}
		e := r.Value
		switch {
		case e.Engine == to && e.To == "" && e.State != "returning":
			o.what, o.doc = "takes changes of intent", e
			return nil
		case e.To == "" && e.Engine != to:
			return &domain.Error{
				Kind: domain.Suspended, Ref: "engine/" + to, Msg: first(e.Reason, "the move was called off"),
				Remedy: "weft events engine says how things stand",
			}
		case e.Events > said && terminal(cmd.ErrOrStderr()):
			said = e.Events
			_, _ = fmt.Fprintln(cmd.ErrOrStderr(), moveText(e))
		}
		rest := time.NewTimer(engineLook)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			return ctx.Err()
		}
	}
}
