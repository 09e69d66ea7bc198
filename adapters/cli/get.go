package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// kind is one kind of object that get shows.
type kind struct {
	one, many string
	list      func(ctx context.Context, c *client.Client, at client.At) (listing, error)
	find      func(ctx context.Context, c *client.Client, at client.At, name string) (listing, error)
}

// col is a column with the way to its cell.
type col[T any] struct {
	name string
	cell func(T) string
	wide bool
}

// kindOf makes a kind from a call that lists it. Objects are found by name, by reference or by id.
func kindOf[T any](one, many string,
	list func(*client.Client, context.Context, client.At) (client.Reply[client.List[T]], error),
	ref, id func(T) string, cols ...col[T],
) kind {
	k := kind{one: one, many: many}
	shape := func(items []T) listing {
		var l listing
		for _, c := range cols {
			l.head = append(l.head, column{c.name, c.wide})
		}
		for _, x := range items {
			row := make([]string, len(cols))
			for i, c := range cols {
				row[i] = oneLine(c.cell(x))
			}
			l.rows, l.names = append(l.rows, row), append(l.names, one+"/"+ref(x))
		}
		return l
	}
	k.list = func(ctx context.Context, c *client.Client, at client.At) (listing, error) {
		r, err := list(c, ctx, at)
		if err != nil {
			return listing{}, err
		}
		l := shape(r.Value.Items)
		l.value = r.Value
		return l, nil
	}
	k.find = func(ctx context.Context, c *client.Client, at client.At, name string) (listing, error) {
		r, err := list(c, ctx, at)
		if err != nil {
			return listing{}, err
		}
		x, err := pick(one, r.Value.Items, name, ref, id)
		if err != nil {
			return listing{}, err
		}
		l := shape([]T{x})
		l.value = x
		return l, nil
	}
	return k
}

// pick finds one object. A reference "app/name" may be shortened to "name" while that is clear.
func pick[T any](one string, items []T, name string, ref, id func(T) string) (T, error) {
	name = strings.TrimPrefix(name, one+"/")
	var found []T
	for _, x := range items {
		r := ref(x)
		if id(x) == name || r == name {
			return x, nil
		}
		if _, last, ok := strings.Cut(r, "/"); ok && last == name {
			found = append(found, x)
		}
	}
	var none T
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return none, &domain.Error{
			Kind: domain.NotFound, Ref: one + "/" + name, Msg: "no such " + one,
			Remedy: "see which there are: weft get " + one + "s",
		}
	}
	var refs []string
	for _, x := range found {
		refs = append(refs, one+"/"+ref(x))
	}
	return none, &domain.Error{
		Kind: domain.Invalid, Ref: one + "/" + name,
		Msg:    fmt.Sprintf("%d %ss bear this name", len(refs), one),
		Remedy: "say which: " + strings.Join(refs, ", "),
	}
}

func volumeRef(v client.Volume) string { return v.App + "/" + v.Name }

// kinds lists all that get knows.
func kinds() []kind {
	return []kind{
		templateKind(), appKind(), volumeKind(), snapshotKind(), nodeKind(), deviceKind(), planKind(),
		tenantKind(), eventKind(),
	}
}

