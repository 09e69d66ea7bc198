package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"weft/adapters/rest"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/quorum"
	"weft/projections/topology"
)

// Times of keeping the log small.
const (
	archiveEvery = 5 * time.Second
	// compactEvery is how often the database forgets what it remembers of itself: everything that was
	// overwritten or deleted longer ago than this.
	compactEvery = 5 * time.Minute
)

// archivist lets old events leave the log's database once enough archives hold them, and keeps the
// database small. It runs on the node that holds the role and belongs to one goroutine.
type archivist struct {
	*leading
	revision int64 // of the database at the last look
	looked   time.Time
	sealed   domain.Position // the last that left the database, as was seen last
}

// keepAt does what is due, then rests, and tells how far the log has left the database.
func (a *archivist) keepAt(ctx context.Context) (domain.Position, error) {
	err := a.keep(ctx)
	return a.sealed, err
}

// keep does what is due, then rests.
func (a *archivist) keep(ctx context.Context) error {
	defer pause(ctx, archiveEvery)
	if err := a.compact(ctx); err != nil {
		return err
	}
	st, err := a.store.Archive(ctx)
	if err != nil {
		return err
	}
	a.sealed = st.Sealed.Position
	for _, n := range a.views.topology.Nodes() {
		id := n.Node.Node.String()
		held := slices.ContainsFunc(st.Holders, func(h quorum.Holder) bool { return h.Name == id })
		if held && n.Removed {
			if err := a.store.Forget(ctx, id); err != nil {
				return err
			}
		}
	}
	due := dueForArchive(&st, a.views.topology.LogWindow(), a.store.Database())
	if len(due) == 0 {
		return nil
	}
	to := due[len(due)-1]
	end := eventstore.Head{Position: to.Last, Hash: to.Hash}
	holders, err := a.store.Safe(ctx, end, present(a.views.topology))
	if err != nil {
		return domain.Wrap(err, "archive", "the log stays in the database")
	}
	if err := a.record(ctx, due, holders); err != nil {
		return err
	}
	n, err := a.store.Trim(ctx, to.Last)
	if n > 0 {
		a.log.Info("old events have left the log's database", "events", n, "up to", to.Last.String())
	}
	return err
}

// dueForArchive gives the segments that leave the database now: those outside of the window, or all
// that are sealed when the database fills up.
func dueForArchive(st *quorum.Archive, window uint64, d quorum.Database) (due []archive.Segment) {
	if d.Percent() >= quorum.SpaceTrim {
		window = 0
	}
	for _, s := range st.Segments {
		n := s.Last.N()
		if n <= st.Sealed.Position.N() {
			continue
		}
		if st.Tail.Position.N()-(s.First-1) <= window {
			break
		}
		if due = append(due, s); len(due) == cluster.ArchivedMax {
			break
		}
	}
	return due
}

// present counts the nodes that are there and stay.
func present(t *topology.View) (n int) {
	for _, x := range t.Nodes() {
		if !x.Removed && !x.Down {
			n++
		}
	}
	return n
}

// record notes who holds what leaves the database, before it leaves.
func (a *archivist) record(
	ctx context.Context, due []archive.Segment, holders []string,
) error {
	c := cluster.ArchiveSegments{Cluster: a.dir.id.Cluster}
	for _, s := range due {
		c.Segments = append(c.Segments, cluster.SegmentArchived{
			First: s.First, Last: s.Last, Root: s.Root[:], Holders: holders,
		})
	}
	_, token := a.views.topology.Leader()
	_, err := a.exec.Do(ctx, domain.Request{
		Command: c, Token: token,
		Caller: domain.Caller{Actor: "reconciler/" + a.dir.id.Node.String()},
	})
	return err
}

// compact lets the database forget what was overwritten or deleted before the last look, and gives
// the file's free space back when most of a large file is free.
func (a *archivist) compact(ctx context.Context) error {
	if time.Since(a.looked) < compactEvery {
		return nil
	}
	now, err := a.store.Revision(ctx)
	if err != nil {
		return err
	}
	if a.revision > 0 {
		if err := a.store.Compact(ctx, a.revision); err != nil {
			return err
		}
	}
	a.revision, a.looked = now, time.Now()
	if d := a.store.Database(); d.Sparse() {
		a.log.Info("the log's database gives space back", "bytes", d.Size-d.InUse)
		return a.store.Defragment(ctx)
	}
	return nil
}

// Archive implements rest.Backend.
func (b *backend) Archive(ctx context.Context) (rest.Archive, error) {
	st, err := b.store.Archive(ctx)
	if err != nil {
		return rest.Archive{}, err
	}
	d, window := b.store.Database(), b.views.topology.LogWindow()
	out := rest.Archive{
		State: "ok", Window: window, Hot: st.Hot(), Tail: st.Tail.Position.String(),
		Sealed: st.Sealed.Position.String(), Archived: st.Held.Position.String(),
		Database: rest.ArchiveDatabase{
			Size: domain.Bytes(d.Size), Used: domain.Bytes(d.InUse),
			Quota: domain.Bytes(d.Quota),
		},
		Holders: []rest.ArchiveHolder{},
	}
	for _, s := range st.Segments {
		out.Segments, out.Bytes = out.Segments+1, out.Bytes+domain.Bytes(s.Bytes)
	}
	for _, h := range st.Holders {
		out.Holders = append(out.Holders, rest.ArchiveHolder{
			Node: h.Name, Name: nodeName(b.views.topology, h.Name), Archived: h.Position.String(),
		})
	}
	due := dueForArchive(&st, window, d)
	switch {
	case st.Stuck != nil:
		out.State, out.Reason = "stuck", "this node's archive does not grow: "+st.Stuck.Error()
	case len(due) > 0:
		last := due[len(due)-1]
		_, err := b.store.Safe(ctx, eventstore.Head{Position: last.Last, Hash: last.Hash},
			present(b.views.topology))
		if err != nil {
			out.State, out.Reason = "waiting", "old events stay in the database: "+err.Error()
		}
	}
	switch {
	case st.Hot() > 2*window:
		out.State = "late"
	case d.Percent() >= quorum.SpaceAlarm:
		out.State, out.Reason = "full", fmt.Sprintf("the log's database is %d %% full. %s", d.Percent(),
			out.Reason)
	}
	return out, nil
}

// nodeName gives the name of a node by its id; empty when there is none.
func nodeName(t *topology.View, id string) string {
	for _, n := range t.Nodes() {
		if n.Node.Node.String() == id {
			return n.Name
		}
	}
	return ""
}

// ArchiveSegments implements rest.Backend.
func (b *backend) ArchiveSegments(ctx context.Context) ([]rest.ArchiveSegment, error) {
	st, err := b.store.Archive(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]rest.ArchiveSegment, 0, len(st.Segments))
	for _, s := range st.Segments {
		out = append(out, rest.ArchiveSegment{
			First: s.First, Last: s.Last.String(), Events: s.Count, Bytes: domain.Bytes(s.Bytes),
			Root: s.RootText(), Hot: s.Last.N() > st.Sealed.Position.N(),
		})
	}
	return out, nil
}
