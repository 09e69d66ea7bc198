// Package iscsi is an iSCSI target after RFC 7143: it carries SCSI commands between TCP connections
// and logical units that it knows as bytes only. It negotiates, authenticates, moves data and keeps
// the order of sequence numbers; it never looks into a CDB, but for REPORT LUNS, which belongs to
// the target and not to a logical unit.
//
// A session has one connection (MaxConnections=1, ErrorRecoveryLevel=0), one reader goroutine and
// one writer goroutine. The reader takes a PDU's header and then its data segment into an aligned
// buffer of the command it belongs to. A command that has its data is handed to its logical unit;
// the unit's completion, on any goroutine, appends it to the output queue. One writev sends
// everything queued. While the reader has input, nothing is sent: it sends when it has none left.
// While it waits, whoever completes a command sends; all else, and what the socket does not take at
// once, is the writer's. In steady state nothing is allocated per command: commands, buffers and
// queues are used again.
//
// Invariants:
//
//	T1 A command that reached a logical unit is in running until the unit called Done. A session
//	   ends, and its successor's login is answered, only when running is zero: no write of an old
//	   session lands after the new one began.
//	T2 A task management response leaves after the last command it ends can no longer take effect.
//	T3 Every length taken from the wire is compared with a named limit before it sizes anything.
//	T4 A muted command, aborted by its own initiator, is never answered.
//	T5 Whenever the output queue is not empty, the reader is busy, somebody is sending, or the
//	   writer is roused. Only who holds sending touches the batch, StatSN and the socket's output.
//
// Locks: Server.mu guards targets and the registry of sessions, session.mu everything of one
// session. They are never held together, and neither during a call to a logical unit.
package iscsi
