package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
	"weft/domain/identity"
)

// tokenDoc is `weft token renew -o json`.
type tokenDoc struct {
	Token string `json:"token"`
}

func (t *tool) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Tokens to sign in with", Args: cobra.NoArgs,
		Long: `A token lets its bearer act as a user, within a role, a tenant if you name one, and a time.
It never allows more than the user's own roles do at that moment, and it is void at once
when it is revoked or the user is disabled or deleted. Only a hash of it is kept.

  weft token issue --user ann --role operator --ttl 720h     prints it, once
  WEFT_TOKEN=weftu-... weft get volumes --tenant acme        uses it

weft token renew is about another one: the node's own token, which is no user's. The word
renew may be left out.`,
		Example: `  weft token issue --user ann --role viewer --in acme --ttl 24h
  weft token list
  weft token revoke ID
  weft token renew`,
	}
	cmd.AddCommand(t.tokenIssue(), t.plainList(tokenKind()), t.tokenRevoke(), t.tokenRenew())
	form := choose(cmd, "output", "o", "form of the answer", "text", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return t.renew(cmd, form.value) }
	return cmd
}

func (t *tool) tokenRenew() *cobra.Command {
	cmd := &cobra.Command{
		Use: "renew", Short: "Make a new token of the node's own", Args: cobra.NoArgs,
		Long: `Make a new administrator's token in a node's data folder and show it once. The old one
is void at once. The node may be running or not; this needs no token, only the folder.`,
		Example: "  weft token renew\n  weft token renew --data-dir /srv/weft",
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return t.renew(cmd, form.value) }
	return cmd
}

func (t *tool) renew(cmd *cobra.Command, form string) error {
	def := client.DefaultDataDir(t.p.Env, os.Getuid())
	token, err := t.p.NewToken(first(t.dataDir, client.CurrentDataDir(def)))
	if err != nil {
		return err
	}
	if form == "json" {
		return writeJSON(cmd.OutOrStdout(), tokenDoc{token})
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
	return err
}

func tokenKind() kind {
	type T = client.AccessToken
	return kindOf("token", "tokens", (*client.Client).AccessTokens,
		func(x T) string { return x.ID }, func(x T) string { return x.ID },
		col[T]{name: "ID", cell: func(x T) string { return x.ID }},
		col[T]{name: "USER", cell: func(x T) string { return x.User }},
		col[T]{name: "ALLOWS", cell: func(x T) string {
			return roles([]client.Grant{{Role: x.Role, Tenant: x.Tenant}})
		}},
		col[T]{name: "STATE", cell: func(x T) string { return x.State }},
		col[T]{name: "EXPIRES", cell: func(x T) string { return x.Expires }},
		col[T]{name: "NOTE", cell: func(x T) string { return orDash(x.Note) }})
}

func (t *tool) tokenIssue() *cobra.Command {
	cmd := &cobra.Command{
		Use: "issue", Short: "Issue a token and show it once", Args: cobra.NoArgs,
		Long: `Issue a token for yourself, or as an administrator for --user, and show it once. The secret
is drawn here and never sent until the token is used: the node gets its hash. A token that
you came with issues nothing that allows more, or lives longer, than itself.`,
		Example: `  weft token issue --user ann --role operator --ttl 720h
  weft token issue --role viewer --in acme --ttl 1h --note "grafana"`,
	}
	f := cmd.Flags()
	who := f.String("user", "", "whose token; empty: your own")
	role := choose(cmd, "role", "", "the most it allows",
		"viewer", "operator", "tenant-admin", "admin")
	in := f.String("in", "", "tenant that it is good for, with those below; empty: where the user may")
	ttl := f.Duration("ttl", 24*time.Hour, "how long it is good, to 8784h")
	note := f.String("note", "", "what it is for")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		v, err := issueToken(cmd.Context(), c, client.AccessTokenBody{
			User: *who, Role: role.value, Tenant: *in, TTLSeconds: int64(*ttl / time.Second), Note: *note,
		})
		if err != nil {
			return err
		}
		if form.value != "text" {
			return tell(cmd, form.value, outcome{doc: v})
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), v.Token); err != nil {
			return err
		}
		next(cmd, "weft token revoke %s ends it before %s", v.ID, v.Expires)
		return nil
	})
	return cmd
}

// issueToken issues a token whose secret is drawn here, so that a retry is the same request.
func issueToken(ctx context.Context, c *client.Client, b client.AccessTokenBody) (
	client.AccessToken, error,
) {
	secret := make([]byte, identity.SecretSize)
	_, _ = rand.Read(secret) // never fails: it ends the program instead
	sum := sha256.Sum256(secret)
	b.Hash = hex.EncodeToString(sum[:])
	r, err := c.IssueToken(ctx, b)
	if err != nil {
		return r.Value, err
	}
	id, err := domain.ParseUUID(r.Value.ID)
	r.Value.Token = identity.TokenText(domain.AccessTokenID{UUID: id}, secret)
	return r.Value, err
}

func (t *tool) tokenRevoke() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "Revoke a token at once", Args: cobra.ExactArgs(1),
		Long:              "Revoke a token by its id, which is no secret: weft token list shows it.",
		Example:           "  weft token list\n  weft token revoke 0d9c0e0e-9a9b-8c1d-8e2f-001122334455",
		ValidArgsFunction: t.names(tokenKind()),
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		r, err := c.RevokeToken(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return tell(cmd, form.value, outcome{"token/" + args[0], "revoked", "", r.Value})
	})
	return cmd
}

func (t *tool) whoamiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "whoami", Short: "Show who you are and what you may do", Args: cobra.NoArgs,
		Long:    "Show as whom the node knows you, your roles, and what your token narrows them to.",
		Example: "  weft whoami\n  weft whoami -o json",
	}
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, _ []string) error {
		r, err := c.Whoami(cmd.Context())
		if err != nil {
			return err
		}
		w := r.Value
		if form.value != "text" {
			return tell(cmd, form.value, outcome{doc: w})
		}
		text := "user/" + w.Name + ": " + roles(w.Roles)
		if len(w.Limits) > 0 {
			text += "; by this token at most " + roles(w.Limits)
		}
		if w.Expires != "" {
			text += ", until " + w.Expires
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), oneLine(text))
		return err
	})
	return cmd
}
