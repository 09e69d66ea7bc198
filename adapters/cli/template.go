package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

func (t *tool) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template",
		Short: "Templates: demands with a name, that applications share",
		Long: `A template holds demands under a name: how many copies, how fast, on what media.

Its versions never change: to change a template is to publish a new version, which every
application follows that did not pin one.`,
		Example: `  weft template create gold --replicas 1
  weft template publish gold --replicas 1 --iops-max 20000`,
	}
	cmd.AddCommand(t.templateCreate(), t.templatePublish(), t.listCommand(templateKind()),
		t.showCommand(templateKind()), t.templateDelete())
	return cmd
}

func (t *tool) templateCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a template", Args: cobra.ExactArgs(1),
		Long:    "Create a template from demands. What you do not say is not demanded.",
		Example: "  weft template create gold --replicas 1 --capacity flash",
	}
	d := demandFlags(cmd)
	about := cmd.Flags().String("description", "", "what it is for")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		in, err := d.intent()
		if err != nil {
			return err
		}
		r, err := c.CreateTemplate(cmd.Context(), client.TemplateBody{
			Name: args[0], Description: *about, Intent: in,
		}, t.change())
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"template/" + args[0], "created", "", r.Value})
		next(cmd, "weft volume create disk1 --app web --template %s --size 10GiB", args[0])
		return err
	})
	return cmd
}

func (t *tool) templatePublish() *cobra.Command {
	cmd := &cobra.Command{
		Use: "publish NAME", Short: "Publish a new version of a template", Args: cobra.ExactArgs(1),
		Long: `Publish a new version. It holds the demands given here and no others. If they are
those of the newest version, nothing is published.`,
		Example:           "  weft template publish gold --replicas 1 --iops-max 20000",
		ValidArgsFunction: t.names(templateKind()),
	}
	d := demandFlags(cmd)
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		in, err := d.intent()
		if err != nil {
			return err
		}
		was, err := c.Template(cmd.Context(), args[0], client.At{Tenant: t.tenant})
		if err != nil {
			return err
		}
		ch := t.change()
		ch.IfMatch = was.ETag
		r, err := c.ApplyTemplate(cmd.Context(), client.TemplateBody{
			Name: was.Value.Name, Intent: in,
		}, ch)
		if err != nil {
			return err
		}
		version := fmt.Sprintf("version %d", r.Value.Version)
		o := outcome{"template/" + args[0], "published", version, r.Value}
		if r.Value.Version == was.Value.Version {
			o.what = "unchanged"
		}
		return tell(cmd, form.value, o)
	})
	return cmd
}

func (t *tool) templateDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a template nobody uses", Args: cobra.ExactArgs(1),
		Long:              "Delete a template. It is refused while an application uses it.",
		Example:           "  weft template delete gold",
		ValidArgsFunction: t.names(templateKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.DeleteTemplate(cmd.Context(), args[0], t.change())
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"template/" + args[0], "deleted", "", r.Value})
	})
	return cmd
}
