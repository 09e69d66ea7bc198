package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// eventsShown is how many events a list shows when nobody says.
const eventsShown = 100

func eventColumns() []col[client.Event] {
	type T = client.Event
	return []col[T]{
		{name: "POSITION", cell: func(e T) string { return e.Position }},
		{name: "TIME", cell: func(e T) string { return shortTime(e.Created) }},
		{name: "TYPE", cell: func(e T) string { return e.Type }},
		{name: "STREAM", cell: func(e T) string { return e.Stream }},
		{name: "ACTOR", cell: func(e T) string { return actor(e.Actor) }},
		{name: "DATA", cell: func(e T) string { return clip(string(e.Data)) }, wide: true},
	}
}

// actor drops the identifier of a node's own actors: the list would be all identifiers.
func actor(s string) string {
	kind, rest, _ := strings.Cut(s, "/")
	if _, err := domain.ParseUUID(rest); err == nil {
		return kind
	}
	return s
}

// clip keeps a wide column on a screen.
func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func findEvent(ctx context.Context, c *client.Client, name string) (listing, error) {
	p, err := domain.ParsePosition(name)
	if err != nil {
		return listing{}, err
	}
	r, err := c.Event(ctx, p)
	if err != nil {
		return listing{}, err
	}
	l := listing{value: r.Value, names: []string{"event/" + r.Value.Position}}
	row := make([]string, 0, len(eventColumns()))
	for _, x := range eventColumns() {
		l.head = append(l.head, column{x.name, x.wide})
		row = append(row, oneLine(x.cell(r.Value)))
	}
	l.rows = [][]string{row}
	return l, nil
}

func (t *tool) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "The event log: all that ever happened",
		Long: `Every change is an event in one log, and all state is folded from it. Events bear a
position; weft get KIND --at POSITION shows the state as it was there.`,
		Example: `  weft events list
  weft events show 12
  weft events verify
  weft events watch --types Volume`,
	}
	one := t.showCommand(eventKind())
	one.Use, one.ValidArgsFunction = "show POSITION", cobra.NoFileCompletions
	one.Example = "  weft events show 12\n  weft events show 12 -o json"
	cmd.AddCommand(t.eventsList(), one, t.eventsVerify(), t.eventsRepair(), t.eventsWatch(),
		t.eventsReplay(), t.eventsDiff(), t.archiveCommand(), t.eventsEngine(), t.eventsMigrate())
	return cmd
}

// selection are the flags that select events.
type selection struct {
	types, streams []string
	since          positionFlag
}

func selectFlags(cmd *cobra.Command) *selection {
	s := &selection{}
	f := cmd.Flags()
	f.StringSliceVar(&s.types, "types", nil, "only types that begin so; comma separated")
	f.StringSliceVar(&s.streams, "streams", nil, "only streams that begin so; comma separated")
	f.Var(&s.since, "since", "only events after this position")
	return s
}

func (t *tool) eventsList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List events", Args: cobra.NoArgs,
		Long: `List events, the oldest first. --newest takes them from the end of the log, newest
first; --since goes on after a position.`,
		Example: `  weft events list
  weft events list --newest --limit 20
  weft events list --newest --at 2h
  weft events list --since 40 --types Volume,AppInstance -o json`,
	}
	s := selectFlags(cmd)
	limit := cmd.Flags().Int("limit", eventsShown, "at most this many, 1 to 1000")
	newest := cmd.Flags().Bool("newest", false, "the newest first")
	var at momentFlag
	cmd.Flags().Var(&at, "at", "as if the log ended at this position, or at this time")
	form := choose(cmd, "output", "o", "form of the answer", "table", "wide", "json", "yaml", "name")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		sel := client.Selection{
			Types: s.types, Streams: s.streams, Limit: *limit, Newest: *newest, At: at.text,
		}
		if s.since.p != nil {
			sel.Since = *s.since.p
		}
		k := kindOf("event", "events", func(c *client.Client, ctx context.Context, _ client.At) (
			client.Reply[client.List[client.Event]], error,
		) {
			return c.Events(ctx, sel)
		}, func(e client.Event) string { return e.Position },
			func(e client.Event) string { return e.ID }, eventColumns()...)
		l, err := k.list(cmd.Context(), c, client.At{})
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), form.value, l, t.colours(cmd))
	})
	return cmd
}

