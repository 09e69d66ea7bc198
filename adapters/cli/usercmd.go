package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func (t *tool) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "user", Short: "Users and their roles",
		Long: `A user may do what their roles allow, each in one tenant and those below it, or in the
whole cluster:

  viewer        see
  operator      see, and change templates, applications and volumes
  tenant-admin  the same, and give and take roles in the tenant
  admin         everything, for the whole cluster only

A user signs in with a token (weft token issue), or with an identity provider (weft idp).
The node's own token, which weft serve shows once, is no user's: it does everything on
every start, so that you can get back in.`,
		Example: `  weft user create ann
  weft user grant ann --role operator --in acme
  weft token issue --user ann --role operator --ttl 720h
  weft user disable ann`,
	}
	cmd.AddCommand(t.userCreate(), t.plainList(userKind()), t.userSwitch("disable", "disabled"),
		t.userSwitch("enable", "enabled"), t.userRole("grant"), t.userRole("revoke"), t.userLink(),
		t.userUnlink(), t.userDelete(), t.userErase())
	return cmd
}

func roles(list []client.Grant) string {
	var parts []string
	for _, g := range list {
		if g.Tenant != "" {
			g.Role += " in " + g.Tenant
		}
		parts = append(parts, g.Role)
	}
	return orDash(strings.Join(parts, ", "))
}

func userKind() kind {
	type T = client.User
	return kindOf("user", "users", (*client.Client).Users,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "IDP", cell: func(x T) string { return orDash(x.IDP) }, wide: true},
		col[T]{name: "ROLES", cell: func(x T) string { return roles(x.Roles) }},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

// plainList lists what no tenant narrows.
func (t *tool) plainList(k kind) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the " + k.many + " you may see", Args: cobra.NoArgs,
		Long:    "List the " + k.many + " you may see, as they are now or were at a moment.",
		Example: "  weft " + k.one + " list\n  weft " + k.one + " list --at 2h -o json",
	}
	var at momentFlag
	atFlag(cmd, &at)
	form := choose(cmd, "output", "o", "form of the answer", "table", "wide", "json", "yaml", "name")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		l, err := k.list(cmd.Context(), c, client.At{At: at.text})
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), form.value, l, t.colours(cmd))
	})
	return cmd
}

func (t *tool) userCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a user, who has no role yet", Args: cobra.ExactArgs(1),
		Long:    "Create a user. The name may be an address of mail; the user has no role yet.",
		Example: "  weft user create ann\n  weft user create ann@example.org",
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.CreateUser(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"user/" + args[0], "created", "", r.Value})
		next(cmd, "weft user grant %s --role operator --in TENANT", args[0])
		return err
	})
	return cmd
}

func (t *tool) userSwitch(verb, done string) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " NAME", Args: cobra.ExactArgs(1), Short: "Let a user in again",
		Long:              "Let a user in again, with the roles and tokens they had.",
		Example:           "  weft user " + verb + " ann",
		ValidArgsFunction: t.names(userKind()),
	}
	if verb == "disable" {
		cmd.Short = "Shut a user out until enabled"
		cmd.Long = `Shut a user out at once: their tokens open nothing and what they follow ends. Roles
and tokens stay for weft user enable.`
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.EnableUser(cmd.Context(), args[0], verb == "enable")
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"user/" + args[0], done, "", r.Value})
	})
	return cmd
}

func (t *tool) userRole(verb string) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " NAME", Args: cobra.ExactArgs(1), Short: "Give a user a role",
		Long: `Give a user a role in a tenant and those below it, or in the whole cluster without --in.
Giving it twice is giving it once. In a tenant, its own administrator may do so, to users
who have a role there; the rest takes an administrator of the cluster.`,
		Example: "  weft user " + verb + " ann --role operator --in acme\n  weft user " + verb +
			" ann --role admin",
		ValidArgsFunction: t.names(userKind()),
	}
	do, what := (*client.Client).GrantRole, "granted"
	if verb == "revoke" {
		do, what = (*client.Client).RevokeRole, "revoked"
		cmd.Short = "Take a role from a user"
		cmd.Long = `Take a role from a user, exactly as it was given: in a tenant, or for the whole
cluster without --in. It is felt at once, also through tokens they hold.`
	}
	role := choose(cmd, "role", "", "the role", "viewer", "operator", "tenant-admin", "admin")
	in := cmd.Flags().String("in", "", "tenant where it holds; empty: the whole cluster")
	if err := cmd.MarkFlagRequired("role"); err != nil {
		panic(err) // the flag stands above
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		g := client.Grant{Role: role.value, Tenant: *in}
		r, err := do(c, cmd.Context(), args[0], g)
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			"user/" + args[0], what + " " + roles([]client.Grant{g}), "", r.Value,
		})
	})
	return cmd
}

func (t *tool) userDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a user and void their tokens", Args: cobra.ExactArgs(1),
		Long: `Delete a user for good. Their tokens open nothing any more, and a later user of the same
name has nothing of theirs. What they did stays in the log, and so does the name, sealed:
weft user erase ends that.`,
		Example:           "  weft user delete ann",
		ValidArgsFunction: t.names(userKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.DeleteUser(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"user/" + args[0], "deleted", "", r.Value})
	})
	return cmd
}

func (t *tool) userErase() *cobra.Command {
	cmd := &cobra.Command{
		Use: "erase NAME|ID", Short: "Make a user's name unreadable everywhere, for ever",
		Args: cobra.ExactArgs(1),
		Long: `Destroy the key under which the event log holds what it knows of a user in words: the
name, the subject at an identity provider, the notes on tokens. From then on nobody reads
them in any copy of the log, also not in backups and outlets; what showed the name shows
erased-1a2b3c4d, for the past as well. The user is shut out, roles and tokens are void, and
the name may be given to somebody else. What the user did stays, under an id.

It cannot be undone. A user who was deleted is erased by the id. Events from before names
were sealed hold the name in clear, and stay; the answer says so. Keep no longer than you
may what is outside of the log: copies of the nodes' disks, which hold keys, and the files
of refused requests. README says what remains where, and for how long.`,
		Example:           "  weft user erase ann@example.org --yes",
		ValidArgsFunction: t.names(userKind()),
	}
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		if !*yes && !(terminal(cmd.InOrStdin()) && terminal(cmd.ErrOrStderr())) {
			return &domain.Error{
				Kind: domain.Invalid, Ref: "user/" + args[0], Msg: "an erasure cannot be undone",
				Remedy: "say --yes",
			}
		}
		if err := confirm(cmd, *yes, "user/"+args[0]); err != nil {
			return err
		}
		ref, err := userID(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		r, err := c.EraseUser(cmd.Context(), ref)
		if err != nil {
			return err
		}
		note := ""
		if r.Value.Clear {
			note = "events from before names were sealed hold the name in clear, and so do their backups"
		}
		return tell(cmd, form.value, outcome{"user/" + r.Value.Name, "erased", note, r.Value})
	})
	return cmd
}

// userID finds a user's id by name, so that a repeated request means the same user although the
// name is gone. What is no user's name is given back.
func userID(ctx context.Context, c *client.Client, ref string) (string, error) {
	l, err := c.Users(ctx, client.At{})
	if err != nil {
		return "", err
	}
	for _, u := range l.Value.Items {
		if u.Name == ref {
			return u.ID, nil
		}
	}
	return ref, nil
}
