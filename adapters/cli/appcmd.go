package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func (t *tool) appCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "app",
		Short: "Applications: volumes that belong together",
		Long: `An application holds volumes that belong together: they share a template, demands of
their own over it, and one iSCSI target.`,
		Example: "  weft app create web --template gold\n  weft app show web",
	}
	cmd.AddCommand(t.appCreate(), t.listCommand(appKind()), t.showCommand(appKind()), t.appDelete())
	return cmd
}

// reached are the flags by which an application says who may attach its volumes.
type reached struct {
	cmd        *cobra.Command
	initiators []string
	chap       string
	protocols  *choice
}

func exportFlags(cmd *cobra.Command) *reached {
	r := &reached{cmd: cmd}
	f := cmd.Flags()
	f.StringArrayVar(&r.initiators, "initiator", nil,
		"iSCSI host that may log in, by IQN; repeatable (default: any)")
	f.StringVar(&r.chap, "chap", "", "name of the secret that iSCSI hosts prove; see weft secret set")
	r.protocols = choose(cmd, "export", "", "protocols to serve the volumes over", "all", "nbd",
		"iscsi")
	return r
}

func (r *reached) export() *client.Export {
	if !r.cmd.Flags().Changed("initiator") && !r.cmd.Flags().Changed("chap") &&
		!r.cmd.Flags().Changed("export") {
		return nil
	}
	return &client.Export{
		NBD: r.protocols.value != "iscsi", ISCSI: r.protocols.value != "nbd",
		AllowAny: len(r.initiators) == 0, Initiators: r.initiators, CHAP: r.chap,
	}
}

func (t *tool) appCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an application", Args: cobra.ExactArgs(1),
		Long: `Create an application. Demands given here are laid over those of its template. Add
volumes afterwards, or let weft volume create do both.`,
		Example: `  weft app create web --template gold
  weft app create db --template gold@1 --iops-max 20000
  weft app create vm --initiator iqn.1993-08.org.debian:01:abc --chap vm-secret --authn chap`,
	}
	template := templateFlag(t, cmd)
	d := demandFlags(cmd)
	x := exportFlags(cmd)
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		in, err := d.intent()
		if err != nil {
			return err
		}
		r, err := c.CreateApp(cmd.Context(), client.AppBody{
			Name: args[0], Template: *template, Intent: in, Export: x.export(),
		}, t.change())
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"app/" + args[0], "created", "", r.Value})
		next(cmd, "weft volume create disk1 --app %s --size 10GiB", args[0])
		return err
	})
	return cmd
}

func templateFlag(t *tool, cmd *cobra.Command) *string {
	s := cmd.Flags().String("template", "", "template to follow: NAME, or NAME@VERSION to pin one")
	err := cmd.RegisterFlagCompletionFunc("template", func(cmd *cobra.Command, _ []string, _ string) (
		[]string, cobra.ShellCompDirective,
	) {
		return t.live(cmd.Context(), templateKind()), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // the flag stands one line above
	}
	return s
}

func (t *tool) appDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete an application with all its data", Args: cobra.ExactArgs(1),
		Long: `Delete an application, its volumes and all their data. A terminal is asked first,
unless --yes says so; a script is not asked.`,
		Example:           "  weft app delete web",
		ValidArgsFunction: t.names(appKind()),
	}
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	w := waitFlags(cmd, "it is gone")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		a, err := c.App(cmd.Context(), args[0], client.At{Tenant: t.tenant})
		if err != nil {
			return err
		}
		if err := confirm(cmd, *yes, "app/"+a.Value.Name); err != nil {
			return err
		}
		o, err := t.removeApp(cmd.Context(), c, a.Value, w)
		if err != nil {
			return err
		}
		return tell(cmd, form.value, o)
	})
	return cmd
}

// removeApp deletes an application and waits until it is gone.
func (t *tool) removeApp(ctx context.Context, c *client.Client, a client.App, w *waiting) (
	outcome, error,
) {
	r, err := c.DeleteApp(ctx, a.Name, t.change())
	if err != nil {
		return outcome{}, err
	}
	err = w.do(ctx, func(ctx context.Context) error {
		r.Value.State = "deleted"
		return c.Gone(ctx, r.Position, t.tenant, a.ID, "")
	})
	return outcome{"app/" + a.Name, r.Value.State, "", r.Value}, err
}

// online waits for volumes and gives the application as it then is.
func (t *tool) online(ctx context.Context, c *client.Client, a client.Reply[client.App],
	volume string, w *waiting,
) (client.App, error) {
	app := a.Value
	err := w.do(ctx, func(ctx context.Context) error {
		var err error
		app, err = c.Online(ctx, a.Position, t.tenant, a.Value.Name, volume)
		return err
	})
	return app, err
}

// volumeOf finds a volume in its application.
func volumeOf(a client.App, name string) (client.Volume, error) {
	for _, v := range a.Volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return client.Volume{}, &domain.Error{
		Kind: domain.NotFound, Ref: "volume/" + a.Name + "/" + name,
		Msg: fmt.Sprintf("app %s has no such volume", a.Name),
	}
}
