package projections

import (
	"context"

	"weft/domain"
	"weft/eventstore"
)

// At builds a view as it was at a past position, 0 being before the first event. The factory gives
// a fresh, empty one; when the runner keeps states of a view with the same name and version, the
// fold begins from a copy of the nearest one. The result belongs to the caller and follows nothing.
//
// Errors: OutOfRange beyond the head; TooLarge when no kept state is near enough; Busy while
// BuildsMax builds are under way; a TimelineError for a position of a lost history.
func At[V View](
	ctx context.Context, r *Runner, p domain.Position, factory func() V,
) (V, Checkpoint, error) {
	var none V
	list, at, err := AtOnce(ctx, r, p, factory())
	if err != nil {
		return none, Checkpoint{}, err
	}
	out, ok := list[0].(V)
	if !ok {
		return none, Checkpoint{}, domain.Errorf(domain.Internal, "%s clones into a %T",
			list[0].Name(), list[0])
	}
	return out, at, nil
}

// AtOnce is At for several views, which are given fresh and come back in the same order. The log is
// read and decoded once for all of them, and they count as one build.
func AtOnce(ctx context.Context, r *Runner, p domain.Position, fresh ...View) (
	[]View, Checkpoint, error,
) {
	head, err := r.cfg.Store.Head(ctx)
	if err != nil {
		return nil, Checkpoint{}, err
	}
	if p > head.Position {
		return nil, Checkpoint{}, beyond(p, head.Position)
	}
	leave, err := r.enter()
	if err != nil {
		return nil, Checkpoint{}, err
	}
	defer leave()
	folds := make([]*folding, len(fresh))
	for i, f := range fresh {
		folds[i] = r.nearest(p, f)
		if far := p.N() - folds[i].at.Position.N(); far > r.cfg.KeepEvery {
			return nil, Checkpoint{}, domain.Errorf(domain.TooLarge,
				"%d events lie between position %s and the nearest kept state, the most are %d",
				far, p, r.cfg.KeepEvery)
		}
	}
	if err := r.fold(ctx, p, folds...); err != nil {
		return nil, Checkpoint{}, err
	}
	out := make([]View, len(folds))
	for i, f := range folds {
		out[i] = f.view
	}
	return out, folds[0].at, nil
}

// Rebuild folds a fresh view from the first event to where the live views stand, whatever the
// distance. It counts as a build. Equal state hashes prove that the live one has not drifted (P4).
func Rebuild[V View](ctx context.Context, r *Runner, factory func() V) (V, Checkpoint, error) {
	fresh := factory()
	leave, err := r.enter()
	if err != nil {
		return fresh, Checkpoint{}, err
	}
	defer leave()
	f := &folding{fresh, Checkpoint{Version: fresh.Version()}}
	err = r.fold(ctx, r.Position(), f)
	return fresh, f.at, err
}

// Replayed says what a replay of one view came to.
type Replayed struct {
	View    string
	Version uint16
	Events  uint64
	Hash    [32]byte // the view's StateHash
}

// Replay folds a fresh, empty view from the first event up to a position, 0 being before it. No
// kept state is used, so what comes out follows from the log alone: two replays of one log, on
// whatever node, give equal hashes. The view is the caller's. It counts as one build.
//
// Errors: OutOfRange beyond the head; Busy as for At; a TimelineError for a lost history.
func Replay(ctx context.Context, r *Runner, p domain.Position, fresh View) (Replayed, error) {
	head, err := r.cfg.Store.Head(ctx)
	if err != nil {
		return Replayed{}, err
	}
	if p > head.Position {
		return Replayed{}, beyond(p, head.Position)
	}
	leave, err := r.enter()
	if err != nil {
		return Replayed{}, err
	}
	defer leave()
	f := &folding{fresh, Checkpoint{Version: fresh.Version()}}
	if err := r.fold(ctx, p, f); err != nil {
		return Replayed{}, err
	}
	sum, err := StateHash(fresh)
	return Replayed{fresh.Name(), fresh.Version(), f.at.Position.N(), sum}, err
}

func beyond(p, head domain.Position) error {
	return domain.Errorf(domain.OutOfRange, "position %s is beyond the head %s", p, head)
}

func (r *Runner) enter() (leave func(), err error) {
	select {
	case r.builds <- struct{}{}:
		return func() { <-r.builds }, nil
	default:
		return nil, &domain.Error{
			Op: "projections.At", Kind: domain.Busy, Msg: "enough views of the past are being built",
			Remedy: "try again in a second",
		}
	}
}

// folding is a view on its way to a position, with how far it is.
type folding struct {
	view View
	at   Checkpoint
}

// nearest gives a copy of the kept state at or before a position, or the fresh view.
func (r *Runner) nearest(p domain.Position, fresh View) *folding {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &folding{fresh, Checkpoint{Version: fresh.Version()}}
	for _, v := range r.mu.views {
		if v.view.Name() != fresh.Name() || v.at.Version != fresh.Version() {
			continue
		}
		for i := range v.kept {
			if v.kept[i].at.Position <= p {
				f.view, f.at = v.kept[i].view, v.kept[i].at
			}
		}
	}
	if k, ok := f.view.(Keeper); ok && f.view != fresh {
		f.view = k.Clone()
	}
	return f
}

// take applies an event's records when it lies behind what the view has seen, and it must follow
// that.
func (f *folding) take(rec *eventstore.Recorded, records []domain.Record) error {
	if rec.Position <= f.at.Position {
		return nil
	}
	if f.at.Position != 0 && rec.Prev != f.at.Hash && rec.Position.N() == f.at.Position.N()+1 {
		return &eventstore.CorruptError{
			Position: rec.Position, What: "does not follow the state that was kept",
		}
	}
	if err := apply(f.view, records); err != nil {
		return err
	}
	f.at.Position, f.at.Hash = rec.Position, rec.Hash
	return nil
}

// fold feeds views what lies after their checkpoints, up to and with a position.
func (r *Runner) fold(ctx context.Context, to domain.Position, folds ...*folding) error {
	from := to
	for _, f := range folds {
		from = min(from, f.at.Position)
	}
	if from == to {
		return nil
	}
	last := from
	for rec, err := range r.cfg.Store.ReadAll(
		ctx, from, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			return err
		}
		if rec.Position > to {
			break
		}
		records, err := r.cfg.Codec.Decode(rec.Header, rec.Data)
		if err != nil {
			return err
		}
		for _, f := range folds {
			if err := f.take(&rec, records); err != nil {
				return err
			}
		}
		if last = rec.Position; last == to {
			return nil
		}
	}
	return &eventstore.TimelineError{Cursor: to, Floor: last} // no event stands there
}
