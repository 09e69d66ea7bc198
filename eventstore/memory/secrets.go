package memory

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"

	"weft/eventstore/vault"
)

// Secrets are the values beside a log in memory. The zero value is ready; it is safe for many
// goroutines and forgets at the end of the process.
type Secrets struct {
	mu     sync.Mutex
	values map[string][]byte
}

var _ vault.Secrets = (*Secrets)(nil)

// Load implements vault.Secrets. The bytes are the caller's.
func (s *Secrets) Load(_ context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.values[name]), nil
}

// Create implements vault.Secrets.
func (s *Secrets) Create(_ context.Context, name string, value []byte, bar string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values[name] != nil || bar != "" && s.values[bar] != nil {
		return false, nil
	}
	s.put(name, value)
	return true, nil
}

// Destroy implements vault.Secrets.
func (s *Secrets) Destroy(_ context.Context, name, bar string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, name)
	s.put(bar, nil)
	return nil
}

// put runs under the mutex.
func (s *Secrets) put(name string, value []byte) {
	if s.values == nil {
		s.values = map[string][]byte{}
	}
	s.values[name] = append([]byte{}, value...)
}

// Names implements vault.Secrets.
func (s *Secrets) Names(_ context.Context, prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for n := range s.values {
		if strings.HasPrefix(n, prefix) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}
