package hybrid

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"weft/backends"
)

// background is for flushes whose end nobody may hasten.
var background = context.Background()

// Device is a pair as one device. Its methods may be called from many goroutines.
type Device struct {
	flash, disk backends.Device
	geometry    backends.Geometry
	closed      atomic.Bool

	// flushing serialises flushes of the disk: who finds it clean must know that the flush which made
	// it so has ended. written is set when a write to it has ended, so a flush that began before is
	// not taken for one that covers it.
	flushing sync.Mutex
	written  atomic.Bool

	// kept tells, for each member, that it may keep reads back that nobody has handed over. It is set
	// when the member has the read, so who clears it finds the read there.
	kept [2]atomic.Bool

	stats struct {
		reads, writes, flushes, discards    atomic.Int64
		readBytes, writeBytes, discardBytes atomic.Int64
		errors                              atomic.Int64
	}
}

var (
	_ backends.Device       = (*Device)(nil)
	_ backends.ReadStarter  = (*Device)(nil)
	_ backends.VectorWriter = (*Device)(nil)
)

// Format makes a pair of two devices, durably. It refuses one that has a label (ErrMember), also
// where the making of a pair was cut short, and one that is too small (ErrSmall), in a MemberError.
// What else the devices hold is not looked at, and stays. It gives no device: Open does.
func Format(flash, disk backends.Device) error {
	f, d := flash.Geometry(), disk.Geometry()
	var pair [16]byte
	_, _ = rand.Read(pair[:]) // never fails: it ends the process instead
	members := []struct {
		dev backends.Device
		Label
	}{ // the disk first: whoever finds a label on the flash may believe that the disk has one
		{disk, Label{Disk, pair, d.Size, f.Size}},
		{flash, Label{Flash, pair, f.Size, d.Size}},
	}
	for i := range members {
		m := &members[i]
		refuse := func(err error) error { return &MemberError{m.dev.Geometry().Path, m.Role, err} }
		if part(&m.Label) <= 0 {
			return refuse(ErrSmall)
		}
		l, err := Probe(m.dev)
		if err != nil {
			return refuse(err)
		}
		if l != nil {
			return refuse(ErrMember)
		}
	}
	for i := range members {
		m := &members[i]
		if err := m.Label.write(m.dev); err != nil {
			return &MemberError{m.dev.Geometry().Path, m.Role, err}
		}
	}
	return nil
}

// part gives how many bytes a member gives to its pair.
func part(l *Label) int64 {
	if l.Role == Disk {
		return end(l.Size) - unit
	}
	return end(l.Size)
}

// Open joins the members of a pair, which the Device owns from now on; after an error they are
// still the caller's. A member without a label, of the other role, of another pair or of another
// size is refused by a MemberError, as is one that cannot be read.
func Open(flash, disk backends.Device) (*Device, error) {
	labels := [2]*Label{}
	for i, m := range []backends.Device{flash, disk} {
		role := Role(i + 1)
		refuse := func(err error) error { return &MemberError{m.Geometry().Path, role, err} }
		l, err := Probe(m)
		switch {
		case err != nil:
			return nil, refuse(err)
		case l == nil:
			return nil, refuse(ErrNoMember)
		case l.Role != role:
			return nil, refuse(ErrSwapped)
		case end(l.Size) != end(m.Geometry().Size):
			return nil, refuse(ErrSize)
		}
		labels[i] = l
	}
	f, d := labels[0], labels[1]
	switch {
	case f.Pair != d.Pair:
		return nil, &MemberError{disk.Geometry().Path, Disk, ErrOther}
	case f.Other != d.Size || d.Other != f.Size:
		return nil, &MemberError{disk.Geometry().Path, Disk, ErrSize}
	}
	pair := &Device{flash: flash, disk: disk, geometry: join(flash, disk, part(f), part(d))}
	pair.written.Store(true) // what a process before this one wrote may be in its cache
	return pair, nil
}

// join gives the geometry of a pair: as careful as the more careful member.
func join(flash, disk backends.Device, front, back int64) backends.Geometry {
	f, d := flash.Geometry(), disk.Geometry()
	g := backends.Geometry{
		Size: front + back, Boundary: front,
		LogicalBlock: max(f.LogicalBlock, d.LogicalBlock),
		MemoryAlign:  max(f.MemoryAlign, d.MemoryAlign),
		OptimalIO:    f.OptimalIO, Rotational: f.Rotational,
		Durability: min(f.Durability, d.Durability),
		CanDiscard: f.CanDiscard || d.CanDiscard,
		Path:       "hybrid:flash=" + f.Path + ",hdd=" + d.Path,
		Model:      f.Model + " + " + d.Model,
		Serial:     f.Serial + "+" + d.Serial,
	}
	g.AtomicUnit = max(min(f.AtomicUnit, d.AtomicUnit), g.LogicalBlock)
	return g
}

