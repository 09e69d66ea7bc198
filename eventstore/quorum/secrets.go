package quorum

import (
	"context"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/vault"
)

// secretMax is the largest secret, bytes.
const secretMax = 4 << 10

// Secrets are small values beside the log that no copy of it holds: no mirror, no archive, no
// export. They are durable on a quorum. What is removed leaves the database's history when that is
// compacted, and etcd's own files when those are written anew; until then its bytes are on disk.
type Secrets struct{ s *Store }

var _ vault.Secrets = Secrets{}

// Secrets gives the secrets of the cluster.
func (s *Store) Secrets() Secrets { return Secrets{s} }

func (k keys) secret(name string) string { return k.root + "secret/" + name }

// Load implements vault.Secrets. A value that does not match its checksum is a CorruptError.
func (c Secrets) Load(ctx context.Context, name string) ([]byte, error) {
	r, err := c.s.client.Get(ctx, c.s.keys.secret(name))
	if err != nil {
		return nil, unavailable(ctx, "quorum.Secrets", err)
	}
	if len(r.Kvs) == 0 {
		return nil, nil
	}
	b := r.Kvs[0].Value
	if len(b) >= 4 {
		if body, ok := unseal(b, len(b)); ok {
			return body, nil
		}
	}
	return nil, &eventstore.CorruptError{What: "secret " + name + " does not match its checksum"}
}

// Create implements vault.Secrets. TooLarge beyond 4 KiB.
func (c Secrets) Create(
	ctx context.Context, name string, value []byte, bar string,
) (bool, error) {
	if len(value) > secretMax {
		return false, domain.Errorf(domain.TooLarge, "a secret has %d bytes, the most are %d",
			len(value), secretMax)
	}
	free := func(name string) clientv3.Cmp {
		return clientv3.Compare(clientv3.CreateRevision(c.s.keys.secret(name)), "=", 0)
	}
	when := []clientv3.Cmp{free(name)}
	if bar != "" {
		when = append(when, free(bar))
	}
	body := sealed(append([]byte(nil), value...))
	r, err := c.s.client.Txn(ctx).If(when...).
		Then(clientv3.OpPut(c.s.keys.secret(name), body)).Commit()
	if err != nil {
		return false, unavailable(ctx, "quorum.Secrets", err)
	}
	return r.Succeeded, nil
}

// Destroy implements vault.Secrets.
func (c Secrets) Destroy(ctx context.Context, name, bar string) error {
	_, err := c.s.client.Txn(ctx).Then(
		clientv3.OpDelete(c.s.keys.secret(name)), clientv3.OpPut(c.s.keys.secret(bar), sealed(nil)),
	).Commit()
	if err != nil {
		return unavailable(ctx, "quorum.Secrets", err)
	}
	return nil
}

// Names implements vault.Secrets.
func (c Secrets) Names(ctx context.Context, prefix string) ([]string, error) {
	r, err := c.s.client.Get(ctx, c.s.keys.secret(prefix), clientv3.WithPrefix(),
		clientv3.WithKeysOnly())
	if err != nil {
		return nil, unavailable(ctx, "quorum.Secrets", err)
	}
	list := make([]string, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		list = append(list, strings.TrimPrefix(string(kv.Key), c.s.keys.secret("")))
	}
	return list, nil
}
