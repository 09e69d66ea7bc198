package engine

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// keyBytes is the size of every key.
const keyBytes = 32

// ErrKeyMissing is the cause of every refusal to serve an encrypted volume whose key cannot be
// unwrapped here.
var ErrKeyMissing = errors.New("the volume's key cannot be unwrapped")

// volumeKey is the key of one volume's own line of writes: its branches share it, a clone has
// another. It does not change.
type volumeKey struct {
	id     uint32
	secret []byte // nil: it cannot be unwrapped
	why    string // then
}

// keyring knows the device's key table. The table is written under Engine.control, or by Open.
type keyring struct {
	wrap  cipher.AEAD // nil: there is no cluster key
	under uint64      // tells the cluster key from others
	pages [segment.KeyPages]segment.KeyPage
	spent [segment.KeyPages]bool // no copy verifies: it is left as it is

	mu struct {
		sync.Mutex
		known map[uint32]*volumeKey
		ready map[cipherID]cipher.AEAD
	}
}

// setup takes the cluster key, which may be none.
func (r *keyring) setup(key []byte) error {
	r.mu.known, r.mu.ready = map[uint32]*volumeKey{}, map[cipherID]cipher.AEAD{}
	if len(key) == 0 {
		return nil
	}
	if len(key) != keyBytes {
		return domain.Errorf(domain.Invalid, "a cluster key of %d bytes, not %d", len(key), keyBytes)
	}
	r.wrap = newCipher(key)
	sum := sha256.Sum256(append([]byte("weft cluster key 1"), key...))
	r.under = binary.LittleEndian.Uint64(sum[:])
	return nil
}

// label binds a wrapped key to its cluster, its device and its number.
func (e *Engine) label(id uint32) []byte {
	b := append([]byte("weft volume key 1"), e.super.Cluster.UUID[:]...)
	b = append(b, e.super.Device.UUID[:]...)
	return binary.LittleEndian.AppendUint32(b, id)
}

// hasKeys tells whether the device has a key table.
func (e *Engine) hasKeys() bool { return e.super.Incompat&segment.IncompatKeys != 0 }

// loadKeys reads the key table. Pages are taken into use in order, so it ends behind two that never
// were.
func (e *Engine) loadKeys() error {
	if !e.hasKeys() {
		return nil
	}
	b := backends.AlignedBuffer(segment.KeyCopies * segment.Sector)
	blank := 0
	for no := range uint32(segment.KeyPages) {
		e.keys.pages[no].No = no
		if blank == 2 {
			continue
		}
		if err := e.dev.ReadAt(b, segment.KeyOff(no, 0)); err != nil {
			return e.device(err, "engine.keys")
		}
		if allZero(b) {
			blank++
			continue
		}
		blank = 0
		if err := e.loadPage(no, b); err != nil {
			return err
		}
	}
	return nil
}

// loadPage takes a page from its copies. One of which a copy is older or does not verify is written
// again: a key that was destroyed must not be left in the other.
func (e *Engine) loadPage(no uint32, b []byte) error {
	p, bad, turns := &e.keys.pages[no], 0, [segment.KeyCopies]uint64{}
	for i := range turns {
		s := b[i*segment.Sector : (i+1)*segment.Sector]
		switch c, err := segment.DecodeKeyPage(s); {
		case err == nil && c.No == no:
			if turns[i] = c.Turn; c.Turn > p.Turn {
				*p = *c
			}
		case !allZero(s): // else the first change of the page was cut short
			bad++
		}
	}
	if bad > 0 {
		e.report(Fact{What: "corrupt", Detail: fmt.Sprintf(
			"key page %d: %d of %d copies do not verify", no, bad, segment.KeyCopies,
		)})
	}
	if p.Turn == 0 {
		e.keys.spent[no] = true
		return nil
	}
	for i := range p.Keys {
		e.unwrap(&p.Keys[i])
		e.space.conceal()
	}
	if turns[0] != turns[1] {
		return e.writeKeys(p)
	}
	return nil
}

// unwrap makes a key of the table known, whether it can be used or not.
func (e *Engine) unwrap(k *segment.Key) {
	r, v := &e.keys, &volumeKey{id: k.ID}
	switch {
	case r.wrap == nil:
		v.why = "this node has no cluster key"
	case k.Under != r.under:
		v.why = fmt.Sprintf("it is wrapped under cluster key %016x, this node has %016x", k.Under,
			r.under)
	default:
		n := min(len(k.Wrapped), r.wrap.NonceSize())
		text, err := r.wrap.Open(nil, pad12(k.Wrapped[:n]), k.Wrapped[n:], e.label(k.ID))
		if err != nil || len(text) != keyBytes {
			v.why = "its wrapped key does not verify"
			break
		}
		v.secret = text
	}
	r.mu.Lock()
	r.mu.known[k.ID] = v
	r.mu.Unlock()
}

// pad12 gives a nonce that GCM takes, whatever was read.
func pad12(b []byte) []byte { return append(slices.Clone(b), make([]byte, 12-len(b))...) }

// key gives a key by its number; nil for 0. One that the table does not have is known as missing.
func (r *keyring) key(id uint32) *volumeKey {
	if id == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.mu.known[id]
	if k == nil {
		k = &volumeKey{id: id, why: "its key is not in the device's table"}
		r.mu.known[id] = k
	}
	return k
}

