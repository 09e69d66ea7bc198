package cluster

import "weft/domain"

// LogRestored says that the log was restored from a backup: what came after From in the history
// that the backup was taken of is not in this one.
type LogRestored struct {
	From domain.Position `msgpack:"from,omitempty"` // the last record of the backup
	Hash []byte          `msgpack:"hash,omitempty"` // its hash
}

// TimelineRaised says that positions bear another timeline from here on, so that none of the
// history that was given up is ever taken for one of this.
type TimelineRaised struct {
	From  domain.Timeline `msgpack:"from,omitempty"`
	To    domain.Timeline `msgpack:"to,omitempty"`
	Floor domain.Position `msgpack:"floor,omitempty"` // the last position both have
}

// EventType implements domain.Event.
func (LogRestored) EventType() string { return "LogRestored" }

// EventType implements domain.Event.
func (TimelineRaised) EventType() string { return "TimelineRaised" }

// RecordRestore is the first command behind a restore. It can be given once per restore.
type RecordRestore struct {
	Cluster domain.ClusterID
	LogRestored
	To domain.Timeline
}

// CommandType implements domain.Command.
func (RecordRestore) CommandType() string { return "RecordRestore" }

// Stream implements domain.Command.
func (c RecordRestore) Stream() domain.StreamID { return Stream(c.Cluster) }

func (s State) decideRestore(c RecordRestore) ([]domain.Event, error) {
	var k domain.Checker
	k.Check(s.Exists, "cluster", "not there")
	k.Check(len(c.Hash) == 32, "hash", "no SHA-256")
	k.Check(c.To > c.From.Timeline(), "timeline", "%d is not above %d", c.To, c.From.Timeline())
	if err := k.Err("cluster.RecordRestore", ""); err != nil {
		return nil, err
	}
	ev := c.LogRestored
	return []domain.Event{&ev, &TimelineRaised{c.From.Timeline(), c.To, c.From}}, nil
}
