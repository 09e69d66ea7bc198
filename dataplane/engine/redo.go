package engine

import (
	"math"
	"math/bits"

	"weft/dataplane/segment"
)

// redoMax is the most records that wait to be redone together, and redoBulk from how many of one
// leaf on they enter together. Changed by tests alone.
var (
	redoMax  = 128 << 10
	redoBulk = 8
)

// redoBits is the most bits of an extent's number that are sorted by at once.
const redoBits = 12

// redo is a block of data that recovery found in the log.
type redo struct {
	loc segment.Loc
	ext uint32
	i   uint16 // in the extent
	br  uint16 // which of the queue's branches
}

// redoQueue holds blocks back until they can enter the index extent by extent: a log of random
// writes names another one with each record, and each would wait for memory. Within an extent the
// order stays; what is not a single block of data waits for all before it.
type redoQueue struct {
	list, spare []redo
	extents     uint32            // all their numbers, or'ed
	branches    []*branch         // that entries named since all entered; nil: nobody answers
	places      map[uint32]uint16 // of those, by what entries call them
	lastID      uint32            // what an entry named last
	last        uint16
	family      []uint32 // of the branches, numbered
	at          []uint32 // of a pass
	sums        redoSums
	all         [segment.LeafBlocks]segment.Loc // of a leaf that is a list

	// What all lanes use one after the other.
	room   footerRoom
	chunks []logChunk // of one segment
	entry  segment.Entry
	seq    uint64 // the highest of a version that was seen
}

func newRedoQueue() *redoQueue { return &redoQueue{room: footerRoom{kept: true}} }

// redoSums are changes of what all lanes count together, gathered for many blocks.
type redoSums struct {
	stands  []int16 // units, by part of a segment
	lives   []int64 // bytes, by segment
	touched []int   // the parts among them
	live    int64
	saved   int64
}

// stand counts bytes of a block at a place of the device.
func (s *redoSums) stand(sp *space, off, n int64) {
	part := sp.part(off)
	if s.stands[part] == 0 {
		s.touched = append(s.touched, part)
	}
	s.stands[part] += int16(n / segment.Unit)
	s.lives[part/sp.partCount] += n
}

// give adds the sums to what they are of.
func (s *redoSums) give(e *Engine) {
	for _, part := range s.touched {
		e.space.standIn(part, s.stands[part])
		id := part / e.space.partCount
		e.space.mu.segs[id].live.Add(s.lives[id])
		s.stands[part], s.lives[id] = 0, 0 // both may be touched again further on
	}
	e.space.live.Add(s.live)
	e.space.saved.Add(s.saved)
	s.touched, s.live, s.saved = s.touched[:0], 0, 0
}

// branch gives the branch that entries name by an id, and its place; nil when nobody answers. It is
// looked up once until all that is held has entered.
func (q *redoQueue) branch(l *lane, id uint32) (*branch, uint16) {
	if len(q.branches) > 0 && q.lastID == id {
		return q.branches[q.last], q.last
	}
	at, known := q.places[id]
	if !known {
		if len(q.branches) > math.MaxUint16 {
			q.enter(l)
		}
		if q.places == nil {
			q.places = map[uint32]uint16{}
		}
		at = uint16(len(q.branches))
		q.places[id] = at
		q.branches = append(q.branches, l.e.branch(id))
	}
	q.lastID, q.last = id, at
	return q.branches[at], at
}

// add holds a block back; what is held enters when there is much of it.
func (q *redoQueue) add(l *lane, r redo) {
	if q.list == nil {
		q.list = make([]redo, 0, redoMax)
	}
	q.list = append(q.list, r)
	q.extents |= r.ext
	if len(q.list) >= redoMax {
		q.enter(l)
	}
}

// enter lets all that is held into the index, and forgets what branches entries name.
func (q *redoQueue) enter(l *lane) {
	if len(q.list) > 0 {
		q.sort()
		if q.sums.stands == nil {
			segs := len(l.e.space.mu.segs)
			q.sums.stands = make([]int16, segs*l.e.space.partCount)
			q.sums.lives = make([]int64, segs)
		}
		for from := 0; from < len(q.list); {
			to, first := from+1, &q.list[from]
			for to < len(q.list) && q.list[to].ext == first.ext && q.list[to].br == first.br {
				to++
			}
			q.leaf(l, q.branches[first.br], q.list[from:to])
			from = to
		}
		q.sums.give(l.e)
		q.list, q.extents = q.list[:0], 0
	}
	clear(q.places)
	q.branches = q.branches[:0]
}