func templateKind() kind {
	type T = client.Template
	return kindOf("template", "templates", (*client.Client).Templates,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "VERSION", cell: func(x T) string { return itoa(x.Version) }},
		col[T]{name: "REPLICAS", cell: func(x T) string {
			if x.Intent == nil || x.Intent.Availability == nil || x.Intent.Availability.Replicas == 0 {
				return "-"
			}
			return itoa(x.Intent.Availability.Replicas)
		}},
		col[T]{name: "DESCRIPTION", cell: func(x T) string { return x.Description }},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

func appKind() kind {
	type T = client.App
	return kindOf("app", "apps", (*client.Client).Apps,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "TEMPLATE", cell: func(x T) string {
			if x.Version != 0 {
				return x.Template + "@" + itoa(x.Version)
			}
			return first(x.Template, "-")
		}},
		col[T]{name: "VOLUMES", cell: func(x T) string { return itoa(len(x.Volumes)) }},
		col[T]{name: "ONLINE", cell: func(x T) string {
			n := 0
			for _, v := range x.Volumes {
				if v.State == "online" {
					n++
				}
			}
			return itoa(n)
		}},
		col[T]{name: "STATE", cell: func(x T) string {
			if x.Deleting {
				return "deleting"
			}
			return "ok"
		}},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

func volumeKind() kind {
	type T = client.Volume
	k := kindOf("volume", "volumes", (*client.Client).Volumes, volumeRef,
		func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: volumeRef},
		col[T]{name: "SIZE", cell: func(x T) string { return x.Size.String() }},
		col[T]{name: "USED", cell: func(x T) string { return rounded(x.Used) }},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "COMPLIANCE", cell: func(x T) string { return x.Compliance.State }},
		col[T]{name: "REASON", cell: func(x T) string { return first(x.Compliance.Reason, "-") }},
		col[T]{
			name: "DURABILITY", cell: func(x T) string { return first(x.Durability, "-") }, wide: true,
		},
		col[T]{name: "NBD", cell: func(x T) string { return first(x.NBD, "-") }, wide: true},
		col[T]{name: "ISCSI", cell: func(x T) string { return first(x.ISCSI, "-") }, wide: true},
		col[T]{name: "SNAPSHOTS", cell: func(x T) string { return itoa(x.Snapshots) }, wide: true},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
	find := k.find
	k.find = func(ctx context.Context, c *client.Client, at client.At, name string) (listing, error) {
		l, err := find(ctx, c, at, name)
		v, ok := l.value.(T)
		if err != nil || !ok {
			return l, err
		}
		whole, err := c.Volume(ctx, v.ID, at) // with what its node knows
		l.value = whole.Value
		return l, err
	}
	return k
}

func nodeKind() kind {
	type T = client.Node
	return kindOf("node", "nodes", (*client.Client).Nodes,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "VOTE", cell: func(x T) string { return first(x.Vote, "-") }},
		col[T]{name: "VERSION", cell: func(x T) string { return x.Version }},
		col[T]{name: "STARTS", cell: func(x T) string { return fmt.Sprint(x.Incarnation) }},
		col[T]{name: "LEADER", cell: func(x T) string { return yesNo(x.Leader) }},
		col[T]{name: "DEVICES", cell: func(x T) string { return itoa(x.Devices) }},
		col[T]{name: "LOCATION", cell: func(x T) string { return first(x.Location, "-") }},
		col[T]{name: "PEER", cell: func(x T) string { return x.Peer }, wide: true},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

func deviceKind() kind {
	type T = client.Device
	return kindOf("device", "devices", (*client.Client).Devices,
		func(x T) string { return x.ID }, func(x T) string { return x.Path },
		col[T]{name: "PATH", cell: func(x T) string { return x.Path }},
		col[T]{name: "CLASS", cell: func(x T) string { return x.Class }},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "SIZE", cell: func(x T) string { return rounded(x.Bytes) }},
		col[T]{name: "USABLE", cell: func(x T) string { return rounded(x.Usable) }},
		col[T]{name: "USED", cell: func(x T) string { return rounded(x.Used) }},
		col[T]{name: "ACKNOWLEDGED", cell: func(x T) string { return first(x.Mode, "-") }},
		col[T]{name: "GARBAGE", cell: func(x T) string { return rounded(x.Garbage) }, wide: true},
		col[T]{name: "CORRUPT", cell: func(x T) string { return itoa(x.Corruptions) }, wide: true},
		col[T]{name: "DAMAGED", cell: func(x T) string { return itoa(x.Damaged) }, wide: true},
		col[T]{name: "LEFT", cell: left, wide: true},
		col[T]{name: "REASON", cell: func(x T) string { return first(x.Reason, "-") }, wide: true},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

// left tells how much is to be copied off a device that leaves, and how much was.
func left(x client.Device) string {
	if x.State != "leaving" {
		return "-"
	}
	return rounded(x.Left) + " of " + rounded(x.Moved+x.Left)
}

func planKind() kind {
	type T = client.Plan
	return kindOf("plan", "plans", (*client.Client).Plans,
		func(x T) string { return x.ID }, func(x T) string { return x.Position },
		col[T]{name: "POSITION", cell: func(x T) string { return x.Position }},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "DONE", cell: func(x T) string { return itoa(x.Completed) }},
		col[T]{name: "FAILED", cell: func(x T) string { return itoa(x.Failed) }},
		col[T]{name: "STEPS", cell: func(x T) string {
			var parts []string
			for _, s := range x.Steps {
				parts = append(parts, s.Kind+" "+s.Name)
			}
			return strings.Join(parts, ", ")
		}},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

func tenantKind() kind {
	type T = client.Tenant
	return kindOf("tenant", "tenants", (*client.Client).Tenants,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "PARENT", cell: func(x T) string { return orDash(x.Parent) }},
		col[T]{name: "QUOTA", cell: func(x T) string {
			if x.Quota.Bytes == 0 {
				return "-"
			}
			return x.Quota.Bytes.String()
		}},
		col[T]{name: "VOLUMES", cell: func(x T) string {
			if x.Quota.Volumes == 0 {
				return "-"
			}
			return itoa(x.Quota.Volumes)
		}},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }})
}

// eventKind differs from the others: events are many, never change, and are found by position.
func eventKind() kind {
	list := func(c *client.Client, ctx context.Context, at client.At) (
		client.Reply[client.List[client.Event]], error,
	) {
		r, err := c.Events(ctx, client.Selection{Limit: eventsShown, Newest: true})
		slices.Reverse(r.Value.Items)
		return r, err
	}
	k := kindOf("event", "events", list, func(e client.Event) string { return e.Position },
		func(e client.Event) string { return e.ID }, eventColumns()...)
	k.find = func(ctx context.Context, c *client.Client, _ client.At, name string) (listing, error) {
		return findEvent(ctx, c, strings.TrimPrefix(name, "event/"))
	}
	return k
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// rounded shows an amount in three digits or so; JSON has it exactly.
func rounded(b domain.Bytes) string {
	for _, u := range []domain.Bytes{domain.TiB, domain.GiB, domain.MiB, domain.KiB} {
		if b >= u && b%u != 0 {
			return fmt.Sprintf("%.1f%s", float64(b)/float64(u), strings.TrimLeft(u.String(), "1"))
		}
	}
	return b.String()
}

func shortTime(at time.Time) string { return at.Local().Format("2006-01-02 15:04:05.000") }

// getCommand is `weft get`.
func (t *tool) getCommand() *cobra.Command {
	var at momentFlag
	var names []string
	for _, k := range kinds() {
		names = append(names, k.many)
	}
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "Show objects, as they are or as they were",
		Long: `Show objects of a kind: ` + strings.Join(names, ", ") + `.

With --at WHEN you see the state as it was then. WHEN is a position of the event log, which weft
events list shows; a time, such as 2026-11-25T12:00:00Z or "2026-11-25 12:00" of your own clock; or
how long ago, such as 90m. What only the running node knows (addresses, bytes used)
is not part of the past and is left out there.`,
		Example: `  weft get volumes
  weft get volumes -o wide
  weft get volumes --at 12
  weft get volumes --at 2h
  weft get apps web -o yaml
  weft get devices -o json`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string,
			cobra.ShellCompDirective,
		) {
			if len(args) == 0 {
				return names, cobra.ShellCompDirectiveNoFileComp
			}
			for _, k := range kinds() {
				if len(args) == 1 && k.many == args[0] {
					return t.live(cmd.Context(), k), cobra.ShellCompDirectiveNoFileComp
				}
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	form := choose(cmd, "output", "o", "form of the answer", "table", "wide", "json", "yaml", "name")
	atFlag(cmd, &at)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, k := range kinds() {
			if k.many == args[0] {
				return t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
					return t.get(cmd, c, k, args[1:], at.text, form.value)
				})(cmd, args)
			}
		}
		return &usage{
			fmt.Errorf("%q is no kind: %s", args[0], strings.Join(names, ", ")), cmd.CommandPath(),
		}
	}
	return cmd
}

