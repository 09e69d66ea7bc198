package vault

import (
	"context"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"weft/domain"
)

const (
	bundleMagic   = "WKEY"
	bundleVersion = 1
	bundleHead    = 44
	// stretch is how often a passphrase is hashed: what OWASP's cheat sheet on storing passwords asks
	// of PBKDF2 with HMAC-SHA-256 (2023). stretchMax bounds what a bundle may ask for.
	stretch    = 600_000
	stretchMax = 100 * stretch
	// PassphraseMin is the least length of a passphrase, bytes.
	PassphraseMin = 12
	// BundleMax is the largest bundle that is read, bytes: about a million users.
	BundleMax = 96 << 20
)

// Bundle gives all keys of the vault, closed under a passphrase, to be kept beside a backup of the
// log of a cluster: with both, a restored cluster knows its users by name. Whoever has a bundle,
// its passphrase and a copy of the log reads what was sealed for every user who was not erased when
// the bundle was made: an erasure is complete once older bundles are destroyed. It gives the number
// of users too.
//
//	| "WKEY" | version 1 | 0 x 3 | iterations u32 | cluster 16 | salt 16 | box |
//
// The box is AES-256-GCM as everywhere in this package, under PBKDF2-HMAC-SHA-256 of the passphrase
// and the salt (RFC 8018), with what stands before it as additional data, over the number of
// secrets u32 and each as | length of the name u8 | name | length of the key u8, 32 or 0 | key |.
// One without a key is the mark of an erased user. Integers are little-endian.
//
// Errors: Invalid for a passphrase below PassphraseMin, Corrupt, and those of Secrets.
func (v *Vault) Bundle(
	ctx context.Context, in domain.ClusterID, passphrase string,
) (bundle []byte, users int, err error) {
	return v.bundle(ctx, in, passphrase, stretch)
}

func (v *Vault) bundle(
	ctx context.Context, in domain.ClusterID, passphrase string, stretch uint32,
) (bundle []byte, users int, err error) {
	if len(passphrase) < PassphraseMin {
		return nil, 0, domain.Errorf(domain.Invalid, "a passphrase has at least %d bytes",
			PassphraseMin)
	}
	body, users, err := v.everything(ctx)
	if err != nil {
		return nil, 0, err
	}
	head := make([]byte, bundleHead, bundleHead+len(body)+32)
	copy(head, bundleMagic)
	head[4] = bundleVersion
	binary.LittleEndian.PutUint32(head[8:], stretch)
	copy(head[12:], in.UUID[:])
	_, _ = rand.Read(head[28:]) // never fails: it ends the program instead
	box, err := opener(head, passphrase)
	if err != nil {
		return nil, 0, err
	}
	return box.Seal(head, nil, body, head), users, nil
}

// everything gives all secrets as the box of a bundle holds them, and the number of users.
func (v *Vault) everything(ctx context.Context) (body []byte, users int, err error) {
	names := []string{digestName}
	for _, prefix := range []string{userPrefix, erasedPrefix} {
		list, err := v.secrets.Names(ctx, prefix)
		if err != nil {
			return nil, 0, domain.Wrap(err, "vault.Bundle", prefix)
		}
		names = append(names, list...)
	}
	body = make([]byte, 4)
	n := uint32(0)
	for _, name := range names {
		var key []byte
		if !strings.HasPrefix(name, erasedPrefix) {
			if key, err = v.fetch(ctx, name); err != nil {
				return nil, 0, domain.Wrap(err, "vault.Bundle", name)
			}
			if key == nil {
				continue // erased a moment ago
			}
		}
		if strings.HasPrefix(name, userPrefix) {
			users++
		}
		n++
		body = append(body, byte(len(name)))
		body = append(body, name...)
		body = append(body, byte(len(key)))
		body = append(body, key...)
	}
	binary.LittleEndian.PutUint32(body, n)
	return body, users, nil
}

// opener gives what closes and opens the box behind a head.
func opener(head []byte, passphrase string) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, passphrase, head[28:bundleHead],
		int(binary.LittleEndian.Uint32(head[8:])), keySize)
	if err != nil {
		return nil, err
	}
	return gcm(key)
}

