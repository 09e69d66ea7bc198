package engine

import "weft/dataplane/segment"

// What a reader of a replica has to know beside the bytes: the generation that they were written
// in. Who cuts a snapshot keeps back every answer that shows what was written behind the cut, until
// the cut is known everywhere. A generation that is given too high keeps an answer back for that
// moment; one that is too low lets a snapshot have an effect without its cause.
//
//	C2  No returned block was written in a higher generation than maxGen.

// Read is Volume.Read, and gives maxGen: the highest generation in which a returned block was
// written. Of blocks that no held record of data shows it is at least the highest of all in their
// slice that are settled: never too low. Whether what it returns is committed and may
// be shown is the caller's to know, before and after. Errors: those of Volume.Read.
func (p *Replica) Read(block uint64, count int, dst []byte) (maxGen uint32, err error) {
	return p.v.read(block, count, dst)
}

// maxGen gives the highest generation of blocks of one extent as a branch sees them; the lane's
// mutex is held.
func (rep *replica) maxGen(l *lane, at *branch, block uint64, count int) uint32 {
	gen, settled := uint32(0), false
	rl := &rep.lanes[l.no]
	for i := range uint64(count) {
		hs := rl.of(at)[block+i]
		if hs.top == nil && hs.known == nil && len(rl.cuts) > 0 {
			hs, _ = rep.shows(l, at, block+i)
		}
		switch {
		case hs.top != nil:
			gen = max(gen, hs.top.Gen)
			settled = settled || hs.top.Kind != segment.KindData
		case hs.known != nil:
			gen = max(gen, hs.known.gen)
		default:
			settled = true
		}
	}
	if settled {
		gen = max(gen, rep.slice(sliceOf(block)).Gen)
	}
	if at != rl.head {
		gen = min(gen, at.gen)
	}
	return gen
}

// raiseGen notes that a generation is among those that are not known by block any more.
func (rep *replica) raiseGen(slice, gen uint32) {
	if rep.slice(slice).Gen < gen {
		rep.change(slice, segment.SliceState{Gen: gen})
	}
}

// sliceOf gives the slice of a block.
func sliceOf(block uint64) uint32 { return uint32(block / segment.SliceBlocks) }
