package cluster

import (
	"weft/domain"
)

// MembershipCategory is the category of the one stream that tells who votes on the log, and whose
// copy of it is damaged.
const MembershipCategory = "membership"

// MembershipStream gives that stream.
func MembershipStream(id domain.ClusterID) domain.StreamID {
	return domain.StreamOf(MembershipCategory, id.UUID)
}

// LearnerAdded says that a node copies the log on its way to a vote. Member is never used twice.
type LearnerAdded struct {
	Node   domain.NodeID `msgpack:"node,omitempty"`
	Member uint64        `msgpack:"member,omitempty"`
	Why    string        `msgpack:"why,omitempty"`
}

// VoterPromoted says that a node votes.
type VoterPromoted struct {
	Node   domain.NodeID `msgpack:"node,omitempty"`
	Member uint64        `msgpack:"member,omitempty"`
}

// VoterRemoved says that a member is gone, a voter or a learner.
type VoterRemoved struct {
	Node   domain.NodeID `msgpack:"node,omitempty"`
	Member uint64        `msgpack:"member,omitempty"`
	Why    string        `msgpack:"why,omitempty"`
}

// EventType implements domain.Event.
func (LearnerAdded) EventType() string { return "LearnerAdded" }

// EventType implements domain.Event.
func (VoterPromoted) EventType() string { return "VoterPromoted" }

// EventType implements domain.Event.
func (VoterRemoved) EventType() string { return "VoterRemoved" }

// Enroll records a change of the members that etcd has made. Recording it again records nothing.
type Enroll struct {
	Cluster domain.ClusterID
	Fact    domain.Event // LearnerAdded, VoterPromoted or VoterRemoved
}

// CommandType implements domain.Command.
func (c Enroll) CommandType() string { return "Enroll" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Enroll) Stream() domain.StreamID { return MembershipStream(c.Cluster) }

// Members is the membership folded: what was last said of each member, and what is damaged.
type Members struct {
	Known   []Enrolled
	Damaged []LogDamaged
}

// Enrolled is a member as the log knows it.
type Enrolled struct {
	Member uint64
	Node   domain.NodeID
	Voter  bool
	Gone   bool
}

// MembershipAggregate is the membership for the executor.
func MembershipAggregate() domain.Aggregate[Members] {
	return domain.Aggregate[Members]{
		Category: MembershipCategory,
		Evolve: func(s Members, ev domain.Event) Members {
			damaged := WithDamage(s.Damaged, ev)
			e, ok := enrolled(ev)
			if !ok {
				return Members{s.Known, damaged}
			}
			var known []Enrolled
			for _, k := range s.Known {
				if k.Member != e.Member {
					known = append(known, k)
				}
			}
			return Members{append(known, e), damaged}
		},
		Decide: func(s Members, r domain.Request) ([]domain.Event, error) {
			if d, ok := r.Command.(ReportDamage); ok {
				return s.decideDamage(d)
			}
			c, ok := r.Command.(Enroll)
			if !ok {
				return nil, domain.Errorf(domain.Internal, "membership: unknown command %T", r.Command)
			}
			e, ok := enrolled(c.Fact)
			if !ok {
				return nil, domain.Errorf(domain.Internal, "membership: %T is no change", c.Fact)
			}
			for _, k := range s.Known {
				if k.Member == e.Member && (k == e || k.Gone || k.Voter && !e.Gone) {
					return nil, nil
				}
			}
			return []domain.Event{c.Fact}, nil
		},
	}
}

func enrolled(ev domain.Event) (Enrolled, bool) {
	switch ev := ev.(type) {
	case *LearnerAdded:
		return Enrolled{Member: ev.Member, Node: ev.Node}, true
	case *VoterPromoted:
		return Enrolled{Member: ev.Member, Node: ev.Node, Voter: true}, true
	case *VoterRemoved:
		return Enrolled{Member: ev.Member, Node: ev.Node, Gone: true}, true
	}
	return Enrolled{}, false
}
