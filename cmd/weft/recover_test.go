package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/adapters/cli"
	"weft/adapters/client"
)

// recover runs weft recover on a stopped node.
func (m *machine) recover(args ...string) (r cli.Recovered, said string, err error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.bin, append([]string{
		"recover", "--data-dir", m.dir, "-o", "json",
	}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	return r, errs.String(), err
}

// templates lists the names of a node's templates.
func (m *machine) templates(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := m.api.Templates(ctx, client.At{})
	if err != nil {
		return nil
	}
	var names []string
	for _, x := range r.Value.Items {
		names = append(names, x.Name)
	}
	return names
}

func (m *machine) state(ctx context.Context, name string) string {
	for _, n := range m.nodes(ctx) {
		if n.Name == name {
			return n.State
		}
	}
	return "unknown"
}

// Two of three voters are lost after the third fell behind, and a node without a vote knows what
// only they knew. The third is recovered by the command: all that it acknowledged is there, the
// other node forgets what is not, by itself, the lost ones are refused until their log is wiped,
// and then there are three voters again.
func TestRecoverOneOfThree(t *testing.T) {
	list := cluster3(t)
	a, b, c := list[0], list[1], list[2]
	d := a.join(3, "d")[0]
	l := newLoad(t, list)
	defer l.wg.Wait()
	defer l.stop()
	until(t, "some templates", func(context.Context) bool { return l.count() > 20 })
	l.stop()
	l.wg.Wait()
	kept := l.names
	until(t, "the survivor knows them", func(ctx context.Context) bool {
		have := a.templates(ctx)
		return !slices.ContainsFunc(kept, func(n string) bool { return !slices.Contains(have, n) })
	})
	a.kill()
	until(t, "a template that the survivor does not know", func(ctx context.Context) bool {
		_, err := b.api.CreateTemplate(ctx, client.TemplateBody{
			Name: "lost", Intent: &client.Intent{},
		}, client.Change{Key: "lost"})
		return err == nil && slices.Contains(d.templates(ctx), "lost")
	})
	b.kill()
	c.kill()

	mine, _, err := a.recover()
	if err != nil || mine.Recovered || len(mine.Lost) != 2 || mine.Lost[0].Answers {
		t.Fatalf("%+v, %v", mine, err)
	}
	theirs, _, err := b.recover()
	if err != nil || theirs.Term < mine.Term ||
		theirs.Term == mine.Term && theirs.Index <= mine.Index {
		t.Errorf("b knows more and says %+v, a %+v, %v", theirs, mine, err)
	}
	if _, said, err := d.recover(); err == nil || !strings.Contains(said, "another weft process") {
		t.Errorf("on a node that runs: %s, %v", said, err)
	}
	at, err := url.Parse(mine.Lost[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("tcp", at.Host)
	if err != nil {
		t.Fatal(err)
	}
	_, said, err := a.recover("--accept-loss")
	if err == nil || !strings.Contains(said, "answers at its address") ||
		!strings.Contains(said, "--lost "+mine.Lost[0].Node) {
		t.Errorf("while one answers: %s, %v", said, err)
	}
	if _, said, err := a.recover("--accept-loss", "--lost", "nobody"); err == nil {
		t.Errorf("without a member of that name: %s", said)
	}
	done, said, err := a.recover("--accept-loss", "--lost", mine.Lost[0].Node)
	_ = other.Close()
	if err != nil || !done.Recovered || done.Timeline != 1 || done.Position != mine.Position ||
		done.Hash != mine.Hash {
		t.Fatalf("%+v, %s, %v; first %+v", done, said, err, mine)
	}

	a.start()
	if n := count(t.Context(), a.api, "LogRecovered"); n != 1 {
		t.Errorf("%d events tell of one recovery", n)
	}
	until(t, "the lost voters show as lost", func(ctx context.Context) bool {
		return a.voters(ctx) == 1 && a.state(ctx, "b") == "lost" && a.state(ctx, "c") == "lost"
	})
	until(t, "the node without a vote is back in the log", func(ctx context.Context) bool {
		have := d.templates(ctx)
		return have != nil && !slices.Contains(have, "lost")
	})
	if said := b.refused(); !strings.Contains(said, "recovered without this node") {
		t.Errorf("a lost voter heard: %s", said)
	}
	for _, m := range []*machine{b, c} {
		if err := os.Rename(filepath.Join(m.dir, "log"), filepath.Join(m.dir, "log.old")); err != nil {
			t.Fatal(err)
		}
		m.start()
	}
	until(t, "three voters", func(ctx context.Context) bool { return a.voters(ctx) == 3 })
	v, err := a.api.Verify(t.Context())
	if err != nil || !v.Value.Sound {
		t.Errorf("%+v, %v", v.Value, err)
	}
	same(t, append(list, d), kept)
	if have := c.templates(t.Context()); slices.Contains(have, "lost") {
		t.Error(fmt.Sprint("what was given up is back: ", have))
	}
}
