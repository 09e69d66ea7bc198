package cli

import (
	"bytes"
	"context"
	"reflect"
	"strings"
	"testing"
)

// A look says that nothing is changed, what is to be compared and what comes next, and names who
// answers; a recovery says what it did. Both hand on what was asked for.
func TestRecoverTells(t *testing.T) {
	var asked RecoverOptions
	p := Programs{RecoverPrograms: RecoverPrograms{Recover: func(
		_ context.Context, o RecoverOptions, progress func(string),
	) (Recovered, error) {
		asked = o
		progress("checking")
		return Recovered{
			DataDir: o.DataDir, Node: "a", Recovered: o.AcceptLoss, Term: 3, Index: 70, Committed: 68,
			Position: "40", Hash: "abcd", Timeline: 1, Salvaged: 5, Lost: []LostVoter{
				{Node: "b", Member: "1f", URL: "https://b", Vote: "voter", Answers: true},
				{Node: "c", Member: "2f", URL: "https://c", Vote: "learner"},
			},
		}, nil
	}}}
	run := func(args ...string) (out string) {
		t.Helper()
		var o, e bytes.Buffer
		all := append([]string{"recover", "--data-dir", "/srv/a"}, args...)
		if code := Main(t.Context(), p, all, nil, &o, &e); code != 0 || e.String() != "checking\n" {
			t.Errorf("%v: exit code %d, %s", args, code, e.String())
		}
		return o.String()
	}
	const facts = "  last entry  term 3, index 70 (68 marked committed)\n" +
		"  event log   up to position 40\n  hash        abcd\n" +
		"  salvaged    5 events from the node's archive\n" +
		"  lost        b, voter 1f at https://b ANSWERS\n" +
		"  lost        c, learner 2f at https://c\n"
	look := run()
	if want := (RecoverOptions{DataDir: "/srv/a"}); !reflect.DeepEqual(asked, want) {
		t.Errorf("asked for %+v", asked)
	}
	if !strings.HasPrefix(look, "a, would keep (nothing is changed):\n"+facts) ||
		!strings.HasSuffix(look, "  weft recover --data-dir /srv/a --accept-loss\n") {
		t.Errorf("a look:\n%s", look)
	}
	done := run("--accept-loss", "--lost", "b", "--lost", "c")
	want := RecoverOptions{DataDir: "/srv/a", AcceptLoss: true, Lost: []string{"b", "c"}}
	if !reflect.DeepEqual(asked, want) {
		t.Errorf("asked for %+v", asked)
	}
	if done != "a, kept:\n"+facts+"the timeline is 1 now; start it: weft serve --data-dir /srv/a\n" {
		t.Errorf("a recovery:\n%s", done)
	}
	if doc := run("-o", "json"); !strings.Contains(doc, `"index": 70`) ||
		!strings.Contains(doc, `"answers": true`) || !strings.Contains(doc, `"recovered": false`) {
		t.Errorf("as JSON:\n%s", doc)
	}
	for _, word := range []string{"b", "1f", "https://b", "id-b"} {
		if v := (LostVoter{Node: "b", ID: "id-b", Member: "1f", URL: "https://b"}); !v.Named(word) {
			t.Errorf("%s does not name %+v", word, v)
		}
	}
	for _, word := range []string{"c", ""} { // a member need not have an id that is known
		if (LostVoter{Node: "b"}).Named(word) {
			t.Errorf("%q names b", word)
		}
	}
}
