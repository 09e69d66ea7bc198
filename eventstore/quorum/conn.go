package quorum

import (
	"context"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// conn is the way to the database of the moment: the member in this process where it votes, or
// another node's. It changes while the node grows into a voter or stops being one; a call under way
// then ends in an error, and a transaction whose outcome is unknown is submitted again the new way.
type conn struct {
	mu     sync.RWMutex
	client *clientv3.Client
	over   chan struct{} // closed when the way changes
}

var _ reader = (*conn)(nil)

func newConn(c *clientv3.Client) *conn { return &conn{client: c, over: make(chan struct{})} }

// set changes the way. The old client stays its owner's to close.
func (c *conn) set(client *clientv3.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.over)
	c.client, c.over = client, make(chan struct{})
}

func (c *conn) now() *clientv3.Client {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.client
}

// use gives the way of the moment and a context that ends with it, or with its parent. The caller
// cancels it.
func (c *conn) use(parent context.Context) (
	context.Context, context.CancelFunc, *clientv3.Client,
) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ctx, cancel := context.WithCancel(parent)
	over := c.over
	go func() {
		defer cancel()
		select {
		case <-over:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel, c.client
}

// Calls demand a member that knows a leader: one that is cut off says so at once, and the next try
// goes to another, instead of waiting for an answer that cannot come.

// Get reads keys.
func (c *conn) Get(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.GetResponse, error) {
	return c.now().Get(clientv3.WithRequireLeader(ctx), key, opts...)
}

// Put writes a key.
func (c *conn) Put(
	ctx context.Context, key, value string, opts ...clientv3.OpOption,
) (*clientv3.PutResponse, error) {
	return c.now().Put(clientv3.WithRequireLeader(ctx), key, value, opts...)
}

// Delete removes keys.
func (c *conn) Delete(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.DeleteResponse, error) {
	return c.now().Delete(ctx, key, opts...)
}

// Txn begins a transaction.
func (c *conn) Txn(ctx context.Context) clientv3.Txn {
	return c.now().Txn(clientv3.WithRequireLeader(ctx))
}