func (t *tool) eventsVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify", Short: "Read the whole log again and check it", Args: cobra.NoArgs,
		Long: `Make the node read its whole event log again and check the checksum of every record
and the chain of hashes. Exit code 4 when a record is not sound. A node whose log is damaged does
not start: --offline reads the log in its data folder without it.`,
		Example: "  weft events verify\n  weft events verify --offline --data-dir /srv/weft",
	}
	offline := cmd.Flags().Bool("offline", false, "read the data folder of a node that is stopped")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	online := t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.Verify(cmd.Context())
		if err != nil {
			return err
		}
		return showVerdict(cmd, form.value, r.Value)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !*offline {
			return online(cmd, args)
		}
		def := client.DefaultDataDir(t.p.Env, os.Getuid())
		v, err := t.p.VerifyLog(cmd.Context(), first(t.dataDir, client.CurrentDataDir(def)))
		if err != nil {
			return err
		}
		return showVerdict(cmd, form.value, v)
	}
	return cmd
}

// showVerdict tells what a verification found; damage is an answer and an exit code.
func showVerdict(cmd *cobra.Command, form string, v client.Verdict) (err error) {
	switch {
	case form != "text":
		err = show(cmd.OutOrStdout(), form, listing{value: v}, false)
	case v.Sound:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "the log is sound up to position %s\n", v.Checked)
	default:
		_, err = fmt.Fprintf(cmd.OutOrStdout(),
			"the log is DAMAGED at position %s%s: %s\nit is sound up to position %s\n",
			first(v.Bad, "unknown"), place(v), oneLine(v.Why), v.Checked)
		if err == nil && v.Remedy != "" {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), v.Remedy)
		}
	}
	if err == nil && !v.Sound {
		err = &degraded{"the event log is damaged"}
	}
	return err
}

// place says in what part and on which node the log is damaged, where that is known.
func place(v client.Verdict) (s string) {
	if v.Part != "" {
		s = " in the " + v.Part
	}
	if v.Node != "" {
		s += " of node " + v.Node
	}
	return s
}

// errEnough ends a watch that has shown what was asked for.
var errEnough = errors.New("enough")

func (t *tool) eventsWatch() *cobra.Command {
	cmd := &cobra.Command{
		Use: "watch", Short: "Follow the log", Args: cobra.NoArgs,
		Long: `Follow the event log from its present end, or from --since. With -o json every line
is one event. The watch survives restarts of the node that last some seconds.`,
		Example: `  weft events watch
  weft events watch --since 0 --types Volume -o json`,
	}
	s := selectFlags(cmd)
	count := cmd.Flags().Int("count", 0, "end after this many events (default: never)")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		w := client.Watched{Types: s.types, Streams: s.streams}
		if s.since.p != nil {
			w.Since = *s.since.p
		} else {
			h, err := c.Health(cmd.Context())
			if err != nil {
				return err
			}
			w.Since = h.Position
		}
		shown := 0
		err := c.Watch(cmd.Context(), w, func(e client.Event) error {
			if err := printEvent(cmd, form.value, e); err != nil {
				return err
			}
			if shown++; shown == *count {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) || cmd.Context().Err() != nil {
			return nil // what was asked for, or the person's own wish
		}
		return err
	})
	return cmd
}

func printEvent(cmd *cobra.Command, form string, e client.Event) error {
	if form == "json" {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
		return err
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), oneLine(fmt.Sprintf("%s  %s  %s  %s  %s", e.Position,
		shortTime(e.Created), e.Type, actor(e.Actor), clip(string(e.Data)))))
	return err
}
