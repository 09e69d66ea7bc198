package quorum

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// Times of one transaction.
const (
	txnWait  = 5 * time.Second        // the longest wait before an answer counts as lost
	txnFirst = 500 * time.Millisecond // the first such wait; it doubles
	againMin = 5 * time.Millisecond   // before the same transaction is submitted again
	againMax = 100 * time.Millisecond // the most after doubling
)

// txn is one batch as etcd sees it. It never changes once built, so it can be submitted again.
type txn struct {
	compare []clientv3.Cmp
	then    []clientv3.Op
	orElse  []clientv3.Op // tail, the first of what stands where it would, its last value
	last    value
}

// outcome says what became of a batch. Exactly one of its fields is set.
type outcome struct {
	stored bool
	moved  bool  // it can never commit: the tail is another
	err    error // the answer to every call
}

// build makes the transaction of a draft (Q2).
func (q *sequencer) build(d *eventstore.Draft) *txn {
	k, t := q.keys, &txn{}
	first := k.log(d.Entries()[0].At)
	for _, v := range valuesOf(d.Entries(), q.per) {
		t.then = append(t.then, k.put(v))
		t.last = v
	}
	t.then = append(t.then, clientv3.OpPut(k.tail(), encodeTail(d.Head())))
	t.compare = []clientv3.Cmp{
		holds(k.tail(), d.Base() == eventstore.Head{}, encodeTail(d.Base())),
		clientv3.Compare(clientv3.Version(first), "=", 0).WithRange(k.logEnd()),
	}
	t.orElse = []clientv3.Op{
		clientv3.OpGet(k.tail()),
		clientv3.OpGet(first, clientv3.WithRange(k.logEnd()), clientv3.WithLimit(1),
			clientv3.WithKeysOnly()),
		clientv3.OpGet(k.log(t.last.last)),
	}
	return t
}

// holds compares a key with a value, or with its absence.
func holds(key string, absent bool, value string) clientv3.Cmp {
	if absent {
		return clientv3.Compare(clientv3.Version(key), "=", 0)
	}
	return clientv3.Compare(clientv3.Value(key), "=", value)
}

// settle brings a batch to its definite end. A batch without records holds only doubts: a read of
// the tail proves them.
func (q *sequencer) settle(d *eventstore.Draft) outcome {
	if len(d.Entries()) == 0 {
		ctx, cancel := context.WithTimeout(q.life, txnWait)
		defer cancel()
		switch tail, err := q.loader.tail(ctx); {
		case err != nil:
			return outcome{err: unavailable(ctx, "quorum.Append", err)}
		case tail != d.Base():
			return outcome{moved: true}
		}
		return outcome{}
	}
	t := q.build(d)
	patience := txnFirst
	for wait := againMin; ; wait = min(2*wait, againMax) {
		res, err := q.submit(t, patience)
		patience = min(2*patience, txnWait)
		switch {
		case err == nil && res.Succeeded:
			return outcome{stored: true}
		case err == nil:
			return q.lost(d, t, res)
		case definite(err):
			return outcome{err: refused(err)}
		}
		// The answer is lost, the transaction may not be: the same one again (Q3).
		pause, cancel := context.WithTimeout(q.life, wait)
		<-pause.Done()
		cancel()
		if q.life.Err() != nil {
			return outcome{err: eventstore.ErrUnknownOutcome}
		}
	}
}

// submit tries a transaction once. It waits no longer than its patience, and no longer than what
// stirs: a proposal on its way to a leader that died is lost, and its answer never comes.
func (q *sequencer) submit(t *txn, patience time.Duration) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.life), patience)
	defer cancel()
	if q.stirred != nil {
		stirred := q.stirred(ctx)
		go func() {
			select {
			case <-stirred:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return q.commit(ctx, t)
}

// definite tells whether an error means that the transaction did not and will not commit.
func definite(err error) bool {
	for _, e := range []error{
		rpctypes.ErrNoSpace, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge,
		rpctypes.ErrDuplicateKey, rpctypes.ErrEmptyKey,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func refused(err error) error {
	kind, cause := domain.Internal, err
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		kind, cause = domain.NoSpace, eventstore.ErrNoSpace
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		kind, cause = domain.TooLarge, eventstore.ErrTooLarge
	}
	return &domain.Error{Op: "quorum.Append", Kind: kind, Msg: err.Error(), Err: cause}
}

// lost reads from a failed comparison what became of the batch. Values that do not verify say
// nothing, so they leave the outcome unknown and the log degraded.
func (q *sequencer) lost(
	d *eventstore.Draft, t *txn, res *clientv3.TxnResponse,
) outcome {
	got := make([]*mvccpb.KeyValue, len(res.Responses))
	for i, r := range res.Responses {
		if kvs := r.GetResponseRange().GetKvs(); len(kvs) > 0 {
			got[i] = kvs[0]
		}
	}
	var tail eventstore.Head
	if got[0] != nil {
		var ok bool
		if tail, ok = decodeTail(got[0].Value); !ok {
			bad := &eventstore.CorruptError{
				Position: d.Base().Position, What: "checksum of the tail behind it does not match",
			}
			if q.goesOn(bad) {
				return outcome{moved: true} // to be judged again by what another database says
			}
			q.mirror.End(bad)
			return outcome{err: &domain.Error{
				Op: "quorum.Append", Kind: domain.Unavailable,
				Err: errors.Join(eventstore.ErrUnknownOutcome, bad),
			}}
		}
	}
	switch {
	case tail == d.Head(): // an earlier copy committed
		return outcome{stored: true}
	// And others followed it. The last record holds the hash of all before it; the first may stand in
	// another writer's batch as well, which goes on differently.
	case got[2] != nil && string(got[2].Value) == t.last.bytes:
		return outcome{stored: true}
	case tail != d.Base() || got[1] == nil:
		return outcome{moved: true}
	}
	// Nothing but broken storage puts a record behind a tail that is as it was.
	at, _ := q.keys.position(string(got[1].Key))
	bad := &eventstore.CorruptError{Position: at, What: "stands beyond the tail"}
	if q.goesOn(bad) {
		return outcome{moved: true}
	}
	return outcome{err: bad}
}
