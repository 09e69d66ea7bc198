package quorum

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
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

// turnedAway opens a voter that was given up, which must say so and leave its files alone.
func turnedAway(t testing.TB, p *peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := Open(ctx, p.cfg)
	if err == nil {
		_ = s.Close()
	}
	if !errors.Is(err, eventstore.ErrTimelineChanged) || !domain.IsKind(err, domain.Stale) ||
		!strings.Contains(err.Error(), "recovered without this node") {
		t.Errorf("%s, which was given up: %v", p.cfg.Name, err)
	}
	if _, err := os.Stat(filepath.Join(p.cfg.Dir, memberDir, "wal")); err != nil {
		t.Errorf("what %s alone may know is gone: %v", p.cfg.Name, err)
	}
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
// higher timeline, a client that was there follows, the lost ones are not let in with their old
// log, and with empty folders they vote again. Looking first changes nothing.
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
		r.Term == 0 || r.Index < r.Committed || r.Salvaged != 0 {
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
		turnedAway(t, p)
	}
	for _, p := range lost {
		if err := os.RemoveAll(p.cfg.Dir); err != nil {
			t.Fatal(err)
		}
		p.open()
	}
	grow(t, a, lost...)
	same(t, append(nodes[:], client), nil)
	select {
	case <-client.Superseded():
		t.Error("a client that held nothing more was made anew")
	default:
	}
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

// Clients know more than the survivor, in memory and in their archives. One that runs notices,
// shows nothing more, and is made anew; one that was away finds out when it starts. Both hold the
// log as it was recovered then, and keep what they had aside.
func TestClientsAheadOfRecovery(t *testing.T) {
	t.Parallel()
	a := newPeerSmall(t, "a")
	b, c := newPeerSmall(t, "b", a.cfg.Net.URL), newPeerSmall(t, "c", a.cfg.Net.URL)
	grow(t, a, b, c)
	runs := newPeerSmall(t, "runs", a.cfg.Net.URL, b.cfg.Net.URL)
	away := newPeerSmall(t, "away", a.cfg.Net.URL, b.cfg.Net.URL)
	appendTo(t, a.Store, 7)
	a.close()
	appendTo(t, b.Store, 20)
	for _, p := range []*peer{runs, away} {
		if _, err := p.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		archived(t, p.Store, 18)
	}
	for _, p := range []*peer{away, b, c} {
		p.close()
	}
	if r := recovered(t, a); r.Kept.Position.N() >= 18 {
		t.Fatalf("the survivor has %s, so nothing is shown", r.Kept.Position)
	}
	a.open()
	add(t, a.Store, "s-new", eventstore.NoStream(), "new", 5)
	body := eventstore.EncodeAppend("s-8", eventstore.NoStream(), storetest.Propose("old", 1))
	for timeline, want := range map[string]int{"0": http.StatusConflict, "1": http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.cfg.Net.URL+appendPath,
			bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(timelineHeader, timeline)
		res, err := a.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("an append from timeline %s: %s", timeline, res.Status)
		}
	}
	until(t, "the client that runs notices", func() bool {
		select {
		case <-runs.Superseded():
			return true
		default:
			return false
		}
	})
	if _, err := runs.Append(t.Context(), "s-9", eventstore.NoStream(),
		storetest.Propose("too late", 1)...); err == nil {
		t.Error("it still writes")
	}
	for _, p := range []*peer{runs, away} {
		p.close()
		p.open()
		sameLog(t, a.Store, p.Store)
		if _, err := os.Stat(filepath.Join(p.cfg.Dir, "archive"+lostSuffix)); err != nil {
			t.Errorf("%s: what it knew: %v", p.cfg.Name, err)
		}
		archived(t, p.Store, 6)
	}
	turnedAway(t, b)
	same(t, []*peer{a, runs, away}, nil)
}

