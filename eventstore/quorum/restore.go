package quorum

import (
	"context"
	"errors"
	"iter"
	"math"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// importBatch is how many keys go into one transaction, of which etcd takes 128.
const importBatch = 100

// Import fills an empty log of one voter with a history, record by record as it is, and raises the
// timeline behind it. Every record and the chain are verified on the way; full segments go to the
// archive at once, and only the rest to the database. A nil error means that all of it is durable;
// the raise becomes so with the next append, which the caller makes at once. After an error the log
// is of no use: its folder is emptied, and the restore begun again.
//
// Errors: Exists for a log that holds something, a CorruptError, and what reading gives.
func (s *Store) Import(
	ctx context.Context, records iter.Seq2[eventstore.Recorded, error], to domain.Timeline,
) error {
	if s.mirror.Head() != (eventstore.Head{}) {
		return domain.Errorf(domain.Exists, "the event log is not empty")
	}
	heads := map[domain.StreamID]eventstore.StreamHead{}
	for r, err := range records {
		if err == nil {
			err = s.mirror.Extend(eventstore.Entry{
				At: r.Position, Record: eventstore.AppendRecord(nil, &r),
			})
		}
		if err == nil && r.Position.N()%s.past.Per() == 0 {
			err = s.seal(ctx)
		}
		if err != nil {
			return err
		}
		heads[r.Stream] = eventstore.StreamHead{Revision: r.Revision, Position: r.Position}
	}
	if err := s.store(ctx, heads); err != nil {
		return err
	}
	return s.mirror.Restore(s.mirror.Head().Position.N(), to)
}

// store makes durable in the database what of the mirror the archive does not hold, the head of
// every stream, and last the two ends, without which there is no log.
func (s *Store) store(
	ctx context.Context, heads map[domain.StreamID]eventstore.StreamHead,
) error {
	var ops []clientv3.Op
	put := func(key, value string) error {
		if ops = append(ops, clientv3.OpPut(key, value)); len(ops) < importBatch {
			return nil
		}
		_, err := s.client.Txn(ctx).Then(ops...).Commit()
		ops = nil
		return err
	}
	var err error
	for id, h := range heads {
		err = errors.Join(err, put(s.keys.head(id), encodeHead(h)))
	}
	sealed := s.past.Head()
	for _, e := range s.mirror.Hot(math.MaxInt) {
		err = errors.Join(err, put(s.keys.log(e.At), string(e.Record)))
	}
	if err != nil {
		return unavailable(ctx, "quorum.Import", err)
	}
	if sealed.Position > 0 {
		ops = append(ops, clientv3.OpPut(s.keys.sealed(), encodeTail(sealed)))
	}
	ops = append(ops, clientv3.OpPut(s.keys.tail(), encodeTail(s.mirror.Head())))
	res, err := s.client.Txn(ctx).If(holds(s.keys.tail(), true, "")).Then(ops...).Commit()
	if err != nil {
		return unavailable(ctx, "quorum.Import", err)
	}
	if !res.Succeeded {
		return domain.Errorf(domain.Conflict, "somebody else writes to the log that is restored")
	}
	return nil
}
