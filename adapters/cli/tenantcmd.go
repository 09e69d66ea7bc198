package cli

import (
	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (t *tool) tenantCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tenant", Short: "Tenants: whose names, volumes and quotas are apart",
		Long: `A tenant holds templates, applications and their volumes apart from all others: who has no
role in it does not learn that they are there. Tenants may stand below one another; a role
in a tenant holds in those below it, too. Commands act for the tenant "default" unless
--tenant or WEFT_TENANT names another.

Only an administrator of the cluster makes tenants and sets quotas. A quota limits what
the tenant itself holds, not what those below it do.`,
		Example: `  weft tenant create acme --quota 2TiB --volumes 100
  weft tenant create lab --parent acme
  weft user grant ann --role operator --in acme
  weft tenant quota acme --quota 4TiB`,
	}
	cmd.AddCommand(t.tenantCreate(), t.listCommand(tenantKind()), t.tenantQuota(), t.tenantDelete())
	return cmd
}

// quotaFlags are the limits of a tenant.
func quotaFlags(cmd *cobra.Command) (*sizeFlag, *int64) {
	size := new(sizeFlag)
	cmd.Flags().Var(size, "quota", "most bytes of all its volumes together; 0B is no limit")
	return size, cmd.Flags().Int64("volumes", 0, "most volumes; 0 is no limit")
}

func (t *tool) tenantCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a tenant", Args: cobra.ExactArgs(1),
		Long: `Create a tenant. Its name is a lower-case DNS label, because it becomes part of the
volumes' addresses, and no other tenant of the cluster bears it.`,
		Example: `  weft tenant create acme
  weft tenant create lab --parent acme --quota 500GiB`,
	}
	parent := cmd.Flags().String("parent", "", "tenant that it stands below")
	size, volumes := quotaFlags(cmd)
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		b := client.TenantBody{Name: args[0], Parent: *parent}
		if *size != 0 || *volumes != 0 {
			b.Quota = &client.Quota{Bytes: domain.Bytes(*size), Volumes: *volumes}
		}
		r, err := c.CreateTenant(cmd.Context(), b)
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"tenant/" + args[0], "created", "", r.Value})
		next(cmd, "weft user grant USER --role operator --in %s", args[0])
		return err
	})
	return cmd
}

func (t *tool) tenantQuota() *cobra.Command {
	cmd := &cobra.Command{
		Use: "quota NAME", Short: "Limit what a tenant may hold", Args: cobra.ExactArgs(1),
		Long: `Set both limits of a tenant; one that is not given is lifted. What the tenant holds
already stays, also above a new limit; then nothing is added until there is room.`,
		Example: `  weft tenant quota acme --quota 2TiB --volumes 100
  weft tenant quota acme                          # no limits`,
		ValidArgsFunction: t.names(tenantKind()),
	}
	size, volumes := quotaFlags(cmd)
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.SetQuota(cmd.Context(), args[0],
			client.Quota{Bytes: domain.Bytes(*size), Volumes: *volumes})
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"tenant/" + args[0], "limited", "", r.Value})
	})
	return cmd
}

func (t *tool) tenantDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a tenant that holds nothing", Args: cobra.ExactArgs(1),
		Long: `Delete a tenant. It is refused while it holds a template, an application or another tenant;
so no data is lost. Roles in it end with it.`,
		Example:           "  weft tenant delete acme",
		ValidArgsFunction: t.names(tenantKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.DeleteTenant(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"tenant/" + args[0], "deleted", "", r.Value})
	})
	return cmd
}
