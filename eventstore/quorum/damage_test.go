package quorum

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// harm changes the newest value of a key in one member's database, as a disk that rots would: no
// other member hears of it, and neither does etcd.
func harm(t testing.TB, s *Store, key string, change func([]byte)) {
	t.Helper()
	be := s.local().etcd.Server.Backend()
	tx := be.BatchTx()
	tx.LockOutsideApply()
	defer tx.Unlock()
	var at, value []byte
	err := tx.UnsafeForEach(schema.Key, func(k, v []byte) error {
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(v, &kv); err != nil {
			return err
		}
		if string(kv.Key) != key {
			return nil
		}
		change(kv.Value)
		at = bytes.Clone(k)
		b, err := proto.Marshal(&kv)
		value = b
		return err
	})
	if err != nil || at == nil {
		t.Fatalf("%s: %v", key, err)
	}
	tx.UnsafePut(schema.Key, at, value)
}

func flipBit(bit int) func([]byte) {
	return func(b []byte) { b[bit/8] ^= 1 << (bit % 8) }
}

// One bit flipped anywhere in a stored record, the head of several, or the tail, in the database of
// the only member: the verification names part and position, the alarm is on, nothing is taken for
// repaired that is not, and what verifies again ends the alarm.
func TestDamagedDatabaseAlone(t *testing.T) {
	q := open(t, t.TempDir())
	add(t, q, "s-1", eventstore.NoStream(), "one", 2)
	add(t, q, "s-1", eventstore.At(1), "two", 3)
	key, first := stored(t, q, 3)
	_, second := stored(t, q, 4)
	_, third := stored(t, q, 5)
	for _, c := range []struct {
		key      string
		from, to int
		at       domain.Position
		step     int
	}{
		{key, 0, first, 3, 1},
		{key, first, first + recordStart, 3, 1},
		{key, first + recordStart, second, 3, 13},
		{key, second, second + recordStart, 4, 1},
		{key, second + recordStart, third, 4, 13},
		{key, third, len(get(t, q, key)), 5, 13},
		{q.keys.tail(), 0, tailSize, 5, 7},
	} {
		for bit := 8 * c.from; bit < 8*c.to; bit += c.step {
			harm(t, q, c.key, flipBit(bit))
			var found *FoundError
			err := q.Verify(t.Context(), nil)
			if !errors.As(err, &found) || found.Part != PartDatabase || found.Position != c.at ||
				!errors.Is(err, eventstore.ErrCorrupt) {
				t.Fatalf("%s, bit %d: %v", c.key, bit, err)
			}
			ds := q.Damages()
			if len(ds) != 1 || !ds[0].Alone || ds[0].Member != q.local().id() {
				t.Fatalf("%s, bit %d: %+v", c.key, bit, ds)
			}
			harm(t, q, c.key, flipBit(bit))
			if err := q.Verify(t.Context(), nil); err != nil || len(q.Damages()) != 0 {
				t.Fatalf("%s, bit %d: %v, %+v", c.key, bit, err, q.Damages())
			}
		}
	}
}

// One bit flipped anywhere in an archive file whose records the database gave up: a reader gets the
// right record all the same, because the file is repaired under it from another node, or else the
// verification finds it and the node repairs it by itself. The damaged file is kept.
func TestArchiveRepaired(t *testing.T) {
	a := newPeerSmall(t, "a")
	appendTo(t, a.Store, 8)
	head := archived(t, a.Store, 6)
	b := newPeerSmall(t, "b", a.cfg.Net.URL)
	archived(t, b.Store, 6)
	if _, err := a.Trim(t.Context(), head.Position); err != nil {
		t.Fatal(err)
	}
	path, at := inFile(t, b.Store, 4)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	repairs := b.Repairs()
	for bit := int64(0); bit < 8*int64(len(sound)); bit += 8*29 + 3 {
		flip(t, path, bit)
		if bit >= 8*at && bit < 8*int64(len(sound)-80) { // in a record
			n := 0
			for r, err := range b.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
				eventstore.NoLimit) {
				if n++; err != nil || r.Position.N() != uint64(n) {
					t.Fatalf("bit %d: record %d: %v", bit, n, err)
				}
			}
		} else {
			var found *FoundError
			if err := b.Verify(t.Context(), nil); err != nil &&
				(!errors.As(err, &found) || found.Part != PartArchive || found.First != 4) {
				t.Fatalf("bit %d: %v", bit, err)
			}
		}
		until(t, "the file is repaired, and that is counted", func() bool {
			now, err := os.ReadFile(path)
			return err == nil && bytes.Equal(now, sound) && len(b.Damages()) == 0 &&
				b.Repairs() > repairs
		})
		// Two may have met the damage, the second after it was repaired: then it counts twice.
		repairs = b.Repairs()
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
	sameLog(t, a.Store, b.Store)
}

