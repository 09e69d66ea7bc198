package cluster

import "weft/domain"

// KeysExported says that the keys of what the log holds sealed of persons were handed out, closed
// under a passphrase, to whoever asked: the event's actor.
type KeysExported struct {
	Users int64 `msgpack:"users,omitempty"` // whose keys are in it
}

// EventType implements domain.Event.
func (KeysExported) EventType() string { return "KeysExported" }

// RecordKeysExport stands in the log before keys are handed out.
type RecordKeysExport struct {
	Cluster domain.ClusterID
	Users   int64
}

// CommandType implements domain.Command.
func (RecordKeysExport) CommandType() string { return "ExportKeys" }

// Stream implements domain.Command.
func (c RecordKeysExport) Stream() domain.StreamID { return Stream(c.Cluster) }