// newKey draws a key, and makes it durable, wrapped, before anything is written under it. The
// caller holds control.
func (e *Engine) newKey(id uint32) error {
	r := &e.keys
	refuse := func(kind domain.Kind, msg, remedy string) error {
		return &domain.Error{
			Op: "engine.Create", Kind: kind, Ref: e.dev.Geometry().Path, Msg: msg, Remedy: remedy,
		}
	}
	switch {
	case r.wrap == nil:
		return refuse(domain.Unavailable, "an encrypted volume needs the cluster key",
			"start the node with it")
	case !e.hasKeys():
		return refuse(domain.Unsupported, "the device was formatted without a key table",
			"place encrypted volumes on a device that was formatted later")
	}
	i := 0
	for i < len(r.pages) && (r.spent[i] || len(r.pages[i].Keys) >= segment.KeysPerPage) {
		i++
	}
	if i == len(r.pages) {
		return refuse(domain.TooLarge, fmt.Sprintf("the device holds %d keys, and no more",
			segment.KeysMax), "delete encrypted volumes that are not needed")
	}
	var b [keyBytes + 12]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	secret, nonce := b[:keyBytes], b[keyBytes:]
	k := segment.Key{ID: id, Under: r.under}
	k.Wrapped = r.wrap.Seal(slices.Clone(nonce), nonce, secret, e.label(id))
	p := &r.pages[i]
	p.Keys = append(p.Keys, k)
	if err := e.writeKeys(p); err != nil {
		p.Keys = p.Keys[:len(p.Keys)-1]
		return err
	}
	e.unwrap(&k)
	e.space.conceal()
	return nil
}

// writeKeys writes a page, durably, one copy after the other. A failure leaves open what stands
// there.
func (e *Engine) writeKeys(p *segment.KeyPage) error {
	p.Turn++
	b := backends.AlignedBuffer(segment.Sector)
	p.Encode(b)
	for i := range segment.KeyCopies {
		if err := e.dev.WriteAt(b, segment.KeyOff(p.No, i), e.fua); err != nil {
			return e.device(err, "engine.keys")
		}
		if err := e.flushDevice(); err != nil {
			return err
		}
	}
	return nil
}

// dropKeys destroys every key that no branch needs any more: what was written under it can never be
// read again, wherever copies of it are left. A clone stands on branches of the volume that it was
// made of, so their key stays until the clone sees nothing of theirs. The caller holds control, or
// is Open.
func (e *Engine) dropKeys() error {
	needed := map[uint32]bool{}
	e.mu.RLock()
	for _, b := range e.mu.branches {
		if !b.gone && b.key != nil {
			needed[b.key.id] = true
		}
	}
	e.mu.RUnlock()
	for i := range e.keys.pages {
		p := &e.keys.pages[i]
		left := slices.DeleteFunc(slices.Clone(p.Keys), func(k segment.Key) bool {
			return !needed[k.ID]
		})
		if len(left) == len(p.Keys) {
			continue
		}
		was := p.Keys
		p.Keys = left
		if err := e.writeKeys(p); err != nil {
			p.Keys = was
			return err
		}
		e.forget(was, needed)
	}
	return nil
}

// forget takes destroyed keys out of memory.
func (e *Engine) forget(keys []segment.Key, needed map[uint32]bool) {
	r := &e.keys
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		if needed[k.ID] {
			continue
		}
		delete(r.mu.known, k.ID)
		for id := range r.mu.ready {
			if id.key == k.ID {
				delete(r.mu.ready, id)
			}
		}
	}
}

// locked is the error of an encrypted volume whose key is not there.
func (v *Volume) locked(k *volumeKey) error {
	return &domain.Error{
		Op: "engine.Volume", Kind: domain.Unavailable, Ref: "volume/" + v.volume.String(),
		Msg: "encrypted, and " + k.why, Remedy: "give the node the cluster key that it was made under",
		Err: ErrKeyMissing,
	}
}

// Keyless gives why nothing can be read of an encrypted volume or written to it: an error of
// ErrKeyMissing. It is nil where the key is there, and for a volume that is not encrypted.
func (v *Volume) Keyless() error {
	if k := v.br.Load().key; k != nil && k.secret == nil {
		return v.locked(k)
	}
	return nil
}

// Encrypted tells whether the volume is encrypted.
func (v *Volume) Encrypted() bool { return v.br.Load().key != nil }

// holdsMore tells whether a branch must stay for the only one above, though nobody names it: what
// it wrote is under another key.
func (e *Engine) holdsMore(b *branch) bool {
	if len(b.kids) != 1 || b.kids[0].key == b.key {
		return false
	}
	for _, l := range e.lanes {
		for _, ext := range l.extents(b) {
			l.mu.Lock()
			lf := b.fam.leaves[l.no][ext].of(b)
			l.mu.Unlock()
			if lf != nil {
				return true
			}
		}
	}
	return false
}

// saltOf finds the salt of a life whose header is lost: chunks with something encrypted repeat it.
// It is zero where there is none; then nothing that stands there can be opened.
func (e *Engine) saltOf(id uint32, seq uint64) (salt segment.Salt) {
	found := false
	err := e.eachChunk(id, seq, func(_ int64, h *segment.Chunk, _ []byte) error {
		if h.Sealed && !found {
			salt, found = h.Salt, true
		}
		return nil
	})
	if err != nil {
		e.report(Fact{What: "read-error", Detail: err.Error()})
	}
	return salt
}
