package quorum

import (
	"context"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// cursorMax is the largest value of a cursor, bytes; etcd's requests end at 1.5 MiB.
const cursorMax = 1 << 20

// Cursors are small values beside the log, such as how far a foreign reader has come. They are
// durable on a quorum and no events: the last value is all there is. Names are free text.
type Cursors struct{ s *Store }

// Cursors gives the cursors of the cluster.
func (s *Store) Cursors() Cursors { return Cursors{s} }

func (k keys) cursor(name string) string { return k.root + "ckpt/" + name }

// Load gives a value, nil when there is none, with everything stored before the call in it. One
// that does not match its checksum is a CorruptError.
func (c Cursors) Load(ctx context.Context, name string) ([]byte, error) {
	r, err := c.s.client.Get(ctx, c.s.keys.cursor(name))
	if err != nil {
		return nil, unavailable(ctx, "quorum.Load", err)
	}
	if len(r.Kvs) == 0 {
		return nil, nil
	}
	b := r.Kvs[0].Value
	body, ok := unseal(b, len(b))
	if !ok || len(b) < 4 {
		return nil, &eventstore.CorruptError{What: "cursor " + name + " does not match its checksum"}
	}
	return body, nil
}

// Store replaces a value. A nil error means that it is durable on a quorum; after another one it
// may be. TooLarge beyond 1 MiB.
func (c Cursors) Store(ctx context.Context, name string, value []byte) error {
	if len(value) > cursorMax {
		return domain.Errorf(domain.TooLarge, "cursor %s has %d bytes, the most are %d", name,
			len(value), cursorMax)
	}
	_, err := c.s.client.Put(ctx, c.s.keys.cursor(name), sealed(append([]byte(nil), value...)))
	if err != nil {
		return unavailable(ctx, "quorum.Store", err)
	}
	return nil
}

// Delete removes a value. One that is not there is no error.
func (c Cursors) Delete(ctx context.Context, name string) error {
	_, err := c.s.client.Delete(ctx, c.s.keys.cursor(name))
	if err != nil {
		return unavailable(ctx, "quorum.Delete", err)
	}
	return nil
}

// Names lists all names, in order.
func (c Cursors) Names(ctx context.Context) ([]string, error) {
	from := c.s.keys.cursor("")
	r, err := c.s.client.Get(ctx, from, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, unavailable(ctx, "quorum.Names", err)
	}
	out := make([]string, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		out = append(out, strings.TrimPrefix(string(kv.Key), from))
	}
	return out, nil
}
