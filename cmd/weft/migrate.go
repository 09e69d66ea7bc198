package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/snapshot"
	"weft/domain/volume"
)

const (
	// migrateRest is the pause before what could not be moved is looked at again; it doubles up to
	// migrateRestMost while that fails.
	migrateRest     = 2 * time.Second
	migrateRestMost = 2 * time.Minute
	// migrateSpare is the part of a family's bytes that the target's index and checkpoints may take.
	migrateSpare = 32
)

// emptying is how far a device that leaves has been emptied.
type emptying struct {
	To          string // path of the device that volumes go to now
	Moved, Left domain.Bytes
	Trouble     string
}

// emptyings keeps that for every device. Any number of goroutines may use it.
type emptyings struct {
	mu   sync.Mutex
	list map[domain.DeviceID]*leavingDevice
}

// leavingDevice is a device that is being emptied.
type leavingDevice struct {
	from      *engine.Engine
	to        string
	done      domain.Bytes // of families that went
	migration *engine.Migration
	trouble   string
}

// change changes what is noted of a device.
func (n *emptyings) change(u *unit, fn func(m *leavingDevice)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list == nil {
		n.list = map[domain.DeviceID]*leavingDevice{}
	}
	m := n.list[u.id]
	if m == nil {
		m = &leavingDevice{from: u.engine}
		n.list[u.id] = m
	}
	fn(m)
}

// forget drops what is noted of devices that a function picks.
func (n *emptyings) forget(pick func(domain.DeviceID) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.list {
		if pick(id) {
			delete(n.list, id)
		}
	}
}

// of tells how far a device is.
func (n *emptyings) of(id domain.DeviceID) (out emptying) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.list[id]
	if m == nil {
		return out
	}
	out = emptying{To: m.to, Moved: m.done, Trouble: m.trouble}
	for _, f := range m.from.Families() {
		out.Left += f.Bytes
	}
	if m.migration != nil {
		done, _ := m.migration.Progress()
		out.Moved, out.Left = out.Moved+done, max(0, out.Left-done)
	}
	return out
}

