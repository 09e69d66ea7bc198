package engine

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"

	"weft/dataplane/journal"
	"weft/dataplane/segment"
)

// Encryption at rest. A block of an encrypted volume is closed by AES-256-GCM when the chunk that
// holds it is given its place, and opened when it has been read and its checksum, which is over the
// cipher text, was right. Nothing before knows of it, and recovery, checker and scrub need no key.
//
// Of a (key, nonce) pair the nonce is the block's place in its segment, and the key is one of this
// life of the segment alone: it is derived from the key of the volume and from a salt that is drawn
// at random when the segment is opened and stands in its header. In one life no place is given out
// twice, so neither is a pair: not after a crash, since what was open then is never appended to
// again; not on an image that was rolled back, since it draws other salts; not when a chunk that
// failed is written once more, or blocks are destaged or moved, since they are closed anew where
// they come to stand. No counter has to be kept for it, and a read needs nothing beside the place.
//
//	key    HKDF-SHA-256 of the volume's key, salt of the life, "weft block 1", device, sequence
//	nonce  block of the segment 8, then 0 or, of a compressed block, 1 + its unit in that block, 0 3
//	AAD    the first 32 bytes of the entry: branch, block, count, kind, flags, version, generation
//
// In the journal a block is closed as it is put there, under a key of this start of the engine: its
// salt is drawn at the start, and stands in each slot before the slot takes a record. The nonce is
// the slot's sequence, which in one start is given out once, and the place in the slot. What is
// destaged is opened, held to its tag, and closed anew for where it goes.
//
//	key    HKDF-SHA-256 of the volume's key, salt of the start, "weft journal 1", device
//	nonce  sequence of the slot 8, block of its payload 4
//	AAD    the first 32 bytes of the entry in the journal

// life is the life of a segment, or of a slot of the journal, as far as keys go. It never changes.
type life struct {
	base int64 // where the segment stands on the device, or the slot's payload, as the index says
	seq  uint64
	salt segment.Salt
	slot bool
}

// secret is one entry of a chunk whose blocks are encrypted.
type secret struct {
	key   *volumeKey
	at    int    // of the entry, in the chunk's entries
	unit  uint32 // of the first block, in the payload
	count int
	size  int // bytes of each as they stand on the device
	crc   int // index of the first block's checksum
}

// pad is what one goroutine needs to open and close blocks without allocating.
type pad struct {
	buf   [segment.BlockSize + segment.TagBytes]byte
	nonce [12]byte
}

// at makes the nonce for a block that stands at a device offset; of size bytes there, fewer than a
// block's where it was compressed.
func (p *pad) at(lf *life, off int64, size int) []byte {
	if lf.slot {
		binary.LittleEndian.PutUint64(p.nonce[:], lf.seq)
		binary.LittleEndian.PutUint32(p.nonce[8:], uint32((off-lf.base)/segment.BlockSize))
		return p.nonce[:]
	}
	binary.LittleEndian.PutUint64(p.nonce[:], uint64(off-lf.base)/segment.BlockSize)
	binary.LittleEndian.PutUint32(p.nonce[8:], 0)
	if size < segment.BlockSize {
		p.nonce[8] = 1 + byte((off-lf.base)%segment.BlockSize/segment.Unit)
	}
	return p.nonce[:]
}

// turn opens a closed block, or closes an open one, in place and without its tag: GCM's cipher is
// XOR with a stream that key and nonce give, so closing the cipher text gives the text. What is
// read is held to the checksum of its cipher text before; only an entry has the tag.
func (p *pad) turn(a cipher.AEAD, lf *life, off int64, block []byte) {
	copy(block, a.Seal(p.buf[:0], p.at(lf, off, len(block)), block, nil)[:len(block)])
}

// open opens a block in place and tells whether its tag vouches for it.
func (p *pad) open(a cipher.AEAD, lf *life, off int64, block, tag, entry []byte) bool {
	n := copy(p.buf[:], block)
	n += copy(p.buf[n:], tag)
	text, err := a.Open(p.buf[:0], p.at(lf, off, len(block)), p.buf[:n], entry[:segment.SealedBytes])
	copy(block, text)
	return err == nil
}

