package engine

import (
	"weft/dataplane/segment"
	"weft/domain"
)

// Blocks that differ and blocks that are there, over any range: what backups and copies ask. Both
// work through the index alone and read no data.

// RangesMax is the most ranges that one call of Diff or Allocated gives; 0 asked means it.
const RangesMax = 4096

// Ranges is the answer to a question about a range: what was found, in order, and from where on to
// ask again. Next is -1 when the whole was answered.
type Ranges struct {
	List []domain.Extent
	Next int64
}

// Allocated tells where a volume or snapshot holds data or written zeros, between two offsets in
// bytes, both multiples of 4096; to behind the end means the end. At most limit ranges; neighbours
// of one kind are joined inside an answer. Errors: OutOfRange, NotFound.
func (v *Volume) Allocated(from, to int64, limit int) (Ranges, error) {
	return v.ranges(from, to, limit, func(x *extent) {
		for i, loc := range x.now[:x.count] {
			if loc != 0 {
				x.add(i, loc)
			}
		}
	})
}

// Diff tells where v reads other than what before reads, between two offsets in bytes of v, both
// multiples of 4096: changed block tracking. A range that was written again with the same bytes is
// given too; blocks of zeros, written or not, do not differ. Behind the end of v nothing is told.
// Zero and Hole of a range say what v has there. Errors: Invalid where the two are not of one
// family; the others are Allocated's.
func (v *Volume) Diff(before *Volume, from, to int64, limit int) (Ranges, error) {
	if before.fam != v.fam {
		return Ranges{}, domain.Errorf(domain.Invalid, "no snapshots or clones of one volume")
	}
	end := before.size.Load()
	return v.ranges(from, to, limit, func(x *extent) {
		old := before.br.Load()
		lf := x.leaves.find(old)
		if lf == x.leaf && x.off+int64(x.count)*segment.BlockSize <= end {
			return // both see the very same
		}
		var was [segment.LeafBlocks]segment.Loc
		lf.resolve(x.first, was[:x.count])
		for i, loc := range x.now[:x.count] {
			if x.off+int64(i)*segment.BlockSize >= end {
				was[i] = 0
			}
			if loc != was[i] && (loc.Kind() >= segment.Lost || was[i].Kind() >= segment.Lost) {
				x.add(i, loc)
			}
		}
	})
}

// extent is a part of an extent under examination; the lane's mutex is held.
type extent struct {
	out    *Ranges
	limit  int
	off    int64 // of the first block, in bytes
	first  int   // block in the extent
	count  int
	leaves *leaf // any of the extent
	leaf   *leaf // that answers first
	now    [segment.LeafBlocks]segment.Loc
}

// add gives block i out, joined with the one before where that is of its kind.
func (x *extent) add(i int, loc segment.Loc) {
	if x.out.Next >= 0 {
		return
	}
	o := domain.Extent{
		Off: x.off + int64(i)*segment.BlockSize, Len: segment.BlockSize, Hole: loc == 0,
		Zero: loc == 0 || loc.Kind() == segment.Zero,
	}
	n := len(x.out.List)
	if n > 0 {
		last := &x.out.List[n-1]
		if last.Off+last.Len == o.Off && last.Hole == o.Hole && last.Zero == o.Zero {
			last.Len += o.Len
			return
		}
	}
	if n == x.limit {
		x.out.Next = o.Off
		return
	}
	x.out.List = append(x.out.List, o)
}

// ranges calls fn with every part of an extent between two offsets, each under its lane's mutex, so
// that an answer is of one instant for each extent only; a snapshot has but one.
func (v *Volume) ranges(from, to int64, limit int, fn func(x *extent)) (Ranges, error) {
	to = min(to, v.size.Load())
	out := Ranges{Next: -1}
	switch {
	case v.gone.Load():
		return out, v.missing()
	case from < 0 || from > to || from%segment.BlockSize != 0 || to%segment.BlockSize != 0:
		return out, domain.Errorf(domain.OutOfRange, "bytes %d to %d of %s", from, to, v.Size())
	}
	if limit <= 0 || limit > RangesMax {
		limit = RangesMax
	}
	const size = segment.LeafBlocks * segment.BlockSize
	x := &extent{out: &out, limit: limit}
	for x.off = from; x.off < to && out.Next < 0; x.off += int64(x.count) * segment.BlockSize {
		x.first = int(x.off % size / segment.BlockSize)
		x.count = int(min(size-x.off%size, to-x.off) / segment.BlockSize)
		ext := uint32(x.off / size)
		l := v.e.laneOf(v.fam, ext)
		l.mu.Lock()
		br := v.br.Load()
		x.leaves = v.fam.leaves[l.no][ext]
		if x.leaves != nil {
			x.leaf = x.leaves.find(br)
			x.leaf.resolve(x.first, x.now[:x.count])
			fn(x)
		}
		l.mu.Unlock()
	}
	return out, nil
}

// missing says that a volume or snapshot was deleted.
func (v *Volume) missing() error {
	switch {
	case v.cut != 0:
		return noCut(v.volume, v.cut)
	case v.snapshot.IsZero():
		return notFound(v.volume)
	}
	return noSnapshot(v.snapshot)
}
