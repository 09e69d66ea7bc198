package quorum

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
)

// Part is one of the two places where a node keeps the log.
type Part string

// The parts: the database of the node's own member, and the files of its archive.
const (
	PartDatabase Part = "database"
	PartArchive  Part = "archive"
)

// Damage is a place of the log found damaged on this node's disks, and not repaired yet.
type Damage struct {
	Part     Part
	Position domain.Position // the first that is damaged; 0: it is not in one record
	First    uint64          // archive: n of the first record of the segment
	Member   uint64          // database: whose it is
	What     string
	Alone    bool // nobody else was there to read the log from when it was found
}

// key tells one damage from another: a database is replaced as a whole, an archive by the file.
func (d *Damage) key() Damage { return Damage{Part: d.Part, First: d.First, Member: d.Member} }

// FoundError is a CorruptError with the part of the log that it is about.
type FoundError struct {
	Damage
	Err error
}

// Error is that of the CorruptError.
func (e *FoundError) Error() string { return e.Err.Error() }

// Unwrap gives the CorruptError.
func (e *FoundError) Unwrap() error { return e.Err }

// ills are the damages known. Its mutex is never held with another.
type ills struct {
	sync.Mutex
	known   map[Damage]Damage // by key
	repairs uint64
	evicted []Member // by this node, because of etcd's alarm, and not recorded yet
}

const (
	// healRest is the pause before a repair that failed is tried again.
	healRest = 5 * time.Second
	// healWait bounds one repair that a reader waits for.
	healWait = 30 * time.Second
	// damagedDir holds what was left of a member that could not start.
	damagedDir = "member.damaged"
)

// Damages lists what is known to be damaged on this node and not repaired yet.
func (s *Store) Damages() []Damage {
	s.ills.Lock()
	defer s.ills.Unlock()
	return slices.SortedFunc(maps.Values(s.ills.known), func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.First, b.First))
	})
}

// Repairs counts what was repaired since the store was opened.
func (s *Store) Repairs() uint64 {
	s.ills.Lock()
	defer s.ills.Unlock()
	return s.ills.repairs
}

// spoiled notes a damage, and says it the first time.
func (s *Store) spoiled(d Damage) {
	s.ills.Lock()
	_, known := s.ills.known[d.key()]
	if !known {
		if s.ills.known == nil {
			s.ills.known = map[Damage]Damage{}
		}
		s.ills.known[d.key()] = d
	}
	s.ills.Unlock()
	if !known {
		s.cfg.Logger.Error("the event log is damaged on this node", "part", string(d.Part),
			"position", d.Position.String(), "what", d.What, "only copy", d.Alone)
	}
}

// mended forgets a damage that is repaired.
func (s *Store) mended(d Damage, how string) {
	s.ills.Lock()
	_, known := s.ills.known[d.key()]
	if known {
		delete(s.ills.known, d.key())
		s.ills.repairs++
	}
	s.ills.Unlock()
	if known {
		s.cfg.Logger.Warn("damage of the event log on this node is repaired",
			"part", string(d.Part), "position", d.Position.String(), "how", how)
	}
}

// ill tells whether a part is known to be damaged there.
func (s *Store) ill(key Damage) bool {
	s.ills.Lock()
	defer s.ills.Unlock()
	_, known := s.ills.known[key]
	return known
}

// Know tells the store where the nodes of the cluster are reached, beside those that are members:
// their archives are as good as any.
func (s *Store) Know(urls []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.nodes = slices.Clone(urls)
}

// others lists where other nodes may be reached, the leading one first.
func (s *Store) others() []string {
	if s.cfg.Net == nil {
		return nil
	}
	s.mu.Lock()
	urls := slices.Concat([]string{s.mu.leader}, s.mu.known, s.mu.nodes)
	s.mu.Unlock()
	var list []string
	for _, url := range append(urls, s.cfg.Net.Seeds...) {
		if url != "" && url != s.cfg.Net.URL && !slices.Contains(list, url) {
			list = append(list, url)
		}
	}
	return list
}

// solitary tells whether no other node is known.
func (s *Store) solitary() bool { return len(s.others()) == 0 }

// damageOf gives damage of a part as an error of this store found it.
func damageOf(part Part, err error) Damage {
	d := Damage{Part: part, What: err.Error()}
	var bad *eventstore.CorruptError
	if errors.As(err, &bad) {
		d.Position, d.What = bad.Position, bad.What
	}
	return d
}

