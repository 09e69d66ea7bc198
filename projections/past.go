package projections

import (
	"context"
	"errors"

	"weft/domain"
	"weft/eventstore"
)

// errStop ends a read early and is never returned.
var errStop = errors.New("far enough")

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
	fresh := factory()
	v, at, err := r.build(ctx, p, fresh, r.cfg.KeepEvery)
	if err != nil {
		return none, Checkpoint{}, err
	}
	out, ok := v.(V)
	if !ok {
		return none, Checkpoint{}, domain.Errorf(domain.Internal, "%s clones into a %T", v.Name(), v)
	}
	return out, at, nil
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
	at := Checkpoint{Version: fresh.Version()}
	err = r.fold(ctx, fresh, &at, r.Position())
	return fresh, at, err
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
	at := Checkpoint{Version: fresh.Version()}
	if err := r.fold(ctx, fresh, &at, p); err != nil {
		return Replayed{}, err
	}
	sum, err := StateHash(fresh)
	return Replayed{fresh.Name(), fresh.Version(), at.Position.N(), sum}, err
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

func (r *Runner) build(
	ctx context.Context, p domain.Position, fresh View, most uint64,
) (View, Checkpoint, error) {
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
	v, at := r.nearest(p, fresh)
	if p.N()-at.Position.N() > most {
		return nil, Checkpoint{}, domain.Errorf(domain.TooLarge,
			"%d events lie between position %s and the nearest kept state, the most are %d",
			p.N()-at.Position.N(), p, most)
	}
	return v, at, r.fold(ctx, v, &at, p)
}

// nearest gives a copy of the kept state at or before a position, or the fresh view.
func (r *Runner) nearest(p domain.Position, fresh View) (View, Checkpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	best, at := fresh, Checkpoint{Version: fresh.Version()}
	for _, v := range r.mu.views {
		if v.view.Name() != fresh.Name() || v.at.Version != fresh.Version() {
			continue
		}
		for i := range v.kept {
			if v.kept[i].at.Position <= p {
				best, at = v.kept[i].view, v.kept[i].at
			}
		}
	}
	if k, ok := best.(Keeper); ok && best != fresh {
		best = k.Clone()
	}
	return best, at
}

// fold feeds a view what lies after its checkpoint, up to and with a position.
func (r *Runner) fold(ctx context.Context, v View, at *Checkpoint, to domain.Position) error {
	if at.Position == to {
		return nil
	}
	found := false
	err := r.feed(ctx, v, at, func() error {
		if found = at.Position == to; found || at.Position > to {
			return errStop
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	if !found { // no event stands there: another timeline's
		return &eventstore.TimelineError{Cursor: to, Floor: at.Position}
	}
	return nil
}

func (r *Runner) feed(ctx context.Context, v View, at *Checkpoint, after func() error) error {
	for rec, err := range r.cfg.Store.ReadAll(
		ctx, at.Position, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			return err
		}
		if at.Position != 0 && rec.Prev != at.Hash && rec.Position.N() == at.Position.N()+1 {
			return &eventstore.CorruptError{
				Position: rec.Position, What: "does not follow the state that was kept",
			}
		}
		records, err := r.cfg.Codec.Decode(rec.Header, rec.Data)
		if err != nil {
			return err
		}
		if err := apply(v, records); err != nil {
			return err
		}
		at.Position, at.Hash = rec.Position, rec.Hash
		if err := after(); err != nil {
			return err
		}
	}
	return nil
}
