package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// Backup says what a folder of event segments holds.
type Backup struct {
	Dir      string `json:"dir"`
	Cluster  string `json:"cluster"`
	Position string `json:"position"` // of the last event
	Hash     string `json:"hash"`     // of the last event: it stands for the whole history
	Events   int    `json:"events"`   // written now, or found by --check
	Written  int    `json:"segments_written,omitempty"`
	Kept     int    `json:"segments_kept,omitempty"`
	Damage   string `json:"damage,omitempty"` // found by --check: what and where
	Keys     int    `json:"keys,omitempty"`   // users whose keys were saved
}

// backupCommand is `weft backup`.
func (t *tool) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup DIR", Short: "Save the event log in a folder", Args: cobra.ExactArgs(1),
		Long: `Save the event log of a running cluster in a folder, while it runs. Every record and
the chain of hashes are checked on the way. The folder holds segments of 50,000 events; full ones
are kept when you back up into it again, so that costs what is new.

It is the history of the cluster: intents, placement, every decision. It holds no data of volumes,
no secrets and no keys: a cluster that is restored from it knows its users by id alone. --keys saves
the keys of their names in a file, closed under a passphrase; keep it elsewhere. An erasure of a
user is complete once files of keys from before it are destroyed.

--check reads a folder again and checks every record; it needs no node. Exit code 4 when the folder
is damaged.`,
		Example: `  weft backup /mnt/backup/weft
  weft backup /mnt/backup/weft --keys keys.wkey --passphrase-file phrase.txt
  weft backup /mnt/backup/weft --check
  weft backup /mnt/backup/weft -o json`,
	}
	var keys keyFlags
	keys.add(cmd, "save the keys of users' names in this `file`, too; needs an administrator")
	check := cmd.Flags().Bool("check", false, "read the folder again and write nothing")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	online := t.run(func(cmd *cobra.Command, c *client.Client, args []string) error {
		progress := func(p domain.Position) {
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "saved up to position %s\n", p)
		}
		if !terminal(cmd.ErrOrStderr()) {
			progress = nil
		}
		b, err := t.p.Backup(cmd.Context(), c, args[0], progress)
		if err != nil {
			return err
		}
		if keys.file != "" {
			if b.Keys, err = keys.save(cmd, c); err != nil {
				return err
			}
		}
		return showBackup(cmd, form.value, "saved", b)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := keys.check(); err != nil {
			return err
		}
		if !*check {
			return online(cmd, args)
		}
		b, err := t.p.VerifyBackup(cmd.Context(), args[0])
		if domain.IsKind(err, domain.Corrupt) || domain.IsKind(err, domain.Mismatch) {
			b.Dir, b.Damage, err = args[0], err.Error(), nil
		}
		if err != nil {
			return err
		}
		return showBackup(cmd, form.value, "checked", b)
	}
	return cmd
}

// showBackup tells what a folder holds; damage is an answer and an exit code.
func showBackup(cmd *cobra.Command, form, did string, b Backup) (err error) {
	switch {
	case form != "text":
		err = show(cmd.OutOrStdout(), form, listing{value: b}, false)
	case b.Damage != "":
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "the backup in %s is DAMAGED: %s\n", b.Dir,
			oneLine(b.Damage))
	default:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %d events in %s, up to position %s\nhash %s\n", did,
			b.Events, b.Dir, b.Position, b.Hash)
		if err == nil && b.Keys > 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "saved the keys of %d users\n", b.Keys)
		}
	}
	if err == nil && b.Damage != "" {
		err = &degraded{"the backup is damaged"}
	}
	return err
}

// BackupPrograms are the parts of Programs that save and check the log.
type BackupPrograms struct {
	// Backup brings a folder up to a node's log; progress, when not nil, hears the position.
	Backup func(ctx context.Context, c *client.Client, dir string, progress func(domain.Position)) (
		Backup, error)
	// VerifyBackup reads a folder and checks it.
	VerifyBackup func(ctx context.Context, dir string) (Backup, error)
	// Restore makes an empty data folder a node whose log goes on where a backup ends.
	Restore func(ctx context.Context, o RestoreOptions) (Restored, error)
}

// RestoreOptions say what is restored, and where.
type RestoreOptions struct {
	From, DataDir string
	Name          string // of the new node; empty: the host's
	KeysFile      string // what Backup's --keys wrote; empty: none
	Passphrase    string // of that file
	Progress      func(string)
}

// Restored says what a restore made.
type Restored struct {
	DataDir  string `json:"data_dir"`
	Cluster  string `json:"cluster"`
	Position string `json:"position"`       // of the last event of the backup
	Hash     string `json:"hash"`           // of that event
	Timeline uint16 `json:"timeline"`       // of the events to come
	Node     string `json:"node"`           // name of the new node
	Keys     int    `json:"keys,omitempty"` // users whose keys came with it
}

// restoreCommand is `weft restore`.
func (t *tool) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore DIR", Short: "Begin a cluster anew from a backup of its log",
		Args: cobra.ExactArgs(1),
		Long: `Make an empty data folder the first node of a cluster whose event log goes on where a
backup ends. The whole backup is checked first; nothing is made of a damaged one. What happened
after the backup is not in the new history: positions bear a higher timeline from there on, so that
nothing of the old history is taken for the new one.

Start the node with weft serve --data-dir. Nodes of the old cluster show as down; they can join
anew, with an empty folder and weft node token. Volumes are in the log, their data is on the
devices of the nodes that had them.`,
		Example: `  weft restore /mnt/backup/weft --data-dir /srv/weft
  weft restore /mnt/backup/weft --data-dir /srv/weft --keys keys.wkey --passphrase-file phrase.txt
  weft restore /mnt/backup/weft --data-dir /srv/weft -o json`,
	}
	var keys keyFlags
	keys.add(cmd, "the `file` that weft backup --keys wrote: users are known by name again")
	name := cmd.Flags().String("name", "", "name of the new node (default: the host's)")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		def := client.DefaultDataDir(t.p.Env, os.Getuid())
		o := RestoreOptions{
			From: args[0], DataDir: first(t.dataDir, def), Name: *name,
			Progress: func(s string) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), s) },
		}
		err := keys.check()
		if o.KeysFile = keys.file; err == nil && keys.file != "" {
			o.Passphrase, err = readSecret(cmd, keys.passphrase)
		}
		if err != nil {
			return err
		}
		r, err := t.p.Restore(cmd.Context(), o)
		if err != nil {
			return err
		}
		if form.value != "text" {
			return show(cmd.OutOrStdout(), form.value, listing{value: r}, false)
		}
		out := cmd.OutOrStdout()
		_, err = fmt.Fprintf(out, "restored up to position %s in %s; the timeline is %d now\nhash %s\n",
			r.Position, r.DataDir, r.Timeline, r.Hash)
		if err == nil && r.Keys > 0 {
			_, err = fmt.Fprintf(out, "the keys of %d users came with it\n", r.Keys)
		}
		if err == nil {
			_, err = fmt.Fprintf(out, "start it: weft serve --data-dir %s\n", r.DataDir)
		}
		return err
	}
	return cmd
}
