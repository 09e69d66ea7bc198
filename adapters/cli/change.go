package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

// outcome is what a change led to.
type outcome struct {
	ref  string // "volume/web/disk1"
	what string // "created", "online", "deleted"
	note string // more for people
	doc  any    // as JSON and YAML show it
}

// changeOutput adds -o to a command that changes something.
func changeOutput(cmd *cobra.Command) *choice {
	return choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml", "name")
}

// tell writes the outcome of a change.
func tell(cmd *cobra.Command, form string, o outcome) error {
	w := cmd.OutOrStdout()
	switch form {
	case "json":
		return writeJSON(w, o.doc)
	case "yaml":
		return writeYAML(w, o.doc)
	case "name":
		_, err := fmt.Fprintln(w, o.ref)
		return err
	}
	if o.note != "" {
		o.note = " (" + o.note + ")"
	}
	_, err := fmt.Fprintln(w, oneLine(o.ref+" "+o.what+o.note))
	return err
}

func (t *tool) change() client.Change { return client.Change{Tenant: t.tenant} }
