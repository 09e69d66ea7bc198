package quorum

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"weft/domain"
	"weft/eventstore"
)

const (
	memberDir = "member"
	// recoveringDir holds the copy of the member while it is made the only voter.
	recoveringDir = "recovering"
	// beforeDir holds the member as it was before the last recovery, for whoever wants to look.
	beforeDir = "member.before-recovery"
)

// Recovery makes one surviving voter of a log the only one, after most voters were lost for good.
// All happens on a copy of the member's files below Config.Dir, which takes as much room again;
// Commit puts the copy in the place of the member in one step. Until then the member is as it was,
// so a recovery that is cut short is begun again, and one that is only looked at is discarded.
//
// What is kept is every entry of the member's consensus log, also those that are not marked
// committed in it: an acknowledged one may be among them, and one that was not acknowledged has an
// outcome that nobody knows, which "it happened" is as good as.
type Recovery struct {
	// Self is the member that is kept, Others are the voters and learners that are given up, by URL.
	Self   Member
	Others []Member
	// Term and Index are those of the last entry of the consensus log. Of several survivors the one
	// with the greatest pair, compared in this order, has every acknowledged append.
	Term, Index uint64
	// Committed is the last entry that was marked committed.
	Committed uint64
	// Kept is the end of the event log that is kept, and Salvaged is how many records of it came from
	// the node's own archive, because the database did not reach so far. Force sets them.
	Kept     eventstore.Head
	Salvaged uint64
	// Log is the log of the copy, from Force to Commit. Its owner appends to it between Raise and
	// Commit what is to be recorded of the recovery.
	Log *Store

	cfg  Config
	done bool
}

// NewRecovery copies the member of a stopped node and reads what it would keep. The configuration
// is that of the node; its Net is not used, since nobody is asked. The caller discards the recovery
// in the end.
//
// Errors: Invalid for a node that has no vote, Exists for one that is the only voter already,
// Locked while a process has the folder open, Corrupt for damaged files, and what copying gives.
func NewRecovery(ctx context.Context, cfg Config) (*Recovery, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	cfg.Net = nil
	r := &Recovery{cfg: cfg}
	from := filepath.Join(cfg.Dir, memberDir)
	if _, err := os.Stat(filepath.Join(from, "wal")); errors.Is(err, os.ErrNotExist) {
		return nil, r.voteless()
	}
	if err := probe(cfg.Dir); err != nil {
		return nil, err
	}
	err := os.RemoveAll(r.scratch()) // of a recovery that was cut short
	if err == nil {
		err = copyFiles(ctx, from, filepath.Join(r.scratch(), memberDir))
	}
	if err != nil {
		err = r.failed(ctx, err)
	} else {
		err = r.inspect()
	}
	if err != nil {
		_ = r.Discard() // the next recovery tries again
		return nil, err
	}
	return r, nil
}

// Force makes the copy a cluster of one voter with every entry of its consensus log, takes up what
// the node's archive holds beyond it, and verifies the whole log.
//
// Errors: a CorruptError for a log that is not sound, and those of Open.
func (r *Recovery) Force(ctx context.Context) error {
	cfg := r.cfg
	cfg.Dir, cfg.forced = r.scratch(), true
	var err error
	if r.Log, err = Open(ctx, cfg); err != nil {
		return err
	}
	if err := r.Log.Health(); err != nil {
		return err
	}
	if err := r.Log.Verify(ctx, nil); err != nil {
		return err
	}
	r.Salvaged = r.Log.salvaged
	r.Kept, err = r.Log.Head(ctx)
	return err
}

// Raise lets the events to come bear a higher timeline, and marks in the log which history ends
// here and which members do not belong to it any more. It becomes durable with the next append,
// which the caller makes at once. The error is of kind Invalid for a timeline that is not above
// that of the log.
func (r *Recovery) Raise(ctx context.Context, to domain.Timeline) error {
	k, floor := r.Log.keys, encodeTail(r.Kept)
	ops := []clientv3.Op{clientv3.OpPut(k.recovered(to), floor)}
	for _, m := range r.Others {
		ops = append(ops, clientv3.OpPut(k.lost(m.ID), floor))
		if m.Started { // its archive is no copy to count on any more
			ops = append(ops, clientv3.OpDelete(k.holder(m.Name)))
		}
	}
	res, err := r.Log.client.Txn(ctx).
		If(holds(k.tail(), r.Kept == eventstore.Head{}, floor)).Then(ops...).Commit()
	if err != nil {
		return unavailable(ctx, "quorum.Recover", err)
	}
	if !res.Succeeded {
		return domain.Errorf(domain.Conflict, "somebody writes to the log that is recovered")
	}
	return r.Log.mirror.Restore(r.Kept.Position.N(), to)
}