// Geometry describes the pair. Rotational and OptimalIO are the flash's; the path is that of both,
// as the command line takes it.
func (d *Device) Geometry() backends.Geometry { return d.geometry }

// Members gives the two devices, for those who ask what they are. They stay the pair's.
func (d *Device) Members() (flash, disk backends.Device) { return d.flash, d.disk }

// check refuses what is outside the contract.
func (d *Device) check(what string, off, n int64, p []byte) error {
	err := d.geometry.Check(p, off, n)
	if d.closed.Load() {
		err = backends.ErrClosed
	}
	if err == nil {
		return nil
	}
	d.stats.errors.Add(1)
	return fmt.Errorf("hybrid: %s %d bytes at %d: %w", what, n, off, err)
}

// below gives how many of n bytes from off on stand on the flash.
func (d *Device) below(off, n int64) int64 { return max(0, min(n, d.geometry.Boundary-off)) }

// onDisk gives the place on the disk of an offset of the pair.
func (d *Device) onDisk(off int64) int64 { return off - d.geometry.Boundary + unit }

// note counts an error and gives it back.
func (d *Device) note(err error) error {
	if err != nil {
		d.stats.errors.Add(1)
	}
	return err
}

// ReadAt implements backends.Device.
func (d *Device) ReadAt(p []byte, off int64) error {
	n := int64(len(p))
	if err := d.check("read", off, n, p); err != nil {
		return err
	}
	k := d.below(off, n)
	if k > 0 {
		if err := d.flash.ReadAt(p[:k], off); err != nil {
			return d.note(err)
		}
	}
	if k < n {
		if err := d.disk.ReadAt(p[k:], d.onDisk(off+k)); err != nil {
			return d.note(err)
		}
	}
	d.stats.reads.Add(1)
	d.stats.readBytes.Add(n)
	return nil
}

// WriteAt implements backends.Device.
func (d *Device) WriteAt(p []byte, off int64, fua bool) error {
	n := int64(len(p))
	if err := d.check("write", off, n, p); err != nil {
		return err
	}
	k := d.below(off, n)
	if k > 0 {
		if err := d.flash.WriteAt(p[:k], off, fua); err != nil {
			return d.note(err)
		}
	}
	if k < n {
		err := d.disk.WriteAt(p[k:], d.onDisk(off+k), fua)
		d.written.Store(true)
		if err != nil {
			return d.note(err)
		}
	}
	d.stats.writes.Add(1)
	d.stats.writeBytes.Add(n)
	return nil
}

// WriteVAt implements backends.VectorWriter. A member that cannot gets buffer by buffer.
func (d *Device) WriteVAt(bufs [][]byte, off int64, fua bool) error {
	n := int64(0)
	for _, b := range bufs {
		if err := d.check("write", off+n, int64(len(b)), b); err != nil {
			return err
		}
		n += int64(len(b))
	}
	k := d.below(off, n)
	front, back := divide(bufs, k)
	if k > 0 {
		if err := backends.WriteV(d.flash, front, off, fua); err != nil {
			return d.note(err)
		}
	}
	if k < n {
		err := backends.WriteV(d.disk, back, d.onDisk(off+k), fua)
		d.written.Store(true)
		if err != nil {
			return d.note(err)
		}
	}
	d.stats.writes.Add(1)
	d.stats.writeBytes.Add(n)
	return nil
}

// divide parts buffers behind k bytes. Almost always one side gets all of them.
func divide(bufs [][]byte, k int64) (front, back [][]byte) {
	if k == 0 {
		return nil, bufs
	}
	for i, b := range bufs {
		if k < int64(len(b)) {
			front, back = bufs[:i], bufs[i:]
			if k > 0 {
				front = append(append([][]byte(nil), front...), b[:k])
				back = append([][]byte{b[k:]}, bufs[i+1:]...)
			}
			return front, back
		}
		k -= int64(len(b))
	}
	return bufs, nil
}

// Flush implements backends.Device: what was written to either member is durable.
func (d *Device) Flush(ctx context.Context) error {
	if err := d.check("flush", 0, 0, nil); err != nil {
		return err
	}
	if err := errors.Join(d.flushDisk(ctx), d.flash.Flush(ctx)); err != nil {
		return d.note(err)
	}
	d.stats.flushes.Add(1)
	return nil
}

