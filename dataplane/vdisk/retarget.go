package vdisk

import (
	"context"

	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/domain"
)

// place is where the volume stands, and what follows from that. It does not change.
type place struct {
	Target
	record  int64     // most bytes of one record
	starter starter   // nil: the volume's reads hold a goroutine each
	flow    *qos.Flow // nil: no other volume is on the device
}

func (d *Disk) place(t Target) *place {
	p := &place{Target: t, record: int64(t.Volume.RecordBlocks()) * segment.BlockSize}
	p.starter, _ = t.Volume.(starter)
	if t.Scheduler != nil {
		p.flow = t.Scheduler.Flow(d.run)
	}
	return p
}

// leave notes that a request is under way no more.
func (d *Disk) leave() {
	if d.flight.Add(-1) > 0 {
		return
	}
	if w := d.drain.Load(); w != nil {
		select {
		case *w <- struct{}{}:
		default:
		}
	}
}

// Drain waits until no request is under way, but for flushes, which Pause lets in. It is called
// while the disk is paused, by one goroutine. Aborted when ctx ends first.
//
// A request is counted before it asks the gate, and one that waited while the gate is locked; so
// whoever is not counted once Pause has returned is kept back by it.
func (d *Disk) Drain(ctx context.Context) error {
	w := make(chan struct{}, 1)
	d.drain.Store(&w)
	defer d.drain.Store(nil)
	for d.flight.Load() > 0 {
		select {
		case <-w:
		case <-ctx.Done():
			return &domain.Error{
				Op: "vdisk.Drain", Kind: domain.Aborted, Ref: "volume/" + d.info.ID.String(),
				Msg: "requests of hosts are still under way", Err: ctx.Err(),
			}
		}
	}
	return nil
}

// Retarget lets the disk go on with its volume on another device. It is called while the disk is
// paused and drained; what waits at the gate runs there after Resume. What hosts were told of the
// disk stays: a disk that is not Volatile must not become so. Conflict for that, and for another
// volume.
func (d *Disk) Retarget(t Target) error {
	switch {
	case t.Volume.ID() != d.info.ID:
		return domain.Errorf(domain.Conflict, "volume %s is another one", t.Volume.ID())
	case t.Volatile && !d.info.Volatile:
		return domain.Errorf(domain.Conflict, "hosts were told that no write is lost by a power cut")
	}
	p := d.place(t)
	if p.flow != nil {
		p.flow.SetShare(d.Share())
	}
	d.at.Store(p)
	return nil
}
