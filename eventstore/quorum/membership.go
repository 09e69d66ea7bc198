package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
)

const (
	// LearnersMax is how many members may catch up at a time: two, so that a cluster grows from one
	// odd number of voters to the next in one step.
	LearnersMax = 2
	// LagMax is how many entries of the consensus log a member may lie behind to be promoted. etcd
	// itself is content with a tenth of the whole log.
	LagMax = 1000
	// membersWait bounds one question for the members.
	membersWait = time.Second
	// statusWait bounds one question to one member.
	statusWait = 500 * time.Millisecond
	// answerLate is after how long a client begins to doubt that an answer will come, and lateAgain
	// how long it waits before it asks a voter again.
	answerLate = 100 * time.Millisecond
	lateAgain  = 25 * time.Millisecond
	// memberRest is the pause before etcd is asked again for a change that it was not ready for.
	memberRest = 50 * time.Millisecond
)

// Member is one member of the consensus.
type Member struct {
	ID      uint64 // never used twice
	Name    string // Config.Name of its node; empty until it started
	URL     string // where its node is reached
	Learner bool   // it copies and has no vote yet
	Started bool   // it was heard of since it was added
}

// Members lists the members as a majority knows them. Unavailable without a majority.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	return list(ctx, s.client.now())
}

func list(ctx context.Context, client *clientv3.Client) ([]Member, error) {
	within, cancel := context.WithTimeout(ctx, membersWait)
	defer cancel()
	res, err := client.MemberList(clientv3.WithRequireLeader(within))
	if err != nil {
		return nil, unavailable(ctx, "quorum.Members", err)
	}
	members := make([]Member, 0, len(res.Members))
	for _, m := range res.Members {
		x := Member{ID: m.ID, Name: m.Name, Learner: m.IsLearner, Started: m.Name != ""}
		if len(m.PeerURLs) > 0 {
			x.URL = m.PeerURLs[0]
		}
		members = append(members, x)
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.URL, b.URL) })
	return members, nil
}

// AddLearner makes a node a member without a vote. The node begins to copy at its next Follow. It
// is no error when it is one already. etcd refuses while a majority would not be sure to go on; it
// is asked again until the context ends.
func (s *Store) AddLearner(ctx context.Context, url string) error {
	return change(ctx, "add "+url, func(ctx context.Context) error {
		_, err := s.client.now().MemberAddAsLearner(ctx, []string{url})
		if errors.Is(err, rpctypes.ErrPeerURLExist) {
			return nil
		}
		return err
	})
}

// Promote gives learners the vote, one right after the other, so that the number of voters is even
// for a moment only. Ask CaughtUp first.
func (s *Store) Promote(ctx context.Context, ids ...uint64) error {
	for _, id := range ids {
		err := change(ctx, fmt.Sprintf("promote %x", id), func(ctx context.Context) error {
			_, err := s.client.now().MemberPromote(ctx, id)
			if errors.Is(err, rpctypes.ErrMemberNotLearner) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		if s.promoted != nil {
			s.promoted()
		}
	}
	return nil
}

// Remove takes a member out; its node goes on as a client. It is no error when it is gone already.
func (s *Store) Remove(ctx context.Context, id uint64) error {
	return change(ctx, fmt.Sprintf("remove %x", id), func(ctx context.Context) error {
		_, err := s.client.now().MemberRemove(ctx, id)
		if errors.Is(err, rpctypes.ErrMemberNotFound) {
			return nil
		}
		return err
	})
}

// change asks etcd for a change of its members until it is done, refused for good, or the context
// has ended.
func change(ctx context.Context, what string, try func(context.Context) error) error {
	for {
		within, cancel := context.WithTimeout(ctx, txnWait)
		err := try(within)
		cancel()
		if err == nil {
			return nil
		}
		rest, cancel := context.WithTimeout(ctx, memberRest)
		<-rest.Done()
		cancel()
		if ctx.Err() != nil {
			return &domain.Error{
				Op: "quorum.Membership", Kind: domain.Unavailable, Ref: what, Err: err,
				Remedy: "wait until a majority of the voters has been connected for five seconds",
			}
		}
	}
}

// CaughtUp tells whether a learner lies at most LagMax entries behind the leader. A member that
// does not answer has not caught up; that is no error.
func (s *Store) CaughtUp(ctx context.Context, m Member) (bool, error) {
	mine, err := statusOf(ctx, s.single(), m.URL)
	if err != nil || mine.Header.GetMemberId() != m.ID || len(mine.Errors) > 0 && !mine.IsLearner {
		return false, nil
	}
	leader := s.Leader()
	if leader == "" {
		return false, nil
	}
	theirs, err := statusOf(ctx, s.single(), leader)
	if err != nil {
		return false, unavailable(ctx, "quorum.CaughtUp", err)
	}
	return mine.RaftAppliedIndex+LagMax >= theirs.RaftAppliedIndex, nil
}

func (s *Store) remote() *clientv3.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.remote
}

func (s *Store) single() *clientv3.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.single
}

