package quorum

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
)

const (
	pageMax = 1000 // keys of one Range
	// readTries is how many members are asked in turn for what is read in a transaction.
	readTries = 8
	// readRest is the rest before the second member is asked; each further one is twice as long.
	// All of them together are below 1.3 s.
	readRest = 10 * time.Millisecond
)

// loader reads the log from the database.
type loader struct {
	keys keys
	kv   reader
	page domain.Position // keys of one Range; 0: pageMax
}

// reader is what reading needs of the way to the database.
type reader interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	Txn(ctx context.Context) clientv3.Txn
}

// admit checks that the database is this cluster's and of a format we know, and marks a new one.
func (l loader) admit(ctx context.Context) error {
	first, err := l.kv.Get(ctx, allClusters,
		clientv3.WithRange("/weft0"), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil {
		return unavailable(ctx, "", err)
	}
	if len(first.Kvs) > 0 && !strings.HasPrefix(string(first.Kvs[0].Key), l.keys.root) {
		return domain.Errorf(domain.Invalid, "the folder belongs to another cluster: %s",
			first.Kvs[0].Key)
	}
	// One transaction, so that a start which is cut short leaves a marked database or an empty one.
	put := clientv3.OpPut(l.keys.format(), formatValue)
	res, err := l.kv.Txn(ctx).
		If(clientv3.Compare(clientv3.Version(l.keys.format()), "=", 0)).
		Then(clientv3.OpGet(l.keys.log(0),
			clientv3.WithRange(l.keys.logEnd()), clientv3.WithLimit(1)), put).
		Else(clientv3.OpGet(l.keys.format())).Commit()
	if err != nil {
		return unavailable(ctx, "", err)
	}
	kvs := res.Responses[0].GetResponseRange().GetKvs()
	switch {
	case res.Succeeded && len(kvs) > 0:
		return &eventstore.CorruptError{What: "the log's format mark was missing; it is put back"}
	case !res.Succeeded && string(kvs[0].Value) == formatOne:
		return l.upgrade(ctx)
	case !res.Succeeded && string(kvs[0].Value) != formatValue:
		return domain.Errorf(domain.Unsupported, "the log has format %q, this build knows %q",
			kvs[0].Value, formatValue)
	}
	return nil
}

// upgrade makes of a log of format 1 one of this format: its records are read as they are. What was
// kept there of every stream goes, because nobody brings it up to date any more.
func (l loader) upgrade(ctx context.Context) error {
	_, err := l.kv.Txn(ctx).
		If(clientv3.Compare(clientv3.Value(l.keys.format()), "=", formatOne)).
		Then(clientv3.OpPut(l.keys.format(), formatValue),
			clientv3.OpDelete(l.keys.heads(), clientv3.WithPrefix())).Commit()
	if err != nil {
		return unavailable(ctx, "", err)
	}
	return nil
}

// tail gives the end of the log with everything acknowledged before the call in it.
func (l loader) tail(ctx context.Context) (eventstore.Head, error) {
	res, err := l.kv.Get(ctx, l.keys.tail())
	if err != nil || len(res.Kvs) == 0 {
		return eventstore.Head{}, err
	}
	head, ok := decodeTail(res.Kvs[0].Value)
	if !ok {
		return head, &eventstore.CorruptError{What: "checksum of the tail does not match"}
	}
	return head, nil
}

// ends are the two ends of what the database holds: the record before its first and its last.
type ends struct {
	sealed, tail eventstore.Head
	marks        []mark // of recoveries, by their timelines
	revision     int64  // of the database when it was read
}

// ends gives both ends as they were at one revision, so that nothing lies between an archive that
// reaches to sealed and what the database is asked for.
func (l loader) ends(ctx context.Context) (ends, error) {
	res, err := l.read(ctx, nil, clientv3.OpGet(l.keys.tail()), clientv3.OpGet(l.keys.sealed()),
		clientv3.OpGet(l.keys.recoveries(), clientv3.WithPrefix()))
	if err != nil {
		return ends{}, err
	}
	e := ends{revision: res.Header.GetRevision()}
	for i, to := range []*eventstore.Head{&e.tail, &e.sealed} {
		kvs := res.Responses[i].GetResponseRange().GetKvs()
		if len(kvs) == 0 {
			continue
		}
		var ok bool
		if *to, ok = decodeTail(kvs[0].Value); !ok {
			what := [...]string{"checksum of the tail does not match", "checksum of sealed does not match"}
			return e, &eventstore.CorruptError{What: what[i]}
		}
	}
	e.marks, err = l.keys.marks(res.Responses[2].GetResponseRange().GetKvs())
	return e, err
}

// read reads keys at one revision, if a condition holds there. etcd's client repeats a Get and no
// transaction; nothing is written here, so when no member answers the next one is asked: a node
// that was a member a moment ago refuses, and its connection stays. It refuses within a fraction of
// a millisecond, and until the others are connected it is all there is to ask; hence the rests.
func (l loader) read(
	ctx context.Context, when []clientv3.Cmp, what ...clientv3.Op,
) (*clientv3.TxnResponse, error) {
	for try := 1; ; try++ {
		res, err := l.kv.Txn(ctx).If(when...).Then(what...).Commit()
		if err == nil || try == readTries || status.Code(err) != codes.Unavailable {
			return res, err
		}
		rest, cancel := context.WithTimeout(ctx, readRest<<(try-1))
		<-rest.Done()
		cancel()
		if ctx.Err() != nil {
			return res, err
		}
	}
}

// fill brings a mirror that nobody else extends up to the tail.
func (l loader) fill(ctx context.Context, m *eventstore.Mirror) error {
	_, err := l.into(ctx, &intake{mirror: m})
	return err
}

// into brings a mirror up to the tail and gives the database's revision at which that was the tail:
// a watch from the next one on misses nothing. The first damage is a CorruptError that names its
// position; the mirror then holds what lies before it. Where the database no longer holds what the
// mirror needs next, the error is an archivedError; where the mirror holds what a recovery gave up,
// a TimelineError.
func (l loader) into(ctx context.Context, in *intake) (int64, error) {
	at := in.mirror.Head() // before the tail is read: the mirror may grow meanwhile
	both, err := l.ends(ctx)
	head, rev := both.tail, both.revision
	if domain.IsKind(err, domain.Corrupt) {
		// The records say how far they go; the damage is named after the last of them.
		if walk := l.pages(ctx, at, eventstore.Head{Position: ^domain.Position(0)},
			0, in.take); walk != nil && !domain.IsKind(walk, domain.Corrupt) {
			return 0, walk
		}
		return 0, &eventstore.CorruptError{
			Position: in.mirror.Head().Position, What: "checksum of the tail behind it does not match",
		}
	}
	if err != nil {
		return 0, unavailable(ctx, "", err)
	}
	if err := l.continues(ctx, in, &both); err != nil {
		return 0, err
	}
	if err := in.behind(both.sealed); err != nil {
		return 0, err
	}
	if head.Position.N() < at.Position.N() {
		return 0, &eventstore.CorruptError{Position: at.Position, What: "the tail went back behind it"}
	}
	if err := l.pages(ctx, at, head, rev, in.take); err != nil {
		return 0, err
	}
	last := in.mirror.Head()
	if known, ok := in.mirror.HeadAt(head.Position.N()); ok {
		last = known
	}
	return rev, l.stops(ctx, last, head)
}

// archivedError says that the database holds nothing up to a place that the mirror has not reached:
// it is read from an archive.
type archivedError struct{ to eventstore.Head }

// Error implements error.
func (e *archivedError) Error() string {
	return "the log up to position " + e.to.Position.String() + " is in the archives only"
}

// stops checks that the log stops where the tail says, with the tail's hash.
func (l loader) stops(ctx context.Context, last, tail eventstore.Head) error {
	if last != tail {
		return &eventstore.CorruptError{
			Position: last.Position, What: "the tail behind it says " + tail.Position.String(),
		}
	}
	// At one revision, so that an append between two reads is no damage.
	none, beyond := tail == eventstore.Head{}, tail.Position+1
	if none {
		beyond = 0
	}
	res, err := l.read(ctx, []clientv3.Cmp{holds(l.keys.tail(), none, encodeTail(tail))},
		clientv3.OpGet(l.keys.log(beyond), clientv3.WithRange(l.keys.logEnd()),
			clientv3.WithLimit(1), clientv3.WithKeysOnly()))
	if err != nil {
		return unavailable(ctx, "", err)
	}
	if !res.Succeeded { // the tail moved on meanwhile, so it was no end any more
		return nil
	}
	if kvs := res.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
		p, _ := l.keys.position(string(kvs[0].Key))
		return &eventstore.CorruptError{Position: p, What: "stands beyond the tail"}
	}
	return nil
}

