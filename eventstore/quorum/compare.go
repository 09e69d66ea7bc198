package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
)

const (
	// hashWait bounds one member's reading of its whole database.
	hashWait = time.Minute
	// behindWait is how long a member that lags is waited for.
	behindWait = 3 * time.Second
)

// comparison is what voters say of their databases at one revision.
type comparison struct {
	same, differ []Member // as most of all voters have it, and not
	silent       int      // voters that gave no answer, or none that can be compared
}

// clear tells whether most of all voters have the same database.
func (c *comparison) clear() bool {
	return len(c.same) > (len(c.same)+len(c.differ)+c.silent)/2
}

// Differing compares the databases of the voters by their hashes at one revision, and gives the
// members that hold another than most of all voters do. None also where no majority agrees, or a
// voter does not answer. Each voter reads its whole database for it.
func (s *Store) Differing(ctx context.Context) ([]Member, error) {
	if s.cfg.Net == nil {
		return nil, nil
	}
	members, err := s.Members(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.compare(ctx, members)
	if err != nil || !c.clear() {
		return nil, err
	}
	return c.differ, nil
}

func (s *Store) compare(ctx context.Context, members []Member) (comparison, error) {
	rev, err := s.Revision(ctx)
	if err != nil {
		return comparison{}, err
	}
	type sum struct {
		hash    uint32
		compact int64
	}
	said := map[sum][]Member{}
	var c comparison
	for _, m := range members {
		if m.Learner {
			continue
		}
		res, err := s.hashOf(ctx, m.URL, rev)
		for behind := time.Duration(0); err != nil && behind < behindWait; behind += memberRest {
			if !errors.Is(err, rpctypes.ErrFutureRev) {
				break
			}
			rest, cancel := context.WithTimeout(ctx, memberRest)
			<-rest.Done()
			cancel()
			res, err = s.hashOf(ctx, m.URL, rev)
		}
		if err != nil {
			c.silent++
			continue
		}
		key := sum{res.Hash, res.CompactRevision}
		said[key] = append(said[key], m)
	}
	var most sum
	for key, list := range said {
		if len(list) > len(said[most]) {
			most = key
		}
	}
	for key, list := range said {
		switch {
		case key == most:
			c.same = list
		case key.compact == most.compact:
			c.differ = append(c.differ, list...)
		default: // compacted between the questions: it says nothing
			c.silent += len(list)
		}
	}
	return c, nil
}

func (s *Store) hashOf(
	ctx context.Context, url string, rev int64,
) (res *clientv3.HashKVResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, hashWait)
	defer cancel()
	defer func() { // see survive
		if p := recover(); p != nil {
			res, err = nil, domain.Errorf(domain.Unavailable, "%v", p)
		}
	}()
	if l := s.local(); l != nil && url == s.cfg.Net.URL {
		return l.client.HashKV(ctx, "", rev)
	}
	return s.single().HashKV(ctx, url, rev)
}

// Evicted lists the members that this node took out because etcd itself had raised its alarm for
// them: while the alarm stands nothing can be recorded. Told ends that.
func (s *Store) Evicted() []Member {
	s.ills.Lock()
	defer s.ills.Unlock()
	return slices.Clone(s.ills.evicted)
}

// Told forgets an evicted member that was recorded.
func (s *Store) Told(member uint64) {
	s.ills.Lock()
	defer s.ills.Unlock()
	s.ills.evicted = slices.DeleteFunc(s.ills.evicted, func(m Member) bool { return m.ID == member })
}

// alarms answers etcd's CORRUPT alarm, which stops the writes of all members until it is disarmed,
// even once the member is gone. The node whose member leads compares the databases of the voters: a
// member that most of the others do not agree with is removed, its node begins anew, and the alarm
// is disarmed; one that agrees was accused wrongly. Without a clear majority nothing is touched.
func (s *Store) alarms(ctx context.Context, members []Member) error {
	l := s.local()
	if l == nil || l.etcd.Server.Leader() != l.etcd.Server.MemberID() {
		return nil
	}
	list, err := l.alarms()
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.Alarm != pb.AlarmType_CORRUPT {
			continue
		}
		at := slices.IndexFunc(members, func(m Member) bool { return m.ID == a.MemberID })
		if at >= 0 {
			if err := s.accused(ctx, members[at], members); err != nil {
				return err
			}
		}
		_, err := l.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a))
		if err != nil {
			return unavailable(ctx, "quorum.Alarm", err)
		}
		s.cfg.Logger.Warn("etcd's alarm is disarmed", "member", fmt.Sprintf("%x", a.MemberID))
	}
	return nil
}

// accused removes a member that etcd calls corrupt and that most others do not agree with. A nil
// error means that the alarm may go.
func (s *Store) accused(ctx context.Context, m Member, members []Member) error {
	if len(members) == 1 {
		return nil // nobody to compare with: what is damaged our own checks refuse
	}
	c, err := s.compare(ctx, members)
	if err != nil {
		return err
	}
	is := func(x Member) bool { return x.ID == m.ID }
	switch {
	case !c.clear():
		return &domain.Error{
			Op: "quorum.Alarm", Kind: domain.Corrupt, Ref: m.Name,
			Msg: "etcd calls the member's database corrupt, and no majority of the voters agrees on one",
			Remedy: "start the voters that are missing; if all are there, weft restore brings a backup " +
				"back",
		}
	case slices.ContainsFunc(c.same, is):
		return nil
	case m.URL == s.cfg.Net.URL:
		s.local().handOn() // whoever leads next removes it
		return domain.Errorf(domain.Unavailable, "the member that leads is corrupt and hands on")
	}
	if err := s.Remove(ctx, m.ID); err != nil {
		return err
	}
	s.ills.Lock()
	s.ills.evicted = append(s.ills.evicted, m)
	s.ills.Unlock()
	s.cfg.Logger.Error("a member with a corrupt database is removed", "node", m.URL)
	return nil
}
