package quorum

import (
	"context"
	"errors"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

// intake is the one way into the mirror (Q4). The sequencer, which knows what it wrote, and the
// watch, which hears of it, both bring the same records; the second to come changes nothing.
type intake struct {
	mu     sync.Mutex
	mirror *eventstore.Mirror
	sealed eventstore.Head // of which behind knows that the mirror holds the same
	marks  int             // how many marks of recoveries the mirror is known to have passed rightly
}

// errGap says that records between the mirror and what came are missing here, not in the log.
var errGap = errors.New("records were left out on the way")

// take adds one record that the database holds.
func (in *intake) take(e eventstore.Entry) error { return in.takeAll([]eventstore.Entry{e}) }

// takeAll adds records that the database holds, in order; readers are woken once. One that the
// mirror has already must be the same: otherwise it is a CorruptError, and so is one that does not
// verify. errGap: read the log again.
func (in *intake) takeAll(entries []eventstore.Entry) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	last := in.mirror.Head().Position.N()
	for i, e := range entries {
		if n := e.At.N(); n == 0 || n > last+1 {
			return errGap
		} else if n == last+1 {
			k := i + 1
			for ; k < len(entries) && entries[k].At.N() == entries[k-1].At.N()+1; k++ {
			}
			err := in.mirror.Extend(entries[i:k]...)
			if err == nil && k < len(entries) {
				err = errGap
			}
			return err
		}
		if err := in.known(e); err != nil {
			return err
		}
	}
	return nil
}

// known compares a record with that which the mirror has in its place.
func (in *intake) known(e eventstore.Entry) error {
	if in.mirror.Has(e) { // it was verified when it came the first time
		return nil
	}
	known, _ := in.mirror.HeadAt(e.At.N())
	r, err := eventstore.DecodeRecord(e.At, e.Record)
	if err != nil {
		return err
	}
	if known.Position != r.Position || known.Hash != r.Hash {
		return &eventstore.CorruptError{Position: e.At, What: "differs from the record known by its n"}
	}
	return nil
}

// behind compares what the database says of the history it has given up with what the mirror holds:
// an archivedError where the mirror does not reach so far, a CorruptError where it holds another.
func (in *intake) behind(sealed eventstore.Head) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := sealed.Position.N()
	switch {
	case sealed == in.sealed:
		return nil
	case n > in.mirror.Head().Position.N():
		return &archivedError{sealed}
	}
	known, err := in.mirror.Proved(n)
	if err == nil && known != sealed {
		err = &eventstore.CorruptError{
			Position: sealed.Position, What: "the archive holds another record than was sealed",
		}
	}
	if err == nil {
		in.sealed = sealed
	}
	return err
}

// Times of the watch.
const (
	// watchRest keeps a broken watch from spinning.
	watchRest = 20 * time.Millisecond
	// damageMax is how often damage at one place is read again before it is believed.
	damageMax = 3
)

// watch keeps the mirror up with what other members append, until the context ends: the log is read
// by Range up to a revision of the database, and heard from the next one on, so there is no gap and
// no record twice. Whatever goes wrong on the way begins with Range again.
func (s *Store) watch(ctx context.Context) {
	for damage := 0; ctx.Err() == nil; {
		way, leave, client := s.client.use(ctx)
		rev, err := s.seq.loader.into(way, s.seq.in)
		if far := (*archivedError)(nil); errors.As(err, &far) {
			err = s.fetch(way, far.to)
			s.note("reading the archive of another node", err)
		} else if err == nil {
			damage = 0
			err = s.hear(way, client, rev+1)
		}
		leave()
		if errors.Is(err, eventstore.ErrTimelineChanged) {
			s.supersede(err)
			return
		}
		if errors.Is(err, eventstore.ErrCorrupt) {
			if damage++; damage >= damageMax && s.readsOwn() && s.distrust(err) {
				damage = 0
			} else if damage == damageMax*s.sources() {
				s.mirror.End(err)
				return
			}
		}
		rest, cancel := context.WithTimeout(ctx, watchRest)
		<-rest.Done()
		cancel()
	}
}

// sources is how many databases a client of the log reads from in turn, with room for each to be
// met; 1 for a node that reads its own.
func (s *Store) sources() int {
	if r := s.remote(); r != nil && s.client.now() == r {
		return 2 * max(1, len(r.Endpoints()))
	}
	return 1
}

// hear takes what the database tells from a revision on. It gives why it stopped.
func (s *Store) hear(ctx context.Context, client *clientv3.Client, rev int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	told := client.Watch(ctx, s.keys.log(0), clientv3.WithRange(s.keys.logEnd()),
		clientv3.WithRev(rev), clientv3.WithFilterDelete())
	for res := range told {
		if err := res.Err(); err != nil {
			return err
		}
		entries, bad := s.keys.heard(res.Events, s.mirror.Head().Position+1)
		if err := errors.Join(s.seq.in.takeAll(entries), bad); err != nil {
			return err
		}
	}
	return &domain.Error{Op: "quorum.watch", Kind: domain.Unavailable, Err: ctx.Err()}
}

// heard gives the records that a watch tells of, up to the first value that is damaged; next is the
// first that the reader does not have.
func (k keys) heard(
	events []*clientv3.Event, next domain.Position,
) (entries []eventstore.Entry, err error) {
	for _, ev := range events {
		if !ev.IsCreate() { // a repair puts the same bytes again
			continue
		}
		p, ok := k.position(string(ev.Kv.Key))
		if !ok {
			return entries, &eventstore.CorruptError{What: "a record has a key that is no position"}
		}
		records, err := split(p, next, ev.Kv.Value)
		if entries = append(entries, records...); err != nil {
			return entries, err
		}
		next = p + 1
	}
	return entries, nil
}
