package cluster

import (
	"weft/domain"
)

// The parts of a node's copy of the log.
const (
	PartDatabase = "database" // of its member
	PartArchive  = "archive"  // sealed files
)

// Damage tells one damage of a node's copy of the log from another.
type Damage struct {
	Node   domain.NodeID
	Part   string
	Member uint64
	First  uint64
}

// LogDamaged says that a node found its copy of the log damaged. The node goes on without what is
// damaged, which nobody gets to see.
type LogDamaged struct {
	Node     domain.NodeID   `msgpack:"node,omitempty"`
	Part     string          `msgpack:"part,omitempty"`     // PartDatabase or PartArchive
	Member   uint64          `msgpack:"member,omitempty"`   // database: whose it is
	First    uint64          `msgpack:"first,omitempty"`    // archive: n of the segment's first record
	Position domain.Position `msgpack:"position,omitempty"` // the first that is damaged, when known
	Why      string          `msgpack:"why,omitempty"`
}

// LogRepaired says that a damage is gone: the file was copied from another node, or the member was
// replaced.
type LogRepaired struct {
	Node   domain.NodeID `msgpack:"node,omitempty"`
	Part   string        `msgpack:"part,omitempty"`
	Member uint64        `msgpack:"member,omitempty"`
	First  uint64        `msgpack:"first,omitempty"`
}

// Damage gives what is damaged.
func (e *LogDamaged) Damage() Damage { return Damage{e.Node, e.Part, e.Member, e.First} }

// Damage gives what was damaged.
func (e *LogRepaired) Damage() Damage { return Damage{e.Node, e.Part, e.Member, e.First} }

// EventType implements domain.Event.
func (LogDamaged) EventType() string { return "LogDamaged" }

// EventType implements domain.Event.
func (LogRepaired) EventType() string { return "LogRepaired" }

// ReportDamage records what a node found of its own copy of the log: LogDamaged or LogRepaired.
// Recording it again records nothing.
type ReportDamage struct {
	Cluster domain.ClusterID
	Fact    domain.Event
}

// CommandType implements domain.Command.
func (c ReportDamage) CommandType() string { return "Report" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c ReportDamage) Stream() domain.StreamID { return MembershipStream(c.Cluster) }

// WithDamage keeps what is damaged now, in the order in which it was found. It shares no memory
// with before.
func WithDamage(before []LogDamaged, ev domain.Event) []LogDamaged {
	var after []LogDamaged
	for _, d := range before {
		gone := false
		switch ev := ev.(type) {
		case *LogDamaged:
			gone = d.Damage() == ev.Damage()
		case *LogRepaired:
			gone = d.Damage() == ev.Damage()
		case *VoterRemoved:
			gone = d.Part == PartDatabase && d.Member == ev.Member
		}
		if !gone {
			after = append(after, d)
		}
	}
	if d, ok := ev.(*LogDamaged); ok {
		after = append(after, *d)
	}
	return after
}

// decideDamage gives a fact unless it says nothing new.
func (s Members) decideDamage(c ReportDamage) ([]domain.Event, error) {
	known := func(d Damage) bool {
		for _, x := range s.Damaged {
			if x.Damage() == d {
				return true
			}
		}
		return false
	}
	switch ev := c.Fact.(type) {
	case *LogDamaged:
		if known(ev.Damage()) {
			return nil, nil
		}
		for _, k := range s.Known {
			if ev.Member != 0 && k.Member == ev.Member && k.Gone {
				return nil, nil // it was removed meanwhile, and its database with it
			}
		}
		return []domain.Event{ev}, nil
	case *LogRepaired:
		if !known(ev.Damage()) {
			return nil, nil
		}
		return []domain.Event{ev}, nil
	}
	return nil, domain.Errorf(domain.Internal, "membership: %T is no damage", c.Fact)
}
