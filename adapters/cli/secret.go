package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/adapters/client"
	"weft/domain"
)

// secretMax bounds what is read as a secret; the node's own limit is lower.
const secretMax = 4096

func (t *tool) secretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "secret", Short: "CHAP secrets, by which iSCSI hosts prove themselves",
		Long: `Secrets are kept on the node, mode 0600, and are never shown again. An application
names one with --chap.`,
		Example: "  weft secret set vm-secret --user vm < secret.txt",
	}
	cmd.AddCommand(t.secretSet())
	return cmd
}

func (t *tool) secretSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Keep a secret on the node", Args: cobra.ExactArgs(1),
		Long: `Keep a CHAP secret of 12 to 64 bytes on the node. It is read from standard input, or
from a file, and never from an argument: arguments stand in the process list. For mutual
CHAP, --own-user and --own-file are what the target proves in turn.`,
		Example: `  weft secret set vm-secret --user vm
  weft secret set vm-secret --user vm --file vm.txt --own-user target --own-file target.txt`,
	}
	f := cmd.Flags()
	user := f.String("user", "", "name that the host gives (required)")
	file := f.String("file", "-", "file that holds the secret, or - for standard input")
	ownUser := f.String("own-user", "", "name that the target gives, for mutual CHAP")
	ownFile := f.String("own-file", "", "file that holds the target's own secret")
	if err := cmd.MarkFlagRequired("user"); err != nil {
		panic(err) // the flag stands above
	}
	form := changeOutput(cmd)
	cmd.RunE = t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		body := client.SecretBody{User: *user, OwnUser: *ownUser}
		var err error
		if body.Secret, err = readSecret(cmd, *file); err != nil {
			return err
		}
		if *ownFile != "" {
			if body.OwnSecret, err = readSecret(cmd, *ownFile); err != nil {
				return err
			}
		}
		r, err := c.PutSecret(cmd.Context(), args[0], body)
		if err != nil {
			return err
		}
		err = tell(cmd, form.value, outcome{"secret/" + args[0], "set", "", r.Value})
		next(cmd, "weft app create NAME --initiator IQN --chap %s --authn chap", args[0])
		return err
	})
	return cmd
}

// readSecret reads one line of a file or of standard input, without echo on a terminal.
func readSecret(cmd *cobra.Command, file string) (string, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", &domain.Error{Kind: domain.NotFound, Msg: "the secret's file", Err: err}
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	if terminal(in) {
		restore, err := quiet(in)
		if err != nil {
			return "", err
		}
		defer restore()
		_, _ = fmt.Fprint(cmd.ErrOrStderr(), "secret: ")
		defer cmd.PrintErrln()
	}
	line, err := bufio.NewReader(io.LimitReader(in, secretMax)).ReadString('\n')
	line = strings.TrimRight(line, "\r\n")
	if err != nil && line == "" {
		return "", domain.Errorf(domain.Invalid, "no secret came from %s", file)
	}
	return line, nil
}

// quiet turns a terminal's echo off until the function it gives is called. What is no terminal has
// no echo.
func quiet(stream any) (restore func(), err error) {
	f, ok := stream.(*os.File)
	if !ok {
		return func() {}, nil
	}
	was, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, &domain.Error{Kind: domain.Unavailable, Msg: "the terminal", Err: err}
	}
	now := *was
	now.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &now); err != nil {
		return nil, &domain.Error{Kind: domain.Unavailable, Msg: "the terminal", Err: err}
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, was) }, nil
}
