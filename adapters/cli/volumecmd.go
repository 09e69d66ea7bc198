package cli

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func (t *tool) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Volumes: the disks that hosts attach",
		Long: `A volume is a disk. It belongs to an application and is named APP/NAME; NAME alone will
do while only one application has a volume of that name.`,
		Example: `  weft volume create disk1 --app web --size 10GiB
  weft volume show disk1
  weft volume resize web/disk1 --size 20GiB`,
	}
	cmd.AddCommand(t.volumeCreate(), t.listCommand(volumeKind()), t.volumeShow(), t.volumeResize(),
		t.snapshotCreate("snapshot NAME...", "Take a snapshot, as weft snapshot create does"),
		t.volumeClone(), t.volumeDelete())
	return cmd
}

func (t *tool) volumeCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a volume", Args: cobra.ExactArgs(1),
		Long: `Create a volume in an application, and the application too if it is not there: then
--template says which template it follows.

Sizes are binary: KiB, MiB, GiB, TiB. Space is taken as data is written.`,
		Example: `  weft volume create disk1 --app web --size 10GiB
  weft volume create disk1 --app web --template gold --size 10GiB
  weft volume create disk2 --app web --size 1TiB --logical-block 4096 --wait=false`,
	}
	var size sizeFlag
	f := cmd.Flags()
	app := f.String("app", "", "application that holds it (required)")
	f.Var(&size, "size", "size, such as 10GiB (required)")
	block := f.Int64("logical-block", 0, "sector size that hosts see: 512 or 4096")
	template := templateFlag(t, cmd)
	w := waitFlags(cmd, "it is online")
	form := changeOutput(cmd)
	for _, name := range []string{"app", "size"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flags stand above
		}
	}
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		body := client.VolumeBody{
			Name: args[0], Size: domain.Bytes(size), LogicalBlock: *block,
		}
		a, err := t.putVolume(cmd.Context(), c, *app, *template, body)
		if err != nil {
			return err
		}
		now, err := t.online(cmd.Context(), c, a, body.Name, w)
		if err != nil {
			return err
		}
		v, err := volumeOf(now, body.Name)
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{
			"volume/" + volumeRef(v), v.State, strings.Trim(v.NBD+", "+v.ISCSI, ", "), v,
		})
		next(cmd, "weft describe volume %s", volumeRef(v))
		return err
	})
	return cmd
}

// putVolume adds a volume to an application, making the application when it is not there.
func (t *tool) putVolume(ctx context.Context, c *client.Client, app, template string,
	body client.VolumeBody,
) (client.Reply[client.App], error) {
	was, err := c.App(ctx, app, client.At{Tenant: t.tenant})
	switch {
	case domain.IsKind(err, domain.NotFound):
		return c.CreateApp(ctx, client.AppBody{
			Name: app, Template: template, Volumes: []client.VolumeBody{body},
		}, t.change())
	case err != nil:
		return was, err
	}
	if name, _, _ := strings.Cut(template, "@"); name != "" && name != was.Value.Template {
		return was, &domain.Error{
			Kind: domain.Conflict, Ref: "app/" + app,
			Msg: fmt.Sprintf("it is there already and follows template %q, not %q",
				was.Value.Template, name),
			Remedy: "leave --template out, or name another application",
		}
	}
	return c.AddVolume(ctx, app, body, t.change())
}

// volume finds a volume by what a person calls it.
func (t *tool) volume(ctx context.Context, c *client.Client, name string) (client.Volume, error) {
	return t.volumeAt(ctx, c, name, "")
}

// volumeAt finds a volume as it was.
func (t *tool) volumeAt(ctx context.Context, c *client.Client, name, at string) (
	client.Volume, error,
) {
	r, err := c.Volumes(ctx, client.At{Tenant: t.tenant, At: at})
	if err != nil {
		return client.Volume{}, err
	}
	return pick("volume", r.Value.Items, name, volumeRef, func(v client.Volume) string { return v.ID })
}

func (t *tool) volumeShow() *cobra.Command {
	cmd := t.showCommand(volumeKind())
	cmd.Long = "Show one volume: its state, how to attach it, and where each demand comes from."
	cmd.Example = "  weft volume show web/disk1\n  weft volume show disk1 -o json"
	return cmd
}

