package engine

import (
	"cmp"
	"errors"
	"math"
	"slices"

	"weft/dataplane/segment"
)

// Limits of one cleaning round.
const (
	victimsMax = 64
	// tooFull is the share of live bytes above which cleaning a segment wins nothing.
	tooFull = 0.97
	// dearFrom is how much is moved for each byte won from where on the cleaner hurries: 1 at 80 % of
	// live data, spread evenly, and 2 at 95 %.
	dearFrom = 1.5
)

// victim is a segment to be cleaned.
type victim struct {
	id     uint32
	seq    uint64
	stream segment.Stream
	live   int64
	score  float64
}

// clean moves what lives in the best victims into the cleaner's own segments and tells whether
// there was anything to win. The victims become free by the checkpoint that follows, as do the
// segments that died by themselves: as long as those are enough nothing is moved.
func (e *Engine) clean() (bool, error) {
	defer e.thinMeta()
	owed := max(e.space.owed(), e.space.owedToCopies())
	if owed <= 0 {
		return false, nil
	}
	// Two outputs may end half full, one for each generation. Hosts may take free segments while
	// this round runs; then it ends early.
	free := e.space.freeCount()
	budget := int64(max(free-e.space.reserve(segment.StreamGen1)-2, 1)) * e.space.packed.Load()
	want := int64(owed) * e.space.size
	c := e.newCleaner()
	defer c.settle()
	won, out := int64(0), int64(0)
	defer func() { e.maint.dear = float64(out) > dearFrom*float64(won) }()
	for _, v := range e.victims(false) {
		if won >= want {
			break
		}
		if out+v.live > budget {
			continue
		}
		if err := c.segment(v); errors.Is(err, errNoSegment) {
			return won > 0, nil // what was not moved stays where it is
		} else if err != nil {
			return won > 0, err
		}
		won += e.space.size - v.live
		out += v.live
		e.stats.cleaned.Add(1)
	}
	err := c.end()
	if errors.Is(err, errNoSegment) {
		err = nil
	}
	return won > 0, err
}

// victims lists sealed segments, those of the disk of a pair or the others, by cost and benefit:
// (1-u)/(1+u) times the root of the age, as the log-structured file systems do it (Rosenblum and
// Ousterhout 1992); the root is from simulation.
func (e *Engine) victims(disk bool) []victim {
	s := e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []victim
	for i, sg := range s.mu.segs {
		live := sg.live.Load()
		u := float64(live) / float64(s.size)
		if sg.state != segSealed || sg.cold != disk || sg.stream == segment.StreamMeta || live == 0 ||
			u > tooFull {
			continue
		}
		age := math.Sqrt(float64(s.mu.nextSeq - sg.seq))
		list = append(list, victim{uint32(i), sg.seq, sg.stream, live, (1 - u) / (1 + u) * age})
	}
	slices.SortFunc(list, func(a, b victim) int {
		switch {
		case a.score > b.score:
			return -1
		case a.score < b.score:
			return 1
		}
		return int(a.id) - int(b.id)
	})
	return list[:min(len(list), victimsMax)]
}

// thinMeta lets the next checkpoint rewrite the leaves that keep a mostly dead metadata segment
// from being free: the thinnest first, and no more than the checkpoint has room for.
func (e *Engine) thinMeta() {
	s := e.space
	type thin struct {
		id   uint32
		meta int64
	}
	var list []thin
	s.mu.Lock()
	for i, sg := range s.mu.segs {
		if sg.state == segSealed && sg.stream == segment.StreamMeta && sg.meta < s.metaFull()/2 {
			list = append(list, thin{uint32(i), sg.meta})
		}
	}
	room := int64(len(s.mu.free)-s.reserveMeta-s.needed()) * s.metaFull()
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b thin) int { return cmp.Compare(a.meta, b.meta) })
	chosen := map[uint32]bool{}
	for _, t := range list {
		if room -= t.meta; room < 0 {
			break
		}
		chosen[t.id] = true
	}
	for id, p := range e.maint.directory {
		if chosen[uint32((int64(p.Off)-s.first)/s.size)] {
			e.retouch(id)
		}
	}
}

// retouch puts a leaf on the next checkpoint's list although nothing changed in it.
func (e *Engine) retouch(id leafID) {
	b := e.branch(id.branch)
	if b == nil {
		return
	}
	l := e.laneOf(b.fam, id.extent)
	l.mu.Lock()
	defer l.mu.Unlock()
	if lf := b.fam.leaves[l.no][id.extent].of(b); lf != nil {
		l.touch(lf)
	}
}