// announce tells the cluster where this member is reached, when that has changed.
func (s *Store) announce(ctx context.Context) error {
	if s.cfg.Net == nil {
		return nil
	}
	members, err := s.Members(ctx)
	if err != nil {
		return err
	}
	id := s.local().id()
	for _, m := range members {
		if m.ID == id && m.URL != s.cfg.Net.URL {
			return change(ctx, "move to "+s.cfg.Net.URL, func(ctx context.Context) error {
				_, err := s.client.now().MemberUpdate(ctx, id, []string{s.cfg.Net.URL})
				return err
			})
		}
	}
	return nil
}

// Follow makes of this node what the members' list says: a learner that begins to copy, a voter
// that answers for itself, or a client again. Its owner calls it whenever the list may have
// changed. The context bounds a start.
func (s *Store) Follow(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.life.Err() != nil {
		return eventstore.ErrClosed
	}
	if l := s.local(); l != nil && l.etcd.Server.IsIDRemoved(l.id()) {
		if err := s.drop(l); err != nil {
			return err
		}
	}
	s.tend(ctx)
	if l := s.local(); l != nil && l.distrusted.Load() {
		l.handOn() // a leader answers by its own database
	} else if l != nil && s.client.now() != l.client && l.votes() {
		s.client.set(l.client) // it has the vote, and whoever it asked until now may be gone
	}
	members, err := s.Members(ctx)
	if err != nil {
		s.widen()
		// A member that was removed while it was cut off is never told: nobody speaks to it any more,
		// and it cannot read the list by itself. The others can.
		if s.local() != nil && s.remote() != nil {
			members, err = list(ctx, s.remote())
		}
	}
	if err != nil {
		return err
	}
	at := slices.IndexFunc(members, func(m Member) bool { return m.URL == s.cfg.Net.URL })
	if l := s.local(); l != nil && (at < 0 || members[at].ID != l.id()) {
		err := s.leftBehind(ctx, l.id())
		if errors.Is(err, eventstore.ErrTimelineChanged) {
			s.supersede(err)
		}
		if err == nil {
			err = s.drop(l)
		}
		if err != nil {
			return err
		}
	}
	s.point(ctx, members)
	s.replaced(members)
	if err := s.alarms(ctx, members); err != nil {
		return err
	}
	if at < 0 {
		return nil
	}
	if s.local() == nil && members[at].Started && !s.hasMember() {
		return nil // its files are gone, and it had a vote: it never comes back, see Q5
	}
	if s.local() == nil {
		l, err := s.run(ctx, s.initial(members), true)
		if err != nil {
			return err
		}
		s.keep(l)
	}
	return nil
}

// drop makes a client of a node whose member the cluster has removed.
func (s *Store) drop(l *local) error {
	s.widen()
	s.client.set(s.remote()) // first, so that no call is left to a member that stops
	s.keep(nil)
	l.stop()
	return s.wipe()
}

// discover asks the seeds in turn, of which few may hold a member, for those that do, until one
// answers.
//
// The error is Denied when one refuses this node, and otherwise Unavailable, at the context's end.
func (s *Store) discover(ctx context.Context) error {
	s.client.set(s.remote())
	members, err := s.ask(ctx)
	if err == nil {
		s.point(ctx, members)
	}
	return err
}

// ask gets the list of members from the seeds.
func (s *Store) ask(ctx context.Context) ([]Member, error) {
	remote := s.remote()
	for {
		var failed error
		for _, url := range s.cfg.Net.Seeds {
			remote.SetEndpoints(url)
			members, err := list(ctx, remote)
			if err == nil || domain.IsKind(err, domain.Denied) {
				return members, err
			}
			failed = err
		}
		rest, cancel := context.WithTimeout(ctx, memberRest)
		<-rest.Done()
		cancel()
		if ctx.Err() != nil {
			return nil, domain.Wrap(failed, "quorum.Open", s.cfg.Dir)
		}
	}
}

// widen points the client at every member it ever heard of, learners too: those it knew as voters
// do not answer.
func (s *Store) widen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all := s.mu.known; len(all) > 0 && !slices.Equal(all, s.mu.remote.Endpoints()) {
		s.mu.remote.SetEndpoints(all...)
	}
}

