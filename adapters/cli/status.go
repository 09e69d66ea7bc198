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

// statusDoc is `weft status -o json`.
type statusDoc struct {
	Status   string           `json:"status"` // "ok" or "degraded"
	Reasons  []string         `json:"reasons,omitempty"`
	API      string           `json:"api"`
	Version  string           `json:"version"`
	Cluster  string           `json:"cluster"`
	Position string           `json:"position"`
	Failing  []client.Failing `json:"failing,omitempty"`
	Archive  *logDoc          `json:"archive,omitempty"` // absent without the right to see it
	Nodes    int              `json:"nodes"`
	Devices  int              `json:"devices"`
	Apps     int              `json:"apps"`
	Volumes  map[string]int   `json:"volumes"` // by state
	Used     domain.Bytes     `json:"used"`
	Usable   domain.Bytes     `json:"usable"`
}

// logDoc is the event log in the summary.
type logDoc struct {
	State    string       `json:"state"`
	Hot      uint64       `json:"hot"`
	Sealed   string       `json:"sealed"`
	Segments int          `json:"segments"`
	Bytes    domain.Bytes `json:"bytes"`
}

func (t *tool) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say in a few lines how all is", Args: cobra.NoArgs,
		Long: `Say in a few lines how the node, its devices and the volumes are. Exit code 4 when
something is degraded: a device failed, a volume is not what its policy demands and cannot
become so by itself, or what a node does by itself fails: an outlet, the archive, a copy of
the log, a scrub, room on a device; with the error, since when, and which position of the log.`,
		Example: "  weft status\n  weft status -o json",
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		d, err := t.status(cmd.Context(), c)
		if err != nil {
			return err
		}
		if form.value == "text" {
			_, err = fmt.Fprint(cmd.OutOrStdout(), d.text(t.colours(cmd)))
		} else {
			err = show(cmd.OutOrStdout(), form.value, listing{value: d}, false)
		}
		if err == nil && d.Status != "ok" {
			err = &degraded{strings.Join(d.Reasons, "; ")}
		}
		return err
	})
	return cmd
}

// status asks for all that the summary shows.
func (t *tool) status(ctx context.Context, c *client.Client) (statusDoc, error) {
	h, err := c.Health(ctx)
	if err != nil {
		return statusDoc{}, err
	}
	at := client.At{Tenant: t.tenant}
	nodes, err := c.Nodes(ctx, at)
	if err != nil {
		return statusDoc{}, err
	}
	devices, err := c.Devices(ctx, at)
	if err != nil {
		return statusDoc{}, err
	}
	apps, err := c.Apps(ctx, at)
	if err != nil {
		return statusDoc{}, err
	}
	d := statusDoc{
		Status: h.Value.Status, API: c.URL(), Version: h.Value.Version, Cluster: h.Value.Cluster,
		Position: h.Value.Position, Nodes: len(nodes.Value.Items), Devices: len(devices.Value.Items),
		Apps: len(apps.Value.Items), Volumes: map[string]int{},
	}
	if h.Value.Reason != "" {
		d.Reasons = append(d.Reasons, h.Value.Reason)
	}
	switch a, err := c.Archive(ctx); {
	case err == nil:
		v := a.Value
		d.Archive = &logDoc{v.State, v.Hot, v.Sealed, v.Segments, v.Bytes}
		if v.State == "late" || v.State == "full" || v.State == "stuck" {
			d.Status = "degraded"
			d.Reasons = append(d.Reasons, first(v.Reason, "the event log's archive is "+v.State))
		}
	case !domain.IsKind(err, domain.Denied) && !domain.IsKind(err, domain.NotFound):
		d.Status, d.Reasons = "degraded", append(d.Reasons, "event log: "+err.Error())
	}
	if err := d.failing(ctx, c); err != nil {
		return statusDoc{}, err
	}
	for _, x := range devices.Value.Items {
		if x.Class != "nvram" { // what stands there counts where it will go
			d.Used, d.Usable = d.Used+x.Used, d.Usable+x.Usable
		}
		if x.Corruptions > 0 {
			d.Status = "degraded"
			d.Reasons = append(d.Reasons, fmt.Sprintf("device %s: %d corrupt blocks", x.Path, x.Corruptions))
		}
		if x.Damaged > 0 {
			d.Status = "degraded"
			d.Reasons = append(d.Reasons, fmt.Sprintf(
				"device %s: the scrub found %d damaged places", x.Path, x.Damaged,
			))
		}
	}
	for _, a := range apps.Value.Items {
		for _, v := range a.Volumes {
			d.Volumes[v.State]++
			if v.Compliance.State == "violated" {
				d.Status = "degraded"
				d.Reasons = append(d.Reasons, "volume/"+volumeRef(v)+": "+v.Compliance.Reason)
			}
		}
	}
	return d, nil
}

