package quorum

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"weft/domain"
	"weft/eventstore"
)

// recovered makes a closed node the only voter of its log, and records that with one event.
func recovered(t testing.TB, p *peer) *Recovery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := NewRecovery(ctx, p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Discard(); err != nil {
			t.Error(err)
		}
	}()
	if err := r.Force(ctx); err != nil {
		t.Fatal(err)
	}
	to := r.Kept.Position.Timeline() + 1
	if err := r.Raise(ctx, to); err != nil {
		t.Fatal(err)
	}
	a := add(t, r.Log, domain.StreamID(fmt.Sprintf("recovery-%d", to)), eventstore.NoStream(),
		fmt.Sprint("recovery", to), 1)
	if want := domain.PositionOf(to, r.Kept.Position.N()+1); a.Position != want {
		t.Fatalf("the first record behind the recovery is %s, want %s", a.Position, want)
	}
	if err := r.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.scratch()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy: %v", err)
	}
	return r
}

// files lists what stands in a folder, and when it was written.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		all[path] = fmt.Sprint(info.Size(), info.ModTime())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Of three voters two are lost. The third becomes the only one with every event, writes go on in a
// higher timeline, a client that was there follows, and with empty folders the lost ones vote
// again. Looking first changes nothing.
func TestRecover(t *testing.T) {
	t.Parallel()
	nodes := three(t)
	a, lost := nodes[0], nodes[1:]
	client := newPeer(t, "client", a.cfg.Net.URL)
	appendTo(t, lost[0].Store, 30)
	old, err := client.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the survivor has it all", func() bool { return a.mirror.Head() == old })
	members, err := a.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(lost, a) {
		p.close()
	}

	before := files(t, a.cfg.Dir)
	look, err := NewRecovery(t.Context(), a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := look.Force(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := look.Discard(); err != nil {
		t.Fatal(err)
	}
	if after := files(t, a.cfg.Dir); !maps.Equal(after, before) {
		t.Errorf("looking changed the folder:\n%v\n%v", before, after)
	}

	r := recovered(t, a)
	if r.Kept != old || r.Kept != look.Kept || r.Term != look.Term || r.Index != look.Index ||
		r.Term == 0 || r.Index < r.Committed {
		t.Errorf("%+v, first %+v, the log ended at %s", r, look, old.Position)
	}
	for _, m := range members {
		if m.URL != a.cfg.Net.URL && m != r.Others[0] && m != r.Others[1] || len(r.Others) != 2 {
			t.Errorf("%+v was given up as %+v", m, r.Others)
		}
	}
	if _, err := os.Stat(filepath.Join(a.cfg.Dir, beforeDir, "wal")); err != nil {
		t.Errorf("the member as it was: %v", err)
	}
	a.open()
	add(t, a.Store, "s-after", eventstore.NoStream(), "after", 5)
	if m, err := a.Members(t.Context()); err != nil || len(m) != 1 || m[0] != r.Self {
		t.Errorf("members %+v, %v", m, err)
	}
	until(t, "the client follows", func() bool { return client.mirror.Head() == a.mirror.Head() })
	for _, p := range lost {
		if err := os.RemoveAll(p.cfg.Dir); err != nil {
			t.Fatal(err)
		}
		p.open()
	}
	grow(t, a, lost...)
	same(t, append(nodes[:], client), nil)
}

// Entries that reached the survivor's consensus log and were acknowledged, but not marked committed
// there before it ended, are kept: a member that is forced to be alone would drop them.
func TestRecoverKeepsUncommittedTail(t *testing.T) {
	t.Parallel()
	nodes := three(t)
	a := nodes[0]
	appendTo(t, a.Store, 10)
	a.close()
	db := filepath.Join(a.cfg.Dir, memberDir, "snap", "db")
	kept := filepath.Join(t.TempDir(), "db")
	if err := copyFile(db, kept); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(a.cfg.Dir, memberDir, "wal")
	c, err := openConsensus(log)
	if err != nil {
		t.Fatal(err)
	}
	marked := c.state.GetCommit()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	a.open()
	appendTo(t, a.Store, 20)
	for _, p := range nodes {
		p.close()
	}
	// As if the machine had gone down before the mark and the database reached the disk.
	if err := os.Remove(db); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(kept, db); err != nil {
		t.Fatal(err)
	}
	if c, err = openConsensus(log); err != nil {
		t.Fatal(err)
	}
	c.state.Commit = &marked
	if err := errors.Join(c.Save(c.state, nil), c.Close()); err != nil {
		t.Fatal(err)
	}
	r := recovered(t, a)
	if r.Committed != marked || r.Index < marked+10 {
		t.Errorf("marked %d of %d, want %d", r.Committed, r.Index, marked)
	}
	if r.Kept.Position != 20 {
		t.Errorf("kept up to %s of 20 that were acknowledged", r.Kept.Position)
	}
	a.open()
	if err := a.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A node without a vote, one that votes alone, and one that runs are no survivors.
func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	a := newPeer(t, "a")
	learner := newPeer(t, "learner", a.cfg.Net.URL)
	client := newPeer(t, "client", a.cfg.Net.URL)
	appendTo(t, a.Store, 3)
	try := func(what string, p *peer, kind domain.Kind) {
		t.Helper()
		r, err := NewRecovery(t.Context(), p.cfg)
		if !domain.IsKind(err, kind) {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
		if _, err := os.Stat(filepath.Join(p.cfg.Dir, recoveringDir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a copy is left: %v", what, err)
		}
	}
	try("a node that runs", a, domain.Locked)
	try("a client", client, domain.Invalid)
	a.close()
	try("the only voter", a, domain.Exists)
	a.open()
	if err := a.AddLearner(t.Context(), learner.cfg.Net.URL); err != nil {
		t.Fatal(err)
	}
	until(t, "a learner", func() bool {
		l := learner.local()
		return l != nil && l.etcd.Server.AppliedIndex() > 0 && len(l.etcd.Server.Cluster().Members()) == 2
	})
	learner.close()
	try("a learner", learner, domain.Invalid)
}
