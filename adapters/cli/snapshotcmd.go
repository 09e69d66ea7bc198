package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func snapshotRef(s client.Snapshot) string { return s.App + "/" + s.Volume + "@" + s.Name }

func snapshotKind() kind {
	type T = client.Snapshot
	list := func(c *client.Client, ctx context.Context, at client.At) (
		client.Reply[client.List[T]], error,
	) {
		r, err := c.Snapshots(ctx, at)
		return client.Reply[client.List[T]]{
			Value:    client.List[T]{Items: r.Value.Items, Position: r.Value.Position},
			Position: r.Position, ETag: r.ETag,
		}, err
	}
	return kindOf("snapshot", "snapshots", list, snapshotRef, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: snapshotRef},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "TAKEN", cell: func(x T) string {
			if x.Taken == nil {
				return "-"
			}
			return x.Taken.Local().Format("2006-01-02 15:04:05")
		}},
		col[T]{name: "RULE", cell: func(x T) string { return first(x.Every, "-") }},
		col[T]{name: "SIZE", cell: func(x T) string { return x.Size.String() }},
		col[T]{name: "USED", cell: func(x T) string { return rounded(x.Used) }},
		col[T]{name: "WROTE", cell: func(x T) string { return rounded(x.Own) }},
		col[T]{name: "REASON", cell: func(x T) string { return first(x.Reason, "-") }, wide: true},
		col[T]{name: "GENERATION", cell: func(x T) string { return itoa(x.Generation) }, wide: true},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

func (t *tool) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", Short: "Snapshots: what volumes were at one instant",
		Long: `A snapshot is what a volume was at one instant. It is named APP/VOLUME@NAME, takes no time
and, until the volume is written to, no space. Hosts go on writing while it is taken.

Snapshots of several volumes of an application are taken at one instant, so that a
database with its log on another volume is consistent. A template takes them by the
clock: weft template create gold --snapshots 1h=24. Such a snapshot is no event of the
log; it is named after its rule and the time it was due (UTC).

A volume's snapshots and clones may be deleted in any order: each keeps what it sees. A
snapshot outlives its volume, and goes with its application.`,
		Example: `  weft snapshot create web/disk1 --name before
  weft snapshot create --app web --name before   # all volumes at one instant
  weft snapshot list
  weft volume clone web/disk1@before copy --app web
  weft snapshot restore web/disk1@before
  weft snapshot diff web/disk1@before web/disk1
  weft snapshot delete web/disk1@before`,
	}
	cmd.AddCommand(t.snapshotCreate("create [VOLUME...]", "Take a snapshot"),
		t.listCommand(snapshotKind()), t.showCommand(snapshotKind()), t.snapshotDelete(),
		t.snapshotRestore(), t.snapshotDiff(), t.snapshotMap())
	return cmd
}

// snapshotCreate is `weft snapshot create` and `weft volume snapshot`.
func (t *tool) snapshotCreate(use, short string) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short,
		Long: `Take a snapshot of volumes of one application, all of them at one instant: those named, or
all of --app. At most 25 volumes, all on one node.

It holds everything that was acknowledged to hosts before, and is complete when the
command returns. What a file system or a database still holds in a host's memory is not in
it: flush or freeze it first where that matters.`,
		Example: "  weft snapshot create web/disk1 --name before\n" +
			"  weft snapshot create web/data web/log --name before\n" +
			"  weft snapshot create --app web",
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string,
			cobra.ShellCompDirective,
		) {
			return t.live(cmd.Context(), volumeKind()), cobra.ShellCompDirectiveNoFileComp
		},
	}
	if verb == "snapshot" {
		cmd.Args = cobra.MinimumNArgs(1)
	}
	name := cmd.Flags().String("name", "", "name, unique in the application (default: one is made up)")
	app := cmd.Flags().String("app", "", "all volumes of this application")
	w := waitFlags(cmd, "it is taken")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		of, body, err := t.members(cmd.Context(), c, *app, args)
		if err != nil {
			return err
		}
		if of == "" {
			return &usage{fmt.Errorf("name volumes, or an application by --app"), cmd.CommandPath()}
		}
		body.Name = *name
		r, err := c.SnapshotApp(cmd.Context(), of, body, t.change())
		if err != nil {
			return err
		}
		items := r.Value.Items
		if len(items) > 0 {
			err = w.do(cmd.Context(), func(ctx context.Context) (err error) {
				items, err = c.Taken(ctx, r.Position, t.tenant, items[0].Group)
				return err
			})
		}
		if err != nil {
			return err
		}
		if err := tellSnapshots(cmd, form.value, items, "taken"); err != nil || len(items) == 0 {
			return err
		}
		next(cmd, "weft volume clone %s NAME --app %s", snapshotRef(items[0]), of)
		return nil
	})
	return cmd
}