// conceal notes that the entry added last is of an encrypted volume.
func (c *chunk) conceal(s secret) { c.secrets = append(c.secrets, s) }

// entryBytes gives the bytes of the entries, with the salt where something is encrypted.
func (c *chunk) entryBytes() int {
	if len(c.secrets) > 0 {
		return len(c.entries) + segment.SaltBytes
	}
	return len(c.entries)
}

// takes is fits for a record with n bytes of data under a key, nil for none: tags need room too.
func (c *chunk) takes(key *volumeKey, n, limit int) bool {
	tags := 0
	if key != nil {
		tags = (n + segment.BlockSize - 1) / segment.BlockSize * segment.TagBytes
	}
	return c.fits(n, limit) && len(c.entries)+tags+firstEntryMax <= c.room
}

// close encrypts what is to be encrypted, for the place that the chunk was given: its payload
// starts at a device offset in a segment's life. A chunk that is written again elsewhere is opened
// before.
func (c *chunk) close(e *Engine, lf *life, payload int64) {
	if len(c.secrets) == 0 {
		return
	}
	if c.pad == nil {
		c.pad = &pad{}
	}
	for i := range c.secrets {
		s := &c.secrets[i]
		a, entry := e.cipherOf(s.key, lf), c.entries[s.at:]
		for k := range s.count {
			skip := int64(s.unit)*segment.Unit + int64(k*s.size)
			b := c.buf[segment.HeaderMax+skip:][:s.size]
			if c.life != nil {
				c.pad.turn(e.cipherOf(s.key, c.life), c.life, c.closedAt+skip, b)
			}
			nonce := c.pad.at(lf, payload+skip, s.size)
			if e.cfg.closing != nil {
				e.cfg.closing(a, nonce, b)
			}
			out := a.Seal(c.pad.buf[:0], nonce, b, entry[:segment.SealedBytes])
			copy(b, out)
			c.crcs[s.crc+k] = segment.Checksum(b)
			segment.PutSeal(entry, k, c.crcs[s.crc+k], out[s.size:])
		}
	}
	c.life, c.closedAt, c.head.Salt = lf, payload, lf.salt
	c.head.Place = uint64(payload-int64(c.head.HeaderBytes())) / segment.Sector
}

// ciphersMax is how many keys of lives are kept ready; each takes about a kilobyte.
const ciphersMax = 4096

// cipherID names a key of a life; base is -1 for that of a start, with which the journal's slots
// are closed.
type cipherID struct {
	key  uint32
	base int64
	seq  uint64
	salt segment.Salt
}