// page is a part of the log, as the database gave it.
type page struct {
	from domain.Position // what was asked for
	kvs  []*mvccpb.KeyValue
	err  error
}

// pages gives the entries after one head up to another, in order, as they are at one revision of
// the database (0: now), so that what leaves it meanwhile is not missed. Both ends of every page
// are bound: with a limit alone etcd counts the whole rest of the log each time. While one page is
// taken the next is on its way.
func (l loader) pages(
	ctx context.Context, from, to eventstore.Head, revision int64,
	take func(eventstore.Entry) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	var fetching sync.WaitGroup
	defer fetching.Wait()
	defer cancel()
	open := to.Position == ^domain.Position(0) // nobody knows where it ends
	per := cmp.Or(l.page, pageMax)
	then := clientv3.WithRev(revision)
	get := func(from domain.Position) page {
		p := page{from: from}
		end := from + per
		if !open {
			end = min(end, to.Position+1)
		}
		res, err := l.kv.Get(ctx, l.keys.log(from), clientv3.WithRange(l.keys.log(end)), then)
		if p.err = err; err == nil {
			p.kvs = res.Kvs
		}
		return p
	}
	var ahead chan page
	for at := from.Position; at.N() < to.Position.N(); {
		p := page{from: at} // the engine alone computes the next
		if ahead != nil {
			p = <-ahead
			ahead = nil
		}
		if p.from <= at {
			p = get(at + 1)
		}
		if after := p.from + per; p.err == nil && !open && after.N() <= to.Position.N() {
			ahead = make(chan page, 1)
			fetching.Go(func() { ahead <- get(after) })
		}
		last, err := l.takePage(ctx, p, at, take, then)
		if err != nil || last == 0 && open {
			return err
		}
		if last == 0 {
			return &eventstore.CorruptError{Position: at + 1, What: "is missing"}
		}
		at = last
	}
	return nil
}