func (t *tool) volumeResize() *cobra.Command {
	cmd := &cobra.Command{
		Use: "resize NAME --size SIZE", Short: "Change a volume's size", Args: cobra.ExactArgs(1),
		Long: `Change a volume's size. It grows while it is in use; hosts see the new size after a
rescan.

With --shrink it may become smaller: what stands beyond the new end is gone, but for
what snapshots hold. Shrink the file system inside first, and detach the volume: it is
taken from its hosts meanwhile, and while one uses it the command is refused, unless
--force says that hosts may lose the disk under them. A roll-back to a snapshot that is
larger needs the volume grown to that size first.`,
		Example: `  weft volume resize web/disk1 --size 20GiB
  weft volume resize web/disk1 --size 5GiB --shrink`,
		ValidArgsFunction: t.names(volumeKind()),
	}
	var size sizeFlag
	cmd.Flags().Var(&size, "size", "new size, such as 20GiB (required)")
	if err := cmd.MarkFlagRequired("size"); err != nil {
		panic(err) // the flag stands one line above
	}
	var how client.Resizing
	cmd.Flags().BoolVar(&how.Shrink, "shrink", false,
		"it may become smaller: what stands beyond the new end is gone")
	cmd.Flags().BoolVar(&how.Force, "force", false, "shrink it although hosts use it")
	w := waitFlags(cmd, "hosts see the new size")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		v, err := t.volume(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		how.Size = domain.Bytes(size)
		a, err := c.ResizeVolume(cmd.Context(), v.App, v.Name, how, t.change())
		if err != nil {
			return err
		}
		now, err := t.online(cmd.Context(), c, a, v.Name, w)
		if err != nil {
			return err
		}
		if v, err = volumeOf(now, v.Name); err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"volume/" + volumeRef(v), "resized", v.Size.String(), v})
	})
	return cmd
}

func (t *tool) volumeDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a volume with all its data", Args: cobra.ExactArgs(1),
		Long: `Delete a volume and all its data. A terminal is asked first, unless --yes says so; a
script is not asked.`,
		Example:           "  weft volume delete web/disk1",
		ValidArgsFunction: t.names(volumeKind()),
	}
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	w := waitFlags(cmd, "it is gone")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		v, err := t.volume(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		if err := confirm(cmd, *yes, "volume/"+volumeRef(v)); err != nil {
			return err
		}
		r, err := c.RemoveVolume(cmd.Context(), v.App, v.Name, t.change())
		if err != nil {
			return err
		}
		err = w.do(cmd.Context(), func(ctx context.Context) error {
			r.Value.State = "deleted"
			return c.Gone(ctx, r.Position, t.tenant, v.App, v.Name)
		})
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"volume/" + volumeRef(v), r.Value.State, "", r.Value})
	})
	return cmd
}

func (t *tool) describeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "describe volume|snapshot NAME", Short: "Tell all about a volume or a snapshot",
		Long: `Tell all about one volume in words: its state, what it demands and where each demand
comes from, and the commands that attach it. Or about one snapshot.

"Exclusive" is what no other volume or snapshot sees: what comes back when this one is
deleted. "Written" is what was written to it since the snapshot before, whoever sees it now.`,
		Example: "  weft describe volume web/disk1\n  weft describe snapshot web/disk1@before",
		Args:    cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string,
			cobra.ShellCompDirective,
		) {
			switch len(args) {
			case 0:
				return []string{"volume", "snapshot"}, cobra.ShellCompDirectiveNoFileComp
			case 1:
				k := volumeKind()
				if args[0] == "snapshot" {
					k = snapshotKind()
				}
				return t.live(cmd.Context(), k), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		var value any
		var text func() string
		var err error
		switch args[0] {
		case "volume":
			value, text, err = t.describeVolume(cmd.Context(), c, args[1])
		case "snapshot":
			value, text, err = t.describeSnapshot(cmd.Context(), c, args[1])
		default:
			return &usage{
				fmt.Errorf("only volumes and snapshots can be described, not %q", args[0]), cmd.CommandPath(),
			}
		}
		if err != nil {
			return err
		}
		if form.value != "text" {
			return show(cmd.OutOrStdout(), form.value, listing{value: value}, false)
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), text())
		return err
	})
	return cmd
}