// Commit closes the copy and puts it in the place of the member, which is kept beside it. A nil
// error means that this is durable.
func (r *Recovery) Commit() error {
	if err := r.Log.Close(); err != nil {
		return err
	}
	r.Log = nil
	now, made := filepath.Join(r.cfg.Dir, memberDir), filepath.Join(r.scratch(), memberDir)
	// In one step: without a member the node would begin anew.
	err := unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, now, unix.RENAME_EXCHANGE)
	if err != nil {
		return &domain.Error{
			Op: "quorum.Recover", Kind: domain.Unsupported, Ref: now, Err: err,
			Msg:    "the file system cannot exchange two folders; nothing is changed",
			Remedy: "move the data folder to ext4, XFS or btrfs",
		}
	}
	r.done = true
	before := filepath.Join(r.cfg.Dir, beforeDir)
	err = errors.Join(syncDir(r.cfg.Dir), syncDir(r.scratch()), os.RemoveAll(before))
	if err == nil {
		err = os.Rename(made, before)
	}
	if err == nil {
		err = os.RemoveAll(r.scratch())
	}
	if err != nil {
		return r.failed(context.Background(), err)
	}
	return syncDir(r.cfg.Dir)
}

// Discard removes the copy. After Commit it does nothing.
func (r *Recovery) Discard() error {
	if r.done {
		return nil
	}
	if r.Log != nil {
		_ = r.Log.Close() // what it holds is of no use any more
		r.Log = nil
	}
	if err := os.RemoveAll(r.scratch()); err != nil {
		return r.failed(context.Background(), err)
	}
	return nil
}

func (r *Recovery) scratch() string { return filepath.Join(r.cfg.Dir, recoveringDir) }

func (r *Recovery) voteless() error {
	return &domain.Error{
		Op: "quorum.Recover", Kind: domain.Invalid, Ref: r.cfg.Dir,
		Msg:    "this node has no vote, so its copy of the log may end before what was acknowledged",
		Remedy: "recover on a node that votes; where none is left, weft restore brings a backup back",
	}
}

func (r *Recovery) failed(ctx context.Context, err error) error {
	var typed *domain.Error
	if errors.As(err, &typed) {
		return err
	}
	e := &domain.Error{Op: "quorum.Recover", Kind: domain.Unavailable, Ref: r.cfg.Dir, Err: err}
	switch {
	case ctx.Err() != nil:
		e.Kind = domain.Aborted
	case errors.Is(err, os.ErrPermission):
		e.Kind = domain.Denied
	case errors.Is(err, unix.ENOSPC):
		e.Kind = domain.NoSpace
		e.Remedy = "a recovery copies the member first, which takes as much room again"
	}
	return e
}

