// Package quorum is the durable engine of the event log: etcd, embedded, one member per process. An
// append is one etcd transaction, acknowledged after etcd's write-ahead log was synced; reads come
// from a verified mirror in memory. Keys and bytes are drawn in ../FORMAT.md.
//
// What it never does: it listens on no port while it is the only voter, it switches no sync off, it
// answers no conflict from memory alone, and it delivers no record that does not verify.
//
// Invariants:
//
//	Q1  one goroutine, the sequencer, owns the tail of this process; one transaction is in flight
//	Q2  a transaction compares the whole tail, that log/<n+1> is free, and the whole head of every
//	    stream it writes; a tail never recurs, so submitting the same transaction again is harmless
//	Q3  a transaction whose outcome is unknown is submitted again, the same, until the answer is
//	    definite or the process ends; its callers may leave, it does not
//	Q4  the mirror is extended only by records that the database holds
//
// A log found damaged at start is opened all the same, degraded: what lies before the damage is
// readable, reads that reach it and every append give the CorruptError that names it. Health tells,
// and Verify reads the database itself.
package quorum
