package cli

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// applied is one object's line of `weft apply -o json`.
type applied struct {
	Object string `json:"object"`
	Result string `json:"result"` // "created", "changed", "unchanged", "deleted", "absent"
}

// appliedDoc is `weft apply -o json`.
type appliedDoc struct {
	Items []applied `json:"items"`
}

// manifestFlag names the manifest.
func manifestFlag(cmd *cobra.Command) *string {
	file := cmd.Flags().StringP("file", "f", "", "manifest, or - for standard input (required)")
	if err := cmd.MarkFlagRequired("file"); err != nil {
		panic(err) // the flag stands one line above
	}
	return file
}

// manifestOf reads what -f names.
func manifestOf(cmd *cobra.Command, file string) ([]object, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, &domain.Error{Kind: domain.NotFound, Msg: "the manifest", Err: err}
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	return readManifest(in)
}

func (t *tool) applyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Bring templates and applications to the form a file describes",
		Long: `Create what a manifest describes, or bring it to that form. A manifest is YAML or JSON
and may hold several documents, of kind Template or App. All of it is checked before the
first change, and every fault is listed.

What a manifest leaves out stays: a volume is deleted only when you say so. Applying the
same manifest again changes nothing.`,
		Example: `  weft apply -f web.yaml
  weft apply -f - <<END
  kind: Template
  name: gold
  intent:
    availability: {replicas: 1}
  ---
  kind: App
  name: web
  template: gold
  volumes:
    - {name: disk1, size: 10GiB}
  END`,
		Args: cobra.NoArgs,
	}
	file := manifestFlag(cmd)
	w := waitFlags(cmd, "all volumes are online")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		// The manifest comes first: its faults can be told without a node.
		objects, err := manifestOf(cmd, *file)
		if err != nil {
			return err
		}
		return t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return t.apply(cmd, c, objects, w, form.value)
		})(cmd, args)
	}
	return cmd
}

func (t *tool) apply(cmd *cobra.Command, c *client.Client, objects []object, w *waiting,
	form string,
) error {
	var done appliedDoc
	var apps []client.Reply[client.App]
	for _, o := range objects {
		var result string
		var err error
		if o.template != nil {
			result, err = t.applyTemplate(cmd.Context(), c, *o.template)
		} else {
			var a client.Reply[client.App]
			if a, result, err = t.applyApp(cmd.Context(), c, *o.app); err == nil {
				apps = append(apps, a)
			}
		}
		if err != nil {
			return domain.Wrap(err, "", o.ref())
		}
		done.Items = append(done.Items, applied{o.ref(), result})
		if form == "text" {
			if err := tell(cmd, form, outcome{ref: o.ref(), what: result}); err != nil {
				return err
			}
		}
	}
	err := w.do(cmd.Context(), func(ctx context.Context) error {
		for _, a := range apps {
			if _, err := c.Online(ctx, a.Position, t.tenant, a.Value.Name, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return showApplied(cmd, done, form)
}

// showApplied shows all results at once; as text they were told one by one.
func showApplied(cmd *cobra.Command, done appliedDoc, form string) error {
	if form == "text" {
		return nil
	}
	l := listing{value: done}
	for _, x := range done.Items {
		l.names = append(l.names, x.Object)
	}
	return show(cmd.OutOrStdout(), form, l, false)
}

func (t *tool) applyTemplate(ctx context.Context, c *client.Client, b client.TemplateBody) (
	string, error,
) {
	was, err := c.Template(ctx, b.Name, client.At{Tenant: t.tenant})
	ch := t.change()
	switch {
	case domain.IsKind(err, domain.NotFound):
		_, err = c.ApplyTemplate(ctx, b, ch)
		return "created", err
	case err != nil:
		return "", err
	}
	ch.IfMatch = was.ETag
	now, err := c.ApplyTemplate(ctx, b, ch)
	if err != nil || now.Value.ETag != was.Value.ETag {
		return "changed", err
	}
	return "unchanged", nil
}

func (t *tool) applyApp(ctx context.Context, c *client.Client, b client.AppBody) (
	client.Reply[client.App], string, error,
) {
	was, err := c.App(ctx, b.Name, client.At{Tenant: t.tenant})
	ch := t.change()
	switch {
	case domain.IsKind(err, domain.NotFound):
		now, err := c.ApplyApp(ctx, b, ch)
		return now, "created", err
	case err != nil:
		return was, "", err
	}
	ch.IfMatch = was.ETag
	now, err := c.ApplyApp(ctx, b, ch)
	if err != nil || now.Value.ETag != was.Value.ETag {
		return now, "changed", err
	}
	return now, "unchanged", nil
}

func (t *tool) deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete -f FILE", Short: "Delete the templates and applications that a file names",
		Long: `Delete every object that a manifest names, applications with all their data first. What
is not there is passed over. A terminal is asked first, unless --yes says so; a script is
not asked.`,
		Example: "  weft delete -f web.yaml",
		Args:    cobra.NoArgs,
	}
	file := manifestFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	w := waitFlags(cmd, "all is gone")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		objects, err := manifestOf(cmd, *file)
		if err != nil {
			return err
		}
		slices.Reverse(objects)
		if err := confirm(cmd, *yes, fmt.Sprintf("%d objects", len(objects))); err != nil {
			return err
		}
		return t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return t.deleteAll(cmd, c, objects, w, form.value)
		})(cmd, args)
	}
	return cmd
}

func (t *tool) deleteAll(cmd *cobra.Command, c *client.Client, objects []object, w *waiting,
	form string,
) error {
	var done appliedDoc
	for _, x := range objects {
		result, err := t.deleteOne(cmd.Context(), c, x, w)
		switch {
		case domain.IsKind(err, domain.NotFound):
			result = "absent"
		case err != nil:
			return domain.Wrap(err, "", x.ref())
		}
		done.Items = append(done.Items, applied{x.ref(), result})
		if form == "text" {
			if err := tell(cmd, form, outcome{ref: x.ref(), what: result}); err != nil {
				return err
			}
		}
	}
	return showApplied(cmd, done, form)
}

func (t *tool) deleteOne(ctx context.Context, c *client.Client, x object, w *waiting) (
	string, error,
) {
	if x.template != nil {
		_, err := c.DeleteTemplate(ctx, x.template.Name, t.change())
		return "deleted", err
	}
	a, err := c.App(ctx, x.app.Name, client.At{Tenant: t.tenant})
	if err != nil {
		return "", err
	}
	o, err := t.removeApp(ctx, c, a.Value, w)
	return o.what, err
}