// cipherOf gives the cipher of a volume's key in a life of a segment.
func (e *Engine) cipherOf(k *volumeKey, lf *life) cipher.AEAD {
	if k.secret == nil {
		panic("engine: a key that is not there is used") // and would be one that everybody knows
	}
	r := &e.keys
	id, info := cipherID{k.id, lf.base, lf.seq, lf.salt}, "weft block 1"
	if lf.slot {
		id, info = cipherID{key: k.id, base: -1, salt: lf.salt}, "weft journal 1"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.mu.ready[id]; a != nil {
		return a
	}
	info += string(e.super.Device.UUID[:])
	if !lf.slot {
		info += string(binary.LittleEndian.AppendUint64(nil, lf.seq))
	}
	secret, err := hkdf.Key(sha256.New, k.secret, lf.salt[:], info, keyBytes)
	if err != nil {
		panic("engine: " + err.Error()) // the length asked for is a constant
	}
	a := newCipher(secret)
	if len(r.mu.ready) >= ciphersMax {
		for old := range r.mu.ready {
			delete(r.mu.ready, old)
			break
		}
	}
	r.mu.ready[id] = a
	return a
}

// newCipher gives AES-256-GCM under a key of keyBytes.
func newCipher(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err == nil {
		var a cipher.AEAD
		if a, err = cipher.NewGCM(b); err == nil {
			return a
		}
	}
	panic("engine: " + err.Error()) // the length of the key is a constant
}

// origin is what opens a block that was read from the device.
type origin struct {
	key  *volumeKey
	life *life
}

// origins notes, while the lane's mutex holds the places, what opens each block of an encrypted
// volume: once it is free a segment may begin another life. lf is the leaf that answers first.
func (rd *reader) origins(e *Engine, br *branch, lf *leaf, first int) {
	for i, loc := range rd.loc[:rd.count] {
		o, kept := origin{}, e.nv.holds(loc)
		if kept {
			o.life = e.nv.slotAt(loc).life
		} else if loc.Kind() == segment.Flash {
			o.life = e.space.at(loc.Off()).life.Load()
		}
		if o.life != nil || !kept && loc.Kind() == segment.Flash {
			if o.key = br.key; br.fam.mixed {
				o.key = lf.writer(first + i)
			}
		}
		rd.from = append(rd.from, o)
	}
}

// writer gives the key of the branch whose copy of a block is seen from a leaf.
func (lf *leaf) writer(i int) *volumeKey {
	for ; lf != nil; lf = lf.base {
		if lf.own.get(i) != 0 {
			return lf.br.key
		}
	}
	return nil
}

// reveal opens all blocks of a read in place; their checksums were right.
func (rd *reader) reveal(v *Volume) error {
	if rd.pad == nil {
		rd.pad = &pad{}
	}
	for i, o := range rd.from {
		switch {
		case o == origin{}:
			continue // it stands nowhere, or in a slot of a time before there was encryption there
		case o.key == nil || o.life == nil:
			return v.corrupt(rd.block, i)
		case o.key.secret == nil:
			return v.locked(o.key)
		}
		b := rd.dst[i*segment.BlockSize:][:rd.loc[i].Stored()]
		rd.pad.turn(v.e.cipherOf(o.key, o.life), o.life, rd.loc[i].Off(), b)
	}
	return nil
}

// sealer closes what a lane puts into the journal. It implements journal.Sealer.
type sealer struct {
	e    *Engine
	key  *volumeKey
	life *life // of the slot
	crcs [segment.RecordBlocks]uint32
	pad  pad
}

// Seal implements journal.Sealer.
func (s *sealer) Seal(entry []byte, place uint32, dst, data []byte) {
	a, off := s.e.cipherOf(s.key, s.life), s.e.nv.offset(place)
	for k := range len(data) / segment.BlockSize {
		at := k * segment.BlockSize
		b := data[at : at+segment.BlockSize]
		nonce := s.pad.at(s.life, off+int64(at), segment.BlockSize)
		if s.e.cfg.closing != nil {
			s.e.cfg.closing(a, nonce, b)
		}
		out := a.Seal(s.pad.buf[:0], nonce, b, entry[:segment.SealedBytes])
		s.crcs[k] = segment.Checksum(out[:segment.BlockSize])
		copy(dst[at:], out[:segment.BlockSize])
		segment.PutSeal(entry, k, s.crcs[k], out[segment.BlockSize:])
	}
}

// offset gives the place of a block in the journal as the index has it, in bytes.
func (n *nvram) offset(place uint32) int64 {
	return (int64(n.base) + int64(place)) * segment.BlockSize
}

// lifeOf gives the life of a slot; nil for one that an earlier build filled, which encrypted
// nothing there.
func (n *nvram) lifeOf(sl *journal.Slot) *life {
	if sl.Salt == (segment.Salt{}) {
		return nil
	}
	return &life{base: n.offset(n.share.Start(sl.No)), seq: sl.Sequence, salt: sl.Salt, slot: true}
}

// unseal opens a block of the journal in place, and tells whether its tag vouches for it: block i
// of an entry, at a place, whose bytes matched their checksum. Nothing is to be opened of a volume
// that is not encrypted, nor of a slot that an earlier build filled.
func (n *nvram) unseal(p *pad, key *volumeKey, lf *life, entry []byte, i int, place uint32,
	block []byte,
) bool {
	return key == nil || lf == nil || segment.Encrypted(entry) &&
		p.open(n.e.cipherOf(key, lf), lf, n.offset(place), block, segment.Tag(entry, i), entry)
}
