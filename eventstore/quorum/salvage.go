package quorum

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// salvage brings the database up to where the node's own archive ends, at the positions that the
// records have. An archive holds committed records only; it is ahead of the database where that was
// lost and put back from an older copy. A nil error means that all of it is durable.
//
// The error is a CorruptError where both hold different histories.
func (s *Store) salvage(ctx context.Context) error {
	both, err := loader{keys: s.keys, kv: s.client}.ends(ctx)
	if err != nil {
		return unavailable(ctx, "quorum.Recover", err)
	}
	if s.past.Head().Position.N() <= both.tail.Position.N() {
		return nil
	}
	known, ok := s.mirror.HeadAt(both.tail.Position.N())
	if !ok || known != both.tail {
		return &eventstore.CorruptError{
			Position: both.tail.Position, What: "the archive and the database hold different records",
		}
	}
	b := lifted{store: s, from: both.tail, to: both.tail}
	for r, err := range s.mirror.ReadAll(ctx, both.tail.Position, eventstore.Forward,
		domain.Filter{}, eventstore.NoLimit) {
		if err == nil {
			err = b.add(ctx, &r)
		}
		if err != nil {
			return err
		}
	}
	return b.put(ctx)
}

// lifted are records on their way from the archive to the database, in one transaction.
type lifted struct {
	store    *Store
	from, to eventstore.Head // the tail before and behind them
	records  []eventstore.Entry
	size     int // bytes
}

func (b *lifted) add(ctx context.Context, r *eventstore.Recorded) error {
	record := eventstore.AppendRecord(nil, r)
	if len(b.records) > 0 && b.size+len(record) > batchBytes {
		if err := b.put(ctx); err != nil {
			return err
		}
	}
	b.records = append(b.records, eventstore.Entry{At: r.Position, Record: record})
	b.size += len(record)
	b.to = eventstore.Head{Position: r.Position, Hash: r.Hash}
	return nil
}

func (b *lifted) put(ctx context.Context) error {
	if len(b.records) == 0 {
		return nil
	}
	k := b.store.keys
	var ops []clientv3.Op
	for _, v := range valuesOf(b.records, b.store.past.Per()) {
		ops = append(ops, k.put(v))
	}
	res, err := b.store.client.Txn(ctx).
		If(holds(k.tail(), b.from == eventstore.Head{}, encodeTail(b.from))).
		Then(append(ops, clientv3.OpPut(k.tail(), encodeTail(b.to)))...).Commit()
	if err != nil {
		return unavailable(ctx, "quorum.Recover", err)
	}
	if !res.Succeeded {
		return domain.Errorf(domain.Conflict, "somebody writes to the log that is recovered")
	}
	b.store.salvaged += b.to.Position.N() - b.from.Position.N()
	*b = lifted{store: b.store, from: b.to, to: b.to}
	return nil
}