// A voter that was given up though it runs ends when it meets the recovered one, and is not wiped
// as one is that lost its vote in order.
func TestRunningVoterIsLeftBehind(t *testing.T) {
	t.Parallel()
	nodes := three(t)
	a, b, c := nodes[0], nodes[1], nodes[2]
	appendTo(t, a.Store, 5)
	id := a.local().id()
	for _, p := range nodes[1:] { // plain connections would let the copy reach it
		p.wall.keepOut(id)
	}
	a.close()
	c.close()
	recovered(t, a)
	for _, p := range nodes[1:] {
		p.wall.keepOut()
	}
	a.open()
	until(t, "it notices", func() bool {
		select {
		case <-b.Superseded():
			return true
		default:
			return false
		}
	})
	b.close()
	turnedAway(t, b)
}

// What the node's own archive holds beyond its database is taken up, at the old positions.
func TestRecoverSalvages(t *testing.T) {
	t.Parallel()
	a := newPeerSmall(t, "a")
	b := newPeerSmall(t, "b", a.cfg.Net.URL)
	if err := a.AddLearner(t.Context(), b.cfg.Net.URL); err != nil {
		t.Fatal(err)
	}
	until(t, "a learner", func() bool { return b.local() != nil })
	appendTo(t, a.Store, 7)
	a.close()
	member := filepath.Join(a.cfg.Dir, memberDir)
	saved := filepath.Join(t.TempDir(), memberDir)
	if err := copyFiles(t.Context(), member, saved); err != nil {
		t.Fatal(err)
	}
	a.open()
	appendTo(t, a.Store, 200)
	want := archived(t, a.Store, 198)
	a.close()
	b.close()
	if err := os.RemoveAll(member); err != nil {
		t.Fatal(err)
	}
	if err := copyFiles(t.Context(), saved, member); err != nil {
		t.Fatal(err)
	}
	r := recovered(t, a)
	if r.Kept != want || r.Salvaged != want.Position.N()-7 {
		t.Errorf("kept up to %s with %d from the archive, which ends at %s", r.Kept.Position, r.Salvaged,
			want.Position)
	}
	a.open()
	if err := a.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if n := a.mirror.StreamHead("s-1").Revision; n != domain.Revision((198-2)/5) {
		t.Errorf("stream s-1 ends at %d", n)
	}
	add(t, a.Store, "s-1", eventstore.At(domain.Revision((198-2)/5)), "goes on", 1)
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

// A mirror goes on only where it holds nothing but what a recovery left: not behind the floor, not
// another record before it, and a mark that is damaged is damage.
func TestMirrorMeetsMarks(t *testing.T) {
	s, other := open(t, t.TempDir()), open(t, t.TempDir())
	appendTo(t, s, 10)
	add(t, other, "s-other", eventstore.NoStream(), "other", 5)
	l := loader{keys: s.keys, kv: s.client}
	into := func(from *Store, n int) error {
		t.Helper()
		m := &eventstore.Mirror{}
		if err := m.Extend(from.mirror.Hot(n)...); err != nil {
			t.Fatal(err)
		}
		return l.fill(t.Context(), m)
	}
	for _, c := range []struct {
		floor   uint64
		of      *Store
		records int
		lost    bool
	}{
		{10, s, 0, false},
		{10, s, 5, false},
		{10, s, 10, false},
		{10, other, 5, true},
		{4, s, 3, false},
		{4, s, 4, false},
		{4, s, 5, true},
		{4, s, 10, true},
		{4, other, 5, true},
		{5, other, 5, true},
	} {
		floor, _ := s.mirror.HeadAt(c.floor)
		put(t, s, s.keys.recovered(1), encodeTail(floor))
		err := into(c.of, c.records)
		var lost *eventstore.TimelineError
		if errors.As(err, &lost) != c.lost || !c.lost && err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	put(t, s, s.keys.recovered(1), "rotten")
	if err := into(s, 5); !errors.Is(err, eventstore.ErrCorrupt) {
		t.Errorf("a damaged mark: %v", err)
	}
}