func (d *Device) flushDisk(ctx context.Context) error {
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if !d.written.Swap(false) {
		return nil
	}
	err := d.disk.Flush(ctx)
	if err != nil {
		d.written.Store(true)
	}
	return err
}

// Discard implements backends.Device.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	if err := d.check("discard", off, n, nil); err != nil {
		return err
	}
	k := d.below(off, n)
	if k > 0 {
		if err := d.flash.Discard(ctx, off, k); err != nil {
			return d.note(err)
		}
	}
	if k < n {
		if err := d.disk.Discard(ctx, d.onDisk(off+k), n-k); err != nil {
			return d.note(err)
		}
	}
	d.stats.discards.Add(1)
	d.stats.discardBytes.Add(n)
	return nil
}

// shifted is a started read of the disk: the same, but for its place.
type shifted struct {
	backends.Read
	d *Device
	r *backends.Read
}

var shifts = sync.Pool{New: func() any { return &shifted{} }}

// ReadDone implements backends.ReadDone.
func (s *shifted) ReadDone(_ *backends.Read, err error) {
	r, d := s.r, s.d
	*s = shifted{}
	shifts.Put(s)
	r.To.ReadDone(r, d.note(err))
}

// StartRead implements backends.ReadStarter; false also for a read across the boundary. A read of
// the flash is the flash's own.
func (d *Device) StartRead(r *backends.Read, more bool) bool {
	n := int64(len(r.P))
	k := d.below(r.Off, n)
	started := false
	if d.check("read", r.Off, n, r.P) == nil && (k == 0 || k == n) {
		started = d.startOn(r, k == n, more)
	}
	if started {
		d.stats.reads.Add(1)
		d.stats.readBytes.Add(n)
	}
	if !more {
		d.KickReads()
	}
	return started
}

// startOn starts a read on one member.
func (d *Device) startOn(r *backends.Read, flash, more bool) bool {
	member, i := d.disk, 1
	if flash {
		member, i = d.flash, 0
	}
	dev, ok := member.(backends.ReadStarter)
	if !ok || !d.shift(r, flash, func(r *backends.Read) bool { return dev.StartRead(r, more) }) {
		return false
	}
	if more {
		d.kept[i].Store(true)
	}
	return true
}

// shift starts a read at its place on a member.
func (d *Device) shift(r *backends.Read, flash bool, start func(*backends.Read) bool) bool {
	if flash {
		return start(r)
	}
	s := shifts.Get().(*shifted) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	*s = shifted{Read: backends.Read{P: r.P, Off: d.onDisk(r.Off), To: s}, d: d, r: r}
	if start(&s.Read) {
		return true
	}
	*s = shifted{}
	shifts.Put(s)
	return false
}

// TryStartRead implements backends.ReadChainer; false as for StartRead.
func (d *Device) TryStartRead(r *backends.Read) bool {
	n := int64(len(r.P))
	k := d.below(r.Off, n)
	if d.geometry.Check(r.P, r.Off, n) != nil || k != 0 && k != n {
		return false
	}
	member := d.disk
	if k == n {
		member = d.flash
	}
	dev, ok := member.(backends.ReadChainer)
	if !ok || !d.shift(r, k == n, dev.TryStartRead) {
		return false
	}
	d.stats.reads.Add(1)
	d.stats.readBytes.Add(n)
	return true
}

// KickReads implements backends.ReadStarter: a caller knows of one device, so what either member
// keeps back is handed over.
func (d *Device) KickReads() {
	for i, m := range []backends.Device{d.flash, d.disk} {
		if d.kept[i].Load() && d.kept[i].Swap(false) {
			if dev, ok := m.(backends.ReadStarter); ok {
				dev.KickReads()
			}
		}
	}
}

// Stats counts calls to the pair. Those of the members are at Members.
func (d *Device) Stats() backends.DeviceStats {
	s := &d.stats
	return backends.DeviceStats{
		Reads: s.reads.Load(), Writes: s.writes.Load(), Flushes: s.flushes.Load(),
		Discards: s.discards.Load(), ReadBytes: s.readBytes.Load(), WriteBytes: s.writeBytes.Load(),
		DiscardBytes: s.discardBytes.Load(), Errors: s.errors.Load(),
	}
}

// Close closes both members.
func (d *Device) Close() error {
	d.closed.Store(true)
	return errors.Join(d.flash.Close(), d.disk.Close())
}
