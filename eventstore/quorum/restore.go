package quorum

import (
	"context"
	"iter"
	"math"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// importBytes is after how many bytes of records an import begins another transaction; etcd takes
// 1.5 MiB.
const importBytes = 512 << 10

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
	}
	if err := s.store(ctx); err != nil {
		return err
	}
	return s.mirror.Restore(s.mirror.Head().Position.N(), to)
}

// store makes durable in the database what of the mirror the archive does not hold, and last the
// two ends, without which there is no log.
func (s *Store) store(ctx context.Context) error {
	var ops []clientv3.Op
	size := 0
	sealed := s.past.Head()
	for _, v := range valuesOf(s.mirror.Hot(math.MaxInt), s.past.Per()) {
		ops = append(ops, s.keys.put(v))
		if size += len(v.bytes); size < importBytes {
			continue
		}
		if _, err := s.client.Txn(ctx).Then(ops...).Commit(); err != nil {
			return unavailable(ctx, "quorum.Import", err)
		}
		ops, size = nil, 0
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
