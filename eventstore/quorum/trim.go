package quorum

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
)

const (
	// trimKeys is how many records one transaction deletes, and so the most keys: 130,000 stop all
	// appends for a second, a thousand double an append's p99, a hundred cost it nothing that can be
	// seen.
	trimKeys = 100
	// trimPace is how many times as long as a transaction took the next one is waited with: it bounds
	// the share of the time in which an append meets a deletion to a tenth.
	trimPace = 9
	// trimHurry takes the place of trimPace while more than trimLate events wait to leave: then the
	// database grows faster than it empties.
	trimHurry = 1
	trimLate  = 100_000
	// copiesMax is how many archives must hold what is deleted, where there are so many nodes.
	copiesMax = 3
)

// Archive says how the old part of the log is kept.
type Archive struct {
	Sealed   eventstore.Head // the last record that the database no longer holds
	Tail     eventstore.Head
	Held     eventstore.Head // the end of this node's own archive
	Segments []archive.Segment
	Holders  []Holder
	Stuck    error // why this node's archive does not grow, nil while it does
}

// Hot is how many events the database holds.
func (a *Archive) Hot() uint64 { return a.Tail.Position.N() - a.Sealed.Position.N() }

// Archive tells how the old part of the log is kept. Unavailable without a majority.
func (s *Store) Archive(ctx context.Context) (Archive, error) {
	l := loader{keys: s.keys, kv: s.client}
	both, err := l.ends(ctx)
	if err != nil {
		return Archive{}, unavailable(ctx, "quorum.Archive", err)
	}
	a := Archive{
		Sealed: both.sealed, Tail: both.tail, Held: s.past.Head(), Segments: s.past.Segments(),
	}
	if a.Holders, err = s.Holders(ctx); err != nil {
		return Archive{}, err
	}
	s.mu.Lock()
	a.Stuck = s.mu.stuck
	s.mu.Unlock()
	return a, nil
}

// Archived tells how far this node's own archive reaches, and why it does not grow, if it does not.
// It asks nobody.
func (s *Store) Archived() (domain.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.past.Head().Position, s.mu.stuck
}

// Safe gives the holders of the log up to a place, and nil or why it must not be deleted yet: this
// node, every voter, and as many nodes as there are, three at most, must have proved on their disks
// that they hold the same history up to there. nodes is how many there are.
func (s *Store) Safe(ctx context.Context, to eventstore.Head, nodes int) ([]string, error) {
	members, err := s.Members(ctx)
	if err != nil {
		return nil, err
	}
	holders, err := s.Holders(ctx)
	if err != nil {
		return nil, err
	}
	wait := func(format string, args ...any) error {
		e := domain.Errorf(domain.Busy, format, args...)
		return &domain.Error{Op: "quorum.Safe", Kind: domain.Busy, Ref: to.Position.String(), Err: e}
	}
	if mine := s.past.Head(); mine.Position < to.Position {
		return nil, wait("this node's archive ends at %s", mine.Position)
	}
	held := map[string]bool{}
	var names []string
	for _, h := range holders {
		if h.Position < to.Position || h.Position > s.past.Head().Position {
			continue // too little, or more than this node can compare
		}
		known, err := s.mirror.Proved(h.Position.N())
		if err != nil {
			return nil, err
		}
		if known != h.Head {
			return nil, &eventstore.CorruptError{
				Position: h.Position, Member: h.Name, What: "its archive holds another history",
			}
		}
		held[h.Name] = true
		names = append(names, h.Name)
	}
	for _, m := range members {
		if !m.Learner && !held[m.Name] {
			return nil, wait("the voter %s has not archived it", m.Name)
		}
	}
	if need := min(nodes, copiesMax); len(names) < need {
		return nil, wait("%d nodes have archived it, %d must", len(names), need)
	}
	return names, nil
}

// Trim deletes what is archived up to a record from the database, a hundred records a transaction,
// each of which moves the mark of what is gone as well: a reader that sees the mark finds all
// behind it. Between them it waits, so that appends keep their pace. Ask Safe first. It may be cut
// short anywhere and goes on from the mark; two that run at once do no harm.
//
// Errors: Invalid for what this node's archive does not hold, Unavailable without a majority.
func (s *Store) Trim(ctx context.Context, to domain.Position) (deleted uint64, err error) {
	l := loader{keys: s.keys, kv: s.client}
	for {
		both, err := l.ends(ctx)
		if err != nil {
			return deleted, unavailable(ctx, "quorum.Trim", err)
		}
		from := both.sealed.Position.N()
		if from >= to.N() {
			return deleted, nil
		}
		if to > s.past.Head().Position {
			return deleted, domain.Errorf(domain.Invalid, "the archive does not reach to %s", to)
		}
		began := bootTime()
		next := min(from+trimKeys, to.N())
		done, err := s.trimOnce(ctx, both.sealed, next)
		if err != nil {
			return deleted, err
		}
		if done {
			deleted += next - from
		}
		rest := trimPace * (bootTime() - began)
		if to.N()-next > trimLate {
			rest = trimHurry * (bootTime() - began)
		}
		pause, cancel := context.WithTimeout(ctx, rest)
		<-pause.Done()
		cancel()
		if ctx.Err() != nil {
			return deleted, aborted(ctx, "quorum.Trim")
		}
	}
}

// trimOnce deletes the records after sealed up to n, unless somebody else moved the mark.
func (s *Store) trimOnce(
	ctx context.Context, sealed eventstore.Head, n uint64,
) (done bool, err error) {
	last, err := s.mirror.Proved(n)
	if err != nil {
		return false, err
	}
	within, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	res, err := s.client.Txn(within).
		If(holds(s.keys.sealed(), sealed == eventstore.Head{}, encodeTail(sealed))).
		Then(
			clientv3.OpDelete(s.keys.log(sealed.Position+1),
				clientv3.WithRange(s.keys.log(last.Position+1))),
			clientv3.OpPut(s.keys.sealed(), encodeTail(last)),
		).Commit()
	if err != nil {
		return false, unavailable(ctx, "quorum.Trim", err)
	}
	return res.Succeeded, nil
}

// Compact drops what the database remembers of itself up to a revision: overwritten
// tails, and what Trim deleted. No event is lost by it. A revision that was compacted before is no
// error.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	_, err := s.client.now().Compact(ctx, revision)
	if err == nil || errors.Is(err, rpctypes.ErrCompacted) {
		return nil
	}
	return unavailable(ctx, "quorum.Compact", err)
}

// Revision gives the database's present revision, for a later Compact.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	both, err := loader{keys: s.keys, kv: s.client}.ends(ctx)
	if err != nil {
		return 0, unavailable(ctx, "quorum.Revision", err)
	}
	return both.revision, nil
}