// takePage takes the entries of a page that follow a place, or those of the one value behind it
// where it has none: that ends far behind, the timeline was raised there, or a record is missing.
// It gives the place of the last, 0 where there is none.
func (l loader) takePage(
	ctx context.Context, p page, at domain.Position, take func(eventstore.Entry) error,
	then clientv3.OpOption,
) (last domain.Position, err error) {
	if p.err == nil && len(p.kvs) == 0 {
		var res *clientv3.GetResponse
		res, p.err = l.kv.Get(ctx, l.keys.log(p.from),
			clientv3.WithRange(l.keys.logEnd()), clientv3.WithLimit(1), then)
		if p.err == nil {
			p.kvs = res.Kvs
		}
	}
	if p.err != nil {
		return 0, unavailable(ctx, "", p.err)
	}
	for _, kv := range p.kvs {
		end, ok := l.keys.position(string(kv.Key))
		if !ok {
			return 0, &eventstore.CorruptError{Position: at + 1, What: "has a key that is no position"}
		}
		entries, bad := split(end, at+1, kv.Value)
		for _, e := range entries {
			if e.At <= at {
				continue // a value goes on behind what an archive, or an earlier page, ended with
			}
			if e.At.N() != at.N()+1 {
				return 0, &eventstore.CorruptError{
					Position: at + 1, What: "is missing; found position " + e.At.String(),
				}
			}
			if err := take(e); err != nil {
				return 0, err
			}
			at, last = e.At, e.At
		}
		if bad != nil {
			return 0, bad
		}
	}
	return last, nil
}

// verify is Store.Verify: the archive up to where the database begins, then the database, then what
// of the archive the database holds as well.
func (l loader) verify(
	ctx context.Context, h *archive.History, progress func(domain.Position),
) error {
	both, err := l.ends(ctx)
	to := both.tail
	damaged := domain.IsKind(err, domain.Corrupt)
	if err != nil && !damaged {
		return unavailable(ctx, "quorum.Verify", err)
	}
	if damaged {
		to.Position = ^domain.Position(0)
	}
	var a eventstore.Auditor
	ends := map[domain.Position][32]byte{}
	for _, s := range h.Segments() {
		ends[s.Last] = s.Hash
	}
	err = h.Verify(ctx, func(r *eventstore.Recorded) error {
		if r.Position > both.sealed.Position {
			return nil
		}
		err := a.Follow(r)
		if err == nil && progress != nil {
			progress(r.Position)
		}
		return err
	})
	if err == nil && a.Head() != both.sealed {
		err = &eventstore.CorruptError{
			Position: a.Head().Position, What: "the archive ends before what the database gave up, " +
				both.sealed.Position.String(),
		}
	}
	if err != nil {
		return err
	}
	err = l.pages(ctx, both.sealed, to, both.revision, func(e eventstore.Entry) error {
		if err := a.Next(e); err != nil {
			return err
		}
		if hash, ok := ends[e.At]; ok && hash != a.Head().Hash {
			return &eventstore.CorruptError{
				Position: e.At, What: "the archive and the database hold different records",
			}
		}
		if progress != nil {
			progress(e.At)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case damaged:
		return &eventstore.CorruptError{
			Position: a.Head().Position, What: "checksum of the tail behind it does not match",
		}
	}
	return l.stops(ctx, a.Head(), to)
}