// distrust takes note that the database of this node's member is damaged. From then on the node
// reads and writes the log by the other voters, and refuses to be read by others, until it is
// replaced. It tells whether there are others; without, the log ends here. What was read from
// another member, or is the archive's damage, is none of this: the answer is then whether to try
// again.
func (s *Store) distrust(err error) bool {
	l := s.local()
	if l == nil || s.client.now() != l.client {
		return s.cfg.Net != nil // the next read may be another's
	}
	d := damageOf(PartDatabase, err)
	if first, ok := s.past.Holding(d.Position.N()); ok &&
		s.ill(Damage{Part: PartArchive, First: first}) {
		return s.cfg.Net != nil
	}
	var others []string
	for _, m := range l.etcd.Server.Cluster().Members() {
		if m.ID != l.etcd.Server.MemberID() && !m.IsLearner && len(m.PeerURLs) > 0 {
			others = append(others, m.PeerURLs[0])
		}
	}
	d.Member, d.Alone = l.id(), s.cfg.Net == nil || len(others) == 0
	s.spoiled(d)
	if d.Alone {
		return false
	}
	l.distrusted.Store(true)
	s.remote().SetEndpoints(others...)
	s.client.set(s.remote())
	l.rpc.Stop() // whoever reads from this member goes on at another
	return true
}

// Distrust is what others say of this node's member: its database is damaged, as if this node had
// met that itself. It does nothing for another member than the one that runs here.
func (s *Store) Distrust(member uint64, why string) {
	if l := s.local(); l != nil && l.id() == member && s.readsOwn() {
		s.distrust(&eventstore.CorruptError{What: why})
	}
}

// MemberID gives the member that runs here; 0 for a client of the log.
func (s *Store) MemberID() uint64 {
	if l := s.local(); l != nil {
		return l.id()
	}
	return 0
}

// healing is Mirror.Mend: it repairs the archive under a reader that met damage there.
func (s *Store) healing(bad *eventstore.CorruptError) bool {
	first, ok := s.past.Holding(bad.Position.N())
	if !ok || s.life.Err() != nil {
		return false
	}
	d := damageOf(PartArchive, bad)
	d.First, d.Alone = first, s.solitary()
	ctx, cancel := context.WithTimeout(s.life, healWait)
	defer cancel()
	return s.heal(ctx, d, healRest) == nil
}

// heal repairs a segment of the archive: from another node, or from the database where that holds
// its records still. Two that come for one segment repair it once; after a
// failure it is not tried again for rest.
//
// Errors: Unavailable where nobody who answers has a sound copy, NotFound.
func (s *Store) heal(ctx context.Context, d Damage, rest time.Duration) error {
	s.spoiled(d)
	s.heals.Lock()
	defer s.heals.Unlock()
	if s.past.Check(ctx, d.First) == nil { // by whoever came first, or by the disk itself
		s.mended(d, "it reads well again")
		return nil
	}
	if s.failed > 0 && bootTime()-s.failed < rest {
		return domain.Errorf(domain.Unavailable, "its repair failed a moment ago")
	}
	from := ""
	err := s.eachNode(func(url string) error {
		from = url
		return s.segmentFrom(ctx, url, d.First, func(body io.Reader) error {
			return s.past.Repair(ctx, d.First, body)
		})
	})
	if err != nil {
		from = "the database"
		if own := s.rebuild(ctx, d.First); own != nil {
			s.failed = bootTime()
			return errors.Join(err, own)
		}
	}
	s.mended(d, "copied from "+from)
	return nil
}

