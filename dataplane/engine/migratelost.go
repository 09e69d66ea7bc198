package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// Blocks that cannot be had do not hold a family up: the copy has them as lost, they read as
// corrupt there until they are written, and it is told which they are. A block whose bytes are
// wrong is lost at once. One that the device refuses to read may be had another time, or from a
// device that is only gone for the moment, and what is lost in the copy is lost for good once the
// source is taken away. So:
//
// L1  A block is given up only when the device refused it with a media error (backends.ErrMedia)
//     each of the times it was asked for: with others, if it was; alone; and alone once more when
//     all else of the family was copied.
// L2  And only if, right behind each of these, the device gives most of what is asked for in its
//     stead: segments in use, spread over the medium on which the block stands. Else not the block
//     is bad but the device: the copy ends with Unavailable, and the family stays.
// L3  Any other error (the device is not there, it timed out, its link is broken) ends the copy.
//     A device that answers nothing holds it up.
// L4  A family with more than lossesMost such blocks stays.
//
// What is readable is on the other device before a bad place is tried again, and while hosts wait
// only what they wrote last is tried at all.

const (
	// lossesTold is the most lost blocks that are told of one by one.
	lossesTold = 64
	// lossesMost bounds the lost blocks of a family: 4 GiB. They are kept in memory.
	lossesMost = 1 << 20
	// probes is how many segments are read to tell a bad block from a bad device. One more than half
	// of them have to be there.
	probes = 8
)

// carried is a block of a branch of the source.
type carried struct {
	br    *branch
	block uint64
}

// fate says why a copy has a block as lost.
type fate uint8

const (
	damaged fate = iota + 1 // its bytes are wrong
	refused                 // the device did not give it, and is to be asked again
	gone                    // nor then
)

// losses is what a migration could not copy.
type losses struct {
	of   map[carried]fate
	last bool   // those that were refused are asked again: who is refused now is gone
	turn int    // of the probes
	list []Loss // once the family has gone
}

// Loss is a block that went to another device as lost.
type Loss struct {
	Volume   domain.VolumeID // one that sees it, or whose snapshot does
	Snapshot domain.SnapshotID
	Block    uint64
	Refused  bool // the device could not read it; else its bytes were wrong
}

// refusal is the error of a source that did not give what was asked for.
type refusal struct{ err *domain.Error }

// Error implements error.
func (r *refusal) Error() string { return r.err.Error() }

// Unwrap gives the error with the blocks that were asked for.
func (r *refusal) Unwrap() error { return r.err }

// unread gives that error.
func (m *Migration) unread(t *twin, block uint64, n int, err error) *refusal {
	return &refusal{&domain.Error{
		Op: "engine.Migrate", Kind: domain.KindOf(err), Ref: "volume/" + m.from.volumeOf(t.src).String(),
		Msg: fmt.Sprintf("%d blocks from %d on cannot be read", n, block), Err: err,
	}}
}

// piece copies some blocks that follow each other. What cannot be had of them becomes lost in the
// copy.
func (m *Migration) piece(ctx context.Context, t *twin, k segment.Kind, block uint64, n int) error {
	loc := m.where(t, block)
	err := m.put(ctx, t, k, block, n)
	var no *refusal
	bad := domain.IsKind(err, domain.Corrupt)
	switch {
	case err == nil:
		if len(m.lost.of) > 0 {
			for i := range uint64(n) {
				delete(m.lost.of, carried{t.src, block + i})
			}
		}
		return nil
	case !errors.As(err, &no), !bad && !errors.Is(err, backends.ErrMedia):
		return err
	case n > 1:
		for i := range uint64(n) { // again one by one: who can be had goes over
			if err := m.piece(ctx, t, k, block+i, 1); err != nil {
				return err
			}
		}
		return nil
	case bad:
		return m.lose(t, block, damaged)
	case loc != m.where(t, block): // it was read elsewhere, and moved: what was refused is old
		return m.piece(ctx, t, k, block, n)
	}
	return m.refused(t, block, loc, err)
}

// where gives the place of a block that a branch of the source wrote itself.
func (m *Migration) where(t *twin, block uint64) segment.Loc {
	ext := uint32(block / segment.LeafBlocks)
	l := m.from.laneOf(m.fam, ext)
	l.mu.Lock()
	defer l.mu.Unlock()
	if lf := m.fam.leaves[l.no][ext].of(t.src); lf != nil {
		return lf.own.get(int(block % segment.LeafBlocks))
	}
	return 0
}

