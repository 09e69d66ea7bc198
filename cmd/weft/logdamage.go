package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"weft/adapters/rest"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/quorum"
	"weft/projections/topology"
)

// Times of looking for damage that no reader meets.
const (
	// scrubFirst is how long after the start a node reads its whole log the first time.
	scrubFirst = 10 * time.Minute
	scrubEvery = 24 * time.Hour
	// compareEvery is how often the databases of the voters are compared.
	compareEvery = 10 * time.Minute
)

// scrub reads all that this node keeps of the log, once a day. What it finds the store takes note
// of.
func (l *leading) scrub(ctx context.Context) {
	for pause(ctx, scrubFirst); ctx.Err() == nil; pause(ctx, scrubEvery) {
		at := domain.Position(0)
		err := l.store.Verify(ctx, func(p domain.Position) { at = p })
		if ctx.Err() == nil {
			l.bg.note("the scrub of the log", at, err)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, eventstore.ErrCorrupt) {
			l.log.Warn("the event log could not be scrubbed", "err", err)
		}
	}
}

// comparison compares the databases of the voters now and then. It belongs to one goroutine of the
// node that leads.
type comparison struct {
	*leading
	last time.Time
}

// step tells of voters whose databases differ from those of most others, when it is time.
func (c *comparison) step(ctx context.Context) error {
	if time.Since(c.last) < compareEvery {
		return nil
	}
	list, err := c.store.Differing(ctx)
	if err != nil {
		return err
	}
	c.last = time.Now()
	for _, m := range list {
		id, ok := c.nodeAt(m.URL)
		if !ok {
			continue
		}
		c.log.Error("a voter's database differs from those of the others", "node", m.URL)
		err := c.tellDamage(ctx, &cluster.LogDamaged{
			Node: id, Part: cluster.PartDatabase, Member: m.ID,
			Why: "it differs from the databases of most other voters",
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nodeAt finds the node that other nodes reach by a URL.
func (l *leading) nodeAt(url string) (domain.NodeID, bool) {
	for _, n := range l.views.topology.Nodes() {
		if n.Endpoint.Peer == url && !n.Removed {
			return n.Node.Node, true
		}
	}
	return domain.NodeID{}, false
}

// confess records the members that this node took out while etcd's alarm let nothing be recorded.
func (l *leading) confess(ctx context.Context) error {
	for _, m := range l.store.Evicted() {
		if id, ok := l.nodeAt(m.URL); ok {
			err := l.tellDamage(ctx, &cluster.LogDamaged{
				Node: id, Part: cluster.PartDatabase, Member: m.ID,
				Why: "etcd's comparison of the members called it corrupt, and most others differ",
			})
			if err == nil {
				err = l.enroll(ctx, &cluster.VoterRemoved{
					Node: id, Member: m.ID, Why: cluster.WhyDamaged,
				})
			}
			if err != nil {
				return err
			}
		}
		l.store.Told(m.ID)
	}
	return nil
}

// report tells the cluster what is damaged of this node's copy of the log and what is repaired,
// each once, and takes from it what others found.
func (l *leading) report(ctx context.Context) error {
	if err := l.confess(ctx); err != nil {
		return err
	}
	self := l.dir.id.Node
	var told []cluster.Damage
	for _, d := range l.views.topology.Damaged() {
		if d.Node == self {
			told = append(told, d.Damage())
		}
	}
	var now []cluster.Damage
	for _, d := range l.store.Damages() {
		x := cluster.LogDamaged{
			Node: self, Part: string(d.Part), Member: d.Member, First: d.First, Position: d.Position,
			Why: d.What,
		}
		now = append(now, x.Damage())
		if !slices.Contains(told, x.Damage()) {
			if err := l.tellDamage(ctx, &x); err != nil {
				return err
			}
		}
	}
	for _, d := range told {
		if slices.Contains(now, d) || !l.repaired(ctx, d) {
			continue
		}
		err := l.tellDamage(ctx, &cluster.LogRepaired{
			Node: d.Node, Part: d.Part, Member: d.Member, First: d.First,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// repaired tells whether a damage that the cluster was told of is gone. What this process has not
// met itself it looks at first: it may have been found by another one, or before a restart.
func (l *leading) repaired(ctx context.Context, d cluster.Damage) bool {
	if d.Part == cluster.PartArchive {
		return l.store.CheckSegment(ctx, d.First) == nil
	}
	if d.Member != l.store.MemberID() {
		return true // it was replaced
	}
	l.store.Distrust(d.Member, "it was found damaged before")
	return len(l.store.Damages()) == 0 && l.store.Verify(ctx, nil) == nil
}

func (l *leading) tellDamage(ctx context.Context, fact domain.Event) error {
	_, err := l.exec.Do(ctx, domain.Request{
		Command: cluster.ReportDamage{Cluster: l.dir.id.Cluster, Fact: fact},
		Caller:  domain.Caller{Actor: "node/" + l.dir.id.Node.String()},
	})
	return err
}

// LogDamage implements rest.Backend: what the cluster knows of, and what this node could not tell
// it.
func (b *backend) LogDamage() []rest.LogDamage {
	list := []rest.LogDamage{}
	told := map[cluster.Damage]bool{}
	alone := map[cluster.Damage]bool{}
	own := b.store.Damages()
	for _, d := range own {
		alone[cluster.Damage{
			Node: b.dir.id.Node, Part: string(d.Part), Member: d.Member, First: d.First,
		}] = d.Alone
	}
	for _, d := range b.views.topology.Damaged() {
		told[d.Damage()] = true
		list = append(list, logDamage(b.views.topology, &d, alone[d.Damage()]))
	}
	for _, d := range own {
		x := cluster.LogDamaged{
			Node: b.dir.id.Node, Part: string(d.Part), Member: d.Member, First: d.First,
			Position: d.Position, Why: d.What,
		}
		if !told[x.Damage()] {
			list = append(list, logDamage(b.views.topology, &x, d.Alone))
		}
	}
	return list
}

// RepairLog implements rest.Backend.
func (b *backend) RepairLog(ctx context.Context, node domain.NodeID) (rest.Verdict, error) {
	n, _ := b.views.topology.Node(node)
	v := rest.Verdict{Node: n.Name}
	var err error
	if node == b.dir.id.Node {
		err = b.store.Repair(ctx)
	} else {
		err = b.store.RepairAt(ctx, n.Endpoint.Peer)
	}
	var found *quorum.FoundError
	if !errors.As(err, &found) {
		return v, err
	}
	v.Bad, v.Why, v.Part = found.Position, found.What, string(found.Part)
	v.Remedy, v.Alone = remedy(found.Part, found.Alone), found.Alone
	return v, nil
}

// LogEnded implements rest.Backend.
func (b *backend) LogEnded() bool { return errors.Is(b.store.Health(), eventstore.ErrCorrupt) }

func logDamage(t *topology.View, d *cluster.LogDamaged, alone bool) rest.LogDamage {
	x := rest.LogDamage{
		Node: d.Node.String(), Name: nodeName(t, d.Node.String()), Part: d.Part, First: d.First,
		Why: d.Why,
	}
	if d.Position > 0 {
		x.Position = d.Position.String()
	}
	x.Remedy = remedy(quorum.Part(d.Part), alone)
	return x
}

// remedy says what becomes of damage.
func remedy(p quorum.Part, alone bool) string {
	switch {
	case alone:
		return onlyCopy
	case p == quorum.PartDatabase:
		return "its member is replaced by itself while a majority of sound voters is left"
	}
	return "the file is copied from another node by itself"
}

// onlyCopy is what remains to be done where nobody else has a copy.
const onlyCopy = "no other node has a copy: weft restore brings a backup back into an empty " +
	"folder, up to the backup's last position; the volumes are not touched"
