package cluster

import "weft/domain"

// LogRecovered says that most voters of the log were lost for good and that it goes on with the
// copy of one node, by an operator's word. What the lost ones alone knew is not in it.
type LogRecovered struct {
	By       domain.NodeID   `msgpack:"by,omitempty"`       // the node whose copy was kept
	Kept     domain.Position `msgpack:"kept,omitempty"`     // its last record
	Hash     []byte          `msgpack:"hash,omitempty"`     // of that record
	Term     uint64          `msgpack:"term,omitempty"`     // of the last entry of its consensus log
	Index    uint64          `msgpack:"index,omitempty"`    // of that entry
	Salvaged uint64          `msgpack:"salvaged,omitempty"` // records that its archive alone held
	Lost     []LostMember    `msgpack:"lost,omitempty"`
}

// LostMember is a member of the log that was given up.
type LostMember struct {
	Node    domain.NodeID `msgpack:"node,omitempty"` // zero: it never said whose it is
	Member  uint64        `msgpack:"member,omitempty"`
	Learner bool          `msgpack:"learner,omitempty"`
}

// WhyLost is why a voter is removed that a recovery gave up.
const WhyLost = "it was lost, and the log was recovered without it"

// EventType implements domain.Event.
func (LogRecovered) EventType() string { return "LogRecovered" }

// RecordRecovery is the first command behind a recovery. It can be given once per recovery.
type RecordRecovery struct {
	Cluster domain.ClusterID
	LogRecovered
	To domain.Timeline
}

// CommandType implements domain.Command.
func (RecordRecovery) CommandType() string { return "RecordRecovery" }

// Stream implements domain.Command.
func (c RecordRecovery) Stream() domain.StreamID { return Stream(c.Cluster) }

func (s State) decideRecovery(c RecordRecovery) ([]domain.Event, error) {
	var k domain.Checker
	k.Check(s.Exists, "cluster", "not there")
	k.Check(len(c.Hash) == 32, "hash", "no SHA-256")
	k.Check(!c.By.IsZero(), "by", "missing")
	k.Check(len(c.Lost) > 0, "lost", "nothing was lost")
	k.Check(c.To > c.Kept.Timeline(), "timeline", "%d is not above %d", c.To, c.Kept.Timeline())
	if err := k.Err("cluster.RecordRecovery", ""); err != nil {
		return nil, err
	}
	ev := c.LogRecovered
	return []domain.Event{&ev, &TimelineRaised{c.Kept.Timeline(), c.To, c.Kept}}, nil
}
