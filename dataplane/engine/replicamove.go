package engine

import (
	"cmp"
	"context"
	"slices"

	"weft/dataplane/segment"
	"weft/domain"
)

// How the cleaner moves what a replica holds: side by side, with all that the record was accepted
// with, and only if every block of it is what it was. A record that is damaged stays where it is,
// its segment with it: it may be mended from another member.

// heldAt gives the held record whose data stands at an address, and its lane; nil for none.
func (e *Engine) heldAt(en *segment.Entry, addr uint64) (*lane, *heldRecord) {
	b := e.branch(en.Branch)
	if b == nil || b.fam.replica == nil {
		return nil, nil
	}
	l := e.laneOf(b.fam, uint32(en.Block/segment.LeafBlocks))
	l.mu.Lock()
	defer l.mu.Unlock()
	k := heldKey{uint32(en.Block / segment.SliceBlocks), en.Version}
	h := b.fam.replica.lanes[l.no].held[k]
	if h == nil || !h.durable || h.Addr != addr || h.Count != en.Count {
		return nil, nil
	}
	return l, h
}

// replicaOf gives the branch of a held record.
func (l *lane) replicaOf(h *heldRecord) *branch { return l.e.branch(h.Branch) }

// whole takes a held record on its way.
func (c *cleaner) whole(v victim, to segment.Stream, h *heldRecord, en *segment.Entry, raw []byte,
	addr uint64,
) error {
	br := c.e.branch(en.Branch)
	wanted := c.only == nil
	for i := 0; i < en.Count && !wanted; i++ {
		wanted = c.only[en.Loc(raw, addr-uint64(en.Off), i)]
	}
	if br == nil || !wanted {
		return nil
	}
	m := move{
		br: br, block: en.Block, count: en.Count, from: addr, seq: v.seq, lsn: en.LSN,
		version: en.Version, gen: en.Gen, era: en.Era, stream: to, held: h,
	}
	en.MaskOf(raw, &m.kept)
	w := c.e.windows[c.filling]
	if len(w.buf)-w.used < m.count*segment.BlockSize {
		if err := c.turn(); err != nil {
			return err
		}
		w = c.e.windows[c.filling]
	}
	w.takeWhole(v.id, &m)
	m.crc = len(w.crcs)
	for i := range m.count {
		w.crcs = append(w.crcs, en.Further(raw, i))
	}
	w.moves = append(w.moves, m)
	return nil
}

// block gives block i of a record's data.
func block(p []byte, i int) []byte { return p[i*segment.BlockSize : (i+1)*segment.BlockSize] }

// takeWhole gives a move a span of its own; the window has the room.
func (w *window) takeWhole(id uint32, m *move) {
	n := m.count * segment.BlockSize
	s := span{w: w, id: id}
	s.Off, s.P = int64(m.from)*segment.Unit, w.buf[w.used:w.used+n:w.used+n]
	w.spans = append(w.spans, s)
	m.span, m.at = len(w.spans)-1, w.used
	w.used += n
}

// verifyWhole puts a record into the output if all of it is what it was.
func (c *cleaner) verifyWhole(w *window, m *move) error {
	n := m.count * segment.BlockSize
	data, crcs := w.buf[m.at:m.at+n], w.crcs[m.crc:m.crc+m.count]
	for i := range m.count {
		if segment.Checksum(block(data, i)) != crcs[i] {
			c.e.spoiled(w.spans[m.span].id, m.br, m.block+uint64(i))
			return nil
		}
	}
	if c.c != nil && (c.stream != m.stream || len(c.c.packed) > 0 || c.c.payload+n > c.limit ||
		!c.c.takesHeld(n, 0, c.limit)) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if err := c.ready(m, segment.BlockSize); err != nil {
		return err
	}
	if c.limit < n { // the open segment has no room for it: a new one follows
		c.limit, c.used, c.footer = c.e.payloadMax(), segment.Sector, 0
	}
	c.entry(m, 0, crcs, data)
	return nil
}

// moved lets a record that was moved stand at its new place, unless it was let go meanwhile; the
// lane's mutex is held.
func (l *lane) moved(m *move, base uint64) {
	h, rl := m.held, &m.br.fam.replica.lanes[l.no]
	if rl.held[h.key()] == h && h.Addr == m.from {
		l.resettle(h, base+uint64(m.unit))
	}
}

// held checks the records that the replica of a family holds and that not all is seen of: what is
// seen was checked by extent.
func (p *scrubPass) held(ctx context.Context, f *family) error {
	if f.replica == nil {
		return nil
	}
	e := p.e
	for _, k := range f.replica.hidden() {
		rep := &Replica{v: &Volume{e: e, volume: e.volumeOf(f.replica.last())}, rep: f.replica}
		h, err := rep.find(k)
		if domain.IsKind(err, domain.NotFound) {
			continue // settled meanwhile
		}
		var r *Record
		for n := 0; err == nil && r == nil && n < readTries; n++ {
			if r, err = rep.fetch(h); r == nil && err == nil {
				was := h.Addr
				if h, err = rep.find(k); h.Addr == was {
					break
				}
			}
		}
		switch {
		case domain.IsKind(err, domain.NotFound):
			continue
		case err != nil || r == nil:
			d := Damage{
				Part: "record", Volume: rep.v.volume, Block: h.Block, Version: h.Version,
				Off: int64(h.Addr) * segment.Unit, Detail: "it does not match its checksum",
			}
			if e.nv.has(h.Addr) {
				d.Part, d.Off = "journal", int64(e.nv.placeAt(h.Addr))*segment.BlockSize
			}
			if err != nil {
				d.Detail = err.Error()
			}
			p.found(d)
		}
		if err := p.pace(ctx, int64(h.Count)*segment.BlockSize); err != nil {
			return err
		}
	}
	return nil
}

// hidden lists the records of data of which the index does not name every block, in order.
func (rep *replica) hidden() []heldKey {
	var list []heldKey
	for _, l := range rep.e.lanes {
		l.mu.Lock()
		rl := &rep.lanes[l.no]
		for k, h := range rl.held {
			for i := 0; h.durable && h.Kind == segment.KindData && i < h.Count; i++ {
				if rl.seat(h, i).top != h {
					list = append(list, k)
					break
				}
			}
		}
		l.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b heldKey) int {
		return cmp.Or(cmp.Compare(a.slice, b.slice), a.ver.Compare(b.ver))
	})
	return list
}