// refused notes a block that the source did not give, unless the source gives nothing else either.
func (m *Migration) refused(t *twin, block uint64, loc segment.Loc, err error) error {
	e := m.from
	if loc.Kind() != segment.Flash || e.nv.holds(loc) || e.failed.Load() {
		return err
	}
	m.lost.turn++
	if good, tried := e.probe(loc, m.lost.turn); good <= tried/2 {
		return &domain.Error{
			Kind: domain.Unavailable,
			Msg: fmt.Sprintf("nor can %d of %d segments elsewhere: the device does not read, and nothing "+
				"is given up for lost", tried-good, tried),
			Remedy: "look after the device; the move is begun again by itself", Err: err,
		}
	}
	if m.lost.last {
		return m.lose(t, block, gone)
	}
	return m.lose(t, block, refused)
}

// probe reads the headers of segments in use, by turns of other ones, on the medium where a block
// stands, and tells how many of how many the device gave.
func (e *Engine) probe(loc segment.Loc, turn int) (good, tried int) {
	s := e.space
	cold := s.at(loc.Off()).cold
	var list []int64
	s.mu.Lock()
	for id, sg := range s.mu.segs {
		if sg.cold == cold && sg.state != segFree && sg.state != segReserved {
			list = append(list, s.off(uint32(id)))
		}
	}
	s.mu.Unlock()
	if !cold {
		so := e.super.SuperOffsets()
		list = append(list, so[:]...)
	}
	b := backends.AlignedBuffer(segment.Sector)
	tried = min(probes, len(list))
	for i := range tried {
		if e.dev.ReadAt(b, list[(turn+i*len(list)/tried)%len(list)]) == nil {
			good++
		}
	}
	return good, tried
}

// retry asks again for the blocks that were refused, now that all others are copied.
func (m *Migration) retry(ctx context.Context) error {
	type place struct {
		br  *branch
		ext uint32
	}
	again := map[place]*[segment.LeafBlocks]bool{}
	for c, f := range m.lost.of {
		if f == refused {
			p := place{c.br, uint32(c.block / segment.LeafBlocks)}
			if again[p] == nil {
				again[p] = &[segment.LeafBlocks]bool{}
			}
			again[p][c.block%segment.LeafBlocks] = true
		}
	}
	m.lost.last = true
	defer func() { m.lost.last = false }()
	for p, blocks := range again {
		pick := func(i int) bool { return blocks[i] }
		if err := m.some(ctx, m.twins[p.br], p.ext, true, 0, pick); err != nil {
			return err
		}
	}
	return nil
}

// lose makes a block of a copy lost. The index has it from memory alone: Finish lets a checkpoint
// take it up before the copy is shown to anybody.
func (m *Migration) lose(t *twin, block uint64, f fate) error {
	if len(m.lost.of) >= lossesMost {
		return domain.Errorf(domain.Unavailable, "more than %d blocks of the family cannot be had: "+
			"it stays where it is", lossesMost)
	}
	l := m.to.laneOf(t.dst.fam, uint32(block/segment.LeafBlocks))
	l.mu.Lock()
	lf := l.leaf(t.dst, block)
	if lf != nil {
		l.point(lf, int(block%segment.LeafBlocks), segment.LostLoc)
		l.touch(lf)
	}
	l.mu.Unlock()
	if lf == nil {
		return domain.Errorf(domain.Internal, "the copy of branch %d is gone", t.src.id)
	}
	m.lost.of[carried{t.src, block}] = f
	return nil
}

// saveLosses makes durable that blocks are lost, and that nothing older is taken for them again.
func (m *Migration) saveLosses(ctx context.Context) error {
	if len(m.lost.of) == 0 {
		return nil
	}
	if m.to.nv != nil {
		if err := m.to.nv.drain(ctx); err != nil {
			return err
		}
	}
	return m.to.Checkpoint()
}

// tellLosses says which blocks went over as lost. A block of a branch without a name of its own is
// one of the snapshots and clones that see it.
func (m *Migration) tellLosses() {
	order := func(a, b carried) int {
		return cmp.Or(cmp.Compare(a.br.id, b.br.id), cmp.Compare(a.block, b.block))
	}
	for _, c := range slices.SortedFunc(maps.Keys(m.lost.of), order) {
		if len(m.lost.list) == lossesTold {
			break
		}
		x := Loss{Block: c.block, Refused: m.lost.of[c] != damaged}
		x.Volume, x.Snapshot = m.from.nameOf(c.br)
		m.lost.list = append(m.lost.list, x)
		m.to.report(Fact{What: "corrupt", Volume: x.Volume, Block: x.Block, Detail: x.Why()})
	}
}

// Why says what became of the block.
func (x Loss) Why() string {
	if x.Refused {
		return "could not be read when it went to another device, and is lost there"
	}
	return "was damaged when it went to another device, and is there"
}

// Losses gives the blocks that went over as lost, the first lossesTold of them, and how many there
// are. It is empty before the family has gone.
func (m *Migration) Losses() (list []Loss, n int) {
	if !m.left {
		return nil, 0
	}
	return m.lost.list, len(m.lost.of)
}
