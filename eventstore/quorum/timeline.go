package quorum

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
)

// lostSuffix is what the archive of a history that was given up is called by, beside its folder.
const lostSuffix = ".lost"

// mark says that a recovery ended a history: what follows the floor bears the timeline, and every
// record behind it that bears a lower one was lost.
type mark struct {
	timeline domain.Timeline
	floor    eventstore.Head
}

// marks reads what recoveries left, in the order of their timelines.
func (k keys) marks(kvs []*mvccpb.KeyValue) ([]mark, error) {
	list := make([]mark, 0, len(kvs))
	for _, kv := range kvs {
		hex := strings.TrimPrefix(string(kv.Key), k.recoveries())
		t, err := strconv.ParseUint(hex, 16, 16)
		floor, ok := decodeTail(kv.Value)
		if err != nil || !ok {
			return nil, &eventstore.CorruptError{What: "checksum of a recovery's mark does not match"}
		}
		list = append(list, mark{domain.Timeline(t), floor})
	}
	return list, nil
}

// continues checks that the mirror holds nothing but what recoveries left of the log. The error is
// a TimelineError where it holds records that are lost.
func (l loader) continues(ctx context.Context, in *intake, both *ends) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	at := in.mirror.Head()
	for _, m := range both.marks[min(in.marks, len(both.marks)):] {
		n := m.floor.Position.N()
		if at.Position.N() < n {
			return l.stands(ctx, at, both.sealed)
		}
		known, ok := in.mirror.HeadAt(n)
		if ok && known != m.floor {
			return &eventstore.TimelineError{Cursor: at.Position}
		}
		next, more := in.mirror.HeadAt(n + 1)
		if more && next.Position.Timeline() < m.timeline {
			return &eventstore.TimelineError{Cursor: at.Position, Floor: m.floor.Position}
		}
		if !ok || !more { // it stands at the floor, or its record there is to be repaired first
			return nil
		}
		in.marks++
	}
	return nil
}

// stands checks that the end of a mirror that has not come to a mark yet stands in the database
// too: a survivor may have kept what was never committed in the place of what was.
func (l loader) stands(ctx context.Context, at, sealed eventstore.Head) error {
	if at.Position.N() <= sealed.Position.N() {
		return nil // a reader of archives proves each file by the one before
	}
	res, err := l.kv.Get(ctx, l.keys.log(at.Position),
		clientv3.WithRange(l.keys.logEnd()), clientv3.WithLimit(1))
	if err != nil {
		return unavailable(ctx, "", err)
	}
	for _, kv := range res.Kvs {
		end, _ := l.keys.position(string(kv.Key))
		entries, err := split(end, at.Position, kv.Value)
		i := slices.IndexFunc(entries, func(e eventstore.Entry) bool { return e.At == at.Position })
		if err != nil && i < 0 {
			return nil // damage is told by who reads on
		}
		if i < 0 {
			break
		}
		if r, err := eventstore.DecodeRecord(at.Position, entries[i].Record); err != nil ||
			r.Hash == at.Hash {
			return nil
		}
	}
	return &eventstore.TimelineError{Cursor: at.Position}
}

// Superseded gives a channel that is closed when the log was recovered without part of what this
// node knows. Its mirror has ended then: readers get an error that is ErrTimelineChanged. The owner
// closes the store and opens it again, and that one follows the log as it is.
func (s *Store) Superseded() <-chan struct{} { return s.gone }

// supersede ends the mirror, whose history is no history any more.
func (s *Store) supersede(err error) {
	s.mirror.End(err)
	s.over.Do(func() {
		s.cfg.Logger.Warn("the event log was recovered without part of what this node knows", "err", err)
		close(s.gone)
	})
}

// anew opens the log once more without the archive, which is kept beside: it holds records that the
// log does not have any more.
func (s *Store) anew(ctx context.Context, cause error) (*Store, error) {
	aside := s.cfg.Archive + lostSuffix
	err := os.RemoveAll(aside)
	if err == nil {
		err = os.Rename(s.cfg.Archive, aside)
	}
	if err != nil {
		return nil, errors.Join(cause, &domain.Error{
			Op: "quorum.Open", Kind: domain.Denied, Ref: s.cfg.Archive, Err: err,
		})
	}
	s.cfg.Logger.Warn("the log was recovered; what this node's archive holds is kept aside",
		"path", aside, "err", cause)
	return Open(ctx, s.cfg)
}

// leftBehind asks the other nodes whether the log was recovered without a member of this node. Such
// a member is not wiped as one is that lost its vote in order: it may hold what nobody else has.
//
// Errors: Stale, a TimelineError, when it was; Unavailable when nobody answers.
func (s *Store) leftBehind(ctx context.Context, member uint64) error {
	heard := false
	for _, url := range s.others() {
		remote := s.remote()
		remote.SetEndpoints(url)
		within, cancel := context.WithTimeout(ctx, membersWait)
		res, err := remote.Get(clientv3.WithRequireLeader(within), s.keys.lost(member))
		cancel()
		if err != nil {
			heard = heard || status.Code(err) == codes.PermissionDenied
			continue
		}
		heard = true
		if len(res.Kvs) == 0 {
			continue
		}
		floor, _ := decodeTail(res.Kvs[0].Value) // damaged or not, it is there
		return &domain.Error{
			Op: "quorum.Open", Kind: domain.Stale, Ref: s.cfg.Dir,
			Msg: "the event log was recovered without this node, which voted on it: it goes on behind " +
				"position " + floor.Position.String() + ", and what this folder holds is another history",
			Remedy: "move this folder away, or wipe it, and start the node again: it joins as it is and " +
				"copies the log; or wipe the whole data folder and join with a token of weft node token",
			Err: &eventstore.TimelineError{
				Cursor: s.mirror.Head().Position, Floor: floor.Position,
			},
		}
	}
	if !heard {
		return domain.Errorf(domain.Unavailable, "no other node answers")
	}
	return nil
}
