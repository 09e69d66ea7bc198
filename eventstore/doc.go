// Package eventstore states how Weft keeps its history: one totally ordered, append-only, chained
// log of domain events, cut into streams, one per aggregate. It holds the contract that every
// engine keeps, the bytes of a record, the mirror from which every engine answers reads, and the
// Executor that turns a command into an append.
//
// What it never does: it interprets no payload, it runs no consensus, and it starts no goroutine.
// Engines live in the rooms below (memory, quorum); storetest is the suite that each of them
// passes.
//
// Invariants, cited where the code keeps them and where a test breaks them:
//
//	E1  n is gapless: the record after n carries n+1. Timelines never fall along the log.
//	E2  prev of a record is the hash of the record before it; prev of the first is zero.
//	E3  a nil error of Append means: durable, on as many members as the engine promises, whole.
//	E4  a record whose checksum, content or chain does not match is never delivered; the answer is a
//	    CorruptError that names its position.
//	E5  an append whose event ids are already there answers with the old place and changes nothing,
//	    whatever it expected; that look comes before any conflict.
//	E6  a conflict is answered only on proof that the belief about the stream is current.
//	E7  a command takes effect once: its id is looked for in its stream before it is decided.
//	E8  every intent is decided by one log: while EngineStream closes this one to them, it takes
//	    copies of what the other decided and nothing else, and no copies while it is open.
//
// The bytes of a record are drawn in FORMAT.md.
package eventstore
