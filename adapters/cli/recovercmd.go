package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"weft/adapters/client"
)

// RecoverPrograms are the parts of Programs that bring back a log that lost most of its voters.
type RecoverPrograms struct {
	// Recover makes a stopped node the only voter of its log, or with a dry run tells what would be
	// kept; progress hears what it is doing.
	Recover func(ctx context.Context, o RecoverOptions, progress func(string)) (Recovered, error)
}

// RecoverOptions is what `weft recover` takes.
type RecoverOptions struct {
	DataDir    string
	AcceptLoss bool     // without, nothing is changed
	Lost       []string // members that are lost although something answers at their address
}

// Recovered says what a recovery kept, or would keep.
type Recovered struct {
	DataDir   string      `json:"data_dir"`
	Cluster   string      `json:"cluster"`
	Node      string      `json:"node"` // name of the node whose copy it is
	Recovered bool        `json:"recovered"`
	Term      uint64      `json:"term"`      // of the last entry of the node's consensus log
	Index     uint64      `json:"index"`     // of that entry
	Committed uint64      `json:"committed"` // the last entry that was marked committed
	Position  string      `json:"position"`  // of the last event that is kept
	Hash      string      `json:"hash"`      // of that event
	Salvaged  uint64      `json:"salvaged"`  // events that the node's archive alone held
	Timeline  uint16      `json:"timeline"`  // of the events to come
	Lost      []LostVoter `json:"lost"`
}

// LostVoter is a member of the log that a recovery gives up.
type LostVoter struct {
	Node    string `json:"node"` // name, or id where the log does not say
	ID      string `json:"id,omitempty"`
	Member  string `json:"member"`
	URL     string `json:"url"`
	Vote    string `json:"vote"`    // "voter", "learner"
	Answers bool   `json:"answers"` // something listens at its address
}

// Named tells whether a word of the operator means this member: a node's name or id, the member's
// id, or the address.
func (v LostVoter) Named(word string) bool {
	return word != "" && slices.Contains([]string{v.Node, v.ID, v.Member, v.URL}, word)
}

// recoverCommand is `weft recover`.
func (t *tool) recoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "recover", Short: "Go on with one voter after most were lost for good",
		Args: cobra.NoArgs,
		Long: `Make the stopped node of a data folder the only voter of its cluster, when most voters are
lost for good. While a majority can come back, start those nodes instead: then nothing is lost.

1. Stop weft on every survivor, and keep the lost machines from starting.
2. Run weft recover --data-dir DIR on each survivor. It changes nothing and shows what would be
   kept. It copies the log's database first, which takes as much room again.
3. Compare the last entry, first by term, then by index. The survivor with the greatest has every
   event that was acknowledged, as far as any survivor has it.
4. Run weft recover --data-dir DIR --accept-loss there, and start that node with weft serve.
5. On every other node that voted, move the folder log in its data folder away and start it: it
   joins as it is and copies the log. With its old log it is refused. Nodes without a vote need
   nothing: they follow, and what they knew beyond the recovered log is forgotten.
6. weft node token adds nodes in the place of those that are gone; they get votes by themselves.

Every entry of the node's log is kept, also those not marked committed. The recovery is an event
(LogRecovered), and positions bear a higher timeline behind it, so that tokens and cursors of the
lost history are worth nothing. The member as it was stays in log/member.before-recovery.

It is refused while another voter answers at its address. Where that is a machine that has nothing
to do with it any more, --lost NODE says so. Two lost voters that come back while the recovered
node is away would go on with the old history by themselves: wipe them, or keep them off.`,
		Example: `  weft recover --data-dir /srv/weft
  weft recover --data-dir /srv/weft -o json
  weft recover --data-dir /srv/weft --accept-loss`,
	}
	var o RecoverOptions
	f := cmd.Flags()
	f.BoolVar(&o.AcceptLoss, "accept-loss", false, "do it: what the lost voters alone knew is gone")
	f.StringArrayVar(&o.Lost, "lost", nil,
		"name of a node that is lost although something answers at its address (repeatable)")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.DataDir = first(t.dataDir, client.DefaultDataDir(t.p.Env, os.Getuid()))
		r, err := t.p.Recover(cmd.Context(), o, func(s string) {
			_, _ = fmt.Fprintln(cmd.ErrOrStderr(), s)
		})
		if err != nil {
			return err
		}
		if form.value != "text" {
			return show(cmd.OutOrStdout(), form.value, listing{value: r}, false)
		}
		return r.tell(cmd.OutOrStdout())
	}
	return cmd
}

// tell says in words what was kept, or would be.
func (r Recovered) tell(w io.Writer) error {
	did := "would keep (nothing is changed)"
	if r.Recovered {
		did = "kept"
	}
	p := &printing{w: w}
	p.line("%s, %s:", r.Node, did)
	p.line("  last entry  term %d, index %d (%d marked committed)", r.Term, r.Index, r.Committed)
	p.line("  event log   up to position %s", r.Position)
	p.line("  hash        %s", r.Hash)
	if r.Salvaged > 0 {
		p.line("  salvaged    %d events from the node's archive", r.Salvaged)
	}
	for _, l := range r.Lost {
		note := ""
		if l.Answers {
			note = " ANSWERS"
		}
		p.line("  lost        %s, %s %s at %s%s", l.Node, l.Vote, l.Member, l.URL, note)
	}
	if r.Recovered {
		p.line("the timeline is %d now; start it: weft serve --data-dir %s", r.Timeline, r.DataDir)
	} else {
		p.line("compare the last entry with every other survivor's, first term, then index; where it "+
			"is greatest:\n  weft recover --data-dir %s --accept-loss", r.DataDir)
	}
	return p.err
}

// printing writes lines until one fails.
type printing struct {
	w   io.Writer
	err error
}

func (p *printing) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
