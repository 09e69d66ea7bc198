package engine

import (
	"cmp"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// Versions of blocks of which no record is held, on their way to checkpoints and back. In memory
// they stand block by block, in a table as runs.

// saveKnown adds what a replica knows in a lane to the table of a checkpoint; mu is held.
func (l *lane) saveKnown(rep *replica, t *segment.ReplicaTable) {
	rl := &rep.lanes[l.no]
	if rl.knowns == 0 {
		return
	}
	rl.all(func(br *branch, blocks map[uint64]holders) {
		for b, hs := range blocks {
			if k := hs.known; k != nil {
				t.Known = append(t.Known, segment.KnownRun{
					Branch: br.id, Block: b, Count: 1, Version: k.ver, Gen: k.gen, Era: k.era,
				})
			}
		}
	})
}

// joinKnown brings known blocks into order and makes runs of them.
func joinKnown(t *segment.ReplicaTable) {
	list := t.Known
	slices.SortFunc(list, func(a, b segment.KnownRun) int {
		return cmp.Or(cmp.Compare(a.Branch, b.Branch), cmp.Compare(a.Block, b.Block))
	})
	t.Known = list[:0]
	for _, k := range list {
		if n := len(t.Known); n > 0 {
			last := &t.Known[n-1]
			if last.Branch == k.Branch && last.Block+uint64(last.Count) == k.Block &&
				k.Block%segment.LeafBlocks != 0 && last.Version == k.Version && last.Gen == k.Gen &&
				last.Era == k.Era {
				last.Count += k.Count
				continue
			}
		}
		t.Known = append(t.Known, k)
	}
}

// loadKnown takes up what a checkpoint knows.
func (e *Engine) loadKnown(list []segment.KnownRun) {
	for _, k := range list {
		br := e.branch(k.Branch)
		if br == nil || br.fam.replica == nil {
			continue
		}
		rep := br.fam.replica
		l := e.laneOf(rep.fam, uint32(k.Block/segment.LeafBlocks))
		markGrains(rep.tabled.of(k.Block), k.Block, k.Count)
		one := &known{k.Version, k.Gen, k.Era}
		for i := range uint64(k.Count) {
			rep.lanes[l.no].note(e.space, br, k.Block+i, one)
		}
	}
}

// knownParts adds the blocks of a slice in a lane that are known, trusted and above its floor, as
// runs; the lane's mutex is held.
func (rep *replica) knownParts(l *lane, slice uint32, floor domain.Version, list []Meta) []Meta {
	rl, era := &rep.lanes[l.no], rep.slice(slice).Era
	if rl.knowns == 0 {
		return list
	}
	first := len(list)
	rl.all(func(br *branch, of map[uint64]holders) {
		var blocks []uint64
		for b, hs := range of {
			if k := hs.known; k != nil && sliceOf(b) == slice && k.era == era && k.ver.Compare(floor) > 0 {
				blocks = append(blocks, b)
			}
		}
		slices.Sort(blocks)
		list = rep.joinParts(l, br, blocks, first, list)
	})
	return list
}

// joinParts adds known blocks of a branch, in order, as runs.
func (rep *replica) joinParts(l *lane, br *branch, blocks []uint64, first int, list []Meta) []Meta {
	of := rep.lanes[l.no].of(br)
	for _, b := range blocks {
		k, kind := of[b].known, segment.KindUnmap
		lf := rep.fam.leaves[l.no][uint32(b/segment.LeafBlocks)].find(br)
		switch lf.at(int(b % segment.LeafBlocks)).Kind() {
		case segment.Flash:
			kind = segment.KindData
		case segment.Zero:
			kind = segment.KindZero
		case segment.None, segment.Hole, segment.Lost:
		}
		if n := len(list); n > first {
			last := &list[n-1]
			if last.Block+uint64(last.Count) == b && b%segment.LeafBlocks != 0 && last.Kind == kind &&
				last.Version == k.ver && last.Gen == k.gen {
				last.Count++
				continue
			}
		}
		list = append(list, Meta{
			Kind: kind, Block: b, Count: 1, Version: k.ver, Gen: k.gen, Part: true,
		})
	}
	return list
}

// shown gives version and generation of what a block shows, where that is known.
func (hs *holders) shown() (domain.Version, uint32) {
	switch {
	case hs.top != nil:
		return hs.top.Version, hs.top.Gen
	case hs.known != nil:
		return hs.known.ver, hs.known.gen
	}
	return domain.Version{}, 0
}