// migrate moves volumes off devices that leave, one family at a time, and tells the cluster where
// volumes stand. What a restart cut short is begun again.
func (e *equipping) migrate(ctx context.Context) {
	const work = "moving volumes off devices that leave"
	rest, tell := migrateRest, true
	for ctx.Err() == nil {
		changed := e.run.Changed()
		more, leaving, err := e.evacuate(ctx)
		if tell || leaving {
			say := e.whereabouts(ctx)
			if tell = say != nil; err == nil {
				err = say
			}
		}
		if ctx.Err() != nil {
			return
		}
		e.bg.note(work, 0, err)
		switch {
		case err != nil:
			e.log.Warn(work, "err", err)
			pause(ctx, rest)
			if rest = min(2*rest, migrateRestMost); domain.IsKind(err, domain.NoSpace) {
				rest = migrateRest // looking for room costs nothing
			}
		case more:
			rest = migrateRest
		default:
			rest = migrateRest
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}
}

// evacuate moves the first family that can be moved off a device that leaves, of which some says
// whether there is one. more says that it did; else the error says what is in the way of one that
// cannot be.
func (e *equipping) evacuate(ctx context.Context) (more, some bool, err error) {
	leaving := func(id domain.DeviceID) bool {
		d, ok := e.v.topology.Device(id)
		return ok && d.Leaving && d.Node == e.dir.id.Node
	}
	e.ds.moves.forget(func(id domain.DeviceID) bool { return !leaving(id) })
	for _, u := range e.ds.all() {
		if !leaving(u.id) {
			continue
		}
		some = true
		trouble := ""
		for _, f := range u.engine.Families() {
			to, no := e.target(u, f)
			if no == nil {
				if no = e.move(ctx, u, to, f); no == nil {
					return true, true, nil
				}
			}
			if ctx.Err() != nil || !leaving(u.id) { // the wish was taken back
				return false, true, nil
			}
			trouble, err = no.Error(), no
		}
		e.ds.moves.change(u, func(m *leavingDevice) { m.trouble = trouble })
		select {
		case e.poked <- struct{}{}: // it may be empty
		default:
		}
	}
	return false, some, err
}

// move moves one family.
func (e *equipping) move(ctx context.Context, from, to *unit, f engine.Family) error {
	ctx, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stop()
	watch.Go(func() { // until it shall not leave any more, or the target shall
		for ctx.Err() == nil {
			changed := e.run.Changed()
			a, _ := e.v.topology.Device(from.id)
			b, _ := e.v.topology.Device(to.id)
			if !a.Leaving || b.Leaving || b.Failed {
				stop()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	})
	e.log.Info("a family goes to another device", "from", from.spec, "to", to.spec,
		"volumes", len(f.Volumes), "snapshots", len(f.Snapshots), "bytes", int64(f.Bytes))
	var under *engine.Migration
	n, moved, err := e.agent.Migrate(ctx, from.id, to.id, f.ID, e.pace, func(m *engine.Migration) {
		under = m
		e.ds.moves.change(from, func(x *leavingDevice) { x.migration, x.to, x.trouble = m, to.spec, "" })
	})
	e.ds.moves.change(from, func(x *leavingDevice) {
		x.migration, x.to = nil, ""
		if moved {
			x.done += n
		}
	})
	if moved {
		e.lost(from, to, under)
	}
	return err
}

// lost tells what went to another device as lost: the node's log how much, and the cluster's the
// first of it, as damage of that device. Where a crash keeps it from being told, its scrub does.
func (e *equipping) lost(from, to *unit, m *engine.Migration) {
	list, n := m.Losses()
	if n == 0 {
		return
	}
	e.log.Error("blocks went to another device as damaged or lost: they read as errors until written",
		"from", from.spec, "to", to.spec, "blocks", n)
	d, _ := e.v.topology.Device(to.id)
	for _, x := range list {
		e.ds.send(cluster.Observe{Device: to.id, Fact: &cluster.DamageFound{
			Pass: d.Scrubbed.Pass + 1, Part: "block", Volume: x.Volume, Snapshot: x.Snapshot,
			Block: int64(x.Block), Detail: x.Why() + ", one of " + strconv.Itoa(n),
		}})
	}
}

// pace keeps copying to its rate.
func (e *equipping) pace(ctx context.Context, n int64) error {
	if rate := e.o.MigrateRate; rate > 0 {
		pause(ctx, time.Duration(float64(n)/float64(rate)*float64(time.Second)))
	}
	return nil
}

// classRank orders media by speed; what was asked for is never made slower.
func classRank(class string) int {
	return slices.Index([]string{"hdd", "hybrid", "flash"}, class)
}

// place is a device as one that a family may go to.
type place struct {
	spec, class    string
	room           domain.Bytes
	unfit          bool         // it leaves, failed or is suspect
	keys, volatile bool         // it takes encrypted volumes; a power cut may lose a write
	journal        domain.Bytes // where blocks are plain until they are destaged; 0: for longer
}

// target chooses where a family goes.
func (e *equipping) target(from *unit, f engine.Family) (*unit, error) {
	look := func(u *unit) place {
		d, ok := e.v.topology.Device(u.id)
		return place{
			spec: u.spec, class: d.Class, room: u.engine.Room(), keys: u.engine.Keys(),
			unfit:    !ok || d.Leaving || d.Failed || d.Suspended != "",
			volatile: u.engine.Volatile(), journal: u.engine.Staging(),
		}
	}
	var units []*unit
	var list []place
	for _, u := range e.ds.all() {
		if u != from {
			units, list = append(units, u), append(list, look(u))
		}
	}
	i, err := choosePlace(look(from), list, f)
	if err != nil {
		return nil, err
	}
	return units[i], nil
}

// choosePlace gives the place for a family: of those that may take it the one of the same medium
// with the most room, else of the next faster one. A family that is compressed needs room for what
// it takes where it is compressed again at once. NoSpace where there is none says how much is
// missing.
func choosePlace(from place, list []place, f engine.Family) (int, error) {
	need := func(p place) domain.Bytes {
		n := f.Bytes
		if p.journal > 0 { // compressed again as it goes through
			n = min(n, f.Packed+p.journal)
		}
		return n + n/migrateSpare + domain.MiB
	}
	best, roomiest := -1, -1
	better := func(p, than place) bool {
		return cmp.Or(cmp.Compare(classRank(than.class), classRank(p.class)),
			cmp.Compare(p.room, than.room)) > 0
	}
	for i, p := range list {
		if p.unfit || classRank(p.class) < classRank(from.class) || f.Encrypted && !p.keys ||
			p.volatile && !from.volatile {
			continue
		}
		if roomiest < 0 || p.room > list[roomiest].room {
			roomiest = i
		}
		if p.room >= need(p) && (best < 0 || better(p, list[best])) {
			best = i
		}
	}
	switch {
	case best >= 0:
		return best, nil
	case roomiest >= 0:
		return -1, &domain.Error{
			Kind: domain.NoSpace, Ref: from.spec,
			Msg: fmt.Sprintf("no room for %d volumes and %d snapshots of %s: %s has the most, %s, and %s "+
				"are missing", len(f.Volumes), len(f.Snapshots), mebi(f.Bytes), list[roomiest].spec,
				mebi(list[roomiest].room), mebi(need(list[roomiest])-list[roomiest].room)),
			Remedy: "add a device, or delete what is not needed; the device goes on leaving then",
		}
	}
	what := "volumes"
	if f.Encrypted {
		what = "encrypted volumes"
	}
	return -1, &domain.Error{
		Kind: domain.NoSpace, Ref: from.spec, Msg: "no other device of the node takes its " + what,
		Remedy: "add one of the same medium or a faster one: weft node device add",
	}
}

// mebi gives whole MiB, rounded up.
func mebi(n domain.Bytes) domain.Bytes { return (n + domain.MiB - 1) / domain.MiB * domain.MiB }

// whereabouts records where volumes and snapshots stand whose device is another one than the log
// has. So what a crash kept from being told is told later.
func (e *equipping) whereabouts(ctx context.Context) error {
	me := e.dir.id.Node
	for _, x := range e.v.catalog.Volumes() {
		u := e.holder(func(g *engine.Engine) bool { _, ok := g.Volume(x.Volume); return ok })
		if x.Node != me || u == nil || u.id == x.Device {
			continue
		}
		v, ok := u.engine.Volume(x.Volume)
		if !ok {
			continue
		}
		i := v.Info()
		if err := e.say(ctx, volume.Record{Volume: x.Volume, Fact: &volume.VolumeMoved{
			Node: me, From: x.Device, To: u.id, Bytes: i.Own + i.Shared,
		}}); err != nil && !domain.IsKind(err, domain.Conflict) { // deleted meanwhile
			return err
		}
	}
	for _, g := range e.v.catalog.Groups(domain.TenantID{}) {
		if g.Cut == nil || g.Cut.Node != me {
			continue
		}
		by := map[domain.DeviceID][]domain.SnapshotID{}
		for _, c := range g.Cut.Cuts {
			u := e.holder(func(x *engine.Engine) bool { _, ok := x.OpenSnapshot(c.Snapshot); return ok })
			if u != nil && u.id != c.Device {
				by[u.id] = append(by[u.id], c.Snapshot)
			}
		}
		for to, list := range by {
			if err := e.say(ctx, snapshot.Record{Group: g.Group, Fact: &snapshot.SnapshotMoved{
				Snapshots: list, To: to,
			}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// holder gives the device that has something; nil when none here does.
func (e *equipping) holder(has func(*engine.Engine) bool) *unit {
	for _, u := range e.ds.all() {
		if has(u.engine) {
			return u
		}
	}
	return nil
}
