package esdouble

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// Cursors are the cursors of persistent subscriptions, in memory. The zero value holds none. It
// implements esdb.Cursors.
type Cursors struct {
	mu   sync.Mutex
	kept map[string][]byte
}

// Load gives a value, nil when there is none.
func (c *Cursors) Load(_ context.Context, name string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept[name], nil
}

// Store replaces a value.
func (c *Cursors) Store(_ context.Context, name string, value []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept = map[string][]byte{}
	}
	c.kept[name] = slices.Clone(value)
	return nil
}

// Delete removes a value.
func (c *Cursors) Delete(_ context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.kept, name)
	return nil
}

// Names lists all names.
func (c *Cursors) Names(context.Context) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.kept)), nil
}