// describeVolume gives all that is known of a volume, and a way to say it in words.
func (t *tool) describeVolume(ctx context.Context, c *client.Client, ref string) (
	value any, text func() string, err error,
) {
	v, err := t.volume(ctx, c, ref)
	if err != nil {
		return nil, nil, err
	}
	whole, err := c.Volume(ctx, v.ID, client.At{Tenant: t.tenant})
	if err != nil {
		return nil, nil, err
	}
	v = whole.Value // with what its node knows
	s := t.sharing(ctx, c, false, v.ID)
	value = struct {
		client.Volume
		*client.Sharing
	}{v, s}
	return value, func() string {
		name := t.called(ctx, c, "")
		v.Node, v.Device = name(v.Node), name(v.Device)
		return described(v, s)
	}, nil
}

// describeSnapshot gives all that is known of a snapshot, and a way to say it in words.
func (t *tool) describeSnapshot(ctx context.Context, c *client.Client, ref string) (
	value any, text func() string, err error,
) {
	x, err := t.snapshot(ctx, c, ref)
	if err != nil {
		return nil, nil, err
	}
	whole, err := c.Snapshot(ctx, x.ID, client.At{Tenant: t.tenant})
	if err != nil {
		return nil, nil, err
	}
	x = whole.Value
	s := t.sharing(ctx, c, true, x.ID)
	value = struct {
		client.Snapshot
		*client.Sharing
	}{x, s}
	return value, func() string {
		name := t.called(ctx, c, "")
		x.Node, x.Device = name(x.Node), name(x.Device)
		return describedSnapshot(x, s)
	}, nil
}

// sharing asks what a deletion gives back; nil where the node does not answer: the rest is true
// without it.
func (t *tool) sharing(ctx context.Context, c *client.Client, snapshot bool, id string,
) *client.Sharing {
	r, err := c.Sharing(ctx, snapshot, id, t.tenant)
	if err != nil {
		return nil
	}
	return &r.Value
}

// called gives what people call a node or a device by its id: its name, or its path and its id,
// since two nodes may have the same path. What is not known any more, or not to this caller, keeps
// its id.
func (t *tool) called(ctx context.Context, c *client.Client, at string) func(id string) string {
	known, when := map[string]string{}, client.At{Tenant: t.tenant, At: at}
	if list, err := c.Nodes(ctx, when); err == nil {
		for _, n := range list.Value.Items {
			known[n.ID] = n.Name
		}
	}
	if list, err := c.Devices(ctx, when); err == nil {
		for _, d := range list.Value.Items {
			known[d.ID] = d.Path + " (" + d.ID + ")"
		}
	}
	return func(id string) string { return first(known[id], id) }
}

// fields writes lines of a name and what is not empty.
func fields(b *strings.Builder) func(name, value string) {
	return func(name, value string) {
		if value != "" {
			fmt.Fprintf(b, "%-13s %s\n", name+":", oneLine(value))
		}
	}
}

// describedSnapshot tells about a snapshot in words.
func describedSnapshot(x client.Snapshot, s *client.Sharing) string {
	var b strings.Builder
	field := fields(&b)
	field("Snapshot", snapshotRef(x))
	field("Id", x.ID)
	field("State", strings.TrimSuffix(x.State+", "+x.Reason, ", "))
	if x.Taken != nil {
		field("Taken", x.Taken.Local().Format("2006-01-02 15:04:05"))
	}
	field("Rule", x.Every)
	field("Size", x.Size.String())
	field("Used", rounded(x.Used))
	field("Written", rounded(x.Own)+" since the snapshot before")
	field("Exclusive", exclusive(s))
	field("Node", x.Node)
	field("Device", x.Device)
	return b.String()
}

// exclusive tells what a deletion gives back.
func exclusive(s *client.Sharing) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%s, which comes back when it is deleted; others see %s, too",
		rounded(s.Exclusive), rounded(s.Common))
}

