package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"weft/dataplane/segment"
	"weft/domain"
)

// Where the version of a block comes from, without a version for each in memory: of a copy that is
// held, from its record; of any other from the entry that stands beside it on the device, which the
// segment's footer repeats. A hole, and a block of zeros, stands nowhere: once its record is
// settled nobody knows its version but that it is at or below the floor.
//
//	C9  Each block of data has an exact version; whether an extent changed is one comparison.

// BlockVersion is a block of data with the version that wrote it.
type BlockVersion struct {
	Block   uint64
	Version domain.Version
	CRC     uint32 // CRC-32C of its bytes
}

// Digest is a sum over blocks of data, their versions and their bytes: replicas with equal digests
// of a range hold the same, whatever order it came in and wherever it stands. The zero Digest is
// that of no data.
type Digest [2]uint64

// Add adds what another range holds.
func (d *Digest) Add(o Digest) {
	var carry uint64
	d[0], carry = bits.Add64(d[0], o[0], 0)
	d[1], _ = bits.Add64(d[1], o[1], carry)
}

// digest gives the digest of one block.
func (b *BlockVersion) digest() Digest {
	var p [30]byte
	binary.LittleEndian.PutUint64(p[0:], b.Block)
	binary.LittleEndian.PutUint64(p[8:], uint64(b.Version.Epoch))
	binary.LittleEndian.PutUint64(p[16:], b.Version.Seq)
	binary.LittleEndian.PutUint16(p[24:], uint16(b.Version.Node))
	binary.LittleEndian.PutUint32(p[26:], b.CRC)
	sum := sha256.Sum256(p[:])
	return Digest{binary.LittleEndian.Uint64(sum[0:]), binary.LittleEndian.Uint64(sum[8:])}
}