func (s *Store) local() *local {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.local
}

// distrusts tells whether this node's member is not to be read from.
func (s *Store) distrusts() bool {
	l := s.local()
	return l != nil && l.distrusted.Load()
}

// keep notes the member that runs now, and gives the one before.
func (s *Store) keep(l *local) *local {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.mu.local
	s.mu.local = l
	return old
}

// initial lists the members the way etcd wants to be told. Only the addresses are compared.
func (s *Store) initial(members []Member) string {
	list := make([]string, 0, len(members))
	for _, m := range members {
		name := fmt.Sprintf("m%x", m.ID)
		if m.URL == s.cfg.Net.URL {
			name = s.cfg.Name
		}
		list = append(list, name+"="+m.URL)
	}
	return strings.Join(list, ",")
}

// point directs the client at the voters and learns who leads them.
func (s *Store) point(ctx context.Context, members []Member) {
	var voters, all []string
	for _, m := range members {
		if m.URL != s.cfg.Net.URL {
			all = append(all, m.URL)
		}
		if !m.Learner && m.Started && m.URL != s.cfg.Net.URL { // its own it asks without a connection
			voters = append(voters, m.URL)
		}
	}
	s.mu.Lock()
	s.mu.known = all
	s.mu.Unlock()
	remote := s.remote()
	if len(voters) > 0 && !slices.Equal(remote.Endpoints(), voters) {
		remote.SetEndpoints(voters...)
		// A watch that etcd's client takes up again at a survivor, from a revision that the lost ones
		// had come to and the survivor has not, would be silent. So whoever reads begins anew.
		if s.client.now() == remote {
			s.client.set(remote)
		}
	}
	if s.client.now() != remote {
		return // this node votes, so it knows by itself
	}
	leader, term := "", uint64(0)
	for _, v := range voters { // one that was cut off still believes in its own term
		st, err := statusOf(ctx, s.single(), v)
		if err != nil || st.RaftTerm <= term {
			continue
		}
		term, leader = st.RaftTerm, ""
		for _, m := range members {
			if m.ID == st.Leader {
				leader = m.URL
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.leader, s.mu.term = leader, max(s.mu.term, term)
}

// statusOf asks one member how it is. It does not wait long: it is one of several.
func statusOf(
	ctx context.Context, c *clientv3.Client, url string,
) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	return c.Status(ctx, url)
}

// Leader gives the URL of the node whose member leads, as far as this node knows; empty without
// one.
func (s *Store) Leader() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.local == nil || s.client.now() != s.mu.local.client {
		return s.mu.leader
	}
	server := s.mu.local.etcd.Server
	id := server.Leader()
	if id == types.ID(0) {
		return ""
	}
	if id == server.MemberID() {
		return s.cfg.url()
	}
	m := server.Cluster().Member(id)
	if m == nil || len(m.PeerURLs) == 0 {
		return ""
	}
	return m.PeerURLs[0]
}

// writer gives where an append is forwarded to; empty when this node writes itself.
func (s *Store) writer() string {
	if s.cfg.Net == nil {
		return ""
	}
	if to := s.Leader(); to != s.cfg.Net.URL {
		return to
	}
	return ""
}

// stirs gives a channel that closes when an answer under way is likely lost, because another member
// leads than when it was asked for. A member hears so by itself. A client asks the voters, once the
// answer is late and until the context ends: what was on its way to a leader that died never comes.
func (s *Store) stirs(ctx context.Context) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.local != nil {
		return s.mu.local.etcd.Server.LeaderChangedNotify()
	}
	changed, term := make(chan struct{}), s.mu.term
	go func() {
		if s.later(ctx, term) {
			close(changed)
		}
	}()
	return changed
}

// later waits until a voter knows a leader of a later term; false when the context ended before.
func (s *Store) later(ctx context.Context, term uint64) bool {
	if !rest(ctx, answerLate) {
		return false
	}
	voters := s.remote().Endpoints()
	terms := make(chan uint64, len(voters))
	for _, v := range voters { // each by itself: one that is silent must not hold the others up
		go func() {
			for {
				st, err := statusOf(ctx, s.single(), v)
				if err == nil && st.Leader != 0 && st.RaftTerm > term {
					terms <- st.RaftTerm
					return
				}
				if !rest(ctx, lateAgain) {
					return
				}
			}
		}()
	}
	select {
	case t := <-terms:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.term = max(s.mu.term, t)
		return true
	case <-ctx.Done():
		return false
	}
}

// rest waits; false when the context ended before.
func rest(ctx context.Context, d time.Duration) bool {
	within, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-within.Done()
	return ctx.Err() == nil
}
