package quorum

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"weft/domain"
)

// healthy is how long etcd wants all members to have been there before it lets one go, and a
// little.
const healthy = 6 * time.Second

// BenchmarkCorruptAlarm flips one bit in the database of a voter that does not lead, while six
// writers append through three, and raises etcd's CORRUPT alarm against it, which stops all writes.
// It reports the seconds until a comparison of the members names the one (noticed-s), the longest
// time without a write from the alarm on, until the member is removed and the alarm over
// (writes-again-s), and from the alarm until the node votes again with a sound copy (repaired-s).
// Nothing that was acknowledged is lost. The goal is writes again within 5 s, unattended.
//
// Nodes look for alarms every 20 ms here, where a node of the product does so twice a second.
func BenchmarkCorruptAlarm(b *testing.B) {
	var noticed, again, repaired time.Duration
	for b.Loop() {
		nodes := three(b)
		formed := time.Now()
		list := nodes[:]
		acked := make([]domain.Revision, 6)
		stop := writers(b, list, acked)
		until(b, "some records", func() bool { return nodes[0].mirror.Head().Position.N() > 200 })
		until(b, "members old enough to be changed", func() bool {
			return time.Since(formed) > healthy
		})
		lead, ill := leads(b, list), follower(b, nodes)
		by := nodes[0]
		if by == ill {
			by = nodes[1]
		}
		member := ill.local().id()
		began := time.Now()
		key, _ := stored(b, ill.Store, 2)
		harm(b, ill.Store, key, flipBit(900))
		until(b, "the comparison names it", func() bool {
			l, err := by.Differing(b.Context())
			return err == nil && len(l) == 1 && l[0].ID == member
		})
		noticed += time.Since(began)
		began = time.Now()
		if _, err := lead.local().etcd.Server.Alarm(b.Context(), &pb.AlarmRequest{
			Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: pb.AlarmType_CORRUPT,
		}); err != nil {
			b.Fatal(err)
		}
		head, moved, longest := by.mirror.Head().Position, began, time.Duration(0)
		until(b, "the alarm is over and writes go on", func() bool {
			now := by.mirror.Head().Position
			if now > head {
				longest = max(longest, time.Since(moved))
				head, moved = now, time.Now()
			}
			for _, n := range nodes {
				if l := n.local(); l != nil && len(l.etcd.Server.Alarms()) > 0 {
					return false
				}
			}
			return ill.local() == nil && time.Since(moved) < longest
		})
		again += longest
		until(b, "the damaged files are gone", func() bool { return !ill.hasMember() })
		grow(b, by, ill)
		repaired += time.Since(began)
		stop()
		same(b, list, acked)
		for _, n := range list {
			n.close()
		}
	}
	for name, d := range map[string]time.Duration{
		"noticed-s": noticed, "writes-again-s": again, "repaired-s": repaired,
	} {
		b.ReportMetric(d.Seconds()/float64(b.N), name)
	}
}
