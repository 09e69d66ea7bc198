package engine

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"

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
// The journal is no disk: what stands there is not encrypted.

// life is a segment's life as far as keys go. It never changes.
type life struct {
	base int64 // where the segment stands on the device
	seq  uint64
	salt segment.Salt
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
	binary.LittleEndian.PutUint64(p.nonce[:], uint64(off-lf.base)/segment.BlockSize)
	p.nonce[8] = 0
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

// cipherID names a key of a life.
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
	id := cipherID{k.id, lf.base, lf.seq, lf.salt}
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.mu.ready[id]; a != nil {
		return a
	}
	info := append([]byte("weft block 1"), e.super.Device.UUID[:]...)
	info = binary.LittleEndian.AppendUint64(info, lf.seq)
	secret, err := hkdf.Key(sha256.New, k.secret, lf.salt[:], string(info), keyBytes)
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
		o := origin{}
		if loc.Kind() == segment.Flash && !e.nv.holds(loc) {
			o.key, o.life = br.key, e.space.at(loc.Off()).life.Load()
			if br.fam.mixed {
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
			continue // it stands nowhere, or in the journal
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
