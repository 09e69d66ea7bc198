package engine

import (
	"weft/dataplane/segment"
)

// redoMax is the most records that wait to be redone together. Of 64k, 128k and 512k the fewest
// were the fastest: they stay near the processor.
var redoMax = 64 << 10 // changed by tests alone

const (
	// redoWide is how many records of one leaf make it worth to spread it for them.
	redoWide = 64
	// redoBits is how many bits of an extent's number are sorted by at once.
	redoBits = 11
)

// redo is a block of data that recovery found in the log.
type redo struct {
	br  *branch
	loc segment.Loc
	lsn uint64
	ext uint32
	i   uint16 // in the extent
}

// redoQueue holds blocks back until they can enter the index extent by extent: a log of random
// writes names another one with each record, and each would wait for memory. Within an extent the
// order stays; what is not a single block of data waits for all before it.
type redoQueue struct {
	list        []redo
	keys, spare []uint64 // extent, then place in the list
}

// add holds a block back; what is held enters when there is much of it.
func (q *redoQueue) add(l *lane, r redo) {
	q.list = append(q.list, r)
	if len(q.list) >= redoMax {
		q.enter(l)
	}
}

// enter lets all that is held into the index.
func (q *redoQueue) enter(l *lane) {
	if len(q.list) == 0 {
		return
	}
	q.sort()
	for from := 0; from < len(q.keys); {
		to, ext := from+1, q.keys[from]>>32
		for to < len(q.keys) && q.keys[to]>>32 == ext {
			to++
		}
		q.extent(l, q.keys[from:to])
		from = to
	}
	q.list = q.list[:0]
}

// extent enters the blocks of one extent. Families share the numbers, so there may be several.
func (q *redoQueue) extent(l *lane, keys []uint64) {
	var br *branch
	var lf *leaf
	complete, wide := uint64(0), false
	for _, k := range keys {
		r := &q.list[uint32(k)]
		if r.br != br {
			l.narrow(lf, wide)
			br, lf, complete, wide = r.br, nil, 0, false
			if there := br.fam.leaves[l.no][r.ext].of(br); there != nil {
				complete = there.complete
			}
		}
		if r.lsn <= complete {
			continue
		}
		if lf == nil {
			if lf = l.leaf(br, uint64(r.ext)*segment.LeafBlocks); lf == nil {
				continue // buried
			}
			if wide = len(keys) >= redoWide; wide {
				l.widen(lf)
			}
			l.touch(lf)
		}
		l.point(lf, int(r.i), r.loc)
	}
	l.narrow(lf, wide)
}

// sort orders the blocks by extent, and as they came within one.
func (q *redoQueue) sort() {
	q.keys = q.keys[:0]
	most := uint32(0)
	for i := range q.list {
		q.keys = append(q.keys, uint64(q.list[i].ext)<<32|uint64(i))
		most = max(most, q.list[i].ext)
	}
	if len(q.spare) < len(q.keys) {
		q.spare = make([]uint64, cap(q.keys))
	}
	from, to := q.keys, q.spare[:len(q.keys)]
	for shift := 32; most > 0; shift, most = shift+redoBits, most>>redoBits {
		var at [1 << redoBits]int
		for _, k := range from {
			at[k>>shift&(1<<redoBits-1)]++
		}
		sum := 0
		for i, n := range at {
			at[i], sum = sum, sum+n
		}
		for _, k := range from {
			b := k >> shift & (1<<redoBits - 1)
			to[at[b]] = k
			at[b]++
		}
		from, to = to, from
	}
	q.keys, q.spare = from, to[:cap(to)]
}

// widen makes a leaf an array, for many blocks to be put at once.
func (l *lane) widen(lf *leaf) {
	if lf.own.dense == nil {
		before := lf.own.bytes()
		lf.own.spread()
		l.memory.Add(lf.own.bytes() - before)
	}
}

// narrow gives a leaf that was made an array the form that is right for it; lf may be nil.
func (l *lane) narrow(lf *leaf, wide bool) {
	if lf != nil && wide && lf.own.dense != nil && lf.n <= fewMax {
		before := lf.own.bytes()
		lf.own.pack(int(lf.n))
		l.memory.Add(lf.own.bytes() - before)
	}
}
