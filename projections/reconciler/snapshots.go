package reconciler

import (
	"context"

	"weft/domain"
	"weft/domain/command"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/domain/tenancy"
	"weft/domain/volume"
)

// snapshot carries out a step about a group of snapshots and records what became of it.
func (r *Reconciler) snapshot(ctx context.Context, s *policy.Step) error {
	fact, failed := s.Fact, error(nil)
	if fact == nil {
		out := r.cfg.Dispatcher.Obey(ctx, s.Order)
		switch {
		case out.Err == nil && s.Order.Kind == command.CutSnapshots:
			fact = cutOf(s.Order, out)
		case out.Err == nil:
			fact = &snapshot.SnapshotDeleted{Snapshot: s.Order.Snapshot}
		case s.Order.Kind == command.CutSnapshots && policy.Never(domain.KindOf(out.Err)):
			fact, failed = &snapshot.SnapshotFailed{Why: reason(out.Err)}, out.Err
		default:
			return out.Err
		}
	}
	if gone, ok := fact.(*snapshot.SnapshotDeleted); ok {
		// Before the fact, behind which nobody would come back to it: the name is an intent's, and the
		// log that takes those may be away.
		if err := r.releaseGroup(ctx, s, gone.Snapshot); err != nil {
			return err
		}
	}
	res, err := r.do(ctx, "fact/"+s.Order.ID.String(), snapshot.Record{Group: s.Group, Fact: fact},
		r.token)
	if err != nil {
		return err
	}
	r.noted = max(r.noted, res.Position)
	return failed
}

// cutOf gives the fact of a cut.
func cutOf(o command.Order, out command.Outcome) *snapshot.SnapshotCut {
	ev := &snapshot.SnapshotCut{Node: o.Node, At: out.At}
	for _, t := range out.Taken {
		ev.Cuts = append(ev.Cuts, snapshot.Cut{
			Snapshot: t.Snapshot, Device: t.Device, Generation: int64(t.Generation), Size: t.Size,
		})
	}
	return ev
}

// releaseGroup gives the name of a group back whose last member goes. What this loop recorded of
// groups must be in the views for that: members of one plan go one after the other.
func (r *Reconciler) releaseGroup(
	ctx context.Context, s *policy.Step, goes domain.SnapshotID,
) error {
	if err := r.cfg.Views.Wait(ctx, r.noted); err != nil {
		return err
	}
	for _, g := range r.cfg.Views.Observed().Groups {
		if g.Group != s.Group {
			continue
		}
		for _, m := range g.Members {
			if m.Snapshot != goes {
				return nil
			}
		}
	}
	_, err := r.do(ctx, "release/"+s.Order.ID.String(), tenancy.Release{
		Tenant: s.Tenant, Object: s.Group.UUID, Why: "snapshot deleted",
	}, r.token)
	return err
}

// refused records that a wish to roll back is given up, where the order that failed led to one and
// will always fail. It gives the failure.
func (r *Reconciler) refused(ctx context.Context, s *policy.Step, failed error) error {
	if s.Wish.IsZero() || !policy.Refusal(domain.KindOf(failed)) {
		return failed
	}
	_, err := r.do(ctx, "fact/"+s.Order.ID.String(), volume.Record{
		Volume: s.Order.Volume,
		Fact:   &volume.VolumeRollbackRefused{Restore: s.Wish, Why: reason(failed)},
	}, r.token)
	if err != nil {
		return err
	}
	return failed
}

// reason gives the text of an error as an event keeps it.
func reason(err error) string {
	text := err.Error()
	return text[:min(len(text), reasonMax)]
}

// reasonMax bounds the text of an error in an event.
const reasonMax = 1024