func (t *tool) get(cmd *cobra.Command, c *client.Client, k kind, args []string,
	at, form string,
) error {
	if at != "" && k.many == "events" {
		return domain.Errorf(domain.Invalid, "events have no past: use weft events list --since")
	}
	when := client.At{Tenant: t.tenant, At: at}
	if len(args) == 0 {
		l, err := k.list(cmd.Context(), c, when)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), form, l, t.colours(cmd))
	}
	l, err := k.find(cmd.Context(), c, when, args[0])
	if err != nil {
		return err
	}
	return show(cmd.OutOrStdout(), form, l, t.colours(cmd))
}

// listCommand is `weft KIND list`: the same as get, where one looks for it.
func (t *tool) listCommand(k kind) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List " + k.many, Args: cobra.NoArgs,
		Long: "List " + k.many + ". The same as: weft get " + k.many + ".",
		Example: "  weft " + k.one + " list\n  weft " + k.one + " list -o wide\n  weft " + k.one +
			" list -o json",
	}
	form := choose(cmd, "output", "o", "form of the answer", "table", "wide", "json", "yaml", "name")
	var at momentFlag
	atFlag(cmd, &at)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		return t.get(cmd, c, k, nil, at.text, form.value)
	})
	return cmd
}

// showCommand is `weft KIND show NAME`.
func (t *tool) showCommand(k kind) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show one " + k.one, Args: cobra.ExactArgs(1),
		Long:              "Show one " + k.one + " with all that is known of it.",
		Example:           "  weft " + k.one + " show NAME\n  weft " + k.one + " show NAME -o json",
		ValidArgsFunction: t.names(k),
	}
	form := choose(cmd, "output", "o", "form of the answer", "yaml", "json", "table", "wide", "name")
	var at momentFlag
	if k.many != "events" {
		atFlag(cmd, &at)
	}
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		return t.get(cmd, c, k, args, at.text, form.value)
	})
	return cmd
}

// completionTime bounds the wait of a person who pressed the tab key.
const completionTime = time.Second

// live asks the node for names to complete. No node, no names: never an error at a tab key.
func (t *tool) live(ctx context.Context, k kind) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	c, err := t.connect()
	if err != nil {
		return nil
	}
	defer c.Close()
	l, err := k.list(ctx, c, client.At{Tenant: t.tenant})
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range l.names {
		out = append(out, strings.TrimPrefix(n, k.one+"/"))
	}
	return out
}

// names completes the first argument with the names of a kind.
func (t *tool) names(k kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return t.live(cmd.Context(), k), cobra.ShellCompDirectiveNoFileComp
	}
}