// described tells about a volume in words.
func described(v client.Volume, s *client.Sharing) string {
	var b strings.Builder
	field := fields(&b)
	state := v.State
	if v.Compliance.Reason != "" {
		state += ", " + v.Compliance.Reason
	}
	field("Volume", volumeRef(v))
	field("Id", v.ID)
	field("State", state)
	field("Compliance", v.Compliance.State)
	size := v.Size.String()
	if v.Actual != v.Size && v.Actual != 0 {
		size += " (hosts see " + v.Actual.String() + ")"
	}
	field("Size", size)
	field("Used", rounded(v.Used)+written(v))
	field("Exclusive", exclusive(s))
	if v.Snapshots > 0 {
		field("Snapshots", fmt.Sprintf("%d, which wrote %s", v.Snapshots, rounded(v.SnapshotOwn)))
	}
	if v.Saved > 0 {
		stored := v.Own + v.Shared
		field("Compressed", fmt.Sprintf("%s on the device, %s saved (%.2f to 1)", rounded(stored),
			rounded(v.Saved), float64(stored+v.Saved)/float64(max(stored, 1))))
	}
	field("Cloned from", v.Source)
	if v.Hosts > 0 {
		field("Hosts", itoa(v.Hosts)+" connections")
	}
	if v.Restore != "" {
		field("Roll-back", strings.TrimSuffix(v.Restore+", "+v.Refused, ", "))
	}
	field("Sectors", itoa(v.LogicalBlock)+" bytes")
	field("Durability", v.Durability)
	field("Node", v.Node)
	field("Device", v.Device)
	field("NBD", v.NBD)
	field("iSCSI", v.ISCSI)
	if len(v.Policy) > 0 {
		b.WriteString("Demands:\n")
		for _, p := range v.Policy {
			fmt.Fprintf(&b, "  %-24s %-14s from %s\n", p.Field, oneLine(p.Value), oneLine(p.From))
		}
	}
	if len(v.Ops) > 0 {
		b.WriteString("Since the node serves it:\n")
		for _, o := range v.Ops {
			fmt.Fprintf(&b, "  %-12s %d operations, %s, %d errors\n", o.Op, o.Count,
				rounded(domain.Bytes(o.Bytes)), o.Errors)
		}
	}
	if list := Attach(v.NBD, v.ISCSI); len(list) > 0 {
		b.WriteString("Attach:\n")
		for _, line := range list {
			b.WriteString("  " + line + "\n")
		}
	}
	return b.String()
}

// written tells how much of what a volume holds was written since its last snapshot.
func written(v client.Volume) string {
	if v.Shared == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s written since the last snapshot, %s before)", rounded(v.Own),
		rounded(v.Shared))
}

// Attach lists the commands that use a volume, given its URIs; first those that need no root.
func Attach(nbdURI, iscsiURI string) []string {
	var out []string
	n, err := url.Parse(nbdURI)
	nbd := nbdURI != "" && err == nil
	if nbd {
		out = append(out, "nbdinfo "+nbdURI,
			"fio --name=try --ioengine=nbd --uri="+nbdURI+
				" --rw=randwrite --bs=4k --iodepth=32 --size=64m --verify=crc32c")
	}
	i, err := url.Parse(iscsiURI)
	iscsi := iscsiURI != "" && err == nil
	if iscsi {
		out = append(out, "qemu-io -f raw -c 'write -P 0x5a 0 1M' -c 'read -P 0x5a 0 1M' "+iscsiURI)
	}
	if nbd {
		out = append(out, fmt.Sprintf("sudo nbd-client -N %s %s %s /dev/nbd0",
			strings.TrimPrefix(n.Path, "/"), n.Hostname(), n.Port()))
	}
	if iscsi {
		iqn, _, _ := strings.Cut(strings.TrimPrefix(i.Path, "/"), "/")
		out = append(out, fmt.Sprintf("sudo iscsiadm -m discovery -t sendtargets -p %s", i.Host),
			fmt.Sprintf("sudo iscsiadm -m node -T %s -p %s --login", iqn, i.Host))
	}
	return out
}

