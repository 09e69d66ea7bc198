package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"sync"

	"weft/domain"
)

// Secrets are small values beside the log, durable on a quorum. quorum.Secrets and memory.Secrets
// are ones.
type Secrets interface {
	// Load gives a value, nil when there is none, with everything stored before the call in it.
	Load(ctx context.Context, name string) ([]byte, error)
	// Create stores a value, and tells whether it did: not where the name, or bar, has one already.
	// An empty bar bars nothing. After an error nobody knows. It keeps no reference to value.
	Create(ctx context.Context, name string, value []byte, bar string) (bool, error)
	// Destroy removes a value and puts a mark under bar, in one step. Again is no error.
	Destroy(ctx context.Context, name, bar string) error
	// Names lists the names that begin with a prefix, in order.
	Names(ctx context.Context, prefix string) ([]string, error)
}

const (
	keySize = 32
	// cachedMax is how many keys a vault holds in memory.
	cachedMax = 4096

	digestName   = "digest"
	userPrefix   = "user/"
	erasedPrefix = "erased/"
	wrapPurpose  = "weft vault 1"
)

// Vault seals and opens personal text.
type Vault struct {
	secrets Secrets
	wrap    cipher.AEAD // closes what Secrets hold
	digest  []byte
	mu      struct {
		sync.Mutex
		keys map[domain.UserID]cipher.AEAD
		// gone counts what was forgotten: a key that was read before must not be kept after.
		gone uint64
	}
}

// Open gives the vault of a cluster, and makes its key for digests the first time. Master is what
// all nodes of the cluster have and nobody else does; it is not kept.
//
// Errors: Invalid without a master, Corrupt for secrets of another master, and those of Secrets.
func Open(ctx context.Context, s Secrets, master []byte) (*Vault, error) {
	v, err := wrapped(s, master)
	if err != nil {
		return nil, err
	}
	if v.digest, err = v.obtain(ctx, digestName, ""); err != nil {
		return nil, domain.Wrap(err, "vault.Open", digestName)
	}
	return v, nil
}

// wrapped gives a vault without its key for digests.
func wrapped(s Secrets, master []byte) (*Vault, error) {
	if len(master) == 0 {
		return nil, domain.Errorf(domain.Invalid, "a vault needs a master key")
	}
	v := &Vault{secrets: s}
	v.mu.keys = map[domain.UserID]cipher.AEAD{}
	var err error
	v.wrap, err = gcm(keyed(master, wrapPurpose))
	return v, err
}

// Seal closes text under the key of a user, which is made when there is none yet. The label says
// where the text will stand.
//
// Errors: NotFound once the user's key was destroyed, Corrupt, and those of Secrets.
func (v *Vault) Seal(
	ctx context.Context, user domain.UserID, label, text string,
) ([]byte, error) {
	k, err := v.key(ctx, user, true)
	if err != nil {
		return nil, domain.Wrap(err, "vault.Seal", user.String())
	}
	return k.Seal(nil, nil, []byte(text), []byte(label)), nil
}

// Open gives the text that was sealed under a label.
//
// Errors: NotFound without a key of the user, Corrupt for a box that is not this user's, was sealed
// under another label or was changed, and those of Secrets.
func (v *Vault) Open(
	ctx context.Context, user domain.UserID, label string, box []byte,
) (string, error) {
	k, err := v.key(ctx, user, false)
	if err != nil {
		return "", domain.Wrap(err, "vault.Open", user.String())
	}
	text, err := k.Open(nil, nil, box, []byte(label))
	if err != nil {
		return "", &domain.Error{
			Op: "vault.Open", Kind: domain.Corrupt, Ref: user.String(), Err: err,
			Msg: "sealed text does not open in its place",
		}
	}
	return string(text), nil
}

// Digest is a keyed hash of a text: equal for equal texts of a kind on every node of the cluster.
// Without the cluster's key for it nobody can tell a guess from the truth.
func (v *Vault) Digest(kind, text string) []byte {
	return keyed(v.digest, kind+"\x00"+text)
}

// Destroy removes the key of a user for good, here and in the quorum: a nil error means that nobody
// gets it any more. Nodes that hold it in memory forget it when they hear of the erasure.
func (v *Vault) Destroy(ctx context.Context, user domain.UserID) error {
	v.Forget(user)
	id := user.String()
	return domain.Wrap(v.secrets.Destroy(ctx, userPrefix+id, erasedPrefix+id), "vault.Destroy", id)
}

// Forget removes the key of a user from memory.
func (v *Vault) Forget(user domain.UserID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mu.keys, user)
	v.mu.gone++
}

// Kept lists the users who have a key.
func (v *Vault) Kept(ctx context.Context) ([]domain.UserID, error) {
	names, err := v.secrets.Names(ctx, userPrefix)
	if err != nil {
		return nil, domain.Wrap(err, "vault.Kept", "")
	}
	list := make([]domain.UserID, 0, len(names))
	for _, n := range names {
		if id, err := domain.ParseUUID(strings.TrimPrefix(n, userPrefix)); err == nil {
			list = append(list, domain.UserID{UUID: id})
		}
	}
	return list, nil
}

// key gives the key of a user, from memory where it is there.
func (v *Vault) key(ctx context.Context, user domain.UserID, made bool) (cipher.AEAD, error) {
	v.mu.Lock()
	k, gone := v.mu.keys[user], v.mu.gone
	v.mu.Unlock()
	if k != nil {
		return k, nil
	}
	name := userPrefix + user.String()
	var raw []byte
	var err error
	if made {
		raw, err = v.obtain(ctx, name, erasedPrefix+user.String())
	} else {
		raw, err = v.fetch(ctx, name)
		if err == nil && raw == nil {
			err = domain.Errorf(domain.NotFound, "there is no key")
		}
	}
	if err != nil {
		return nil, err
	}
	if k, err = gcm(raw); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.mu.keys) >= cachedMax {
		clear(v.mu.keys)
	}
	if v.mu.gone == gone {
		v.mu.keys[user] = k
	}
	return k, nil
}

// fetch gives the key under a name, nil when there is none.
func (v *Vault) fetch(ctx context.Context, name string) ([]byte, error) {
	b, err := v.secrets.Load(ctx, name)
	if err != nil || b == nil {
		return nil, err
	}
	key, err := v.wrap.Open(nil, nil, b, []byte(name))
	if err != nil || len(key) != keySize {
		return nil, &domain.Error{
			Kind: domain.Corrupt, Ref: name, Msg: "the key was wrapped by another cluster, or changed",
			Err: err,
		}
	}
	return key, nil
}

// obtain gives the key under a name, made when there is none and bar has no mark. Of several that
// make one at once, all get the same.
func (v *Vault) obtain(ctx context.Context, name, bar string) ([]byte, error) {
	for range 2 {
		key, err := v.fetch(ctx, name)
		if err != nil || key != nil {
			return key, err
		}
		key = make([]byte, keySize)
		_, _ = rand.Read(key) // never fails: it ends the program instead
		made, err := v.secrets.Create(ctx, name, v.wrap.Seal(nil, nil, key, []byte(name)), bar)
		if err != nil {
			return nil, err
		}
		if made {
			return key, nil
		}
	}
	return nil, domain.Errorf(domain.NotFound, "the key was destroyed")
}

func keyed(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text)) // a hash takes everything
	return h.Sum(nil)
}

// gcm draws a random nonce for every text and puts it before the cipher text.
func gcm(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}
