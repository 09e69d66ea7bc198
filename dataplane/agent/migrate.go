package agent

import (
	"context"
	"errors"
	"time"

	"weft/dataplane/engine"
	"weft/domain"
	"weft/domain/command"
)

// drainMost bounds how long a switch waits for requests that were let in before: hosts wait, too.
const drainMost = 10 * time.Second

// Migrate takes a family of volumes from one device of this node to another while hosts use them.
// For the last of it they wait; no request fails by it. pace is engine.Migrate's, watch, which may
// be nil, is told once with what Progress can be asked of. It gives the bytes that were copied.
//
// An error leaves the family where it was, but for one of the devices itself: then moved tells
// whether it stands on the other device now. Orders are obeyed meanwhile, but during the switch.
func (a *Agent) Migrate(ctx context.Context, from, to domain.DeviceID, family uint32,
	pace func(ctx context.Context, bytes int64) error, watch func(*engine.Migration),
) (bytes domain.Bytes, moved bool, err error) {
	src, err := a.engine(from)
	if err != nil {
		return 0, false, err
	}
	dst, err := a.engine(to)
	if err != nil {
		return 0, false, err
	}
	m, err := src.Migrate(family, dst, pace)
	if err != nil {
		return 0, false, err
	}
	if watch != nil {
		watch(m)
	}
	if err = m.Copy(ctx); err == nil {
		m.Release() // the order that is obeyed now may take long
		err = a.change(ctx, m, dst)
	}
	over := context.WithoutCancel(ctx)
	if !m.Left() {
		return 0, false, errors.Join(err, m.Abort(over))
	}
	if err == nil {
		err = m.Clean(over)
	}
	bytes, _ = m.Progress()
	return bytes, true, err
}

// change lets the disks of a family go on with their copies. What was written while it waited for
// an order is copied first, so that the pause is short. Then no request is let in until the disks
// are where the copies are. No order is obeyed meanwhile.
func (a *Agent) change(ctx context.Context, m *engine.Migration, dst *engine.Engine) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := m.Copy(ctx); err != nil {
		return err
	}
	var disks []Served
	for _, id := range m.Volumes() {
		if s, ok := a.mu.served[id]; ok {
			if dst.Volatile() && !s.Disk.Info().Volatile {
				return volatileTarget()
			}
			disks = append(disks, s)
		}
	}
	for _, s := range disks {
		s.Disk.Pause()
		defer s.Disk.Resume()
	}
	m.Release() // what was let in before goes through
	drain, cancel := context.WithTimeout(ctx, drainMost)
	defer cancel()
	for _, s := range disks {
		if err := s.Disk.Drain(drain); err != nil {
			return err
		}
	}
	err := m.Finish(ctx)
	if !m.Left() {
		return err
	}
	for _, s := range disks { // also where the target failed: nothing may be written to the source
		v, ok := m.Copied(s.Disk.Info().ID)
		if !ok {
			return errors.Join(err, domain.Errorf(domain.Internal, "%s was not copied", s.Export.Name))
		}
		err = errors.Join(err, s.Disk.Retarget(target(dst, v)))
	}
	return err
}

func volatileTarget() error {
	return &domain.Error{
		Kind:   domain.Unsupported,
		Msg:    "hosts were told that no write is lost by a power cut, and the target cannot promise it",
		Remedy: "migrate to a device of a node without volatile NVRAM",
	}
}

// home gives the engine that an order is for: that of the device it names, or, since volumes go to
// other devices while orders are under way, the one that has what it is about.
func (a *Agent) home(o command.Order) (*engine.Engine, error) {
	return a.locate(o.Device, func(e *engine.Engine) bool {
		if o.Kind == command.CloneVolume || o.Kind == command.DeleteSnapshot {
			_, ok := e.OpenSnapshot(o.Snapshot)
			return ok
		}
		_, ok := e.Volume(o.Volume)
		return ok
	})
}

// locate gives the engine of a device if it has something, else the one that has it, else the
// device's. NotFound where that is not here either.
func (a *Agent) locate(id domain.DeviceID, has func(*engine.Engine) bool) (*engine.Engine, error) {
	named, err := a.engine(id)
	if err == nil && has(named) {
		return named, nil
	}
	for _, e := range a.engines() {
		if has(e) {
			return e, nil
		}
	}
	return named, err
}
