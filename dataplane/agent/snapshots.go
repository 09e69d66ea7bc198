package agent

import (
	"context"
	"fmt"
	"slices"

	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/command"
	"weft/domain/snapshot"
)

// cut freezes all volumes of an order at one instant. On one device the engine does that; over
// several, no request of a host is let in from before the first cut until after the last. So
// whatever is in a later cut was asked for before the first one, and all that its host had seen
// acknowledged by then is in the earlier ones. Requests wait meanwhile, a few milliseconds a
// device.
func (a *Agent) cut(ctx context.Context, o command.Order, out *command.Outcome) error {
	by := map[domain.DeviceID][]engine.Cut{}
	on := map[domain.DeviceID]*engine.Engine{}
	var devices []domain.DeviceID
	o.Cuts = slices.Clone(o.Cuts)
	for i := range o.Cuts {
		c := &o.Cuts[i]
		e, err := a.locate(c.Device, func(e *engine.Engine) bool {
			_, ok := e.Volume(c.Volume)
			return ok
		})
		if err != nil {
			return err
		}
		c.Device, _ = e.Info()
		on[c.Device] = e
		if by[c.Device] == nil {
			devices = append(devices, c.Device)
		}
		by[c.Device] = append(by[c.Device], engine.Cut{Volume: c.Volume, Snapshot: c.Snapshot})
	}
	if len(devices) > 1 {
		for _, c := range o.Cuts {
			if s, ok := a.mu.served[c.Volume]; ok {
				s.Disk.Pause()
				defer s.Disk.Resume()
			}
		}
		if err := dropPart(ctx, on, o.Cuts); err != nil {
			return err
		}
	}
	for _, id := range devices {
		if err := on[id].Snapshot(ctx, by[id]...); err != nil {
			return err
		}
	}
	out.At = a.cfg.Now().UTC()
	for _, c := range o.Cuts {
		s, ok := on[c.Device].OpenSnapshot(c.Snapshot)
		if !ok {
			return domain.Errorf(domain.Unavailable, "snapshot %s went while it was taken", c.Snapshot)
		}
		i := s.Info()
		out.Taken = append(out.Taken, command.Taken{
			Snapshot: c.Snapshot, Device: c.Device, Generation: i.Generation, Size: i.Size,
		})
	}
	return nil
}

// dropPart takes back what an earlier try left that ended between two devices: the cuts that are
// there are of another instant than the others would be.
func dropPart(
	ctx context.Context, on map[domain.DeviceID]*engine.Engine, cuts []command.Cut,
) error {
	var there []command.Cut
	for _, c := range cuts {
		if _, ok := on[c.Device].OpenSnapshot(c.Snapshot); ok {
			there = append(there, c)
		}
	}
	if len(there) == len(cuts) {
		return nil
	}
	for _, c := range there {
		if err := on[c.Device].DeleteSnapshot(ctx, c.Snapshot); err != nil {
			return err
		}
	}
	return nil
}

// clone makes a volume of a snapshot, larger than it where that is asked for.
func (*Agent) clone(
	ctx context.Context, e *engine.Engine, o command.Order, out *command.Outcome,
) error {
	v, err := e.Clone(ctx, o.Snapshot, o.Volume, o.Epoch)
	if err != nil {
		return err
	}
	if o.Size > v.Size() {
		if err := e.Resize(ctx, o.Volume, o.Size); err != nil {
			return err
		}
	}
	out.Size, out.Encrypted = v.Size(), v.Encrypted()
	return nil
}

// resize changes a volume's size. It becomes smaller only while no host can reach it: an order that
// comes late, when it is served again, is refused.
func (a *Agent) resize(ctx context.Context, e *engine.Engine, o command.Order) error {
	v, ok := e.Volume(o.Volume)
	if _, served := a.mu.served[o.Volume]; ok && served && o.Size < v.Size() {
		return domain.Errorf(domain.Conflict, "the volume is served to hosts")
	}
	return e.Resize(ctx, o.Volume, o.Size)
}