// Versions gives every block of data among count blocks from block on, all inside one extent, with
// its version: in order, those of holes and zeros left out. Each is what it was at one moment, not
// all at the same. It reads the footers, or all, of the segments that the blocks stand in: for
// lists of what may differ, not for every write. fn ends the walk with an error, which is returned.
// Errors: OutOfRange, NotFound, Corrupt where an entry is damaged, Unavailable.
func (p *Replica) Versions(block uint64, count int, fn func(BlockVersion) error) error {
	if err := p.v.inside(block, count); err != nil {
		return err
	}
	s := &versionSearch{p: p, found: make([]BlockVersion, count), block: block}
	if err := s.all(); err != nil {
		return err
	}
	for _, b := range s.found {
		if b.Version == (domain.Version{}) {
			continue
		}
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

// all finds them all, as they are at one moment.
func (s *versionSearch) all() error {
	for range readTries {
		if err := s.lookup(); err != nil {
			return err
		}
		if len(s.wanted) == 0 {
			return nil
		}
		for id, list := range s.wanted {
			if err := s.read(id, list); err != nil {
				return err
			}
		}
	}
	return &domain.Error{
		Op: "engine.Versions", Kind: domain.Corrupt, Ref: "volume/" + s.p.v.volume.String(),
		Msg: "a block near " + domain.Position(s.block).String() + " has no entry that verifies",
	}
}

// versionSearch looks for the versions of some blocks.
type versionSearch struct {
	p      *Replica
	block  uint64         // the first
	found  []BlockVersion // zero versions: not found, or no data
	places []segment.Loc  // where those stood whose versions were found on the device
	gens   []uint32
	above  []domain.Version // of holes and zeros of which a record is held
	locs   []segment.Loc    // where all of them stand
	floor  domain.Version   // of the moment at which they stood there
	link   *Link            // not nil: a branch of which only what it has itself is looked for
	wanted map[uint32]map[segment.Loc]int
	kept   []byte // bytes of those that stand in the journal; nil: they are not asked for
}

// lookup finds what the table knows and lists the rest by segment. What was read before counts if
// the block stands where it stood then.
func (s *versionSearch) lookup() error {
	if s.places == nil {
		s.places = make([]segment.Loc, len(s.found))
		s.locs, s.gens = make([]segment.Loc, len(s.found)), make([]uint32, len(s.found))
		s.above = make([]domain.Version, len(s.found))
	}
	p, l := s.p, s.p.v.lane(s.block)
	s.wanted = map[uint32]map[segment.Loc]int{}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.rep.gone || p.v.gone.Load() {
		return p.v.missing()
	}
	s.floor = p.Floor(sliceOf(s.block))
	br := p.v.br.Load()
	if s.link != nil {
		var err error
		if br, err = p.link(*s.link); err != nil {
			return err
		}
	}
	lf := p.rep.fam.leaves[l.no][uint32(s.block/segment.LeafBlocks)].of(br)
	for i := range s.found {
		b := s.block + uint64(i)
		hs, loc := p.rep.shows(l, br, b)
		if s.link != nil && (lf == nil || lf.own.get(int(b%segment.LeafBlocks)) == 0) {
			loc = 0 // as the parent, of the version that this shows
		}
		s.locs[i] = loc
		if s.kept != nil && p.v.e.nv.holds(loc) {
			p.v.e.nv.fetch(s.locs[i:i+1], block(s.kept, i))
		}
		switch {
		case loc.Kind() == segment.Lost:
			return p.v.corrupt(s.block, i)
		case loc.Kind() != segment.Flash:
			s.found[i] = BlockVersion{}
			s.above[i], s.gens[i] = hs.shown()
		case hs.top != nil:
			s.found[i], s.gens[i] = BlockVersion{b, hs.top.Version, loc.CRC()}, hs.top.Gen
		case hs.known != nil:
			s.found[i], s.gens[i] = BlockVersion{b, hs.known.ver, loc.CRC()}, hs.known.gen
		case p.v.e.nv.holds(loc):
			s.found[i] = BlockVersion{} // corrupt, unless its record verifies
			p.v.e.nv.entryOf(loc, func(en *segment.Entry, _ []byte, k int) {
				if en.Block+uint64(k) == b {
					s.found[i], s.gens[i] = BlockVersion{b, en.Version, loc.CRC()}, en.Gen
				}
			})
			if s.found[i] == (BlockVersion{}) {
				return p.v.corrupt(s.block, i)
			}
		case s.places[i] != loc:
			id := uint32((loc.Off() - p.v.e.space.first) / p.v.e.space.size)
			if s.wanted[id] == nil {
				s.wanted[id] = map[segment.Loc]int{}
			}
			s.wanted[id][loc] = i
		}
	}
	return nil
}

// read takes the versions of blocks of one segment from its entries.
func (s *versionSearch) read(id uint32, list map[segment.Loc]int) error {
	e := s.p.v.e
	seq, err := e.lifeOf(id)
	if err != nil {
		return err
	}
	return e.eachChunk(id, seq, func(off int64, h *segment.Chunk, entries []byte) error {
		base := uint64(off+int64(h.HeaderBytes())) / segment.Unit
		for range h.Entries {
			var en segment.Entry
			n, err := segment.DecodeEntry(entries, h.LSN, &en)
			if err != nil {
				return nil //nolint:nilerr // it names nothing; what is not found is told
			}
			this := entries[:n]
			entries = entries[n:]
			if en.Kind != segment.KindData {
				continue
			}
			if br := e.branch(en.Branch); br == nil || br.fam != s.p.rep.fam {
				continue
			}
			for i := range en.Count {
				loc := en.Loc(this, base, i)
				k, ok := list[loc]
				if b := en.Block + uint64(i); ok && b == s.block+uint64(k) {
					s.found[k], s.places[k] = BlockVersion{b, en.Version, loc.CRC()}, loc
					s.gens[k] = en.Gen
				}
			}
		}
		return nil
	})
}

// Digest gives the digest of a range, which Versions walks.
func (p *Replica) Digest(block uint64, count int) (Digest, error) {
	var d Digest
	err := p.Versions(block, count, func(b BlockVersion) error {
		d.Add(b.digest())
		return nil
	})
	return d, err
}

// MaxVersion gives the highest version that was accepted in an extent, superseded ones included;
// the zero Version where there was none. At or below some version it proves that the extent has not
// changed since that, if that is at or below the floor: above it a late record of a lower version
// may still come. It survives restarts, and may be that of a record that a crash took away.
func (p *Replica) MaxVersion(extent uint32) domain.Version {
	l := p.v.e.laneOf(p.v.fam, extent)
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.rep.lanes[l.no].extents[extent]
}

// top notes a version that was accepted in an extent; the lane's mutex is held.
func (rl *replicaLane) top(s *space, extent uint32, ver domain.Version) {
	was, ok := rl.extents[extent]
	if !ok {
		s.tables.Add(segment.ExtentBytes)
	}
	if !ok || was.Compare(ver) < 0 {
		rl.extents[extent] = ver
	}
}

// forget lets go of an extent's highest version; the lane's mutex is held.
func (rl *replicaLane) forget(s *space, extent uint32) {
	if _, ok := rl.extents[extent]; ok {
		delete(rl.extents, extent)
		s.tables.Add(-segment.ExtentBytes)
	}
}
