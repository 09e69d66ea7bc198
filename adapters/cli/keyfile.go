package cli

import (
	"io"
	"os"
	"path/filepath"

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
	return r.Value.Users, replaceFile(k.file, r.Value.Bundle)
}

// replaceFile makes a file of mode 0600 hold these bytes, durably, or leaves it as it was.
func replaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".weft-keys-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// keysMax bounds what is read as a file of keys.
const keysMax = 96 << 20

// load reads the file and its passphrase.
func (k *keyFlags) load(cmd *cobra.Command) (bundle []byte, phrase string, err error) {
	if phrase, err = readSecret(cmd, k.passphrase); err != nil {
		return nil, "", err
	}
	f, err := os.Open(k.file)
	if err != nil {
		return nil, "", &domain.Error{Kind: domain.NotFound, Msg: "the file of keys", Err: err}
	}
	defer func() { _ = f.Close() }()
	bundle, err = io.ReadAll(io.LimitReader(f, keysMax+1))
	return bundle, phrase, err
}