// members finds the volumes named, all of one application; with none, all of app.
func (t *tool) members(ctx context.Context, c *client.Client, app string, names []string) (
	string, client.SnapshotBody, error,
) {
	var b client.SnapshotBody
	for _, n := range names {
		v, err := t.volume(ctx, c, n)
		if err != nil {
			return "", b, err
		}
		if app != "" && v.App != app {
			return "", b, &domain.Error{
				Kind: domain.Invalid, Ref: "volume/" + volumeRef(v),
				Msg:    "it is not of app " + app + ": one snapshot is of one application",
				Remedy: "take a snapshot of each application by itself",
			}
		}
		app = v.App
		b.Volumes = append(b.Volumes, v.Name)
	}
	return app, b, nil
}

// tellSnapshots writes what became of snapshots.
func tellSnapshots(cmd *cobra.Command, form string, items []client.Snapshot, what string) error {
	if form == "json" || form == "yaml" {
		return tell(cmd, form, outcome{doc: client.SnapshotList{Items: items}})
	}
	for _, x := range items {
		if x.State != "ready" && what == "taken" {
			what = "asked for"
		}
		if err := tell(cmd, form, outcome{ref: "snapshot/" + snapshotRef(x), what: what}); err != nil {
			return err
		}
	}
	return nil
}

// snapshots finds what a reference names: one snapshot, or by APP@NAME all that were taken
// together.
func (t *tool) snapshots(ctx context.Context, c *client.Client, ref string) (
	[]client.Snapshot, error,
) {
	r, err := c.Snapshots(ctx, client.At{Tenant: t.tenant})
	if err != nil {
		return nil, err
	}
	ref = strings.TrimPrefix(ref, "snapshot/")
	var all []client.Snapshot
	for _, x := range r.Value.Items {
		if x.App+"@"+x.Name == ref {
			all = append(all, x)
		}
	}
	if len(all) > 0 {
		return all, nil
	}
	x, err := pick("snapshot", r.Value.Items, ref, snapshotRef,
		func(x client.Snapshot) string { return x.ID })
	if err != nil && len(r.Value.Silent) > 0 {
		return nil, domain.Errorf(domain.Unavailable,
			"snapshot %s is not in the log, and these nodes do not answer: %s", ref,
			strings.Join(r.Value.Silent, ", "))
	}
	return []client.Snapshot{x}, err
}

// snapshot finds one snapshot.
func (t *tool) snapshot(ctx context.Context, c *client.Client, ref string) (
	client.Snapshot, error,
) {
	all, err := t.snapshots(ctx, c, ref)
	if err != nil {
		return client.Snapshot{}, err
	}
	if len(all) > 1 {
		return client.Snapshot{}, &domain.Error{
			Kind: domain.Invalid, Ref: "snapshot/" + ref,
			Msg:    fmt.Sprintf("%d volumes have it", len(all)),
			Remedy: "name one, such as " + snapshotRef(all[0]),
		}
	}
	return all[0], nil
}

func (t *tool) snapshotDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME...", Short: "Delete snapshots", Args: cobra.MinimumNArgs(1),
		Long: `Delete snapshots. Volumes, clones and other snapshots stay as they are; the space that
only the deleted one saw comes back. APP@NAME deletes all that were taken together.
Repeating a deletion says that there is no such snapshot (exit code 1).`,
		Example: "  weft snapshot delete web/disk1@before\n" +
			"  weft snapshot delete web@before --yes",
		ValidArgsFunction: t.names(snapshotKind()),
	}
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	w := waitFlags(cmd, "it is gone")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		var list []client.Snapshot
		for _, ref := range args {
			some, err := t.snapshots(cmd.Context(), c, ref)
			if err != nil {
				return err
			}
			list = append(list, some...)
		}
		if err := confirm(cmd, *yes, fmt.Sprintf("%d snapshots, such as %s,", len(list),
			snapshotRef(list[0]))); err != nil {
			return err
		}
		var last domain.Position
		for _, x := range list {
			r, err := c.DeleteSnapshot(cmd.Context(), x.ID, t.change())
			if err != nil {
				return err
			}
			last = r.Position
		}
		what := "deleting"
		err := w.do(cmd.Context(), func(ctx context.Context) error {
			for _, x := range list {
				if err := c.SnapshotGone(ctx, last, t.tenant, x.ID); err != nil {
					return err
				}
			}
			what = "deleted"
			return nil
		})
		if err != nil {
			return err
		}
		return tellSnapshots(cmd, form.value, list, what)
	})
	return cmd
}