// failing asks what the nodes do by themselves and cannot do now. It is silent without the right to
// see it.
func (d *statusDoc) failing(ctx context.Context, c *client.Client) error {
	r, err := c.Failing(ctx)
	if domain.IsKind(err, domain.Denied) || domain.IsKind(err, domain.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d.Failing = r.Value.Items
	for _, f := range d.Failing {
		d.Status, d.Reasons = "degraded", append(d.Reasons, failingText(f))
	}
	for _, n := range r.Value.Silent {
		d.Status, d.Reasons = "degraded", append(d.Reasons, "node "+n+" does not say what fails there")
	}
	return nil
}

func failingText(f client.Failing) string {
	s := f.What + " fails"
	if f.Node != "" {
		s += " on node " + f.Node
	}
	if f.Since != nil {
		s += " since " + f.Since.Format(time.RFC3339)
	}
	return s + " at position " + f.Position + ": " + f.Error
}

func (d statusDoc) text(colour bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Status:   %s\n", painted(d.Status, colour))
	for _, r := range d.Reasons {
		fmt.Fprintf(&b, "          %s\n", oneLine(r))
	}
	fmt.Fprintf(&b, "Node:     weft %s at %s\n", d.Version, d.API)
	fmt.Fprintf(&b, "Log:      position %s", d.Position)
	if a := d.Archive; a != nil {
		fmt.Fprintf(&b, "; %d events in the database, %d files archived", a.Hot, a.Segments)
	}
	b.WriteByte('\n')
	fmt.Fprintf(&b, "Devices:  %d, %s of %s used\n", d.Devices, rounded(d.Used), rounded(d.Usable))
	total := 0
	var states []string
	for _, s := range []string{"online", "offline", "placing", "deleting"} {
		if n := d.Volumes[s]; n > 0 {
			states = append(states, fmt.Sprintf("%d %s", n, s))
			total += n
		}
	}
	volumes := first(strings.Join(states, ", "), itoa(total))
	fmt.Fprintf(&b, "Volumes:  %s in %d apps\n", volumes, d.Apps)
	return b.String()
}

func (t *tool) deviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "device", Short: "Devices that hold the data", Long: "The devices that hold the data.",
		Example: "  weft device list -o wide",
	}
	cmd.AddCommand(t.listCommand(deviceKind()))
	return cmd
}

// versions is `weft version -o json`.
type versions struct {
	Client string `json:"client"`
	Node   string `json:"node,omitempty"`
}

// nodeTime bounds how long `weft version` waits for a node.
const nodeTime = time.Second

func (t *tool) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version of this program and of the node", Args: cobra.NoArgs,
		Long:    "Show the version of this program and, where one answers, of the node.",
		Example: "  weft version",
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := versions{Client: t.p.Version}
		// A node is no condition for knowing one's own version.
		if c, err := t.connect(); err == nil {
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), nodeTime)
			defer cancel()
			if h, err := c.Health(ctx); err == nil {
				v.Node = h.Value.Version
			}
		}
		if form.value != "text" {
			return show(cmd.OutOrStdout(), form.value, listing{value: v}, false)
		}
		text := "weft " + v.Client
		if v.Node != "" {
			text += ", node " + v.Node
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), oneLine(text))
		return err
	}
	return cmd
}
