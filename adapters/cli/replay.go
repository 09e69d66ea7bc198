package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

func (t *tool) eventsReplay() *cobra.Command {
	var to momentFlag
	cmd := &cobra.Command{
		Use: "replay", Short: "Fold the log anew and tell what it comes to", Args: cobra.NoArgs,
		Long: `Make the node fold every view anew, from the first event up to --to, beside the views
that serve, and tell how many events that took, how long, and the hash of each state. State follows
from the log alone: the same position gives the same hashes at any time and on any node.`,
		Example: `  weft events replay
  weft events replay --to 40
  weft events replay --to 2026-11-25T12:00:00Z -o json`,
	}
	cmd.Flags().Var(&to, "to", "fold up to this position or time (default: the end of the log)")
	form := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.Replay(cmd.Context(), to.text)
		if err != nil {
			return err
		}
		l := listing{value: r.Value, head: []column{
			{name: "VIEW"}, {name: "EVENTS"}, {name: "SECONDS"}, {name: "HASH"},
		}}
		for _, v := range r.Value.Views {
			l.rows = append(l.rows, []string{
				fmt.Sprintf("%s@%d", v.View, v.Version), fmt.Sprint(v.Events),
				fmt.Sprintf("%.3f", v.Seconds), v.Hash,
			})
			l.names = append(l.names, v.View)
		}
		return show(cmd.OutOrStdout(), form.value, l, t.colours(cmd))
	})
	return cmd
}

// difference is what became of one object between two moments.
type difference struct {
	Object string        `json:"object"`
	Change string        `json:"change"` // added, removed, changed
	Fields []fieldChange `json:"fields,omitempty"`
}

// fieldChange is a field of an object that changed. A field that is absent is null.
type fieldChange struct {
	Field string `json:"field"`
	From  any    `json:"from"`
	To    any    `json:"to"`
}

func (t *tool) eventsDiff() *cobra.Command {
	cmd := &cobra.Command{
		Use: "diff A [B]", Short: "Show what changed between two moments", Args: cobra.RangeArgs(1, 2),
		Long: `Show which objects came, went and changed between two moments, field by field. A
moment is a position of the log, a time, or how long ago; without B it is now.`,
		Example: `  weft events diff 12 40
  weft events diff 2h
  weft events diff 2026-11-25T12:00:00Z 2026-11-25T13:00:00Z -o json`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		var a, b momentFlag
		for i, m := range []*momentFlag{&a, &b} {
			if i >= len(args) {
				break
			}
			if err := m.Set(args[i]); err != nil {
				return &usage{err, cmd.CommandPath()}
			}
		}
		if b.text == "" { // the present as the past shows it: without what only a node knows
			h, err := c.Health(cmd.Context())
			if err != nil {
				return err
			}
			b.text = h.Position.String()
		}
		list, err := t.differences(cmd.Context(), c, a.text, b.text)
		if err != nil {
			return err
		}
		if form.value != "text" {
			return show(cmd.OutOrStdout(), form.value, listing{value: list}, false)
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), diffText(list))
		return err
	})
	return cmd
}

// differences compares all objects of all kinds at two moments, by kind and name.
func (t *tool) differences(ctx context.Context, c *client.Client, a, b string) (
	[]difference, error,
) {
	out := []difference{}
	for _, k := range kinds() {
		if k.many == "events" {
			continue
		}
		before, err := t.objects(ctx, c, k, a)
		if err != nil {
			return nil, err
		}
		after, err := t.objects(ctx, c, k, b)
		if err != nil {
			return nil, err
		}
		for _, name := range union(before, after) {
			was, had := before[name]
			is, has := after[name]
			d := difference{Object: name, Change: "changed"}
			switch {
			case !had:
				d.Change = "added"
			case !has:
				d.Change = "removed"
			default:
				if d.Fields = compare(was, is); len(d.Fields) == 0 {
					continue
				}
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// objects lists a kind at a moment: name to its fields, with the path of each as its key.
func (t *tool) objects(ctx context.Context, c *client.Client, k kind, at string) (
	map[string]map[string]any, error,
) {
	l, err := k.list(ctx, c, client.At{Tenant: t.tenant, At: at})
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(l.value)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Items []map[string]any `json:"items"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	out := map[string]map[string]any{}
	for i, item := range doc.Items {
		flat := map[string]any{}
		flatten(flat, "", item)
		out[l.names[i]] = flat
	}
	return out, nil
}

// flatten writes every leaf of a value under its path.
func flatten(out map[string]any, path string, v any) {
	switch x := v.(type) {
	case map[string]any:
		for k, v := range x {
			flatten(out, strings.TrimPrefix(path+"."+k, "."), v)
		}
	case []any:
		for i, v := range x {
			flatten(out, fmt.Sprintf("%s[%d]", path, i), v)
		}
	default:
		out[path] = v
	}
}

func union[V any](a, b map[string]V) []string {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(keys)
	return slices.Compact(keys)
}

func compare(was, is map[string]any) []fieldChange {
	var out []fieldChange
	for _, f := range union(was, is) {
		if was[f] != is[f] {
			out = append(out, fieldChange{f, was[f], is[f]})
		}
	}
	return out
}

// diffText tells differences in lines.
func diffText(list []difference) string {
	if len(list) == 0 {
		return "nothing changed\n"
	}
	var b strings.Builder
	for _, d := range list {
		fmt.Fprintf(&b, "%s %s\n", d.Object, d.Change)
		for _, f := range d.Fields {
			fmt.Fprintf(&b, "    %s: %s -> %s\n", f.Field, shownValue(f.From), shownValue(f.To))
		}
	}
	return b.String()
}

func shownValue(v any) string {
	if v == nil {
		return "-"
	}
	return cmp.Or(oneLine(fmt.Sprint(v)), `""`)
}