// Unpack stores the keys of a bundle, wrapped for the cluster whose master this is, before its
// vault is opened for the first time: the key for digests must be the one that the log was written
// with. Keys of users that secrets already say are erased stay away, and repeating it changes
// nothing. It gives the number of users.
//
// Errors: Corrupt for what is no bundle, was changed, or does not open with the passphrase;
// Mismatch for one of another cluster; Exists where a vault with other keys was opened before; and
// those of Secrets.
func Unpack(
	ctx context.Context, s Secrets, master []byte, in domain.ClusterID, bundle []byte,
	passphrase string,
) (users int, err error) {
	entries, err := unpack(in, bundle, passphrase)
	if err != nil {
		return 0, err
	}
	v, err := wrapped(s, master)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		switch {
		case len(e.key) == 0:
			id := strings.TrimPrefix(e.name, erasedPrefix)
			err = s.Destroy(ctx, userPrefix+id, erasedPrefix+id)
		case e.name == digestName:
			err = v.put(ctx, e.name, e.key, "")
		default:
			users++
			err = v.put(ctx, e.name, e.key, erasedPrefix+strings.TrimPrefix(e.name, userPrefix))
		}
		if err != nil {
			return 0, domain.Wrap(err, "vault.Unpack", e.name)
		}
	}
	return users, nil
}

// put stores a key under a name unless bar has a mark. Another key there is of kind Exists.
func (v *Vault) put(ctx context.Context, name string, key []byte, bar string) error {
	made, err := v.secrets.Create(ctx, name, v.wrap.Seal(nil, nil, key, []byte(name)), bar)
	if err != nil || made {
		return err
	}
	is, err := v.fetch(ctx, name)
	if err == nil && is != nil && string(is) != string(key) {
		err = domain.Errorf(domain.Exists, "there is another key of this name")
	}
	return err
}

// entry is one secret of a bundle.
type entry struct {
	name string
	key  []byte
}

// unpack opens a bundle of a cluster.
func unpack(in domain.ClusterID, bundle []byte, passphrase string) ([]entry, error) {
	bad := func(what string) error {
		return &domain.Error{
			Op: "vault.Unpack", Kind: domain.Corrupt, Msg: what,
			Remedy: "give the file that weft backup --keys wrote, and its passphrase",
		}
	}
	if len(bundle) < bundleHead || string(bundle[:4]) != bundleMagic ||
		bundle[4] != bundleVersion || len(bundle) > BundleMax {
		return nil, bad("this is no bundle of keys")
	}
	head := bundle[:bundleHead]
	if n := binary.LittleEndian.Uint32(head[8:]); n < 1 || n > stretchMax {
		return nil, bad("this is no bundle of keys")
	}
	box, err := opener(head, passphrase)
	if err != nil {
		return nil, err
	}
	body, err := box.Open(nil, nil, bundle[bundleHead:], head)
	if err != nil {
		return nil, bad("the bundle does not open: another passphrase, or it was changed")
	}
	if string(head[12:28]) != string(in.UUID[:]) {
		return nil, domain.Errorf(domain.Mismatch, "the keys are those of another cluster")
	}
	list, ok := entries(body)
	if !ok {
		return nil, bad("the bundle is cut")
	}
	return list, nil
}

// entries reads what the box of a bundle holds.
func entries(body []byte) (list []entry, ok bool) {
	if len(body) < 4 {
		return nil, false
	}
	n, body := binary.LittleEndian.Uint32(body), body[4:]
	field := func() ([]byte, bool) {
		if len(body) < 1 || len(body) < 1+int(body[0]) {
			return nil, false
		}
		f := body[1 : 1+body[0]]
		body = body[1+body[0]:]
		return f, true
	}
	for range n {
		name, named := field()
		key, whole := field()
		s := string(name)
		mark := strings.HasPrefix(s, erasedPrefix)
		known := mark || s == digestName || strings.HasPrefix(s, userPrefix)
		if !named || !whole || !known || mark != (len(key) == 0) || !mark && len(key) != keySize {
			return nil, false
		}
		list = append(list, entry{s, key})
	}
	return list, len(body) == 0
}
