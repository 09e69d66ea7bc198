package engine

import (
	"context"
	"math/bits"

	"weft/dataplane/segment"
	"weft/domain"
)

// Sharing splits the room of the data that a volume or snapshot sees: no block is in both.
type Sharing struct {
	Exclusive domain.Bytes // that no other volume or snapshot sees: it comes back with a deletion
	Common    domain.Bytes // that others see, too
}

// Sharing tells what would come back if exactly this volume or snapshot were deleted, and what it
// has in common with others of its family. It walks the index, without a read, one extent at a
// time: the lane's mutex is held for one, and hosts write meanwhile. The answer is exact when
// nothing changes during the call. Of a family that is being moved it comes back when the move is
// over.
// Errors: NotFound, Unsupported for a replica, Aborted when ctx ends first.
func (v *Volume) Sharing(ctx context.Context) (Sharing, error) {
	if err := v.notReplicated("question about what it shares"); err != nil {
		return Sharing{}, err
	}
	var sum Sharing
	s := &sharing{}
	for ext := range uint32(v.size.Load() / int64(domain.VolumeMin)) {
		if v.gone.Load() {
			return Sharing{}, v.missing()
		}
		if err := ctx.Err(); err != nil {
			return Sharing{}, &domain.Error{Op: "engine.Sharing", Kind: domain.Aborted, Err: err}
		}
		l := v.e.laneOf(v.fam, ext)
		l.mu.Lock()
		s.split(v.br.Load(), v.fam.leaves[l.no][ext], &sum)
		l.mu.Unlock()
	}
	return sum, nil
}

// sharing finds in one extent which blocks of a branch no other name sees. A leaf is looked at once
// at most, whatever the blocks: a snapshot with thousands of clones holds no lane up.
type sharing struct {
	one  *leaf    // any of the extent
	left blockSet // seen by nobody else so far
	now  [segment.LeafBlocks]segment.Loc
}

// split adds what a branch sees in an extent, of which one is any leaf, or nil. The lane's mutex is
// held.
func (s *sharing) split(b *branch, one *leaf, sum *Sharing) {
	lf := one.find(b)
	if lf == nil {
		return
	}
	s.one, s.left = one, blockSet{}
	lf.resolve(0, s.now[:])
	for i, loc := range s.now {
		if loc.Kind() == segment.Flash {
			s.left.add(i)
		}
	}
	all := s.left
	s.strike(b)
	for w := range all {
		for word := all[w]; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			room := domain.Bytes(s.now[w*64+bit].Room())
			if s.left[w]>>bit&1 != 0 {
				sum.Exclusive += room
			} else {
				sum.Common += room
			}
		}
	}
}

// strike takes out of left what others see. A copy is seen from the branch that wrote it downwards:
// so it looks below the branch, then at each older one of its line and below that, for what the
// line has not written since, until nothing is left to ask about.
func (s *sharing) strike(b *branch) {
	set := s.left
	for p, from := b, (*branch)(nil); p != nil; p, from = p.parent, p {
		if from != nil {
			set.drop(s.wrote(from))
		}
		if set = set.and(&s.left); set == (blockSet{}) {
			return
		}
		if p != b && p.shows() {
			s.left.drop(set)
			return // what is older was in the set, too
		}
		for _, k := range p.kids {
			if k != from {
				s.below(k, set)
			}
		}
	}
}

// below takes out of left what is seen by a branch or below it, of the blocks that its parent sees
// as the branch in question does.
func (s *sharing) below(b *branch, set blockSet) {
	set = set.and(&s.left)
	set.drop(s.wrote(b))
	switch {
	case set == blockSet{}:
	case b.shows():
		s.left.drop(set) // those below it see no more of them
	default:
		for _, k := range b.kids {
			s.below(k, set)
		}
	}
}

// wrote gives the blocks that a branch wrote in the extent, holes and zeros too.
func (s *sharing) wrote(b *branch) (set blockSet) {
	lf := s.one.of(b)
	switch {
	case lf == nil:
	case lf.own.dense != nil:
		for i, loc := range lf.own.dense {
			if loc != 0 {
				set.add(i)
			}
		}
	case lf.own.few != nil:
		for _, i := range lf.own.few.at {
			set.add(int(i))
		}
	}
	return set
}

// shows tells whether a volume or a snapshot is named by the branch; a pin is neither.
func (b *branch) shows() bool { return b.handle != nil && b.handle != pin }

// and gives the blocks that are in both sets.
func (s *blockSet) and(o *blockSet) (both blockSet) {
	for w := range s {
		both[w] = s[w] & o[w]
	}
	return both
}

// drop takes the blocks of another set out.
func (s *blockSet) drop(o blockSet) {
	for w := range s {
		s[w] &^= o[w]
	}
}
