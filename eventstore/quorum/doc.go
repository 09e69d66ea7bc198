// Package quorum is the durable engine of the event log: etcd, embedded, at most one member per
// process. An append is one etcd transaction, acknowledged after a majority of the voters synced
// etcd's write-ahead log; reads come from a verified mirror that every node keeps. Keys and bytes
// are drawn in ../FORMAT.md.
//
// The log is kept for ever, and neither memory nor database hold all of it. Every node seals each
// 20,000 records into a file of its archive, proves the file on its disk, and forgets the records;
// its mirror then reads them from there, and nobody sees a seam. Every node, not every voter, keeps
// an archive: each answers reads by itself, any may come to vote, and what one lost the others
// have. Once enough of them hold a range (Safe), it is deleted from the database (Trim). A node
// whose next record is gone from there gets the files from another.
//
// A node is a voter, a learner on its way to become one, or a client of the others' members; Follow
// makes of it what the list of members says, without a restart and without a gap in its mirror.
// Any node may append. For speed all send their appends to the node whose member leads; one whose
// forwarding fails appends itself, and ids and the tail's comparison see to it that both write
// once.
//
// What it never does: it opens no port of its own (Port is served by whoever owns the listener), it
// switches no sync off, it answers no conflict from memory alone, and it delivers no record that
// does not verify.
//
// Invariants:
//
//	Q1  one goroutine, the sequencer, owns the tail of this process; one transaction is in flight
//	Q2  a transaction compares the whole tail and that nothing stands behind it; a tail never recurs,
//	    so submitting the same transaction again is harmless. The tail has the hash over all before
//	    it, so a mirror that ends there knows the end of every stream
//	Q3  a transaction whose outcome is unknown is submitted again, the same, until the answer is
//	    definite or the process ends; its callers may leave, it does not
//	Q4  the mirror is extended only by records that the database holds, or held and gave up; what the
//	    sequencer wrote, what the watch hears and what another node's archive holds come through one
//	    door, in order, without a gap and without a double
//	Q5  a member id is never used twice: a node that lost its vote begins with an empty folder
//	Q6  a record leaves memory after this node's disk, and the database after the disks of all voters
//	    and of three nodes where there are so many, were proved to hold it; the keys and the mark of
//	    what is gone change in one transaction
//	Q7  what a recovery gave up is no history: a mirror that holds it ends and is made anew, and a
//	    member that was given up is never started again with its files
//
// Damage costs a node of several nothing but work. A reader that meets it in a file of the archive
// waits while the file is copied from another node, or made anew of what the database holds. A
// member whose database is damaged is not read from any more (distrust): its node reads and writes
// by the others until the member is removed, its folder emptied, and a new member added; one whose
// files do not even let it start is put aside and waits for the same. It had a vote, so it is never
// started again from nothing under its old id (Q5).
//
// A log found damaged where nobody else has it is opened all the same, degraded: what lies before
// the damage is readable, reads that reach it and every append give the CorruptError that names it.
// Health tells, Damages lists, and Verify reads the database itself.
//
// Where most voters are lost for good, nothing is acknowledged any more, and no member can change
// that by itself. Recovery then makes one survivor the only voter, by an operator's word. It keeps
// all that stands in that member's consensus log, raises the timeline, and leaves marks in the
// database: where the old history ends, and which members do not belong to the log any more.
package quorum
