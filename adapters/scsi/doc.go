// Package scsi is a logical unit without a transport: one command in, one status out. It holds a
// disk, the state that SCSI asks a logical unit to keep (mode pages, unit attentions, reservations,
// held copy results), and one Nexus per initiator port. It never touches a socket; iSCSI, and
// whatever comes after it, hand it calls and take back status, data and sense.
//
// A transport and this package meet at two interface literals, Call and Nexus. Both sides state
// them as aliases, so neither imports the other, and a Unit fits any transport that spells them
// alike.
//
// Life of a command: Expect tells the transport how much data the CDB moves, the transport gathers
// it, Submit runs the command. READ and WRITE go to the disk as one domain.IO held in a pooled
// task and end on the disk's goroutine; no allocation, no goroutine. Commands of several steps
// (VERIFY, WRITE SAME with a pattern, UNMAP lists, EXTENDED COPY, PERSISTENT RESERVE OUT) run in a
// goroutine of their own, which Close joins. All else ends inside Submit.
//
// Invariants:
//
//	S1 A task is on its nexus's list of running tasks before reservations are looked at, and a
//	   change of reservations is visible before the list is drained: no command that a change
//	   forbids is missed by the drain.
//	S2 Done is called exactly once per submitted call, after the last access to its buffers.
//	S3 A call that arrived before a reset of its nexus and is submitted after it never reaches
//	   the disk: its generation is old.
//	S4 Every identifier a host sees derives from the volume's id: all nodes and paths agree.
//
// Locks: Unit.mu guards slow-moving state, nexus.mu its running tasks and attentions. Unit.mu may
// be held when nexus.mu is taken, never the other way round; neither is held during a call to the
// disk, the store or the transport.
package scsi
