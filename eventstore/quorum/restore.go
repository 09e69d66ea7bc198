package quorum

import (
	"context"
	"iter"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// importBatch is how many records go into one transaction: each, and the head of its stream, is an
// operation, of which etcd takes 128.
const importBatch = 50

// Import fills an empty log of one voter with a history, record by record as it is, and raises the
// timeline behind it. Every record and the chain are verified on the way. A nil error means that
// all of it is durable; the raise becomes so with the next append, which the caller makes at once.
// After an error the log is of no use: its folder is emptied, and the restore begun again.
//
// Errors: Exists for a log that holds something, a CorruptError, and what reading gives.
func (s *Store) Import(
	ctx context.Context, records iter.Seq2[eventstore.Recorded, error], to domain.Timeline,
) error {
	if s.mirror.Head() != (eventstore.Head{}) {
		return domain.Errorf(domain.Exists, "the event log is not empty")
	}
	var batch []eventstore.Entry
	heads := map[domain.StreamID]eventstore.StreamHead{}
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := s.store(ctx, batch, heads); err != nil {
			return err
		}
		batch = nil
		clear(heads)
		return nil
	}
	for r, err := range records {
		if err != nil {
			return err
		}
		batch = append(batch, eventstore.Entry{
			At: r.Position, Record: eventstore.AppendRecord(nil, &r),
		})
		heads[r.Stream] = eventstore.StreamHead{Revision: r.Revision, Position: r.Position}
		if len(batch) == importBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return s.mirror.Restore(s.mirror.Head().Position.N(), to)
}

// store verifies a batch by adding it to the mirror, and makes it durable behind the tail.
func (s *Store) store(
	ctx context.Context, batch []eventstore.Entry, heads map[domain.StreamID]eventstore.StreamHead,
) error {
	before := s.mirror.Head()
	if err := s.mirror.Extend(batch...); err != nil {
		return err
	}
	then := make([]clientv3.Op, 0, 2*len(batch)+1)
	for _, e := range batch {
		then = append(then, clientv3.OpPut(s.keys.log(e.At), string(e.Record)))
	}
	for id, h := range heads {
		then = append(then, clientv3.OpPut(s.keys.head(id), encodeHead(h)))
	}
	then = append(then, clientv3.OpPut(s.keys.tail(), encodeTail(s.mirror.Head())))
	res, err := s.client.Txn(ctx).
		If(holds(s.keys.tail(), before == eventstore.Head{}, encodeTail(before))).
		Then(then...).Commit()
	if err != nil {
		return unavailable(ctx, "quorum.Import", err)
	}
	if !res.Succeeded {
		return domain.Errorf(domain.Conflict, "somebody else writes to the log that is restored")
	}
	return nil
}