// inspect reads the members and the consensus log of the copy, and marks all of it as committed.
func (r *Recovery) inspect() (err error) {
	dir := filepath.Join(r.scratch(), memberDir)
	defer func() { // etcd's reader panics where files do not fit together
		if p := recover(); p != nil {
			err = broken(r.cfg.Dir, fmt.Errorf("%v", p))
		}
	}()
	members, err := savedMembers(filepath.Join(dir, "snap", "db"))
	if err != nil {
		return broken(r.cfg.Dir, err)
	}
	c, err := openConsensus(filepath.Join(dir, "wal"))
	if err != nil {
		return broken(r.cfg.Dir, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.apply(members); err != nil {
		return broken(r.cfg.Dir, err)
	}
	self, ok := members[c.member]
	if !ok || self.Learner {
		return r.voteless()
	}
	delete(members, c.member)
	r.Self = self
	r.Others = slices.SortedFunc(maps.Values(members), func(a, b Member) int {
		return strings.Compare(a.URL, b.URL)
	})
	if len(r.Others) == 0 {
		return &domain.Error{
			Op: "quorum.Recover", Kind: domain.Exists, Ref: r.cfg.Dir,
			Msg:    "this node is the only voter, so nothing has to be recovered",
			Remedy: "start it: weft serve",
		}
	}
	r.Term, r.Index, r.Committed = c.term, c.index, c.state.GetCommit()
	return c.commit()
}

// consensus is the write-ahead log of a member that does not run.
type consensus struct {
	*wal.WAL
	member      uint64
	term, index uint64 // of the last entry
	state       *raftpb.HardState
	entries     []*raftpb.Entry // behind the newest snapshot
}

// openConsensus reads the log in a folder. One whose end was torn by a crash is repaired as etcd
// would: the torn record was never answered for.
func openConsensus(dir string) (*consensus, error) {
	for repaired := false; ; repaired = true {
		c, err := readConsensus(dir)
		if err == nil || repaired || !errors.Is(err, io.ErrUnexpectedEOF) ||
			!wal.Repair(zap.NewNop(), dir) {
			return c, err
		}
	}
}

func readConsensus(dir string) (*consensus, error) {
	snaps, err := wal.ValidSnapshotEntries(zap.NewNop(), dir)
	if err != nil {
		return nil, err
	}
	snap := &walpb.Snapshot{}
	if k := len(snaps); k > 0 {
		snap = snaps[k-1]
	}
	w, err := wal.Open(zap.NewNop(), dir, snap)
	if err != nil {
		return nil, err
	}
	meta, state, entries, err := w.ReadAll()
	var about pb.Metadata
	if err == nil {
		err = proto.Unmarshal(meta, &about)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	c := &consensus{
		WAL: w, member: about.GetNodeID(), state: state, entries: entries,
		term: snap.GetTerm(), index: snap.GetIndex(),
	}
	if k := len(entries); k > 0 {
		c.term, c.index = entries[k-1].GetTerm(), entries[k-1].GetIndex()
	}
	return c, nil
}

// commit marks every entry as committed. A member that is forced to be alone drops the others.
func (c *consensus) commit() error {
	if c.state.GetCommit() >= c.index {
		return nil
	}
	c.state.Commit = &c.index
	return c.Save(c.state, nil)
}

// apply makes of the members that a database names those that the whole log names. An entry that
// the database knows already changes nothing: the last about each member counts.
func (c *consensus) apply(members map[uint64]Member) error {
	for _, e := range c.entries {
		if e.GetType() != raftpb.EntryConfChange {
			continue
		}
		var change raftpb.ConfChange
		if err := proto.Unmarshal(e.GetData(), &change); err != nil {
			return err
		}
		id := change.GetNodeId()
		if change.GetType() == raftpb.ConfChangeRemoveNode {
			delete(members, id)
			continue
		}
		var about membership.ConfigChangeContext
		if err := json.Unmarshal(change.GetContext(), &about); err != nil {
			return err
		}
		m := members[id]
		switch {
		case about.IsPromote:
			m.Learner = false
		case change.GetType() == raftpb.ConfChangeUpdateNode:
			m.URL = firstOf(about.PeerURLs)
		default:
			about.Name = cmp.Or(about.Name, m.Name) // the name comes later, from the member itself
			m = memberOf(&about.Member)
		}
		m.ID = id
		members[id] = m
	}
	return nil
}

// savedMembers reads the members that a database names.
func savedMembers(path string) (map[uint64]Member, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockWait})
	if err != nil {
		return nil, err
	}
	members := map[uint64]Member{}
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(schema.Members.Name())
		if b == nil {
			return errors.New("the database names no members")
		}
		return b.ForEach(func(_, v []byte) error {
			var m membership.Member
			if err := json.Unmarshal(v, &m); err != nil {
				return err
			}
			members[uint64(m.ID)] = memberOf(&m)
			return nil
		})
	})
	return members, errors.Join(err, db.Close())
}

func memberOf(m *membership.Member) Member {
	return Member{
		ID: uint64(m.ID), Name: m.Name, URL: firstOf(m.PeerURLs), Learner: m.IsLearner,
		Started: m.Name != "",
	}
}

func firstOf(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return urls[0]
}

// copyFiles copies a folder durably, without what etcd only prepares.
func copyFiles(ctx context.Context, from, to string) error {
	var dirs []string
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			dirs = append(dirs, target)
			return os.MkdirAll(target, 0o700)
		case !e.Type().IsRegular() || strings.HasSuffix(path, ".tmp"):
			return nil
		}
		return copyFile(path, target)
	})
	for _, d := range dirs {
		err = errors.Join(err, syncDir(d))
	}
	return errors.Join(err, syncDir(filepath.Dir(to)))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