// A lone node repairs a file of its archive from the database while that holds the records, and
// says that there is no other copy once it does not; then nothing of the file is given.
func TestArchiveOfLoneNode(t *testing.T) {
	s := small(t, t.TempDir())
	appendTo(t, s, 8)
	head := archived(t, s, 6)
	path, at := inFile(t, s, 4)
	flip(t, path, 8*at+800)
	for r, err := range s.ReadAll(t.Context(), 3, eventstore.Forward, domain.Filter{}, 1) {
		if err != nil || r.Position != 4 {
			t.Fatal(err)
		}
	}
	if s.Repairs() != 1 || len(s.Damages()) != 0 {
		t.Fatalf("%d repairs, %+v", s.Repairs(), s.Damages())
	}
	if _, err := s.Trim(t.Context(), head.Position); err != nil {
		t.Fatal(err)
	}
	flip(t, path, 8*at+800)
	for _, err := range s.ReadAll(t.Context(), 3, eventstore.Forward, domain.Filter{}, 1) {
		if !errors.Is(err, eventstore.ErrCorrupt) {
			t.Errorf("%v", err)
		}
	}
	if d := s.Damages(); len(d) != 1 || !d[0].Alone || d[0].First != 4 || d[0].Position != 4 {
		t.Errorf("%+v", d)
	}
}

// writers append to w-0, w-1 ... through all nodes until they are stopped.
func writers(t testing.TB, nodes []*peer, acked []domain.Revision) (stop func()) {
	ctx, end := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for w := range acked {
		acked[w] = domain.NoRevision
		load.Go(func() {
			id := domain.StreamID(fmt.Sprintf("w-%d", w))
			for ctx.Err() == nil {
				ev := storetest.Propose(fmt.Sprintf("%s/%d", id, acked[w]), 1)
				_, err := nodes[w%len(nodes)].Append(t.Context(), id, eventstore.At(acked[w]), ev...)
				switch {
				case err == nil:
					acked[w]++
				case domain.IsKind(err, domain.Unavailable):
				default:
					t.Errorf("%s: %v", id, err)
					return
				}
			}
		})
	}
	return func() {
		end()
		load.Wait()
	}
}

// replace is what the node that leads the cluster does for a damaged member.
func replace(t *testing.T, by, ill *peer, member uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := by.Remove(ctx, member); err != nil {
		t.Fatal(err)
	}
	until(t, "the damaged member is gone", func() bool {
		return ill.local() == nil && !ill.hasMember() && len(ill.Damages()) == 0
	})
	grow(t, by, ill)
}

