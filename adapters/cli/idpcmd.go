package cli

import (
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func (t *tool) providerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "idp", Short: "Identity providers that users sign in with",
		Long: `An identity provider of OpenID Connect (Keycloak, Entra ID, Okta, Dex, ...) vouches for the
users that are linked to it, and for no others:

  weft idp create corp --issuer https://id.example.org/realms/corp --client-id weft
  weft user create ann@example.org
  weft user link ann@example.org --idp corp
  weft login                          ann does so, on any machine

A role may also come from a group there, to users who are linked, for as long as the
provider lists them in it:

  weft idp grant corp --group storage-team --role operator --in acme

Make a public client there with the device grant; Weft holds no secret of it. Its ID tokens
are accepted by the API as they are, too: Authorization: Bearer ID_TOKEN.`,
		Example: "  weft idp list\n  weft idp update corp --session 4h\n  weft idp delete corp",
	}
	cmd.AddCommand(t.providerCreate(), t.plainList(providerKind()), t.providerUpdate(),
		t.providerDelete(), t.groupRole("grant"), t.groupRole("revoke"))
	return cmd
}

func providerKind() kind {
	type T = client.Provider
	return kindOf("idp", "identity providers", (*client.Client).Providers,
		func(x T) string { return x.Name }, func(x T) string { return x.ID },
		col[T]{name: "NAME", cell: func(x T) string { return x.Name }},
		col[T]{name: "ISSUER", cell: func(x T) string { return x.Issuer }},
		col[T]{name: "CLIENT", cell: func(x T) string { return x.ClientID }},
		col[T]{name: "CLAIM", cell: func(x T) string { return x.Claim }},
		col[T]{name: "SESSION", cell: func(x T) string {
			return (time.Duration(x.SessionSeconds) * time.Second).String()
		}},
		col[T]{name: "GROUPS", cell: groupsCell, wide: true},
		col[T]{name: "ID", cell: func(x T) string { return x.ID }, wide: true})
}

// groupsCell shows what the groups of a provider give.
func groupsCell(p client.Provider) string {
	var list []string
	for _, g := range p.Groups {
		text := g.Group + "=" + g.Role
		if g.Tenant != "" {
			text += " in " + g.Tenant
		}
		if g.Claim != "groups" {
			text = g.Claim + "/" + text
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

func (t *tool) groupRole(verb string) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " NAME", Args: cobra.ExactArgs(1),
		Short: "Give a role to the linked users of a group",
		Long: `Give a role to those users that are linked to an identity provider and that it lists in a
group, in a tenant and those below it, or in the whole cluster without --in. It holds for as
long as the provider's token or the sign-in by it, so who leaves the group has it until then;
what the group gives changes at once. A group without a role gives nothing.`,
		Example: "  weft idp " + verb + " corp --group storage-team --role operator --in acme\n" +
			"  weft idp " + verb + " corp --claim roles --group auditors --role viewer",
		ValidArgsFunction: t.names(providerKind()),
	}
	do, what := (*client.Client).GrantGroup, "granted"
	if verb == "revoke" {
		do, what = (*client.Client).RevokeGroup, "revoked"
		cmd.Short = "Take a role from a group"
		cmd.Long = "Take a role from a group of an identity provider, at once. Again is no error."
	}
	var g client.GroupRole
	f := cmd.Flags()
	f.StringVar(&g.Group, "group", "", "group, as the provider's tokens spell it")
	f.StringVar(&g.Claim, "claim", "groups", "claim that lists groups")
	f.StringVar(&g.Role, "role", "", "viewer, operator, tenant-admin or admin")
	f.StringVar(&g.Tenant, "in", "", "tenant; without one: the whole cluster")
	for _, name := range []string{"group", "role"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag stands above
		}
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := do(c, cmd.Context(), args[0], g)
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{
			"idp/" + args[0], g.Role + " " + what + ": group " + g.Group, "", r.Value,
		})
	})
	return cmd
}

// providerFlags are what may change of an identity provider.
type providerFlags struct {
	client, claim, ca string
	session           time.Duration
}

func (f *providerFlags) bind(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.client, "client-id", "", "id of the public client there")
	flags.StringVar(&f.claim, "claim", "", "claim that names the user; without one: email, verified")
	flags.StringVar(&f.ca, "ca", "", "PEM file of authorities to trust it by; none: the machine's")
	flags.DurationVar(&f.session, "session", 0, "how long a sign-in lasts, 1m to 24h; without one: 8h")
}