// rollback makes a volume what it was. It is done only while no host can reach the volume: then
// nothing is written between two tries, and doing it twice is doing it once. An order that comes
// late, when the volume is served again, is refused.
func (a *Agent) rollback(
	ctx context.Context, e *engine.Engine, o command.Order, out *command.Outcome,
) error {
	if _, served := a.mu.served[o.Volume]; served {
		return domain.Errorf(domain.Conflict, "the volume is served to hosts")
	}
	v, ok := e.Volume(o.Volume)
	if !ok {
		return domain.Errorf(domain.NotFound, "the volume is not on device %s", o.Device)
	}
	if s, there := e.OpenSnapshot(o.Snapshot); there && o.Size > 0 && s.Size() > o.Size {
		return domain.Errorf(domain.Conflict, "the snapshot has %s and the volume was made smaller: "+
			"grow the volume to that size first", s.Size())
	}
	if !slices.Contains(a.mu.state.Obeyed, o.ID) {
		if err := e.Rollback(ctx, o.Volume, o.Snapshot); err != nil {
			return err
		}
	}
	out.Size = v.Size()
	return nil
}

// unexportIdle takes a volume from its hosts; refused with Conflict where the order says that it
// must be idle and a host uses it.
func (a *Agent) unexportIdle(o command.Order) error {
	s, ok := a.mu.served[o.Volume]
	if n := a.hosts(s, ok); n > 0 && o.Idle {
		return &domain.Error{
			Kind: domain.Conflict, Msg: fmt.Sprintf("%d connections of hosts use it", n),
			Remedy: "detach it, or say --force: hosts lose the disk under them",
		}
	}
	return a.unexport(o.Volume)
}

// hosts counts the connections that may use what is served.
func (a *Agent) hosts(s Served, served bool) int {
	if !served {
		return 0
	}
	return a.cfg.Front.Hosts(s.Export)
}

// dropScheduled deletes the cuts that schedules took of a volume that is gone: nobody looks after
// them any more. What somebody asked for by name stays.
func dropScheduled(ctx context.Context, e *engine.Engine, id domain.VolumeID) error {
	for _, s := range e.Snapshots(id) {
		if _, ours := snapshot.ScheduledOf(id, s.Snapshot()); !ours {
			continue
		}
		if err := e.DeleteSnapshot(ctx, s.Snapshot()); err != nil {
			return err
		}
	}
	return nil
}

// Ask answers a question about this node's devices. Errors: NotFound for what is not here; those of
// the engine's Allocated, Diff and Sharing; Unsupported for a question it does not know.
func (a *Agent) Ask(ctx context.Context, q command.Question) (command.Answer, error) {
	switch q.Ask {
	case command.AskSnapshots:
		return a.listSnapshots(q), nil
	case command.AskVolume:
		return a.describe(q.Volume)
	case command.AskAllocated, command.AskChanged:
		return a.ranges(q)
	case command.AskSharing:
		return a.sharing(ctx, q)
	case command.AskScrub:
		return a.scrubs()
	case command.AskFailing:
		if a.cfg.Failing == nil {
			return command.Answer{}, nil
		}
		return command.Answer{Failing: a.cfg.Failing()}, nil
	}
	return command.Answer{}, domain.Errorf(domain.Unsupported, "question %d", q.Ask)
}

func space(e *engine.Engine, v *engine.Volume) command.Space {
	id, _ := e.Info()
	i := v.Info()
	return command.Space{
		Volume: i.ID, Snapshot: i.Snapshot, Device: id, Generation: i.Generation, Size: i.Size,
		Mapped: i.Mapped, Own: i.Own, Shared: i.Shared, Saved: i.Saved,
	}
}