// The database of one voter rots in a record or in the tail, under load: the node notices, reads by
// the others, is read by nobody, and is replaced by itself. Nothing that was acknowledged is lost,
// and in the end every node holds the same.
func TestDamagedMemberUnderLoad(t *testing.T) {
	t.Parallel() // most of it is etcd's wait for five healthy seconds
	nodes := three(t)
	list := nodes[:]
	acked := make([]domain.Revision, 6)
	stop := writers(t, list, acked)
	until(t, "some records", func() bool { return nodes[0].mirror.Head().Position.N() > 50 })
	for _, c := range []struct {
		name string
		key  func(*Store) string
	}{
		{"tail", func(s *Store) string { return s.keys.tail() }},
		{"record", func(s *Store) string {
			key, _ := stored(t, s, 7)
			return key
		}},
	} {
		name := c.name
		ill := leads(t, list)
		by := nodes[0]
		if by == ill {
			by = nodes[1]
		}
		member, key := ill.local().id(), c.key(ill.Store)
		until(t, name+": the damage is noticed", func() bool {
			if l := ill.local(); len(ill.Damages()) == 0 && l != nil {
				// Again: what is overwritten in the same moment did not rot.
				harm(t, ill.Store, key, func(b []byte) { b[len(b)-1], b[len(b)-2] = 0xa5, 0x5a })
			}
			if name == "record" { // nobody reads it but a verification
				_ = ill.Verify(t.Context(), nil)
			}
			return len(ill.Damages()) == 1
		})
		if d := ill.Damages()[0]; d.Part != PartDatabase || d.Member != member || d.Alone {
			t.Errorf("%s: %+v", name, d)
		}
		if _, err := statusOf(t.Context(), by.single(), ill.cfg.Net.URL); err == nil {
			t.Errorf("%s: the damaged member is read from", name)
		}
		if err := ill.Health(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		replace(t, by, ill, member)
		if err := ill.Verify(t.Context(), nil); err != nil || ill.Repairs() == 0 {
			t.Errorf("%s: after the repair: %v", name, err)
		}
	}
	stop()
	same(t, list, acked)
}

// A voter whose files are damaged so that it cannot start comes up as a client of the others, waits
// until it was removed, and is replaced. Its old files are never started again: it had a vote.
func TestMemberThatCannotStart(t *testing.T) {
	t.Parallel() // most of it is etcd's wait for five healthy seconds
	nodes := three(t)
	ill := follower(t, nodes)
	by := nodes[0]
	if by == ill {
		by = nodes[1]
	}
	appendTo(t, by.Store, 5)
	member := ill.local().id()
	ill.close()
	path := filepath.Join(ill.cfg.Dir, "member", "snap", "db")
	for page := range int64(4) {
		flip(t, path, 8*(4096*page+20))
	}
	for _, n := range nodes {
		if n != ill {
			ill.cfg.Net.Seeds = append(ill.cfg.Net.Seeds, n.cfg.Net.URL)
		}
	}
	ill.open()
	appendTo(t, ill.Store, 0)
	if d := ill.Damages(); len(d) != 1 || d[0].Member != member || d[0].Part != PartDatabase {
		t.Fatalf("%+v", d)
	}
	for range 3 {
		if err := ill.Follow(t.Context()); err != nil || ill.local() != nil {
			t.Fatalf("a member came back without its files: %v", err)
		}
	}
	replace(t, by, ill, member)
	if _, err := os.Stat(filepath.Join(ill.cfg.Dir, damagedDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left of the member: %v", err)
	}
	same(t, nodes[:], nil)
}

// Whoever asks a member how it is hears of etcd's alarms while they last, and of its leader.
func TestStatusTellsAlarms(t *testing.T) {
	a := newPeer(t, "a")
	s := a.local().etcd.Server
	for _, action := range []pb.AlarmRequest_AlarmAction{
		pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE,
	} {
		_, err := s.Alarm(t.Context(), &pb.AlarmRequest{
			Action: action, MemberID: a.local().id(), Alarm: pb.AlarmType_NOSPACE,
		})
		if err != nil {
			t.Fatal(err)
		}
		st, err := statusOf(t.Context(), a.single(), a.cfg.Net.URL)
		if err != nil {
			t.Fatal(err)
		}
		is := len(st.Errors) == 1 && strings.Contains(st.Errors[0], "NOSPACE")
		if is != (action == pb.AlarmRequest_ACTIVATE) || !is && len(st.Errors) > 0 {
			t.Errorf("%v: %q", action, st.Errors)
		}
		if st.Leader != a.local().id() || st.Header.GetMemberId() != a.local().id() || st.DbSize == 0 ||
			st.RaftAppliedIndex == 0 || st.RaftTerm == 0 || st.IsLearner {
			t.Errorf("%+v", st)
		}
	}
}

// The comparison of the members names the one that differs, and nobody where there is no majority.
// etcd's own alarm stops all writes; a member that is accused wrongly stays and the alarm goes, one
// that differs is removed and told of, and then the alarm goes as well.
func TestComparisonAndAlarm(t *testing.T) {
	t.Parallel() // most of it is etcd's wait for five healthy seconds
	nodes := three(t)
	lead := leads(t, nodes[:])
	ill := follower(t, nodes)
	by := nodes[0]
	if by == ill {
		by = nodes[1]
	}
	appendTo(t, by.Store, 5)
	until(t, "all hold it", func() bool { return ill.mirror.Head().Position.N() >= 5 })
	differ := func() []Member {
		t.Helper()
		list, err := by.Differing(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := differ(); len(list) != 0 {
		t.Fatalf("%+v", list)
	}
	member := ill.local().id()
	accuse := func() {
		t.Helper()
		_, err := lead.local().etcd.Server.Alarm(t.Context(), &pb.AlarmRequest{
			Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: pb.AlarmType_CORRUPT,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	quiet := func() bool {
		for _, n := range nodes {
			if l := n.local(); l != nil && len(l.etcd.Server.Alarms()) > 0 {
				return false
			}
		}
		return true
	}
	accuse()
	until(t, "the false alarm is disarmed", quiet)
	appendTo(t, by.Store, 6)
	if len(lead.Evicted()) != 0 || ill.local().id() != member {
		t.Fatalf("a member that was accused wrongly is gone: %+v", lead.Evicted())
	}
	// The value that is newest only: what a compaction drops says nothing.
	harm(t, ill.Store, ill.keys.log(2), flipBit(900))
	if list := differ(); len(list) != 1 || list[0].ID != member {
		t.Fatalf("%+v", list)
	}
	accuse()
	until(t, "the member is removed", func() bool { return ill.local() == nil && !ill.hasMember() })
	until(t, "the alarm is disarmed", quiet)
	evicted := 0
	for _, n := range nodes {
		for _, m := range n.Evicted() {
			if evicted++; m.ID != member {
				t.Errorf("%+v", m)
			}
			n.Told(m.ID)
		}
		if len(n.Evicted()) != 0 {
			t.Error("what was told is told again")
		}
	}
	if evicted != 1 {
		t.Errorf("%d members were evicted", evicted)
	}
	appendTo(t, by.Store, 8)
	grow(t, by, ill)
	same(t, nodes[:], nil)
}

// A repair that is asked for reads all and mends what no reader met, here and on another node; what
// it cannot mend it names.
func TestRepairByHand(t *testing.T) {
	a := newPeerSmall(t, "a")
	appendTo(t, a.Store, 8)
	archived(t, a.Store, 6)
	b := newPeerSmall(t, "b", a.cfg.Net.URL)
	archived(t, b.Store, 6)
	b.stop() // of what it does by itself
	b.stop = nil
	s, err := Open(t.Context(), b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Store, b.stop = s, func() { _ = s.Close() }
	path, _ := inFile(t, b.Store, 4)
	for _, repair := range []func() error{
		func() error { return b.Repair(t.Context()) },
		func() error { return a.RepairAt(t.Context(), b.cfg.Net.URL) },
	} {
		flip(t, path, 8*20) // the head of the file, which no reader looks at
		if b.past.Check(t.Context(), 4) == nil {
			t.Fatal("the file is not damaged")
		}
		if err := repair(); err != nil || b.past.Check(t.Context(), 4) != nil {
			t.Errorf("%v", err)
		}
	}
	harm(t, a.Store, a.keys.log(8), flipBit(900))
	var found *FoundError
	if err := b.RepairAt(t.Context(), a.cfg.Net.URL); !errors.As(err, &found) ||
		found.Part != PartDatabase || found.Position != 8 || !found.Alone {
		t.Errorf("%v", err)
	}
}