func (t *tool) snapshotRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore SNAPSHOT", Short: "Roll a volume back to a snapshot", Args: cobra.ExactArgs(1),
		Long: `Make a volume what it was when the snapshot was taken. What was written since is lost,
unless another snapshot holds it: take one first if you may want it back. Younger snapshots
stay, so a roll-back can itself be undone. A volume that has grown since keeps its size;
what is beyond the snapshot reads zero.

It is refused while hosts use the volume. --force takes the disk from them; they must not go
on with what they have cached: unmount, and mount again afterwards. A terminal is asked
first, unless --yes says so; a script is not asked.`,
		Example: "  weft snapshot restore web/disk1@before\n" +
			"  weft snapshot restore disk1@before --force --yes",
		ValidArgsFunction: t.names(snapshotKind()),
	}
	force := cmd.Flags().Bool("force", false, "also while hosts use the volume")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	w := waitFlags(cmd, "it is rolled back and online")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		x, err := t.snapshot(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		if err := confirm(cmd, *yes, "What was written to "+x.App+"/"+x.Volume+" since"); err != nil {
			return err
		}
		r, err := c.RestoreVolume(cmd.Context(), x.App, x.Volume,
			client.RestoreBody{Snapshot: x.ID, Force: *force}, t.change())
		if err != nil {
			return err
		}
		v, what := r.Value, "rolling back"
		err = w.do(cmd.Context(), func(ctx context.Context) (err error) {
			what = "rolled back"
			v, err = c.Restored(ctx, r.Position, t.tenant, r.Value.ID)
			return err
		})
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"volume/" + volumeRef(v), what, "to " + snapshotRef(x), v})
	})
	return cmd
}

// rangesDoc is what diff and map print as JSON and YAML.
type rangesDoc struct {
	Of    string         `json:"of"`
	Since string         `json:"since,omitempty"`
	Size  domain.Bytes   `json:"size"`
	Bytes domain.Bytes   `json:"bytes"` // of the ranges shown, together
	Items []client.Range `json:"items"`
	Next  *int64         `json:"next,omitempty"`
}

// spanFlags let a page of ranges be chosen.
func spanFlags(cmd *cobra.Command) (from, to *sizeFlag, limit *int) {
	from, to = new(sizeFlag), new(sizeFlag)
	cmd.Flags().Var(from, "from", "begin there, such as 1GiB")
	cmd.Flags().Var(to, "to", "end there (default: the end)")
	limit = cmd.Flags().Int("limit", 0,
		"most ranges to show; the answer says where to go on (default: all)")
	return from, to, limit
}

// gather asks page after page until the limit or the end.
func gather(limit int, s client.Span, ask func(client.Span) (client.Reply[client.Ranges], error)) (
	rangesDoc, error,
) {
	d := rangesDoc{Items: []client.Range{}}
	for {
		s.Limit = 0
		if limit > 0 {
			s.Limit = min(limit-len(d.Items), rangesPage)
		}
		r, err := ask(s)
		if err != nil {
			return d, err
		}
		d.Size, d.Next = r.Value.Size, r.Value.Next
		for _, x := range r.Value.Items {
			d.Items = append(d.Items, x)
			d.Bytes += domain.Bytes(x.Length)
		}
		if d.Next == nil || limit > 0 && len(d.Items) >= limit {
			return d, nil
		}
		s.From = *d.Next
	}
}

// rangesPage is the most ranges of one page.
const rangesPage = 4096

func showRanges(w io.Writer, form string, d rangesDoc) error {
	l := listing{
		value: d, head: []column{{name: "OFFSET"}, {name: "LENGTH"}, {name: "KIND"}},
	}
	for _, x := range d.Items {
		l.rows = append(l.rows, []string{itoa(x.Offset), itoa(x.Length), x.Kind})
		l.names = append(l.names, itoa(x.Offset)+"+"+itoa(x.Length))
	}
	return show(w, form, l, false)
}