func (t *tool) whyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "why volume/NAME", Short: "Say why a volume is where it is, or nowhere",
		Long: `Say what was decided about a volume and why: the devices that were looked at, what
excluded some of them, how the others compared, and what would help if none was left. --at shows
the decision that held then, also of volumes that are gone.`,
		Example: "  weft why volume/disk1\n  weft why volume/web/disk1 --at 20 -o json",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string,
			cobra.ShellCompDirective,
		) {
			var out []string
			if len(args) == 0 {
				for _, n := range t.live(cmd.Context(), volumeKind()) {
					out = append(out, "volume/"+n)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	var at momentFlag
	atFlag(cmd, &at)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		if !strings.HasPrefix(args[0], "volume/") {
			return &usage{
				fmt.Errorf("say which volume: weft why volume/%s", args[0]), cmd.CommandPath(),
			}
		}
		v, err := t.volumeAt(cmd.Context(), c, args[0], at.text)
		if err != nil {
			return err
		}
		d, err := c.WhyVolume(cmd.Context(), v.ID, client.At{Tenant: t.tenant, At: at.text})
		if err != nil {
			return err
		}
		if form.value != "text" {
			return show(cmd.OutOrStdout(), form.value, listing{value: d.Value}, false)
		}
		name, why := t.called(cmd.Context(), c, at.text), d.Value
		v.Node, v.Device = name(v.Node), name(v.Device)
		why.Node, why.Device = name(why.Node), name(why.Device)
		for i := range why.Candidates {
			why.Candidates[i].Device = name(why.Candidates[i].Device)
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), reasons(v, why))
		return err
	})
	return cmd
}

// damagesShown is how many damaged places of a volume are listed.
const damagesShown = 20

// harms lists what of a volume is damaged.
func harms(b *strings.Builder, list []client.Damage) {
	if len(list) > 0 {
		fmt.Fprintf(b, "known to be damaged or lost, until it is written: %d places\n", len(list))
	}
	for i, x := range list {
		if i == damagesShown {
			fmt.Fprintf(b, "  %d more: weft node scrub status\n", len(list)-i)
			return
		}
		of := ""
		if x.Snapshot != "" {
			of = " of snapshot " + x.Snapshot
		}
		fmt.Fprintf(b, "  %s %d%s: %s\n", x.Part, x.Block, of, oneLine(x.Detail))
	}
}

// reasons tells a decision in words.
func reasons(v client.Volume, d client.Decision) string {
	var b strings.Builder
	if d.Placed {
		fmt.Fprintf(&b, "volume/%s was placed at position %s of the log\n", volumeRef(v), d.Position)
		fmt.Fprintf(&b, "  on device %s of node %s\n", d.Device, d.Node)
		if v.Device != "" && v.Device != d.Device {
			fmt.Fprintf(&b, "it has moved since, with its snapshots and clones, off a device that was "+
				"to leave:\n  it stands on device %s of node %s\n", v.Device, v.Node)
			fmt.Fprintf(&b, "  when: weft events list --streams volume-%s --types VolumeMoved\n", v.ID)
		}
	} else {
		fmt.Fprintf(&b, "volume/%s could not be placed at position %s of the log\n", volumeRef(v),
			d.Position)
	}
	fmt.Fprintf(&b, "devices looked at: %d\n", d.Considered)
	for _, r := range d.Rejects {
		fmt.Fprintf(&b, "  %d excluded: %s\n", r.Count, oneLine(r.Why))
	}
	for _, c := range d.Candidates {
		fmt.Fprintf(&b, "  device %s: score %d of 1000%s%s\n", c.Device, c.Score,
			map[bool]string{true: ", suspect"}[c.Suspect],
			map[bool]string{true: ", no room for its minima"}[c.Crowded])
	}
	for _, r := range d.Remedies {
		fmt.Fprintf(&b, "what would help: %s\n", oneLine(r))
	}
	harms(&b, d.Damages)
	if len(d.Policy) > 0 {
		b.WriteString("it demands\n")
		for _, p := range d.Policy {
			from := p.From
			if len(p.Overridden) > 0 {
				from += ", over " + strings.Join(p.Overridden, ", ")
			}
			fmt.Fprintf(&b, "  %-24s %-14s from %s\n", p.Field, oneLine(p.Value), oneLine(from))
		}
	}
	return b.String()
}
