package quorum

import (
	"context"
	"fmt"

	"weft/domain"
	"weft/eventstore"
)

// The shares of the database's quota, in per cent of the bytes in use, at which something changes.
// The engine itself refuses all writes and all leases at 100, so that must never be reached.
const (
	SpaceAlarm    = 50 // it is said
	SpaceTrim     = 60 // sealed segments leave whatever the window
	SpaceFailover = 80 // only what the cluster needs to repair itself is admitted
	SpaceVital    = 90 // only what is needed to get the log smaller is admitted
)

// Database is how large the engine's database is on this node, in bytes. Size is the file, and
// falls only by Defragment; the thresholds are about InUse.
type Database struct{ Size, InUse, Quota int64 }

// Percent gives the share of the quota in use.
func (d Database) Percent() int64 {
	if d.Quota == 0 {
		return 0
	}
	return 100 * d.InUse / d.Quota
}

// Sparse tells whether the file is large and mostly free, so that defragmenting it is worth its
// price.
func (d Database) Sparse() bool { return d.Size > d.Quota/2 && d.InUse < d.Size/2 }

// Database tells how large this node's database is; zeros for a client of the log.
func (s *Store) Database() Database {
	l := s.local()
	if l == nil {
		return Database{}
	}
	b := l.etcd.Server.Backend()
	return Database{Size: b.Size(), InUse: b.SizeInUse(), Quota: s.cfg.Quota}
}

// admit refuses what a database that is nearly full must not take any more. The rest is reserve for
// getting it smaller.
func (s *Store) admit(id domain.StreamID) error {
	d := s.Database()
	p := d.Percent()
	if admits(p, id.Category()) {
		return nil
	}
	return &domain.Error{
		Op: "quorum.Append", Kind: domain.NoSpace, Ref: string(id), Err: eventstore.ErrNoSpace,
		Msg:    fmt.Sprintf("the event log's database is %d %% full", p),
		Remedy: "weft events archive status tells why old events do not leave it",
	}
}

// admits tells whether a category is still written when so many per cent are in use.
func admits(percent int64, category string) bool {
	return percent < SpaceFailover || percent < SpaceVital && domain.Failover(category) ||
		domain.Vital(category)
}

// Defragment gives the free space of the database's file back, on one member after the other, the
// leading one last. A member does not answer meanwhile, so it is refused while a voter is missing.
//
// Errors: Busy when a member does not answer, Unavailable.
func (s *Store) Defragment(ctx context.Context) error {
	if s.cfg.Net == nil {
		return s.local().etcd.Server.Backend().Defrag()
	}
	members, err := s.Members(ctx)
	if err != nil {
		return err
	}
	leader := s.Leader()
	urls := make([]string, 0, len(members))
	for _, m := range members {
		if st, err := statusOf(ctx, s.single(), m.URL); err != nil || len(st.Errors) > 0 && !m.Learner {
			return domain.Errorf(domain.Busy, "the member at %s is not well", m.URL)
		}
		if m.URL != leader {
			urls = append(urls, m.URL)
		}
	}
	if leader != "" {
		urls = append(urls, leader)
	}
	for _, url := range urls {
		if _, err := s.single().Defragment(ctx, url); err != nil {
			return unavailable(ctx, "quorum.Defragment", err)
		}
	}
	return nil
}