func (a *Agent) listSnapshots(q command.Question) command.Answer {
	var out command.Answer
	for _, e := range a.engines() {
		for _, s := range e.AllSnapshots() {
			wanted := len(q.Volumes) == 0 || slices.Contains(q.Volumes, s.ID())
			if wanted && compareIDs(s.Snapshot(), q.After) > 0 {
				out.Spaces = append(out.Spaces, space(e, s))
			}
		}
	}
	slices.SortFunc(out.Spaces, func(x, y command.Space) int {
		return compareIDs(x.Snapshot, y.Snapshot)
	})
	if len(out.Spaces) > command.SnapshotsPage {
		out.Spaces, out.More = out.Spaces[:command.SnapshotsPage], true
	}
	return out
}

func compareIDs(a, b domain.SnapshotID) int { return slices.Compare(a.UUID[:], b.UUID[:]) }

// describe tells what a volume and its snapshots hold, and who uses the volume.
func (a *Agent) describe(id domain.VolumeID) (command.Answer, error) {
	var out command.Answer
	for _, e := range a.engines() {
		if v, ok := e.Volume(id); ok {
			out.Spaces, out.Durability = append(out.Spaces, space(e, v)), e.Mode().String()
		}
		for _, s := range e.Snapshots(id) {
			if len(out.Spaces) < command.SnapshotsPage {
				out.Spaces = append(out.Spaces, space(e, s))
			}
		}
	}
	if len(out.Spaces) == 0 {
		return out, domain.Errorf(domain.NotFound, "volume %s is not on this node", id)
	}
	s, ok := a.Find(id)
	out.Hosts = a.hosts(s, ok)
	return out, nil
}

// sharing tells what of a volume or snapshot comes back when it is deleted.
func (a *Agent) sharing(ctx context.Context, q command.Question) (command.Answer, error) {
	_, v, err := a.subject(q)
	if err != nil {
		return command.Answer{}, err
	}
	s, err := v.Sharing(ctx)
	return command.Answer{Exclusive: s.Exclusive, Common: s.Common, Size: v.Size()}, err
}

// ranges tells where something holds data, or differs from an older snapshot of its family.
func (a *Agent) ranges(q command.Question) (command.Answer, error) {
	e, v, err := a.subject(q)
	if err != nil {
		return command.Answer{}, err
	}
	to := q.To
	if to == 0 {
		to = int64(v.Size())
	}
	var r engine.Ranges
	if q.Ask == command.AskAllocated {
		r, err = v.Allocated(q.From, to, q.Limit)
	} else {
		before, ok := e.OpenSnapshot(q.Since)
		if ok {
			r, err = v.Diff(before, q.From, to, q.Limit)
		}
		if !ok || domain.IsKind(err, domain.Invalid) {
			return command.Answer{}, &domain.Error{
				Kind: domain.Invalid, Ref: "snapshot/" + q.Since.String(), Msg: "it is of another volume",
				Remedy: "compare snapshots of one volume, or of a volume and its clones",
			}
		}
	}
	return command.Answer{Ranges: r.List, Next: r.Next, Size: v.Size()}, err
}

// scrubs tells how far the scrub of each device has come.
func (a *Agent) scrubs() (command.Answer, error) {
	var out command.Answer
	for _, e := range a.engines() {
		s, err := e.ScrubStatus()
		if err != nil {
			return out, err
		}
		id, _ := e.Info()
		out.Scrubs = append(out.Scrubs, command.Scrub{
			Device: id, Running: s.Running, Underway: s.Stage != 0, Pass: s.Pass,
			Checked: domain.Bytes(s.Checked), Live: domain.Bytes(e.Stats().LiveBytes),
			Damaged: int64(s.Damaged), Started: s.Started, Finished: s.Finished,
		})
	}
	return out, nil
}

// subject finds what a question is about.
func (a *Agent) subject(q command.Question) (*engine.Engine, *engine.Volume, error) {
	for _, e := range a.engines() {
		if !q.Snapshot.IsZero() {
			if s, ok := e.OpenSnapshot(q.Snapshot); ok {
				return e, s, nil
			}
		} else if v, ok := e.Volume(q.Volume); ok {
			return e, v, nil
		}
	}
	return nil, nil, domain.Errorf(domain.NotFound, "it is not on this node's devices")
}
