package engine

import (
	"sync"

	"weft/backends"
	"weft/dataplane/segment"
)

// Reading is a read that no goroutine waits for: Count blocks from Block on, all inside one extent,
// into Dst, which is aligned to backends.Align. From Start until To.Arrived it and Dst belong to
// the engine. Then its receiver calls Check once, and what Check says.
type Reading struct {
	Block uint64
	Count int
	Dst   []byte // Count blocks
	To    Arrival
	Gen   uint32 // set with the outcome: of a replica, as Replica.Read gives it

	vol *Volume
	rd  *reader
}

// Arrival is told once that all bytes of a Reading that will come are there. It may run inside
// Start, or on the goroutine that all reads of the device wait for: it must not block, nor read but
// by TryStart.
type Arrival interface{ Arrived(r *Reading) }

// Start starts a read, or gives false: then nothing was begun and Read serves it, also where the
// answer is an error. The blocks are one view of the index, as for Read. With more the device may
// keep it back; the caller promises another Start or Kick before it waits for anything.
func (v *Volume) Start(r *Reading, more bool) bool {
	dev, ok := v.e.dev.(backends.ReadStarter)
	if !ok || v.inside(r.Block, r.Count) != nil || len(r.Dst) != r.Count*segment.BlockSize ||
		!backends.Aligned(r.Dst, backends.Align) {
		return false
	}
	rd := readers.Get().(*reader) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	rd.again = false
	rd.stream = v.ahead.note(v, r.Block, r.Count)
	if rd.lookup(v, r.Block, r.Count, r.Dst) != nil || rd.plan(v.e, r.Dst) >= 0 {
		rd.release()
		return false
	}
	r.vol, r.rd, r.Gen, rd.owner = v, rd, rd.gen, r
	size := len(r.Dst) // once started, r may have ended and be in other use
	if !rd.start(dev, more) {
		r.rd = nil
		rd.release()
		return false
	}
	v.e.stats.reads.Add(1)
	v.e.stats.readBytes.Add(int64(size))
	return true
}

// Begun is what became of TryStart.
type Begun int

// What may become of it.
const (
	Refused Begun = iota // nothing was begun: Read serves it
	Started              // Arrived will be called
	Here                 // all bytes are there, and Arrived is not called: the caller calls Check
)

// TryStart starts a read as Start does, but never waits: it may be called from Arrived, and from
// what a front end does with a completed read. What it would have to wait for it refuses, and reads
// of a replica, which has mutexes of its own. It needs no Kick.
func (v *Volume) TryStart(r *Reading) Begun {
	dev, ok := v.e.dev.(backends.ReadChainer)
	if !ok || v.inside(r.Block, r.Count) != nil || len(r.Dst) != r.Count*segment.BlockSize ||
		!backends.Aligned(r.Dst, backends.Align) || v.br.Load().fam.replica != nil {
		return Refused
	}
	l := v.lane(r.Block)
	if !tryLock(&l.mu.Mutex) {
		return Refused
	}
	rd := readers.Get().(*reader) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	rd.again = false
	err := rd.look(l, v, r.Block, r.Count, r.Dst)
	l.mu.Unlock()
	rd.stream = v.ahead.note(v, r.Block, r.Count)
	if err != nil || rd.plan(v.e, r.Dst) >= 0 {
		rd.release()
		return Refused
	}
	r.vol, r.rd, r.Gen, rd.owner = v, rd, rd.gen, r
	size := int64(len(r.Dst)) // once started, r may have ended and be in other use
	begun := rd.tryStart(dev)
	if begun == Refused {
		r.rd = nil
		rd.release()
		return Refused
	}
	v.e.stats.reads.Add(1)
	v.e.stats.readBytes.Add(size)
	return begun
}

// lockTries is how often a mutex is tried that is mostly held for a few hundred nanoseconds.
const lockTries = 64

func tryLock(mu *sync.Mutex) bool {
	for range lockTries {
		if mu.TryLock() {
			return true
		}
	}
	return false
}

// Kick hands to the device what Start kept back.
func (v *Volume) Kick() {
	if dev, ok := v.e.dev.(backends.ReadStarter); ok {
		dev.KickReads()
	}
}

// Check verifies what has arrived and gives the outcome, as Read does. It does not block. When it
// gives false, bytes and index did not agree, because the cleaner moved a block or because it is
// corrupt: then Again has to be called, where waiting is allowed.
func (r *Reading) Check() (ended bool, err error) {
	rd := r.rd
	r.rd = nil
	err = rd.check(r.vol)
	rd.release()
	return err != errStale, err //nolint:errorlint // check gives it bare
}

// Again reads once more, waiting, and gives the outcome.
func (r *Reading) Again() (err error) {
	r.Gen, err = r.vol.read(r.Block, r.Count, r.Dst)
	return err
}

// start starts all pieces, the last with more; false when the device cannot.
func (rd *reader) start(dev backends.ReadStarter, more bool) bool {
	n := len(rd.pieces)
	rd.left.Store(int32(n) + 1)
	for i := range rd.pieces {
		p := &rd.pieces[i]
		if dev.StartRead(p, more || i < n-1) {
			continue
		}
		if i == 0 {
			return false
		}
		rd.ReadDone(p, dev.ReadAt(p.P, p.Off))
	}
	rd.arrive()
	return true
}

// tryStart starts all pieces, or as many as the device takes without waiting: the others make the
// read stale.
func (rd *reader) tryStart(dev backends.ReadChainer) Begun {
	rd.left.Store(int32(len(rd.pieces)) + 1)
	for i := range rd.pieces {
		if dev.TryStartRead(&rd.pieces[i]) {
			continue
		}
		if i == 0 {
			return Refused
		}
		rd.failed(errStale)
		rd.left.Add(int32(i - len(rd.pieces)))
		break
	}
	if rd.left.Add(-1) == 0 {
		return Here
	}
	return Started
}

// ReadDone implements backends.ReadDone for the pieces.
func (rd *reader) ReadDone(_ *backends.Read, err error) {
	if err != nil {
		rd.failed(err)
	}
	rd.arrive()
}

// failed keeps the first error. It is apart so that success allocates nothing.
func (rd *reader) failed(err error) { rd.fail.CompareAndSwap(nil, &err) }

// arrive counts a piece; the last one tells who waits.
func (rd *reader) arrive() {
	if rd.left.Add(-1) > 0 {
		return
	}
	if rd.owner == nil {
		rd.done <- struct{}{}
		return
	}
	rd.owner.To.Arrived(rd.owner)
}