// rebuild repairs a segment from the records that the database holds.
func (s *Store) rebuild(ctx context.Context, first uint64) error {
	l := loader{keys: s.keys, kv: s.client}
	both, err := l.ends(ctx)
	if err != nil {
		return err
	}
	seg, before, ok := s.past.Segment(first)
	if !ok || both.sealed.Position.N() >= first {
		return domain.Errorf(domain.NotFound, "the database does not hold its records any more")
	}
	end := eventstore.Head{Position: seg.Last, Hash: seg.Hash}
	var entries []eventstore.Entry
	err = l.pages(ctx, before, end, both.revision, func(e eventstore.Entry) error {
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return err
	}
	return s.past.Rebuild(ctx, first, entries)
}

// tend repairs what of the archive is known to be damaged.
func (s *Store) tend(ctx context.Context) {
	for _, d := range s.Damages() {
		if d.Part != PartArchive {
			continue
		}
		if _, _, there := s.past.Segment(d.First); there {
			s.note("repairing the archive of the log", s.heal(ctx, d, healRest))
		}
	}
}

// CheckSegment reads a segment of this node's archive from the disk and verifies it. Damage is a
// FoundError, is noted, and is repaired where another copy is found, by Follow. NotFound for a
// segment that the archive does not have.
func (s *Store) CheckSegment(ctx context.Context, first uint64) error {
	return s.found(s.past.Check(ctx, first), nil)
}

// found notes what a verification met and gives it the part where it is.
func (s *Store) found(err error, w *witness) error {
	if !errors.Is(err, eventstore.ErrCorrupt) {
		return err
	}
	var seg *archive.SegmentError
	if errors.As(err, &seg) {
		d := damageOf(PartArchive, err)
		d.First, d.Alone = seg.First, s.solitary()
		s.spoiled(d)
		return &FoundError{d, err}
	}
	d := damageOf(PartDatabase, err)
	if w != nil {
		d.Member = w.member
	}
	if w != nil && w.own && s.readsOwn() {
		s.distrust(err)
	}
	s.ills.Lock()
	defer s.ills.Unlock()
	d.Alone = s.ills.known[d.key()].Alone
	return &FoundError{d, err}
}

// sound forgets the damage of a database that verifies, unless it is to be replaced anyway.
func (s *Store) sound(w *witness) {
	if !w.own || s.distrusts() {
		return
	}
	for _, d := range s.Damages() {
		if d.Part == PartDatabase && d.Member == w.member {
			s.mended(d, "it reads well again")
		}
	}
}

// readsOwn tells whether this node reads the database of its own member.
func (s *Store) readsOwn() bool {
	l := s.local()
	return l != nil && s.client.now() == l.client
}

// own gives the database that a verification is about: that of this node's member where it votes,
// trusted or not, or whichever answers.
func (s *Store) own() *witness {
	l := s.local()
	if l == nil || !l.votes() {
		return &witness{reader: s.client}
	}
	return &witness{reader: newConn(l.client), own: true, member: l.id()}
}

// witness remembers which member answered last.
type witness struct {
	reader
	own    bool
	member uint64
}

// Get reads keys.
func (w *witness) Get(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.GetResponse, error) {
	res, err := w.reader.Get(ctx, key, opts...)
	if err == nil {
		w.member = res.Header.GetMemberId()
	}
	return res, err
}

// forsake makes a client of a node whose member cannot start, its files being damaged: what is left
// of them is put aside, and the member is removed by the others. They must answer first: of a log
// that nobody else has, what is left is all there is.
func (s *Store) forsake(ctx context.Context, cause error) error {
	s.client.set(s.remote())
	members, err := s.ask(ctx)
	if err != nil {
		return errors.Join(cause, err)
	}
	d := damageOf(PartDatabase, cause)
	at := slices.IndexFunc(members, func(m Member) bool { return m.URL == s.cfg.Net.URL })
	if at >= 0 {
		d.Member = members[at].ID
		if len(members) == 1 {
			return cause
		}
	}
	aside := filepath.Join(s.cfg.Dir, damagedDir)
	err = os.RemoveAll(aside)
	if err == nil {
		err = os.Rename(filepath.Join(s.cfg.Dir, "member"), aside)
	}
	if err != nil {
		return &domain.Error{Op: "quorum.Open", Kind: domain.Denied, Ref: s.cfg.Dir, Err: err}
	}
	s.spoiled(d)
	s.point(ctx, members)
	return nil
}

// replaced forgets the damage of members that are not in the list any more.
func (s *Store) replaced(members []Member) {
	for _, d := range s.Damages() {
		listed := slices.ContainsFunc(members, func(m Member) bool { return m.ID == d.Member })
		if d.Part == PartDatabase && !listed {
			s.mended(d, "the member was removed; its node copies the log anew")
			if err := os.RemoveAll(filepath.Join(s.cfg.Dir, damagedDir)); err != nil {
				s.cfg.Logger.Warn("what was left of the damaged member", "err", err)
			}
		}
	}
}
