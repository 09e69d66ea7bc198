package cli

import (
	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// keyFlags name the file that holds the keys of users' names beside a backup.
type keyFlags struct{ file, passphrase string }

func (k *keyFlags) add(cmd *cobra.Command, usage string) {
	f := cmd.Flags()
	f.StringVar(&k.file, "keys", "", usage)
	f.StringVar(&k.passphrase, "passphrase-file", "",
		"`file` that holds the passphrase of --keys, 12 bytes at least, or - for standard input")
}

// check refuses one flag without the other.
func (k *keyFlags) check() error {
	if (k.file == "") == (k.passphrase == "") {
		return nil
	}
	return &domain.Error{
		Kind: domain.Invalid, Msg: "--keys and --passphrase-file belong together",
		Remedy: "give both, or neither",
	}
}

// save writes the keys of a running cluster and gives whose they are by number. The file is whole
// or not there, mode 0600; an older one is replaced.
func (k *keyFlags) save(cmd *cobra.Command, c *client.Client) (int, error) {
	phrase, err := readSecret(cmd, k.passphrase)
	if err != nil {
		return 0, err
	}
	r, err := c.ExportKeys(cmd.Context(), phrase)
	if err != nil {
		return 0, err
	}
	return r.Value.Users, client.ReplaceFile(k.file, r.Value.Bundle)
}
