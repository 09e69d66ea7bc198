package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

func (t *tool) loginCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "login", Short: "Sign in with an identity provider", Args: cobra.NoArgs,
		Long: `Sign in with an identity provider: you get an address to open in any browser and a code to
enter there. Then the node issues a token for you, which is kept in your configuration
(weft/keyring.json, for you alone) and used for this API until it expires.

An administrator makes providers known with weft idp create, and links users to them with
weft user link.`,
		Example: "  weft login\n  weft login --idp corp --api http://node1:7780",
	}
	idp := cmd.Flags().String("idp", "", "identity provider; may be left out when there is one")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, _, err := t.find()
		if err != nil {
			return err
		}
		p, err := t.providerFor(cmd, api, *idp)
		if err != nil {
			return err
		}
		id, err := t.p.SignIn(cmd.Context(), p, func(address, code, complete string) {
			e := cmd.ErrOrStderr()
			_, _ = fmt.Fprintf(e, "Open %s\nand enter the code %s\n", oneLine(address), oneLine(code))
			if complete != "" {
				_, _ = fmt.Fprintf(e, "or open %s\n", oneLine(complete))
			}
		})
		if err != nil {
			return err
		}
		s, err := t.exchange(cmd, api, id, p)
		if err != nil {
			return err
		}
		if form.value != "text" {
			s.Token = ""
			return tell(cmd, form.value, outcome{doc: s})
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), oneLine("signed in as user/"+s.User+" until "+
			s.Expires.Format(time.RFC3339))); err != nil {
			return err
		}
		next(cmd, "weft whoami shows what you may do; weft logout ends it")
		return nil
	}
	return cmd
}

// providerFor asks the node for the identity provider to sign in with.
func (t *tool) providerFor(cmd *cobra.Command, api, name string) (client.Provider, error) {
	c, err := client.New(client.Config{URL: api, CA: t.ca, Agent: "weft/" + t.p.Version})
	if err != nil {
		return client.Provider{}, err
	}
	defer c.Close()
	r, err := c.SignIns(cmd.Context())
	if err != nil {
		return client.Provider{}, err
	}
	var names []string
	for _, p := range r.Value.Items {
		if p.Name == name || name == "" && len(r.Value.Items) == 1 {
			return p, nil
		}
		names = append(names, p.Name)
	}
	e := &domain.Error{
		Kind: domain.NotFound, Msg: "no identity provider is known",
		Remedy: "an administrator makes one known with: weft idp create",
	}
	if len(names) > 0 {
		e.Msg, e.Remedy = "say which identity provider", "--idp takes one of: "+strings.Join(names, ", ")
	}
	return client.Provider{}, e
}

// exchange gets a token of the API for an ID token and keeps it.
func (t *tool) exchange(
	cmd *cobra.Command, api, id string, p client.Provider,
) (client.SignedIn, error) {
	var s client.SignedIn
	keyring, err := client.ReadKeyring(t.p.Env)
	if err != nil {
		return s, err
	}
	c, err := client.New(client.Config{URL: api, CA: t.ca, Token: id, Agent: "weft/" + t.p.Version})
	if err != nil {
		return s, err
	}
	defer c.Close()
	// The widest role: a token allows no more than its user's roles do at each moment.
	v, err := issueToken(cmd.Context(), c, client.AccessTokenBody{
		Role: "admin", TTLSeconds: p.SessionSeconds, Note: "sign-in by " + p.Name,
	})
	if err != nil {
		return s, err
	}
	s = client.SignedIn{User: v.User, ID: v.ID, Token: v.Token}
	if s.Expires, err = time.Parse(time.RFC3339, v.Expires); err != nil {
		return s, err
	}
	keyring.Put(api, s)
	return s, keyring.Write(t.p.Env)
}

func (t *tool) logoutCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "logout", Short: "Revoke the token of your sign-in and forget it", Args: cobra.NoArgs,
		Long:    "Revoke the token that weft login left for this API, and forget it. Again is no error.",
		Example: "  weft logout",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, _, err := t.find()
		if err != nil {
			return err
		}
		keyring, err := client.ReadKeyring(t.p.Env)
		if err != nil {
			return err
		}
		s, ok := keyring.Take(api)
		if !ok {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "not signed in")
			return err
		}
		c, err := client.New(client.Config{
			URL: api, CA: t.ca, Token: s.Token, Agent: "weft/" + t.p.Version,
		})
		if err != nil {
			return err
		}
		defer c.Close()
		// A token that opens nothing any more needs no revoking.
		_, err = c.RevokeToken(cmd.Context(), s.ID)
		if err != nil && !domain.IsKind(err, domain.Denied) {
			return err
		}
		if err := keyring.Write(t.p.Env); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), oneLine("signed out user/"+s.User))
		return err
	}
	return cmd
}