// leaf enters blocks of one leaf, in their order.
func (q *redoQueue) leaf(l *lane, br *branch, list []redo) {
	lf := l.leaf(br, uint64(list[0].ext)*segment.LeafBlocks)
	if lf == nil {
		return // buried
	}
	l.touch(lf)
	if len(list) >= redoBulk && lf.base == nil && lf.view == nil && len(br.kids) == 0 {
		q.bulk(l, lf, list)
		return
	}
	for i := range list {
		l.point(lf, int(list[i].i), list[i].loc)
	}
}

// bulk points many blocks of a leaf to plain places on the device, as point does. It is the only
// leaf that its branch reads by, and no other branch reads by it, so what lanes and branches count
// is added once for all. What is counted of sights is not: settleIndex takes that anew.
func (q *redoQueue) bulk(l *lane, lf *leaf, list []redo) {
	all, s, e := lf.own.dense, &q.sums, l.e
	var set blockSet
	if all == nil {
		all = &q.all
		clear(all[:])
		if f := lf.own.few; f != nil {
			for j, i := range f.at {
				all[i] = f.loc[j]
				set.add(int(i))
			}
		}
	}
	n, own := lf.n, int64(0)
	for i := range list {
		r := &list[i]
		old := all[r.i]
		all[r.i] = r.loc
		set.add(int(r.i))
		s.stand(e.space, r.loc.Off(), segment.BlockSize)
		own += segment.BlockSize
		switch {
		case old == 0:
			n++
		case old.Kind() != segment.Flash:
		case e.nv.holds(old):
			e.stands(old, -old.Room())
			own -= old.Room()
		default:
			s.stand(e.space, old.Off(), -old.Room())
			own -= old.Room()
			s.saved -= segment.BlockSize - old.Room()
		}
	}
	s.live += own
	lf.br.own.Add(own)
	l.resize(lf, n)
	if lf.own.dense == nil {
		before := lf.own.bytes()
		lf.own.refill(all, &set, int(n))
		l.memory.Add(lf.own.bytes() - before)
	}
}

// sort orders the blocks by extent, by family within one, and as they came within that.
func (q *redoQueue) sort() {
	if cap(q.spare) < len(q.list) {
		q.spare = make([]redo, cap(q.list))
	}
	if families := q.families(); families > 1 {
		q.pass(families, func(r *redo) uint32 { return q.family[r.br] })
	}
	width := bits.Len32(q.extents)
	for done, left := 0, (width+redoBits-1)/redoBits; left > 0; left-- {
		n := (width - done + left - 1) / left
		shift, mask := done, uint32(1)<<n-1
		q.pass(1<<n, func(r *redo) uint32 { return r.ext >> shift & mask })
		done += n
	}
}

// pass orders the blocks by a number below a bound, and leaves those with the same as they are.
func (q *redoQueue) pass(bound int, of func(*redo) uint32) {
	q.at = append(q.at[:0], make([]uint32, bound)...)
	for i := range q.list {
		q.at[of(&q.list[i])]++
	}
	sum := uint32(0)
	for i, n := range q.at {
		q.at[i], sum = sum, sum+n
	}
	to := q.spare[:len(q.list)]
	for i := range q.list {
		k := of(&q.list[i])
		to[q.at[k]] = q.list[i]
		q.at[k]++
	}
	q.list, q.spare = to, q.list[:cap(q.list)]
}

// families numbers those of the branches, and tells how many there are.
func (q *redoQueue) families() int {
	q.family = q.family[:0]
	numbers := map[*family]uint32{}
	for _, b := range q.branches {
		no := uint32(len(numbers))
		if b == nil { // of entries that nobody answers for: none is held
			no = 0
		} else if known, there := numbers[b.fam]; there {
			no = known
		} else {
			numbers[b.fam] = no
		}
		q.family = append(q.family, no)
	}
	return len(numbers)
}
