package client

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft/domain"
)

// Keyring holds the tokens of sign-ins, by the address of the API that they are for. Its file has
// mode 0600.
type Keyring map[string]SignedIn

// SignedIn is a token that a sign-in left.
type SignedIn struct {
	User    string    `json:"user"`
	ID      string    `json:"id"` // of the token
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// KeyringFile says where the keyring is: in the user's configuration. Empty: there is no place.
func KeyringFile(env func(string) string) string {
	dir := env("XDG_CONFIG_HOME")
	if dir == "" && env("HOME") != "" {
		dir = filepath.Join(env("HOME"), ".config")
	}
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "weft", "keyring.json")
}

// ReadKeyring reads the keyring; one that is not there is empty.
func ReadKeyring(env func(string) string) (Keyring, error) {
	path, k := KeyringFile(env), Keyring{}
	if path == "" {
		return k, nil
	}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return k, nil
	case err != nil:
		return nil, &domain.Error{Kind: domain.Denied, Ref: path, Err: err}
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, &domain.Error{
			Kind: domain.Corrupt, Ref: path, Err: err, Remedy: "remove the file and sign in again",
		}
	}
	return k, nil
}

// Write replaces the keyring on disk in one step.
func (k Keyring) Write(env func(string) string) error {
	path := KeyringFile(env)
	if path == "" {
		return domain.Errorf(domain.Unavailable, "neither HOME nor XDG_CONFIG_HOME is set")
	}
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return &domain.Error{Kind: domain.Denied, Ref: path, Err: err}
	}
	if err := ReplaceFile(path, append(b, '\n')); err != nil {
		return &domain.Error{Kind: domain.Denied, Ref: path, Err: err}
	}
	return nil
}

// ReplaceFile makes a file of mode 0600 hold these bytes, durably and in one step, or leaves it as
// it was.
func ReplaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".weft-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Token gives the token for an API, empty when there is none or its time is over.
func (k Keyring) Token(api string, now time.Time) string {
	if s := k[bareAPI(api)]; now.Before(s.Expires) {
		return s.Token
	}
	return ""
}

// Put keeps a token for an API.
func (k Keyring) Put(api string, s SignedIn) { k[bareAPI(api)] = s }

// Take removes the token for an API and gives it.
func (k Keyring) Take(api string) (SignedIn, bool) {
	s, ok := k[bareAPI(api)]
	delete(k, bareAPI(api))
	return s, ok
}

// bareAPI is an address without what may be left out of it.
func bareAPI(api string) string {
	return strings.TrimSuffix(strings.TrimPrefix(api, "http://"), "/")
}