// subject finds a snapshot or a volume.
func (t *tool) subject(ctx context.Context, c *client.Client, ref string) (
	id, name string, snapshot bool, err error,
) {
	if strings.Contains(ref, "@") || strings.HasPrefix(ref, "snapshot/") {
		x, err := t.snapshot(ctx, c, ref)
		return x.ID, snapshotRef(x), true, err
	}
	v, err := t.volume(ctx, c, ref)
	if domain.IsKind(err, domain.NotFound) {
		if x, serr := t.snapshot(ctx, c, ref); serr == nil {
			return x.ID, snapshotRef(x), true, nil
		}
	}
	return v.ID, volumeRef(v), false, err
}

func (t *tool) snapshotDiff() *cobra.Command {
	cmd := &cobra.Command{
		Use: "diff OLDER NEWER", Short: "Show where two snapshots differ", Args: cobra.ExactArgs(2),
		Long: `Show the ranges where NEWER, a snapshot or a volume, reads other than OLDER, a snapshot:
what a backup has to copy. It is told from the index, without reading data, in bytes and
multiples of 4096. KIND says what NEWER has there: data, written zeros, or a hole. A range
that was written again with the same bytes is shown too.`,
		Example: `  weft snapshot diff web/disk1@monday web/disk1@tuesday
  weft snapshot diff web/disk1@monday web/disk1 -o json
  weft snapshot diff web/disk1@monday web/disk1@tuesday --limit 100 --from 1GiB`,
		ValidArgsFunction: t.names(snapshotKind()),
	}
	from, to, limit := spanFlags(cmd)
	form := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml", "name")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		old, err := t.snapshot(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		id, name, snap, err := t.subject(cmd.Context(), c, args[1])
		if err != nil {
			return err
		}
		d, err := gather(*limit, client.Span{Tenant: t.tenant, From: int64(*from), To: int64(*to)},
			func(s client.Span) (client.Reply[client.Ranges], error) {
				return c.Changes(cmd.Context(), snap, id, old.ID, s)
			})
		if err != nil {
			return err
		}
		d.Of, d.Since = name, snapshotRef(old)
		return showRanges(cmd.OutOrStdout(), form.value, d)
	})
	return cmd
}

func (t *tool) snapshotMap() *cobra.Command {
	cmd := &cobra.Command{
		Use: "map NAME", Short: "Show where a snapshot or volume holds data", Args: cobra.ExactArgs(1),
		Long: `Show the ranges where a snapshot or a volume holds data or written zeros, from the index,
without reading data: what a first backup has to copy.`,
		Example:           "  weft snapshot map web/disk1@before\n  weft snapshot map web/disk1 -o json",
		ValidArgsFunction: t.names(snapshotKind()),
	}
	from, to, limit := spanFlags(cmd)
	form := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml", "name")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		id, name, snap, err := t.subject(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		d, err := gather(*limit, client.Span{Tenant: t.tenant, From: int64(*from), To: int64(*to)},
			func(s client.Span) (client.Reply[client.Ranges], error) {
				return c.Allocated(cmd.Context(), snap, id, s)
			})
		if err != nil {
			return err
		}
		d.Of = name
		return showRanges(cmd.OutOrStdout(), form.value, d)
	})
	return cmd
}

func (t *tool) volumeClone() *cobra.Command {
	cmd := &cobra.Command{
		Use: "clone SNAPSHOT NAME --app APP", Short: "Make a volume that begins as a snapshot",
		Args: cobra.ExactArgs(2),
		Long: `Make a volume that begins as a snapshot: writable at once, whatever the size. It shares
what neither has written since, stands on the device of its source, and lives on when the
source is deleted. --size makes it larger; what is beyond reads zero.`,
		Example: `  weft volume clone web/disk1@before copy --app web
  weft volume clone web/disk1@before disk1 --app test --template gold --size 20GiB`,
		ValidArgsFunction: t.names(snapshotKind()),
	}
	var size sizeFlag
	cmd.Flags().Var(&size, "size", "size (default: the snapshot's)")
	app := cmd.Flags().String("app", "", "application that shall hold it (default: the snapshot's)")
	template := templateFlag(t, cmd)
	w := waitFlags(cmd, "it is online")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		x, err := t.snapshot(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		a, err := t.putVolume(cmd.Context(), c, first(*app, x.App), *template, client.VolumeBody{
			Name: args[1], Size: domain.Bytes(size), Source: x.ID,
		})
		if err != nil {
			return err
		}
		now, err := t.online(cmd.Context(), c, a, args[1], w)
		if err != nil {
			return err
		}
		v, err := volumeOf(now, args[1])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			"volume/" + volumeRef(v), "cloned from " + snapshotRef(x),
			strings.Trim(v.NBD+", "+v.ISCSI, ", "), v,
		})
	})
	return cmd
}