// put lays the flags that were given over settings.
func (f *providerFlags) put(cmd *cobra.Command, p *client.Provider) error {
	set := cmd.Flags().Changed
	if set("client-id") {
		p.ClientID = f.client
	}
	if set("claim") {
		p.Claim = f.claim
	}
	if set("session") {
		p.SessionSeconds = int64(f.session / time.Second)
	}
	if set("ca") && f.ca == "" {
		p.CA = ""
	}
	if f.ca == "" {
		return nil
	}
	b, err := os.ReadFile(f.ca)
	if err != nil {
		return &domain.Error{Kind: domain.Invalid, Ref: f.ca, Err: err}
	}
	p.CA = string(b)
	return nil
}

func (t *tool) providerCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Let an identity provider vouch for linked users",
		Args: cobra.ExactArgs(1),
		Long: `Make an identity provider known. It vouches for nobody until users are linked to it. The
issuer is the address under which /.well-known/openid-configuration stands, spelled as the
provider spells it.`,
		Example: `  weft idp create corp --issuer https://id.example.org/realms/corp --client-id weft
  weft idp create lab --issuer https://dex.lab:5556 --client-id weft --ca dex.pem --claim name`,
	}
	var f providerFlags
	f.bind(cmd)
	issuer := cmd.Flags().String("issuer", "", "its address, https://...")
	for _, name := range []string{"issuer", "client-id"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag stands above
		}
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		p := client.Provider{Name: args[0], Issuer: *issuer}
		if err := f.put(cmd, &p); err != nil {
			return err
		}
		r, err := c.CreateProvider(cmd.Context(), p)
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"idp/" + args[0], "created", "", r.Value})
		next(cmd, "weft user link NAME --idp %s", args[0])
		return err
	})
	return cmd
}

func (t *tool) providerUpdate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "update NAME", Short: "Change the settings of an identity provider",
		Args: cobra.ExactArgs(1),
		Long: `Change what you name; the rest stays. The issuer cannot change: another one would vouch for
the users of this one.`,
		Example:           "  weft idp update corp --session 4h\n  weft idp update corp --ca new.pem",
		ValidArgsFunction: t.names(providerKind()),
	}
	var f providerFlags
	f.bind(cmd)
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		list, err := c.Providers(cmd.Context(), client.At{})
		if err != nil {
			return err
		}
		for _, p := range list.Value.Items {
			if p.Name != args[0] && p.ID != args[0] {
				continue
			}
			if err := f.put(cmd, &p); err != nil {
				return err
			}
			r, err := c.ChangeProvider(cmd.Context(), p)
			if err != nil {
				return err
			}
			return tell(cmd, form.value, outcome{"idp/" + p.Name, "changed", "", r.Value})
		}
		return &domain.Error{
			Kind: domain.NotFound, Ref: "idp/" + args[0], Msg: "no such identity provider",
			Remedy: "weft idp list shows them",
		}
	})
	return cmd
}

func (t *tool) providerDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Let an identity provider vouch for nobody", Args: cobra.ExactArgs(1),
		Long: `Let an identity provider vouch for nobody any more, at once. Users stay, with their roles;
tokens that they got by signing in stay until they expire or are revoked.`,
		Example:           "  weft idp delete corp",
		ValidArgsFunction: t.names(providerKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.DeleteProvider(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"idp/" + args[0], "deleted", "", r.Value})
	})
	return cmd
}

func (t *tool) userLink() *cobra.Command {
	cmd := &cobra.Command{
		Use: "link NAME", Short: "Let an identity provider vouch for a user", Args: cobra.ExactArgs(1),
		Long: `Let one identity provider, and no other, vouch for a user: for the account whose claim
(weft idp create --claim) is the user's name, or safer, since names pass on, for the one
with a subject.`,
		Example: `  weft user link ann@example.org --idp corp
  weft user link ann --idp corp --subject 248289761001`,
		ValidArgsFunction: t.names(userKind()),
	}
	idp := cmd.Flags().String("idp", "", "identity provider")
	subject := cmd.Flags().String("subject", "", "claim sub of the account there")
	if err := cmd.MarkFlagRequired("idp"); err != nil {
		panic(err) // the flag stands above
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.LinkUser(cmd.Context(), args[0], *idp, *subject)
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"user/" + args[0], "linked to idp/" + *idp, "", r.Value})
	})
	return cmd
}

func (t *tool) userUnlink() *cobra.Command {
	cmd := &cobra.Command{
		Use: "unlink NAME", Short: "Let no identity provider vouch for a user", Args: cobra.ExactArgs(1),
		Long: `Let no identity provider vouch for a user any more, at once. Tokens that were issued stay:
weft token revoke ends them, weft user disable shuts the user out.`,
		Example:           "  weft user unlink ann",
		ValidArgsFunction: t.names(userKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.UnlinkUser(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"user/" + args[0], "unlinked", "", r.Value})
	})
	return cmd
}
