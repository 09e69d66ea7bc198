package fsck

import (
	"maps"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// heldKey names a record of a replica.
type heldKey struct {
	branch, slice uint32
	ver           domain.Version
}

// place names a block of a branch.
type place struct {
	branch uint32
	block  uint64
}

// learn notes what an entry of a log says of the versions of its blocks: an imported copy is known
// by its version, and what a record wrote by the record.
func (x *index) learn(en *segment.Entry, raw []byte) {
	for i := range en.Len() {
		switch b := (place{en.Branch, en.Block + uint64(i)}); {
		case en.Kept(raw, i):
		case en.Flags&segment.FlagParent != 0:
			delete(x.known, b)
		case en.Flags&segment.FlagFresh == 0:
			x.known[b] = en.Version
		default:
			delete(x.known, b)
		}
	}
}

// hold notes a record that is not settled.
func (x *index) hold(h segment.HeldRecord) {
	x.held[heldKey{h.Branch, uint32(h.Block / segment.SliceBlocks), h.Version}] = h
}

// note applies an entry about a slice. Seals and floors change no block.
func (x *index) note(en *segment.Entry) {
	k := heldKey{branch: x.family(en.Branch), slice: uint32(en.Block / segment.SliceBlocks)}
	switch en.Kind { //nolint:exhaustive // the others change nothing that is checked
	case segment.KindBury:
		x.buried[k] = true
	case segment.KindEra:
		x.eras[k] = max(x.eras[k], en.Era)
	}
}

// empty lets go of what stands in buried slices, of what deleted replicas held, and of records of
// earlier eras.
func (x *index) empty() {
	living := x.living()
	maps.DeleteFunc(x.held, func(k heldKey, h segment.HeldRecord) bool {
		of := heldKey{branch: x.family(k.branch), slice: k.slice}
		return !living[of.branch] || x.buried[of] || h.Era < x.eras[of]
	})
	maps.DeleteFunc(x.leaves, func(k key, _ *leaf) bool {
		const extents = segment.SliceBlocks / segment.LeafBlocks
		return x.buried[heldKey{branch: x.family(k.branch), slice: k.extent / extents}]
	})
}

// heldOf gives the record that an entry of a log is, whose data stands at an address.
func heldOf(en *segment.Entry, raw []byte, addr uint64) segment.HeldRecord {
	h := segment.HeldRecord{
		Branch: en.Branch, Block: en.Block, Count: en.Len(), Kind: en.Kind, Outcome: en.Outcome(),
		Version: en.Version, Gen: en.Gen, Request: en.Request, LSN: en.LSN, Era: en.Era,
	}
	if en.Kind == segment.KindData {
		h.Addr, h.Sum = addr, sumOf(en, raw)
	}
	return h
}

// sumOf gives the checksum over the checksums of an entry's blocks.
func sumOf(en *segment.Entry, raw []byte) uint32 {
	var b []byte
	for i := range en.Count {
		crc := en.Further(raw, i)
		b = append(b, byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24))
	}
	return segment.Checksum(b)
}

// held looks for the entry of every record that a replica holds, and reads the blocks of it that no
// name sees; live is what names see.
func (c *checker) held(live []seen) {
	shown := make(map[uint64]bool, len(live))
	for _, s := range live {
		shown[s.loc.Addr()] = true
	}
	bySegment := map[int64][]segment.HeldRecord{}
	for _, h := range c.index.held {
		c.Held++
		if h.Kind != segment.KindData {
			continue
		}
		off := int64(h.Addr) * segment.Unit
		id := c.segmentOf(off)
		end := off + int64(h.Count)*segment.BlockSize
		if id < 0 || c.segmentOf(end-1) != id || c.Segments[id].Reserved {
			c.problem(c.ofHeld(&h, 0), "it stands outside all segments")
			continue
		}
		bySegment[id] = append(bySegment[id], h)
	}
	for _, id := range slices.Sorted(maps.Keys(bySegment)) {
		c.heldIn(&c.Segments[id], bySegment[id], shown)
	}
}

// ofHeld names block i of a held record in a problem.
func (c *checker) ofHeld(h *segment.HeldRecord, i int) Problem {
	off := int64(h.Addr)*segment.Unit + int64(i)*segment.BlockSize
	p := Problem{
		Part: "record", Off: off, Segment: c.segmentOf(off), Block: h.Block + uint64(i),
		Version: h.Version.String(),
	}
	if n := c.index.nodes[h.Branch]; n != nil {
		p.Volume = n.Volume
	}
	return p
}

// heldIn checks the held records of one segment.
func (c *checker) heldIn(s *Segment, list []segment.HeldRecord, shown map[uint64]bool) {
	if s.Sequence == 0 {
		c.guess(s)
	}
	type spot struct {
		addr uint64
		ver  domain.Version
	}
	entries, sums := map[spot]segment.HeldRecord{}, map[spot][]uint32{}
	for _, k := range merged(c.chunks(s)) {
		k.each(func(en *segment.Entry, raw []byte) {
			if en.Kind != segment.KindData {
				return
			}
			at := spot{uint64(k.payload())/segment.Unit + uint64(en.Off), en.Version}
			if slices.ContainsFunc(list, func(h segment.HeldRecord) bool { return h.Addr == at.addr }) {
				c.place(k.off, segment.ChunkHeader+int64(k.EntryBytes), "chunk")
			}
			entries[at] = heldOf(en, raw, at.addr)
			sums[at] = nil
			for i := range en.Count {
				sums[at] = append(sums[at], en.Further(raw, i))
			}
		})
	}
	for i := range list {
		h := &list[i]
		at := spot{h.Addr, h.Version}
		e, ok := entries[at]
		e.Branch = c.index.canonical(e.Branch)
		e.LSN = h.LSN // the low half of a moved one's is all that some entries have
		if !ok || e != *h {
			c.problem(c.ofHeld(h, 0), "its entry is another, or is not there: %t", ok)
			continue
		}
		for k := range h.Count {
			addr := h.Addr + uint64(k)*segment.BlockUnits
			if shown[addr] {
				continue
			}
			s.Live += segment.BlockSize
			c.Live += segment.BlockSize
			c.HeldBytes += segment.BlockSize
			off := int64(addr) * segment.Unit
			c.place(off, segment.BlockSize, "block")
			if !c.o.Data {
				continue
			}
			b, err := c.read(off, segment.BlockSize)
			c.Read += segment.BlockSize
			switch {
			case err != nil:
				c.problem(c.ofHeld(h, k), "%v", err)
			case segment.Checksum(b) != sums[at][k]:
				c.problem(c.ofHeld(h, k), "its bytes do not match its checksum")
			}
		}
	}
}
